"""From a split of a screen to batches: of images in a fixed order, or of the views of its fields."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from lightning_fabric import Fabric

from biomass.errors import ConfigError, did_you_mean
from biomass.loader import BatchReader, BatchSource, Loader
from biomass.samplers import CellBatches, PlateBatches, ShareOfRank
from biomass.screen import PLATE, Screen

SAMPLERS: Mapping[str, tuple[str, ...] | None] = {"random": None, "plate": PLATE, "exp": ("experiment",)}
"""The published words for what a batch is drawn from: anything, one plate, one experiment."""

MODES = ("random_single", "random", "first", "all")
"""Which cells of a field of view stand in a batch: the modes of :class:`biomass.samplers.CellBatches`, or all cells."""


def sampler_columns(sampler: str) -> tuple[str, ...] | None:
    """The columns that make a group, None for mixed batches.

    Raises:
        ConfigError: an unknown word.

    >>> sampler_columns("exp")
    ('experiment',)
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler '{sampler}' is unknown; {did_you_mean(sampler, SAMPLERS)}", "sampler")
    return SAMPLERS[sampler]


def view_loader(
    fabric: Fabric,
    screen: Screen,
    reader: BatchReader,
    split: str,
    *,
    by_group: bool,
    mode: str,
    num_img: int,
    batch_size: int | None,
    max_groups: int = 1,
    parts: int | None = None,
    num_controls: int = 0,
    controls: str = "negative",
    shuffle: bool = True,
    seed: int = 0,
    num_workers: int = 0,
) -> Loader:
    """A loader whose batches are drawn over fields of view, and hold ``num_img`` cells of each.

    With mode ``all`` they are drawn over cells, of which every one is served once an epoch: all cells of a batch of
    fields may be more than a device can hold.

    Args:
        fabric: rank and number of ranks.
        screen: a screen of cells.
        reader: reads cells; its ``instances`` say which field a cell belongs to, its ``groups`` the plates.
        split: name of the split.
        by_group: batches hold fields of one group (or ``max_groups`` of them); else any.
        mode: which cells, see :class:`biomass.samplers.CellBatches`; or ``all``.
        num_img: cells of each field; ``all`` and ``first`` do not read it.
        batch_size: fields (``all``: cells) a batch, at most; None: the whole group.
        max_groups: groups a batch, at most.
        parts: least number of batches that a group is cut into.
        num_controls: fields (``all``: cells) of controls that a batch holds of each of its groups,
        controls: and of which kind, see :data:`biomass.screen.KINDS`.
        shuffle: False for validation: every rank then gets some of the batches that one process would make, and all
            those of a group.
        seed: of the order and of the choice of cells.
        num_workers: processes that read ahead.

    Raises:
        ConfigError: an unknown mode, or numbers that contradict each other or the data.
    """
    if mode not in MODES:
        raise ConfigError(f"mode '{mode}' is unknown; {did_you_mean(mode, MODES)}", "mode")
    rows = screen.rows(split)
    rank, world_size = fabric.global_rank, fabric.world_size
    if not shuffle:
        rank, world_size = 0, 1
    plates = partial(
        PlateBatches,
        batch_size=batch_size,
        max_groups=max_groups,
        parts=parts,
        num_controls=num_controls,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    batches: PlateBatches | CellBatches
    reference = screen.reference(controls)
    if mode == "all":
        batches = plates(rows, reader.groups[rows] if by_group else None, controls=reference[rows])
    else:
        fields, first = np.unique(reader.instances[rows], return_index=True)
        groups = reader.groups[rows[first]] if by_group else None
        over_fields = plates(fields, groups, controls=reference[rows[first]])
        batches = CellBatches(over_fields, rows, reader.instances, mode, num_img, seed=seed)
    if not shuffle:
        shared = share(fabric, batches, reader.groups if by_group else None)
        return Loader(reader, shared, num_workers, pin_memory=fabric.device.type == "cuda")
    return Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")


def share(fabric: Fabric, batches: PlateBatches | CellBatches, groups: np.ndarray | None) -> BatchSource:
    """What this process evaluates of the batches, whose groups (rows of the screen,) are given where they have one."""
    if fabric.world_size == 1:
        return batches
    return ShareOfRank(batches, groups, fabric.global_rank, fabric.world_size)


def evaluation_loaders(
    fabric: Fabric,
    screen: Screen,
    reader: BatchReader,
    splits: Sequence[str],
    by_plate: bool,
    batch_size: int | None,
    num_workers: int = 0,
    shuffle: bool = False,
) -> dict[str, Loader]:
    """A loader for each split, in a fixed order; every rank gets some of the batches, and whole plates where these are.

    Args:
        fabric: its rank decides which batches are read here, none perhaps.
        screen: where the splits are.
        reader: reads rows; its groups are the plates.
        splits: names of the splits, none for no evaluation.
        by_plate: batches hold images of one plate each; else they follow the order of the table.
        batch_size: images a batch, at most; None for whole plates.
        num_workers: processes that read ahead.
        shuffle: the order is random, if the same every time: batches that are normalized by themselves are then random
            parts of their plate.

    Raises:
        ConfigError: a split has no rows.
    """
    loaders = {}
    for split in splits:
        rows = screen.rows(split)
        plates = reader.groups[rows] if by_plate else None
        batches = PlateBatches(rows, plates, batch_size=batch_size, shuffle=shuffle)
        shared = share(fabric, batches, reader.groups if by_plate else None)
        loaders[split] = Loader(reader, shared, num_workers, pin_memory=fabric.device.type == "cuda")
    return loaders
