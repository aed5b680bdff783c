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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from biomass.datasets.rxrx1 import CHANNELS, CONTROLS, DOWNLOAD_ADVICE, read_metadata
from biomass.errors import DataError, one_line
from biomass.identifiers import find
from biomass.pixels.files import open_files
from biomass.pixels.packed import packed_beside, packed_pixels, read_index
from biomass.screen import FIELD, UNLABELLED, Screen, make_screen

RECORD = "7272553"
"""The record of Zenodo that holds the published cells."""

ZENODO = "https://zenodo.org"

LAYOUT = "<experiment>/Plate<k>/<well>_s<site>/<i>.png"

_PLATE = re.compile(r"Plate(0|[1-9]\d*)")
_FIELD = re.compile(r"(.+)_s(0|[1-9]\d*)")
_CELL = re.compile(r"(0|[1-9]\d*)\.png")
_CELL_NUMBERS = {f"{i}.png": i for i in range(4096)}  # what nearly all files are called
_OFFICIAL = {"HEPG2": (7, 8, 11), "HUVEC": (16, 17, 24), "RPE": (7, 8, 11), "U2OS": (3, 4, 5)}
"""Cell type of RxRx1 → numbers of its last experiments for training, for validation, and of all."""
_THREADS = 16  # mostly waiting for the disk
_CACHE_VERSION = b"1"
_TIMEOUT = 60  # seconds without an answer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listing:
    """The fields of view of a folder and the cells that each has.

    Attributes:
        fields: F rows: experiment, plate (int), well, site (int), each field once.
        counts: (F,) cells of every field.
        cells: the numbers ``i`` of the cells, field by field, ascending.
    """

    fields: pd.DataFrame
    counts: np.ndarray
    cells: np.ndarray

    def take(self, fields: np.ndarray) -> np.ndarray:
        """The numbers of the cells of some fields, one field after the other."""
        starts = (np.cumsum(self.counts) - self.counts)[fields]
        counts = self.counts[fields]
        shift = starts - (np.cumsum(counts) - counts)
        return self.cells[np.arange(counts.sum()) + np.repeat(shift, counts)]


class _PlateListing(NamedTuple):
    """A plate's fields of view, when their folders were last changed, how many cells each has, and which."""

    names: list[str]
    times: np.ndarray
    counts: np.ndarray
    cells: np.ndarray


