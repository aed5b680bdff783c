"""Tables that say more of the rows of profiles, joined by the columns that both have.

A table may have a row a well (or an image: what is the same in all rows of a well is taken), a row a plate (a table of
barcodes), a plate map for all plates, or a row a compound, at each concentration or at any.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from biomass.datasets.map_files import MAPS, short_name
from biomass.errors import DataError
from biomass.identifiers import is_missing, match, wells, wells_at
from biomass.judgement.clean import listing
from biomass.judgement.roles import (
    DOSE,
    GENE,
    REAGENT,
    SYNONYMS,
    Given,
    codes_of,
    doses,
    find_columns,
    like,
    listed,
    text,
)
from biomass.judgement.table import COMPOUND, EXPERIMENT, PLATE, TREATMENT, WELL

_SUBSTANCES = (TREATMENT, COMPOUND, REAGENT, GENE)
_NAMES = {one for role in _SUBSTANCES for one in SYNONYMS[role]}
_Keys: TypeAlias = tuple[pd.DataFrame, pd.DataFrame]


def join_tables(
    about: pd.DataFrame, tables: Sequence[tuple[str, pd.DataFrame]], roles: Given | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Add what tables say of the rows, in whatever order they can be joined.

    Args:
        about: N rows, what is known of them.
        tables: what to call each in messages, and what it says.
        roles: what the user says of columns.

    Returns:
        The N rows with the columns of the tables that were not there, empty where these say nothing; and what was
        done, a sentence each.

    Raises:
        DataError: a table has no column in common with the rows and the other tables, or none of its rows is theirs.

    >>> rows = pd.DataFrame({"Metadata_Plate": ["P1", "P1"], "Metadata_Well": ["A01", "A02"]})
    >>> drugs = pd.DataFrame({"Plate": ["P1", "P1", "P1"], "well": ["a1", "a1", "b7"], "drug": ["x", "x", "y"]})
    >>> joined, notes = join_tables(rows, [("drugs", drugs)])
    >>> joined["drug"].tolist(), notes[0]
    (['x', ''], "joined from drugs by plate and well: 'drug'")
    >>> notes[1].partition("; ")[0]
    '1 of 2 rows of the profiles has no partner in drugs, the first plate P1, well A02'
    """
    notes: list[str] = []
    left = [(name, table.rename(columns=str).reset_index(drop=True)) for name, table in tables]
    if empty := [name for name, table in left if table.empty]:
        raise DataError(f"{empty[0]} has no rows: leave it out, or name the right table")
    while left:
        every = [_keys(about, table, roles) for _, table in left]
        i = min(range(len(left)), key=lambda i: _waits(every[i], left[i][1]))
        keys, (name, table) = every[i], left.pop(i)
        if keys is None:
            raise DataError(
                f"{name} has no column by which it could be joined, such as plate and well, or compound: it has "
                f"{listing(list(map(str, table)))}, and the profiles {listing(list(map(str, about)))}"
            )
        about, said = _join(about, table, name, *keys)
        notes += said
    return about, notes


def _waits(keys: _Keys | None, table: pd.DataFrame) -> int:
    """How late a table is joined: that of maps after the one that says where they lie, and last what has no keys."""
    if keys is None:
        return 2
    return int(bool(_map_column(table)) and "map" not in keys[0] and PLATE not in keys[0])


