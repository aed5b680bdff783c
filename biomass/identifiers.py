"""What a plate, a well, a compound or a label is called: one normal form, for every reader and every join.

The same well is ``A1`` in one table and ``A01`` in the next; the same plate is ``12``, ``12.0`` or ``"12 "``. Whatever
compares names brings them into the normal form first:

- Text stays text: ``0012`` is not 12, and ``1E05`` is not 100000. Blanks at both ends go, blanks inside become one
  space (Unicode's blanks, too), and letters are composed (Unicode NFC), as a Mac writes them decomposed.
- A whole number is written without a point: a column of numbers becomes one of floats by a single missing value, and
  ``1.0`` then means 1. This holds for numbers of any type and, in a text column that holds nothing but numbers, for
  ``1.0`` as text. A date is written as in ISO 8601.
- A well is its row's letters and two digits: ``A1``, ``a01`` and ``r01c01`` are ``A01``. Rows go up to AF and columns
  up to 48, those of a plate of 1536 wells. What is not the name of a well stays as it is.
- Missing is ``None``, NaN, NaT, ``pd.NA``, a text of blanks, or one of the :data:`MISSING_WORDS`. In normal form it is
  the empty text. A table of text cannot tell a plate called NA from one without a name; where a name is needed, both
  are an error, and elsewhere both mean that nothing is known.

Names that differ in nothing but case (``dmso``, ``DMSO``) are most likely one name, but may be two. They are refused.
"""

import datetime
import hashlib
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.grouping import factorize

MISSING_WORDS = ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "NULL", "null", "None")
"""Texts that say that nothing is known, as R, pandas, Excel and databases write it."""

Place: TypeAlias = Callable[[int], str]
"""How to call a row (from 0) of a table in a message."""

