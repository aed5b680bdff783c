"""Batched augmentation, against torchvision's transforms on one image after the other, on one core.

Run ``python -m benchmarks transforms``. The batch is 616 cells of 3 x 48 x 48 pixels, one for each field of a plate.
And how many operators a batch launches: on a GPU they are the host's work, whatever the size of the batch.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from benchmarks.timing import Figure, side_by_side
from biomass.transforms import (
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    Standardize,
    Transform,
)

Single = Callable[[Tensor], Tensor]


def rotate(image: Tensor) -> Tensor:
    """Rotate one image (C, H, W) by a random multiple of 90 degrees."""
    return torch.rot90(image, int(torch.randint(4, ())), (1, 2))


def standardize(image: Tensor) -> Tensor:
    """Standardize one image (C, H, W) per channel."""
    mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
    std[std == 0] = 1
    return (image - mean) / std


def one_by_one(transform: Single, images: Tensor) -> Tensor:
    """Transform one image after the other, and stack the results."""
    return torch.stack([transform(image) for image in images])


class Launches(TorchDispatchMode):
    """Counts the operators that do something on a device: all but views and those that only take memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or "empty" in name or name in ("_unsafe_view", "promote_types"))
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Print what was measured."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """Time one by one over batched, for every transform and some chains; operators of the chains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16 if quick else 616, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (48, 48), mode="bilinear").mul(255).round() / 255

    pairs: dict[str, tuple[Transform, Single]] = {
        "rotate": (RandomRotate90(), rotate),
        "flip": (RandomHorizontalFlip(), v2.RandomHorizontalFlip()),
        "crop": (RandomResizedCrop(48), v2.RandomResizedCrop(48, antialias=True)),
        "blur": (GaussianBlur(25, [0.1, 0.5]), v2.GaussianBlur(25, (0.1, 0.5))),
        "jitter": (ColorJitter(0.4, 0.4, 0.4, 0.1, maximum=1.0), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        "standardize": (Standardize(), standardize),
    }
    chains = {
        "supervised": ["rotate", "flip", "standardize"],
        "self-supervised": ["rotate", "flip", "crop", "blur", "standardize"],
        "with jitter": ["rotate", "flip", "crop", "blur", "jitter", "standardize"],
    }
    for title, keys in chains.items():
        pairs[title] = Compose([pairs[key][0] for key in keys]), v2.Compose([pairs[key][1] for key in keys])

    figures = []
    for title, (batched, single) in pairs.items():
        by_one, by_batch = partial(one_by_one, single, images), partial(batched, images, generator)
        found = side_by_side(by_one, by_batch, rounds=1 if quick else 3, clock=time.process_time)
        note = f"{1e3 * found.second:.1f} ms for {len(images)} images"
        figures.append(Figure(f"{title}, one by one / batched", *found[2:], goal="> 1", note=note))
        if title in chains:
            batched(images[:2], generator)  # what is looked at once on a CPU
            with Launches() as launches:
                batched(images[:2], generator)
            n = launches.count
            figures.append(Figure(f"{title}, operators a batch", n, n, n, goal="few", unit="operators"))
    torch.set_num_threads(threads)
    return figures


if __name__ == "__main__":
    main()
