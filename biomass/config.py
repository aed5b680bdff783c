"""From YAML to plain arguments: the one place where Hydra and omegaconf are known.

A root script is a function from a :class:`Config` to the metric that a sweep may optimize. :func:`script` runs it under
Hydra and turns every error of the user's into one line; :func:`build` makes an object from a node with a ``_target_``.
"""

import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.errors import BiomassError, ConfigError, one_line


class Config:
    """A read-only view of a composed configuration that remembers which keys were read.

    Every key of an experiment must have a reader: a misspelt key would otherwise be ignored in silence. Sections are
    views themselves; lists, and sections with a ``_target_`` (for :func:`build`), come as plain values.
    """

    def __init__(self, node: DictConfig, path: str = "", read: set[str] | None = None) -> None:
        self._node = node
        self._path = path
        self._read = set() if read is None else read

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._node:
            near = difflib.get_close_matches(key, [str(k) for k in self._node], 1)
            hint = f"; is '{self._path}{near[0]}' meant?" if near else ""
            raise ConfigError(f"key '{self._path}{key}' is missing; add it to the YAML{hint}")
        value = self._value(key)
        if isinstance(value, DictConfig) and "_target_" not in value:
            return Config(value, f"{self._path}{key}.", self._read)
        self._read.add(f"{self._path}{key}")
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where the key is absent or null."""
        value = getattr(self, key) if key in self._node else None
        return default if value is None else value

    def _value(self, key: str) -> Any:
        try:
            return self._node[key]
        except OmegaConfBaseException as error:
            raise ConfigError(f"key '{self._path}{key}': {one_line(error)}") from error

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration as plain, resolved values."""
        try:
            values = OmegaConf.to_container(self._node, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(one_line(error)) from error
        assert isinstance(values, dict)
        return {str(key): value for key, value in values.items()}

    def check_all_read(self) -> None:
        """Call this when everything is built and nothing is written yet.

        Raises:
            ConfigError: a key that nothing has read, with the nearest key that exists.
        """
        referred = set(re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(self._node)))  # read through interpolation
        known = self._read | referred
        for path in _leaves(self._node, ""):
            if not any(path == read or path.startswith(f"{read}.") for read in known):
                near = difflib.get_close_matches(path, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else "remove it"
                raise ConfigError(f"unknown key '{path}'; {hint}")


def _leaves(node: DictConfig, path: str) -> Iterator[str]:
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation() and len(value):
            yield from _leaves(value, f"{path}{key!s}.")
        else:
            yield f"{path}{key!s}"


def build(node: dict[str, Any], **arguments: Any) -> Any:
    """Make the object that a configuration node names with ``_target_``: the only call of Hydra's ``instantiate``.

    Args:
        node: ``_target_`` and its keyword arguments, nested nodes allowed; lists and dicts arrive as plain Python.
        arguments: further keyword arguments, which win over those of the node.

    Raises:
        ConfigError: the target does not exist or does not take an argument. Errors of the family pass as they are.
    """
    try:
        return hydra.utils.instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, BiomassError):
            raise cause from None
        if isinstance(cause, TypeError | ImportError) or cause is None:
            raise ConfigError(f"cannot build {node.get('_target_')}: {one_line(cause or error)}") from error
        raise


def script(config_name: str) -> Callable[[Callable[[Config], float | None]], Callable[[], Any]]:
    """Make a root script of a function, composed from ``configs/<config_name>.yaml`` beside it.

    An error of the user's is printed as one line without a traceback, and the exit code is 1. Set HYDRA_FULL_ERROR=1
    for the traceback. The undecorated function is the attribute ``__wrapped__``.
    """

    def decorate(main: Callable[[Config], float | None]) -> Callable[[], Any]:
        @functools.wraps(main)
        def entry() -> Any:
            full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"

            def task(node: DictConfig) -> float | None:
                if full_errors:
                    return main(Config(node))
                try:
                    return main(Config(node))
                except BiomassError as error:
                    raise SystemExit(f"error: {error}") from None

            folder = Path(inspect.getfile(main)).resolve().parent / "configs"
            run = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(task)
            if full_errors:
                return run()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, and we print one line of it
            try:
                return run()
            except (HydraException, OmegaConfBaseException) as error:
                raise SystemExit(f"error: {_explain(error)}") from None
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise SystemExit(
                    f"error: cannot write to '{error.filename}' ({error.strerror}); run where you may write"
                ) from None
            finally:
                del os.environ["HYDRA_FULL_ERROR"]

        return entry

    return decorate


def run_name(name: str | None, job: str) -> str:
    """The name that a run's folders share, distinct for every job of a sweep.

    Args:
        name: the user's choice; without one it is ``job`` and the time that ``outputs/`` shows for this run.
        job: the script's name.

    Raises:
        ConfigError: the name cannot name a folder.
    """
    settings = HydraConfig.get() if HydraConfig.initialized() else None
    sweep = settings is not None and settings.mode == RunMode.MULTIRUN
    if name is None and settings is not None:
        name = "-".join([job, *Path(settings.sweep.dir if sweep else settings.run.dir).parts[-2:]])
    elif name is None:
        name = f"{job}-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    if not re.fullmatch(r"[\w,=+-][\w.,=+-]*", name):
        raise ConfigError(f"run_name '{name}' cannot name a folder; use letters, digits and . , = + - _")
    return f"{name}-{settings.job.num}" if sweep and settings is not None else name


def _explain(error: Exception) -> str:
    unknown = re.search(r"Could not (?:override|delete from config)[^']*'([^']*)'", str(error))
    if unknown:
        return f"unknown key '{unknown[1]}'; the option --cfg job lists every key"
    return one_line(error)
