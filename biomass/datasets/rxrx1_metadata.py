"""The table of RxRx1-WILDS, ``metadata.csv``: a row an image, for fields and for the cells cut out of them."""

from pathlib import Path

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.identifiers import check_once, names, wells
from biomass.screen import FIELD
from biomass.table_files import TableFile, read_table

CHANNELS = ("nuclei", "ER", "actin")
"""The channels of an image, in the order of the files."""

COLUMNS = ("cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id")
"""The columns of the table that are read."""

CONTROLS = {"treatment": "", "positive_control": "positive", "negative_control": "negative"}
"""What a ``well_type`` is called in a Screen's column ``control``."""

SPLITS = ("train", "val", "test")
"""What the column ``dataset`` may say."""


def read_metadata(path: Path) -> pd.DataFrame:
    """Read the table, and check what would otherwise put images into no split or class, without a word.

    Returns:
        A row an image, in the order of the file: ``experiment, plate, well, site, cell_type, sirna``, names in normal
        form; ``control`` as in a Screen; ``label``, the number of the class (int64, from 0 without gaps); ``dataset``,
        one of :data:`SPLITS`; ``place``, ``<experiment>/Plate<k>/<well>_s<site>`` with the well as it is written,
        which is how files and folders are called.

    Raises:
        DataError: it cannot be read, lacks a column, holds a value that is not allowed, or lists an image twice.

    >>> file = getfixture("tmp_path") / "metadata.csv"
    >>> _ = file.write_text(",".join(COLUMNS) + "\\nRPE,train,RPE-01,1,B2,2,treatment,s1,0\\n")
    >>> read_metadata(file)[["well", "site", "dataset", "place"]].iloc[0].tolist()
    ['B02', '2', 'train', 'RPE-01/Plate1/B2_s2']
    """
    table = read_table(path, "metadata", advice="metadata_file")
    table.require(COLUMNS, "metadata", "metadata_file")
    raw = table.frame()
    found = pd.DataFrame()
    for column in ("experiment", "plate", "well", "site", "sirna_id"):
        found[column] = names(raw[column], column, place=table.place, needed=True)
    for column in ("cell_type", "sirna"):
        found[column] = names(raw[column], column, place=table.place)
    for column in ("plate", "site", "sirna_id"):
        _refuse(table, found[column], ~found[column].str.fullmatch(r"\d+"), "it must be a whole number")
    for column, allowed in (("dataset", SPLITS), ("well_type", tuple(CONTROLS))):
        _refuse(table, raw[column], ~raw[column].isin(allowed), f"it may be {', '.join(allowed)}")
    label = found.pop("sirna_id").astype(np.int64)
    gaps = np.flatnonzero(np.unique(label) != np.arange(label.nunique()))
    if len(gaps):
        raise DataError(f"'{path}' has no image with sirna_id {gaps[0]}: number the classes from 0 without gaps")
    place = found["experiment"] + "/Plate" + found["plate"] + "/" + found["well"] + "_s" + found["site"]
    found["well"] = wells(found["well"], place=table.place)
    check_once(found, FIELD, "images", place=table.place, advice="metadata_file")
    control = raw["well_type"].map(CONTROLS)
    return found.assign(control=control, label=label, dataset=raw["dataset"], place=place)


def class_names(metadata: pd.DataFrame) -> list[str]:
    """The names of the classes, in the order of their numbers: the ``sirna`` of the first image of each."""
    return metadata.drop_duplicates("label").set_index("label")["sirna"].sort_index().tolist()


def _refuse(table: TableFile, column: pd.Series, bad: pd.Series, rule: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{table.place(row)} says '{column[row]}' in column '{column.name}': {rule}")
