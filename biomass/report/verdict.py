"""The verdict, in words, and how sure it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomass.report.files import EVALUATION, read_json
from biomass.report.markup import figure, percent, render
from biomass.report.own import sentences, told_by_training
from biomass.report.section import Section

_COLUMNS = {
    "word": "is it there",
    "share": "share of variance",
    "deviation": "size, in standard deviations of like wells",
    "reason": "what should be known",
}
"""What is known of an effect (:class:`biomass.judgement.effects.Effect`), as headings."""
_OMITTED = ("name", "least", "there")


def verdict(folder: Path) -> Section | str:
    """The section: what the judgement says, or what the run's own results say where it was not judged."""
    about = read_json(folder / EVALUATION)
    found = about.get("verdict")
    found = found if isinstance(found, Mapping) else {}
    said = sentences_of(about)
    own = sentences(folder)
    told = told_by_training(folder)
    if not said and not own:
        return "nothing was measured in this run"
    columns, rows = _effects(found.get("effects"))
    html = render("verdict", said=said, own=own, columns=columns, effects=rows, told=told)
    return Section("verdict", "Verdict", html)


def sentences_of(about: Mapping[str, Any]) -> list[str]:
    """The sentences of the verdict of ``evaluation.json``; none where it has none."""
    found = about.get("verdict")
    said = found.get("sentences") if isinstance(found, Mapping) else None
    return [str(one) for one in said] if isinstance(said, list) else []


def _effects(effects: Any) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What is known of effects, as a table: its columns, and for each effect a text in each of them."""
    if not isinstance(effects, Mapping):
        return [], []
    facts = {str(name): one if isinstance(one, Mapping) else {"": one} for name, one in effects.items()}
    keys = list(dict.fromkeys(key for one in facts.values() for key in one if key not in _OMITTED))
    rows = [(name, [_fact(key, one.get(key)) for key in keys]) for name, one in facts.items()]
    return [_COLUMNS.get(key, str(key).replace("_", " ")) for key in keys], rows


def _fact(key: str, value: Any) -> str:
    """A fact of an effect, as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return percent(value) if key == "share" else f"{value:.2g}" if key == "p" else figure(float(value))
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(float(value))
    if isinstance(value, list | tuple):
        return " – ".join(_text(one) for one in value)
    return "–" if value is None else str(value)
