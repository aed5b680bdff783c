"""What a metric is, and how its value, its chance level and its interval are told.

A metric gives *one value a unit* (a well, a treatment …) and the group that each unit belongs to. All else is done
here, in one way for all: the mean, and the interval by drawing whole groups again and again (the cluster bootstrap;
Field & Welsh 2007), because the wells of a plate, or the replicates of a compound, are not independent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from biomass.errors import CannotJudgeError
from biomass.judgement.table import Profiles

DRAWS, LEVEL = 1000, 0.95
"""Of the bootstrap, and the share of its draws that the interval holds."""


class Measured(NamedTuple):
    """What a metric found.

    Attributes:
        values: (U,) one a unit; NaN where a unit cannot be judged.
        groups: (U,) int, what is drawn in the bootstrap: the plate or the compound of each unit.
        null: what is expected by chance: one number, or one a unit.
        weights: (U,) of the mean; None: all alike. A ratio of sums is values = numerator / denominator under
            weights = denominator.
        p: probability of a value as good by chance; NaN where it is not tested.
        note: what should be known: units left out and why, sampling.
    """

    values: np.ndarray
    groups: np.ndarray
    null: float | np.ndarray
    weights: np.ndarray | None = None
    p: float = np.nan
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        title: for people, such as "plate predicted from other wells".
        family: ``batch`` or ``biology``.
        better: ``lower`` or ``higher``.
        over: what the interval goes over, ``plates`` or ``compounds``.
        null: how chance was found, in words.
        cites: the paper.
        measure: from profiles and a seed to what was found.
        limits: what must be known to read it; empty where nothing.
    """

    title: str
    family: str
    better: str
    over: str
    null: str
    cites: str
    measure: Callable[[Profiles, int], Measured]
    limits: str = ""


class Score(NamedTuple):
    """A value with what it must be compared with.

    Attributes:
        metric: its key.
        value: the mean over units; NaN where it cannot be told.
        low: lower end of the interval; NaN where fewer than two groups can be drawn.
        high: upper end.
        null: expected by chance.
        p: see :class:`Measured`.
        n: units judged.
        note: why it cannot be told, or what should be known.
    """

    metric: str
    value: float
    low: float
    high: float
    null: float
    p: float
    n: int
    note: str


def score(key: str, metric: Metric, profiles: Profiles, seed: int = 0) -> Score:
    """Measure, and summarize; what is impossible is a note."""
    return summarize(key, measure(metric, profiles, seed), seed)


def measure(metric: Metric, profiles: Profiles, seed: int = 0) -> Measured | str:
    """What a metric found; why not, where it is impossible."""
    try:
        return metric.measure(profiles, seed)
    except CannotJudgeError as reason:
        return str(reason)


def untold(key: str, reason: object) -> Score:
    """The score of a metric that cannot be told."""
    return Score(key, np.nan, np.nan, np.nan, np.nan, np.nan, 0, str(reason))


def summarize(key: str, found: Measured | str, seed: int = 0) -> Score:
    """The mean of the units, with its interval and its chance level; no value where nothing was found, but a reason.

    >>> found = Measured(np.array([1.0, 0.0, np.nan, 1.0]), np.array([0, 0, 1, 1]), null=0.5)
    >>> summarize("share", found)[1:5]
    (0.6666666666666666, 0.5, 1.0, 0.5)
    """
    if isinstance(found, str):
        return untold(key, found)
    known = np.isfinite(found.values)
    if not known.any():
        return untold(key, found.note or "no well can be judged")
    weights = np.ones(len(known)) if found.weights is None else found.weights
    weights = np.where(known, weights, 0.0)
    values = np.where(known, found.values, 0.0)
    total = weights.sum()
    null = float((np.broadcast_to(found.null, len(known)) * weights)[known].sum() / total)
    low, high = interval(values * weights, weights, found.groups, seed)
    value = float((values * weights).sum() / total)
    return Score(key, value, low, high, null, found.p, int(known.sum()), found.note)


def interval(numerator: np.ndarray, denominator: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of ``sum(numerator) / sum(denominator)`` when whole groups are drawn with replacement.

    Args:
        numerator: (U,) of each unit.
        denominator: (U,) likewise, not negative.
        groups: (U,) int.
        seed: of the draws.

    Returns:
        Low and high; NaN where fewer than two groups have anything to say.
    """
    _, number = np.unique(groups, return_inverse=True)
    above, below = np.bincount(number, numerator), np.bincount(number, denominator)
    above, below = above[below > 0], below[below > 0]
    count = len(below)
    if count < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    ratios = (drawn @ above) / (drawn @ below)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
