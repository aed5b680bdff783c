"""``biomass profile``: what it writes, what a later call adds, and that other tools read it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, TINY_CELLS, TINY_RUN, TINY_SCREEN, run_script

from biomass.errors import BadImageError, CheckpointError, ConfigError, DataError
from biomass.evaluation import postprocess, profiles
from biomass.evaluation.positions import Positions
from biomass.evaluation.profiles import PlateVectors, describe, plate_tables
from biomass.profiling import makers as tool
from biomass.screen import COLUMNS, VectorPixels, make_screen

MODEL = ("model.key=test_resnet", "model.pretrained=false")
CELLS = (*(option for option in TINY_CELLS if "warmup" not in option), "model_path=encoder")
FIELD = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]


@pytest.fixture(scope="module")
def weights(data_root, tmp_path_factory):
    """The checkpoint of a run of one epoch on the tiny cells."""
    folder = tmp_path_factory.mktemp("encoder")
    options = (*TINY_CELLS, *MODEL, "model.projector=[16,8]", "num_epochs=1", "dataloaders.sampler=plate", "run_name=e")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BIOMASS_DATA", str(data_root))
        run_script("train_simclr", *options)
    return folder / "checkpoints" / "e" / "last.pt"


@pytest.fixture
def profile(run, weights):
    """``profile("key=value", …)`` on the tiny cells, in a folder where the checkpoint is the run ``encoder``."""
    Path("checkpoints/encoder").mkdir(parents=True)
    Path("checkpoints/encoder/last.pt").symlink_to(weights)
    return lambda *options, of=CELLS: run("profile", *of, *options)


KNOWN = "checkpoints/encoder/last.calibrated.pt"
"""Where the moments of plates are kept."""


def table(name, level="wells"):
    return pd.read_parquet(f"runs/{name}/profiles_{level}.parquet")


def features(frame):
    return frame[[c for c in frame if not c.startswith("Metadata_")]].to_numpy()


def written(name):
    return {file: file.stat().st_mtime_ns for file in Path(f"runs/{name}/plates").rglob("*.parquet")}


def test_cells_fields_and_wells_are_written(profile, capsys):
    profile("run_name=p", "encode_batch_size=30")
    cells, fields, wells = (table("p", level) for level in ("cells", "fields", "wells"))
    assert "runs/p/profiles_wells.parquet" in capsys.readouterr().out
    assert [c for c in wells if c.startswith("emb_")][:2] == ["emb_0000", "emb_0001"]
    assert {*FIELD, "Metadata_label", "Metadata_control", "Metadata_split"} <= set(cells)
    assert wells["Metadata_Count_Cells"].sum() == fields["Metadata_Count_Cells"].sum() == len(cells)
    assert not fields[FIELD].duplicated().any()
    means = cells.groupby(FIELD)["emb_0003"].mean()
    np.testing.assert_allclose(fields.set_index(FIELD)["emb_0003"].loc[means.index], means, rtol=1e-4, atol=1e-5)
    assert set(torch.load(KNOWN)["plates"]) == {"/".join(k) for k in cells[FIELD[:2]].to_numpy()}


def test_calibrated_is_the_whole_plate_and_running_is_not(profile):
    for word in ("plate", "running", "calibrated"):
        assert not Path(KNOWN).exists()
        profile(f"run_name={word}", f"statistics.eval={word}", "encode_batch_size=30")
    whole = features(table("plate", "cells"))
    np.testing.assert_allclose(features(table("calibrated", "cells")), whole, rtol=1e-4, atol=1e-5)
    assert abs(features(table("running", "cells")) - whole).max() > 0.01


def test_an_image_next_week_has_the_profile_it_had_with_its_plate(profile, monkeypatch):
    profile("run_name=today", "encode_batch_size=30")
    today = table("today", "cells")
    opened = tool.open_model

    def two_cells(cfg, name):
        whole = opened(cfg, name)
        rows = np.array([3, len(whole.screen) - 1])
        table = whole.screen.table.iloc[rows].drop(columns="plate_id")
        pixels = VectorPixels(whole.screen.read(rows), whole.screen.pixels.channels)
        return whole._replace(screen=make_screen(table, pixels, whole.screen.classes))

    monkeypatch.setattr(tool, "open_model", two_cells)
    profile("run_name=later", "rows=cells")
    later = table("later", "cells")
    for _, cell in later.iterrows():
        same = today[(today[FIELD] == cell[FIELD]).all(1) & (today["Metadata_cell"] == cell["Metadata_cell"])]
        ours = cell[[c for c in today if c.startswith("emb_")]].to_numpy(np.float32)
        np.testing.assert_allclose(features(same)[0], ours, rtol=1e-4, atol=1e-5)
    profile("run_name=alone", "rows=cells", "statistics.eval=running")
    assert abs(features(table("alone", "cells")) - features(later)).max() > 0.01


def test_stored_moments_are_taken_and_others_are_measured(profile, run, caplog):
    caplog.set_level("INFO")
    run("calibrate", *CELLS, "run_name=c")
    profile("run_name=p")
    assert "8 plates have moments in" in caplog.text
    assert "measure_again=true" not in caplog.text  # the images are those that were measured
    assert "are measured now" not in caplog.text
    state = torch.load("checkpoints/encoder/last.calibrated.pt")
    assert set(state.pop("data")) == set(state["plates"])  # as files of an earlier version are
    names = state["plates"]
    state["plates"], state["images"] = names[:3], state["images"][:3]
    state["moments"] = {name: value[:, :3] * 2 for name, value in state["moments"].items()}
    torch.save(state, "some.pt")
    before = written("p")
    profile("run_name=p", "calibration=some.pt")
    assert "3 of them by their names alone" in caplog.text
    assert "5 plates are measured now" in caplog.text
    assert {file for file, time in written("p").items() if time != before[file]} == set(
        before
    )  # none is stored as it was
    kept = torch.load("some.pt")
    assert sorted(kept["plates"]) == sorted(names)
    again = torch.load("checkpoints/encoder/last.calibrated.pt")
    for name, value in kept["moments"].items():
        for place, plate in enumerate(kept["plates"]):
            factor = 2 if plate in names[:3] else 1
            own = again["moments"][name][:, names.index(plate)] * factor
            torch.testing.assert_close(value[:, place], own, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(profile, caplog, monkeypatch):
    caplog.set_level("INFO")
    write = profiles.write_plate
    done = []

    def stop(tables, folder, **about):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        write(tables, folder, **about)

    monkeypatch.setattr(profiles, "write_plate", stop)
    with pytest.raises(KeyboardInterrupt):
        profile("run_name=p")
    assert not Path("runs/p/profiles_cells.parquet").exists()
    monkeypatch.setattr(profiles, "write_plate", write)
    before = written("p")
    profile("run_name=p")
    assert "3 of 8 plates are there already" in caplog.text
    assert before.items() <= written("p").items()
    profile("run_name=q", "measure_again=true")
    for level in ("cells", "fields", "wells"):
        assert (
            Path(f"runs/p/profiles_{level}.parquet").read_bytes()
            == Path(f"runs/q/profiles_{level}.parquet").read_bytes()
        )


def test_two_processes_write_the_same_files_as_one(profile, data_root, tmp_path):
    profile("run_name=one", "dataloaders.num_workers=0", "compare=[running]")
    environment = {**os.environ, "BIOMASS_DATA": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "biomass", "profile", *CELLS, "devices=2", "run_name=two", "measure_again=true"]
    command += ["compare=[running]", "report=false"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plate 4 of 4" in done.stdout + done.stderr
    for level in ("cells", "fields", "wells"):
        pd.testing.assert_frame_equal(table("one", level), table("two", level), rtol=1e-4, atol=1e-5)
    for level in ("wells_running", "wells_untrained"):
        pd.testing.assert_frame_equal(table("one", level), table("two", level), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["batch", "block", "joint", "controls"])
def test_any_word_will_do(profile, word):
    profile("run_name=p", f"statistics.eval={word}", "encode_batch_size=40")
    assert np.isfinite(features(table("p"))).all()


def word_of(name, level):
    return pq.read_schema(f"runs/{name}/profiles_{level}.parquet").metadata[b"biomass.statistics"].decode()


def test_wells_under_other_words_are_those_of_a_run_under_them(profile):
    profile("run_name=p", "compare=[running,controls/all,plate]", "encode_batch_size=30")
    made = sorted(file.name for file in Path("runs/p").glob("*.parquet"))
    others = ["controls-all", "plate", "running", "untrained"]
    assert made == sorted(
        f"profiles_{n}.parquet" for n in ("cells", "fields", "wells", *(f"wells_{o}" for o in others))
    )
    assert [word_of("p", "wells"), word_of("p", "cells")] == ["calibrated", "calibrated"]
    assert [word_of("p", f"wells_{one}") for one in others] == ["controls/all", "plate", "running", "untrained"]
    profile("run_name=r", "statistics.eval=running", "report=false")
    pd.testing.assert_frame_equal(table("p", "wells_running"), table("r"))
    profile("run_name=c", "statistics.eval=controls", "statistics.controls=all", "encode_batch_size=30")
    pd.testing.assert_frame_equal(table("p", "wells_controls-all"), table("c"))
    np.testing.assert_allclose(features(table("p", "wells_plate")), features(table("p")), rtol=1e-4, atol=1e-5)
    before = {file: file.stat().st_mtime_ns for file in Path("runs/p/compared").rglob("*.parquet")}
    assert {file.name for file in before} == {"wells.parquet"}
    profile("run_name=p", "compare=[running]", "postprocess=standardize")
    assert before == {file: file.stat().st_mtime_ns for file in Path("runs/p/compared").rglob("*.parquet")}
    assert [file.name for file in Path("runs/p").glob("profiles_wells_*")].count("profiles_wells_plate.parquet") == 0
    assert Path("runs/p/profiles_wells_raw.parquet").exists()
    pd.testing.assert_frame_equal(table("p", "wells_running"), table("r"))
    profile("run_name=p")
    assert not list(Path("runs/p").glob("profiles_wells_*"))


def test_the_untrained_encoder_is_one_of_the_same_kind_and_of_fresh_weights(profile, caplog):
    caplog.set_level("INFO")
    profile("run_name=p", "compare=[calibrated]")  # the run's own word
    assert [file.name for file in Path("runs/p").glob("profiles_wells_*")] == ["profiles_wells_untrained.parquet"]
    fresh = (*(option for option in CELLS if "model_path" not in option), *MODEL)
    profile("run_name=q", "statistics.eval=plate", "seed=1", of=fresh)
    pd.testing.assert_frame_equal(table("p", "wells_untrained"), table("q"))
    assert abs(features(table("p", "wells_untrained")) - features(table("p"))).max() > 0.01


def test_the_wells_of_other_words_go_on_where_they_were_stopped(profile, monkeypatch, caplog):
    caplog.set_level("INFO")
    write, done = profiles.write_plate, []

    def stop(tables, folder, **about):
        if len(done) == 11:
            raise KeyboardInterrupt
        done.append(folder)
        write(tables, folder, **about)

    monkeypatch.setattr(profiles, "write_plate", stop)
    with pytest.raises(KeyboardInterrupt):
        profile("run_name=p", "compare=[running]")
    monkeypatch.setattr(profiles, "write_plate", write)
    profile("run_name=p", "compare=[running]")
    assert "'running', to compare: 3 of 8 plates are there already" in caplog.text
    assert "'untrained', to compare: 0 of 8 plates are there already" in caplog.text


def test_a_run_of_profiles_ends_in_a_page(profile, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("biomass.profiling.ending.CORRECTIONS", ("none",))  # which takes half of the time
    profile("run_name=p", "compare=[running]", "report=true", "encode_batch_size=30")
    assert "runs/p/report.html" in caplog.text
    page = Path("runs/p/report.html").read_text()
    assert "<html" in page
    layers = pd.read_csv("runs/p/layers.csv")
    assert set(layers["words"]) == {"running", "plate"}
    assert Path("runs/p/samples.png").exists()
    judged = pd.read_csv("runs/p/table.csv")
    assert {"calibrated", "running", "untrained"} <= set(judged["statistics"])
    about = json.loads(Path("runs/p/evaluation.json").read_text())
    assert about["command"].startswith("biomass profile")
    assert set(about["fingerprint"]) == {"calibrated", "running", "untrained"}


def test_a_page_that_cannot_be_made_does_not_lose_the_profiles(profile, monkeypatch, caplog):
    for part in ("profiling.ending.save_samples", "judgement.evaluate.evaluate", "report.page.write_report"):
        monkeypatch.setattr(f"biomass.{part}", lambda *_, **__: 1 / 0)
    profile("run_name=p", "report=true")
    assert len(table("p")) == 56
    assert caplog.text.count("ZeroDivisionError") == 3
    assert not Path("runs/p/report.html").exists()


def test_a_method_of_training_is_understood(profile):
    profile("run_name=a", "+method=ben_controls")
    profile("run_name=b", "statistics.eval=controls")
    np.testing.assert_array_equal(features(table("a")), features(table("b")))


def test_a_screen_of_fields_has_no_cells(run):
    run("train_erm", *TINY_SCREEN, *TINY_RUN, "num_epochs=1", "run_name=erm")
    options = (*TINY_SCREEN, "device=cpu", "model_path=erm", "run_name=p")
    run("profile", *options)
    assert not Path("runs/p/profiles_cells.parquet").exists()
    assert "Metadata_Count_Cells" not in table("p", "fields")
    assert set(table("p")["Metadata_Count_Fields"]) == {2}
    run("profile", *options, "rows=cells", "run_name=q")
    assert len(table("q", "cells")) == len(table("p", "fields"))


@pytest.mark.parametrize(
    ("column", "values", "counted"),
    [("cells", [3, 4], True), ("Image_Count_Cells", ["3", "4"], True), ("cells", ["A549", "U2OS"], False)],
)
def test_cells_that_somebody_counted_are_known(column, values, counted):
    names = dict.fromkeys(COLUMNS, ["P1"] * 4) | {"well": ["A1", "A1", "A2", "A2"], "site": ["1", "2"] * 2}
    frame = pd.DataFrame(names | {"label": 0, "control": "", column: values * 2})
    known = describe(make_screen(frame, None, ["DMSO"]), "fields")
    plate = PlateVectors(0, np.arange(4), np.ones((4, 2), np.float32))
    schemas = {level: known.schema(level, ["a", "b"], known.counts is not None) for level in known.levels}
    tables = {level: one.to_pandas() for level, one in plate_tables(known, plate, schemas).items()}
    if counted:
        assert tables["fields"]["Metadata_Count_Cells"].tolist() == [3, 4, 3, 4]
        assert tables["wells"]["Metadata_Count_Cells"].tolist() == [7, 7]
        assert f"Metadata_{column}" not in tables["fields"]
    else:
        assert "Metadata_Count_Cells" not in tables["fields"]
        assert tables["fields"]["Metadata_cells"].tolist() == values * 2


def test_a_network_without_batch_norm_runs_as_it_is(run, caplog):
    caplog.set_level("INFO")
    run("train_erm", *TINY_SCREEN, *TINY_RUN, "model.norm=group", "num_epochs=1", "+method=vanilla", "run_name=erm")
    options = (*TINY_SCREEN, "device=cpu", "model_path=erm")
    run("profile", *options, "run_name=p")
    assert "no batch norm" in caplog.text
    with pytest.raises(ConfigError, match="no plate-aware batch norm"):
        run("profile", *options, "run_name=q", "statistics.eval=calibrated")


def test_wells_are_corrected_on_their_controls_and_a_later_run_does_the_same(profile):
    profile("run_name=p", "postprocess=standardize")
    done, raw = table("p"), pd.read_parquet("runs/p/profiles_wells_raw.parquet")
    plate = done["Metadata_Plate"] + done["Metadata_Batch"]
    controls = done[done["Metadata_control"] == "negative"]
    means = features(controls).reshape(len(set(plate)), -1, features(controls).shape[1]).mean(1)
    np.testing.assert_allclose(means, 0, atol=1e-3)
    profile("run_name=q", "postprocess.load=p", "measure_again=true")
    pd.testing.assert_frame_equal(table("q"), done)
    profile("run_name=p")
    pd.testing.assert_frame_equal(table("p"), raw)
    assert not Path("runs/p/profiles_wells_raw.parquet").exists()
    assert not Path("runs/p/postprocess.npz").exists()


def test_position_effects_are_removed_by_a_key_alone_or_before_a_correction(profile):
    profile("run_name=p", "postprocess=position")
    done, raw = table("p"), pd.read_parquet("runs/p/profiles_wells_raw.parquet")
    pd.testing.assert_frame_equal(done, Positions.of([raw]).apply(raw))
    assert not Path("runs/p/postprocess.npz").exists()
    profile("run_name=p", "postprocess=standardize", "postprocess.position=true")
    controls = done[done["Metadata_control"] == "negative"]
    expected = postprocess.fit(controls, "standardize").apply(done)
    np.testing.assert_allclose(features(table("p")), features(expected), rtol=1e-2, atol=1e-2)
    profile("run_name=q", "postprocess.load=p", "measure_again=true")  # which knows that its plates go without
    pd.testing.assert_frame_equal(table("q"), table("p"))
    replace(postprocess.Correction.load(Path("runs/p/postprocess.npz")), position=False).save(Path("with.npz"))
    with pytest.raises(ConfigError, match="position"):
        profile("run_name=s", "postprocess.load=with.npz", "postprocess.position=true")


def test_a_correction_fitted_on_some_plates_is_that_of_a_run_of_these_plates(profile):
    profile("run_name=p")
    every = table("p")
    plates = sorted(set(every["Metadata_Batch"] + "/" + every["Metadata_Plate"]))[:4]
    on = f"postprocess.fit_on=[{','.join(plates)}]"
    profile("run_name=p", "postprocess=tvn", on)
    some = table("p")
    profile("run_name=p", "postprocess=tvn")
    assert abs(features(some) - features(table("p"))).max() > 1e-3
    from biomass.evaluation import tvn

    first = (every["Metadata_Batch"] + "/" + every["Metadata_Plate"]).isin(plates)
    mask = (every["Metadata_control"] == "negative").to_numpy()
    alone = tvn(every[first], mask[first], every["Metadata_Batch"][first].to_numpy())
    np.testing.assert_allclose(features(some[first]), features(alone), rtol=1e-2, atol=1e-2)


def test_classical_features_need_no_network(run):
    options = (*(o for o in CELLS if not o.startswith("model_path")), "features=classical")
    run("profile", *options, "run_name=p")
    run("profile", *options, "run_name=q", "dataloaders.num_workers=2")
    pd.testing.assert_frame_equal(table("p", "cells"), table("q", "cells"))
    assert "Nuclei_AreaShape_Area" in table("p")
    assert not Path(KNOWN).exists()
    fields = (*TINY_SCREEN, "device=cpu", "features=classical", "classical.diameter=12", "run_name=f")
    run("profile", *fields)
    assert table("f")["Metadata_Count_Cells"].min() >= 1
    with pytest.raises(ConfigError, match="model_path"):
        run("profile", *options, "model_path=encoder", "run_name=r")
    for more in ("statistics.eval=plate", "compare=[plate]"):
        with pytest.raises(ConfigError, match="no statistics"):
            run("profile", *options, more, "run_name=r")
    assert not Path("runs/r").exists()


def test_pycytominer_and_copairs_read_the_profiles(profile, run):
    import pycytominer
    from copairs.map import average_precision

    profile("run_name=p")
    run("profile", *(o for o in CELLS if not o.startswith("model_path")), "features=classical", "run_name=c")
    for name in ("p", "c"):
        file = f"runs/{name}/profiles_wells.parquet"
        columns = [c for c in pd.read_parquet(file) if not c.startswith("Metadata_")]
        how = columns if name == "p" else "infer"  # names of CellProfiler are known as features
        ours = pd.read_parquet(f"runs/{name}/profiles_cells.parquet")
        wells = pycytominer.aggregate(ours, features=how, operation="mean", output_file=None)
        assert {"Metadata_Plate", "Metadata_Well"} <= set(wells)
        scaled = pycytominer.normalize(file, features=how, samples="Metadata_control == 'negative'")
        selected = pycytominer.feature_select(scaled, features=how, operation=["variance_threshold", "drop_na_columns"])
        left = [c for c in selected if c in columns]
        assert 0 < len(left) <= len(columns)
        treated = selected[selected["Metadata_control"] == ""].reset_index(drop=True)
        about = treated.filter(like="Metadata_")
        found = average_precision(
            about,
            treated[left].to_numpy(),
            ["Metadata_label"],
            ["Metadata_Plate"],
            [],
            ["Metadata_label"],
            progress_bar=False,
        )
        assert found["average_precision"].between(0, 1).any()


def test_anndata_is_written_where_it_is_installed(profile, monkeypatch):
    anndata = pytest.importorskip("anndata")
    profile("run_name=p", "anndata=true")
    read = anndata.read_h5ad("runs/p/profiles_wells.h5ad")
    wells = table("p")
    np.testing.assert_array_equal(read.X, features(wells))
    assert read.obs["Metadata_Well"].tolist() == wells["Metadata_Well"].tolist()
    assert read.var_names[0] == "emb_0000"


def test_anndata_that_is_not_installed_is_said_before_anything_is_encoded(profile, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ConfigError, match="anndata") as caught:
        profile("run_name=p", "anndata=true")
    assert caught.value.advice == "anndata"
    assert not Path("runs/p").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["model_path=null"], ConfigError, "needs a network"),
        (["features=deep"], ConfigError, '"deep"'),
        (["rows=nuclei"], ConfigError, "'nuclei'"),
        (["statistics.eval=tent"], ConfigError, "tent"),
        (["statistics.eval=balanced"], ConfigError, "balanced"),
        (["statistics.by=[site]"], ConfigError, "well"),
        (["calibration=checkpoints/encoder/last.pt"], CheckpointError, r"last\.pt"),
        (["postprocess.how=sphere"], ConfigError, "sphere"),
        (["postprocess=tvn", "postprocess.controls=dmso"], ConfigError, "dmso"),
        (["postprocess=standardize", "postprocess.controls=positive"], DataError, "too few"),
        (["postprocess=tvn", "postprocess.fit_on=[P9]"], ConfigError, "P9"),
        (["postprocess=tvn", "postprocess.by=[Metadata_Week]"], ConfigError, "Metadata_Week"),
        (["postprocess=tvn", "postprocess.epsilon=-1"], ConfigError, "-1"),
        (["postprocess.load=nowhere"], DataError, "nowhere"),
        (["classical.size=3"], ConfigError, "size"),
        (["compare=[plat]"], ConfigError, "'plat'"),
        (["compare=[running,tent]"], ConfigError, "tent"),
        (["compare=[balanced]"], ConfigError, "balanced"),
        (["compare=[controls/dmso]"], ConfigError, "dmso"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(profile, options, error, message):
    with pytest.raises(error, match=message):
        profile("run_name=p", "+classical.size=3" if options == ["classical.size=3"] else options[0], *options[1:])
    assert not Path("runs/p").exists()


def test_a_correction_for_other_profiles_is_refused(profile):
    profile("run_name=p", "postprocess=whiten")
    with pytest.raises(ConfigError, match="other weights"):
        profile("run_name=q", "postprocess.load=p", "statistics.eval=running")
    with pytest.raises(ConfigError, match="whiten"):
        profile("run_name=q", "postprocess.load=p", "postprocess=tvn")


def test_moments_of_other_weights_or_transforms_are_not_taken(profile, run, caplog):
    run("calibrate", *CELLS, "run_name=c")
    state = torch.load(KNOWN)
    torch.save(state | {"encoder": "of others"}, KNOWN)
    profile("run_name=p")
    assert "other weights" in caplog.text
    assert torch.load(KNOWN)["encoder"] == state["encoder"]
    with pytest.raises(CheckpointError, match="transform"):
        profile("run_name=q", "transforms.eval=[]")
    torch.save(state | {"images": [count - 1 for count in state["images"]]}, KNOWN)
    profile("run_name=r")
    assert "measure again" in caplog.text


def test_images_that_cannot_be_read_are_left_out_and_listed(run, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "lab"
    folder.mkdir()
    rows = [(f"{p}_{w}_{s}.npy", "B1", p, w, s) for p in ("P1", "P2") for w in ("A1", "A2") for s in (1, 2)]
    for name, *_ in rows:
        np.save(folder / name, rng.integers(0, 255, (3, 48, 48), dtype=np.uint8))
    pd.DataFrame(rows, columns=["path", "experiment", "plate", "well", "site"]).to_csv(
        folder / "manifest.csv", index=False
    )
    run("train_erm", *TINY_SCREEN, *TINY_RUN, "num_epochs=1", "run_name=erm")
    mine = ("dataloaders=manifest", f"dataloaders.root_dir={folder}", "dataloaders.source.axes=CHW", "device=cpu")
    mine += ("dataloaders.source.channels=[nuclei,ER,actin]", "dataloaders.num_workers=0", "model_path=erm")
    others = [text.replace("[nuclei,ER,actin]", "[a,b,c]") for text in mine]
    with pytest.raises(ConfigError, match=r"expects the channels .* has a, b, c"):
        run("profile", *others, "run_name=p")
    assert not Path("runs/p").exists()
    for name, *_ in rows[4:]:
        (folder / name).write_bytes(b"")
    (folder / rows[1][0]).write_bytes(b"cut")
    with pytest.raises(BadImageError, match=r"P1_A1_2\.npy"):
        run("profile", *mine, "run_name=p")
    run("profile", *mine, "run_name=p", "dataloaders.on_bad_image=skip")
    assert len(table("p", "fields")) == 3
    assert "P1_A1_2.npy" in Path("runs/p/skipped_images.txt").read_text()


def test_real_cells_from_end_to_end(run, real_data):
    mine = ("dataloaders=bbbc021_crops", f"dataloaders.root_dir={real_data}/bbbc021_cells", "dataloaders.num_workers=0")
    own = ("+experiment=bbbc021_cells", *mine[1:], "+method=ben", "trainer.max_steps=2", "run_name=own")
    run("train_erm", *own, "model.key=test_resnet")
    run("profile", *mine, "model_path=own", "device=cpu", "run_name=p", "postprocess=whiten")
    cells, wells = table("p", "cells"), table("p")
    assert len(cells) == wells["Metadata_Count_Cells"].sum() == 1000
    assert set(wells["Metadata_moa"]) == set(wells["Metadata_label"])
    assert cells["Metadata_Plate"].nunique() == 55


@pytest.mark.parametrize("compared", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_of_a_run_make_the_same_files(compared, profile):
    options = ("compare=[running]",) if compared else ("rows=fields",)
    options = (*options, "report=false")
    if compared:
        profile(*options, "run_name=whole")
        Path("checkpoints/encoder").rename("checkpoints/first")  # what was measured on plates stays there
        Path("checkpoints/encoder").mkdir()
        Path("checkpoints/encoder/last.pt").symlink_to(Path("checkpoints/first/last.pt").resolve())
    shard = partial(profile, *options, "run_name=parts")
    shard("shard=2/2")
    with pytest.raises(ConfigError, match=r"shard 2/2 .* normalize=false, .* normalize=true"):
        shard("shard=1/2", "normalize=true")
    with pytest.raises(DataError, match=r"shard 1 of 2 is not finished: .*shard=1/2"):
        shard("shard=merge")
    shard("shard=1/2")
    shard("shard=merge")
    if not compared:  # moments that are stored give what those gave that were measured
        profile(*options, "run_name=whole")
    one, parts = (sorted(Path("runs", name).glob("*.parquet")) for name in ("whole", "parts"))
    assert [file.name for file in one] == [file.name for file in parts]
    assert len(one) == (5 if compared else 2)
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in parts]
    assert not Path("runs/parts/shards").exists()


def test_shards_need_the_name_of_their_run(profile):
    with pytest.raises(ConfigError, match="need its name"):
        profile("shard=1/2")
    with pytest.raises(ConfigError, match="shard '0/4' is none of 4"):
        profile("run_name=a", "shard=0/4")
