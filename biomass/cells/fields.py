"""Nuclei and the fields of view they lie in: matched by name, counted, and kept in a table."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from biomass.atomic import whole_file
from biomass.identifiers import match
from biomass.pixels.origin import Stamps
from biomass.screen import FIELD, Screen

COLUMNS = ("image", "x", "y", "area")
"""Columns of a table of nuclei: the field (a row of its screen), the centre and the area in pixels."""

ROW_COLUMNS = ("nucleus", "object", "nuclei_file")
"""Further columns of nuclei that were given: where to find them again, see :mod:`biomass.cells.tables`."""

_SEARCH = b"biomass.nuclei"  # where the metadata of a kept table says how the nuclei were searched

log = logging.getLogger(__name__)


class Nuclei(NamedTuple):
    """The nuclei of the fields of a screen."""

    table: pd.DataFrame
    """A row a nucleus, with the :data:`COLUMNS`, in any order, and perhaps some of the :data:`ROW_COLUMNS`."""
    fields: np.ndarray
    """(F,) int64, the fields (rows of the screen) that were looked at, whether they have nuclei or not."""


NONE = Nuclei(
    pd.DataFrame({"image": np.zeros(0, np.int64)} | dict.fromkeys(COLUMNS[1:], np.zeros(0))), np.zeros(0, np.int64)
)
"""No nuclei: nothing was looked at."""


def join_nuclei(*parts: Nuclei) -> Nuclei:
    """The nuclei of several parts of a screen, in the order of its fields."""
    table = pd.concat([part.table for part in parts]).sort_values("image", kind="stable", ignore_index=True)
    return Nuclei(table, np.sort(np.concatenate([part.fields for part in parts])))


def place_nuclei(screen: Screen, fields: pd.DataFrame, nuclei: pd.DataFrame, *, subset: bool = False) -> Nuclei:
    """Match the fields of a table of nuclei with those of a screen, by plate, well and site.

    Nuclei of fields that the screen does not have would be lost: that is refused, unless it is allowed. Fields of the
    screen that the table does not list have no nuclei; the log says how many there are.

    Args:
        screen: the fields.
        fields: ``plate, well, site``, and ``experiment`` where plates of several experiments have the same name.
        nuclei: ``field`` (a row of ``fields``), ``x, y, area``; as :func:`biomass.cells.nuclei.read_nuclei` gives
            them.
        subset: the screen may have only a part of the fields: the log says how many are left over.

    Raises:
        DataError: the screen lacks a field (with ``subset``, all fields), or has two fields of the same name.
    """
    keys = [column for column in FIELD if column in fields]
    place = partial(
        match, fields, screen.table, keys, left_name="fields of the nuclei", right_name="fields of the screen"
    )
    some = subset and (place(left_over="ignore") >= 0).any()
    image = place(
        left_over="say" if some else "error", right_over="say", advice="left_over" if not subset else "nuclei"
    )
    of_nucleus = image[nuclei["field"].to_numpy(np.int64)]
    table = nuclei[["x", "y", "area"]].assign(image=of_nucleus)[of_nucleus >= 0].reset_index(drop=True)
    return Nuclei(table[list(COLUMNS)], np.unique(image[image >= 0]))


def name_field(row: "pd.Series[Any]", columns: Sequence[str] = FIELD) -> str:
    """A field's name for messages: ``plate P1, well B02, site 1``."""
    return ", ".join(f"{column} {row[column]}" for column in columns)


def count_cells(screen: Screen, nuclei: Nuclei, cells: Screen) -> pd.DataFrame:
    """How many nuclei and cells every field has. Fields without cells, which no table of cells lists, are logged.

    Args:
        screen: the fields.
        nuclei: of the fields.
        cells: what :func:`biomass.cells.crops.crop_screen` has made of them.

    Returns:
        A row a field of the screen: ``experiment, plate, well, site``, ``nuclei`` (missing where the field was not
        looked at), ``cells``, and how many of these have ``neighbours`` in their crop.
    """
    counts = screen.table[list(FIELD)].copy()
    n = len(screen)
    found = pd.array(np.bincount(nuclei.table["image"].to_numpy(np.int64), minlength=n), dtype="Int64")
    found[np.setdiff1d(np.arange(n), nuclei.fields)] = pd.NA
    counts["nuclei"] = found
    image = cells.table["image"].to_numpy(np.int64)
    counts["cells"] = np.bincount(image, minlength=n)
    counts["neighbours"] = np.bincount(image[cells.table["neighbours"] > 0], minlength=n)
    empty = counts[counts["cells"] == 0]
    if len(empty):
        shown = "; ".join("/".join(map(str, row)) for row in empty.iloc[:5, :4].to_numpy())
        log.warning(
            "%d of %d fields have no cells (%d of them were not looked at): %s%s",
            len(empty),
            n,
            int(empty["nuclei"].isna().sum()),
            shown,
            " …" if len(empty) > 5 else "",
        )
    return counts


