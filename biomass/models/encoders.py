"""Encoders of torchvision, of timm and of anybody's own code, for images with any number of channels."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from biomass.errors import ConfigError, did_you_mean, one_line
from biomass.models.adapt import Adapted, AsTrained, FitSize, check_channels_word, first_convolution, widen

_SIZES = (224, 256, 64)
"""Heights and widths that a network of other code is tried with, to find out how wide its output is."""


def build_encoder(
    key: str,
    in_channels: int = 3,
    pretrained: bool = False,
    channels: str = "repeat",
    as_trained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, int]:
    """A network without its classification layer: (N, C, H, W) → (N, D).

    >>> encoder, width = build_encoder("resnet18", in_channels=5)
    >>> encoder(torch.zeros(2, 5, 64, 64)).shape == (2, width) == (2, 512)
    True

    Transformers of fixed patches, or of a fixed size, resize images to the next size that they take.

    Args:
        key: a network's name in torchvision (``resnet50``) or else in timm (``resnet50d``); ``timm/<name>`` asks timm
            even where torchvision has a network of that name. ``package.module:function`` calls that function, which
            gives a module (N, C, H, W) → (N, D) with whatever weights it has.
        in_channels: C.
        pretrained: start from ImageNet weights (torchvision's first published set, timm's default set).
        channels: how the network's three channels become C, of :data:`biomass.models.adapt.CHANNELS`.
        as_trained: scale images to what the network saw in pre-training, see :class:`biomass.models.adapt.AsTrained`.
        options: keyword arguments, of a function.

    Returns:
        The module and D.

    Raises:
        ConfigError: neither library has the network, its weights cannot be fetched, or a function does not give one.
    """
    check_channels_word(channels)
    if is_own_code(key):
        if channels != "repeat" or as_trained:
            word = channels if channels != "repeat" else "as_trained"
            raise ConfigError(f"'{key}' is asked for '{word}', which is for networks of photographs", "widen")
        return _of_own_code(key, in_channels, options or {})
    if options:
        raise ConfigError(f"'{key}' takes no options such as '{next(iter(options))}'; a function does", "own_code")
    import torchvision  # slow to import, and not needed for networks of own code

    name, planes = key.removeprefix("timm/"), in_channels if channels == "repeat" else 3
    if name == key and key in torchvision.models.list_models(module=torchvision.models):
        encoder, width, mean, std = _torchvision_encoder(name, planes, pretrained)
    else:
        encoder, width, mean, std = _timm_encoder(key, planes, pretrained)
    if channels == "sum":
        widen(first_convolution(encoder), in_channels, "sum")
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)  # every channel is a bit of each
    each = in_channels if channels == "each" else None
    if each is not None or as_trained:
        encoder = Adapted(encoder, each, AsTrained(mean, std) if as_trained else None)
    return encoder, width * (each or 1)


def is_own_code(key: str) -> bool:
    """Whether the name of an encoder is that of a function, ``package.module:function``.

    >>> is_own_code("my_package.networks:load"), is_own_code("timm/resnet18")
    (True, False)
    """
    return ":" in key


_Built = tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]
"""An encoder, its width D, and mean and standard deviation of the channels that it was pre-trained on."""


def _timm_encoder(key: str, in_channels: int, pretrained: bool) -> _Built:
    import timm
    import torchvision

    name = key.removeprefix("timm/")
    if not timm.is_model(name):
        known = dict.fromkeys([*torchvision.models.list_models(module=torchvision.models), *timm.list_models()])
        hint = did_you_mean(name, known, "see torchvision.models and timm.list_models()")
        raise ConfigError(f"'{key}' is neither a torchvision nor a timm network; {hint}")
    about = timm.get_pretrained_cfg(name)
    if pretrained and about is not None and not about.has_weights:
        raise ConfigError(f"timm has no pretrained weights of '{key}'; name one that has, as timm lists", "pretrained")
    settings: dict[str, Any] = {"pretrained": pretrained, "in_chans": in_channels, "num_classes": 0}
    any_size: dict[str, Any] = {"dynamic_img_size": True} if about is not None and about.fixed_input_size else {}
    size: tuple[int, int] | None = None
    try:
        with _quiet("huggingface_hub"):
            try:
                encoder = timm.create_model(name, **settings, **any_size)
            except TypeError:
                if about is None or not any_size:
                    raise
                encoder, size = timm.create_model(name, **settings), about.input_size[1:]  # the only one it takes
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        where = about.hf_hub_id if about is not None and about.hf_hub_id else name
        raise ConfigError(
            f"cannot fetch the pretrained weights of '{key}' ({one_line(error)}); fetch {where} once where there is "
            "a connection (they are kept in HF_HOME), or name their file as the checkpoint of this network, or "
            "start from random ones",
            advice="pretrained",
        ) from error
    patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    if size is not None or isinstance(patch, tuple):
        encoder.register_forward_pre_hook(FitSize(key, size=size) if size else FitSize(key, patch or (1, 1)))
    width = cast(int, getattr(encoder, "head_hidden_size", None) or encoder.num_features)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if about is None else (about.mean, about.std)
    return encoder, width, mean, std


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


def _torchvision_encoder(name: str, in_channels: int, pretrained: bool) -> _Built:
    import torchvision

    published = next(iter(torchvision.models.get_model_weights(name)))
    try:
        encoder = torchvision.models.get_model(name, weights=published if pretrained else None)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"cannot fetch the pretrained weights of '{name}' ({one_line(error)}); put the file "
            f"{Path(published.url).name} into {folder} (TORCH_HOME names another place), or start from random ones",
            advice="pretrained",
        ) from error
    last = [path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)][-1]
    num_features = cast(nn.Linear, encoder.get_submodule(last)).in_features
    encoder.set_submodule(last, nn.Identity())
    if in_channels != 3:
        first = next(path for path, module in encoder.named_modules() if isinstance(module, nn.Conv2d))
        encoder.set_submodule(first, with_channels(cast(nn.Conv2d, encoder.get_submodule(first)), in_channels))
    seen = published.transforms()
    if isinstance(encoder, torchvision.models.VisionTransformer | torchvision.models.MaxVit):
        encoder.register_forward_pre_hook(FitSize(name, size=tuple(seen.crop_size * 2)))
    return encoder, num_features, tuple(seen.mean), tuple(seen.std)


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


def _of_own_code(key: str, in_channels: int, options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """What the function of a key gives, tried with a batch of black images."""
    path, _, name = key.partition(":")
    try:
        function = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"'{key}' cannot be imported ({one_line(error)}); install its package, or run where its file is on "
            "PYTHONPATH, and write package.module:function",
            "own_code",
        ) from error
    try:
        network = function(**options)
    except Exception as error:  # whatever the code of others raises
        given, why = ", ".join(options) or "no options", f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"'{key}' failed with {given} ({why})", "own_code") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"'{key}' gave a {type(network).__name__}, not a torch module", "own_code")
    errors = []
    for size in _SIZES:
        try:
            return network, check_images(network, torch.zeros(2, in_channels, size, size), key)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def check_images(network: nn.Module, images: Tensor, key: str) -> int:
    """Try a network of other code with a batch (N, C, H, W), and return the width D of its vectors.

    Raises:
        ConfigError: it fails, or does not give one vector an image, a tensor (N, D).
    """
    training = network.training
    try:
        with torch.no_grad():
            found = network.eval()(images)
    except Exception as error:  # whatever the code of others raises
        shape = f"{images.shape[1]} channels, {images.shape[2]} x {images.shape[3]} pixels"
        why = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"'{key}' cannot encode images of {shape} ({why})", "own_code") from error
    finally:
        network.train(training)
    if isinstance(found, Tensor) and found.dim() == 2 and len(found) == len(images):
        return int(found.shape[1])
    what = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise ConfigError(f"'{key}' gave {what} for {len(images)} images, not a tensor of vectors (N, D)", "own_code")
