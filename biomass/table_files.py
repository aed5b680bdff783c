"""Tables as labs write them: CSV, TSV and other separated text, also compressed with gzip, Excel, and Parquet.

What a file is, its contents say and not its ending. Of text, the separator (comma, semicolon, tab, ``|``), the encoding
(UTF-8, UTF-16, Windows-1252), lines before the table and decimal commas are found out; whatever is not as in a plain
CSV file is said in the log. A sheet of a workbook (``.xlsx``, ``.xls``, ``.ods``) is read as such a text would be. All
values are read as text, as they were written: what is a number and what is a name only the reader of a table knows.
What cannot be read is an error that says what the file is, and which row is wrong. Rows are counted as a spreadsheet
shows them: the first row of the file is row 1, and the header is mostly that row.
"""

import csv
import datetime
import gzip
import io
import logging
import re
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from biomass.bounds import check_cells, check_zip, unpacked
from biomass.errors import DataError, RefusedError, did_you_mean, one_line, printable
from biomass.formulas import GUARDED, plain
from biomass.guarded import ask
from biomass.identifiers import MISSING_WORDS, from_zero, is_missing, normal

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "the sign |"}
_SAMPLE = 1 << 20  # bytes that are looked at to find out the layout
_RECORDS = 100  # rows of them
_BLOCK = 1 << 24  # bytes; no row may be longer
_ROWS = 1 << 16  # of Parquet that are read at a time
_REPEATED = 4  # bytes a row, in a Parquet file, below which the texts of a column are repeated
_SHOWN, _MANY = 3, 20  # rows, and columns, that a message lists

_FOREIGN = (
    (b"BZh", "compressed with bzip2", "unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it, or compress it with gzip"),
    (b"ARROW1", "an Arrow (Feather) file", "save it as Parquet or CSV"),
    (b"\x89HDF", "an HDF5 file", "export the table from it as CSV"),
    (b"\x89PNG", "a PNG image", "name the table instead"),
    (b"II*\x00", "a TIFF image", "name the table instead"),
    (b"MM\x00*", "a TIFF image", "name the table instead"),
    (b"\x93NUMPY", "a NumPy array", "name the table instead"),
    (b"%PDF", "a PDF", "export the table as CSV"),
    (b"SQLite format 3", "an SQLite database", "export the table from it as CSV"),
    (b"version https://git-lfs", "a pointer to a file that Git LFS holds", "get the file itself: git lfs pull"),
)
"""How files begin that are not tables, what they are, and what to do."""

