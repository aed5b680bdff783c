"""Judge tables of profiles: every metric under every correction, the null rows beside them, and a verdict."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.errors import CannotJudgeError, ConfigError, did_you_mean
from biomass.judgement import batch, biology, variance
from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.effects import Effect, find_effects
from biomass.judgement.induction import DRIFT, drift_between, induct
from biomass.judgement.ladder import climb
from biomass.judgement.nulls import as_directions, counted, shuffled
from biomass.judgement.position import position_notes, position_table
from biomass.judgement.recommend import MECHANISMS, PLAIN, REPLICATES, Difference, Pair, recommend
from biomass.judgement.relationships import recall_metric
from biomass.judgement.results import COUNTED, NULL_ROWS, SHUFFLED, TABLE, UNTRAINED, Results, rows_of
from biomass.judgement.scores import Measured, Metric, measure, score, summarize, untold
from biomass.judgement.shown import DRAWN, MAPS, distance_to_controls, lay_out, nearest_is_right, whole_plates
from biomass.judgement.table import MECHANISM, PLATE, Profiles
from biomass.judgement.units import in_one_unit
from biomass.judgement.verdict import PREDICTED, paired_difference, say

DEFAULT = ("none", "standardize", "pycytominer_mad", "whiten", "standardize_tvn", "combat", "harmony")
"""The corrections that are compared where nothing else is asked for."""

METRICS: Mapping[str, Metric] = {**batch.METRICS, **variance.METRICS, **biology.METRICS}
"""All metrics, by key."""

_COMPARED = (*REPLICATES, *MECHANISMS, *PREDICTED)
"""Metrics that the verdict compares, unit by unit."""

_INDUCED = ("plate_predicted", "plate_neighbour", "map_other_plate", "treatment_neighbour")
"""What is asked of plates that came later."""

LARGE = 20_000
"""Wells above which null rows and plates that come later are judged on some plates alone."""

_SEEDS = 2**32 - 1  # that libraries take
_SHUFFLED = 4000  # wells of a large table whose labels are shuffled
_ALONE = (PLAIN, "standardize")
"""Corrections of a large table under which cells counted are judged: of one number, others make about the same."""

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
        earlier: name of a table → profiles of the same wells from when fewer plates were there.
    """

    corrections: tuple[str, ...] = DEFAULT
    pairs: pd.DataFrame | None = None
    first: int | None = None
    maps: str = "umap"
    seed: int = 0
    earlier: Mapping[str, Profiles] = MappingProxyType({})

    def check(self) -> None:
        """Raise ConfigError where a name is unknown, or a number cannot be meant."""
        for name in self.corrections:
            if name not in CORRECTIONS:
                raise ConfigError(f"correction '{name}' is unknown; {did_you_mean(name, CORRECTIONS)}", "correction")
        if self.maps not in MAPS:
            raise ConfigError(f"maps='{self.maps}' is unknown; {did_you_mean(self.maps, MAPS)}")
        if self.first is not None and self.first < 1:
            raise ConfigError(f"corrections cannot be fitted on the first {self.first} plates; give 1 or more")
        if not 0 <= self.seed <= _SEEDS:
            raise ConfigError(f"seed {self.seed} is not between 0 and {_SEEDS}")

    def all_corrections(self) -> tuple[str, ...]:
        """The corrections, ``none`` first."""
        return tuple(dict.fromkeys((PLAIN, *self.corrections)))


