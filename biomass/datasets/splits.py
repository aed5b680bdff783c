"""Training, validation and test for a screen that has none: whole plates, or whole experiments, go to one of them.

Images of one plate share its stain, focus and light. A network that was trained on some of them knows these when it is
tested on others, and the test says too much (Lin & Lu 2022; Sypetkowski et al. 2023). So a plate is never divided.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from biomass.errors import ConfigError, did_you_mean
from biomass.grouping import factorize, first_rows, number_rows
from biomass.screen import PLATE

SHARES: Mapping[str, float] = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Which share of the plates each split takes, if there are enough."""

BY: Mapping[str, tuple[str, ...]] = {"experiment": PLATE[:1], "plate": PLATE}
"""What may be divided, and the columns that tell it apart."""

_FEW = 3  # plates or experiments without which a screen is not divided unless someone asks for it
_ALL = 2000  # divisions that are all looked at; of more, as many at random
_SWAPS = 500  # exchanges of two plates that may make the best of them better
_SHOWN = 5


class Splits(NamedTuple):
    """Which split each image goes to.

    Attributes:
        split: (N,) objects of str.
        notes: what was done, and what could not be, a sentence each.
    """

    split: np.ndarray
    notes: list[str]


def default_split(table: pd.DataFrame) -> str | None:
    """By what a screen is divided if nobody says it: by experiment if there are three, else by plate; None of fewer.

    >>> default_split(pd.DataFrame({"experiment": ["E"] * 3, "plate": ["P1", "P2", "P3"]}))
    'plate'
    """
    return next((by for by, columns in BY.items() if len(table[list(columns)].drop_duplicates()) >= _FEW), None)


def make_splits(table: pd.DataFrame, by: str = "plate", shares: Mapping[str, float] = SHARES, seed: int = 0) -> Splits:
    """Divide a screen's plates, or its experiments, so that every label is in every split as far as it can be.

    Every split gets its share of them, and at least one. Of all ways to do that (of many, where they are too many to
    look at all) the one is taken where the fewest labels are missing, first in the training, then in other splits; of
    several, the one where labels are shared out most evenly. Two plates make a training and a test.

    Args:
        table: N images: ``experiment, plate, label`` (text, or numbers; empty or -1 where there is none).
        by: ``plate`` or ``experiment``.
        shares: of each split; the first is the training.
        seed: of what is left to chance.

    Raises:
        ConfigError: ``by`` is neither, or there is but one plate or experiment. One plate could be divided by wells,
            but what is measured then holds for this plate alone.

    >>> table = pd.DataFrame({"experiment": "E", "plate": list("PPQQRRSS"), "label": list("ababacab")})
    >>> splits = make_splits(table, shares={"train": 2, "val": 1, "test": 1})
    >>> sorted(set(zip(table["plate"], splits.split)))
    [('P', 'test'), ('Q', 'train'), ('R', 'train'), ('S', 'val')]
    >>> splits.notes[0]
    "split by plate: train 2 plates (4 images: 'Q', 'R'), val 1 plate (2 images: 'S'), test 1 plate (2 images: 'P')"
    """
    if by not in BY:
        raise ConfigError(f"a screen cannot be split by '{by}'; {did_you_mean(by, BY)}", "splits")
    wrong = [name for name, share in shares.items() if not share > 0]
    if wrong or not shares:
        raise ConfigError(f"the shares of the splits are {dict(shares)}: each must be greater than 0", "splits")
    columns = list(BY[by])
    group = number_rows([table[column] for column in columns])
    names = _names(table[columns].iloc[first_rows(group, int(group.max()) + 1)], table)
    if len(names) < 2:
        raise ConfigError(
            f"there is one {by}, {_list(names)}, and none is divided, as its images are too much alike to test each "
            f"other: add {'plates' if by == 'plate' else 'experiments, or split by plate'}, or leave the splits out",
            "splits",
        )
    order = list(shares)
    if len(names) < len(order):
        order = [*order[: len(names) - 1], order[-1]]
    sizes = _sizes(len(names), [shares[name] for name in order])
    labels, distinct = pd.factorize(table["label"])
    known = list(distinct)
    labelled = np.array([str(one) not in ("", "-1") for one in known])
    # few of the labels of a large screen are on a plate
    counts = csr_array((np.ones(len(group)), (group, labels)), shape=(len(names), len(known)))
    chosen = _choose(counts[:, labelled], sizes, seed)
    split = np.array(order, dtype=object)[chosen[group]]
    said = []
    for number, name in enumerate(order):
        own = [names[i] for i in np.flatnonzero(chosen == number)]
        images = int((split == name).sum())
        said.append(f"{name} {_count(len(own), by)} ({_count(images, 'image')}: {_list(own)})")
    notes = [f"split by {by}: {', '.join(said)}"]
    if len(order) < len(shares):
        absent = [name for name in shares if name not in order]
        notes.append(f"{_count(len(names), by)} are too few for {_list(absent)}")
    for number, name in enumerate(order[1:], 1):
        lacking = [known[i] for i in np.flatnonzero(labelled & (counts[chosen == number].sum(0) == 0))]
        if lacking:
            notes.append(f"{_count(len(lacking), 'label')} without an image in {name}: {_list(lacking)}")
    return Splits(split, notes + check_splits(table.assign(split=split)))


