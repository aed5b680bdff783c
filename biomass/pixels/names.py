"""Columns of file names: in one form, of known kinds, all there, none twice; before any of the files is opened."""

import errno
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from biomass.errors import BAD_IMAGES, DataError
from biomass.pixels.decoders import ENDINGS

_PIECE = 1 << 16  # names that are looked at at a time: their bytes stay in the processor's cache
_ENDING = f"({'|'.join(map(re.escape, ENDINGS))})$"
_FIRST, _ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

PLANES = "\x1f"
"""Stands between the names of files that are the planes of one channel."""


def no_file(row: int, column: int, channels: Sequence[str]) -> str:
    return f"row {row} (from 0) names no file for channel '{channels[column]}': add it, or remove the row"


class FileNames:
    """A column of N names of files, in little memory: of every piece of it each folder, and each name in one, once.

    Args:
        parts: Arrow arrays of texts, or of lists of them, one behind the other.

    >>> files = FileNames.of(["P1/A01.png", "P1/A02.png", "P2/A01.png", ""])
    >>> len(files), files[1], files.at([2, 0]).to_pylist()
    (4, 'P1/A02.png', ['P2/A01.png', 'P1/A01.png'])
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._pieces = [_in_folders(piece) for part in parts for _, piece in pieces(string_array(part))]
        self._ends: list[int] = np.cumsum([len(piece) // 2 for piece in self._pieces], dtype=np.int64).tolist()

    @classmethod
    def of(cls, column: Any) -> "FileNames":
        """The names of a column of any kind: one of these, an Arrow array, a list of texts or of lists of them."""
        return column if isinstance(column, cls) else cls([column])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> str:
        piece, place = self._pieces[number := bisect_right(self._ends, row)], 2 * (row - self._ends[number])
        folder, name = (piece.indices[place + one].as_py() for one in (0, 1))  # counted from the piece's end
        return f"{piece.dictionary[folder]}{piece.dictionary[name]}"

    def pieces(self) -> Iterator[tuple[int, Any]]:
        """Where parts of the column begin, and the parts, Arrow arrays of texts."""
        return ((end - len(piece) // 2, _joined(piece)) for end, piece in zip(self._ends, self._pieces, strict=True))

    def arrow(self, start: int = 0, stop: int | None = None) -> Any:
        """The names of neighbours, as one Arrow array of texts."""
        stop, parts = len(self) if stop is None else stop, [pa.array([], pa.large_string())]
        for number in range(bisect_right(self._ends, start), len(self._pieces)):
            piece = self._pieces[number]
            first = self._ends[number] - len(piece) // 2
            if first >= stop:
                break
            parts.append(_joined(piece[2 * max(start - first, 0) : 2 * (stop - first)]))
        return pa.concat_arrays(parts)

    def at(self, rows: Any, whole: bool = True) -> Any:
        """The names of some rows (n,), an Arrow array of texts; ``whole``: with their folders."""
        rows = np.asarray(rows, np.int64)
        number = np.searchsorted(self._ends, rows, "right")
        order = np.argsort(number, kind="stable")
        bounds = np.searchsorted(number[order], np.arange(len(self._pieces) + 1))
        parts = [pa.array([], pa.large_string())]
        for one in np.unique(number).tolist():
            piece, mine = self._pieces[one], rows[order[bounds[one] : bounds[one + 1]]]
            places = 2 * (mine - self._ends[one]) + len(piece)
            texts = np.stack([places, places + 1], 1).ravel() if whole else places + 1
            taken = piece.take(pa.array(texts))
            parts.append(_joined(taken) if whole else taken.dictionary.take(taken.indices))
        found = pa.concat_arrays(parts)
        return found if (order[1:] > order[:-1]).all() else found.take(pa.array(np.argsort(order)))

    def take(self, rows: Any) -> "FileNames":
        """The names of some rows (n,), as a column."""
        return FileNames(self.at(rows[start : start + _PIECE]) for start in range(0, len(rows), _PIECE))

    def folders(self) -> tuple[np.ndarray, list[str]]:
        """The number of each name's folder, (N,), and what the folders are called; with a slash at their ends."""
        known: dict[str, int] = {}
        codes = np.empty(len(self), np.int32)
        for end, piece in zip(self._ends, self._pieces, strict=True):
            of_piece = piece.indices.to_numpy()[::2]
            number = np.zeros(len(piece.dictionary), np.int32)
            there = np.unique(of_piece)
            texts = piece.dictionary.take(pa.array(there)).to_pylist()
            number[there] = [known.setdefault(text, len(known)) for text in texts]
            codes[end - len(of_piece) : end] = number[of_piece]
        return codes, list(known)

    def holds(self, text: str) -> bool:
        """Whether a text without a slash is in one of the names."""
        return any(pc.any(pc.match_substring(piece.dictionary, text)).as_py() for piece in self._pieces)

    def distinct(self) -> Iterator[tuple[int, Any]]:
        """Where parts of the column begin, and each name in a folder that they have, once."""
        for end, piece in zip(self._ends, self._pieces, strict=True):
            inside = np.unique(piece.indices.to_numpy()[1::2])
            yield end - len(piece) // 2, piece.dictionary.take(pa.array(inside))


