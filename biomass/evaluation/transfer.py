"""From the profiles of wells to scores: post-processing, treatments, mechanisms of action, batch effects.

:mod:`biomass.evaluation.encode` makes the profiles of images, one table for each choice of statistics; what is done
here is quick and starts from these tables. Wells are the means of their images, treatments the medians of their wells.
:mod:`biomass.evaluation.report` makes tables, files and figures of the result.

Profile tables call the columns of a Screen ``Metadata_<column>``, but for the experiment, which is ``Metadata_batch``
(for BBBC021 the week). Features are called ``emb_0000…``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.evaluation.nearest import BatchMixing, NearestResult, batch_mixing, nsc, nscb
from biomass.evaluation.replicates import QUESTIONS, replicate_map
from biomass.evaluation.tables import METADATA, aggregate, row_names
from biomass.evaluation.whitening import tvn, whiten

COLUMNS: Mapping[str, str] = {"experiment": "Metadata_batch"} | {
    name: f"{METADATA}{name}" for name in ("plate", "well", "site", "control", "compound", "concentration", "moa")
}
"""The columns of a Screen that profiles keep, and what they are called there."""

WELL = ("Metadata_batch", "Metadata_plate", "Metadata_well")
TREATMENT = ("Metadata_compound", "Metadata_concentration")


@dataclass(frozen=True)
class Postprocessing:
    """One way to correct the profiles of wells.

    Attributes:
        title: what tables and figures for people call it.
        apply: (wells, controls) → wells with other features; ``controls`` (N,) bool are the rows it is fitted on.
        controls: how many wells of negative controls it needs,
        each: a column of the wells for each of whose values it needs them, or None: in all.
    """

    title: str
    apply: Callable[[pd.DataFrame, np.ndarray], Any]
    controls: int = 0
    each: str | None = None


POSTPROCESSINGS: Mapping[str, Postprocessing] = {
    "none": Postprocessing("none", lambda wells, controls: wells),
    "whiten": Postprocessing("whitening", whiten, 2),
    # TVN aligns batches (weeks): a plate has too few control wells for a covariance
    "tvn": Postprocessing("TVN", lambda wells, controls: tvn(wells, controls, "Metadata_batch"), 2, "Metadata_batch"),
}
"""What can be done to the profiles of wells. A new entry is all that a new post-processing needs."""


@dataclass(frozen=True)
class Evaluation:
    """One row of the table: a choice of statistics with a post-processing.

    Attributes:
        wells: the post-processed profiles of all wells.
        treatments: their medians, without controls; ``Metadata_batch`` is the tuple of batches of a treatment's wells.
        nsc: mechanisms predicted by the nearest treatment of another compound.
        nscb: by the nearest treatment that shares no batch either.
        mixing: how often the nearest neighbour of a control well is of its own batch (:func:`batch_mixing`), told by
            control wells that were held out, see :func:`evaluate`; None where it cannot be told.
        replicates: for the questions ``same_plate`` and ``other_plate`` of :func:`replicate_map`, the mean average
            precision of replicates, and the same above chance (0 is chance, 1 perfect); NaN where it cannot be told.
    """

    wells: pd.DataFrame
    treatments: pd.DataFrame
    nsc: NearestResult
    nscb: NearestResult
    mixing: BatchMixing | None
    replicates: Mapping[str, tuple[float, float]]


def well_profiles(images: pd.DataFrame) -> pd.DataFrame:
    """Average the images of each well: a row for each well, its ``Metadata_cells`` the sum over its images.

    Raises:
        DataError: a feature is missing or infinite, or a well holds two treatments.

    >>> same = dict.fromkeys(COLUMNS.values(), "A01")
    >>> images = pd.DataFrame(same | {"Metadata_site": [1, 2], "Metadata_cells": [3, 1], "emb_0000": [1.0, 2.0]})
    >>> well_profiles(images)[["Metadata_cells", "emb_0000"]].to_numpy().tolist()
    [[4.0, 1.5]]
    """
    keep = [c for c in COLUMNS.values() if c not in (*WELL, "Metadata_site")]
    wells = aggregate(images, WELL, "mean", keep)
    wells["Metadata_control"] = _kinds(wells)
    cells = images.groupby(list(WELL), sort=True)["Metadata_cells"].sum()
    wells.insert(len(WELL) + len(keep), "Metadata_cells", cells.to_numpy())
    return wells


def postprocess(wells: pd.DataFrame, how: str, fitted: np.ndarray | None = None) -> pd.DataFrame:
    """Correct the profiles of wells, fitted on the wells of negative controls.

    Wells are corrected before the median over them is taken: there are many control wells but one control treatment,
    and the replicates of a treatment differ as control wells do, not as cells or images do.

    Args:
        wells: as :func:`well_profiles` gives them.
        how: a key of :data:`POSTPROCESSINGS`.
        fitted: the wells that it is fitted on, a bool for each; None: all negative controls.

    Raises:
        ConfigError: ``how`` is unknown.
        DataError: there are fewer than two control wells (for TVN: in a batch, which is named).

    >>> wells = pd.DataFrame({"Metadata_control": ["negative", "negative", ""], "emb_0000": [1.0, 3.0, 5.0]})
    >>> postprocess(wells, "whiten")["emb_0000"].round(2).tolist()  # (x - mean) / spread of the controls
    [-0.7, 0.7, 2.11]
    """
    if how not in POSTPROCESSINGS:
        raise ConfigError(f"postprocessing '{how}' is unknown; {did_you_mean(how, POSTPROCESSINGS)}")
    controls = _kinds(wells) == "negative" if fitted is None else fitted
    done: pd.DataFrame = POSTPROCESSINGS[how].apply(wells, controls)
    return done


def treatment_profiles(wells: pd.DataFrame) -> pd.DataFrame:
    """The median over the wells of each treatment, controls left out.

    Returns:
        A row for each treatment: compound, concentration, moa, ``Metadata_batch`` and ``Metadata_plate`` as the tuples
        of all that its wells are in, ``Metadata_wells`` (how many), and the features.

    Raises:
        DataError: there is no treated well, a feature is missing or infinite, or a treatment has two mechanisms.
    """
    treated = wells[_kinds(wells) == ""]
    if treated.empty:
        raise DataError(f"none of the {len(wells)} wells is treated, so there are no treatments to compare")
    collect = ["Metadata_batch", "Metadata_plate"]
    treatments = aggregate(treated, TREATMENT, "median", ["Metadata_moa"], collect)
    count = treated.groupby(list(TREATMENT), sort=True).size()
    treatments.insert(len(TREATMENT) + 1 + len(collect), "Metadata_wells", count.to_numpy())
    return treatments


def evaluate(wells: pd.DataFrame, postprocessing: str = "none", metric: str = "cosine") -> Evaluation:
    """Post-process wells, predict the mechanisms of treatments, and see whether batches mix and replicates agree.

    Batch mixing, and replicates against the controls of their plate, compare control wells, which the post-processing
    is fitted on. Judged by the very wells that it was fitted on, one with more features than wells can draw the wells
    of a batch together, or push them apart, though batches do not differ at all. The control wells of every batch are
    therefore split into halves: what is fitted on one half is judged by the other, and the two are averaged. The
    halves are the same for every post-processing, so that the scores can be compared.

    Batch mixing looks at controls only: treatments differ from week to week, so that the nearest neighbour of a treated
    well is often of its week for a good reason.

    Args:
        wells: as :func:`well_profiles` gives them.
        postprocessing: a key of :data:`POSTPROCESSINGS`.
        metric: distance between treatments, see :func:`nsc`, and between replicates.

    Raises:
        ConfigError, DataError: as :func:`postprocess`, :func:`treatment_profiles`, :func:`nsc` and :func:`nscb`.

    >>> about = ["batch", "plate", "well", "compound", "concentration", "moa", "control"]
    >>> rows = [("W1", "P1", "B02", "a", 1.0, "actin", "", 1, 0), ("W2", "P2", "B02", "b", 1.0, "actin", "", 1, 0.1)]
    >>> rows += [("W1", "P1", "B03", "c", 1.0, "DNA", "", 0, 1), ("W2", "P2", "B03", "d", 1.0, "DNA", "", 0.1, 1)]
    >>> wells = pd.DataFrame(rows, columns=[*(METADATA + name for name in about), "emb_0000", "emb_0001"])
    >>> one = evaluate(wells)
    >>> one.nscb.accuracy, one.mixing  # without controls there is nothing to tell mixing by
    (1.0, None)
    """
    done = postprocess(wells, postprocessing)
    treatments = treatment_profiles(done)
    labels = (treatments, "Metadata_compound", "Metadata_moa")
    by_compound, by_batch = nsc(*labels, metric), nscb(*labels, "Metadata_batch", metric)
    halves = held_out(wells, postprocessing)
    scores = {
        "same_plate": [_replicates(half, "same_plate", metric) for half in halves],
        "other_plate": [_replicates(done, "other_plate", metric)],  # no control takes part: nothing to hold out
    }
    replicates = {q: tuple(np.mean(scores[q] or [(np.nan, np.nan)], axis=0).tolist()) for q in QUESTIONS}
    return Evaluation(done, treatments, by_compound, by_batch, held_out_mixing(halves), replicates)


def held_out(wells: pd.DataFrame, postprocessing: str = "none") -> list[pd.DataFrame]:
    """Wells post-processed twice, each time fitted on one half of the control wells, which is then left out.

    Args:
        wells: as :func:`well_profiles` gives them.
        postprocessing: a key of :data:`POSTPROCESSINGS`.

    Returns:
        Two tables; every other control well of a batch, in the order of their names, is in the first, the rest is in
        the second, all other wells are in both. None at all where a batch has one to three control wells, of which a
        half would be too small for TVN, or where there are none.

    Raises:
        ConfigError, DataError: as :func:`postprocess`.
    """
    wells = wells.sort_values(list(WELL), ignore_index=True)
    controls = pd.Series(_kinds(wells) == "negative")
    if not controls.any() or wells.loc[controls, "Metadata_batch"].value_counts().min() < 4:
        return []
    number = wells[controls].groupby("Metadata_batch").cumcount().reindex(wells.index, fill_value=-1).to_numpy()
    halves = (controls.to_numpy() & (number % 2 == half) for half in (0, 1))
    return [postprocess(wells, postprocessing, fitted)[~fitted].reset_index(drop=True) for fitted in halves]


def held_out_mixing(halves: list[pd.DataFrame]) -> BatchMixing | None:
    """How often the nearest neighbour of a control well is of its own batch, averaged over both halves.

    Args:
        halves: as :func:`held_out` gives them.

    Returns:
        ``share`` and ``expected`` are means over all control wells, in all and by batch; None without halves.
    """
    if not halves:
        return None
    parts = [batch_mixing(half[_kinds(half) == "negative"], "Metadata_batch").by_batch for half in halves]
    rows = parts[0]["rows"] + parts[1]["rows"]
    one, other = (part[["share", "expected"]].mul(part["rows"] / rows, axis=0) for part in parts)
    by_batch = one + other
    share, expected = np.average(by_batch, axis=0, weights=rows)
    return BatchMixing(float(share), float(expected), by_batch.assign(rows=rows)[["rows", "share", "expected"]])


def _kinds(wells: pd.DataFrame) -> np.ndarray:
    """``negative`` or ``positive`` for controls, empty for treated wells, (N,); a missing value counts as empty."""
    return row_names(wells, "Metadata_control", "control")


def _replicates(wells: pd.DataFrame, question: str, metric: str) -> tuple[float, float]:
    """Mean average precision of replicates, and the same above chance; NaN where no well can answer the question."""
    wells = wells[_kinds(wells) != "positive"]
    controls = _kinds(wells) == "negative"
    try:
        found = replicate_map(wells, TREATMENT, WELL[:2], controls, question, metric, null_size=1)
    except DataError:  # no control, no replicate or no rival: features and names have been looked at before
        return np.nan, np.nan
    return found.mean, found.normalized_mean
