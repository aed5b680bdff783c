"""The nearest neighbours of wells, exact, once for all metrics that ask for them.

All pairs are compared, in blocks, by products of matrices. That grows with the square of the wells: above
:data:`LIMIT` wells a seeded sample is judged, and the note says so. There are two samples. One is even over plates, for
what is asked of plates. The other takes whole treatments, because a treatment whose replicates are left out of the
sample cannot be found by any of them.
"""

import weakref
from typing import NamedTuple

import numpy as np

from biomass.errors import CannotJudgeError, ConfigError, did_you_mean
from biomass.evaluation.nearest import directions
from biomass.judgement.table import CONTROL, PLATE, TREATMENT, Profiles

LIMIT = 8000
"""Wells that are compared with each other; more are sampled."""

NEIGHBOURS = 90
"""Of each well: three times the perplexity of 30 that LISI asks for (Korsunsky et al. 2019)."""

METRICS = ("cosine", "euclidean")

_FEWEST = 12  # wells that a sample takes of a plate: with fewer, rather fewer plates
_VALUES = 2**24  # distances held at once

_shared: dict[int, dict[tuple[object, ...], "Graph"]] = {}  # of Profiles that are still in use, by id


class Graph(NamedTuple):
    """The k nearest neighbours of N wells.

    Attributes:
        rows: (N,) which of the profiles they are.
        indices: (N, k) positions within ``rows``, the nearest first, the well itself left out.
        distances: (N, k) float32.
        note: what was sampled; empty where all wells are there.
    """

    rows: np.ndarray
    indices: np.ndarray
    distances: np.ndarray
    note: str = ""


