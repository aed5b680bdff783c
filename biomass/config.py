"""Hydra's edge: from a command line to a call of a script.

A root script is a function from a :class:`Config` to the metric that a sweep may optimize. :func:`script` runs it under
Hydra and turns every error that the user can mend into one line, with the key that mends it; :func:`build` makes an
object from a node with a ``_target_``.
"""

import functools
import inspect
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import hydra
import hydra._internal.hydra as hydra_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from biomass import several, stopping
from biomass.diskerrors import escaped, flushed
from biomass.errors import BiomassError, ConfigError, log_printably, one_line, shortened
from biomass.notation import Arguments
from biomass.run_lock import letting_go
from biomass.runs import NOT_BEGUN, OUTCOME, STOPPED, go_on, leave, leave_outcome, own_run, record, resolving, run_name
from biomass.settings import Config, build, explained, overrides
from biomass.trust import ConfigLoader

__all__ = ["Config", "Entry", "build", "overrides", "own_run", "run_name", "script"]

_TRACEBACKS = "HYDRA_FULL_ERROR"
_LOOKED = 4
"""Jobs of a sweep that are composed before a script imports what it needs; Hydra composes all before the first."""

hydra_module.ConfigLoaderImpl = ConfigLoader  # type: ignore[misc]  # what a file says of Hydra itself is looked at

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
            with stopping.listening(goes_on=is_script, silent=several.rank() > 0), _one_line_errors(), several.ending():
                folder = _config_folder(Path(inspect.getfile(function)), config_name)
                if not _helped(given, folder, config_name, program):
                    outside, typed = _Outside.now(), Arguments.of(given)

                    @functools.wraps(main)
                    def job(node: DictConfig) -> float | None:
                        with outside.restored():
                            return _job(main, node, typed, outside.tracebacks)

                    _launch(job, folder, config_name, typed)

        entry.__wrapped__ = main
        return cast(Entry, entry)

    return decorate


