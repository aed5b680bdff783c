"""B-scores of profile tables: what rows and columns of a plate do is taken out of the profiles of its wells."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.evaluation.polish import LEAST, PlateEffects
from biomass.evaluation.postprocess import BATCH, PLATE, group_names
from biomass.evaluation.tables import feature_matrix, like
from biomass.identifiers import well_places

WELL = "Metadata_Well"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Positions:
    """The row and column effects of plates, see :mod:`biomass.evaluation.polish`.

    Attributes:
        plates: plate → its effects.
    """

    plates: Mapping[str, PlateEffects]

    @classmethod
    def of(cls, tables: Iterable[pd.DataFrame]) -> "Positions":
        """Find them in profile tables of wells, each of which holds whole plates.

        Raises:
            DataError: a well has no place on a plate, or a plate is in two tables.

        >>> wells = pd.DataFrame({"Metadata_Batch": "W1", "Metadata_Plate": "P1", "f": [0.0, 1, 2, 3, 10, 11, 12, 13]})
        >>> wells["Metadata_Well"] = [f"{row}0{column}" for row in "AB" for column in range(1, 5)]
        >>> Positions.of([wells]).apply(wells)["f"].astype(float).round(2).tolist()
        [-1.01, -0.34, 0.34, 1.01, -1.01, -0.34, 0.34, 1.01]
        """
        found: dict[str, PlateEffects] = {}
        for table in tables:
            values, names, places = feature_matrix(table), group_names(table, (BATCH, PLATE)), _places(table)
            for name, rows in pd.Series(np.arange(len(names))).groupby(names):
                if name in found:
                    raise DataError(f"the wells of plate '{name}' are in two tables, and its rows are not whole")
                found[str(name)] = PlateEffects.of(values[rows.to_numpy()], *places[:, rows.to_numpy()])
        few = [name for name, effects in found.items() if not effects.swept]
        if few:
            log.warning(
                "%d of %d plates, such as '%s', have no row or column of %d wells: only their median is removed",
                len(few),
                len(found),
                few[0],
                LEAST,
            )
        return cls(found)

    def apply(self, wells: pd.DataFrame) -> pd.DataFrame:
        """The same wells of these plates with B-scores as features."""
        values, names, places = feature_matrix(wells), group_names(wells, (BATCH, PLATE)), _places(wells)
        done = np.empty(values.shape, np.float32)
        for name, rows in pd.Series(np.arange(len(names))).groupby(names):
            some = rows.to_numpy()
            done[some] = self.plates[str(name)].scores(values[some], *places[:, some])
        table = like(wells, done)
        assert isinstance(table, pd.DataFrame)
        return table


def _places(wells: pd.DataFrame) -> np.ndarray:
    """Row and column of every well, (2, N), from 0."""
    return np.stack(well_places(wells[WELL])) - 1
