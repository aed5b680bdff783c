"""Mechanism of action by the nearest neighbour (NSC, NSCB), and how well batches mix.

*Not same compound* (NSC; Ljosa et al. 2013): a treatment is predicted to have the mechanism of the most similar
treatment with another compound. *Not same compound or batch* (NSCB; Ando et al. 2017): the neighbour must also come
from other batches, so that a shared batch effect cannot help. The batch-mixing score (Lin & Lu 2022) asks the opposite:
how often the nearest neighbour of an image comes from its own batch. Names are compared in the normal form of
:mod:`biomass.identifiers`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.evaluation.tables import Features, feature_matrix, row_labels, row_names, row_values
from biomass.identifiers import names, normal

DISTANCES = ("cosine", "correlation", "euclidean")

_TIE = 1e-12
"""Distances that differ by less (in cosine and correlation; of the smaller one in euclidean) are equal."""


@dataclass(frozen=True)
class NearestResult:
    """What the nearest neighbours say about N treatments, in the order of the rows that were given.

    Attributes:
        index: the row labels of the table, or 0..N-1.
        compounds: the compound of every treatment, (N,) of str.
        moas: the true mechanism, (N,) of str, ``None`` where it is not known.
        predictions: the predicted mechanism, (N,) of str, ``None`` where the treatment cannot be scored.
        neighbours: position of the nearest admissible treatment, (N,) int64, -1 where it cannot be scored.
        distances: distance to it, (N,) float64, NaN where it cannot be scored.
        reasons: why a treatment cannot be scored, (N,) of str, ``None`` where it can.
    """

    index: pd.Index
    compounds: np.ndarray
    moas: np.ndarray
    predictions: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    reasons: np.ndarray

    @property
    def scorable(self) -> np.ndarray:
        """Treatments that could be predicted rightly, (N,) bool: an admissible one has their mechanism."""
        return self.neighbours >= 0

    @property
    def correct(self) -> np.ndarray:
        """Treatments that are predicted rightly, (N,) bool; never those that cannot be scored."""
        return self.scorable & (self.predictions == self.moas)

    @property
    def accuracy(self) -> float:
        """Share of the scorable treatments that is right, 0..1; NaN if none can be scored (see ``reasons``)."""
        scorable = int(self.scorable.sum())
        return float(self.correct.sum() / scorable) if scorable else float("nan")

    @property
    def unscorable(self) -> pd.DataFrame:
        """The treatments that cannot be scored: columns ``compound, moa, reason``, indexed by their row labels."""
        return self.table().loc[~self.scorable, ["compound", "moa", "reason"]]

    def table(self) -> pd.DataFrame:
        """A row a treatment: ``compound, moa, prediction, correct, neighbour`` (position), ``distance, reason``."""
        columns = {
            "compound": self.compounds,
            "moa": self.moas,
            "prediction": self.predictions,
            "correct": self.correct,
            "neighbour": self.neighbours,
            "distance": self.distances,
            "reason": self.reasons,
        }
        return pd.DataFrame(columns, index=self.index)

    def confusion_matrix(self) -> pd.DataFrame:
        """Counts of the scorable treatments: rows predicted, columns true, both all known mechanisms, sorted."""
        classes = _known_classes(self.moas)
        counts = np.zeros((len(classes), len(classes)), np.int64)
        place = {name: i for i, name in enumerate(classes)}
        rows = [place[p] for p in self.predictions[self.scorable]]
        columns = [place[m] for m in self.moas[self.scorable]]
        np.add.at(counts, (rows, columns), 1)
        return pd.DataFrame(counts, pd.Index(classes, name="predicted"), pd.Index(classes, name="true"))

    def by_moa(self) -> pd.DataFrame:
        """A row a mechanism: ``treatments, scorable, correct`` (counts) and ``accuracy`` (NaN if none is scorable)."""
        flags = pd.DataFrame({"treatments": 1, "scorable": self.scorable, "correct": self.correct}).astype(np.int64)
        table = flags.groupby(pd.Series(self.moas, name="moa"), sort=True).sum()
        table["accuracy"] = table["correct"] / table["scorable"].where(table["scorable"] > 0)
        return table


@dataclass(frozen=True)
class BatchMixing:
    """How often a row's nearest neighbour is of its own batch.

    Attributes:
        share: share of rows whose nearest neighbour has the same batch, 0..1; large where batches stand apart.
        expected: the same share if neighbours were drawn at random from the other rows: perfect mixing.
        by_batch: a row a batch, columns ``rows``, ``share``, ``expected``.
    """

    share: float
    expected: float
    by_batch: pd.DataFrame


def nsc(features: Features, compounds: object, moas: object, metric: str = "cosine") -> NearestResult:
    """Predict the mechanism of every treatment by its nearest neighbour that is not the same compound.

    A treatment is scored if its mechanism is known and another compound has it, too; otherwise no method could be
    right, and it counts neither for nor against. Treatments whose mechanism is missing (empty, NaN, ``NA``, ``null`` …)
    are nobody's neighbours. Controls are not treatments: leave them out before. Among equally near neighbours (within
    1e-12) the first row wins. A profile without direction (all zeros under ``cosine``, all features equal under
    ``correlation``) is at distance 1 from all others.

    Args:
        features: a row a treatment: a profile table, or an array (N, D).
        compounds: the compound of every treatment, (N,), or the name of a column.
        moas: the mechanism of every treatment, likewise.
        metric: ``cosine``, ``correlation`` (Pearson; both 1 - similarity, in [0, 2]) or ``euclidean``.

    Raises:
        ConfigError: the metric, or a column, is unknown.
        DataError: a feature is missing or infinite, a compound is missing, two names differ in nothing but case, or
            there is not one value a row.

    >>> profiles = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> result = nsc(profiles, ["a", "b", "c", "d"], ["actin", "actin", "DNA", "NA"])
    >>> result.table()[["compound", "moa", "prediction", "reason"]]
      compound    moa prediction                                     reason
    0        a  actin      actin                                       None
    1        b  actin      actin                                       None
    2        c    DNA       None  no other compound has the mechanism 'DNA'
    3        d   None       None                 its mechanism is not known
    >>> result.accuracy
    1.0
    """
    return _nearest(features, compounds, moas, None, metric)


def nscb(features: Features, compounds: object, moas: object, batches: object, metric: str = "cosine") -> NearestResult:
    """Predict as :func:`nsc` does, from neighbours that share neither the compound nor any batch.

    Args:
        features: a row a treatment: a profile table, or an array (N, D).
        compounds: the compound of every treatment, (N,), or the name of a column.
        moas: the mechanism of every treatment, likewise.
        batches: the batch of every treatment, likewise: one name, or, where the replicates of a treatment are spread
            over batches, a set, list, tuple or array of names. Two treatments share a batch if their sets meet. Names
            joined by commas are refused, as ``Week1,Week3`` would not meet ``Week1``: split them with
            :func:`batch_sets`.
        metric: ``cosine``, ``correlation`` or ``euclidean``, as in :func:`nsc`.

    Raises:
        ConfigError: the metric, or a column, is unknown.
        DataError: a feature is missing or infinite, a compound or a batch is missing, the name of a batch holds a
            comma, two names differ in nothing but case, or there is not one value a row.

    >>> profiles = np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1]])
    >>> batches = [{"Week1", "Week2"}, "Week1", "Week3", "Week3"]
    >>> nscb(profiles, ["a", "b", "c", "d"], ["actin", "actin", "actin", "DNA"], batches).neighbours
    array([ 2,  2,  1, -1])
    """
    return _nearest(features, compounds, moas, _memberships(features, batches), metric)


def batch_sets(joined: Collection[object], sep: str = ",") -> list[frozenset[str]]:
    """Split batches that were written as one text a treatment into the sets that :func:`nscb` takes.

    Args:
        joined: one text a treatment, such as ``Week1,Week3``; str or bytes.
        sep: what stands between the batches.

    Raises:
        DataError: a value is not text.

    >>> [sorted(batches) for batches in batch_sets(["Week1, Week3", "Week1"])]
    [['Week1', 'Week3'], ['Week1']]
    """
    sets = []
    for row, text in enumerate(joined):
        text = text.decode() if isinstance(text, bytes) else text
        if not isinstance(text, str):
            raise DataError(f"batches of row {row} are {text!r}; they must be a text such as 'Week1{sep}Week3'")
        sets.append(frozenset(map(normal, text.split(sep))) - {""})
    return sets


def batch_mixing(features: Features, batches: object, block: int = 4096) -> BatchMixing:
    """Share of rows whose nearest neighbour (cosine distance, itself left out) has the same batch.

    All pairs are compared, in blocks of ``block`` x ``block``, in the floating type of the features. Memory grows with
    ``block`` and with the number of rows, not with its square. Of equally near neighbours the first row wins.

    Args:
        features: a row an image, cell or well: a profile table, or an array (N, D).
        batches: one name a row, (N,), or the name of a column.
        block: rows compared at once.

    Raises:
        ConfigError: a column is unknown, or ``block`` is not positive.
        DataError: there are fewer than two rows, a feature is missing or infinite, a batch is missing, or two names
            differ in nothing but case.

    >>> mixing = batch_mixing(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), ["a", "a", "b", "b"])
    >>> mixing.share, round(mixing.expected, 3)
    (1.0, 0.333)
    """
    if block < 1:
        raise ConfigError(f"block={block}, but at least one row must be compared at once")
    unit = directions(feature_matrix(features), centre=False)
    n = len(unit)
    if n < 2:
        raise DataError("batch mixing needs a nearest neighbour, and there is only 1 row; give at least two")
    labels = row_names(features, batches, "batch", needed=True)
    known, codes = np.unique(labels.astype(str), return_inverse=True)
    nearest = np.zeros(n, np.int64)
    best = np.full(n, -np.inf, unit.dtype)
    for top in range(0, n, block):
        for left in range(top, n, block):
            similarity = unit[top : top + block] @ unit[left : left + block].T
            if left == top:
                np.fill_diagonal(similarity, -np.inf)
            else:  # each pair is compared once, for both rows; a row sees its candidates in ascending order
                _take_better(best, nearest, similarity.T, left, top)
            _take_better(best, nearest, similarity, top, left)
    same = codes[nearest] == codes
    rows = np.bincount(codes)
    expected = (rows - 1) / (n - 1)
    share = np.bincount(codes, weights=same) / rows
    by_batch = pd.DataFrame({"rows": rows, "share": share, "expected": expected}, pd.Index(known, name="batch"))
    return BatchMixing(float(same.mean()), float((rows * expected).sum() / n), by_batch)


def _nearest(
    features: Features, compounds: object, moas: object, membership: np.ndarray | None, metric: str
) -> NearestResult:
    if metric not in DISTANCES:
        raise ConfigError(f"metric='{metric}' is unknown; there are: {', '.join(DISTANCES)}")
    matrix = feature_matrix(features).astype(np.float64, copy=False)
    compound_names = row_names(features, compounds, "compound", needed=True)
    truth = row_names(features, moas, "moa")
    truth[truth == ""] = None
    n = len(matrix)
    compound = np.unique(compound_names.astype(str), return_inverse=True)[1]
    classes = {name: i for i, name in enumerate(_known_classes(truth))}
    moa = np.array([classes.get(m, -1) for m in truth])

    from scipy.spatial.distance import cdist  # training imports this module, and needs nothing of it

    if metric != "euclidean":
        matrix = directions(matrix, centre=metric == "correlation")
    neighbours = np.full(n, -1, np.int64)
    distances = np.full(n, np.nan)
    reasons = np.full(n, None, dtype=object)
    block = max(1, 2**24 // n)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        admissible = (compound[rows, None] != compound) & (moa >= 0)
        if membership is not None:
            admissible &= membership[rows].astype(np.float32) @ membership.T.astype(np.float32) == 0
        possible = (admissible & (moa[rows, None] == moa)).any(1)
        distance = cdist(matrix[rows], matrix) if metric == "euclidean" else 1 - matrix[rows] @ matrix.T
        distance[~admissible] = np.inf
        least = distance.min(1)
        # not argmin: two rows with the same profile must tie whatever order their products were summed in
        tolerance = _TIE * least if metric == "euclidean" else _TIE
        first = (distance <= (least + tolerance)[:, None]).argmax(1)
        neighbours[rows] = np.where(possible, first, -1)
        distances[rows] = np.where(possible, np.maximum(least, 0), np.nan)
        for row in start + np.flatnonzero(~possible):
            where = "" if membership is None else " in another batch"
            reasons[row] = (
                "its mechanism is not known"
                if truth[row] is None
                else f"no other compound{where} has the mechanism '{truth[row]}'"
            )
    predictions = truth[neighbours]
    predictions[neighbours < 0] = None
    index = features.index if isinstance(features, pd.DataFrame) else pd.RangeIndex(n)
    return NearestResult(index, compound_names, truth, predictions, neighbours, distances, reasons)


def _take_better(best: np.ndarray, nearest: np.ndarray, similarity: np.ndarray, first: int, candidate: int) -> None:
    """Let the rows from ``first`` on have the candidates, numbered from ``candidate`` on, that are nearer to them."""
    found = similarity.argmax(1)
    value = similarity[np.arange(len(found)), found]
    rows = first + np.flatnonzero(value > best[first : first + len(found)])
    best[rows], nearest[rows] = value[rows - first], candidate + found[rows - first]


def _known_classes(moas: np.ndarray) -> list[str]:
    return sorted({m for m in moas if m is not None})


def _memberships(features: Features, batches: object) -> np.ndarray:
    """Which of the B batches every treatment belongs to, (N, B) bool."""
    values, place = row_values(features, batches, "batches"), row_labels(features)
    many = (set, frozenset, list, tuple, np.ndarray)
    items = [list(value) if isinstance(value, many) else [value] for value in values]
    owner = np.repeat(np.arange(len(items)), list(map(len, items)))
    labels = names([one for several in items for one in several], "batch", place=lambda item: place(int(owner[item])))
    joined = np.flatnonzero(["," in label for label in labels])
    if len(joined):
        raise DataError(
            f"{place(owner[joined[0]])} has the batch '{labels[joined[0]]}', which looks like several; split it with "
            "batch_sets"
        )
    owner, labels = owner[labels != ""], labels[labels != ""]
    alone = np.setdiff1d(np.arange(len(items)), owner)
    if len(alone):
        raise DataError(f"{place(alone[0])} has no batch; fill it or drop the row")
    codes = pd.factorize(labels)[0]
    membership = np.zeros((len(items), codes.max() + 1), bool)
    membership[owner, codes] = True
    return membership


def directions(matrix: np.ndarray, centre: bool) -> np.ndarray:
    """Rows (N, D) scaled to unit length, after centring each of them if asked; rows without direction become 0."""
    largest = np.abs(matrix).max(1, keepdims=True)
    # squares of very large or very small values leave the range of the type
    rows = matrix / np.where(largest > 0, largest, 1)
    full = np.linalg.norm(rows, axis=1, keepdims=True)
    if centre:
        rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    none = length <= (1e-12 * full if centre else 0)
    return np.where(none, 0, rows / np.where(none, 1, length))
