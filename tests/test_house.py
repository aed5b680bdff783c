"""The shape of the package: no circles of imports, no folder that holds too much."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "biomass"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports at its top."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return found & MODULES.keys()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_folder_holds_a_quarter_of_the_lines() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    folders: dict[Path, int] = {}
    for path, count in lines.items():
        if path.parent != PACKAGE:
            folders[path.parent] = folders.get(path.parent, 0) + count
    shares = {folder.name: count / sum(lines.values()) for folder, count in folders.items()}
    assert max(shares.values()) < 0.25, shares
