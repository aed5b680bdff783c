"""The manifest of an indexed folder: joined with its plate map, written whole, and extended by further plates.

A manifest of this kind says itself how its images are read, see :data:`.IMAGES_KEY`, and what its files were, see
:data:`PLATES`.
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
import pyarrow.compute as pc
import pyarrow.parquet

from biomass.atomic import whole_files
from biomass.bounds import read_json
from biomass.datasets.index import Index
from biomass.datasets.join_maps import Unmatched, join_plate_map
from biomass.datasets.manifest import IMAGES_KEY
from biomass.datasets.plate_map import read_plate_maps
from biomass.datasets.splits import SHARES, default_split, make_splits
from biomass.errors import ConfigError, DataError, did_you_mean, printable
from biomass.identifiers import normal
from biomass.screen import PLATE
from biomass.table_files import read_table

PLATES = b"biomass.plates"
"""Where the schema of a manifest says what tells whether the files of a plate have changed since."""

MADE = b"biomass.index"
"""Where the schema of a manifest says how it was made: JSON, a list of :class:`biomass.datasets.recipe.Recipe`."""

_SHOWN = 5
_RXRX3 = ("EMPTY_control", "CRISPR_control")  # negative controls of RxRx3, among its treatments
_RXRX3_COLUMNS = {"well": "address", "experiment": "experiment_name", "treatment": "treatment"}


class Mapped(NamedTuple):
    """Fields with what is in their wells.

    Attributes:
        fields: the rows of the index: with ``treatment, label, control`` and what else the plate map says.
        columns: what was taken for what.
        notes: what a reader must know, a sentence each.
        left: what has no partner.
    """

    fields: pd.DataFrame
    columns: dict[str, str]
    notes: list[str]
    left: Unmatched


class Written(NamedTuple):
    """What became of a manifest.

    Attributes:
        rows: how many it has.
        new: plates that were added.
        replaced: plates that were indexed again.
        kept: plates that were there already, and have not changed.
        notes: how plates were divided, a sentence each.
        trains: there are labels, and a training split.
    """

    rows: int
    new: list[str]
    replaced: list[str]
    kept: list[str]
    notes: list[str]
    trains: bool = False


def find_map(folder: Path, layout: str) -> Path | None:
    """The table of wells that a collection publishes with its images."""
    name = {"rxrx1": "metadata.csv", "rxrx3": "metadata_rxrx3.csv"}.get(layout)
    places = [folder, folder.parent, folder.parent.parent] if name else []
    return next((place / name for place in places if name and (place / name).is_file()), None)


def join_map(
    index: Index,
    path: Path | Sequence[Path] | None,
    *,
    columns: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    barcodes: Path | None = None,
    compounds: Path | None = None,
    experiment: str | None = None,
    allow_left_over: bool = False,
) -> Mapped:
    """Say what is in the wells of an index.

    Args:
        index: of a folder.
        path: the plate map, or several; without one nothing is known of the wells.
        columns: what columns are called in it, as :func:`.read_plate_maps` takes them.
        control: which wells are controls, likewise.
        barcodes: which map each plate has, likewise.
        compounds: what each compound is, likewise.
        experiment: the name of the experiment, where neither images nor plate map tell it; the folder's if left out.
        allow_left_over: go on where plates are not on the map.

    Raises:
        ConfigError: a setting does not fit the map.
        DataError: the map cannot be read, or is not that of these plates.
    """
    fields = index.fields
    notes: list[str] = []
    taken: dict[str, str] = {}
    if path is None:
        notes.append("without a plate map nothing is known of the wells")
        fields = fields.assign(**{one: "" for one in ("treatment", "label", "control") if one not in fields})
        left = Unmatched(fields[:0], fields[:0], [], [], [])
    else:
        if index.layout == "rxrx3" and columns is None and control is None:
            columns, control = _RXRX3_COLUMNS, _rxrx3_controls(path)
        maps = read_plate_maps(
            path,
            columns=columns,
            control=control,
            barcodes=barcodes,
            compounds=compounds,
            plates=list(fields["plate"].unique()),
        )
        taken, notes = maps.columns, list(maps.notes)
        joined, left = join_plate_map(fields, maps)
        if left.image_plates and not allow_left_over:
            more = f", nor are {len(left.image_plates) - 1} more" if len(left.image_plates) > 1 else ""
            hint = did_you_mean(left.image_plates[0], left.map_plates, "add it").removesuffix("?")
            raise DataError(
                f"plate '{left.image_plates[0]}' has images and is not on the plate map{more}: {hint}", "left_over"
            )
        notes += left.notes
        if not (fields["experiment"] != "").any() and (joined["experiment"] != "").any():
            notes.append("experiments are those of the plate map")
        fields = joined
    fields, told = _with_experiment(fields, experiment, index.folder.absolute().name)
    return Mapped(fields, taken, notes + told, left)


def _rxrx3_controls(path: Path | Sequence[Path]) -> dict[str, Any] | None:
    """The negative controls of RxRx3: those of its treatments that mean nothing was done."""
    if not isinstance(path, Path):
        return None
    there = set(read_table(path, "plate map", columns=["treatment"]).frame()["treatment"])
    negative = [one for one in _RXRX3 if one in there]
    return {"column": "treatment", "negative": negative} if negative else None


def _with_experiment(fields: pd.DataFrame, given: str | None, folder: str) -> tuple[pd.DataFrame, list[str]]:
    """The fields with the experiment of each; and what was taken."""
    lacks = (fields["experiment"] == "").to_numpy()
    if not lacks.any():
        if given is not None:
            raise ConfigError(f"experiment '{given}' is given, but images or plate map tell it: leave it out")
        return fields, []
    if not lacks.all() and given is None:
        plate = fields["plate"][int(np.argmax(lacks))]
        raise DataError(f"plate '{plate}' has no experiment, and others have one: complete it", "experiment")
    name = normal(folder if given is None else given)
    told = [f"nothing tells experiments apart: all plates are of one, called '{name}' as the folder"]
    return fields.assign(experiment=fields["experiment"].mask(lacks, name)), told if given is None else []


def report(index: Index, mapped: Mapped) -> pd.DataFrame:
    """What every plate holds and lacks, a row a plate."""
    fields = mapped.fields
    without, strange = (_count_wells(one) for one in (mapped.left.map_wells, mapped.left.image_wells))
    faults = {kind: np.zeros(len(fields), bool) for kind in ("missing", "doubled", "unreadable")}
    for fault in index.faults:
        faults[fault.kind][fault.fields] = True
    channels = pd.DataFrame({one: [bool(path) for path in column] for one, column in index.images.items()})
    rows = []
    before = index.fields.set_index(fields.index)[list(PLATE)]
    for _, own in fields.groupby(list(PLATE), sort=False):
        experiment, plate = map(str, own[list(PLATE)].iloc[0])
        numbers = own.index.to_numpy()
        sites = own.groupby("well").size()
        there = [one for one in channels if channels[one].to_numpy()[numbers].any()]
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
                "no images": without.get((experiment, plate), without.get(("", plate), 0)),
                "not on map": strange.get((experiment, plate), strange.get(("", plate), 0)),
                "channels": "all" if len(there) == len(channels.columns) else ", ".join(map(str, there)),
            }
        )
    return pd.DataFrame(rows)


def _count_wells(wells: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Plate → how many of its wells are listed; the experiment is empty where it is not told."""
    place = wells["experiment"] if "experiment" in wells else pd.Series("", wells.index)
    return dict(pd.Series(list(zip(place, wells["plate"], strict=True)), dtype=object).value_counts())


