"""What is known of the rows of a table of profiles, as roles in normal form: plates, wells, treatments, controls."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from biomass.datasets.plate_map import KINDS
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.identifiers import find, normal, well_places, wells, wells_at
from biomass.judgement.roles import DOSE, GENE, LABEL, OBJECT, REAGENT, SITE, Given, doses, find_columns, like, text
from biomass.judgement.table import (
    COLUMN,
    COMPOUND,
    CONTROL,
    COUNT,
    EXPERIMENT,
    MECHANISM,
    PLATE,
    ROW,
    SOURCE,
    TREATMENT,
    WELL,
)

Controls: TypeAlias = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Treatments or compounds that are negative controls, or ``{negative: […], positive: […]}``, also with ``column``, the
one that holds such values; an empty text is a well without a name."""

_KINDS: Mapping[str, str] = {
    **KINDS,
    **dict.fromkeys(("control", "ctl_vehicle", "ctl_untrt", "ctl_vector", "dmso", "true", "mock"), "negative"),
    **dict.fromkeys(("trt_poscon", "poscon_crispr"), "positive"),
    **dict.fromkeys(("trt_cp", "trt_sh", "trt_oe", "trt_xpr", "compound", "perturbation", "false", "0"), ""),
    "1": "negative",
}
"""What a column of controls may say beside what plate maps say."""

_NEGATIVE = re.compile(
    r"(dmso|vehicle|untreated|un-?transfected|mock|empty([ _-]?vector)?"
    r"|(neg|negative)[ _-]?(con(trol)?|ctrl|ctl)?s?|ntc"
    r"|non[ _-]?targeting|scrambled?|(control|ctrl)|no[ _-]?(treatment|compound|drug))"
    r"([ _-]*(control|guide|sirna|sgrna))?([ _-]*[\d.,]+ ?(%|[nuµm]m)?( ?\(?v/v\)?)?)?",
    re.IGNORECASE,
)
"""Names of treatments that are negative controls, where no column says what is: ``DMSO``, ``dmso 0.1 %``, ``NTC``."""

_BATCH = re.compile(r"((week|batch|exp(eriment)?|run)[ _-]?\d+)(?=[ _-])", re.IGNORECASE)
_SHOWN = 3


@dataclass
class Described:
    """What is known of N rows.

    Attributes:
        table: (N rows) of the roles that are known, see :data:`biomass.judgement.table.ROLES`.
        taken: role → its column or columns.
        notes: a sentence each.
        site: (N,) what tells the fields of a well apart; None where no column does.
        cells: whether rows are cells: a column numbers them.
    """

    table: pd.DataFrame
    taken: dict[str, str]
    notes: list[str]
    site: np.ndarray | None = None
    cells: bool = False


def describe(about: pd.DataFrame, roles: Given | None = None, controls: Controls | None = None) -> Described:
    """Say what is known of the rows of a table.

    Args:
        about: N rows of the columns that describe them.
        roles: role → its column or columns, where names do not tell or tell wrongly.
        controls: which treatments are controls, where no column says so.

    Raises:
        ConfigError: a role, a column or a control is not there.
        DataError: names cannot be brought into normal form.

    >>> rows = pd.DataFrame({"Plate": ["P1", "P1"], "Well": ["a1", "b2"], "drug": ["DMSO", "taxol"], "dose": [0, 0.3]})
    >>> known = describe(rows)
    >>> known.table[["well", "row", "treatment", "control"]].values.tolist()
    [['A01', 0, 'DMSO', 'negative'], ['B02', 1, 'taxol 0.3', '']]
    """
    columns = find_columns(about, roles)
    of = columns.of
    known = Described(pd.DataFrame(index=range(len(about))), {}, list(columns.notes))
    for role in (SOURCE, EXPERIMENT, PLATE):
        if role in of:
            _take(known, role, text(about, of[role], "/"), of[role])
    if PLATE not in known.table:
        known.notes.append("no column of plates is known")
    if WELL in of:
        _add_wells(known, about, of[WELL])
    if EXPERIMENT not in known.table and EXPERIMENT not in (roles or {}):
        _find_experiments(known, about)
    _make_unique(known)
    if MECHANISM in of:
        _take(known, MECHANISM, text(about, of[MECHANISM], " "), of[MECHANISM])
    _add_treatments(known, about, of)
    _add_controls(known, about, of, controls)
    if COUNT in of:
        numbers = pd.to_numeric(about[of[COUNT][0]], errors="coerce").to_numpy(np.float64)
        _take(known, COUNT, np.where(np.isfinite(numbers) & (numbers >= 0), numbers, np.nan), of[COUNT])
    known.site = text(about, of[SITE], "/") if SITE in of else None
    known.cells = OBJECT in of
    return known


