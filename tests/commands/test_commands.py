"""The command ``biomass``: its tools are found, listed, explained and refused in one line."""

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from biomass import commands
from biomass.__main__ import main
from biomass.commands import ADVICE, find_tools, parse_settings
from biomass.errors import ConfigError

TOOLS = [tool.name for tool in find_tools()]
ON_FILES = {"index", "compare", "crop", "evaluate", "pack", "preflight", "report"}


def run(*words: str, cwd: Path, module: str = "biomass") -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """``tool(name, source)`` adds a tool for the time of a test."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path / "tools")])
    (tmp_path / "tools").mkdir()
    monkeypatch.setattr(sys, "argv", ["biomass"])

    def add(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, f"biomass.commands.{name}", raising=False)
        (tmp_path / "tools" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    return add


# --- listed -----------------------------------------------------------------------------------------------------------


def test_every_module_is_a_tool_with_a_place_and_a_line():
    files = {path.stem for path in (ROOT / "biomass" / "commands").glob("*.py") if not path.stem.startswith("_")}
    assert set(TOOLS) == files
    assert set(TOOLS) >= ON_FILES
    for one in find_tools():
        assert one.place < 1000, f"biomass/commands/{one.name}.py needs PLACE = …"
        assert one.summary.endswith("."), f"the first line of biomass/commands/{one.name}.py must be a sentence"
    assert len({one.place for one in find_tools()}) == len(TOOLS)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_lists_them_in_their_order(words, capsys):
    main(words)
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed == TOOLS


def test_a_tool_is_found_by_its_place(tool, capsys):
    tool("earlier", '"""Do it first.\n\nMore of it."""\nPLACE = 1\nraise AssertionError("imported")')
    tool("_shared", '"""Not a tool."""')
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split(maxsplit=1) == ["earlier", "Do it first."]
    assert not any("_shared" in line for line in lines)


def test_listing_imports_nothing_heavy(tmp_path):
    """Python alone takes about 20 ms, torch alone seconds."""
    script = "import sys; from biomass.__main__ import main; main([]); print(*sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    took = time.perf_counter() - start
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"torch", "numpy", "pandas", "hydra", "omegaconf", "h5py", "PIL"}
    assert took < 2  # 0.1 s on a quiet machine


# --- explained --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_explains_itself(name, tmp_path):
    done = run(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    summary = next(one.summary for one in find_tools() if one.name == name)
    assert summary in done.stdout
    assert f"biomass {name}" in done.stdout
    assert not done.stderr
    assert "``" not in done.stdout
    assert not list(tmp_path.iterdir())


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_refuses_nonsense_in_one_line(name, tmp_path):
    done = run(name, *(["somewhere", "out", "--nonsense"] if name in ON_FILES else ["nonsense=1"]), cwd=tmp_path)
    assert done.returncode == (2 if name in ON_FILES else 1)
    assert re.fullmatch(r"error: [^\n]*nonsense[^\n]*\n", done.stderr)
    assert not done.stdout


def test_an_unknown_tool(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["pak"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no tool 'pak'; did you mean 'pack'?\n"


@pytest.mark.parametrize("module", ["biomass.datasets.pack", "biomass.datasets.crop"])
def test_the_published_commands_are_the_tools(module, tmp_path):
    name = module.rpartition(".")[2]
    assert run("--help", cwd=tmp_path, module=module).stdout == run(name, "--help", cwd=tmp_path).stdout
    done = run("nowhere", "out", cwd=tmp_path, module=module)
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]*nowhere[^\n]*\n", done.stderr)


# --- options ----------------------------------------------------------------------------------------------------------


def parsed(*words: str) -> tuple[Path, Path | None, list[str]]:
    parser = commands.Parser("pack", "About.")
    parser.add_source("what to read")
    parser.add_out("where to")
    args = parser.parse(words)
    return args.source, args.out, args.set


@pytest.mark.parametrize(
    "words",
    ["in out --set a=b", "in --set a=b out", "--set a=b in out", "in --out out --set a=b", "--out out --set a=b in"],
)
def test_options_stand_anywhere_and_out_is_a_word_or_an_option(words):
    assert parsed(*words.split()) == (Path("in"), Path("out"), ["a=b"])


def test_out_is_given_once(capsys):
    with pytest.raises(SystemExit):
        parsed("in", "out", "--out", "other")
    assert re.fullmatch(r"error: [^\n]*'out' and --out other[^\n]*\n", capsys.readouterr().err)


def test_a_misspelt_option_has_a_hint(capsys):
    with pytest.raises(SystemExit):
        parsed("in", "--on-bad-imag=skip", "--sett")
    assert "--sett" in (message := capsys.readouterr().err)
    assert "did you mean 'set'?" in message


@pytest.mark.parametrize("setting", ["label", "a=[b", "a={b: c"])
def test_settings_that_are_none(setting):
    with pytest.raises(ConfigError, match="--set") as caught:
        parse_settings([setting])
    assert "\n" not in str(caught.value)


# --- what goes wrong --------------------------------------------------------------------------------------------------

RAISES = '''"""Raise."""
from biomass.commands import run_on_files
from biomass.errors import DataError
def main(arguments):
    with run_on_files("go on later", {followed}):
        raise {error}
'''


@pytest.mark.parametrize(
    ("error", "followed", "code"),
    [
        ("DataError('a\\nb')", "()", "error: a; b"),
        ("DataError('bad', advice='skip')", "()", "error: bad; or give --on-bad-image skip"),
        ("DataError('bad', advice='skip')", "{'skip'}", "error: bad"),
        ("DataError('bad', advice='no option of a tool')", "()", "error: bad"),
    ],
)
def test_errors_are_one_line_with_the_options_that_help(tool, error, followed, code):
    tool("raises", RAISES.format(error=error, followed=followed))
    with pytest.raises(SystemExit) as caught:
        main(["raises"])
    assert caught.value.code == code  # Python prints it and exits with 1


@pytest.mark.parametrize("source", [RAISES.format(error="KeyboardInterrupt", followed="()"), "raise KeyboardInterrupt"])
def test_an_interruption_is_one_line(tool, source, capsys):
    tool("raises", source)
    with pytest.raises(SystemExit) as caught:
        main(["raises"])
    assert caught.value.code == 130
    assert capsys.readouterr().err in (
        "stopped: go on later\n",
        "stopped: nothing had begun; start the same command again\n",
    )


def test_advice_names_options_that_exist(tmp_path):
    helps = [run(name, "--help", cwd=tmp_path).stdout for name in sorted(ON_FILES)]
    for text in ADVICE.values():
        for option in re.findall(r"--[\w-]+", text):
            assert any(option in one for one in helps), option


def test_no_option_is_named_below_the_tools():
    """A reader does not know whether a script, a tool or a notebook has called it."""
    own = {option for name in ON_FILES for option in re.findall(r'"(--[\w-]+)"', source_of(name))} | {"--on-bad-image"}
    assert len(own) > 5
    for path in (ROOT / "biomass").rglob("*.py"):
        if path.parent.name != "commands" and path.name != "__main__.py":
            assert not {option for option in own if re.search(rf"{option}\b(?!-)", path.read_text())}, path


def source_of(name: str) -> str:
    folder = ROOT / "biomass" / "commands"
    return (folder / f"{name}.py").read_text() + (folder / "__init__.py").read_text()


# --- tools that load a model ------------------------------------------------------------------------------------------

OVERRIDES = '''"""Show what it was given.

    biomass shows key=value ...
"""
from biomass.config import script
@script("shows")
def main(cfg):
    print("seed", cfg.seed, "run", cfg.run_name)
'''


def test_a_tool_that_takes_overrides(tool, tmp_path, monkeypatch, capsys):
    """Its YAML is found above it, whatever the working directory is."""
    tool("shows", OVERRIDES)
    with pytest.raises(SystemExit, match=r"^error: no configs/shows\.yaml[^\n]*repository"):
        main(["shows"])  # as where only the package is installed
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shows.yaml").write_text("seed: 0  # of what\nrun_name: null\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["shows", "--help"])
    assert "Show what it was given.\n\n    biomass shows key=value" in (out := capsys.readouterr().out)
    assert "usage: biomass shows" in out
    assert "seed: 0  # of what" in out
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=."]
    main(["shows", "seed=7", "run_name=a", *quiet])
    assert capsys.readouterr().out == "seed 7 run a\n"
    with pytest.raises(SystemExit, match=r"^error: [^\n]*'sed'[^\n]*$"):
        main(["shows", "sed=7"])
