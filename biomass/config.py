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
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from biomass.atomic import check_place, check_writable
from biomass.errors import BiomassError, ConfigError, did_you_mean, explain, log_printably, one_line, printable, say
from biomass.formulas import to_csv
from biomass.keys import KEYS, NEXT, SECTION, Kind, advice_where, data_overrides
from biomass.notation import Arguments

OUTCOME, NAMED, TABLE = "outcome.txt", "run.json", "sweep.csv"
"""What a job of a sweep leaves in its folder: its value or error, and the name of its run; and the sweep's table."""
_LONGEST = 120
"""Characters of a run's name; a longer one is cut, and a digest of it is put behind."""
_TRACEBACKS = "HYDRA_FULL_ERROR"
_NO_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
}
"""Why a file cannot be written, where the user can do something about it."""


class Config:
    """A read-only view of a composed configuration that remembers which keys were read.

    Every key of an experiment must have a reader: a misspelt key would otherwise be ignored in silence. Sections are
    views themselves; lists, and sections with a ``_target_`` (for :func:`build`), come as plain values.

    Raises:
        ConfigError: a value is not what :data:`KEYS` says of its key.
    """

    def __init__(self, node: DictConfig, path: str = "", read: set[str] | None = None) -> None:
        if read is None:
            read = set(re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(node)))  # through interpolation
            node = copy.deepcopy(node)
            _check_values(node, "")  # all at once: a wrong learning rate is known before a screen is downloaded
        self._node = node
        self._path = path
        self._read = read

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._node:
            hint = did_you_mean(key, self._node, "add it to the YAML")
            raise ConfigError(f"key '{self._path}{key}' is missing; {hint}")
        value = _value(self._node, key, self._path)
        if isinstance(value, DictConfig) and "_target_" not in value:
            return Config(value, f"{self._path}{key}.", self._read)
        self._read.add(f"{self._path}{key}")
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

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
        for path in _leaves(self._node, ""):
            if path in KEYS and OmegaConf.select(self._node, path) is None:
                continue  # null, for another choice of dataloaders than this one
            if not any(path == read or path.startswith(f"{read}.") for read in self._read):
                raise ConfigError(f"unknown key '{path}'; {did_you_mean(path, self._read, 'remove it')}")


def _value(node: DictConfig, key: str, path: str, plain: bool = False) -> Any:
    try:
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if plain and OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"key '{path}{key}': {str(error).splitlines()[0]}") from error


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
            shown = json.dumps(value, ensure_ascii=False, default=str)
            hint = f"; write [{value}]" if kind.types is list and _fits([value], kind) else ""
            raise ConfigError(f"{path}{key} is {shown}; it must be {kind.what}{hint}")
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
    if isinstance(value, dict):
        return {_names(key, path, True): _names(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, bool | float) or (item and value is None):
        shown = json.dumps(value)
        raise ConfigError(f"{path} holds {shown}, which may have been written otherwise; put the name in quotes")
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
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"the path '{cause.filename}' is too long for the disk: choose a shorter one") from error
        raise


Main = Callable[[Config], float | None]


class Entry(Protocol):
    """A script as it is called: from a shell, without arguments; or by ``biomass <tool>``, with them."""

    __wrapped__: Main

    def __call__(self, arguments: Sequence[str] | None = None, program: str | None = None) -> None: ...


