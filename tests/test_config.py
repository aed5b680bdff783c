"""Config views, instantiation, run names, YAML and command lines as they are written, and how scripts report errors."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY_RUN, TINY_SCREEN
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from biomass.config import Config, build, run_name
from biomass.errors import ConfigError, DataError
from biomass.keys import KEYS
from biomass.notation import Arguments
from biomass.training import load_checkpoint

CONFIGS = ROOT / "configs"
SCRIPTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SOURCES = sorted(path.stem for path in CONFIGS.glob("dataloaders/*.yaml"))
LOAD = "biomass.datasets.manifest.load_manifest"
TINY = (*TINY_SCREEN, *TINY_RUN)


def config(**values):
    return Config(OmegaConf.create(values))


def typed(*overrides, **values):
    return Config(OmegaConf.create(values), overrides)


def refuse(value):
    """A target that raises an error of the family."""
    raise DataError(f"cannot use {value}")


def test_every_key_must_be_read():
    cfg = config(learning_rate=0.1, lerning_rate=0.2, model={"key": "resnet18"})
    assert cfg.learning_rate == 0.1
    assert cfg.model.key == "resnet18"
    with pytest.raises(ConfigError, match=r"unknown key 'lerning_rate'; did you mean 'learning_rate'\?"):
        cfg.check_all_read()


def test_an_unread_key_of_a_section_is_named_with_its_path():
    cfg = config(trainer={"clip": 1, "clipp": 2})
    assert cfg.trainer.clip == 1
    with pytest.raises(ConfigError, match=r"unknown key 'trainer.clipp'"):
        cfg.check_all_read()


def test_nodes_with_a_target_count_as_read_with_all_that_is_in_them():
    crop = {"_target_": "biomass.transforms.RandomCrop"}
    cfg = config(step=crop, steps=[crop])
    assert build(cfg.step, size=4).size == 4
    assert cfg.steps == [crop]
    cfg.check_all_read()


def test_a_missing_key_says_so_and_a_deletable_one_has_a_default():
    cfg = config(seed=3, groupby=None)
    with pytest.raises(ConfigError, match=r"key 'sed' is missing.*'seed'"):
        _ = cfg.sed
    assert cfg.get("max_groups", 1) == 1
    assert cfg.get("groupby", "x") == "x"
    assert cfg.get("seed") == 3


def test_a_broken_interpolation_is_one_line():
    with pytest.raises(ConfigError, match=r"^a is ") as caught:
        _ = config(a="${nothing}").a
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "biomass.transforms.Nothing"}, "Nothing"),
        ({"_target_": "biomass.transforms.RandomCrop", "sizes": 1}, r"sizes is unknown.*'size'"),
    ],
)
def test_what_cannot_be_built_is_one_line(node, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(node)
    assert "\n" not in str(caught.value)


def test_errors_of_the_family_pass_as_they_are():
    with pytest.raises(DataError, match=r"^cannot use 3$"):
        build(typed(f"own_code=[{__name__}]", source={"_target_": f"{__name__}.refuse", "value": 3}).source)


def test_run_names():
    assert run_name("ben", "train_erm") == "ben"
    assert run_name(None, "train_erm").startswith("train_erm-2")
    for bad in ("a/b", "..", "", "a b", ".hidden"):
        with pytest.raises(ConfigError, match="run_name"):
            run_name(bad, "train_erm")


# ---- what the values of keys may be


def composed(script, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(script, list(overrides))


def keys_of(node, path=""):
    """Every key of a composed configuration down to the sections that are built."""
    for key in node:
        value = node._get_node(key)
        yield f"{path}{key}"
        if OmegaConf.is_dict(value) and not value._is_none() and "_target_" not in value:
            yield from keys_of(value, f"{path}{key}.")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_key_of_a_yaml_has_a_kind_that_its_default_fits(script, source):
    node = composed(script, f"dataloaders={source}")
    assert set(keys_of(node)) <= set(KEYS)
    assert Config(node).to_dict() == OmegaConf.to_container(node, resolve=True)


def test_every_kind_is_that_of_a_key_of_some_yaml():
    assert {
        key for script in SCRIPTS for source in SOURCES for key in keys_of(composed(script, f"dataloaders={source}"))
    } == set(KEYS)


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("experiment/*.yaml")) + sorted(CONFIGS.glob("method/*.yaml")))
def test_the_values_of_presets_fit(preset):
    text = preset.read_text()
    script = next(script for script in SCRIPTS if f"python {script}.py" in text)
    named = ["run_name=a"] if "${hydra:" in text else []  # a name made of overrides, which only a job of Hydra has
    Config(composed(script, f"+{preset.parent.name}={preset.stem}", *named))


@pytest.mark.parametrize(
    ("script", "override", "message"),
    [
        ("train_erm", "resume=true", "resume is true; it must be auto, a checkpoint or null"),
        ("train_erm", "run_name=[a]", r'run_name is \["a"\]; it must be a name or path or null'),
        ("train_erm", "learning_rate=abc", 'learning_rate is "abc"; it must be a number of at least 0'),
        ("train_erm", "learning_rate=null", "learning_rate is null; it must be a number of at least 0"),
        ("train_erm", "learning_rate=-1e-3", "learning_rate is -0.001; it must be a number of at least 0"),
        ("train_erm", "learning_rate=nan", "learning_rate is NaN"),
        ("train_erm", "learning_rate=inf", "learning_rate is Infinity"),
        ("train_erm", "learning_rate=true", "learning_rate is true"),
        ("train_erm", "weight_decay=-1", "weight_decay is -1; it must be a number of at least 0"),
        ("train_erm", "seed=abc", 'seed is "abc"; it must be a whole number of at least 0'),
        ("train_erm", "seed=null", "seed is null"),
        ("train_erm", "seed=-1", "seed is -1"),
        ("train_erm", "num_epochs=abc", 'num_epochs is "abc"; it must be a whole number of at least 1'),
        ("train_erm", "num_epochs=1.5", "num_epochs is 1.5"),
        ("train_erm", "num_epochs=1e3", "num_epochs is 1000.0"),
        ("train_erm", "num_epochs=true", "num_epochs is true"),
        ("train_erm", "num_epochs=null", "num_epochs is null"),
        ("train_erm", "num_warmup_epochs=abc", "num_warmup_epochs is"),
        ("train_erm", "num_warmup_epochs=null", "num_warmup_epochs is"),
        ("train_erm", "num_warmup_epochs=-1", "num_warmup_epochs is -1"),
        ("train_erm", "train_batch_size=abc", "train_batch_size is .* at least 1 or null"),
        ("train_erm", "train_batch_size=2.5", "train_batch_size is 2.5"),
        ("train_erm", "eval_batch_size=0", "eval_batch_size is 0"),
        ("train_erm", "dataloaders.num_workers=abc", "dataloaders.num_workers is"),
        ("train_erm", "dataloaders.num_workers=-1", "dataloaders.num_workers is -1"),
        ("train_erm", "trainer.devices=abc", "trainer.devices is"),
        ("train_erm", "trainer.devices=0", "trainer.devices is 0; it must be a whole number of at least 1"),
        ("train_erm", "trainer.log_every=abc", "trainer.log_every is"),
        ("train_erm", "trainer.clip=abc", 'trainer.clip is "abc"; it must be a number or null'),
        ("train_erm", "trainer.max_steps=-1", "trainer.max_steps is -1"),
        ("train_erm", "trainer.monitor=null", "trainer.monitor is null; it must be a word"),
        ("train_erm", "trainer.precision=null", "trainer.precision is null; it must be 32, bf16 or 16"),
        ("train_erm", "model=5", "model is 5; it must be a section of keys"),
        ("train_erm", "model.key=null", "model.key is null; it must be a word"),
        ("train_erm", "model.d_out=many", "model.d_out is"),
        ("train_erm", "save_model=maybe", 'save_model is "maybe"; it must be true or false'),
        ("train_erm", "save_model=1", "save_model is 1; it must be true or false"),
        ("train_erm", "transforms.train=null", "transforms.train is null; it must be a list of sections with a _targ"),
        ("train_erm", "transforms.train=5", "transforms.train is 5; it must be a list of sections with a _target_$"),
        ("train_erm", "transforms.train=[{p: 1}]", "transforms.train is"),
        ("train_erm", "dataloaders.source=null", "dataloaders.source is null; it must be a section with a _target_"),
        ("train_erm", "dataloaders.train_groupby=plate", r"dataloaders.train_groupby is .*; write \[plate\]"),
        ("train_erm", "dataloaders.eval_splits=null", "dataloaders.eval_splits is null; it must be a list of words"),
        ("train_erm", "dataloaders.eval_splits=val", r"splits is \"val\"; it must be a list of words; write \[val\]"),
        ("train_erm", "dataloaders.eval_splits=[1]", r"dataloaders.eval_splits is \[1\]"),
        ("train_simclr", "dataloaders.instance=well", r"dataloaders.instance is .*; write \[well\]"),
        ("train_simclr", "dataloaders.instance=null", "dataloaders.instance is null"),
        ("train_simclr", "temperature=abc", 'temperature is "abc"'),
        ("train_simclr", "model.projector=16", r"model.projector is 16; .*; write \[16\]"),
        ("train_simclr", "model.projector=null", "model.projector is null; it must be a list of whole numbers"),
        ("train_simclr", "model.projector=[a]", r'model.projector is \["a"\]'),
        ("train_simclr", "dataloaders.num_plate_parts=half", "dataloaders.num_plate_parts is"),
        ("train_classifier", "model_train_mode=maybe", 'model_train_mode is "maybe"; it must be true or false'),
        ("train_classifier", "in_features=wide", 'in_features is "wide"; it must be a whole number of at least 1 or'),
        ("transfer_bbbc021", "channels=DAPI", r"channels is \"DAPI\"; .*; write \[DAPI\]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_before_anything_is_read(script, override, message, run, tmp_path):
    with pytest.raises(ConfigError, match=f"{message}") as caught:
        run(script, override)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_may_look_like_numbers():
    node = composed(
        "train_classifier",
        "run_name=20261124",
        "save_key=true",
        "model_path=7",
        "sup_model_path=1.5",
        "resume=3",
        "dataloaders.root_dir=2024",
        "dataloaders.img_dir=7",
    )
    cfg = Config(node)
    names = (cfg.run_name, cfg.save_key, cfg.model_path, cfg.sup_model_path, cfg.resume)
    assert names == ("20261124", "true", "7", "1.5", "3")
    assert cfg.dataloaders.img_dir == "7"
    assert cfg.dataloaders.source["root_dir"] == "2024"
    assert cfg.to_dict()["run_name"] == "20261124"
    assert node.run_name == 20261124  # what was composed is left alone


def test_values_that_fit():
    overrides = (
        "learning_rate=1",
        "weight_decay=0",
        "train_batch_size=null",
        "dataloaders.max_groups=null",
        "dataloaders.train_groupby=null",
        "trainer.precision=bf16",
        "trainer.clip=1",
        "trainer.clip=0.5",
        "trainer.max_steps=3",
        "transforms.eval=[]",
        "dataloaders.source.download=maybe",
        "dataloaders.eval_splits=[]",
        "~dataloaders.max_groups",
    )
    for override in overrides:
        Config(composed("train_erm", override))


# ---- names as they are written

NAMES = ["0012", "2021_08_12", "NO", "0x1F", "1:30", "1E05", "on", "~x", "2021-08-12", "12_", "-", "0b1", "1.2.3", "+5"]
"""What YAML 1.1 takes for other things, or may."""


def splits_of(node):
    return Config(node).dataloaders.source["splits"]


def test_names_in_a_file_are_text_as_written_and_numbers_are_decimals(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "seed: 12\nlearning_rate: 1e-3\nweight_decay: 1.0E-05\nuse_projs: True\nrun_name: 0012\n"
        "x: [null, ~, .5, -3, .inf]\n"
        f"dataloaders: {{source: {{_target_: {LOAD}, splits: {{test: {{plate: [{', '.join(NAMES)}, 10]}}}}}}}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        node = compose("a")
    cfg = Config(node)
    assert (cfg.seed, cfg.learning_rate, cfg.weight_decay, cfg.use_projs, cfg.run_name) == (
        12,
        1e-3,
        1e-5,
        True,
        "0012",
    )
    assert cfg.x == [None, None, 0.5, -3, float("inf")]
    assert splits_of(node) == {"test": {"plate": [*NAMES, "10"]}}


@pytest.mark.parametrize("name", ["1.10", "1e5", "true", "null", "-.5"])
def test_a_name_of_unknown_spelling_is_refused_in_a_file(tmp_path, name):
    (tmp_path / "a.yaml").write_text(
        f"dataloaders: {{source: {{_target_: {LOAD}, splits: {{test: {{plate: [{name}]}}}}}}}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        node = compose("a")
    with pytest.raises(ConfigError, match=r"dataloaders.source.splits.test.plate holds .*quotes"):
        Config(node)


def from_shell(line, script="train_erm"):
    """What a script composes of a command line."""
    return composed(script, *Arguments.of(shlex.split(line)).for_hydra())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("~x",)] + ["1.10", "1e5", "TRUE", "NaN", "inf", "1_0.5", ".5"]
)
def test_names_on_the_command_line_are_text_as_written(name):
    splits = "dataloaders.source.splits"
    node = from_shell(f"dataloaders=manifest {splits}='{{test: {{plate: [{name}, a]}}}}'")
    assert splits_of(node) == {"test": {"plate": [name, "a"]}}
    node = from_shell(f"dataloaders=manifest +{splits}.val.plate=[{name}]")
    assert splits_of(node) == {"val": {"plate": [name]}}
    assert Config(from_shell(f"run_name={name}")).run_name == name
    assert Config(from_shell(f"run_name='\"{name}\"'")).run_name == name
    node = from_shell(f"dataloaders=bbbc021 dataloaders.plates=[{name},7]", "transfer_bbbc021")
    assert Config(node).dataloaders.plates == [name, "7"]


def test_a_plate_0012_is_never_plate_10(tmp_path):
    """From a file and from a shell to the rows of a screen."""
    rows = [f"{plate}.npy,E,{plate},B02,1,{plate}" for plate in ("0012", "10", "12")]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,experiment,plate,well,site,label", *rows]) + "\n")
    for plate in ("0012", "10", "12"):
        np.save(tmp_path / f"{plate}.npy", np.zeros((8, 8), np.uint8))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndataloaders: {source: {splits: {test: {plate: [0012]}, train: rest}}}\n"
    )
    path = f"hydra.searchpath=[file://{tmp_path}]"
    source = ("dataloaders=manifest", f"dataloaders.root_dir={tmp_path}")
    typed = Arguments.of(["dataloaders.source.splits={test: {plate: [0012]}, train: rest}"]).for_hydra()
    for overrides in ([path, "+experiment=mine"], typed):
        screen = build(Config(composed("train_erm", *source, *overrides)).dataloaders.source)
        assert screen.table.plate[screen.rows("test")].tolist() == ["0012"]


def test_names_in_a_sweep_keep_their_spelling():
    assert Arguments.of(["-m", "model_path=0012,1E05, 2021_08_12 ,'a,b',${seed}", "seed=1_000"]).for_hydra() == [
        "-m",
        'model_path="0012","1E05", "2021_08_12" ,\'a,b\',${seed}',
        "seed=1_000",
    ]


# ---- command lines that need quotes


@pytest.mark.parametrize(
    "value",
    [
        *(
            "/data/a=b",
            "x(1)",
            "x)",
            "x(",
            "a,b",
            "a}",
            "{a",
            "[a",
            "a]",
            "/data/[x]",
            "/a/{b}",
            "it's",
            'a"b"',
            "a#b",
            "ü",
        ),
        *("a;b&c", "=a", "a<b>", "a`b`", "a!b^c"),
    ],
)
def test_a_value_that_needs_quotes_is_told_how(value):
    """What the message ends in is taken by a shell and by Hydra, and means the value."""
    key = "dataloaders.root_dir"
    with pytest.raises(ConfigError) as caught:
        refused(f"{key}={value}")
    message = str(caught.value)
    assert "\n" not in message
    assert f"{key}={value}" in message
    remedy = next(word for word in shell_words(message) if word.startswith(f"{key}="))
    assert Config(composed("train_erm", *Arguments.of([remedy]).for_hydra())).dataloaders.root_dir == value


@pytest.mark.parametrize("given", ["transforms=[plain,0]", "+method=[0,1]", "dataloaders=[null]"])
def test_a_list_for_a_choice_of_files_is_one_line(given):
    with pytest.raises(ConfigError, match="chooses files of configs/") as caught:
        refused("seed=1", "dataloaders.eval_splits=[val]", given)
    assert given in str(caught.value)


def refused(*arguments):
    """Compose, and raise what a script would say."""
    words = Arguments.of(arguments)
    try:
        composed("train_erm", *words.for_hydra())
    except Exception as error:
        raise ConfigError(words.explain(error)) from error


def shell_words(message):
    """The words of the remedy: what stands behind the last colon, or behind "write"."""
    start = max(message.rfind(": '"), message.rfind("write '"))
    return shlex.split(message[message.index("'", start) :].split(", or '")[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run_name=a b", "'run_name=a b'"),
        ("dataloaders.train_groupby=[plate, well]", r"'dataloaders.train_groupby=\[plate, well\]'"),
        ("dataloaders.train_groupby=[plate", r"'dataloaders.train_groupby=\[plate\]'"),
        (
            "'dataloaders.source.splits={test: {plate: [0012]}'",
            r": 'dataloaders.source.splits={test: {plate: \[0012\]}}'",
        ),
        ("'dataloaders.source.splits={test: {plate: [a=b]}}'", "the names in it in double quotes"),
        ("run_name = a", "without blanks around the ="),
        ("run_name =a", "without blanks around the ="),
        ("run_name= a", "without blanks around the ="),
        ("'run_name=${a'", "close the reference"),
        ("foo", "'foo' is not a setting; write key=value"),
        ("123=4", "'123=4' is not a setting"),
        ("@x=1", "'@x=1' is not a setting"),
        ("--run_name=a", "write run_name=a"),
        ("-x", "unknown option '-x'"),
        ("--cfg foo", "'foo'.*--hydra-help"),
        ("~run_name=a", "write '~run_name'"),
        ("~nokey", "unknown key 'nokey'"),
        ("lerning_rate=1", "unknown key 'lerning_rate'; did you mean 'learning_rate'"),
        ("dataloaders.root_dir='~/a'", r"write \$HOME for ~: dataloaders.root_dir=\$HOME/a"),
        ("dataloaders=manifes", "no dataloaders=manifes; did you mean 'manifest'"),
        ("hydra/launcher=foo", "no hydra/launcher=foo; choose basic"),
        ("method=ben", r"write \+method=ben"),
        ("learning_rate=1,5", "write learning_rate=1.5"),
        ("'run_name=choice(a,b)'", "add -m"),
        ("seed=1,2", "sweep with -m"),
    ],
)
def test_other_slips_of_a_command_line(line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        refused(*shlex.split(line))
    assert "\n" not in str(caught.value)


def test_options_may_stand_anywhere():
    assert Arguments.of(["a=1", "-m", "b=2", "--config-dir", "x"]) == (["-m", "--config-dir", "x"], ["a=1", "b=2"])


# ---- a small script, started as users start it

TOY = """
import logging
from pathlib import Path

