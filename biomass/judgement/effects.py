"""Which effects there are: of plates, of experiments, of the place on a plate; of treatments and their mechanisms.

Each is tested beyond the others: plates within their experiment; experiments beyond what their plates alone would make;
the edge beyond trends over rows and columns, rows and columns beyond the edge. Treatments are taken away first, so that
they need not be evenly spread. Where a design cannot tell two effects apart, that is said instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from biomass.evaluation.design import FORMATS
from biomass.judgement.additive import Groups, Wells, fit_additive, judged_wells
from biomass.judgement.permutations import (
    Chance,
    compare_spread,
    exchange_residuals,
    exchange_units,
    exchange_wells,
)
from biomass.judgement.scores import CannotJudgeError
from biomass.judgement.table import COLUMN, COMPOUND, MECHANISM, PLATE, ROW, TREATMENT, Profiles

NAMES = ("plate", "experiment", "edge", "row", "column", "treatment", "mechanism")
"""Effects that are looked for."""

TECHNICAL = NAMES[:5]
"""Those that nobody wants."""

NONE, WEAK, STRONG, UNKNOWN = "none", "weak", "strong", "cannot be told"

SURE = 0.01
"""p up to which an effect is named."""

_LEAST, _STRONG = 0.003, 0.1
"""Variance of an effect, in variances of wells within a plate, from which it is named, and called strong."""

_LEFT = 0.02  # of the differences between places, what must be left without treatments


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
    """

    name: str
    word: str
    share: float = np.nan
    deviation: float = np.nan
    p: float = np.nan
    least: float = np.nan
    reason: str = ""

    @property
    def there(self) -> bool:
        """Whether it is named."""
        return self.word in (WEAK, STRONG)


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
    plate = _plate(wells, seed) if profiles.has(PLATE) else _unknown("plate", "no column says the plate")
    found = [plate, _experiment(wells, plate, seed), *_places(profiles, wells, seed)]
    found += [_treatment(wells, seed), _mechanism(profiles, wells, seed)]
    return {effect.name: effect for effect in found}


def _unknown(name: str, reason: str) -> Effect:
    return Effect(name, UNKNOWN, reason=reason)


def _effect(name: str, wells: Wells, variance: float, chance: Chance, reason: str = "") -> Effect:
    """An effect of a variance, in the units of the components."""
    noise = max(wells.fit.noise, 1e-12)
    total = float((wells.values**2).sum() / len(wells.values))
    there = chance.p <= SURE and variance / noise >= _LEAST
    word = NONE if not there else STRONG if variance / noise >= _STRONG else WEAK
    deviation = float(np.sqrt(max(variance, 0) / noise))
    return Effect(name, word, variance / total, deviation, chance.p, chance.least, reason)


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


def _experiment(wells: Wells, plate: Effect, seed: int) -> Effect:
    """Experiments beyond what their plates alone would make."""
    name, experiment = "experiment", wells.experiment
    if experiment is None:
        return _unknown(name, "no column says the experiment")
    if experiment.count < 2:
        return _unknown(name, "there is one experiment: nothing to compare it with")
    if experiment.count == wells.plate.count:
        return _unknown(name, "every experiment is one plate: plates and experiments cannot be told apart")
    pairs = Groups.of(wells.treatment.codes, experiment.codes)
    seen = np.bincount(pairs.parents(wells.treatment), minlength=wells.treatment.count)
    use = (seen == (experiment.count if (seen == experiment.count).any() else seen.max()))[wells.treatment.codes]
    own = Groups.of(wells.plate.codes[use])
    home = Groups.of(own.parents(Groups.of(experiment.codes[use])))
    fit = fit_additive(wells.values[use], own, Groups.of(wells.treatment.codes[use]))
    if home.count < 2 or fit.parts.max() > 0:
        return _unknown(name, "experiments have no treatment in common, not even controls")
    if own.count == home.count:
        return _unknown(name, "controls are on one plate an experiment: plates and experiments cannot be told apart")
    means, within = home.means(fit.first), home.within(fit.first)
    spread = float((within**2).sum()) / (own.count - home.count)
    variance = float(((means - means.mean(0)) ** 2).sum()) / (home.count - 1) - spread * float((1 / home.sizes).mean())
    chance, reason = exchange_units(fit.first, home, seed), ""
    if chance.least > SURE:
        arrangements = f"{chance.ways:.0f} ways to deal {own.count} plates to {home.count} experiments"
        if plate.word == NONE:
            strata = Groups.of(wells.treatment.codes[use])
            chance = exchange_wells(wells.values[use], Groups.of(experiment.codes[use]), strata, seed)
            reason = f"{arrangements}: wells were exchanged instead, as plates of an experiment are alike"
        else:
            reason = f"{arrangements}, smallest possible p {chance.least:.2g}: an F test was taken instead"
            chance = compare_spread(fit.first, home)
    return _effect(name, wells, variance, chance, reason)


