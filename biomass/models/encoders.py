"""Encoders of torchvision and timm for images with any number of channels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

from biomass.errors import ConfigError, did_you_mean, one_line


def build_encoder(key: str, in_channels: int = 3, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A convolutional network without its classification layer: (N, C, H, W) → (N, D).

    >>> encoder, width = build_encoder("resnet18", in_channels=5)
    >>> encoder(torch.zeros(2, 5, 64, 64)).shape == (2, width) == (2, 512)
    True

    Args:
        key: a network's name in torchvision (``resnet50``) or else in timm (``resnet50d``); ``timm/<name>`` asks timm
            even where torchvision has a network of that name.
        in_channels: C. The first convolution is widened or narrowed where it differs from 3; pretrained kernels are
            then repeated over the channels and scaled by 3/C, so that its responses keep their size.
        pretrained: start from ImageNet weights (torchvision's first published set, timm's default set).

    Returns:
        The module and D.

    Raises:
        ConfigError: neither library has the network, or its weights cannot be fetched.
    """
    name = key.removeprefix("timm/")
    if name == key and key in torchvision.models.list_models(module=torchvision.models):
        return _torchvision_encoder(name, in_channels, pretrained)
    import timm

    if not timm.is_model(name):
        known = dict.fromkeys([*torchvision.models.list_models(module=torchvision.models), *timm.list_models()])
        hint = did_you_mean(name, known, "see torchvision.models and timm.list_models()")
        raise ConfigError(f"'{key}' is neither a torchvision nor a timm network; {hint}")
    try:
        with _quiet("huggingface_hub"):
            encoder = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ConfigError(
            f"cannot fetch the pretrained weights of '{key}' ({one_line(error)}); fetch them once where there is a "
            "connection (they are kept in HF_HOME), or start from random ones",
            advice="pretrained",
        ) from error
    return encoder, cast(int, getattr(encoder, "head_hidden_size", None) or encoder.num_features)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a library log errors only: without a connection, it warns at every attempt to fetch something."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _torchvision_encoder(name: str, in_channels: int, pretrained: bool) -> tuple[nn.Module, int]:
    weights = next(iter(torchvision.models.get_model_weights(name))) if pretrained else None
    try:
        encoder = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"cannot fetch the pretrained weights of '{name}' ({one_line(error)}); put the file "
            f"{Path(weights.url).name} into {folder} (TORCH_HOME names another place), or start from random ones",
            advice="pretrained",
        ) from error
    last = [path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)][-1]
    num_features = cast(nn.Linear, encoder.get_submodule(last)).in_features
    encoder.set_submodule(last, nn.Identity())
    if in_channels != 3:
        first = next(path for path, module in encoder.named_modules() if isinstance(module, nn.Conv2d))
        encoder.set_submodule(first, with_channels(cast(nn.Conv2d, encoder.get_submodule(first)), in_channels))
    return encoder, num_features


def with_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """The same convolution for another number of input channels: kernels a b c become a b c a b, scaled by 3/5."""
    same = (conv.kernel_size, conv.stride, conv.padding)
    new = nn.Conv2d(in_channels, conv.out_channels, *same, bias=conv.bias is not None)  # type: ignore[arg-type]
    repeats = -(-in_channels // conv.in_channels)
    with torch.no_grad():
        kernels: Tensor = conv.weight.repeat(1, repeats, 1, 1)[:, :in_channels]
        new.weight.copy_(kernels * (conv.in_channels / in_channels))
        if conv.bias is not None and new.bias is not None:
            new.bias.copy_(conv.bias)
    return new
