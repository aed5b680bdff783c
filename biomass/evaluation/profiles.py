"""Profiles of cells, of fields of view and of wells, as the tools of the field read them; a plate at a time.

A profile table is a Parquet file. Its columns ``Metadata_*`` describe a row, all others are features: float32, called
``emb_0000…`` where a network made them. The columns of a Screen are called ``Metadata_<column>`` there, but for
:data:`NAMES`, which are called as in CellProfiler and JUMP. :mod:`biomass.evaluation.transfer` has names of its own,
those of the published evaluation of BBBC021.

A field is the mean of its cells, a well the mean of its fields. What a plate gives is kept in a folder until all plates
are there, see :func:`write_plate`; then the files of the plates become one, without ever being in memory together.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from biomass.atomic import whole_file
from biomass.bounds import read_json
from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.evaluation.tables import METADATA
from biomass.screen import FIELD, KINDS, PLATE, Screen
from biomass.tensor_files import load_tensors, save_tensors

NAMES: Mapping[str, str] = {
    "experiment": f"{METADATA}Batch",
    "plate": f"{METADATA}Plate",
    "well": f"{METADATA}Well",
    "site": f"{METADATA}Site",
}
"""The columns of a Screen whose names in a profile table are those of CellProfiler and JUMP."""

CONTROL = f"{METADATA}control"
"""The column that says what a well is a control of: negative, positive or nothing."""

COUNT_CELLS, COUNT_FIELDS = f"{METADATA}Count_Cells", f"{METADATA}Count_Fields"

COUNTS = ("Count_Cells", "Image_Count_Cells", "cells", "Count_Nuclei", "Image_Count_Nuclei")
"""Columns of a screen of fields that say how many cells each has, as CellProfiler and ``biomass crop`` call them."""

"""How many cells a field or a well has, and how many fields a well, that its profile is made of."""

RAW = "profiles_wells_raw.parquet"
"""The profiles of wells before post-processing."""

COMPARED = "profiles_wells_{word}.parquet"
"""The profiles of wells that those of a run are compared with."""

LEVELS = ("cells", "fields", "wells")
"""What a row of a profile table may be."""

STATISTICS = "biomass.statistics"
"""Under this key the metadata of a Parquet file of profiles say which word for statistics they were made under."""

DATA = "biomass.data"
"""Under this key they say what the screen was made of: JSON, see :func:`biomass.fingerprint.fingerprint`."""

_ROW_GROUP = 8192  # rows that are in memory at once while files are joined

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What is known of the rows of a Screen before they have profiles.

    Attributes:
        table: a row a row of the screen, with all ``Metadata_*`` columns.
        row_level: what a row of the screen is, ``cells`` or ``fields``.
        fields: (N,) the number of the field that each row belongs to,
        wells: (N,) and of its well; both in the order of their names.
        columns: for each level, those columns that have one value in each of its rows.
        counts: (N,) cells of each row, where rows are fields and a column of the screen (:data:`COUNTS`) says it.
    """

    table: pd.DataFrame
    row_level: str
    fields: np.ndarray
    wells: np.ndarray
    columns: Mapping[str, list[str]]
    counts: np.ndarray | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """The profile tables that there will be."""
        return LEVELS[LEVELS.index(self.row_level) :]

    def well_table(self) -> pd.DataFrame:
        """A row for each well, with the columns that wells will have."""
        first = np.unique(self.wells, return_index=True)[1]
        return self.table[self.columns["wells"]].iloc[first].reset_index(drop=True)

    def schema(self, level: str, features: Sequence[str], counted: bool) -> pa.Schema:
        """The columns of the file of a level, with their types.

        Args:
            level: one of :attr:`levels`.
            features: names of the features.
            counted: whether the cells behind each field are known.
        """
        about = pa.Table.from_pandas(_plain(self.table[self.columns[level]]), preserve_index=False)
        counts = [COUNT_CELLS] * (counted and level != "cells") + [COUNT_FIELDS] * (level == "wells")
        fields = [*about.schema.remove_metadata(), *(pa.field(name, pa.int64()) for name in counts)]
        return pa.schema([*fields, *(pa.field(name, pa.float32()) for name in features)])


