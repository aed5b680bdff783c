"""Which wells does a well find first? Ranks of all wells by similarity, under any labels and any restriction.

A query ranks the *candidates* by cosine similarity. Those of its own label are *matches*, the others *rivals*. Of a
match and a rival that are equally near (within 1e-6, what float32 tells apart) the rival comes first, so that features
which map everything to one point find nothing. Average precision is that of Kalinin et al. 2025.

All restrictions, all labels and all shuffled labels are answered by one sort of the candidates of a query, so that time
grows with queries × wells, and memory with a block of queries × wells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from biomass.evaluation.nearest import directions
from biomass.evaluation.replicates import expected_precision

CODES = 8
"""How a candidate can relate to a query, see :class:`Places`; the query itself has the code 8."""

_TIE = 1e-6
_BLOCK = 2**25  # similarities held at once: 128 MiB


class Labels(NamedTuple):
    """What N wells have in common.

    A match of a query has its label but another unit; wells of its own unit are neither match nor rival. Wells are
    units where replicates shall find each other, compounds where compounds of one mechanism shall.

    Attributes:
        unit: (N,) int64, what bears the label: 0 … U - 1; -1 for wells that are no candidates.
        label: (U,) int64, 0 … L - 1.
    """

    unit: np.ndarray
    label: np.ndarray

    def of_wells(self) -> np.ndarray:
        """The label of each well, (N,), -1 where it is no candidate."""
        return np.where(self.unit >= 0, self.label[self.unit], -1)

    def shuffled(self, strata: np.ndarray, seed: np.random.Generator) -> "Labels":
        """The labels dealt again to the units, within strata (U,)."""
        order = np.lexsort([seed.random(len(strata)), strata])
        label = np.empty_like(self.label)
        label[np.argsort(strata, kind="stable")] = self.label[order]
        return Labels(self.unit, label)


@dataclass(frozen=True)
class Places:
    """Where N wells stand: numbers (N,) of well position, plate, experiment and source; -1 where it is missing.

    ``None`` where nothing is known of any well. The code of a candidate is ``2 * level + same position``, with level 0
    for the plate of the query, 1 for another plate of its experiment, 2 for another experiment of its source, and 3.
    What is missing counts as the same: it cannot be told from it.
    """

    position: np.ndarray | None
    plate: np.ndarray | None
    experiment: np.ndarray | None
    source: np.ndarray | None

    def codes(self, query: int, count: int) -> np.ndarray:
        """The code of each of ``count`` wells for a query, (count,) int8."""
        level = np.zeros(count, np.int8)
        further = np.ones(count, bool)
        for values in (self.plate, self.experiment, self.source):
            further = further & _differs(values, query, count)
            level += further
        code = 2 * level + ~_differs(self.position, query, count)
        code[query] = CODES
        return code


def _differs(values: np.ndarray | None, query: int, count: int) -> np.ndarray:
    if values is None:
        return np.ones(count, bool)
    return (values != values[query]) & (values >= 0) & (values[query] >= 0)


class Found(NamedTuple):
    """What Q queries found under one label and one restriction; NaN where a query has no match or no rival.

    Column 0 is of the true labels, the others of shuffled ones.

    Attributes:
        precision: (Q, S) average precision.
        first: (Q, S) 1 where the nearest candidate is a match, else 0.
        expected_precision: (Q, S) of a random ranking.
        expected_first: (Q, S) likewise: the share of matches among the candidates.
    """

    precision: np.ndarray
    first: np.ndarray
    expected_precision: np.ndarray
    expected_first: np.ndarray


class Question(NamedTuple):
    """Labels, with shuffled ones behind them, and restrictions by name: which of the :data:`CODES` are candidates."""

    labels: Sequence[Labels]
    restrictions: Mapping[str, np.ndarray]


def retrieve(
    features: np.ndarray, queries: np.ndarray, places: Places, questions: Mapping[str, Question]
) -> dict[tuple[str, str], Found]:
    """Rank all wells for some of them.

    Args:
        features: (N, D), compared by cosine; a well without direction has similarity 0 to all.
        queries: (Q,) rows that ask.
        places: of the wells.
        questions: what is asked, by name.

    Returns:
        By question and restriction.

    >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> labels = Labels(np.arange(4), np.array([0, 0, 1, 1]))
    >>> question = Question([labels], {"any": np.ones(8, bool)})
    >>> found = retrieve(features, np.arange(4), Places(None, None, None, None), {"replicate": question})
    >>> found["replicate", "any"].first.ravel(), found["replicate", "any"].expected_first[0].round(2)
    (array([1., 1., 1., 1.]), array([0.33]))
    """
    unit = directions(np.asarray(features, np.float32), centre=False).astype(np.float32)
    members = {name: _Members(question.labels) for name, question in questions.items()}
    out = {
        (name, restriction): Found(*(np.full((len(queries), len(question.labels)), np.nan) for _ in Found._fields))
        for name, question in questions.items()
        for restriction in question.restrictions
    }
    block = max(1, _BLOCK // len(unit))
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        similarity = unit[rows] @ unit.T
        for i, query in enumerate(rows):
            near = similarity[i]
            near[query] = -2
            code = places.codes(int(query), len(unit))
            order = np.argsort(-near)
            ranking = _Ranking(near, -near[order], code, code[order], order)
            for name, question in questions.items():
                if question.labels[0].unit[query] >= 0:
                    for restriction, found in _answer(int(query), ranking, question, members[name]).items():
                        for whole, part in zip(out[name, restriction], found, strict=True):
                            whole[start + i] = part
    return out


class _Ranking(NamedTuple):
    """All wells as one query sees them: ``distance`` is minus the similarity, sorted, and ``order`` sorts it."""

    similarity: np.ndarray
    distance: np.ndarray
    code: np.ndarray
    code_sorted: np.ndarray
    order: np.ndarray


class _Members:
    """The wells of each label, for S labels at once: a row each of wells sorted by label, and where a label starts."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.unit = labels[0].unit
        self.label = np.stack([one.label for one in labels])
        candidates = np.flatnonzero(self.unit >= 0)
        count = int(self.label.max(initial=-1)) + 1
        self.wells = np.empty((len(labels), len(candidates)), np.int32)
        self.start = np.zeros((len(labels), count + 1), np.int32)
        for i, one in enumerate(labels):
            of = one.label[self.unit[candidates]]
            self.wells[i] = candidates[np.argsort(of, kind="stable")]
            np.cumsum(np.bincount(of, minlength=count), out=self.start[i, 1:])

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The wells that share the query's label, without itself, and under which of the labels."""
        label = self.label[:, self.unit[query]]
        which = np.arange(len(label))
        first, last = self.start[which, label], self.start[which, label + 1]
        count = last - first
        under = np.repeat(which, count)
        wells = self.wells[under, np.arange(len(under)) + np.repeat(first - (np.cumsum(count) - count), count)]
        keep = wells != query
        return wells[keep], under[keep]