def load_rxrx1_cells(
    img_dir: str | Path | None = None,
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
    own; of the training experiments, site 1 is ``train`` and every other site ``iid_val``. Without metadata (and with
    ``include_labels=False``) the experiments of RxRx1-WILDS are known by their names; no row is a control then.

    Pixels are read from ``<img_dir>.packed`` if that holds all of the cells (see :mod:`biomass.pixels.packed`); then
    ``img_dir`` itself may be absent. Images without cells have no row: they are counted in the log, and
    :func:`count_cells` lists them.

    Args:
        img_dir: the folder of the cells; if relative, to the working directory. None: ``rxrx1_cells`` in ``root_dir``.
        metadata_file: the metadata of RxRx1-WILDS; if left out, ``metadata.csv`` in ``img_dir``, beside it, in
            ``rxrx1_v1.0`` beside it, or in ``<root_dir>/rxrx1_v1.0``, whichever there is first.
        summary_file: CSV with the columns ``experiment, plate, well, segmented`` (number of cells), and ``site``
            unless the well says it (``B02_s1.png``). If left out, ``img_dir`` is listed.
        root_dir: the folder that data sources read from.
        cell_type: keep only this one, or these.
        use_one_site: keep only the first site of every split: site 1, but of ``iid_val`` site 2.
        include_labels: False leaves all rows unlabelled.
        download: fetch the published cells (4 GB) if ``img_dir`` is absent, see :func:`prepare_rxrx1_cells`.

    Raises:
        ConfigError: no experiment is of the ``cell_type``.
        DataError: the folder is absent and cannot be downloaded, or is laid out otherwise; metadata or summary are
            damaged or do not belong to it; there is no cell.
        BadImageError: none of the first images can be read. One of another size is this error when it is read.
    """
    folder = Path(root_dir) / "rxrx1_cells" if img_dir is None else Path(img_dir)
    listing = _list(folder, summary_file, download)
    fields, classes = _describe(folder, listing, metadata_file, root_dir, include_labels)
    fields = _select(fields, cell_type, use_one_site)
    _report_empty(fields)
    fields = fields[fields["cells"] > 0].reset_index(drop=True)
    if fields.empty:
        raise DataError(f"'{folder}' has no cells: choose another folder, or another dataloaders.source.cell_type")
    image = np.repeat(np.arange(len(fields)), fields["cells"])
    cells = listing.take(fields["listed"].to_numpy(np.int64))
    files = [_files(fields, image, cells)]
    columns = fields.drop(columns=["listed", "cells"])
    table = columns.astype(dict.fromkeys(columns.columns.drop("label"), "category")).take(image)
    pixels = packed_pixels(folder, files) or open_files(folder, files, CHANNELS)
    return make_screen(table.assign(image=image, cell=cells), pixels, classes)


def count_cells(
    img_dir: str | Path,
    *,
    metadata_file: str | Path | None = None,
    summary_file: str | Path | None = None,
    root_dir: str | Path = "data",
    cell_type: str | Sequence[str] | None = None,
    use_one_site: bool = False,
    download: bool = True,
) -> pd.DataFrame:
    """How many cells every image has, 0 included.

    Args:
        img_dir: as of :func:`load_rxrx1_cells`, and so are all others.

    Returns:
        A row an image of the plates in ``img_dir``: ``experiment, plate, well, site, cell_type, split, control, sirna,
        cells``. Images that only the metadata knows have no folder, and 0 cells.
    """
    folder = Path(img_dir)
    listing = _list(folder, summary_file, download)
    fields, _ = _describe(folder, listing, metadata_file, root_dir, include_labels=False)
    return _select(fields, cell_type, use_one_site).drop(columns=["label", "listed"])


# what is known of the fields


def _describe(
    folder: Path, listing: _Listing, metadata_file: str | Path | None, root_dir: str | Path, include_labels: bool
) -> tuple[pd.DataFrame, list[str]]:
    """All fields of the listed plates, in order, with what is known of their wells, and the names of the classes.

    Further columns: ``cells``, how many there are, and ``listed``, which field of the listing it is (-1: none).
    """
    path = _find_metadata(folder, metadata_file, root_dir)
    if path is None and include_labels:
        raise DataError(
            f"no metadata.csv beside '{folder}' or in '{Path(root_dir) / 'rxrx1_v1.0'}': set "
            "dataloaders.metadata_file, or dataloaders.source.include_labels=false"
        )
    known = _by_name(listing.fields) if path is None else _read_metadata(path)
    here = known.merge(listing.fields[["experiment", "plate"]].drop_duplicates())
    gone = _plate_keys(known) - _plate_keys(listing.fields)
    absent = sum(not (folder / experiment / f"Plate{plate}").is_dir() for experiment, plate in gone)
    if absent:
        log.info("'%s' has no folder for %d plates of the metadata", folder, absent)
    listed = listing.fields.assign(listed=np.arange(len(listing.fields)))
    fields = here.merge(listed, how="outer", on=list(FIELD), sort=True)
    strange = fields[fields["split"].isna()]
    if len(strange):
        raise DataError(
            f"'{path}' has no row for '{_name(strange.iloc[0])}' ({len(strange)} of {len(fields)} images) "
            f"of '{folder}': set dataloaders.metadata_file to the metadata of these cells"
        )
    fields["listed"] = fields["listed"].fillna(-1).astype(np.int64)
    fields["cells"] = np.where(fields["listed"] >= 0, listing.counts[fields["listed"]], 0)
    classes: list[str] = []
    if include_labels:
        names = known.drop_duplicates("label").set_index("label")["sirna"]
        classes = names.sort_index().tolist()
    else:
        fields["label"] = UNLABELLED
    return fields.astype({"plate": str, "site": str}), classes


def _plate_keys(fields: pd.DataFrame) -> set[tuple[str, int]]:
    """Experiment and number of every plate."""
    return set(fields[["experiment", "plate"]].drop_duplicates().itertuples(index=False, name=None))


def _find_metadata(folder: Path, metadata_file: str | Path | None, root_dir: str | Path) -> Path | None:
    if metadata_file is not None:
        if not Path(metadata_file).is_file():
            raise DataError(f"no metadata '{metadata_file}': correct dataloaders.metadata_file, or set it to null")
        return Path(metadata_file)
    beside = folder.absolute().parent
    places = (folder, beside, beside / "rxrx1_v1.0", Path(root_dir) / "rxrx1_v1.0")
    return next((place / "metadata.csv" for place in places if (place / "metadata.csv").is_file()), None)


def _read_metadata(path: Path) -> pd.DataFrame:
    """A row a field of view: the columns of FIELD, and cell_type, split, label, control, sirna."""
    table = read_metadata(path).astype({"plate": np.int64, "site": np.int64})
    twice = table[table.duplicated(list(FIELD))]
    if len(twice):
        raise DataError(f"'{path}' has two rows for '{_name(twice.iloc[0])}': remove one of them")
    iid_val = (table["dataset"] == "train") & (table["site"] != 1)
    return table[[*FIELD, "cell_type", "sirna"]].assign(
        split=table["dataset"].mask(iid_val, "iid_val"),
        control=table["well_type"].map(CONTROLS),
        label=table["sirna_id"].astype(np.int64),
    )


def _by_name(fields: pd.DataFrame) -> pd.DataFrame:
    """What the names of RxRx1's experiments tell, in place of metadata."""
    split, cell_type = {}, {}
    for experiment in fields["experiment"].unique():
        kind, _, number = experiment.rpartition("-")
        train, val, last = _OFFICIAL.get(kind, (0, 0, 0))
        if not number.isdecimal() or not 0 < int(number) <= last:
            raise DataError(
                f"experiment '{experiment}' is none of RxRx1, so that nobody knows its split: set "
                "dataloaders.metadata_file"
            )
        split[experiment] = "train" if int(number) <= train else "val" if int(number) <= val else "test"
        cell_type[experiment] = kind
    splits = fields["experiment"].map(split)
    iid_val = (splits == "train") & (fields["site"] != 1)
    return fields.assign(
        cell_type=fields["experiment"].map(cell_type),
        sirna="",
        split=splits.mask(iid_val, "iid_val"),
        control="",
        label=UNLABELLED,
    )


def _select(fields: pd.DataFrame, cell_type: str | Sequence[str] | None, use_one_site: bool) -> pd.DataFrame:
    keep = np.ones(len(fields), bool)
    if cell_type is not None:
        keep &= fields["cell_type"].isin(find(cell_type, sorted(fields["cell_type"].unique()), "cell type"))
    if use_one_site:
        keep &= fields["site"] == np.where(fields["split"] == "iid_val", "2", "1")
    return fields[keep]


def _report_empty(fields: pd.DataFrame) -> None:
    empty = fields[fields["cells"] == 0]
    if len(empty):
        wells = int((fields.groupby(list(FIELD[:3]), observed=True)["cells"].sum() == 0).sum())
        log.warning(
            "images without cells, which are left out: %d of %d, such as '%s'; wells without any: %d",
            len(empty),
            len(fields),
            _name(empty.iloc[0]),
            wells,
        )


def _name(field: Any) -> str:
    return f"{field['experiment']}/Plate{field['plate']}/{field['well']}_s{field['site']}"


def _files(fields: pd.DataFrame, image: np.ndarray, cells: np.ndarray) -> Any:
    """Arrow array (N,) of the cells' files, relative to the folder."""
    places = fields["experiment"] + "/Plate" + fields["plate"] + "/" + fields["well"] + "_s" + fields["site"] + "/"
    folders = pa.array(places, pa.large_string()).take(pa.array(image))
    numbers = pa.array(cells).cast(pa.large_string())
    ending, nothing = (pa.scalar(text, pa.large_string()) for text in (".png", ""))
    return pc.binary_join_element_wise(folders, numbers, ending, nothing)


# which cells there are


def _list(folder: Path, summary_file: str | Path | None, download: bool) -> _Listing:
    store = packed_beside(folder)
    if store is not None and not _has_files(folder):
        return _list_store(store)
    prepare_rxrx1_cells(folder, download)
    return _scan(folder) if summary_file is None else _read_summary(Path(summary_file), folder)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _list_store(store: Path) -> _Listing:
    """The cells of a packed store, whose files may be gone."""
    table = read_index(store)
    if not {*FIELD, "image", "cell"} <= set(table):
        raise DataError(f"'{store}' holds no cropped cells: read it with biomass.pixels.packed.load_packed")
    table = table.sort_values(["image", "cell"])
    fields = table.drop_duplicates("image")[list(FIELD)].astype(str).astype({"plate": np.int64, "site": np.int64})
    counts = np.unique(table["image"], return_counts=True)[1]
    return _Listing(fields.reset_index(drop=True), counts, table["cell"].to_numpy(np.int32))


def _scan(folder: Path) -> _Listing:
    """List a folder of cells, but for the plates that have not changed since the last time."""
    plates = _plates(folder)
    before = _read_cache(folder)
    bar = tqdm(desc=f"Listing {folder.name}", total=len(plates), unit="plate", disable=None)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        found = {}
        for key, plate in zip(plates, pool.map(lambda k: _list_plate(plates[k], before.get(k)), plates), strict=True):
            found[key] = plate
            bar.update()
    if found.keys() != before.keys() or any(found[key] is not before[key] for key in found):
        _write_cache(folder, found)
    matches = [match for plate in found.values() for name in plate.names if (match := _FIELD.fullmatch(name))]
    sizes = [len(plate.names) for plate in found.values()]
    fields = pd.DataFrame(
        {
            "experiment": np.repeat(np.array([experiment for experiment, _ in found], object), sizes),
            "plate": np.repeat([number for _, number in found], sizes),
            "well": [match[1] for match in matches],
            "site": np.array([match[2] for match in matches], np.int64),
        }
    )
    if fields.empty:
        raise _not_the_layout(folder, "no image")
    return _Listing(fields, *(np.concatenate([plate[i] for plate in found.values()]) for i in (2, 3)))


def _plates(folder: Path) -> dict[tuple[str, int], Path]:
    """Experiment and number of every plate → its folder."""
    plates = {}
    for experiment in _folders(folder):
        names = _folders(folder / experiment)
        for name in names:
            match = _PLATE.fullmatch(name)
            if match is None:
                raise _not_the_layout(folder, f"the folder '{experiment}/{name}'")
            plates[experiment, int(match[1])] = folder / experiment / name
        if not names:
            raise _not_the_layout(folder, f"no folder in '{experiment}'")
    if not plates:
        raise _not_the_layout(folder, "no folder")
    return dict(sorted(plates.items()))


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, but for hidden ones and what macOS puts into archives."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())


def _list_plate(plate: Path, before: _PlateListing | None) -> _PlateListing:
    names = _folders(plate)
    for name in names:
        if not _FIELD.fullmatch(name):
            raise _not_the_layout(plate.parent.parent, f"the folder '{plate.parent.name}/{plate.name}/{name}'")
    times = np.array([(plate / name).stat().st_mtime_ns for name in names], np.int64)
    if before is not None and names == before.names and np.array_equal(times, before.times):
        return before
    cells = [_list_field(plate / name) for name in names]
    flat = np.array([number for numbers in cells for number in numbers], np.int32)
    return _PlateListing(names, times, np.array([len(numbers) for numbers in cells], np.int64), flat)


def _list_field(field: Path) -> list[int]:
    """The numbers of the cells of a field of view, ascending."""
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


def _not_the_layout(folder: Path, found: str) -> DataError:
    hint = next((f"; is '{folder / name}' meant?" for name in _folders(folder) if _is_layout(folder / name)), "")
    return DataError(f"'{folder}' is no folder of cropped cells: expected {LAYOUT} in it, found {found}{hint}")


def _is_layout(folder: Path) -> bool:
    return any(_PLATE.fullmatch(name) for experiment in _folders(folder) for name in _folders(folder / experiment))


def _caches(folder: Path) -> tuple[Path, Path]:
    """Where a listing is remembered: beside the folder, or where that cannot be written, in the user's cache."""
    place = folder.absolute()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return place.with_name(f"{place.name}.cells.parquet"), user / "biomass" / f"cells-{digest}.parquet"


def _read_cache(folder: Path) -> dict[tuple[str, int], _PlateListing]:
    for path in _caches(folder):
        try:
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"version") != _CACHE_VERSION:
                continue
            names, times = table["name"].to_pylist(), table["time"].to_numpy()
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
                names[inside], times[inside], counts[inside], cells[ends[first] - counts[first] : ends[last]]
            )
        return plates
    return {}


