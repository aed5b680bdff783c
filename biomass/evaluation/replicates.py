"""Do replicates find each other? Mean average precision (mAP; Kalinin et al. 2025), through copairs.

Every profile ranks others by similarity; its average precision (AP) says how far ahead its replicates stand. Two
questions are asked, which differ in who the others are:

``same_plate``
    replicates on any plate against the negative controls *of the profile's own plate*: is there an effect at all?
``other_plate``
    replicates *on other plates* against the other treatments of the profile's own plate: does the effect survive
    a change of plate, or does the plate outweigh it? A batch effect lowers this one.

Both compare a profile with rivals of one plate only, so the number of pairs grows with the rows, not their square.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.evaluation.nearest import DISTANCES, directions
from biomass.evaluation.tables import METADATA, control_rows, feature_matrix, group_numbers

QUESTIONS = ("same_plate", "other_plate")

_VALUES = 2**24
"""Features of pairs compared at once: bounds the memory to a few times 128 MiB."""


@dataclass(frozen=True)
class ReplicateMap:
    """Mean average precision of the replicates of every treatment.

    Attributes:
        question: ``same_plate`` or ``other_plate``.
        mean: mean over the treatments of their mAP, 0..1.
        normalized_mean: the same for the normalized mAP: 0 is chance, 1 is perfect.
        treatments: a row for each treatment with at least one scored profile: the treatment's columns,
            ``mean_average_precision``, ``mean_normalized_average_precision``, ``p_value`` (against rankings at
            random), ``corrected_p_value`` (Benjamini-Hochberg), ``profiles`` (how many were scored).
        profiles: a row for each profile that is not a control, in the order and with the labels of the table: its
            metadata, ``n_pos_pairs``, ``n_total_pairs``, ``average_precision``, ``normalized_average_precision`` (NaN
            where not scored) and ``reason`` (why not, else ``None``).
    """

    question: str
    mean: float
    normalized_mean: float
    treatments: pd.DataFrame
    profiles: pd.DataFrame


def replicate_map(
    profiles: pd.DataFrame,
    treatment: str | Sequence[str],
    plate: str | Sequence[str],
    controls: object,
    question: str = "same_plate",
    metric: str = "cosine",
    null_size: int = 10_000,
    seed: int = 0,
) -> ReplicateMap:
    """Mean average precision of the replicates of every treatment.

    Of two equally similar profiles the replicate ranks last, so that an encoder which maps everything to one point
    scores worst and not best. Profiles without direction have similarity 0 to all.

    Args:
        profiles: a profile table, a row for each well (or image).
        treatment: the metadata columns that together name a treatment.
        plate: the metadata columns that together name a plate.
        controls: the negative controls: a bool for every row, or the name of a boolean column.
        question: ``same_plate`` or ``other_plate``, see the module.
        metric: ``cosine``, ``correlation`` (Pearson) or ``euclidean``.
        null_size: random rankings behind a p-value; the smallest p-value is 1 / (null_size + 1).
        seed: of the random rankings.

    Raises:
        ConfigError: the question, the metric or a column is unknown, or ``null_size`` is not positive.
        DataError: a feature is missing or infinite, a row has no treatment or plate, no row or every row is a control,
            or no profile has both a replicate and a rival.

    >>> wells = pd.DataFrame({"Metadata_compound": list("aabb-"), "f": [1, 2, 0, 0, 1], "g": [0, 0, 1, 2, -1]})
    >>> wells = wells.assign(Metadata_plate="P1", Metadata_control=wells["Metadata_compound"] == "-")
    >>> replicate_map(wells, "Metadata_compound", "Metadata_plate", "Metadata_control", null_size=10).mean
    1.0
    """
    if question not in QUESTIONS:
        raise ConfigError(f"question='{question}' is unknown; {did_you_mean(question, QUESTIONS)}")
    if metric not in DISTANCES:
        raise ConfigError(f"metric='{metric}' is unknown; {did_you_mean(metric, DISTANCES)}")
    if null_size < 1:
        raise ConfigError(f"null_size={null_size}, but a p-value needs at least one random ranking")
    treatment = [treatment] if isinstance(treatment, str) else list(treatment)
    matrix = feature_matrix(profiles).astype(np.float64, copy=False)
    control = control_rows(profiles, controls)
    if control.all():
        raise DataError(f"all {len(control)} rows are controls, so there is no treatment; give the treated rows, too")
    plates = group_numbers(profiles, plate)[0]
    treatments = np.empty(len(control), np.int64)
    treatments[~control] = named = group_numbers(profiles[~control], treatment)[0]
    # a control is nobody's replicate, whatever it is called: alone in its treatment, it makes no pair with others
    treatments[control] = named.max() + 1 + np.arange(control.sum())
    if metric != "euclidean":
        matrix = directions(matrix, centre=metric == "correlation")

    meta = pd.DataFrame({"treatment": treatments, "plate": plates, "control": control})
    if question == "same_plate":
        positive, negative = _pairs(meta, ["treatment"], []), _pairs(meta, ["plate"], ["control"])
    else:
        keep = np.flatnonzero(~control)
        positive, negative = (
            keep[_pairs(meta.iloc[keep], same, other)]
            for same, other in ((["treatment"], ["plate"]), (["plate"], ["treatment"]))
        )
    scores = _average_precision(matrix, positive, negative)
    scores["reason"] = np.select(
        [scores["n_pos_pairs"] == 0, scores["n_total_pairs"] == scores["n_pos_pairs"]],
        [
            "it has no replicate" + (" on another plate" if question == "other_plate" else ""),
            "its plate has no " + ("negative control" if question == "same_plate" else "other treatment"),
        ],
        default="",
    )
    scores["reason"] = scores["reason"].astype(object).where(scores["reason"] != "", None)
    metadata = profiles[[c for c in profiles.columns if str(c).startswith(METADATA)]].reset_index(drop=True)
    table = pd.concat([metadata, scores], axis=1).set_axis(profiles.index)[~control]
    scored = scores[scores["reason"].isna() & ~control].drop(columns="reason")
    if scored.empty:
        raise DataError(
            f"no profile can answer '{question}': of the first, {table['reason'].iloc[0]}; check the columns "
            f"'{treatment[0]}' and the plate's, or ask the other question"
        )
    summary = significance(scored.assign(treatment=treatments[scored.index]), null_size, seed)
    first = np.unique(treatments, return_index=True)[1]
    names = profiles[treatment].iloc[first[summary.pop("treatment").to_numpy()]].reset_index(drop=True)
    per_treatment = pd.concat([names, summary], axis=1)
    means = summary[["mean_average_precision", "mean_normalized_average_precision"]].mean()
    return ReplicateMap(question, float(means.iloc[0]), float(means.iloc[1]), per_treatment, table)


def _pairs(meta: pd.DataFrame, same: list[str], other: list[str]) -> np.ndarray:
    """Positions (P, 2) of the pairs of rows that agree in the columns ``same`` and differ in those of ``other``."""
    from copairs.matching import find_pairs  # seconds to import

    return find_pairs(meta.reset_index(drop=True), same, other).astype(np.int64)


def _average_precision(matrix: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> pd.DataFrame:
    """AP of all N rows from the pairs (P, 2) of replicates and of rivals; NaN where a row lacks either."""
    from copairs.compute import ap_contiguous

    pairs = np.concatenate([positive, negative])
    is_positive = np.repeat([True, False], [len(positive), len(negative)])
    distance = np.empty(len(pairs))
    block = max(1, _VALUES // matrix.shape[1])
    for start in range(0, len(pairs), block):
        part = pairs[start : start + block]
        # of unit vectors the squared difference is 2 (1 - cosine), without its loss of digits near 0
        distance[start : start + block] = np.square(matrix[part[:, 0]] - matrix[part[:, 1]]).sum(1)
    rows, is_positive, distance = pairs.T.ravel(), np.tile(is_positive, 2), np.tile(distance, 2)
    order = np.lexsort([is_positive, distance, rows])  # at equal distance the rival first
    n = len(matrix)
    count, positives = np.bincount(rows, minlength=n), np.bincount(rows[is_positive], minlength=n)
    scores = pd.DataFrame({"n_pos_pairs": positives, "n_total_pairs": count})
    scores["average_precision"] = np.nan
    if len(rows):
        relevant = is_positive[order].astype(np.uint32)
        scores.loc[count > 0, "average_precision"] = ap_contiguous(relevant, count[count > 0].astype(np.uint32))[0]
    unanswered = (positives == 0) | (count == positives)
    scores.loc[unanswered, "average_precision"] = np.nan
    chance = expected_precision(positives, np.maximum(count, 2))
    scores["normalized_average_precision"] = (scores["average_precision"] - chance) / (1 - chance).clip(1e-10)
    return scores


def expected_precision(positives: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Expected AP of a random ranking of ``total`` >= 2 profiles, ``positives`` of them replicates.

    ``((M - 1) / (L - 1) (L - H_L) + H_L) / L`` with the harmonic number H_L (Bestgen 2015).

    >>> expected_precision(np.array([1, 2]), np.array([2, 2]))  # one of two: 1 or 1/2
    array([0.75, 1.  ])
    """
    from scipy.special import digamma  # training imports this module, and needs nothing of it

    harmonic = digamma(total + 1.0) + np.euler_gamma
    return ((positives - 1) / (total - 1) * (total - harmonic) + harmonic) / total


