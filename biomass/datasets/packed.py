"""A packed store as a source of its own."""

from pathlib import Path

from biomass.pixels.packed import ABOUT, Store, open_packed, read_index
from biomass.screen import Screen


def load_packed(path: str | Path, root_dir: str | Path = ".") -> Screen:
    """Read a packed store as the Screen that was packed, without its source.

    Args:
        path: the store's folder: below ``root_dir``, or as a tool has printed it, from the working folder on.
        root_dir: where it is looked for first.

    Raises:
        DataError: the store is incomplete, was cut off, or is of another version.
    """
    place = Path(root_dir).expanduser() / Path(path).expanduser()
    pixels = open_packed(place if (place / ABOUT).is_file() or not (Path(path) / ABOUT).is_file() else path)
    return Screen(read_index(pixels.path), pixels, Store.read(pixels.path).classes)
