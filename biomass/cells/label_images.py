"""Nuclei from label images, as Cellpose, StarDist and CellProfiler write them: every nucleus has a number of its own.

TIFF, PNG or ``.npy``, an image a field. A label image belongs to the field that has a file of the same name in one of
its channels, without what is added to it (``_cp_masks``, ``_masks``, ``_labels`` …); where several plates have files of
that name, the folders above it tell. It may also be called ``<plate>/<well>-<site>`` or ``<plate>_<well>_<site>``.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm import tqdm

from biomass.cells.nuclei import measure_labels
from biomass.cells.tables import find_files
from biomass.errors import DataError, one_line
from biomass.pixels.decoders import decode
from biomass.pixels.files import FilePixels
from biomass.pixels.origin import SEPARATOR
from biomass.pixels.packed import PackedPixels
from biomass.pixels.processes import as_they_end
from biomass.screen import FIELD, Screen

IMAGES = (".tif", ".tiff", ".png", ".npy")
"""Endings of label images."""

_ADDED = re.compile(r"([_.-]?(cp_masks?|masks?|labels?|stardist|segmentation|nuclei|objects?))+$", re.IGNORECASE)
_PICKLED = "_seg.npy"
_DEPTH = 3  # folders above a file that may tell it from others of the same name

log = logging.getLogger(__name__)


def read_label_images(
    path: str | Path, screen: Screen, workers: int | None = 1, *, only: np.ndarray | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the nuclei of label images; see the module.

    Args:
        path: a folder with label images, also in folders below it, or one of them.
        screen: the fields.
        workers: processes; as many as there are cores if left out; with 0 or 1, this one reads.
        only: the fields (rows of the screen) whose label images are read; all if left out.

    Returns:
        The fields that have a label image, and the nuclei: ``field`` (row of the fields), ``x, y`` (centroid, pixels),
        ``area`` (pixels), ``nucleus`` (its label) and ``nuclei_file``.

    Raises:
        DataError: there are none, half of them or more belong to no field, two belong to one, or one cannot be read, is
            no label image or of another size than the fields.
    """
    path = Path(path).expanduser()
    files = _find(path)
    rows = _match(files, screen)
    _check_matched(path, files, rows, screen)
    files = [file for file, row in zip(files, rows, strict=True) if row >= 0]
    rows = rows[rows >= 0]
    twice = pd.Series(rows).duplicated().to_numpy()
    if twice.any():
        second = int(np.argmax(twice))
        first = int(np.argmax(rows == rows[second]))
        raise DataError(
            f"'{files[first]}' and '{files[second]}' are label images of the same field: remove one of them", "nuclei"
        )
    if only is not None:
        wanted = np.isin(rows, only)
        files, rows = [file for file, one in zip(files, wanted, strict=True) if one], rows[wanted]
    found: list[Any] = [None] * len(files)
    measure = _Measure(files, tuple(screen.pixels.size))
    bar = tqdm(desc="Reading label images", total=len(files), unit="field", disable=None)
    with bar, as_they_end(measure, range(len(files)), workers) as results:
        for number, measured in results:
            found[number] = measured
            bar.update()
    count = [len(areas) for _, areas, _ in found]
    none = (np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
    centres, areas, labels = (np.concatenate(parts) for parts in zip(*(found or [none]), strict=True))
    top = path if path.is_dir() else path.parent
    names = np.array([file.relative_to(top).as_posix() for file in files], dtype=object)
    nuclei = pd.DataFrame({"field": np.repeat(np.arange(len(files)), count), "x": centres[:, 1], "y": centres[:, 0]})
    nuclei = nuclei.assign(
        area=areas.astype(np.float64), nucleus=labels, nuclei_file=pd.Categorical(names[nuclei["field"]])
    )
    return screen.table[list(FIELD)].astype(str).iloc[rows].reset_index(drop=True), nuclei


def has_label_images(path: Path) -> bool:
    """Whether a path is a label image, or a folder with label images."""
    if path.is_dir():
        return bool(find_files(path, IMAGES))
    return path.name.lower().endswith(IMAGES)


def _find(path: Path) -> list[Path]:
    files = find_files(path, IMAGES) if path.is_dir() else [path]
    pickled = [file for file in files if file.name.lower().endswith(_PICKLED)]
    files = [file for file in files if file not in set(pickled)]
    marked = [file for file in files if _ADDED.search(file.stem)]
    chosen = marked or files
    if not chosen:
        first = pickled[0] if pickled else path
        raise DataError(
            f"'{first}' is no label image, but what Cellpose keeps for itself: a pickle, which may run any code and "
            "is not read; let Cellpose save the masks (--save_tif or --save_png, io.save_masks), and name their folder",
            "nuclei",
        )
    if len(chosen) < len(files) or pickled:
        log.info(
            "'%s': %d label images are read, %d other files are not",
            path,
            len(chosen),
            len(files) - len(chosen) + len(pickled),
        )
    return chosen


def _match(files: list[Path], screen: Screen) -> np.ndarray:
    """The row of the screen that every label image belongs to, (n,) int64; -1 where there is none, or several."""
    known: dict[str, int] = {}
    for row, name in _names_of_fields(screen):
        for key in _keys(PurePosixPath(name)):
            known[key] = row if known.get(key, row) == row else -1
    result = np.full(len(files), -1, np.int64)
    for number, file in enumerate(files):
        place = PurePosixPath(file.absolute().as_posix())
        keys = [*_keys(place), *_keys(place.with_name(_ADDED.sub("", place.stem) + ".tif"))]
        keys.sort(key=lambda key: key.count("/"), reverse=True)
        result[number] = next((known[key] for key in keys if key in known), -1)
    return result


def _keys(path: PurePosixPath) -> list[str]:
    """What a file may be known by: its name without ending, and with one, two, three of the folders above it."""
    parts = [*path.parts[:-1], path.stem]
    return ["/".join(parts[-depth:]).lower() for depth in range(1, min(_DEPTH + 1, len(parts)) + 1)]


def _names_of_fields(screen: Screen) -> Iterator[tuple[int, str]]:
    pixels = screen.pixels
    columns: list[list[Any]] = []
    if isinstance(pixels, FilePixels):
        root, names = pixels.root.absolute(), (column.arrow().to_pylist() for column in pixels.files)
        columns = [[str(root / name) for name in column] for column in names]
    elif isinstance(pixels, PackedPixels):
        columns = [pixels.files().to_pylist()]
    for column in columns:
        for row, names in enumerate(column):
            yield from ((row, Path(name).as_posix()) for name in names.split(SEPARATOR) if name)
    for row, (plate, well, site) in enumerate(screen.table[["plate", "well", "site"]].astype(str).to_numpy()):
        for between in ("-", "_", "_s"):
            yield row, f"{plate}/{well}{between}{site}.tif"
            yield row, f"{plate}_{well}{between}{site}.tif"


def _check_matched(path: Path, files: list[Path], rows: np.ndarray, screen: Screen) -> None:
    lost = np.flatnonzero(rows < 0)
    if not len(lost):
        return
    message = (
        f"{len(lost)} of {len(files)} label images in '{path}' have the name of no field, or of several, the first: "
        f"'{files[lost[0]].name}'; an image of the screen is called '{Path(screen.pixels.name(0)).name}'"
    )
    if 2 * len(lost) >= len(files):
        raise DataError(f"{message}: call them like the images, or <plate>_<well>_<site>", "nuclei")
    log.warning("%s", message)


@dataclass(frozen=True)
class _Measure:
    """Measures one label image; runs in the worker processes."""

    files: list[Path]
    size: tuple[int, ...]

    def __call__(self, number: int) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        file = self.files[number]
        try:
            labels = decode(file)
        except Exception as error:  # decoders raise almost anything
            raise DataError(
                f"label image '{file}' cannot be read ({one_line(error)}): write it again", "nuclei"
            ) from error
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            shape = " x ".join(map(str, labels.shape))
            raise DataError(
                f"label image '{file}' is {shape} {labels.dtype}, expected one plane of whole numbers: save the "
                "labels, not a picture of them",
                "nuclei",
            )
        if labels.shape != self.size:
            raise DataError(
                f"label image '{file}' is {labels.shape[0]} x {labels.shape[1]}, its field "
                f"{self.size[0]} x {self.size[1]}: it was made of a binned or cropped image; make it of the same one",
                "nuclei",
            )
        measured = measure_labels(labels)
        if len(measured[2]) == 1 and ndimage.label(labels > 0)[1] > 1:
            raise DataError(
                f"label image '{file}' has one value in several places: it is a mask; give every nucleus a number "
                "of its own, and save that",
                "nuclei",
            )
        return number, measured
