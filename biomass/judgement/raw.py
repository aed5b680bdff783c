"""Files of profiles as they are: what describes the rows, and a matrix of features in which values may be missing.

Read are tables (:mod:`biomass.table_files`: CSV and other text, Excel, Parquet), AnnData (``.h5ad``), the folder of a
run of ``biomass profile``, and DeepProfiler's folders of ``.npz``. By their names, columns describe rows
(:func:`.roles.describing`); of all others those are features whose values are numbers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from biomass.bounds import check_cells
from biomass.datasets.map_files import short_name
from biomass.errors import DataError, RefusedError, one_line
from biomass.evaluation.h5ad import check_anndata
from biomass.guarded import ask
from biomass.identifiers import MISSING_WORDS
from biomass.judgement.clean import listing
from biomass.judgement.deep_profiler import read_npz_folder
from biomass.judgement.roles import COUNT, DOSE, SYNONYMS, Given, describing
from biomass.table_files import TableFile, read_table

OWN = tuple(f"profiles_{level}.parquet" for level in ("wells", "fields", "cells"))
"""Files of ``biomass profile``, in the order in which they are looked for in a folder."""

_ROWS = 4096  # of a Parquet file that are in memory at once
_NUMBERS = 0.5  # share of the values of a text column that must be numbers if it is a feature
_ALIKE = 0.9  # share of the features whose names must begin alike, for others to be strange
_DECIMAL_COMMA = r"^[+-]?\d+(,\d+)?([eE][+-]?\d+)?$"


class Raw(NamedTuple):
    """A table of profiles before anything is understood.

    Attributes:
        about: N rows of the columns that describe them.
        features: (N, D) float32; missing values are NaN.
        names: (D,) of the features.
        notes: what was left out, a sentence each.
    """

    about: pd.DataFrame
    features: np.ndarray
    names: list[str]
    notes: list[str]


def read_raw(path: Path, roles: Given | None = None) -> Raw:
    """Read a file or a folder of profiles.

    Raises:
        ConfigError: AnnData cannot be read without its package.
        DataError: it cannot be read, has no rows, or no feature.
    """
    if path.is_dir():
        own = next((path / name for name in OWN if (path / name).is_file()), None)
        if own is None:
            return _checked(Raw(*read_npz_folder(path), []), path)
        raw = read_raw(own, roles)
        corrected = own.with_stem(f"{own.stem}_raw").is_file()
        note = f"of the folder, '{own.name}' is judged"
        more = f", which is post-processed; '{own.stem}_raw.parquet' is not" if corrected else ""
        return raw._replace(notes=[note + more, *raw.notes])
    start = b""
    if path.is_file():
        try:
            with path.open("rb") as file:
                start = file.read(8)
        except OSError as error:
            raise DataError(f"profiles '{path}' cannot be read ({error.strerror or one_line(error)})") from error
    if start.startswith(b"PAR1"):
        raw = _parquet(path, roles)
    elif start.startswith(b"\x89HDF"):
        raw = _h5ad(path)
    else:
        raw = _text(read_table(path, "profiles"), roles)
    return _checked(raw, path)


def raw_frame(table: pd.DataFrame, roles: Given | None = None) -> Raw:
    """A table in memory, or AnnData."""
    if hasattr(table, "obs") and hasattr(table, "X"):
        return _checked(_anndata(table), None)
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    table = table.set_axis([str(one) for one in table.columns], axis=1)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(f"column '{twice[0]}' is in the profiles more than once: rename or drop one of them")
    by_name = describing(table.columns, roles)
    kinds = dict(zip(map(str, table), table.dtypes, strict=True))
    numbers = [c for c, kind in kinds.items() if c not in by_name and _is_number(kind)]
    features = np.empty((len(table), len(numbers)), np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, len(numbers), 64):
            some = numbers[start : start + 64]
            features[:, start : start + 64] = table[some].to_numpy(np.float32, na_value=np.nan)
    told = {*numbers, *by_name}
    rest = [c for c in kinds if c not in told]
    parsed = {c: values for c in rest if (values := _parse_objects(table[c])) is not None}
    gone = {*numbers, *parsed}
    about = table[[c for c in table if c not in gone]].reset_index(drop=True)
    return _checked(_with_texts(about, features, numbers, parsed, by_name), None)


def _checked(raw: Raw, path: Path | None) -> Raw:
    called = f"'{path}'" if path is not None else "the table"
    if not raw.names:
        shown = listing(list(map(str, raw.about.columns)))
        raise DataError(
            f"{called} has no features, columns of numbers that do not describe the row: it has "
            f"{shown or 'no columns'}; name a table of profiles"
        )
    if not len(raw.features):
        raise DataError(f"{called} has no rows; name a table with one for each well")
    number, first, last = len(raw.names), raw.names[0], raw.names[-1]
    said = f"{number} features are judged, '{first}' … '{last}'" if number > 1 else f"one feature is judged, '{first}'"
    odd = _strangers(raw.names)
    strange = [f"called unlike all other features: {listing(odd)} ({len(odd)}); what describes a row is no feature"]
    return raw._replace(notes=[said, *(strange if odd else ()), *raw.notes])


def _strangers(names: Sequence[str]) -> list[str]:
    """Features whose names begin as hardly any others do, where most begin alike: they may describe the row.

    >>> _strangers([*(f"Cells_Texture_{i}" for i in range(30)), "hours"])
    ['hours']
    """
    begin = [re.match(r"[^\W\d_]*", one)[0].lower() for one in names]  # type: ignore[index]  # it matches the empty text
    count = Counter(begin)
    common = {one for one, number in count.items() if number > max(2, len(names) // 50)}
    if sum(count[one] for one in common) < _ALIKE * len(names):
        return []
    return [name for name, one in zip(names, begin, strict=True) if one not in common]


def _with_texts(
    about: pd.DataFrame, features: np.ndarray, names: list[str], parsed: dict[str, np.ndarray], by_name: Iterable[str]
) -> Raw:
    """The features with those of columns that were text, and a note of what is no feature."""
    if parsed:
        more = [values if values.ndim == 2 else values[:, None] for values in parsed.values()]
        features = np.hstack([features, *more] if names or len(more) > 1 else more)
        for name, values in zip(parsed, more, strict=True):
            names = [*names, *([name] if parsed[name].ndim == 1 else [f"{name}_{i}" for i in range(values.shape[1])])]
    described = set(by_name)
    texts = [str(c) for c in about if c not in described]
    notes = []
    if texts:
        verb = "is no number, and is" if len(texts) == 1 else "are no numbers, and are"
        notes.append(f"{len(texts)} column{'s' * (len(texts) > 1)} {verb} not taken as features: {listing(texts)}")
    named = [str(c) for c in about if c in described and "metadata_" not in str(c).lower()]
    if named:
        notes.append(f"not taken as features, by their names: {listing(named)} ({len(named)})")
    return Raw(about, features, names, notes)


def _is_number(kind: Any) -> bool:
    return bool(pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind))


def _parse_objects(column: "pd.Series[Any]") -> np.ndarray | None:
    """A column of objects as numbers (N,), if at least half of its values are; of vectors of one length, (N, k)."""
    if column.dtype != object and not pd.api.types.is_string_dtype(column.dtype):
        return None
    vectors = column.dropna()
    if len(vectors) and isinstance(vectors.iloc[0], np.ndarray | list | tuple):
        return _stack(column)
    known = column.notna() & ~column.astype(str).str.strip().isin(["", *MISSING_WORDS])
    numbers = pd.to_numeric(column, errors="coerce")
    there = int((numbers.notna() & known).sum())
    if not there or there < _NUMBERS * int(known.sum()):
        return None
    with np.errstate(over="ignore"):
        return numbers.to_numpy(np.float64, na_value=np.nan).astype(np.float32)


def _stack(column: "pd.Series[Any]") -> np.ndarray | None:
    """A column of vectors as a matrix, NaN where one is missing; None if they are not numbers of one length."""
    sizes = set(column.dropna().map(np.size))
    if len(sizes) > 1:
        return None
    matrix = np.full((len(column), *sizes), np.nan, np.float32)
    try:
        with np.errstate(over="ignore"):
            for row, vector in enumerate(column):
                if np.ndim(vector) == 1:
                    matrix[row] = vector
    except (TypeError, ValueError):
        return None
    return matrix


def _parse_text(column: Any, commas: bool) -> np.ndarray | None:
    """A column of text in Arrow as numbers, if at least half of its values are; all that is missing is NaN."""
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.is_in(text, pa.array(["", *MISSING_WORDS])), pa.scalar(None, pa.string()), text)
    if commas and pc.all(pc.match_substring_regex(text, _DECIMAL_COMMA)).as_py():
        text = pc.replace_substring(text, ",", ".")
    try:
        numbers = text.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        written = text.to_pandas()
        numbers = pd.to_numeric(written, errors="coerce").to_numpy(np.float64)
        if np.isfinite(numbers).sum() < _NUMBERS * int(written.notna().sum()):
            return None
    with np.errstate(over="ignore"):
        return np.asarray(numbers, np.float32)


def _text(table: TableFile, roles: Given | None) -> Raw:
    """Separated text or a sheet, whose values are all text."""
    by_name = describing(table.columns, roles)
    found: list[np.ndarray] = []
    names, texts = [], []
    for name in table.columns:
        values = None if name in by_name else _parse_text(table.arrow[name], table.commas)
        if values is None:
            texts.append(name)
        else:
            found.append(values)
            names.append(name)
    features = np.empty((len(table), len(found)), np.float32)
    for i, values in enumerate(found):
        features[:, i] = values
    numbers = [one for one in texts if any(_short_is(one, role) for role in (DOSE, COUNT))]
    about = TableFile(table.path, table.arrow.select(texts), table.rows, table.separator).frame(numbers)
    return _with_texts(about, features, names, {}, by_name)


def _short_is(column: str, role: str) -> bool:
    return short_name(column) in SYNONYMS[role]


def _parquet(path: Path, roles: Given | None) -> Raw:
    """Parquet, some thousand rows at a time, so that little more than the matrix is ever in memory."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            check_cells(file.metadata.num_rows, file.metadata.num_columns, path.stat().st_size, f"profiles '{path}'")
            if twice := [one for one, count in Counter(schema.names).items() if count > 1]:
                raise DataError(f"profiles '{path}' have two columns '{twice[0]}': rename one of them")
            names = [one for one in schema.names if not one.startswith("__index_level_")]
            by_name = describing(names, roles)
            numeric = [n for n in names if n not in by_name and _is_arrow_number(schema.field(n).type)]
            chosen = set(numeric)
            texts = [n for n in names if n not in chosen]
            features = np.empty((file.metadata.num_rows, len(numeric)), np.float32)
            at = 0
            for batch in _batches(file, numeric):
                for i, name in enumerate(numeric):
                    features[at : at + len(batch), i] = _floats(batch[name])
                at += len(batch)
            if numeric and at != len(features):
                raise DataError(f"profiles '{path}' declare {len(features):,} rows, and hold {at:,}: write them again")
        about = pq.read_table(path, columns=texts).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"profiles '{path}' are a damaged Parquet file ({one_line(error)}): write or copy it again"
        ) from error
    rest = [c for c in texts if c not in by_name]
    parsed = {c: values for c in rest if (values := _parse_objects(about[c])) is not None}
    return _with_texts(about.drop(columns=list(parsed)), features, numeric, parsed, by_name)