def _write_cache(folder: Path, plates: dict[tuple[str, int], _PlateListing]) -> None:
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
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process: others may list it just now
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
            return
        except OSError as error:
            log.debug("'%s' cannot be written (%s)", path, one_line(error))


def _read_summary(path: Path, folder: Path) -> _Listing:
    """The cells that the summary table counts; what it does not say clearly is listed in the folder."""
    counted: dict[tuple[str, int, str, int], int | None] = {}
    bad: list[int] = []
    for line, field, count in _summary_lines(path):
        if field is None:
            bad.append(line)
        else:
            counted[field] = count if counted.get(field, count) == count else None
    if bad:
        log.warning(
            "lines of '%s' that name no image and are left out: %d, such as line %d; to list the folder "
            "instead, set dataloaders.summary_file=null",
            path,
            len(bad),
            bad[0],
        )
    if not counted:
        raise DataError(f"'{path}' names no image: correct dataloaders.summary_file, or set it to null")
    fields = pd.DataFrame(sorted(counted), columns=list(FIELD))
    _report_unnamed(path, folder, fields)
    first = ~fields.duplicated(["experiment", "plate"])
    numbers: list[Sequence[int]] = []
    for field, is_first in zip(sorted(counted), first, strict=True):
        experiment, plate, well, site = field
        count, place = counted[field], folder / experiment / f"Plate{plate}" / f"{well}_s{site}"
        if count is None or is_first:
            found = _list_field(place) if place.is_dir() else []
            if count is not None and count != len(found):
                raise DataError(
                    f"'{path}' counts {count} cells in '{place}', which has {len(found)}: correct "
                    "dataloaders.img_dir or dataloaders.summary_file, or set the latter to null"
                )
            numbers.append(found)
        else:
            numbers.append(range(count))
    counts = np.array([len(n) for n in numbers], np.int64)
    return _Listing(fields, counts, np.fromiter((i for n in numbers for i in n), np.int32, int(counts.sum())))


