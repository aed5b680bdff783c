"""What a disk says when it does not take a file, in one line: what is wrong with it, and the remedy for that."""

import errno
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from biomass.errors import BiomassError, ConfigError, one_line, shortened, too_little_memory

_PLACE = "choose another place"
_TAKEN = f"something else is in the way: move it, or {_PLACE}"
_FAILS = f"see that the disk, or the server that it is on, works, and start again; or {_PLACE}"

_REMEDIES = {
    errno.ENOSPC: f"make room{{room}}, or {_PLACE}",
    errno.EDQUOT: f"make room{{room}} in what you may use there, or {_PLACE}",
    errno.EROFS: f"let the disk be written to, or {_PLACE}",
    errno.EACCES: f"get the right to write there, or {_PLACE}",
    errno.EPERM: f"get the right to write there, or {_PLACE}",
    errno.EFBIG: f"let files be larger (ulimit -f), or {_PLACE}",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EMFILE: "let more files be open at once (ulimit -n), and start again",
    errno.ENFILE: "close other programs, or let more files be open at once, and start again",
    errno.ELOOP: "a link stands in its place: remove it, and start again",
    errno.EEXIST: _TAKEN,
    errno.ENOTEMPTY: _TAKEN,
    errno.ENOTDIR: _TAKEN,
    errno.EISDIR: _TAKEN,
    errno.EBUSY: "another program is using it: wait for it, and start again",
    errno.ETXTBSY: "another program is using it: wait for it, and start again",
    errno.EIO: _FAILS,
    errno.ESTALE: _FAILS,
    errno.ENODEV: _FAILS,
    errno.ENXIO: _FAILS,
    errno.ENOTCONN: _FAILS,
    errno.EHOSTDOWN: _FAILS,
    errno.EHOSTUNREACH: _FAILS,
    errno.ETIMEDOUT: _FAILS,
    errno.EREMOTEIO: _FAILS,
    errno.ENOLCK: f"files cannot be locked there: {_PLACE}",
}
"""What to do, by the number of the error."""
_GONE = f"its folder is gone, or cannot be reached any more: see that its disk is there, and start again; or {_PLACE}"
_NUMBER = re.compile(r"(?:errno = |\[errno |\(os error )(\d+)", re.IGNORECASE)
"""How HDF5, Arrow and safetensors quote the number of an error."""
_TORCH = re.compile("PytorchStreamWriter|inline_container|iostream error")
"""What PyTorch says when a file cannot be written; never why."""
_LOOKED = 1 << 16
"""Bytes that are written to see what is wrong with a disk."""


def disk_error(error: BaseException, place: Path | None = None) -> OSError | None:
    """The error of the file system that an error is, or that a library has made another one of; None where it is none.

    Args:
        error: any.
        place: what was written; where a library does not say what is wrong, its disk is tried.

    >>> disk_error(RuntimeError("unable to close file, errno = 28, error message = …")).errno
    28
    >>> disk_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    if isinstance(error, BiomassError | ConnectionError) or (isinstance(error, TimeoutError) and error.errno is None):
        return None  # said already, of the network, or of a lock
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if found := _NUMBER.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, RuntimeError) and not _TORCH.search(str(error)):
        return None
    if not isinstance(error, RuntimeError | OSError):
        return None
    before = error.__context__
    if isinstance(before, OSError) and before.errno is not None:
        return before
    return (_try(place) if place is not None else None) or OSError(one_line(error))


def explain_disk(error: OSError, place: Path | None = None, needed: int | None = None) -> str:
    """An error of the file system as one line: the place, what is wrong, the remedy for that.

    Args:
        error: of the file system.
        place: what was written; what the error names if left out.
        needed: bytes that it takes.

    >>> explain_disk(OSError(28, "No space left on device"), Path("runs/a/table.csv"))
    "cannot write 'runs/a/table.csv' (No space left on device): make room, or choose another place"
    """
    named = error.filename if isinstance(error.filename, str) else None
    what = f"'{place or named}'" if place or named else "a file"
    if place is not None and named is not None and not _belongs(named, place):
        what += f": '{named}' cannot be used"
    why = os.strerror(error.errno) if error.errno else one_line(error)
    if error.errno == errno.ENAMETOOLONG:
        return f"the path '{shortened(str(named or place))}' is too long for the disk: {_REMEDIES[errno.ENAMETOOLONG]}"
    if error.errno == errno.ENOSPC and place is not None and _has_room(place):
        why += ": there is room, but not for one more file"
    remedy = _GONE if error.errno == errno.ENOENT else _REMEDIES.get(error.errno or 0, _FAILS)
    room = "" if needed is None else f" for {_size(needed)}"
    return f"cannot write {what} ({why}): {remedy.format(room=room)}"


def escaped(error: BaseException) -> str | None:
    """The line for an error that nothing has caught, if a disk, or the memory, is surely the cause of it; else None.

    >>> escaped(OSError(28, "No space left on device", "a.csv"))
    "cannot write 'a.csv' (No space left on device): make room, or choose another place"
    >>> escaped(FileNotFoundError(2, "No such file or directory", "a.csv"))
    """
    if memory := too_little_memory(error):
        return memory
    found = disk_error(error)
    return explain_disk(found) if found is not None and found.errno in _REMEDIES else None


@contextmanager
def flushed() -> Iterator[None]:
    """See to it that what is printed arrives, as long as it can still be said that it does not.

    Raises:
        ConfigError: its disk does not take it, as behind ``> file``.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError as output:  # so it was this, and no other file; Python shall not try once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if output.errno in _REMEDIES:
                raise ConfigError(explain_disk(output, Path("/dev/stdout"))) from error
        raise


