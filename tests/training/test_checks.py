"""What is looked at before a run writes anything: splits, labels, channels."""

import os

import numpy as np
import pandas as pd
import pytest

from biomass.errors import BadImageError, ConfigError, DataError
from biomass.screen import COLUMNS, VectorPixels, make_screen
from biomass.training import check_labels, choose_splits, constant_channels, make_fabric


def screen_of(splits, labels, images=None, plates=None, classes="abcd"):
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * len(splits)) | {"label": labels, "split": splits})
    table["plate"] = plates if plates is not None else ["P"] * len(splits)
    pixels = VectorPixels(images, ("DNA", "ER", "actin")[: images.shape[1]]) if images is not None else None
    return make_screen(table, pixels, tuple(classes))


def test_a_split_that_a_screen_lacks_is_left_out_unless_it_was_named():
    screen = screen_of(["train", "train", "test"], [0, 1, 1])
    splits, notes = choose_splits(screen, ["val", "test", "id_test"], named=False, labelled=True)
    assert splits == ["test"]
    (note,) = notes
    assert "'val' and 'id_test'" in str(note)
    assert "test, train" in str(note)
    with pytest.raises(ConfigError, match=r"'val'.*'val'|'val'"):
        choose_splits(screen, ["test", "val"], named=True, labelled=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_split_without_labels_is_nothing_to_evaluate_a_classifier_on(labelled):
    screen = screen_of(["train", "train", "test", "val"], [0, 1, -1, 1])
    splits, notes = choose_splits(screen, ["val", "test"], named=False, labelled=labelled)
    assert (splits, len(notes)) == ((["val"], 1) if labelled else (["val", "test"], 0))
    if labelled:
        with pytest.raises(DataError, match="no image of split 'test' has a label"):
            choose_splits(screen, ["test"], named=True, labelled=True)


def test_one_class_is_nothing_to_train_on():
    with pytest.raises(DataError, match="one class, 'c'"):
        check_labels(screen_of(["train", "train", "test"], [2, 2, 1]), ["test"], 4)


def test_what_looks_like_a_mistake_is_noted_and_what_does_not_is_not():
    fine = screen_of(["train"] * 4 + ["val"] * 2, [0, 1, 2, 3, 0, 1])
    for d_out in (4, 5, 8):
        assert check_labels(fine, ["val"], d_out) == []
    (far,) = check_labels(fine, ["val"], 1139)
    assert "1139 outputs" in str(far)
    assert "4 classes" in str(far)
    assert far.advice == "d_out"
    (alone,) = check_labels(screen_of(["train", "train", "val", "val"], [0, 1, 1, 1]), ["val"], 4)
    assert "'val' are of one class, 'b'" in str(alone)
    new = check_labels(screen_of(["train", "train", "val", "val", "val", "val"], [0, 1, 1, 2, 2, 0]), ["val"], 4)
    assert [str(note).partition(":")[0] for note in new] == ["50 % of split 'val' cannot be answered"]


def images_of(plates, per_plate, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (plates * per_plate, 3, 4, 4)).astype(np.uint8)


class Counting(VectorPixels):
    """Counts what is read, and cannot read some."""

    read_rows: list = []  # noqa: RUF012
    bad = ()

    def read(self, rows):
        self.read_rows.extend(rows)
        if set(self.bad) & set(rows):
            raise BadImageError("damaged", int(rows[0]))
        return super().read(rows)


def plated(images, plates, per_plate):
    names = np.repeat([f"P{n:02}" for n in range(plates)], per_plate)
    labels = np.arange(plates * per_plate) % 4
    screen = screen_of(["train"] * len(names), labels, images, names)
    pixels = Counting(images, ("DNA", "ER", "actin"))
    pixels.read_rows.clear()
    return make_screen(screen.table.drop(columns="plate_id"), pixels, screen.classes)


def test_a_channel_that_is_constant_over_a_plate_is_named_with_its_plate():
    images = images_of(5, 30)
    images[60:90, 1] = 7  # the third plate
    (note,) = constant_channels(plated(images, 5, 30), ["train"])
    assert "'ER' is constant (7) on plate '/P02'" in str(note)
    images[:, 2] = np.arange(150, dtype=np.uint8)[:, None, None] % 3  # each image another constant, on every plate
    notes = [str(note) for note in constant_channels(plated(images, 5, 30), ["train"])]
    assert len(notes) == 2
    assert "all 5 plates" in next(note for note in notes if "'actin'" in note)


def test_some_dark_images_and_damaged_ones_are_no_constant_channel():
    images = images_of(4, 30)
    images[[0, 29, 30, 59], 0] = 0  # the first images that are looked at, not the others
    screen = plated(images, 4, 30)
    assert constant_channels(screen, ["train"]) == []
    Counting.bad = (60, 89)
    try:
        assert constant_channels(screen, ["train"]) == []
    finally:
        Counting.bad = ()


def test_a_few_images_of_some_plates_are_read():
    screen = plated(images_of(100, 20), 100, 20)
    assert constant_channels(screen, ["train"]) == []
    read = screen.pixels.read_rows
    assert len(read) == 64
    assert len({row // 20 for row in read}) == 32
    assert {0, 99} <= {row // 20 for row in read}


def test_vectors_have_no_channels_to_look_at():
    screen = screen_of(["train"] * 3, [0, 1, 2], np.zeros((3, 5)))
    assert constant_channels(screen, ["train"]) == []


def test_no_more_processes_are_started_than_fit():
    with pytest.raises(ConfigError, match="17133 devices"):
        make_fabric("cpu", devices=17133)


def test_a_cpu_is_to_hand_out_large_pages_unless_the_user_has_said_something_else(monkeypatch):
    for said, found in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
        if said is not None:
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said)
        make_fabric("cpu")
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == found
