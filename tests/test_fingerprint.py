"""What a screen is made of: the same wherever it lies, another as soon as something of it changes."""

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from biomass import fingerprint as module
from biomass.datasets.manifest import load_manifest
from biomass.differences import first_difference
from biomass.errors import BadImageError
from biomass.fingerprint import fingerprint, image_keys, plate_difference, plate_fingerprint
from biomass.pixels.packed import PackedPixels
from biomass.pixels.packed_writer import pack
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen

CLASSES = ["DMSO", "colchicine", "taxol"]


def table() -> pd.DataFrame:
    """2 plates x 12 wells x 2 sites."""
    rows = [
        {"plate": plate, "well": f"{'ABC'[well // 4]}{well % 4 + 1:02d}", "site": site, "label": well % 3}
        for plate in ("P1", "P2")
        for well in range(12)
        for site in ("1", "2")
    ]
    about = pd.DataFrame(rows)
    control, split = np.where(about["label"] == 0, "negative", ""), np.where(about["plate"] == "P1", "train", "val")
    return about.assign(experiment="e", cell_type="U2OS", control=control, split=split)


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 2, 4, 4), dtype=np.uint8)


def screen(about: pd.DataFrame | None = None, pixels: np.ndarray | None = None, classes: list[str] = CLASSES) -> Screen:
    found = VectorPixels(images() if pixels is None else pixels, ("dna", "actin"))
    return make_screen(table() if about is None else about, found, classes)


def changed(**columns) -> pd.DataFrame:
    """The table with the first values of columns replaced."""
    about = table()
    for column, values in columns.items():
        about.loc[range(len(values)), column] = values
    return about


def other(rows=slice(0, 1), channels=slice(None)) -> np.ndarray:
    pixels = images()
    pixels[rows, channels] += 1
    return pixels


def swapped(axis: int, a: int, b: int) -> np.ndarray:
    order = np.arange(images().shape[axis])
    order[[a, b]] = order[[b, a]]
    return images().take(order, axis)


