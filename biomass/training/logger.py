"""What a run leaves to look at: TensorBoard events, JSON-lines of the same scalars, the configuration."""

import importlib.metadata
import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.utils import make_grid

from biomass.atomic import whole_file, writing
from biomass.evaluation.accuracy import meaning
from biomass.run_files import METRICS, entry_of
from biomass.run_lock import own
from biomass.training.events import Appended, Board

log = logging.getLogger(__name__)

PACKAGES = ("biomass", "torch", "torchvision", "timm", "lightning-fabric", "hydra-core", "wilds", "numpy", "pandas")

_BINS = 30
"""Bars of a histogram, as many as TensorBoard shows."""


class RunLogger:
    """Writes into ``runs/<run name>``: TensorBoard events, ``metrics.jsonl``, ``config.yaml`` and ``environment.json``.

    What belongs to the evaluation of a step is written with its scalars, all of it or nothing.

    Args:
        folder: made if absent; belongs to this process from then on, see :func:`biomass.run_lock.own`.
        config: the resolved configuration, plain values.
        resume: the checkpoint that a resumed run goes on from; what had been logged behind it is dropped.
        enabled: False (on all ranks but the first) writes nothing.

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
    ) -> None:
        self.folder = folder
        self.latest: dict[str, float] = {}
        self.enabled = enabled
        if not enabled:
            return
        own(folder)
        with self._writing():
            _write_once(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
            _write_once(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
            lines = _kept_lines(folder / METRICS, resume)
            _write_once(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
            seconds = lines[-1].get("seconds") if lines else 0.0
            self._before = float(seconds) if isinstance(seconds, int | float) else math.nan
            self._began = time.monotonic()
            self._lines = Appended(folder / METRICS)
            self._board = Board(folder, partial(_keeps, resume) if resume else None)
            self._described: set[str] = set()

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.folder)

    def scalars(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line of JSON, and one TensorBoard point a value.

        The line also has the ``time`` of day, and the ``seconds`` that the run has spent on what the log holds: those
        before a resume included, setting up not. They are left out where the run began before they were counted.

        Raises:
            ConfigError: the disk is full, or away. The files end with what was written before.
        """
        self.latest |= values
        if not self.enabled:
            return
        seconds = self._before + time.monotonic() - self._began
        spent = {} if math.isnan(seconds) else {"seconds": round(seconds, 3)}
        line = {"step": step, "epoch": epoch, "time": time.time(), **spent, **values}
        for name, value in values.items():
            self._point(name, value, step)
        with self._writing():
            self._board.write()
            self._lines.add(json.dumps(line).encode() + b"\n")

    def _point(self, name: str, value: float, step: int) -> None:
        """A point in TensorBoard; the first of each name says what the metric measures."""
        from torch.utils.tensorboard.summary import scalar  # a second to import, only needed here

        summary = scalar(name, value)
        if name not in self._described and meaning(name):
            summary.value[0].metadata.summary_description = meaning(name)
            self._described.add(name)
        self._board.add(step, summary)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """A distribution, for example of the accuracy over plates; written with the next scalars."""
        if self.enabled and len(values):
            from torch.utils.tensorboard.summary import histogram

            self._board.add(step, histogram(name, np.asarray(values, float), _BINS))

    def images(self, step: int, name: str, images: Tensor, groups: Tensor) -> None:
        """A grid of raw images (N, C, H, W), up to 8 of each of up to 8 groups (N,)."""
        if self.enabled:
            from torch.utils.tensorboard.summary import image

            self._board.add(step, image(name, image_grid(images, groups), dataformats="CHW"))
            with self._writing():
                self._board.write()

    def text(self, name: str, text: str) -> None:
        """A text to read beside the run, for example the list of images left out."""
        if self.enabled:
            with whole_file(self.folder / name) as part:
                part.write_text(text)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self._board.close()
            self._lines.close()


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


def _write_once(file: Path, text: str) -> None:
    """Write a file that does not hold this yet."""
    if not file.is_file() or file.read_bytes() != text.encode():
        with whole_file(file) as part:
            part.write_text(text)


def _keeps(resume: Mapping[str, Any], step: int, name: str) -> bool:
    """Whether a value that was logged at a step belongs to what a checkpoint knows.

    A checkpoint of a run that was stopped while it was evaluated does not know of that evaluation.
    """
    last = int(resume["progress"]["step"])
    return step < last or (
        step == last and (name.startswith("train/") or "closing" not in resume.get("unfinished", {}))
    )


def _kept_lines(file: Path, resume: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a log holds of the steps that a checkpoint knows; of a run that begins, nothing."""
    if resume is None or not file.exists():
        return []
    text = file.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a line that a kill tore is none
    lines = [line for line in map(entry_of, whole.splitlines()) if line is not None]
    if len(lines) < len(whole.splitlines()):
        log.warning("left out %d lines of '%s' that say no step", len(whole.splitlines()) - len(lines), file)
    return [
        line for line in lines if all(_keeps(resume, line["step"], name) for name in ("train/", *line) if "/" in name)
    ]
