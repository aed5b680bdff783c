"""One sampler for every kind of batch: mixed, one plate, several plates, whole plates, plates in parts."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from biomass.errors import ConfigError, DataError

_NUMBERS = {
    "batch_size": ("the number of rows in a batch", 1),
    "max_groups": ("the number of groups in a batch", 1),
    "parts": ("the number of parts of a group", 1),
    "num_controls": ("the number of controls of a group in a batch", 0),
    "seed": ("the seed", 0),
}
"""What each number of a sampler means, and the least that it may be."""


class PlateBatches(Sampler[np.ndarray]):
    """Batches of rows, an epoch at a time: ``DataLoader(dataset, sampler=PlateBatches(...), batch_size=None)``.

    A *group* is a plate, an experiment, or whatever ``groups`` numbers. Every group is cut into *parts* whose sizes
    differ by at most one row, and a batch holds parts of at most ``max_groups`` groups, one of each. The order depends
    on ``(seed, epoch)`` alone. All ranks lay out the same batches, and rank r takes batch r, r + world_size, ….

    >>> plates = np.array([7, 7, 7, 7, 8, 8, 8])
    >>> [batch.tolist() for batch in PlateBatches(np.arange(7), plates, shuffle=False)]
    [[0, 1, 2, 3], [4, 5, 6]]
    >>> [batch.tolist() for batch in PlateBatches(np.arange(7), plates, batch_size=4, max_groups=2, shuffle=False)]
    [[0, 1, 4, 5], [2, 3, 6]]

    Args:
        rows: (n,) the rows of the screen to serve, e.g. a split; each once an epoch, but see ``num_controls``.
        groups: (n,) the group of each row, any integers; None for mixed batches of all rows.
        batch_size: most rows in a batch; a group contributes at most ``batch_size // max_groups``, controls included.
            None: groups stay whole (or are cut into ``parts``).
        max_groups: most groups in a batch. Which groups meet is random.
        parts: fewest parts that a group is cut into; a group with fewer rows gives parts of one row.
        controls: (n,) bool, which of ``rows`` are negative controls; read only if ``num_controls`` > 0.
        num_controls: how many control rows of its group every part brings along (all, if the group has fewer), in turn.
            Control rows are then not served otherwise, and a group of nothing else is left out. 0: they are rows as all
            others.
        shuffle: random order. False (evaluation): groups ascend and their rows stand as in ``rows``, in every epoch.
        seed: 0 or more.
        rank: number of this process among ``world_size``.
        world_size: number of processes.

    Raises:
        ConfigError: numbers that contradict each other or the data, e.g. more ``max_groups`` than there are groups.
        DataError: there is nothing to serve, or ``num_controls`` > 0 and a group has no control row.
    """

    # Neither a BatchSampler nor an attribute `batch_size`: Lightning Fabric rewrites samplers that are or have one, and
    # then every rank sees a part of each plate.

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
        numbers = {"batch_size": batch_size, "max_groups": max_groups, "parts": parts, "num_controls": num_controls}
        _check_numbers(groups is not None, {**numbers, "seed": seed})
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes; ranks count from 0")
        if num_controls and controls is None:
            raise ValueError("num_controls needs the array controls")
        self.num_controls, self.shuffle, self.seed = num_controls, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

        n = len(self.rows)
        ids = np.zeros(n, np.int64) if groups is None else np.asarray(groups)
        is_control = np.asarray(controls, bool) if num_controls else np.zeros(n, bool)
        if not n == len(ids) == len(is_control):
            raise ValueError(f"{n} rows, {len(ids)} groups, {len(is_control)} controls: give one a row")
        served = np.flatnonzero(~is_control)
        if not len(served):
            raise DataError(f"all {n} rows are controls; batches with a quota of controls need other rows, too")
        ordered = np.sort(ids[served])  # far faster than what np.unique does for many
        names = ordered[np.append(True, ordered[1:] != ordered[:-1])]
        if max_groups > len(names):
            raise ConfigError(
                f"the number of groups in a batch is {max_groups}, but these rows have only {len(names)} groups; "
                f"ask for at most {len(names)}",
                advice="max_groups",
            )
        self._served = _Groups(served, ids, names)
        self._controls = _Controls(np.flatnonzero(is_control), ids, names, num_controls)
        room = None if batch_size is None else batch_size // max_groups - num_controls
        self._parts = _cut(self._served.sizes, room, parts or 1)
        # the fewest that hold at most max_groups parts each, and no two parts of one group
        self._num_batches = max(-(-len(self._parts.group) // max_groups), int(self._parts.counts.max()))

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

    @property
    def served(self) -> np.ndarray:
        """The rows that batches are made of, (n,) int64."""
        return self.rows

    @property
    def num_batches(self) -> int:
        """How many batches an epoch of all processes has, each counted once."""
        return self._num_batches

    def __len__(self) -> int:
        """How many batches iterating now yields: those of this rank in an epoch, less ``start``."""
        return self._epoch_length() - self.start

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = None
        if self.shuffle:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,)))
        order, controls = self._served.draw(rng), self._controls.draw(rng)
        batches = _deal(self._parts.counts, self._num_batches, rng)
        first = self.rank + self.start * self.world_size
        numbers = range(first, first + len(self) * self.world_size, self.world_size)
        return (self._rows_of(batches[number % self._num_batches], order, controls) for number in numbers)

    def _rows_of(self, parts: np.ndarray, order: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """The rows of some parts, with the controls that they bring along."""
        pieces = []
        for part in parts:
            pieces.append(order[self._parts.starts[part] : self._parts.stops[part]])
            pieces.append(controls[self._controls.places(self._parts.group[part], self._parts.number[part])])
        return self.rows[np.concatenate(pieces)]

    def _epoch_length(self) -> int:
        # In training the first batches come once more at the end, so that all ranks take equally many: a step that one
        # rank lacks would hang the others. In evaluation no batch is repeated, and the last ranks may take one less.
        missing = 0 if self.shuffle else self.rank
        return -(-(self._num_batches - missing) // self.world_size)


class _Groups:
    """Positions of rows, sorted into the groups ``names`` (ascending), which from here on are numbered 0 … G-1.

    ``ids`` (n,) gives the group of every row; rows of other groups are left out, as row 2 here:

    >>> groups = _Groups(np.array([0, 1, 2, 4]), ids=np.array([8, 5, 9, 8, 5]), names=np.array([5, 8]))
    >>> groups.sizes, groups.starts, groups.draw(None)
    (array([2, 1]), array([0, 2]), array([1, 4, 0]))
    """

    def __init__(self, positions: np.ndarray, ids: np.ndarray, names: np.ndarray) -> None:
        group = np.searchsorted(names, ids[positions]).clip(max=len(names) - 1)
        known = names[group] == ids[positions]
        self._positions = positions[known]
        self._group = group[known].astype(np.min_scalar_type(len(names)))  # numpy sorts 16 bits in linear time
        self.sizes = np.bincount(group[known], minlength=len(names))
        self.starts = np.cumsum(self.sizes) - self.sizes

    def draw(self, rng: np.random.Generator | None) -> np.ndarray:
        """The positions group by group; within a group in random order, or ascending without ``rng``."""
        shuffled = np.arange(len(self._group)) if rng is None else rng.permutation(len(self._group))
        return self._positions[shuffled[self._group[shuffled].argsort(kind="stable")]]


class _Controls(_Groups):
    """The control rows of every group, and which of them each part brings along.

    The controls of a group stand on a circle, from which its parts take ``quota`` neighbours in turn. So no part takes
    one twice, and over all parts the uses differ by at most 1. With 5 controls and a quota of 2:

    >>> controls = _Controls(np.arange(5), ids=np.zeros(5, int), names=np.array([0]), quota=2)
    >>> [controls.places(group=0, part=number).tolist() for number in range(4)]
    [[0, 1], [2, 3], [4, 0], [1, 2]]
    """

    def __init__(self, positions: np.ndarray, ids: np.ndarray, names: np.ndarray, quota: int) -> None:
        super().__init__(positions, ids, names)
        if quota and not self.sizes.all():
            raise DataError(
                f"group (plate id) {names[self.sizes.argmin()]} has no control row, but a batch is to hold {quota} of "
                "each of its groups; mark the controls of that group, or leave it out",
                advice="num_controls",
            )
        self.quota = quota

    def places(self, group: int, part: int) -> np.ndarray:
        """Where the controls of part number ``part`` of a group stand in what :meth:`draw` gives."""
        available = self.sizes[group]
        count = min(self.quota, available)
        return self.starts[group] + (part * count + np.arange(count)) % available


class _Parts(NamedTuple):
    """The parts of all groups, numbered group by group."""

    counts: np.ndarray  # (G,) parts of each group
    group: np.ndarray  # (P,) the group that a part belongs to
    number: np.ndarray  # (P,) its number within the group
    starts: np.ndarray  # (P,) its first row, the rows being sorted by group
    stops: np.ndarray  # (P,) the row behind its last


def _cut(sizes: np.ndarray, room: int | None, fewest: int) -> _Parts:
    """Cut groups of these sizes into as few parts of at most ``room`` rows as there can be, but at least ``fewest``.

    Five rows with room for two give parts of 2, 2 and 1 rows, two rows stay whole:

    >>> parts = _cut(np.array([5, 2]), room=2, fewest=1)
    >>> parts.starts.tolist(), parts.stops.tolist(), parts.group.tolist(), parts.number.tolist()
    ([0, 2, 4, 5], [2, 4, 5, 7], [0, 0, 0, 1], [0, 1, 2, 0])
    """
    counts = np.full(len(sizes), fewest)
    if room is not None:
        counts = np.maximum(counts, -(-sizes // room))
    counts = np.minimum(counts, sizes)
    group, number = _runs(counts)
    size, longer = np.divmod(sizes, counts)  # the first `longer` parts of a group get one row more
    stops = np.cumsum(size[group] + (number < longer[group]))
    return _Parts(counts, group, number, np.concatenate([[0], stops[:-1]]), stops)


def _runs(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The run that each element of consecutive runs belongs to, and its place in it: lengths 2, 1 give 0 0 1, 0 1 0."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    return run, np.arange(len(run)) - (np.cumsum(lengths) - lengths)[run]


def _deal(counts: np.ndarray, num_batches: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Deal the parts of all groups out to batches, no two parts of one group to the same batch.

    The parts are written in lines, group after group, a batch being a column (McNaughton 1959, "Scheduling with
    deadlines and loss functions"). Three groups of 2, 3 and 1 parts, numbered 0 … 5, and 3 batches::

        batch      0    1    2
        line 0    A 0  A 1  B 2
        line 1    B 3  B 4  C 5

    >>> _deal(np.array([2, 3, 1]), 3, None)
    [array([0, 3]), array([1, 4]), array([2, 5])]

    A group that runs on into the next line, as B does, ends there before the column in which it began, as it has no
    more parts than there are batches: no batch gets two of it. And batches differ by at most one part.

    With ``rng`` the groups come in random order, and every line is shuffled. Only a group that runs on is not free:
    if line 0 went to batches 2, 0, 1 (so that B 2 is in batch 1), then B 3 and B 4 are drawn among batches 2 and 0,
    and the rest of line 1 among the batches that are left.

    Args:
        counts: (G,) how many parts each group has, at most ``num_batches``; parts are numbered group by group.
        num_batches: how many batches to fill.
        rng: None deals in the given order.

    Returns:
        The numbers of the parts of each batch.
    """
    groups = np.arange(len(counts)) if rng is None else rng.permutation(len(counts))
    run, number = _runs(counts[groups])
    parts = (np.cumsum(counts) - counts)[groups][run] + number  # as they are written
    line = np.arange(num_batches) if rng is None else rng.permutation(num_batches)  # the batch of each column
    lines = [line]
    for begin in range(num_batches, len(parts), num_batches):
        if rng is not None:
            before = number[begin]  # so many parts of the group that runs on stand at the end of the line before
            after = counts[groups[run[begin]]] - before  # and so many at the beginning of this one
            free = rng.permutation(line[: num_batches - before])
            rest = np.concatenate([free[after:], line[num_batches - before :]])
            line = np.concatenate([free[:after], rng.permutation(rest)])
        lines.append(line)
    batch = np.concatenate(lines)[: len(parts)]
    ordered = parts[batch.argsort(kind="stable")]
    stops = np.cumsum(np.bincount(batch, minlength=num_batches)).tolist()
    return [ordered[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def _check_numbers(grouped: bool, values: dict[str, int | None]) -> None:
    for name, value in values.items():
        what, least = _NUMBERS[name]
        if value is not None and value < least:
            raise ConfigError(f"{what} is {value}; it must be {least} or more", advice=name)
    batch_size, max_groups, num_controls = values["batch_size"], values["max_groups"] or 1, values["num_controls"] or 0
    if not grouped:
        if batch_size is None:
            raise ConfigError("mixed batches need a size; give one, or group the batches by plate", advice="batch_size")
        for name, unset in (("max_groups", 1), ("parts", None), ("num_controls", 0)):
            if values[name] != unset:
                raise ConfigError(
                    f"{_NUMBERS[name][0]} is {values[name]}, but batches are not grouped; group them by plate, or "
                    "leave that number out",
                    advice=name,
                )
    if batch_size is not None and batch_size // max_groups <= num_controls:
        raise ConfigError(
            f"a batch of {batch_size} rows has no room for 1 row and {num_controls} controls of each of {max_groups} "
            f"groups; it takes at least {max_groups * (num_controls + 1)} rows, or fewer groups or controls",
            advice="batch_size",
        )
