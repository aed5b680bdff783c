"""Decoding PNG files, none of which can take the process down.

Every chunk is compared with its checksum before anything is decoded. What decodes is Pillow, which gets the chunks that
pixels are made of and no others: not libpng, which leaves the process by a jump where a file is damaged.
"""

import io
import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image

from biomass.errors import RefusedError
from biomass.pixels.opening import cut_off, unpack

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # colour type → bits
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ENDS = "it ends too early: it may still be being written, or was not copied to its end"
_DEFLATE = 1032  # the most that deflate packs into one byte
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_HEADER = slice(16, 29)  # of the file: the content of its first chunk


def png_header(start: bytes) -> tuple[int, int, int, int, int]:
    """Width, height, bits, colour type and whether it is interlaced, from the first 29 bytes of a PNG.

    Raises:
        RefusedError: no PNG has such a header.
    """
    if len(start) < 29 or start[12:16] != b"IHDR":
        raise RefusedError("it has no header")
    width, height, bits, color, packing, filters, interlaced = struct.unpack(">IIBBBBB", start[_HEADER])
    if not width or not height or bits not in _DEPTHS.get(color, ()) or packing or filters or interlaced > 1:
        raise RefusedError(f"its header says {width} x {height} pixels of {bits} bits, colour type {color}")
    return width, height, bits, color, interlaced


def decode_png(data: bytes, status: os.stat_result, most: int) -> np.ndarray:
    """A PNG of any mode: (H, W) or (H, W, C) uint8 or uint16; palettes become RGB.

    Args:
        data: the file.
        status: of the file.
        most: values that it may have.

    Raises:
        RefusedError: it is damaged, or larger.
    """
    if len(data) < _HEADER.stop:
        raise cut_off(status, _ENDS)
    width, height, bits, color, _ = png_header(data)
    values = width * height * _SAMPLES[color]
    if values > most:
        raise RefusedError(
            f"its header says {width:,} x {height:,} pixels, {values:,} values, and the most are {most:,}",
            "too large",
        )
    if values * bits // 8 > _DEFLATE * len(data) + 4096:
        raise RefusedError(f"its header says {width:,} x {height:,} pixels, which {len(data):,} bytes cannot hold")
    chunks, spare = _chunks(data, status)
    if bits == 16 and color == 4:  # bytes of two channels, as of four channels of 8 bits
        found = _pillow(_join(data, chunks, bits=8, color=6))
        return found.view(">u2").astype(np.uint16)
    if bits < 16 or not color:
        return _pillow(_join(data, chunks) if spare else data)
    layout, whole = "RGB" if color == 2 else "RGBA", _unpack(data, chunks)
    found = np.empty((height, width, _SAMPLES[color]), np.uint16)
    for place, order in enumerate("LB" if sys.byteorder == "little" else "BL"):  # Pillow keeps but one byte of two
        found.view(np.uint8)[..., place::2] = _pillow(whole, f"{layout};16{order}")
    return found


def _chunks(data: bytes, status: os.stat_result) -> tuple[list[tuple[bytes, int, int]], bool]:
    """Kind, begin and end of the chunks that pixels are made of, all of them whole; whether there are any others."""
    view, place, kept, spare = memoryview(data), len(SIGNATURE), list[tuple[bytes, int, int]](), False
    while True:
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        if end > len(data) or len(kind) < 4:
            raise cut_off(status, _ENDS)
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise RefusedError("its checksums do not fit its content")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append((kind, place, end))
        elif not kind[0] & 32:
            raise RefusedError("it has a part that no PNG has")
        else:
            spare = True
        place = end
        if kind == b"IEND":
            break
    kinds = [kind for kind, _, _ in kept]
    palette = kinds.count(b"PLTE")
    once = kinds[0] == b"IHDR" and kinds.count(b"IHDR") == 1 and palette <= 1 and b"IDAT" in kinds
    color = data[25]
    if not once or (color == 3) > palette or (palette and kinds[1] != b"PLTE"):
        raise RefusedError("its parts are not those of a PNG, or out of order")
    if palette and (kept[1][2] - kept[1][1] - 12) % 3:
        raise RefusedError("its palette is damaged")
    return kept, spare


def _join(data: bytes, chunks: list[tuple[bytes, int, int]], bits: int = 0, color: int = 0) -> bytes:
    """A PNG of some chunks of another one; with ``bits``, of another type."""
    parts = [SIGNATURE, *(data[begin:end] for kind, begin, end in chunks if kind != b"PLTE" or data[25] == 3)]
    if bits:
        header = bytearray(data[12:29])
        header[12:14] = bits, color
        parts[1] = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"".join(parts)


def _unpack(data: bytes, chunks: list[tuple[bytes, int, int]]) -> bytes:
    """The same PNG, its pixels not packed any more: for one that is decoded twice."""
    width, height, bits, color, interlaced = png_header(data)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // across)) for top, left, down, across in passes]
    size = sum(h * (1 + w * _SAMPLES[color] * bits // 8) for h, w in sizes if h > 0 and w > 0)
    packed = b"".join(data[begin + 8 : end - 4] for kind, begin, end in chunks if kind == b"IDAT")
    lines = unpack(zlib.decompressobj(), packed, size)
    if len(lines) < size:
        raise RefusedError("it holds fewer pixels than its header says")
    stored = b"IDAT" + zlib.compress(lines, 0)
    part = struct.pack(">I", len(stored) - 4) + stored + struct.pack(">I", zlib.crc32(stored))
    return b"".join([data[: len(SIGNATURE) + 25], part, data[chunks[-1][1] : chunks[-1][2]]])


def _pillow(data: bytes, layout: str = "") -> np.ndarray:
    """Decode a PNG with Pillow; with ``layout``, take its pixels to be laid out so."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if layout:
            ((codec, box, offset, _),) = image.tile
            image.tile = [(codec, box, offset, layout)]  # type: ignore[list-item]  # a tuple with names, lately
        if image.mode == "P":
            return np.asarray(image.convert("RGB"))
        return np.asarray(image.convert("L") if image.mode == "1" else image)
