"""Values as shades: tables as heat maps in inline SVG, and what their shades mean.

Shades of a value that grows are those of cividis (Nuñez et al., PLoS ONE 13, 2018), which grow steadily in lightness
for all readers; those of a value around 0 are ColorBrewer's purple to orange, which the colour-blind tell apart.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from biomass.report.markup import shorten
from biomass.report.svg import GRID, LETTER, as_tick, drawing, text

SHADES: Mapping[str, tuple[str, ...]] = {
    word: tuple(to_hex(colormaps[of](at)) for at in np.linspace(first, last, 15))
    for word, of, first, last in (("up", "cividis", 0.0, 1.0), ("both", "PuOr_r", 0.04, 0.96))
}
"""Colours from low to high: ``up`` for a value that grows, ``both`` for one that lies around 0."""


def heat(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    ends: tuple[float, float],
    shades: str = "up",
    title: str = "",
    cell: int = 14,
) -> Markup:
    """A table of values as shades, one path a shade, so that ten thousand of them stay light.

    Args:
        values: (R, C), white where not finite.
        rows: (R,) names, all of them shown where there is room.
        columns: (C,) names.
        ends: values of the lowest and the highest shade; what lies beyond has the same shade.
        shades: of :data:`SHADES`.
        title: above it.
        cell: side of a value.

    >>> heat(np.array([[0.0, 1.0], [1.0, np.nan]]), ["A", "B"], ["1", "2"], ends=(0, 1)).count("<path")
    2
    """
    colours = SHADES[shades]
    room = round(max((len(shorten(name, 20)) for name in rows), default=0) * 10 * LETTER + 8)
    top = 16
    width, height = room + cell * len(columns) + 4, top + cell * len(rows) + 4
    parts = [
        Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="{}"/>').format(
            room, top, cell * len(columns), cell * len(rows), GRID
        )
    ]
    levels = shade_of(values, ends, len(colours))
    for level, colour in enumerate(colours):
        drawn = "".join(f"M{c} {r}h.95v.95h-.95z" for r, c in np.argwhere(levels == level))
        if drawn:
            parts.append(
                Markup('<path transform="translate({} {}) scale({})" d="{}" fill="{}"/>').format(
                    room, top, cell, drawn, colour
                )
            )
    every = -(-10 // cell)
    parts += [
        text(room - 4, top + cell * (r + 0.5) + 3.5, shorten(rows[r], 20), "end", size=10)
        for r in range(0, len(rows), every)
    ]
    wide = max((len(name) for name in columns), default=1) * 10 * LETTER + 4
    parts += [
        text(room + cell * (c + 0.5), top - 4, columns[c], "middle", size=10)
        for c in range(0, len(columns), max(1, int(-(-wide // cell))))
    ]
    return drawing(Markup("").join(parts), width, height, title)


def shade_of(values: np.ndarray, ends: tuple[float, float], count: int) -> np.ndarray:
    """Which of ``count`` shades each value has, -1 where it is not finite.

    >>> shade_of(np.array([0.0, 0.5, 2.0, np.nan]), (0, 1), 3)
    array([ 0,  1,  2, -1])
    """
    low, high = ends
    with np.errstate(invalid="ignore"):
        part = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    known = np.isfinite(part)
    return np.where(known, np.clip(np.where(known, part, 0) * count, 0, count - 1).astype(np.int64), -1)


def scale(ends: tuple[float, float], label: str, shades: str = "up", percent: bool = False) -> Markup:
    """The legend of shades: a bar with the values of its ends and its middle.

    >>> scale((0, 2), "distance").count("<rect")
    15
    """
    colours, wide = SHADES[shades], 9
    bar = [
        Markup('<rect x="{}" y="2" width="{}" height="10" fill="{}"/>').format(20 + wide * i, wide, colour)
        for i, colour in enumerate(colours)
    ]
    for value, part in ((ends[0], 0.0), (sum(ends) / 2, 0.5), (ends[1], 1.0)):
        told = as_tick(value, percent)
        bar.append(text(20 + wide * len(colours) * part, 24, told, "middle", size=10))
    width = 40 + wide * len(colours)
    drawn = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} 28" width="{}" height="28">{}</svg>').format(
        label, width, width, Markup("").join(bar)
    )
    return Markup(
        '<div class="scale" style="display:flex;flex-wrap:wrap;align-items:center;gap:.5em">{}{}</div>'
    ).format(drawn, label)
