"""The keys that messages name are keys of some configuration."""

import re

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

FILES = sorted((ROOT / "biomass").rglob("*.py"))


def keys(node, path):
    """All keys of a node, with their path."""
    for key in node:
        value = node._get_node(key)
        yield f"{path}.{key}"
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            yield from keys(value, f"{path}.{key}")


@pytest.fixture(scope="module")
def known():
    found = set()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for script in (path.stem for path in (ROOT / "configs").glob("*.yaml")):
            for source in (path.stem for path in (ROOT / "configs" / "dataloaders").glob("*.yaml")):
                config = compose(script, [f"dataloaders={source}"])
                assert OmegaConf.is_config(config.dataloaders)
                found |= set(keys(config.dataloaders, "dataloaders"))
    return found


def named(text):
    """The keys below dataloaders that a source file names."""
    return {key.rstrip(".") for key in re.findall(r"(?<![\w.])dataloaders\.[\w.]+", text)}


def test_messages_name_keys_that_exist(known):
    strange = {str(file.relative_to(ROOT)): sorted(named(file.read_text()) - known) for file in FILES}
    assert not {file: names for file, names in strange.items() if names}
    assert len(set().union(*(named(file.read_text()) for file in FILES))) > 15  # they are found
