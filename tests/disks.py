"""Disks that fail: for tests, and for the torture harness.

What Python itself does below a folder fails where :func:`failing` says so, without root. Libraries that write by
themselves (Arrow, HDF5, PyTorch with a path) are not reached by that; :func:`no_larger_than` and :func:`small_disk`
reach them, too.
"""

import builtins
import errno as numbers
import io
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

CALLS = ("open", "write", "fsync", "rename", "mkdir")
"""What can fail."""


class Faults:
    """Counts calls, and fails from the n-th on.

    Attributes:
        count: the calls so far.
    """

    def __init__(self, at: int, errno: int, calls: tuple[str, ...], below: Path | None, once: bool) -> None:
        self.at, self.errno, self.calls, self.once = at, errno, calls, once
        self.below = None if below is None else below.absolute()
        self.count = 0

    def check(self, call: str, file: Any) -> None:
        """Count a call that concerns a file, and raise where it is its turn."""
        if call not in self.calls or (self.below is not None and not self._is_below(file)):
            return
        self.count += 1
        if self.count == self.at or (self.count > self.at and not self.once):
            raise OSError(self.errno, os.strerror(self.errno), None if isinstance(file, int) else os.fspath(file))

    def _is_below(self, file: Any) -> bool:
        assert self.below is not None
        if isinstance(file, int):  # a descriptor
            try:
                file = Path(f"/proc/self/fd/{file}").readlink()
            except OSError:
                return False
        return Path(os.fsdecode(file)).absolute().is_relative_to(self.below)


@contextmanager
def failing(
    at: int,
    errno: int = numbers.ENOSPC,
    call: str = "write",
    below: Path | None = None,
    once: bool = False,
) -> Iterator[Faults]:
    """Let the n-th call of a kind fail, and all after it.

    Args:
        at: which call, from 1; 0 counts and lets none fail.
        errno: the number of the error.
        call: one of :data:`CALLS`, or ``any``. Files count as opened where they are opened for writing.
        below: only calls that concern this folder.
        once: the calls after it work again.
    """
    faults = Faults(at or 1 << 62, errno, CALLS if call == "any" else (call,), below, once)

    class Written(io.FileIO):
        def write(self, data: Any) -> int:
            faults.check("write", self.name)
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return plain_open(file, mode, buffering, *args, **options)
        faults.check("open", file)
        raw = Written(file, mode.replace("t", "").replace("b", ""), opener=options.pop("opener", None))
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

    def guarded(
        call: str, plain: Callable[..., Any], only: Callable[..., bool] = lambda *_: True
    ) -> Callable[..., Any]:
        def guard(file: Any, *args: Any, **options: Any) -> Any:
            if only(*args):
                faults.check(call, file)
            return plain(file, *args, **options)

        return guard

    def for_writing(flags: int, *_: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR))

    plain_open = builtins.open
    changed = {
        "open": guarded("open", os.open, for_writing),
        "write": guarded("write", os.write),
        "fsync": guarded("fsync", os.fsync),
        **{name: guarded("rename", getattr(os, name)) for name in ("rename", "replace", "link")},
        "mkdir": guarded("mkdir", os.mkdir),
    }
    with (
        mock.patch.multiple(os, **changed),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(io, "open", opened),
    ):
        yield faults


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """No file can become larger than this, bytes: whoever writes gets ``EFBIG`` (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own in a folder, such as of ``300k``; the test is skipped where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    """Give a :func:`small_disk` another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
