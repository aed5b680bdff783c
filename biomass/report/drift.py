"""Do corrections hold for plates that come later, and do profiles of earlier plates stay what they were?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.errors import DataError
from biomass.report import svg
from biomass.report.files import read_table
from biomass.report.judged import About, read_judged
from biomass.report.markup import figure, name
from biomass.report.section import Section

LEAD = (
    "Corrections were fitted on the first plates alone and judged on these and on the later ones, as in a screen that "
    "goes on. Drift is how far profiles of the first plates move when later ones arrive: 0 is not at all, 1 as far as "
    "wells lie from their mean."
)
DRIFT = "drift"
"""The metric that tells how far profiles have moved."""

_TEXT = ("correction", "refit_only", "metric", "note")
_NUMBERS = ("k", "plates", "fit", "fit_low", "fit_high", "later", "later_low", "later_high", "null")
_FIT, _LATER = 0, 1  # numbers of the styles of dots


def drift(folder: Path) -> Section | str:
    """A chart a metric, the plates of the fit beside later ones; and one of the drift."""
    file = folder / "drift.csv"
    if not file.exists():
        return "no drift.csv: no correction was fitted on first plates and judged on later ones in this run"
    if "axis" in read_table(file, []):
        return "drift.csv is that of a stress test, which is shown there"
    table = read_table(file, _TEXT, _NUMBERS).dropna(subset=["k", "plates"]).astype({"k": int, "plates": int})
    if table.empty:
        return "drift.csv holds no value"
    table["pair"] = table["correction"] + np.where(_is_true(table["refit_only"]), " (refit only)", "")
    if "statistics" in table:
        table["pair"] = np.where(table["statistics"] == "", "", table["statistics"] + " · ") + table["pair"]
    try:
        judged = read_judged(folder)
    except DataError:  # told by the sections that show it
        judged = ""
    about = {} if isinstance(judged, str) else judged.metrics
    moved = table[table["metric"] == DRIFT]
    parts = [_words(moved), _drifts(moved)]
    rest = table[table["metric"] != DRIFT].dropna(subset=["fit", "later"], how="all")
    if len(rest):
        styles = [svg.style(_FIT), svg.style(_LATER)]
        fits = rest[["k", "plates"]].drop_duplicates().to_numpy().tolist()
        of = f": fitted on {fits[0][0]} of {fits[0][1]} plates" if len(fits) == 1 else ""
        parts.append(Markup("<h3>First plates and later ones{}</h3>").format(of))
        parts.append(svg.legend(["plates that the correction was fitted on", "later plates"], styles))
        order = rest["metric"].map(list(dict.fromkeys(rest["metric"])).index)
        charts = [_chart(some, about, not of) for _, some in rest.groupby([order, "k"])]
        parts.append(svg.side_by_side(charts, "end"))
    return Section("drift", "Plates that come later", Markup("").join(parts) + _reasons(table), lead=LEAD)


def _is_true(column: "pd.Series[str]") -> np.ndarray:
    return column.str.lower().isin(["true", "1"]).to_numpy()


def _words(moved: pd.DataFrame) -> Markup:
    """What stays, and what moves most."""
    known = moved.dropna(subset=["fit"])
    if known.empty:
        return Markup("")
    most = known.groupby("pair", sort=False)["fit"].max().sort_values(ascending=False, kind="stable")
    still, moving = [pair for pair, value in most.items() if value == 0], most[most > 0]
    told: list[str] = []
    if still and not len(moving):
        told.append("Profiles of earlier plates stay what they were under all corrections.")
    elif still:
        told.append(Markup("Profiles of earlier plates stay what they were under {}.").format(_listed(still)))
    if len(moving):
        each = Markup(", ").join(
            Markup("{} by {}").format(name(pair, 40), figure(value)) for pair, value in list(moving.items())[:5]
        )
        told.append(Markup("They move under {}.").format(each))
    return Markup("<p>{}</p>").format(Markup(" ").join(told))


def _listed(names: Sequence[object]) -> Markup:
    return Markup(", ").join(name(one, 40) for one in names)


def _drifts(moved: pd.DataFrame) -> Markup:
    """A dot a correction, a chart a number of first plates."""
    charts = []
    for k, some in moved.dropna(subset=["fit"]).groupby("k", sort=False):
        charts.append(
            svg.dots(
                some["pair"].tolist(),
                some["fit"].tolist(),
                "drift",
                low=some["fit_low"].tolist(),
                high=some["fit_high"].tolist(),
                title=f"drift of the first {k} of {some['plates'].iloc[0]} plates",
                ends=(0.0, None),
            )
        )
    return svg.side_by_side(charts) if charts else Markup("")


def _chart(some: pd.DataFrame, about: Mapping[str, About], says_of: bool) -> Markup:
    """One metric: two rows a correction, the plates of the fit above later ones, and chance."""
    names: list[str] = []
    values: dict[str, list[float]] = {"value": [], "low": [], "high": []}
    for row in some.to_dict("records"):
        names += [str(row["pair"]), "later plates"]
        for part in ("fit", "later"):
            for key, column in (("value", part), ("low", f"{part}_low"), ("high", f"{part}_high")):
                values[key].append(float(row[column]))
    first = some.iloc[0]
    known = about.get(first["metric"])
    title = f"{known.title} ({known.better} is better)" if known else str(first["metric"])
    chance = some["null"].dropna()
    return svg.dots(
        names,
        values["value"],
        "",
        low=values["low"],
        high=values["high"],
        title=f"{title}; fitted on {first['k']} of {first['plates']} plates" if says_of else title,
        levels={"chance": float(chance.median())} if len(chance) else {},
        kinds=[_FIT, _LATER] * len(some),
        width=296,
    )


def _reasons(table: pd.DataFrame) -> Markup:
    """What could not be told, and what should be known, each once."""
    notes = table.loc[table["note"] != "", ["pair", "note"]].drop_duplicates()
    lines = [
        Markup("<li>{}: {}</li>").format(name(", ".join(some["pair"]), 80), note)
        for note, some in notes.groupby("note", sort=False)
    ]
    return Markup('<ul class="notes">{}</ul>').format(Markup("").join(lines)) if lines else Markup("")
