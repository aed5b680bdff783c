"""Corrections of well profiles behind one signature: ``fit(profiles, seed)`` gives what has ``transform(profiles)``.

What a correction takes from the wells it was fitted on stays as it is when later plates come. What belongs to a plate
or a batch is learned from the wells of that plate or batch, once, and then stays too. *Refit only* are corrections that
know nothing of plates which were not there at the fit: each new plate changes all profiles.

No correction here is told what the wells hold, but for their negative controls. ComBat can be told the labels, to
protect them; labels of the wells that are judged would then be in the profiles by which they are judged.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from biomass.errors import BiomassError, CannotJudgeError
from biomass.evaluation import postprocess
from biomass.judgement.harmonize import fit_combat, fit_harmony
from biomass.judgement.per_plate import called, fit_position, fit_pycytominer, noted
from biomass.judgement.position import MOST, fills
from biomass.judgement.table import EXPERIMENT, PLATE, Profiles

ROWS = 16384
"""Wells corrected at once: bounds the memory beside the result."""

REFERENCE = 20_000
"""Wells at most that whitening is fitted on; of more, a seeded sample, evenly over plates or batches."""

BORROWED = 2000
"""Wells at most of the whole screen that a plate of a single well is standardized to."""


class Fitted(Protocol):
    """A correction that was fitted."""

    def transform(self, profiles: Profiles) -> Profiles:
        """Correct the profiles of wells, whether or not it was fitted on them.

        Raises:
            CannotJudgeError: it can say nothing of one of their plates.
        """


@dataclass(frozen=True)
class Correction:
    """A correction.

    Attributes:
        title: for people.
        cites: the paper.
        needs: what it needs of the wells, in words.
        fit: from profiles and a seed to what transforms profiles.
        refit_only: whether a plate that was not there at the fit cannot be corrected.
        new: what is taken from such a plate, in words.
    """

    title: str
    cites: str
    needs: str
    fit: Callable[[Profiles, int], Fitted]
    refit_only: bool = False
    new: str = "nothing"

    def fit_transform(self, profiles: Profiles, seed: int = 0) -> Profiles:
        """Fit it on wells, and correct these wells.

        Raises:
            CannotJudgeError: it cannot be fitted on them, or what it makes of them is not finite.

        >>> wells = Profiles(pd.DataFrame({"plate": [*"aabb"]}), np.float32([[1], [3], [5], [9]]), ("f",))
        >>> CORRECTIONS["standardize_all"].fit_transform(wells).features.astype(float).ravel().round(2).tolist()
        [-0.71, 0.71, -0.71, 0.71]
        """
        done = self.fit(profiles, seed).transform(profiles)
        if odd := int((~np.isfinite(done.features)).any(axis=1).sum()):
            raise CannotJudgeError(f"it makes profiles of {odd} of {len(done)} wells that are not finite")
        return done


@dataclass(frozen=True)
class _Unchanged:
    def transform(self, profiles: Profiles) -> Profiles:
        return profiles


@dataclass(frozen=True)
class _PostProcessed:
    """A correction of :mod:`biomass.evaluation.postprocess`."""

    correction: postprocess.Correction
    everyone: bool
    seed: int
    note: str

    def transform(self, profiles: Profiles) -> Profiles:
        correction, note = self.correction, ""
        groups = _groups(profiles)
        new = np.zeros(len(profiles), bool)
        for kind, step in zip(postprocess.CORRECTIONS[correction.how], correction.steps, strict=True):
            if postprocess.STEPS[kind].by:
                new |= ~np.isin(postprocess.group_names(groups, postprocess.STEPS[kind].by), step.known())
        if new.any():
            reference = _reference(profiles.take(new), correction.how, self.everyone, self.seed)
            note = reference.note
            for table, _ in reference.tables():
                correction = _judged(correction.learn, table)
        done = np.empty(profiles.features.shape, np.float32)
        order = np.lexsort((groups[postprocess.PLATE], groups[postprocess.BATCH]))
        for start in range(0, len(profiles), ROWS):
            part = order[start : start + ROWS]
            wells = _table(groups.iloc[part], profiles.features[part])
            done[part] = correction.apply(wells).iloc[:, groups.shape[1] :]
        return noted(profiles.with_features(done), self.note, note)


def _post_process(how: str, everyone: bool = False) -> Callable[[Profiles, int], Fitted]:
    """How to fit an entry of ``postprocess.CORRECTIONS``, on negative controls or on everyone."""

    def fit(profiles: Profiles, seed: int) -> Fitted:
        if how == "standardize" and not everyone and not profiles.negative.any():
            raise CannotJudgeError(
                "no negative control is known, and plates are standardized to theirs; standardize_all takes all wells"
            )
        reference = _reference(profiles, how, everyone, seed)
        if reference.chosen.sum() < 2:
            raise CannotJudgeError(f"{how} needs 2 wells to be fitted on, and there is {reference.chosen.sum()}")
        done: postprocess.Correction | None = None
        for table, chosen in reference.tables():
            if done is None:
                done = _judged(partial(postprocess.fit, how=how, fit_on=chosen), table)
            else:
                done = _judged(done.learn, table)
        assert done is not None
        return _PostProcessed(done, everyone, seed, reference.note)

    return fit


class _Reference(NamedTuple):
    """What a correction is fitted on.

    Attributes:
        groups: (n rows) plate and batch,
        rows: (n,) positions of wells among the profiles,
        chosen: (n,) bool, whether they are meant for what no plate has to itself.
        features: of the profiles.
        parts: rows after which a part may end, where plates may be learned one after the other; else the last alone.
        note: what to say of it.
    """

    groups: pd.DataFrame
    rows: np.ndarray
    chosen: np.ndarray
    features: np.ndarray
    parts: np.ndarray
    note: str

    def tables(self) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
        """Profile tables, and which of their rows are chosen."""
        start = 0
        for i, stop in enumerate(self.parts):
            if i + 1 == len(self.parts) or self.parts[i + 1] - start > ROWS:
                part = slice(start, stop)
                yield _table(self.groups[part], self.features[self.rows[part]]), self.chosen[part]
                start = stop


def _reference(profiles: Profiles, how: str, everyone: bool, seed: int) -> _Reference:
    """What a correction is fitted on.

    Negative controls; all wells of a plate (of a batch, where nothing goes by plate) that has fewer than two of them;
    and, for a plate that has a single well, wells of the whole screen.
    """
    groups, kinds = _groups(profiles), postprocess.CORRECTIONS[how]
    takes = np.ones(len(profiles), bool) if everyone else profiles.negative
    by = next((postprocess.STEPS[kind].by for kind in kinds if postprocess.STEPS[kind].by), ())
    names, codes = np.unique(postprocess.group_names(groups, by).astype(str), return_inverse=True)
    few = np.bincount(codes, takes, len(names)) < 2
    notes = []
    if not everyone and few.any():
        what = called(names[few]) if by else "the screen"
        notes.append(f"fewer than 2 negative controls, so all wells are taken: {what}")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(takes | few[codes]))
    rows = rows[np.argsort(codes[rows], kind="stable")]
    sizes = np.bincount(codes[rows], minlength=len(names))
    if kinds != ("standardize",) and len(rows) > REFERENCE:
        most = max(2, next(cap for cap in range(sizes.max(), 0, -1) if np.minimum(sizes, cap).sum() <= REFERENCE))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = rows[rank < most]
        notes.append(f"fitted on {len(rows)} of {sizes.sum()} wells, drawn with seed {seed}")
        sizes = np.minimum(sizes, most)
    chosen, whose = np.ones(len(rows), bool), codes[rows]
    single = np.flatnonzero(sizes < 2) if by else np.zeros(0, np.int64)
    for group in single:  # it borrows
        lent = rng.choice(len(codes), min(BORROWED, len(codes)), replace=False)
        rows, whose = np.append(rows, lent), np.append(whose, np.full(len(lent), group))
    if len(single):
        notes.append(f"one well alone, taken relative to the whole screen: {called(names[single])}")
        chosen = np.append(chosen, np.zeros(len(rows) - len(chosen), bool))
        order = np.argsort(whose, kind="stable")
        rows, chosen, whose = rows[order], chosen[order], whose[order]
    first = np.unique(codes, return_index=True)[1]
    parts = np.flatnonzero(np.diff(whose, append=-1)) + 1 if kinds == ("standardize",) else np.array([len(rows)])
    said = f"{how}: {'; '.join(notes)}" if notes else ""
    # a well that is lent stands under the name of the plate that borrows it
    return _Reference(groups.iloc[np.where(chosen, rows, first[whose])], rows, chosen, profiles.features, parts, said)


def _groups(profiles: Profiles) -> pd.DataFrame:
    """The plate and the batch (the plate, where none is known) of every well, under the names of profile tables."""
    if not profiles.has(PLATE):
        raise CannotJudgeError("which plate a well is on is not known, and a correction of plates needs it")
    plates = profiles.wells[PLATE]
    batches = profiles.wells[EXPERIMENT].where(lambda t: t != "", plates) if profiles.has(EXPERIMENT) else plates
    return pd.DataFrame({postprocess.BATCH: batches, postprocess.PLATE: plates}).reset_index(drop=True)


def _table(groups: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """A profile table, whose features have names that no rule takes for something else."""
    values = pd.DataFrame(features, columns=[f"emb_{i}" for i in range(features.shape[1])])
    return pd.concat([groups.reset_index(drop=True), values], axis=1)


def _judged(make: Callable[[pd.DataFrame], postprocess.Correction], table: pd.DataFrame) -> postprocess.Correction:
    """What is made of a table; what is impossible is said in the words of judgements."""
    try:
        return make(table)
    except CannotJudgeError:
        raise
    except BiomassError as error:
        raise CannotJudgeError(str(error)) from error


def _b_scores(profiles: Profiles, seed: int) -> Fitted:
    """B-scores, and what they take away where compounds fill rows."""
    fitted, share = fit_position(profiles, seed), fills(profiles, "edge")
    if share <= MOST:
        return fitted
    said = (
        f"position: {share:.0%} of the treated wells fill rows or columns with their compound, which is taken for them"
    )
    return replace(fitted, note="; ".join(filter(None, [fitted.note, said])))


_ONE_OR_TWO = "plates; negative controls, two a plate (a plate with fewer is taken relative to all of its wells)"
_TVN = "Ando et al. 2017"
_PYCYTOMINER = "Serrano et al. 2025"

CORRECTIONS: Mapping[str, Correction] = {
    "none": Correction("as they are", "", "nothing", lambda profiles, seed: _Unchanged()),
    "standardize": Correction(
        "standardized to the controls of the plate",
        "Ljosa et al. 2013",
        _ONE_OR_TWO,
        _post_process("standardize"),
        new="mean and spread of its controls",
    ),
    "standardize_all": Correction(
        "standardized to all wells of the plate",
        "Ljosa et al. 2013",
        "plates of two wells or more that hold much the same",
        _post_process("standardize", everyone=True),
        new="mean and spread of its wells",
    ),
    "whiten": Correction(
        "whitened on controls",
        _TVN,
        "negative controls (all wells are taken where fewer than two are known)",
        _post_process("whiten"),
    ),
    "tvn": Correction(
        "typical variation normalization",
        _TVN,
        "negative controls, two a batch (a batch with fewer is aligned on all of its wells)",
        _post_process("tvn"),
        new="the covariance of the controls of a new batch",
    ),
    "standardize_tvn": Correction(
        "standardized to the controls of the plate, then typical variation normalization",
        _TVN,
        _ONE_OR_TWO,
        _post_process("standardize_tvn"),
        new="mean and spread of its controls; the covariance of the controls of a new batch",
    ),
    "combat": Correction(
        "ComBat by plate",
        "Johnson et al. 2007",
        "two plates of two wells or more that hold much the same",
        fit_combat,
        new="mean and spread of its wells, shrunk as those of the plates of the fit are",
    ),
    "harmony": Correction(
        "Harmony by plate, on principal components",
        "Korsunsky et al. 2019",
        "two plates; the package harmonypy, which has a licence of its own (GPL-3)",
        fit_harmony,
        refit_only=True,
        new="it cannot be corrected without a new fit of all plates",
    ),
    "pycytominer": Correction(
        "pycytominer's normalize (standardize) by plate",
        _PYCYTOMINER,
        _ONE_OR_TWO,
        fit_pycytominer,
        new="mean and spread of its controls",
    ),
    "pycytominer_mad": Correction(
        "pycytominer's normalize (mad_robustize) by plate",
        _PYCYTOMINER,
        _ONE_OR_TWO,
        partial(fit_pycytominer, method="mad_robustize"),
        new="median and median absolute deviation of its controls",
    ),
    "position": Correction(
        "without row and column effects of the plate (B-score)",
        "Brideau et al. 2003",
        "plates, places of wells, four wells in a row or column whose effect is removed",
        _b_scores,
        new="row and column effects of its wells",
    ),
}
"""What can be done to the profiles of wells."""
