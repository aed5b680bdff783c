"""Which effects there are: of plates, of experiments, of the place on a plate; of treatments and their mechanisms.

Each is tested beyond the others: plates within their experiment; experiments beyond what their plates alone would make;
the edge beyond trends over rows and columns, rows and columns beyond the edge. Treatments are taken away first, so that
they need not be evenly spread. Where a design cannot tell two effects apart, that is said instead.

Without effects p is uniform. Where plates hold unlike treatments *and* single wells lie far out, that of experiments is
a little too large.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from biomass.errors import CannotJudgeError
from biomass.evaluation.design import FORMATS
from biomass.judgement.additive import Groups, Wells, fit_additive, judged_wells, kept
from biomass.judgement.permutations import (
    Chance,
    compare_spread,
    exchange_residuals,
    exchange_units,
    exchange_wells,
)
from biomass.judgement.table import COLUMN, COMPOUND, MECHANISM, PLATE, ROW, TREATMENT, Profiles

NAMES = ("plate", "experiment", "edge", "row", "column", "treatment", "mechanism")
"""Effects that are looked for."""

TECHNICAL, BATCH, PLACES = NAMES[:5], NAMES[:2], NAMES[2:5]
"""Those that nobody wants; of these, those of plates, and those of the place on a plate."""

NONE, WEAK, STRONG, UNKNOWN = "none", "weak", "strong", "cannot be told"

SURE = 0.01
"""p up to which an effect is named."""

_LEAST, _STRONG = 0.003, 0.25
"""Variance of an effect, in variances of wells within a plate, from which it is named, and called strong."""

_LEFT = 0.05  # of the differences between places, what must be left without treatments


@dataclass(frozen=True)
class Effect:
    """An effect, if there is one.

    Attributes:
        name: of :data:`NAMES`.
        word: none, weak, strong, or cannot be told.
        share: of the variance of profiles (in leading components), about 0 where there is none; NaN if unknown.
        deviation: its standard deviation in standard deviations of wells that are alike; NaN if unknown.
        p: by permutation; NaN if unknown.
        least: the smallest p that this design allows.
        reason: why it cannot be told, or what should be known.
        plates: how many were looked at.
    """

    name: str
    word: str
    share: float = np.nan
    deviation: float = np.nan
    p: float = np.nan
    least: float = np.nan
    reason: str = ""
    plates: int = 0

    @property
    def there(self) -> bool:
        """Whether it is named."""
        return self.word in (WEAK, STRONG)


@kept
def find_effects(profiles: Profiles, seed: int = 0) -> dict[str, Effect]:
    """Look for every effect.

    Args:
        profiles: any.
        seed: of the permutations.

    Returns:
        An :class:`Effect` for each of :data:`NAMES`.
    """
    try:
        wells = judged_wells(profiles, seed)
    except CannotJudgeError as reason:
        return {name: Effect(name, UNKNOWN, reason=str(reason)) for name in NAMES}
    places = list(_places(profiles, wells, seed))
    inside, beside = wells, ""
    if places[0].there:  # an edge effect that is not the same on all plates moves their means
        inside, beside = _inside(profiles, wells)
    plate = _plate(inside, seed) if profiles.has(PLATE) else _unknown("plate", "no column says the plate")
    found = [plate, _experiment(inside, plate, seed)]
    found = [replace(one, reason="; ".join(filter(None, (one.reason, beside)))) for one in found]
    found += [*places, _treatment(wells, seed), _mechanism(profiles, wells, seed)]
    return {effect.name: effect for effect in found}


def _inside(profiles: Profiles, wells: Wells) -> tuple[Wells, str]:
    """The wells that are not at the edge, where they are enough to compare plates."""
    row, column = (profiles.wells[role].to_numpy()[wells.rows] for role in (ROW, COLUMN))
    inside = _some(wells, ~_at_edge(row, column) | (row < 0) | (column < 0))
    if inside.plate.count < wells.plate.count:
        return wells, "some plates have wells at the edge alone: the edge effect may be part of it"
    return inside, "judged on the wells that are not at the edge"


def _unknown(name: str, reason: str) -> Effect:
    return Effect(name, UNKNOWN, reason=reason)


def total_variance(values: np.ndarray) -> float:
    """Of rows (N, K), summed over components."""
    return float(values.var(0).sum())


def _effect(
    name: str, wells: Wells, variance: float, chance: Chance, reason: str = "", total: float | None = None
) -> Effect:
    """An effect of a variance, in the units of the components; total: variance of wells, if not of all."""
    noise = max(wells.fit.noise, 1e-12)
    total = total_variance(wells.values) if total is None else total
    there = chance.p <= SURE and variance / noise >= _LEAST
    word = NONE if not there else STRONG if variance / noise >= _STRONG else WEAK
    deviation = float(np.sqrt(max(variance, 0) / noise))
    return Effect(name, word, variance / total, deviation, chance.p, chance.least, reason, wells.plate.count)


def _plate(wells: Wells, seed: int) -> Effect:
    """Plates within their experiment; where each experiment is one plate, plates."""
    plate, fit = wells.plate, wells.fit
    if plate.count < 2:
        return _unknown("plate", "there is one plate: nothing to compare it with")
    home, reason = np.zeros(plate.count, np.int64), ""
    if wells.experiment is not None and wells.experiment.count < plate.count:
        home = plate.parents(wells.experiment)
    elif wells.experiment is not None:
        reason = "every experiment is one plate: plates and experiments cannot be told apart"
    strata = Groups.of(home[plate.codes], wells.treatment.codes)
    kinds = Groups.of(strata.codes, plate.codes)
    shared = np.bincount(kinds.parents(strata), minlength=strata.count) > 1
    if not shared[strata.codes].any():
        return _unknown("plate", "no two plates of an experiment have a treatment in common, not even controls")
    comparable = Groups.of(home, fit.parts)
    keep = np.eye(plate.count) - (comparable.codes[:, None] == comparable.codes) / comparable.sizes[comparable.codes]
    freedom = plate.count - comparable.count
    squares = float((comparable.within(fit.first) ** 2).sum())
    variance = (squares - fit.noise * float((keep * fit.inverse).sum())) / freedom
    return _effect("plate", wells, variance, exchange_wells(wells.values, plate, strata, seed), reason)


class Nested(NamedTuple):
    """Units within groups: plates within experiments, compounds within mechanisms.

    Attributes:
        wells: (N,) bool, those that are looked at.
        own: the unit of each of these.
        home: the group of each unit.
        effects: (U, K) of the units, with all else taken away.
    """

    wells: np.ndarray
    own: Groups
    home: Groups
    effects: np.ndarray

    @property
    def within(self) -> float:
        """Variance of units within a group, summed over components."""
        return float((self.home.within(self.effects) ** 2).sum()) / max(self.own.count - self.home.count, 1)

    def between(self) -> np.ndarray:
        """What each unit (U,) says of the variance of groups, beyond what units within them make."""
        means, sizes = self.home.means(self.effects), self.home.sizes
        found = ((means - means.mean(0)) ** 2).sum(1) * self.home.count / (self.home.count - 1) - self.within / sizes
        return np.asarray(found[self.home.codes])

    def variance(self) -> float:
        """Variance of groups, beyond what units within them make; about 0 where these are all."""
        return float((self.between() / self.home.sizes[self.home.codes]).sum() / self.home.count)

    def weights(self) -> np.ndarray:
        """(U,) of units, so that groups count alike, and their mean is 1."""
        return self.own.count / (self.home.count * self.home.sizes[self.home.codes])


def plates_in_experiments(wells: Wells) -> Nested:
    """Plates by the treatments that all experiments have, or most.

    Raises:
        CannotJudgeError: experiments cannot be compared, or not be told from plates.
    """
    experiment = wells.experiment
    if experiment is None:
        raise CannotJudgeError("no column says the experiment")
    if experiment.count < 2:
        raise CannotJudgeError("there is one experiment: nothing to compare it with")
    if experiment.count == wells.plate.count:
        raise CannotJudgeError("every experiment is one plate: plates and experiments cannot be told apart")
    pairs = Groups.of(wells.treatment.codes, experiment.codes)
    seen = np.bincount(pairs.parents(wells.treatment), minlength=wells.treatment.count)
    use = (seen == seen.max())[wells.treatment.codes]
    own = Groups.of(wells.plate.codes[use])
    home = Groups.of(own.parents(Groups.of(experiment.codes[use])))
    fit = fit_additive(wells.values[use], own, Groups.of(wells.treatment.codes[use]))
    if home.count < 2 or fit.parts.max() > 0:
        raise CannotJudgeError("experiments have no treatment in common, not even controls")
    if own.count == home.count:
        raise CannotJudgeError("controls are on one plate an experiment: plates and experiments cannot be told apart")
    return Nested(use, own, home, fit.first)


def compounds_in_mechanisms(profiles: Profiles, wells: Wells) -> Nested:
    """Treated compounds of known mechanism.

    Raises:
        CannotJudgeError: mechanisms are not known, or cannot be compared.
    """
    role = next((role for role in (COMPOUND, TREATMENT) if profiles.has(role)), None)
    if not profiles.has(MECHANISM) or role is None:
        raise CannotJudgeError("no column says the mechanism of a compound")
    codes, unit = profiles.codes(MECHANISM)[wells.rows], profiles.codes(role)[wells.rows]
    use = (codes >= 0) & (unit >= 0) & profiles.treated[wells.rows]
    if not use.any():
        raise CannotJudgeError("no treated well has a mechanism")
    own = Groups.of(unit[use])
    home = Groups.of(own.parents(Groups.of(codes[use])))
    if home.count < 2 or home.count == own.count:
        raise CannotJudgeError(f"{own.count} compounds of {home.count} mechanisms: nothing to compare")
    if wells.fit.parts.max() > 0:
        raise CannotJudgeError("plates have no treatments in common, not even controls")
    return Nested(use, own, home, own.means(wells.fit.second[wells.treatment.codes[use]]))


def _experiment(wells: Wells, plate: Effect, seed: int) -> Effect:
    """Experiments beyond what their plates alone would make."""
    try:
        plates = plates_in_experiments(wells)
    except CannotJudgeError as why:
        return _unknown("experiment", str(why))
    variance = plates.variance()
    chance, reason = exchange_units(plates.effects, plates.home, seed), ""
    least = chance.least
    if least > SURE:
        arrangements = f"{chance.ways:.0f} ways to deal {plates.own.count} plates to {plates.home.count} experiments"
        if plate.word == NONE:
            experiment = Groups(plates.home.codes[plates.own.codes], plates.home.count)
            strata = Groups.of(wells.treatment.codes[plates.wells])
            chance = exchange_wells(wells.values[plates.wells], experiment, strata, seed)
            reason = f"{arrangements}: wells were exchanged instead, as plates of an experiment are alike"
        else:
            reason = f"{arrangements}, smallest possible p {least:.2g}: an F test was taken instead"
            chance = compare_spread(plates.effects, plates.home)
    found = _effect("experiment", wells, variance, chance, reason)
    open_question = plate.there and least > SURE and variance / wells.fit.noise >= _LEAST
    if not open_question or found.there:
        return found
    unsure = f"smallest possible p {least:.2g}; an F test is not sure either (p = {found.p:.2g})"
    return replace(found, word=UNKNOWN, reason=f"{arrangements}, {unsure}")


def _places(profiles: Profiles, wells: Wells, seed: int) -> Iterator[Effect]:
    """Edge, row and column."""
    try:
        part, raw = placed_wells(profiles, wells)
    except CannotJudgeError as reason:
        yield from (_unknown(name, str(reason)) for name in PLACES)
        return
    bases, left, why = {}, {}, {}
    for name, (about, beside) in raw.items():
        try:
            bases[name], left[name] = basis_of(name, part, about, beside)
        except CannotJudgeError as reason:
            why[name] = str(reason)
    chances = exchange_residuals(part.fit.residual, part.fit.rank, bases, part.plate, seed)
    for name in PLACES:
        if name in why:
            yield _unknown(name, why[name])
            continue
        squares = float(((bases[name].T @ part.fit.residual) ** 2).sum())
        variance = (squares - bases[name].shape[1] * part.fit.noise) / (left[name] * len(part.values))
        chance = chances[name]
        rivals = [chances[one] for one in ("row", "column") if one in chances and chances[one].p <= SURE]
        if name == "edge" and rivals:  # is it the edge, or some row at the edge?
            strict = max(chances[one].p for one in chances if one.startswith("edge"))
            chance = chance._replace(p=max(chance.p, strict))
        yield _effect(name, wells, variance, chance)


def placed_wells(profiles: Profiles, wells: Wells) -> tuple[Wells, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The wells that have a place, and the covariates of each position effect, see :func:`_covariates`.

    Raises:
        CannotJudgeError: places are not known.
    """
    if not profiles.has(ROW, COLUMN):
        raise CannotJudgeError("no column says the well")
    row, column = (profiles.wells[role].to_numpy()[wells.rows] for role in (ROW, COLUMN))
    use = (row >= 0) & (column >= 0)
    if use.sum() < 4:
        raise CannotJudgeError("no well has a place")
    return _some(wells, use), _covariates(row[use], column[use])


