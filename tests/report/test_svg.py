"""Charts as inline SVG: what is drawn where, and what comes from data stays text."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from biomass.report import shades, svg

EVIL = "<script>alert('1')</script>\"&"


def drawn(markup: str) -> ElementTree.Element:
    """The elements of a chart; it is well-formed."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


def texts(markup: str) -> list[str]:
    return [text.text or "" for text in drawn(markup).iter("text")]


def test_higher_values_are_drawn_higher_and_later_ones_further_to_the_right() -> None:
    chart = svg.chart([svg.Line("a", [0, 1, 3], [0.2, 0.8, 0.5])], "epoch", "accuracy")
    places = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in drawn(chart).iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x2 - x1 == pytest.approx(2 * (x1 - x0), abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)


def test_a_decade_has_the_same_height_everywhere_on_a_logarithmic_axis() -> None:
    chart = svg.chart([svg.Line("a", [0, 1, 2], [0.1, 1, 10])], "", "", log=True)
    y = [float(c.get("cy") or 0) for c in drawn(chart).iter("circle")]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
    assert {"0.1", "1", "10"} <= set(texts(chart))


def test_a_line_has_a_gap_where_a_value_is_missing() -> None:
    chart = svg.chart([svg.Line("a", range(5), [1, 2, np.nan, 2, 1])], "", "")
    paths = [path.get("d") or "" for path in drawn(chart).iter("path") if path.get("fill") == "none"]
    assert [len(re.findall("[ML]", path)) for path in paths] == [2, 2]


def test_an_interval_is_a_band_between_its_ends() -> None:
    bare = svg.chart([svg.Line("a", [0, 1], [1, 2])], "", "")
    banded = svg.chart([svg.Line("a", [0, 1], [1, 2], [0, 1], [2, 3])], "", "")
    assert "fill-opacity" not in bare
    band = next(path for path in drawn(banded).iter("path") if path.get("fill-opacity"))
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", band.get("d") or "")]
    assert heights[0] < heights[3]
    assert heights[1] < heights[2]


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [0.0, 0.0], [-5.0, 1e9]])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_of_little_or_odd_values_can_be_drawn(values, log) -> None:
    assert "nan" not in svg.chart([svg.Line("a", range(len(values)), values)], "x", "y", log=log)


def test_names_on_the_axis_say_what_they_are_and_none_is_markup() -> None:
    names = ["any match", EVIL, "x" * 200]
    for markup in (
        svg.chart([svg.Line(EVIL, [0, 1, 2], [1, 2, 3])], EVIL, EVIL, title=EVIL, names=names, levels={EVIL: 2.0}),
        svg.dots(names, [1, 2, 3], EVIL, title=EVIL, levels={EVIL: 2.0}),
        shades.heat(np.eye(3), names, names, ends=(0, 1), title=EVIL),
        svg.legend(names),
        shades.scale((0, 1), EVIL),
    ):
        assert "<script" not in markup
        assert not list(drawn(markup).iter("script"))
    assert "any match" in texts(svg.dots(names, [1, 2, 3], ""))


def test_dots_stand_at_their_values_and_a_missing_one_is_left_out() -> None:
    markup = svg.dots(["a", "b", "c"], [0.0, np.nan, 1.0], "accuracy", low=[-1, 0, 0.5], high=[1, 1, 1.5])
    assert len(list(drawn(markup).iter("circle"))) == 2
    first, last = (float(c.get("cx") or 0) for c in drawn(markup).iter("circle"))
    lines = [(float(i.get("x1") or 0), float(i.get("x2") or 0)) for i in drawn(markup).iter("line")]
    assert any(low < first < high for low, high in lines)
    assert first < last


def test_each_value_of_a_heat_map_is_drawn_once_in_the_shade_of_its_value() -> None:
    values = np.array([[0.0, 1.0, np.nan], [1.0, 0.5, 7.0]])
    markup = shades.heat(values, ["A", "B"], ["1", "2", "3"], ends=(0, 1))
    found = {path.get("fill"): re.findall(r"M(\d+) (\d+)", path.get("d") or "") for path in drawn(markup).iter("path")}
    assert found[shades.SHADES["up"][0]] == [("0", "0")]
    assert found[shades.SHADES["up"][-1]] == [("1", "0"), ("0", "1"), ("2", "1")]
    assert sum(map(len, found.values())) == 5


def test_shades_grow_in_lightness_so_that_all_readers_see_their_order() -> None:
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in shades.SHADES["up"]]
    assert (np.diff(np.array(channels) @ [0.299, 0.587, 0.114]) > 0).all()


def test_lines_differ_in_more_than_their_colour() -> None:
    looks = [svg.style(i)[1:] for i in range(12)]
    assert len(set(looks)) == 12
