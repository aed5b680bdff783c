"""From a lab's folder of images to a table with a row a field of view.

Which file is which channel of which site is told by the names of files or by a table, see :mod:`.layouts` and
:mod:`.layout_tables`. No image is opened for that; some are afterwards, to see whether they can be read.
"""

import os
import time as clock
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.datasets.lab_files import IMAGES, Found, Left, find_files, left_out
from biomass.datasets.layout_tables import HARMONY, TABLES, find_folders, find_tables, read_harmony, read_tables
from biomass.datasets.layouts import (
    PRESETS,
    NamedFiles,
    check_layout,
    compile_pattern,
    fitting,
    match_names,
    natural,
    no_match,
    tidy_parts,
)
from biomass.errors import BadImageError, BiomassError, ConfigError, DataError, did_you_mean, one_line
from biomass.grouping import unique
from biomass.identifiers import normal
from biomass.pixels.decoders import OTHER_FORMAT
from biomass.pixels.files import none_readable, open_files
from biomass.pixels.metadata import ends_in_zeros
from biomass.pixels.planes import PROJECTIONS, Reading

_FIELD = ("experiment", "plate", "well", "site")
_MOST = 0.5  # share of files of one size by which images are not compressed, and of wells with a site
_SMALL = 0.5  # of the median: a compressed file below it is looked at
_OPENED = 400  # files that are opened at most because of their size
_ABOVE = 3  # folders, this one among them, whose names a preset may need
_TRIED = 200  # plates of which a field is read
_RECENT = 600  # seconds: a file that changed since may still be written
_NEWEST = 60  # files that are opened at most because they changed since
_SHOWN = 3


class Fault(NamedTuple):
    """Something that keeps fields from being read.

    Attributes:
        kind: a column of the report.
        message: one line, about the first case.
        fields: the numbers of the fields.
        advice: of the error, see :class:`biomass.errors.BiomassError`.
    """

    kind: str
    message: str
    fields: np.ndarray
    advice: str = "skip"


@dataclass
class Index:
    """What a folder holds.

    Attributes:
        folder: that was indexed; paths are relative to it where they lie below it, otherwise absolute.
        layout: how files were told apart.
        fields: N rows, sorted: ``experiment`` (empty where nothing tells it), ``plate, well, site``, and what else
            tells images apart.
        images: channel → N paths, or N lists of paths, a plane each; the one channel is empty text where a file holds
            all channels.
        sizes: (N,) bytes of the files of each field.
        changed: (N,) ns, of the newest file.
        faults: what is wrong.
        uneven: what is missing, but does not keep a field from being read: plate → a sentence.
        left: files that are left out.
        notes: what a reader must know, a sentence each.
        z: what to make of planes: of the files of ``images``, or within files.
        time: likewise for the time points within files.
        taken: of which ``plane`` and ``time point`` all files are, where their names tell it.
    """

    folder: Path
    layout: str
    fields: pd.DataFrame
    images: dict[str, list[Any]]
    sizes: np.ndarray
    changed: np.ndarray
    faults: list[Fault] = field(default_factory=list)
    uneven: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    z: str | int | None = None
    time: int | None = None
    taken: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> np.ndarray:
        """Fields that cannot be read, (N,) bool."""
        result = np.zeros(len(self.fields), bool)
        for fault in self.faults:
            result[fault.fields] = True
        return result

    def without_bad(self) -> "Index":
        """The fields that can be read."""
        keep = np.flatnonzero(~self.bad)
        return Index(
            self.folder,
            self.layout,
            self.fields.iloc[keep].reset_index(drop=True),
            {channel: [column[i] for i in keep] for channel, column in self.images.items()},
            self.sizes[keep],
            self.changed[keep],
            [],
            self.uneven,
            self.left,
            self.notes,
            self.z,
            self.time,
            self.taken,
        )


