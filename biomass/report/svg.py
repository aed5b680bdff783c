"""Charts as inline SVG: they need no script, scale with the page, and print sharply.

Lines differ in colour, dash and marker, for readers who do not tell colours apart and for black ink. Values as shades
are in :mod:`biomass.report.shades`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

from biomass.report.markup import OKABE, shorten
from biomass.report.markup import name as named

COLOURS = OKABE[:7]  # the yellow is faint on white
DASHES = ("", "7 3", "9 2 2 2")
DOTTED = "1.5 3"
MARKERS = ("circle", "square", "triangle", "diamond")
GRID, GREY = "#d9d9d9", "#6b6b6b"

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44
"""Margins of a chart, in its units, which are pixels where there is room."""

_DECADES = 1e-4  # values below this share of the largest lie on the lower end of a logarithmic axis
LETTER = 0.62  # mean width of a letter, in its height


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        name: in the legend, and shown where the pointer rests.
        x: (N,) places; the numbers 0 … of the names, where the axis has names.
        y: (N,) values; the line has a gap where one is not finite.
        low: (N,) lower ends of the intervals; empty: none.
        high: (N,) upper ends.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Style(NamedTuple):
    """How a line looks."""

    colour: str
    dash: str
    marker: str


def style(number: int) -> Style:
    """The look of line ``number``; a line that lies upon another one shows through its gaps.

    >>> style(1)
    Style(colour='#e69f00', dash='7 3', marker='square')
    """
    return Style(*(of[number % len(of)] for of in (COLOURS, DASHES, MARKERS)))


def ticks(low: float, high: float, most: int = 5, log: bool = False) -> list[float]:
    """Round values between two others.

    >>> ticks(0, 1), ticks(0.003, 40, log=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.01, 0.1, 1.0, 10.0])
    """
    if log:
        values = LogLocator(numticks=most + 2).tick_values(low, high)
        return [float(value) for value in values if low * 0.999 <= value <= high * 1.001]
    values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    room = 1e-9 * (high - low)
    return [float(np.round(value, 12)) for value in values if low - room <= value <= high + room]


def chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    names: Sequence[str] = (),
    y: tuple[float | None, float | None] = (None, None),
    levels: Mapping[str, float] | None = None,
    log: bool = False,
    percent: bool = False,
    size: tuple[int, int] = (364, 250),
    styles: Sequence[Style] = (),
) -> Markup:
    """Lines with their intervals over one axis.

    Args:
        lines: at least one. A legend is not part of the chart, see :func:`legend`.
        x_label: below the axis; may be empty.
        y_label: above the other axis; likewise.
        title: above the chart, and what is read aloud.
        names: of the places 0 … on the axis, where it has names, not numbers.
        y: ends of the axis; None: of what is shown.
        levels: horizontal lines, such as that of chance: name → value.
        log: of the values; those far below the largest, and 0, lie on the axis.
        percent: values are shares, shown as percent.
        size: width and height.
        styles: of the lines; empty: :func:`style` of their numbers.

    >>> print(chart([Line("plate <1>", [0, 1, 2], [0.1, 0.4, 0.5])], "epoch", "accuracy")[:24])
    <figure class="chart" st
    """
    width, height = size
    looks = styles or [style(i) for i in range(len(lines))]
    slant = _slant(names) if names else 0
    bottom = BOTTOM + slant - (0 if x_label else 18)
    height += bottom - BOTTOM
    ends = _ends(lines, y, [*(levels or {}).values()], log)
    xs = [value for line in lines for value in line.x]
    first, last = (-0.3, len(names) - 0.7) if names else (min(xs, default=0.0), max(xs, default=1.0))
    if first == last:
        first, last = first - 0.5, last + 0.5

    def across(value: float) -> float:
        return LEFT + (value - first) / (last - first) * (width - LEFT - RIGHT)

    def down(value: float) -> float:
        low, high, at = (np.log10(each) for each in (*ends, value)) if log else (*ends, value)
        return float(TOP + 8 + (high - at) / (high - low) * (height - TOP - 8 - bottom))

    parts = [Markup("")]
    for value in ticks(*ends, log=log):
        told = as_tick(value, percent)
        parts.append(_grid(LEFT, width - RIGHT, down(value)) + text(LEFT - 5, down(value) + 3.5, told, "end"))
    if names:
        parts += [_name(across(i), height - bottom + 12, name, names) for i, name in enumerate(names)]
    else:
        parts += [
            text(across(value), height - bottom + 14, as_tick(value), "middle") for value in ticks(first, last, 6)
        ]
    parts.append(text((LEFT + width - RIGHT) / 2, height - 6, x_label, "middle"))
    parts.append(text(2, TOP - 1, y_label, "start"))
    for name, value in (levels or {}).items():
        parts.append(
            Markup(
                '<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="{3}" stroke-dasharray="{4}" '
                'stroke-width="1.5"/>'
            ).format(LEFT, width - RIGHT, down(value), GREY, DOTTED)
        )
        parts.append(text(width - RIGHT, down(value) - 3, name, "end", colour=GREY))
    for line, look in zip(lines, looks, strict=True):
        parts.append(_drawn(line, look, across, down, ends))
    return drawing(Markup("").join(parts), width, height, title)


def dots(
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    title: str = "",
    ends: tuple[float | None, float | None] = (None, None),
    levels: Mapping[str, float] | None = None,
    percent: bool = False,
    kinds: Sequence[int] = (),
    width: int = 364,
    step: int = 15,
) -> Markup:
    """A row a name with a dot, and its interval, over a common axis.

    Args:
        names: (N,) of the rows, from top to bottom.
        values: (N,) where the dots are; a row without a finite value has none.
        label: below the axis; may be empty.
        low: (N,) lower ends of intervals; empty: none.
        high: (N,) upper ends.
        title: above the chart.
        ends: of the axis; None: of what is shown.
        levels: vertical lines, such as that of chance: name → value.
        percent: values are shares, shown as percent.
        kinds: (N,) number of the :func:`style` of each dot; empty: 0.
        width: of the chart.
        step: height of a row; below 9 the rows have no names, which are shown where the pointer rests.

    >>> "taxol" in dots(["taxol", "DMSO"], [0.2, 0.4], "accuracy")
    True
    """
    shown = step >= 9
    room = (
        min(width * 0.5, max((len(shorten(name, 30)) for name in names), default=0) * 11 * LETTER + 8) if shown else 12
    )
    bottom = BOTTOM if label else BOTTOM - 18
    height = step * len(names) + TOP + bottom + (12 if levels else 0)
    top = TOP + (12 if levels else 0)
    first, last = _ends([Line("", (), values, low, high)], ends, [*(levels or {}).values()], False)

    def across(value: float) -> float:
        return float(room + 6 + (value - first) / (last - first) * (width - room - 24))

    parts = [Markup("")]
    for value in ticks(first, last, 5):
        told = as_tick(value, percent)
        at = across(value)
        parts.append(
            Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" stroke="{3}"/>').format(
                at, top, height - bottom + 4, GRID
            )
        )
        parts.append(text(at, height - bottom + 16, told, "middle"))
    for i, (name, value) in enumerate((levels or {}).items()):
        parts.append(
            Markup(
                '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" stroke="{3}" stroke-dasharray="{4}" '
                'stroke-width="1.5"/>'
            ).format(across(value), top, height - bottom + 4, GREY, (DASHES[1], DOTTED)[i % 2])
        )
        parts.append(text(across(value), top - 3, name, "middle", colour=GREY))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = top + step * (i + 0.5)
        look = style(kinds[i] if len(kinds) else 0)
        told = as_tick(value, percent)
        inner = [Markup("<title>{}: {}</title>").format(name[:400], told)]
        if shown:
            inner.append(text(room, y + 3.5, shorten(name, 30), "end"))
        if len(low) and np.isfinite([low[i], high[i]]).all():
            inner.append(
                Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="1.5"/>').format(
                    across(low[i]), across(high[i]), y, y, look.colour
                )
            )
        if np.isfinite(value):
            inner.append(marker(across(value), y, look))
        parts.append(Markup("<g>{}</g>").format(Markup("").join(inner)))
    parts.append(text((room + width) / 2, height - 6, label, "middle"))
    return drawing(Markup("").join(parts), width, height, title)


def legend(names: Iterable[str], styles: Sequence[Style] = ()) -> Markup:
    """What the lines of charts are, in their order.

    >>> legend(["running", "plate"]).count("<svg")
    2
    """
    entries = []
    for i, name in enumerate(names):
        look = styles[i] if styles else style(i)
        sample = Markup(
            '<svg aria-hidden="true" width="30" height="12" viewBox="0 0 30 12">'
            '<path d="M1 6H29" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>{}</svg>'
        ).format(look.colour, look.dash or "none", marker(15, 6, look))
        entries.append(
            Markup('<li style="display:inline-flex;align-items:center;gap:.35em">{}{}</li>').format(
                sample, named(name, 40)
            )
        )
    return Markup(
        '<ul class="legend" style="list-style:none;padding:0;margin:.4em 0;display:flex;flex-wrap:wrap;gap:.2em 1.1em">'
        "{}</ul>"
    ).format(Markup("").join(entries))


def side_by_side(charts: Iterable[Markup], align: str = "start") -> Markup:
    """Charts in rows, as many in a row as the page has room for; aligned at their titles, or at their ``end``."""
    return Markup(
        '<div class="charts" style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-{}">{}</div>'
    ).format(align, Markup("").join(charts))


def marker(x: float, y: float, look: Style, radius: float = 3.4) -> Markup:
    """The marker of a line at a place."""
    r = radius
    shape = {
        "circle": Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}"').format(x, y, r),
        "square": Markup('<path d="M{:.1f} {:.1f}h{}v{}h{}z"').format(x - r, y - r, 2 * r, 2 * r, -2 * r),
        "triangle": Markup('<path d="M{:.1f} {:.1f}l{} {}h{}z"').format(x, y - 1.2 * r, 1.2 * r, 2.2 * r, -2.4 * r),
        "diamond": Markup('<path d="M{0:.1f} {1:.1f}l{2} {2}l-{2} {2}l-{2} -{2}z"').format(x, y - 1.3 * r, 1.3 * r),
    }[look.marker]
    return shape + Markup(' fill="{}" stroke="white" stroke-width="0.6"/>').format(look.colour)


def _drawn(
    line: Line, look: Style, across: Callable[[float], float], down: Callable[[float], float], ends: tuple[float, float]
) -> Markup:
    """A line, its band and its markers; these are left out where they would touch each other."""
    low, high = ends
    values = np.clip(np.asarray(line.y, float), low, high)
    known = np.isfinite(np.asarray(line.y, float))
    parts = [Markup("<title>{}</title>").format(line.name[:400])]
    for run in _runs(known):
        places = [(across(line.x[i]), down(values[i])) for i in run]
        if len(line.low):
            band = [(across(line.x[i]), down(min(max(line.high[i], low), high))) for i in run]
            band += [(across(line.x[i]), down(min(max(line.low[i], low), high))) for i in reversed(run)]
            band = [place for place in band if np.isfinite(place).all()]
            if len(band) > 2:
                parts.append(Markup('<path d="{}" fill="{}" fill-opacity="0.15"/>').format(_path(band), look.colour))
        parts.append(
            Markup(
                '<path d="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-dasharray="{}" '
                'stroke-linejoin="round"/>'
            ).format(_path(places), look.colour, look.dash or "none")
        )
        every = max(1, -(-len(places) // 12))
        parts += [marker(x, y, look) for x, y in places[::every]]
    return Markup("<g>{}</g>").format(Markup("").join(parts))


def _runs(known: np.ndarray) -> list[list[int]]:
    """Places without a gap between them."""
    found = itertools.groupby(range(len(known)), key=lambda i: bool(known[i]))
    return [list(run) for there, run in found if there]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _ends(
    lines: Sequence[Line], given: tuple[float | None, float | None], others: Sequence[float], log: bool
) -> tuple[float, float]:
    """The ends of an axis that shows all of this, a little beyond it."""
    values = np.array([v for line in lines for of in (line.y, line.low, line.high) for v in of] + [*others], float)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    if log:
        low = max(low, high * _DECADES)
        low, high = 10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))
        return (low, high * 10) if low == high else (low, high)
    if low == high:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    room = 0.06 * (high - low)
    return low - room if given[0] is None else given[0], high + room if given[1] is None else given[1]


def _slant(names: Sequence[str]) -> int:
    """Room for names that are too many to lie flat."""
    longest = max(len(shorten(name, 16)) for name in names)
    return 0 if longest * len(names) <= 44 else round(longest * 11 * LETTER * 0.75)


def _name(x: float, y: float, name: str, names: Sequence[str]) -> Markup:
    every = -(-len(names) // 28)
    if names.index(name) % every:
        return Markup("")
    if not _slant(names):
        return text(x, y + 2, shorten(name, 16), "middle")
    return Markup(
        '<text x="{0:.1f}" y="{1:.1f}" font-size="11" fill="currentColor" text-anchor="end" '
        'transform="rotate(-45 {0:.1f} {1:.1f})"><title>{2}</title>{3}</text>'
    ).format(x + 3, y, name[:400], shorten(name, 16))


def _grid(left: float, right: float, y: float) -> Markup:
    return Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(left, right, y, y, GRID)


def text(x: float, y: float, text: str, anchor: str, *, colour: str = "currentColor", size: int = 11) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" font-size="{}" text-anchor="{}" fill="{}">{}</text>').format(
        x, y, size, anchor, colour, text
    )


def as_tick(value: float, percent: bool = False) -> str:
    """A value of an axis."""
    value = 100 * value if percent else value
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return text.replace("-", "−") + (" %" if percent else "")


def drawing(inner: Markup, width: int, height: int, title: str) -> Markup:
    """The drawing under its title, never wider than the page."""
    caption = Markup('<figcaption style="font-weight:600">{}</figcaption>').format(title) if title else Markup("")
    return Markup(
        '<figure class="chart" style="margin:0;width:min(100%,{}px);break-inside:avoid">{}<svg role="img" '
        'aria-label="{}" viewBox="0 0 {} {}" width="{}" style="max-width:100%;height:auto">{}</svg></figure>'
    ).format(width, caption, title, width, height, width, inner)
