"""What is measured on other splits while a network trains: called by the loop with (run, epoch, step)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from biomass.errors import DataError
from biomass.evaluation.accuracy import MEASURED, accuracy_summary, control_mixing, mixing_rows, plate_accuracy
from biomass.evaluation.predictions import (
    COMBINED,
    FieldMeans,
    Fields,
    Predictions,
    class_names,
    write_predictions,
)
from biomass.formulas import to_csv
from biomass.inference import Transform, calibrate_plates, infer
from biomass.loader import Batch, Loader
from biomass.norms import Statistics
from biomass.objectives import Objective, class_ranks
from biomass.samplers import ShareOfRank
from biomass.screen import Screen
from biomass.training.loop import Training
from biomass.training.tuning import TrainingPlates


@dataclass
class SplitEvaluation:
    """Evaluates a classifier on several splits, and writes the accuracy of every plate to ``plates.csv``.

    Batch mixing is measured beside what :attr:`measured` names: less of it is better, so that it is nothing to monitor.

    Attributes:
        screen: what the loaders read from.
        loaders: split → loader.
        transform: applied on the device; without randomness.
        statistics: where batch norm takes its statistics from. Calibrated ones are taken of each split's plates first.
        plates: training plates, which some statistics need to know of; None where these do not.
    """

    screen: Screen
    loaders: Mapping[str, Loader]
    transform: Transform
    statistics: Statistics
    plates: TrainingPlates | None = None
    last: dict[str, Predictions] = field(default_factory=dict, init=False)
    """Of the last evaluation, what the network said of every split."""

    measured: ClassVar = (*MEASURED, "loss")
    """Names of the metrics of a split."""

    def __call__(self, run: Training, epoch: int, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        plates = []
        if self.plates is not None and self.statistics.tuned:
            self.plates.measure(run.fabric, run.network)
        for split, loader in self.loaders.items():
            controls = mixing_rows(self.screen, split)
            fields = FieldMeans(Fields.of(self.screen, self.screen.rows(split)), run.fabric.device)
            rows, ranks, losses, outputs = self.predict(run, loader, controls, fields)
            if not len(rows):
                raise DataError(f"no labelled image of split '{split}' could be read", "skip")
            metrics |= {f"{split}/{k}": v for k, v in accuracy_summary(self.screen, rows, ranks).items()}
            metrics[f"{split}/loss"] = float(losses.mean())
            seen = outputs.any(1)
            mixing = control_mixing(self.screen, controls[seen], outputs[seen])
            metrics |= {f"{split}/{name}": value for name, value in mixing.items()}
            table = plate_accuracy(self.screen, rows, ranks)
            run.logger.histogram(step, f"{split}/plate accuracy", table["accuracy"].tolist())
            plates.append(table.assign(split=split, epoch=epoch))
            self.last[split] = self._predictions(fields, epoch)
        run.logger.text("plates.csv", to_csv(pd.concat(plates)))
        return metrics

    def write(self, folder: Path) -> None:
        """Write what the last evaluation said of the fields and wells of all splits; nothing if there was none."""
        for name, tables in {
            "predictions": [one.of_fields() for one in self.last.values()],
            "predictions_wells": [one.of_wells() for one in self.last.values()],
        }.items():
            if tables:
                about = next(iter(self.last.values())).about
                write_predictions(pd.concat(tables, ignore_index=True), folder / f"{name}.parquet", about)

    def _predictions(self, means: FieldMeans, epoch: int) -> Predictions:
        classes = class_names(self.screen.classes, means.sums.shape[1])
        about = {
            "classes": classes,
            "epoch": epoch,
            "statistics": self.statistics.label,
            "by": list(self.statistics.by),
        }
        return Predictions(means.fields, means.values[None], means.counts.cpu().numpy(), classes, about | COMBINED)

    def predict(self, run: Training, loader: Loader, watched: np.ndarray, fields: FieldMeans) -> tuple[np.ndarray, ...]:
        """Rows (n,), rank of the true class (n,) and cross-entropy (n,) of all labelled images of a loader.

        And the outputs (m, D) of the ``watched`` rows (m,), zeros where an image could not be read. ``fields`` takes in
        the probabilities of all rows.
        """
        n, device = len(self.screen), run.fabric.device
        ranks = torch.zeros(n, dtype=torch.int64, device=device)  # 0 is "not seen"; seen ranks are shifted by 1
        losses = torch.zeros(n, dtype=torch.float32, device=device)
        place = torch.full((n,), -1)
        place[torch.from_numpy(watched)] = torch.arange(len(watched))
        outputs = torch.zeros(len(watched), 0, device=device)
        if self.statistics.word == "calibrated":
            calibrate_plates(run.fabric, run.network, loader, self.transform, self.statistics, run.skipped)
        parts = run.fabric, run.network, loader, self.transform, self.statistics, run.skipped
        for batch, logits in infer(*parts, classifies=True):
            fields.add(batch.rows, logits.float().softmax(1))
            rows = batch.rows.to(device, non_blocking=True)
            labels = batch.labels.clamp(min=0).to(device, non_blocking=True)
            ranks[rows] = class_ranks(logits.float(), labels) + 1
            losses[rows] = F.cross_entropy(logits.float(), labels, reduction="none")
            if not outputs.shape[1]:
                outputs = torch.zeros(len(watched), logits.shape[1], device=device)
            some = torch.nonzero(place[batch.rows] >= 0)[:, 0]
            outputs[place[batch.rows[some]].to(device)] = logits[some.to(device)].float()
        seen, loss = (run.fabric.all_reduce(x, reduce_op="sum").cpu().numpy() for x in (ranks, losses))  # type: ignore[union-attr]
        fields.sums = torch.from_numpy(_gather(run.fabric, fields.sums))
        fields.counts = run.fabric.all_reduce(fields.counts, reduce_op="sum").cpu()  # type: ignore[union-attr]
        rows_seen = np.flatnonzero((seen > 0) & (self.screen.labels >= 0))
        return rows_seen, seen[rows_seen] - 1, loss[rows_seen], _gather(run.fabric, outputs)


def _gather(fabric: Fabric, outputs: Tensor) -> np.ndarray:
    """The sum over ranks of outputs (m, D), of which a rank without a batch does not know D, and has (m, 0)."""
    width = torch.tensor([outputs.shape[1], outputs.shape[1] > 0], device=fabric.device)
    total, count = fabric.all_reduce(width, reduce_op="sum").tolist()  # type: ignore[union-attr]
    if count and not outputs.shape[1]:
        outputs = torch.zeros(len(outputs), total // count, device=fabric.device)
    return fabric.all_reduce(outputs.clone(), reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]


@dataclass
class LossEvaluation:
    """The loss of an objective on other splits, with the same random views at every call.

    Attributes:
        objective: its loss is the mean over the rows of a batch.
        loaders: split → loader.
        transform: makes the views, on the device.
        statistics: where batch norm takes its statistics from.
        seed: of the views.
    """

    objective: Objective
    loaders: Mapping[str, Loader]
    transform: Transform
    statistics: Statistics
    seed: int = 0

    measured: ClassVar = ("loss",)
    """Names of the metrics of a split."""

    def __call__(self, run: Training, epoch: int, step: int) -> dict[str, float]:
        device = run.fabric.device
        metrics = {}
        for split, loader in self.loaders.items():
            sum_of_losses, rows = torch.zeros((), dtype=torch.float64, device=device), 0
            if self.statistics.word == "calibrated":
                views = self._views(device, loader)
                calibrate_plates(run.fabric, run.network, loader, views, self.statistics, run.skipped)
            views = self._views(device, loader)
            for batch, outputs in infer(run.fabric, run.network, loader, views, self.statistics, run.skipped):
                sum_of_losses += self._loss(outputs, batch).double() * len(batch)
                rows += len(batch)
            sums = torch.stack([sum_of_losses, torch.tensor(float(rows), dtype=torch.float64, device=device)])
            total, count = run.fabric.all_reduce(sums, reduce_op="sum").tolist()  # type: ignore[union-attr]
            if not count:
                raise DataError(f"no image of split '{split}' could be read", "skip")
            metrics[f"{split}/loss"] = total / count
        return metrics

    def _loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of outputs (N, D) that are there already: the images of their batch are not uploaded again."""
        batch = replace(batch, images=batch.images[:0]).to(outputs.device)
        with torch.no_grad():
            return self.objective(lambda images: outputs, batch.images, batch)[0]

    def _views(self, device: torch.device, loader: Loader) -> Transform:
        """The transform, whose randomness starts where it always does.

        Of several processes each makes views of nothing in place of the batches of others, so that its own are those
        of a single process.
        """
        views = partial(self.transform, generator=torch.Generator(device).manual_seed(self.seed))
        if not isinstance(loader.batches, ShareOfRank):
            return views
        passed = iter(loader.batches.passed)

        def in_turn(images: Tensor) -> Tensor:
            for size in next(passed, []):
                views(images.new_zeros(size, *images.shape[1:]))
            return views(images)

        return in_turn
