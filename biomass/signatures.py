"""Whether arguments from a file are what a function takes, by its signature and annotations, before it is called."""

import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from biomass.errors import ConfigError, did_you_mean, shown

_WORDS: dict[Any, str] = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    Path: "a name or path",
}


_LISTS = (Sequence, Collection, Iterable, list, tuple, set, frozenset)


def check_call(target: Callable[..., Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Compare arguments with the signature of what takes them, as far as its annotations go.

    Args:
        target: a function or class.
        values: its arguments, by name.
        prefix: of their names in messages.

    Returns:
        The same; a whole number stands for its text where a name is asked for, as a folder may be called 20261124.

    Raises:
        ConfigError: one is unknown, missing, or not what the annotation says.

    >>> def read(path: Path, time: int | None = None, depths: Literal["error", "scale"] = "error") -> None: ...
    >>> check_call(read, {"path": 2024})
    {'path': '2024'}
    >>> check_call(read, {"path": "a", "time": "late"}, "source.")
    Traceback (most recent call last):
    biomass.errors.ConfigError: source.time is "late"; it must be a whole number or null
    """
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:  # a name that only the type checker knows
        signature = inspect.signature(target)
    except ValueError:  # a function in C, which says nothing
        return dict(values)
    name, known = getattr(target, "__name__", str(target)), signature.parameters
    kinds = {one.kind for one in known.values()}
    named = [key for key, one in known.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    unknown = next((key for key in values if key not in named), None)
    if unknown is not None and inspect.Parameter.VAR_KEYWORD not in kinds:
        hint = did_you_mean(unknown, named, "remove it")
        raise ConfigError(f"{prefix}{unknown} is unknown: {name} takes no '{unknown}'; {hint}")
    lacking = next((key for key in named if known[key].default is inspect.Parameter.empty and key not in values), None)
    if lacking is not None:
        raise ConfigError(f"{prefix}{lacking} is missing, which {name} needs; it must be {_words(known[lacking])}")
    return {key: _checked(value, known.get(key), f"{prefix}{key}") for key, value in values.items()}


def _checked(value: Any, parameter: inspect.Parameter | None, where: str) -> Any:
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return value
    if value is None and parameter.default is None:
        return None
    try:
        return _fit(value, parameter.annotation)
    except TypeError:
        must = _words(parameter)
        hint = ""
        try:
            _fit([value], parameter.annotation)
            hint = f"; write [{value}]" if not isinstance(value, list | Mapping) else ""
        except TypeError:
            pass
        choices = _choices(parameter.annotation)
        if choices and isinstance(value, str) and "did you mean" in (near := did_you_mean(value, choices)):
            hint = f"; {near}"
        raise ConfigError(f"{where} is {shown(value)}; it must be {must}{hint}") from None


def _fit(value: Any, hint: Any) -> Any:
    """The value, as an annotation asks for it; raises :class:`TypeError`. What the annotation leaves open passes."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return _if(value is None, value)
    if origin in (Union, types.UnionType):
        return _fit_any(value, args)
    if origin is Literal:
        return _if(any(value == one and type(value) is type(one) for one in args), value)
    if hint is bool:
        return _if(isinstance(value, bool), value)
    if hint is int:
        return _if(isinstance(value, int) and not isinstance(value, bool), value)
    if hint is float:
        return _if(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value), value)
    if hint in (str, Path):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return _if((isinstance(value, str) and value != "") or isinstance(value, Path), value)
    kind = origin or hint
    if kind in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise TypeError
        keys, items = args or (Any, Any)
        return {_fit(key, keys): _fit(one, items) for key, one in value.items()}
    if kind in _LISTS:
        return _fit_list(value, kind, args)
    if inspect.isclass(kind) and getattr(kind, "_is_protocol", False) is False and hint is not Any:
        return _if(isinstance(value, kind), value)
    if (
        hint is Any
        or isinstance(hint, TypeVar | str)
        or not isinstance(value, Mapping | list | str | int | float | None)
    ):
        return value
    raise TypeError  # a protocol, which nothing that a file holds is


def _if(fits: bool, value: Any) -> Any:
    if not fits:
        raise TypeError
    return value


def _fit_any(value: Any, hints: Sequence[Any]) -> Any:
    # a whole number is one before it is a name
    for hint in sorted(hints, key=lambda one: one in (str, Path)):
        try:
            return _fit(value, hint)
        except TypeError:
            continue
    raise TypeError


def _fit_list(value: Any, kind: Any, args: Sequence[Any]) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError
    if kind is tuple and args and Ellipsis not in args:
        if len(value) != len(args):
            raise TypeError
        return [_fit(one, hint) for one, hint in zip(value, args, strict=True)]
    return [_fit(one, args[0] if args else Any) for one in value]


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [one for part in get_args(hint) for one in _choices(part)] if get_origin(hint) is not None else []


def _words(parameter: inspect.Parameter) -> str:
    """What an argument may be, in words."""
    words = _alternatives(parameter.annotation)
    if parameter.default is None and "null" not in words:
        words.append("null")
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _alternatives(hint: Any) -> list[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        several = dict.fromkeys(word for one in args for word in _alternatives(one))
        if "a name or path" in several:
            several.pop("a word", None)
        return [*(word for word in several if word != "null"), *(["null"] if "null" in several else [])]
    if origin is Literal:
        return [str(one) for one in args]
    kind = origin or hint
    if kind in (Mapping, dict):
        return ["a section, such as {name: value}"]
    if kind in _LISTS:
        of = _alternatives(args[0]) if args and args[0] is not Ellipsis else []
        number = f"{len(args)} " if kind is tuple and args and Ellipsis not in args else ""
        plain = " or ".join(of) if of and of != ["what it takes"] else ""
        return [f"a list of {number}items, each {plain}" if plain else "a list"]
    if inspect.isclass(kind) and kind not in _WORDS and hint is not Any:
        return [f"a section with a _target_ that gives a {kind.__name__}"]
    return [_WORDS.get(hint, "what it takes")]
