"""Throughput of ``biomass profile`` on fields and on cells, with one core: the whole path, from disk to Parquet.

Ours reads a packed store and writes cells, fields and wells; with running averages, and with each plate calibrated and
encoded in one pass. The other is a plain loop in torch: one PNG file an image, a transform an image, running averages,
the vectors kept in a list. Network, images and batches are the same. Where the network only averages pixels, reading
and writing are all there is; a ResNet-18 is what a lab may run. The GPU is used where there is one.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from benchmarks.timing import Figure, figure, side_by_side
from biomass.datasets.packed import load_packed
from biomass.datasets.simulated import load_simulated, load_simulated_cells
from biomass.evaluation.encode import Encoder, encoded_plates
from biomass.evaluation.profiles import Parts, describe
from biomass.models import Architecture, build_network
from biomass.norms import Statistics
from biomass.pixels.packed_writer import pack
from biomass.screen import Screen
from biomass.training import make_fabric
from biomass.transforms import Compose, Standardize

DESIGN = {"experiments": 3, "plates": 1, "wells": 6, "treatments": 6, "size": 128}
KEYS = ("average pixels", "resnet18")
BATCH = 64


def main() -> None:
    """Print the ratios for cells and fields, without a network and with one."""
    for one in measure():
        print(one, flush=True)


def measure(quick: bool = False) -> list[Figure]:
    """Cells and fields, without a network and with one."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, load in (("cells", load_simulated_cells), ("fields", load_simulated)):
            source = load(Path(folder) / name, **DESIGN | ({"wells": 4, "treatments": 4} if quick else {}))
            store = load_packed(pack(source, Path(folder) / f"{name}.packed", workers=0))
            files = _save_png(store, Path(folder) / f"{name}.png")
            for key in KEYS[:1] if quick else KEYS:
                figures += _compare(name, key, store, files, Path(folder))
    return figures


def _compare(name: str, key: str, screen: Screen, files: Sequence[Path], folder: Path) -> list[Figure]:
    fabric = make_fabric("auto")
    network: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if key != KEYS[0]:
        network = build_network(Architecture(key, len(screen.pixels.channels), ())).encoder
    network = network.eval().to(fabric.device)
    plain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), v2.Lambda(_standardize)])
    known, groups = describe(screen, name), range(len(screen.plate_names))
    encoder, transform = Encoder(network, None, key), Compose([Standardize()])

    def ours(word: str) -> None:
        parts = Parts(known, [folder / f"{key}-{name}" / str(group) for group in groups], [""] * len(groups))
        statistics, held = Statistics.over(screen, word), () if word == "plate" else None
        plates = encoded_plates(
            fabric, encoder, screen, groups, statistics, transform=transform, held=held, batch_size=BATCH
        )
        parts.write(plates, None, str)
        for level in known.levels:
            parts.join(level, folder / f"{level}.parquet")

    def files_one_by_one() -> None:
        found = []
        with torch.inference_mode():
            for start in range(0, len(files), BATCH):
                images = torch.stack([plain(Image.open(file)) for file in files[start : start + BATCH]])
                found.append(network(images.to(fabric.device)).cpu().numpy())
        np.save(folder / "profiles.npy", np.concatenate(found))

    figures = []
    for word in ("running",) if key == KEYS[0] else ("running", "plate"):
        found = side_by_side(files_one_by_one, partial(ours, word), rounds=3, clock=time.process_time)
        size = " x ".join(map(str, screen.pixels.size))
        note = f"{len(screen)} of {size} px, {fabric.device.type}: {len(screen) / found.second:.0f}/s"
        calibrated = ", calibrated" if word == "plate" else ""
        goal = "" if calibrated else ">= 1"  # a pass over the plate for its statistics is not in a plain loop
        figures.append(figure(f"{name}, {key}{calibrated}", found, goal, note, "times as fast as a plain loop"))
    return figures


def _save_png(screen: Screen, folder: Path) -> list[Path]:
    """One PNG file an image."""
    folder.mkdir()
    files = [folder / f"{row}.png" for row in range(len(screen))]
    for start in range(0, len(files), BATCH):
        rows = np.arange(start, min(start + BATCH, len(files)))
        for row, image in zip(rows, screen.read(rows), strict=True):
            Image.fromarray(image.transpose(1, 2, 0)).save(files[row])
    return files


def _standardize(image: torch.Tensor) -> torch.Tensor:
    std = image.std((1, 2), keepdim=True)
    return (image - image.mean((1, 2), keepdim=True)) / torch.where(std == 0, 1.0, std)


if __name__ == "__main__":
    main()
