"""What image files say of themselves: the axes of a TIFF, its bits, a channel of transparency."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from biomass.pixels.decoders import read_npy_header
from biomass.pixels.opening import opened
from biomass.pixels.png import png_header

_LETTERS = {"T": "T", "Z": "Z", "C": "C", "S": "C", "Y": "H", "X": "W"}
_MAX_SAMPLE = 281  # the tag MaxSampleValue
_LEAST = 8  # bytes that every image has


class Axes(NamedTuple):
    """How the dimensions of a file are ordered, slowest first.

    Attributes:
        letters: of T, Z, C, H, W.
        shape: as many numbers.
    """

    letters: str
    shape: tuple[int, ...]


@contextmanager
def open_tiff(path: Path) -> Iterator[Any]:
    """A TIFF as tifffile sees it, without the sister files that OME metadata may name."""
    from tifffile import TiffFile

    with opened(path) as (file, _), TiffFile(file, is_ome=False) as tiff:
        yield tiff


def tiff_axes(path: Path) -> Axes | None:
    """What a TIFF says of the order of its dimensions; those of length 1 are left out. None where it does not say it.

    OME-TIFF, ImageJ's and what tifffile writes are understood. Of an OME-TIFF in several files, only the planes that
    lie in this one count.

    Raises:
        ValueError: the metadata describe what no image of a screen is; says what.
    """
    with open_tiff(path) as tiff:
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
    size = {one: max(1, int(pixels.get(f"Size{one}", "1"))) for one in "TZC"}
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
        with opened(path) as (file, _):
            return png_header(file.read(29))[3] in (4, 6)
    with open_tiff(path) as tiff:
        return any(int(one) in (1, 2) for one in tiff.pages.first.extrasamples)


def used_bits(path: Path, container: int) -> int:
    """How many bits the numbers of a file use, as far as it says so; else those that they are stored in."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return container
    with open_tiff(path) as tiff:
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
            (shape, _, _), _ = read_npy_header(path)
            return (shape[axes.index("H")], shape[axes.index("W")]) if len(shape) == len(axes) else None
        with opened(path) as (file, _):
            if path.suffix.lower() == ".png":
                width, height, *_ = png_header(file.read(29))
                return height, width
            with Image.open(file, formats=("TIFF",)) as image:
                return image.height, image.width
    except Exception:  # a reader of the image itself will say why
        return None


def ends_in_zeros(path: Path) -> bool:
    """Whether the last quarter of a file is zeros, as of one that is still being written, or of a dark image."""
    with opened(path) as (file, status):
        size = status.st_size
        start = file.read(_LEAST)
        file.seek(size - size // 4)
        return size > _LEAST and bool(start.strip(b"\0")) and not file.read(size // 4).strip(b"\0")
