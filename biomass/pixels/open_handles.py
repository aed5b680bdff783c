"""Open files that a Pixels keeps for itself, safe under pickling and forking."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar


class _Closeable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closeable)

_MOST = 64  # files open at once; systems allow a process 256 or more


class Handles(Generic[T]):
    """Opens a file when it is first asked for, and keeps it open.

    A copy in another process opens its own: file positions and the state of libraries such as HDF5 must not be shared.

    Args:
        opener: opens a path; a plain function, so that it can be pickled.
    """

    def __init__(self, opener: Callable[[Path], T]) -> None:
        self._opener = opener
        self._open: dict[Path, T] = {}
        self._process = os.getpid()

    def __call__(self, path: Path) -> T:
        """The open file."""
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            if len(self._open) >= _MOST:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = self._opener(path)
        return self._open[path]

    def __reduce__(self) -> tuple[type["Handles[T]"], tuple[Callable[[Path], T]]]:
        return type(self), (self._opener,)
