"""What an evaluation in training costs: against a forward pass over the same images, and against the steps before it.

The forward pass is that of the network in evaluation mode over images that are augmented already, in the same batches.
The evaluation reads, augments, takes statistics and computes the loss as well.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import Figure, side_by_side
from biomass import training
from biomass.datasets.simulated import load_simulated_cells
from biomass.loader import BatchReader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.norms import Statistics
from biomass.objectives import Contrastive
from biomass.screen import Screen
from biomass.transforms import (
    Compose,
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    Standardize,
)

STEPS = 3


def main() -> None:
    """Print what was measured."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """The ratios for SimCLR on simulated cells with ResNet-18, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        screen = load_simulated_cells(folder, experiments=4, plates=1, wells=24, treatments=4, size=96, sites=2)
        figures = [
            figure
            for word, fields in (("running", 48), ("plate", None), ("plate", 24))
            for figure in _figures(screen, Path(folder), word, fields, rounds=1 if quick else 5)
        ]
    torch.set_num_threads(threads)
    return figures


def _figures(screen: Screen, folder: Path, word: str, fields: int | None, rounds: int) -> list[Figure]:
    """An evaluation by a word over batches of some fields (None: whole plates)."""
    fabric = training.make_fabric("cpu")
    instances = screen.groups(("experiment", "plate", "well", "site"))
    reader = BatchReader(screen, screen.plate_ids, instances=instances)
    view = partial(training.view_loader, fabric, screen, reader, mode="random", num_img=2, by_group=word != "running")
    loader, other = view("train", batch_size=48), view("val", batch_size=fields, shuffle=False)
    crop_and_blur = (RandomResizedCrop(48), GaussianBlur(25, (0.1, 0.5)))
    augment = Compose([RandomRotate90(), RandomHorizontalFlip(), *crop_and_blur, Standardize()])
    plain = build_network(Architecture("resnet18", len(screen.pixels.channels), (128,)), False, 0)
    optimizer = training.adam([plain], 1e-3, 0.0)
    decay = training.warmup_cosine(optimizer, 0, 1000)
    network, optimizer = training.set_up(fabric, plain, optimizer)
    statistics, objective = Statistics(word), Contrastive(0.05)
    evaluation = training.LossEvaluation(objective, {"val": other}, augment, statistics)
    run = training.Training(
        fabric=fabric,
        network=network,
        optimizer=optimizer,
        lr_schedule=decay,
        loader=loader,
        transform=augment,
        objective=objective,
        statistics=statistics,
        logger=training.RunLogger(folder / "run", {}, enabled=False),
        checkpoints=training.Checkpoints(folder, enabled=False),
        skipped=SkippedImages(screen),
        about={},
    )
    batches = [augment(batch.to(fabric.device).images, torch.Generator().manual_seed(0)) for batch in other]

    def forward() -> None:
        network.eval()
        with torch.inference_mode():
            for images in batches:
                network(images)

    def steps() -> None:
        training.fit(run, training.Plan(num_epochs=STEPS, max_steps=STEPS, monitor=None))

    evaluate = partial(evaluation, run, 0, 0)
    to_forward = side_by_side(evaluate, forward, rounds, time.process_time)
    to_steps = side_by_side(evaluate, steps, rounds, time.process_time)
    images = sum(map(len, batches))
    of = f"{word}, {'whole plates' if fields is None else f'batches of {len(batches[0])}'}"
    taken = f"{images} images, {STEPS} steps over {STEPS * len(next(iter(loader.batches)))}"
    return [
        Figure(f"evaluation / forward pass, statistics {of}", *to_forward[2:], goal="<= 1.1"),
        Figure(f"evaluation / {STEPS} steps, statistics {of}", *to_steps[2:], goal="<= 1", note=taken),
    ]


if __name__ == "__main__":
    main()
