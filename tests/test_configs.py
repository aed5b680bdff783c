"""Every configuration composes, says what it is for, and is read to the last key by its script."""

import math
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from biomass.norms import WORDS

CONFIGS = ROOT / "configs"
SCRIPTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", ALL, ids=str)
def test_every_file_opens_with_its_purpose_a_command_and_an_override(path):
    head = [line for line in (CONFIGS / path).read_text().splitlines()[:6] if line.startswith("#")]
    head = [line for line in head if not line.startswith("# @package")]
    assert len(head) >= 3, f"{path} has no header"
    assert not head[0].startswith("# Run:")
    assert any(line.startswith("# Run:") and "python " in line for line in head)
    assert any(line.startswith("# Override:") for line in head)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_configuration_and_composes(script):
    assert (ROOT / f"{script}.py").exists()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(script)
    assert config.seed == 0


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml")))
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "calibrate"])
def test_a_method_sets_words_and_nothing_else_for_any_script(script, method):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        plain, preset = compose(script), compose(script, [f"+method={method}"])
    assert {key for key in preset if preset[key] != plain[key]} == {"statistics"}
    assert plain.statistics == {"train": None, "eval": None, "by": None}
    assert preset.statistics.train in WORDS
    assert preset.statistics.eval in WORDS


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
