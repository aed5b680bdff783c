"""What a folder of results holds, as the meaning of each piece: so that two runs can be compared bit by bit."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LEFT = "left over: "
"""Before the name of a file that must not be there."""


def fingerprint(folder: Path) -> dict[str, str]:
    """Every piece of every result below a folder: ``file#piece`` → a digest of its meaning.

    Tensors of a checkpoint, values of a log, columns of a table and points of TensorBoard are pieces of their own.
    """
    found: dict[str, str] = {}
    events: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("outputs/", "data/")) or not path.is_file() or path.name.endswith((".lock", ".log")):
            continue
        if path.name.endswith(".part") or ".tmp" in path.name:
            found[f"{LEFT}{name}"] = ""
        elif path.name.startswith("events.out"):
            events.add(path.parent)
        else:
            found |= {f"{name}#{piece}": _digest(value) for piece, value in _pieces(path)}
    for parent in events:
        where = parent.relative_to(folder).as_posix()
        found |= {f"{where}/events#{piece}": value for piece, value in _points(parent).items()}
    return found


def differences(reference: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What is missing, other or left over, the worst first."""
    left = [name for name in found if name.startswith(LEFT)]
    missing = [f"missing: {name}" for name in reference if name not in found]
    others = [f"other: {name}" for name, value in reference.items() if found.get(name, value) != value]
    more = [f"more: {name}" for name in found if "events#" in name and name not in reference]
    return [*others, *missing, *more, *left]


def _pieces(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix
    if suffix in (".pt", ".json"):
        import torch

        state = (
            torch.load(path, map_location="cpu", weights_only=False)
            if suffix == ".pt"
            else json.loads(path.read_text())
        )
        yield from _leaves(state, "")
    elif suffix == ".jsonl":
        for number, line in enumerate(path.read_text().splitlines()):
            yield from _leaves(
                {k: v for k, v in json.loads(line).items() if k not in ("time", "seconds")}, f"{number}."
            )
        yield "lines", len(path.read_text().splitlines())
    elif suffix == ".parquet":
        import pandas as pd

        frame = pd.read_parquet(path)
        yield "columns", str(list(frame))
        for column in frame:
            yield str(column), frame[column].to_csv(index=False)
    else:
        yield "", path.read_bytes()


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{path}{key}.")
    elif isinstance(value, list | tuple) and len(value) < 200:
        for number, one in enumerate(value):
            yield from _leaves(one, f"{path}{number}.")
    else:
        yield path.removesuffix("."), value


def _digest(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        value = f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().contiguous().view(-1).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        value = f"{value.dtype}{value.shape}".encode() + value.tobytes()
    data = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _points(folder: Path) -> dict[str, str]:
    """The scalars that TensorBoard shows: tag and step → all values there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 1, "images": 1})
    board.Reload()
    points = defaultdict(list)
    for tag in board.Tags()["scalars"]:
        for event in board.Scalars(tag):
            points[f"{tag}@{event.step}"].append(repr(event.value))
    return {piece: ",".join(values) for piece, values in points.items()}
