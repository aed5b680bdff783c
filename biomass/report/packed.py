"""Wells as a script reads them: numbers of two bytes in base64, names as codes of a dictionary."""

import base64
from typing import Any

import numpy as np
import pandas as pd

from biomass.evaluation.plots import natural
from biomass.report.markup import shorten

LARGEST = 65534
"""Of a packed number; the next one stands for what is missing."""


def pack(numbers: np.ndarray) -> str:
    """Integers (N,) between 0 and :data:`LARGEST`, or -1 where one is missing, as ``biomass.unpack`` reads them.

    >>> pack(np.array([0, 1, -1]))
    'AAABAP//'
    """
    return base64.b64encode(np.where(numbers < 0, LARGEST + 1, numbers).astype("<u2").tobytes()).decode()


def names(column: "pd.Series[Any]", most: int = 60) -> dict[str, Any]:
    """A column of names (N,): its values in their order, shortened to ``most`` letters, and the codes of all rows.

    >>> names(pd.Series(["w10", "w2", "w10"]))
    {'values': ['w2', 'w10'], 'codes': 'AQAAAAEA'}
    """
    codes, values = pd.factorize(column.astype(str))
    order = sorted(range(len(values)), key=lambda code: natural(str(values[code])))
    return {"values": [shorten(values[code], most) for code in order], "codes": pack(np.argsort(order)[codes])}


def place(values: np.ndarray, low: float, size: float) -> str:
    """Numbers (N,) between ``low`` and ``low + size``, packed; NaN is missing."""
    share = (values - low) / (size or 1.0)
    return pack(np.where(np.isfinite(share), np.round(np.nan_to_num(share) * LARGEST), -1).astype(np.int64))
