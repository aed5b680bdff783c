"""The manifest of an indexed folder: joined with its plate map, written whole, and extended by further plates.

A manifest of this kind says itself how its images are read: the metadata of its Parquet schema hold, under
:data:`IMAGES`, which columns are channels, where the paths begin, and what to make of planes, time points, depths and
sizes; and under :data:`PLATES`, what tells whether the files of a plate have changed since.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from biomass.atomic import whole_files
from biomass.datasets.index import Index
from biomass.datasets.layouts import natural
from biomass.datasets.plate_map import read_plate_map
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.identifiers import well_places
from biomass.screen import FORMATS, PLATE

IMAGES, PLATES = b"biomass.images", b"biomass.plates"
"""Where the schema of a manifest says how its images are read, and which files they were."""

WELL = (*PLATE, "well")
_RXRX3 = ("EMPTY_control", "CRISPR_control")  # negative controls of RxRx3, among its treatments
_FULL = 0.9  # share of the wells of a format that are imaged where all of them belong to the experiment
_SMALLEST = 4  # of FORMATS: plates of 96 wells; smaller ones are not told apart by their wells


class Mapped(NamedTuple):
    """Fields with what is in their wells.

    Attributes:
        fields: the rows of the index: with ``treatment, label, control`` and what else the plate map says.
        columns: what was taken for what.
        notes: what a reader must know, a sentence each.
        lone: plate → wells of the map without images, and imaged wells that the map lacks.
    """

    fields: pd.DataFrame
    columns: dict[str, str]
    notes: list[str]
    lone: dict[tuple[str, str], tuple[list[str], list[str]]]


class Written(NamedTuple):
    """What became of a manifest.

    Attributes:
        rows: how many it has.
        new: plates that were added.
        replaced: plates that were indexed again.
        kept: plates that were there already, and have not changed.
    """

    rows: int
    new: list[str]
    replaced: list[str]
    kept: list[str]


def find_map(folder: Path, layout: str) -> Path | None:
    """The table of wells that a collection publishes with its images."""
    name = {"rxrx1": "metadata.csv", "rxrx3": "metadata_rxrx3.csv"}.get(layout)
    places = [folder, folder.parent, folder.parent.parent] if name else []
    return next((place / name for place in places if name and (place / name).is_file()), None)


def join_map(
    index: Index,
    path: Path | None,
    *,
    columns: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    allow_left_over: bool = False,
) -> Mapped:
    """Say what is in the wells of an index.

    Args:
        index: of a folder.
        path: the plate map; without one nothing is known of the wells.
        columns: what columns are called in it, as :func:`.read_plate_map` takes them.
        control: which wells are controls, likewise.
        allow_left_over: go on where plates are not on the map, or are of another format.

    Raises:
        ConfigError: a setting does not fit the map.
        DataError: the map cannot be read, or is not that of these plates.
    """
    fields = index.fields
    if path is None:
        nothing = fields.assign(treatment="", label="", control="")
        return Mapped(nothing, {}, ["without a plate map nothing is known of the wells"], {})
    table, taken, notes = _read_map(path, index.layout, columns, control)
    by_experiment = _by_experiment(fields, table)
    on = list(WELL) if by_experiment else ["plate", "well"]
    if not by_experiment and "experiment" in table and (table["experiment"] != "").any():
        fields, told = _experiments(fields, table)
        notes += told
    table = table.drop(columns=[one for one in ("experiment",) if one not in on and one in table])
    table = table.drop_duplicates(on)
    _check_plates(fields, table, on[:-1], path, allow_left_over)
    if not allow_left_over:
        _check_formats(fields, table, on[:-1], path)
    taken_already = [one for one in table if one in fields and one not in on]
    if taken_already:
        notes.append(f"{', '.join(taken_already)} of the images is kept, and not that of the plate map")
    joined = fields.merge(table.drop(columns=taken_already), "left", on, indicator="_there", sort=False)
    known = (joined.pop("_there") == "both").to_numpy()
    new = [one for one in table if one not in on and one not in taken_already]
    joined[new] = joined[new].fillna("")
    return Mapped(joined, taken, notes, _lone(joined, known, table, on))


def _read_map(
    path: Path, layout: str, columns: Mapping[str, Any] | None, control: Mapping[str, Any] | None
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The rows of a plate map, what was taken for what, and notes."""
    if layout == "rxrx3" and columns is None and control is None:
        from biomass.table_files import read_table

        there = set(read_table(path, "plate map", columns=["treatment"]).frame()["treatment"])
        columns = {"well": "address", "experiment": "experiment_name", "treatment": "treatment"}
        control = {"column": "treatment", "negative": [one for one in _RXRX3 if one in there]}
    found = read_plate_map(path, columns=columns, control=control)
    return found.wells, found.columns, list(found.notes)


