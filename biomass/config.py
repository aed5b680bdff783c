"""From YAML to plain arguments: Hydra's edge.

A root script is a function from a :class:`Config` to the metric that a sweep may optimize. :func:`script` runs it under
Hydra and turns every error that the user can mend into one line, with the key that mends it; :func:`build` makes an
object from a node with a ``_target_``.
"""

import copy
import errno
import functools
import hashlib
import inspect
import itertools
import json
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import hydra
import hydra._internal.hydra as hydra_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from biomass import stopping
from biomass.atomic import check_place, check_writable, whole_file
from biomass.diskerrors import escaped, explain_disk, flushed
from biomass.errors import BiomassError, ConfigError, did_you_mean, explain, log_printably, one_line, say, shown
from biomass.formulas import to_csv
from biomass.keys import KEYS, NEXT, SECTION, Kind, advice_where, data_overrides
from biomass.notation import Arguments
from biomass.run_lock import letting_go, own
from biomass.targets import TARGET, Node, find_target, make
from biomass.trust import ConfigLoader

OUTCOME, NAMED, TABLE = "outcome.txt", "run.json", "sweep.csv"
"""What a job of a sweep leaves in its folder: its value or error, and the name of its run; and the sweep's table."""
STOPPED, NOT_BEGUN = "stopped", "not begun, since the sweep was stopped"
"""The errors of jobs that a signal has ended, and that it has kept from beginning."""
_LONGEST = 120
"""Characters of a run's name; a longer one is cut, and a digest of it is put behind."""
_TRACEBACKS = "HYDRA_FULL_ERROR"


hydra_module.ConfigLoaderImpl = ConfigLoader  # type: ignore[misc]  # what a file says of Hydra itself is looked at


class Config:
    """A read-only view of a composed configuration that remembers which keys were read.

    Every key of an experiment must have a reader: a misspelt key would otherwise be ignored in silence. Sections are
    views themselves; lists, and sections with a ``_target_`` (for :func:`build`), come as plain values.

    Args:
        node: as it was composed.
        typed: what of it the user typed. A file may come from anybody, so that only this may name code of others.

    Raises:
        ConfigError: a value is not what :data:`KEYS` says of its key, or code of others is named by a file.
    """

    def __init__(self, node: DictConfig, typed: Sequence[str] = ()) -> None:
        self._node = copy.deepcopy(node)
        self._path = ""
        self._read = set(re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(node)))  # through interpolation
        plain = OmegaConf.to_container(self._node)
        _check_text(plain)
        _check_values(self._node, "")  # all at once: a wrong learning rate is known before a screen is downloaded
        self._own = _own_code(self._node, typed)
        self._read.add("own_code")
        _check_targets(plain, self._own)

    def _section(self, node: DictConfig, path: str) -> "Config":
        section = copy.copy(self)
        section._node, section._path = node, path
        return section

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._node:
            hint = did_you_mean(key, self._node, f"add it to the YAML, or take ~{self._path}{key} out of the command")
            raise ConfigError(f"key '{self._path}{key}' is missing; {hint}")
        value = _value(self._node, key, self._path)
        if isinstance(value, DictConfig) and "_target_" not in value:
            return self._section(value, f"{self._path}{key}.")
        self._read.add(f"{self._path}{key}")
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return Node.of(plain, f"{self._path}{key}", self._own)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where the key is absent or null."""
        value = getattr(self, key) if key in self._node else None
        return default if value is None else value

    def explain(self, error: BiomassError) -> str:
        """The message of an error, or of a warning that has the form of one, with the key of this script to set."""
        return explain(error, advice_where(functools.partial(_has, self._node)))

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, or a section with all its keys, as plain, resolved values."""
        if self._path:
            self._read.add(self._path.removesuffix("."))
        return {key: _value(self._node, key, self._path, plain=True) for key in map(str, self._node)}

    def check_all_read(self) -> None:
        """Call this when everything is built and nothing is written yet.

        Raises:
            ConfigError: a key that nothing has read, with the nearest key that exists.
        """
        for path in _leaves(self._node, ""):
            if path in KEYS and OmegaConf.select(self._node, path) is None:
                continue  # null, for another choice of dataloaders than this one
            if not any(path == read or path.startswith(f"{read}.") for read in self._read):
                raise ConfigError(f"unknown key '{path}'; {did_you_mean(path, self._read, 'remove it')}")