_SHOWN, _MANY = 5, 20  # names that a message lists
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))  # blanks without width, which str.split leaves
_WELL = re.compile(r"([A-Z]|A[A-F])0*([1-9]\d?)|R0*([1-9]\d?)C0*([1-9]\d?)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_SHORT, _LONGEST = 80, 120
_FILE = re.compile(r"[\w%]([\w%.~-]{0,118}[\w%~-])?", re.ASCII)
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names that Windows keeps for itself
_ROWS, _COLUMNS = 32, 48  # of a plate of 1536 wells

log = logging.getLogger(__name__)


def from_zero(row: int) -> str:
    """How to call a row of a table without row numbers of its own."""
    return f"row {row} (from 0)"


def normal(value: object) -> str:
    """The normal form of one name, see the module; empty where it is missing.

    >>> [normal(value) for value in ("P0 ", "0012", 12.0, 12, b"A1", "NA", None, 0.5)]
    ['P0', '0012', '12', '12', 'A1', '', '', '0.5']
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError(f"the name {value!r} is not text in UTF-8: decode it") from None
    if isinstance(value, str):
        value = value.replace("\0", "")  # pandas takes it for the end of a text
        text = value if value.isascii() else unicodedata.normalize("NFC", value.translate(_INVISIBLE))
        text = " ".join(text.split())
        return "" if text in MISSING_WORDS else text
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating | Decimal):
        return _number(value)
    if isinstance(value, np.datetime64 | datetime.datetime):
        moment = pd.Timestamp(value)
        return str(moment.date()) if moment == moment.normalize() else moment.isoformat(sep=" ")
    return normal(str(value))  # a date among them, as ISO


def well(value: object) -> str:
    """The normal form of the name of a well: ``A01`` … ``AF48``. What is not such a name is treated as any other.

    >>> [well(value) for value in ("A1", "a01", "A001", "r01c01", "AF48", "H49", "pool 3")]
    ['A01', 'A01', 'A01', 'A01', 'AF48', 'H49', 'pool 3']
    """
    text = normal(value)
    return _well(text) or text


def folder_name(name: object) -> str:
    """What a file or a folder for something with this name is called: one name of a path, and nobody else's.

    Most names stay as they are. Signs that a path, a shell or a disk may take for something else are written as in web
    addresses; a name that is no name of a file even so (``..``, ``-x``, ``con``, one of 300 signs) gets a digest.

    >>> [folder_name(name) for name in ("Week1_22123", "P 1/2", "µ")]
    ['Week1_22123', 'P%201%2F2', '%C2%B5']
    >>> [folder_name(name) for name in ("..", "-x", "con")]
    ['%x5ec1f7e700f37c3d', '%xa420962426d71188-x', '%x1143da2bc54c495c-con']
    """
    text = str(name)
    quoted = quote(text, safe="", errors="surrogatepass")
    if _FILE.fullmatch(quoted) and not _DEVICE.match(quoted):
        return quoted
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"%x{digest[:16]}-{quoted[:_SHORT].strip('-.~')}".rstrip("-")  # quote never writes %x


def names(values: object, what: str = "name", *, place: Place = from_zero, needed: bool = False) -> np.ndarray:
    """The normal form of a column of names, see the module.

    Args:
        values: N of them, of any type: a column of a table, an array, a list.
        what: what they name, for messages.
        place: how to call a row in a message.
        needed: whether every row must have one.

    Returns:
        (N,) objects of str, empty where a name is missing.

    Raises:
        DataError: two names differ in nothing but case, a name is needed but missing, or a number is so large that it
            has lost digits.

    >>> names([1.0, 2.0, None]).tolist()
    ['1', '2', '']
    >>> names(["P0", "P0 ", "P1"]).tolist()
    ['P0', 'P0', 'P1']
    >>> names(["DMSO", "taxol", "dmso"], "compound")
    Traceback (most recent call last):
    biomass.errors.DataError: compound is written 'DMSO' in row 0 (from 0) and 'dmso' in row 2 (from 0): write it in \
one way
    """
    return _column(values, normal, what, place, needed)


def coded(
    values: object,
    what: str = "name",
    *,
    form: Callable[[object], str] = normal,
    place: Place = from_zero,
    needed: bool = False,
) -> pd.Categorical:
    """The normal form of a column of names as categories, sorted: each name is there once, however many rows have it.

    Args:
        values, what, place, needed: as in :func:`names`.
        form: :func:`normal` or :func:`well`.

    Raises:
        DataError: as :func:`names`.

    >>> column = coded(["P1", "P0 ", None, "P1"])
    >>> column.categories.tolist(), column.codes.tolist()
    (['', 'P0', 'P1'], [2, 1, 0, 2])
    """
    codes, forms = _forms(values, form, what, place, needed)
    found = [*forms, ""] if len(codes) and codes.min() < 0 else forms
    distinct = sorted(set(found))
    number = {name: place for place, name in enumerate(distinct)}
    numbers = np.array([number[name] for name in found], np.min_scalar_type(-len(distinct) - 1))
    return pd.Categorical.from_codes(numbers[codes], pd.Index(distinct, dtype=object))


def wells(values: object, what: str = "well", *, place: Place = from_zero, needed: bool = False) -> np.ndarray:
    """The normal form of a column of wells, (N,) objects of str; as :func:`names`, with :func:`well` for each.

    >>> wells(["A1", "A01", "b12"]).tolist()
    ['A01', 'A01', 'B12']
    """
    return _column(values, well, what, place, needed)


def wells_at(rows: object, columns: object, *, place: Place = from_zero) -> np.ndarray:
    """Names of wells from a column of rows (letters, or numbers from 1) and one of columns (from 1).

    Raises:
        DataError: a pair is not a well of a plate of up to 1536, or half of it is missing.

    >>> wells_at(["A", "b", 3], [1, 2.0, "12"]).tolist()
    ['A01', 'B02', 'C12']
    """
    letters, numbers = (_column(v, lambda value: normal(value).upper(), "well", place, False) for v in (rows, columns))
    result = []
    for i, (row, column) in enumerate(zip(letters, numbers, strict=True)):
        name = _well(f"R{row}C{column}" if row.isdecimal() else f"{row}{column}")
        if name is None and (row or column):
            raise DataError(
                f"{place(i)} has a well in row '{row}', column '{column}': rows go to AF (32), columns to {_COLUMNS}"
            )
        result.append(name or "")
    return np.array(result, dtype=object)


def well_places(values: object) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns of wells on their plate, both from 1, by names in normal form.

    Raises:
        DataError: a name is not that of a well.

    >>> rows, columns = well_places(["A01", "H12", "AF48"])
    >>> rows.tolist(), columns.tolist()
    ([1, 8, 32], [1, 12, 48])
    """
    codes, distinct = _distinct(values)
    places = []
    for name in distinct:
        found = _WELL.fullmatch(str(name))
        if not found or not found[1] or int(found[2]) > _COLUMNS:
            raise DataError(f"well '{name}' has no place on a plate; wells are called A01 … AF48")
        letters = found[1]
        places.append((ord(letters[-1]) - 64 + 26 * (len(letters) - 1), int(found[2])))
    rows, columns = np.array(places, np.int64).reshape(-1, 2)[codes].T
    return rows, columns


def normal_column(column: "pd.Series[Any]", *, place: Place = from_zero) -> "pd.Series[Any]":
    """A column of a table with its names in normal form; a missing one is an empty text, or stays ``None`` or NaN.

    Numbers, truth values and dates stay what they are, and categories keep their order. A column called ``well``, or
    ``…_well``, is one of wells.

    >>> normal_column(pd.Series(["A1", "NA", None], name="Metadata_Well")).tolist()
    ['A01', '', None]
    """
    kind, what = column.dtype, str(column.name)
    if pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind):
        return column
    form = wells if re.fullmatch(r"(.*_)?well(_position)?", what, re.IGNORECASE) else names
    texts = form(column, what, place=place)
    new = pd.Series(texts, column.index, name=column.name)
    new[column.isna()] = None
    if not isinstance(kind, pd.CategoricalDtype):
        return new
    order = dict.fromkeys(form(kind.categories, what))
    return new.astype(pd.CategoricalDtype(list(order), kind.ordered))


