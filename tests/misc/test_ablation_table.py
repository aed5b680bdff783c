"""Which probes make up a table, and which must not."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

PROGRAM = ROOT / "misc/ablation_table.py"

FIELDS = "supervised field"
SOURCE = {"_target_": "biomass.datasets.simulated.load_simulated_cells", "root_dir": "data", "seed": 0}


def views(seed=0, mode="random", sampler="plate"):
    """The configuration of an encoder of train_simclr.py, as far as it matters."""
    return {"seed": seed, "num_views": 2, "dataloaders": {"mode": mode, "sampler": sampler}}


def cells(seed=0, sampler="plate"):
    return {"seed": seed, "dataloaders": {"sampler": sampler, "mode": "random"}}


def fields(seed=0, **data):
    return {"seed": seed, "dataloaders": {"eval_plate_sampler": True, **data}}


def words(train=None, evaluation=None, by=None):
    """What ``+method=…`` sets; null leaves it to the published keys."""
    return {"train": train, "eval": evaluation, "by": by}


@pytest.fixture
def probe(tmp_path):
    """``probe("name", encoder, 0.5, key=value)`` writes the run of a probe."""

    def write(name, encoder, value=0.5, sampler="plate", source=None, **keys):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {
            "model_train_mode": True,
            "pooler": "mean",
            "normalize": True,
            "use_projs": False,
            "seed": 0,
            "dataloaders": {"sampler": sampler, "source": SOURCE | (source or {})},
            "encoder": encoder,
            **keys,
        }
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "test/accuracy": value}) + "\n")

    return write


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("ablation_table", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(program, tmp_path, monkeypatch, capsys):
    """``table("argument", …)``: the program in this process, and what a process of its own would have left."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *arguments])
        code, message = 0, ""
        try:
            program.main()
        except SystemExit as end:
            code, message = 1, f"{end.code}\n"
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, said.out, said.err + message)

    return call


def written(tmp_path):
    frame = pd.read_csv(Path(tmp_path, "tables/ablation.csv"))
    return [tuple(row) for row in frame[["method", "trained with", "inference with", "count"]].to_numpy().tolist()]


