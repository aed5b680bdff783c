"""The data path of contrastive training alone (read, batch, augment; no network), on one core.

Ours reads a packed store, in the order of the plate sampler, and augments whole batches. The other reads one PNG file
per cell, and augments image by image with torchvision. Cells and augmentations are the same. The figure is the ratio of
views per second of this process, ours to theirs.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.timing import Figure, side_by_side
from biomass.datasets.simulated import load_simulated_cells
from biomass.loader import BatchReader, Loader
from biomass.samplers import CellBatches, PlateBatches
from biomass.transforms import (
    Compose,
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    Standardize,
)

VIEWS = 5


def main() -> None:
    """Print what was measured."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """The ratio for the published augmentation of cells."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = {"plates": 1, "wells": 30, "treatments": 10} if quick else {"plates": 2, "wells": 150, "treatments": 50}
        screen = load_simulated_cells(folder, experiments=3, size=128, sites=1, **size)
        images = screen.table["image"].to_numpy()
        rows = screen.rows("train")
        fields, first = np.unique(images[rows], return_index=True)
        plates = PlateBatches(fields, screen.plate_ids[rows[first]])
        cells = CellBatches(plates, rows, images, "random", VIEWS)
        loader = Loader(BatchReader(screen, screen.plate_ids, instances=images), cells)
        crop_and_blur = (RandomResizedCrop(48), GaussianBlur(25, (0.1, 0.5)))
        augment = Compose([RandomRotate90(), RandomHorizontalFlip(), *crop_and_blur, Standardize()])
        batches = list(cells)
        png = next(Path(folder).glob("simulated/*/cells"))
        files = [_file(png, screen.table, row) for row in batches[0][: 40 * VIEWS]]
        slow = v2.Compose(
            [
                v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
                v2.RandomHorizontalFlip(),
                v2.RandomResizedCrop(48, antialias=True),
                v2.GaussianBlur(25, (0.1, 0.5)),
                v2.Lambda(_standardize),
            ]
        )

        def batched() -> None:
            generator = torch.Generator().manual_seed(0)
            for batch in loader:
                augment(batch.to(torch.device("cpu"), integers=True).images, generator)

        def one_by_one() -> None:
            torch.stack([slow(v2.functional.to_image(Image.open(file)).float()) for file in files])

        found = side_by_side(one_by_one, batched, rounds=1 if quick else 15, clock=time.process_time)
    torch.set_num_threads(threads)
    views = sum(len(batch) for batch in batches)
    more = views / len(files)
    return [
        Figure(
            f"data path, {VIEWS} views of cells of 48 px, one core, to files and per-image transforms",
            more * found.ratio,
            more * found.lowest,
            more * found.highest,
            goal=">= 40",
            note=f"{len(batches[0])} views a batch, {views / found.second:,.0f} views/s",
        )
    ]


def _file(root: Path, table: pd.DataFrame, row: int) -> Path:
    """The file of a cell in the layout of cropped RxRx1."""
    cell = table.iloc[row]
    field = f"{cell['well']}_s{cell['site']}"
    return root / cell["experiment"] / f"Plate{cell['plate']}" / field / f"{cell['cell']}.png"


def _standardize(image: torch.Tensor) -> torch.Tensor:
    std = image.std((1, 2), keepdim=True)
    return (image - image.mean((1, 2), keepdim=True)) / torch.where(std == 0, 1.0, std)


if __name__ == "__main__":
    main()