def script(config_name: str) -> Callable[[Main], Entry]:
    """Make a command of a function: it is called with what ``configs/<config_name>.yaml`` and the arguments compose.

    The folder ``configs`` is beside the function's file, or in a folder above it. An error that the user can mend is
    printed as one line, and the exit code is 1; an interruption is a line and the exit code 130. A sweep goes on after
    a job with such an error, and counts them at its end. HYDRA_FULL_ERROR=1 shows tracebacks. The function itself is
    the attribute ``__wrapped__``.

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

    def decorate(main: Main) -> Entry:
        @functools.wraps(main)
        def entry(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
            given = sys.argv[1:] if arguments is None else list(arguments)
            with _one_line_errors():
                folder = _config_folder(main, config_name)
                if {"-h", "--help"} & set(given):
                    print(_help(folder / f"{config_name}.yaml", program or f"python {Path(sys.argv[0]).name}"))
                else:
                    _launch(main, folder, config_name, Arguments.of(given))

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
            if "srun" not in str(error) or outside.tracebacks:
                raise
            raise ConfigError("there is no Slurm here; start this where srun is, or take another launcher") from error


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
        yield
    except KeyboardInterrupt:
        print("interrupted; go on with resume=auto and the same run_name (its folder below runs/)", file=sys.stderr)
        raise SystemExit(130) from None
    except BiomassError as error:
        raise SystemExit(f"error: {one_line(error)}") from None
    except BrokenPipeError:  # of ``--help | head``; nothing more can be printed, at the end of the process neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise SystemExit(f"error: {_cannot_write(error)}") from None
    except ValueError as error:  # so logging says that it cannot open its file
        if not isinstance(error.__cause__, OSError):
            raise
        raise SystemExit(f"error: {_cannot_write(error.__cause__)}") from None


def _job(main: Main, node: DictConfig, tracebacks: bool) -> float | None:
    """What Hydra calls: the whole of a single run, or one job of a sweep, perhaps in a process of its own.

    A job of a sweep leaves its value, or its error, in ``outcome.txt`` in its folder.
    """
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's: it starts joblib's own workers only
        multiprocessing.set_start_method(None, force=True)  # and not those that read images
    log_printably()
    settings = HydraConfig.get()
    outcome = Path(settings.runtime.output_dir) / OUTCOME if settings.mode == RunMode.MULTIRUN else None
    if _rank() > 0:
        logging.disable(logging.WARNING)
    elif outcome is not None:
        _record(settings)
    try:
        _check_devices(node, settings)
        value = main(Config(node))
    except BiomassError as error:
        if tracebacks:
            raise
        message = explain(error, advice_where(functools.partial(_has, node)))
        if outcome is None:
            raise SystemExit(f"error: {message}") from None
        outcome.write_text(f"error: {message}\n")
        print(f"error: job {settings.job.num}: {message}", file=sys.stderr, flush=True)
        return None
    if outcome is not None:
        outcome.write_text(f"{value}\n")
    return value


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
    parent = OmegaConf.select(node, section) if section else node
    return isinstance(parent, DictConfig) and last in parent


class Folders(Callback):
    """Hydra's folders ``outputs/<date>/<time>``: no two runs share one; and the outcomes of a sweep's jobs in them.

    Args:
        swept: the keys that a sweep varies, which its jobs have from here.
    """

    def __init__(self, swept: Sequence[str] = ()) -> None:
        self.swept = list(swept)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Take a folder for this run; of several processes only the first writes there."""
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

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of the sweep, and count the jobs that ended in an error: the exit code is 1 if any did."""
        folder = Path(config.hydra.sweep.dir)
        outcomes = [path.read_text() for path in folder.rglob(OUTCOME)]
        if _rank() == 0 and len(outcomes) > 1:
            _print_sweep(folder)
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
    (folder / TABLE).write_text(to_csv(table), encoding="utf-8")
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
                raise SystemExit(f"error: {_cannot_write(error)}") from None
        except OSError as error:
            raise SystemExit(f"error: {_cannot_write(error)}") from None
    raise AssertionError


def _is_given(settings: Any, mode: str) -> bool:
    return any(override.startswith(f"hydra.{mode}.dir=") for override in settings.overrides.hydra)


def _cannot_write(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"the path '{printable(error.filename)}' is too long for the disk: choose a shorter one"
    return f"cannot write to '{printable(error.filename)}' ({error.strerror}); run where you may write"


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


def run_name(name: str | None, job: str) -> str:
    """The name that a run's folders share, distinct for every job of a sweep.

    Args:
        name: the user's choice; without one it is ``job`` and the time that ``outputs/`` shows for this run. In a sweep
            the job's number is put behind it, and what differs between the jobs, unless it holds the job's overrides
            (``${hydra:job.override_dirname}``).
        job: the script's name.

    Raises:
        ConfigError: the name cannot name a folder, or that folder cannot be made; or this is one of several processes
            that were started apart, which cannot agree on a time.
    """
    settings = HydraConfig.get() if HydraConfig.initialized() else None
    sweep = settings is not None and settings.mode == RunMode.MULTIRUN
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
    (Path(settings.runtime.output_dir) / NAMED).write_text(json.dumps(record))


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
