"""Augmentations of a batch of images on its device, every sample with random parameters of its own.

All are called as ``transform(images, generator)`` with ``images`` (N, C, H, W) of floating point, on any device, and a
``torch.Generator`` on the same device; deterministic ones need no generator. Neither the host nor the device ever
waits for the other. Parameters are distributed as in torchvision's transforms of the same name, and given
equal parameters the images are the same.
"""

from biomass.transforms.compose import Compose, Transform
from biomass.transforms.intensity import ColorJitter, Standardize
from biomass.transforms.spatial import (
    GaussianBlur,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomVerticalFlip,
)

__all__ = [
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotate90",
    "RandomVerticalFlip",
    "Standardize",
    "Transform",
]
