"""What the scripts for single cells share: batches of views, profiles of a frozen encoder, contrastive validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.evaluation.profiles import ArrayPixels, Bags, mean_profiles
from biomass.inference import Statistics, Transform, infer
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models.poolers import POOLERS
from biomass.objectives import contrastive_loss
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import PLATE, Pixels, Screen

SAMPLERS: Mapping[str, Sequence[str] | None] = {"random": None, "plate": PLATE, "exp": ("experiment",)}
"""What a batch is drawn from, by the word in the YAML: anything, one plate, one experiment."""


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

    Args:
        fabric: rank and number of ranks.
        screen: a screen of cells.
        reader: reads cells; its ``instances`` say which field a cell belongs to, its ``groups`` the plates.
        split: name of the split.
        by_group: batches hold fields of one group (or ``max_groups`` of them); else any.
        mode: which cells, see :class:`biomass.samplers.CellBatches`.
        num_img: cells of each field.
        batch_size: fields a batch, at most; None: the whole group.
        max_groups: groups a batch, at most.
        parts: least number of batches that a group is cut into.
        shuffle: False for validation.
        seed: of the order and of the choice of cells.
        num_workers: processes that read ahead.
    """
    rows = screen.rows(split)
    fields, first = np.unique(reader.instances[rows], return_index=True)
    over_fields = PlateBatches(
        fields,
        reader.groups[rows[first]] if by_group else None,
        batch_size=batch_size,
        max_groups=max_groups,
        parts=parts,
        shuffle=shuffle,
        seed=seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    cells = CellBatches(over_fields, rows, reader.instances, mode, num_img, seed=seed)
    return Loader(reader, cells, num_workers, pin_memory=fabric.device.type == "cuda")


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

    def __call__(self, epoch: int, step: int) -> dict[str, float]:
        device = self.fabric.device
        metrics = {}
        for split, loader in self.loaders.items():
            generator = torch.Generator(device).manual_seed(self.seed)
            sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses times views, of views
            views = partial(self.transform, generator=generator)
            for batch, projections in infer(
                self.fabric, self.network, loader, views, self.statistics, self.skipped
            ):
                loss = contrastive_loss(projections, batch.instances.to(device), self.temperature)
                sums += torch.stack([loss.double() * len(batch), torch.tensor(float(len(batch)), device=device)])
            total, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()  # type: ignore[union-attr]
            metrics[f"{split}/loss"] = total / count
        return metrics


def profile_screen(
    screen: Screen,
    instances: np.ndarray,
    outputs: Iterable[tuple[Batch, Tensor]],
    pooler: str = "mean",
    normalize: bool = True,
) -> Screen:
    """Pool the vectors of cells into a Screen whose rows are fields of view, its "pixels" their vectors.

    Args:
        screen: the cells.
        instances: (rows of the screen,) the field of view that each cell belongs to, dense.
        outputs: batches of cells and their vectors, as :func:`biomass.inference.infer` yields them.
        pooler: ``mean`` and ``median`` give a vector (D,) a field, ``attention`` keeps the vectors of all cells.
        normalize: scale the vector of every cell to length 1.

    Returns:
        A row for each field, described by its first cell; a field without any vector belongs to no split.

    Raises:
        ConfigError: an unknown pooler.
    """
    fields, first = np.unique(instances, return_index=True)
    pixels: Pixels
    if pooler == "mean":
        profiles = mean_profiles(outputs, len(fields), normalize)
        pixels, counts = ArrayPixels(profiles.vectors), profiles.counts
    elif pooler == "median":
        profiles = Bags(outputs, len(fields), normalize).median_profiles()
        pixels, counts = ArrayPixels(profiles.vectors), profiles.counts
    elif pooler == "attention":
        pixels = Bags(outputs, len(fields), normalize)
        counts = pixels.counts
    else:
        raise ConfigError(f"pooler '{pooler}' is unknown; choose {', '.join(POOLERS)}")
    table = screen.table.iloc[first].reset_index(drop=True)
    table["split"] = table["split"].astype(str).where(counts > 0, "")
    return Screen(table, pixels, screen.classes)