def look_ahead(file: Path, program: str | None = None, arguments: Sequence[str] | None = None, about: str = "") -> bool:
    """Answer a command line, or find what is wrong with it, before a script imports what takes seconds.

    A root script begins with its imports, as every module does: of torch, pandas and much else, which only a run needs.
    So the first import of this package (see ``biomass/__init__.py``) calls this with the script's file, and
    ``biomass <tool>`` with that of the tool's module. Help and configuration are printed from here. For a run the
    configuration is composed once more than Hydra does it, in 0.1 s, and nothing of it is kept: :func:`script` finds
    the same errors again where it is called in any other way. Of a sweep only the first jobs are composed.

    Args:
        file: of the script or tool, whose name is that of its YAML; nothing happens where there is none.
        program: what to call it in a text of help.
        arguments: of the command line.
        about: what a text of help begins with.

    Returns:
        Whether it is answered, and nothing is left to do.

    Raises:
        SystemExit: it has an error.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if several.rank() > 0 or multiprocessing.parent_process() is not None:
        return False  # the first process says it
    tracebacks, looked = _Outside.now().tracebacks, []

    def job(node: DictConfig | None) -> None:
        looked.append(node)
        if node is None or HydraConfig.get().job.chdir:  # a sweep goes on after jobs with errors
            return
        try:
            config = Config(node, overrides())
            _check_devices(node, HydraConfig.get())
            import_module("biomass.early").check_early(config)  # with what needs pandas
        except BiomassError as error:
            if tracebacks:
                raise
            raise SystemExit(f"error: {explained(error, node)}") from None

    with _one_line_errors():
        try:
            folder = _config_folder(file, file.stem)
        except ConfigError:
            return False
        if _helped(given, folder, file.stem, program, about):
            return True
        before, hydra_module.Hydra = hydra_module.Hydra, _Ahead  # type: ignore[misc]
        try:
            _launch(job, folder, file.stem, Arguments.of(given))
        finally:
            hydra_module.Hydra = before  # type: ignore[misc]
        return not looked


class _Ahead(hydra_module.Hydra):
    """Hydra, which composes what it would run, and hands that to a function that looks at it; nothing is made."""

    def run(self, config_name: str | None, task_function: Any, overrides: list[str], *_: Any, **__: Any) -> Any:
        config = self.compose_config(config_name, overrides, RunMode.RUN)
        with resolving(config), open_dict(config.hydra):
            config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).absolute())
        with resolving(config), env_override(config.hydra.job.env_set):
            task_function(self.get_sanitized_cfg(config, "job"))

    def multirun(self, config_name: str | None, task_function: Any, overrides: list[str], *_: Any, **__: Any) -> Any:
        config = self.compose_config(config_name, overrides, RunMode.MULTIRUN)
        if "Basic" in config.hydra.sweeper._target_:
            given = cast("list[str]", OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
            parsed = OverridesParser.create(self.config_loader).parse_overrides(given)
            values = [BasicSweeper.split_arguments([one], None)[0] for one in parsed]
            for job in range(min(_LOOKED, max(map(len, values), default=0)) if all(values) else 0):
                self.config_loader.load_sweep_config(config, [one[min(job, len(one) - 1)][0] for one in values])
        task_function(None)


def _config_folder(file: Path, config_name: str) -> Path:
    file = file.resolve()
    for folder in file.parents:
        if (folder / "configs" / f"{config_name}.yaml").is_file():
            return folder / "configs"
    raise ConfigError(
        f"no configs/{config_name}.yaml beside '{file}' or above it; install biomass from a copy of its repository "
        "that stays (pip install --editable)"
    )


def _helped(arguments: Sequence[str], folder: Path, config_name: str, program: str | None, about: str = "") -> bool:
    """Print the help if it is asked for."""
    if not {"-h", "--help"} & set(arguments):
        return False
    print(about, end="\n\n" if about else "")
    print(
        f"usage: {program or f'python {Path(sys.argv[0]).name}'} [key=value ...] [-m] [--cfg job]\n\n"
        "The keys and their defaults. -m runs every combination of values with commas, key=value,value. --cfg job\n"
        "prints the configuration as composed; --hydra-help explains Hydra's own options.\n\n"
        f"{(folder / f'{config_name}.yaml').read_text()}"
    )
    return True


def _launch(job: Callable[[DictConfig], float | None], folder: Path, config_name: str, arguments: Arguments) -> None:
    """Hand over to Hydra, which composes the configuration and calls ``job``, here or in other processes."""
    outside = _Outside.now()
    # Hydra takes its arguments from sys.argv, and prints errors itself unless it is told to raise them
    with _Outside([sys.argv[0], *arguments.for_hydra()], True).restored():
        try:
            with _stopped_by_its_effects():
                hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(job)()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            if outside.tracebacks:
                raise
            raise ConfigError(arguments.explain(error)) from error
        except RuntimeError as error:
            if type(error).__module__.startswith("submitit") and not outside.tracebacks:
                raise ConfigError(_lost(str(error))) from error
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


def _lost(said: str) -> str:
    """The line for a job of submitit that has left no result, or that was not taken, of which this is what it says."""
    lines = [line.strip() for line in said.splitlines()]
    why = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    found = re.search(r"Job (\S+).*?(\S+)_result\.pkl", said, re.DOTALL)
    if found is None:
        return f"the jobs were not taken: {shortened(one_line(said), 300)}"
    how = f"({why})" if why else "and without a word: it was killed, or its machine is gone"
    return f"job {found[1]} has ended without a result {how}: see {found[2]}_log.err; other jobs go on by themselves"


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


def _job(main: Main, node: DictConfig, arguments: Arguments, tracebacks: bool) -> float | None:
    """What Hydra calls: the whole of a single run, or one job of a sweep, perhaps in a process of its own.

    A job of a sweep leaves its value, or its error, in ``outcome.txt`` in its folder. One that was stopped, and that a
    scheduler starts again, goes on. Of several processes the first one does so; those that it has started end with the
    job, and where others have started them, as torchrun does, an error of a job is the end of all.
    """
    if not stopping.listens():  # a launcher has started this process
        stopping.listen(goes_on=True, owned=True)
        several.join_tasks()
        # at its end it would wait for the processes that read its images, and these wait for it
        multiprocessing.util.Finalize(None, stopping.end_program, exitpriority=1000)
        multiprocessing.util.Finalize(None, several.end, exitpriority=1000)
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's: it starts joblib's own workers only
        multiprocessing.set_start_method(None, force=True)  # and not those that read images
    log_printably()
    settings = HydraConfig.get()
    sweeps = settings.mode == RunMode.MULTIRUN
    outcome = Path(settings.runtime.output_dir) / OUTCOME if sweeps and not several.has_one_job() else None
    where = f'hydra.sweep.dir="{settings.sweep.dir}"' if sweeps else f'hydra.run.dir="{settings.run.dir}"'
    folder, failing = (where, "hydra.output_subdir=null"), True  # other processes write nothing there
    tell = None if outcome is None else partial(leave_outcome, outcome, settings)
    if not several.begin(overrides(), settings.job.num if sweeps else None, folder, tell):
        return None
    if several.rank() > 0:
        logging.disable(logging.WARNING)
    elif outcome is not None:
        record(settings)
        if stopping.requested():
            leave_outcome(outcome, settings, NOT_BEGUN)
            return None
        go_on(node, outcome)
    try:
        with stopping.raised(), _stopped_by_its_effects(), several.as_one():
            _check_devices(node, settings)
            value = main(Config(node, overrides()))
            failing = False
    except stopping.Stopped:
        if outcome is None:
            raise
        leave_outcome(outcome, settings, f"{STOPPED}: {stopping.said()}")
        stopping.requeue()
        stopping.request()  # where another process was asked
        return None
    except Exception as error:
        if isinstance(error, BiomassError):
            message = explained(error, node)
        elif isinstance(error, OmegaConfBaseException):
            message = arguments.explain(error)
        else:
            message = escaped(error) or ""
        if tracebacks or not message:
            several.failed(error)
            raise
        line = several.last_line(f"error: {message}", error)
        if outcome is not None:
            leave_outcome(outcome, settings, line if isinstance(line, str) else message)
        if outcome is None or (several.started_apart() and "Basic" in settings.launcher._target_):
            raise SystemExit(line if outcome is None else 1) from None  # it is said
        return None
    finally:
        if sweeps:
            several.end_job(failing)
    if several.has_one_job():
        raise SystemExit(0)
    if outcome is None:
        stopping.end_program()
    elif several.rank() == 0:
        leave(outcome, f"{value}\n")
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


def _check_devices(node: DictConfig, settings: Any) -> None:
    """What has no key for devices takes one process; and the jobs of a launcher start no others.

    Their command line is not that of a job.
    """
    key = "devices" if "devices" in node else "trainer.devices"
    devices = OmegaConf.select(node, key)
    tasks = os.environ.get("SLURM_NTASKS" if several.is_task_of_slurm() else "WORLD_SIZE", "1")
    if devices is None:
        several.check_alone(settings.job.name)
    alone = settings.mode == RunMode.MULTIRUN and "Basic" not in settings.launcher._target_
    if alone and isinstance(devices, int) and devices > int(tasks):
        raise ConfigError(
            f"{key} is {devices}, and the jobs of this launcher have {tasks} process each; sweep with "
            "hydra/launcher=basic, or give hydra.launcher.tasks_per_node of submitit as many"
        )