def evaluate(
    tables: Mapping[str, Profiles],
    folder: str | Path,
    settings: Settings | None = None,
    about: Mapping[str, Any] | None = None,
) -> Results:
    """Judge profiles, and leave what was found in a folder, see :mod:`biomass.judgement.results`.

    Args:
        tables: word of the encoder's statistics, or any name → profiles made so. ``untrained`` is a null row.
        folder: of the run; made if it is not there.
        settings: how; those of :class:`Settings` if left out.
        about: what else the results should say: the command, versions, the fingerprint of the data.

    Raises:
        ConfigError: a correction is unknown, there is no table, or a file cannot be written.
    """
    settings = settings or Settings()
    settings.check()
    given = tables
    tables = {name: in_one_unit(one) for name, one in tables.items()}
    names = sorted(tables, key=lambda name: name in NULL_ROWS)
    if not names or names[0] in NULL_ROWS:
        raise ConfigError("there are no profiles to judge but null rows; name the profiles of a trained network, too")
    metrics = {**METRICS, **({} if settings.pairs is None else {"recall": recall_metric(settings.pairs)})}
    main = tables["running" if "running" in tables else names[0]]
    skipped = [] if UNTRAINED in tables else [f"{UNTRAINED}: profiles of an untrained encoder are not among the tables"]
    table, ladder, units = _score_all({name: tables[name] for name in names}, main, metrics, settings, skipped)
    real = [name for name in names if name not in NULL_ROWS]
    before = ("running" if "running" in real else real[0], PLAIN)
    mine = {pair: found for pair, found in units.items() if pair[0] in real}
    differences = {pair: _differences(mine.get(before, {}), found, settings.seed) for pair, found in mine.items()}
    choice = recommend(table, before, None, differences)
    after = choice.best if choice is not None and choice.best != before else None
    shown = list(dict.fromkeys([before, *([after] if after else []), *((name, PLAIN) for name in real)]))
    shown = shown[:_PANELS]
    wells, position, effects = _look_at(shown, tables, main, settings, skipped)
    verdict = say(table, effects, before, after, differences.get(after) if after else None, choice=choice)
    drift = pd.concat([_induce(main, settings, skipped), _moved(given, settings, skipped)], ignore_index=True)
    found = {
        "roles": dict(main.taken),
        "notes": [*_notes(tables), *position_notes(main)],
        "skipped": [*skipped, *_never_told(table, metrics)],
        "rows": len(main),
        "features": len(main.names),
        "seed": settings.seed,
        "shown": [list(pair) for pair in shown],
        "verdict": asdict(verdict),
    }
    results = Results({**(about or {}), **found}, table, ladder, wells, position, drift)
    results.write(Path(folder), metrics)
    return results


def _score_all(
    tables: Mapping[str, Profiles],
    main: Profiles,
    metrics: Mapping[str, Metric],
    settings: Settings,
    skipped: list[str],
) -> tuple[pd.DataFrame, pd.DataFrame, dict[Pair, dict[str, Measured]]]:
    """The factorial table, its null rows last; the ladder of every pair; and what the verdict compares, by unit."""
    rows, ladder, seed = [], [], settings.seed
    units: dict[Pair, dict[str, Measured]] = {}
    left: dict[tuple[str, str], list[str]] = {}  # statistics and reason → corrections
    every = {**tables, COUNTED: main}
    large = len(main) > LARGE
    some = _part(main, _SHUFFLED) if large else np.arange(len(main))
    if large:
        skipped.append(f"{SHUFFLED}: judged on {len(some):,} of {len(main):,} wells, of whole plates")
    for pair, profiles in _shown_pairs(every, settings.all_corrections()):
        refit_only = CORRECTIONS[pair[1]].refit_only
        if large and pair[0] == COUNTED and pair[1] not in _ALONE:
            reason = f"of more than {LARGE:,} wells, cells counted are judged under {' and '.join(_ALONE)} alone"
            left.setdefault((pair[0], reason), []).append(pair[1])
            rows += rows_of(*pair, refit_only, [untold(key, reason) for key in metrics])
            continue
        try:
            corrected = _corrected(profiles, pair, seed)
        except CannotJudgeError as reason:
            left.setdefault((pair[0], str(reason)), []).append(pair[1])
            rows += rows_of(*pair, refit_only, [untold(key, reason) for key in metrics])
            continue
        found = {key: measure(one, corrected, seed) for key, one in metrics.items()}
        rows += rows_of(*pair, refit_only, [summarize(key, one, seed) for key, one in found.items()])
        units[pair] = {key: one for key in _COMPARED if isinstance(one := found[key], Measured)}
        ladder.append(pd.DataFrame(climb(corrected, seed)).assign(statistics=pair[0], correction=pair[1]))
        if profiles is main and pair[0] != COUNTED:
            few = corrected.take(some) if large else corrected
            dealt = {family: shuffled(few, family, seed) for family in ("batch", "biology")}
            scores = [score(key, one, dealt[one.family], seed) for key, one in metrics.items()]
            rows += rows_of(SHUFFLED, pair[1], refit_only, scores)
    for (name, why), of in left.items():
        under = "" if len(of) == len(settings.all_corrections()) else f", {', '.join(of)}"
        skipped.append(f"{name}{under}: {why}")
    place = {name: number for number, name in enumerate([*every, SHUFFLED])}
    table = pd.DataFrame(rows, columns=list(TABLE))
    table = table.sort_values("statistics", key=lambda names: names.map(place), kind="stable", ignore_index=True)
    climbed = pd.concat(ladder, ignore_index=True)
    return table, climbed[["statistics", "correction", *climbed.columns[:-2]]], units


