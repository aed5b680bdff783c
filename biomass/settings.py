"""A composed configuration: what its values may be, which of them were read, and what is made of it."""

import copy
import errno
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.diskerrors import explain_disk
from biomass.errors import BiomassError, ConfigError, did_you_mean, explain, one_line, shown
from biomass.keys import KEYS, SECTION, SHARD, Kind, advice_where
from biomass.shards import parse_shard
from biomass.targets import TARGET, Node, check_target, make
from biomass.words import words_in


class Config:
    """A read-only view of a composed configuration that remembers which keys were read.

    Every key of an experiment must have a reader: a misspelt key would otherwise be ignored in silence. Sections are
    views themselves; lists, and sections with a ``_target_`` (for :func:`build`), come as plain values.

    Args:
        node: as it was composed.
        typed: what of it the user typed. A file may come from anybody, so that only this may name code of others.

    Raises:
        ConfigError: a value is not what :data:`KEYS` says of its key, or code of others is named by a file.
    """

    def __init__(self, node: DictConfig, typed: Sequence[str] = ()) -> None:
        self._node = copy.deepcopy(node)
        self._path = ""
        self._read = set(re.findall(r"\$\{([\w.]+)\}", OmegaConf.to_yaml(node)))  # through interpolation
        plain = OmegaConf.to_container(self._node)
        _check_text(plain)
        _check_values(self._node, "")  # all at once: a wrong learning rate is known before a screen is downloaded
        self._own = _own_code(self._node, typed)
        self._read.add("own_code")
        _check_targets(plain, self._own)

    def _section(self, node: DictConfig, path: str) -> "Config":
        section = copy.copy(self)
        section._node, section._path = node, path
        return section

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._node:
            path = f"{self._path}{key}"
            hint = did_you_mean(key, self._node, "add it to the YAML")
            raise ConfigError(f"key '{path}' is missing; {f'take ~{path} out' if f'~{path}' in overrides() else hint}")
        value = _value(self._node, key, self._path)
        if isinstance(value, DictConfig) and "_target_" not in value:
            return self._section(value, f"{self._path}{key}.")
        self._read.add(f"{self._path}{key}")
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return Node.of(plain, f"{self._path}{key}", self._own)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where the key is absent or null."""
        value = getattr(self, key) if key in self._node else None
        return default if value is None else value

    def explain(self, error: BiomassError) -> str:
        """The message of an error, or of a warning that has the form of one, with the key of this script to set."""
        return explained(error, self._node)

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, or a section with all its keys, as plain, resolved values."""
        if self._path:
            self._read.add(self._path.removesuffix("."))
        return {key: _value(self._node, key, self._path, plain=True) for key in map(str, self._node)}

    def check_all_read(self) -> None:
        """Call this when everything is built and nothing is written yet.

        Raises:
            ConfigError: a key that nothing has read, with the nearest key that exists.
        """
        for path in _leaves(self._node, ""):
            if path in KEYS and OmegaConf.select(self._node, path) is None:
                continue  # null, for another choice of dataloaders than this one
            if not any(path == read or path.startswith(f"{read}.") for read in self._read):
                raise ConfigError(f"unknown key '{path}'; {did_you_mean(path, self._read, 'remove it')}")


def _value(node: DictConfig, key: str, path: str, plain: bool = False) -> Any:
    try:
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if plain and OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, RecursionError) as error:
        place = getattr(error, "full_key", None) or f"{path}{key}"
        given = _raw(OmegaConf.to_container(node._get_root()), place)
        cause = "it refers to itself" if isinstance(error, RecursionError) else one_line(str(error).split("\n")[0])
        raise ConfigError(
            f"{place} is {shown(given)}, which leads to nothing ({cause}); refer to a key that is there (--cfg job "
            "lists them), or write a value"
        ) from error


def _raw(value: Any, place: str) -> Any:
    """What stands at a key, with its references as they are written."""
    for part in re.findall(r"[^.\[\]]+", place):
        value = value.get(part) if isinstance(value, dict) else value[int(part)] if isinstance(value, list) else None
    return value


