"""Names mean the same everywhere: one normal form, one definition of missing, and joins that say what is left over."""

import datetime
import logging
import re
import unicodedata
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from biomass.errors import ConfigError, DataError
from biomass.identifiers import MISSING_WORDS, coded, find, is_missing, match, names, normal, well, wells, wells_at

ONE = [1, 2, 1]


@pytest.mark.parametrize(
    "column",
    [
        ONE,
        [1.0, 2.0, 1.0],
        ["1", "2", "1 "],
        ["1.0", "2.0", "1.0"],
        ["1", "2.0", "1.00"],
        [b"1", "2", 1.0],
        np.array([b"1", b"2", b"1"]),
        np.array(["1", "2", "1"]),
        np.array(ONE, np.uint8),
        np.array(ONE, np.float32),
        pd.Series(ONE, dtype="category"),
        pd.Series([1.0, 2.0, 1.0], dtype="category"),
        pd.Series(ONE, dtype="Int64"),
        pd.Series(ONE, dtype="Float64"),
        pd.Series(["1", "2", "1"], dtype="string"),
        pd.Series(ONE, dtype=pd.ArrowDtype(pa.int32())),
        pd.Series([1.0, 2.0, 1.0], dtype=pd.ArrowDtype(pa.float64())),
        pd.Series(["1", "2", "1"], dtype=pd.ArrowDtype(pa.string())),
        [Decimal("1.0"), Decimal("2"), Decimal("1.00")],
    ],
    ids=lambda column: f"{type(column).__name__} {getattr(column, 'dtype', column)}",
)
def test_a_number_has_one_name_whatever_its_type(column):
    assert names(column).tolist() == ["1", "2", "1"]


@pytest.mark.parametrize(
    "missing", [None, float("nan"), pd.NA, pd.NaT, "", " ", "\u00a0", *MISSING_WORDS, b"NA", Decimal("nan")]
)
def test_missing_is_missing_everywhere(missing):
    assert normal(missing) == ""
    assert is_missing(["a", missing, "b"]).tolist() == [False, True, False]
    assert names(["a", missing, "b"]).tolist() == ["a", "", "b"]
    with pytest.raises(DataError, match=r"row 7 has no plate"):
        names(["a", missing, "b"], "plate", needed=True, place=lambda row: f"row {row + 6}")


@pytest.mark.parametrize("kind", ["float64", "Float64", "Int64", "category", "object"])
def test_one_missing_value_changes_no_name(kind):
    assert names(pd.Series([1, 2, None], dtype=kind)).tolist() == ["1", "2", ""]


def test_text_stays_text():
    for name in ("0012", "1E05", "0x1F", "1:30", "2021_08_12", "NO", "yes", "none", "na", "-", "1.10", "a, b"):
        assert normal(name) == name
        assert names([name, "x"]).tolist() == [name, "x"]
    assert names(["1.0", "v2"]).tolist() == ["1.0", "v2"]  # not a column of numbers
    assert names(["0012", "0012.0"]).tolist() == ["0012", "0012"]


def test_dates_are_iso():
    day = datetime.date(2016, 3, 22)
    for value in (day, pd.Timestamp(day), np.datetime64(day), datetime.datetime(2016, 3, 22), "2016-03-22"):
        assert names([value]).tolist() == ["2016-03-22"]
    assert names(pd.to_datetime(pd.Series(["2016-03-22", None]))).tolist() == ["2016-03-22", ""]
    assert normal(datetime.datetime(2016, 3, 22, 14, 5)) == "2016-03-22 14:05:00"
    assert names(pd.Series([day], dtype=pd.ArrowDtype(pa.date32()))).tolist() == ["2016-03-22"]


def test_a_float_that_has_lost_digits_is_refused():
    with pytest.raises(DataError, match=r"barcode.*12345678901234568.*save it as text"):
        names([12345678901234567.0, 1.0], "barcode")
    with pytest.raises(DataError, match="16777218"):
        names(np.array([16777218], np.float32))
    assert names([12345678901234567]).tolist() == ["12345678901234567"]


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\u2003", "\u200b", "\ufeff"])
def test_blanks_and_unicode_forms_are_joined_and_said(blank, caplog):
    caplog.set_level(logging.WARNING)
    assert names(["P0", f"P0{blank}", f"{blank}P0"], "plate").tolist() == ["P0"] * 3
    assert f"plate is written in several ways, which are taken for one: 'P0' and {f'P0{blank}'!r}" in caplog.text
    caplog.clear()
    composed = "Zürich"
    assert names([composed, unicodedata.normalize("NFD", composed)]).tolist() == [composed] * 2
    assert "several ways" in caplog.text
    caplog.clear()
    names(["1", "2", 1.0, b"2"])  # of other types, but spelled the same
    assert "several ways" not in caplog.text