_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_PARQUET = b"PAR1"  # how Parquet begins
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how Excel's files begin, and other zip archives
_CELLS = 1 << 22  # bytes; a larger text is a table, no plate drawn as a matrix
_HTML = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)
_NUMERIC = re.compile(r"\s*[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?\s*")
_WHOLE_COMMA = r"^([+-]?\d+(,0+)?)?$"
_NO_NUMBER = r"^[+-]?0[0-9xX]|^\d+[eE]\d+$"  # a plate may be called 0012, 0x1F or 1E05
_DECIMAL_COMMA = r"^[+-]?\d+(,\d+)?([eE][+-]?\d+)?$"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableFile:
    """A table as it stands in a file.

    Attributes:
        path: the file.
        arrow: its N rows; of text, columns of strings without nulls; of Parquet, columns of the file's own types.
        rows: (N,) int64, the number of every row as a spreadsheet shows it; None for Parquet.
        separator: between the values; empty for Parquet.
        sheet: of a workbook that has several.
        coded: columns of text that are categories here, see :func:`read_parquet`.
        order: the names of all columns, where some are still in the file;
        late: and what reads those, in pieces.
    """

    path: Path
    arrow: Any
    rows: np.ndarray | None
    separator: str
    sheet: str = ""
    coded: Collection[str] = ()
    order: tuple[str, ...] = ()
    late: Mapping[str, Callable[[], Iterator[Any]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    @property
    def commas(self) -> bool:
        """Whether a comma may stand for a decimal point: it does not separate values."""
        return self.separator not in ("", ",")

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.order or self.arrow.column_names)

    def pieces(self, column: str) -> Iterator[Any]:
        """The values of a column, Arrow arrays, one behind the other."""
        return self.late[column]() if column in self.late else iter(self.arrow[column].chunks)

    def only(self, columns: Sequence[str]) -> "TableFile":
        """The same table with some of its columns, in this order, none of which is still in the file."""
        late = {name: pa.chunked_array([*self.late[name]()], pa.string()) for name in columns if name in self.late}
        table = pa.table({name: late[name] if name in late else self.arrow[name] for name in columns})
        return replace(self, arrow=table.replace_schema_metadata(self.arrow.schema.metadata), order=(), late={})

    def place(self, row: int) -> str:
        """How to call a row (from 0) in a message: ``row 5 of 'plates.csv'``, as a spreadsheet shows it."""
        where = from_zero(row) if self.rows is None else f"row {self.rows[row]}"
        sheet = f"sheet '{self.sheet}' of " if self.sheet else ""
        return f"{where} of {sheet}'{self.path.name}'"

    def require(self, columns: Iterable[str], what: str = "table", advice: str | None = None) -> None:
        """Make sure that the table has some columns.

        Raises:
            DataError: it lacks one.
        """
        missing = [column for column in columns if column not in self.columns]
        if missing:
            hint = _list(self.columns, _MANY)
            raise DataError(f"{what} '{self.path}' has no column '{missing[0]}'; it has: {hint}", advice)

    def frame(self, numbers: Collection[str] = ()) -> pd.DataFrame:
        """The table for pandas.

        Args:
            numbers: columns of text that become numbers if all their values are; those that stay missing are NaN. A
                number with a leading zero (``0012``), one such as ``1E05`` or ``0x1F``, or of more digits than 64 bits
                hold, is a name: such columns stay text. Where values are not separated by commas, ``0,5`` is a number,
                and a column of ``1,0`` and ``2,0`` is one of ``1`` and ``2``.
        """
        table, commas = self.only(self.columns).arrow, []
        for i, name in enumerate(table.column_names):
            if self.rows is None:
                break
            column, comma = table[name], False
            if name in numbers:
                column, comma = _as_numbers(column, self.commas)
            elif self.commas and pc.all(pc.match_substring_regex(column, _WHOLE_COMMA)).as_py():
                column = pc.replace_substring_regex(column, r",0+$", "")
            table = table.set_column(i, name, column)
            commas += [name] * comma
        if commas:
            log.warning("'%s': numbers are written with decimal commas in %s", self.path, _list(commas))
        return table.to_pandas(ignore_metadata=True, split_blocks=True)

    def numbers(self, column: str, needed: bool = False) -> np.ndarray:
        """A column that must hold numbers, (N,) float64, NaN where a value is missing.

        Args:
            column: its name.
            needed: whether every row must have one.

        Raises:
            DataError: a value is not a number, or is missing but needed; names it and its row.
        """
        values = self.only([column]).arrow.to_pandas(ignore_metadata=True)[column]
        text = values.astype("string").str.strip().fillna("")
        written = text
        if self.commas and text.str.contains(",").any():
            log.info("'%s': numbers are written with decimal commas in %s", self.path, column)
            written = text.where(~text.str.fullmatch(_DECIMAL_COMMA), text.str.replace(",", "."))
        numbers = pd.to_numeric(written, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        bad = np.isnan(numbers)
        bad[bad] = needed | ~is_missing(text[bad])
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{self.place(row)} says '{values[row]}' for '{column}', which is not a number: correct it")
        return numbers


class Cells(NamedTuple):
    """The cells of a sheet, or those of a text if a certain sign separates them.

    Attributes:
        sheet: its name; empty for a text.
        rows: the cells of every row, as text.
        separator: the sign; empty for a sheet.
    """

    sheet: str
    rows: list[list[str]]
    separator: str


def as_numbers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of text as numbers if all its values are, as :meth:`TableFile.frame` makes them; else as it is.

    >>> as_numbers(pd.Series(["1", "NA", "3"])).tolist(), as_numbers(pd.Series(["0012", ""])).tolist()
    ([1.0, nan, 3.0], ['0012', ''])
    """
    try:
        text = pa.array(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of other types among it
        return column
    numbers, _ = _as_numbers(text, commas=False)
    return column if numbers is text else pd.Series(numbers.to_pandas(), column.index, name=column.name)


def read_cells(
    path: str | Path, what: str = "table", *, start: int | None = None, advice: str | None = None
) -> list[Cells]:
    """The cells of a file whose contents need not be a table: of every sheet of a workbook, or of a text by each sign.

    Sheets without a value are left out. There are none of Parquet, and of texts longer than 4 MB: these are tables.

    Args:
        path: the file.
        what: what to call it in messages.
        start: of a text, how many rows from its beginning; all if left out.
        advice: of the errors, see :class:`biomass.errors.BiomassError`.

    Raises:
        DataError: as :func:`read_table`.

    >>> file = getfixture("tmp_path") / "plate.csv"
    >>> _ = file.write_text("dose\\n,1,2\\nA,0,5\\n")
    >>> read_cells(file)[0].rows
    [['dose'], ['', '1', '2'], ['A', '0', '5']]
    """
    path = Path(path)
    name = f"{what} '{path}'"
    raw = _read_bytes(path, name, advice)
    if raw.startswith(_WORKBOOKS):
        return [Cells(sheet, rows, "") for sheet, rows in _read_workbook(raw, name, advice).items()]
    if raw.startswith(_PARQUET) or len(raw) > _CELLS:
        return []
    _check_kind(raw, name, advice)
    text = _as_utf8(raw, name, say=start is None).decode()
    return [Cells("", _records(text, separator, start)[0], separator) for separator in _SEPARATORS]


def read_table(
    path: str | Path,
    what: str = "table",
    *,
    columns: Sequence[str] | None = None,
    sheet: str | None = None,
    coded: bool = False,
    advice: str | None = None,
) -> TableFile:
    """Read a table, whatever it is separated by and encoded in.

    Rows without any value are left out, and so are columns without a name; names of columns lose blanks at their ends.

    Args:
        path: the file.
        what: what to call it in messages.
        columns: those to read; all if left out.
        sheet: of a workbook; may be left out if only one has values.
        coded: columns of text of a Parquet file may be categories, see :func:`read_parquet`, and the others stay in the
            file until they are asked for.
        advice: of the errors, see :class:`biomass.errors.BiomassError`.

    Raises:
        DataError: the file is not there, is not a table, is in no encoding that is known, has two columns of the same
            name or not one of ``columns``, or a row has more or fewer values than the header; a workbook has several
            sheets.

    >>> file = getfixture("tmp_path") / "plates.csv"
    >>> _ = file.write_text("Made on Monday\\n\\nplate;dose;x\\n0012;0,5;NA\\n")
    >>> table = read_table(file)
    >>> table.frame()
      plate dose   x
    0  0012  0,5  NA
    >>> table.frame(numbers=["plate", "dose", "x"]).to_dict("records"), table.place(0)
    ([{'plate': '0012', 'dose': 0.5, 'x': 'NA'}], "row 4 of 'plates.csv'")
    """
    path = Path(path)
    name = f"{what} '{path}'"
    raw = _read_bytes(path, name, advice)
    if raw.startswith(_PARQUET):
        return _read_parquet(path, name, columns, coded, advice)
    try:
        if raw.startswith(_WORKBOOKS):
            return _read_sheet(path, raw, name, sheet, columns, advice)
        _check_kind(raw, name, advice)
        return _read_text(path, name, _as_utf8(raw, name), columns)
    except DataError as error:
        raise DataError(str(error), advice) from error.__cause__


def read_parquet(file: Any, columns: Sequence[str] | None = None, repeated: bool = False) -> tuple[Any, list[str]]:
    """A Parquet file, a column at a time; each distinct text of a column whose texts are repeated is read once.

    Args:
        file: a path, or an open file.
        columns: those to read; all if left out.
        repeated: of the columns of text, read those alone whose texts are repeated.

    Returns:
        The Arrow table, and which of its columns are text in the file, and a number for each row (Arrow's dictionaries)
        here. It takes little more memory to read it than the table itself takes.
    """
    parquet = pyarrow.parquet.ParquetFile(file)
    about, schema = parquet.metadata, parquet.schema_arrow
    wanted = schema.names if columns is None else columns
    texts = {one.name for one in schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)}
    size: Counter[str] = Counter()
    for part in map(about.row_group, range(about.num_row_groups)):
        for column in map(part.column, range(about.num_columns)):
            size[column.path_in_schema] += column.total_uncompressed_size
    coded = [name for name in wanted if name in texts and size[name] < _REPEATED * about.num_rows]
    verified = {"metadata": about, "read_dictionary": coded, "page_checksum_verification": True}
    with pyarrow.parquet.ParquetFile(file, **verified) as parquet:
        if not wanted or len(set(schema.names)) < len(schema.names):
            return parquet.read(columns), []
        left_out = texts.difference(coded) if repeated else set()
        if left_out.issuperset(wanted):  # there is nothing else
            left_out = set()
        found = {name: _narrow(parquet.read([name])[name]) for name in wanted if name not in left_out}
    return pa.table(found).replace_schema_metadata(schema.metadata), coded


def _narrow(column: Any) -> Any:
    """A column of numbers and texts with the smallest numbers, and one list of texts for all."""
    if not pa.types.is_dictionary(column.type):
        return column
    column = column.unify_dictionaries()
    texts = column.chunk(0).dictionary if column.num_chunks else pa.array([], column.type.value_type)
    kind = pa.from_numpy_dtype(np.min_scalar_type(-len(texts) - 1))
    parts = [
        pa.DictionaryArray.from_arrays(one.indices.cast(kind), texts, ordered=column.type.ordered)
        for one in column.chunks
    ]
    return pa.chunked_array(parts, pa.dictionary(kind, column.type.value_type, column.type.ordered))


def as_text(column: "pd.Series[Any]") -> np.ndarray:
    """A column of categories as the objects that it would be without, (N,); None where a value is missing."""
    return np.array([*column.cat.categories, None], dtype=object)[column.cat.codes]


def _read_bytes(path: Path, name: str, advice: str | None) -> bytes:
    """The contents of a file, unpacked if they are compressed with gzip; of Parquet no more than its beginning."""
    try:
        if path.is_char_device() or path.is_fifo() or path.is_socket() or path.is_block_device():  # may never end
            raise DataError(f"{name} is a device, not a file: name the table", advice)
        with path.open("rb") as file:
            start = file.read(len(_PARQUET))
            raw = start if start == _PARQUET else start + file.read()
        return unpacked(raw, name) if raw.startswith(b"\x1f\x8b") else raw
    except FileNotFoundError:
        raise DataError(f"no {name}: correct its name, or put it there", advice) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name} is damaged, its gzip data end too early or are wrong: copy it again", advice
        ) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or one_line(error)})", advice) from error


def _read_workbook(raw: bytes, name: str, advice: str | None) -> dict[str, list[list[str]]]:
    """The cells of all sheets of a workbook that have a value, as text, by the names of the sheets."""
    try:
        if raw.startswith(_WORKBOOKS[0]):
            check_zip(io.BytesIO(raw), len(raw), name)
        with tempfile.NamedTemporaryFile() as file:  # what was packed with gzip is in no file
            file.write(raw)
            file.flush()
            found = ask("workbook", Path(file.name))
    except (RefusedError, zipfile.BadZipFile) as error:
        if "password" in str(error).lower():
            raise DataError(
                f"{name} is a workbook with a password: save it without, or as CSV (UTF-8)", advice
            ) from error
        raise DataError(
            f"{name} begins as an Excel workbook does, but it {one_line(error)}: save the sheet as CSV (UTF-8), or "
            "unpack it if it is an archive",
            advice,
        ) from error
    sheets = {one: [list(map(_cell, row)) for row in rows] for one, rows in found.items()}
    return {one: rows for one, rows in sheets.items() if any(any(map(str.strip, row)) for row in rows)}


def _cell(value: Any) -> str:
    """A cell of a workbook as text; numbers, which are all floats there, as they are shown."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # a date, see guarded_process
        value = datetime.datetime.fromisoformat(value[0])
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return str(int(value))
    return normal(value)


def _read_sheet(
    path: Path, raw: bytes, name: str, sheet: str | None, columns: Sequence[str] | None, advice: str | None
) -> TableFile:
    """The table of one sheet of a workbook, read as the text that would be saved from it."""
    sheets = _read_workbook(raw, name, advice)
    if not sheets:
        raise DataError(f"{name} is empty: no sheet has a value")
    if sheet is None and len(sheets) > 1:
        raise DataError(f"{name} has {len(sheets)} sheets ({_list(sheets)}): keep one, or save one as CSV (UTF-8)")
    chosen = next(iter(sheets)) if sheet is None else sheet
    if chosen not in sheets:
        raise DataError(f"{name} has no sheet '{chosen}' with values; {did_you_mean(chosen, sheets)}")
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(sheets[chosen])
    table = _read_text(path, name, text.getvalue().encode(), columns, "\t")
    return replace(table, sheet=chosen if len(sheets) > 1 else "")


class _Layout(NamedTuple):
    separator: str
    header: int
    """How many rows come before the header."""
    lines: int
    """How many lines these rows and the header take: more than rows where a value holds a line break."""
    names: list[str]


def _read_parquet(path: Path, name: str, columns: Sequence[str] | None, coded: bool, advice: str | None) -> TableFile:
    with _reading_parquet(name, advice):
        about = pyarrow.parquet.read_metadata(path)
        there = about.schema.to_arrow_schema().names
        _check_names(there, columns, name)
        check_cells(about.num_rows, about.num_columns, path.stat().st_size, name)
        if not coded:
            return TableFile(path, pyarrow.parquet.read_table(path, columns=columns), None, "")
        table, texts = read_parquet(path, columns, repeated=True)
        order = tuple(there if columns is None else columns)
        late = {
            column: partial(_read_pieces, path, column, about.num_rows, name, advice)
            for column in order
            if column not in table.column_names
        }
        return TableFile(path, table, None, "", coded=texts, order=order, late=late)


@contextmanager
def _reading_parquet(name: str, advice: str | None) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{name} is a damaged Parquet file ({one_line(error)}): write or copy it again", advice
        ) from error
    except DataError as error:
        raise DataError(str(error), advice) from None


def _read_pieces(path: Path, column: str, rows: int, name: str, advice: str | None) -> Iterator[Any]:
    """A column of text of a Parquet file, without the whole of it in memory."""
    with _reading_parquet(name, advice), pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as parquet:
        for piece in parquet.iter_batches(_ROWS, columns=[column], use_threads=False):
            rows -= len(piece)
            yield piece.column(0).cast(pa.string())
        if rows:
            raise DataError(f"{name} has changed while it was read: read it again")


def _check_kind(raw: bytes, name: str, advice: str | None) -> None:
    """Refuse what is not text."""
    if not raw.strip():
        raise DataError(f"{name} is empty: write or copy it again", advice)
    for start, kind, remedy in _FOREIGN:
        if raw.startswith(start):
            raise DataError(f"{name} is {kind}, not a table as text: {remedy}", advice)
    if _HTML.match(raw):
        raise DataError(f"{name} is a web page or XML, as a failed download leaves it: get the table itself", advice)


def _as_utf8(raw: bytes, name: str, say: bool = True) -> bytes:
    """The text of a file in UTF-8, whatever it was in; the log says it if it was another encoding."""
    encoding = next((e for bom, e in _BOMS if raw.startswith(bom)), None) or _utf_16(raw)
    if encoding is not None:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} begins as {encoding.upper()}, but is not ({one_line(error)}): save it as UTF-8"
            ) from error
        if say and encoding != "utf-8-sig":
            log.info("%s is read as %s", name, encoding.upper())
        return text.encode()
    if b"\0" in raw[:_SAMPLE]:
        raise DataError(f"{name} is a binary file, not text: save the table as CSV or Parquet")
    if raw.isascii():
        return raw
    try:
        raw.decode()
        return raw
    except UnicodeDecodeError as error:
        wrong = error
    row = raw.count(b"\n", 0, wrong.start) + 1
    if set(raw.decode(errors="replace")) - set(map(chr, range(128))) - {"\ufffd"}:
        raise DataError(
            f"{name} is UTF-8 but for the byte 0x{raw[wrong.start]:02x} in line {row}: it may be put together from "
            "files of two encodings, or be damaged; save it as UTF-8"
        )
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} holds the byte 0x{raw[error.start]:02x} in line {row}, which is in neither UTF-8 nor "
            "Windows-1252: save it as UTF-8"
        ) from None
    word = re.search(r"\S*[^\x00-\x7f]\S*", text)
    if say:
        found = printable(word[0] if word else "")
        log.warning("%s is not UTF-8; it is read as Windows-1252, where line %d says '%s'", name, row, found)
    return text.encode()


