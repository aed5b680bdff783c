"""What lies in a lab's folder: images, and what else operating systems and microscopes leave there."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.errors import DataError, one_line, printable

IMAGES = (".tif", ".tiff", ".png", ".npy")
"""Endings of files that are images, in small letters."""

COLUMNS = ["path", "size", "changed"]
"""Of a table of files, see :class:`Found`."""

_SYSTEM = re.compile(r"(^|/)(\.[^/]*|Thumbs\.db|desktop\.ini|ehthumbs\.db|__MACOSX/.*|@eaDir/.*)(/|$)", re.IGNORECASE)
_THUMBNAIL = re.compile(r"_thumb[^/]*$", re.IGNORECASE)
_FOREIGN_FOLDERS = frozenset({"__macosx", "@eadir"})


class Left(NamedTuple):
    """Files that are no images of the screen: why not, how many, and one of them."""

    why: str
    files: int
    example: str


class Found(NamedTuple):
    """The files of a folder.

    Attributes:
        images: a row an image, sorted by its path: ``path`` (text, relative to the folder, ``/`` between its parts, as
            the disk has it), ``size`` (bytes) and ``changed`` (ns).
        others: the paths of files that are no images, such as tables, sorted.
        left: what is left out.
    """

    images: pd.DataFrame
    others: list[str]
    left: list[Left]


def find_files(folder: str | Path) -> Found:
    """List a folder and all below it; no file is opened. Links are followed, but no folder is listed twice.

    Raises:
        DataError: there is no such folder, or one below it cannot be read.

    >>> folder = getfixture("tmp_path")
    >>> for name in ("A01_w1.TIF", "._A01_w1.TIF", "Thumbs.db", "notes.txt", "A01_w1_thumb.TIF"):
    ...     _ = (folder / name).write_bytes(b"II*")
    >>> found = find_files(folder)
    >>> found.images["path"].tolist(), found.others, [one.files for one in found.left]
    (['A01_w1.TIF'], ['notes.txt'], [2, 1])
    """
    return sort_files(*list_files(folder))


def list_files(folder: str | Path, *, look: bool = True, without: Path | None = None) -> tuple[pd.DataFrame, list[str]]:
    """All files of a folder and below it, a row each as in :class:`Found`; and what is left out, because of its folder.

    Args:
        folder: of images.
        look: whether to do that; otherwise sizes and times are 0, see :func:`look_at_files`.
        without: a folder that is passed over.

    Raises:
        DataError: there is no such folder, or one below it cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}': name the one that holds the images")
    rows: list[tuple[str, int, int]] = []
    hidden: list[str] = []
    waiting, listed = [""], set[tuple[int, int]]()
    if without is not None and without.is_dir():
        listed.add((without.stat().st_dev, without.stat().st_ino))
    with tqdm(desc=printable(f"Listing {folder}"), unit=" files", disable=None) as bar:
        while waiting:
            before = len(rows)
            _list_one(folder, waiting.pop(), rows, hidden, waiting, listed, look)
            bar.update(len(rows) - before)
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("path", ignore_index=True), hidden


def look_at_files(folder: Path, paths: Iterable[str]) -> pd.DataFrame:
    """The sizes and times of some files of a folder, a row each as in :class:`Found`.

    Raises:
        DataError: one cannot be looked at.
    """
    rows = []
    for path in tqdm(paths, printable(f"Looking at {folder}"), unit=" files", disable=None):
        try:
            found = os.stat(f"{folder}/{path}")  # noqa: PTH116  (millions of them)
        except FileNotFoundError:  # a link to nothing, or gone
            rows.append((path, 0, 0))
        except OSError as error:
            raise DataError(f"'{folder / path}' cannot be read ({error.strerror or one_line(error)})") from error
        else:
            rows.append((path, found.st_size, found.st_mtime_ns))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"path": object, "size": np.int64, "changed": np.int64})


def sort_files(table: pd.DataFrame, hidden: list[str]) -> Found:
    """Tell images from other files, of what :func:`list_files` gives."""
    paths = table["path"].tolist()
    system = np.array([bool(_SYSTEM.search(path)) for path in paths], bool)
    image = np.array([path.lower().endswith(IMAGES) for path in paths], bool) & ~system
    thumbs = image & np.array([bool(_THUMBNAIL.search(path)) for path in paths], bool)
    hidden = hidden + table["path"][system].tolist()
    left = [left_out("files of an operating system", hidden), left_out("thumbnails", table["path"][thumbs])]
    return Found(
        table[image & ~thumbs].reset_index(drop=True),
        table["path"][~image & ~system].tolist(),
        [one for one in left if one.files],
    )


def left_out(why: str, paths: Iterable[str]) -> Left:
    """What to say of files that are left out.

    >>> left_out("thumbnails", ["a_thumb.tif", "b_thumb.tif"])
    Left(why='thumbnails', files=2, example='a_thumb.tif')
    """
    listed = list(paths)
    return Left(why, len(listed), min(listed, default=""))


def _list_one(
    folder: Path,
    place: str,
    rows: list[tuple[str, int, int]],
    hidden: list[str],
    waiting: list[str],
    listed: set[tuple[int, int]],
    look: bool,
) -> None:
    """Add what one folder holds. ``place`` is its path below ``folder``, empty or with a ``/`` behind it."""
    path = folder / place
    try:
        status = path.stat()
        if (status.st_dev, status.st_ino) in listed:
            return
        listed.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = place + entry.name
                if entry.is_dir():
                    skip = entry.name.startswith(".") or entry.name.lower() in _FOREIGN_FOLDERS
                    (hidden if skip else waiting).append(f"{name}/")
                    continue
                if not look:
                    rows.append((name, 0, 0))
                    continue
                try:
                    found = entry.stat()
                except FileNotFoundError:  # a link to nothing
                    rows.append((name, 0, 0))
                    continue
                rows.append((name, found.st_size, found.st_mtime_ns))
    except OSError as error:
        raise DataError(f"folder '{path}' cannot be read ({error.strerror or one_line(error)})") from error
