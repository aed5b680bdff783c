"""Cells of some plates of a screen, cut as one of several shards; and their nuclei, put together."""

import logging
from collections.abc import Mapping
from typing import Any

from biomass.cells.fields import Nuclei, join_nuclei, name_field, read_saved_nuclei
from biomass.cells.store import nuclei_file
from biomass.errors import DataError, NoCellsError
from biomass.pixels.packed_writer import stamps_of
from biomass.screen import FIELD, Screen
from biomass.shards import Note, Shards

log = logging.getLogger(__name__)


def check_names(screen: Screen) -> None:
    """Make sure that the nuclei of a part of a screen can be told to be those of its fields.

    Raises:
        DataError: two fields have the same name.
    """
    names = screen.table[list(FIELD)]
    twice = names.duplicated()
    if twice.any():
        raise DataError(
            f"two images are of {name_field(names[twice].iloc[0])}, so that shards cannot tell whose nuclei are whose: "
            "give each a site of its own, or do without shards"
        )


def join_saved_nuclei(screen: Screen, shards: Shards, notes: list[Note], search: Mapping[str, Any]) -> Nuclei:
    """The nuclei that all shards have found.

    Raises:
        DataError: those of a shard are gone, or its images have changed since.
    """
    stamps, found = stamps_of(screen.pixels, len(screen)), []
    for note in notes:
        if not note.more.get("fields"):
            continue
        nuclei = read_saved_nuclei(screen, nuclei_file(shards.place(note.shard)), search, stamps)
        if nuclei is None:
            raise DataError(f"the nuclei of shard {note.shard} are gone or damaged: {shards.again(note.shard)}")
        changed = note.more["fields"] - len(nuclei.fields)
        if changed:
            raise DataError(
                f"images of {changed} fields of shard {note.shard} have changed since: {shards.again(note.shard)}"
            )
        found.append(nuclei)
    if not found:
        raise NoCellsError(f"none of the {len(screen)} fields can be read: copy or download them again")
    return join_nuclei(*found)
