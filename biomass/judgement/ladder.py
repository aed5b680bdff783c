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

from biomass.judgement.questions import RESTRICTIONS, ask, judge
from biomass.judgement.scores import summarize
from biomass.judgement.table import COMPOUND, MECHANISM, TREATMENT, Profiles

__all__ = ["RESTRICTIONS", "TASKS", "Rung", "Task", "climb"]


@dataclass(frozen=True)
class Task:
    """A question of retrieval.

    Attributes:
        title: for people.
        label: the role that matches have in common with the query.
        measure: ``first`` (is the nearest candidate a match: top-1, Recall@1) or ``precision`` (mean average
            precision).
    """

    title: str
    label: str
    measure: str


TASKS: Mapping[str, Task] = {
    "treatment_top1": Task("the nearest well has the same treatment", TREATMENT, "first"),
    "treatment_map": Task("wells of the same treatment come first (mAP)", TREATMENT, "precision"),
    "mechanism_top1": Task("the nearest well of another compound has the same mechanism", MECHANISM, "first"),
    "mechanism_map": Task("other compounds of the same mechanism come first (mAP)", MECHANISM, "precision"),
    "compound_top1": Task("the nearest well of another treatment has the same compound", COMPOUND, "first"),
    "compound_map": Task("other concentrations of the same compound come first (mAP)", COMPOUND, "precision"),
}


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


def climb(profiles: Profiles, seed: int = 0) -> list[Rung]:
    """Every task under every restriction.

    The unit is a treatment: the mean of its wells that ask. Negative controls neither ask nor are candidates.

    Args:
        profiles: of wells.
        seed: of the sample of queries, the shuffles and the bootstrap.

    Returns:
        A rung a task and restriction; one that cannot be told has no value and says why.

    >>> import pandas as pd
    >>> wells = pd.DataFrame({"treatment": list("aabb") * 2, "plate": ["P1"] * 4 + ["P2"] * 4})
    >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 2, np.float32)
    >>> rungs = climb(Profiles(wells, features, ("f", "g")))
    >>> [(rung.restriction, rung.value, rung.note) for rung in rungs if rung.task == "treatment_top1"][:2]
    [('any', 1.0, ''), ('position', nan, 'the table does not say the well position of its wells')]
    """
    answers = ask(profiles, seed)
    rungs = []
    for name, task in TASKS.items():
        for restriction in RESTRICTIONS:
            reason = answers.reasons.get((task.label, restriction))
            if reason is None:
                found = summarize(name, judge(answers, task.label, restriction, task.measure), seed)
                rungs.append(Rung(name, restriction, *found[1:]))
            else:
                rungs.append(Rung(name, restriction, *(np.nan,) * 5, 0, reason))
    return rungs
