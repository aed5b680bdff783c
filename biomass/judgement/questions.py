"""What wells are asked: whose match is whose, which candidates are left out, who asks, and what chance gives.

All questions to the same profiles are answered in one pass, see :func:`ask`; the ladder and the metrics of biology
read their numbers from it.
"""

import weakref
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.judgement.retrieval import CODES, Admits, Found, Labels, Places, Question, retrieve
from biomass.judgement.scores import Measured
from biomass.judgement.table import COMPOUND, EXPERIMENT, MECHANISM, PLATE, SOURCE, TREATMENT, WELL, Profiles

QUERIES, SHUFFLES = 2000, 199
"""Most wells that ask, and how often labels are shuffled."""

UNITS: Mapping[str, str] = {TREATMENT: "", MECHANISM: COMPOUND, COMPOUND: TREATMENT}
"""What matches have in common, and what they must not have in common: nothing where any other well will do."""


class Restriction(NamedTuple):
    """Which candidates are left out.

    Attributes:
        title: for people.
        role: what a candidate must not have in common with the query; empty where all are candidates.
        level: least level of a candidate, see :class:`biomass.judgement.retrieval.Places`.
    """

    title: str
    role: str
    level: int


RESTRICTIONS: Mapping[str, Restriction] = {
    "any": Restriction("any match", "", 0),
    "position": Restriction("not the same well position", WELL, 0),
    "plate": Restriction("not the same plate", PLATE, 1),
    "experiment": Restriction("not the same experiment", EXPERIMENT, 2),
    "source": Restriction("not the same source", SOURCE, 3),
}
"""From the mildest to the strictest."""

REPLICATES: Mapping[str, tuple[int, bool]] = {
    "same_plate": (0, True),
    "other_plate": (1, False),
    "other_experiment": (2, False),
}
"""Questions to replicates, whose rivals are on the query's own plate: least level of a match, and whether the rivals
are the negative controls there, or the other treatments. As in :mod:`biomass.evaluation.replicates`."""

_ASKED = 100_000_000
"""Bound of the time: queries times wells."""

_COMPARED, _PAIRS = 25_000_000, 10_000_000
"""Bounds of the time under shuffled labels: queries times candidates, and pairs of a query and a match."""

_ALONE = {
    TREATMENT: "no treatment has a replicate",
    MECHANISM: "no mechanism has two compounds",
    COMPOUND: "no compound was given as two treatments",
}
_TOGETHER = {
    TREATMENT: "every replicate of a treatment",
    MECHANISM: "every compound of a mechanism",
    COMPOUND: "every treatment with a compound",
}
_AT = {WELL: "in", PLATE: "on", EXPERIMENT: "of", SOURCE: "of"}


class Answers(NamedTuple):
    """What the wells of profiles found.

    Attributes:
        queries: (Q,) rows that asked, in an order at random.
        few: how many of them, from the first on, asked under shuffled labels, too.
        codes: role → the number (N,) of each well's value.
        reasons: (label, restriction) → why it cannot be told.
        notes: (label, restriction) → what should be known.
        found: (label, restriction) → what was found, for restrictions and for :data:`REPLICATES`.
    """

    queries: np.ndarray
    few: int
    codes: dict[str, np.ndarray]
    reasons: dict[tuple[str, str], str]
    notes: dict[tuple[str, str], str]
    found: dict[tuple[str, str], Found]

    @property
    def treatment(self) -> np.ndarray:
        """(Q,) number of the treatment of each query; of its compound where treatments are not known."""
        return self.codes[TREATMENT if TREATMENT in self.codes else COMPOUND][self.queries]


_last: list[tuple["weakref.ref[Profiles]", int, Answers]] = []  # the metrics of the same profiles share one pass


def ask(profiles: Profiles, seed: int = 0) -> Answers:
    """Ask all questions; those who ask them are drawn, if there are many, as evenly over treatments as can be.

    Negative controls neither ask nor are they candidates (but for ``same_plate``), nor are wells whose treatment,
    or label, is not known.
    """
    for of, at, answers in _last:
        if of() is profiles and at == seed:
            return answers
    answers = _ask(profiles, np.random.default_rng(seed))
    _last[:] = [(weakref.ref(profiles), seed, answers)]
    return answers


