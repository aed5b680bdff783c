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

    Spatial transforms that follow each other are merged into one: faster, and the same up to rounding.
    """

    transforms: Sequence[Transform]

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform ``images`` (N, C, H, W)."""
        waiting = Warp()
        for transform in self.transforms:
            if isinstance(transform, SpatialTransform):
                size = waiting.size_after((images.shape[2], images.shape[3]))
                waiting = waiting.then(transform.draw(images, size, generator))
            else:
                images = transform(waiting.apply(images), generator)
                waiting = Warp()
        return waiting.apply(images)