def _batches(file: Any, columns: Sequence[str]) -> Iterator[Any]:
    if columns:
        yield from file.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False)


def _is_arrow_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _floats(column: Any) -> np.ndarray:
    """A column of numbers of any type as float32; missing is NaN, and too large is infinite."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    with np.errstate(over="ignore"):
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float32)


def _h5ad(path: Path) -> Raw:
    check_anndata()
    import anndata

    try:
        ask("hdf5", path, skip=[], virtual=False)
        data = anndata.read_h5ad(path)
    except RefusedError as error:
        raise DataError(f"profiles '{path}' are an HDF5 file that {error}: write it again") from error
    except Exception as error:  # whatever h5py and anndata raise for a file that is damaged, or of another kind
        raise DataError(
            f"profiles '{path}' are an HDF5 file that cannot be read as AnnData ({one_line(error)}): write it again"
        ) from error
    return _anndata(data)


def _anndata(data: Any) -> Raw:
    if data.X is None:
        raise DataError("the AnnData has no X: put the features there")
    if data.X.dtype.kind not in "biuf":
        raise DataError(f"X of the AnnData holds {data.X.dtype}, not numbers: put the features there")
    if hasattr(data.X, "toarray"):
        size = data.X.data.nbytes + data.X.indices.nbytes + data.X.indptr.nbytes
        rows, columns = data.X.shape
        check_cells(rows, columns, size, "the AnnData")
        try:
            data.X.check_format(full_check=True)  # an index beyond the matrix would be written to memory of others
        except ValueError as error:
            raise DataError(f"X of the AnnData is damaged ({one_line(error)}): write it again") from error
    matrix = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    with np.errstate(over="ignore"):
        features = np.array(matrix, np.float32)
    about = data.obs.reset_index(drop=True).rename(columns=str)
    for column in about.select_dtypes("category"):
        about[column] = about[column].astype(object)
    return Raw(about, features, list(map(str, data.var_names)), [])
