"""Row and column effects within a plate: the median polish (Tukey 1977), and the B-score (Brideau et al. 2003).

A well is taken as ``overall + row + column + what is its own``. Medians bear that some wells of a row are hits, and do
not bear that most of them are: where a row holds one compound at several doses, its row effect is the compound's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEAST = 4
"""Wells that a row or a column must hold for its effect to be removed. The median of two or three wells takes away most
of what is their own."""

ROUNDS = 10
"""Times that rows and columns are swept at most, as ``medpolish`` of R does."""

_SETTLED = 1e-3  # share by which the absolute residuals must fall for another round
_NORMAL = 1.4826  # of a median absolute deviation: makes it the standard deviation of a normal distribution


class Polish(NamedTuple):
    """What a median polish found, for D features.

    Attributes:
        overall: (D,).
        rows: (D, R).
        columns: (D, C).
        residuals: (D, R, C), NaN where there is no well.
    """

    overall: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    residuals: np.ndarray


def median_polish(values: np.ndarray, least: int = 1) -> Polish:
    """Sweep the medians of rows and columns out of tables.

    Args:
        values: (D, R, C) floating, one table for each feature; NaN where there is no well.
        least: wells that a row or a column must hold; others keep an effect of 0.

    Returns:
        The parts of ``values = overall + rows + columns + residuals``, of the type of the values.

    >>> table = np.array([[[1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [21.0, 22.0, 93.0]]])
    >>> found = median_polish(table)
    >>> found.overall.tolist(), found.rows.tolist(), found.columns.tolist(), found.residuals.max().item()
    ([12.0], [[-10.0, 0.0, 10.0]], [[-1.0, 0.0, 1.0]], 70.0)
    """
    overall = _median(values.reshape(len(values), -1))
    rows = np.zeros(values.shape[:2], values.dtype)
    columns = np.zeros((len(values), values.shape[2]), values.dtype)
    known = ~np.isnan(values)
    many = known.sum(2) >= least, known.sum(1) >= least
    at, size = np.arange(len(values)), np.full(len(values), np.inf)  # the features that are not settled yet
    rest = values - overall[:, None, None]
    for _ in range(ROUNDS):
        for effects, enough, turned in ((rows, many[0][at], False), (columns, many[1][at], True)):
            change = _median(rest.swapaxes(1, 2) if turned else rest)
            new = effects[at] + np.where(enough, change, 0)
            middle = _median(np.where(enough, new, np.nan))
            effects[at] = new - np.where(enough, middle[:, None], 0)
            overall[at] += middle
            rest = values[at] - (overall[at][:, None, None] + rows[at][:, :, None] + columns[at][:, None, :])
        before, size = size, np.nansum(np.abs(rest), axis=(1, 2))
        more = before - size > _SETTLED * size
        at, size, rest = at[more], size[more], rest[more]
        if not len(at):
            break
    return Polish(overall, rows, columns, values - (overall[:, None, None] + rows[:, :, None] + columns[:, None, :]))


@dataclass(frozen=True)
class PlateEffects:
    """What the place of a well does to its profile, on one plate.

    Attributes:
        overall: (D,).
        rows: (R, D), the effect of each row from the first.
        columns: (C, D).
        spread: (D,), the median absolute deviation of what is left, times 1.4826; the standard deviation where that is
            0, and 1 where nothing varies.
        swept: rows and columns that hold wells enough.
    """

    overall: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    spread: np.ndarray
    swept: int

    @classmethod
    def of(cls, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> "PlateEffects":
        """From the wells of a plate.

        Args:
            values: (n, D).
            rows: (n,) int from 0; -1 for a well without a place, which has no part in the effects.
            columns: (n,) likewise. Where two wells have one place, the later stands there.
        """
        placed = (rows >= 0) & (columns >= 0)
        shape = (int(rows.max(initial=0)) + 1, int(columns.max(initial=0)) + 1)
        grid = np.full((*shape, values.shape[1]), np.nan, np.float32)
        grid[rows[placed], columns[placed]] = values[placed]
        found = median_polish(np.ascontiguousarray(grid.transpose(2, 0, 1)), LEAST)
        known = ~np.isnan(grid[:, :, 0])
        left = found.residuals[:, known]
        if not left.size:
            return cls(np.median(values, axis=0), found.rows.T, found.columns.T, np.ones(values.shape[1]), 0)
        spread = _NORMAL * np.median(np.abs(left - np.median(left, axis=1, keepdims=True)), axis=1)
        spread = np.where(spread > 0, spread, left.std(1))
        swept = int((known.sum(0) >= LEAST).sum() + (known.sum(1) >= LEAST).sum())
        return cls(found.overall, found.rows.T, found.columns.T, np.where(spread > 0, spread, 1), swept)

    def scores(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The B-scores (n, D) float32 of wells of this plate; a row or a column not seen before has no effect."""
        done = values - self.overall
        for effects, places in ((self.rows, rows), (self.columns, columns)):
            seen = (places >= 0) & (places < len(effects))
            done[seen] -= effects[places[seen]]
        scores: np.ndarray = (done / self.spread).astype(np.float32)
        return scores


def _median(values: np.ndarray) -> np.ndarray:
    """The median along the last axis of what is not NaN; 0 where nothing is known."""
    ordered = np.sort(np.ascontiguousarray(values), axis=-1)  # NaN come last
    count = values.shape[-1] - np.isnan(values).sum(-1, keepdims=True)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    middle = (np.take_along_axis(ordered, low, -1) + np.take_along_axis(ordered, high, -1)) / 2
    return np.where(count > 0, middle, 0)[..., 0].astype(values.dtype)
