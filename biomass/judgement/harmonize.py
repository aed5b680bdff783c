"""ComBat and Harmony, the two corrections that take all wells of a plate, whatever they hold."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import CannotJudgeError, one_line
from biomass.judgement.table import PLATE, Profiles

COLUMNS = 64
"""Features that ComBat is fitted on at once: bounds its memory, and changes nothing but where its iteration stops."""

COMPONENTS = 100
"""Principal components at most that Harmony is given, which was made for few dimensions."""

MINIMUM = 60
"""Wells that Harmony needs: with fewer it makes a single cluster, and is no more than a shift of plates."""

ROWS = 8192
"""Wells that are mapped at once."""

SAMPLE = 20_000
"""Wells at most that principal components are found on."""

_EPS = 1e-8  # added to variances by combatlearn


class _Prior(NamedTuple):
    """What the plates of a fit have in common, in standardized units: each (D,).

    Attributes:
        mean: of the plates' locations, and
        variance: likewise;
        shape: of the inverse gamma distribution of the plates' variances, and
        scale: likewise.
    """

    mean: np.ndarray
    variance: np.ndarray
    shape: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, location: np.ndarray, spread: np.ndarray) -> "_Prior":
        """By moments, from the locations and variances (B, D) of plates."""
        mean, variance = spread.mean(0), np.maximum(spread.var(0, ddof=1), _EPS)
        shape = mean**2 / variance + 2
        return cls(location.mean(0), np.maximum(location.var(0, ddof=1), _EPS), shape, mean * (shape - 1))

    def shrink(self, location: np.ndarray, spread: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Location and variance (D,) of a plate of so many wells, drawn towards those of the others."""
        new, old = location, np.maximum(spread, _EPS)
        for _ in range(100):
            before = new, old
            new = (self.variance * count * location + old * self.mean) / (self.variance * count + old)
            squares = (count - 1) * np.maximum(spread, _EPS) + count * (location - new) ** 2
            old = (squares / 2 + self.scale) / (count / 2 + self.shape - 1)
            change = max(float(np.abs(a - b).max()) for a, b in zip((new, old), before, strict=True))
            if change < 1e-6:
                break
        return new, old


