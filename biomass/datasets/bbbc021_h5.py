"""BBBC021 as pybbbc stores it: an HDF5 file of virtual datasets over one file a plate.

What the files hold is described, and written, in :mod:`biomass.pixels.bbbc021_files`.

The virtual datasets are read only for the list of plate files; the images are read from those. HDF5 fills in zeros,
without a word, for a plate file that is not there, and pybbbc lays the plates out as if all held as many images as the
first one.
"""

import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from biomass.errors import BadImageError, DataError, RefusedError, one_line
from biomass.guarded import ask
from biomass.guarded_process import check_chunk
from biomass.identifiers import check_once, find, names, wells
from biomass.pixels.bbbc021_files import H5_CHANNELS as CHANNELS
from biomass.pixels.bbbc021_files import H5_NUMBERS, H5_TEXT
from biomass.pixels.names import string_array
from biomass.pixels.open_handles import Handles
from biomass.pixels.origin import Stamps, stamp_files

_ONE = int(np.float16(1).view(np.uint16))
_LARGEST = 1 << 28  # pixels of an image, in all channels
_SHOWN = 20  # names that a message lists
_REMEDY = "make it again with pybbbc, or leave the plate out"


def _damaged(what: str) -> DataError:
    return DataError(f"{what}: {_REMEDY}", "plates")


def plate_files(file: Path, plates: Collection[str] | None = None) -> list[Path]:
    """The plate files behind a pybbbc file, in its order; the file itself where its datasets are not virtual.

    They are looked for where the file says, and in the folder ``hdf5`` beside it, in case it has been moved.

    Args:
        file: the file with the virtual datasets.
        plates: names of the plates that are wanted; all if left out. The others' files, as far as these are called
            what plates are, are left out, and need not be there.

    Raises:
        ConfigError: there is no file of any of the plates.
        DataError: the file cannot be read, or a plate's file is missing.
    """
    with _open(file, virtual=True) as h5:
        images = _dataset(h5, "images", file)
        if not images.is_virtual:
            return [file]
        sources = sorted((s.vspace.get_select_bounds()[0][0], s.file_name) for s in images.virtual_sources())
    stems = {name: Path(name).stem for _, name in sources}
    if plates is not None and set(plates) <= set(stems.values()):
        stems = {name: plate for name, plate in stems.items() if plate in plates}
    found = []
    for name, plate in stems.items():
        places = list(dict.fromkeys([file.parent / name, file.parent / "hdf5" / Path(name).name]))
        if not _is_inside(Path(name), file.parent):  # it could name any file
            places = places[1:]
        there = next((place for place in places if place.is_file()), None)
        if there is not None:
            found.append(there)
        elif plates is None or plate in plates:
            nor = f" (nor is it '{places[1]}')" if len(places) > 1 else ""
            raise _damaged(f"plate file '{places[0]}' of '{file}' is missing{nor}")
    if not found and plates is not None:
        find_plates(plates, sorted(stems.values()), file)
    if not found:
        raise DataError(f"'{file}' names no plate files: make it again with pybbbc")
    return found


def find_plates(plates: Collection[str], known: Sequence[str], file: Path) -> list[str]:
    """Find plates among the ``known`` ones of a file, see :func:`biomass.identifiers.find`.

    Raises:
        ConfigError: one is not there; names it, and one that it may be meant for.
    """
    return find(plates, known, f"plates of '{file}'", advice="plates")


def _is_inside(name: Path, folder: Path) -> bool:
    """Whether a name in a file of a folder means something below that; links of the disk are the user's own."""
    above = (folder.absolute(), folder.resolve())
    return ".." not in name.parts and (not name.is_absolute() or any(map(name.is_relative_to, above)))


def _open(file: Path, virtual: bool = False) -> h5py.File:
    """Open a file that :mod:`biomass.guarded` has looked at; ``virtual``: its datasets may be over other files."""
    try:
        ask("hdf5", file, skip=["images"], virtual=virtual)
        return h5py.File(file, "r")
    except RefusedError as error:
        raise _damaged(f"'{file}' {error}") from error
    except OSError as error:
        raise _damaged(f"'{file}' cannot be read ({one_line(error)})") from error


