"""Any table of profiles, read and understood: from files, or from a table in memory, to :class:`.table.Profiles`.

What is taken for what, what is left out, filled or averaged is in the notes of the result: nothing is guessed silently.
:mod:`.raw` reads files, :mod:`.joined` adds tables that say more, :mod:`.roles` finds columns, :mod:`.described` brings
them into normal form, :mod:`.clean` deals with missing values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biomass.datasets.map_files import find_matrices, read_map_files
from biomass.errors import ConfigError
from biomass.judgement.clean import drop_constant, fill_missing, first_seen, mean_of
from biomass.judgement.described import Controls, Described, describe
from biomass.judgement.joined import join_tables
from biomass.judgement.raw import Raw, raw_frame, read_raw
from biomass.judgement.roles import Given, find_columns, like, listed, text
from biomass.judgement.table import CONTROL, COUNT, PLATE, TREATMENT, WELL, Profiles
from biomass.table_files import read_cells, read_table

_BEGINNING = 200  # rows of a text in which a drawn plate begins, if it holds one


def read_profiles(
    path: str | Path,
    metadata: Sequence[str | Path] = (),
    roles: Given | None = None,
    controls: Controls | None = None,
) -> Profiles:
    """Read profiles.

    Args:
        path: a table as CSV, other separated text, Excel or Parquet; AnnData; the folder of a run of ``biomass
            profile``, or of DeepProfiler's ``.npz``.
        metadata: tables that say more of the rows, joined one after the other by the columns that both have.
        roles: role → its column or columns, where names do not tell (:data:`biomass.judgement.roles.SYNONYMS`).
        controls: treatments or compounds that are negative controls, or ``{negative: […], positive: […]}``, where no
            column says so; an empty text stands for wells without a name.

    Raises:
        ConfigError: a role, a column, a control is not there.
        DataError: a file cannot be read, has no features or rows, or cannot be joined.

    >>> file = getfixture("tmp_path") / "wells.csv"
    >>> _ = file.write_text("Plate,Well,drug,a,b\\nP1,a1,DMSO,1,5\\nP1,b1,taxol,2,6\\nP1,b2,taxol,4,4\\n")
    >>> profiles = read_profiles(file)
    >>> profiles.features.shape, profiles.wells["treatment"].tolist(), profiles.negative.tolist()
    ((3, 2), ['DMSO', 'taxol', 'taxol'], [True, False, False])
    >>> [f"{role}: {column}" for role, column in profiles.taken.items()]
    ['plate: Plate', 'well: Well', 'row: Well', 'column: Well', 'compound: drug', 'treatment: drug', 'control: drug']
    """
    _check(roles)
    raw = read_raw(Path(path), roles)
    tables = [(f"'{Path(one).name}'", _read_metadata(Path(one), raw, roles)) for one in metadata]
    return _understood(raw, tables, roles, controls)


def understand(
    table: pd.DataFrame,
    metadata: Sequence[pd.DataFrame] = (),
    roles: Given | None = None,
    controls: Controls | None = None,
) -> Profiles:
    """Understand profiles in memory, a table or AnnData; as :func:`read_profiles`.

    >>> table = pd.DataFrame({"Metadata_Plate": ["P1", "P1"], "Metadata_moa": ["x", "y"], "f": [1.0, 2.0]})
    >>> understand(table).wells.to_dict("list")
    {'plate': ['P1', 'P1'], 'mechanism': ['x', 'y']}
    """
    _check(roles)
    tables = [(f"table {i + 1} of the metadata", one) for i, one in enumerate(metadata)]
    return _understood(raw_frame(table, roles), tables, roles, controls)


def _check(roles: Any) -> None:
    if roles is not None and not isinstance(roles, Mapping):
        raise ConfigError(f"columns are {roles!r}: say for which role, such as {{plate: barcode}}", "columns")


def _read_metadata(path: Path, raw: Raw, roles: Given | None) -> pd.DataFrame:
    """A table that says more; or the maps in a folder, or drawn as plates, as one table."""
    if not path.is_dir() and not any(find_matrices(one.rows) for one in read_cells(path, "metadata", start=_BEGINNING)):
        return read_table(path, "metadata").frame()
    there = set(map(str, raw.about))
    usable = {role: value for role, value in (roles or {}).items() if all(like(one, there) for one in listed(value))}
    columns = find_columns(raw.about, usable).of.get(PLATE)
    plates = list(dict.fromkeys(filter(None, text(raw.about, columns, "/")))) if columns else None
    return read_map_files(path, columns={}, plates=plates).frame


def _understood(
    raw: Raw, tables: Sequence[tuple[str, pd.DataFrame]], roles: Given | None, controls: Controls | None
) -> Profiles:
    about, notes = raw.about, list(raw.notes)
    about, said = join_tables(about, tables, roles)
    notes += said
    known = describe(about, roles, controls)
    notes += known.notes
    plates = known.table[PLATE].to_numpy(object) if PLATE in known.table else np.full(len(about), "")
    features, names, stays, said = fill_missing(raw.features, raw.names, pd.factorize(plates)[0])
    notes += said
    wells, features, said = _one_row_a_well(known, stays, features)
    notes += said
    features, names, said = drop_constant(features, names)
    return Profiles(wells, features, tuple(names), known.taken, (*notes, *said))


def _one_row_a_well(
    known: Described, stays: np.ndarray, features: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Cells and fields averaged: a field is the mean of its cells, a well the mean of its fields."""
    table = known.table[stays].reset_index(drop=True)
    if WELL not in table:
        return table, features, ["no column of wells is known: each row is judged as it is"]
    if PLATE not in table and table[WELL].duplicated().any():
        return table, features, ["no column of plates is known: each row is judged as a well of its own"]
    nameless = (table[WELL] == "") | (table[PLATE] == "" if PLATE in table else False)
    alone = np.where(nameless, np.arange(len(table)).astype(str), "")  # rows without a well are no well together
    place = [*(table[role].to_numpy(object) for role in (PLATE, WELL) if role in table), alone]
    well = first_seen(*place)[0]
    number, first = first_seen(well.astype(str), *(table[role] for role in (TREATMENT, CONTROL) if role in table))
    notes = _odd_wells(nameless, well[first])
    if len(first) == len(table):
        return table, features, notes
    rows = len(table)
    counts = table[COUNT].to_numpy(np.float64) if COUNT in table else None
    site = np.full(rows, "") if known.site is None else known.site[stays]
    field, first_row = first_seen(number.astype(str), site)
    of_field, what = number[first_row], "fields"
    if len(first_row) < rows:
        what = "cells" if counts is None and (known.cells or known.site is not None) else "rows"
        if what == "cells":
            counts = np.bincount(field).astype(np.float64)
        elif counts is not None:  # of the same field again, whose cells are not counted twice
            counts = np.bincount(field, counts) / np.bincount(field)
        features = mean_of(features, field)
    if counts is not None:
        counts = np.bincount(of_field, counts)
    if len(first_row) > len(first):
        features = mean_of(features, of_field)
    through = ", and each field that of its cells" if what == "cells" and len(first_row) > len(first) else ""
    is_mean = "fields" if through else what
    notes.append(f"{rows} {what} are of {len(first)} wells: each well is the mean of its {is_mean}{through}")
    wells = table.iloc[first].reset_index(drop=True)
    if counts is not None:
        wells[COUNT] = counts
        known.taken.setdefault(COUNT, "number of rows")
    return wells, features, notes


def _odd_wells(nameless: "pd.Series[bool]", held: np.ndarray) -> list[str]:
    """What is strange about wells: rows without one, and those (``held`` more than once) with several treatments."""
    many, several = int(nameless.sum()), int((np.bincount(held) > 1).sum())
    notes = [f"{many} row{'s have' if many > 1 else ' has'} no well or no plate"] if many else []
    if several:
        verb = "s hold" if several > 1 else " holds"
        notes.append(f"{several} well{verb} several treatments, each of which is judged as a row")
    return notes
