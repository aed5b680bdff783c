"""A trained network in Python: adapting to plates, predicting, several networks, embedding; a screen that grows."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn

from biomass.datasets.manifest import load_manifest
from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.models import Architecture, build_network
from biomass.norms import measure_plates, plate_statistics, tuning_state
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen
from biomass.trained import Model, Reading, load, open_screen
from biomass.training import save_checkpoint
from biomass.transforms import Standardize
from biomass.watching import Watch, movement

CHANNELS = ("DNA", "actin")
CLASSES = ["DMSO", "taxol", "water"]


def checkpoint(file: Path, seed: int = 0, **changes: object) -> Path:
    """A classifier of random weights that knows of training plates."""
    architecture = Architecture("test_resnet", len(CHANNELS), (len(CLASSES),))
    network = build_network(architecture, seed=seed).eval()
    nn.init.normal_(network.head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    plates = screen(seed=9)
    images = Standardize()(torch.from_numpy(plates.read(np.arange(len(plates)))).float())
    labels, controls = torch.arange(len(plates)) % len(CLASSES), torch.from_numpy(plates.controls)
    measure_plates(network, [[(images, labels, controls)]], len(CLASSES))
    state = {
        "architecture": architecture.to_dict(),
        "network": network.state_dict(),
        "tuning": tuning_state(network),
        "classes": CLASSES,
        "channels": list(CHANNELS),
    }
    save_checkpoint({key: value for key, value in (state | changes).items() if value is not None}, file)
    return file


def screen(seed: int = 0, plates: int = 2, sites: int = 2, cells: int = 1, size: int = 24) -> Screen:
    """Plates of 6 wells, two of them controls; the images of each plate have a blur of their own."""
    rng = np.random.default_rng(seed)
    keys = [
        (f"P{p}", f"A0{w + 1}", f"{s + 1}")
        for p in range(plates)
        for w in range(6)
        for s in range(sites)
        for _ in range(cells)
    ]
    frame = pd.DataFrame(keys, columns=["plate", "well", "site"])
    frame["control"] = frame["well"].map({"A01": "negative", "A02": "positive"}).fillna("")
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * len(keys)) | {"label": -1, "experiment": "W1"} | dict(frame))
    table["compound"] = frame["well"]
    noise = rng.integers(0, 255, (len(keys), len(CHANNELS), size, size))
    smooth = (noise + np.roll(noise, 1, 2) * frame["plate"].str[1:].astype(int).to_numpy()[:, None, None, None]) // 4
    return make_screen(table, VectorPixels(smooth.astype(np.uint16), CHANNELS), [])


def part(whole: Screen, rows: list[int]) -> Screen:
    """Some rows of a screen as a screen of its own, in which plates may have other numbers."""
    pixels = VectorPixels(whole.read(np.array(rows)), whole.pixels.channels)
    return make_screen(whole.table.iloc[rows].drop(columns="plate_id"), pixels, whole.classes)


def chances(table: pd.DataFrame) -> np.ndarray:
    return table[[f"p_{name}" for name in CLASSES]].to_numpy()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("word", ["plate", "calibrated", "controls", "controls/all", "joint", "shrunk", "balanced"])
def test_one_image_next_week_is_predicted_as_with_the_whole_plate_in_hand(file: Path, word: str) -> None:
    whole = screen()
    in_hand = chances(load(file, statistics=word).predict(whole))
    load(file, statistics=word).adapt(whole, batch_size=5).save_adaptation()
    later = load(file, statistics=word).load_adaptation()
    for row in (17, 3):
        alone = later.predict(part(whole, [row]))
        np.testing.assert_allclose(chances(alone)[0], in_hand[row], rtol=1e-3, atol=1e-4)
    mixed = [20, 1, 13, 8]
    np.testing.assert_allclose(
        chances(later.predict(part(whole, mixed), batch_size=3)), in_hand[mixed], rtol=1e-3, atol=1e-4
    )
    unadapted = chances(load(file, statistics="running").predict(whole))
    assert np.abs(unadapted - in_hand).max() > 0.01  # statistics do matter here


def test_predictions_are_those_of_a_forward_pass_over_the_plate(file: Path) -> None:
    whole, network = screen(), load(file).members[0].network
    images = Standardize()(torch.from_numpy(whole.read(np.arange(len(whole)))).float())
    with torch.no_grad(), plate_statistics(network, torch.from_numpy(whole.plate_ids)):
        expected = network(images).softmax(1).numpy()
    table = load(file).predict(whole)
    np.testing.assert_allclose(chances(table), expected, atol=1e-5)
    assert list(table["prediction"]) == [CLASSES[k] for k in expected.argmax(1)]
    np.testing.assert_allclose(table["probability"], expected.max(1), atol=1e-5)
    np.testing.assert_allclose(table["entropy"], -(expected * np.log(expected)).sum(1), atol=1e-5)
    assert list(table["Metadata_Well"]) == list(whole.table["well"])


def test_cells_make_fields_and_fields_make_wells_by_means(file: Path) -> None:
    cells = screen(cells=3, size=16)
    uneven = part(cells, [row for row in range(len(cells)) if row not in (1, 2, 40)])
    model = load(file).adapt(uneven)
    by_cell = model.predict(uneven, "image")
    assert len(by_cell) == len(uneven)
    keys = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    expected = by_cell.groupby(keys)[[f"p_{name}" for name in CLASSES]].mean()
    fields = model.predict(uneven)
    np.testing.assert_allclose(chances(fields.sort_values(keys)), expected.to_numpy(), atol=1e-6)
    assert list(fields["Metadata_Count_Cells"][:2]) == [1, 3]
    assert "Metadata_compound" in fields
    wells = model.predict(uneven, "well")
    np.testing.assert_allclose(chances(wells), expected.groupby(keys[:2]).mean().to_numpy(), atol=1e-6)
    assert set(wells["Metadata_Count_Fields"]) == {2}
    assert "Metadata_Site" not in wells


def test_several_networks_are_averaged_and_their_disagreement_is_the_mutual_information(tmp_path: Path) -> None:
    files = [checkpoint(tmp_path / "a.pt"), checkpoint(tmp_path / "b.pt", 1, classes=["water", "DMSO", "taxol"])]
    whole = screen()
    each = np.stack([chances(load(one).predict(whole)) for one in files]).astype(float)
    table = load(files).predict(whole)
    mean = each.mean(0)
    np.testing.assert_allclose(chances(table), mean, atol=1e-6)
    entropy = -(mean * np.log(mean)).sum(1)
    information = entropy + (each * np.log(each)).sum(2).mean(0)
    np.testing.assert_allclose(table["disagreement"], information, atol=1e-5)
    assert information.max() > 1e-3
    alone = load([files[0], files[0]]).predict(whole)
    assert alone["disagreement"].max() < 1e-6
    assert "disagreement" not in load([files[0]]).predict(whole)


def test_images_are_embedded_by_the_names_of_their_plates(file: Path) -> None:
    whole = screen()
    model = load(file).adapt(whole)
    images, network = whole.read(np.array([13, 2])), model.members[0].network
    all_images = Standardize()(torch.from_numpy(whole.read(np.arange(len(whole)))).float())
    with torch.no_grad(), plate_statistics(network.encoder, torch.from_numpy(whole.plate_ids)):
        expected = network.encoder(all_images)[[13, 2]].numpy()
    np.testing.assert_allclose(model.embed(images, ["W1/P1", "P0"]), expected, atol=1e-4)
    np.testing.assert_allclose(model.embed(torch.from_numpy(images), ["P1", "P0"], batch_size=1), expected, atol=1e-4)
    assert model.embed(images[:0], []).shape == (0, expected.shape[1])
    with pytest.raises(DataError, match="P9"):
        model.embed(images, ["P9", "P0"])
    with pytest.raises(DataError, match="2 images came with 1"):
        model.embed(images, ["P0"])
    with pytest.raises(ConfigError, match="DNA, actin"):
        model.embed(images[:, :1], ["P1", "P0"])
    with pytest.raises(ConfigError, match="2 networks"):
        load([file, file]).embed(images, ["P1", "P0"])
    assert load(file, statistics="running").embed(images).shape == expected.shape


def test_channels_are_found_by_name_or_both_lists_are_said(file: Path) -> None:
    whole = screen()
    swapped = Screen(whole.table, VectorPixels(whole.pixels.array[:, ::-1], ("actin", "DAPI")), ())
    np.testing.assert_allclose(chances(load(file).predict(swapped)), chances(load(file).predict(whole)), atol=1e-6)
    other = Screen(whole.table, VectorPixels(whole.pixels.array, ("DNA", "ER")), ())
    with pytest.raises(ConfigError, match=r"DNA, actin.*DNA, ER"):
        load(file).predict(other)


def test_a_checkpoint_without_names_has_numbers_for_classes_and_says_so(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    table = load(checkpoint(tmp_path / "old.pt", classes=None)).predict(screen())
    assert {"p_0", "p_1", "p_2"} <= set(table)
    assert "numbers" in caplog.text


def test_a_screen_may_have_other_classes_than_the_checkpoint(file: Path) -> None:
    whole = screen()
    labelled = make_screen(whole.table.drop(columns="plate_id").assign(label=[0, 1, -1] * 8), whole.pixels, ["x", "y"])
    table = load(file).predict(labelled)
    assert list(table["Metadata_label"][:3]) == ["x", "y", ""]
    assert set(table["prediction"]) <= set(CLASSES)


def test_nothing_but_transforms_of_the_package_is_made_of_what_a_checkpoint_names(tmp_path: Path) -> None:
    nodes = [{"_target_": "biomass.transforms.Compose", "transforms": [{"_target_": "os.system", "command": "false"}]}]
    file = checkpoint(tmp_path / "bad.pt", config={"transforms": {"eval": nodes}})
    with pytest.raises(CheckpointError, match=r"os\.system") as caught:
        load(file)
    assert caught.value.advice == "own_transforms"
    assert load(file, transform=Standardize()).classes == CLASSES


def test_a_plate_that_has_grown_since_it_was_measured_is_named(file: Path, caplog) -> None:
    whole = screen()
    model = load(file).adapt(part(whole, list(range(20))))
    model.predict(whole)
    assert "'W1/P1' was measured on 8 images, and this screen has 12" in caplog.text
    known = chances(model.predict(whole))
    np.testing.assert_allclose(
        chances(model.adapt(whole, again=True).predict(whole)), chances(load(file).predict(whole)), atol=1e-5
    )
    assert np.abs(known - chances(model.predict(whole))).max() > 1e-3


def test_networks_without_batch_norm_predict_each_image_by_itself(tmp_path: Path) -> None:
    architecture = Architecture("test_resnet", 2, (3,), norm="group")
    weights = {"architecture": architecture.to_dict(), "network": build_network(architecture).state_dict()}
    file = checkpoint(tmp_path / "plain.pt", tuning=None, **weights)
    model = load(file)
    assert model.statistics == "running"
    assert len(model.predict(screen())) == 24
    with pytest.raises(ConfigError, match="'plate'"):
        model.adapt(screen(), "plate")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"statistics": "controls"}, CheckpointError, "word plate, not controls"),
        ({"by": ["experiment"]}, CheckpointError, "by .*plate"),
        ({"transform": torch.sqrt}, CheckpointError, "transform"),
        ({"statistics": "plat"}, ConfigError, "plate"),
        ({"statistics": "controls/no"}, ConfigError, "no"),
    ],
)
def test_what_is_known_of_plates_belongs_to_its_settings(file: Path, settings, error, message) -> None:
    (saved,) = load(file).adapt(screen()).save_adaptation(file.with_name("plates.pt"))
    with pytest.raises(error, match=message):
        load(file, adaptation=saved, **settings)
    assert load(file, adaptation=saved).plates == ["W1/P0", "W1/P1"]
    (other,) = load(file).adapt(screen(), "controls/all").save_adaptation()
    assert load(file, adaptation=other, statistics="calibrated").statistics == "controls/all"


def test_what_is_known_of_plates_belongs_to_its_weights(file: Path) -> None:
    (saved,) = load(file).adapt(screen()).save_adaptation()
    other = load(checkpoint(file.with_name("other.pt"), 1))
    with pytest.raises(CheckpointError, match="other weights"):
        other.load_adaptation(saved)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        other.load_adaptation()
    with pytest.raises(ConfigError, match="knows no plates"):
        other.save_adaptation()


def test_networks_of_other_classes_make_no_ensemble(tmp_path: Path) -> None:
    files = [checkpoint(tmp_path / "a.pt"), checkpoint(tmp_path / "b.pt", classes=["DMSO", "taxol", "ink"])]
    with pytest.raises(ConfigError, match=r"water.*ink"):
        load(files)
    with pytest.raises(ConfigError, match="no checkpoint is named"):
        load([])


def test_the_package_is_light_until_a_model_is_loaded() -> None:
    code = "import sys, biomass; print('torch' in sys.modules, callable(biomass.load), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


# --- a screen that grows ---


class Folder:
    """A folder of images, and a manifest that lists some of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole = folder, screen()
        folder.mkdir()

    def write(self, rows: list[int], age: float = 100.0, whole: bool = True) -> None:
        for row in rows:
            file = self.folder / f"{row}.npy"
            np.save(file, self.whole.read(np.array([row]))[0])
            if not whole:
                file.write_bytes(file.read_bytes()[:300])
            self.age(row, age)

    def age(self, row: int, age: float) -> None:
        then = time.time() - age
        os.utime(self.folder / f"{row}.npy", (then, then))

    def list(self, rows: list[int]) -> None:
        table = self.whole.table.iloc[rows][["experiment", "plate", "well", "site", "control"]]
        table.assign(path=[f"{row}.npy" for row in rows]).to_csv(self.folder / "manifest.csv", index=False)

    def load(self) -> Screen:
        options = {"channels": CHANNELS, "axes": "CHW", "on_bad_image": "skip"}
        return load_manifest("manifest.csv", root_dir=self.folder, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "images")


