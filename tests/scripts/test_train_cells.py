"""train_simclr.py, train_supervised_cell.py and train_classifier.py, handing over to each other."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_CELLS, TINY_SCREEN

from biomass.commands import crop
from biomass.datasets.simulated import load_simulated_cells
from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.models import Architecture, build_network
from biomass.simulation.rxrx1 import Design, simulate_rxrx1
from biomass.training import Profiler, build_probe, find_checkpoint, load_checkpoint, load_network, loop
from tests.warm import run_warm

SMALL = ("model.key=test_resnet", "model.pretrained=false", "dataloaders.sampler=plate")
SIMCLR = (*TINY_CELLS, *SMALL, "model.projector=[16,8]", "num_epochs=2", "temperature=0.2")
SUPERVISED = (*TINY_CELLS, *SMALL, "dataloaders.num_img=1", "eval_batch_size=50")
PROBE = (
    *TINY_CELLS,
    "transforms=plain",
    "dataloaders.sampler=plate",
    "model_train_mode=true",
    "num_epochs=3",
    "num_warmup_epochs=0",
    "encode_batch_size=100",
)

DESIGN = {key.rpartition(".")[2]: int(value) for key, value in (o.split("=") for o in TINY_SCREEN if "source" in o)}
"""The screen of TINY_CELLS, but for the size of its fields."""


def last(name, metric):
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if metric in line][-1]


def curve(name):
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "seconds")} for line in lines]


@pytest.fixture
def pretrained(run):
    """A tiny MinCLR run named ``encoder``."""
    run("train_simclr", *SIMCLR, "dataloaders.mode=random", "run_name=encoder")
    return "encoder"


@pytest.mark.parametrize("mode", ["random_single", "random"])
@pytest.mark.parametrize("sampler", ["random", "plate", "exp"])
def test_simclr_trains_validates_and_saves(run, mode, sampler):
    best = run(
        "train_simclr",
        *SIMCLR,
        f"dataloaders.mode={mode}",
        f"dataloaders.sampler={sampler}",
        "run_name=a",
        "num_views=3",
        "dataloaders.num_img=3",
        "train_batch_size=14",
    )
    assert best is not None
    assert math.isfinite(best)
    assert best == min(line["val/loss"] for line in curve("a") if "val/loss" in line)
    state = load_checkpoint(Path("checkpoints/a/last.pt"))
    assert state["architecture"] == {"key": "test_resnet", "in_channels": 3, "head": [16, 8]}


def test_same_seed_same_curve(run):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("train_simclr", *SIMCLR, "trainer.log_every=1", f"run_name={name}", f"seed={seed}")
    assert curve("a") == curve("b") != curve("c")


def test_cells_cut_out_of_ones_own_fields(run, data_root, tmp_path):
    fields = simulate_rxrx1(data_root, Design(**DESIGN | {"size": 96}))
    crop.main([str(fields), str(tmp_path / "cells"), "--channel", "nuclei", "--diameter", "10", "--workers", "0"])
    own = ("dataloaders=packed", f"dataloaders.root_dir={tmp_path}", "dataloaders.num_workers=0", "device=cpu")
    run("train_simclr", *own, *SIMCLR[len(TINY_CELLS) :], "num_warmup_epochs=1", "run_name=own")
    run("train_classifier", *own, "dataloaders.eval_splits=[val,test]", "model_path=own", "num_epochs=2", "run_name=p")
    assert math.isfinite(last("p", "test/loss")["test/loss"])


RESUMED = ("dataloaders.mode=random", "num_epochs=4", "train_batch_size=7", "trainer.log_every=1")


def test_a_run_that_was_interrupted_within_an_epoch_goes_on_to_the_same_weights(run, monkeypatch):
    """In this process, and quickly; see below."""

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == steps // 4 * 2 + 2:  # in the third epoch
            raise KeyboardInterrupt
        return forward(*arguments)

    run("train_simclr", *SIMCLR, *RESUMED, "run_name=whole")
    steps = load_checkpoint(Path("checkpoints/whole/last.pt"))["progress"]["step"]
    calls, forward = [], loop._forward
    monkeypatch.setattr(loop, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("train_simclr", *SIMCLR, *RESUMED, "run_name=cut")
    assert load_checkpoint(Path("checkpoints/cut/last.pt"))["progress"]["epoch"] == 2
    monkeypatch.setattr(loop, "_forward", forward)
    run("train_simclr", *SIMCLR, *RESUMED, "run_name=cut", "resume=auto")
    whole, cut = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "cut"))
    for key, weights in cut["network"].items():
        torch.testing.assert_close(whole["network"][key], weights, rtol=1e-4, atol=1e-5)
    assert (whole["progress"]["step"], whole["progress"]["epoch"]) == (cut["progress"]["step"], 4)
    assert [line["step"] for line in curve("whole")] == [line["step"] for line in curve("cut")]


@pytest.mark.slow  # tests/scripts/test_train_erm.py kills a run in every run of the suite, and the loop is the same
@pytest.mark.parametrize(("script", "more"), [("train_simclr", SIMCLR), ("train_supervised_cell", SUPERVISED)])
def test_a_killed_run_resumes_to_the_same_bits(run_alone, run_and_kill, tmp_path, monkeypatch, script, more):
    monkeypatch.chdir(tmp_path)
    overrides = (*more, *RESUMED, "num_epochs=6")
    run_alone(script, *overrides, "run_name=whole")
    run_and_kill(script, *overrides, name="killed")
    assert load_checkpoint(Path("checkpoints/killed/last.pt"))["progress"]["epoch"] < 6
    run_alone(script, *overrides, "run_name=killed", "resume=auto")
    whole, killed = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "killed"))
    assert all(torch.equal(whole["network"][k], v) for k, v in killed["network"].items())
    assert whole["progress"] == killed["progress"]
    assert curve("whole") == curve("killed")


@pytest.mark.parametrize("pooler", ["mean", "median", "attention"])
@pytest.mark.parametrize("plate", [True, False])
def test_probe(run, pretrained, pooler, plate):
    best = run(
        "train_classifier",
        *PROBE,
        "model_path=latest",
        f"pooler={pooler}",
        f"model_train_mode={plate}",
        "run_name=probe",
    )
    measured = last("probe", "test/accuracy")
    assert best is not None
    assert {"val/accuracy", "test/accuracy", "iid_val/accuracy", "test/treatments"} <= set(measured)
    state = load_checkpoint(Path("checkpoints/probe/last.pt"))
    assert state["architecture"] == {"pooler": pooler, "in_features": 96, "d_out": 6}
    if pooler == "attention":  # trained and saved
        assert any(name.startswith("pooler.") for name in state["network"])
        untrained = build_probe("attention", 96, None, 6, 0).state_dict()
        assert any(not torch.equal(state["network"][k], untrained[k]) for k in untrained if k.startswith("pooler."))


def test_runs_end_in_a_page(run, caplog):
    caplog.set_level("INFO")
    short = ("trainer.max_steps=1", "report=true")
    run("train_simclr", *SIMCLR, *short, "run_name=simclr")
    run("train_supervised_cell", *SUPERVISED, *short, "num_epochs=1", "run_name=supervised")
    run("train_classifier", *PROBE, *short, "model_path=simclr", "run_name=probe")
    for name in ("simclr", "supervised", "probe"):
        assert f"runs/{name}/report.html" in caplog.text
        files = {file.name for file in Path("runs", name).iterdir()}
        assert {"report.html", "layers.csv", "samples.png"} <= files
    assert "one part less" not in caplog.text


def test_probe_does_not_depend_on_the_size_of_its_chunks(run, pretrained):
    for name, size in (("whole", "null"), ("chunks", "17")):
        run("train_classifier", *PROBE, "model_path=encoder", f"encode_batch_size={size}", f"run_name={name}")
    for split in ("val", "test"):
        assert last("chunks", f"{split}/loss")[f"{split}/loss"] == pytest.approx(
            last("whole", f"{split}/loss")[f"{split}/loss"], rel=1e-3
        )


def test_probe_of_projections_and_of_supervised_encoders(run, pretrained):
    run("train_classifier", *PROBE, "model_path=encoder", "use_projs=true", "in_features=8", "run_name=projections")
    run("train_supervised_cell", *SUPERVISED, "num_epochs=1", "run_name=supervised")
    assert "val/accuracy" in last("supervised", "val/accuracy")
    run("train_classifier", *PROBE, "sup_model_path=supervised", "run_name=of_supervised")
    assert "test/accuracy" in last("of_supervised", "test/accuracy")


def test_a_probe_resumes(run, pretrained):
    run("train_classifier", *PROBE, "model_path=encoder", "run_name=p")
    before = load_checkpoint(Path("checkpoints/p/last.pt"))
    run("train_classifier", *PROBE, "model_path=encoder", "run_name=p", "resume=auto")
    after = load_checkpoint(Path("checkpoints/p/last.pt"))
    assert all(torch.equal(before["network"][k], v) for k, v in after["network"].items())


@pytest.mark.parametrize(
    ("script", "overrides", "error", "message"),
    [
        ("train_simclr", ["num_views=3"], ConfigError, "hold 2 views of a field, but 3 are expected"),
        ("train_simclr", ["dataloaders.mode=all"], ConfigError, "mode 'all' gives no views"),
        ("train_simclr", ["dataloaders.sampler=well"], ConfigError, 'sampler is "well"; choose random, plate'),
        ("train_simclr", ["temperature=0"], ConfigError, "temperature is 0"),
        ("train_simclr", ["trainer.monitor=val/accuracy"], ConfigError, "is not measured; choose one of: val/loss"),
        ("train_simclr", ["model_path=nothing"], CheckpointError, "neither a checkpoint file nor a run"),
        ("train_classifier", [], ConfigError, "neither is given"),
        ("train_classifier", ["model_path=a", "sup_model_path=b"], ConfigError, "both are given"),
        ("train_classifier", ["model_path=latest"], CheckpointError, "neither a checkpoint file nor a run"),
    ],
)
def test_what_cannot_work_is_refused(run, script, overrides, error, message):
    base = SIMCLR if script == "train_simclr" else PROBE
    with pytest.raises(error, match=message) as caught:
        run(script, *base, *overrides)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_probe_goes_on_only_with_its_own_encoder(run, pretrained):
    run("train_simclr", *SIMCLR, "dataloaders.mode=random_single", "seed=1", "run_name=other")
    run("train_classifier", *PROBE, "model_path=encoder", "run_name=p")
    before = Path("runs/p/config.yaml").read_text()
    with pytest.raises(CheckpointError, match="is a probe of another encoder"):
        run("train_classifier", *PROBE, "model_path=other", "run_name=p", "resume=auto")
    assert Path("runs/p/config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("script", "instance", "message"),
    [
        ("train_simclr", "[experiment,site]", "takes cells of two plates for one thing"),
        ("train_simclr", "[experiment,plate]", "takes cells of two (splits|labels) for one thing"),
        ("train_classifier", "[experiment,plate,well]", "takes cells of two splits for one thing"),
        ("train_supervised_cell", "[cell_type]", "takes cells of two plates for one thing"),
    ],
)
def test_instances_must_be_parts_of_a_plate(run, pretrained, script, instance, message):
    base = {
        "train_simclr": SIMCLR,
        "train_classifier": (*PROBE, "model_path=encoder"),
        "train_supervised_cell": SUPERVISED,
    }
    with pytest.raises(ConfigError, match=message.replace("takes", "take")) as caught:
        run(script, *base[script], f"dataloaders.instance={instance}", "run_name=x")
    assert caught.value.advice == "instance"
    assert not Path("runs/x").exists()


def test_batches_without_a_second_field_have_nothing_to_contrast(run):
    with pytest.raises(ConfigError, match="every batch of split 'train' holds a single field"):
        run("train_simclr", *SIMCLR, "train_batch_size=1")


def test_all_cells_are_served_in_bounded_batches(run):
    run(
        "train_supervised_cell",
        *SUPERVISED,
        "dataloaders.mode=all",
        "train_batch_size=10",
        "num_epochs=1",
        "trainer.log_every=1",
        "run_name=all",
    )
    screen = load_simulated_cells(os.environ["BIOMASS_DATA"], **DESIGN | {"size": 96})
    sizes = np.bincount(screen.plate_ids[screen.rows("train")])
    assert last("all", "train/loss")["step"] == sum(-(-n // 10) for n in sizes)


def test_projections_that_are_not_there(run):
    encoder = build_network(Architecture("resnet18", 3, ()))
    torch.save({f"encoder.tv_{k}": v for k, v in encoder.state_dict().items()}, "old.pth")
    with pytest.raises(ConfigError, match=r"'old.pth' has no projections"):
        run("train_classifier", *PROBE, "model_path=old.pth", "model.key=resnet18", "use_projs=true")


def test_what_is_random_has_no_place_before_a_probe(run, pretrained):
    flip = "transforms.eval=[{_target_: biomass.transforms.RandomHorizontalFlip}]"
    with pytest.raises(ConfigError, match="Generator") as error:
        run("train_classifier", *PROBE, "model_path=encoder", flip, "run_name=x")
    assert error.value.advice == "transforms"
    assert not Path("runs/x").exists()


def test_the_published_probe_encodes_again_for_every_epoch(run, pretrained, monkeypatch):
    """Cells are rotated and flipped at random in training; a run that stopped goes on to the same bits."""
    asked = []
    profiles = Profiler.profiles
    monkeypatch.setattr(Profiler, "profiles", lambda self, *a: asked.append(a[2:]) or profiles(self, *a))
    published = (*(o for o in PROBE if o not in ("transforms=plain", "num_epochs=3")), "model_path=encoder")
    published = (*published, "trainer.log_every=1", "train_batch_size=20")
    run("train_classifier", *published, "num_epochs=3", "run_name=whole")
    assert asked == [(), (0,), (1,), (2,)]  # once for evaluation, then once for every epoch
    for name, steps in (("stopped", 4), ("stopped", "null")):
        run(
            "train_classifier",
            *published,
            "num_epochs=3",
            f"trainer.max_steps={steps}",
            "resume=auto",
            f"run_name={name}",
        )
    whole, stopped = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "stopped"))
    assert stopped["progress"]["step"] > 4
    assert all(torch.equal(whole["network"][k], v) for k, v in stopped["network"].items())
    run("train_classifier", *published, "num_epochs=3", "transforms=plain", "run_name=plain")
    assert asked[-1] == ()
    assert last("whole", "train/loss") != last("plain", "train/loss")
    losses = [line["train/loss"] for line in curve("whole") if "train/loss" in line]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("script", ["train_simclr", "train_supervised_cell"])
def test_controls_can_be_had_for_cells(run, script):
    """Every batch holds its share of control fields, and their statistics are those of the batch."""
    base = SIMCLR if script == "train_simclr" else (*SUPERVISED, "num_epochs=1")
    numbers = ("dataloaders.num_controls=2", "train_batch_size=6", "dataloaders.eval_splits=[val]")
    run(script, *base, "+method=ben_controls", *numbers, "run_name=controls")
    run(script, *base, "+method=ben", *numbers, "run_name=all")
    assert last("controls", "val/loss") != last("all", "val/loss")
    with pytest.raises(DataError, match="control"):
        run(script, *base, "+method=ben_controls", "dataloaders.source.negative_wells=0", "run_name=none")
    assert not Path("runs/none").exists()


def test_probes_that_do_not_fit_their_encoder(run, pretrained):
    with pytest.raises(ConfigError, match=r"512 features .* gives 96"):
        run("train_classifier", *PROBE, "model_path=encoder", "in_features=512")
    with pytest.raises(ConfigError, match="no output among 3; the screen has 6"):
        run("train_classifier", *PROBE, "model_path=encoder", "out_features=3")
    with pytest.raises(ConfigError, match=r"monitor 'val/foo' is not measured; choose one of: val/accuracy"):
        run("train_classifier", *PROBE, "model_path=encoder", "trainer.monitor=val/foo")
    with pytest.raises(ConfigError, match='pooler is "max"; choose mean'):
        run("train_classifier", *PROBE, "model_path=encoder", "pooler=max")


def test_a_folder_that_is_not_the_layout(run, tmp_path):
    (tmp_path / "cells" / "something").mkdir(parents=True)
    with pytest.raises(DataError, match="cells"):
        run("train_simclr", "dataloaders.img_dir=cells", "device=cpu", "model.key=test_resnet")


def original(kind, network):
    """A state dict in the form that the original experiment code wrote."""
    state = {}
    for name, value in network.state_dict().items():
        part, rest = name.split(".", 1)
        if kind == "classifier":
            state["model." + (rest if part == "encoder" else f"fc.{rest}")] = value
        elif part == "encoder":
            state[f"encoder.tv_encoder.{rest}"] = value
        else:
            state[f"projection.{rest}" if kind == "simclr" else f"classifier.{rest}"] = value
    return state


@pytest.mark.parametrize(("kind", "head"), [("simclr", (32, 32, 16)), ("cell", (7,)), ("classifier", (7,))])
def test_checkpoints_of_the_original_code_load(tmp_path, kind, head):
    network = build_network(Architecture("resnet18", 3, head), seed=4).eval()
    torch.save(original(kind, network), tmp_path / "old.pth")
    loaded, architecture, _ = load_network(tmp_path / "old.pth", "resnet18")
    assert architecture.head == head
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval()(x), network(x))


def test_plain_state_dicts_that_cannot_be_read(tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"holds no convolution of an encoder, only 'layer.weight'"):
        load_network(tmp_path / "other.pth", "resnet18")
    torch.save({"encoder.tv_encoder.conv1.weight": torch.zeros(3), "layer.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"holds no convolution of an encoder, only 'encoder.tv_encoder.conv1"):
        load_network(tmp_path / "b.pth", "resnet18")
    with pytest.raises(ConfigError, match="other") as error:
        load_network(tmp_path / "other.pth")
    assert error.value.advice == "model_key"


def test_where_a_model_path_leads(tmp_path):
    encoder = Architecture("resnet18", 3, ()).to_dict()
    runs = {"old": encoder, "new": encoder, "probe": {"pooler": "mean"}}
    for n, (name, architecture) in enumerate(runs.items()):
        path = tmp_path / name / "last.pt"
        path.parent.mkdir()
        torch.save({"architecture": architecture}, path)
        os.utime(path, (n, n))
    assert find_checkpoint("latest", tmp_path) == tmp_path / "new/last.pt"
    assert find_checkpoint("old", tmp_path) == tmp_path / "old/last.pt"
    assert find_checkpoint(str(tmp_path / "old/last.pt"), tmp_path) == tmp_path / "old/last.pt"
    with pytest.raises(CheckpointError, match=r"in .*: choose one of old, new, probe"):
        find_checkpoint("else", tmp_path)
    with pytest.raises(CheckpointError, match="holds a linear probe"):
        load_network(find_checkpoint("probe", tmp_path))


def test_the_ablation_table(run, pretrained, tmp_path):
    for plate in (True, False):
        run("train_classifier", *PROBE, "model_path=encoder", f"model_train_mode={plate}", f"run_name=probe-{plate}")
    done = run_warm(ROOT / "misc/ablation_table.py", cwd=tmp_path)
    assert "| MinCLR, 2 views |" in done.stdout
    assert "train plate / inference plate" in done.stdout
    value = 100 * last("probe-True", "test/accuracy")["test/accuracy"]
    assert f"{value:.1f}" in (tmp_path / "tables/ablation.md").read_text()
    assert (tmp_path / "tables/ablation.csv").exists()


def test_cells_that_stay_in_the_memory_of_the_device_give_the_same_losses(run):
    for name, resident in (("a", "false"), ("b", "true")):
        run("train_simclr", *SIMCLR, "num_epochs=1", f"run_name={name}", f"trainer.resident={resident}")
    for metric in ("train/loss", "val/loss"):
        assert last("a", metric)[metric] == last("b", metric)[metric]


@pytest.mark.parametrize("name", ["ablation", pytest.param("ablation_hard", marks=pytest.mark.slow)])
def test_the_ablation_by_its_three_commands(tmp_path, data_root, name):
    tiny = [o for o in TINY_CELLS if o != "dataloaders=simulated_cells"]

    def command(*arguments):
        script, *rest = arguments
        done = run_warm(ROOT / script, *rest, cwd=tmp_path, environment={"BIOMASS_DATA": str(data_root)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    two = ("seed=0,1", "dataloaders.mode=random", "trainer.max_steps=2", "train_batch_size=7")
    command("train_simclr.py", f"+experiment={name}", *tiny, *two)
    runs = ",".join(f"{name}-{i}" for i in range(4))
    command("train_classifier.py", f"+experiment={name}_probe", *tiny, "num_epochs=2", f"model_path={runs}")
    table = command("misc/ablation_table.py", *map(str, (tmp_path / "runs").glob(f"{name}_probe-*")))
    head, _, row = table.splitlines()
    assert head.count("train ") == 4
    assert row.count("±") == 4
    assert row.count("(2)") == 4
