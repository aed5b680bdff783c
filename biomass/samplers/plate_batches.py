"""One sampler for every kind of batch: mixed, one plate, several plates, whole plates, plates in parts."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from biomass.errors import ConfigError, DataError


class _Epoch(NamedTuple):
    """What is random about an epoch."""

    order: np.ndarray  # (n,) positions of the perturbed rows, group by group
    control_order: np.ndarray  # positions of the control rows, group by group
    parts: np.ndarray  # (P,) numbers of the parts, batch by batch
    bounds: np.ndarray  # (batches + 1,) where each batch begins in `parts`


class PlateBatches(Sampler[np.ndarray]):
    """Batches of rows, an epoch at a time: ``DataLoader(dataset, sampler=PlateBatches(...), batch_size=None)``.

    Every item is one batch, an int64 array of values of ``rows``. Within an epoch every row is served exactly once
    (but see ``num_controls``). A *group* is a plate, or an experiment, or whatever ``groups`` numbers.

    - ``groups=None``: random batches of all rows, as few and as nearly equal as ``batch_size`` allows (sizes differ by
      at most 1, so that no small last batch spoils batch statistics).
    - ``groups``: every batch holds rows of one group. A group is cut into parts whose sizes differ by at most 1: as
      many as ``batch_size`` needs, but at least ``parts``; it stays whole if neither is given. A group with fewer
      rows than ``parts`` gives parts of one row, one smaller than ``batch_size`` gives one small batch, one of a single
      row gives a batch of one row. Group numbers that no row bears are no groups and do not matter.
    - ``max_groups=m``: every batch holds parts of at most m groups, one of each. A part has at most ``batch_size // m``
      rows (with no ``batch_size``: the whole group, or its share under ``parts``). Batches are as few as the number of
      all parts and the most divided group allow, and differ by at most one part; which groups meet is random.
    - ``num_controls=C``: rows marked in ``controls`` are not served as the others are. Instead every part brings along
      C control rows of its group, or all of them if it has fewer: different ones within a batch, and going round the
      group's controls, so that over an epoch their uses differ by at most 1. They count towards ``batch_size``.
      A group of control rows only is not served.

    With ``shuffle=False`` (evaluation) groups are in ascending order and rows in the order of ``rows``, at every epoch.

    The order depends on ``(seed, epoch)`` alone. All ranks lay out the same batches, and rank r takes the batches r,
    r + world_size, …. With ``shuffle=True`` (training) the first batches come once more at the end so that all ranks
    take equally many, as a step that one rank lacks would hang the others; with ``shuffle=False`` no batch is repeated
    and the last ranks may take one less.

    It is no ``BatchSampler`` and has no attribute ``batch_size`` on purpose: Lightning Fabric rewrites samplers that
    are or have, and then every rank sees a part of each plate.

    Args:
        rows: (n,) the rows of the screen to serve, e.g. a split.
        groups: (n,) the group of each of ``rows``, any integers.
        batch_size: most rows in a batch, controls included.
        max_groups: most groups in a batch.
        parts: fewest parts that a group is cut into.
        controls: (n,) bool, which of ``rows`` are negative controls; read only if ``num_controls`` > 0.
        num_controls: control rows that a batch holds of each of its groups.
        shuffle: random order.
        seed: 0 or more.
        rank: number of this process among ``world_size``.
        world_size: number of processes.

    Raises:
        ConfigError: numbers that contradict each other or the data, e.g. more ``max_groups`` than there are groups.
        DataError: there is nothing to serve, or ``num_controls`` > 0 and a group has no control row.
    """

    def __init__(
        self,
        rows: np.ndarray,
        groups: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        max_groups: int = 1,
        parts: int | None = None,
        controls: np.ndarray | None = None,
        num_controls: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows = np.asarray(rows, np.int64)
        if not len(self.rows):
            raise DataError("there are no rows to make batches of; choose a split that has rows")
        _check_numbers(groups is not None, batch_size, max_groups, parts, num_controls, seed)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes; ranks count from 0")
        self.num_controls, self.shuffle, self.seed = num_controls, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

        ids = np.zeros(len(self.rows), np.int64) if groups is None else np.asarray(groups)
        is_control = np.zeros(len(self.rows), bool)
        if num_controls:
            if controls is None:
                raise ValueError("num_controls needs the array controls")
            is_control = np.asarray(controls, bool)
        if not len(self.rows) == len(ids) == len(is_control):
            raise ValueError(f"{len(self.rows)} rows, {len(ids)} groups, {len(is_control)} controls: give one a row")

        self._perturbed, self._controls = np.flatnonzero(~is_control), np.flatnonzero(is_control)
        if not len(self._perturbed):
            raise DataError(f"all {len(self.rows)} rows are controls; with num_controls, batches need other rows too")
        names, group = np.unique(ids[self._perturbed], return_inverse=True)
        self._group = group.astype(np.min_scalar_type(len(names)))  # up to 16 bits, numpy sorts in linear time
        sizes = np.bincount(group)
        if max_groups > len(names):
            raise ConfigError(
                f"max_groups is {max_groups}, but these rows have only {len(names)} groups; lower "
                f"dataloaders.max_groups (for cells: num_plates_per_batch) to at most {len(names)}, or delete it"
            )
        if num_controls:
            slot = np.searchsorted(names, ids[self._controls]).clip(max=len(names) - 1)
            known = names[slot] == ids[self._controls]  # the others are of groups without a perturbed row
            self._controls, self._control_group = self._controls[known], slot[known].astype(self._group.dtype)
            self._control_sizes = np.bincount(slot[known], minlength=len(names))
            self._control_starts = np.cumsum(self._control_sizes) - self._control_sizes
            if not self._control_sizes.all():
                raise DataError(
                    f"group (plate id) {names[self._control_sizes.argmin()]} has no control row, but num_controls is "
                    f"{num_controls}; mark its controls, leave it out, or set num_controls to 0"
                )

        self._parts = np.full(len(names), parts or 1)  # of each group
        if batch_size is not None:
            self._parts = np.maximum(self._parts, -(-sizes // (batch_size // max_groups - num_controls)))
        self._parts = np.minimum(self._parts, sizes)
        self._part_group, self._part_number = _runs(self._parts)
        size, longer = np.divmod(sizes, self._parts)
        part_sizes = size[self._part_group] + (self._part_number < longer[self._part_group])
        self._part_stops = np.cumsum(part_sizes)
        self._part_starts = self._part_stops - part_sizes
        # the fewest that hold at most max_groups parts each and no two parts of one group
        self._num_batches = int(max(-(-self._parts.sum() // max_groups), self._parts.max()))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of this rank's first batches to leave out (to resume within an epoch).

        Raises:
            ConfigError: the epoch has fewer than ``start`` batches.
        """
        if not 0 <= start <= self._epoch_length():
            raise ConfigError(
                f"cannot start at batch {start} of an epoch of {self._epoch_length()} batches; "
                "resume with the data and the batch size that the run began with"
            )
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """How many batches iterating now yields: those of this rank in an epoch, less ``start``."""
        return self._epoch_length() - self.start

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch = self._draw_epoch()
        first = self.rank + self.start * self.world_size
        numbers = range(first, first + len(self) * self.world_size, self.world_size)
        return (self._batch(epoch, number % self._num_batches) for number in numbers)

    def _epoch_length(self) -> int:
        missing = 0 if self.shuffle else self.rank
        return -(-(self._num_batches - missing) // self.world_size)

    def _draw_epoch(self) -> _Epoch:
        rng = None
        if self.shuffle:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        order = self._perturbed[_by_group(self._group, rng)]
        control_order = self._controls
        if self.num_controls:
            control_order = self._controls[_by_group(self._control_group, rng)]
        return _Epoch(order, control_order, *_combine(self._parts, self._num_batches, rng))

    def _batch(self, epoch: _Epoch, number: int) -> np.ndarray:
        pieces = []
        for part in epoch.parts[epoch.bounds[number] : epoch.bounds[number + 1]]:
            pieces.append(epoch.order[self._part_starts[part] : self._part_stops[part]])
            if self.num_controls:
                pieces.append(epoch.control_order[self._control_places(part)])
        return self.rows[np.concatenate(pieces)]

    def _control_places(self, part: int) -> np.ndarray:
        group = self._part_group[part]
        available = self._control_sizes[group]
        count = min(self.num_controls, available)
        # neighbours on the circle of the group's controls: none twice in a batch, all equally often over the parts
        return self._control_starts[group] + (self._part_number[part] * count + np.arange(count)) % available


def _check_numbers(
    grouped: bool, batch_size: int | None, max_groups: int, parts: int | None, num_controls: int, seed: int
) -> None:
    least = {"batch_size": 1, "max_groups": 1, "parts": 1, "num_controls": 0, "seed": 0}
    values = (batch_size, max_groups, parts, num_controls, seed)
    for (name, bound), value in zip(least.items(), values, strict=True):
        if value is not None and value < bound:
            raise ConfigError(f"{name} is {value}; it must be {bound} or more")
    if not grouped:
        if batch_size is None:
            raise ConfigError("random batches need a batch_size; give one, or group the batches by plate")
        for name, value, unset in (
            ("max_groups", max_groups, 1),
            ("parts", parts, None),
            ("num_controls", num_controls, 0),
        ):
            if value != unset:
                cells = {"max_groups": "num_plates_per_batch", "parts": "num_plate_parts"}.get(name, name)
                raise ConfigError(
                    f"{name} is {value}, but batches are not grouped; group by plate, or delete {name} (cells: {cells})"
                )
    if batch_size is not None and batch_size // max_groups <= num_controls:
        raise ConfigError(
            f"batch_size is {batch_size}, too small for 1 row and {num_controls} controls of each of {max_groups} "
            f"groups; raise it to at least {max_groups * (num_controls + 1)}, or lower max_groups or num_controls"
        )


def _by_group(group: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Positions (n,) ordered by group; within a group random, or ascending without ``rng``."""
    if rng is None:
        return group.argsort(kind="stable")
    shuffled = rng.permutation(len(group))
    return shuffled[group[shuffled].argsort(kind="stable")]


def _runs(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For consecutive runs of these lengths: the run that each element belongs to, and its number within the run."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    return run, np.arange(len(run)) - (np.cumsum(lengths) - lengths)[run]


def _combine(parts: np.ndarray, num_batches: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Deal the parts of all groups out to batches, no two parts of one group to the same batch.

    The parts, group by group, are wrapped around ``num_batches`` columns, layer upon layer (McNaughton 1959,
    "Scheduling with deadlines and loss functions"). As no group has more parts than there are columns, none meets
    itself, and the columns differ by at most one part. To make it random, groups are shuffled, and so is every layer
    on its own; only a group that runs on into the next layer must there go to columns that it left free in the first.

    Args:
        parts: (G,) how many parts each group has, at most ``num_batches``; parts are numbered group by group.
        num_batches: how many batches to fill.
        rng: None deals in the given order.

    Returns:
        Numbers of the parts batch by batch (P,), and where each batch begins among them (num_batches + 1,).
    """
    groups = np.arange(len(parts)) if rng is None else rng.permutation(len(parts))
    stops = np.cumsum(parts[groups])
    run, number = _runs(parts[groups])
    dealt = (np.cumsum(parts) - parts)[groups][run] + number
    batch = np.empty(len(dealt), np.int64)
    column = np.arange(num_batches) if rng is None else rng.permutation(num_batches)
    for begin in range(0, len(dealt), num_batches):
        if rng is not None and begin:
            group = run[begin]
            before = begin - (stops[group] - parts[groups[group]])  # its parts in the last columns of the layer before
            free = rng.permutation(column[: num_batches - before])
            head, rest = np.split(free, [stops[group] - begin])
            column = np.concatenate([head, rng.permutation(np.concatenate([rest, column[num_batches - before :]]))])
        layer = batch[begin : begin + num_batches]
        layer[:] = column[: len(layer)]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(batch, minlength=num_batches))])
    return dealt[batch.argsort(kind="stable")], bounds