@pytest.mark.parametrize(("one", "other"), [("DMSO", "dmso"), ("P1", "p1"), ("5 µM", "5 μM"), ("Straße", "STRASSE")])
def test_case_is_refused_with_both_spellings_and_their_rows(one, other):
    with pytest.raises(DataError, match=f"compound.*'{one}' in row 1 .*'{other}' in row 3 "):
        names(["x", one, one, other], "compound")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "A01") for text in ("A1", "A01", "a1", "a01", "A001", " A1 ", "r01c01", "R1C1", b"A1")),
        ("H12", "H12"),
        ("P24", "P24"),
        ("AA1", "AA01"),
        ("af48", "AF48"),
        ("r32c48", "AF48"),
        *(
            (text, text)
            for text in ("AG1", "A0", "A49", "A", "12", "pool 3", "A1B", "A1-2", "r33c1", "r1c49", "AB", "ABC1")
        ),
        ("NA", ""),
    ],
)
def test_wells(text, expected):
    assert well(text) == expected
    assert wells([text, "B2"]).tolist() == [expected, "B02"]


def test_rows_and_columns_give_all_wells_of_1536():
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AA", "AB", "AC", "AD", "AE", "AF"]
    row, column = (axis.ravel() for axis in np.meshgrid(np.arange(32), np.arange(48), indexing="ij"))
    expected = [f"{letters[r]}{c + 1:02d}" for r, c in zip(row, column, strict=True)]
    assert len(set(expected)) == 1536
    for rows in (row + 1, row + 1.0, [letters[r] for r in row], [letters[r].lower() for r in row]):
        assert wells_at(rows, column + 1).tolist() == expected
    assert wells(expected).tolist() == expected
    assert wells_at([None], [None]).tolist() == [""]
    for pair in ((33, 1), (1, 49), (0, 1), ("A", None), (None, 1), ("AG", 1)):
        with pytest.raises(DataError, match=r"row 1 \(from 0\) .*row"):
            wells_at(["B", pair[0]], [1, pair[1]])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=6), st.integers(), st.floats(width=16), st.none(), st.booleans()), max_size=8)
)
def test_the_normal_form_is_normal(values):
    try:
        once = names(values)
    except DataError:
        return
    assert names(once).tolist() == once.tolist()
    assert wells(wells(once)).tolist() == wells(once).tolist()
    assert (once == "").tolist() == is_missing(values).tolist()


def test_a_column_is_its_values_one_by_one():
    rng = np.random.default_rng(0)
    pool = ["P1", " P1", "x y", "x  y", 3, 3.0, None, "NA", "α", b"P2", 0.5, pd.Timestamp("2020-01-01")]
    column = [pool[i] for i in rng.integers(0, len(pool), 200)]
    assert names(column).tolist() == [normal(value) for value in column]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_and_parquet_say_the_same(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {
            "plate": [1.0, None, 10.0],
            "day": pd.to_datetime(["2016-03-22"] * 3),
            "flag": [True, False, True],
            "kind": pd.Categorical(["a ", None, "b"]),
            "dose": [0.0, 1.5, 0.1],
        }
    )
    file = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        table.to_csv(file, index=False)
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    else:
        table.to_parquet(file)
        table = pd.read_parquet(file)
    assert {column: names(table[column]).tolist() for column in table} == {
        "plate": ["1", "", "10"],
        "day": ["2016-03-22"] * 3,
        "flag": ["True", "False", "True"],
        "kind": ["a", "", "b"],
        "dose": ["0", "1.5", "0.1"],
    }


@pytest.mark.parametrize(
    "written", ["0012", "1E05", "2021_08_12", "NO", "yes", "0x1F", "1:30", "2021-08-12", "1.10", "1_0", "12"]
)
def test_what_yaml_retypes_is_recovered_or_refused(written: str) -> None:
    value = yaml.safe_load(written)
    assert find([value], [written, "other"], "plates") == [written]
    if isinstance(value, str):
        value = float(written)  # 1E05, which OmegaConf reads so
        assert find([value], [written, "other"], "plates") == [written]
    rival = normal(value)
    if rival != written:
        with pytest.raises(ConfigError, match=f"'{written}' or '{rival}': quote it"):
            find([value], [written, rival], "plates")
        assert find([written], [written, rival], "plates") == [written]
        with pytest.raises(ConfigError, match="quote it"):
            find([value], ["other"], "plates")