def judge(answers: Answers, label: str, restriction: str, measure: str) -> Measured:
    """One value a treatment: the mean of its wells that asked; and what chance gives.

    Chance is that of a ranking at random, in closed form, plus what shuffled labels find beyond it.

    Args:
        answers: of :func:`ask`.
        label: of :data:`UNITS`.
        restriction: of :data:`RESTRICTIONS`.
        measure: ``first`` or ``precision``.
    """
    found = answers.found[label, restriction]
    values, chance = getattr(found, measure), getattr(found, f"expected_{measure}")
    units = by_treatment(answers, value=values[:, 0], chance=chance[:, 0])
    excess = (values - chance)[: answers.few]
    answered = np.isfinite(excess)
    mean = np.where(answered, excess, 0).sum(0) / np.maximum(answered.sum(0), 1)
    p = (1 + (mean[1:] >= mean[0] - 1e-12).sum()) / len(mean) if answered[:, 0].any() else np.nan
    null = np.clip(units["chance"].to_numpy() + mean[1:].mean(), 0, 1)
    note = answers.notes.get((label, restriction), "")
    return Measured(units["value"].to_numpy(), units["group"].to_numpy(), null, None, float(p), note)


def by_treatment(answers: Answers, **values: np.ndarray) -> pd.DataFrame:
    """Means over the queries of each treatment of values (Q,), and ``group``, the compound of the treatment."""
    treatment = answers.treatment
    group = answers.codes[COMPOUND][answers.queries] if COMPOUND in answers.codes else treatment
    known, first, number = np.unique(treatment, return_index=True, return_inverse=True)
    found: dict[str, np.ndarray] = {}
    for name, value in values.items():
        finite = np.isfinite(value)
        counts = np.bincount(number[finite], minlength=len(known))
        sums = np.bincount(number[finite], value[finite], len(known))
        found[name] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    # a well whose compound is not known is drawn with its treatment alone
    found["group"] = np.where(group < 0, -2 - treatment, group)[first]
    return pd.DataFrame(found, index=known)


