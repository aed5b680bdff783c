"""How long a script takes to answer, and to its first step on a packed screen of a million images.

The unit is what no training can do without: ``python -c "import torch"`` in a process of its own, in turn with the
others, since the speed of a machine drifts. Both are seconds on the CPU, so that other work of the machine does not
count; seconds by the clock stand beside it. Bytecode is compiled by a first call that is not counted.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.timing import Figure
from biomass.pixels.packed_writer import pack
from biomass.screen import VectorPixels, make_screen

ROOT = Path(__file__).resolve().parents[1]
ROWS, SMALL, ROUNDS = 1_000_000, 20_000, 5
WELLS, SITES, SIZE, CLASSES = 384, 4, 8, 100
"""Wells of a plate, images of each; pixels along an image, with one channel; and labels."""

TRAIN: tuple[str, ...] = (
    "train_erm.py",
    "dataloaders=packed",
    "dataloaders.store=store",
    "dataloaders.num_workers=0",
    "device=cpu",
)
TRAIN += ("model.key=resnet18", "model.pretrained=false", "train_batch_size=8", "trainer.max_steps=1", "num_epochs=1")
TRAIN += ("num_warmup_epochs=0", "dataloaders.eval_splits=[]", "save_model=false", "report=false")
COMMANDS = {
    "--help": ("train_erm.py", "--help"),
    "--cfg job": ("train_erm.py", "--cfg", "job"),
    "a misspelt key": ("train_erm.py", "lerning_rate=1"),
    "biomass evaluate --help": ("-m", "biomass", "evaluate", "--help"),
}
"""What is answered without torch: the words behind ``python``."""


def main() -> None:
    """Print the figures."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """Start-up against ``import torch``.

    Args:
        quick: a small screen and one round.
    """
    rows, rounds = (SMALL, 1) if quick else (ROWS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        found = [_figure(name, words, Path(folder), rounds, "< 1 s") for name, words in COMMANDS.items()]
        write_store(Path(folder) / "store", rows)
        return [*found, _figure(f"one step of {rows:,} packed images", TRAIN, Path(folder), min(rounds, 3), "< 10 s")]


def _figure(name: str, words: tuple[str, ...], folder: Path, rounds: int, goal: str) -> Figure:
    unit = ("-c", "import torch")
    _run(words, folder), _run(unit, folder)
    pairs = [(_run(words, folder), _run(unit, folder)) for _ in range(rounds)]
    ratios = [a.cpu / b.cpu for a, b in pairs]
    cpu, wall = (statistics.median(a[part] for a, _ in pairs) for part in (0, 1))
    torch = statistics.median(b.cpu for _, b in pairs)
    note = f"{cpu:.2f} s of CPU in {wall:.2f} s; import torch {torch:.2f} s of CPU"
    return Figure(name, statistics.median(ratios), min(ratios), max(ratios), goal, "x import torch", note)


class Took(NamedTuple):
    """Seconds of a process: on the CPU, and by the clock."""

    cpu: float
    wall: float


def _run(words: tuple[str, ...], folder: Path) -> Took:
    """Python on these words, in a folder; a misspelt key is an exit code."""
    script = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *script], cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != ("lerning_rate=1" in words):
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}")
    return Took(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def write_store(out: Path, rows: int) -> Path:
    """A packed store of many tiny images, a tenth of its plates for validation."""
    number = np.arange(rows)
    plate, place = np.divmod(number // SITES, WELLS)
    plates = range(int(plate[-1]) + 1)
    columns = {
        "experiment": (np.array([f"E{one // 20:04d}" for one in plates]), plate),
        "plate": (np.array([f"P{one:05d}" for one in plates]), plate),
        "well": (np.array([f"{'ABCDEFGHIJKLMNOP'[one // 24]}{one % 24 + 1:02d}" for one in range(WELLS)]), place),
        "site": (np.array([f"{one}" for one in range(SITES)]), number % SITES),
        "split": (np.array(["train"] * 9 + ["val"]), plate % 10),
    }
    table = pd.DataFrame({name: pd.Categorical(names[codes]) for name, (names, codes) in columns.items()})
    table = table.assign(cell_type="", control="", label=place % CLASSES)
    images = np.random.default_rng(0).integers(0, 256, (rows, 1, SIZE, SIZE), dtype=np.uint8)
    classes = [f"c{one}" for one in range(CLASSES)]
    return pack(make_screen(table, VectorPixels(images, ("DNA",)), classes), out, workers=0)


if __name__ == "__main__":
    main()
