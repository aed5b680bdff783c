"""What runs in the process of :mod:`biomass.guarded`: a question a line on its input, an answer a line on its output.

It imports nothing of the package, so that it starts at once.
"""

import contextlib
import json
import math
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""Those that every h5py has. Others would be code that is looked for on the disk."""
_MOST_OBJECTS, _DEEPEST, _MOST_CHUNKS = 100_000, 32, 10_000_000
_LARGEST_CHUNK = 256 << 20  # bytes
_PART = 1 << 20  # values read at a time


def hdf5(file: str, skip: list[str], virtual: bool) -> None:
    """Look at everything in an HDF5 file, and read all of it but for the values of some datasets.

    Args:
        file: its path.
        skip: datasets of which only it is looked at whether their values are there.
        virtual: whether a dataset may be one over other files, whose values are not read either.
    """
    import h5py

    size = Path(file).stat().st_size
    with h5py.File(file, "r") as h5:
        met, waiting, declared = {_address(h5)}, [(h5, 0)], 0
        while waiting:
            group, depth = waiting.pop()
            _read_attributes(group)
            for name in group:
                link = group.id.links.get_info(name.encode("utf-8", "surrogateescape"))
                if link.type != h5py.h5l.TYPE_HARD:
                    kinds = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}
                    kind = kinds.get(link.type, "a link of an unknown kind")
                    raise BufferError(f"has {kind} '{name}', which is not followed")
                one = group[name]
                if _address(one) in met:
                    raise BufferError(f"holds '{one.name}' under two names, or in a loop")
                met.add(_address(one))
                if len(met) > _MOST_OBJECTS or depth > _DEEPEST:
                    raise BufferError(f"holds more than {_MOST_OBJECTS:,} objects, or folders {_DEEPEST} deep")
                if isinstance(one, h5py.Group):
                    waiting.append((one, depth + 1))
                elif isinstance(one, h5py.Dataset):
                    values = _check_stored(one, size, virtual)
                    declared += values if name not in skip else 0
                    if declared > _memory():
                        raise BufferError(f"declares {declared / 2**30:.0f} GiB, which is more than the memory here")
                    _read_attributes(one)
                    if name not in skip and values:
                        _read_values(one)
    return


def _address(thing: Any) -> Any:
    import h5py

    info = h5py.h5o.get_info(thing.id)
    return info.fileno, info.addr


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40


def _check_stored(data: Any, size: int, virtual: bool) -> int:
    """Make sure that all values of a dataset are in its file, in a way that can be read; how many bytes they are."""
    import h5py

    plan, name = data.id.get_create_plist(), data.name
    layout = plan.get_layout()
    if data.shape is None or 0 in data.shape:
        return 0
    if plan.get_external_count():
        raise BufferError(f"keeps '{name}' in another file, which is not read")
    if layout == h5py.h5d.VIRTUAL:
        if not virtual:
            raise BufferError(f"has '{name}' over other files, which are not read")
        return 0
    for number in range(plan.get_nfilters()):
        code, _, _, label = plan.get_filter(number)
        if code not in _FILTERS:
            known = label.decode(errors="replace")
            raise BufferError(f"packs '{name}' with filter {code} ({known}); {', '.join(_FILTERS.values())} are read")
    values = math.prod(data.shape) * data.id.get_type().get_size()
    if layout == h5py.h5d.CONTIGUOUS:
        start = data.id.get_offset()
        if start is None or start + values > size:
            raise BufferError(f"declares {data.shape} values for '{name}' that it does not hold")
    if layout == h5py.h5d.CHUNKED:
        _check_chunks(data, size)
    return values


def _check_chunks(data: Any, size: int) -> None:
    shape = data.chunks
    each = math.prod(shape) * data.id.get_type().get_size()
    expected = math.prod(-(-a // b) for a, b in zip(data.shape, shape, strict=True))
    if each > _LARGEST_CHUNK:
        raise BufferError(f"keeps '{data.name}' in chunks of {each >> 20:,} MiB; {_LARGEST_CHUNK >> 20} is the most")
    found = data.id.get_num_chunks() if expected <= _MOST_CHUNKS else 0
    if found < expected:
        raise BufferError(f"declares {data.shape} values for '{data.name}' that it does not hold")
    packed = bool(data.id.get_create_plist().get_nfilters())
    wrong: list[Any] = []

    def look(chunk: Any) -> None:
        right = chunk.size <= each + each // 50 + 1024 if packed else chunk.size == each
        if not right or chunk.byte_offset is None or chunk.byte_offset + chunk.size > size:
            wrong.append(chunk.chunk_offset)

    data.id.chunk_iter(look)
    if wrong:
        raise BufferError(f"is damaged: the chunk {wrong[0]} of '{data.name}' is not in it")


def _read_attributes(thing: Any) -> None:
    for name in thing.attrs:
        thing.attrs[name]


def _read_values(data: Any) -> None:
    """Read all values, some at a time, and forget them."""
    if data.chunks and data.id.get_create_plist().get_nfilters():
        offsets: list[Any] = []
        data.id.chunk_iter(lambda chunk: offsets.append(chunk.chunk_offset))
        for offset in offsets:
            check_chunk(data, offset)
    if not data.shape:
        data[()]
        return
    rows = max(1, _PART // max(1, math.prod(data.shape[1:])))
    for start in range(0, data.shape[0], rows):
        data[start : start + rows]


def check_chunk(data: Any, offset: Any) -> None:
    """Make sure that a chunk which gzip has packed is not more than a chunk, before libhdf5 unpacks it."""
    plan = data.id.get_create_plist()
    codes = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if 1 not in codes:
        return
    mask, packed = data.id.read_direct_chunk(offset)
    if mask & (1 << codes.index(1)):
        return
    each = math.prod(data.chunks) * data.id.get_type().get_size()
    if len(zlib.decompressobj().decompress(packed, each + 1)) != each:
        raise BufferError(f"is damaged: the chunk {tuple(offset)} of '{data.name}' is not as large as a chunk")


def workbook(file: str) -> dict[str, list[list[Any]]]:
    """The cells of all sheets of a workbook, by the names of the sheets; dates as text in a list of one."""
    import datetime

    import python_calamine

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            return [value.isoformat()]
        return value if isinstance(value, str | int | float | None) else str(value)

    with python_calamine.load_workbook(file) as book:
        found = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in book.sheet_names}
    return {name: [list(map(plain, row)) for row in rows] for name, rows in found.items()}


def main(memory: int) -> None:
    """Answer until nobody asks any more."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # where there are such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    tasks: dict[str, Callable[..., Any]] = {"hdf5": hdf5, "workbook": workbook}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"found": tasks[question["task"]](question["file"], **question["options"])}
        except BufferError as error:
            answer = {"why": str(error)}
        except MemoryError:
            answer = {"why": "takes more memory than any such file should"}
        except BaseException as error:  # of the library; a panic of one in Rust is no Exception
            answer = {"why": f"cannot be read ({error or type(error).__name__})"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
