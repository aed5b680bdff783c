"""On one GPU: plate-aware batch norm, networks, the data path and the whole loop, and the published way against ours.

    python -m benchmarks.gpu                 all parts, unattended, in less than 9 minutes
    python -m benchmarks.gpu norms loop      these

The figures go into ``benchmarks/gpu.json``, which is whole after each of them; ``python -m benchmarks.page`` makes the
page of it. A part that needs packages that are not there says which; the others need torch, with the numpy and Triton
that come with it.
"""

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import bench_limits
from benchmarks.cases import QUICK, Case
from benchmarks.page import GPU
from benchmarks.record import Record, about
from benchmarks.timing import Figure, Ratio, figure, repeated, replayed, side_by_side
from biomass.errors import did_you_mean
from biomass.loader import Batch
from biomass.norms import PlateBatchNorm, Statistics, convert, plate_statistics

MINUTES, RESERVE = 8.75, 1.5
"""After so many minutes the command ends, whatever it does; and it begins nothing so many minutes before."""

WHOLE = (
    *("lightning_fabric", "torchvision", "PIL", "pandas", "pyarrow", "scipy"),
    *("omegaconf", "yaml", "tqdm", "filelock"),
)
"""What the whole loop imports beside torch, numpy and Triton."""

NORM_SHAPES = ((64, 128), (256, 64), (512, 32), (2048, 8))
"""Channels and height of the maps that ResNet-50 normalizes in images of 256 pixels."""

