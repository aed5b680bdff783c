"""Pixels that lie in image files: PNG, TIFF or ``.npy``, one file an image, one a channel, or several planes a channel.

:func:`open_files` looks at the first image, once, to learn how all of them are laid out; from then on a file that
differs is an error that names it, unless a :class:`.Reading` says what becomes of it. No file stays open, and only
paths are kept in memory.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from biomass.errors import BAD_IMAGES, BadImageError, ConfigError, DataError, RefusedError, one_line
from biomass.pixels.decoders import MOST_VALUES, decode
from biomass.pixels.metadata import Axes, has_alpha, image_size, open_tiff, tiff_axes, used_bits
from biomass.pixels.names import PLANES, FileNames, check_endings, each_file, no_file
from biomass.pixels.planes import PROJECTIONS, Reading, canonical, fit, project, to_16_bit

AXES = ("HW", "HWC", "CHW")
"""How a file may order its dimensions: channel, height, width. Stacks have z planes (Z) and points of time (T), too."""


_TIMES = 64  # as large as the example may a file be that is read at all: other sizes may be cut, and planes chosen
_ALWAYS = 1 << 24  # values that may be read whatever the example
_TRIES = 100  # images that may be bad before nobody can say what a good one looks like
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_SIGNED = np.dtype(np.int16)

log = logging.getLogger(__name__)

T = TypeVar("T")


def _read(path: Path, row: int, most: int = MOST_VALUES) -> np.ndarray:
    """The array of a file as it stands there."""
    try:
        return decode(path, most)
    except FileNotFoundError as error:
        why = f" ({error})" if error.errno is None else ""
        raise BadImageError(f"image '{path}' is missing{why}: {BAD_IMAGES['missing']}", row, kind="missing") from None
    except RefusedError as error:
        raise _unreadable(path, row, error) from error


def _unreadable(path: Path, row: int, error: Exception) -> BadImageError:
    kind, remedy = (error.kind, error.remedy) if isinstance(error, RefusedError) else ("damaged", None)
    remedy = remedy or BAD_IMAGES[kind]
    return BadImageError(f"image '{path}' cannot be read ({one_line(error)}): {remedy}", row, kind=kind)


def _ask(question: Callable[..., T], path: Path, row: int, *more: Any) -> T:
    """What the metadata of a file say, whose pixels can be read."""
    try:
        return question(path, *more)
    except Exception as error:  # whoever wrote the file may have written anything
        raise _unreadable(path, row, error) from error


def _decode(path: Path, row: int, floats: bool = False, most: int = MOST_VALUES) -> np.ndarray:
    """The array of a file, in its own order of dimensions: uint8, uint16, or floating-point numbers if these may be."""
    return _of_pixels(_read(path, row, most), path, row, floats)


def _of_pixels(array: np.ndarray, path: Path, row: int, floats: bool) -> np.ndarray:
    """An array of numbers that images may have, or the error that it is of others."""
    kind = array.dtype.newbyteorder("=")
    if kind in _DTYPES or (floats and kind.kind == "f"):
        return array
    advice, remedy = "skip", "save it as uint8 or uint16"
    what = f"of type {array.dtype}"
    if kind == _SIGNED:
        least = int(array.min())
        if least >= 0:  # as uint16 would hold them, bit for bit
            return array.view(array.dtype.str.replace("i", "u"))
        what, remedy = f"of type int16 and holds negative numbers (down to {least})", "save it as uint16"
    elif kind.kind == "f" and not np.isfinite(array).all():
        what = f"of type {array.dtype} and holds values that are not numbers (NaN or infinity)"
        remedy = "write it again without them, as uint8 or uint16"
    elif kind.kind == "f" and array.min() >= 0 and array.max() <= 1:
        advice = "depths"
    raise BadImageError(f"image '{path}' is {what}: {remedy}", row, advice, "wrong type")


def _channels_first(array: np.ndarray, axes: str) -> np.ndarray | None:
    """A view (C, H, W), or None where the array does not have the dimensions ``axes``, or is a stack."""
    if array.ndim != len(axes) or axes not in AXES:
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
        files: one column of file names (N,) where a file holds all channels, else one column a channel; Arrow arrays
            hold them, which worker processes share. Where a channel has several planes in files of their own,
            :data:`PLANES` stands between their names.
        channels: names of the C channels.
        size: (H, W) of every image, pixels.
        dtype: of every image: uint8 or uint16.
        axes: order of the dimensions in every file: of H, W and, where there are any, C, Z and T.
        example: the file that the layout was learned from.
        reading: what becomes of planes, depths and sizes.
        shape: of the array of a file that is a stack, as ``axes``, whether its pages are one dimension or several;
            empty where it is none.
    """

    root: Path
    files: tuple[FileNames, ...]
    channels: tuple[str, ...]
    size: tuple[int, int]
    dtype: np.dtype
    axes: str
    example: str
    reading: Reading = field(default_factory=Reading)
    shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.files[0])

    @cached_property
    def _most(self) -> int:
        """Values that a file may have: many times those of the example."""
        expected = math.prod(self.shape) or len(self.channels) * math.prod(self.size)
        return min(MOST_VALUES, max(_TIMES * expected, _ALWAYS))

    @property
    def planes(self) -> tuple[int, ...]:
        """Points of time and z planes of a stack; empty where it is none."""
        lengths = dict(zip(self.axes, self.shape, strict=True)) if self.shape else {}
        return (lengths.get("T", 1), lengths.get("Z", 1)) if lengths else ()

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
        """The path of the image's file; of the first that there is, where there is one a channel or a plane."""
        names = (column[row] for column in self.files)
        return str(self.root / next(filter(None, names), "").partition(PLANES)[0])

    def _fill(self, target: np.ndarray, row: int, column: int) -> None:
        """Read one channel, or all that a file holds, into ``target`` (C, H, W)."""
        names = self.files[column][row]
        if not names:
            raise BadImageError(no_file(row, column, self.channels), row, kind="missing")
        files = names.split(PLANES)
        path = self.root / files[0]
        plain = self.reading.depths == "error"
        array = _decode(path, row, not plain, self._most)
        found = _channels_first(array, self.axes) if plain and len(files) == 1 else None
        if found is None or found.shape != target.shape or found.dtype.newbyteorder("=") != self.dtype:
            found = self._fitted(array, files, row, target)
        target[...] = found

    def _fitted(self, array: np.ndarray, files: list[str], row: int, target: np.ndarray) -> np.ndarray:
        """An image (C, H, W) that is not simply laid out as ``target``, of its first file and the further planes."""
        shape, path = target.shape, self.root / files[0]
        stack = [self._one_file(array, path, row, shape[0])]
        for file in files[1:]:
            again = _decode(self.root / file, row, self.reading.depths == "scale", self._most)
            stack.append(self._one_file(again, self.root / file, row, shape[0]))
            if stack[-1].shape != stack[0].shape:
                raise BadImageError(
                    f"image '{self.root / file}' is {_describe(again)}, and another plane of it, '{path}', "
                    f"{_describe(array)}: save them alike",
                    row,
                    kind="wrong shape",
                )
        image = stack[0] if len(stack) == 1 else _planes_to_one(np.stack(stack), self.reading, path, row)
        found = image
        if image.shape[1:] != self.size and self.reading.sizes != "error":
            fitted = fit(image, self.size, self.reading.sizes)
            found = image if fitted is None else fitted
        if found.shape == shape and found.dtype == self.dtype:
            return found
        lengths = dict(zip("CHW", shape, strict=True))
        order = [axis for axis in self.axes if axis in lengths]
        advice = "sizes" if found.shape[1:] != shape[1:] else "depths" if found.shape == shape else "skip"
        raise BadImageError(
            f"image '{path}' is {_describe(array)}, expected {' x '.join(str(lengths[axis]) for axis in order)} "
            f"{self.dtype} ({''.join(order)}) as in '{self.example}': save it like that",
            row,
            advice,
            "wrong type" if found.shape == shape else "wrong shape",
        )

    def _one_file(self, array: np.ndarray, path: Path, row: int, channels: int) -> np.ndarray:
        """One file's image (C, H, W), its planes made one, without transparency, in the depth of all."""
        axes, array = self.axes, _unfold(array, self.shape)
        if array.ndim == 2 and axes in AXES:
            axes = "HW"
        elif array.ndim == 3 and axes == "HW" and array.shape[-1] == 2:
            axes = "HWC"  # gray, with transparency
        if array.ndim != len(axes):
            raise BadImageError(
                f"image '{path}' is {_describe(array)}, expected the dimensions {axes} as in '{self.example}': save it "
                "like that",
                row,
                kind="wrong shape",
            )
        stack = canonical(array, axes)
        image = _planes_to_one(_at_time(stack, self.reading, path, row), self.reading, path, row)
        if len(image) == channels + 1 and axes[-1] == "C" and _ask(has_alpha, path, row):
            image = image[:-1]
        if self.reading.depths == "scale":
            try:
                image = to_16_bit(image, _ask(used_bits, path, row, 8 * array.dtype.itemsize))
            except ValueError as error:
                raise BadImageError(
                    f"image '{path}' is of type {array.dtype}, and {error}: save it as uint16", row, kind="wrong type"
                ) from error
        return image.astype(image.dtype.newbyteorder("="), copy=False)


