"""``biomass compare``: what runs are called, which share a row, what is left out, and what is written."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from biomass.commands import compare
from biomass.evaluation import comparison

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ERM = (*TINY_SCREEN, *TINY_RUN, "num_epochs=1", "train_batch_size=14")
METHODS = {
    "vanilla": {"train": "running", "eval": "running"},
    "ben": {"train": "plate", "eval": "plate", "train_by": ["experiment", "plate"], "eval_by": ["experiment", "plate"]},
    "adabn": {"train": "running", "eval": "plate", "eval_by": ["experiment", "plate"]},
    "ben_experiment": {"train": "plate", "eval": "plate", "train_by": ["experiment"], "eval_by": ["experiment"]},
    "controls": {"train": "controls", "eval": "controls", "num_controls": 16},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIOMASS_DATA", "data")


@pytest.fixture(scope="module")
def config():
    """The configuration of a run of train_erm.py on a simulated screen."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        node = compose("train_erm", ["dataloaders=simulated", "dataloaders.root_dir=data", "num_epochs=2"])
    return OmegaConf.to_container(node, resolve=True)


@pytest.fixture
def write(config):
    """``write("name", 0.5, "ben", **{"seed": 1})`` makes a folder as a run leaves it."""

    def _write(name, accuracy=0.5, method="ben", epoch=2, **keys):
        node = OmegaConf.create(config | {"method": {"max_groups": 1, "num_controls": 0} | METHODS[method]})
        for key, value in keys.items():
            OmegaConf.update(node, key, value, force_add=True)
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        OmegaConf.save(node, folder / "config.yaml")
        line = {"step": 9, "epoch": epoch, "time": 1.0, "seconds": 60.0, "test/accuracy": accuracy}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "plates.csv").write_text(f"plate,images,accuracy,split,epoch\nA/1,9,{accuracy},test,{epoch}\n")

    return _write


def call(*words):
    compare.main([*words] if words else [*map(str, sorted(Path("runs").glob("*")))])


def rows(capsys):
    """The rows of the printed table: (training, inference, accuracy, runs)."""
    lines = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| test")
    ]
    return [(cells[1], cells[2], cells[3], cells[-1]) for cells in lines]


def refused(capsys, *words, code=1):
    with pytest.raises(SystemExit) as stopped:
        compare.main([*words])
    message = stopped.value.code if code == 1 else capsys.readouterr().err.strip()
    assert code == 1 or stopped.value.code == code
    assert str(message).startswith("error: ")
    assert len(str(message).splitlines()) == 1
    return str(message)


# --- runs that share a row --------------------------------------------------------------------------------------------


def test_seeds_and_screens_are_what_means_go_over(write, capsys):
    for i, (seed, screen) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        write(f"r{i}", [0.5, 0.7, 0.3, 0.9][i], seed=seed, **{"dataloaders.source.seed": screen})
    call()
    assert rows(capsys) == [("ben", "plate", "60.0 ± 25.8", "4")]
    table = pd.read_csv("runs/comparison/comparison.csv", dtype={"screen": str, "seed": str})
    accuracy = table[table["metric"] == "accuracy"].set_index("run")
    assert accuracy["value"].to_dict() == {"runs/r0": 0.5, "runs/r1": 0.7, "runs/r2": 0.3, "runs/r3": 0.9}
    assert accuracy[["seed", "screen"]].agg("".join, axis=1).to_list() == ["00", "01", "10", "11"]
    call("--by", "screen", *(f"runs/r{i}" for i in range(4)))
    assert "| test | ben | plate | 1 | 80.0 ± 14.1 |" in capsys.readouterr().out


def test_screens_that_are_not_simulated_go_by_their_place(write, capsys):
    for name, place in (("a", "one"), ("b", "two")):
        source = {"_target_": "biomass.datasets.manifest.load_manifest", "root_dir": place, "path": "manifest.csv"}
        write(name, 0.5, **{"dataloaders.source": None})
        node = OmegaConf.load(f"runs/{name}/config.yaml")
        node.dataloaders.source = source
        OmegaConf.save(node, f"runs/{name}/config.yaml")
    call()
    assert rows(capsys) == [("ben", "plate", "50.0 ± 0.0", "2")]
    screens = pd.read_csv("runs/comparison/comparison.csv")["screen"]
    assert sorted(set(screens)) == ["one/manifest.csv", "two/manifest.csv"]


