"""Profiles of a screen of cells, their evaluation, the figures, and transfer_bbbc021.py from end to end."""

import copy
import functools
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import TINY_CELLS
from scipy.spatial import cKDTree

from biomass.cells.crops import crop_screen
from biomass.cells.fields import place_nuclei
from biomass.cells.nuclei import read_nuclei
from biomass.datasets.bbbc021 import load_bbbc021, load_bbbc021_cells
from biomass.errors import BadImageError, BiomassError, CheckpointError, ConfigError, DataError
from biomass.evaluation import batch_mixing, checks, encode, nscb, plots, replicate_map, report, transfer, whiten
from biomass.inference import calibrate_plates
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.norms import WORDS, Statistics, plate_statistics
from biomass.samplers import PlateBatches
from biomass.screen import PLATE, VectorPixels, make_screen
from biomass.simulation.bbbc021 import simulate_bbbc021
from biomass.training import make_fabric
from biomass.transforms import Standardize

DESIGN = {
    "weeks": 2,
    "replicates": 2,
    "compounds": 2,
    "concentrations": 1,
    "taxol_wells": 1,
    "sites": 2,
    "height": 96,
    "width": 112,
    "density": 0.7,
}
"""Two weeks of two plates."""

MODEL = ("model.key=test_resnet", "model.pretrained=false", "device=cpu", "figures=false")
SIMULATED = ("dataloaders=simulated_bbbc021", *(f"dataloaders.simulated.{k}={v}" for k, v in DESIGN.items()))
TINY = (*SIMULATED, *MODEL)


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


@pytest.fixture(scope="module")
def encoder():
    return build_network(Architecture("test_resnet", 2, ()), seed=1).encoder


def small_screen(plates=("Week1/P1", "Week1/P2", "Week2/P1"), counts=(3, 2, 4, 1), channels=("DAPI", "actin")):
    """Random cells of 16 px: on every plate the wells A01 (DMSO) … A04, with so many cells in the only site of each."""
    rows = [
        (*plate.split("/"), f"A{w + 1:02d}", cell)
        for plate in plates
        for w, count in enumerate(counts)
        for cell in range(count)
    ]
    table = pd.DataFrame(rows, columns=["experiment", "plate", "well", "cell"])
    number = table["well"].str[1:].astype(int) - 1
    table = table.assign(
        site=1,
        cell_type="MCF7",
        label=number,
        split="test",
        control=np.where(number == 0, "negative", ""),
        concentration=number.astype(float),
        compound=np.array(["DMSO", "a", "b", "c"])[number],
        moa=np.array(["DMSO", "X", "X", ""])[number],
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4000, (len(table), len(channels), 16, 16)).astype(np.uint16)
    return make_screen(table, VectorPixels(images, channels), ["DMSO", "X", "Y", "Z"])


def profile(fabric, network, cells, folder, word="plate", channels=None, by=PLATE, **options):
    """As a run does it: what can be known beforehand is checked beforehand."""
    check([word], [], cells, network, channels, by)
    encoder = encode.Encoder(network, channels, "test_resnet")
    statistics = Statistics.over(cells, word, by)
    return encode.image_profiles(fabric, encoder, cells, folder, statistics, transform=Standardize(), **options)


def check(words, postprocessings, cells, network=None, channels=None, by=PLATE):
    """All checks of a run."""
    checks.check_names(words, postprocessings or ["none"], "cosine", channels)
    network = network or build_network(Architecture("test_resnet", len(cells.pixels.channels), ())).encoder
    encoders = dict.fromkeys(words, encode.Encoder(network, channels, "test_resnet"))
    checks.check_encoders(encoders)
    checks.check_cells(cells, encoders, {word: Statistics.over(cells, word, by) for word in words}, postprocessings)


def features(table):
    return table.filter(like="emb_").to_numpy()


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("normalization", ["running", "plate", "controls"])
def test_profiles_are_means_over_cells_normalized_plate_by_plate(
    fabric, encoder, tmp_path, normalization, batch_size, normalize
):
    cells = small_screen()
    found = profile(fabric, encoder, cells, tmp_path, normalization, batch_size=batch_size, normalize=normalize)
    expected = []
    for plate in range(3):  # one image after the other, the whole plate at once
        rows = np.flatnonzero(cells.plate_ids == plate)
        images = Standardize()(torch.from_numpy(cells.pixels.read(rows)).float())
        controls = torch.from_numpy(cells.negative_controls[rows])
        plates = torch.zeros(len(rows), dtype=torch.int64)
        controls = controls if normalization == "controls" else None
        with torch.no_grad(), plate_statistics(encoder, plates, normalization, weights=controls):
            vectors = encoder.eval()(images).numpy()
        if normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        wells = cells.table["well"].iloc[rows].to_numpy()
        expected += [vectors[wells == well].mean(0) for well in sorted(set(wells))]
    np.testing.assert_allclose(features(found), expected, rtol=2e-3, atol=2e-5)
    assert found["Metadata_cells"].tolist() == [3, 2, 4, 1] * 3  # the image with one nucleus, too
    assert found["Metadata_batch"].tolist() == ["Week1"] * 8 + ["Week2"] * 4
    assert found["Metadata_well"].tolist() == ["A01", "A02", "A03", "A04"] * 3
    assert found["Metadata_compound"].tolist() == ["DMSO", "a", "b", "c"] * 3
    assert found.columns[-1] == f"emb_{len(expected[0]) - 1:04d}"


def test_normalizations_differ(fabric, encoder, tmp_path):
    cells = small_screen()
    one, two, three = (
        features(profile(fabric, encoder, cells, tmp_path / n, n)) for n in ("running", "plate", "controls")
    )
    assert min(np.abs(one - two).max(), np.abs(two - three).max(), np.abs(one - three).max()) > 1e-3


