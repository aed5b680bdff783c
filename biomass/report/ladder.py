"""The ladder: retrieval at graded restrictions, so that one sees where the signal came from."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from biomass.judgement.ladder import RESTRICTIONS, TASKS
from biomass.judgement.results import NULL_ROWS
from biomass.report.files import LADDER, read_table
from biomass.report.markup import MISSING, OKABE, figure, render, shorten, span
from biomass.report.section import Section

LEAD = (
    "From left to right fewer neighbours are allowed as the answer. What falls away when a restriction sets in came "
    "from that place, not from biology. Bars are 95 % intervals, the dashed line is chance."
)

_WIDE, _HIGH = 360, 240
_LEFT, _RIGHT, _TOP, _BELOW = 38, 10, 12, 50


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
        return "; ".join(dict.fromkeys(table["note"])) or f"{LADDER} holds no value"
    corrections = list(dict.fromkeys(known["correction"]))
    colors = {one: OKABE[i] if i < len(OKABE) else MISSING for i, one in enumerate(corrections)}
    words = sorted(dict.fromkeys(known["statistics"]), key=lambda word: word in NULL_ROWS)
    panels = []
    for task in dict.fromkeys(known["task"]):
        of_task = known[known["task"] == task]
        rungs = list(dict.fromkeys(table.loc[table["task"] == task, "restriction"]))
        top = _ceiling(of_task[["value", "high", "null"]].max(axis=None))
        bottom = min(0.0, float(of_task[["value", "low"]].min(axis=None)))
        drawn = [
            (word, _panel(of_task[of_task["statistics"] == word], rungs, colors, bottom, top, f"{task}, {word}"))
            for word in words
            if (of_task["statistics"] == word).any()
        ]
        panels.append((task, drawn))
    rows = [row | {"span": span(row["low"], row["high"])} for row in table.to_dict("records")]
    legend = [(one, colors[one], _dash(i)) for i, one in enumerate(corrections)]
    return Section("ladder", "The ladder", render("ladder", panels=panels, legend=legend, rows=rows), lead=LEAD)


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
    table: pd.DataFrame, rungs: list[str], colors: dict[str, str], bottom: float, top: float, label: str
) -> Markup:
    """The lines of all corrections under one word for statistics."""
    step = (_WIDE - _LEFT - _RIGHT) / max(1, len(rungs))

    def across(rung: str, number: int = 0, count: int = 1) -> float:
        return _LEFT + step * (rungs.index(rung) + 0.5) + (number - (count - 1) / 2) * min(7.0, 0.6 * step / count)

    def up(value: float) -> float:
        return _TOP + (top - value) / (top - bottom) * (_HIGH - _TOP - _BELOW)

    lines = []
    corrections = list(dict.fromkeys(table["correction"]))
    for number, correction in enumerate(corrections):
        points = []
        for row in table[table["correction"] == correction].to_dict("records"):
            x = across(row["restriction"], number, len(corrections))
            bar = (up(row["low"]), up(row["high"])) if math.isfinite(row["low"] + row["high"]) else None
            hint = f"{correction}, {row['restriction']}: {figure(row['value'])} {span(row['low'], row['high'])}"
            points.append({"x": x, "y": up(row["value"]), "bar": bar, "hint": f"{hint}, chance {figure(row['null'])}"})
        place = list(colors).index(correction)
        lines.append({"color": colors[correction], "dash": _dash(place), "points": points})
    chance = [
        (across(str(rung)) - step / 2 + 2, across(str(rung)) + step / 2 - 2, up(float(null)))
        for rung, null in table.groupby("restriction", sort=False)["null"].mean().dropna().items()
    ]
    ticks = [(up(bottom + (top - bottom) * k / 4), figure(bottom + (top - bottom) * k / 4)) for k in range(5)]
    places: list[dict[str, Any]] = [
        {"x": across(rung), "lines": _wrap(shorten(rung, 30), 13), "whole": rung} for rung in rungs
    ]
    sizes = {"wide": _WIDE, "high": _HIGH, "left": _LEFT, "right": _WIDE - _RIGHT, "floor": _HIGH - _BELOW}
    return render("ladder_panel", lines=lines, chance=chance, ticks=ticks, places=places, label=label, **sizes)


def _wrap(text: str, width: int) -> list[str]:
    """A label in up to three lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [shorten(line, width + 3) for line in lines[:3]]
