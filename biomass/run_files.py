"""What a run leaves below ``runs/<run name>``, read again: its configuration and its log."""

import contextlib
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.bounds import BoundedLoader, read_json
from biomass.errors import DataError, one_line


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run; None where the folder has none.

    Raises:
        DataError: it cannot be read.
    """
    file = folder / "config.yaml"
    if not file.exists():
        return None
    try:
        config = OmegaConf.to_container(
            OmegaConf.create(yaml.load(file.read_text(encoding="utf-8"), Loader=BoundedLoader) or {})
        )
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DataError(
            f"'{file}' cannot be read ({one_line(error)}); remove the folder, or name other runs"
        ) from error
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, a dictionary a line; without what is none, as a line that was cut off by a kill."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return [line for line in map(entry_of, lines) if line is not None]


def entry_of(line: str) -> dict[str, Any] | None:
    """A line of a log; None where it is none.

    >>> entry_of('{"step": 3, "train/loss": 0.5}'), entry_of('{"step": 3, "tra'), entry_of("[3]"), entry_of("{}")
    ({'step': 3, 'train/loss': 0.5}, None, None, None)
    """
    with contextlib.suppress(ValueError):
        entry = read_json(line)
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            return entry
    return None
