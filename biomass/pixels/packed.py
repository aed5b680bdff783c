"""The packed store: all images of a screen in one memory-mapped array, instead of millions of small files::

    <store>/images.npy      (N, C, H, W), a row an image
    <store>/index.parquet   the screen's table
    <store>/files.parquet   which file every row was read from, its size then, when it had last been changed, and the
                            checksum of its image
    <store>/store.json      channels, classes, shape and checksums of blocks, see :mod:`biomass.pixels.store_file`

:func:`biomass.pixels.packed_writer.pack` writes it, usually to ``<source>.packed``. There the reader of the source
finds it (:func:`packed_pixels`) and takes the pixels from it, unless the source has changed since. A few hundred files
are looked at each time, and all of them when it is packed again. :func:`biomass.datasets.packed.load_packed` reads a
store without its source.

A store may come from anybody, and lie on a disk that fails. Its images are read, not mapped: a map of a file that is
cut meanwhile ends the process. When an image is read for the first time it is compared with its checksum; stores that
were written before there was one an image are compared by :func:`verify` alone.
"""

import hashlib
import logging
import math
import os
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from biomass.atomic import remove
from biomass.errors import BadImageError, DataError, RefusedError, one_line, printable
from biomass.pixels.decoders import npy_header_of
from biomass.pixels.names import PLANES, FileNames
from biomass.pixels.opening import open_file
from biomass.pixels.origin import SEPARATOR, Stamps, find_changed_file, join_files, reading_of
from biomass.pixels.planes import Reading
from biomass.pixels.store_file import ABOUT, BELONGS, CRC32, FILES, IMAGES, INDEX, Store, unusable
from biomass.table_files import as_text, read_parquet

SUFFIX = ".packed"
"""What the folder of a store is called that stands beside its source: ``<source>.packed``."""

_ROWS = 1 << 16  # whose files are compared at a time

