"""Any source of images by its path alone, as the tools take it."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from biomass.datasets.bbbc021 import is_bbbc021, load_bbbc021
from biomass.datasets.manifest import load_manifest, manifest_path
from biomass.datasets.packed import load_packed
from biomass.datasets.rxrx1 import load_rxrx1
from biomass.datasets.rxrx1_cells import load_rxrx1_cells
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.pixels.store_file import ABOUT
from biomass.screen import Screen

_RXRX1 = "rxrx1_v1.0"


def open_source(source: str | Path, skip_bad: bool = False, /, **options: Any) -> tuple[Screen, Path]:
    """Read a source as what it is.

    Args:
        source: a folder of cropped cells, a root of RxRx1-WILDS or its ``rxrx1_v1.0``, BBBC021, a manifest or its
            folder, or a packed store.
        skip_bad: whether unreadable images are to be left out, which some readers must know: they look for all files.
        options: of its reader, which win.

    Returns:
        The Screen, and the path that its reader looks for a packed store beside.

    Raises:
        DataError: it is none of these, or its reader refuses it.
        ConfigError: the reader has no such option.
    """
    source = Path(source).absolute()
    skip: dict[str, Any] = {"on_bad_image": "skip"} if skip_bad else {}
    if (source / ABOUT).is_file():
        return _call(load_packed, source, options), source
    source = stands_beside(source)
    if source.name == _RXRX1 and (source / "metadata.csv").is_file():
        return _call(load_rxrx1, source.parent, skip | options, download=False), source
    if is_bbbc021(source):
        return _call(load_bbbc021, source, skip | options), source
    if source.is_file():
        return _call(load_manifest, source, skip | options), source
    if source.is_dir():
        return _call(load_rxrx1_cells, source, options, download=False), source
    raise DataError(f"no '{source}': name a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest")


def stands_beside(source: str | Path) -> Path:
    """What :func:`open_source` looks for a packed store beside, without reading it.

    >>> stands_beside("cells").name
    'cells'
    """
    source = Path(source).absolute()
    root = source.parent if source.name == _RXRX1 else source
    if (root / _RXRX1 / "metadata.csv").is_file():
        return root / _RXRX1
    if source.is_dir() and not is_bbbc021(source) and (manifest := manifest_path(None, source)).is_file():
        return manifest
    return source


def _call(load: Callable[..., Screen], path: Path, options: Mapping[str, Any], **own: Any) -> Screen:
    """Read ``path`` with options that were given. They may not name its place, nor be one of our ``own``."""
    place, *others = inspect.signature(load).parameters
    known = [name for name in others if name not in own]
    for key, value in options.items():
        if key == place or key in own:
            why = "the source names it" if key == place else f"it is always {str(own[key]).lower()} here"
            raise ConfigError(f"option '{key}' cannot be set to '{value}': {why}; leave it out")
        if key not in known:
            raise ConfigError(f"{load.__name__} has no option '{key}'; {did_you_mean(key, known) or 'it has none'}")
    return load(path, **own, **options)
