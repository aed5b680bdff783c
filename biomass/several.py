"""Several processes of one run: how they are started here, and how an error of one of them ends all, in one line.

A process that fails tells the others why, before it ends. The first one says the line, whoever had the error. One that
waits for a process that is gone, and cannot be interrupted, is ended after a moment.
"""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from biomass import stopping
from biomass.errors import ConfigError, ToldError, TrainingError, one_line, shortened, shown

_QUIET = "TORCH_CPP_LOG_LEVEL"  # else a connection that ends is a page of addresses
_NO_STEP = 0xFFFFFFF0  # from here on Slurm numbers what srun has not started
_WORD = 3.0
"""Seconds in which a process that fails has told why."""
_MOMENT = 2.0
"""Seconds that a process has to end by itself, once another one has failed."""
_END = 30.0
"""Seconds that processes which were started here have for their end, and a job of a sweep that others come after."""
_JOB = "BIOMASS_JOB"
"""Which job of a sweep a process was started for; it runs no other."""
_STARTED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What tells processes that are started here of each other."""
_PORTS = 20000
_LONG = 200  # characters of what torch says of a connection
_FOREVER = timedelta(days=365)


class _Now:
    """What is known of the other processes.

    Attributes:
        children: those that this one has started.
        store: what all can write to, once they have met.
        group: by which they talk.
        listener: hears what ended the run.
        error: what ended the run, in one line.
        given: the settings of this run as they were typed.
        arguments: what those that are started here have behind the arguments of the command.
        job: which job of a sweep this is.
        say: says what ended the run, where this process cannot do so by itself.
        hook: says what nothing has caught; torch puts another one before it each time that processes meet.
        ended: whether this process is at its end.
    """

    children: list[subprocess.Popen[bytes]] = []  # noqa: RUF012  replaced, never changed
    store: Any = None
    group: Any = None
    listener: threading.Thread | None = None
    error: str | None = None
    given: Sequence[str] = ()
    arguments: Sequence[str] = ()
    job: int | None = None
    say: Callable[[str], None] | None = None
    hook: Any = None
    ended: bool = False


rank = stopping.rank
_now = _Now()
_leaving = threading.Lock()


def is_task_of_slurm() -> bool:
    """Whether srun has started this process: what the script of a job calls is one, and so is a shell."""
    step = os.environ.get("SLURM_STEP_ID") or os.environ.get("SLURM_STEPID") or str(_NO_STEP)
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in os.environ and step.isdecimal() and int(step) < _NO_STEP and not shell


def started_apart() -> bool:
    """Whether others have started several processes of this run, which do not know of each other yet."""
    if has_one_job():
        return False
    sizes = [os.environ.get("WORLD_SIZE")] if "RANK" in os.environ else []
    sizes += [os.environ.get("SLURM_NTASKS")] if is_task_of_slurm() else []
    return any(size not in (None, "", "1") for size in sizes)


def check_alone(what: str) -> None:
    """Call this where a process writes what others would write, too.

    Args:
        what: runs in one process.

    Raises:
        ConfigError: others have started several of this.
        SystemExit: the same, where the first one says it.
    """
    if started_apart():
        if rank() > 0:
            raise SystemExit(_behind_first())
        by, how = ("Slurm", "srun --ntasks=1") if is_task_of_slurm() else ("torchrun", "python alone")
        number = os.environ["SLURM_NTASKS" if is_task_of_slurm() else "WORLD_SIZE"]
        raise ConfigError(f"{what} takes one process, and {by} has started {number} of it: start it with {how}")


def join_tasks() -> None:
    """Several tasks of a job of submitit on this machine are the processes of one run, as those of Slurm are."""
    own, job, number = (os.environ.get(f"SUBMITIT_LOCAL_{name}", "1") for name in ("LOCALID", "JOB_ID", "NTASKS"))
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and number != "1":
        port = _PORTS + int(job) % _PORTS  # the job's number is that of a process
        os.environ |= dict(zip(_STARTED, ("127.0.0.1", str(port), "0", own, number), strict=True)) | {"RANK": own}


def has_one_job() -> bool:
    """Whether this process was started here for one job of a sweep, and ends with it."""
    return rank() > 0 and _JOB in os.environ


def begin(
    given: Sequence[str], job: int | None, arguments: Sequence[str], say: Callable[[str], None] | None = None
) -> bool:
    """Call this where a run begins, or a job of a sweep.

    Args:
        given: what it was given, which must be the same in all processes.
        job: its number in a sweep, None where there is none.
        arguments: what processes that are started here get behind the arguments of the command.
        say: says what ended the run, where this process cannot do so by itself; None: on the terminal.

    Returns:
        Whether this process is to run it: one that was started for another job is not.
    """
    _now.given, _now.job, _now.arguments, _now.say = list(given), job, arguments, say
    return not has_one_job() or os.environ[_JOB] == str(job)


def end_job(failed: bool) -> None:
    """A job of a sweep is at its end. Processes that were started for it end, too: the next one may need none, or more.

    Args:
        failed: whether it ended in an error, and the others need not be waited for.
    """
    apart = failed and started_apart()
    if not (_now.children or apart):
        return
    end()
    _end_children(failed)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()  # so that those who wait for this process hear that it is gone
    if apart:
        return
    _now.store = _now.group = None
    sys.excepthook = _now.hook
    for name in _STARTED:
        os.environ.pop(name, None)


def start(devices: int) -> None:
    """Start the other processes of this machine: the same command again, each with its number.

    Args:
        devices: number of processes in all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= dict(zip(_STARTED, ("127.0.0.1", str(port), "0", "0", str(devices)), strict=True))
    module = getattr(sys.modules["__main__"], "__spec__", None)
    command = [sys.executable, *(["-m", module.name] if module else [str(Path(sys.argv[0]).absolute())]), *sys.argv[1:]]
    _now.ended, _now.error, _now.hook = False, None, sys.excepthook
    own = {} if _now.job is None else {_JOB: str(_now.job)}
    environment = {_QUIET: "ERROR"} | os.environ | own
    _now.children = [
        subprocess.Popen([*command, *_now.arguments], env=environment | {"LOCAL_RANK": str(number)})
        for number in range(1, devices)
    ]
    threading.Thread(target=_watch_children, args=(_now.children,), daemon=True).start()


