"""train_erm.py from its configuration to its checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY_RUN, TINY_SCREEN
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event

from biomass import stopping
from biomass.config import Config, build
from biomass.errors import BadImageError, CheckpointError, ConfigError, DataError, TrainingError
from biomass.evaluation.accuracy import mixing_rows
from biomass.experiment import compose
from biomass.loader import Loader
from biomass.models import Architecture, build_network
from biomass.screen import COLUMNS, make_screen
from biomass.training import RunLogger, evaluations, load_checkpoint, load_network, loop
from biomass.training.events import EVENTS, records
from tests.warm import run_warm

TINY = (*TINY_SCREEN, *TINY_RUN)
EXCLUDED = ["experiment", "num_epochs", "dataloaders", *(o.partition("=")[0] for o in (*TINY_SCREEN, *TINY_RUN))]
"""Overrides of tests that are no part of a run's name."""


def metrics(name):
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def evaluation(name):
    return [line for line in metrics(name) if "val/accuracy" in line][-1]


@pytest.mark.parametrize("method", ["vanilla", "ben", "ben_experiment", "ben_controls", "adabn"])
def test_every_method_trains_evaluates_and_saves(run, method):
    best = run(
        "train_erm",
        *TINY,
        f"+method={method}",
        "num_epochs=2",
        "train_batch_size=14",
        f"run_name={method}",
        "trainer.log_every=2",
        "report=true",
    )
    last, folder = evaluation(method), Path("runs") / method
    assert best == max(line["val/accuracy"] for line in metrics(method) if "val/accuracy" in line)
    plates = pd.read_csv(folder / "plates.csv")
    for split, images in {"val": 28, "test": 28, "id_test": 28}.items():
        assert {f"{split}/top5", f"{split}/treatments"} <= set(last)
        assert math.isfinite(last[f"{split}/loss"])
        of_split = plates[plates["split"] == split]
        assert of_split["images"].sum() == images
        correct = (of_split["accuracy"] * of_split["images"]).sum()
        assert last[f"{split}/accuracy"] == pytest.approx(correct / images)
    logged = {name for line in metrics(method) for name in line}
    assert {"train/loss", "train/accuracy", "train/gradient_norm", "train/learning_rate"} <= logged
    assert OmegaConf.load(folder / "config.yaml").run_name == method
    assert json.loads((folder / "environment.json").read_text())["torch"] in torch.__version__
    assert list(folder.glob("events.out.tfevents.*"))
    layers = pd.read_csv(folder / "layers.csv")
    assert layers.groupby("words")["depth"].apply(list).to_dict() == {w: list(range(17)) for w in ("plate", "running")}
    assert {"report.html", "samples.png", "samples.json"} <= {file.name for file in folder.iterdir()}
    state = load_checkpoint(Path(f"checkpoints/{method}/last.pt"))
    assert state["architecture"] == {"key": "test_resnet", "in_channels": 3, "head": [6]}
    assert state["progress"]["epoch"] == 2


def test_the_published_vanilla_recipe_by_overrides_equals_the_preset(run):
    common = (*TINY, "num_epochs=1", "train_batch_size=14", "eval_batch_size=75")
    run(
        "train_erm",
        *common,
        "~dataloaders.train_groupby",
        "~dataloaders.max_groups",
        "dataloaders.eval_plate_sampler=False",
        "use_train_at_eval=False",
        "run_name=edited",
    )
    run("train_erm", *common, "+method=vanilla", "run_name=preset")
    edited, preset = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("edited", "preset"))
    assert all(torch.equal(edited["network"][k], v) for k, v in preset["network"].items())
    assert evaluation("edited")["test/loss"] == evaluation("preset")["test/loss"]


