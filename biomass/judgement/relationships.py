"""Are known relationships recalled? Pairs of compounds or genes that belong together, given as a table.

A pair is recalled if the similarity of its profiles is extreme: among the 5 % lowest or the 5 % highest of all pairs
(Celik et al. 2022, bioRxiv 2022.12.09.519400; Kraus et al. 2023, arXiv 2309.16064). Opposites count, as two genes of
one complex may move cells in opposite directions. So chance is about 10 %; it is measured, with pairs drawn at random.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from biomass.errors import CannotJudgeError, DataError
from biomass.evaluation.nearest import directions
from biomass.identifiers import names
from biomass.judgement.questions import SHUFFLES
from biomass.judgement.scores import Measured, Metric
from biomass.judgement.table import COMPOUND, TREATMENT, Profiles
from biomass.table_files import read_table

TAIL = 0.05
"""Share of all pairs that is extreme, at each end."""

_ALL, _PAIRS = 300_000, 4_000
_FEWEST = 7  # names: 21 pairs, one at each end
_SHOWN = 3

log = logging.getLogger(__name__)


def read_pairs(path: str | Path) -> pd.DataFrame:
    """Read a table of two columns of names, one pair a row, in any format of :mod:`biomass.table_files`.

    Names are in the normal form of :mod:`biomass.identifiers`. A pair counts once, in whichever direction and however
    often it is listed; pairs of a name with itself, or with a missing name, are left out, which the log says.

    Returns:
        Columns ``one`` and ``other``, of each pair the names in their order.

    Raises:
        DataError: the table cannot be read, or has not two columns, or no pair.

    >>> file = getfixture("tmp_path") / "pairs.csv"
    >>> _ = file.write_text("gene,partner\\nTP53,MDM2\\nMDM2,TP53 \\nRB1,RB1\\n")
    >>> read_pairs(file)
        one other
    0  MDM2  TP53
    """
    table = read_table(path, "table of known pairs")
    if len(table.columns) != 2:
        raise DataError(
            f"table of known pairs '{path}' has {len(table.columns)} columns ({', '.join(table.columns[:5])}); it must "
            "have two, the names of those that belong together"
        )
    frame = table.frame()
    both = pd.concat([frame.iloc[:, 0], frame.iloc[:, 1]], ignore_index=True)
    count = len(frame)
    text = names(both, "name", place=lambda row: table.place(row % count))
    for header in table.columns:
        if header in set(text):
            raise DataError(
                f"table of known pairs '{path}' has '{header}' in its first row, and as a name below it, "
                "too; put a row with names of the columns above it"
            )
    swap = text[:count] > text[count:]
    one, other = np.where(swap, text[count:], text[:count]), np.where(swap, text[:count], text[count:])
    kept = (one != "") & (one != other)
    pairs = pd.DataFrame({"one": one, "other": other})[kept].drop_duplicates(ignore_index=True)
    if pairs.empty:
        raise DataError(f"table of known pairs '{path}' has no pair of two different names")
    for rows, what in (((~kept).sum(), "lack a name or name one twice"), (kept.sum() - len(pairs), "repeat a pair")):
        if rows:
            log.warning("'%s': %d of %d rows %s; they are left out", path, rows, count, what)
    return pairs


def relationships(profiles: Profiles, pairs: pd.DataFrame, seed: int = 0) -> Measured:
    """Share of known pairs whose similarity (cosine of mean profiles) is extreme.

    Args:
        profiles: of wells. A name is one of a compound or of a treatment, of whichever more are known.
        pairs: of :func:`read_pairs`.
        seed: of what is drawn: pairs where there are more than 4,000, and 300,000 of all pairs.

    Returns:
        One value a pair. Chance and p are of the same pairs with the names dealt again, which leaves who is paired
        how often as it is.

    Raises:
        CannotJudgeError: no pair has both its names in the profiles, or there are too few names.

    >>> wells = pd.DataFrame({"compound": ["a", "b", "c", "d", "e", "f", "g"]})
    >>> features = np.array([[1, 0], [1, 0.01], [0, 1], [1, 1], [-1, 1], [-1, 0.5], [0.3, -1]], np.float32)
    >>> found = relationships(Profiles(wells, features, ("f", "g")), pd.DataFrame({"one": ["a"], "other": ["b"]}))
    >>> found.values, found.null.round(2)
    (array([1.]), np.float64(0.17))
    """
    listed = np.unique(pairs[["one", "other"]].to_numpy())
    roles = [role for role in (COMPOUND, TREATMENT) if profiles.has(role)]
    if not roles:
        raise CannotJudgeError("the table does not say the compound or the treatment of its wells")
    named = {role: profiles.wells[role].where(~profiles.negative, "").to_numpy(str) for role in roles}
    role = max(roles, key=lambda one: np.isin(listed, named[one]).sum())
    rows = np.flatnonzero(named[role] != "")
    known, of = np.unique(named[role][rows], return_inverse=True)
    place = {name: i for i, name in enumerate(known)}
    index = np.array([[place.get(one, -1), place.get(other, -1)] for one, other in pairs.to_numpy()])
    index = index[(index >= 0).all(1)]
    missing = [name for name in listed if name not in place]
    note = ""
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        note = f"{len(missing)} of {len(listed)} names are no {role} of the profiles ({shown}): "
        note += f"{len(pairs) - len(index)} of {len(pairs)} pairs are left out"
    if not len(index):
        raise CannotJudgeError(note)
    if len(known) < _FEWEST:
        raise CannotJudgeError(
            f"there are {len(known)} {role}s; to tell what is extreme among their pairs needs {_FEWEST}"
        )
    generator = np.random.default_rng(seed)
    if len(index) > _PAIRS:
        note = "; ".join(filter(None, [note, f"{_PAIRS} of {len(index)} pairs, drawn at random"]))
        index = index[generator.choice(len(index), _PAIRS, replace=False)]
    share = (1 / np.bincount(of)[of]).astype(np.float32)
    average = csr_array((share, (of, np.arange(len(rows)))), (len(known), len(rows)))
    unit = directions(average @ profiles.features[rows], centre=False).astype(np.float32)
    low, high = np.quantile(_similar(unit, _any_pairs(len(known), generator)), [TAIL, 1 - TAIL])

    def extreme(of: np.ndarray) -> np.ndarray:
        similarity = _similar(unit, of)
        return ((similarity <= low) | (similarity >= high)).astype(float)

    values = extreme(index)
    dealt = np.array([extreme(generator.permutation(len(known))[index]).mean() for _ in range(SHUFFLES)])
    p = (1 + (dealt >= values.mean() - 1e-12).sum()) / (1 + SHUFFLES)
    return Measured(values, index[:, 0], dealt.mean(), None, float(p), note)


def _any_pairs(count: int, generator: np.random.Generator) -> np.ndarray:
    """All pairs of ``count`` names, or 300,000 of them, (P, 2)."""
    if count * (count - 1) // 2 <= _ALL:
        return np.stack(np.triu_indices(count, 1), axis=1)
    one = generator.integers(0, count, _ALL)
    return np.stack([one, (one + generator.integers(1, count, _ALL)) % count], axis=1)


def _similar(unit: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The cosine of pairs (P, 2) of unit vectors (E, D)."""
    block = 2**24 // unit.shape[1] + 1
    parts = np.split(pairs, range(block, len(pairs), block))
    return np.concatenate([np.einsum("ij,ij->i", unit[part[:, 0]], unit[part[:, 1]]) for part in parts])


def recall_metric(pairs: pd.DataFrame) -> Metric:
    """The metric ``recall`` for known pairs of :func:`read_pairs`."""

    def measure(profiles: Profiles, seed: int) -> Measured:
        return relationships(profiles, pairs, seed)

    return Metric(
        "known relationships recalled among the 5 % most and the 5 % least similar pairs",
        "biology",
        "higher",
        "compounds",
        "the same pairs with the names dealt again",
        "Celik et al. 2022, bioRxiv 2022.12.09.519400; Kraus et al. 2023, arXiv 2309.16064",
        measure,
        "pairs on one plate, or at one place, may be alike for that",
    )