def _take(known: Described, role: str, values: np.ndarray, columns: Sequence[str]) -> None:
    known.table[role] = values
    known.taken[role] = " + ".join(columns)


def _add_wells(known: Described, about: pd.DataFrame, columns: Sequence[str]) -> None:
    """The well, its row and its column."""
    if len(columns) > 2:
        raise ConfigError(
            f"role 'well' is {list(columns)}: name one column, or that of its row and its column", "columns"
        )
    at = wells_at(*(about[c] for c in columns)) if len(columns) == 2 else wells(about[columns[0]], columns[0])
    _take(known, WELL, at, columns)
    codes, distinct = pd.factorize(at)
    places, strange = [], []
    for one in distinct:
        try:
            row, column = well_places([one])
            places.append((int(row[0]) - 1, int(column[0]) - 1))
        except DataError:
            places.append((-1, -1))
            strange += [one] if one else []
    if strange:
        known.notes.append(f"{_count(len(strange), 'well')} with a name that is no place on a plate: {_some(strange)}")
    if any(row >= 0 for row, _ in places):
        both = np.array(places, np.int64)[codes]
        _take(known, ROW, both[:, 0], columns)
        _take(known, COLUMN, both[:, 1], columns)


def _find_experiments(known: Described, about: pd.DataFrame) -> None:
    """Experiments where no column names them: folders above those of plates, or how the names of plates begin."""
    if PLATE not in known.table:
        return
    plates, column = known.table[PLATE], known.taken[PLATE]
    for name in about:
        if not re.search(r"path|folder", str(name), re.IGNORECASE) or about[name].dtype != object:
            continue
        parts = about[name].map(lambda path: re.split(r"[\\/]+", str(path).rstrip("\\/"))[-2:])
        if all(len(one) == 2 and normal(one[1]) == plate for one, plate in zip(parts, plates, strict=True) if plate):
            found = np.array([normal(one[0]) if len(one) == 2 else "" for one in parts], dtype=object)
            _take(known, EXPERIMENT, found, [str(name)])
            known.notes.append(
                f"experiment: no column names it; taken for it is the folder above the plate's in '{name}'"
            )
            return
    begin = {one: start[1] if (start := _BATCH.match(one)) else "" for one in plates.unique() if one}
    if len(set(begin.values())) > 1 and all(begin.values()):
        _take(known, EXPERIMENT, plates.map(begin).fillna("").to_numpy(object), [column])
        known.notes.append(
            f"experiment: no column names it; taken for it is how the names in '{column}' begin, such as "
            f"'{next(iter(begin.values()))}'"
        )


def _make_unique(known: Described) -> None:
    """Experiments and plates called alike in two sources, or experiments, get the name of these before their own."""
    for inner, outers in ((EXPERIMENT, (SOURCE,)), (PLATE, (EXPERIMENT, SOURCE))):
        for outer in outers:
            if inner not in known.table or outer not in known.table:
                continue
            pairs = known.table[[outer, inner]].drop_duplicates()
            twice = pairs.loc[pairs.duplicated(inner) & (pairs[inner] != ""), inner]
            if len(twice):
                joined = known.table[outer].str.cat(known.table[inner], "/").where(known.table[inner] != "", "")
                _take(known, inner, joined.to_numpy(object), [known.taken[outer], known.taken[inner]])
                known.notes.append(
                    f"{inner} '{twice.iloc[0]}' is there in several {outer}s: {inner}s are called {outer}/{inner}"
                )


def _add_treatments(known: Described, about: pd.DataFrame, of: Mapping[str, list[str]]) -> None:
    """What replicates have in common, and what is given at any concentration."""
    substance = next((role for role in (COMPOUND, GENE) if role in of), None)
    if substance is not None:
        _take(known, COMPOUND, text(about, of[substance], " "), of[substance])
    if TREATMENT in of:
        _take(known, TREATMENT, text(about, of[TREATMENT], " "), of[TREATMENT])
    elif COMPOUND in of and DOSE in of:
        at = doses(about[of[DOSE][0]])
        pairs = zip(known.table[COMPOUND], at, strict=True)
        both = [f"{one} {dose}" if one and dose not in ("", "0") else one for one, dose in pairs]
        _take(known, TREATMENT, np.array(both, dtype=object), [*of[COMPOUND], of[DOSE][0]])
    elif role := next((one for one in (COMPOUND, REAGENT, GENE, LABEL) if one in of), None):
        _take(known, TREATMENT, text(about, of[role], " "), of[role])
        if role == COMPOUND:
            known.notes.append("no concentration is known: a treatment is a compound")
        elif role == LABEL:
            known.notes.append(f"no treatment or compound is known: replicates are what has the same '{of[LABEL][0]}'")
    if LABEL in of and not _is_told(known, about[of[LABEL][0]]):
        known.notes.append(f"column '{of[LABEL][0]}' is not used; if it is the mechanism or the treatment, say so")


