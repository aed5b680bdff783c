"""Where batch norm takes its mean and variance from: one word for training, one word for inference.

Every method is one formula. For each group of rows (a plate, an experiment, whatever is normalized together) and every
channel of a layer, with m and v the mean and the biased variance of each row::

    mean = (1 - s) * sum of w m                    + s * mean of the prior
    var  = (1 - s) * sum of w (v + (m - sum w m)²) + s * variance of the prior

The row weights w are not negative and add up to 1 in each group; s is the share of a stored prior. A word of
:data:`WORDS` says what w and the prior are, and so far s is 0 where rows count and 1 where a prior stands in their
place. A new way of taking statistics with either is a new entry there; one between them also blends the two in the
layer (:meth:`.PlateBatchNorm.normalize` takes any moments) and where a plate runs in chunks.

This module owns the words, their checks and their messages. What a script's published keys mean is translated into
words once, in the script; nothing below knows those keys.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.norms.plate_batch_norm import PlateContext, PlateRows, Stored, device_of, plate_name, shared_context
from biomass.screen import PLATE, Screen


def all_rows(controls: Tensor) -> None:
    """Every row counts alike, for which no weights are needed."""


def control_rows(controls: Tensor) -> Tensor:
    """The controls count alike, and no other row: (N,) bool → (N,) bool."""
    return controls


CONTROLS_A_BATCH = 8
"""How many controls a training batch holds of each group where statistics come from them, if nobody says a number."""


class Word(NamedTuple):
    """One way of taking statistics.

    Attributes:
        meaning: for messages and for people.
        weights: from the flags of the control rows (N,) to the weights of all rows, (N,), flags or numbers, which are
            scaled to a sum of 1 in each group; or to None where all count alike. None: no row counts, and the share of
            the prior is 1.
        prior: what is stored: ``running`` averages of training, or the ``calibrated`` moments of the rows' own group.
        by_group: each group has its own statistics; else all rows of a batch share one set, whatever they are of.
    """

    meaning: str
    weights: Callable[[Tensor], Tensor | None] | None = None
    prior: Stored | None = None
    by_group: bool = True


WORDS: Mapping[str, Word] = {
    "running": Word("plain batch norm: the batch in training, running averages at inference", None, "running", False),
    "batch": Word("all rows of the batch, whatever plates they are of", all_rows, by_group=False),
    "plate": Word("all rows of the plate: BEN, or AdaBN where training was plain", all_rows),
    "controls": Word("the negative controls of the plate, applied to all its rows", control_rows),
    "calibrated": Word("the stored moments of the plate, for any of its rows in any order", None, "calibrated"),
}
"""What statistics are taken from, by name. *Plate* stands for whatever the groups are."""


def find_word(name: str) -> Word:
    """The entry of :data:`WORDS`.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in WORDS:
        raise ConfigError(f"statistics '{name}' are unknown; {did_you_mean(name, WORDS)}", "statistics")
    return WORDS[name]


