"""Stopping on request: what SIGTERM, SIGUSR1, SIGHUP and Ctrl-C do to a script or a tool of this package.

A scheduler that takes a machine away sends a signal first, and kills some time later. What a signal does depends on
what the process is doing:

* while modules are imported and settings are composed, it ends at once: nothing was begun;
* elsewhere :class:`Stopped` is raised, so that what is being written is removed or completed;
* within :func:`noted` it is only remembered. Training looks at :func:`requested` after each step, and saves.

However it ends, there is one line that says where to go on, and an exit code: :data:`AGAIN`, "start the same command
again", or :data:`AT_ONCE` for a second Ctrl-C, and for the first one of a tool. Nothing of this touches a process that
merely imports this package, which is why the modules that this one needs are few and quickly imported.
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from biomass.errors import too_little_memory

AGAIN = 75
"""Exit code of what was stopped and can be started again: EX_TEMPFAIL of ``sysexits.h``."""
AT_ONCE = 130
"""Exit code after Ctrl-C where nothing was saved for it: what a shell makes of SIGINT."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
_TWICE = 0.3
"""Seconds within which a second Ctrl-C is the first one, which a terminal and a launcher have both sent."""
_PATIENCE = 60
"""Seconds that cleaning up may take; what hangs then is ended."""
_ONCE_MORE = 0.02
"""Seconds after which what was lost within a callback is raised again."""
_NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_PARENT_DEATH = 1
"""PR_SET_PDEATHSIG of Linux."""


class Stopped(KeyboardInterrupt):
    """A signal asks this process to stop; libraries take it for Ctrl-C."""


class _Now:
    """What is known of signals in this process.

    Attributes:
        process: the one that listens, 0 for none; what it forks does not.
        before: what signals did before.
        owned: whether the whole process is ours to end, and not part of somebody else's program.
        goes_on: whether the same command goes on where the first Ctrl-C stops it.
        phase: what a signal does, ``starting`` (end at once), ``raising`` or ``noting``.
        signal: the first one that came.
        when: seconds, on the monotonic clock.
        what, then: the two halves of the last line: how far it came, and what to do.
        silent: whether it prints nothing, as all processes of a run but the first.
        lost: whether what the first one raised was lost, and is to be raised again.
        unraisable: what Python did before with errors that cannot leave where they are raised.
        launches: whether other processes run jobs for this one.
        depth: blocks of :func:`listening` within each other.
    """

    process: int = 0
    before: dict[int, Any] = {}  # noqa: RUF012  replaced, never changed
    owned: bool = False
    goes_on: bool = False
    phase: str = "raising"
    signal: int | None = None
    when: float = 0.0
    what: str = "nothing had begun"
    then: str = "start the same command again"
    silent: bool = False
    lost: bool = False
    unraisable: Any = None
    launches: bool = False
    depth: int = 0


_now = _Now()


def rank() -> int:
    """Which of the processes of one run this is, as torchrun, Lightning and Slurm number them."""
    known = (os.environ.get(name) for name in _NUMBERS)
    return int(next((number for number in known if number), 0))


def requested() -> bool:
    """Whether a signal asked this process to stop."""
    return _now.signal is not None


def request() -> None:
    """Another process of this run was asked to stop, and this one is with it."""
    _now.signal = _now.signal or signal.SIGTERM


def listens() -> bool:
    """Whether this process hears signals already."""
    return _now.process == os.getpid()


def say(what: str | None = None, then: str | None = None) -> None:
    """Remember the two halves of the last line of what is stopped: how far it came, and what to do."""
    _now.what, _now.then = _now.what if what is None else what, _now.then if then is None else then


def said() -> str:
    """How far it came, and what to do."""
    return "; ".join(filter(None, (_now.what, _now.then)))


def exit_code() -> int:
    """The exit code of what was stopped by the first signal."""
    return AT_ONCE if _now.signal in (None, signal.SIGINT) and not _now.goes_on else AGAIN


