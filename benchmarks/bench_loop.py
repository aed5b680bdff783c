"""The whole training loop (read a packed store, batch, augment, plate statistics, step, log) against the bare step.

The bare step uses the same network and optimizer on one batch that stays in memory. Both run in this process, in turn.
The figure is the bare steps' time divided by the loop's time: at best 1.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from benchmarks.timing import Figure, side_by_side
from biomass import training
from biomass.datasets.packed import load_packed
from biomass.datasets.simulated import load_simulated
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.norms import Statistics, plate_statistics
from biomass.objectives import Classification
from biomass.pixels.packed_writer import pack
from biomass.samplers import PlateBatches
from biomass.transforms import Compose, RandomHorizontalFlip, RandomRotate90, Standardize

STEPS, BATCH = 12, 64


def main() -> None:
    """Print what was measured."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """The ratio for ResNet-18 on the simulated screen."""
    device = Fabric(devices=1).device
    with tempfile.TemporaryDirectory() as folder:
        screen = load_packed(pack(load_simulated(folder, experiments=6), Path(folder) / "store", workers=0))
        rows = screen.rows("train")
        batches = PlateBatches(rows, screen.plate_ids[rows], batch_size=BATCH, seed=0)
        architecture = Architecture("resnet18", len(screen.pixels.channels), (len(screen.classes),))
        fabric = Fabric(accelerator=device.type, devices=1)
        plain = build_network(architecture)
        optimizer = training.adam([plain], 1e-3, 1e-5)
        decay = training.warmup_cosine(optimizer, 0, 1000)
        network, optimizer = training.set_up(fabric, plain, optimizer)
        loader = Loader(BatchReader(screen, screen.plate_ids), batches)
        augment = Compose([RandomRotate90(), RandomHorizontalFlip(), Standardize()])
        steps = min(1 if quick else STEPS, len(batches))
        plan = training.Plan(num_epochs=1, max_steps=steps, log_every=10)

        def whole_loop() -> None:
            logger = training.RunLogger(Path(folder) / "run", {}, enabled=False)
            checkpoints = training.Checkpoints(Path(folder), enabled=False)
            run = training.Training(
                fabric=fabric,
                network=network,
                optimizer=optimizer,
                lr_schedule=decay,
                loader=loader,
                transform=augment,
                objective=Classification(True),
                statistics=Statistics("plate"),
                logger=logger,
                checkpoints=checkpoints,
                skipped=SkippedImages(screen),
                about={},
            )
            network.train()
            training.fit(run, plan)

        batches.set_epoch(0)
        sizes = [len(b) for b, _ in zip(batches, range(steps), strict=False)]
        images = torch.randn(max(sizes), len(screen.pixels.channels), *screen.pixels.size, device=device)
        labels = torch.from_numpy(np.zeros(max(sizes), np.int64)).to(device)

        def bare_steps() -> None:
            network.train()
            for n in sizes:
                with plate_statistics(network, None):
                    loss = F.cross_entropy(network(images[:n]), labels[:n])
                fabric.backward(loss)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()

        clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        found = side_by_side(bare_steps, whole_loop, rounds=1 if quick else 15, clock=clock)
    return [
        Figure(
            f"bare step / loop, resnet18, {screen.pixels.size[0]} px, {sum(sizes) / steps:.0f} images a step, {device}",
            *found[2:],
            goal=">= 0.97",
            note=f"bare {1e3 * found.first / steps:.0f} ms, loop {1e3 * found.second / steps:.0f} ms a step",
        )
    ]


if __name__ == "__main__":
    main()
