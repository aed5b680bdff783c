"""The features of DeepProfiler: a folder of ``.npz`` files, one a field, of the vectors of its cells.

A file lies at ``<plate>/<well>/<site>.npz`` or ``<plate>/<well>_<site>.npz``, and holds ``features`` (cells, D). What
it says of itself in ``metadata`` is a pickle, which could run any code: of it only plain values are read.
"""

import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.bounds import check_zip
from biomass.errors import DataError, one_line
from biomass.evaluation.tables import METADATA
from biomass.identifiers import well

_WELL = re.compile(r"[A-Z]{1,2}\d\d")
_PLAIN = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
"""What a pickle of plain values is made with."""


def read_npz_folder(folder: Path) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """The mean vector of each field, what describes it, and the names of the features.

    Raises:
        DataError: the folder holds no ``.npz``, one cannot be read or has other features than the first, or it is not
            said of which well it is.
    """
    files = sorted(folder.rglob("*.npz"))
    if not files:
        raise DataError(
            f"folder '{folder}' holds no profiles: neither profiles_wells.parquet of a run nor .npz files of "
            "DeepProfiler; name the table itself"
        )
    rows: list[dict[str, Any]] = []
    means: list[np.ndarray] = []
    for file in tqdm(files, "fields", unit="file", leave=False, disable=None):
        vectors, said = _read(file)
        if means and vectors.shape[1] != len(means[0]):
            raise DataError(
                f"'{file}' has {vectors.shape[1]} features, and '{files[0]}' {len(means[0])}: remove one of them"
            )
        mean = vectors.mean(0, dtype=np.float64) if len(vectors) else np.full(vectors.shape[1], np.nan)
        means.append(mean.astype(np.float32))
        rows.append(_place(file, folder) | said | {f"{METADATA}Count_Cells": len(vectors)})
    return pd.DataFrame(rows), np.stack(means), [f"feature_{i:04d}" for i in range(len(means[0]))]


def _read(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        check_zip(file, file.stat().st_size, f"'{file}'")
        with np.load(file, allow_pickle=False) as arrays:
            if "features" not in arrays.files:
                raise DataError(f"'{file}' has no array 'features', but {', '.join(arrays.files) or 'nothing'}")
            vectors = arrays["features"]
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
            raise DataError(
                f"'features' of '{file}' are {vectors.dtype} of shape {vectors.shape}, not (cells, D) numbers"
            )
        return vectors, _metadata(file)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"'{file}' cannot be read ({one_line(error)}): make it again, or remove it") from error


class _Plain(pickle.Unpickler):
    """Reads values, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is no plain value")
        return super().find_class(module, name)


def _metadata(file: Path) -> dict[str, Any]:
    """What a file says of itself: names and values; nothing where that is no mapping of plain values."""
    with zipfile.ZipFile(file) as archive:
        if "metadata.npy" not in archive.namelist():
            return {}
        stream = io.BytesIO(archive.read("metadata.npy"))
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if not read(stream)[2].hasobject:
            return {}
        value = _Plain(stream).load()
        value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    except (pickle.UnpicklingError, ValueError, EOFError, AttributeError, ImportError, IndexError, TypeError):
        return {}
    if not isinstance(value, Mapping):
        return {}
    plain = {str(k): v for k, v in value.items() if isinstance(v, str | int | float | np.generic) or v is None}
    return {k if k.startswith(METADATA) else f"{METADATA}{k}": v for k, v in plain.items()}


def _place(file: Path, folder: Path) -> dict[str, str]:
    """Plate, well and site, by where the file lies."""
    inside = file.relative_to(folder)
    parts = [folder.name, *inside.parent.parts, *re.split(r"[_-]", inside.stem, maxsplit=1)]
    at = next((i for i in range(len(parts) - 1, 0, -1) if _WELL.fullmatch(well(parts[i]))), 0)
    if not at:
        raise DataError(f"'{file}' does not say of which well it is: call it <plate>/<well>/<site>.npz")
    site = "_".join(parts[at + 1 :])
    found = {f"{METADATA}Plate": parts[at - 1], f"{METADATA}Well": well(parts[at]), f"{METADATA}Site": site}
    return found | ({f"{METADATA}Batch": parts[at - 2]} if at > 2 else {})
