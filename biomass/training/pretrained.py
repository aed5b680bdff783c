"""Networks of earlier runs: found by file, run name or ``latest``, rebuilt without repeating their architecture."""

import logging
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, ConfigError, one_line
from biomass.models import Architecture, Network, build_network, digest, is_own_code
from biomass.norms import load_tuning
from biomass.run_files import LAST, find_named, runs_with_checkpoints
from biomass.training.checkpoint import load_checkpoint, newest
from biomass.training.fits import difference, not_finite
from biomass.training.other_code import read_other_code
from biomass.training.probe import build_probe, probed_part
from biomass.training.schema import check_probe

log = logging.getLogger(__name__)


def find_checkpoint(model_path: str, folder: Path = Path("checkpoints")) -> Path:
    """The file that ``model_path`` means: a file, the name of a run below ``folder``, or the ``latest`` encoder there.

    The last checkpoint of a run is taken. ``latest`` passes over linear probes, which hold no encoder. A job of a sweep
    may be named without what differs between the jobs: ``sweep-3`` for ``sweep-3_seed-0``.

    Raises:
        CheckpointError: there is no such file or run; names the runs that are there.
    """
    if not isinstance(model_path, str):
        raise CheckpointError(f"{', '.join(model_path)} are several checkpoints, and one is needed", "network")
    if model_path == "latest" and not Path(model_path).is_file():
        encoders = map(_encoder_of, reversed(runs_with_checkpoints(folder)))
        latest = next(filter(None, encoders), None)
        if latest is not None:
            log.info("the latest encoder is '%s'", latest)
            return latest
    found = find_named(model_path, folder)
    if found.is_file():
        return found
    if found != folder / model_path:
        log.info("'%s' is the run '%s'", model_path, found.name)
    return newest(found) or found / LAST


