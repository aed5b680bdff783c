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
    """What a run logged, a dictionary a line, without a line that was cut off when the run was stopped."""
    file, lines = folder / "metrics.jsonl", []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            lines.append(read_json(line))
    return lines