def test_seeds_of_a_cell_are_averaged(probe, table, tmp_path):
    for seed, value in ((0, 0.5), (1, 0.7)):
        probe(f"p{seed}", views(seed), value)
    command = [sys.executable, str(PROGRAM), *("--out", "other")]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    refusal = subprocess.run([*command, "runs/nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert "| MinCLR, 2 views | 60.0 ± 14.1 (2) |" in alone.stdout
    assert "'runs/nowhere' is not a folder" in refused(refusal)
    here = table()  # as all tests below call it
    assert (here.returncode, here.stdout, here.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    again = table("runs/nowhere")
    assert (again.returncode, again.stdout, again.stderr) == (refusal.returncode, refusal.stdout, refusal.stderr)


@pytest.mark.parametrize(
    ("mode", "sampler", "expected"),
    [
        (False, "plate", "vanilla"),
        (False, "random", "vanilla"),
        (True, "plate", "plate"),
        (True, "exp", "experiment"),
        (True, "random", "mixed batches"),
    ],
)
def test_inference_is_what_the_probe_normalized_with(probe, table, tmp_path, mode, sampler, expected):
    probe("p", views(sampler="random"), model_train_mode=mode, sampler=sampler)
    assert f"train vanilla / inference {expected}" in table().stdout
    assert written(tmp_path) == [("MinCLR", "vanilla", expected, 1)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (words("plate"), "vanilla"),
        (words(None, "plate"), "plate"),
        (words(None, "plate", ["experiment"]), "experiment"),
        (words(None, "controls"), "controls"),
        (words(None, "calibrated"), "calibrated"),
    ],
)
def test_words_for_statistics_override_the_published_keys(probe, table, tmp_path, chosen, expected):
    probe("a", views(0, sampler="random"), model_train_mode=False, sampler="random", statistics=chosen)
    probe("b", views(1), model_train_mode=False, sampler="random", statistics=chosen)
    assert table().returncode == 0
    assert written(tmp_path) == [("MinCLR", trained, expected, 1) for trained in ("vanilla", "plate")]


@pytest.mark.parametrize("more", [{"sampler": "plate"}, {"statistics": words("plate")}])
def test_two_ways_of_saying_the_same_share_a_cell(probe, table, tmp_path, more):
    probe("a", views(0, sampler="random") | {"statistics": words("plate")})
    probe("b", views(1, sampler=more.get("sampler", "random")) | {k: v for k, v in more.items() if k != "sampler"})
    assert table().returncode == 0
    assert written(tmp_path) == [("MinCLR", "plate", "plate", 2)]


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
        (
            fields(train_groupby=["plate", "experiment"]) | {"statistics_rows": "controls"},
            "supervised field",
            "controls",
        ),
        (fields(train_groupby=["experiment"]) | {"statistics": words("running")}, "supervised field", "vanilla"),
        (views(sampler="random") | {"statistics": words("plate")}, "MinCLR", "plate"),
        (views(sampler="exp") | {"statistics": words("plate")}, "MinCLR", "experiment"),
        (views(sampler="exp") | {"statistics": words("plate", by=["cell_type"])}, "MinCLR", "cell_type"),
        (views() | {"statistics": words("controls", by=["experiment"])}, "MinCLR", "controls, experiment"),
        (views(sampler="random") | {"statistics": words()}, "MinCLR", "vanilla"),
        (views() | {"trainer": {"max_steps": 0}}, "untrained, as MinCLR", "plate"),
        (
            fields() | {"trainer": {"max_steps": 0}, "method": {"train": "running"}},
            f"untrained, as {FIELDS}",
            "vanilla",
        ),
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
    (tmp_path / "runs/training").mkdir()  # a run of another script
    OmegaConf.save(OmegaConf.create(views()), tmp_path / "runs/training/config.yaml")
    (tmp_path / "runs/training/metrics.jsonl").write_text('{"test/accuracy": 0.1}\n')
    done = table()
    assert written(tmp_path) == [("MinCLR", "plate", "plate", 1)]
    assert done.stderr == (
        "left out: runs/plain, whose encoder is a plain state dict and does not say how it was trained\n"
    )


# what must agree


ENCODER = {
    "temperature": 0.1,
    "num_epochs": 40,
    "model": {"key": "test_resnet", "projector": [8]},
    "learning_rate": 0.1,
    "train_batch_size": 52,
    "run_name": "r",
    "resume": None,
    "device": "auto",
    "save_model": True,
    "trainer": {"max_steps": None},
}


def trained(seed=0, data=None, sampler="plate", **keys):
    """The configuration of an encoder in full."""
    data = {"mode": "random", "sampler": sampler, "num_img": 2, "num_workers": 2, "source": SOURCE} | (data or {})
    return {"seed": seed, "num_views": 2, **ENCODER, **keys, "dataloaders": data}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.2}, "encoder.temperature (0.1 and 0.2)"),
        ({"num_epochs": 4}, "encoder.num_epochs (40 and 4)"),
        ({"learning_rate": 1}, "encoder.learning_rate (0.1 and 1)"),
        ({"train_batch_size": 7}, "encoder.train_batch_size (52 and 7)"),
        ({"model": {"key": "test_resnet", "projector": [4]}}, "encoder.model (projector: [8] and [4])"),
        ({"gather": True}, "encoder.gather (None and True)"),
        ({"data": {"num_plates_per_batch": 2}}, "encoder.dataloaders.num_plates_per_batch (None and 2)"),
        ({"data": {"source": SOURCE | {"seed": 3}}}, "encoder.dataloaders.source (seed: 0 and 3)"),
    ],
)
def test_encoders_of_a_cell_that_were_trained_otherwise_are_refused(probe, table, tmp_path, keys, message):
    probe("a", trained(0))
    probe("b", trained(1))
    probe("c", trained(2, **keys))
    assert refused(table()).startswith(f"error: runs a and c differ in {message}; name only runs")
    assert not (tmp_path / "tables").exists()


def test_encoders_of_a_cell_may_differ_in_what_does_not_matter(probe, table, tmp_path):
    probe("a", trained(0))
    probe(
        "b",
        trained(
            1,
            run_name="s",
            resume="auto",
            device="cpu",
            save_model=False,
            trainer={"max_steps": 3},
            data={"num_workers": 0},
        ),
    )
    assert table().returncode == 0
    assert written(tmp_path) == [("MinCLR", "plate", "plate", 2)]


