"""Decoding TIFF files, none of which can take the process down, or more memory than its pixels.

The list of pages is walked first: whether it ends, and inside the file. Then the sizes that are declared are compared
with what the file can hold, and only then is anything decoded: by tifffile, and what it cannot read (LZW, JPEG,
Zstandard) by Pillow.
"""

import ctypes
import io
import logging
import lzma
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from biomass.errors import RefusedError
from biomass.pixels.opening import cut_off, read_exactly, unpack

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MOST_PAGES = 1 << 16
"""Pages that a file may have."""

_MOST_TAGS = 4096  # of a page
_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of the types of values
_ENDS = "it ends too early: it may still be being written, or was not copied to its end"
_RATIO = 4096  # more than LZW, deflate and packbits put into one byte
_OF_BYTES = (1, 5, 8, 32773, 32946, 50013)  # compressions that are bounded so

log = logging.getLogger(__name__)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it finds in a damaged file, line after line
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # sizes are checked here


def _inflate(data: bytes, size: int) -> bytes:
    return unpack(zlib.decompressobj(), data, size)


def _unpack_lzma(data: bytes, size: int) -> bytes:
    return unpack(lzma.LZMADecompressor(), data, size)


_BOUNDED: dict[int, Callable[[bytes, int], bytes]] = {
    8: _inflate,
    32946: _inflate,
    50013: _inflate,
    34925: _unpack_lzma,
}
"""Compressions → what unpacks up to as many bytes; tifffile takes all that come out."""


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Complaints(threading.local):
    """What libtiff has found wrong in this thread."""

    def __init__(self) -> None:
        self.found: list[str] = []


_complaints = _Complaints()


@_Handler
def _complain(module: bytes | None, what: bytes | None, values: int | None) -> None:
    _complaints.found.append((what or b"").decode(errors="replace"))


@cache
def _listen() -> None:
    """Hear what libtiff finds wrong, which it prints otherwise, and of which Pillow does not hear all."""
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for name, handler in (("TIFFSetErrorHandler", _complain), ("TIFFSetWarningHandler", None)):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(ctypes.cast(handler, ctypes.c_void_p) if handler is not None else None)
    except (OSError, AttributeError):  # a Pillow that was built otherwise
        log.debug("what libtiff finds wrong in a TIFF will be printed, not told")


@contextmanager
def libtiff() -> Iterator[None]:
    """Where Pillow decodes a TIFF: what libtiff finds wrong meanwhile is an error, and not printed.

    Raises:
        RefusedError: it has found something.
    """
    _listen()
    _complaints.found.clear()
    yield
    if _complaints.found:
        raise RefusedError(f"it is damaged: {_complaints.found[0].partition('%')[0].strip(' .:(')}")


def check_pages(file: io.FileIO, status: os.stat_result) -> int:
    """Walk the list of a TIFF's pages, each of which says where the next one is.

    Returns:
        How many there are.

    Raises:
        RefusedError: the list leads out of the file, in a circle, or is too long.
    """
    start = os.pread(file.fileno(), 16, 0)
    if len(start) < 8:
        raise cut_off(status, _ENDS)
    order = "<" if start.startswith(b"II") else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    word, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    step, width, seen = struct.calcsize(f"={number}"), struct.calcsize(f"={word}"), set[int]()
    tag = struct.Struct(f"{order}HH{word}{width}x")
    (offset,) = struct.unpack_from(f"{order}{word}", start.ljust(16, b"\0"), 8 if big else 4)
    while offset or not seen:
        if offset in seen:
            raise RefusedError("the list of its pages leads in a circle")
        seen.add(offset)
        if len(seen) > MOST_PAGES:
            raise RefusedError(f"it has more than {MOST_PAGES:,} pages, the most that are read", "too large")
        head = _at(file, offset, step + 32 * entry, status)
        if not offset or len(head) < step:
            raise cut_off(status, _ENDS)
        (count,) = struct.unpack_from(f"{order}{number}", head)
        if not 0 < count <= _MOST_TAGS:
            raise RefusedError(f"a page of it has {count} entries")
        size = step + count * entry + width
        if len(head) < size:
            head = _at(file, offset, size, status)
            if len(head) < size:
                raise cut_off(status, _ENDS)
        if len(seen) == 1:
            for code, kind, values in tag.iter_unpack(head[step : step + count * entry]):
                if kind < len(_SIZES) and values * _SIZES[kind] > status.st_size:
                    raise RefusedError(f"entry {code} of its first page is longer than the file")
        (offset,) = struct.unpack_from(f"{order}{word}", head, size - width)
    return len(seen)


def _at(file: io.FileIO, offset: int, size: int, status: os.stat_result) -> bytes:
    return os.pread(file.fileno(), size, offset) if offset < status.st_size else b""


