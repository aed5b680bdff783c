"""Time and memory that the tables of a screen take, from 10^5 to 10^7 rows: Screen, groups, batches, fingerprint.

The screen is as large as JUMP: 3,000 plates of 3,333 images (384 wells of 9 sites), 20,000 compounds. Its table is one
Parquet file, as a lab has it, with a packed store beside it whose images are a sparse file, and without one. Every size
is measured in processes of its own, whose peak memory the system keeps; Python, torch and all libraries are part of it.
"""

import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.timing import Figure
from biomass.datasets.manifest import load_manifest
from biomass.datasets.packed import load_packed
from biomass.fingerprint import fingerprint
from biomass.pixels.packed import open_packed
from biomass.pixels.store_file import ABOUT, BELONGS, CRC32, FILES, IMAGES, INDEX, Store
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import FIELD, PLATE

WELL = (*PLATE, "well")
T = TypeVar("T")

SIZES = (10**5, 10**6, 10**7)
QUICK = (10**4, 10**5)
PLATE_ROWS, SITES, COMPOUNDS = 3333, 9, 20_000
_CHUNK = 1 << 20  # rows that are written at a time
_BLOCK = 1 << 20  # images of a store that have one checksum
_PIXELS = (1, 2, 2)
VIEWS = 4
ROUNDS = 3
"""Processes for the largest screen; one is enough to see how smaller ones grow."""
BARE = "bare"
"""The folder of a table without a store."""

PICTURE = Path(__file__).with_name("tables.svg")