class LogFile(logging.FileHandler):
    """The log of a run in ``outputs/``. Where its disk does not take it, the run ends with a line that says so.

    Python's own handler prints a traceback for each line that it loses, and goes on.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name that Python calls
        """Raise the error that is being handled, in our words."""
        if (found := _why_lost(self, record)) is not None:
            raise ConfigError(explain_disk(found, Path(self.baseFilename))) from found


class Terminal(logging.StreamHandler[TextIO]):
    """The log on the terminal, or in the file behind ``>``. What does not take it is left alone, and that is said once.

    A run does not end for it: the same lines are in its log in ``outputs/``.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name that Python calls
        """Say in our words what is wrong with the place, and print nothing more to it."""
        if (found := _why_lost(self, record)) is None:
            return
        self.stream = open(os.devnull, "w")  # noqa: SIM115, PTH123  # until the process ends
        os.dup2(self.stream.fileno(), sys.stdout.fileno())  # else Python tries once more when it ends
        with suppress(OSError):
            print(f"the log is not shown any more: {explain_disk(found, Path('/dev/stdout'))}", file=sys.stderr)


def _why_lost(handler: logging.Handler, record: logging.LogRecord) -> OSError | None:
    """The fault of a disk that a line of the log is lost to, while it is handled; Python says what else it may be."""
    error = sys.exc_info()[1]
    found = disk_error(error) if error is not None else None
    if found is None:
        logging.Handler.handleError(handler, record)
    return found


def _size(number: int) -> str:
    """A number of bytes, for a person.

    >>> _size(300), _size(3_000_000), _size(5 << 30)
    ('1 KiB', '3 MiB', '5.0 GiB')
    """
    if number >= 1 << 30:
        return f"{number / (1 << 30):.1f} GiB"
    unit, name = (1 << 20, "MiB") if number >= 1 << 20 else (1 << 10, "KiB")
    return f"{-(-number // unit)} {name}"


def _belongs(named: str, place: Path) -> bool:
    """Whether a path is the place that is written, or a folder above it, or stands in the same folder."""
    try:
        path, whole = Path(named).absolute(), place.absolute()
    except OSError:  # we are in a folder that is gone
        return True
    return whole.is_relative_to(path) or path.is_relative_to(whole.parent)


def _has_room(place: Path) -> bool:
    """Whether a disk has room, and no more files can be made there."""
    try:
        disk = os.statvfs(place.parent)
    except OSError:
        return False
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


def _try(place: Path) -> OSError | None:
    """What the disk of a place says when something is written there."""
    try:
        with tempfile.TemporaryFile(dir=place.parent) as file:
            file.write(bytes(_LOOKED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
