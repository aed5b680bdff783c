"""The runs of a sweep side by side: what they are called, what differs between them, what they measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from biomass.run_files import read_log

FIRST = ("accuracy", "treatments")
"""The metrics of a split that stand in the table for people, where they were measured."""


_NAME = 44
"""Characters of a name that is cut."""


class Job(NamedTuple):
    """One job of a sweep.

    Attributes:
        number: from 0.
        name: of its run; empty where it failed before it had one.
        short: the same without what differs.
        differs: value of every key that the sweep varies, as text.
        outcome: the metric that the sweep may optimize, as text, or ``error: …``.
    """

    number: int
    name: str
    short: str
    differs: dict[str, str]
    outcome: str


def sweep_table(jobs: Sequence[Job], runs: Path = Path("runs")) -> pd.DataFrame:
    """A row a job: ``job``, ``run``, a column a key that differs, and all metrics of the run's last evaluation.

    Where no run logged a metric, what the jobs returned stands in the column ``value``. A job that failed has its
    message in the column ``error``.

    Args:
        jobs: of the sweep.
        runs: where the runs have their folders.

    >>> jobs = [Job(0, "a-0_seed-3", "a-0", {"seed": "3"}, "0.5"), Job(1, "", "", {"seed": "x"}, "error: seed is x")]
    >>> sweep_table(jobs, getfixture("tmp_path")).to_dict("records")[1]
    {'job': 1, 'run': '', 'seed': 'x', 'value': '', 'error': 'seed is x'}
    """
    rows: list[dict[str, Any]] = []
    measured = [_last_metrics(runs / job.name) if job.name else {} for job in jobs]
    for job, metrics in zip(jobs, measured, strict=True):
        failed = job.outcome.startswith("error: ")
        row: dict[str, Any] = {"job": job.number, "run": job.name, **job.differs, **({} if failed else metrics)}
        if not any(measured):
            row["value"] = "" if failed else job.outcome
        if any(one.outcome.startswith("error: ") for one in jobs):
            row["error"] = job.outcome.removeprefix("error: ") if failed else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _last_metrics(folder: Path) -> dict[str, float]:
    """The metrics of the last evaluation that a run logged, those of training left out."""
    for line in reversed(read_log(folder)):
        found = {name: value for name, value in line.items() if "/" in name and not name.startswith("train/")}
        if found:
            return found
    return {}


def table_text(table: pd.DataFrame, jobs: Sequence[Job], width: int = 100) -> str:
    """The table for a terminal: accuracies where there are any, and as many columns as ``width`` holds.

    Args:
        table: as :func:`sweep_table` gives it,
        jobs: of the same.
        width: characters of a line. Runs go by their short names where that makes the table fit, or by parts of them.

    >>> jobs = [Job(0, "a-0_seed-3", "a-0", {"seed": "3"}, "0.5")]
    >>> table = pd.DataFrame([{"job": 0, "run": "a-0_seed-3", "seed": "3", "val/accuracy": 0.51234, "val/loss": 2.0}])
    >>> print(table_text(table, jobs))
    run        seed val/accuracy
    a-0_seed-3    3       0.5123
    """
    metrics = [name for name in table if "/" in str(name)]
    shown = [name for last in FIRST for name in metrics if str(name).rpartition("/")[2] == last] or metrics
    known = ["run", *dict.fromkeys(key for job in jobs for key in job.differs)]
    fixed = [*known, *(name for name in ("value",) if name in table)]
    lines = table.drop(columns="error", errors="ignore")
    named = [(job.name or f"job {job.number}", job.short or f"job {job.number}") for job in jobs]
    cut = [short if len(short) <= _NAME else f"{short[: _NAME - 12]}…{short[-11:]}" for _, short in named]
    names = (*zip(*named, strict=True), cut)
    text = ""
    for count in range(len(shown), 0 if shown else -1, -1):
        for run in names:
            part = lines.assign(run=list(run))[[*fixed, *shown[:count]]]
            text = _aligned(part)
            if len(text.partition("\n")[0]) <= width:
                return text
    return text


def _aligned(table: pd.DataFrame) -> str:
    """Columns of equal width, the first to the left, the others to the right; a dash for what is not there."""
    cells = [[str(name), *(_cell(value) for value in table[name])] for name in table]
    widths = [max(map(len, column)) for column in cells]
    first, *rest = ([cell.ljust(widths[0]) for cell in cells[0]], *zip(cells[1:], widths[1:], strict=True))
    columns = [first, *([cell.rjust(width) for cell in column] for column, width in rest)]
    return "\n".join(" ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return "–" if value in ("", "None") else str(value)
