"""The files of a run's folder, read for the page; one that is damaged is one line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from biomass.errors import DataError, one_line
from biomass.formulas import read_csv

EVALUATION, METRICS, TABLE, LADDER, WELLS = (
    "evaluation.json",
    "metrics.json",
    "table.csv",
    "ladder.csv",
    "wells.parquet",
)
"""What ``biomass evaluate`` leaves."""

LARGEST = 1e15
"""Numbers beyond it are none that a run measures, nor can they be drawn."""

PAGE = "report.html"
"""The page, in the folder of a run."""


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one object; empty where it is not there.

    Raises:
        DataError: it is damaged.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{file.name}' is damaged ({one_line(error)}): run the command that made it again") from error
    if not isinstance(content, Mapping):
        raise DataError(f"'{file.name}' is damaged (it holds no object): run the command that made it again")
    return dict(content)


def read_table(file: Path, columns: Sequence[str], numbers: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV with these columns: text as it stands, numbers as float, NaN where there is none that can be drawn.

    Raises:
        DataError: it is damaged, or a column is missing.
    """
    try:
        table = read_csv(file)
        for name in numbers:
            if name in table:
                values = table[name].replace("", "nan").astype(float)
                table[name] = values.where(values.abs() <= LARGEST)
    except (OSError, ValueError) as error:  # of pandas, too
        raise DataError(f"'{file.name}' is damaged ({one_line(error)}): run the command that made it again") from error
    lacking = next((name for name in [*columns, *numbers] if name not in table), None)
    if lacking is not None:
        raise DataError(f"'{file.name}' is damaged (no column '{lacking}'): run the command that made it again")
    return table


def number(value: Any) -> float:
    """A number of a JSON file; NaN where it is none that can be drawn.

    >>> number(None), number("0.5"), number(1), number(10**400)
    (nan, nan, 1.0, nan)
    """
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else float("nan")