def _ask(profiles: Profiles, generator: np.random.Generator) -> Answers:
    roles = (TREATMENT, COMPOUND, MECHANISM, WELL, PLATE, EXPERIMENT, SOURCE)
    codes = {role: profiles.codes(role) for role in roles if profiles.has(role)}
    negative = profiles.negative
    answers = Answers(np.zeros(0, np.int64), 0, codes, {}, {}, {})
    asked, admits = {}, {}
    for label, unit in UNITS.items():
        labels = _labels(codes, label, unit, negative)
        if isinstance(labels, str):
            answers.reasons.update(dict.fromkeys(((label, name) for name in RESTRICTIONS), labels))
        else:
            asked[label] = labels
            admits[label] = _restrict(codes, label, labels, answers)
    if not asked:
        return answers
    if TREATMENT in asked and PLATE in codes:
        level = np.arange(CODES) // 2
        for name, (least, controls) in REPLICATES.items():
            admits[TREATMENT][name] = Admits(level >= least, level == 0, negative if controls else None)
    most = int(np.clip(_ASKED // len(profiles), 500, QUERIES))
    queries = _sample(answers, list(asked.values()), generator)[:most]
    matches = {k: np.bincount(one.of_wells() + 1)[one.of_wells()[queries] + 1].mean() for k, one in asked.items()}
    few = min(len(queries), max(100, _COMPARED // len(profiles)))
    times = {k: int(np.clip(_PAIRS / few / count, 19, SHUFFLES)) for k, count in matches.items()}
    few = min(few, max(50, int(_PAIRS / max(times[k] * count for k, count in matches.items()))))
    questions = {}
    for label, labels in asked.items():
        shuffles = labels.shuffled(_strata(codes, label, labels), times[label], generator)
        questions[label] = Question([labels, *shuffles], admits[label])
    places = Places(*(codes.get(role) for role in (WELL, PLATE, EXPERIMENT, SOURCE)))
    found = retrieve(profiles.features, queries, places, questions, few)
    drawn = [f"{most} wells drawn evenly over treatments ask"] if len(queries) == most else []
    drawn += [f"{few} of {len(queries)} under shuffled labels, too"] if len(queries) > few else []
    _explain(answers, found, asked, queries, ", ".join(drawn))
    return answers._replace(queries=queries, few=few, found=found)


def _labels(codes: dict[str, np.ndarray], label: str, unit: str, negative: np.ndarray) -> Labels | str:
    """Who is whose match; or why nobody is."""
    for role in (label, unit):
        if role and role not in codes:
            return f"the table does not say the {role} of its wells"
    of = codes[unit] if unit else np.arange(len(negative))
    kept = ~negative & (codes[label] >= 0) & (of >= 0) & (codes.get(TREATMENT, of) >= 0)
    if not kept.any():
        return f"no well but negative controls has a {label}"
    labels = label_units(np.where(kept, of, -1), codes[label])
    return labels if np.bincount(labels.label).max() > 1 else _ALONE[label]


def label_units(unit: np.ndarray, label: np.ndarray) -> Labels:
    """The labels of units from the numbers (N,) of both in each row; unit -1 is no candidate.

    A unit has one label. Of one with several (a compound with two mechanisms), rows with another than that of its
    first row are no candidates.

    >>> label_units(np.array([5, 5, 7, -1]), np.array([2, 3, 3, 3]))
    Labels(unit=array([ 0, -1,  1, -1]), label=array([0, 1]))
    """
    kept = unit >= 0
    units = np.full(len(unit), -1, np.int64)
    _, first, units[kept] = np.unique(unit[kept], return_index=True, return_inverse=True)
    of = label[kept][first]
    units[kept & (of[units] != label)] = -1
    return Labels(units, np.unique(of, return_inverse=True)[1])


def _strata(codes: dict[str, np.ndarray], label: str, labels: Labels) -> np.ndarray:
    """Treatments are shuffled among the wells of each plate, the rest freely."""
    if label == TREATMENT and PLATE in codes:
        return codes[PLATE][labels.unit >= 0]
    return np.zeros(len(labels.label), np.int64)


def _restrict(codes: dict[str, np.ndarray], label: str, labels: Labels, answers: Answers) -> dict[str, Admits]:
    """What each restriction admits; into the answers, what cannot be told and why."""
    admits = {}
    level, same_position = np.divmod(np.arange(CODES), 2)
    spread = _spread(labels, codes[WELL]) if WELL in codes else np.zeros(0, bool)
    for name, (_, role, least) in RESTRICTIONS.items():
        if role and role not in codes:
            answers.reasons[label, name] = f"the table does not say the {_called(role)} of its wells"
        elif role and len(np.unique(codes[role][labels.unit >= 0])) < 2:
            answers.reasons[label, name] = f"all wells are {_AT[role]} one {_called(role)}"
        else:
            admitted = level >= least
            if role == WELL or (least and (label, "position") not in answers.reasons and spread.mean() >= 0.5):
                admitted = admitted & (same_position == 0)
            elif least and (label, "position") not in answers.reasons:
                of = f"of {(~spread).sum()} of {len(spread)} {label}s"
                answers.notes[label, name] = f"the same well position is admitted, which is that of all wells {of}"
            admits[name] = Admits(admitted, admitted)
    return admits


def _called(role: str) -> str:
    return "well position" if role == WELL else role


def _spread(labels: Labels, place: np.ndarray) -> np.ndarray:
    """Labels of several units: whether their wells are in several places, (of them,) bool."""
    of = labels.of_wells()
    known = (of >= 0) & (place >= 0)
    pairs = np.unique(of[known] * (place.max() + 1) + place[known]) // (place.max() + 1)
    several = np.bincount(labels.label) > 1
    return np.bincount(pairs, minlength=len(several))[several] > 1


def _sample(answers: Answers, labels: list[Labels], generator: np.random.Generator) -> np.ndarray:
    """At most :data:`QUERIES` wells with a label that others have, too; a well of every treatment first, then another
    of each, and so on."""
    asks = np.logical_or.reduce([(one.unit >= 0) & (np.bincount(one.label)[one.of_wells()] > 1) for one in labels])
    rows = generator.permutation(np.flatnonzero(asks))
    treatment = answers._replace(queries=rows).treatment
    turn = pd.Series(treatment).groupby(treatment).cumcount().to_numpy()
    return rows[np.argsort(turn, kind="stable")][:QUERIES]


def _explain(
    answers: Answers, found: dict[tuple[str, str], Found], asked: dict[str, Labels], queries: np.ndarray, drawn: str
) -> None:
    """Into the answers: where no well found a match, why; else how many could, and who was drawn."""
    treatment = answers._replace(queries=queries).treatment
    most = dict.fromkeys(asked, 0)
    for (label, name), one in found.items():
        judged = len(np.unique(treatment[np.isfinite(one.first[:, 0])]))
        role = RESTRICTIONS[name].role if name in RESTRICTIONS else ""
        most[label] = max(most[label], judged)
        fewer = f"{judged} of {most[label]} treatments have such a match" if judged < most[label] else ""
        answers.notes[label, name] = "; ".join(filter(None, [fewer, answers.notes.get((label, name), ""), drawn]))
        if judged:
            continue
        answers.reasons[label, name] = "no well has both a match and a rival under all restrictions down to this one"
        if role and not _spread(asked[label], answers.codes[role]).any():
            answers.reasons[label, name] = f"{_TOGETHER[label]} is {_AT[role]} the same {_called(role)}"
