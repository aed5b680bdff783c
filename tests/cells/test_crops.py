"""Nuclei and the cells around them: finding, reading, matching, cutting, packing, the command."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from biomass.cells import search
from biomass.cells.crops import crop_screen, crops_inside, cut_crops
from biomass.cells.fields import Nuclei, count_cells, place_nuclei, save_nuclei
from biomass.cells.nuclei import find_nuclei, read_nuclei
from biomass.cells.search import find_all_nuclei
from biomass.cells.store import pack_cells
from biomass.cells.tables import read_nuclei_table
from biomass.commands.crop import main
from biomass.datasets.packed import load_packed
from biomass.errors import BadImageError, ConfigError, DataError
from biomass.screen import make_screen


class Arrays:
    """Pixels of a screen that lie in memory; some rows may be broken."""

    def __init__(self, images: np.ndarray, channels: tuple[str, ...], bad: tuple[int, ...] = ()) -> None:
        self.images, self.channels, self.bad = images, channels, bad
        self.size = images.shape[2:]
        self.reads: list[int] = []

    def read(self, rows: np.ndarray) -> np.ndarray:
        for row in rows.tolist():
            self.reads.append(row)
            if row in self.bad:
                raise BadImageError(f"image {row} is broken", row)
        return self.images[rows]

    def name(self, row: int) -> str:
        return f"field {row}"


def screen_of(images: np.ndarray, channels: tuple[str, ...] = ("actin", "DAPI"), bad: tuple[int, ...] = ()):
    n = len(images)
    table = pd.DataFrame(
        {
            "experiment": "E1",
            "plate": np.where(np.arange(n) < 2, "P1", "P2"),
            "well": [f"B{i:02d}" for i in range(n)],
            "site": 1,
            "cell_type": "",
            "label": 0,
            "split": "",
            "control": "",
            "dose": np.arange(n) / 10,
        }
    )
    return make_screen(table, Arrays(images, channels, bad), ["one"])


def nuclei_of(rows: list[tuple[int, float, float]], fields: list[int]) -> Nuclei:
    table = pd.DataFrame(rows, columns=["image", "y", "x"]).assign(area=50.0)
    return Nuclei(table.astype({"image": np.int64, "y": float, "x": float}), np.array(fields))


@pytest.fixture
def fields():
    """Four fields of (2, 30, 40): two cells and one at the border, none, one, one."""
    images = np.random.default_rng(0).integers(0, 60_000, (4, 2, 30, 40), dtype=np.uint16)
    rows = [(2, 15.0, 20.0), (0, 10.2, 9.7), (0, 2.0, 20.0), (3, 20.4, 31.6), (0, 22.5, 30.0)]
    return screen_of(images), nuclei_of(rows, [0, 1, 2, 3])


def blobs(shape: tuple[int, int], centres: np.ndarray, radius: float, heights: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for (cy, cx), height in zip(centres, heights, strict=True):
        image = np.maximum(image, height * (np.hypot(y - cy, x - cx) < radius))
    return gaussian_filter(image, 1.5)


# --- cutting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_crops_are_those_of_a_loop(size):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (3, 33, 47), dtype=np.uint8)
    centres = rng.uniform(-3, 50, (500, 2))
    kept, expected = [], []
    for y, x in centres:
        top, left = round(y) - size // 2, round(x) - size // 2  # Python's round: halves to the even one
        inside = 0 <= top <= 33 - size and 0 <= left <= 47 - size
        kept.append(inside)
        if inside:
            expected.append(image[:, top : top + size, left : left + size])
    np.testing.assert_array_equal(crops_inside(centres, (33, 47), size), kept)
    crops = cut_crops(image, centres[kept], size)
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(crops, np.stack(expected))


def test_the_documented_example():
    image = np.arange(1024 * 1280, dtype=np.int32).reshape(1, 1024, 1280)
    (crop,) = cut_crops(image, np.array([[599.0, 1173.0]]), 68)
    np.testing.assert_array_equal(crop, image[:, 565:633, 1139:1207])
    (half,) = cut_crops(image, np.array([[598.5, 1173.5]]), 68)  # 598 and 1174 are the even ones
    np.testing.assert_array_equal(half, image[:, 564:632, 1140:1208])


def test_no_centres_no_crops():
    assert cut_crops(np.zeros((3, 9, 9), np.uint16), np.zeros((0, 2)), 4).shape == (0, 3, 4, 4)


def test_a_crop_that_leaves_the_image_is_refused():
    with pytest.raises(DataError, match=r"crop of 8 pixels at y 3, x 9 does not lie inside the image of 20 x 20"):
        cut_crops(np.zeros((1, 20, 20)), np.array([[10, 10], [3, 9]]), 8)


# --- screens of cells -------------------------------------------------------------------------------------------------


def test_cells_of_a_screen(fields):
    screen, nuclei = fields
    cells = crop_screen(screen, nuclei, 8)
    assert cells.table["image"].tolist() == [0, 0, 2, 3]
    assert cells.table["cell"].tolist() == [0, 1, 0, 0]
    assert cells.table["well"].tolist() == ["B00", "B00", "B02", "B03"]
    assert cells.table["dose"].tolist() == [0.0, 0.0, 0.2, 0.3]
    assert cells.table["x"].tolist() == pytest.approx([9.7, 30.0, 20.0, 31.6])
    assert cells.table["plate_id"].tolist() == [0, 0, 1, 1]
    assert cells.pixels.channels == ("actin", "DAPI")
    assert cells.pixels.size == (8, 8)
    images = screen.pixels.images
    expected = np.stack(
        [
            images[0, :, 6:14, 6:14],
            images[0, :, 18:26, 26:34],
            images[2, :, 11:19, 16:24],
            images[3, :, 16:24, 28:36],
        ]
    )
    np.testing.assert_array_equal(cells.pixels.read(np.arange(4)), expected)
    rows = np.array([3, 0, 2, 1, 0])
    crops = pickle.loads(pickle.dumps(cells.pixels)).read(rows)
    assert crops.dtype == np.uint16
    np.testing.assert_array_equal(crops, expected[rows])


def test_every_field_is_read_once(fields):
    screen, nuclei = fields
    cells = crop_screen(screen, nuclei, 8)
    for rows in ([0], [1, 2], [3]):  # a batch ends within field 0
        cells.pixels.read(np.array(rows))
    assert screen.pixels.reads == [0, 2, 3]


def test_one_nucleus_and_one_field():
    screen = screen_of(np.ones((1, 2, 20, 20), np.uint8))
    cells = crop_screen(screen, nuclei_of([(0, 10, 10)], [0]), 6)
    assert len(cells) == 1
    assert cells.pixels.read(np.array([0])).shape == (1, 2, 6, 6)


def test_fields_without_cells_are_counted(fields, caplog):
    screen, nuclei = fields
    nuclei = Nuclei(nuclei.table[nuclei.table["image"] != 3], np.array([0, 1, 2]))
    counts = count_cells(screen, nuclei, crop_screen(screen, nuclei, 8))
    assert counts["cells"].tolist() == [2, 0, 1, 0]
    assert counts["nuclei"].tolist()[:3] == [3, 0, 1]
    assert counts["nuclei"].isna().tolist() == [False, False, False, True]
    assert "2 of 4 fields have no cells (1 of them were not looked at): E1/P1/B01/1; E1/P2/B03/1" in caplog.text


def test_no_cells_at_all(fields):
    screen, _ = fields
    with pytest.raises(DataError, match="no crop of 8 pixels around one of the 1 nuclei"):
        crop_screen(screen, nuclei_of([(0, 1, 1)], [0]), 8)
    with pytest.raises(ConfigError, match="crops of 31 pixels"):
        crop_screen(screen, nuclei_of([(0, 15, 15)], [0]), 31)


def test_a_bad_field_is_an_error_of_its_cells(fields):
    screen, nuclei = fields
    screen.pixels.bad = (2,)
    with pytest.raises(BadImageError, match="image 2 is broken") as caught:
        crop_screen(screen, nuclei, 8).pixels.read(np.array([0, 3, 2]))
    assert caught.value.row == 2


def test_packed_cells_are_the_same(fields, tmp_path):
    screen, nuclei = fields
    cells = crop_screen(screen, nuclei, 8)
    packed = load_packed(pack_cells(screen, nuclei, tmp_path / "cells", 8, workers=0))
    np.testing.assert_array_equal(packed.pixels.read(np.arange(4)), cells.pixels.read(np.arange(4)))
    columns = ["image", "cell", "x", "y", "area", "dose", "plate_id", "label"]
    pd.testing.assert_frame_equal(packed.table[columns], cells.table[columns])
    assert packed.pixels.channels == ("actin", "DAPI")
    listed = pd.read_csv(tmp_path / "cells.fields.csv")
    assert listed["cells"].tolist() == [2, 0, 1, 1]


# --- finding nuclei ---------------------------------------------------------------------------------------------------


def test_single_and_touching_nuclei_are_found():
    rng = np.random.default_rng(2)
    centres = np.array([[30, 40], [60, 120], [60, 138], [120, 60], [118, 78], [150, 150], [20, 170]])
    heights = np.array([1.0, 0.5, 0.6, 0.3, 4.0, 0.3, 1.0])  # a mitotic one, and dim ones
    image = 100 * blobs((180, 200), centres, 10, heights) + rng.normal(200, 2, (180, 200))
    found, areas = find_nuclei(image, diameter=20)
    assert len(found) == len(centres)
    order = np.lexsort((centres[:, 1], centres[:, 0]))
    distance = np.linalg.norm(found[:, None] - centres[order][None], axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(len(centres)))
    assert distance.min(axis=1).max() < 2.5
    assert ((areas > 150) & (areas < 550)).all()  # of 314, and a blurred rim
    # Neither the scale nor the offset of the image matters, nor its type.
    for other in (image / 1000, image * 7 + 5000, (image / 600).astype(np.float16), image.astype(np.uint16)):
        again, _ = find_nuclei(other, diameter=20)
        assert len(again) == len(found)
        assert np.abs(again - found).max() < 1


def test_one_nucleus():
    image = blobs((64, 64), np.array([[40, 20]]), 8, np.array([1.0]))
    found, areas = find_nuclei(image, diameter=16)
    assert found.shape == (1, 2)
    np.testing.assert_allclose(found[0], [40, 20], atol=0.5)
    assert areas[0] == pytest.approx(np.pi * 64, rel=0.5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((50, 60)),
        np.full((50, 60), 7, np.uint16),
        np.random.default_rng(3).normal(600, 30, (200, 200)),
        np.random.default_rng(3).poisson(4, (200, 200)),
    ],
    ids=["zeros", "constant", "noise", "photons"],
)
def test_a_field_without_nuclei(image):
    centres, areas = find_nuclei(image, diameter=20)
    assert centres.shape == (0, 2)
    assert areas.shape == (0,)


def test_debris_is_left_out():
    image = blobs((120, 120), np.array([[30, 30], [90, 90]]), 9, np.array([1.0, 1.0]))
    image += blobs((120, 120), np.array([[30, 90]]), 2, np.array([1.0]))
    assert image[30, 90] > 0.4
    found, _ = find_nuclei(image, diameter=18)
    np.testing.assert_allclose(found, [[30, 30], [90, 90]], atol=0.5)


def test_a_diameter_below_the_noise():
    with pytest.raises(ConfigError, match=r"diameter of 2.0 pixels"):
        find_nuclei(np.zeros((9, 9)), 2.0)


def test_nuclei_of_all_fields():
    images = np.stack(
        [
            np.stack([np.zeros((64, 64)), blobs((64, 64), np.array(c).reshape(-1, 2), 8, np.ones(len(c)))])
            for c in ([[20, 20], [40, 45]], [], [[32, 32]])
        ]
    ).astype(np.float32)
    screen = screen_of(images)
    nuclei = find_all_nuclei(screen, "nuclei", 16)  # what the screen calls DAPI
    assert nuclei.table["image"].tolist() == [0, 0, 2]
    assert nuclei.fields.tolist() == [0, 1, 2]
    np.testing.assert_allclose(nuclei.table[["y", "x"]], [[20, 20], [40, 45], [32, 32]], atol=0.5)
    screen.pixels.bad = (0,)
    with pytest.raises(BadImageError):
        find_all_nuclei(screen, "DAPI", 16)
    skipped = find_all_nuclei(screen, "DAPI", 16, on_bad_image="skip")
    assert skipped.fields.tolist() == [1, 2]
    with pytest.raises(ConfigError, match="no channel 'RNA'"):
        find_all_nuclei(screen, "RNA")


def with_nuclei(bad: tuple[int, ...] = ()):
    """Six fields of two plates; field k has k % 3 nuclei."""
    places = [[20, 20], [40, 45]]
    images = np.stack(
        [
            np.stack([np.zeros((64, 64)), blobs((64, 64), np.array(places[: k % 3]).reshape(-1, 2), 8, np.ones(k % 3))])
            for k in range(6)
        ]
    ).astype(np.float32)
    screen = screen_of(images, bad=bad)
    order = [2, 0, 3, 1, 4, 5]  # the plates of rows are A, B, A, B, B, B
    return make_screen(
        screen.table.assign(plate=["A", "B", "A", "B", "B", "B"]).drop(columns="plate_id"),
        Arrays(images[order], ("actin", "DAPI"), bad),
        ["one"],
    )


def assert_same(one: Nuclei, other: Nuclei) -> None:
    pd.testing.assert_frame_equal(one.table, other.table, check_dtype=False)
    np.testing.assert_array_equal(one.fields, other.fields)


def test_nuclei_that_were_found_are_not_searched_again(tmp_path):
    file = tmp_path / "cells.nuclei.parquet"
    expected = find_all_nuclei(with_nuclei(), "DAPI", 16)
    assert expected.table["image"].tolist() == [0, 0, 3, 4, 5, 5]
    assert expected.fields.tolist() == [0, 1, 2, 3, 4, 5]
    assert_same(find_all_nuclei(with_nuclei(), "DAPI", 16, file=file), expected)
    screen = with_nuclei()
    assert_same(find_all_nuclei(screen, "nuclei", 16, file=file), expected)
    assert not screen.pixels.reads
    assert [p.name for p in tmp_path.iterdir()] == [file.name]

    renamed = with_nuclei()
    renamed.table["well"] = [f"C{i}" for i in range(6)]
    more = with_nuclei()
    for other, channel, diameter in ((renamed, "DAPI", 16), (more, "DAPI", 18), (with_nuclei(), "actin", 16)):
        find_all_nuclei(other, channel, diameter, file=file)
        assert sorted(other.pixels.reads) == [0, 1, 2, 3, 4, 5]
    file.write_bytes(file.read_bytes()[:-9])
    assert_same(find_all_nuclei(with_nuclei(), "DAPI", 16, file=file), expected)


def test_a_search_goes_on_where_it_was_stopped(tmp_path):
    file = tmp_path / "cells.nuclei.parquet"
    with pytest.raises(BadImageError):
        find_all_nuclei(with_nuclei(bad=(4,)), "DAPI", 16, file=file)  # in the second plate
    assert not file.exists()
    screen = with_nuclei()
    assert_same(find_all_nuclei(screen, "DAPI", 16, file=file), find_all_nuclei(with_nuclei(), "DAPI", 16))
    assert screen.pixels.reads == [1, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_search_that_was_stopped_when_all_plates_were_finished_is_kept_whole(tmp_path, monkeypatch):
    file = tmp_path / "cells.nuclei.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_report_unread", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            find_all_nuclei(with_nuclei(), "DAPI", 16, file=file)
    assert sorted(p.name for p in (tmp_path / "cells.nuclei.parquet.part").iterdir()) == ["0.parquet", "1.parquet"]
    screen = with_nuclei()
    expected = find_all_nuclei(with_nuclei(), "DAPI", 16)
    assert_same(find_all_nuclei(screen, "DAPI", 16, file=file), expected)
    assert not screen.pixels.reads
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_parts_of_another_search_are_not_taken_for_ones_of_this(tmp_path):
    file = tmp_path / "cells.nuclei.parquet"
    with pytest.raises(BadImageError):
        find_all_nuclei(with_nuclei(bad=(4,)), "DAPI", 16, file=file)
    screen = with_nuclei()
    expected = find_all_nuclei(with_nuclei(), "DAPI", 18)
    assert_same(find_all_nuclei(screen, "DAPI", 18, file=file), expected)
    assert sorted(screen.pixels.reads) == [0, 1, 2, 3, 4, 5]


def test_fields_that_could_not_be_read_are_looked_at_by_the_next_call(tmp_path):
    file = tmp_path / "cells.nuclei.parquet"
    first = find_all_nuclei(with_nuclei(bad=(0, 4)), "DAPI", 16, on_bad_image="skip", file=file)
    assert first.fields.tolist() == [1, 2, 3, 5]
    with pytest.raises(BadImageError):
        find_all_nuclei(with_nuclei(bad=(4,)), "DAPI", 16, file=file)
    screen = with_nuclei()
    expected = find_all_nuclei(with_nuclei(), "DAPI", 16)
    left = tmp_path / "cells.nuclei.parquet.part"
    shutil.copytree(left, tmp_path / "kept")
    assert_same(find_all_nuclei(screen, "DAPI", 16, file=file), expected)
    assert screen.pixels.reads == [4]
    (tmp_path / "kept").rename(left)  # as a process leaves it that is killed before it has tidied up
    assert_same(find_all_nuclei(with_nuclei(), "DAPI", 16, file=file), expected)


def test_pixels_that_are_not_numbers_are_a_bad_image():
    screen = with_nuclei()
    screen.pixels.images[3, 1, 5, 5] = np.nan
    message = r"field 3 \(experiment E1, plate B, well B03, site 1\) has pixels that are not numbers"
    with pytest.raises(BadImageError, match=message) as caught:
        find_all_nuclei(screen, "DAPI", 16)
    assert caught.value.row == 3
    assert find_all_nuclei(screen, "DAPI", 16, on_bad_image="skip").fields.tolist() == [0, 1, 2, 4, 5]


def test_nuclei_are_found_where_they_cannot_be_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "nuclei.parquet"
    with pytest.raises(ConfigError, match=str(place)):
        find_all_nuclei(with_nuclei(), "DAPI", 16, file=place)
    found = find_all_nuclei(with_nuclei(), "DAPI", 16, file=place, keep="if possible")
    assert_same(found, find_all_nuclei(with_nuclei(), "DAPI", 16))
    assert "searched without being kept" in caplog.text


def test_the_cells_of_a_bad_field_do_not_hide_those_of_the_others(tmp_path):
    images = np.random.default_rng(0).integers(0, 60_000, (2, 2, 30, 40), dtype=np.uint16)
    rows = [(0, 15.0, 15.0)] * 150 + [(1, 15.0, 20.0)]
    screen, nuclei = screen_of(images, bad=(0,)), nuclei_of(rows, [0, 1])
    cells = load_packed(pack_cells(screen, nuclei, tmp_path / "cells", 8, workers=0, on_bad_image="skip"))
    np.testing.assert_array_equal(cells.pixels.read(np.array([150]))[0], images[1, :, 11:19, 16:24])


# --- tables of nuclei -------------------------------------------------------------------------------------------------


def write_supplement(folder: Path, images: list[list[object]], objects: list[list[object]]) -> None:
    for name, rows in (("Image", images), ("Object", objects)):
        text = "\n".join("\t".join(map(str, row)) for row in rows)
        (folder / f"supplement_{name}.txt").write_text(text + "\n")


def image_row(table: int, number: int, file: str, plate: str, well: str) -> list[object]:
    return [table, number, file, *["-"] * 7, plate, well, *["-"] * 23, 1, "-"]


def object_row(table: int, number: int, x: object, y: object, area: object = 900) -> list[object]:
    return [table, number, 1, x, y, 0, 0, area, 0.5]


SUPPLEMENT = (
    [
        image_row(1, 7, "Week1_150607_B01_s1_wABC.tif", "P1", "B01"),
        image_row(2, 7, "B02_s1_wABC.tif", "P2", "B02"),
        image_row(2, 8, "B00_s1_wABC.tif", "P9", "B00"),
    ],
    [object_row(2, 7, 20.25, 15), object_row(1, 7, 9, 8), object_row(2, 8, 1, 1), object_row(2, 7, 11, 12)],
)


def test_published_nuclei(fields, tmp_path):
    write_supplement(tmp_path, *SUPPLEMENT)
    listed, nuclei = read_nuclei(tmp_path)
    assert listed.to_numpy().tolist() == [["P1", "B01", "1"], ["P2", "B02", "1"], ["P9", "B00", "1"]]
    expected = [[1, 20.25, 15, 900, 0], [0, 9, 8, 900, 1], [2, 1, 1, 900, 2], [1, 11, 12, 900, 3]]
    assert nuclei.to_numpy().tolist() == expected  # the last one is the row of the table
    placed = place_nuclei(fields[0], listed, nuclei, subset=True)  # the screen has no plate P9
    assert placed.table.to_numpy().tolist() == [[2, 20.25, 15, 900, 0], [1, 9, 8, 900, 1], [2, 11, 12, 900, 3]]
    assert placed.fields.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("images", "objects", "message"),
    [
        ([*SUPPLEMENT[0], SUPPLEMENT[0][0]], SUPPLEMENT[1], "lists plate P1, well B01, site 1 twice"),
        (SUPPLEMENT[0], [*SUPPLEMENT[1], object_row(5, 5, 1, 1)], "1 of 5 nuclei .* table 5, image 5"),
        (SUPPLEMENT[0], [object_row(1, 7, "nan", 3)], r"nucleus 0 \(from 0\).* centre \(nan, 3\)"),
        ([image_row(1, 7, "B01.tif", "P1", "B01")], SUPPLEMENT[1], "'B01.tif' .* does not say its site"),
        ([row[:9] for row in SUPPLEMENT[0]], SUPPLEMENT[1], "cannot be read"),
    ],
)
def test_damaged_tables_of_nuclei(tmp_path, images, objects, message):
    write_supplement(tmp_path, images, objects)
    with pytest.raises(DataError, match=message):
        read_nuclei(tmp_path)


def test_missing_tables_of_nuclei(tmp_path):
    with pytest.raises(DataError, match=r"no table '.*supplement_Image\.txt'"):
        read_nuclei(tmp_path)


def test_nuclei_that_fit_no_field(fields):
    listed = pd.DataFrame({"plate": ["P7"], "well": ["B00"], "site": ["1"]})
    nuclei = pd.DataFrame({"field": [0], "x": [1.0], "y": [1.0], "area": [1.0]})
    for subset in (False, True):
        with pytest.raises(DataError, match=r"1 of 1 .*4 fields.*plate P7, well B00, site 1; .*P1, P2"):
            place_nuclei(fields[0], listed, nuclei, subset=subset)


def test_names_that_differ_lose_no_cells(fields, tmp_path, caplog):
    """Wells A1, A2, A03 against A01 …: matched; and where a name really differs, that is refused, not passed over."""
    screen, nuclei = fields
    save_nuclei(screen, nuclei, tmp_path / "nuclei.parquet")
    table = pd.read_parquet(tmp_path / "nuclei.parquet")
    expected = place_nuclei(screen, *read_nuclei_table(tmp_path / "nuclei.parquet"))
    rewritten = table.assign(
        well=table["well"].str.replace("0", "").str.lower().where(table["well"] != "B00", "B00"),
        plate=table["plate"] + " ",
        site=table["site"].astype(float),
    )
    for name, options in (("a.csv", {}), ("b.csv", {"sep": ";", "decimal": ","}), ("c.tsv", {"sep": "\t"})):
        rewritten.to_csv(tmp_path / name, index=False, **options)
        again = place_nuclei(screen, *read_nuclei_table(tmp_path / name))
        np.testing.assert_allclose(again.table.to_numpy(), expected.table.to_numpy())
        np.testing.assert_array_equal(again.fields, expected.fields)
    table[table["plate"] == table["plate"].iloc[0]].to_csv(tmp_path / "some.csv", index=False)
    assert len(place_nuclei(screen, *read_nuclei_table(tmp_path / "some.csv")).fields) < len(expected.fields)
    assert "fields of the screen have no partner" in caplog.text
    table.replace({"plate": {table["plate"].iloc[0]: "P77"}}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(DataError, match=r"no plate 'P77' there.*P1, P2") as caught:
        place_nuclei(screen, *read_nuclei_table(tmp_path / "other.csv"))
    assert caught.value.advice == "left_over"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",B01,1,3,4", r"row 3 of 'n\.csv' has no plate"),
        ("P1,NA,1,3,4", r"row 3 of 'n\.csv' has no well"),
        ("P1,B01,1,3,x", r"row 3 of 'n\.csv' says 'x' for 'y'"),
        ("P1,B01,1,,4", r"row 3 of 'n\.csv' has only one"),
        ("P1,B01,1,3", "row 3 has 4 values"),
    ],
)
def test_a_faulty_table_of_nuclei_says_where(tmp_path, row, message):
    (tmp_path / "n.csv").write_text(f"plate,well,site,x,y\nP1,B01,1,3,4\n{row}\n")
    with pytest.raises(DataError, match=message):
        read_nuclei_table(tmp_path / "n.csv")
    (tmp_path / "n.csv").write_text("plate,well,x,y\nP1,B01,3,4\n")
    with pytest.raises(DataError, match="no column 'site'; it has: plate, well, x, y"):
        read_nuclei_table(tmp_path / "n.csv")


def test_saved_nuclei_are_read_again(fields, tmp_path):
    screen, nuclei = fields
    save_nuclei(screen, nuclei, tmp_path / "nuclei.parquet")
    again = place_nuclei(screen, *read_nuclei_table(tmp_path / "nuclei.parquet"))
    expected = nuclei.table.sort_values("image", kind="stable")[["image", "x", "y", "area"]].to_numpy()
    np.testing.assert_allclose(again.table[["image", "x", "y", "area"]].to_numpy(), expected)
    np.testing.assert_array_equal(again.fields, nuclei.fields)  # also the field without nuclei


def test_wells_that_are_written_in_another_way_are_the_same_wells(tmp_path):
    n = 9
    table = pd.DataFrame({"experiment": "E1", "plate": "12", "well": [f"A{i + 1:02d}" for i in range(n)], "site": "1"})
    table = table.assign(cell_type="", label=0, split="", control="")
    screen = make_screen(table, Arrays(np.zeros((n, 1, 20, 20)), ("DAPI",)), ["one"])
    names = ["A1", "A2", "A03", "a4", "A005", "r01c06", "A07 ", "A8", "A9"]
    listed = pd.DataFrame({"plate": [12.0] * n, "well": names, "site": 1, "x": 10.5, "y": 9})
    for file in (tmp_path / "nuclei.csv", tmp_path / "nuclei.parquet"):
        listed.to_csv(file, index=False) if file.suffix == ".csv" else listed.to_parquet(file)
        placed = place_nuclei(screen, *read_nuclei_table(file))
        assert placed.fields.tolist() == placed.table["image"].tolist() == list(range(n))


def test_fields_without_a_partner_on_both_sides_are_refused(fields):
    listed = pd.DataFrame({"plate": ["P1", "P9"], "well": ["B00", "B00"], "site": [1, 1]})
    nuclei = pd.DataFrame({"field": [0, 1], "x": [1.0, 2.0], "y": [1.0, 2.0], "area": [1.0, 1.0]})
    with pytest.raises(DataError, match=r"1 of 2.*plate P9"):
        place_nuclei(fields[0], listed, nuclei)
    placed = place_nuclei(fields[0], listed, nuclei, subset=True)
    assert placed.table["x"].tolist() == [1.0]
    assert placed.fields.tolist() == [0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    """A lab's own screen: one file a channel, 16 bit."""
    rng = np.random.default_rng(4)
    rows = []
    for number, centres in enumerate(([[30, 30], [50, 70]], [[40, 50]], [])):
        dna = 5000 * blobs((80, 100), np.array(centres).reshape(-1, 2), 9, np.ones(len(centres)))
        for name, image in (("dna", dna), ("actin", dna[::-1])):
            pixels = np.clip(image + rng.normal(500, 10, image.shape), 0, None).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / f"{number}_{name}.tif")
        rows.append(
            {
                "run": "r1",
                "barcode": "A7",
                "well": f"B{number}",
                "site": 1,
                "dna_file": f"{number}_dna.tif",
                "actin_file": f"{number}_actin.tif",
                "label": "x",
            }
        )
    pd.DataFrame(rows).to_csv(tmp_path / "screen.csv", index=False)
    return tmp_path / "screen.csv"