def _in_folders(names: Any) -> Any:
    """For each of n names its folder and what it is called there, as (2n,) numbers of texts that are there once."""
    text, ends = _bytes_of(names)
    slashes = np.append(-1, np.flatnonzero(text == ord("/")))
    last = slashes[np.searchsorted(slashes, ends[1:]) - 1]
    bounds = np.empty(2 * len(names) + 1, np.int64)
    bounds[::2], bounds[1::2] = ends, np.maximum(last + 1, ends[:-1])
    both = pa.LargeStringArray.from_buffers(2 * len(names), pa.py_buffer(bounds), pa.py_buffer(text))
    both = pc.dictionary_encode(both)
    kind = pa.from_numpy_dtype(np.min_scalar_type(len(both.dictionary)))
    return pa.DictionaryArray.from_arrays(both.indices.cast(kind), both.dictionary)


def _joined(both: Any) -> Any:
    """The inverse of :func:`_in_folders`: folder and name stand one behind the other, and become one."""
    text, ends = _bytes_of(both.dictionary.take(both.indices))
    bounds = np.ascontiguousarray(ends[::2])
    return pa.LargeStringArray.from_buffers(len(both) // 2, pa.py_buffer(bounds), pa.py_buffer(text))


def string_array(column: Any) -> Any:
    """An Arrow array of strings without nulls, in one piece; lists become strings, with :data:`PLANES` between them."""
    if isinstance(column, FileNames):
        return column.arrow()
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        lists = any(not isinstance(one, str | None) for one in column)
        column = pa.array(column, pa.large_list(pa.large_string()) if lists else pa.large_string())
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar(PLANES, pa.large_string()))
    column = pc.fill_null(column.cast(pa.large_string()), "")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def pieces(column: Any) -> Iterator[tuple[int, Any]]:
    """Where parts of an Arrow array begin, and the parts: what is made of one takes little memory."""
    return ((start, column[start : start + _PIECE]) for start in range(0, len(column), _PIECE))


def tidy(paths: Any, folder: Path) -> Any:
    """Paths relative to the folder, as far as they lie in it, one spelling for one file.

    Args:
        paths: (N,) Arrow array, of texts or of lists of them.
        folder: where relative ones begin.

    Returns:
        As many, in pieces: those that are tidy already take no further memory.
    """
    if pa.types.is_list(paths.type) or pa.types.is_large_list(paths.type):
        lists = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
        lists = lists.cast(pa.large_list(pa.large_string()))
        return pa.LargeListArray.from_arrays(lists.offsets, string_array(tidy(lists.values, folder)))
    inside = f"{folder.absolute()}/"
    chunks = paths.chunks if isinstance(paths, pa.ChunkedArray) else [paths]
    parts = [_tidy(part.cast(pa.large_string()), inside) for chunk in chunks for _, part in pieces(chunk)]
    return pa.chunked_array(parts, pa.large_string())


