"""What a section with a ``_target_`` may call, and with which arguments.

A configuration may come from anybody: as a preset, in a checkpoint, in the folder of a run. It is data, and nothing in
it may run code that its reader did not choose. So a target is a function of :mod:`biomass.datasets` that gives a
Screen, or a class of :mod:`biomass.transforms`, or code of others that the user has named himself. Its arguments are
compared with its signature before it is called.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from biomass.errors import BiomassError, ConfigError, did_you_mean, one_line, shown
from biomass.signatures import check_call
from biomass.words import words_in

TARGET = "_target_"
_SOURCES, _TRANSFORMS = "biomass.datasets", "biomass.transforms"
_WHAT = {
    _SOURCES: "a function of biomass.datasets that gives a screen",
    _TRANSFORMS: "one of biomass.transforms",
}
_OF_HYDRA = ("_args_", "_partial_", "_recursive_", "_convert_")


class Node(dict[str, Any]):
    """A section with a ``_target_``, as a configuration has it.

    Attributes:
        place: its key, for messages.
        own: packages, modules and functions of others that the user named.
    """

    place: str = ""
    own: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any, place: str, own: tuple[str, ...] = ()) -> Any:
        """A plain value whose sections with a target, itself or those of a list, know where they stand."""
        if isinstance(value, list):
            return [cls.of(one, f"{place}.{number}", own) for number, one in enumerate(value)]
        if not isinstance(value, dict) or TARGET not in value:
            return value
        node = cls(value)
        node.place, node.own = place, own
        return node


def find_target(name: object, own: Sequence[str] = (), place: str = "") -> Callable[..., Any]:
    """The function or class that a ``_target_`` names, if it may be called.

    Args:
        name: as the configuration has it.
        own: packages, modules and functions of others that the user named.
        place: the key of its section, which says what may stand there: sources or transforms.

    Raises:
        ConfigError: it may not be called, or it is not there.

    >>> find_target("biomass.transforms.Standardize").__name__
    'Standardize'
    >>> find_target("os.system")
    Traceback (most recent call last):
    biomass.errors.ConfigError: _target_ is "os.system", which is code of others, and runs only if you name it yourself
    """
    where = f"{place}.{TARGET}" if place else TARGET
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"{where} is {shown(name)}; it must be the dotted name of a function, such as package.module.f"
        )
    rooms = _rooms(place)
    room = next((one for one in rooms if name.startswith(f"{one}.")), None)
    if room is not None:
        return _of_package(name, room, where)
    if any(name == one or name.startswith(f"{one}.") for one in own):
        return _of_others(name, where)
    if name.startswith("biomass."):
        raise ConfigError(f"{where} is {shown(name)}; it must be {' or '.join(_WHAT[one] for one in rooms)}")
    raise ConfigError(
        f"{where} is {shown(name)}, which is code of others, and runs only if you name it yourself", "own_target"
    )


def check_target(name: object, own: Sequence[str] = (), place: str = "") -> None:
    """Raise ConfigError where :func:`find_target` does. Transforms are not imported for it, which takes torch.

    >>> check_target("biomass.transforms.RandomCorp")
    Traceback (most recent call last):
    biomass.errors.ConfigError: _target_ is "biomass.transforms.RandomCorp"; did you mean 'RandomCrop'?
    """
    module, _, last = str(name).rpartition(".")
    if module != _TRANSFORMS or _TRANSFORMS not in _rooms(place):
        find_target(name, own, place)
        return
    known = [one for one in words_in(f"{_TRANSFORMS.removeprefix('biomass.')}.__init__.__all__") if one != "Transform"]
    if last not in known:
        where = f"{place}.{TARGET}" if place else TARGET
        raise ConfigError(f"{where} is {shown(name)}; {did_you_mean(last, known)}")


def _rooms(place: str) -> tuple[str, ...]:
    if place.startswith("transforms"):
        return (_TRANSFORMS,)
    return (_SOURCES,) if place.startswith("dataloaders") else (_SOURCES, _TRANSFORMS)


def _of_package(name: str, room: str, where: str) -> Callable[..., Any]:
    module, _, last = name.rpartition(".")
    try:
        there = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("biomass."):
            raise
        found = importlib.import_module(room).__path__
        known = [f"{room}.{file.stem}" for folder in found for file in sorted(Path(folder).glob("[!_]*.py"))]
        raise ConfigError(
            f"{where} is {shown(name)}, and there is no module '{module}'; {did_you_mean(module, known, _must(room))}"
        ) from error
    target: Any = getattr(there, last, None)
    if not _is_offered(target, room):
        known = [one for one in vars(there) if _is_offered(getattr(there, one), room)]
        raise ConfigError(f"{where} is {shown(name)}; {did_you_mean(last, known) or _must(room)}")
    return cast(Callable[..., Any], target)


def _must(room: str) -> str:
    return f"it must be {_WHAT[room]}"


def _is_offered(target: Any, room: str) -> bool:
    """Whether it is what a package's room is there to give: of Screens, of transforms."""
    if room == _TRANSFORMS:
        offered = importlib.import_module(room)
        return inspect.isclass(target) and target.__name__ in offered.__all__ and target.__name__ != "Transform"
    if not inspect.isfunction(target) or not target.__module__.startswith("biomass.") or target.__name__[0] == "_":
        return False
    given = target.__annotations__.get("return")
    # a simulated collection is a folder, which a source reads
    return getattr(given, "__name__", given) == "Screen" or target.__name__.startswith("simulate_")


