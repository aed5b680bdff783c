"""Whether a run learned anything: its metrics beside what a network reaches that has not looked at an image."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from biomass.errors import BiomassError, ConfigError, TrainingError
from biomass.loader import BatchSource
from biomass.samplers import CellBatches
from biomass.screen import Screen
from biomass.training.loop import Evaluate, Plan, Training
from biomass.training.overview import Share, commonest

_NEAR = 0.02
"""How near to its chance level a contrastive loss counts as there, as a share of how far it could fall."""
_BATCHES = 200
"""Batches whose sizes say what the chance level is."""
_SLOW, _SECONDS = 10, 1.0
"""How many times the training an evaluation takes, and for how long at least, before the log says so."""


class Chance(NamedTuple):
    """What a contrastive loss is where all projections are alike, and the least that it can be."""

    level: float
    least: float
    candidates: int


def chance_level(batches: BatchSource, temperature: float) -> Chance:
    """The loss of a network that tells no view from another: the log of the number of candidates of a row.

    The least is that of views that coincide, at right angles to all others. Both are means over the rows of the batches
    (Chen et al. 2020, "A simple framework for contrastive learning", equation 1).

    Args:
        batches: of views.
        temperature: of the loss.

    >>> from biomass.samplers import PlateBatches
    >>> fields = PlateBatches(np.arange(4), batch_size=4)
    >>> views = CellBatches(fields, np.arange(4), np.arange(4), "random_single", num_img=2)
    >>> level, least, candidates = chance_level(views, temperature=1.0)
    >>> round(level, 4), round(least, 4), candidates
    (1.9459, 1.1654, 7)
    """
    sizes = np.array([len(rows) for rows in itertools.islice(batches, _BATCHES)])
    views = batches.num_img if isinstance(batches, CellBatches) else 2
    sizes = sizes[sizes > views]
    if not len(sizes):
        return Chance(0.0, 0.0, 0)
    level = np.log(sizes - 1)
    least = np.log(views - 1 + (sizes - views) * math.exp(-1 / temperature))
    highest, lowest = (float((values * sizes).sum() / sizes.sum()) for values in (level, least))
    return Chance(highest, lowest, int(np.median(sizes)) - 1)


def no_better(screen: Screen, split: str, metrics: Mapping[str, float]) -> tuple[float, Share] | None:
    """The accuracy on a split and its commonest class, where always answering that class does as well; else None.

    As well: up to the standard error of the accuracy. A network that gives up the commonest class for others is not
    meant: where treated wells are told apart better than by their own commonest class, it has learned something.

    Args:
        screen: where the split is.
        split: its name.
        metrics: as they are logged.
    """
    rows = screen.rows(split)
    for metric, some in (("accuracy", rows), ("treatments", rows[screen.treated[rows]])):
        value, most = metrics.get(f"{split}/{metric}"), commonest(screen, some)
        if value is None or most is None or most.share == 1:
            if metric == "accuracy":
                return None
            continue
        if value > most.share + _error(most):
            return None
    most = commonest(screen, rows)
    return None if most is None else (metrics[f"{split}/accuracy"], most)


def _error(most: Share) -> float:
    """The standard error of the accuracy of one answer for all images."""
    return math.sqrt(most.share * (1 - most.share) / most.labelled)


def judge_accuracy(
    screen: Screen, splits: Sequence[str], metrics: Mapping[str, float], so_far: bool = False
) -> BiomassError | None:
    """What to say of a classifier that learned nothing, as an error that nobody raises; None where it did.

    Args:
        screen: where the splits are.
        splits: those that were evaluated.
        metrics: of the last evaluation; ``train/accuracy``, where it is there, tells what was not learned.
        so_far: the run goes on. Nothing is said of it then unless its training images are not told apart either.
    """
    found = {split: low for split in splits if (low := no_better(screen, split, metrics)) is not None}
    if not found:
        return None
    shown = "; ".join(
        f"{split}: accuracy {accuracy:.3f}, always '{most.name}' {most.share:.3f}"
        for split, (accuracy, most) in found.items()
    )
    training, most = metrics.get("train/accuracy"), commonest(screen, screen.rows("train"))
    learns = training is None or most is None or training > most.share + _error(most)
    fits = training is not None and most is not None and training > (1 + most.share) / 2
    if so_far and learns:
        return None
    where = "" if len(found) == len(splits) else f" that holds on {' and '.join(found)}"
    began = "so far the network has learned nothing" if so_far else "the network learned nothing"
    if fits:
        where = where or " that holds on other images"
    known = "" if training is None else f"; in training {training:.3f}"
    why = f"it does no better than one answer for all images ({shown}{known})"
    return TrainingError(f"{began}{where}: {why}", "learning")


def judge_loss(
    chances: Mapping[str, Chance], metrics: Mapping[str, float], so_far: bool = False
) -> BiomassError | None:
    """What to say of a contrastive loss at its chance level, as an error that nobody raises; None where it is not.

    Args:
        chances: of every split, ``train`` among them.
        metrics: of the last evaluation, or of training where nothing is evaluated.
        so_far: the run goes on. Nothing is said of it then unless views are not told apart in training either.
    """
    losses = {split: metrics[f"{split}/loss"] for split in chances if f"{split}/loss" in metrics}
    low = {
        split: (loss, chances[split])
        for split, loss in losses.items()
        if loss > chances[split].level - _NEAR * (chances[split].level - chances[split].least)
    }
    evaluated = [split for split in low if split != "train"] if set(losses) != {"train"} else list(low)
    if not evaluated or (so_far and "train" not in low):
        return None
    where = "" if "train" in low or "train" not in losses else f" that holds on {' and '.join(evaluated)}"
    began = "so far the network has learned nothing" if so_far else "the network learned nothing"
    shown = "; ".join(
        f"{split}/loss {loss:.3f}, by chance {chance.level:.3f}, the log of {chance.candidates:,} candidates"
        for split, (loss, chance) in low.items()
    )
    return TrainingError(f"{began}{where}: it tells views apart no better than at random ({shown})", "learning")


@dataclass
class Watched:
    """An evaluation that also looks at how long it takes, and whether anything was learned when it should have been.

    Attributes:
        evaluate: what is called.
        plan: how long the run is.
        judge: from metrics to what is to be said of them while the run goes on.
        warn: says it. Each thing is said once.
    """

    evaluate: Evaluate
    plan: Plan
    judge: Callable[[Mapping[str, float]], BiomassError | None]
    warn: Callable[[BiomassError], None]
    since: float = field(default_factory=time.monotonic)
    said: set[str] = field(default_factory=set)
    low: int = 0

    def __call__(self, run: Training, epoch: int, step: int) -> dict[str, float]:
        began = time.monotonic()
        metrics = self.evaluate(run, epoch, step)
        took, trained = time.monotonic() - began, began - self.since
        goes_on = epoch < self.plan.num_epochs and not self.plan.reached(step)
        if goes_on and epoch and took > max(_SLOW * trained, _SECONDS):
            self._say(
                "slow",
                ConfigError(
                    f"an evaluation takes {took:.1f} s, the training before it {trained:.1f} s: evaluate less often",
                    "evaluate_every",
                ),
            )
        found = self.judge(run.logger.latest | metrics)
        self.low = 0 if found is None else self.low + 1
        # not before the learning rate is high, and not because of a single evaluation
        if found is not None and goes_on and self.low > 1 and 2 * epoch >= self.plan.num_epochs:
            self._say("nothing", found)
        self.since = time.monotonic()
        return metrics

    def _say(self, what: str, error: BiomassError) -> None:
        if what not in self.said:
            self.said.add(what)
            self.warn(error)