def is_missing(values: object) -> np.ndarray:
    """Which of N values are missing, (N,) bool: the one definition, see the module.

    >>> is_missing(["DMSO", "NA", " ", None]).tolist()
    [False, True, True, True]
    """
    codes, distinct = _distinct(values)
    return np.array([*(normal(value) == "" for value in distinct), True], dtype=bool)[codes]


def find(
    values: object,
    known: Iterable[str],
    what: str,
    *,
    form: Callable[[object], str] = normal,
    advice: str | None = None,
) -> list[str]:
    """The names of a table that a setting lists.

    YAML reads some names as something else when they are not quoted: ``0012`` as the number 10, ``1E05`` as 100000.0,
    ``NO`` as false, ``2021_08_12`` as 20210812. A value that is not text therefore stands for every name that is
    written like it or that YAML reads so. Where that is one name of the table, it is taken; where it is none or
    several, the value is refused.

    Args:
        values: one value or several. An empty text stands for the rows without a name.
        known: the names of the table, in normal form.
        what: what is listed where, for messages.
        form: :func:`normal` or :func:`well`.
        advice: of the errors, see :class:`biomass.errors.BiomassError`.

    Returns:
        The names, without repetition, in the order of the values.

    Raises:
        ConfigError: a value is not the name of one of ``known``.

    >>> find(["P1 ", 12], ["P1", "12", "13"], "split 'train', plate")
    ['P1', '12']
    >>> find(10, ["0012", "13"], "split 'train', plate")
    ['0012']
    >>> find(10, ["0012", "10"], "split 'train', plate")
    Traceback (most recent call last):
    biomass.errors.ConfigError: split 'train', plate: 10 is not text, and may be '0012' or '10': quote it
    """
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else [values]
    options = list(dict.fromkeys(known))
    return list(dict.fromkeys(_found(value, options, what, form, advice) for value in listed))


def readings(value: object, known: Iterable[str], form: Callable[[object], str] = normal) -> list[str]:
    """The names of a table that a value which is not text may stand for, see :func:`find`.

    >>> readings(10, ["10", "0012", "0xA", "12"])
    ['10', '0012', '0xA']
    """
    name = form(value)
    return [one for one in known if one and (one == name or _is_read_as(one, value))]


def match(
    left: pd.DataFrame,
    right: pd.DataFrame,
    on: Sequence[str],
    *,
    left_name: str,
    right_name: str,
    left_over: Literal["error", "say", "ignore"] = "error",
    right_over: Literal["error", "say", "ignore"] = "ignore",
    advice: str | None = None,
) -> np.ndarray:
    """For every row of one table the row of another that has the same names.

    Args:
        left: N rows.
        right: M rows, no two of the same names.
        on: the columns to compare; ``well`` is one of wells.
        left_name: what to call the rows of ``left`` in a message, such as "fields of the nuclei".
        right_name: what to call those of ``right``.
        left_over: what to do about rows of ``left`` that have no partner: refuse, say so in the log, or nothing.
        right_over: likewise for rows of ``right``.
        advice: of the errors, see :class:`biomass.errors.BiomassError`.

    Returns:
        (N,) int64, positions in ``right``; -1 where there is none.

    Raises:
        DataError: rows are left over that must not be, or two rows of ``right`` have the same names.

    >>> plates = pd.DataFrame({"plate": ["P1", "P1"], "well": ["A01", "A02"]})
    >>> match(pd.DataFrame({"plate": ["P1 "], "well": ["a2"]}), plates, ["plate", "well"],
    ...       left_name="nuclei", right_name="fields").tolist()
    [1]
    """
    keys = [_keys(table, on) for table in (left, right)]
    joint = pd.concat(keys, ignore_index=True).groupby(list(on), sort=False, dropna=False).ngroup().to_numpy(np.int64)
    own, other = joint[: len(left)], joint[len(left) :]
    _check_once(other, keys[1], right_name, from_zero, advice)
    positions = pd.Index(other).get_indexer(pd.Index(own))
    for lone, (a, b), (a_name, b_name), then in (
        (positions < 0, keys, (left_name, right_name), left_over),
        (~np.isin(other, own), keys[::-1], (right_name, left_name), right_over),
    ):
        if then == "ignore" or not lone.any():
            continue
        message = (
            f"{lone.sum()} of {len(lone)} {a_name} have no partner among the {len(b)} {b_name}, the first: "
            f"{_called(a, int(np.argmax(lone)))}; {_why(a[lone], b)}"
        )
        if then == "error":
            raise DataError(f"{message}: correct the names, or remove what has no partner", advice)
        log.warning("%s", message)
    return positions.astype(np.int64)


