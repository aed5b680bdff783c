"""Sentences of the verdict: how numbers are written, which effects there are, what can be told apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from biomass.judgement.effects import STRONG, TECHNICAL, UNKNOWN, Effect

if TYPE_CHECKING:
    from biomass.judgement.recommend import Value

PREDICTED: Mapping[str, str] = {
    "plate_predicted": "Plates can be told apart",
    "experiment_predicted": "Experiments can be told apart",
}
"""Key of a metric → how its sentence begins."""

THINGS = {
    "plate": "plates", "experiment": "experiments", "edge": "wells at the edge", "row": "rows", "column": "columns",
}  # fmt: skip
"""Name of an effect → what differs."""

_MARGIN = 0.02  # better than chance by less is no matter


def percent(value: float) -> str:
    """A share as a number of percent, without the sign.

    >>> percent(0.914), percent(0.004)
    ('91', '0.4')
    """
    whole = 100 * value
    return f"{whole:.0f}" if abs(whole) >= 1 or whole == 0 else f"{whole:.1f}"


def number(value: float) -> str:
    """A score with two digits.

    >>> number(0.214), number(1.0)
    ('.21', '1.00')
    """
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def p_value(value: float) -> str:
    """A probability.

    >>> p_value(0.001), p_value(0.0362), p_value(0.00012)
    ('p = .001', 'p = .036', 'p < .001')
    """
    return "p < .001" if value < 0.001 else f"p = {f'{value:.2g}'.removeprefix('0')}"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence.

    >>> listed(["plates", "rows", "columns"])
    'plates, rows and columns'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def there_is(found: Mapping[str, Effect], apart: Sequence[str]) -> str:
    """What was found, in one sentence; apart: what can be told apart all the same."""
    looked = [found[name] for name in TECHNICAL if name in found]
    there = [effect for effect in looked if effect.there]
    if there:
        batch = any(effect.name in TECHNICAL[:2] for effect in there)
        place = any(effect.name in TECHNICAL[2:] for effect in there)
        what = "a batch effect" if batch else "a position effect"
        what += " and a position effect" if batch and place else ""
        plates = max(effect.plates for effect in there)
        over = f" ({plates} plates judged)" if plates else ""
        return f"There is {what}{over}: {listed([differ(effect) for effect in there])}."
    told = [THINGS[effect.name] for effect in looked if effect.word != UNKNOWN]
    if not told:
        return f"Whether there is a batch effect cannot be told: {looked[0].reason}." if looked else ""
    text = f"No batch effect was found: {listed(told)} do not differ by more than chance makes them"
    return f"{text}{all_the_same(apart)}."


def told_apart(values: "Mapping[str, Value]") -> list[str]:
    """What can be told apart, surely better than by chance."""
    sure = {key: values[key].low > values[key].null + _MARGIN for key in PREDICTED if key in values}
    return [THINGS[key.partition("_")[0]] for key, better in sure.items() if better]


def all_the_same(apart: Sequence[str]) -> str:
    """The end of a sentence about effects that are not there."""
    if not apart:
        return ""
    return f", but {listed(apart)} can still be told apart: by what they hold, or by other things than their means"


def cautions(found: Mapping[str, Effect]) -> list[str]:
    """How effects were tested that are there, where that is not the usual way."""
    there = [found[name] for name in TECHNICAL if name in found and found[name].there and found[name].reason]
    return [f"On {THINGS[effect.name]}: {effect.reason}." for effect in there if not effect.reason.startswith("every")]


def differ(effect: Effect) -> str:
    """An effect that is there."""
    how = "strongly" if effect.word == STRONG else "a little"
    beyond = " beyond what their plates make" if effect.name == "experiment" else ""
    return (
        f"{THINGS[effect.name]} differ {how}{beyond} ({percent(effect.share)} % of the variance, {p_value(effect.p)})"
    )


def not_told(found: Mapping[str, Effect]) -> list[str]:
    """One sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for name in TECHNICAL:
        if name in found and found[name].word == UNKNOWN:
            reasons.setdefault(found[name].reason, []).append(THINGS[name])
    if not any(name in found and found[name].word != UNKNOWN for name in TECHNICAL):
        reasons = dict(list(reasons.items())[1:])  # the first is said already
    said = [f"Whether {listed(things)} differ cannot be told: {reason}." for reason, things in reasons.items()]
    plate = found.get("plate")
    if plate is not None and plate.there and plate.reason.startswith("every experiment is one plate"):
        said = [one for one in said if "experiments" not in one] + [f"{plate.reason[0].upper()}{plate.reason[1:]}."]
    return said


def apart_with(
    key: str,
    phrase: str,
    values: "tuple[dict[str, Value], dict[str, Value]]",
    word: str,
    effect: Effect | None = None,
) -> str:
    """How well things can be told apart, before and after; and that this may not be an effect, if nothing says so."""
    one, other = values[0][key], values[1].get(key)
    text = f"{phrase} with {percent(one.value)} % ({between(one, percent)}{chance_of(one, percent)})"
    doubt = "; that may be what they hold, and no effect" if effect is not None and effect.word == UNKNOWN else ""
    if other is None:
        return f"{text}{doubt}."
    chance = "" if np.isclose(one.null, other.null, atol=0.005) else chance_of(other, percent)
    spread = (between(other, percent) + chance).rstrip("; ")
    return f"{text}; after {word} with {percent(other.value)} %{f' ({spread})' if spread else ''}{doubt}."


def chance_of(one: "Value", write: Callable[[float], str]) -> str:
    """What is expected by chance."""
    if not np.isfinite(one.null):
        return "chance not known"
    return f"chance {write(one.null)}{' %' if write is percent else ''}"


def between(one: "Value", write: Callable[[float], str]) -> str:
    """The interval."""
    if not (np.isfinite(one.low) and np.isfinite(one.high)):
        return "no interval: too few groups; "
    return f"95 % interval {write(one.low)} to {write(one.high)}{' %' if write is percent else ''}; "
