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

CACHE = 3 * 2**18
"""Bytes of images that the host works on at a time: few enough that they and what is made of them stay in its cache."""


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
    """Take ``images`` (N, C, H, W) through all steps, in their own precision within an autocast region, too."""
    changed = images
    with torch.autocast(images.device.type, enabled=False):
        for part in _parts(images):
            some = images[part]
            if some.dtype == torch.uint16:  # few operators take it
                some = some.to(torch.float32)
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
        step = CACHE // (4 * prod(images.shape[1:]) or 1)  # as float32, which they become
    step = max(step, 1)
    return (slice(begin, begin + step) for begin in range(0, max(len(images), 1), step))


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of some numbers (K,), which goes to the device once: the host does not wait for it at every step."""
    return torch.tensor(values, dtype=dtype, device=device)