def write_manifest(
    out: Path,
    index: Index,
    fields: pd.DataFrame,
    *,
    depths: str = "error",
    sizes: str = "error",
    replace: bool = False,
    splits: str | None = None,
    page: str = "",
    made: Sequence[Mapping[str, Any]] | None = None,
    base: Path | None = None,
) -> Written:
    """Write the manifest of an index, or add its plates to one that is there.

    Args:
        out: the manifest; its report, ``<name>.report.txt``, is written beside it.
        index: whose fields can all be read.
        fields: its fields, as :func:`join_map` gives them.
        depths: what to do about images of several bit depths, ``error`` or ``scale``.
        sizes: what to do about images of several sizes, ``error``, ``crop`` or ``pad``.
        replace: put plates that have changed in place of those that are there.
        splits: divide the screen by ``plate`` or ``experiment``, see :func:`.make_splits`; ``train``, ``val`` or
            ``test``: put the plates there that are in no split; ``none``: neither. If left out, a new manifest is
            divided by what there is enough of, and of one that grows the new plates are in no split.
        page: the report; none is written if it is empty.
        made: how the manifest is made, see :data:`MADE`; as the one before says if left out.
        base: the manifest that grows, if it is another one, which then stays as it is.

    Raises:
        ConfigError: the manifest cannot be written, or says otherwise of its images.
        DataError: what is there is no manifest of this kind, or a plate of it has changed.
    """
    old = _read_old(base or out)
    if old is not None and base is not None:
        old.about["image_dir"] = os.path.normpath(base.absolute().parent / old.about["image_dir"])
    about = _about(out, index, depths, sizes)
    if base is not None:
        about["image_dir"] = index.folder.absolute().as_posix()
    stamps = _stamp_plates(index, fields)
    table = _table(index, fields, about, out)
    if old is None:
        new = list(dict.fromkeys(fields[list(PLATE)].itertuples(index=False, name=None)))
        written = Written(len(fields), _plain(new), [], [], [])
    else:
        table, about, stamps, written = _grow(base or out, old, table, about, stamps, replace)
    table, notes = _divide(table, splits, old is not None)
    schema = {IMAGES_KEY: json.dumps(about).encode(), PLATES: json.dumps(stamps).encode()}
    if made is not None or old is not None:
        schema[MADE] = json.dumps(old.made if made is None and old is not None else made).encode()
    arrow = table.replace_schema_metadata(schema)
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(arrow, buffer)
    files = {out: buffer.getvalue().to_pybytes()}
    if page:
        page = "\n".join([page, *(f"note: {one}" for one in notes), ""])
        files[out.with_suffix(".report.txt")] = printable(page, "\n").encode()
    whole_files(files, "manifest")
    labelled = pc.not_equal(table["label"], "")
    trains = "split" in table.column_names and pc.any(pc.and_(labelled, pc.equal(table["split"], "train"))).as_py()
    return written._replace(notes=notes, trains=bool(trains))


