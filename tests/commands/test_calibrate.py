"""``biomass calibrate``: the moments of plates beside a checkpoint, and what uses them."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.simulation.rxrx1 import Design, simulate_rxrx1

ENCODER = (*TINY_CELLS, "model.key=test_resnet", "model.projector=[16,8]", "model.pretrained=false", "num_epochs=1")
PROBE = (*TINY_CELLS, "num_epochs=2", "num_warmup_epochs=0", "transforms=plain", "model_path=encoder")
CALIBRATE = (*(o for o in TINY_CELLS if "warmup" not in o), "model_path=encoder")


@pytest.fixture
def encoder(run):
    run("train_simclr", *ENCODER, "run_name=encoder", "dataloaders.sampler=plate")
    return Path("checkpoints/encoder/last.calibrated.pt")


def metrics(name):
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return {key: value for line in lines for key, value in line.items() if key not in ("time", "seconds")}


@pytest.mark.parametrize("method", ["ben", "ben_controls", "ben_experiment"])
def test_a_probe_by_calibrated_statistics_is_the_one_by_whole_plates(run, encoder, method):
    run("calibrate", *CALIBRATE, f"+method={method}", "run_name=c", "encode_batch_size=30")
    plates = pd.read_csv("runs/c/plates.csv")
    state = torch.load(encoder, weights_only=True)
    assert state["plates"] == list(plates["plate"])
    assert len(plates) == (4 if method == "ben_experiment" else 8)
    by = "statistics.by=[experiment]" if method == "ben_experiment" else "statistics.by=null"
    splits = "dataloaders.eval_splits=[val,test,iid_val]"  # all, so that whole plates are at hand, as in calibration
    run("train_classifier", *PROBE, splits, f"+method={method}", "run_name=at_hand")
    run("train_classifier", *PROBE, splits, by, "statistics.eval=calibrated", "run_name=stored")
    assert metrics("stored") == pytest.approx(metrics("at_hand"), rel=1e-3, abs=1e-4)


def test_a_second_call_adds_plates_and_keeps_the_others(run, encoder, data_root):
    design = {key.rpartition(".")[2]: int(value) for key, value in (o.split("=") for o in TINY_CELLS if "source" in o)}
    folder = simulate_rxrx1(data_root, Design(cells=True, **design))
    some = ("dataloaders=rxrx1_cells", f"dataloaders.img_dir={folder}/cells", "dataloaders.source.cell_type=HUVEC")
    settings = ("model_path=encoder", "dataloaders.num_workers=0", "device=cpu", "dataloaders.source.download=false")
    run("calibrate", *some, f"dataloaders.metadata_file={folder}/rxrx1_v1.0/metadata.csv", *settings, "run_name=c")
    first = torch.load(encoder, weights_only=True)
    with pytest.raises(DataError, match="is not among the") as caught:
        run("train_classifier", *PROBE, "statistics.eval=calibrated", "run_name=p")
    assert caught.value.advice == "calibrate"
    run("calibrate", *CALIBRATE, "run_name=d")
    both = torch.load(encoder, weights_only=True)
    assert set(first["plates"]) < set(both["plates"])
    for key, moments in first["moments"].items():
        places = [both["plates"].index(plate) for plate in first["plates"]]
        torch.testing.assert_close(both["moments"][key][:, places], moments)
    run("train_classifier", *PROBE, "statistics.eval=calibrated", "run_name=p")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("model_path=null",), ConfigError, "needs a network"),
        (("statistics.eval=running",), ConfigError, "running"),
        (("statistics.eval=calibrated",), ConfigError, "calibrated"),
        (("statistics.by=[flask]",), ConfigError, "flask"),
        (("statistics.eval=controls",), CheckpointError, "word plate, not controls"),
        (("statistics.by=[experiment]",), CheckpointError, "by .*plate"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_measured(run, encoder, overrides, error, message):
    run("calibrate", *CALIBRATE, "run_name=c")
    before = encoder.read_bytes()
    with pytest.raises(error, match=message):
        run("calibrate", *CALIBRATE, *overrides, "run_name=d")
    assert encoder.read_bytes() == before
    assert not Path("runs/d").exists()


def test_statistics_of_other_weights_or_of_nobody_are_refused(run, encoder):
    with pytest.raises(CheckpointError, match=r"last\.calibrated\.pt") as caught:
        run("train_classifier", *PROBE, "statistics.eval=calibrated", "run_name=p")
    assert caught.value.advice == "calibrate"
    run("calibrate", *CALIBRATE, "calibration=mine.pt", "run_name=c")
    assert not encoder.exists()
    run("train_classifier", *PROBE, "statistics.eval=calibrated", "calibration=mine.pt", "run_name=p")
    with pytest.raises(CheckpointError, match="no calibrated statistics"):
        run("train_classifier", *PROBE, "statistics.eval=calibrated", f"calibration={encoder.with_name('last.pt')}")


def test_moments_of_other_weights_are_refused_and_replaced(run, encoder, caplog):
    run("calibrate", *CALIBRATE, "run_name=c")
    run("train_simclr", *ENCODER, "dataloaders.sampler=plate", "num_epochs=2", "run_name=encoder", "resume=auto")
    with pytest.raises(CheckpointError, match="other weights"):
        run("train_classifier", *PROBE, "statistics.eval=calibrated", "run_name=p")
    run("calibrate", *CALIBRATE, "run_name=d")
    assert "it is replaced" in caplog.text
    run("train_classifier", *PROBE, "statistics.eval=calibrated", "run_name=p")


def test_training_evaluates_by_calibrated_statistics_as_by_whole_plates(run):
    erm = (*TINY_SCREEN, *TINY_RUN, "num_epochs=2", "train_batch_size=8", "dataloaders.eval_splits=[val]")
    run("train_erm", *erm, "statistics.eval=plate", "run_name=plate")
    run("train_erm", *erm, "statistics.eval=calibrated", "eval_batch_size=3", "run_name=calibrated")
    assert metrics("calibrated") == pytest.approx(metrics("plate"), rel=1e-3, abs=1e-4)
