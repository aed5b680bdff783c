"""What several test files share: a tiny simulated screen, and running a script's configuration in this process."""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_dir

from biomass.config import Config
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parent.parent

TINY_SCREEN = (
    "dataloaders=simulated",
    "dataloaders.num_workers=0",
    "dataloaders.source.experiments=4",
    "dataloaders.source.plates=2",
    "dataloaders.source.treatments=4",
    "dataloaders.source.positive_controls=1",
    "dataloaders.source.wells=4",
    "dataloaders.source.negative_wells=2",
    "dataloaders.source.size=48",
)
"""4 experiments x 2 plates x 7 wells x 2 sites, 6 classes."""

TINY_RUN = ("model.key=test_resnet", "model.pretrained=false", "model.d_out=6", "device=cpu", "num_warmup_epochs=1")

TINY_CELLS = (
    "dataloaders=simulated_cells",
    *(o for o in TINY_SCREEN if o.startswith("dataloaders.") and "size" not in o),
    "dataloaders.source.size=96",
    "device=cpu",
    "num_warmup_epochs=1",
)
"""The cells of the tiny screen."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_power_failures() -> Iterator[None]:
    """Tests do not wait for the disk, which takes 10 ms each time."""
    with mock.patch("os.fsync", return_value=None):
        yield


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A script or a tool that ran in this process does not change what the next test finds in the log."""
    before, disabled = logging.getLogger().level, logging.root.manager.disable
    yield
    logging.getLogger().setLevel(before)
    logging.disable(disabled)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the simulated screens of a test session are made, once each."""
    return tmp_path_factory.mktemp("data")


def run_script(script: str, *overrides: str) -> float | None:
    """``run_script("train_erm", "key=value", …)``: the script, or the tool, in this process.

    No page is made in the end where ``report`` is not among the keys.
    """
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(script, list(overrides))
    if "report" in config and not any(one.startswith("report=") for one in overrides):
        config.report = False
    module = script if (ROOT / f"{script}.py").exists() else f"biomass.commands.{script}"
    return importlib.import_module(module).main.__wrapped__(Config(config, overrides))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_root: Path) -> Callable[..., float | None]:
    """:func:`run_script` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOMASS_DATA", str(data_root))

    return run_script


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and profiles, or a skip where it is not."""
    folder = os.environ.get("BIOMASS_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("BIOMASS_REAL_DATA does not name the folder of real data")
    return Path(folder)


@pytest.fixture
def run_alone(tmp_path: Path, data_root: Path) -> Callable[..., None]:
    """``run_alone("train_erm", "key=value", …)``: the script in a process of its own, where nothing else has run.

    What a process has loaded and run before can change the last bits of what torch computes in it.
    """

    def _run_alone(script: str, *overrides: str) -> None:
        environment = {"BIOMASS_DATA": str(data_root)}
        done = run_warm(ROOT / f"{script}.py", "report=false", *overrides, cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    return _run_alone


@pytest.fixture
def run_and_kill(tmp_path: Path, data_root: Path) -> Callable[..., None]:
    """``run_and_kill("train_erm", "key=value", …, name="a")``: the script on its own, killed in its third epoch."""

    def _run_and_kill(script: str, *overrides: str, name: str) -> None:
        command = [sys.executable, str(ROOT / f"{script}.py"), "report=false", *overrides, f"run_name={name}"]
        environment = {**os.environ, "BIOMASS_DATA": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        log = tmp_path / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            lines = log.read_text().splitlines() if log.exists() else []
            if any(json.loads(line)["epoch"] >= 2 for line in lines[:-1]):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        output = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, output

    return _run_and_kill
