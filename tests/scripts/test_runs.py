"""What a run says at its start and at its end, what it refuses, and where it cannot write."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY_CELLS, TINY_RUN, TINY_SCREEN
from omegaconf import OmegaConf

from biomass import experiment
from biomass.errors import ConfigError, DataError
from biomass.keys import EVAL_SPLITS
from biomass.training import find_checkpoint, load_checkpoint
from tests.warm import run_warm

TINY = (*TINY_SCREEN, *TINY_RUN)
SIMCLR = (*TINY_CELLS, "model.key=test_resnet", "model.pretrained=false", "model.projector=[16,8]")


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO)


def said(caplog, level=logging.WARNING):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def block(caplog, begins):
    return next(text for text in said(caplog, logging.INFO) if text.startswith(begins))


# ---- a lab's own screen: bright and dark images


def own_screen(folder, splits=("train", "val"), per_plate=8, size=16, plates=2, effect=1000):
    """Images of two classes, which differ in their brightness, on some plates for each split."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for split in splits:
        for plate in range(plates):
            for n in range(per_plate):
                name, label = f"{split}{plate}{n}.npy", n % 2
                image = rng.normal(1000 + effect * label, 50, (size, size, 2))
                np.save(folder / name, image.astype(np.uint16))
                row = {"path": name, "experiment": "E", "plate": f"{split}{plate}", "well": f"A{n + 1:02}", "site": "1"}
                rows.append(row | {"label": ("dark", "bright")[label], "split": split})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "manifest.csv", index=False)
    return table


def of_own(folder, *more):
    return (
        "dataloaders=manifest",
        f"dataloaders.root_dir={folder}",
        "dataloaders.source.channels=[DNA,ER]",
        "dataloaders.num_workers=0",
        "transforms.train=[]",
        "transforms.eval=[]",
        "+method=vanilla",
        "model.key=test_resnet",
        "model.pretrained=false",
        "model.d_out=null",
        "device=cpu",
        "num_warmup_epochs=0",
        "train_batch_size=8",
        *more,
    )


@pytest.mark.parametrize("script", EVAL_SPLITS)
def test_the_default_splits_are_those_of_the_yaml(script):
    assert OmegaConf.load(ROOT / "configs" / f"{script}.yaml").dataloaders.eval_splits == EVAL_SPLITS[script]


def test_a_healthy_run_says_what_it_is_made_of_and_what_it_came_to_without_alarm(run, tmp_path, caplog):
    own_screen(tmp_path / "own")
    best = run("train_erm", *of_own(tmp_path / "own", "num_epochs=6", "learning_rate=3e-3", "run_name=a"))
    assert best is not None
    assert best > 0.7
    first = block(caplog, "train_erm: run 'a'")
    for part in (
        "32 fields, 32 wells, 4 plates, 1 experiment; 16 x 16 pixels",
        "2: DNA, ER",
        "2; the commonest in training is 'bright' with 50 %",
        "train 16 of 2 plates; val 16 of 2 plates",
        "2 an epoch, of 8 images",
        "running",
        "cpu, 32 bit floats; 6 epochs",
        "runs/a, checkpoints/a",
        f"images in {tmp_path}",
        "treatments: accuracy on treated wells alone",
    ):
        assert part in " ".join(first.split())  # a long path stands on a line of its own
    last = block(caplog, "run 'a' is finished: 6 epochs, 12 steps")
    assert f"val/accuracy {best:.4g} in epoch" in last
    assert "always 'bright': 0.5; chance 0.5" in last
    assert "checkpoints/a: last.pt, best.pt" in last
    assert "biomass predict model_path=a" in last
    assert not [line for line in f"{first}\n{last}".splitlines() if str(tmp_path) not in line and len(line) > 110]
    assert any("the first step took" in text for text in said(caplog, logging.INFO))
    (left_out,) = (text for text in said(caplog) if "not evaluated" in text)  # one line for both
    assert "'test' and 'id_test'" in left_out
    assert not [text for text in said(caplog) if "not evaluated" not in text and "do not fit" not in text]


