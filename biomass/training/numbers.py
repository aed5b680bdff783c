"""Numbers of a run that are none: found before they are saved, with what they came from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError, TrainingError

_LEAST_SCALE = 2.0**-24
"""Factor of 16 bit gradients from which downwards it is their numbers, and not the factor, that are at fault. It starts
at 2^16 and is halved by every step that is skipped."""


def check_weights(network: nn.Module, optimizer: torch.optim.Optimizer, step: int, last: Path) -> None:
    """Make sure that what a checkpoint would hold are finite numbers.

    Args:
        network: its parameters, running averages and other buffers.
        optimizer: its state, from which the next step would be made.
        step: the last that was taken.
        last: where the last good checkpoint is, or would be.

    Raises:
        TrainingError: names the first weight that is not finite.
    """
    named = list(_floats(network, optimizer))
    if nn.utils.get_total_norm([value for _, value in named]).isfinite():  # one pass; of huge numbers it is not finite
        return
    finite = torch.stack([value.isfinite().all() for _, value in named])
    if not finite.all():
        name = named[int((~finite).nonzero()[0])][0]
        raise TrainingError(
            f"'{name}' is not finite after step {step}: lower the learning rate or the weight decay, clip gradients, "
            f"or compute in 32 bits ({kept(last)})"
        )


def _floats(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for name, value in network.state_dict().items():
        if torch.is_tensor(value) and value.is_floating_point() and value.numel():
            yield name, value
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for kind, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value) and value.device == parameter.device and value.is_floating_point():
                    yield f"{kind} of {names.get(id(parameter), 'the penalty')}", value


def check_gradients(fabric: Fabric, norm: float, step: int, images: str, last: Path) -> None:
    """Make sure that the gradients of a step, whose norm was asked for, are finite numbers.

    In 16 bits single steps may have others: they are scaled by a factor, a step whose gradients are not finite is
    skipped, and the factor halved (Micikevicius et al. 2018). It is an error only where that does not end.

    Args:
        fabric: precision.
        norm: of the gradients.
        step: its number.
        images: the plates and images of the step.
        last: where the last good checkpoint is, or would be.

    Raises:
        TrainingError: the norm is not finite, and in 16 bits has not been for long.
    """
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if norm - norm == 0 or (scaler is not None and scaler.get_scale() >= _LEAST_SCALE):
        return
    how = "compute in 32 bits or bf16" if scaler is not None else "lower the learning rate, clip gradients"
    raise TrainingError(
        f"the gradient norm is {norm} at step {step}, {images}: {how}, or look at these images ({kept(last)})"
    )


def check_metrics(metrics: Mapping[str, float], monitor: str | None, epoch: int, last: Path) -> None:
    """Make sure that an evaluation gave the numbers that a run depends on: its losses, and what is monitored.

    Other metrics may be missing: accuracy by class, for example, of a split that has no treated class.

    Raises:
        TrainingError: a loss is not finite.
        ConfigError: the monitored metric is not.
    """
    for name, value in metrics.items():
        if value - value == 0:
            continue
        if name.endswith("/loss"):
            raise TrainingError(
                f"{name} is {value} after epoch {epoch}: the network's outputs are too large; lower the learning rate "
                f"({kept(last)})"
            )
        if name == monitor:
            raise ConfigError(f"monitor '{name}' is {value} after epoch {epoch}: choose another metric", "monitor")


def kept(last: Path) -> str:
    """What is left of a run that cannot go on."""
    return f"kept '{last}'" if last.exists() else "no checkpoint yet"
