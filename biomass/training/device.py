"""Device and precision, by the words that a configuration uses; and the processes that share a run."""

import inspect
import logging
import os
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from biomass import several
from biomass.errors import ConfigError, did_you_mean

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
STRATEGIES = ("auto", "ddp")
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # a variable of PyTorch; other systems than Linux do not heed it
_HERE = "submitit"  # which starts processes on this machine
_ON_A_CORE = 4  # processes that may share a core of the CPU: more are a slip of the pen
_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # as torch calls it now, and called it before
    if name in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
)

log = logging.getLogger(__name__)


def make_fabric(
    device: str = "auto",
    precision: str | int = "32",
    devices: int = 1,
    patience: timedelta | None = None,
    strategy: str = "auto",
    num_nodes: int = 1,
) -> Fabric:
    """Fabric, launched: what a network runs on, and in which precision.

    Several devices are several processes, each with a network of its own (DDP). torchrun and Slurm start them, and say
    how many there are; else they are started here.

    Args:
        device: auto, cpu or cuda.
        precision: 32, bf16 or 16.
        devices: how many of them, on each machine.
        patience: how long the processes of several devices wait for each other; None: minutes, as torch has it.
        strategy: auto, or ddp, which one device takes, too.
        num_nodes: how many machines.

    Raises:
        ConfigError: an unknown word, no such device, more devices than there are, 16 bit floats on the CPU, or other
            numbers than those of torchrun or Slurm.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device '{device}' is unknown; {did_you_mean(device, ('auto', 'cpu', 'cuda'))}")
    if str(precision) not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' is unknown; {did_you_mean(precision, PRECISIONS)}", "precision")
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy '{strategy}' is unknown; {did_you_mean(strategy, STRATEGIES)}", "strategy")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not available here; choose cpu or auto")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if str(precision) == "16" and not on_gpu:
        raise ConfigError("precision 16 needs a GPU; use bf16 or 32 on the CPU", "precision")
    started = started_processes()
    devices, num_nodes = check_started(started, devices, num_nodes)
    if not on_gpu:
        _take_large_pages()
    most = torch.cuda.device_count() if on_gpu else _ON_A_CORE * (os.cpu_count() or 1)
    if devices > most:
        raise ConfigError(f"{devices} devices are more than there are here; use from 1 to {most}")
    if started is None and devices > 1 and "LOCAL_RANK" not in os.environ:
        several.start(devices)
    options: dict[str, Any] = {_SYNC: False}  # averages of batch norm: see biomass.training.together
    if patience is not None:
        options["timeout"] = patience
    parallel = devices * num_nodes > 1 or strategy == "ddp"
    here = started is None or started.by == _HERE
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=DDPStrategy(**options) if parallel else "auto",
        plugins=LightningEnvironment() if here else None,  # else it would wait for tasks of Slurm
        precision=PRECISIONS[str(precision)],  # type: ignore[arg-type]
    )
    fabric.launch()
    if fabric.world_size > 1:
        several.meet(fabric.broadcast, fabric.is_global_zero)
    return fabric


def _take_large_pages() -> None:
    """Let PyTorch ask for memory in pages of 2 MB, where the system has them, if it has not asked for any yet.

    On a CPU it keeps none of what it frees, and the system clears and hands out each page of 4 kB again: up to a fifth
    of the time of a pass. A user who has set the variable knows better.
    """
    os.environ.setdefault(_LARGE_PAGES, "1")


class Started(NamedTuple):
    """Processes that were started by others: by whom, how many on each machine, and on how many machines."""

    by: str
    devices: int
    num_nodes: int


def started_processes() -> Started | None:
    """The processes of which torchrun, Slurm or submitit has started this one; None where none of them has.

    In a job of Slurm srun starts them; what the job's own script calls is one process.
    """
    if TorchElasticEnvironment.detect():
        world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return Started("torchrun", here, world // here)
    if SLURMEnvironment.detect() and several.is_task_of_slurm():
        tasks, nodes = (int(os.environ.get(name) or 1) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
        return Started("Slurm", tasks // nodes, nodes)
    if {"RANK", "SUBMITIT_LOCAL_NTASKS"} <= os.environ.keys():
        return Started(_HERE, int(os.environ["WORLD_SIZE"]), 1)
    return None


def check_started(started: Started | None, devices: int, num_nodes: int) -> tuple[int, int]:
    """How many devices and machines there are: those that were started, where others have done that.

    Args:
        started: by others.
        devices, num_nodes: what is asked for; 1 does not count against what was started.

    Raises:
        ConfigError: other numbers are asked for; or several machines, and nobody has started processes there.

    >>> check_started(Started("torchrun", devices=2, num_nodes=3), devices=1, num_nodes=1)
    (2, 3)
    >>> check_started(Started("Slurm", devices=1, num_nodes=1), devices=4, num_nodes=1)
    Traceback (most recent call last):
    biomass.errors.ConfigError: 4 devices are asked for, and Slurm has started 1 process on each machine; start as many
    """
    if started is None:
        if num_nodes > 1:
            raise ConfigError(
                f"{num_nodes} machines are asked for, and no process was started on them; start this on each of them "
                "with torchrun --nnodes, or with srun",
                "num_nodes",
            )
        return devices, num_nodes
    by, here, nodes = started
    if devices not in (1, here):
        raise ConfigError(
            f"{devices} devices are asked for, and {by} has started {_processes(here)} on each machine; start as many",
            "started_devices",
        )
    if num_nodes not in (1, nodes):
        raise ConfigError(
            f"{num_nodes} machines are asked for, and {by} has started processes on {nodes}; start them on as many",
            "num_nodes",
        )
    if (devices, num_nodes) != (here, nodes):
        log.info("%s has started %s on each of %d machines: so many devices it is", by, _processes(here), nodes)
    return here, nodes


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def set_up(
    fabric: Fabric, network: nn.Module, optimizer: torch.optim.Optimizer, compiled: bool = False, idle: bool = False
) -> tuple[nn.Module, Any]:
    """The network and its optimizer on the device, compiled where asked for.

    On a GPU the weights of a network of 16 bit floats lie channels last, as its fastest convolutions take them.

    Args:
        fabric: device and precision.
        network, optimizer: on the host.
        compiled: whether the network is compiled.
        idle: whether some of its weights may take no part in a step, which several devices must look for then.
    """
    if idle and isinstance(fabric.strategy, DDPStrategy):
        fabric.strategy._ddp_kwargs["find_unused_parameters"] = True
    if fabric.device.type == "cuda" and fabric.strategy.precision.precision != "32-true":
        network.to(memory_format=torch.channels_last)
    return fabric.setup(torch.compile(network) if compiled else network, optimizer)  # type: ignore[arg-type]
