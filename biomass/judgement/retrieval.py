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
from tqdm import tqdm

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

    def shuffled(self, strata: np.ndarray, times: int, generator: np.random.Generator) -> "list[Labels]":
        """The labels dealt again to the units, within strata (U,) int."""
        order = np.argsort(strata, kind="stable")
        stratum = strata[order]
        dealt = []
        for _ in range(times):
            label = np.empty_like(self.label)
            label[order] = self.label[order[np.argsort(stratum + generator.random(len(strata)))]]
            dealt.append(Labels(self.unit, label))
        return dealt


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
        matches: (Q, S) how many there are among the candidates.
        candidates: (Q, S) matches and rivals.
    """

    precision: np.ndarray
    first: np.ndarray
    matches: np.ndarray
    candidates: np.ndarray

    @property
    def expected_precision(self) -> np.ndarray:
        """(Q, S) average precision of a random ranking."""
        return expected_precision(self.matches, self.candidates)

    @property
    def expected_first(self) -> np.ndarray:
        """(Q, S) likewise for the nearest: the share of matches."""
        return self.matches / self.candidates


class Admits(NamedTuple):
    """A restriction: who may be a candidate.

    Attributes:
        match: (8,) bool, which of the :data:`CODES` a match may have.
        rival: (8,) bool, likewise a rival.
        rivals: (N,) bool, wells that may be rivals; all that have a label if left out.
    """

    match: np.ndarray
    rival: np.ndarray
    rivals: np.ndarray | None = None


class Question(NamedTuple):
    """Labels, with shuffled ones behind them, and restrictions by name."""

    labels: Sequence[Labels]
    restrictions: Mapping[str, Admits]


def retrieve(
    features: np.ndarray,
    queries: np.ndarray,
    places: Places,
    questions: Mapping[str, Question],
    few: int | None = None,
) -> dict[tuple[str, str], Found]:
    """Rank all wells for some of them.

    Args:
        features: (N, D), compared by cosine; a well without direction has similarity 0 to all.
        queries: (Q,) rows that ask.
        places: of the wells.
        questions: what is asked, by name.
        few: how many of the queries, from the first on, ask under the shuffled labels, too; all if left out.

    Returns:
        By question and restriction.

    >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> labels = Labels(np.arange(4), np.array([0, 0, 1, 1]))
    >>> question = Question([labels], {"any": Admits(np.ones(8, bool), np.ones(8, bool))})
    >>> found = retrieve(features, np.arange(4), Places(None, None, None, None), {"replicate": question})
    >>> found["replicate", "any"].first.ravel(), found["replicate", "any"].expected_first[0].round(2)
    (array([1., 1., 1., 1.]), array([0.33]))
    """
    unit = _unit(features)
    members = {name: _Members(question.labels) for name, question in questions.items()}
    alone = {name: _Members(question.labels[:1]) for name, question in questions.items()}
    seen: list[np.ndarray] = []
    for one in (*members.values(), *alone.values()):  # what several questions have in common is counted once
        one.candidate = next((same for same in seen if np.array_equal(same, one.candidate)), one.candidate)
        seen.append(one.candidate)
    out = {
        (name, restriction): Found(*(np.full((len(queries), len(question.labels)), np.nan) for _ in Found._fields))
        for name, question in questions.items()
        for restriction in question.restrictions
    }
    block = max(1, _BLOCK // len(unit))
    for start in tqdm(range(0, len(queries), block), "Comparing wells", disable=None, leave=False):
        rows = queries[start : start + block]
        similarity = unit[rows] @ unit.T
        for i, query in enumerate(map(int, rows), start):
            near = similarity[i - start]
            near[query] = -2
            ranking = _Ranking(near, places.codes(query, len(unit)))
            for name, question in questions.items():
                if question.labels[0].unit[query] < 0:
                    continue
                who = members[name] if few is None or i < few else alone[name]
                for restriction, found in _answer(query, ranking, question.restrictions, who).items():
                    for whole, part in zip(out[name, restriction], found, strict=True):
                        whole[i, : len(part)] = part
    return out


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, (N, D) float32; a part at a time, for memory."""
    out = np.empty(features.shape, np.float32)
    for start in range(0, len(out), 1024):
        out[start : start + 1024] = directions(features[start : start + 1024].astype(np.float64), centre=False)
    return out


class _Ranking:
    """All wells as one query sees them."""

    def __init__(self, similarity: np.ndarray, code: np.ndarray) -> None:
        self.similarity, self.code = similarity, code
        self.order = np.argsort(-similarity)
        self.distance = -similarity[self.order]  # ascending
        self._code = code[self.order]
        self._eligible: dict[int, np.ndarray] = {}
        self._before: dict[tuple[int, bytes], np.ndarray] = {}

    def before(self, eligible: np.ndarray, admitted: np.ndarray) -> np.ndarray:
        """How many of the eligible (N,) wells with a code that is admitted (9,) are among the nearest 0 … N."""
        key = (id(eligible), admitted.tobytes())
        if key not in self._before:
            if id(eligible) not in self._eligible:
                self._eligible[id(eligible)] = eligible[self.order]
            self._before[key] = _cumulate(self._eligible[id(eligible)] & admitted[self._code])
        return self._before[key]


class _Members:
    """The wells of each label, for S labels at once: a row each of wells sorted by label, and where a label starts."""

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.unit = labels[0].unit
        self.candidate = self.unit >= 0
        self.label = np.stack([one.label for one in labels])
        candidates = np.flatnonzero(self.candidate)
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


def _answer(query: int, ranking: _Ranking, restrictions: Mapping[str, Admits], members: _Members) -> dict[str, Found]:
    """What one query finds under each restriction, values (S,)."""
    wells, under = members.of(query)
    s = len(members.label)
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
    found = {}
    for name, (as_match, as_rival, rivals) in restrictions.items():
        eligible = members.candidate if rivals is None else rivals
        admitted = np.append(as_rival, False)
        all_before = ranking.before(eligible, admitted)
        same_before = _cumulate(eligible[wells] & admitted[code])
        match = other & as_match[code]
        matches_before = _cumulate(match)
        rank = matches_before[1:] - matches_before[begin[under]]  # among the matches, from 1
        ahead = np.maximum(all_before[position] - (same_before[own] - same_before[begin[under]]), 0)
        precision = np.where(match, rank / np.maximum(rank + ahead, 1), 0)
        count = np.diff(matches_before[begin])
        total = all_before[-1] - np.diff(same_before[begin]) + count
        answered = (count > 0) & (total > count)
        values = (
            np.bincount(under, precision, s) / np.maximum(count, 1),
            np.bincount(under[match & (rank == 1) & (ahead == 0)], minlength=s),
            count,
            total,
        )
        found[name] = Found(*(np.where(answered, value, np.nan) for value in values))
    return found


def _cumulate(flags: np.ndarray) -> np.ndarray:
    out = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=out[1:])
    return out
