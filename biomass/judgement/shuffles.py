"""What a metric shows by chance: the same metric on labels that are shuffled where they may be exchanged.

Labels of plates are exchanged among wells of the same treatment, so that plates which hold different treatments are not
told apart by these. Labels of experiments are exchanged among whole plates, so that an experiment is more than the
plates it is made of. Places are exchanged on all plates alike, so that replicates at one place stay together. Labels of
treatments are exchanged within plates, so that a batch effect does not count as biology.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from biomass.errors import CannotJudgeError
from biomass.judgement.table import EXPERIMENT, PLATE, TREATMENT, WELL, Profiles

SHUFFLES = 20
"""Of labels, for each metric: enough for their mean and spread, from which p is taken."""


def shuffled(labels: np.ndarray, strata: np.ndarray, seed: int, times: int = SHUFFLES) -> np.ndarray:
    """The labels (N,), and below them shuffles of them within strata (N,): (1 + times, N).

    >>> shuffled(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1]), seed=1, times=2)
    array([[0, 1, 2, 3],
           [0, 1, 2, 3],
           [0, 1, 3, 2]])
    """
    generator = np.random.default_rng(seed)
    where = np.argsort(strata, kind="stable")
    rows = [labels]
    for _ in range(times):
        mixed = np.empty_like(labels)
        mixed[where] = labels[np.lexsort([generator.random(len(labels)), strata])]
        rows.append(mixed)
    return np.stack(rows)


def against_chance(values: np.ndarray, better: str, finest: float = 0.0) -> tuple[float, float]:
    """Chance, and the probability that chance alone does as well: (null, p).

    Args:
        values: (1 + S,) of the metric: the first as the labels are, the others shuffled. NaN are left out.
        better: ``higher`` or ``lower``: which side of chance an effect lies on.
        finest: the smallest p that the number of different shuffles allows.

    Returns:
        Their mean, and p by Student's t for one more value beside S: metrics are means over many wells.

    >>> null, p = against_chance(np.array([0.9, 0.48, 0.5, 0.52, 0.5]), "higher")
    >>> round(null, 3), p < 0.001
    (0.5, True)
    """
    chance = values[1:][np.isfinite(values[1:])]
    if len(chance) < 2:
        return (float(chance.mean()) if len(chance) else np.nan), np.nan
    null, spread = float(chance.mean()), float(chance.std(ddof=1)) * math.sqrt(1 + 1 / len(chance))
    excess = float(values[0] - null) * (1 if better == "higher" else -1)
    if spread <= 1e-9 * max(abs(null), 1e-9):  # nothing could be exchanged, or nothing depends on it
        return null, np.nan
    return null, max(float(student.sf(excess / spread, len(chance) - 1)), finest)


def plates(profiles: Profiles, rows: np.ndarray, seed: int, role: str) -> tuple[np.ndarray, float]:
    """Labels of plates or experiments (1 + S, N) of some wells, and the finest p.

    Raises:
        CannotJudgeError: there is only one, or every plate is an experiment of its own.
    """
    if not profiles.has(role):
        raise CannotJudgeError(f"no column says which {role} a well is of")
    codes = profiles.codes(role)[rows]
    if len(np.unique(codes)) < 2:
        found = f"there is only one {role}: nothing can be compared with it" if len(codes) else f"no {role} is known"
        raise CannotJudgeError(found)
    if role == EXPERIMENT and profiles.has(PLATE):
        own = profiles.codes(PLATE)[rows]
        known, first, place = np.unique(own, return_index=True, return_inverse=True)
        of_plate = codes[first]
        if np.unique(of_plate, return_counts=True)[1].max() < 2:
            raise CannotJudgeError("every experiment has one plate: what is the plate and what the experiment is one")
        if (of_plate[place] == codes).all():
            labels = shuffled(of_plate, np.zeros(len(known), np.int64), seed)[:, place]
            return labels, 1 / arrangements(of_plate)
    return shuffled(codes, exchangeable(profiles, rows, codes), seed), 0.0


def exchangeable(profiles: Profiles, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Strata (N,) within which labels of plates may be exchanged: the treatment, or the place where it is not known.

    What has one label only makes a stratum with all others of the kind.
    """
    role = next((each for each in (TREATMENT, WELL) if profiles.has(each)), None)
    if role is None:
        return np.zeros(len(rows), np.int64)
    codes = profiles.codes(role)[rows]
    pairs = np.unique(np.stack([codes, labels]), axis=1)[0]
    several = np.bincount(pairs + 1, minlength=codes.max() + 2)[codes + 1] > 1
    return np.where(several, codes, -1)


def arrangements(labels: np.ndarray) -> float:
    """In how many ways labels can be spread that are not the same but for their names.

    >>> arrangements(np.array([0, 0, 1, 1])), arrangements(np.array([0, 0, 1]))
    (3.0, 3.0)
    """
    counts = np.unique(labels, return_counts=True)[1]
    alike = np.unique(counts, return_counts=True)[1]
    number = math.lgamma(len(labels) + 1) - sum(math.lgamma(n + 1) for n in (*counts, *alike))
    return float(round(math.exp(number))) if number < 30 else math.inf


def means(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted means (S,) over the units of values (S, U), those that are finite."""
    known = np.isfinite(values)
    shares = known if weights is None else np.where(known, weights, 0)
    with np.errstate(invalid="ignore"):
        return (np.where(known, values, 0) * shares).sum(1) / shares.sum(1)


Values = Callable[[np.ndarray], np.ndarray]
"""From labels (N,) to one value a unit (U,)."""


def measure(labels: np.ndarray, values: Values) -> np.ndarray:
    """The values (1 + S, U) under labels (1 + S, N)."""
    return np.stack([values(each) for each in labels])
