"""Which wells does a well find first? Ranks of all wells by similarity, under any labels and any restriction.

A query ranks the *candidates* by cosine similarity. Those of its own label are *matches*, the others *rivals*. Of a
match and a rival that are equally near (within 1e-6, what float32 tells apart) the rival comes first, so that features
which map everything to one point find nothing. Average precision is that of Kalinin et al. 2025.

All restrictions, all labels and all shuffled labels are answered by one sort of the candidates of a query, so that time
grows with queries × wells, and memory with a block of queries × wells. The queries of a block are answered together.
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
_BLOCK = 2**17  # similarities, and pairs of a query and a match under some labels, that are held at once
_HELD = 2**25  # similarities that are multiplied at once: 128 MiB


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

    def codes(self, queries: np.ndarray, count: int) -> np.ndarray:
        """The code of each of ``count`` wells for some queries (B,), (B, count) int8."""
        code = np.zeros((len(queries), count), np.int8)
        further = np.ones(code.shape, bool)
        for values in (self.plate, self.experiment, self.source):
            if values is not None:
                further &= _differs(values, queries)
            code += further
        code *= 2
        if self.position is not None:
            code += ~_differs(self.position, queries)
        code[np.arange(len(queries)), queries] = CODES
        return code


def _differs(values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    asked = values[queries, None]
    return (values != asked) & (values >= 0) & (asked >= 0)


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
    few = len(queries) if few is None else min(few, len(queries))
    for start, stop, who in ((0, few, members), (few, len(queries), alone)):
        most = max(one.pairs(queries[start:stop]) for one in who.values())
        block = max(1, _BLOCK // (len(unit) + most))
        wide = block * max(1, _HELD // (block * len(unit)))  # few rows are as slow to multiply as many
        for left in tqdm(range(start, stop, wide), "Comparing wells", disable=None, leave=False):
            right = min(left + wide, stop)
            similarity = unit[queries[left:right]] @ unit.T
            for first in range(left, right, block):
                rows = queries[first : min(first + block, right)]
                ranking = _Ranking(similarity[first - left : first - left + len(rows)], rows, places)
                for name, question in questions.items():
                    asks = np.flatnonzero(question.labels[0].unit[rows] >= 0)
                    for restriction, found in _answer(asks, ranking, question.restrictions, who[name]).items():
                        for whole, part in zip(out[name, restriction], found, strict=True):
                            whole[first + asks, : part.shape[1]] = part
    return out


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, (N, D) float32; a part at a time, for memory."""
    out = np.empty(features.shape, np.float32)
    for start in range(0, len(out), 1024):
        out[start : start + 1024] = directions(features[start : start + 1024].astype(np.float64), centre=False)
    return out


