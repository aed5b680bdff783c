"""The ladder: retrieval at graded restrictions, so that one sees where the signal came from."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.judgement.ladder import RESTRICTIONS, TASKS
from biomass.judgement.results import NULL_ROWS
from biomass.report.files import LADDER, read_table
from biomass.report.markup import MISSING, OKABE, figure, render, shorten, span
from biomass.report.section import Section

LEAD = (
    "From left to right fewer neighbours are allowed as the answer: any, those in another well position, on another "
    "plate, of another experiment; restrictions add up. What falls away when one sets in came from that place, not "
    "from biology. Higher is better; bars are 95 % intervals, dashes are chance, which changes with who may answer."
)

_HIGH, _STEP = 230, 68
_LEFT, _RIGHT, _TOP, _BELOW = 38, 4, 12, 46
_FIRST = ("treatment_map", "mechanism_map", "treatment_top1")
"""Tasks to look at first."""
_GREY = "#6b7280"


def ladder(folder: Path) -> Section | str:
    """The section."""
    file = folder / LADDER
    if not file.exists():
        return f"no {LADDER}: no retrieval was judged at graded restrictions"
    numbers = ["value", "low", "high", "null"]
    table = read_table(file, ["statistics", "correction", "task", "restriction", "note"], numbers)
    titles = {key: task.title for key, task in TASKS.items()}
    titles |= {key: restriction.title for key, restriction in RESTRICTIONS.items()}
    for column in ("task", "restriction"):
        table[column] = table[column].replace(titles)
    known = table[table["value"].notna()]
    if known.empty:
        return "; ".join(filter(None, dict.fromkeys(table["note"]))) or f"{LADDER} holds no value"
    corrections = list(dict.fromkeys(known["correction"]))
    colors = {one: OKABE[i] if i < len(OKABE) else MISSING for i, one in enumerate(corrections)}
    found = list(dict.fromkeys(known["statistics"]))
    words = [word for word in found if word not in NULL_ROWS] or found
    floors = [word for word in found if word not in words]
    first = [titles[key] for key in _FIRST if (known["task"] == titles[key]).any()]
    rungs = known.groupby("task")["restriction"].nunique().max()
    tasks = list(dict.fromkeys([*first, *known["task"]]))
    panels = []
    for task in tasks:
        of_task = known[known["task"] == task]
        floor = of_task[of_task["statistics"].isin(floors)].drop_duplicates(["statistics", "restriction"])
        panels += [
            (
                task,
                word if len(words) > 1 else "",
                _panel(some, floor, colors, _ends(of_task), rungs, f"{task}, {word}"),
            )
            for word in words
            if len(some := of_task[of_task["statistics"] == word])
        ]
    shown = tasks[: 3 if len(words) == 1 else 2]
    fitting = 3 if rungs > 4 else 4
    across = min(fitting, 2 * len(words) if len(words) == 2 else max(3, len(words)) if len(words) > 1 else len(shown))
    rows = [row | {"span": span(row["low"], row["high"])} for row in table.to_dict("records")]
    legend = [(one, colors[one], _dash(i), colors[one]) for i, one in enumerate(corrections)]
    legend += [(word, _GREY, _dash(i + 1), "#fff") for i, word in enumerate(floors)]
    html = render(
        "ladder",
        panels=[one for one in panels if one[0] in shown],
        more=[one for one in panels if one[0] not in shown],
        across=max(2, across),
        legend=legend,
        rows=rows,
        silent=_untold(table),
    )
    return Section("ladder", "The ladder", html, lead=LEAD)


def _ends(table: pd.DataFrame) -> tuple[float, float]:
    """Of the axis of a task."""
    low, high = table[["value", "low"]].to_numpy(np.float64), table[["value", "high", "null"]].to_numpy(np.float64)
    return min(0.0, float(np.nanmin(low))), _ceiling(float(np.nanmax(high)))


def _untold(table: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """The restrictions under which nothing is known of a task: restriction, why, the tasks."""
    known = table["value"].notna().groupby([table["task"], table["restriction"]]).transform("any")
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in table[~known].to_dict("records"):
        found.setdefault((row["restriction"], row["note"]), {})[row["task"]] = None
    every = table["task"].nunique()
    return [
        (restriction, note, ["all tasks"] if len(tasks) == every > 1 else list(tasks))
        for (restriction, note), tasks in found.items()
    ]


def _ceiling(value: float) -> float:
    """A round number at or above a value, for the end of an axis.

    >>> _ceiling(0.43), _ceiling(0.97)
    (0.5, 1.0)
    """
    if value <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(value))
    return next(step * k for k in (1, 2, 2.5, 5, 10) if step * k >= value * (1 - 1e-9))


def _dash(number: int) -> str:
    """How a line is dashed, so that lines differ in more than colour."""
    return ("", "7 3", "2 2", "9 3 2 3")[number % 4]


def _panel(
    table: pd.DataFrame, floor: pd.DataFrame, colors: dict[str, str], ends: tuple[float, float], most: int, label: str
) -> Markup:
    """The lines of all corrections under one word for statistics, and null rows in grey."""
    rungs = list(dict.fromkeys(table["restriction"]))
    wide = _LEFT + _RIGHT + _STEP * max(3, most)
    step = (wide - _LEFT - _RIGHT) / len(rungs)
    bottom, top = ends

    def across(rung: str, number: int = 0, count: int = 1) -> float:
        return _LEFT + step * (rungs.index(rung) + 0.5) + (number - (count - 1) / 2) * min(7.0, 0.6 * step / count)

    def up(value: float) -> float:
        return _TOP + (top - value) / (top - bottom) * (_HIGH - _TOP - _BELOW)

    def line(some: pd.DataFrame, called: str, color: str, dash: str, number: int = 0, count: int = 1) -> dict[str, Any]:
        points = []
        for row in some[some["restriction"].isin(rungs)].to_dict("records"):
            bar = (up(row["low"]), up(row["high"])) if math.isfinite(row["low"] + row["high"]) else None
            hint = f"{called}, {row['restriction']}: {figure(row['value'])} {span(row['low'], row['high'])}"
            x, y = across(row["restriction"], number, count), up(row["value"])
            points.append({"x": x, "y": y, "bar": bar, "hint": f"{hint}, chance {figure(row['null'])}"})
        return {"color": color, "dash": dash, "points": points, "fill": color}

    floors = list(dict.fromkeys(floor["statistics"]))
    lines = []
    for i, word in enumerate(floors):
        of = floor[floor["statistics"] == word]
        drawn = line(of, f"{word} ({of['correction'].iloc[0]})", _GREY, _dash(i + 1))
        lines.append(drawn | {"fill": "#fff", "points": [one | {"bar": None} for one in drawn["points"]]})
    corrections = list(dict.fromkeys(table["correction"]))
    for i, correction in enumerate(corrections):
        of = table[table["correction"] == correction]
        dash = _dash(list(colors).index(correction))
        lines.append(line(of, correction, colors[correction], dash, i, len(corrections)))
    chance = [
        (across(str(rung)) - step / 2 + 2, across(str(rung)) + step / 2 - 2, up(float(null)))
        for rung, null in table.groupby("restriction", sort=False)["null"].mean().dropna().items()
    ]
    parts = 4 if f"{top:e}"[:3] == "2.0" else 5
    ticks = [(up(one), figure(one)) for one in (bottom + (top - bottom) * k / parts for k in range(parts + 1))]
    places: list[dict[str, Any]] = [
        {"x": across(rung), "lines": _wrap(_tick(rung), max(6, int(step / 6))), "whole": rung} for rung in rungs
    ]
    sizes = {"wide": wide, "high": _HIGH, "left": _LEFT, "right": wide - _RIGHT, "floor": _HIGH - _BELOW}
    return render("ladder_panel", lines=lines, chance=chance, ticks=ticks, places=places, label=label, **sizes)


def _tick(restriction: str) -> str:
    """A restriction in as few letters as the axis has room for.

    >>> _tick("not the same plate"), _tick("any match")
    ('other plate', 'any match')
    """
    short = shorten(restriction, 40)
    return f"other {short.removeprefix('not the same ')}" if short.startswith("not the same ") else short


def _wrap(text: str, width: int) -> list[str]:
    """A label in up to three lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [shorten(line, width + 3) for line in lines[:3]]
