"""All cases, by part."""

import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.torture import archives, checkpoints, disks, edited, images, kills, stores, tables, words
from tests.torture.cases import Case, Prepare, random_of, remove
from tests.torture.commands import COMMANDS, LONG, WORKERS
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
    """Every case of every part, shuffled."""
    parts = (kill_cases(), disk_cases(), checkpoints.cases(), inputs(seed, number))
    cases = [*itertools.chain(*parts)]
    random.Random(seed).shuffle(cases)  # where time ends early, something of every kind was tried
    return cases


SLOW = ("tune",)
"""Commands that take half a minute, and are tried once."""
PLAIN = [name for name in COMMANDS if "+" not in name and name not in SLOW]
TRAINS = [name for name in PLAIN if COMMANDS[name].trains]


def kill_cases() -> list[Driven]:
    """Kills of every command by every signal."""
    often = {"SIGKILL": 8, "saving": 8, "SIGTERM": 6, "SIGINT": 5, "SIGUSR1": 4, "cold": 3, "twice": 2}
    found = [(kind, name, times) for kind, times in often.items() for name in TRAINS]
    found += [(kind, name + WORKERS, 2) for kind in ("worker", "SIGKILL", "SIGTERM") for name in TRAINS]
    tools = [name for name in PLAIN if name not in TRAINS]
    found += [(kind, name, 1) for kind in ("SIGKILL", "SIGTERM", "SIGINT") for name in tools]
    found += [*(("saving", name, 2) for name in tools), *(("saving", name, 1) for name in SLOW)]
    cases = [Driven(f"kills/{k}/{name}-{i}", kills.drive(name, k)) for k, name, times in found for i in range(times)]
    return [*cases, *(Driven(f"kills/two/{name}-{i}", kills.two(name)) for name in TRAINS for i in range(2))]


def disk_cases() -> list[Driven]:
    """Faulty disks under every command; none where they cannot be mounted."""
    if not disks.possible():
        return []
    found = [("full", name, 6 if name in TRAINS else 4) for name in PLAIN]
    found += [("read-only", name, 2) for name in PLAIN]
    found += [("gone", name, 1) for name in PLAIN if disks.writes_a_run(name)]
    cases = [Driven(f"disks/{k}/{name}-{i}", disks.drive(name, k)) for k, name, times in found for i in range(times)]
    return [*cases, *(Driven(f"disks/marathon/{name}{LONG}-0", disks.marathon(name + LONG)) for name in TRAINS)]


def inputs(seed: int, number: int) -> list[Case]:
    """``number`` cases of input, in parts of their weight."""
    kinds: dict[str, tuple[float, Prepare]] = {f"image_{name}": (1.0, images.of_kind(name)) for name in images.WHOLE}
    kinds |= {
        "image_odd": (6.0, images.odd),
        "store_bytes": (5.0, stores.store_bytes),
        "store_crafted": (4.0, stores.store_crafted),
        "h5_bytes": (4.0, stores.h5_bytes),
        "h5_crafted": (6.0, stores.h5_crafted),
        "h5ad": (2.0, stores.h5ad),
        "manifest": (9.0, tables.manifest),
        "plate_map": (9.0, tables.plate_map),
        "profiles": (6.0, tables.any_profiles),
        "evaluate": (2.0, tables.whole_evaluate),
        "archive_bytes": (3.0, archives.of_bytes),
        "archive_crafted": (4.0, archives.crafted),
        "target": (4.0, edited.target),
        "yaml": (4.0, edited.yaml),
        "tool": (6.0, edited.tool),
    }
    share = 0.75 * number / sum(weight for weight, _ in kinds.values())  # a quarter are overrides
    found = [
        Case(f"inputs/{kind}/{i}", prepare)
        for kind, (weight, prepare) in kinds.items()
        for i in range(max(1, round(share * weight)))
    ]
    return [*found, *words.script_cases(number - len(found), seed)]


def run_driven(case: Driven, seed: int, kit: Path, scratch: Path) -> Finding:
    """Run a case that starts processes itself."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    outcome, what, tail, seconds = case.drive(random_of(seed, case.name), folder, kit)
    remove(folder)
    return Finding(case.name, outcome, what, tail, seconds)