def test_cells_of_the_table_may_be_trained_otherwise_but_on_the_same_data(probe, table, tmp_path):
    probe("a", trained(0))
    probe("b", trained(0, sampler="random", train_batch_size=7))
    assert table().returncode == 0
    assert len(written(tmp_path)) == 2
    probe("c", fields(source=SOURCE | {"_target_": "biomass.datasets.simulated.load_simulated"}))  # of whole fields
    assert table().returncode == 0
    probe("d", trained(0, sampler="exp", data={"source": SOURCE | {"seed": 3}}))
    assert refused(table()).startswith("error: runs a and d differ in encoder.dataloaders.source (seed: 0 and 3)")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_epochs": 3}, "num_epochs (None and 3)"),
        ({"learning_rate": 0.5}, "learning_rate (None and 0.5)"),
        ({"transforms": {"eval": []}}, "transforms (None and {'eval': []})"),
    ],
)
def test_probes_that_were_trained_otherwise_are_refused(probe, table, keys, message):
    probe("a", trained(0))
    probe("b", trained(0), model_train_mode=False, **keys)
    assert refused(table()).startswith(f"error: runs a and b differ in {message}")


def test_probes_may_differ_in_what_the_table_is_about(probe, table):
    probe("a", trained(0))
    free = {
        "model_path": "x",
        "sup_model_path": None,
        "run_name": "b",
        "save_key": "k",
        "resume": "auto",
        "device": "cpu",
        "save_model": False,
        "trainer": {"evaluate_every": 3},
    }
    probe("b", trained(0), sampler="random", **free | {"seed": 3})
    assert table().returncode == 0


# what is left out


def log(tmp_path, name, *lines):
    Path(tmp_path, "runs", name, "metrics.jsonl").write_text("".join(lines))


def line(epoch, value=0.5, metric="test/accuracy"):
    return json.dumps({"step": 9 * epoch, "epoch": epoch, metric: value}) + "\n"


def test_probes_that_were_stopped_and_probes_without_the_metric_are_left_out(probe, table, tmp_path):
    runs = {
        "done": [line(2, 0.1), line(3, 0.7)],
        "stopped": [line(1), line(2)],
        "other": [line(3, 1, "loss")],
        "torn": [line(2), line(3)[:-7]],
    }
    for seed, (name, lines) in enumerate(runs.items()):
        probe(name, trained(seed), num_epochs=3)
        log(tmp_path, name, *lines)
    done = table()
    assert "| 70.0 |" in done.stdout
    assert done.stderr.splitlines() == [
        "left out: runs/other, which did not measure 'test/accuracy'",
        "left out: runs/stopped, which was stopped: 'test/accuracy' was last measured in epoch 2 of 3",
        "left out: runs/torn, which was stopped: 'test/accuracy' was last measured in epoch 2 of 3",
    ]
    done = table("runs/torn")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no probe with metric 'test/accuracy' is there")


def test_a_torn_line_behind_the_last_epoch_does_no_harm(probe, table, tmp_path):
    probe("a", trained(), num_epochs=3)
    log(tmp_path, "a", line(3, 0.7), '{"step": 4, "ep')
    assert "| 70.0 |" in table().stdout


def test_what_is_measured_in_training_counts_epochs_from_0(probe, table, tmp_path):
    probe("a", trained(), num_epochs=3)
    log(tmp_path, "a", line(2, 0.7, "train/accuracy"))
    assert "| 70.0 |" in table("--metric", "train/accuracy").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/nowhere", "'runs/nowhere' is not a folder"),
        ("runs", "'runs' holds no probe"),
        ("runs/encoder", "'runs/encoder' holds no probe"),
        ("runs/broken", "'runs/broken/config.yaml' cannot be read"),
    ],
)
def test_folders_that_are_named_must_hold_probes(probe, table, tmp_path, name, message):
    probe("a", trained())
    for folder, text in (("encoder", "seed: 0\n"), ("broken", "a: [1\nb: 2")):
        (tmp_path / "runs" / folder).mkdir()
        (tmp_path / "runs" / folder / "config.yaml").write_text(text)
    assert refused(table("runs/a", name)).startswith(f"error: {message}")


@pytest.mark.parametrize("out", ["file/table", "tables/taken", "."])
def test_a_place_that_cannot_be_written(probe, table, tmp_path, out):
    probe("a", trained())
    (tmp_path / "file").write_text("")
    (tmp_path / "tables" / "taken.md").mkdir(parents=True)
    message = refused(table("--out", out))
    assert f"cannot write '{out}" in message
    assert "--out" in message
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["taken.md"]