def significance(scored: pd.DataFrame, null_size: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Mean average precision of each treatment with its p-value against rankings at random.

    Args:
        scored: a row a profile: ``treatment``, ``n_pos_pairs``, ``n_total_pairs``, ``average_precision``,
            ``normalized_average_precision``; none missing.
        null_size: random rankings behind a p-value.
        seed: of the random rankings.

    Returns:
        A row a treatment, see :attr:`ReplicateMap.treatments`, with its ``treatment``.

    >>> scored = pd.DataFrame({"treatment": [7, 7], "n_pos_pairs": [1, 1], "n_total_pairs": [9, 9]})
    >>> scored = scored.assign(average_precision=[1.0, 0.5], normalized_average_precision=[1.0, 0.3])
    >>> significance(scored, null_size=10)[["treatment", "mean_average_precision", "profiles"]]
       treatment  mean_average_precision  profiles
    0          7                    0.75         2
    """
    from copairs.map import mean_average_precision

    logging.getLogger("copairs").setLevel(logging.WARNING)  # it logs every step of every call
    # copairs keeps random rankings in the home folder and takes them from there under any seed position: a folder
    # of our own, empty at first, keeps the same seed giving the same p-values
    with tempfile.TemporaryDirectory() as folder:
        summary = mean_average_precision(
            scored, ["treatment"], null_size, threshold=0.05, seed=seed, progress_bar=False, cache_dir=folder
        )
    summary["profiles"] = summary["indices"].map(len)
    columns = ["mean_average_precision", "mean_normalized_average_precision", "p_value", "corrected_p_value"]
    return summary[["treatment", *columns, "profiles"]]