def _report_unnamed(path: Path, folder: Path, fields: pd.DataFrame) -> None:
    """Warn of plates and fields that the folder holds and the summary does not name: it may have been cut off."""
    held = [
        (experiment, int(match[1]))
        for experiment in _folders(folder)
        for name in _folders(folder / experiment)
        if (match := _PLATE.fullmatch(name))
    ]
    named = _plate_keys(fields)
    plates = [f"{experiment}/Plate{plate}" for experiment, plate in held if (experiment, plate) not in named]
    known = set(fields.itertuples(index=False, name=None))
    images = [
        f"{experiment}/Plate{plate}/{name}"
        for experiment, plate in held
        if (experiment, plate) in named
        for name in _folders(folder / experiment / f"Plate{plate}")
        if (match := _FIELD.fullmatch(name)) and (experiment, plate, match[1], int(match[2])) not in known
    ]
    for what, missing in (("plates", plates), ("images", images)):
        if missing:
            log.warning(
                "%s of '%s' that '%s' does not name and that are left out: %d, such as '%s'; to list the "
                "folder instead, set dataloaders.summary_file=null",
                what,
                folder,
                path,
                len(missing),
                missing[0],
            )


def _summary_lines(path: Path) -> Iterator[tuple[int, tuple[str, int, str, int] | None, int | None]]:
    """Number, field of view and count of cells of every line; None for what it does not say.

    Published copies are ragged: lines have fewer or more values than there are columns.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = _split(next(file, ""))
            missing = [name for name in ("experiment", "plate", "well", "segmented") if name not in header]
            if missing:
                raise DataError(
                    f"'{path}' has no column '{missing[0]}': correct dataloaders.summary_file, or set it to null"
                )
            for number, line in enumerate(file, 2):
                split = _split(line)
                values = dict(zip(header, split, strict=False))
                if any(split):
                    yield number, _parse_field(values), _parse_count(values.get("segmented", ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"'{path}' cannot be read ({one_line(error)}): correct dataloaders.summary_file, or set it to null"
        ) from error


def _split(line: str) -> list[str]:
    """The values of one line. A quote that is never closed is dropped: it would swallow the lines that follow."""
    line = line.rstrip("\n")
    if line.count('"') % 2:
        return line.replace('"', "").split(",")
    return next(csv.reader([line]), [])


def _parse_field(values: dict[str, str]) -> tuple[str, int, str, int] | None:
    well = values.get("well", "").removesuffix(".png")
    if values.get("site"):
        well = f"{well.removesuffix('_s' + values['site'])}_s{values['site']}"
    plate = values.get("plate", "").removeprefix("Plate")
    match = _FIELD.fullmatch(well)
    if match is None or not plate.isdecimal() or not values.get("experiment"):
        return None
    return values["experiment"], int(plate), match[1], int(match[2])


def _parse_count(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value >= 0 and value.is_integer() else None


# the download


def prepare_rxrx1_cells(img_dir: str | Path, download: bool = True, base_url: str = ZENODO) -> Path:
    """Make sure that cropped cells lie in ``img_dir``; download the published ones (4 GB) if it is absent or empty.

    What has arrived waits in ``<img_dir>.part`` for the next call; the folder itself appears when all archives had the
    checksums of the record and are unpacked, and not before. Several processes that ask for it at once wait for the
    first of them.

    Args:
        img_dir: the folder of the cells.
        download: False never touches the network.
        base_url: where the record is.

    Returns:
        The folder.

    Raises:
        DataError: it is not there and cannot be or was not to be downloaded; a file has not the checksum of the record
            (it is removed, so that the next call fetches it anew); an archive would write outside its folder.
    """
    folder = Path(img_dir)
    if _has_files(folder):
        return folder
    if folder.is_file():
        raise DataError(f"'{folder}' is a file: set dataloaders.img_dir to a folder of {LAYOUT}")
    if not download:
        raise DataError(f"no cropped cells in '{folder}': {_by_hand(folder)}{DOWNLOAD_ADVICE}")
    with _downloading(folder):  # before anything is written: without a network, nothing is left behind
        files = _record(f"{base_url}/api/records/{RECORD}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _has_files(folder):
                _download(folder, files)
    except OSError as error:
        raise DataError(
            f"cannot write to '{folder.parent}' ({error.strerror or error}): set dataloaders.img_dir to a "
            "folder that can be written"
        ) from error
    return folder


def _by_hand(folder: Path) -> str:
    return (
        f"get them from https://doi.org/10.5281/zenodo.{RECORD} and unpack them there by hand, or use "
        "dataloaders=simulated_cells"
    )


@contextmanager
def _downloading(folder: Path) -> Iterator[None]:
    """Turns what the network does into an error that says what to do."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise DataError(
            f"no cropped cells in '{folder}', and they could not be downloaded ({one_line(error)}): {_by_hand(folder)}"
        ) from error