def _utf_16(raw: bytes) -> str | None:
    """UTF-16 without a mark at its beginning: every other byte of plain letters is zero."""
    sample = np.frombuffer(raw[: min(len(raw) // 2 * 2, 4096)], np.uint8).reshape(-1, 2) == 0
    if not len(sample):
        return None
    first, second = sample.mean(0)
    return "utf-16-le" if second > 0.7 > 0.1 > first else "utf-16-be" if first > 0.7 > 0.1 > second else None


def _read_text(
    path: Path, name: str, raw: bytes, columns: Sequence[str] | None, separator: str | None = None
) -> TableFile:
    layout = _find_layout(raw, path, separator)
    header = pa.table([[one] for one in layout.names], list(map(str, range(1, len(layout.names) + 1))))
    _check_breaks(header, [layout.header + 1], layout.separator, name)
    layout = layout._replace(names=[plain(re.sub(r"\s*[\r\n]\s*", " ", one)) for one in layout.names])
    _check_names([one for one in layout.names if one], columns, name)
    usual = "\t" if path.name.lower().removesuffix(".gz").endswith((".tsv", ".txt")) else ","
    if separator is None and layout.separator != usual:
        log.info("%s is separated by %s", name, _SEPARATORS[layout.separator])
    if layout.header:
        log.warning("%s: its header is in row %d; the rows before it are left out", name, layout.header + 1)
    named = [one or f"\0{i}" for i, one in enumerate(layout.names)]
    table, odd = _parse(raw, layout, named, threads=True)
    if odd:
        _refuse_rows(_parse(raw, layout, named, threads=False)[1], len(table), layout, name)
    rows = np.arange(len(table)) + layout.header + 2
    if b"'" in raw:
        table = _without_guards(table, name)
    if b'"' in raw:
        _check_breaks(table, rows, layout.separator, name)
    blank = np.logical_and.reduce([pc.equal(column, "").to_numpy() for column in table.columns])
    if blank.any():
        table, rows = table.filter(pa.array(~blank)), rows[~blank]
    nameless = [one for one in table.column_names if one.startswith("\0")]
    full = [i for one in nameless if (i := int(one[1:])) >= 0 and pc.any(pc.not_equal(table[one], "")).as_py()]
    if full:
        log.warning("%s: column %s has no name and is left out", name, _list(i + 1 for i in full))
    return TableFile(
        path, table.select(columns or [one for one in named if one not in nameless]), rows, layout.separator
    )


def _without_guards(table: Any, name: str) -> Any:
    """The table with its texts as they were before :mod:`biomass.formulas` made sure that none is a formula."""
    for i, column in enumerate(table.column_names):
        if pc.any(pc.match_substring_regex(table[column], f"^'{GUARDED}")).as_py():
            log.info(
                "%s: an apostrophe before =, +, - or @ in '%s' says that it is text, and is left out", name, column
            )
            table = table.set_column(i, column, pc.replace_substring_regex(table[column], f"^'({GUARDED})", r"\1"))
    return table


def _parse(raw: bytes, layout: _Layout, names: list[str], threads: bool) -> tuple[Any, list[Any]]:
    """The table, and the rows with more or fewer values than there are names, numbered only without threads."""
    odd: list[Any] = []

    def note(row: Any) -> str:
        odd.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(raw),
            pyarrow.csv.ReadOptions(use_threads=threads, skip_rows=layout.lines, column_names=names, block_size=_BLOCK),
            pyarrow.csv.ParseOptions(
                delimiter=layout.separator,
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=note,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid:
        if raw.count(b"\n") > layout.lines:
            raise  # it has more than a header
        table = pa.table({name: pa.array([], pa.string()) for name in names})
    return table, odd


def _refuse_rows(odd: list[Any], good: int, layout: _Layout, name: str) -> NoReturn:
    """Say why rows do not have as many values as the header has names; ``good`` rows have."""
    first = odd[0]
    numbers = [row.number - layout.lines + layout.header + 1 for row in odd]  # pyarrow counts the lines before
    if "\n" in first.text.strip() and first.text.count('"') % 2:
        raise DataError(f'{name}: row {numbers[0]} opens a quotation mark (") that is never closed: close or remove it')
    if not good and {row.actual_columns - row.expected_columns for row in odd} == {1}:
        hint = "name the first column, too (R: row.names=FALSE)"
    elif first.actual_columns > first.expected_columns:
        hint = f"put values that hold {_SEPARATORS[layout.separator]} in quotation marks"
    else:
        hint = "complete them, or remove them"
    others = f"; so have {len(odd) - 1} others: {_list(numbers[1:])}" if len(odd) > 1 else ""
    raise DataError(
        f"{name}: row {numbers[0]} has {first.actual_columns} values, but the header (row {layout.header + 1}) has "
        f"{first.expected_columns} names{others}: {hint}"
    )


def _check_breaks(table: Any, rows: Any, separator: str, name: str) -> None:
    """Say which values hold line breaks; refuse those that hold whole rows, as many separators a line as a row has.

    Such a value begins at a quotation mark that is not closed, and ends at the next one, rows later. A separator
    before a blank is not counted: it may be punctuation.
    """
    found = []
    for column, text in zip(table.column_names, table.columns, strict=True):
        breaks = pc.count_substring_regex(text, r"\r\n?|\n").to_numpy()
        if not breaks.any():
            continue
        between = [pc.count_substring(text, sign).to_numpy() for sign in (separator, separator + " ")]
        whole = (breaks > 0) & (between[0] - between[1] >= breaks * max(table.num_columns - 1, 1))
        if whole.any():
            raise DataError(
                f'{name}: a quotation mark (") in row {rows[int(np.argmax(whole))]} is not closed, and the value holds '
                "the next row, too: close or remove it"
            )
        where = int(column[1:]) + 1 if column.startswith("\0") else column
        found += [f"row {rows[i]}, column {where}" for i in np.flatnonzero(breaks)]
    if found:
        log.warning("%s: values hold line breaks: %s", name, _list(found))


def _check_names(there: Sequence[str], columns: Sequence[str] | None, name: str) -> None:
    twice = [one for one, count in Counter(there).items() if count > 1]
    if twice:
        raise DataError(f"{name} has two columns '{twice[0]}': rename one of them")
    missing = [one for one in columns or () if one not in there]
    if missing:
        raise DataError(f"{name} has no column '{missing[0]}'; it has: {_list(there, _MANY)}")


def _find_layout(raw: bytes, path: Path, separator: str | None = None) -> _Layout:
    """Which separator gives the most rows of the same number of values, and where the header is."""
    end = raw.find(b"\n", _SAMPLE)
    sample = raw[: end + 1 if end > 0 else len(raw)].decode()
    told = re.match(r"sep=(.)\r?\n", sample)  # Excel's own hint
    choices = [separator] if separator else [told[1]] if told and told[1] in _SEPARATORS else list(_SEPARATORS)
    usual = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    best, layout = (False, -1.0, False, 0), _Layout(usual, 0, 1, [])
    for choice in sorted(choices, key=lambda one: one != usual):
        records, lines = _records(sample, choice)
        header = 1 if told and len(records) > 1 else _find_header(records)
        width = len(records[header])
        after = [record for record in records[header + 1 :] if record]
        share = sum(len(record) == width for record in after) / len(after) if after else 1.0
        score = (width > 1, share, header == 0, width)
        if score > best:
            best, layout = score, _Layout(choice, header, lines[header], _names(records[header], after))
    return layout


def _records(sample: str, separator: str, count: int | None = _RECORDS) -> tuple[list[list[str]], list[int]]:
    """The first rows of a text, or all, split, and the number of the line where each ends."""
    records: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
    with suppress(csv.Error):  # a value longer than any, behind a quotation mark that is never closed
        for record in islice(reader, count):
            records.append(record)
            lines.append(reader.line_num)
    return records or [[sample]], lines or [1]


def _find_header(records: list[list[str]]) -> int:
    """Which row names the columns: the first, unless rows of one or two words come before a row of as many names as
    most rows have values."""
    widths = Counter(len(record) for record in records[1:] if record)
    width = widths.most_common(1)[0][0] if widths else len(records[0])
    few = max(1, width // 2)
    for i, record in enumerate(records[:50]):
        filled = [value.strip() for value in record if value.strip()]
        if len(filled) > few or (width == 1 and filled):
            fits = len(record) == width and len(set(filled)) == len(filled) >= width - 1
            return i if i == 0 or (fits and not any(map(_NUMERIC.fullmatch, filled))) else 0
    return 0


def _names(header: list[str], rows: list[list[str]]) -> list[str]:
    """The names of the columns; where every row ends in a separator that the header lacks, one more without a name."""
    names = [unicodedata.normalize("NFC", value.replace("\ufeff", "").strip()) for value in header]
    if rows and all(len(row) == len(names) + 1 and not row[-1].strip() for row in rows):
        names.append("")
    return names


def _as_numbers(column: Any, commas: bool) -> tuple[Any, bool]:
    """A column of text as whole numbers, as numbers, or as it is; and whether it had decimal commas."""
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.is_in(text, pa.array(["", *MISSING_WORDS])), pa.scalar(None, pa.string()), text)
    if text.null_count == len(text) or pc.any(pc.match_substring_regex(text, _NO_NUMBER)).as_py():
        return column, False
    comma = False
    if commas and pc.any(pc.match_substring(text, ",")).as_py():
        comma = bool(pc.all(pc.match_substring_regex(text, _DECIMAL_COMMA)).as_py())
        text = pc.replace_substring(text, ",", ".") if comma else text
    for kind in (pa.int64(), pa.float64()):
        try:
            return text.cast(kind), comma
        except pa.ArrowInvalid:
            if pc.all(pc.match_substring_regex(text, r"^[+-]?\d+$")).as_py():  # more digits than 64 bits hold
                break
    return column, False


def _list(values: Iterable[object], shown: int = _SHOWN) -> str:
    texts = list(map(str, values))
    return ", ".join(texts[:shown]) + (", …" if len(texts) > shown else "")
