"""RxRx1-WILDS as a Screen (Taylor et al. 2019; Koh et al. 2021), and any screen in its layout::

<root_dir>/rxrx1_v1.0/metadata.csv
<root_dir>/rxrx1_v1.0/RELEASE_v1.0.txt
<root_dir>/rxrx1_v1.0/images/<experiment>/Plate<k>/<well>_s<site>.png
"""

import logging
import os
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from biomass.datasets.download import extract, fetch, find_archives, join
from biomass.errors import DataError, one_line
from biomass.identifiers import names
from biomass.pixels.files import check_present, check_unique, open_files
from biomass.pixels.packed import packed_pixels
from biomass.screen import Pixels, Screen, make_screen
from biomass.table_files import TableFile, read_table

CHANNELS = ("nuclei", "ER", "actin")
"""The channels of an image, in the order of the files."""

MIRROR = "pangwei/wilds-rxrx1"
"""The Hugging Face dataset that an author of WILDS keeps."""

METADATA_COLUMNS = ("cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id")
"""The columns of ``metadata.csv`` that are read."""

CONTROLS = {"treatment": "", "positive_control": "positive", "negative_control": "negative"}
"""What a ``well_type`` is called in a Screen's column ``control``."""

DOWNLOAD_ADVICE = ", or set dataloaders.source.download=true"
"""What an error says where a download was not allowed."""

_FOLDER = "rxrx1_v1.0"
_METADATA = "metadata.csv"
_RELEASE = "RELEASE_v1.0.txt"
_IMAGES = "images"

log = logging.getLogger(__name__)


def prepare_rxrx1(root_dir: str | Path = "data", download: bool = True) -> Path:
    """Make sure that RxRx1-WILDS lies below ``root_dir``; download it (7 GB) if it does not.

    First from the address that wilds knows, then from the mirror. What has arrived waits in
    ``<root_dir>/rxrx1_v1.0.part`` for the next call; the folder itself appears when every image of its metadata is
    there, and not before. Several processes that ask for it at once wait for the first of them.

    Returns:
        The folder, ``<root_dir>/rxrx1_v1.0``.

    Raises:
        DataError: it is not there, or only in parts, and cannot be or was not to be downloaded.
    """
    root = Path(root_dir)
    folder = root / _FOLDER
    if _is_prepared(folder):
        return folder
    if not download:
        raise DataError(f"no RxRx1-WILDS in '{folder}': {_by_hand(folder)}{DOWNLOAD_ADVICE}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{_FOLDER}.lock"):
            if not _is_prepared(folder):
                _download(folder)
    except OSError as error:
        raise DataError(
            f"cannot write to '{root}' ({error.strerror or error}): point dataloaders.root_dir (or "
            "BIOMASS_DATA) to a folder that can be written"
        ) from error
    return folder


def _is_prepared(folder: Path) -> bool:
    """Whether the folder is there; raises a DataError if only parts of it are."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    missing = [name for name in (_METADATA, _RELEASE, _IMAGES) if not (folder / name).exists()]
    if missing:
        raise DataError(f"'{folder}' has no '{missing[0]}': complete the folder, or remove it to download it anew")
    return True


def _by_hand(folder: Path) -> str:
    return (
        f"unpack RxRx1-WILDS (https://wilds.stanford.edu or https://huggingface.co/datasets/{MIRROR}) by hand, so "
        f"that '{folder / _METADATA}' exists, or use dataloaders=simulated"
    )


def _download(folder: Path) -> None:
    """Fetch the dataset from the first source that has it and move it into place."""
    work = folder.with_name(f"{_FOLDER}.part")
    failures = []
    for source, get in (("wilds", _from_wilds), ("mirror", _from_mirror)):
        try:
            found = _find_layout(get(work / source))
            metadata = read_metadata(found / _METADATA)
            check_present(found, [_paths(metadata)])
        except (OSError, DataError) as error:
            failures.append(f"{source}: {textwrap.shorten(one_line(error), 200)}")
            log.warning("RxRx1-WILDS could not be downloaded from %s", failures[-1])
            continue
        _move_into_place(found, work / "complete", folder)
        shutil.rmtree(work)
        return
    raise DataError(f"RxRx1-WILDS could not be downloaded to '{folder}' ({'; '.join(failures)}): {_by_hand(folder)}")


def _move_into_place(found: Path, staging: Path, folder: Path) -> None:
    """Move what makes up the dataset, and nothing that a download left beside it, in one step."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for pieces in find_archives(found / _IMAGES).values():
        for piece in pieces:
            piece.unlink()
    for name in (_METADATA, _IMAGES):
        (found / name).rename(staging / name)
    (staging / _RELEASE).write_text("RxRx1-WILDS 1.0\n")  # the sign of wilds that a download has ended
    staging.rename(folder)


def _from_wilds(work: Path) -> Path:
    """Fetch from the address in wilds.

    Not with the downloader of wilds: it begins anew after an interruption, waits for ever on a silent server, only
    prints what failed, and extracts whatever path an archive names.
    """
    from wilds.datasets.rxrx1_dataset import RxRx1Dataset

    archive = fetch(RxRx1Dataset._versions_dict["1.0"]["download_url"], work / "archive.tar.gz")
    _extract_anew(archive, work / "extracted")
    return work / "extracted"