def _download(folder: Path, files: Sequence[tuple[str, str, str]]) -> None:
    """Fetch and unpack the files of the record: name, address and checksum of each."""
    work = folder.with_name(f"{folder.name}.part")
    with _downloading(folder):
        for name, url, checksum in files:
            _check(fetch(url, work / "downloaded" / name), checksum)
    extracted = work / "extracted"
    shutil.rmtree(extracted, ignore_errors=True)
    for whole, pieces in find_archives(work / "downloaded").items():
        try:
            extract(pieces[0] if len(pieces) == 1 else join(pieces, work / whole.name), extracted)
        except DataError as error:
            raise DataError(f"{error}; or {_by_hand(folder)}") from error
    complete = work / "complete"
    shutil.rmtree(complete, ignore_errors=True)
    for root in _roots(extracted):
        for (experiment, number), plate in _plates(root).items():
            (complete / experiment).mkdir(parents=True, exist_ok=True)
            plate.rename(complete / experiment / f"Plate{number}")
    if not complete.is_dir():
        raise DataError(f"what was downloaded to '{work}' holds no {LAYOUT}: {_by_hand(folder)}")
    if folder.is_dir():
        folder.rmdir()
    complete.rename(folder)
    shutil.rmtree(work)


def _record(url: str) -> list[tuple[str, str, str]]:
    """Name, address and checksum (``md5:…``) of every file of a record of Zenodo.

    Raises:
        OSError: the server cannot be reached, or answers something else.
    """
    request = Request(url, headers={"User-Agent": "biomass"})  # Zenodo refuses the names of common libraries
    with urlopen(request, timeout=_TIMEOUT) as response:
        text = response.read()
    try:
        return [(Path(file["key"]).name, file["links"]["self"], file["checksum"]) for file in json.loads(text)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{url} does not list files and checksums") from error


def _check(file: Path, checksum: str) -> None:
    algorithm, _, expected = checksum.rpartition(":")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, algorithm or "md5").hexdigest()
    if found != expected:
        file.unlink()
        raise DataError(
            f"'{file}' arrived damaged ({algorithm} {found}, the record says {expected}): it was removed, "
            "start again to download it anew"
        )


def _roots(folder: Path) -> Iterator[Path]:
    """The folders below ``folder`` that are laid out as cropped cells."""
    if _is_layout(folder):
        yield folder
        return
    for name in _folders(folder):
        yield from _roots(folder / name)