def test_what_does_not_make_another_network_makes_no_other_row(write, capsys):
    write("a", 0.5)
    places = {"device": "cpu", "resume": "auto", "run_name": "b", "eval_batch_size": 3, "compute_train_acc": False}
    write("b", 0.7, seed=1, **places, **{"dataloaders.num_workers": 0, "dataloaders.source.root_dir": "elsewhere"})
    call()
    assert [row[:2] + row[3:] for row in rows(capsys)] == [("ben", "plate", "2")]


def test_one_run_has_no_spread(write, capsys):
    write("a", 0.5)
    call()
    assert rows(capsys) == [("ben", "plate", "50.0 ± –", "1")]


@pytest.mark.parametrize(
    ("method", "training", "inference"),
    [
        ("vanilla", "vanilla", "running"),
        ("adabn", "vanilla", "plate"),
        ("ben", "ben", "plate"),
        ("ben_experiment", "ben by experiment", "plate by experiment"),
        ("controls", "controls, num_controls=16", "controls"),
    ],
)
def test_a_run_is_called_by_its_method(write, capsys, method, training, inference):
    write("a", 0.5, method)
    call()
    assert [row[:2] for row in rows(capsys)] == [(training.replace("controls,", "ben_controls,"), inference)]


def test_training_and_inference_are_crossed(write, capsys):
    for seed in (0, 1):
        write(f"vanilla{seed}", 0.3, "vanilla", seed=seed)
        write(f"adabn{seed}", 0.5, "adabn", seed=seed)
        write(f"ben{seed}", 0.6, "ben", seed=seed)
    call()
    assert rows(capsys) == [
        ("vanilla", "running", "30.0 ± 0.0", "2"),
        ("vanilla", "plate", "50.0 ± 0.0", "2"),
        ("ben", "plate", "60.0 ± 0.0", "2"),
    ]


STRESS = (
    "statistics,axis,value,repeats,accuracy,low,high\n{word},wells,all,5,{value},0,1\nrunning,wells,all,5,0.2,0,1\n"
)


@pytest.fixture
def stress(config):
    """``stress("name", "a", 0.9)`` makes a folder as a stress test of the network of run ``a`` leaves it."""

    def _stress(name, model_path, value=0.9, word="plate", seed=0, **keys):
        data = config["dataloaders"] | {"eval_splits": ["test"]}
        node = {
            "words": ["plate", "running"],
            "model_path": model_path,
            "statistics": {"by": None},
            "base": {"wells": None},
        }
        node = OmegaConf.create(node | {"seed": 0, "dataloaders": data} | keys)
        OmegaConf.update(node, "dataloaders.source.seed", seed)
        Path("runs", name).mkdir(parents=True)
        OmegaConf.save(node, Path("runs", name, "config.yaml"))
        Path("runs", name, "stress.csv").write_text(STRESS.format(word=word, value=value))

    return _stress


def of_stress(capsys):
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "treated" in line]
    return [cells[:4] for cells in lines]


def test_a_stress_test_shows_its_network_under_every_word(write, stress, capsys):
    write("a", 0.6, "ben")
    write("b", 0.6, "ben", seed=1)
    stress("s0", "a", 0.9)
    stress("s1", "checkpoints/b/last.pt", 0.7)
    call()
    assert of_stress(capsys) == [
        ["test, treated wells", "ben", "running", "20.0 ± 0.0"],
        ["test, treated wells", "ben", "plate", "80.0 ± 14.1"],
    ]
    table = pd.read_csv("runs/comparison/comparison.csv")
    words = table[(table["run"] == "runs/s1") & (table["statistics"] == "plate")]
    assert words[["seed", "screen", "value", "file"]].values.tolist() == [[1, 0, 0.7, "stress.csv"]]
    call("runs/s0")  # its run need not be named
    assert [cells[1:] for cells in of_stress(capsys)] == [["ben", "running", "20.0 ± –"], ["ben", "plate", "90.0 ± –"]]


def test_a_stress_test_on_another_screen_and_by_other_groups_says_so(write, stress, capsys):
    write("a", 0.6, "ben")
    stress("s", "a", seed=5, statistics={"by": ["experiment"]})
    call()
    assert of_stress(capsys)[1][:3] == ["test, treated wells of screen 5", "ben", "plate by experiment"]


