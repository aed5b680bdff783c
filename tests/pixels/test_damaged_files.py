"""Files that are no images: damaged, odd or hostile. Each is one line of its kind, and never ends the process."""

import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from biomass.errors import BAD_IMAGES, BadImageError, RefusedError
from biomass.pixels.decoders import decode
from biomass.pixels.files import FilePixels, open_files

H, W = 23, 17


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(image: np.ndarray, interlaced: bool = False, size: tuple[int, int] | None = None) -> bytes:
    """(H, W, C) as a PNG by the specification; ``size``: what its header says instead."""
    h, w, c = image.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [image[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [image]
    big = image.dtype.newbyteorder(">")
    lines = b"".join(b"\0" + line.astype(big).tobytes() for part in parts if part.size for line in part)
    height, width = size or (h, w)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    header = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, color, 0, 0, int(interlaced))
    parts_of_file = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts_of_file)


def npy(array: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_says(shape: str, descr: str = "'<u2'", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def tiff(image: np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


def by_pillow(image: np.ndarray, compression: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "TIFF", compression=compression)
    return stream.getvalue()


def draw(channels: int = 1, dtype: type = np.uint16) -> np.ndarray:
    """(H, W, C), as smooth as images are."""
    y, x, c = np.mgrid[:H, :W, :channels]
    return ((37 * y + 91 * x + 50 * c + np.random.default_rng(0).integers(0, 9, y.shape)) % 256).astype(dtype)


GRAY = draw()[..., 0]
FORMATS = {
    **{f"rgb16{'i' * i}.png": png(draw(3), bool(i)) for i in (0, 1)},
    "rgba16.png": png(draw(4)),
    "la16.png": png(draw(2)),
    "gray16.png": png(draw()),
    "rgb8.png": png(draw(3, np.uint8)),
    "none.tif": tiff(GRAY),
    "deflate.tif": tiff(GRAY, compression="zlib"),
    "tiled.tif": tiff(GRAY, compression="zlib", tile=(16, 16)),
    "big.tif": tiff(GRAY, bigtiff=True),
    "lzw.tif": by_pillow(GRAY, "tiff_lzw"),
    "zstd.tif": by_pillow(GRAY, "zstd"),
    "jpeg.tif": by_pillow(GRAY.astype(np.uint8), "jpeg"),
    "packbits.tif": by_pillow(GRAY.astype(np.uint8), "packbits"),
    "gray.npy": npy(GRAY),
}
VERIFIED = [name for name in FORMATS if name.endswith(".png") or name in ("deflate.tif", "tiled.tif")]
"""Formats that have a checksum of their pixels."""


def as_of_yesterday(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))
    return path


def beside_a_good_one(folder: Path, name: str) -> FilePixels:
    """A good image of a format, and one that is to be spoilt."""
    (folder / f"good.{name}").write_bytes(FORMATS[name])
    return open_files(folder, [[f"good.{name}", f"bad.{name}"]])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_of_every_kind_are_read_bit_for_bit(tmp_path: Path, channels: int, interlaced: bool, dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (H, W, channels), dtype, endpoint=True)
    (tmp_path / "a.png").write_bytes(png(image, interlaced))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").reshape(image.shape), image)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, cut off, put in or taken out."""
    spoilt, place = bytearray(data), int(rng.integers(len(data)))
    match rng.integers(4):
        case 0:
            spoilt[place] ^= 1 << int(rng.integers(8))
        case 1:
            del spoilt[place:]
        case 2:
            spoilt[place:place] = rng.bytes(3)
        case _:
            del spoilt[place : place + 3]
    return bytes(spoilt)


def read_damaged(folder: Path, name: str, cases: int, seed: int = 0) -> Counter[str]:
    """How often a damaged image was refused, the same all the same, or another one."""
    pixels = beside_a_good_one(folder, name)
    true, rng, found = pixels.read(np.array([0])), np.random.default_rng(seed), Counter[str]()
    for _ in range(cases):
        as_of_yesterday(folder / f"bad.{name}", damage(FORMATS[name], rng))
        try:
            same = np.array_equal(pixels.read(np.array([1])), true)
        except BadImageError as error:
            fits = error.kind in BAD_IMAGES and "\n" not in str(error)
            found["refused" if fits else "badly refused"] += 1
        else:
            found["same" if same else "other"] += 1
    return found


def damaged_in_a_process(folder: Path, names: list[str], cases: int) -> dict[str, Counter[str]]:
    """In a process of its own, which may crash; what it prints is returned, what it complains of must be nothing."""
    code = f"import sys; sys.path[:] = {sys.path}; from tests.pixels.test_damaged_files import *; print({{name: "
    code += f"read_damaged(Path({str(folder)!r}), name, {cases}) for name in {names}}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return eval(done.stdout)  # of our own making


def test_damaged_files_never_end_the_process(tmp_path: Path) -> None:
    found = damaged_in_a_process(tmp_path, list(FORMATS), 10)
    assert [name for name in VERIFIED if found[name]["other"]] == []
    assert not any(counts["badly refused"] for counts in found.values())
    assert sum(counts["refused"] for counts in found.values()) > 60


@pytest.mark.slow
def test_thousands_of_damaged_files(tmp_path: Path) -> None:
    found = damaged_in_a_process(tmp_path, list(FORMATS), 1000)
    assert [name for name in VERIFIED if found[name]["other"]] == []


def loop_of_pages() -> bytes:
    data = bytearray(tiff(np.stack([GRAY] * 3), photometric="minisblack"))
    with tifffile.TiffFile(BytesIO(data)) as file:
        first, last = (int(file.pages[i].offset) for i in (0, 2))
    (tags,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * tags, first)
    return bytes(data)


def many_pages(n: int) -> bytes:
    entries = (struct.pack("<HHHIII", 1, 256, 3, 1, 5, 8 + 18 * (i + 1) if i < n - 1 else 0) for i in range(n))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(entries)


def bomb() -> bytes:
    """A TIFF of one small strip that unpacks into 64 MB."""
    packed, data = zlib.compress(bytes(64 << 20)), bytearray(tiff(GRAY, compression="zlib"))
    with tifffile.TiffFile(BytesIO(data)) as file:
        tags = file.pages.first.tags
        for code, value in ((273, len(data)), (279, len(packed))):
            struct.pack_into("<I", data, tags[code].offset + 8, value)
    return bytes(data) + packed


HOSTILE = {
    "a.png 60,000 x 60,000": ("too large", png(draw(1)[:1, :1], size=(60000, 60000))),
    "b.png 4,000 x 4,000": ("damaged", png(draw(1)[:1, :1], size=(4000, 4000))),
    "c.png 0 x 0": ("damaged", png(draw(1)[:1, :1], size=(0, 0))),
    "d.png JPEG": ("wrong type", b"\xff\xd8\xff" + bytes(99)),
    "e.npy 1,000,000": ("too large", npy_says("(1000000, 1000000)")),
    "f.npy 4,294,967,296": ("too large", npy_says("(4294967296, 4294967296)")),
    "g.npy (-1, 9)": ("damaged", npy_says("(-1, 9)", data=bytes(99))),
    "h.npy header": ("damaged", b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000),
    "i.npy never read": ("wrong type", npy(np.array([{}], object))),
    "j.npy structures": ("wrong type", npy(np.zeros(3, [("a", "u1"), ("b", "u2")]))),
    "k.npy 0 x 0": ("wrong shape", npy(np.zeros((0, 0), np.int16))),
    "l.npy NaN": ("wrong type", npy(np.full((H, W), np.nan))),
    "m.npy more than": ("damaged", npy(GRAY) + b"more"),
    "n.tif circle": ("damaged", loop_of_pages()),
    "o.tif 65,536 pages": ("too large", many_pages(70000)),
    "p.tif packed pixels": ("too large", bomb()),
    "q.tif NaN": ("wrong type", tiff(np.full((H, W), np.nan, np.float32))),
    "r.tif values": (
        "too large",
        tiff(
            np.stack([GRAY] * 3), metadata=None, photometric="minisblack", description='{"shape": [900000000, 23, 17]}'
        ),
    ),
    "s.tif ends too early": ("damaged", tiff(GRAY)[:-90]),
    "t.tif empty": ("damaged", b""),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_every_kind_has_its_name_and_remedy(tmp_path: Path, case: str) -> None:
    name, _, said = case.partition(" ")
    kind, data = HOSTILE[case]
    as_of_yesterday(tmp_path / name, data)
    with pytest.raises(BadImageError) as caught:
        open_files(tmp_path, [[name]], ["dna"])
    assert caught.value.kind == kind
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_much_larger_than_the_others_is_not_read(tmp_path: Path) -> None:
    pixels = beside_a_good_one(tmp_path, "gray.npy")
    (tmp_path / "bad.gray.npy").write_bytes(npy_says("(5000, 5000)"))
    with pytest.raises(BadImageError, match="5,000 x 5,000") as caught:
        pixels.read(np.array([1]))
    assert caught.value.kind == "too large"


@pytest.mark.parametrize("what", ["folder", "fifo", "device", "loop", "to nothing", "below a file", "locked"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, what: str) -> None:
    pixels, path = beside_a_good_one(tmp_path, "gray16.png"), tmp_path / "bad.gray16.png"
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "to nothing":
            path.symlink_to("gone")
        case "below a file":
            path.symlink_to("good.gray16.png/x")
        case _:
            path.write_bytes(FORMATS["gray16.png"])
            path.chmod(0)
            if os.access(path, os.R_OK):
                pytest.skip("this user may read everything")
    with pytest.raises(BadImageError) as caught:
        pixels.read(np.array([1]))
    kinds = {"to nothing": "missing", "below a file": "missing", "locked": "no access"}
    assert caught.value.kind == kinds.get(what, "not a file")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_file_that_was_cut_just_now_is_still_being_written(tmp_path: Path, name: str) -> None:
    pixels, path = beside_a_good_one(tmp_path, name), tmp_path / f"bad.{name}"
    path.write_bytes(FORMATS[name][: len(FORMATS[name]) // 3])
    for age, kind in ((0, "still being written"), (99, "damaged")):
        at = path.stat().st_mtime - age
        os.utime(path, (at, at))
        with pytest.raises(BadImageError, match="ends too early") as caught:
            pixels.read(np.array([1]))
        assert caught.value.kind == kind


@pytest.mark.parametrize("name", ["gray16.png", "none.tif", "lzw.tif", "deflate.tif", "gray.npy"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from biomass.pixels import decoders

    path, check = tmp_path / f"a.{name}", decoders._check_start

    def cut(*args: object) -> None:
        check(*args)
        os.truncate(path, 40)

    path.write_bytes(FORMATS[name])
    monkeypatch.setattr(decoders, "_check_start", cut)
    with pytest.raises(RefusedError, match="while it was read") as caught:
        decode(path)
    assert caught.value.kind == "still being written"