@dataclass(frozen=True)
class ComBat:
    """ComBat, fitted: ``x → scale x + shift`` of each plate.

    combatlearn fits the plates of the fit, and refuses all others. Here the location and the variance of a later plate
    are shrunk towards what the plates of the fit have in common, as combatlearn shrinks theirs; nothing of the fit
    changes. Note that combatlearn takes this prior, feature by feature, *over plates*. Johnson et al. (2007) take it
    over the features of a plate, which presumes that features are alike, as the genes of one array are.

    Attributes:
        plates: plate → scale and shift, (D,) both.
        centre: mean of all wells of the fit, (D,).
        spread: pooled standard deviation within its plates, (D,).
        prior: see there.
        unit: that all of these are in, (D,): a power of two near the spread of each feature. What is added to variances
            is then small beside any.
        note: what to say of the fit.
    """

    plates: Mapping[str, tuple[np.ndarray, np.ndarray]]
    centre: np.ndarray
    spread: np.ndarray
    prior: _Prior
    unit: np.ndarray
    note: str

    def transform(self, profiles: Profiles) -> Profiles:
        """Correct wells of plates that were there at the fit or come later."""
        done = np.empty(profiles.features.shape, np.float32)
        for plate, rows in plate_rows(profiles).items():
            values = profiles.features[rows] / self.unit
            scale, shift = self.plates[plate] if plate in self.plates else self._learn(values)
            done[rows] = (values * scale + shift) * self.unit
        return replace(profiles.with_features(done), notes=(*profiles.notes, *([self.note] if self.note else [])))

    def _learn(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = (values - self.centre) / self.spread
        count = len(values)
        variance = scaled.var(0, ddof=1) if count > 1 else np.zeros(len(self.centre))
        location, variance = self.prior.shrink(scaled.mean(0), variance, count)
        scale = 1 / np.sqrt(variance)
        return scale, self.centre - (self.centre + location * self.spread) * scale


def fit_combat(profiles: Profiles, seed: int = 0) -> ComBat:
    """Fit ComBat (Johnson et al. 2007, without covariates, parametric) by plate, through combatlearn.

    Args:
        profiles: of two plates or more.
        seed: nothing is drawn.

    Raises:
        CannotJudgeError: fewer than two plates have two wells.

    >>> wells = pd.DataFrame({"plate": [*"aaabbb"]})
    >>> values = np.float32([[0, 1], [1, 3], [2, 2], [10, 21], [11, 23], [12, 25]])
    >>> fit = fit_combat(Profiles(wells, values, ("f", "g")))
    >>> fit.transform(Profiles(wells, values, ("f", "g"))).features.astype(float).round(1).tolist()[::3]
    [[5.2, 11.5], [5.2, 10.9]]
    """
    from combatlearn import ComBat as Library

    plates = plate_rows(profiles)
    large = {plate: rows for plate, rows in plates.items() if len(rows) > 1}
    if len(large) < 2:
        raise CannotJudgeError(
            f"ComBat needs two plates of two wells or more, and of {len(plates)} there are {len(large)}"
        )
    rows, sizes = np.concatenate(list(large.values())), np.array([len(one) for one in large.values()])
    count = len(rows)
    # what a plate is mapped by is read from where its 0 and its 1 go: the library says no more of a fit
    probes = pd.DataFrame({"of": np.repeat(list(large), 2), "value": np.tile([0.0, 1.0], len(large))}).set_index(
        pd.RangeIndex(count, count + 2 * len(large))
    )
    batch = pd.concat([pd.Series(np.repeat(list(large), sizes)), probes["of"]])
    spreads = profiles.features[rows].std(0, dtype=np.float64)
    unit = np.exp2(np.round(np.log2(np.where(spreads > 0, spreads, 1.0))))
    found: list[tuple[np.ndarray, ...]] = []
    slow = False
    for start in range(0, profiles.features.shape[1], COLUMNS):
        some = slice(start, start + COLUMNS)
        part = pd.DataFrame(profiles.features[rows, some] / unit[some])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                model = Library(batch=batch).fit(part)
            except (ArithmeticError, ValueError) as error:  # of linear algebra, too
                raise CannotJudgeError(f"ComBat cannot be fitted ({one_line(error)})") from error
        slow |= any("converge" in str(one.message) for one in said)
        ends = model.transform(pd.DataFrame(np.repeat(probes[["value"]], part.shape[1], axis=1), probes.index))
        low, high = ends.to_numpy()[::2], ends.to_numpy()[1::2]
        found.append((high - low, low, *_moments(part.to_numpy(), sizes)))
    scales, shifts, centre, spread, location, variance = (
        np.concatenate(one, axis=-1) for one in zip(*found, strict=True)
    )
    maps = dict(zip(large, zip(scales, shifts, strict=True), strict=True))
    notes = (
        [f"{len(plates) - len(large)} plates of one well took no part in the fit"] if len(large) < len(plates) else []
    )
    notes += ["the shrinkage did not settle on some plate"] if slow else []
    said_of_fit = f"ComBat: {'; '.join(notes)}" if notes else ""
    return ComBat(maps, centre, spread, _Prior.of(location, variance), unit, said_of_fit)


def _moments(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and pooled spread (D,) of wells sorted by plate, and the plates' locations and variances (B, D) in them."""
    starts = np.cumsum(sizes) - sizes
    centre, per = values.mean(0), sizes[:, None]
    means = np.add.reduceat(values, starts) / per
    squares = np.add.reduceat((values - np.repeat(means, sizes, axis=0)) ** 2, starts)
    spread = np.sqrt(squares.sum(0) / len(values) + _EPS)
    return centre, spread, (means - centre) / spread, squares / (per - 1) / spread**2 + _EPS


@dataclass(frozen=True)
class Harmony:
    """What Harmony made of the wells that it was given.

    Attributes:
        fitted: the features (N, D) that it was fitted on.
        plates: (N,) their plates.
        components: what became of them, (N, K).
    """

    fitted: np.ndarray
    plates: np.ndarray
    components: np.ndarray

    def transform(self, profiles: Profiles) -> Profiles:
        """The wells of the fit, in principal components.

        Raises:
            CannotJudgeError: these are other wells.
        """
        same = self.fitted.shape == profiles.features.shape and np.array_equal(self.fitted, profiles.features)
        if not same or not np.array_equal(self.plates, profiles.wells[PLATE]):
            raise CannotJudgeError("Harmony corrects nothing but the wells of its fit: fit it on all wells again")
        note = f"Harmony: judged in {self.components.shape[1]} principal components of standardized features"
        return replace(profiles.with_features(self.components), notes=(*profiles.notes, note))


def fit_harmony(profiles: Profiles, seed: int = 0) -> Harmony:
    """Fit Harmony (Korsunsky et al. 2019) by plate, through harmonypy.

    Harmony clusters wells softly, and moves the plates of a cluster onto one another. It was made for few dimensions:
    it is given the leading principal components of the features (each standardized over all wells), and what it gives
    back is judged there. Bringing it back to features would add nothing to distances.

    Args:
        profiles: of two plates or more.
        seed: of its clusters, and of the wells that components are found on.

    Raises:
        CannotJudgeError: there is one plate only, or harmonypy is not installed.
    """
    try:
        from harmonypy import run_harmony
    except ImportError:
        raise CannotJudgeError(
            "the package harmonypy (licence: GPL-3) is not installed: pip install 'biomass[harmony]'"
        ) from None
    plates = plate_rows(profiles)
    if len(plates) < 2 or len(profiles) < MINIMUM:
        raise CannotJudgeError(
            f"Harmony needs two plates and {MINIMUM} wells, and there are {len(plates)} with {len(profiles)}"
        )
    components = principal_components(profiles.features, COMPONENTS, seed)
    names = profiles.wells[PLATE].to_numpy(str)
    try:
        done = run_harmony(components, pd.DataFrame({PLATE: names}), PLATE, verbose=False, random_state=seed)
    except (ArithmeticError, ValueError) as error:  # of linear algebra, too
        raise CannotJudgeError(f"Harmony cannot be fitted ({one_line(error)})") from error
    return Harmony(profiles.features, names, np.asarray(done.Z_corr, np.float32))


def principal_components(features: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The leading principal components of standardized features.

    Args:
        features: (N, D).
        count: of components at most.
        seed: of the wells that they are found on, where there are more than :data:`SAMPLE`.

    Returns:
        (N, K) float32, K <= count, those of no variance left out; signs are such that the largest weight is positive.

    >>> principal_components(np.float32([[0, 0], [1, 2], [2, 4]]), 5).ravel().round(2).tolist()
    [-1.73, 0.0, 1.73]
    """
    rows = np.arange(len(features))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))
    sample = features[rows].astype(np.float64)
    centre = sample.mean(0)
    return project(features, centre, axes(sample - centre, count))


def axes(centred: np.ndarray, count: int) -> np.ndarray:
    """What takes rows to their leading principal components: (D, K) for rows (n, D) whose mean is 0.

    Features are standardized first; those that do not vary have weights of 0.
    """
    spread = np.sqrt((centred**2).mean(0))
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    rows = centred * scale
    if len(rows) > rows.shape[1]:
        variances, directions = np.linalg.eigh(rows.T @ rows)
        variances, directions = variances[::-1], directions[:, ::-1]
    else:
        _, singular, transposed = np.linalg.svd(rows, full_matrices=False)
        variances, directions = singular**2, transposed.T
    kept = directions[:, : min(count, int((variances > max(variances[0] * 1e-10, 1e-12)).sum()))]
    signs = np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    weights: np.ndarray = scale[:, None] * kept * signs
    return weights


def project(features: np.ndarray, centre: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``(features - centre) weights``, (N, K) float32, a block of rows at a time."""
    done = np.empty((len(features), weights.shape[1]), np.float32)
    for start in range(0, len(features), ROWS):
        done[start : start + ROWS] = (features[start : start + ROWS].astype(np.float64) - centre) @ weights
    return done


def plate_rows(profiles: Profiles) -> dict[str, np.ndarray]:
    """Plate → its wells.

    Raises:
        CannotJudgeError: plates are not known.
    """
    if not profiles.has(PLATE):
        raise CannotJudgeError("which plate a well is on is not known, and a correction of plates needs it")
    codes = pd.Series(np.arange(len(profiles))).groupby(profiles.wells[PLATE].to_numpy(str))
    return {str(plate): rows.to_numpy() for plate, rows in codes}