def test_a_run_that_learns_nothing_says_so_and_one_that_takes_no_step_does_not(run, tmp_path, caplog):
    own_screen(tmp_path / "own", effect=0)
    run("train_erm", *of_own(tmp_path / "own", "num_epochs=4", "learning_rate=0", "run_name=a"))
    (alarm,) = (text for text in said(caplog) if "learned nothing" in text and "so far" not in text)
    assert "always 'bright' 0.500" in alarm
    assert "learning_rate" in alarm
    caplog.clear()
    run("train_erm", *of_own(tmp_path / "own", "trainer.max_steps=0", "run_name=b"))
    assert not [text for text in said(caplog) if "learned nothing" in text]


def test_a_finished_run_that_is_resumed_says_so(run, tmp_path, caplog):
    own_screen(tmp_path / "own")
    run("train_erm", *of_own(tmp_path / "own", "num_epochs=1", "run_name=a"))
    before = Path("runs/a/metrics.jsonl").read_text()
    caplog.clear()
    best = run("train_erm", *of_own(tmp_path / "own", "num_epochs=1", "run_name=a", "resume=auto"))
    assert f"val/accuracy {best:.4g}" in block(caplog, "run 'a' was finished before")
    assert Path("runs/a/metrics.jsonl").read_text() == before


def test_without_any_split_to_evaluate_a_run_trains_and_says_so(run, tmp_path, caplog):
    own_screen(tmp_path / "own", ["train"])
    assert run("train_erm", *of_own(tmp_path / "own", "num_epochs=1", "run_name=a")) is None
    assert any("trains without evaluation" in text for text in said(caplog))
    assert Path("checkpoints/a/last.pt").exists()


def test_where_the_monitored_split_is_not_there_the_last_checkpoint_is_the_best(run, tmp_path, caplog):
    own_screen(tmp_path / "own", ["train", "test"])
    assert run("train_erm", *of_own(tmp_path / "own", "num_epochs=2", "run_name=a")) is None
    assert any("last checkpoint counts as the best" in text for text in said(caplog))
    assert Path("checkpoints/a/best.pt").read_bytes() == Path("checkpoints/a/last.pt").read_bytes()
    assert "test/accuracy" in Path("runs/a/metrics.jsonl").read_text()


def test_a_split_that_was_named_is_an_error(tmp_path, run, data_root):
    own_screen(tmp_path / "own")
    with pytest.raises(ConfigError, match="split 'test' has no rows; choose train or val"):
        run("train_erm", *of_own(tmp_path / "own", "dataloaders.eval_splits=[val,test]"))
    # on the command line even if it is what the script has by itself
    done = start(tmp_path, "train_erm", *of_own(tmp_path / "own", "dataloaders.eval_splits=[val,test,id_test]"))
    assert done.returncode == 1
    assert re.search(r"^error: split 'test' has no rows", done.stderr, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table.assign(label="dark"), DataError, "one class, 'dark'"),
        (lambda table: table.assign(label=table["label"].where(table["split"] != "train")), DataError, "has a label"),
    ],
)
def test_labels_that_nothing_can_be_learned_from(run, tmp_path, change, error, message):
    change(own_screen(tmp_path / "own")).to_csv(tmp_path / "own/manifest.csv", index=False)
    with pytest.raises(error, match=message):
        run("train_erm", *of_own(tmp_path / "own"))
    assert not Path("runs").exists()


def test_a_split_without_labels_is_left_out_with_its_cause(run, tmp_path, caplog):
    table = own_screen(tmp_path / "own", ["train", "val", "test"])
    table["label"] = table["label"].where(table["split"] != "test")
    table.to_csv(tmp_path / "own/manifest.csv", index=False)
    run("train_erm", *of_own(tmp_path / "own", "num_epochs=1", "run_name=a"))
    assert any("split 'test', of which no image has a label" in text for text in said(caplog))
    with pytest.raises(DataError, match="no image of split 'test' has a label"):
        run("train_erm", *of_own(tmp_path / "own", "dataloaders.eval_splits=[test]", "run_name=b"))


