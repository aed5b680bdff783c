"""What the supervised scripts share: checks of labels, and evaluation of a classifier on the splits of a screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from biomass.errors import ConfigError, DataError
from biomass.evaluation.accuracy import MEASURED, accuracy_summary, plate_accuracy
from biomass.inference import Statistics, Transform, infer, share_of_rank
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.objectives.classification import class_ranks
from biomass.samplers import PlateBatches
from biomass.screen import Screen
from biomass.training.logger import RunLogger


def check_labels(screen: Screen, eval_splits: Sequence[str], d_out: int, key: str = "model.d_out") -> None:
    """Refuse labels that the network has no output for, and a training split without labels.

    Args:
        screen: its split ``train`` is looked at, too.
        eval_splits: the splits that are evaluated.
        d_out: number of outputs.
        key: what ``d_out`` is called in the configuration.

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
                f"label {screen.labels[row]} ('{screen.classes[screen.labels[row]]}') of {screen.pixels.name(row)} is "
                f"outside {key}={d_out}; set {key}={len(screen.classes)}"
            )
    if not (screen.labels[screen.rows("train")] >= 0).any():
        raise DataError("no image of the training split has a label; map a label column, or choose another split")


def evaluation_loaders(
    fabric: Fabric,
    screen: Screen,
    reader: BatchReader,
    splits: Sequence[str],
    by_plate: bool,
    batch_size: int | None,
    num_workers: int = 0,
) -> dict[str, Loader]:
    """A loader for each split, in a fixed order; every rank gets whole plates.

    Args:
        fabric: its rank decides which plates are read here.
        screen: where the splits are.
        reader: reads rows; its groups are the plates.
        splits: names of the splits, none for no evaluation.
        by_plate: batches hold images of one plate each; else they follow the order of the table.
        batch_size: images a batch, at most; None for whole plates.
        num_workers: processes that read ahead.

    Raises:
        ConfigError: a split has no rows.
    """
    loaders = {}
    for split in splits:
        rows = share_of_rank(screen.rows(split), reader.groups, fabric.global_rank, fabric.world_size)
        plates = reader.groups[rows] if by_plate else None
        batches = PlateBatches(rows, plates, batch_size=batch_size, shuffle=False)
        loaders[split] = Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")
    return loaders


@dataclass
class SplitEvaluation:
    """Evaluates a classifier on several splits: called by the loop with (epoch, step).

    Attributes:
        fabric: device, precision, and the other ranks.
        network: as set up by ``fabric``.
        screen: what the loaders read from.
        loaders: split name → loader.
        transform: applied on the device; without randomness.
        statistics: where batch norm takes its statistics from.
        logger: gets the distribution over plates, and ``plates.csv``.
        skipped: counts the images that cannot be read.
    """

    fabric: Fabric
    network: nn.Module
    screen: Screen
    loaders: Mapping[str, Loader]
    transform: Transform
    statistics: Statistics
    logger: RunLogger
    skipped: SkippedImages

    measured: ClassVar = (*MEASURED, "loss")
    """Names of the metrics of a split."""

    def __call__(self, epoch: int, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        plates = []
        for split, loader in self.loaders.items():
            rows, ranks, losses = self.predict(loader)
            if not len(rows):
                raise DataError(f"no labelled image of split '{split}' could be read; look at on_bad_image")
            metrics |= {f"{split}/{k}": v for k, v in accuracy_summary(self.screen, rows, ranks).items()}
            metrics[f"{split}/loss"] = float(losses.mean())
            table = plate_accuracy(self.screen, rows, ranks)
            self.logger.histogram(step, f"{split}/plate accuracy", table["accuracy"].tolist())
            plates.append(table.assign(split=split, epoch=epoch))
        self.logger.text("plates.csv", pd.concat(plates).to_csv(index=False))
        return metrics

    def predict(self, loader: Loader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (n,), rank of the true class (n,) and cross-entropy (n,) of all labelled images of a loader."""
        n, device = len(self.screen), self.fabric.device
        ranks = torch.zeros(n, dtype=torch.int64, device=device)  # 0 is "not seen"; seen ranks are shifted by 1
        losses = torch.zeros(n, dtype=torch.float32, device=device)
        for batch, logits in infer(self.fabric, self.network, loader, self.transform, self.statistics, self.skipped):
            rows = batch.rows.to(device, non_blocking=True)
            labels = batch.labels.clamp(min=0).to(device, non_blocking=True)
            ranks[rows] = class_ranks(logits.float(), labels) + 1
            losses[rows] = F.cross_entropy(logits.float(), labels, reduction="none")
        seen, loss = (self.fabric.all_reduce(x, reduce_op="sum").cpu().numpy() for x in (ranks, losses))  # type: ignore[union-attr]
        rows_seen = np.flatnonzero((seen > 0) & (self.screen.labels >= 0))
        return rows_seen, seen[rows_seen] - 1, loss[rows_seen]
