"""What was found, in words: is there a batch effect, is it gone, was biology lost on the way, and what to use.

Every sentence follows from a number by a rule below. What a design cannot tell is said as such. Changes are named only
where intervals leave no doubt: that of the difference where both were measured on the same units, otherwise those of
the two values, which must not overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from biomass.judgement.effects import BATCH, NONE, PLACES, TECHNICAL, UNKNOWN, Effect
from biomass.judgement.recommend import (
    FAMILIES,
    Difference,
    Pair,
    Recommendation,
    Value,
    named,
    pairs_of,
    recommend,
    values_of,
)
from biomass.judgement.results import COUNTED
from biomass.judgement.scores import Measured, interval
from biomass.judgement.wording import (
    PREDICTED,
    THINGS,
    all_the_same,
    apart_with,
    between,
    cautions,
    chance_of,
    differ,
    listed,
    not_told,
    number,
    percent,
    there_is,
    told_apart,
)

_BECAME = {
    "rose": "are found better",
    "fell": "are found less well",
    "lost": "are found no more",
    "same": "are found as before",
    "absent": "are found neither before nor after",
}


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        sentences: the verdict first.
        named: effects that nobody wants and that are there, before anything was done.
        remaining: those that are there afterwards; the same where nothing was done.
        before: what was looked at first, (statistics, correction).
        after: what it was compared with; None if nothing.
        recommendation: None where there was no choice.
        effects: "statistics · correction" → effect → what :class:`.effects.Effect` holds; for JSON.
    """

    sentences: tuple[str, ...]
    named: tuple[str, ...]
    remaining: tuple[str, ...]
    before: Pair | None
    after: Pair | None
    recommendation: Recommendation | None
    effects: dict[str, dict[str, dict[str, Any]]]


def paired_difference(before: Measured, after: Measured, seed: int = 0) -> Difference:
    """The difference of two values that were measured on the same units, by drawing the same groups for both.

    Only for means without weights; units that either cannot judge are left out.

    >>> groups = np.array([0, 0, 1, 1])
    >>> first, then = (Measured(np.array(values), groups, 0.0) for values in ([0.0, 1, 0, 1], [0.5, 1.5, 0.5, 1.5]))
    >>> paired_difference(first, then)
    (0.5, 0.5, 0.5)
    """
    change = after.values - before.values
    known = np.isfinite(change)
    low, high = interval(change[known], np.ones(known.sum()), before.groups[known], seed)
    return float(change[known].mean()) if known.any() else np.nan, low, high


def say(
    table: pd.DataFrame,
    effects: Mapping[Pair, Mapping[str, Effect]],
    before: Pair | None = None,
    after: Pair | None = None,
    differences: Mapping[str, Difference] | None = None,
    titles: Mapping[str, str] | None = None,
    choice: Recommendation | None = None,
) -> Verdict:
    """The verdict.

    Args:
        table: as ``table.csv``: statistics, correction, refit_only, metric, value, low, high, null, p, n, note.
        effects: (statistics, correction) → what :func:`.effects.find_effects` found in these profiles.
        before: what is looked at first; the first of the table if left out.
        after: what it is compared with; what is recommended, if left out.
        differences: key of a metric → its paired difference, where it is known.
        titles: correction → what to call it.
        choice: what is recommended, where it is known already.

    >>> row = {"statistics": "profiles", "correction": "none", "refit_only": False, "metric": "plate_predicted"}
    >>> table = pd.DataFrame([row | {"value": 0.91, "low": 0.88, "high": 0.94, "null": 0.04, "p": 0.001, "n": 96}])
    >>> found = {"plate": Effect("plate", "strong", share=0.3, p=0.001)}
    >>> for sentence in say(table, {("profiles", "none"): found}).sentences:
    ...     print(sentence)
    There is a batch effect: plates differ strongly (30 % of the variance, p = .001).
    Plates can be told apart with 91 % (95 % interval 88 to 94 %; chance 4 %).
    """
    pairs = pairs_of(table)
    before = before or (pairs[0] if pairs else next(iter(effects), None))
    if choice is None and before is not None and len(pairs) > 1:
        choice = recommend(table, before, titles)
    if after is None and choice is not None and choice.best != before:
        after = choice.best
    first = dict(effects.get(before, {})) if before is not None else {}
    then = dict(effects.get(after, {})) if after is not None else {}
    named_first = tuple(name for name in TECHNICAL if name in first and first[name].there)
    named_then = tuple(name for name in TECHNICAL if name in then and then[name].there) if then else named_first
    values = values_of(table, before), values_of(table, after)
    word = named(after, before, titles)
    changes = _changes(values, differences or {})
    sentences = [
        *([_together(first, then, changes, word, told_apart(values[1]))] if then else []),
        there_is(first, told_apart(values[0])),
        *(
            apart_with(key, phrase, values, word, first.get(key.partition("_")[0]))
            for key, phrase in PREDICTED.items()
            if key in values[0]
        ),
        *_biology(values, differences or {}, word),
        *_afterwards(first, then, word),
        *not_told(first),
        *cautions(first),
        *_count_alone(table, values[1] or values[0]),
        *([choice.sentence] if choice is not None else []),
    ]
    return Verdict(
        tuple(filter(None, sentences)),
        named_first,
        named_then,
        before,
        after,
        choice,
        {" · ".join(pair): {name: _plain(effect) for name, effect in found.items()} for pair, found in effects.items()},
    )