def arguments(manifest: Path, *more: str) -> list[str]:
    options = ("image.DAPI=dna_file", "image.actin=actin_file", "columns.experiment=run", "columns.plate=barcode")
    settings = [word for option in options for word in ("--set", option)]
    return [
        str(manifest),
        str(manifest.parent / "cells"),
        "--size",
        "24",
        "--diameter",
        "18",
        "--workers",
        "0",
        *settings,
        *more,
    ]


def test_the_command_on_a_manifest(manifest, capsys):
    main(arguments(manifest))
    assert "holds 3 cells of 3 fields" in capsys.readouterr().out
    cells = load_packed(manifest.parent / "cells")
    assert cells.table["well"].tolist() == ["B0", "B0", "B01"]
    assert cells.pixels.channels == ("DAPI", "actin")
    dna = np.asarray(Image.open(manifest.parent / "1_dna.tif"))
    np.testing.assert_array_equal(cells.pixels.read(np.array([2]))[0, 0], dna[28:52, 38:62])
    assert pd.read_csv(manifest.parent / "cells.fields.csv")["cells"].tolist() == [2, 1, 0]
    # The nuclei that were found can be given, and corrected by hand.
    table = pd.read_parquet(manifest.parent / "cells.nuclei.parquet")
    table.dropna().iloc[:1].to_csv(manifest.parent / "mine.csv", index=False)
    again = arguments(manifest, "--nuclei", str(manifest.parent / "mine.csv"))
    again[1] = str(manifest.parent / "mine")
    main(again)
    assert len(load_packed(manifest.parent / "mine")) == 1


