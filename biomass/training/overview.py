"""What a run is made of, in a few lines for a terminal of 100 columns."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from biomass.loader import BatchSource
from biomass.norms import WORDS, Method
from biomass.samplers import CellBatches
from biomass.screen import FIELD, PLATE, UNLABELLED, Screen
from biomass.training.loop import Plan

WIDTH = 100
_LOOKED_AT = 20
"""Batches whose sizes are looked at."""


class Share(NamedTuple):
    """The commonest class among some rows: its name, its share of those that have a label, and their number."""

    name: str
    share: float
    labelled: int


def commonest(screen: Screen, rows: np.ndarray) -> Share | None:
    """The class that most of some rows are of; None where no row has a label.

    Args:
        screen: the screen that the rows belong to.
        rows: (n,) of it.

    >>> import pandas as pd
    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 5) | {"label": [0, 1, 1, 1, -1]})
    >>> commonest(make_screen(table, None, ["taxol", "DMSO"]), np.arange(5))
    Share(name='DMSO', share=0.75, labelled=4)
    """
    labels = screen.labels[rows]
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(screen.classes))
    total = int(counts.sum())
    if not total:
        return None
    return Share(screen.classes[int(counts.argmax())], float(counts.max() / total), total)


def rows_seen(batches: BatchSource) -> tuple[int, int] | None:
    """How many rows an epoch sees at most, and how many there are; None of batches that see all of them."""
    return (batches.num_seen, batches.num_rows) if isinstance(batches, CellBatches) else None


def lines_of_run(
    screen: Screen, batches: BatchSource, splits: Sequence[str], method: Method, probe: bool = False
) -> list[tuple[str, str]]:
    """What a run reads and how it is normalized: pairs of a heading and what stands behind it.

    Args:
        screen: what it reads.
        batches: of training.
        splits: those that are evaluated.
        method: where its statistics come from.
        probe: batches are of fields of view, whose cells a frozen network has seen.
    """
    height, width = screen.pixels.size
    fields = _count(screen, FIELD)
    cells = fields < len(screen)
    what = f"{len(screen):,} cells of {number(fields, 'field')}" if cells else number(fields, "field")
    places = ((PLATE[:1], "experiment"), (PLATE, "plate"), ((*PLATE, "well"), "well"))
    counted = ", ".join(number(_count(screen, columns), name) for columns, name in reversed(places))
    channels = screen.pixels.channels
    train = screen.rows("train")
    lines = [
        ("images", f"{what}, {counted}; {height} x {width} pixels"),
        ("channels", f"{len(channels)}: {', '.join(channels)}"),
        ("classes", _classes(screen, train)),
        ("splits", "; ".join(_split(screen, split) for split in dict.fromkeys(["train", *splits]))),
        ("batches", _batches(batches, "fields of view" if probe else "images")),
    ]
    if (seen := rows_seen(batches)) is not None:
        lines.append(("an epoch", f"sees {seen[0]:,} of {seen[1]:,} cells ({100 * seen[0] / seen[1]:.2g} %)"))
    at_inference = _statistics(method.eval, method.eval_by, method.controls)
    if probe:
        return [*lines, ("statistics", f"of the frozen encoder: {at_inference}")]
    in_training = _statistics(method.train, method.train_by, method.controls)
    if in_training == at_inference:
        known = " (BEN)" if method.eval == "plate" else ""
        return [*lines, ("statistics", f"in training and at inference: {in_training}{known}")]
    return [*lines, ("statistics", f"in training: {in_training}"), ("", f"at inference: {at_inference}")]


def _count(screen: Screen, columns: Sequence[str]) -> int:
    return int(screen.groups(columns).max()) + 1


def number(count: int, noun: str) -> str:
    """A count and what is counted.

    >>> number(1, "plate"), number(1139, "well")
    ('1 plate', '1,139 wells')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _classes(screen: Screen, train: np.ndarray) -> str:
    most = commonest(screen, train)
    if most is None:
        return f"{len(screen.classes)}, and no image of the training split has a label"
    inside = len(np.unique(screen.labels[train][screen.labels[train] != UNLABELLED]))
    some = "" if inside == len(screen.classes) else f", {inside} of them in training"
    unlabelled = len(train) - most.labelled
    rest = f"; {unlabelled:,} training images have no label" if unlabelled else ""
    return f"{len(screen.classes)}{some}; the commonest in training is '{most.name}' with {_percent(most.share)}{rest}"