def decode_tiff(file: io.FileIO, status: os.stat_result, most: int) -> np.ndarray:
    """The first series of a TIFF: (H, W), (pages, H, W) or (H, W, samples), of any type.

    Args:
        file: it, open.
        status: of the file.
        most: values that it may have.

    Raises:
        RefusedError: it is damaged, larger, or compressed in a way that cannot be read. Anything else that a decoder
            raises.
    """
    from tifffile import TiffFile

    pages = check_pages(file, status)
    # OME metadata may name sister files, whose channels would be read as if they were in this one.
    with TiffFile(file, is_ome=False) as tiff:
        page, series = tiff.pages.first, tiff.series[0]
        _check_size(series.shape, most)
        _check_size((page.imagelength, page.imagewidth, page.samplesperpixel), most)
        _check_size((page.tilelength or 1, page.tilewidth or 1, page.samplesperpixel), most)
        compression = int(page.compression)
        size = math.prod(series.shape) * max(1, series.dtype.itemsize)
        if compression in _OF_BYTES and page.nbytes > _RATIO * status.st_size:
            raise RefusedError(f"it declares {_size(page)}, which {status.st_size:,} bytes cannot hold")
        if series.dataoffset is not None and compression == 1 and series.dataoffset + size > status.st_size:
            raise cut_off(status, _ENDS)
        for one in series.pages:
            _check_segments(one if one is not None else page, page, status)
        try:
            if compression != 1 or page.predictor != 1 or page.is_tiled:
                _bound(page)
            return np.asarray(series.asarray(maxworkers=1))
        except ImportError:
            pass  # tifffile would take another package
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
        if page.samplesperpixel > 1 and page.bitspersample > 8:  # Pillow would cut 16-bit RGB down to 8
            name = getattr(page.compression, "name", str(compression))
            raise RefusedError(
                f"it has several channels of {page.bitspersample} bits in {name} compression", "wrong type"
            )
    file.seek(0)
    return _pillow(
        read_exactly(file, status), pages, most
    )  # of a file it would make a map, which ends the process if cut


def _check_size(shape: tuple[int, ...], most: int) -> None:
    values = math.prod(shape)
    if values > most:
        declared = " x ".join(f"{n:,}" for n in shape)
        raise RefusedError(f"it declares {declared} values, and {most:,} are the most that are read", "too large")


def _size(page: Any) -> str:
    return f"{page.imagelength:,} x {page.imagewidth:,} pixels"


def _check_segments(page: Any, first: Any, status: os.stat_result) -> None:
    """Refuse a page whose pixels are not all in the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if not offsets or len(offsets) != len(counts) or len(offsets) < math.prod(first.chunked):
        raise RefusedError("its list of strips or tiles is not that of its size")
    if min(offsets) <= 0 or min(counts) <= 0:
        raise RefusedError("a strip or tile of it has no pixels")
    if max(map(sum, zip(offsets, counts, strict=True))) > status.st_size:
        raise cut_off(status, _ENDS)
    if (
        int(first.compression) == 1
        and not first.is_tiled
        and sum(counts) < first.nbytes * first.bitspersample // (8 * max(1, first.dtype.itemsize))
    ):
        raise RefusedError("its strips hold fewer pixels than its size")


def _bound(page: Any) -> None:
    """Let a page's strips and tiles be unpacked into as many bytes as they have pixels, and no others."""
    packed = page.compression
    expand = _BOUNDED.get(int(packed))
    if expand is None:
        return
    page.compression = 1
    try:
        take = page.decode  # tifffile makes it once
    finally:
        page.compression = packed

    def decode(data: bytes | None, index: int, /, **options: Any) -> Any:
        _, _, (depth, height, width, samples) = take(None, index, **options)
        line = -(-width * samples * page.bitspersample // 8)
        size = depth * height * line
        rows = height if page.is_tiled else max(height, min(page.rowsperstrip, page.imagelength))
        found = expand(data or b"", depth * rows * line)  # the last strip may be as long as the others
        if len(found) < size:
            raise RefusedError("a strip or tile of it has too few pixels")
        return take(found, index, **options)

    page.decode = decode


def _pillow(data: bytes, pages: int, most: int) -> np.ndarray:
    """The pages of a TIFF by Pillow, all of one size and type: (H, W[, samples]) or (pages, H, W[, samples])."""
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image, libtiff():
        _check_size((pages, image.height, image.width, len(image.getbands())), most)
        frames = [np.array(frame) for frame in ImageSequence.Iterator(image)]
    if len({(frame.shape, frame.dtype) for frame in frames}) > 1:
        raise RefusedError("its pages are not of one size and type", "wrong shape")
    return frames[0] if len(frames) == 1 else np.stack(frames)
