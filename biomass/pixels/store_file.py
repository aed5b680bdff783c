"""``store.json`` of a packed store: what its images are, and their checksums.

Whatever it says is checked when it is read, as it may come from anybody: types, ranges, and what must agree.
"""

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from biomass.errors import DataError, one_line
from biomass.pixels.opening import read_file
from biomass.pixels.origin import is_origin

FORMAT = 1
"""Version of the layout; a store of another one is refused."""

IMAGES, INDEX, FILES, ABOUT = "images.npy", "index.parquet", "files.parquet", "store.json"
"""The files of a store."""

CRC32 = "crc32"
"""The column of :data:`FILES` with the checksum of every image."""

BELONGS = b"biomass.store"
"""Where a table of a store says which store it belongs to, see :attr:`Store.belongs`."""

TYPES = ("|u1", "<u2", ">u2", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8")
"""The types that images of a store may have."""

_MOST_BYTES = 64 << 20
_MOST_CHANNELS = 1 << 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Store:
    """What ``store.json`` says.

    Attributes:
        images: number of images, N.
        shape: (C, H, W) of every image.
        dtype: of every image, as numpy writes it: one of :data:`TYPES`.
        channels: names of the C channels.
        classes: names of the labels of the screen that was packed.
        fingerprint: a hash of shape, type, channels and the names of the files.
        block: images that a checksum is taken over.
        crc32: checksum of every block of ``images.npy``.
        bad: row → why its image could not be read; such a row holds zeros.
        origin: the files that were packed, see :func:`biomass.pixels.origin.describe_origin`; None where the images
            were not files, and in stores written before this entry existed.
    """

    images: int
    shape: tuple[int, int, int]
    dtype: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprint: str
    block: int
    crc32: tuple[int, ...]
    bad: dict[int, str]
    origin: dict[str, Any] | None = None

    @property
    def belongs(self) -> str:
        """What tells this store from others: a hash of the fingerprint and the checksums."""
        return hashlib.sha256(json.dumps([self.fingerprint, self.crc32]).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``store.json``."""
        values = {"format": FORMAT} | vars(self)
        return json.dumps(values | {"digest": _digest(values)})

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Read ``store.json`` of the store ``path``.

        Raises:
            DataError: there is none, it is of another version, or says what cannot be.
        """
        if not path.is_dir():
            raise DataError(f"there is no packed store '{path}'; name a folder that biomass pack or crop has written")
        if (path / ABOUT).is_symlink():
            link = (path / ABOUT).readlink()
            raise unusable(path, f"has a link to '{link}' in place of its {ABOUT}", "put the file itself there")
        try:
            text = read_file(path / ABOUT, _MOST_BYTES).decode()
            values: Any = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
            if not isinstance(values, dict):
                raise ValueError("it is no list of entries")
            digest, version = values.pop("digest", None), values.pop("format")
            if version != FORMAT or isinstance(version, bool):
                raise unusable(path, f"is of version {version!r:.40}, this program reads version {FORMAT}")
            if digest is not None and digest != _digest({"format": version} | values):  # older ones have none
                raise ValueError("it has changed since it was written")
            if "source" in values:  # what the entry was called in the first stores
                values["origin"] = values.pop("source")
            _check(values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise unusable(path, f"has no usable {ABOUT} ({one_line(error)[:200]})") from error
        values["bad"] = {int(row): why for row, why in values["bad"].items()}
        return cls(**values | {key: tuple(value) for key, value in values.items() if isinstance(value, list)})


def unusable(path: Path, why: str, remedy: str = "delete it and pack the images again") -> DataError:
    """The error that a store cannot be used."""
    return DataError(f"packed store '{path}' {why}: {remedy}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an entry is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _is_count(value: Any, least: int = 1, most: int = 1 << 62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and not _CONTROL.search(one) for one in value)


def _digest(values: dict[str, Any]) -> str:
    """Of the other entries, however they are ordered."""
    as_read = json.loads(json.dumps(values))  # keys that are numbers are text in a file, and sorted otherwise
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _check(values: dict[str, Any]) -> None:
    """Refuse what no store is.

    Raises:
        ValueError: says which entry, and its value.
    """
    known = [one.name for one in fields(Store)]
    unknown = sorted(set(values) - set(known))
    absent = [name for name in known if name not in values and name != "origin"]
    if unknown or absent:
        raise ValueError(f"entry '{unknown[0]:.40}' is unknown" if unknown else f"entry '{absent[0]}' is missing")
    images, shape, block, bad = (values[name] for name in ("images", "shape", "block", "bad"))
    three = isinstance(shape, list) and len(shape) == 3 and all(map(_is_count, shape))
    fits = {
        "images": _is_count(images),
        "shape": three and shape[0] <= _MOST_CHANNELS,
        "dtype": isinstance(values["dtype"], str) and values["dtype"] in TYPES,
        "channels": _are_names(values["channels"]) and three and len(values["channels"]) == shape[0],
        "classes": isinstance(values["classes"], list) and all(isinstance(one, str) for one in values["classes"]),
        "fingerprint": isinstance(values["fingerprint"], str) and len(values["fingerprint"]) <= 128,
        "block": _is_count(block),
        "crc32": isinstance(values["crc32"], list) and all(_is_count(one, 0, 0xFFFFFFFF) for one in values["crc32"]),
        "bad": isinstance(bad, dict) and all(isinstance(why, str) for why in bad.values()),
        "origin": values.get("origin") is None or is_origin(values["origin"]),
    }
    for name, good in fits.items():
        if not good:
            raise ValueError(f"its {name} cannot be {json.dumps(values[name])[:60]}")
    if len(values["crc32"]) != -(-images // block):
        raise ValueError(f"its crc32 lists {len(values['crc32'])} checksums, for {images} images in blocks of {block}")
    rows = [row for row in bad if not (re.fullmatch("0|[1-9][0-9]{0,17}", row) and int(row) < images)]
    if rows:
        raise ValueError(f"row '{rows[0]:.40}' of its bad images is none of {images}")
