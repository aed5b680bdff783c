"""Images of every kind: damaged, of the wrong type or shape, or nothing of the kind."""

import io
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.cases import CANARY, Prepare, Trial
from tests.torture.damage import damaged

H, W = 18, 22


def _pixels(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.integers(0, 250 if dtype == "u1" else 60000, shape).astype(dtype)


def _pillow(mode: str, form: str, **options: Any) -> bytes:
    from PIL import Image

    rgb = Image.fromarray(_pixels((H, W, 3), "u1"), "RGB")
    image = Image.fromarray(_pixels((H, W), "u2")) if mode == "I;16" else rgb.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(array: np.ndarray, color: int = 2) -> bytes:
    """A 16-bit PNG of several channels (H, W, C), which Pillow does not write."""
    h, w = array.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


WHOLE: dict[str, Callable[[], bytes]] = {
    "gray8.png": lambda: _pillow("L", "PNG"),
    "gray16.png": lambda: _pillow("I;16", "PNG"),
    "rgb8.png": lambda: _pillow("RGB", "PNG"),
    "rgb16.png": lambda: png(_pixels((H, W, 3), "u2")),
    "rgba16.png": lambda: png(_pixels((H, W, 4), "u2"), 6),
    "palette.png": lambda: _pillow("P", "PNG"),
    "bits.png": lambda: _pillow("1", "PNG"),
    "plain8.tif": lambda: _tiff(_pixels((H, W), "u1")),
    "plain16.tif": lambda: _tiff(_pixels((H, W), "u2")),
    "rgb8.tif": lambda: _tiff(_pixels((H, W, 3), "u1"), photometric="rgb"),
    "pages.tif": lambda: _tiff(_pixels((3, H, W), "u2"), photometric="minisblack"),
    "bigtiff.tif": lambda: _tiff(_pixels((3, H, W), "u2"), photometric="minisblack", bigtiff=True),
    "big_endian.tif": lambda: _tiff(_pixels((H, W), ">u2"), byteorder=">"),
    "lzw.tif": lambda: _pillow("L", "TIFF", compression="tiff_lzw"),
    "deflate.tif": lambda: _pillow("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "deflate16.tif": lambda: _pillow("I;16", "TIFF", compression="tiff_adobe_deflate"),
    "packbits.tif": lambda: _pillow("L", "TIFF", compression="packbits"),
    "jpeg.tif": lambda: _pillow("RGB", "TIFF", compression="jpeg"),
    "group4.tif": lambda: _pillow("1", "TIFF", compression="group4"),
    "u8.npy": lambda: _npy(_pixels((2, H, W), "u1")),
    "u16.npy": lambda: _npy(_pixels((2, H, W), "u2")),
    "last.npy": lambda: _npy(np.asfortranarray(_pixels((H, W, 2), "u2"))),
}
"""Images of every kind that the package reads, whole."""

CHECKED = (".png", "deflate.tif", "deflate16.tif")
"""What has checksums over its pixels: whatever is read of it is as it was."""


def read(folder: Path, names: list[str]) -> np.ndarray:
    """Learn the layout from the first file, and read all."""
    from biomass.pixels.files import open_files

    return open_files(folder, [names]).read(np.arange(len(names)))


def of_kind(name: str) -> Prepare:
    """A case of one kind of image, damaged: behind a whole one of its kind, or on its own."""

    def prepare(rng: random.Random, folder: Path, kit: Path) -> Trial:
        whole = WHOLE[name]()
        how, data = damaged(rng, whole)
        bad = f"bad{Path(name).suffix}"
        (folder / name).write_bytes(whole)
        (folder / bad).write_bytes(data)
        names = [bad] if rng.random() < 0.3 else [name, bad]

        def check(found: np.ndarray) -> str | None:
            reference = read(folder, [name])[0]
            if found[-1].shape == reference.shape and np.array_equal(found[-1], reference):
                return None
            if name.endswith(CHECKED):
                return f"{name}, {how}: other pixels than before, and no word"
            theirs = independent(folder / bad)
            if theirs is not None and sorted(theirs.ravel().tolist()) == sorted(found[-1].ravel().tolist()):
                return None  # they are what the file says: nothing in it tells that it was changed
            return f"{name}, {how}: pixels that are not those of the file"

        return Trial(f"read {names}, {bad} is {name} with {how}", lambda: read(folder, names), check)

    return prepare


def independent(file: Path) -> np.ndarray | None:
    """What another reader than the package's makes of a file; None where it makes nothing."""
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        import tifffile

        try:
            return tifffile.imread(file, is_ome=False)
        except Exception:
            from PIL import Image, ImageSequence

            with Image.open(file) as image:
                return np.squeeze(np.stack([np.asarray(frame) for frame in ImageSequence.Iterator(image)]))
    except Exception:
        return None


class Touch:
    """A pickle of it makes the canary's file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (self.file,)


def _header(shape: tuple[int, ...], descr: str) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _huge_png(side: int, color: int, bits: int) -> bytes:
    whole = bytearray(png(_pixels((H, W, 3), "u2")))
    whole[16:26] = struct.pack(">IIBB", side, side, bits, color)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


def _odd(rng: random.Random, folder: Path) -> tuple[str, bytes | None]:
    """A file that is no usual image, and must be refused; None where it is made on the spot."""
    nan = np.full((H, W), np.nan, "f4")
    makers: dict[str, Callable[[], bytes | None]] = {
        "objects.npy": lambda: _npy(np.array([Touch(folder / CANARY)], object)),
        "objects_by_name.npy": lambda: _header((1,), "'|O'") + pickle.dumps(np.array([Touch(folder / CANARY)], object)),
        "pickle.npy": lambda: pickle.dumps(Touch(folder / CANARY)),
        "huge.npy": lambda: _header((1 << rng.randint(30, 62), H, W), "'<u2'") + bytes(100),
        "negative.npy": lambda: _header((-1, H, W), "'<u2'") + bytes(2 * H * W),
        "structured.npy": lambda: _npy(np.zeros((H, W), [("a", "u2"), ("b", "u2")])),
        "text.npy": lambda: _npy(np.full((H, W), "ab")),
        "code.npy": lambda: _header((H, W), f"__import__('os').mkdir('{folder / CANARY}')"),
        "nan.npy": lambda: _npy(nan),
        "complex.npy": lambda: _npy(nan.astype("c8")),
        "none.npy": lambda: _npy(np.zeros((0, H, W), "u2")),
        "one.npy": lambda: _npy(np.zeros((1, 1), "u2")),
        "scalar.npy": lambda: _npy(np.uint16(3)),
        "many.npy": lambda: _npy(np.zeros((2, 2, 2, 2, 2, 2), "u2")),
        "nan.tif": lambda: _tiff(nan),
        "one.tif": lambda: _tiff(np.zeros((1, 1), "u2")),
        "double.tif": lambda: _tiff(nan.astype("f8")),
        "signed.tif": lambda: _tiff(np.full((H, W), -5, "i2")),
        "wide.tif": lambda: _tiff(np.zeros((H, W), "u4")),
        "one.png": lambda: _pillow("L", "PNG")[:0] + png(np.zeros((1, 1, 3), "u2")),
        "huge.png": lambda: _huge_png(rng.choice((70_000, 1 << 20, (1 << 31) - 1)), rng.choice((0, 2, 4, 6)), 16),
        "huge8.png": lambda: _huge_png(rng.choice((70_000, 1 << 20, (1 << 31) - 1)), rng.choice((0, 2, 6)), 8),
        "zero.png": lambda: _huge_png(0, 2, 16),
        "bomb.png": lambda: _bomb(),
        "folder.png": lambda: (folder / "folder.png").mkdir(),
        "fifo.tif": lambda: os.mkfifo(folder / "fifo.tif"),
        "fifo.npy": lambda: os.mkfifo(folder / "fifo.npy"),
        "loop.tif": lambda: (folder / "loop.tif").symlink_to("loop.tif"),
        "zero.npy": lambda: (folder / "zero.npy").symlink_to("/dev/zero"),
    }
    name = rng.choice(sorted(makers))
    return name, makers[name]()


def _bomb() -> bytes:
    """A PNG of 20,000 x 20,000 that takes 1.6 MB, which becomes 1.2 GB."""
    return (
        _huge_png(20_000, 2, 8)[:33]
        + (lambda data: struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data)))(
            zlib.compress(bytes(20_000 * 600), 9)
        )
        + b"\0\0\0\0IEND\xaeB`\x82"
    )


def odd(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A file that is not an image that can be used, alone or behind a whole one."""
    name, data = _odd(rng, folder)
    if data is not None:
        (folder / name).write_bytes(data)
    good = rng.choice(["plain16.tif", "gray8.png", "u16.npy", "rgb16.png"])
    (folder / good).write_bytes(WHOLE[good]())
    names = [name] if rng.random() < 0.4 else [good, name]
    usable = name.startswith("one.") and len(names) == 1  # a screen of 1 x 1 pixels is one

    def check(found: np.ndarray) -> str | None:
        return None if usable else f"'{name}' was read as an image {found.shape} {found.dtype}"

    return Trial(f"read {names}", lambda: read(folder, names), check)
