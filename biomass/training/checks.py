"""What a script looks at before it writes anything: splits, labels, instances, negatives, channels, pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from biomass.errors import BadImageError, BiomassError, CheckpointError, ConfigError, DataError
from biomass.loader import BatchSource, Loader
from biomass.models import Architecture
from biomass.samplers import CellBatches, ShareOfRank
from biomass.screen import PLATE, UNLABELLED, Screen

_FAR = 2
"""Outputs a class from which on a network has more of them than anybody wants."""


def choose_splits(
    screen: Screen, asked: Sequence[str], named: bool, labelled: bool
) -> tuple[list[str], list[BiomassError]]:
    """Those of the splits to evaluate that can be; and what to say of the others, an error that nobody raises.

    Args:
        screen: where the splits are.
        asked: their names.
        named: the user chose them: one that is not there is an error. Else they are a script's defaults.
        labelled: they are of use only if some of their images have a label.

    Raises:
        ConfigError, DataError: a split that the user named has no rows, or no labels.

    >>> import pandas as pd
    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 2) | {"label": 0, "split": ["train", "test"]})
    >>> screen = make_screen(table, None, ["DMSO"])
    >>> choose_splits(screen, ["val", "test"], named=False, labelled=True)
    (['test'], [ConfigError("not evaluated: split 'val', of which this screen has no image; it has test, train")])
    """
    if named:
        for split in asked:
            screen.rows(split)
    there = [split for split in asked if split in screen.splits]
    bare = [split for split in there if labelled and not (screen.labels[screen.rows(split)] != UNLABELLED).any()]
    if bare and named:
        raise DataError(
            f"no image of split '{bare[0]}' has a label, so that there is nothing to evaluate; map a label column, or "
            "leave the split out",
            "splits",
        )
    notes: list[BiomassError] = []
    for splits, why in (
        ([split for split in asked if split not in there], "of which this screen has no image"),
        (bare, "of which no image has a label"),
    ):
        if splits:
            names = " and ".join(f"'{split}'" for split in splits)
            known = ", ".join(screen.splits)
            notes.append(ConfigError(f"not evaluated: split {names}, {why}; it has {known}"))
    return [split for split in there if split not in bare], notes


def check_labels(screen: Screen, eval_splits: Sequence[str], d_out: int, advice: str = "d_out") -> list[BiomassError]:
    """Refuse labels that the network has no output for, and a training split without labels, or of one class.

    Args:
        screen: its split ``train`` is looked at, too.
        eval_splits: the splits that are evaluated.
        d_out: number of outputs.
        advice: of the error.

    Returns:
        What is likely a mistake, as errors that nobody raises: many more outputs than classes; a split of one class; or
        one with classes that are not in training.

    Raises:
        ConfigError: the first such row, its label and the remedy.
        DataError: no row of the training split has a label, or all have the same.
    """
    for split in ("train", *eval_splits):
        rows = screen.rows(split)
        outside = np.flatnonzero(screen.labels[rows] >= d_out)
        if len(outside):
            row = rows[outside[0]]
            raise ConfigError(
                f"label {screen.labels[row]} ('{screen.classes[screen.labels[row]]}') of {screen.pixels.name(row)} has "
                f"no output among {d_out}; the screen has {len(screen.classes)} classes",
                advice,
            )
    if not (screen.labels[screen.rows("train")] >= 0).any():
        raise DataError("no image of the training split has a label; map a label column, or choose another split")
    found = {split: _labels(screen, split) for split in ("train", *eval_splits)}
    if len(found["train"]) == 1:
        raise DataError(
            f"all images of the training split are of one class, '{screen.classes[found['train'][0]]}', so that there "
            "is nothing to tell apart; map another column of labels, or choose other splits",
            "label",
        )
    notes: list[BiomassError] = []
    if d_out > _FAR * len(screen.classes):
        notes.append(
            ConfigError(
                f"the network has {d_out} outputs, and this screen has {len(screen.classes)} classes; give it as many "
                f"({len(screen.classes)}, or null)",
                advice,
            )
        )
    for split in eval_splits:
        alone, new = found[split], np.setdiff1d(found[split], found["train"])
        if len(alone) == 1:
            notes.append(DataError(f"all images of split '{split}' are of one class, '{screen.classes[alone[0]]}'"))
        if len(new):
            rows = screen.rows(split)
            share = np.isin(screen.labels[rows], new).sum() / (screen.labels[rows] != UNLABELLED).sum()
            names = ", ".join(f"'{screen.classes[label]}'" for label in new[:3]) + " …" * (len(new) > 3)
            notes.append(
                DataError(
                    f"{100 * share:.3g} % of split '{split}' cannot be answered: {len(new)} of its classes are not in "
                    f"training ({names})"
                )
            )
    return notes


def _labels(screen: Screen, split: str) -> np.ndarray:
    labels = np.unique(screen.labels[screen.rows(split)])
    return labels[labels != UNLABELLED]


def constant_channels(
    screen: Screen, splits: Sequence[str], most_plates: int = 32, first: int = 2, then: int = 16
) -> list[BiomassError]:
    """Channels that hold one value over a whole plate, as far as a sample of its images tells; errors nobody raises.

    Args:
        screen: of images; nothing is said of vectors.
        splits: those that are used.
        most_plates: so many plates are looked at, evenly over all.
        first: images of each that are read.
        then: further images of those plates whose first ones are constant in a channel.
    """
    rows = np.concatenate([screen.rows(split) for split in dict.fromkeys(splits)])
    rows = rows[np.argsort(screen.plate_ids[rows], kind="stable")]
    plates, starts, counts = np.unique(screen.plate_ids[rows], return_index=True, return_counts=True)
    chosen = np.unique(np.linspace(0, len(plates) - 1, most_plates).astype(int))
    found: dict[int, list[tuple[str, float]]] = {}
    for place in chosen:
        of_plate = rows[starts[place] : starts[place] + counts[place]]
        constant = _constant(screen, _some(of_plate, first))
        if constant:
            constant = _constant(screen, _some(of_plate, first + then))
        for channel, value in constant.items():
            found.setdefault(channel, []).append((screen.plate_names[plates[place]], value))
    notes: list[BiomassError] = []
    for channel, where in found.items():
        (plate, value), others = where[0], len(where) - 1
        more = f" and on {others} more of the {len(chosen)} plates looked at" if others else ""
        more = f" and on all {len(chosen)} plates looked at" if others and len(where) == len(chosen) else more
        notes.append(
            DataError(
                f"channel '{screen.pixels.channels[channel]}' is constant ({value:g}) on plate '{plate}'{more}, by "
                "every image of a sample: is it another channel, or are its files empty?",
                "channels",
            )
        )
    return notes


def _some(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows evenly over all of them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]


def _constant(screen: Screen, rows: np.ndarray) -> dict[int, float]:
    """The channels that hold one value in each of some images, and that of the first. Bad images are left to others."""
    try:
        images = screen.read(rows)
    except BadImageError:
        return {}
    if images.ndim != 4:
        return {}
    flat = images.reshape(*images.shape[:2], -1)
    constant = (flat.min(2) == flat.max(2)).all(0)
    return {int(channel): float(flat[0, channel, 0]) for channel in np.flatnonzero(constant)}


def check_instances(screen: Screen, instances: np.ndarray, groups: np.ndarray, splits: Sequence[str]) -> None:
    """Make sure that instances are what they are taken for: parts of one plate that share a split and a perturbation.

    Args:
        screen: the cells.
        instances: (N,) the field of view (or well) of every row, as the user names it by columns.
        groups: (N,) the plate (or experiment) of every row.
        splits: those that are used.

    Raises:
        ConfigError: an instance holds two groups, splits or labels; names the first.
    """
    rows = np.concatenate([screen.rows(split) for split in dict.fromkeys(splits)])
    _, first, instance = np.unique(instances[rows], return_index=True, return_inverse=True)
    split = screen.table["split"].cat.codes.to_numpy()
    for what, values in (("plates", groups), ("splits", split), ("labels", screen.labels)):
        one = values[rows]
        other = np.flatnonzero(one != one[first][instance])
        if len(other):
            a, b = (screen.table.iloc[rows[i]] for i in (first[instance[other[0]]], other[0]))
            where = " and ".join("/".join(str(row[c]) for c in (*PLATE, "well", "site", "split")) for row in (a, b))
            raise ConfigError(
                f"the columns of an instance take cells of two {what} for one thing ({where}); name the columns that "
                "tell fields of view apart, and map them in the source",
                "instance",
            )


def check_negatives(loaders: Mapping[str, Loader]) -> None:
    """Make sure that views have something to be told apart from.

    Args:
        loaders: split → what :func:`view_loader` gives.

    Raises:
        ConfigError: every batch of a split holds one field of view.
    """
    for split, loader in loaders.items():
        sampler = loader.batches.whole if isinstance(loader.batches, ShareOfRank) else loader.batches
        if isinstance(sampler, CellBatches) and len(sampler) * sampler.batches.world_size >= len(sampler.batches.rows):
            raise ConfigError(
                f"every batch of split '{split}' holds a single field of view, so that there is nothing to contrast it "
                "with; draw more fields a batch",
                "negatives",
            )


def check_ranks(batches: BatchSource, ranks: int) -> None:
    """Make sure that every process has a batch of its own in an epoch.

    Args:
        batches: of training.
        ranks: number of processes.

    Raises:
        ConfigError: there are more processes than batches.
    """
    if ranks > batches.num_batches:
        number = "1 batch" if batches.num_batches == 1 else f"{batches.num_batches} batches"
        raise ConfigError(
            f"an epoch has {number} for {ranks} devices, and each trains on batches of its own; take at most "
            f"{batches.num_batches}",
            "fewer_devices",
        )


def check_channels(architecture: Architecture, origin: dict[str, Any], screen: Screen, path: object) -> None:
    """Refuse cells whose channels are not those that the encoder was trained on.

    Raises:
        CheckpointError: another number of channels, or other names.
    """
    trained = origin.get("channels")
    found = list(screen.pixels.channels)
    if architecture.in_channels != len(found) or (trained is not None and trained != found):
        raise CheckpointError(
            f"checkpoint '{path}' was trained on channels {', '.join(trained or [str(architecture.in_channels)])}; "
            f"this screen has {', '.join(found)}; order the source's channels alike"
        )