@pytest.mark.parametrize(
    ("model_path", "keys", "message"),
    [
        ("latest", {}, "'latest', of which there is no run 'runs/latest'"),
        ("a", {"base": {"label_shift": 0.1}}, "no plates as they are"),
        ("a", {"base": {"wells": 4}}, "no plates as they are"),
    ],
)
def test_a_stress_test_that_cannot_be_compared_is_left_out(write, stress, caplog, model_path, keys, message):
    write("a", 0.6, "ben")
    stress("s", model_path, **keys)
    call()
    assert "left out: 'runs/s' tried" in caplog.text
    assert message in caplog.text


@pytest.mark.parametrize(
    ("method", "training", "inference"),
    [("controls", "ben_controls/all, num_controls=16", "controls/all"), ("ben", "ben", "plate")],
)
def test_other_controls_than_negative_ones_are_named(write, capsys, method, training, inference):
    write("a", 0.5, method, **{"method.controls": "all"})
    call()
    assert [row[:2] for row in rows(capsys)] == [(training, inference)]


# --- runs that have a row of their own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("learning_rate", 0.5, "ben, learning_rate=0.5"),
        ("num_epochs", 1, "ben, num_epochs=1"),
        ("model.key", "resnet18", "ben, model.key=resnet18"),
        ("dataloaders.source.nuisance", 2.0, "ben, dataloaders.source.nuisance=2.0"),
        ("trainer.clip", 1.0, "ben, trainer.clip=1.0"),
        ("method.share", 0.3, "ben, method.share=0.3"),  # a word of a later version
    ],
)
def test_another_setting_has_a_row_of_its_own_which_names_it(write, capsys, key, value, name):
    for seed in (0, 1):
        write(f"r{seed}", 0.5, seed=seed)
        write(f"odd{seed}", 0.7, seed=seed, **{key: value})
    write("r2", 0.5, seed=2)
    call()
    captured = capsys.readouterr()
    assert f"| test | {name} | plate | 70.0 ± 0.0 |" in captured.out
    assert "| test | ben | plate | 50.0 ± 0.0 |" in captured.out
    notes = [line for line in Path("runs/comparison/comparison.md").read_text().splitlines() if key in line]
    assert any(line.startswith(f"- 'runs/odd0' has {key}={value}, most runs ") for line in notes)


# --- floors -----------------------------------------------------------------------------------------------------------


def test_floors_stand_at_the_end_and_are_asked_for_where_they_are_missing(write, capsys, caplog):
    write("a_untrained", 0.1, "vanilla", epoch=0, **{"trainer.max_steps": 0})
    write("b_shuffled", 0.2, "ben", shuffle_labels=True)
    write("c", 0.9, "ben")
    call()
    assert [row[:2] for row in rows(capsys)] == [
        ("ben", "plate"),
        ("untrained", "running"),
        ("ben, labels shuffled", "plate"),
    ]
    assert "the floor" not in Path("runs/comparison/comparison.md").read_text()
    call("runs/c", "runs/a_untrained")
    text = Path("runs/comparison/comparison.md").read_text()
    assert "the floor 'labels shuffled' is not among these runs; train one with shuffle_labels=true" in text
    assert "the floor 'untrained'" not in text


# --- left out, refused ------------------------------------------------------------------------------------------------


def test_what_is_no_finished_run_is_left_out_with_its_reason(write, caplog):
    write("good", 0.5)
    write("stopped", 0.5, epoch=1)
    write("damaged", 0.5, seed=1)
    write("older", 0.5, seed=2)
    write("broken", 0.5)
    Path("runs/damaged/plates.csv").write_text("plate,spl")
    node = OmegaConf.load("runs/older/config.yaml")
    del node["method"]
    OmegaConf.save(node, "runs/older/config.yaml")
    Path("runs/broken/config.yaml").write_text("a: [1\nb: 2")
    Path("runs/nothing").mkdir()
    Path("runs/file.txt").write_text("")
    call()
    text = Path("runs/comparison/comparison.md").read_text()
    reasons = {
        "stopped": "'runs/stopped' was stopped: it was last evaluated in epoch 1 of 2",
        "damaged": "'runs/damaged/plates.csv' is damaged",
        "older": "'runs/older' is older and does not say its method",
        "broken": "'runs/broken/config.yaml' cannot be read",
        "nothing": "'runs/nothing' holds no run",
        "file.txt": "'runs/file.txt' holds no run",
    }
    for reason in reasons.values():
        assert f"left out: {reason}" in text
        assert f"left out: {reason}" in caplog.text
    assert set(pd.read_csv("runs/comparison/comparison.csv")["run"]) == {"runs/good"}


