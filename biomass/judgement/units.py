"""Features that are not in one unit, such as areas beside ratios, are brought to one before they are compared."""

from dataclasses import replace

import numpy as np

from biomass.judgement.table import Profiles

APART = 100.0
"""How many times the spread of a feature may be that of another (5th to 95th percentile) in one unit."""

SQUARED = 1e12
"""Spreads that are larger, or smaller than its reciprocal, are brought to 1: their squares would be lost."""

_ROWS = 8192


def in_one_unit(profiles: Profiles) -> Profiles:
    """Each feature less its mean, by its standard deviation over all wells, where features are not in one unit.

    Without it, a cosine between profiles of CellProfiler sees the few features with the largest numbers. Nothing of a
    plate is in it: all wells are treated alike. Features of a network are in one unit, and stay as they are. What was
    done is added to the notes.

    >>> import pandas as pd
    >>> features = np.array([[1000, 0.1], [3000, 0.3]], np.float32)
    >>> done = in_one_unit(Profiles(pd.DataFrame({"plate": ["a", "b"]}), features, ("area", "ratio")))
    >>> done.features.tolist(), len(done.notes)
    ([[-1.0, -1.0], [1.0, 1.0]], 1)
    """
    features = profiles.features
    mean = features.mean(0, dtype=np.float64)
    square = np.zeros(features.shape[1])
    for start in range(0, len(features), _ROWS):
        square += ((features[start : start + _ROWS] - mean) ** 2).sum(0)
    spread = np.sqrt(square / len(features))
    known = spread[spread > 0]
    low, high = np.quantile(known, [0.05, 0.95], method="nearest") if len(known) else (1.0, 1.0)
    if high <= APART * low:
        if 1 / SQUARED < high < SQUARED:
            return profiles
        note = f"features differ by about {high:.2g}, whose square single precision cannot hold: all were divided by it"
        return replace(profiles, features=(features / high).astype(np.float32), notes=(*profiles.notes, note))
    scale = np.where(spread > 0, spread, 1.0)
    done = np.empty_like(features)
    for start in range(0, len(features), _ROWS):
        done[start : start + _ROWS] = (features[start : start + _ROWS] - mean) / scale
    note = (
        f"features are not in one unit (most spreads differ {high / low:.2g}-fold): each was centred and divided by "
        "its standard deviation over all wells, before all else"
    )
    return replace(profiles, features=done, notes=(*profiles.notes, note))
