"""What must stand in the checkpoints of this package: one place that knows it, asked at every load.

:mod:`biomass.tensor_files` makes sure that a file holds what was written. Here is what may have been written: which
keys, of which type, in which range. What a checkpoint says beyond that is let be, if it is plain.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biomass.errors import CheckpointError, one_line
from biomass.norms import MODES, WORDS

RUN = ("architecture", "config", "network", "optimizer", "schedule", "progress", "random")
"""What no checkpoint of a run is without."""

_POOLERS = ("mean", "median", "attention")
_MOST = {"in_channels": 10**5, "width": 10**7, "layers": 100}


_OF_A_PROBE = (
    "config.use_projs",
    "config.normalize",
    "encoder",
    "network",
    "architecture.in_features",
    "architecture.d_out",
)


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of a run, of a probe, or of calibrated statistics, that none could have written.

    Weights of other code, which say no architecture, are let through.

    Raises:
        CheckpointError: names the first value that cannot be.
    """
    architecture = state.get("architecture")
    if isinstance(architecture, dict):
        checks = _CHECKS | ({"architecture": _probe} if "pooler" in architecture else {})
    elif {"plates", "moments"} <= state.keys():
        checks = {"plates": lambda _, __: _calibrated(state)}
    else:
        return
    try:
        for key, check in checks.items():
            if key in state:
                check(key, state[key])
        for key in state.keys() - checks.keys():
            _plain(str(key), state[key])
        _of_its_data(state)
    except CheckpointError as wrong:
        raise CheckpointError(
            f"checkpoint '{path}' was not made by a run: {wrong}; give one as it was written"
        ) from wrong


