"""Pixels that lie in image files: PNG, TIFF or ``.npy``, one file an image or one file a channel.

:func:`open_files` looks at the first image, once, to learn how all of them are laid out; from then on a file that
differs is an error that names it. No file stays open, and only paths are kept in memory.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageSequence, UnidentifiedImageError

from biomass.errors import BadImageError, ConfigError, DataError, one_line

AXES = ("HW", "HWC", "CHW")
"""How a file may order its dimensions: channel, height, width."""

_AGAIN = "copy or download it again"
_TRIES = 100  # images that may be bad before nobody can say what a good one looks like
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


def _read_png(path: Path) -> np.ndarray:
    """Decode a PNG of any mode: (H, W) or (H, W, C) uint8 or uint16."""
    data = path.read_bytes()
    bits, color = data[24:25], data[25:26]  # of the header, which always comes first
    if bits == b"\x10" and color != b"\x00":
        # Pillow would throw the lower byte of several 16-bit channels away, without a word.
        import torch
        from torchvision.io import decode_png

        return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy().transpose(1, 2, 0)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode == "P":
            return np.asarray(image.convert("RGB"))
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def _read_tiff(path: Path) -> np.ndarray:
    """Decode the first series of a TIFF: (H, W), (pages, H, W) or (H, W, samples)."""
    from tifffile import TiffFile

    # OME metadata may name sister files, whose channels would be read as if they were in this one.
    with TiffFile(path, is_ome=False) as tiff:
        try:
            return tiff.series[0].asarray()
        except ValueError as error:
            page = tiff.pages.first
            if "imagecodecs" not in str(error) or (page.samplesperpixel > 1 and page.bitspersample > 8):
                raise
    with Image.open(path, formats=("TIFF",)) as image:  # knows LZW and JPEG; would cut 16-bit RGB down to 8
        frames = [np.array(frame) for frame in ImageSequence.Iterator(image)]
    return frames[0] if len(frames) == 1 else np.stack(frames)


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index runs fastest, and type; the files of a screen share a few headers."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the npy format, which numpy.save writes")
    return np.lib.format.read_array_header_1_0(stream)


def read_npy_header(file: Path) -> tuple[tuple[tuple[int, ...], bool, np.dtype], int]:
    """What an ``.npy`` file says of its array (shape, whether the first index runs fastest, type), and where it begins.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with file.open("rb") as opened:
        start = opened.read(10)
        length = int.from_bytes(start[8:], "little")
        return _npy_header(start + opened.read(length)), 10 + length


def _read_npy(path: Path) -> np.ndarray:
    """Read an array as numpy.save wrote it. Five times faster than numpy.load, which parses every header."""
    data = path.read_bytes()
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _npy_header(data[:start])
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")


_READERS = {".png": _read_png, ".tif": _read_tiff, ".tiff": _read_tiff, ".npy": _read_npy}


def _decode(path: Path, row: int) -> np.ndarray:
    """The array of a file, in its own order of dimensions and the byte order of this machine."""
    read = _READERS[path.suffix.lower()]
    try:
        array = read(path)
    except FileNotFoundError:
        raise BadImageError(f"image '{path}' is missing: {_AGAIN}", row) from None
    except UnidentifiedImageError as error:  # whose message is the address of an object
        kind = path.suffix[1:].upper()
        raise BadImageError(f"image '{path}' cannot be read (it is not a {kind}): {_AGAIN}", row) from error
    except Exception as error:  # decoders raise almost anything when a file is damaged
        raise BadImageError(f"image '{path}' cannot be read ({one_line(error)}): {_AGAIN}", row) from error
    if array.dtype.newbyteorder("=") not in _DTYPES:
        raise BadImageError(f"image '{path}' is of type {array.dtype}: save it as uint8 or uint16", row)
    return array


def _channels_first(array: np.ndarray, axes: str) -> np.ndarray | None:
    """A view (C, H, W), or None where the array does not have the dimensions ``axes``."""
    if array.ndim != len(axes):
        return None
    if axes == "HW":
        return array[None]
    return array.transpose(2, 0, 1) if axes == "HWC" else array


def _describe(array: np.ndarray) -> str:
    return f"{' x '.join(map(str, array.shape))} {array.dtype}"