def _divide(table: Any, splits: str | None, grown: bool) -> tuple[Any, list[str]]:
    """The table with a column ``split``, and what was done. Only who asks for it moves plates to another split."""
    frame = table.select([*PLATE, "label"]).to_pandas()
    before = table["split"].to_pandas() if "split" in table.column_names else pd.Series("", frame.index)
    there = bool((before != "").any())
    new = _plain(list(frame[list(PLATE)][before == ""].drop_duplicates().itertuples(index=False, name=None)))
    if splits == "none" or (there and splits is None):
        if not there or not new:
            return table, []
        stay = "; the others stay where they are" if grown else ""
        return table, [
            f"{_some(new)} in no split, so that no training and no test takes {'it' if len(new) == 1 else 'them'}{stay}"
        ]
    if splits in SHARES:
        if not new:
            return table, [f"every plate is in a split, so that none goes to '{splits}'"]
        stay = "; the others stay where they are" if there else ""
        return _with_split(table, before.mask(before == "", splits)), [f"{_some(new)} in split '{splits}' now{stay}"]
    by = splits or default_split(frame)
    if by is None:
        return table, ["there are too few plates for a training, a validation and a test: no split is written"]
    made = make_splits(frame, by)
    moved = frame[list(PLATE)][(before != "") & (before != made.split)].drop_duplicates()
    names = _plain(list(moved.itertuples(index=False, name=None)))
    more = [f"{_some(names)} in another split than before: train again before you test"] if names else []
    return _with_split(table, pd.Series(made.split)), made.notes + more


