"""Position effects: what the row, the column and the edge of the plate do to profiles.

The *size* of an effect is the share of the variance within plates that rows (columns, the edge) explain, less what they
would explain by chance. Chance is found by permuting: wells exchange their profiles within a plate, and within kinds of
controls, so that controls which fill a column do not look like an effect of the column. Treated wells exchange the
same places on all plates, because many screens repeat one layout. Where a compound fills a row or a column, the place
cannot be told from the compound; negative controls alone are judged then, if they lie at several places.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from biomass.errors import CannotJudgeError
from biomass.identifiers import wells_at
from biomass.judgement.harmonize import axes, project
from biomass.judgement.per_plate import places
from biomass.judgement.scores import interval
from biomass.judgement.table import COLUMN, COMPOUND, CONTROL, PLATE, ROW, TREATMENT, Profiles

KINDS = ("row", "column", "edge")
COMPONENTS = 10
"""Leading principal components, of what varies within plates, in which position effects are looked for."""

MOST = 0.5
"""Share of wells, or of treatments, from which a layout makes places and treatments one."""

PERMUTATIONS = 199
"""Of places, behind every p: the smallest is one in 200."""

SAMPLE = 20_000
"""Wells at most that these components are found on."""

_SAME = 1e-9  # relative difference below which two sums are equal


class _Wells(NamedTuple):
    """Wells that have a place, in the order of their strata: the kinds of controls of each plate.

    Attributes:
        scores: (n, K), components of what varies within strata.
        plates: (n,) int, their plates.
        names: of the plates.
        strata: (n,) int.
        rows: (n,) and
        columns: (n,) from 0.
        edge: (n,) int, 1 where a well lies in the outermost rows and columns that are in use.
        free: (n,) bool, negative controls.
    """

    scores: np.ndarray
    plates: np.ndarray
    names: np.ndarray
    strata: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    edge: np.ndarray
    free: np.ndarray

    def of(self, kind: str) -> np.ndarray:
        """The place (n,) int of a kind of every well."""
        return {"row": self.rows, "column": self.columns, "edge": self.edge}[kind]


def position_table(
    profiles: Profiles, statistics: str = "", correction: str = "", seed: int = 0, permutations: int = PERMUTATIONS
) -> pd.DataFrame:
    """How large position effects are, and where.

    Args:
        profiles: with plates, rows and columns.
        statistics: first column of the table,
        correction: and the second.
        seed: of permutations and samples.
        permutations: of places, behind p.

    Returns:
        A row for each plate and kind (``row``, ``column``, ``edge``) with an empty place: ``effect`` is the share of
        the variance within the plate that the kind explains beyond chance, about 0 where there is none, and ``p`` is
        from permutations. Plate "" is all plates together, with an interval over plates; its p is that of what places
        do on each plate, or of what they do alike on all, whichever stands out more. Where every well that is compared
        has a place of its own, the share is that of what places do alike.
        And for plate "" a row for each place (``A``, ``1``, ``edge``, ``inner``): its ``effect`` is where its wells
        lie, in standard deviations within plates, along the direction in which places of the kind differ most.

    Raises:
        CannotJudgeError: places are not known, or no plate has wells at several places.

    >>> wells = pd.DataFrame({"plate": np.repeat(["a", "b"], 24), "row": [*np.repeat(range(4), 6)] * 2})
    >>> wells["column"] = [*range(6)] * 8
    >>> values = np.random.default_rng(0).normal(size=(48, 2)) + 9.0 * (wells[["column"]] == 5).to_numpy()
    >>> found = position_table(Profiles(wells, np.float32(values), ("f", "g")))
    >>> found[(found["plate"] == "") & (found["place"] == "")].set_index("kind")["p"].to_dict()
    {'row': 0.915, 'column': 0.005, 'edge': 0.165}
    """
    wells, negative = _wells(profiles, seed), profiles.negative
    controls = _wells(profiles, seed, negative) if (negative & (places(profiles) >= 0).all(0)).any() else None
    tables = []
    for kind in KINDS:
        judged = wells if fills(profiles, kind) <= MOST else controls
        if judged is not None and _several(judged, kind):
            tables.append(_of_kind(judged, kind, seed, permutations))
    if not tables:
        raise CannotJudgeError("no plate has comparable wells in several rows or columns")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "correction", correction)
    table.insert(0, "statistics", statistics)
    return table


def position_notes(profiles: Profiles) -> tuple[str, ...]:
    """What the layout makes impossible to tell."""
    notes = []
    what = "compound" if profiles.has(COMPOUND) else "treatment"
    for kind in KINDS[:2]:
        share = fills(profiles, kind)
        if share > MOST:
            notes.append(
                f"{share:.0%} of the treated wells share their {kind} with all wells of their {what} on the plate: "
                f"{kind} and edge cannot be told from the {what}; controls at several are judged alone"
            )
    share = _same_well(profiles)
    if share > MOST:
        notes.append(
            f"{share:.0%} of the treatments on several plates are in the same well on each: what they share may "
            "be their place"
        )
    return tuple(notes)


def _treated(profiles: Profiles, role: str) -> pd.DataFrame:
    """Plate, row, column and name of the treated wells that have a place and a name."""
    wells = profiles.wells[[PLATE, ROW, COLUMN, role]][profiles.treated]
    return wells[(wells[role] != "") & (wells[ROW] >= 0)]


def fills(profiles: Profiles, kind: str) -> float:
    """The share of treated wells whose compound has several wells on the plate, all in one row (or column).

    Of the edge it is the larger of the two. 0 where nothing is known of plates, places or compounds.
    """
    if kind == "edge":
        return max(fills(profiles, "row"), fills(profiles, "column"))
    role = COMPOUND if profiles.has(COMPOUND) else TREATMENT
    if not profiles.has(PLATE, role, ROW, COLUMN):
        return 0.0
    wells = _treated(profiles, role).groupby([PLATE, role])[kind].agg(["size", "nunique"])
    alike = wells["size"][(wells["size"] > 1) & (wells["nunique"] == 1)]
    return float(alike.sum() / max(wells["size"].sum(), 1))


def _same_well(profiles: Profiles) -> float:
    """The share of treatments on several plates that are in the same well on each."""
    if not profiles.has(PLATE, TREATMENT, ROW, COLUMN):
        return 0.0
    wells = _treated(profiles, TREATMENT)
    place = wells[ROW] * 1000 + wells[COLUMN]
    per = wells.assign(place=place).groupby(TREATMENT).agg(plates=(PLATE, "nunique"), places=("place", "nunique"))
    wide = per[per["plates"] > 1]
    return float((wide["places"] == 1).mean()) if len(wide) else 0.0


def _wells(profiles: Profiles, seed: int, chosen: np.ndarray | None = None) -> _Wells:
    """The wells that have a place, and what varies within their strata."""
    rows, columns = places(profiles)
    kept = (rows >= 0) & (columns >= 0)
    kept = np.flatnonzero(kept if chosen is None else kept & chosen)
    if not len(kept):
        raise CannotJudgeError("no well that is to be judged has a place on its plate")
    names, plates = np.unique(profiles.wells[PLATE].to_numpy(str)[kept], return_inverse=True)
    kinds = profiles.wells[CONTROL].to_numpy(str)[kept] if profiles.has(CONTROL) else np.full(len(kept), "")
    _, kinds = np.unique(kinds, return_inverse=True)
    _, strata = np.unique(plates * (kinds.max() + 1) + kinds, return_inverse=True)
    order = np.lexsort((columns[kept], rows[kept], strata))  # as permutations need them
    kept, plates, strata = kept[order], plates[order], strata[order]
    sample = kept
    if len(kept) > SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(len(kept), SAMPLE, replace=False))
        sample, in_sample = kept[chosen], strata[chosen]
    else:
        in_sample = strata
    weights = axes(_centred(profiles.features[sample].astype(np.float64), in_sample), COMPONENTS)
    if not weights.shape[1]:
        raise CannotJudgeError("the wells that are to be judged do not vary within plates")
    scores = project(profiles.features[kept], profiles.features[sample].mean(0, dtype=np.float64), weights)
    scores = _centred(scores.astype(np.float64), strata)
    scores /= max(float(np.sqrt((scores**2).mean())), 1e-12)
    in_use = [one[(rows >= 0) & (columns >= 0)] for one in (rows, columns)]
    at = rows[kept], columns[kept]
    outer = [(one == all_.min()) | (one == all_.max()) for one, all_ in zip(at, in_use, strict=True)]
    edge = np.any(outer, axis=0).astype(np.int64)
    return _Wells(scores, plates, names, strata, *at, edge, profiles.negative[kept])


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows (n, D) less the mean of their group."""
    frame = pd.DataFrame(values)
    done: np.ndarray = values - frame.groupby(groups).transform("mean").to_numpy()
    return done


