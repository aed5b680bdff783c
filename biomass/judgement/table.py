"""Profiles of wells, whichever tool made them, with their columns understood."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

PLATE, EXPERIMENT, SOURCE, WELL, ROW, COLUMN = "plate", "experiment", "source", "well", "row", "column"
TREATMENT, COMPOUND, MECHANISM, CONTROL, COUNT = "treatment", "compound", "mechanism", "control", "cells"

ROLES: Mapping[str, str] = {
    PLATE: "one multi-well plate; experiment/plate where plates of two experiments share a name",
    EXPERIMENT: "plates made together: Batch, week",
    SOURCE: "the laboratory or the site that made them",
    WELL: "place on the plate, such as B02",
    ROW: "row of the place, 0 …",
    COLUMN: "column of the place, 0 …",
    TREATMENT: "what replicates have in common: a compound at one concentration, a gene's reagent",
    COMPOUND: "what is given, at any concentration",
    MECHANISM: "what is known of it: mechanism of action, target",
    CONTROL: "what a well is a control of: negative, positive or nothing",
    COUNT: "cells in the well",
}
"""What a column of a table of wells may be. Nothing but the features must be there."""


@dataclass(frozen=True)
class Profiles:
    """Profiles of N wells.

    Attributes:
        wells: (N rows) of the columns of :data:`ROLES` that are known, in normal form (:mod:`biomass.identifiers`);
            text columns are str with "" where a value is missing; row and column int64, -1 where a well has no place;
            cells float64, NaN where it was not counted.
        features: (N, D) float32, finite.
        names: (D,) names of the features.
        taken: role → the column (or columns, joined by " + ") of the given table that it is.
        notes: what was taken for what, what was left out and why, a sentence each.
    """

    wells: pd.DataFrame
    features: np.ndarray
    names: tuple[str, ...]
    taken: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.wells)

    def has(self, *roles: str) -> bool:
        """Whether all of these roles are known."""
        return all(role in self.wells for role in roles)

    def codes(self, role: str) -> np.ndarray:
        """The number (N,) int64 of each well's value of a role, sorted; -1 where it is missing."""
        number, known = pd.factorize(self.wells[role].to_numpy(object))
        order = np.argsort(known.astype(str))
        place = np.empty(len(known), np.int64)
        place[order] = np.cumsum(known[order] != "") - 1
        place[known == ""] = -1
        return place[number]

    @property
    def negative(self) -> np.ndarray:
        """(N,) bool: negative controls; all false where controls are not known."""
        return self._control("negative")

    @property
    def treated(self) -> np.ndarray:
        """(N,) bool: no control of any kind."""
        return ~(self._control("negative") | self._control("positive"))

    def _control(self, kind: str) -> np.ndarray:
        if CONTROL not in self.wells:
            return np.zeros(len(self), bool)
        return (self.wells[CONTROL] == kind).to_numpy()

    def take(self, rows: np.ndarray) -> "Profiles":
        """Some of the wells: positions or a mask."""
        some = self.wells.iloc[np.flatnonzero(rows) if rows.dtype == bool else rows].reset_index(drop=True)
        return Profiles(some, self.features[rows], self.names, self.taken, self.notes)

    def with_features(self, features: np.ndarray) -> "Profiles":
        """The same wells with other features (N, E)."""
        names = self.names if features.shape[1] == len(self.names) else tuple(f"f{i}" for i in range(features.shape[1]))
        return Profiles(self.wells, np.asarray(features, np.float32), names, self.taken, self.notes)
