"""Several processes of a run: they train, evaluate and measure as one that accumulates gradients, and end together."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY_CELLS, TINY_RUN, TINY_SCREEN
from torch import nn

from biomass import several
from biomass.errors import BadImageError, CheckpointError, ConfigError
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.norms import Statistics, convert, measure_plates
from biomass.objectives import Classification
from biomass.samplers import PlateBatches
from biomass.screen import VectorPixels, make_screen
from biomass.training import (
    Checkpoints,
    Plan,
    RunLogger,
    SplitEvaluation,
    Training,
    adam,
    check_batches,
    check_ranks,
    evaluation_loaders,
    fit,
    make_fabric,
    set_up,
    warmup_cosine,
)
from biomass.training.device import Started, check_started, started_processes
from biomass.training.together import all_take_part

SIZE = 4  # rows a batch


class Torn(VectorPixels):
    """Vectors, of which those of one batch cannot be read."""

    first = 8

    def read(self, rows):
        bad = rows[(rows >= self.first) & (rows < self.first + SIZE)]
        if len(bad):
            raise BadImageError("torn", int(bad[0]))
        return super().read(rows)


def screen(batches, pixels=VectorPixels):
    n, other = batches * SIZE, 3 * SIZE
    plate = np.concatenate([np.arange(n) // SIZE, 100 + np.arange(other) // SIZE])
    table = pd.DataFrame({"experiment": "e", "plate": plate, "well": "A01", "site": 1, "cell_type": "", "control": ""})
    table = table.assign(label=np.arange(n + other) % 3, split=["train"] * n + ["val"] * other)
    vectors = np.random.default_rng(0).normal(size=(n + other, 5)).astype(np.float32)
    return make_screen(table, pixels(vectors), ["a", "b", "c"])


def train(one, plan, folder, devices):
    """Train a small network with norms; its weights, and what was logged."""
    fabric = make_fabric("cpu", devices=devices)
    torch.manual_seed(1)
    network = convert(nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))
    rows, shared = one.rows("train"), {"rank": fabric.global_rank, "world_size": fabric.world_size}
    batches = PlateBatches(rows, one.plate_ids[rows], seed=3, **shared)
    optimizer = adam([network], 0.01, 0.0)
    steps = -(-len(batches) // plan.accumulate)
    schedule = warmup_cosine(optimizer, 0, plan.num_epochs * steps)
    network, optimizer = set_up(fabric, network, optimizer)
    reader = BatchReader(one, one.plate_ids, "skip")
    loaders = evaluation_loaders(fabric, one, reader, ["val"], by_plate=True, batch_size=3)
    with RunLogger(folder, {}, enabled=fabric.is_global_zero) as logger:
        run = Training(
            fabric=fabric,
            network=network,
            optimizer=optimizer,
            lr_schedule=schedule,
            loader=Loader(reader, batches),
            transform=lambda images, generator: images + torch.randn(images.shape, generator=generator) / 10,
            objective=Classification(),
            statistics=Statistics("plate", names=[str(n) for n in range(one.plate_ids.max() + 1)]),
            logger=logger,
            checkpoints=Checkpoints(folder, enabled=fabric.is_global_zero),
            skipped=SkippedImages(one),
            about={"config": {}},
        )
        plain = Statistics("plate", names=run.statistics.names)
        fit(run, plan, SplitEvaluation(one, loaders, lambda images: images, plain))
    return network.module.state_dict()


CASES = {
    "even": (6, VectorPixels, 1),
    "uneven": (5, VectorPixels, 1),
    "accumulated": (7, VectorPixels, 2),
    "torn": (6, Torn, 1),
}
"""How many batches, of what, and how many of each of two processes make a step."""


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in lines]


def _one_of_two(rank, port, folder):
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    os.environ |= names | {"WORLD_SIZE": "2"}
    for name, (batches, pixels, accumulate) in CASES.items():
        plan = Plan(2, accumulate=accumulate, log_every=1, monitor="val/loss")
        torch.save(train(screen(batches, pixels), plan, folder / name, 2), folder / f"{name}{rank}.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The folder in which two processes have left what they trained."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # not forked from here, where other tests may have had torch start threads, which a fork has not
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["biomass.training"])
    started = [context.Process(target=_one_of_two, args=(rank, port, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_that_accumulates(of_two, tmp_path, name):
    batches, pixels, accumulate = CASES[name]
    one = screen(batches, pixels)
    if name == "torn":  # the batch that cannot be read is left out of its step, and the step is taken
        before = logged(of_two / name)
        assert [line["step"] for line in before if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
        assert len((of_two / name / "skipped_images.txt").read_text().splitlines()) == SIZE
    else:
        plan = Plan(2, accumulate=2 * accumulate, log_every=1, monitor="val/loss")
        right = train(one, plan, tmp_path, 1)
        for rank in range(2):
            found = torch.load(of_two / f"{name}{rank}.pt")
            for key, value in right.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
        for line, expected in zip(logged(of_two / name), logged(tmp_path), strict=True):
            assert line == pytest.approx(expected, abs=1e-6)
        assert pd.read_csv(of_two / name / "plates.csv").equals(pd.read_csv(tmp_path / "plates.csv"))
    first, second = (torch.load(of_two / f"{name}{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.load(of_two / name / "last.pt")["progress"]["ranks"] == 2


def test_training_plates_that_others_have_measured_count():
    def chunks(seed):
        generator = torch.Generator().manual_seed(seed)
        return [(torch.randn(4, 2, 3, 3, generator=generator), torch.tensor([0, 1, 0, 1]), torch.zeros(4))]

    networks = [convert(nn.Sequential(nn.BatchNorm2d(2))).eval() for _ in range(3)]
    of_other = []
    measure_plates(networks[0], [chunks(1)], 2, gather=lambda own: of_other.append(own) or [own])
    measure_plates(networks[1], [chunks(0)], 2, gather=lambda own: [own, *of_other])
    measure_plates(networks[2], [chunks(0), chunks(1)], 2)
    for found, right in ((networks[1][0].prior, networks[2][0].prior), (networks[1][0].strata, networks[2][0].strata)):
        torch.testing.assert_close(found, right)
    with_none = convert(nn.Sequential(nn.BatchNorm2d(2))).eval()
    measure_plates(with_none, [], 2, gather=lambda own: [own, *of_other])
    torch.testing.assert_close(with_none[0].prior, networks[0][0].prior)


@pytest.mark.parametrize(
    ("started", "asked", "right"),
    [
        (None, (3, 1), (3, 1)),
        (Started("torchrun", 4, 1), (1, 1), (4, 1)),
        (Started("torchrun", 4, 2), (4, 1), (4, 2)),
        (Started("Slurm", 1, 1), (1, 1), (1, 1)),
        (None, (2, 2), "num_nodes"),
        (Started("torchrun", 4, 1), (2, 1), "started_devices"),
        (Started("Slurm", 2, 3), (2, 2), "num_nodes"),
    ],
)
def test_what_was_started_counts_unless_other_numbers_are_asked_for(started, asked, right):
    if isinstance(right, tuple):
        assert check_started(started, *asked) == right
        return
    with pytest.raises(ConfigError) as error:
        check_started(started, *asked)
    assert error.value.advice == right


def test_tasks_of_slurm_are_those_that_srun_has_started(monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_STEP_ID", "SLURM_STEPID"):
        monkeypatch.delenv(name, raising=False)
    assert started_processes() is None
    for name, value in {"SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "ben", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert started_processes() is None  # called by the script of a job
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert started_processes() == Started("Slurm", 3, 2)


@pytest.mark.parametrize(
    ("variables", "apart"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, False),  # the first of those that were started here
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, False),  # the script of a job
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "4294967290"}, False),  # a shell, by salloc
    ],
)
def test_what_takes_one_process_knows_when_others_were_started(variables, apart, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "RANK", "LOCAL_RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert several.started_apart() == apart
    if apart:
        with pytest.raises(ConfigError, match="started 2 of it"):
            several.check_alone("tune")
    else:
        several.check_alone("tune")


def test_weights_that_take_no_part_are_named():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    said = "Parameter indices which did not receive grad for rank 0: 2 3\n In addition, …"
    with pytest.raises(ConfigError, match=r"^2 weights .*'1\.weight'"), all_take_part(network):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="other"), all_take_part(network):
        raise RuntimeError("other")


def test_a_strategy_of_others_is_refused():
    with pytest.raises(ConfigError, match="'fsdp'"):
        make_fabric("cpu", strategy="fsdp")


def test_more_processes_than_batches_are_refused_with_what_is_possible():
    batches = PlateBatches(np.arange(6), np.array([0, 0, 0, 1, 1, 1]))
    check_ranks(batches, 2)
    with pytest.raises(ConfigError, match=r"2 batches for 3 devices.*at most 2"):
        check_ranks(batches, 3)


@pytest.mark.parametrize(("before", "now", "remedy"), [((2, 1), (1, 2), None), ((4, 1), (2, 1), "accumulate 2")])
def test_a_run_goes_on_with_as_many_batches_a_step(before, now, remedy):
    ranks, accumulate = before
    config = {"trainer": {"accumulate": accumulate, "devices": ranks}}
    for progress in ({"ranks": ranks}, {}):  # runs of before did not write them down
        state = {"path": "x", "config": config, "progress": progress}
        if remedy is None:
            check_batches(state, *now)
        else:
            with pytest.raises(CheckpointError, match=remedy):
                check_batches(state, *now)


# --- real processes -----------------------------------------------------------------------------------------------

ERM = (*TINY_SCREEN, *TINY_RUN, "num_epochs=2", "dataloaders.eval_splits=[val,test]", "trainer.log_every=1")
ERM = (*ERM, "+method=ben", "train_batch_size=5", "report=false")
CELLS = (*(one for one in TINY_CELLS if "warmup" not in one), "model.key=test_resnet", "model.pretrained=false")
CELLS = (*CELLS, "dataloaders.mode=random", "dataloaders.num_img=2", "num_views=2", "model.projector=[16,16,8]")
CELLS = (*CELLS, "train_batch_size=10", "num_epochs=2", "num_warmup_epochs=1", "report=false", "trainer.log_every=1")
CELLS = (*CELLS, "dataloaders.sampler=random", "dataloaders.eval_splits=[val,test]")


def start(folder, *command, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, text=True, stdout=-1, stderr=-1
    )


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words"), [("train_erm", ERM), ("train_simclr", CELLS)])
@pytest.mark.parametrize("how", ["devices", "torchrun"])
def test_scripts_give_the_same_on_two_devices(script, words, how, tmp_path, data_root):
    words = (*words, f"dataloaders.root_dir={data_root}")
    done(start(tmp_path, ROOT / f"{script}.py", *words, "run_name=one", "trainer.accumulate=2"))
    if how == "devices":
        done(start(tmp_path, ROOT / f"{script}.py", *words, "run_name=two", "trainer.devices=2"))
    else:
        by = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
        done(start(tmp_path, *by, ROOT / f"{script}.py", *words, "run_name=two"))
    one, two = (torch.load(tmp_path / f"checkpoints/{name}/last.pt")["network"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6)
    for line, expected in zip(logged(tmp_path / "runs/two"), logged(tmp_path / "runs/one"), strict=True):
        assert line == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_tools_give_the_same_on_two_devices(tmp_path, data_root):
    data = (*TINY_SCREEN, f"dataloaders.root_dir={data_root}", "device=cpu", "model_path=one")
    done(start(tmp_path, ROOT / "train_erm.py", *ERM, f"dataloaders.root_dir={data_root}", "run_name=one"))
    for tool, more in (("stress", ("dataloaders.eval_splits=[test]", "repeats=2")), ("predict", ()), ("calibrate", ())):
        for devices in (1, 2):
            own = (f"run_name={tool}{devices}", f"devices={devices}")
            where = (f"calibration={tool}{devices}.pt",) if tool != "stress" else ("report=false",)
            done(start(tmp_path, "-m", "biomass", tool, *data, *more, *own, *where))
    one, two = (pd.read_parquet(tmp_path / f"runs/predict{n}/predictions.parquet") for n in (1, 2))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)
    assert (tmp_path / "runs/stress1/stress.csv").read_bytes() == (tmp_path / "runs/stress2/stress.csv").read_bytes()
    for tool in ("predict", "calibrate"):
        one, two = (torch.load(tmp_path / f"{tool}{n}.pt") for n in (1, 2))
        assert one["plates"] == two["plates"]
        for name, value in one["moments"].items():
            torch.testing.assert_close(two["moments"][name], value)


def begun(process, folder):
    """Wait until the run in ``folder`` has taken some steps; the process that was started by the first one."""
    file, until = folder / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and len(file.read_text().splitlines()) > 4:
            break
        time.sleep(0.05)
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number", "code", "said"),
    [
        ("first", signal.SIGTERM, 75, "stopped: after"),
        ("other", signal.SIGTERM, 75, "stopped: after"),
        ("other", signal.SIGKILL, 1, "error: process 1 of this run was killed (signal 9)"),
    ],
)
def test_what_ends_one_process_ends_all_in_one_line(whom, number, code, said, tmp_path, data_root):
    words = (*ERM, f"dataloaders.root_dir={data_root}", "num_epochs=500", "trainer.evaluate_every=500", "run_name=r")
    process = start(tmp_path, ROOT / "train_erm.py", *words, "trainer.devices=2")
    others = begun(process, tmp_path / "runs/r")
    os.kill(process.pid if whom == "first" else others[0], number)
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if line.startswith(("error", "stopped", "Traceback"))]
    assert (process.returncode, len(lines), lines[0][: len(said)]) == (code, 1, said)
    assert not Path(f"/proc/{others[0]}").exists()
    if code == 75:
        state = torch.load(tmp_path / "checkpoints/r/last.pt")
        words = (
            *(one for one in words if "evaluate_every" not in one),
            f"trainer.max_steps={state['progress']['step']}",
        )
        done(start(tmp_path, ROOT / "train_erm.py", *words, "resume=auto", "trainer.accumulate=2"))


@pytest.mark.slow
def test_an_error_of_another_process_is_said_once(tmp_path, data_root):
    words = (*ERM, f"dataloaders.root_dir={data_root}", "dataloaders.eval_splits=[nope]", "run_name=r")
    process = start(tmp_path, ROOT / "train_erm.py", *words, "trainer.devices=2")
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if "INFO" not in line and line.startswith(("error", "Traceback"))]
    assert (process.returncode, len(lines)) == (1, 1)
    assert "'nope'" in lines[0]


def assert_same(folder, one, two, atol=1e-6):
    one, two = (torch.load(folder / f"checkpoints/{name}/last.pt")["network"] for name in (one, two))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=atol)


def by_rank(process):
    """The processes of a run below one, by their number."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        of = dict(one.split("=", 1) for one in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in one)
        if "RANK" in of:
            found[int(of["RANK"])] = int(child)
    return found


