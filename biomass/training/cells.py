"""What the scripts for single cells share: batches of views, checks of them, and contrastive validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from biomass.errors import ConfigError, DataError
from biomass.inference import Statistics, Transform, infer, share_of_rank
from biomass.loader import BatchReader, BatchSource, Loader, SkippedImages
from biomass.objectives import contrastive_loss
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import PLATE, Screen

SAMPLERS: Mapping[str, Sequence[str] | None] = {"random": None, "plate": PLATE, "exp": ("experiment",)}
"""What a batch is drawn from, by the word in the YAML: anything, one plate, one experiment."""

MODES = ("random_single", "random", "first", "all")
"""Which cells of a field of view stand in a batch: the modes of :class:`biomass.samplers.CellBatches`, or all cells."""


def sampler_columns(sampler: str) -> Sequence[str] | None:
    """The columns that make a group, None for mixed batches.

    Raises:
        ConfigError: an unknown word.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"dataloaders.sampler '{sampler}' is unknown; choose {', '.join(SAMPLERS)}")
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
        shuffle: False for validation: every rank then gets whole plates.
        seed: of the order and of the choice of cells.
        num_workers: processes that read ahead.

    Raises:
        ConfigError: an unknown mode, or numbers that contradict each other or the data.
    """
    if mode not in MODES:
        raise ConfigError(f"dataloaders.mode '{mode}' is unknown; choose {', '.join(MODES)}")
    rows = screen.rows(split)
    rank, world_size = fabric.global_rank, fabric.world_size
    if not shuffle:
        rows, rank, world_size = share_of_rank(rows, reader.groups, rank, world_size), 0, 1
    plates = partial(
        PlateBatches,
        batch_size=batch_size,
        max_groups=max_groups,
        parts=parts,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    batches: BatchSource
    if mode == "all":
        batches = plates(rows, reader.groups[rows] if by_group else None)
    else:
        fields, first = np.unique(reader.instances[rows], return_index=True)
        over_fields = plates(fields, reader.groups[rows[first]] if by_group else None)
        batches = CellBatches(over_fields, rows, reader.instances, mode, num_img, seed=seed)
    return Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")


def check_instances(screen: Screen, instances: np.ndarray, groups: np.ndarray, splits: Sequence[str]) -> None:
    """Make sure that instances are what they are taken for: parts of one plate that share a split and a perturbation.

    Args:
        screen: the cells.
        instances: (N,) the field of view (or well) of every row, see ``dataloaders.instance``.
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
                f"dataloaders.instance takes cells of two {what} for one thing ({where}); name the columns that tell "
                "fields of view apart, and map them in the source"
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
                "with; raise train_batch_size, or look at dataloaders.instance and dataloaders.sampler"
            )


@dataclass
class ContrastiveEvaluation:
    """The contrastive loss on other splits: called by the loop with (epoch, step). The same views at every call."""

    fabric: Fabric
    network: nn.Module
    loaders: Mapping[str, Loader]
    transform: Transform
    statistics: Statistics
    temperature: float
    skipped: SkippedImages
    seed: int = 0

    measured: ClassVar = ("loss",)
    """Names of the metrics of a split."""

    def __call__(self, epoch: int, step: int) -> dict[str, float]:
        device = self.fabric.device
        metrics = {}
        for split, loader in self.loaders.items():
            generator = torch.Generator(device).manual_seed(self.seed)
            sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses times views, of views
            views = partial(self.transform, generator=generator)
            for batch, projections in infer(self.fabric, self.network, loader, views, self.statistics, self.skipped):
                loss = contrastive_loss(projections, batch.instances.to(device, non_blocking=True), self.temperature)
                sums += torch.stack([loss.double() * len(batch), torch.tensor(float(len(batch)), device=device)])
            total, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()  # type: ignore[union-attr]
            if not count:
                raise DataError(f"no image of split '{split}' could be read; look at on_bad_image")
            metrics[f"{split}/loss"] = total / count
        return metrics
