"""Where in the network plates differ: the distance between their statistics by layer, before and after."""

from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.report import svg
from biomass.report.files import read_table
from biomass.report.markup import figure, name
from biomass.report.section import Section

LEAD = (
    "Distance between plates at the input of every batch norm; what the network hands on to the next layer is what its "
    "statistics leave."
)
_CALLED = {"running": "before (running)", "plate": "after (plate)"}
_NAMED = 28  # layers whose names are shown


def layer_distances(folder: Path) -> Section | str:
    """A line a word for statistics over the layers, with what chance makes of it."""
    file = folder / "layers.csv"
    if not file.exists():
        return "no layers.csv: no network with batch norms was looked into in this run"
    table = read_table(file, ["layer", "words"], ["depth", "distance"])
    if "chance" in table:
        table = read_table(file, ["layer", "words"], ["depth", "distance", "chance"])
    else:
        table["chance"] = np.nan
    if not np.isfinite(table["distance"]).any():
        return "layers.csv holds no distance"
    words: list[str] = list(dict.fromkeys(table["words"]))
    layers = table.drop_duplicates("depth").sort_values("depth")["layer"].tolist()
    depths = sorted(table["depth"].unique())
    named = len(layers) <= _NAMED
    lines, looks = [], []
    for i, word in enumerate(words):
        of = table[table["words"] == word].sort_values("depth")
        at = [float(depths.index(depth)) if named else float(depth) for depth in of["depth"]]
        look = svg.style(2 * i)
        lines.append(svg.Line(_CALLED.get(word, word), at, of["distance"].tolist()))
        looks.append(look)
        if np.isfinite(of["chance"]).any():
            lines.append(svg.Line(f"by chance ({word})", at, of["chance"].tolist()))
            looks.append(look._replace(dash=svg.DOTTED))
    known = table.loc[table["distance"] > 0, "distance"]
    chart = svg.chart(
        lines,
        "layer" if named else "depth",
        "distance between plates",
        names=[_less(layer) for layer in layers] if named else [],
        log=bool(len(known)) and known.max() > 30 * known.min(),
        y=(0.0, None),
        size=(min(900, max(420, 90 + 24 * len(layers))), 280),
        styles=looks,
    )
    html = _words(table, words) + svg.legend([line.name for line in lines], looks) + chart
    return Section("layers", "Where in the network plates differ", html, lead=LEAD)


def _less(layer: str) -> str:
    """A long name of a layer with its words in one letter each.

    >>> _less("bn1"), _less("stages.0.blocks.1.norm2")
    ('bn1', 's.0.b.1.norm2')
    """
    *above, last = layer.split(".")
    return layer if len(layer) <= 14 else ".".join([*(part if part.isdigit() else part[:1] for part in above), last])


def _words(table: pd.DataFrame, words: list[str]) -> Markup:
    """The layer where plates differ most, and the output, under each word."""
    told = []
    for word in words:
        of = table[table["words"] == word].dropna(subset=["distance"]).sort_values("depth")
        if of.empty:
            continue
        most, last = of.iloc[int(of["distance"].argmax())], of.iloc[-1]
        chance = f" (chance {figure(last['chance'])})" if np.isfinite(last["chance"]) else ""
        told.append(
            Markup("<li>{}: plates differ most at {} ({}); at {}, behind all layers, by {}{}.</li>").format(
                name(_CALLED.get(word, word)),
                name(most["layer"], 40),
                figure(most["distance"]),
                name(last["layer"], 40),
                figure(last["distance"]),
                chance,
            )
        )
    return Markup("<ul>{}</ul>").format(Markup("").join(told))