def describe(screen: Screen, rows: str | None = None) -> Description:
    """The metadata of profiles: what each row of a screen is called, and what can be said of its field and its well.

    Args:
        screen: of cells or of fields.
        rows: ``cells`` or ``fields``, what a row of the screen is; None: cells, if two rows are of one field or the
            screen knows the fields that its rows were cut out of.

    Raises:
        ConfigError: ``rows`` is neither.
        DataError: a row has no well.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, ["P1"] * 3) | {"well": ["A1", "A1", "A2"], "control": ""})
    >>> known = describe(make_screen(table.assign(label=0, x=[1, 2, 3], dose=5), None, ["DMSO"]))
    >>> known.levels
    ('cells', 'fields', 'wells')
    >>> known.columns["fields"][-3:]  # x differs between the cells of a field
    ['Metadata_split', 'Metadata_control', 'Metadata_dose']
    """
    if rows not in (None, "cells", "fields"):
        raise ConfigError(f"rows '{rows}' are unknown; choose cells or fields")
    nameless = np.flatnonzero((screen.table["well"] == "").to_numpy())
    if len(nameless):
        raise DataError(f"row {nameless[0]} of the screen has no well, so that it has no well profile; name its well")
    fields, wells = screen.groups(FIELD), screen.groups((*PLATE, "well"))
    several = int(fields.max()) + 1 < len(screen)
    row_level = rows or ("cells" if several or screen.fields is not None else "fields")
    if row_level == "fields":  # each by itself, also where sites have no names
        fields = np.arange(len(screen))
    table, counts = _counts(metadata_table(screen)) if row_level == "fields" else (metadata_table(screen), None)
    columns = {row_level: list(table.columns)}
    columns["fields"] = [c for c in table.columns if row_level == "fields" or _is_one(table[c], fields)]
    columns["wells"] = [c for c in table.columns if _is_one(table[c], wells)]
    return Description(table, row_level, fields, wells, columns, counts)


