"""Checkpoints: written atomically, read without running code from them."""

import argparse
import inspect
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from biomass.atomic import whole_file
from biomass.errors import CheckpointError, one_line
from biomass.keys import KEYS, may_change

LAST, BEST = "last.pt", "best.pt"
_STARTS = (b"PK", b"\x80\x02")  # of files that torch.save writes, today's and those of old
METRICS = "metrics.jsonl"

_OF_A_RUN = ("architecture", "config", "network", "optimizer", "schedule", "progress", "random")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` (tensors and plain values) such that ``path`` is the old file or the whole new one, never less.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with whole_file(path) as part, part.open("wb") as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host, or a file of safetensors; only tensors and plain values are accepted.

    Settings that code of others writes beside weights are plain, too: those of a command line, paths, NumPy's numbers.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that holds other pickled objects.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint '{path}'; give a file that a run wrote below checkpoints/")
    if not path.stat().st_size:
        raise CheckpointError(f"checkpoint '{path}' is empty: copy it again, or name another")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_plain_objects()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint '{path}' holds pickled objects beside weights{_named_object(error)}, or is damaged, and is "
            "refused, since reading it would run code; save its state dict alone"
        ) from error
    except Exception as error:  # torch.load raises whatever the bytes of another file lead it to
        with path.open("rb") as file:
            written = file.read(2)
        if path.suffix != ".safetensors" and written not in _STARTS:
            raise CheckpointError(
                f"checkpoint '{path}' is no file that torch.save wrote, by its first bytes; name another"
            ) from error
        why = one_line(error).partition(". ")[0]
        raise CheckpointError(f"checkpoint '{path}' cannot be read ({why}); is it cut off?") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint '{path}' holds a {type(state).__name__}, not a dictionary of weights")
    return state


def _plain_objects() -> list[Any]:
    """Classes and functions of a pickle that hold values alone, and the names that they have in files."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = ("?", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    paths = [(PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, *paths, *numbers, np.dtype, *(type(np.dtype(dtype)) for dtype in dtypes)]


def _named_object(error: Exception) -> str:
    """The object that torch refuses, as its message names it.

    >>> _named_object(ValueError("Unsupported global: GLOBAL my.Model was not an allowed global by default."))
    ' (my.Model)'
    """
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


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
        """Write ``last`` and, where this is the best state so far, ``best``.

        ``best`` comes first: killed in between, a run goes on from a ``last`` that does not know of it yet, and finds
        it once more.
        """
        if not self.enabled:
            return
        if is_best:
            save_checkpoint(state, self.best)
        save_checkpoint(state, self.last)

    def to_resume(self, resume: str | None, runs: Path = Path("runs")) -> dict[str, Any] | None:
        """The state to go on from: none, this run's own (``auto``, if it has one), or that of a file or run folder.

        Args:
            resume: null, ``auto``, or a path.
            runs: where runs of this name have their logs.

        Returns:
            What :func:`load_checkpoint` reads, and where from under the key ``path``.

        Raises:
            CheckpointError: the named checkpoint is not there or was not written by a run; or there is another run
                of this name.
        """
        log = runs / self.folder.name / METRICS
        taken = self.last if self.last.exists() else log if log.exists() and log.stat().st_size else None
        if resume is None:
            if taken is not None:
                raise CheckpointError(
                    f"'{taken.parent}' holds a run already; continue it, or choose another name", "resume"
                )
            return None
        path = self.last if resume == "auto" else Path(resume)
        path = path / LAST if path.is_dir() else path
        if resume == "auto" and not path.exists():
            return None
        if taken is not None and path.resolve().parent != self.folder.resolve():
            raise CheckpointError(
                f"'{taken.parent}' holds a run already, and '{path}' is of another one; choose another name", "run_name"
            )
        state = load_checkpoint(path)
        missing = next((key for key in _OF_A_RUN if key not in state), None)
        if missing is not None:
            raise CheckpointError(
                f"checkpoint '{path}' has no '{missing}', so that no run can go on from it; start a new run from its "
                "weights"
            )
        return state | {"path": str(path)}


def check_resume(state: dict[str, Any] | None, about: Mapping[str, Any]) -> None:
    """Refuse to go on with another network, or with settings that the run did not begin with. Call it before writing.

    Longer or shorter training, other devices and other places of the same files do not make another run, see
    :data:`biomass.keys.KEYS`. A key that only one side has counts as null, or as what runs did before there was such a
    key; an argument of a target that only one side has counts as its default.

    Args:
        state: as :meth:`Checkpoints.to_resume` gives it.
        about: what this run's checkpoints will carry beside their state: ``architecture``, ``config``, the settings of
            its ``method``, and the digest of the ``encoder`` that a probe stands on.

    Raises:
        CheckpointError: names the first difference.
    """
    if state is None:
        return
    _compare(state["path"], leaves(state["architecture"]), leaves(about["architecture"]))
    for part in ("config", "method"):
        _compare(state["path"], *(_settings(side.get(part, {}), part) for side in (state, about)))
    if state.get("encoder") != about.get("encoder"):
        raise CheckpointError(
            f"checkpoint '{state['path']}' is a probe of another encoder; give the one that it began with, or start a "
            "new run"
        )


def _compare(path: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in [*wanted, *found]:
        unset = KEYS[key].unset if key in KEYS else None
        was, now = (unset if side.get(key) is None else side[key] for side in (found, wanted))
        if was != now:
            raise CheckpointError(
                f"checkpoint '{path}' was made with {key}={was}, this run has {key}={now}; set it back, or start a new "
                "run"
            )


def _settings(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What must be the same in a resumed run, under dotted names. An encoder's own settings have their digest."""
    if part == "method":
        return {f"statistics ({key})": value for key, value in config.items()}
    settings = leaves(completed({key: value for key, value in config.items() if key != "encoder"}))
    return {key: value for key, value in settings.items() if not may_change(key)}


def completed(value: Any) -> Any:
    """The same with the default of every argument that a section with a ``_target_`` leaves out."""
    if isinstance(value, list):
        return [completed(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    values = {key: completed(one) for key, one in value.items()}
    try:
        module, _, name = values["_target_"].rpartition(".")
        # what is not imported is not what this run reads with; it is not imported for a look
        parameters = inspect.signature(getattr(sys.modules[module], name)).parameters.values()
    except (KeyError, AttributeError, ValueError, TypeError):  # not a target, or another one
        return values
    return {one.name: one.default for one in parameters if one.default is not one.empty} | values


def leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values of nested mappings under their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat
