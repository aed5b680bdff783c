"""Profile tables: their features, means over groups, normalization to a plate's controls, choice of features.

A profile table follows pycytominer: a row is a cell, an image, a well or a treatment; columns whose names start with
``Metadata_`` describe the row. The other columns are features, but for those that plainly are not: names, places and
files, which :func:`left_out` tells. They are left out, which the log says. The functions here check what they are
given, because a missing value that slips through a mean is found only in a figure.

Names of groups, compounds or batches are compared in the one normal form of :mod:`biomass.identifiers`, and missing
means what it means there.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.identifiers import names, normal, normal_column

METADATA = "Metadata_"
"""What the name of a column begins with that describes the row."""

Features: TypeAlias = pd.DataFrame | np.ndarray
"""A profile table, or the bare features (N, D)."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\WA-Z\d_]+|\d+")  # of "ImageID", "Position X [µm]", "centroid-0"
_THING = (
    "(table|image|object|cell|nucleus|well|plate|site|field|row|col(umn)?|group|set|frame|plane|track|batch|experiment"
    "|replicate|time_?point|class|label|compound|treatment|passage)"
)
_UNIT = "(_(um|µm|μm|mm|px|pixels?))?"

NOT_FEATURES = re.compile(
    rf"""
    (.*_)? metadata (_.*)?                                             # CellProfiler: Image_Metadata_Plate
    | (.*_)? {_THING} _? (id|no|nr|num|number|index|idx|name|label|row|col(umn)?)   # ImageNumber, well_id, WellRow
      (_\d+ | _adjacent | _expanded | _in_.*)?                         # Harmony: Object No in Nuclei
    | (.*_)? parent_ .*                                                # the object that an object lies in
    | (.*_)? track_objects_label (_\d+)?
    | (.*_)? (file_?name|path_?name|url|md_?5_?digest) _ .*
    | (.*_)? location_ .* _[xyz] (_.*)?                                # where, not what
    | (.*_)? (centroid|bbox|bounding_box|coords?) (_(weighted|local|scaled))* _([xyz]?_?\d|[xyz]) {_UNIT}
    | (.*_)? (centroid|cent(er|re)(_of_mass)?|pos(ition)?|location|coord(inate)?s?|(bbox|bounding_box)(_m(in|ax)
      (imum)?)?)
      _ ([xyz]|row|col(umn)?|m(in|ax)(_(row|col(umn)?|[xyz]))?) {_UNIT}
    | image_ (execution_?time|module_?error|group|frame|series|scaling|height|width) _ .*
    | {_THING} | well_position | (.*_)? (barcode|uuid) | (unique_)? id | time(stamp)? | date | split | fold | control
    | target | cell_type | (conc(entration)?|dose) (_[nuµμm]?_?m(ol)?)? | moa | centroid | coords? | bbox | bounding_box
    | [xyz] {_UNIT} | index | (unnamed|level)_\d+ | path | file(_?name)?
    """,
    re.VERBOSE,
)
"""Names of columns that are no measurement of what a row shows: they name it, or say where it is. To be compared with
the words of a name in small letters, ``image_id`` for ``ImageID``."""

_ROUNDING = 1e-12
"""A spread below this share of the values' size is the rounding of a constant feature, not a spread."""

LARGEST = 1e150
"""Size of a value up to which sums of squares can be held in double precision."""

_SHOWN = 5  # columns that a message lists

_said: set[tuple[str, ...]] = set()  # what the log has said already

log = logging.getLogger(__name__)


def feature_columns(profiles: pd.DataFrame) -> list[str]:
    """Names of the features of a profile table: neither ``Metadata_*`` nor :data:`NOT_FEATURES`.

    >>> feature_columns(pd.DataFrame(columns=["Metadata_plate", "ImageNumber", "Nuclei_AreaShape_Area"]))
    ['Nuclei_AreaShape_Area']
    """
    others = set(left_out(profiles))
    return [c for c in profiles.columns if not (str(c).startswith(METADATA) or c in others)]


def left_out(profiles: pd.DataFrame) -> list[str]:
    """Names of the columns outside ``Metadata_*`` that plainly are not features, see :data:`NOT_FEATURES`.

    >>> left_out(pd.DataFrame(columns=["Metadata_plate", "ImageNumber", "Nuclei_AreaShape_Area"]))
    ['ImageNumber']
    """
    words = {c: "_".join(_WORD.findall(str(c))).lower() for c in profiles.columns if not str(c).startswith(METADATA)}
    return [c for c, name in words.items() if NOT_FEATURES.fullmatch(name)]