def _check_values(node: DictConfig, path: str) -> None:
    """Compare the values of a section with :data:`KEYS`, and turn names that look like numbers into text."""
    for key in map(str, node):
        kind = KEYS.get(f"{path}{key}")
        if kind is None:
            continue
        if kind is SECTION and isinstance(section := _value(node, key, path), DictConfig):
            _check_values(section, f"{path}{key}.")
            continue
        value = _value(node, key, path, plain=True)
        if kind.text and not (key == "resume" and isinstance(value, bool)) and value != (text := _as_text(value)):
            value = node[key] = text
        if kind is SHARD:
            parse_shard(value)
        if not _fits(value, kind):
            hint = f"; write [{value}]" if kind.types is list and _fits([value], kind) else ""
            raise ConfigError(f"{path}{key} is {shown(value)}; it must be {kind.what}{hint}")
        for word in (value if isinstance(value, list) else [value]) if kind.words and value else ():
            known = [w for one in kind.words for w in (words_in(one) if "." in one else (one,))]
            if word not in known:
                raise ConfigError(f"{path}{key} is {shown(word)}; {did_you_mean(word, known)}")
        for name in kind.names & value.keys() if kind.names and value else ():
            names = _names(value[name], f"{path}{key}.{name}")
            if names != value[name]:
                node[key][name] = names


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _names(value: Any, path: str, item: bool = False) -> Any:
    """Names as text, however nested; refused where it is not certain how they were written."""
    if isinstance(value, list):
        return [_names(one, path, True) for one in value]
    if isinstance(value, dict) and TARGET in value:  # makes what is named
        return value
    if isinstance(value, dict):
        return {_names(key, path, True): _names(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, bool | float) or (item and value is None):
        raise ConfigError(f"{path} holds {shown(value)}, which may have been written otherwise; put the name in quotes")
    return str(value) if isinstance(value, int) else value


def _fits(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.null
    if not isinstance(value, kind.types) or (isinstance(value, bool) and kind.types is not bool):
        return False
    if isinstance(value, int | float):
        return kind.least <= value < math.inf
    if isinstance(value, str):
        return value != ""
    if isinstance(value, list):
        return kind.item is None or all(_fits(one, kind.item) for one in value)
    return not isinstance(value, dict) or not kind.target or "_target_" in value


def _check_text(value: Any, place: str = "") -> None:
    """Raise ConfigError for text that no file can hold: a configuration is written beside what it made."""
    if isinstance(value, dict):
        for key, one in value.items():
            _check_text(str(key), f"a key of {place}" if place else "a key")
            _check_text(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_text(one, f"{place}.{number}")
    elif isinstance(value, str):
        odd = re.search("[\0\ud800-\udfff]", value)
        if odd:
            what = "a byte that is 0" if odd[0] == "\0" else "bytes that are not text in UTF-8"
            raise ConfigError(
                f"{place} is {shown(value.encode('utf-8', 'replace').decode())}, which holds {what}; type it again"
            )


def _own_code(node: DictConfig, typed: Sequence[str]) -> tuple[str, ...]:
    """Packages, modules and functions of others that the user named; refused where a file names some."""
    parsed = OverridesParser.create().parse_overrides([one for one in typed if re.match(r"\+*own_code=", one)])
    values = [value if isinstance(value, list) else [value] for value in (one.value() for one in parsed)]
    own = tuple(str(one) for value in values for one in value if one)
    foreign = next((one for one in node.get("own_code") or () if one not in own), None)
    if foreign is not None:
        raise ConfigError(
            f"own_code names '{foreign}' in a file, which may come from anybody; if you trust this code, type "
            f"own_code=[{foreign}] on the command line"
        )
    key = OmegaConf.select(node, "model.key")
    if isinstance(key, str) and ":" in key and not any(re.match(r"\+*model\.key=", one) for one in typed):
        module = key.partition(":")[0]
        if not any(f"{module}.".startswith(f"{one}.") for one in own):
            raise ConfigError(
                f"model.key is '{key}' in a file, which may come from anybody; if you trust this code, type "
                f"model.key={key} on the command line"
            )
    return own


def _check_targets(value: Any, own: Sequence[str], place: str = "") -> None:
    """Raise ConfigError where something may not be made: before anything is."""
    if isinstance(value, dict):
        if TARGET in value and not str(value[TARGET]).startswith("${"):
            check_target(value[TARGET], own, place)
        for key, one in value.items():
            _check_targets(one, own, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check_targets(one, own, f"{place}.{number}")


def _leaves(node: DictConfig, path: str) -> Iterator[str]:
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation() and len(value):
            yield from _leaves(value, f"{path}{key!s}.")
        else:
            yield f"{path}{key!s}"


def build(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Make the object that a configuration node names with ``_target_``: a Screen, or a transform.

    A node of a :class:`Config` may also name code that the user named on the command line. Any other, such as one of
    a checkpoint, names only what this package offers, see :func:`biomass.targets.find_target`.

    Args:
        node: ``_target_`` and its keyword arguments.
        arguments: further keyword arguments, which win over those of the node.

    Raises:
        ConfigError: the target may not be called, does not exist or does not take an argument. Errors of the family
            pass as they are.
    """
    own, place = (node.own, node.place) if isinstance(node, Node) else ((), "")
    try:
        return make(node, arguments, own, place)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ConfigError(explain_disk(error)) from error


def overrides() -> list[str]:
    """What the command line, or a sweep, gives this job; nothing where it was not started by Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_given(key: str) -> bool:
    """Whether the command line, or a sweep, gives this job a value of a key."""
    return any(text.lstrip("+").partition("=")[0] == key for text in overrides())


def is_left(key: str) -> bool:
    """Whether there is a command line, and it leaves a key as its file has it."""
    return HydraConfig.initialized() and not is_given(key)


def explained(error: BiomassError, node: DictConfig) -> str:
    """The message of an error, or of a warning that has the form of one, with the key of this script to set."""
    return explain(error, advice_where(functools.partial(_has, node)))


def _has(node: DictConfig, key: str) -> bool:
    section, _, last = key.rpartition(".")
    try:
        parent = OmegaConf.select(node, section) if section else node
        return isinstance(parent, DictConfig) and last in parent
    except OmegaConfBaseException:  # a reference to nothing, which is perhaps what the error is about
        return False
