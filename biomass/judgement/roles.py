"""Which column of a table of profiles is what: plate, well, treatment …, by the names that tools and labs use.

Capitals, blanks and ``Metadata_`` do not matter. Where a name is not enough, more is looked at: a column of wells holds
names of wells. What is taken is told, and so is what could have been taken as well. Whatever is wrong can be said.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from biomass.datasets.map_files import COLUMNS, MAPS, ROWS, USUAL, short_name
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.evaluation.tables import METADATA, left_out
from biomass.identifiers import names, well, wells_at
from biomass.judgement.table import (
    COMPOUND,
    CONTROL,
    COUNT,
    EXPERIMENT,
    MECHANISM,
    PLATE,
    SOURCE,
    TREATMENT,
    WELL,
)
from biomass.table_files import as_numbers

SITE, DOSE, REAGENT, GENE, LABEL, OBJECT = "site", "concentration", "reagent", "gene", "label", "object"

Given: TypeAlias = Mapping[str, str | Sequence[str] | None]
"""Role → the column, or the columns, that a user names for it; None: there is none."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    SOURCE: ("source", "lab", "laboratory", "partner", "data_source", "institute", "center", "centre"),
    EXPERIMENT: (*USUAL["experiment"], "batch_id", "batch_name", "plate_batch", "experiment_name", "run_id"),
    PLATE: (*USUAL["plate"][:-1], "assay_plate", "platename", "plate_no", "plate_number"),
    WELL: (*USUAL["well"], "assay_plate_well"),
    SITE: (
        *("site", "field", "field_id", "fieldid", "fov", "field_of_view", "site_id"),
        *("image_number", "imagenumber", "image_id", "image"),
    ),
    OBJECT: ("object_number", "objectnumber", "cell_id", "cell", "object_id", "nuclei_number_object_number"),
    TREATMENT: ("treatment", "perturbation", "treatment_id", "treatment_name", "condition"),
    COMPOUND: (
        *("compound", "compound_name", "pert_iname", "drug", "drug_name", "compound_id", "broad_sample"),
        *("jcp2022", "pert_id", "pert_name", "molecule", "substance", "inchikey"),
    ),
    DOSE: (*USUAL["dose"], "dose_value", "pert_dose", "dose_recode", "concentration_nm", "concentration_m"),
    REAGENT: ("sirna", "sirna_id", "sgrna", "guide", "sgrna_id", "guide_id", "shrna", "orf", "construct", "reagent"),
    GENE: ("gene", "gene_symbol", "gene_name", "gene_id", "symbol", "target_gene"),
    LABEL: ("label", "class", "pert"),
    MECHANISM: ("moa", "mechanism", "mechanism_of_action", "moa_list", "target", "targets", "target_list"),
    CONTROL: (*USUAL["control"], "is_control", "welltype"),
    COUNT: (
        *("count_cells", "image_count_cells", "cell_count", "cells_count", "cells", "n_cells", "num_cells"),
        *("number_of_cells", "count_nuclei", "image_count_nuclei", "nuclei_count", "object_count"),
        *("number_of_objects", "nuclei_number_of_objects", "cells_number_of_objects"),
    ),
}
"""What columns are called, in the order in which they are looked for, see :func:`.map_files.short_name`."""

SETTABLE = (SOURCE, EXPERIMENT, PLATE, WELL, SITE, TREATMENT, COMPOUND, DOSE, MECHANISM, CONTROL, COUNT)
"""The roles that a user may name columns for."""

_KNOWN = frozenset(
    (
        *(one for listed in SYNONYMS.values() for one in listed),
        *(*ROWS, *COLUMNS, *MAPS, "count_fields", "replicate", "rep", "solvent", "smiles", "pubchem_cid", "cid"),
        *("entrez_id", "ncbi_gene_id"),
    )
)
_PLACES = (SOURCE, EXPERIMENT, PLATE, WELL)  # a column that a user names for one of these is not another
_SHOWN = 5


@dataclass
class Columns:
    """Which columns of a table have which role.

    Attributes:
        of: role → its columns.
        notes: what else could have been taken, a sentence each.
    """

    of: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def describing(columns: Iterable[str], given: Given | None = None) -> set[str]:
    """Those columns that by their names describe a row, and are no features.

    >>> sorted(describing(["Metadata_x", "Plate ID", "Nuclei_Area", "drug", "ImageNumber"]))
    ['ImageNumber', 'Metadata_x', 'Plate ID', 'drug']
    """
    there = list(map(str, columns))
    named = {resolved for value in (given or {}).values() for one in listed(value) if (resolved := like(one, there))}
    usual = {one for one in there if one.startswith(METADATA) or short_name(one) in _KNOWN}
    return usual | named | set(left_out(pd.DataFrame(np.empty((0, len(there))), columns=there)))


def listed(value: str | Sequence[str] | None) -> list[str]:
    """The columns that a user names for a role."""
    if value is None or value is False or value == "":
        return []
    return list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]


