"""Columns of file names: in one form, of known kinds, all there, none twice; before any of the files is opened."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from biomass.errors import BAD_IMAGES, DataError
from biomass.pixels.decoders import ENDINGS

_PIECE = 1 << 18  # names that are looked at at a time
_ENDING = f"({'|'.join(map(re.escape, ENDINGS))})$"
_FIRST, _ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)

PLANES = "\x1f"
"""Stands between the names of files that are the planes of one channel."""


def no_file(row: int, column: int, channels: Sequence[str]) -> str:
    return f"row {row} (from 0) names no file for channel '{channels[column]}': add it, or remove the row"


def string_array(column: Any) -> Any:
    """An Arrow array of strings without nulls, in one piece; lists become strings, with :data:`PLANES` between them."""
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        lists = any(not isinstance(one, str | None) for one in column)
        column = pa.array(column, pa.large_list(pa.large_string()) if lists else pa.large_string())
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.large_string())), pa.scalar(PLANES, pa.large_string()))
    column = pc.fill_null(column.cast(pa.large_string()), "")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def pieces(column: Any) -> Iterator[tuple[int, Any]]:
    """Where parts of a column of names begin, and the parts: what is made of one takes little memory."""
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


def each_file(column: Any) -> tuple[Any, np.ndarray]:
    """The names of all files of a column (N,), planes one by one, (M,), and the row of each, (M,) int64."""
    column = string_array(column)
    if not pc.any(pc.match_substring(column, PLANES)).as_py():
        return column, np.arange(len(column))
    lists = pc.split_pattern(column, PLANES)
    return pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy().astype(np.int64)


def check_endings(files: Any) -> None:
    for start, piece in pieces(files):
        part, rows = each_file(piece)
        known = pc.or_(pc.equal(part, ""), pc.match_substring_regex(part, _ENDING, ignore_case=True))
        bad = np.flatnonzero(~known.to_numpy(zero_copy_only=False))
        if len(bad):
            raise DataError(
                f"image '{part[bad[0]].as_py()}' (row {start + rows[bad[0]]}, from 0) is of an unknown kind: "
                f"convert it to one of {', '.join(ENDINGS)}"
            )


def missing_files(root: str | Path, files: Any) -> np.ndarray:
    """Positions (n,) int64 of the ``files`` (N,) that are not there, ascending.

    Every folder is listed once, which takes a small part of the time of asking for each file.
    """
    files, rows = each_file(files)
    folders = pc.dictionary_encode(pc.replace_substring_regex(files, r"[^/]*$", ""))
    names = pc.replace_substring_regex(files, r"(?s)^.*/", "")
    codes = folders.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(folders.dictionary) + 1))
    there = np.zeros(len(files), bool)
    for code, folder in enumerate(folders.dictionary.to_pylist()):
        inside = order[bounds[code] : bounds[code + 1]]
        present = pc.is_in(names.take(pa.array(inside)), pa.array(_listing(Path(root) / folder), pa.large_string()))
        there[inside] = present.to_numpy(zero_copy_only=False)
    return np.unique(rows[~there])


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
    for c, column in enumerate(map(string_array, files)):
        missing = missing_files(root, column)
        if not len(missing):
            continue
        names = column[missing[0]].as_py().split(PLANES)
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
    hashes = np.concatenate([_hashes(each_file(part)[0]) for column in files for _, part in pieces(column)])
    ordered = np.sort(hashes)
    if (ordered[1:] != ordered[:-1]).all():
        return
    # Few names have the hash of another, beside those that are there twice and the empty ones.
    few = np.flatnonzero(np.isin(hashes, np.unique(ordered[1:][ordered[1:] == ordered[:-1]])))
    split = [each_file(column) for column in files]
    every, rows = pa.concat_arrays([names for names, _ in split]), np.concatenate([rows for _, rows in split])
    every, rows = every.take(pa.array(few)), rows[few]
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