@pytest.mark.parametrize("value", [None, 1.5, True, 7, datetime.date(2020, 1, 1)])
def test_what_is_no_name_of_the_table_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"plates: {value} is not there") + ".*quote it.*P1"):
        find(["P1", value], ["P1", "", "0012"], "plates")


def test_nearest_names() -> None:
    known = ["Week1", "Week2", "DMSO", ""]
    assert find("week 1", ["week 1"], "x") == find(" week  1 ", ["week 1"], "x") == ["week 1"]
    for value, near in (("dmso", "DMSO"), ("Week11", "Week1"), ("zzz", "there is: Week1")):
        with pytest.raises(ConfigError, match=near) as caught:
            find(value, known, "control", advice="control")
        assert caught.value.advice == "control"
    assert find(["a1", "r01c02"], ["A01", "A02"], "wells", form=well) == ["A01", "A02"]
    assert find(["NA", ""], known, "x") == [""]  # the rows without a name
    assert find(["1.0", 1, 1.0, "1"], ["1"], "x") == ["1"]


FIELDS = pd.DataFrame({"plate": ["P1"] * 3 + ["P2"], "well": ["A01", "A02", "A03", "A01"], "site": [1, 1, 1, 1]})
NAMED = {"left_name": "fields of the nuclei", "right_name": "fields"}


def test_match_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    spelled = {"A01": ["A1", "a01", "A01 "], "A02": ["A2", "r1c2", "A02"], "A03": ["A3", "a3", "A03"]}
    rows = rng.integers(0, 4, 50)
    left = pd.DataFrame(
        {
            "site": [1.0] * 50,
            "well": [spelled[FIELDS["well"][r]][rng.integers(3)] for r in rows],
            "plate": [FIELDS["plate"][r] + " " * rng.integers(2) for r in rows],
        },
        index=np.arange(50) + 7,
    )
    assert match(left, FIELDS, ["plate", "well", "site"], **NAMED).tolist() == rows.tolist()


def test_rows_left_over_are_counted_named_and_explained(caplog) -> None:
    caplog.set_level(logging.WARNING)
    on = ["plate", "well"]
    left = pd.DataFrame({"plate": ["P1", "p2", "p2", "P1"], "well": ["A1", "A1", "A2", "A03"]})
    with pytest.raises(
        DataError, match=r"2 of 4 fields of the nuclei .* 4 fields.*plate p2, well A01.*'p2'.*mean 'P2'"
    ):
        match(left, FIELDS, on, advice="nuclei", **NAMED)
    assert match(left, FIELDS, on, left_over="say", **NAMED).tolist() == [0, -1, -1, 2]
    assert "2 of 4" in caplog.text
    caplog.clear()
    assert match(left, FIELDS, on, left_over="ignore", **NAMED).tolist() == [0, -1, -1, 2]
    assert not caplog.text
    with pytest.raises(DataError, match=r"2 of 4 fields have no partner .*plate P1, well A02.*no plate 'P2' there"):
        match(left, FIELDS, on, left_over="ignore", right_over="error", **NAMED)
    with pytest.raises(DataError, match=r"1 of 1 .*plate P2, well A02.*not together"):
        match(pd.DataFrame({"plate": ["P2"], "well": ["A2"]}), FIELDS, on, **NAMED)
    again = pd.concat([FIELDS, FIELDS.iloc[[1]].assign(well="a2")], ignore_index=True)
    with pytest.raises(DataError, match=r"two fields are called plate P1, well A02.*row 1 .*4"):
        match(left, again, on, **NAMED)


def test_a_million_names_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    column = pd.Series(np.array([f"P{i} " for i in range(2000)], object)[rng.integers(0, 2000, 1_000_000)])
    result = names(column)
    assert result[123] == column[123].strip()
    assert len(set(result.tolist())) == 2000


@pytest.mark.parametrize("form", [normal, well])
def test_coded_names_are_the_categories_of_names(form) -> None:
    one_by_one = {normal: names, well: wells}[form]
    columns = [
        ["b1", "A1", "b1 ", None, "r01c02"],
        [2.0, 1.0, np.nan, 10.0],
        pd.Series(pd.Categorical(["c", "A1", "c"], ["unused", "c", "A1"])),
        pd.Series(pd.Categorical(["c", None], ["c"])),
        ["x"],
    ]
    for column in columns:
        found, expected = coded(column, form=form), pd.Categorical(one_by_one(column))
        assert found.categories.tolist() == expected.categories.tolist()
        assert found.tolist() == expected.tolist()
    with pytest.raises(DataError, match=r"row 1 .*has no plate, as have 1 more"):
        coded(["a", None, " "], "plate", needed=True)
