"""What image files say of themselves: the axes of a TIFF, its bits, a channel of transparency, why one is damaged."""

import re
import struct
import xml.etree.ElementTree as ElementTree
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_LETTERS = {"T": "T", "Z": "Z", "C": "C", "S": "C", "Y": "H", "X": "W"}
_MAX_SAMPLE = 281  # the tag MaxSampleValue
_STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".npy": b"\x93NUMPY"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHERS = {
    **dict.fromkeys(_TIFF_STARTS, "a TIFF"),
    _STARTS[".png"]: "a PNG",
    _STARTS[".npy"]: "an array of NumPy",
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


class Axes(NamedTuple):
    """How the dimensions of a file are ordered, slowest first.

    Attributes:
        letters: of T, Z, C, H, W.
        shape: as many numbers.
    """

    letters: str
    shape: tuple[int, ...]


def tiff_axes(path: Path) -> Axes | None:
    """What a TIFF says of the order of its dimensions; those of length 1 are left out. None where it does not say it.

    OME-TIFF, ImageJ's and what tifffile writes are understood. Of an OME-TIFF in several files, only the planes that
    lie in this one count.

    Raises:
        ValueError: the metadata describe what no image of a screen is; says what.
    """
    from tifffile import TiffFile

    with TiffFile(path, is_ome=False) as tiff:  # otherwise sister files would be opened, too
        page, series = tiff.pages.first, tiff.series[0]
        letters, shape = series.axes, series.shape
        if page.description[-10:].strip().endswith("OME>"):
            samples = page.samplesperpixel if page.samplesperpixel > 1 else 1
            found = ome_planes(page.description, path.name, len(tiff.pages), samples)
            if found is None:
                return None
            last = "SYX" if page.planarconfig == 2 and samples > 1 else "YXS" if samples > 1 else "YX"
            sizes = {"Y": page.imagelength, "X": page.imagewidth, "S": samples}
            letters, shape = found.letters + last, found.shape + tuple(sizes[one] for one in last)
    long = [(one, n) for one, n in zip(letters, shape, strict=True) if n > 1 or one in "YX"]
    names = "".join(_LETTERS.get(one, "?") for one, _ in long)
    if "?" in names:
        return None
    if len(set(names)) < len(names):
        raise ValueError(f"its axes are {letters}, with channels twice: save the channels apart")
    return Axes(names, tuple(n for _, n in long))


def ome_planes(xml: str, name: str, pages: int, samples: int = 1) -> Axes | None:
    """In which order the pages of one file of an OME-TIFF are planes, channels and points of time.

    Args:
        xml: the metadata.
        name: of the file: only planes that are said to lie in it, or in no file, count.
        pages: how many the file has.
        samples: of a page, which are channels of the metadata.

    Returns:
        Letters of T, Z, C and how many there are; None if the pages are no regular grid of these.

    >>> xml = '<OME><Pixels DimensionOrder="XYZCT" SizeZ="3" SizeC="2" SizeT="1"><TiffData/></Pixels></OME>'
    >>> ome_planes(xml, "a.ome.tif", 6)
    Axes(letters='CZ', shape=(2, 3))
    """
    if "<!" in xml.replace("<!--", ""):  # entities, which no microscope writes, and which may multiply
        return None
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    pixels = next((one for one in root.iter() if _tag(one) == "Pixels"), None)
    if pixels is None:
        return None
    order = re.sub("[XY]", "", pixels.get("DimensionOrder", "XYCZT"))
    size = {one: int(pixels.get(f"Size{one}", "1")) for one in "TZC"}
    size["C"] = max(1, size["C"] // samples)
    places = np.full((pages, 3), -1)
    blocks = [one for one in pixels if _tag(one) == "TiffData"] or [ElementTree.Element("TiffData")]
    for block in blocks:
        uuid = next((one for one in block if _tag(one) == "UUID"), None)
        if uuid is not None and uuid.text != root.get("UUID") and uuid.get("FileName", name) != name:
            continue
        first = int(block.get("IFD", "0"))
        count = int(block.get("PlaneCount", "1" if "IFD" in block.attrib else str(pages)))
        start, step = 0, 1
        for one in order:  # the fastest first
            start += step * int(block.get(f"First{one}", "0"))
            step *= size[one]
        for i in range(count):
            if first + i >= pages or start + i >= step:
                break
            rest = start + i
            for one in order:
                rest, places[first + i, "TZC".index(one)] = divmod(rest, size[one])
    if (places < 0).any():
        return None
    counts = [len(np.unique(column)) for column in places.T]
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in places.T])
    long = [axis for axis in range(3) if counts[axis] > 1]
    for axes in permutations(long):
        shape = tuple(counts[axis] for axis in axes)
        if np.prod(shape, dtype=int) == pages and (codes[list(axes)] == np.indices(shape).reshape(len(axes), -1)).all():
            return Axes("".join("TZC"[axis] for axis in axes), shape)
    return None


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def has_alpha(path: Path) -> bool:
    """Whether the last channel of a PNG or TIFF is its transparency."""
    if path.suffix.lower() == ".npy":
        return False
    if path.suffix.lower() == ".png":
        with Image.open(path, formats=("PNG",)) as image:
            return image.mode in ("LA", "RGBA") or path.read_bytes()[25:26] in (b"\x04", b"\x06")
    from tifffile import TiffFile

    with TiffFile(path, is_ome=False) as tiff:
        return any(int(one) in (1, 2) for one in tiff.pages.first.extrasamples)


