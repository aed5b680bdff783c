"""What a Screen, or a plate of it, is made of, as plain values.

A checkpoint carries the fingerprint of the data that it was trained on (:func:`fingerprint`), a file of calibrated
statistics that of each plate (:func:`plate_fingerprint`). Whatever goes on from them is compared first,
see :mod:`biomass.differences`.

The table is hashed as a whole: each row, its place, and each value with the image that it belongs to. Of the pixels a
sample is hashed, drawn by the names of the images, the same on every machine. So one changed image among many is
noticed if it is in the sample, or if the images come from a packed store, whose checksums are compared, too.

Neither folders, nor numbers that categories have in memory, nor columns that nothing uses make a difference.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from biomass.differences import Hashes, Pair, as_text, of_pixels
from biomass.errors import BadImageError
from biomass.grouping import first_rows
from biomass.screen import COLUMNS, FIELD, PLATE, Screen

VERSION = 1
"""Of what is hashed and how; fingerprints of other versions are not compared."""

IMAGES = 64
"""Images of a screen whose pixels are hashed, or all where it has no more than twice as many; fewer where they are
large, see :data:`VALUES`."""

PLATE_IMAGES = 16
"""The same of a plate."""

VALUES = 2**27
"""Pixel values of a screen that are hashed at most, if that leaves 8 images; of a plate an eighth, and 2 images."""

_AT_ONCE = 2**24
_FEW_ROWS = 8  # a name, below which the names that they have are looked up
_CHUNK = 2**15
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CELL = "cell"  # the column that tells the cells of a field from each other, where a source has it
_LAST = 2**64 - 1


@runtime_checkable
class Summed(Protocol):
    """Pixels whose source has checksums of all of them."""

    def checksum(self) -> str:
        """Of the images of all rows."""


def fingerprint(screen: Screen, columns: Sequence[str] = ()) -> dict[str, Any]:
    """What a screen is made of.

    Args:
        screen: whose images are there; of a few of them the pixels are read.
        columns: that matter beside the canonical ones, such as those that statistics are taken over.

    Returns:
        Plain values: ``channels``, ``size``, ``dtype``, ``classes``, and how many rows each class, plate and split has;
        a hash for each column, and for the ``order`` of the rows; the ``sample`` of images by their keys, with the
        values of their rows and a hash a channel, None where an image cannot be read; and the ``store``'s checksum.

    >>> from biomass.differences import first_difference
    >>> from biomass.screen import VectorPixels, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 3) | {"plate": ["A", "A", "B"], "label": [0, 1, 1]})
    >>> images = np.arange(12).reshape(3, 1, 2, 2)
    >>> before = fingerprint(make_screen(table, VectorPixels(images, ("DNA",)), ["DMSO", "taxol"]))
    >>> before["size"], before["counts"]["plate"]
    ([2, 2], {'/A': 2, '/B': 1})
    >>> images[1] += 1
    >>> now = fingerprint(make_screen(table, VectorPixels(images, ("DNA",)), ["DMSO", "taxol"]))
    >>> first_difference(before, now)
    "1 of 3 sampled images has other pixels, such as 'row 1'"
    """
    keys, table = image_keys(screen), screen.table
    used = [one for one in dict.fromkeys((*COLUMNS, *columns)) if one in table]
    values = {one: table[one] if one != "label" else _class_names(screen) for one in used}
    number = _images(screen, len(screen), IMAGES, VALUES, 8)
    sampled = _spread(keys, screen.plate_ids, pd.factorize(table["split"])[0], number)
    pixels, dtype = _pixels(screen, sampled)
    sample = {
        f"{keys[row]:016x}": {
            "name": _name(screen, row),
            "values": {one: str(column.iloc[row]) for one, column in values.items()},
            "pixels": of_row,
        }
        for row, of_row in zip(sampled.tolist(), pixels, strict=True)
    }
    images = np.bincount(screen.plate_ids)
    of_plates = table.iloc[first_rows(screen.plate_ids, len(images))][list(PLATE)].astype(str)
    counts = {
        "plate": dict(zip(map("/".join, of_plates.to_numpy()), images.tolist(), strict=True)),
        "split": _counts(table["split"]),
        "class": _counts(values["label"]),
    }
    return {
        "version": VERSION,
        "channels": [str(name) for name in screen.pixels.channels],
        "size": [int(length) for length in screen.pixels.size],
        "dtype": dtype,
        "classes": list(screen.classes),
        "counts": counts,
        "columns": {one: _sum(column, None if one in FIELD else keys) for one, column in values.items()},
        "order": hashlib.blake2b(keys.astype("<u8", copy=False).data, digest_size=16).hexdigest(),
        "sample": sample,
        "store": screen.pixels.checksum() if isinstance(screen.pixels, Summed) else None,
    }


def image_keys(screen: Screen) -> np.ndarray:
    """What tells each image from all others whatever the order of the table, (N,) uint64.

    It is made of the names of plate, well and site, of the number of a cell, and, where several rows have all of these
    in common, of the place among them.
    """
    names = _named(screen.table)
    alike = _alike(names)
    for part in _parts(len(names)):
        names[part] = _mix(names[part], np.uint64(0) if alike is None else alike[part])
    return names


def _named(table: pd.DataFrame) -> np.ndarray:
    """What images are called, (n,) uint64: the same for cells of a field that have no numbers."""
    hashes = [_hashes(table[column]) for column in (*FIELD, *[_CELL] * (_CELL in table))]
    names = np.zeros(len(table), np.uint64)
    for part in _parts(len(names)):
        for codes, known in hashes:
            names[part] = _mix(names[part], known[codes[part]])
    return names


def _field_of(table: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Some rows (n,) of the columns that say what images are called."""
    return pd.DataFrame({one: table[one].iloc[rows] for one in (*FIELD, *[_CELL] * (_CELL in table))}, copy=False)