from biomass.config import run_name, script
from biomass.errors import DataError


@script("toy")
def main(cfg):
    name = run_name(cfg.run_name, "toy")
    if cfg.fail:
        raise DataError("no pixels", advice="skip")
    if cfg.num_workers:
        from torch.utils.data import DataLoader

        assert len(list(DataLoader(range(3), batch_size=None, num_workers=cfg.num_workers))) == 3
    logging.getLogger("toy").info("hello")
    Path("runs", name).mkdir(parents=True)
    return cfg.value


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def toy(tmp_path):
    """``toy("key=value", …)`` starts a script that makes the folder of its run; ``.communicate()`` waits for it."""
    configs = tmp_path / "program" / "configs"
    configs.mkdir(parents=True)
    (tmp_path / "program" / "toy.py").write_text(TOY)
    (configs / "hydra").symlink_to(CONFIGS / "hydra")
    (configs / "toy.yaml").write_text(
        "# A toy.\ndefaults: [hydra: default, _self_]\nrun_name: null\nvalue: 0\nfail: false\nnum_workers: 0\n"
        "dataloaders: {on_bad_image: error}\nhydra: {job: {name: toy}}\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "SLURM_PROCID")}

    def _start(*arguments, command=(sys.executable, "program/toy.py"), **variables):
        return subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)} | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return _start


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_runs_of_one_second_have_folders_of_their_own(toy, tmp_path):
    started = [toy() for _ in range(5)]
    assert [process.communicate()[1] for process in started] == [""] * 5
    (day,) = (tmp_path / "outputs").iterdir()
    assert len(names(day)) == 5
    assert names(tmp_path / "runs") == [f"toy-{day.name}-{name}" for name in names(day)]


