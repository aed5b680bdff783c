"""Checkpoints: written atomically, checked as a whole, read without running code from them."""

import inspect
import itertools
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomass.atomic import clear_leftovers, whole_file, writing
from biomass.differences import BROKEN, first_difference
from biomass.errors import CheckpointError, one_line
from biomass.keys import KEYS, may_change
from biomass.run_files import BEST, LAST, PREVIOUS, check_new, check_there, traces_of
from biomass.tensor_files import load_tensors, save_tensors
from biomass.training.schema import RUN, check_state

log = logging.getLogger(__name__)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` (tensors and plain values) such that ``path`` is the old file or the whole new one, never less.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with whole_file(path) as part:
        save_tensors(state, part)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host, or a file of safetensors; only tensors and plain values are accepted.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds what no run, calibration or state dict does.
    """
    try:
        there = path.is_file()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{path}' cannot be read ({one_line(error)}); name another") from error
    if not there:
        what = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else None
        if what is not None:
            raise CheckpointError(f"checkpoint '{path}' is {what}; give a file that a run wrote below checkpoints/")
        raise CheckpointError(f"there is no checkpoint '{path}'; give a file that a run wrote below checkpoints/")
    state = _safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint '{path}' holds a {type(state).__name__}, not a dictionary of weights")
    check_state(state, path)
    return state


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # its sizes are checked there, and it raises classes of its own
        why = one_line(error).partition(". ")[0] if path.stat().st_size else "it is empty"
        raise CheckpointError(f"checkpoint '{path}' cannot be read ({why}); copy it again, or name another") from error


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run can go on from.

    Raises:
        CheckpointError: as :func:`load_checkpoint`; or it is not a run's own.
    """
    state = load_checkpoint(path)
    missing = next((key for key in RUN if key not in state), None)
    if missing is None and not isinstance(state["architecture"], dict):
        missing = "architecture"
    if missing is not None:
        raise CheckpointError(
            f"checkpoint '{path}' has no '{missing}', so that no run can go on from it; start a new run from "
            "its weights"
        )
    return state


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run: its last, or that before it, which a warning says; None if it has none.

    Raises:
        CheckpointError: none that is there can be read.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not os.path.lexists(previous):
        return last if os.path.lexists(last) else None
    try:
        load_checkpoint(last)
    except CheckpointError as error:
        _before(previous, error)
        log.warning("%s; the one before it, '%s', is taken", _cause(error), previous)
        return previous
    return last


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of one run, and its ``best``.

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
    def previous(self) -> Path:
        """Where the one before it stands, for when the newest is damaged."""
        return self.folder / PREVIOUS

    @property
    def best(self) -> Path:
        """Where the checkpoint with the best monitored metric stands, or will."""
        return self.folder / BEST

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Write ``last`` and, where this is the best state so far, ``best``; what was ``last`` becomes ``previous``.

        ``best`` comes first: killed in between, a run goes on from a ``last`` that does not know of it yet, and finds
        it once more.
        """
        if not self.enabled:
            return
        for path in (self.best, self.previous):  # a run that was killed at them goes on without writing them, perhaps
            clear_leftovers(path)
        if is_best:
            save_checkpoint(state, self.best)
        with whole_file(self.last) as part:
            save_tensors(state, part)
            if self.last.is_file():
                _second_name(self.last, self.previous)

    def to_resume(self, resume: str | None, runs: Path = Path("runs")) -> dict[str, Any] | None:
        """The state to go on from: none, this run's own (``auto``, if it has one), or that of a file or run folder.

        Where the run's own last checkpoint is damaged, it is set aside, and the one before it is taken.

        Args:
            resume: null, ``auto``, or a path.
            runs: where runs of this name have their logs.

        Returns:
            What :func:`load_checkpoint` reads, and where from under the key ``path``.

        Raises:
            CheckpointError: the named checkpoint is not there, is damaged, or was not written by a run; or there is
                another run of this name.
        """
        if resume is None:
            check_new(self.folder, runs)
            return None
        own = any(os.path.lexists(path) for path in (self.last, self.previous))
        taken = traces_of(self.folder, runs)
        if resume == "auto" and not own:
            return None
        path = self.last if resume == "auto" else Path(resume)
        if path.is_dir() and resume != "auto" and path.resolve() != self.folder.resolve():
            path = newest(path) or path / LAST
        elif path.is_dir() and resume != "auto":
            path = self.last
        if taken is not None and path.parent.resolve() != self.folder.resolve():
            raise CheckpointError(
                f"'{taken.parent}' holds a run already, and '{path}' is of another one; choose another name", "run_name"
            )
        if resume != "auto":
            check_there(path)
        return self._own() if path.absolute() == self.last.absolute() else load_run(path) | {"path": str(path)}

    def _own(self) -> dict[str, Any]:
        """The state of the newest checkpoint that is whole; one that is not gets another name, which a warning says."""
        seen = _identity(self.last)
        try:
            return load_run(self.last) | {"path": str(self.last)}
        except CheckpointError as error:
            try:
                state = _before(self.previous, error)
            except CheckpointError:
                if _identity(self.last) != seen:  # another process of this run was here
                    return self._own()
                raise
            if _identity(self.last) != seen:
                return self._own()
            with writing(self.last):
                kept = f"it is kept as '{_set_aside(self.last)}', and " if seen else ""
                self.previous.replace(self.last)
            log.warning("%s; %sthe run goes on from the one before it", _cause(error), kept)
        return state | {"path": str(self.last)}


def _before(previous: Path, error: CheckpointError) -> dict[str, Any]:
    """The checkpoint before one that could not be read.

    Raises:
        CheckpointError: that error, where it is not about the bytes of the file, or where this one is no better.
    """
    if isinstance(error.__cause__, OSError) or not os.path.lexists(previous):
        raise error
    try:
        return load_run(previous)
    except CheckpointError as worse:
        raise CheckpointError(
            f"{_cause(error)}, nor is the one before it whole: {_cause(worse)}; start a new run, under another name"
        ) from worse


def _cause(error: CheckpointError) -> str:
    """What an error says before its remedy."""
    return str(error).rpartition("; ")[0] or str(error)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _set_aside(path: Path) -> Path:
    """Give a damaged file, link or folder a name that nothing has, and nothing reads."""
    number = next(n for n in itertools.count(1) if not os.path.lexists(path.with_suffix(f".damaged-{n}{path.suffix}")))
    return path.rename(path.with_suffix(f".damaged-{number}{path.suffix}"))


def _second_name(path: Path, name: Path) -> None:
    """Let the file at ``path`` stand at ``name``, too, in the place of what stands there."""
    spare = name.with_name(f".{name.name}.{os.getpid()}.part")
    try:
        spare.unlink(missing_ok=True)
        os.link(path, spare)
        spare.replace(name)
    except OSError:  # not every disk knows files of two names
        path.replace(name)
    finally:
        spare.unlink(missing_ok=True)


def check_resume(state: dict[str, Any] | None, about: Mapping[str, Any], other_data: bool = False) -> None:
    """Refuse to go on with another network, other data, or settings that the run did not begin with; before writing.

    Longer or shorter training, other devices and other places of the same files do not make another run, see
    :data:`biomass.keys.KEYS`. A key that only one side has counts as null, or as what runs did before there was such a
    key; an argument of a target that only one side has counts as its default.

    Args:
        state: as :meth:`Checkpoints.to_resume` gives it.
        about: what this run's checkpoints will carry beside their state: ``architecture``, ``config``, the settings of
            its ``method``, the digest of the ``encoder`` that a probe stands on, and the fingerprint of its ``data``.
        other_data: go on with other data all the same, and say so.

    Raises:
        CheckpointError: names the first difference.
    """
    if state is None:
        return
    for part in ("config", "method"):
        _compare(state["path"], *(_settings(side.get(part, {}), part) for side in (state, about)))
    _compare_data(state, about, other_data)  # before what follows from it, such as the number of classes
    _compare(state["path"], leaves(state["architecture"]), leaves(about["architecture"]))
    if state.get("encoder") != about.get("encoder"):
        raise CheckpointError(
            f"checkpoint '{state['path']}' is a probe of another encoder; give the one that it began with, or start a "
            "new run"
        )


def check_batches(state: Mapping[str, Any] | None, ranks: int, accumulate: int) -> None:
    """Refuse to go on with other batches a step: learning rates count steps. The same may be shared in another way.

    Args:
        state: as :meth:`Checkpoints.to_resume` gives it.
        ranks: processes of this run.
        accumulate: batches of each of them that make a step.

    Raises:
        CheckpointError: the run began with more batches a step, or with less.
    """
    if state is None:
        return
    before = ranks_of(state) * int((state["config"].get("trainer") or {}).get("accumulate") or 1)
    if before == ranks * accumulate:
        return
    if before % ranks:
        how, advice = f"go on with a number of devices that divides {before}", None
    else:
        how, advice = f"accumulate {before // ranks} on each device", "accumulate"
    raise CheckpointError(
        f"checkpoint '{state['path']}' was made with {before} batches a step, and this run has {ranks * accumulate} "
        f"({ranks} devices, {accumulate} accumulated): {how}, or start a new run",
        advice,
    )


def ranks_of(state: Mapping[str, Any]) -> int:
    """How many processes a run had; before they were written down, as many as its devices."""
    devices = (state["config"].get("trainer") or {}).get("devices")
    return int(state["progress"].get("ranks") or (devices if isinstance(devices, int) else 1))


def _compare_data(state: Mapping[str, Any], about: Mapping[str, Any], other_data: bool) -> None:
    if "data" not in state:  # it was written before data had fingerprints
        log.info("checkpoint '%s' does not say what data it was trained on: they are not compared", state["path"])
        return
    try:
        found = first_difference(state["data"], about["data"])
    except BROKEN as error:
        raise CheckpointError(
            f"checkpoint '{state['path']}' is damaged where it says what data it was trained on ({one_line(error)}); "
            "copy it again, or start a new run from its weights"
        ) from error
    if found is None:
        return
    if not other_data:
        raise CheckpointError(
            f"the data are not those that '{state['path']}' was trained on: {found}; give it the same data, or start a "
            "new run",
            "other_data",
        )
    log.warning("goes on with other data than those that '%s' was trained on: %s", state["path"], found)


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
