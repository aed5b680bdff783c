"""Metrics of batch effects, and those of biology that the same neighbours tell.

No one of them alone says that a batch effect is gone: a collapsed encoder mixes plates perfectly, and an overcorrected
one loses its treatments. Each is told with what chance gives, see :mod:`biomass.judgement.shuffles`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from biomass.evaluation.nearest import directions
from biomass.judgement import predicted, shuffles
from biomass.judgement.neighbours import (
    LIMIT,
    Graph,
    even_sample,
    plate_graph,
    plate_sample,
    treatment_graph,
    treatment_sample,
)
from biomass.judgement.scores import CannotJudgeError, Measured, Metric
from biomass.judgement.table import COLUMN, COMPOUND, EXPERIMENT, PLATE, ROW, TREATMENT, Profiles

ALPHA = 0.05
"""Of the test in kBET."""

CONNECTED = 15
"""Neighbours of a well in the graph whose connectivity is asked for (Luecken et al. 2022)."""

_SMALL = 20  # wells of a batch below which kBET is unsuited
_LABELS = 300  # treatments whose batches get a silhouette
_COMPARED = 4000  # wells in silhouettes of treatments

MakeValues = Callable[[Graph, np.ndarray], tuple[shuffles.Values, str]]
"""From neighbours and labels to a function of labels, one value a well or treatment, and a note."""


def silhouettes(features: np.ndarray, labels: np.ndarray, others: str = "nearest") -> np.ndarray:
    """The silhouette of each row under the cosine distance (Rousseeuw 1987), -1 … 1; NaN of one alone in its label.

    The mean cosine distance to a label is linear in the sum of its unit vectors: no pairs are compared.

    Args:
        features: (N, D).
        labels: (N,) int, at least two different ones.
        others: what the own label is compared with: the ``nearest`` other, or the ``mean`` over all others, as in
            Rautenstrauch & Ohler (2025).

    >>> silhouettes(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.array([0, 0, 1, 1])).round(2)
    array([0.99, 0.99, 0.99, 0.99])
    """
    return _silhouettes(directions(np.asarray(features, np.float32), centre=False), labels, others)


def _silhouettes(units: np.ndarray, labels: np.ndarray, others: str = "nearest") -> np.ndarray:
    """Of rows of length 1, or 0."""
    known, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.arange(len(units))
    similar = (units @ (_member(number, len(known)) @ units).T).astype(np.float64)
    square = np.einsum("nd,nd->n", units, units, dtype=np.float64)
    own = similar[rows, number]
    with np.errstate(invalid="ignore", divide="ignore"):
        within = (counts[number] - own - (1 - square)) / (counts[number] - 1)
        similar /= counts
        if others == "mean":
            other = 1 - (similar.sum(1) - similar[rows, number]) / (len(known) - 1)
        else:
            similar[rows, number] = -np.inf
            other = 1 - similar.max(1)
        widths = (other - within) / np.maximum(within, other)
    return np.where(counts[number] > 1, np.nan_to_num(widths), np.nan)


def lisi_weights(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Weights (N, k) of neighbours, of sum 1: Gaussian-like, so wide that each well's entropy is log(perplexity).

    As in Korsunsky et al. (2019), who take them from t-SNE: ``exp(-b d)`` with a width 1 / b for each well.

    Args:
        distances: (N, k) of the neighbours.
        perplexity: at most k.
    """
    excess = (distances - distances.min(1, keepdims=True)).astype(np.float64)
    scale = np.maximum(excess.mean(1, keepdims=True), 1e-12)
    low, high = np.full((len(excess), 1), -20.0), np.full((len(excess), 1), 20.0)  # log of b in units of the mean
    for _ in range(40):
        middle = (low + high) / 2
        weights = np.exp(-excess / scale * np.exp(middle))
        weights /= weights.sum(1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return weights


def lisi(indices: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The effective number of labels among the neighbours of each well, (N,): 1 / sum of squared shares.

    >>> lisi(np.array([[1, 2], [2, 0], [1, 0]]), np.full((3, 2), 0.5), np.array([0, 0, 1]))
    array([2., 2., 1.])
    """
    return 1 / np.square(_shares(indices, weights, labels)).sum(1)


def kbet(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far the labels among the neighbours (N, k) of each well are from those of all wells, (N,).

    Pearson's chi-square statistic (Büttner et al. 2019), without the well itself, as a multiple of its critical value
    at :data:`ALPHA`: above 1, it is rejected that they are the same.

    >>> kbet(np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]), np.array([0, 0, 0, 1, 1, 1])).round(2)
    array([0.52, 0.52, 0.52, 0.52, 0.52, 0.52])
    """
    counts = _shares(indices, np.ones(indices.shape), labels)
    expected = np.bincount(np.unique(labels, return_inverse=True)[1]) / len(labels) * indices.shape[1]
    statistic = (np.square(counts - expected) / expected).sum(1)
    return statistic / chi2.isf(ALPHA, len(expected) - 1)


def connectivity(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each label's wells (U,) that neighbours of the same label join to one piece (Luecken et al. 2022).

    >>> connectivity(np.array([[1], [0], [1], [2]]), np.array([0, 0, 0, 1]))
    array([1., 1.])
    """
    count, known, number = len(labels), *np.unique(labels, return_inverse=True)
    start, end = np.repeat(np.arange(count), indices.shape[1]), indices.ravel()
    same = number[start] == number[end]
    edges = coo_matrix((np.ones(same.sum()), (start[same], end[same])), shape=(count, count))
    pieces, piece = connected_components(edges, directed=False)
    sizes = np.bincount(piece, minlength=pieces)
    largest = np.zeros(len(known), np.int64)
    np.maximum.at(largest, number, sizes[piece])
    return largest / np.bincount(number)


def _batch_silhouette(role: str, others: str) -> Callable[[Profiles, int], Measured]:
    def measure(profiles: Profiles, seed: int) -> Measured:
        sample = plate_sample if role == PLATE else partial(even_sample, role=role)
        rows, note = sample(profiles, LIMIT, seed)
        batches, finest = shuffles.plates(profiles, rows, seed, role)
        known = profiles.has(TREATMENT)
        labels = profiles.codes(TREATMENT)[rows] if known else np.zeros_like(rows)
        units = directions(profiles.features[rows], centre=False)
        parts = []
        for label in np.unique(labels[labels >= 0]):
            members = np.flatnonzero(labels == label)
            if 1 < len(np.unique(batches[0, members])) < len(members):
                parts.append(members)
        if not parts:
            raise CannotJudgeError(f"no treatment has two wells on one {role} and others elsewhere")
        if len(parts) > _LABELS:
            some = np.random.default_rng(seed).choice(len(parts), _LABELS, replace=False)
            note = _join(note, f"{_LABELS} of {len(parts):,} treatments")
            parts = [parts[each] for each in np.sort(some)]
        values = np.full(batches.shape, np.nan)
        weights = np.zeros(len(rows))
        for members in parts:
            weights[members] = 1 / len(members)
            for way, batch in enumerate(batches[:, members]):
                if batch.min() < batch.max():
                    values[way, members] = 1 - np.abs(_silhouettes(units[members], batch, others))
        note = _join(note, "" if known else "treatments are not known: all wells are one")
        return _of_plates(profiles, rows, values, "lower", finest, note, weights)

    return measure


def _mixing(
    role: str, make: MakeValues, effect: str, limit: float | None = None
) -> Callable[[Profiles, int], Measured]:
    """A metric of the labels of plates or experiments among neighbours; an effect makes it ``higher`` or ``lower``.

    With a limit, the share of wells above it is told; p is that of the mean, which is closer to normal than the share.
    """

    def measure(profiles: Profiles, seed: int) -> Measured:
        rows, _ = even_sample(profiles, LIMIT, seed, role)
        labels, finest = shuffles.plates(profiles, rows, seed, role)
        graph = plate_graph(profiles, seed, role)
        values, note = make(graph, labels[0])
        found = shuffles.measure(labels, values)
        measured = _of_plates(profiles, graph.rows, found, effect, finest, _join(graph.note, note))
        if limit is None:
            return measured
        above = (found > limit).astype(float)
        return measured._replace(values=above[0], null=float(above[1:].mean()))

    return measure


def _kbet(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    sizes = np.unique(labels, return_counts=True)[1]
    count = int(np.clip(sizes.mean(), 10, min(70, graph.indices.shape[1])))
    few = int((sizes < _SMALL).sum())
    note = f"{count} neighbours"
    if few:
        note += f"; {few} of {len(sizes)} batches have fewer than {_SMALL} wells: kBET is unsuited"
    return partial(kbet, graph.indices[:, :count]), note


def _ilisi(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    perplexity = graph.indices.shape[1] / 3
    weights = lisi_weights(graph.distances, perplexity)
    return partial(lisi, graph.indices, weights), f"perplexity {perplexity:.0f}, {len(np.unique(labels))} at most"


def _first(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    return lambda labels: (labels[graph.indices[:, 0]] == labels).astype(float), ""


def _treatment(make: MakeValues, better: str) -> Callable[[Profiles, int], Measured]:
    """A metric of treatments among neighbours."""

    def measure(profiles: Profiles, seed: int) -> Measured:
        graph = treatment_graph(profiles, seed)
        labels = _treatments(profiles, graph.rows, seed)
        values, note = make(graph, labels[0])
        found = shuffles.measure(labels, values)
        return _of_compounds(profiles, graph.rows, found, better, _join(graph.note, note))

    return measure


def _clisi(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    replicates = np.median(np.bincount(labels)[labels])
    perplexity = int(np.clip(replicates - 1, 2, graph.indices.shape[1] // 3 or 1))
    some = slice(0, min(3 * perplexity, graph.indices.shape[1]))
    weights = lisi_weights(graph.distances[:, some], perplexity)
    return partial(lisi, graph.indices[:, some], weights), f"perplexity {perplexity}"


def _connectivity(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    return partial(connectivity, graph.indices[:, :CONNECTED]), ""


def _label_silhouette(profiles: Profiles, seed: int) -> Measured:
    rows, note = treatment_sample(profiles, _COMPARED, seed)
    labels = _treatments(profiles, rows, seed)
    units = directions(profiles.features[rows], centre=False)
    found = shuffles.measure(labels, lambda labels: (1 + _silhouettes(units, labels)) / 2)
    return _of_compounds(profiles, rows, found, "higher", note)


def _treatments(profiles: Profiles, rows: np.ndarray, seed: int) -> np.ndarray:
    """Treatments (1 + S, N), shuffled within plates."""
    labels = profiles.codes(TREATMENT)[rows]
    if len(np.unique(labels)) < 2:
        raise CannotJudgeError("fewer than two treatments have replicates")
    plates = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.zeros_like(rows)
    return shuffles.shuffled(labels, plates, seed)


def _of_plates(
    profiles: Profiles,
    rows: np.ndarray,
    values: np.ndarray,
    effect: str,
    finest: float,
    note: str,
    weights: np.ndarray | None = None,
) -> Measured:
    null, p = shuffles.against_chance(shuffles.means(values, weights), effect, finest)
    groups = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.arange(len(rows))
    return Measured(values[0], groups, null, weights, p, note)


def _of_compounds(profiles: Profiles, rows: np.ndarray, values: np.ndarray, better: str, note: str) -> Measured:
    """Of wells, or of treatments where there are as many values as these."""
    null, p = shuffles.against_chance(shuffles.means(values), better)
    groups = profiles.codes(COMPOUND if profiles.has(COMPOUND) else TREATMENT)[rows]
    if values.shape[1] < len(rows):
        groups = groups[np.unique(profiles.codes(TREATMENT)[rows], return_index=True)[1]]
    return Measured(values[0], groups, null, None, p, note)


def _member(labels: np.ndarray, count: int) -> csr_matrix:
    ones = np.ones(len(labels), np.float32)
    return csr_matrix((ones, (labels, np.arange(len(labels)))), shape=(count, len(labels)))


def _shares(indices: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum of the weights of each label's neighbours, (N, K)."""
    known, number = np.unique(labels, return_inverse=True)
    cells = np.arange(len(indices))[:, None] * len(known) + number[indices]
    return np.bincount(cells.ravel(), weights.ravel(), len(indices) * len(known)).reshape(len(indices), len(known))


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))


_OF_PLATES = f"mean of {shuffles.SHUFFLES} shuffles: plates among the wells of a treatment"
_OF_EXPERIMENTS = f"mean of {shuffles.SHUFFLES} shuffles: experiments among plates"
_OF_PLACES = f"mean of {shuffles.SHUFFLES} shuffles: places, on all plates alike"
_OF_TREATMENTS = f"mean of {shuffles.SHUFFLES} shuffles: treatments within plates"
_HASTIE = "Hastie, Tibshirani & Friedman 2009"


def _both(role: str, null: str) -> dict[str, Metric]:
    """The metrics of mixing for plates or experiments."""
    few = "with many small batches the test is rough, and below some 20 wells a batch unsuited: compare it with chance"
    alone = "of many batches, the nearest is near by chance: an effect may even raise it (Rautenstrauch & Ohler 2025)"
    return {
        f"{role}_silhouette": Metric(
            f"batch silhouette of {role}s within treatments", "batch", "higher", "plates", null,
            "Luecken et al. 2022", _batch_silhouette(role, "nearest"), alone,
        ),
        f"{role}_bras": Metric(
            f"batch silhouette of {role}s within treatments, against the mean of other {role}s (BRAS)", "batch",
            "higher", "plates", null, "Rautenstrauch & Ohler 2025", _batch_silhouette(role, "mean"),
        ),
        f"{role}_kbet": Metric(
            f"neighbourhoods whose {role}s differ from all (kBET)", "batch", "lower", "plates", null,
            "Büttner et al. 2019", _mixing(role, _kbet, "higher", limit=1.0), few,
        ),
        f"{role}_ilisi": Metric(
            f"effective number of {role}s among neighbours (iLISI)", "batch", "higher", "plates", null,
            "Korsunsky et al. 2019", _mixing(role, _ilisi, "lower"),
            "profiles that hold nothing mix best: read it beside a metric of biology",
        ),
        f"{role}_neighbour": Metric(
            f"nearest well is of the same {role}", "batch", "lower", "plates", null,
            "Lin & Lu 2022", _mixing(role, _first, "higher"),
            "profiles that hold nothing mix best: read it beside a metric of biology",
        ),
    }  # fmt: skip


METRICS: Mapping[str, Metric] = {
    "plate_predicted": Metric(
        "plate predicted from other wells", "batch", "lower", "plates", _OF_PLATES, _HASTIE, predicted.plate,
        "plates whose wells hold other compounds are told apart by these, too",
    ),
    "experiment_predicted": Metric(
        "experiment predicted from other plates", "batch", "lower", "plates", _OF_EXPERIMENTS, _HASTIE,
        predicted.experiment, "experiments that hold other compounds are told apart by these, too",
    ),
    "row_predicted": Metric(
        "row predicted from other plates and compounds", "batch", "lower", "plates", _OF_PLACES, _HASTIE,
        predicted.place(ROW),
    ),
    "column_predicted": Metric(
        "column predicted from other plates and compounds", "batch", "lower", "plates", _OF_PLACES, _HASTIE,
        predicted.place(COLUMN),
    ),
    **_both(PLATE, _OF_PLATES),
    **_both(EXPERIMENT, _OF_EXPERIMENTS),
    "treatment_connectivity": Metric(
        "wells of a treatment that are joined by neighbours (graph connectivity)", "batch", "higher", "compounds",
        _OF_TREATMENTS, "Luecken et al. 2022", _treatment(_connectivity, "higher"),
    ),
    "treatment_silhouette": Metric(
        "silhouette of treatments, 0.5 where they do not stand apart", "biology", "higher", "compounds", _OF_TREATMENTS,
        "Rousseeuw 1987; Luecken et al. 2022", _label_silhouette,
    ),
    "treatment_clisi": Metric(
        "effective number of treatments among neighbours (cLISI)", "biology", "lower", "compounds", _OF_TREATMENTS,
        "Korsunsky et al. 2019", _treatment(_clisi, "lower"),
        "1 at best where a treatment has more replicates than the perplexity",
    ),
    "treatment_neighbour": Metric(
        "nearest well has the same treatment (top 1)", "biology", "higher", "compounds", _OF_TREATMENTS,
        "Cover & Hart 1967", _treatment(_first, "higher"),
        "the nearest well may be of the same plate or place: see the ladder",
    ),
}  # fmt: skip
"""Key of a metric → what it is."""
