"""What the simulated screens have in common: checked parameters, independent random numbers, a folder written once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from biomass.atomic import leftovers, whole_folder, writing
from biomass.errors import ConfigError, did_you_mean, printable

D = TypeVar("D", bound="ScreenDesign")
P = TypeVar("P")
R = TypeVar("R")

STRONGEST = 30
"""The largest strength of an effect, a shift or a density: far more than leaves anything to see."""

MOST_VALUES = 10**10
"""The most pixels, or features, of a simulated screen."""


@dataclass(frozen=True, kw_only=True)
class ScreenDesign:
    """The parameters of a simulated screen: the same design is the same screen, bit for bit.

    Attributes:
        seed: everything random follows from it.
    """

    VERSION: ClassVar[int]
    """Part of a screen's identity: raise it with every change that changes a pixel."""
    WORLD: ClassVar[tuple[int, ...]]
    """Keeps the random numbers of two kinds of screens apart."""
    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Parameters that came later: at their defaults they change no pixel, and are no part of a screen's identity."""

    seed: int = 0

    @property
    def name(self) -> str:
        """A short hash of the parameters: the name of the screen's folder."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]

    def to_json(self) -> str:
        """The parameters, as they are kept with the screen."""
        untouched = {f.name for f in fields(self) if f.name in self.ADDED and getattr(self, f.name) == f.default}
        kept = {name: value for name, value in asdict(self).items() if name not in untouched}
        return json.dumps({"version": self.VERSION} | kept, indent=1, sort_keys=True)

    def generator(self, stream: str, *key: int) -> np.random.Generator:
        """The random numbers for one purpose and, say, one plate: none depends on how many another has drawn."""
        streams = ("biology", "layout", "nuisance", "pixels")
        sequence = np.random.SeedSequence(self.seed, spawn_key=(*self.WORLD, streams.index(stream), *key))
        return np.random.default_rng(sequence)

    def check(self, numbers: Sequence[str], least: Mapping[str, int], most: Mapping[str, int] | None = None) -> None:
        """Make sure that parameters are numbers, and in their range.

        Args:
            numbers: parameters that are numbers from 0 to :data:`STRONGEST`.
            least: parameters that are whole numbers, and the least value of each.
            most: the largest values of those that have one.

        Raises:
            ConfigError: a parameter is not what it must be; names it.
        """
        for name, low in ({"seed": 0} | dict(least)).items():
            value, high = getattr(self, name), (most or {}).get(name)
            if not isinstance(value, int) or value < low or (high is not None and value > high):
                span = f"from {low}" if high is None else f"from {low} to {high}"
                raise ConfigError(f"a simulated screen with {name}={value}: use a whole number {span}")
        for name in numbers:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= STRONGEST:
                raise ConfigError(f"a simulated screen with {name}={value}: use a number from 0 to {STRONGEST}")


def check_values(values: int, what: str) -> None:
    """Make sure that a screen of so many ``values``, pixels or features, can be drawn in hours.

    Raises:
        ConfigError: it cannot; ``what`` says what the screen is made of.
    """
    if values > MOST_VALUES:
        raise ConfigError(f"a simulated screen of {what} is {values:.2g} values: use less, up to {MOST_VALUES:.2g}")


def make_design(design: type[D], parameters: Mapping[str, Any]) -> D:
    """``design(**parameters)``; an unknown parameter is an error that names the nearest one.

    Raises:
        ConfigError: an unknown parameter, or one out of range.
    """
    known = [field.name for field in fields(design)]
    unknown = next((name for name in parameters if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"a simulated screen has no parameter '{unknown}'; {did_you_mean(unknown, known)}")
    return design(**parameters)


def write_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder, unless it is there already.

    It appears under its name when it is complete, and not before. Several processes that ask for it at once wait for
    the first of them.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    with writing(folder, "root_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # the system frees it if this process is killed
            for left in leftovers(folder):
                shutil.rmtree(left, ignore_errors=True)
            if not folder.is_dir():
                with whole_folder(folder, "root_dir") as part:
                    write(part)
    return folder


def for_each_plate(write: Callable[[P], R], plates: Sequence[P], workers: int | None, place: Path) -> list[R]:
    """``write(plate)`` of all plates, with a progress bar that names ``place``; the results in the order of the plates.

    With ``workers`` threads; one a core, at most 8, if it is None. Threads, not processes: numpy and the encoders of
    images let go of the interpreter, and a script that has not guarded its main module works as well.
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        label = printable(f"Simulating {place}")
        jobs = [pool.submit(write, plate) for plate in plates]
        try:
            for job in tqdm(as_completed(jobs), label, len(jobs), unit="plate", disable=None):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [job.result() for job in jobs]