@dataclass(eq=False)
class FilePixels:
    """The images of a screen as files; implements :class:`biomass.screen.Pixels`. Made by :func:`open_files`.

    Attributes:
        root: the folder that relative file names refer to.
        files: one column of file names (N,) where a file holds all channels, else one column a channel; Arrow arrays:
            they take the bytes of their names and nothing else, and worker processes share them.
        channels: names of the C channels.
        size: (H, W) of every image, pixels.
        dtype: of every image: uint8 or uint16.
        axes: order of the dimensions in every file, see :data:`AXES`.
        example: the file that the layout was learned from.
    """

    root: Path
    files: tuple[Any, ...]
    channels: tuple[str, ...]
    size: tuple[int, int]
    dtype: np.dtype
    axes: str
    example: str

    def __len__(self) -> int:
        return len(self.files[0])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the images of ``rows`` (N,) into an array (N, C, H, W) of ``dtype``.

        Raises:
            BadImageError: a file is missing, damaged, or of another size, type or number of channels.
        """
        images = np.empty((len(rows), len(self.channels), *self.size), self.dtype)
        for image, row in zip(images, rows, strict=True):
            if len(self.files) == 1:
                self._fill(image, int(row), 0)
            else:
                for channel in range(len(self.channels)):
                    self._fill(image[channel : channel + 1], int(row), channel)
        return images

    def name(self, row: int) -> str:
        """The path of the image's file; of the first that there is, where there is one a channel."""
        names = (column[row].as_py() for column in self.files)
        return str(self.root / next(filter(None, names), ""))

    def _fill(self, target: np.ndarray, row: int, column: int) -> None:
        """Read one file into ``target`` (channels of the file, H, W)."""
        file = self.files[column][row].as_py()
        if not file:
            raise BadImageError(_no_file(row, column, self.channels), row)
        array = _decode(self.root / file, row)
        found = _channels_first(array, self.axes)
        if found is None or found.shape != target.shape or found.dtype.newbyteorder("=") != self.dtype:
            shape = dict(zip("CHW", target.shape, strict=True))
            expected = f"{' x '.join(str(shape[a]) for a in self.axes)} {self.dtype}"
            raise BadImageError(
                f"image '{self.root / file}' is {_describe(array)}, expected {expected} ({self.axes}) as in "
                f"'{self.example}': save it like that",
                row,
            )
        target[...] = found


def _no_file(row: int, column: int, channels: Sequence[str]) -> str:
    return f"row {row} (from 0) names no file for channel '{channels[column]}': add it, or remove the row"


def open_files(
    root: str | Path, files: Sequence[Any], channels: Sequence[str] | None = None, axes: str | None = None
) -> FilePixels:
    """Learn the layout from the first image that can be read, and return the pixels of all.

    Args:
        root: the folder that relative file names refer to.
        files: one column of N file names where a file holds all channels, else one column a channel. A column is
            anything that Arrow takes for an array of strings; an empty string stands for a file that is not there.
        channels: names of the C channels; ``channel_0 …`` if left out.
        axes: order of the dimensions in every file, see :data:`AXES`; found out if left out: the dimension that is as
            long as there are channels, or else the shorter of the first and the last.

    Raises:
        ConfigError: ``axes`` is unknown or cannot be found out.
        DataError: a file has an unknown ending.
        BadImageError: none of the first images can be read, or they do not have as many channels as are named.
    """
    if axes is not None and axes not in AXES:
        raise ConfigError(f"axes '{axes}' is unknown; choose one of {', '.join(AXES)}")
    columns = tuple(string_array(column) for column in files)
    for column in columns:
        _check_endings(column)
    if channels is None and len(columns) > 1:
        channels = [f"channel_{i}" for i in range(len(columns))]
    first_error: BadImageError | None = None
    for row in range(min(len(columns[0]), _TRIES)):
        try:
            return _learn(Path(root), columns, row, channels, axes)
        except BadImageError as error:
            first_error = first_error or error
    if first_error is None:
        raise DataError(f"no images in '{root}': name at least one")
    raise none_readable(first_error)


def none_readable(first: BadImageError) -> BadImageError:
    """The error where no image can be read: to leave them all out is not a remedy."""
    return BadImageError(str(first), first.row, None if first.advice == "skip" else first.advice)


def _learn(
    root: Path, columns: tuple[Any, ...], row: int, channels: Sequence[str] | None, axes: str | None
) -> FilePixels:
    """The pixels of all rows, laid out as the image of ``row``."""
    file = columns[0][row].as_py()
    if not file:
        raise BadImageError(_no_file(row, 0, channels or ("channel_0",)), row)
    array = _decode(root / file, row)
    named = None if channels is None else len(channels)
    expected = named if len(columns) == 1 else 1
    axes = axes or _find_axes(array, expected, file, row)
    found = _channels_first(array, axes)
    if found is None or (expected is not None and len(found) != expected):
        raise _wrong_channels(array, expected, file, row, axes)
    names = tuple(channels) if channels is not None else tuple(f"channel_{i}" for i in range(len(found)))
    height, width = found.shape[1:]
    pixels = FilePixels(root, columns, names, (height, width), array.dtype.newbyteorder("="), axes, file)
    pixels.read(np.array([row]))  # the files of the other channels agree
    return pixels