def meet(share: Callable[[Any], Any], first: bool) -> None:
    """Call this where all processes are: from now on they hear of each other's errors.

    Args:
        share: gives all processes what the first one has.
        first: whether this is it.

    Raises:
        ConfigError: this process was given something else than the first one.
    """
    if _now.store is not None:
        return
    from torch.distributed import TCPStore, new_group

    # at once: who waits for others to connect cannot be interrupted, and who is connected hears that one is gone
    _now.group = new_group(backend="gloo")
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False) if first else None
    port, given = share((None if store is None else store.port, _now.given))
    _now.store, _now.error, _now.ended = store or TCPStore(host, port, is_master=False), None, False
    listens = TCPStore(host, port, is_master=False, timeout=_FOREVER)  # a client that waits does nothing else
    # which also holds the first one's store: were that gone before its process is, who listens would crash
    _now.listener = threading.Thread(target=_listen, args=(listens, store), daemon=True)
    _now.listener.start()
    other = [one for one in _now.given if one not in given] or [f"no {one}" for one in given if one not in _now.given]
    if other:
        raise ConfigError(
            f"process {rank()} of this run was given {shown(other[0])}, and the first one was not: give all of them "
            "the same; or, if they are runs of their own, start each apart, as with srun --ntasks=1"
        )


def group() -> Any:
    """The processes as a group that talks by way of the host; None where there is one process."""
    return _now.group


@contextmanager
def as_one() -> Iterator[None]:
    """Within the block what goes wrong here because another process has failed is that one's error.

    Raises:
        BiomassError: another process has told why the run ends, or has ended without a word.
    """
    try:
        yield
    except BaseException as error:
        if _now.store is None and not _now.children:
            raise
        told = _told(_WORD if _of_others(error) else 0)
        if told is not None:
            raise ToldError(told) from None
        if _of_others(error):
            how = shortened(re.sub(r"^\[\S*\] | This is typically .*", "", one_line(error)), _LONG)
            raise TrainingError(f"another process of this run has ended without a word ({how}); see its log") from error
        raise


def failed(error: BaseException) -> None:
    """Tell the others of an error that this process shows with a traceback."""
    if _now.store is not None or _now.children:
        kind, why = type(error).__name__, one_line(error)
        _tell(f"error: process {rank()} of this run has failed: {kind}{'' if why == kind else f': {why}'}")


