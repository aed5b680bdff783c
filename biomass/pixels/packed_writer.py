"""Writing a packed store (see :mod:`biomass.pixels.packed`): resumable, checked, all or nothing."""

import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from biomass.errors import BadImageError, ConfigError, DataError
from biomass.pixels.files import SKIP_ADVICE, FilePixels, open_files, without_skip_advice
from biomass.pixels.packed import (
    ABOUT,
    FILES,
    IMAGES,
    INDEX,
    PackedPixels,
    Store,
    describe_source,
    join_files,
    open_packed,
    read_index,
    source_root,
    split_files,
    stamps,
    verify,
)
from biomass.screen import Pixels, Screen

BLOCK_BYTES = 16 << 20
"""What is read, written and checked at a time."""

_JOURNAL = "journal.jsonl"
_TRIES = 100  # images that may be bad before nobody can say what a good one looks like

log = logging.getLogger(__name__)


class _Done(NamedTuple):
    """A block that was read: its checksum if it was written, and why some of its images could not be read."""

    block: int
    crc32: int | None
    bad: dict[int, str]


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

    def rows(self, block: int) -> np.ndarray:
        return np.arange(block * self.block, min((block + 1) * self.block, self.images))


@dataclass(frozen=True)
class _BlockWriter:
    """Reads a block of images and writes it to its place; runs in the worker processes."""

    pixels: Pixels
    file: Path
    offset: int
    plan: _Plan
    skip_bad: bool

    def __call__(self, block: int) -> _Done:
        rows = self.plan.rows(block)
        bad: dict[int, str] = {}
        try:
            images = self.pixels.read(rows)
        except BadImageError:
            images = np.zeros((len(rows), *self.plan.shape), self.plan.dtype)
            for image, row in zip(images, rows, strict=True):
                try:
                    image[...] = self.pixels.read(np.array([row]))[0]
                except BadImageError as error:
                    bad[int(row)] = str(error)
        if bad and not self.skip_bad:
            return _Done(block, None, bad)
        data = np.ascontiguousarray(images, self.plan.dtype).reshape(-1).view(np.uint8).data
        with self.file.open("r+b") as file:
            file.seek(self.offset + int(rows[0]) * self.plan.image_bytes)
            file.write(data)
        return _Done(block, zlib.crc32(data), bad)


_writer: _BlockWriter | None = None  # of this worker process: sent to it once, not with every block


def _start_worker(writer: _BlockWriter) -> None:
    global _writer
    _writer = writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets us finish our block
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _write_block(block: int) -> _Done:
    assert _writer is not None
    return _writer(block)


