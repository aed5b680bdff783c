"""Launchers with real processes: jobs that are stopped, taken away and queued again lose nothing, and leave nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_RUN, TINY_SCREEN

from biomass.training import load_checkpoint
from tests import slurm

LONG = (*TINY_SCREEN, *TINY_RUN, "num_epochs=20", "trainer.evaluate_every=20", "trainer.log_every=1")


@pytest.fixture
def train(tmp_path, data_root):
    """``train("key=value", …)``: train_erm.py in a process of its own."""
    environment = {**os.environ, "BIOMASS_DATA": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = []

    def start(*arguments: str, **more: str) -> "subprocess.Popen[str]":
        words = [sys.executable, str(ROOT / "train_erm.py"), *arguments]
        process = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=environment | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may ignore it
        )
        started.append(process)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(there: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_begun(run: Path) -> bool:
    log = run / "metrics.jsonl"
    return log.exists() and len(log.read_text().splitlines()) > 3


def children(pid: int) -> list[int]:
    """The processes below one, whatever they are."""
    found = []
    for one in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, one.read_text().split()):
            found += [child, *children(child)]
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_checkpoint(path)["network"] for path in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
def test_a_job_of_slurm_that_is_taken_away_goes_on_by_its_name(train, tmp_path, monkeypatch):
    found = slurm.install(tmp_path / "slurm")
    preset = ("+cluster=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.partition=short")
    process = train("-m", *preset, *LONG, "run_name=s", "seed=0,1", **found)
    wait_for(lambda: has_begun(tmp_path / "runs" / "s-0_seed-0"), process)
    monkeypatch.setenv("FAKE_SLURM", found["FAKE_SLURM"])
    for number in ("TERM", "USR2"):  # as Slurm does
        slurm.scancel("1000_0", "--signal", number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(slurm.place("1000_0").joinpath("requeued").read_text().splitlines()) == 1
    assert not slurm.place("1000_1").joinpath("requeued").exists()
    script = slurm.place("1000_0").joinpath("script.sh").read_text()
    for line in ("array=0-1%2", "partition=short", "nodes=1", "ntasks-per-node=1", "signal=USR2@120", "time=1440"):
        assert f"#SBATCH --{line}\n" in script
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["s-0_seed-0", "s-1_seed-1"]
    whole = train(*LONG, "run_name=whole", "seed=0")
    assert whole.wait(300) == 0
    assert_same(*(tmp_path / "checkpoints" / name / "last.pt" for name in ("s-0_seed-0", "whole")))


@pytest.mark.slow
def test_a_job_of_slurm_on_two_nodes_is_one_run_whose_processes_end_well(train, tmp_path, monkeypatch):
    found = slurm.install(tmp_path / "slurm")
    preset = ("+cluster=slurm", "hydra.launcher.gpus_per_node=null", "trainer.devices=1", "trainer.num_nodes=2")
    process = train("-m", *preset, *TINY_SCREEN, *TINY_RUN, "run_name=s", "num_epochs=1", **found)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    monkeypatch.setenv("FAKE_SLURM", found["FAKE_SLURM"])
    code, deadline = slurm.place("1000") / "code", time.monotonic() + 60
    while not code.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert code.read_text() == "0"
    script = slurm.place("1000").joinpath("script.sh").read_text()
    assert all(f"#SBATCH --{line}\n" in script for line in ("nodes=2", "ntasks-per-node=1"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["s-0"]
    logs = "".join(log.read_text() for log in tmp_path.glob("outputs/*/*/.submitit/*/*_log.err"))
    assert "Starting with 2 processes" in logs
    assert "without a word" not in logs


@pytest.mark.slow
def test_a_job_of_the_local_executor_that_is_taken_away_goes_on_by_its_name(train, tmp_path):
    process = train("-m", "+cluster=local", *LONG, "run_name=s", "seed=0")
    run = tmp_path / "runs" / "s-0"
    wait_for(lambda: has_begun(run), process)
    for pid in children(process.pid):
        if b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGUSR2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (log,) = tmp_path.glob("outputs/*/*/.submitit/*/*_log.out")
    assert sum(line.startswith("submitit INFO") and "Requeued job" in line for line in log.open()) == 1
    whole = train(*LONG, "run_name=whole", "seed=0")
    assert whole.wait(300) == 0
    assert_same(*(tmp_path / "checkpoints" / name / "last.pt" for name in ("s-0", "whole")))


@pytest.mark.slow
def test_several_tasks_of_the_local_executor_are_one_run(train, tmp_path):
    words = (*TINY_SCREEN, *TINY_RUN, "num_epochs=1", "report=false")
    process = train("-m", "+cluster=local", *words, "run_name=s", "trainer.devices=2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    whole = train(*words, "run_name=whole", "trainer.accumulate=2")
    assert whole.wait(300) == 0
    found, right = (load_checkpoint(tmp_path / "checkpoints" / name / "last.pt") for name in ("s-0", "whole"))
    assert found["progress"]["ranks"] == 2
    for name, tensor in right["network"].items():
        torch.testing.assert_close(found["network"][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_sweep_of_joblib_that_is_stopped_saves_all_jobs_and_leaves_no_process(train, tmp_path, number):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = train("-m", *launcher, *LONG, "dataloaders.num_workers=1", "run_name=s", "seed=0,1,2")
    runs = [tmp_path / "runs" / f"s-{n}_seed-{n}" for n in range(2)]
    wait_for(lambda: all(map(has_begun, runs)), process)
    below = children(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped: 2 of 3 jobs within their runs, and 1 before they began")
    deadline = time.monotonic() + 20
    while (left := [pid for pid in below if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    again = train("-m", *launcher, *LONG, "resume=auto", "dataloaders.num_workers=1", "run_name=s", "seed=0,1,2")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    whole = train(*LONG, "run_name=whole", "seed=1")
    assert whole.wait(300) == 0
    assert_same(*(tmp_path / "checkpoints" / name / "last.pt" for name in ("s-1_seed-1", "whole")))
