"""All cases, by part."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.torture import images
from tests.torture.cases import Case, Prepare, random_of, remove
from tests.torture.outcomes import Finding, Outcome

Drive = Callable[[random.Random, Path, Path], tuple[Outcome, str, str, float]]
"""From randomness, an empty folder and the kit's, to what came of it, what was done, last lines and seconds."""


@dataclass(frozen=True)
class Driven:
    """A case that starts, kills and compares processes itself."""

    name: str
    drive: Drive


PARTS = ("kills", "checkpoints", "disks", "inputs")


def all_cases(seed: int, number: int) -> list[Case | Driven]:
    """Every case of every part, in an order in which those of all parts come early."""
    return [*inputs(seed, number)]


def inputs(seed: int, number: int) -> list[Case]:
    """``number`` cases of input, in parts of their weight."""
    kinds: dict[str, tuple[float, Prepare]] = {f"image_{name}": (1.0, images.of_kind(name)) for name in images.WHOLE}
    kinds |= {"image_odd": (4.0, images.odd)}
    total = sum(weight for weight, _ in kinds.values())
    return [
        Case(f"inputs/{kind}/{i}", prepare)
        for kind, (weight, prepare) in kinds.items()
        for i in range(max(1, round(number * weight / total)))
    ]


def run_driven(case: Driven, seed: int, kit: Path, scratch: Path) -> Finding:
    """Run a case that starts processes itself."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    outcome, what, tail, seconds = case.drive(random_of(seed, case.name), folder, kit)
    remove(folder)
    return Finding(case.name, outcome, what, tail, seconds)
