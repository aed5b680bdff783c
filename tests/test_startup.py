"""What a command line alone asks for, or shows to be wrong, is answered without torch and pandas."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

from biomass import early
from biomass.commands import find_tools
from biomass.errors import BiomassError
from biomass.keys import KEYS
from biomass.settings import build
from biomass.targets import Node
from biomass.words import words_in

SCRIPTS = sorted(file.name for file in ROOT.glob("*.py"))
TOOLS = [f"biomass {tool.name}" for tool in find_tools()]
COMPOSED = SCRIPTS + [f"biomass {tool.name}" for tool in find_tools() if tool.composed]

CHILD = """
import contextlib, io, json, os, runpy, sys
import hydra, hydra._internal.hydra, omegaconf, argparse, ast
for line in sys.stdin:
    root, called, *words = json.loads(line)
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        print(os.fdopen(read).read(), flush=True)
        continue
    tool = called.startswith("biomass ")
    words = [*called.split()[1:], *words] if tool else words
    sys.argv = [f"{root}/biomass/__main__.py" if tool else f"{root}/{called}", *words]
    said, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if tool:
                runpy.run_module("biomass", run_name="__main__")
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    heavy = [name for name in ("torch", "pandas", "lightning_fabric") if name in sys.modules]
    os.write(write, json.dumps([code, heavy, said.getvalue()[:2000]]).encode())
    os._exit(0)
"""
"""Runs each command line that it reads in a process forked from one in which this package is not imported."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A function from a command line to its exit code or error, the heavy modules that it imported, its first words."""
    folder = tmp_path_factory.mktemp("begun")
    process = subprocess.Popen([sys.executable, "-c", CHILD], cwd=folder, stdin=-1, stdout=-1, text=True)

    def run(*words: str):
        process.stdin.write(json.dumps([str(ROOT), *words]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    (folder / "a_file").touch()
    yield run
    process.stdin.close()
    process.wait(timeout=60)
    assert {path.name for path in folder.iterdir()} == {"a_file"}  # nothing was written


@pytest.mark.parametrize("called", [*SCRIPTS, *TOOLS])
def test_help_imports_nothing_heavy(begun, called):
    code, heavy, said = begun(called, "--help")
    assert (code, heavy) == (0, [])
    assert "usage: " in said


@pytest.mark.parametrize("called", COMPOSED)
def test_the_configuration_is_printed_and_a_misspelt_key_is_found_without_anything_heavy(begun, called):
    assert begun(called, "--cfg", "job")[:2] == [0, []]
    code, heavy, _ = begun(called, "dataloader.root_dir=x")
    assert code.startswith("error: ")
    assert "'dataloader.root_dir'" in code
    assert heavy == []


@pytest.mark.parametrize("words", [["--info"], ["--cfg", "hydra"], ["--hydra-help"], ["-m", "seed=0,1", "--version"]])
def test_what_hydra_answers_needs_nothing_heavy(begun, words):
    assert begun("train_erm.py", *words)[:2] == [0, []]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["seed=["], "seed=["),
        (["dataloaders=none"], "dataloaders=none"),
        (["-m", "+method=ben,bne"], "method=bne"),
        (["-m", "lerning_rate=1,2"], "'lerning_rate'"),
        (["learning_rate=fast"], '"fast"'),
        (["statistics.eval=plaet"], "'plate'"),
    ],
)
def test_a_bad_value_is_found_without_anything_heavy(begun, words, named):
    code, heavy, _ = begun("train_erm.py", *words)
    assert code.startswith("error: ")
    assert named in code
    assert heavy == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train_erm.py", "transforms.train.0._target_=biomass.transforms.RandomRotat90"], "'RandomRotate90'"),
        (["train_erm.py", "+dataloaders.source.rot_dir=x"], "'root_dir'"),
        (["train_erm.py", "dataloaders=simulated", "dataloaders.root_dir=a_file"], "a_file"),
        (["train_erm.py", "dataloaders=manifest"], "manifest.parquet'"),
        (["train_erm.py", "dataloaders=packed", "dataloaders.store=cels"], "cels'"),
        (["train_simclr.py", "dataloaders.source.download=false"], "rxrx1_cells'"),
        (["transfer_bbbc021.py", "dataloaders.root_dir=nowhere"], "'nowhere'"),
        (["train_erm.py", "resume=last.pt"], "'last.pt'"),
        (["train_classifier.py", "dataloaders=simulated_cells", "model_path=none"], "'none'"),
        (["biomass predict", "dataloaders=simulated", "model_path=latest"], "'latest'"),
    ],
)
def test_what_is_not_there_is_found_without_torch(begun, words, named):
    code, heavy, _ = begun(*words)
    assert code.startswith("error: ")
    assert named in code
    assert "torch" not in heavy


@pytest.mark.parametrize("tool", ["pack", "crop", "index"])
def test_a_shard_that_is_none_is_found_without_anything_heavy(begun, tool):
    code, heavy, _ = begun(f"biomass {tool}", "a_file", "--out", "out", "--shard", "0/4")
    assert code.startswith("error: shard '0/4' is none of 4")
    assert heavy == []


def test_the_early_look_says_what_the_source_says(tmp_path):
    for given in (
        {"_target_": "biomass.datasets.manifest.load_manifest", "root_dir": str(tmp_path)},
        {"_target_": "biomass.datasets.packed.load_packed", "path": "a", "root_dir": str(tmp_path)},
        {"_target_": "biomass.datasets.rxrx1.load_rxrx1", "root_dir": str(tmp_path), "download": False},
    ):
        source = Node.of(given, "dataloaders.source")
        with pytest.raises(BiomassError) as later:
            build(source)
        with pytest.raises(type(later.value)) as sooner:
            early.check_source(source)
        assert str(sooner.value) == str(later.value)


def test_words_are_those_of_the_tables():
    tables = {one for kind in KEYS.values() for one in kind.words if "." in one}
    source = "".join(file.read_text() for file in (ROOT / "biomass" / "commands").glob("*.py"))
    options = {"datasets.layout_tables.TABLES", "pixels.planes.DEPTHS", "judgement.corrections.CORRECTIONS"}
    assert all(one.rpartition(".")[0] in source for one in options)
    for table in sorted(tables | options):
        module, _, name = table.rpartition(".")
        assert words_in(table) == tuple(getattr(import_module(f"biomass.{module}"), name)), table
    assert words_in("datasets.layouts.PRESETS") == tuple(
        one.name for one in import_module("biomass.datasets.layouts").PRESETS
    )
