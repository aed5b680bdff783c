"""Numbers in place of names: the groups of millions of rows without a Python object for each of them.

A column of few names is kept as categories: each name once, and the number of its name for every row. What rows have
in common is then found by counting, which takes a time that grows with the rows as reading them does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

_ROOM = 4  # numbers that may be counted for every row, before those that do not occur are left out
_ALWAYS = 1 << 20  # numbers that may always be counted
_MOSTLY = 2
_PART = 1 << 16  # rows that are looked at at a time


def first_rows(numbers: np.ndarray, count: int) -> np.ndarray:
    """The first row of each number from 0 to ``count`` - 1, (count,) int64; N, the number of rows, where it has none.

    Args:
        numbers: (N,) integers; negative ones are left out.
        count: more than any of them.

    >>> first_rows(np.array([2, 0, 2, -1]), 4)
    array([1, 4, 0, 4])
    """
    first = np.full(count + 1, len(numbers), np.int64)
    for start in range((len(numbers) - 1) // _PART * _PART, -1, -_PART):
        part = numbers[start : start + _PART]
        first[part[::-1]] = np.arange(start + len(part) - 1, start - 1, -1)  # the last one that is written stays
    return first[:count]


def factorize(values: Any) -> tuple[np.ndarray, list[Any]]:
    """The number of every value, (N,), -1 where it is missing, and the distinct values in the order of the rows.

    It is ``factorize`` of pandas; of categories it takes no more memory than their own numbers do.

    Args:
        values: a column, an array or an index of pandas.

    >>> codes, distinct = factorize(pd.Categorical(["B", "A", "B", None], ["A", "B", "C"]))
    >>> codes.tolist(), distinct
    ([0, 1, 0, -1], ['B', 'A'])
    """
    if not isinstance(values.dtype, pd.CategoricalDtype):
        codes, distinct = pd.factorize(values)
        return codes, list(distinct)
    categories = values.dtype.categories
    codes = np.asarray(getattr(values, "cat", values).codes)
    first = first_rows(codes, len(categories))
    there = np.flatnonzero(first < len(codes))
    order = there[np.argsort(first[there])]
    number = np.full(len(categories) + 1, -1, np.min_scalar_type(-len(order) - 1))
    number[order] = np.arange(len(order))
    return number[codes], list(categories[order])


def number_rows(columns: Sequence["pd.Series[Any]"]) -> np.ndarray:
    """The group of every row by its values in some columns, (N,) int64, numbered from 0 in the order of the values.

    It is ``groupby(…, sort=True, observed=True).ngroup()`` of pandas: categories stand in their own order. A row
    without a value in one of the columns is in group -1.

    >>> plates = pd.Series(["B", "A", "B", None], dtype="category")
    >>> number_rows([plates, pd.Series([7, 9, 5, 5])]).tolist()
    [2, 0, 1, -1]
    """
    numbers, count, missing = None, 1, None
    for column in columns:
        codes, length = _codes(column)
        if len(codes) and codes.min() < 0:
            missing = codes < 0 if missing is None else missing | (codes < 0)
            codes = np.maximum(codes, 0)
        if numbers is None:
            numbers, count = codes, length
            continue
        if count * length > max(_ROOM * len(codes), _ALWAYS):
            numbers, count = _compact(numbers, count)
            if (codes[first_rows(numbers, count)][numbers] == codes).all():  # of a well the treatment: it tells no more
                continue
        numbers = numbers.astype(np.int32 if count * length < 2**31 else np.int64)
        numbers *= numbers.dtype.type(length)
        numbers += codes
        count *= length
    assert numbers is not None
    if missing is None:
        return _compact(numbers, count)[0].astype(np.int64, copy=False)
    result = np.full(len(numbers), -1, np.int64)
    result[~missing] = _compact(numbers[~missing], count)[0]
    return result


def _codes(column: "pd.Series[Any]") -> tuple[np.ndarray, int]:
    """The number of each value in the order of the values, -1 where it is missing; and how many there may be."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), len(column.cat.categories)
    codes, distinct = pd.factorize(column, sort=True)
    return codes, len(distinct)


def _compact(numbers: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The same order, without numbers that do not occur."""
    if count > max(_ROOM * len(numbers), _ALWAYS):
        distinct = unique(numbers)
        if _MOSTLY * len(distinct) > len(numbers):  # each of its own: sorting is faster than looking each up
            return np.unique(numbers, return_inverse=True)[1], len(distinct)
        return pd.factorize(numbers, sort=True)[0], len(distinct)
    there = np.zeros(count, bool)
    there[numbers] = True
    known = np.flatnonzero(there)
    if len(known) == count:
        return numbers, count
    place = np.empty(count, np.int32 if len(known) < 2**31 else np.int64)
    place[known] = np.arange(len(known))
    return place[numbers], len(known)


def unique(values: np.ndarray) -> np.ndarray:
    """The distinct numbers of N, ascending. Where most are, ``np.unique`` takes a hundred times as long.

    >>> unique(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ordered = np.sort(values)
    return ordered[np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]]
