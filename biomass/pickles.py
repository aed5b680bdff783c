"""Pickles, followed without making anything: what reading one would call, and what memory it would take.

:func:`torch.load` with ``weights_only`` runs no code of others, but it does what a file says: a few bytes can ask for a
tensor of a terabyte over a storage of one number, for a storage that is larger than what the file has of it, or for
lists that hold each other. So the steps of a pickle are taken here first, and make nothing but names and sizes.
"""

import _compat_pickle
import math
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import torch

from biomass.errors import CheckpointError, one_line

_DEEPEST = 50
_ITEMS = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
}
"""Bytes of a number in each kind of storage."""


def damaged(why: str) -> CheckpointError:
    """The error of a file whose bytes have changed, as the rest of a sentence about it; its reader says which file."""
    return CheckpointError(f"is damaged ({why}); copy it again, or name another")


def made_wrongly(why: str) -> CheckpointError:
    """The error of a file that is whole, and that no writer could have meant."""
    return CheckpointError(f"{why}: it was made wrongly; give one as it was written")


class _Named(NamedTuple):
    """A class or a function, by its name: none is looked up."""

    name: str


class _Storage(NamedTuple):
    length: int
    item: int


class _Made(NamedTuple):
    """What a call would make."""

    name: str


_TENSORS = {"_rebuild_tensor_v2", "_rebuild_parameter"}
_CALLED = {
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode"),
    *("torch.Size", "torch.device", "argparse.Namespace", "numpy.dtype"),
    *(f"{module}.PosixPath" for module in ("pathlib", "pathlib._local")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
}
DTYPES = ("?", "b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class PickleReader:
    """Follows a pickle with a stack, as reading it would, but makes no object and looks no name up.

    Args:
        storage: called with the name and the length in bytes of each storage; raises where it is not there.
        size: of the file, which tensors together may exceed a few times, as weights may be shared.
    """

    def __init__(self, storage: Callable[[str, int], None], size: int) -> None:
        self.storage, self.left = storage, 16 * size

    def read(self, file: IO[bytes]) -> Any:
        """The values of the next pickle, with names in the place of objects."""
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        steps = 0
        try:
            for opcode, argument, _ in pickletools.genops(file):
                steps += 1
                if opcode.name == "STOP" or (opcode.name == "PROTO" and argument == 2):
                    continue
                if opcode.name in _VALUES:
                    self.stack.append(argument)
                elif opcode.name in _NEW:
                    self.stack.append(_NEW[opcode.name]())
                else:
                    _STEPS[opcode.name](self, argument)
            (value,) = self.stack
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, UnicodeError) as error:
            raise damaged(f"its pickle cannot be followed: {one_line(error) or 'it ends too early'}") from error
        _check_nesting(value, 10 * steps + 1000)
        return value

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def put_down(self, value: Any) -> None:
        self.stack.append(value)

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if full in _CALLED or _kind(full) in _ITEMS or dtype or full == "torch.nn.parameter.Parameter":
            self.stack.append(_Named(full))
        elif full.partition(".")[2] in {f"_utils.{one}" for one in _TENSORS}:
            self.stack.append(_Named(name))
        elif module.startswith("torch._") or module in ("torch", "torch.storage"):
            raise CheckpointError(
                f"holds tensors of a kind that no network here has ({full}); save its state dict alone"
            )
        else:
            raise CheckpointError(
                f"holds pickled objects beside weights ({_shown(full)}), or is damaged, and is refused, since reading "
                "it would run code; save its state dict alone"
            )

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise damaged("it calls what is no function")
        if function.name == "_rebuild_tensor_v2":
            self.stack.append(self.tensor(*arguments[:4]))
        elif function.name == "_rebuild_parameter":
            if not arguments or arguments[0] != _Made("tensor"):
                raise damaged("a parameter is no tensor")
            self.stack.append(arguments[0])
        elif function.name in ("collections.OrderedDict", "collections.Counter"):
            self.stack.append(dict(*arguments))
        elif function.name in _CALLED:
            if function.name == "numpy.dtype" and (not arguments or str(arguments[0]).lstrip("<>=|") not in DTYPES):
                raise CheckpointError(
                    f"holds numbers of a type {_shown(str(arguments))} that is not known; save them alone"
                )
            self.stack.append(_Made(function.name))
        else:
            raise damaged(f"it calls {_shown(function.name)}")

    def build(self, _: Any) -> None:
        self.stack.pop()
        if not isinstance(self.stack[-1], dict) and self.stack[-1] not in (
            _Made("argparse.Namespace"),
            _Made("numpy.dtype"),
        ):
            raise damaged("it changes what is not to be changed")

    def tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> _Made:
        """A tensor, if it lies within its storage."""
        numbers = [offset, *size, *stride]
        if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(n) is not int for n in numbers):
            raise damaged("a tensor is not described as one")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else offset
        self.left -= count * storage.item
        if min(numbers) < 0 or last * storage.item > storage.length or self.left < 0:
            raise made_wrongly(f"says that a tensor is {str([*size])[:60]}, which is not in it")
        return _Made("tensor")

    def stored(self, _: Any) -> None:
        kind, named, key, _, count, *rest = self.stack.pop()
        if kind not in ("storage", b"storage") or any(one is not None for one in rest) or type(count) is not int:
            raise damaged("a storage is not described as one")
        length = count * _ITEMS[_kind(named.name)]
        if length < 0:
            raise damaged("a storage is shorter than nothing")
        self.storage(key, length)
        self.stack.append(_Storage(length, _ITEMS[_kind(named.name)]))

    def put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def items(self, values: list[Any]) -> None:
        keys = values[::2]
        if any(not isinstance(key, str | int | float | bytes | None) for key in keys):
            raise CheckpointError("has keys that are no names; save the state dict of its network alone")
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise damaged("what is no dictionary gets keys")
        target.update(zip(keys, values[1::2], strict=True))

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise damaged("what is no list gets items")
        self.stack[-1].extend(values)


