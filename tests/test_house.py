"""The shape of the package: no circles of imports, no folder that holds too much, no reaching up, short scripts."""

import ast
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

GROUND = ("errors", "atomic", "identifiers", "screen")
"""What everything may stand on; imports nothing but itself."""
SOURCES = ("pixels", "cells", "simulation", "datasets")
"""Where a Screen comes from; knows nothing of what is done with it."""
USES = ("samplers", "loader", "norms", "inference", "models", "objectives", "training", "evaluation")
"""What is done with a Screen."""


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


def modules_of(chosen: tuple[str, ...]) -> list[str]:
    """The modules in some rooms (folders of the package, or modules beside them)."""
    return [name for name in MODULES if name.partition(".")[2].split(".")[0] in chosen]


def rooms(name: str) -> set[str]:
    """The rooms that a module imports from."""
    return {other.split(".")[1] for other in outside(name) if "." in other}


@pytest.mark.parametrize("name", modules_of(GROUND))
def test_the_ground_stands_on_itself(name: str) -> None:
    assert rooms(name) <= set(GROUND)


@pytest.mark.parametrize("name", modules_of(SOURCES))
def test_sources_of_screens_know_nothing_of_their_use(name: str) -> None:
    doors = {"biomass.datasets.pack", "biomass.datasets.crop"}  # the published paths of two commands
    above = {*USES, "config", "experiment", *(() if name in doors else ("commands",))}
    assert not rooms(name) & above
