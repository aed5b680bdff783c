"""What was measured on one machine, part by part, as a small JSON file that is whole after every figure."""

import importlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Figure
from biomass.errors import one_line

PACKAGES = (
    "biomass",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "lightning-fabric",
    "timm",
)
"""Whose versions are told, where they are installed."""


@dataclass
class Part:
    """The figures of one part.

    Attributes:
        title: what it is about, in a line.
        figures: so far.
        left_out: what was not measured, and why.
        seconds: it took in all.
        date: of the measurement.
    """

    title: str
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0
    date: str = ""


class Record:
    """All parts that one machine has measured.

    Args:
        path: the file; parts that are in it stay, if they come from such a machine with such versions.
        about: the machine and the versions, see :func:`about`.
        anew: all parts are measured, so that none needs to stay.

    Raises:
        SystemExit: the file holds parts of another machine, or of other versions, which would be lost.
    """

    def __init__(self, path: Path, about: dict[str, str], anew: bool = False) -> None:
        self.path, self.about = path, about
        self.parts: dict[str, Part] = {}
        if path.exists() and not anew:
            before = read(path)
            other = {
                name for name, value in (before.about | about).items() if before.about.get(name) != about.get(name)
            }
            if other:
                name = min(other, key=[*about, *before.about].index)
                raise SystemExit(
                    f"error: the figures in {path.name} come from another machine or other versions ({name} "
                    f"{before.about.get(name, 'unknown')}, here {about.get(name, 'unknown')}), and do not stand on one "
                    "page with new ones: measure all of them again, or give another --out"
                )
            self.parts = before.parts

    def measure(self, name: str, title: str, figures: Iterable[Figure], ends: float = float("inf")) -> None:
        """Take the figures of a part as they come, print and keep each; none is begun after ``ends``.

        What a part raises is what it leaves out: the others are measured all the same.
        """
        part = self.parts[name] = Part(title, date=time.strftime("%Y-%m-%d", time.gmtime()))
        start = time.perf_counter()
        coming = iter(figures)
        while True:
            if time.perf_counter() > ends:
                part.left_out.append("the rest: out of time")
                break
            try:
                figure = next(coming)
            except StopIteration:
                break
            except Exception as error:  # whatever the part runs into
                part.left_out.append(f"the rest: {type(error).__name__}: {one_line(error)}")
                break
            part.figures.append(figure)
            part.seconds = round(time.perf_counter() - start, 1)
            print(f"  {figure}", flush=True)
            self.save()
        for reason in part.left_out:
            print(f"  left out: {reason}", flush=True)
        self.save()

    def leave_out(self, name: str, title: str, why: str) -> None:
        """A part that is not measured."""
        self.parts[name] = Part(title, left_out=[why])
        print(f"  left out: {why}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        parts = {
            name: part.__dict__ | {"figures": [_as_json(figure) for figure in part.figures]}
            for name, part in self.parts.items()
        }
        part_file = self.path.with_suffix(".part")
        part_file.write_text(json.dumps({"about": self.about, "parts": parts}, indent=1) + "\n")
        part_file.replace(self.path)


def read(path: Path) -> Record:
    """What the file holds."""
    held = json.loads(path.read_text())
    record = Record.__new__(Record)
    record.path, record.about = path, held["about"]
    record.parts = {
        name: Part(**part | {"figures": [Figure(**figure) for figure in part["figures"]]})
        for name, part in held["parts"].items()
    }
    return record


def _as_json(figure: Figure) -> dict[str, Any]:
    """With four digits: no more are known."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figure._asdict().items()
    }


def measured_apart(module: str, quick: bool, pictures: Path) -> Iterator[Figure]:
    """The figures of a benchmark, measured in a fresh process: none sees what another has set or filled.

    Args:
        module: of the benchmark.
        quick: at a tiny size.
        pictures: the folder of what it draws.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield from pool.submit(_measure, module, quick, pictures).result()


def _measure(name: str, quick: bool, pictures: Path) -> list[Figure]:
    module = importlib.import_module(name)
    found: list[Figure] = module.measure(quick)
    if hasattr(module, "plot"):  # what has been measured is not measured again
        module.plot(pictures / module.PICTURE.name, quick)
    return found


def about(device: torch.device) -> dict[str, str]:
    """The machine and the versions, without names of hosts or users."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "threads": f"{torch.get_num_threads()}",
    }
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        found |= {"GPU": f"{of.name}, {of.total_memory / 2**30:.0f} GiB", "CUDA": f"{torch.version.cuda}"}
    found["Python"] = platform.python_version()
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The model of the CPU, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