@contextmanager
def noted() -> Iterator[None]:
    """Within the block a signal is only remembered; at its end :class:`Stopped` is raised if there was one."""
    with _during("noting"):
        yield
    _check()


@contextmanager
def raised(otherwise: bool = False) -> Iterator[None]:
    """Within the block a signal raises :class:`Stopped`, one that is remembered at once.

    Args:
        otherwise: nothing changes.
    """
    if otherwise:
        yield
        return
    with _during("raising"):
        _check()
        yield


def _check() -> None:
    if requested():
        raise Stopped


@contextmanager
def _during(phase: str) -> Iterator[None]:
    before, _now.phase = _now.phase, phase
    try:
        yield
    finally:
        _now.phase = before


def start_program() -> Path | None:
    """Listen from the first import on, if this process was started as a script or a tool of this package.

    Returns:
        The script, where the module that Python runs is one.
    """
    script = _script_or_tool()
    if script is not None:
        _open_streams()
        sys.excepthook = _uncaught
    if script is None or threading.current_thread() is not threading.main_thread():
        return None
    listen(script)
    _now.owned, _now.phase, _now.silent = True, "starting", rank() > 0
    runs = getattr(sys.modules["__main__"], "__file__", None)
    return Path(runs).resolve() if script and runs and Path(runs).resolve() == Path(sys.argv[0]).resolve() else None


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls for an error that nothing has caught, as while modules are imported."""
    memory = too_little_memory(error)
    if memory is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {memory}", file=sys.stderr)


def _open_streams() -> None:
    """Stand in for what this process was started without, as behind ``>&-``: a file would be taken for it.

    And let a terminal without Greek letters show them as Python writes them.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # signs that it does not have are no reason to fail


def _script_or_tool() -> bool | None:
    """Whether this is a script (True) or a tool (False) of this package; None: neither, it is merely imported."""
    package, called = Path(__file__).resolve().parent, sys.argv[0] if sys.argv else ""
    if called == "-m":  # its module is being looked for
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
        return False if module.partition(".")[0] == package.name else None
    file = Path(called).resolve()
    if file.parent == package.parent and file.suffix == ".py":
        return True
    return False if file.name == package.name or package in file.parents else None


def listen(goes_on: bool, owned: bool = False) -> None:
    """Take over the signals of this process. One that is ignored stays so, as under ``nohup``.

    Args:
        goes_on: whether the same command goes on where the first Ctrl-C stops it.
        owned: the whole process is ours: it runs jobs of a sweep for another one.
    """
    vars(_now).clear()
    numbers = [*_SIGNALS, *([number] if (number := _of_submitit()) is not None else [])]
    _now.before = {number: signal.getsignal(number) for number in numbers}
    _now.process, _now.goes_on, _now.owned = os.getpid(), goes_on, owned
    _now.phase = "noting" if owned else "raising"
    _watch_forks()
    for number, handler in _now.before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    _now.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_alarm)
    _now.unraisable, sys.unraisablehook = sys.unraisablehook, _on_unraisable


def _of_submitit() -> int | None:
    """The signal by which submitit asks a job to make place, and then starts it again."""
    if not os.environ.get("SUBMITIT_EXECUTOR"):
        return None
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)


def _forget() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in _now.before.items():
        signal.signal(number, handler)
    sys.unraisablehook = _now.unraisable
    vars(_now).clear()


