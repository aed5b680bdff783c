"""A plate map, or any table that says what is in which well: a manifest of images or cells, a platemap, metadata.

Nothing is read but the table, so that it may be of a screen that is still to be made. Columns are found by the names
that labs use, and whatever is taken is told.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.datasets.manifest import control_kinds
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.identifiers import find, names, wells, wells_at
from biomass.table_files import TableFile, read_table

USUAL: Mapping[str, tuple[str, ...]] = {
    "experiment": ("experiment", "batch", "week", "batch_number", "experiment_id", "run"),
    "plate": (
        "plate",
        "barcode",
        "plate_barcode",
        "assay_plate_barcode",
        "plate_id",
        "plate_name",
        "plateid",
        "plate_map_name",
    ),
    "well": ("well", "well_position", "well_name", "well_pos", "wellid"),
    "treatment": (
        "treatment",
        "perturbation",
        "sirna",
        "broad_sample",
        "compound",
        "compound_name",
        "compound_id",
        "pert_iname",
        "drug",
        "gene",
    ),
    "dose": ("concentration", "dose", "conc", "concentration_um", "dose_um", "mmoles_per_liter"),
    "label": ("label", "moa", "mechanism", "class"),
    "control": ("control", "control_type", "well_type", "pert_type"),
}
"""What columns are called, in the order in which they are looked for. ``Metadata_`` before a name, capitals and blanks
do not matter."""

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
        path: any table that :func:`biomass.table_files.read_table` reads, a row a well, an image or a cell.
        columns: what :data:`SETTABLE` are called in it, where the :data:`USUAL` names are not right. ``well`` may be
            two columns, ``[row, column]``; ``treatment`` several, which together name one. False leaves one out.
        control: which wells are controls, by the values of a column, as :func:`.load_manifest` takes it; an empty text
            stands for wells without a value. If left out, a column of controls says it, or the names of treatments
            do.
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
    for name, value in (("columns", columns), ("control", control)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}: it must be a mapping, such as {_LIKE[name]}", name)
    if copies is not None and copies < 1:
        raise ConfigError(f"copies={copies}: a map lies on at least one plate")
    file = read_table(path, "plate map")
    if not len(file):
        raise DataError(f"plate map '{file.path}' has no rows: it needs one for every well")
    taken = _find_columns(file, dict(columns or {}))
    frame = file.frame()
    told: dict[str, str] = {}
    notes: list[str] = []
    table = pd.DataFrame(index=frame.index)
    for column in ("experiment", "plate", "label"):
        named = taken.get(column)
        needed = column in ("experiment", "plate")
        table[column] = names(frame[named[0]], named[0], place=file.place, needed=needed) if named else ""
    table["well"] = _wells(frame, taken.get("well"), file)
    parts = [names(frame[one], one, place=file.place) for one in taken["treatment"]]
    table["treatment"] = [" ".join(filter(None, row)) if row[0] else "" for row in zip(*parts, strict=True)]
    table["control"], said = _find_controls(frame, parts[0], taken, control, file)
    told |= {column: _said(taken[column]) for column in ("experiment", "plate", "well", "treatment") if column in taken}
    told["label"] = _said(taken["label"] if "label" in taken else taken["treatment"][:1])
    told["control"] = said
    table["label"] = np.where(table["label"] != "", table["label"], parts[0])  # doses of one compound are much alike
    for column in by:
        if column not in table:
            own = find(column, file.columns, "column to group by", advice="columns")[0]
            table[column] = names(frame[own], own, place=file.place, needed=True)
    empty = (table["treatment"] == "") & (table["control"] == "")
    if empty.any():
        notes.append(
            f"{_count(empty.sum(), 'row')} without a treatment: left out, as empty wells; if they are negative "
            "controls, list the empty text among these"
        )
        table = table[~empty].reset_index(drop=True)
    if table.empty:
        raise DataError(
            f"no row of '{file.path}' has a treatment, in column {_said(taken['treatment'])}: name it", "columns"
        )
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


def _find_columns(file: TableFile, given: dict[str, Any]) -> dict[str, list[str]]:
    """Canonical column → columns of the table, for those that there are."""
    there = file.columns
    usual: dict[str, list[str]] = {}
    for name in there:
        short = re.sub(r"[\s-]+", "_", name.strip().lower())
        short = re.sub(r"_dapi$", "", re.sub(r"^(image_)?metadata_", "", short))
        usual.setdefault(short, []).append(name)
    found: dict[str, list[str]] = {}
    for column in given:
        if column not in SETTABLE:
            raise ConfigError(f"'{column}' is not a column of a plate map; {did_you_mean(column, SETTABLE)}", "columns")
    for column in SETTABLE:
        value = given.get(column)
        if value is None:
            like = next((usual[short] for short in USUAL[column] if short in usual), list[str]())
            if len(like) > 1:
                raise ConfigError(f"'{column}' may be column '{like[0]}' or '{like[1]}': say which", "columns")
            if like:
                found[column] = like
        elif value is not False and value != "":
            found[column] = find(value, there, f"column for '{column}'", advice="columns")
    if "well" not in found and "well" not in given and {"row", "column"} <= usual.keys():
        found["well"] = [usual["row"][0], usual["column"][0]]
    if "treatment" not in found:
        raise DataError(
            f"'{file.path}' has no column of treatments, as which {_list(USUAL['treatment'][:5])} would be taken; it "
            f"has: {', '.join(there)}",
            "columns",
        )
    if "treatment" not in given:
        found["treatment"] = found["treatment"] + next((usual[one] for one in USUAL["dose"] if one in usual), [])
    return found


def _wells(frame: pd.DataFrame, named: Sequence[str] | None, file: TableFile) -> np.ndarray:
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
    file: TableFile,
) -> tuple[np.ndarray, str]:
    """``negative``, ``positive`` or empty for every row, and where that is said."""
    if control is not None:
        if "column" not in control:
            raise ConfigError(
                f"controls are described by {', '.join(control) or 'nothing'}: 'column' is needed", "control"
            )
        named = find(control["column"], frame.columns, "column of the controls", advice="control")[0]
        text = frame.assign(**{named: names(frame[named], named, place=file.place)})
        lists = {kind: control.get(kind) for kind in ("negative", "positive") if control.get(kind)}
        kinds = control_kinds(text, {"column": named} | lists, taken.get("well", ()))
        return kinds, f"'{named}': " + ", ".join(f"{kind} {_quote(value)}" for kind, value in lists.items())
    if "control" in taken:
        named = taken["control"][0]
        said = pd.Series(names(frame[named], named, place=file.place)).str.lower().str.replace(" ", "_")
        unknown = [value for value in said.unique() if value not in KINDS]
        if unknown:
            row = int(np.argmax(said == unknown[0]))
            raise DataError(
                f"{file.place(row)} says '{unknown[0]}' in '{named}', the column of controls: it may say "
                f"{', '.join(list(KINDS)[:2])}, positive, … or nothing",
                "control",
            )
        return said.map(KINDS).to_numpy(), f"'{named}'"
    negative = np.isin([one.lower() for one in treatments], NEGATIVES)
    seen = list(dict.fromkeys(treatments[negative]))
    return np.where(negative, "negative", "").astype(object), (
        f"told by names of treatments, negative {_quote(seen)}" if seen else "unknown: no well is one"
    )


def _check_wells(table: pd.DataFrame) -> None:
    """Refuse wells that hold two treatments."""
    if not (table["well"] != "").all():
        return
    place = ["experiment", "plate", "well"]
    distinct = table[[*place, "treatment"]].drop_duplicates()
    twice = distinct[distinct.duplicated(place, keep=False)]
    if len(twice):
        first = twice[(twice[place] == twice.iloc[0][place]).all(axis=1)]
        where = "/".join(filter(None, first.iloc[0][place[:2]]))
        raise DataError(
            f"well {first.iloc[0]['well']} of plate '{where}' has two treatments, '{first['treatment'].iloc[0]}' and "
            f"'{first['treatment'].iloc[1]}': name the columns that tell plates apart, or what is given together as "
            "one treatment",
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