def _several(wells: _Wells, kind: str) -> bool:
    """Whether wells of one stratum lie at several places of a kind."""
    places = pd.Series(wells.of(kind)).groupby(wells.strata)
    return bool((places.max() > places.min()).any())


def _of_kind(wells: _Wells, kind: str, seed: int, permutations: int) -> pd.DataFrame:
    """The rows of :func:`position_table` of one kind."""
    levels, place = np.unique(wells.of(kind), return_inverse=True)
    plates, count = len(wells.names), len(place)
    group = wells.plates * len(levels) + place
    sums = sparse.csr_array((np.ones(count), (group, np.arange(count))), shape=(plates * len(levels), count))
    sizes = np.bincount(group, minlength=plates * len(levels)).reshape(plates, len(levels))
    total = np.bincount(wells.plates, (wells.scores**2).sum(1), plates)

    def look(scores: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """What places explain of each plate (P,), what they explain alike on all, where their wells lie (P, L)."""
        found = (sums @ scores).reshape(plates, len(levels), -1)
        own = ((found**2).sum(2) / np.maximum(sizes, 1)).sum(1)
        alike = found.sum(0) / np.sqrt(sizes.sum(0))[:, None]
        along = np.linalg.svd(alike, full_matrices=False)[2][0]
        return own, float((alike**2).sum()), found @ (along / max(float((scores @ along).std()), 1e-12))

    own, alike, lying = look(wells.scores)
    effects = lying.sum(0) / sizes.sum(0)
    lying, effects = (one * np.sign(effects[np.abs(effects).argmax()]) for one in (lying, effects))
    rng = np.random.default_rng(seed)
    chance, sizes_found = np.zeros(plates), [(own.sum(), alike)]
    beyond, beyond_place = np.ones(plates), np.ones(len(levels))
    for _ in range(permutations):
        keys = rng.random((wells.rows.max() + 1, wells.columns.max() + 1))[wells.rows, wells.columns]
        keys[wells.free] = rng.random(int(wells.free.sum()))
        by_own, by_alike, at = look(wells.scores[np.lexsort((keys, wells.strata))])
        chance += by_own / permutations
        sizes_found.append((by_own.sum(), by_alike))
        beyond += by_own >= own * (1 - _SAME)
        beyond_place += np.abs(at.sum(0) / sizes.sum(0)) >= np.abs(effects) * (1 - _SAME)
    more, room = own - chance, total - chance
    fits = room > total * _SAME  # where every well has a place of its own, nothing is left to explain
    share = np.divide(more, room, out=np.full(plates, np.nan), where=fits)
    if fits.any():
        whole = float(more[fits].sum() / room[fits].sum())
        low, high = interval(np.where(fits, more, 0), np.where(fits, room, 0), np.arange(plates), seed)
    else:
        chance_alike = float(np.mean([one for _, one in sizes_found[1:]]))
        left = total.sum() - chance_alike
        whole = (alike - chance_alike) / left if left > total.sum() * _SAME else np.nan
        low = high = np.nan
    ends = [interval(lying[:, i], sizes[:, i].astype(float), np.arange(plates), seed) for i in range(len(levels))]
    every = permutations + 1
    rows = [("", "", whole, low, high, _larger(np.array(sizes_found)))]
    rows += [
        ("", _place(kind, int(levels[i])), effects[i], *ends[i], beyond_place[i] / every) for i in range(len(levels))
    ]
    rows += [(str(wells.names[i]), "", share[i], np.nan, np.nan, beyond[i] / every) for i in range(plates)]
    table = pd.DataFrame(rows, columns=["plate", "place", "effect", "low", "high", "p"])
    table.insert(1, "kind", kind)
    return table


def _larger(found: np.ndarray) -> float:
    """The p of the first row of (n, 2) by what stands out more of its two sizes, among rows of which it may be any."""
    found = np.where(np.ptp(found, axis=0) > _SAME * np.abs(found).max(0), found, 0.0)  # what never changes is rounding
    spread = found.std(0)
    out = ((found - found.mean(0)) / np.where(spread > 0, spread, 1.0)).max(1)
    return float((out >= out[0] - _SAME).mean())


def _place(kind: str, number: int) -> str:
    """What people call a place: ``A``, ``1``, ``edge``."""
    if kind == "edge":
        return ("inner", "edge")[number]
    return wells_at(np.array([number + 1]), np.array([1]))[0][:-2] if kind == "row" else str(number + 1)