def _unfold(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An array whose first dimension is all pages with as many dimensions as ``shape``; as it is where that fails."""
    lead = tuple(shape[: len(shape) - array.ndim + 1])
    if len(lead) > 1 and np.prod(lead, dtype=int) == array.shape[0]:
        return array.reshape(*lead, *array.shape[1:])
    return array


def _at_time(stack: np.ndarray, reading: Reading, path: Path, row: int) -> np.ndarray:
    """(T, Z, C, H, W) → (Z, C, H, W), at the point of time that is read."""
    if reading.time is None and len(stack) > 1:
        raise ConfigError(f"image '{path}' has {len(stack)} points of time: say which to read, from 0", "time")
    at = reading.time or 0
    if at >= len(stack):
        raise BadImageError(
            f"image '{path}' has {len(stack)} points of time (from 0), and none has number {at}",
            row,
            kind="wrong shape",
        )
    return np.asarray(stack[at])


def _planes_to_one(planes: np.ndarray, reading: Reading, path: Path, row: int) -> np.ndarray:
    """(Z, C, H, W) → (C, H, W), as ``reading`` says."""
    if len(planes) == 1:
        return np.asarray(planes[0])
    if reading.z is None:
        raise ConfigError(
            f"image '{path}' is a stack of {len(planes)} z planes: say how they become one image: "
            f"{', '.join(PROJECTIONS)}, or the number of a plane, from 0",
            "z",
        )
    try:
        return project(planes, reading.z)
    except IndexError:
        raise BadImageError(
            f"image '{path}' has {len(planes)} z planes (from 0), and none has number {reading.z}",
            row,
            "z",
            "wrong shape",
        ) from None


def open_files(
    root: str | Path,
    files: Sequence[Any],
    channels: Sequence[str] | None = None,
    axes: str | None = None,
    reading: Reading | None = None,
) -> FilePixels:
    """Learn the layout from the first image that can be read, and return the pixels of all.

    Args:
        root: the folder that relative file names refer to.
        files: one column of N file names where a file holds all channels, else one column a channel. A column is
            anything that Arrow takes for an array of strings, or of lists of strings: the planes of a stack; an empty
            string stands for a file that is not there.
        channels: names of the C channels; ``channel_0 …`` if left out.
        axes: order of the dimensions in every file, such as HWC or ZCHW, see :data:`AXES`. If left out, a TIFF's
            metadata say it, or else it is found out: the dimension that is as long as there are channels, or else the
            shorter of the first and the last.
        reading: what becomes of several planes, other depths and other sizes; all are errors if left out.

    Raises:
        ConfigError: ``axes`` is unknown or cannot be found out; there are several planes, and nothing says which to
            read.
        DataError: a file has an unknown ending.
        BadImageError: none of the first images can be read, or they do not have as many channels as are named.
    """
    if axes is not None and not _are_axes(axes):
        raise ConfigError(
            f"axes '{axes}' is unknown; choose one of {', '.join(AXES)}, or, with planes (Z) and points of time (T), "
            "one such as ZHW, ZCHW, TZCHW",
            "axes",
        )
    columns = tuple(map(FileNames.of, files))
    for column in columns:
        check_endings(column)
    if channels is None and len(columns) > 1:
        channels = [f"channel_{i}" for i in range(len(columns))]
    first_error: BadImageError | None = None
    for row in range(min(len(columns[0]), _TRIES)):
        try:
            return _learn(Path(root), columns, row, channels, axes, reading or Reading())
        except BadImageError as error:
            first_error = first_error or error
    if first_error is None:
        raise DataError(f"no images in '{root}': name at least one")
    raise none_readable(first_error)


def _are_axes(axes: str) -> bool:
    return len(set(axes)) == len(axes) and {*"HW"} <= set(axes) <= {*"TZCHW"} and axes.index("H") < axes.index("W")


def none_readable(first: BadImageError) -> BadImageError:
    """The error where no image can be read: to leave them all out is not a remedy."""
    return BadImageError(str(first), first.row, None if first.advice == "skip" else first.advice, first.kind)


def _learn(
    root: Path,
    columns: tuple[FileNames, ...],
    row: int,
    channels: Sequence[str] | None,
    axes: str | None,
    reading: Reading,
) -> FilePixels:
    """The pixels of all rows, laid out as the image of ``row``."""
    names = columns[0][row]
    if not names:
        raise BadImageError(no_file(row, 0, channels or ("channel_0",)), row, kind="missing")
    file = names.partition(PLANES)[0]
    stored = _read(root / file, row)
    array = _of_pixels(stored, root / file, row, reading.depths == "scale")
    named = None if channels is None else len(channels)
    expected = named if len(columns) == 1 else 1
    if (
        array.ndim == 3
        and array.shape[2] in (2, 4)
        and array.shape[2] != expected
        and _ask(has_alpha, root / file, row)
    ):
        array = array[..., :-1]
        log.info("the last channel of '%s' is its transparency (alpha): it is left out, here and in all", root / file)
    layout = _layout(array, root / file, expected, row, axes, reading.z)
    number = layout.shape[layout.letters.index("C")] if "C" in layout.letters else 1
    if expected is not None and number != expected:
        raise _wrong_channels(array, expected, file, row, layout.letters)
    _check_choice(reading, layout, columns, root / file)
    called = tuple(channels) if channels is not None else tuple(f"channel_{i}" for i in range(number))
    size = tuple(layout.shape[layout.letters.index(axis)] for axis in "HW")
    if stored.dtype.newbyteorder("=") == _SIGNED:
        log.info("'%s' is of type int16, without negative numbers: it is read as uint16, and so are all", root / file)
    dtype = np.dtype(np.uint16) if reading.depths == "scale" else array.dtype.newbyteorder("=")
    shape = layout.shape if array.ndim != len(layout.shape) or {*layout.letters} & {*"TZ"} else ()
    pixels = FilePixels(root, columns, called, (size[0], size[1]), dtype, layout.letters, file, reading, shape)
    if reading.sizes != "error":
        pixels = replace(pixels, size=_common_size(pixels))
    pixels.read(np.array([row]))  # the files of the other channels agree
    return pixels


def _check_choice(reading: Reading, layout: Axes, columns: Sequence[FileNames], path: Path) -> None:
    """Refuse the number of a plane, or of a point of time, where there is but one."""
    planes = "Z" in layout.letters or any(one.holds(PLANES) for one in columns)
    for what, name, number, several in (
        ("z plane", "z", reading.z, planes),
        ("point of time", "time", reading.time, "T" in layout.letters),
    ):
        if isinstance(number, int) and number > 0 and not several:
            raise ConfigError(f"image '{path}' has one {what}, number 0, and number {number} is to be read", name)


def _layout(
    array: np.ndarray, path: Path, channels: int | None, row: int, axes: str | None, z: str | int | None
) -> Axes:
    """The order and the lengths of the dimensions of a file; ``z`` is what is chosen of planes, if anything is."""
    tiff, told = path.suffix.lower() in (".tif", ".tiff"), None
    if array.ndim > 2 and tiff:
        told = _ask(tiff_axes, path, row)
        if told is not None and np.prod(told.shape) != array.size:  # of several images in one file
            told = None
    if axes is None and told is not None:
        number = told.shape[told.letters.index("C")] if "C" in told.letters else 1
        if channels is not None and number != channels:
            raise BadImageError(
                f"image '{path}' is {_describe(array)}, and its metadata call these dimensions {told.letters} (Z: "
                f"planes, T: points of time): {number} channel(s), not {channels}; name as many channels as there are, "
                "or say the true order of the dimensions",
                row,
                "channels",
                "wrong shape",
            )
        return Axes("CHW", array.shape) if told.letters == "HW" and array.shape[0] == 1 else told
    if axes is None:
        if array.ndim == 3 and channels is None and tiff and not _ask(_is_color, path, row):
            raise ConfigError(
                f"image '{path}' has {array.shape[0]} pages ({_describe(array)}), and nothing in it says whether they "
                "are channels, z planes or points of time: name the channels, or say the order of the dimensions, CHW, "
                "ZHW or THW",
                "axes",
            )
        if array.ndim == 3 and channels == 1 and z is not None and tiff and not _ask(_is_color, path, row):
            return Axes("ZHW", array.shape)  # nothing says what its pages are but the user, who has chosen of planes
        return Axes(_find_axes(array, channels, str(path), row), array.shape)
    if len(axes) == array.ndim:
        return Axes(axes, array.shape)
    if told is not None and sorted(told.letters) == sorted(axes):
        return Axes(axes, tuple(told.shape[told.letters.index(axis)] for axis in axes))
    if axes in ("ZCHW", "CZHW") and array.ndim == 3 and channels and array.shape[0] % channels == 0:
        lengths = {"C": channels, "Z": array.shape[0] // channels, "H": array.shape[1], "W": array.shape[2]}
        return Axes(axes, tuple(lengths[axis] for axis in axes))
    present = "".join(axis for axis in axes if axis in "HW" or (axis == "C" and channels != 1))
    if len(present) == array.ndim:  # a stack of one plane
        return Axes(present, array.shape)
    raise _wrong_channels(array, channels, str(path), row, axes)


def _is_color(path: Path) -> bool:
    """Whether the channels of a TIFF are the samples of its pixels."""
    with open_tiff(path) as tiff:
        return len(tiff.pages) == 1 and bool(tiff.pages.first.samplesperpixel > 1)


def _common_size(pixels: FilePixels) -> tuple[int, int]:
    """The size that all images are brought to: the smallest, or the largest."""
    log.info("looking at the sizes of %d files", len(pixels) * len(pixels.files))
    names = [name for column in pixels.files for name in each_file(column)[0].arrow().to_pylist() if name]
    sizes = [size for name in names if (size := image_size(pixels.root / name, pixels.axes)) is not None]
    heights, widths = np.array([pixels.size, *sizes], np.int64).T
    choose = np.min if pixels.reading.sizes == "crop" else np.max
    size = int(choose(heights)), int(choose(widths))
    others = len({*sizes, size}) - 1
    if others:
        verb = "cropped" if pixels.reading.sizes == "crop" else "padded"
        log.info("images of %d other sizes are %s to %d x %d, about their centre", others, verb, *size)
    return size


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
    message = f"image '{file}' is {_describe(array)}, expected {expected}: {remedy}"
    return BadImageError(message, row, "channels", "wrong shape")
