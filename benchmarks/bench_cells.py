"""The data path of contrastive training alone (read, batch, augment; no network), on one core.

Ours reads a packed store, in the order of the plate sampler, and augments whole batches. The other reads one PNG file
per cell, and augments image by image with torchvision. Cells, augmentations and batches are the same. The figure is
the ratio of views per second, ours to theirs.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.timing import ratio
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

VIEWS = 2


def main() -> None:
    """Print the ratio for the published augmentation of cells."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        screen = load_simulated_cells(folder, experiments=3, plates=2, wells=150, treatments=50, size=128, sites=1)
        images = screen.table["image"].to_numpy()
        rows = screen.rows("train")
        fields, first = np.unique(images[rows], return_index=True)
        plates = PlateBatches(fields, screen.plate_ids[rows[first]])
        cells = CellBatches(plates, rows, images, "random", VIEWS)
        loader = Loader(BatchReader(screen, screen.plate_ids, instances=images), cells)
        crop_and_blur = (RandomResizedCrop(48), GaussianBlur(25, (0.1, 0.5)))
        augment = Compose([RandomRotate90(), RandomHorizontalFlip(), *crop_and_blur, Standardize()])
        chosen = [batch[: 2 * VIEWS * 100] for batch in cells]
        png = next(Path(folder).glob("simulated/*/cells"))
        files = [[_file(png, screen.table, row) for row in batch] for batch in chosen]
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
                augment(batch.to(torch.device("cpu")).images, generator)

        def one_by_one() -> None:
            for batch in files:
                torch.stack([slow(v2.functional.to_image(Image.open(file)).float()) for file in batch])

        fast, reference, _ = ratio(batched, one_by_one, rounds=5)
        ours = sum(len(batch) for batch in cells) / fast
        theirs = sum(len(batch) for batch in files) / reference
        print(
            f"one core, 48 px, {len(chosen[0])} views a batch: ours {ours:.0f} views/s, "
            f"files and per-image transforms {theirs:.0f} views/s, ratio {ours / theirs:.1f}"
        )


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
