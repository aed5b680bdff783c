"""What plates and treatments add to profiles: leading components, and the additive model of both.

Shares of variance and tests of effects look at the leading principal components of standardized features, which are
weighted by their variance (principal variance component analysis; Boedigheimer et al. 2008). There a profile is

    y = plate + treatment + noise,

fitted to all wells at once, so that treatments which are not evenly spread over plates are not taken for plates.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy.sparse import csc_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from biomass.errors import CannotJudgeError
from biomass.judgement.table import COMPOUND, CONTROL, EXPERIMENT, PLATE, TREATMENT, Profiles

T = TypeVar("T")

COMPONENTS = 50
"""Principal components that are looked at, at most."""

_FITTED = 20_000  # wells that the directions of the components are taken from, at most
_BLOCK = 4096  # wells at once
_PLATES = 600  # plates that are looked at, at most


@dataclass(frozen=True)
class Groups:
    """Wells by what they belong to.

    Attributes:
        codes: (N,) int64, 0 … count - 1.
        count: number of groups, each of which has a well.
    """

    codes: np.ndarray
    count: int

    @classmethod
    def of(cls, *codes: np.ndarray) -> "Groups":
        """Wells that agree in all of these codes (N,)."""
        joined = np.zeros(len(codes[0]), np.int64)
        for each in codes:
            known, number = np.unique(each, return_inverse=True)
            joined = joined * len(known) + number
        known, number = np.unique(joined, return_inverse=True)
        return cls(number.astype(np.int64), len(known))

    @property
    def sizes(self) -> np.ndarray:
        """(G,) wells of each."""
        return np.bincount(self.codes, minlength=self.count)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums (G, K) of values (N, K) over each group."""
        return group_sums(self.codes, self.count, values)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means (G, K) of values (N, K)."""
        return self.sums(values) / self.sizes[:, None]

    def within(self, values: np.ndarray) -> np.ndarray:
        """Values (N, K) less the mean of their group."""
        return values - self.means(values)[self.codes]

    def parents(self, other: "Groups") -> np.ndarray:
        """(G,) the group of ``other`` that each group lies in."""
        found = np.zeros(self.count, np.int64)
        found[self.codes] = other.codes
        return found


def group_sums(codes: np.ndarray, count: int, values: np.ndarray) -> np.ndarray:
    """Sums (count, K) of the rows of values (N, K) that have the same code (N,)."""
    chooses = csc_matrix((np.ones(len(codes)), codes, np.arange(len(codes) + 1)), shape=(count, len(codes)))
    return np.asarray(chooses @ values)


class Additive(NamedTuple):
    """The additive model of two groupings, by least squares.

    Attributes:
        first: (G, K) effects of the first grouping's groups, given the second's.
        second: (H, K) likewise.
        residual: (N, K).
        noise: residual sum of squares over its degrees of freedom, summed over components: the variance of a well.
        rank: of the model.
        parts: (G,) which groups of the first can be compared: those of one number share groups of the second.
        inverse: (G, G): times the noise, the covariance of the first's effects.
    """

    first: np.ndarray
    second: np.ndarray
    residual: np.ndarray
    noise: float
    rank: int
    parts: np.ndarray
    inverse: np.ndarray


def fit_additive(values: np.ndarray, first: Groups, second: Groups) -> Additive:
    """Fit ``values = first + second + residual``.

    The second grouping is eliminated (Schur complement), so that a system of G equations remains.

    Args:
        values: (N, K).
        first: plates, say; up to about a thousand.
        second: treatments, say; any number.

    >>> plate, treatment = Groups(np.array([0, 0, 1, 1]), 2), Groups(np.array([0, 1, 1, 2]), 3)
    >>> fit = fit_additive(np.array([[0.0], [1.0], [3.0], [4.0]]), plate, treatment)
    >>> (fit.first[1] - fit.first[0]).round(6).tolist(), fit.rank
    ([2.0], 4)
    """
    ones, shape = np.ones(len(values)), (first.count, second.count)
    table = csr_matrix((ones, (first.codes, second.codes)), shape=shape)
    scaled = table.multiply(1 / second.sizes[None]).tocsr()
    system = np.diag(first.sizes.astype(float)) - (scaled @ table.T).toarray()
    right = first.sums(values) - scaled @ second.sums(values)
    inverse = np.linalg.pinv(system, rcond=1e-9, hermitian=True)
    effects = inverse @ right
    others = second.means(values - effects[first.codes])
    residual = values - effects[first.codes] - others[second.codes]
    joined = csr_matrix((ones, (first.codes, first.count + second.codes)), shape=(sum(shape),) * 2)
    parts, number = connected_components(joined, directed=False)
    rank = sum(shape) - parts
    noise = float((residual**2).sum()) / max(len(values) - rank, 1)
    return Additive(effects, others, residual, noise, rank, number[: first.count], inverse)


@dataclass(frozen=True)
class Wells:
    """The wells that can be judged, in leading components.

    Attributes:
        rows: (N,) which rows of the profiles they are.
        values: (N, K) float64, leading components of standardized features, centred.
        plate: their plates, as :class:`Groups`.
        experiment: None where it is not known.
        treatment: a single group where treatments are not known.
        held: share of the variance that the components hold.
        notes: what was left out.
    """

    rows: np.ndarray
    values: np.ndarray
    plate: Groups
    experiment: Groups | None
    treatment: Groups
    held: float
    notes: tuple[str, ...]

    @property
    def fit(self) -> Additive:
        """Plates and treatments; fitted once."""
        if "fit" not in self.__dict__:
            self.__dict__["fit"] = fit_additive(self.values, self.plate, self.treatment)
        known: Additive = self.__dict__["fit"]
        return known


def kept(make: Callable[[Profiles, int], T]) -> Callable[[Profiles, int], T]:
    """Keep the last answer, for as long as its profiles live: several metrics ask for the same."""
    last: list[tuple[weakref.ref[np.ndarray], weakref.ref[pd.DataFrame], int, T]] = []

    @wraps(make)
    def known(profiles: Profiles, seed: int = 0) -> T:
        for features, wells, one, found in last:
            if features() is profiles.features and wells() is profiles.wells and one == seed:
                return found
        found = make(profiles, seed)
        last[:] = [(weakref.ref(profiles.features), weakref.ref(profiles.wells), seed, found)]
        return found

    return known


@kept
def judged_wells(profiles: Profiles, seed: int = 0) -> Wells:
    """Choose the wells that can be judged, and bring them into leading components.

    Args:
        profiles: any.
        seed: of the choice of plates, where there are too many.

    Raises:
        CannotJudgeError: fewer than four wells remain, or all of them are alike.
    """
    count, notes = len(profiles), []
    use = np.ones(count, bool)
    plate = profiles.codes(PLATE) if profiles.has(PLATE) else np.zeros(count, np.int64)
    treatment = _treatments(profiles)
    if treatment is None:
        notes.append("treatments are not known: what plates hold and what they are cannot be told apart")
        treatment = np.zeros(count, np.int64)
    for name, codes in (("plate", plate), ("treatment", treatment)):
        if (use & (codes < 0)).any():
            notes.append(f"{(use & (codes < 0)).sum()} wells without a {name} are left out")
        use &= codes >= 0
    use, said = _some_plates(profiles, use, plate, seed)
    rows = np.flatnonzero(use)
    if len(rows) < 4:
        raise CannotJudgeError(f"{len(rows)} wells have a plate and a treatment: at least 4 are needed")
    values, held = leading_components(profiles.features, rows, seed)
    experiment = profiles.codes(EXPERIMENT)[rows] if profiles.has(EXPERIMENT) else None
    if experiment is not None and (experiment < 0).any():
        notes.append("some wells have no experiment: experiments are not judged")
        experiment = None
    return Wells(
        rows,
        values,
        Groups.of(plate[rows]),
        None if experiment is None else Groups.of(experiment),
        Groups.of(treatment[rows]),
        held,
        (*notes, *said),
    )


def _treatments(profiles: Profiles) -> np.ndarray | None:
    """The treatment of each well (N,), -1 where it is not known; None where none is."""
    role = next((role for role in (TREATMENT, COMPOUND) if profiles.has(role)), None)
    if role is not None:
        codes = profiles.codes(role)
    elif profiles.has(CONTROL):
        codes = np.full(len(profiles), -1, np.int64)
    else:
        return None
    return np.where((codes < 0) & profiles.negative, codes.max(initial=-1) + 1, codes)


def _some_plates(profiles: Profiles, use: np.ndarray, plate: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    """The wells of at most so many plates, evenly over experiments."""
    known = np.unique(plate[use])
    if len(known) <= _PLATES:
        return use, []
    order = np.random.default_rng(seed).permutation(known)
    if profiles.has(EXPERIMENT):
        home = np.zeros(plate.max() + 1, np.int64)
        home[plate[use]] = profiles.codes(EXPERIMENT)[use]
        turn = np.zeros(len(order), np.int64)
        for one in np.unique(home[order]):
            turn[home[order] == one] = np.arange((home[order] == one).sum())
        order = order[np.argsort(turn, kind="stable")]
    return use & np.isin(plate, order[:_PLATES]), [f"judged on {_PLATES} of {len(known)} plates, drawn at random"]


def leading_components(features: np.ndarray, rows: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float]:
    """Some rows in the leading components of their standardized features.

    Args:
        features: (N, D).
        rows: (M,) which of them.
        seed: of the rows that the directions are taken from, where there are many.

    Returns:
        (M, K) float64, centred, and the share of the variance that they hold.

    Raises:
        CannotJudgeError: no feature varies.

    >>> values, held = leading_components(np.array([[0.0, 1, 5], [2, 1, 1], [4, 1, 3]]), np.arange(3))
    >>> values.shape, round(held, 3)
    ((3, 2), 1.0)
    """
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    mean = np.sum([features[block].sum(0, dtype=np.float64) for block in blocks], 0) / len(rows)
    square = np.zeros_like(mean)
    for block in blocks:
        square += ((features[block] - mean) ** 2).sum(0, dtype=np.float64)
    spread = np.sqrt(square / len(rows))
    varies = spread > 1e-6 * np.abs(mean)
    if not varies.any():
        raise CannotJudgeError(f"all {len(rows)} wells have the same features: nothing varies")
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0).astype(np.float32)
    centre = mean.astype(np.float32)
    some = rows
    if len(rows) > _FITTED:
        some = np.sort(np.random.default_rng(seed).choice(rows, _FITTED, replace=False))
    if few := len(some) < features.shape[1]:  # the products of rows have the same values, and are fewer
        block = (features[some] - centre) * scale
        gram = (block @ block.T).astype(np.float64)
    else:
        gram = np.zeros((features.shape[1],) * 2)
        for start in range(0, len(some), _BLOCK):
            block = (features[some[start : start + _BLOCK]] - centre) * scale
            gram += block.T @ block
    value, vectors = np.linalg.eigh(gram)
    kept = min(COMPONENTS, int((value > 1e-6 * value[-1]).sum()))
    axes = vectors[:, ::-1][:, :kept].astype(np.float32)
    if few:
        axes = block.T @ (axes / np.sqrt(value[::-1][:kept]).astype(np.float32))
    values = np.concatenate([((features[block] - centre) * scale) @ axes for block in blocks]).astype(np.float64)
    values -= values.mean(0)
    return values, float((values**2).sum() / (len(rows) * varies.sum()))
