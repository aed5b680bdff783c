"""The page as text: what is on it, what is said of what is not, and names that are not nice."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_runs import BREAKOUT, HOSTILE, SCRIPT, write_judged, write_stress, write_trained

from biomass.commands import report
from biomass.errors import DataError
from biomass.report import files, ladder, maps, packed
from biomass.report.judged import Judged, read_judged
from biomass.report.page import write_report


class Page(HTMLParser):
    """What a browser would make of a page: elements, and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def headings(self) -> list[str]:
        return [attributes["id"] or "" for tag, attributes in self.tags if tag == "section"]

    @property
    def titles(self) -> list[str]:
        return [str(attributes["title"]) for _, attributes in self.tags if "title" in attributes]


def page_of(*folders: Path) -> Page:
    out = folders[0].parent / "page.html"
    return Page(write_report(folders, out).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return write_judged(tmp_path_factory.mktemp("runs") / "a run")


@pytest.fixture(scope="module")
def page(judged):
    return page_of(judged)


def test_the_verdict_comes_first_and_what_was_skipped_and_the_command_last(page) -> None:
    assert page.headings == ["verdict", "factorial", "ladder", "maps", "plates", "metrics", "skipped", "provenance"]
    assert "plate is predicted right for 91 %" in page.text
    assert "biomass evaluate profiles.parquet" in page.text
    assert "sha256:6f1ed002ab5595859014ebf0951522d9" in page.text
    assert re.search(r"plate\s+strong 31 %, p 0.001\s+none 0.2 %, p 0.4", page.text)
    assert "all wells are of one source" in page.text


def test_nothing_on_the_page_comes_from_elsewhere(page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "audio", "video")
        for name in ("src", "href"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    style = "".join(line for line in page.text.splitlines() if "url(" in line or "@import" in line)
    assert not style


def test_only_the_scripts_of_the_package_are_allowed_to_run(page) -> None:
    policy = next(str(attributes["content"]) for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert "default-src 'none'" in policy
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    running = [text for text, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert all(json.loads(text) for text, kind in zip(page.scripts, kinds, strict=True) if kind)
    assert not [text for text in running if "__pwned" in text]


def test_names_are_shown_as_they_are_and_never_markup(page) -> None:
    assert SCRIPT in page.text
    assert BREAKOUT in page.text
    assert not [attributes for tag, attributes in page.tags if tag == "img" and attributes.get("src") == "x"]
    data = json.loads(page.scripts[[a.get("id") for t, a in page.tags if t == "script"].index("maps-data")])
    assert set(data["fields"]["plate"]["values"]) == {packed.shorten(name, 60) for name in HOSTILE}


def test_a_long_name_is_shortened_and_whole_under_the_pointer(tmp_path) -> None:
    run = write_judged(tmp_path / "run")
    metrics = json.loads((run / files.METRICS).read_text())
    (run / files.METRICS).write_text(json.dumps({"y" * 200: metrics["plate"]}))
    found = page_of(run)
    assert "y" * 200 in found.titles
    assert "y" * 100 not in found.text


def test_every_cell_has_its_value_interval_and_chance(page) -> None:
    first = page.text.split("plate predicted from other wells")[1]
    assert re.search(r"running\s+0\.91\[0\.\d\d, 0\.9\d\]chance 0\.04\s+0\.8\d\[", first)


def test_the_better_a_cell_the_darker_whichever_direction_is_better(judged) -> None:
    found = read_judged(judged)
    assert isinstance(found, Judged)
    for key, about in found.metrics.items():
        scores = [one for one in found.of(key).values() if np.isfinite(one["value"])]
        values = np.array([one["value"] for one in scores]) * (1 if about.better == "higher" else -1)
        good = np.array([one["goodness"] for one in scores])
        assert np.array_equal(np.argsort(values, kind="stable"), np.argsort(good, kind="stable"))
        assert good.min() == 0
        assert good.max() == 1


def test_null_rows_stand_at_the_end_and_refit_only_is_marked(page, judged) -> None:
    heat = next(place for place, (_, attributes) in enumerate(page.tags) if attributes.get("class") == "heat")
    floors = [attributes.get("class") for tag, attributes in page.tags[heat:] if tag == "tr"][1:6]
    assert floors == [None, None, "floor", "floor", "floor"]
    assert read_judged(judged).refit_only == {"harmony"}
    assert page.text.count("refit only") == 5 + 1


def test_wells_survive_being_packed(judged) -> None:
    table = pd.read_parquet(judged / files.WELLS)
    one = maps.maps_of(table)[0]
    low, high = one.x.min(), one.x.max()
    read = np.frombuffer(base64.b64decode(packed.place(one.x, low, high - low)), "<u2") / packed.LARGEST
    assert np.allclose(low + read * (high - low), one.x, atol=(high - low) / packed.LARGEST)
    names = packed.names(table["treatment"])
    codes = np.frombuffer(base64.b64decode(names["codes"]), "<u2")
    assert [names["values"][code] for code in codes] == [packed.shorten(name, 60) for name in table["treatment"]]


def test_more_wells_than_are_drawn_are_taken_evenly_over_plates_and_that_is_said(tmp_path, monkeypatch) -> None:
    run = write_judged(tmp_path / "run", plates=6, wells=96)
    monkeypatch.setattr(maps, "DRAWN", 60)
    section = maps.maps(run)
    assert "60 of 576 wells" in section.html
    codes = np.frombuffer(base64.b64decode(section.data["fields"]["plate"]["codes"]), "<u2")
    assert np.bincount(codes).tolist() == [10] * 6


def test_wells_without_a_place_are_missing_in_that_map_alone(tmp_path) -> None:
    run = write_judged(tmp_path / "run", plates=2)
    table = pd.read_parquet(run / files.WELLS)
    table.loc[:4, ["map_x|running|none", "map_y|running|none"]] = np.nan
    table.to_parquet(run / files.WELLS)
    panels = maps.maps(run).data["panels"]
    missing = [(np.frombuffer(base64.b64decode(one["x"]), "<u2") == packed.LARGEST + 1).sum() for one in panels]
    assert missing == [5, 0, 0]


@pytest.mark.parametrize(
    ("write", "section", "said"),
    [
        (write_trained, "curves", ["On val, 55 % of the images", "25 classes: 4 %", "epoch 2, had 60 %", "20 %"]),
        (write_stress, "stress", ["the statistics 'plate' answer 70 %", "65 % to 75 %", "'running' answer 40 %"]),
    ],
)
def test_runs_that_were_not_judged_have_a_page_with_what_is_there(tmp_path, write, section, said) -> None:
    found = page_of(write(tmp_path / "run"))
    assert found.headings == ["verdict", section, "skipped", "provenance"]
    assert not [text for text in said if text not in found.text]
    assert files.METRICS in found.text  # why there is no more


def test_profiles_that_were_not_judged_are_counted(tmp_path) -> None:
    run = write_trained(tmp_path / "run")
    table = pd.DataFrame({"Metadata_Plate": ["a", "b"], "emb_0000": [0.0, 1.0], "emb_0001": [0.0, 1.0]})
    table.to_parquet(run / "profiles_wells.parquet")
    assert "2 wells with 2 features" in page_of(run).text


@pytest.mark.parametrize(
    ("name", "content", "lost"),
    [
        ("metrics.json", "[" * 20_000, {"factorial", "metrics"}),
        ("metrics.json", '{"a": {"none": {"m": {"value": 1' + 400 * "0" + ', "family": [1]}}}}', {"factorial"}),
        ("samples.json", '{"plates": [{}], "channels": 3, "height": "x", "width": 1e400}', {"samples"}),
        ("metrics.jsonl", '{"step": 1' + 400 * "0" + ', "epoch": 1, "val/accuracy": Infinity}', set()),
    ],
)
def test_values_that_no_run_writes_cost_no_more_than_their_section(tmp_path, name, content, lost) -> None:
    run = write_judged(tmp_path / "run", plates=2)
    before = set(page_of(run).headings) - lost
    (run / name).write_text(content)
    assert before <= set(page_of(run).headings)


@pytest.mark.parametrize("name", [files.METRICS, files.LADDER, files.WELLS])
@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"b": [1]}}'])
def test_a_damaged_file_costs_its_section_alone(tmp_path, name, content) -> None:
    run = write_judged(tmp_path / "run", plates=2)
    (run / name).write_text(content)
    found = page_of(run)
    lost = {files.METRICS: {"factorial", "metrics"}, files.LADDER: {"ladder"}, files.WELLS: {"maps", "plates"}}[name]
    assert {"verdict", "factorial", "ladder", "maps", "plates", "metrics", "skipped", "provenance"} - set(
        found.headings
    ) == lost
    assert name in found.text


def test_runs_side_by_side_have_a_column_each(tmp_path) -> None:
    runs = [write_judged(tmp_path / "a", plates=2), write_judged(tmp_path / "b", plates=2, hostile=False)]
    runs.append(write_trained(tmp_path / "c"))
    about = json.loads((runs[1] / files.EVALUATION).read_text())
    about["fingerprint"] = "sha256:other"
    (runs[1] / files.EVALUATION).write_text(json.dumps(about))
    write_report([runs[1]], runs[1] / "report.html")
    found = page_of(*runs)
    assert found.headings == ["verdict", "metrics", "training", "curves", "differences"]
    assert [a["href"] for t, a in found.tags if t == "a" and not str(a["href"]).startswith("#")] == ["b/report.html"]
    assert "sha256:other" in found.text
    assert "55 %" in found.text


def test_the_command_writes_into_the_folder_of_the_run_or_of_the_comparison(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write_trained(Path("runs/a")), write_stress(Path("runs/b"))
    report.main([str(one)])
    report.main([str(one), str(two)])
    report.main([str(one), "--out", "elsewhere"])
    report.main([str(one), "--out", "pages/mine.html"])
    written = sorted(str(path) for path in Path().rglob("*.html"))
    assert written == ["elsewhere/report.html", "pages/mine.html", "runs/a/report.html", "runs/comparison/report.html"]


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_folder_without_a_run_is_one_line(tmp_path, monkeypatch, place) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(f"'{place}'")):
        write_report([Path(place)], Path("page.html"))
    with pytest.raises(SystemExit, match="error: "):
        report.main([place])
    assert not list(tmp_path.rglob("*.html"))


def test_a_damaged_verdict_is_said_and_the_rest_is_there(tmp_path) -> None:
    run = write_judged(tmp_path / "run", plates=2)
    (run / files.EVALUATION).write_text("{")
    found = page_of(run)
    assert {"factorial", "ladder", "maps", "metrics", "skipped"} <= set(found.headings)
    assert f"'{files.EVALUATION}' is damaged" in found.text


def test_of_several_what_is_no_run_is_left_out_and_that_is_said(tmp_path, caplog) -> None:
    run, other = write_trained(tmp_path / "run"), tmp_path / "<b>empty"
    other.mkdir()
    found = page_of(run, other)
    assert "1 run side by side" in found.text
    assert "<b>empty' holds no run" in found.text
    assert "<b>empty' holds no run" in caplog.text


def test_a_restriction_of_which_nothing_is_known_is_not_drawn_and_the_reason_is_said(page, judged) -> None:
    labels = [str(attributes.get("aria-label")) for tag, attributes in page.tags if tag == "svg"]
    assert "mechanism, running" in labels
    drawn = page.text.split("The ladder")[-1].split("The numbers")[0]
    assert "not the same experiment (mechanism): all wells of a mechanism are of one experiment" in drawn
    assert re.findall(r"none, (not the same experiment): 0", drawn) == ["not the same experiment"] * 2  # replicates
    assert len(re.findall(r"untrained \(none\), not the same experiment: 0", drawn)) == 2  # in both panels
    table = pd.read_csv(judged / files.LADDER)
    table.assign(value=np.nan).to_csv(judged.parent / files.LADDER, index=False)
    assert ladder.ladder(judged.parent) == "all wells of a mechanism are of one experiment"
