"""``RESULTS.md``, made from what ``python -m benchmarks --page`` and ``python -m benchmarks.gpu`` have measured.

python -m benchmarks.page     the page again, from the two JSON files
"""

import operator
import re
from pathlib import Path

from benchmarks.record import Part, Record, read
from benchmarks.timing import Figure

FOLDER = Path(__file__).parent
CPU, GPU, PAGE = FOLDER / "cpu.json", FOLDER / "gpu.json", FOLDER / "RESULTS.md"

_COMPARED = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}

_HEAD = """# Results

*Made by `python -m benchmarks --page` (also `make results`) on a CPU, and by `python -m benchmarks.gpu` on a GPU. Edit
neither this page nor the JSON files beside it: run the command again.*

A figure compares two pieces of code that ran in turn in one process: the median of the ratios of several rounds, and
the lowest and highest of these. Speeds of a machine drift, ratios hardly do. A goal is met where the median reaches
it."""

_NO_GPU = """Not measured with this version: no GPU was at hand. `python -m benchmarks.gpu` does it, in under 9 minutes.
Figures of one H100, which an earlier version of that command has measured, are in the README (*On a GPU*)."""


def is_met(figure: Figure) -> bool | None:
    """Whether the goal is reached; None where it is none that numbers can reach.

    >>> is_met(Figure("loop", 0.98, 0.97, 0.99, ">= 0.97")), is_met(Figure("copy", 0.5, 0.4, 0.6, ""))
    (True, None)
    """
    goal = re.match(r"\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)", figure.goal)
    return None if goal is None else bool(_COMPARED[goal[1]](figure.ratio, float(goal[2])))


def write_page(page: Path = PAGE, cpu: Path = CPU, gpu: Path = GPU) -> None:
    """Write the page from the files that exist."""
    records = {name: read(path) if path.exists() else None for name, path in (("CPU", cpu), ("GPU", gpu))}
    blocks = [_HEAD, *_summary(records)]
    for name, record in records.items():
        blocks.append(f"## On a {name}")
        if record is None:
            blocks.append(_NO_GPU if name == "GPU" else "Not measured.")
            continue
        blocks.append(_table(("", ""), record.about.items()))
        for key, part in record.parts.items():
            blocks += _part(key, part, plots=cpu.parent)
    page.write_text("\n\n".join(blocks) + "\n")


def _summary(records: dict[str, Record | None]) -> list[str]:
    figures = [
        (f"{device}, {name}", figure)
        for device, record in records.items()
        if record is not None
        for name, part in record.parts.items()
        for figure in part.figures
    ]
    judged = [(where, figure, is_met(figure)) for where, figure in figures]
    goals = [met for *_, met in judged if met is not None]
    missed = [
        f"- {where}: {figure.name}: {_value(figure)}, goal {figure.goal}"
        for where, figure, met in judged
        if met is False
    ]
    text = f"**{sum(goals)} of {len(goals)} goals are met**" + (", not these:" if missed else ".")
    return [text, "\n".join(missed)] if missed else [text]


def _part(key: str, part: Part, plots: Path) -> list[str]:
    blocks = [f"### {key}", part.title]
    if part.figures:
        head = ("what", "figure", "lowest … highest", "goal", "met", "")
        blocks.append(_table(head, map(_row, part.figures)))
    shown = [f"![{key}]({path.name})" for path in sorted(plots.glob(f"{key}.*")) if path.suffix in (".svg", ".png")]
    left_out = [f"Left out: {reason}." for reason in part.left_out]
    date = [f"*{part.date}, {part.seconds:.0f} s.*"] if part.figures else []
    return [*blocks, *shown, *left_out, *date]


def _row(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "no", None: ""}[is_met(figure)]
    spread = f"{figure.lowest:.3g} … {figure.highest:.3g}"
    return figure.name, _value(figure), spread, figure.goal, met, figure.note


def _value(figure: Figure) -> str:
    return f"{figure.ratio:.3g} {figure.unit}".strip()


def _table(head: tuple[str, ...], rows: object) -> str:
    lines = [head, ("---",) * len(head), *rows]  # type: ignore[misc]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    write_page()