def last_line(line: str, error: BaseException) -> str | int:
    """What a process ends with that has an error: the line to say, or the exit code of one that says nothing.

    Args:
        line: the error, in one line.
        error: the same.
    """
    if isinstance(error, ToldError):
        line = str(error)
    elif _now.store is not None or _now.children:
        line = _tell(line)
    elif int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0:
        return line  # it is alone, or has not met the others
    return line if rank() == 0 else _behind_first()


def _behind_first() -> int:
    """The exit code of a process that says nothing, once the first one has: whoever started both would end that one."""
    end()
    if started_apart():
        time.sleep(_MOMENT)
    return 1


@contextmanager
def ending() -> Iterator[None]:
    """Behind the block this process is at its end; those that it has started end, too."""
    try:
        yield
    finally:
        end()
        _end_children(sys.exc_info()[0] is not None)


def end() -> None:
    """This process is at its end: that others are, too, is no error any more.

    The first one says so, and the others wait for it: who still listened while Python ends would crash.
    """
    _now.ended = True
    if _now.listener is None or _now.listener is threading.current_thread():
        return
    if rank() == 0 and _now.error is None:
        with suppress(Exception):
            _now.store.set("error", "")
    _now.listener.join(_END)
    _now.listener = None


def _tell(line: str) -> str:
    """Tell the others why the run ends; the first to do so is right."""
    if _now.error is None:
        _now.error = line
        with suppress(Exception):  # the first process is gone
            if _now.store is not None:
                _now.error = _now.store.compare_set("error", "", line).decode()
    return _now.error


def _told(patience: float) -> str | None:
    """What another process has told, within some seconds."""
    until = time.monotonic() + patience
    while True:
        with suppress(Exception):
            if _now.error is None and _now.store is not None and _now.store.check(["error"]):
                _now.error = _now.store.get("error").decode()
        if _now.error is not None or time.monotonic() >= until:
            return _now.error
        time.sleep(0.05)


def _of_others(error: BaseException) -> bool:
    """Whether an error is about the connection to other processes."""
    by_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return by_torch or (isinstance(error, RuntimeError) and re.search(r"\bgloo\b|\bNCCL\b", str(error)) is not None)


def _listen(store: Any, _: Any) -> None:
    """Wait for an error of another process; end this one if it does not end by itself then."""
    try:
        store.wait(["error"], _FOREVER)
        line, says = store.get("error").decode(), rank() == 0
    except Exception:
        line, says = "error: the first process of this run has ended without a word", True
    if line:
        _leave_soon(line, says)


def _watch_children(children: list[subprocess.Popen[bytes]]) -> None:
    """Look whether a process that was started here is killed, or ends in an error that nobody told."""
    while not _now.ended and children is _now.children:
        time.sleep(0.2)
        codes = [child.poll() for child in children]
        bad = next((number for number, code in enumerate(codes, 1) if code not in (None, 0, stopping.AGAIN)), None)
        if bad is not None and not _now.ended and children is _now.children:
            code = codes[bad - 1] or 0
            how = f"was killed (signal {-code}): look whether there is memory for all of them" if code < 0 else ""
            told = _told(_WORD / 3)
            _leave_soon(told or _tell(f"error: process {bad} of this run {how or f'has ended with exit code {code}'}"))
            return
        if all(code is not None for code in codes):
            return


def _leave_soon(line: str, says: bool = True) -> None:
    """End this process, with a line or without, if it does not end by itself."""
    if _now.ended:
        return
    _now.error = _now.error or line
    until = time.monotonic() + (_MOMENT if _now.job is None or has_one_job() else _END)
    while time.monotonic() < until:
        if _now.ended:
            return
        time.sleep(0.05)
    with _leaving:  # of two threads that know of it one ends the process
        try:
            if says:
                (_now.say or _write)(_now.error)
            for child in _now.children:
                child.kill()
            stopping.end_program()
        finally:
            os._exit(1)


def _write(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))


def _end_children(failed: bool) -> None:
    """Wait for the processes that were started here; one that does not end is stopped, and all after an error are."""
    children, _now.children = _now.children, []
    if failed or stopping.requested():
        for child in children:
            with suppress(OSError):
                child.terminate()
    until = time.monotonic() + (_MOMENT if _now.store is None else _END)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, until - time.monotonic()))
        child.kill()