def _plain(effect: Effect) -> dict[str, Any]:
    """For JSON, which knows no NaN."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in asdict(effect).items()
    }


def _changes(
    values: tuple[dict[str, Value], dict[str, Value]], differences: Mapping[str, Difference]
) -> dict[str, str]:
    """Family → what became of its first metric that both have: rose, fell, lost, same, absent."""
    return {
        name: _compared(values[0][key], values[1][key], differences.get(key))
        for name, family in FAMILIES.items()
        if (key := next((key for key in family if key in values[0] and key in values[1]), None)) is not None
    }


def _change(changes: Mapping[str, str]) -> str:
    """Of all families: what they agree on, or ``mixed``; empty where nothing is known."""
    found = set(changes.values()) - {"absent"}
    if not found:
        return "absent" if changes else ""
    if found <= {"fell", "lost"} and len(found) > 1:
        return "fell"
    return found.pop() if len(found) == 1 else "mixed"


def _compared(one: Value, other: Value, difference: Difference | None) -> str:
    """Above chance, which need not be the same for both."""
    there = [not (value.value if np.isnan(value.low) else value.low) <= value.null for value in (one, other)]
    if not any(there):
        return "absent"
    ends = [[value.above_chance(end) for end in (value.low, value.high)] for value in (one, other)]
    low, high = (ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]) if difference is None else difference[1:]
    if low > 0:
        return "rose"
    if high < 0:
        return "fell" if there[1] else "lost"
    return "same"


def _biology(
    values: tuple[dict[str, Value], dict[str, Value]], differences: Mapping[str, Difference], word: str
) -> list[str]:
    """A sentence on replicates, and one on mechanisms."""
    said = []
    for family in FAMILIES.values():
        both = [key for key in family if key in values[0] and (not values[1] or key in values[1])]
        if not both:
            continue
        key, one = both[0], values[0][both[0]]
        phrase = f"{family[key][0].upper()}{family[key][1:]}"
        if not values[1]:
            doubt = "" if not np.isfinite(one.low) or one.low > one.null else ": no better than chance"
            said.append(f"{phrase} is {number(one.value)} ({between(one, number)}{chance_of(one, number)}){doubt}.")
            continue
        other = values[1][key]
        how = _compared(one, other, differences.get(key))
        verb = {"rose": "rose", "fell": "fell", "lost": "fell to chance,"}.get(how, "went")
        doubt = {"same": ": no sure change", "absent": ": no better than chance before and after"}.get(how, "")
        chance = chance_of(one, number)
        if not np.isclose(one.null, other.null, atol=0.005):
            chance += f" before, {number(other.null)} after"
        said.append(
            f"{phrase} {verb} from {number(one.value)} to {number(other.value)} after {word} "
            f"({between(other, number)}{chance}){doubt}."
        )
    return said


def _together(
    first: Mapping[str, Effect],
    then: Mapping[str, Effect],
    changes: Mapping[str, str],
    word: str,
    apart: Sequence[str],
) -> str:
    """Effects and biology in one sentence."""
    there = [name for name in TECHNICAL if name in first and first[name].there]
    what = "batch effect" if not there or set(there) & set(BATCH) else "position effect"
    group = BATCH if what == "batch effect" else PLACES
    left = [
        name for name in group if name in then and (then[name].there or (name in there and then[name].word == UNKNOWN))
    ]
    new = [name for name in TECHNICAL if name in then and then[name].there and not there]
    gone = False
    if new:
        state = f"After {word} there is an effect that was not there before: {listed([THINGS[n] for n in new])} differ"
    elif not there:
        state = f"There was no batch effect to remove, and {word} brought none"
    elif not left and apart and group == BATCH:
        state = f"After {word} the {what} is gone from the means{all_the_same(apart)}"
    elif not left:
        state, gone = f"After {word} the {what} is gone", True
    elif all(then[name].word == UNKNOWN for name in left):
        return f"After {word} it cannot be told whether the {what} is gone: {then[left[0]].reason}."
    else:
        was, now = (_sum(found, group) for found in (first, then))
        state = f"After {word} the {what} is {'smaller, but not gone' if now < was / 2 else 'still there'}"
        state += f" ({percent(was)} % of the variance before, {percent(now)} % after)"
    ending = {
        "lost": ", and so is the biology" if gone else "; the biology is gone",
        "fell": ", but biology was lost with it" if gone else "; biology was lost",
        "rose": ", and biology is found better",
        "mixed": f"; of biology, {listed([f'{name} {_BECAME[how]}' for name, how in changes.items()])}",
        "same": ", and the biology stays" if gone else "; the biology is as before",
        "absent": "; biology is seen neither before nor after",
        "": "; what became of the biology cannot be told",
    }[_change(changes)]
    return f"{state}{ending}."


def _sum(found: Mapping[str, Effect], names: Sequence[str]) -> float:
    """The share of the variance of the effects that are there."""
    return sum(found[name].share for name in names if name in found and found[name].there)


def _afterwards(first: Mapping[str, Effect], then: Mapping[str, Effect], word: str) -> list[str]:
    """Which effects are left, new, or gone."""
    if not then:
        return []
    parts = []
    for name in TECHNICAL:
        was, now = first.get(name), then.get(name)
        before = was is not None and was.there
        if now is not None and now.there:
            about = f"before {percent(was.share)} %" if was is not None and before else "not before"
            parts.append(f"{differ(now)[:-1]}; {about})")
        elif before and now is not None and now.word == NONE:
            beyond = " beyond what their plates make" if name == "experiment" else ""
            parts.append(f"{THINGS[name]} no longer differ{beyond}")
    return [f"After {word}, {listed(parts)}."] if parts else []


def _count_alone(table: pd.DataFrame, values: Mapping[str, Value]) -> list[str]:
    """Whether the number of cells does as well."""
    counted = {} if table.empty else values_of(table[table["statistics"] == COUNTED], _first_pair(table))
    for family in FAMILIES.values():
        key = next((key for key in family if key in values and key in counted), None)
        if key is None or not (_sure(values[key]) or _sure(counted[key])):
            continue
        if values[key].low <= counted[key].value:
            return [f"The number of cells alone does as well: {family[key]} {number(counted[key].value)}."]
    return []


def _sure(one: Value) -> bool:
    """Whether a value is above chance."""
    return one.low > one.null


def _first_pair(table: pd.DataFrame) -> Pair | None:
    """The first row of cell counts."""
    corrections = table.loc[table["statistics"] == COUNTED, "correction"]
    return None if corrections.empty else (COUNTED, str(corrections.iloc[0]))
