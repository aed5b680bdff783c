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

from biomass.atomic import whole_folder, writing
from biomass.datasets.download import extract, fetch, find_archives, join
from biomass.datasets.rxrx1_metadata import CHANNELS, class_names, read_metadata
from biomass.errors import DataError, one_line
from biomass.pixels.files import open_files
from biomass.pixels.names import check_present
from biomass.pixels.packed import packed_pixels
from biomass.screen import Pixels, Screen, make_screen

MIRROR = "pangwei/wilds-rxrx1"
"""The Hugging Face dataset that an author of WILDS keeps."""

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
        ConfigError: ``root_dir`` cannot be written to.
        DataError: it is not there, or only in parts, and cannot be or was not to be downloaded.
    """
    root = Path(root_dir)
    folder = root / _FOLDER
    if _is_prepared(folder):
        return folder
    if not download:
        raise DataError(f"no RxRx1-WILDS in '{folder}': {_by_hand(folder)}", "download")
    with writing(root, "root_dir"):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{_FOLDER}.lock"):
            if not _is_prepared(folder):
                _download(folder)
    return folder


def _is_prepared(folder: Path) -> bool:
    """Whether the folder is there; raises a DataError if only parts of it are."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    missing = [name for name in (_METADATA, _RELEASE, _IMAGES) if not (folder / name).exists()]
    if missing:
        raise DataError(f"'{folder}' has no '{missing[0]}': complete the folder, or remove it to download it again")
    return True


def _by_hand(folder: Path) -> str:
    return (
        f"unpack RxRx1-WILDS (https://wilds.stanford.edu or https://huggingface.co/datasets/{MIRROR}) by hand, so "
        f"that '{folder / _METADATA}' exists, or begin with a simulated screen"
    )


def _download(folder: Path) -> None:
    """Fetch the dataset from the first source that has it and move it into place."""
    work = folder.with_name(f"{_FOLDER}.part")
    failures = []
    for name, get in (("wilds", _from_wilds), ("mirror", _from_mirror)):
        try:
            found = _find_layout(get(work / name))
            check_present(found, [_paths(read_metadata(found / _METADATA))])
        except (OSError, DataError) as error:
            failures.append(f"{name}: {textwrap.shorten(one_line(error), 200)}")
            log.warning("RxRx1-WILDS could not be downloaded from %s", failures[-1])
            continue
        _move_into_place(found, folder)
        shutil.rmtree(work)
        return
    raise DataError(f"RxRx1-WILDS could not be downloaded to '{folder}' ({'; '.join(failures)}): {_by_hand(folder)}")


def _move_into_place(found: Path, folder: Path) -> None:
    """Move what makes up the dataset, and nothing that a download left beside it, in one step."""
    for pieces in find_archives(found / _IMAGES).values():
        for piece in pieces:
            piece.unlink()
    with whole_folder(folder) as part:
        for name in (_METADATA, _IMAGES):
            (found / name).rename(part / name)
        (part / _RELEASE).write_text("RxRx1-WILDS 1.0\n")  # for wilds, the sign that a download is complete


def _from_wilds(work: Path) -> Path:
    """Fetch from the address in wilds.

    Not with the downloader of wilds, which starts again after an interruption, waits for ever on a silent server, only
    prints what failed, and extracts to whatever path an archive names.
    """
    from wilds.datasets.rxrx1_dataset import RxRx1Dataset

    archive = fetch(RxRx1Dataset._versions_dict["1.0"]["download_url"], work / "archive.tar.gz")
    _extract_again(archive, work / "extracted")
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


def _extract_again(archive: Path, folder: Path) -> None:
    """Extract an archive to an empty folder; remove the archive if it cannot be, so that it is fetched again."""
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

    Splits are those of the official scheme of wilds: ``val`` and ``test`` as the metadata says; of the training
    experiments, site 2 is ``id_test``, and the rest is ``train``. A label is a ``sirna_id``. The table has one more
    column, ``sirna``.

    Args:
        root_dir: the folder that holds ``rxrx1_v1.0``.
        download: fetch it if it is absent, see :func:`prepare_rxrx1`.
        on_bad_image: with ``error``, make sure now that all images are there; with ``skip``, leave it to the reading.

    Raises:
        ConfigError: ``root_dir`` cannot be written to.
        DataError: the dataset is absent and cannot be downloaded, its metadata is damaged, or images are missing.
    """
    folder = prepare_rxrx1(root_dir, download)
    metadata = read_metadata(folder / _METADATA)
    files = [_paths(metadata)]
    pixels: Pixels | None = packed_pixels(folder, files)
    if pixels is None and on_bad_image == "error":
        check_present(folder, files)
    table = metadata.drop(columns=["dataset", "place"]).assign(split=_official_splits(metadata))
    return make_screen(table, pixels or open_files(folder, files, CHANNELS), class_names(metadata))


def _official_splits(metadata: pd.DataFrame) -> np.ndarray:
    """The split of every image, (N,) object, as ``RxRx1Dataset(split_scheme="official")`` of wilds assigns it."""
    second = (metadata["dataset"] == "train") & (metadata["site"].astype(np.int64) == 2)
    return metadata["dataset"].mask(second, "id_test").to_numpy(object)


def _paths(metadata: pd.DataFrame) -> pd.Series:
    """File names of the images, relative to the dataset's folder."""
    return f"{_IMAGES}/" + metadata["place"] + ".png"