def test_same_seed_same_bits_and_another_seed_another_run(run):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("train_erm", *TINY, "num_epochs=1", f"seed={seed}", f"run_name={name}", "train_batch_size=7")
    a, b, c = (load_checkpoint(Path(f"checkpoints/{name}/last.pt"))["network"] for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_images_that_stay_in_the_memory_of_the_device_give_the_same_bits(run, monkeypatch):
    states, held, hold = [], [], Loader.hold
    monkeypatch.setattr(Loader, "hold", lambda loader, device: held.append(loader) or hold(loader, device))
    for name, resident in (("a", "false"), ("b", "true")):
        run("train_erm", *TINY, "+method=ben", "num_epochs=1", f"run_name={name}", f"trainer.resident={resident}")
        states.append(load_checkpoint(Path(f"checkpoints/{name}/last.pt"))["network"])
    assert len(held) == 1
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    same = [{k: v for k, v in evaluation(name).items() if k.startswith("val/")} for name in "ab"]
    assert same[0] == same[1]


def test_a_run_leaves_the_global_random_state_alone(run):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run("train_erm", *TINY, "num_epochs=1", "run_name=a", "trainer.max_steps=2")
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


def test_evaluation_does_not_depend_on_the_size_of_its_chunks(run):
    for name, size in (("whole", "null"), ("chunks", "3")):
        run("train_erm", *TINY, "+method=ben", "num_epochs=1", f"eval_batch_size={size}", f"run_name={name}")
    whole, chunks = evaluation("whole"), evaluation("chunks")
    for split in ("val", "test", "id_test"):
        assert chunks[f"{split}/loss"] == pytest.approx(whole[f"{split}/loss"], rel=1e-4)


def test_two_steps_and_no_evaluation(run):
    assert run("train_erm", *TINY, "trainer.max_steps=2", "dataloaders.eval_splits=[]", "run_name=a") is None
    assert load_checkpoint(Path("checkpoints/a/last.pt"))["progress"]["step"] == 2
    assert not any("val/accuracy" in line for line in metrics("a"))


def test_an_untrained_network_is_evaluated_and_saved_and_is_then_finished(run, caplog):
    run("train_erm", *TINY, "+method=vanilla", "trainer.max_steps=0", "run_name=a")
    state, (line,) = load_checkpoint(Path("checkpoints/a/last.pt")), metrics("a")
    assert (line["step"], line["epoch"]) == (0, 0)
    assert {"val/accuracy", "test/accuracy", "id_test/accuracy"} <= set(line)
    assert set(pd.read_csv("runs/a/plates.csv")["epoch"]) == {0}
    fresh = build_network(Architecture.from_dict(state["architecture"]), False, 0).state_dict()
    assert all(torch.equal(state["network"][key], value) for key, value in fresh.items())
    caplog.set_level("INFO")
    run("train_erm", *TINY, "+method=vanilla", "trainer.max_steps=0", "run_name=a", "resume=auto")
    assert "nothing is left to do" in caplog.text
    assert metrics("a") == [line]
    every = ("+method=vanilla", "num_epochs=1")
    run("train_erm", *TINY, *every, "run_name=a", "resume=auto")  # and may be trained after all, as if from the start
    run("train_erm", *TINY, *every, "run_name=b")
    a, b = (load_checkpoint(Path(f"checkpoints/{name}/last.pt"))["network"] for name in "ab")
    assert all(torch.equal(a[key], value) for key, value in b.items())


@pytest.mark.parametrize("size", ["75", "3"])
def test_batch_mixing_is_that_of_the_outputs_of_negative_controls(run, size):
    run("train_erm", *TINY, "+method=vanilla", "num_epochs=1", f"eval_batch_size={size}", "run_name=a")
    config = Config(OmegaConf.load("runs/a/config.yaml"))
    screen, standardize = build(config.dataloaders.source), compose(config.transforms.eval)
    network = load_network(Path("checkpoints/a/last.pt"))[0].eval()
    rows = [row for row in screen.rows("id_test") if screen.table["control"][row] == "negative"]
    with torch.inference_mode():
        images = [standardize(torch.from_numpy(screen.read(np.array([row]))).float()) for row in rows]
        outputs = [torch.nn.functional.normalize(network(image))[0] for image in images]
    same = []
    for one, row in zip(outputs, rows, strict=True):
        others = [(float(one @ two), other) for two, other in zip(outputs, rows, strict=True) if other != row]
        same.append(screen.table["experiment"][max(others)[1]] == screen.table["experiment"][row])
    assert evaluation("a")["id_test/mixing"] == pytest.approx(np.mean(same))
    assert "val/mixing" not in evaluation("a")  # which is of one experiment


def test_of_many_controls_a_part_tells_batch_mixing():
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 100) | {"label": 0, "split": ["test"] * 90 + ["val"] * 10})
    table["control"] = ["negative", ""] * 50
    screen = make_screen(table, None, ["DMSO"])
    assert mixing_rows(screen, "test").tolist() == list(range(0, 90, 2))
    some = mixing_rows(screen, "test", 10)
    assert len(set(some)) == 10
    assert set(some) < set(range(0, 90, 2))
    assert (some[0], some[-1]) == (0, 88)


