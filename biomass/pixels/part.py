"""Parts of a screen that are packed apart, and what puts their stores together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from biomass.errors import BadImageError, DataError, one_line
from biomass.pixels.files import FilePixels
from biomass.pixels.origin import Stamped, Stamps
from biomass.pixels.packed import PackedPixels, open_packed, read_stamps
from biomass.screen import Pixels, Screen, make_screen
from biomass.shards import Shard, Shards


def part_of(screen: Screen, rows: np.ndarray) -> Screen:
    """Some rows of a screen, (n,), as a screen of its own, whose plates are numbered from 0 again.

    >>> import pandas as pd
    >>> from biomass.screen import COLUMNS, VectorPixels
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 3) | {"plate": [*"ABC"], "label": 0})
    >>> screen = make_screen(table, VectorPixels(np.arange(3)[:, None]), ["x"])
    >>> part = part_of(screen, np.array([1, 2]))
    >>> part.plate_ids, part.read(np.array([1]))
    (array([0, 1]), array([[2]]))
    """
    table = screen.table.iloc[rows].drop(columns="plate_id")
    return make_screen(table, _pixels_of(screen.pixels, rows), screen.classes)


def _pixels_of(pixels: Any, rows: np.ndarray) -> Pixels:
    """The images of some rows; they stay files where they are files, which are looked at before they are read."""
    if isinstance(pixels, FilePixels):
        return replace(pixels, files=tuple(column.take(rows) for column in pixels.files))
    if isinstance(pixels, PackedPixels):
        return replace(pixels, rows=rows if pixels.rows is None else pixels.rows[rows])
    if hasattr(pixels, "take"):
        taken: Pixels = pixels.take(rows)
        return taken
    return _Some(pixels, rows)


@dataclass(frozen=True)
class _Some:
    """Some images of any others; implements :class:`biomass.screen.Pixels`."""

    pixels: Pixels
    rows: np.ndarray

    @property
    def channels(self) -> tuple[str, ...]:
        return self.pixels.channels

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.size

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels.read(self.rows[rows])

    def name(self, row: int) -> str:
        return self.pixels.name(int(self.rows[row]))

    def stamps(self) -> Stamps:
        if not isinstance(self.pixels, Stamped):
            return Stamps.unknown(len(self.rows))
        whole = self.pixels.stamps()
        return Stamps(whole.sizes[self.rows], whole.times[self.rows])


class Part(NamedTuple):
    """A part of a screen that was packed.

    Attributes:
        store: its store.
        rows: (n,) the rows of the screen that it holds, in this order.
        called: its name, for messages,
        again: and what makes it again.
    """

    store: Path
    rows: np.ndarray
    called: str
    again: str


def parts_of(shards: Shards, of: int, shard: np.ndarray) -> list[Part]:
    """The stores of shards that hold the images of a screen.

    Args:
        shards: of the screen,
        of: how many there are,
        shard: (N,) and which of them each row belongs to, from 1.
    """
    numbers, counts = np.unique(shard, return_counts=True)
    rows = np.split(np.argsort(shard, kind="stable"), np.cumsum(counts)[:-1])
    each = [Shard(number, of) for number in numbers.tolist()]
    return [
        Part(shards.place(one), own, f"shard {one}", shards.again(one)) for one, own in zip(each, rows, strict=True)
    ]


@dataclass(frozen=True)
class MergedPixels:
    """The images of a screen, out of the stores of its parts; implements :class:`biomass.screen.Pixels`."""

    parts: tuple[Part, ...]
    stores: tuple[PackedPixels, ...]
    part: np.ndarray
    """(N,) which part holds the image of each row,"""
    place: np.ndarray
    """(N,) and where in it."""

    @property
    def channels(self) -> tuple[str, ...]:
        return self.stores[0].channels

    @property
    def size(self) -> tuple[int, int]:
        return self.stores[0].size

    @cached_property
    def _bad(self) -> list[np.ndarray]:
        return [np.array(sorted(store.bad), np.int64) for store in self.stores]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """As they were packed.

        Raises:
            BadImageError: one could not be read when its part was packed.
            DataError: a part has been damaged since.
        """
        part, place = self.part[rows], self.place[rows]
        store = self.stores[0]
        images = np.empty((len(rows), len(store.channels), *store.size), store.dtype)
        for number in np.unique(part).tolist():
            mine = np.flatnonzero(part == number)
            bad = np.flatnonzero(np.isin(place[mine], self._bad[number]))
            if len(bad):
                row = mine[bad[0]]
                raise BadImageError(self.stores[number].bad[int(place[row])], int(rows[row]))
            with _of_part(self.parts[number]):
                images[mine] = self.stores[number].read(place[mine])
        return images

    def name(self, row: int) -> str:
        return self.stores[self.part[row]].name(int(self.place[row]))


class _of_part:  # noqa: N801  a context
    """Errors inside are those of a part that is damaged."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DataError):
            raise DataError(f"{self.part.called} is damaged ({one_line(error)}): {self.part.again}") from error


def merge_parts(
    parts: Sequence[Part],
    channels: Sequence[str],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    files: Any,
    now: Stamps,
) -> MergedPixels:
    """Open the stores of all parts of a screen, and make sure that they hold its images.

    Args:
        parts: each row of the screen is in one of them.
        channels: of the screen.
        shape: (C, H, W) of every image.
        dtype: of every image.
        files: Arrow array (N,) of the names of the images' files, as stores have them.
        now: what tells whether these have changed since.

    Raises:
        DataError: a part is not there, is damaged, or holds other images; says which, and what to do.
    """
    stores = []
    part, place = np.zeros(len(files), np.int32), np.zeros(len(files), np.int64)
    for number, one in enumerate(parts):
        with _of_part(one):
            store = open_packed(one.store)
            noted, names = read_stamps(one.store, store.images), store.files().cast(files.type)
        kind = (tuple(store.channels), (len(store.channels), *store.size), store.dtype)
        if kind != (tuple(channels), shape, dtype) or not names.equals(files.take(pa.array(one.rows))):
            raise DataError(f"{one.called} holds other images than it should: delete '{one.store}', and {one.again}")
        changed = Stamps(now.sizes[one.rows], now.times[one.rows]).changed_since(noted)
        if changed.any():
            first = store.name(int(np.argmax(changed)))
            raise DataError(
                f"{changed.sum()} images of {one.called} have changed since, such as '{first}': {one.again}"
            )
        stores.append(store)
        part[one.rows], place[one.rows] = number, np.arange(len(one.rows))
    return MergedPixels(tuple(parts), tuple(stores), part, place)
