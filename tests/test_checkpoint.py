"""Checkpoints are whole or absent, and read without running code."""

import pytest
import torch

from biomass.errors import CheckpointError, ConfigError
from biomass.training.checkpoint import Checkpoints, check_architecture, load_checkpoint, save_checkpoint


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
    with pytest.raises(ConfigError, match="cannot write checkpoint"):
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


def test_last_and_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    for n, is_best in ((1, True), (2, False)):
        checkpoints.save({"n": n}, is_best)
    assert (load_checkpoint(checkpoints.last), load_checkpoint(checkpoints.best)) == ({"n": 2}, {"n": 1})
    Checkpoints(tmp_path / "off", enabled=False).save({"n": 1}, True)
    assert not (tmp_path / "off").exists()


def test_what_a_run_resumes_from(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.to_resume(None) is None
    assert checkpoints.to_resume("auto") is None
    checkpoints.save({"n": 1}, True)
    assert checkpoints.to_resume("auto") == {"n": 1}
    assert Checkpoints(tmp_path / "new").to_resume(str(tmp_path / "run")) == {"n": 1}
    assert Checkpoints(tmp_path / "new").to_resume(str(checkpoints.best)) == {"n": 1}
    with pytest.raises(CheckpointError, match="resume=auto, or choose another run_name"):
        checkpoints.to_resume(None)


def test_another_architecture_is_refused_with_the_difference():
    state = {"architecture": {"key": "resnet50", "in_channels": 3, "head": [10]}}
    check_architecture(state, {"key": "resnet50", "in_channels": 3, "head": [10]}, "x.pt")
    with pytest.raises(CheckpointError, match="key resnet50, this run has resnet18"):
        check_architecture(state, {"key": "resnet18", "in_channels": 3, "head": [10]}, "x.pt")
    with pytest.raises(CheckpointError, match="names no architecture"):
        check_architecture({"conv.weight": 1}, {"key": "resnet18"}, "x.pt")
