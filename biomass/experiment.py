"""How every training script opens and closes; what stands between the two is the script's own."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from biomass import stopping, training
from biomass.atomic import check_place, whole_file
from biomass.channels import check_expected
from biomass.config import Config, build, overrides
from biomass.errors import BiomassError, CheckpointError, ConfigError
from biomass.evaluation import layers
from biomass.evaluation.accuracy import MEANINGS
from biomass.evaluation.verdict import warning
from biomass.fingerprint import fingerprint
from biomass.inference import Transform
from biomass.keys import EVAL_SPLITS, EVALUATED, MONITORED, OUTPUTS, PREPARED, PUBLISHED_OUTPUTS
from biomass.loader import BatchReader, BatchSource, Loader, SkippedImages
from biomass.models import Architecture, Network, adapt, build_network, check_images, is_own_code
from biomass.norms import Method, Statistics
from biomass.objectives import Classification, Contrastive, Objective, with_penalty
from biomass.report.finish import finish
from biomass.run_files import read_log
from biomass.runs import next_commands, own_run, run_name
from biomass.samplers import ShareOfRank
from biomass.screen import Screen
from biomass.settings import is_given, is_left
from biomass.targets import Node
from biomass.training import overview, verdicts
from biomass.training.numbers import check_metrics
from biomass.training.samples import save_samples
from biomass.transforms import Compose, Standardize

log = logging.getLogger(__name__)


class Recipe(NamedTuple):
    """What the optimizer of a run needs to know: see :mod:`biomass.training.optim`."""

    learning_rate: float
    weight_decay: float
    num_warmup_epochs: int
    compiled: bool


class Optimized(NamedTuple):
    """A network with its optimizer: the network on its device, the optimizer, the learning rate step by step."""

    network: nn.Module
    optimizer: Any
    lr_schedule: LRScheduler


class _Seen(NamedTuple):
    network: nn.Module
    screen: Screen
    splits: Sequence[str]
    transform: Compose


_LARGE = 600
"""Pixels along an image, in the network, from which on one may wonder whether it is meant."""
_FEW = 0.02
"""Share of the cells from which downwards it is said how few an epoch sees."""


FINISHED = "finished.json"
"""What tells that all files of a run were made."""


@dataclass
class Experiment:
    """A run before it trains.

    Attributes:
        cfg: its configuration.
        job: the script.
        name: of its folders below ``runs/`` and ``checkpoints/``.
        fabric: its device and precision.
        plan: how long it trains, and what it does how often.
        recipe: of the optimizer.
        checkpoints: where they go.
        resume: the checkpoint that it goes on from, None for a new run.
        most_plates: how many training plates are measured in the end.
        resident: whether training images stay in the memory of the device.
        report: whether a page is made in the end.
        seen: what it is made of: the network, the screen, the splits that are evaluated, what is done to an image.
    """

    cfg: Config
    job: str
    name: str
    fabric: Fabric
    plan: training.Plan
    recipe: "Recipe"
    checkpoints: training.Checkpoints
    resume: dict[str, Any] | None
    most_plates: int
    resident: bool = False
    report: bool = False
    seen: "_Seen | None" = None

    @classmethod
    def begin(cls, cfg: Config, job: str, name: str | None = None) -> "Experiment":
        """Name the run and own it, find its device and its checkpoint to go on from. Nothing else is written.

        Args:
            cfg: the configuration of a training script.
            job: the script's name.
            name: the run's name, None: made of ``job`` and the time.

        Raises:
            ConfigError, CheckpointError: a setting does not fit, or there is another run of this name, or another
                process at it.
        """
        trainer = cfg.trainer
        plan = training.Plan(
            num_epochs=cfg.num_epochs,
            clip=trainer.clip,
            accumulate=trainer.accumulate,
            log_every=trainer.log_every,
            evaluate_every=trainer.evaluate_every,
            max_steps=trainer.max_steps,
            monitor=trainer.monitor,
        )
        recipe = Recipe(cfg.learning_rate, cfg.weight_decay, cfg.num_warmup_epochs, trainer.compile)
        name = run_name(name, job)
        own_run(name, goes_on=True)
        several = trainer.devices, None, trainer.strategy, trainer.num_nodes
        fabric = training.make_fabric(cfg.device, trainer.precision, *several)
        checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
        resume = checkpoints.to_resume(cfg.resume)
        if cfg.save_model:
            check_place(checkpoints.folder)
        at_end, resident = trainer.measure_plates, trainer.resident
        return cls(cfg, job, name, fabric, plan, recipe, checkpoints, resume, at_end, resident, cfg.report)

    def outputs(self, screen: Screen) -> int:
        """How many classes the network tells apart: as many as configured, or as the screen has.

        The published number of a script is for the screen that it was published with. On another one it does not count
        where a command line leaves it as it is.
        """
        asked, there = self.cfg.model.d_out, len(screen.classes)
        if asked is None or (asked == PUBLISHED_OUTPUTS.get(self.job) != there and is_left(OUTPUTS)):
            return there
        return int(asked)

    def splits(self, screen: Screen, asked: list[str], d_out: int | None = None, advice: str = "d_out") -> list[str]:
        """The splits to evaluate. The script's defaults that the screen lacks are left out, and the log says so.

        Args:
            screen: where the splits are.
            asked: what the configuration names.
            d_out: number of outputs of a network that classifies: its labels are looked at, too.
            advice: of an error about outputs.

        Raises:
            ConfigError, DataError: as :func:`biomass.training.choose_splits` and :func:`biomass.training.check_labels`.
        """
        named = asked != EVAL_SPLITS[self.job] or is_given(EVALUATED)
        splits, notes = training.choose_splits(screen, asked, named, d_out is not None)
        if d_out is not None:
            notes += training.check_labels(screen, splits, d_out, advice)
        for note in notes:
            self.warn(note)
        if asked and not splits:
            self.warn(ConfigError("no split is left to evaluate: the run trains without evaluation"))
        left_out = set(asked) - set(splits)
        if splits and (self.plan.monitor or "").partition("/")[0] in left_out and not is_given(MONITORED):
            self.warn(
                ConfigError(
                    f"'{self.plan.monitor}' is not measured therefore, and the last checkpoint counts as the best",
                    "monitor",
                )
            )
            self.plan = replace(self.plan, monitor=None)
        return splits

    def warn(self, error: BiomassError) -> None:
        """Say something that is no reason to stop, in the words of an error; once, on the first rank."""
        if self.fabric.is_global_zero:
            log.warning(self.cfg.explain(error))

    def architecture(self, screen: Screen, head: Sequence[int]) -> Architecture:
        """What network is asked for: its key, its norms, the channels of the screen, and the widths of the head."""
        model = self.cfg.model
        number, options = len(screen.pixels.channels), model.get("options")
        return Architecture(
            model.key,
            number,
            tuple(head),
            model.norm,
            model.standardize,
            model.get("channels", "repeat"),
            options=None if options is None else options.to_dict(),
        )

    def classification(self, accuracy: bool, controls: str, network: Network, domains: np.ndarray) -> Objective:
        """Cross-entropy, with the penalty that the configuration asks for.

        Args:
            accuracy: whether it is reported for training batches.
            controls: which rows are meant by controls.
            network: gives features.
            domains: the plates (or other groups) of the training rows.

        Raises:
            ConfigError: an unknown word.
        """
        asked = self.cfg.objective
        plain = Classification(accuracy, asked.loss_rows, controls)
        of_penalty = asked.penalty, asked.penalty_weight
        return with_penalty(plain, *of_penalty, network.num_features, domains, self.cfg.seed)

    def training_plates(
        self, screen: Screen, reader: BatchReader, transform: Transform, num_classes: int, batch_size: int | None
    ) -> training.TrainingPlates:
        """What measures training plates when the run ends, see :class:`biomass.training.TrainingPlates`."""
        return training.TrainingPlates(screen, reader, transform, num_classes, self.most_plates, batch_size)

    def optimize(self, network: nn.Module, batches: int, objective: Objective | None = None) -> "Optimized":
        """The network on its device, Adam with its weight decay, and the learning rate for every step.

        Args:
            network: on the host.
            batches: of an epoch. Epochs of the warm-up, and of training, are counted in steps.
            objective: where it has weights of its own, they go to the device and into the optimizer, too.

        Raises:
            ConfigError: an objective with weights of its own on several devices.
        """
        recipe, steps = self.recipe, -(-batches // self.plan.accumulate)
        modules = [network]
        if isinstance(objective, nn.Module):
            if self.fabric.world_size > 1:
                raise ConfigError("this penalty has weights of its own, which are trained on one device", "devices")
            modules.append(objective.to(self.fabric.device))
        scaled = self.fabric.strategy.precision.precision == "16-mixed"  # would leave fused steps to scale gradients
        optimizer = training.adam(modules, recipe.learning_rate, recipe.weight_decay, fused=not scaled)
        idle = is_own_code(self.cfg.model.key or "")
        decay = training.warmup_cosine(optimizer, recipe.num_warmup_epochs * steps, self.plan.num_epochs * steps)
        return Optimized(*training.set_up(self.fabric, network, optimizer, recipe.compiled, idle), decay)

    def settle(
        self,
        method_of: Callable[[Config], Method],
        network: nn.Module,
        screen: Screen,
        batches: BatchSource,
        splits: Sequence[str],
        transform: Compose,
        **about: Any,
    ) -> dict[str, Any]:
        """The last look before anything is written: every key was read, and the run to go on from was like this one.

        The log says what the run is made of, and what looks like a mistake in it.

        Args:
            method_of: from a configuration to its method, which is compared in place of the keys that say it.
            network: what runs under the statistics of the method.
            screen: what the run reads.
            batches: of training.
            splits: those that are evaluated.
            transform: of the images in training.
            about: what a checkpoint carries beside the weights, plain values; ``config`` if not the script's own.

        Returns:
            The same, with the configuration, the settings of the method, the names of the screen's channels, and what
            its data are made of.

        Raises:
            ConfigError: a key that nothing reads, or statistics that the network cannot take.
            CheckpointError: the checkpoint to go on from was made with other settings, or on other data.
        """
        nodes = self.cfg.transforms.get("eval")
        plain = Compose([Standardize()]) if nodes is None else compose(nodes)
        self.seen = _Seen(network, screen, splits, plain)
        other_data = self.cfg.other_data
        self.cfg.check_all_read()
        method, channels = method_of(self.cfg), list(screen.pixels.channels)
        method.check_network(network)
        about = {"config": self.cfg.to_dict(), "method": method.settings(), "channels": channels} | about
        used = (*method.train_by, *method.eval_by, *(self.cfg.dataloaders.get("instance") or ()))
        about["data"] = fingerprint(screen, used)
        before = self.resume
        if before is not None and "method" not in before:  # it was written before there were words
            config = {"statistics": dict.fromkeys(("train", "eval", "by", "controls"))} | before["config"]
            config = {"objective": {"penalty": None}} | config
            before = before | {"method": method_of(Config(OmegaConf.create(config), overrides())).settings()}
        training.check_resume(before, about, other_data)
        training.check_batches(self.resume, self.fabric.world_size, self.plan.accumulate)
        training.check_ranks(batches, self.fabric.world_size)
        if self.fabric.is_global_zero:
            self._introduce(method, screen, batches, splits, transform)
        return about

    def _introduce(
        self, method: Method, screen: Screen, batches: BatchSource, splits: Sequence[str], transform: Compose
    ) -> None:
        """Say what the run is made of, and what may be wrong with it."""
        probe = self.job == "train_classifier"
        rounds = overview.number(self.plan.num_epochs, "epoch")
        if self.plan.max_steps is not None:
            rounds += f", and {overview.number(self.plan.max_steps, 'step')} at most"
        devices, precision = self.fabric.world_size, self.cfg.trainer.precision
        device = f"{devices} x {self.fabric.device.type}" if devices > 1 else str(self.fabric.device)
        together = devices * self.plan.accumulate
        each = f"{together} batches ({devices} devices x {self.plan.accumulate})" if together > 1 else ""
        each += f", of which an epoch has {batches.num_batches}" if together > batches.num_batches else ""
        kept = f", {self.checkpoints.folder}" if self.checkpoints.enabled else "; no checkpoints"
        lines = [
            *overview.lines_of_run(screen, batches, splits, method, probe),
            ("device", f"{device}, {precision} bit floats; {rounds}"),
            *([("", f"a step is on {each}, and the learning rate is that of a step")] if each else []),
            ("folders", f"runs/{self.name}{kept}"),
            ("", f"images in {self.cfg.dataloaders.get('store') or self.cfg.dataloaders.get('root_dir')}"),
        ]
        metrics = ("loss",) if self.job == "train_simclr" else ("accuracy", "treatments", "by_class", "top5", "loss")
        if splits:
            lines += [("measured" if n == 0 else "", f"{m}: {MEANINGS[m]}") for n, m in enumerate(metrics)]
            monitor = self.plan.monitor
            lines.append(("", f"the best checkpoint by {monitor}" if monitor else "the last checkpoint is the best"))
        log.info("%s", overview.block(f"{self.job}: run '{self.name}'", lines))
        said = warning(screen, method.eval, method.eval_by, method.controls)
        if said is not None:
            log.warning(said)
        self._check_images(screen, batches, splits, transform)

    def _check_images(self, screen: Screen, batches: BatchSource, splits: Sequence[str], transform: Compose) -> None:
        seen = overview.rows_seen(batches)
        if seen is not None and seen[0] < _FEW * seen[1]:
            share = f"{100 * seen[0] / seen[1]:.2g} %"
            self.warn(ConfigError(f"an epoch sees {share} of the cells", "seen"))
        for error in training.constant_channels(screen, ["train", *splits]):
            self.warn(error)
        height, width = screen.pixels.size
        if max(height, width) > _LARGE:
            blank = torch.zeros(1, len(screen.pixels.channels), height, width)
            after = transform(blank, torch.Generator().manual_seed(0)).shape[2:]
            if max(after) > _LARGE:
                size = f"{after[0]} x {after[1]} pixels"
                self.warn(ConfigError(f"images go into the network with {size}, which takes long", "large"))

    def train(
        self,
        optimized: "Optimized",
        *,
        loader: Loader,
        transform: Callable[..., Tensor],
        objective: Objective,
        statistics: Statistics,
        skipped: SkippedImages,
        evaluate: training.Evaluate | None,
        about: dict[str, Any],
    ) -> float | None:
        """Write, train and evaluate; returns the best value of the monitored metric.

        Args:
            optimized: what :meth:`optimize` gives.
            evaluate: None trains without evaluation. The training plates that it knows are measured in the end.
            about: as :meth:`settle` gives it.
            loader, transform, objective, statistics, skipped: of :class:`biomass.training.Training`.
        """
        folder = Path("runs") / self.name
        config = about["config"] | {"method": about["method"]}
        chances = self._chances(evaluate, objective, loader)
        judge = self._judge(evaluate, chances)
        of_splits = evaluate if isinstance(evaluate, training.SplitEvaluation) else None
        evaluate = None if of_splits is not None and not of_splits.loaders else evaluate
        before = self._finished_before()
        if before is not None:
            if self.fabric.is_global_zero:
                log.info("nothing is left to do: '%s' is finished", self.name)
                self._conclude(before, evaluate, chances)
            return before.best
        if self.resident:
            log.info("reading the training images into the memory of %s", self.fabric.device)
            loader.hold(self.fabric.device)
        with training.RunLogger(folder, config, self.resume, self.fabric.is_global_zero) as logger:
            run = training.Training(
                fabric=self.fabric,
                **optimized._asdict(),
                loader=loader,
                transform=transform,
                objective=objective,
                statistics=statistics,
                logger=logger,
                checkpoints=self.checkpoints,
                skipped=skipped,
                about=about,
            )
            measured = evaluate if of_splits is None else evaluate and partial(self._evaluate_and_write, of_splits)
            watched = measured and verdicts.Watched(measured, self.plan, partial(judge, so_far=True), self.warn)
            progress = training.fit(run, self.plan, watched, self.resume, self.cfg.seed)
            stopping.say("training is finished and saved, and what is made of it is not")
            if of_splits is not None and of_splits.plates is not None and self.checkpoints.enabled:
                training.measure_run(self.fabric, optimized.network, of_splits.plates, self.checkpoints.folder)
        if self.fabric.is_global_zero:
            self._conclude(progress, evaluate, chances)
            found = judge(overview.last_metrics(read_log(folder))) if progress.epoch else None
            if found is not None:
                self.warn(found)
            if self.report and self.seen is not None:
                samples = partial(save_samples, folder, self.seen.screen, self.seen.transform)
                finish(folder, [partial(self._compare_layers, progress, folder), samples])
            with whole_file(folder / FINISHED) as part:
                part.write_text(json.dumps(self._at_end(progress)) + "\n")
        return progress.best

    def _evaluate_and_write(
        self, evaluate: training.SplitEvaluation, run: training.Training, epoch: int, step: int
    ) -> dict[str, float]:
        """Evaluate, and leave the predictions of the last evaluation before its checkpoint says that it was done."""
        metrics = evaluate(run, epoch, step)
        check_metrics(metrics, self.plan.monitor, epoch, self.checkpoints.last)
        if self.fabric.is_global_zero and (epoch == self.plan.num_epochs or self.plan.reached(step)):
            evaluate.write(Path("runs") / self.name)
        return metrics

    def _at_end(self, progress: training.Progress) -> dict[str, Any]:
        """How far a run came, and what was made in its end."""
        asked = {"report": self.report, "measure_plates": self.most_plates, "save_model": self.checkpoints.enabled}
        return {"epoch": progress.epoch, "step": progress.step, **asked}

    def _finished_before(self) -> training.Progress | None:
        """Where the run ended, if an earlier process has done all that this one is to do."""
        if self.resume is None or "unfinished" in self.resume:
            return None
        progress = training.Progress(**self.resume["progress"])
        try:
            told = json.loads((Path("runs") / self.name / FINISHED).read_text())
        except (OSError, ValueError):
            return None
        ended = progress.epoch >= self.plan.num_epochs or self.plan.reached(progress.step)
        return progress if ended and told == self._at_end(progress) else None

    def _compare_layers(self, progress: training.Progress, folder: Path) -> None:
        """Leave in the folder of the run where in the network plates differ: those of a split that is evaluated."""
        assert self.seen is not None
        network, screen, splits, transform = self.seen
        several = (rows for rows in map(screen.rows, (*splits, "train")) if len(np.unique(screen.plate_ids[rows])) > 1)
        most = layers.number_of_images(len(screen.rows("train")) * max(progress.epoch, 1))
        encoder = network.encoder if isinstance(network, Network) else network
        layers.write_distances(layers.plate_distances(encoder, screen, transform, next(several, None), most), folder)

    def _chances(
        self, evaluate: training.Evaluate | None, objective: Objective, loader: Loader
    ) -> dict[str, verdicts.Chance]:
        """The chance level of a contrastive loss on what is evaluated, or in training; nothing of other objectives."""
        if not isinstance(objective, Contrastive):
            return {}
        others = evaluate.loaders if isinstance(evaluate, training.LossEvaluation) else {}
        loaders = {"train": loader, **others}
        batches = {
            name: one.batches.whole if isinstance(one.batches, ShareOfRank) else one.batches
            for name, one in loaders.items()
        }
        return {name: verdicts.chance_level(one, objective.temperature) for name, one in batches.items()}

    def _judge(
        self, evaluate: training.Evaluate | None, chances: Mapping[str, verdicts.Chance]
    ) -> Callable[..., BiomassError | None]:
        """What says whether a run learned anything, from its metrics."""
        if isinstance(evaluate, training.SplitEvaluation):
            return partial(verdicts.judge_accuracy, evaluate.screen, list(evaluate.loaders))
        return partial(verdicts.judge_loss, chances)

    def _conclude(
        self,
        progress: training.Progress,
        evaluate: training.Evaluate | None,
        chances: Mapping[str, verdicts.Chance],
    ) -> None:
        """Say what the run came to, where its files are, and what to type next."""
        folder = Path("runs") / self.name
        logged = read_log(folder)
        screen = evaluate.screen if isinstance(evaluate, training.SplitEvaluation) else None
        levels = {name: chance.level for name, chance in chances.items()}
        lines: list[tuple[str, str | Sequence[str]]] = [
            *overview.lines_of_results(logged, self.plan, screen, levels),
        ]
        files = [name for name in ("metrics.jsonl", "plates.csv", "config.yaml") if (folder / name).exists()]
        lines.append(("files", f"{folder}: {', '.join(files)}; curves and images: tensorboard --logdir runs"))
        commands = next_commands(self.job, self.name)
        if self.checkpoints.enabled:
            kept = [path.name for path in (self.checkpoints.last, self.checkpoints.best) if path.exists()]
            lines.append(("", f"{self.checkpoints.folder}: {', '.join(kept)}"))
        before = self.resume is not None and self.resume["progress"]["step"] == progress.step
        state = "was finished before, and nothing is left to do" if before else "is finished"
        far = f"{overview.number(progress.epoch, 'epoch')}, {overview.number(progress.step, 'step')}"
        title = f"run '{self.name}' {state}: {far}"
        if self.checkpoints.enabled:
            lines += [("next" if n == 0 else "", command) for n, command in enumerate(commands)]
        log.info("%s", overview.block(title, lines))


class Opened(NamedTuple):
    """What a tool that loads a model begins with.

    Attributes:
        fabric: its device.
        path: where the network came from.
        network: on the host.
        architecture: of the network.
        channels: names of those that it expects; None where nothing says so.
        screen: what it runs on.
        transform: what is done to an image before.
    """

    fabric: Fabric
    path: Path
    network: Network
    architecture: Architecture
    channels: list[str] | None
    screen: Screen
    transform: Compose


def open_model(cfg: Config, tool: str, from_checkpoint: bool = False) -> Opened:
    """Find the network that a tool runs, and build the screen that it runs it on.

    It is that of a checkpoint (``model_path``), or of none: pre-trained as published, or of random weights
    (``model.pretrained``), or what a function of anybody's own code gives (``model.key=package.module:function``).

    Args:
        cfg: of the tool.
        tool: its name, for the error.
        from_checkpoint: whether only a checkpoint will do.

    Returns:
        The network and the screen. Without a checkpoint, ``path`` is where one would be, beside which other things can
        be kept.

    Raises:
        ConfigError, CheckpointError, DataError: no network is named, it cannot be loaded, or its channels do not fit.
    """
    model, seed, given = cfg.model, cfg.get("seed", 0), cfg.model_path is not None  # a checkpoint needs no seed
    pretrained, options = model.get("pretrained"), model.get("options")
    if given and (pretrained is not None or options is not None):
        key = "pretrained" if options is None else "options"
        raise ConfigError(f"'{cfg.model_path}' brings its network along, and {key} are for others; leave one out")
    if not given and (from_checkpoint or (pretrained is None and not is_own_code(model.key))):
        what = "checkpoint" if from_checkpoint else "network"
        raise ConfigError(f"{tool} needs a {what}, and none is named", what)
    # each device has plates of its own, and the others wait for the last one
    fabric = training.make_fabric(cfg.device, cfg.precision, cfg.get("devices", 1), timedelta(days=7))
    return Opened(fabric, *(_of_checkpoint(cfg) if given else _untrained(cfg, seed)))


_Found = tuple[Path, Network, Architecture, list[str] | None, Screen, Compose]


def _of_checkpoint(cfg: Config) -> _Found:
    """The network of ``model_path``; that of other code is adapted to the channels of the screen if a key says how."""
    model, path = cfg.model, training.find_checkpoint(cfg.model_path)
    network, architecture, origin = training.load_network(path, model.key)
    word, expects = model.get("channels"), model.get("expects")
    flags: dict[str, Any] = {name: True for name in ("as_trained", "standardize") if model.get(name)}
    asked = word or next(iter(flags), None)
    if asked and origin:
        raise ConfigError(f"'{path}' knows its images, and '{asked}' is for weights of other code; leave it out")
    screen = build(cfg.dataloaders.source)
    channels = expects or origin.get("channels")
    number = len(channels or screen.pixels.channels)
    if asked:
        wanted = replace(architecture, **flags)
        if word:
            head = () if word == "each" else architecture.head
            wanted = replace(wanted, in_channels=number, channels=word, head=head)
        network, architecture = adapt(network, architecture, wanted), wanted
    if channels is None:
        training.check_channels(architecture, origin, screen, path)
    elif len(channels) != architecture.in_channels:
        raise ConfigError(
            f"'{path}' takes {architecture.in_channels} channels, not the {number} {', '.join(channels)}", "expects"
        )
    else:
        check_expected(path, channels, screen.pixels.channels)
    nodes = cfg.transforms.eval
    transform = trained_transform(origin.get("config", {}), path) if nodes is None else compose(nodes)
    return path, network, architecture, channels, screen, transform


def _untrained(cfg: Config, seed: int) -> _Found:
    """A network that no run has trained: as it was published, of random weights, or of anybody's own code."""
    model = cfg.model
    key, pretrained, expects, options = model.key, model.get("pretrained"), model.get("expects"), model.get("options")
    as_trained = model.get("as_trained", pretrained is True and not is_own_code(key))
    word = model.get("channels", "repeat")
    screen = build(cfg.dataloaders.source)
    plain = None if options is None else options.to_dict()
    number = len(expects or screen.pixels.channels)
    architecture = Architecture(key, number, (), "batch", model.get("standardize", False), word, as_trained, plain)
    network = build_network(architecture, pretrained is True, seed)
    nodes = cfg.transforms.eval
    transform = Compose([Standardize()]) if nodes is None else compose(nodes)
    if is_own_code(key):
        kind, said = "own", "as its own code gives it"
        black = transform(torch.zeros(2, number, *screen.pixels.size))
        check_images(network.encoder, black, key)
    elif pretrained:
        kind, said = "pretrained", f"as it was published, channels by '{word}', not trained on any screen"
    else:
        kind, said = f"random-{seed}", f"of random weights (seed {seed}), a floor for what trained ones must reach"
    log.info("the network is %s %s", key, said)
    name = re.sub(r"[^\w.-]+", "_", key)
    path = Path("checkpoints") / f"{name}-{kind}" / "frozen.pt"
    return path, network, architecture, expects, screen, transform