log = logging.getLogger(__name__)


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
        opened = ("_descriptor", "_bad_rows", "_names", "_crc32", "_checked")  # a worker process opens it for itself
        return {key: value for key, value in vars(self).items() if key not in opened}

    @cached_property
    def _descriptor(self) -> int:
        descriptor = _open_part(self.path, IMAGES)
        weakref.finalize(self, os.close, descriptor)
        size, expected = os.fstat(descriptor).st_size, self.offset + self.images * self._length
        if size != expected:
            raise unusable(self.path, f"was cut off or replaced: {IMAGES} has {size} bytes, expected {expected}")
        return descriptor

    @property
    def _length(self) -> int:
        """Bytes of an image."""
        return len(self.channels) * self.size[0] * self.size[1] * self.dtype.itemsize

    @cached_property
    def _crc32(self) -> np.ndarray | None:
        """Checksums of the images, (N,) uint32; None in stores that were written before these had any."""
        return read_checksums(self.path, self.images)

    @cached_property
    def _checked(self) -> np.ndarray:
        """Which images have been compared with their checksums, (N,) bool."""
        return np.zeros(self.images, bool)

    @cached_property
    def _bad_rows(self) -> np.ndarray:
        return np.array(sorted(self.bad), dtype=np.int64)

    @cached_property
    def _names(self) -> "_Names":
        return _Names(self.path)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Copy the images of ``rows`` (N,) out of the store into an array (N, C, H, W).

        Raises:
            BadImageError: the image could not be read when the store was packed, or has changed since.
            DataError: the store was cut off or replaced, or its disk fails.
        """
        places = np.asarray(rows) if self.rows is None else self.rows[rows]
        if self.bad:
            hits = np.flatnonzero(np.isin(places, self._bad_rows))
            if len(hits):
                why = f"{self.bad[int(places[hits[0]])]}, and pack the images again"
                raise BadImageError(why, int(rows[hits[0]]), kind="packed as bad")
        images = self._read_places(places)
        if self._crc32 is not None and not self._checked[places].all():
            self._compare(images, places, rows)
        return images.view(self.dtype).reshape(len(places), len(self.channels), *self.size)

    def _read_places(self, places: np.ndarray) -> np.ndarray:
        """The bytes of some images of the store, (N, bytes)."""
        if len(places) and not 0 <= places.min() <= places.max() < self.images:
            raise IndexError(f"the store has {self.images} images")
        file, length = self._descriptor, self._length
        images = np.empty((len(places), length), np.uint8)
        target = images.reshape(-1).data
        first = np.flatnonzero(np.diff(places, prepend=-2) != 1)  # neighbours are read at once, as those of a plate are
        ends = np.append(first, len(places))[1:]
        pieces = ((first * length).tolist(), (ends * length).tolist(), (self.offset + places[first] * length).tolist())
        late = _from_memory(file, target, list(zip(*pieces, strict=True)))
        if hasattr(os, "posix_fadvise"):
            # What is not in memory comes from the disk all at once, not one by one: measured on 616 crops 20 ms instead
            # of 2,300 ms.
            for begin, end, start in late:
                os.posix_fadvise(file, start, end - begin, os.POSIX_FADV_WILLNEED)
        for begin, end, start in late:
            found = begin
            try:
                while found < end and (more := os.preadv(file, [target[found:end]], start + found - begin)):
                    found += more
            except OSError as error:
                raise unusable(self.path, f"cannot be read ({one_line(error)})", "copy it again") from error
            if found < end:
                raise unusable(self.path, f"was cut while it was read: {IMAGES} ends before byte {start + end - begin}")
        return images

    def _compare(self, images: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Compare images with their checksums, each once in a process."""
        assert self._crc32 is not None
        new = np.flatnonzero(~self._checked[places])
        for number, expected in zip(new.tolist(), self._crc32[places[new]].tolist(), strict=True):
            if zlib.crc32(images[number]) != expected:
                place = int(places[number])
                raise BadImageError(
                    f"image {place} of packed store '{self.path}' ('{self.name(int(rows[number]))}') is damaged: it "
                    "has changed since it was packed; delete the store and pack the images again, or copy it again",
                    int(rows[number]),
                )
        self._checked[places] = True

    def name(self, row: int) -> str:
        """The file that the image was read from when it was packed, relative to the source."""
        place = row if self.rows is None else int(self.rows[row])
        names = filter(None, self._names[place].split(SEPARATOR))
        return next(names, f"row {place} of {self.path}").partition(PLANES)[0]

    def checksum(self) -> str:
        """Of the blocks of the store that hold the rows: other pixels in one of them have another one."""
        store, digest = Store.read(self.path), hashlib.sha256()
        blocks = range(len(store.crc32)) if self.rows is None else np.unique(self.rows // store.block).tolist()
        digest.update(
            repr((store.fingerprint, store.block, [(block, store.crc32[block]) for block in blocks])).encode()
        )
        return digest.hexdigest()

    def files(self) -> Any:
        """Arrow array (N,) of the files that the rows were read from."""
        names = read_part(self.path, FILES, ["file"])["file"].combine_chunks()
        return names if self.rows is None else names.take(pa.array(self.rows))

    def stamps(self) -> Stamps:
        """What was noted of these files when they were packed."""
        noted = read_stamps(self.path, self.images)
        return noted if self.rows is None else Stamps(noted.sizes[self.rows], noted.times[self.rows])


class _Names:
    """The files that a store's images were read from, of which one part of :data:`FILES` is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        about = read_part_schema(path, FILES)
        self._ends = np.cumsum([about.row_group(part).num_rows for part in range(about.num_row_groups)])
        self._there = -1
        self._part: Any = None

    def __getitem__(self, place: int) -> str:
        part = int(np.searchsorted(self._ends, place, "right"))
        if part != self._there:
            self._part, self._there = self._read(part), part
        return str(self._part[place - int(self._ends[part])].as_py())  # counted from the part's end

    def _read(self, part: int) -> Any:
        with _open(self._path, FILES) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            return parquet.read_row_group(part, ["file"])["file"].combine_chunks()

    def differ_from(self, files: Sequence[FileNames]) -> bool:
        """Whether the images were read from other files than those of columns (N,) of names, or in another order."""
        start, total = 0, len(files[0])
        if total != (self._ends[-1] if len(self._ends) else 0):
            return True
        with _open(self._path, FILES) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for part in parquet.iter_batches(_ROWS, columns=["file"], use_threads=False):
                own = join_files([one.arrow(start, start + len(part)) for one in files])
                if not part.column(0).cast(pa.large_string()).equals(own):
                    return True
                start += len(part)
        return False


def _from_memory(file: int, target: memoryview, pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Read what need not come from a disk, with one call a piece: begin and end in ``target``, start in the file.

    Returns:
        The pieces that are still to be read.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return pieces
    late = []
    try:
        for begin, end, start in pieces:
            try:
                if os.preadv(file, (target[begin:end],), start, os.RWF_NOWAIT) != end - begin:
                    late.append((begin, end, start))
            except BlockingIOError:
                late.append((begin, end, start))
    except OSError:  # a file system that does not know this, or a disk that fails: the caller finds out
        return pieces
    return late


def open_packed(path: str | Path) -> PackedPixels:
    """The pixels of a store, in its own order.

    Raises:
        DataError: it is incomplete, was cut off, or is of another version.
    """
    path = Path(path)
    store = Store.read(path)
    try:
        with os.fdopen(_open_part(path, IMAGES), "rb") as file:
            header, offset = npy_header_of(file.fileno())
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        raise unusable(path, f"cannot be read ({one_line(error)})") from error
    dtype = np.dtype(store.dtype)
    if header != ((store.images, *store.shape), False, dtype):
        raise unusable(path, f"holds an array of another shape or type than its {ABOUT} says")
    expected = offset + dtype.itemsize * math.prod((store.images, *store.shape))
    if size != expected:
        raise unusable(path, f"was cut off: {IMAGES} has {size} bytes, expected {expected}")
    for name in (INDEX, FILES):
        about = read_part_schema(path, name)
        if about.num_rows != store.images:
            raise unusable(path, f"was cut off: {name} has {about.num_rows} rows, expected {store.images}")
        if name == FILES and not _has_names(about.schema.to_arrow_schema()):
            raise unusable(path, f"has no usable {name} (it does not name the files)")
        belongs = (about.metadata or {}).get(BELONGS)
        if belongs is not None and belongs.decode(errors="replace") != store.belongs:
            raise unusable(path, f"is made of parts of two stores: {name} is of another one than its {ABOUT}")
    return PackedPixels(path, store.channels, store.shape[1:], dtype, offset, store.images, bad=store.bad)


def _has_names(schema: pa.Schema) -> bool:
    kinds = [column.type for column in schema if column.name == "file"]
    return len(kinds) == 1 and (pa.types.is_string(kinds[0]) or pa.types.is_large_string(kinds[0]))


def _open_part(path: Path, name: str) -> int:
    """A file of a store, open: a file in its folder, and no link."""
    part = path / name
    if part.is_symlink():
        raise unusable(path, f"has a link to '{part.readlink()}' in place of its {name}", "put the file itself there")
    try:
        with open_file(part) as file:
            return os.dup(file.fileno())
    except FileNotFoundError:
        raise unusable(path, f"has no {name}") from None
    except RefusedError as error:
        raise unusable(path, f"has no usable {name} ({error})") from error


def read_part(path: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    """A table of a store.

    Raises:
        DataError: it cannot be read.
    """
    with _open(path, name) as file:
        return pq.read_table(file, columns=columns, page_checksum_verification=True)


@contextmanager
def _open(path: Path, name: str) -> Iterator[Any]:
    """The file of a table of a store.

    Raises:
        DataError: it cannot be read, now or within the block.
    """
    with os.fdopen(_open_part(path, name), "rb") as file:
        try:
            yield file
        except Exception as error:  # whatever Arrow makes of bytes that may be anything
            raise unusable(path, f"has no usable {name} ({one_line(error)})") from error


def read_part_schema(path: Path, name: str) -> Any:
    """What the end of a table says: its columns and rows."""
    with os.fdopen(_open_part(path, name), "rb") as file:
        try:
            return pq.read_metadata(file)
        except Exception as error:
            raise unusable(path, f"cannot be read ({name}: {one_line(error)})") from error


def read_checksums(path: Path, images: int) -> np.ndarray | None:
    """The checksums of a store's images, (N,) uint32; None where it has none.

    Raises:
        DataError: they cannot be read.
    """
    if CRC32 not in read_part_schema(path, FILES).schema.to_arrow_schema().names:
        return None
    column = read_part(path, FILES, [CRC32])[CRC32]
    if column.type != pa.uint32() or column.null_count or len(column) != images:
        raise unusable(path, f"has no usable {FILES} (its checksums are not whole numbers of 32 bits)")
    return np.asarray(column.to_numpy())


def read_stamps(path: Path, images: int) -> Stamps:
    """What was noted of the files of a store's images; unknown in stores written before it was."""
    try:
        table = read_part(path, FILES, ["bytes", "changed"])
        return Stamps(*(table[one].to_numpy().astype(np.int64) for one in ("bytes", "changed")))
    except (DataError, KeyError, ValueError):
        return Stamps.unknown(images)


def read_index(path: Path) -> pd.DataFrame:
    """The table of the screen that was packed.

    Raises:
        DataError: it cannot be read.
    """
    with _open(path, INDEX) as file:
        table, texts = read_parquet(file)
        frame = table.to_pandas(split_blocks=True, self_destruct=True)
        for name in texts:
            frame[name] = as_text(frame[name])
        return frame


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
    rows: np.ndarray | None = None
    if pixels._names.differ_from(files := [*map(FileNames.of, files)]):
        wanted = join_files(files)
        found = pc.index_in(wanted, pixels.files().cast(pa.large_string()))
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


def verify(path: str | Path) -> np.ndarray:
    """Compare every block of a store with its checksum, with a progress bar where a person is watching.

    Returns:
        The checksum of every image, (N,) uint32.

    Raises:
        DataError: the store is incomplete, or a block has changed; names the rows of the first one.
    """
    path = Path(path)
    pixels, store = open_packed(path), Store.read(path)
    found = np.empty(store.images, np.uint32)
    for number, rows, block in _each_block(pixels, store):
        found[rows] = [zlib.crc32(image) for image in block]
        if zlib.crc32(block.data) != store.crc32[number]:
            raise unusable(path, f"is damaged: images {rows[0]} to {rows[-1]} have changed since they were packed")
    return found


def drop_damaged(path: Path) -> None:
    """Remove a store that is there and not what was packed, so that it is packed again."""
    if path.exists():
        try:
            verify(path)
        except DataError as error:
            log.warning("%s", error)
            remove(path)


def _each_block(pixels: PackedPixels, store: Store) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The blocks of a store: number, rows, and the bytes of their images (n, bytes)."""
    for number in tqdm(range(len(store.crc32)), printable(f"Checking {pixels.path.name}"), unit="block", disable=None):
        rows = np.arange(number * store.block, min((number + 1) * store.block, store.images))
        yield number, rows, pixels._read_places(rows)