def write(folder: Path, rows: int) -> Path:
    """Write the table of a screen of so many images and, beside it, its packed store; gives the table."""
    manifest, store = folder / "manifest.parquet", folder / "manifest.parquet.packed"
    store.mkdir(parents=True)
    np.save(folder / "first.npy", np.zeros(_PIXELS[1:], np.uint8))
    length, compounds = int(np.prod(_PIXELS)), _compounds()
    crc32 = [zlib.crc32(bytes(length * len(block))) for block in _spans(rows, _BLOCK)]
    about = Store(rows, _PIXELS, "|u1", ("DNA",), tuple(compounds[1:]), "made", _BLOCK, tuple(crc32), {})
    (store / ABOUT).write_text(about.to_json())
    np.lib.format.open_memmap(store / IMAGES, "w+", np.uint8, (rows, *_PIXELS)).flush()
    names = {
        "experiment": [f"batch_{number:02d}" for number in range(-(-rows // PLATE_ROWS // 100))],
        "plate": [f"BR{number:06d}" for number in range(-(-rows // PLATE_ROWS))],
        "well": [f"{chr(65 + row)}{column:02d}" for row in range(16) for column in range(1, 25)],
        "site": [str(site) for site in range(1, SITES + 1)],
        "cell_type": ["U2OS"],
        "split": ["test", "train", "val"],
        "control": ["", "negative"],
        "compound": compounds,
    }
    belongs, crc = {BELONGS: about.belongs}, zlib.crc32(bytes(length))
    with ExitStack() as stack:
        add = [stack.enter_context(_writing(file)) for file in (manifest, store / INDEX, store / FILES)]
        for span in _spans(rows, _CHUNK):
            table, numbers = _columns(np.array(span), names)
            path = _paths(table, first=span.start == 0)
            lab = {name: column.cast(pa.string()) for name, column in table.items() if name != "control"}
            dose = numbers["well"] / 4
            add[0](pa.table({"path": path, **lab, "site": numbers["site"] + 1, "dose": dose}))
            frame = pa.table(table).to_pandas().assign(compound=lab["compound"].to_pandas(), dose=dose)
            frame.insert(5, "label", numbers["compound"] - 1)
            frame.insert(8, "plate_id", numbers["plate"])
            add[1](pa.Table.from_pandas(frame, preserve_index=False), belongs)
            unknown = np.full(len(span), -1)
            checked = {"bytes": unknown, "changed": unknown, CRC32: np.full(len(span), crc, np.uint32)}
            add[2](pa.table({"file": path.cast(pa.large_string()), **checked}), belongs)
    (folder / BARE).mkdir()
    (folder / BARE / manifest.name).hardlink_to(manifest)
    return manifest


def _spans(rows: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, rows)) for start in range(0, rows, size))


def _compounds() -> list[str]:
    return ["DMSO", *(f"JCP2022_{number:06d}" for number in range(1, COMPOUNDS))]


@contextmanager
def _writing(file: Path) -> Iterator[Callable[..., None]]:
    """Gives what adds a table to a file."""
    with ExitStack() as stack:
        writers: list[Any] = []

        def add(table: Any, about: Mapping[bytes, str] | None = None) -> None:
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **(about or {})})
            if not writers:
                writer = pq.ParquetWriter(file, table.schema, compression="zstd", write_page_checksum=True)
                writers.append(stack.enter_context(writer))
            writers[0].write_table(table)

        yield add


def _columns(row: np.ndarray, names: Mapping[str, list[str]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What stands in some rows of the table, as names and as numbers."""
    plate, place = np.divmod(row, PLATE_ROWS)
    well, site = np.divmod(place, SITES)
    compound = np.where(well % 16 == 0, 0, 1 + (well * 7919 + plate // 8 * 104_729) % (COMPOUNDS - 1))
    numbers = {
        "experiment": plate // 100,
        "plate": plate,
        "well": well,
        "site": site,
        "cell_type": np.zeros_like(row),
        "split": np.array([1, 1, 1, 2, 0])[plate % 5],
        "control": compound == 0,
        "compound": compound,
    }
    columns = {
        name: pa.DictionaryArray.from_arrays(pa.array(numbers[name].astype(np.int32)), pa.array(of))
        for name, of in names.items()
    }
    return columns, numbers


def _paths(table: Mapping[str, Any], first: bool) -> Any:
    """The files of the images; the first is there."""
    plate = [table[name].cast(pa.string()) for name in ("experiment", "plate", "well")]
    stem = pc.binary_join_element_wise("images", *plate, "/")
    paths = pc.binary_join_element_wise(stem, table["site"].cast(pa.string()), pa.scalar("_"))
    paths = pc.binary_join_element_wise(paths, ".npy", "")
    return pa.concat_arrays([pa.array(["first.npy"]), paths[1:]]) if first else paths


# --- what is measured, in a process of its own ------------------------------------------------------------------------


def _peak() -> int:
    """The most memory that this process has taken, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says counts the parent, too
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


KINDS = ("manifest", "files", "packed")


def stages(kind: str, folder: Path) -> dict[str, float]:
    """Seconds of the processor that each stage takes from the table to its batches, and the memory at the end of it.

    Args:
        kind: ``manifest``, the lab's table whose images are in the store beside it; ``files``, the same table without
            a store, whose names of files stay in memory; or ``packed``, the store alone.
        folder: see :func:`write`.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found = {"imports, bytes": float(_peak())}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        found[name] = time.process_time() - start
        return result

    store = folder / "manifest.parquet.packed"
    if kind != "packed":
        control = {"column": "compound", "negative": ["DMSO"]}
        load = partial(load_manifest, root_dir=folder, columns={"label": "compound"}, control=control)
        if kind == "files":  # of which all but the first are not there
            load = partial(load, f"{BARE}/manifest.parquet", image_dir=".", on_bad_image="skip")
    else:
        timed("open", lambda: open_packed(store))
        load = partial(load_packed, store)
    screen = timed("Screen", load)
    found |= {"rows": len(screen), "Screen, bytes": _peak()}
    if kind != "packed":
        return found
    timed("groups", lambda: (screen.plate_names, screen.groups(FIELD)))
    wells, train = screen.groups(WELL), screen.rows("train")
    of_row = {"groups": screen.plate_ids[train], "controls": screen.negative_controls[train]}
    plates = timed("PlateBatches", lambda: PlateBatches(train, **of_row, batch_size=256, num_controls=16))
    timed("PlateBatches, drawn", lambda: _draw(plates))
    found["PlateBatches, rows"] = len(train)
    served, first = np.unique(wells[train], return_index=True)
    over_wells = PlateBatches(served, screen.plate_ids[train[first]], batch_size=256)
    cells = timed("CellBatches", lambda: CellBatches(over_wells, train, wells, "random", VIEWS))
    timed("CellBatches, drawn", lambda: _draw(cells))
    found["CellBatches, rows"] = VIEWS * len(served)
    timed("fingerprint", lambda: fingerprint(screen))
    return found | {"bytes": _peak()}


def _draw(batches: Iterable[np.ndarray]) -> None:
    for _ in batches:
        pass


# --- how it grows -----------------------------------------------------------------------------------------------------


@cache
def grow(quick: bool = False) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Rows → kind → what :func:`stages` found, in several processes."""
    found: dict[int, dict[str, list[dict[str, float]]]] = {}
    sizes = QUICK if quick else SIZES
    for rows in sizes:
        rounds = range(ROUNDS if rows == max(sizes) else 1)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), rows)
            found[rows] = {kind: [_apart(kind, folder) for _ in rounds] for kind in KINDS}
    return found


def _apart(kind: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_tables", kind, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(quick: bool = False) -> list[Figure]:
    """What the largest screen takes, beside the goals."""
    found = grow(quick)
    rows = max(found)
    manifest, files, packed = (found[rows][kind] for kind in KINDS)
    gigabyte = 10.0**9

    def figure(name: str, values: Iterable[float], goal: str, unit: str, note: str = "") -> Figure:
        ordered = sorted(values)
        middle = statistics.median(ordered)
        return Figure(f"{name}, {rows:,} rows", middle, ordered[0], ordered[-1], goal, unit, note)

    imports = manifest[0]["imports, bytes"] / gigabyte
    of_it = f"{imports:.2f} GB of it Python and libraries"
    figures = [
        figure("Screen from a Parquet table beside its store", (one["Screen"] for one in manifest), "<= 8", "s"),
        figure("its peak memory", (one["Screen, bytes"] / gigabyte for one in manifest), "<= 2", "GB", of_it),
        figure("Screen from a Parquet table without a store", (one["Screen"] for one in files), "<= 8", "s"),
        figure(
            "its peak memory, with names of files",
            (one["Screen, bytes"] / gigabyte for one in files),
            "<= 2",
            "GB",
            of_it,
        ),
        figure("packed store opened", (one["open"] for one in packed), "< 1", "s"),
        figure("Screen from a packed store", (one["Screen"] for one in packed), "<= 8", "s"),
        figure("grouping by plate and by field", (one["groups"] for one in packed), "<= 2", "s"),
    ]
    for name in ("PlateBatches", "CellBatches"):
        a_row = (1e6 * one[f"{name}, drawn"] / one[f"{name}, rows"] for one in packed)
        figures += [
            figure(f"{name} started", (one[name] for one in packed), "<= 1", "s"),
            figure(f"{name} drawn, a row", a_row, "<= 0.3", "µs"),
        ]
    return [
        *figures,
        figure("fingerprint", (one["fingerprint"] for one in packed), "none", "s"),
        figure("peak memory of all", (one["bytes"] / gigabyte for one in packed), "<= 2", "GB"),
    ]


def plot(path: Path, quick: bool = False) -> None:
    """Draw how time and memory grow with the rows, as SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = grow(quick)
    sizes = np.array(sorted(found))

    def middle(kind: str, name: str) -> np.ndarray:
        return np.array([statistics.median(one[name] for one in found[rows][kind]) for rows in sizes])

    lines = (
        ("Screen from Parquet", "manifest", "Screen"),
        ("Screen from a packed store", "packed", "Screen"),
        ("groups", "packed", "groups"),
        ("PlateBatches, an epoch drawn", "packed", "PlateBatches, drawn"),
        ("fingerprint", "packed", "fingerprint"),
        ("store opened", "packed", "open"),
    )
    with plt.rc_context({"svg.hashsalt": "tables", "svg.fonttype": "none", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        for label, kind, name in lines:
            left.plot(sizes, middle(kind, name), marker="o", markersize=3, label=label)
        left.plot(sizes, 8e-7 * sizes, color="0.6", linestyle=":", label="0.8 µs a row (goal of a Screen)")
        left.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds of the processor", title="Time")
        left.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        for label, kind, name in (
            ("Screen from Parquet, beside its store", "manifest", "Screen, bytes"),
            ("Screen from Parquet, without one", "files", "Screen, bytes"),
            ("packed store: Screen, groups, batches, fingerprint", "packed", "bytes"),
            ("Python and libraries alone", "packed", "imports, bytes"),
        ):
            right.plot(sizes, middle(kind, name) / 1e9, marker="o", markersize=3, label=label)
        right.axhline(2, color="0.6", linestyle=":", label="goal: 2 GB")
        right.set(xscale="log", ylim=(0, 2.5), xlabel="rows", ylabel="GB, at the most", title="Memory")
        right.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def main() -> None:
    """Print what the largest screen takes, and draw how it grows."""
    for figure in measure():
        print(figure)
    plot(PICTURE)
    print(f"how time and memory grow: {PICTURE}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(stages(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
