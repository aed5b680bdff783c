"""Against the published way (published.py): same images, network, batches and machine, with the network and without.

Both use all cores: the published way has a worker process for each. A ResNet-18 and few images are what a CPU does in
seconds; `python -m benchmarks.gpu published` takes the published ResNet-50. What the published 90 epochs of 40,612
fields, or 500 of 5 cells of each, would take is computed from the images a second.
"""

import logging
import os
import tempfile
from pathlib import Path

from benchmarks.cases import QUICK, Case
from benchmarks.published import Published, against
from benchmarks.timing import Figure
from benchmarks.trainings import Data, Ours

CASES = (Case("fields", "resnet18", 256, 12, 2), Case("cells", "resnet18", 48, 32, 2, views=5))


def main() -> None:
    """Print the figures."""
    for one in measure():
        print(one, flush=True)


def measure(quick: bool = False) -> list[Figure]:
    """Fields and cells on the CPU."""
    logging.disable(logging.WARNING)
    figures: list[Figure] = []
    for case in QUICK if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            data = Data(case, Path(folder))
            ours = Ours.of(case, data, "cpu")
            published = Published(case, data, ours.fabric.device, 0 if quick else os.cpu_count() or 1)
            figures += against(published, ours, rounds=1 if quick else 3)
    return figures


if __name__ == "__main__":
    main()
