"""Time and memory that the tables of a screen take, from 10^5 to 10^7 rows: Screen, groups, batches, fingerprint.

The screen is as large as JUMP: 3,000 plates of 3,333 images (384 wells of 9 sites), 20,000 compounds. Its table is one
Parquet file, as a lab has it, and a packed store of it whose images are a sparse file. Every size is measured in a
process of its own, whose peak memory the system keeps; Python, torch and all libraries are part of it.
"""

import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from biomass.datasets.manifest import load_manifest
from biomass.datasets.packed import load_packed
from biomass.fingerprint import fingerprint
from biomass.pixels.packed import open_packed
from biomass.pixels.store_file import ABOUT, BELONGS, CRC32, FILES, IMAGES, INDEX, Store
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import FIELD, PLATE, Screen

WELL = (*PLATE, "well")
T = TypeVar("T")

SIZES = (10**5, 10**6, 10**7)
QUICK = (10**4, 10**5)
PLATE_ROWS, SITES, COMPOUNDS = 3333, 9, 20_000
_CHUNK = 1 << 20  # rows that are written at a time
_BLOCK = 1 << 20  # images of a store that have one checksum
_PIXELS = (1, 2, 2)


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


# --- what is measured, in a process of its own --------------------------------------------------------------------------


def _peak() -> int:
    """The most memory that this process has taken, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says counts the parent, too
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stages(folder: Path, kind: str) -> dict[str, float]:
    """Seconds of each stage from the table to the first batch, and what memory was taken."""
    torch.set_num_threads(1)
    found = {"imported bytes": float(_peak())}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        found[name] = time.process_time() - start
        found[f"{name} bytes"] = float(_peak())
        return result

    if kind == "manifest":
        load = partial(
            load_manifest,
            root_dir=folder,
            columns={"label": "compound"},
            control={"column": "compound", "negative": ["DMSO"]},
            on_bad_image="skip",
        )
        screen = timed("Screen", load)
        found["rows"] = len(screen)
        return found
    if kind == "beside":
        pass
    store = folder / "manifest.parquet.packed"
    timed("pixels", lambda: open_packed(store))
    screen = timed("Screen", lambda: load_packed(store))
    timed("plates", lambda: (screen.plate_ids, screen.plate_names))
    fields = timed("fields", lambda: screen.groups(FIELD))
    wells = timed("wells", lambda: screen.groups(WELL))
    del fields
    train = timed("split", lambda: screen.rows("train"))
    controls = timed("controls", lambda: screen.reference("negative")[train])
    plates = timed("PlateBatches", lambda: PlateBatches(train, screen.plate_ids[train], batch_size=256, controls=controls, num_controls=16))
    found["PlateBatches a row"] = _drawn(plates) / len(train)
    served, first = np.unique(wells[train], return_index=True)
    over = PlateBatches(served, screen.plate_ids[train[first]], batch_size=64)
    cells = timed("CellBatches", lambda: CellBatches(over, train, wells, "random", 4))
    found["CellBatches a row"] = _drawn(cells) / (4 * len(served))
    timed("fingerprint", lambda: fingerprint(screen, ("compound",)))
    found["rows"] = len(screen)
    found["bytes"] = float(_peak())
    return found


def _drawn(batches: Iterable[np.ndarray]) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start

if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(float(sys.argv[3])))
    else:
        for k, v in _stages(Path(sys.argv[2]), sys.argv[1]).items():
            print(f"{k:25s} {v/2**20 if v>1e6 else v:.4g}")
