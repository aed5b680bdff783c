"""Which probes make up a table, and which must not."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

SOURCE = {"_target_": "biomass.datasets.simulated.load_simulated_cells", "root_dir": "data", "seed": 0}


def views(seed=0, mode="random", sampler="plate"):
    """The configuration of an encoder of train_simclr.py, as far as it matters."""
    return {"seed": seed, "num_views": 2, "dataloaders": {"mode": mode, "sampler": sampler}}


def cells(seed=0, sampler="plate"):
    return {"seed": seed, "dataloaders": {"sampler": sampler, "mode": "random"}}


def fields(seed=0, **data):
    return {"seed": seed, "dataloaders": {"eval_plate_sampler": True, **data}}


@pytest.fixture
def probe(tmp_path):
    """``probe("name", encoder, 0.5, key=value)`` writes the run of a probe."""

    def write(name, encoder, value=0.5, sampler="plate", source=None, **keys):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {
            "model_train_mode": True, "pooler": "mean", "normalize": True, "use_projs": False, "seed": 0,
            "dataloaders": {"sampler": sampler, "source": SOURCE | (source or {})}, "encoder": encoder, **keys,
        }  # fmt: skip
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "test/accuracy": value}) + "\n")

    return write


@pytest.fixture
def table(tmp_path):
    def call(*arguments):
        command = [sys.executable, str(ROOT / "misc/ablation_table.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def written(tmp_path):
    frame = pd.read_csv(Path(tmp_path, "tables/ablation.csv"))
    return [tuple(row) for row in frame[["method", "trained with", "inference with", "count"]].to_numpy().tolist()]


def test_seeds_of_a_cell_are_averaged(probe, table):
    for seed, value in ((0, 0.5), (1, 0.7)):
        probe(f"p{seed}", views(seed), value)
    assert "| MinCLR, 2 views | 60.0 ± 14.1 (2) |" in table().stdout


@pytest.mark.parametrize(
    ("mode", "sampler", "expected"),
    [
        (False, "plate", "vanilla"), (False, "random", "vanilla"), (True, "plate", "plate"),
        (True, "exp", "experiment"), (True, "random", "mixed batches"),
    ],
)  # fmt: skip
def test_inference_is_what_the_probe_normalized_with(probe, table, tmp_path, mode, sampler, expected):
    probe("p", views(sampler="random"), model_train_mode=mode, sampler=sampler)
    assert f"train vanilla / inference {expected}" in table().stdout
    assert written(tmp_path) == [("MinCLR", "vanilla", expected, 1)]


@pytest.mark.parametrize(
    ("encoder", "method", "trained"),
    [
        (views(mode="random_single", sampler="exp"), "SimCLR", "experiment"),
        (cells(sampler="random"), "supervised cell", "vanilla"),
        (cells(), "supervised cell", "plate"),
        (fields(), "supervised field", "vanilla"),
        (fields(train_groupby=None), "supervised field", "vanilla"),
        (fields(train_groupby=["experiment", "plate"]), "supervised field", "plate"),
        (fields(train_groupby=["experiment"]), "supervised field", "experiment"),
        (fields(train_groupby=["cell_type"]), "supervised field", "cell_type"),
    ],
)
def test_an_encoder_is_what_its_script_and_its_batches_are(probe, table, tmp_path, encoder, method, trained):
    probe("p", encoder)
    assert table().returncode == 0
    assert written(tmp_path) == [(method, trained, "plate", 1)]


def test_columns_stand_in_order(probe, table, tmp_path):
    for i, (mode, sampler) in enumerate([(True, "exp"), (True, "plate"), (True, "random"), (False, "plate")]):
        probe(f"p{i}", views(), sampler=sampler, model_train_mode=mode)
    assert table().returncode == 0
    assert [row[2] for row in written(tmp_path)] == ["vanilla", "mixed batches", "plate", "experiment"]


def refused(done):
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_two_probes_of_the_same_seed_are_refused(probe, table, tmp_path):
    probe("a", views(0))
    probe("b", views(1))
    probe("c", views(1))
    message = refused(table())
    assert message.startswith("error: runs b and c probe encoders of the same seed 1 (MinCLR, train plate / ")
    assert not (tmp_path / "tables").exists()
    assert table("runs/a", "runs/b").returncode == 0
    probe("d", views(1), model_train_mode=False)  # another cell of the table
    assert table("runs/a", "runs/b", "runs/d").returncode == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pooler": "median"}, "error: runs a and c differ in pooler (mean and median)"),
        ({"normalize": False}, "error: runs a and c differ in normalize (True and False)"),
        ({"use_projs": True}, "error: runs a and c differ in use_projs (False and True)"),
        ({"source": {"seed": 3}}, "error: runs a and c differ in dataloaders.source (seed: 0 and 3)"),
        ({"source": {"plates": 3}}, "error: runs a and c differ in dataloaders.source (plates: None and 3)"),
    ],
)
def test_probes_of_other_settings_are_refused(probe, table, more, message):
    probe("a", views(0))
    probe("b", views(1))
    probe("c", views(2, sampler="random"), **more)  # even in another cell
    assert refused(table()).startswith(message)


def test_probes_of_plain_state_dicts_are_said_to_be_left_out(probe, table, tmp_path):
    probe("a", views())
    probe("plain", {})
    (tmp_path / "runs/training").mkdir()  # a run that is no probe
    OmegaConf.save(OmegaConf.create(views()), tmp_path / "runs/training/config.yaml")
    (tmp_path / "runs/training/metrics.jsonl").write_text('{"test/accuracy": 0.1}\n')
    done = table()
    assert written(tmp_path) == [("MinCLR", "plate", "plate", 1)]
    assert done.stderr == (
        "left out: runs/plain, whose encoder is a plain state dict and does not say how it was trained\n"
    )