def index_folder(
    folder: str | Path,
    *,
    layout: str | None = None,
    pattern: str | None = None,
    channels: Mapping[str, str] | None = None,
    plate: str | None = None,
    places: Mapping[str, str] | None = None,
    z: str | int | None = None,
    time: int | None = None,
    found: Found | None = None,
) -> Index:
    """Find the images of a folder, and what each shows.

    Args:
        folder: of the images; or the table of a layout that has one.
        layout: a preset, see :mod:`.layouts` and :mod:`.layout_tables`; found out if left out.
        pattern: of the paths of files, see :mod:`.layouts`, in place of a preset.
        channels: what to call channels; an empty text leaves one out. Others keep their names.
        plate: the name of the plate, where names do not tell it.
        places: beginning of a path in a table → the folder that stands for it here.
        z: what to make of several focal planes: one of :data:`.PROJECTIONS`, or the number of one: as the names of
            files have it where planes are files, from 0 within files.
        time: the number of the time point to take, where there are several, likewise.
        found: the files of the folder, where it was listed already.

    Raises:
        ConfigError: the layout cannot be found out, or a setting does not fit the images.
        DataError: no image fits, or something cannot be read.

    >>> from biomass.simulation.lab_folder import simulate_lab_folder
    >>> lab = simulate_lab_folder(getfixture("tmp_path") / "lab", "imagexpress", sites=1, size=48)
    >>> index = index_folder(lab.images, channels={"w1": "DNA", "w3": ""})
    >>> index.layout, len(index.fields), list(index.images), [one.why for one in index.left]
    ('imagexpress', 36, ['DNA', 'w2'], ['files of an operating system', 'thumbnails', 'images of channels left out'])
    """
    if layout is not None and pattern is not None:
        raise ConfigError(f"layout {layout} and pattern '{pattern}' are both given: give one of them")
    if layout is not None:
        check_layout(layout, [*(one.name for one in PRESETS), *TABLES])
    root = Path(folder)
    named = compile_pattern(pattern) if pattern is not None else None
    named = named or next((one for one in PRESETS if one.name == layout), None)
    tables: list[str] = []
    if root.is_file():
        root, tables = root.parent, [root.name]
        if named is not None:
            raise ConfigError(f"'{folder}' is a file: name the folder that holds the images")
    found = found or find_files(root)
    left = list(found.left)
    above = "/".join(root.absolute().parts[1:][-_ABOVE:])  # where one plate is indexed, its name is there
    if named is None:
        named, layout, tables = _find_layout(root, above, layout, tables, found.others, found.images["path"])
    if named is not None:
        files, notes, more = _from_names(named, root, above, found.images, plate)
        layout = named.name
    else:
        assert layout is not None
        files, notes, more = _from_tables(layout, root, tables, found.images, places or {})
    left += more
    if named is not None and named.name == "phenix":
        notes += _name_by_harmony(files, root, found.others)
    if found.others:
        left.append(left_out("files that are no images", found.others))
    if "experiment" not in files:
        files["experiment"] = ""
    files, dropped = _rename_channels(files, channels or {})
    if len(dropped):
        left.append(left_out("images of channels left out", dropped))
    taken: dict[str, str] = {}
    files, time = _choose_time(files, time, notes, taken)
    files, z = _choose_plane(files, z, notes, taken)
    found_index = _group(root, str(layout), files, left, notes, z, time)
    found_index.taken = taken
    return found_index


def _find_layout(
    root: Path, above: str, layout: str | None, tables: list[str], others: Sequence[str], images: "pd.Series[str]"
) -> tuple[NamedFiles | None, str | None, list[str]]:
    """The layout of a folder for which no names are given: that of its files, or of its tables."""
    there = find_tables(root, tables or others)
    if tables and not there:
        if layout not in TABLES:
            raise ConfigError(
                f"'{root / tables[0]}' is not called as a table of {' or '.join(TABLES)}: name the layout", "pattern"
            )
        return None, layout, tables
    if layout is not None:
        if layout not in there:
            raise DataError(f"no table of layout {layout} in '{root}': name the folder that holds it", "pattern")
        return None, layout, there[layout]
    if not there and not len(images):
        raise DataError(f"no image in '{root}'{_instead(root)}: name a folder of files that end in {', '.join(IMAGES)}")
    names = fitting(images.tolist(), above) if not tables else []
    fit = [*(one.name for one in names), *there]
    if len(fit) > 1:
        raise ConfigError(f"'{root}' may be of layout {' or '.join(fit)}: choose one", "pattern")
    if not fit:
        listed = ", ".join([*(one.name for one in PRESETS), *TABLES])
        near = ", ".join(f"'{one}'" for one in images[:_SHOWN])
        raise DataError(
            f"the layout of '{root}' cannot be found out from its {len(images)} images, such as {near}: none of "
            f"{listed} fits half of them; describe the names",
            "pattern",
        )
    return (names[0], fit[0], []) if names else (None, fit[0], there[fit[0]])


