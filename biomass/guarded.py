"""Files that come from others, read by a library that a crafted one can crash: in a process that may crash.

libhdf5 and readers of workbooks are written for files that are what they say. One that is damaged, or made to, can end
the process with a segmentation fault, keep it busy for ever, or take all memory. A process apart therefore looks at
such a file first; what happens to it there is told in one line. It starts when it is first needed, in a third of a
second, and waits for more, so that a file costs milliseconds.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from biomass.errors import RefusedError, one_line

MEMORY = 8 << 30
"""Bytes of address space that the process may take."""
SECONDS, BYTES_A_SECOND = 20.0, 4e6
"""How long it may look at one file: so many seconds, and one for so many bytes of it."""

_SCRIPT = Path(__file__).with_name("guarded_process.py")
_CRASH = "crashes the library that reads such files: it is damaged, or was made to do so"
_HANG = "keeps the library that reads such files busy for more than {:.0f} seconds: it is damaged, or was made to do so"


class _Process:
    """The process, started when it is needed, and again after it has crashed or was forked with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, question: Mapping[str, Any], seconds: float) -> Any:
        with self._lock:
            if self._running is None or self._owner != os.getpid() or self._running.poll() is not None:
                self._start()
            running = self._running
            assert running is not None
            assert running.stdin is not None
            assert running.stdout is not None
            is_late = threading.Event()
            late = threading.Timer(seconds, _end, [running, is_late])
            late.start()
            try:
                running.stdin.write(json.dumps(question) + "\n")
                running.stdin.flush()
                line = running.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                late.cancel()
            if not line.endswith("\n"):
                self._stop()
                raise RefusedError(_HANG.format(seconds) if is_late.is_set() else _CRASH)
            return json.loads(line)

    def _start(self) -> None:
        unplugged = {"HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._running = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_SCRIPT), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=os.environ | unplugged,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._owner = os.getpid()

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is None or self._owner != os.getpid():
            return
        for stream in (running.stdin, running.stdout):
            _close(stream)
        running.kill()
        running.wait()

    def close(self) -> None:
        """At the end of this process."""
        with self._lock:
            self._stop()


def _end(running: "subprocess.Popen[str]", is_late: threading.Event) -> None:
    is_late.set()
    running.kill()


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):  # what it was told last has never arrived
            stream.close()


_process = _Process()
atexit.register(_process.close)


def ask(task: str, file: Path, **options: Any) -> Any:
    """What the process finds out about a file.

    Args:
        task: a function of ``guarded_process.py``.
        file: what it looks at.
        options: for the function.

    Raises:
        RefusedError: the file must not be read; says why.
        OSError: it is not there.
    """
    size = file.stat().st_size
    question = {"task": task, "file": str(file.absolute()), "options": options}
    answer = _process.ask(question, SECONDS + size / BYTES_A_SECOND)
    if "why" in answer:
        raise RefusedError(one_line(answer["why"]))
    return answer["found"]
