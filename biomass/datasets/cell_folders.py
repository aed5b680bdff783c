"""Which cells there are in a folder of cropped cells, ``<experiment>/Plate<k>/<well>_s<site>/<i>.png``.

Listing a folder with a million files takes minutes on a cold disk. What was found is remembered beside the folder, in
``<folder>.cells.parquet``, or where that cannot be written, in the user's cache; a plate is listed again when the time
of one of its folders has changed.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from biomass.atomic import whole_file
from biomass.errors import ConfigError, DataError, printable
from biomass.identifiers import check_once, names, wells
from biomass.pixels.packed import open_packed, read_index
from biomass.screen import FIELD

LAYOUT = "<experiment>/Plate<k>/<well>_s<site>/<i>.png"
"""How the files of cells are called."""

_PLATE = re.compile(r"Plate(0|[1-9]\d*)")
_FIELD = re.compile(r"(.+)_s(0|[1-9]\d*)")
_PLACE = rf"(.+)/{_PLATE.pattern}/{_FIELD.pattern}"
_CELL = re.compile(r"(0|[1-9]\d*)\.png")
_CELL_NUMBERS = {f"{i}.png": i for i in range(4096)}  # what nearly all files are called
_THREADS = 16  # mostly waiting for the disk
_CACHE_VERSION = b"1"

Plate = tuple[str, int]
"""Experiment and number of a plate."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The fields of view of a folder and the cells that each has.

    Attributes:
        fields: F rows, as :func:`name_fields` gives them.
        counts: (F,) cells of every field.
        cells: the numbers ``i`` of the cells, field by field, ascending.
    """

    fields: pd.DataFrame
    counts: np.ndarray
    cells: np.ndarray

    def take(self, fields: np.ndarray) -> np.ndarray:
        """The numbers of the cells of some fields, one field after the other.

        >>> Listing(pd.DataFrame(), np.array([2, 0, 3]), np.array([0, 1, 0, 4, 7])).take(np.array([2, 0]))
        array([0, 4, 7, 0, 1])
        """
        starts = (np.cumsum(self.counts) - self.counts)[fields]
        counts = self.counts[fields]
        shift = starts - (np.cumsum(counts) - counts)  # from a place in the result to its place in self.cells
        return self.cells[np.arange(counts.sum()) + np.repeat(shift, counts)]


class _PlateListing(NamedTuple):
    """A plate's fields of view, when their folders were last changed, how many cells each has, and which."""

    names: list[str]
    times: np.ndarray
    counts: np.ndarray
    cells: np.ndarray


def name_fields(places: Sequence[str]) -> pd.DataFrame:
    """The names of fields whose folders are given.

    Args:
        places: F of them, ``<experiment>/Plate<k>/<well>_s<site>``.

    Returns:
        F rows, ``experiment`` and ``well`` in normal form, ``plate`` and ``site`` as int64, and ``place``.

    Raises:
        DataError: two folders are of the same field.

    >>> name_fields(["RPE-01/Plate2/B2_s1"])
      experiment  plate well  site                place
    0     RPE-01      2  B02     1  RPE-01/Plate2/B2_s1
    """
    parts = pd.Series(list(places), dtype=object).str.extract(_PLACE)
    fields = pd.DataFrame(
        {
            "experiment": names(parts[0], "experiment"),
            "plate": parts[1].astype(np.int64),
            "well": wells(parts[2]),
            "site": parts[3].astype(np.int64),
            "place": list(places),
        }
    )
    check_once(fields, FIELD, "folders", place=lambda row: f"'{places[row]}'")
    return fields


def list_store(store: Path) -> Listing:
    """The cells of a packed store, whose files may be gone.

    Raises:
        DataError: it is not a store of cropped cells.
    """
    table, places = read_index(store), []
    if {"image", "cell"} <= set(table):
        order = table.sort_values(["image", "cell"])
        first = order.index[~order.duplicated("image")].to_numpy()
        places = [file.rpartition("/")[0] for file in open_packed(store).files().take(pa.array(first)).to_pylist()]
    if not places or not all(re.fullmatch(_PLACE, place) for place in places):
        raise DataError(f"'{store}' does not hold cropped cells, {LAYOUT}: read it as a packed store")
    counts = np.unique(order["image"], return_counts=True)[1]
    return Listing(name_fields(places), counts, order["cell"].to_numpy(np.int32))


def list_folder(folder: Path) -> Listing:
    """The cells of a folder. Plates that have not changed since the last time are not listed again.

    Raises:
        DataError: the folder is laid out otherwise.
    """
    plates = find_plates(folder)
    before = _read_cache(folder)
    bar = tqdm(desc=printable(f"Listing {folder.name}"), total=len(plates), unit="plate", disable=None)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        found = {}
        for key, plate in zip(plates, pool.map(lambda k: _list_plate(plates[k], before.get(k)), plates), strict=True):
            found[key] = plate
            bar.update()
    if found.keys() != before.keys() or any(found[key] is not before[key] for key in found):
        _write_cache(folder, found)
    places = [f"{experiment}/Plate{k}/{name}" for (experiment, k), plate in found.items() for name in plate.names]
    if not places:
        raise _not_the_layout(folder, "no image")
    counts, cells = (np.concatenate([plate[i] for plate in found.values()]) for i in (2, 3))
    return Listing(name_fields(places), counts, cells)


