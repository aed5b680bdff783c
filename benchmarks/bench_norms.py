"""Plate-aware batch norm against ``nn.BatchNorm2d``: one layer, a network's step, and plates at inference; on the CPU.

    python -m benchmarks norms

Layers run forward and backward on the same tensor, in turn; a figure is the median over rounds of plate-aware / plain,
of the seconds that the processor worked for this process, as other programs have little part in these. PyTorch takes
memory as it does by itself; runs have it take larger pages, which makes all of them faster, and large maps most.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import Figure
from biomass.inference import run_plate
from biomass.loader import Batch
from biomass.models import Architecture, build_network
from biomass.norms import PlateBatchNorm, Statistics, measure_plates, plate_statistics
from biomass.transforms import Standardize

SHAPES = ((128, 64, 64, 64), (64, 256, 16, 16), (256, 64, 24, 24), (64, 512, 8, 8))
"""Maps that a ResNet normalizes: images, channels, height, width; (256, 64, 24, 24) are those of 48 pixels' cells."""

FORMS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    """Print every figure."""
    for figure in measure():
        print(f"  {figure}", flush=True)


def measure(quick: bool = False) -> list[Figure]:
    """All figures; ``quick``: of one small tensor, for a look at whether they can be had."""
    return [*layers(quick), *networks(quick), *inference(quick)]


