"""``biomass predict``: on what the scripts trained, end to end; and the predictions that training leaves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN

from biomass.commands.index import main as index
from biomass.errors import BiomassError, CheckpointError, ConfigError
from biomass.evaluation.predictions import ABOUT
from biomass.simulation.lab_folder import simulate_lab_folder

TRAIN = (*TINY_SCREEN, *TINY_RUN, "num_epochs=2", "train_batch_size=8", "dataloaders.eval_splits=[val,test]")
PREDICT = (*TINY_SCREEN, "device=cpu")
CELLS = (*(o for o in TINY_CELLS if "warmup" not in o),)
KEYS = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]


def read(run: str, name: str = "predictions") -> pd.DataFrame:
    return pd.read_parquet(f"runs/{run}/{name}.parquet")


def assert_same(training: pd.DataFrame, tool: pd.DataFrame) -> None:
    """The predictions of training are among those of the tool."""
    columns = [c for c in training if c.startswith("p_")]
    keys = [c for c in KEYS if c in training]
    both = training.merge(tool, on=keys, suffixes=("", "_tool"), validate="one_to_one")
    assert len(both) == len(training) > 0
    np.testing.assert_allclose(both[columns], both[[f"{c}_tool" for c in columns]], atol=2e-5)


def metric(run: str, name: str) -> float:
    lines = [json.loads(line) for line in Path(f"runs/{run}/metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line][-1]


def test_training_and_the_tool_predict_alike_and_the_tool_stores_what_it_measured(run, capsys):
    run("train_erm", *TRAIN, "+method=ben", "run_name=net")
    run("predict", *PREDICT, "model_path=net", "run_name=p")
    assert "8 of them measured now" in capsys.readouterr().out
    trained, tool = read("net"), read("p")
    assert_same(trained, tool)
    assert_same(read("net", "predictions_wells"), read("p", "predictions_wells"))
    for split in ("val", "test"):
        here = trained[trained["Metadata_split"] == split]
        right = here["prediction"] == here["Metadata_label"]
        assert right.mean() == pytest.approx(metric("net", f"{split}/accuracy"))
    classes = json.loads(pq.read_schema("runs/p/predictions.parquet").metadata[ABOUT])["classes"]
    assert list(tool)[-len(classes) :] == [f"p_{name}" for name in classes]
    assert set(tool["prediction"]) <= set(classes)
    np.testing.assert_allclose(tool[[f"p_{name}" for name in classes]].sum(1), 1, atol=1e-5)
    assert list(torch.load("checkpoints/net/last.pt", weights_only=True)["classes"]) == classes
    run("predict", *PREDICT, "model_path=net", "run_name=again")
    assert "0 of them measured now" in capsys.readouterr().out
    assert_same(read("again"), tool)
    run("calibrate", *PREDICT, "model_path=net", "run_name=c")  # one file for both tools
    run("predict", *PREDICT, "model_path=net", "run_name=balanced", "statistics.eval=balanced")
    assert len(read("balanced")) == len(tool)
    assert Path("checkpoints/net/last.calibrated-balanced.pt").exists()
    run("predict", *PREDICT, "model_path=[net,checkpoints/net/best.pt]", "run_name=two", "eval_batch_size=3")
    assert "disagreement" in read("two")
    files = sorted(Path("checkpoints/net").iterdir())
    for setting, error, message in REFUSED:
        with pytest.raises(error, match=message):
            run("predict", *PREDICT, "model_path=net", "run_name=refused", *setting)
    assert sorted(Path("checkpoints/net").iterdir()) == files
    assert not Path("runs/refused").exists()


REFUSED: list[tuple[tuple[str, ...], type[BiomassError], str]] = [
    (("model_path=null",), ConfigError, "none is named"),
    (("model_path=nte",), CheckpointError, "'nte'"),
    (("statistics.eval=calibratd",), ConfigError, "'calibrated'"),
    (("statistics.by=[flask]",), CheckpointError, "flask"),
    (("transforms.eval=[]",), CheckpointError, "transform"),
    (("+watch_secnds=3",), ConfigError, "watch_secnds"),
    (("model_path=[net,net]", "calibration=x.pt"), ConfigError, "x.pt"),
    (("run_name=net",), ConfigError, "'net'"),
]


def test_a_screen_on_the_disk_is_watched_to_its_end(run, capsys, data_root):
    run("train_erm", *TRAIN, "+method=ben", "run_name=net", "num_epochs=1")
    run("predict", *PREDICT, "model_path=net", "run_name=p")
    run("predict", *PREDICT, "model_path=net", "run_name=w", "watch=true", "watch_seconds=0.1", "watch_stop_after=0.1")
    assert "8 plates were predicted" in capsys.readouterr().out
    assert_same(read("w"), read("p"))
    assert set(pd.read_csv("runs/w/watch.csv")["settled"]) == {"settled"}  # they are known, and stay what they are


def test_a_folder_that_grows_is_indexed_at_each_look_and_its_manifest_stays(run, tmp_path, monkeypatch):
    lab = simulate_lab_folder(tmp_path / "lab", "imagexpress", sites=2, size=48)
    later = tmp_path / "later"
    shutil.move(lab.images / "24383", later / "24383")
    wells = sorted((lab.images / "24382").rglob("*_D0*"))
    for path in wells:
        (later / path.relative_to(lab.images)).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, later / path.relative_to(lab.images))
    options = ["--z", "max", "--channels", "w1=DNA", "w2=actin"]
    index([str(lab.images), "--out", "screen", "--platemap", str(lab.platemap), "--splits", "plate", *options])
    source = ("dataloaders=manifest", "dataloaders.root_dir=screen", "device=cpu", "dataloaders.num_workers=0")
    run("train_erm", *source, *TINY_RUN, "+method=ben", "run_name=net", "num_epochs=1", "model.d_out=null",
        "model.key=test_resnet", "model.pretrained=false", "dataloaders.eval_splits=[test]",
        "trainer.monitor=test/accuracy")  # fmt: skip
    manifest, report = Path("screen/manifest.parquet"), Path("screen/manifest.report.txt")
    before = manifest.read_bytes(), report.read_bytes()
    looks = iter(range(10))

    def arrive(seconds: float) -> None:
        """Between two looks: wells and a plate that were lacking, but for one file; then that file."""
        if (number := next(looks)) == 0:
            shutil.copytree(later / "24382", lab.images / "24382", dirs_exist_ok=True)
            shutil.copytree(later / "24383", lab.images / "24383")
            half = next(path for path in (lab.images / "24383").rglob("*_B03_s1_w2*") if "thumb" not in path.name)
            half.rename(tmp_path / half.name)
            left.append(half)
        elif number == 1:
            (tmp_path / left[0].name).rename(left[0])

    left: list[Path] = []
    monkeypatch.setattr("biomass.watching.time.sleep", arrive)
    run("predict", *source, "model_path=net", "run_name=w", "watch=true", "watch_seconds=0.001",
        "watch_stop_after=0.001")  # fmt: skip
    assert (manifest.read_bytes(), report.read_bytes()) == before
    looked = pd.read_csv("runs/w/watch.csv").groupby("look")["images"].sum().to_dict()
    assert len(looked) == 3
    assert (looked[1], looked[3]) == (24 + 16, 24)
    assert looked[2] == 24 + 23
    index([str(lab.images), "--out", "screen", "--replace"])
    run("predict", *source, "model_path=net", "run_name=p", "measure_again=true")
    assert_same(read("w"), read("p"))


def test_probes_predict_as_in_their_training_and_need_their_encoder(run):
    encoder = (*TINY_CELLS, "model.key=test_resnet", "model.projector=[16,8]", "model.pretrained=false", "num_epochs=1")
    run("train_simclr", *encoder, "run_name=encoder", "dataloaders.sampler=plate")
    probe = (*TINY_CELLS, "num_epochs=1", "num_warmup_epochs=0", "transforms=plain", "model_path=encoder")
    splits = "dataloaders.eval_splits=[val,test,iid_val]"  # all, so that whole plates are at hand
    for pooler, method in {"mean": "ben", "median": "vanilla", "attention": "ben_controls"}.items():
        run("train_classifier", *probe, splits, f"+method={method}", f"pooler={pooler}", f"run_name={pooler}")
        run("predict", *CELLS, f"model_path={pooler}", f"run_name=of_{pooler}")
        assert_same(read(pooler), read(f"of_{pooler}"))
    assert not Path("checkpoints/mean/last.calibrated.pt").exists()  # it stands beside the encoder
    assert Path("checkpoints/encoder/last.calibrated.pt").exists()
    with pytest.raises(ConfigError, match=r"no classifier.*train_classifier"):
        run("predict", *CELLS, "model_path=encoder", "run_name=x")
    Path("checkpoints/encoder").rename("moved")
    with pytest.raises(CheckpointError, match=r"checkpoints/encoder/last\.pt.*not there") as caught:
        run("predict", *CELLS, "model_path=mean", "run_name=x")
    assert caught.value.advice == "encoder_path"
    run("predict", *CELLS, "model_path=mean", "run_name=x", "encoder_path=moved/last.pt")
    assert_same(read("mean"), read("x"))
    with pytest.raises(CheckpointError, match="other weights"):
        run("predict", *CELLS, "model_path=mean", "run_name=y", "encoder_path=" + str(_other("moved/last.pt")))


def _other(path: str) -> Path:
    """A copy with one other weight."""
    state = torch.load(path, weights_only=True)
    state["network"]["encoder.conv1.0.weight"] += 1
    torch.save(state, "other.pt")
    return Path("other.pt")


def test_training_on_cells_leaves_predictions_of_fields(run):
    train = (
        *TINY_CELLS,
        "model.key=test_resnet",
        "model.pretrained=false",
        "num_epochs=1",
        "dataloaders.sampler=plate",
    )
    run("train_supervised_cell", *train, "run_name=net", "dataloaders.eval_splits=[val,test]")
    run("predict", *CELLS, "model_path=net", "run_name=p")
    found = read("net")
    assert not found.duplicated(KEYS).any()
    assert (found["Metadata_Count_Cells"] > 1).any()
    assert_same(found, read("p"))
    assert set(found["Metadata_split"]) == {"val", "test"}
