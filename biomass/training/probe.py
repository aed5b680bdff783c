"""The linear probe: what is trained on the profiles of a frozen encoder."""

from typing import Any

import torch
from torch import nn

from biomass.errors import CheckpointError, ConfigError
from biomass.models import Architecture, Network
from biomass.models.poolers import BagClassifier
from biomass.screen import Screen


def one_of(model_path: str | None, sup_model_path: str | None) -> str:
    """The checkpoint to probe.

    Raises:
        ConfigError: none is given, or both.
    """
    if (model_path is None) == (sup_model_path is None):
        given = "neither is" if model_path is None else "both are"
        raise ConfigError(
            f"give model_path (self-supervised) or sup_model_path (supervised), {given} given; "
            f"a file, the name of a run, or latest"
        )
    return str(sup_model_path if model_path is None else model_path)


def check_channels(architecture: Architecture, origin: dict[str, Any], screen: Screen, path: object) -> None:
    """Refuse cells whose channels are not those that the encoder was trained on.

    Raises:
        CheckpointError: another number of channels, or other names.
    """
    trained = origin.get("channels")
    found = list(screen.pixels.channels)
    if architecture.in_channels != len(found) or (trained is not None and trained != found):
        raise CheckpointError(
            f"checkpoint '{path}' was trained on channels {', '.join(trained or [str(architecture.in_channels)])}; "
            f"this screen has {', '.join(found)}; order the source's channels alike"
        )


def frozen_part(network: Network, use_projs: bool, path: object) -> tuple[nn.Module, int]:
    """What of a network a probe looks at, frozen, and the width of its output.

    Args:
        network: of a checkpoint.
        use_projs: its projections; else the features of its encoder.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: there are no projections.
    """
    if not use_projs:
        return network.encoder.requires_grad_(False), network.num_features
    last = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)][-1:]
    if not last:
        raise ConfigError(f"use_projs=true, but checkpoint '{path}' has no projections; set use_projs=false")
    return network.requires_grad_(False), last[0].out_features


def build_probe(pooler: str, width: int, in_features: int | None, d_out: int, seed: int) -> nn.Module:
    """A linear layer over pooled profiles, or attention pooling with one behind it; weights depend on ``seed`` alone.

    Args:
        pooler: mean, median or attention.
        width: D, of the profiles.
        in_features: what the user expects D to be; None for whatever it is.
        d_out: number of classes.
        seed: of the initial weights.

    Raises:
        ConfigError: ``in_features`` is another number than D.
    """
    if in_features is not None and in_features != width:
        raise ConfigError(f"in_features is {in_features}, but the encoder gives {width}; set in_features={width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BagClassifier(width, d_out) if pooler == "attention" else nn.Linear(width, d_out)