def _look_at(
    pairs: Sequence[Pair], tables: Mapping[str, Profiles], main: Profiles, settings: Settings, skipped: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[Pair, dict[str, Effect]]]:
    """What is drawn of every well, the effects of places, and all effects, under some pairs."""
    wells, positions, effects = main.wells.copy(), [], {}
    if len(wells) > DRAWN:
        skipped.append(f"maps and nearest wells: those of about {DRAWN:,} of {len(wells):,} wells are drawn")
    for pair in pairs:
        log.info("maps, places and effects: %s, %s", *pair)
        profiles = CORRECTIONS[pair[1]].fit_transform(tables[pair[0]], settings.seed)
        if profiles.wells.equals(main.wells):
            _draw(wells, pair, profiles, settings)
        else:
            skipped.append(f"maps of {pair[0]}, {pair[1]}: its wells are not those of the first table")
        effects[pair] = find_effects(profiles, settings.seed)
        try:
            positions.append(position_table(profiles, *pair, settings.seed))
        except CannotJudgeError as reason:
            skipped.append(f"effects of places, {pair[0]}, {pair[1]}: {reason}")
    return wells, pd.concat(positions, ignore_index=True) if positions else pd.DataFrame(), effects


def _draw(wells: pd.DataFrame, pair: Pair, profiles: Profiles, settings: Settings) -> None:
    """Add what is drawn of every well under a pair."""
    name = "|".join(pair)
    places = lay_out(profiles, settings.maps, settings.seed)
    wells[f"map_x|{name}"], wells[f"map_y|{name}"] = places.T
    wells[f"right|{name}"] = nearest_is_right(profiles).astype(np.float32)
    wells[f"distance|{name}"] = distance_to_controls(profiles).astype(np.float32)


def _differences(before: Mapping[str, Measured], after: Mapping[str, Measured], seed: int) -> dict[str, Difference]:
    """Paired differences of what the verdict speaks of, where the same units were judged under both pairs."""
    return {
        key: paired_difference(first, after[key], seed)
        for key, first in before.items()
        if key in after
        if first.weights is None and after[key].weights is None
        if np.array_equal(first.groups, after[key].groups)
    }