def _encoder_of(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, unless it is a probe; a warning says where there is none."""
    try:
        path = newest(run)
        return path if path is not None and not _is_probe(load_checkpoint(path)) else None
    except CheckpointError as error:
        log.warning("%s (passed over)", error)
        return None


def load_network(path: Path, key: str | None = None) -> tuple[Network, Architecture, dict[str, Any]]:
    """Rebuild the network of a checkpoint, with its weights.

    Args:
        path: a checkpoint of one of the scripts, or the named weights (state dict) of other code, of torch or of
            safetensors. Its encoder may stand below any name, alone or among other things: ``encoder.tv_encoder.`` (the
            original experiments), ``backbone.`` (Lightning), ``model.``, ``module.``, none (torchvision, timm). Of two
            encoders that were trained together, that of :data:`.other_code.TWINS` is taken. Its head is what is called
            ``projection``, else what is called ``classifier``, else the last layers of the encoder.
        key: the encoder's name, needed only for the weights of other code, and for a network of anybody's own code,
            which is not run unless it is named here.

    Returns:
        The network on the host, its architecture, and what else the checkpoint carries: ``config``, with the ``method``
        that its keys mean, ``channels`` and, of a classifier, the names of its ``classes``.

    Raises:
        CheckpointError: the weights do not fit the network they name, or there is not one encoder among them.
        ConfigError: weights of other code without ``key``.
    """
    state = load_checkpoint(path)
    if _is_probe(state):
        raise CheckpointError(f"checkpoint '{path}' holds a linear probe; give the encoder that it was trained on")
    about = {name: value for name, value in state.items() if name in ("config", "channels", "classes")}
    if "config" in about and "method" in state:  # as a run's own config.yaml says it
        about["config"] = about["config"] | {"method": state["method"]}
    if "architecture" in state:
        architecture, weights = _of_script(state, path)
        remedy, advice = "it is damaged, give another one", None
        if is_own_code(architecture.key) and architecture.key != key:
            raise CheckpointError(
                f"checkpoint '{path}' is of the network '{architecture.key}', whose code runs if you name it alone: "
                "look where this checkpoint comes from",
                "model_key",
            )
    else:
        if key is None:
            raise ConfigError(f"checkpoint '{path}' does not say which network its weights belong to", "model_key")
        architecture, weights = read_other_code(state, key, path)
        about, remedy, advice = {}, "is it of another network?", "model_key"
    others = "architecture" not in state
    why = difference(weights, _without_memory(architecture), others) or not_finite(weights)
    if why is None:
        network = build_network(architecture)
        why = difference(weights, network.state_dict(), others)
    if why is not None:
        raise CheckpointError(f"checkpoint '{path}' is not a {architecture.key}: {why}; {remedy}", advice)
    network.load_state_dict(weights)
    if state.get("tuning") is not None:
        load_tuning(network, state["tuning"])
    return network, architecture, about


def _without_memory(architecture: Architecture) -> dict[str, Tensor] | None:
    """The weights that a network would have, before memory is taken for them; None where that cannot be told."""
    if is_own_code(architecture.key):
        return None
    try:
        with torch.device("meta"):
            return build_network(architecture).state_dict()
    except (NotImplementedError, RuntimeError, OverflowError):  # some networks count on having numbers
        return None


def _of_script(state: dict[str, Any], path: Path) -> tuple[Architecture, dict[str, Any]]:
    """Architecture and weights of a checkpoint that names its architecture, as those of our scripts do."""
    network = state.get("network")
    try:
        architecture = Architecture.from_dict(state["architecture"])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, ConfigError) as error:
        found = textwrap.shorten(one_line(repr(state["architecture"])), 80)
        raise CheckpointError(
            f"checkpoint '{path}' has the architecture {found}, which is not one of this package; "
            "save its state dict alone",
            advice="model_key",
        ) from error
    if not isinstance(network, dict):
        raise CheckpointError(
            f"checkpoint '{path}' has an architecture, but no weights under the key 'network'; give another one"
        )
    return architecture, network


def _is_probe(state: dict[str, Any]) -> bool:
    architecture = state.get("architecture")
    return isinstance(architecture, dict) and "pooler" in architecture


def load_probe(path: Path, encoder: str | None = None) -> "Probe":
    """Rebuild a probe, and the network that it stands on.

    Args:
        path: a checkpoint of ``train_classifier.py``.
        encoder: the checkpoint of the network; None: where the probe found it.

    Raises:
        CheckpointError: the network is not there any more, or its weights are others.
    """
    state = load_checkpoint(path)
    remedy = "give the checkpoint that it was trained on"
    check_probe(state, path)
    config, architecture = state["config"], state["architecture"]
    place = encoder or state.get("encoder_path") or config.get("model_path") or config.get("sup_model_path")
    try:
        found = find_checkpoint(str(place), path.parent.parent)
    except CheckpointError as error:
        raise CheckpointError(
            f"'{path}' is a probe of the network '{place}', which is not there; {remedy}", "encoder_path"
        ) from error
    network, trained, about = load_network(found)
    part, width = probed_part(network, config["use_projs"], found)
    if digest(part) != state["encoder"] or width != architecture["in_features"]:
        raise CheckpointError(f"'{path}' is a probe of other weights than those of '{found}'; {remedy}", "encoder_path")
    with torch.device("meta"):
        own = build_probe(architecture["pooler"], width, None, architecture["d_out"], 0).state_dict()
    why = difference(state["network"], own)
    if why is not None:
        raise CheckpointError(f"checkpoint '{path}' is not the probe that it says: {why}; it is damaged, give another")
    head = build_probe(architecture["pooler"], width, None, architecture["d_out"], 0)
    head.load_state_dict(state["network"])
    about |= {name: state[name] for name in ("config", "classes", "method") if name in state}
    return Probe(found, network, trained, part, head, architecture["pooler"], config["normalize"], about)


class Probe(NamedTuple):
    """A classifier of pooled vectors, and the network that makes them.

    Attributes:
        path: the checkpoint of the network.
        network: on the host.
        trained: its architecture.
        part: what of it is probed: its encoder, or all of it.
        head: from pooled vectors to logits.
        pooler: how the vectors of the cells of a field are pooled.
        normalize: whether the vector of every cell is scaled to length 1 first.
        about: of the network, with the configuration and the classes of the probe.
    """

    path: Path
    network: Network
    trained: Architecture
    part: nn.Module
    head: nn.Module
    pooler: str
    normalize: bool
    about: dict[str, Any]


def is_probe(path: Path) -> bool:
    """Whether a checkpoint holds a linear probe, which is no network by itself."""
    return _is_probe(load_checkpoint(path))


def load_encoder(network: Network, path: Path, key: str) -> None:
    """Copy the encoder's weights of a checkpoint into ``network``; the head stays as it is.

    Raises:
        CheckpointError: the checkpoint's encoder is another one.
    """
    source, architecture, _ = load_network(path, key)
    weights, own = source.encoder.state_dict(), network.encoder.state_dict()
    shapes = [{name: value.shape for name, value in some.items()} for some in (weights, own)]
    if architecture.key != key or shapes[0] != shapes[1]:
        raise CheckpointError(
            f"checkpoint '{path}' holds a {architecture.key} of {architecture.in_channels} channels and "
            f"{architecture.norm} norm, not this run's {key}; start from another one, or train one like it",
            advice="model_key",
        )
    network.encoder.load_state_dict(weights)
