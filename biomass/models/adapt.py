"""Networks made for photographs, for images of other channels, sizes and brightness."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from biomass.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

CHANNELS = ("repeat", "sum", "each")
"""How a network of three channels sees C of them. ``repeat``: the kernels of its first convolution, a b c, become
a b c a b, scaled by 3/C. ``sum``: the kernels are summed over the three, and every channel gets this, scaled by 1/C.
``each``: every channel by itself, as a grey image of three equal channels, and the C vectors one behind the other
(Pawlowski et al. 2016; Ando, McLean & Berndl 2017)."""

PERCENTILES = (0.1, 99.9)
"""What becomes 0 and 1 where images are scaled to what a network was trained on: a few hot pixels do not count."""

_SAMPLE = 1 << 16
"""Pixels of a channel that its percentiles are taken from, at most: a regular grid of them."""


def check_channels_word(word: str) -> None:
    """Raise ConfigError unless it is one of :data:`CHANNELS`."""
    if word not in CHANNELS:
        raise ConfigError(f"channels '{word}' are unknown; {did_you_mean(word, CHANNELS)}", "widen")


def first_convolution(encoder: nn.Module) -> nn.Conv2d:
    """The convolution that an encoder's images come to first: the one that timm names, or the first there is.

    Raises:
        ConfigError: it has none.
    """
    named = (getattr(encoder, "pretrained_cfg", None) or {}).get("first_conv")
    modules = dict(encoder.named_modules())
    if isinstance(named, str) and isinstance(modules.get(named), nn.Conv2d):
        return cast(nn.Conv2d, modules[named])
    found = next((module for module in modules.values() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise ConfigError(f"a {type(encoder).__name__} has no convolution whose kernels could be spread", "widen")
    return found


def widen(conv: nn.Conv2d, in_channels: int, word: str) -> None:
    """Give a convolution another number of input channels, in place; its class, stride and the like stay.

    >>> conv = nn.Conv2d(3, 1, 1, bias=False)
    >>> _ = conv.weight.data.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
    >>> widen(conv, 6, "sum")
    >>> conv.weight.flatten().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    kernels, before = conv.weight.detach(), conv.in_channels
    if conv.groups != 1:
        raise ConfigError(f"the first convolution works in {conv.groups} groups, and has no kernels to spread", "widen")
    if word == "sum":
        wide = kernels.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels
    else:
        wide = kernels.repeat(1, ceil(in_channels / before), 1, 1)[:, :in_channels] * (before / in_channels)
    conv.weight = nn.Parameter(wide.clone(), conv.weight.requires_grad)
    conv.in_channels = in_channels


class AsTrained(nn.Module):
    """Images as a network saw them when it was trained on photographs: 0…1, then mean and deviation of its data.

    Every channel of every image is scaled by its own percentiles, and cut off there. What was done to the whole channel
    before, such as standardization, makes no difference.

    Args:
        mean: of each channel of the network's own images, (K,).
        std: their standard deviation, (K,). Images of C channels take the values as a b c a b.

    >>> x = torch.arange(8.0).view(1, 2, 2, 2)
    >>> AsTrained((0.5,), (0.5,))(x).flatten(2)[0, 0]
    tensor([-1.0, -0.3, 0.3, 1.0])
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.tensor(mean)), nn.Buffer(torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        step = max(1, int((x.shape[2] * x.shape[3] / _SAMPLE) ** 0.5))
        sample = x[:, :, ::step, ::step].flatten(2).sort(2).values
        last = sample.shape[2] - 1
        low, high = (sample[:, :, round(last * p / 100), None, None] for p in PERCENTILES)
        scaled = ((x - low) / torch.where(high > low, high - low, 1)).clamp(0, 1)
        which = torch.arange(x.shape[1], device=x.device) % len(self.mean)
        return (scaled - self.mean[which, None, None]) / self.std[which, None, None]


class Adapted(nn.Module):
    """A network with what stands between it and the images: (N, C, H, W) → (N, D), or (N, C D) for ``each``.

    Args:
        net: (N, K, H, W) → (N, D).
        each: how many channels are passed through it, one after the other, as grey images; None for all at once.
        inputs: what images become first.
    """

    def __init__(self, net: nn.Module, each: int | None, inputs: AsTrained | None) -> None:
        super().__init__()
        self.net, self.each, self.inputs = net, each, inputs

    def forward(self, images: Tensor) -> Tensor:
        if self.each is None:
            return self._one(images)
        return torch.cat([self._one(images[:, [channel] * 3]) for channel in range(self.each)], 1)

    def _one(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images if self.inputs is None else self.inputs(images))
        return found


@dataclass(frozen=True)
class FitSize:
    """A hook in front of a transformer of fixed patches: images are resized to the next size that it takes.

    Attributes:
        name: of the network, for the log.
        patch: height and width must be multiples of these.
        size: the only size there is, in place of ``patch``.
    """

    name: str
    patch: tuple[int, int] = (1, 1)
    size: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the network's forward pass, with images that fit."""
        return fit_size(args[0], self.patch, self.size, self.name), *args[1:]


@fx.wrap  # one operation for who traces a network
def fit_size(images: Tensor, patch: tuple[int, int], size: tuple[int, int] | None, name: str) -> Tensor:
    """Images (N, C, H, W) in the next size that a network takes, by bilinear interpolation; said in the log once.

    >>> fit_size(torch.zeros(1, 3, 48, 28), (14, 14), None, "a transformer").shape
    torch.Size([1, 3, 56, 28])
    """
    height, width = images.shape[2:]
    wanted = size or (ceil(height / patch[0]) * patch[0], ceil(width / patch[1]) * patch[1])
    if (height, width) == tuple(wanted):
        return images
    _say_resized(height, width, wanted, name)
    return F.interpolate(images, tuple(wanted), mode="bilinear", antialias=True)


@lru_cache
def _say_resized(height: int, width: int, wanted: tuple[int, int], name: str) -> None:
    log.warning("images of %d x %d pixels are resized to %d x %d, which %s takes", height, width, *wanted, name)
