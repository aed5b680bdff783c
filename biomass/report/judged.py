"""What a judgement found, read again from the files that it left."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.judgement.results import NULL_ROWS
from biomass.report.files import METRICS, number, read_json

_FIRST = (
    "plate_predicted",
    "experiment_predicted",
    "map_other_plate",
    "map_other_experiment",
    "nsc",
    "nscb",
)
"""Metrics to look at first, if they were told."""
_NUMBERS = ("value", "low", "high", "null", "p", "n")
_TEXTS = ("title", "family", "better", "over", "null_how", "cites", "limits")


class About(NamedTuple):
    """What a metric is, see :class:`biomass.judgement.scores.Metric`."""

    title: str
    family: str
    better: str
    over: str
    null_how: str
    cites: str
    limits: str

    @property
    def arrow(self) -> str:
        """Which direction is better, as a sign."""
        return {"lower": "↓", "higher": "↑"}.get(self.better, "")


@dataclass(frozen=True)
class Judged:
    """The factorial table.

    Attributes:
        metrics: key → what it is.
        scores: a row a score: statistics, correction, refit_only, metric, value, low, high, null, p, n, note; null
            rows at the end.
    """

    metrics: Mapping[str, About]
    scores: pd.DataFrame

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(statistics, correction), as they come."""
        return list(self.scores[["statistics", "correction"]].drop_duplicates().itertuples(index=False, name=None))

    @property
    def refit_only(self) -> set[str]:
        """The corrections that cannot transform plates that they were not fitted on."""
        return set(self.scores.loc[self.scores["refit_only"], "correction"])

    def of(self, metric: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The scores of a metric by pair, each with ``goodness``: 0 the worst of the table, 1 the best."""
        some = self.scores[self.scores["metric"] == metric]
        good = goodness(some["value"].to_numpy(), self.metrics[metric].better)
        rows = some.assign(goodness=good).to_dict("records")
        return {(row["statistics"], row["correction"]): {str(k): v for k, v in row.items()} for row in rows}

    def main(self, most: int = 2) -> list[str]:
        """The metrics to look at first: of either family up to ``most`` that were told of many pairs."""
        told = self.scores[np.isfinite(self.scores["value"])].groupby("metric").size()
        full = told.max() if len(told) else 0
        chosen: list[str] = []
        for family in dict.fromkeys(about.family for about in self.metrics.values()):
            keys = [key for key, about in self.metrics.items() if about.family == family and told.get(key, 0)]
            first = {key: place for place, key in enumerate(_FIRST)}
            chosen += sorted(keys, key=lambda key: (told[key] < full / 2, first.get(key, len(first))))[:most]
        return chosen


def goodness(values: np.ndarray, better: str) -> np.ndarray:
    """Where values (n,) lie between the worst (0) and the best (1) of them; 0.5 where all are the same.

    >>> goodness(np.array([0.9, 0.1, np.nan, 0.5]), "lower")
    array([0. , 1. , nan, 0.5])
    """
    known = values[np.isfinite(values)]
    if not len(known) or np.ptp(known) == 0:
        return np.where(np.isfinite(values), 0.5, np.nan)
    place = (values - known.min()) / np.ptp(known)
    return 1 - place if better == "lower" else place


def read_judged(folder: Path) -> Judged | str:
    """The factorial table of a run; why there is none, where there is none.

    Raises:
        DataError: it is damaged.
    """
    content = read_json(folder / METRICS)
    if not content:
        return f"no {METRICS}: nothing was judged in this run"
    metrics: dict[str, About] = {}
    rows: list[dict[str, Any]] = []
    try:
        for statistics, corrections in content.items():
            for correction, found in corrections.items():
                for key, one in found.items():
                    metrics.setdefault(key, About(*(str(one.get(text) or "") for text in _TEXTS)))
                    pair = {"statistics": statistics, "correction": correction, "metric": key}
                    pair |= {"refit_only": bool(one.get("refit_only")), "note": str(one.get("note") or "")}
                    rows.append(pair | {name: number(one.get(name)) for name in _NUMBERS})
    except AttributeError as error:  # something else stands where an object is expected
        raise DataError(f"'{METRICS}' is damaged ({error}): run the command that made it again") from error
    if not rows:
        return f"{METRICS} holds no metric"
    scores = pd.DataFrame(rows)
    last = scores["statistics"].map({name: place for place, name in enumerate(NULL_ROWS, 1)}).fillna(0)
    scores = scores.iloc[np.argsort(last, kind="stable")].reset_index(drop=True)
    return Judged(metrics, scores)
