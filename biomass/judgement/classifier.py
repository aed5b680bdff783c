"""How well labels of wells are predicted from other wells: a linear classifier, cross-validated.

Linear discriminant analysis with a shrunken covariance (Friedman 1989) and equal chances for all classes. The
covariance within classes is the total covariance T less that between classes. T does not depend on the labels: it is
factored once for all shuffles of them, and what the classes take from it is of rank K, the number of classes::

    C = (1 - a) T + a mu I = L L',   S = C - (1 - a) sum_k (n_k / n) m_k m_k'      (m_k: mean of class k)
    score of class k = x' S^-1 m_k - m_k' S^-1 m_k / 2

In coordinates z = L^-1 x, with the rows of M the means of classes, V = diag((1 - a) n_k / n) and Q = M M'::

    (I - M' V M)^-1 M' = M' (I - V Q)^-1                                           (Woodbury)
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import csc_matrix
from sklearn.utils.extmath import randomized_svd

FEATURES = 1024
"""Of more than these, as many principal components are taken."""

_WELLS = 30
"""Of N wells, D / (D + 30 N) is shrunk. What is estimated from T itself (Ledoit & Wolf 2004) fails here: where plates
differ strongly in few features, T says nothing of the spread within them."""


_SCORES = 2**21  # held at once


def folds(units: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Deal out units to folds, so that all rows of a unit come into one fold, and folds are alike in size.

    Folds know nothing of labels: only then are shuffled labels a fair comparison.

    Args:
        units: (N,) int.
        count: folds at most; there are no more than units.
        seed: which units come together.

    Returns:
        (N,) the fold of each row, from 0.

    >>> folds(np.array([5, 5, 5, 1, 1, 7]), 2, seed=0)
    array([0, 0, 0, 1, 1, 1])
    """
    known, place, sizes = np.unique(units, return_inverse=True, return_counts=True)
    ties = np.random.default_rng(seed).random(len(known))
    fold, filled = np.empty(len(known), np.int64), np.zeros(min(count, len(known)))
    for unit in np.lexsort([ties, -sizes]):
        fold[unit] = filled.argmin()
        filled[fold[unit]] += sizes[unit]
    return fold[place]


def predict(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, columns: np.ndarray | None = None
) -> np.ndarray:
    """Predict the label of every well from wells that share neither its fold of rows nor its fold of columns.

    Args:
        features: (N, D) float32.
        labels: (S, N) int from 0: the labels, and shuffles of them.
        rows: (N,) folds of one kind.
        columns: (N,) folds of another kind; left out, nothing more is kept apart.

    Returns:
        (S, N) predictions; -1 where no other well has the label, so that nothing could be right.

    >>> features = np.array([[0, 1], [0, 2], [0, 3], [5, 1], [5, 2], [5, 3]], np.float32)
    >>> predict(features, np.array([[0, 0, 0, 1, 1, 1]]), rows=np.array([0, 1, 2, 0, 1, 2]))
    array([[0, 0, 0, 1, 1, 1]])
    """
    columns = np.zeros_like(rows) if columns is None else columns
    classes = int(labels.max()) + 1
    predicted = np.full(labels.shape, -1, np.int64)
    x = coordinates(features)
    for test, train, training in _trained(x, rows, columns):
        asked = training.whiten(x[test])
        ways = max(1, _SCORES // (classes * max(len(test), x.shape[1])))
        for start in range(0, len(labels), ways):
            some = labels[start : start + ways]
            scores, seen = _scores(x[train], some[:, train], classes, training, asked)
            known = np.take_along_axis(seen, some[:, test], 1)
            predicted[start : start + ways, test] = np.where(known, scores.argmax(2), -1)
    return predicted


class _Training(NamedTuple):
    """Of training rows: mean (D,), a factor L (D, D) of their shrunken total covariance, and the share of T in it."""

    mean: np.ndarray
    lower: np.ndarray
    share: float

    def whiten(self, x: np.ndarray) -> np.ndarray:
        """Rows (N, D) in coordinates where that covariance is 1."""
        z = solve_triangular(self.lower, (x - self.mean).T, lower=True, check_finite=False).T
        return np.ascontiguousarray(z)


def _trained(
    x: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, _Training]]:
    """Each block of test rows of coordinates x, the rows that it is trained with, and what these say."""
    size = x.shape[1]
    shrinkage = size / (size + _WELLS * len(x))
    cells = [(row, column) for row in np.unique(rows) for column in np.unique(columns)]
    one = len(np.unique(columns)) == 1
    members = {cell: np.flatnonzero((rows == cell[0]) & (columns == cell[1])) for cell in cells}
    grams = {cell: x[each].T @ x[each] for cell, each in members.items()}
    for cell, test in members.items():
        others = [other for other in cells if other[0] != cell[0] and (one or other[1] != cell[1])]
        train = np.concatenate([members[other] for other in others]) if others else np.empty(0, np.int64)
        if not len(test) or len(train) < 2:
            continue
        mean = x[train].mean(0, dtype=np.float64)
        total = np.sum([grams[other] for other in others], axis=0, dtype=np.float64) / len(train)
        total -= np.outer(mean, mean)
        shrunk = (1 - shrinkage) * total
        shrunk[np.diag_indices(size)] += max(shrinkage * np.trace(total) / size, 1e-12)
        lower = cholesky(shrunk, lower=True, check_finite=False).astype(np.float32)
        yield test, train, _Training(mean.astype(np.float32), lower, 1 - shrinkage)


def _scores(
    known: np.ndarray, labels: np.ndarray, classes: int, training: _Training, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (S, T, K) under labels (S, N), -inf of classes without a training row; and which have one (S, K)."""
    ways, count = labels.shape
    joined = (labels + classes * np.arange(ways)[:, None]).T.ravel()
    shape = (ways * classes, count)
    ends = np.arange(0, joined.size + 1, ways)
    member = csc_matrix((np.ones(joined.size, np.float32), joined, ends), shape=shape)
    counts = np.bincount(joined, minlength=ways * classes).reshape(ways, classes)
    means = np.asarray(member @ known) / np.maximum(counts, 1).reshape(-1, 1).astype(np.float32)
    means = training.whiten(means).reshape(ways, classes, -1) * (counts > 0)[..., None].astype(np.float32)
    weights = training.share * counts / count
    products = means.astype(np.float64)
    products = np.eye(classes) - weights[..., None] * (products @ products.transpose(0, 2, 1))
    directions = (np.linalg.inv(products).transpose(0, 2, 1) @ means).astype(np.float32)
    own = np.einsum("skd,skd->sk", directions, means)
    scores = (asked @ directions.reshape(ways * classes, -1).T).reshape(len(asked), ways, classes).transpose(1, 0, 2)
    return np.where((counts > 0)[:, None], scores - own[:, None] / 2, -np.inf), counts > 0


def coordinates(features: np.ndarray) -> np.ndarray:
    """Features (N, D) of mean 0 and variance 1; more than :data:`FEATURES` turned into (N, E) principal components.

    With fewer wells than features, the components hold all that the features do. Constant features are left out.
    """
    x = features - features.mean(0, dtype=np.float64).astype(np.float32)
    spread = x.std(0, dtype=np.float64)
    varied = spread > 1e-6 * np.maximum(np.abs(features).max(0), 1e-30)
    x = (x[:, varied] / spread[varied]).astype(np.float32)
    if x.shape[1] == 0:
        return np.zeros((len(x), 1), np.float32)
    if x.shape[1] <= FEATURES:
        return x
    left, values, _ = randomized_svd(x, min(FEATURES, len(x)), n_iter=2, random_state=0)
    return (left * values).astype(np.float32)
