"""Corrections that take nothing but the wells of the plate itself: pycytominer's normalize, and the B-score."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from biomass.errors import CannotJudgeError
from biomass.evaluation.polish import LEAST, PlateEffects
from biomass.judgement.harmonize import plate_rows
from biomass.judgement.table import COLUMN, PLATE, ROW, Profiles


def noted(profiles: Profiles, *notes: str) -> Profiles:
    """The same, with more to be said of it."""
    return replace(profiles, notes=(*profiles.notes, *(note for note in notes if note)))


def called(names: Sequence[str] | np.ndarray) -> str:
    """One name, and how many others there are."""
    return f"'{names[0]}'" + (f" and {len(names) - 1} others" if len(names) > 1 else "")


@dataclass(frozen=True)
class Pycytominer:
    """``pycytominer.normalize``, a plate at a time, through the scalers that it is made of.

    The function itself reads its table column by column, for a quarter of a second a plate of 1,024 features, and does
    not give out what it has fitted.

    Attributes:
        method: a key of :func:`_scalers`.
        plates: plate → its scaler.
        note: what to say of them.
    """

    method: str
    plates: Mapping[str, Any]
    note: str

    def transform(self, profiles: Profiles) -> Profiles:
        new, note = _fit_scalers(profiles, self.method, self.plates)
        done = np.empty(profiles.features.shape, np.float32)
        for plate, rows in plate_rows(profiles).items():
            values = pd.DataFrame(profiles.features[rows].astype(np.float64))
            done[rows] = (self.plates.get(plate) or new[plate]).transform(values)
        return noted(profiles.with_features(done), self.note, note)


def _scalers() -> Mapping[str, Callable[[], Any]]:
    """What ``pycytominer.normalize`` takes for each of its methods."""
    from pycytominer.operations import RobustMAD
    from sklearn.preprocessing import StandardScaler

    return {"standardize": StandardScaler, "mad_robustize": RobustMAD}


def _fit_scalers(profiles: Profiles, method: str, known: Collection[str] = ()) -> tuple[dict[str, Any], str]:
    """The scalers of plates that are not known yet, by their controls, and what to say of them."""
    negative, found, few = profiles.negative, {}, []
    for plate, own in plate_rows(profiles).items():
        if plate in known:
            continue
        controls = own[negative[own]]
        if len(controls) < 2:
            few.append(plate)
        reference = pd.DataFrame(profiles.features[own if len(controls) < 2 else controls].astype(np.float64))
        found[plate] = _scalers()[method]().fit(reference)
        if method == "mad_robustize":  # a division by a deviation of 0 says nothing
            spread = reference.std(ddof=0)
            found[plate].mad = found[plate].mad.where(lambda mad: mad > 0, spread.where(spread > 0, 1.0))
    note = f"fewer than 2 negative controls, so all wells are taken: {called(few)}" if few else ""
    return found, note


def fit_pycytominer(profiles: Profiles, seed: int = 0, method: str = "standardize") -> Pycytominer:
    """Normalize as ``pycytominer.normalize`` does, plate by plate, to negative controls.

    Args:
        profiles: with plates. A plate with fewer than two negative controls is normalized to all of its wells.
        seed: nothing is drawn.
        method: of pycytominer, ``standardize`` or ``mad_robustize``. A median absolute deviation of 0 is replaced by
            the standard deviation, where pycytominer divides by 1e-18.

    >>> wells = Profiles(pd.DataFrame({"plate": [*"aabb"]}), np.float32([[1], [3], [5], [9]]), ("f",))
    >>> fit_pycytominer(wells).transform(wells).features.ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    return Pycytominer(method, *_fit_scalers(profiles, method))


@dataclass(frozen=True)
class BScores:
    """Position effects of plates, fitted.

    Attributes:
        plates: plate → its effects.
        note: what to say of them.
    """

    plates: Mapping[str, PlateEffects]
    note: str

    def transform(self, profiles: Profiles) -> Profiles:
        """Remove them; those of a plate that was not there at the fit are found in its own wells."""
        known = dict(self.plates)
        new = {plate: rows for plate, rows in plate_rows(profiles).items() if plate not in known}
        learned = _effects(profiles, new)
        done = np.empty(profiles.features.shape, np.float32)
        at = places(profiles)
        for plate, rows in plate_rows(profiles).items():
            effects = known.get(plate) or learned[plate]
            done[rows] = effects.scores(profiles.features[rows], *at[:, rows])
        return noted(profiles.with_features(done), self.note, _unswept(learned))


def fit_position(profiles: Profiles, seed: int = 0) -> BScores:
    """Find the row and column effects of every plate by median polish; what is left becomes B-scores.

    Args:
        profiles: with plates, rows and columns.
        seed: nothing is drawn.

    Raises:
        CannotJudgeError: places of wells are not known, or no plate has a row or a column of four wells.

    >>> wells = pd.DataFrame({"plate": "a", "row": np.repeat(range(4), 4), "column": [*range(4)] * 4})
    >>> values = (10.0 * wells["row"] + wells["column"]).to_numpy(np.float32)[:, None]
    >>> table = Profiles(wells, values, ("f",))
    >>> float(abs(fit_position(table).transform(table).features).max())
    0.0
    """
    effects = _effects(profiles, plate_rows(profiles))
    if not any(one.swept for one in effects.values()):
        raise CannotJudgeError(f"no plate has {LEAST} wells in a row or in a column, which their effects need")
    return BScores(effects, _unswept(effects))


def _effects(profiles: Profiles, plates: Mapping[str, np.ndarray]) -> dict[str, PlateEffects]:
    at = places(profiles)
    return {plate: PlateEffects.of(profiles.features[rows], *at[:, rows]) for plate, rows in plates.items()}


def _unswept(effects: Mapping[str, PlateEffects]) -> str:
    few = [plate for plate, one in effects.items() if not one.swept]
    if not few:
        return ""
    return f"position: no row or column of plate {called(few)} has {LEAST} wells; only its median is removed"


def places(profiles: Profiles) -> np.ndarray:
    """Row and column of every well, (2, N) int64 from 0; -1 where a well has no place."""
    if not profiles.has(PLATE, ROW, COLUMN) or not (profiles.wells[ROW] >= 0).any():
        raise CannotJudgeError("the places of wells on their plates are not known (wells such as B02)")
    return profiles.wells[[ROW, COLUMN]].to_numpy(np.int64).T