def _from_mirror(work: Path) -> Path:
    """Fetch the Hugging Face dataset: the folder itself, or archives of it, in pieces or whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    downloaded = work / "downloaded"
    try:
        # Returns a folder begun earlier, with a mere warning, when the network is down: _download checks all images.
        snapshot_download(MIRROR, repo_type="dataset", local_dir=downloaded)
    except Exception as error:  # its network library has a family of errors of its own, which changes with its version
        raise DataError(one_line(error)) from error
    archives = find_archives(downloaded)
    for whole, pieces in archives.items():
        archive = pieces[0] if len(pieces) == 1 else join(pieces, work / whole.name)
        extract(archive, downloaded / whole.relative_to(downloaded).parent)
    return downloaded


def _extract_anew(archive: Path, folder: Path) -> None:
    """Extract an archive to an empty folder; remove the archive if it cannot be, so that it is fetched anew."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        extract(archive, folder)
    except DataError:
        archive.unlink()
        raise


def _find_layout(folder: Path) -> Path:
    """The outermost folder that holds the metadata and the images."""
    for here, folders, files in os.walk(folder):
        if _METADATA in files and _IMAGES in folders:
            return Path(here)
        folders[:] = sorted(set(folders) - {_IMAGES})  # a hundred thousand files, and none of them the metadata
    raise DataError(f"no '{_METADATA}' beside '{_IMAGES}/' in what was downloaded")


def load_rxrx1(root_dir: str | Path = "data", *, download: bool = True, on_bad_image: str = "error") -> Screen:
    """Read RxRx1-WILDS, or a screen of any size in its layout, as a Screen.

    Splits (``train, val, test, id_test``) and labels (``sirna_id``) are those of wilds, official split scheme. Further
    column of the table: ``sirna``.

    Args:
        root_dir: the folder that holds ``rxrx1_v1.0``.
        download: fetch it if it is absent, see :func:`prepare_rxrx1`.
        on_bad_image: with ``error``, make sure now that all images are there; with ``skip``, leave it to the reading.

    Raises:
        DataError: the dataset is absent and cannot be downloaded, its metadata is damaged, or images are missing.
    """
    folder = prepare_rxrx1(root_dir, download)
    metadata = read_metadata(folder / _METADATA)
    paths = _paths(metadata)
    check_unique([paths], metadata["sirna_id"].to_numpy())
    pixels: Pixels | None = packed_pixels(folder, [paths])
    if pixels is None and on_bad_image == "error":
        check_present(folder, [paths])
    split, label = _official(folder.parent)
    table = metadata[["experiment", "plate", "well", "site", "cell_type", "sirna"]].assign(
        label=label, split=split, control=metadata["well_type"].map(CONTROLS)
    )
    names = pd.Series(metadata["sirna"].to_numpy(), index=label)
    classes = names[~names.index.duplicated()].sort_index()
    return make_screen(table, pixels or open_files(folder, [paths], CHANNELS), classes.tolist())


def _official(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Split names and labels of all rows, as wilds assigns them."""
    from wilds.datasets.rxrx1_dataset import RxRx1Dataset

    with pd.option_context("mode.copy_on_write", False):  # wilds writes into arrays; pycytominer switches it on
        dataset = RxRx1Dataset(root_dir=str(root), download=False, split_scheme="official")
    names = {number: name for name, number in dataset.split_dict.items()}
    return pd.Series(dataset.split_array).map(names).to_numpy(), dataset.y_array.numpy()


def read_metadata(path: Path) -> pd.DataFrame:
    """The metadata as text; the names of experiments, plates and sites in normal form.

    Raises:
        DataError: it cannot be read or lacks a column, or says what wilds would stumble over, or put into no split
            without a word.
    """
    table = read_table(path, "metadata", advice="metadata_file")
    table.require(METADATA_COLUMNS, "metadata", "metadata_file")
    metadata = table.frame()
    for column in ("experiment", "plate", "well", "site", "sirna_id"):  # a well as its files are called
        metadata[column] = names(metadata[column], column, place=table.place, needed=True)
    allowed = {"dataset": ("train", "val", "test"), "well_type": tuple(CONTROLS)}
    for column, values in allowed.items():
        _refuse(table, metadata[column], ~metadata[column].isin(values), f"it may be {', '.join(values)}")
    for column in ("plate", "site", "sirna_id"):
        _refuse(table, metadata[column], ~metadata[column].str.fullmatch(r"\d+"), "it must be a whole number")
    labels = np.unique(metadata["sirna_id"].astype(np.int64))
    gaps = np.flatnonzero(labels != np.arange(len(labels)))
    if len(gaps):
        raise DataError(f"'{path}' has no image with sirna_id {gaps[0]}: number the classes from 0 without gaps")
    return metadata


def _refuse(table: TableFile, column: pd.Series, bad: pd.Series, rule: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{table.place(row)} says '{column[row]}' in column '{column.name}': {rule}")


def _paths(metadata: pd.DataFrame) -> pd.Series:
    """File names of the images, relative to the dataset's folder."""
    place = f"{_IMAGES}/" + metadata["experiment"] + "/Plate" + metadata["plate"]
    return place + "/" + metadata["well"] + "_s" + metadata["site"] + ".png"
