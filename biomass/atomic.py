"""One way to write a file or a folder: completely, or not at all.

What is being written stands beside its place under a hidden name, ``.<name>.<process>.part``, and takes its name when
it is complete and on the disk. An error, or a Ctrl-C, removes it. A process that was killed leaves it behind; nothing
reads it, and :func:`leftovers` finds it.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from biomass.errors import ConfigError, one_line


@contextmanager
def whole_file(path: Path, advice: str | None = None) -> Iterator[Path]:
    """A path to write a file to, which replaces ``path`` when the block ends without an error.

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
    part = _part(path)
    with writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def whole_files(contents: Mapping[Path, bytes], advice: str | None = None) -> None:
    """Write several files, all of them or none.

    Args:
        contents: what each file is to hold.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: one cannot be written.
    """
    for file in contents:
        if file.is_dir():
            raise ConfigError(f"cannot write '{file}' (it is a folder)", advice)
    with ExitStack() as all_of_them:  # none takes its name before all are written
        for file, content in contents.items():
            all_of_them.enter_context(whole_file(file, advice)).write_bytes(content)


@contextmanager
def whole_folder(path: Path, advice: str | None = None) -> Iterator[Path]:
    """An empty folder to write to, which becomes ``path`` when the block ends without an error.

    Args:
        path: must not be there, or be an empty folder; the folder above it is made if it is not there.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        ConfigError: the folder cannot be written.
    """
    part = _part(path)
    with writing(path, advice):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def writing(place: Path, advice: str | None = None, needed: int | None = None) -> Iterator[None]:
    """Turn an error of the file system into one line about ``place``.

    Args:
        place: what is written.
        advice: of the error, see :class:`biomass.errors.BiomassError`.
        needed: bytes that it takes, for the error of a full disk.

    Raises:
        ConfigError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        remedy = "choose another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = "" if needed is None else f" for {needed / 2**30:.1f} GiB"
            remedy = f"make room{room}, or {remedy}"
        raise ConfigError(f"cannot write '{place}' ({error.strerror or one_line(error)}): {remedy}", advice) from error


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
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        why = "it is not a folder" if not above.is_dir() else error.strerror or one_line(error)
        shown = folder if above == folder.absolute() else above
        raise ConfigError(
            f"cannot write to '{folder}' ({f'{shown}: ' if shown != folder else ''}{why}); start where you may write, "
            "or make room there",
            advice,
        ) from error


def leftovers(path: Path) -> list[Path]:
    """What processes that were killed left behind of ``path``."""
    return sorted(path.parent.glob(f".{path.name}.*.part"))


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