def test_the_command_says_in_one_line_what_is_wrong(manifest):
    for wrong, message in ((["--channel", "RNA"], "no channel 'RNA'"), (["--nuclei", "none.csv"], "none.csv")):
        with pytest.raises(SystemExit) as caught:
            main(arguments(manifest, *wrong))
        assert message in str(caught.value.code)
        assert "\n" not in str(caught.value.code)
    assert not (manifest.parent / "cells").exists()


def test_the_command_after_ctrl_c(manifest, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "find_nuclei", interrupt)
        with pytest.raises(SystemExit) as caught:
            main(arguments(manifest))
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: a second call goes on where this one stopped"
    assert not (manifest.parent / "cells").exists()
    main(arguments(manifest))
    assert len(load_packed(manifest.parent / "cells")) == 3


def test_the_command_names_its_own_options(manifest):
    (manifest.parent / "1_dna.tif").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"error: image '.*1_dna\.tif' cannot be read .*or give --on-bad-image skip$"):
        main(arguments(manifest))
    main(arguments(manifest, "--on-bad-image", "skip"))
    assert len(load_packed(manifest.parent / "cells")) == 2
    (manifest.parent / "1_dna.tif").unlink()
    main(arguments(manifest, "--on-bad-image", "skip"))  # the reader of the manifest does not look for it either