_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_STEPS: dict[str, Callable[[PickleReader, Any], None]] = {
    "MARK": PickleReader.mark,
    "GLOBAL": PickleReader.named,
    "REDUCE": PickleReader.call,
    "NEWOBJ": PickleReader.call,
    "BUILD": PickleReader.build,
    "BINPERSID": PickleReader.stored,
    "TUPLE": lambda reader, _: reader.put_down(tuple(reader.pop_mark())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "APPEND": lambda reader, _: reader.extend([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.extend(reader.pop_mark()),
    "SETITEM": lambda reader, _: reader.items([reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.items(reader.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), PickleReader.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), PickleReader.get),
}
"""What torch reads with ``weights_only``, and no more."""


def _check_nesting(value: Any, most: int) -> None:
    """Refuse values that hold themselves, are nested too deeply, or hold the same ones in many places.

    A file of a hundred bytes can hold lists of lists of lists … of one list: as many as no walk over them ends.
    """
    sizes: dict[int, int] = {}

    def count(one: Any, depth: int) -> int:
        if not isinstance(one, dict | list | tuple | set) or isinstance(one, _Named | _Made | _Storage):
            return 1
        if id(one) not in sizes:
            if depth > _DEEPEST:
                raise made_wrongly("is nested too deeply for a checkpoint, or holds itself")
            sizes[id(one)] = 1 + sum(count(each, depth + 1) for each in _inside(one))
        return sizes[id(one)]

    if count(value, 0) > most:
        raise made_wrongly("holds the same values in too many places")


def _inside(values: Any) -> Iterator[Any]:
    return iter(values.values() if isinstance(values, dict) else values)


def _shown(text: str) -> str:
    return re.sub(r"\W+", ".", one_line(text))[:80]


def _kind(name: str) -> str:
    return name.removeprefix("torch.").removesuffix("Storage") if name.endswith("Storage") else ""
