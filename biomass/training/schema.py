"""What must stand in the checkpoints of this package: one place that knows it, asked at every load.

:mod:`biomass.tensor_files` makes sure that a file holds what was written. Here is what may have been written: which
keys, of which type, in which range. What a checkpoint says beyond that is let be, if it is plain.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from biomass.errors import CheckpointError, one_line
from biomass.norms import MODES, WORDS

RUN = ("architecture", "config", "network", "optimizer", "schedule", "progress", "random")
"""What no checkpoint of a run is without."""

_POOLERS = ("mean", "median", "attention")
_MOST = {"in_channels": 10**5, "width": 10**7, "layers": 100}
_FEWER_BITS = {(torch.float32, torch.float16), (torch.float32, torch.bfloat16)}  # those fit in without a change
_OF_OTHERS = _FEWER_BITS | {(torch.float32, torch.float64)}


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


def check_fits(
    state: Mapping[str, Any], network: nn.Module, objective: object, optimizer: Any, schedule: LRScheduler
) -> None:
    """Refuse to go on from a checkpoint whose weights and moments are not those of this run's network.

    Args:
        state: of a run, which :func:`check_state` has seen.
        network: what its weights are for.
        objective: has weights, too, if it is a module.
        optimizer: of both.
        schedule: of its learning rate.

    Raises:
        CheckpointError: names the first difference.
    """
    found: str | None = difference(state["network"], network.state_dict())
    if found is None and isinstance(objective, nn.Module):
        found = difference(state.get("objective", {}), objective.state_dict())
    try:
        _optimizer_fits(state["optimizer"], optimizer)
        _schedule_fits(state, schedule)
    except CheckpointError as wrong:
        found = found or str(wrong)
    if found is not None:
        raise CheckpointError(
            f"checkpoint '{state.get('path')}' does not fit this run: {found}; give its own, or start a new run"
        )


def difference(weights: Mapping[str, Any], own: Mapping[str, Any] | None, of_others: bool = False) -> str | None:
    """The first thing by which the weights of a checkpoint are not those of a network, in a few words; None for none.

    Args:
        weights: of the checkpoint.
        own: of the network, which may be on the meta device; None where they are not known.
        of_others: whether weights of twice the bits are rounded, and batches need not be counted.

    >>> difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
    "'a' is [2], not [3]"
    """
    if own is None:
        return None
    for name, value in own.items():
        if name not in weights:
            if of_others and name.endswith("num_batches_tracked"):
                continue
            return f"it lacks '{name}'"
        found = weights[name]
        if not isinstance(value, Tensor):
            continue  # what a network of other code keeps beside weights
        if not isinstance(found, Tensor) or found.shape != value.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            return f"'{name}' is {shape}, not {list(value.shape)}"
        known = _OF_OTHERS if of_others else _FEWER_BITS
        if found.dtype != value.dtype and (value.dtype, found.dtype) not in known:
            return f"'{name}' is {_dtype(found)}, not {_dtype(value)}"
    return next((f"'{name}' has no place in it" for name in weights if name not in own), None)


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """The first weight that is no number, or a variance below 0, in a few words; None for none."""
    try:
        for name, value in weights.items():
            if isinstance(value, Tensor):
                _numbers(name, value, variance=name.endswith("running_var"))
    except CheckpointError as wrong:
        return str(wrong)
    return None


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _need(fits: bool, where: str, value: object, what: str) -> None:
    if not fits:
        shown = f"a {type(value).__name__}" if isinstance(value, Mapping | Tensor) else one_line(repr(value))
        shown = shown if len(shown) < 60 else f"{shown[:60]}…"
        raise CheckpointError(f"'{where}' is {shown}, not {what}")


def _whole(value: object, low: int = 0, high: int = 2**53) -> bool:
    return type(value) is int and low <= value <= high


def _real(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value)) and low <= value <= high  # type: ignore[arg-type, operator]


def _one_of(value: object, words: Iterable[str]) -> bool:
    return isinstance(value, str) and value in {*words}


def _mapping(where: str, value: Any, *required: str) -> None:
    _need(isinstance(value, dict), where, value, "a dictionary")
    _need(all(isinstance(key, str) for key in value), where, [*value][:3], "a dictionary with names as keys")
    for key in required:
        if key not in value:
            raise CheckpointError(f"'{where}' has no '{key}'")


def _texts(where: str, value: object) -> None:
    fits = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    _need(fits, where, value, "a list of names")


def _plain(where: str, value: object) -> None:
    """Numbers, texts and tensors, in dictionaries and lists."""
    if isinstance(value, dict):
        for key, one in value.items():
            _plain(f"{where}.{key}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            _plain(where, one)
    else:
        _need(value is None or isinstance(value, str | int | float | Tensor), where, value, "a plain value")


def _numbers(where: str, value: object, variance: bool = False, shape: tuple[int, ...] | None = None) -> None:
    """A tensor of finite numbers; of variances, which are not below 0. Masks may hold minus infinity."""
    assert isinstance(value, Tensor)
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()
    _need(plain, where, value, "a dense tensor of real numbers")
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
            _numbers(full, one, variance=name.endswith("running_var"))
            counted = not name.endswith("num_batches_tracked") or (one.numel() == 1 and not one.is_floating_point())
            _need(counted and (one.numel() != 1 or not name.endswith("tracked") or int(one) >= 0), full, one, "a count")
        else:
            _plain(full, one)


def _architecture(where: str, value: Any) -> None:
    _mapping(where, value)
    if "key" not in value or "head" not in value:
        return  # it is that of other code: whoever builds a network says so
    _need(isinstance(value["key"], str) and bool(value["key"]), f"{where}.key", value["key"], "the name of a network")
    channels, head = value.get("in_channels"), value["head"]
    most, width = _MOST["in_channels"], _MOST["width"]
    _need(_whole(channels, 1, most), f"{where}.in_channels", channels, f"a number of channels from 1 to {most}")
    fits = isinstance(head, list | tuple) and len(head) <= _MOST["layers"] and all(_whole(n, 1, width) for n in head)
    _need(fits, f"{where}.head", head, f"a list of widths from 1 to {width}")
    for name in ("norm", "channels"):
        _need(isinstance(value.get(name, ""), str), f"{where}.{name}", value.get(name), "a word")
    for name in ("standardize", "as_trained"):
        _need(isinstance(value.get(name, False), bool), f"{where}.{name}", value.get(name), "true or false")
    if value.get("options") is not None:
        _mapping(f"{where}.options", value["options"])
        _plain(f"{where}.options", value["options"])


def _probe(where: str, value: Any) -> None:
    _mapping(where, value)
    _need(_one_of(value["pooler"], _POOLERS), f"{where}.pooler", value["pooler"], f"one of {', '.join(_POOLERS)}")
    for name in value.keys() & {"in_features", "d_out"}:
        _need(_whole(value[name], 1, _MOST["width"]), f"{where}.{name}", value[name], "a number of features")


def _config(where: str, value: Any) -> None:
    _mapping(where, value)
    _plain(where, value)
    transforms = value.get("transforms")
    if transforms is not None:
        _mapping(f"{where}.transforms", transforms)
        nodes = transforms.get("eval")
        fits = nodes is None or (isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes))
        _need(fits, f"{where}.transforms.eval", nodes, "a list of transforms")
    if value.get("method") is not None:
        _method(f"{where}.method", value["method"])
    for name in ("eval_batch_size", "encode_batch_size"):
        size = value.get(name)
        _need(size is None or _whole(size, 1), f"{where}.{name}", size, "a number of images")
    for name in value.keys() & {"use_projs", "normalize"}:
        _need(isinstance(value[name], bool), f"{where}.{name}", value[name], "true or false")
    if value.get("encoder"):
        _config(f"{where}.encoder", value["encoder"])


def _method(where: str, value: Any) -> None:
    _mapping(where, value)
    _plain(where, value)
    for name in value.keys() & {"train", "eval"}:
        _need(_one_of(value[name], WORDS), f"{where}.{name}", value[name], f"one of {', '.join(WORDS)}")
    for name in value.keys() & {"train_by", "eval_by"}:
        _texts(f"{where}.{name}", value[name])
    _need(isinstance(value.get("controls", ""), str), f"{where}.controls", value.get("controls"), "a word")


def _optimizer(where: str, value: Any) -> None:
    _need(isinstance(value, dict), where, value, "a dictionary")
    state, groups = value.get("state"), value.get("param_groups")
    _need(isinstance(state, dict), f"{where}.state", state, "a dictionary")
    fits = isinstance(groups, list) and bool(groups) and all(isinstance(group, dict) for group in groups)
    _need(fits, f"{where}.param_groups", groups, "a list of dictionaries")
    for number, group in enumerate(groups or ()):
        place = f"{where}.param_groups.{number}"
        _plain(place, group)
        params = group.get("params")
        fits = isinstance(params, list | tuple) and all(_whole(one) for one in params)
        _need(fits, f"{place}.params", params, "a list of numbers of parameters")
        _need(_real(group.get("lr"), 0), f"{place}.lr", group.get("lr"), "a learning rate from 0 on")
    for number, moments in (state or {}).items():
        place = f"{where}.state.{number}"
        _need(_whole(number), place, number, "the number of a parameter")
        _need(isinstance(moments, dict), place, moments, "a dictionary")
        for name, one in moments.items():
            if isinstance(one, Tensor):
                _numbers(f"{place}.{name}", one, variance=str(name) in ("step", "exp_avg_sq", "max_exp_avg_sq"))
            else:
                _plain(f"{place}.{name}", one)


def _schedule(where: str, value: Any) -> None:
    _mapping(where, value, "base_lrs", "last_epoch", "_last_lr")
    for name in ("base_lrs", "_last_lr"):
        rates = value[name]
        fits = isinstance(rates, list) and bool(rates) and all(_real(one, 0) for one in rates)
        _need(fits, f"{where}.{name}", rates, "a list of learning rates from 0 on")
    for name in value.keys() & {"last_epoch", "_step_count"}:
        _need(_whole(value[name]), f"{where}.{name}", value[name], "a number of steps from 0 on")
    _plain(where, value)


def _progress(where: str, value: Any) -> None:
    _mapping(where, value, "epoch", "batch", "step")
    for name in ("epoch", "batch", "step"):
        _need(_whole(value[name]), f"{where}.{name}", value[name], "a whole number from 0 on")
    for name in value.keys() & {"best", "monitored"}:
        number = value[name]
        fits = number is None or type(number) in (int, float)
        _need(fits and (name != "best" or number == number), f"{where}.{name}", number, "a number, or none")
    _plain(where, value)


def _random(where: str, value: Any) -> None:
    _mapping(where, value, "cpu", "cuda")
    states, own = value["cuda"], value["cpu"]
    _need(isinstance(states, list), f"{where}.cuda", states, "a list")
    for name, state in (("cpu", own), *(("cuda", one) for one in states)):
        fits = isinstance(state, Tensor) and state.dtype == torch.uint8 and state.dim() == 1
        _need(fits, f"{where}.{name}", state, "the state of a random generator")
    _need(all(state.numel() == 16 for state in states), f"{where}.cuda", states, "states of random generators")
    try:
        torch.Generator().set_state(own)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"'{where}.cpu' is not the state of a random generator ({one_line(error)})") from error


def _tuning(where: str, value: Any) -> None:
    if value is None:
        return
    _mapping(where, value, "treated", "prior", "strata")
    shares, mode = value["treated"], value.get("mode", "classes")
    fits = isinstance(shares, list | tuple) and all(_real(one, 0, 1 + 1e-6) for one in shares)
    _need(fits, f"{where}.treated", shares, "a list of shares from 0 to 1")
    _need(_one_of(mode, MODES), f"{where}.mode", mode, f"one of {', '.join(MODES)}")
    for names, low, high in (
        (("shrinkage", "prior_rows", "trust"), 0.0, math.inf),
        (("evenness", "strength"), 1e-9, 1),
    ):
        for name in value.keys() & {*names}:
            number = value[name]
            _need(_real(number, low, high), f"{where}.{name}", number, f"a number from {low:g} to {high:g}")
    for name in ("prior", "strata"):
        _mapping(f"{where}.{name}", value[name])
        for layer, moments in value[name].items():
            place = f"{where}.{name}.{layer}"
            fits = isinstance(moments, Tensor) and moments.dim() in (2, 3) and len(moments) == 2
            _need(fits, place, moments, "a tensor of moments")
            _numbers(place, moments)
            _numbers(place, moments[1].float(), variance=name == "prior")
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
    _need(fits, where, value, "a list of names")


def _text(where: str, value: object) -> None:
    _need(value is None or isinstance(value, str), where, value, "a text")


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
    _need(isinstance(state["word"], str), "word", state["word"], "a word")
    _need(isinstance(state["encoder"], str), "encoder", state["encoder"], "a digest")
    _text("transform", state.get("transform"))
    _texts("by", state["by"])
    _texts("plates", state["plates"])
    plates, moments = state["plates"], state["moments"]
    _need(len(set(plates)) == len(plates), "plates", plates, "a list of different names")
    images = state.get("images", [-1] * len(plates))
    fits = isinstance(images, list) and len(images) == len(plates) and all(_whole(one, -1) for one in images)
    _need(fits, "images", images, f"a list of {len(plates)} numbers of images")
    _mapping("moments", moments)
    for name, one in moments.items():
        check_moments(f"moments.{name}", one, (2, len(plates)))


def check_moments(where: str, value: object, shape: tuple[int, ...]) -> None:
    """Means and variances of one norm, (2, …, C), of which all but C is known."""
    fits = isinstance(value, Tensor) and value.dim() == len(shape) + 1 and value.is_floating_point()
    _need(fits, where, value, "a tensor of moments")
    assert isinstance(value, Tensor)
    _numbers(where, value, shape=(*shape, value.shape[-1]))
    _numbers(where, value[1], variance=True)


def _optimizer_fits(found: Mapping[str, Any], optimizer: Any) -> None:
    groups = optimizer.param_groups
    counts, wanted = ([len(group["params"]) for group in one] for one in (found["param_groups"], groups))
    _need(counts == wanted, "optimizer.param_groups", counts, f"groups of {wanted} parameters")
    for number, (group, own) in enumerate(zip(found["param_groups"], groups, strict=True)):
        for name in ("betas", "eps", "weight_decay", "amsgrad", "maximize"):
            value, expected = group.get(name), own.get(name)
            value = tuple(value) if isinstance(value, list) else value
            _need(value == expected, f"optimizer.param_groups.{number}.{name}", value, repr(expected))
        for place, parameter in zip(group["params"], own["params"], strict=True):
            moments = found["state"].get(place)
            for name in () if moments is None else ("step", "exp_avg", "exp_avg_sq"):
                one = moments.get(name)
                where = f"optimizer.state.{place}.{name}"
                fits = isinstance(one, Tensor) or (name == "step" and _real(one, 0))
                _need(fits, where, one, "what an optimizer remembers")
                if isinstance(one, Tensor):
                    _numbers(where, one, shape=() if name == "step" else tuple(parameter.shape))
    known = {place for group in found["param_groups"] for place in group["params"]}
    unknown = next((place for place in found["state"] if place not in known), None)
    _need(unknown is None, "optimizer.state", unknown, "a parameter of it")


def _schedule_fits(state: Mapping[str, Any], schedule: LRScheduler) -> None:
    found, own = state["schedule"], schedule.state_dict()
    _need(found["base_lrs"] == own["base_lrs"], "schedule.base_lrs", found["base_lrs"], repr(own["base_lrs"]))
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    fits = found["_last_lr"] == rates and all(
        rate <= most * (1 + 1e-6) for rate, most in zip(rates, found["base_lrs"], strict=True)
    )
    _need(
        fits, "schedule._last_lr", found["_last_lr"], f"the rates of the optimizer, {rates}, below {found['base_lrs']}"
    )
    rules = found.get("lr_lambdas")
    _need(rules == own.get("lr_lambdas"), "schedule.lr_lambdas", rules, repr(own.get("lr_lambdas")))
    foreign = next((name for name in found if name not in own and hasattr(schedule, name)), None)
    _need(foreign is None, "schedule", foreign, "a value of a schedule")
    steps, step = found["last_epoch"], state["progress"]["step"]
    remembered = state["optimizer"]["state"]
    _need(bool(remembered) or not step, "optimizer.state", remembered, f"that of {step} steps")
    _need(steps == step, "schedule.last_epoch", steps, f"{step}, the steps that were taken")
