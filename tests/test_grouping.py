"""Numbers in place of names: as pandas groups rows, and as a pass over all rows finds the first ones."""

import numpy as np
import pandas as pd
import pytest

from biomass import grouping
from biomass.grouping import factorize, first_rows, number_rows, unique


def some_columns(seed: int) -> list[pd.Series]:
    """Columns of every kind: names, categories in an order of their own, numbers; some lack values."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 400))
    order = rng.permutation([f"c{number}" for number in range(9)])  # not all of them occur
    columns = [
        pd.Series(pd.Categorical(rng.choice(["c1", "c3", "c5", "c8"], rows), order)),
        pd.Series(rng.choice(["b", "a", "é"], rows)),
        pd.Series(rng.integers(-2, 3, rows)),
        pd.Series(pd.Categorical.from_codes(rng.integers(0, 3000, rows), [f"{n:04d}" for n in range(3000)])),
        pd.Series(rng.choice([0.5, 1.5, np.nan], rows)),
        pd.Series(pd.Categorical(rng.choice(["x", "y", "z"], rows), ["x", "y"])),
        pd.Series(pd.Categorical.from_codes(rng.integers(0, 3000, rows), [f"{n:04d}" for n in range(3000)])),
    ]
    return [columns[i] for i in rng.permutation(len(columns))[: rng.integers(1, len(columns) + 1)]]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_pandas(seed: int) -> None:
    columns = dict(enumerate(some_columns(seed)))
    expected = pd.DataFrame(columns).groupby(list(columns), sort=True, observed=True).ngroup()
    found = number_rows(list(columns.values()))
    assert found.dtype == np.int64
    assert found.tolist() == expected.fillna(-1).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_those_of_pandas_where_nothing_can_be_counted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_ALWAYS", 4)
    monkeypatch.setattr(grouping, "_ROOM", 0)
    rng = np.random.default_rng(seed)
    well = rng.integers(0, rng.choice([5, 900]), 300)
    columns = [pd.Series(one) for one in (well, rng.permutation(900)[well] % 7, rng.integers(0, 3, 300), well % 11)]
    expected = pd.DataFrame(dict(enumerate(columns))).groupby([0, 1, 2, 3], sort=True).ngroup()
    assert number_rows(columns).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_distinct_values_are_those_of_pandas_and_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    column = pd.Series(pd.Categorical(rng.choice(["b", "a", "é", "x"], rng.integers(0, 20)), ["é", "q", "a", "b"]))
    codes, distinct = pd.factorize(column.astype(object))
    for values in (column, column.array):
        found = factorize(values)
        assert found[0].tolist() == codes.tolist()
        assert found[1] == list(distinct)
    assert unique(codes).tolist() == np.unique(codes).tolist()


def test_more_values_than_fit_into_64_bits_are_numbered() -> None:
    column = pd.Series(pd.Categorical.from_codes([2, 2999, 2], [f"{n:04d}" for n in range(3000)]))
    assert number_rows([column] * 8).tolist() == [0, 1, 0]  # 3000 ** 8 > 2 ** 64


@pytest.mark.parametrize("seed", range(5))
def test_first_rows_are_those_of_a_pass_over_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_PART", 7)
    numbers = np.random.default_rng(seed).integers(-1, 12, 30)
    expected = [next((row for row, one in enumerate(numbers) if one == number), 30) for number in range(13)]
    assert first_rows(numbers, 13).tolist() == expected
