"""BBBC021 as the Broad Bioimage Benchmark Collection publishes it: two tables, and a folder or archive a plate::

    BBBC021_v1_image.csv            a row a field of view: a file name a channel, plate, well, compound, concentration
    BBBC021_v1_moa.csv              compound, concentration, moa
    BBBC021_v1_images_<plate>.zip   16-bit TIFFs, one file a channel; or unpacked, in <plate>/ or <week>/<plate>/

This module reads the tables, :mod:`biomass.pixels.bbbc021_tiffs` the images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.identifiers import check_once, match, names, wells
from biomass.pixels.bbbc021_files import IMAGE_TABLE, MOA_TABLE
from biomass.pixels.bbbc021_files import RAW_CHANNELS as CHANNELS
from biomass.table_files import TableFile, read_table

_FILES = tuple(f"Image_FileName_{channel.capitalize() if channel != 'DAPI' else channel}" for channel in CHANNELS)
_FOLDER = "Image_PathName_DAPI"
_COLUMNS = {
    "Image_Metadata_Plate_DAPI": "plate",
    "Image_Metadata_Well_DAPI": "well",
    "Replicate": "replicate",
    "Image_Metadata_Compound": "compound",
    "Image_Metadata_Concentration": "concentration",
}
_SITE = r"_s(\d+)_"  # nowhere in the table, but in every file name


def read_tables(folder: Path) -> pd.DataFrame:
    """The image table, with what the moa table says of its treatments.

    Returns:
        A row a field: ``plate, well, site, replicate, compound, concentration, moa`` (empty for a treatment that the
        moa table does not list), ``folder``, and a file name for each of the :data:`CHANNELS`.

    Raises:
        DataError: a table is missing, empty or damaged, or lists something twice.
    """
    listed = _read(folder / IMAGE_TABLE, [*_COLUMNS, _FOLDER, *_FILES])
    if not len(listed):
        raise DataError(f"'{folder / IMAGE_TABLE}' lists no fields: download it again")
    raw = listed.frame()
    table = raw[list(_COLUMNS)].rename(columns=_COLUMNS)
    for column, form in (("plate", names), ("well", wells), ("compound", names)):
        table[column] = form(table[column], column, place=listed.place, needed=True)
    table["concentration"] = listed.numbers("Image_Metadata_Concentration", needed=True)
    table["site"] = raw[_FILES[0]].str.extract(_SITE, expand=False)
    if table["site"].isna().any():
        row = int(np.argmax(table["site"].isna()))
        raise DataError(
            f"{listed.place(row)}: the file name '{raw[_FILES[0]][row]}' does not say its site, as _s1_ does"
        )
    check_once(table, ["plate", "well", "site"], "fields", place=listed.place)
    table["moa"] = _moas(folder / MOA_TABLE, table)
    table["folder"] = raw[_FOLDER].str.replace("\\", "/")
    for channel, column in zip(CHANNELS, _FILES, strict=True):
        table[channel] = raw[column]
    return table


def _moas(file: Path, table: pd.DataFrame) -> np.ndarray:
    """The mechanism of every row's treatment, empty where the moa table does not list it, (N,) object."""
    listed = _read(file, ["compound", "concentration", "moa"])
    moas = pd.DataFrame({c: names(listed.frame()[c], c, place=listed.place) for c in ("compound", "moa")})
    moas["concentration"] = listed.numbers("concentration", needed=True).round(6)
    rows = np.flatnonzero(~moas.duplicated())
    moas = moas.iloc[rows].reset_index(drop=True)
    check_once(moas, ["compound", "concentration"], "treatments", place=lambda row: listed.place(rows[row]))
    keys = table[["compound"]].assign(concentration=table["concentration"].round(6))
    found = match(
        keys,
        moas,
        ["compound", "concentration"],
        left_name="fields",
        right_name=f"rows of '{file.name}'",
        left_over="ignore",  # most treatments have no known mechanism
        right_over="say",
    )
    return np.where(found < 0, "", moas["moa"].to_numpy(object)[found])


def _read(file: Path, columns: Sequence[str]) -> TableFile:
    """Columns of a published table, packed with gzip or not."""
    found = next((f for f in (file, file.with_name(f"{file.name}.gz")) if f.is_file()), None)
    if found is None:
        raise DataError(f"no table '{file}': download it from https://bbbc.broadinstitute.org/BBBC021")
    return read_table(found, columns=columns)
