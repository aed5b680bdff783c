"""The training loop: one for all objectives."""

import logging
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from biomass import stopping
from biomass.errors import ConfigError
from biomass.evaluation.pooling import Bags
from biomass.inference import Transform
from biomass.loader import Batch, Loader, SkippedImages
from biomass.norms import Statistics, unwrap
from biomass.objectives import Objective
from biomass.screen import VectorPixels
from biomass.training.checkpoint import Checkpoints, ranks_of
from biomass.training.fits import check_fits
from biomass.training.logger import RunLogger
from biomass.training.numbers import check_gradients, check_metrics, check_weights
from biomass.training.pace import Pace
from biomass.training.together import Averages, Together, all_take_part
from biomass.training.window import Window
from biomass.transforms import Compose

log = logging.getLogger(__name__)

_WIDTH = 80
"""Characters of metrics that a line of the log may have."""

Evaluate = Callable[["Training", int, int], dict[str, float]]
"""From (run, epoch, step) to the metrics of all evaluation splits, named ``<split>/<metric>``."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and what to do how often.

    Attributes:
        num_epochs: passes over the training split.
        clip: largest gradient norm, None for no clipping.
        accumulate: batches whose mean gradient makes a step. The last step of an epoch may have less of them.
        log_every: steps between two lines of the log; the device is waited for there, and at the end of an epoch.
        evaluate_every: epochs between two evaluations; the last epoch is always evaluated.
        max_steps: stop after so many steps in all, to try things out; None for no such bound. With 0 the untrained
            network is evaluated and saved.
        monitor: the metric that names the best checkpoint and that a sweep may optimize, ``<split>/<metric>``;
            larger is better, or smaller where the name ends in ``loss``. None: the last checkpoint is the best.
    """

    num_epochs: int
    clip: float | None = None
    accumulate: int = 1
    log_every: int = 50
    evaluate_every: int = 1
    max_steps: int | None = None
    monitor: str | None = "val/accuracy"

    def __post_init__(self) -> None:
        for name in ("num_epochs", "accumulate", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip is {self.clip}; give a positive norm, or null for no clipping", "clip")

    def check_monitor(self, splits: Collection[str], metrics: Collection[str]) -> None:
        """Raises ConfigError when the monitored metric will not be measured, if any split is evaluated at all.

        Args:
            splits: those that are evaluated.
            metrics: what is measured on them; a name that ends in ``/`` stands for all that begin with it.
        """
        if self.monitor is None:
            return
        split, _, metric = self.monitor.partition("/")
        if splits and split not in splits:
            raise ConfigError(f"monitor '{self.monitor}' names none of the splits {', '.join(splits)}", "monitor")
        if splits and not any(metric == m or (m.endswith("/") and metric.startswith(m)) for m in metrics):
            known = ", ".join(f"{split}/{m}" for m in metrics)
            raise ConfigError(f"monitor '{self.monitor}' is not measured; choose one of: {known}", "monitor")

    def reached(self, step: int) -> bool:
        """Whether no step may follow ``step`` of them."""
        return self.max_steps is not None and step >= self.max_steps

    def better(self, value: float, best: float | None) -> bool:
        """Whether ``value`` of the monitored metric beats ``best``."""
        if best is None:
            return value == value
        return value < best if (self.monitor or "").endswith("loss") else value > best


@dataclass(kw_only=True)
class Training:
    """All parts of a run, put together by a root script; by keyword only.

    Attributes:
        fabric: device and precision.
        network: as set up by ``fabric``.
        optimizer: as set up by ``fabric``.
        lr_schedule: learning rate, step by step.
        loader: the training batches; its sampler's ``set_epoch`` is called here.
        transform: augmentation on the device, ``(images, generator) -> images``.
        objective: what a step minimizes; on the device and in the optimizer, if it has weights of its own.
        statistics: where batch norm takes its statistics from in training.
        logger: TensorBoard and JSON-lines.
        checkpoints: where ``last`` and ``best`` go.
        skipped: counts the images that cannot be read.
        about: what a checkpoint carries beside the weights: ``architecture``, ``config``, …, plain values.
    """

    fabric: Fabric
    network: nn.Module
    optimizer: Any
    lr_schedule: LRScheduler
    loader: Loader
    transform: Transform
    objective: Objective
    statistics: Statistics
    logger: RunLogger
    checkpoints: Checkpoints
    skipped: SkippedImages
    about: dict[str, Any]


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint.

    Attributes:
        epoch: epochs that are finished.
        batch: batches of the next one that are.
        step: steps in all.
        best: the best value of the monitored metric so far.
        monitored: its last value.
        ranks: processes that share the batches; ``batch`` counts those of each.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    monitored: float | None = None
    ranks: int = 1


def fit(
    run: Training,
    plan: Plan,
    evaluate: Evaluate | None = None,
    resume: dict[str, Any] | None = None,
    seed: int = 0,
) -> Progress:
    """Train, evaluate and save until the plan is fulfilled.

    On the CPU a resumed run ends with exactly the weights of an uninterrupted one, and with the same log: the order of
    batches and the augmentation depend on (seed, epoch, step) alone, and all else is in the checkpoint. A run that is
    asked to stop (see :mod:`biomass.stopping`) saves behind a step, or as it was before an evaluation.

    Args:
        run: the parts.
        plan: how long, and how often.
        evaluate: called after an epoch, returns metrics named ``<split>/<metric>``; None trains without evaluation.
        resume: a checkpoint's state to go on from, which :func:`.checkpoint.check_resume` has seen.
        seed: of the augmentation, and of the global random state while the run lasts.

    Returns:
        Where the run ended, with the best and the last value of the monitored metric.

    Raises:
        TrainingError: a loss, a gradient, a weight or a metric is not a finite number; the last good checkpoint stays.
        ConfigError: the monitored metric is not among those that ``evaluate`` returns.
        Stopped: the run was asked to stop, and its state is saved.
    """
    progress, unfinished = Progress(ranks=run.fabric.world_size), {}
    with _random_state(seed), stopping.noted():
        together = Together(run.fabric)
        if resume is not None:
            progress, unfinished = _restore(run, resume), resume.get("unfinished", {})
            log.info("goes on from '%s', epoch %d, step %d", resume.get("path"), progress.epoch, progress.step)
            if "closing" in unfinished:
                _close(run, plan, progress, unfinished["closing"], evaluate, together)
            elif progress.epoch >= plan.num_epochs:
                log.info("nothing is left to do: all %d epochs are finished", plan.num_epochs)
            elif plan.reached(progress.step):
                log.info("nothing is left to do: %d steps are taken, of %d", progress.step, plan.max_steps)
        elif plan.reached(0):
            _close(run, plan, progress, 0, evaluate, together)
        began = progress.epoch
        for epoch in range(began, plan.num_epochs):
            if plan.reached(progress.step):
                break
            before = unfinished.get("window", {}) if run.fabric.is_global_zero else {}  # it is of all processes
            window = Window(run.statistics.names, run.skipped.screen.pixels.name, **before)
            unfinished = {}
            _train_epoch(run, plan, progress, epoch, seed, window, together, timed=epoch == began)
            finished = progress.epoch == plan.num_epochs or progress.step == plan.max_steps
            due = progress.epoch % plan.evaluate_every == 0 or finished
            _close(run, plan, progress, epoch + 1, evaluate, together, due)
            if together.now():
                stopping.say(f"after epoch {epoch + 1}, step {progress.step}, {_saved(run)}")
                raise stopping.Stopped
        run.skipped.merge(together.gather(run.skipped.rows))
    if run.fabric.is_global_zero:
        run.skipped.report(run.logger.folder)
    return progress


def _close(
    run: Training,
    plan: Plan,
    progress: Progress,
    epoch: int,
    evaluate: Evaluate | None,
    together: Together,
    due: bool = True,
) -> None:
    """End an epoch, counted from 1 (or the untrained network's 0): evaluate, where that is due, and save."""
    is_best = False
    check_weights(unwrap(run.network), run.optimizer, progress.step, run.checkpoints.last)
    if evaluate is not None and due:
        before = _snapshot_of_randomness()
        try:
            if together.now():
                raise stopping.Stopped
            with stopping.raised(otherwise=run.fabric.world_size > 1):  # which measure together
                metrics = evaluate(run, epoch, progress.step)
        except stopping.Stopped:
            _save_stopped(run, progress, {"closing": epoch}, before)
            raise
        check_metrics(metrics, plan.monitor, epoch, run.checkpoints.last)
        run.logger.scalars(progress.step, epoch, metrics)
        if plan.monitor is not None:
            progress.monitored = _monitored(metrics, plan.monitor)
            is_best = plan.better(progress.monitored, progress.best)
            progress.best = progress.monitored if is_best else progress.best
        shown = {k: v for k, v in metrics.items() if k.count("/") == 1}
        log.info("epoch %d/%d%s", epoch, plan.num_epochs, _by_split(shown))
    if run.fabric.is_global_zero:
        run.checkpoints.save(_snapshot(run, progress), is_best or evaluate is None or plan.monitor is None)


def _save_stopped(
    run: Training, progress: Progress, unfinished: dict[str, Any], randomness: dict[str, Any] | None = None
) -> None:
    """Save where a run stops, within an epoch or before its evaluation."""
    if progress.step and run.fabric.is_global_zero:
        check_weights(unwrap(run.network), run.optimizer, progress.step, run.checkpoints.last)
        state = _snapshot(run, progress) | {"unfinished": unfinished}
        run.checkpoints.save(state if randomness is None else state | {"random": randomness}, is_best=False)
    run.fabric.barrier()  # the first process must not be left before it has written
    stopping.say(f"after step {progress.step}, {_saved(run)}" if progress.step else None)


def _saved(run: Training) -> str:
    return "saved" if run.checkpoints.enabled else "of a run that saves nothing"


def _train_epoch(
    run: Training,
    plan: Plan,
    progress: Progress,
    epoch: int,
    seed: int,
    window: Window,
    together: Together,
    timed: bool,
) -> None:
    run.network.train()
    run.loader.batches.set_epoch(epoch, progress.batch)
    generator = torch.Generator(run.fabric.device)
    window.to(run.fabric.device)
    batches = progress.batch + len(run.loader)
    waiting = counted = 0  # batches whose gradients wait for the step, and those of all processes that count
    world, total = together.world, run.loader.batches.num_batches
    averages = Averages(unwrap(run.network)) if together.several else None
    watched = sys.stderr.isatty() and run.fabric.is_global_zero
    bar = tqdm(run.loader, desc=f"epoch {epoch + 1}/{plan.num_epochs}", leave=False, disable=not watched)
    pace = Pace(run.fabric.device, -(-len(run.loader) // plan.accumulate)) if timed else None
    for batch in bar:
        if plan.reached(progress.step):
            break
        progress.batch += 1
        run.skipped.note(batch)
        mine = len(batch) > 0
        if mine or averages is not None:
            place = waiting * world + together.rank  # among the batches of the step, as one process would take them
            generator.manual_seed(_mixed(seed, epoch, progress.step, 0, *([place] if place else [])))
            if mine and progress.step == waiting == 0 and batch.images.dim() == 4:
                run.logger.images(0, "train/images by plate", batch.images, batch.groups)
            if averages is None:
                loss, scalars = _forward(run, batch, generator)
                run.fabric.backward(loss)
                counted += 1
            else:
                torch.manual_seed(_mixed(seed, epoch, progress.step, place, 1))  # of dropout: another one everywhere
                again = (progress.batch - 1) * world + together.rank >= total  # it came in this epoch already
                mine = mine and (_gathers(run) or not again)
                last = waiting + 1 == plan.accumulate or progress.batch == batches
                loss, scalars = _with_others(run, batch, mine, generator, averages, together, last)
                counted += world if _gathers(run) and any(together.there) else sum(together.there)
            if mine:
                window.add(progress.step + 1, batch, loss, scalars)
            waiting += 1
        if not waiting or (waiting < plan.accumulate and progress.batch < batches):
            continue
        if not counted:  # no process could read its batches
            run.optimizer.zero_grad(set_to_none=True)
            waiting = 0
            continue
        progress.step += 1
        ends = progress.batch == batches or progress.step == plan.max_steps  # else a short run would log no norm
        logged = ends or progress.step % plan.log_every == 0
        _average(run.optimizer, counted / world)
        norm = _clip(run, plan.clip, logged)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        waiting = counted = 0
        if pace is not None and pace.goes_on:
            pace.stepped()
        if logged:
            values = window.flush(epoch, run.checkpoints, together)
            values["train/gradient_norm"] = float(norm)  # type: ignore[arg-type]
            check_gradients(run.fabric, values["train/gradient_norm"], progress.step, window.last, run.checkpoints.last)
            values["train/learning_rate"] = float(run.lr_schedule.get_last_lr()[0])
            run.logger.scalars(progress.step, epoch, values)
            bar.set_postfix_str(_format(values))
            if bar.disable and progress.step % plan.log_every == 0:
                log.info("epoch %d/%d  step %d  %s", epoch + 1, plan.num_epochs, progress.step, _format(values))
        run.lr_schedule.step()
        if together.after_step() and not ends:
            _save_stopped(run, progress, {"window": window.state(epoch, run.checkpoints, together)})
            raise stopping.Stopped
    else:
        progress.epoch, progress.batch = epoch + 1, 0
    rest = window.flush(epoch, run.checkpoints, together)
    if rest:
        run.logger.scalars(progress.step, epoch, rest)


def _forward(run: Training, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    batch = batch.to(run.fabric.device, integers=isinstance(run.transform, Compose))
    images = run.transform(batch.images, generator)
    if not images.is_floating_point():
        images = images.to(torch.float32)
    with run.statistics.of(run.network, batch.groups, batch.controls), run.fabric.autocast():
        return run.objective(run.network, images, batch)


def _gathers(run: Training) -> bool:
    """Whether the objective takes the batches of all processes as one."""
    return getattr(run.objective, "gather", False)


def _with_others(
    run: Training,
    batch: Batch,
    mine: bool,
    generator: torch.Generator,
    averages: Averages,
    together: Together,
    last: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of each process, forward and backward; gradients are added up over processes with the last of a step.

    A process whose batch does not count takes part with a gradient of nothing: the others would wait for it.
    """
    together.has_batch(mine)
    averages.begin()
    with all_take_part(run.network), run.fabric.no_backward_sync(run.network, enabled=not last):  # type: ignore[arg-type]
        loss, scalars = _forward(run, batch, generator) if mine else (_idle(run, batch, generator), {})
        averages.share(together.hear(), together.rank)
        run.fabric.backward(loss)
    averages.take()
    return loss, scalars


def _idle(run: Training, batch: Batch, generator: torch.Generator) -> Tensor:
    """A loss without a gradient, of black images (or of vectors) that went through the whole network."""
    pixels = run.loader.pixels
    if isinstance(pixels, VectorPixels):
        shape = pixels.array.shape[1:]
    else:
        shape = pixels.size if isinstance(pixels, Bags) else (len(pixels.channels), *pixels.size)
    black = torch.zeros(2, *shape, device=run.fabric.device)
    images = run.transform(black, generator)
    with run.fabric.autocast():
        if _gathers(run):
            none = batch.to(run.fabric.device)
            return run.objective(lambda images: run.network(images)[:0], images, none)[0]
        return run.network(images).float().sum() * 0


def _average(optimizer: Any, batches: float) -> None:
    """Make the mean of gradients that were added up over some batches (over several processes: their means were)."""
    if batches != 1:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_(gradients, batches)


def _clip(run: Training, clip: float | None, logged: bool) -> Tensor | None:
    """Clip before the step; where only the norm is asked for, an infinite bound leaves the gradients as they are."""
    if clip is None and not logged:
        return None
    bound = float("inf") if clip is None else clip
    return run.fabric.clip_gradients(run.network, run.optimizer, max_norm=bound, error_if_nonfinite=False)


def _monitored(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        known = ", ".join(k for k in metrics if k.count("/") == 1)
        raise ConfigError(f"monitor '{name}' is not measured; choose one of: {known}", "monitor")
    return metrics[name]


def _snapshot(run: Training, progress: Progress) -> dict[str, Any]:
    own = {"objective": run.objective.state_dict()} if isinstance(run.objective, nn.Module) else {}
    return {
        **run.about,
        **own,
        "network": unwrap(run.network).state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.lr_schedule.state_dict(),
        "progress": vars(progress).copy(),
        "random": _snapshot_of_randomness(),
    }


def _snapshot_of_randomness() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(run: Training, state: dict[str, Any]) -> Progress:
    check_fits(state, unwrap(run.network), run.objective, run.optimizer, run.lr_schedule)
    unwrap(run.network).load_state_dict(state["network"])
    if isinstance(run.objective, nn.Module):
        run.objective.load_state_dict(state["objective"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.lr_schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and len(state["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    known = vars(Progress())  # a later version may have written more
    progress = Progress(**{name: value for name, value in state["progress"].items() if name in known})
    before, progress.ranks = ranks_of(state), run.fabric.world_size
    if before != progress.ranks:
        progress.batch = progress.batch * before // progress.ranks
        log.info(
            "the batches of a step were shared by %d devices, and are by %d now: the same ones, in the same order",
            before,
            progress.ranks,
        )
    return progress


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed what networks draw from (dropout, stochastic depth) and leave the global state as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, far apart for neighbouring ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _by_split(values: dict[str, float]) -> str:
    """Metrics of several splits: a line each, if they are too long for one."""
    one = f"  {_format(values)}"
    if len(one) <= _WIDTH:
        return one
    splits = dict.fromkeys(name.partition("/")[0] for name in values)
    of = {split: {n: v for n, v in values.items() if n.startswith(f"{split}/")} for split in splits}
    return "".join(f"\n  {_format(some)}" for some in of.values())


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items())
