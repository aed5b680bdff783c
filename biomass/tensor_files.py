"""Files of tensors and plain values: sealed when they are written, checked as a whole before anything is made of them.

:func:`torch.save` writes a zip archive. The seal is the comment at its end, which every reader of archives passes over:
the SHA-256 of all bytes before it. One renaming thus carries both, and no byte can change, come or go unseen. Archives
of others, and of before there was a seal, are checked by the checksums of their entries.

What a file *says* is checked, too, before memory is taken for it: its pickle is followed step by step, and makes
nothing but names and sizes (:mod:`biomass.pickles`). A tensor must lie within its storage, a storage within the file.
"""

import argparse
import hashlib
import io
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch

from biomass.errors import CheckpointError, one_line
from biomass.pickles import DTYPES, PickleReader, damaged, made_wrongly

_SEAL = b"biomass sha256 "
_HEX = 64
_END = 22  # bytes of the record that ends an archive without a comment
_ARCHIVE, _OLD = b"PK\x03\x04", b"\x80\x02"  # how files of torch.save start, today's and those of old
_CHUNK = 1 << 20


def save_tensors(values: Any, path: Path) -> None:
    """Write tensors and plain values with a seal, to a file that is not there yet.

    >>> file = getfixture("tmp_path") / "weights.pt"
    >>> save_tensors({"w": torch.ones(2)}, file)
    >>> load_tensors(file)
    {'w': tensor([1., 1.])}
    >>> _ = file.write_bytes(file.read_bytes()[:-1] + b"!")
    >>> load_tensors(file)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    biomass.errors.CheckpointError: checkpoint '...weights.pt' is damaged (...); copy it again, or name another
    """
    with path.open("w+b") as file:
        torch.save(values, file)
        file.seek(-2, io.SEEK_END)
        file.write(struct.pack("<H", len(_SEAL) + _HEX) + _SEAL)  # the length of the comment, and its first part
        size = file.tell()
        file.write(_digest(file, size).encode())


def load_tensors(path: Path, what: str = "checkpoint") -> Any:
    """Read what :func:`torch.save` wrote onto the host; only tensors and plain values are accepted.

    Settings that code of others writes beside weights are plain, too: those of a command line, paths, NumPy's numbers.

    Args:
        path: a file, of whatever bytes.
        what: what it is, for messages.

    Raises:
        CheckpointError: it cannot be read, is damaged, or holds something else.
    """
    name = f"{what} '{path}'"
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if not size:
                raise CheckpointError("is empty; copy it again, or name another")
            file.seek(0)
            start = file.read(4)
            if start == _ARCHIVE:
                _check_archive(file, size)
            elif start[:2] == _OLD:
                _check_old(file, size)
            else:
                raise CheckpointError("is no file that torch.save wrote, by its first bytes; name another")
            file.seek(0)
            with torch.serialization.safe_globals(_plain_objects()):
                return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError as refused:
        raise CheckpointError(f"{name} {refused}") from refused
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be read ({error.strerror or one_line(error)}); let it be read, or name another"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{name} is nested too deeply for a {what}; name another") from error
    except Exception as error:  # torch.load raises whatever the bytes of another file lead it to
        why = one_line(error).partition(". ")[0]
        raise CheckpointError(f"{name} cannot be read ({why}); copy it again, or name another") from error


def _digest(file: IO[bytes], size: int) -> str:
    """Of the first bytes of a file, hexadecimal; it stands behind them afterwards."""
    hashed = hashlib.sha256()
    file.seek(0)
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise damaged("it ends while it is read")
        hashed.update(chunk)
        size -= len(chunk)
    return hashed.hexdigest()


def _check_archive(file: IO[bytes], size: int) -> None:
    """That nothing of an archive has changed, and that its entries are what torch writes and their sizes are true."""
    comment = len(_SEAL) + _HEX
    file.seek(max(0, size - comment - _END))
    tail = file.read()
    sealed = tail[-comment:-_HEX] == _SEAL
    if not sealed and (tail[-_END : -_END + 4] != b"PK\x05\x06" or tail[-2:] != bytes(2)):
        raise damaged("the end of the archive is not at its end: is it cut off?")
    if sealed and _digest(file, size - _HEX).encode() != tail[-_HEX:]:
        raise damaged("its bytes are not those that were written")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            _check_entries(entries, archive.infolist(), size)
            broken = None if sealed else archive.testzip()
            if broken is not None:
                raise damaged(f"the checksum of '{broken}' is another")
            with archive.open(entries["data.pkl"]) as pickled:
                content = io.BytesIO(pickled.read())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise damaged(one_line(error)) from error

    def storage(key: str, length: int) -> None:
        entry = entries.get(f"data/{key}")
        if entry is None or entry.file_size != length:
            raise made_wrongly(f"says that a tensor has {length} bytes, which are not in it")

    PickleReader(storage, size).read(content)


def _check_entries(entries: dict[str, zipfile.ZipInfo], every: list[zipfile.ZipInfo], size: int) -> None:
    if "constants.pkl" in entries:
        raise CheckpointError(
            "is a program of TorchScript, which would be run; save the state dict of its network alone"
        )
    if "data.pkl" not in entries:
        raise CheckpointError("is an archive, but not one that torch.save wrote; name another")
    if len(entries) < len(every) or len({entry.filename.partition("/")[0] for entry in every}) > 1:
        raise damaged("two of its entries have one name")
    for entry in every:
        if entry.external_attr & 0x10 or entry.is_dir():  # torch would read nothing there
            raise damaged(f"'{entry.filename}' is a folder")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise CheckpointError(
                "is compressed, which torch.save does not do; save the state dict of its network again"
            )
    if sum(entry.file_size for entry in every) > size:
        raise damaged("its entries are larger than the file")


def _check_old(file: IO[bytes], size: int) -> None:
    """The same for a file of before torch 1.6: pickles one after the other, and the storages behind them."""
    lengths: dict[str, int] = {}

    def storage(key: str, length: int) -> None:
        if lengths.setdefault(key, length) != length or sum(lengths.values()) > size:
            raise made_wrongly(f"says that a tensor has {length} bytes, which are not in it")

    file.seek(0)
    reader = PickleReader(storage, size)
    *_, keys = (reader.read(file) for _ in range(5))  # a number, the version, the machine, the values, their storages
    if not isinstance(keys, list) or set(keys) != set(lengths) or len(keys) != len(lengths):
        raise damaged("its storages are not those of its tensors")
    if file.tell() + sum(8 + length for length in lengths.values()) != size:
        raise damaged("its tensors are not as long as they should be: is it cut off?")


def _plain_objects() -> list[Any]:
    """Classes and functions of a pickle that hold values alone, and the names that they have in files."""
    scalar = np.float64(0).__reduce__()[0]
    paths = [(PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, *paths, *numbers, np.dtype, *(type(np.dtype(dtype)) for dtype in DTYPES)]
