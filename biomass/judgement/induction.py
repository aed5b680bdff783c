"""Does a correction hold for plates that come later, and do the profiles of earlier plates stay what they were?

*Inductive* evaluation fits a correction on the first plates and judges it on those after them. *Drift* is how far the
profiles of the first plates move when the later ones arrive. It is told without regard to a shift or a rotation of all
profiles at once, which change no distance between wells: a correction that is fitted again, or a network that is
calibrated again, may well turn its axes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import CannotJudgeError
from biomass.evaluation.plots import natural
from biomass.judgement.corrections import Correction
from biomass.judgement.scores import Metric, interval, score
from biomass.judgement.table import EXPERIMENT, PLATE, WELL, Profiles

DRIFT = "drift"
"""The metric of :func:`induct` that tells the drift of the plates of the fit."""

WELLS = 20_000
"""Wells at most that a drift is measured on; of more, a seeded sample."""

ROUNDING = 1e-5
"""A drift below this is the rounding of single precision, and 0."""

_ROWS = 8192


class Drift(NamedTuple):
    """How far profiles have moved.

    Attributes:
        value: 0 where nothing moved but all wells together; 1 is as far as wells lie from their mean.
        low: lower end of the interval over plates; NaN for a single plate.
        high: upper end.
        wells: compared.
        note: what should be known.
    """

    value: float
    low: float
    high: float
    wells: int
    note: str


def plate_order(profiles: Profiles) -> list[str]:
    """The plates, sorted by experiment and name; numbers in names count as numbers.

    >>> wells = pd.DataFrame({"plate": ["Week10/P1", "Week2/P10", "Week2/P9"]})
    >>> plate_order(Profiles(wells, np.zeros((3, 1), np.float32), ("f",)))
    ['Week2/P9', 'Week2/P10', 'Week10/P1']
    """
    if not profiles.has(PLATE):
        raise CannotJudgeError("which plate a well is on is not known, and plates cannot come one after the other")
    wells = profiles.wells
    experiments = wells[EXPERIMENT] if profiles.has(EXPERIMENT) else [""] * len(wells)
    pairs = sorted(set(zip(experiments, wells[PLATE], strict=True)), key=lambda pair: [natural(one) for one in pair])
    return list(dict.fromkeys(plate for _, plate in pairs))


def induct(
    profiles: Profiles,
    corrections: Mapping[str, Correction],
    k: int | Sequence[int],
    metrics: Mapping[str, Metric],
    seed: int = 0,
    order: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Fit corrections on the first k plates, and judge them on these and on the later ones.

    Args:
        profiles: of more than k plates.
        corrections: by name.
        k: one number of plates, or several.
        metrics: by name.
        seed: of all that is drawn.
        order: the plates as they came; those of :func:`plate_order` if left out. Others are left out.

    Returns:
        A row for each correction, k and metric: ``correction, refit_only, k, plates`` (of all), ``metric``; the values
        on the plates of the fit, ``fit, fit_low, fit_high``, and on later ones, ``later, later_low, later_high``, with
        what chance gives there, ``null``; ``note``. The metric :data:`DRIFT` has no value on later plates: ``fit`` is
        how far the plates of the fit have moved after the later ones came. What is refit only was fitted again on all
        plates for that, and its later plates are judged after it has seen them.

    Raises:
        CannotJudgeError: plates are not known, or there are not more than k.

    >>> from biomass.judgement.corrections import CORRECTIONS
    >>> rng = np.random.default_rng(0)
    >>> wells = Profiles(pd.DataFrame({"plate": [*"aabbcc"]}), rng.normal(size=(6, 2)).astype("f4"), ("f", "g"))
    >>> induct(wells, {"standardize_all": CORRECTIONS["standardize_all"]}, 2, {})[["metric", "fit"]].values.tolist()
    [['drift', 0.0]]
    """
    order = plate_order(profiles) if order is None else list(order)
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or min(ks) < 1 or max(ks) >= len(order):
        raise CannotJudgeError(
            f"a fit on the first {max(ks, default=0)} plates leaves none that come later: there are {len(order)}"
        )
    number = profiles.wells[PLATE].map({plate: i for i, plate in enumerate(order)}).fillna(-1).to_numpy(int)
    profiles, number = profiles.take(number >= 0), number[number >= 0]
    rows = [
        {"correction": name, "refit_only": correction.refit_only, "k": first, "plates": len(order), **row}
        for first in ks
        for name, correction in corrections.items()
        for row in _of_correction(profiles, number < first, correction, metrics, seed)
    ]
    return pd.DataFrame(rows)


