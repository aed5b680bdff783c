"""Networks of earlier runs: found by file, run name or ``latest``, rebuilt without repeating their architecture."""

import logging
import re
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, ConfigError, did_you_mean, one_line
from biomass.models import Architecture, Network, build_network, digest, is_own_code
from biomass.norms import load_tuning
from biomass.training.checkpoint import LAST, PREVIOUS, leaves, load_checkpoint, newest
from biomass.training.probe import build_probe, probed_part
from biomass.training.schema import check_probe, difference, not_finite

log = logging.getLogger(__name__)

TWINS = (
    ("teacher", "student"),  # DINO (Caron et al. 2021), iBOT, DINOv2: the teacher is evaluated
    ("encoder_q", "encoder_k"),  # MoCo (He et al. 2020): the encoder of queries
    ("base_encoder", "momentum_encoder"),  # MoCo v3 (Chen, Xie & He 2021)
    ("online", "target"),  # BYOL (Grill et al. 2020)
    ("target_encoder", "encoder"),  # I-JEPA (Assran et al. 2023)
    ("ema", ""),  # weights averaged over training, beside those of its last step
)
"""Names of encoders that are trained together: the one that is taken, and those that it is preferred to."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Words that parallel training, compilation and checkpointing of activations put between the names of weights."""


def find_checkpoint(model_path: str, folder: Path = Path("checkpoints")) -> Path:
    """The file that ``model_path`` means: a file, the name of a run below ``folder``, or the ``latest`` encoder there.

    The last checkpoint of a run is taken. ``latest`` passes over linear probes, which hold no encoder. A job of a sweep
    may be named without what differs between the jobs: ``sweep-3`` for ``sweep-3_seed-0``.

    Raises:
        CheckpointError: there is no such file or run; names the runs that are there.
    """
    if not isinstance(model_path, str):
        raise CheckpointError(f"{', '.join(model_path)} are several checkpoints, and one is needed", "network")
    if Path(model_path).is_file():
        return Path(model_path)
    ends = {path.parent: path.lstat().st_mtime for name in (PREVIOUS, LAST) for path in folder.glob(f"*/{name}")}
    runs = sorted(ends, key=lambda run: ends[run])
    if model_path == "latest":
        latest = next((path for run in reversed(runs) if (path := _encoder_of(run)) is not None), None)
        if latest is not None:
            log.info("the latest encoder is '%s'", latest)
            return latest
    if folder / model_path in runs:
        return newest(folder / model_path) or folder / model_path / LAST
    jobs = [run for run in runs if run.name.startswith(f"{model_path}_")]
    if len(jobs) == 1 and re.search(r"-\d+$", model_path):
        log.info("'%s' is the run '%s'", model_path, jobs[0].name)
        return newest(jobs[0]) or jobs[0] / LAST
    known = ", ".join(run.name for run in runs[-5:]) or "none"
    hint = did_you_mean(Path(model_path).name, [run.name for run in runs], f"runs in {folder}/: {known}")
    raise CheckpointError(f"'{model_path}' is neither a checkpoint file nor a run; {hint}")


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
            encoders that were trained together, that of :data:`TWINS` is taken. Its head is what is called
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
                f"checkpoint '{path}' is of the network '{architecture.key}', whose code runs if you name it alone",
                "model_key",
            )
    else:
        if key is None:
            raise ConfigError(f"checkpoint '{path}' does not say which network its weights belong to", "model_key")
        architecture, weights = _of_other_code(state, key, path)
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


