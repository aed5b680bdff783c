"""What of Hydra's own settings a file may say.

Hydra's section ``hydra`` can start programs: it names classes of callbacks and of log handlers, variables of the
environment, and lines of a shell for Slurm. The command line is the user's own, and may say all of it. A file may come
from anybody, and may say where things are written, how they are logged and what is swept, but run nothing.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from biomass.errors import ConfigError, shown

_PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
_TARGETS = {"hydra.callbacks.folders._target_": "biomass.runs.Folders"}
_LOGGING = {
    "()": {"colorlog.ColoredFormatter"},
    "class": {
        "biomass.diskerrors.LogFile",
        "biomass.diskerrors.Terminal",
        "logging.StreamHandler",
        "logging.FileHandler",
        "logging.NullHandler",
        "logging.Formatter",
    },
    "filename": {"${hydra.runtime.output_dir}/${hydra.job.name}.log"},
    "stream": {"ext://sys.stdout", "ext://sys.stderr"},
}
"""In the sections of logging, what of each key's values is harmless."""
_PROGRAMS = re.compile(r"hydra\.(job\.env_set|launcher\.(setup|python|additional_parameters|srun_args))(\.|$)")
"""Settings that become programs, or what programs find in their environment."""


def foreign_settings(section: Any, place: str = "hydra") -> Iterator[tuple[str, Any]]:
    """The settings of a composed section ``hydra`` that run what they name, with their values.

    Args:
        section: plain, its references not resolved.
        place: its key.

    >>> dict(foreign_settings({"callbacks": {"mine": {"_target_": "os.system"}}, "run": {"dir": "a"}}))
    {'hydra.callbacks.mine._target_': 'os.system'}
    """
    if isinstance(section, dict):
        for key, value in section.items():
            yield from foreign_settings(value, f"{place}.{key}")
            if place == "hydra.sweeper.params" and _is_for_typing(str(key).lstrip("+~"), str(value)):
                yield f"{place}.{key}", value
        return
    if isinstance(section, list):
        for number, value in enumerate(section):
            yield from foreign_settings(value, f"{place}.{number}")
    if section and not _is_harmless(section, place):
        yield place, section


def _is_for_typing(key: str, value: str) -> bool:
    """Whether a sweep of this key would pass for something that the user typed."""
    return bool(re.match(r"hydra\b|own_code$", key)) or (key == "model.key" and ":" in value)


def _is_harmless(value: Any, place: str) -> bool:
    key = place.rpartition(".")[2]
    if key == "_target_":
        plugin = place in ("hydra.launcher._target_", "hydra.sweeper._target_") and str(value).startswith(_PLUGINS)
        return plugin or _TARGETS.get(place) == value
    if re.match(r"hydra\.(job|hydra)_logging\.", place):
        return value in _LOGGING[key] if key in _LOGGING else not re.match(r"(ext|cfg)://", str(value))
    return not _PROGRAMS.match(place)


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's, which composes every configuration; here what a file says of Hydra itself is looked at."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **options: Any
    ) -> DictConfig:
        """A composed configuration.

        Raises:
            ConfigError: a file would run code.
        """
        config = super().load_configuration(config_name, overrides, *args, **options)
        check_settings(OmegaConf.to_container(config.hydra), overrides)
        return config


def check_settings(section: Any, typed: Sequence[str]) -> None:
    """Raise ConfigError where a section ``hydra`` would run what nobody typed.

    Args:
        section: plain, its references not resolved.
        typed: settings as the user typed them.
    """
    keys = [text.lstrip("+").partition("=")[0] for text in typed if text.lstrip("+").startswith("hydra.")]
    for place, value in foreign_settings(section):
        if not any(f"{place}.".startswith(f"{key}.") for key in keys):
            raise ConfigError(
                f"{place} is {shown(value)} in a file, which may come from anybody, and would run what it names; take "
                "it out of the file, or, if you trust it, type it on the command line"
            )
