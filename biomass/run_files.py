"""What a run leaves, found and read again: its checkpoints, its configuration and its log."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.bounds import BoundedLoader, read_json
from biomass.errors import CheckpointError, DataError, did_you_mean, one_line

LAST, PREVIOUS, BEST = "last.pt", "last.previous.pt", "best.pt"
"""The checkpoints of a run, below ``checkpoints/<run name>``."""
METRICS = "metrics.jsonl"
"""Its log, below ``runs/<run name>``."""


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run; None where the folder has none.

    Raises:
        DataError: it cannot be read.
    """
    file = folder / "config.yaml"
    if not file.exists():
        return None
    try:
        config = OmegaConf.to_container(
            OmegaConf.create(yaml.load(file.read_text(encoding="utf-8"), Loader=BoundedLoader) or {})
        )
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DataError(
            f"'{file}' cannot be read ({one_line(error)}); remove the folder, or name other runs"
        ) from error
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a dictionary a line; without what is none, as a line that was cut off by a kill."""
    file = folder / METRICS
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return [line for line in map(entry_of, lines) if line is not None]


def entry_of(line: str) -> dict[str, Any] | None:
    """A line of a log; None where it is none.

    >>> entry_of('{"step": 3, "train/loss": 0.5}'), entry_of('{"step": 3, "tra'), entry_of("[3]"), entry_of("{}")
    ({'step': 3, 'train/loss': 0.5}, None, None, None)
    """
    with contextlib.suppress(ValueError):
        entry = read_json(line)
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            return entry
    return None


def runs_with_checkpoints(folder: Path = Path("checkpoints")) -> list[Path]:
    """The runs below a folder, the one with the newest checkpoint last."""
    ends = {path.parent: path.lstat().st_mtime for name in (PREVIOUS, LAST) for path in folder.glob(f"*/{name}")}
    return sorted(ends, key=lambda run: ends[run])


def find_named(model_path: str, folder: Path = Path("checkpoints")) -> Path:
    """The checkpoint file, or the folder of checkpoints of the run, that ``model_path`` names.

    A job of a sweep may be named without what differs between the jobs: ``sweep-3`` for ``sweep-3_seed-0``.

    Raises:
        CheckpointError: there is no such file or run; names the runs that are there.
    """
    if Path(model_path).is_file():
        return Path(model_path)
    runs = runs_with_checkpoints(folder)
    if folder / model_path in runs:
        return folder / model_path
    jobs = [run for run in runs if run.name.startswith(f"{model_path}_")]
    if len(jobs) == 1 and re.search(r"-\d+$", model_path):
        return jobs[0]
    known = f"choose one of {', '.join(run.name for run in runs[-5:])}" if runs else "train one"
    hint = did_you_mean(Path(model_path).name, [run.name for run in runs], f"in {folder}/: {known}")
    raise CheckpointError(f"'{model_path}' is neither a checkpoint file nor a run; {hint}")


def traces_of(checkpoints: Path, runs: Path = Path("runs")) -> Path | None:
    """What shows that a run was there already: a checkpoint of it, or its log; None where nothing does.

    Args:
        checkpoints: its folder of checkpoints.
        runs: where runs have their logs.
    """
    metrics = runs / checkpoints.name / METRICS
    own = next((path for name in (LAST, PREVIOUS) if os.path.lexists(path := checkpoints / name)), None)
    return own or (metrics if metrics.exists() and metrics.stat().st_size else None)


def check_new(checkpoints: Path, runs: Path = Path("runs")) -> None:
    """Raise CheckpointError if there is a run already that a new one would be mixed with, see :func:`traces_of`."""
    taken = traces_of(checkpoints, runs)
    if taken is not None:
        raise CheckpointError(f"'{taken.parent}' holds a run already; continue it, or choose another name", "resume")


def check_there(checkpoint: Path) -> None:
    """Raise CheckpointError if nothing is there to go on from."""
    if not os.path.lexists(checkpoint):
        raise CheckpointError(f"there is no checkpoint '{checkpoint}' to go on from", "resume_from")