def _some(wells: Wells, use: np.ndarray) -> Wells:
    """Some of the wells (a mask)."""
    if use.all():
        return wells
    plate, treatment = (Groups.of(one.codes[use]) for one in (wells.plate, wells.treatment))
    experiment = None if wells.experiment is None else Groups.of(wells.experiment.codes[use])
    values = wells.values[use] - wells.values[use].mean(0)
    return Wells(wells.rows[use], values, plate, experiment, treatment, wells.held, wells.notes)


def _at_edge(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Whether wells (N,) are at the edge of the smallest plate that has them all."""
    fits = [size for size in FORMATS.values() if row.max() < size[0] and column.max() < size[1]]
    height, width = fits[0] if fits else (int(row.max()) + 1, int(column.max()) + 1)
    return (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)


def _covariates(row: np.ndarray, column: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → what is tested (N, q), and what it is tested beside (N, r)."""
    edge = _at_edge(row, column).astype(float)[:, None]
    trend = [one[:, None].astype(float) for one in (row, column)]
    each = [np.eye(int(one.max()) + 1)[one] for one in (row, column)]
    return {
        "edge": (edge, np.hstack(trend)),
        "row": (each[0], np.hstack([edge, each[1]])),
        "column": (each[1], np.hstack([edge, each[0]])),
        "edge|row": (edge, np.hstack([each[0], trend[1]])),
        "edge|column": (edge, np.hstack([each[1], trend[0]])),
    }


def basis_of(name: str, wells: Wells, about: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, float]:
    """Orthonormal columns (N, q) of what is left of covariates without plates, treatments and others; and the share."""
    before = float((wells.plate.within(about) ** 2).sum())
    if before < 1e-9 * len(about):
        at_edge = "all wells of a plate are at the edge, or none is" if about.any() else "no well is at the edge"
        raise CannotJudgeError(at_edge if name == "edge" else f"all wells of a plate are in one {name}")
    both = fit_additive(np.hstack([about, beside]), wells.plate, wells.treatment).residual
    rest, others = both[:, : about.shape[1]], both[:, about.shape[1] :]
    rest = rest - others @ (np.linalg.pinv(others.T @ others, rcond=1e-6, hermitian=True) @ (others.T @ rest))
    left = float((rest**2).sum()) / before
    if left < _LEFT:
        raise CannotJudgeError("treatments stand in the same places on all plates: the two cannot be told apart")
    value, vectors = np.linalg.eigh(rest.T @ rest)
    kept = value > 1e-3 * value[-1]
    return rest @ (vectors[:, kept] / np.sqrt(value[kept])), left


def _treatment(wells: Wells, seed: int) -> Effect:
    """Treatments within plates."""
    fit, treatment = wells.fit, wells.treatment
    freedom = treatment.count - int(fit.parts.max()) - 1
    if treatment.count < 2:
        return _unknown("treatment", "there is one treatment, or none is known")
    if freedom < 1:
        return _unknown("treatment", "no plate has two treatments: treatments and plates cannot be told apart")
    if fit.rank >= len(wells.values):
        return _unknown("treatment", "no treatment has a replicate, so that nothing says how much like wells differ")
    squares = float((wells.plate.within(fit.second[treatment.codes]) ** 2).sum())
    variance = (squares - freedom * fit.noise) / len(wells.values)
    return _effect("treatment", wells, variance, exchange_wells(wells.values, treatment, wells.plate, seed))


def _mechanism(profiles: Profiles, wells: Wells, seed: int) -> Effect:
    """Mechanisms beyond what their compounds alone would make."""
    try:
        compounds = compounds_in_mechanisms(profiles, wells)
    except CannotJudgeError as reason:
        return _unknown("mechanism", str(reason))
    chance = exchange_units(compounds.effects, compounds.home, seed)
    total = total_variance(wells.values[compounds.wells])
    return _effect("mechanism", wells, compounds.variance(), chance, total=total)
