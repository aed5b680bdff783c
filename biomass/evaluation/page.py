"""The verdict on a plate map as a page of plain text."""

import string
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from biomass.evaluation.design import FORMATS, places
from biomass.evaluation.verdict import Group, Judgement, Verdict, call, group_name, recommend, said
from biomass.screen import PLATE

WIDTH = 118
"""Columns of the page."""

_FACTS = {
    "images": "rows of the table",
    "wells": "wells",
    "treated": "treated wells",
    "negative": "negative controls",
    "positive": "positive controls",
    "treatments": "treatments",
    "replicates": "wells a treatment",
    "classes": "classes",
    "coverage": "share of all classes",
    "shared": "wells whose treatment is in other groups, too",
    "effective": "effective wells",
}
"""The columns of a group's table that are shown, and what they are called."""


def render(title: str, columns: Mapping[str, str], notes: Sequence[str], verdict: Verdict) -> str:
    """The page.

    Args:
        title: of the page.
        columns: what was taken for what.
        notes: what else was done to the table, a sentence each.
        verdict: what is shown.
    """
    taken = ", ".join(f"{column} is {where}" for column, where in columns.items())
    parts = [
        [title, "=" * len(title)],
        [*_wrap(f"Taken: {taken}."), *(line for note in notes for line in _wrap(f"Note: {note}."))],
        _facts(verdict.groups),
        [] if verdict.size is None else draw_plate(verdict.wells, verdict.size),
        _confounding(verdict.confounded),
        _statistics(verdict.judgements),
        _evidence(verdict.judgements),
        [
            f"VERDICT: {verdict.said}",
            *(line for reason in verdict.reasons() for line in _wrap(f"- {reason}", "  ")),
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def draw_plate(wells: pd.DataFrame, size: int) -> list[str]:
    """The fullest plate of a plate map, a letter a well.

    Args:
        wells: a row a well, as :func:`.well_table` gives them.
        size: number of wells of a plate.

    >>> wells = pd.DataFrame({"experiment": "", "plate": "P1", "well": ["A01", "A02", "B01"], "label": ["x", "", "y"]})
    >>> print("\\n".join(draw_plate(wells.assign(control=["", "negative", ""]), 96)[:4]))
    plate P1: - negative control, a x, b y
           1  2  3  4  5  6  7  8  9 10 11 12
      A    a  -  .  .  .  .  .  .  .  .  .  .
      B    b  .  .  .  .  .  .  .  .  .  .  .
    """
    keys = wells.groupby(list(PLATE), observed=True, sort=True).ngroup().to_numpy()
    plate = wells[keys == np.bincount(keys).argmax()]
    rows, columns = places(plate["well"].tolist())
    height, width = FORMATS[size]
    treated = (plate["control"] == "").to_numpy()
    labels = list(dict.fromkeys(plate["label"][treated]))
    few = len(labels) <= len(string.ascii_lowercase)
    letters = dict(zip(labels, string.ascii_lowercase if few else "o" * len(labels), strict=False))
    drawn = np.full((height, width), ".", dtype=object)
    signs = plate["control"].map({"negative": "-", "positive": "+"}).where(~treated, plate["label"].map(letters))
    drawn[rows, columns] = signs.to_numpy()
    wide = 3 if width <= 24 else 2
    name = "/".join(filter(None, plate.iloc[0][list(PLATE)].astype(str)))
    there = set(plate["control"])
    meaning = [f"{sign} {kind} control" for sign, kind in (("-", "negative"), ("+", "positive")) if kind in there]
    meaning += [f"{letter} {label}" for label, letter in letters.items()] if few else ["o treated"]
    head = "".join(f"{i + 1:>{wide}}" if i + 1 < 10 ** (wide - 1) else " " * wide for i in range(width))
    lines = [
        f"  {_letters(r):<2}{' ' if wide == 3 else ''}" + "".join(f"{one:>{wide}}" for one in drawn[r])
        for r in range(height)
    ]
    return [*_wrap(f"plate {name}: {', '.join(meaning)}"), f"     {head}" if wide == 3 else f"    {head}", *lines]


def _facts(groups: Sequence[Group]) -> list[str]:
    """What the groups hold: the median, the least and the most."""
    heads = [f"{len(group.table)} {group.name}{'' if len(group.table) == 1 else 's'}" for group in groups]
    lines = [f"{'median (least … most)':<48}" + "".join(f"{head:<32}" for head in heads)]
    for column, what in _FACTS.items():
        cells = [_span(group.table[column]) for group in groups]
        lines.append(f"  {what:<46}" + "".join(f"{cell:<32}" for cell in cells))
    shifts = [group.shift for group in groups]
    distance = [f"{shift.distance:.2f}" for shift in shifts]
    alpha = [
        f"{max(shift.correlation, 0):.2f}"
        + (f" (Dirichlet α {shift.alpha:.2g})" if np.isfinite(shift.alpha) else " (as drawn at random)")
        for shift in shifts
    ]
    lines.append(f"  {'distance of a composition to that of all':<46}" + "".join(f"{cell:<32}" for cell in distance))
    lines.append(f"  {'shift of the composition, ρ':<46}" + "".join(f"{cell:<32}" for cell in alpha))
    return [line.rstrip() for line in lines]


def _span(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return "–"
    low, middle, high = (_number(value) for value in (known.min(), known.median(), known.max()))
    return middle if low == high else f"{middle} ({low} … {high})"


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _confounding(confounded: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How treatments depend on places."""
    cells = []
    for by, values in confounded.items():
        for place, value in values.items():
            cells.append(f"{by if place == 'group' else place} {'–' if np.isnan(value) else f'{value:.2f}'}")
    head = "treatments depend on (Cramér's V: 0 not at all … 1 wholly; – cannot be told): "
    return _wrap(head + ", ".join(dict.fromkeys(cells)))


def _statistics(judgements: Sequence[Judgement]) -> list[str]:
    """The table of the words."""
    names = [group_name(one.by) if one.by else "" for one in judgements]
    wide = max(map(len, names)) + 2
    lines = [f"{'statistics':<12}{'controls':<11}{'by':<{wide}}accuracy (80 % interval)"]
    for one, name in zip(judgements, names, strict=True):
        expected = "–" if one.expected is None else "1" if one.state == "base" else said(one.expected)
        lines.append(f"  {one.word:<10}{one.controls:<11}{name:<{wide}}{expected:<26}{one.state:<9}")
        if one.needed:
            lines[-1] += f"safe with {one.needed} in each {name}"
    return [
        *(line.rstrip() for line in lines),
        "  accuracy on unseen plates, relative to running averages of plain training; from measured curves",
    ]


def _evidence(judgements: Sequence[Judgement]) -> list[str]:
    """The measurements behind the plates' own statistics, and behind what is recommended."""
    best = recommend(judgements)
    ways = [one for one in judgements if one == best or (one.word, one.by) == ("plate", PLATE)]
    lines: list[str] = []
    for one in ways:
        if one.expected and one.expected.evidence:
            lines += [f"  {call(one)}", *(line for text in one.expected.evidence for line in _wrap(text, "    "))]
    return ["measurements nearest to this design", *lines] if lines else []


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _letters(row: int) -> str:
    return chr(65 + row) if row < 26 else f"A{chr(65 + row - 26)}"
