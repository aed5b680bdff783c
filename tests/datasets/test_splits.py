"""Whole plates or experiments go to training, validation and test, with every label in each where that can be."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from biomass.datasets.splits import check_splits, default_split, make_splits
from biomass.errors import ConfigError


def screen(plates: int, per: int = 6, labels: int = 3, experiments: int = 1, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    plate = np.repeat(np.arange(plates), per)
    return pd.DataFrame(
        {
            "experiment": [f"E{one % experiments}" for one in plate],
            "plate": [f"P{one}" for one in plate],
            "label": rng.integers(0, labels, len(plate)).astype(str),
        }
    )


def divided(table: pd.DataFrame, split: np.ndarray, columns: list[str]) -> bool:
    return bool(table.assign(split=split)[[*columns, "split"]].drop_duplicates().duplicated(columns).any())


@pytest.mark.parametrize("plates", [2, 3, 4, 10, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_plate_is_divided_and_every_split_has_one(plates: int, seed: int) -> None:
    table = screen(plates, seed=seed)
    split = make_splits(table, seed=seed).split
    assert not divided(table, split, ["experiment", "plate"])
    assert set(split) == ({"train", "val", "test"} if plates > 2 else {"train", "test"})
    counts = table.assign(split=split).groupby("split")["plate"].nunique()
    if plates >= 10:
        assert abs(counts["train"] / plates - 0.7) < 0.05
    assert (split == make_splits(table, seed=seed).split).all()


def test_no_experiment_is_divided() -> None:
    table = screen(12, experiments=4)
    split = make_splits(table, "experiment").split
    assert not divided(table, split, ["experiment"])
    assert set(split) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(6))
def test_as_few_labels_are_missing_as_can_be(seed: int) -> None:
    """Against all ways of sharing out five plates."""
    table = screen(5, per=3, labels=5, seed=seed)
    table["label"] = table["label"].where(table["label"] != "0", "")  # no label

    def missing(split: np.ndarray) -> tuple[int, int]:
        known = set(table["label"]) - {""}
        lacks = {name: len(known - set(table["label"][split == name])) for name in ("train", "val", "test")}
        return lacks["train"], sum(lacks.values())

    ways = set(permutations(["train", "train", "train", "val", "test"]))
    plate = table["plate"].str[1:].astype(int).to_numpy()
    assert missing(make_splits(table).split) == min(missing(np.array(way)[plate]) for way in ways)


def test_labels_of_many_plates_are_in_all_splits_where_chance_would_miss_them() -> None:
    """Each of 40 plates has one label of four, three of which are rare."""
    label = ["a"] * 28 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4
    table = pd.DataFrame({"experiment": "E", "plate": [f"P{i}" for i in range(40)], "label": label})
    splits = make_splits(table)
    assert all(set(table["label"][splits.split == name]) == set("abcd") for name in ("train", "val", "test"))
    assert len(splits.notes) == 1


def test_what_cannot_be_is_said() -> None:
    table = pd.DataFrame({"experiment": "E", "plate": ["P1", "P2", "P3"], "label": ["a", "b", "a"]})
    notes = make_splits(table).notes
    assert "split by plate: train 1 plate" in notes[0]
    assert any("not in train" in note for note in notes)
    assert any("without an image in" in note for note in notes)
    assert any("2 plates are too few for 'val'" in note for note in make_splits(table[:2]).notes)


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (screen(1), {}, "one plate, 'P0'.*add plates"),
        (screen(4), {"by": "experiment"}, "one experiment, 'E0'.*split by plate"),
        (screen(4), {"by": "well"}, "'well'"),
        (screen(4), {"shares": {"train": 1, "test": 0}}, "greater than 0"),
    ],
)
def test_what_cannot_be_split_is_refused(table: pd.DataFrame, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_splits(table, **options)  # type: ignore[arg-type]
    assert caught.value.advice == "splits"


def test_by_experiment_if_there_are_three() -> None:
    assert default_split(screen(6, experiments=3)) == "experiment"
    assert default_split(screen(6, experiments=2)) == "plate"
    assert default_split(screen(2)) is None


def test_leaks_between_splits_are_named() -> None:
    table = pd.DataFrame(
        {
            "experiment": ["E1", "E1", "E2", "E2", "E2"],
            "plate": ["1", "2", "1", "2", "2"],
            "label": ["a", "b", "a", "c", -1],
            "split": ["train", "test", "train", "test", "test"],
        }
    )
    assert check_splits(table) == ["2 labels of test are not in train, and cannot be learned: 'b', 'c'"]
    shared = check_splits(table.assign(split=["train", "test", "val", "val", "test"]))
    assert len(shared) == 2  # labels of both; plate 1 of E2 is another than that of E1
    both = check_splits(table.assign(split=["train", "train", "train", "train", "test"]))
    assert both == ["train and test share 1 plate ('E2/2'): what is measured on it does not hold for new plates"]
    assert check_splits(table.assign(split="")) == []
