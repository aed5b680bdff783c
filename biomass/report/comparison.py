"""Several runs side by side: verdicts and metrics as columns, and what the runs differ in."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from biomass.errors import BiomassError, one_line
from biomass.evaluation.comparison import differences
from biomass.judgement.results import NULL_ROWS
from biomass.report.answers import Answer, answers
from biomass.report.curves import compare_curves
from biomass.report.factorial import heat_map
from biomass.report.files import EVALUATION, PAGE, read_json
from biomass.report.judged import Judged, goodness, read_judged
from biomass.report.markup import figure, percent, render, shade
from biomass.report.own import Told, sentences, told_by_training
from biomass.report.section import Section
from biomass.report.verdict import sentences_of
from biomass.run_files import read_config

_OWN = ("run_name", "resume")  # keys that say nothing of what a run is


def compared(folders: Sequence[Path], place: Path, left_out: Sequence[tuple[str, str]] = ()) -> list[Section]:
    """All sections of the page of several runs.

    Args:
        folders: of the runs.
        place: folder of the page, from which it leads to the pages of the runs.
        left_out: what else was named, and why it is not there.
    """
    titles = run_titles(folders)
    skipped = list(left_out)
    judged: dict[str, Judged] = {}
    told: dict[str, list[Told]] = {}
    said: list[list[str]] = []
    short: list[dict[str, Answer]] = []
    for title, folder in zip(titles, folders, strict=True):
        said.append([])
        short.append({})
        try:
            about = read_json(folder / EVALUATION)
            said[-1] = sentences_of(about) or sentences(folder)
            told[title] = told_by_training(folder)
            one = read_judged(folder)
            if isinstance(one, Judged):
                judged[title] = one
                short[-1] = {each.about: each for each in answers(about.get("verdict"), one)}
            elif not told[title]:
                skipped.append((title, one))
        except BiomassError as error:
            skipped.append((title, one_line(error)))
    links = [_link(folder, place) for folder in folders]
    asked = dict.fromkeys(chain.from_iterable(short))
    rows = [(about, [one.get(about) for one in short]) for about in asked]
    verdicts = render("verdicts", runs=list(zip(titles, links, said, strict=True)), rows=rows)
    sections = [Section("verdict", "Verdicts", verdicts)]
    sections += [_metrics(judged)] if judged else []
    sections += [_trainings(titles, told)] if any(told.values()) else []
    curves = compare_curves(dict(zip(titles, folders, strict=True)))
    sections += [curves] if isinstance(curves, Section) else []
    sections += [_differences(titles, folders, skipped)]
    if skipped:
        sections.append(Section("skipped", "What was skipped", render("skipped", notes=[], skipped=[], absent=skipped)))
    return sections


def run_titles(folders: Sequence[Path]) -> list[str]:
    """What runs are called: their folders' names, or whole paths where two share a name.

    >>> run_titles([Path("runs/a"), Path("old/a"), Path("runs/b")])
    ['runs/a', 'old/a', 'b']
    """
    names = [folder.resolve().name for folder in folders]
    return [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]


def _link(folder: Path, place: Path) -> str:
    """Where the page of a run is, as seen from that of all; empty where it has none."""
    page = folder / PAGE
    return quote(Path(os.path.relpath(page, place)).as_posix()) if page.exists() else ""


def _metrics(judged: Mapping[str, Judged]) -> Section:
    """A table a metric: pairs of statistics and correction × runs."""
    metrics = {key: about for one in judged.values() for key, about in one.metrics.items()}
    main = set(chain.from_iterable(one.main() for one in judged.values()))
    refit_only = set(chain.from_iterable(one.refit_only for one in judged.values()))
    pairs = list(dict.fromkeys(pair for one in judged.values() for pair in one.pairs))
    pairs.sort(key=lambda pair: pair[0] in NULL_ROWS)
    plain = {word: next(pair for pair in pairs if pair[0] == word) for word, _ in pairs if word in NULL_ROWS}
    pairs = [pair for pair in pairs if pair[0] not in NULL_ROWS or pair == plain[pair[0]]]  # null rows uncorrected
    tables = []
    for key, about in metrics.items():
        scores = {
            (pair, title): score
            for title, one in judged.items()
            if key in one.metrics
            for pair, score in one.of(key).items()
            if pair in pairs
        }
        places = goodness(np.array([score["value"] for score in scores.values()]), about.better)
        for score, good in zip(scores.values(), places, strict=True):
            score["goodness"] = good
        rows = [
            (f"{pair[0]} · {pair[1]}{' (refit only)' if pair[1] in refit_only else ''}", pair[0] in NULL_ROWS, pair)
            for pair in pairs
            if any((pair, title) in scores for title in judged)
        ]
        table = heat_map(key, about, rows, [(title, False, title) for title in judged], scores)
        tables.append(table | {"main": key in main, "corner": "statistics · correction"})
    tables = [one for one in tables if one["told"]]
    data = {"options": [[one["key"], f"{one['family']}: {one['title']}"] for one in tables]}
    lead = (
        "The darker a cell, the better among all runs. Runs can be compared where their data are the same; see below."
    )
    html = render("factorial", tables=tables, refit_only=False, names={})
    return Section("metrics", "Metrics", html, "factorial", data, lead)


def _trainings(titles: Sequence[str], told: Mapping[str, Sequence[Told]]) -> Section:
    """What runs measured while they were trained: splits' metrics × runs."""
    found = {(one.split, one.metric): one for runs in told.values() for one in runs}
    rows = []
    of = {title: {(one.split, one.metric): one for one in told.get(title, ())} for title in titles}
    for (split, metric), any_of_them in found.items():
        ones = [of[title].get((split, metric)) for title in titles]
        values = np.array([math.nan if one is None else one.last for one in ones])
        differ = len(set(values[np.isfinite(values)])) > 1
        good = goodness(values, any_of_them.better) if differ else values * np.nan
        say = percent if any_of_them.share else figure
        cells = [(say(value), shade(place)) for value, place in zip(values, good, strict=True)]
        rows.append((f"{split} {metric}", any_of_them.means, cells))
    html = render("trainings", titles=titles, rows=rows)
    return Section("training", "What the runs measured", html, lead="Of the last evaluation. The darker, the better.")


def _differences(titles: Sequence[str], folders: Sequence[Path], skipped: list[tuple[str, str]]) -> Section:
    """What is not the same in all runs: settings, data and versions."""
    settings = []
    for title, folder in zip(titles, folders, strict=True):
        try:
            settings.append(_settings(folder))
        except BiomassError as error:
            settings.append({})
            skipped.append((title, one_line(error)))
    keys = sorted({key for one in differences(settings) for key in one})
    rows = [(key, ["" if one.get(key) is None else _text(one[key]) for one in settings]) for key in keys]
    html = render("differences", titles=titles, rows=rows)
    return Section("differences", "What the runs differ in", html)


def _settings(folder: Path) -> dict[str, Any]:
    """All that makes a run what it is, flat."""
    about = read_json(folder / EVALUATION)
    found = {key: about.get(key) for key in ("command", "table", "fingerprint", "rows", "features")}
    versions = about.get("versions") or read_json(folder / "environment.json")
    config = {key: value for key, value in (read_config(folder) or {}).items() if key not in _OWN}
    return found | _flat({"versions": versions} | config)


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    """A tree under dotted names.

    >>> _flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if not isinstance(tree, Mapping):
        return {above: tree}
    parts = [_flat(value, f"{above}.{key}" if above else str(key)) for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