def find_plates(folder: Path, strict: bool = True) -> dict[Plate, Path]:
    """The folder of every plate, in their order.

    Args:
        folder: of cropped cells.
        strict: whether folders that are called otherwise are an error, or left out.

    Raises:
        DataError: there is none, or something else where plates should be.
    """
    plates = {}
    for experiment in _folders(folder):
        inside = _folders(folder / experiment)
        for name in inside:
            match = _PLATE.fullmatch(name)
            if match is not None:
                plates[experiment, int(match[1])] = folder / experiment / name
            elif strict:
                raise _not_the_layout(folder, f"the folder '{experiment}/{name}'")
        if not inside and strict:
            raise _not_the_layout(folder, f"no folder in '{experiment}'")
    if not plates and strict:
        raise _not_the_layout(folder, "no folder")
    return dict(sorted(plates.items()))


def find_fields(folder: Path, plates: Iterable[Plate]) -> list[str]:
    """The folders of fields on some plates, relative to ``folder``; other folders there are left out."""
    places = [f"{experiment}/Plate{number}" for experiment, number in plates]
    return [f"{place}/{name}" for place in places for name in _folders(folder / place) if _FIELD.fullmatch(name)]


def find_roots(folder: Path) -> Iterator[Path]:
    """The folders at or below ``folder`` that are laid out as cropped cells."""
    if _is_layout(folder):
        yield folder
        return
    for name in _folders(folder):
        yield from find_roots(folder / name)


def list_field(field: Path) -> list[int]:
    """The numbers of the cells of a field of view, ascending.

    Raises:
        DataError: a file has another name.
    """
    numbers = []
    for name in os.listdir(field):  # noqa: PTH208  (a million of them: as names, not as Paths)
        number = _CELL_NUMBERS.get(name)
        if number is None:
            match = _CELL.fullmatch(name)
            if match is None:
                if name.startswith("."):
                    continue
                inside = "/".join([*field.parts[-3:], name])
                raise _not_the_layout(field.parent.parent.parent, f"'{inside}'")
            number = int(match[1])
        numbers.append(number)
    return sorted(numbers)


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, but for hidden ones and what macOS puts into archives."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())


def _list_plate(plate: Path, before: _PlateListing | None) -> _PlateListing:
    inside = _folders(plate)
    for name in inside:
        if not _FIELD.fullmatch(name):
            raise _not_the_layout(plate.parent.parent, f"the folder '{plate.parent.name}/{plate.name}/{name}'")
    times = np.array([(plate / name).stat().st_mtime_ns for name in inside], np.int64)
    if before is not None and inside == before.names and np.array_equal(times, before.times):
        return before
    cells = [list_field(plate / name) for name in inside]
    flat = np.array([number for numbers in cells for number in numbers], np.int32)
    return _PlateListing(inside, times, np.array([len(numbers) for numbers in cells], np.int64), flat)


def _not_the_layout(folder: Path, found: str) -> DataError:
    hint = next((f"; did you mean '{folder / name}'?" for name in _folders(folder) if _is_layout(folder / name)), "")
    return DataError(
        f"'{folder}' is not a folder of cropped cells: expected {LAYOUT} in it, found {found}{hint}", "img_dir"
    )


def _is_layout(folder: Path) -> bool:
    return any(_PLATE.fullmatch(name) for experiment in _folders(folder) for name in _folders(folder / experiment))


def _caches(folder: Path) -> tuple[Path, Path]:
    """Where a listing is remembered: beside the folder, or where that cannot be written, in the user's cache."""
    place = folder.absolute()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return place.with_name(f"{place.name}.cells.parquet"), user / "biomass" / f"cells-{digest}.parquet"


def _read_cache(folder: Path) -> dict[Plate, _PlateListing]:
    for path in _caches(folder):
        try:
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"version") != _CACHE_VERSION:
                continue
            fields, times = table["name"].to_pylist(), table["time"].to_numpy()
            counts = pc.list_value_length(table["cells"]).to_numpy().astype(np.int64)
            cells = table["cells"].combine_chunks().flatten().to_numpy()
            codes = table.select(["experiment", "plate"]).to_pandas().groupby(["experiment", "plate"], sort=False)
        except (OSError, KeyError, pa.ArrowException):
            continue
        ends = np.cumsum(counts)
        plates = {}
        for (experiment, number), rows in codes.indices.items():
            first, last = rows[0], rows[-1]
            inside = slice(first, last + 1)
            plates[experiment, int(number)] = _PlateListing(
                fields[inside], times[inside], counts[inside], cells[ends[first] - counts[first] : ends[last]]
            )
        return plates
    return {}


def _write_cache(folder: Path, plates: dict[Plate, _PlateListing]) -> None:
    sizes = [len(plate.names) for plate in plates.values()]
    counts = np.concatenate([plate.counts for plate in plates.values()])
    cells = np.concatenate([plate.cells for plate in plates.values()])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    table = pa.table(
        {
            "experiment": np.repeat(np.array([experiment for experiment, _ in plates], object), sizes),
            "plate": np.repeat([number for _, number in plates], sizes),
            "name": [name for plate in plates.values() for name in plate.names],
            "time": np.concatenate([plate.times for plate in plates.values()]),
            "cells": pa.LargeListArray.from_arrays(starts, pa.array(cells, pa.int32())),
        }
    ).replace_schema_metadata({"version": _CACHE_VERSION})
    for path in _caches(folder):
        try:
            with whole_file(path) as part:
                pq.write_table(table, part, compression="zstd")
            return
        except ConfigError as error:
            log.debug("the listing is not remembered: %s", error)