def watch(model: Model, folder: Folder, out: Path) -> Watch:
    return Watch(model, folder.load, Reading(None, 0, "skip"), out, str(out / "plates.pt"))


def test_a_screen_that_grew_is_predicted_as_at_once(file: Path, folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = watch(load(file), folder, out)
    assert one.look() == []  # there is no manifest yet
    folder.write([0, 1, 2, 3])
    folder.list(list(range(12)))  # it lists what is still to come
    (news,) = one.look()
    assert (news.images, news.new, news.wells, news.settled) == (4, 4, 2, "new")
    assert one.look() == []
    folder.write([4, 5, 6], whole=True)
    folder.write([7], whole=False)
    (news,) = one.look()
    assert (news.images, news.new, news.unreadable) == (7, 4, 1)
    assert news.moved > 0
    assert 0 <= news.changed <= 1
    before = pd.read_parquet(out / "predictions.parquet")
    assert len(before) == 7
    folder.write(list(range(7, 24)))
    folder.list(list(range(24)))
    assert [news.plate for news in one.look()] == ["W1/P0", "W1/P1"]
    at_once = load(file).predict(folder.whole)
    for name, expected in (("", at_once), ("_wells", load(file).predict(folder.whole, "well"))):
        found = pd.read_parquet(out / f"predictions{name}.parquet")
        np.testing.assert_allclose(chances(found), chances(expected), atol=1e-5)
    alone = load(file, adaptation=out / "plates.pt").predict(part(folder.whole, [5]))
    np.testing.assert_allclose(chances(alone), chances(at_once)[[5]], atol=1e-5)
    assert len(pd.read_csv(out / "watch.csv")) == 4


def test_a_file_that_is_still_being_written_is_left_for_the_next_look(file: Path, folder: Folder, tmp_path) -> None:
    one = watch(load(file), folder, tmp_path / "out")
    folder.write([0, 1])
    folder.write([2], age=0.0)
    folder.list([0, 1, 2])
    assert [news.images for news in one.look(quiet=50.0)] == [2]
    folder.write([2], age=0.0)  # it has changed again
    assert one.look(quiet=50.0) == []
    assert [news.images for news in one.look(quiet=50.0)] == [3]  # unchanged since the last look
    folder.write([0], age=70.0)  # a file that is written anew is predicted again
    assert [news.new for news in one.look(quiet=50.0)] == [1]


def test_an_interruption_leaves_everything_written(file: Path, folder: Folder, tmp_path: Path) -> None:
    folder.write([0, 1, 2])
    folder.list([0, 1, 2])
    looks = iter([folder.load, folder.load])

    def refresh() -> Screen:
        try:
            return next(looks)()
        except StopIteration:
            raise KeyboardInterrupt from None

    one = Watch(load(file), refresh, Reading(None, 0, "skip"), tmp_path / "out", str(tmp_path / "plates.pt"))
    one.run(0.0, None)
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 3
    assert len(pd.read_parquet(tmp_path / "out" / "predictions_wells.parquet")) == 2


def test_a_watch_ends_when_nothing_comes_and_fails_where_nothing_ever_came(file, folder, tmp_path) -> None:
    with pytest.raises(DataError, match="no image could be predicted"):
        watch(load(file), folder, tmp_path / "out").run(0.01, 0.05)
    folder.write([0, 1])
    folder.list([0, 1])
    one = watch(load(file), folder, tmp_path / "out")
    one.run(0.01, 0.05)
    assert one.looks >= 2
    folder.list([0, 1, 12])  # a plate of which nothing is there, beside one that goes on
    assert one.look() == []


def test_a_plate_that_lacks_controls_yet_waits_and_the_others_do_not(file, folder, tmp_path, caplog) -> None:
    folder.write([0, 1, 2, 18, 19])
    folder.list([0, 1, 2, 18, 19])
    one = watch(load(file, statistics="controls"), folder, tmp_path / "out")
    assert [news.plate for news in one.look()] == ["W1/P0"]
    assert "plate 'W1/P1' cannot be predicted yet" in caplog.text
    folder.write([12, 13])
    folder.list([0, 1, 2, 12, 13, 18, 19])
    assert [news.plate for news in one.look()] == ["W1/P1"]


def test_moments_that_did_not_move_have_not_moved(file: Path) -> None:
    model = load(file).adapt(screen())
    known = model.members[0].calibration
    assert movement(known, known, "W1/P0") == 0
    assert np.isnan(movement(known, known, "W1/P7"))
    moved = load(file).adapt(part(screen(), [0, 1, 2])).members[0].calibration
    assert movement(known, moved, "W1/P0") > movement(known, known, "W1/P0")


def test_a_screen_is_opened_by_its_path(folder: Folder) -> None:
    folder.write([0])
    folder.list([0])
    assert open_screen(folder.folder / "manifest.csv", channels=CHANNELS, axes="CHW").plate_names == ("W1/P0",)


def test_what_a_screen_says_of_its_fields_is_kept_under_names_of_its_own(file: Path) -> None:
    whole = screen()
    table = whole.table.drop(columns="plate_id").assign(batch="B7", Metadata_run=3, tags=[["a", "b"]] * 24, x=1.5)
    described = load(file).predict(make_screen(table, whole.pixels, []))
    assert set(described["Metadata_Batch"]) == {"W1"}
    assert set(described["Metadata_own_batch"]) == {"B7"}
    assert set(described["Metadata_run"]) == {3}
    assert described["Metadata_tags"][0] == "['a', 'b']"


def test_a_file_of_before_transforms_were_recorded_is_read(file: Path) -> None:
    (saved,) = load(file).adapt(screen()).save_adaptation()
    state = torch.load(saved, weights_only=True)
    del state["transform"], state["images"]
    torch.save(state, saved)
    model = load(file, adaptation=saved)
    np.testing.assert_allclose(chances(model.predict(screen())), chances(load(file).predict(screen())), atol=1e-5)
    model.adapt(screen(), again=True).save_adaptation()
    assert torch.load(saved, weights_only=True)["images"] == [12, 12]
    torch.save({"plates": ["P0"]}, saved)
    with pytest.raises(CheckpointError, match="no calibrated statistics"):
        load(file, adaptation=saved)


def test_an_image_that_is_given_to_another_plate_is_predicted_there(file: Path, folder: Folder, tmp_path: Path) -> None:
    folder.write([0, 1, 2, 12, 13])
    folder.list([0, 1, 2, 12, 13])
    one = watch(load(file), folder, tmp_path / "out")
    assert len(one.look()) == 2
    manifest = folder.folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("P0", "P7"))
    np.save(folder.folder / "2.npy", folder.whole.read(np.array([3]))[0])
    folder.age(2, 50.0)
    assert [news.plate for news in one.look()] == ["W1/P7"]
    assert one.look() == []


def test_a_screen_without_wells_and_sites_has_an_image_a_row_and_no_wells(file: Path) -> None:
    whole = screen()
    bare = make_screen(whole.table.drop(columns="plate_id").assign(well="", site=""), whole.pixels, [])
    fields = load(file).predict(bare)
    assert len(fields) == len(bare)
    np.testing.assert_allclose(chances(fields), chances(load(file).predict(whole)), atol=1e-6)
    assert len(load(file).predict(bare, "well")) == 0


def test_unreadable_images_are_left_out_or_an_error(file: Path, folder: Folder) -> None:
    folder.write([0, 1, 2])
    folder.write([3], whole=False)
    folder.list([0, 1, 2, 3])
    with pytest.raises(DataError, match=r"3\.npy"):
        load(file).predict(folder.load())
    kept = load(file).predict(folder.load(), on_bad_image="skip")
    np.testing.assert_allclose(chances(kept), chances(load(file).predict(part(folder.whole, [0, 1, 2]))), atol=1e-6)