def _alike(names: np.ndarray) -> np.ndarray | None:
    """The place of each image among those of the same name, (N,) uint64; None where all have names of their own."""
    ordered = np.sort(names)
    if (ordered[1:] != ordered[:-1]).all():
        return None
    order = np.argsort(names, kind="stable")
    begins = np.append(True, ordered[1:] != ordered[:-1])
    first = np.flatnonzero(begins)
    place = np.empty(len(names), np.uint64)
    place[order] = np.arange(len(names)) - np.repeat(first, np.diff(first, append=len(names)))
    return place


def plate_fingerprint(screen: Screen, rows: np.ndarray, keys: np.ndarray) -> dict[str, Any]:
    """What a plate is made of: its images with the smallest keys.

    Args:
        screen: whose plate it is.
        rows: (n,) of the plate, ascending.
        keys: (N,) of the screen, see :func:`image_keys`.

    Returns:
        Plain values: ``size``, ``dtype``, ``channels``, and the ``sample``: by its key, the name of each image, what it
        is a control of, how many are called alike, and a hash a channel. All others of the plate have keys above
        ``below``.
    """
    number = _images(screen, len(rows), PLATE_IMAGES, VALUES // 8, 2)
    chosen = rows[np.argsort(keys[rows], kind="stable")[:number]]
    names = _named(_field_of(screen.table, rows))
    controls = dict(zip(chosen.tolist(), screen.table["control"].iloc[chosen].astype(str), strict=True))
    pixels, dtype = _pixels(screen, chosen)
    return {
        "version": VERSION,
        "channels": [str(name) for name in screen.pixels.channels],
        "size": [int(length) for length in screen.pixels.size],
        "dtype": dtype,
        "below": f"{int(keys[chosen].max()) if len(rows) > number else _LAST:016x}",
        "sample": {
            f"{keys[row]:016x}": {
                "name": _name(screen, row),
                "control": controls[row],
                "alike": int((names == names[rows == row]).sum()),
                "pixels": of_row,
            }
            for row, of_row in zip(chosen.tolist(), pixels, strict=True)
        },
    }


def plate_difference(
    before: Mapping[str, Any], screen: Screen, rows: np.ndarray, keys: np.ndarray, controls: bool = False
) -> str | None:
    """What tells a plate from what is called so in a screen, in words; None where nothing is known to.

    A plate that has grown is no other plate, nor is a part of it.

    Args:
        before: the fingerprint of the plate, as it was kept.
        screen, rows, keys: as in :func:`plate_fingerprint`.
        controls: whether it matters which images are controls.
    """
    if before.get("version") != VERSION:
        return None
    size = [int(length) for length in screen.pixels.size]
    if size != before["size"]:
        return f"the size of the images is {as_text(size)}, it was {as_text(before['size'])}"
    sample, own = before["sample"], keys[rows]
    asked = np.array([int(key, 16) for key in sample], np.uint64)
    gone = int((~np.isin(asked, own)).sum())
    new = int((~np.isin(own[own <= np.uint64(int(before["below"], 16))], asked)).sum())
    if gone and new:
        name = next(one["name"] for key, one in sample.items() if int(key, 16) not in set(own.tolist()))
        which = f"{gone} of {len(sample)}" if gone < len(sample) else f"all {gone}"
        return f"{which} sampled images are not there any more, such as '{name}', and others are"
    there = np.sort(rows[np.isin(own, asked)])
    for row in there.tolist() if controls else ():
        before_it, of_it = sample[f"{keys[row]:016x}"]["control"], str(screen.table["control"].iloc[row])
        if before_it != of_it:
            return f"'{_name(screen, row)}' is {of_it or 'no'} control, and was {before_it or 'none'}"
    pixels, dtype = _pixels(screen, there)
    if None not in (dtype, before["dtype"]) and dtype != before["dtype"]:
        return f"the type of the images is {dtype}, it was {before['dtype']}"
    channels = list(screen.pixels.channels)
    both = [name for name in before["channels"] if name in channels]
    whole = any(one is not None and len(one) != len(channels) for one in pixels)  # vectors have one hash

    def some(hashes: Hashes, order: Sequence[str]) -> Hashes:
        return hashes if hashes is None or whole else [hashes[order.index(name)] for name in both]

    pairs: list[Pair] = []
    names: np.ndarray | None = None
    for row, of_row in zip(there.tolist(), pixels, strict=True):
        was, now = some(sample[f"{keys[row]:016x}"]["pixels"], before["channels"]), some(of_row, channels)
        if was is None or now is None:
            continue
        if was != now:  # cells without a number may only stand in another order
            names = _named(_field_of(screen.table, rows)) if names is None else names
            alike = rows[names == names[rows == row]]
            if len(alike) != sample[f"{keys[row]:016x}"]["alike"]:
                continue
            now = was if any(some(one, channels) == was for one in _pixels(screen, alike)[0]) else now
        pairs.append((_name(screen, row), was, now))
    return of_pixels(pairs, both)


# --- hashes -----------------------------------------------------------------------------------------------------------


def _mix(one: np.ndarray, other: np.ndarray | np.uint64) -> np.ndarray:
    """A hash of pairs of hashes, uint64: the end of SplitMix64, in which every bit depends on every bit."""
    mixed: np.ndarray = one * _GOLDEN + other
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _parts(rows: int) -> Iterator[slice]:
    """Rows that are hashed at a time: what is computed of them stays in the processor's cache."""
    return (slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK))


