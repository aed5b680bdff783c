"""The factorial table: statistics of the encoder × corrections of profiles, a metric at a time, as a heat map."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomass.judgement.results import NULL_ROWS
from biomass.report import called
from biomass.report.judged import About, Judged, read_judged
from biomass.report.markup import render
from biomass.report.section import Section

LEAD = (
    "Rows: where the encoder takes its statistics from. Columns: what was done to the profiles afterwards. The darker "
    "a cell, the better, whichever direction of the metric is better; chance is what the value must be compared with."
)


def factorial(folder: Path) -> Section | str:
    """The section."""
    judged = read_judged(folder)
    if isinstance(judged, str):
        return judged
    main = judged.main()
    tables = [table_of(judged, key) | {"main": key in main} for key in judged.metrics]
    tables = [one for one in tables if one["told"]]
    if not tables:
        return "no metric could be told of these profiles; the table of all metrics says why"
    data = {"options": [[one["key"], f"{one['family']}: {one['title']}"] for one in tables]}
    words, corrections = (dict.fromkeys(pair[i] for pair in judged.pairs) for i in (0, 1))
    names = {
        "What the rows are: where the encoder takes means and spreads from": called.known(
            map(called.statistics, words)
        ),
        "What the columns are: what was done to its profiles": called.known(map(called.correction, corrections)),
    }
    html = render("factorial", tables=tables, refit_only=bool(judged.refit_only), names=names)
    return Section("factorial", "Statistics × corrections", html, "factorial", data, LEAD)


def table_of(judged: Judged, key: str) -> dict[str, Any]:
    """A metric's heat map of statistics × corrections."""
    words = dict.fromkeys(statistics for statistics, _ in judged.pairs)
    corrections = dict.fromkeys(correction for _, correction in judged.pairs)
    rows = [(word, word in NULL_ROWS, word) for word in words]
    columns = [(one, one in judged.refit_only, one) for one in corrections]
    hints = {one: called.correction(one).title for one in corrections}
    hints |= {word: called.statistics(word).title for word in words}
    return heat_map(key, judged.metrics[key], rows, columns, judged.of(key), hints) | {"corner": "statistics"}


def heat_map(
    key: str,
    about: About,
    rows: Sequence[tuple[str, bool, Any]],
    columns: Sequence[tuple[str, bool, Any]],
    scores: Mapping[Any, dict[str, Any]],
    hints: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the template needs of one metric.

    Args:
        key: of the metric.
        about: what it is.
        rows: title of each, whether it is a null row, its key.
        columns: title of each, whether it is refit only, its key.
        scores: by the keys of row and column.
        hints: title of a row or a column → what it is.
    """
    cells = [
        {"title": title, "floor": floor, "cells": [_cell(scores.get((row, column))) for _, _, column in columns]}
        for title, floor, row in rows
    ]
    places = {(row, column): f"{one} · {two}" for one, _, row in rows for two, _, column in columns}
    return {
        "key": key,
        "columns": [(title, refit) for title, refit, _ in columns],
        "rows": cells,
        "hints": hints or {},
        "missing": _reasons({places[place]: score for place, score in scores.items()}),
        "told": any(math.isfinite(one["value"]) for one in scores.values()),
        **about._asdict(),
        "arrow": about.arrow,
    }


def _cell(score: dict[str, Any] | None) -> dict[str, Any] | None:
    """A score with the words of its tooltip; None where the pair was not judged."""
    if score is None:
        return None
    words = [f"n = {score['n']:.0f}"] if math.isfinite(score["n"]) else []
    words += [f"p = {score['p']:.2g}"] if math.isfinite(score["p"]) else []
    return score | {"hint": "; ".join([*words, *filter(None, [score["note"]])])}


def _reasons(scores: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Why cells are empty, each reason once with the cells it is of."""
    found: dict[str, list[str]] = {}
    for place, one in scores.items():
        if not math.isfinite(one["value"]) and one["note"]:
            found.setdefault(one["note"], []).append(place)
    return [(note, places[0] if len(places) == 1 else f"{len(places)} cells") for note, places in found.items()]