class _Ranking:
    """All N wells as B queries (rows of all) see them, from their similarity (B, N)."""

    def __init__(self, similarity: np.ndarray, queries: np.ndarray, places: Places) -> None:
        own = np.arange(len(queries))
        similarity[own, queries] = -2
        self.queries, self.similarity = queries, similarity
        self.code = places.codes(queries, similarity.shape[1])
        self._order = np.argsort(-similarity, axis=1)
        # ascending in all: between -1 and 2, and four more for each query
        self.distance = 4.0 * own[:, None] - np.take_along_axis(similarity, self._order, 1)
        self._code = np.take_along_axis(self.code, self._order, 1)
        self._eligible: dict[int, np.ndarray] = {}
        self._before: dict[tuple[int, bytes], np.ndarray] = {}

    def within(self, cell: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """How many wells lie within a distance (P,) of queries, those of earlier queries too; by cell of (B, N).

        What is asked of one cell several times is looked up once.
        """
        last = np.zeros(self.similarity.size, np.int64)
        last[cell] = np.arange(len(cell))
        asked = np.zeros(self.similarity.size, bool)
        asked[cell] = True
        once = np.flatnonzero(asked)
        limit = 4.0 * (once // self.similarity.shape[1]) + reach[last[once]]
        last[once] = np.searchsorted(self.distance.ravel(), limit, side="right")
        return last[cell]

    def before(self, eligible: np.ndarray, admitted: np.ndarray) -> np.ndarray:
        """How many eligible (N,) wells of a code that is admitted (9,) are among the nearest 0 … N: (B, N + 1)."""
        key = (id(eligible), admitted.tobytes())
        if key not in self._before:
            if id(eligible) not in self._eligible:
                self._eligible[id(eligible)] = eligible[self._order]
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

    def pairs(self, queries: np.ndarray) -> int:
        """The most pairs of a query and a match that a query has, under all labels."""
        label = self.label[:, self.unit[queries[self.unit[queries] >= 0]]]
        which = np.arange(len(label))[:, None]
        return int((self.start[which, label + 1] - self.start[which, label]).sum(0, dtype=np.int64).max(initial=0))

    def of(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The wells (P,) that have the label of a query, itself too, and how many (B * S,): by query and labels."""
        label = self.label[:, self.unit[queries]].T.ravel()
        which = np.tile(np.arange(len(self.label)), len(queries))
        first = self.start[which, label].astype(np.int64)
        count = self.start[which, label + 1] - first
        first += which * self.wells.shape[1] - (np.cumsum(count) - count)
        return self.wells.ravel().take(np.arange(count.sum()) + np.repeat(first, count)), count


def _answer(
    asks: np.ndarray, ranking: _Ranking, restrictions: Mapping[str, Admits], members: _Members
) -> dict[str, Found]:
    """What some of the queries of a ranking (A,) find under each restriction, values (A, S)."""
    queries, s, count = ranking.queries[asks], len(members.label), ranking.similarity.shape[1]
    wells, sizes = members.of(queries)
    begin = np.concatenate([[0], np.cumsum(sizes)])
    by = np.repeat(asks, sizes.reshape(-1, s).sum(1))
    cell = by * count + wells
    below = 4.0 * np.repeat(np.arange(len(sizes)), sizes)
    near = ranking.similarity.ravel().take(cell).astype(np.float64)
    key = below - near  # ascending: by query and labels, and within them the nearest first
    order = np.argsort(key)
    cell, wells, near, key = cell.take(order), wells.take(order), near.take(order), key.take(order)
    # all candidates that are as near as each of these wells, and how many of them share the label
    reach = (_TIE - near).astype(np.float32)
    position = ranking.within(cell, reach) + by  # in rows of N + 1
    limit = below + reach
    own = np.arange(1, len(key) + 1)
    tied = np.flatnonzero(key[1:] <= limit[:-1])
    own[tied] = np.searchsorted(key, limit[tied], side="right")
    code = ranking.code.ravel().take(cell)
    other = members.unit.take(wells) != np.repeat(members.unit[queries], np.diff(begin[::s]))
    found = {}
    for name, (as_match, as_rival, rivals) in restrictions.items():
        eligible = members.candidate if rivals is None else rivals
        admitted = np.append(as_rival, False)
        all_before = ranking.before(eligible, admitted)
        same_before = _cumulate(eligible.take(wells) & admitted.take(code))
        match = other & np.append(as_match, False).take(code)
        at = np.flatnonzero(match)
        first = np.searchsorted(at, begin)
        matches = np.diff(first)
        rank = np.arange(1, len(at) + 1) - np.repeat(first[:-1], matches)  # among the matches, from 1
        same = same_before.take(own.take(at)) - np.repeat(same_before[begin[:-1]], matches)
        ahead = np.maximum(all_before.ravel().take(position.take(at)) - same, 0)
        precision = np.bincount(np.repeat(np.arange(len(matches)), matches), rank / (rank + ahead), len(matches))
        total = np.repeat(all_before[asks, count], s) - np.diff(same_before[begin]) + matches
        answered = (matches > 0) & (total > matches)
        nearest = np.append(ahead == 0, False)[first[:-1]]
        values = (precision / np.maximum(matches, 1), nearest, matches, total)
        found[name] = Found(*(np.where(answered, value, np.nan).reshape(-1, s) for value in values))
    return found


def _cumulate(flags: np.ndarray) -> np.ndarray:
    """Sums of flags (…, N) up to each, (…, N + 1)."""
    out = np.zeros((*flags.shape[:-1], flags.shape[-1] + 1), np.int32)
    np.cumsum(flags, axis=-1, out=out[..., 1:])
    return out
