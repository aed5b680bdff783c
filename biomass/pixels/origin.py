"""The files that a packed store was made from, and whether they have changed since."""

import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from biomass.errors import ConfigError, RefusedError
from biomass.pixels.files import FilePixels
from biomass.pixels.names import PLANES, each_file, string_array
from biomass.pixels.opening import opened
from biomass.pixels.planes import Reading

SEPARATOR = "\n"
"""Stands between the names where an image has a file a channel; planes of a channel are told apart in each of these."""

_SAMPLE = 256  # files that are looked at whenever a store is used: a moment, even over a network
_READ = 32  # of them, files that are read where only the time says that they have changed: mostly they were copied
_ALWAYS = 8  # of the others, files that are read nevertheless: size and time can be kept by what changes a file
_THREADS = 16  # mostly waiting for the disk
_PIECE = 1 << 24  # bytes that are read at a time
_CHUNK = 4096  # files that a thread looks at in a row


def join_files(files: Sequence[Any]) -> Any:
    """One Arrow array (N,) of N images' files, of the columns of names that a reader of files has."""
    columns = [string_array(column) for column in files]
    if len(columns) == 1:
        return columns[0]
    return pc.binary_join_element_wise(*columns, pa.scalar(SEPARATOR, pa.large_string()))


def split_files(files: Any) -> tuple[Any, ...]:
    """The inverse of :func:`join_files`."""
    parts = pc.split_pattern(files, SEPARATOR)
    return tuple(pc.list_element(parts, column) for column in range(len(parts[0])))


class Stamps(NamedTuple):
    """What tells whether N images' files have changed; -1 where a file is not there, or nothing is known of it."""

    sizes: np.ndarray
    """(N,) int64, bytes; where an image has several files, their sum."""
    times: np.ndarray
    """(N,) int64, ns, of the last change; where an image has several files, of the newest."""

    @classmethod
    def unknown(cls, n: int) -> "Stamps":
        """Stamps of images that are not files."""
        return cls(np.full(n, -1, np.int64), np.full(n, -1, np.int64))

    def changed_since(self, before: "Stamps") -> np.ndarray:
        """Which files have another size or time than before, (N,) bool. One that is not there, now or before, has not.

        >>> now, before = Stamps(np.array([5, 5, -1]), np.array([9, 7, -1])), Stamps(np.full(3, 5), np.full(3, 7))
        >>> now.changed_since(before).tolist()
        [True, False, False]
        """
        there = (self.times >= 0) & (before.times >= 0)
        return there & ((self.sizes != before.sizes) | (self.times != before.times))


@runtime_checkable
class Stamped(Protocol):
    """Pixels that know the files that they come from, whatever these are."""

    def stamps(self) -> Stamps:
        """What tells whether the file behind each of N images has changed."""


def stamp_files(root: Path, files: Sequence[Any]) -> Stamps:
    """Look at the files of N images.

    Args:
        root: the folder that relative file names refer to.
        files: columns of N file names, Arrow arrays; empty where an image has no such file.
    """

    def look(column: Any) -> list[tuple[int, int]]:
        return [_stamp(root, name) if name else (0, 0) for name in column.to_pylist()]

    sizes, times = np.zeros((2, len(files[0])), np.int64)
    there = np.ones(len(files[0]), bool)
    with ThreadPoolExecutor(_THREADS) as pool:
        for column in files:
            names, rows = each_file(column)
            parts = (part[at : at + _CHUNK] for _, part in names.pieces() for at in range(0, len(part), _CHUNK))
            chunks = pool.map(look, parts)
            found = np.array([stamp for chunk in chunks for stamp in chunk], np.int64).reshape(-1, 2)
            there[rows[found[:, 1] < 0]] = False
            np.add.at(sizes, rows, found[:, 0])
            np.maximum.at(times, rows, found[:, 1])
    return Stamps(np.where(there, sizes, -1), np.where(there, times, -1))


def _stamp(root: Path, name: str) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118  (millions of them: as names, not as Paths)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _checksum(file: Path) -> int | None:
    """Of a file's bytes; None if it cannot be read."""
    try:
        with opened(file) as (part, status):
            crc32, left = 0, status.st_size
            while left > 0 and (data := part.read(min(left, _PIECE))):
                crc32, left = zlib.crc32(data, crc32), left - len(data)
            return crc32
    except (OSError, RefusedError):
        return None


def describe_origin(store: Path, pixels: FilePixels) -> dict[str, Any]:
    """What a store keeps of the files that it was packed from.

    Args:
        store: its folder.
        pixels: the images that it holds.

    Returns:
        ``root``, relative to the folder that holds the store, so that both can be moved; ``place``, the same as it was
        called then; ``axes``; ``reading``; ``sample``: name, size, time of the last change and checksum of a few
        hundred files.
    """
    root, files = pixels.root, pixels.files
    rows = np.unique(np.linspace(0, len(files[0]) - 1, _SAMPLE).astype(np.int64))
    sample = []
    for number, row in enumerate(rows.tolist()):
        planes = files[number % len(files)][row].split(PLANES)
        name = planes[number % len(planes)]
        crc32 = _checksum(root / name) if name else None
        if crc32 is not None:
            sample.append([name, *_stamp(root, name), crc32])
    place = root.absolute()
    relative = os.path.relpath(place, store.absolute().parent)
    about = {"axes": pixels.axes, "reading": asdict(pixels.reading)}
    return {"root": relative, "place": str(place), **about, "sample": sample}


def is_origin(value: Any) -> bool:
    """Whether a value may be what :func:`describe_origin` gave."""
    if not isinstance(value, dict):
        return False
    try:
        reading_of(value)
    except (TypeError, ConfigError):
        return False
    sample, names = value.get("sample"), ("root", "place", "axes")
    return (
        all(isinstance(value.get(name), str) and "\0" not in value[name] for name in names)
        and isinstance(sample, list)
        and len(sample) <= _SAMPLE
        and all(isinstance(one, list) and [*map(type, one)] == [str, int, int, int] for one in sample)
        and not any("\0" in one[0] for one in sample)
    )


def reading_of(origin: Mapping[str, Any] | None) -> Reading:
    """How the files were read that a store was packed from; plainly, before there was a choice."""
    return Reading(**(origin or {}).get("reading", {}))


def find_root(store: Path, origin: Mapping[str, Any]) -> Path | None:
    """The folder of the files that a store was packed from; None where it is not there any more."""
    places = (store.absolute().parent / origin["root"], Path(origin["place"]))
    return next((place for place in places if place.is_dir()), None)


def find_changed_file(store: Path, origin: Mapping[str, Any] | None) -> Path | None:
    """A file of the sample that has changed since the store was packed, if there is one.

    A file that is not there any more has not changed, nor has one that was copied and holds the same bytes. A few of
    those that seem to be the same are read, too.
    """
    root = None if origin is None else find_root(store, origin)
    if origin is None or root is None:
        return None
    touched, same = [], []
    for name, size, time, crc32 in origin["sample"]:
        found = _stamp(root, name)
        if found[0] not in (-1, size):
            return root / name
        if found[1] not in (-1, time):
            touched.append((root / name, crc32))
        else:
            same.append((root / name, crc32))
    few = touched[:: -(-len(touched) // _READ) or 1] + same[:: -(-len(same) // _ALWAYS) or 1]
    for file, crc32 in few:
        if _checksum(file) not in (None, crc32):
            return file
    return None
