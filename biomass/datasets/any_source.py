"""Any source of images by its path alone, as the commands take it."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.datasets.bbbc021 import is_bbbc021, load_bbbc021
from biomass.datasets.bbbc021_raw import CACHE_ADVICE
from biomass.datasets.manifest import load_manifest
from biomass.datasets.packed import load_packed
from biomass.datasets.rxrx1 import DOWNLOAD_ADVICE, load_rxrx1
from biomass.datasets.rxrx1_cells import load_rxrx1_cells
from biomass.errors import BiomassError, ConfigError, DataError, explain, one_line
from biomass.pixels.packed import ABOUT
from biomass.screen import Screen

_RXRX1 = "rxrx1_v1.0"


@contextmanager
def command_errors(on_bad_image: str, stopped: str) -> Iterator[None]:
    """What a command makes of an error of the user's (one line and exit code 1) and of Ctrl-C (one line and 130).

    Args:
        on_bad_image: the command's option. The readers advise to set the key of a configuration in its place.
        stopped: what to say after Ctrl-C.
    """
    try:
        yield
    except BiomassError as error:
        advice = {"skip": "or give --on-bad-image skip"} if on_bad_image == "error" else {}
        message = explain(error, advice).replace(DOWNLOAD_ADVICE, "")
        message = message.replace(CACHE_ADVICE, "give --set cache_dir=… with a folder that can be written")
        raise SystemExit(f"error: {message}") from None
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(130) from None


def open_source(source: str | Path, skip_bad: bool = False, /, **options: Any) -> tuple[Screen, Path]:
    """Read a source as what it is.

    Args:
        source: a folder of cropped cells, a root of RxRx1-WILDS or its ``rxrx1_v1.0``, BBBC021, a manifest, or a packed
            store.
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
    root = source.parent if source.name == _RXRX1 else source
    if (root / _RXRX1 / "metadata.csv").is_file():
        return _call(load_rxrx1, root, skip | options, download=False), root / _RXRX1
    if is_bbbc021(source):
        return _call(load_bbbc021, source, skip | options), source
    if source.is_file():
        return _call(load_manifest, source, skip | options), source
    if source.is_dir():
        return _call(load_rxrx1_cells, source, options, download=False), source
    raise DataError(f"no '{source}': name a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest")


def _call(load: Callable[..., Screen], path: Path, options: Mapping[str, Any], **own: Any) -> Screen:
    """Read ``path`` with the user's options, of which none may be its place or one of our ``own``."""
    place, *others = inspect.signature(load).parameters
    known = [name for name in others if name not in own]
    for key in options:
        if key == place or key in own:
            why = "the source names it" if key == place else f"it is always {str(own[key]).lower()} here"
            raise ConfigError(f"--set {key}={options[key]} cannot be set: {why}; leave it out")
        if key not in known:
            hint = get_close_matches(key, known, 1)
            raise ConfigError(
                f"{load.__name__} has no option '{key}'"
                + (f"; did you mean '{hint[0]}'?" if hint else f"; it has {', '.join(known) or 'none'}")
            )
    return load(path, **own, **options)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["columns.label=moa"]`` → ``{"columns": {"label": "moa"}}``."""
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(f"--set {setting} has no value: write key=value")
    try:
        options = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"--set {' '.join(settings)} cannot be understood ({one_line(error)})") from error
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}
