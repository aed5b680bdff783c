"""The store of cells: cut out of the fields of a screen and packed, with what stands beside it::

<store>                   the cells, see :mod:`biomass.pixels.packed`
<store>.fields.csv        how many nuclei and cells every field has
<store>.nuclei.parquet    the nuclei that the cells were cut around
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from biomass.atomic import check_writable, whole_file
from biomass.cells.crops import check_crop_size, crop_screen
from biomass.cells.fields import Nuclei, count_cells, search_of
from biomass.errors import DataError
from biomass.pixels.packed import ABOUT, Store
from biomass.pixels.packed_writer import pack
from biomass.screen import FIELD, OnBadImage, Screen


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
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> Path:
    """Cut out the cells of a screen and write them to a packed store, a field at a time.

    Args:
        screen: the fields.
        nuclei: of the fields.
        out: the store's folder. Beside it :func:`fields_file` is written, see
            :func:`biomass.cells.fields.count_cells`.
        size: height and width of a crop, pixels.
        workers: processes; as many as there are cores if left out, 0 uses this one alone.
        on_bad_image: what to do with a field that cannot be read, see :func:`biomass.pixels.packed_writer.pack`.

    Returns:
        The store's folder, which :func:`biomass.datasets.packed.load_packed` reads.

    Raises:
        ConfigError, DataError: as :func:`biomass.cells.crops.crop_screen` and
            :func:`biomass.pixels.packed_writer.pack`.
    """
    cells = crop_screen(screen, nuclei, size)
    counts = count_cells(screen, nuclei, cells)
    out = pack(cells, out, workers=workers, on_bad_image=on_bad_image)
    with whole_file(fields_file(out)) as part:
        counts.to_csv(part, index=False)
    return out


def check_cells(
    screen: Screen, size: int, out: str | Path | None = None, search: Mapping[str, Any] | None = None
) -> None:
    """Make sure that :func:`pack_cells` will not refuse, before hours of searching find out.

    Args:
        screen: the fields.
        size: height and width of a crop, pixels.
        out: the store's folder; None if cells are only to be cut.
        search: how nuclei are searched, see :func:`biomass.cells.search.describe_search`; None if they are given.

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
    other = None
    if (store.channels, *store.shape[1:]) != own:
        other = f"of {store.shape[1]} x {store.shape[2]} pixels and the channels {', '.join(store.channels)}"
    elif search is not None and not _may_be_of(screen, search, out):
        other = "cells of other fields or nuclei"
    if other is not None:
        raise DataError(f"'{out}' is a store of other images ({other}): delete it, or choose another place")


def _may_be_of(screen: Screen, search: Mapping[str, Any], out: Path) -> bool:
    """Whether a store may hold the cells of this search.

    The table of nuclei beside the store says which search they are of. Where it is lost, the list of fields tells at
    least whether the fields are the same. Without both, nothing speaks against it, and :func:`pack_cells` finds out.
    """
    try:
        return bool(search_of(pq.read_schema(nuclei_file(out))) == search)
    except (OSError, ValueError, pa.ArrowException):  # not there, or damaged
        pass
    try:
        fields = pd.read_csv(fields_file(out), dtype=str, keep_default_na=False)[list(FIELD)]
    except (OSError, ValueError, KeyError):
        return True
    return np.array_equal(fields.to_numpy(str), screen.table[list(FIELD)].to_numpy(str))