def _counts(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The table of fields without its column of counted cells, and what that says; None where there is none.

    >>> table, counts = _counts(pd.DataFrame({"Metadata_Site": ["1", "2"], "Metadata_cells": ["12", "0"]}))
    >>> list(table), counts.tolist()
    (['Metadata_Site'], [12, 0])
    """
    there = {str(name).lower(): str(name) for name in table}
    column = next((there[one] for one in (f"{METADATA}{name}".lower() for name in COUNTS) if one in there), None)
    if column is None:
        return table, None
    numbers = pd.to_numeric(table[column], errors="coerce")
    whole = numbers.ge(0) & (numbers % 1).eq(0)
    if not whole.all():
        bad = table[column][~whole].iloc[0]
        if column == COUNT_CELLS:
            table = table.rename(columns={column: f"{METADATA}own_Count_Cells"})
        log.info("column '%s' holds no counts of cells, such as '%s', and is not taken for them", column, bad)
        return table, None
    log.info("cells are counted as in column '%s'", column)
    return table.drop(columns=column), numbers.to_numpy(np.int64)


def check_groups(known: Description, groups: np.ndarray, by: Sequence[str]) -> None:
    """Make sure that no well is in two groups that statistics are taken over.

    Args:
        known: of the screen.
        groups: (N,) of its rows.
        by: the columns that make a group.

    Raises:
        ConfigError: one is.
    """
    first = np.unique(known.wells, return_index=True)[1]
    torn = np.flatnonzero(groups[first][known.wells] != groups)
    if len(torn):
        well = "/".join(map(str, known.table.iloc[torn[0]][[NAMES[c] for c in (*PLATE, "well")]]))
        raise ConfigError(
            f"statistics by {', '.join(by)} put the images of well '{well}' into two groups; choose columns that are "
            "the same for all images of a well",
            "statistics",
        )


def metadata_table(screen: Screen) -> pd.DataFrame:
    """The table of a screen under the names of a profile table; labels by the names of their classes."""
    own = screen.table.drop(columns=["plate_id", "label"]).rename(columns=str)
    for column in own.select_dtypes(object):
        if pd.api.types.infer_dtype(own[column]).startswith("mixed"):  # a file has one type a column
            own[column] = own[column].astype(str)
    names = {c: NAMES.get(c, c if c.startswith(METADATA) else f"{METADATA}{c}") for c in own.columns}
    canonical = {name.lower(): column for column, name in NAMES.items()}
    for column, name in list(names.items()):  # a column 'Batch' of the lab beside the screen's own
        like = canonical.get(name.lower())
        if like in (None, column):
            continue
        if (own[column].astype(str) == own[like].astype(str)).all():
            del names[column]
            log.info("column '%s' says the same as %s, and is left out", column, NAMES[like])
        else:
            names[column] = f"{METADATA}own_{column}"
            log.info("column '%s' is called %s, beside %s", column, names[column], NAMES[like])
    labels = np.array([*screen.classes, ""], dtype=object)[screen.labels]
    table = own[list(names)].rename(columns=names)
    table.insert(list(names).index("split"), f"{METADATA}label", pd.Series(pd.Categorical(labels), own.index))
    return table


def _is_one(values: pd.Series, groups: np.ndarray) -> bool:
    """Whether all rows of each group have the same value."""
    codes = pd.factorize(values.astype(str) if values.dtype == object else values)[0]
    first = np.full(groups.max() + 1, -2)
    first[groups[::-1]] = codes[::-1]
    return bool((codes == first[groups]).all())


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Text in place of categories, which other tools do not expect."""
    return table.astype(dict.fromkeys(table.select_dtypes("category"), object))


@dataclass(frozen=True)
class PlateVectors:
    """What the rows of one plate were made into.

    Attributes:
        group: number of the plate (or whatever statistics are taken over).
        rows: (n,) of the screen, ascending.
        vectors: (n, D) float32.
        counts: (n,) cells behind each row, where rows are fields whose cells were counted.
        moments: of the plate, by the name of the norm, where they were measured now.
        skipped: rows that could not be read.
    """

    group: int
    rows: np.ndarray
    vectors: np.ndarray
    counts: np.ndarray | None = None
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: Sequence[int] = ()


def plate_tables(known: Description, plate: PlateVectors, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Table]:
    """The profile tables of one plate, for each level.

    Args:
        known: of the screen.
        plate: what its rows were made into.
        schemas: of each level that is wanted.
    """
    rows, vectors = plate.rows, plate.vectors
    tables = {}
    given = known.counts[rows] if plate.counts is None and known.counts is not None else plate.counts
    counts = {COUNT_CELLS: np.ones(len(rows), np.int64) if given is None else given}
    for level in known.levels:
        if level != known.row_level:
            groups = (known.fields if level == "fields" else known.wells)[rows]
            _, first, number, size = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
            vectors = _means(vectors, number, size)
            counts = {COUNT_CELLS: np.bincount(number, counts[COUNT_CELLS]).astype(np.int64), COUNT_FIELDS: size}
            rows = rows[first]
        if level not in schemas:
            continue
        about = _plain(known.table[known.columns[level]].iloc[rows])
        schema = schemas[level]
        columns = [
            *pa.Table.from_pandas(about, pa.schema([f for f in schema if f.name in about]), preserve_index=False),
            *(counts[name] for name in (COUNT_CELLS, COUNT_FIELDS) if name in schema.names),
            *np.ascontiguousarray(vectors.T, np.float32),
        ]
        tables[level] = pa.table(columns, schema=schema)
    return tables


def _means(vectors: np.ndarray, number: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The mean vector of each group, (M, D) float64, of vectors (n, D) in the groups ``number`` (n,)."""
    order = np.argsort(number, kind="stable")
    starts = np.cumsum(size) - size
    total: np.ndarray = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
    return total / size[:, None]


# --- what is kept of a plate ------------------------------------------------------------------------------------------

MOMENTS = "moments.pt"
"""The moments of a plate that was measured, beside its profiles."""


@dataclass(frozen=True)
class Parts:
    """Where the profiles of the plates of a screen are kept, and what they were made from.

    Attributes:
        known: of the screen.
        folders: of each plate.
        prints: what the profiles of each plate depend on, see :func:`biomass.evaluation.parts.fingerprints`.
        held: the moments of plates that were stored before, by the number of the plate; what they are made from, too.
        pixels: of each plate, a hash of some of its images; not compared where a file of an earlier version has none.
        only: the one level that is kept; None: all that there are.
    """

    known: Description
    folders: Sequence[Path]
    prints: Sequence[str]
    held: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    only: str | None = None
    pixels: Sequence[str] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that are kept."""
        return self.known.levels if self.only is None else (self.only,)

    def outdated(self, missing: Sequence[int]) -> list[int]:
        """Those of the missing plates that have profiles, which were made from something else."""
        return [g for g in missing if all((self.folders[g] / f"{level}.parquet").is_file() for level in self.levels)]

    def missing(self) -> list[int]:
        """The plates that have no profiles yet, or whose profiles were made from something else."""
        return [group for group in range(len(self.folders)) if not self._is_there(group)]

    def _is_there(self, group: int) -> bool:
        about = [read_about(self.folders[group] / f"{level}.parquet") for level in self.levels]
        if not all(one.get("fingerprint") == self.prints[group] for one in about):
            return False
        if self.pixels and any(one.get("pixels", self.pixels[group]) != self.pixels[group] for one in about):
            return False
        if group in self.held:
            return all(one["moments"] == _digest(self.held[group]) for one in about)
        return not any(one["stored"] for one in about)

    def write(
        self, plates: Iterable[PlateVectors], features: Sequence[str] | None, names: Callable[[int], str]
    ) -> None:
        """Keep the profiles of plates as they come.

        Args:
            plates: whose rows were made into vectors.
            features: their names; None: ``emb_0000…``.
            names: of a row of the screen that could not be read.
        """
        schemas: dict[str, pa.Schema] = {}
        for plate in plates:
            known = self.known
            if not schemas:
                columns = [f"emb_{i:04d}" for i in range(plate.vectors.shape[1])] if features is None else features
                counted = known.row_level == "cells" or plate.counts is not None or known.counts is not None
                schemas = {level: known.schema(level, columns, counted) for level in self.levels}
            folder, moments = self.folders[plate.group], self.held.get(plate.group, plate.moments)
            if plate.moments:
                with whole_file(folder / MOMENTS) as file:
                    save_tensors(dict(plate.moments), file)
            write_plate(
                plate_tables(known, plate, schemas),
                folder,
                fingerprint=self.prints[plate.group],
                **({"pixels": self.pixels[plate.group]} if self.pixels else {}),
                moments=_digest(moments),
                stored=plate.group in self.held,
                skipped=[names(row) for row in plate.skipped],
            )

    def moments(self, group: int) -> Mapping[str, Tensor]:
        """The moments that the profiles of a plate rest on."""
        if group in self.held:
            return self.held[group]
        file = self.folders[group] / MOMENTS
        found: dict[str, Tensor] = load_tensors(file, "file")
        fits = isinstance(found, dict) and all(
            isinstance(one, Tensor) and one.dim() == 2 and len(one) == 2 and bool(one.isfinite().all())
            for one in found.values()
        )
        if not fits or any(bool((one[1] < 0).any()) for one in found.values()):
            raise CheckpointError(f"'{file}' holds no moments of a plate; remove it, and make the profiles again")
        return found

    def files(self, level: str, without: Sequence[int] = ()) -> list[Path]:
        """The files of one level, plate by plate."""
        return [one / f"{level}.parquet" for group, one in enumerate(self.folders) if group not in set(without)]

    def join(
        self,
        level: str,
        file: Path,
        without: Sequence[int] = (),
        change: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
        statistics: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> int:
        """Make one file of those of the plates, with no more than a few thousand rows in memory.

        Args:
            level: one of the levels of the description.
            file: written whole or not at all.
            without: plates that are left out.
            change: what is done to some rows of a plate at a time; as they are if left out.
            statistics: the word that the profiles were made under, which the file carries (:data:`STATISTICS`).
            data: the fingerprint of the screen, which it carries, too (:data:`DATA`).

        Returns:
            How many rows it has.

        Raises:
            ConfigError: the file cannot be written.
        """
        parts, rows = self.files(level, without), 0
        columns = pq.read_schema(parts[0]).names
        features = [name for name in columns if not name.startswith(METADATA)]
        carried = {STATISTICS: statistics} | ({} if data is None else {DATA: json.dumps(data)})
        schema = self.known.schema(level, features, COUNT_CELLS in columns).with_metadata(carried)
        with whole_file(file) as whole, pq.ParquetWriter(whole, schema, use_dictionary=_texts(schema)) as writer:
            for part in parts:
                with pq.ParquetFile(part) as source:
                    for number in range(source.num_row_groups):
                        table = source.read_row_group(number).cast(schema)
                        if change is not None:
                            table = pa.Table.from_pandas(change(table.to_pandas()), schema, preserve_index=False)
                        writer.write_table(table)
                        rows += len(table)
        return rows

    def controls(self, kind: str, without: Sequence[int] = ()) -> pd.DataFrame:
        """The profiles of the control wells of a kind, see :data:`biomass.screen.KINDS`."""
        only = [(CONTROL, "in", list(KINDS[kind]))]
        return pd.concat(
            [pd.read_parquet(file, filters=only) for file in self.files("wells", without)], ignore_index=True
        )

    def unread(self, group: int) -> int:
        """How many images of a plate could not be read."""
        return len(read_about(self.folders[group] / "wells.parquet").get("skipped", ()))

    def skipped(self, without: Sequence[int] = ()) -> list[str]:
        """The names of all images that could not be read, but for those of some plates."""
        return [name for file in self.files("wells", without) for name in read_about(file).get("skipped", ())]


def _digest(moments: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(moments[name].numpy().tobytes() for name in sorted(moments))).hexdigest()


def write_plate(tables: Mapping[str, pa.Table], folder: Path, **about: Any) -> None:
    """Keep the profiles of a plate, ``<folder>/<level>.parquet``; those of wells are written last.

    Args:
        tables: of each level.
        folder: of the plate.
        about: kept in the files, see :func:`read_about`.

    Raises:
        ConfigError: a file cannot be written.
    """
    for level in LEVELS:
        if level not in tables:
            continue
        table = tables[level].replace_schema_metadata({b"biomass": json.dumps(about).encode()})
        with whole_file(folder / f"{level}.parquet") as part:
            pq.write_table(table, part, row_group_size=_ROW_GROUP, use_dictionary=_texts(table.schema))


def read_about(file: Path) -> dict[str, Any]:
    """What :func:`write_plate` was told; nothing where there is no file that can be read."""
    try:
        about: dict[str, Any] = read_json((pq.read_schema(file).metadata or {})[b"biomass"])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}
    return about


def _texts(schema: pa.Schema) -> list[str]:
    """The columns in which values come again and again."""
    return [one.name for one in schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]
