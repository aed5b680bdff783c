"""Norms of each image by itself, in the place of batch norm: what networks do that know of no plate."""

from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biomass.errors import ConfigError, DataError, did_you_mean

GROUPS = 32
"""Groups of channels of a group norm (Wu & He 2018), where there are channels enough and they can be divided by it."""

NORMS = ("batch", "group", "instance")
"""What normalizes inside a network: batch norm; groups of channels (Wu & He 2018), or every channel (Ulyanov, Vedaldi &
Lempitsky 2016), of each image by itself."""


class ImageNorm(nn.GroupNorm):
    """Group norm, instance norm if there are as many groups as channels; with what a norm of timm carries behind it."""

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__(groups, norm.num_features, norm.eps, norm.affine)
        if norm.weight is not None:
            self.to(norm.weight)
        with torch.no_grad():
            for own, trained in ((self.weight, norm.weight), (self.bias, norm.bias)):
                if trained is not None:
                    own.copy_(trained)
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` (N, C, *S).

        Raises:
            DataError: an image has a single value in a group, which tells nothing.
        """
        if input.shape[2:].numel() * (self.num_channels // self.num_groups) == 1:
            raise DataError(
                f"an instance norm of {self.num_channels} channels has one value a channel of each image, from which "
                "all images come out alike; give the network larger images, or another norm",
                "norm",
            )
        x = super().forward(input)
        x = x if self.drop is None else self.drop(x)
        return x if self.act is None else self.act(x)


def check_norm(norm: str) -> None:
    """Raise ConfigError unless it is one of :data:`NORMS`."""
    if norm not in NORMS:
        raise ConfigError(f"norm '{norm}' is unknown; {did_you_mean(norm, NORMS)}", "norm")


def replace_batch_norms(network: nn.Module, norm: str) -> nn.Module:
    """Put another norm in the place of every batch norm, in place; weights and biases stay.

    Args:
        network: with batch norms; those whose statistics are frozen stay as they are.
        norm: ``group`` or ``instance``.

    Returns:
        The same network.

    Raises:
        ConfigError: another word, or a network without batch norm.

    >>> network = replace_batch_norms(nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48)), "group")
    >>> network[1].num_groups
    24
    """
    check_norm(norm)
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise ConfigError(f"the network has no batch norm in whose place {norm} norm could be put; leave it", "norm")
    for name, module in found:
        channels = module.num_features
        of_two = min(GROUPS, channels // 2)  # or more channels each
        groups = channels if norm == "instance" else gcd(of_two, channels)
        network.set_submodule(name, ImageNorm(module, groups))
    return network
