"""Corrections of well profiles that are fitted once, on controls, saved, and applied to later plates.

A correction is made of steps, each an entry of :data:`STEPS`, and each fitted on what those before it have left:

* ``standardize``: ``(x - mean) / sd`` of the controls of the row's own plate;
* ``whiten``: ZCA whitening on all controls, see :mod:`biomass.evaluation.whitening`. Nothing in it belongs to a plate;
* ``align``: the controls' covariance of the row's own batch becomes that of all controls (CORAL; Sun et al. 2016).

``tvn`` (Ando et al. 2017) is whitening and alignment. What is fitted on all controls, or on those of chosen plates,
stays as it is when a saved correction meets a new plate; what belongs to a plate or a batch is learned from its own
controls then, unless the saved correction knows the plate or the batch already.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from biomass.atomic import whole_file
from biomass.bounds import read_json
from biomass.errors import ConfigError, DataError, did_you_mean, one_line
from biomass.evaluation.tables import LARGEST, control_moments, feature_columns, feature_matrix, like
from biomass.evaluation.whitening import Alignment, Whitening, fit_alignment, fit_whitening

BATCH, PLATE = "Metadata_Batch", "Metadata_Plate"
"""The columns that name a batch of plates, and a plate in it."""


class Step(Protocol):
    """One step of a correction, fitted."""

    def learn(self, controls: np.ndarray, groups: np.ndarray) -> "Step":
        """The same, which also knows the groups that it does not know yet, by their own controls (n, D)."""

    def apply(self, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Correct rows (N, D) of these groups (N,), which are known."""

    def known(self) -> list[str]:
        """The names of the groups that it knows."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, for a file."""


