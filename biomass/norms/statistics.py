"""Where batch norm takes its mean and variance from: one word for training, one word for inference.

Every method is one formula. For each group of rows (a plate, an experiment, whatever is normalized together) and every
channel of a layer, with m and v the mean and the biased variance of each row::

    mean = (1 - s) * sum of w m                    + s * mean of the prior
    var  = (1 - s) * sum of w (v + (m - sum w m)²) + s * variance of the prior

The row weights w are not negative and add up to 1 in each group; s is the share of a stored prior. A word of
:data:`WORDS` says what w, the prior and s are. Before the prior comes in, what the rows are composed of may be taken
out of their moments, see :mod:`biomass.norms.tuning`. A new way of taking statistics is a new entry.

This module owns the words, their checks and their messages. What a script's published keys mean is translated into
words once, in the script; nothing below knows those keys.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.norms.pieces import runs_of
from biomass.norms.plate_batch_norm import (
    Correction,
    Members,
    PlateContext,
    PlateRows,
    Stored,
    device_of,
    plate_name,
    shared_context,
)
from biomass.norms.tuning import Mixture, Rows, Tuning, balanced, shrunk, stack_corrections
from biomass.vocabulary import PLATE, control_numbers

if TYPE_CHECKING:
    from biomass.screen import Screen


def all_rows(rows: Rows, tuning: Tuning | None) -> Mixture:
    """Every row counts alike, for which no weights are needed."""
    return Mixture()


def control_rows(rows: Rows, tuning: Tuning | None) -> Mixture:
    """The controls count alike, and no other row."""
    return Mixture(rows.reference)


def joint_rows(rows: Rows, tuning: Tuning | None) -> Mixture:
    """All rows, the controls counting for two thirds of them: CS-ARM-BN takes 64 treated rows and 128 controls.

    With that many no weights are needed. With other numbers it is what drawing so many gives on average. All rows count
    alike where all or none of them are controls.

    >>> flags = torch.tensor([True, True, False, False])
    >>> joint_rows(Rows(flags.char(), flags), None).weights.tolist()
    [2.0, 2.0, 1.0, 1.0]
    """
    controls = int(rows.reference.sum())
    treated = len(rows.reference) - controls
    if not controls or not treated or controls == 2 * treated:
        return Mixture()
    return Mixture(torch.where(rows.reference, 2 * treated / controls, 1.0).double())


CONTROLS_A_BATCH = 8
"""How many controls a training batch holds of each group where statistics come from them, if nobody says a number."""


class Word(NamedTuple):
    """One way of taking statistics.

    Attributes:
        meaning: for messages and for people.
        mixture: from the rows of a group, and what is known of training plates, to the weights of the rows and what is
            done to their moments. None: no row counts, and the share of the prior is 1.
        prior: what is stored: ``running`` averages of training, or the ``calibrated`` moments of the rows' own group.
        by_group: each group has its own statistics; else all rows of a batch share one set, whatever they are of.
        whole: they come from all rows of a group, in however many batches these are read; else from those of one batch.
        tuned: it needs what is known of training plates, and cannot be trained with.
        needs_controls: a group without controls is an error.
        passes: how often a network that classifies runs, each time with what it said the time before: k passes cost k
            times one, and a pass of any word costs what one of ``plate`` does.
        adapts: the affine parameters of the norms are adapted to each plate, for which a network must classify; it
            cannot be trained with.
    """

    meaning: str
    mixture: Callable[[Rows, Any], Mixture] | None = None
    prior: Stored | None = None
    by_group: bool = True
    whole: bool = True
    tuned: bool = False
    needs_controls: bool = False
    passes: int = 1
    adapts: bool = False


WORDS: Mapping[str, Word] = {
    "running": Word("plain batch norm: the batch in training, running averages at inference", None, "running", False),
    "batch": Word("all rows of the batch, whatever plates they are of", all_rows, by_group=False),
    "plate": Word("all rows of the plate", all_rows),
    "block": Word("the rows of the plate that are in the same batch: ARM-BN", all_rows, whole=False),
    "joint": Word("all rows of the plate, of which its controls make up two thirds: CS-ARM-BN", joint_rows),
    "controls": Word("the controls of the plate, applied to all its rows", control_rows, needs_controls=True),
    "calibrated": Word("the stored moments of the plate, for any of its rows in any order", None, "calibrated"),
    "shrunk": Word("all rows of the plate, towards its controls and an average training plate", shrunk, tuned=True),
    "balanced": Word(
        "all rows of the plate, as if every class were there alike; its controls alone where nothing is classified",
        balanced,
        tuned=True,
        passes=4,
    ),
    "tent": Word(
        "all rows of the batch, and a step towards certain predictions after each: Tent", all_rows, adapts=True
    ),
}
"""What statistics are taken from, by name. *Plate* stands for whatever the groups are."""


def find_word(name: str, advice: str = "statistics") -> Word:
    """The entry of :data:`WORDS`.

    Args:
        name: the word.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in WORDS:
        raise ConfigError(f"statistics '{name}' are unknown; {did_you_mean(name, WORDS)}", advice)
    return WORDS[name]