def _value(node: DictConfig, key: str, path: str, plain: bool = False) -> Any:
    try:
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if plain and OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, RecursionError) as error:
        place = getattr(error, "full_key", None) or f"{path}{key}"
        given = _raw(OmegaConf.to_container(node._get_root()), place)
        cause = "it refers to itself" if isinstance(error, RecursionError) else one_line(str(error).split("\n")[0])
        raise ConfigError(
            f"{place} is {shown(given)}, which leads to nothing ({cause}); refer to a key that is there (--cfg job "
            "lists them), or write a value"
        ) from error


def _raw(value: Any, place: str) -> Any:
    """What stands at a key, with its references as they are written."""
    for part in re.findall(r"[^.\[\]]+", place):
        value = value.get(part) if isinstance(value, dict) else value[int(part)] if isinstance(value, list) else None
    return value


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
        if kind.text and not (key == "resume" and isinstance(value, bool)) and value != (text := _as_text(value)):
            value = node[key] = text
        if not _fits(value, kind):
            hint = f"; write [{value}]" if kind.types is list and _fits([value], kind) else ""
            raise ConfigError(f"{path}{key} is {shown(value)}; it must be {kind.what}{hint}")
        for name in kind.names & value.keys() if kind.names and value else ():
            names = _names(value[name], f"{path}{key}.{name}")
            if names != value[name]:
                node[key][name] = names


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _names(value: Any, path: str, item: bool = False) -> Any:
    """Names as text, however nested; refused where it is not certain how they were written."""
    if isinstance(value, list):
        return [_names(one, path, True) for one in value]
    if isinstance(value, dict) and TARGET in value:  # makes what is named
        return value
    if isinstance(value, dict):
        return {_names(key, path, True): _names(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, bool | float) or (item and value is None):
        raise ConfigError(f"{path} holds {shown(value)}, which may have been written otherwise; put the name in quotes")
    return str(value) if isinstance(value, int) else value


def _fits(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.null
    if not isinstance(value, kind.types) or (isinstance(value, bool) and kind.types is not bool):
        return False
    if isinstance(value, int | float):
        return kind.least <= value < math.inf
    if isinstance(value, str):
        return value != ""
    if isinstance(value, list):
        return kind.item is None or all(_fits(one, kind.item) for one in value)
    return not isinstance(value, dict) or not kind.target or "_target_" in value


def _check_text(value: Any, place: str = "") -> None:
    """Raise ConfigError for text that no file can hold: a configuration is written beside what it made."""
    if isinstance(value, dict):
        for key, one in value.items():
            _check_text(str(key), f"a key of {place}" if place else "a key")
            _check_text(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_text(one, f"{place}.{number}")
    elif isinstance(value, str):
        odd = re.search("[\0\ud800-\udfff]", value)
        if odd:
            what = "a byte that is 0" if odd[0] == "\0" else "bytes that are not text in UTF-8"
            raise ConfigError(
                f"{place} is {shown(value.encode('utf-8', 'replace').decode())}, which holds {what}; type it again"
            )


def _own_code(node: DictConfig, typed: Sequence[str]) -> tuple[str, ...]:
    """Packages, modules and functions of others that the user named; refused where a file names some."""
    parsed = OverridesParser.create().parse_overrides([one for one in typed if re.match(r"\+*own_code=", one)])
    values = [value if isinstance(value, list) else [value] for value in (one.value() for one in parsed)]
    own = tuple(str(one) for value in values for one in value if one)
    foreign = next((one for one in node.get("own_code") or () if one not in own), None)
    if foreign is not None:
        raise ConfigError(
            f"own_code names '{foreign}' in a file, which may come from anybody; if you trust this code, type "
            f"own_code=[{foreign}] on the command line"
        )
    key = OmegaConf.select(node, "model.key")
    if isinstance(key, str) and ":" in key and not any(re.match(r"\+*model\.key=", one) for one in typed):
        module = key.partition(":")[0]
        if not any(f"{module}.".startswith(f"{one}.") for one in own):
            raise ConfigError(
                f"model.key is '{key}' in a file, which may come from anybody; if you trust this code, type "
                f"model.key={key} on the command line"
            )
    return own


def _check_targets(value: Any, own: Sequence[str], place: str = "") -> None:
    """Raise ConfigError where something may not be made: before anything is."""
    if isinstance(value, dict):
        if TARGET in value and not str(value[TARGET]).startswith("${"):
            find_target(value[TARGET], own, place)
        for key, one in value.items():
            _check_targets(one, own, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_targets(one, own, f"{place}.{number}")


def _leaves(node: DictConfig, path: str) -> Iterator[str]:
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation() and len(value):
            yield from _leaves(value, f"{path}{key!s}.")
        else:
            yield f"{path}{key!s}"


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Make the object that a configuration node names with ``_target_``: a Screen, or a transform.

    A node of a :class:`Config` may also name code that the user named on the command line. Any other, such as one of
    a checkpoint, names only what this package offers, see :func:`biomass.targets.find_target`.

    Args:
        node: ``_target_`` and its keyword arguments.
        arguments: further keyword arguments, which win over those of the node.

    Raises:
        ConfigError: the target may not be called, does not exist or does not take an argument. Errors of the family
            pass as they are.
    """
    own, place = (node.own, node.place) if isinstance(node, Node) else ((), "")
    try:
        return make(node, arguments, own, place)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ConfigError(explain_disk(error)) from error


Main = Callable[[Config], float | None]


class Entry(Protocol):
    """A script as it is called: from a shell, without arguments; or by ``biomass <tool>``, with them."""

    __wrapped__: Main

    def __call__(self, arguments: Sequence[str] | None = None, program: str | None = None) -> None: ...


def script(config_name: str) -> Callable[[Main], Entry]:
    """Make a command of a function: it is called with what ``configs/<config_name>.yaml`` and the arguments compose.

    The folder ``configs`` is beside the function's file, or in a folder above it. An error that the user can mend is
    printed as one line, and the exit code is 1; what was stopped by a signal is a line, too, and has an exit code of
    :mod:`biomass.stopping`. A sweep goes on after a job with an error, and counts them at its end. HYDRA_FULL_ERROR=1
    shows tracebacks. The function itself is the attribute ``__wrapped__``.

    >>> folder = getfixture("tmp_path")
    >>> (folder / "configs").mkdir()
    >>> _ = (folder / "configs" / "greet.yaml").write_text("run_name: null\\nhydra: {output_subdir: null}\\n")
    >>> _ = (folder / "greet.py").write_text(
    ...     "from biomass.config import script\\n"
    ...     "@script('greet')\\n"
    ...     "def main(cfg):\\n"
    ...     "    print('hello', cfg.run_name)\\n"
    ... )
    >>> getfixture("monkeypatch").chdir(folder)
    >>> import runpy
    >>> main = runpy.run_path("greet.py")["main"]
    >>> main(["run_name=0012"])
    hello 0012
    >>> main(["run_name=a=b"])
    Traceback (most recent call last):
    SystemExit: error: 'run_name=a=b': a value that holds = stands in quotes: 'run_name="a=b"'
    """

    def decorate(function: Main) -> Entry:
        is_script = Path(inspect.getfile(function)).parent.name != "commands"

        @functools.wraps(function)
        def main(cfg: Config) -> float | None:
            with letting_go():
                return function(cfg)

        @functools.wraps(main)
        def entry(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
            given = sys.argv[1:] if arguments is None else list(arguments)
            with stopping.listening(goes_on=is_script, silent=_rank() > 0), _one_line_errors():
                folder = _config_folder(function, config_name)
                if {"-h", "--help"} & set(given):
                    print(_help(folder / f"{config_name}.yaml", program or f"python {Path(sys.argv[0]).name}"))
                else:
                    _launch(main, folder, config_name, Arguments.of(given))

        entry.__wrapped__ = main
        return cast(Entry, entry)

    return decorate


def _config_folder(main: Main, config_name: str) -> Path:
    file = Path(inspect.getfile(main)).resolve()
    for folder in file.parents:
        if (folder / "configs" / f"{config_name}.yaml").is_file():
            return folder / "configs"
    raise ConfigError(
        f"no configs/{config_name}.yaml beside '{file}' or above it; install biomass from a copy of its repository "
        "that stays (pip install --editable)"
    )


def _help(file: Path, program: str) -> str:
    return (
        f"usage: {program} [key=value ...] [-m] [--cfg job]\n\n"
        "The keys and their defaults. -m runs every combination of values with commas, key=value,value. --cfg job\n"
        f"prints the configuration as composed; --hydra-help explains Hydra's own options.\n\n{file.read_text()}"
    )


def _launch(main: Main, folder: Path, config_name: str, arguments: Arguments) -> None:
    """Hand over to Hydra, which composes the configuration and calls ``job``, here or in other processes."""
    outside = _Outside.now()

    @functools.wraps(main)
    def job(node: DictConfig) -> float | None:
        with outside.restored():
            return _job(main, node, outside.tracebacks)

    # Hydra takes its arguments from sys.argv, and prints errors itself unless it is told to raise them
    with _Outside([sys.argv[0], *arguments.for_hydra()], True).restored():
        try:
            hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(job)()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            if outside.tracebacks:
                raise
            raise ConfigError(arguments.explain(error)) from error
        except RuntimeError as error:
            if "srun" in str(error) and not outside.tracebacks:
                raise ConfigError(
                    "there is no Slurm here; start this where srun is, or take another launcher"
                ) from error
            if outside.tracebacks or not _of_hydra(error):
                raise
            raise ConfigError(arguments.explain(error)) from error
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            ImportError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            if outside.tracebacks or not _of_hydra(error) or isinstance(error.__cause__, OSError):
                raise
            raise ConfigError(arguments.explain(error)) from error


def _of_hydra(error: Exception) -> bool:
    """Whether an error is of what Hydra made of the arguments, before any job began."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return not any(code.co_name == "launch" or (code.co_name, code.co_filename) == ("job", __file__) for code in frames)


class _Outside(NamedTuple):
    """What a process is given: its arguments, and whether it shall show tracebacks. Those it starts inherit both."""

    argv: list[str]
    tracebacks: bool

    @classmethod
    def now(cls) -> "_Outside":
        return cls(sys.argv, os.environ.get(_TRACEBACKS) == "1")

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the block, things are as in this tuple."""
        before = self.now()
        self._set()
        try:
            yield
        finally:
            before._set()

    def _set(self) -> None:
        sys.argv = self.argv
        os.environ.pop(_TRACEBACKS, None)
        if self.tracebacks:
            os.environ[_TRACEBACKS] = "1"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Print an error that the user can mend as one line and exit, unless tracebacks are asked for."""
    if _Outside.now().tracebacks:
        yield
        return
    try:
        with flushed():
            yield
    except BiomassError as error:
        raise SystemExit(f"error: {one_line(error)}") from None
    except BrokenPipeError:  # of ``--help | head``; nothing more can be printed, at the end of the process neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        by_logging = isinstance(error, ValueError) and error.__cause__  # it says so that it cannot open its file
        line = escaped(by_logging or error)
        if line is None:
            raise
        raise SystemExit(f"error: {line}") from None


def _job(main: Main, node: DictConfig, tracebacks: bool) -> float | None:
    """What Hydra calls: the whole of a single run, or one job of a sweep, perhaps in a process of its own.

    A job of a sweep leaves its value, or its error, in ``outcome.txt`` in its folder. One that was stopped, and that a
    scheduler starts again, goes on.
    """
    if not stopping.listens():  # a launcher has started this process
        stopping.listen(goes_on=True, owned=True)
        # at its end it would wait for the processes that read its images, and these wait for it
        multiprocessing.util.Finalize(None, stopping.end_program, exitpriority=1000)
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's: it starts joblib's own workers only
        multiprocessing.set_start_method(None, force=True)  # and not those that read images
    log_printably()
    settings = HydraConfig.get()
    outcome = Path(settings.runtime.output_dir) / OUTCOME if settings.mode == RunMode.MULTIRUN else None
    if _rank() > 0:
        logging.disable(logging.WARNING)
    elif outcome is not None:
        _record(settings)
        if stopping.requested():
            _leave_outcome(outcome, settings, NOT_BEGUN)
            return None
        _go_on(node, outcome)
    try:
        with stopping.raised(), _stopped_by_its_effects():
            _check_devices(node, settings)
            value = main(Config(node, overrides()))
    except stopping.Stopped:
        if outcome is None:
            raise
        _leave_outcome(outcome, settings, f"{STOPPED}: {stopping.said()}")
        stopping.requeue()
        return None
    except BiomassError as error:
        if tracebacks:
            raise
        message = explain(error, advice_where(functools.partial(_has, node)))
        if outcome is None:
            raise SystemExit(f"error: {message}") from None
        _leave_outcome(outcome, settings, message)
        return None
    if outcome is not None:
        _leave(outcome, f"{value}\n")
    else:
        stopping.end_program()
    return value


@contextmanager
def _stopped_by_its_effects() -> Iterator[None]:
    """Take an error for the stop that was asked for, where code of others swallowed that and failed: so imports do."""
    try:
        yield
    except BiomassError:
        raise
    except Exception as error:
        if not stopping.requested():
            raise
        raise stopping.Stopped from error


def _leave_outcome(outcome: Path, settings: Any, message: str) -> None:
    """Say why a job of a sweep has no value, here and in its folder."""
    _leave(outcome, f"error: {message}\n")
    print(f"error: job {settings.job.num}: {message}", file=sys.stderr, flush=True)


def _leave(file: Path, text: str) -> None:
    """Write one of the files of a sweep."""
    with whole_file(file) as part:
        part.write_text(text)


def _go_on(node: DictConfig, outcome: Path) -> None:
    """Have a job go on with its run that was stopped, or killed with its machine, and that a scheduler starts again."""
    stopped = outcome.is_file() and outcome.read_text().startswith(f"error: {STOPPED}")
    requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if (stopped or requeued) and "resume" in node and node.resume is None:
        node.resume = "auto"


def _check_devices(node: DictConfig, settings: Any) -> None:
    """Lightning starts the other processes of a run by its command line, which is not that of a launcher's job."""
    key = "devices" if "devices" in node else "trainer.devices"
    devices, tasks = OmegaConf.select(node, key), os.environ.get("SLURM_NTASKS", "1")
    alone = settings.mode == RunMode.MULTIRUN and "Basic" not in settings.launcher._target_
    if alone and isinstance(devices, int) and devices > int(tasks):
        raise ConfigError(
            f"{key} is {devices}, and the jobs of this launcher have {tasks} process each; sweep with "
            "hydra/launcher=basic, or give hydra.launcher.tasks_per_node of submitit_slurm as many"
        )


def _has(node: DictConfig, key: str) -> bool:
    section, _, last = key.rpartition(".")
    try:
        parent = OmegaConf.select(node, section) if section else node
        return isinstance(parent, DictConfig) and last in parent
    except OmegaConfBaseException:  # a reference to nothing, which is perhaps what the error is about
        return False


class Folders(Callback):
    """Hydra's folders ``outputs/<date>/<time>``: no two runs share one; and the outcomes of a sweep's jobs in them.

    Args:
        swept: the keys that a sweep varies, which its jobs have from here.
    """

    def __init__(self, swept: Sequence[str] = ()) -> None:
        self.swept = list(swept)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Take a folder for this run; of several processes only the first writes there."""
        if "submitit" in config.hydra.launcher._target_:
            raise SystemExit("error: a launcher of submitit starts the jobs of a sweep, also one alone: add -m")
        if _rank() == 0:
            config.hydra.run.dir = _own_folder(config, "run")
            return
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"root": None}
        if not _is_given(config.hydra, "run"):
            config.hydra.run.dir = str(Path(config.hydra.run.dir).parent)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take a folder for this sweep, and forget what an earlier one may have left there."""
        if _rank() > 0:
            logging.disable(logging.WARNING)
            config.hydra.overrides.hydra += ["hydra.output_subdir=null", "hydra/job_logging=none"]
        folder = config.hydra.sweep.dir = _own_folder(config, "sweep")
        self.swept = _swept(config)
        config.hydra.overrides.hydra += [  # every job is composed again
            f'hydra.sweep.dir="{folder}"',
            f"++hydra.callbacks.folders.swept={json.dumps(self.swept, separators=(',', ':'))}",
        ]
        for left in itertools.chain(Path(folder).rglob(OUTCOME), Path(folder).rglob(NAMED)):
            left.unlink()
        if "submitit" in config.hydra.launcher._target_:
            stopping.say("the jobs that were handed over go on by themselves", f"see {folder}")
        else:
            stopping.launch_jobs()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of the sweep, and count the jobs that ended in an error: the exit code is 1 if any did."""
        folder = Path(config.hydra.sweep.dir)
        outcomes = [path.read_text() for path in folder.rglob(OUTCOME)]
        if _rank() == 0 and len(outcomes) > 1:
            _print_sweep(folder)
        stopped, waits = (sum(text.startswith(f"error: {why}") for text in outcomes) for why in (STOPPED, NOT_BEGUN))
        if stopped or waits or stopping.requested():
            name = config.get("run_name") or "-".join([config.hydra.job.name, *folder.parts[-2:]])
            which = f"{stopped} of {len(outcomes)} jobs within their runs, and {waits} before they began"
            stopping.say(which, _again(name, "resume" in config))
            raise stopping.Stopped
        if not outcomes and _rank() == 0:
            raise SystemExit(
                f"error: the sweep of {', '.join(self.swept) or 'no key'} has no value, and no job; name some"
            )
        failed = sum(text.startswith("error: ") for text in outcomes)
        if failed:
            raise SystemExit(f"error: {failed} of {len(outcomes)} jobs failed; see {folder}/*/{OUTCOME}")


def _swept(config: DictConfig) -> list[str]:
    """The keys that a sweep varies: those with several values on the command line, and those of a preset's sweeper."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    given = [override.get_key_element().lstrip("+") for override in parsed if override.is_sweep_override()]
    preset = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return list(dict.fromkeys([*given, *(str(key).lstrip("+") for key in preset)]))


def _print_sweep(folder: Path) -> None:
    """The jobs of a sweep as a table, and all that they measured in ``sweep.csv``."""
    from biomass.evaluation.sweep import Job, sweep_table, table_text

    jobs = []
    for outcome in folder.rglob(OUTCOME):
        file = outcome.with_name(NAMED)
        named = json.loads(file.read_text()) if file.exists() else {"name": "", "short": "", "differs": {}}
        name = outcome.parent.name  # the job's number, unless the user named its folder otherwise
        jobs.append(Job(int(name) if name.isdecimal() else -1, **named, outcome=one_line(outcome.read_text())))
    jobs.sort(key=lambda job: (job.number, job.name))
    table = sweep_table(jobs)
    _leave(folder / TABLE, to_csv(table))
    say(f"\n{table_text(table, jobs)}\nAll metrics, and names in full: {folder / TABLE}. The runs are in runs/.")


def _own_folder(config: DictConfig, mode: str) -> str:
    """Make the folder of a run or a sweep. Nobody else has it, unless its name was given: a number is put behind it."""
    folder = str(config.hydra[mode].dir)
    given = _is_given(config.hydra, mode)
    names = itertools.chain([folder], (f"{folder}-{number}" for number in itertools.count(2)))
    for name in names:
        try:
            Path(name).mkdir(parents=True, exist_ok=given)
            check_writable(Path(name))
            return name
        except ConfigError as error:
            raise SystemExit(f"error: {error}") from None
        except FileExistsError as error:
            if given or not Path(name).exists():
                raise SystemExit(f"error: {explain_disk(error)}") from None
        except OSError as error:
            raise SystemExit(f"error: {explain_disk(error)}") from None
    raise AssertionError


def _is_given(settings: Any, mode: str) -> bool:
    return any(override.startswith(f"hydra.{mode}.dir=") for override in settings.overrides.hydra)


def _rank() -> int:
    """Which of the processes of one run this is, as torchrun, Lightning and Slurm number them."""
    known = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in known if rank), 0))


def overrides() -> list[str]:
    """What the command line, or a sweep, gives this job; nothing where it was not started by Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_given(key: str) -> bool:
    """Whether the command line, or a sweep, gives this job a value of a key."""
    return any(text.lstrip("+").partition("=")[0] == key for text in overrides())


def is_left(key: str) -> bool:
    """Whether there is a command line, and it leaves a key as its file has it."""
    return HydraConfig.initialized() and not is_given(key)


def next_commands(job: str, name: str) -> list[list[str]]:
    """What to type after a run, with its name and its images: the words of each command, as a shell takes them.

    Args:
        job: the script.
        name: of the run.

    >>> next_commands("train_classifier", "probe")
    [['biomass', 'compare', 'runs/probe']]
    """
    # what holds = or , stands in quotes within the quotes of the shell
    run = f"""'"{name}"'""" if re.search("[=,]", name) else name
    given = [text for text in overrides() if not text.startswith("dataloaders=")]
    if HydraConfig.initialized():  # by a preset, perhaps
        given.insert(0, f"dataloaders={HydraConfig.get().runtime.choices.get('dataloaders')}")
    data = [shlex.quote(text) for text in data_overrides(given)]
    return [
        [*command.format(run=run).split(), *(data if job != "train_classifier" else ())]
        for command in NEXT.get(job, ())
    ]


def run_name(name: str | None, job: str, shared: bool = False) -> str:
    """The name that a run's folders share, distinct for every job of a sweep.

    Args:
        name: the user's choice; without one it is ``job`` and the time that ``outputs/`` shows for this run. In a sweep
            the job's number is put behind it, and what differs between the jobs, unless it holds the job's overrides
            (``${hydra:job.override_dirname}``).
        job: the script's name.
        shared: the jobs of a sweep are parts of one run, which must have a name.

    Raises:
        ConfigError: the name cannot name a folder, or that folder cannot be made; or this is one of several processes
            that were started apart, which cannot agree on a time.
    """
    settings = HydraConfig.get() if HydraConfig.initialized() else None
    sweep = settings is not None and settings.mode == RunMode.MULTIRUN and not shared
    if name is None and shared:
        raise ConfigError("shards are parts of one run, and need its name; give one", "run_name")
    if name is None and settings is not None:
        if _rank() > 0 and not sweep and not _is_given(settings, "run"):
            raise ConfigError("several processes of one run need a name for it; give one", "run_name")
        name = "-".join([job, *Path(settings.sweep.dir if sweep else settings.run.dir).parts[-2:]])
    elif name is None:
        name = f"{job}-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    if not re.fullmatch(r"[\w,=+-][\w.,=+-]*", name):
        raise ConfigError(f"run_name '{name}' cannot name a folder; use letters, digits and . , = + - _")
    if settings is not None and sweep:
        name = _name_of_job(name, settings)
    elif len(name) > _LONGEST:
        name = _cut(name)
    check_place(Path("runs") / name)
    return name


def own_run(name: str, goes_on: bool = False) -> Path:
    """The folder of a run, which only the first of its processes writes to, and no other process of this name.

    Args:
        name: as :func:`run_name` gives it.
        goes_on: whether the run can be resumed.

    Raises:
        ConfigError: another process is at it.
    """
    folder = Path("runs") / name
    if _rank() == 0:
        own(folder)
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    stopping.say("nothing was done yet", f"the run is '{name}'" if sweep else _again(name, goes_on))
    return folder


def _again(name: str, goes_on: bool) -> str:
    """What to type to go on."""
    # what holds = or , stands in quotes within the quotes of the shell
    given = f"""'run_name="{name}"'""" if re.search("[=,]", name) else f"run_name={name}"
    return f"go on with the same command and {'resume=auto ' if goes_on else ''}{given}"


def _name_of_job(name: str, settings: Any) -> str:
    """The name of a job's run, which the end of the sweep finds in the job's folder."""
    overrides, short = settings.job.override_dirname, name
    if not (overrides and overrides in name):
        short = f"{name}-{settings.job.num}"
        name = "_".join([short, *(f"{key}-{_for_files(value)}" for key, value in _differs(settings).items())])
    if len(name) > _LONGEST:  # of overrides, mostly
        name = _cut(name)
    if _rank() == 0:
        _record(settings, name, short if len(short) < len(name) else name)
    return name


def _record(settings: Any, name: str = "", short: str = "") -> None:
    """Leave in the folder of a job what differs from the other jobs, and what its run is called where it is known."""
    record = {"name": name, "short": short, "differs": _differs(settings)}
    _leave(Path(settings.runtime.output_dir) / NAMED, json.dumps(record))


def _differs(settings: Any) -> dict[str, str]:
    """What a sweep varies, with the values of this job: by the last part of a key where no other key ends so."""
    swept = list(settings.callbacks.folders.get("swept", ()))
    ends = [re.split(r"[./@]", key)[-1] for key in swept]
    shown = {key: end if ends.count(end) == 1 else key for key, end in zip(swept, ends, strict=True)}
    given = (text.lstrip("+").partition("=") for text in settings.overrides.task)
    values = {key: {"True": "true", "False": "false"}.get(value, value.strip("'\"")) for key, _, value in given}
    return {shown[key]: values[key] for key in swept if key in values}


def _for_files(value: str) -> str:
    """A value as a part of a folder's name, which a shell and Hydra take without quotes.

    >>> _for_files("[val,test]"), _for_files("data/my screen"), _for_files("")
    ('val-test', 'data-my-screen', 'none')
    """
    return re.sub(r"[^\w.+-]+", "-", value).strip("-.") or "none"


def _cut(name: str) -> str:
    return f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