def feature_matrix(features: Features, largest: float = np.inf) -> np.ndarray:
    """The features of a table or an array as a checked matrix.

    Args:
        features: a profile table, of which the :func:`feature_columns` are taken, or an array (N, D). What is
            :func:`left_out` of a table is said in the log, once.
        largest: the largest size of a value, for what sums up squares: :data:`LARGEST`.

    Returns:
        (N, D), float32 if all features are, float64 otherwise. May share its memory with ``features``.

    Raises:
        DataError: a feature is not numeric or a column is there twice, there are no rows or features, the array is not
            two-dimensional, or a value is missing, infinite or beyond ``largest`` (row and column are named).
    """
    labels: Sequence[Any]
    if isinstance(features, pd.DataFrame):
        labels = feature_columns(features)
        twice = features.columns[features.columns.duplicated()]
        if len(twice):
            raise DataError(f"column '{twice[0]}' is in the profiles more than once; rename or drop one of them")
        for label in labels:
            if not pd.api.types.is_any_real_numeric_dtype(features[label]):
                raise DataError(
                    f"column '{label}' is not numeric, so it is not a feature; call it '{METADATA}{label}' or drop it"
                )
        others = left_out(features)
        if others and not labels:
            raise DataError(
                f"the profiles have no features: {_list(others)} name the rows or say where they are; rename what is a "
                "feature"
            )
        if others and tuple(others) not in _said:
            _said.add(tuple(others))
            log.warning("%d columns are not taken as features: %s", len(others), ", ".join(map(str, others)))
        table = features[labels]
        single = all(dtype == np.float32 for dtype in table.dtypes)
        matrix = table.to_numpy(np.float32 if single else np.float64, na_value=np.nan)
        rows: Sequence[object] = cast("Sequence[object]", features.index)
    else:
        matrix = np.asarray(features)
        if matrix.ndim != 2:
            raise DataError(f"features have the shape {matrix.shape}; they must be two-dimensional, (rows, features)")
        if matrix.dtype.kind not in "fiub":
            raise DataError(f"features are of type {matrix.dtype}; they must be numbers")
        if matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float64)
        rows, labels = range(matrix.shape[0]), range(matrix.shape[1])
    if 0 in matrix.shape:
        raise DataError(f"features have {matrix.shape[0]} rows and {matrix.shape[1]} columns; one of each is needed")
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(
            f"row {rows[row]} has {matrix[row, column]} in feature '{labels[column]}'; "
            "drop the row or the feature, or find out why it could not be measured"
        )
    if matrix.dtype == np.float64 and max(matrix.max(), -matrix.min()) > largest:
        row, column = np.argwhere(np.abs(matrix) > largest)[0]
        raise DataError(
            f"row {rows[row]} has {matrix[row, column]} in feature '{labels[column]}', whose square no number can "
            "hold; drop the row or the feature, or give it in another unit"
        )
    return matrix


def like(features: Features, matrix: np.ndarray) -> pd.DataFrame | np.ndarray:
    """Put a matrix (N, D) in the place of the features it was made from: a table keeps its other columns."""
    if not isinstance(features, pd.DataFrame):
        return matrix
    new = pd.DataFrame(matrix, columns=feature_columns(features), index=features.index)
    rest = [c for c in features.columns if c not in new.columns]
    return pd.concat([features[rest], new], axis=1)[list(features.columns)]