def check_probe(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a probe that lacks what it is rebuilt from.

    Raises:
        CheckpointError: names the first key that is missing.
    """
    for name in _OF_A_PROBE:
        part, _, key = name.rpartition(".")
        if key not in (state.get(part) or {} if part else state):
            raise CheckpointError(f"checkpoint '{path}' is a probe without '{name}'; give one as it was written")


def need(fits: bool, where: str, value: object, what: str) -> None:
    if not fits:
        shown = f"a {type(value).__name__}" if isinstance(value, Mapping | Tensor) else one_line(repr(value))
        shown = shown if len(shown) < 60 else f"{shown[:60]}…"
        raise CheckpointError(f"'{where}' is {shown}, not {what}")


def _whole(value: object, low: int = 0, high: int = 2**53) -> bool:
    return type(value) is int and low <= value <= high


def is_real(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value)) and low <= value <= high  # type: ignore[arg-type, operator]


def _one_of(value: object, words: Iterable[str]) -> bool:
    return isinstance(value, str) and value in {*words}


def _mapping(where: str, value: Any, *required: str) -> None:
    need(isinstance(value, dict), where, value, "a dictionary")
    need(all(isinstance(key, str) for key in value), where, [*value][:3], "a dictionary with names as keys")
    for key in required:
        if key not in value:
            raise CheckpointError(f"'{where}' has no '{key}'")


def _texts(where: str, value: object) -> None:
    fits = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    need(fits, where, value, "a list of names")


def _plain(where: str, value: object) -> None:
    """Numbers, texts and tensors, in dictionaries and lists."""
    if isinstance(value, dict):
        for key, one in value.items():
            _plain(f"{where}.{key}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            _plain(where, one)
    else:
        need(value is None or isinstance(value, str | int | float | Tensor), where, value, "a plain value")


def check_numbers(where: str, value: object, variance: bool = False, shape: tuple[int, ...] | None = None) -> None:
    """A tensor of finite numbers; of variances, which are not below 0. Masks may hold minus infinity."""
    assert isinstance(value, Tensor)
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()
    need(plain, where, value, "a dense tensor of real numbers")
    if shape is not None and value.shape != shape:
        raise CheckpointError(f"'{where}' is {list(value.shape)}, not {list(shape)}")
    if not value.numel() or not (value.is_floating_point() or variance):
        return
    low, high = torch.aminmax(value)
    masked = where.endswith("mask") and bool(low == -math.inf)
    if not bool(high.isfinite()) or not (masked or bool(low.isfinite())):
        raise CheckpointError(f"'{where}' is not finite everywhere")
    if variance and bool(low < 0):
        raise CheckpointError(f"'{where}' has a variance of {float(low):g}")


def _tensors(where: str, value: Any) -> None:
    _mapping(where, value)
    for name, one in value.items():
        full = f"{where}.{name}"
        if isinstance(one, Tensor):
            check_numbers(full, one, variance=name.endswith("running_var"))
            counted = not name.endswith("num_batches_tracked") or (one.numel() == 1 and not one.is_floating_point())
            need(counted and (one.numel() != 1 or not name.endswith("tracked") or int(one) >= 0), full, one, "a count")
        else:
            _plain(full, one)


def _architecture(where: str, value: Any) -> None:
    _mapping(where, value)
    if "key" not in value or "head" not in value:
        return  # it is that of other code: whoever builds a network says so
    need(isinstance(value["key"], str) and bool(value["key"]), f"{where}.key", value["key"], "the name of a network")
    channels, head = value.get("in_channels"), value["head"]
    most, width = _MOST["in_channels"], _MOST["width"]
    need(_whole(channels, 1, most), f"{where}.in_channels", channels, f"a number of channels from 1 to {most}")
    fits = isinstance(head, list | tuple) and len(head) <= _MOST["layers"] and all(_whole(n, 1, width) for n in head)
    need(fits, f"{where}.head", head, f"a list of widths from 1 to {width}")
    for name in ("norm", "channels"):
        need(isinstance(value.get(name, ""), str), f"{where}.{name}", value.get(name), "a word")
    for name in ("standardize", "as_trained"):
        need(isinstance(value.get(name, False), bool), f"{where}.{name}", value.get(name), "true or false")
    if value.get("options") is not None:
        _mapping(f"{where}.options", value["options"])
        _plain(f"{where}.options", value["options"])


def _probe(where: str, value: Any) -> None:
    _mapping(where, value)
    need(_one_of(value["pooler"], _POOLERS), f"{where}.pooler", value["pooler"], f"one of {', '.join(_POOLERS)}")
    for name in value.keys() & {"in_features", "d_out"}:
        need(_whole(value[name], 1, _MOST["width"]), f"{where}.{name}", value[name], "a number of features")


def _config(where: str, value: Any) -> None:
    _mapping(where, value)
    _plain(where, value)
    transforms = value.get("transforms")
    if transforms is not None:
        _mapping(f"{where}.transforms", transforms)
        nodes = transforms.get("eval")
        fits = nodes is None or (isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes))
        need(fits, f"{where}.transforms.eval", nodes, "a list of transforms")
    if value.get("method") is not None:
        _method(f"{where}.method", value["method"])
    for name in ("eval_batch_size", "encode_batch_size"):
        size = value.get(name)
        need(size is None or _whole(size, 1), f"{where}.{name}", size, "a number of images")
    for name in value.keys() & {"use_projs", "normalize"}:
        need(isinstance(value[name], bool), f"{where}.{name}", value[name], "true or false")
    if value.get("encoder"):
        _config(f"{where}.encoder", value["encoder"])


def _method(where: str, value: Any) -> None:
    _mapping(where, value)
    _plain(where, value)
    for name in value.keys() & {"train", "eval"}:
        need(_one_of(value[name], WORDS), f"{where}.{name}", value[name], f"one of {', '.join(WORDS)}")
    for name in value.keys() & {"train_by", "eval_by"}:
        _texts(f"{where}.{name}", value[name])
    need(isinstance(value.get("controls", ""), str), f"{where}.controls", value.get("controls"), "a word")


def _optimizer(where: str, value: Any) -> None:
    need(isinstance(value, dict), where, value, "a dictionary")
    state, groups = value.get("state"), value.get("param_groups")
    need(isinstance(state, dict), f"{where}.state", state, "a dictionary")
    fits = isinstance(groups, list) and bool(groups) and all(isinstance(group, dict) for group in groups)
    need(fits, f"{where}.param_groups", groups, "a list of dictionaries")
    for number, group in enumerate(groups or ()):
        place = f"{where}.param_groups.{number}"
        _plain(place, group)
        params = group.get("params")
        fits = isinstance(params, list | tuple) and all(_whole(one) for one in params)
        need(fits, f"{place}.params", params, "a list of numbers of parameters")
        need(is_real(group.get("lr"), 0), f"{place}.lr", group.get("lr"), "a learning rate from 0 on")
    for number, moments in (state or {}).items():
        place = f"{where}.state.{number}"
        need(_whole(number), place, number, "the number of a parameter")
        need(isinstance(moments, dict), place, moments, "a dictionary")
        for name, one in moments.items():
            if isinstance(one, Tensor):
                check_numbers(f"{place}.{name}", one, variance=str(name) in ("step", "exp_avg_sq", "max_exp_avg_sq"))
            else:
                _plain(f"{place}.{name}", one)


def _schedule(where: str, value: Any) -> None:
    _mapping(where, value, "base_lrs", "last_epoch", "_last_lr")
    for name in ("base_lrs", "_last_lr"):
        rates = value[name]
        fits = isinstance(rates, list) and bool(rates) and all(is_real(one, 0) for one in rates)
        need(fits, f"{where}.{name}", rates, "a list of learning rates from 0 on")
    for name in value.keys() & {"last_epoch", "_step_count"}:
        need(_whole(value[name]), f"{where}.{name}", value[name], "a number of steps from 0 on")
    _plain(where, value)


def _progress(where: str, value: Any) -> None:
    _mapping(where, value, "epoch", "batch", "step")
    for name in ("epoch", "batch", "step"):
        need(_whole(value[name]), f"{where}.{name}", value[name], "a whole number from 0 on")
    ranks = value.get("ranks", 1)
    need(_whole(ranks) and ranks > 0, f"{where}.ranks", ranks, "a whole number from 1 on")
    for name in value.keys() & {"best", "monitored"}:
        number = value[name]
        fits = number is None or type(number) in (int, float)
        need(fits and (name != "best" or number == number), f"{where}.{name}", number, "a number, or none")
    _plain(where, value)


def _random(where: str, value: Any) -> None:
    _mapping(where, value, "cpu", "cuda")
    states, own = value["cuda"], value["cpu"]
    need(isinstance(states, list), f"{where}.cuda", states, "a list")
    for name, state in (("cpu", own), *(("cuda", one) for one in states)):
        fits = isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1
        need(fits, f"{where}.{name}", state, "the state of a random generator")
    need(all(state.numel() == 16 for state in states), f"{where}.cuda", states, "states of random generators")
    try:
        torch.Generator().set_state(own)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"'{where}.cpu' is not the state of a random generator ({one_line(error)})") from error


def _tuning(where: str, value: Any) -> None:
    if value is None:
        return
    _mapping(where, value, "treated", "prior", "strata")
    shares, mode = value["treated"], value.get("mode", "classes")
    fits = isinstance(shares, list | tuple) and all(is_real(one, 0, 1 + 1e-6) for one in shares)
    need(fits, f"{where}.treated", shares, "a list of shares from 0 to 1")
    need(_one_of(mode, MODES), f"{where}.mode", mode, f"one of {', '.join(MODES)}")
    for names, low, high in (
        (("shrinkage", "prior_rows", "trust"), 0.0, math.inf),
        (("evenness", "strength"), 1e-9, 1),
    ):
        for name in value.keys() & {*names}:
            number = value[name]
            need(is_real(number, low, high), f"{where}.{name}", number, f"a number from {low:g} to {high:g}")
    for name in ("prior", "strata"):
        _mapping(f"{where}.{name}", value[name])
        for layer, moments in value[name].items():
            place = f"{where}.{name}.{layer}"
            fits = isinstance(moments, Tensor) and moments.dim() in (2, 3) and len(moments) == 2
            need(fits, place, moments, "a tensor of moments")
            check_numbers(place, moments)
            check_numbers(place, moments[1].float(), variance=name == "prior")
    _plain(where, {key: one for key, one in value.items() if key not in ("prior", "strata")})


def _channels(where: str, value: object) -> None:
    if value is not None:
        _texts(where, value)


def _of_its_data(state: Mapping[str, Any]) -> None:
    """Names that stand in a checkpoint twice are the same: of a run, and of the data that it was made on."""
    data = state.get("data")
    for name in ("channels", "classes"):
        own, known = state.get(name), data.get(name) if isinstance(data, dict) else None
        if isinstance(known, list) and own is not None and [*map(str, own)] != [*map(str, known)]:
            raise CheckpointError(f"'{name}' are {len(own)} names, and not the {len(known)} of its data")


def _classes(where: str, value: object) -> None:
    fits = isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value)
    need(fits, where, value, "a list of names")


def _text(where: str, value: object) -> None:
    need(value is None or isinstance(value, str), where, value, "a text")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "architecture": _architecture,
    "config": _config,
    "method": _method,
    "channels": _channels,
    "classes": _classes,
    "encoder": _text,
    "encoder_path": _text,
    "network": _tensors,
    "objective": _tensors,
    "tuning": _tuning,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "progress": _progress,
    "random": _random,
}


def _calibrated(state: Mapping[str, Any]) -> None:
    for name in ("word", "by", "encoder"):
        if name not in state:
            raise CheckpointError(f"it has no '{name}'")
    need(isinstance(state["word"], str), "word", state["word"], "a word")
    need(isinstance(state["encoder"], str), "encoder", state["encoder"], "a digest")
    _text("transform", state.get("transform"))
    _texts("by", state["by"])
    _texts("plates", state["plates"])
    plates, moments = state["plates"], state["moments"]
    need(len(set(plates)) == len(plates), "plates", plates, "a list of different names")
    images = state.get("images", [-1] * len(plates))
    fits = isinstance(images, list) and len(images) == len(plates) and all(_whole(one, -1) for one in images)
    need(fits, "images", images, f"a list of {len(plates)} numbers of images")
    _mapping("moments", moments)
    for name, one in moments.items():
        check_moments(f"moments.{name}", one, (2, len(plates)))


def check_moments(where: str, value: object, shape: tuple[int, ...]) -> None:
    """Means and variances of one norm, (2, …, C), of which all but C is known."""
    fits = isinstance(value, Tensor) and value.dim() == len(shape) + 1 and value.is_floating_point()
    need(fits, where, value, "a tensor of moments")
    assert isinstance(value, Tensor)
    check_numbers(where, value, shape=(*shape, value.shape[-1]))
    check_numbers(where, value[1], variance=True)