def test_too_many_outputs_a_dead_channel_and_large_images_are_told_before_training(run, tmp_path, caplog):
    table = own_screen(tmp_path / "own", size=608, plates=1)
    for name in table.loc[table["plate"] == "val0", "path"]:
        image = np.load(tmp_path / "own" / name)
        image[:, :, 1] = 0
        np.save(tmp_path / "own" / name, image)
    large = of_own(tmp_path / "own", "trainer.max_steps=1", "train_batch_size=2", "dataloaders.eval_splits=[val]")
    run("train_erm", *large, "model.d_out=1139", "run_name=a")
    messages = "\n".join(said(caplog))
    assert "1139 outputs, and this screen has 2 classes" in messages
    assert "model.d_out" in messages
    assert "channel 'ER' is constant (0) on plate 'E/val0'" in messages
    assert "608 x 608 pixels" in messages
    assert "transforms=large" in messages
    caplog.clear()
    small = (o for o in large if not o.startswith("transforms."))
    run("train_erm", *small, "transforms=large", "run_name=b")
    assert "608 x 608 pixels" not in "\n".join(said(caplog))


def test_a_screen_of_ones_own_gets_as_many_outputs_as_it_has_classes(run, run_alone, tmp_path):
    own_screen(tmp_path / "own", plates=1)
    plain = [o for o in of_own(tmp_path / "own", "trainer.max_steps=1") if not o.startswith("model.d_out")]
    run_alone("train_erm", *plain, "model.key=resnet18", "run_name=a")
    run("train_erm", *plain, "model.d_out=7", "run_name=b")
    for name, outputs in (("a", 2), ("b", 7)):
        state = load_checkpoint(tmp_path / "checkpoints" / name / "last.pt")
        assert state["architecture"]["head"][-1] == outputs


def test_a_contrastive_run_says_what_it_sees_and_where_chance_is(run, caplog):
    more = ("num_epochs=1", "dataloaders.mode=random_single", "learning_rate=0", "temperature=5", "run_name=s")
    run("train_simclr", *SIMCLR, *more)
    first, last = block(caplog, "train_simclr: run 's'"), block(caplog, "run 's' is finished")
    seen, cells = (int(n) for n in re.search(r"sees (\d+) of (\d+) cells", first).groups())
    assert 0 < seen < cells
    assert re.search(r"val +loss [\d.]+ \(chance [\d.]+\)", last)
    assert "python train_classifier.py model_path=s" in last
    assert any("no better than at random" in text for text in said(caplog))


def test_an_epoch_that_sees_few_cells_says_so(run, caplog, monkeypatch):
    short = ("trainer.max_steps=1", "dataloaders.eval_splits=[]", "dataloaders.mode=random_single")
    run("train_simclr", *SIMCLR, *short, "run_name=a")
    assert not any("of the cells" in text for text in said(caplog))
    monkeypatch.setattr(experiment, "_FEW", 0.9)
    run("train_simclr", *SIMCLR, *short, "run_name=b")
    (few,) = (text for text in said(caplog) if "of the cells" in text)
    assert re.search(r"an epoch sees [\d.]+ % of the cells; .*dataloaders.num_img", few)


