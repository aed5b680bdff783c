"""Which statistics and which correction to use: the rule, and how a pair of them is called."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from biomass.judgement.results import NULL_ROWS
from biomass.judgement.wording import listed, number
from biomass.norms import WORDS

Pair: TypeAlias = tuple[str, str]
"""Statistics of the encoder (or the name of a table), and correction of its profiles."""

PLAIN = "none"
"""The correction that leaves profiles as they are."""

REPLICATES: Mapping[str, str] = {
    "map_other_plate": "replicate retrieval across plates",
    "map_other_experiment": "replicate retrieval across experiments",
    "top1_plate": "the share of wells whose nearest well on other plates is a replicate",
    "map_same_plate": "replicate retrieval within plates",
    "variance_treatment": "the share of the variance that treatments explain",
}
MECHANISMS: Mapping[str, str] = {
    "nscb": "the share of treatments whose nearest one of another compound and experiment has their mechanism",
    "nsc": "the share of treatments whose nearest one of another compound has their mechanism",
    "map_mechanism": "retrieval of compounds of the same mechanism",
}
"""Key of a metric → how it is called in a sentence; the first that is known speaks for its family."""

FAMILIES: Mapping[str, Mapping[str, str]] = {"replicates": REPLICATES, "mechanisms": MECHANISMS}
PREDICTED = "plate_predicted"

_NAMED = 4  # pairs that a sentence names


Difference: TypeAlias = tuple[float, float, float]
"""Of two values, after less before, with the ends of its interval."""


class Value(NamedTuple):
    """A row of ``table.csv``."""

    value: float
    low: float
    high: float
    null: float

    def above_chance(self, number: float) -> float:
        """A value as a share of the way from chance to 1."""
        return (number - self.null) / max(1 - self.null, 1e-12) if np.isfinite(self.null) else number


class Recommendation(NamedTuple):
    """What to use.

    Attributes:
        best: of all.
        lasting: the best of those that transform new plates as they are; None where there is none.
        sentence: with the reason, and what is better by one metric alone.
    """

    best: Pair
    lasting: Pair | None
    sentence: str


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The pairs of a table, in its order, without :data:`.NULL_ROWS`."""
    if table.empty:
        return []
    own = table[~table["statistics"].isin(NULL_ROWS)]
    return list(dict.fromkeys(zip(own["statistics"], own["correction"], strict=True)))


def values_of(table: pd.DataFrame, pair: Pair | None) -> dict[str, Value]:
    """Metric → what was measured, of those that could be judged."""
    if pair is None or table.empty:
        return {}
    own = table[(table["statistics"] == pair[0]) & (table["correction"] == pair[1])]
    numbers = own[["value", "low", "high", "null"]].to_numpy(float).tolist()
    found = {str(key): Value(*row) for key, row in zip(own["metric"], numbers, strict=True)}
    return {key: value for key, value in found.items() if np.isfinite(value.value)}


def named(pair: Pair | None, beside: Pair | None = None, titles: Mapping[str, str] | None = None) -> str:
    """What to call a pair in a sentence; what it has in common with another is left out.

    Args:
        pair: statistics and correction.
        beside: another, which the sentence has named.
        titles: of corrections.

    >>> named(("plate", "tvn"), ("running", "none")), named(("profiles", "tvn"), ("profiles", "none"))
    ("plate statistics with 'tvn'", "'tvn'")
    """
    if pair is None:
        return ""
    words = f"{pair[0]} statistics" if pair[0] in WORDS else pair[0]
    correction = (titles or {}).get(pair[1], f"'{pair[1]}'")
    if pair[1] == PLAIN:
        return f"{words} without correction"
    return correction if beside is not None and beside[0] == pair[0] else f"{words} with {correction}"


