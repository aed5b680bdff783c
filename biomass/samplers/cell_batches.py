"""Which cells of its fields make up a batch: the views of the contrastive objectives, or one cell of each field."""

import logging
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.samplers.plate_batches import PlateBatches

Mode = Literal["random_single", "random", "first"]

log = logging.getLogger(__name__)


class CellBatches(Sampler[np.ndarray]):
    """Batches of cells, made of batches of fields: ``DataLoader(dataset, sampler=CellBatches(...), batch_size=None)``.

    Every item is an int64 array of rows of the screen, field by field in the order of the batch of m fields:

    - ``random_single``: one random cell of every field, its row ``num_img`` times in succession (SimCLR: augmentation
      makes the views differ), (m * num_img,).
    - ``random``: ``num_img`` random cells of every field in succession (MinCLR), (m * num_img,). They are drawn without
      replacement; in a field with fewer cells, no cell comes again before all others have come as often. How many
      fields that concerns is said once in the log, and by ``num_short``.
    - ``first``: the first cell of every field, (m,).

    The draws depend on ``(seed, epoch, number of the batch in the epoch)`` alone: neither on where an interrupted epoch
    goes on, nor on how many processes share it. Controls that :class:`PlateBatches` adds to its batches are fields like
    all others. For batches of all cells use :class:`PlateBatches` over cells.

    >>> fields = np.array([3, 3, 3, 8, 8])  # rows 0 to 2 are cells of field 3, rows 3 and 4 of field 8
    >>> over_fields = PlateBatches(np.array([3, 8]), shuffle=False, batch_size=2)
    >>> [batch.tolist() for batch in CellBatches(over_fields, np.arange(5), fields, "first")]
    [[0, 3]]
    >>> (batch,) = CellBatches(over_fields, np.arange(5), fields, "random", num_img=2)
    >>> fields[batch].tolist()
    [3, 3, 8, 8]

    Args:
        batches: batches of fields: its ``rows`` are values of ``fields``. It decides what stands together, in which
            order, and on which rank.
        rows: (n,) the rows of the screen to choose from, e.g. a split.
        fields: (N,) the field that each row of the whole screen was cut out of (or its well, or whatever is to have
            views), any integers.
        mode: which cells of a field.
        num_img: cells of a field in ``random`` and ``random_single``, 1 or more; ``first`` does not read it.
        seed: 0 or more.

    Raises:
        ConfigError: an unknown ``mode``, ``num_img`` below 1, or a negative ``seed``.
        DataError: ``batches`` serves a field that no row was cut out of.
    """

    # Without an attribute `batch_size`, as PlateBatches and for the same reason.

    def __init__(
        self,
        batches: PlateBatches,
        rows: np.ndarray,
        fields: np.ndarray,
        mode: str = "random",
        num_img: int = 2,
        *,
        seed: int = 0,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"mode '{mode}' is unknown; {did_you_mean(mode, get_args(Mode))}", advice="mode")
        if num_img < 1:
            raise ConfigError(f"the number of cells of a field is {num_img}; it must be 1 or more", advice="num_img")
        if seed < 0:
            raise ConfigError(f"the seed is {seed}; it must be 0 or more")
        self.batches, self.mode, self.num_img, self.seed = batches, mode, num_img, seed

        rows = np.asarray(rows, np.int64)
        field = np.asarray(fields)[rows]
        order = field.argsort(kind="stable")
        self._rows = rows[order]  # field by field
        self._names, self._starts = np.unique(field[order], return_index=True)
        self._counts = np.diff(self._starts, append=len(rows))
        served = np.asarray(batches.rows)
        absent = served[~np.isin(served, self._names)]
        if len(absent):
            some = f"{len(absent)} of {len(served)} have none"
            raise DataError(f"field {absent[0]} has no cells ({some}): leave fields without cells out")
        self.num_short = 0
        if mode == "random":
            self.num_short = int((self._counts[self._places(served)] < num_img).sum())
        if self.num_short:
            log.warning(
                "%d of %d fields have fewer than %d cells: their cells serve more than once in a batch",
                self.num_short,
                len(served),
                num_img,
            )

    @property
    def num_rows(self) -> int:
        """How many rows there are to choose from."""
        return len(self._rows)

    @property
    def num_seen(self) -> int:
        """How many different rows an epoch of all processes sees, at most."""
        fields, _ = np.unique(self.batches.rows, return_index=True)  # without an index it is far slower for many
        counts = self._counts[self._places(fields)]
        return int(np.minimum(counts, self.num_img if self.mode == "random" else 1).sum())

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and its first batch, see :meth:`PlateBatches.set_epoch`."""
        self.batches.set_epoch(epoch, start)

    @property
    def served(self) -> np.ndarray:
        """The rows that batches are made of, (n,) int64."""
        return self._rows

    @property
    def num_batches(self) -> int:
        """How many batches an epoch of all processes has, each counted once."""
        return self.batches.num_batches

    def __len__(self) -> int:
        """How many batches iterating now yields."""
        return len(self.batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch, rank, world_size = self.batches.epoch, self.batches.rank, self.batches.world_size
        for number, fields in enumerate(self.batches, self.batches.start):
            key = (epoch, rank + number * world_size)
            yield self._cells(fields, np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _places(self, fields: np.ndarray) -> np.ndarray:
        """Where the fields stand in ``_names``."""
        return np.searchsorted(self._names, fields)

    def _cells(self, fields: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows of a batch of fields."""
        places = self._places(fields)
        starts, counts = self._starts[places], self._counts[places]
        if self.mode == "first":
            return self._rows[starts]
        if self.mode == "random_single":
            return np.repeat(self._rows[starts + rng.integers(counts)], self.num_img)
        # All cells of the batch's fields in one array, shuffled within each field: for fields of 3 and 2 cells, `field`
        # is 0 0 0 1 1, and sorting 0.4 0.9 0.1 1.7 1.2 gives the order 2 0 1 4 3.
        field = np.repeat(np.arange(len(counts)), counts)
        firsts = np.cumsum(counts) - counts
        cells = np.arange(len(field)) + (starts - firsts)[field]
        cells = cells[np.argsort(field + rng.random(len(field)))]
        drawn = np.arange(self.num_img) % counts[:, None]  # goes round the cells of a field that has too few
        return self._rows[cells[(firsts[:, None] + drawn).ravel()]]


def check_views(mode: str, num_img: int, num_views: int) -> None:
    """Make sure that the batches hold what a contrastive objective expects: ``num_views`` rows of every field.

    >>> check_views("random", num_img=2, num_views=5)
    Traceback (most recent call last):
    biomass.errors.ConfigError: batches hold 2 views of a field, but 5 are expected; the two must be one number

    Raises:
        ConfigError: ``num_img`` and ``num_views`` differ or are below 2, or ``mode`` does not draw ``num_img`` cells.
    """
    if mode not in ("random_single", "random"):
        raise ConfigError(f"mode '{mode}' gives no views; choose random_single (SimCLR) or random (MinCLR)", "mode")
    if num_img != num_views:
        raise ConfigError(
            f"batches hold {num_img} views of a field, but {num_views} are expected; the two must be one number",
            advice="num_img",
        )
    if num_views < 2:
        raise ConfigError(f"batches hold {num_views} views of a field; a view needs at least one other", "num_img")