def test_shuffled_labels_are_those_of_training_alone(run):
    for name, shuffled, steps in (("a", "false", 0), ("b", "true", 0), ("c", "false", 2), ("d", "true", 2)):
        run("train_erm", *TINY, f"shuffle_labels={shuffled}", f"trainer.max_steps={steps}", f"run_name={name}")
    a, b, c, d = (load_checkpoint(Path(f"checkpoints/{name}/last.pt"))["network"] for name in "abcd")
    assert all(torch.equal(a[key], value) for key, value in b.items())
    assert {k: v for k, v in evaluation("a").items() if "/" in k} == {
        k: v for k, v in evaluation("b").items() if "/" in k
    }
    assert not torch.equal(c["head.weight"], d["head.weight"])
    with pytest.raises(CheckpointError, match=r"shuffle_labels=True, this run has shuffle_labels=False"):
        run("train_erm", *TINY, "trainer.max_steps=2", "run_name=d", "resume=auto")


def test_the_log_counts_the_seconds_of_all_parts_of_a_run(run):
    run("train_erm", *TINY, "num_epochs=1", "run_name=a")
    log = Path("runs/a/metrics.jsonl")
    first = [line["seconds"] for line in metrics("a")]
    assert 0 < first[0] <= first[-1]
    assert first == sorted(first)
    lines = metrics("a")
    lines[-1]["seconds"] = 1000.0
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("train_erm", *TINY, "num_epochs=2", "run_name=a", "resume=auto")
    assert 1000 < metrics("a")[-1]["seconds"] < 1000 + 300
    for line in lines:  # of a run that began before they were counted
        del line["seconds"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("train_erm", *TINY, "num_epochs=3", "run_name=a", "resume=auto")
    assert "seconds" not in metrics("a")[-1]


def test_save_model_false_writes_no_checkpoint(run):
    run("train_erm", *TINY, "trainer.max_steps=1", "save_model=false", "run_name=a", "report=false")
    assert not Path("checkpoints").exists()
    assert not {"report.html", "layers.csv", "samples.png"} & {file.name for file in Path("runs/a").iterdir()}


def test_resume_auto_of_a_finished_run_changes_nothing(run):
    run("train_erm", *TINY, "num_epochs=1", "run_name=a")
    before = load_checkpoint(Path("checkpoints/a/last.pt"))
    best = run("train_erm", *TINY, "num_epochs=1", "run_name=a", "resume=auto")
    assert best == before["progress"]["best"]
    after = load_checkpoint(Path("checkpoints/a/last.pt"))
    assert all(torch.equal(before["network"][k], v) for k, v in after["network"].items())


def events_of(name):
    """(step, tag) of all records of all files, in their order."""
    events = [
        Event.FromString(data) for file in Path(f"runs/{name}").glob(EVENTS) for data in records(file.read_bytes())
    ]
    return [(event.step, value.tag) for event in events for value in event.summary.value]


def test_a_run_that_is_stopped_and_killed_anywhere_ends_as_if_it_had_not_been(run):
    """Stopped behind a step that is not logged and within an evaluation, killed before and behind the next save."""
    short = ("num_epochs=2", "train_batch_size=7", "trainer.accumulate=2", "dataloaders.eval_splits=[val]")
    overrides = (*TINY, "+method=ben", *short, "trainer.log_every=3")

    def cut(module, name, call, when):
        """Call ``when`` in place of the end of a call of a function, which is that of a number."""
        calls, function = [], getattr(module, name)

        def counted(*arguments, **keywords):
            calls.append(name)
            value = function(*arguments, **keywords)
            if len(calls) == call:
                when()
            return value

        with pytest.MonkeyPatch.context() as patch, stopping.listening(goes_on=True):
            patch.setattr(module, name, counted)
            run("train_erm", *overrides, "run_name=cut", "resume=auto")

    def killed():
        raise RuntimeError("killed")

    run("train_erm", *overrides, "run_name=whole")
    for module, name, call, when, error in (
        (loop, "_forward", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit),
        (evaluations, "plate_accuracy", 1, lambda: os.kill(os.getpid(), signal.SIGUSR1), SystemExit),
        (RunLogger, "scalars", 1, killed, RuntimeError),
        (loop, "_forward", 3, killed, RuntimeError),
    ):
        with pytest.raises(error) as caught:
            cut(module, name, call, when)
        assert error is RuntimeError or caught.value.code == stopping.AGAIN
    run("train_erm", *overrides, "run_name=cut", "resume=auto")
    whole, after = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "cut"))
    assert all(torch.equal(whole["network"][key], value) for key, value in after["network"].items())
    for one, other in zip(*(state["optimizer"]["state"].values() for state in (whole, after)), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole["progress"] == after["progress"]
    timed = ("time", "seconds")
    curves = [[{k: v for k, v in m.items() if k not in timed} for m in metrics(n)] for n in ("whole", "cut")]
    assert curves[0] == curves[1]
    assert sorted(events_of("cut")) == sorted(events_of("whole"))
    assert len(set(events_of("cut"))) == len(events_of("cut"))
    files = [file for folder in ("runs/cut", "checkpoints/cut") for file in Path(folder).iterdir()]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    run("train_erm", *overrides, "run_name=cut", "resume=auto")  # of a finished run nothing changes
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    assert {file for folder in ("runs/cut", "checkpoints/cut") for file in Path(folder).iterdir()} == set(files)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["model.d_out=3"], ConfigError, r"label \d .* among 3; the screen has 6 classes"),
        (["dataloaders.eval_splits=[val,tset]"], ConfigError, "split 'tset' has no rows; did you mean 'test'"),
        (["dataloaders.max_groups=50"], ConfigError, "is 50, but these rows have only 4 groups"),
        (["dataloaders.train_groupby=[week]"], ConfigError, "cannot group by 'week'"),
        (["+lerning_rate=1"], ConfigError, "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        (["model.key=resnet19"], ConfigError, "'resnet19' is neither"),
        (["trainer.precision=8"], ConfigError, "precision '8' is unknown"),
        (["device=tpu"], ConfigError, "device 'tpu' is unknown"),
        (["trainer.monitor=train/accuracy"], ConfigError, "monitor 'train/accuracy'"),
        (["trainer.monitor=val/acuracy"], ConfigError, "'val/acuracy' is not measured; choose one of: val/accuracy"),
        (["resume=nowhere.pt"], CheckpointError, "there is no checkpoint 'nowhere.pt'"),
        (["statistics_rows=some"], ConfigError, '"some"'),
        (["statistics.eval=plates"], ConfigError, '"plates".*.plate.'),
        (["statistics.train=calibrated"], ConfigError, "'calibrated' are for inference"),
        (["statistics.by=[flask]"], ConfigError, "'flask'"),
        (["statistics.eval=controls", "dataloaders.source.negative_wells=0"], DataError, "no negative control"),
        (["dataloaders.on_bad_image=ignore"], ConfigError, "on_bad_image 'ignore' is unknown"),
        (["num_epochs=0"], ConfigError, "num_epochs is 0"),
        (["run_name=a/b"], ConfigError, "run_name 'a/b'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_written(run, overrides, error, message):
    with pytest.raises(error, match=message) as caught:
        run("train_erm", *TINY, *overrides)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()
    assert not Path("checkpoints").exists()


def test_a_checkpoint_of_another_architecture(run):
    run("train_erm", *TINY, "trainer.max_steps=1", "run_name=a")
    with pytest.raises(CheckpointError, match=r"model.d_out=6, this run has model.d_out=7"):
        run("train_erm", *TINY, "model.d_out=7", "run_name=b", "resume=checkpoints/a/last.pt")
    assert not Path("runs/b").exists()


@pytest.mark.parametrize("override", ["learning_rate=0.5", "seed=1", "+method=vanilla", "train_batch_size=3"])
def test_a_run_does_not_go_on_with_other_settings(run, override):
    run("train_erm", *TINY, "num_epochs=1", "trainer.max_steps=1", "run_name=a")
    before = Path("runs/a/config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"this run has .*; set it back"):
        run("train_erm", *TINY, "num_epochs=1", override, "run_name=a", "resume=auto")
    assert Path("runs/a/config.yaml").read_text() == before


def test_a_run_stopped_within_an_epoch_goes_on_there(run):
    every = ("num_epochs=2", "train_batch_size=5", "trainer.log_every=1", "trainer.evaluate_every=2")
    run("train_erm", *TINY, *every, "run_name=whole")
    run("train_erm", *TINY, *every, "run_name=parts", "trainer.max_steps=3")
    progress = load_checkpoint(Path("checkpoints/parts/last.pt"))["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (0, 3, 3)
    run("train_erm", *TINY, *every, "run_name=parts", "resume=auto")
    whole, parts = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "parts"))
    assert whole["progress"]["step"] == parts["progress"]["step"] > 6
    assert all(torch.equal(whole["network"][k], v) for k, v in parts["network"].items())


def test_a_run_shorter_than_a_line_of_the_log_shows_its_gradients(run):
    run("train_erm", *TINY, "num_epochs=2", "trainer.log_every=1000", "run_name=a")
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line.get("train/gradient_norm", 0) > 0] == [0, 1]
    run("train_erm", *TINY, "trainer.log_every=1000", "trainer.max_steps=1", "run_name=b")
    assert "train/gradient_norm" in Path("runs/b/metrics.jsonl").read_text()


def test_another_process_that_owns_the_same_run_is_named_and_nothing_is_written(run, tmp_path):
    owns = "from biomass.run_lock import own; own(Path('runs/a')); print(1, flush=True)"
    script = f"import sys; from pathlib import Path; {owns}; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"another process is writing 'runs/a': process {other.pid} of .*since"):
            run("train_erm", *TINY, "trainer.max_steps=1", "run_name=a")
        assert [path.name for path in Path("runs/a").iterdir()] == [".lock"]
        other.kill()  # and the system lets go of the lock
    run("train_erm", *TINY, "trainer.max_steps=1", "run_name=a")
    assert not Path("runs/a/.lock").exists()


def test_a_label_that_only_evaluation_knows_is_found_before_training(run):
    with pytest.raises(ConfigError, match=r"label \d .* among 5; the screen has 6 classes"):
        run("train_erm", *TINY, "model.d_out=5", "run_name=a")


def test_a_line_of_the_log_that_a_kill_tore_is_dropped(run):
    run("train_erm", *TINY, "num_epochs=1", "run_name=a")
    log = Path("runs/a/metrics.jsonl")
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines) + '\n{"step": 1, "epo')
    run("train_erm", *TINY, "num_epochs=2", "run_name=a", "resume=auto")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][: len(lines)] == [
        json.loads(line)["step"] for line in lines
    ]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(run):
    run("train_erm", *TINY, "num_epochs=1", "run_name=a", "train_batch_size=14")
    path = Path("checkpoints/a/last.pt")
    state = load_checkpoint(path)
    state["network"]["head.bias"][:2] = torch.tensor([3e38, -3e38])  # finite, but no loss can be taken of it
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(
        TrainingError, match=r"loss is (nan|inf) at step \d+ of epoch 2, plate .*/\d.*kept 'checkpoints"
    ):
        run("train_erm", *TINY, "num_epochs=2", "run_name=a", "resume=auto", "train_batch_size=14")
    assert path.read_bytes() == before