def check_once(
    table: pd.DataFrame, on: Sequence[str], what: str, *, place: Place = from_zero, advice: str | None = None
) -> None:
    """Make sure that no two rows of a table have the same names.

    Args:
        table: N rows.
        on: the columns to compare; ``well`` is one of wells.
        what: what to call the rows in a message, such as "fields".
        place: how to call a row in a message.
        advice: of the error, see :class:`biomass.errors.BiomassError`.

    Raises:
        DataError: two rows have the same names.

    >>> check_once(pd.DataFrame({"plate": ["P1", "P1"], "well": ["A1", "A01"]}), ["plate", "well"], "fields")
    Traceback (most recent call last):
    biomass.errors.DataError: two fields are called plate P1, well A01: row 0 (from 0) and row 1 (from 0); rename or \
remove one of them
    """
    keys = _keys(table, on)
    numbers = keys.groupby(list(on), sort=False, dropna=False).ngroup().to_numpy(np.int64)
    _check_once(numbers, keys, what, place, advice)


def _check_once(numbers: np.ndarray, keys: pd.DataFrame, what: str, place: Place, advice: str | None) -> None:
    again = pd.Series(numbers).duplicated().to_numpy()
    if again.any():
        second = int(np.argmax(again))
        first = int(np.argmax(numbers == numbers[second]))
        raise DataError(
            f"two {what} are called {_called(keys, second)}: {place(first)} and {place(second)}; rename or remove one "
            "of them",
            advice,
        )


def _number(value: Any) -> str:
    """The normal form of a number with a point, of any type."""
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if not np.isfinite(value) or value != int(value):
        return str(value)
    if abs(value) > 2 ** (np.finfo(type(value)).nmant + 1):  # whole numbers above it are not all floats
        raise DataError(
            f"{value:.0f} was made a floating-point number, which cannot hold all its digits: save it as text"
        )
    return str(int(value))


def _well(text: str) -> str | None:
    """The normal form of a well's name; None for other texts."""
    found = _WELL.fullmatch(text)
    if not found:
        return None
    letters, column = found[1], int(found[2] or found[4])
    if not letters:
        row = int(found[3])
        letters = "" if row > _ROWS else chr(64 + row) if row <= 26 else f"A{chr(64 + row - 26)}"
    return f"{letters.upper()}{column:02d}" if letters and column <= _COLUMNS else None


def _distinct(values: Any) -> tuple[np.ndarray, list[Any]]:
    """The number of every value, (N,), -1 where it is missing, and the distinct values in the order of the rows."""
    typed = isinstance(values, pd.Series | pd.Index | pd.api.extensions.ExtensionArray | np.ndarray)
    if not typed or (isinstance(values, np.ndarray) and values.dtype.kind in "SU"):
        values = pd.Series(list(values), dtype=object)
    return factorize(values)


def _column(values: object, form: Callable[[object], str], what: str, place: Place, needed: bool) -> np.ndarray:
    codes, forms = _forms(values, form, what, place, needed)
    return np.array([*forms, ""], dtype=object)[codes]