def _with_split(table: Any, split: "pd.Series[str]") -> Any:
    column = pa.array(split.tolist(), pa.string())
    if "split" in table.column_names:
        return table.set_column(table.column_names.index("split"), "split", column)
    return table.append_column("split", column)


def _some(plates: Sequence[str]) -> str:
    """Plates as the beginning of a sentence.

    >>> _some(["E/P1"]), _some(["E/P1", "E/P2"])
    ("1 plate ('E/P1') is", "2 plates ('E/P1', 'E/P2') are")
    """
    named = ", ".join(f"'{one}'" for one in plates[:_SHOWN]) + (", …" if len(plates) > _SHOWN else "")
    return f"{len(plates)} plate{'s' * (len(plates) != 1)} ({named}) {'is' if len(plates) == 1 else 'are'}"


def _plain(plates: Sequence[tuple[str, ...]]) -> list[str]:
    return ["/".join(filter(None, one)) for one in plates]


def check_manifest(out: Path) -> None:
    """Make sure that what is there is a manifest that may grow, before many files are looked at.

    Raises:
        DataError: it is something else.
    """
    if not out.exists():
        return
    try:
        said = pyarrow.parquet.read_schema(out).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(out) from error
    if IMAGES_KEY not in said:
        raise _no_manifest(out)


def _no_parquet(out: Path) -> DataError:
    return DataError(f"'{out}' is there, and is no Parquet file: choose another place, or remove it")


def _no_manifest(out: Path) -> DataError:
    return DataError(f"'{out}' is there, and is no manifest of indexed images: choose another place, or remove it")


class _Old(NamedTuple):
    """A manifest that is there: its table, and what it says of images, of plates, and of how it was made."""

    table: Any
    about: dict[str, Any]
    stamps: dict[str, str]
    made: list[dict[str, Any]]


def _read_old(out: Path) -> _Old | None:
    """The manifest that is there."""
    if not out.exists():
        return None
    try:
        table = pyarrow.parquet.read_table(out)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(out) from error
    said = table.schema.metadata or {}
    about = said.get(IMAGES_KEY)
    if about is None:
        raise _no_manifest(out)
    try:
        return _Old(table, read_json(about), read_json(said.get(PLATES, b"{}")), read_json(said.get(MADE, b"[]")))
    except ValueError as error:
        raise DataError(f"manifest '{out}' has damaged notes of how it was made ({error}): index it anew") from error


def _about(out: Path, index: Index, depths: str, sizes: str) -> dict[str, Any]:
    """What the manifest says of its images."""
    channels = list(index.images)
    one_file = channels == [""]
    return {
        "image": "path" if one_file else {one: f"image_{one}" for one in channels},
        "channels": None,
        "axes": None,
        "image_dir": place_beside(index.folder.absolute(), out.absolute().parent),
        "z": index.z,
        "time": index.time,
        "taken": index.taken,
        "depths": depths,
        "sizes": sizes,
    }


def place_beside(folder: Path, beside: Path) -> str:
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
        found["\n".join(map(str, plate))] = digest.hexdigest()[:16]
    return found


def _table(index: Index, fields: pd.DataFrame, about: Mapping[str, Any], out: Path) -> Any:
    """The rows of the manifest; paths as it has them."""
    table = pa.table({name: _column(fields[name]) for name in fields})
    image = about["image"]
    for channel, column in index.images.items():
        name = image if isinstance(image, str) else image[channel]
        kind = pa.list_(pa.string()) if column and isinstance(column[0], list) else pa.string()
        table = table.append_column(name, pa.array(column, kind))
    return table


