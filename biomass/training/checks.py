"""What a script looks at before it writes anything: labels, instances, negatives, channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.loader import Loader
from biomass.models import Architecture
from biomass.samplers import CellBatches
from biomass.screen import PLATE, Screen


def check_labels(screen: Screen, eval_splits: Sequence[str], d_out: int, advice: str = "d_out") -> None:
    """Refuse labels that the network has no output for, and a training split without labels.

    Args:
        screen: its split ``train`` is looked at, too.
        eval_splits: the splits that are evaluated.
        d_out: number of outputs.
        advice: of the error.

    Raises:
        ConfigError: the first such row, its label and the remedy.
        DataError: no row of the training split has a label.
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
        sampler = loader.batches
        if isinstance(sampler, CellBatches) and len(sampler) * sampler.batches.world_size >= len(sampler.batches.rows):
            raise ConfigError(
                f"every batch of split '{split}' holds a single field of view, so that there is nothing to contrast it "
                "with; draw more fields a batch",
                "negatives",
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