def _instead(root: Path) -> str:
    found = find_files(root)
    what = [f"{one.files} {one.why} such as '{one.example}'" for one in found.left]
    what += [f"{len(found.others)} other files such as '{found.others[0]}'"] if found.others else []
    return f", but {' and '.join(what)}" if what else ""


def _from_names(
    named: NamedFiles, root: Path, above: str, images: pd.DataFrame, plate: str | None
) -> tuple[pd.DataFrame, list[str], list[Left]]:
    """The files whose names fit, with their parts."""
    if not len(images):
        raise DataError(f"no image in '{root}'{_instead(root)}: name a folder of files that end in {', '.join(IMAGES)}")
    fits, parts = match_names(named, images["path"].tolist(), above if named.preset else root.absolute().name)
    if not fits.any():
        raise no_match(named, images["path"].tolist(), str(root))
    parts, notes = tidy_parts(named, parts)
    if plate is not None:
        several = sorted(parts["plate"].unique()) if "plate" in parts else []
        if len(several) > 1:
            raise ConfigError(f"plate '{plate}' is given, but there are several ({_some(several)}): leave it out")
        parts["plate"] = normal(plate)
    elif "plate" not in parts:
        raise ConfigError(f"pattern '{named.name}' does not tell the plate: add {{plate}}, or name it", "plate_name")
    files = pd.concat([images[fits].reset_index(drop=True), parts], axis=1)
    left = [left_out("images whose names do not fit", images["path"][~fits])] if not fits.all() else []
    return files, notes, left


def _from_tables(
    layout: str, root: Path, tables: Sequence[str], images: pd.DataFrame, places: Mapping[str, str]
) -> tuple[pd.DataFrame, list[str], list[Left]]:
    """The files that tables list, with their parts."""
    listed = read_tables(layout, [root / one for one in tables])
    files, notes = listed.files, list(listed.notes)
    empty = (files["name"] == "").to_numpy()
    beside = [(root / one).parent for one in tables]
    inside = {str(one): own.tolist() for one, own in files[~empty].groupby("folder", sort=False)["name"]}
    folders, more = find_folders(inside, root, list(dict.fromkeys(beside)), places)
    stamps = {one: _stamps(place) for one, place in folders.items()}
    here = {one: _relative(place, root) for one, place in folders.items()}
    rows = [
        _stamped(here[folder], name, stamps[folder]) if name else ("", -1, -1)
        for folder, name in zip(files["folder"], files["name"], strict=True)
    ]
    found = pd.DataFrame(rows, columns=["path", "size", "changed"])
    files = pd.concat([found, files.drop(columns=["folder", "name"])], axis=1)
    files.columns = pd.Index([column.removeprefix("table:") for column in files.columns])
    spare = images["path"][~images["path"].isin(found["path"])]
    left = [left_out("images that no table lists", spare)] if len(spare) else []
    return files, notes + more + [f"read {len(tables)} table{'s' * (len(tables) != 1)}, such as '{tables[0]}'"], left