def test_the_command_looks_at_its_place_before_it_searches(manifest, monkeypatch):
    def searched(*arguments, **options):
        raise AssertionError("searched")

    monkeypatch.setattr(search, "find_nuclei", searched)
    (manifest.parent / "folder").mkdir()
    for place, message in (
        ("screen.csv/out", "cannot write '.*screen.csv/out' .*choose another place"),
        ("folder", "'.*folder' is there already"),
    ):
        words = arguments(manifest)
        words[1] = str(manifest.parent / place)
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.match(f"error: {message}")
        assert "\n" not in str(caught.value.code)


@pytest.mark.parametrize("name", ["cells.nuclei.parquet", "cells.fields.csv"])
def test_what_stands_beside_the_store_and_cannot_be_written(manifest, name):
    (manifest.parent / name).mkdir()
    with pytest.raises(SystemExit, match=r"error: cannot write '.*cells.*choose another place") as caught:
        main(arguments(manifest))
    assert "\n" not in str(caught.value.code)


def test_a_second_command_searches_no_nuclei(manifest, monkeypatch):
    main(arguments(manifest))
    cells = load_packed(manifest.parent / "cells")
    shutil.rmtree(manifest.parent / "cells")

    def searched(*arguments, **options):
        raise AssertionError("searched")

    monkeypatch.setattr(search, "find_nuclei", searched)
    main(arguments(manifest))
    again = load_packed(manifest.parent / "cells")
    np.testing.assert_array_equal(again.pixels.read(np.arange(3)), cells.pixels.read(np.arange(3)))
    shutil.rmtree(manifest.parent / "cells")
    with pytest.raises(AssertionError, match="searched"):
        main(arguments(manifest, "--diameter", "20"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_store_of_other_cells_is_refused_before_anything_is_searched(manifest, monkeypatch):
    main(arguments(manifest))
    before = content(manifest.parent)

    def searched(*arguments, **options):
        raise AssertionError("searched")

    monkeypatch.setattr(search, "find_nuclei", searched)
    table = pd.read_csv(manifest)
    (manifest.parent / "fewer").mkdir()
    paths = {c: [str(manifest.parent / f) for f in table[c]] for c in ("dna_file", "actin_file")}
    table.assign(**paths).iloc[:2].to_csv(manifest.parent / "fewer" / "screen.csv", index=False)
    before |= content(manifest.parent)
    fewer = arguments(manifest)
    fewer[0] = str(manifest.parent / "fewer" / "screen.csv")
    larger = arguments(manifest, "--size", "26")
    for words in (fewer, larger, arguments(manifest, "--diameter", "20")):
        with pytest.raises(SystemExit, match=r"error: '.*cells' is a store of other images .*choose another place"):
            main(words)
        assert content(manifest.parent) == before
    (manifest.parent / "cells.nuclei.parquet").unlink()  # then the list of fields tells
    with pytest.raises(SystemExit, match=r"error: '.*cells' is a store of other images"):
        main(fewer)
    assert not (manifest.parent / "cells.nuclei.parquet").exists()


def test_crops_that_are_too_large_are_refused_before_anything_is_searched(manifest, monkeypatch):
    monkeypatch.setattr(search, "find_nuclei", None)
    with pytest.raises(SystemExit, match="error: crops of 81 pixels cannot be cut out of images of 80 x 100"):
        main(arguments(manifest, "--size", "81"))
    assert not list(manifest.parent.glob("cells*"))


def test_the_command_names_its_option_where_the_stain_has_another_name(manifest):
    options = [word.replace("image.DAPI=", "image.blue=") for word in arguments(manifest)]
    with pytest.raises(SystemExit, match=r"no channel 'DAPI'; .*blue.*actin.* with --channel$"):
        main(options)
    main([*options, "--channel", "blue"])


def test_options_that_the_command_sets_are_refused(manifest):
    with pytest.raises(SystemExit, match="error: option 'path' cannot be set to 'x': the source names it"):
        main(arguments(manifest, "--set", "path=x"))


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--channel" in capsys.readouterr().out


# --- real images ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_image(real_data):
    """Field B02, site 2 of plate Week2_24381: DAPI, actin, tubulin, (3, 1024, 1280) uint16."""
    files = [next((real_data / "bbbc021_fields").glob(f"*_s2_w{wave}*.tif")) for wave in (1, 4, 2)]
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_the_named_crop_of_a_real_field(real_data, real_image):
    (file,) = (real_data / "bbbc021_fields").glob("Week2_180607_B02_s2_w1*_84.npy")
    expected = np.load(file)
    (crop,) = cut_crops(real_image, np.array([[599, 1173]]), 68)
    assert crop.dtype == expected.dtype == np.uint16
    np.testing.assert_array_equal(crop.transpose(1, 2, 0), expected)


def test_nuclei_of_a_real_field(real_image):
    centres, areas = find_nuclei(real_image[0])
    assert 130 < len(centres) < 190  # counted by eye on the outlines: about 160
    assert 800 < np.median(areas) < 1500
    assert areas.min() > 150
    nearest = np.linalg.norm(centres - [599, 1173], axis=1).min()
    assert nearest < 15  # the nucleus that the published crop was cut around
    # Bright nuclei cover what the outlines say, and little else is bright.
    labelled = areas.sum() / real_image[0].size
    assert (real_image[0] > 2000).mean() < labelled < (real_image[0] > 900).mean() * 1.5
    inside = crops_inside(centres, (1024, 1280), 68)
    crops = cut_crops(real_image, centres[inside], 68)
    for crop, (y, x) in zip(crops, np.rint(centres[inside]).astype(int), strict=True):
        np.testing.assert_array_equal(crop, real_image[:, y - 34 : y + 34, x - 34 : x + 34])