def _of_other_code(state: dict[str, Any], key: str, path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Architecture and weights of a checkpoint that does not name its architecture, under the names of our networks."""
    weights = _named_weights(state, path)
    encoder = build_network(Architecture(key, 3, ())).encoder
    own = encoder.state_dict()
    prefix = _one_prefix(_prefixes(weights, list(own)), path)
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    outside = {name: value for name, value in weights.items() if not name.startswith(prefix)}

    # our encoders do without the last layers. What else stands beside the encoder's own parts, such as a decoder, is
    # left out; what stands in one of them stays, and will have no place in the network
    parts = {name.partition(".")[0] for name in own}
    beside = {name: inside.pop(name) for name in list(inside) if name.partition(".")[0] not in parts}
    beyond = [name for name in inside if name not in own]
    last: dict[str, Tensor] = {}
    if len({name.rpartition(".")[0] for name in beyond}) == 1:
        last = {name.rpartition(".")[2]: inside.pop(name) for name in beyond}
    heads = (_below("projection", outside), _below("classifier", outside), last, *_layers(beside))
    head = next((head for head in heads if head), {})
    if any(value.dim() == 1 for name, value in head.items() if name.endswith("weight")):
        head = {}  # there are norms in it
    widths, named_head = _linear_layers(head)
    taken = {id(value) for head in heads[:2] for value in head.values()} | {id(value) for value in head.values()}
    left_out = [name for name, value in {**outside, **beside}.items() if id(value) not in taken]
    if left_out:
        log.warning("left %d weights of '%s' out, '%s' and the like", len(left_out), path, left_out[0])

    first = next((inside[name] for name in own if name in inside and inside[name].dim() == 4), None)
    if first is None:
        some = next(iter(weights))
        if any(value.dim() == 4 for value in weights.values()):
            raise CheckpointError(
                f"checkpoint '{path}' is not a {key}: it has '{some}' and the like, not '{next(iter(own))}'; is it of "
                "another network?",
                "model_key",
            )
        raise CheckpointError(f"checkpoint '{path}' holds no convolution of an encoder, only '{some}' and the like")
    if "pos_embed" in inside and "pos_embed" in own:
        inside["pos_embed"] = _resized_positions(inside["pos_embed"], own["pos_embed"], encoder, path)
    named = {f"encoder.{name}": value for name, value in inside.items()}
    return Architecture(key, first.shape[1], widths), named | {f"head.{n}": value for n, value in named_head.items()}


def _resized_positions(found: Tensor, own: Tensor, encoder: nn.Module, path: Path) -> Tensor:
    """Positions of a transformer, (1, P + H W, D), for images of another size than that it was trained on."""
    prefix = getattr(encoder, "num_prefix_tokens", 0)
    prefix = 0 if getattr(encoder, "no_embed_class", False) else prefix
    grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    side = int(max(found.shape[1] - prefix, 0) ** 0.5) if found.dim() == 3 else 0
    if found.shape == own.shape or grid is None or side * side + prefix != found.shape[1]:
        return found
    from timm.layers import resample_abs_pos_embed

    log.info("the positions of '%s', %d x %d patches, are interpolated to %d x %d", path, side, side, *grid)
    return resample_abs_pos_embed(found, list(grid), [side, side], prefix)


def _layers(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The layers at the end of an encoder by their first names: ``fc``, ``head`` and the like."""
    names = ("fc", "head", "classifier", "heads")
    return [{n.partition(".")[2]: value for n, value in weights.items() if n.partition(".")[0] == one} for one in names]


def _named_weights(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint under their dotted names, without what parallel training and compilation put there.

    States of optimizers are no weights. Whatever else is not a tensor is passed over.

    >>> state = {"epoch": 3, "state_dict": {"module.backbone._orig_mod.conv1.weight": Tensor([0.5])}}
    >>> _named_weights(state, Path("lightning.ckpt"))
    {'state_dict.backbone.conv1.weight': tensor([0.5000])}
    """
    weights = {}
    other: list[tuple[str, Any]] = []
    found = leaves({str(name): value for name, value in state.items() if "optim" not in str(name)})
    for name, value in found.items():
        if isinstance(value, Tensor):
            parts = [part for part in name.split(".") if part not in WRAPPERS]
            weights[".".join(parts)] = value
        else:
            other.append((name.rpartition(".")[2], value))
    if not weights:
        is_not = [f"the key '{name}', which is a {type(value).__name__} and not a weight" for name, value in other[:1]]
        what = " ".join(is_not) or "no weights"
        raise CheckpointError(f"checkpoint '{path}' has {what}; save the state dict of its network alone")
    return weights


def _prefixes(names: Collection[str], own: list[str]) -> list[str]:
    """What stands before the names of an encoder's ``own`` weights among ``names``: one prefix an encoder.

    >>> _prefixes(["backbone.conv1.weight", "backbone.bn1.weight", "head.weight"], ["conv1.weight", "bn1.weight"])
    ['backbone.']

    Where no encoder is complete, it is that with most of the names, so that the error can say which one is missing.
    """
    # old files do not count batches
    own = [name for name in own if not name.endswith("num_batches_tracked")]
    ends = [name.removesuffix(own[0]) for name in names if f".{name}".endswith(f".{own[0]}")]
    found = {prefix: sum(prefix + name in names for name in own) for prefix in ends}
    return [prefix for prefix in found if found[prefix] == len(own)] or sorted(found, key=lambda p: -found[p])[:1]


def _one_prefix(prefixes: list[str], path: Path) -> str:
    """The prefix of the encoder to take: the only one, or that which :data:`TWINS` prefers to all others."""
    if len(prefixes) < 2:
        return "".join(prefixes)
    for kept, *others in TWINS:
        chosen = [prefix for prefix in prefixes if any(kept in part for part in prefix.split("."))]
        rest = [prefix for prefix in prefixes if prefix not in chosen]
        if len(chosen) == 1 and all(any(word in prefix for word in others) for prefix in rest):
            log.info("'%s' holds %d encoders; '%s' is taken", path, len(prefixes), chosen[0].rstrip("."))
            return chosen[0]
    names = " and ".join(map(repr, prefixes))
    raise CheckpointError(f"checkpoint '{path}' holds {len(prefixes)} encoders, {names}; save one of them alone")


def _below(word: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights below ``word``, wherever it stands in their names: ``0.weight`` for ``net.projection.0.weight``."""
    split = {name: f".{name}".partition(f".{word}.") for name in weights}
    return {rest: weights[name] for name, (_, found, rest) in split.items() if found}


def _linear_layers(weights: dict[str, Tensor]) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The widths of a head's layers in their order, and its weights as ours are named: a single layer has no number.

    >>> _linear_layers({"0.weight": Tensor(8, 4), "2.weight": Tensor(3, 8)})[0]
    (8, 3)
    >>> widths, renamed = _linear_layers({"1.weight": Tensor(3, 4), "1.bias": Tensor(3)})
    >>> widths, list(renamed)
    ((3,), ['weight', 'bias'])
    """
    widths = {}
    for name, value in weights.items():
        number = re.fullmatch(r"(?:(\d+)\.)?weight", name)
        if number and value.dim():
            widths[int(number[1] or 0)] = value.shape[0]
    if len(widths) == 1:
        weights = {re.sub(r"^\d+\.", "", name): value for name, value in weights.items()}
    return tuple(widths[number] for number in sorted(widths)), weights
