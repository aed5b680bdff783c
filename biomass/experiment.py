"""How every training script opens and closes; what stands between the two is the script's own."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from biomass import training
from biomass.config import Config, build, run_name
from biomass.errors import ConfigError
from biomass.evaluation.verdict import warning
from biomass.loader import Loader, SkippedImages
from biomass.models import Architecture, Network
from biomass.norms import Method, Statistics
from biomass.objectives import Classification, Objective, with_penalty
from biomass.screen import Screen
from biomass.transforms import Compose

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


@dataclass(frozen=True)
class Experiment:
    """A run before it trains.

    Attributes:
        cfg: its configuration.
        name: of its folders below ``runs/`` and ``checkpoints/``.
        fabric: its device and precision.
        plan: how long it trains, and what it does how often.
        recipe: of the optimizer.
        checkpoints: where they go.
        resume: the checkpoint that it goes on from, None for a new run.
        most_plates: how many training plates are measured in the end.
    """

    cfg: Config
    name: str
    fabric: Fabric
    plan: training.Plan
    recipe: "Recipe"
    checkpoints: training.Checkpoints
    resume: dict[str, Any] | None
    most_plates: int

    @classmethod
    def begin(cls, cfg: Config, job: str, name: str | None = None) -> "Experiment":
        """Name the run, find its device and its checkpoint to go on from. Nothing is written.

        Args:
            cfg: the configuration of a training script.
            job: the script's name.
            name: the run's name, None: made of ``job`` and the time.

        Raises:
            ConfigError, CheckpointError: a setting does not fit, or there is another run of this name.
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
        fabric = training.make_fabric(cfg.device, trainer.precision, trainer.devices)
        checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
        resume = checkpoints.to_resume(cfg.resume)
        return cls(cfg, name, fabric, plan, recipe, checkpoints, resume, trainer.measure_plates)

    def architecture(self, screen: Screen, head: Sequence[int]) -> Architecture:
        """What network is asked for: its key, its norms, the channels of the screen, and the widths of the head."""
        model = self.cfg.model
        return Architecture(model.key, len(screen.pixels.channels), tuple(head), model.norm, model.standardize)

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
        optimizer = training.adam(modules, recipe.learning_rate, recipe.weight_decay)
        decay = training.warmup_cosine(optimizer, recipe.num_warmup_epochs * steps, self.plan.num_epochs * steps)
        return Optimized(*training.set_up(self.fabric, network, optimizer, recipe.compiled), decay)

    def settle(
        self, method_of: Callable[[Config], Method], network: nn.Module, screen: Screen, **about: Any
    ) -> dict[str, Any]:
        """The last look before anything is written: every key was read, and the run to go on from was like this one.

        Where the statistics do not fit the plates of the screen, the log says so in one line.

        Args:
            method_of: from a configuration to its method, which is compared in place of the keys that say it.
            network: what runs under the statistics of the method.
            screen: what the run reads.
            about: what a checkpoint carries beside the weights, plain values; ``config`` if not the script's own.

        Returns:
            The same, with the configuration, the settings of the method, and the names of the screen's channels.

        Raises:
            ConfigError: a key that nothing reads, or statistics that the network cannot take.
            CheckpointError: the checkpoint to go on from was made with other settings.
        """
        self.cfg.check_all_read()
        method, channels = method_of(self.cfg), list(screen.pixels.channels)
        method.check_network(network)
        about = {"config": self.cfg.to_dict(), "method": method.settings(), "channels": channels} | about
        before = self.resume
        if before is not None and "method" not in before:  # it was written before there were words
            config = {"statistics": dict.fromkeys(("train", "eval", "by", "controls"))} | before["config"]
            config = {"objective": {"penalty": None}} | config
            before = before | {"method": method_of(Config(OmegaConf.create(config))).settings()}
        training.check_resume(before, about)
        said = warning(screen, method.eval, method.eval_by, method.controls) if self.fabric.is_global_zero else None
        if said is not None:
            log.warning(said)
        return about

    def _check_alone(self) -> None:
        """Raise an error where a run of the same name, started at the same time, has written since ``begin``."""
        now = self.checkpoints.to_resume(self.cfg.resume)
        if (now and now["progress"]) != (self.resume and self.resume["progress"]):
            raise ConfigError(f"another process has gone on with '{self.name}' meanwhile; start again")

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
        log = training.RunLogger(folder, config, self.resume, self.fabric.is_global_zero, self._check_alone)
        with log as logger:
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
            plates, of_splits = None, None
            if isinstance(evaluate, training.SplitEvaluation):
                plates, of_splits = evaluate.plates, evaluate
                evaluate = evaluate if evaluate.loaders else None
            best = training.fit(run, self.plan, evaluate, self.resume, self.cfg.seed).best
            if of_splits is not None and self.fabric.is_global_zero:
                of_splits.write(folder)
            if plates is not None and self.checkpoints.enabled:
                training.measure_run(self.fabric, optimized.network, plates, self.checkpoints.folder)
            return best


class Opened(NamedTuple):
    """What a tool that loads a model begins with: the device, the model and where it came from, and the screen."""

    fabric: Fabric
    path: Path
    network: Network
    architecture: Architecture
    channels: list[str] | None
    screen: Screen


def open_model(cfg: Config, tool: str) -> Opened:
    """Load the network of a checkpoint, and build the screen that a tool runs it on.

    Args:
        cfg: of the tool.
        tool: its name, for the error.

    Returns:
        The network on the host, and ``channels``, the names of those that it expects; None where its checkpoint is of
        other code, and says only how many.

    Raises:
        ConfigError, CheckpointError, DataError: no network is named, it cannot be loaded, or its channels do not fit.
    """
    if cfg.model_path is None:
        raise ConfigError(f"{tool} needs a network, and none is named", "network")
    fabric = training.make_fabric(cfg.device, cfg.precision)
    path = training.find_checkpoint(cfg.model_path)
    network, architecture, origin = training.load_network(path, cfg.model.key)
    screen = build(cfg.dataloaders.source)
    channels = origin.get("channels")
    if channels is None:
        training.check_channels(architecture, origin, screen, path)
    return Opened(fabric, path, network, architecture, channels, screen)


def tool_folder(cfg: Config, tool: str) -> Path:
    """Where a tool writes: the folder of its run below ``runs/``.

    Raises:
        ConfigError: it is that of a training run.
    """
    name = run_name(cfg.run_name, tool)
    if (Path("checkpoints") / name).exists():
        raise ConfigError(f"'{name}' is a run that was trained; choose another name for that of {tool}", "run_name")
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
