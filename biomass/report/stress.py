"""How a classifier holds on small, uneven and uncontrolled plates, under every word for statistics."""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from biomass.evaluation.stress import AXES, COLUMNS, axis_values
from biomass.report import svg
from biomass.report.files import read_json, read_table
from biomass.report.markup import name, percent
from biomass.report.section import Section

LEAD = (
    "Plates that the network has not seen were reduced again and again; one line a word for statistics, bands are 95 % "
    "intervals over plates."
)
_SHOWN = {"inf": "none", "all": "all"}
_DRIFT = "share of predictions that changed until the plate was complete"


def stress_test(folder: Path) -> Section | str:
    """A chart an axis: accuracy against wells, label shift, controls, strength of an effect, wells read so far."""
    if not (folder / "stress.csv").exists():
        return "no stress test: biomass stress makes one"
    table = read_table(folder / "stress.csv", COLUMNS[:4], COLUMNS[4:])
    classes = float(read_json(folder / "stress.json").get("classes") or "nan")
    words = list(dict.fromkeys(table["statistics"]))
    parts = [_said(table, classes), svg.legend(words), svg.side_by_side(_charts(table, "accuracy", words, classes))]
    if (folder / "drift.csv").exists():
        drift = read_table(folder / "drift.csv", ["statistics"])
        if "axis" in drift:
            drift = read_table(folder / "drift.csv", ["statistics", "axis", "value"], ["drift", "low", "high"])
            parts.append(Markup("<h3>How much predictions still change while a plate is read</h3>"))
            parts.append(svg.side_by_side(_charts(drift, "drift", words, float("nan"))))
    return Section("stress", "Stress test", Markup("").join(parts), lead=LEAD)


def _charts(table: pd.DataFrame, measure: str, words: list[str], classes: float) -> list[Markup]:
    """A chart for each axis of a table."""
    charts = []
    top = 1.0 if table["high"].max() > 0.5 else None
    for axis, some in table.groupby("axis", sort=False):
        values = axis_values(some)
        lines = []
        for word in words:
            line = some[some["statistics"] == word]
            at = [float(values.index(value)) for value in line["value"]]
            lines.append(svg.Line(word, at, *(line[column].tolist() for column in (measure, "low", "high"))))
        shown = [i for i, line in enumerate(lines) if len(line.x)]
        charts.append(
            svg.chart(
                [lines[i] for i in shown],
                "",
                measure if measure == "accuracy" else _DRIFT,
                title=AXES.get(str(axis), str(axis)),
                names=[_SHOWN.get(value, value) for value in values],
                y=(0.0, top),
                levels={"chance": 1 / classes} if classes > 0 else {},
                percent=True,
                styles=[svg.style(i) for i in shown],
            )
        )
    return charts


def _said(table: pd.DataFrame, classes: float) -> Markup:
    """Accuracy of whole plates, and of the smallest ones, in words."""
    wells = table[table["axis"] == "wells"]
    if wells.empty:
        return Markup("")
    values = axis_values(wells)
    told = []
    for word in dict.fromkeys(wells["statistics"]):
        of = wells[wells["statistics"] == word].set_index("value")["accuracy"]
        few, many = (of.get(value, float("nan")) for value in (values[0], values[-1]))
        told.append(Markup("{} {} ({})").format(name(word, 30), percent(many), percent(few)))
    chance = f" Chance is {percent(1 / classes)}." if classes > 0 else ""
    less = "1 well" if values[0] == "1" else f"{values[0]} wells"
    return Markup("<p>Accuracy with {} wells of a plate (with {}): {}.{}</p>").format(
        values[-1], less, Markup(", ").join(told), chance
    )
