"""Runs side by side: the numbers that each left in its folder, one table, mean and spread over seeds and screens.

Nothing is computed again. A run's folder holds ``config.yaml``, ``metrics.jsonl`` (the last evaluation counts, so that
no split chooses what it is judged by) and ``plates.csv``; that of a stress test ``stress.csv``, one network under other
statistics. Numbers are kept in a long table, a row a number, with the run and the file that it comes from.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import DataError, one_line
from biomass.formulas import read_csv
from biomass.run_files import read_log

ROW = ["floor", "regime", "statistics", "split"]
"""What makes a row of the table: how a network was trained, where its statistics come from, what it is judged on."""

REPEAT = ["seed", "screen"]
"""What means and spreads go over."""

ACCURACY, WORST, SECONDS = "accuracy", "worst plate", "seconds"
UNTRAINED, SHUFFLED = "untrained", "labels shuffled"
"""The floors: no step was taken; the rows that a network was trained on had each other's labels."""


class Column(NamedTuple):
    """A column of the table for people.

    Attributes:
        metric: whose mean and spread stand in it; where it ends in ``/``, a column for each metric that begins so.
        heading: its title, before what follows the ``/``.
        scale: what values are multiplied by.
        digits: behind the point.
    """

    metric: str
    heading: str
    scale: float = 100
    digits: int = 1


COLUMNS = (
    Column(ACCURACY, "accuracy (%)"),
    Column("treatments", "treatments"),
    Column("cell_type/", ""),
    Column(WORST, "worst plate"),
    Column("mixing", "same experiment"),
    Column("mixing_expected", "at random"),
    Column(SECONDS, "wall time (min)", 1 / 60, 2),
)
"""The columns of numbers in the table for people; one that no run measured is not in it."""

LEGEND = (
    "Numbers are means ± standard deviations over runs, of the last evaluation; accuracy includes controls, "
    "*treatments* does not. *same experiment*: negative controls whose nearest other one, in the outputs of the "
    "network, is of their own experiment; less is better, and *at random* is perfect. *treated wells*: of a stress "
    "test, in which plates count alike."
)
"""What the table for people does not say by itself."""


def last_evaluation(folder: Path, num_epochs: int, max_steps: int | None) -> dict[str, Any]:
    """The last line of a run's log that holds an accuracy.

    Args:
        folder: of the run.
        num_epochs: how many it was to train for,
        max_steps: and how many steps at most, None for no such bound.

    Raises:
        DataError: there is none, or the run was stopped before its end.
    """
    measured = [line for line in read_log(folder) if any(name.endswith(f"/{ACCURACY}") for name in _evaluated(line))]
    if not measured:
        raise DataError(f"'{folder}' measured no accuracy on another split than that of training; name other runs")
    last = measured[-1]
    if last.get("epoch", 0) < num_epochs and (max_steps is None or last["step"] < max_steps):
        raise DataError(
            f"'{folder}' was stopped: it was last evaluated in epoch {last.get('epoch', 0)} of {num_epochs}; "
            "go on with it"
        )
    return last


def read_numbers(folder: Path, last: Mapping[str, Any], statistics: str) -> pd.DataFrame:
    """All numbers that a run has, a row each: ``statistics, split, metric, value, file``.

    Args:
        folder: of the run.
        last: its last evaluation, as :func:`last_evaluation` gives it.
        statistics: where the network took its statistics from in it.

    Raises:
        DataError: a file is damaged, or does not belong to this evaluation.
    """
    rows: list[tuple[str, str, str, Any, str]] = []
    for name, value in _evaluated(last).items():
        split, _, metric = name.partition("/")
        rows.append((statistics, split, metric, value, "metrics.jsonl"))
    if SECONDS in last:
        rows.append((statistics, "", SECONDS, last[SECONDS], "metrics.jsonl"))
    plates = _read_csv(folder / "plates.csv", ["plate", "split", "epoch", "accuracy"], ["epoch", "accuracy"])
    if (plates["epoch"] != last["epoch"]).any():
        raise DataError(
            f"'{folder / 'plates.csv'}' is not of the run's last evaluation; go on with the run, or leave it out"
        )
    for of_split, worst in plates.groupby("split", sort=False)["accuracy"].min().items():
        rows.append((statistics, str(of_split), WORST, worst, "plates.csv"))
    return pd.DataFrame(rows, columns=["statistics", "split", "metric", "value", "file"])


