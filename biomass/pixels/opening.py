"""Opening a file that anybody may have put there: without waiting, only if it is a file, and as it was when opened.

A name that ends in ``.png`` may be that of a folder, of a FIFO, which would be waited for without end, of a device, or
of a link to itself. And a file may grow, or be cut, while it is read.
"""

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from biomass.errors import RefusedError

QUIET = 5.0
"""Seconds for which a file must not have changed to be taken for complete."""

_CHUNK, _SPARE = 1 << 16, 1 << 20  # bytes that are unpacked at a time, and that may be too many

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO, which passes data from program to program"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def cut_off(status: os.stat_result, why: str) -> RefusedError:
    """That a file ends too early: it is damaged, or still being written if it has changed just now."""
    since = time.time() - status.st_mtime
    if -QUIET <= since < QUIET:
        return RefusedError(why, "still being written")
    return RefusedError(why)


def _quick(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def open_file(path: Path) -> io.FileIO:
    """Open a file for reading, unbuffered, if it is one.

    Raises:
        FileNotFoundError: it is not there.
        RefusedError: it is something else, or may not be read.
    """
    try:
        file = open(path, "rb", buffering=0, opener=_quick)  # noqa: SIM115  (a context manager itself)
    except IsADirectoryError:
        raise RefusedError("it is a folder", "not a file") from None
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(f"it is a link to '{path.readlink()}', which is not there") from None
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(f"'{path.parent}' is not a folder") from error
    except OSError as error:
        raise _not_opened(path, error) from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        what = next((name for test, name in _KINDS if test(mode)), "no file")
        raise RefusedError(f"it is {what}", "not a file")
    return file


def _not_opened(path: Path, error: OSError) -> RefusedError:
    if isinstance(error, PermissionError):
        return RefusedError("this user may not read it", "no access")
    try:
        mode = path.stat().st_mode
    except OSError:
        if path.is_symlink() and error.errno == errno.ELOOP:
            return RefusedError("it is a link that leads to itself", "not a file")
        return RefusedError(error.strerror or str(error), "no access")
    what = next((name for test, name in _KINDS if test(mode)), None)
    return (
        RefusedError(f"it is {what}", "not a file") if what else RefusedError(error.strerror or str(error), "no access")
    )


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.FileIO, os.stat_result]]:
    """A file and what the system knows of it; at the end, make sure that it did not change meanwhile.

    Raises:
        FileNotFoundError, RefusedError: as :func:`open_file`; also where it has changed since, whatever was read of it.
    """
    with open_file(path) as file:
        before = os.fstat(file.fileno())
        error: Exception | None = None
        try:
            yield file, before
        except Exception as raised:  # what a reader makes of half a file
            error = raised
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise RefusedError("it changed while it was read", "still being written") from error
        if error is not None:
            raise error


def read_file(path: Path, most: int) -> bytes:
    """All bytes of a file of up to ``most`` bytes.

    Raises:
        FileNotFoundError, RefusedError: as :func:`opened`; also where it is larger.
    """
    with opened(path) as (file, status):
        if status.st_size > most:
            raise RefusedError(f"it has {status.st_size:,} bytes, and {most:,} are the most that are read", "too large")
        return read_exactly(file, status)


def read_exactly(file: io.FileIO, status: os.stat_result) -> bytes:
    """The bytes that an open file had when it was opened."""
    data = file.read(status.st_size)
    while data and len(data) < status.st_size and (more := file.read(status.st_size - len(data))):  # 2 GiB a call
        data += more
    if len(data) < status.st_size:
        raise RefusedError("it was cut while it was read", "still being written")
    return data


def unpack(unpacker: Any, data: bytes, size: int) -> bytes:
    """Up to ``size`` bytes of a packed stream; the rest is unpacked and dropped, since at its end is its checksum.

    Raises:
        RefusedError: there is no end, or far too much before it.
    """
    found: bytes = unpacker.decompress(data, size)
    rest = 0
    while not unpacker.eof:
        more = unpacker.decompress(getattr(unpacker, "unconsumed_tail", b""), _CHUNK)
        rest += len(more)
        if not more and not unpacker.eof:
            raise RefusedError("packed pixels of it end too early")
        if rest > size + _SPARE:
            raise RefusedError(
                f"packed pixels of it are more than {rest:,} bytes, and {size:,} are expected", "too large"
            )
    return found
