"""On one GPU: plate-aware batch norm against batch norm, alone and in a network, and the whole loop against bare steps.

    python -m benchmarks.gpu [norms] [networks] [loop]

Every pair is measured in turn in this process, several rounds; the figures are medians of ratios with their range.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from biomass import training
from biomass.datasets.packed import load_packed
from biomass.loader import Batch, BatchReader, BatchSource, Loader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.norms import PlateBatchNorm, Statistics, plate_statistics
from biomass.objectives import Classification, Contrastive, Objective
from biomass.pixels.packed_writer import pack
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen
from biomass.transforms import (
    Compose,
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    Standardize,
)

DEVICE = torch.device("cuda")
STEPS = 40
NORM_SHAPES = ((64, 128), (256, 64), (512, 32), (2048, 8))
"""Channels and height of the maps that ResNet-50 normalizes in images of 256 pixels."""


def main(parts: list[str]) -> None:
    """Print the figures of the parts that are named, or of all."""
    if not torch.cuda.is_available():
        raise SystemExit("error: no GPU is available here")
    logging.disable(logging.WARNING)
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    print(f"{name}, {memory / 2**30:.0f} GiB, torch {torch.__version__}")
    for part, run in {"norms": norms, "networks": networks, "loop": loop}.items():
        if not parts or part in parts:
            run()


@contextmanager
def synchronized() -> Iterator[None]:
    """Wait for the device at the end, so that a clock around it tells the work's time."""
    yield
    torch.cuda.synchronize()