def _by_experiment(fields: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Whether plates of the map have to be told apart by their experiments, too: they mean those of the images."""
    if "experiment" not in table or not (table["experiment"] != "").all():
        return False
    return bool(set(fields["experiment"]) & set(table["experiment"]))


def _experiments(fields: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The fields with the experiments that the map gives to their plates."""
    plates = table[list(PLATE)].drop_duplicates()
    twice = plates["plate"][plates["plate"].duplicated()]
    if len(twice):
        here = plates["experiment"][plates["plate"] == twice.iloc[0]].tolist()
        raise DataError(
            f"plate '{twice.iloc[0]}' is of the experiments '{here[0]}' and '{here[1]}' on the plate map: let the "
            "names of the images tell the experiment"
        )
    of = plates.set_index("plate")["experiment"]
    given = fields["plate"].map(of)
    return fields.assign(experiment=given.where(given.notna(), fields["experiment"])), [
        "experiments are those of the plate map"
    ]


def _check_plates(fields: pd.DataFrame, table: pd.DataFrame, by: list[str], path: Path, allow: bool) -> None:
    """Refuse a map that is not that of the plates."""
    here = ["/".join(one) for one in fields[by].drop_duplicates().itertuples(index=False)]
    known = ["/".join(one) for one in table[by].drop_duplicates().itertuples(index=False)]
    absent = [one for one in here if one not in set(known)]
    if not absent or (allow and len(absent) < len(here)):
        return
    some = ", ".join(known[:5]) + (" …" if len(known) > 5 else "")
    hint = did_you_mean(absent[0], known, f"the map has {some}")
    which = "none of the plates" if len(absent) == len(here) else f"{len(absent)} of {len(here)} plates"
    which = f"{which} of the images is on the plate map '{path}'" if len(absent) == len(here) else f"{which} of the "
    if len(absent) < len(here):
        which += f"images are not on the plate map '{path}'"
    raise DataError(
        f"{which}, the first: '{absent[0]}'; {hint}",
        None if len(absent) == len(here) else "left_over",
    )


def _check_formats(fields: pd.DataFrame, table: pd.DataFrame, by: list[str], path: Path) -> None:
    """Refuse a map of another format than the plate."""
    maps = {key: own["well"].to_numpy() for key, own in table.groupby(by, sort=False)}
    for key, own in fields.groupby(by, sort=False):
        if key not in maps:
            continue
        wells, listed = own["well"].unique(), maps[key]
        try:
            there, said = _format(wells), _format(listed)
        except DataError:  # wells with names of their own
            continue
        size, on_map = (height * width for height, width in (there, said))
        plate = "/".join(key if isinstance(key, tuple) else (str(key),))
        if size > on_map:
            beyond = _farthest(wells)
            raise DataError(
                f"plate '{plate}' has images of well {beyond}, as plates of {size} wells have, but its map '{path}' is "
                f"of {on_map} wells and ends at {_farthest(listed)}: give the map of this format",
                "left_over",
            )
        if size < on_map and len(wells) >= _FULL * size:
            raise DataError(
                f"plate '{plate}' has images of {len(wells)} wells up to {_farthest(wells)}, as plates of {size} wells "
                f"have, but its map '{path}' is of {on_map} wells and goes to {_farthest(listed)}: give the map of "
                "this format",
                "left_over",
            )


def _format(wells: np.ndarray) -> tuple[int, int]:
    rows, columns = well_places(wells)
    return next(shape for shape in FORMATS[_SMALLEST:] if rows.max() <= shape[0] and columns.max() <= shape[1])


def _farthest(wells: np.ndarray) -> str:
    rows, columns = well_places(wells)
    return str(wells[np.lexsort((columns, rows))[-1]])


def _lone(
    joined: pd.DataFrame, known: np.ndarray, table: pd.DataFrame, on: list[str]
) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """Plate → wells of the map without images, imaged wells that the map lacks."""
    by = on[:-1]
    listed = {key: set(own["well"]) for key, own in table.groupby(by, sort=False)}
    lone = {}
    for plate, own in joined.assign(_known=known).groupby(list(PLATE), sort=False):
        key = tuple(plate) if len(by) == 2 else (plate[1],)
        without = sorted(listed.get(key, set()) - set(own["well"]), key=natural)
        strange = sorted(own["well"][~own["_known"]].unique(), key=natural)
        lone[plate[0], plate[1]] = (without, strange)
    return lone


def report(index: Index, fields: pd.DataFrame, lone: Mapping[tuple[str, str], tuple[list[str], list[str]]]) -> Any:
    """What every plate holds and lacks, a row a plate."""
    faults = {kind: np.zeros(len(fields), bool) for kind in ("missing", "doubled", "unreadable")}
    for fault in index.faults:
        faults[fault.kind][fault.fields] = True
    channels = pd.DataFrame({one: [bool(path) for path in column] for one, column in index.images.items()})
    rows = []
    before = index.fields.set_index(fields.index)[list(PLATE)]
    for (experiment, plate), own in fields.groupby(list(PLATE), sort=False):
        numbers = own.index.to_numpy()
        sites = own.groupby("well").size()
        there = [one for one in channels if channels[one].to_numpy()[numbers].any()]
        without, strange = lone.get((experiment, plate), ([], []))
        lacking = index.uneven.get(tuple(before.iloc[numbers[0]]), (0, ""))[0]
        rows.append(
            {
                "experiment": experiment,
                "plate": plate,
                "fields": len(own),
                "wells": len(sites),
                "sites": str(sites.min()) if sites.min() == sites.max() else f"{sites.min()}-{sites.max()}",
                "sites lacking": lacking,
                **{kind: int(rows_[numbers].sum()) for kind, rows_ in faults.items()},
                "no images": len(without),
                "not on map": len(strange),
                "channels": "all" if len(there) == len(channels.columns) else ", ".join(there),
            }
        )
    return pd.DataFrame(rows)


def write_manifest(
    out: Path,
    index: Index,
    fields: pd.DataFrame,
    *,
    depths: str = "error",
    sizes: str = "error",
    replace: bool = False,
    page: str = "",
) -> Written:
    """Write the manifest of an index, or add its plates to one that is there.

    Args:
        out: the manifest; its report, ``<name>.report.txt``, is written beside it.
        index: whose fields can all be read.
        fields: its fields, as :func:`join_map` gives them.
        depths: what to do about images of several bit depths, ``error`` or ``scale``.
        sizes: what to do about images of several sizes, ``error``, ``crop`` or ``pad``.
        replace: put plates that have changed in place of those that are there.
        page: the report.

    Raises:
        ConfigError: the manifest cannot be written, or says otherwise of its images.
        DataError: what is there is no manifest of this kind, or a plate of it has changed.
    """
    old = _read_old(out)
    about = _about(out, index, depths, sizes)
    stamps = _stamp_plates(index, fields)
    table = _table(index, fields, about, out)
    if old is None:
        new = list(dict.fromkeys(fields[list(PLATE)].itertuples(index=False, name=None)))
        written = Written(len(fields), _plain(new), [], [])
    else:
        table, about, stamps, written = _grow(out, old, table, about, stamps, replace)
    schema = {IMAGES: json.dumps(about).encode(), PLATES: json.dumps(stamps).encode()}
    arrow = table.replace_schema_metadata(schema)
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(arrow, buffer)
    whole_files({out: buffer.getvalue().to_pybytes(), out.with_suffix(".report.txt"): page.encode()}, "manifest")
    return written


def _plain(plates: Sequence[tuple[str, ...]]) -> list[str]:
    return ["/".join(filter(None, one)) for one in plates]


def _read_old(out: Path) -> tuple[Any, dict[str, Any], dict[str, str]] | None:
    """The manifest that is there: its table, what it says of images, and of plates."""
    if not out.exists():
        return None
    try:
        table = pyarrow.parquet.read_table(out)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{out}' is there, and is no Parquet file: choose another place, or remove it") from error
    about = (table.schema.metadata or {}).get(IMAGES)
    if about is None:
        raise DataError(f"'{out}' is there, and is no manifest of indexed images: choose another place, or remove it")
    return table, json.loads(about), json.loads((table.schema.metadata or {}).get(PLATES, b"{}"))


def _about(out: Path, index: Index, depths: str, sizes: str) -> dict[str, Any]:
    """What the manifest says of its images."""
    channels = list(index.images)
    one_file = channels == [""]
    return {
        "image": "path" if one_file else {one: f"image_{one}" for one in channels},
        "channels": None,
        "axes": None,
        "image_dir": _place(index.folder.absolute(), out.absolute().parent),
        "z": index.z,
        "time": index.time,
        "depths": depths,
        "sizes": sizes,
    }


def _place(folder: Path, beside: Path) -> str:
    """How the manifest calls the folder of images: relative where both move together."""
    if folder.is_relative_to(beside) or folder.is_relative_to(beside.parent):
        return Path(os.path.relpath(folder, beside)).as_posix()
    return folder.as_posix()


def _stamp_plates(index: Index, fields: pd.DataFrame) -> dict[str, str]:
    """Plate → a digest of what its files are called, how long they are, and when they changed."""
    found = {}
    for plate, own in fields.groupby(list(PLATE), sort=False):
        rows = own.index.to_numpy()
        digest = hashlib.sha256()
        for column in index.images.values():
            digest.update("\n".join(str(column[row]) for row in rows).encode())
        digest.update(index.sizes[rows].tobytes() + index.changed[rows].tobytes())
        found["\n".join(plate)] = digest.hexdigest()[:16]
    return found


def _table(index: Index, fields: pd.DataFrame, about: Mapping[str, Any], out: Path) -> Any:
    """The rows of the manifest; paths as it has them."""
    table = pa.table({name: pa.array(fields[name].astype(str), pa.string()) for name in fields})
    image = about["image"]
    for channel, column in index.images.items():
        name = image if isinstance(image, str) else image[channel]
        kind = pa.list_(pa.string()) if column and isinstance(column[0], list) else pa.string()
        table = table.append_column(name, pa.array(column, kind))
    return table


def _grow(
    out: Path,
    old: tuple[Any, dict[str, Any], dict[str, str]],
    table: Any,
    about: dict[str, Any],
    stamps: dict[str, str],
    replace: bool,
) -> tuple[Any, dict[str, Any], dict[str, str], Written]:
    """The rows that are there and those of new plates, in this order."""
    before, said, known = old
    for what in ("image", "z", "time", "depths", "sizes"):
        if said[what] != about[what]:
            names = [list(one[what]) if isinstance(one[what], dict) else one[what] for one in (said, about)]
            what = "channels" if what == "image" else what
            raise ConfigError(
                f"'{out}' has {what} {names[0]}, and these plates {names[1]}: index them alike, or choose another place"
            )
    keys = [list(zip(*(one[column].to_pylist() for column in PLATE), strict=True)) for one in (before, table)]
    there = set(keys[0])
    plates = list(dict.fromkeys(keys[1]))
    if said["image_dir"] != about["image_dir"]:
        table = _from_elsewhere(out, table, about, said["image_dir"])
    common = [plate for plate in plates if plate in there]
    changed = [plate for plate in common if _differs(before, table, keys, plate, known, stamps)]
    if changed and not replace:
        raise DataError(
            f"plate '{_plain(changed)[0]}' is in '{out}' already, and its images or its plate map have changed since"
            f"{f', as for {len(changed) - 1} more' if len(changed) > 1 else ''}: index it into another manifest, or "
            "replace it",
            "replace",
        )
    again = set(common) if replace else set()
    keep = pa.array([plate not in again for plate in keys[0]], pa.bool_())
    add = pa.array([plate not in there or plate in again for plate in keys[1]], pa.bool_())
    columns = list(dict.fromkeys([*before.column_names, *table.column_names]))
    parts = [_with_columns(part, columns) for part in (before.filter(keep), table.filter(add))]
    merged = pa.concat_tables(parts, promote_options="permissive")
    new = [plate for plate in plates if plate not in there]
    kept = [plate for plate in common if plate not in again]
    return merged, said, known | stamps, Written(len(merged), _plain(new), _plain(sorted(again)), _plain(kept))


def _differs(
    before: Any, table: Any, keys: Sequence[Sequence[tuple[str, str]]], plate: tuple[str, str], known: Any, stamps: Any
) -> bool:
    """Whether a plate of the manifest is another one now: its files, or what is in its wells."""
    name = "\n".join(plate)
    if known.get(name) != stamps[name]:
        return True
    rows = [one.filter(pa.array([key == plate for key in own])) for one, own in zip((before, table), keys, strict=True)]
    shared = [column for column in table.column_names if column in before.column_names and column != "split"]
    return bool(set(table.column_names) - set(before.column_names)) or not rows[0].select(shared).cast(
        rows[1].select(shared).schema
    ).equals(rows[1].select(shared))


def _with_columns(table: Any, columns: Sequence[str]) -> Any:
    for column in columns:
        if column not in table.column_names:
            table = table.append_column(column, pa.array([""] * len(table), pa.string()))
    return table.select(columns)


def _from_elsewhere(out: Path, table: Any, about: Mapping[str, Any], image_dir: str) -> Any:
    """Rows whose paths begin in another folder than those of the manifest."""
    beside = out.absolute().parent
    own, other = (Path(os.path.normpath(beside / one)) for one in (about["image_dir"], image_dir))
    image = about["image"]
    for column in [image] if isinstance(image, str) else list(image.values()):
        paths = table[column].to_pylist()
        moved = [
            [_moved(one, own, other) for one in path] if isinstance(path, list) else _moved(path, own, other)
            for path in paths
        ]
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(moved, table.schema.field(column).type))
    return table


def _moved(path: str, own: Path, other: Path) -> str:
    whole = f"{own.as_posix()}/{path}" if not path.startswith("/") else path
    return whole.removeprefix(f"{other.as_posix()}/")
