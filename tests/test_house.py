"""The shape of the package: no circles, no reaching up, no folder that holds too much, short scripts, examples."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "biomass"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))

LAYERS = (
    "errors words",
    "stopping",
    "diskerrors grouping several",
    "atomic bounds channels differences formulas guarded guarded_process identifiers keys pickles signatures",
    "targets vocabulary",
    "screen table_files run_files run_lock tensor_files",
    "fingerprint shards",
    "pixels",
    "cells",
    "simulation",
    "datasets",
    "loader samplers transforms norms",
    "models inference",
    "objectives evaluation",
    "judgement",
    "report",
    "training",
    "notation trust settings",
    "runs",
    "early",
    "config",
    "experiment",
    "profiling",
    "trained",
    "watching",
    "commands",
)
"""The rooms of the package (folders, or modules beside them), each above those that it may import from."""

SOURCES = ("pixels", "cells", "simulation", "datasets")
"""Where a Screen comes from; knows nothing of what is done with it."""
USES = ("loader", "samplers", "transforms", "norms", "models", "inference", "objectives", "evaluation", "training")
"""What is done with a Screen; knows nothing of where it comes from."""
DOORS = {"biomass.datasets.pack", "biomass.datasets.crop"}
"""The published paths of two commands, which lead to the commands of today."""


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a node, without those that run for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from statements(child)


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or later, and the packages that hold them."""
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides where a module stands"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {str(node.module)}
    return found & MODULES.keys()


def outside(name: str) -> set[str]:
    """What a module imports, and the packages whose ``__init__`` that runs first; without those that it is part of."""
    found = imports(MODULES[name])
    for other in tuple(found):
        while "." in other:
            other = other.rpartition(".")[0]
            found.add(other)
    return {other for other in found if not f"{name}.".startswith(f"{other}.")}


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: outside(name) for name in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_folder_holds_a_quarter_of_the_lines() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    folders: dict[Path, int] = {}
    for path, count in lines.items():
        if path.parent != PACKAGE:
            folders[path.parent] = folders.get(path.parent, 0) + count
    shares = {folder.name: count / sum(lines.values()) for folder, count in folders.items()}
    assert max(shares.values()) < 0.25, shares


@pytest.mark.parametrize("script", SCRIPTS)
def test_root_scripts_have_less_than_100_lines(script: str) -> None:
    assert len((ROOT / script).read_text().splitlines()) < 100


def room(name: str) -> str:
    """The room that a module stands in; empty for the package's own two."""
    return name.removesuffix(".__main__").partition(".")[2].partition(".")[0]


def rooms(name: str) -> set[str]:
    """The rooms that a module imports from."""
    return {room(other) for other in outside(name)} - {""}


INSIDE = sorted(name for name in MODULES if room(name) and name not in DOORS)


@pytest.mark.parametrize("name", INSIDE)
def test_no_module_reaches_up(name: str) -> None:
    height = {one: level for level, layer in enumerate(LAYERS) for one in layer.split()}
    above = {one for one in rooms(name) if one != room(name) and height[one] >= height[room(name)]}
    assert not above


@pytest.mark.parametrize("name", INSIDE)
def test_where_a_screen_comes_from_and_what_is_done_with_it_are_strangers(name: str) -> None:
    strangers = USES if room(name) in SOURCES else SOURCES if room(name) in USES else ()
    assert not rooms(name) & set(strangers)


@pytest.mark.parametrize("name", ["norms", "samplers", "evaluation"])
def test_public_functions_end_in_an_example(name: str) -> None:
    package = importlib.import_module(f"biomass.{name}")
    public = {each: getattr(package, each) for each in package.__all__}
    functions = {each: value for each, value in public.items() if inspect.isfunction(value)}
    assert not [each for each, value in functions.items() if ">>> " not in (value.__doc__ or "")]
