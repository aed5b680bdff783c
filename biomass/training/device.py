"""Device and precision, by the words that a configuration uses."""

import os
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from biomass.errors import ConfigError, did_you_mean

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_ON_A_CORE = 4  # processes that may share a core of the CPU: more are a slip of the pen


def make_fabric(
    device: str = "auto", precision: str | int = "32", devices: int = 1, patience: timedelta | None = None
) -> Fabric:
    """Fabric, launched: what a network runs on, and in which precision.

    Args:
        device: auto, cpu or cuda.
        precision: 32, bf16 or 16.
        devices: how many of them.
        patience: how long the processes of several devices wait for each other; None: minutes, as torch has it.

    Raises:
        ConfigError: an unknown word, no such device, more devices than there are, or 16 bit floats on the CPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device '{device}' is unknown; {did_you_mean(device, ('auto', 'cpu', 'cuda'))}")
    if str(precision) not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is unknown; {did_you_mean(precision, PRECISIONS)}", "precision")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not available here; choose cpu or auto")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if str(precision) == "16" and not on_gpu:
        raise ConfigError("precision 16 needs a GPU; use bf16 or 32 on the CPU", "precision")
    most = torch.cuda.device_count() if on_gpu else _ON_A_CORE * (os.cpu_count() or 1)
    if devices > most:
        raise ConfigError(f"{devices} devices are more than there are here; use from 1 to {most}")
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=devices,
        strategy="auto" if devices == 1 or patience is None else DDPStrategy(timeout=patience),
        precision=PRECISIONS[str(precision)],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def set_up(
    fabric: Fabric, network: nn.Module, optimizer: torch.optim.Optimizer, compiled: bool = False
) -> tuple[nn.Module, Any]:
    """The network and its optimizer on the device, compiled where asked for."""
    return fabric.setup(torch.compile(network) if compiled else network, optimizer)  # type: ignore[arg-type]
