"""Transforms one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from biomass.transforms.steps import Size, Step, SteppedTransform, apply


class Transform(Protocol):
    """Turns images (N, C, H, W) into images; a random one draws every sample's parameters from ``generator``."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Compose:
    """Apply ``transforms`` in their order.

    Neighbouring spatial transforms of one kind (rotations and flips; crops and blurs) are merged into a single one,
    which is faster and gives the same up to rounding. On the host the chain goes over a few images at a time, which
    stay in its cache.
    """

    transforms: Sequence[Transform]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform ``images`` (N, C, H, W)."""
        steps: list[Step] = []
        size: Size | None = None
        for transform in self.transforms:
            if isinstance(transform, SteppedTransform):
                size = size or (images.shape[2], images.shape[3])
                step = transform.draw(images, size, generator)
                size = step.size_after(size)
                merged = steps[-1].then(step) if steps else None
                steps = [*steps, step] if merged is None else [*steps[:-1], merged]
            else:  # one of the user's own: it takes the batch as a whole, and floating point
                images = apply(steps, images)
                images = images if images.is_floating_point() else images.to(torch.float32)
                images, steps, size = transform(images, generator), [], None
        return apply(steps, images)
