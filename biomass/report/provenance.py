"""Where the numbers come from: the command, versions, the data's fingerprint, and what was skipped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from biomass.report.files import EVALUATION, read_json
from biomass.report.markup import render
from biomass.report.section import Section
from biomass.run_files import read_config

_ENVIRONMENT = "environment.json"  # of a training run, and of every tool with a model


def skipped(folder: Path, absent: Sequence[tuple[str, str]]) -> Section | str:
    """What is not on the page, and why.

    Args:
        folder: of the run.
        absent: title of a section and why it is not there.
    """
    about = read_json(folder / EVALUATION)
    notes, left = ([str(one) for one in about.get(key) or []] for key in ("notes", "skipped"))
    if not notes and not left and not absent:
        return "nothing"
    html = render("skipped", notes=notes, skipped=left, absent=absent)
    return Section("skipped", "What was taken, and what was skipped", html)


def provenance(folder: Path) -> Section:
    """How the run came about."""
    about = read_json(folder / EVALUATION)
    versions = about.get("versions") or read_json(folder / _ENVIRONMENT)
    roles = about.get("roles")
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
        roles=[(str(role), str(column)) for role, column in roles.items()] if isinstance(roles, Mapping) else [],
        versions=[(str(one), str(version)) for one, version in versions.items()]
        if isinstance(versions, Mapping)
        else [],
        config="" if config is None else OmegaConf.to_yaml(OmegaConf.create(config)),
    )
    return Section("provenance", "How it was made", html)


def _words(value: Any) -> str:
    """What a file says, as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
