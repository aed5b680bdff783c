"""Writing a packed store (see :mod:`biomass.pixels.packed`): checked, complete or not there, and resumable.

Images are read and written in blocks, in any order, to ``<out>.part``. There a journal says how far it has come::

    {"fingerprint": "81cc6bd8…", "block": 186}      what is packed, and how many images a block holds
    [1, 1631871210, {}]                             block 1 is finished, and has this checksum
    [0, 2414629601, {"9": "image 'a.png' is …"}]    so is block 0, but image 9 cannot be read: it holds zeros

What a user can rely on, and why:

- *A store is complete, or not there.* The folder gets its name when every file is on the disk and every block was read
  again and has its checksum.
- *A second call goes on where the first was stopped*, however that happened. A block counts as finished if the bytes
  in ``images.npy`` have the checksum in the journal. That a line is there is not enough: after a power failure the
  line may be on the disk and the block not.
- *Changed files are noticed.* Their sizes and times are noted before the first of them is read. A file that changes
  afterwards differs from the note; so its block is read again by the next call, and the store is not used by readers.
- *A full disk shows at once*, because all the space is reserved before anything is written.
- *Two calls never write at the same time*: one waits for a lock, which the system frees when a process is killed.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from biomass.atomic import no_link, remove, whole_file, writing
from biomass.errors import BadImageError, DataError, one_line, printable
from biomass.pixels.decoders import read_npy_header
from biomass.pixels.files import FilePixels, none_readable, open_files
from biomass.pixels.origin import (
    Stamped,
    Stamps,
    describe_origin,
    find_changed_file,
    find_root,
    join_files,
    reading_of,
    split_files,
    stamp_files,
)
from biomass.pixels.packed import (
    PackedPixels,
    open_packed,
    read_index,
    read_stamps,
    verify,
)
from biomass.pixels.part import Part, merge_parts
from biomass.pixels.planes import Reading
from biomass.pixels.processes import as_they_end
from biomass.pixels.store_file import ABOUT, BELONGS, CRC32, FILES, IMAGES, INDEX, TYPES, Store
from biomass.screen import OnBadImage, Pixels, Screen, check_on_bad_image

BLOCK_BYTES = 16 << 20
"""What is read, written and checked at a time."""

_JOURNAL = "journal.jsonl"
_ROOM = "room"  # a file that makes sure that there is room for what grows, and is gone at once
_OTHERS, _LINE = 1 << 14, 64  # bytes for it: of the store's description, and of each block
_PART = 1 << 18  # rows of a table that can be read by themselves
_TRIES = 100  # images that may be bad before nobody can say what a good one looks like

log = logging.getLogger(__name__)


def pack(
    screen: Screen,
    out: str | Path,
    *,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    held: Callable[[], np.ndarray] | None = None,
    like: Screen | None = None,
    parts: Sequence[Part] | None = None,
) -> Path:
    """Write all images of a screen, bit for bit, and its table to a packed store.

    If the store is there already, with the same images, only its table and classes are brought up to date; if their
    files have changed since (in size or time), they are packed again. Where ``held`` says so, a store with some of the
    images grows: those that it holds are copied and not read again, and the new store takes the place of the old one
    when it is complete. Both need room until then.

    Args:
        screen: any screen, of cells or fields of view.
        out: the store's folder.
        workers: processes that read; as many as there are cores if left out; with 0 or 1, this one reads.
        on_bad_image: ``error``, when all others are packed, or ``skip``: remember why the image cannot be read, so
            that reading it from the store is the same error as reading it from its file.
        held: which row of the store that is there holds the image of each of the screen's rows, (N,) int64; -1 where it
            holds none. It is called when no other process can write to the store. Without it, a store with other
            images is refused.
        like: the whole screen, where this is a part of it: what an image is like is learned from that.
        parts: stores of all parts of the screen: all images are copied from these, and not read again.

    Returns:
        The store's folder.

    Raises:
        BadImageError: images cannot be read; names the first.
        ConfigError: ``out`` cannot be written, or does not fit on the disk.
        DataError: ``out`` holds other images, or parts are not those of the screen.
    """
    check_on_bad_image(on_bad_image)
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    _check_free(out)
    files = _files(screen)
    plan = _make_plan(screen, files, like)
    with writing(out, "store", needed=plan.images * plan.image_bytes):
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock")):
            rows = held() if held is not None and out.exists() else None
            changed = _changed(screen, files, out) if out.exists() and rows is None else None
            if rows is not None and not np.array_equal(rows, np.arange(Store.read(out).images)):
                store = Store.read(out)
                if (store.shape, np.dtype(store.dtype)) != (plan.shape, plan.dtype):
                    raise DataError(
                        f"'{out}' holds images of another shape or type ({store.dtype}, not {plan.dtype.str}): delete "
                        "it, or choose another place",
                        "store",
                    )
                log.info("'%s' grows: it holds %d of %d images already", out, (rows >= 0).sum(), len(rows))
                grown = screen if parts is not None else take_held(screen, out, rows)
                _write(grown, files, plan, out, workers, on_bad_image, parts)
            elif changed is not None:
                _write(changed, files, _make_plan(changed, files), out, workers, on_bad_image, parts)
            elif out.exists():
                _update(screen, plan, out, same=rows is not None)
            else:
                _write(screen, files, plan, out, workers, on_bad_image, parts)
    return out


def _check_free(out: Path) -> None:
    """Refuse a place where something else is than a store."""
    if os.path.lexists(out) and not (out / ABOUT).exists():
        raise DataError(f"'{out}' is there already, and is not a packed store: choose another place", "store")


def check_store(screen: Screen, out: Path) -> Screen:
    """Make sure that :func:`pack` will not refuse the store that is there, before parts of the screen are packed.

    Returns:
        The screen as it is to be packed: out of its files, where those have changed since it was.

    Raises:
        DataError: ``out`` is something else, or holds other images.
    """
    _check_free(out)
    if not out.exists():
        return screen
    files = _files(screen)
    changed = _changed(screen, files, out)
    if changed is None:
        _check_same(Store.read(out), _make_plan(screen, files), out)
    return changed or screen


def take_held(screen: Screen, store: Path, rows: np.ndarray) -> Screen:
    """The screen with those images out of a store that this holds, see ``held`` of :func:`pack`."""
    return replace(screen, pixels=_Grown(screen.pixels, open_packed(store), rows))


@dataclass(frozen=True)
class _Grown:
    """Images some of which a store holds already; implements :class:`biomass.screen.Pixels`."""

    pixels: Pixels
    store: PackedPixels
    rows: np.ndarray
    """(N,) int64, where in the store an image is; -1 where it is to be read."""

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self.pixels.channels)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.size

    def read(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        places = self.rows[rows]
        copied = (places >= 0) & ~np.isin(places, self.store._bad_rows)  # what could not be read is tried again
        if not copied.any():
            return self.pixels.read(rows)
        kept = self.store.read(places[copied])
        if copied.all():
            return kept
        images = np.empty((len(rows), *kept.shape[1:]), kept.dtype)
        images[copied], images[~copied] = kept, self.pixels.read(rows[~copied])
        return images

    def name(self, row: int) -> str:
        return self.pixels.name(row)

    def stamps(self) -> Stamps:
        return stamps_of(self.pixels, len(self.rows))


@dataclass(frozen=True)
class _Plan:
    """What is to be written."""

    images: int
    shape: tuple[int, int, int]
    dtype: np.dtype
    fingerprint: str  # of all this and of the files' names: whether what an earlier call began is the same
    block: int  # images

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def header(self) -> dict[str, Any]:
        """First line of the journal."""
        return {"fingerprint": self.fingerprint, "block": self.block}

    @property
    def blocks(self) -> range:
        return range(-(-self.images // self.block))

    def rows(self, block: int) -> np.ndarray:
        return np.arange(block * self.block, min((block + 1) * self.block, self.images))


def _files(screen: Screen) -> Any:
    """Arrow array (N,) of the names of the images' files, relative to their source if they are files."""
    if isinstance(screen.pixels, FilePixels):
        return join_files(screen.pixels.files)
    if isinstance(screen.pixels, PackedPixels):
        return screen.pixels.files()
    return pa.array((screen.pixels.name(row) for row in range(len(screen))), pa.large_string(), size=len(screen))


