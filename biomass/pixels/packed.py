"""The packed store: all images of a screen in one memory-mapped array, instead of millions of small files::

    <store>/images.npy      (N, C, H, W), a row an image
    <store>/index.parquet   the screen's table
    <store>/files.parquet   which file every row was read from, its size then, and when it had last been changed
    <store>/store.json      channels, classes, shape and checksums

:func:`biomass.pixels.packed_writer.pack` writes it, usually to ``<source>.packed``. There the reader of the source
finds it (:func:`packed_pixels`) and takes the pixels from it, unless the source has changed since. A few hundred files
are looked at each time, and all of them when it is packed again. :func:`biomass.datasets.packed.load_packed` reads a
store without its source.
"""

import json
import logging
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from biomass.errors import BadImageError, DataError, one_line, printable
from biomass.pixels.files import PLANES, read_npy_header
from biomass.pixels.origin import SEPARATOR, Stamps, find_changed_file, join_files, reading_of
from biomass.pixels.planes import Reading

SUFFIX = ".packed"
"""What the folder of a store is called that stands beside its source: ``<source>.packed``."""

FORMAT = 1
"""Version of the layout; a store of another one is refused."""

IMAGES, INDEX, FILES, ABOUT = "images.npy", "index.parquet", "files.parquet", "store.json"
"""The files of a store."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """What ``store.json`` says.

    Attributes:
        images: number of images, N.
        shape: (C, H, W) of every image.
        dtype: of every image, as numpy writes it.
        channels: names of the C channels.
        classes: names of the labels of the screen that was packed.
        fingerprint: a hash of shape, type, channels and the names of the files.
        block: images that a checksum is taken over.
        crc32: checksum of every block of ``images.npy``.
        bad: row → why its image could not be read; such a row holds zeros.
        origin: the files that were packed, see :func:`biomass.pixels.origin.describe_origin`; None where the images
            were not files, and in stores written before this entry existed.
    """

    images: int
    shape: tuple[int, int, int]
    dtype: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprint: str
    block: int
    crc32: tuple[int, ...]
    bad: dict[int, str]
    origin: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The text of ``store.json``."""
        return json.dumps({"format": FORMAT} | vars(self))

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Read ``store.json`` of the store ``path``.

        Raises:
            DataError: there is none, or it is of another version.
        """
        if not path.is_dir():
            raise DataError(f"there is no packed store '{path}'; name a folder that biomass pack or crop has written")
        try:
            values: dict[str, Any] = json.loads((path / ABOUT).read_text())
            version = values.pop("format")
            if version != FORMAT:
                raise _unusable(path, f"is of version {version}, this program reads version {FORMAT}")
            if "source" in values:  # what the entry was called in the first stores
                values["origin"] = values.pop("source")
            values["bad"] = {int(row): str(why) for row, why in values["bad"].items()}
            lists: dict[str, Any] = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
            return cls(**values | lists)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unusable(path, f"has no usable {ABOUT} ({one_line(error)})") from error


def _unusable(path: Path, why: str) -> DataError:
    return DataError(f"packed store '{path}' {why}: delete it and pack the images again")


@dataclass(eq=False)
class PackedPixels:
    """The images of a store; implements :class:`biomass.screen.Pixels`. Made by :func:`open_packed`.

    Attributes:
        path: the store's folder.
        channels: names of the C channels.
        size: (H, W) of every image, pixels.
        dtype: of every image.
        offset: where the first image begins in ``images.npy``, bytes.
        images: images in the store.
        rows: (N,) which of them the screen's rows are; None if they are all of them, in this order.
        bad: row of the store → why its image could not be read.
    """

    path: Path
    channels: tuple[str, ...]
    size: tuple[int, int]
    dtype: np.dtype
    offset: int
    images: int
    rows: np.ndarray | None = None
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.images if self.rows is None else len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_descriptor", "_array", "_bad_rows", "_names")  # a loader's worker process opens the file for itself
        return {key: value for key, value in vars(self).items() if key not in opened}

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path / IMAGES, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    @cached_property
    def _array(self) -> np.ndarray:
        """The images as plain rows of values, (N, C * H * W): what numpy gathers fastest."""
        values = len(self.channels) * self.size[0] * self.size[1]
        array = np.memmap(self.path / IMAGES, self.dtype, "r", self.offset, (self.images, values))
        return array.view(np.ndarray)

    @cached_property
    def _bad_rows(self) -> np.ndarray:
        return np.array(sorted(self.bad), dtype=np.int64)

    @cached_property
    def _names(self) -> Any:
        return pq.read_table(self.path / FILES)["file"].combine_chunks()

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Copy the images of ``rows`` (N,) out of the store into an array (N, C, H, W).

        Raises:
            BadImageError: the image could not be read when the store was packed.
        """
        places = np.asarray(rows) if self.rows is None else self.rows[rows]
        if self.bad:
            hits = np.flatnonzero(np.isin(places, self._bad_rows))
            if len(hits):
                why = f"{self.bad[int(places[hits[0]])]}, and pack the images again"
                raise BadImageError(why, int(rows[hits[0]]))
        array = self._array
        if hasattr(os, "posix_fadvise"):
            # What is not in memory comes from the disk all at once, not page by page as numpy runs into it: measured
            # on 616 crops 20 ms instead of 2,300 ms, for 1 ms more where everything is in memory.
            file, length = self._descriptor, array.strides[0]
            for start in (self.offset + places * length).tolist():
                os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)
        return np.take(array, places, axis=0).reshape(len(places), len(self.channels), *self.size)

    def name(self, row: int) -> str:
        """The file that the image was read from when it was packed, relative to the source."""
        place = row if self.rows is None else int(self.rows[row])
        names = filter(None, str(self._names[place].as_py()).split(SEPARATOR))
        return next(names, f"row {place} of {self.path}").partition(PLANES)[0]

    def files(self) -> Any:
        """Arrow array (N,) of the files that the rows were read from."""
        return self._names if self.rows is None else self._names.take(pa.array(self.rows))

    def stamps(self) -> Stamps:
        """What was noted of these files when they were packed."""
        noted = read_stamps(self.path, self.images)
        return noted if self.rows is None else Stamps(noted.sizes[self.rows], noted.times[self.rows])


