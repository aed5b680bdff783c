"""Checkpoints are whole or absent, and read without running code."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from biomass.errors import CheckpointError, ConfigError
from biomass.fingerprint import fingerprint
from biomass.screen import COLUMNS, VectorPixels, make_screen
from biomass.training.checkpoint import Checkpoints, check_resume, load_checkpoint, save_checkpoint
from biomass.training.optim import adam, warmup_cosine


class Unsafe:
    """Not among what a checkpoint may hold."""


def test_round_trip(tmp_path):
    state = {"network": {"w": torch.arange(3.0)}, "progress": {"step": 4, "best": None}, "config": {"a": [1, "b"]}}
    save_checkpoint(state, tmp_path / "deep" / "last.pt")
    loaded = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(loaded["network"].pop("w"), state["network"].pop("w"))
    assert loaded == state


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint({"n": 1}, path)

    def cut_off(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(ConfigError, match="No space left"):
        save_checkpoint({"n": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        save_checkpoint({}, tmp_path / "checkpoints" / "run" / "last.pt")


def test_pickled_objects_are_refused(tmp_path):
    torch.save({"network": Unsafe()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="pickled objects") as caught:
        load_checkpoint(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)


def test_a_cut_off_or_missing_file(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"last.pt"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "nothing.pt")
    for content, said in ((b"", "is empty"), (b"hello", "is no file")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"last.pt' {said}"):
            load_checkpoint(path)


def test_best_is_there_before_last_says_so(tmp_path, monkeypatch):
    checkpoints, replace = Checkpoints(tmp_path / "run"), Path.replace
    checkpoints.save({"n": 1}, True)

    def killed_after_the_first(part, path):
        replace(part, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save({"n": 2}, True)
    monkeypatch.undo()
    assert (load_checkpoint(checkpoints.last), load_checkpoint(checkpoints.best)) == ({"n": 1}, {"n": 2})


def test_last_and_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    for n, is_best in ((1, True), (2, False)):
        checkpoints.save({"n": n}, is_best)
    assert (load_checkpoint(checkpoints.last), load_checkpoint(checkpoints.best)) == ({"n": 2}, {"n": 1})
    Checkpoints(tmp_path / "off", enabled=False).save({"n": 1}, True)
    assert not (tmp_path / "off").exists()


def optimized() -> dict[str, Any]:
    """Weights, moments and schedule of a layer that took one step."""
    layer = torch.nn.Linear(2, 3)
    optimizer = adam([layer], 0.1, 0.0)
    schedule = warmup_cosine(optimizer, 1, 5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    weights = layer.state_dict()
    return {"network": weights, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


RUN: dict[str, Any] = {
    "architecture": {"key": "resnet50", "in_channels": 3, "head": [10]},
    "config": {"seed": 0, "dataloaders": {"mode": "random"}},
    **optimized(),
    "progress": {"epoch": 1, "batch": 0, "step": 1, "best": None, "monitored": None},
    "random": {"cpu": torch.get_rng_state(), "cuda": []},
}
"""As a run writes it."""


def test_what_a_run_resumes_from(tmp_path):
    runs, checkpoints = tmp_path / "runs", Checkpoints(tmp_path / "run")
    assert checkpoints.to_resume(None, runs) is None
    assert checkpoints.to_resume("auto", runs) is None
    checkpoints.save(RUN, True)
    found = checkpoints.to_resume("auto", runs)
    assert {key: found[key] for key in ("progress", "path")} == {
        "progress": RUN["progress"],
        "path": str(checkpoints.last),
    }
    assert Checkpoints(tmp_path / "new").to_resume(str(tmp_path / "run"), runs)["path"] == str(checkpoints.last)
    assert Checkpoints(tmp_path / "new").to_resume(str(checkpoints.best), runs)["path"] == str(checkpoints.best)
    assert checkpoints.to_resume(str(checkpoints.best), runs)["path"] == str(checkpoints.best)
    with pytest.raises(CheckpointError, match="run' holds a run already"):
        checkpoints.to_resume(None, runs)
    with pytest.raises(CheckpointError, match="run' holds a run already"):
        Checkpoints(tmp_path / "run", enabled=False).to_resume(None, runs)


def test_a_run_is_not_overwritten_by_another(tmp_path):
    runs, other = tmp_path / "runs", Checkpoints(tmp_path / "other")
    other.save(RUN, True)
    (runs / "mine").mkdir(parents=True)
    log = runs / "mine" / "metrics.jsonl"
    log.write_text("")  # a run that has not taken a step
    mine = Checkpoints(tmp_path / "mine", enabled=False)
    assert mine.to_resume(None, runs) is None
    log.write_text("{}")
    assert mine.to_resume("auto", runs) is None  # it was stopped before its first checkpoint
    with pytest.raises(CheckpointError, match="runs/mine' holds a run already; continue"):
        mine.to_resume(None, runs)
    with pytest.raises(CheckpointError, match=r"runs/mine' holds a run already, and '.*other/last.pt' is of another"):
        mine.to_resume(str(other.last), runs)


@pytest.mark.parametrize("key", ["architecture", "config", "network", "optimizer", "progress"])
def test_what_is_no_checkpoint_of_a_run_cannot_be_resumed(tmp_path, key):
    save_checkpoint({k: v for k, v in RUN.items() if k != key}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt' has no '{key}', so that no run can go on from it"):
        Checkpoints(tmp_path / "new").to_resume(str(tmp_path / "x.pt"), tmp_path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"architecture": RUN["architecture"] | {"key": "resnet18"}},
            "with key=resnet50, this run has key=resnet18; set it",
        ),
        ({"config": {"seed": 1, "dataloaders": {"mode": "random"}}}, "with seed=0, this run has seed=1"),
        ({"config": {"seed": 0}}, "with dataloaders.mode=random, this run has dataloaders.mode=None"),
        ({"method": {"train": "plate"}}, r"with statistics \(train\)=None, this run has statistics \(train\)=plate"),
        ({"config": RUN["config"] | {"learning_rate": 1}}, "with learning_rate=None, this run has learning_rate=1"),
        ({"encoder": "abc"}, "'x.pt' is a probe of another encoder"),
    ],
)
def test_another_run_is_refused_with_the_difference(about, message):
    with pytest.raises(CheckpointError, match=message):
        check_resume(RUN | {"path": "x.pt"}, RUN | about)


def test_longer_training_elsewhere_is_the_same_run():
    data = {"mode": "random", "num_workers": 8, "source": {"img_dir": "/there", "seed": None}}
    config = {"seed": 0, "num_epochs": 9, "device": "cuda", "trainer": {"precision": "bf16"}, "dataloaders": data}
    check_resume(RUN | {"path": "x.pt"}, RUN | {"config": config})
    check_resume(None, {})


def test_other_data_are_refused_unless_that_is_asked_for(caplog):
    images = np.arange(8).reshape(2, 1, 2, 2)
    table = pd.DataFrame(dict.fromkeys(COLUMNS, "") | {"plate": ["A", "B"], "label": -1})
    before, now = (fingerprint(make_screen(table, VectorPixels(one, ("dna",)), [])) for one in (images, images + 1))
    check_resume(RUN | {"path": "x.pt", "data": before}, RUN | {"data": before})
    with pytest.raises(CheckpointError, match=r"'x.pt' was trained on: 2 of 2 .* have other pixels") as caught:
        check_resume(RUN | {"path": "x.pt", "data": before}, RUN | {"data": now})
    assert caught.value.advice == "other_data"
    with caplog.at_level("INFO"):
        check_resume(RUN | {"path": "x.pt", "data": before}, RUN | {"data": now}, other_data=True)
        check_resume(RUN | {"path": "old.pt"}, RUN | {"data": now})
    assert "other data than those that 'x.pt' was trained on: 2 of 2" in caplog.text
    assert "'old.pt' does not say what data" in caplog.text


def read(path, shuffle=False, *, missing="error"):
    """A target, whose later arguments were added after the checkpoint was written."""


def test_a_checkpoint_written_before_a_key_existed_goes_on(tmp_path):
    data = {"source": {"_target_": f"{__name__}.read", "path": "a"}, "num_controls": 0, "train_groupby": ["plate"]}
    save_checkpoint(RUN | {"config": {"seed": 0, "dataloaders": data}}, tmp_path / "last.pt")
    state = load_checkpoint(tmp_path / "last.pt") | {"path": "last.pt"}
    now = data | {"num_controls": None, "source": data["source"] | {"shuffle": False, "missing": "error"}}
    config = {"seed": 0, "dataloaders": now, "statistics": {"train": None, "eval": None}, "statistics_rows": "all"}
    check_resume(state, RUN | {"config": config})
    for changed, key in (
        (config | {"frozen_model_path": "a.pt"}, "frozen_model_path=None, this run has frozen_model_path=a.pt"),
        (config | {"dataloaders": now | {"source": now["source"] | {"missing": "skip"}}}, "source.missing=error, this"),
    ):
        with pytest.raises(CheckpointError, match=key):
            check_resume(state, RUN | {"config": changed})


@pytest.mark.parametrize("content", [b"", b"epoch,loss", b"PK\x03\x04 no archive", b"\x80\x02."])
def test_what_is_no_checkpoint_at_all(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint '.*x.pt'") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_save_removes_what_a_killed_process_left_of_any_checkpoint(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in ("best.pt", "last.pt", "last.previous.pt"):
        (tmp_path / f".{name}.{gone.pid}.part").write_bytes(b"half")
    Checkpoints(tmp_path).save({"network": {}}, is_best=False)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
