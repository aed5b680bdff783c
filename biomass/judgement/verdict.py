"""What was found, in words: is there a batch effect, is it gone, was biology lost on the way, and what to use.

Every sentence follows from a number by a rule below. What a design cannot tell is said as such. Changes are named only
where intervals leave no doubt: that of the difference where both were measured on the same units, otherwise those of
the two values, which must not overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from biomass.judgement.effects import STRONG, TECHNICAL, UNKNOWN, Effect
from biomass.judgement.recommend import Pair, Recommendation, named, pairs_of, recommend
from biomass.judgement.results import COUNTED
from biomass.judgement.scores import Measured, interval

REPLICATES: Mapping[str, str] = {
    "map_other_plate": "replicate retrieval across plates",
    "map_other_experiment": "replicate retrieval across experiments",
    "top1_plate": "the share of wells whose nearest well on other plates is a replicate",
    "map_same_plate": "replicate retrieval within plates",
}
MECHANISMS: Mapping[str, str] = {
    "nscb": "the share of treatments whose nearest one of another compound and experiment has their mechanism",
    "nsc": "the share of treatments whose nearest one of another compound has their mechanism",
    "map_mechanism": "retrieval of compounds of the same mechanism",
}
PREDICTED: Mapping[str, str] = {
    "plate_predicted": "Plates can be told apart",
    "experiment_predicted": "Experiments can be told apart",
}
"""Key of a metric → how it is called in a sentence; the first that is known is taken (all, of PREDICTED)."""

BIOLOGY = (*REPLICATES, *MECHANISMS, "variance_treatment")
"""Metrics of biology, the one that says most first."""

_THINGS = {
    "plate": "plates", "experiment": "experiments", "edge": "wells at the edge", "row": "rows", "column": "columns",
}  # fmt: skip

Difference: TypeAlias = tuple[float, float, float]
"""Of two values, after less before, with the ends of its interval."""


class Value(NamedTuple):
    """A row of ``table.csv``."""

    value: float
    low: float
    high: float
    null: float
    n: int


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
) -> Verdict:
    """The verdict.

    Args:
        table: as ``table.csv``: statistics, correction, refit_only, metric, value, low, high, null, p, n, note.
        effects: (statistics, correction) → what :func:`.effects.find_effects` found in these profiles.
        before: what is looked at first; the first of the table if left out.
        after: what it is compared with; what is recommended, if left out.
        differences: key of a metric → its paired difference, where it is known.

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
    choice = recommend(table, BIOLOGY, before) if before is not None and len(pairs) > 1 else None
    if after is None and choice is not None and choice.best != before:
        after = choice.best
    first = dict(effects.get(before, {})) if before is not None else {}
    then = dict(effects.get(after, {})) if after is not None else {}
    named_first = tuple(name for name in TECHNICAL if name in first and first[name].there)
    named_then = tuple(name for name in TECHNICAL if name in then and then[name].there) if then else named_first
    values = _values(table, before), _values(table, after)
    word = named(after, before)
    change = _change(values, differences or {})
    sentences = [
        *([_together(first, then, change, word)] if then else []),
        _there(first),
        *(_told(key, phrase, values, word) for key, phrase in PREDICTED.items() if key in values[0]),
        *_biology(values, differences or {}, word),
        *_afterwards(first, then, word),
        *_unknown(first),
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


def _values(table: pd.DataFrame, pair: Pair | None) -> dict[str, Value]:
    """Metric → what was measured, of those that could be judged."""
    if pair is None or table.empty:
        return {}
    own = table[(table["statistics"] == pair[0]) & (table["correction"] == pair[1])]
    own = own[np.isfinite(own["value"].astype(float))]
    numbers = own[["value", "low", "high", "null"]].to_numpy(float).tolist()
    count = own["n"].astype(int).tolist()
    return {key: Value(*row, n) for key, row, n in zip(own["metric"], numbers, count, strict=True)}


# How numbers are written


def _percent(value: float) -> str:
    number = 100 * value
    return f"{number:.0f}" if abs(number) >= 1 or number == 0 else f"{number:.1f}"


def _number(value: float) -> str:
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _p(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {f'{value:.2g}'.removeprefix('0')}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


# Which effects there are


def _there(found: Mapping[str, Effect]) -> str:
    """What was found, in one sentence."""
    looked = [found[name] for name in TECHNICAL if name in found]
    there = [effect for effect in looked if effect.there]
    if there:
        batch = any(effect.name in TECHNICAL[:2] for effect in there)
        place = any(effect.name in TECHNICAL[2:] for effect in there)
        what = "a batch effect" if batch else "a position effect"
        what += " and a position effect" if batch and place else ""
        return f"There is {what}: {_listed([_differ(effect) for effect in there])}."
    told = [_THINGS[effect.name] for effect in looked if effect.word != UNKNOWN]
    if not told:
        return f"Whether there is a batch effect cannot be told: {looked[0].reason}." if looked else ""
    return f"No batch effect was found: {_listed(told)} do not differ by more than chance makes them."


def _differ(effect: Effect) -> str:
    how = "strongly" if effect.word == STRONG else "a little"
    beyond = " beyond what their plates make" if effect.name == "experiment" else ""
    return f"{_THINGS[effect.name]} differ {how}{beyond} ({_percent(effect.share)} % of the variance, {_p(effect.p)})"


def _unknown(found: Mapping[str, Effect]) -> list[str]:
    """One sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for name in TECHNICAL:
        if name in found and found[name].word == UNKNOWN:
            reasons.setdefault(found[name].reason, []).append(_THINGS[name])
    if not any(name in found and found[name].word != UNKNOWN for name in TECHNICAL):
        reasons = dict(list(reasons.items())[1:])  # the first is said already
    said = [f"Whether {_listed(things)} differ cannot be told: {reason}." for reason, things in reasons.items()]
    plate = found.get("plate")
    if plate is not None and plate.there and plate.reason.startswith("every experiment is one plate"):
        said = [one for one in said if "experiments" not in one] + [f"{plate.reason[0].upper()}{plate.reason[1:]}."]
    return said


# What was told apart


def _told(key: str, phrase: str, values: tuple[dict[str, Value], dict[str, Value]], word: str) -> str:
    one, other = values[0][key], values[1].get(key)
    text = f"{phrase} with {_percent(one.value)} % ({_between(one, percent=True)}chance {_percent(one.null)} %)"
    if other is None:
        return f"{text}."
    chance = "" if np.isclose(one.null, other.null, atol=0.005) else f"chance {_percent(other.null)} %"
    spread = (_between(other, percent=True) + chance).rstrip("; ")
    return f"{text}; after {word} with {_percent(other.value)} %{f' ({spread})' if spread else ''}."


def _between(one: Value, percent: bool = False) -> str:
    if not (np.isfinite(one.low) and np.isfinite(one.high)):
        return "no interval: too few groups; "
    write = _percent if percent else _number
    return f"95 % interval {write(one.low)} to {write(one.high)}{' %' if percent else ''}; "


# What became of biology


def _change(values: tuple[dict[str, Value], dict[str, Value]], differences: Mapping[str, Difference]) -> str:
    """Of the first metric of biology that both have: rose, fell, lost, same, absent; empty where there is none."""
    key = next((key for key in BIOLOGY if key in values[0] and key in values[1]), None)
    return "" if key is None else _compared(values[0][key], values[1][key], differences.get(key))


def _compared(one: Value, other: Value, difference: Difference | None) -> str:
    there = [value.low > value.null for value in (one, other)]
    if not any(there):
        return "absent"
    low, high = (other.low - one.high, other.high - one.low) if difference is None else difference[1:]
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
    for family in (REPLICATES, MECHANISMS):
        both = [key for key in family if key in values[0] and (not values[1] or key in values[1])]
        if not both:
            continue
        key, one = both[0], values[0][both[0]]
        phrase = f"{family[key][0].upper()}{family[key][1:]}"
        if not values[1]:
            doubt = "" if not np.isfinite(one.low) or one.low > one.null else ": no better than chance"
            said.append(f"{phrase} is {_number(one.value)} ({_between(one)}chance {_number(one.null)}){doubt}.")
            continue
        other = values[1][key]
        how = _compared(one, other, differences.get(key))
        verb = {"rose": "rose", "fell": "fell", "lost": "fell to chance,"}.get(how, "went")
        doubt = {"same": ": no sure change", "absent": ": no better than chance before and after"}.get(how, "")
        said.append(
            f"{phrase} {verb} from {_number(one.value)} to {_number(other.value)} after {word} "
            f"({_between(other)}chance {_number(other.null)}){doubt}."
        )
    return said


# What a correction did


def _together(first: Mapping[str, Effect], then: Mapping[str, Effect], change: str, word: str) -> str:
    """Effects and biology in one sentence."""
    there = [name for name in TECHNICAL if name in first and first[name].there]
    left = [name for name in there if name in then and then[name].word != "none"]
    new = [name for name in TECHNICAL if name in then and then[name].there and name not in there]
    what = "batch effect" if not there or set(there) & set(TECHNICAL[:2]) else "position effect"
    if new and not there:
        state = f"After {word} there is a {what} that was not there before"
    elif not there:
        state = f"There was no {what} to remove, and {word} brought none"
    elif not left:
        state = f"After {word} the {what} is gone"
    elif all(then[name].word == UNKNOWN for name in left):
        return f"After {word} it cannot be told whether the {what} is gone: {then[left[0]].reason}."
    else:
        smaller = all(then[name].share < first[name].share / 2 for name in left)
        state = f"After {word} the {what} is {'smaller, but not gone' if smaller else 'still there'}"
    gone = bool(there) and not left
    ending = {
        "lost": ", and so is the biology" if gone else "; the biology is gone",
        "fell": ", but biology was lost with it" if gone else "; biology was lost",
        "rose": ", and replicates are found better",
        "same": ", and the biology stays" if gone else "; the biology is as before",
        "absent": "; biology is seen neither before nor after",
        "": "; what became of the biology cannot be told",
    }[change]
    return f"{state}{ending}."


def _afterwards(first: Mapping[str, Effect], then: Mapping[str, Effect], word: str) -> list[str]:
    """Which effects are left, or new."""
    left = [then[name] for name in TECHNICAL if name in then and then[name].there]
    if not left or not word:
        return []
    parts = []
    for effect in left:
        was = first.get(effect.name)
        before = f", before {_percent(was.share)} %" if was is not None and was.there else ", not before"
        parts.append(f"{_differ(effect)[:-1]}{before})")
    return [f"After {word}, {_listed(parts)}."]


def _count_alone(table: pd.DataFrame, values: Mapping[str, Value]) -> list[str]:
    """Whether the number of cells does as well."""
    key = next((key for key in BIOLOGY if key in values), None)
    if key is None or table.empty:
        return []
    row = table[(table["statistics"] == COUNTED) & (table["metric"] == key) & np.isfinite(table["value"])]
    if row.empty or not values[key].low <= float(row["value"].iloc[0]):
        return []
    name = {**REPLICATES, **MECHANISMS}.get(key, "the variance explained by treatments")
    return [f"The number of cells alone does as well: {name} {_number(float(row['value'].iloc[0]))}."]