def _find_axes(array: np.ndarray, channels: int | None, file: str, row: int) -> str:
    if array.ndim == 2:
        return "HW"
    if array.ndim != 3:
        raise _wrong_channels(array, channels, file, row, "HW, HWC or CHW")
    first, _, last = array.shape
    if channels is None:
        return "CHW" if first < last else "HWC"
    if first == last == channels:
        raise ConfigError(
            f"image '{file}' is {_describe(array)}: its channels may be first (CHW) or last (HWC)", "axes"
        )
    if channels not in (first, last):
        raise _wrong_channels(array, channels, file, row, "HWC or CHW")
    return "CHW" if first == channels else "HWC"


def _wrong_channels(array: np.ndarray, channels: int | None, file: str, row: int, axes: str) -> BadImageError:
    expected = f"{axes} with {channels} channel(s)" if channels is not None else axes
    remedy = "name as many channels as there are, or the order of the dimensions"
    return BadImageError(f"image '{file}' is {_describe(array)}, expected {expected}: {remedy}", row, "channels")


def string_array(column: Any) -> Any:
    """An Arrow array of strings without nulls, in one piece."""
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        column = pa.array(column, pa.large_string())
    column = pc.fill_null(column.cast(pa.large_string()), "")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _check_endings(files: Any) -> None:
    known = pc.equal(files, "")
    lower = pc.utf8_lower(files)
    for ending in _READERS:
        known = pc.or_(known, pc.ends_with(lower, ending))
    bad = np.flatnonzero(~known.to_numpy(zero_copy_only=False))
    if len(bad):
        raise DataError(
            f"image '{files[bad[0]].as_py()}' (row {bad[0]}, from 0) is of an unknown kind: "
            f"convert it to one of {', '.join(_READERS)}"
        )


def missing_files(root: str | Path, files: Any) -> np.ndarray:
    """Positions (n,) int64 of the ``files`` (N,) that are not there, ascending.

    Every folder is listed once, which takes a small part of the time of asking for each file.
    """
    files = string_array(files)
    folders = pc.dictionary_encode(pc.replace_substring_regex(files, r"[^/]*$", ""))
    names = pc.replace_substring_regex(files, r"(?s)^.*/", "")
    codes = folders.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(folders.dictionary) + 1))
    there = np.zeros(len(files), bool)
    for code, folder in enumerate(folders.dictionary.to_pylist()):
        inside = order[bounds[code] : bounds[code + 1]]
        present = pc.is_in(names.take(pa.array(inside)), pa.array(_listing(Path(root) / folder), pa.large_string()))
        there[inside] = present.to_numpy(zero_copy_only=False)
    return np.flatnonzero(~there)


def _listing(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_present(root: str | Path, files: Sequence[Any], channels: Sequence[str] | None = None) -> None:
    """Make sure that all files are there, before hours of training find out.

    Raises:
        DataError: some are not; names the first and says how many there are.
    """
    for c, column in enumerate(map(string_array, files)):
        missing = missing_files(root, column)
        if not len(missing):
            continue
        file = column[missing[0]].as_py()
        if not file:
            raise DataError(_no_file(int(missing[0]), c, channels or ("channel_0",)))
        more = f", and {len(missing) - 1} more of {len(column)}" if len(missing) > 1 else ""
        raise DataError(f"image '{Path(root) / file}' is missing{more}: {_AGAIN}", "skip")


def check_unique(files: Sequence[Any], labels: np.ndarray) -> None:
    """Make sure that no file is listed twice.

    Args:
        files: columns of N file names, as :func:`open_files` takes them.
        labels: (N,) what is known of the images, for the message.

    Raises:
        DataError: one is; names both rows, and both labels where they differ.
    """
    every = pa.concat_arrays([string_array(column) for column in files])
    codes = pd.Series(pc.dictionary_encode(every).indices.to_numpy())
    again = codes.duplicated().to_numpy() & pc.not_equal(every, "").to_numpy(zero_copy_only=False)
    if not again.any():
        return
    place = int(np.argmax(again))
    file = every[place].as_py()
    first, second = sorted((int(np.argmax(codes.to_numpy() == codes[place])) % len(labels), place % len(labels)))
    one, other = labels[first], labels[second]
    how = f"twice, with the labels '{one}' and '{other}'" if one != other else "twice"
    raise DataError(f"image '{file}' is listed {how}, in rows {first} and {second} (from 0): remove one of them")


def read_array(path: Path) -> np.ndarray:
    """The array of a PNG, a TIFF or an ``.npy`` file as it stands there, of any type; decoders raise any error."""
    return _READERS[path.suffix.lower()](path)
