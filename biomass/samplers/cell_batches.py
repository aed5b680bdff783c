"""Which cells of its images make up a batch: the views of the contrastive objectives, or one cell of each."""

import logging
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from biomass.errors import ConfigError, DataError
from biomass.samplers.plate_batches import PlateBatches

Mode = Literal["random_single", "random", "first"]

log = logging.getLogger(__name__)


class CellBatches(Sampler[np.ndarray]):
    """Batches of cells, made of batches of images: ``DataLoader(dataset, sampler=CellBatches(...), batch_size=None)``.

    Every item is an int64 array of rows of the screen, image by image in the order of the batch of images:

    - ``random_single``: one random cell of every image, its row ``num_img`` times in succession (SimCLR: augmentation
      makes the views differ), (m * num_img,).
    - ``random``: ``num_img`` random cells of every image in succession, drawn without replacement (MinCLR),
      (m * num_img,). Of an image with fewer cells than that, no cell is taken once more before all others have been
      taken as often; how many such images there are is said once in the log, and by ``num_short``.
    - ``first``: the first cell of every image, (m,).

    The draws depend on ``(seed, epoch, number of the batch in the epoch)`` alone: neither on where an interrupted epoch
    goes on, nor on how many processes share it. ``first`` draws nothing. All cells need no sampler of their own: that
    is :class:`PlateBatches` over cells.

    Like :class:`PlateBatches` it has no attribute ``batch_size`` on purpose.

    Args:
        batches: batches of image numbers: its ``rows`` are values of ``images``. It decides what stands together, in
            which order, and on which rank.
        rows: (n,) the rows of the screen to choose from, e.g. a split.
        images: (N,) the image that each row of the whole screen was cut out of (or its well, or whatever is to have
            views), any integers.
        mode: which cells of an image.
        num_img: cells of an image in ``random`` and ``random_single``, 1 or more; ``first`` does not read it.
        seed: 0 or more.

    Raises:
        ConfigError: an unknown ``mode``, ``num_img`` below 1, or a negative ``seed``.
        DataError: ``batches`` serves an image that no row was cut out of.
    """

    def __init__(
        self,
        batches: PlateBatches,
        rows: np.ndarray,
        images: np.ndarray,
        mode: str = "random",
        num_img: int = 2,
        *,
        seed: int = 0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"dataloaders.mode '{mode}' is unknown; choose {', '.join(get_args(Mode))}")
        for name, value, least in (("num_img", num_img, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more")
        self.batches, self.mode, self.num_img, self.seed = batches, mode, num_img, seed

        rows = np.asarray(rows, np.int64)
        image = np.asarray(images)[rows]
        order = image.argsort(kind="stable")
        self._rows = rows[order]  # image by image
        self._names, self._starts = np.unique(image[order], return_index=True)
        self._counts = np.diff(self._starts, append=len(rows))
        served = np.asarray(batches.rows)
        absent = served[~np.isin(served, self._names)]
        if len(absent):
            some = f"{len(absent)} of {len(served)} have none"
            raise DataError(f"image {absent[0]} has no cells ({some}): leave images without cells out")
        self.num_short = 0
        if mode == "random":
            self.num_short = int((self._counts[self._places(served)] < num_img).sum())
        if self.num_short:
            log.warning(
                "%d of %d images have fewer than num_img=%d cells: their cells serve more than once in a batch",
                self.num_short,
                len(served),
                num_img,
            )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and its first batch, see :meth:`PlateBatches.set_epoch`."""
        self.batches.set_epoch(epoch, start)

    def __len__(self) -> int:
        """How many batches iterating now yields."""
        return len(self.batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch, rank, world_size = self.batches.epoch, self.batches.rank, self.batches.world_size
        for number, images in enumerate(self.batches, self.batches.start):
            key = (epoch, rank + number * world_size)
            yield self._cells(images, np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _places(self, images: np.ndarray) -> np.ndarray:
        """Where the images stand in ``_names``."""
        return np.searchsorted(self._names, images)

    def _cells(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows of a batch of images."""
        places = self._places(images)
        starts, counts = self._starts[places], self._counts[places]
        if self.mode == "first":
            return self._rows[starts]
        if self.mode == "random_single":
            return np.repeat(self._rows[starts + rng.integers(counts)], self.num_img)
        image = np.repeat(np.arange(len(counts)), counts)  # of every cell
        firsts = np.cumsum(counts) - counts
        cells = np.arange(len(image)) + (starts - firsts)[image]
        cells = cells[np.argsort(image + rng.random(len(image)))]  # shuffled within every image
        drawn = np.arange(self.num_img) % counts[:, None]  # goes round the cells of an image that has too few
        return self._rows[cells[(firsts[:, None] + drawn).ravel()]]


def check_views(mode: str, num_img: int, num_views: int) -> None:
    """Make sure that the batches hold what a contrastive objective expects: ``num_views`` rows of every image.

    Raises:
        ConfigError: ``num_img`` and ``num_views`` differ or are below 2, or ``mode`` does not draw ``num_img`` cells.
    """
    if mode not in ("random_single", "random"):
        raise ConfigError(f"dataloaders.mode '{mode}' gives no views; choose random_single (SimCLR) or random (MinCLR)")
    if num_img != num_views:
        raise ConfigError(f"dataloaders.num_img is {num_img}, but num_views is {num_views}; set both to one number")
    if num_views < 2:
        raise ConfigError(f"num_views and dataloaders.num_img are {num_views}; set both to 2 or more")