def _tidy(paths: Any, inside: str) -> Any:
    text, ends = _bytes_of(paths)
    first = text[ends[:-1][np.diff(ends) > 0]]
    odd = np.isin(first, [ord("."), ord(inside[0])]).any()
    if not odd and text.min(initial=33) > 32 and text.max(initial=33) < 128 and not (text == ord("\\")).any():
        raw = text.tobytes()
        if b"//" not in raw and b"/./" not in raw:
            return paths
    paths = pc.utf8_trim_whitespace(paths)
    paths = pc.replace_substring(paths, "\\", "/")  # a manifest written on Windows
    paths = pc.replace_substring_regex(paths, r"/(\./|/)+", "/")
    paths = pc.replace_substring_regex(paths, r"^(\./)+", "")
    return pc.if_else(pc.starts_with(paths, inside), pc.utf8_slice_codeunits(paths, len(inside)), paths)


def each_file(column: Any) -> tuple[FileNames, np.ndarray]:
    """The names of all files of a column (N,), planes one by one, (M,), and the row of each, (M,) int64."""
    names = FileNames.of(column)
    if not names.holds(PLANES):
        return names, np.arange(len(names))
    lists = [(start, pc.split_pattern(part, PLANES)) for start, part in names.pieces()]
    rows = [start + pc.list_parent_indices(part).to_numpy().astype(np.int64) for start, part in lists]
    return FileNames(pc.list_flatten(part) for _, part in lists), np.concatenate(rows)


def check_endings(files: Any) -> None:
    names, rows = each_file(files)
    for start, distinct in names.distinct():
        known = pc.or_(pc.equal(distinct, ""), pc.match_substring_regex(distinct, _ENDING, ignore_case=True))
        if pc.all(known).as_py():
            continue
        bad = distinct.filter(pc.invert(known))
        place = start + int(
            np.argmax(pc.is_in(names.at(np.arange(start, min(start + _PIECE, len(names))), False), bad))
        )
        raise DataError(
            f"image '{names[place]}' (row {rows[place]}, from 0) is of an unknown kind: convert it to one of "
            f"{', '.join(ENDINGS)}"
        )


def missing_files(root: str | Path, files: Any) -> np.ndarray:
    """Positions (n,) int64 of the ``files`` (N,) that are not there, ascending.

    Every folder is listed once, which takes a small part of the time of asking for each file.
    """
    names, rows = each_file(files)
    codes, folders = names.folders()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(folders) + 1))
    there = np.zeros(len(names), bool)
    for code, folder in enumerate(folders):
        inside = order[bounds[code] : bounds[code + 1]]
        listed = pa.array(_listing(Path(root) / folder), pa.large_string())
        there[inside] = pc.is_in(names.at(inside, whole=False), listed).to_numpy(zero_copy_only=False)
    rows = rows[~there]
    return rows[np.diff(rows, prepend=-1) > 0]


