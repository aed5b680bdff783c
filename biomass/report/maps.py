"""Maps of all wells before and after, side by side under one legend."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw

from biomass.errors import DataError, one_line
from biomass.judgement.table import (
    COMPOUND,
    CONTROL,
    EXPERIMENT,
    MECHANISM,
    PLATE,
    SOURCE,
    TREATMENT,
    WELL,
)
from biomass.report.files import WELLS
from biomass.report.markup import OKABE, render
from biomass.report.packed import names, place
from biomass.report.section import Section

DRAWN = 20_000
"""Wells that are drawn, at most; of more, evenly over plates."""

LEAD = (
    "Every dot is a well; wells that look alike lie together. Where colours of plates or experiments form islands, "
    "there is a batch effect. Distances between islands mean nothing. A dot under the pointer is marked in all maps."
)

_COLORED = (PLATE, EXPERIMENT, SOURCE, TREATMENT, COMPOUND, MECHANISM, CONTROL)
_ORDERED = (PLATE, EXPERIMENT, SOURCE)  # made one after the other: neighbours may be alike
_CONTROLS = {"": "treated", "negative": "negative control", "positive": "positive control"}
_STILL = 3000  # wells in the picture for those without scripts


class Map(NamedTuple):
    """One map: the pair that it is of, and where each well lies, (N,) each, NaN where it is not drawn."""

    statistics: str
    correction: str
    x: np.ndarray
    y: np.ndarray


def maps(folder: Path) -> Section | str:
    """The section."""
    table = read_wells(folder)
    if isinstance(table, str):
        return table
    found = maps_of(table)
    if not found:
        return f"{WELLS} holds no map of the wells"
    somewhere = np.any([np.isfinite(one.x) for one in found], axis=0)
    rows = np.flatnonzero(somewhere)
    if not len(rows):
        return f"in {WELLS} no well has a place in a map"
    total, drawn = len(table), evenly(table.iloc[rows], DRAWN)
    rows = rows[drawn]
    fields = {role: named(table[role].iloc[rows], role) for role in (*_COLORED, WELL) if role in table}
    panels = []
    for one in found:
        x, y = one.x[rows], one.y[rows]
        (left, right), (low, high) = _ends(x), _ends(y)
        beyond = int(((x < left) | (x > right) | (y < low) | (y > high)).sum())
        size = max(right - left, high - low) or 1.0
        middle = (left + right - size) / 2, (low + high - size) / 2
        packed = {"x": place(x.clip(left, right), middle[0], size), "y": place(y.clip(low, high), middle[1], size)}
        panels.append({"statistics": one.statistics, "correction": one.correction, "beyond": beyond, **packed})
    choices = [role for role in _COLORED if role in fields and len(fields[role]["values"]) > 1]
    data = {
        "fields": fields,
        "choices": choices or [role for role in _COLORED if role in fields][:1],
        "ordered": list(_ORDERED),
        "panels": panels,
    }
    by = next((role for role in choices), "")
    still = [(one.statistics, one.correction, _picture(one, rows, table[by] if by else None)) for one in found[:4]]
    html = render("maps", still=still, by=by, drawn=len(rows), total=total)
    return Section("maps", "Maps of the wells, before and after", html, "scatter", data, LEAD)


def read_wells(folder: Path) -> pd.DataFrame | str:
    """A row a well, as ``biomass evaluate`` leaves them; why there are none, where there are none.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / WELLS
    if not file.exists():
        return f"no {WELLS}: no wells were judged in this run"
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # of Arrow, too
        raise DataError(f"'{WELLS}' is damaged ({one_line(error)}): run the command that made it again") from error
    return table if len(table) else f"{WELLS} holds no well"


def maps_of(table: pd.DataFrame) -> list[Map]:
    """All maps that a table of wells has, as they come."""
    found = []
    for column in table.columns:
        kind, _, pair = str(column).partition("|")
        if kind == "map_x" and f"map_y|{pair}" in table:
            statistics, _, correction = pair.rpartition("|")
            x, y = (pd.to_numeric(table[f"{axis}|{pair}"], errors="coerce") for axis in ("map_x", "map_y"))
            found.append(Map(statistics, correction, x.to_numpy(np.float64), y.to_numpy(np.float64)))
    return found


def named(column: "pd.Series[Any]", role: str) -> dict[str, Any]:
    """The names of a column, packed, as people say them."""
    column = column.astype(object).where(column.notna(), "").astype(str)
    if role == CONTROL:
        column = column.map(lambda kind: _CONTROLS.get(kind, kind))
    return names(column)


def evenly(table: pd.DataFrame, limit: int) -> np.ndarray:
    """Up to ``limit`` positions, ascending, as many of each plate as its share; which ones is drawn, always alike."""
    count = len(table)
    if count <= limit:
        return np.arange(count)
    plates = pd.factorize(table[PLATE].astype(str))[0] if PLATE in table else np.zeros(count, np.int64)
    order = np.lexsort([np.random.default_rng(0).random(count), plates])
    return np.sort(order[np.linspace(0, count - 1, limit).round().astype(np.int64)])


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis: of all values, but that a few far ones do not squeeze the others.

    >>> _ends(np.array([0.0, *np.linspace(1, 2, 1000), 99.0]))[1] < 4
    True
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    low, high = np.quantile(known, [0.01, 0.99])
    room = high - low if high > low else np.inf
    return float(max(known.min(), low - room)), float(min(known.max(), high + room))


def _picture(one: Map, rows: np.ndarray, column: "pd.Series[Any] | None") -> str:
    """A map as a PNG in a data URI, for those without scripts."""
    side, dot = 480, 2
    codes = np.zeros(len(rows), np.int64) if column is None else pd.factorize(column.iloc[rows], sort=True)[0]
    shown = np.flatnonzero(np.isfinite(one.x[rows]) & np.isfinite(one.y[rows]))[:: max(1, len(rows) // _STILL)]
    x, y = one.x[rows][shown], one.y[rows][shown]
    (left, right), (low, high) = _ends(x), _ends(y)
    x, y = x.clip(left, right), y.clip(low, high)
    size = max(right - left, high - low) or 1.0
    across = (x - (left + right - size) / 2) / size * (side - 20) + 10
    down = side - 10 - (y - (low + high - size) / 2) / size * (side - 20)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    colors = colors_of(int(codes.max()) + 1)
    for i, j, code in zip(across, down, codes[shown], strict=True):
        draw.ellipse((i - dot, j - dot, i + dot, j + dot), fill=colors[code])
    out = BytesIO()
    image.quantize(64).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def colors_of(count: int) -> Sequence[tuple[int, ...]]:
    """A colour for each of ``count`` categories, as ``biomass.categories`` of ``static/base.js`` gives them."""
    if count <= len(OKABE):
        return [ImageColor.getrgb(one) for one in OKABE[:count]]
    stops = np.array([ImageColor.getrgb(one) for one in _VIRIDIS])
    places = np.linspace(0, 0.97, count) * (len(stops) - 1)
    channels = [np.interp(places, np.arange(len(stops)), stops[:, i]) for i in range(3)]
    return [tuple(round(float(one)) for one in color) for color in np.stack(channels, 1)]


_VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
