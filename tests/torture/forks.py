"""A process a case, in milliseconds: a parent that has imported everything forks a child, which runs one function.

The parent never computes: what a child does begins as in a new process. A child leads a group of its own, so that what
it leaves running is found.
"""

import faulthandler
import gc
import multiprocessing.util
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MEMORY, FILE_SIZE = 12 << 30, 2 << 30
"""Bytes that a child may map, and write to one file: what a file that lies about its size asks for ends there."""

STILL = 20.0
"""Seconds in which a child that does anything has used a processor, however many others do."""

_SHOWN = 20_000  # characters of the output that are kept


class Ended(NamedTuple):
    """How a child ended: its exit code or its signal, what it printed, and the seconds of a processor it took."""

    code: int | None
    signal: int
    output: str
    seconds: float
    hung: bool


class Child:
    """A process that runs a function in a folder.

    Args:
        function: what it runs; a ``SystemExit`` means what it means to Python.
        folder: where.
        log: what it prints goes to this file.
        environment: what it has in its environment besides.
        limits: whether memory and sizes of files are limited.
    """

    def __init__(
        self,
        function: Callable[[], object],
        folder: Path,
        log: Path,
        environment: dict[str, str] | None = None,
        limits: bool = True,
    ) -> None:
        self.log = log
        self._status: int | None = None
        self._seconds = 0.0
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(function, folder, log, environment or {}, limits)

    def seconds(self) -> float:
        """What it has used of a processor so far, its own threads alone."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)  # the clock of another process, see clock_getcpuclockid(3)
        except OSError:
            return 0.0

    def ended(self) -> bool:
        """Whether it has ended."""
        if self._status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._status, self._seconds = status, usage.ru_utime + usage.ru_stime
        return self._status is not None

    def send(self, number: int) -> None:
        """Send it a signal."""
        if not self.ended():
            os.kill(self.pid, number)

    def wait(self, limit: float) -> Ended:
        """Wait until it ends; one that uses ``limit`` seconds of a processor, or none for long, hangs."""
        used, since, pause, hung = 0.0, time.monotonic(), 0.002, False
        while not self.ended():
            time.sleep(pause)
            pause, now = min(pause * 1.2, 0.1), self.seconds()
            if now > used:
                used, since = now, time.monotonic()
            if not hung and (used > limit or time.monotonic() - since > STILL):
                hung = True
                self.end_group()
        status = self._status or 0
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        with self.log.open("rb") as file:
            output = file.read()
        text = output[-_SHOWN:].decode("utf-8", "backslashreplace").replace("\r", "\n")
        return Ended(code, killed, text, self._seconds, hung)

    def group(self) -> list[int]:
        """The processes that it has started and that are still there, itself left out."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" ")
                state, _, group = rest.rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == self.pid and int(pid) != self.pid and state != "Z":
                found.append(int(pid))
        return found

    def end_group(self) -> None:
        """End it and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run(function: Callable[[], object], folder: Path, log: Path, limit: float, limits: bool = True) -> Ended:
    """Run a function in a child to its end, and end what it leaves running."""
    child = Child(function, folder, log, limits=limits)
    ended = child.wait(limit)
    child.end_group()
    return ended


def _be_child(
    function: Callable[[], object], folder: Path, log: Path, environment: dict[str, str], limits: bool
) -> None:
    """Run the function, print as Python would what escapes from it, and end; never returns."""
    code = 70
    try:
        os.setsid()
        gc.callbacks.clear()  # those of what the harness has imported, and no command has
        faulthandler.disable()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, place in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(number, place)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ |= environment
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        code = exit_code(function)
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()  # ends reading workers; what else waits for the end is the parent's
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(function: Callable[[], object]) -> int:
    """Run a function, print as Python would what escapes from it, and tell the exit code that Python would have."""
    try:
        function()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stdout.flush()
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.stdout.flush()
        traceback.print_exc()
        return 1
    return 0