def pack(screen: Screen, out: str | Path, *, workers: int | None = None, on_bad_image: str = "error") -> Path:
    """Write all images of a screen, bit for bit, and its table to a packed store.

    What is written waits in ``<out>.part``, with a journal of the blocks that are finished; the next call takes up
    those that still have the checksum of the journal. ``out`` appears when it is complete and checked, and not before.
    If it is there already, with the same images, only its table and classes are brought up to date; if their files have
    changed since (in size or time), they are packed anew.

    Args:
        screen: any screen, of cells or fields of view.
        out: the store's folder.
        workers: processes that read; as many as there are cores if left out; with 0 or 1, this one reads.
        on_bad_image: ``error``, when all others are packed, or ``skip``: remember why the image cannot be read, so
            that reading it from the store is the same error as reading it from its file.

    Returns:
        The store's folder.

    Raises:
        BadImageError: images cannot be read; names the first.
        DataError: ``out`` cannot be written, does not fit on the disk, or holds other images.
    """
    if on_bad_image not in ("error", "skip"):
        raise ConfigError(f"on_bad_image '{on_bad_image}' is unknown; choose error or skip")
    out = Path(out)
    files = _files(screen)
    plan = _make_plan(screen, files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock")):  # let go of by the system if this process is killed
            changed = _changed(screen, files, out) if out.exists() else None
            if out.exists() and changed is None:
                _update(screen, plan, out)
            else:
                if changed is not None:
                    screen, plan = changed, _make_plan(changed, files)
                part = out.with_name(out.name + ".part")
                _write(screen, files, plan, part, workers, on_bad_image)
                verify(part)
                (part / _JOURNAL).unlink()
                _put_in_place(part, out)
    except OSError as error:
        needed = plan.images * plan.image_bytes / 2**30
        raise DataError(
            f"cannot write '{out}' ({error.strerror or error}): it takes {needed:.1f} GiB; make room, or "
            "choose another place"
        ) from error
    return out


def _files(screen: Screen) -> Any:
    """Arrow array (N,) of the names of the images' files, relative to their source if they are files."""
    if isinstance(screen.pixels, FilePixels):
        return join_files(screen.pixels.files)
    if isinstance(screen.pixels, PackedPixels):
        return screen.pixels.files()
    return pa.array((screen.pixels.name(row) for row in range(len(screen))), pa.large_string(), size=len(screen))


def _make_plan(screen: Screen, files: Any) -> _Plan:
    example = _example(screen)
    _, c, h, w = example.shape
    digest = hashlib.sha256(repr([example.shape[1:], example.dtype.str, list(screen.pixels.channels)]).encode())
    for start in range(0, len(files), 1 << 16):
        digest.update("\0".join(files[start : start + (1 << 16)].to_pylist()).encode())
    block = max(1, BLOCK_BYTES // example.nbytes)
    return _Plan(len(screen), (c, h, w), example.dtype, digest.hexdigest(), block)


def _example(screen: Screen) -> np.ndarray:
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
    raise without_skip_advice(first)


def _changed(screen: Screen, files: Any, out: Path) -> Screen | None:
    """The screen as its files are now, if they are those of the store ``out`` but have changed since; else None."""
    packed, pixels = open_packed(out), screen.pixels
    source, stored = Store.read(out).source, packed.files().cast(pa.large_string())
    if source is None or not stored.equals(files.cast(pa.large_string())):
        return None
    root: Path | None
    if isinstance(pixels, FilePixels):
        root, columns = pixels.root, pixels.files
    elif isinstance(pixels, PackedPixels) and pixels.path.resolve() == out.resolve():  # the reader has found this store
        root, columns = source_root(out, source), split_files(stored)
    else:
        return None
    if root is None:
        return None
    rows = np.flatnonzero(_differ(stamps(root, columns), _read_stamps(out / FILES, np.full(len(stored), -1))))
    if not len(rows):
        return None
    log.info(
        "'%s' is packed anew: %d of %d images have changed, such as '%s'",
        out,
        len(rows),
        len(stored),
        packed.name(int(rows[0])),
    )
    if isinstance(pixels, PackedPixels):
        return replace(screen, pixels=open_files(root, columns, pixels.channels, source["axes"]))
    return screen


def _differ(now: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which files have another size or time; one that is not there, now or before, has not changed."""
    there = (now[1] >= 0) & (before[1] >= 0)
    return there & ((now[0] != before[0]) | (now[1] != before[1]))


def _put_in_place(part: Path, out: Path) -> None:
    """Give a complete store its name; one that has it already goes."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _update(screen: Screen, plan: _Plan, out: Path) -> None:
    """Bring the table and the classes of a store that is there up to date."""
    store = Store.read(out)
    if store.fingerprint != plan.fingerprint:
        raise DataError(f"'{out}' is a store of other images: delete it, or choose another place")
    if not read_index(out).equals(screen.table):
        screen.table.to_parquet(out / f"{INDEX}.part", compression="zstd", index=False)
        (out / f"{INDEX}.part").replace(out / INDEX)
    if store.classes != screen.classes:
        (out / f"{ABOUT}.part").write_text(replace(store, classes=screen.classes).to_json())
        (out / f"{ABOUT}.part").replace(out / ABOUT)
    log.info("'%s' holds these images already", out)


def _write(screen: Screen, files: Any, plan: _Plan, part: Path, workers: int | None, on_bad_image: str) -> None:
    """Write a store to the folder ``part``, taking up what an earlier call has written there."""
    done = _take_up(part, plan)
    unknown = np.full(plan.images, -1, np.int64)
    pixels, sizes, times = screen.pixels, unknown, unknown
    source = None
    if isinstance(pixels, FilePixels):  # as they are before they are read
        sizes, times = stamps(pixels.root, pixels.files)
        source = describe_source(part, pixels.root, pixels.files, pixels.axes)
    if done is None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _allocate(part / IMAGES, plan)
        (part / _JOURNAL).write_text(json.dumps(plan.header) + "\n")
        done = {}
    elif done:
        before = _read_stamps(part / FILES, unknown)
        changed = set((np.flatnonzero(_differ((sizes, times), before)) // plan.block).tolist())
        done = {block: entry for block, entry in done.items() if block not in changed}
        gone = times < 0
        sizes, times = np.where(gone, before[0], sizes), np.where(gone, before[1], times)
    pq.write_table(pa.table({"file": files, "bytes": sizes, "changed": times}), part / FILES, compression="zstd")
    if on_bad_image == "error":
        done = {block: entry for block, entry in done.items() if not entry.bad}  # they may have been mended
    writer = _BlockWriter(screen.pixels, part / IMAGES, _offset(part / IMAGES), plan, on_bad_image == "skip")
    todo = [block for block in range(-(-plan.images // plan.block)) if block not in done]
    bad: dict[int, str] = {}
    bar = tqdm(desc=f"Packing {part.stem}", total=plan.images, unit="image", disable=None)
    bar.update(plan.images - sum(len(plan.rows(block)) for block in todo))
    with bar, (part / _JOURNAL).open("a") as journal, _finished(writer, todo, workers) as results:
        for entry in results:
            bar.update(len(plan.rows(entry.block)))
            bad |= entry.bad
            if entry.crc32 is not None:
                done[entry.block] = entry
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
    if bad and on_bad_image == "error":
        more = f" ({len(bad)} images cannot be read)" if len(bad) > 1 else ""
        why = bad[min(bad)].replace(SKIP_ADVICE, "")
        raise BadImageError(f"{why}{more}; pack again to go on{SKIP_ADVICE}", min(bad))
    entries = [done[block] for block in range(len(done))]
    all_bad = {row: why for entry in entries for row, why in entry.bad.items()}
    if all_bad:
        log.warning(
            "%d images cannot be read; the first: %s", len(all_bad), all_bad[min(all_bad)].replace(SKIP_ADVICE, "")
        )
    screen.table.to_parquet(part / INDEX, compression="zstd", index=False)
    store = Store(
        plan.images,
        plan.shape,
        plan.dtype.str,
        tuple(screen.pixels.channels),
        screen.classes,
        plan.fingerprint,
        plan.block,
        tuple(entry.crc32 for entry in entries if entry.crc32 is not None),
        all_bad,
        source,
    )
    (part / ABOUT).write_text(store.to_json())
    for name in (IMAGES, FILES, INDEX, ABOUT):  # on the disk before the folder gets its name
        with (part / name).open("rb") as file:
            os.fsync(file.fileno())


def _read_stamps(file: Path, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and times of the files, (N,) each, when an earlier call began; unknown if it does not say."""
    try:
        table = pq.read_table(file, columns=["bytes", "changed"])
    except (OSError, pa.ArrowException):
        return unknown, unknown
    return table["bytes"].to_numpy(), table["changed"].to_numpy()


@contextmanager
def _finished(writer: _BlockWriter, blocks: Sequence[int], workers: int | None) -> Iterator[Iterator[_Done]]:
    """The blocks as they are finished, in any order."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(workers, len(blocks))
    if count < 2:
        yield map(writer, blocks)
        return
    with ProcessPoolExecutor(count, initializer=_start_worker, initargs=(writer,)) as pool:
        try:
            jobs = [pool.submit(_write_block, block) for block in blocks]
            yield (job.result() for job in as_completed(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _take_up(part: Path, plan: _Plan) -> dict[int, _Done] | None:
    """The blocks that an earlier call wrote, as far as they are what it wrote; None if it packed something else."""
    try:
        header, *lines = (part / _JOURNAL).read_text().splitlines()
        if json.loads(header) != plan.header:
            return None
        values = np.memmap(part / IMAGES, np.uint8, "r", _offset(part / IMAGES), (plan.images, plan.image_bytes))
    except (OSError, ValueError):
        return None
    done = {}
    for line in tqdm(lines, f"Checking {part.name}", unit="block", disable=None):
        try:
            block, crc32, bad = json.loads(line)
        except ValueError:
            continue  # the line that was being written when it was stopped
        rows = plan.rows(block)
        if zlib.crc32(values[rows[0] : rows[-1] + 1].data) == crc32:
            done[block] = _Done(block, crc32, {int(row): why for row, why in bad.items()})
    return done


def _allocate(file: Path, plan: _Plan) -> None:
    """Create the array with all its space on the disk, so that a full disk shows now and not after hours."""
    np.lib.format.open_memmap(file, "w+", plan.dtype, (plan.images, *plan.shape))
    if hasattr(os, "posix_fallocate"):
        try:
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError:
            file.unlink()
            raise


def _offset(file: Path) -> int:
    """Where the first value of an ``.npy`` file stands, bytes."""
    with file.open("rb") as opened:
        np.lib.format.read_magic(opened)
        np.lib.format.read_array_header_1_0(opened)
        return opened.tell()
