"""Kinds of damage to bytes, as disks, copies and people do it."""

import random
from collections.abc import Callable


def flip(rng: random.Random, data: bytes) -> bytes:
    """One bit anywhere."""
    return _changed(data, rng.randrange(len(data)), lambda byte: byte ^ (1 << rng.randrange(8)))


def flips(rng: random.Random, data: bytes) -> bytes:
    """Several bytes anywhere."""
    for _ in range(rng.randint(2, 40)):
        data = _changed(data, rng.randrange(len(data)), lambda _: rng.randrange(256))
    return data


def head(rng: random.Random, data: bytes) -> bytes:
    """A byte of the beginning, where formats say what follows."""
    return _changed(data, rng.randrange(min(160, len(data))), lambda _: rng.choice((0, 1, 127, 128, 254, 255)))


def tail(rng: random.Random, data: bytes) -> bytes:
    """A byte of the end, where some formats keep their directory."""
    return _changed(data, len(data) - 1 - rng.randrange(min(200, len(data))), lambda _: rng.randrange(256))


def number(rng: random.Random, data: bytes) -> bytes:
    """Four bytes that become a huge number."""
    at = rng.randrange(max(1, min(len(data) - 4, 400)))
    return data[:at] + rng.choice((b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff")) + data[at + 4 :]


def cut(rng: random.Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(1, len(data))]


def empty(rng: random.Random, data: bytes) -> bytes:
    """Nothing is left."""
    return b""


def zeros(rng: random.Random, data: bytes) -> bytes:
    """A block reads as zeros."""
    at, length = rng.randrange(len(data)), rng.choice((8, 64, 512, 4096))
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def longer(rng: random.Random, data: bytes) -> bytes:
    """Something stands behind the end."""
    return data + bytes(rng.randrange(256) for _ in range(rng.randint(1, 300)))


def twice(rng: random.Random, data: bytes) -> bytes:
    """A block stands there twice, as after a copy that was taken up again at the wrong place."""
    at = rng.randrange(len(data))
    return data[:at] + data[max(0, at - rng.randint(1, 200)) :]


def other(rng: random.Random, data: bytes) -> bytes:
    """It is another file altogether."""
    return rng.choice(
        (b"<html><body>404 Not Found</body></html>", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x00" * len(data))
    )


DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(flip, flips, head, tail, number, cut, empty, zeros, longer, twice, other),
)


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Bytes after a kind of damage that changes them, and what it is called."""
    while True:
        kind = rng.choice(DAMAGES)
        changed = kind(rng, data)
        if changed != data:
            return kind.__name__, changed


def _changed(data: bytes, at: int, change: Callable[[int], int]) -> bytes:
    return data[:at] + bytes([change(data[at])]) + data[at + 1 :]
