"""How far from what the machine can do: bytes and operations counted, and their rates measured in the same run.

A figure is the time that the limit would take, divided by the time that the work takes: at best 1.

- Batch norm in training must read its input twice and write its output (the moments come before the first value that
  is normalized); on the way back it reads input and gradient twice, and writes a gradient: 8 passes. A copy is 2.
- The data path reads an image of 8 bits and writes one of float32. A copy of as many bytes is the limit.
- A network does the operations that torch counts in its convolutions and products of matrices. The limit is as many of
  them in a large product of matrices or a convolution of 256 channels, whichever is faster there.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import resnet
from benchmarks.cases import QUICK, Case
from benchmarks.timing import Figure, figure, repeated, replayed, seconds, side_by_side
from biomass.norms import PlateBatchNorm, convert, plate_statistics

CASES = (Case("cells", "resnet50", 48, 308, 1, views=5), Case("fields", "resnet50", 256, 75, 1))
"""Batches of the published size."""


def main() -> None:
    """Print the figures."""
    for one in measure():
        print(one, flush=True)


def measure(quick: bool = False) -> list[Figure]:
    """On the CPU, in float32."""
    return list(limits(torch.device("cpu"), quick))


def limits(device: torch.device, quick: bool) -> Iterator[Figure]:
    """Norms, data path and network: on the CPU as a laptop would run them, on a GPU in bf16 and channels last."""
    gpu = device.type == "cuda"
    rounds = 3 if quick else 9 if gpu else 5
    yield from _norms(device, (8, 16, 8) if quick else (128, 256, 64) if gpu else (128, 64, 56), rounds)
    for case in QUICK if quick else CASES:
        yield _data_path(case, device, rounds)
    yield _network(device, quick, rounds)


def _norms(device: torch.device, shape: tuple[int, int, int], rounds: int) -> Iterator[Figure]:
    images, channels, size = shape
    gpu = device.type == "cuda"
    x = torch.randn(images, channels, size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    x = x.to(memory_format=torch.channels_last if gpu else torch.contiguous_format)
    grad, copy = torch.randn_like(x), torch.empty_like(x)
    copied = replayed(lambda: [copy.copy_(x) for _ in range(4)], device)
    size_in_mb = x.numel() * x.element_size() / 1e6
    kinds: tuple[tuple[str, nn.Module, Tensor], ...] = (
        ("nn.BatchNorm2d", nn.BatchNorm2d(channels), torch.zeros(images)),
        ("one plate", PlateBatchNorm(channels), torch.zeros(images, dtype=torch.long)),
        ("4 plates", PlateBatchNorm(channels), torch.arange(images) % 4),
    )
    for name, plain, plates in kinds:
        layer = plain.to(device)
        aware = plate_statistics(layer, plates) if isinstance(layer, PlateBatchNorm) else nullcontext()
        with aware:
            found = side_by_side(copied, replayed(there_and_back(layer, x, grad), device), rounds)
        rate = 8 * size_in_mb / 1e3 / (found.first / (10 if gpu else 1))
        yield figure(
            f"batch norm, {name}, forward and backward",
            found,
            "1 at best",
            f"{tuple(x.shape)}, {_word(x)}: 8 passes of {size_in_mb:.0f} MB; a copy moves {rate:.0f} GB/s",
            "of the speed of a copy",
        )


def there_and_back(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward."""
    leaf = x.detach().requires_grad_()

    def work() -> None:
        layer.zero_grad(set_to_none=True)
        leaf.grad = None
        layer(leaf).backward(grad)

    return work


def _data_path(case: Case, device: torch.device, rounds: int) -> Figure:
    """Gather, make float, augment: against a copy of the bytes that are read and written."""
    images, augment = case.images, case.augment
    held = torch.randint(0, 255, (2 * images, 3, case.size, case.size), dtype=torch.uint8, device=device)
    chosen = torch.randperm(2 * images, device=device)[:images]
    generator = torch.Generator(device).manual_seed(0)
    moved = images * held[0].numel() * (1 + 4)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = 20 if device.type == "cuda" else 1
    found = side_by_side(
        repeated(lambda: target.copy_(source), device, times),
        repeated(lambda: augment(held.index_select(0, chosen).float(), generator), device, times),
        rounds,
    )
    note = f"{moved / images / 1e3:.0f} kB an image, {images * times / found.second:.0f} images/s"
    return figure(f"data path, {case.name} of {case.size} px", found, "1 at best", note, "of the speed of a copy")


def _network(device: torch.device, quick: bool, rounds: int) -> Figure:
    """A training step without the optimizer, against products of matrices."""
    gpu = device.type == "cuda"
    name, images, pixels = ("tiny", 4, 32) if quick else ("resnet50", 128, 224) if gpu else ("resnet18", 16, 128)
    plain = convert(getattr(resnet, name)()).to(device)
    x = torch.randn(images, 3, pixels, pixels, device=device)
    if gpu:
        plain, x = plain.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    network = torch.compile(plain) if gpu and not quick else plain
    plates = torch.zeros(images, dtype=torch.long)

    def precision() -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=gpu)

    def step(network: nn.Module = network) -> None:  # type: ignore[assignment]
        network.zero_grad(set_to_none=True)
        with plate_statistics(plain, plates), precision():
            loss = network(x).float().sum()
        loss.backward()

    work, operations, kind = _fastest(device, quick)
    share = _operations(lambda: step(plain)) / operations
    times = 10 if gpu else 1
    found = side_by_side(repeated(work, device, times), repeated(step, device, times), rounds)
    rate = operations * times / found.first / 1e9
    size = f"{images} images of {pixels} px, {'bfloat16' if gpu else 'float32'}"
    note = f"{size}: {share * operations / 1e9:.0f} GFLOP a step; {kind} does {rate:.0f} GFLOP/s"
    return figure(f"{name}, forward and backward", found, "1 at best", note, f"of the speed of {kind}", share)


def _fastest(device: torch.device, quick: bool) -> tuple[Callable[[], object], int, str]:
    """What does most operations a second here, how many it does, and its name."""
    gpu = device.type == "cuda"
    side, images = (128, 1) if quick else (8192, 256) if gpu else (1024, 8)
    kind = torch.bfloat16 if gpu else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    x = torch.randn(images, 256, 32, 32, device=device, dtype=kind)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=kind).requires_grad_(False)
    if gpu:
        x, conv = x.to(memory_format=torch.channels_last), conv.to(memory_format=torch.channels_last)
    found = []
    for work, name in ((lambda: a @ b, "a product of matrices"), (lambda: conv(x), "a convolution")):
        taken, operations = repeated(work, device, 3), _operations(work)
        taken()
        found.append((operations / min(seconds(taken) for _ in range(5)), work, operations, name))
    return max(found, key=lambda each: each[0])[1:]


def _operations(work: Callable[[], object]) -> int:
    """How many floating point operations torch counts."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _word(x: Tensor) -> str:
    """The type of a tensor's values, in a word."""
    return str(x.dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
