"""One way to write a file or a folder: completely, or not at all.

What is being written stands beside its place under a hidden name, ``.<name>.<process>-<machine>.part``, and takes its
name when it is complete and on the disk. An error, or a Ctrl-C, removes it. A process that was killed leaves it behind;
nothing reads it, and the next writer of the same place removes it.

Whatever the disk does meanwhile (it is full, read-only, gone) is one line of the family, see :func:`writing`.
"""

import contextlib
import ctypes
import errno
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from biomass.diskerrors import disk_error, explain_disk
from biomass.errors import ConfigError, one_line
from biomass.stopping import Stopped

_A_DAY = 86_400.0
"""Seconds after which what another machine began counts as left behind: its processes cannot be asked for."""


@contextmanager
def whole_file(path: Path, advice: str | None = None) -> Iterator[Path]:
    """A path to write a file to, which replaces ``path`` when the block ends without an error.

    The file at that path is there, empty, and no link: what somebody may have planted there is removed, not followed.

    Args:
        path: its folder is made if it is not there.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: the file cannot be written.

    >>> folder = getfixture("tmp_path")
    >>> with whole_file(folder / "table.csv") as part:
    ...     _ = part.write_text("plate,well")
    >>> [file.name for file in folder.iterdir()]
    ['table.csv']
    """
    with _begun(path, advice) as part, writing(path, advice):
        yield part
        _to_disk(part)
        part.replace(path)
        _folder_to_disk(path.parent)


def whole_files(contents: Mapping[Path, bytes], advice: str | None = None) -> None:
    """Write several files, all of them or none.

    Args:
        contents: what each file is to hold.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: one cannot be written. The files are what they were before; if even that cannot be, it says so.
    """
    for file in contents:
        if file.is_dir():
            raise ConfigError(f"cannot write '{file}' (it is a folder)", advice)
    with ExitStack() as all_of_them:  # none takes its name before all are written
        parts = {}
        for file, content in contents.items():
            parts[file] = all_of_them.enter_context(_begun(file, advice))
            with writing(file, advice):
                parts[file].write_bytes(content)
                _to_disk(parts[file])
        _replace_all(parts, advice)


def _replace_all(parts: Mapping[Path, Path], advice: str | None) -> None:
    """Give files their names; if one cannot have its own, those before it are what they were."""
    old: dict[Path, Path] = {}
    try:
        for file in parts:
            with writing(file, advice):
                if os.path.lexists(file):
                    old[file] = _part(file, "old")
                    _keep(file, old[file])
        done: list[Path] = []
        try:
            for file, part in parts.items():
                with writing(file, advice):
                    part.replace(file)
                    done.append(file)
            for folder in {file.parent for file in parts}:
                with writing(folder, advice):
                    _folder_to_disk(folder)
        except BaseException as error:
            left = [file for file in done if not _restored(file, old.get(file))]
            if left:
                names = ", ".join(f"'{file}'" for file in left)
                raise ConfigError(
                    f"{one_line(error)}; {names} are new already, and the others are not", advice
                ) from error
            raise
    finally:
        for file in old.values():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _keep(file: Path, copy: Path) -> None:
    """Give a file a second name, or copy it where a disk knows no such thing."""
    remove(copy)
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, copy, follow_symlinks=False)


def _restored(file: Path, old: Path | None) -> bool:
    """Put what a file was before back in its place; whether that could be done."""
    try:
        if old is None:
            file.unlink()
        else:
            old.replace(file)
    except OSError:
        return False
    return True


@contextmanager
def whole_folder(path: Path, advice: str | None = None) -> Iterator[Path]:
    """An empty folder to write to, which becomes ``path`` when the block ends without an error.

    Args:
        path: must not be there, or be an empty folder; the folder above it is made if it is not there.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with _begun(path, advice, folder=True) as part, writing(path, advice):
        yield part
        _all_to_disk(part)
        part.replace(path)
        _folder_to_disk(path.parent)


@contextmanager
def writing(place: Path, advice: str | None = None, needed: int | None = None) -> Iterator[None]:
    """Turn an error of the file system into one line about ``place``: what is wrong there, and the remedy for that.

    Libraries have errors of their own for a disk that is full: what PyTorch and HDF5 say is recognised, too.

    Args:
        place: what is written.
        advice: of the error, see :class:`biomass.errors.BiomassError`.
        needed: bytes that it takes, for the error of a full disk.

    Raises:
        ConfigError: in place of an error of the file system.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, Stopped):  # PyTorch, stopped in the middle of a file, blames the file
            raise error.__context__ from None
        found = disk_error(error, place)
        if found is None:
            raise
        raise ConfigError(explain_disk(found, place, needed), advice) from error


def check_writable(folder: Path, place: Path | None = None, advice: str | None = None) -> None:
    """Make a folder and make sure that it can be written to, before hours of work find out that it cannot.

    Args:
        folder: where something will be written.
        place: what the error names; the folder if left out.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    with writing(place or folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_place(folder: Path, advice: str | None = None) -> None:
    """Make sure that a folder could be made, or written to where it is there, and leave no trace of that.

    Args:
        folder: where something will be written.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: it could not; names what is in the way.
    """
    with writing(folder, advice):  # the folder that we are in may be gone
        whole = folder.absolute()
    above = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        why = "it is not a folder" if not above.is_dir() else error.strerror or one_line(error)
        shown = folder if above == whole else above
        raise ConfigError(
            f"cannot write to '{folder}' ({f'{shown}: ' if shown != folder else ''}{why}); start where you may write, "
            "or make room there",
            advice,
        ) from error


def leftovers(path: Path) -> list[Path]:
    """What writers of ``path`` have begun and not finished: those that were killed, and those that are at it now."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+(-[0-9a-f]{{8}})?\.(part|old)")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path.parent) as entries:
        return sorted(Path(entry.path) for entry in entries if name.fullmatch(entry.name))
    return []


def clear_leftovers(path: Path) -> None:
    """Remove what writers of ``path`` that are gone have left. What cannot be removed stays."""
    for left in leftovers(path):
        with contextlib.suppress(OSError):
            if _is_left(left):
                remove(left)


def no_link(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` of what grows under a name of its own: a link there is an error, not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def _begun(path: Path, advice: str | None, folder: bool = False) -> Iterator[Path]:
    """The empty part of a file or a folder, which is gone behind the block whatever happens in it."""
    part = _part(path)
    try:
        with writing(path, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(path)
            remove(part)
            if folder:
                part.mkdir()
            else:  # with the rights that any new file has; O_EXCL follows no link and takes nothing that is there
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield part
    finally:
        with contextlib.suppress(OSError):
            remove(part)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if path.is_symlink() or not path.is_dir():
            raise
        shutil.rmtree(path)


def _part(path: Path, ending: str = "part") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}.{ending}")


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_left(part: Path) -> bool:
    """Whether the process that began a part is gone."""
    number, _, machine = part.name.rsplit(".", 2)[1].partition("-")
    if machine not in ("", _machine()):
        return time.time() - part.lstat().st_mtime > _A_DAY
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _to_disk(file: Path) -> None:
    """Wait until a file is on the disk. That fails where somebody has put a link in its place."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _all_to_disk(folder: Path) -> None:
    """Wait until all that was written is on the disk of a folder: file by file, 1,000 take 7 s instead of 0.1 s."""
    sync = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync is None:  # not Linux
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if sync(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def _folder_to_disk(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if it can do that: a power failure does not undo a rename."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one may write there, and not look
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
