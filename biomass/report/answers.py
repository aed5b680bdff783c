"""The verdict at a glance: four questions, each with a short answer and how sure it is.

The sentences of the verdict say the same at length; both follow from the same numbers by the same rules.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from biomass.judgement.effects import BATCH, NONE, PLACES, STRONG, UNKNOWN, WEAK
from biomass.judgement.recommend import FAMILIES, Pair, Value, named, values_of
from biomass.judgement.wording import listed, told_apart
from biomass.report.called import correction
from biomass.report.files import number
from biomass.report.judged import Judged
from biomass.report.markup import figure, percent, span

Found = Mapping[str, Mapping[str, Any]]
"""Effects of a pair, by name."""


class Answer(NamedTuple):
    """An answer.

    Attributes:
        about: one or two words, the same for all runs.
        question: what a reader wants to know.
        short: a few words.
        long: the numbers behind it.
    """

    about: str
    question: str
    short: str
    long: str


def answers(verdict: Any, judged: Judged | None) -> list[Answer]:
    """What is known of the four questions.

    Args:
        verdict: that of ``evaluation.json``.
        judged: the factorial table; None where it cannot be read.
    """
    if not isinstance(verdict, Mapping):
        return []
    before, after = _pair(verdict.get("before")), _pair(verdict.get("after"))
    effects = verdict.get("effects")
    if before is None or not isinstance(effects, Mapping):
        return []
    first, then = (_found(effects.get(" · ".join(pair))) if pair else {} for pair in (before, after))
    table = pd.DataFrame(columns=["statistics", "correction"]) if judged is None else judged.scores
    values = values_of(table, before), values_of(table, after)
    titles = {} if judged is None else {key: about.title for key, about in judged.metrics.items()}
    found = [
        _is_there(first, before, after),
        _is_gone(first, then, before, after, told_apart(values[1])) if after and then else None,
        _biology(values, titles),
        _use(verdict.get("recommendation"), before),
    ]
    return [one for one in found if one is not None]


def _is_there(first: Found, before: Pair, after: Pair | None) -> Answer | None:
    question = f"Is there a batch effect{f' in {named(before)}' if after else ''}?"
    known = [name for name in BATCH if first.get(name, {}).get("word") in (NONE, WEAK, STRONG)]
    there = [name for name in known if first[name]["word"] != NONE]
    places = [name for name in PLACES if first.get(name, {}).get("word") in (WEAK, STRONG)]
    also = f"; a position effect, too: {listed([_size(name, first[name]) for name in places])}" if places else ""
    if there:
        short = f"Yes, {STRONG if any(first[name]['word'] == STRONG for name in there) else WEAK}"
        return Answer("batch effect", question, short, "; ".join(_size(name, first[name]) for name in there) + also)
    if known:
        return Answer(
            "batch effect", question, "None was found", "; ".join(_size(name, first[name]) for name in known) + also
        )
    unknown = next((str(one.get("reason") or "") for one in first.values() if one.get("word") == UNKNOWN), None)
    return None if unknown is None else Answer("batch effect", question, "Cannot be told", unknown + also)


def _is_gone(first: Found, then: Found, before: Pair, after: Pair, apart: list[str]) -> Answer | None:
    there = [name for name in BATCH if first.get(name, {}).get("word") in (WEAK, STRONG)]
    now = [name for name in BATCH if then.get(name, {}).get("word") in (WEAK, STRONG)]
    lost = [name for name in there if then.get(name, {}).get("word") in (None, UNKNOWN)]
    if not there and not now:
        return None
    question = f"Is it gone after {named(after, before)}?"
    sizes = "; ".join(_size(name, then[name]) for name in BATCH if name in then)
    if not there:
        return Answer("afterwards", question, "It is new", sizes)
    if not now and lost:
        return Answer("afterwards", question, "Cannot be told", str(then.get(lost[0], {}).get("reason") or sizes))
    if now or lost:
        was, left = (
            sum(number(of[name].get("share")) for name in names) for of, names in ((first, there), (then, now))
        )
        short = "Smaller, but not gone" if left < was / 2 else "No"
        return Answer("afterwards", question, short, f"{sizes}; before {percent(was)} of the variance")
    if apart:
        return Answer("afterwards", question, "From the means", f"{listed(apart)} can still be told apart; {sizes}")
    return Answer("afterwards", question, "Yes", sizes)


def _biology(values: tuple[Mapping[str, Value], Mapping[str, Value]], titles: Mapping[str, str]) -> Answer | None:
    """Of each family of biology, the first metric that is known of both."""
    short, long = [], []
    for name, family in FAMILIES.items():
        key = next((key for key in family if key in values[0] and (not values[1] or key in values[1])), None)
        if key is not None:
            one, other = values[0][key], values[1].get(key)
            last = other or one
            short.append(f"{name} {figure(one.value)}{f' → {figure(other.value)}' if other else ''}")
            chance = f"chance {figure(last.null)}" if math.isfinite(last.null) else ""
            sure = ", ".join(filter(None, [span(last.low, last.high), chance]))
            long.append(f"{titles.get(key, key)}: {'after ' if other else ''}{sure}")
    if not short:
        return None
    question = "What became of the biology?" if values[1] else "Is biology found?"
    return Answer("biology", question, "; ".join(short), "; ".join(long))


def _use(recommendation: Any, before: Pair) -> Answer | None:
    """What is best, and what is best for plates to come."""
    if not isinstance(recommendation, list) or len(recommendation) < 2:
        return None
    best, lasting = _pair(recommendation[0]), _pair(recommendation[1])
    if best is None:
        return None
    title = correction(best[1]).title
    long = [f"{best[1]}: {title}"] if title else []
    if lasting == best:
        long.append("holds for plates that come later, too")
    elif lasting is not None:
        long.append(f"for plates that come later: {named(lasting)}")
    return Answer("what to use", "What to use?", "What you have" if best == before else named(best), "; ".join(long))


def _size(name: str, effect: Mapping[str, Any]) -> str:
    """How large an effect is, and how sure."""
    share, p = number(effect.get("share")), number(effect.get("p"))
    parts = [f"{percent(max(0.0, share))} of the variance"] if math.isfinite(share) else []
    parts += [f"p {p:.2g}"] if math.isfinite(p) else []
    return f"{name} {', '.join(parts)}" if parts else f"{name}: {effect.get('reason') or effect.get('word')}"


def _found(effects: Any) -> Found:
    """Effects of a pair as a file tells them; what is none is left out."""
    return {str(k): v for k, v in effects.items() if isinstance(v, Mapping)} if isinstance(effects, Mapping) else {}


def _pair(value: Any) -> Pair | None:
    """Statistics and correction of a file."""
    return (str(value[0]), str(value[1])) if isinstance(value, list) and len(value) == 2 else None
