"""Tables that say more of the rows of profiles, joined by the columns that both have.

A table may have a row a well (or an image: what is the same in all rows of a well is taken), a row a plate (a table of
barcodes), a plate map for all plates, or a row a compound, at each concentration or at any.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from biomass.datasets.map_files import MAPS, short_name
from biomass.errors import DataError
from biomass.identifiers import is_missing, match, names, wells, wells_at
from biomass.judgement.clean import listing
from biomass.judgement.roles import DOSE, GENE, REAGENT, SYNONYMS, doses, find_columns
from biomass.judgement.table import COMPOUND, EXPERIMENT, PLATE, TREATMENT, WELL

_SUBSTANCES = (TREATMENT, COMPOUND, REAGENT, GENE)


def join_table(about: pd.DataFrame, table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Add what a table says of the rows.

    Args:
        about: N rows, what is known of them.
        table: what is to be added.
        name: what to call it in messages.

    Returns:
        The N rows with the columns of the table that were not there, empty where it says nothing; and what was done.

    Raises:
        DataError: both have no column in common, or no row has a partner.

    >>> rows = pd.DataFrame({"Metadata_Plate": ["P1", "P1"], "Metadata_Well": ["A01", "A02"]})
    >>> drugs = pd.DataFrame({"Plate": ["P1", "P1", "P1"], "well": ["a1", "a1", "b7"], "drug": ["x", "x", "y"]})
    >>> joined, notes = join_table(rows, drugs, "drugs")
    >>> joined["drug"].tolist(), notes[0]
    (['x', ''], "joined from drugs by plate and well: 'drug'")
    >>> notes[1].partition("; ")[0]
    '1 of 2 rows of the profiles has no partner in drugs, the first plate P1, well A02'
    """
    if table.empty:
        raise DataError(f"{name} has no rows: leave it out, or name the right table")
    table = table.rename(columns=str).reset_index(drop=True)
    left, right = _keys(about, table, name)
    on = list(map(str, left))
    number = right.groupby(on, sort=False).ngroup().to_numpy(np.int64)
    first = np.unique(number, return_index=True)[1]
    new, mixed = _constant(table, number, first, about)
    at = match(
        left, right.iloc[first], on, left_name="rows of the profiles", right_name=f"rows of {name}", left_over="ignore"
    )
    empty = (left == "").all(axis=1).to_numpy()
    at = np.where(empty, -1, at)
    if (at < 0).all():
        raise DataError(
            f"no row of the profiles has a partner in {name}, joined by {_and(on)}: the profiles say "
            f"{_example(left)}, and it says {_example(right)}; correct the names, or name another table"
        )
    joined, filled = about.copy(), []
    for column in new:
        values = table[column].to_numpy(object)[first]
        found = np.where(at >= 0, values[at], "")
        own = next((one for one in about if short_name(str(one)) == short_name(column)), None)
        if own is None:
            joined[column] = found
            filled.append(column)
        elif is_missing(about[own]).all():
            joined[own] = found
            filled.append(str(own))
    notes = [f"joined from {name} by {_and(on)}: {listing(filled) if filled else 'nothing that is new'}"]
    if mixed:
        notes.append(f"not joined from {name}, as its rows differ in it for one {_and(on)}: {listing(mixed)}")
    lone, spare = int((at < 0).sum()), len(first) - len(set(at[at >= 0]))
    if lone:
        row = int(np.argmax(at < 0))
        called = ", ".join(f"{key} {left[key].iloc[row] or '(empty)'}" for key in on)
        more = f"; {spare} of {len(first)} of {name} {_has(spare)} none in the profiles" if spare else ""
        notes.append(
            f"{lone} of {len(at)} rows of the profiles {_has(lone)} no partner in {name}, the first {called}{more}"
        )
    return joined, notes


def _keys(about: pd.DataFrame, table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The columns to compare, called alike in both, in normal form."""
    own, other = find_columns(about).of, find_columns(table).of
    roles: list[str] = []
    maps = [_map_column(about), _map_column(table)]
    by_map = maps[0] is not None and maps[1] is not None
    if WELL in own and WELL in other:
        roles = [WELL] if by_map else [*([PLATE] if PLATE in own and PLATE in other else []), WELL]
    elif by_map:
        roles = []
    elif PLATE in own and PLATE in other and not any(one in other for one in _SUBSTANCES):
        roles = [PLATE]
    if PLATE in roles and EXPERIMENT in own and EXPERIMENT in other:
        roles = [EXPERIMENT, *roles]
    left, right = pd.DataFrame(index=about.index), pd.DataFrame(index=table.index)
    if by_map and (not roles or roles == [WELL]):
        left["map"], right["map"] = names(about[maps[0]], str(maps[0])), names(table[maps[1]], str(maps[1]))
    for role in roles:
        left[role], right[role] = _form(about, own[role], role), _form(table, other[role], role)
    if len(left.columns):
        return left, right
    shared = {short_name(str(one)): str(one) for one in about}
    usual = [c for c in map(str, table) if short_name(c) in shared and _is_substance(c)]
    if usual:
        pairs = {short_name(usual[0]): ([shared[short_name(usual[0])]], [usual[0]])}
    elif role := next((one for one in _SUBSTANCES if one in own and one in other), ""):
        pairs = {role: (own[role], other[role])}
    else:
        shown = f"it has {listing(list(map(str, table)))}, and the profiles {listing(list(map(str, about)))}"
        raise DataError(
            f"{name} has no column by which it could be joined, such as plate and well or compound: {shown}"
        )
    if DOSE in own and DOSE in other:
        [(_, columns)] = pairs.values()
        if table.duplicated(columns).any():
            pairs[DOSE] = (own[DOSE], other[DOSE])
    for key, (mine, its) in pairs.items():
        left[key], right[key] = _form(about, mine, key), _form(table, its, key)
    return left, right


def _is_substance(column: str) -> bool:
    return any(short_name(column) in SYNONYMS[role] for role in _SUBSTANCES)


def _map_column(table: pd.DataFrame) -> str | None:
    return next((c for c in map(str, table) if short_name(c) in MAPS), None)


def _form(table: pd.DataFrame, columns: Sequence[str], role: str) -> np.ndarray:
    if role == WELL:
        parts: list[Any] = [table[c] for c in columns]
        return wells_at(*parts) if len(parts) == 2 else wells(parts[0], columns[0])
    return doses(table[columns[0]]) if role == DOSE else names(table[columns[0]], columns[0])


def _constant(
    table: pd.DataFrame, number: np.ndarray, first: np.ndarray, about: pd.DataFrame
) -> tuple[list[str], list[str]]:
    """The columns that have one value a group, and those that have several."""
    same: list[str] = []
    mixed: list[str] = []
    for column in table:
        codes = pd.factorize(table[column])[0]
        (same if (codes == codes[first][number]).all() else mixed).append(str(column))
    return same, mixed


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _example(keys: pd.DataFrame) -> str:
    return ", ".join(f"{key} '{values.iloc[0]}'" for key, values in keys.items())
