"""The ladder: the same question with ever stricter candidates, so that one sees where the signal came from.

A replicate that is found on the same plate may be found by its biology or by its plate. So every task of retrieval is
asked again without the candidates that share the query's place on the plate, then its plate, its experiment, its
source (MorphoHELM, arXiv 2605.15383, evaluates each task at several degrees of batch effects). What a step down the
ladder loses was not told by biology alone.

A restriction holds for *matches and rivals alike*, as in NSCB (Ando et al. 2017): a well of the query's own plate is
then no candidate at all. If it held for matches only, the rivals of the query's own plate would stay, and a value would
mix two things, how far the effect travels and how strong the plate is; that other question is asked by
``other_plate`` of :mod:`biomass.evaluation.replicates` (where Kalinin et al. 2025 and Arevalo et al. 2024 take their
rivals is a choice of theirs per question, too). Restrictions are cumulative. One exception: where the replicates of
more than half of the treatments always share their place on the plate, as with plates made from one map, that place is
restricted in its own row only, and the rows behind it say so.

Chance is what the same wells give when labels are dealt again: treatments among the wells of each plate, mechanisms
among compounds, compounds among treatments. Where plates and treatments go together, the plate is in this chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.judgement.retrieval import CODES, Found, Labels, Places, Question, retrieve
from biomass.judgement.scores import Measured, summarize
from biomass.judgement.table import COMPOUND, EXPERIMENT, MECHANISM, PLATE, SOURCE, TREATMENT, WELL, Profiles

QUERIES, SHUFFLED_QUERIES, SHUFFLES = 2000, 500, 199
"""Most wells that ask, those of them that ask under shuffled labels, too, and how often labels are shuffled."""

_PAIRS = 25_000_000
"""Pairs of a query and a match under shuffled labels: bounds the time where a label has thousands of wells."""


@dataclass(frozen=True)
class Task:
    """A question of retrieval.

    Attributes:
        title: for people.
        label: the role that matches have in common with the query.
        unit: the role that they must not have in common with it; empty where any other well will do.
        measure: ``first`` (is the nearest candidate a match: top-1, Recall@1) or ``precision`` (mean average
            precision).
    """

    title: str
    label: str
    unit: str
    measure: str


TASKS: Mapping[str, Task] = {
    "treatment_top1": Task("nearest well has the same treatment", TREATMENT, "", "first"),
    "treatment_map": Task("wells of the same treatment come first (mAP)", TREATMENT, "", "precision"),
    "mechanism_top1": Task("nearest well of another compound has the same mechanism", MECHANISM, COMPOUND, "first"),
    "mechanism_map": Task("other compounds of the same mechanism come first (mAP)", MECHANISM, COMPOUND, "precision"),
    "compound_top1": Task("nearest well of another treatment has the same compound", COMPOUND, TREATMENT, "first"),
    "compound_map": Task(
        "other concentrations of the same compound come first (mAP)", COMPOUND, TREATMENT, "precision"
    ),
}


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


class Rung(NamedTuple):
    """One row of the ladder: a :class:`biomass.judgement.scores.Score` of a task under a restriction."""

    task: str
    restriction: str
    value: float
    low: float
    high: float
    null: float
    p: float
    n: int
    note: str


def climb(profiles: Profiles, seed: int = 0, tasks: Mapping[str, Task] = TASKS) -> list[Rung]:
    """Every task under every restriction.

    The unit is a treatment: the mean of its wells that ask. Negative controls neither ask nor are candidates.

    Args:
        profiles: of wells.
        seed: of the sample of queries, the shuffles and the bootstrap.
        tasks: those of :data:`TASKS` that are asked.

    Returns:
        A rung a task and restriction; one that cannot be told has no value and says why.

    >>> wells = pd.DataFrame({"treatment": list("aabb") * 2, "plate": ["P1"] * 4 + ["P2"] * 4})
    >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2, np.float32)
    >>> rungs = climb(Profiles(wells, features, ("f", "g")))
    >>> [(rung.restriction, rung.value, rung.note) for rung in rungs if rung.task == "treatment_top1"][:2]
    [('any', 1.0, ''), ('position', nan, 'the table does not say the well position of its wells')]
    """
    asked = {task.label: _labels(profiles, task.label, task.unit) for task in tasks.values()}
    possible = {label: found for label, found in asked.items() if isinstance(found, Labels)}
    plans = {label: _plan(profiles, label, labels) for label, labels in possible.items()}
    answers = _retrieve(profiles, possible, plans, np.random.default_rng(seed))
    rungs = []
    for name, task in tasks.items():
        labels, most = asked[task.label], 0
        for restriction in RESTRICTIONS:
            reason = labels if isinstance(labels, str) else plans[task.label].impossible.get(restriction)
            if reason is None and not isinstance(labels, str):
                found = _measured(profiles, answers, task, restriction)
                judged = int(np.isfinite(found.values).sum())
                most = max(most, judged)
                if judged:
                    notes = [f"{judged} of {most} treatments have such a match" if judged < most else ""]
                    notes += [plans[task.label].notes.get(restriction, ""), found.note]
                    score = summarize(name, found._replace(note="; ".join(filter(None, notes))), seed)
                    rungs.append(Rung(name, restriction, *score[1:]))
                    continue
                reason = _no_match(profiles, task.label, labels, RESTRICTIONS[restriction].role)
            rungs.append(Rung(name, restriction, *(np.nan,) * 5, 0, str(reason)))
    return rungs


def _labels(profiles: Profiles, label: str, unit: str) -> Labels | str:
    """Who is whose match; or why nobody is."""
    for role in (label, unit):
        if role and not profiles.has(role):
            return f"the table does not say the {role} of its wells"
    kept = ~profiles.negative & (profiles.codes(label) >= 0)
    if profiles.has(TREATMENT):
        kept &= profiles.codes(TREATMENT) >= 0
    of = profiles.codes(unit) if unit else np.arange(len(profiles))
    kept &= of >= 0
    units = np.full(len(profiles), -1, np.int64)
    _, first, units[kept] = np.unique(of[kept], return_index=True, return_inverse=True)
    labels = Labels(units, np.unique(profiles.codes(label)[kept][first], return_inverse=True)[1])
    if np.bincount(labels.label, minlength=1).max() < 2:
        return _ALONE[label]
    return labels


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


def _no_match(profiles: Profiles, label: str, labels: Labels, role: str) -> str:
    """Why a restriction leaves no match."""
    if role and not _spread(labels, profiles.codes(role)).any():
        return (
            f"{_TOGETHER[label]} is {'in' if role == WELL else 'on' if role == PLATE else 'of'} the same {_name(role)}"
        )
    return "no well has both a match and a rival under all restrictions down to this one"


def _name(role: str) -> str:
    return "well position" if role == WELL else role


def _spread(labels: Labels, place: np.ndarray) -> np.ndarray:
    """Labels of several units: whether their wells are in several places, (of them,) bool."""
    of = labels.of_wells()
    known = (of >= 0) & (place >= 0)
    pairs = np.unique(np.stack([of[known], place[known]]), axis=1)[0]
    return np.bincount(pairs, minlength=labels.label.max() + 1)[np.bincount(labels.label) > 1] > 1


class _Plan(NamedTuple):
    admits: dict[str, np.ndarray]
    impossible: dict[str, str]
    notes: dict[str, str]


def _plan(profiles: Profiles, label: str, labels: Labels) -> _Plan:
    """What each restriction admits, and what some of them cannot be told for."""
    plan = _Plan({}, {}, {})
    level, same_position = np.divmod(np.arange(CODES), 2)
    spread = _spread(labels, profiles.codes(WELL)) if profiles.has(WELL) else np.zeros(1, bool)
    for name, (_, role, least) in RESTRICTIONS.items():
        if role and not profiles.has(role):
            plan.impossible[name] = f"the table does not say the {_name(role)} of its wells"
        elif role and len(np.unique(profiles.codes(role)[labels.unit >= 0])) < 2:
            plan.impossible[name] = (
                f"all wells are {'in' if role == WELL else 'on' if role == PLATE else 'of'} one {_name(role)}"
            )
        else:
            plan.admits[name] = level >= least
            if role == WELL or (least and spread.mean() >= 0.5):
                plan.admits[name] = plan.admits[name] & (same_position == 0)
            elif least and profiles.has(WELL):
                alone = f"for {(~spread).sum()} of {len(spread)} {label}s"
                plan.notes[name] = f"the same well position is admitted: {_TOGETHER[label]} has that {alone}"
    return plan


def _sample(profiles: Profiles, labels: list[Labels], generator: np.random.Generator) -> np.ndarray:
    """At most :data:`QUERIES` wells with a label that others have, too; a well of every treatment first, then another
    of each, and so on."""
    asks = np.zeros(len(profiles), bool)
    for one in labels:
        asks |= (one.unit >= 0) & (np.bincount(one.label)[one.of_wells()] > 1)
    rows = generator.permutation(np.flatnonzero(asks))
    treatment = _treatments(profiles)[rows]
    turn = pd.Series(treatment).groupby(treatment).cumcount().to_numpy()
    return rows[np.argsort(turn, kind="stable")][:QUERIES]


def _treatments(profiles: Profiles) -> np.ndarray:
    return profiles.codes(TREATMENT if profiles.has(TREATMENT) else COMPOUND)


class _Answers(NamedTuple):
    queries: np.ndarray
    true: dict[tuple[str, str], Found]  # (Q, 1)
    shuffled: dict[tuple[str, str], Found]  # of the first queries; column 0 is of the true labels
    note: str


def _retrieve(
    profiles: Profiles, possible: dict[str, Labels], plans: dict[str, _Plan], generator: np.random.Generator
) -> _Answers:
    """Ask; the first queries under shuffled labels, too."""
    queries = _sample(profiles, list(possible.values()), generator) if possible else np.zeros(0, np.int64)
    plate = profiles.codes(PLATE) if profiles.has(PLATE) else np.zeros(len(profiles), np.int64)
    places = Places(*(profiles.codes(r) if profiles.has(r) else None for r in (WELL, PLATE, EXPERIMENT, SOURCE)))
    matches = {k: np.bincount(one.of_wells() + 1)[one.of_wells()[queries] + 1].mean() for k, one in possible.items()}
    shuffles = {k: int(np.clip(_PAIRS / SHUFFLED_QUERIES / count, 19, SHUFFLES)) for k, count in matches.items()}
    pairs = max((shuffles[k] * count for k, count in matches.items()), default=1)
    few = int(np.clip(_PAIRS / pairs, 50, SHUFFLED_QUERIES))
    true, dealt = {}, {}
    for name, labels in possible.items():
        strata = plate[labels.unit >= 0] if name == TREATMENT else np.zeros(len(labels.label), np.int64)
        again = [labels.shuffled(strata, generator) for _ in range(shuffles[name])]
        true[name] = Question([labels], plans[name].admits)
        dealt[name] = Question([labels, *again], plans[name].admits)
    shuffled = retrieve(profiles.features, queries[:few], places, dealt)
    rest = retrieve(profiles.features, queries[few:], places, true)
    both = {k: Found(*(np.concatenate([a[:, :1], b]) for a, b in zip(shuffled[k], rest[k], strict=True))) for k in rest}
    notes = [f"{QUERIES} wells drawn evenly over treatments ask"] if len(queries) == QUERIES else []
    notes += [f"chance and p of {few} of them"] if len(queries) > few else []
    return _Answers(queries, both, shuffled, ", ".join(notes))


def _measured(profiles: Profiles, answers: _Answers, task: Task, restriction: str) -> Measured:
    """One value a treatment, and what chance gives."""
    true, shuffled = answers.true[task.label, restriction], answers.shuffled[task.label, restriction]
    wells = pd.DataFrame(
        {
            "value": getattr(true, task.measure)[:, 0],
            "chance": getattr(true, f"expected_{task.measure}")[:, 0],
            "group": profiles.codes(COMPOUND)[answers.queries] if profiles.has(COMPOUND) else -1,
        }
    )
    treatment = _treatments(profiles)[answers.queries]
    # a well whose compound is not known is drawn with its treatment alone
    wells["group"] = np.where(wells["group"] < 0, -2 - treatment, wells["group"])
    units = wells.groupby(treatment).agg({"value": "mean", "chance": "mean", "group": "first"})
    excess = getattr(shuffled, task.measure) - getattr(shuffled, f"expected_{task.measure}")
    answered = np.isfinite(excess)
    mean = np.where(answered, excess, 0).sum(0) / np.maximum(answered.sum(0), 1)
    p = (1 + (mean[1:] >= mean[0] - 1e-12).sum()) / len(mean) if answered[:, 0].any() else np.nan
    null = np.clip(units["chance"].to_numpy() + mean[1:].mean(), 0, 1)
    return Measured(units["value"].to_numpy(), units["group"].to_numpy(), null, None, float(p), answers.note)