def _join(
    about: pd.DataFrame, table: pd.DataFrame, name: str, left: pd.DataFrame, right: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    """Join one table by keys that are called alike."""
    on = list(map(str, left))
    number = right.groupby(on, sort=False).ngroup().to_numpy(np.int64)
    first = np.unique(number, return_index=True)[1]
    same, mixed = _constant(table, number, first)
    at = match(
        left, right.iloc[first], on, left_name="rows of the profiles", right_name=f"rows of {name}", left_over="ignore"
    )
    nameless = (left == "").all(axis=1).to_numpy() & (at >= 0)
    if WELL in on or PLATE in on:
        at[nameless] = -1
    if (at < 0).all():
        raise DataError(
            f"no row of the profiles has a partner in {name}, joined by {_and(on)}: the profiles say "
            f"{_example(left)}, and it says {_example(right)}; correct the names, or name another table"
        )
    joined, filled = about.copy(), []
    own = {short_name(str(one)): str(one) for one in about}
    for column in same:
        found = np.where(at >= 0, table[column].to_numpy(object)[first][at], "")
        there = own.get(short_name(column))
        if there is None or is_missing(about[there]).all():
            joined[there or column] = found
            filled.append(there or column)
    notes = [f"joined from {name} by {_and(on)}: {listing(filled) if filled else 'nothing that is new'}"]
    if mixed:
        notes.append(f"not joined from {name}, as rows of one {_and(on)} differ in it: {listing(mixed)}")
    if many := int((nameless & (at >= 0)).sum()):
        notes.append(f"{many} rows without {_and(on)} are what {name} says of its row without a name")
    if lone := int((at < 0).sum()):
        row, spare = int(np.argmax(at < 0)), len(first) - len(set(at[at >= 0]))
        called = ", ".join(f"{key} {left[key].iloc[row] or '(empty)'}" for key in on)
        more = f"; {spare} of {len(first)} of {name} {_has(spare)} none in the profiles" if spare else ""
        notes.append(
            f"{lone} of {len(at)} rows of the profiles {_has(lone)} no partner in {name}, the first {called}{more}"
        )
    return joined, notes


def _keys(about: pd.DataFrame, table: pd.DataFrame, roles: Given | None) -> _Keys | None:
    """The columns to compare, called alike in both, in normal form; None where there are none."""
    there = set(map(str, about))
    usable = {role: value for role, value in (roles or {}).items() if all(like(one, there) for one in listed(value))}
    own, other = find_columns(about, usable).of, find_columns(table).of
    both = {role for role in own if role in other}
    pairs: dict[str, tuple[list[str], list[str]]] = {}
    maps = _map_column(about), _map_column(table)
    if maps[0] and maps[1] and (WELL in both or WELL not in other):
        pairs["map"] = [maps[0]], [maps[1]]
    elif PLATE in both and (WELL in both or not any(role in other for role in _SUBSTANCES)):
        if EXPERIMENT in both and _ambiguous(table[other[EXPERIMENT][0]], table[other[PLATE][0]]):
            pairs[EXPERIMENT] = own[EXPERIMENT], other[EXPERIMENT]
        pairs[PLATE] = own[PLATE], other[PLATE]
    if WELL in both:
        pairs[WELL] = own[WELL], other[WELL]
    if not pairs:
        shared = {short_name(str(one)): str(one) for one in about}
        usual = [c for c in map(str, table) if short_name(c) in shared and short_name(c) in _NAMES]
        if usual:
            pairs[short_name(usual[0])] = [shared[short_name(usual[0])]], [usual[0]]
        elif role := next((one for one in _SUBSTANCES if one in both), ""):
            pairs[role] = own[role], other[role]
        else:
            return None
        [(_, its)] = pairs.values()
        if DOSE in both and table.duplicated(its).any():
            pairs[DOSE] = own[DOSE], other[DOSE]
    forms = [
        pd.DataFrame({key: _form(one, pair[i], key) for key, pair in pairs.items()})
        for i, one in enumerate((about, table))
    ]
    return forms[0], forms[1]


def _ambiguous(experiments: "pd.Series[Any]", plates: "pd.Series[Any]") -> bool:
    """Whether plates of two experiments are called alike."""
    pairs = pd.DataFrame({"experiment": experiments, "plate": plates}).drop_duplicates()
    return bool(pairs["plate"].duplicated().any())


def _map_column(table: pd.DataFrame) -> str:
    return next((c for c in map(str, table) if short_name(c) in MAPS), "")


def _form(table: pd.DataFrame, columns: Sequence[str], key: str) -> np.ndarray:
    if key == WELL:
        parts: list[Any] = [table[c] for c in columns]
        return wells_at(*parts) if len(parts) == 2 else wells(parts[0], columns[0])
    return doses(table[columns[0]]) if key == DOSE else text(table, columns, "/")


def _constant(table: pd.DataFrame, number: np.ndarray, first: np.ndarray) -> tuple[list[str], list[str]]:
    """The columns that have one value a group, and those that have several."""
    same: list[str] = []
    mixed: list[str] = []
    for column in table:
        codes = codes_of(table[column])
        (same if (codes == codes[first][number]).all() else mixed).append(str(column))
    return same, mixed


def _and(keys: Sequence[str]) -> str:
    return " and ".join(keys)


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _example(keys: pd.DataFrame) -> str:
    return ", ".join(f"{key} '{values.iloc[0]}'" for key, values in keys.items())