def _is_told(known: Described, column: "pd.Series[Any]") -> bool:
    """Whether a role says what a column says."""
    codes = pd.factorize(column.astype(str))[0]
    others = [known.table[role] for role in (TREATMENT, COMPOUND, MECHANISM) if role in known.table]
    return any((pd.factorize(one)[0] == codes).all() for one in others)


def _add_controls(
    known: Described, about: pd.DataFrame, of: Mapping[str, list[str]], controls: Controls | None
) -> None:
    """Which wells are controls, by a column, by names of treatments, or as the user says."""
    kinds, said = np.full(len(about), "", dtype=object), ""
    if TREATMENT not in known.table:
        known.notes.append("no column of treatments, compounds or genes is known")
    if CONTROL in of:
        kinds, said = _by_column(known, about, of[CONTROL][0])
    named = [(role, known.table[role].to_numpy(object)) for role in (COMPOUND, TREATMENT) if role in known.table]
    if controls is not None:
        kinds, said = _as_listed(kinds, controls, named, about), "as given"
    elif not (kinds == "negative").any():
        for role, values in named:
            distinct = [one for one in pd.unique(values[kinds == ""]) if _NEGATIVE.fullmatch(one)]
            if distinct:
                kinds = np.where(np.isin(values, distinct) & (kinds == ""), "negative", kinds)
                column = known.taken[role]
                said = f"{said} + {column}" if (kinds == "positive").any() else column
                known.notes.append(f"negative controls: told by their names in '{column}': {_some(distinct)}")
                break
    if (kinds != "").any():
        _take(known, CONTROL, kinds, [said])
    if not (kinds == "negative").any():
        known.notes.append("no well is known as a negative control")
    for role, values in named[-1:]:
        if bare := int(((values == "") & (kinds == "")).sum()):
            known.notes.append(
                f"{_count(bare, 'row')} without a {role} ('{known.taken[role]}' is empty there): if these are "
                "controls, list the empty text among the controls"
            )
    for role, values in named:
        known.table[role] = np.where((values == "") & (kinds != ""), kinds + " control", values)


def _by_column(known: Described, about: pd.DataFrame, column: str) -> tuple[np.ndarray, str]:
    """What a column of controls says."""
    codes, distinct = pd.factorize(about[column].to_numpy(object))
    forms = [re.sub(r"[\s-]+", "_", normal(one).lower()) for one in distinct]
    strange = [normal(one) for one, form in zip(distinct, forms, strict=True) if form not in _KINDS]
    if strange:
        known.notes.append(
            f"'{column}' says {_some(strange)}, which is no kind of control that is known, and is taken for treated"
        )
    return np.array([*(_KINDS.get(one, "") for one in forms), ""], dtype=object)[codes], column


def _as_listed(
    kinds: np.ndarray, controls: Controls, named: Sequence[tuple[str, np.ndarray]], about: pd.DataFrame
) -> np.ndarray:
    """The kinds of wells with those that a user lists; what a column says of a kind that he lists does not count."""
    lists: dict[str, Any] = dict(controls) if isinstance(controls, Mapping) else {"negative": controls}
    if (column := lists.pop("column", None)) is not None:
        own = like(str(column), there := list(map(str, about)))
        if not own:
            raise ConfigError(f"controls: there is no column '{column}'; {did_you_mean(column, there)}", "control")
        named = [(own, text(about, [own], " "))]
    lists = {kind: value for kind, value in lists.items() if value is not None}
    if unknown := [one for one in lists if one not in ("negative", "positive")]:
        raise ConfigError(f"controls are negative or positive, not '{unknown[0]}'", "control")
    if not lists:
        raise ConfigError("controls are described, but none is listed as negative or positive", "control")
    if not named:
        raise ConfigError("controls are listed, but no column says what wells hold", "columns")
    kinds = np.where(np.isin(kinds, list(lists)), "", kinds).astype(object)
    for kind, value in lists.items():
        there = list(dict.fromkeys(one for _, column in named for one in pd.unique(column)))
        for one in find(value, there, f"{kind} control", advice="control"):
            column = next(column for _, column in named if (column == one).any())
            kinds[column == one] = kind
    return kinds


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(values: Sequence[str]) -> str:
    return ", ".join(f"'{one}'" for one in values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")
