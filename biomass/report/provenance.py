"""Where the numbers come from: the command, versions, the data's fingerprint, and what was skipped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from biomass.errors import DataError
from biomass.report.files import EVALUATION, read_json
from biomass.report.markup import render
from biomass.report.section import Section
from biomass.run_files import read_config

_ENVIRONMENT = "environment.json"  # of a training run, and of every tool with a model


def skipped(folder: Path, absent: Sequence[tuple[str, str]]) -> Section | None:
    """What is not on the page, and why.

    Args:
        folder: of the run.
        absent: title of a section and why it is not there.

    Returns:
        The section; None where all is there and nothing is to be said.
    """
    try:
        about = read_json(folder / EVALUATION)
    except DataError:  # whose reason is among the others
        about = {}
    notes, left = ([str(one) for one in _listed(about.get(key))] for key in ("notes", "skipped"))
    if not notes and not left and not absent:
        return None
    html = render("skipped", notes=notes, skipped=_merged(left), absent=absent)
    return Section("skipped", "What was taken, and what was skipped", html)


def _merged(lines: Sequence[str]) -> list[str]:
    """Lines on the corrections of one table that have one reason, as one.

    >>> _merged(["a, x: why", "a, y: why", "b: because"])
    ['a (x, y): why', 'b: because']
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        what, colon, why = line.partition(": ")
        table, comma, correction = what.partition(", ")
        found.setdefault((table, colon + why, "") if comma and colon else (line, "", line), []).append(correction)
    return [
        line or (f"{table}, {of[0]}{why}" if len(of) == 1 else f"{table} ({', '.join(of)}){why}")
        for (table, why, line), of in found.items()
    ]


def provenance(folder: Path) -> Section:
    """How the run came about."""
    about = read_json(folder / EVALUATION)
    versions = about.get("versions") or read_json(folder / _ENVIRONMENT)
    facts = [
        ("run", folder.name),
        ("table", _words(about.get("table"))),
        ("rows", _count(about.get("rows"))),
        ("features", _count(about.get("features"))),
        ("fingerprint of the data", _words(about.get("fingerprint"))),
    ]
    config = read_config(folder)
    html = render(
        "provenance",
        command=_words(about.get("command")),
        facts=[(what, value) for what, value in facts if value],
        roles=_items(about.get("roles")),
        versions=_items(versions),
        config="" if config is None else yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )
    return Section("provenance", "How it was made", html)


def _listed(values: Any) -> list[Any]:
    """What a file lists; nothing where something else stands there."""
    return values if isinstance(values, list) else []


def _items(values: Any) -> list[tuple[str, str]]:
    """The items of an object of a file, as text."""
    return [(str(key), _words(value)) for key, value in values.items()] if isinstance(values, Mapping) else []


def _words(value: Any) -> str:
    """What a file says, as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
