"""No module below the scripts and the commands names a key: readers do not know who uses them. The edge does."""

import ast
import re

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from biomass import commands
from biomass.keys import ADVICE, KEYS, advice_where

PACKAGE = ROOT / "biomass"
EDGE = {"config.py", "early.py", "keys.py", "notation.py", "runs.py", "settings.py", "trust.py"}
FILES = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if path.name not in EDGE and path.parent.name not in ("commands", "profiling")
)
SECTIONS = sorted({key.partition(".")[0] for key in KEYS if "." in key} | {"hydra"})
TOP = sorted(key for key in KEYS if "." not in key)
NAMED = re.compile(rf"(?<![\w.{{])(?:(?:{'|'.join(SECTIONS)})\.[a-z_]+|({'|'.join(TOP)})(?:=|: (?:null|true|false)\b))")
"""A key of a section, or a key of its own that is given a value."""


def strings(tree):
    """All literal strings but docstrings, and those of f-strings with {} for what is put in."""
    docs = {
        one.value
        for node in ast.walk(tree)
        for one in (getattr(node, "body", None) if isinstance(getattr(node, "body", None), list) else ())
        if isinstance(one, ast.Expr)
    }
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {part for node in joined for part in node.values}
    for node in joined:
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs | parts:
            yield node.value


def named(source):
    """The keys that the strings of a source name. The arguments of its functions are names of its own."""
    tree = ast.parse(source)
    own = {one.arg for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for one in node.args.args}
    own |= {one.arg for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for one in node.args.kwonlyargs}
    found = (match for string in strings(tree) for match in NAMED.finditer(string))
    return sorted({match[0] for match in found if match[1] not in own})


def test_no_module_below_the_scripts_names_a_key():
    offenders = {str(file): keys for file in FILES if (keys := named((PACKAGE / file).read_text()))}
    assert not offenders


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ('raise E(f"{x} is bad: set dataloaders.on_bad_image=skip")', ["dataloaders.on_bad_image"]),
        ('x = "set " "resume=auto"', ["resume="]),
        ('x = f"or eval_batch_size: null {x}"', ["eval_batch_size: null"]),
        ('def f(seed):\n    """trainer.clip"""\n    raise E(f"seed={seed}; seed: the model is models.x")', []),
    ],
)
def test_a_key_in_a_string_is_found(source, keys):
    assert named(source) == keys


def advised(source):
    """The names of advice that a source gives to its errors."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "advice"]
    place = {"ConfigError": 1, "DataError": 1, "CheckpointError": 1, "TrainingError": 1, "BadImageError": 2}
    errors = [(call, place[call.func.id]) for call in calls if getattr(call.func, "id", None) in place]
    given += [call.args[n] for call, n in errors if len(call.args) > n]
    return {one.value for one in given if isinstance(one, ast.Constant) and one.value is not None}


def test_every_advice_is_in_the_table_of_keys_or_is_for_tools_alone():
    given = set().union(*(advised((PACKAGE / file).read_text()) for file in FILES))
    assert given <= set(ADVICE) | set(commands.ADVICE)


def keys_of(node, path=""):
    """Every key of a composed configuration."""
    for key in node:
        value = node._get_node(key)
        yield f"{path}{key}"
        if OmegaConf.is_dict(value) and not value._is_none() and not value._is_interpolation():
            yield from keys_of(value, f"{path}{key}.")


def test_what_advice_names_is_a_key_of_some_script():
    known = set(KEYS)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for script in (path.stem for path in (ROOT / "configs").glob("*.yaml")):
            for source in (path.stem for path in (ROOT / "configs" / "dataloaders").glob("*.yaml")):
                known |= set(keys_of(compose(script, [f"dataloaders={source}"])))
    assert {key for advice in ADVICE.values() for key in advice.keys} <= known


def test_advice_names_the_key_that_a_script_has():
    assert advice_where({"trainer.precision", "dataloaders.max_groups"}.__contains__) == {
        "precision": "set trainer.precision",
        "max_groups": "set dataloaders.max_groups",
    }
    assert advice_where({"precision", "dataloaders.num_plates_per_batch"}.__contains__) == {
        "precision": "set precision",
        "max_groups": "set dataloaders.num_plates_per_batch",
    }