def _places(profiles: Profiles, wells: Wells, seed: int) -> Iterator[Effect]:
    """Edge, row and column."""
    names = ("edge", "row", "column")
    if not profiles.has(ROW, COLUMN):
        yield from (_unknown(name, "no column says the well") for name in names)
        return
    row, column = (profiles.wells[role].to_numpy()[wells.rows] for role in (ROW, COLUMN))
    use = (row >= 0) & (column >= 0)
    if use.sum() < 4:
        yield from (_unknown(name, "no well has a place") for name in names)
        return
    part = _some(wells, use)
    raw = _covariates(row[use], column[use])
    bases, left, why = {}, {}, {}
    for name, (about, beside) in raw.items():
        known = (name.partition("|")[0], *names)[0]
        try:
            bases[name], left[name] = _basis(part, about, beside)
        except CannotJudgeError as reason:
            why[known] = str(reason)
    chances = exchange_residuals(part.fit.residual, bases, part.plate, seed)
    for name in names:
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


def _some(wells: Wells, use: np.ndarray) -> Wells:
    """Some of the wells (a mask)."""
    if use.all():
        return wells
    plate, treatment = (Groups.of(one.codes[use]) for one in (wells.plate, wells.treatment))
    values = wells.values[use] - wells.values[use].mean(0)
    return Wells(wells.rows[use], values, plate, None, treatment, wells.held, wells.notes)


def _covariates(row: np.ndarray, column: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → what is tested (N, q), and what it is tested beside (N, r)."""
    fits = [size for size in FORMATS.values() if row.max() < size[0] and column.max() < size[1]]
    height, width = fits[0] if fits else (int(row.max()) + 1, int(column.max()) + 1)
    edge = ((row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)).astype(float)[:, None]
    trend = [one[:, None].astype(float) for one in (row, column)]
    each = [np.eye(int(one.max()) + 1)[one] for one in (row, column)]
    return {
        "edge": (edge, np.hstack(trend)),
        "row": (each[0], edge),
        "column": (each[1], edge),
        "edge|row": (edge, np.hstack([each[0], trend[1]])),
        "edge|column": (edge, np.hstack([each[1], trend[0]])),
    }


def _basis(wells: Wells, about: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, float]:
    """Orthonormal columns (N, q) of what is left of covariates without plates, treatments and others; and the share."""
    before = float((wells.plate.within(about) ** 2).sum())
    if before < 1e-9 * len(about):
        raise CannotJudgeError("all wells lie in one such place")
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
    squares = float((wells.plate.within(fit.second[treatment.codes]) ** 2).sum())
    variance = (squares - freedom * fit.noise) / len(wells.values)
    return _effect("treatment", wells, variance, exchange_wells(wells.values, treatment, wells.plate, seed))


def _mechanism(profiles: Profiles, wells: Wells, seed: int) -> Effect:
    """Mechanisms beyond what their compounds alone would make."""
    name = "mechanism"
    role = next((role for role in (COMPOUND, TREATMENT) if profiles.has(role)), None)
    if not profiles.has(MECHANISM) or role is None:
        return _unknown(name, "no column says the mechanism of a compound")
    codes, unit = profiles.codes(MECHANISM)[wells.rows], profiles.codes(role)[wells.rows]
    use = (codes >= 0) & (unit >= 0) & profiles.treated[wells.rows]
    if not use.any():
        return _unknown(name, "no treated well has a mechanism")
    own = Groups.of(unit[use])
    home = Groups.of(own.parents(Groups.of(codes[use])))
    if home.count < 2 or home.count == own.count:
        return _unknown(name, f"{own.count} compounds of {home.count} mechanisms: nothing to compare")
    if wells.fit.parts.max() > 0:
        return _unknown(name, "plates have no treatments in common, not even controls")
    effects = own.means(wells.fit.second[wells.treatment.codes[use]])
    within = float((home.within(effects) ** 2).sum()) / (own.count - home.count)
    means = home.means(effects)
    variance = float(((means - means.mean(0)) ** 2).sum()) / (home.count - 1) - within * float((1 / home.sizes).mean())
    return _effect(name, wells, variance, exchange_units(effects, home, seed))