@contextmanager
def plate_statistics(
    network: nn.Module,
    plates: Tensor | None,
    word: str = "plate",
    *,
    weights: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[None]:
    """Run ``network`` with the statistics of plates: ``with plate_statistics(network, plates): network(images)``.

    All bookkeeping happens here, on the host; inside, no layer waits for the device. ``plates`` and ``weights``
    belong on the host therefore. Contexts nest, and end with whatever was in force before, also after an error. With
    activation checkpointing call ``backward`` inside as well: it runs the layers again.

    Args:
        network: holds layers of :func:`biomass.norms.convert`; may be wrapped by ``torch.compile``, DDP or Fabric.
        plates: (N,) integer group of each row of the batch; None takes the whole batch as one group.
        word: one of :data:`WORDS`.
        weights: (N,) how much each row counts in the statistics of its plate, 0 or more, in any unit; flags, such as
            those of the control rows, are weights, too. None: all rows alike. Read where rows at hand count.
        names: readable name of each plate id, for error messages.

    Raises:
        ConfigError: an unknown word; ``controls`` without weights; or statistics by plate are asked of a network
            without plate-aware norms.
        DataError: lengths differ; no row of a plate counts; a plate is not calibrated.

    >>> from biomass.norms import convert
    >>> norm = convert(nn.BatchNorm1d(1, affine=False)).eval()
    >>> x = torch.tensor([[1.0], [3.0], [100.0], [300.0]])
    >>> with plate_statistics(norm, torch.tensor([0, 0, 1, 1])):
    ...     norm(x).flatten().round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    chosen = find_word(word)
    if not chosen.by_group:
        plates = None
    context = shared_context(network)
    if context is None:
        if chosen.prior == "running" or (plates is None and weights is None):
            yield  # nothing in the network depends on it
            return
        raise ConfigError(
            "the network has no plate-aware batch norm, so that it cannot take statistics of plates; choose one with "
            "batch norm (resnet50), train it vanilla, or call biomass.norms.convert on it first",
            "statistics",
        )
    before = context.rows
    device = device_of(network)
    if chosen.weights is not None:
        if word == "controls" and weights is None:
            raise ConfigError(
                "statistics of controls need to know which rows are controls; give weights, one flag a row"
            )
        context.rows = _rows_at_hand(plates, weights, names, device)
    elif chosen.prior == "calibrated":
        context.rows = _calibrated_rows(context, plates, names, device)
    else:
        context.rows = PlateRows(stored=chosen.prior, smallest="the whole batch")
    try:
        yield
    finally:
        context.rows = before


@dataclass(frozen=True)
class Statistics:
    """Where batch norm takes its mean and variance from, for one screen.

    Attributes:
        word: one of :data:`WORDS`.
        by: the columns whose values together make a group.
        names: a readable name for each group, for messages.
    """

    word: str = "plate"
    by: tuple[str, ...] = PLATE
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        find_word(self.word)

    @classmethod
    def over(cls, screen: Screen, word: str, by: Sequence[str] = PLATE) -> "Statistics":
        """The statistics of ``word`` over the groups of ``screen``.

        Raises:
            ConfigError: an unknown word; or a column that the screen does not have.
        """
        return cls(word, tuple(by), screen.group_names(by))

    @property
    def by_group(self) -> bool:
        """Whether each group has its own statistics."""
        return WORDS[self.word].by_group

    @property
    def whole_groups(self) -> bool:
        """Whether all rows of a group must run together, as its statistics come from the rows at hand."""
        return self.by_group and WORDS[self.word].weights is not None

    def weights(self, controls: Tensor) -> Tensor | None:
        """The weight of each row in the statistics of its group, from the flags of the controls (N,).

        Returns:
            (N,) flags or numbers, or None where all rows count alike or none does.
        """
        weights = WORDS[self.word].weights
        return None if weights is None else weights(controls)

    def of(self, network: nn.Module, groups: Tensor, controls: Tensor) -> AbstractContextManager[None]:
        """The context under which ``network`` runs on rows of these ``groups`` (N,) with these ``controls`` (N,)."""
        return plate_statistics(network, groups, self.word, weights=self.weights(controls), names=self.names)

    def check(self, screen: Screen, *splits: str) -> None:
        """Make sure that every group has the rows that its statistics are taken from.

        Args:
            screen: the one that the groups are of.
            splits: those that the network will run on, each by itself; none for the whole screen at once.

        Raises:
            DataError: a group without a row that counts, such as a plate without controls; names the first.
        """
        if not self.whole_groups:
            return
        for rows in [screen.rows(split) for split in splits] or [np.arange(len(screen))]:
            groups = screen.groups(self.by)[rows]
            weights = self.weights(torch.from_numpy(screen.negative_controls[rows]))
            lacking = groups[:0] if weights is None else np.setdiff1d(groups, groups[weights.numpy() > 0])
            if len(lacking):
                names = self.names if self.names is not None else screen.group_names(self.by)
                others = f" (nor have {len(lacking) - 1} others)" if len(lacking) > 1 else ""
                raise DataError(
                    f"plate '{names[lacking[0]]}'{others} has no negative control, from which it is to be normalized; "
                    "mark its controls, leave it out, or take statistics of all rows",
                    "statistics",
                )


class Method(NamedTuple):
    """How a network is trained and applied: the word and the columns of a group, in training and at inference.

    Attributes:
        train: the word for training; where it goes by group, batches are drawn from groups.
        eval: the word for inference.
        train_by: columns that make a group in training.
        eval_by: columns that make a group at inference.
        max_groups: groups a training batch, at most.
        num_controls: controls that every training batch holds of each of its groups; None: what the word needs.
    """

    train: str
    eval: str
    train_by: tuple[str, ...] = PLATE
    eval_by: tuple[str, ...] = PLATE
    max_groups: int = 1
    num_controls: int | None = None

    def override(self, train: str | None, eval: str | None, by: Sequence[str] | None) -> "Method":
        """The method with what a user chose by words in place of what a script's published keys mean.

        Args:
            train: a word for training, None: as it is.
            eval: a word for inference, None: as it is.
            by: columns of a group, for both; None: as they are.

        Returns:
            The method, complete: batches that are mixed have one group and no quota of controls.

        Raises:
            ConfigError: an unknown word; or one that cannot be trained with.

        >>> Method("running", "running").override("controls", "plate", ["experiment"])
        Method(train='controls', eval='plate', train_by=('experiment',), eval_by=('experiment',), max_groups=1,
            num_controls=8)
        """
        method = self._replace(
            train=train or self.train,
            eval=eval or self.eval,
            train_by=tuple(by or self.train_by),
            eval_by=tuple(by or self.eval_by),
        )
        find_word(method.eval)
        if find_word(method.train).prior == "calibrated":
            trainable = [name for name, word in WORDS.items() if word.prior != "calibrated"]
            raise ConfigError(
                f"statistics '{method.train}' are for inference: they belong to weights that do not change; train with "
                f"{', '.join(trainable)}",
                "statistics",
            )
        if not WORDS[method.train].by_group:
            return method._replace(max_groups=1, num_controls=0)
        if method.num_controls is None:
            method = method._replace(num_controls=CONTROLS_A_BATCH if method.train == "controls" else 0)
        return method

    @property
    def batches_by(self) -> tuple[str, ...] | None:
        """The columns that training batches are drawn by, None where batches are mixed."""
        return self.train_by if WORDS[self.train].by_group else None

    def settings(self) -> dict[str, Any]:
        """What two runs must share to be one, as plain values: columns only where statistics go by group.

        >>> Method("running", "plate").override(None, None, None).settings()
        {'train': 'running', 'eval': 'plate', 'eval_by': ['experiment', 'plate'], 'max_groups': 1, 'num_controls': 0}
        """
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in self._asdict().items()}
        by_group = {"train_by": WORDS[self.train].by_group, "eval_by": WORDS[self.eval].by_group}
        return {key: value for key, value in lists.items() if by_group.get(key, True)}


def _rows_at_hand(
    plates: Tensor | None, weights: Tensor | None, names: Sequence[str] | None, device: torch.device
) -> PlateRows:
    """What the layers must know where statistics come from the rows of the batch."""
    if plates is None and weights is None:
        return PlateRows(smallest="the whole batch")
    if plates is None:
        assert weights is not None
        ids, group = ["the whole batch"], torch.zeros(len(weights), dtype=torch.long)
    else:
        unique, group = _unique(plates)
        ids = [plate_name(plate, names) for plate in unique]
    if weights is not None and weights.shape != group.shape:
        raise DataError(f"{len(weights)} weights were given for {len(group)} plates; give one a row")
    used = torch.ones(len(group), dtype=torch.float64) if weights is None else weights.cpu().double()
    total = torch.bincount(group, weights=used, minlength=len(ids))
    count = torch.bincount(group, weights=(used > 0).double(), minlength=len(ids))
    smallest = int(count.argmin())
    if count[smallest] == 0:
        raise DataError(
            f"plate '{ids[smallest]}' has no control row among its {int((group == smallest).sum())} rows in the batch; "
            "draw controls into every batch of a plate, or take statistics of all rows",
            "num_controls",
        )
    if len(ids) == 1 and weights is None:
        return PlateRows(group, smallest=ids[0])
    spread = (group[:, None] == torch.arange(len(ids))).double()
    average = (spread * used[:, None] / total).T.contiguous()
    lone = bool(count[smallest] == 1)
    return PlateRows(group, lone, ids[smallest], _send(average, device), _send(spread, device))


def _calibrated_rows(
    context: PlateContext, plates: Tensor | None, names: Sequence[str] | None, device: torch.device
) -> PlateRows:
    """What the layers must know where statistics were stored."""
    if plates is None:
        raise ConfigError("calibrated statistics need the plate of every row; give plates")
    unique, group = _unique(plates)
    missing = [plate for plate in unique if plate not in context.slots]
    if missing:
        raise DataError(
            f"plate '{plate_name(missing[0], names)}' is not among the {len(context.slots)} calibrated plates; "
            "calibrate over its images first, or take the statistics of the rows at hand",
            "calibrate",
        )
    slots = torch.tensor([context.slots[plate] for plate in unique])
    return PlateRows(group, slots=_send(slots if len(unique) == 1 else slots[group], device), stored="calibrated")


def _unique(plates: Tensor) -> tuple[list[int], Tensor]:
    """The plate ids of a batch, ascending, and the position in them of every row (N,)."""
    if plates.dim() != 1 or not len(plates):
        raise DataError(f"plates have the shape {tuple(plates.shape)}; give one plate a row, (N,), of at least one row")
    unique, group = torch.unique(plates.cpu(), return_inverse=True)
    return unique.tolist(), group


def _send(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
