"""Cells cropped out of RxRx1-WILDS (Lin & Lu 2022, doi:10.5281/zenodo.7272553), or out of any screen, as a Screen::

    <img_dir>/<experiment>/Plate<k>/<well>_s<site>/<i>.png

What is known of a well comes from the metadata of RxRx1-WILDS (:mod:`.rxrx1_metadata`). Which cells there are comes
from listing the folder (:mod:`.cell_folders`), or from the summary table that is published with them
(:mod:`.cell_summary`).
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from biomass.atomic import whole_folder, writing
from biomass.datasets import zenodo
from biomass.datasets.cell_folders import LAYOUT, Listing, find_plates, find_roots, list_folder, list_store
from biomass.datasets.cell_summary import read_summary
from biomass.datasets.download import extract, find_archives, join
from biomass.datasets.rxrx1_metadata import CHANNELS, class_names, read_metadata
from biomass.errors import DataError, one_line
from biomass.identifiers import find, match
from biomass.pixels.files import open_files
from biomass.pixels.packed import packed_beside, packed_pixels
from biomass.screen import FIELD, PLATE, UNLABELLED, Screen, make_screen

RECORD = "7272553"
"""The record of Zenodo that holds the published cells."""

_OFFICIAL = {"HEPG2": (7, 8, 11), "HUVEC": (16, 17, 24), "RPE": (7, 8, 11), "U2OS": (3, 4, 5)}
"""Cell type of RxRx1 → numbers of its last experiments for training, for validation, and of all."""

log = logging.getLogger(__name__)


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
        ConfigError: no experiment is of the ``cell_type``, or ``img_dir`` cannot be written to.
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
        raise DataError(f"'{folder}' has no cells: choose another folder, or another cell type", "img_dir")
    image = np.repeat(np.arange(len(fields)), fields["cells"])
    cells = listing.take(fields["listed"].to_numpy(np.int64))
    files = [_files(fields["place"], image, cells)]
    columns = fields.drop(columns=["place", "listed", "cells"])
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
    """How many cells every image has, 0 included. For the arguments and errors see :func:`load_rxrx1_cells`.

    Returns:
        A row an image of the plates in ``img_dir``: ``experiment, plate, well, site, cell_type, split, control, sirna,
        cells``. Images that only the metadata knows have no folder, and 0 cells.
    """
    folder = Path(img_dir)
    listing = _list(folder, summary_file, download)
    fields, _ = _describe(folder, listing, metadata_file, root_dir, include_labels=False)
    return _select(fields, cell_type, use_one_site).drop(columns=["label", "place", "listed"])


# what is known of the fields


def _describe(
    folder: Path, listing: Listing, metadata_file: str | Path | None, root_dir: str | Path, include_labels: bool
) -> tuple[pd.DataFrame, list[str]]:
    """All fields of the listed plates, in order, with what is known of their wells, and the names of the classes.

    Further columns: ``place``, the folder of a field; ``cells``, how many it has; ``listed``, which field of the
    listing it is (-1: none).
    """
    path = _find_metadata(folder, metadata_file, root_dir)
    if path is None and include_labels:
        raise DataError(
            f"no metadata.csv beside '{folder}' or in '{Path(root_dir) / 'rxrx1_v1.0'}': name the metadata of these "
            "cells, or read them without labels",
            "metadata_file",
        )
    known = (_by_name(listing.fields) if path is None else _by_metadata(path)).sort_values(list(FIELD))
    classes = class_names(known) if include_labels else []
    rows = match(
        listing.fields,
        known,
        FIELD,
        left_name=f"images of '{folder}'",
        right_name=f"images of '{path}'",
        advice="metadata_file",
    )
    listed = np.full(len(known), -1)
    listed[rows] = np.arange(len(rows))
    plates = pd.MultiIndex.from_frame(listing.fields[list(PLATE)].drop_duplicates())
    plate = pd.MultiIndex.from_frame(known[list(PLATE)])
    _report_absent(folder, plate.unique().difference(plates))
    fields = known.assign(
        place=np.where(listed >= 0, listing.fields["place"].to_numpy(object)[listed], known["place"]),
        cells=np.where(listed >= 0, listing.counts[listed], 0),
        listed=listed,
    )
    return fields[plate.isin(plates)].assign(**({} if include_labels else {"label": UNLABELLED})), classes


def _report_absent(folder: Path, plates: pd.MultiIndex) -> None:
    absent = sum(not (folder / experiment / f"Plate{number}").is_dir() for experiment, number in plates)
    if absent:
        log.info("'%s' has no folder for %d plates of the metadata", folder, absent)


def _find_metadata(folder: Path, metadata_file: str | Path | None, root_dir: str | Path) -> Path | None:
    if metadata_file is not None:
        return Path(metadata_file)
    beside = folder.absolute().parent
    places = (folder, beside, beside / "rxrx1_v1.0", Path(root_dir) / "rxrx1_v1.0")
    return next((place / "metadata.csv" for place in places if (place / "metadata.csv").is_file()), None)


def _by_metadata(path: Path) -> pd.DataFrame:
    """A row a field of view: the columns of FIELD, and cell_type, sirna, control, label, place, split."""
    table = read_metadata(path).astype({"plate": np.int64, "site": np.int64})
    return table.assign(split=_splits(table.pop("dataset"), table["site"]))


def _by_name(fields: pd.DataFrame) -> pd.DataFrame:
    """What the names of RxRx1's experiments tell, in place of metadata; columns as in :func:`_by_metadata`."""
    dataset, cell_type = {}, {}
    for experiment in fields["experiment"].unique():
        kind, _, number = experiment.rpartition("-")
        train, val, last = _OFFICIAL.get(kind, (0, 0, 0))
        if not number.isdecimal() or not 0 < int(number) <= last:
            raise DataError(
                f"experiment '{experiment}' is not one of RxRx1, so its split is not known: name the metadata of these "
                "cells",
                "metadata_file",
            )
        dataset[experiment] = "train" if int(number) <= train else "val" if int(number) <= val else "test"
        cell_type[experiment] = kind
    return fields.assign(
        cell_type=fields["experiment"].map(cell_type),
        sirna="",
        control="",
        label=UNLABELLED,
        split=_splits(fields["experiment"].map(dataset), fields["site"]),
    )