def _of_correction(
    profiles: Profiles, early: np.ndarray, correction: Correction, metrics: Mapping[str, Metric], seed: int
) -> list[dict[str, object]]:
    """The rows of :func:`induct` of one correction and one k."""
    try:
        fitted = correction.fit(profiles.take(early), seed)
        before = fitted.transform(profiles.take(early))
        again = correction.fit(profiles, seed) if correction.refit_only else fitted
        after = again.transform(profiles)
    except CannotJudgeError as reason:
        nothing = dict.fromkeys(("fit", "fit_low", "fit_high", "later", "later_low", "later_high", "null"), np.nan)
        return [{"metric": name, **nothing, "note": str(reason)} for name in (*metrics, DRIFT)]
    later, note = after.take(~early), "fitted again on all plates" if correction.refit_only else ""
    rows: list[dict[str, object]] = []
    for name, metric in metrics.items():
        one, other = score(name, metric, before, seed), score(name, metric, later, seed)
        values = dict(zip(("fit", "fit_low", "fit_high"), one[1:4], strict=True))
        values |= dict(zip(("later", "later_low", "later_high", "null"), other[1:5], strict=True))
        rows.append({"metric": name, **values, "note": "; ".join(filter(None, [note, other.note]))})
    drift = _drift(before, after.take(early), seed)
    values = {"fit": drift.value, "fit_low": drift.low, "fit_high": drift.high}
    values |= dict.fromkeys(("later", "later_low", "later_high", "null"), np.nan)
    return [*rows, {"metric": DRIFT, **values, "note": "; ".join(filter(None, [note, drift.note]))}]


def drift_between(before: Profiles, after: Profiles, seed: int = 0) -> Drift:
    """How far the profiles of wells have moved between two tables of them.

    Both are centred, and ``before`` is turned onto ``after`` by the rotation or reflection that brings them closest
    (orthogonal Procrustes; Schönemann 1966). The drift is the root of the summed squared distances that are left, as a
    share of those of ``before`` from its mean. Tables may differ in the number of features.

    Args:
        before: of wells with plates and names, which no two share; or without, then wells correspond in order.
        after: likewise. Wells that are in one of the tables alone are left out, and counted in the note.
        seed: of the sample of wells.

    Raises:
        CannotJudgeError: the tables have fewer than two wells in common, a well is there twice, or nothing varies.

    >>> wells = pd.DataFrame({"plate": ["a", "a", "b", "b"], "well": ["A01", "A02"] * 2})
    >>> flat = np.float32([[1, 0], [0, 1], [3, 2], [2, 5]])
    >>> turned = flat @ np.float32([[0, 1], [-1, 0]]) + 7
    >>> drift_between(Profiles(wells, flat, ("f", "g")), Profiles(wells, turned, ("f", "g"))).value
    0.0
    """
    names = [one.wells[PLATE] + "/" + one.wells[WELL] for one in (before, after) if one.has(PLATE, WELL)]
    if len(names) < 2:
        if len(before) != len(after):
            raise CannotJudgeError(
                f"the tables have {len(before)} and {len(after)} wells, whose plates and names are not known"
            )
        return _drift(before, after, seed)
    for one in names:
        if one.duplicated().any():
            raise CannotJudgeError(f"well '{one[one.duplicated()].iloc[0]}' is there more than once")
    _, left, right = np.intersect1d(names[0].to_numpy(str), names[1].to_numpy(str), return_indices=True)
    alone = len(before) + len(after) - 2 * len(left)
    drift = _drift(before.take(left), after.take(right), seed)
    note = f"{alone} wells are in one of the tables alone and left out" if alone else ""
    return drift._replace(note="; ".join(filter(None, [note, drift.note])))


def _drift(before: Profiles, after: Profiles, seed: int) -> Drift:
    """The drift between tables of the same wells in the same order."""
    count, note = len(before), ""
    if count < 2:
        raise CannotJudgeError(f"a drift needs two wells that are in both tables, and there are {count}")
    rows = np.arange(count)
    if count > WELLS:
        rows = np.sort(np.random.default_rng(seed).choice(count, WELLS, replace=False))
        note = f"measured on {WELLS} of {count} wells, drawn with seed {seed}"
    one, other = (_centred(table.features[rows], max(len(before.names), len(after.names))) for table in (before, after))
    size = (one**2).sum(1)
    if not size.sum() > 0:
        raise CannotJudgeError("all wells have one and the same profile, and cannot be seen to drift")
    if np.array_equal(one, other):
        moved = np.zeros(len(rows))
    else:
        first, _, last = np.linalg.svd(one.T @ other, full_matrices=False)
        turn = first @ last
        moved = np.empty(len(rows))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            moved[part] = ((one[part] @ turn - other[part]) ** 2).sum(1)
    plates = before.codes(PLATE)[rows] if before.has(PLATE) else np.zeros(len(rows), np.int64)
    low, high = interval(moved, size, plates, seed)
    value, low, high = (_rounded(float(np.sqrt(one))) for one in (moved.sum() / size.sum(), low, high))
    return Drift(value, low, high, len(rows), note)


def _centred(features: np.ndarray, width: int) -> np.ndarray:
    """Features (n, D) less their mean, with zeros up to a width, float64."""
    done = np.zeros((len(features), width))
    done[:, : features.shape[1]] = features
    done[:, : features.shape[1]] -= features.mean(0, dtype=np.float64)
    return done


def _rounded(value: float) -> float:
    return 0.0 if value < ROUNDING else value
