"""Transforms one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from biomass.transforms.spatial import SpatialTransform, Warp


class Transform(Protocol):
    """Turns images (N, C, H, W) into images; a random one draws every sample's parameters from ``generator``."""

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Compose:
    """Apply ``transforms`` in their order.

    Neighbouring spatial transforms of one kind (rotations and flips; crops and blurs) are merged into a single one,
    which is faster and gives the same up to rounding.
    """

    transforms: Sequence[Transform]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform ``images`` (N, C, H, W)."""
        waiting: Warp | None = None
        for transform in self.transforms:
            size = (images.shape[2], images.shape[3])
            if isinstance(transform, SpatialTransform):
                warp = transform.draw(images, waiting.size_after(size) if waiting else size, generator)
                if waiting is None:
                    waiting = warp
                elif (merged := waiting.then(warp)) is not None:
                    waiting = merged
                else:
                    images, waiting = waiting.apply(images), warp
            else:
                images = transform(waiting.apply(images) if waiting else images, generator)
                waiting = None
        return waiting.apply(images) if waiting else images