NO_NORM = (
    "the network has no plate-aware batch norm, so that it cannot take statistics of plates; choose one with batch "
    "norm (resnet50), standardize its features, train it vanilla, or call biomass.norms.convert on it first"
)


@contextmanager
def plate_statistics(
    network: nn.Module,
    plates: Tensor | None,
    word: str = "plate",
    *,
    weights: Tensor | None = None,
    correction: Correction | None = None,
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
        correction: of the moments of the groups, in ascending order of their numbers: for words that are tuned, as
            :meth:`Statistics.of` makes it.
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
        raise ConfigError(NO_NORM, "statistics")
    before = context.rows
    device = device_of(network)
    if chosen.mixture is not None:
        if chosen.needs_controls and weights is None:
            raise ConfigError(
                f"statistics of {word} need to know which rows are controls; give weights, one flag a row"
            )
        if chosen.tuned and correction is None:
            raise ConfigError(f"statistics '{word}' correct what rows tell; use Statistics.of, which knows how")
        context.rows = _rows_at_hand(plates, weights, names, device, correction)
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
        controls: which rows are meant by controls, see :data:`biomass.screen.KINDS`.
    """

    word: str = "plate"
    by: tuple[str, ...] = PLATE
    names: Sequence[str] | None = None
    controls: str = "negative"

    def __post_init__(self) -> None:
        find_word(self.word)
        control_numbers(self.controls)

    @classmethod
    def labelled(cls, label: str, by: Sequence[str], names: Sequence[str] | None, controls: str) -> "Statistics":
        """The statistics of a :attr:`label`, a word with or without a kind of controls.

        Args:
            label: such as ``controls/all``.
            by: columns that make a group.
            names: of the groups.
            controls: the kind, where the label does not say it.

        Raises:
            ConfigError: an unknown word or kind of controls.

        >>> Statistics.labelled("controls/all", PLATE, None, "negative").controls
        'all'
        """
        word, _, kind = label.partition("/")
        return cls(word, tuple(by), names, kind or controls)

    @classmethod
    def over(cls, screen: "Screen", word: str, by: Sequence[str] = PLATE, controls: str = "negative") -> "Statistics":
        """The statistics of ``word`` over the groups of ``screen``.

        Raises:
            ConfigError: an unknown word or kind of controls; or a column that the screen does not have.
        """
        return cls(word, tuple(by), screen.group_names(by), controls)

    @property
    def by_group(self) -> bool:
        """Whether each group has its own statistics."""
        return WORDS[self.word].by_group

    @property
    def whole_groups(self) -> bool:
        """Whether all rows of a group must run together, as its statistics come from the rows at hand."""
        return self.by_group and WORDS[self.word].mixture is not None and WORDS[self.word].whole

    @property
    def blocks(self) -> bool:
        """Whether each batch of a group's rows has statistics of its own, so that the size of batches matters."""
        return self.by_group and not WORDS[self.word].whole

    @property
    def label(self) -> str:
        """What to call the word in a table or a file: with the kind of controls, where that is not the negative ones.

        >>> Statistics("controls", controls="all").label, Statistics("plate", controls="all").label
        ('controls/all', 'plate')
        """
        word = WORDS[self.word]
        plain = self.controls == "negative" or not (word.needs_controls or word.tuned)
        return self.word if plain else f"{self.word}/{self.controls}"

    @property
    def tuned(self) -> bool:
        """Whether the network must know of its training plates."""
        return WORDS[self.word].tuned

    @property
    def adapts(self) -> bool:
        """Whether the affine parameters of the norms are adapted to each plate."""
        return WORDS[self.word].adapts

    def passes(self, network: nn.Module) -> int:
        """How often a network that classifies runs, each time with what it said the time before."""
        word = WORDS[self.word]
        return word.passes if word.tuned and _tuning_of(network, self.word).mode == "classes" else 1

    def has_what_it_needs(self, controls: Tensor) -> bool:
        """Whether rows with these ``controls`` (N,) can make statistics of a group."""
        return not WORDS[self.word].needs_controls or bool(self._reference(controls).any())

    def _reference(self, controls: Tensor) -> Tensor:
        return torch.isin(controls, torch.tensor(control_numbers(self.controls), dtype=controls.dtype))

    def mixture(self, network: nn.Module, controls: Tensor, logits: Tensor | None = None) -> Mixture:
        """How the rows of one group make its statistics.

        Args:
            network: knows what was learned of training plates.
            controls: (N,) what each row is a control of, as :attr:`biomass.screen.Screen.controls`.
            logits: (N, K), what the network said of the rows the pass before; None in the first.

        Raises:
            ConfigError: the word needs to know of training plates, and the network does not.
        """
        word = WORDS[self.word]
        if word.mixture is None:
            return Mixture()
        tuning = _tuning_of(network, self.word) if word.tuned else None
        said = None if logits is None else logits.detach().cpu().double()
        return word.mixture(Rows(controls, self._reference(controls), said), tuning)

    def of(
        self, network: nn.Module, groups: Tensor, controls: Tensor, logits: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """The context under which ``network`` runs on rows of these groups.

        Args:
            network: with plate-aware norms.
            groups: (N,) of the rows.
            controls: (N,) of the rows, as :attr:`biomass.screen.Screen.controls`.
            logits: (N, K), what the network said of the rows the pass before; None in the first.
        """
        numbers = groups.unique()
        if not WORDS[self.word].tuned and (len(numbers) == 1 or not self.by_group):
            weights = self.mixture(network, controls).weights
            return plate_statistics(network, groups, self.word, weights=weights, names=self.names)
        weights, mixtures = torch.ones(len(groups), dtype=torch.float64), []
        for group in numbers:
            here = groups == group
            one = self.mixture(network, controls[here], None if logits is None else logits[here.to(logits.device)])
            if one.weights is not None:
                weights[here] = one.weights.double()
            mixtures.append(one)
        correction = stack_corrections(mixtures)
        return plate_statistics(network, groups, self.word, weights=weights, correction=correction, names=self.names)

    def check(self, screen: "Screen", *splits: str) -> None:
        """Make sure that every group has the rows that its statistics are taken from.

        Args:
            screen: the one that the groups are of.
            splits: those that the network will run on, each by itself; none for the whole screen at once.

        Raises:
            DataError: a group without a row that counts, such as a plate without controls; names the first.
        """
        if not WORDS[self.word].needs_controls:
            return
        reference, kind = screen.reference(self.controls), "" if self.controls == "all" else f"{self.controls} "
        for rows in [screen.rows(split) for split in splits] or [np.arange(len(screen))]:
            groups = screen.groups(self.by)[rows]
            lacking = np.setdiff1d(groups, groups[reference[rows]])
            if len(lacking):
                names = self.names if self.names is not None else screen.group_names(self.by)
                others = f" (nor have {len(lacking) - 1} others)" if len(lacking) > 1 else ""
                raise DataError(
                    f"plate '{names[lacking[0]]}'{others} has no {kind}control, from which it is to be normalized; "
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
        controls: which are meant by controls, see :data:`biomass.screen.KINDS`.
        pairs: every training batch is drawn from two groups or more, even where statistics do not go by group.
    """

    train: str
    eval: str
    train_by: tuple[str, ...] = PLATE
    eval_by: tuple[str, ...] = PLATE
    max_groups: int = 1
    num_controls: int | None = None
    controls: str = "negative"
    pairs: bool = False

    def override(
        self,
        train: str | None,
        eval: str | None,
        by: Sequence[str] | None,
        controls: str | None = None,
        pairs: bool = False,
    ) -> "Method":
        """The method with what a user chose by words in place of what a script's published keys mean.

        Args:
            train: a word for training, None: as it is.
            eval: a word for inference, None: as it is.
            by: columns of a group, for both; None: as they are.
            controls: which are meant by controls; None: as they are.
            pairs: see :attr:`pairs`; the objective says so, no key of a script's does.

        Returns:
            The method, complete: batches that are mixed have one group and no quota of controls.

        Raises:
            ConfigError: an unknown word or kind of controls; or a word that cannot be trained with.

        >>> Method("running", "running").override("controls", "plate", ["experiment"])
        Method(train='controls', eval='plate', train_by=('experiment',), eval_by=('experiment',), max_groups=1,
            num_controls=8, controls='negative', pairs=False)
        """
        method = self._replace(
            train=train or self.train,
            eval=eval or self.eval,
            train_by=tuple(by or self.train_by),
            eval_by=tuple(by or self.eval_by),
            controls=controls or self.controls,
            max_groups=max(2, self.max_groups) if pairs else self.max_groups,
            pairs=pairs,
        )
        find_word(method.eval, "method")
        find_word(method.train, "method")
        control_numbers(method.controls)
        trainable = [
            name for name, word in WORDS.items() if not (word.prior == "calibrated" or word.tuned or word.adapts)
        ]
        if method.train not in trainable:
            raise ConfigError(
                f"statistics '{method.train}' are for inference: they belong to weights that do not change; train with "
                f"{', '.join(trainable)}",
                "statistics",
            )
        if method.batches_by is None:
            return method._replace(max_groups=1, num_controls=0)
        if method.num_controls is None:
            method = method._replace(num_controls=CONTROLS_A_BATCH if WORDS[method.train].needs_controls else 0)
        return method

    def check_network(self, network: nn.Module) -> None:
        """Raise ConfigError where statistics by group are asked of a network without plate-aware batch norm."""
        if shared_context(network) is None and (WORDS[self.train].by_group or WORDS[self.eval].by_group):
            raise ConfigError(NO_NORM, "statistics")

    @property
    def batches_by(self) -> tuple[str, ...] | None:
        """The columns that training batches are drawn by, None where batches are mixed."""
        return self.train_by if WORDS[self.train].by_group or self.pairs else None

    def statistics(self, screen: "Screen") -> tuple[Statistics, Statistics]:
        """The statistics in training, and those at inference.

        Raises:
            ConfigError: a column that the screen does not have.
        """
        return (
            Statistics.over(screen, self.train, self.train_by, self.controls),
            Statistics.over(screen, self.eval, self.eval_by, self.controls),
        )

    def settings(self) -> dict[str, Any]:
        """What two runs must share to be one, as plain values: columns only where statistics go by group.

        >>> Method("running", "plate").override(None, None, None).settings()
        {'train': 'running', 'eval': 'plate', 'eval_by': ['experiment', 'plate'], 'max_groups': 1, 'num_controls': 0}
        """
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in self._asdict().items()}
        kept = {"train_by": self.batches_by is not None, "eval_by": WORDS[self.eval].by_group}
        kept |= {"controls": self.controls != "negative", "pairs": self.pairs}  # else as before there was a choice
        return {key: value for key, value in lists.items() if kept.get(key, True)}


def _rows_at_hand(
    plates: Tensor | None,
    weights: Tensor | None,
    names: Sequence[str] | None,
    device: torch.device,
    correction: Correction | None = None,
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
    if len(ids) == 1 and weights is None and correction is None:
        return PlateRows(group, smallest=ids[0])
    spread = (group[:, None] == torch.arange(len(ids))).double()
    average = (spread * used[:, None] / total).T.contiguous()
    lone = bool(count[smallest] == 1) and (correction is None or correction.share is None)
    if correction is not None:
        correction = Correction(*(None if one is None else _send(one, device) for one in correction))
    members, runs, share = None, None, used / total[group]
    if device.type == "cuda":
        members = Members(_send(group.int(), device), _send(share, device), len(ids))
    elif device.type == "cpu":
        runs = runs_of(group, share, len(ids))
    matrices = _send(average, device), _send(spread, device)
    return PlateRows(group, lone, ids[smallest], *matrices, members, runs, correction=correction)


def _tuning_of(network: nn.Module, word: str) -> Tuning:
    """What the network knows of training plates.

    Raises:
        ConfigError: nothing.
    """
    context = shared_context(network)
    if context is None:
        raise ConfigError(NO_NORM, "statistics")
    if context.tuning is None:
        raise ConfigError(
            f"statistics '{word}' need the moments of training plates, which this network does not know", "tune"
        )
    tuning: Tuning = context.tuning
    return tuning


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
