"""How labels lie among neighbours: silhouettes, LISI, kBET, connectivity. Each gives one value a well, or a label."""

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2

from biomass.evaluation.nearest import directions

ALPHA = 0.05
"""Of the test in kBET."""


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
    return unit_silhouettes(directions(np.asarray(features, np.float32), centre=False), labels, others)


def unit_silhouettes(units: np.ndarray, labels: np.ndarray, others: str = "nearest") -> np.ndarray:
    """Of rows of length 1, or 0."""
    known, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    similar = (units @ (_member(number, len(known)) @ units).T).astype(np.float64)
    square = np.einsum("nd,nd->n", units, units, dtype=np.float64)
    return _widths(similar[None], number[None], counts[None], square, others)[0]


def several_silhouettes(units: np.ndarray, labels: np.ndarray, others: str = "nearest") -> np.ndarray:
    """Of a few rows (N, D) of length 1, or 0, under several labels (S, N): (S, N). NaN where all have one label."""
    known, number = np.unique(labels, return_inverse=True)
    number = number.reshape(labels.shape)
    member = (number[..., None] == np.arange(len(known))).astype(np.float64)
    products = units.astype(np.float64) @ units.T.astype(np.float64)
    return _widths(products @ member, number, member.sum(1), np.diag(products), others)


def _widths(similar: np.ndarray, number: np.ndarray, counts: np.ndarray, square: np.ndarray, others: str) -> np.ndarray:
    """Silhouettes (S, N) from the sum of the similarities of each row to each label.

    Args:
        similar: (S, N, K).
        number: (S, N) the own label.
        counts: (S, K) rows of each label, which may be none.
        square: (N,) the similarity of each row to itself.
        others: as in :func:`silhouettes`.
    """
    own = np.take_along_axis(similar, number[..., None], 2)[..., 0]
    size = np.take_along_axis(counts, number, 1)
    there = (counts > 0).sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        within = (size - own - (1 - square)) / (size - 1)
        mean = similar / counts[:, None]
        np.put_along_axis(mean, number[..., None], np.nan, 2)
        other = 1 - np.nansum(mean, 2) / (there - 1) if others == "mean" else 1 - np.fmax.reduce(mean, 2)
        widths = (other - within) / np.maximum(within, other)
    return np.where((size > 1) & (there > 1), np.nan_to_num(widths), np.nan)


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


def _member(labels: np.ndarray, count: int) -> csr_matrix:
    ones = np.ones(len(labels), np.float32)
    return csr_matrix((ones, (labels, np.arange(len(labels)))), shape=(count, len(labels)))


def _shares(indices: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum of the weights of each label's neighbours, (N, K)."""
    known, number = np.unique(labels, return_inverse=True)
    cells = np.arange(len(indices))[:, None] * len(known) + number[indices]
    return np.bincount(cells.ravel(), weights.ravel(), len(indices) * len(known)).reshape(len(indices), len(known))
