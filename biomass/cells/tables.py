"""Tables of nuclei that others have found: CellProfiler's, DeepProfiler's, a lab's own.

What a table may call its columns, without regard to case:

======================  ================================================================================================
``plate, well, site``   ``Metadata_Plate``, ``Image_Metadata_Plate`` …; also ``row`` and ``column`` in place of ``well``
``x, y``                ``Nuclei_Location_Center_X``, ``Location_Center_X``, ``AreaShape_Center_X``, ``centroid-1`` …
``area``                ``Nuclei_AreaShape_Area``, ``AreaShape_Area``; may be missing
``object``              ``ObjectNumber``, ``Number_Object_Number``, ``label``: what the table calls the nucleus
======================  ================================================================================================

Centres are in pixels of the field, the centre of the first pixel is (0, 0). Where a table does not say plate, well and
site, its ``ImageNumber`` (and ``TableNumber``) is looked up in CellProfiler's Image table beside it (``Image.csv`` of
``Nuclei.csv``, ``Run1_Image.csv`` of ``Run1_Nuclei.csv``); or its name does: ``<plate>/<well>-<site>-Nuclei.csv``, as
DeepProfiler has its locations.

Every nucleus keeps where it stands: ``nucleus``, the row of its table, from 0; ``object``, where the table has such a
column; and ``nuclei_file``, where there are several tables.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from biomass.cells.nuclei import SUPPLEMENT_IMAGES, read_nuclei
from biomass.errors import DataError
from biomass.identifiers import check_once, names, wells, wells_at
from biomass.table_files import TableFile, read_table

_METADATA = ("{}", "Metadata_{}", "Image_Metadata_{}")
_PLACES = {"experiment": ("experiment",), "plate": ("plate",), "well": ("well",), "site": ("site", "field", "fieldid")}
_CENTRES = (
    "Nuclei_Location_Center_{}",
    "Metadata_Nuclei_Location_Center_{}",
    "Location_Center_{}",
    "Nuclei_AreaShape_Center_{}",
    "AreaShape_Center_{}",
)
NAMES: dict[str, tuple[str, ...]] = {
    **{to: tuple(form.format(one) for one in words for form in _METADATA) for to, words in _PLACES.items()},
    "row": ("row",),
    "column": ("column",),
    "x": ("x", *(one.format("X") for one in _CENTRES), "centroid-1"),
    "y": ("y", *(one.format("Y") for one in _CENTRES), "centroid-0"),
    "area": ("area", "Nuclei_AreaShape_Area", "AreaShape_Area"),
    "object": ("ObjectNumber", "Nuclei_Number_Object_Number", "Number_Object_Number", "label"),
    "image": ("ImageNumber", "Metadata_ImageNumber"),
    "table": ("TableNumber", "Metadata_TableNumber"),
}
"""What the columns of a table of nuclei may be called, the first that there is counts; case does not."""

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".csv.gz", ".tsv.gz")
_LOCATIONS = re.compile(r"(?P<well>[A-Za-z]{1,2}\d{1,2})-(?P<site>[^-]+)-[A-Za-z]+")  # DeepProfiler
_MICRONS = re.compile(r"(cent(er|re|roid)|position|^[xy])\b.*(µm|μm|\bum\b|micron)", re.IGNORECASE)

log = logging.getLogger(__name__)


def read_nuclei_tables(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a table of nuclei, or a folder of them; see the module.

    Of a folder, the tables below it are read whose names end in ``Nuclei``; where there are none, all that have
    centres. A folder with the tables of Ljosa et al. (2013) is read as such.

    Returns:
        The fields and the nuclei, as :func:`read_nuclei_table` gives them.

    Raises:
        DataError: there is no table, or one cannot be read.

    >>> folder = getfixture("tmp_path") / "locations"
    >>> for plate in ("P1", "P2"):
    ...     (folder / plate).mkdir(parents=True)
    ...     file = folder / plate / "A01-1-Nuclei.csv"
    ...     _ = file.write_text("Nuclei_Location_Center_X,Nuclei_Location_Center_Y\\n4,5\\n")
    >>> fields, nuclei = read_nuclei_tables(folder)
    >>> fields["plate"].tolist(), nuclei["nuclei_file"].tolist()
    (['P1', 'P2'], ['P1/A01-1-Nuclei.csv', 'P2/A01-1-Nuclei.csv'])
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return read_nuclei_table(path)
    if (path / SUPPLEMENT_IMAGES).is_file():
        return read_nuclei(path)
    files = find_files(path, TABLES)
    chosen = [file for file in files if re.search(r"nuclei$", _stem(file), re.IGNORECASE)]
    if not chosen:
        chosen = [file for file in files if _has_centres(file)]
    if not chosen:
        raise DataError(
            f"'{path}' has no table of nuclei among its {len(files)} tables: it should be called …Nuclei.csv, or have "
            "columns with centres, such as Location_Center_X",
            "nuclei",
        )
    log.info("'%s': %d tables of nuclei are read, %d others are not", path, len(chosen), len(files) - len(chosen))
    fields, nuclei, start = [], [], 0
    for file in chosen:
        each, found = read_nuclei_table(file)
        fields.append(each)
        nuclei.append(found.assign(field=found["field"] + start, nuclei_file=file.relative_to(path).as_posix()))
        start += len(each)
    table = pd.concat(nuclei, ignore_index=True)
    table["nuclei_file"] = table["nuclei_file"].astype("category")
    return _merge_fields(pd.concat(fields, ignore_index=True), table)


def read_nuclei_table(file: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a table of nuclei, a row a nucleus.

    Args:
        file: any table that :func:`biomass.table_files.read_table` reads, with the columns of the module. A field
            without nuclei has one row with neither x nor y, or none: then it counts as not looked at.

    Returns:
        The fields, ``plate, well, site`` and perhaps ``experiment``, a row each; and the nuclei: ``field`` (row of the
        fields), ``x, y, area`` (0 where nothing is known), ``nucleus`` (row of the table) and perhaps ``object``.

    Raises:
        DataError: it cannot be read or lacks a column, a row has no plate or well, or a value is not a number.

    >>> file = getfixture("tmp_path") / "nuclei.csv"
    >>> _ = file.write_text("plate;well;site;x;y\\nP1;a1;1;10,5;20\\nP1;A01;1;3;4\\nP1;A02;1;;\\n")
    >>> fields, nuclei = read_nuclei_table(file)
    >>> fields
      plate well site
    0    P1  A01    1
    1    P1  A02    1
    >>> nuclei
       field     x     y  area  nucleus
    0      0  10.5  20.0   0.0        0
    1      0   3.0   4.0   0.0        1
    >>> _ = file.write_text("plate;row;column;site;x;y\\nP1;B;3;1;10;20\\n")
    >>> read_nuclei_table(file)[0]["well"].tolist()
    ['B03']
    """
    file = Path(file).expanduser()
    table = read_table(file, "table of nuclei", advice="nuclei")
    columns = find_columns(table.columns)
    _check_centres(table, columns)
    places = _find_places(table, columns)
    keys = list(places)
    number = places.groupby(keys, sort=False).ngroup().to_numpy(np.int64)
    fields = places[~pd.Series(number).duplicated().to_numpy()].reset_index(drop=True)
    if not len(table) and (named := _name_of_field(file)) is not None:
        fields = pd.DataFrame([named])  # looked at, and nothing found
    values = {to: table.numbers(columns[to]) for to in ("x", "y", "area") if to in columns}
    nuclei = pd.DataFrame({"field": number} | values).reindex(columns=["field", "x", "y", "area"])
    nuclei["nucleus"] = np.arange(len(table))
    if "object" in columns:
        nuclei["object"] = names(table.frame()[columns["object"]], "object")
    there = nuclei["x"].notna() | nuclei["y"].notna()
    half = there & (nuclei["x"].isna() | nuclei["y"].isna())
    if half.any():
        raise DataError(f"{table.place(int(np.argmax(half)))} has only one of x and y: give both, or none", "nuclei")
    endless = np.isinf(nuclei["x"]) | np.isinf(nuclei["y"])
    if endless.any():
        raise DataError(
            f"{table.place(int(np.argmax(endless)))} has an infinite x or y: correct it, or remove it", "nuclei"
        )
    again = there & nuclei.duplicated(["field", "x", "y"])
    if again.any():
        row = int(np.argmax(again))
        same = (nuclei[["field", "x", "y"]] == nuclei.loc[row, ["field", "x", "y"]]).all(axis=1)
        more = f", as are {int(again.sum()) - 1} more that are there twice" if again.sum() > 1 else ""
        raise DataError(
            f"{table.place(row)} is the nucleus of {table.place(int(np.argmax(same)))} again{more}: remove one of them",
            "nuclei",
        )
    nuclei["area"] = nuclei["area"].astype(np.float64).fillna(0)
    return fields, nuclei[there].reset_index(drop=True)


