"""Batches of raw integer images on their way from a Screen to the device."""

import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from biomass import stopping
from biomass.atomic import whole_file
from biomass.errors import BadImageError, BiomassError, ConfigError, DataError, one_line, printable
from biomass.vocabulary import OnBadImage, check_on_bad_image

if TYPE_CHECKING:
    from biomass.screen import Pixels, Screen

_UPLOAD = 4096  # images that are read and uploaded at once

_PATIENCE = 1800
"""Seconds after which a process that reads batches counts as stuck, as on a disk that does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """N images and what is known about them. Rows, groups, controls and skipped rows always stay on the host.

    Attributes:
        images: (N, C, H, W), as they are stored: integers stay integers until they are on the device. Vectors, where a
            screen has them in place of images (see :class:`biomass.screen.Pixels`): (N, D).
        labels: (N,) int64, -1 where unknown.
        rows: (N,) int64, the rows of the screen.
        groups: (N,) int64, the plates (or whatever the statistics are taken over).
        instances: (N,) int64, the field of view or well that a cell belongs to: rows with the same number are views
            of one thing.
        controls: (N,) int8, what every row is a control of, as :attr:`biomass.screen.Screen.controls`.
        skipped: (M,) int64, rows left out because their image could not be read.
        why: (M,) what was wrong with each, see :data:`biomass.errors.BAD_IMAGES`.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    groups: Tensor
    instances: Tensor
    controls: Tensor
    skipped: Tensor
    why: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader if transfers to the device are not to block."""
        pinned = (x.pin_memory() for x in (self.images, self.labels, self.instances))
        images, labels, instances = pinned
        return replace(self, images=images, labels=labels, instances=instances)

    def to(self, device: torch.device, integers: bool = False) -> "Batch":
        """Images, labels and instances on the device.

        Args:
            device: where to.
            integers: leave images of integers as they are, for :class:`biomass.transforms.Compose`, which makes
                float32 of a few at a time. Else images become float32.
        """
        images, labels, instances = _upload((self.images, self.labels, self.instances), device)
        if not integers or images.is_floating_point():
            images = images.to(torch.float32)
        return replace(self, images=images, labels=labels, instances=instances)


def _upload(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on a device. A GPU copies them beside what it still has to do, not behind it."""
    if device.type != "cuda":
        return [one.to(device) for one in tensors]
    beside, now = _beside(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        moved = [one.to(device, non_blocking=True) for one in tensors]
    now.wait_stream(beside)
    for before, after in zip(tensors, moved, strict=True):
        if after is not before:
            after.record_stream(now)  # else its memory would be given to the next upload too early
    return moved


@lru_cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class BatchReader(Dataset[Batch | BiomassError]):
    """Reads the batch whose rows a sampler names: ``reader[rows]``.

    A :class:`BiomassError` is returned, not raised: from a worker process it would arrive as a traceback. An image that
    was skipped once is not tried again.

    Args:
        screen: labels, controls and pixels.
        groups: (rows of the screen,) what statistics are taken over.
        on_bad_image: ``error``, or ``skip`` to leave unreadable images out of their batch.
        instances: (rows of the screen,) what each row is a view of; None: every row of itself.
    """

    def __init__(
        self,
        screen: "Screen",
        groups: np.ndarray,
        on_bad_image: OnBadImage = "error",
        instances: np.ndarray | None = None,
    ) -> None:
        check_on_bad_image(on_bad_image)
        self.pixels: Pixels | ResidentPixels = screen.pixels
        self.labels = screen.labels
        self.controls = screen.controls
        self.groups = groups
        self.instances = np.arange(len(screen)) if instances is None else instances
        self.on_bad_image = on_bad_image
        self._bad: dict[int, str] = {}

    def __getitem__(self, rows: np.ndarray) -> Batch | BiomassError:
        asked = rows
        try:
            rows, images = self._read_good(rows[~self._is_bad(rows)])
        except BiomassError as error:
            return error
        return Batch(
            images=torch.as_tensor(images),
            labels=torch.from_numpy(self.labels[rows]),
            rows=torch.from_numpy(rows),
            groups=torch.from_numpy(self.groups[rows]),
            instances=torch.from_numpy(self.instances[rows]),
            controls=torch.from_numpy(self.controls[rows]),
            skipped=torch.from_numpy(skipped := np.unique(asked[self._is_bad(asked)])),
            why=tuple(self._bad[row] for row in skipped.tolist()),
        )

    def hold(self, rows: np.ndarray, device: torch.device) -> None:
        """Read the images of ``rows`` (n,) now, and take them from the memory of ``device`` from then on.

        Raises:
            BiomassError: an image cannot be read.
            ConfigError: they do not fit into the device's memory.
        """
        self.pixels = ResidentPixels(self, rows, device)

    def _is_bad(self, rows: np.ndarray) -> np.ndarray:
        return np.isin(rows, list(self._bad)) if self._bad else np.zeros(len(rows), bool)

    def _read_good(self, rows: np.ndarray) -> tuple[np.ndarray, Any]:
        """The rows that can be read, and their images. Bad ones are found by halving the batch, and remembered."""
        try:
            return rows, self._read(rows)
        except BadImageError as error:
            if self.on_bad_image == "error":
                raise
            if len(rows) == 1:
                self._bad[error.row] = error.kind
                return rows[:0], self._read(rows[:0])
        halves = [self._read_good(half) for half in np.array_split(rows, 2)]
        good = [half for half in halves if len(half[0])] or halves[:1]
        images = torch.cat([torch.as_tensor(images) for _, images in good])
        return np.concatenate([half for half, _ in good]), images

    def _read(self, rows: np.ndarray) -> Any:
        """The images of the rows: an array, or a tensor where they are on a device."""
        if isinstance(self.pixels, ResidentPixels):
            return self.pixels.read(rows)
        if len(rows):
            once, where = np.unique(rows, return_inverse=True)  # a cell with several views is read once
            return self.pixels.read(once)[where] if len(once) < len(rows) else self.pixels.read(rows)
        return np.empty((0, len(self.pixels.channels), *self.pixels.size), np.uint8)


class ResidentPixels:
    """The images of some rows of a screen in the memory of a device.

    Batches are gathered on the device: no image is read from a file, copied between processes or uploaded in a step.
    A loader of them has no worker processes.

    Args:
        reader: reads the images, once; those that cannot be read are missing here, too.
        rows: (n,) the rows to hold.
        device: where to.

    Raises:
        BiomassError: as the reader.
        ConfigError: they do not fit into the device's memory.
    """

    def __init__(self, reader: BatchReader, rows: np.ndarray, device: torch.device) -> None:
        pixels = reader.pixels
        self.channels: tuple[str, ...] = pixels.channels
        self.size: tuple[int, int] = pixels.size
        self.name: Callable[[int], str] = pixels.name
        self.place = np.full(len(reader.labels), -1, np.int64)
        self.images: Tensor | None = None
        held = 0
        for part in np.array_split(rows, -(-len(rows) // _UPLOAD)):
            batch = reader[part]
            if isinstance(batch, BiomassError):
                raise batch
            if not len(batch):  # nothing of it can be read, so that it does not tell the type of images either
                continue
            if self.images is None:
                self.images = _allocate(batch.images, len(rows), device)
            self.images[held : held + len(batch)] = batch.images.to(device)
            self.place[batch.rows.numpy()] = np.arange(held, held + len(batch))
            held += len(batch)

    def read(self, rows: np.ndarray) -> Tensor:
        """The images of ``rows`` (N,): (N, C, H, W) on the device, in the source's own type.

        Raises:
            BadImageError: an image could not be read.
        """
        place = self.place[rows]
        if (place < 0).any():
            row = int(rows[np.argmax(place < 0)])
            raise BadImageError(f"image '{self.name(row)}' could not be read", row, "skip")
        assert self.images is not None
        index = torch.from_numpy(place)
        if self.images.is_cuda:
            index = index.pin_memory().to(self.images.device, non_blocking=True)
        same_width = {torch.uint16: torch.int16}.get(self.images.dtype, self.images.dtype)  # few operators take uint16
        return self.images.view(same_width).index_select(0, index).view(self.images.dtype)


def _allocate(like: Tensor, rows: int, device: torch.device) -> Tensor:
    try:
        return torch.empty(rows, *like.shape[1:], dtype=like.dtype, device=device)
    except torch.OutOfMemoryError as error:
        need = rows * like[0].numel() * like.element_size() / 2**30
        raise ConfigError(
            f"{rows} images take {need:.1f} GiB, which the memory of '{device}' does not have", "resident"
        ) from error


class BatchSource(Protocol):
    """A batch sampler: arrays of rows, an epoch at a time."""

    @property
    def served(self) -> np.ndarray:
        """The rows of the screen that its batches are made of."""

    @property
    def num_batches(self) -> int:
        """How many batches an epoch of all processes has, each counted once."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and its first batch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...


class Loader:
    """Yields one :class:`Batch` for every array of rows that ``batches`` yields, in that order.

    Args:
        reader: reads the rows.
        batches: a batch sampler; every pass iterates over it again.
        num_workers: processes that read ahead, started at the first pass and kept for the next; 0 reads in this one.
        pin_memory: page-locked memory, so that transfers to the device do not block.
    """

    def __init__(
        self, reader: BatchReader, batches: BatchSource, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.batches = batches
        self._reader = reader
        self._loader = self._make(num_workers, pin_memory)

    def _make(self, num_workers: int, pin_memory: bool) -> DataLoader[Any]:
        return DataLoader(
            self._reader,
            sampler=self.batches,
            batch_size=None,  # the sampler's items already are batches
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            timeout=_PATIENCE if num_workers else 0,
            worker_init_fn=stopping.in_reader,
            generator=torch.Generator(),  # its own: what networks draw does not depend on how often it is asked
        )

    def hold(self, device: torch.device) -> None:
        """Read all images that batches are made of now, and take them from the memory of ``device`` from then on.

        The reader must be this loader's own: it reads no other images any more.

        Raises:
            BiomassError: an image cannot be read.
            ConfigError: they do not fit into the device's memory.
        """
        rows, _ = np.unique(self.batches.served, return_index=True)  # without an index it is far slower for many
        self._reader.hold(rows, device)
        self._loader = self._make(0, False)

    @property
    def pixels(self) -> "Pixels | ResidentPixels":
        """Where images are read from."""
        return self._reader.pixels

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches: Iterator[Any] | None = None
        while True:
            try:
                if batches is None:  # from the second time on it waits for all processes
                    batches = self._waiting(lambda: iter(self._loader))
                    if self._loader.num_workers and threading.current_thread() is threading.main_thread():
                        _Ended.watch()
                item = self._waiting(partial(next, batches, None))
            except RuntimeError as error:  # so torch says it of its processes, and of nothing else
                if not self._loader.num_workers or "DataLoader" not in str(error):
                    raise
                raise DataError(
                    f"a process that reads images was killed, or is stuck ({one_line(error)}): look whether there is "
                    "memory for all of them and whether the disk answers, and start the same command again"
                ) from None
            if item is None:
                return
            if isinstance(item, BiomassError):
                raise item
            yield item

    def _waiting(self, call: Callable[[], Any]) -> Any:
        """What a call gives that waits for processes. Of one that has ended before, torch does not always hear."""
        with _Ended.raised():
            for process in getattr(getattr(self._loader, "_iterator", None), "_workers", ()):
                if not process.is_alive():
                    raise RuntimeError(f"DataLoader process {process.pid} has ended")
            return call()


class _Ended:
    """What becomes of the signal that a process has ended: torch raises an error wherever the parent is just then.

    Here it is raised only where a batch is waited for, where alone it can be told from others.
    """

    of_torch: Any = None
    waits = False

    @classmethod
    def watch(cls) -> None:
        """Stand before torch, which has begun to listen."""
        there = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if callable(there) and there != cls._heard:
            cls.of_torch = there
            signal.signal(signal.SIGCHLD, cls._heard)

    @classmethod
    def _heard(cls, number: int, frame: FrameType | None) -> None:
        if cls.waits:
            cls.of_torch(number, frame)

    @classmethod
    @contextmanager
    def raised(cls) -> Iterator[None]:
        """Within the block the error of torch is raised."""
        cls.waits = True
        try:
            yield
        finally:
            cls.waits = False


class SkippedImages:
    """Counts and lists the unreadable images that a run leaves out, each once."""

    def __init__(self, screen: "Screen") -> None:
        self.screen = screen
        self.rows: dict[int, str] = {}

    def note(self, batch: Batch) -> None:
        """Remember what this batch had to leave out."""
        self.rows.update(zip(batch.skipped.tolist(), batch.why, strict=True))

    def merge(self, others: Iterable[Mapping[int, str]]) -> None:
        """Take over what other processes had to leave out."""
        for rows in others:
            self.rows.update(rows)

    def report(self, folder: Path) -> None:
        """Count the images left out by kind in the log, and list them in ``skipped_images.txt``, if there were any."""
        if not self.rows:
            return
        path = folder / "skipped_images.txt"
        with whole_file(path) as part:
            part.write_text("".join(f"{printable(self.screen.pixels.name(row))}\n" for row in sorted(self.rows)))
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(self.rows.values()).most_common())
        log.warning("left out %d images that cannot be read (%s); they are listed in %s", len(self.rows), kinds, path)