def _hashes(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The number of each value, (N,), and a hash of each number's text, whatever type the column has."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, names = values.cat.codes.to_numpy(), values.cat.categories
        if len(codes) < _FEW_ROWS * len(names):  # as in a plate of many: most names are those of others
            used, codes = np.unique(codes, return_inverse=True)
            names, codes = names[used[used >= 0]], codes - int((used < 0).sum())
    else:
        codes, names = pd.factorize(values)
    texts = (str(name).encode("utf-8", "surrogatepass") for name in names)
    known = [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in texts]
    return codes, np.array([*known, 0], np.uint64)  # the last is for what is missing, -1


def _sum(values: pd.Series, keys: np.ndarray | None) -> str:
    """A hash of all values, each with the image that it belongs to if keys are given, in whatever order."""
    (codes, known), total = _hashes(values), 0
    for part in _parts(len(codes)):
        hashes = known[codes[part]]
        total += int((hashes if keys is None else _mix(keys[part], hashes)).sum(dtype=np.uint64))
    return f"{total & _LAST:016x}"


def _class_names(screen: Screen) -> pd.Series:
    """The class of each row by its name."""
    classes = pd.Index([*screen.classes, ""])
    codes = np.where(screen.labels < 0, len(screen.classes), screen.labels).astype(np.int32)
    if classes.is_unique:
        return pd.Series(pd.Categorical.from_codes(codes, classes))
    return pd.Series(classes.to_numpy()[codes])


def _counts(values: pd.Series) -> dict[str, int]:
    counts = values.value_counts(sort=False)
    return {str(name): int(number) for name, number in counts.items() if number}


def _spread(keys: np.ndarray, plates: np.ndarray, splits: np.ndarray, number: int) -> np.ndarray:
    """Some rows, ascending: the smallest keys of every plate in every split, the same number of each if it can be."""
    parts = plates * (int(splits.max()) + 2) + splits + 1
    sizes = np.bincount(parts)
    there = sizes[sizes > 0]
    most = min(number, int(there.max()))
    while (np.minimum(there, most // 2).sum()) >= number and most > 1:  # no part gives more of the rows
        most //= 2
    near = _smallest(keys, parts, sizes, most)
    order = near[np.lexsort((keys[near], parts[near]))]
    _, first, of = np.unique(parts[order], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - first[of]
    return np.sort(order[np.lexsort((order, keys[order], rank))[:number]])


def _smallest(keys: np.ndarray, parts: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """Rows, ascending, among which are those with the ``most`` smallest keys of every part: keys are spread evenly."""
    share = 4 * most + 16
    while True:
        limits = np.minimum(share / np.maximum(sizes, 1), 1) * float(_LAST)
        near = np.concatenate(
            [part.start + np.flatnonzero(keys[part] <= limits[parts[part]]) for part in _parts(len(keys))]
        )
        if (np.bincount(parts[near], minlength=len(sizes)) >= np.minimum(sizes, most)).all():
            return near
        share *= 4


def _images(screen: Screen, there: int, most: int, values: int, least: int) -> int:
    """How many images are sampled of those that are there."""
    of_one = len(screen.pixels.channels) * int(np.prod(screen.pixels.size))
    number = int(np.clip(values // max(1, of_one), least, most))
    return there if there <= 2 * number else number


def _pixels(screen: Screen, rows: np.ndarray) -> tuple[list[list[str] | None], str | None]:
    """A hash of each channel of the images of some rows, None where one cannot be read; and their type."""
    of_one = len(screen.pixels.channels) * int(np.prod(screen.pixels.size))
    at_once = max(1, _AT_ONCE // max(1, of_one))
    found: list[list[str] | None] = []
    dtype = None
    for start in range(0, len(rows), at_once):
        for image in _read(screen, rows[start : start + at_once]):
            dtype = dtype if image is None else image.dtype.name
            found.append(None if image is None else [_digest(one) for one in (image if image.ndim == 3 else [image])])
    return found, dtype


def _read(screen: Screen, rows: np.ndarray) -> list[np.ndarray | None]:
    """The images of some rows, None for those that cannot be read."""
    try:
        return list(screen.read(rows))
    except BadImageError:
        if len(rows) == 1:
            return [None]
        return [image for half in np.array_split(rows, 2) for image in _read(screen, half)]


def _name(screen: Screen, row: int) -> str:
    """The image of a row for messages: the end of its path, which is the same in another folder."""
    return "/".join(PurePath(screen.pixels.name(int(row))).parts[-3:])


def _digest(values: np.ndarray) -> str:
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.blake2b(plain.tobytes(), digest_size=8).hexdigest()
