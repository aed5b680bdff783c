"""What one of several processes evaluates: some of the batches that a single process would make, as they are."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler


class _Batches(Protocol):
    @property
    def served(self) -> np.ndarray: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...


class ShareOfRank(Sampler[np.ndarray]):
    """The batches of one process among ``world_size``: all those of its groups, which are dealt out in turn.

    Mixed batches are dealt out themselves. A process may have none.

    >>> from biomass.samplers import PlateBatches
    >>> plates = np.array([4, 4, 6, 9, 9])
    >>> everything = PlateBatches(np.arange(5), plates, shuffle=False, batch_size=1)
    >>> [batch.tolist() for batch in ShareOfRank(everything, plates, rank=0, world_size=2)]
    [[0], [1], [3], [4]]
    >>> ShareOfRank(everything, plates, rank=1, world_size=2).passed
    [[1, 1]]

    Args:
        whole: the batches of a single process, in the same order at every pass.
        groups: (rows of the screen,) the group of every row, where batches are of one group each; None: mixed ones.
        rank: number of this process,
        world_size: of so many.

    Attributes:
        passed: for each of its batches, the sizes of those of others since the one before.
    """

    # Without an attribute `batch_size`, as PlateBatches and for the same reason.

    def __init__(self, whole: _Batches, groups: np.ndarray | None, rank: int, world_size: int) -> None:
        self.whole: Any = whole
        names = np.unique(np.zeros(0) if groups is None else groups[whole.served])
        self.passed: list[list[int]] = []
        self._mine: list[bool] = []
        sizes: list[int] = []
        for number, rows in enumerate(whole):
            turn = number if groups is None else int(np.searchsorted(names, groups[rows[0]]))
            self._mine.append(turn % world_size == rank)
            if self._mine[-1]:
                self.passed.append(sizes)
                sizes = []
            else:
                sizes.append(len(rows))

    @property
    def served(self) -> np.ndarray:
        """The rows that its batches are made of."""
        rows = np.concatenate([np.zeros(0, np.int64), *self])
        return np.unique(rows, return_index=True)[0]  # without an index it is far slower for many

    @property
    def num_batches(self) -> int:
        """How many batches all processes have."""
        return len(self._mine)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Nothing: the batches are the same at every pass."""

    def __len__(self) -> int:
        return len(self.passed)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (rows for rows, mine in zip(self.whole, self._mine, strict=True) if mine)