ROTATED = {"DMSO": 1, "colchicine": 2, "taxol": 0}
CASES = {
    "an image": (screen(pixels=other()), "1 of 48 sampled images has other pixels, such as 'row 0'"),
    "a channel": (screen(pixels=other(slice(3), 1)), "3 of 48 .* have other pixels in actin, such as 'row 0'"),
    "two images swapped": (screen(pixels=swapped(0, 5, 9)), "2 of 48 sampled images have other pixels.*row 5"),
    "channels swapped": (screen(pixels=swapped(1, 0, 1)), "48 of 48 sampled images have other pixels"),
    "the type": (screen(pixels=images().astype(np.uint16)), "type of the images is uint16, it was uint8"),
    "the size": (screen(pixels=images()[..., :3]), "size of the images is 4 x 3, it was 4 x 4"),
    "a label": (screen(changed(label=[1])), "class 'DMSO' has 15 images, it had 16, and 1 more"),
    "labels swapped": (screen(changed(label=[1, 0, 0])), "'label'.*'colchicine' for 'row 0', it was 'DMSO'"),
    "a class renamed": (screen(classes=["DMSO", "x", "taxol"]), "class 'colchicine' is not there.*class 'x' is new"),
    "a class added": (screen(classes=[*CLASSES, "x"]), "class 'x' is new"),
    "classes in another order": (screen(classes=CLASSES[::-1]), "class 0 is 'taxol', it was 'DMSO'"),
    "a plate renamed": (screen(changed(plate=["P3"] * 24)), "plate 'e/P1' is not there.*plate 'e/P3' is new"),
    "a plate added": (screen(changed(plate=["P3"] * 12)), "plate 'e/P3' is new"),
    "a plate removed": (screen(table()[24:], images()[24:]), "plate 'e/P1' is not there any more"),
    "an image less": (screen(table()[1:], images()[1:]), "plate 'e/P1' has 23 images, it had 24"),
    "a split": (screen(changed(split=["val"] * 3)), "split 'train' has 21 rows, it had 24, and 1 more"),
    "splits of two": (screen(changed(split=["val"]).assign(split=["val", *["train"] * 24, *["val"] * 23])), "'split'"),
    "a control": (screen(changed(control=["positive"])), "'control'.*'positive' for 'row 0', it was 'negative'"),
    "a well": (screen(changed(well=["H12", "H12"])), "'well'"),
    "the cell type": (screen(changed(cell_type=["HeLa"])), "'cell_type'.*'HeLa' for 'row 0', it was 'U2OS'"),
    "the order": (screen(table()[::-1], images()[::-1]), "rows of the table are in another order"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changed_is_named_with_its_values(case):
    now, message = CASES[case]
    found = first_difference(fingerprint(screen()), fingerprint(now))
    assert found is not None
    assert pd.Series([found]).str.contains(message).all(), found


def test_what_makes_no_difference_is_not_seen():
    before = fingerprint(screen())
    assert first_difference(before, before) is None
    about = table().assign(unrelated=range(48), moa="x")
    about["plate"] = pd.Categorical(about["plate"], ["P9", "P2", "P1"])
    about["site"] = about["site"].astype(int)
    assert fingerprint(screen(about)) == before
    older = before | {"version": 0}
    assert first_difference(older, fingerprint(screen(pixels=other()))) is None


def test_a_column_that_is_used_makes_a_difference():
    day, night = (screen(table().assign(shift=[first] + ["day"] * 47)) for first in ("day", "night"))
    assert first_difference(fingerprint(day), fingerprint(night)) is None
    found = first_difference(fingerprint(day, ["shift"]), fingerprint(night, ["shift"]))
    assert found is not None
    assert "'shift' has other values, such as 'night' for 'row 0', it was 'day'" in found


class Damaged(VectorPixels):
    """The first image cannot be read."""

    def read(self, rows):
        if 0 in rows:
            raise BadImageError("is damaged", 0)
        return super().read(rows)


def test_an_image_that_cannot_be_read_is_marked():
    whole = screen()
    bad = replace(whole, pixels=Damaged(images(), ("dna", "actin")))
    assert [one["pixels"] for one in fingerprint(bad)["sample"].values()].count(None) == 1
    assert "1 of 48 sampled images cannot be read any more" in first_difference(fingerprint(whole), fingerprint(bad))
    assert "1 of 48 sampled images can be read now" in first_difference(fingerprint(bad), fingerprint(whole))


def test_a_sample_is_spread_over_plates_and_splits(monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 8)
    sample = fingerprint(screen(changed(split=["val"] * 3)))["sample"].values()
    counts = pd.Series([(one["values"]["plate"], one["values"]["split"]) for one in sample]).value_counts()
    assert counts.to_dict() == {("P1", "train"): 3, ("P1", "val"): 2, ("P2", "val"): 3} or counts.max() == 3
    shuffled = np.random.default_rng(1).permutation(48)
    again = fingerprint(screen(changed(split=["val"] * 3).iloc[shuffled], images()[shuffled]))["sample"]
    assert {key: one["pixels"] for key, one in again.items()} == {
        key: one["pixels"] for key, one in fingerprint(screen(changed(split=["val"] * 3)))["sample"].items()
    }


# --- files and stores -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The screen as a manifest and PNG files."""
    place = tmp_path / "here"
    place.mkdir()
    for row, image in enumerate(images()):
        Image.fromarray(np.dstack([*image, image[0]])).save(place / f"{row}.png")
    about = table().assign(path=[f"{row}.png" for row in range(48)])
    about["label"] = np.array(CLASSES)[about["label"]]
    about.to_csv(place / "manifest.csv", index=False)
    return place


def test_the_same_in_another_folder_and_from_its_store(folder):
    here = load_manifest(folder / "manifest.csv")
    before = fingerprint(here)
    pack(here, folder / "manifest.csv.packed")
    packed = load_manifest(folder / "manifest.csv")
    assert isinstance(packed.pixels, PackedPixels)
    of_store = fingerprint(packed)
    assert first_difference(before, of_store) is None
    assert first_difference(of_store, before) is None
    there = folder.rename(folder.parent / "there")
    assert fingerprint(load_manifest(there / "manifest.csv")) == of_store


def test_a_store_is_compared_by_its_checksums(folder, monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 8)
    pack(load_manifest(folder / "manifest.csv"), folder / "manifest.csv.packed")
    before = load_manifest(folder / "manifest.csv")
    known = fingerprint(before)
    sampled = {before.pixels.name(row) for row in range(48) if f"{image_keys(before)[row]:016x}" in known["sample"]}
    name = next(f"{row}.png" for row in range(48) if f"{row}.png" not in sampled)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)
    pack(load_manifest(folder / "manifest.csv"), folder / "manifest.csv.packed")
    found = first_difference(known, fingerprint(load_manifest(folder / "manifest.csv")))
    assert found == "the packed store holds other pixels, by its checksums"


def test_a_store_is_not_used_if_a_file_has_other_bytes_of_the_same_size_and_time(folder, caplog):
    file = folder / "0.png"
    image = np.asarray(Image.open(file))
    Image.fromarray(image).save(file, compress_level=0)  # of one size, whatever it shows
    pack(load_manifest(folder / "manifest.csv"), folder / "manifest.csv.packed")
    stamp = file.stat()
    Image.fromarray(image ^ 1).save(file, compress_level=0)
    assert file.stat().st_size == stamp.st_size
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not isinstance(load_manifest(folder / "manifest.csv").pixels, PackedPixels)
    assert "0.png' has changed since it was packed" in caplog.text
    pack(load_manifest(folder / "manifest.csv"), folder / "manifest.csv.packed")
    packed = load_manifest(folder / "manifest.csv")
    assert isinstance(packed.pixels, PackedPixels)


# --- plates -----------------------------------------------------------------------------------------------------------


def difference(before: Screen, now: Screen, controls: bool = False, plate: str = "P1") -> str | None:
    rows = [np.flatnonzero(one.table["plate"] == plate) for one in (before, now)]
    return plate_difference(
        plate_fingerprint(before, rows[0], image_keys(before)), now, rows[1], image_keys(now), controls
    )


def test_a_plate_is_the_same_if_it_grows_or_a_part_of_it_is_there(monkeypatch):
    monkeypatch.setattr(module, "PLATE_IMAGES", 4)
    shuffled = np.random.default_rng(2).permutation(48)
    half = screen(table()[::2], images()[::2])
    assert difference(screen(), screen()) is None
    assert difference(screen(), screen(table().iloc[shuffled], images()[shuffled])) is None
    assert difference(half, screen()) is None
    assert difference(screen(), half) is None
    assert difference(screen(), screen(changed(label=[1, 0], split=["val"]))) is None
    exchanged = make_screen(table(), VectorPixels(images()[:, ::-1], ("actin", "dna")), CLASSES)
    assert difference(screen(), exchanged) is None


def test_cells_without_a_number_may_stand_in_another_order():
    cells = screen(table().assign(well="A01", site="1"))
    shuffled = np.concatenate([np.random.default_rng(3).permutation(24), np.arange(24, 48)])
    assert difference(cells, screen(cells.table.iloc[shuffled], images()[shuffled])) is None
    one = images()[shuffled]
    one[5] += 1
    assert "1 of 24 sampled images has other pixels" in difference(cells, screen(cells.table.iloc[shuffled], one))
    part = np.arange(1, 48, 2)  # of which it cannot be known which is which
    assert difference(cells, screen(cells.table.iloc[part], images()[part])) is None
    found = first_difference(fingerprint(cells), fingerprint(screen(cells.table.iloc[shuffled], images()[shuffled])))
    assert found is not None  # batches are drawn by rows: a run that goes on would see others


def test_other_images_under_the_name_of_a_plate(monkeypatch):
    assert difference(screen(), screen(pixels=other())) == "1 of 24 sampled images has other pixels, such as 'row 0'"
    assert difference(screen(), screen(pixels=other()), plate="P2") is None
    assert "in dna" in difference(screen(), screen(pixels=other(slice(8), 0)))
    assert "it was 4 x 4" in difference(screen(), screen(pixels=images()[..., :2]))
    assert "uint16, it was uint8" in difference(screen(), screen(pixels=images().astype(np.uint16)))
    monkeypatch.setattr(module, "PLATE_IMAGES", 4)
    elsewhere = screen(table().assign(site=[str(n) for n in range(100, 148)]))
    assert "all 4 sampled images are not there any more" in difference(screen(), elsewhere)


def test_controls_of_a_plate_make_a_difference_where_they_matter():
    now = screen(changed(control=["positive"]))
    assert difference(screen(), now) is None
    assert difference(screen(), now, controls=True) == "'row 0' is positive control, and was negative"


@pytest.mark.parametrize("seed", range(12))
def test_the_sample_is_that_of_a_look_at_every_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, number = int(rng.integers(1, 600)), int(rng.integers(1, 80))
    keys = rng.integers(0, 2**64, rows, np.uint64) >> np.uint64(rng.choice([0, 60]))  # also many of the same key
    plates, splits = np.sort(rng.integers(0, rng.choice([1, 9, 300]), rows)), rng.integers(-1, 2, rows)
    parts: dict[tuple[int, int], list[int]] = {}
    for row in sorted(range(rows), key=lambda row: (keys[row], row)):
        parts.setdefault((plates[row], splits[row]), []).append(row)
    ranked = [(rank, keys[row], row) for part in parts.values() for rank, row in enumerate(part)]
    expected = sorted(row for _, _, row in sorted(ranked)[:number])
    assert module._spread(keys, plates, splits, number).tolist() == expected


def test_images_that_are_called_alike_are_counted_in_their_order() -> None:
    assert module._alike(np.array([5, 3, 5, 5, 3], np.uint64)).tolist() == [0, 0, 1, 2, 1]
    assert module._alike(np.array([5, 3], np.uint64)) is None


def test_a_fingerprint_is_the_same_in_all_versions() -> None:
    """Another hash would make every checkpoint one of other data."""
    screen = make_screen(large_table(900), VectorPixels(np.arange(900).reshape(900, 1, 1, 1), ("DNA",)), CLASSES)
    found = fingerprint(screen, ["dose"])
    assert found["order"] == "0fc2a96319a25a7ca997a634a956e6e5"
    columns = {"well": "4cdc98fc274d4f60", "label": "01b13882b4a773da", "dose": "89f13996e29e97e1"}
    assert {name: found["columns"][name] for name in columns} == columns
    assert next(iter(found["sample"])) == "1131726eb47fb727"


def large_table(rows: int) -> pd.DataFrame:
    """3 plates of so many images, without sites."""
    row = np.arange(rows)
    names = {"experiment": "E", "site": "", "cell_type": "", "split": np.array(["train", "test", ""])[row % 3]}
    places = {"plate": np.array(["P1", "P2", "P3"])[row * 3 // rows], "well": np.array(["A01", "B02"])[row % 2]}
    return pd.DataFrame({**names, **places, "label": row % 3, "control": "", "dose": row % 4 / 2}, index=row)


def test_a_fingerprint_does_not_grow_with_the_rows() -> None:
    lengths = []
    for rows in (1_000, 100_000):
        pixels = VectorPixels(np.zeros((rows, 1, 1, 1), np.uint8), ("DNA",))
        lengths.append(len(json.dumps(fingerprint(make_screen(large_table(rows), pixels, CLASSES), ["dose"]))))
    assert abs(lengths[1] - lengths[0]) < 500  # digits of counts and of the names of rows


def test_a_plate_among_many_is_what_it_is_alone():
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 300) | {"plate": [f"P{n // 3}" for n in range(300)], "label": 0})
    table["well"] = [f"A{n % 3 + 1:02d}" for n in range(300)]
    many = make_screen(table, VectorPixels(np.arange(300)[:, None]), ["a"])
    rows = np.array([30, 31, 32])
    alone = make_screen(table.iloc[rows], VectorPixels(rows[:, None]), ["a"])
    found = plate_fingerprint(many, rows, image_keys(many))
    expected = plate_fingerprint(alone, np.arange(3), image_keys(alone))
    for one in (found, expected):
        one["sample"] = {key: image | {"name": ""} for key, image in one["sample"].items()}  # numbers of rows
    assert found == expected
