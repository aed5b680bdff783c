"""Profiles without a network: what is measured on the images of a screen, a plate at a time, in several processes."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset

from biomass.errors import BiomassError
from biomass.evaluation.profiles import PlateVectors
from biomass.loader import BatchReader
from biomass.samplers import PlateBatches
from biomass.screen import OnBadImage, Screen

Measure = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From images (n, C, H, W) to their features (n, D) float32, and to how many cells each stands for, (n,)."""

_Measured = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _Measuring(Dataset[_Measured | BiomassError]):
    """Reads and measures the batch whose rows a sampler names, in the process of a worker."""

    def __init__(self, reader: BatchReader, measure: Measure) -> None:
        self.reader, self.measure = reader, measure

    def __getitem__(self, rows: np.ndarray) -> _Measured | BiomassError:
        batch = self.reader[rows]
        if isinstance(batch, BiomassError):
            return batch
        if not len(batch):
            return batch.rows.numpy(), np.zeros((0, 0), np.float32), np.zeros(0, np.int64), batch.skipped.numpy()
        return batch.rows.numpy(), *self.measure(batch.images.numpy()), batch.skipped.numpy()


def measured_plates(
    screen: Screen,
    groups: np.ndarray,
    plates: Sequence[int],
    measure: Measure,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "error",
    counted: bool = False,
) -> Iterator[PlateVectors]:
    """Measure all rows of some plates of a screen, one plate in memory.

    Args:
        screen: of cells or of fields.
        groups: (N,) the plate of each row.
        plates: their numbers.
        measure: must survive pickling.
        batch_size: images that a process measures at once.
        num_workers: processes; 0 measures in this one.
        on_bad_image: ``error``, or ``skip`` to leave unreadable images out.
        counted: rows are fields, and how many cells each has is handed on; a field without any is left out.

    Yields:
        The features of each plate; nothing for a plate of which nothing can be read or measured.

    Raises:
        BadImageError: an image cannot be read.
    """
    if not len(plates):
        return
    rows = np.flatnonzero(np.isin(groups, plates))
    batches = PlateBatches(rows, groups[rows], batch_size=batch_size, shuffle=False)
    measuring = _Measuring(BatchReader(screen, groups, on_bad_image), measure)
    loader = DataLoader(measuring, sampler=batches, batch_size=None, num_workers=num_workers)

    def found() -> Iterator[_Measured]:
        for item in loader:
            if isinstance(item, BiomassError):
                raise item
            yield tuple(map(np.asarray, item))  # type: ignore[misc]

    for group, items in itertools.groupby(found(), lambda one: int(groups[np.concatenate([one[0], one[3]])[0]])):
        kept = [(numbers, vectors, counts, skipped) for numbers, vectors, counts, skipped in items]
        numbers, counts, skipped = (np.concatenate([one[i] for one in kept]) for i in (0, 2, 3))
        there = counts > 0
        if not there.any():
            continue
        vectors = np.concatenate([one[1] for one in kept if len(one[0])])
        yield PlateVectors(
            group, numbers[there], vectors[there], counts[there] if counted else None, skipped=skipped.tolist()
        )