def _splits(dataset: pd.Series, site: pd.Series) -> pd.Series:
    return dataset.mask((dataset == "train") & (site != 1), "iid_val")


def _select(fields: pd.DataFrame, cell_type: str | Sequence[str] | None, use_one_site: bool) -> pd.DataFrame:
    """Some of the fields; plates and sites become text."""
    keep = np.ones(len(fields), bool)
    if cell_type is not None:
        keep &= fields["cell_type"].isin(find(cell_type, sorted(fields["cell_type"].unique()), "cell type"))
    if use_one_site:
        keep &= fields["site"] == np.where(fields["split"] == "iid_val", 2, 1)
    return fields[keep].astype({"plate": str, "site": str})


def _report_empty(fields: pd.DataFrame) -> None:
    empty = fields[fields["cells"] == 0]
    if len(empty):
        wells = int((fields.groupby([*PLATE, "well"], observed=True)["cells"].sum() == 0).sum())
        log.warning(
            "images without cells, which are left out: %d of %d, such as '%s'; wells without any: %d",
            len(empty),
            len(fields),
            empty["place"].iloc[0],
            wells,
        )


def _files(places: pd.Series, image: np.ndarray, cells: np.ndarray) -> Any:
    """Arrow array (N,) of the cells' files, relative to the folder."""
    folders = pa.array(places + "/", pa.large_string()).take(pa.array(image))
    numbers = pa.array(cells).cast(pa.large_string())
    ending, nothing = (pa.scalar(text, pa.large_string()) for text in (".png", ""))
    return pc.binary_join_element_wise(folders, numbers, ending, nothing)


# which cells there are


def _list(folder: Path, summary_file: str | Path | None, download: bool) -> Listing:
    store = packed_beside(folder)
    if store is not None and not _has_files(folder):
        return list_store(store)
    prepare_rxrx1_cells(folder, download)
    return list_folder(folder) if summary_file is None else read_summary(Path(summary_file), folder)


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


# the download


def prepare_rxrx1_cells(img_dir: str | Path, download: bool = True, base_url: str = zenodo.URL) -> Path:
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
        ConfigError: it cannot be written.
        DataError: it is not there and cannot be or was not to be downloaded; a file does not have the checksum of the
            record (it is removed, so that the next call fetches it again); an archive would write outside its folder.
    """
    folder = Path(img_dir)
    if _has_files(folder):
        return folder
    if folder.is_file():
        raise DataError(f"'{folder}' is a file: name a folder of {LAYOUT}", "img_dir")
    if not download:
        raise DataError(f"no cropped cells in '{folder}': {_by_hand()}", "download")
    with _downloading(folder):  # before anything is written: without a network, nothing is left behind
        files = zenodo.list_record(RECORD, base_url)
    with writing(folder, "img_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _has_files(folder):
                _download(folder, files)
    return folder


def _by_hand() -> str:
    return (
        f"get them from https://doi.org/10.5281/zenodo.{RECORD} and unpack them there by hand, or begin with those of "
        "a simulated screen"
    )


@contextmanager
def _downloading(folder: Path) -> Iterator[None]:
    """Turn what the network does into an error that says what to do."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise DataError(
            f"no cropped cells in '{folder}', and they could not be downloaded ({one_line(error)}): {_by_hand()}"
        ) from error


def _download(folder: Path, files: Sequence[zenodo.RecordFile]) -> None:
    """Fetch and unpack the files of the record."""
    work = folder.with_name(f"{folder.name}.part")
    with _downloading(folder):
        zenodo.fetch_files(files, work / "downloaded")
    extracted = work / "extracted"
    shutil.rmtree(extracted, ignore_errors=True)
    for whole, pieces in find_archives(work / "downloaded").items():
        try:
            extract(pieces[0] if len(pieces) == 1 else join(pieces, work / whole.name), extracted)
        except DataError as error:
            raise DataError(f"{error}; or {_by_hand()}") from error
    plates = {key: plate for root in find_roots(extracted) for key, plate in find_plates(root).items()}
    if not plates:
        raise DataError(f"what was downloaded to '{work}' holds no {LAYOUT}: {_by_hand()}")
    with whole_folder(folder) as part:
        for (experiment, number), plate in plates.items():
            (part / experiment).mkdir(parents=True, exist_ok=True)
            plate.rename(part / experiment / f"Plate{number}")
    shutil.rmtree(work)
