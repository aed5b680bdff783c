"""Config views, instantiation, run names, and how the scripts report errors."""

import pytest
from omegaconf import OmegaConf

from biomass.config import Config, build, run_name
from biomass.errors import ConfigError, DataError


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
