"""Maps of plates: every well in its place, which plates stand out, and how heavy the page becomes."""

import base64
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from biomass.errors import DataError
from biomass.report import plate_maps
from biomass.report.page import as_json, assemble
from biomass.report.section import Section

EVIL = "</script><script>alert('1')</script>\"&"


def wells(plates: int = 3, shape: tuple[int, int] = (8, 12), pairs: int = 2, seed: int = 0) -> pd.DataFrame:
    """Full plates, the first column negative controls."""
    rng = np.random.default_rng(seed)
    height, width = shape
    row, column = np.divmod(np.tile(np.arange(height * width), plates), width)
    table = pd.DataFrame({"plate": np.repeat([f"P{i}" for i in range(plates)], height * width)})
    table["row"], table["column"] = row, column
    table["treatment"] = np.where(column == 0, "DMSO", [f"drug {i % 40}" for i in range(len(table))])
    table["control"] = np.where(column == 0, "negative", "")
    table["cells"] = rng.integers(100, 500, len(table)).astype(float)
    more = {}
    for pair in range(pairs):
        more[f"right|plate|c{pair}"] = np.where(column == 0, np.nan, rng.integers(0, 2, len(table)))
        more[f"distance|plate|c{pair}"] = rng.gamma(3, 0.1, len(table))
    return pd.concat([table, pd.DataFrame(more)], axis=1)


def section(tmp_path, table: pd.DataFrame) -> Section:
    table.to_parquet(tmp_path / "wells.parquet")
    found = plate_maps.plate_maps(tmp_path)
    assert isinstance(found, Section)
    return found


