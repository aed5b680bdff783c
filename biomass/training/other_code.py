"""Encoders that other code has trained: found in what their checkpoints hold, under the names of our networks."""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from biomass.errors import CheckpointError
from biomass.models import Architecture, build_network
from biomass.training.checkpoint import leaves

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


def read_other_code(state: dict[str, Any], key: str, path: Path) -> tuple[Architecture, dict[str, Tensor]]:
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