def test_sweeps_of_one_second_have_folders_of_their_own(toy, tmp_path):
    started = [toy("-m", "value=1,2") for _ in range(3)]
    assert [process.communicate()[1] for process in started] == [""] * 3
    (day,) = (tmp_path / "outputs").iterdir()
    assert names(tmp_path / "runs") == sorted(
        f"toy-{day.name}-{name}-{n}_value-{n + 1}" for name in names(day) for n in (0, 1)
    )
    assert all({"0", "1", "multirun.yaml"} <= set(names(folder)) for folder in day.iterdir())


def test_references_to_what_hydra_knows_are_taken_on_the_command_line(toy, tmp_path):
    one = toy("value=3", "hydra.run.dir=out/${hydra:job.name}", "run_name=${hydra:job.override_dirname}")
    several = toy("-m", "value=1,2", "run_name=x${hydra:job.num}", "hydra.sweep.dir=all/${hydra:job.name}")
    placed = toy("-m", "value=1,2", "run_name=no/name", "hydra.sweep.subdir=${hydra:job.num}-x")
    (_, said), (_, of_several), (table, _) = (process.communicate() for process in (one, several, placed))
    assert (said, of_several) == ("", "")
    assert names(tmp_path / "runs") == sorted(["value=3", "x0-0_value-1", "x1-1_value-2"])
    assert (tmp_path / "out" / "toy" / "toy.log").exists()
    assert {"0", "1"} <= set(names(tmp_path / "all" / "toy"))
    (day,) = (tmp_path / "outputs").iterdir()
    (folder,) = day.iterdir()
    assert {"0-x", "1-x"} <= set(names(folder))
    assert [f"job {number}" in table for number in (-1, 0, 1)] == [False, True, True]


