"""The published way of training, rebuilt from its description (Lin & Lu 2022): what users have without this package.

An image is a PNG file, read by PIL and transformed by torchvision, one by one, in the worker processes of a torch
DataLoader; a batch is a plate. Networks are in float32 and as they come, and the loop asks for the loss of every step.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks import resnet
from benchmarks.cases import CLASSES, Case
from benchmarks.timing import Figure, figure, repeated, side_by_side
from benchmarks.trainings import Data, Ours
from biomass.objectives import contrastive_loss

IMAGES = {"fields": 40_612, "cells": 40_612 * 5}
"""Of an epoch of RxRx1-WILDS: the training images; 5 cells of each."""

EPOCHS = {"fields": 90, "cells": 500}
"""That were published."""


class Files(Dataset[tuple[Tensor, int]]):
    """Fields of view, or cells of them: ``files[i]`` (V, C, H, W) and its class.

    Args:
        files: of each item.
        views: how many of them are drawn, other ones each time.
        transform: of one image.
    """

    def __init__(self, files: Sequence[Sequence[Path]], views: int, transform: Callable[[Tensor], Tensor]) -> None:
        self.files, self.views, self.transform = files, views, transform

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        files = self.files[item]
        chosen = torch.randperm(len(files))[: self.views].tolist()
        images = [v2.functional.to_dtype(_read(files[i]), torch.float32, scale=True) for i in chosen]
        return torch.stack([self.transform(image) for image in images]), item % CLASSES

    def __len__(self) -> int:
        return len(self.files)


def _read(file: Path) -> Tensor:
    """An image (C, H, W) of 8 bits."""
    with Image.open(file) as image:
        return v2.functional.pil_to_tensor(image.convert("RGB"))


def _standardize(image: Tensor) -> Tensor:
    std = image.std((1, 2), keepdim=True)
    return (image - image.mean((1, 2), keepdim=True)) / torch.where(std == 0, 1.0, std)


def transform_of(case: Case) -> v2.Compose:
    """The published augmentation, of one image."""
    steps = [v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])]
    steps += [v2.RandomHorizontalFlip()]
    if case.views > 1:
        steps += [v2.RandomResizedCrop(case.size, antialias=True), v2.GaussianBlur(25, (0.1, 0.5))]
    return v2.Compose([*steps, v2.Lambda(_standardize)])


class Published:
    """A network with what trains it.

    Args:
        case: the training.
        data: its files.
        device: of the network.
        workers: processes that read and transform.
    """

    def __init__(self, case: Case, data: Data, device: torch.device, workers: int) -> None:
        self.case, self.device = case, device
        items = [data.files[i : i + case.cells] for i in range(0, len(data.files), case.cells)]
        plates = [list(range(i, i + case.fields)) for i in range(0, len(items), case.fields)]
        self.loader = DataLoader(
            Files(items, case.views, transform_of(case)),
            batch_sampler=plates,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        encoder = getattr(resnet, case.network)()
        width = encoder(torch.zeros(2, 3, 64, 64)).shape[1]
        head: nn.Module = nn.Linear(width, CLASSES)
        if case.views > 1:
            head = nn.Sequential(nn.Linear(width, 2048), nn.ReLU(), nn.Linear(2048, 128))
        self.network = nn.Sequential(encoder, head).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3, weight_decay=1e-5)
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10**6)

    def epoch(self) -> Callable[[], None]:
        """The plain loop."""

        def work() -> None:
            total = 0.0
            self.network.train()
            for images, labels in self.loader:
                out = self.network(images.flatten(0, 1).to(self.device))
                if self.case.views > 1:
                    field = torch.arange(len(images)).repeat_interleave(self.case.views).to(self.device)
                    loss = contrastive_loss(out, field, 0.05)
                else:
                    loss = F.cross_entropy(out, labels.to(self.device))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.decay.step()
                total += loss.item()

        return repeated(work, self.device)

    def data_path(self) -> Callable[[], None]:
        """Read, transform and upload, and nothing else."""

        def work() -> None:
            for images, _ in self.loader:
                images.to(self.device)

        return repeated(work, self.device)


def against(
    published: Published, ours: Ours, rounds: int, resident: bool = False, workers: int = 0
) -> Iterator[Figure]:
    """The published way, over ours: whole epochs, and the data path alone."""
    case, loader = ours.case, ours.loader(resident, workers)
    pairs = {
        "": (published.epoch(), ours.epoch(loader)),
        ", data path alone": (published.data_path(), ours.data_path(loader)),
    }
    for what, (theirs, mine) in pairs.items():
        found = side_by_side(theirs, mine, rounds)
        images = case.steps * case.images
        rates = [images / seconds for seconds in (found.first, found.second)]
        note = f"published {rates[0]:.0f} images/s, ours {rates[1]:.0f}"
        if not what:
            hours = [IMAGES[case.name] * EPOCHS[case.name] / rate / 3600 for rate in rates]
            note += f"; computed for {EPOCHS[case.name]} epochs: {hours[0]:.4g} h, ours {hours[1]:.4g} h"
        yield figure(f"{case}{what}", found, "> 1", note, "times as fast")