def trained_transform(config: Mapping[str, Any], path: Path) -> Compose:
    """What the evaluation of a run did to an image, from its configuration.

    A checkpoint may come from anybody: nothing but the transforms of this package is made of what it names.

    Args:
        config: of the run.
        path: its checkpoint, for messages.

    Raises:
        CheckpointError: it names something else.
    """
    nodes = (config.get("transforms") or {}).get("eval")
    if nodes is None:
        log.info("'%s' does not say what is done to an image: it is standardized", path)
        return Compose([Standardize()])
    try:
        return compose(Node.of(nodes, PREPARED))
    except ConfigError as error:
        raise CheckpointError(
            f"checkpoint '{path}' cannot say what is done to an image ({error}); say it yourself", "own_transforms"
        ) from error


def tool_folder(cfg: Config, tool: str, part: str | None = None) -> Path:
    """Where a tool writes: the folder of its run below ``runs/``.

    Args:
        cfg: of the tool.
        tool: its name.
        part: the folder in it that is written by this process, and the rest by others.

    Raises:
        ConfigError: it is that of a training run.
    """
    name = run_name(cfg.run_name, tool, shared=part is not None)
    if (Path("checkpoints") / name).exists():
        raise ConfigError(f"'{name}' is a run that was trained; choose another name for that of {tool}", "run_name")
    if part is None:
        return own_run(name)
    own_run(f"{name}/{part}")
    stopping.say(then="go on with the same command")
    return Path("runs") / name


def chosen_words(cfg: Config) -> tuple[str | None, str | None, list[str] | None, str | None]:
    """What a user chose by words, as :meth:`biomass.norms.Method.override` takes it."""
    chosen = cfg.statistics
    return chosen.train, chosen.eval, chosen.by, chosen.controls


def compose(nodes: list[dict[str, Any]] | None) -> Compose:
    """The transforms of a configuration, one after the other.

    Raises:
        ConfigError: there is no list of them, or one cannot be made.
    """
    if nodes is None:
        raise ConfigError("nothing says what is done to an image: give a list of transforms, which may be empty")
    return Compose([build(node) for node in nodes])
