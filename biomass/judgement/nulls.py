"""The rows that every table must hold: cells counted and nothing else, and labels that mean nothing."""

import numpy as np
from scipy.stats import rankdata

from biomass.errors import CannotJudgeError
from biomass.judgement.table import COMPOUND, COUNT, MECHANISM, PLATE, TREATMENT, Profiles

_LABELS = (TREATMENT, COMPOUND, MECHANISM)
_PLACES = ("plate", "experiment", "source", "well", "row", "column")


def counted(profiles: Profiles) -> Profiles:
    """The number of cells as the only feature, its logarithm; a well whose cells were not counted has the median.

    Raises:
        CannotJudgeError: cells were not counted, or all wells have the same number.
    """
    if not profiles.has(COUNT) or not np.isfinite(profiles.wells[COUNT]).any():
        raise CannotJudgeError("nothing says how many cells a well has")
    counts = profiles.wells[COUNT].to_numpy(np.float64)
    counts = np.log1p(np.where(np.isfinite(counts), counts, np.nanmedian(counts)))
    if np.ptp(counts) == 0:
        raise CannotJudgeError(f"all wells have the same number of cells, {round(np.expm1(counts[0]))}")
    return Profiles(profiles.wells, counts[:, None].astype(np.float32), ("log_cells",), profiles.taken, profiles.notes)


def as_directions(profiles: Profiles) -> Profiles:
    """A single feature as an angle between 0 and 90 degrees, in the order of its values; others stay as they are.

    Metrics compare directions, and numbers alone have only two of them. Between such angles the cosine falls as the
    values are further apart in rank.

    >>> import pandas as pd
    >>> wells = pd.DataFrame({"plate": ["a"] * 3})
    >>> as_directions(Profiles(wells, np.array([[5], [1], [9]], np.float32), ("f",))).features.round(2).tolist()
    [[0.71, 0.71], [1.0, 0.0], [0.0, 1.0]]
    """
    if profiles.features.shape[1] > 1:
        return profiles
    rank = rankdata(profiles.features[:, 0]) - 1
    angle = np.pi / 2 * rank / max(len(rank) - 1, 1)
    return profiles.with_features(np.stack([np.cos(angle), np.sin(angle)], axis=1))


def shuffled(profiles: Profiles, family: str, seed: int = 0) -> Profiles:
    """The same features under labels that mean nothing.

    Args:
        profiles: of the wells.
        family: of metrics. ``biology``: treatments of treated wells change places within their plate, so that plates
            stay what they are. ``batch``: whole wells change plates and places, so that plates mean nothing.
        seed: of the shuffling.
    """
    draw = np.random.default_rng(seed)
    wells, count = profiles.wells.copy(), len(profiles)
    if family == "batch":
        columns, order = [c for c in _PLACES if c in wells], draw.permutation(count)
    else:
        columns, order = [c for c in _LABELS if c in wells], np.arange(count)
        plates = profiles.codes(PLATE) if profiles.has(PLATE) else np.zeros(count, np.int64)
        treated = np.flatnonzero(profiles.treated)
        by_plate = treated[np.argsort(plates[treated], kind="stable")]
        order[by_plate] = treated[np.lexsort([draw.random(len(treated)), plates[treated]])]
    wells[columns] = wells[columns].to_numpy(object)[order]
    wells = wells.astype(profiles.wells.dtypes.to_dict())
    return Profiles(wells, profiles.features, profiles.names, profiles.taken, profiles.notes)