def _split(screen: Screen, split: str) -> str:
    rows = screen.rows(split)
    return f"{split} {len(rows):,} of {number(len(np.unique(screen.plate_ids[rows])), 'plate')}"


def _batches(batches: BatchSource, noun: str) -> str:
    sizes = [len(rows) for rows in itertools.islice(batches, _LOOKED_AT)]
    few, many = min(sizes), max(sizes)
    return f"{batches.num_batches:,} an epoch, of {few if few == many else f'{few} to {many}'} {noun}"


def _statistics(word: str, by: Sequence[str], controls: str) -> str:
    groups = f" by {' and '.join(by)}" if WORDS[word].by_group else ""
    kind = f" ({controls} controls)" if word in ("controls", "joint", "balanced", "shrunk") else ""
    return f"'{word}'{groups}{kind}: {WORDS[word].meaning.partition(':')[0]}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def last_metrics(logged: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of every metric that a run logged.

    >>> last_metrics([{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.0, "val/loss": 2.5}])
    {'train/loss': 2.0, 'val/loss': 2.5}
    """
    return {name: value for line in logged for name, value in line.items() if "/" in name}


def lines_of_results(
    logged: Sequence[Mapping[str, Any]], plan: Plan, screen: Screen | None, chances: Mapping[str, float]
) -> list[tuple[str, str]]:
    """The best and the last metrics, accuracies beside what they must beat: pairs of a heading and a text.

    Args:
        logged: what the run logged, a line each.
        plan: says what is monitored.
        screen: where the splits of a classifier are; None where nothing is classified.
        chances: what the loss is by chance on a split, where that is known.
    """
    last, best, monitor = last_metrics(logged), None, plan.monitor or ""
    for line in logged:
        if monitor in line and plan.better(line[monitor], None if best is None else best[monitor]):
            best = line
    lines = []
    if best is not None:
        now = f"{monitor} {best[monitor]:.4g} in epoch {best['epoch']}"
        lines.append(("best", f"{now} ({last[monitor]:.4g} in the last evaluation)"))
    for split in dict.fromkeys(name.partition("/")[0] for name in last):
        shown = {n: v for n, v in last.items() if n.startswith(f"{split}/") and n.count("/") == 1}
        hidden = ("gradient_norm", "learning_rate")
        values = [(n.partition("/")[2], v) for n, v in shown.items() if n.partition("/")[2] not in hidden]
        floors = {"loss": f" (chance {chances[split]:.4g})"} if split in chances else {}
        if screen is not None and split in screen.splits and (most := commonest(screen, screen.rows(split))):
            chance = f"chance {1 / len(screen.classes):.2g}"
            floors["accuracy"] = f" (always '{most.name}': {most.share:.4g}; {chance})"
        texts = [f"{name} {value:.4g}{floors.get(name, '')}" for name, value in values]
        lines.append((split, ", ".join(texts)))
    return lines


def block(title: str, lines: Iterable[tuple[str, str | Sequence[str]]]) -> str:
    """Headings and what stands behind them, in two columns: a text, or the words of a command, to be copied.

    >>> print(block("run 'a'", [("images", "12"), ("next", ["biomass", "compare", "runs/a"])]))
    run 'a'
      images      12
      next        biomass compare runs/a
    """
    shown = [title]
    for heading, text in lines:
        first, indent = f"  {heading:<12}", " " * 14
        if isinstance(text, str):
            wrapper = textwrap.TextWrapper(WIDTH, initial_indent=first, subsequent_indent=indent)
            wrapper.break_long_words = wrapper.break_on_hyphens = False
            shown += wrapper.wrap(text)
        else:
            shown += _command(text, first, f"{indent}  ")
    return "\n".join(shown)


def _command(words: Sequence[str], first: str, indent: str) -> list[str]:
    """The words of a command on as many lines as they need, which a shell takes for one."""
    lines = [first + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(indent + word)
        else:
            lines[-1] += f" {word}"
    return lines
