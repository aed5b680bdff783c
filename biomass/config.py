"""From YAML to plain arguments: the one place where Hydra and omegaconf are known.

A root script is a function from a :class:`Config` to the metric that a sweep may optimize. :func:`script` runs it under
Hydra and turns every error of the user's into one line; :func:`build` makes an object from a node with a ``_target_``.
"""

import copy
import difflib
import functools
import inspect
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.errors import BiomassError, ConfigError, one_line


class Kind(NamedTuple):
    """What the value of a key may be.

    Attributes:
        types: of the value; true and false are no numbers here.
        what: the same in words, for the error that says "it must be …".
        least: the smallest number allowed.
        item: what each element of a list may be.
        null: whether null is a value.
        text: a number or true stands for its text, as a folder may be called 20261124.
    """

    types: type | UnionType
    what: str
    least: float = -math.inf
    item: "Kind | None" = None
    null: bool = False
    text: bool = False

    def or_null(self) -> "Kind":
        """The same, or null."""
        return self._replace(what=f"{self.what} or null", null=True)


FLAG = Kind(bool, "true or false")
WORD = Kind(str, "a word")
NAME = Kind(str, "a name or path", text=True)
NATURAL = Kind(int, "a whole number of at least 0", least=0)
COUNT = Kind(int, "a whole number of at least 1", least=1)
NUMBER = Kind(int | float, "a number")
POSITIVE = Kind(int | float, "a number of at least 0", least=0)
WORDS = Kind(list, "a list of words", item=WORD)
WIDTHS = Kind(list, "a list of whole numbers of at least 1", item=COUNT)
SECTION = Kind(dict, "a section of keys")
TARGET = Kind(dict, "a section with a _target_")
TARGETS = Kind(list, "a list of sections with a _target_", item=TARGET)

KEYS = {
    "run_name": NAME.or_null(),
    "save_key": NAME.or_null(),
    "seed": NATURAL,
    "resume": NAME._replace(what="auto, a checkpoint").or_null(),
    "device": WORD,
    "precision": Kind(int | str, "32, bf16 or 16"),
    # the network
    "model_path": NAME.or_null(),
    "sup_model_path": NAME.or_null(),
    "frozen_model_path": NAME.or_null(),
    "model": SECTION,
    "model.key": WORD,
    "model.d_out": COUNT.or_null(),
    "model.pretrained": FLAG,
    "model.projector": WIDTHS,
    "use_projs": FLAG,
    "model_train_mode": FLAG,
    "normalize": FLAG,
    "pooler": WORD,
    "in_features": COUNT.or_null(),
    "out_features": COUNT.or_null(),
    "channels": WORDS.or_null(),
    # the data
    "dataloaders": SECTION,
    "dataloaders.root_dir": NAME,
    "dataloaders.img_dir": NAME.or_null(),
    "dataloaders.summary_file": NAME.or_null(),
    "dataloaders.metadata_file": NAME.or_null(),
    "dataloaders.store": NAME.or_null(),
    "dataloaders.cache_dir": NAME.or_null(),
    "dataloaders.plates": Kind(str | list, "a name, a list of names", item=WORD).or_null(),
    "dataloaders.source": TARGET,
    "dataloaders.fields": TARGET,
    "dataloaders.simulated": TARGET,
    "dataloaders.num_workers": NATURAL,
    "dataloaders.on_bad_image": WORD,
    "transforms": SECTION,
    "transforms.train": TARGETS,
    "transforms.eval": TARGETS,
    # batches
    "dataloaders.sampler": WORD,
    "dataloaders.mode": WORD,
    "dataloaders.instance": WORDS,
    "dataloaders.num_img": COUNT,
    "dataloaders.num_plates_per_batch": COUNT,
    "dataloaders.num_plate_parts": COUNT.or_null(),
    "dataloaders.train_groupby": WORDS.or_null(),
    "dataloaders.max_groups": COUNT.or_null(),
    "dataloaders.num_controls": NATURAL.or_null(),
    "dataloaders.eval_plate_sampler": FLAG,
    "dataloaders.eval_groupby": WORDS,
    "dataloaders.eval_splits": WORDS,
    "statistics": SECTION,
    "statistics.train": WORD.or_null(),
    "statistics.eval": WORD.or_null(),
    "statistics.by": WORDS.or_null(),
    "calibration": NAME.or_null(),
    "statistics_rows": WORD,
    "use_train_at_eval": FLAG,
    "train_batch_size": COUNT.or_null(),
    "eval_batch_size": COUNT.or_null(),
    "encode_batch_size": COUNT.or_null(),
    # training
    "num_views": COUNT,
    "temperature": POSITIVE,
    "gather": FLAG,
    "learning_rate": POSITIVE,
    "weight_decay": POSITIVE,
    "num_epochs": COUNT,
    "num_warmup_epochs": NATURAL,
    "compute_train_acc": FLAG,
    "save_model": FLAG,
    "trainer": SECTION,
    "trainer.precision": Kind(int | str, "32, bf16 or 16"),
    "trainer.devices": COUNT,
    "trainer.compile": FLAG,
    "trainer.clip": NUMBER.or_null(),
    "trainer.log_every": COUNT,
    "trainer.evaluate_every": COUNT,
    "trainer.max_steps": NATURAL.or_null(),
    "trainer.monitor": WORD,
    # the transfer to BBBC021
    "normalizations": WORDS,
    "postprocessings": WORDS,
    "metric": WORD,
    "monitor": WORD.or_null(),
    "figures": FLAG,
}
"""Every key of the experiments, of whichever script. What is below a ``_target_`` is the business of that target."""


