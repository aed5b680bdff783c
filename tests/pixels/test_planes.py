"""Stacks become images: planes, points of time, axes from metadata; other depths and sizes where a setting says so."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from biomass.datasets.manifest import load_manifest
from biomass.errors import BadImageError, BiomassError, ConfigError, DataError
from biomass.pixels.files import open_files
from biomass.pixels.metadata import ome_planes
from biomass.pixels.names import check_present, check_unique, missing_files
from biomass.pixels.packed import packed_pixels
from biomass.pixels.packed_writer import pack
from biomass.pixels.planes import Reading, project, to_16_bit

H, W = 9, 11


def draw(*shape: int, most: int = 4000, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, (*shape, H, W)).astype(dtype)


def read(folder: Path, files: list[Any], *args: Any, **options: Any) -> np.ndarray:
    return open_files(folder, [files], *args, **options).read(np.arange(len(files)))


# --- z planes and points of time --------------------------------------------------------------------------------------


WRITERS = {
    "ome": lambda path, array, axes: tifffile.imwrite(path, array, ome=True, metadata={"axes": axes}),
    "imagej": lambda path, array, axes: tifffile.imwrite(path, array, imagej=True, metadata={"axes": axes}),
    "shaped": lambda path, array, axes: tifffile.imwrite(path, array, metadata={"axes": axes}),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("axes", ["ZYX", "ZCYX", "CZYX", "TZCYX", "TZYX"])
def test_the_axes_of_a_tiff_are_read_from_its_metadata(tmp_path: Path, kind: str, axes: str) -> None:
    if kind == "imagej" and axes == "CZYX":
        pytest.skip("ImageJ has one order of axes, TZCYX")
    lengths = {"T": 2, "Z": 5, "C": 3}
    array = draw(*(lengths[one] for one in axes[:-2]))
    WRITERS[kind](tmp_path / "a.tif", array, axes)
    full = np.moveaxis(array, axes.index("C"), -3) if "C" in axes else np.expand_dims(array, -3)
    planes = full[1] if "T" in axes else full
    time = 1 if "T" in axes else None
    for z, expected in (("max", planes.max(0)), ("middle", planes[2]), (4, planes[4])):
        np.testing.assert_array_equal(read(tmp_path, ["a.tif"], reading=Reading(z=z, time=time))[0], expected)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, ["a.tif"])
    assert caught.value.advice == ("time" if "T" in axes else "z")
    with pytest.raises(BadImageError, match=r"5 z planes .* 5"):
        read(tmp_path, ["a.tif"], reading=Reading(z=5, time=time))


def test_five_planes_are_not_five_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", draw(5), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(BadImageError, match=r"ZHW .*1 channel\(s\), not 5"):
        read(tmp_path, ["z.tif"], list("abcde"))
    array = draw(5)
    tifffile.imwrite(tmp_path / "pages.tif", array, metadata=None, photometric="minisblack")
    with pytest.raises(ConfigError, match=r"5 pages.* CHW, ZHW or THW") as caught:
        read(tmp_path, ["pages.tif"])
    assert caught.value.advice == "axes"
    np.testing.assert_array_equal(read(tmp_path, ["pages.tif"], list("abcde"))[0], array)
    np.testing.assert_array_equal(read(tmp_path, ["pages.tif"], None, "CHW")[0], array)
    np.testing.assert_array_equal(read(tmp_path, ["pages.tif"], None, "ZHW", Reading(z="max"))[0, 0], array.max(0))
    np.testing.assert_array_equal(read(tmp_path, ["pages.tif"], None, "THW", Reading(time=3))[0, 0], array[3])


def test_pages_of_which_the_order_is_told(tmp_path: Path) -> None:
    array = draw(6)
    tifffile.imwrite(tmp_path / "pages.tif", array, metadata=None, photometric="minisblack")
    found = read(tmp_path, ["pages.tif"], ["a", "b"], "ZCHW", Reading(z="max"))[0]
    np.testing.assert_array_equal(found, array.reshape(3, 2, H, W).max(0))
    found = read(tmp_path, ["pages.tif"], ["a", "b"], "CZHW", Reading(z="max"))[0]
    np.testing.assert_array_equal(found, array.reshape(2, 3, H, W).max(1))
    np.save(tmp_path / "a.npy", np.moveaxis(array.reshape(3, 2, H, W), 1, -1))
    found = read(tmp_path, ["a.npy"], ["a", "b"], "ZHWC", Reading(z=1))[0]
    np.testing.assert_array_equal(found, array.reshape(3, 2, H, W)[1])


def test_a_stack_of_which_the_last_pages_are_missing_is_not_projected(tmp_path: Path) -> None:
    for name in "ab":
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as tiff:
            for page in draw(5):
                tiff.write(page, contiguous=False, metadata=None)
    whole = (tmp_path / "b.tif").read_bytes()
    pixels = open_files(tmp_path, [["a.tif", "b.tif"]], None, "ZHW", Reading(z="max"))
    (tmp_path / "b.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImageError, match=r"b\.tif' cannot be read \(it ends too early") as caught:
        pixels.read(np.array([0, 1]))
    assert caught.value.row == 1
    with pytest.raises(BadImageError, match="it ends too early"):
        open_files(tmp_path, [["b.tif"]], None, "ZHW", Reading(z="max"))
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:  # shorter, and whole
        for page in draw(5)[:3]:
            tiff.write(page, contiguous=False, metadata=None)
    np.testing.assert_array_equal(pixels.read(np.array([1]))[0, 0], draw(5)[:3].max(0))


def test_one_file_of_several_of_an_ome_tiff_counts_its_own_planes() -> None:
    """Two files, one a channel, each with three planes; and a page for another file in between."""
    blocks = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="{z}" PlaneCount="1"><UUID FileName="{c}.tif">u{c}</UUID></TiffData>'
        for c in range(2)
        for z in range(3)
    )
    pixels = f'<Pixels DimensionOrder="XYCZT" SizeZ="3" SizeC="2" SizeT="1">{blocks}</Pixels>'
    found = ome_planes(f'<OME UUID="u1">{pixels}</OME>', "renamed.tif", 3)
    assert found is not None
    assert (found.letters, found.shape) == ("Z", (3,))
    assert ome_planes(f'<OME UUID="u1">{pixels}</OME>', "renamed.tif", 4) is None  # a page of which nothing is said
    assert ome_planes("<OME", "a.tif", 1) is None


def test_planes_in_files_of_their_own(tmp_path: Path) -> None:
    array = draw(2, 3, 4)  # images, channels, planes
    lists: list[list[list[str]]] = [[], [], []]
    for i, c, z in np.ndindex(2, 3, 4):
        tifffile.imwrite(tmp_path / f"{i}{c}{z}.tif", array[i, c, z])
    for i, c in np.ndindex(2, 3):
        lists[c].append([f"{i}{c}{z}.tif" for z in range(4)])
    pixels = open_files(tmp_path, lists, list("abc"), reading=Reading(z="max"))
    np.testing.assert_array_equal(pixels.read(np.array([1, 0])), array.max(2)[[1, 0]])
    assert pixels.name(1) == str(tmp_path / "100.tif")
    with pytest.raises(ConfigError, match="4 z planes"):
        open_files(tmp_path, lists, list("abc"))
    lists[2][1] = lists[2][1][:2]  # one stack is shorter
    pixels = open_files(tmp_path, lists, list("abc"), reading=Reading(z=3))
    with pytest.raises(BadImageError, match=r"2 z planes .* 3") as caught:
        pixels.read(np.array([1]))
    assert caught.value.row == 1

    check_unique(lists, np.array(["x", "y"]))
    with pytest.raises(DataError, match=r"'000\.tif' is listed twice.* rows 0 and 1"):
        check_unique([[["000.tif", "1.tif"], ["2.tif", "000.tif"]]], np.array(["x", "x"]))
    check_present(tmp_path, lists)
    (tmp_path / "112.tif").unlink()
    assert missing_files(tmp_path, lists[1]).tolist() == [1]
    with pytest.raises(DataError, match=r"112\.tif' is missing"):
        check_present(tmp_path, lists)
    with pytest.raises(DataError, match=r"'b\.jpg' \(row 1"):
        open_files(tmp_path, [[["000.tif"], ["001.tif", "b.jpg"]]])


def test_the_sharpest_plane_of_every_channel() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 4000, (2, 32, 32)).astype(np.float64)
    blur = np.stack([sharp * (1 - k) + sharp.mean((1, 2), keepdims=True) * k for k in (0.8, 0.0, 0.5, 0.9)])
    planes = blur.astype(np.uint16)  # (Z, C, H, W): plane 1 is the sharpest of channel 0
    planes[:, 1] = planes[[1, 0, 3, 2], 1]  # and plane 0 of channel 1
    np.testing.assert_array_equal(project(planes, "focus"), np.stack([planes[1, 0], planes[0, 1]]))


@pytest.mark.parametrize(
    "wrong", [{"z": "mean"}, {"z": -1}, {"z": True}, {"time": "first"}, {"depths": "8"}, {"sizes": 1}]
)
def test_a_reading_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value!r}") as caught:
        Reading(**wrong)
    assert caught.value.advice == name


def test_a_plane_of_an_image_that_has_one_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", draw())
    assert read(tmp_path, ["a.npy"], reading=Reading(z="max", time=0)).shape == (1, 1, H, W)
    with pytest.raises(ConfigError, match="one z plane, number 0, and number 2"):
        read(tmp_path, ["a.npy"], reading=Reading(z=2))
    with pytest.raises(ConfigError, match="one point of time"):
        read(tmp_path, ["a.npy"], reading=Reading(time=1))


# --- depths, sizes, transparency --------------------------------------------------------------------------------------


def test_other_depths_are_scaled_if_a_setting_says_so(tmp_path: Path) -> None:
    byte, word = draw(most=256), draw(most=65536)
    np.save(tmp_path / "8.npy", byte.astype(np.uint8))
    np.save(tmp_path / "16.npy", word)
    tifffile.imwrite(tmp_path / "12.tif", draw(most=4096), extratags=[(281, "H", 1, 4095, True)])
    np.save(tmp_path / "float.npy", (word / 65535).astype(np.float64))
    files = ["8.npy", "16.npy", "12.tif", "float.npy"]
    found = read(tmp_path, files, reading=Reading(depths="scale"))[:, 0]
    expected = [byte * 257, word, np.rint(draw(most=4096) * (65535 / 4095)), word]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(BadImageError, match=r"16\.npy' is 9 x 11 uint16, expected 9 x 11 uint8") as caught:
        read(tmp_path, files[:2])
    assert caught.value.advice == "depths"
    with pytest.raises(BadImageError, match=r"float\.npy' is of type float64: save") as caught:
        read(tmp_path, ["float.npy"])
    assert caught.value.advice == "depths"
    np.save(tmp_path / "float.npy", word.astype(np.float32))
    with pytest.raises(BadImageError, match="from 0 to 1 can be scaled"):
        read(tmp_path, ["float.npy"], reading=Reading(depths="scale"))


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 14, 16])
def test_the_greatest_number_of_any_depth_becomes_the_greatest(bits: int) -> None:
    values = np.array([0, 1, (1 << bits) - 1], np.uint16)
    assert to_16_bit(values, bits).tolist() == [0, round(65535 / ((1 << bits) - 1)), 65535]


def test_int16_is_taken_where_it_is_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = draw()
    tifffile.imwrite(tmp_path / "a.tif", array.astype(np.int16))
    tifffile.imwrite(tmp_path / "b.tif", array.astype(np.int16), byteorder=">")
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(read(tmp_path, ["a.tif", "b.tif"])[:, 0], [array, array])
    assert sum("int16" in record.message for record in caplog.records) == 1
    np.save(tmp_path / "c.npy", array.astype(np.int16) - 7000)
    with pytest.raises(BadImageError, match=r"c\.npy' is of type int16 and holds negative numbers \(down to -"):
        read(tmp_path, ["c.npy"])


def test_other_sizes_are_cropped_or_padded_if_a_setting_says_so(tmp_path: Path) -> None:
    big, small = np.arange(7 * 8, dtype=np.uint8).reshape(7, 8), np.arange(4 * 9, dtype=np.uint8).reshape(4, 9)
    Image.fromarray(big).save(tmp_path / "big.png")
    tifffile.imwrite(tmp_path / "small.tif", small)
    files = ["big.png", "small.tif"]
    cropped = read(tmp_path, files, reading=Reading(sizes="crop"))[:, 0]
    np.testing.assert_array_equal(cropped, [big[1:5], small[:, :8]])
    padded = read(tmp_path, files, reading=Reading(sizes="pad"))[:, 0]
    assert padded.shape == (2, 7, 9)
    np.testing.assert_array_equal(padded[0, :, :8], big)
    np.testing.assert_array_equal(padded[1, 1:5], small)
    assert padded[1].sum() == small.sum()
    with pytest.raises(BadImageError, match=r"small\.tif' is 4 x 9 uint8, expected 7 x 8") as caught:
        read(tmp_path, files)
    assert caught.value.advice == "sizes"


def test_transparency_is_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgba = np.random.default_rng(0).integers(0, 255, (H, W, 4)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(rgba[..., :2], "LA").save(tmp_path / "la.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "l.png")
    with caplog.at_level(logging.INFO):
        for files in (["rgba.png", "rgb.png", "rgba.tif"], ["rgb.png", "rgba.png"], ["rgba.tif"]):
            for image in read(tmp_path, files):
                np.testing.assert_array_equal(image, rgba[..., :3].transpose(2, 0, 1))
        for files in (["la.png", "l.png"], ["l.png", "la.png"]):
            for image in read(tmp_path, files):
                np.testing.assert_array_equal(image[0], rgba[..., 0])
        assert "alpha" in caplog.text
        caplog.clear()
        assert read(tmp_path, ["rgba.png"], list("abcd")).shape[1] == 4  # four channels are named
        assert "alpha" not in caplog.text
    assert open_files(tmp_path, [["la.png"], ["l.png"]]).read(np.array([0])).shape == (1, 2, H, W)


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "pages.tif", "big.tif"])
@pytest.mark.parametrize("fault", ["empty", "begun", "half", "zeros", "other"])
def test_a_damaged_file_says_its_true_cause(tmp_path: Path, ending: str, fault: str) -> None:
    path, array = tmp_path / f"a.{ending}", draw(3)
    if ending == "png":
        Image.fromarray(array[0]).save(path)
    elif ending == "npy":
        np.save(path, array)
    else:
        tifffile.imwrite(path, array, metadata=None, photometric="minisblack", bigtiff=ending == "big.tif")
    whole = path.read_bytes()
    content, said = {
        "empty": (b"", "it is empty"),
        "begun": (whole[:20], "it ends too early"),
        "half": (whole[: len(whole) // 2], "it ends too early"),
        "zeros": (bytes(len(whole)), "it begins with zeros"),
        "other": (b"this is no image at all", "cannot be read"),
    }[fault]
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=said) as caught:
        open_files(tmp_path, [[path.name]], list("abc") if ending != "png" else None)
    assert "\n" not in str(caught.value)
    assert (fault == "other") == ("still" not in str(caught.value))


# --- what a manifest says of its images; packed stores ----------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A manifest as an index writes it, of images in a folder beside it: two channels, three planes in files each."""
    array = draw(4, 2, 3)
    (tmp_path / "images").mkdir()
    (tmp_path / "screen").mkdir()
    columns: dict[str, list[list[str]]] = {"image_DNA": [], "image_actin": []}
    for i, c, z in np.ndindex(4, 2, 3):
        tifffile.imwrite(tmp_path / "images" / f"{i}{c}{z}.tif", array[i, c, z])
    for i in range(4):
        for c, own in enumerate(columns.values()):
            own.append([f"{i}{c}{z}.tif" for z in range(3)])
    columns["image_actin"][3] = [str(tmp_path / "images" / name) for name in columns["image_actin"][3]]
    about = {
        "image": {"DNA": "image_DNA", "actin": "image_actin"},
        "channels": None,
        "axes": None,
        "image_dir": "../images",
        "z": "max",
        "time": None,
        "depths": "error",
        "sizes": "error",
    }
    names = {"experiment": ["E"] * 4, "plate": ["P"] * 4, "well": ["A01", "A02", "B01", "B02"], "label": list("abab")}
    table = pa.table(names | columns).replace_schema_metadata({b"biomass.images": json.dumps(about).encode()})
    pq.write_table(table, tmp_path / "screen" / "manifest.parquet")
    return tmp_path / "screen", array


