"""Decoding image files: PNG, TIFF and ``.npy``, one at a time, so that no file can do more than be refused.

What a file may declare is bounded before memory is taken: :data:`MOST_VALUES`, or what the caller says.
"""

import io
import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from biomass.errors import RefusedError, one_line
from biomass.pixels.opening import cut_off, opened, read_exactly
from biomass.pixels.png import SIGNATURE, decode_png
from biomass.pixels.tiff import STARTS, decode_tiff

MOST_VALUES = 1 << 30
"""Values (pixels times channels times planes) that an image file may have: 2 GiB of 16 bits."""

ENDINGS = (".png", ".tif", ".tiff", ".npy")
"""Of the names of image files."""

EARLY = "it ends too early: it may still be being written, or was not copied to its end"

OTHER_FORMAT = ", though its name ends in {}"
"""How the reason ends where a file is whole, but of another format: with the ending of its name."""

_PILLOW = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # beyond which Pillow, which reads PNG and some TIFF, refuses
_NPY = b"\x93NUMPY"
_LEAST = 8  # bytes that every image has
_BEGINS = {".png": (SIGNATURE,), ".npy": (_NPY,), ".tif": STARTS, ".tiff": STARTS}
_OTHERS = {
    **dict.fromkeys(STARTS, "a TIFF"),
    SIGNATURE: "a PNG",
    _NPY: "an array of NumPy",
    b"\xff\xd8\xff": "a JPEG",
    b"BM": "a BMP",
    b"GIF8": "a GIF",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "packed with gzip",
    b"\x89HDF": "an HDF5 file",
    b"version https://git": "a pointer of Git LFS, and not the image (git lfs pull fetches it)",
    b"<": "a page of the web or XML",
}
"""How files begin that are called an image and are something else."""


def decode(path: Path, most: int = MOST_VALUES) -> np.ndarray:
    """The array of a file as it stands there, of any type and order of dimensions.

    Args:
        path: the file.
        most: values that it may have.

    Raises:
        FileNotFoundError: it is not there.
        RefusedError: it cannot be read; says why, and of what kind that is.
    """
    ending = path.suffix.lower()
    with opened(path) as (file, status):
        try:
            start = os.pread(file.fileno(), 32, 0)
            _check_start(start, status, ending)
            if ending in (".tif", ".tiff"):
                array = decode_tiff(file, status, most)
            elif status.st_size > 16 * most + (1 << 26):
                raise RefusedError(f"it has {status.st_size:,} bytes, too many for {most:,} values", "too large")
            elif ending == ".png":
                array = decode_png(read_exactly(file, status), status, most)
            else:
                array = _decode_npy(read_exactly(file, status), status, most)
        except RefusedError:
            raise
        except Image.DecompressionBombError as error:
            raise RefusedError(f"it has more pixels than the most that are read, {_PILLOW:,}", "too large") from error
        except Exception as error:  # decoders raise almost anything when a file is damaged
            raise RefusedError(one_line(error)) from error
    if not array.size:
        raise RefusedError(f"it is {' x '.join(map(str, array.shape))}: it has no pixels", "wrong shape")
    return array


def _check_start(start: bytes, status: os.stat_result, ending: str) -> None:
    """Refuse a file that by its first bytes is empty, or of another format."""
    if not status.st_size:
        raise cut_off(status, "it is empty: it may still be being written")
    if start.startswith(_BEGINS[ending]) and status.st_size >= _LEAST:
        return
    if not start.strip(b"\0"):
        raise cut_off(
            status, "it begins with zeros, as a file that is still being written, or was not copied to its end"
        )
    if status.st_size < _LEAST:
        raise cut_off(status, EARLY)
    for other, what in _OTHERS.items():
        if start.startswith(other):
            remedy = None if "Git" in what else "save it as its name says, or call it by its true name"
            raise RefusedError(f"it is {what}{OTHER_FORMAT.format(ending)}", "wrong type", remedy)
    raise RefusedError(f"it is not {'an array of NumPy' if ending == '.npy' else 'a ' + ending[1:].upper()}")


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index runs fastest, and type; the files of a screen share a few headers."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the npy format, which numpy.save writes")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # of the parser of Python, of numpy's types
        raise RefusedError("its header is damaged") from error
    if dtype.hasobject:
        raise RefusedError("it holds objects of Python, which are never read", "wrong type")
    if dtype.kind not in "buif":
        what = "structures" if dtype.names else f"type {dtype}"
        raise RefusedError(f"it holds {what}, not numbers of one type", "wrong type")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise RefusedError(f"its header says the shape {shape}")
    return tuple(map(int, shape)), fortran, dtype


def read_npy_header(file: Path) -> tuple[tuple[tuple[int, ...], bool, np.dtype], int]:
    """What an ``.npy`` file says of its array (shape, whether the first index runs fastest, type), and where it begins.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with opened(file) as (open_file, _):
        return npy_header_of(open_file.fileno())


def npy_header_of(descriptor: int) -> tuple[tuple[tuple[int, ...], bool, np.dtype], int]:
    """As :func:`read_npy_header`, of a file that is open."""
    start = os.pread(descriptor, 10, 0)
    length = int.from_bytes(start[8:], "little")
    return _npy_header(start + os.pread(descriptor, length, 10)), 10 + length


def _decode_npy(data: bytes, status: os.stat_result, most: int) -> np.ndarray:
    """Read an array as numpy.save wrote it. Five times faster than numpy.load, which parses every header."""
    start = 10 + int.from_bytes(data[8:10], "little")
    if start > len(data):
        raise cut_off(status, EARLY)
    shape, fortran, dtype = _npy_header(data[:start])
    count = math.prod(shape)
    if count > most:
        declared = " x ".join(f"{n:,}" for n in shape)
        raise RefusedError(f"it declares {declared} values, and {most:,} are the most that are read", "too large")
    more = len(data) - start - count * dtype.itemsize
    if more < 0:
        raise cut_off(status, EARLY)
    if more:
        raise RefusedError(f"it has {more:,} bytes more than the array that its header says")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")
