"""Sections about what a run did and saw: learning, stress, sample images, layers, effects of the place."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from biomass.errors import DataError
from biomass.report import samples
from biomass.report.curves import compare_curves, learning_curves
from biomass.report.drift import drift
from biomass.report.layers import layer_distances
from biomass.report.position import position
from biomass.report.section import Section
from biomass.report.stress import stress_test

EVIL = "</script><script>alert('1')</script>\"&"


def lines_of(html: str, called: str) -> int:
    """How many lines of charts have this name."""
    return html.count(f"<title>{called}</title>")


def write_log(folder, epochs: int = 3, steps: int = 10, splits: tuple[str, ...] = ("val", "test")) -> None:
    log = []
    for epoch in range(epochs):
        step = (epoch + 1) * steps
        log.append({"step": step, "epoch": epoch, "train/loss": 3.0 - epoch, "train/gradient_norm": 1.0 + epoch})
        found = {f"{split}/accuracy": 0.2 + 0.1 * epoch for split in splits}
        log.append({"step": step, "epoch": epoch + 1, **found, "val/cell_type/HUVEC": 0.5})
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 4')


def section(found: Section | str) -> Section:
    assert isinstance(found, Section), found
    assert "<script" not in found.html
    return found


def test_learning_curves_are_over_epochs_and_say_the_last_accuracies(tmp_path) -> None:
    write_log(tmp_path)
    html = section(learning_curves(tmp_path)).html
    assert ">epoch<" in html
    assert lines_of(html, "val") == 1
    assert lines_of(html, "train") == 2  # loss, gradient
    assert re.search(r"val</bdi> 40 %.*test</bdi> 40 %", html)
    assert "HUVEC" not in html


def test_a_long_log_is_averaged_to_a_light_curve(tmp_path) -> None:
    log = [{"step": i, "epoch": 0, "train/loss": 1.0 + (i % 2)} for i in range(3_000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    html = section(learning_curves(tmp_path)).html
    assert len(html) < 20_000
    assert ">step<" in html


def test_plates_are_sorted_by_accuracy_and_the_worst_is_named(tmp_path) -> None:
    write_log(tmp_path)
    table = pd.DataFrame(
        {"plate": ["a", EVIL, "c"], "images": 9, "accuracy": [0.9, 0.1, 0.5], "split": "test", "epoch": 3}
    )
    table.to_csv(tmp_path / "plates.csv", index=False)
    html = section(learning_curves(tmp_path)).html
    assert re.search(r"worst 10 % \(<bdi[^>]*>&lt;/script", html)
    assert html.index("<title>a: 90 %") < html.index("<title>c: 50 %") < html.index(": 10 %</title>")


def test_several_runs_share_a_chart_a_split(tmp_path) -> None:
    for name in ("one", "two"):
        write_log(tmp_path / name)
        plates = pd.DataFrame({"plate": ["a", "b"], "accuracy": [0.9, 0.1], "split": "test"})
        plates.to_csv(tmp_path / name / "plates.csv", index=False)
    write_log(tmp_path / "three", splits=("val",))
    found = section(compare_curves({name: tmp_path / name for name in ("one", "two", "three")}))
    captions = re.findall(r"<figcaption[^>]*>([^<]*)<", found.html)
    assert captions == ["accuracy, val", "accuracy, test", "loss, train", "test"]
    assert lines_of(found.html, "one") == 3
    assert lines_of(found.html, "three") == 2


def test_a_run_that_trained_nothing_has_no_learning_curves(tmp_path) -> None:
    assert "no network was trained" in str(learning_curves(tmp_path))
    assert "no network was trained" in str(compare_curves({"a": tmp_path}))


def write_stress(folder) -> None:
    rows = [(word, "wells", value, 5, a, a - 0.1, a + 0.1) for word in ("running", "plate") for value, a in
            (("all", 0.6), ("1", 0.2), ("16", 0.5))]  # fmt: skip
    rows += [("plate", "label_shift", value, 5, 0.4, 0.3, 0.5) for value in ("0.1", "inf")]
    columns = ["statistics", "axis", "value", "repeats", "accuracy", "low", "high"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "stress.csv", index=False)
    (folder / "stress.json").write_text(json.dumps({"classes": 25}))


def test_a_stress_test_has_a_chart_an_axis_a_line_a_word_and_chance(tmp_path) -> None:
    write_stress(tmp_path)
    html = section(stress_test(tmp_path)).html
    assert (lines_of(html, "running"), lines_of(html, "plate")) == (1, 2)
    assert html.count(">chance<") == 2
    assert "Accuracy with all wells of a plate (with 1 well): <bdi>running</bdi> 60 % (20 %)" in html
    assert html.index(">16<") < html.index(">all<")


def test_the_drift_of_a_stress_test_is_shown_and_that_of_a_judgement_is_not_taken_for_it(tmp_path) -> None:
    write_stress(tmp_path)
    (tmp_path / "drift.csv").write_text(
        "statistics,axis,value,repeats,drift,low,high\nplate,prospective,4,1,.5,.4,.6\n"
    )
    assert "still change" in section(stress_test(tmp_path)).html
    (tmp_path / "drift.csv").write_text("statistics,correction,metric\nplate,none,drift\n")
    assert "still change" not in section(stress_test(tmp_path)).html


def test_a_damaged_stress_test_is_one_line(tmp_path) -> None:
    (tmp_path / "stress.csv").write_text("statistics,axis\nplate,wells\n")
    with pytest.raises(DataError, match="value"):
        stress_test(tmp_path)


def test_values_that_are_none_are_one_line_or_left_out(tmp_path) -> None:
    write_stress(tmp_path)
    (tmp_path / "stress.json").write_text('{"classes": "many"}')
    assert ">chance<" not in section(stress_test(tmp_path)).html
    text = (tmp_path / "stress.csv").read_text()
    (tmp_path / "stress.csv").write_text(text.replace(",16,", ",sixteen,"))
    with pytest.raises(DataError, match="sixteen"):
        stress_test(tmp_path)
    write_log(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('\n3\n{"step": "x"}\n{"step": 50, "train/loss": null, "val/loss": NaN}\n')
    assert "nan" not in section(learning_curves(tmp_path)).html


def write_samples(folder, plates: int = 3, side: int = 8) -> np.ndarray:
    """Grey values that say plate, image, channel and place."""
    pixels = np.zeros((plates, side, 2, 2, side), np.uint8)  # of plate, y, image, channel, x
    pixels += (60 * np.arange(plates)[:, None, None, None, None]).astype(np.uint8)
    pixels += (20 * np.arange(2)[None, None, :, None, None] + 10 * np.arange(2)[None, None, None, :, None]).astype(
        np.uint8
    )
    Image.fromarray(pixels.reshape(plates * side, -1)).save(folder / "samples.png")
    images = [{"well": "A01", "treatment": EVIL}] * 2
    about = {
        "channels": ["DNA", EVIL], "low": [-1.0, 0], "high": [2, 3], "height": side, "width": side, "images": 2,
        "of": 9,
        "plates": [{"plate": f"P{i}", "controls": True, "images": images} for i in range(plates)],
    }  # fmt: skip
    (folder / "samples.json").write_text(json.dumps(about))
    return pixels


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_picture_a_plate_has_images_below_each_other_and_channels_side_by_side(tmp_path) -> None:
    write_samples(tmp_path)
    html = section(samples.sample_images(tmp_path)).html
    assert "Images of 3 of 9 plates, of negative controls, after" in html
    shown = pictures(html)
    assert [one.shape for one in shown] == [(16, 16)] * 3
    for plate, picture in enumerate(shown):
        for image in range(2):
            for channel in range(2):
                part = picture[8 * image : 8 * image + 6, 8 * channel : 8 * channel + 6]  # without the white gap
                assert np.median(part) == pytest.approx(60 * plate + 20 * image + 10 * channel, abs=9)


def test_many_noisy_pictures_are_coded_coarser_until_they_are_light(tmp_path) -> None:
    write_samples(tmp_path, 24, 100)
    about = json.loads((tmp_path / "samples.json").read_text())
    noise = np.random.default_rng(0).integers(0, 256, (2400, 400), dtype=np.uint8)
    Image.fromarray(np.hstack([noise] * 3)).save(tmp_path / "samples.png")
    (tmp_path / "samples.json").write_text(
        json.dumps(about | {"channels": list("abcdef"), "low": [0] * 6, "high": [1] * 6})
    )
    assert len(section(samples.sample_images(tmp_path)).html) < samples.ROOM + 50_000


@pytest.mark.parametrize("change", [{"plates": [{"plate": "P"}]}, {"height": 99}, {"low": None}, {"of": "many"}])
def test_damaged_samples_are_one_line(tmp_path, change) -> None:
    write_samples(tmp_path)
    about = json.loads((tmp_path / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps(about | change))
    with pytest.raises(DataError, match=r"samples\.png"):
        samples.sample_images(tmp_path)


def test_without_pictures_there_is_a_reason(tmp_path) -> None:
    assert "no sample images" in str(samples.sample_images(tmp_path))
    write_samples(tmp_path)
    (tmp_path / "samples.png").unlink()
    with pytest.raises(DataError, match=r"samples\.png"):
        samples.sample_images(tmp_path)


def write_layers(folder, number: int = 5) -> None:
    rows = [
        (
            f"layers.{i}.{EVIL if i == 2 else 'norm'}",
            i,
            word,
            (0.9 - 0.1 * abs(i - 1)) / (1 + 9 * (word == "plate")),
            0.02,
        )
        for word in ("running", "plate")
        for i in range(number)
    ]
    columns = ["layer", "depth", "words", "distance", "chance"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "layers.csv", index=False)


def test_layers_are_named_where_plates_differ_most_before_and_after(tmp_path) -> None:
    write_layers(tmp_path)
    html = section(layer_distances(tmp_path)).html
    assert re.search(r"before \(running\)</bdi>: plates differ most at <bdi>layers\.1\.norm</bdi>: 0\.90;", html)
    assert re.search(r"after \(plate\)</bdi>: plates differ most at .*: 0\.09", html)
    assert lines_of(html, "by chance (plate)") == 1


def test_a_deep_network_has_depths_in_the_place_of_names(tmp_path) -> None:
    write_layers(tmp_path, 60)
    assert ">depth<" in section(layer_distances(tmp_path)).html
    assert "layers.csv" in str(layer_distances(tmp_path / "none"))


def write_position(folder, edge: float = 1.2, p: float = 0.005) -> None:
    rows = []
    for pair, scale in (("none", 1.0), (EVIL, 0.1)):
        sure = p if scale == 1 else 0.4
        for kind, places in (("row", "ABCD"), ("column", ("1", "2", "3")), ("edge", ("inner", "edge"))):
            share = 0.2 if kind == "edge" else 0.01
            rows.append(("plate", pair, "", kind, "", share * scale, 0.1, 0.3, sure))
            rows += [
                ("plate", pair, name, kind, "", share, "", "", 0.01 if name == "P1" else 0.5) for name in ("P1", "P2")
            ]
            for i, place in enumerate(places):
                value = edge * scale * (i if kind == "edge" else 0.1)
                rows.append(("plate", pair, "", kind, place, value, value - 0.1, value + 0.1, sure))
    columns = ["statistics", "correction", "plate", "kind", "place", "effect", "low", "high", "p"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "position.csv", index=False)


def test_the_edge_is_told_in_standard_deviations_before_and_after(tmp_path) -> None:
    write_position(tmp_path)
    html = section(position(tmp_path)).html
    before, after = re.findall(r"<li>(.*?)</li>", html)[:2]
    assert "plate · none" in before
    assert "differ from inner ones by 1.20 sd (p 0.005); the edge explains most, 20 % of the variance" in before
    assert "by 0.12 sd (no more than by chance, p 0.40)" in after
    assert "explain no more than chance would" in after
    assert "1 of 2 plates" in html


def test_rows_and_columns_have_a_line_a_pair(tmp_path) -> None:
    write_position(tmp_path)
    html = section(position(tmp_path)).html
    assert lines_of(html, "plate · none") == 2
    assert "Where wells of every column lie" in html


def test_directions_are_turned_to_that_of_the_first_pair(tmp_path) -> None:
    write_position(tmp_path)
    table = pd.read_csv(tmp_path / "position.csv", keep_default_na=False, dtype={"effect": float})
    rows = (table["kind"] == "row") & (table["place"] != "")
    table.loc[rows, "effect"] = [-1.0, -0.5, 0.5, 1.0, 0.9, 0.4, -0.4, -0.9]
    table.loc[rows, "low"], table.loc[rows, "high"] = table["effect"] - 0.1, table["effect"] + 0.1
    table.to_csv(tmp_path / "position.csv", index=False)
    html = section(position(tmp_path)).html
    both = re.findall(r'fill="none" stroke="[^"]+" stroke-width="1.8"', html)
    assert len(both) == 4
    paths = re.findall(r'<path d="M([^"]+)" fill="none"', html)[:2]
    for path in paths:  # from low to high, both
        heights = [float(point.split(" ")[1]) for point in path.split("L")]
        assert heights == sorted(heights, reverse=True)


def test_without_places_there_is_a_reason(tmp_path) -> None:
    assert "position.csv" in str(position(tmp_path))


def write_drift(folder) -> None:
    rows = [
        ("plate", correction, refit, 4, 10, metric, fit, fit - 0.1, fit + 0.1, later, "", "", null, note)
        for correction, refit, moved, note in (
            ("none", False, 0.0, ""),
            (EVIL, True, 0.37, "fitted again on all plates"),
            ("tvn", False, "", "no plate has controls"),
        )
        for metric, fit, later, null in (("drift", moved, "", ""), ("plate_predicted", 0.4, 0.7, 0.1))
        if fit != ""
    ]
    columns = (
        "statistics,correction,refit_only,k,plates,metric,fit,fit_low,fit_high,later,later_low,later_high,null,note"
    )
    pd.DataFrame(rows, columns=columns.split(",")).to_csv(folder / "drift.csv", index=False)


def test_later_plates_stand_beside_those_of_the_fit_and_drift_is_said(tmp_path) -> None:
    write_drift(tmp_path)
    html = section(drift(tmp_path)).html
    assert "stay what they were under <bdi>plate · none</bdi>" in html
    assert re.search(r"They move under <bdi[^>]*>plate · &lt;/script.*by 0\.37", html)
    assert "(refit only)" in html
    assert html.count("<title>later plates: 0.7</title>") == 3
    assert "no plate has controls" in html
    assert "fitted on 4 of 10 plates" in html


def test_a_drift_of_a_stress_test_is_left_to_it(tmp_path) -> None:
    assert "drift.csv" in str(drift(tmp_path))
    (tmp_path / "drift.csv").write_text("statistics,axis,value,drift\n")
    assert "stress test" in str(drift(tmp_path))