def test_metrics_are_explained_in_tensorboard_and_keep_their_names(run, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    own_screen(tmp_path / "own")
    run("train_erm", *of_own(tmp_path / "own", "num_epochs=2", "run_name=a"))
    (events,) = Path("runs/a").glob("events.out.tfevents.*")
    values = [value for event in EventFileLoader(str(events)).Load() for value in event.summary.value]
    told = {value.tag: value.metadata.summary_description for value in values if value.metadata.summary_description}
    assert "neither negative nor positive" in told["val/treatments"]
    assert {"val/accuracy", "val/loss", "train/loss", "train/learning_rate"} <= set(told)
    assert sum(value.tag == "val/accuracy" for value in values) == 2
    assert {"val/accuracy", "val/treatments"} <= set(
        json.loads(Path("runs/a/metrics.jsonl").read_text().splitlines()[-1])
    )


# ---- sweeps


def start(folder, script, *arguments, prefix=(), **variables):
    if not prefix:
        return run_warm(ROOT / f"{script}.py", *arguments, cwd=folder, environment=variables)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [*prefix, sys.executable, str(ROOT / f"{script}.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_sweep_ends_with_its_table_and_its_runs_are_named_by_what_differs(tmp_path, monkeypatch):
    own_screen(tmp_path / "own")
    swept = ("seed=0,1", "transforms.eval=[]", "learning_rate=1e-3,x")
    done = start(tmp_path, "train_erm", "-m", *of_own(tmp_path / "own", "num_epochs=1", "run_name=s"), *swept)
    assert done.returncode == 1
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["s-0_seed-0_learning_rate-0.001", "s-2_seed-1_learning_rate-0.001"]
    head, *rows = done.stdout[done.stdout.index("\nrun ") + 1 :].splitlines()
    assert head.split() == ["run", "seed", "learning_rate", "val/accuracy", "val/treatments"]
    assert [row.split()[:3] for row in rows[:4]] == [
        [names[0], "0", "0.001"],
        ["job", "1", "0"],
        [names[1], "1", "0.001"],
        ["job", "3", "1"],
    ]
    (table,) = (tmp_path / "outputs").glob("*/*/sweep.csv")
    found = pd.read_csv(table)
    assert found["run"].dropna().tolist() == names
    for name, row in found.dropna(subset="run").set_index("run").iterrows():
        last = json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert row["val/loss"] == pytest.approx(last["val/loss"])
    assert found["error"].notna().tolist() == [False, True, False, True]
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("s-2") == Path("checkpoints") / names[1] / "last.pt"


# ---- places that cannot be written


@pytest.mark.parametrize(
    ("place", "sweep"), [("outputs", ("-m", "seed=0,1")), ("runs", ()), ("checkpoints", ("-m", "seed=0,1"))]
)
def test_a_file_in_the_place_of_a_folder_is_one_line_before_anything_is_read(tmp_path, place, sweep):
    (tmp_path / place).write_text("")
    done = start(tmp_path, "train_erm", *TINY, *sweep, BIOMASS_DATA=str(tmp_path / "nothing"))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert place in lines[0]
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_hydra_cannot_write_to_is_one_line(tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "train_erm.log").mkdir()  # in the way of the log, for root, too
    done = start(tmp_path, "train_erm", *TINY, "hydra.run.dir=given", BIOMASS_DATA=str(tmp_path / "nothing"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "train_erm.log" in done.stderr


MOUNT = ("unshare", "-rm", "sh", "-c", 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" && exec "$@"', "sh")


@pytest.fixture
def read_only(tmp_path):
    """What starts a command with the working folder mounted read-only; a skip where that is not allowed."""
    works = (
        shutil.which("unshare") and subprocess.run([*MOUNT, "true"], cwd=tmp_path, capture_output=True).returncode == 0
    )
    if not works:
        pytest.skip("this system does not let its users mount a folder read-only")
    return MOUNT


def test_a_read_only_working_folder_is_one_line(tmp_path, read_only):
    done = start(tmp_path, "train_erm", *TINY, prefix=read_only, HOME=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("error: cannot write 'outputs'")
    assert "Read-only" in done.stderr


def test_a_read_only_working_folder_with_outputs_elsewhere_is_one_line(tmp_path, read_only, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = start(tmp_path, "train_erm", *TINY, f"hydra.run.dir={elsewhere}", prefix=read_only, HOME=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert done.stderr.startswith("error: cannot write to 'runs/")


def test_a_read_only_home_does_not_matter(tmp_path, read_only, tmp_path_factory):
    work, data = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("data")
    inside = ("sh", "-c", f'cd "{work}" && exec "$@"', "sh")
    arguments = (*TINY, "trainer.max_steps=1", "run_name=a")
    done = start(
        tmp_path, "train_erm", *arguments, prefix=(*read_only, *inside), HOME=str(tmp_path), BIOMASS_DATA=str(data)
    )
    assert done.returncode == 0, done.stderr
    assert (work / "checkpoints" / "a" / "last.pt").exists()
