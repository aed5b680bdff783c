"""What is drawn of every well: its place in a map of all, whether its nearest one is right, how far it is away."""

import numpy as np
import pandas as pd
from scipy.linalg import svd

from biomass.evaluation.nearest import directions
from biomass.judgement.table import PLATE, TREATMENT, Profiles

MAPPED, DRAWN = 10_000, 10_000
"""Wells in a map, and wells (of whole plates) whose nearest ones are looked up, at most."""

MAPS = ("umap", "pca", "none")
"""How wells are laid out in the plane."""

_BLOCK, _DIRECTIONS = 2048, 50


def spread_rows(plates: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Up to ``limit`` of N rows, in ascending order, as many of each plate as its share.

    >>> spread_rows(np.repeat([0, 1], [6, 3]), 3).size
    3
    """
    if len(plates) <= limit:
        return np.arange(len(plates))
    order = np.lexsort([np.random.default_rng(seed).random(len(plates)), plates])
    return np.sort(order[np.linspace(0, len(plates) - 1, limit).round().astype(int)])


def whole_plates(plates: np.ndarray, limit: int) -> np.ndarray:
    """The rows of as many whole plates as hold about ``limit`` rows; of two plates at least.

    Half of them are the first ones, half those from the middle on: plates that follow each other often hold the same
    treatments, and replicates should stay together.

    >>> whole_plates(np.repeat([0, 1, 2], 2), 4).tolist()
    [0, 1, 2, 3]
    """
    if len(plates) <= limit:
        return np.arange(len(plates))
    known = np.unique(plates)
    half = max(1, limit * len(known) // len(plates) // 2)
    middle = max(half, len(known) // 2)
    chosen = [*known[:half], *known[middle : middle + half]]
    return np.flatnonzero(np.isin(plates, chosen))


def lay_out(profiles: Profiles, how: str, seed: int = 0) -> np.ndarray:
    """A place in the plane for each of N >= 4 wells, (N, 2) float32; NaN for wells beyond :data:`MAPPED`.

    Args:
        profiles: of the wells.
        how: ``umap`` (McInnes et al. 2018), ``pca``, or ``none``: all are NaN.
        seed: of the layout, and of the wells that are left out.
    """
    places = np.full((len(profiles), 2), np.nan, np.float32)
    if how == "none" or len(profiles) < 4:
        return places
    plates = profiles.codes(PLATE) if profiles.has(PLATE) else np.zeros(len(profiles), np.int64)
    rows = spread_rows(plates, MAPPED, seed)
    leading = _leading(profiles.features[rows], _DIRECTIONS if how == "umap" else 2, centre=how == "pca")
    if how == "umap" and leading.shape[1] > 1:  # a single direction is laid out as it is
        from biomass.evaluation.plots import umap_coordinates  # seconds to import, and more to compile

        leading = umap_coordinates(leading, seed=seed)
    places[rows, : leading.shape[1]] = leading
    return np.where(np.isnan(places[:, :1]), np.nan, np.nan_to_num(places)).astype(np.float32)


def _leading(rows: np.ndarray, count: int, centre: bool) -> np.ndarray:
    """Rows (n, D) in their ``count`` leading directions; the sign of each is that of its largest weight."""
    rows = rows.astype(np.float64) - (rows.mean(0, dtype=np.float64) if centre else 0)
    tall = np.linalg.qr(rows, mode="r") if len(rows) > rows.shape[1] else rows
    axes = svd(tall, full_matrices=False)[2][:count]
    largest = np.abs(axes).argmax(1)
    axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
    projected: np.ndarray = rows @ axes.T
    return projected


def nearest_is_right(profiles: Profiles) -> np.ndarray:
    """Whether the nearest treated well *of another plate* (cosine) has a well's treatment, (N,) 1, 0 or NaN.

    NaN where a well is a control or has no treatment, or no well of another plate has its treatment; and in plates
    that are left out of tables of more than :data:`DRAWN` wells.

    >>> wells = pd.DataFrame({"plate": [*"aabb"], "treatment": [*"xyxy"], "control": ""})
    >>> nearest_is_right(Profiles(wells, np.array([[1, 0], [0, 1], [2, 0], [1, 0]], np.float32), ("f", "g"))).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    right = np.full(len(profiles), np.nan)
    if not profiles.has(PLATE, TREATMENT):
        return right
    rows = whole_plates(profiles.codes(PLATE), DRAWN)
    plate, treatment = profiles.codes(PLATE)[rows], profiles.codes(TREATMENT)[rows]
    judged = profiles.treated[rows] & (treatment >= 0) & (plate >= 0)
    rows, plate, treatment = rows[judged], plate[judged], treatment[judged]
    pairs = pd.DataFrame({"treatment": treatment, "plate": plate}).drop_duplicates()
    several = pairs["treatment"].value_counts()
    answerable = np.isin(treatment, several.index[several > 1])
    if not answerable.any():
        return right
    unit = directions(profiles.features[rows], centre=False).astype(np.float32)
    for number in np.unique(plate[answerable]):
        asked = np.flatnonzero((plate == number) & answerable)
        others = np.flatnonzero(plate != number)
        best, found = np.full(len(asked), -np.inf, np.float32), np.zeros(len(asked), np.int64)
        for start in range(0, len(others), _BLOCK):
            part = others[start : start + _BLOCK]
            similarity = unit[asked] @ unit[part].T
            nearest = similarity.argmax(1)
            value = similarity[np.arange(len(asked)), nearest]
            better = value > best
            best[better], found[better] = value[better], part[nearest[better]]
        right[rows[asked]] = treatment[found] == treatment[asked]
    return right


def distance_to_controls(profiles: Profiles) -> np.ndarray:
    """How far each well is from the mean of its plate's negative controls, (N,), in units of the controls themselves.

    The Euclidean distance, divided by the median distance of the plate's controls from the mean of the *other* ones;
    NaN where a plate has fewer than three negative controls, or all of them are the same.

    >>> wells = pd.DataFrame({"plate": "a", "control": ["negative"] * 3 + [""]})
    >>> distance_to_controls(Profiles(wells, np.array([[0], [1], [2], [7]], np.float32), ("f",))).tolist()
    [0.6666666666666666, 0.0, 0.6666666666666666, 4.0]
    """
    distance = np.full(len(profiles), np.nan)
    if not profiles.has(PLATE) or not profiles.negative.any():
        return distance
    plates, negative = profiles.codes(PLATE), profiles.negative
    for plate in np.unique(plates[negative]):
        wells = np.flatnonzero(plates == plate)
        controls = profiles.features[wells[negative[wells]]].astype(np.float64)
        count = len(controls)
        if count < 3:
            continue
        centre = controls.mean(0)
        # from the mean of the others: count / (count - 1) times as far as from the mean of all
        unit = np.median(np.linalg.norm(controls - centre, axis=1)) * count / (count - 1)
        if unit > 0:
            distance[wells] = np.linalg.norm(profiles.features[wells].astype(np.float64) - centre, axis=1) / unit
    return distance
