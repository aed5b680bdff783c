"""Tables for people: CSV in which no name is a formula.

A spreadsheet runs a cell that begins with ``=``, ``+``, ``-`` or ``@``, and names of compounds, plates and files come
from others. Such a text gets an apostrophe before it, as OWASP has it ("CSV Injection"), which spreadsheets take for
"this is text". Numbers stay numbers, also where they are negative and in a column of texts. A text that has
apostrophes before such a sign gets one more, so that :func:`plain` gives back each as it was.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

GUARDED = "'*[=+\\-@\t\r\n＝＋－＠]"
"""How texts begin that get an apostrophe, for Arrow as well as Python. Excel takes the wide signs for plain ones."""
_FORMULA, _QUOTED = re.compile(GUARDED), re.compile(f"'{GUARDED}")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def guarded(value: Any) -> Any:
    """A value as it stands in a table for people, see the module; what is not text stays as it is.

    >>> [guarded(one) for one in ("=1+1", "-", "-1.5", -1.5, "DMSO", "'=x", "5'-UTR")]
    ["'=1+1", "'-", '-1.5', -1.5, 'DMSO', "''=x", "5'-UTR"]
    """
    if not isinstance(value, str) or not _FORMULA.match(value) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def plain(value: Any) -> Any:
    """What :func:`guarded` was given.

    >>> [plain(guarded(one)) for one in ("=1+1", "-1.5", "'=x", "''", "µ")]
    ['=1+1', '-1.5', "'=x", "''", 'µ']
    """
    return value[1:] if isinstance(value, str) and _QUOTED.match(value) else value


def to_csv(table: pd.DataFrame, float_format: str | None = None) -> str:
    """A table as CSV for people and programs, without its index.

    >>> print(to_csv(pd.DataFrame({"compound": ["=cmd()", "taxol"], "change": [-0.5, 1.0]})))
    compound,change
    '=cmd(),-0.5
    taxol,1.0
    """
    safe = table.copy(deep=False)
    for place, kind in enumerate(safe.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind)):
            safe.isetitem(place, np.array([*map(guarded, safe.iloc[:, place]), None], object)[:-1])
    safe.columns = pd.Index([guarded(one) for one in safe.columns], dtype=object)
    text = safe.to_csv(index=False, float_format=float_format)
    return text.encode("utf-8", "backslashreplace").decode()  # the name of a file need not be text


def read_csv(file: Path) -> pd.DataFrame:
    """A table that :func:`to_csv` wrote, all of it as text, names as they were.

    Raises:
        OSError, ValueError: as pandas.
    """
    table = pd.read_csv(file, dtype=str, keep_default_na=False).map(plain)
    table.columns = pd.Index([plain(one) for one in table.columns])
    return table