def unpack(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_every_well_is_packed_with_its_place_its_control_and_its_values(tmp_path) -> None:
    table = wells().sample(frac=1, random_state=0)
    data = section(tmp_path, table).data
    assert data is not None
    place = unpack(data["place"], "<u2")
    names = np.array(data["treatment"]["values"])[unpack(data["treatment"]["codes"], "<u2")]
    expected = table.set_index(["plate", "row", "column"])
    cells = next(one for one in data["values"] if one["kind"] == "cells")
    distance = next(one for one in data["values"] if (one["kind"], one["pair"]) == ("distance", "plate · c1"))
    count, levels = unpack(cells["levels"], "<u2"), unpack(distance["levels"], "u1")
    assert [plate["name"] for plate in data["plates"]] == ["P0", "P1", "P2"]
    for plate in data["plates"]:
        assert (plate["rows"], plate["columns"]) == (8, 12)
        for i in range(plate["first"], plate["first"] + plate["count"]):
            one = expected.loc[(plate["name"], place[i] % 32, place[i] // 32 % 64)]
            assert names[i] == one["treatment"]
            assert place[i] // 2048 == (1 if one["control"] else 0)
            assert count[i] == one["cells"]
            value = distance["low"] + levels[i] / 254 * (distance["high"] - distance["low"])
            clipped = np.clip(one["distance|plate|c1"], distance["low"], distance["high"])
            assert value == pytest.approx(clipped, abs=(distance["high"] - distance["low"]) / 500)


def test_what_is_not_known_of_a_well_is_not_drawn_as_a_value(tmp_path) -> None:
    data = section(tmp_path, wells()).data
    assert data is not None
    right = next(one for one in data["values"] if one["kind"] == "right")
    controls = unpack(data["place"], "<u2") >= 2048
    np.testing.assert_array_equal(unpack(right["levels"], "u1") == 255, controls)


@pytest.mark.parametrize(
    ("shape", "drawn"), [((8, 12), (8, 12)), ((16, 24), (16, 24)), ((32, 48), (32, 48)), ((5, 7), (6, 8))]
)
def test_a_plate_is_drawn_in_the_smallest_format_that_has_its_wells(tmp_path, shape, drawn) -> None:
    data = section(tmp_path, wells(2, shape, 1)).data
    assert data is not None
    assert [(plate["rows"], plate["columns"]) for plate in data["plates"]] == [drawn] * 2


def test_plates_of_one_experiment_have_one_format_though_few_wells_were_used(tmp_path) -> None:
    table = wells(3)
    table["experiment"] = table["plate"].map({"P0": "a", "P1": "a", "P2": "b"})
    few = (table["plate"] != "P0") & (table["row"] + table["column"] > 2)
    data = section(tmp_path, table[~few]).data
    assert data is not None
    assert [(plate["rows"], plate["columns"]) for plate in data["plates"]] == [(8, 12), (8, 12), (3, 4)]


def test_the_plate_that_is_unlike_the_others_is_named_with_its_value(tmp_path) -> None:
    table = wells(8)
    table.loc[table["plate"] == "P5", "cells"] /= 4
    found = section(tmp_path, table)
    assert "P5</bdi>: cell count 77 over 96 wells; the median plate has 3" in found.html
    assert found.data is not None
    assert max(found.data["plates"], key=lambda plate: plate["odd"])["name"] == "P5"


def test_no_plate_stands_out_where_they_differ_by_chance(tmp_path) -> None:
    told = [section(tmp_path, wells(8, pairs=3, seed=seed)).html for seed in range(5)]
    assert sum("No plate stands out" not in html for html in told) <= 1
    assert "No plate stands out" in section(tmp_path, wells(8, pairs=0).assign(cells=100.0)).html


def test_of_many_plates_the_odd_ones_are_drawn_and_this_is_said(tmp_path) -> None:
    table = wells(90)
    table.loc[table["plate"] == "P77", "cells"] /= 4
    found = section(tmp_path, table)
    assert found.data is not None
    assert len(found.data["plates"]) == plate_maps.MOST_PLATES
    assert "P77" in [plate["name"] for plate in found.data["plates"]]
    assert "60 of 90 plates are drawn" in found.html


def test_fifty_plates_of_384_wells_before_and_after_stay_light(tmp_path) -> None:
    found = section(tmp_path, wells(50, (16, 24), 40))
    assert len(found.html) + len(as_json(found.data or {})) < 1_300_000
    assert "Further pairs of statistics and correction, left out" in found.html


def test_the_mean_over_plates_is_there_without_a_script(tmp_path) -> None:
    table = wells(4)
    table["cells"] = np.where(table["row"] == 0, 50.0, 400.0)
    html = section(tmp_path, table).html
    assert "Mean over 4 plates of 96 wells" in html
    assert html.count("<svg") >= 2 * 5  # accuracy and distance of two pairs, cells; each with its scale


def test_names_are_text(tmp_path) -> None:
    table = wells(6)
    table["plate"] = table["plate"].replace("P3", EVIL)
    table["treatment"] = table["treatment"].replace("drug 3", EVIL)
    table.loc[table["plate"] == EVIL, "cells"] /= 4
    found = section(tmp_path, table)
    assert EVIL in [plate["name"] for plate in (found.data or {})["plates"]]
    assert "<script" not in found.html + as_json(found.data or {})
    assert json.loads(as_json(found.data or {})) == json.loads(json.dumps(found.data))


def test_several_rows_of_a_well_are_averaged_and_wells_without_a_place_left_out(tmp_path) -> None:
    table = wells(2, pairs=1)
    again = table[(table["plate"] == "P0") & (table["row"] == 0) & (table["column"] == 1)]
    nowhere = table.head(2).assign(row=-1)
    found = section(tmp_path, pd.concat([table, again.assign(cells=again["cells"] + 10), nowhere]))
    assert "several rows, whose mean is drawn: 1" in found.html
    assert "without a place, which are not drawn: 2" in found.html
    data = found.data or {}
    at = int(np.flatnonzero(unpack(data["place"], "<u2") == 32)[0])
    assert unpack(data["values"][0]["levels"], "<u2")[at] == again["cells"].iloc[0] + 5


def test_what_is_missing_is_said(tmp_path) -> None:
    assert "wells.parquet" in str(plate_maps.plate_maps(tmp_path))
    wells().drop(columns=["row", "column"]).to_parquet(tmp_path / "wells.parquet")
    assert "not known" in str(plate_maps.plate_maps(tmp_path))
    wells().assign(row=-1).to_parquet(tmp_path / "wells.parquet")
    assert "no well has a place" in str(plate_maps.plate_maps(tmp_path))
    (tmp_path / "wells.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"wells\.parquet"):
        plate_maps.plate_maps(tmp_path)


def test_places_alone_are_enough_for_the_layout(tmp_path) -> None:
    data = section(tmp_path, wells()[["plate", "row", "column"]]).data
    assert data is not None
    assert data["values"] == []
    assert not data["controls"]


def test_in_a_browser_maps_are_drawn_the_pointer_names_a_well_and_a_choice_changes_colours(tmp_path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    table = wells(3)
    table["plate"] = table["plate"].replace("P1", EVIL)
    wrong: list[str] = []
    page = tmp_path / "page.html"
    page.write_text(assemble("a run", "", [section(tmp_path, table)]), encoding="utf-8")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        for event in ("console", "pageerror", "dialog"):
            tab.on(event, lambda found: wrong.append(str(found)))
        tab.goto(page.as_uri())
        maps = tab.locator("#plates canvas")
        assert maps.count() == 3
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        first, looks = maps.nth(1), set()
        width = first.bounding_box()["width"]
        side = (width - 17) / 12  # of a well
        first.hover(position={"x": 16 + 4.5 * side, "y": 16 + 2.5 * side})
        told = tab.inner_text("#tooltip").splitlines()
        well = table[(table["plate"] == "P1") | (table["plate"] == "P0")].query("row == 2 and column == 4").iloc[0]
        assert told[:2] == ["P0, C05", well["treatment"]]
        assert f"cell count: {well['cells']:.0f}" in told
        for kind in ("right", "distance", "cells", "layout"):
            tab.locator("#plates select").first.select_option(kind)
            looks.add(first.evaluate("canvas => canvas.toDataURL()"))
        assert len(looks) == 4
        browser.close()
    assert wrong == []