def row_values(features: Features, values: object, name: str) -> np.ndarray:
    """One value a row, as an object array (N,): ``values`` itself, or the column it names in a profile table.

    Values of text stay as they are: :func:`row_names` gives names in normal form.

    Raises:
        ConfigError: a column is named that is not there.
        DataError: there are more or fewer values than rows.
    """
    if isinstance(values, str):
        if not isinstance(features, pd.DataFrame):
            raise ConfigError(f"{name}='{values}' names a column, but the features are an array without columns")
        values = features[require(features, [values])[0]]
    if isinstance(values, np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        items = list(values)
    else:
        items = list(cast("Sequence[object]", values))
    if len(items) != len(features):
        raise DataError(f"there are {len(items)} {name} for {len(features)} rows of features; give one a row")
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def row_names(features: Features, values: object, what: str, needed: bool = False) -> np.ndarray:
    """One name a row in normal form, (N,) objects of str, empty where it is missing, see :mod:`biomass.identifiers`.

    Args:
        features: a profile table, or an array (N, D).
        values: the names, of any type, or the column of the table that holds them.
        what: what they name, for messages.
        needed: whether every row must have one.

    Raises:
        ConfigError: a column is named that is not there.
        DataError: there is not one value a row, two names differ in nothing but case, or a name is needed but missing.
    """
    return names(row_values(features, values, f"{what}s"), what, place=row_labels(features), needed=needed)


def row_labels(features: Features) -> Callable[[int], str]:
    """How to call the rows of a table (by its index) or an array in messages."""
    if not isinstance(features, pd.DataFrame):
        return lambda row: f"row {row}"
    return lambda row: f"row {features.index[row]}"


def require(profiles: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns, once it is certain that the table has them.

    Raises:
        ConfigError: a column is not in the table.
    """
    missing = [c for c in columns if c not in profiles.columns]
    if missing:
        known = [str(c) for c in profiles.columns if str(c).startswith(METADATA)]
        raise ConfigError(f"the profiles have no column '{missing[0]}'; theirs are: {', '.join(known) or 'none'}")
    return list(columns)


def group_numbers(profiles: pd.DataFrame, by: str | Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Number the groups of rows that share the values of ``by``, in the sorted order of those values.

    Returns:
        The group of every row, (N,) int64, and a readable name for every group.

    Raises:
        ConfigError: a column is not in the table.
        DataError: a row has no value in one of the columns, or two names differ in nothing but case.

    >>> group_numbers(pd.DataFrame({"Metadata_well": ["B2", "A1", "A01", "b02"]}), "Metadata_well")
    (array([1, 0, 0, 1]), ['A01', 'B02'])
    """
    columns = require(profiles, [by] if isinstance(by, str) else by)
    keys = _normal_columns(profiles, columns)
    absent = keys.isna() | (keys == "")
    if absent.to_numpy().any():
        row, column = np.argwhere(absent.to_numpy())[0]
        raise DataError(
            f"row {profiles.index[row]} has nothing in column '{columns[column]}', which groups the rows; "
            "fill it or drop the row"
        )
    numbers = keys.groupby(columns, sort=True, observed=True).ngroup().to_numpy(np.int64)
    _, first = np.unique(numbers, return_index=True)
    titles = ["/".join(map(normal, values)) for values in keys.iloc[first].itertuples(index=False)]
    return numbers, titles


def control_rows(profiles: Features, controls: object) -> np.ndarray:
    """The mask (N,) bool of the control rows: ``controls`` itself, or the boolean column it names.

    Raises:
        ConfigError: a column is named that is not there.
        DataError: the values are not true or false, not one a row, or true nowhere.
    """
    values = row_values(profiles, controls, "controls")
    for row, value in enumerate(values):
        if not isinstance(value, bool | np.bool_):
            raise DataError(f"controls say {value!r} in row {row}; they must be true or false for every row")
    mask = values.astype(bool)
    if not mask.any():
        raise DataError(f"none of the {len(mask)} rows is a control; name the negative controls (DMSO)")
    return mask


def aggregate(
    profiles: pd.DataFrame,
    by: str | Sequence[str],
    how: str = "mean",
    keep: Sequence[str] = (),
    collect: Sequence[str] = (),
) -> pd.DataFrame:
    """Summarize the rows that share the values of ``by``: cells to images, images to wells, wells to treatments.

    Args:
        profiles: a profile table.
        by: the metadata columns that name a group.
        how: ``mean`` or ``median``, of every feature.
        keep: further metadata columns to carry along; their value must be the same in all rows of a group.
        collect: further metadata columns to carry along as the sorted tuple of the values a group has, for example
            the batches of a treatment; :func:`biomass.evaluation.nearest.nscb` takes such a column as it is. Missing
            values are left out.

    Returns:
        A row a group, sorted by ``by``; the columns ``by``, ``keep``, ``collect``, their names in normal form, and the
        features (float64).

    Raises:
        ConfigError: a column is not in the table, or ``how`` is unknown.
        DataError: a feature is missing or infinite, a row does not say its group, or a column of ``keep`` has two
            values in a group.

    >>> cells = pd.DataFrame({"Metadata_well": ["A1", "A01", "B01"], "f": [1, 3, 5]})
    >>> aggregate(cells.assign(Metadata_batch=["W1", "W2", "W1"]), "Metadata_well", collect=["Metadata_batch"])
      Metadata_well Metadata_batch    f
    0           A01       (W1, W2)  2.0
    1           B01          (W1,)  5.0
    """
    if how not in ("mean", "median"):
        raise ConfigError(f"how='{how}' is unknown; a profile is summarized by mean or median")
    by = [by] if isinstance(by, str) else list(by)
    require(profiles, [*keep, *collect])
    matrix = feature_matrix(profiles, LARGEST)
    numbers, titles = group_numbers(profiles, by)
    features = feature_columns(profiles)
    grouped = pd.DataFrame(matrix.astype(np.float64, copy=False), columns=features).groupby(numbers, sort=True)
    values = grouped.mean() if how == "mean" else grouped.median()
    first = np.unique(numbers, return_index=True)[1]
    normalized = _normal_columns(profiles, list(dict.fromkeys([*by, *keep, *collect])))
    metadata = normalized[list(dict.fromkeys([*by, *keep]))].iloc[first].reset_index(drop=True)
    for column in keep:
        said = normalized[column].astype(object)
        said = said.where(said.notna(), "")
        distinct = said.groupby(numbers, sort=True).nunique().to_numpy()
        if (distinct > 1).any():
            group = int(np.flatnonzero(distinct > 1)[0])
            found = said.to_numpy()[numbers == group]
            other = found[[str(v) != str(found[0]) for v in found]][0]
            raise DataError(
                f"column '{column}' says both '{found[0]}' and '{other}' for {titles[group]}; collect it, or group by "
                "it"
            )
    for column in collect:
        pairs = pd.DataFrame({"group": numbers, "value": normalized[column].to_numpy(object)}).drop_duplicates()
        pairs["text"] = pairs["value"].map(str)
        pairs = pairs[pairs["value"].notna() & (pairs["value"] != "")].sort_values(["group", "text"], kind="stable")
        tuples = pairs.groupby("group", sort=True)["value"].agg(tuple)
        metadata[column] = [tuples.get(group, ()) for group in range(len(titles))]
    return pd.concat([metadata, values.reset_index(drop=True)], axis=1)


def normalize(profiles: pd.DataFrame, controls: object, by: str | Sequence[str]) -> pd.DataFrame:
    """Standardize every plate to its own controls: ``(x - mean) / sd`` of the plate's control rows.

    The standard deviation is the sample's (divisor n - 1), as published for BBBC021. Where a plate's controls all
    have the same value of a feature, that feature is centred, and its scale is kept.

    Args:
        profiles: a profile table.
        controls: a bool for every row, or the name of a boolean column.
        by: the metadata columns that together name a plate; its number alone is not enough where every experiment
            has a plate 1.

    Returns:
        The table with the features replaced.

    Raises:
        ConfigError: a column is not in the table.
        DataError: a plate has fewer than two controls (it is named), or a feature is missing or infinite.

    >>> wells = pd.DataFrame({"Metadata_plate": ["P1"] * 3, "f": [1.0, 3.0, 6.0]})
    >>> normalize(wells, [True, True, False], "Metadata_plate")["f"].round(3).tolist()
    [-0.707, 0.707, 2.828]
    """
    matrix = feature_matrix(profiles, LARGEST).astype(np.float64)
    mask = control_rows(profiles, controls)
    numbers, titles = group_numbers(profiles, by)
    mean, spread = control_moments(matrix[mask], numbers[mask], titles)
    matrix -= mean[numbers]
    matrix /= spread[numbers]
    return cast("pd.DataFrame", like(profiles, matrix))


def control_moments(controls: np.ndarray, numbers: np.ndarray, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor n - 1) of the controls of each plate, as :func:`normalize` takes them.

    Args:
        controls: (n, D) float64.
        numbers: (n,) the plate of each, one of M.
        titles: (M,) names of the plates.

    Returns:
        Both (M, D); a spread of 1 where all controls of a plate have the same value of a feature.

    Raises:
        DataError: a plate has fewer than two controls; it is named.

    >>> mean, spread = control_moments(np.array([[1.0], [3.0], [5.0], [5.0]]), np.array([0, 0, 1, 1]), ["P1", "P2"])
    >>> mean.tolist(), spread.round(3).tolist()
    ([[2.0], [5.0]], [[1.414], [1.0]])
    """
    count = np.bincount(numbers, minlength=len(titles))
    if (count < 2).any():
        plate = int(np.flatnonzero(count < 2)[0])
        raise DataError(
            f"plate '{titles[plate]}' has {count[plate]} control rows, and a mean and a spread need two; "
            "drop the plate or normalize without controls"
        )
    grouped = pd.DataFrame(controls).groupby(numbers, sort=True)
    mean, spread = grouped.mean().to_numpy(), grouped.std(ddof=1).to_numpy()
    return mean, np.where(spread <= _ROUNDING * np.abs(mean), 1.0, spread)


def replicate_correlation(profiles: pd.DataFrame, by: str | Sequence[str], replicates: int = 3) -> pd.Series:
    """How well each feature repeats itself: the median Pearson correlation, over treatments, between replicates.

    The k-th rows of all treatments, in the order of the table, make the k-th replicate; the correlation is taken
    for every pair of replicates, and the median over the pairs is the feature's. Only treatments with exactly
    ``replicates`` rows take part, which leaves out the controls with their many wells.

    Args:
        profiles: a profile table, a row a well.
        by: the metadata columns that name a treatment.
        replicates: rows of a treatment, two or more.

    Returns:
        A value in [-1, 1] for every feature, indexed by its name; 0 for a constant feature.

    Raises:
        ConfigError: a column is not in the table, or ``replicates`` is below 2.
        DataError: fewer than three treatments have so many rows, or a feature is missing or infinite.

    >>> wells = pd.DataFrame({"Metadata_compound": list("aabbcc"), "f": [1, 1, 2, 2, 4, 4], "g": [1, 2, 2, 4, 4, 1]})
    >>> replicate_correlation(wells, "Metadata_compound", replicates=2).round(2).to_dict()
    {'f': 1.0, 'g': -0.5}
    """
    if replicates < 2:
        raise ConfigError(f"replicates={replicates}, but a correlation between replicates needs at least 2")
    matrix = feature_matrix(profiles).astype(np.float64, copy=False)
    numbers, titles = group_numbers(profiles, by)
    complete = np.bincount(numbers, minlength=len(titles)) == replicates
    if complete.sum() < 3:
        raise DataError(
            f"{complete.sum()} of {len(titles)} treatments have exactly {replicates} rows, and a correlation over "
            "treatments needs three; give the usual number of replicates"
        )
    order = np.argsort(numbers, kind="stable")
    order = order[complete[numbers[order]]]
    unit = [_standard_score(matrix[order[k::replicates]]) for k in range(replicates)]
    pairs = [(unit[i] * unit[j]).sum(0) for i in range(replicates) for j in range(i)]
    return pd.Series(np.median(pairs, axis=0), index=feature_columns(profiles), name="replicate_correlation")


def prune_correlated(profiles: pd.DataFrame, threshold: float = 0.95) -> list[str]:
    """Choose features of which no two are correlated (Pearson, absolute) above the threshold.

    From every pair above it, the one with the larger mean absolute correlation to all features goes; of equals
    (duplicates of one another, within 1e-12) the later goes. Depends on nothing but the table.

    Args:
        profiles: a profile table.
        threshold: in [0, 1].

    Returns:
        Names of the features that stay, in the order of the table.

    Raises:
        ConfigError: the threshold is outside its range.
        DataError: a feature is missing or infinite.

    >>> prune_correlated(pd.DataFrame({"f": [1, 2, 3], "twice_f": [2, 4, 6], "g": [1, 3, 1]}))
    ['f', 'g']
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold} is not a correlation; it must be between 0 and 1")
    unit = _standard_score(feature_matrix(profiles).astype(np.float64, copy=False))
    correlation = np.abs(unit.T @ unit)
    burden = correlation.mean(0)
    earlier, later = np.nonzero(np.triu(correlation, 1) > threshold)
    gone = np.where(burden[earlier] > burden[later] + _ROUNDING, earlier, later)
    stays = np.ones(len(burden), bool)
    stays[gone] = False
    return [name for name, stay in zip(feature_columns(profiles), stays, strict=True) if stay]


def _standard_score(matrix: np.ndarray) -> np.ndarray:
    """Centre every column of (N, D) and scale it to unit length; a constant column becomes zeros."""
    centred = matrix - matrix.mean(0)
    length = np.linalg.norm(centred, axis=0)
    constant = length <= _ROUNDING * np.linalg.norm(matrix, axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def _normal_columns(profiles: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table with their names in normal form; numbers stay numbers."""
    return pd.DataFrame({c: normal_column(profiles[c], place=row_labels(profiles)) for c in columns}, profiles.index)


def _list(columns: Sequence[str]) -> str:
    return ", ".join(map(str, columns[:_SHOWN])) + (", …" if len(columns) > _SHOWN else "")