def used_bits(path: Path, container: int) -> int:
    """How many bits the numbers of a file use, as far as it says so; else those that they are stored in."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return container
    from tifffile import TiffFile

    with TiffFile(path, is_ome=False) as tiff:
        page = tiff.pages.first
        said = [page.bitspersample] if page.bitspersample < container else []
        if found := re.search(r'SignificantBits="(\d+)"', page.description):
            said.append(int(found[1]))
        if tag := page.tags.get(_MAX_SAMPLE):
            said.append(int(np.max(tag.value)).bit_length())
    return min([container, *(one for one in said if one > 0)])


def image_size(path: Path, axes: str) -> tuple[int, int] | None:
    """Height and width of an image by the beginning of its file; None where that cannot be read."""
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r").shape
            return (shape[axes.index("H")], shape[axes.index("W")]) if len(shape) == len(axes) else None
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # a reader of the image itself will say why
        return None


def why_damaged(path: Path) -> str | None:
    """Why an image cannot be read, where its file shows that; None where it does not."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start, ending = file.read(32), path.suffix.lower()
            if not size:
                return "it is empty: it may still be being written"
            if not start.strip(b"\0"):
                return "it begins with zeros, as a file that is still being written, or was not copied to its end"
            if size < _LEAST:
                return _EARLY
            for other, what in _OTHERS.items():
                if start.startswith(other) and not start.startswith(_begins(ending)):
                    return f"it is {what}{OTHER_FORMAT.format(path.suffix)}"
            if ending == ".png":
                if not start.startswith(_STARTS[ending]):
                    return None
                file.seek(max(0, size - 64))
                return None if b"IEND" in file.read() else _EARLY
            if ending == ".npy":
                return _EARLY if start.startswith(_STARTS[ending]) and _npy_is_short(path, size) else None
            return _EARLY if start.startswith(_TIFF_STARTS) and _tiff_is_short(path, start, size) else None
    except Exception:  # the reader's own message has to do
        return None


OTHER_FORMAT = ", though its name ends in {}"
"""How :func:`why_damaged` ends where a file is whole, but of another format: with the ending of its name."""


def ends_in_zeros(path: Path) -> bool:
    """Whether the last quarter of a file is zeros, as of one that is still being written, or of a dark image."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LEAST)
        file.seek(size - size // 4)
        return size > _LEAST and bool(start.strip(b"\0")) and not file.read().strip(b"\0")


def _begins(ending: str) -> tuple[bytes, ...]:
    return (_STARTS[ending],) if ending in _STARTS else _TIFF_STARTS


_LEAST = 8  # bytes that every image has
_EARLY = "it ends too early: it may still be being written, or was not copied to its end"


def lacks_pages(path: Path) -> str | None:
    """Why a TIFF that can be read may not have all of its pages; None where it has, and of other files."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    with path.open("rb") as file:
        start = file.read(16)
    return _EARLY if start.startswith(_TIFF_STARTS) and _list_is_short(path, start) else None


def _npy_is_short(path: Path, size: int) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except ValueError:
        return True
    return False


def _tiff_is_short(path: Path, start: bytes, size: int) -> bool:
    """Whether a TIFF refers to bytes that it does not have: of the list of its pages, or of their pixels."""
    from tifffile import TiffFile

    if _list_is_short(path, start):
        return True
    with TiffFile(path, is_ome=False) as tiff:
        ends = [a + b for page in tiff.pages for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return max(ends, default=0) > size


def _list_is_short(path: Path, start: bytes) -> bool:
    """Whether the list of a TIFF's pages, each of which says where the next one is, ends too early."""
    if len(start) < 16:
        return True
    order = "<" if start.startswith(b"II") else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    word, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    step, seen = struct.calcsize(f"={number}"), set[int]()
    (offset,) = struct.unpack_from(f"{order}{word}", start, 8 if big else 4)
    with path.open("rb") as file:
        while (offset or not seen) and offset not in seen:
            seen.add(offset)
            file.seek(offset)
            count = file.read(step)
            if not offset or len(count) < step:
                return True
            file.seek(offset + step + entry * struct.unpack(f"{order}{number}", count)[0])
            following = file.read(struct.calcsize(f"={word}"))
            if len(following) < struct.calcsize(f"={word}"):
                return True
            (offset,) = struct.unpack(f"{order}{word}", following)
    return False
