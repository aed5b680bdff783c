"""The verdict, in words, and how sure it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomass.report.files import EVALUATION, read_json
from biomass.report.markup import figure, render
from biomass.report.own import sentences, told_by_training
from biomass.report.section import Section


def verdict(folder: Path) -> Section | str:
    """The section: what the judgement says, or what the run's own results say where it was not judged."""
    about = read_json(folder / EVALUATION)
    found = about.get("verdict")
    found = found if isinstance(found, Mapping) else {}
    said = [str(one) for one in found.get("sentences") or []]
    own = sentences(folder)
    told = told_by_training(folder)
    if not said and not own:
        return "nothing was measured in this run"
    effects = found.get("effects")
    rows = [(str(name), _facts(one)) for name, one in effects.items()] if isinstance(effects, Mapping) else []
    html = render("verdict", said=said, own=own, effects=rows, told=told)
    return Section("verdict", "Verdict", html)


def _facts(effect: Any) -> list[tuple[str, str]]:
    """What is known of an effect, as words."""
    if not isinstance(effect, Mapping):
        return [("", _text(effect))]
    return [(str(name).replace("_", " "), _text(value)) for name, value in effect.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(float(value))
    if isinstance(value, list | tuple):
        return " – ".join(_text(one) for one in value)
    return "–" if value is None else str(value)