def _stamps(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Name, size and time of the files of one folder, by their names, and by these without case and composed."""
    with os.scandir(folder) as entries:
        there = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in entries if one.is_file()]
    return {_caseless(one[0]): one for one in there} | {one[0]: one for one in there}


def _stamped(place: str, name: str, there: Mapping[str, tuple[str, int, int]]) -> tuple[str, int, int]:
    """Path, size and time of a file that a table lists."""
    found, size, changed = there.get(name) or there.get(_caseless(name)) or (name, -1, -1)
    return f"{place}{found}", size, changed


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _relative(place: Path, root: Path) -> str:
    """The beginning of the paths in a folder."""
    try:
        inside = PurePosixPath(place.absolute().relative_to(root.absolute()))
    except ValueError:
        return f"{place.absolute().as_posix()}/"
    return "" if inside == PurePosixPath(".") else f"{inside}/"


def _name_by_harmony(files: pd.DataFrame, root: Path, others: Sequence[str]) -> list[str]:
    """Call the channels of a Phenix as its own files say; and whether the images are there that they list."""
    there = [one for one in others if PurePosixPath(one).name.lower() in HARMONY]
    if not there:
        return ["there is no Index.idx.xml: channels are called by their numbers"]
    called: dict[str, str] = {}
    parts = files["path"].str.rpartition("/")
    here = {str(folder): set(own) for folder, own in parts.groupby(0, sort=False)[2]}
    notes = []
    for file in there:
        other, listed = read_harmony(root / file)
        absent = listed - here.get(file.rpartition("/")[0], set())
        if absent:
            notes.append(f"{len(absent)} of {len(listed)} images of '{file}' are not there, such as '{min(absent)}'")
        odd = [number for number in other if number in called and other[number] != called[number]]
        if odd:
            raise DataError(
                f"channel {odd[0]} is '{called[odd[0]]}' in '{there[0]}' and '{other[odd[0]]}' in '{file}': index "
                "plates of other stains apart, or move these files away to have channels called by their numbers"
            )
        called = called | other
    if not called:
        return [*notes, f"'{there[0]}' names no channels: they are called by their numbers"]
    names = list(called.values())
    map_ = {f"ch{n}": name if names.count(name) == 1 else f"{name} {n}" for n, name in called.items()}
    files["channel"] = files["channel"].cat.rename_categories(map_)
    return [*notes, f"channels are called as in '{PurePosixPath(there[0]).name}'"]


def _rename_channels(files: pd.DataFrame, channels: Mapping[str, str]) -> tuple[pd.DataFrame, Sequence[str]]:
    """The files with the channels' own names; and those of channels that are left out."""
    if "channel" not in files:
        if channels:
            raise ConfigError("the names of files tell no channels, so that none can be renamed: leave that out")
        return files, []
    there = list(files["channel"].cat.categories)
    for one, name in channels.items():
        if one not in there:
            raise ConfigError(f"no channel '{one}'; {did_you_mean(one, sorted(there))}", "rename")
        others = [channels.get(other, other) for other in there if other != one]
        if name and name in others:
            raise ConfigError(f"two channels would be called '{name}': give each its own name", "rename")
    drop = files["channel"].isin([one for one, name in channels.items() if not name])
    if drop.all():
        raise ConfigError("all channels are left out: keep one", "rename")
    kept = files[~drop].reset_index(drop=True)
    left_over = kept["channel"].cat.remove_unused_categories().cat.rename_categories(dict(channels))
    return kept.assign(channel=left_over), files["path"][drop].tolist()


def _choose_time(
    files: pd.DataFrame, time: int | None, notes: list[str], taken: dict[str, str]
) -> tuple[pd.DataFrame, int | None]:
    """The files of one time point; and which one to take within files."""
    if "time" not in files:
        return files, time
    there = _in_order(files["time"])
    if len(there) == 1:
        taken["time point"] = there[0]
        return files.drop(columns="time"), None if str(time) == there[0] else time
    if time is None:
        raise ConfigError(f"the images are of {len(there)} time points ({_some(there)}): choose one", "time")
    if str(time) not in there:
        raise ConfigError(f"no image is of time point {time}, but of {_some(there)}: choose one", "time")
    notes.append(f"time point {time} of {len(there)} is taken")
    taken["time point"] = str(time)
    chosen = files[files["time"] == str(time)].reset_index(drop=True)
    return chosen.drop(columns="time"), None


def _choose_plane(
    files: pd.DataFrame, z: str | int | None, notes: list[str], taken: dict[str, str]
) -> tuple[pd.DataFrame, str | int | None]:
    """The files of one plane, or of all of them; and what to make of planes."""
    if isinstance(z, str) and z not in PROJECTIONS:
        raise ConfigError(f"planes '{z}' are unknown; choose {', '.join(PROJECTIONS)}, or the number of one", "z")
    if "z" not in files:
        return files, z
    there = _in_order(files["z"])
    if len(there) == 1:
        taken |= {"plane": there[0]} if there[0] else {}
        return files.drop(columns="z"), None if str(z) == there[0] else z
    if z is None:
        raise ConfigError(f"the images are of {len(there)} focal planes ({_some(there)}): choose what to take", "z")
    if isinstance(z, str):
        said = {"max": "their maximum", "focus": "the sharpest", "middle": "the middle one"}[z]
        notes.append(f"of {len(there)} focal planes, {said} is read")
        return files, z
    if str(z) not in there:
        raise ConfigError(f"no image is of plane {z}, but of {_some(there)}: choose one", "z")
    notes.append(f"plane {z} of {len(there)} is taken")
    taken["plane"] = str(z)
    return files[files["z"] == str(z)].reset_index(drop=True).drop(columns="z"), None


def _in_order(values: Iterable[str]) -> list[str]:
    return sorted(set(values), key=natural)


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:8]) + (" …" if len(values) > 8 else "")