def spoil(data_root, tmp_path, count):
    """A copy of the tiny screen with truncated images; the folder to use as root, and the images' names."""
    import shutil

    designs = (data_root / "simulated").glob("*/design.json")
    source = next(d for d in designs if json.loads(d.read_text())["treatments"] == 4).parent / "rxrx1_v1.0"
    shutil.copytree(source, tmp_path / "spoilt" / "rxrx1_v1.0")
    images = sorted((tmp_path / "spoilt").glob("rxrx1_v1.0/images/*/*/*_s1.png"))[:count]
    for image in images:
        image.write_bytes(image.read_bytes()[:200])
    return tmp_path / "spoilt", images


def test_truncated_images_stop_a_run_or_are_left_out_and_listed(run, data_root, tmp_path):
    run("train_erm", *TINY, "trainer.max_steps=1", "run_name=makes_the_screen")
    root, images = spoil(data_root, tmp_path, 3)
    rxrx1 = ("dataloaders=rxrx1", f"dataloaders.root_dir={root}", "dataloaders.num_workers=1", *TINY_RUN)
    with pytest.raises(BadImageError, match=images[0].name) as caught:
        run("train_erm", *rxrx1, "run_name=stops")
    assert "\n" not in str(caught.value)
    run("train_erm", *rxrx1, "num_epochs=1", "run_name=skips", "dataloaders.on_bad_image=skip")
    listed = Path("runs/skips/skipped_images.txt").read_text().splitlines()
    assert sorted(Path(name).name for name in listed) == sorted(image.name for image in images)


