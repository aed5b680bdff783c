"""What a run leaves to look at: TensorBoard events, JSON-lines of the same scalars, the configuration."""

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.utils import make_grid

from biomass.errors import ConfigError
from biomass.evaluation.accuracy import meaning
from biomass.training.checkpoint import METRICS

PACKAGES = ("biomass", "torch", "torchvision", "timm", "lightning-fabric", "hydra-core", "wilds", "numpy", "pandas")

_PATIENCE = 10.0
"""Seconds to wait for the reading workers of a run of the same name that was killed, until they notice it."""


class RunLogger:
    """Writes into ``runs/<run name>``: TensorBoard events, ``metrics.jsonl``, ``config.yaml`` and ``environment.json``.

    Args:
        folder: made if absent.
        config: the resolved configuration, plain values.
        resume: the checkpoint that a resumed run goes on from; what had been logged behind it is dropped.
        enabled: False (on all ranks but the first) writes nothing.
        check: called when no other process can write here any more, before this one does.

    Attributes:
        latest: the last value of every scalar of this process.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing to it.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        resume: Mapping[str, Any] | None = None,
        enabled: bool = True,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        step = int(resume["progress"]["step"]) if resume else None
        self.folder = folder
        self.latest: dict[str, float] = {}
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # a second to import, only needed here

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")  # let go of by the system if this process is killed
            self._lock.acquire(timeout=_PATIENCE)
            check()
            OmegaConf.save(OmegaConf.create(dict(config)), folder / "config.yaml")
            (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
            lines = _lines_up_to(folder / METRICS, step)
            (folder / METRICS).write_text("".join(lines))
            self._before = float(json.loads(lines[-1]).get("seconds", "nan")) if lines else 0.0
            self._began = time.monotonic()
            self._lines = (folder / METRICS).open("a")
            self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
            self._described: set[str] = set()
        except Timeout as error:
            raise ConfigError(
                f"another process is writing '{folder}'; wait for it, or choose another run_name"
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot write the run's log '{folder}' ({error.strerror}); free or change it") from error

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line of JSON, and one TensorBoard point a value.

        The line also has the ``time`` of day, and the ``seconds`` that the run has spent on what the log holds: those
        before a resume included, setting up not. They are left out where the run began before they were counted.
        """
        self.latest |= values
        if not self.enabled:
            return
        seconds = self._before + time.monotonic() - self._began
        spent = {} if math.isnan(seconds) else {"seconds": round(seconds, 3)}
        line = {"step": step, "epoch": epoch, "time": time.time(), **spent, **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._point(name, value, step)

    def _point(self, name: str, value: float, step: int) -> None:
        """A point in TensorBoard; the first of each name says what the metric measures."""
        if name in self._described or not meaning(name):
            self._board.add_scalar(name, value, step)
            return
        from torch.utils.tensorboard.summary import scalar

        summary = scalar(name, value)
        summary.value[0].metadata.summary_description = meaning(name)
        assert self._board.file_writer is not None
        self._board.file_writer.add_summary(summary, step)
        self._described.add(name)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """A distribution, for example of the accuracy over plates."""
        if self.enabled and len(values):
            self._board.add_histogram(name, np.asarray(values), step)

    def images(self, step: int, name: str, images: Tensor, groups: Tensor) -> None:
        """A grid of raw images (N, C, H, W), a row of up to 8 for each of up to 8 groups (N,)."""
        if self.enabled:
            self._board.add_image(name, image_grid(images, groups), step)

    def text(self, name: str, text: str) -> None:
        """A text to read beside the run, for example the list of images left out."""
        if self.enabled:
            (self.folder / name).write_text(text)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self._board.close()
            self._lines.close()
            self._lock.release()


def image_grid(images: Tensor, groups: Tensor, side: int = 8) -> Tensor:
    """Images (N, C, H, W) as one picture (3, h, w) in 0..1; a row for each group, or all rows for a single group.

    The first three channels become red, green and blue; each is stretched between the 1st and 99.5th percentile of the
    batch, the same for all images, so that differences between plates stay visible.
    """
    groups = groups.cpu()
    names = groups.unique()
    per_group = side * side if len(names) == 1 else side
    chosen = torch.cat([torch.nonzero(groups == g)[:per_group, 0] for g in names[:side]])
    shown = images.cpu()[chosen].float()[:, :3]
    flat = shown.transpose(0, 1).flatten(1)
    low, high = (torch.from_numpy(np.percentile(flat.numpy(), q, axis=1)).float() for q in (1.0, 99.5))
    shown = ((shown - low.view(1, -1, 1, 1)) / (high - low).clamp(min=1e-6).view(1, -1, 1, 1)).clamp(0, 1)
    if shown.shape[1] == 2:
        shown = torch.cat([shown, torch.zeros_like(shown[:, :1])], 1)
    if len(names) > 1:  # pad the rows of small groups, so that every group starts a new row
        counts = [int((groups[chosen] == g).sum()) for g in names[:side]]
        blank = torch.zeros(side, *shown.shape[1:])
        shown = torch.cat([torch.cat([part, blank[len(part) :]]) for part in shown.split(counts)])
    return make_grid(shown, nrow=side, padding=1)


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _lines_up_to(path: Path, step: int | None) -> list[str]:
    """What a log holds of the first steps; None: of a run that begins, nothing."""
    if step is None or not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if not lines[-1:] or not lines[-1].endswith("\n"):  # torn by a kill
        lines = lines[:-1]
    return [line for line in lines if json.loads(line)["step"] <= step]