def _listing(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return []
        raise


def _is_file(root: str | Path, name: str) -> bool:
    return name.rpartition("/")[2] in _listing((Path(root) / name).parent)


def check_present(root: str | Path, files: Sequence[Any], channels: Sequence[str] | None = None) -> None:
    """Make sure that all files are there, before hours of training find out.

    Raises:
        DataError: some are not; names the first and says how many there are.
    """
    for c, column in enumerate(map(FileNames.of, files)):
        missing = missing_files(root, column)
        if not len(missing):
            continue
        names = column[int(missing[0])].split(PLANES)
        file = next((one for one in names if not _is_file(root, one)), names[0])
        if not file:
            raise DataError(no_file(int(missing[0]), c, channels or ("channel_0",)))
        if len(missing) == len(column) > 1:
            raise DataError(
                f"image '{Path(root) / file}' is missing, and so are all others ({len(column)}): were they moved? Say "
                "where they are, or index them again",
                "image_dir",
            )
        more = f", and {len(missing) - 1} more of {len(column)}" if len(missing) > 1 else ""
        raise DataError(f"image '{Path(root) / file}' is missing{more}: {BAD_IMAGES['missing']}", "skip")


def check_unique(files: Sequence[Any], labels: "pd.Series[Any] | np.ndarray") -> None:
    """Make sure that no file is listed twice.

    Args:
        files: columns of N file names, as :func:`open_files` takes them.
        labels: (N,) what is known of the images, for the message.

    Raises:
        DataError: one is; names both rows, and both labels where they differ.
    """
    split = [each_file(column) for column in files]
    hashes = np.concatenate([_hashes(part) for names, _ in split for _, part in names.pieces()])
    ordered = np.sort(hashes)
    if (ordered[1:] != ordered[:-1]).all():
        return
    # Few names have the hash of another, beside those that are there twice and the empty ones.
    few = np.flatnonzero(np.isin(hashes, np.unique(ordered[1:][ordered[1:] == ordered[:-1]])))
    of_columns = np.split(few, np.searchsorted(few, np.cumsum([len(names) for names, _ in split])))[:-1]
    begins = np.cumsum([0, *(len(names) for names, _ in split)])
    places = [few - begin for few, begin in zip(of_columns, begins, strict=False)]
    every = pa.concat_arrays([names.at(own) for (names, _), own in zip(split, places, strict=True)])
    rows = np.concatenate([rows[own] for (_, rows), own in zip(split, places, strict=True)])
    codes = pd.Series(pc.dictionary_encode(every).indices.to_numpy())
    again = codes.duplicated().to_numpy() & pc.not_equal(every, "").to_numpy(zero_copy_only=False)
    if not again.any():
        return
    place = int(np.argmax(again))
    file = every[place].as_py()
    first, second = sorted((int(rows[np.argmax(codes.to_numpy() == codes[place])]), int(rows[place])))
    one, other = labels[first], labels[second]
    how = f"twice, with the labels '{one}' and '{other}'" if one != other else "twice"
    raise DataError(f"image '{file}' is listed {how}, in rows {first} and {second} (from 0): remove one of them")


def _bytes_of(names: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all names of an Arrow array, one behind the other, and where each begins and ends, (N + 1,)."""
    names = names.cast(pa.large_string())
    _, offsets, data = names.buffers()
    ends = np.frombuffer(offsets, np.int64)[names.offset : names.offset + len(names) + 1]
    text = np.frombuffer(data or b"", np.uint8)[int(ends[0]) : int(ends[-1])]
    return text, ends - ends[0]


def _hashes(names: Any) -> np.ndarray:
    """A hash of the bytes of each name of an Arrow array, (N,) uint64: eight bytes of all names at a time."""
    text, ends = _bytes_of(names)
    words = np.ndarray(len(text) + 1, "<u8", np.append(text, np.zeros(8, np.uint8)), strides=(1,))  # from every byte on
    length = np.diff(ends)
    hashes = length.astype(np.uint64) * _FIRST
    for start in range(0, int(length.max(initial=0)), 8):
        left = length - start
        rows = slice(None) if left.min() > 0 else np.flatnonzero(left > 0)
        word = words[ends[:-1][rows] + start]
        over = np.clip(8 - left[rows], 0, 7).astype(np.uint64) * np.uint64(8)  # bits of the next name
        mixed = (hashes[rows] ^ ((word << over) >> over)) * _ODD
        hashes[rows] = mixed ^ (mixed >> np.uint64(32))
    return hashes