def script(tmp_path, data_root, *arguments):
    return run_warm(ROOT / "train_erm.py", *arguments, cwd=tmp_path, environment={"BIOMASS_DATA": str(data_root)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lerning_rate=1"], "error: unknown key 'lerning_rate'"),
        ([*TINY, "model.d_out=3"], "error: label"),
        (["dataloaders=nothing"], "error: "),
    ],
)
def test_errors_reach_the_user_as_one_line_and_an_exit_code(tmp_path, data_root, arguments, message):
    done = script(tmp_path, data_root, *arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_output_folder(tmp_path, data_root):
    (tmp_path / "outputs").write_text("a file in the way")
    done = script(tmp_path, data_root, *TINY)
    assert done.returncode != 0
    assert done.stderr.startswith("error: cannot write")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_sweep_gives_every_job_its_own_name(tmp_path, data_root):
    done = script(
        tmp_path,
        data_root,
        "-m",
        *TINY,
        "seed=0,1",
        "trainer.max_steps=1",
        "run_name=sweep",
        "dataloaders.eval_splits=[val]",
    )
    assert done.returncode == 0, done.stderr
    for job in ("sweep-0_seed-0", "sweep-1_seed-1"):
        assert (tmp_path / "runs" / job / "metrics.jsonl").exists()
        assert (tmp_path / "checkpoints" / job / "last.pt").exists()
    assert len(list((tmp_path / "outputs").glob("*/*/[01]/.hydra/config.yaml"))) == 2


def test_a_comparison_that_was_cut_off_goes_on_and_may_grow(tmp_path, data_root):
    common = (*TINY, "+experiment=compare", "num_epochs=1", "dataloaders.source.seed=0", "+method=ben")
    short = ("hydra.job.config.override_dirname.exclude_keys=" + json.dumps(EXCLUDED).replace(" ", ""),)
    done = script(tmp_path, data_root, *common, *short, "seed=0")
    assert done.returncode == 0, done.stderr
    (first,) = names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert first == "compare_+method-ben_dataloaders.source.seed-0_seed-0"
    before = (tmp_path / "runs" / first / "metrics.jsonl").read_text()
    done = script(tmp_path, data_root, *common, *short, "seed=1,0")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [first, "compare_+method-ben_dataloaders.source.seed-0_seed-1"]
    assert (tmp_path / "runs" / first / "metrics.jsonl").read_text() == before
    assert "nothing is left to do" in done.stdout + done.stderr


OLD = {  # what a preset set before there were words, in the configuration of a checkpoint
    "vanilla": {"train_groupby": None, "max_groups": None, "eval_plate_sampler": False, "use_train_at_eval": False},
    "ben": {"train_groupby": ["experiment", "plate"], "max_groups": 1, "eval_plate_sampler": True},
    "adabn": {"train_groupby": None, "max_groups": None, "eval_plate_sampler": True},
    "ben_experiment": {"train_groupby": ["experiment"], "eval_groupby": ["experiment"], "eval_batch_size": 616},
    "ben_controls": {"num_controls": 2, "statistics_rows": "controls"},
}


@pytest.mark.parametrize("method", OLD)
def test_a_run_from_before_there_were_words_goes_on_with_its_preset_and_no_other(run, method):
    settings = ("num_epochs=2", "trainer.max_steps=1", "dataloaders.eval_splits=[]", "run_name=a")
    settings += ("dataloaders.num_controls=2",) if method == "ben_controls" else ()
    run("train_erm", *TINY, *settings, f"+method={method}")
    path = Path("checkpoints/a/last.pt")
    state = load_checkpoint(path)
    del state["method"], state["config"]["statistics"]
    for key, value in OLD[method].items():
        section = state["config"] if key in state["config"] else state["config"]["dataloaders"]
        section[key] = value
    torch.save(state, path)
    other = "ben" if method == "vanilla" else "vanilla"
    with pytest.raises(CheckpointError, match="statistics"):
        run("train_erm", *TINY, *settings, f"+method={other}", "resume=auto")
    run("train_erm", *TINY, *settings, f"+method={method}", "resume=auto", "trainer.max_steps=2")
    assert load_checkpoint(path)["progress"]["step"] == 2