def kinds(images: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """What a batch is made of: the plate of each image, and how much each counts in the statistics."""
    none, rng = torch.zeros(images, dtype=torch.long), np.random.default_rng(0)
    classes = rng.choice(4, images, p=(0.5, 0.25, 0.15, 0.1))
    return {
        "one plate": (none, None),
        "4 equal plates": (torch.arange(4).repeat_interleave(images // 4), None),
        "7 ragged plates": (torch.from_numpy(np.sort(rng.choice(7, images, p=np.arange(1, 8) / 28))), None),
        "4 plates in no order": (torch.arange(images) % 4, None),
        "controls of one": (none, torch.arange(images) >= images * 7 // 8),
        "balanced weights": (none, torch.from_numpy(1 / np.bincount(classes)[np.sort(classes)])),
    }


def layers(quick: bool) -> list[Figure]:
    """One layer: every kind of batch; the range is that over the shapes and memory formats, of each the median."""
    figures = []
    for dtype in (torch.float32, torch.bfloat16):
        found: dict[str, list[tuple[float, str]]] = {}
        for shape in SHAPES[-1:] if quick else SHAPES:
            for form, memory_format in FORMS.items():
                x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
                works = {"plain": _passes(nn.BatchNorm2d(shape[1]), x, None, None)}
                works |= {kind: _passes(PlateBatchNorm(shape[1]), x, *of) for kind, of in kinds(shape[0]).items()}
                costs = _in_turn(works, rounds=3 if quick or x.numel() > 2**24 else 7)
                for kind, values in costs.items():
                    ratio = statistics.median(a / b for a, b in zip(values, costs["plain"], strict=True))
                    found.setdefault(kind, []).append((ratio, f"{shape} {form}"))
        del found["plain"]
        for kind, ratios in found.items():
            name = f"batch norm, {str(dtype).removeprefix('torch.')}, {kind}"
            worst = max(ratios)
            goal = "1.0" if kind == "one plate" else "<= 1.1"
            middle = statistics.median(ratio for ratio, _ in ratios)
            note = f"most at {worst[1]}" + ("; no sampler makes such batches" if "no order" in kind else "")
            figures.append(Figure(name, middle, min(ratios)[0], worst[0], goal, note=note))
    return figures


def networks(quick: bool) -> list[Figure]:
    """A step of ResNet-18 on 64 pixels: batches of one and of four plates, against a network of plain batch norm."""
    images = 16 if quick else 64
    x = torch.randn(images, 3, 64, 64)
    network = build_network(Architecture("resnet18", 3, (10,)))
    four = torch.arange(4).repeat_interleave(images // 4)
    works: dict[str, Callable[[], None]] = {
        "plain": partial(_step, network, x, None),
        "one plate": partial(_step, network, x, four * 0),
        "4 plates": partial(_step, network, x, four),
    }
    costs = _in_turn(works, rounds=2 if quick else 5)
    figures = []
    for kind in ("one plate", "4 plates"):
        ratios = [a / b for a, b in zip(costs[kind], costs["plain"], strict=True)]
        name = f"step of resnet18, {images} images of 64 px, {kind}"
        figures.append(Figure(name, statistics.median(ratios), min(ratios), max(ratios), "<= 1.1"))
    return figures


def inference(quick: bool) -> list[Figure]:
    """A plate of ResNet-18 on 64 pixels in four chunks, a pass of each word against a forward pass of running averages.

    ``balanced`` runs its passes, see :data:`biomass.norms.WORDS`; together they are to cost as many forward passes.
    These are over images that are standardized already, where the words begin with raw ones.
    """
    images = 16 if quick else 128
    network = build_network(Architecture("resnet18", 3, (10,))).eval()
    x, labels = torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8), torch.arange(images) % 10
    controls = (torch.arange(images) % 8 == 0).to(torch.int8)
    numbers = torch.arange(images)
    of_plate = Batch(x, labels, numbers, numbers * 0, numbers, controls, numbers[:0])
    chunks = [_chunk(of_plate, part) for part in numbers.chunk(4)]
    standardize = Standardize()
    made = [standardize(chunk.images) for chunk in chunks]
    measure_plates(network, [[(x, chunk.labels, chunk.controls) for x, chunk in zip(made, chunks, strict=True)]], 10)
    words = ("plate", "controls", "shrunk", "balanced")
    device = torch.device("cpu")

    def run(word: str) -> None:
        with torch.no_grad():
            run_plate(network, chunks, standardize, Statistics(word), device, classifies=True)

    def plain() -> None:
        with torch.no_grad():
            for images in made:
                network(images)

    costs = _in_turn({"plain": plain, **{word: partial(run, word) for word in words}}, rounds=1 if quick else 5)
    figures = []
    for word in words:
        passes = Statistics(word).passes(network)
        ratios = [a / b / passes for a, b in zip(costs[word], costs["plain"], strict=True)]
        name = f"a pass of {word} over a plate of {images} images"
        note = f"{passes} pass{'es' * (passes > 1)} a plate"
        figures.append(Figure(name, statistics.median(ratios), min(ratios), max(ratios), "<= 1.1", note=note))
    return figures


def _chunk(batch: Batch, part: Tensor) -> Batch:
    named = ("images", "labels", "rows", "groups", "instances", "controls")
    return replace(batch, **{name: getattr(batch, name)[part] for name in named})


def _passes(layer: nn.Module, x: Tensor, plates: Tensor | None, weights: Tensor | None) -> Callable[[], None]:
    """Forward and backward, for ever under these statistics: a network enters them once for all of its layers."""
    leaf, grad = x.detach().requires_grad_(), torch.randn_like(x)
    entered = ExitStack()
    entered.enter_context(plate_statistics(layer, plates, weights=weights))

    def work(_keep: ExitStack = entered) -> None:  # let go of, it would end
        layer.zero_grad(set_to_none=True)
        leaf.grad = None
        layer(leaf).backward(grad)

    return work


def _step(network: nn.Module, x: Tensor, plates: Tensor | None) -> None:
    network.zero_grad(set_to_none=True)
    with plate_statistics(network, plates, "running" if plates is None else "plate"):
        network(x).sum().backward()


def _in_turn(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor that each piece of code takes, round by round, after a warm-up."""
    for work in works.values():
        work()
    costs: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            costs[name].append(time.process_time() - start)
    return costs


if __name__ == "__main__":
    main()
