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
from biomass.errors import DataError
from biomass.identifiers import match
from biomass.pixels.origin import Stamps
from biomass.screen import FIELD, Screen

COLUMNS = ("image", "x", "y", "area")
"""Columns of a table of nuclei: the field (a row of its screen), the centre and the area in pixels."""

ROW_COLUMNS = ("nucleus", "object", "nuclei_file")
"""Further columns of nuclei that were given: where to find them again, see :mod:`biomass.cells.tables`."""

_SHOWN = 5  # plates that a message lists
_REACH, _CHANCE, _FIELDS = 0.8, 1e-6, 3  # when nuclei are crowded into a corner, see _check_inside

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


def some_nuclei(nuclei: Nuclei, rows: np.ndarray) -> Nuclei:
    """The nuclei of some fields, (n,) ascending, which are numbered from 0 again.

    >>> nuclei = Nuclei(pd.DataFrame({"image": [0, 2, 2], "x": 1.0, "y": 1.0, "area": 9.0}), np.array([0, 1, 2]))
    >>> some_nuclei(nuclei, np.array([1, 2])).table["image"].tolist()
    [1, 1]
    """
    table = nuclei.table[np.isin(nuclei.table["image"], rows)]
    fields = nuclei.fields[np.isin(nuclei.fields, rows)]
    table = table.assign(image=np.searchsorted(rows, table["image"])).reset_index(drop=True)
    return Nuclei(table, np.searchsorted(rows, fields))


def place_nuclei(screen: Screen, fields: pd.DataFrame, nuclei: pd.DataFrame, *, subset: bool = False) -> Nuclei:
    """Match the fields of a table of nuclei with those of a screen, by plate, well and site.

    Nuclei of fields that the screen does not have, or that lie outside their field, are left out: the log says how
    many, and where. Where that holds for half of them or more, the table is of something else: that is refused, and the
    error says what it looks like. Fields of the screen that the table does not list have no nuclei; the log says how
    many there are.

    Args:
        screen: the fields.
        fields: ``plate, well, site``, and ``experiment`` where plates of several experiments have the same name.
        nuclei: ``field`` (a row of ``fields``), ``x, y, area``; as :func:`biomass.cells.tables.read_nuclei_tables`
            gives them, perhaps with :data:`ROW_COLUMNS`.
        subset: the screen may have only a part of the fields, however small.

    Raises:
        DataError: most nuclei belong to no field (with ``subset``, all), or lie outside, or all lie in one corner; or
            the screen has two fields of the same name.
    """
    keys = [column for column in FIELD if column in fields]
    place = partial(
        match, fields, screen.table, keys, left_name="fields of the nuclei", right_name="fields of the screen"
    )
    image = place(left_over="ignore")
    of_nucleus = image[nuclei["field"].to_numpy(np.int64)]
    lost, lost_fields = of_nucleus < 0, image < 0
    enough = lost_fields.mean() < 0.5 and (not len(lost) or lost.mean() < 0.5)
    some = (image >= 0).any() if subset else enough
    image = place(
        left_over="say" if some else "error", right_over="say", advice="left_over" if not subset else "nuclei"
    )
    if lost.any():
        plates = fields["plate"].iloc[nuclei["field"][lost]].value_counts()
        named = ", ".join(f"{plate} ({count})" for plate, count in plates.iloc[:_SHOWN].items())
        more = ", …" if len(plates) > _SHOWN else ""
        log.warning("%d of %d nuclei belong to no field, of plates %s%s", lost.sum(), len(lost), named, more)
    columns = ["x", "y", "area", *(c for c in ROW_COLUMNS if c in nuclei)]
    table = nuclei[columns].assign(image=of_nucleus)[~lost].reset_index(drop=True)
    table = table[[*COLUMNS, *columns[3:]]]
    inside = _check_inside(screen, table)
    return Nuclei(table[inside].reset_index(drop=True), np.unique(image[image >= 0]))


def _check_inside(screen: Screen, table: pd.DataFrame) -> np.ndarray:
    """Which nuclei lie inside their field, (n,) bool; what looks like other units is refused."""
    size = np.array(screen.pixels.size, np.float64)
    centres = table[["y", "x"]].to_numpy(np.float64)
    inside = np.all((centres >= -0.5) & (centres <= size - 0.5), axis=1)  # to the edges of the outermost pixels
    if not len(table):
        return inside
    height, width = screen.pixels.size
    far = ~inside
    if far.any():
        row = table.iloc[int(np.argmax(far))]
        where = f"y {row['y']:g}, x {row['x']:g} of {name_field(screen.table.iloc[int(row['image'])])}"
        message = (
            f"{far.sum()} of {len(far)} nuclei lie outside their field of {height} x {width}, the first at {where}"
        )
        if far.mean() >= 0.5 or (far.mean() > 0.02 and _fit_exchanged(centres, size)):
            raise DataError(f"{message}; {_unit(centres, size)}", "nuclei")
        log.warning("%s: they are left out", message)
    reach = centres.max(axis=0) / size
    # As good as impossible for nuclei all over a field, and the same along both axes: so not the fault of one corner.
    near = (reach < _REACH).all() and reach.max() ** len(centres) < _CHANCE and reach.max() < 1.2 * reach.min()
    if near and len(np.unique(table["image"])) >= _FIELDS:
        raise DataError(
            f"all {len(table)} nuclei lie in the upper left {reach[0]:.0%} x {reach[1]:.0%} of their fields of "
            f"{height} x {width}: their centres look like µm, or pixels of a binned image, about {reach.mean():.2f} of "
            "ours; multiply them, so that they are pixels of these images",
            "nuclei",
        )
    return inside


def _fit_exchanged(centres: np.ndarray, size: np.ndarray) -> bool:
    """Whether all but a few centres would lie inside if x were y."""
    return bool(((centres[:, ::-1] >= -0.5) & (centres[:, ::-1] <= size - 0.5)).all(axis=1).mean() > 0.99)


def _unit(centres: np.ndarray, size: np.ndarray) -> str:
    """What centres outside of their fields look like."""
    if (centres < 0).any(axis=1).mean() > 0.1:
        return "they look like places on a stage or in a well, which may be negative: give pixels from the upper left"
    if _fit_exchanged(centres, size):
        return "x and y look exchanged: x goes to the right, y down"
    scale = (np.quantile(centres, 0.99, axis=0) / size).mean()
    return f"they look like pixels of images {scale:.1f} times as large (not binned), or µm: divide them"


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
