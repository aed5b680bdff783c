"""Runs, statistics and results that go on find that the images have changed since."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RUN, TINY_SCREEN
from PIL import Image

from biomass.errors import CheckpointError, DataError

pytestmark = pytest.mark.slow

NETWORK = (*TINY_SCREEN, "device=cpu", "model_path=net")
STRESS = ("axes.wells=[1,null]", "axes.label_shift=[null]", "axes.controls=[null]", "axes.effect=[1]", "repeats=1")


def turn(root: Path) -> None:
    """All images of a screen upside down."""
    for file in root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file))[::-1].copy()).save(file)


def made(*folders: str) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for one in folders for file in Path(one).rglob("*") if file.is_file()}


def test_whatever_goes_on_notices_other_images(run, tmp_path, monkeypatch, caplog):
    train = (*TINY_SCREEN, *TINY_RUN, "num_epochs=1", "run_name=net")
    stress = (*NETWORK, *STRESS, "axes.prospective=[2]", "words=[running,plate]", "run_name=s")
    profile = (*NETWORK, "statistics.eval=plate", "run_name=q")
    monkeypatch.setenv("BIOMASS_DATA", str(tmp_path / "data"))
    run("train_erm", *train)
    run("predict", *NETWORK, "run_name=p")
    run("stress", *stress)
    run("profile", *profile)
    folders = "runs/s/plates", "runs/q/plates"
    before = made(*folders)
    run("stress", *stress)
    run("profile", *profile)
    run("train_erm", *train, "resume=auto")
    assert made(*folders) == before
    shutil.move("data", "elsewhere")
    monkeypatch.setenv("BIOMASS_DATA", str(tmp_path / "elsewhere"))
    run("train_erm", *train, "resume=auto")
    run("predict", *NETWORK, "run_name=p1")

    turn(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="have other pixels") as caught:
        run("train_erm", *train, "resume=auto")
    assert caught.value.advice == "other_data"
    run("train_erm", *train, "resume=auto", "other_data=true")
    with pytest.raises(DataError, match=r"have other pixels.*7 more plates"):
        run("predict", *NETWORK, "run_name=p2")
    assert not Path("runs/p2").exists()
    run("predict", *NETWORK, "run_name=p3", "other_data=true")
    run("predict", *NETWORK, "run_name=p4", "measure_again=true")
    run("predict", *NETWORK, "run_name=p5")
    run("stress", *stress)
    assert "2 plates were tried with other images" in caplog.text
    run("profile", *profile)
    assert "8 plates have profiles that were made of other images" in caplog.text
    assert all(time != before[file] for file, time in made(*folders).items())