@dataclass(frozen=True)
class Standardizing:
    """``(x - centre) / (spread + epsilon)`` of each group.

    Attributes:
        groups: mean and standard deviation (divisor n - 1) of the controls of each group, (D,) both.
        epsilon: added to the spread.
    """

    groups: Mapping[str, tuple[np.ndarray, np.ndarray]]
    epsilon: float

    def learn(self, controls: np.ndarray, groups: np.ndarray) -> "Standardizing":
        new = ~np.isin(groups, list(self.groups))
        if not new.any():
            return self
        names, numbers = np.unique(groups[new], return_inverse=True)
        centre, spread = control_moments(controls[new], numbers, list(names))
        found = {str(name): (centre[i], spread[i]) for i, name in enumerate(names)}
        return replace(self, groups={**self.groups, **found})

    def apply(self, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        names, numbers = np.unique(groups, return_inverse=True)
        centre, spread = (np.stack(values) for values in zip(*(self.groups[str(n)] for n in names), strict=True))
        done: np.ndarray = (rows - centre[numbers]) / (spread + self.epsilon)[numbers]
        return done

    def known(self) -> list[str]:
        return list(self.groups)

    def arrays(self) -> dict[str, np.ndarray]:
        values = list(self.groups.values())
        stacked = {"centre": np.stack([c for c, _ in values]), "spread": np.stack([s for _, s in values])}
        return {"names": np.array(list(self.groups), dtype=str), "epsilon": np.array(self.epsilon)} | stacked

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Standardizing":
        """The inverse of :meth:`arrays`."""
        pairs = zip(arrays["centre"], arrays["spread"], strict=True)
        return cls(dict(zip(arrays["names"].tolist(), pairs, strict=True)), float(arrays["epsilon"]))


@dataclass(frozen=True)
class Whitened:
    """:class:`biomass.evaluation.whitening.Whitening` as a step."""

    fit: Whitening

    def learn(self, controls: np.ndarray, groups: np.ndarray) -> "Whitened":
        return self

    def apply(self, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return np.asarray(self.fit.apply(rows))

    def known(self) -> list[str]:
        return []

    def arrays(self) -> dict[str, np.ndarray]:
        fit = self.fit
        whole = {"centre": fit.centre, "variances": fit.variances, "directions": fit.directions}
        return whole | {"regularization": np.array(fit.regularization)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Whitened":
        """The inverse of :meth:`arrays`."""
        fit = (arrays["centre"], arrays["variances"], arrays["directions"], float(arrays["regularization"]))
        return cls(Whitening(*fit, ()))


@dataclass(frozen=True)
class Aligned:
    """:class:`biomass.evaluation.whitening.Alignment` as a step."""

    fit: Alignment

    def learn(self, controls: np.ndarray, groups: np.ndarray) -> "Aligned":
        return Aligned(self.fit.with_batches(controls, groups))

    def apply(self, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return self.fit.apply(rows, groups)

    def known(self) -> list[str]:
        return list(self.fit.batches)

    def arrays(self) -> dict[str, np.ndarray]:
        fit = self.fit
        whole = {"centre": fit.centre, "variances": fit.variances, "directions": fit.directions}
        whole |= {"regularization": np.array(fit.regularization), "names": np.array(list(fit.batches), dtype=str)}
        own = fit.batches.values()  # of different lengths: one behind the other
        width = len(fit.centre)
        return whole | {
            "lengths": np.array([len(variances) for variances, _ in own], np.int64),
            "batch_variances": np.concatenate([np.zeros(0), *(variances for variances, _ in own)]),
            "batch_directions": np.concatenate([np.zeros((0, width)), *(directions for _, directions in own)]),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Aligned":
        """The inverse of :meth:`arrays`."""
        stops = np.cumsum(arrays["lengths"])[:-1]
        pairs = zip(
            np.split(arrays["batch_variances"], stops), np.split(arrays["batch_directions"], stops), strict=True
        )
        batches = dict(zip(arrays["names"].tolist(), pairs, strict=True))
        whole = (arrays["centre"], arrays["variances"], arrays["directions"], float(arrays["regularization"]))
        return cls(Alignment(*whole, batches))


class Kind(NamedTuple):
    """A kind of step.

    Attributes:
        fit: from controls (n, D) and epsilon to the step, which knows no group yet.
        of: from what :meth:`Step.arrays` gave.
        by: columns that make a group; none where nothing belongs to a group.
        anew: what is fitted anew for a new group, for people.
    """

    fit: Callable[[np.ndarray, float | None], Step]
    of: Callable[[Mapping[str, np.ndarray]], Step]
    by: tuple[str, ...]
    anew: str


STEPS: Mapping[str, Kind] = {
    "standardize": Kind(
        lambda controls, epsilon: Standardizing({}, epsilon or 0.0),
        Standardizing.of,
        (BATCH, PLATE),
        "mean and spread of a new plate, from its own controls",
    ),
    "whiten": Kind(
        lambda controls, epsilon: Whitened(fit_whitening(controls, epsilon)), Whitened.of, (), "nothing of a new plate"
    ),
    "align": Kind(
        lambda controls, epsilon: Aligned(fit_alignment(controls)),
        Aligned.of,
        (BATCH,),
        "the covariance of a new batch, from its own controls",
    ),
}
"""The kinds of steps that corrections are made of."""

CORRECTIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "standardize": ("standardize",),
    "whiten": ("whiten",),
    "standardize_whiten": ("standardize", "whiten"),
    "tvn": ("whiten", "align"),
    "standardize_tvn": ("standardize", "whiten", "align"),
}
"""What can be done to well profiles, by name: the steps of each."""


@dataclass(frozen=True)
class Correction:
    """A correction of well profiles, fitted.

    Attributes:
        how: a key of :data:`CORRECTIONS`.
        by: columns that make a group in the steps that go by group; None: those of each :data:`STEPS`.
        controls: which controls it is fitted on, a kind of :data:`biomass.screen.KINDS`.
        features: their names.
        origin: what the profiles were made by; a correction is of no use for those of another network.
        steps: fitted.
        position: whether it was fitted on profiles without position effects, and is for such profiles.
    """

    how: str
    by: tuple[str, ...] | None
    controls: str
    features: tuple[str, ...]
    origin: str
    steps: tuple[Step, ...]
    position: bool = False

    def learn(self, controls: pd.DataFrame) -> "Correction":
        """The same, which also knows the plates and batches of these controls.

        Args:
            controls: profiles of control wells. Plates and batches that are known already stay as they are.

        Raises:
            DataError: a group has fewer than two controls (it is named), or the features are not those of the fit.
        """
        if controls.empty:
            return self
        rows, steps = self._matrix(controls), []
        for kind, step in zip(CORRECTIONS[self.how], self.steps, strict=True):
            groups = group_names(controls, self.by or STEPS[kind].by)
            steps.append(step.learn(rows, groups))
            rows = steps[-1].apply(rows, groups)
        return replace(self, steps=tuple(steps))

    def apply(self, wells: pd.DataFrame) -> pd.DataFrame:
        """Correct the profiles of wells, whose plates and batches are known.

        Raises:
            DataError: a plate or a batch is not known, or the features are not those of the fit.
        """
        rows = self._matrix(wells)
        for kind, step in zip(CORRECTIONS[self.how], self.steps, strict=True):
            groups = group_names(wells, self.by or STEPS[kind].by)
            unknown = np.setdiff1d(groups, step.known() if STEPS[kind].by else groups)
            if len(unknown):
                raise DataError(
                    f"'{unknown[0]}' is not among the {len(step.known())} groups that '{self.how}' knows, and has no "
                    "control wells to learn it from; mark its controls, or take another post-processing",
                    "postprocess",
                )
            rows = step.apply(rows, groups)
        done = like(wells, rows.astype(np.float32))
        assert isinstance(done, pd.DataFrame)
        return done

    def _matrix(self, wells: pd.DataFrame) -> np.ndarray:
        found = tuple(feature_columns(wells))
        if found != self.features:
            raise DataError(
                f"'{self.how}' was fitted on {len(self.features)} features from '{self.features[0]}', and these "
                f"profiles have {len(found)} from '{found[0] if found else ''}'",
                "postprocess",
            )
        return feature_matrix(wells, LARGEST).astype(np.float64)

    def save(self, file: Path) -> None:
        """Write it as plain arrays, ``.npz``, whole or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        about: dict[str, Any] = {"how": self.how, "by": self.by, "controls": self.controls, "origin": self.origin}
        about["position"] = self.position
        arrays = {f"{i}.{name}": value for i, step in enumerate(self.steps) for name, value in step.arrays().items()}
        arrays |= {"about": np.array(json.dumps(about)), "features": np.array(self.features, dtype=str)}
        with whole_file(file) as part, part.open("wb") as out:
            np.savez(out, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, file: Path) -> "Correction":
        """Read it again.

        Raises:
            DataError: there is no such file, or it is not one of :meth:`save`.
        """
        try:
            with np.load(file, allow_pickle=False) as found:
                arrays = dict(found)
            about: dict[str, Any] = read_json(str(arrays.pop("about")))
            kinds = CORRECTIONS[about["how"]]
            own = [
                {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{i}.")}
                for i in range(len(kinds))
            ]
            steps = tuple(STEPS[kind].of(values) for kind, values in zip(kinds, own, strict=True))
            by = None if about["by"] is None else tuple(about["by"])
            features = tuple(arrays["features"].tolist())
            position = bool(about.get("position", False))  # written before this entry existed
            return cls(about["how"], by, about["controls"], features, about["origin"], steps, position)
        except FileNotFoundError:
            raise DataError(f"there is no saved post-processing '{file}'", "postprocess") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"'{file}' is not a saved post-processing ({one_line(error)}); give one that a run has saved",
                "postprocess",
            ) from error


def fit(
    controls: pd.DataFrame,
    how: str,
    *,
    fit_on: np.ndarray | None = None,
    by: Sequence[str] | None = None,
    epsilon: float | None = None,
    kind: str = "negative",
    origin: str = "",
) -> Correction:
    """Fit a correction on the profiles of control wells.

    Args:
        controls: a profile table, with ``Metadata_Batch`` and ``Metadata_Plate``, or the columns of ``by``.
        how: a key of :data:`CORRECTIONS`.
        fit_on: (n,) bool, which of them is meant for what no plate has to itself; None: all. What belongs to a plate
            or a batch is learned from its own controls, whichever these are.
        by: columns that make a group; None: plates for ``standardize``, batches for ``align``.
        epsilon: added to the spread by ``standardize``, 0 if left out; lambda of the whitening, see
            :func:`biomass.evaluation.whitening.fit_whitening`. Never negative.
        kind: what controls these are.
        origin: what the profiles were made by.

    Raises:
        ConfigError: ``how`` is unknown, or epsilon is negative.
        DataError: a plate or a batch has fewer than two controls (it is named), or a feature is missing or infinite.

    >>> wells = pd.DataFrame({"Metadata_Batch": "W1", "Metadata_Plate": [*"aabb"], "f": [1.0, 3.0, 10.0, 30.0]})
    >>> fit(wells, "standardize").apply(wells)["f"].round(2).tolist()
    [-0.71, 0.71, -0.71, 0.71]
    """
    check_how(how)
    if epsilon is not None and not epsilon >= 0:
        raise ConfigError(f"epsilon {epsilon} cannot be added to a spread or a variance; give 0 or more")
    rows = feature_matrix(controls, LARGEST).astype(np.float64)
    chosen = np.ones(len(rows), bool) if fit_on is None else fit_on
    steps: list[Step] = []
    for one in CORRECTIONS[how]:
        groups = group_names(controls, by or STEPS[one].by)
        steps.append(STEPS[one].fit(rows[chosen], epsilon).learn(rows, groups))
        rows = steps[-1].apply(rows, groups)
    return Correction(
        how, None if by is None else tuple(by), kind, tuple(feature_columns(controls)), origin, tuple(steps)
    )


def check_how(how: str) -> None:
    """Raise ConfigError where there is no such entry of :data:`CORRECTIONS`."""
    if how not in CORRECTIONS:
        raise ConfigError(f"post-processing '{how}' is unknown; {did_you_mean(how, CORRECTIONS)}", "postprocess")


def check_controls(
    wells: pd.DataFrame, controls: np.ndarray, how: str, by: Sequence[str] | None, known: Correction | None = None
) -> None:
    """Make sure that every plate and every batch will have the control wells that a correction needs.

    Args:
        wells: a row for each well that there will be, ``Metadata_*`` alone.
        controls: (N,) bool, which of them are controls.
        how: the correction.
        by: columns that make a group, as in :func:`fit`.
        known: what was fitted before, if anything was.

    Raises:
        DataError: one has fewer than two, and was not known before.
    """
    for number, kind in enumerate(CORRECTIONS[how]):
        columns = by or STEPS[kind].by
        if STEPS[kind].by:
            names = group_names(wells, columns)
            count = pd.Series(controls).groupby(names).sum()
            few = count[(count < 2) & ~count.index.isin(known.steps[number].known() if known else [])]
        else:
            few = pd.Series({"the screen": controls.sum()})
            few = few[(few < 2) & (known is None)]
        if len(few):
            others = f" (and {len(few) - 1} others)" if len(few) > 1 else ""
            raise DataError(
                f"'{few.index[0]}'{others} has too few control wells: {few.iloc[0]}, and '{how}' needs 2; mark its "
                "controls, leave it out, or choose another post-processing",
                "postprocess",
            )


def group_names(wells: pd.DataFrame, by: Sequence[str]) -> np.ndarray:
    """A readable name, (N,) str, of the group of every well: the values of some columns.

    Raises:
        ConfigError: there is no such column.
    """
    for column in by:
        if column not in wells:
            known = [c for c in wells if str(c).startswith("Metadata_")]
            raise ConfigError(f"the wells have no column '{column}'; {did_you_mean(column, known)}", "postprocess")
    if not by:
        return np.full(len(wells), "", dtype=object)
    names = wells[by[0]].astype(str)
    for column in by[1:]:
        names = names.str.cat(wells[column].astype(str), "/")
    return names.to_numpy(object)