def norms() -> None:
    """Forward and backward of one layer, against ``nn.BatchNorm2d`` on the same tensor, each replayed as a graph."""
    images = 128
    kinds = {
        "one plate": (np.zeros(images, int), None),
        "4 equal plates": (np.repeat(np.arange(4), images // 4), None),
        "7 ragged plates": (np.sort(np.random.default_rng(0).choice(7, images, p=np.arange(1, 8) / 28)), None),
        "controls of one": (np.zeros(images, int), np.arange(images) % 8 == 0),
    }
    print(f"\nbatch norm of {images} images, forward and backward, plate-aware / plain")
    for dtype in (torch.bfloat16, torch.float32):
        for form in (torch.channels_last, torch.contiguous_format):
            for channels, size in NORM_SHAPES:
                x = torch.randn(images, channels, size, size, device=DEVICE, dtype=dtype).to(memory_format=form)
                grad = torch.randn_like(x)
                plain = _replayed(nn.BatchNorm2d(channels).to(DEVICE), x, grad)
                shown = []
                for kind, (plates, mask) in kinds.items():
                    aware = PlateBatchNorm(channels).to(DEVICE)
                    groups, weights = torch.from_numpy(plates), None if mask is None else torch.from_numpy(mask)
                    word = "plate" if mask is None else "controls"
                    with plate_statistics(aware, groups, word, weights=weights):
                        found = side_by_side(_replayed(aware, x, grad), plain, rounds=9)
                    shown.append(f"{kind} {found}")
                layout = "channels last" if form is torch.channels_last else "contiguous"
                print(f"  {dtype}".replace("torch.", ""), layout, tuple(x.shape), " | ".join(shown), flush=True)


def _replayed(layer: nn.Module, x: Tensor, grad: Tensor, repeats: int = 10) -> Callable[[], None]:
    """Forward and backward, ``repeats`` times, captured once: a clock then tells the device's time, not the host's."""
    leaf = x.detach().requires_grad_()

    def once() -> None:
        layer.zero_grad(set_to_none=True)
        leaf.grad = None
        layer(leaf).backward(grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            once()

    def replay(_keep: object = once) -> None:  # the graph reads and writes the layer's tensors, and does not own them
        with synchronized():
            graph.replay()

    return replay


def networks() -> None:
    """Forward and backward of ResNet-50 on batches of several plates, against batches of one, as a user runs them."""
    images, steps = 128, 10
    x = torch.randn(images, 3, 224, 224, device=DEVICE).to(memory_format=torch.channels_last)
    print(f"\nResNet-50, {images} images of 224 pixels, bf16, channels last: batches of 4 plates / of one")
    for compiled in (False, True):
        plain = build_network(Architecture("resnet50", 3, ())).to(DEVICE).to(memory_format=torch.channels_last)
        network: Any = torch.compile(plain) if compiled else plain

        def run(plates: Tensor, network: Any = network) -> None:
            with synchronized():
                for _ in range(steps):
                    with plate_statistics(network, plates), torch.autocast("cuda", torch.bfloat16):
                        network(x).float().sum().backward()

        one, four = torch.zeros(images, dtype=torch.long), torch.arange(images) % 4
        found = side_by_side(partial(run, four), partial(run, one), rounds=7)
        print(
            f"  {'compiled' if compiled else 'not compiled'}: one plate {1e3 * found.second / steps:.1f} ms: {found}",
            flush=True,
        )
        torch.compiler.reset()


@dataclass(frozen=True)
class Case:
    """A training to be measured: fields by class, or cells by their neighbours of the same field."""

    name: str
    key: str
    size: int
    images: int
    views: int = 1


CASES = (
    Case("fields", "resnet50", 256, 75),
    Case("cells", "resnet18", 48, 308, views=5),
    Case("cells", "resnet50", 48, 308, views=5),
)


def loop(compiled: bool = True) -> None:
    """The whole loop (read, upload, augment, plate statistics, step, log) against the step on a batch in GPU memory."""
    print(f"\nwhole loop, bare step / loop: bf16, channels last, {'compiled' if compiled else 'not compiled'}")
    for case in CASES:
        for resident in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                bare, whole, images = _bare_and_whole(case, Path(folder), compiled, resident)
                found = side_by_side(bare, whole, rounds=5)
                a, b = found.first / STEPS, found.second / STEPS
                print(
                    f"  {case.name} {case.size} px{' in GPU memory' if resident else ''}, {case.key}, {images} images "
                    f"a step: bare {1e3 * a:.1f} ms, loop {1e3 * b:.1f} ms ({images / b:.0f} images/s): {found}",
                    flush=True,
                )
            torch.compiler.reset()


def _bare_and_whole(
    case: Case, folder: Path, compiled: bool, resident: bool
) -> tuple[Callable[[], None], Callable[[], None], int]:
    screen = _packed_noise(case, folder)
    rows = screen.rows("train")
    plates = screen.plate_ids
    batches: BatchSource
    objective: Objective
    head: tuple[int, ...]
    if case.views > 1:
        fields = screen.table["image"].to_numpy()
        _, first = np.unique(fields[rows], return_index=True)
        plan = PlateBatches(fields[rows][first], plates[rows[first]], seed=0)
        batches = CellBatches(plan, rows, fields, "random", case.views)
        reader = BatchReader(screen, plates, instances=fields)
        objective, head = Contrastive(0.05), (2048, 128)
        spatial = (RandomResizedCrop(case.size), GaussianBlur(25, (0.1, 0.5)))
        augment = Compose([RandomRotate90(), RandomHorizontalFlip(), *spatial, Standardize()])
    else:
        batches = PlateBatches(rows, plates[rows], batch_size=case.images, seed=0)
        reader = BatchReader(screen, plates)
        objective, head = Classification(True), (1139,)
        augment = Compose([RandomRotate90(), RandomHorizontalFlip(), Standardize()])
    if resident:
        reader.hold(rows, DEVICE)
    loader = Loader(reader, batches, num_workers=0 if resident else 4, pin_memory=not resident)
    fabric = training.make_fabric("cuda", "bf16")
    plain = build_network(Architecture(case.key, 3, head)).to(memory_format=torch.channels_last)
    optimizer = training.adam([plain], 1e-3, 1e-5, fused=True)
    decay = training.warmup_cosine(optimizer, 0, 10**6)
    network, optimizer = training.set_up(fabric, plain, optimizer, compiled)

    def whole() -> None:
        run = training.Training(
            fabric=fabric,
            network=network,
            optimizer=optimizer,
            lr_schedule=decay,
            loader=loader,
            transform=augment,
            objective=objective,
            statistics=Statistics("plate"),
            logger=training.RunLogger(folder / "run", {}, enabled=False),
            checkpoints=training.Checkpoints(folder, enabled=False),
            skipped=SkippedImages(screen),
            about={},
        )
        with synchronized():
            training.fit(run, training.Plan(num_epochs=1, log_every=50))

    one = reader[next(iter(batches))]
    assert isinstance(one, Batch)
    fixed = one.to(DEVICE)
    images = augment(fixed.images, torch.Generator(DEVICE).manual_seed(0))

    def bare() -> None:
        network.train()
        with synchronized():
            for _ in range(STEPS):
                with Statistics("plate").of(network, fixed.groups, fixed.controls), fabric.autocast():
                    loss, _ = objective(network, images, fixed)
                fabric.backward(loss)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return bare, whole, len(one)


def _packed_noise(case: Case, folder: Path) -> Screen:
    """A packed screen of smooth noise: nothing is learned from it, and it is read as any other."""
    a_plate = case.images * (1 if case.views == 1 else 2 * case.views)
    n = STEPS * a_plate  # an epoch is a step a plate
    few = np.random.default_rng(0).integers(0, 255, (997, 3, case.size, case.size), dtype=np.uint8)
    numbers = np.arange(n)
    plate = numbers // a_plate
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * n))
    table = table.assign(
        experiment="E1", plate=plate.astype(str), label=numbers % 1139, split="train", image=numbers // (2 * case.views)
    )
    screen = make_screen(table, _Repeated(few, ("a", "b", "c")), [str(i) for i in range(1139)])
    return load_packed(pack(screen, folder / "store", workers=0))


class _Repeated(VectorPixels):
    """A few images that come again and again."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows % len(self.array)]


if __name__ == "__main__":
    main(sys.argv[1:])
