"""The factorial table: statistics of the encoder × corrections of profiles, a metric at a time, as a heat map."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomass.report.judged import NULL_ROWS, Judged, read_judged
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
    html = render("factorial", tables=tables, refit_only=bool(judged.refit_only))
    return Section("factorial", "Statistics × corrections", html, "factorial", data, LEAD)


def table_of(judged: Judged, key: str) -> dict[str, Any]:
    """A metric's heat map: what the template needs."""
    about, scores = judged.metrics[key], judged.of(key)
    columns = list(dict.fromkeys(correction for _, correction in judged.pairs))
    rows = [
        {
            "statistics": statistics,
            "floor": statistics in NULL_ROWS,
            "cells": [_cell(scores.get((statistics, correction))) for correction in columns],
        }
        for statistics in dict.fromkeys(statistics for statistics, _ in judged.pairs)
    ]
    return {
        "key": key,
        "columns": [(one, one in judged.refit_only) for one in columns],
        "rows": rows,
        "missing": _reasons(list(scores.values())),
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


def _reasons(scores: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Why cells are empty, each reason once with the pairs it is of."""
    found: dict[str, list[str]] = {}
    for one in scores:
        if not math.isfinite(one["value"]) and one["note"]:
            found.setdefault(one["note"], []).append(f"{one['statistics']} · {one['correction']}")
    return [(note, pairs[0] if len(pairs) == 1 else f"{len(pairs)} cells") for note, pairs in found.items()]