def _dataset(h5: h5py.File, name: str, file: Path) -> h5py.Dataset:
    found = h5.get(name)
    if not isinstance(found, h5py.Dataset):
        raise _damaged(f"'{file}' has no dataset '{name}' (it has: {', '.join(islice(h5, _SHOWN))})")
    return found


def read_fields(files: Sequence[Path]) -> tuple[pd.DataFrame, "H5Pixels"]:
    """What is known of all images in some plate files, and the images.

    Args:
        files: plate files, as :func:`plate_files` gives them.

    Returns:
        A table with the columns ``plate, well, site, replicate, compound, concentration, moa`` (empty where unknown),
        and the pixels of its rows.

    Raises:
        DataError: a file cannot be read, a dataset is missing, one is not as long as the others or is damaged, or a
            field is there twice.
    """
    tables, sizes = [], []
    for number, file in enumerate(files):
        with _open(file) as h5:
            images = _dataset(h5, "images", file)
            if images.ndim != 4 or images.shape[1] != len(CHANNELS):
                raise _damaged(f"'{file}' holds images {images.shape}, expected (n, {len(CHANNELS)}, H, W)")
            if images.dtype.kind != "f":
                raise _damaged(f"'{file}' holds images of type {images.dtype}, expected float16 in 0…1")
            if 0 in images.shape[2:] or math.prod(images.shape[1:]) > _LARGEST:
                raise _damaged(f"'{file}' holds images of {images.shape[2]} x {images.shape[3]} pixels")
            columns = {name: _column(h5, name, file, len(images)) for name in (*H5_TEXT, *H5_NUMBERS)}
            tables.append(pd.DataFrame(columns).assign(file=number, index=np.arange(len(images))))
            sizes.append(images.shape[2:])
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise _damaged(f"images of '{files[other]}' are {sizes[other]}, those of '{files[0]}' {sizes[0]}")
    table = pd.concat(tables, ignore_index=True)
    which, index = table.pop("file").to_numpy(np.int32), table.pop("index").to_numpy(np.int64)
    pixels = H5Pixels(tuple(files), which, index, tuple(range(len(CHANNELS))), CHANNELS, sizes[0])
    for column, form in (("plate", names), ("well", wells), ("compound", names), ("moa", names)):
        table[column] = form(table[column], column, place=pixels.name, needed=column != "moa")  # UNKNOWN is missing
    check_once(table, ["plate", "well", "site"], "fields", place=pixels.name, advice="plates")
    return table, pixels


def _column(h5: h5py.File, name: str, file: Path, n: int) -> np.ndarray:
    dataset = _dataset(h5, name, file)
    if dataset.shape != (n,):
        raise _damaged(f"'{file}' has {n} images, but '{name}' has the shape {dataset.shape}")
    if dataset.dtype.kind not in ("OS" if name in H5_TEXT else "OSiuf") or dataset.dtype.subdtype:
        expected = "text" if name in H5_TEXT else "numbers"
        raise _damaged(f"'{file}' holds {dataset.dtype} as {name}, expected {expected}")
    values = dataset[()]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise _damaged(f"'{file}' says {name} {values[row]} of image {row}, expected a number")
    if values.dtype.kind in "OS" or name in H5_TEXT:
        try:
            values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)
        except UnicodeDecodeError as error:
            raise _damaged(f"'{file}' holds the {name} {error.object!r}, which is not UTF-8") from error
    if name == "concentration" and values.dtype.kind not in "fiu":
        numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
        if np.isnan(numbers).any():
            raise _damaged(f"'{file}' says {name} '{values[np.argmax(np.isnan(numbers))]}', which is not a number")
        return numbers
    if values.dtype == np.float16:
        # The shortest decimal number that rounds to the stored one: 0.003, not 0.0030002593994140625.
        return np.array([float(str(value)) for value in values])
    return values


