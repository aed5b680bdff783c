"""How the page is written: templates, numbers and names for people, and colours of cells."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from biomass.errors import printable

BLUES = ("#f7fbff", "#deebf7", "#c6dbef", "#9dcae1", "#6aaed6", "#4191c6", "#2070b4", "#08509b", "#08306b")
"""ColorBrewer's Blues, as ``blues`` of ``static/base.js``: read by the colour-blind and in grey."""
ORANGES = ("#fff5eb", "#fee6ce", "#fdd0a2", "#fdae6b", "#fd8d3c", "#f16913", "#d94801", "#a63603", "#7f2704")
"""ColorBrewer's Oranges, for what should not be there: the darker, the more of it."""
OKABE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#f0e442")
"""Okabe & Ito 2008, Color Universal Design; in the order of ``static/base.js``."""
MISSING = "#d9d9d9"


def figure(value: float) -> str:
    """A number for people.

    >>> figure(0.9149), figure(-0.0042), figure(1234.5), figure(float("nan")), figure(0)
    ('0.91', '−0.004', '1234', '–', '0')
    """
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    text = "0" if not size else f"{size:.1g}" if size < 0.00995 else f"{size:.2f}" if size < 100 else f"{size:.0f}"
    return f"−{text}" if value < 0 else text


def percent(value: float) -> str:
    """A share for people.

    >>> percent(0.0412), percent(1), percent(float("nan"))
    ('4.1 %', '100 %', '–')
    >>> percent(0.04), percent(0.004)
    ('4 %', '0.4 %')
    """
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{f'{100 * value:.1f}'.removesuffix('.0')} %"


def span(low: float, high: float) -> str:
    """An interval for people; empty where there is none.

    >>> span(0.881, 0.93), span(float("nan"), float("nan"))
    ('[0.88, 0.93]', '')
    """
    return f"[{figure(low)}, {figure(high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def shorten(text: Any, most: int = 48) -> str:
    """A long name in its beginning and its end, as ``biomass.shorten`` of ``static/base.js``.

    >>> shorten("abcdefghijklmnopqrstuvwxyz", 12)
    'abcdefg…wxyz'
    """
    letters = str(text)
    end = most // 3
    return letters if len(letters) <= most else f"{letters[: most - end - 1]}…{letters[-end:]}"


def name(text: Any, most: int = 48) -> Markup:
    """A name that comes from data: escaped, shortened, whole where the pointer rests on it, broken at its underscores.

    >>> name("<b>"), name("a_b")
    (Markup('<bdi>&lt;b&gt;</bdi>'), Markup('<bdi>a<wbr>_b</bdi>'))
    """
    short = shorten(text, most)
    broken = escape(short).replace("_", Markup("<wbr>_"))
    if short == str(text):
        return Markup("<bdi>{}</bdi>").format(broken)
    return Markup('<bdi title="{}">{}</bdi>').format(str(text), broken)


def shade(goodness: float, shades: Sequence[str] = BLUES) -> Markup:
    """The style of a cell: the better, the darker; ``goodness`` between 0 and 1, grey where it is NaN."""
    if not math.isfinite(goodness):
        return Markup("background:#f4f4f4;color:#444")
    place = min(1.0, max(0.0, goodness)) * (len(shades) - 2)  # the darkest of all is hard to read on
    below = min(len(shades) - 3, int(place))
    low, high = (tuple(int(one[i : i + 2], 16) for i in (1, 3, 5)) for one in shades[below : below + 2])
    mixed = [round(a + (b - a) * (place - below)) for a, b in zip(low, high, strict=True)]
    ink = "#000" if luminance(mixed) > 0.179 else "#fff"  # whichever differs more; at 0.179 both by 4.6 to 1
    return Markup("background:rgb({},{},{});color:{}").format(*mixed, ink)


def luminance(color: Sequence[float]) -> float:
    """How light a colour of red, green and blue in 0..255 is (WCAG 2.2): 0 black, 1 white.

    >>> luminance((255, 255, 255)), luminance((0, 0, 255))
    (1.0, 0.0722)
    """
    shares = [one / 255 for one in color]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _shown(value: Any) -> Any:
    """What a template shows of a value: no sign that would turn the page around, or that cannot be seen."""
    if isinstance(value, str) and not value.isprintable():
        return type(value)(printable(value, "\n\t"))
    return value


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("biomass.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"figure": figure, "percent": percent, "name": name, "shade": shade}
    templates.globals["span"] = span
    return templates


def render(template: str, **values: Any) -> Markup:
    """A file ``templates/<template>.html.jinja`` with values; all that comes from data is escaped."""
    return Markup(_templates().get_template(f"{template}.html.jinja").render(values))
