"""Missing and infinite values, and rows of one well: from the rows of a table to wells with finite features.

Missing is what is not there, is no number, is infinite, or is beyond :data:`HUGE`, whose square times the number of
wells float32 cannot hold. One rule for all tables (Caicedo et al. 2017, Nature Methods 14: leave out what is missing
often, fill what is missing rarely), in this order:

1. features missing in more than half of the rows are left out: they were not measured;
2. rows in which more than half of the others are missing are left out: they hold no cells;
3. features missing in more than 5 % of the remaining rows are left out (the cutoff that pycytominer has; Serrano et
   al. 2025, Nature Methods 22);
4. what is still missing becomes the median of its plate, or of all rows where the plate has no value.

Then features that are the same in all wells are left out. Nothing else is changed, and all is said, with counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from biomass.errors import DataError

HUGE, HALF, SOME = 1e15, 0.5, 0.05
"""Values from which on a number counts as infinite; the shares of rows and features that may be missing."""

_CONSTANT = 1e-6  # a range below this share of the values' size is the rounding of float32
_SHOWN = 3


def fill_missing(
    features: np.ndarray, names: Sequence[str], plates: np.ndarray
) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """Leave out or fill what is missing, see the module.

    Args:
        features: (N, D) float32; may be changed.
        names: (D,) of the features.
        plates: (N,) int, the plate of each row.

    Returns:
        (n, d) float32, finite; the names of its features; which rows stay, (N,) bool; what was done, a sentence each.

    Raises:
        DataError: nothing is left.

    >>> first = [[1, 5, 0, np.nan], [np.inf, 6, 0, np.nan], [3, 8, 0, np.nan]]
    >>> values = np.array([*first, *[[4, 9, 1, 1]] * 40], np.float32)
    >>> filled, names, rows, notes = fill_missing(values, list("abcd"), np.array([0] * 3 + [1] * 40))
    >>> filled[1].tolist(), names
    ([2.0, 6.0, 0.0], ['a', 'b', 'c'])
    >>> notes[0]
    "1 of 4 features is left out, as it is missing or infinite in more than 5 % of the rows: 'd'"
    """
    notes: list[str] = []
    missing = _missing(features)
    stays = np.ones(len(features), bool)
    if not missing.any():
        return features, list(names), stays, notes
    total = features.shape[1]
    kept = missing.mean(0) <= HALF
    _say_features(notes, names, ~kept, total, HALF)
    if not kept.any():
        raise DataError(
            f"all {total} features are missing or infinite in more than half of the {len(features)} rows, "
            f"'{names[0]}' among them: nothing is left to judge; give features that were measured"
        )
    stays = missing[:, kept].mean(1) <= HALF
    if not stays.all():
        notes.append(
            f"{int((~stays).sum())} of {len(stays)} rows are left out, as more than half of their features are missing "
            "or infinite"
        )
    often = kept & (missing[stays].mean(0) > SOME)
    _say_features(notes, names, often, total, SOME)
    kept &= ~often
    if not kept.any():
        raise DataError(
            f"each of the {total} features is missing or infinite in more than 5 % of the rows, '{names[0]}' "
            "among them: nothing is left to judge; give features that were measured"
        )
    if not stays.all() or not kept.all():
        features, missing = features[np.ix_(stays, kept)], missing[np.ix_(stays, kept)]
    filled = int(missing.sum())
    if filled:
        _fill(features, missing, plates[stays])
        notes.append(
            f"{filled} of {features.size} values were missing or infinite, in {int(missing.any(0).sum())} features: "
            "each became the median of its plate"
        )
    return features, _some(names, kept), stays, notes


def _missing(features: np.ndarray) -> np.ndarray:
    """(N, D) bool, in blocks of rows: no second matrix of numbers."""
    missing = np.empty(features.shape, bool)
    for start in range(0, len(features), 4096):
        with np.errstate(invalid="ignore"):
            missing[start : start + 4096] = ~(np.abs(features[start : start + 4096]) <= HUGE)
    return missing


def _fill(features: np.ndarray, missing: np.ndarray, plates: np.ndarray) -> None:
    """Fill what is missing in place, a plate at a time."""
    order = np.argsort(plates, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(plates[order])) + 1):
        columns = np.flatnonzero(missing[rows].any(0))
        if not len(columns):
            continue
        here = np.ix_(rows, columns)
        values = np.where(missing[here], np.nan, features[here])
        known = len(rows) - missing[here].sum(0)
        ordered, at = np.sort(values, axis=0), np.arange(len(columns))  # NaN come last
        middle = (ordered[np.maximum(known - 1, 0) // 2, at] + ordered[np.minimum(known // 2, len(rows) - 1), at]) / 2
        for i in np.flatnonzero(known == 0):
            whole = features[:, columns[i]]
            middle[i] = np.median(whole[~missing[:, columns[i]]])
        features[here] = np.where(missing[here], middle, values)


def _say_features(notes: list[str], names: Sequence[str], which: np.ndarray, total: int, share: float) -> None:
    if which.any():
        some = _some(names, which)
        one = len(some) == 1
        how = "half" if share == HALF else f"{100 * share:.0f} %"
        notes.append(
            f"{len(some)} of {total} features {'is' if one else 'are'} left out, as {'it is' if one else 'they are'} "
            f"missing or infinite in more than {how} of the rows: {listing(some)}"
        )


def drop_constant(features: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    """Leave out features that are the same in all wells, but for rounding; of a single well none is.

    Raises:
        DataError: all features are.

    >>> drop_constant(np.array([[1, 7], [2, 7]], np.float32), ["a", "b"])[1:]
    (['a'], ["1 of 2 features is the same in all wells, and is left out: 'b'"])
    """
    if len(features) < 2:
        return features, list(names), []
    low, high = features.min(0), features.max(0)
    constant = high - low <= _CONSTANT * np.maximum(np.abs(low), np.abs(high))
    if not constant.any():
        return features, list(names), []
    if constant.all():
        raise DataError(
            f"each of the {len(names)} features is the same in all {len(features)} rows, '{names[0]}' among them: "
            "nothing is left to judge; give features that differ"
        )
    some = _some(names, constant)
    verb = "is the same in all wells, and is" if len(some) == 1 else "are the same in all wells, and are"
    note = f"{len(some)} of {len(names)} features {verb} left out: {listing(some)}"
    return features[:, ~constant], _some(names, ~constant), [note]


def mean_of(features: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The mean (M, D) float32 of the rows of each group ``number`` (N,), 0 … M - 1.

    >>> mean_of(np.array([[1.0], [3.0], [5.0]], np.float32), np.array([0, 0, 1])).tolist()
    [[2.0], [5.0]]
    """
    order = np.argsort(number, kind="stable")
    size = np.bincount(number)
    result = np.empty((len(size), features.shape[1]), np.float32)
    ends = np.cumsum(size)
    for group, (start, end) in enumerate(zip(ends - size, ends, strict=True)):
        result[group] = features[order[start:end]].mean(0, dtype=np.float64)
    return result


def first_seen(*columns: "pd.Series[Any] | np.ndarray") -> tuple[np.ndarray, np.ndarray]:
    """The group that each row is in, (N,), numbered in the order in which groups come, and the first row of each."""
    table = pd.DataFrame({i: np.asarray(column, dtype=object) for i, column in enumerate(columns)})
    number = table.groupby(list(table), sort=False).ngroup().to_numpy(np.int64)
    return number, np.unique(number, return_index=True)[1]


def _some(names: Sequence[str], which: np.ndarray) -> list[str]:
    return [one for one, chosen in zip(names, which, strict=True) if chosen]


def listing(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(f"'{one}'" for one in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
