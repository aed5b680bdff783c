"""Do compounds of one mechanism look alike? Asked of profiles of treatments, the means of their wells.

The nearest treatment of another compound tells the mechanism (NSC; Ljosa et al. 2013), also from another experiment
(NSCB; Ando et al. 2017), see :mod:`biomass.evaluation.nearest`; and mean average precision (mAP; Kalinin et al. 2025).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from biomass.errors import CannotJudgeError
from biomass.evaluation.nearest import batch_sets, nsc, nscb
from biomass.judgement.questions import QUERIES, SHUFFLES, label_units
from biomass.judgement.retrieval import CODES, Admits, Places, Question, retrieve
from biomass.judgement.scores import Measured
from biomass.judgement.table import COMPOUND, EXPERIMENT, MECHANISM, TREATMENT, Profiles

MOST = 5000
"""Treatments that are compared with each other; of more, some are drawn at random."""


class Treatments(NamedTuple):
    """Profiles (T, D) of treatments whose mechanism is known: means of their wells.

    Attributes:
        features: (T, D) float32.
        compound: (T,) number of its compound.
        mechanism: (T,) number of its mechanism.
        experiments: (T, E) bool, those that its wells are of; None where they are not known.
        note: what was left out.
    """

    features: np.ndarray
    compound: np.ndarray
    mechanism: np.ndarray
    experiments: np.ndarray | None
    note: str


def treatments(profiles: Profiles, seed: int = 0) -> Treatments:
    """Treatments with a compound and a mechanism, as means of their wells; at most 5,000 of them, at random.

    Raises:
        CannotJudgeError: nothing is known of treatments, compounds or mechanisms.

    >>> import pandas as pd
    >>> wells = pd.DataFrame({"treatment": ["a1", "a1", "b1"], "compound": list("aab"), "mechanism": ["m"] * 3})
    >>> treatments(Profiles(wells, np.array([[1], [3], [5]], np.float32), ("f",))).features.ravel()
    array([2., 5.], dtype=float32)
    """
    for role in (TREATMENT, COMPOUND, MECHANISM):
        if not profiles.has(role):
            raise CannotJudgeError(f"the table does not say the {role} of its wells")
    treatment, compound, mechanism = (profiles.codes(role) for role in (TREATMENT, COMPOUND, MECHANISM))
    kept = np.flatnonzero(~profiles.negative & (treatment >= 0) & (compound >= 0) & (mechanism >= 0))
    if not len(kept):
        raise CannotJudgeError("no well but negative controls has a treatment, a compound and a mechanism")
    numbers, first, of = np.unique(treatment[kept], return_index=True, return_inverse=True)
    note = ""
    if len(numbers) > MOST:
        note = f"{MOST} of {len(numbers)} treatments, drawn at random"
        chosen = np.isin(of, np.random.default_rng(seed).choice(len(numbers), MOST, replace=False))
        kept = kept[chosen]
        numbers, first, of = np.unique(treatment[kept], return_index=True, return_inverse=True)
    share = (1 / np.bincount(of)[of]).astype(np.float32)
    average = csr_array((share, (of, np.arange(len(kept)))), (len(numbers), len(kept)))
    experiments = None
    if profiles.has(EXPERIMENT):
        names, which = np.unique(profiles.wells[EXPERIMENT].to_numpy(str)[kept], return_inverse=True)
        sets = batch_sets(names)
        if max(map(len, sets)) > 1:
            note = "; ".join(filter(None, [note, "experiments that are joined by commas are taken as several"]))
        known = sorted(frozenset().union(*sets))
        member = np.array([[one in several for one in known] for several in sets], bool).reshape(len(sets), len(known))
        experiments = np.zeros((len(numbers), len(known)), bool)
        np.logical_or.at(experiments, of, member[which])
    rows = kept[first]
    return Treatments(average @ profiles.features[kept], compound[rows], mechanism[rows], experiments, note)


def nearest_compound(other_experiment: bool) -> Callable[[Profiles, int], Measured]:
    """NSC, or NSCB: share of treatments whose nearest one has their mechanism, see :mod:`biomass.evaluation.nearest`.

    Similarity is Pearson's correlation, as published for BBBC021 (Ljosa et al. 2013). Only treatments count that
    could be right. The p-value is of mechanisms dealt again to the compounds.
    """

    def measure(profiles: Profiles, seed: int) -> Measured:
        if other_experiment and not profiles.has(EXPERIMENT):
            raise CannotJudgeError("the table does not say the experiment of its wells")
        given = treatments(profiles, seed)
        # all are called alike, so that every treatment has a neighbour, which does not depend on mechanisms
        names = (given.compound.astype(str), np.full(len(given.compound), "known"))
        apart = given.compound[:, None] != given.compound
        if other_experiment and given.experiments is not None:
            if not given.experiments.any(1).all():
                raise CannotJudgeError(f"{(~given.experiments.any(1)).sum()} treatments have no experiment")
            member = given.experiments.astype(np.float32)
            apart &= member @ member.T == 0
            sets = [list(map(str, np.flatnonzero(row))) for row in given.experiments]
            neighbours = nscb(given.features, *names, sets, "correlation").neighbours
        else:
            neighbours = nsc(given.features, *names, "correlation").neighbours
        values, chance = _right(apart, neighbours, given.mechanism, np.arange(len(neighbours)))
        if not np.isfinite(values).any():
            raise CannotJudgeError(f"no mechanism has two compounds{' in two experiments' if other_experiment else ''}")
        generator = np.random.default_rng(seed)
        rows = generator.permutation(len(neighbours))[:500]
        labels = label_units(given.compound, given.mechanism)
        dealt = labels.shuffled(np.zeros(len(labels.label), np.int64), SHUFFLES, generator)
        excess = []
        for one in (labels, *dealt):
            right, expected = _right(apart, neighbours, one.of_wells(), rows)
            excess.append(np.nansum(right - expected) / max(np.isfinite(right).sum(), 1))
        p = (np.array(excess[1:]) >= excess[0] - 1e-12).sum()
        return Measured(values, given.compound, chance, None, float((1 + p) / len(excess)), given.note)

    return measure


def _right(
    apart: np.ndarray, neighbours: np.ndarray, label: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the neighbours of some rows have their label, NaN where none could; and the share of those that do."""
    possible = apart[rows] & (label >= 0)
    same = (possible & (label[rows, None] == label)).sum(1)
    right = label[neighbours[rows]] == label[rows]
    judged = (same > 0) & (label[rows] >= 0)
    return np.where(judged, right, np.nan), same / np.maximum(possible.sum(1), 1)