def _group(
    root: Path,
    layout: str,
    files: pd.DataFrame,
    left: list[Left],
    notes: list[str],
    z: str | int | None,
    time: int | None,
) -> Index:
    """A row a field from a row a file."""
    several = "channel" in files
    if not several:
        files = files.assign(channel=pd.Categorical([""] * len(files)))
    by_plane = "z" in files
    other = [c for c in files if c not in (*_FIELD, "path", "size", "changed", "channel", "z")]
    if "site" not in files:
        files = files.assign(site="1")
    key = [*_FIELD, *other]
    codes = [_ranked(files[one]) for one in (*key, "channel", *(["z"] if by_plane else []))]
    order = np.lexsort(codes[::-1])
    files, codes = files.iloc[order].reset_index(drop=True), [one[order] for one in codes]
    own = np.column_stack(codes[: len(key)])
    new = np.ones(len(files), bool)
    new[1:] = (own[1:] != own[:-1]).any(axis=1)
    number = np.cumsum(new) - 1
    fields = files.loc[new, key].reset_index(drop=True)
    channels = list(files["channel"].cat.categories)
    table = Index(
        root,
        layout,
        fields,
        {},
        np.bincount(number, np.maximum(files["size"], 0)).astype(np.int64),
        np.maximum.reduceat(files["changed"].to_numpy(np.int64), np.flatnonzero(new)),
        left=left,
        notes=notes,
        z=z,
        time=time,
    )
    _find_faults(table, files, number, channels, by_plane)
    table.images = _spread(files, number, channels, len(fields), by_plane)
    table.uneven = _uneven(fields)
    return table


