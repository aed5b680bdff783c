"""Augmentations of a batch of images on its device, each sample with random parameters of its own.

All are called as ``transform(images, generator)``: images (N, C, H, W) of floating point, on any device, and a
``torch.Generator`` on the same device, which transforms without randomness do not need. Host and device never wait for
each other. Parameters are distributed as in torchvision's transforms of the same name, and equal parameters give equal
images.
"""

from biomass.transforms.compose import Compose, Transform
from biomass.transforms.intensity import ColorJitter, Standardize
from biomass.transforms.spatial import (
    CenterCrop,
    GaussianBlur,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomVerticalFlip,
    Resize,
)

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotate90",
    "RandomVerticalFlip",
    "Resize",
    "Standardize",
    "Transform",
]
