"""Columns of file names: in one form, of known kinds, all there, none twice; before any of the files is opened."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from biomass.errors import BAD_IMAGES, DataError
from biomass.pixels.decoders import ENDINGS

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


def each_file(column: Any) -> tuple[Any, np.ndarray]:
    """The names of all files of a column (N,), planes one by one, (M,), and the row of each, (M,) int64."""
    column = string_array(column)
    if not pc.any(pc.match_substring(column, PLANES)).as_py():
        return column, np.arange(len(column))
    lists = pc.split_pattern(column, PLANES)
    return pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy().astype(np.int64)


def check_endings(files: Any) -> None:
    files, rows = each_file(files)
    known = pc.equal(files, "")
    lower = pc.utf8_lower(files)
    for ending in ENDINGS:
        known = pc.or_(known, pc.ends_with(lower, ending))
    bad = np.flatnonzero(~known.to_numpy(zero_copy_only=False))
    if len(bad):
        raise DataError(
            f"image '{files[bad[0]].as_py()}' (row {rows[bad[0]]}, from 0) is of an unknown kind: "
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


def check_unique(files: Sequence[Any], labels: np.ndarray) -> None:
    """Make sure that no file is listed twice.

    Args:
        files: columns of N file names, as :func:`open_files` takes them.
        labels: (N,) what is known of the images, for the message.

    Raises:
        DataError: one is; names both rows, and both labels where they differ.
    """
    split = [each_file(column) for column in files]
    every, rows = pa.concat_arrays([names for names, _ in split]), np.concatenate([rows for _, rows in split])
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
