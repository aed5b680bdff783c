"""Judge tables of profiles: every metric under every correction, the null rows beside them, and a verdict."""

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.errors import ConfigError, did_you_mean
from biomass.judgement import batch, biology, variance
from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.ladder import climb
from biomass.judgement.nulls import as_directions, counted, shuffled
from biomass.judgement.position import position_table
from biomass.judgement.results import COUNTED, NULL_ROWS, SHUFFLED, TABLE, UNTRAINED, Results, rows_of
from biomass.judgement.scores import CannotJudgeError, Metric, Score, score, summarize
from biomass.judgement.shown import MAPS, distance_to_controls, lay_out, nearest_is_right
from biomass.judgement.table import Profiles
from biomass.judgement.verdict import say

DEFAULT = ("none", "standardize", "mad_robustize", "whiten", "standardize_tvn", "combat", "harmony")
"""The corrections that are compared where nothing else is asked for."""

METRICS: Mapping[str, Metric] = {**batch.METRICS, **variance.METRICS, **biology.METRICS}
"""All metrics, by key."""

_PANELS = 4  # pairs that are drawn, at most

log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """How tables are judged.

    Attributes:
        corrections: keys of :data:`.CORRECTIONS`; ``none`` is always among them, and first.
        pairs: relationships that are known, two columns of names; None: none are.
        first: plates that corrections are fitted on in the inductive evaluation; None: half of them.
        maps: one of :data:`.MAPS`.
        seed: of all that is drawn.
    """

    corrections: tuple[str, ...] = DEFAULT
    pairs: pd.DataFrame | None = None
    first: int | None = None
    maps: str = "umap"
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError where a name is unknown."""
        for name in self.corrections:
            if name not in CORRECTIONS:
                raise ConfigError(f"correction '{name}' is unknown; {did_you_mean(name, CORRECTIONS)}", "correction")
        if self.maps not in MAPS:
            raise ConfigError(f"maps='{self.maps}' is unknown; {did_you_mean(self.maps, MAPS)}")


class Pair(NamedTuple):
    """A cell of the factorial table.

    Attributes:
        statistics: the word of the encoder, or the name of the table.
        correction: of the profiles.
    """

    statistics: str
    correction: str


def evaluate(
    tables: Mapping[str, Profiles],
    folder: Path,
    settings: Settings = Settings(),
    about: Mapping[str, Any] | None = None,
) -> Results:
    """Judge profiles, and leave what was found in a folder, see :mod:`biomass.judgement.results`.

    Args:
        tables: word of the encoder's statistics, or any name → profiles made so. ``untrained`` is a null row.
        folder: of the run; made if it is not there.
        settings: how.
        about: what else the results should say: the command, versions, the fingerprint of the data.

    Raises:
        ConfigError: a correction is unknown, there is no table, or a file cannot be written.
    """
    settings.check()
    if not set(tables) - set(NULL_ROWS):
        raise ConfigError("there are no profiles to judge but null rows; name the profiles of a trained network, too")
    corrections = tuple(dict.fromkeys(("none", *settings.corrections)))
    names = sorted(tables, key=lambda name: name in NULL_ROWS)
    main = "running" if "running" in tables else names[0]
    rows, ladder, skipped = [], [], []
    every = {**{name: tables[name] for name in names}, COUNTED: tables[main]}
    if UNTRAINED not in tables:
        skipped.append("untrained: these profiles come without those of an untrained encoder")
    for pair, profiles in _bar(every, corrections):
        corrected = _corrected(profiles, pair, skipped)
        refit_only = CORRECTIONS[pair.correction].refit_only
        if isinstance(corrected, str):
            scores = [Score(key, *[np.nan] * 5, 0, corrected) for key in METRICS]
            rows += rows_of(*pair, refit_only, scores)
            continue
        scores = [score(key, metric, corrected, settings.seed) for key, metric in METRICS.items()]
        if settings.pairs is not None:
            scores.append(_relationships(corrected, settings))
        rows += rows_of(*pair, refit_only, scores)
        rungs = climb(corrected, settings.seed)
        ladder.append(rungs.assign(statistics=pair.statistics, correction=pair.correction))
        if pair.statistics == main:
            scores = [
                score(key, metric, shuffled(corrected, metric.family, settings.seed), settings.seed)
                for key, metric in METRICS.items()
            ]
            rows += rows_of(SHUFFLED, pair.correction, refit_only, scores)
    table = pd.DataFrame(rows, columns=list(TABLE))
    order = {name: place for place, name in enumerate([*every, SHUFFLED])}
    table = table.sort_values("statistics", key=lambda c: c.map(order), kind="stable", ignore_index=True)
    before, after = compared(table, main)
    shown = list(dict.fromkeys([before, after, *(Pair(name, "none") for name in names if name not in NULL_ROWS)]))
    wells, positions, effects = tables[main].wells.copy(), [], {}
    for pair in shown[:_PANELS]:
        profiles = CORRECTIONS[pair.correction].fit_transform(tables[pair.statistics], settings.seed)
        log.info("maps, places and effects of %s, %s", *pair)
        if len(profiles) == len(wells):
            _draw(wells, pair, profiles, settings)
        effects[pair] = find_effects(profiles, settings.seed)
        try:
            positions.append(position_table(profiles, *pair, settings.seed))
        except CannotJudgeError as reason:
            skipped.append(f"effects of places, {pair.statistics}, {pair.correction}: {reason}")
    verdict = say(table, before, after, effects[before], effects[after])
    results = Results(
        {
            **(about or {}),
            "roles": {role: column for role, column in tables[main].taken.items()},
            "notes": list(tables[main].notes),
            "skipped": [*skipped, *_never_told(table)],
            "rows": len(tables[main]),
            "features": len(tables[main].names),
            "seed": settings.seed,
            "shown": [list(pair) for pair in shown[:_PANELS]],
            "verdict": verdict.plain(),
        },
        table,
        pd.concat(ladder, ignore_index=True),
        wells,
        pd.concat(positions, ignore_index=True) if positions else pd.DataFrame(),
        _drift(tables[main], corrections, settings, skipped),
    )
    results.write(folder, METRICS)
    return results


def _draw(wells: pd.DataFrame, pair: Pair, profiles: Profiles, settings: Settings) -> None:
    """Add what is drawn of every well under a pair."""
    name = "|".join(pair)
    places = lay_out(profiles, settings.maps, settings.seed)
    wells[f"map_x|{name}"], wells[f"map_y|{name}"] = places.T
    wells[f"right|{name}"] = nearest_is_right(profiles).astype(np.float32)
    wells[f"distance|{name}"] = distance_to_controls(profiles).astype(np.float32)


def _never_told(table: pd.DataFrame) -> list[str]:
    """A line for each metric that could not be told of any pair."""
    told = table.groupby("metric", sort=False)["value"].transform(lambda values: values.notna().any())
    first = table[~told.astype(bool)].drop_duplicates("metric")
    return [f"{METRICS[row.metric].title}: {row.note}" for row in first.itertuples()]


def _relationships(profiles: Profiles, settings: Settings) -> Score:
    try:
        return summarize("relationships", biology.relationships(profiles, settings.pairs, settings.seed), settings.seed)
    except CannotJudgeError as reason:
        return Score("relationships", *[np.nan] * 5, 0, str(reason))


def _bar(tables: Mapping[str, Profiles], corrections: tuple[str, ...]) -> Iterator[tuple[Pair, Profiles]]:
    """All pairs, with a bar where a person watches, and a line for each where not."""
    pairs = [(Pair(name, one), profiles) for name, profiles in tables.items() for one in corrections]
    watched = sys.stderr.isatty()
    for number, (pair, profiles) in enumerate(tqdm(pairs, desc="judge", unit="pair", disable=not watched), 1):
        if not watched:
            log.info("%d of %d: %s, %s", number, len(pairs), *pair)
        yield pair, profiles


def _corrected(profiles: Profiles, pair: Pair, skipped: list[str]) -> Profiles | str:
    """The profiles of a pair; why there are none, where there are none."""
    try:
        one = counted(profiles) if pair.statistics == COUNTED else profiles
        return as_directions(CORRECTIONS[pair.correction].fit_transform(one))
    except CannotJudgeError as reason:
        line = f"{pair.statistics}, {pair.correction}: {reason}"
        if line not in skipped:
            skipped.append(line)
        return str(reason)