def mechanism_precision(profiles: Profiles, seed: int) -> Measured:
    """mAP of treatments of other compounds with the same mechanism; p as of :func:`nearest_compound`."""
    given = treatments(profiles, seed)
    labels = label_units(given.compound, given.mechanism)
    if np.bincount(labels.label).max() < 2:
        raise CannotJudgeError("no mechanism has two compounds")
    generator = np.random.default_rng(seed)
    rows = generator.permutation(np.flatnonzero(labels.unit >= 0))[:QUERIES]
    shuffled = labels.shuffled(np.zeros(len(labels.label), np.int64), SHUFFLES, generator)
    everyone = np.ones(CODES, bool)
    question = Question([labels, *shuffled], {"any": Admits(everyone, everyone)})
    found = retrieve(given.features, rows, Places(None, None, None, None), {MECHANISM: question})[MECHANISM, "any"]
    if not np.isfinite(found.precision[:, 0]).any():
        raise CannotJudgeError("all compounds have the same mechanism")
    excess = np.nanmean(found.precision - found.expected_precision, axis=0)
    p = (1 + (excess[1:] >= excess[0] - 1e-12).sum()) / len(excess)
    chance = np.nan_to_num(found.expected_precision[:, 0])
    return Measured(found.precision[:, 0], given.compound[rows], chance, None, float(p), given.note)
