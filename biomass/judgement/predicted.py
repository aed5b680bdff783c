"""Can plate, experiment, row and column of a well be predicted from other wells?

Which wells are others? Whatever could be recognized by something else than what is asked must not be in training:

plate
    no well with the compound of the asked one, nor at its place: else its replicates tell where they are.
experiment
    no well of its plate, either: else the plate is recognized, and an experiment is more than its plates.
row, column
    no well of its plate, nor with its compound: else a compound that is always at the same place is recognized.
    Controls of one name count as one compound.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from biomass.errors import CannotJudgeError
from biomass.judgement import shuffles
from biomass.judgement.classifier import folds, predict
from biomass.judgement.neighbours import even_sample
from biomass.judgement.scores import Measured
from biomass.judgement.table import COLUMN, COMPOUND, EXPERIMENT, PLATE, ROW, TREATMENT, WELL, Profiles

LIMIT = 6000
"""Wells that a classifier is made of and judged by; more are sampled."""

FOLDS, CROSSED = 5, 4
"""Folds of one kind; of each of two kinds, where both are kept apart."""

PLATES, COMPOUNDS = 8, 2
"""Folds of these for experiments: with few folds of plates, experiments too often lie in one fold altogether, and there
are no other plates to predict them from."""

_LARGEST = 1 / 3  # of all wells: relatives beyond this are too many to be kept apart together


def plate(profiles: Profiles, seed: int) -> Measured:
    """The plate of a well, from wells that are not its relatives."""
    rows, note = even_sample(profiles, LIMIT, seed)
    labels, finest = shuffles.plates(profiles, rows, seed, PLATE)
    units, kept = relatives(profiles, rows)
    found = predict(profiles.features[rows], _numbered(labels), _parted(units, FOLDS, seed))
    return _measured(profiles, rows, _numbered(labels), found, finest, _join(note, kept))


def experiment(profiles: Profiles, seed: int) -> Measured:
    """The experiment of a well, from other plates and wells that are not its relatives."""
    rows, note = even_sample(profiles, LIMIT, seed, EXPERIMENT)
    labels, finest = shuffles.plates(profiles, rows, seed, EXPERIMENT)
    units, kept = relatives(profiles, rows)
    labels = _numbered(labels)
    if profiles.has(PLATE):
        first = folds(profiles.codes(PLATE)[rows], PLATES, seed)
        second = _parted(units, COMPOUNDS, seed)
        found = predict(profiles.features[rows], labels, first, second)
    else:
        found = predict(profiles.features[rows], labels, _parted(units, FOLDS, seed))
    return _measured(profiles, rows, labels, found, finest, _join(note, kept))


def place(role: str) -> Callable[[Profiles, int], Measured]:
    """The row or the column of a well, from other plates and compounds."""

    def measure(profiles: Profiles, seed: int) -> Measured:
        if not profiles.has(role):
            raise CannotJudgeError(f"no column says in which {role} a well lies")
        rows, note = even_sample(profiles, LIMIT, seed)
        known = profiles.wells[role].to_numpy()[rows] >= 0
        rows = rows[known]
        if not known.all():
            note = _join(note, f"{(~known).sum():,} wells have no place")
        codes = profiles.wells[role].to_numpy()[rows]
        if not len(codes):
            raise CannotJudgeError("no well has a place")
        if len(np.unique(codes)) < 2:
            raise CannotJudgeError(f"all wells lie in one {role}: nothing can be compared with it")
        labels = _numbered(_places(profiles, rows, codes, seed))
        units, kept = relatives(profiles, rows, one_control=True)
        plates = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.zeros_like(rows)
        if len(np.unique(plates)) > 1:
            first, second = folds(plates, CROSSED, seed), _parted(units, CROSSED, seed)
            found = predict(profiles.features[rows], labels, first, second)
        else:
            found = predict(profiles.features[rows], labels, _parted(units, FOLDS, seed))
        return _measured(profiles, rows, labels, found, 0.0, _join(note, kept))

    return measure


def relatives(profiles: Profiles, rows: np.ndarray, one_control: bool = False) -> tuple[np.ndarray, str]:
    """What must not be on both sides, (N,) int: wells of a compound and, where that can be, of a place.

    Args:
        profiles: all wells.
        rows: (N,) which of them are asked for.
        one_control: whether all controls of a name are relatives, or only those at one place.

    Returns:
        The numbers of the families, and a note where replicates cannot be kept apart.
    """
    own = np.arange(len(rows))
    places = profiles.codes(WELL)[rows] if profiles.has(WELL) else np.full(len(rows), -1)
    role = next((each for each in (COMPOUND, TREATMENT) if profiles.has(each)), None)
    compounds = np.full(len(rows), -1) if role is None else profiles.codes(role)[rows]
    if not one_control:
        compounds = np.where(profiles.treated[rows], compounds, -1)
    high = compounds.max() + 1
    family = np.where(compounds >= 0, compounds, np.where(places >= 0, high + places, high + places.max() + 1 + own))
    both = places >= 0
    low, size = family.max() + 1, family.max() + places.max() + 2
    pairs = coo_matrix((np.ones(both.sum()), (family[both], low + places[both])), shape=(size, size))
    merged = connected_components(pairs, directed=False)[1][family]
    if np.bincount(merged).max() <= _LARGEST * len(rows):
        family = merged
    if role is None:
        note = "treatments are not known, so " + (
            "wells at the same place are kept apart" if both.any() else "replicates may be on both sides"
        )
        return family, note
    return family, ""


def _parted(units: np.ndarray, count: int, seed: int) -> np.ndarray:
    parts = folds(units, count, seed + 1)
    if parts.max() < 1:
        raise CannotJudgeError("all wells hold the same compound or lie at one place: there are no other wells")
    return parts


def _places(profiles: Profiles, rows: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Rows or columns (1 + S, N), shuffled among places, on all plates alike, controls apart from the others."""
    if profiles.has(WELL):
        spots = profiles.codes(WELL)[rows]
    elif profiles.has(ROW, COLUMN):
        spots = np.unique(profiles.wells[[ROW, COLUMN]].to_numpy()[rows], axis=0, return_inverse=True)[1].ravel()
    else:
        plates = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.zeros_like(rows)
        return shuffles.shuffled(codes, plates, seed)
    _, first, spot = np.unique(spots, return_index=True, return_inverse=True)
    treated = profiles.treated[rows][first]
    return shuffles.shuffled(codes[first], treated.astype(np.int64), seed)[:, spot]


def _numbered(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _measured(
    profiles: Profiles, rows: np.ndarray, labels: np.ndarray, found: np.ndarray, finest: float, note: str
) -> Measured:
    """Balanced accuracy: the mean over classes of the share of their wells that is right."""
    right = np.where(found >= 0, found == labels, np.nan)
    weights = np.zeros(labels.shape)
    for way, known in enumerate(found >= 0):
        counts = np.bincount(labels[way, known], minlength=labels.max() + 1)
        weights[way, known] = 1 / counts[labels[way, known]]
    judged = found[0] >= 0
    classes = len(np.unique(labels[0, judged]))
    if classes < 2:
        raise CannotJudgeError("what is asked goes with what must be kept apart: no other wells tell of it")
    if not judged.all():
        note = _join(note, f"{(~judged).sum():,} wells are left out: no other wells tell of their kind")
    null, p = shuffles.against_chance(shuffles.means(right, weights), "higher", finest)
    groups = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.arange(len(rows))
    return Measured(right[0], groups, null, weights[0], p, note)


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))