def _induce(profiles: Profiles, settings: Settings, skipped: list[str]) -> pd.DataFrame:
    """What corrections make of plates that they were not fitted on."""
    if settings.first is None and len(profiles) > LARGE and profiles.has(PLATE):
        rows = _part(profiles, LARGE)
        skipped.append(f"plates that come later: judged on {len(rows):,} of {len(profiles):,} wells, of whole plates")
        profiles = profiles.take(rows)
    # nothing is asked of mechanisms
    wells = profiles.wells.drop(columns=MECHANISM, errors="ignore")
    profiles = Profiles(wells, profiles.features, profiles.names, profiles.taken, profiles.notes)
    plates = profiles.wells[PLATE].nunique() if profiles.has(PLATE) else 0
    first = plates // 2 if settings.first is None else settings.first
    chosen = {name: CORRECTIONS[name] for name in settings.all_corrections()}
    try:
        return induct(profiles, chosen, first, {key: METRICS[key] for key in _INDUCED}, settings.seed)
    except CannotJudgeError as reason:
        skipped.append(f"plates that come later: {reason}")
        return pd.DataFrame()


def _moved(tables: Mapping[str, Profiles], settings: Settings, skipped: list[str]) -> pd.DataFrame:
    """How far profiles of an encoder have moved since fewer plates were there, as rows of the table of drifts."""
    rows = []
    for name, earlier in settings.earlier.items():
        try:
            found = drift_between(earlier, tables[name], settings.seed)
        except CannotJudgeError as reason:
            skipped.append(f"drift of {name}: {reason}")
            continue
        k, plates = (one.wells[PLATE].nunique() if one.has(PLATE) else 0 for one in (earlier, tables[name]))
        row = {"statistics": name, "correction": PLAIN, "refit_only": False, "k": k, "plates": plates, "metric": DRIFT}
        rows.append(row | {"fit": found.value, "fit_low": found.low, "fit_high": found.high, "note": found.note})
    return pd.DataFrame(rows)


def _part(profiles: Profiles, limit: int) -> np.ndarray:
    """The rows of some whole plates, about ``limit`` of them; the first ones where plates are not known."""
    plates = profiles.codes(PLATE) if profiles.has(PLATE) else np.arange(len(profiles)) // 100
    return whole_plates(plates, limit)


def _never_told(table: pd.DataFrame, metrics: Mapping[str, Metric]) -> list[str]:
    """A line for each reason why metrics could not be told of any pair."""
    told = table.groupby("metric", sort=False)["value"].transform(lambda values: values.notna().any())
    first = table[~told.astype(bool)].drop_duplicates("metric")
    reasons: dict[str, list[str]] = {}
    for key, note in zip(first["metric"], first["note"], strict=True):
        reasons.setdefault(note, []).append(metrics[key].title)
    return [f"{'; '.join(titles)}: {note}" for note, titles in reasons.items()]


def _notes(tables: Mapping[str, Profiles]) -> list[str]:
    """What is to be said of the tables, each line once."""
    if len(tables) == 1:
        return list(*(one.notes for one in tables.values()))
    found: dict[str, list[str]] = {}
    for name, one in tables.items():
        for note in one.notes:
            found.setdefault(note, []).append(name)
    return [note if len(of) == len(tables) else f"{', '.join(of)}: {note}" for note, of in found.items()]


def _shown_pairs(tables: Mapping[str, Profiles], corrections: Sequence[str]) -> Iterator[tuple[Pair, Profiles]]:
    """All pairs, with a bar where a person watches, and a line for each where not."""
    pairs = [((name, one), profiles) for name, profiles in tables.items() for one in corrections]
    watched = sys.stderr.isatty()
    for number, (pair, profiles) in enumerate(tqdm(pairs, desc="judge", unit="pair", disable=not watched), 1):
        if not watched:
            log.info("%d of %d: %s, %s", number, len(pairs), *pair)
        yield pair, profiles


def _corrected(profiles: Profiles, pair: Pair, seed: int) -> Profiles:
    """The profiles of a pair.

    Raises:
        CannotJudgeError: there are none.
    """
    one = counted(profiles) if pair[0] == COUNTED else profiles
    return as_directions(CORRECTIONS[pair[1]].fit_transform(one, seed))
