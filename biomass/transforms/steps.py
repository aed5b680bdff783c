"""A transform in two halves: it draws what is random for a whole batch, then it works on the pixels.

The first half costs the same whatever the size of the images. The second half is a :class:`Step`: it takes some samples
of the batch at a time, so that on the host a chain of steps goes over a few images, which stay in its cache, before it
goes on to the next few. On a device they are all taken at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and width of an image, in pixels."""

CACHE = 3 * 2**19
"""Bytes of images that the host works on at a time: few enough to stay in its cache, with what is made of them."""


class Step(ABC):
    """What a transform does to the pixels of a batch, once all that is random in it is drawn."""

    @abstractmethod
    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Transform ``images`` (n, C, H, W), which are the samples ``part`` of the batch, to (n, C, H', W')."""

    def then(self, other: "Step") -> "Step | None":
        """One step that does this first and ``other`` second; None if there is none that costs less."""
        return None

    def size_after(self, size: Size) -> Size:
        """Height and width of the result for images of ``size``."""
        return size


class SteppedTransform(ABC):
    """A transform that draws a step."""

    @abstractmethod
    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        """Draw what is random for every sample.

        Args:
            images: (N, C, …), gives only their number, device and type.
            size: height and width of the images that the step will see.
            generator: on the device of ``images``.
        """

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform ``images`` (N, C, H, W)."""
        return apply([self.draw(images, (images.shape[2], images.shape[3]), generator)], images)


def apply(steps: Sequence[Step], images: Tensor) -> Tensor:
    """Take ``images`` (N, C, H, W) through all steps."""
    changed = images
    for part in _parts(images):
        some = images[part]
        for step in steps:
            some = step.apply(some, part)
        if len(some) == len(images):
            return some
        if changed is images:
            changed = some.new_empty(len(images), *some.shape[1:])
        changed[part] = some
    return changed


def _parts(images: Tensor) -> Iterator[slice]:
    """Cut a batch on the host into slices of about CACHE bytes; one on a device stays whole."""
    step = len(images)
    if images.device.type == "cpu":
        step = CACHE // (prod(images.shape[1:]) * images.element_size() or 1)
    step = max(step, 1)
    return (slice(begin, begin + step) for begin in range(0, max(len(images), 1), step))


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor of some numbers (K,), int64 or float64, which goes to the device once: the host does not wait for it."""
    return torch.tensor(values, device=device, dtype=torch.int64 if isinstance(values[0], int) else torch.float64)
