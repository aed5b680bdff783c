"""What the processes of a run tell each other: when to stop, which of them have a batch, and their running averages."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biomass import several, stopping
from biomass.errors import ConfigError
from biomass.norms import unwrap

T = TypeVar("T")


class Together:
    """The processes of a run. They talk by way of the host while the device computes: no step waits for a device.

    Attributes:
        rank: number of this process among
        world: the number of processes.
        there: which of them have a batch, as far as :meth:`has_batch` was answered.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.there = [True] * self.world
        self._group = several.group()
        self._flags = torch.zeros(self.world + 1)
        self._waiting: Any = None

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def has_batch(self, there: bool) -> None:
        """Say whether this process has a batch, and whether it is to stop; all say it, before the forward pass."""
        self._flags = torch.zeros(self.world + 1)
        self._flags[self.rank], self._flags[-1] = float(there), float(stopping.requested())
        self._waiting = dist.all_reduce(self._flags, group=self._group, async_op=True)

    def hear(self) -> list[bool]:
        """Which processes have a batch."""
        self._wait()
        self.there = (self._flags[:-1] > 0).tolist()
        return self.there

    def after_step(self) -> bool:
        """Whether to stop, the same answer on all; call this behind every step."""
        if not self.several:
            return stopping.requested()
        self._wait()
        return bool(self._flags[-1] > 0)

    def now(self) -> bool:
        """Whether to stop, once all processes have come here."""
        if self.several:
            self.has_batch(False)
        return self.after_step()

    def gather(self, own: T) -> Sequence[T]:
        """What all processes bring along, in their order."""
        return _gathered(own, self.world, self._group)

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.wait()
            self._waiting = None


def gathered(fabric: Fabric, own: T) -> Sequence[T]:
    """What all processes bring along, in their order."""
    return _gathered(own, fabric.world_size, None)


def _gathered(own: T, world: int, group: Any) -> Sequence[T]:
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, own, group=group)
    return found


@contextmanager
def all_take_part(network: nn.Module) -> Iterator[None]:
    """Within the block, a step of several devices, weights without a gradient are a line that names them.

    Raises:
        ConfigError: the others wait for gradients that a loss did not give.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if found is None:
            raise
        trained = [name for name, one in unwrap(network).named_parameters() if one.requires_grad]
        idle = [trained[int(number)] for number in found[1].split()]
        raise ConfigError(
            f"{len(idle)} weights of this network took no part in a step, such as '{idle[0]}', and several devices "
            "wait for all of them: take another network, or one device",
            "devices",
        ) from error


class Averages:
    """Running averages of batch norm over the batches of all processes, as if one process had seen them in turn.

    Every process moves the averages r by its own batch, r → f r + s, where f is 1 less the momentum. Over the batches
    0 … K-1 of all processes in their order, one process would come to f^K r + f^(K-1) s_0 + … + s_(K-1). Each process
    knows its own s; the sum is made by all of them while the gradients are computed. What a process without a batch
    has made of nothing does not count.

    Args:
        network: its norms, where they follow their averages.

    Raises:
        ConfigError: a norm averages over all batches ever seen.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [(name, one) for name, one in network.named_modules() if isinstance(one, _BatchNorm)]
        norms = [(name, one) for name, one in named if one.track_running_stats and one.running_mean is not None]
        for name, one in norms:
            if one.momentum is None:
                raise ConfigError(f"norm '{name}' has no momentum: its averages are made on one device", "devices")
        self._norms = [one for _, one in norms]
        self._averages: list[Tensor] = [b for one in self._norms for b in (one.running_mean, one.running_var)]  # type: ignore[misc]
        self._counts: list[Tensor] = [one.num_batches_tracked for one in self._norms]  # type: ignore[misc]
        self._before = torch.zeros(0)
        self._counted: list[Tensor] = []
        self._factor: Tensor | None = None
        self._sum: Tensor | None = None
        self._waiting: Any = None
        self._batches = 0

    def begin(self) -> None:
        """Call this before a forward pass."""
        if self._norms:
            self._before = torch.cat(self._averages)
            self._counted = [count.clone() for count in self._counts]

    def share(self, there: Sequence[bool], rank: int) -> None:
        """Call this behind the forward pass, on all processes.

        Args:
            there: which processes had a batch.
            rank: of this one.
        """
        if not self._norms:
            return
        if self._factor is None:
            self._factor = self._factors()
        self._batches = sum(there)
        behind = sum(there[rank + 1 :])  # batches that one process would have seen later
        moved = torch.cat(self._averages) - self._factor * self._before
        self._sum = moved * self._factor**behind if there[rank] else torch.zeros_like(moved)
        self._waiting = dist.all_reduce(self._sum, async_op=True)

    @torch.no_grad()
    def take(self) -> None:
        """Take the averages of all; call this behind the backward pass."""
        if not self._norms:
            return
        assert self._factor is not None
        assert self._sum is not None
        self._waiting.wait()
        found = (self._before * self._factor**self._batches + self._sum).split([len(one) for one in self._averages])
        torch._foreach_copy_(self._averages, list(found))
        for count, before, runs in zip(self._counts, self._counted, self._runs, strict=True):
            count.copy_(before + runs * self._batches)

    def _factors(self) -> Tensor:
        """What a forward pass leaves of each average: nothing is taken off where a norm did not run, or is frozen."""
        counts = zip(self._counts, self._counted, strict=True)
        self._runs = torch.stack([count - before for count, before in counts]).tolist()
        factors = [(1 - (one.momentum or 0.0)) ** runs for one, runs in zip(self._norms, self._runs, strict=True)]
        each = [factor for factor in factors for _ in range(2)]
        return torch.cat([torch.full_like(one, factor) for one, factor in zip(self._averages, each, strict=True)])