def find_columns(there: Sequence[str]) -> dict[str, str]:
    """Which column of a table is which, by :data:`NAMES`.

    >>> find_columns(["ImageNumber", "Location_Center_X", "Location_Center_Y"])
    {'x': 'Location_Center_X', 'y': 'Location_Center_Y', 'image': 'ImageNumber'}
    """
    lower = {name.lower(): name for name in reversed(there)}
    found = {
        to: next((lower[one.lower()] for one in known if one.lower() in lower), None) for to, known in NAMES.items()
    }
    return {to: name for to, name in found.items() if name is not None}


def find_files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """The files below a folder with one of some endings, sorted; hidden ones, as a Mac leaves them, are left out."""
    files = (file for file in folder.rglob("*") if file.name.lower().endswith(tuple(endings)))
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]


def _has_centres(file: Path) -> bool:
    return {"x", "y"} <= find_columns(read_table(file, "table of nuclei", advice="nuclei").columns).keys()


def _check_centres(table: TableFile, columns: dict[str, str]) -> None:
    micron = next((name for name in table.columns if _MICRONS.search(name)), None)
    if micron is not None and not {"x", "y"} <= columns.keys():
        raise DataError(
            f"table of nuclei '{table.path}' has its centres in µm ('{micron}'): divide them by the size of a pixel, "
            "and call them x and y",
            "nuclei",
        )
    table.require([to for to in ("x", "y") if to not in columns], "table of nuclei", "nuclei")


