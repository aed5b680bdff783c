"""Trainings put together as the scripts do it, on simulated images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from benchmarks.cases import CLASSES, Case
from benchmarks.timing import repeated
from biomass import training
from biomass.datasets.packed import load_packed
from biomass.datasets.simulated import load_simulated, load_simulated_cells
from biomass.loader import Batch, BatchReader, BatchSource, Loader, SkippedImages
from biomass.norms import Statistics
from biomass.pixels.packed_writer import pack
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen


class Data:
    """A packed screen of a case, and an image file for each of its rows.

    Images are few, and come again and again, so that no time is spent on making them; they are read every time.

    Attributes:
        screen: the packed one.
        files: of each row, a PNG file.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.folder = folder
        few = _simulated(case, folder)
        rows = case.steps * case.fields * case.cells
        number = np.arange(rows)
        table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * rows))
        plate = (number // (case.fields * case.cells)).astype(str)
        table = table.assign(experiment="E1", plate=plate, label=number % CLASSES, split="train")
        table["image"] = number // case.cells
        source = make_screen(table, _Repeated(few, ("a", "b", "c")), [str(i) for i in range(CLASSES)])
        self.screen: Screen = load_packed(pack(source, folder / "store", workers=0))
        files = [folder / f"{i}.png" for i in range(len(few))]
        for file, image in zip(files, few, strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
        self.files = [files[i % len(files)] for i in range(rows)]


def _simulated(case: Case, folder: Path) -> np.ndarray:
    """Some dozens of images (M, 3, H, W)."""
    design: dict[str, Any] = {"experiments": 3, "plates": 1, "wells": 6, "treatments": 6}
    if case.views > 1:
        screen = load_simulated_cells(folder / "simulated", **design, size=128, sites=1)
    else:
        screen = load_simulated(folder / "simulated", **design, size=case.size)
    return screen.read(screen.rows("train"))


class _Repeated(VectorPixels):
    """A few images that come again and again."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows % len(self.array)]


@dataclass
class Ours:
    """A network on its device, with what trains it: as the scripts put it together."""

    case: Case
    data: Data
    fabric: Fabric
    network: nn.Module
    optimizer: Any
    decay: torch.optim.lr_scheduler.LambdaLR

    @classmethod
    def of(cls, case: Case, data: Data, device: str, precision: str = "32", compiled: bool = False) -> "Ours":
        """On a GPU in channels last."""
        fabric = training.make_fabric(device, precision)
        gpu, plain = fabric.device.type == "cuda", case.network_of()
        plain = plain.to(memory_format=torch.channels_last) if gpu else plain
        optimizer = training.adam([plain], 1e-3, 1e-5)
        decay = training.warmup_cosine(optimizer, 0, 10**6)
        return cls(case, data, fabric, *training.set_up(fabric, plain, optimizer, compiled), decay)

    def loader(self, resident: bool = False, workers: int = 0) -> Loader:
        """Of the batches that train.

        Args:
            resident: the images are in the memory of the device, as by ``trainer.resident``.
            workers: processes that read.
        """
        screen, case = self.data.screen, self.case
        rows, plates = screen.rows("train"), screen.plate_ids
        source: BatchSource
        if case.views == 1:
            source, reader = PlateBatches(rows, plates[rows], batch_size=case.fields), BatchReader(screen, plates)
        else:
            fields = screen.table["image"].to_numpy()
            each, first = np.unique(fields[rows], return_index=True)
            source = CellBatches(PlateBatches(each, plates[rows[first]]), rows, fields, "random", case.views)
            reader = BatchReader(screen, plates, instances=fields)
        loader = Loader(reader, source, workers, pin_memory=self.fabric.device.type == "cuda" and not resident)
        if resident:
            loader.hold(self.fabric.device)
        return loader

    def epoch(self, loader: Loader) -> Callable[[], None]:
        """The whole loop: read, upload, augment, plate statistics, step, log."""
        run = training.Training(
            fabric=self.fabric,
            network=self.network,
            optimizer=self.optimizer,
            lr_schedule=self.decay,
            loader=loader,
            transform=self.case.augment,
            objective=self.case.objective,
            statistics=Statistics("plate"),
            logger=training.RunLogger(self.data.folder / "run", {}, enabled=False),
            checkpoints=training.Checkpoints(self.data.folder, enabled=False),
            skipped=SkippedImages(self.data.screen),
            about={},
        )
        return repeated(lambda: training.fit(run, training.Plan(num_epochs=1)), self.fabric.device)

    def data_path(self, loader: Loader) -> Callable[[], None]:
        """Read, upload and augment, and nothing else."""
        augment, generator = self.case.augment, torch.Generator(self.fabric.device).manual_seed(0)

        def work() -> None:
            for batch in loader:
                augment(batch.to(self.fabric.device).images, generator)

        return repeated(work, self.fabric.device)

    def bare_steps(self, loader: Loader) -> Callable[[], None]:
        """As many steps as an epoch has, on one batch that is on the device and augmented."""
        fixed: Batch = next(iter(loader)).to(self.fabric.device)
        objective, augment = self.case.objective, self.case.augment
        images: Tensor = augment(fixed.images, torch.Generator(self.fabric.device).manual_seed(0))

        def work() -> None:
            self.network.train()
            for _ in range(self.case.steps):
                with Statistics("plate").of(self.network, fixed.groups, fixed.controls), self.fabric.autocast():
                    loss, _ = objective(self.network, images, fixed)
                self.fabric.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

        return repeated(work, self.fabric.device)
