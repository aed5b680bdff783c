"""The store of cells: cut out of the fields of a screen and packed, with what stands beside it::

<store>                   the cells, see :mod:`biomass.pixels.packed`
<store>.fields.csv        how many nuclei and cells every field has
<store>.nuclei.parquet    the nuclei that the cells were cut around

A store grows: cells of fields that it does not have are added, and those of fields whose files have changed (in size or
time) are cut again; all others are copied. A store that has fields or cells that the screen lacks is of something else,
and is refused.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from biomass.atomic import check_writable, whole_file
from biomass.cells.crops import CropPixels, check_crop_size, crop_screen
from biomass.cells.fields import Nuclei, count_cells, name_field, search_of
from biomass.errors import DataError
from biomass.formulas import read_csv, to_csv
from biomass.pixels.origin import Stamps
from biomass.pixels.packed import read_index, read_stamps
from biomass.pixels.packed_writer import example_of, pack, stamps_of, take_held
from biomass.pixels.part import Part
from biomass.pixels.store_file import ABOUT, Store
from biomass.screen import FIELD, OnBadImage, Screen

log = logging.getLogger(__name__)


def fields_file(store: str | Path) -> Path:
    """Where :func:`pack_cells` writes how many cells every field has."""
    return Path(f"{store}.fields.csv")


def nuclei_file(store: str | Path) -> Path:
    """Where the nuclei belong that the cells of a store were cut around."""
    return Path(f"{store}.nuclei.parquet")


def pack_cells(
    screen: Screen,
    nuclei: Nuclei,
    out: str | Path,
    size: int = 48,
    *,
    alone: bool = False,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    parts: Callable[[np.ndarray], Sequence[Part]] | None = None,
    whole: str | Path | None = None,
) -> Path:
    """Cut out the cells of a screen and write them to a packed store, a field at a time; see the module.

    Args:
        screen: the fields.
        nuclei: of the fields.
        out: the store's folder. Beside it :func:`fields_file` is written, see
            :func:`biomass.cells.fields.count_cells`.
        size: height and width of a crop, pixels.
        alone: leave out crops with more than one nucleus.
        workers: processes; as many as there are cores if left out, 0 uses this one alone.
        on_bad_image: what to do with a field that cannot be read, see :func:`biomass.pixels.packed_writer.pack`.
        parts: from the field of each of N cells (N,) to the stores that these are in already: they are copied.
        whole: the store that this one will be a part of, which may be there already: cells that it holds are copied.

    Returns:
        The store's folder, which :func:`biomass.datasets.packed.load_packed` reads.

    Raises:
        ConfigError, DataError: as :func:`biomass.cells.crops.crop_screen` and
            :func:`biomass.pixels.packed_writer.pack`.
    """
    out = Path(out)
    cells = crop_screen(screen, nuclei, size, alone=alone)
    counts = count_cells(screen, nuclei, cells)
    held = partial(_held_cells, cells, out)
    of_fields = cells.table["image"].to_numpy(np.int64)
    if whole is not None and Path(whole).exists():
        cells = take_held(cells, Path(whole), _held_cells(cells, Path(whole), part=True))
    there = None if parts is None else parts(of_fields)
    pack(cells, out, workers=workers, on_bad_image=on_bad_image, held=held, parts=there)
    with whole_file(fields_file(out)) as part:
        part.write_text(to_csv(counts), encoding="utf-8")
    return out


def _held_cells(cells: Screen, out: Path, part: bool = False) -> np.ndarray:
    """Which row of the store that is there each cell is, (N,) int64; -1 where it is none, or its field has changed.

    Where the cells are those of a ``part`` of the fields, cells of others are not looked at.
    """
    assert isinstance(cells.pixels, CropPixels)
    assert cells.fields is not None
    held = read_index(out)
    keys = [*FIELD, "x", "y"]
    if any(key not in held for key in keys):
        raise _of_others(out, "no cells")
    fields = cells.fields.table[list(FIELD)].astype(str)
    field = _find_rows(held[list(FIELD)].astype(str), fields)
    if (field < 0).any() and not part:
        row = held.iloc[int(np.argmax(field < 0))]
        what = f"cells of {len(held.loc[field < 0, list(FIELD)].drop_duplicates())} fields that are not listed here"
        raise _of_others(out, f"{what}, the first: {name_field(row)}")
    own = np.flatnonzero(field >= 0)
    held, field = held.iloc[own], field[own]
    changed = _changed_fields(cells.fields, field, out, own)
    places = _find_rows(_centres(field, held), _centres(cells.pixels.field, cells.table))
    lost = (places < 0) & ~changed
    if lost.any():
        row = held.iloc[int(np.argmax(lost))]
        centre = f"at y {row['y']:.1f}, x {row['x']:.1f} of {name_field(row)}"
        raise _of_others(out, f"{lost.sum()} other cells, the first {centre}")
    if changed.any():
        first = name_field(held.iloc[int(np.argmax(changed))])
        count = len(np.unique(field[changed]))
        log.info("'%s': images of %d fields have changed, their cells are cut again; the first: %s", out, count, first)
    rows = np.full(len(cells), -1, np.int64)
    kept = np.flatnonzero(~changed)
    rows[places[kept]] = own[kept]
    return rows


def _changed_fields(fields: Screen, field: np.ndarray, out: Path, rows: np.ndarray) -> np.ndarray:
    """Of which rows of a store the field, (n,), has changed since, (n,) bool."""
    then, now = read_stamps(out, Store.read(out).images), stamps_of(fields.pixels, len(fields))
    return Stamps(now.sizes[field], now.times[field]).changed_since(Stamps(then.sizes[rows], then.times[rows]))


def _centres(field: np.ndarray, table: pd.DataFrame) -> pd.DataFrame:
    """What tells cells apart: the field, the centre, and which of several with the same centre it is."""
    frame = pd.DataFrame({"field": field, "x": table["x"].to_numpy(), "y": table["y"].to_numpy()})
    return frame.assign(again=frame.groupby(["field", "x", "y"]).cumcount())


def _find_rows(wanted: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    """The row of ``known`` that is the same as each row of ``wanted``; -1 where there is none."""
    columns = list(known)
    both = pd.concat([known, wanted], ignore_index=True).groupby(columns, sort=False).ngroup().to_numpy(np.int64)
    return pd.Index(both[: len(known)]).get_indexer(pd.Index(both[len(known) :])).astype(np.int64)


def _of_others(out: Path, what: str) -> DataError:
    return DataError(f"'{out}' is a store of other images ({what}): delete it, or choose another place", "store")


def check_cells(
    screen: Screen,
    size: int,
    out: str | Path | None = None,
    search: Mapping[str, Any] | None = None,
    *,
    alone: bool = False,
) -> None:
    """Make sure that :func:`pack_cells` will not refuse, before hours of searching find out.

    Args:
        screen: the fields.
        size: height and width of a crop, pixels.
        out: the store's folder; None if cells are only to be cut.
        search: how nuclei are searched, see :func:`biomass.cells.search.describe_search`; None if they are given.
        alone: crops with more than one nucleus are left out.

    Raises:
        ConfigError: the crops are larger than the images, or the store cannot be written.
        DataError: something else has the store's name, or it holds cells of other fields, channels, size or nuclei.
    """
    check_crop_size(screen, size)
    if out is None:
        return
    out = Path(out)
    check_writable(out.parent, out)
    if not out.exists():
        return
    if not (out / ABOUT).is_file():
        raise DataError(f"'{out}' is there already, and is not a packed store: choose another place")
    store, own = Store.read(out), (tuple(screen.pixels.channels), size, size)
    if (store.channels, *store.shape[1:]) != own:
        kind = f"of {store.shape[1]} x {store.shape[2]} pixels and the channels {', '.join(store.channels)}"
        raise _of_others(out, kind)
    held = read_index(out)
    if any(column not in held for column in FIELD):
        raise _of_others(out, "no cells")
    if (dtype := example_of(screen).dtype) != np.dtype(store.dtype):
        raise _of_others(out, f"of type {np.dtype(store.dtype)}, these are {dtype}")
    known = screen.table[list(FIELD)].astype(str)
    fields = pd.concat([held[list(FIELD)].astype(str), _listed_fields(out)]).drop_duplicates()
    absent = _find_rows(fields, known) < 0
    if absent.any():
        row = fields.iloc[int(np.argmax(absent))]
        raise _of_others(out, f"cells of {absent.sum()} fields that are not listed here, the first: {name_field(row)}")
    if search is not None and not _may_be_of(search, out):
        raise _of_others(out, "cells around nuclei that were found otherwise")
    if alone and "neighbours" in held and len(crowded := np.flatnonzero(held["neighbours"] > 0)):
        field = _find_rows(held[list(FIELD)].iloc[crowded].astype(str), known)
        left = crowded[~_changed_fields(screen, field, out, crowded)]
        if len(left):
            what = f"{len(left)} other cells, with more than one nucleus, the first in"
            raise _of_others(out, f"{what} {name_field(held.iloc[left[0]])}")


def _listed_fields(out: Path) -> pd.DataFrame:
    """The fields that the table beside a store lists, those without cells among them; none where it is lost."""
    try:
        return read_csv(fields_file(out))[list(FIELD)]
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=list(FIELD))


def _may_be_of(search: Mapping[str, Any], out: Path) -> bool:
    """Whether a store may hold the cells of this search: the table of nuclei beside it says so, or is lost."""
    try:
        return bool(search_of(pq.read_schema(nuclei_file(out))) == search)
    except (OSError, ValueError, pa.ArrowException):  # not there, or damaged
        return True
