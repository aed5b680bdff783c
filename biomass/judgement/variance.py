"""How much of the variance of profiles plates, experiments, treatments, mechanisms and places explain.

Shares are those of leading principal components, weighted by their variance (principal variance component analysis;
Boedigheimer et al. 2008), and adjusted: what as many groups without any effect would explain is taken away (ε²; Kelley
1935), so that 0 is expected by chance, and a share may come out a little below. Each is what a term explains *beyond*
the others: plates beyond treatments and treatments beyond plates, experiments beyond their plates, mechanisms beyond
their compounds.
"""

from collections.abc import Callable, Mapping

import numpy as np

from biomass.errors import CannotJudgeError
from biomass.judgement.additive import Groups, Wells, judged_wells
from biomass.judgement.effects import (
    PLACES,
    Effect,
    Nested,
    basis_of,
    compounds_in_mechanisms,
    find_effects,
    placed_wells,
    plates_in_experiments,
    total_variance,
)
from biomass.judgement.permutations import exchange_wells
from biomass.judgement.scores import Measured, Metric
from biomass.judgement.table import COMPOUND, PLATE, Profiles


def _shares(wells: Wells, explained: np.ndarray, groups: np.ndarray, p: float, note: str = "") -> Measured:
    """From what each well (N,) has of an explained sum of squares to shares of the variance."""
    total = (wells.values**2).sum(1)
    about = f"{wells.values.shape[1]} components with {100 * wells.held:.0f} % of the variance"
    said = "; ".join(filter(None, (note, about, *wells.notes)))
    values = explained / np.maximum(total, 1e-12 * max(total.max(), 1e-300))
    return Measured(values, groups, 0.0, total, p, said)


def _part(fitted: np.ndarray, values: np.ndarray, by_chance: float) -> np.ndarray:
    """What each well has of the sum of squares that a projection of the values (N, K) has, less what chance explains.

    The products sum up to the sum of squares, and vary with the wells that are drawn, as they must for an interval.
    """
    return np.asarray((fitted * values).sum(1) - by_chance / len(values))


def plate_share(profiles: Profiles, seed: int = 0) -> Measured:
    """Of plates, together with their experiments, beyond treatments."""
    if not profiles.has(PLATE):
        raise CannotJudgeError("no column says the plate")
    wells = judged_wells(profiles, seed)
    plate, fit = wells.plate, wells.fit
    freedom = plate.count - int(fit.parts.max()) - 1
    if plate.count < 2:
        raise CannotJudgeError("there is one plate: nothing to compare it with")
    if freedom < 1:
        raise CannotJudgeError("no two plates have a treatment in common, not even controls")
    own = wells.treatment.within(fit.first[plate.codes])
    p = exchange_wells(wells.values, plate, wells.treatment, seed).p
    return _shares(wells, _part(own, wells.values, freedom * fit.noise), plate.codes, p)


def experiment_share(profiles: Profiles, seed: int = 0) -> Measured:
    """Of experiments, beyond what their plates alone would make."""
    wells = judged_wells(profiles, seed)
    plates = plates_in_experiments(wells)
    effect = find_effects(profiles, seed)["experiment"]
    return _nested(plates, total_variance(wells.values), plates.home.codes, effect)


def _nested(units: Nested, total: float, groups: np.ndarray, effect: Effect) -> Measured:
    """From what units say of their groups to shares of the variance."""
    return Measured(units.between() / max(total, 1e-12), groups, 0.0, units.weights(), effect.p, effect.reason)


def treatment_share(profiles: Profiles, seed: int = 0) -> Measured:
    """Of treatments, beyond plates."""
    wells = judged_wells(profiles, seed)
    treatment, fit = wells.treatment, wells.fit
    effect = find_effects(profiles, seed)["treatment"]
    if not np.isfinite(effect.p):
        raise CannotJudgeError(effect.reason)
    freedom = treatment.count - int(fit.parts.max()) - 1
    own = wells.plate.within(fit.second[treatment.codes])
    groups = Groups.of(profiles.codes(COMPOUND)[wells.rows]) if profiles.has(COMPOUND) else treatment
    return _shares(wells, _part(own, wells.values, freedom * fit.noise), groups.codes, effect.p)


def mechanism_share(profiles: Profiles, seed: int = 0) -> Measured:
    """Of mechanisms, beyond what their compounds alone would make, of the variance of treated wells."""
    wells = judged_wells(profiles, seed)
    compounds = compounds_in_mechanisms(profiles, wells)
    effect = find_effects(profiles, seed)["mechanism"]
    total = total_variance(wells.values[compounds.wells])
    return _nested(compounds, total, np.arange(compounds.own.count), effect)


def place_share(name: str) -> Callable[[Profiles, int], Measured]:
    """Of a position effect, beyond plates and treatments, see :data:`biomass.judgement.effects.PLACES`."""

    def measure(profiles: Profiles, seed: int = 0) -> Measured:
        effect = find_effects(profiles, seed)[name]
        if not np.isfinite(effect.p):
            raise CannotJudgeError(effect.reason)
        wells, covariates = placed_wells(profiles, judged_wells(profiles, seed))
        basis, left = basis_of(name, wells, *covariates[name])
        own = basis @ (basis.T @ wells.fit.residual)
        explained = _part(own, wells.fit.residual, basis.shape[1] * wells.fit.noise) / left
        return _shares(wells, explained, wells.plate.codes, effect.p)

    return measure


_PVCA = "Boedigheimer et al. 2008; Anderson 2001"
_PLACE = "residuals exchanged within plates (Freedman & Lane 1983)"

METRICS: Mapping[str, Metric] = {
    "variance_plate": Metric(
        "variance explained by plates, with their experiments", "batch", "lower", "plates",
        "wells of a treatment exchanged between plates", _PVCA, plate_share,
    ),
    "variance_experiment": Metric(
        "variance explained by experiments, beyond their plates", "batch", "lower", "plates",
        "whole plates exchanged between experiments", _PVCA, experiment_share,
        "the interval draws whole experiments, which are few",
    ),
    **{
        f"variance_{name}": Metric(
            f"variance explained by the {name} of a plate" if name == "edge" else f"variance explained by {name}s",
            "batch", "lower", "plates", _PLACE, _PVCA, place_share(name),
            "effects that all plates have in common",
        )
        for name in PLACES
    },
    "variance_treatment": Metric(
        "variance explained by treatments, beyond plates", "biology", "higher", "compounds",
        "labels exchanged within plates", _PVCA, treatment_share,
        "in the same layout on all plates, effects of the place are among it",
    ),
    "variance_mechanism": Metric(
        "variance explained by mechanisms, beyond their compounds", "biology", "higher", "compounds",
        "compounds exchanged between mechanisms", _PVCA, mechanism_share, "of the variance of treated wells",
    ),
}  # fmt: skip
"""Key of a metric → what it is."""
