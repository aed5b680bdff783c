"""A packed store as a source of its own."""

from pathlib import Path

import numpy as np
import pandas as pd

from biomass.grouping import number_rows
from biomass.pixels.packed import open_packed, read_index
from biomass.pixels.store_file import ABOUT, INDEX, Store, unusable
from biomass.screen import COLUMNS, CONTROLS, PLATE, UNLABELLED, Screen


def load_packed(path: str | Path, root_dir: str | Path = ".") -> Screen:
    """Read a packed store as the Screen that was packed, without its source.

    Args:
        path: the store's folder: below ``root_dir``, or as a tool has printed it, from the working folder on.
        root_dir: where it is looked for first.

    Raises:
        DataError: the store is incomplete, damaged, or of another version.
    """
    place = Path(root_dir).expanduser() / Path(path).expanduser()
    pixels = open_packed(place if (place / ABOUT).is_file() or not (Path(path) / ABOUT).is_file() else path)
    table, classes = read_index(pixels.path), Store.read(pixels.path).classes
    why = _why_no_table(table, classes)
    if why:
        raise unusable(pixels.path, f"has no usable {INDEX} ({why})")
    return Screen(table, pixels, classes)


def _why_no_table(table: pd.DataFrame, classes: tuple[str, ...]) -> str:
    """Why a table cannot be that of a screen; empty where it can."""
    for column in (*COLUMNS, "plate_id"):
        if column not in table or list(table.columns).count(column) > 1:
            return f"it has no column '{column}', or several"
        values = table[column]
        if column in ("label", "plate_id"):
            if values.dtype != "int64":
                return f"its column '{column}' is of type {values.dtype}, not int64"
        elif not isinstance(values.dtype, pd.CategoricalDtype) or values.isna().any():
            return f"its column '{column}' is of type {values.dtype}, or lacks values"
        elif not all(isinstance(name, str) for name in values.cat.categories):
            return f"its column '{column}' holds what is no text"
    outside = table.index[(table["label"] < UNLABELLED) | (table["label"] >= len(classes))]
    if len(outside):
        return f"row {outside[0]} has label {table['label'][outside[0]]}, and there are {len(classes)} classes"
    if not set(table["control"].cat.categories) <= set(CONTROLS):
        return "its column 'control' says what no control is"
    if not np.array_equal(table["plate_id"], number_rows([table[column] for column in PLATE])):
        return "its column 'plate_id' does not number its plates"
    return ""
