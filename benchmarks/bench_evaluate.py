"""What it takes to judge a screen as ``biomass evaluate`` does, under two corrections, and how that grows with wells.

Memory is the peak of the whole process, with libraries; the table is read from a Parquet file. The ratio is that of
five times as many wells: 5 where time grows with them, less where much of it does not. Other sizes take longer:

    python -m benchmarks.bench_evaluate 20000 100000
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import Figure

FEATURES, WELLS_A_PLATE, PLATES_AN_EXPERIMENT = 128, 96, 8
SIZES, QUICK = (600, 3_000), (200, 400)
OPTIONS = ("--correction", "none", "--correction", "standardize", "--map", "pca")


def main() -> None:
    """Print what was measured, of the sizes that are named."""
    sizes = [int(word) for word in sys.argv[1:]] if __name__ == "__main__" else []
    print(_measure(tuple(sizes[:2]) if len(sizes) > 1 else SIZES))


def measure(quick: bool = False) -> list[Figure]:
    """The ratio of the seconds of both sizes, with seconds and memory."""
    return [_measure(QUICK if quick else SIZES)]


def _measure(sizes: tuple[int, ...]) -> Figure:
    seconds, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for wells in sizes:
            file = Path(folder) / f"{wells}.parquet"
            write_wells(file, wells)
            out = ("--out", str(Path(folder) / "out"))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "biomass", "evaluate", str(file), *out, *OPTIONS]
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            notes.append(f"{wells} wells {seconds[-1]:.0f} s of CPU, {after.ru_maxrss / 2**20:.1f} GB at most")
            file.unlink()
    more, times = seconds[1] / seconds[0], sizes[1] / sizes[0]
    name = f"biomass evaluate, {FEATURES} features, {times:g} times as many wells"
    return Figure(name, more, more, more, goal=f"<= {times:g}", note=", ".join(notes))


def write_wells(file: Path, wells: int) -> None:
    """A screen whose treatments are on a few plates each, with effects of plates, experiments and treatments."""
    draw = np.random.default_rng(0)
    number = np.arange(wells)
    plate, place = np.divmod(number, WELLS_A_PLATE)
    control = place % 24 == 0
    layout = plate // 4  # four plates hold the same treatments
    treatment = layout * WELLS_A_PLATE + place
    about = pd.DataFrame(
        {
            "Metadata_Batch": [f"Week{one}" for one in plate // PLATES_AN_EXPERIMENT],
            "Metadata_Plate": [f"P{one:04d}" for one in plate],
            "Metadata_Well": [f"{chr(65 + one // 24)}{one % 24 + 1:02d}" for one in place],
            "Metadata_compound": np.where(control, "DMSO", [f"c{one}" for one in treatment]),
            "Metadata_moa": np.where(control, "", [f"m{one % 200}" for one in treatment]),
            "Metadata_control": np.where(control, "negative", ""),
            "Metadata_Count_Cells": draw.poisson(200, wells),
        }
    )
    kinds = draw.normal(size=(200, FEATURES)).astype(np.float32)
    plates = draw.normal(size=(plate.max() + 1, FEATURES)).astype(np.float32)
    writer = None
    for start in range(0, wells, 8192):
        part = slice(start, start + 8192)
        rows = draw.normal(size=(len(number[part]), FEATURES), scale=3).astype(np.float32) + plates[plate[part]]
        rows += np.where(control[part, None], 0, kinds[treatment[part] % 200])
        columns = {name: about[name].iloc[part].to_numpy() for name in about}
        table = pa.table(columns | {f"emb_{i:04d}": rows[:, i] for i in range(FEATURES)})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    main()
