"""The stress test: what is drawn, what is run, and how it is summed up."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from biomass.errors import ConfigError, DataError
from biomass.evaluation import plots
from biomass.evaluation.curves import curves_of_stress, read_curves
from biomass.evaluation.stress import (
    COLUMNS,
    Bench,
    Condition,
    PlateWells,
    StressTest,
    draw_wells,
    plate_effect,
    plates_of,
    summarize,
    to_markdown,
)
from biomass.loader import Batch, BatchReader
from biomass.norms import Statistics, convert
from biomass.screen import COLUMNS as TABLE
from biomass.screen import PLATE, Screen, VectorPixels, make_screen


def screen(sites: int = 2) -> Screen:
    """Two plates of 12 treated wells of 3 classes and 4 controls."""
    wells = [(p, w, s) for p in "AB" for w in range(16) for s in range(sites)]
    table = pd.DataFrame(dict.fromkeys(TABLE, [""] * len(wells)))
    table["plate"], number = [p for p, _, _ in wells], np.array([w for _, w, _ in wells])
    table["well"] = [f"{'ABCD'[w // 4]}{w % 4 + 1:02d}" for w in number]
    table["site"] = [str(s) for _, _, s in wells]
    table["label"] = np.where(number < 12, number % 3, 3)
    table["control"] = np.where(number < 12, "", "negative")
    table["split"] = "test"
    rng = np.random.default_rng(0)
    images = rng.random((len(table), 2, 4, 4)).astype(np.float32) + table["label"].to_numpy()[:, None, None, None]
    images[table["plate"] == "B"] *= 3
    return make_screen(table.sample(frac=1, random_state=0), VectorPixels(images, ("a", "b")), list("abcd"))


def plate(one: Screen, wells: PlateWells) -> Batch:
    return BatchReader(one, one.plate_ids)[wells.rows]


def test_wells_are_drawn_with_all_their_images_and_as_the_condition_says() -> None:
    one = screen()
    plates = plates_of(one, one.rows("test"), PLATE)
    assert len(plates) == 2
    wells = plates[0]
    assert sorted(wells.rows) == sorted(np.flatnonzero(one.plate_ids == 0))
    assert len(wells.labels) == 16
    for well in range(16):
        at = wells.rows[wells.positions(np.array([well]))]
        assert len(at) == 2
        assert len(set(one.table["well"].iloc[at])) == 1
        assert set(one.labels[at]) == {wells.labels[well]}
    rng = np.random.default_rng(1)
    whole = draw_wells(rng, wells, Condition())
    assert sorted(whole) == list(range(16))
    few = draw_wells(rng, wells, Condition(wells=5, controls=1))
    assert len(set(few)) == 6
    assert (wells.controls[few] > 0).tolist() == [False] * 5 + [True]
    lone = [draw_wells(rng, wells, Condition(alpha=0.001, controls=0)) for _ in range(20)]
    assert all(len(drawn) == 12 for drawn in lone)
    assert np.mean([len(set(wells.labels[drawn])) == 1 for drawn in lone]) > 0.8
    assert all(set(np.bincount(drawn)) <= {0, 3} for drawn in lone if len(set(wells.labels[drawn])) == 1)


def test_shares_of_classes_are_those_of_a_dirichlet_distribution() -> None:
    wells = PlateWells(np.arange(40), np.arange(41), np.arange(40) % 4, np.zeros(40, np.int64))
    rng = np.random.default_rng(2)
    for alpha in (0.3, 1.0):
        shares = [
            np.bincount(wells.labels[draw_wells(rng, wells, Condition(alpha=alpha))], minlength=4) / 40
            for _ in range(3000)
        ]
        expected = (0.25 * 0.75) * (1 / 40 + (1 - 1 / 40) / (4 * alpha + 1))  # of a Dirichlet-multinomial share
        assert np.var(shares, axis=0).mean() == pytest.approx(expected, rel=0.06)


def test_results_are_those_of_the_network_on_the_drawn_wells() -> None:
    one = screen()
    torch.manual_seed(0)
    network = convert(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(4)))
    network(torch.zeros(2, 2, 4, 4))
    network.train()
    statistics = {word: Statistics.over(one, word) for word in ("running", "plate", "controls")}
    axes = {"wells": [1, 4, 50, None], "controls": [0, None], "effect": [0.0, 1.0], "prospective": [1, 14, None]}
    test = StressTest(statistics, axes, repeats=2, seed=3)
    wells = plates_of(one, one.rows("test"), PLATE)[0]
    batch = plate(one, wells)
    found = pd.DataFrame(test.on_plate(Bench(Fabric(), network, torch.Tensor.float), batch, wells))
    assert network.training
    assert set(found["value"][found["axis"] == "wells"]) == {"1", "4", "all"}  # a plate does not hold 50
    none = found[(found["axis"] == "controls") & (found["value"] == "0")]
    assert set(none["statistics"]) == {"running", "plate"}
    network.eval()
    everything = found[(found["axis"] == "wells") & (found["value"] == "all")].set_index("statistics")["accuracy"]
    treated = batch.controls == 0
    for word, one_word in statistics.items():
        with torch.no_grad(), one_word.of(network, batch.groups, batch.controls):
            right = (network(batch.images.float()).argmax(1) == batch.labels)[treated].float().mean()
        assert everything[word] == pytest.approx(float(right))
    in_chunks = pd.DataFrame(test.on_plate(Bench(Fabric(), network, torch.Tensor.float, 5), batch, wells))
    pd.testing.assert_frame_equal(in_chunks, found)
    drift = found[found["axis"] == "prospective"].set_index(["statistics", "value"])["drift"]
    assert (drift["running"] == 0).all()
    assert (drift[:, "all"] == 0).all()
    assert ("controls", "1") not in drift  # no control has been read by then
    again = test.on_plate(Bench(Fabric(), network, torch.Tensor.float), batch, wells)
    pd.testing.assert_frame_equal(pd.DataFrame(again), found)


def test_a_plate_effect_grows_with_its_strength_and_is_one_for_all_images_of_a_plate() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    distances = [float((plate_effect(images, s, 4) - images).abs().mean()) for s in (0.0, 0.3, 1.0, 2.0)]
    assert distances == sorted(distances)
    assert distances[0] == 0
    top = images.amax((0, 2, 3), keepdim=True)
    changed, plain = plate_effect(images, 1.0, 4) / top, images / top
    light = changed[:, :, 3, 3].log() - changed[:, :, 4, 4].log()
    gamma = [np.polyfit(plain[:, c, 3, 3].log(), changed[:, c, 3, 3].log(), 1) for c in range(3)]
    for c in range(3):  # log y = gamma log x + log light, with one gamma and one light for all images
        fitted = np.polyval(gamma[c], plain[:, c, 3, 3].log())
        np.testing.assert_allclose(changed[:, c, 3, 3].log(), fitted, atol=1e-3)
    assert light.shape == (5, 3)
    assert not torch.equal(plate_effect(images, 1.0, 4), plate_effect(images, 1.0, 5))


def test_means_and_intervals_are_over_plates() -> None:
    rng = np.random.default_rng(0)
    accuracies = rng.random(40)
    results = pd.DataFrame(
        {
            "statistics": "plate",
            "axis": "label_shift",
            "value": "0.1",
            "repeat": [0, 1] * 20,
            "accuracy": accuracies,
            "plate": np.repeat(np.arange(20), 2),
        }
    )
    more = results.assign(value="inf", accuracy=1.0)
    table = summarize(pd.concat([results, more]))
    assert tuple(table.columns) == COLUMNS
    assert list(table["value"]) == ["inf", "0.1"]
    by_plate = accuracies.reshape(20, 2).mean(1)
    row = table.iloc[1]
    assert row["accuracy"] == pytest.approx(by_plate.mean())
    spread = 1.96 * by_plate.std() / np.sqrt(20)
    assert row["high"] - row["low"] == pytest.approx(2 * spread, rel=0.15)
    assert row["repeats"] == 40
    figure = plots.stress_curves(table)
    assert [line.get_label() for line in figure.axes[0].lines] == ["plate"]
    assert "| plate | 100.0 |" in to_markdown(table)


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        (Condition(alpha=0.0), "0"),
        (Condition(alpha=-1.0), "-1"),
        (Condition(wells=0), "0"),
        (Condition(controls=-2), "-2"),
        (Condition(effect=-1.0), "-1"),
        (Condition(alpha=float("nan")), "nan"),
    ],
)
def test_conditions_out_of_range_are_refused(condition: Condition, value: str) -> None:
    with pytest.raises(ConfigError, match=value):
        condition.check()


def test_bad_tests_are_refused() -> None:
    with pytest.raises(ConfigError, match="'shift'"):
        StressTest({}, {"shift": [1]})
    with pytest.raises(ConfigError, match="0 times"):
        StressTest({}, {}, repeats=0)
    with pytest.raises(ConfigError, match="concentration 0"):
        StressTest({}, {"label_shift": [None, 0]})
    one = screen()
    controls = np.flatnonzero(one.controls > 0)
    with pytest.raises(DataError, match="treated well"):
        plates_of(one, controls, PLATE)


def test_stress_tests_become_curves_that_a_verdict_can_rest_on(tmp_path) -> None:
    row = {"repeats": 4, "low": 0.3, "high": 0.5}
    design = {"wells": 30.0, "negative": 4.0, "all": 6.0, "classes": 20, "num_wells": None, "alpha": None}
    vanilla = [row | {"statistics": "running", "axis": "wells", "value": "all", "accuracy": 0.4}]
    ben = [
        row | {"statistics": "running", "axis": "label_shift", "value": "inf", "accuracy": 0.2},
        row | {"statistics": "plate", "axis": "wells", "value": "8", "accuracy": 0.3},
        row | {"statistics": "controls/all", "axis": "label_shift", "value": "0.1", "accuracy": 0.5},
        row | {"statistics": "balanced", "axis": "controls", "value": "2", "accuracy": 0.6},
        row | {"statistics": "plate", "axis": "effect", "value": "1", "accuracy": 0.1},
    ]
    for name, results in (("vanilla", vanilla), ("ben", ben)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stress.json").write_text(json.dumps(design | {"num_controls": None, "results": results}))
    table = curves_of_stress([tmp_path / "vanilla" / "stress.json", tmp_path / "ben" / "stress.json"])
    table.to_csv(tmp_path / "curves.csv", index=False)
    curves = read_curves(tmp_path / "curves.csv")
    assert table[table["statistics"] == "running"]["accuracy"].tolist() == [0.4, 0.4]
    found = table[table["statistics"] != "running"].set_index("statistics")
    assert found.loc["plate", ["wells", "alpha", "controls"]].tolist() == [8, np.inf, 6]
    assert found.loc["controls", ["kind", "wells", "alpha", "controls"]].tolist() == ["all", 30, 0.1, 6]
    assert found.loc["balanced", ["kind", "wells", "alpha", "controls"]].tolist() == ["negative", 30, np.inf, 2]
    expected = curves.expect("controls", "all", 30, 6, 1 / (0.1 * 20 + 1))
    assert expected is not None
    assert expected.ratio == pytest.approx(0.5 / 0.4)
    (tmp_path / "ben" / "stress.json").write_text("{}")
    with pytest.raises(DataError, match="'all'"):
        curves_of_stress([tmp_path / "ben" / "stress.json"])
