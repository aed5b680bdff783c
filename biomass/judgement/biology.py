"""What profiles say of biology: do replicates find each other, and do compounds of one mechanism?

Three families. *Replicates* (mean average precision, mAP; Kalinin et al. 2025): of a treatment, against the negative
controls of the well's own plate, or on other plates or in other experiments, against the other treatments of the well's
own plate. *Nearest wells*: top-1, at three of the restrictions of the ladder (:mod:`biomass.judgement.ladder`).
*Mechanisms*, on profiles of treatments (the mean of their wells): the nearest treatment of another compound (NSC, and
NSCB from another experiment; Ljosa et al. 2013, Ando et al. 2017), and mAP of the same mechanism.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import binom

from biomass.errors import CannotJudgeError
from biomass.evaluation.nearest import directions
from biomass.evaluation.replicates import significance
from biomass.judgement.additive import kept
from biomass.judgement.mechanisms import mechanism_precision, nearest_compound
from biomass.judgement.questions import QUERIES, Answers, ask, by_treatment, judge
from biomass.judgement.scores import Measured, Metric
from biomass.judgement.table import COMPOUND, CONTROL, EXPERIMENT, PLATE, TREATMENT, Profiles

RANKINGS = 2000
"""Random rankings behind the p-value of a treatment."""

_NULL = 1000  # groups of wells of different treatments
_HELD = 2**22  # features held at once


def replicates(question: str) -> Callable[[Profiles, int], Measured]:
    """mAP of the replicates of every treatment; ``question`` is one of :data:`biomass.judgement.questions.REPLICATES`.

    Before negative controls, chance is a ranking at random, in closed form, and the p-value is that of Simes (1986) for
    all treatments together: the least of their corrected ones. Before other treatments, both are of treatments dealt
    again to the wells of each plate: where plates differ, replicates elsewhere are last whoever they are.
    """

    def measure(profiles: Profiles, seed: int) -> Measured:
        if question != "same_plate":
            _asked(profiles, question, seed)
            return judge(ask(profiles, seed), TREATMENT, question, "precision")
        found, chance, group, note = _REPLICATES[question](profiles, seed)
        p = float(found["corrected_p_value"].min())
        return Measured(found["mean_average_precision"].to_numpy(), group, chance, None, p, note)

    return measure


def retrieved(question: str) -> Callable[[Profiles, int], Measured]:
    """Share of treatments whose mAP has a corrected p-value below 0.05 (Benjamini-Hochberg).

    The p-values are those of copairs, which are careful: a treatment's wells count as if they all ranked alike.
    """

    def measure(profiles: Profiles, seed: int) -> Measured:
        found, _, group, note = _REPLICATES[question](profiles, seed)
        corrected = found["corrected_p_value"].to_numpy()
        return Measured((corrected < 0.05).astype(float), group, 0.0, None, float(corrected.min()), note)

    return measure


def _asked(profiles: Profiles, question: str, seed: int) -> tuple[Answers, np.ndarray]:
    """The answers, and which wells (Q,) found a replicate.

    Raises:
        CannotJudgeError: none could.
    """
    for role in (TREATMENT, PLATE, *{"same_plate": [CONTROL], "other_experiment": [EXPERIMENT]}.get(question, [])):
        if not profiles.has(role):
            raise CannotJudgeError(f"the table does not say the {role} of its wells")
    answers = ask(profiles, seed)
    if (TREATMENT, question) not in answers.found:
        raise CannotJudgeError(answers.reasons[TREATMENT, "any"])
    answered = np.isfinite(answers.found[TREATMENT, question].precision[:, 0])
    if not answered.any():
        raise CannotJudgeError(_NO_REPLICATE[question])
    return answers, answered


def _replicates(question: str, profiles: Profiles, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, str]:
    """Of every treatment, what copairs finds, its chance and its compound; and what should be known."""
    answers, answered = _asked(profiles, question, seed)
    found = answers.found[TREATMENT, question]
    precision, chance = found.precision[:, 0], found.expected_precision[:, 0]
    scored = pd.DataFrame(
        {
            "treatment": answers.treatment,
            "n_pos_pairs": found.matches[:, 0],
            "n_total_pairs": found.candidates[:, 0],
            "average_precision": precision,
            "normalized_average_precision": (precision - chance) / (1 - chance).clip(1e-10),
        }
    )[answered].astype({"n_pos_pairs": int, "n_total_pairs": int})
    summary = significance(scored, RANKINGS, seed)
    units = by_treatment(answers, chance=chance).loc[summary["treatment"]]
    return summary, units["chance"].to_numpy(), units["group"].to_numpy(), answers.notes[TREATMENT, question]


_NO_REPLICATE = {
    "same_plate": "no treatment with a replicate is on a plate with negative controls",
    "other_plate": "no treatment has a replicate on another plate, and another treatment on its own",
    "other_experiment": "no treatment has a replicate in another experiment, and another treatment on its plate",
}

_REPLICATES = {question: kept(partial(_replicates, question)) for question in _NO_REPLICATE}


def nearest_well(restriction: str) -> Callable[[Profiles, int], Measured]:
    """Share of wells whose nearest one has the same treatment; ``restriction`` is one of the ladder."""

    def measure(profiles: Profiles, seed: int) -> Measured:
        answers = ask(profiles, seed)
        reason = answers.reasons.get((TREATMENT, restriction))
        if reason is not None:
            raise CannotJudgeError(reason)
        return judge(answers, TREATMENT, restriction, "first")

    return measure


def percent_replicating(profiles: Profiles, seed: int) -> Measured:
    """Share of treatments whose replicates are more alike than those of different treatments mostly are.

    A treatment counts if the median of the correlations (Pearson) of its replicates, at most 8 of them, lies above
    the 95th percentile of that of wells drawn from the same plates (Way et al. 2022).
    """
    if not profiles.has(TREATMENT):
        raise CannotJudgeError("the table does not say the treatment of its wells")
    treatment = np.where(profiles.negative, -1, profiles.codes(TREATMENT))
    generator = np.random.default_rng(seed)
    rows = generator.permutation(np.flatnonzero(treatment >= 0))
    wells = [group[:8] for group in pd.Series(rows).groupby(treatment[rows]).agg(list) if len(group) > 1][:QUERIES]
    if len(wells) < 2:
        raise CannotJudgeError("fewer than two treatments have a replicate")
    plate = profiles.codes(PLATE) if profiles.has(PLATE) else np.zeros(len(profiles), np.int64)
    there = {number: group.to_numpy() for number, group in pd.Series(rows).groupby(plate[rows])}
    sizes = np.array([len(group) for group in wells])
    values = np.zeros(len(wells))
    for size in np.unique(sizes):
        like = np.array([wells[i] for i in np.flatnonzero(sizes == size)])
        drawn = like[generator.integers(0, len(like), _NULL)]
        null = _alike(profiles, np.array([[generator.choice(there[one]) for one in group] for group in plate[drawn]]))
        values[sizes == size] = _alike(profiles, like) > np.quantile(null, 0.95)
    code = profiles.codes(COMPOUND if profiles.has(COMPOUND) else TREATMENT)
    p = binom.sf(values.sum() - 1, len(values), 0.05)
    note = f"{len(wells)} treatments, drawn at random" if len(wells) == QUERIES else ""
    return Measured(values, code[[group[0] for group in wells]], 0.05, None, float(p), note)


def _alike(profiles: Profiles, rows: np.ndarray) -> np.ndarray:
    """The median correlation (G,) of all pairs of the wells of each group (G, n)."""
    found, pair = [], np.triu_indices(rows.shape[1], 1)
    for some in np.array_split(rows, max(1, rows.size * profiles.features.shape[1] // _HELD)):
        unit = directions(profiles.features[some.ravel()].astype(np.float64), centre=True).reshape(*some.shape, -1)
        found.append(np.median((unit @ unit.transpose(0, 2, 1))[:, pair[0], pair[1]], axis=1))
    return np.concatenate(found)


_KALININ = "Kalinin et al. 2025, Nature Communications 16:5181"
_RANKED = "a ranking at random, in closed form (Bestgen 2015)"
_CORRECTED = "nothing: without effects, corrected p-values below 0.05 are found in one table of twenty"
_WITHIN_PLATES = "treatments dealt again to the wells of each plate"
_MECHANISMS = "share of treatments with the mechanism among those that may be nearest; p: mechanisms dealt again"
_APART = "low where plates differ, whether or not treatments do: rivals are of the own plate, see the ladder"
_PLACE = "replicates that share their place on the plate are found by an effect of the place, too"
_MET = {
    "same_plate": ("before the negative controls of their plate", _PLACE),
    "other_plate": ("on other plates, before other treatments of their own", _APART),
    "other_experiment": ("in other experiments, before other treatments of their plate", _APART),
}
_NEAR = {
    "any": ("", "the plate helps where replicates share it, and hinders where they do not"),
    "plate": (" of another plate", _PLACE),
    "experiment": (" of another experiment", _PLACE),
}


def _metric(title: str, measure: Callable[[Profiles, int], Measured], null: str, cites: str, limits: str) -> Metric:
    return Metric(title, "biology", "higher", "compounds", null, cites, measure, limits)


METRICS: Mapping[str, Metric] = {
    **{
        f"map_{question}": _metric(
            f"replicates {where} (mAP)",
            replicates(question),
            _RANKED if question == "same_plate" else _WITHIN_PLATES,
            _KALININ,
            limits,
        )
        for question, (where, limits) in _MET.items()
    },
    **{
        f"found_{question}": _metric(
            f"treatments found: replicates {where} (share with corrected p < 0.05)",
            retrieved(question),
            _CORRECTED,
            _KALININ,
            f"p-values take the wells of a treatment as if all ranked alike, so they are rather too large; {limits}",
        )
        for question, (where, limits) in _MET.items()
    },
    **{
        f"top1_{restriction}": _metric(
            f"the nearest well{where} has the same treatment",
            nearest_well(restriction),
            _WITHIN_PLATES,
            "Recall@1 of Lu et al. 2026, arXiv 2605.15383",
            limits,
        )
        for restriction, (where, limits) in _NEAR.items()
    },
    "percent_replicating": _metric(
        "treatments whose replicates are alike (percent replicating)",
        percent_replicating,
        "as many wells drawn from the same plates: 5 % by definition; p binomial",
        "Way et al. 2022, Cell Systems 13:911",
        _PLACE,
    ),
    "nsc": _metric(
        "the nearest treatment of another compound has the same mechanism (NSC)",
        nearest_compound(other_experiment=False),
        _MECHANISMS,
        "Ljosa et al. 2013, Journal of Biomolecular Screening 18:1321",
        "mechanisms that were screened in one experiment are found by the experiment, too: read NSCB",
    ),
    "nscb": _metric(
        "the same, from another experiment (NSCB)",
        nearest_compound(other_experiment=True),
        _MECHANISMS,
        "Ando et al. 2017, bioRxiv 161422",
        "only treatments whose mechanism is in two experiments count",
    ),
    "map_mechanism": _metric(
        "other compounds of the same mechanism come first (mAP, profiles of treatments)",
        mechanism_precision,
        f"{_RANKED}; p: mechanisms dealt again",
        _KALININ,
        "mechanisms that were screened in one experiment are found by the experiment, too",
    ),
}
"""Of biology; all need labels."""