def test_a_manifest_says_how_it_is_read(indexed: tuple[Path, np.ndarray]) -> None:
    folder, array = indexed
    pixels = load_manifest("manifest.parquet", root_dir=folder).pixels
    assert pixels.channels == ("DNA", "actin")
    assert pixels.name(2) == str(folder.parent / "images" / "200.tif")
    np.testing.assert_array_equal(pixels.read(np.arange(4)), array.max(2))
    given = load_manifest("manifest.parquet", root_dir=folder, z=1, image={"a": "image_actin"}).pixels
    np.testing.assert_array_equal(given.read(np.arange(4)), array[:, 1:, 1])
    moved = folder.rename(folder.parent / "elsewhere")
    assert len(load_manifest("manifest.parquet", root_dir=moved)) == 4
    with pytest.raises(ConfigError, match="z is 'mean'"):
        load_manifest("manifest.parquet", root_dir=moved, z="mean")


def test_a_packed_store_of_stacks(indexed: tuple[Path, np.ndarray], caplog: pytest.LogCaptureFixture) -> None:
    folder, array = indexed
    screen = load_manifest("manifest.parquet", root_dir=folder)
    out = pack(screen, folder / "manifest.parquet.packed", workers=0)
    found = load_manifest("manifest.parquet", root_dir=folder)
    assert type(found.pixels).__name__ == "PackedPixels"
    np.testing.assert_array_equal(found.pixels.read(np.arange(4)), array.max(2))
    assert found.pixels.name(1) == "100.tif"
    pack(found, out, workers=0)  # the same again
    other = load_manifest("manifest.parquet", root_dir=folder, z="middle")
    assert "z=max, which is not wanted" in caplog.text
    np.testing.assert_array_equal(other.pixels.read(np.arange(4)), array[:, :, 1])
    with pytest.raises(BiomassError, match="store of other images"):
        pack(other, out, workers=0)

    file = folder.parent / "images" / "202.tif"  # the last plane of a stack changes
    tifffile.imwrite(file, array[2, 0, 2] + 5000)
    os.utime(file, ns=(1 << 62, 1 << 62))
    assert pack(load_manifest("manifest.parquet", root_dir=folder, z="max"), out, workers=0) == out
    again = packed_pixels(folder / "manifest.parquet", screen.pixels.files)
    assert again is not None
    np.testing.assert_array_equal(again.read(np.array([2]))[0, 0], array[2, 0, 2] + 5000)
