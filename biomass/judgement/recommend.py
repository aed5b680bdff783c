"""Which statistics and which correction to use: the rule, and how a pair of them is called."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from biomass.judgement.results import NULL_ROWS
from biomass.norms import WORDS

Pair: TypeAlias = tuple[str, str]
"""Statistics of the encoder (or the name of a table), and correction of its profiles."""

PLAIN = "none"
"""The correction that leaves profiles as they are."""


class Recommendation(NamedTuple):
    """What to use.

    Attributes:
        best: of all.
        lasting: the best of those that transform new plates as they are; None where there is none.
        sentence: with the reason.
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


def named(pair: Pair | None, beside: Pair | None = None) -> str:
    """What to call a pair in a sentence; what it has in common with another is left out.

    >>> named(("plate", "tvn"), ("running", "none")), named(("profiles", "tvn"), ("profiles", "none"))
    ('plate statistics with tvn', 'tvn')
    """
    if pair is None:
        return ""
    words = f"{pair[0]} statistics" if pair[0] in WORDS else pair[0]
    if beside is not None and beside[0] == pair[0] and pair[1] != PLAIN:
        return pair[1]
    return (
        f"{words} without correction"
        if pair[1] == PLAIN and beside is not None and beside[0] == pair[0]
        else (words if pair[1] == PLAIN else f"{words} with {pair[1]}")
    )


def recommend(table: pd.DataFrame, biology: Sequence[str], before: Pair) -> Recommendation | None:
    """Choose the pair whose biology is best; of those that may be as good, the one with the least of a batch effect.

    Biology is the first metric of ``biology`` that most pairs have; as good is what lies in the best one's interval;
    the batch effect is how well plates are predicted. Of equals the first of the table is taken.

    Args:
        table: as ``table.csv``.
        biology: keys of metrics that are better the higher.
        before: what there is without any choice.

    Returns:
        None where no metric of biology is known for two pairs.
    """
    pairs = pairs_of(table)
    values = {
        key: {pair: row for pair in pairs if (row := _row(table, pair, key)) is not None}
        for key in (*biology, "plate_predicted")
    }
    most = max((len(values[key]) for key in biology), default=0)
    if most < 2:
        return None
    key = next(key for key in biology if len(values[key]) == most)
    refit = set(
        zip(*(table.loc[table["refit_only"].astype(bool), c] for c in ("statistics", "correction")), strict=True)
    )
    best = _best(values[key], values["plate_predicted"])
    lasting_values = {pair: value for pair, value in values[key].items() if pair not in refit}
    lasting = _best(lasting_values, values["plate_predicted"]) if lasting_values else None
    return Recommendation(best, lasting, _sentence(best, lasting, before, key, values[key], refit))


def _row(table: pd.DataFrame, pair: Pair, key: str) -> tuple[float, float] | None:
    own = (table["statistics"] == pair[0]) & (table["correction"] == pair[1]) & (table["metric"] == key)
    if not own.any():
        return None
    value, low = (float(table.loc[own, name].iloc[0]) for name in ("value", "low"))
    return (value, low if np.isfinite(low) else value) if np.isfinite(value) else None


def _best(biology: dict[Pair, tuple[float, float]], batch: dict[Pair, tuple[float, float]]) -> Pair:
    top = max(biology, key=lambda pair: biology[pair][0])
    good = [pair for pair in biology if biology[pair][0] >= biology[top][1]]
    return min(good, key=lambda pair: batch[pair][0]) if all(pair in batch for pair in good) else top


def _sentence(
    best: Pair,
    lasting: Pair | None,
    before: Pair,
    key: str,
    values: dict[Pair, tuple[float, float]],
    refit: set[Pair],
) -> str:
    count = f"the best of {len(values)} by {key} ({values[best][0]:.2f})"
    if best == before:
        return f"Keep {named(best)}: {count}; no correction does better."
    if best not in refit:
        return f"Use {named(best)}: {count}. It transforms new plates as they are."
    text = f"Of these plates, {named(best)} is {count}, but it must be fitted again, with all plates, for every new one"
    if lasting is None:
        return f"{text}; nothing that transforms new plates was tried."
    return f"{text}; for new plates use {named(lasting)} ({values[lasting][0]:.2f})."
