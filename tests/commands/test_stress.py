"""``biomass stress`` and ``biomass tune``: on a trained classifier, end to end."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN, run_script

from biomass.errors import CheckpointError, ConfigError

TRAIN = (*TINY_SCREEN, *TINY_RUN, "num_epochs=1", "run_name=net")
STRESS = (
    *TINY_SCREEN,
    "device=cpu",
    "model_path=net",
    "axes.wells=[1,null]",
    "axes.label_shift=[null,0.1]",
    "axes.controls=[0,null]",
)
STRESS += ("axes.effect=[1]", "axes.prospective=[2]", "repeats=1")
TUNE = (*TINY_SCREEN, "device=cpu", "model_path=net", "fit_plates=1")


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A folder where a classifier was trained, as the run ``net``."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BIOMASS_DATA", str(data_root))
        run_script("train_erm", *TRAIN)
    return folder


@pytest.fixture
def net(run, trained, tmp_path):
    """The run ``net`` in the folder of the test."""
    for part in ("runs", "checkpoints"):
        shutil.copytree(trained / part, tmp_path / part)


def strip(path: str) -> None:
    """Make a checkpoint as older ones are, without what is known of training plates."""
    state = torch.load(path, weights_only=True)
    del state["tuning"]
    torch.save(state, path)


def test_a_classifier_is_tried_and_a_test_that_was_cut_off_goes_on(run, net, caplog):
    caplog.set_level(logging.INFO)
    run("stress", *STRESS, "run_name=s", "words=[running,plate,controls/all,balanced]")
    table = pd.read_csv("runs/s/stress.csv", dtype={"value": str})
    assert list(table.columns) == ["statistics", "axis", "value", "repeats", "accuracy", "low", "high"]
    assert set(table["statistics"]) == {"running", "plate", "controls/all", "balanced"}
    assert set(table["axis"]) == {"wells", "label_shift", "controls", "effect", "prospective"}
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    for name in ("stress.json", "stress.png", "drift.csv", "drift.png", "config.yaml"):
        assert Path("runs/s", name).stat().st_size > 0
    parts = sorted(Path("runs/s/plates").iterdir())
    assert len(parts) == 2
    written = parts[0].stat().st_mtime_ns
    parts[1].write_text("{")  # cut off
    before = Path("runs/s/stress.csv").read_bytes()
    run("stress", *STRESS, "run_name=s", "words=[running,plate,controls/all,balanced]")
    assert Path("runs/s/stress.csv").read_bytes() == before
    assert parts[0].stat().st_mtime_ns == written
    assert "1 of 2 plates were tried before" in caplog.text
    run("stress", *STRESS, "run_name=s", "words=[running]", "seed=1", "report=true")  # another test: made again
    assert set(pd.read_csv("runs/s/stress.csv")["statistics"]) == {"running"}
    assert Path("runs/s/report.html").exists()


def test_whole_plates_give_what_training_measured(run):
    run("train_erm", *TRAIN, "+method=ben", "dataloaders.eval_splits=[val,test]")
    run("stress", *STRESS, "run_name=s", "words=[plate]")
    logged = [json.loads(line) for line in Path("runs/net/metrics.jsonl").read_text().splitlines()]
    trained = next(line["test/treatments"] for line in reversed(logged) if "test/treatments" in line)
    table = pd.read_csv("runs/s/stress.csv").set_index(["axis", "value"])["accuracy"]
    positive = 1 / 5  # a share of the treatments of the table are positive controls, which are not treated
    assert abs(table["wells", "all"] - trained) < positive + 1e-6


def test_older_checkpoints_are_tried_without_the_words_that_need_more_and_tuned(run, net, caplog):
    strip("checkpoints/net/last.pt")
    run("stress", *STRESS, "run_name=s")
    assert "balanced" in caplog.text
    assert "biomass tune" in caplog.text
    assert set(pd.read_csv("runs/s/stress.csv")["statistics"]) == {"running", "plate", "controls"}
    with pytest.raises(ConfigError, match="balanced") as error:
        run("stress", *STRESS, "run_name=t", "words=[balanced]")
    assert error.value.advice == "tune"
    run("tune", *TUNE, "run_name=tuned")
    state = torch.load("checkpoints/net/last.pt", weights_only=True)["tuning"]
    assert state["fitted"]
    tried = pd.read_csv("runs/tuned/tried.csv")
    numbers = ["mode", "shrinkage", "prior_rows", "evenness", "trust", "strength"]
    before = tried[tried["word"] == "balanced"].iloc[15]  # the last of its first round is what there was
    chosen = tried[(tried[numbers] == [state[name] for name in numbers]).all(axis=1) & (tried["word"] == "balanced")]
    assert chosen["accuracy"].iloc[0] >= before["accuracy"]
    run("stress", *STRESS, "run_name=s", "words=[shrunk,balanced]", "axes.label_shift=[]", "axes.effect=[]")
    assert set(pd.read_csv("runs/s/stress.csv")["statistics"]) == {"shrunk", "balanced"}


def test_the_best_checkpoint_knows_its_training_plates_too(run):
    run("train_erm", *TRAIN[:-2], "num_epochs=3", "run_name=net", "statistics.eval=shrunk")
    states = {name: torch.load(f"checkpoints/net/{name}.pt", weights_only=True) for name in ("last", "best")}
    for state in states.values():
        norms = {key.removesuffix(".running_mean") for key in state["network"] if key.endswith("running_mean")}
        assert set(state["tuning"]["prior"]) == norms
    same = states["last"]["progress"]["step"] == states["best"]["progress"]["step"]
    some = next(iter(states["last"]["tuning"]["prior"]))
    assert torch.equal(*(state["tuning"]["prior"][some] for state in states.values())) == same


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("model_path=null",), ConfigError, "needs a network"),
        (("model_path=nobody",), CheckpointError, "nobody"),
        (("words=[plat]",), ConfigError, "plate"),
        (("words=[controls/both]",), ConfigError, "both"),
        (("axes.label_shift=[0]",), ConfigError, "concentration 0"),
        (("base.label_shift=-1",), ConfigError, "concentration -1"),
        (("axes.wells=[0]",), ConfigError, "wells"),
        (("axes.effect=[-1]",), ConfigError, "effect"),
        (("statistics.by=[flask]",), ConfigError, "flask"),
        (("dataloaders.eval_splits=[nobody]",), ConfigError, "nobody"),
        (("dataloaders.source.treatments=3",), ConfigError, "6 classes"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(run, net, overrides, error, message):
    with pytest.raises(error, match=message):
        run("stress", *STRESS, "run_name=s", *overrides)
    assert not Path("runs/s").exists()


def test_networks_that_do_not_classify_are_measured_and_not_tried(run):
    run(
        "train_simclr",
        *TINY_CELLS,
        "model.key=test_resnet",
        "model.projector=[16,8]",
        "model.pretrained=false",
        "num_epochs=1",
        "run_name=net",
    )
    cells = tuple(o for o in TINY_CELLS if "warmup" not in o)
    with pytest.raises(ConfigError, match="classifier"):
        run("stress", *cells, "model_path=net", "run_name=s")
    run("tune", *cells, "model_path=net", "run_name=t")
    assert not torch.load("checkpoints/net/last.pt", weights_only=True)["tuning"]["fitted"]


@pytest.mark.parametrize("tool", ["stress", "tune"])
def test_a_network_without_batch_norm_is_refused_before_anything_is_written(run, tool):
    run("train_erm", *TRAIN, "model.norm=group", "+method=vanilla")
    with pytest.raises(ConfigError, match="batch norm"):
        run(tool, *(STRESS if tool == "stress" else TUNE), "run_name=s")
    assert not Path("runs/s").exists()


def test_a_tool_does_not_write_into_a_run_that_was_trained(run, net):
    before = Path("runs/net/config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="'net' is a run that was trained"):
        run("stress", *STRESS, "run_name=net")
    assert Path("runs/net/config.yaml").read_bytes() == before