class Config:
    """A read-only view of a composed configuration that remembers which keys were read.

    Every key of an experiment must have a reader: a misspelt key would otherwise be ignored in silence. Sections are
    views themselves; lists, and sections with a ``_target_`` (for :func:`build`), come as plain values.

    Raises:
        ConfigError: a value is not what :data:`KEYS` says of its key.
    """

    def __init__(self, node: DictConfig, path: str = "", read: set[str] | None = None) -> None:
        if not path:  # all at once: a wrong learning rate is known before a screen is downloaded
            node = copy.deepcopy(node)
            _check_values(node, "")
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
        value = _value(self._node, key, self._path)
        if isinstance(value, DictConfig) and "_target_" not in value:
            return Config(value, f"{self._path}{key}.", self._read)
        self._read.add(f"{self._path}{key}")
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where the key is absent or null."""
        value = getattr(self, key) if key in self._node else None
        return default if value is None else value

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
            if path in KEYS and OmegaConf.select(self._node, path) is None:
                continue  # of another choice of data, and not set
            if not any(path == read or path.startswith(f"{read}.") for read in known):
                near = difflib.get_close_matches(path, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else "remove it"
                raise ConfigError(f"unknown key '{path}'; {hint}")


def _value(node: DictConfig, key: str, path: str, plain: bool = False) -> Any:
    try:
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if plain and OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"key '{path}{key}': {one_line(error)}") from error


def _check_values(node: DictConfig, path: str) -> None:
    """Compare the values of a section with :data:`KEYS`, and turn names that look like numbers into text."""
    for key in map(str, node):
        kind = KEYS.get(f"{path}{key}")
        if kind is None:
            continue
        if kind is SECTION and isinstance(section := _value(node, key, path), DictConfig):
            _check_values(section, f"{path}{key}.")
            continue
        value = _value(node, key, path, plain=True)
        if kind.text and isinstance(value, int | float) and not (key == "resume" and isinstance(value, bool)):
            value = node[key] = str(value).lower() if isinstance(value, bool) else str(value)
        if not _fits(value, kind):
            shown = json.dumps(value, ensure_ascii=False, default=str)
            hint = f"; write [{value}]" if kind.types is list and _fits([value], kind) else ""
            raise ConfigError(f"{path}{key} is {shown}; it must be {kind.what}{hint}")


def _fits(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.null
    if not isinstance(value, kind.types) or (isinstance(value, bool) and kind.types is not bool):
        return False
    if isinstance(value, int | float):
        return kind.least <= value < math.inf
    if isinstance(value, list):
        return kind.item is None or all(_fits(one, kind.item) for one in value)
    return not isinstance(value, dict) or kind is not TARGET or "_target_" in value


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

    An error of the user's is printed as one line without a traceback, and the exit code is 1; an interruption is a line
    and the exit code 130. A sweep goes on after a job with such an error, and counts them at its end. Set
    HYDRA_FULL_ERROR=1 for the traceback. The undecorated function is the attribute ``__wrapped__``.
    """

    def decorate(main: Callable[[Config], float | None]) -> Callable[[], Any]:
        folder = Path(inspect.getfile(main)).resolve().parent / "configs"
        run_with = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)

        @functools.wraps(main)
        def entry() -> Any:
            def task(node: DictConfig) -> float | None:
                return main(Config(node)) if outcomes is None else _job(main, outcomes, node)

            outcomes: Path | None = None
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                return run_with(task)()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, and we print one line of it
            try:
                with tempfile.TemporaryDirectory() as temporary:
                    outcomes = Path(temporary)
                    run_with(task)()
                    failed = [bool(job.read_text()) for job in outcomes.iterdir()]
                if any(failed):
                    raise SystemExit(f"error: {sum(failed)} of {len(failed)} jobs failed")
            except KeyboardInterrupt:
                resume = "resume=auto and " if "resume" in OmegaConf.load(folder / f"{config_name}.yaml") else ""
                print(f"interrupted; go on with {resume}the same run_name (its folder below runs/)", file=sys.stderr)
                raise SystemExit(130) from None
            except (BiomassError, HydraException, OmegaConfBaseException) as error:
                raise SystemExit(f"error: {_explain(error)}") from None
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise SystemExit(
                    f"error: cannot write to '{error.filename}' ({error.strerror}); run where you may write"
                ) from None
            finally:
                del os.environ["HYDRA_FULL_ERROR"]

        return entry

    return decorate


def _job(main: Callable[[Config], float | None], outcomes: Path, node: DictConfig) -> float | None:
    """What Hydra calls: the whole of a single run, or one job of a sweep, perhaps in a process of its own.

    Args:
        main: the script's function.
        outcomes: every job of a sweep leaves a file here: its error, or nothing.
        node: the composed configuration.
    """
    settings = HydraConfig.get()
    outcome = outcomes / str(settings.job.num) if settings.mode == RunMode.MULTIRUN else None
    try:
        value = main(Config(node))
    except BiomassError as error:
        if outcome is None:
            raise SystemExit(f"error: {error}") from None
        message = f"job {settings.job.num}: {error}"
        print(f"error: {message}", file=sys.stderr, flush=True)
        if not outcomes.exists():  # on another machine, as with Slurm: Hydra carries the error back
            raise BiomassError(message) from None
        outcome.write_text(message)
        return None
    if outcome is not None and outcomes.exists():
        outcome.touch()
    return value


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