def test_its_own_folder_among_the_runs_is_passed_over(write):
    write("a", 0.5)
    call()
    call()
    assert "left out" not in Path("runs/comparison/comparison.md").read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "arguments are required: runs"),
        (["runs/nowhere"], 1, "there is no 'runs/nowhere'"),
        (["runs/a", "runs/nowhere"], 1, "there is no 'runs/nowhere'"),
        (["runs"], 1, "none of the 1 folders holds a finished run"),
        (["runs/comparison"], 1, "there is no|none of the 0"),
        (["runs/a", "--by", "plate"], 2, "invalid choice: 'plate'"),
        (["runs/a", "--out", "runs/a/config.yaml"], 1, "cannot write 'runs/a/config.yaml.*give another --out"),
    ],
)
def test_what_cannot_be_compared_is_one_line(write, capsys, words, code, message):
    write("a", 0.5)
    assert re.search(message, refused(capsys, *words, code=code))
    assert not Path("runs/comparison").exists()


# --- real runs --------------------------------------------------------------------------------------------------------


def test_runs_of_the_scripts(run, capsys):
    run("train_erm", *ERM, "+method=ben", "run_name=ben")
    run("train_erm", *ERM, "+method=ben", "seed=1", "run_name=ben1")
    run("train_erm", *ERM, "+method=vanilla", "run_name=vanilla")
    run("train_erm", *ERM, "+method=vanilla", "trainer.max_steps=0", "run_name=untrained")
    run("train_erm", *ERM, "+method=ben", "shuffle_labels=true", "run_name=shuffled")
    cells = (*TINY_CELLS, "num_epochs=1", "model.key=test_resnet", "model.pretrained=false")
    run("train_simclr", *cells, "model.projector=[8]", "dataloaders.sampler=plate", "run_name=encoder")
    probe = (*TINY_CELLS, "num_warmup_epochs=0", "num_epochs=1", "transforms=plain", "model_path=encoder")
    run("train_classifier", *probe, "+method=adabn", "run_name=probe")
    call()
    printed = capsys.readouterr().out
    table = pd.read_csv("runs/comparison/comparison.csv", float_precision="round_trip")
    rows = table[(table["metric"] == "accuracy") & (table["split"] == "test")].groupby(["regime", "statistics"])
    assert rows["run"].agg(list).to_dict() == {
        ("ben", "plate"): ["runs/ben", "runs/ben1"],
        ("vanilla", "running"): ["runs/vanilla"],
        ("untrained", "running"): ["runs/untrained"],
        ("ben, labels shuffled", "plate"): ["runs/shuffled"],
        ("probe of ben", "plate"): ["runs/probe"],
    }
    assert "'runs/encoder' measured no accuracy" in Path("runs/comparison/comparison.md").read_text()
    last = [json.loads(line) for line in Path("runs/ben/metrics.jsonl").read_text().splitlines()][-1]
    of_ben = table[(table["run"] == "runs/ben") & (table["file"] == "metrics.jsonl")]
    told = {
        "/".join(filter(None, pair)): value for *pair, value in of_ben[["split", "metric", "value"]].fillna("").values
    }
    assert told == {name: value for name, value in last.items() if "/" in name or name == "seconds"}
    plates = pd.read_csv("runs/ben/plates.csv").query("split == 'test'")["accuracy"]
    worst = table[(table["run"] == "runs/ben") & (table["metric"] == "worst plate") & (table["split"] == "test")]
    assert worst["value"].to_list() == [plates.min()]
    assert Path("runs/comparison/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert Path("runs/comparison/comparison.md").read_text().startswith("# Comparison of runs\n\n| split |")
    assert "holds comparison.md, comparison.csv, comparison.png of 6 runs" in printed
    assert set(table["floor"].fillna("")) == {"", comparison.UNTRAINED, comparison.SHUFFLED}