def save_nuclei(
    screen: Screen, nuclei: Nuclei, file: Path, search: Mapping[str, Any] | None = None, stamps: Stamps | None = None
) -> None:
    """Write nuclei to a table that :func:`biomass.cells.tables.read_nuclei_table` reads.

    A field without nuclei has one row, with neither x nor y. What the same search has found in fields that the screen
    does not have stays in the table.

    Args:
        screen: the fields.
        nuclei: of the fields.
        file: Parquet; complete or not there.
        search: how they were searched, see :func:`biomass.cells.search.describe_search`, which is kept in the table's
            metadata; None where the nuclei were given.
        stamps: of the files of the screen's images when they were searched.

    Raises:
        ConfigError: it cannot be written.
    """
    empty = np.setdiff1d(nuclei.fields, nuclei.table["image"])
    found = pd.concat([nuclei.table, pd.DataFrame({"image": empty})]).sort_values("image", kind="stable")
    image = found["image"].to_numpy(np.int64)
    names = screen.table[list(FIELD)].astype(str).iloc[image].reset_index(drop=True)
    values = found[[c for c in ("x", "y", "area", *ROW_COLUMNS) if c in found]].reset_index(drop=True)
    table = pd.concat([names, values], axis=1)
    if "nucleus" in table:
        table["nucleus"] = table["nucleus"].astype("Int64")
    if stamps is not None:
        table = table.assign(bytes=stamps.sizes[image], changed=stamps.times[image])
    if search is not None:
        kept = _read_kept(file, search)
        if kept is not None:
            table = pd.concat([table, kept[_rows_of(screen, kept) < 0]], ignore_index=True)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    if search is not None:
        arrow = arrow.replace_schema_metadata({**arrow.schema.metadata, _SEARCH: json.dumps(search)})
    with whole_file(file) as part:
        pq.write_table(arrow, part)


def read_saved_nuclei(screen: Screen, file: Path, search: Mapping[str, Any], stamps: Stamps) -> Nuclei | None:
    """The nuclei of a screen that :func:`save_nuclei` wrote, without those of fields whose files have changed since.

    Returns:
        None if another search found them, or they cannot be read.
    """
    kept = _read_kept(file, search)
    if kept is None:
        return None
    image = _rows_of(screen, kept)
    kept, image = kept[image >= 0], image[image >= 0]
    now = Stamps(stamps.sizes[image], stamps.times[image])
    same = ~now.changed_since(Stamps(kept["bytes"].to_numpy(np.int64), kept["changed"].to_numpy(np.int64)))
    kept, image = kept[same].assign(image=image[same]), image[same]
    found = kept.loc[kept["x"].notna(), list(COLUMNS)].sort_values("image", kind="stable", ignore_index=True)
    return Nuclei(found, np.unique(image))


def _read_kept(file: Path, search: Mapping[str, Any]) -> pd.DataFrame | None:
    """A table that :func:`save_nuclei` wrote for this search."""
    try:
        table = pq.read_table(file)
        if search_of(table.schema) != search:
            return None
        return table.select([*FIELD, "x", "y", "area", "bytes", "changed"]).to_pandas()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def _rows_of(screen: Screen, table: pd.DataFrame) -> np.ndarray:
    """The row of a screen that every row of a table belongs to, by the names of the field; -1 where there is none."""
    own = pd.MultiIndex.from_frame(screen.table[list(FIELD)].astype(str))
    number = table.groupby(list(FIELD), sort=False, dropna=False).ngroup().to_numpy(np.int64)
    fields = table[list(FIELD)].astype(str)[~pd.Series(number, table.index).duplicated()]
    if not own.is_unique:
        return np.full(len(table), -1)  # several images of a field: nothing says which is which
    return own.get_indexer(pd.MultiIndex.from_frame(fields)).astype(np.int64)[number]


def search_of(schema: pa.Schema) -> Any:
    """How the nuclei of a table were searched, as :func:`save_nuclei` was told; None where they were given."""
    return json.loads((schema.metadata or {}).get(_SEARCH, b"null"))