def test_an_error_names_the_key_of_the_script_at_hand(toy):
    process = toy("fail=true")
    assert process.communicate()[1] == "error: no pixels; or set dataloaders.on_bad_image=skip to leave it out\n"
    assert process.returncode == 1


def test_a_folder_that_cannot_be_made_is_one_line(toy, tmp_path):
    (tmp_path / "outputs").write_text("")
    _, errors = toy().communicate()
    assert errors.startswith("error: cannot write 'outputs/")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["a: [1\n", "a: 1\na: 2\n", "a: 1\n b: 2\n", "\ta: 1\n", "- a\n", "a: \udcff\n", "defaults: [x]\n"]
)
def test_a_broken_file_is_one_line(toy, tmp_path, content):
    (tmp_path / "program" / "configs" / "toy.yaml").write_bytes(content.encode(errors="surrogateescape"))
    process = toy()
    _, errors = process.communicate()
    assert (errors[:7], errors.count("\n"), process.returncode) == ("error: ", 1, 1)


def test_only_the_first_of_several_processes_writes_lines(toy, tmp_path):
    first, second = toy("run_name=a", RANK="0", LOCAL_RANK="0"), toy("run_name=b", RANK="1", LOCAL_RANK="1")
    assert "hello" in first.communicate()[0]
    assert second.communicate() == ("", "")
    (day,) = (tmp_path / "outputs").iterdir()
    (folder,) = day.iterdir()
    assert "hello" in (folder / "toy.log").read_text()
    _, errors = toy("+devices=1", RANK="0", WORLD_SIZE="2").communicate()
    assert "run_name" in errors  # started apart, processes do not know of one name
    assert "hello" not in toy("-m", "value=1,2", "run_name=c", RANK="1").communicate()[0]