def _answer(query: int, ranking: _Ranking, question: Question, members: _Members) -> dict[str, Found]:
    """What one query finds under each restriction, values (S,)."""
    wells, under = members.of(query)
    s = len(question.labels)
    near = ranking.similarity[wells].astype(np.float64)
    key = 4 * under - near  # ascending: by label, and within it the nearest first
    order = np.argsort(key, kind="stable")
    wells, under, near, key = wells[order], under[order], near[order], key[order]
    begin = np.searchsorted(under, np.arange(s + 1))
    # all candidates that are as near as each of these wells, and how many of them share the label
    reach = (_TIE - near).astype(np.float32)
    position = np.searchsorted(ranking.distance, reach, side="right")
    own = np.searchsorted(key, 4 * under + reach.astype(np.float64), side="right")
    other = members.unit[wells] != members.unit[query]
    code = ranking.code[wells]
    candidate = (members.unit >= 0)[ranking.order]
    found = {}
    for name, admits in question.restrictions.items():
        admitted = np.append(admits, False)
        all_before = _cumulate(candidate & admitted[ranking.code_sorted])
        same_before = _cumulate(admitted[code])
        match = other & admitted[code]
        matches_before = _cumulate(match)
        rank = matches_before[1:] - matches_before[begin[under]]  # among the matches, from 1
        rivals = np.maximum(all_before[position] - (same_before[own] - same_before[begin[under]]), 0)
        precision = np.where(match, rank / np.maximum(rank + rivals, 1), 0)
        count = np.diff(matches_before[begin])
        total = all_before[-1] - np.diff(same_before[begin]) + count
        answered = (count > 0) & (total > count)
        several = np.maximum(total, 2)
        values = (
            np.bincount(under, precision, s) / np.maximum(count, 1),
            np.bincount(under[match & (rank == 1) & (rivals == 0)], minlength=s).astype(float),
            expected_precision(np.maximum(count, 1), several),
            count / several,
        )
        found[name] = Found(*(np.where(answered, value, np.nan) for value in values))
    return found


def _cumulate(flags: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(flags)])