def _reading(pixels: Pixels) -> Reading:
    """How files became these images."""
    if isinstance(pixels, FilePixels):
        return pixels.reading
    return reading_of(Store.read(pixels.path).origin) if isinstance(pixels, PackedPixels) else Reading()


def _make_plan(screen: Screen, files: Any, like: Screen | None = None) -> _Plan:
    example = example_of(like or screen)
    _, c, h, w = example.shape
    if example.dtype.str not in TYPES:
        raise DataError(f"images of type {example.dtype} cannot be packed: make them uint8, uint16 or float32")
    digest = hashlib.sha256(repr([example.shape[1:], example.dtype.str, list(screen.pixels.channels)]).encode())
    if (reading := _reading(screen.pixels)) != Reading():
        digest.update(repr(reading).encode())
    for start in range(0, len(files), 1 << 16):
        digest.update("\0".join(files[start : start + (1 << 16)].to_pylist()).encode())
    block = max(1, BLOCK_BYTES // example.nbytes)
    return _Plan(len(screen), (c, h, w), example.dtype, digest.hexdigest(), block)


def example_of(screen: Screen) -> np.ndarray:
    """The first image that can be read, (1, C, H, W)."""
    first: BadImageError | None = None
    # All over the screen: the cells of a field that is bad are hundreds of bad images in a row.
    for row in np.unique(np.linspace(0, len(screen) - 1, min(len(screen), _TRIES)).astype(np.int64)):
        try:
            return screen.pixels.read(np.array([row]))
        except BadImageError as error:
            first = first or error
    if first is None:
        raise DataError("the screen has no images to pack")
    raise none_readable(first)


def _changed(screen: Screen, files: Any, out: Path) -> Screen | None:
    """The screen as its files are now, if they are those of the store ``out`` but have changed since; else None."""
    packed, pixels = open_packed(out), screen.pixels
    origin, stored = Store.read(out).origin, packed.files().cast(pa.large_string())
    if origin is None or not stored.equals(files.cast(pa.large_string())):
        return None
    root: Path | None
    if isinstance(pixels, FilePixels):
        root, columns = pixels.root, pixels.files
    elif isinstance(pixels, PackedPixels) and pixels.path.resolve() == out.resolve():  # the reader has found this store
        root, columns = find_root(out, origin), split_files(stored)
    else:
        return None
    if root is None:
        return None
    rows = np.flatnonzero(stamp_files(root, columns).changed_since(read_stamps(out, len(stored))))
    if len(rows):
        message = "'%s' is packed again: %d of %d images have changed, such as '%s'"
        log.info(message, out, len(rows), len(stored), packed.name(int(rows[0])))
    elif (other := find_changed_file(out, origin)) is not None:
        log.info("'%s' is packed again: '%s' holds other bytes, although size and time are the same", out, other)
    else:
        return None
    if isinstance(pixels, PackedPixels):
        return replace(screen, pixels=open_files(root, columns, pixels.channels, origin["axes"], reading_of(origin)))
    return screen


def _check_same(store: Store, plan: _Plan, out: Path) -> None:
    """Refuse a store of other images."""
    if store.fingerprint != plan.fingerprint:
        raise DataError(f"'{out}' is a store of other images: delete it, or choose another place", "store")


def _update(screen: Screen, plan: _Plan, out: Path, same: bool = False) -> None:
    """Bring the table and the classes of a store that is there up to date; ``same``: its images are known to be."""
    store = Store.read(out)
    if not same:
        _check_same(store, plan, out)
    if not read_index(out).equals(screen.table):
        with whole_file(out / INDEX) as part:
            _write_table(pa.Table.from_pandas(screen.table, preserve_index=False), part, store)
    if store.classes != screen.classes:
        with whole_file(out / ABOUT) as part:
            part.write_text(replace(store, classes=screen.classes).to_json())
    log.info("'%s' holds these images already", out)


class _Block(NamedTuple):
    """A block that was read, as the journal lists it."""

    number: int
    crc32: int | None  # None: it was not written
    bad: dict[int, str]  # row -> why its image cannot be read


def _write(
    screen: Screen,
    files: Any,
    plan: _Plan,
    out: Path,
    workers: int | None,
    on_bad_image: OnBadImage,
    parts: Sequence[Part] | None = None,
) -> None:
    """Write a store from the beginning, or from where an earlier call was stopped."""
    part = out.with_name(f"{out.name}.part")
    stamps, origin = _look_at_files(screen, out)
    if parts is not None:
        merged = merge_parts(parts, screen.pixels.channels, plan.shape, plan.dtype, files, stamps)
        screen = replace(screen, pixels=merged)
    finished = _take_up(part, plan)
    if finished is not None:
        finished, stamps = _without_changed(finished, stamps, part, plan)
    table = pa.table({"file": files, "bytes": stamps.sizes, "changed": stamps.times})
    if finished is None:
        _begin(part, plan, screen, table)
        finished = {}
    if on_bad_image == "error":
        finished = {number: block for number, block in finished.items() if not block.bad}  # they may have been mended
    with writing(part, "store"):  # it is named because it stays, and the next call goes on with it
        with whole_file(part / FILES) as file:
            _write_table(table, file)
        _write_blocks(screen, plan, part, finished, workers, on_bad_image)
        _write_tables(screen, plan, part, finished, origin)
        table = table.append_column(CRC32, pa.array(verify(part)))
        with whole_file(part / FILES) as file:
            _write_table(table, file, Store.read(part))
        _put_in_place(part, out)


def _write_table(table: pa.Table, file: Path, store: Store | None = None) -> None:
    """Write a table of a store, with checksums, and which store it belongs to."""
    if store is not None:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), BELONGS: store.belongs})
    pq.write_table(table, file, row_group_size=_PART, compression="zstd", write_page_checksum=True)