def _column(values: "pd.Series[Any]") -> Any:
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return pa.array(values, from_pandas=True) if numbers else pa.array(values.astype(str), pa.string())


def _grow(
    out: Path,
    old: _Old,
    table: Any,
    about: dict[str, Any],
    stamps: dict[str, str],
    replace: bool,
) -> tuple[Any, dict[str, Any], dict[str, str], Written]:
    """The rows that are there and those of new plates, in this order."""
    before, said, known, _ = old
    for what in ("image", "z", "time", "depths", "sizes"):
        if said[what] != about[what]:
            names = [list(one[what]) if isinstance(one[what], dict) else one[what] for one in (said, about)]
            what = "channels" if what == "image" else what
            raise ConfigError(
                f"'{out}' has {what} {names[0]}, and these plates {names[1]}: index them alike, or choose another place"
            )
    for what, number in about["taken"].items():
        other = said.setdefault("taken", {}).setdefault(what, number)
        if other != number:
            raise ConfigError(
                f"'{out}' holds images of {what} {other}, and these are of {what} {number}, as their names say: index "
                "them alike, or choose another place"
            )
    keys = [list(zip(*(one[column].to_pylist() for column in PLATE), strict=True)) for one in (before, table)]
    there = set(keys[0])
    plates = list(dict.fromkeys(keys[1]))
    if said["image_dir"] != about["image_dir"]:
        table = _from_elsewhere(out, table, about, said["image_dir"])
    common = [plate for plate in plates if plate in there]
    rows = [pd.Series(range(len(own))).groupby(pd.Index(own, tupleize_cols=False)).indices for own in keys]
    changed = [
        plate
        for plate in common
        if known.get("\n".join(plate)) != stamps["\n".join(plate)]
        or _differs(before.take(rows[0][plate]), table.take(rows[1][plate]))
    ]
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
    types = {one.name: one.type for one in before.schema}
    for one in table.schema:
        same = types.setdefault(one.name, one.type) == one.type
        types[one.name] = one.type if same else pa.string()  # numbers on one map, and names on another
    parts = [_with_columns(part, types) for part in (before.filter(keep), table.filter(add))]
    merged = pa.concat_tables(parts)
    if again and "split" in before.column_names:
        merged = _keep_splits(merged, before)
    new = [plate for plate in plates if plate not in there]
    kept = [plate for plate in common if plate not in again]
    return merged, said, known | stamps, Written(len(merged), _plain(new), _plain(sorted(again)), _plain(kept), [])


def _keep_splits(merged: Any, before: Any) -> Any:
    """Plates that were indexed again stay in their splits."""
    columns = [*PLATE, "split"]
    was = before.select(columns).to_pandas().drop_duplicates(list(PLATE))
    now = merged.select(columns).to_pandas().merge(was, "left", list(PLATE), suffixes=("", "_was"))
    split = now["split"].where(now["split"] != "", now["split_was"].fillna(""))
    place = merged.column_names.index("split")
    return merged.set_column(place, "split", pa.array(split.tolist(), pa.string()))


def _differs(before: Any, now: Any) -> bool:
    """Whether there is something else in the wells of a plate; in which split it is does not matter."""
    shared = [column for column in now.column_names if column in before.column_names and column != "split"]
    same_columns = set(now.column_names) <= set(before.column_names)
    return not same_columns or before.select(shared).to_pylist() != now.select(shared).to_pylist()


def _with_columns(table: Any, types: Mapping[str, Any]) -> Any:
    """The table with these columns, of these types; what it lacks is empty text, or no number."""
    columns = {}
    for name, kind in types.items():
        if name in table.column_names:
            columns[name] = table[name].cast(kind)
        else:
            columns[name] = pa.array([""] * len(table), kind) if kind == pa.string() else pa.nulls(len(table), kind)
    return pa.table(columns)


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