def test_channels_are_found_by_name(fabric, encoder, tmp_path):
    cells = small_screen(channels=("tubulin", "actin", "Hoechst"))
    wanted = profile(fabric, encoder, cells, tmp_path / "a", channels=["nuclei", "ER"])
    pixels = VectorPixels(cells.pixels.array[:, [2, 0]], ("DAPI", "tubulin"))
    plain = profile(fabric, encoder, make_screen(cells.table, pixels, cells.classes), tmp_path / "b")
    np.testing.assert_array_equal(features(wanted), features(plain))
    with pytest.raises(ConfigError, match=r"no channel 'mito'.*Hoechst"):
        profile(fabric, encoder, cells, tmp_path / "c", channels=["nuclei", "mito"])


class Counting(VectorPixels):
    """Counts the cells that are read."""

    count = 0

    def read(self, rows):
        Counting.count += len(rows)
        return super().read(rows)


def test_a_second_call_goes_on_where_the_first_was_stopped(fabric, encoder, tmp_path, monkeypatch):
    cells = small_screen()
    whole = profile(fabric, encoder, cells, tmp_path / "whole")
    write, written = encode.write_profiles, []

    def interrupted(table, file, fingerprint):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        write(table, file, fingerprint)

    monkeypatch.setattr(encode, "write_profiles", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(fabric, encoder, cells, tmp_path / "parts")
    monkeypatch.undo()
    stamps = [file.stat().st_mtime_ns for file in written]
    (tmp_path / "parts/Week2").mkdir()
    (tmp_path / "parts/Week2/P1.parquet").write_bytes(b"PAR1 cut off")
    cells = make_screen(cells.table, Counting(cells.pixels.array, cells.pixels.channels), cells.classes)
    found = profile(fabric, encoder, cells, tmp_path / "parts")
    compared = 3 * (3 + 10)  # three cells a plate as before, and the sample, which is all of such small plates
    assert Counting.count == compared + 10  # and those of the third plate
    assert [file.stat().st_mtime_ns for file in written] == stamps
    pd.testing.assert_frame_equal(found, whole)
    pd.testing.assert_frame_equal(profile(fabric, encoder, cells, tmp_path / "parts"), whole)
    assert Counting.count == compared + 10 + compared


def test_profiles_of_other_pixels_are_made_anew(fabric, encoder, tmp_path):
    cells = small_screen()
    profile(fabric, encoder, cells, tmp_path)
    lit = VectorPixels(cells.pixels.array[:, :, ::-1].copy(), cells.pixels.channels)  # the same table, upside down
    again = make_screen(cells.table, lit, cells.classes)
    fresh = profile(fabric, encoder, again, tmp_path / "fresh")
    pd.testing.assert_frame_equal(profile(fabric, encoder, again, tmp_path), fresh)


def test_profiles_of_another_encoder_are_made_anew(fabric, encoder, tmp_path):
    cells = small_screen()
    first = profile(fabric, encoder, cells, tmp_path)
    other = build_network(Architecture("test_resnet", 2, ()), seed=2).encoder
    assert np.abs(features(profile(fabric, other, cells, tmp_path)) - features(first)).max() > 1e-3
    again = profile(fabric, other, cells, tmp_path, normalize=False)
    assert np.linalg.norm(features(again)[3]) != pytest.approx(1, abs=1e-3)  # the image with one nucleus
    fewer = small_screen(plates=("Week1/P2", "Week2/P1"))
    assert len(profile(fabric, other, fewer, tmp_path, normalize=False)) == 8
    assert profile(fabric, other, small_screen(counts=(3, 2, 2, 1)), tmp_path)["Metadata_cells"].sum() == 24


def test_names_of_plates_that_cannot_name_a_file(fabric, encoder, tmp_path):
    cells = small_screen(plates=("Week 1/A:1%", "Week 1/A:2?"))
    table = cells.table.assign(experiment="../up")
    found = profile(fabric, encoder, make_screen(table, cells.pixels, cells.classes), tmp_path / "in")
    assert found["Metadata_plate"].unique().tolist() == ["A:1%", "A:2?"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_plate_without_controls_is_named(fabric, encoder, tmp_path):
    cells = small_screen()
    table = cells.table.copy()
    table.loc[(table["plate_id"] == 1) & (table["well"] == "A01"), "control"] = ""
    cells = make_screen(table, cells.pixels, cells.classes)
    with pytest.raises(DataError, match="plate 'Week1/P2' has no negative control") as caught:
        profile(fabric, encoder, cells, tmp_path, "controls")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert len(profile(fabric, encoder, cells, tmp_path, "plate")) == 12


def test_values_that_are_not_finite_are_refused(fabric, tmp_path):
    broken = build_network(Architecture("test_resnet", 2, ()), seed=1).encoder
    next(broken.parameters()).data[0] = torch.nan
    with pytest.raises(DataError, match="output for image 'Week1/P1/A01/1' is not finite") as caught:
        profile(fabric, broken, small_screen(), tmp_path, "running")
    assert "\n" not in str(caught.value)
    assert not torch.is_inference_mode_enabled()
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("normalization", ["running", "plate", "controls"])
def test_one_nan_is_not_blamed_on_the_first_image_of_its_plate(fabric, encoder, tmp_path, normalization):
    cells = small_screen()
    pixels = cells.pixels.array.astype(np.float32)
    pixels[10] = np.nan  # of the DMSO well of the second plate
    pixels[12] = np.inf
    cells = make_screen(cells.table, VectorPixels(pixels, cells.pixels.channels), cells.classes)
    message = {
        "running": "output for image 'Week1/P2/A01/1' is not finite",
        "plate": "for any image of plate 'Week1/P2'",
        "controls": "for any image of plate 'Week1/P2'",
    }[normalization]
    with pytest.raises(DataError, match=message) as caught:
        profile(fabric, encoder, cells, tmp_path, normalization)
    assert "\n" not in str(caught.value)


def test_unknown_words(fabric, encoder, tmp_path):
    with pytest.raises(ConfigError, match="normalization 'ben' is unknown"):
        profile(fabric, encoder, small_screen(), tmp_path, "ben")
    cells = small_screen()
    cells = make_screen(cells.table.drop(columns="moa"), cells.pixels, cells.classes)
    with pytest.raises(ConfigError, match="no column 'moa'"):
        profile(fabric, encoder, cells, tmp_path)


def test_statistics_of_a_week_are_those_of_all_its_plates(fabric, encoder, tmp_path):
    cells = small_screen()
    found = profile(fabric, encoder, cells, tmp_path, by=("experiment",), batch_size=5, normalize=False)
    weeks = torch.tensor(cells.groups(["experiment"]))
    images = Standardize()(torch.from_numpy(cells.pixels.array).float())
    with torch.no_grad(), plate_statistics(encoder, weeks):
        vectors = pd.DataFrame(encoder.eval()(images).numpy())
    expected = vectors.groupby([cells.plate_ids, cells.table["well"].astype(str)]).mean()
    np.testing.assert_allclose(features(found), expected, rtol=2e-3, atol=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Week1.parquet", "Week2.parquet"]
    with pytest.raises(ConfigError, match="statistics by cell_type, cell put the cells of one image into two groups"):
        profile(fabric, encoder, cells, tmp_path, by=("cell_type", "cell"))


def calibrated(fabric, network, cells):
    """Store the moments of every plate, from all its cells, in the network."""
    batches = PlateBatches(np.arange(len(cells)), cells.plate_ids, batch_size=4, shuffle=False)
    loader = Loader(BatchReader(cells, cells.plate_ids), batches)
    calibrate_plates(fabric, network, loader, Standardize(), Statistics.over(cells, "plate"), SkippedImages(cells))


def test_calibrated_profiles_are_those_of_the_plates_that_were_calibrated(fabric, encoder, tmp_path):
    cells, network = small_screen(), copy.deepcopy(encoder)
    calibrated(fabric, network, cells)
    by_plate = profile(fabric, network, cells, tmp_path / "plate")
    found = profile(fabric, network, cells, tmp_path / "calibrated", "calibrated", batch_size=2)
    np.testing.assert_allclose(features(found), features(by_plate), rtol=2e-3, atol=2e-5)
    upside_down = VectorPixels(cells.pixels.array[:, :, ::-1].copy(), cells.pixels.channels)
    calibrated(fabric, network, make_screen(cells.table, upside_down, cells.classes))
    again = profile(fabric, network, cells, tmp_path / "calibrated", "calibrated")  # with other moments: made again
    assert np.abs(features(again) - features(found)).max() > 1e-4


class Unreadable(VectorPixels):
    """The only cell of one image cannot be read."""

    def read(self, rows):
        if 9 in rows:
            raise BadImageError("row 9 cannot be read", 9)
        return super().read(rows)


class Gone(VectorPixels):
    """Nothing can be read any more."""

    def read(self, rows):
        raise BadImageError(f"row {rows[0]} cannot be read", int(rows[0]))


def test_a_screen_of_which_nothing_can_be_read(fabric, encoder, tmp_path):
    cells = small_screen()
    cells = make_screen(cells.table, Gone(cells.pixels.array, cells.pixels.channels), cells.classes)
    with pytest.raises(DataError, match="none of the 30 cells can be read"):
        profile(fabric, encoder, cells, tmp_path / "out", on_bad_image="skip")
    assert len((tmp_path / "out/skipped_images.txt").read_text().splitlines()) == 30


def test_images_without_cells_are_listed(fabric, encoder, tmp_path, caplog):
    cells = small_screen()
    fields = make_screen(cells.table.drop_duplicates(["plate_id", "well"]), cells.pixels, cells.classes)
    cells = make_screen(cells.table, Unreadable(cells.pixels.array, cells.pixels.channels), cells.classes)
    with pytest.raises(BadImageError):
        profile(fabric, encoder, cells, tmp_path)
    images = profile(fabric, encoder, cells, tmp_path, on_bad_image="skip")
    assert (tmp_path / "skipped_images.txt").read_text() == "row 9\n"
    assert len(images) == 11
    assert np.isfinite(features(images)).all()
    absent = encode.images_without_cells(fields, images)
    assert absent[["Metadata_batch", "Metadata_plate", "Metadata_well"]].to_numpy().tolist() == [["Week1", "P1", "A04"]]
    assert "1 of 12 images have no cells that are known and can be read" in caplog.text
    absent = encode.images_without_cells(fields, images[images["Metadata_compound"] != "b"])
    assert len(absent) == 4
    assert "4 of 12 images have no cells that are known and can be read, among them all of b 2" in caplog.text
    assert not len(encode.images_without_cells(fields, pd.concat([images, absent])))


def test_a_field_without_cells_is_reported_from_the_files_on(fabric, data_root, tmp_path):
    root = simulate_bbbc021(data_root, **DESIGN)
    fields = load_bbbc021(root)
    nuclei = place_nuclei(fields, *read_nuclei(root))
    cells = crop_screen(fields, nuclei._replace(table=nuclei.table[nuclei.table["image"] != 5]))
    images = profile(fabric, build_network(Architecture("test_resnet", 3, ())).encoder, cells, tmp_path)
    absent = encode.images_without_cells(fields, images)
    row = fields.table.iloc[5]
    assert row[["experiment", "plate", "well", "site"]].tolist() in absent.iloc[:, :4].to_numpy().tolist()
    assert len(absent) + len(images) == len(fields)


# --- wells, treatments, scores ----------------------------------------------------------------------------------------


def simple_wells(n=4, dims=3):
    """Wells of DMSO and of four treatments; b is on two batches."""
    rng = np.random.default_rng(3)
    rows = [(batch, f"{batch}-p", f"D{i}", "negative", "DMSO", 0.0, "DMSO") for batch in ("W1", "W2") for i in range(n)]
    rows += [("W1", "W1-p", f"a{i}", "", "a", 1.0, "X") for i in range(3)]
    rows += [(batch, f"{batch}-p", "b", "", "b", 1.0, "X") for batch in ("W1", "W2")]
    rows += [("W2", "W2-p", "c", "", "c", 1.0, "X"), ("W2", "W2-p", "d", "", "d", 1.0, "")]
    columns = ["batch", "plate", "well", "control", "compound", "concentration", "moa"]
    wells = pd.DataFrame(rows, columns=[f"Metadata_{c}" for c in columns])
    wells["Metadata_cells"] = 1
    names = [f"emb_{i:04d}" for i in range(dims)]
    return pd.concat([wells, pd.DataFrame(rng.normal(size=(len(rows), dims)), columns=names)], axis=1)


def test_wells_are_means_of_images(fabric, encoder, tmp_path):
    images = profile(fabric, encoder, small_screen(), tmp_path)
    twice = pd.concat([images, images.assign(Metadata_site="2", emb_0000=images["emb_0000"] + 1)], ignore_index=True)
    wells = transfer.well_profiles(twice)
    assert len(wells) == 12
    np.testing.assert_allclose(wells["emb_0000"], images["emb_0000"] + 0.5, rtol=1e-5)
    assert wells["Metadata_cells"].tolist() == [6, 4, 8, 2] * 3


def test_treatments_are_medians_of_wells_with_the_set_of_their_batches():
    wells = simple_wells()
    treatments = transfer.treatment_profiles(wells)
    assert treatments["Metadata_compound"].tolist() == ["a", "b", "c", "d"]
    assert treatments["Metadata_batch"].tolist() == [("W1",), ("W1", "W2"), ("W2",), ("W2",)]
    assert treatments["Metadata_wells"].tolist() == [3, 2, 1, 1]
    for name, rows in wells.groupby("Metadata_compound"):
        if name != "DMSO":
            found = features(treatments[treatments["Metadata_compound"] == name])[0]
            np.testing.assert_allclose(found, np.median(features(rows), axis=0))
    with pytest.raises(DataError, match="none of the 8 wells is treated"):
        transfer.treatment_profiles(wells[wells["Metadata_control"] == "negative"])


def test_what_shares_one_batch_or_has_no_mechanism_cannot_be_scored():
    one = transfer.evaluate(simple_wells())
    reasons = one.nscb.table().set_axis(one.treatments["Metadata_compound"])["reason"]
    assert reasons["a"] is None  # c is in another batch
    assert "no other compound in another batch" in reasons["b"]  # in both batches: shares one with every other
    assert reasons["c"] is None
    assert reasons["d"] == "its mechanism is not known"
    assert one.nsc.scorable.tolist() == [True, True, True, False]
    table = report.summarize({("plate", "none"): one})
    assert table[["nsc_scored", "nscb_scored"]].to_numpy().tolist() == [[3, 2]]
    assert "| BEN, all cells | none |" in report.to_markdown(table)
    lines = report.predictions({("plate", "none"): one})
    assert len(lines) == 8
    a = lines[(lines["score"] == "nscb") & (lines["compound"] == "a")].iloc[0]
    assert (a["neighbour_compound"], a["prediction"], a["batches"]) == ("c", "X", "W1")


def test_postprocessing_is_fitted_on_control_wells():
    wells = simple_wells(n=30)
    controls = (wells["Metadata_control"] == "negative").to_numpy()
    done = transfer.postprocess(wells, "whiten")
    np.testing.assert_allclose(features(done), whiten(features(wells), controls))
    np.testing.assert_allclose(np.cov(features(done)[controls].T), np.eye(3), atol=0.05)
    moved = wells.copy()
    moved.loc[~controls, "emb_0000"] += 100  # treated wells have no say
    same, other = (transfer.postprocess(table, "tvn")[controls] for table in (wells, moved))
    pd.testing.assert_frame_equal(same, other)
    one = transfer.evaluate(wells, "tvn", "euclidean")
    again = transfer.treatment_profiles(transfer.postprocess(wells, "tvn"))
    labels = (again["Metadata_compound"], again["Metadata_moa"], again["Metadata_batch"])
    assert one.nscb.table().equals(nscb(again, *labels, "euclidean").table())
    with pytest.raises(ConfigError, match="postprocessing 'zca' is unknown"):
        transfer.postprocess(wells, "zca")


@pytest.mark.parametrize("how", ["none", "whiten", "tvn"])
def test_mixing_is_judged_by_wells_that_nothing_was_fitted_on(how):
    wells = simple_wells(n=6)
    controls = wells["Metadata_control"] == "negative"
    fit = controls & wells["Metadata_well"].str[1:].isin(["0", "2", "4"])
    hits, rows = 0, 0
    for fitted in (fit, controls & ~fit):
        done = transfer.postprocess(wells, how, fitted.to_numpy())
        judged = batch_mixing(done[controls & ~fitted], "Metadata_batch")
        hits, rows = hits + judged.share * 6, rows + 6
    found = transfer.evaluate(wells, how).mixing
    assert found.share == pytest.approx(hits / rows)
    assert found.expected == pytest.approx(2 / 5)
    assert found.by_batch["rows"].tolist() == [6, 6]


def test_mixing_does_not_reward_what_was_fitted_on_the_wells_that_are_judged():
    # no difference between batches, far more features than wells: the share is what chance gives
    rng = np.random.default_rng(0)
    wells = simple_wells(n=12, dims=200)
    names = list(wells.filter(like="emb_"))
    shares, fitted = [], []
    for _ in range(30):
        wells[names] = rng.normal(size=(len(wells), 200))
        shares.append(transfer.held_out_mixing(transfer.held_out(wells, "tvn")).share)
        done = transfer.postprocess(wells, "tvn")
        fitted.append(batch_mixing(done[wells["Metadata_control"] == "negative"], "Metadata_batch").share)
    assert abs(np.mean(shares) - 5 / 11) < 0.08
    assert abs(np.mean(fitted) - 11 / 23) > 0.3  # and this is why


def test_a_batch_of_few_controls_tells_nothing_of_mixing():
    wells = simple_wells(n=4)
    assert transfer.evaluate(wells).mixing is not None
    assert transfer.evaluate(wells.drop(index=0)).mixing is None


def test_replicates_are_scored_against_controls_that_nothing_was_fitted_on():
    # nothing but noise, far more features than wells: what is fitted on all controls seems to show an effect
    rng = np.random.default_rng(0)
    wells = simple_wells(n=12, dims=200)
    names, held_out, fitted = list(wells.filter(like="emb_")), [], []
    for _ in range(12):
        wells[names] = rng.normal(size=(len(wells), 200))
        held_out.append(transfer.evaluate(wells, "whiten").replicates["same_plate"][1])
        done = transfer.postprocess(wells, "whiten")
        controls = done["Metadata_control"] == "negative"
        fitted.append(replicate_map(done, transfer.TREATMENT, transfer.WELL[:2], controls, null_size=1).normalized_mean)
    assert abs(np.mean(held_out)) < 0.2
    assert np.mean(fitted) > 0.4


def test_replicates_across_plates_are_those_of_all_wells():
    wells = simple_wells(n=6)
    positive = wells.iloc[-3:].assign(Metadata_control="positive", Metadata_well=["x", "y", "z"])
    one = transfer.evaluate(pd.concat([wells, positive], ignore_index=True), "whiten", "euclidean")
    controls = wells["Metadata_control"] == "negative"
    done = transfer.postprocess(wells, "whiten")  # positive controls are no treatments
    expected = replicate_map(done, transfer.TREATMENT, transfer.WELL[:2], controls, "other_plate", "euclidean")
    assert one.replicates["other_plate"] == pytest.approx((expected.mean, expected.normalized_mean))
    row = report.summarize({("plate", "whiten"): one}).iloc[0]
    assert row["map_other_plate"] == pytest.approx(expected.mean)


def test_a_new_word_and_a_new_postprocessing_are_an_entry_each(fabric, encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(WORDS, "everyone", WORDS["plate"])
    centred = transfer.Postprocessing("centred", lambda wells, _: wells.assign(emb_0000=wells["emb_0000"] - 1), 1)
    monkeypatch.setitem(transfer.POSTPROCESSINGS, "centre", centred)
    cells = small_screen()
    check(["everyone"], ["centre"], cells)
    images = profile(fabric, encoder, cells, tmp_path, "everyone")
    pd.testing.assert_frame_equal(images, profile(fabric, encoder, cells, tmp_path / "plate", "plate"))
    one = transfer.evaluate(transfer.well_profiles(images), "centre")
    np.testing.assert_allclose(one.wells["emb_0000"], images["emb_0000"] - 1, rtol=1e-6)
    assert "| everyone | centred |" in report.to_markdown(report.summarize({("everyone", "centre"): one}))


def test_every_column_of_the_table_is_explained():
    table = report.summarize({("plate", "none"): transfer.evaluate(simple_wells())})
    assert report.describe()["column"].tolist() == list(table)
    assert report.describe()["meaning"].str.len().min() > 10


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("tvn", "batch 'Week2' has too few wells of negative controls: 1, and TVN needs 2"),
        ("whiten", "the screen has too few wells of negative controls: 1, and whitening needs 2"),
    ],
)
def test_too_few_controls_are_said_before_anything_is_encoded(how, message):
    cells = small_screen(plates=("Week1/P1", "Week1/P2", "Week2/P1"))
    if how == "whiten":
        cells = small_screen(plates=("Week1/P1",))
    with pytest.raises(DataError, match=message):
        check(["plate"], [how], cells)
    check(["plate"], ["none"], cells)


def spoiled(well, **values):
    """A small screen with other values in the wells of that name."""
    cells = small_screen()
    table = cells.table.astype(dict.fromkeys(["compound", "moa"], object))
    for column, value in values.items():
        table.loc[table["well"].isin(well) & (table["plate"] == "P1"), column] = value
    return make_screen(table, cells.pixels, cells.classes)


@pytest.mark.parametrize(
    ("well", "values", "message"),
    [
        (["A02"], {"moa": "Z", "concentration": 2.0, "compound": "b"}, "'b' 2 has two mechanisms, 'Z' and 'X'"),
        (["A02"], {"concentration": np.nan}, "treated well 'Week1/P1/A02' has no concentration; fill it"),
        (["A03"], {"compound": None}, "treated well 'Week1/P1/A03' has no compound; fill it"),
    ],
)
def test_treatments_that_cannot_be_told_are_said_before_anything_is_encoded(well, values, message):
    with pytest.raises(DataError, match=message):
        check(["plate"], ["none"], spoiled(well, **values))
    check(["plate"], [], spoiled(well, **values))  # profiles of images need no treatments


def test_wells_without_treatment_or_with_two_are_said_before_anything_is_encoded():
    cells = small_screen()
    controls = make_screen(cells.table.assign(control="negative"), cells.pixels, cells.classes)
    with pytest.raises(DataError, match="none of the 12 wells is treated, so there are no treatments to compare"):
        check(["plate"], ["none"], controls)
    table = cells.table.copy()
    table.loc[4, "concentration"] = 5.0
    with pytest.raises(DataError, match="well 'Week1/P1/A02' has two treatments or mechanisms"):
        check(["plate"], ["none"], make_screen(table, cells.pixels, cells.classes))


def test_where_nothing_can_be_scored_no_number_is_shown():
    wells = simple_wells().assign(Metadata_batch="W1")
    evaluations = {("plate", "none"): transfer.evaluate(wells)}
    line = report.to_markdown(report.summarize(evaluations)).splitlines()[-1]
    assert " (3) | – | 100.0 (100.0) | " in line
    figures = report.draw(evaluations, "plate", "none")
    assert figures["confusion"].axes[0].get_title().endswith("NSCB cannot be scored")


def test_without_controls_there_is_no_mixing_and_no_whitening():
    wells = simple_wells()
    wells = wells[wells["Metadata_control"] == ""].reset_index(drop=True)
    one = transfer.evaluate(wells)
    assert one.mixing is None
    assert np.isnan(report.summarize({("plate", "none"): one})["mixing"][0])
    with pytest.raises(DataError, match="is a control"):
        transfer.evaluate(wells, "whiten")


def test_nan_features_are_refused():
    wells = simple_wells()
    wells.loc[9, "emb_0001"] = np.nan
    with pytest.raises(DataError, match="row 9 has nan in feature 'emb_0001'"):
        transfer.evaluate(wells)


def test_pycytominer_and_copairs_read_the_profiles(fabric, encoder, tmp_path):
    from copairs.map import average_precision
    from pycytominer import aggregate

    images = profile(fabric, encoder, small_screen(), tmp_path)
    wells = transfer.well_profiles(images)
    encode.write_profiles(images, tmp_path / "images.parquet")
    encode.write_profiles(wells, tmp_path / "wells.parquet")
    table = pd.read_parquet(tmp_path / "images.parquet")
    names = [c for c in table if c.startswith("emb_")]
    keys = ["Metadata_batch", "Metadata_plate", "Metadata_well"]
    theirs = aggregate(table, keys, names, operation="mean").sort_values(keys, ignore_index=True)
    np.testing.assert_allclose(theirs[names], wells[names], rtol=1e-5)
    table = pd.read_parquet(tmp_path / "wells.parquet")
    metadata = table.filter(like="Metadata_")
    scores = average_precision(
        metadata,
        table[names].to_numpy(),
        ["Metadata_compound"],
        ["Metadata_plate"],
        [],
        ["Metadata_compound"],
        progress_bar=False,
    )
    assert len(scores) == 12
    assert scores["average_precision"].between(0, 1).all()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_show_what_they_are_given(tmp_path):
    one = transfer.evaluate(simple_wells())
    names = [f"m{i}" for i in range(12)]
    points = np.random.default_rng(0).normal(size=(24, 2))
    labels = {"mechanism": names * 2, "batch": ["Week2", "Week10"] * 12}
    grid = plots.scatter_grid({"a": points, "b": points}, labels, ("m0",))
    assert [ax.get_title() for ax in grid.axes] == ["a", "b", "", ""]
    legend = [text.get_text() for text in grid.axes[3].get_legend().get_texts()]
    assert legend == ["Week2", "Week10"]
    handles = grid.axes[1].get_legend().legend_handles
    assert len({(h.get_facecolor().tobytes(), h.get_paths()[0].vertices.tobytes()) for h in handles}) == 12
    grid = plots.scatter_grid({"a": points}, {"mechanism": ["", "DMSO", "X"] * 8}, ("", "DMSO"))
    handles = grid.axes[0].get_legend().legend_handles
    assert len({h.get_facecolor().tobytes() for h in handles}) == 3
    bars = plots.mechanism_bars({"one": one.nsc, "two": one.nscb})
    widths = [patch.get_width() for patch in bars.axes[0].patches]
    assert widths == [100 * one.nsc.accuracy, 100 * one.nscb.accuracy]
    matrix = pd.DataFrame([[3, 0], [1, 2]], ["X", "Y"], ["X", "Y"])
    texts = {(t.get_position(), t.get_text()) for t in plots.confusion(matrix, "title").axes[0].texts}
    assert texts == {((0, 0), "3"), ((0, 1), "1"), ((1, 1), "2")}
    gallery = plots.gallery(np.arange(3 * 2 * 16).reshape(3, 2, 4, 4), ["a", "b", "c"], ["DAPI", "actin"])
    picture = gallery.axes[0].images[0].get_array()
    assert picture.shape == (4, 4, 3)
    assert not picture[..., 0].any()  # no third channel, no red
    for i, figure in enumerate((grid, bars, gallery)):
        figure.savefig(tmp_path / f"{i}.png")


def test_umap_needs_rows_without_gaps():
    with pytest.raises(DataError, match="UMAP was given 3 rows"):
        plots.umap_coordinates(np.zeros((3, 2)))
    with pytest.raises(DataError, match="row 1 has nan"):
        plots.umap_coordinates(np.array([[0.0], [np.nan], [1], [2]]))


@pytest.mark.slow
def test_umap_keeps_neighbours_and_repeats_itself():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 10), 20, axis=0)
    points = centres + 0.02 * rng.normal(size=centres.shape)
    one, two = (plots.umap_coordinates(points, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    nearest = cKDTree(one).query(one, k=2)[1][:, 1]
    assert (nearest // 20 == np.arange(60) // 20).all()


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_from_end_to_end(run, capsys, data_root, monkeypatch):
    calls = []
    for name in ("check_names", "check_encoders", "check_cells"):
        check = getattr(checks, name)
        monkeypatch.setattr(checks, name, lambda *args, check=check: calls.append(check(*args)))
    value = run("transfer_bbbc021", *TINY, "run_name=t", "monitor=plate/whiten", "encode_batch_size=100")
    folder = Path("runs/t")
    table = pd.read_csv(folder / "table.csv")
    assert table[["normalization", "postprocessing"]].to_numpy().tolist() == [
        [n, p] for n in ("running", "plate", "controls") for p in ("none", "whiten", "tvn")
    ]
    assert value == table.query("normalization == 'plate' and postprocessing == 'whiten'")["nscb"].iloc[0]
    assert (table["nsc_scored"] == 24).all()
    assert (table["nscb_scored"] == 20).all()  # but two mechanisms of two compounds in one week
    said = capsys.readouterr().out
    assert (folder / "table.md").read_text() in said
    for n in ("running", "plate", "controls"):
        images, wells = (pd.read_parquet(folder / f"{kind}_{n}.parquet") for kind in ("images", "wells"))
        pd.testing.assert_frame_equal(transfer.well_profiles(images), wells)
        assert len(list((folder / "plates" / n).rglob("*.parquet"))) == 4
    treatments = pd.read_parquet(folder / "treatments_plate_whiten.parquet")
    again = nscb(treatments, "Metadata_compound", "Metadata_moa", "Metadata_batch")
    assert again.accuracy == value
    absent = pd.read_csv(folder / "images_without_cells.csv")
    fields = load_bbbc021(simulate_bbbc021(data_root, **DESIGN))
    assert len(absent) + len(images) == len(fields)
    lines = pd.read_csv(folder / "predictions.csv")
    assert len(lines) == 9 * 2 * 24
    assert (folder / "config.yaml").exists()
    assert pd.read_csv(folder / "table_columns.csv")["column"].tolist() == list(table)
    assert len(calls) == 3  # each kind of check runs once


def test_the_script_takes_checkpoints_of_the_scripts(run):
    for name, sampler in (("ben", "plate"), ("vanilla", "random")):
        run(
            "train_supervised_cell",
            *TINY_CELLS,
            "model.key=test_resnet",
            "model.pretrained=false",
            "num_epochs=1",
            "dataloaders.eval_splits=[]",
            f"dataloaders.sampler={sampler}",
            f"run_name={name}",
        )
    options = ("postprocessings=[none]", "normalizations=[frozen,controls]")
    run("transfer_bbbc021", *TINY, *options, "run_name=one", "model_path=ben")
    run("transfer_bbbc021", *TINY, *options, "run_name=two", "model_path=ben", "frozen_model_path=vanilla")
    controls, others = (
        [pd.read_parquet(f"runs/{r}/wells_{n}.parquet") for r in ("one", "two")] for n in ("controls", "running")
    )
    pd.testing.assert_frame_equal(*controls)
    assert np.abs(features(others[0]) - features(others[1])).max() > 1e-4
    with pytest.raises(ConfigError, match="'ben' expects 3 channels, not nuclei, actin; name them"):
        run("transfer_bbbc021", *TINY, *options, "model_path=ben", "channels=[nuclei,actin]")


@pytest.mark.parametrize(
    ("overrides", "words", "files"),
    [
        (["+method=ben"], ["plate"], 4),
        (["+method=ben_experiment"], ["plate"], 2),
        (["+method=vanilla"], ["running"], 4),
        (["+method=ben_controls", "normalizations=[frozen]"], ["controls"], 4),
        (["normalizations=[all,frozen]", "monitor=frozen/none"], ["plate", "running"], 4),
    ],
)
def test_words_and_presets_are_those_of_all_scripts(run, overrides, words, files):
    value = run("transfer_bbbc021", *TINY, "postprocessings=[none]", *overrides, "run_name=t")
    table = pd.read_csv("runs/t/table.csv")
    assert table["normalization"].tolist() == words
    assert value == table["nscb"].iloc[-1]  # without a monitor: the last word
    assert {path.name for path in Path("runs/t/plates").iterdir()} == set(words)
    assert len(list(Path("runs/t/plates", words[0]).rglob("*.parquet"))) == files


def test_calibrated_statistics_are_read_beside_the_checkpoint(run):
    training = ("model.key=test_resnet", "model.pretrained=false", "num_epochs=1", "dataloaders.eval_splits=[]")
    run("train_supervised_cell", *TINY_CELLS, *training, "run_name=ben")
    options = ("postprocessings=[none]", "normalizations=[plate,calibrated]", "model_path=ben")
    with pytest.raises(CheckpointError, match=r"no calibrated statistics '.*last.calibrated.pt'"):
        run("transfer_bbbc021", *TINY, *options)
    with pytest.raises(CheckpointError, match="'null' is neither"):
        run("transfer_bbbc021", *TINY, *options[:2])
    run("calibrate", *SIMULATED, "model_path=ben", "device=cpu", "encode_batch_size=64")  # channels are found by name
    run("transfer_bbbc021", *TINY, *options, "run_name=t")
    one, other = (features(pd.read_parquet(f"runs/t/wells_{word}.parquet")) for word in ("plate", "calibrated"))
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
    Path("checkpoints/ben/last.calibrated.pt").rename("elsewhere.pt")
    run("transfer_bbbc021", *TINY, *options, "run_name=u", "calibration=elsewhere.pt")
    again = features(pd.read_parquet("runs/u/wells_calibrated.parquet"))
    np.testing.assert_array_equal(again, other)


def test_a_second_run_of_the_same_name_goes_on(run):
    options = ("postprocessings=[none]", "normalizations=[controls]", "run_name=t")
    first = run("transfer_bbbc021", *TINY, *options)
    files = sorted(Path("runs/t/plates").rglob("*.parquet"))
    before = pd.read_parquet("runs/t/images_controls.parquet")
    files[1].unlink()
    stamps = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert run("transfer_bbbc021", *TINY, *options) == first
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    pd.testing.assert_frame_equal(pd.read_parquet("runs/t/images_controls.parquet"), before)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["monitor=controls/zca"],
            ConfigError,
            "monitor 'controls/zca' is not one of this run's running/none, running/whiten,",
        ),
        (["normalizations=[ben]"], ConfigError, 'normalizations is "ben"'),
        (["normalizations=[ben]", "monitor=ben/none"], ConfigError, 'normalizations is "ben"'),
        (["normalizations=frozen"], ConfigError, r"normalizations is \"frozen\"; .* write \[frozen\]"),
        (["normalizations=[]"], ConfigError, "no normalization is chosen"),
        (["postprocessings=[zca]"], ConfigError, 'postprocessings is "zca"'),
        (["postprocessings=[zca]", "monitor=all/zca"], ConfigError, 'postprocessings is "zca"'),
        (["channels=[]"], ConfigError, "the list of channels is empty"),
        (["channels=actin"], ConfigError, r"channels is \"actin\"; .*; write \[actin\]"),
        (["model.key=convnext_tiny"], ConfigError, "'convnext_tiny' has no batch norm"),
        (["model.key=inception_v3"], ConfigError, "network 'inception_v3' does not take images of 48 x 48 pixels"),
        (["metric=l1"], ConfigError, "metric 'l1' is unknown"),
        (["dataloaders=bbbc021", "dataloaders.root_dir=nowhere"], DataError, "no BBBC021 below 'nowhere'"),
        (["channels=[nuclei,ER,mito]"], ConfigError, "no channel 'mito'"),
        (["dataloaders.plates=[Week1_1]"], ConfigError, "'Week1_1'.*'Week1_20041'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(run, overrides, error, message):
    simulated = TINY if "dataloaders=bbbc021" not in overrides else MODEL
    with pytest.raises(error, match=message) as caught:
        run("transfer_bbbc021", *simulated, *overrides)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "overrides",
    [["model_path=nowhere"], ["frozen_model_path=nowhere"], ["model.key=resnet18", "model.pretrained=true"]],
)
def test_a_missing_encoder_is_told_before_the_cells_are_cut_out(run, overrides, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)

    @functools.wraps(load_bbbc021_cells)
    def cut_out(*_, **__):
        pytest.fail("cells are cut out")

    monkeypatch.setattr("biomass.datasets.bbbc021.load_bbbc021_cells", cut_out)
    with pytest.raises(BiomassError, match=r"'nowhere' is neither|cannot fetch the pretrained weights"):
        run("transfer_bbbc021", *TINY, *overrides)
    assert not Path("runs").exists()


def test_a_missing_plate_file_is_named(run, data_root, tmp_path):
    root = tmp_path / "bbbc021"
    shutil.copytree(simulate_bbbc021(data_root, **DESIGN), root)
    gone = sorted((root / "data/hdf5").iterdir())[1]
    gone.unlink()
    real = ("dataloaders=bbbc021", f"dataloaders.root_dir={root}", "dataloaders.num_workers=0", *MODEL)
    with pytest.raises(DataError, match=f"plate file '.*{gone.name}' .* is missing"):
        run("transfer_bbbc021", *real)
    plates = [path.stem for path in (root / "data/hdf5").iterdir()]
    run(
        "transfer_bbbc021",
        *real,
        f"dataloaders.plates=[{','.join(plates)}]",
        "normalizations=[controls]",
        "postprocessings=[none]",
        "run_name=t",
    )
    assert pd.read_parquet("runs/t/wells_controls.parquet")["Metadata_plate"].nunique() == 3


def test_treatments_that_the_moa_table_lacks_cannot_be_scored(run, data_root, tmp_path):
    root = tmp_path / "bbbc021"
    shutil.copytree(simulate_bbbc021(data_root, **DESIGN), root)
    for table in root.glob("supplement_*.txt"):
        table.unlink()  # then nuclei are found in the images, those of unknown compounds too
    run(
        "transfer_bbbc021",
        "dataloaders=bbbc021",
        f"dataloaders.root_dir={root}",
        "dataloaders.num_workers=0",
        *MODEL,
        "dataloaders.source.fields=all",
        "dataloaders.source.diameter=9",
        "normalizations=[controls]",
        "postprocessings=[none]",
        "run_name=t",
    )
    lines = pd.read_csv("runs/t/predictions.csv").query("score == 'nsc'")
    unknown = lines["compound"].str.startswith("U-")
    assert unknown.sum() == 2
    assert (lines["reason"][unknown] == "its mechanism is not known").all()
    assert lines["reason"][~unknown].isna().all()