def _look_at_files(screen: Screen, out: Path) -> tuple[Stamps, dict[str, Any] | None]:
    """Sizes and times of the files before they are read, and what the store keeps of them, if images are files."""
    pixels = screen.pixels
    if not isinstance(pixels, FilePixels):
        return stamps_of(pixels, len(screen)), None
    return stamps_of(pixels, len(screen)), describe_origin(out, pixels)


def stamps_of(pixels: Pixels, n: int) -> Stamps:
    """What tells whether the files of n images have changed; unknown where they are not files."""
    if isinstance(pixels, FilePixels):
        return stamp_files(pixels.root, pixels.files)
    return pixels.stamps() if isinstance(pixels, Stamped) else Stamps.unknown(n)


def _begin(part: Path, plan: _Plan, screen: Screen, files: pa.Table) -> None:
    """Write the tables, reserve the space, open the journal; the last at last: a folder without one is begun again.

    So a store that does not fit on the disk is known now, and nothing of it is left.
    """
    remove(part)
    part.mkdir()
    try:
        pq.write_table(files, part / FILES, compression="zstd")
        screen.table.to_parquet(part / INDEX, compression="zstd", index=False)
        np.lib.format.open_memmap(part / IMAGES, "w+", plan.dtype, (plan.images, *plan.shape))
        for name, size in ((IMAGES, (part / IMAGES).stat().st_size), (_ROOM, _OTHERS + _LINE * len(plan.blocks))):
            with (part / name).open("ab") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
        (part / _ROOM).unlink()
        (part / _JOURNAL).write_text(json.dumps(plan.header) + "\n")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _take_up(part: Path, plan: _Plan) -> dict[int, _Block] | None:
    """The blocks that an earlier call finished, by number; None where there is none, or it packed something else."""
    try:
        header, *lines = (part / _JOURNAL).read_text().splitlines()
        if json.loads(header) != plan.header:
            return None
        start = read_npy_header(part / IMAGES)[1]
        values = np.memmap(part / IMAGES, np.uint8, "r", start, (plan.images, plan.image_bytes))
    except (OSError, ValueError):
        return None
    finished = {}
    for line in tqdm(lines, printable(f"Checking {part.name}"), unit="block", disable=None):
        try:
            number, crc32, bad = json.loads(line)
        except ValueError:
            continue  # empty, or being written when the call was stopped
        rows = plan.rows(number)
        if zlib.crc32(values[rows[0] : rows[-1] + 1].data) == crc32:
            finished[number] = _Block(number, crc32, {int(row): why for row, why in bad.items()})
    return finished


