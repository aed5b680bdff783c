"""Checkpoints: written atomically, read without running code from them."""

import contextlib
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biomass.errors import CheckpointError, ConfigError, one_line

LAST, BEST = "last.pt", "best.pt"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` (tensors and plain values) such that ``path`` is the old file or the whole new one, never less.

    Raises:
        ConfigError: the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write checkpoint '{path}' ({error.strerror}); free or change the folder") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host; only tensors and plain values are accepted.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that holds other pickled objects.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint '{path}'; give a file that a run wrote under checkpoints/")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint '{path}' holds pickled objects beside weights, or is damaged, and is refused; "
            f"save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{path}' cannot be read ({one_line(error)}); is it cut off?") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint '{path}' holds a {type(state).__name__}, not a dictionary of weights")
    return state


@dataclass(frozen=True)
class Checkpoints:
    """The ``last`` and ``best`` checkpoint of one run.

    Attributes:
        folder: ``checkpoints/<run name>``; made at the first save.
        enabled: False writes nothing.
    """

    folder: Path
    enabled: bool = True

    @property
    def last(self) -> Path:
        """Where the newest checkpoint stands, or will."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """Where the checkpoint with the best monitored metric stands, or will."""
        return self.folder / BEST

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Write ``last`` and, where this is the best state so far, ``best``."""
        if not self.enabled:
            return
        save_checkpoint(state, self.last)
        if is_best:
            part = self.best.with_name(BEST + ".part")
            shutil.copyfile(self.last, part)
            part.replace(self.best)

    def to_resume(self, resume: str | None) -> dict[str, Any] | None:
        """The state to go on from: none, this run's own (``auto``, if it has one), or that of a file or run folder.

        Raises:
            CheckpointError: the named checkpoint is not there, or ``resume`` is null but this run has one already.
        """
        if resume is None:
            if self.enabled and self.last.exists():
                raise CheckpointError(
                    f"'{self.folder}' holds a run already; continue it with resume=auto, or choose another run_name"
                )
            return None
        if resume == "auto":
            return load_checkpoint(self.last) if self.last.exists() else None
        path = Path(resume)
        return load_checkpoint(path / LAST if path.is_dir() else path)


def check_architecture(state: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Refuse weights of another network.

    Raises:
        CheckpointError: names the first difference.
    """
    found = state.get("architecture")
    if not isinstance(found, dict):
        raise CheckpointError(f"checkpoint '{source}' was not written by a training script; it names no architecture")
    for key, value in expected.items():
        if found.get(key) != value:
            raise CheckpointError(
                f"checkpoint '{source}' has {key} {found.get(key)}, this run has {value}; "
                f"make the model's keys agree, or start without this checkpoint"
            )
