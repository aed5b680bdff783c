"""Every configuration composes, says what it is for, and is read to the last key by its script."""

import math
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from biomass.keys import KEYS
from biomass.norms import WORDS

CONFIGS = ROOT / "configs"
SCRIPTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
TRAINING = {"train_batch_size", "eval_batch_size", "dataloaders", "objective", "trainer", "model"}
"""What a regime of training may set beside words for statistics; scripts without such keys refuse it."""
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))


def commands(path):
    """The scripts and tools that the header of a file names, with their overrides; of a sweep, its first job."""
    head = "".join(line for line in (CONFIGS / path).open() if line.startswith("#"))
    for script, rest in re.findall(r"(?:python |biomass )(\w+)(?:\.py)?\b(.*)", head.partition("# Then:")[0]):
        words = shlex.split(re.sub(r"\s{2,}\(.*", "", rest))  # without the remark in brackets
        overrides = OverridesParser.create().parse_overrides([word for word in words if word not in ("-m", "...")])
        yield script, [first(override) for override in overrides]


def first(override):
    if not override.is_sweep_override():
        return override.input_line
    return f"{override.input_line.partition('=')[0]}={next(override.sweep_string_iterator())}"


def composed(script, overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(script, overrides, return_hydra_config=True)


@pytest.mark.parametrize("path", ALL, ids=str)
def test_the_commands_in_the_header_compose_and_read_the_file(path):
    group = str(path.parent).replace(".", path.stem)
    named = list(commands(path))
    assert len(named) >= 2, "a command, and one with an override"
    for script, overrides in named:
        choices = composed(script, overrides).hydra.runtime.choices
        assert script == path.stem or choices.get(group) == path.stem, (script, overrides)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_configuration(script):
    assert (ROOT / f"{script}.py").exists() or (ROOT / f"biomass/commands/{script}.py").exists()
    assert composed(script, []).run_name is None


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_words_and_what_else_belongs_to_its_training(method):
    own = OmegaConf.load(CONFIGS / "method" / f"{method}.yaml")
    assert "statistics" in own
    assert {"statistics"} <= set(own) <= {"statistics"} | TRAINING
    assert {own.statistics.train, own.statistics.eval} <= set(WORDS)
    assert all(key in KEYS for key in leaves(own))
    serves = [script for script in SCRIPTS if composed(script, []).get("statistics") and has_all(script, own)]
    assert "train_erm" in serves
    if set(own) == {"statistics"}:
        assert serves == SCRIPTS


def leaves(node, path=""):
    for key, value in node.items():
        yield from leaves(value, f"{path}{key}.") if OmegaConf.is_dict(value) else [f"{path}{key}"]


def has_all(script, preset):
    plain = composed(script, [])
    return all(OmegaConf.select(plain, key, default=plain) is not plain for key in leaves(preset))


def test_the_demo_takes_two_steps(run):
    best = run(
        "train_erm",
        "+experiment=demo",
        "+method=ben",
        "trainer.max_steps=2",
        "dataloaders.num_workers=0",
        "dataloaders.source.experiments=3",
        "dataloaders.source.plates=1",
        "run_name=demo",
    )
    assert best is not None
    assert math.isfinite(best)


def test_a_screen_of_ones_own_takes_two_steps(run, real_data):
    own = ("+experiment=bbbc021_cells", f"dataloaders.root_dir={real_data}/bbbc021_cells", "dataloaders.num_workers=0")
    best = run("train_erm", *own, "+method=ben", "trainer.max_steps=2", "run_name=own", "model.key=test_resnet")
    assert best is not None
    assert Path("checkpoints/own/last.pt").exists()


def test_the_simulated_screen_of_the_yaml_is_the_default_design():
    from biomass.simulation.rxrx1 import Design

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        source = dict(compose("train_erm", ["dataloaders=simulated", "dataloaders.root_dir=x"]).dataloaders.source)
    del source["_target_"], source["root_dir"]
    assert Design(**source) == Design()


def test_the_harder_screens_of_the_yaml_are_one_design():
    from biomass.simulation.rxrx1 import Design

    designs = []
    for script, name in (("train_erm", "simulated_hard"), ("train_simclr", "simulated_hard_cells")):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            source = dict(compose(script, [f"dataloaders={name}", "dataloaders.root_dir=x"]).dataloaders.source)
        del source["_target_"], source["root_dir"]
        designs.append(Design(**source))
    fields, cells = designs
    assert fields == cells
    assert fields.treatments == fields.wells == 40
    assert all(getattr(fields, name) != getattr(Design(), name) for name in Design.ADDED)


def test_the_harder_screen_takes_two_steps(run):
    tiny = ("experiments=3", "plates=1", "treatments=4", "positive_controls=1", "wells=4", "size=48")
    best = run(
        "train_erm",
        "dataloaders=simulated_hard",
        *(f"dataloaders.source.{value}" for value in tiny),
        "dataloaders.num_workers=0",
        "+method=ben",
        "model.key=test_resnet",
        "model.d_out=6",
        "model.pretrained=false",
        "trainer.max_steps=2",
        "run_name=hard",
    )
    assert best is not None
    assert math.isfinite(best)
