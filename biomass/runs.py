"""Runs, and sweeps of them: their names, their folders, and what the jobs of a sweep leave behind."""

import copy
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from biomass import several, stopping
from biomass.atomic import check_place, check_writable, whole_file
from biomass.diskerrors import explain_disk
from biomass.errors import ConfigError, one_line, say
from biomass.keys import NEXT, data_overrides
from biomass.run_lock import own
from biomass.settings import overrides

OUTCOME, NAMED, TABLE = "outcome.txt", "run.json", "sweep.csv"
"""What a job of a sweep leaves in its folder: its value or error, and the name of its run; and the sweep's table."""
STOPPED, NOT_BEGUN = "stopped", "not begun, since the sweep was stopped"
"""The errors of jobs that a signal has ended, and that it has kept from beginning."""
_LONGEST = 120
"""Characters of a run's name; a longer one is cut, and a digest of it is put behind."""


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
        if several.rank() == 0:
            config.hydra.run.dir = _own_folder(config, "run")
            return
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"root": None}
        with resolving(config):
            if not _is_given(config.hydra, "run"):
                config.hydra.run.dir = str(Path(config.hydra.run.dir).parent)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take a folder for this sweep, and forget what an earlier one may have left there, as the first process."""
        first = several.rank() == 0
        if first:
            folder = _own_folder(config, "sweep")
        else:
            logging.disable(logging.WARNING)
            with resolving(config):
                folder, given = str(config.hydra.sweep.dir), _is_given(config.hydra, "sweep")
            config.hydra.overrides.hydra += ["hydra.output_subdir=null", "hydra/job_logging=none"]
            if not given:
                folder = str(Path(folder).parent)
                config.hydra.overrides.hydra.append("hydra.sweep.subdir=.")
        config.hydra.sweep.dir = folder
        self.swept = _swept(config)
        config.hydra.overrides.hydra += [  # every job is composed again
            f'hydra.sweep.dir="{folder}"',
            f"++hydra.callbacks.folders.swept={json.dumps(self.swept, separators=(',', ':'))}",
        ]
        for left in itertools.chain(Path(folder).rglob(OUTCOME), Path(folder).rglob(NAMED)) if first else ():
            left.unlink()
        if "submitit" in config.hydra.launcher._target_:
            stopping.say("the jobs that were handed over go on by themselves", f"see {folder}")
        else:
            stopping.launch_jobs()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table of the sweep, and count the jobs that ended in an error: the exit code is 1 if any did."""
        folder, first = Path(config.hydra.sweep.dir), several.rank() == 0
        outcomes = [path.read_text() for path in folder.rglob(OUTCOME)] if first else []
        if len(outcomes) > 1:
            _print_sweep(folder)
        stopped, waits = (sum(text.startswith(f"error: {why}") for text in outcomes) for why in (STOPPED, NOT_BEGUN))
        if stopped or waits or stopping.requested():
            name = config.get("run_name") or "-".join([config.hydra.job.name, *folder.parts[-2:]])
            which = f"{stopped} of {len(outcomes)} jobs within their runs, and {waits} before they began"
            stopping.say(which, _again(name, "resume" in config))
            raise stopping.Stopped
        if not outcomes and first:
            raise SystemExit(
                f"error: the sweep of {', '.join(self.swept) or 'no key'} has no value, and no job; name some"
            )
        failed = sum(text.startswith("error: ") for text in outcomes)
        if failed:
            raise SystemExit(f"error: {failed} of {len(outcomes)} jobs failed; see {folder}/*/{OUTCOME}")


@contextmanager
def resolving(config: DictConfig) -> Iterator[None]:
    """What Hydra knows of itself is known within, as in a job: interpolations like ``${hydra:job.name}`` ask for it."""
    known: Any = HydraConfig.instance()
    before, known.cfg = known.cfg, copy.deepcopy(config)
    try:
        yield
    finally:
        known.cfg = before


def _swept(config: DictConfig) -> list[str]:
    """The keys that a sweep varies: those with several values on the command line, and those of a preset's sweeper."""
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parsed = OverridesParser.create().parse_overrides(cast("list[str]", given))
    given = [override.get_key_element().lstrip("+") for override in parsed if override.is_sweep_override()]
    preset = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return list(dict.fromkeys([*given, *(str(key).lstrip("+") for key in preset)]))


def _print_sweep(folder: Path) -> None:
    """The jobs of a sweep as a table, and all that they measured in ``sweep.csv``."""
    from biomass.evaluation.sweep import Job, sweep_table, table_text
    from biomass.formulas import to_csv

    jobs = []
    for outcome in folder.rglob(OUTCOME):
        file = outcome.with_name(NAMED)
        folder_number = int(outcome.parent.name) if outcome.parent.name.isdecimal() else -1
        named: dict[str, Any] = {"number": folder_number, "name": "", "short": "", "differs": {}}
        named |= json.loads(file.read_text()) if file.exists() else {}
        jobs.append(Job(**named, outcome=one_line(outcome.read_text())))
    jobs.sort(key=lambda job: (job.number, job.name))
    table = sweep_table(jobs)
    leave(folder / TABLE, to_csv(table))
    say(f"\n{table_text(table, jobs)}\nAll metrics, and names in full: {folder / TABLE}. The runs are in runs/.")


def _own_folder(config: DictConfig, mode: str) -> str:
    """Make the folder of a run or a sweep. Nobody else has it, unless its name was given: a number is put behind it."""
    with resolving(config):
        folder, given = str(config.hydra[mode].dir), _is_given(config.hydra, mode)
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


def leave_outcome(outcome: Path, settings: Any, message: str) -> None:
    """Say why a job of a sweep has no value, here and in its folder; of several processes the first one does."""
    if several.rank() > 0:
        return
    message = message.removeprefix("error: ")
    leave(outcome, f"error: {message}\n")
    print(f"error: job {settings.job.num}: {message}", file=sys.stderr, flush=True)


def leave(file: Path, text: str) -> None:
    """Write one of the files of a sweep."""
    with whole_file(file) as part:
        part.write_text(text)


def go_on(node: DictConfig, outcome: Path) -> None:
    """Have a job go on with its run that was stopped, or killed with its machine, and that a scheduler starts again."""
    stopped = outcome.is_file() and outcome.read_text().startswith(f"error: {STOPPED}")
    requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if (stopped or requeued) and "resume" in node and node.resume is None:
        node.resume = "auto"


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
        if several.started_apart() and not _is_given(settings, "sweep" if sweep else "run"):
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
    if several.rank() == 0:
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
    if several.rank() == 0:
        record(settings, name, short if len(short) < len(name) else name)
    return name


def record(settings: Any, name: str = "", short: str = "") -> None:
    """Leave in the folder of a job what differs from the other jobs, and what its run is called where it is known."""
    record = {"number": settings.job.num, "name": name, "short": short, "differs": _differs(settings)}
    leave(Path(settings.runtime.output_dir) / NAMED, json.dumps(record))


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