def open_packed(path: str | Path) -> PackedPixels:
    """The pixels of a store, in its own order.

    Raises:
        DataError: it is incomplete, was cut off, or is of another version.
    """
    path = Path(path)
    store = Store.read(path)
    try:
        header, offset = read_npy_header(path / IMAGES)
        size = (path / IMAGES).stat().st_size
        tables = {name: pq.read_metadata(path / name).num_rows for name in (INDEX, FILES)}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unusable(path, f"cannot be read ({one_line(error)})") from error
    dtype = np.dtype(store.dtype)
    if header != ((store.images, *store.shape), False, dtype):
        raise _unusable(path, f"holds an array of another shape than its {ABOUT} says")
    expected = offset + dtype.itemsize * int(np.prod((store.images, *store.shape), dtype=np.int64))
    if size != expected:
        raise _unusable(path, f"was cut off: {IMAGES} has {size} bytes, expected {expected}")
    for name, found in tables.items():
        if found != store.images:
            raise _unusable(path, f"was cut off: {name} has {found} rows, expected {store.images}")
    return PackedPixels(path, store.channels, store.shape[1:], dtype, offset, store.images, bad=store.bad)


def read_stamps(path: Path, images: int) -> Stamps:
    """What was noted of the files of a store's images; unknown in stores written before it was."""
    try:
        table = pq.read_table(path / FILES, columns=["bytes", "changed"])
    except (OSError, pa.ArrowException):
        return Stamps.unknown(images)
    return Stamps(table["bytes"].to_numpy(), table["changed"].to_numpy())


def read_index(path: Path) -> pd.DataFrame:
    """The table of the screen that was packed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return pq.read_table(path / INDEX).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise _unusable(path, f"has no usable {INDEX} ({one_line(error)})") from error


def packed_beside(source: str | Path) -> Path | None:
    """The store that stands beside a source (a folder or a file), ``<source>.packed``, if there is one."""
    path = Path(source).absolute()
    path = path.with_name(path.name + SUFFIX)
    return path if path.is_dir() else None


def packed_pixels(
    source: str | Path,
    files: Sequence[Any],
    channels: Sequence[str] | None = None,
    reading: Reading | None = None,
) -> PackedPixels | None:
    """The pixels of a screen from the store beside its source, if there is one that holds all of its images.

    Args:
        source: what was packed: a folder or a manifest.
        files: columns of N file names as :func:`biomass.pixels.files.open_files` takes them, relative as they were
            when the source was packed; the images come in this order.
        channels: names of the channels; those of the store if left out.
        reading: how the files are to be read; however the store has read them if left out.

    Returns:
        None where there is no store; also, with a warning, where it lacks an image, has read the files otherwise, or
        the source has changed since.

    Raises:
        DataError: the store is incomplete, was cut off, or is of another version.
    """
    path = packed_beside(source)
    if path is None:
        return None
    pixels = open_packed(path)
    if channels is not None and len(channels) != len(pixels.channels):
        log.warning("'%s' is not used: it holds %d channels, not %d", path, len(pixels.channels), len(channels))
        return None
    wanted, stored = join_files(files), pixels.files().cast(pa.large_string())
    rows: np.ndarray | None = None
    if not wanted.equals(stored):
        found = pc.index_in(wanted, stored)
        if found.null_count:
            absent = wanted.filter(pc.is_null(found))
            message = "'%s' is not used: it lacks %d of %d images, such as '%s'; delete it and pack them again"
            log.warning(message, path, len(absent), len(wanted), absent[0].as_py())
            return None
        rows = found.to_numpy().astype(np.int64)
    origin = Store.read(path).origin
    if reading is not None and origin is not None and (packed := reading_of(origin)) != reading:
        others = [f"{key}={value}" for key, value in asdict(packed).items() if value != getattr(reading, key)]
        message = "'%s' is not used: its images were read with %s, which is not wanted; delete it and pack them again"
        log.warning(message, path, " ".join(others))
        return None
    changed = find_changed_file(path, origin)
    if changed is not None:
        message = "'%s' is not used: '%s' has changed since it was packed; pack it again (biomass pack %s)"
        log.warning(message, path, changed, source)
        return None
    log.info("reading images from '%s'", path)
    return replace(pixels, rows=rows, channels=tuple(channels or pixels.channels))


def verify(path: str | Path) -> None:
    """Compare every block of a store with its checksum, with a progress bar where a person is watching.

    Raises:
        DataError: the store is incomplete, or a block has changed; names the rows of the first one.
    """
    path = Path(path)
    pixels, store = open_packed(path), Store.read(path)
    numbers = tqdm(range(len(store.crc32)), printable(f"Checking {path.name}"), unit="block", disable=None)
    for number in numbers:
        rows = slice(number * store.block, (number + 1) * store.block)
        if zlib.crc32(pixels._array[rows].data) != store.crc32[number]:
            last = min(rows.stop, store.images) - 1
            raise _unusable(path, f"is damaged: images {rows.start} to {last} have changed since they were packed")
