"""Whether a checkpoint fits what goes on from it: its weights a network, its moments and schedule an optimizer.

What it must be on its own is said in :mod:`biomass.training.schema`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from biomass.errors import CheckpointError
from biomass.training.schema import check_numbers, is_real, need

_FEWER_BITS = {(torch.float32, torch.float16), (torch.float32, torch.bfloat16)}  # those fit in without a change


_OF_OTHERS = _FEWER_BITS | {(torch.float32, torch.float64)}


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
                check_numbers(name, value, variance=name.endswith("running_var"))
    except CheckpointError as wrong:
        return str(wrong)
    return None


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _optimizer_fits(found: Mapping[str, Any], optimizer: Any) -> None:
    groups = optimizer.param_groups
    counts, wanted = ([len(group["params"]) for group in one] for one in (found["param_groups"], groups))
    need(counts == wanted, "optimizer.param_groups", counts, f"groups of {wanted} parameters")
    for number, (group, own) in enumerate(zip(found["param_groups"], groups, strict=True)):
        for name in ("betas", "eps", "weight_decay", "amsgrad", "maximize"):
            value, expected = group.get(name), own.get(name)
            value = tuple(value) if isinstance(value, list) else value
            need(value == expected, f"optimizer.param_groups.{number}.{name}", value, repr(expected))
        for place, parameter in zip(group["params"], own["params"], strict=True):
            moments = found["state"].get(place)
            for name in () if moments is None else ("step", "exp_avg", "exp_avg_sq"):
                one = moments.get(name)
                where = f"optimizer.state.{place}.{name}"
                fits = isinstance(one, Tensor) or (name == "step" and is_real(one, 0))
                need(fits, where, one, "what an optimizer remembers")
                if isinstance(one, Tensor):
                    check_numbers(where, one, shape=() if name == "step" else tuple(parameter.shape))
    known = {place for group in found["param_groups"] for place in group["params"]}
    unknown = next((place for place in found["state"] if place not in known), None)
    need(unknown is None, "optimizer.state", unknown, "a parameter of it")


def _schedule_fits(state: Mapping[str, Any], schedule: LRScheduler) -> None:
    found, own = state["schedule"], schedule.state_dict()
    need(found["base_lrs"] == own["base_lrs"], "schedule.base_lrs", found["base_lrs"], repr(own["base_lrs"]))
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    fits = found["_last_lr"] == rates and all(
        rate <= most * (1 + 1e-6) for rate, most in zip(rates, found["base_lrs"], strict=True)
    )
    need(
        fits, "schedule._last_lr", found["_last_lr"], f"the rates of the optimizer, {rates}, below {found['base_lrs']}"
    )
    rules = found.get("lr_lambdas")
    need(rules == own.get("lr_lambdas"), "schedule.lr_lambdas", rules, repr(own.get("lr_lambdas")))
    foreign = next((name for name in found if name not in own and hasattr(schedule, name)), None)
    need(foreign is None, "schedule", foreign, "a value of a schedule")
    steps, step = found["last_epoch"], state["progress"]["step"]
    remembered = state["optimizer"]["state"]
    need(bool(remembered) or not step, "optimizer.state", remembered, f"that of {step} steps")
    need(steps == step, "schedule.last_epoch", steps, f"{step}, the steps that were taken")