def _without_changed(
    finished: dict[int, _Block], now: Stamps, part: Path, plan: _Plan
) -> tuple[dict[int, _Block], Stamps]:
    """The finished blocks whose files are still what they were when they were read, and what to note of all files."""
    before = read_stamps(part, plan.images)
    changed = set((np.flatnonzero(now.changed_since(before)) // plan.block).tolist())
    gone = now.times < 0  # those in finished blocks are not needed again: what was noted of them stays
    stamps = Stamps(np.where(gone, before.sizes, now.sizes), np.where(gone, before.times, now.times))
    return {number: block for number, block in finished.items() if number not in changed}, stamps


def _write_blocks(
    screen: Screen, plan: _Plan, part: Path, finished: dict[int, _Block], workers: int | None, on_bad_image: OnBadImage
) -> None:
    """Read and write the blocks that are not finished, and add them to the journal and to ``finished``.

    A block is written before its line. So a line never promises more than was written, unless the machine fails, which
    :func:`_take_up` finds out.
    """
    writer = _BlockWriter(screen.pixels, part / IMAGES, read_npy_header(part / IMAGES)[1], plan, on_bad_image)
    todo = [number for number in plan.blocks if number not in finished]
    bad: dict[int, str] = {}
    bar = tqdm(desc=printable(f"Packing {part.stem}"), total=plan.images, unit="image", disable=None)
    done = plan.images - sum(len(plan.rows(number)) for number in todo)
    bar.update(done)
    with bar, open(part / _JOURNAL, "a", opener=no_link) as journal, as_they_end(writer, todo, workers) as blocks:
        journal.write("\n")  # ends the line that was being written when an earlier call was stopped
        tenth = done * 10 // plan.images
        for block in blocks:
            bar.update(len(plan.rows(block.number)))
            done += len(plan.rows(block.number))
            if bar.disable and done * 10 // plan.images > tenth:
                tenth = done * 10 // plan.images
                log.info("packing '%s': %d of %d images", part.stem, done, plan.images)
            bad |= block.bad
            if block.crc32 is not None:
                finished[block.number] = block
                journal.write(json.dumps(block) + "\n")
                journal.flush()
    if bad and on_bad_image == "error":
        more = f" ({len(bad)} images cannot be read)" if len(bad) > 1 else ""
        raise BadImageError(f"{bad[min(bad)]}{more}; pack again to go on", min(bad))


def _write_tables(
    screen: Screen, plan: _Plan, part: Path, finished: dict[int, _Block], origin: dict[str, Any] | None
) -> None:
    """Write what is known when all blocks are finished, and see to it that everything is on the disk."""
    blocks = [finished[number] for number in plan.blocks]
    bad = {row: why for block in blocks for row, why in block.bad.items()}
    if bad:
        log.warning("%d images cannot be read; the first: %s", len(bad), bad[min(bad)])
    channels, checksums = tuple(screen.pixels.channels), tuple(b.crc32 for b in blocks if b.crc32 is not None)
    layout = plan.images, plan.shape, plan.dtype.str, channels, screen.classes
    store = Store(*layout, plan.fingerprint, plan.block, checksums, bad, origin)
    _write_table(pa.Table.from_pandas(screen.table, preserve_index=False), part / INDEX, store)
    (part / ABOUT).write_text(store.to_json())
    for name in (IMAGES, FILES, INDEX, ABOUT):
        with (part / name).open("rb") as file:
            os.fsync(file.fileno())


def _put_in_place(part: Path, out: Path) -> None:
    """Give a complete store its name; one that has it already goes. Until then the journal stays, to go on with."""
    old = out.with_name(f"{out.name}.old")
    remove(old)
    if out.exists():
        out.rename(old)
    try:
        part.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    (out / _JOURNAL).unlink()
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class _BlockWriter:
    """Reads a block of images and writes it to its place; runs in the worker processes."""

    pixels: Pixels
    file: Path
    offset: int
    plan: _Plan
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> _Block:
        rows = self.plan.rows(number)
        images, bad = self._read(rows)
        if bad and self.on_bad_image == "error":
            return _Block(number, None, bad)
        data = np.ascontiguousarray(images, self.plan.dtype).reshape(-1).view(np.uint8).data
        with open(self.file, "r+b", opener=no_link) as file:
            file.seek(self.offset + int(rows[0]) * self.plan.image_bytes)
            file.write(data)
        return _Block(number, zlib.crc32(data), bad)

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """The images of a block, and which of them are bad: zeros stand for these."""
        try:
            return self.pixels.read(rows), {}
        except BadImageError:  # go through them one by one
            images, bad = np.zeros((len(rows), *self.plan.shape), self.plan.dtype), {}
        except OSError as error:  # not one of the disk that we write to
            raise DataError(f"images {rows[0]} to {rows[-1]} cannot be read ({one_line(error)})") from error
        for image, row in zip(images, rows, strict=True):
            try:
                image[...] = self.pixels.read(np.array([row]))[0]
            except BadImageError as error:
                bad[int(row)] = str(error)
        return images, bad