def _wrong_values(image: np.ndarray) -> str:
    """What is wrong with the values of an image, float16; empty where all are in 0…1.

    The bits of such numbers, taken for whole numbers, are at most those of 1: one pass, without arithmetic.
    """
    if image.view(np.uint16).max() <= _ONE or ((image >= 0) & (image <= 1)).all():  # -0.0 is the exception
        return ""
    if not np.isfinite(image).all():
        return f"holds {np.sum(~np.isfinite(image)):,} values that are no numbers"
    return f"holds values from {image.min():g} to {image.max():g}, expected 0…1"


class _Images:
    """The images of an open plate file."""

    def __init__(self, file: Path) -> None:
        self._h5 = h5py.File(file, "r")
        self._images = _dataset(self._h5, "images", file)
        self._packed = self._images.chunks is not None and self._images.compression is not None
        self._checked: set[tuple[int, ...]] = set()

    def read(self, index: int, order: Sequence[int], to: np.ndarray) -> None:
        """Read some channels of an image to (C, H, W)."""
        if self._packed:
            self._check(index)
        for channel, position in enumerate(order):
            self._images.read_direct(to, np.s_[index, position], np.s_[channel])

    def _check(self, index: int) -> None:
        """Make sure that the chunks of an image are not larger than they say, each once."""
        first, *others = self._images.chunks
        steps = (range(0, n, step) for n, step in zip(self._images.shape[1:], others, strict=True))
        for offset in product([index // first * first], *steps):
            if offset not in self._checked:
                try:
                    check_chunk(self._images, offset)
                except (BufferError, zlib.error) as error:
                    raise OSError(str(error)) from error
                self._checked.add(offset)

    def close(self) -> None:
        self._h5.close()


@dataclass(eq=False)
class H5Pixels:
    """Images in plate files; implements :class:`biomass.screen.Pixels`. Made by :func:`read_fields`.

    Attributes:
        files: the plate files.
        file: (N,) int32, which file an image is in.
        index: (N,) int64, its number there.
        order: positions of the channels in the files.
        channels: their names.
        size: (H, W) of every image, pixels.
    """

    files: tuple[Path, ...]
    file: np.ndarray
    index: np.ndarray
    order: tuple[int, ...]
    channels: tuple[str, ...]
    size: tuple[int, int]
    _handles: Handles[_Images] = field(default_factory=lambda: Handles(_Images), repr=False)

    def __len__(self) -> int:
        return len(self.file)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the images of ``rows`` (N,): (N, C, H, W) float16 in 0…1.

        Raises:
            BadImageError: a file has gone or is damaged.
        """
        rows = np.asarray(rows, np.int64)
        images = np.empty((len(rows), len(self.order), *self.size), np.float16)
        for image, row in zip(images, rows, strict=True):
            try:
                self._handles(self.files[self.file[row]]).read(int(self.index[row]), self.order, image)
                why = _wrong_values(image)
            except (
                OSError,
                KeyError,
                ValueError,
                TypeError,
                RuntimeError,
            ) as error:  # the last four: it is another file by now
                there = self.files[self.file[row]].is_file()
                why = one_line(error) if there else "the file is missing"
                raise BadImageError(f"{self.name(int(row))} cannot be read ({why}): {_REMEDY}", int(row)) from error
            if why:
                raise BadImageError(f"{self.name(int(row))} {why}: {_REMEDY}", int(row))
        return images

    def name(self, row: int) -> str:
        """The plate file and the image's number in it."""
        return f"image {self.index[row]} of '{self.files[self.file[row]]}'"

    def stamps(self) -> Stamps:
        """Of the plate files: the images of a plate change together."""
        of_files = stamp_files(Path(), [string_array([str(file) for file in self.files])])
        return Stamps(of_files.sizes[self.file], of_files.times[self.file])

    def take(self, rows: np.ndarray) -> "H5Pixels":
        """The pixels of some rows, in that order."""
        return replace(self, file=self.file[rows], index=self.index[rows])

    def of_channels(self, order: Sequence[int]) -> "H5Pixels":
        """The pixels of some channels, in that order."""
        return replace(self, order=tuple(self.order[c] for c in order), channels=tuple(self.channels[c] for c in order))