def _of_others(name: str, where: str) -> Callable[..., Any]:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                continue  # what stands before may be a class
            why = one_line(error)
            raise ConfigError(f"{where} is {shown(name)}, which cannot be imported ({why}); install it") from error
        except Exception as error:  # whatever the code of others raises
            why = f"{type(error).__name__}: {one_line(error)}"
            raise ConfigError(f"{where} is {shown(name)}, which cannot be imported ({why}); mend it") from error
        for part in parts[end:]:
            if not hasattr(found, part):
                hint = did_you_mean(part, vars(found), f"write a function of '{module}'")
                raise ConfigError(f"{where} is {shown(name)}, and '{module}' has no '{part}'; {hint}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{where} is {shown(name)}, which is not a function but a {type(found).__name__}")
        return found
    raise ConfigError(
        f"{where} is {shown(name)}, which is not installed; install its package, or run where its file is on PYTHONPATH"
    )


def make(node: Mapping[str, Any], arguments: Mapping[str, Any], own: Sequence[str] = (), place: str = "") -> Any:
    """Call what a section names with what else it holds.

    Args:
        node: ``_target_`` and its arguments; sections in it that have a target are made first.
        arguments: more of them, which win over those of the section.
        own: see :func:`find_target`.
        place: likewise.

    Raises:
        ConfigError: the target may not be called, or does not take these arguments. Errors of the family pass.

    >>> make({"_target_": "biomass.transforms.RandomCrop", "size": 8}, {})
    RandomCrop(size=8)
    >>> make({"_target_": "biomass.transforms.RandomCrop", "sizes": 8}, {}, place="transforms.train.0")
    Traceback (most recent call last):
    biomass.errors.ConfigError: transforms.train.0.sizes is unknown: RandomCrop takes no 'sizes'; did you mean 'size'?
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{place} is {shown(node)}; it must be a section with a {TARGET}")
    odd = next((name for name in _OF_HYDRA if name in node), None)
    prefix = f"{place}." if place else ""
    if odd is not None:
        raise ConfigError(f"{prefix}{odd} is not taken: a section holds {TARGET} and its arguments; remove it")
    target = find_target(node.get(TARGET), own, place)
    given = {str(key): _made(one, own, f"{prefix}{key}") for key, one in node.items() if key != TARGET}
    values = check_call(target, given | dict(arguments), prefix)
    if target.__module__.split(".")[0] == "biomass":
        return target(**values)
    try:
        return target(**values)
    except BiomassError:
        raise
    except Exception as error:  # whatever the code of others raises
        raise ConfigError(
            f"{prefix}{TARGET} is {shown(node[TARGET])}, which failed ({type(error).__name__}: {one_line(error)}); "
            "look at its arguments, or at its code"
        ) from error


def _made(value: Any, own: Sequence[str], place: str) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            return make(value, {}, own, place)
        return {key: _made(one, own, f"{place}.{key}") for key, one in value.items()}
    return [_made(one, own, f"{place}.{n}") for n, one in enumerate(value)] if isinstance(value, list) else value