def like(name: str, columns: Collection[str]) -> str:
    """The column that a name means: as it is written, or the only one that differs in capitals, blanks, ``Metadata_``.

    Empty where there is none.
    """
    if name in columns:
        return name
    same = [one for one in columns if short_name(one) == short_name(name)]
    return same[0] if len(same) == 1 else ""


def find_columns(about: pd.DataFrame, given: Given | None = None) -> Columns:
    """Find the columns of all roles.

    Args:
        about: what describes the rows.
        given: what the user says.

    Raises:
        ConfigError: a role or a column is not known.

    >>> found = find_columns(pd.DataFrame({"Metadata_Plate": ["P1"], "Well": ["a1"], "drug": ["taxol"], "Dose": [3]}))
    >>> found.of
    {'plate': ['Metadata_Plate'], 'well': ['Well'], 'compound': ['drug'], 'concentration': ['Dose']}
    """
    there = list(map(str, about.columns))
    found = Columns({})
    for role, value in (given or {}).items():
        if role not in SETTABLE:
            raise ConfigError(f"'{role}' is not a role of a column; {did_you_mean(role, SETTABLE)}", "columns")
        own = [(one, like(one, there)) for one in listed(value)]
        for one, column in own:
            if not column:
                raise ConfigError(
                    f"role '{role}': the table has no column '{one}'; {did_you_mean(one, there, _there(there))}",
                    "columns",
                )
        if own:
            found.of[role] = [column for _, column in own]
    short: dict[str, list[str]] = {}
    for column in there:
        short.setdefault(short_name(column), []).append(column)
    for role, synonyms in SYNONYMS.items():
        if given and role in given:
            continue
        taken = [
            c for other in _PLACES if given and role in _PLACES and other in given for c in found.of.get(other, ())
        ]
        usable = [c for one in synonyms for c in short.get(one, ()) if c not in taken and _may_be(role, about[c])]
        if not usable:
            continue
        found.of[role] = usable[:1]
        others = [one for one in usable[1:] if not _same(about[usable[0]], about[one])]
        if others and role in SETTABLE:
            found.notes.append(
                f"{role}: column '{usable[0]}' is taken; {_quoted(others)} could be it, too, and "
                f"{'say' if len(others) > 1 else 'says'} something else"
            )
    apart = [next((c for one in words for c in short.get(one, ())), None) for words in (ROWS, COLUMNS)]
    if WELL not in found.of and not (given and WELL in given) and apart[0] is not None and apart[1] is not None:
        try:
            wells_at(about[apart[0]], about[apart[1]])
            found.of[WELL] = [apart[0], apart[1]]
        except DataError as reason:
            found.notes.append(f"'{apart[0]}' and '{apart[1]}' are not taken for rows and columns of wells: {reason}")
    return found


def _may_be(role: str, column: "pd.Series[Any]") -> bool:
    """Whether the values of a column allow a role."""
    if role == COUNT:
        numbers = pd.to_numeric(column, errors="coerce")
        return bool(numbers.notna().mean() > 0.5 and (numbers.dropna() >= 0).all())
    distinct = list(dict.fromkeys(map(str, column.dropna())))
    if role == WELL:
        return any(re.fullmatch(r"[A-Z]{1,2}\d\d", well(one)) for one in distinct[:200])
    return any(map(str.strip, distinct))


def _same(one: "pd.Series[Any]", other: "pd.Series[Any]") -> bool:
    """Whether two columns tell the same rows apart."""
    return bool((codes_of(one) == codes_of(other)).all())


def codes_of(column: "pd.Series[Any]") -> np.ndarray:
    """A number (N,) for each distinct value, in the order in which they come; -1 where one is missing."""
    try:
        return pd.factorize(column)[0]
    except TypeError:  # lists or arrays
        return pd.factorize(column.astype(str))[0]


def text(about: pd.DataFrame, columns: Sequence[str], between: str) -> np.ndarray:
    """The names (N,) that columns give together, empty where the first of them says nothing."""
    parts = [names(about[c], c) for c in columns]
    if len(parts) == 1:
        return parts[0]
    rows = [between.join(filter(None, row)) if row[0] else "" for row in zip(*parts, strict=True)]
    return np.array(rows, dtype=object)


def doses(column: "pd.Series[Any]") -> np.ndarray:
    """Concentrations (N,) in one way of writing: six digits; a text that is no number stays.

    >>> doses(pd.Series(["3.000000", "0.30000001", "", "NA", "0"])).tolist()
    ['3', '0.3', '', '', '0']
    """
    numbers = as_numbers(column)
    if not pd.api.types.is_numeric_dtype(numbers.dtype):
        return names(numbers, str(column.name))
    codes, distinct = pd.factorize(numbers.to_numpy(np.float64, na_value=np.nan))
    return np.array([*(f"{one:.6g}" for one in distinct), ""], dtype=object)[codes]


def _there(columns: Sequence[str]) -> str:
    return f"it has {_quoted(columns)}" if columns else "it has none that describes a row"


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f"'{one}'" for one in columns[:_SHOWN]) + (", …" if len(columns) > _SHOWN else "")