def _forms(
    values: object, form: Callable[[object], str], what: str, place: Place, needed: bool
) -> tuple[np.ndarray, list[str]]:
    """The number of every value, (N,), -1 where it is missing, and the normal form of each number."""
    codes, distinct = _distinct(values)
    try:
        forms = [form(value) for value in distinct]
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    if all(_NUMBER.fullmatch(name) for name in forms if name):  # "1.0" of a column of numbers that was written as text
        forms = [found[1] if (found := _WHOLE.fullmatch(name)) else name for name in forms]
    _check_spelling(codes, distinct, forms, what, place)
    if needed and (absent := np.array([*(name == "" for name in forms), True])[codes]).any():
        row = int(np.argmax(absent))
        said = f" (it says '{distinct[codes[row]]}')" if codes[row] >= 0 and str(distinct[codes[row]]).strip() else ""
        more = f", as have {absent.sum() - 1} more" if absent.sum() > 1 else ""
        raise DataError(f"{place(row)} has no {what}{said}{more}: fill it, or remove the row")
    return codes, forms


def _check_spelling(codes: np.ndarray, distinct: list[Any], forms: list[str], what: str, place: Place) -> None:
    """Refuse names that differ in nothing but case; say which were written in two ways that mean the same."""
    by_key: dict[str, int] = {}
    joined = []
    for number, name in enumerate(forms):
        earlier = by_key.setdefault(unicodedata.normalize("NFKC", name).casefold(), number)
        if forms[earlier] != name:
            rows = [place(int(np.argmax(codes == n))) for n in (earlier, number)]
            raise DataError(
                f"{what} is written '{forms[earlier]}' in {rows[0]} and '{name}' in {rows[1]}: write it in one way"
            )
        pair = distinct[earlier], distinct[number]
        if name and pair[0] != pair[1] and all(isinstance(one, str) for one in pair):
            joined.append(f"{pair[0]!r} and {pair[1]!r}")
    if joined:
        more = f", and {len(joined) - _SHOWN} more" if len(joined) > _SHOWN else ""
        log.warning(
            "%s is written in several ways, which are taken for one: %s%s", what, ", ".join(joined[:_SHOWN]), more
        )


def _found(value: Any, options: list[str], what: str, form: Callable[[object], str], advice: str | None) -> str:
    """The one name that a value of a setting stands for."""
    name = form(value)
    if isinstance(value, str | bytes):
        whole = _WHOLE.fullmatch(name)  # "1.0" where the table's is "1"
        possible = [one for one in (value, name, whole[1] if whole else name) if one in options][:1]
        shown, hint = repr(value), ""
    else:
        possible = readings(value, options, form)
        shown, hint = str(value), " (it is not text: if it is a name, quote it)"
    if len(possible) > 1:
        raise ConfigError(
            f"{what}: {shown} is not text, and may be {' or '.join(map(repr, possible))}: quote it", advice
        )
    if not possible:
        there = ", ".join(options[:_SHOWN]) + (", …" if len(options) > _SHOWN else "")
        raise ConfigError(
            f"{what}: {shown} is not there{hint}; {_nearest(name, options) or f'there is: {there}'}", advice
        )
    return str(possible[0])


def _is_read_as(name: str, value: Any) -> bool:
    """Whether a reader of YAML makes ``value`` of a name without quotes."""
    readings: list[Any] = []
    if len(name) > _LONGEST:  # no number, and perhaps a thousand brackets
        return False
    with suppress(yaml.YAMLError, ValueError):
        readings.append(yaml.safe_load(name))
    with suppress(ValueError):  # 1E05, which only some readers take for a number
        readings.append(float(name.replace("_", "")))
    return any(type(r) is not str and isinstance(r, bool) == isinstance(value, bool) and r == value for r in readings)


def _nearest(name: str, known: Sequence[str]) -> str:
    """What else a name could have been; one that differs in case alone before all others."""
    known = [one for one in known if one]
    same = [one for one in known if one.casefold() == name.casefold()]
    return f"did you mean '{same[0]}'?" if same else did_you_mean(name, known, " ").strip()


def _keys(table: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({c: wells(table[c], c) if c == "well" else names(table[c], c) for c in on})


def _called(keys: pd.DataFrame, row: int) -> str:
    return ", ".join(f"{column} {value}" for column, value in keys.iloc[row].items())


def _why(lone: pd.DataFrame, there: pd.DataFrame) -> str:
    """Why rows have no partner: the first column whose values are not there, or that they are not there together."""
    for column in lone:
        known = list(dict.fromkeys(there[column]))
        absent = [value for value in dict.fromkeys(lone[column]) if value not in set(known)]
        if absent:
            some = ", ".join(f"'{value}'" for value in absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
            shown = ", ".join(map(str, known[:_SHOWN])) + (", …" if len(known) > _SHOWN else "")
            near = _nearest(absent[0], known)
            return f"there is no {column} {some} there, but {shown}{f' ({near})' if near else ''}"
    return f"their values are there, but not together ({', '.join(map(str, lone.columns))})"
