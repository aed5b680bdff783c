"""Networks of earlier runs: found by file, run name or ``latest``, rebuilt without repeating their architecture."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biomass.errors import CheckpointError, ConfigError, one_line
from biomass.models import Architecture, Network, build_network
from biomass.training.checkpoint import LAST, load_checkpoint

_ORIGINAL = {"encoder.tv_encoder.": "encoder.", "projection.": "head.", "classifier.": "head.", "model.": "encoder."}
"""Prefixes of the state dicts of the original experiment code, and ours. A classifier's last layer is renamed too."""


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
            ``encoder.tv_encoder.*`` with ``projection.*`` or ``classifier.*``; or ``model.*``).
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
        architecture, weights = Architecture.from_dict(state["architecture"]), state["network"]
        about = {k: v for k, v in state.items() if k in ("config", "channels", "objective")}
    else:
        if key is None:
            raise ConfigError(f"checkpoint '{path}' is a plain state dict; set model.key to the network it belongs to")
        architecture, weights = _from_original(state.get("state_dict", state), key, path)
        about = {}
    network = build_network(architecture)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint '{path}' is no {architecture.key}: {one_line(error)[:300]}") from error
    return network, architecture, about


def _is_probe(state: dict[str, Any]) -> bool:
    return "pooler" in state.get("architecture", {})


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


def _from_original(state: dict[str, Tensor], key: str, path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        prefix = next((p for p in _ORIGINAL if name.startswith(p)), None)
        if prefix is None or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"checkpoint '{path}' has the key '{name}', which neither our scripts nor the original ones write"
            )
        new = _ORIGINAL[prefix] + name.removeprefix(prefix)
        weights[re.sub(r"^encoder\.(fc|classifier)\.(?=weight|bias)", "head.", new)] = value
    first = next((v for k, v in weights.items() if k.startswith("encoder.") and v.dim() == 4), None)
    if first is None:
        raise CheckpointError(f"checkpoint '{path}' holds no convolution of an encoder")
    head = tuple(v.shape[0] for k, v in sorted(weights.items()) if re.fullmatch(r"head\.(\d+\.)?weight", k))
    if len(head) == 1:  # a single layer has no number in our networks
        weights = {re.sub(r"^head\.\d+\.", "head.", k): v for k, v in weights.items()}
    return Architecture(key, first.shape[1], head), weights
