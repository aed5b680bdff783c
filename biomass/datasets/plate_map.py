"""A plate map, or any table that says what is in which well: a manifest of images or cells, a platemap, metadata.

Nothing is read but the tables, so that they may be of a screen that is still to be made. Columns are found by the names
that labs use, and whatever is taken is told. What files a map may consist of, :mod:`biomass.datasets.map_files` says.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.datasets.manifest import control_kinds
from biomass.datasets.map_files import USUAL, MapTable, read_map_files, row_and_column, short_name, usual_column
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.grouping import factorize
from biomass.identifiers import find, names, wells, wells_at
from biomass.table_files import as_numbers

SETTABLE = ("experiment", "plate", "well", "treatment", "label", "control")
"""The columns that a user may name."""

KINDS: Mapping[str, str] = (
    dict.fromkeys(("negative", "negative_control", "negcon", "neg", "neg_control", "vehicle", "untreated"), "negative")
    | dict.fromkeys(("positive", "positive_control", "poscon", "pos", "pos_control"), "positive")
    | dict.fromkeys(("poscon_cp", "poscon_diverse", "poscon_orf"), "positive")
    | dict.fromkeys(("", "treatment", "treated", "trt", "sample", "test"), "")
)
"""What a column of controls may say, in small letters."""

NEGATIVES = ("dmso", "untreated", "vehicle", "mock", "empty", "negative control", "non-targeting", "negcon")
"""Names of treatments, in small letters, that are negative controls where no column says which wells are."""

PLACE = ("experiment", "plate", "well")
"""What tells wells apart."""

SOLVENTS = ("solvent", "vehicle")
"""Columns that say what a well without a compound holds."""

_ONCE = (
    ("treatment", "treatments", "name the columns that tell plates apart, or what is given together as one treatment"),
    ("label", "labels", "correct its rows, or name the columns that tell plates apart, or another column of labels"),
    ("control", "kinds of control", "correct its rows, or name the columns that tell plates apart"),
)
"""What a well has once: the column, its plural, and the remedy where rows say two."""

_LIKE = {"columns": "{plate: barcode}", "control": "{column: compound, negative: [DMSO]}"}


class PlateMap(NamedTuple):
    """A plate map.

    Attributes:
        wells: a row for each row of the table that is kept: ``experiment, plate, well`` (empty where the table has
            none), ``treatment, label`` (what a network is to tell apart; where nothing is said, the treatment
            without its dose), ``control`` (``negative``, ``positive`` or empty); the further columns that were
            asked for.
        columns: what was taken for what: canonical column → how to say where it comes from.
        notes: what else a reader of the result must know, a sentence each.
    """

    wells: pd.DataFrame
    columns: dict[str, str]
    notes: list[str]


class PlateMaps(NamedTuple):
    """The maps of plates of which there are images, to be joined with these by :func:`.join_plate_map`.

    Attributes:
        table: a row a well: ``experiment`` (if a column says it), ``plate`` (empty if the map holds for every plate),
            ``well``, ``treatment``, ``label``, ``control`` as in a :class:`PlateMap`; all further columns under their
            own names, without ``Metadata_``. Wells without a treatment are in it, with an empty one.
        columns: what was taken for what, as in a :class:`PlateMap`.
        notes: what else a reader of the result must know, a sentence each.
        sizes: of plates that are drawn as a matrix: how many wells each has.
    """

    table: pd.DataFrame
    columns: dict[str, str]
    notes: list[str]
    sizes: dict[str, int]


def read_plate_map(
    path: str | Path,
    *,
    columns: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    by: Sequence[str] = (),
    copies: int | None = None,
) -> PlateMap:
    r"""Read a plate map.

    Args:
        path: any table that :func:`biomass.table_files.read_table` reads, a row a well, an image or a cell; a file
            that shows plates as matrices; a folder of such files.
        columns: what :data:`SETTABLE` are called in it, where the :data:`.USUAL` names are not right. ``well`` may be
            two columns, ``[row, column]``; ``treatment`` several, which together name one. False leaves one out.
        control: which wells are controls, by the values of a column (of treatments, if left out), as
            :func:`.load_manifest` takes it; an empty text stands for wells without a value. If left out, a column of
            controls says it, or the names of treatments do.
        by: further columns, such as ``week``, that will be grouped by.
        copies: of a map without plates: on how many plates wells lie like this.

    Raises:
        ConfigError: a setting does not fit the table.
        DataError: the table cannot be read, has no rows, no column of plates or treatments, a row has no plate, or a
            well holds two treatments.

    >>> file = getfixture("tmp_path") / "map.csv"
    >>> _ = file.write_text("Metadata_Plate,well_position,compound\nP1,A1,DMSO\nP1,A2,taxol\nP2,A1,DMSO\n")
    >>> found = read_plate_map(file)
    >>> found.wells[["plate", "well", "treatment", "control"]].values.tolist()
    [['P1', 'A01', 'DMSO', 'negative'], ['P1', 'A02', 'taxol', ''], ['P2', 'A01', 'DMSO', 'negative']]
    >>> found.columns["plate"]
    "'Metadata_Plate'"
    """
    _check_settings(columns, control)
    if copies is not None and copies < 1:
        raise ConfigError(f"copies={copies}: a map lies on at least one plate")
    file = read_map_files(path, columns=dict(columns or {}))
    table, taken, told = _interpret(file, dict(columns or {}), control)
    notes = list(file.notes)
    for column in by:
        if column not in table:
            own = find(column, file.columns, "column to group by", advice="columns")[0]
            table[column] = names(file.frame[own], own, place=file.place, needed=True)
    empty = (table["treatment"] == "") & (table["control"] == "")
    if empty.any():
        notes.append(
            f"{_count(empty.sum(), 'row')} without a treatment: left out, as empty wells; if they are negative "
            "controls, list the empty text among these"
        )
        table = table[~empty].reset_index(drop=True)
    if "plate" not in taken:
        if copies is None:
            raise DataError(
                f"'{file.path}' has no column of plates, as which {_list(USUAL['plate'][:3])} would be taken; it has: "
                f"{', '.join(file.columns)}: name it, or give copies, the number of plates on which wells lie so",
                "columns",
            )
        table = pd.concat([table.assign(plate=f"copy {i + 1}") for i in range(copies)], ignore_index=True)
        told["plate"] = f"{copies} copies of the map"
    elif copies is not None:
        raise ConfigError(
            f"the map has plates, in column {_said(taken['plate'])}, and copies={copies}: give one of them"
        )
    _check_wells(table)
    return PlateMap(table, told, notes)


def read_plate_maps(
    path: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    barcodes: str | Path | None = None,
    compounds: str | Path | None = None,
    plates: Sequence[str],
) -> PlateMaps:
    r"""Read the maps of plates of which there are images.

    Args:
        path: a file, several, or a folder of them: tables with a row a well, plates drawn as matrices, and beside
            them tables of barcodes and of compounds.
        columns: as in :func:`read_plate_map`.
        control: as in :func:`read_plate_map`.
        barcodes: a table that says which map each plate has; if left out, one is taken that is among the files.
        compounds: a table with a row a compound, joined by a column that the maps have, too; likewise.
        plates: the plates of which there are images. A map that does not say its plate is that of the plate whose
            name its title, its sheet or its file has; one file alone with another name holds for all.

    Raises:
        ConfigError, DataError: as :func:`read_plate_map`, or it cannot be told which plate a map belongs to.

    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "P1.csv").write_text("compound\n,1,2\nA,DMSO,taxol\nB,DMSO,\n\ndose\n,1,2\nA,,3\nB,,\n")
    >>> maps = read_plate_maps(folder, plates=["P1", "P2"])
    >>> maps.table[["plate", "well", "treatment", "label", "control", "dose"]].values.tolist()[1:3]
    [['P1', 'A02', 'taxol 3', 'taxol', '', 3.0], ['P1', 'B01', 'DMSO', 'DMSO', 'negative', nan]]
    """
    _check_settings(columns, control)
    file = read_map_files(
        path, columns=dict(columns or {}), barcodes=barcodes, compounds=compounds, plates=list(plates)
    )
    table, taken, told = _interpret(file, dict(columns or {}), control)
    notes = list(file.notes)
    if "well" not in taken:
        raise DataError(
            f"'{file.path}' has no column of wells, as which {_list(USUAL['well'][:3])} would be taken; it has: "
            f"{', '.join(file.columns)}",
            "columns",
        )
    empty = (table["treatment"] == "") & (table["control"] == "")
    _check_wells(table)
    if "experiment" not in taken:
        table = table.drop(columns="experiment")
    further = _further(file, taken, list(map(str, table)))
    table = table.join(further)
    place = [column for column in PLACE if column in table]
    if empty.any():
        shown = table.loc[empty, place].drop_duplicates()
        notes.append(
            f"{_count(len(shown), 'well')} without a treatment: taken for empty wells, without a label; if they are "
            "negative controls, list the empty text among these"
        )
    table, mixed = _one_row_a_well(table, place)
    if mixed:
        notes.append(f"left out, as rows of the same well differ in it: {', '.join(mixed)}")
    first = [*place, "treatment", "label", "control"]
    return PlateMaps(table[first + [column for column in table if column not in first]], told, notes, file.sizes)


def _check_settings(columns: Any, control: Any) -> None:
    for name, value in (("columns", columns), ("control", control)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}: it must be a mapping, such as {_LIKE[name]}", name)


def _interpret(
    file: MapTable, columns: dict[str, Any], control: Mapping[str, Any] | None
) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, str]]:
    """The canonical columns of a map, a row for each of its rows; what was taken for them; how to say it."""
    frame = file.frame
    if frame.empty:
        raise DataError(f"plate map '{file.path}' has no rows; name a table with one for every well")
    if file.plate is not None:
        columns["plate"] = file.plate
    taken = _find_columns(file, columns)
    told: dict[str, str] = {}
    table = pd.DataFrame(index=frame.index)
    for column in ("experiment", "plate", "label"):
        named = taken.get(column)
        needed = column in ("experiment", "plate")
        table[column] = names(frame[named[0]], named[0], place=file.place, needed=needed) if named else ""
    table["well"] = _wells(frame, taken.get("well"), file)
    parts = [names(frame[one], one, place=file.place) for one in taken["treatment"]]
    table["control"], said = _find_controls(frame, parts[0], taken, control, file)
    nameless = (parts[0] == "") & (table["control"] != "").to_numpy()
    if nameless.any():
        parts[0] = np.where(nameless, _names_of_controls(file, taken["treatment"][0], table["control"]), parts[0])
        called = list(dict.fromkeys(parts[0][nameless]))
        said += f"; without a value in {_said(taken['treatment'][:1])} called {_quote(called)}"
    table["treatment"] = _together(parts)
    told |= {column: _said(taken[column]) for column in ("experiment", "plate", "well", "treatment") if column in taken}
    told |= {"plate": file.plate_said} if file.plate is not None else {}
    told["label"] = _said(taken["label"] if "label" in taken else taken["treatment"][:1])
    told["control"] = said
    table["label"] = np.where(table["label"] != "", table["label"], parts[0])  # doses of one compound are much alike
    if not ((table["treatment"] != "") | (table["control"] != "")).any():
        raise DataError(
            f"no row of '{file.path}' has a treatment, in column {_said(taken['treatment'])}: name it", "columns"
        )
    return table, taken, told


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The names that the parts of each row make up; empty where the first part is."""
    codes, distinct = factorize(parts[0])
    for part in parts[1:]:
        own, others = factorize(part)
        pairs, codes = np.unique(codes * len(others) + own, return_inverse=True)
        both = ((distinct[pair // len(others)], others[pair % len(others)]) for pair in pairs.tolist())
        distinct = [" ".join(filter(None, pair)) if pair[0] else "" for pair in both]
    return np.array([*distinct, None], dtype=object)[codes]


def _names_of_controls(file: MapTable, column: str, kinds: "pd.Series[str]") -> np.ndarray:
    """What controls without a treatment are called: by another column of treatments, or their solvent."""
    result = np.full(len(kinds), "", dtype=object)
    short = {short_name(one): one for one in file.columns}
    for other in (*USUAL["treatment"], *SOLVENTS):
        if other in short and short[other] != column:
            said = names(file.frame[short[other]], short[other], place=file.place)
            result = np.where(result == "", said, result)
    return np.where(result == "", kinds + " control", result)


def _further(file: MapTable, taken: Mapping[str, Sequence[str]], canonical: Collection[str]) -> pd.DataFrame:
    """The columns of a map beside the canonical ones, as numbers where they are."""
    gone = {*taken.get("plate", ()), *taken.get("well", ())}
    own = {one: re.sub(r"^(Image_)?Metadata_", "", one) for one in file.columns if one not in gone}
    own = {one: name for one, name in own.items() if name not in canonical}
    frame = file.frame[list(own)].rename(columns=own)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = as_numbers(frame[column])
    return frame


def _one_row_a_well(table: pd.DataFrame, place: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each well, and the columns that are left out because their values differ within a well."""
    again = table.duplicated(place)
    if not again.any():
        return table, []
    well = table.groupby(place, sort=False).ngroup().to_numpy()
    first = np.flatnonzero(~again.to_numpy())[well]
    mixed = []
    for column in table.columns.difference([*place, "treatment", "label", "control"], sort=False):
        codes = pd.factorize(table[column])[0]
        if (codes != codes[first]).any():
            mixed.append(str(column))
    return table.loc[~again].drop(columns=mixed).reset_index(drop=True), mixed


def _find_columns(file: MapTable, given: dict[str, Any]) -> dict[str, list[str]]:
    """Canonical column → columns of the table, for those that there are."""
    there = file.columns
    found: dict[str, list[str]] = {}
    for column in given:
        if column not in SETTABLE:
            raise ConfigError(f"'{column}' is not a column of a plate map; {did_you_mean(column, SETTABLE)}", "columns")
    for column in SETTABLE:
        value = given.get(column)
        if value is None:
            usual = usual_column(there, column)
            if usual is not None:
                found[column] = [usual]
        elif value is not False and value != "":
            found[column] = find(value, there, f"column for '{column}'", advice="columns")
    if "well" not in found and "well" not in given and (apart := row_and_column(there)):
        found["well"] = list(apart)
    if "treatment" not in found:
        drawn = "" if "well" in found else "; if it is a drawn plate, it needs its row letters and column numbers"
        raise DataError(
            f"'{file.path}' has no column of treatments, as which {_list(USUAL['treatment'][:5])} would be taken; it "
            f"has: {', '.join(there)}" + drawn,
            "columns",
        )
    if "treatment" not in given and (dose := usual_column(there, "dose")):
        found["treatment"] = [*found["treatment"], dose]
    return found


def _wells(frame: pd.DataFrame, named: Sequence[str] | None, file: MapTable) -> np.ndarray:
    """The wells of all rows in normal form; empty where the table has none."""
    if named is None:
        return np.full(len(frame), "", dtype=object)
    if len(named) == 2:
        return wells_at(frame[named[0]], frame[named[1]], place=file.place)
    if len(named) > 2:
        raise ConfigError(
            f"'well' is {list(named)}: name one column, or that of its row and that of its column", "columns"
        )
    return wells(frame[named[0]], named[0], place=file.place, needed=True)


def _find_controls(
    frame: pd.DataFrame,
    treatments: np.ndarray,
    taken: Mapping[str, Sequence[str]],
    control: Mapping[str, Any] | None,
    file: MapTable,
) -> tuple[np.ndarray, str]:
    """``negative``, ``positive`` or empty for every row, and where that is said."""
    if control is not None:
        unknown = [key for key in control if key not in ("column", "negative", "positive")]
        if unknown or not control.keys() & {"negative", "positive"}:
            raise ConfigError(
                f"controls are described by {', '.join(map(str, control)) or 'nothing'}: 'column', 'negative' and "
                "'positive' are known, and one of the last two is needed",
                "control",
            )
        named = find(
            control.get("column", taken["treatment"][0]), frame.columns, "column of the controls", advice="control"
        )[0]
        text = frame.assign(**{named: names(frame[named], named, place=file.place)})
        lists = {kind: control.get(kind) for kind in ("negative", "positive") if control.get(kind)}
        kinds = np.asarray(control_kinds(text, {"column": named} | lists, taken.get("well", ())))
        return kinds, f"'{named}': " + ", ".join(f"{kind} {_quote(value)}" for kind, value in lists.items())
    if "control" in taken:
        named = taken["control"][0]
        said = pd.Series(names(frame[named], named, place=file.place)).str.lower().str.replace(" ", "_")
        strange = [value for value in said.unique() if value not in KINDS]
        if strange:
            row = int(np.argmax(said == strange[0]))
            raise DataError(
                f"{file.place(row)} says '{strange[0]}' in '{named}', the column of controls: it may say "
                f"{', '.join(list(KINDS)[:2])}, positive, … or nothing",
                "control",
            )
        return said.map(KINDS).to_numpy(), f"'{named}'"
    codes, distinct = factorize(treatments)
    negative = np.isin([one.lower() for one in distinct], NEGATIVES)[codes]
    seen = list(dict.fromkeys(treatments[negative]))
    return np.where(negative, "negative", "").astype(object), (
        f"told by names of treatments, negative {_quote(seen)}" if seen else "unknown: no well is one"
    )


def _check_wells(table: pd.DataFrame) -> None:
    """Refuse wells that hold two treatments, or of which rows say two labels or two kinds of control."""
    if not (table["well"] != "").all():
        return
    place = ["experiment", "plate", "well"]
    for column, what, remedy in _ONCE:
        distinct = table[[*place, column]].drop_duplicates()
        twice = distinct[distinct.duplicated(place, keep=False)]
        if len(twice):
            first = twice[(twice[place] == twice.iloc[0][place]).all(axis=1)]
            plate = "/".join(filter(None, first.iloc[0][place[:2]]))
            where = f" of plate '{plate}'" if plate else ""
            raise DataError(
                f"well {first.iloc[0]['well']}{where} has two {what}, '{first[column].iloc[0]}' and "
                f"'{first[column].iloc[1]}': {remedy}",
                "columns",
            )


def _said(named: Sequence[str]) -> str:
    return " and ".join(f"'{one}'" for one in named)


def _list(values: Sequence[str]) -> str:
    return ", ".join(values[:-1]) + f" or {values[-1]}"


def _quote(values: Any) -> str:
    listed = [values] if isinstance(values, str) else list(values)
    return ", ".join(f"'{value}'" for value in listed)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
