"""Image files as Pixels: every layout against the array that was written, and every way a file can be wrong."""

import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from biomass.errors import BadImageError, ConfigError, DataError
from biomass.pixels import names as module
from biomass.pixels.files import open_files
from biomass.pixels.names import FileNames, check_present, check_unique, missing_files

H, W = 7, 5


def draw(channels: int, dtype: type, n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (n, channels, H, W), dtype=dtype, endpoint=True)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W, C) as a PNG by the specification, since Pillow cannot write several channels of 16 bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w, c = image.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    lines = b"".join(b"\0" + line.astype(line.dtype.newbyteorder(">")).tobytes() for line in image)
    header = struct.pack(">IIBBBBB", w, h, 8 * image.itemsize, color, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def hwc(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def write_tiff_pages(path: Path, image: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for page in image:
            tiff.write(page, photometric="minisblack", contiguous=False, metadata=None)


WRITERS = {
    "png": lambda p, x: write_png(p, hwc(x)),
    "tif": lambda p, x: tifffile.imwrite(p, x, photometric="minisblack"),
    "TIFF": write_tiff_pages,
    "npy": lambda p, x: np.save(p.open("wb"), x),
}


def write_all(folder: Path, images: np.ndarray, ending: str) -> list[str]:
    names = [f"{i}.{ending}" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        WRITERS[ending](folder / name, image)
    return names


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("ending", "channels"), [(e, c) for e in WRITERS for c in (1, 2, 3, 4, 6) if e != "png" or c < 5]
)
def test_reads_what_was_written(tmp_path: Path, ending: str, channels: int, dtype: type) -> None:
    images = draw(channels, dtype)
    names = [f"stain {i}" for i in range(channels)]
    pixels = open_files(tmp_path, [write_all(tmp_path, images, ending)], names)
    rows = np.array([2, 0, 2])
    read = pixels.read(rows)
    assert read.dtype == dtype
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, images[rows])
    assert pixels.channels == tuple(names)
    assert pixels.size == (H, W)
    assert pixels.dtype == dtype
    assert len(pixels) == 3
    assert pixels.name(1) == str(tmp_path / f"1.{ending}")
    assert pixels.read(np.empty(0, np.int64)).shape == (0, channels, H, W)


def test_survives_pickling(tmp_path: Path) -> None:
    images = draw(3, np.uint8)
    pixels = pickle.loads(pickle.dumps(open_files(tmp_path, [write_all(tmp_path, images, "png")])))
    np.testing.assert_array_equal(pixels.read(np.arange(3)), images)


@pytest.mark.parametrize("ending", list(WRITERS))
def test_one_file_a_channel(tmp_path: Path, ending: str) -> None:
    images = draw(3, np.uint16)
    columns = []
    for c, stain in enumerate(("dapi", "tubulin", "actin")):
        (tmp_path / stain).mkdir()
        columns.append([f"{stain}/{n}" for n in write_all(tmp_path / stain, images[:, c : c + 1], ending)])
    pixels = open_files(tmp_path, columns, ["dapi", "tubulin", "actin"])
    np.testing.assert_array_equal(pixels.read(np.array([1, 0])), images[[1, 0]])
    assert pixels.name(1) == str(tmp_path / f"dapi/1.{ending}")
    columns[2][1] = ""
    pixels = open_files(tmp_path, columns)
    assert pixels.channels == ("channel_0", "channel_1", "channel_2")
    with pytest.raises(BadImageError, match=r"row 1 .* channel 'channel_2'") as caught:
        pixels.read(np.array([0, 1]))
    assert caught.value.row == 1


@pytest.mark.parametrize(("shape", "axes"), [((H, W, 3), "HWC"), ((3, H, W), "CHW"), ((H, W), "HW"), ((H, W, 9), None)])
def test_finds_the_channels(tmp_path: Path, shape: tuple[int, ...], axes: str | None) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", image)
    if axes is None:  # nine channels: only their number can tell
        assert open_files(tmp_path, [["a.npy"]]).axes == "CHW"
        assert open_files(tmp_path, [["a.npy"]], list("abcdefghi")).axes == "HWC"
    else:
        pixels = open_files(tmp_path, [["a.npy"]])
        assert pixels.axes == axes
        expected = {"HW": image[None], "CHW": image, "HWC": np.moveaxis(image, -1, 0)}[axes]
        np.testing.assert_array_equal(pixels.read(np.array([0]))[0], expected)


def test_ambiguous_channels(tmp_path: Path) -> None:
    image = np.arange(3 * H * 3, dtype=np.uint8).reshape(3, H, 3)
    np.save(tmp_path / "a.npy", image)
    with pytest.raises(ConfigError, match="3 x 7 x 3 uint8") as caught:
        open_files(tmp_path, [["a.npy"]], "xyz")
    assert caught.value.advice == "axes"
    np.testing.assert_array_equal(open_files(tmp_path, [["a.npy"]], "xyz", "CHW").read(np.array([0]))[0], image)
    with pytest.raises(ConfigError, match="axes 'CWH' is unknown"):
        open_files(tmp_path, [["a.npy"]], "xyz", "CWH")


def test_npy_of_another_byte_and_index_order(tmp_path: Path) -> None:
    images = draw(3, np.uint16)
    np.save(tmp_path / "0.npy", images[0])
    np.save(tmp_path / "1.npy", images[1].astype(">u2"))
    np.save(tmp_path / "2.npy", np.asfortranarray(images[2]))
    np.testing.assert_array_equal(open_files(tmp_path, [[f"{i}.npy" for i in range(3)]]).read(np.arange(3)), images)


def test_tiff_flavours(tmp_path: Path) -> None:
    gray, rgb = draw(1, np.uint16)[0], draw(3, np.uint8)[0]
    tifffile.imwrite(tmp_path / "big.tif", gray[0], byteorder=">")
    Image.fromarray(gray[0]).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "rgb.tif", hwc(rgb), photometric="rgb")
    Image.fromarray(hwc(rgb)).save(tmp_path / "lzw_rgb.tif", compression="tiff_lzw")
    pages = [Image.fromarray(channel) for channel in rgb]
    pages[0].save(tmp_path / "lzw_pages.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    for name, image in (("big", gray), ("lzw", gray), ("rgb", rgb), ("lzw_rgb", rgb), ("lzw_pages", rgb)):
        channels = "abc" if name == "lzw_pages" else None  # nothing in it says what its pages are
        np.testing.assert_array_equal(open_files(tmp_path, [[f"{name}.tif"]], channels).read(np.array([0]))[0], image)


def test_ome_tiff_reads_its_own_file_only(tmp_path: Path) -> None:
    """The metadata of a multi-file OME-TIFF names sister files, whose planes are no channels of this file."""
    images = draw(2, np.uint16, 1)[0]
    planes = "".join(
        f"""<TiffData FirstC="{c}" PlaneCount="1">
        <UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>"""
        for c in range(2)
    )
    for c in range(2):
        ome = f"""<?xml version="1.0"?>
        <OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{c}"><Image ID="Image:0">
        <Pixels DimensionOrder="XYCZT" ID="Pixels:0" Type="uint16" SizeX="{W}" SizeY="{H}" SizeZ="1" SizeC="2"
        SizeT="1">
        <Channel ID="C:0" SamplesPerPixel="1"/><Channel ID="C:1" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>"""
        tifffile.imwrite(tmp_path / f"{c}.ome.tif", images[c], description=ome, metadata=None, photometric="minisblack")
    assert tifffile.imread(tmp_path / "0.ome.tif").shape == (2, H, W)  # what would happen
    pixels = open_files(tmp_path, [["0.ome.tif"], ["1.ome.tif"]])
    np.testing.assert_array_equal(pixels.read(np.array([0]))[0], images)


def test_png_flavours(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).choice(np.array([0, 90, 255], np.uint8), (H, W, 3))
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=27).save(tmp_path / "palette.png")
    Image.fromarray(rgb[..., 0] > 0).save(tmp_path / "mask.png")
    palette, mask = (open_files(tmp_path, [[name]]).read(np.array([0]))[0] for name in ("palette.png", "mask.png"))
    np.testing.assert_array_equal(palette, rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(mask[0], 255 * (rgb[..., 0] > 0))


def bad_image(folder: Path, images: np.ndarray, ending: str, kind: str) -> None:
    """Spoil image 1."""
    path = folder / f"1.{ending}"
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        size = path.stat().st_size * 2 // 3
        if ending.lower() == "tif":  # small ones end with padding
            with tifffile.TiffFile(path) as tiff:
                size = tiff.pages.first.dataoffsets[0] + images[1].nbytes // 2
        path.write_bytes(path.read_bytes()[:size])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        other = {"size": images[1][:, 1:], "channels": images[1][1:], "type": (images[1] // 2).astype(np.uint8)}[kind]
        WRITERS[ending](path, other)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "size", "channels", "type"])
@pytest.mark.parametrize("ending", list(WRITERS))
def test_bad_image(tmp_path: Path, ending: str, kind: str) -> None:
    images = draw(3, np.uint16)
    pixels = open_files(tmp_path, [write_all(tmp_path, images, ending)], "abc")
    bad_image(tmp_path, images, ending, kind)
    with pytest.raises(BadImageError) as caught:
        pixels.read(np.array([2, 0, 1]))
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.row == 1
    message = str(error)
    assert "\n" not in message
    assert str(tmp_path / f"1.{ending}") in message
    assert error.advice == {"size": "sizes", "type": "depths"}.get(kind, "skip")
    expected = {"missing": "is missing", "truncated": "ends too early", "empty": "is empty"}
    assert expected.get(kind, "expected") in message
    if kind in ("size", "channels", "type"):
        assert f"0.{ending}" in message  # the image that it should be like
    np.testing.assert_array_equal(pixels.read(np.array([2, 0])), images[[2, 0]])


def test_learns_from_the_first_good_image(tmp_path: Path) -> None:
    images = draw(3, np.uint8)
    names = write_all(tmp_path, images, "png")
    (tmp_path / names[0]).write_bytes(b"no image")
    pixels = open_files(tmp_path, [names])
    np.testing.assert_array_equal(pixels.read(np.array([1, 2])), images[1:])
    for name in names:
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"0\.png' cannot be read") as caught:
        open_files(tmp_path, [names])
    assert caught.value.advice is None  # to skip all of them is not a remedy


def test_refuses_what_is_no_screen(tmp_path: Path) -> None:
    write_all(tmp_path, draw(3, np.uint8), "png")
    with pytest.raises(BadImageError, match=r"0\.png' is 7 x 5 x 3 uint8, expected .* 4 channel") as caught:
        open_files(tmp_path, [["0.png"]], list("abcd"))
    assert caught.value.advice == "channels"
    with pytest.raises(BadImageError, match=r"expected .* 1 channel"):
        open_files(tmp_path, [["0.png"], ["1.png"]])
    np.save(tmp_path / "float.npy", np.zeros((3, H, W)))
    with pytest.raises(BadImageError, match=r"float\.npy' is of type float64: save it as uint8 or uint16"):
        open_files(tmp_path, [["float.npy"]])
    np.save(tmp_path / "deep.npy", np.zeros((1, 3, H, W), np.uint8))
    with pytest.raises(BadImageError, match=r"deep\.npy' is 1 x 3 x 7 x 5 uint8, expected HW, HWC or CHW"):
        open_files(tmp_path, [["deep.npy"]])
    with pytest.raises(DataError, match=r"'a\.jpg' \(row 1, from 0\) is of an unknown kind.*\.png"):
        open_files(tmp_path, [["0.png", "a.jpg"]])


def test_missing_files_against_asking_for_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [f"{folder}{name}.png" for folder in ("", "a/", "a/b/", "gone/") for name in "pqrstu\n"]
    files.append(str(tmp_path / "a" / "p.png"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    for i in rng.permutation(21)[:12]:
        (tmp_path / files[i]).touch()
    files = [files[i] for i in rng.permutation(len(files))] + [""]
    expected = [i for i, file in enumerate(files) if not file or not (tmp_path / file).exists()]
    assert 8 <= len(expected) < len(files)
    assert missing_files(tmp_path, files).tolist() == expected


def test_check_present(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    check_present(tmp_path, [["a.png", "a.png"]])
    with pytest.raises(DataError, match=r"b\.png' is missing, and 1 more of 3") as caught:
        check_present(tmp_path, [["a.png", "b.png", "c.png"]])
    assert caught.value.advice == "skip"
    with pytest.raises(DataError, match=r"b\.png' is missing, and so are all others \(2\)") as caught:
        check_present(tmp_path, [["b.png", "c.png"]])
    assert caught.value.advice == "image_dir"  # to skip all of them is not a remedy
    with pytest.raises(DataError, match=r"row 1 .* channel 'actin'"):
        check_present(tmp_path, [["a.png", "a.png"], ["a.png", ""]], ["dna", "actin"])


def test_check_unique() -> None:
    labels = np.array(["x", "y", "x"])
    check_unique([["a", "b", ""], ["c", "", ""]], labels)
    with pytest.raises(DataError, match=r"'a' is listed twice, in rows 0 and 2 "):
        check_unique([["a", "b", "a"]], labels)
    with pytest.raises(DataError, match=r"'b' is listed twice, with the labels 'y' and 'x', in rows 1 and 2 "):
        check_unique([["a", "b", "b"]], labels)
    with pytest.raises(DataError, match=r"'c' is listed twice, with the labels 'x' and 'y', in rows 0 and 1 "):
        check_unique([["a", "c"], ["c", "d"]], labels[:2])


def tidy_one_by_one(path: str, folder: Path) -> str:
    """What :func:`biomass.pixels.names.tidy` makes of one path."""
    path = re.sub(r"^(\./)+", "", re.sub(r"/(\./|/)+", "/", path.strip().replace("\\", "/")))
    return path.removeprefix(f"{folder.absolute()}/")


def test_paths_are_tidied_as_one_by_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 3)
    parts = ["a", "b.png", "é", " ", "\\", "/", "//", "/./", "./", ".", "..", str(tmp_path), f"{tmp_path}/", "\u2003"]
    rng = np.random.default_rng(0)
    odd = ["".join(rng.choice(parts, rng.integers(0, 5))) for _ in range(300)]
    plain = [f"P{n // 5}/{n}.png" for n in range(50)] + ["", "-x"]
    paths = [*plain, *odd, *plain]
    found = module.tidy(pa.chunked_array([paths[:70], paths[70:]]), tmp_path)
    assert found.to_pylist() == [tidy_one_by_one(path, tmp_path) for path in paths]
    assert module.tidy(pa.array([None, "a"]), tmp_path).to_pylist() == [None, "a"]


def test_a_column_of_names_gives_back_what_it_was_made_of(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    rng = np.random.default_rng(0)
    texts = ["/".join(rng.choice(["P1", "é", "a b", "", "..", "x.png"], rng.integers(0, 4))) for _ in range(60)]
    texts[3:5] = ["P1/z0.png\x1fP1/z1.png", ""]
    lists = [[one, *texts[:2]] if n % 3 else [] for n, one in enumerate(texts)]
    joined = [module.PLANES.join(one) for one in lists]
    for column, expected in ((texts, texts), (pa.chunked_array([texts[:9], [], texts[9:]]), texts), (lists, joined)):
        names = FileNames.of(column)
        assert len(names) == 60
        assert [names[row] for row in range(60)] == expected == names.arrow().to_pylist()
        assert [names.arrow(*part).to_pylist() for part in ((5, 20), (7, 7))] == [expected[5:20], []]
        rows = rng.integers(0, 60, 100)
        assert names.at(rows).to_pylist() == names.take(rows).arrow().to_pylist() == [expected[row] for row in rows]
        assert names.at(rows, whole=False).to_pylist() == [expected[row].rpartition("/")[2] for row in rows]
        codes, folders = names.folders()
        assert [folders[code] for code in codes] == [one[: one.rfind("/") + 1] for one in expected]
        every, row = module.each_file(names)
        assert every.arrow().to_pylist() == [one for text in expected for one in text.split(module.PLANES)]
        assert row.tolist() == [n for n, text in enumerate(expected) for _ in text.split(module.PLANES)]
    assert [len(FileNames.of([])), *FileNames.of([]).arrow().to_pylist()] == [0]


def test_two_of_the_same_name_are_found_among_names_of_the_same_hash(monkeypatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda part: np.zeros(len(part), np.uint64))
    monkeypatch.setattr(module, "_PIECE", 2)
    check_unique([["a", "b", "", ""], ["c", "d", "", "e"]], np.array(list("xxxx")))
    with pytest.raises(DataError, match=r"'c' is listed twice, in rows 1 and 2 "):
        check_unique([["a", "c", "b"], ["", "", "c"]], np.array(list("xxx")))


def test_names_have_the_same_hash_only_if_they_are_the_same() -> None:
    rng = np.random.default_rng(0)
    names = sorted({"".join(rng.choice(list("ab/\0"), rng.integers(0, 30))) for _ in range(3000)} | {"é", "éa"})
    array = pa.array(["before", *names, *names[::-1]], pa.large_string())[1:]
    hashes = module._hashes(array)
    assert len(np.unique(hashes)) == len(names)
    assert (hashes[: len(names)] == hashes[len(names) :][::-1]).all()
    assert (module._hashes(array[7:9]) == hashes[7:9]).all()
    assert len(module._hashes(array[:0])) == 0


def test_a_file_of_an_unknown_kind_is_named_by_its_row_wherever_it_is(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 2)
    module.check_endings(["a.png", "b.TIF", "", "c.npy", "d.Tiff"])
    with pytest.raises(DataError, match=r"image 'x\.png\.txt' \(row 3, from 0\)"):
        module.check_endings(["a.png", "b.TIF", "", "x.png.txt", "c.jpg"])
