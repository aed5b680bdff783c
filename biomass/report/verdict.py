"""The verdict, in words, and how sure it is."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomass.errors import DataError
from biomass.report.answers import answers
from biomass.report.files import EVALUATION, number, read_json
from biomass.report.judged import Judged, read_judged
from biomass.report.markup import percent, render
from biomass.report.own import sentences, told_by_training
from biomass.report.section import Section


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
    short = answers(found, _judged(folder)) if said else []
    html = render("verdict", answers=short, said=said, own=own, columns=columns, effects=rows, told=told)
    return Section("verdict", "Verdict", html)


def _judged(folder: Path) -> Judged | None:
    """The factorial table; None where it cannot be read, which its own section says."""
    try:
        judged = read_judged(folder)
    except DataError:
        return None
    return judged if isinstance(judged, Judged) else None


def sentences_of(about: Mapping[str, Any]) -> list[str]:
    """The sentences of the verdict of ``evaluation.json``; none where it has none."""
    found = about.get("verdict")
    said = found.get("sentences") if isinstance(found, Mapping) else None
    return [str(one) for one in said] if isinstance(said, list) else []


def _effects(effects: Any) -> tuple[list[str], list[tuple[str, list[dict[str, str]]]]]:
    """What is known of effects, as a table: pairs of statistics and correction, and each effect under all of them."""
    if not isinstance(effects, Mapping):
        return [], []
    pairs = {str(pair): found for pair, found in effects.items() if isinstance(found, Mapping)}
    names = dict.fromkeys(str(name) for found in pairs.values() for name in found)
    return list(pairs), [(name, [_cell(found.get(name)) for found in pairs.values()]) for name in names]


def _cell(effect: Any) -> dict[str, str]:
    """What a judgement says of an effect (:class:`biomass.judgement.effects.Effect`)."""
    facts = effect if isinstance(effect, Mapping) else {}
    share, p = number(facts.get("share")), number(facts.get("p"))
    size = [percent(max(share, 0))] if math.isfinite(share) else []
    size += [f"p {p:.2g}"] if math.isfinite(p) else []
    return {"word": str(facts.get("word") or "–"), "size": ", ".join(size), "reason": str(facts.get("reason") or "")}