def _evaluated(line: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a line of the log that are of an evaluation."""
    return {name: value for name, value in line.items() if "/" in name and not name.startswith("train/")}


def read_stress(folder: Path, split: str) -> pd.DataFrame:
    """The accuracy of one network under every word for statistics, as :func:`read_numbers` gives it.

    Args:
        folder: of a stress test; what is read is its table's end where nothing is stressed, whole plates as they are.
        split: what its plates are called.

    Raises:
        DataError: the table is damaged, or has no such rows.
    """
    file, whole = folder / "stress.csv", pd.DataFrame()
    table = _read_csv(file, ["statistics", "axis", "value", "accuracy"], ["accuracy"])
    for axis, value in (("wells", "all"), ("label_shift", "inf")):
        if whole.empty:
            whole = table[(table["axis"] == axis) & (table["value"] == value)]
    if whole.empty:
        raise DataError(f"'{file}' has no row of whole plates (wells, all) nor of none shifted (label_shift, inf)")
    numbers = whole[["statistics"]].assign(split=split, metric=ACCURACY, value=whole["accuracy"], file=file.name)
    return numbers.reset_index(drop=True)


def _read_csv(file: Path, columns: Sequence[str], numeric: Collection[str]) -> pd.DataFrame:
    """A table that a run wrote, names as text.

    Raises:
        DataError: it is not there or damaged.
    """
    remedy = "leave the run out, or run it again"
    try:
        table = read_csv(file)
        lacking = next((name for name in columns if name not in table), None)
        if lacking is not None:
            raise DataError(f"'{file}' is damaged: it has no column '{lacking}'; {remedy}")
        table = table.astype(dict.fromkeys(numeric, float))
    except (OSError, ValueError) as error:  # of pandas, too
        raise DataError(f"'{file}' is missing or damaged ({one_line(error)}); {remedy}") from error
    bad = next((name for name in numeric if not np.isfinite(table[name]).all()), None)
    if bad is not None or table.empty:
        what = "it has no rows" if bad is None else f"a value of '{bad}' is no number"
        raise DataError(f"'{file}' is damaged: {what}; {remedy}")
    return table


def differences(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, tuple[Any, Any]]]:
    """In what each of several runs differs from most of them; a setting that one lacks counts as None.

    Returns:
        For each run: key → (its own value, the commonest; of two as common, the first).

    >>> differences([{"rate": 1}, {"rate": 2, "width": None}, {"rate": 1}])
    [{}, {'rate': (2, 1)}, {}]
    """
    keys = dict.fromkeys(key for one in settings for key in one)
    found: list[dict[str, tuple[Any, Any]]] = [{} for _ in settings]
    for key in keys:
        values = [one.get(key) for one in settings]
        texts = [repr(value) for value in values]  # a list is no key of a dictionary
        usual = Counter(texts).most_common(1)[0][0]
        for one, value, text in zip(found, values, texts, strict=True):
            if text != usual:
                one[key] = (value, values[texts.index(usual)])
    return found


def without_repeats(numbers: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Each number once: of runs that say the same of the same seed and screen, the last one in the table counts.

    A run's own evaluation comes before what a stress test says of it.

    Returns:
        The table, and a line for each run whose numbers are not in it although they are others; wall time is nothing
        that runs agree in.
    """
    key = [*ROW, *REPEAT, "metric"]
    ordered = numbers.iloc[np.argsort(numbers["file"] != "stress.csv", kind="stable")]
    repeated = ordered.duplicated(key, keep="last")
    kept = ordered[~repeated].sort_index()
    both = ordered[repeated & (ordered["metric"] != SECONDS)].merge(kept, on=key, suffixes=("", " kept"))
    other = both[both["value"] != both["value kept"]].drop_duplicates("run")
    return kept, [
        f"left out: what '{row['run']}' says of {row['regime']}, statistics {row['statistics']}, seed {row['seed']}, "
        f"screen {row['screen']}; '{row['run kept']}' says otherwise"
        for row in other.to_dict("records")
    ]


def summarize(numbers: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean, sample standard deviation (NaN of one run) and number of runs of every metric.

    Args:
        numbers: the columns of :data:`ROW` and :data:`REPEAT`, ``metric`` and ``value``.
        by: of :data:`REPEAT`: what has rows of its own.

    Returns:
        :data:`ROW`, ``by``, ``metric``, ``mean``, ``spread``, ``runs``; in the order of the numbers.

    >>> runs = pd.DataFrame({"seed": [0, 1], "screen": "0", "value": [0.5, 0.7], "metric": "accuracy"})
    >>> runs = runs.assign(floor="", regime="ben", statistics="plate", split="test")
    >>> summarize(runs)[["regime", "mean", "spread", "runs"]].round(3).to_dict("records")
    [{'regime': 'ben', 'mean': 0.6, 'spread': 0.141, 'runs': 2}]
    """
    groups = numbers.groupby([*ROW, *by, "metric"], sort=False)["value"]
    return groups.agg(mean="mean", spread="std", runs="count").reset_index()


def uneven(numbers: pd.DataFrame) -> list[str]:
    """A line for every row of the table whose mean is not over all seeds and screens that its split has."""
    pairs = numbers[numbers["split"] != ""].assign(pair=numbers["seed"] + "\0" + numbers["screen"])
    most = pairs.groupby("split")["pair"].nunique()
    rows = pairs.groupby(ROW, sort=False)["pair"].nunique().reset_index()
    return [
        f"{row['regime']}, statistics {row['statistics']}, split {row['split']}: {row['pair']} of the "
        f"{most[row['split']]} pairs of seed and screen"
        for row in rows.to_dict("records")
        if row["pair"] < most[row["split"]]
    ]


def to_markdown(table: pd.DataFrame, by: Sequence[str] = ()) -> str:
    """The table of :func:`summarize` for people: ``mean ± spread``, a dash for what was not measured.

    Args:
        table: as :func:`summarize` gives it,
        by: with the same words.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    columns = [
        (metric, column._replace(heading=column.heading or metric.partition("/")[2]))
        for column in COLUMNS
        for metric in (
            sorted(m for m in metrics if m.startswith(column.metric)) if column.metric[-1] == "/" else [column.metric]
        )
        if metric in metrics
    ]
    names = ["split", "training", "inference", *by, *(column.heading for _, column in columns), "runs"]
    lines = [f"| {' | '.join(names)} |", "|---" * (3 + len(by)) + "|---:" * (len(columns) + 1) + "|"]
    values = table.set_index([*ROW, *by, "metric"])[["mean", "spread", "runs"]].to_dict("index")
    rows = table.loc[table["metric"] == ACCURACY, [*ROW, *by]].drop_duplicates()
    order = list(dict.fromkeys(rows["split"]))
    for row in sorted(rows.itertuples(index=False, name=None), key=lambda row: order.index(row[3])):
        floor, regime, statistics, split, *rest = row
        runs = values[*row, ACCURACY]["runs"]
        cells = []
        for metric, column in columns:
            of_split = (floor, regime, statistics, "" if metric == SECONDS else split, *rest, metric)
            cells.append(_cell(values.get(of_split), column, runs))
        lines.append(f"| {' | '.join([split, regime, statistics, *rest, *cells, str(runs)])} |")
    return "\n".join(lines)


def _cell(value: Mapping[Any, Any] | None, column: Column, runs: int) -> str:
    if value is None:
        return "–"
    mean, spread = (column.scale * value[name] for name in ("mean", "spread"))
    shown = f"{mean:.{column.digits}f} ± {'–' if np.isnan(spread) else f'{spread:.{column.digits}f}'}"
    return shown if value["runs"] == runs else f"{shown} ({value['runs']})"