@contextmanager
def listening(goes_on: bool, silent: bool = False) -> Iterator[None]:
    """Within the block signals are heard; what they stop ends with one line and an exit code.

    Args:
        goes_on: whether the same command goes on where the first Ctrl-C stops it.
        silent: nothing is printed.

    Raises:
        SystemExit: a signal has stopped it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not listens():
        listen(goes_on)
    _now.silent = silent or (_now.silent and _now.depth > 0)
    _now.depth += 1
    if _now.phase == "starting":
        _now.goes_on = goes_on
    try:
        yield
    except Exception as error:  # what a signal leads to where code of others swallows it, as imports do
        if not requested():
            raise
        _end(error)
    except KeyboardInterrupt as error:
        _end(error)
    finally:
        _now.depth -= 1
        if not _now.depth and _now.owned:
            end_program()
        elif not _now.depth:
            _forget()


def _end(error: BaseException) -> None:
    """Say the last line, and leave."""
    _now.lost = False
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and not isinstance(error, Stopped):
        raise error
    code = exit_code()
    if not _now.silent:
        print(f"stopped: {said()}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def end_program() -> None:
    """The process is at its end: signals do not matter any more, and what waits for work from it is killed."""
    if _now.owned and listens():
        if threading.current_thread() is threading.main_thread():  # only this one may say what signals do
            for number in _now.before:
                signal.signal(number, signal.SIG_IGN)
        _end_children()


def launch_jobs() -> None:
    """Call this where other processes run jobs for this one: it notes signals from now on, and hands them on."""
    _now.phase, _now.launches = "noting", True


def requeue() -> None:
    """Have submitit start this job again, if it has asked for the place. Does not return then.

    Raises:
        SystemExit: the job is queued again; or, not by submitit, it is to be started again.
    """
    number = _of_submitit()
    if number is not None:
        handler = _now.before.get(number)
        if _now.signal in (number, signal.SIGUSR1) and callable(handler):
            handler(number, None)
        raise SystemExit(AGAIN)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not listens():  # it was forked
        return
    if _now.signal is not None:
        if number == signal.SIGINT and time.monotonic() - _now.when > _TWICE:
            _leave("stopped at once", AT_ONCE)
        if number == _of_submitit():
            _now.signal = number
        return
    _now.signal, _now.when = number, time.monotonic()
    if _now.launches:
        for child in _children():
            with suppress(OSError):
                os.kill(child.pid, signal.SIGTERM)
    if _now.phase == "starting":
        _leave("stopped", exit_code())
    if _now.phase == "raising":
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        raise Stopped


def _on_unraisable(lost: Any) -> None:
    """A signal came within a ``__del__`` or a callback of the garbage collector, which nothing leaves: once more."""
    if isinstance(lost.exc_value, Stopped) and listens():
        _now.lost = True
        signal.setitimer(signal.ITIMER_REAL, _ONCE_MORE)
        return
    if _now.unraisable is not None:
        _now.unraisable(lost)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    """What was stopped is still there: its error was lost, somebody swallowed it, or hangs."""
    if not (listens() and requested()):
        return
    lost, _now.lost = _now.lost, False
    if not lost:
        _leave("stopped", exit_code())
    if _now.phase == "raising":
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        raise Stopped


def _leave(how: str, code: int) -> None:
    """End the process in the middle of whatever it does."""
    if not _now.silent:
        with suppress(OSError):
            os.write(2, f"{how}: {said()}\n".encode(errors="replace"))
    _end_children()
    os._exit(code)


def _children() -> list[Any]:
    """The processes that this one has started to work for it."""
    module = sys.modules.get("multiprocessing")
    return module.active_children() if module is not None else []


def _end_children() -> None:
    with suppress(ValueError):  # in a thread
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call it an error
    with suppress(Exception):
        for child in _children():
            with suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)  # the method ``kill`` is missing where joblib started it


_hooked: list[int] = []
"""Not empty where forks are watched; the process that forks now, 0 where its main thread does not."""


def _watch_forks() -> None:
    if not _hooked:
        _hooked.append(0)
        os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def _before_fork() -> None:
    _hooked[0] = os.getpid() if threading.current_thread() is threading.main_thread() else 0


def _in_child() -> None:
    """What is forked leaves signals to its parent, and ends with it."""
    for number in _now.before or ():
        signal.signal(number, signal.SIG_DFL if number in (signal.SIGTERM, signal.SIGALRM) else signal.SIG_IGN)
    if _now.owned and _hooked[0]:  # the system looks at the thread that forked
        die_with(_hooked[0])


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, however that ends (Linux)."""
    with suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def in_reader(number: int) -> None:
    """Call this in a process that reads batches: a signal that reaches all processes of a run is for the first one."""
    if _now.owned:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
