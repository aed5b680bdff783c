"""Cells cropped out of RxRx1-WILDS (Lin & Lu 2022, doi:10.5281/zenodo.7272553), or out of any screen, as a Screen::

    <img_dir>/<experiment>/Plate<k>/<well>_s<site>/<i>.png

What is known of a well comes from the metadata of RxRx1-WILDS. Which cells there are comes from the summary table that
is published with them, or from listing the folder, which takes minutes on a cold disk and is remembered in
``<img_dir>.cells.parquet``.
"""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from biomass.datasets.download import extract, fetch, find_archives, join
from biomass.datasets.files import open_files
from biomass.datasets.packed import packed_beside, packed_pixels, read_index
from biomass.datasets.rxrx1 import _COLUMNS, _CONTROL, CHANNELS, _check_metadata
from biomass.errors import ConfigError, DataError, one_line
from biomass.screen import UNLABELLED, Screen, make_screen

RECORD = "7272553"
"""The record of Zenodo that holds the published cells."""

ZENODO = "https://zenodo.org"

FIELD = ("experiment", "plate", "well", "site")
"""The columns that together name a field of view."""

LAYOUT = "<experiment>/Plate<k>/<well>_s<site>/<i>.png"

_PLATE = re.compile(r"Plate(\d+)")
_FIELD = re.compile(r"(.+)_s(\d+)")
_CELL = re.compile(r"(\d+)\.png")
_CELL_NUMBERS = {f"{i}.png": i for i in range(4096)}  # what nearly all files are called
_OFFICIAL = {"HEPG2": (7, 8, 11), "HUVEC": (16, 17, 24), "RPE": (7, 8, 11), "U2OS": (3, 4, 5)}
"""Cell type of RxRx1 → numbers of its last experiments for training, for validation, and of all."""
_THREADS = 16  # mostly waiting for the disk
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listing:
    """The fields of view of a folder and the cells that each has.

    Attributes:
        fields: (F) experiment, plate (int), well, site (int); each field once.
        starts: (F + 1,) where the cells of each field begin in ``cells``.
        cells: the numbers ``i`` of the cells, field by field, ascending.
    """

    fields: pd.DataFrame
    starts: np.ndarray
    cells: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.starts)


class _PlateListing(NamedTuple):
    """What is listed at a time: the fields of a plate, when their folders were last changed, and their cells."""

    experiment: str
    plate: int
    names: list[str]
    times: list[int]
    cells: list[list[int]]


def load_rxrx1_cells(
    img_dir: str | Path,
    *,
    metadata_file: str | Path | None = None,
    summary_file: str | Path | None = None,
    root_dir: str | Path = "data",
    cell_type: str | Sequence[str] | None = None,
    use_one_site: bool = False,
    include_labels: bool = True,
    download: bool = True,
) -> Screen:
    """Read cropped cells as a Screen: a row a cell, ordered by experiment, plate, well, site and number.

    Further columns of the table: ``image``, the dense number of the field of view that a cell was cut out of, over the
    whole screen; ``cell``, its number there; ``sirna``.

    Splits come from the column ``dataset`` of the metadata, for any number of experiments: ``val`` and ``test`` are its
    own; site 1 of the training experiments is ``train``, their other sites are ``iid_val``. Without metadata (and
    with ``include_labels=False``) the experiments of RxRx1-WILDS are known by their names; no row is a control then.

    Pixels are read from ``<img_dir>.packed`` if that holds all of the cells (see :mod:`biomass.datasets.packed`); then
    ``img_dir`` itself may be absent. Images without cells have no row; they are counted in the log and listed by
    :func:`count_cells`.

    Args:
        img_dir: the folder of the cells; if relative, to the working directory.
        metadata_file: the metadata of RxRx1-WILDS; if left out, ``metadata.csv`` in ``img_dir``, beside it, in
            ``rxrx1_v1.0`` beside it, or in ``<root_dir>/rxrx1_v1.0``, whichever comes first.
        summary_file: CSV with the columns ``experiment, plate, well, segmented`` (number of cells), and ``site``
            unless the well says it (``B02_s1.png``). If left out, ``img_dir`` is listed.
        root_dir: the folder that data sources read from.
        cell_type: keep only this one, or these.
        use_one_site: keep only the first site of every split: site 1, but of ``iid_val`` site 2.
        include_labels: False leaves all rows unlabelled.
        download: fetch the published cells (4 GB) if ``img_dir`` is absent, see :func:`prepare_rxrx1_cells`.

    Raises:
        ConfigError: no experiment is of the ``cell_type``.
        DataError: the folder is absent and cannot be downloaded, or is not laid out like this; metadata or summary are
            damaged or do not belong to it; there is no cell.
        BadImageError: none of the first images can be read. One of another size is this error when it is read.
    """
    folder = Path(img_dir)
    fields, listing = _describe(
        folder, metadata_file, summary_file, root_dir, cell_type, use_one_site, include_labels, download
    )
    _report_empty(folder, fields)
    fields = fields[fields["cells"] > 0].reset_index(drop=True)
    if fields.empty:
        raise DataError(f"'{folder}' has no cells: choose other data, or other dataloaders.cell_type")

    image = np.repeat(np.arange(len(fields)), fields["cells"])
    cells = listing.cells[_ranges(listing.starts[fields.pop("listed")], fields.pop("cells").to_numpy())]
    files = [_files(fields, image, cells)]
    names = fields.pop("name").groupby(fields["label"]).first()
    table = fields.astype({c: "category" for c in fields if c != "label"}).take(image)
    pixels = packed_pixels(folder, files) or open_files(folder, files, CHANNELS)
    classes = names[names.index != UNLABELLED]
    return make_screen(table.assign(image=image, cell=cells), pixels, classes.tolist())
