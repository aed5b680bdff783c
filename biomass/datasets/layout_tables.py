"""Screens whose tables say which file is what: ``load_data.csv`` of CellProfiler, the index of DeepProfiler, and the
``Index.idx.xml`` beside the images of an Opera Phenix or Operetta.

Tables name files as they lay where the table was written: in a bucket (``s3://…``), on a drive of Windows, in another
folder. Such a path is found again in three ways, and what was taken is told: by a place that the user gives for its
beginning; as it is, absolute or below the table or the folder; or by its end, which some folder below has as well.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.datasets.lab_files import IMAGES
from biomass.errors import DataError, one_line
from biomass.identifiers import names, wells, wells_at
from biomass.table_files import TableFile, read_table

TABLES = ("load_data", "deepprofiler")
"""Layouts that a table tells."""

HARMONY = ("index.idx.xml", "index.ref.xml", "index.xml")
"""Names of the files of Harmony, in small letters."""

_METADATA = "Metadata_"
_SITES = ("Metadata_Site", "Metadata_FieldID", "Metadata_Field")
_EXPERIMENTS = ("Metadata_Batch", "Metadata_Experiment")
_ROWS = ("Metadata_Row", "Metadata_Col")
_UP = 8  # folders above a table below which images are looked for
_REMOTE = re.compile(r"^([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_DRIVE = re.compile(r"^[A-Za-z]:(/|$)")


class Listed(NamedTuple):
    """What a table lists.

    Attributes:
        files: a row a file: ``folder`` and ``name`` (as the table has them, with ``/``), ``channel``, and the parts of
            the image that the table knows.
        notes: what a reader must know, a sentence each.
    """

    files: pd.DataFrame
    notes: list[str]


def is_load_data(columns: Sequence[str]) -> bool:
    """Whether a table is one that CellProfiler's module LoadData reads.

    >>> is_load_data(["FileName_OrigDNA", "PathName_OrigDNA", "Metadata_Plate", "Metadata_Well"])
    True
    """
    there = set(columns)
    return bool(_channels(there)) and "Metadata_Plate" in there and _has_well(there)


def find_tables(folder: Path, others: Sequence[str]) -> dict[str, list[str]]:
    """The tables below a folder that are a layout, by the layout's name.

    ``load_data_with_illum.csv`` lists the same images as the ``load_data.csv`` beside it, and is left out.
    """
    found: dict[str, list[str]] = {name: [] for name in TABLES}
    for path in others:
        name = PurePosixPath(path).name.lower()
        if re.fullmatch(r"load_data.*\.(csv|csv\.gz|parquet|tsv)", name):
            found["load_data"].append(path)
        elif re.fullmatch(r"index\.(csv|csv\.gz|parquet|tsv)", name):
            columns = read_table(folder / path, "table").columns
            if "Metadata_Plate" in columns and "Metadata_Well" in columns and not is_load_data(columns):
                found["deepprofiler"].append(path)
    plain = {path.rpartition("/")[0] for path in found["load_data"] if "illum" not in PurePosixPath(path).name.lower()}
    found["load_data"] = [
        path
        for path in found["load_data"]
        if "illum" not in PurePosixPath(path).name.lower() or path.rpartition("/")[0] not in plain
    ]
    return {name: paths for name, paths in found.items() if paths}


def read_tables(layout: str, files: Sequence[Path]) -> Listed:
    """Read the tables of a layout.

    Raises:
        DataError: one cannot be read, or lacks what the layout needs.
    """
    read = {"load_data": _read_load_data, "deepprofiler": _read_index}[layout]
    found = [read(read_table(file, "table", advice="pattern")) for file in files]
    notes = list(dict.fromkeys(note for one in found for note in one.notes))
    order = list(dict.fromkeys(channel for one in found for channel in one.files["channel"].cat.categories))
    every = pd.concat([one.files.astype({"channel": str}) for one in found], ignore_index=True).fillna("")
    return Listed(every.assign(channel=pd.Categorical(every["channel"], order)), notes)


def _channels(columns: Sequence[str] | set[str]) -> dict[str, tuple[str, str]]:
    """Channel → its columns of folders (may be empty) and of names; without those of illumination functions."""
    found = {}
    for column in columns:
        kind, _, channel = column.partition("_")
        if kind not in ("FileName", "URL") or not channel or channel.startswith("Illum"):
            continue
        name = channel.removeprefix("Orig") or channel
        path = f"PathName_{channel}"
        if kind == "FileName":
            found[name] = (path if path in columns else "", column)
        else:
            found.setdefault(name, ("", column))
    return found


def _has_well(columns: set[str]) -> bool:
    return "Metadata_Well" in columns or set(_ROWS) <= columns


def _read_load_data(table: TableFile) -> Listed:
    if not is_load_data(table.columns):
        raise DataError(
            f"'{table.path}' is no load_data table: it needs FileName_… (and PathName_…) for every channel, "
            f"Metadata_Plate and Metadata_Well; it has: {', '.join(table.columns[:20])}",
            "pattern",
        )
    frame = table.frame()
    listed = _channels(table.columns)
    channels = {name: listed[name] for name in sorted(listed, key=lambda name: table.columns.index(listed[name][1]))}
    paths = {
        channel: _slashes(frame[folder]) + "/" + _slashes(frame[name]) if folder else _slashes(frame[name])
        for channel, (folder, name) in channels.items()
    }
    used = {one for pair in channels.values() for one in pair}
    return _long(table, frame, paths, used)


def _read_index(table: TableFile) -> Listed:
    frame = table.frame()
    paths = {}
    for column in table.columns:
        text = frame[column].astype(str).str.strip()
        if not column.startswith(_METADATA) and text.str.lower().str.endswith(IMAGES).any():
            paths[column] = _slashes(text)
    if not paths:
        raise DataError(
            f"'{table.path}' is no index of DeepProfiler: no column holds names of images "
            f"({', '.join(IMAGES)}); it has: {', '.join(table.columns[:20])}",
            "pattern",
        )
    table.require(["Metadata_Plate", "Metadata_Well"], "index", "pattern")
    return _long(table, frame, paths, set(paths))


def _slashes(text: "pd.Series[str]") -> "pd.Series[str]":
    text = text.astype(str).str.strip().str.replace("\\", "/", regex=False)
    return text.str.replace(r"^file:/+(?=[A-Za-z]:/)", "", regex=True).str.replace(r"^file:/+", "/", regex=True)


def _long(table: TableFile, frame: pd.DataFrame, paths: Mapping[str, "pd.Series[str]"], used: set[str]) -> Listed:
    """A row a file of a table with a row a field; ``used`` columns name files."""
    parts = pd.DataFrame(index=frame.index)
    parts["plate"] = names(frame["Metadata_Plate"], "Metadata_Plate", place=table.place, needed=True)
    if "Metadata_Well" in frame:
        parts["well"] = wells(frame["Metadata_Well"], "Metadata_Well", place=table.place, needed=True)
    else:
        parts["well"] = wells_at(*(frame[one] for one in _ROWS), place=table.place)
    site = next((one for one in _SITES if one in frame), None)
    text = names(frame[site], site, place=table.place) if site else np.full(len(frame), "1", dtype=object)
    parts["site"] = [str(int(one)) if one.isdigit() else one for one in text]
    experiment = next((one for one in _EXPERIMENTS if one in frame), None)
    if experiment:
        parts["experiment"] = names(frame[experiment], experiment, place=table.place)
    taken = {"Metadata_Plate", "Metadata_Well", site, experiment, *used}
    other = [
        one
        for one in table.columns
        if one not in taken and not re.match(r"(PathName|FileName|URL|Frame|Series)_", one)
        if one.removeprefix(_METADATA).lower() not in parts
    ]
    for column in other:
        parts[f"table:{column.removeprefix(_METADATA)}"] = frame[column]
    notes = [f"experiment is '{experiment}' of the tables"] if experiment else []
    rows = []
    for channel, path in paths.items():
        there = path.str.rpartition("/")
        rows.append(parts.assign(folder=there[0], name=there[2], channel=channel))
    files = pd.concat(rows, ignore_index=True)
    return Listed(files.assign(channel=pd.Categorical(files["channel"], list(paths))), notes)


def find_folders(
    listed: Mapping[str, Collection[str]], folder: Path, beside: Sequence[Path], places: Mapping[str, str]
) -> tuple[dict[str, Path], list[str]]:
    """Where the folders that tables name are here, see the module.

    Args:
        listed: the folders as the tables have them, and the names of the files in each.
        folder: that is indexed.
        beside: the folders of the tables.
        places: beginning of a path → the folder that stands for it here.

    Returns:
        Folder as it is listed → folder here; and what was taken, a sentence each.

    Raises:
        DataError: one is not found.

    >>> root = getfixture("tmp_path")
    >>> (root / "images" / "P1").mkdir(parents=True)
    >>> _ = (root / "images" / "P1" / "a.tif").write_bytes(b"")
    >>> found, notes = find_folders({"s3://bucket/x/images/P1": ["a.tif"]}, root, [], {})
    >>> found["s3://bucket/x/images/P1"] == root / "images/P1"
    True
    """
    roots = [*dict.fromkeys([*beside, folder, *(one.parent / "images" for one in beside), folder / "images"])]
    above = [*dict.fromkeys([folder, *(up for one in beside for up in [one, *one.absolute().parents][:_UP])])]
    found: dict[str, Path] = {}
    ways: dict[tuple[str, str], None] = {}
    beginnings = sorted(((_plain(one), Path(to)) for one, to in places.items()), key=lambda pair: -len(pair[0]))
    for one in listed:
        for beginning, to in beginnings:
            if one == beginning or one.startswith(f"{beginning}/"):
                found[one] = to / one[len(beginning) :].lstrip("/")
                if not found[one].is_dir():
                    raise DataError(f"'{one}' should be '{found[one]}', which is not there: correct the place", "place")
                break
        else:
            way = _as_it_is(one, roots)
            if way is None:
                way = _by_its_end(one, above, set(listed[one]))
                if way is None:
                    raise DataError(_nowhere(one, folder), "place")
                ways[_differ(one, way.as_posix())] = None
            found[one] = way
    return found, [f"paths below '{before}' of the tables were looked for below '{after}'" for before, after in ways]


def _plain(place: str) -> str:
    return place.replace("\\", "/").rstrip("/")


def _as_it_is(path: str, roots: Sequence[Path]) -> Path | None:
    if _REMOTE.match(path):
        return None
    if path.startswith("/") or _DRIVE.match(path):
        return Path(path) if Path(path).is_dir() else None
    return next((root / path for root in roots if (root / path).is_dir()), None)


def _by_its_end(path: str, roots: Sequence[Path], names: Collection[str]) -> Path | None:
    """The folder below one of the roots that has the longest end of a path, and one of these files."""
    parts = [one for one in _DRIVE.sub("", _REMOTE.sub("", path)).split("/") if one not in ("", ".", "..")]
    for start in range(len(parts) + 1):
        for root in roots:
            place = root.joinpath(*parts[start:])
            if place.is_dir() and any(one.name in names for one in place.iterdir()):
                return place
    return None


def _differ(one: str, other: str) -> tuple[str, str]:
    """Two paths without the end that they share."""
    first, second = one.split("/"), other.split("/")
    while len(first) > 1 and len(second) > 1 and first[-1] == second[-1]:
        first.pop(), second.pop()
    return "/".join(first), "/".join(second)


def _nowhere(path: str, folder: Path) -> str:
    kind = "in a bucket" if _REMOTE.match(path) else "on a drive of Windows" if _DRIVE.match(path) else "not there"
    return f"the tables name '{path}', which is {kind}, and no folder below '{folder}' ends like it: say where it is"


def read_harmony(file: Path) -> tuple[dict[str, str], set[str]]:
    """The names of the channels, by their numbers, of an ``Index.idx.xml``; and the names of the files that it lists.

    Raises:
        DataError: it cannot be read.
    """
    found: dict[str, str] = {}
    files: set[str] = set()
    number = name = ""
    try:
        for event, element in ET.iterparse(file, ("start", "end")):
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                if tag in ("Image", "Entry"):
                    number, name = element.get("ChannelID", ""), ""
                continue
            if tag == "ChannelID":
                number = (element.text or "").strip()
            elif tag == "ChannelName":
                name = (element.text or "").strip()
            elif tag == "URL":
                files.add((element.text or "").strip())
            elif tag in ("Image", "Entry"):
                if number and name:
                    found.setdefault(str(int(number)), name)
                element.clear()
    except (ET.ParseError, ValueError) as error:
        raise DataError(
            f"'{file}' is damaged or still being written ({one_line(error)}): copy it again, or move it away"
        ) from error
    except OSError as error:
        raise DataError(f"'{file}' cannot be read ({error.strerror or one_line(error)})") from error
    return found, files