def recommend(
    table: pd.DataFrame,
    before: Pair,
    titles: Mapping[str, str] | None = None,
    differences: Mapping[Pair, Mapping[str, Difference]] | None = None,
) -> Recommendation | None:
    """Choose the pair whose biology is best; of those that may be as good, the one with the least of a batch effect.

    What surely loses a family of what was found before is left out, however good the other family is.

    Biology is the mean, over the families of :data:`FAMILIES`, of how far their first metric lies above chance; as good
    is what lies above the lower end of the best one's interval; the batch effect is how well plates are predicted. Of
    equals the first of the table is taken.

    Args:
        table: as ``table.csv``.
        before: what there is without any choice.
        titles: of corrections.
        differences: pair → metric → its paired difference from ``before``, where it is known.

    Returns:
        None where no metric of biology is known for two pairs.
    """
    values = {pair: values_of(table, pair) for pair in pairs_of(table)}
    keys = _keys(values)
    skills = {
        pair: tuple(float(np.mean(ends)) for ends in zip(*(_skill(found[key]) for key in keys), strict=True))
        for pair, found in values.items()
        if keys and all(key in found for key in keys)
    }
    if len(skills) < 2:
        return None
    batch = {pair: found[PREDICTED].value for pair, found in values.items() if PREDICTED in found}
    paired = differences or {}
    losing = [
        pair
        for pair in skills
        if before in skills and any(_loses(key, values[pair], values[before], paired.get(pair, {})) for key in keys)
    ]
    count = len(skills)
    skills = {pair: skill for pair, skill in skills.items() if pair not in losing}
    rows = table[table["refit_only"].astype(bool)]
    refit = set(zip(rows["statistics"], rows["correction"], strict=True))
    best = _best(skills, batch)
    new = {pair: skill for pair, skill in skills.items() if pair not in refit}
    lasting = _best(new, batch) if new else None
    families = {**REPLICATES, **MECHANISMS}
    by = " and ".join(families[key] for key in keys)
    said = [_sentence(best, lasting, before, by, count, refit, titles)]
    said += [_but(key, best, {pair: values[pair][key] for pair in skills}, families[key], titles) for key in keys]
    if losing:
        names = [named(pair, before, titles) for pair in losing]
        if len(names) > _NAMED:
            names[_NAMED - 1 :] = [f"{len(names) - _NAMED + 1} others"]
        said.append(f"Left out, as biology that is found without is lost: {listed(names)}.")
    return Recommendation(best, lasting, " ".join(filter(None, said)))


def _loses(
    key: str, after: Mapping[str, Value], before: Mapping[str, Value], differences: Mapping[str, Difference]
) -> bool:
    """Whether a metric is surely lower than it was, above chance, too."""
    now, was = after[key], before[key]
    if key in differences:
        return differences[key][2] < 0 and now.above_chance(now.value) < was.above_chance(was.value)
    return now.above_chance(now.high) < was.above_chance(was.low)


def _but(key: str, best: Pair, found: Mapping[Pair, Value], title: str, titles: Mapping[str, str] | None) -> str:
    """What is surely better by one metric alone; empty where nothing is."""
    top = max(found, key=lambda pair: found[pair].above_chance(found[pair].value))
    one, other = found[top], found[best]
    if not one.above_chance(one.low) > other.above_chance(other.high):
        return ""
    return f"But {named(top, best, titles)} is better by {title}: {number(one.value)} against {number(other.value)}."


def _keys(values: Mapping[Pair, Mapping[str, Value]]) -> list[str]:
    """The metric that speaks for each family: the first that most pairs have, if two have it."""
    keys = []
    for family in FAMILIES.values():
        count = {key: sum(key in found for found in values.values()) for key in family}
        if (most := max(count.values())) >= 2:
            keys.append(next(key for key in family if count[key] == most))
    return keys


def _skill(value: Value) -> tuple[float, float]:
    """Above chance, and the lower end of it."""
    low = value.low if np.isfinite(value.low) else value.value
    return value.above_chance(value.value), value.above_chance(low)


def _best(skills: Mapping[Pair, Sequence[float]], batch: Mapping[Pair, float]) -> Pair:
    top = max(skills, key=lambda pair: skills[pair][0])
    good = [pair for pair in skills if skills[pair][0] >= skills[top][1]]
    return min(good, key=lambda pair: batch[pair]) if all(pair in batch for pair in good) else top


def _sentence(
    best: Pair,
    lasting: Pair | None,
    before: Pair,
    by: str,
    count: int,
    refit: set[Pair],
    titles: Mapping[str, str] | None,
) -> str:
    rule = f"by {by}, and, of those that may be as good, by how little plates can be told apart"
    if best == before:
        return f"Keep {named(best, None, titles)}: of {count} ways it is the best {rule}."
    if best not in refit:
        return f"Use {named(best, None, titles)}: of {count} ways it is the best {rule}. It transforms new plates."
    text = f"Of {count} ways, {named(best, None, titles)} is the best {rule}; but every new plate means to fit it again"
    if lasting is None:
        return f"{text}, and nothing that transforms new plates was tried."
    return f"{text}: for new plates, use {named(lasting, None, titles)}."