def test_help_is_the_file_with_its_comments(toy, tmp_path):
    shown, _ = toy("--help").communicate()
    assert shown.startswith("usage: python toy.py [key=value ...]")
    assert shown.endswith((tmp_path / "program" / "configs" / "toy.yaml").read_text() + "\n")
    as_tool = "from toy import main; main(['--help'], 'biomass toy')"
    shown, _ = toy(command=(sys.executable, "-c", as_tool), PYTHONPATH=f"{ROOT}:{tmp_path}/program").communicate()
    assert shown.startswith("usage: biomass toy [key=value ...]")


def test_a_tool_hands_its_arguments_on(toy, tmp_path):
    code = "import sys; from toy import main; main(sys.argv[2:], 'biomass toy')"
    process = toy("toy", "run_name=0012", command=(sys.executable, "-c", code), PYTHONPATH=f"{ROOT}:{tmp_path}/program")
    assert process.communicate()[1] == ""
    assert names(tmp_path / "runs") == ["0012"]


@pytest.mark.parametrize("launcher", ["basic", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_every_launcher_goes_on_after_a_job_that_fails(toy, tmp_path, launcher):
    """With processes that read ahead in each job, as training has them."""
    process = toy("-m", f"hydra/launcher={launcher}", "fail=true,false", "value=2", "num_workers=1", "run_name=s")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    assert names(tmp_path / "runs") == ["s-1_fail-false"]
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert (folder / "0" / "outcome.txt").read_text().startswith("error: no pixels")
    assert (folder / "1" / "outcome.txt").read_text() == "2\n"


def test_slurm_that_is_not_there_is_one_line(toy):
    process = toy("-m", "hydra/launcher=submitit_slurm", "value=1,2", PATH="")
    _, errors = process.communicate()
    assert (errors[:7], errors.count("\n"), process.returncode) == ("error: ", 1, 1)


def test_a_job_that_is_to_be_handed_over_is_a_sweep(toy, tmp_path):
    _, errors = toy("hydra/launcher=submitit_local", "value=1").communicate()
    assert errors.startswith("error: a launcher of submitit")
    assert errors.count("\n") == 1
    assert names(tmp_path) == ["program"]


def test_devices_that_a_launcher_does_not_start_are_refused(toy):
    process = toy("-m", "hydra/launcher=joblib", "value=1", "+trainer.devices=2")
    assert "trainer.devices is 2" in process.communicate()[1]


def test_a_shell_and_a_script_agree(toy):
    """The remedies, typed in a shell."""
    for typed, ends in {
        "dataloaders.on_bad_image=a=b": """stands in quotes: 'dataloaders.on_bad_image="a=b"'""",
        "run_name=a b": "stands in quotes: 'run_name=a b'",
        "run_name=$NOTHING": 'run_name is ""; it must be a name or path or null',
        "+value={1,2}": "Could not append to config",
    }.items():
        process = toy(command=("bash", "-c", f"{sys.executable} program/toy.py {typed}"))
        _, errors = process.communicate()
        assert ends in errors, typed
        assert errors.count("error: ") == 1


# ---- the scripts: sweeps and interruptions


def start(tmp_path, data_root, *arguments):
    environment = {**os.environ, "BIOMASS_DATA": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train_erm.py"), *arguments],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may run in the background
    )


def test_a_run_whose_name_is_a_number(tmp_path, data_root):
    process = start(tmp_path, data_root, *TINY, "trainer.max_steps=1", "run_name=20261124")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (tmp_path / "checkpoints" / "20261124" / "last.pt").exists()


def test_of_two_runs_of_one_name_that_start_at_once_one_is_refused(tmp_path, data_root):
    started = [start(tmp_path, data_root, *TINY, "trainer.max_steps=1", "run_name=a", f"seed={n}") for n in (1, 2)]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 1], errors
    winner = next(n for n, process in enumerate(started, 1) if process.returncode == 0)
    assert f"seed: {winner}\n" in (tmp_path / "runs" / "a" / "config.yaml").read_text()
    assert len((tmp_path / "runs" / "a" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_sweep_of_training_with_reading_processes(tmp_path, data_root):
    workers = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "dataloaders.num_workers=1")
    process = start(tmp_path, data_root, "-m", *TINY, *workers, "trainer.max_steps=1", "run_name=sweep", "seed=0,1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert names(tmp_path / "checkpoints") == ["sweep-0_seed-0", "sweep-1_seed-1"]


def test_a_sweep_goes_on_after_a_job_that_fails_and_names_it(tmp_path, data_root):
    process = start(
        tmp_path, data_root, "-m", *TINY, "trainer.max_steps=1", "run_name=sweep", "learning_rate=-1,0.001,abc"
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    *jobs, last = errors.splitlines()
    assert jobs == [
        "error: job 0: learning_rate is -1; it must be a number of at least 0",
        'error: job 2: learning_rate is "abc"; it must be a number of at least 0',
    ]
    assert last.startswith("error: 2 of 3 jobs failed")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["sweep-1_learning_rate-0.001"]


def test_a_sweep_goes_on_after_the_last_job_of_a_batch_failed(tmp_path, data_root):
    process = start(
        tmp_path,
        data_root,
        "-m",
        *TINY,
        "trainer.max_steps=1",
        "run_name=sweep",
        "seed=-1,0",
        "hydra.sweeper.max_batch_size=1",
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    assert (tmp_path / "checkpoints" / "sweep-1_seed-0" / "last.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_one_line_that_says_how_to_go_on(tmp_path, data_root, number):
    arguments = (*TINY, "run_name=a", "num_epochs=100000", "trainer.log_every=1")
    process = start(tmp_path, data_root, *arguments)
    log, deadline = tmp_path / "runs" / "a" / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    (line,) = errors.splitlines()
    step = int(re.fullmatch(r"stopped: after .*step (\d+), saved; .*resume=auto run_name=a", line)[1])
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "a").iterdir())
    assert "last.pt" in files
    assert set(files) <= {"last.pt", "best.pt"}
    assert load_checkpoint(tmp_path / "checkpoints" / "a" / "last.pt")["progress"]["step"] == step


@pytest.mark.parametrize("module", ["train_erm", "biomass"])
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, module):
    shell = f"import sys, os, signal; sys.argv = [{str(ROOT / 'biomass')!r}]; import biomass"
    if module == "train_erm":
        shell = shell.replace(str(ROOT / "biomass"), str(ROOT / "train_erm.py"))
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 75 if module == "train_erm" else 130)):
        done = subprocess.run(
            [sys.executable, "-c", f"{shell}; os.kill(os.getpid(), {int(number)}); import time; time.sleep(9)"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            capture_output=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert (done.returncode, done.stderr) == (code, "stopped: nothing had begun; start the same command again\n")


def test_a_path_stays_as_it_is_typed():
    where = "dataloaders.source"
    given = [f"{where}.path=2021_08_12", f"{where}.download=true", f"{where}.path=null"]
    assert Arguments([], given).for_hydra() == [f'{where}.path="2021_08_12"', *given[1:]]
    source = {"_target_": "biomass.datasets.manifest.load_manifest", "path": 12}
    assert Config(OmegaConf.create({"dataloaders": {"source": source}})).dataloaders.source["path"] == "12"
