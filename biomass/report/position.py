"""What the place on the plate does to profiles: rows, columns and the edge, before and after corrections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.report import shades, svg
from biomass.report.files import read_table
from biomass.report.markup import ORANGES, figure, name, percent, shade
from biomass.report.section import Section

LEAD = (
    "Wells of one row, one column or the edge should not be alike beyond what they were given; evaporation, light and "
    "pipetting make them so."
)
KINDS = {"row": "rows", "column": "columns", "edge": "the edge"}
_TEXT, _NUMBERS = ("statistics", "correction", "plate", "kind", "place"), ("effect", "low", "high", "p")
_SURE = 0.05


def position(folder: Path) -> Section | str:
    """How much of the variance rows, columns and the edge explain, and where their wells lie."""
    file = folder / "position.csv"
    if not file.exists():
        return "no position.csv: where wells lie on their plates is not known, or was not judged in this run"
    table = read_table(file, _TEXT, _NUMBERS)
    table = table.assign(pair=table["statistics"].where(table["statistics"] != "", "profiles"))
    table["pair"] = table["pair"] + " · " + table["correction"].where(table["correction"] != "", "none")
    pairs = list(dict.fromkeys(table["pair"]))
    if not pairs:
        return "position.csv holds no effect"
    parts, charts = [_words(table, pairs), _shares(table, pairs)], []
    places = _aligned(table[(table["plate"] == "") & (table["place"] != "")], pairs[0])
    whole = table[(table["plate"] == "") & (table["place"] == "")]
    for kind in ("row", "column"):
        some, share = (of[of["kind"] == kind] for of in (places, whole))
        if len(some) and np.isfinite(share["effect"]).any():
            charts.append(_profiles(some, kind, pairs))
        elif len(some):
            told = "What {} do cannot be told: of the wells that can be compared, hardly two share one on a plate."
            parts.append(Markup("<p>{}</p>").format(told.format(KINDS[kind])))
    if charts:
        parts.append(svg.side_by_side(charts))
    return Section("position", "Effects of the place on the plate", Markup("").join(parts), lead=LEAD)


def _words(table: pd.DataFrame, pairs: Sequence[str]) -> Markup:
    """The edge, and the largest effect, of the first and the last pair."""
    told = []
    for pair in dict.fromkeys([pairs[0], pairs[-1]]):
        of = table[(table["pair"] == pair) & (table["plate"] == "")]
        sentences = []
        edge = of[of["kind"] == "edge"].set_index("place")["effect"]
        if {"edge", "inner"} <= set(edge.index):
            p = float(of[(of["kind"] == "edge") & (of["place"] == "")]["p"].min())
            sentences.append(
                f"wells at the edge differ from inner ones by {figure(abs(float(edge['edge'] - edge['inner'])))} sd"
                f"{_chance(p)}"
            )
        sure = of[(of["place"] == "") & (of["p"] < _SURE)].sort_values("effect", ascending=False)
        if sure.empty:
            sentences.append("rows, columns and the edge explain no more than chance would")
        else:
            kind, share = str(sure["kind"].iloc[0]), percent(max(0.0, float(sure["effect"].iloc[0])))
            ending = "s" if kind == "edge" else ""
            sentences.append(f"{KINDS.get(kind, kind)} explain{ending} most, {share} of the variance within plates")
        if sentences:
            told.append(Markup("<li>{}: {}.</li>").format(name(pair), "; ".join(sentences)))
    return Markup("<ul>{}</ul>").format(Markup("").join(told))


def _chance(p: float) -> str:
    """How sure that is."""
    if not np.isfinite(p):
        return ""
    return f" (p {figure(p)})" if p < _SURE else f" (no more than by chance, p {figure(p)})"


def _share(value: float) -> str:
    """A share that may be slightly below 0."""
    return f"−{percent(-value)}" if value < 0 else percent(value)


def _shares(table: pd.DataFrame, pairs: Sequence[str]) -> Markup:
    """A table: pairs × kinds, the share of the variance within plates, its interval, and on how many plates it is."""
    whole = table[table["place"] == ""]
    kinds = [kind for kind in KINDS if (whole["kind"] == kind).any()]
    top = float(whole.loc[whole["plate"] == "", "effect"].max())
    rows = []
    for pair in pairs:
        cells = []
        for kind in kinds:
            of = whole[(whole["pair"] == pair) & (whole["kind"] == kind)]
            cells.append(_cell(of[of["plate"] == ""], of[of["plate"] != ""], top))
        rows.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name(pair), Markup("").join(cells)))
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(KINDS[kind]) for kind in kinds)
    return Markup(
        "<h3>Share of the variance within plates that the place explains beyond chance</h3>"
        '<p class="quiet">In brackets its 95 % interval over plates; below, on how many plates it is more than chance '
        '(p &lt; {}).</p><div class="scroll"><table class="heat"><thead><tr>'
        '<th scope="col">statistics · correction</th>{}</tr></thead><tbody>{}</tbody></table></div>'
        '<p class="quiet"><span class="bar oranges" aria-hidden="true"></span> nothing → most of this table: the '
        "darker, the more of an effect that should not be there.</p>"
    ).format(_SURE, head, Markup("").join(rows))


def _cell(whole: pd.DataFrame, plates: pd.DataFrame, top: float) -> Markup:
    """One share, the darker the larger."""
    if whole.empty or not np.isfinite(whole["effect"].iloc[0]):
        return Markup('<td class="empty">–</td>')
    one: Any = whole.iloc[0]
    found = int((plates["p"] < _SURE).sum())
    ends = f"[{_share(one['low'])}, {_share(one['high'])}]" if np.isfinite([one["low"], one["high"]]).all() else ""
    return Markup('<td style="{}"><b>{}</b><small>{}</small><small>p {}; {} of {} plates</small></td>').format(
        shade(max(0.0, one["effect"]) / top if top > 0 else 0.0, ORANGES),
        percent(max(0.0, one["effect"])),
        ends,
        figure(one["p"]),
        found,
        len(plates),
    )


def _aligned(places: pd.DataFrame, first: str) -> pd.DataFrame:
    """The same with directions turned to that of the first pair: which end of a direction is positive says nothing."""
    keys = ["kind", "place"]
    given = places[places["pair"] == first].set_index(keys)["effect"]
    one = given[~given.index.duplicated()].reindex(pd.MultiIndex.from_frame(places[keys])).fillna(0.0).to_numpy()
    alike = (places["effect"].fillna(0.0) * one).groupby([places["pair"], places["kind"]]).transform("sum")
    turned = places.assign(effect=-places["effect"], low=-places["high"], high=-places["low"])
    return places.where(alike >= 0, turned)


def _profiles(places: pd.DataFrame, kind: str, pairs: Sequence[str]) -> Markup:
    """Where wells of every row (column) lie: lines with intervals before and after, and all pairs as a heat map."""
    names = list(dict.fromkeys(places["place"]))
    shown = [pair for pair in dict.fromkeys([pairs[0], pairs[-1]]) if (places["pair"] == pair).any()]
    lines = []
    for pair in shown:
        of = places[places["pair"] == pair]
        at = [float(names.index(place)) for place in of["place"]]
        lines.append(svg.Line(pair, at, *(of[column].tolist() for column in ("effect", "low", "high"))))
    wide = min(760, max(300, 90 + 16 * len(names)))
    chart = svg.chart(lines, kind, "sd within plates", names=names, size=(wide, 240), levels={"": 0.0})
    parts = [svg.legend(shown), chart]
    there = [pair for pair in pairs if (places["pair"] == pair).any()]
    if len(there) > 2:
        grid = places.pivot_table(index="pair", columns="place", values="effect", aggfunc="first", sort=False)
        values = grid.reindex(index=there, columns=names).to_numpy(np.float64)
        top = float(np.nanmax(np.abs(values))) or 1.0
        drawn = shades.heat(values, there, names, ends=(-top, top), shades="both", title="all corrections", cell=16)
        parts.append(Markup("<div>{}{}</div>").format(drawn, shades.scale((-top, top), "sd within plates", "both")))
    title = f"Where wells of every {kind} lie, along the direction in which {KINDS[kind]} differ most"
    head = Markup("<h3>{}</h3>").format(title)
    return Markup('<div class="kind">{}{}{}</div>').format(head, parts[0], svg.side_by_side(parts[1:]))
