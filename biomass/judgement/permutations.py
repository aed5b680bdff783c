"""Tests by permutation: what is exchanged is what would be alike, were there no effect.

A plate effect is tested by exchanging wells between plates, an experiment effect by exchanging *whole plates* between
experiments, a position effect by exchanging the residuals of a plate's wells (Anderson & ter Braak 2003; Freedman &
Lane 1983). p counts the observed arrangement, too (Phipson & Smyth 2010), so that it is never 0. Where chance does as
well many times, drawing ends early (Besag & Clifford 1991): p is then their number over that of the draws.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_matrix
from scipy.stats import f as f_distribution

from biomass.judgement.additive import Groups

DRAWS = 999
"""Arrangements that are drawn where there are more than can be listed."""

_ENOUGH = 30  # arrangements as good as the observed one, after which none is drawn
_LISTED = 5040  # arrangements that are listed
_WORK = 2e7  # wells times draws that a test may cost
_HELD = 2**21  # values that are drawn at once
_FAR = 3.0  # wells further from the middle than so many times the usual distance are drawn in


class Chance(NamedTuple):
    """How likely chance is.

    Attributes:
        p: share of arrangements as good as the observed one, itself among them.
        least: the smallest p that the number of arrangements allows.
        ways: how many arrangements there are, or were drawn.
    """

    p: float
    least: float
    ways: float


def draws_for(wells: int) -> int:
    """How many arrangements of so many wells are drawn: fewer, never below 199, where there are many."""
    return int(np.clip(_WORK // max(wells, 1), 199, DRAWS))


def drawn_in(values: np.ndarray) -> np.ndarray:
    """Values (N, K) with far wells pulled towards 0, so that single wells do not decide.

    >>> drawn_in(np.array([[1.0], [1.0], [-1.0], [30.0]])).ravel().tolist()
    [1.0, 1.0, -1.0, 3.0]
    """
    length = np.linalg.norm(values, axis=1)
    usual = np.median(length)
    return values * np.minimum(1, _FAR * usual / np.maximum(length, 1e-12))[:, None]


def exchange_wells(values: np.ndarray, groups: Groups, strata: Groups, seed: int) -> Chance:
    """Do groups differ, when wells are exchanged within strata?

    Args:
        values: (N, K); their means over strata are taken away here.
        groups: what may differ.
        strata: wells that would be alike.
        seed: of the draws.
    """
    moved, rng = drawn_in(strata.within(values)), np.random.default_rng(seed)
    order = np.argsort(strata.codes, kind="stable")
    codes, within = groups.codes[order], strata.codes[order]

    def drawn(count: int) -> np.ndarray:
        again = np.empty((count, len(order)), codes.dtype)
        again[:, order] = codes[np.argsort(within + rng.random(again.shape), axis=1)]
        return _between(again, groups, moved)

    return _counted(float(_between(groups.codes[None], groups, moved)[0]), drawn, draws_for(len(values)), values.size)


def exchange_residuals(
    residual: np.ndarray, rank: int, bases: dict[str, np.ndarray], strata: Groups, seed: int
) -> dict[str, Chance]:
    """Does what is left depend on covariates, when it is exchanged within strata?

    Args:
        residual: (N, K) of the model without the covariates.
        rank: of that model. It has fitted a part of the noise, too: what is exchanged is scaled up to the noise.
        bases: (N, q) each, orthonormal columns, at right angles to that model.
        strata: wells whose residuals would be alike.
        seed: of the draws.
    """
    if not bases:
        return {}
    moved, rng = drawn_in(residual), np.random.default_rng(seed)
    order = np.argsort(strata.codes, kind="stable")
    joined = np.concatenate(list(bases.values()), axis=1)[order]
    ends = np.cumsum([base.shape[1] for base in bases.values()])[:-1]
    moved, strata_codes = moved[order], strata.codes[order]

    def explained(rows: np.ndarray) -> np.ndarray:
        """Of rows (S, N, K), the sum of squares of each base (S, B)."""
        squares = ((joined.T @ rows) ** 2).sum(2)
        return np.stack([part.sum(1) for part in np.split(squares, ends, axis=1)], axis=1)

    observed, count = explained(moved[None])[0], draws_for(len(residual))
    moved *= np.sqrt((len(residual) - strata.count) / max(len(residual) - rank, 1))
    above = np.zeros(len(bases))
    block = max(1, _HELD // moved.size)
    for start in range(0, count, block):
        draws = rng.random((min(block, count - start), len(order)))
        above += (explained(moved[np.argsort(strata_codes + draws, axis=1)]) >= observed * (1 - 1e-9)).sum(0)
    return {
        name: Chance((one + 1) / (count + 1), 1 / (count + 1), count) for name, one in zip(bases, above, strict=True)
    }


def exchange_units(values: np.ndarray, groups: Groups, seed: int) -> Chance:
    """Do groups differ, when whole units are exchanged between them? All arrangements are listed where they are few.

    Args:
        values: (U, K) one a unit: plates, say.
        groups: of the units: experiments.
        seed: of the draws.
    """
    centred = values - values.mean(0)
    sizes = groups.sizes
    ways = math.lgamma(sizes.sum() + 1) - sum(math.lgamma(int(size) + 1) for size in sizes)  # logarithm
    same = sum(math.lgamma(int(n) + 1) for n in np.bincount(sizes)[1:])  # likewise

    observed = float(_between(groups.codes[None], groups, centred)[0])
    least = math.exp(same - ways)
    if ways < math.log(_LISTED + 0.5):
        member = (
            np.array([codes.copy() for codes in _listed(groups.codes)])[:, None] == np.arange(groups.count)[:, None]
        )
        found = ((member @ centred) ** 2 / sizes[:, None]).sum((1, 2))
        return Chance(float((found >= observed * (1 - 1e-9)).mean()), least, round(1 / least))
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> np.ndarray:
        return _between(np.stack([rng.permutation(groups.codes) for _ in range(count)]), groups, centred)

    test = _counted(observed, drawn, DRAWS, values.size)
    return test._replace(least=max(test.least, least))


def compare_spread(values: np.ndarray, groups: Groups) -> Chance:
    """Do groups differ by more than their units do? An F test over about as many directions as the units spread in.

    For where there are too few arrangements: the number of directions is that of Satterthwaite, ``tr(S)² / tr(S²)``,
    from the covariance S of the units within groups, which is too small rather than too large.

    Args:
        values: (U, K) one a unit.
        groups: of the units.
    """
    within = groups.within(values)
    spread = np.linalg.svd(within, compute_uv=False) ** 2
    inner, outer = len(values) - groups.count, groups.count - 1
    if inner < 1 or outer < 1 or spread.sum() <= 0:
        return Chance(1.0, 1.0, 0)
    directions = spread.sum() ** 2 / (spread**2).sum()
    means = groups.means(values) - values.mean(0)
    ratio = (groups.sizes[:, None] * means**2).sum() / outer / (spread.sum() / inner)
    return Chance(float(f_distribution.sf(ratio, outer * directions, inner * directions)), 0.0, np.inf)


def _between(codes: np.ndarray, groups: Groups, values: np.ndarray) -> np.ndarray:
    """The sum of squares between groups (S,) of values (N, K), where codes (S, N) deal them to the groups."""
    draws = len(codes)
    joined = (codes + groups.count * np.arange(draws)[:, None]).T.ravel()
    shape = (draws * groups.count, len(values))
    chooses = csc_matrix((np.ones(joined.size), joined, np.arange(0, joined.size + 1, draws)), shape=shape)
    squares = np.square(np.asarray(chooses @ values)).reshape(draws, groups.count, -1).sum(2)
    return np.asarray(squares @ (1 / groups.sizes))


def _counted(observed: float, draw: Callable[[int], np.ndarray], count: int, size: int) -> Chance:
    """Count draws that are as good as the observed value, several of that size at once, until they are enough."""
    above, drawn, block = 0, 0, int(np.clip(_HELD // size, 1, 2 * _ENOUGH))
    while drawn < count and above < _ENOUGH:
        good = np.cumsum(draw(min(block, count - drawn)) >= observed * (1 - 1e-9)) + above
        enough = min(int(np.searchsorted(good, _ENOUGH)) + 1, len(good))
        above, drawn = int(good[enough - 1]), drawn + enough
    return _share(above, drawn, count)


def _share(above: float, drawn: float, count: int) -> Chance:
    p = above / drawn if above >= _ENOUGH else (above + 1) / (drawn + 1)
    return Chance(float(p), 1 / (count + 1), float(drawn))


def _listed(codes: np.ndarray) -> Iterator[np.ndarray]:
    """All different orders of codes."""
    left = np.bincount(codes)
    order = np.zeros(len(codes), np.int64)

    def fill(place: int) -> Iterator[np.ndarray]:
        if place == len(order):
            yield order
            return
        for code in np.flatnonzero(left):
            left[code] -= 1
            order[place] = code
            yield from fill(place + 1)
            left[code] += 1

    yield from fill(0)