@pytest.mark.slow
def test_two_machines_of_two_devices_are_one_run_that_goes_on_on_one(tmp_path, data_root):
    words = (*ERM, f"dataloaders.root_dir={data_root}")

    def machines(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        by = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1")
        by = (*by, f"--master-port={port}")
        own = (*words, "trainer.devices=2", "trainer.num_nodes=2", *more)
        return [start(tmp_path, *by, f"--node-rank={node}", ROOT / "train_erm.py", *own) for node in range(2)]

    for process in machines("run_name=four"):
        done(process)
    assert [len([*folder.iterdir()]) for folder in (tmp_path / "runs", *(tmp_path / "outputs").iterdir())] == [1, 1]
    done(start(tmp_path, ROOT / "train_erm.py", *words, "run_name=one", "trainer.accumulate=4"))
    assert_same(tmp_path, "one", "four")
    for line, expected in zip(logged(tmp_path / "runs/four"), logged(tmp_path / "runs/one"), strict=True):
        assert line == pytest.approx(expected, abs=2e-6)

    long = ("num_epochs=500", "trainer.evaluate_every=500")
    first, second = machines(*long, "run_name=stopped")
    begun(first, tmp_path / "runs/stopped")
    os.kill(by_rank(second)[3], signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert all("exitcode  : 75" in text for text in said)
    assert [line[:14] for text in said for line in text.splitlines() if line.startswith("stopped")] == [
        "stopped: after"
    ]
    step = torch.load(tmp_path / "checkpoints/stopped/last.pt")["progress"]["step"] + 1
    own = (*words, *long, f"trainer.max_steps={step}", "trainer.accumulate=4")
    done(start(tmp_path, ROOT / "train_erm.py", *own, "run_name=stopped", "resume=auto"))
    done(start(tmp_path, ROOT / "train_erm.py", *own, "run_name=whole"))
    assert_same(tmp_path, "whole", "stopped", atol=1e-3)  # steps make differences larger


FAULTS = """
import os, signal
from biomass import several
from biomass.datasets.simulated import load_simulated
from biomass.errors import BadImageError

def load(fault="", **more):
    screen = load_simulated(**more)
    read = type(screen.pixels).read
    class Faulty(type(screen.pixels)):
        def read(self, rows):
            if fault and several.rank() == 1:
                if fault == "torn":
                    raise BadImageError("it is torn", int(rows[0]))
                if fault == "own":
                    raise ValueError("own code")
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, rows)
    object.__setattr__(screen.pixels, "__class__", Faulty)
    return screen
"""


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_of_which_one_process_fails(tmp_path, data_root):
    (tmp_path / "faults.py").write_text(FAULTS)
    source = ("own_code=[faults]", "dataloaders.source._target_=faults.load", f"dataloaders.root_dir={data_root}")
    sweep = ("-m", "+dataloaders.source.fault='',torn,killed,own,''", "trainer.devices=2", "num_epochs=1")
    process = start(tmp_path, ROOT / "train_erm.py", *ERM, *source, *sweep, PYTHONPATH=f"{ROOT}:{tmp_path}")
    others = set()
    while process.poll() is None:
        others |= {*Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
        time.sleep(0.1)
    _, err = process.communicate()
    assert process.returncode == 1, err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    found = [(folder / str(job) / "outcome.txt").read_text() for job in range(5)]
    assert [text.startswith("error") for text in found] == [False, True, True, True, False]
    assert [word in text for word, text in zip(("torn", "killed", "own code"), found[1:4], strict=True)] == [True] * 3
    assert "3 of 5 jobs failed" in err
    assert len(others) == 5
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_probe_is_trained_the_same_on_two_devices(tmp_path, data_root):
    words = (f"dataloaders.root_dir={data_root}", "num_epochs=1")
    done(start(tmp_path, ROOT / "train_simclr.py", *CELLS, *words, "run_name=encoder"))
    cells = (*(one for one in TINY_CELLS if "warmup" not in one), *words, "model_path=encoder", "report=false")
    for name, how in (("one", "trainer.accumulate=2"), ("two", "trainer.devices=2")):
        own = (*cells, "train_batch_size=9", "trainer.log_every=1", how, f"run_name={name}")
        done(start(tmp_path, ROOT / "train_classifier.py", *own))
    assert_same(tmp_path, "one", "two")
    assert logged(tmp_path / "runs/two")[0] == pytest.approx(logged(tmp_path / "runs/one")[0], abs=2e-6)


@pytest.mark.slow
def test_processes_of_one_run_that_were_given_different_settings_are_refused(tmp_path, data_root):
    words = (*ERM, f"dataloaders.root_dir={data_root}", "run_name=r")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "x", "SLURM_NODEID": "0"}
    own |= {"SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_JOB_ID": "1"}
    processes = [
        start(tmp_path, ROOT / "train_erm.py", *words, f"seed={n}", SLURM_PROCID=str(n), SLURM_LOCALID=str(n), **own)
        for n in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert "seed=1" in said[0].splitlines()[-1]