def _find_places(table: TableFile, columns: dict[str, str]) -> pd.DataFrame:
    """The plate, well and site of every row, and the experiment where it is known."""
    apart = "well" not in columns and {"row", "column"} <= columns.keys()
    needed = ["plate", *["well"] * (not apart), "site"]
    missing = [to for to in needed if to not in columns]
    named = _name_of_field(table.path)
    if missing and "image" in columns:
        return _join_images(table, columns)
    if missing and named is not None:
        return pd.DataFrame({key: np.full(len(table), value, object) for key, value in named.items()})
    table.require(missing, "table of nuclei", "nuclei")
    frame = table.frame()
    if apart:
        frame["well"] = wells_at(frame[columns["row"]], frame[columns["column"]], place=table.place)
        columns = columns | {"well": "well"}
    return _normal_places(frame, columns, table)


def _normal_places(frame: pd.DataFrame, columns: dict[str, str], table: TableFile) -> pd.DataFrame:
    keys = [key for key in _PLACES if key in columns]
    forms = {key: wells if key == "well" else names for key in keys}
    return pd.DataFrame(
        {key: forms[key](frame[columns[key]], key, place=table.place, needed=key != "site") for key in keys}
    )


def _name_of_field(file: Path) -> dict[str, str] | None:
    """The field that a file's name says: ``<plate>/<well>-<site>-Nuclei.csv``."""
    found = _LOCATIONS.fullmatch(_stem(file))
    plate = file.absolute().parent.name
    if found is None:
        return None
    place = {"plate": [plate], "well": [found["well"]], "site": [found["site"]]}
    return {key: str((wells if key == "well" else names)(value, key)[0]) for key, value in place.items()}


def _join_images(table: TableFile, columns: dict[str, str]) -> pd.DataFrame:
    """The places of rows that say the number of their image, from CellProfiler's table of images beside it."""
    file = _find_images(table.path)
    images = read_table(file, "table of images", advice="nuclei")
    there = find_columns(images.columns)
    lacks = [to for to in ("image", "plate", "well", "site") if to not in there]
    if lacks:
        wanted = {"image": "ImageNumber", "plate": "Metadata_Plate", "well": "Metadata_Well", "site": "Metadata_Site"}
        images.require([wanted[lacks[0]]], "table of images", "nuclei")
    keys = [key for key in ("table", "image") if key in columns and key in there]
    own, other = (
        pd.DataFrame({key: names(one.frame()[where[key]], key, place=one.place, needed=True) for key in keys})
        for one, where in ((table, columns), (images, there))
    )
    check_once(other, keys, f"images of '{file.name}'", place=images.place, advice="nuclei")
    places = pd.MultiIndex.from_frame(other).get_indexer(pd.MultiIndex.from_frame(own))
    if (places < 0).any():
        row = int(np.argmax(places < 0))
        raise DataError(
            f"{table.place(row)} lies in image {own['image'][row]}, which '{file}' does not list (so do "
            f"{(places < 0).sum() - 1} more of {len(own)}): both tables must come from the same run",
            "nuclei",
        )
    return _normal_places(images.frame(), there, images).iloc[places].reset_index(drop=True)


def _find_images(file: Path) -> Path:
    """CellProfiler's table of images beside its table of nuclei."""
    own = re.sub(r"[A-Za-z]*$", "", _stem(file)).lower()  # Run1_ of Run1_Nuclei
    tables = [one for one in file.absolute().parent.iterdir() if one.name.lower().endswith(TABLES)]
    images = [one for one in tables if re.fullmatch(r"(.*[^a-z])?images?", _stem(one).lower())]
    same = [one for one in images if _stem(one).lower().startswith(own)] if own else []
    chosen = same if len(same) == 1 else images
    if len(chosen) == 1:
        return chosen[0]
    found = f"'{chosen[0].name}' and '{chosen[1].name}' may be it" if chosen else "there is none"
    raise DataError(
        f"table of nuclei '{file}' says plate, well and site by ImageNumber alone, and needs the Image table of "
        f"CellProfiler beside it, but {found}: put the right one there, called Image.csv",
        "nuclei",
    )


def _merge_fields(fields: pd.DataFrame, nuclei: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Several tables may list nuclei of the same field."""
    keys = list(fields)
    number = fields.groupby(keys, sort=False, dropna=False).ngroup().to_numpy(np.int64)
    first = fields[~pd.Series(number).duplicated().to_numpy()].reset_index(drop=True)
    return first, nuclei.assign(field=number[nuclei["field"].to_numpy(np.int64)])