def nearest(features: np.ndarray, k: int, metric: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of every row, exactly.

    Args:
        features: (N, D).
        k: neighbours, below N.
        metric: ``cosine`` (1 - cosine; a row of zeros is at 1 from all) or ``euclidean``.

    Returns:
        Positions (N, k) int64 and distances (N, k) float32, the nearest first, of equally near ones the first row.

    Raises:
        ConfigError: the metric is unknown.

    >>> indices, distances = nearest(np.array([[1, 0], [2, 1], [0, 1], [-1, 3]]), 1)
    >>> indices.ravel(), distances.ravel().round(2)
    (array([1, 0, 3, 2]), array([0.11, 0.11, 0.05, 0.05], dtype=float32))
    """
    if metric not in METRICS:
        raise ConfigError(f"metric='{metric}' is unknown; {did_you_mean(metric, METRICS)}")
    features = np.asarray(features, np.float32)
    count = len(features)
    if metric == "cosine":
        points, square = directions(features, centre=False), None
    else:  # around their mean, because squares of large numbers lose the digits of small differences
        points = features - features.mean(0, dtype=np.float64).astype(np.float32)
        square = np.einsum("nd,nd->n", points, points)
    indices = np.empty((count, k), np.int64)
    distances = np.empty((count, k), np.float32)
    block = max(1, _VALUES // count)
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        found = points[rows] @ points.T
        found *= -1 if square is None else -2
        found += 1 if square is None else square
        own = np.arange(found.shape[0])
        found[own, start + own] = np.inf
        some = np.sort(np.argpartition(found, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(found, some, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(some, order, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        distances[rows] = np.maximum(values, 0) if square is None else _root(values + square[rows, None])
    return indices, distances


def plate_graph(profiles: Profiles, seed: int, role: str = PLATE, metric: str = "cosine") -> Graph:
    """Neighbours among all wells whose plate (or experiment) is known; of more than :data:`LIMIT` an even sample."""
    return _graph(profiles, *even_sample(profiles, LIMIT, seed, role), metric)


def treatment_graph(profiles: Profiles, seed: int, metric: str = "cosine") -> Graph:
    """Neighbours among treated wells; above :data:`LIMIT` a sample of them, of whole treatments."""
    return _graph(profiles, *treatment_sample(profiles, LIMIT, seed), metric)


def even_sample(profiles: Profiles, limit: int, seed: int, role: str = PLATE) -> tuple[np.ndarray, str]:
    """At most ``limit`` wells (N,), sorted, as evenly over plates as can be, and a note on what was left out.

    Where fewer than 12 wells could be taken of each plate, some plates are drawn instead. Wells whose ``role`` is
    missing are not taken, if it is known of others.
    """
    rows, note = _known(profiles, role)
    if len(rows) <= limit:
        return rows, note
    plates = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.zeros(len(rows), np.int64)
    generator = np.random.default_rng(seed)
    known = np.unique(plates)
    if len(known) > limit // _FEWEST:
        known = generator.choice(known, limit // _FEWEST, replace=False)
    order = generator.permutation(np.flatnonzero(np.isin(plates, known)))
    some = np.sort(rows[order[np.argsort(_rank(plates[order]), kind="stable")[:limit]]])
    return some, _sampled(note, len(some), len(rows), f" of {len(known)} plates" if profiles.has(PLATE) else "")


def plate_sample(profiles: Profiles, limit: int, seed: int) -> tuple[np.ndarray, str]:
    """At most ``limit`` wells (N,), sorted, of whole plates (but of two plates at least), and a note."""
    rows, note = _known(profiles, PLATE)
    if len(rows) <= limit or not profiles.has(PLATE):
        return even_sample(profiles, limit, seed)
    plates = profiles.codes(PLATE)[rows]
    known, sizes = np.unique(plates, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(known))
    count = max(int((np.cumsum(sizes[order]) <= limit).sum()), min(2, len(known)))
    some, _ = even_sample(profiles.take(rows[np.isin(plates, known[order[:count]])]), limit, seed)
    some = rows[np.isin(plates, known[order[:count]])][some]
    return some, _sampled(note, len(some), len(rows), f" of {count} plates")


def treatment_sample(profiles: Profiles, limit: int, seed: int) -> tuple[np.ndarray, str]:
    """Treated wells (N,), sorted, of whole treatments that have replicates, and a note on what was left out.

    A treatment has at most ``limit / 20`` wells in a sample. Where nothing is treated, controls are treatments, too.
    """
    if not profiles.has(TREATMENT):
        raise CannotJudgeError("no column says what a well was treated with")
    treatments = profiles.codes(TREATMENT)
    treated = profiles.treated if profiles.treated.any() else np.ones(len(profiles), bool)
    known = treated & (treatments >= 0)
    if not known.any():
        raise CannotJudgeError("no well has a known treatment")
    replicates = np.bincount(treatments[known], minlength=treatments.max() + 1)
    rows = np.flatnonzero(known & (replicates[treatments] > 1))
    notes = []
    if known.sum() > len(rows):
        notes.append(f"{known.sum() - len(rows):,} wells are the only one of their treatment")
    if profiles.has(CONTROL) and not profiles.treated.any():
        notes.append("nothing is treated, so kinds of controls are compared")
    if len(rows) > limit:
        total, generator = len(rows), np.random.default_rng(seed)
        rows = generator.permutation(rows)
        rows = rows[_rank(treatments[rows]) < max(limit // 20, 2)]
        order = generator.permutation(treatments.max() + 1)
        rows = rows[np.argsort(order[treatments[rows]], kind="stable")]
        if len(rows) > limit:  # the treatment that the limit cuts is left out
            rows = rows[:limit][treatments[rows[:limit]] != treatments[rows[limit]]]
        rows = np.sort(rows)
        notes.append(f"a sample of {len(rows):,} of {total:,} wells, {len(np.unique(treatments[rows])):,} treatments")
    return rows, "; ".join(notes)


def _known(profiles: Profiles, role: str) -> tuple[np.ndarray, str]:
    """Wells whose role is not missing, and how many are."""
    if not profiles.has(role):
        return np.arange(len(profiles)), ""
    known = profiles.codes(role) >= 0
    return np.flatnonzero(known), "" if known.all() else f"{(~known).sum():,} wells have no {role}"


def _sampled(note: str, count: int, total: int, of: str) -> str:
    return "; ".join(filter(None, [note, f"a sample of {count:,} of {total:,} wells{of}"]))


def _graph(profiles: Profiles, rows: np.ndarray, note: str, metric: str) -> Graph:
    """The graph of these wells, kept as long as the profiles are."""
    if len(rows) < 3:
        raise CannotJudgeError(f"only {len(rows)} wells can be compared; at least 3 are needed")
    if id(profiles) not in _shared:
        _shared[id(profiles)] = {}
        weakref.finalize(profiles, _shared.pop, id(profiles), None)
    kept, key = _shared[id(profiles)], (metric, rows.tobytes())
    if key not in kept:
        kept[key] = Graph(rows, *nearest(profiles.features[rows], min(NEIGHBOURS, len(rows) - 1), metric))
    return kept[key]._replace(note=note)


def _rank(codes: np.ndarray) -> np.ndarray:
    """The how manyth of its code each one is, (N,), from 0."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1]) if len(codes) else np.zeros(0, int)
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(first, np.diff([*first, len(codes)]))
    return ranks


def _root(squares: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares, 0))
