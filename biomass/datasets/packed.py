"""A packed store as a source of its own."""

from pathlib import Path

from biomass.pixels.packed import Store, open_packed, read_index
from biomass.screen import Screen


def load_packed(path: str | Path) -> Screen:
    """Read a packed store as the Screen that was packed, without its source.

    Raises:
        DataError: the store is incomplete, was cut off, or is of another version.
    """
    pixels = open_packed(path)
    return Screen(read_index(pixels.path), pixels, Store.read(pixels.path).classes)