def _ranked(column: "pd.Series[str]") -> np.ndarray:
    """The place of every value among the distinct ones: that of its category, or in natural order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(np.int64)
    codes, distinct = pd.factorize(column)
    order = sorted(range(len(distinct)), key=lambda i: natural(str(distinct[i])))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes]


def _spread(
    files: pd.DataFrame, number: np.ndarray, channels: Sequence[str], n: int, by_plane: bool
) -> dict[str, list[Any]]:
    """Channel → N paths, or N lists of them."""
    images: dict[str, list[Any]] = {}
    channel, path = _ranked(files["channel"]), files["path"].to_numpy()
    for code, one in enumerate(channels):
        mine = channel == code
        where, names = number[mine], path[mine]
        if by_plane:
            bounds = np.searchsorted(where, np.arange(n + 1))
            images[one] = [names[a:b].tolist() for a, b in pairwise(bounds)]
        else:
            column = np.full(n, "", dtype=object)
            column[where[::-1]] = names[::-1]  # of two, the first
            images[one] = column.tolist()
    return images


def _find_faults(
    table: Index, files: pd.DataFrame, number: np.ndarray, channels: Sequence[str], by_plane: bool
) -> None:
    """Doubled, missing and unreadable images."""
    fields = table.fields
    codes = _ranked(files["channel"])
    parts = [number, codes, *([_ranked(files["z"])] if by_plane else [])]
    same = np.ones(len(files), bool)
    same[:1] = False
    for part in parts:
        same[1:] &= part[1:] == part[:-1]
    if same.any():
        row = int(np.argmax(same))
        pair = f"'{files['path'][row - 1]}' and '{files['path'][row]}'"
        what = f" of channel '{files['channel'][row]}'" if files["channel"][row] else ""
        more = f", and {same.sum() - 1} more like it" if same.sum() > 1 else ""
        message = (
            f"two files{what} of {_called(fields, number[row])}: {pair}{more}; remove one of them, or tell them "
            "apart by a part of a pattern"
        )
        table.faults.append(Fault("doubled", message, unique(number[same])))
    there = np.zeros((len(fields), len(channels)), np.int64)
    present = (files["size"] >= 0).to_numpy()
    np.add.at(there, (number[present & ~same], codes[present & ~same]), 1)
    _missing_channels(table, there, channels)
    if by_plane:
        usual = int(np.bincount(there.ravel()).argmax())
        fewer = ((there > 0) & (there != usual)).any(axis=1)
        if fewer.any():
            first = int(np.argmax(fewer))
            message = (
                f"{_called(fields, first)} has {there[first].max()} focal planes, and most have {usual}, as is so for "
                f"{fewer.sum()} of {len(fields)} fields: copy the files again"
            )
            table.faults.append(Fault("missing", message, np.flatnonzero(fewer)))
    _unreadable(table, files, number, channels)


def _missing_channels(table: Index, there: np.ndarray, channels: Sequence[str]) -> None:
    fields = table.fields
    lacks = there == 0
    if not lacks.any():
        return
    plates = _ranked(fields["experiment"] + "\0" + fields["plate"])
    lacking, sizes = np.flatnonzero(lacks.any(axis=1)), np.bincount(plates)
    lacking = lacking[np.argsort(plates[lacking], kind="stable")]
    for rows in np.split(lacking, np.flatnonzero(np.diff(plates[lacking])) + 1):
        for c, channel in enumerate(channels):
            missing = rows[lacks[rows, c]]
            if not len(missing):
                continue
            plate = fields["plate"][missing[0]]
            if len(missing) == sizes[plates[missing[0]]]:
                message = (
                    f"plate '{plate}' has no image of channel '{channel}', which other plates have: copy them, or "
                    "leave the channel out"
                )
                table.faults.append(Fault("missing", message, missing, "drop_channel"))
            else:
                more = f", nor have {len(missing) - 1} more fields of the plate" if len(missing) > 1 else ""
                message = (
                    f"{_called(fields, missing[0])} has no image of channel '{channel}'{more}: copy them, or leave the "
                    "fields out"
                )
                table.faults.append(Fault("missing", message, missing))


def _unreadable(table: Index, files: pd.DataFrame, number: np.ndarray, channels: Sequence[str]) -> None:
    """Files that are empty, too small, or cannot be opened: those of an odd size, and one field of every plate."""
    size = files["size"].to_numpy(np.int64)
    look = size == 0
    for channel in channels:
        mine = np.flatnonzero((files["channel"] == channel).to_numpy() & (size > 0))
        if not len(mine):
            continue
        values, counts = np.unique(size[mine], return_counts=True)
        usual = values[counts.argmax()]
        small = size[mine] < (usual if counts.max() >= _MOST * len(mine) else _SMALL * np.median(size[mine]))
        look[mine[small][:_OPENED]] = True
    look |= np.isin(number, _first_of_plates(table.fields)) & (size > 0)
    changed = files["changed"].to_numpy(np.int64)
    newest = np.argsort(-changed, kind="stable")[:_NEWEST]
    newest = newest[(clock.time() - changed[newest] / 1e9 < _RECENT) & (size[newest] > 0)]
    look[newest] = True
    bad: dict[int, str] = {}
    for row in tqdm(np.flatnonzero(look), "Opening some images", disable=None):
        why = _why_unreadable(table.folder, str(files["path"][row]), int(size[row]), int(files["changed"][row]))
        if why:
            bad[int(row)] = why
    fading = [row for row in map(int, newest) if row not in bad and ends_in_zeros(table.folder / files["path"][row])]
    if fading:
        table.notes.append(
            f"{len(fading)} of the {len(newest)} newest files looked at end in zeros, such as "
            f"'{files['path'][fading[0]]}': dark images, or still being written; then index again when the plate is "
            "complete"
        )
    if bad:
        why = next(iter(bad.values()))
        more = f", and {len(bad) - 1} more like it" if len(bad) > 1 else ""
        table.faults.append(Fault("unreadable", f"{why}{more}", np.unique(number[list(bad)])))


def _why_unreadable(folder: Path, path: str, size: int, changed: int) -> str:
    """Why a file cannot be read; empty where it can."""
    file = folder / path
    if file.is_symlink() and not file.exists():
        return f"image '{path}' is a link to '{file.readlink()}', which is not there: copy the images themselves"
    problem, incomplete = "it is empty" if size == 0 else "", True
    if not problem:
        try:
            open_files(folder, [[path]])
        except BiomassError as error:  # what is laid out otherwise than others is another matter, see try_reading
            problem = one_line(error).partition(" cannot be read ")[2].rpartition("): ")[0].lstrip("(")
            incomplete = not problem.endswith(OTHER_FORMAT.format(file.suffix))
    if not problem:
        return ""
    since = clock.time() - changed / 1e9
    if 0 <= since < _RECENT and incomplete:
        return (
            f"image '{path}' cannot be read ({problem}), and changed {since:.0f} s ago: wait until the plate is "
            "complete, and index again"
        )
    more = "" if incomplete else ", or save it as its name says"
    return f"image '{path}' cannot be read ({problem}): copy it again{more}"


def _first_of_plates(fields: pd.DataFrame) -> np.ndarray:
    """The first field of every plate; of very many plates, of the first of them."""
    first = np.unique(_ranked(fields["experiment"] + "\0" + fields["plate"]), return_index=True)[1]
    return np.asarray(np.sort(first)[:_TRIED])


def try_reading(index: Index, depths: str, sizes: str) -> None:
    """Read one field of every plate as a screen will, before a training finds out that it cannot.

    Args:
        index: without fields that are known to be bad.
        depths: what to do about images of several bit depths, see :class:`.Reading`.
        sizes: what to do about images of several sizes, likewise.

    Raises:
        ConfigError: images have several planes or time points, and nothing says which to read.
        BadImageError: one cannot be read, or is of another depth or size than others.
    """
    some = _first_of_plates(index.fields)
    columns = [[column[row] for row in some] for column in index.images.values()]
    channels = None if list(index.images) == [""] else list(index.images)
    reading = Reading(index.z, index.time, depths, sizes)
    try:
        open_files(index.folder, columns, channels, reading=reading).read(np.arange(len(some)))
    except BadImageError as error:
        raise none_readable(error) from error


def _uneven(fields: pd.DataFrame) -> dict[tuple[str, str], tuple[int, str]]:
    """Sites that most wells of a plate have and some lack: plate → how many, and the first."""
    found = {}
    for _, own in fields[[*_FIELD]].drop_duplicates().groupby(["experiment", "plate"], sort=False):
        counts: pd.Series[int] = own.groupby("site")["well"].nunique()
        wells = own["well"].unique()
        usual = counts.index[counts.to_numpy() >= _MOST * len(wells)]
        have = pd.MultiIndex.from_frame(own[["well", "site"]])
        lack = pd.MultiIndex.from_product([wells, usual]).difference(have)
        if len(lack):
            experiment, plate = own.iloc[0][["experiment", "plate"]]
            found[experiment, plate] = (len(lack), "well {}, site {}".format(*lack.tolist()[0]))
    return found


def _called(fields: pd.DataFrame, row: int) -> str:
    one = fields.iloc[int(row)]
    more = [f"{column} {one[column]}" for column in map(str, fields) if column not in _FIELD]
    return ", ".join([f"well {one['well']}", f"site {one['site']}", *more, f"plate '{one['plate']}'"])
