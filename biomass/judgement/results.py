"""The files that a judgement leaves in the folder of its run, from which the page is made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biomass.atomic import whole_files
from biomass.formulas import to_csv
from biomass.judgement.scores import Metric, Score

UNTRAINED, COUNTED, SHUFFLED = "untrained", "cell count only", "labels shuffled"
"""The null rows of every table: a network that saw no step, cells counted alone, labels that mean nothing."""

NULL_ROWS = (UNTRAINED, COUNTED, SHUFFLED)

TABLE = ("statistics", "correction", "refit_only", "metric", "value", "low", "high", "null", "p", "n", "note")
"""The columns of ``table.csv``."""

FILES = (
    "evaluation.json", "metrics.json", "table.csv", "ladder.csv", "wells.parquet", "position.csv", "drift.csv"
)  # fmt: skip
"""All that a judgement writes; a table that has no rows is not written."""


@dataclass
class Results:
    """What was found.

    Attributes:
        about: what was judged and how: command, versions, fingerprint, table, roles, notes, skipped.
        table: a row a score, with the columns :data:`TABLE`.
        ladder: a row a rung.
        wells: a row a well: what is known of it, and what is drawn of it.
        position: effects of rows, columns and the edge.
        drift: what corrections make of plates that they were not fitted on.
    """

    about: dict[str, Any]
    table: pd.DataFrame
    ladder: pd.DataFrame = field(default_factory=pd.DataFrame)
    wells: pd.DataFrame = field(default_factory=pd.DataFrame)
    position: pd.DataFrame = field(default_factory=pd.DataFrame)
    drift: pd.DataFrame = field(default_factory=pd.DataFrame)

    def write(self, folder: Path, metrics: Mapping[str, Metric]) -> None:
        """Write all files, or none; those of an earlier judgement that has no successor are removed.

        Raises:
            ConfigError: a file cannot be written.
        """
        contents: dict[str, bytes] = {
            "evaluation.json": _json(self.about),
            "metrics.json": _json(nested(self.table, metrics)),
            "table.csv": to_csv(self.table).encode(),
        }
        for name, table in (("ladder", self.ladder), ("position", self.position), ("drift", self.drift)):
            if len(table):
                contents[f"{name}.csv"] = to_csv(table).encode()
        if len(self.wells):
            out = BytesIO()
            self.wells.to_parquet(out, index=False)
            contents["wells.parquet"] = out.getvalue()
        whole_files({folder / name: content for name, content in contents.items()}, "store")
        for name in set(FILES) - contents.keys():
            (folder / name).unlink(missing_ok=True)


def rows_of(statistics: str, correction: str, refit_only: bool, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The rows of the table for the scores of one pair.

    >>> rows_of("plate", "none", False, [Score("nsc", 0.5, 0.4, 0.6, 0.1, 0.01, 92, "")])[0]["value"]
    0.5
    """
    pair = {"statistics": statistics, "correction": correction, "refit_only": refit_only}
    return [pair | one._asdict() for one in scores]


def nested(table: pd.DataFrame, metrics: Mapping[str, Metric]) -> dict[str, dict[str, dict[str, Any]]]:
    """The table for programs: statistics → correction → metric → what it is and what was found."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        one = metrics[row["metric"]]
        known = {
            "title": one.title,
            "family": one.family,
            "better": one.better,
            "over": one.over,
            "null_how": one.null,
            "cites": one.cites,
            "limits": one.limits,
        }
        values = {key: row[key] for key in ("value", "low", "high", "null", "p", "n", "note")}
        pair = found.setdefault(row["statistics"], {}).setdefault(row["correction"], {})
        pair[row["metric"]] = known | {"refit_only": bool(row["refit_only"])} | values
    return found


def _json(values: Any) -> bytes:
    return json.dumps(_plain(values), indent=1, ensure_ascii=False, allow_nan=False).encode()


def _plain(values: Any) -> Any:
    """Plain Python values; null in the place of NaN, which JSON does not know.

    >>> _plain({"a": [np.float32(0.5), float("nan")], "b": (np.int64(3), True)})
    {'a': [0.5, None], 'b': [3, True]}
    """
    if isinstance(values, Mapping):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple | np.ndarray):
        return [_plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    return None if isinstance(values, float) and not np.isfinite(values) else values
