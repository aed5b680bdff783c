"""Networks of earlier runs: found by file, run name or ``latest``, rebuilt without repeating their architecture."""

import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biomass.errors import CheckpointError, ConfigError, one_line
from biomass.models import Architecture, Network, build_network
from biomass.training.checkpoint import LAST, load_checkpoint

_ENCODERS, _HEADS = ("encoder.tv_encoder.", "model."), ("projection.", "classifier.")
"""Prefixes of the state dicts of the original experiment code; of several heads, the first one counts."""


def find_checkpoint(model_path: str, folder: Path = Path("checkpoints")) -> Path:
    """The file that ``model_path`` means: a file, the name of a run below ``folder``, or the ``latest`` encoder there.

    Of a run, the last checkpoint is taken. Linear probes, which stand beside the runs they probe, hold no encoder.

    Raises:
        CheckpointError: there is no such file or run; names the runs that are there.
    """
    if Path(model_path).is_file():
        return Path(model_path)
    runs = sorted(folder.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    if model_path == "latest":
        latest = next((path for path in reversed(runs) if not _is_probe(load_checkpoint(path))), None)
        if latest is not None:
            return latest
    if (folder / model_path / LAST).is_file():
        return folder / model_path / LAST
    known = ", ".join(path.parent.name for path in runs[-5:]) or "none"
    raise CheckpointError(f"model_path '{model_path}' is neither a file nor a run; runs in {folder}/: {known}")


def load_network(path: Path, key: str | None = None) -> tuple[Network, Architecture, dict[str, Any]]:
    """Rebuild the network of a checkpoint, with its weights.

    Args:
        path: a checkpoint of one of the scripts, or a plain state dict of the original experiment code (keys
            ``encoder.tv_encoder.*`` with ``projection.*`` or ``classifier.*``; or ``model.*``), of torchvision or of
            timm (no prefix). The head is ``projection.*`` if there is one, else ``classifier.*``, else the last layer
            of the encoder.
        key: the encoder's name, needed only for a plain state dict.

    Returns:
        The network on the host, its architecture, and what else the checkpoint carries (``config``, ``channels``).

    Raises:
        CheckpointError: the weights do not fit the network they name, or there is no encoder among them.
        ConfigError: a plain state dict without ``key``.
    """
    state = load_checkpoint(path)
    if _is_probe(state):
        raise CheckpointError(f"checkpoint '{path}' holds a linear probe; give the encoder that it was trained on")
    if "architecture" in state:
        architecture, weights = _of_script(state, path)
        about = {k: v for k, v in state.items() if k in ("config", "channels")}
        remedy = "it is damaged, give another model_path"
    else:
        if key is None:
            raise ConfigError(f"checkpoint '{path}' is a plain state dict; set model.key to the network it belongs to")
        architecture, weights = _from_original(state.get("state_dict", state), key, path)
        about = {}
        remedy = "set model.key to the network it belongs to"
    network = build_network(architecture)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        why = _difference(weights, network.state_dict())
        raise CheckpointError(f"checkpoint '{path}' is no {architecture.key}: {why}; {remedy}") from error
    return network, architecture, about


def _difference(weights: dict[str, Any], own: dict[str, Tensor]) -> str:
    """The first thing by which the weights of a checkpoint are not those of a network, in a few words."""
    for name, value in own.items():
        if name not in weights:
            return f"it lacks '{name}'"
        found = weights[name]
        if not isinstance(found, Tensor) or found.shape != value.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            return f"'{name}' is {shape}, not {list(value.shape)}"
    return f"'{next(name for name in weights if name not in own)}' has no place in it"


def _of_script(state: dict[str, Any], path: Path) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and weights of a checkpoint that names its architecture, as those of our scripts do."""
    network = state.get("network")
    try:
        architecture = Architecture.from_dict(state["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        found = textwrap.shorten(one_line(repr(state["architecture"])), 80)
        raise CheckpointError(
            f"checkpoint '{path}' has the architecture {found}, which no script of ours writes; "
            "save its state dict alone, and set model.key"
        ) from error
    if not isinstance(network, dict):
        raise CheckpointError(
            f"checkpoint '{path}' has an architecture, but no weights under the key 'network'; give another model_path"
        )
    return architecture, network


def _is_probe(state: dict[str, Any]) -> bool:
    architecture = state.get("architecture")
    return isinstance(architecture, dict) and "pooler" in architecture


def load_encoder(network: Network, path: Path, key: str) -> None:
    """Copy the encoder's weights of a checkpoint into ``network``; the head stays as it is.

    Raises:
        CheckpointError: the checkpoint's encoder is another one.
    """
    source, architecture, _ = load_network(path, key)
    weights, own = source.encoder.state_dict(), network.encoder.state_dict()
    different = next((k for k in own if k not in weights or weights[k].shape != own[k].shape), None)
    if architecture.key != key or different is not None:
        raise CheckpointError(
            f"checkpoint '{path}' holds a {architecture.key} of {architecture.in_channels} channels, not this run's "
            f"{key}; set model.key={architecture.key}, or choose another model_path"
        )
    network.encoder.load_state_dict(weights)


def _from_original(state: Any, key: str, path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint '{path}' has a {type(state).__name__} as its state_dict, not named weights")
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    # without an encoder's prefix it is a network of torchvision or timm, whose last layer may be called classifier, too
    bare = not any(name.startswith(_ENCODERS) for name in state)
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (("",) if bare else (*_ENCODERS, *_HEADS))}
    for name, value in state.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if prefix is None or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"checkpoint '{path}' has the key '{name}', which neither our scripts nor the original ones write; "
                "save the state dict of the network alone, and set model.key"
            )
        parts[prefix][name.removeprefix(prefix)] = value
    encoder = {name: value for prefix in ("", *_ENCODERS) for name, value in parts.get(prefix, {}).items()}
    first = next((v for v in encoder.values() if v.dim() == 4), None)
    if first is None:
        raise CheckpointError(
            f"checkpoint '{path}' holds no convolution of an encoder, only '{next(iter(state), '')}' and the like; "
            "give the state dict of a network"
        )
    own = build_network(Architecture(key, first.shape[1], ())).encoder.state_dict()
    further = [name for name in encoder if name not in own]
    last: dict[str, Tensor] = {}
    if len({name.rpartition(".")[0] for name in further}) == 1:  # the last layer, which our encoders do without
        last = {name.rpartition(".")[2]: encoder.pop(name) for name in further}
    head = next(filter(None, (*(parts.get(prefix, {}) for prefix in _HEADS), last)), {})
    layers = {m[1]: v.shape[0] for k, v in head.items() if (m := re.fullmatch(r"(?:(\d+)\.)?weight", k)) and v.dim()}
    if len(layers) == 1:  # a single layer has no number in our networks
        head = {re.sub(r"^\d+\.", "", k): v for k, v in head.items()}
    widths = tuple(layers[number] for number in sorted(layers, key=lambda number: int(number or 0)))
    weights = {f"encoder.{k}": v for k, v in encoder.items()} | {f"head.{k}": v for k, v in head.items()}
    return Architecture(key, first.shape[1], widths), weights
