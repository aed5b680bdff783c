"""Maps of plates in the plate's own geometry: what lies where, cells, whether a well is found again, how far it is."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.evaluation.plots import natural
from biomass.report import packed, shades, svg
from biomass.report.maps import read_wells
from biomass.report.markup import figure, name, percent, shorten
from biomass.report.section import Section
from biomass.screen import FORMATS

LEAD = (
    "A circle is a negative control, a triangle a positive one, a square a treated well; all plates have one scale. "
    "Rows, columns or corners that stand out are an effect of the place."
)
MOST_PLATES, MOST_WELLS = 60, 25_000
"""That are drawn; the plates most unlike the others, where there are more."""
ROOM = 900_000
"""Bytes that values before and after corrections may take in the page."""

TITLES = {
    "right": "accuracy: has the nearest well of another plate the same treatment?",
    "distance": "distance to the plate's negative controls",
    "cells": "cells in the well",
}
NAMES = {"right": "accuracy", "distance": "distance to controls", "cells": "cell count"}
KINDS = {"": 0, "negative": 1, "positive": 2}

_NAMES = 250_000  # letters of all names of treatments
_STANDS_OUT, _MATTERS = 3.5, 0.1  # in units of what is usual, and as a share of the usual value


class Value(NamedTuple):
    """Something that is drawn.

    Attributes:
        kind: of :data:`TITLES`.
        pair: statistics and correction; empty where it does not depend on them.
        values: (N,) of the wells, NaN where not known.
        ends: values of the lowest and the highest colour.
    """

    kind: str
    pair: str
    values: np.ndarray
    ends: tuple[float, float]


def plate_maps(folder: Path) -> Section | str:
    """Maps of all plates, before and after corrections, to choose from; and the mean over plates, without a script."""
    wells = read_wells(folder)
    if isinstance(wells, str):
        return wells
    if not {"row", "column", "plate"} <= set(wells):
        return "no plate maps: where a well lies on its plate is not known"
    placed = wells[(wells["row"] >= 0) & (wells["column"] >= 0)]
    if placed.empty:
        return "no plate maps: no well has a place such as A01"
    lost = len(wells) - len(placed)
    notes = [f"Wells without a place, which are not drawn: {lost}"] if lost else []
    table, twice = _one_a_well(placed)
    if twice:
        notes.append(f"Wells with several rows, whose mean is drawn: {twice}")
    values = drawn_values(table)
    off = oddness(table["plate"], values)
    odd = off.max(axis=1).fillna(0.0)
    formats = _formats(table)
    most = max(1, min(MOST_PLATES, MOST_WELLS // max(h * w for h, w in formats.values())))
    shown = sorted(map(str, odd.sort_values(ascending=False, kind="stable").index[:most]), key=natural)
    if len(shown) < len(odd):
        notes.append(f"{len(shown)} of {len(odd)} plates are drawn, those most unlike the others in their means")
    some = table["plate"].isin(shown).to_numpy()
    kept = _affordable(values, int(some.sum()))
    if left := len({value.pair for value in values} - {value.pair for value in kept}):
        notes.append(f"Further pairs of statistics and correction, left out so that the page stays light: {left}")
    html = [_words(off, table["plate"], values), _means(table, kept, formats)]
    html.append(Markup("").join(Markup("<p>{}.</p>").format(note) for note in notes))
    data = _packed(table[some], [value._replace(values=value.values[some]) for value in kept], shown, formats, odd)
    return Section("plates", "Plate maps", Markup("").join(html), "plate_maps", data, LEAD)


def drawn_values(table: pd.DataFrame) -> list[Value]:
    """What the columns of a table of wells have to draw, cells first; columns without a value are left out.

    >>> table = pd.DataFrame({"cells": [10.0, 20.0], "right|plate|none": [1.0, 0.0], "distance|plate|none": np.nan})
    >>> [(value.kind, value.pair) for value in drawn_values(table)]
    [('cells', ''), ('right', 'plate · none')]
    """
    found = []
    for column in table:
        kind, _, rest = str(column).partition("|")
        if kind not in TITLES or (kind == "cells") == bool(rest):
            continue
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        low, high = (0.0, 1.0) if kind == "right" else map(float, np.quantile(known, [0.01, 0.99]))
        statistics, _, correction = rest.rpartition("|")
        pair = f"{statistics} · {correction}" if rest else ""
        found.append(Value(kind, pair, values, (low, high if high > low else low + 1)))
    return sorted(found, key=lambda value: value.kind != "cells")


def oddness(plates: "pd.Series[str]", values: Sequence[Value]) -> pd.DataFrame:
    """How unlike the others every plate is in each value: the distance of its mean from the median of all means.

    In units of what is usual: the robust spread of the means (1.48 times their median distance from the median; Hampel
    1974) and the standard error of a mean of as many wells as the plate has, squared, summed, and the root taken. So
    neither a few wells nor a few plates that happen to be alike make a plate odd.

    Args:
        plates: (N,) of the wells.
        values: V of them.

    Returns:
        (plates, V), index: the plates.
    """
    wells = pd.DataFrame({i: value.values for i, value in enumerate(values)}, plates.index).groupby(plates)
    means, counts = wells.mean(), wells.count()
    off = (means - means.median()).abs()
    within = (wells.var(ddof=0) * counts).sum() / (counts - 1).clip(lower=0).sum()  # pooled
    spread = ((1.4826 * off.median()) ** 2 + within.fillna(0.0) / counts.where(counts > 0)) ** 0.5
    return (off / spread.where(spread > 0)).fillna(0.0)


def _one_a_well(placed: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """A row a well, sorted by plate; and how many wells had several."""
    keys = ["plate", "row", "column"]
    placed = placed.sort_values(keys, kind="stable")
    several = placed.duplicated(keys, keep=False)
    if not several.any():
        return placed.reset_index(drop=True), 0
    how = {c: "mean" if pd.api.types.is_float_dtype(placed[c]) else "first" for c in placed if c not in keys}
    table = placed.groupby(keys, sort=True, observed=True).agg(how).reset_index()
    return table, int((~placed[several].duplicated(keys)).sum())


def _formats(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Rows and columns of every plate: the smallest format that has all wells of its experiment."""
    by = table["experiment"] if "experiment" in table else pd.Series("", table.index)
    sizes = table[["row", "column"]].groupby(by.to_numpy()).transform("max").to_numpy() + 1
    first = ~table["plate"].duplicated().to_numpy()
    found = {}
    for plate, (rows, columns) in zip(table["plate"][first], sizes[first], strict=True):
        fitting = (shape for shape in FORMATS if rows <= shape[0] and columns <= shape[1])
        found[str(plate)] = next(fitting, (int(rows), int(columns)))
    return found