CASES = (
    (Case("fields", "resnet50", 256, 75, 40), ">= 0.92"),
    (Case("cells", "resnet50", 48, 308, 20, views=5), ">= 0.90"),
    (Case("cells", "resnet18", 48, 308, 20, views=5), ">= 0.90"),
)
"""Trainings, and what the loop is to reach of the bare step's speed."""


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that are named, or all, and write the record."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="What one GPU does, as ratios.")
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}; all of them, if none is named")
    parser.add_argument("--out", type=Path, default=GPU, help="the file that is written")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, without a GPU, too; the figures mean nothing")
    chosen = parser.parse_args(arguments)
    for part in chosen.parts:
        if part not in PARTS:
            raise SystemExit(f"error: no part is called '{part}'; {did_you_mean(part, PARTS)}")
    if chosen.quick and chosen.out == GPU:
        raise SystemExit("error: figures of --quick mean nothing, and do not belong on the page: give --out")
    if not torch.cuda.is_available() and not chosen.quick:
        raise SystemExit("error: no GPU is available here; --quick tries it out without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logging.disable(logging.WARNING)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    start, record = time.perf_counter(), Record(chosen.out, about(device), anew=not chosen.parts)
    last = threading.Timer(60 * MINUTES, _end)
    last.daemon = True
    last.start()
    print(", ".join(f"{name} {value}" for name, value in record.about.items()), flush=True)
    for name in chosen.parts or PARTS:
        part, needs = PARTS[name]
        title = (part.__doc__ or "").partition("\n\n")[0]
        print(f"\n{name}: {title}", flush=True)
        lacking = [each for each in needs if importlib.util.find_spec(each) is None]
        if lacking:
            record.leave_out(name, title, f"it needs {', '.join(lacking)}, not installed here")
        else:
            record.measure(name, title, part(device, chosen.quick), start + 60 * (MINUTES - RESERVE))
    last.cancel()


def _end() -> None:
    """End now: what was measured is written."""
    print("  left out: the rest, out of time", flush=True)
    os._exit(0)


def norms(device: torch.device, quick: bool) -> Iterator[Figure]:
    """Forward and backward of a layer over that of ``nn.BatchNorm2d``: the median of four shapes, and their range."""
    images = 16 if quick else 128
    kinds = {
        "one plate": (np.zeros(images, int), None),
        "4 equal plates": (np.repeat(np.arange(4), images // 4), None),
        "7 ragged plates": (np.sort(np.random.default_rng(0).choice(7, images, p=np.arange(1, 8) / 28)), None),
        "controls of one": (np.zeros(images, int), np.arange(images) % 8 == 0),
    }
    for dtype in (torch.bfloat16, torch.float32):
        for form in (torch.channels_last, torch.contiguous_format):
            layout = "channels last" if form is torch.channels_last else "contiguous"
            for kind, (plates, controls) in kinds.items():
                of_shape = partial(_norm, device, images, plates, controls, dtype, form, 3 if quick else 9)
                found = [of_shape(*shape) for shape in (((8, 8),) if quick else NORM_SHAPES)]
                ratios = [each.ratio for each in found]
                name = f"{str(dtype).removeprefix('torch.')}, {layout}, {kind}"
                goal = "<= 1.02" if kind == "one plate" else "<= 1.1"
                note = f"{images} images; by shape {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
                yield Figure(name, float(np.median(ratios)), min(ratios), max(ratios), goal, "x", note)


def _norm(
    device: torch.device,
    images: int,
    plates: np.ndarray,
    controls: np.ndarray | None,
    dtype: torch.dtype,
    form: torch.memory_format,
    rounds: int,
    channels: int,
    size: int,
) -> Ratio:
    """One layer on one shape, each replayed as a graph: the device's time, without the host's to launch kernels."""
    x = torch.randn(images, channels, size, size, device=device, dtype=dtype).to(memory_format=form)
    grad = torch.randn_like(x)
    plain, aware = nn.BatchNorm2d(channels).to(device), PlateBatchNorm(channels).to(device)
    word, weights = ("plate", None) if controls is None else ("controls", torch.from_numpy(controls))
    reference = replayed(bench_limits.there_and_back(plain, x, grad), device)
    with plate_statistics(aware, torch.from_numpy(plates), word, weights=weights):
        return side_by_side(replayed(bench_limits.there_and_back(aware, x, grad), device), reference, rounds)


def networks(device: torch.device, quick: bool) -> Iterator[Figure]:
    """Forward and backward of ResNet-50 on batches of four plates over that on batches of one, as users run them."""
    images, size, steps = (8, 32, 1) if quick else (128, 224, 10)
    x = torch.randn(images, 3, size, size, device=device).to(memory_format=torch.channels_last)
    for compiled in (False,) if quick else (False, True):
        plain = convert(bench_limits.resnet.tiny() if quick else bench_limits.resnet.resnet50())
        plain = plain.to(device).to(memory_format=torch.channels_last)
        network: Any = torch.compile(plain) if compiled else plain

        def step(plates: Tensor, network: Any = network) -> None:
            with plate_statistics(network, plates), torch.autocast(device.type, torch.bfloat16):
                network(x).float().sum().backward()

        one, four = torch.zeros(images, dtype=torch.long), torch.arange(images) % 4
        several, alone = (repeated(partial(step, plates), device, steps) for plates in (four, one))
        found = side_by_side(several, alone, rounds=7)
        how = "compiled" if compiled else "not compiled"
        note = f"{images} images of {size} px, bfloat16, channels last; one plate {1e3 * found.second / steps:.1f} ms"
        yield figure(f"4 plates over one, {how}", found, "<= 1.1", note)
        _forget()


def limits(device: torch.device, quick: bool) -> Iterator[Figure]:
    """What the limit is, counted in bytes and operations, and how far we are from it (see bench_limits.py)."""
    return bench_limits.limits(device, quick)


def loop(device: torch.device, quick: bool) -> Iterator[Figure]:
    """The whole loop (read, upload, augment, plate statistics, step, log): share of the bare step's speed."""
    from benchmarks.trainings import Data, Ours

    for case, goal in [(case, "") for case in QUICK] if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            ours = Ours.of(case, Data(case, Path(folder)), device.type, "bf16", compiled=not quick)
            for resident in (True, False):
                loader = ours.loader(resident, 0 if resident or quick else 4)
                found = side_by_side(ours.bare_steps(loader), ours.epoch(loader), 1 if quick else 5 if resident else 3)
                a, b = (1e3 * seconds / case.steps for seconds in (found.first, found.second))
                note = f"bare {a:.1f} ms, loop {b:.1f} ms a step, {1e3 * case.images / b:.0f} images/s"
                yield figure(f"{case}{', resident' if resident else ''}", found, goal if resident else "", note)
        _forget()


def published(device: torch.device, quick: bool) -> Iterator[Figure]:
    """The published way (float32, a file an image, transforms an image, worker processes) over ours, resident."""
    from benchmarks.published import Published, against
    from benchmarks.trainings import Data, Ours

    for case in QUICK if quick else (Case("fields", "resnet50", 256, 75, 8), Case("cells", "resnet50", 48, 308, 4, 5)):
        with tempfile.TemporaryDirectory() as folder:
            data = Data(case, Path(folder))
            ours = Ours.of(case, data, device.type, "bf16", compiled=not quick)
            theirs = Published(case, data, device, 0 if quick else min(16, os.cpu_count() or 1))
            yield from against(theirs, ours, 1 if quick else 3, resident=True)
        _forget()


def steps(device: torch.device, quick: bool) -> Iterator[Figure]:
    """As loop, resident, with torch alone: gather, augment, plate statistics and step, without log and checkpoints."""
    for case, goal in [(case, "") for case in QUICK] if quick else CASES:
        bare, whole = _bare_and_whole(case, device, compiled=not quick)
        found = side_by_side(bare, whole, rounds=1 if quick else 5)
        a, b = (1e3 * seconds / case.steps for seconds in (found.first, found.second))
        yield figure(str(case), found, goal, f"bare {a:.1f} ms, whole {b:.1f} ms a step, {1e3 * case.images / b:.0f}/s")
        _forget()


def _bare_and_whole(case: Case, device: torch.device, compiled: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    plain = case.network_of().to(device).to(memory_format=torch.channels_last)
    network: Any = torch.compile(plain) if compiled else plain
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3, weight_decay=1e-5, fused=True)
    objective, augment, statistics = case.objective, case.augment, Statistics("plate")
    shape = (2 * case.images, 3, case.size, case.size)
    held = torch.randint(0, 255, shape, dtype=torch.uint8, device=device)
    generator = torch.Generator(device).manual_seed(0)
    zeros, kinds = torch.zeros(case.images, dtype=torch.long), torch.zeros(case.images, dtype=torch.int8)
    field = torch.arange(case.images) // case.views

    def batch() -> Batch:
        rows = torch.randperm(len(held))[: case.images]
        index = rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows
        return Batch(held.index_select(0, index), zeros, rows, zeros, field, kinds, zeros[:0]).to(device)

    def step(images: Tensor, known: Batch) -> None:
        with statistics.of(network, known.groups, known.controls), torch.autocast(device.type, torch.bfloat16):
            loss, _ = objective(network, images, known)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    fixed = batch()
    ready = augment(fixed.images, generator)

    def whole() -> None:
        new = batch()
        step(augment(new.images, generator), new)

    return repeated(lambda: step(ready, fixed), device, case.steps), repeated(whole, device, case.steps)


def _forget() -> None:
    """Forget what was compiled, if anything was: to import what compiles takes seconds."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


Measure = Callable[[torch.device, bool], Iterator[Figure]]

PARTS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "norms": (norms, ()),
    "loop": (loop, WHOLE),
    "published": (published, WHOLE),
    "networks": (networks, ()),
    "limits": (limits, ()),
    "steps": (steps, ()),
}
"""In the order in which they are measured, and what they import beside torch."""


if __name__ == "__main__":
    main()
