"""A folder of results has one writer: :func:`own` makes this process the one, from before anything is read.

The lock is one of the system (``flock``) on the file ``.lock`` in the folder, which also says who holds it. The system
lets go of it when the process ends, however that ends. Where a file system has no such locks, the file alone must do: a
process of this machine that is gone does not hold it any more, and of another machine it cannot be known.
"""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from biomass.atomic import writing
from biomass.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class _Held(NamedTuple):
    """A lock of this process: its file, its descriptor, and the folders that were made for it, the innermost first."""

    file: Path
    descriptor: int
    made: list[Path]


_held: list[_Held] = []


def own(folder: Path, advice: str | None = None) -> None:
    """Make this process the only one that writes to a folder, until :func:`letting_go` ends, or the process does.

    Args:
        folder: made if it is not there. One that this process owns already stays so.
        advice: of an error of the disk, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: another process owns it, and since when; or it cannot be written.
    """
    file = folder.absolute() / LOCK
    if any(one.file == file for one in _held):
        return
    made = [path for path in (file.parent, *file.parent.parents) if not path.exists()]
    with writing(folder, advice):
        while True:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            if not _locked(descriptor, folder, file):
                continue
            _held.append(_Held(file, descriptor, made))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
            return


def _locked(descriptor: int, folder: Path, file: Path) -> bool:
    """Lock an open file; False where it is not the one of that name any more, because its owner has just removed it."""
    try:
        if not _lock(descriptor):
            holder = _read(descriptor)
            if holder.get("host") == socket.gethostname() and _is_alive(holder):
                raise BlockingIOError
            if holder:
                log.warning("the file system of '%s' has no locks: make sure that %s is gone", folder, _text(holder))
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return True
    except BlockingIOError:
        holder = _read(descriptor)
        os.close(descriptor)
        raise ConfigError(
            f"another process is writing '{folder}'{_text(holder, ': ')}; wait for it, or choose another name",
            "run_name",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False


def _lock(descriptor: int) -> bool:
    """Whether the system has locked the file. Raises BlockingIOError where another process has."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def letting_go() -> Iterator[None]:
    """At the end of the block the folders that it came to own are nobody's again, and what locks left is removed."""
    before = len(_held)
    try:
        yield
    finally:
        while len(_held) > before:
            held = _held.pop()
            with suppress(OSError):
                held.file.unlink()
            os.close(held.descriptor)
            for folder in held.made:  # nothing was written there if it is empty
                with suppress(OSError):
                    folder.rmdir()


def _forked() -> None:
    """A forked process owns nothing: else it would, when its parent is gone."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop().descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _this_process() -> dict[str, Any]:
    now = datetime.now().astimezone()
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now.isoformat(" ", "seconds")}


def _read(descriptor: int) -> dict[str, Any]:
    """Who holds a lock, as its file says; nothing where it does not."""
    with suppress(OSError, ValueError):
        holder = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(holder, dict):
            return holder
    return {}


def _text(holder: dict[str, Any], before: str = "") -> str:
    """Who holds a lock, in words; nothing where that is not known."""
    if not {"pid", "host", "since"} <= holder.keys():
        return ""
    return f"{before}process {holder['pid']} of {holder['host']}, since {holder['since']}"


def _is_alive(holder: dict[str, Any]) -> bool:
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return False
    except OSError:
        return True
    return True
