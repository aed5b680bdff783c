"""Groups of a screen's rows, by canonical columns and by those of a lab's own; labels that are shuffled."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError, DataError
from biomass.screen import COLUMNS, make_screen


def screen(**columns: list) -> object:
    n = len(next(iter(columns.values())))
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * n) | {"label": [0] * n, "plate": ["P"] * n} | columns)
    return make_screen(table, None, [*"abcdefg"])


@pytest.mark.parametrize(
    ("values", "groups", "names"),
    [
        (["W1", "W1 ", "\u00a0W1", "W2"], [0, 0, 0, 1], ("W1", "W2")),
        ([8.0, 9.0, 8.0], [0, 1, 0], ("8", "9")),
        ([12, 7, 12], [1, 0, 1], ("7", "12")),
        (["0012", "12"], [0, 1], ("0012", "12")),
        (["e\u0301", "\u00e9"], [0, 0], ("\u00e9",)),
    ],
)
def test_groups_of_a_labs_own_column_are_names_in_normal_form(values: list, groups: list, names: tuple) -> None:
    one = screen(batch=values)
    assert one.groups(["batch"]).tolist() == groups
    assert one.group_names(["batch"]) == names


@pytest.mark.parametrize("values", [[None, 8, 9], ["A", "", "B"], ["A", "NA", "B"], ["W1", "w1", "W2"]], ids=str)
def test_a_row_without_a_group_or_two_spellings_are_refused(values: list) -> None:
    with pytest.raises(DataError, match="batch"):
        screen(batch=values).groups(["batch"])


def test_names_of_groups_tell_them_apart() -> None:
    one = screen(experiment=["E/1", "E"], plate=["2", "1/2"])
    with pytest.raises(DataError, match="'E/1/2'"):
        one.group_names(["experiment", "plate"])
    with pytest.raises(ConfigError, match=r"'bach'.*'batch'"):
        screen(batch=["a"]).groups(["bach"])


def test_shuffled_labels_are_the_labels_of_the_split_in_another_order() -> None:
    count = 200
    values = [-1 if i % 9 == 0 else i % 7 for i in range(count)]
    one = screen(label=values, split=["train" if i % 2 else "test" for i in range(count)])
    other = one.with_shuffled_labels("train", seed=3)
    train = one.rows("train")
    rest = np.setdiff1d(np.arange(count), train)
    assert (other.labels[rest] == one.labels[rest]).all()
    assert sorted(other.labels[train]) == sorted(one.labels[train])
    assert ((other.labels == -1) == (one.labels == -1)).all()
    assert (other.labels[train] != one.labels[train]).mean() > 0.5
    assert (other.labels == one.with_shuffled_labels("train", seed=3).labels).all()
    assert (other.labels != one.with_shuffled_labels("train", seed=4).labels).any()
    assert (one.labels == values).all()
    rest_of_table = [column for column in one.table if column != "label"]
    pd.testing.assert_frame_equal(one.table[rest_of_table], other.table[rest_of_table])


def test_rows_and_quadrants_of_plates_come_from_the_names_of_wells() -> None:
    one = screen(well=["A1", "H12", "A12", "H1", "D06", "E07"], plate=["P"] * 5 + ["Q"])
    assert one.group_names(["plate", "row"]) == ("P/A", "P/D", "P/H", "Q/E")
    assert one.groups(["plate", "row"]).tolist() == [0, 2, 0, 2, 1, 3]
    by = ["plate", "quadrant"]
    assert [one.group_names(by)[group] for group in one.groups(by)] == [
        "P/top left", "P/bottom right", "P/top right", "P/bottom left", "P/top left", "Q/bottom right",
    ]  # fmt: skip
    larger = screen(well=["H12", "I13", "P24"])  # 384 wells
    assert [larger.group_names(["quadrant"])[group] for group in larger.groups(["quadrant"])] == [
        "top left", "bottom right", "bottom right",
    ]  # fmt: skip
    assert screen(well=["AA01", "Z01"]).group_names(["row"]) == ("AA", "Z")


def test_a_column_of_the_lab_goes_before_the_one_that_is_made() -> None:
    assert screen(well=["A1", "B2"], quadrant=["q1", "q2"]).group_names(["quadrant"]) == ("q1", "q2")


@pytest.mark.parametrize("well", ["pool 3", "", "H49"])
def test_wells_without_a_place_have_no_quadrant(well: str) -> None:
    one = screen(well=["A1", well])
    for part in ("row", "quadrant"):
        with pytest.raises(DataError, match=f"well '{well}' has no place"):
            one.groups([part])
    with pytest.raises(ConfigError, match=r"'quadrat'.*'quadrant'"):
        one.groups(["quadrat"])