def _affordable(values: Sequence[Value], wells: int) -> list[Value]:
    """The values of as many pairs as there is room for, in their order."""
    bytes_ = -(-wells * 4 // 3)
    pairs = list(dict.fromkeys(value.pair for value in values))
    kept: list[Value] = []
    left = ROOM
    for pair in pairs:
        of = [value for value in values if value.pair == pair]
        left -= bytes_ * len(of)
        if pair and left < 0 and kept:
            break
        kept += of
    return kept


def _words(off: pd.DataFrame, plates: "pd.Series[str]", values: Sequence[Value]) -> Markup:
    """Which plates stand out, and by what."""
    told = []
    wells = [pd.Series(value.values).groupby(plates.to_numpy()).agg(["mean", "count"]) for value in values]
    for plate in off.max(axis=1).sort_values(ascending=False, kind="stable").index if len(values) else ():
        parts = []
        for i, (value, of) in enumerate(zip(values, wells, strict=True)):
            mean, usual = of["mean"], float(of["mean"].median())
            if off.loc[plate, i] > _STANDS_OUT and abs(mean[plate] - usual) > _MATTERS * abs(usual):
                show = {"right": percent, "cells": "{:.0f}".format}.get(value.kind, figure)
                which = f" ({value.pair})" if value.pair else ""
                told_of = f"{NAMES[value.kind]}{which} {show(float(mean[plate]))} over {of['count'][plate]} wells"
                parts.append(f"{told_of}; the median plate has {show(usual)}")
        if parts:
            told.append(Markup("<li>{}: {}.</li>").format(name(plate, 40), ". ".join(parts[:2])))
    if not told:
        return Markup("<p>No plate stands out from the others in the means of what is drawn.</p>")
    head = Markup("<p>Most unlike the others ({} of {} plates stand out):</p>").format(len(told), len(off))
    return head + Markup("<ul>{}</ul>").format(Markup("").join(told[:3]))


def _means(table: pd.DataFrame, values: Sequence[Value], formats: Mapping[str, tuple[int, int]]) -> Markup:
    """The mean over plates of each value, of the first and of the last pair, as pictures that need no script."""
    shapes = list(formats.values())
    height, width = max(sorted(set(shapes)), key=shapes.count)
    here = table["plate"].map(formats.get).map(lambda shape: shape == (height, width)).to_numpy()
    place = table["row"].to_numpy(np.int64) * width + table["column"].to_numpy(np.int64)
    charts: list[Markup] = []
    for kind in NAMES:
        of = [value for value in values if value.kind == kind]
        some = [of[i] for i in dict.fromkeys([0, len(of) - 1]) if of]
        maps = [_mean(value.values[here], place[here], height * width).reshape(height, width) for value in some]
        ends = _common_ends(maps, relative=kind == "distance", top=1.0 if kind == "right" else np.inf)
        charts += [_map(*each) for each in zip(some, maps, ends, strict=True)]
    if not charts:
        return Markup("")
    count = shapes.count((height, width))
    head = Markup("<h3>Mean over {} plates of {} wells</h3><p>Before and after, colours span the same range.</p>")
    return head.format(count, height * width) + svg.side_by_side(charts, "end")


def _mean(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    """The mean at each place, NaN where nothing is known."""
    known = np.isfinite(values)
    count = np.bincount(place[known], minlength=size)
    mean: np.ndarray = np.bincount(place[known], values[known], size) / np.where(count, count, np.nan)
    return mean


def _common_ends(maps: Sequence[np.ndarray], relative: bool, top: float) -> list[tuple[float, float]]:
    """Ends of the colours around the middle of each map, of one width, which noise alone does not fill.

    Args:
        maps: values by place, at least 0.
        relative: width in units of the middle, where the maps have other units.
        top: the largest value that there can be.

    >>> _common_ends([np.array([0.0, 1.0, 2.0]), np.array([5.0, 5.0, 5.0])], relative=False, top=5.5)
    [(0.0, 2.0), (3.5, 5.5)]
    """
    middles, halves = [], []
    for values in maps:
        known = values[np.isfinite(values)]
        middle = float(np.median(known)) if len(known) else 0.0
        half = float(np.quantile(np.abs(known - middle), 0.98)) if len(known) else 0.0
        middles.append(middle)
        halves.append(half / abs(middle) if relative and middle else half)
    half = max(halves, default=0.0) or 0.5
    widths = [half * abs(middle) if relative and middle else half for middle in middles]
    lows = [max(0.0, min(middle - width, top - 2 * width)) for middle, width in zip(middles, widths, strict=True)]
    return [(low, min(top, low + 2 * width)) for low, width in zip(lows, widths, strict=True)]


def _map(value: Value, mean: np.ndarray, ends: tuple[float, float]) -> Markup:
    """One mean over plates with its scale."""
    height, width = mean.shape
    letters, numbers = [row_letters(row) for row in range(height)], [str(column + 1) for column in range(width)]
    title = shorten(f"{NAMES[value.kind]}{', ' if value.pair else ''}{value.pair}", 60)
    drawn = shades.heat(mean, letters, numbers, ends=ends, title=title, cell=max(6, min(17, 300 // width)))
    return Markup("<div>{}{}</div>").format(drawn, shades.scale(ends, "", percent=value.kind == "right"))


def row_letters(row: int) -> str:
    """The letters of a row from 0.

    >>> row_letters(0), row_letters(31)
    ('A', 'AF')
    """
    return chr(65 + row) if row < 26 else f"A{chr(39 + row)}"


def _packed(
    table: pd.DataFrame,
    values: Sequence[Value],
    shown: Sequence[str],
    formats: Mapping[str, tuple[int, int]],
    odd: "pd.Series[float]",
) -> dict[str, Any]:
    """What the script draws: a number a well and value, in base64; names once."""
    plates = table["plate"].astype(str).to_numpy()
    _, first, count = np.unique(plates, return_index=True, return_counts=True)
    begin = dict(zip(plates[first], zip(first.tolist(), count.tolist(), strict=True), strict=True))
    control = table["control"].map(KINDS).fillna(0) if "control" in table else pd.Series(0, table.index)
    place = table["row"] + 32 * table["column"] + 2048 * control.astype(np.int64)
    data: dict[str, Any] = {
        "plates": [
            {
                "name": shorten(plate, 80),
                "first": begin[plate][0],
                "count": begin[plate][1],
                "rows": formats[plate][0],
                "columns": formats[plate][1],
                "odd": round(float(odd[plate]), 2),
            }
            for plate in shown
        ],
        "place": packed.pack(place.to_numpy(np.int64)),
        "controls": "control" in table,
        "values": [_levels(value) for value in values],
    }
    if "treatment" in table:
        most = max(12, min(60, _NAMES // max(1, table["treatment"].nunique())))
        data["treatment"] = packed.names(table["treatment"], most)
        if "mechanism" in table:
            data["mechanism"] = packed.names(table["mechanism"])
    return data


def _levels(value: Value) -> dict[str, Any]:
    """The levels of one value, 255 (65535) where it is not known: whole counts as they are, all else in 255 steps."""
    known = np.isfinite(value.values)
    whole = value.kind == "cells" and bool((value.values[known] % 1 == 0).all() and value.values[known].max() < 65535)
    kind, top = ("<u2", 65535) if whole else ("u1", 255)
    low, high = (0.0, 65534.0) if whole else value.ends
    part = np.clip((np.where(known, value.values, low) - low) / (high - low), 0, 1)
    levels = np.where(known, np.round(part * (top - 1)), top)
    return {
        "kind": value.kind,
        "title": TITLES[value.kind],
        "name": NAMES[value.kind],
        "pair": shorten(value.pair, 80),
        "bytes": 2 if whole else 1,
        "low": low,
        "high": high,
        "ends": list(value.ends),
        "levels": base64.b64encode(levels.astype(kind).tobytes()).decode("ascii"),
    }