def check_splits(table: pd.DataFrame) -> list[str]:
    """What a test on a screen's splits would not measure as it should, a sentence each; none where all is well.

    Args:
        table: N images: ``experiment, plate, label, split`` (empty where an image is in none).

    >>> table = pd.DataFrame({"experiment": "E", "plate": ["P", "P", "Q"], "label": list("aab")})
    >>> check_splits(table.assign(split=["train", "test", "test"]))
    ["train and test share 1 plate ('P'): what is measured on it does not hold for new plates", \
"1 label of test is not in train, and cannot be learned: 'b'"]
    """
    split, names = factorize(table["split"])
    if "train" not in names:
        return []
    plate, (label, labels) = number_rows([table[column] for column in PLATE]), factorize(table["label"])
    notes = []
    plates_of, labels_of = (_first_in_splits(table, split, columns) for columns in (PLATE, ("label",)))
    train = names.index("train")
    for number, name in enumerate(map(str, names)):
        if name in ("", "train"):
            continue
        rows = plates_of[number]
        shared = _names(table[list(PLATE)].iloc[rows[np.isin(plate[rows], plate[plates_of[train]])]], table)
        if shared:
            notes.append(
                f"train and {name} share {_count(len(shared), 'plate')} ({_list(shared)}): what is measured on "
                f"{'it' if len(shared) == 1 else 'them'} does not hold for new plates"
            )
        rows = labels_of[number]
        new = label[rows[~np.isin(label[rows], label[labels_of[train]])]].tolist()
        new = [labels[one] for one in new if str(labels[one]) not in ("", "-1")]
        if new:
            are = "is" if len(new) == 1 else "are"
            notes.append(
                f"{_count(len(new), 'label')} of {name} {are} not in train, and cannot be learned: {_list(new)}"
            )
    return notes


def _first_in_splits(table: pd.DataFrame, split: np.ndarray, columns: Sequence[str]) -> list[np.ndarray]:
    """For every split the first of its rows, ascending, with each of the values that it has in some columns."""
    pairs = number_rows([table[column] for column in ("split", *columns)])
    rows = np.sort(first_rows(pairs, int(pairs.max()) + 1))
    rows = rows[np.argsort(split[rows], kind="stable")]
    return np.split(rows, np.searchsorted(split[rows], np.arange(1, int(split.max()) + 1)))


def _names(keys: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What plates or experiments of a table are called; plates with their experiment where there are several."""
    if keys.shape[1] > 1 and len(table[PLATE[0]].unique()) == 1:
        keys = keys.iloc[:, 1:]
    return ["/".join(filter(None, map(str, key))) for key in keys.itertuples(index=False, name=None)]


def _sizes(number: int, shares: list[float]) -> list[int]:
    """How many of ``number`` things each split gets: at least one, the rest by largest remainders."""
    exact = np.array(shares) / sum(shares) * number
    sizes = np.maximum(np.floor(exact).astype(int), 1)
    while sizes.sum() > number:
        sizes[int(np.argmax(sizes - exact + (sizes > 1) * number))] -= 1
    while sizes.sum() < number:
        sizes[int(np.argmax(exact - sizes))] += 1
    return [int(size) for size in sizes]


def _choose(counts: csr_array, sizes: list[int], seed: int) -> np.ndarray:
    """The split of every group, (G,), by its numbers of images of each label, (G, L)."""
    rng = np.random.default_rng(seed)
    ways = math.factorial(counts.shape[0])
    for size in sizes:
        ways //= math.factorial(size)
    plain = np.repeat(np.arange(len(sizes)), sizes)
    every = ways <= _ALL
    drawn = _divisions(counts.shape[0], sizes) if every else (rng.permutation(plain) for _ in range(_ALL // 8))
    candidates = [np.array(one) for one in drawn]
    best = min(rng.permutation(len(candidates)).tolist(), key=lambda i: _badness(candidates[i], counts, len(sizes)))
    chosen = candidates[best]
    least = _badness(chosen, counts, len(sizes))
    for a, b in [] if every else rng.integers(0, counts.shape[0], (_SWAPS, 2)):
        if chosen[a] == chosen[b]:
            continue
        other = chosen.copy()
        other[[a, b]] = chosen[[b, a]]
        badness = _badness(other, counts, len(sizes))
        if badness < least:
            chosen, least = other, badness
    return chosen


def _divisions(number: int, sizes: list[int]) -> Iterator[list[int]]:
    """All ways to give ``number`` things to splits of these sizes."""
    if not number:
        yield []
        return
    for split, size in enumerate(sizes):
        if size:
            rest = [n - (i == split) for i, n in enumerate(sizes)]
            yield from ([split, *others] for others in _divisions(number - 1, rest))


def _badness(chosen: np.ndarray, counts: csr_array, splits: int) -> tuple[int, int, float]:
    """Labels that the training lacks; labels that splits lack; how unevenly they are shared out."""
    held = (chosen == np.arange(splits)[:, None]).astype(float) @ counts  # (S, L)
    shares = held / np.maximum(held.sum(1, keepdims=True), 1)
    overall = counts.sum(0) / max(counts.sum(), 1)
    return int((held[0] == 0).sum()), int((held == 0).sum()), round(float(np.abs(shares - overall).sum()), 9)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(values: Iterable[object]) -> str:
    texts = [f"'{value}'" for value in values]
    return ", ".join(texts[:_SHOWN]) + (", …" if len(texts) > _SHOWN else "")
