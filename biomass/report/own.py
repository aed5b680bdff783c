"""What a run that was not judged says by itself: a training by its log, a stress test and profiles by their tables."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.evaluation.accuracy import meaning
from biomass.judgement.scores import LEVEL, interval
from biomass.report.files import EVALUATION, number, read_table
from biomass.report.markup import percent
from biomass.run_files import read_config, read_log

_SHARES = ("accuracy", "top5", "treatments", "by_class", "mixing", "mixing_expected", "cell_type")
"""Metrics that are shares, by the first part of their name in a split."""
_LOWER = ("loss", "mixing")  # metrics that begin so are better the lower they are


class Told(NamedTuple):
    """What one metric of a run says.

    Attributes:
        split: of the screen.
        metric: its name in the log.
        means: what it measures.
        last: at the last evaluation.
        low: of the interval over plates; NaN where there is none.
        high: likewise.
        best: of all evaluations.
        epoch: of the best.
    """

    split: str
    metric: str
    means: str
    last: float
    low: float
    high: float
    best: float
    epoch: float

    @property
    def better(self) -> str:
        """Which direction is better."""
        return "lower" if self.metric.startswith(_LOWER) else "higher"

    @property
    def share(self) -> bool:
        """Whether it is a share, which is said in per cent."""
        return self.metric.partition("/")[0] in _SHARES


def told_by_training(folder: Path) -> list[Told]:
    """All metrics of all splits at the last evaluation, with the best of all.

    Raises:
        DataError: a table is damaged.
    """
    lines = [line for line in read_log(folder) if isinstance(line, dict)]
    names = list(
        dict.fromkeys(name for line in lines for name in line if "/" in name and not name.startswith("train/"))
    )
    intervals = _over_plates(folder)
    found = []
    for name in names:
        split, _, metric = name.partition("/")
        at = [(number(line[name]), number(line.get("epoch"))) for line in lines if name in line]
        values = np.array([value for value, _ in at])
        if not np.isfinite(values).any():
            continue
        best = int(np.nanargmin(values) if metric.startswith(_LOWER) else np.nanargmax(values))
        low, high = intervals.get(split, (math.nan, math.nan)) if metric == "accuracy" else (math.nan, math.nan)
        found.append(Told(split, metric, meaning(name), values[-1], low, high, values[best], at[best][1]))
    return found


def _over_plates(folder: Path) -> dict[str, tuple[float, float]]:
    """The interval of the accuracy of each split when its plates are drawn again and again."""
    plates = read_plates(folder)
    return {
        str(split): interval(
            (part["accuracy"] * part["images"]).to_numpy(), part["images"].to_numpy(), np.arange(len(part))
        )
        for split, part in plates.groupby("split", sort=False)
    }


def read_plates(folder: Path) -> pd.DataFrame:
    """``plates.csv`` of a training run; no rows where it has none.

    Raises:
        DataError: it is damaged.
    """
    columns = ["plate", "split"], ["images", "accuracy"]
    file = folder / "plates.csv"
    return read_table(file, *columns) if file.exists() else pd.DataFrame(columns=[*columns[0], *columns[1]])


def sentences(folder: Path) -> list[str]:
    """What the run found, in words; nothing where it measured nothing.

    Raises:
        DataError: a file is damaged.
    """
    config = read_config(folder) or {}
    return [*_of_training(folder, config), *_of_stress(folder), *_of_profiles(folder)]


def _of_training(folder: Path, config: Mapping[str, Any]) -> list[str]:
    told = told_by_training(folder)
    plates = read_plates(folder)
    model = config.get("model")
    classes = model.get("d_out") if isinstance(model, Mapping) else None
    chance = ""
    if isinstance(classes, int) and classes > 1:
        chance = f" (guessing evenly among {classes} classes: {percent(1 / classes)})"
    words: list[str] = []
    for one in told:
        if one.metric != "accuracy":
            continue
        text = f"On {one.split}, {percent(one.last)} of the images were answered right{chance}"
        if math.isfinite(one.low):
            text += f", {100 * LEVEL:.0f} % interval over plates {percent(one.low)} to {percent(one.high)}"
        if one.best > one.last:
            text += f"; the best evaluation, after epoch {one.epoch:g}, had {percent(one.best)}"
        text += "."
        some = plates[plates["split"] == one.split]["accuracy"].dropna()
        if len(some) > 1:
            text += f" The worst of its {len(some)} plates has {percent(some.min())}, the best {percent(some.max())}."
        words.append(text)
    mixing = {one.split: one for one in told if one.metric == "mixing"}
    for split, one in mixing.items():
        even = next((two for two in told if (two.split, two.metric) == (split, "mixing_expected")), None)
        words.append(
            f"On {split}, {percent(one.last)} of the negative controls have their nearest neighbour in their own "
            f"experiment{f' ({percent(even.last)} if experiments were mixed perfectly)' if even else ''}."
        )
    return [text for text in [*words, _words(config) if told else ""] if text]


def _words(config: Mapping[str, Any]) -> str:
    """Which statistics a network was trained and applied with."""
    method = config.get("method")
    if not isinstance(method, Mapping):
        return ""
    return f"Trained with the statistics '{method.get('train')}', applied with '{method.get('eval')}'."


def _of_stress(folder: Path) -> list[str]:
    file = folder / "stress.csv"
    if not file.exists():
        return []
    table = read_table(file, ["statistics", "axis", "value"], ["accuracy", "low", "high"])
    whole = (table["axis"] == "wells") & (table["value"] == "all")
    what = "whole plates" if whole.any() else "plates that are not shifted"
    rows = table[whole if whole.any() else (table["axis"] == "label_shift") & (table["value"] == "inf")]
    rows = rows[rows["accuracy"].notna()]
    if rows.empty:
        return []
    ranked = rows.sort_values("accuracy", ascending=False, kind="stable").to_dict("records")
    said = [f"On {what}, {_right(ranked[0])}" + (", the best of those that were tried." if ranked[1:] else ".")]
    return [*said, *(f"There {_right(one)}." for one in ranked[1:])]


def _right(row: Mapping[Any, Any]) -> str:
    """What one word for statistics answers in a stress test."""
    low, high = row["low"], row["high"]
    sure = f" ({percent(low)} to {percent(high)})" if math.isfinite(low) and low < high else ""
    return f"the statistics '{row['statistics']}' answer {percent(row['accuracy'])} of the treated wells right{sure}"


def _of_profiles(folder: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    found = {}
    for level in ("cells", "fields", "wells"):
        file = folder / f"profiles_{level}.parquet"
        if file.exists():
            try:
                schema = parquet.ParquetFile(file)
            except (OSError, pyarrow.ArrowInvalid):
                continue
            names = [name for name in schema.schema_arrow.names if not name.startswith("Metadata_")]
            found[level] = (schema.metadata.num_rows, len(names))
    if not found:
        return []
    counts = ", ".join(f"{rows:,} {level}" for level, (rows, _) in found.items())
    judged = "" if (folder / EVALUATION).exists() else "; they were not judged"
    return [f"Profiles of {counts} with {next(reversed(found.values()))[1]:,} features each{judged}."]
