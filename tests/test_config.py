"""Config views, instantiation, run names, and how the scripts report errors."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY_RUN, TINY_SCREEN
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from biomass.config import Config, build, run_name
from biomass.errors import ConfigError, DataError
from biomass.keys import KEYS

CONFIGS = ROOT / "configs"
SCRIPTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SOURCES = sorted(path.stem for path in CONFIGS.glob("dataloaders/*.yaml"))
TINY = (*TINY_SCREEN, *TINY_RUN)


def config(**values):
    return Config(OmegaConf.create(values))


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
    cfg = config(source={"_target_": "fractions.Fraction", "numerator": 3}, steps=[{"_target_": "x"}])
    assert build(cfg.source, denominator=4) == pytest.approx(0.75)
    assert cfg.steps == [{"_target_": "x"}]
    cfg.check_all_read()


def test_a_missing_key_says_so_and_a_deletable_one_has_a_default():
    cfg = config(seed=3, groupby=None)
    with pytest.raises(ConfigError, match=r"key 'sed' is missing.*'seed'"):
        _ = cfg.sed
    assert cfg.get("max_groups", 1) == 1
    assert cfg.get("groupby", "x") == "x"
    assert cfg.get("seed") == 3


def test_a_broken_interpolation_is_one_line():
    with pytest.raises(ConfigError, match="key 'a'") as caught:
        _ = config(a="${nothing}").a
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "biomass.transforms.Nothing"}, "Nothing"),
        ({"_target_": "fractions.Fraction", "numeratr": 1}, "numeratr"),
    ],
)
def test_what_cannot_be_built_is_one_line(node, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(node)
    assert "\n" not in str(caught.value)


def test_errors_of_the_family_pass_as_they_are():
    with pytest.raises(DataError, match=r"^cannot use 3$"):
        build({"_target_": f"{__name__}.refuse", "value": 3})


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


COMING = {"statistics", "statistics.train", "statistics.eval", "statistics.by", "calibration"}
"""Keys that stand in no YAML yet."""


def test_every_kind_is_that_of_a_key_of_some_yaml():
    assert {
        key for script in SCRIPTS for source in SOURCES for key in keys_of(composed(script, f"dataloaders={source}"))
    } == set(KEYS) - COMING


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("experiment/*.yaml")) + sorted(CONFIGS.glob("method/*.yaml")))
def test_the_values_of_presets_fit(preset):
    text = preset.read_text()
    script = next(script for script in SCRIPTS if f"python {script}.py" in text)
    Config(composed(script, f"+{preset.parent.name}={preset.stem}"))


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
    )
    cfg = Config(node)
    names = (cfg.run_name, cfg.save_key, cfg.model_path, cfg.sup_model_path, cfg.resume)
    assert names == ("20261124", "true", "7", "1.5", "3")
    assert cfg.dataloaders.img_dir == "2024/rxrx1_cells"
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


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_sweep_goes_on_after_a_job_that_fails_and_names_it(tmp_path, data_root, launcher):
    process = start(
        tmp_path,
        data_root,
        "-m",
        *launcher,
        *TINY,
        "trainer.max_steps=1",
        "run_name=sweep",
        "learning_rate=-1,0.001,abc",
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    *jobs, last = errors.splitlines()
    assert sorted(jobs) == [
        "error: job 0: learning_rate is -1; it must be a number of at least 0",
        'error: job 2: learning_rate is "abc"; it must be a number of at least 0',
    ]
    assert last == "error: 2 of 3 jobs failed"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["sweep-1"]


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
    assert errors.splitlines()[-1] == "error: 1 of 2 jobs failed"
    assert (tmp_path / "checkpoints" / "sweep-1" / "last.pt").exists()


def test_an_interruption_is_one_line_that_says_how_to_go_on(tmp_path, data_root):
    arguments = (*TINY, "run_name=a", "num_epochs=100000", "trainer.log_every=1")
    process = start(tmp_path, data_root, *arguments)
    log, deadline = tmp_path / "runs" / "a" / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(3):  # on a busy machine one has been seen to get lost; a user presses Ctrl-C again
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
            break
        except subprocess.TimeoutExpired:
            errors = "three interruptions did not end the run"
    process.kill()  # nothing where it has ended
    assert process.wait() == 130, errors
    assert errors == "interrupted; go on with resume=auto and the same run_name (its folder below runs/)\n"
    assert not list(tmp_path.glob("checkpoints/a/*.tmp*"))
    # what it advises works, whether or not a checkpoint had been written
    process = start(tmp_path, data_root, *arguments, "resume=auto", "trainer.max_steps=1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
