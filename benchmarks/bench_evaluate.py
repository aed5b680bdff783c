"""What it takes to judge a screen of 100,000 wells x 1,024 features as ``biomass evaluate`` does, and how it grows.

Memory is the peak of the whole process, with libraries; the table is read from a Parquet file. The ratio is that of
100,000 to 20,000 wells, 5 where time grows with the wells: what would grow faster is judged on samples.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import Figure

FEATURES, WELLS_A_PLATE, PLATES_AN_EXPERIMENT = 1024, 384, 8
SIZES = (20_000, 100_000)


def main() -> None:
    """Print what was measured."""
    for figure in measure():
        print(figure)


def measure(quick: bool = False) -> list[Figure]:
    """The ratio of the seconds of both sizes, with seconds and memory."""
    seconds, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for wells in (1_000, 5_000) if quick else SIZES:
            file = Path(folder) / f"{wells}.parquet"
            write_wells(file, wells)
            start = time.perf_counter()
            command = [sys.executable, "-m", "biomass", "evaluate", str(file), "--out", str(Path(folder) / "out")]
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            notes.append(f"{wells} wells {seconds[-1]:.0f} s, {peak:.1f} GB at most")
            file.unlink()
    more = seconds[1] / seconds[0]
    name = f"biomass evaluate, {FEATURES} features, five times as many wells"
    return [Figure(name, more, more, more, goal="<= 5", note=", ".join(notes))]


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
