"""Profile tables: their features, means over groups, normalization to a plate's controls, choice of features.

A profile table follows pycytominer: a row a cell, image, well or treatment; columns whose names start with
``Metadata_`` describe the row, all others are features. The functions here check what they are given, because a
missing value that slips through a mean is found only in a figure.
"""

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError

METADATA = "Metadata_"
"""What the name of a column begins with that is not a feature."""

Features: TypeAlias = pd.DataFrame | np.ndarray
"""A profile table, or the bare features (N, D)."""

_ROUNDING = 1e-12
"""A spread below this share of the values' size is the rounding of a constant feature, not a spread."""


def feature_columns(profiles: pd.DataFrame) -> list[str]:
    """Names of the features of a profile table: the columns whose names do not start with ``Metadata_``."""
    return [c for c in profiles.columns if not str(c).startswith(METADATA)]


def feature_matrix(features: Features) -> np.ndarray:
    """The features of a table or an array as a checked matrix.

    Args:
        features: a profile table, of which the columns outside ``Metadata_*`` are taken, or an array (N, D).

    Returns:
        (N, D), float32 if all features are, float64 otherwise. May share its memory with ``features``.

    Raises:
        DataError: a column is not numeric or stands twice, there are no rows or features, the array is not
            two-dimensional, or a value is missing or infinite (row and column are named).
    """
    names: Sequence[object]
    if isinstance(features, pd.DataFrame):
        names = feature_columns(features)
        twice = features.columns[features.columns.duplicated()]
        if len(twice):
            raise DataError(f"column '{twice[0]}' stands more than once in the profiles; rename or drop one of them")
        for name in names:
            if not pd.api.types.is_any_real_numeric_dtype(features[name]):
                raise DataError(
                    f"column '{name}' is not numeric, so it is no feature; call it '{METADATA}{name}' or drop it"
                )
        table = features[list(names)]
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
        rows, names = range(matrix.shape[0]), range(matrix.shape[1])
    if 0 in matrix.shape:
        raise DataError(f"features have {matrix.shape[0]} rows and {matrix.shape[1]} columns; one of each is needed")
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(
            f"row {rows[row]} has {matrix[row, column]} in feature '{names[column]}'; "
            "drop the row or the feature, or find out why it could not be measured"
        )
    return matrix


def like(features: Features, matrix: np.ndarray) -> pd.DataFrame | np.ndarray:
    """Put a new matrix (N, D) of the same features where the old one was: a table keeps its other columns."""
    if not isinstance(features, pd.DataFrame):
        return matrix
    new = pd.DataFrame(matrix, columns=feature_columns(features), index=features.index)
    rest = [c for c in features.columns if c not in new.columns]
    return pd.concat([features[rest], new], axis=1)[list(features.columns)]


def row_values(features: Features, values: object, name: str) -> np.ndarray:
    """One value a row, as an object array (N,): ``values`` itself, or the column it names in a profile table.

    Bytes become strings, as they come out of HDF5; whatever pandas calls missing becomes ``None``.

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
    for i, item in enumerate(items):
        out[i] = None if pd.api.types.is_scalar(item) and pd.isna(item) else _decoded(item)
    return out


def require(profiles: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns, once it is sure that the table has them.

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
        DataError: a row has no value in one of the columns.
    """
    columns = require(profiles, [by] if isinstance(by, str) else by)
    keys = profiles[columns].copy()
    for column in columns:
        if keys[column].dtype == object:
            keys[column] = keys[column].map(_decoded)
    absent = keys.isna()
    if absent.to_numpy().any():
        row, column = np.argwhere(absent.to_numpy())[0]
        raise DataError(
            f"row {profiles.index[row]} has nothing in column '{columns[column]}', which groups the rows; "
            "fill it or drop the row"
        )
    numbers = keys.groupby(columns, sort=True, observed=True).ngroup().to_numpy(np.int64)
    _, first = np.unique(numbers, return_index=True)
    names = ["/".join(map(str, values)) for values in keys.iloc[first].itertuples(index=False)]
    return numbers, names


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
            the batches of a treatment; :func:`biomass.evaluation.nearest.nscb` takes such a column as it is.

    Returns:
        A row a group, sorted by ``by``; the columns ``by``, ``keep``, ``collect`` and the features (float64).

    Raises:
        ConfigError: a column is not in the table, or ``how`` is unknown.
        DataError: a feature is missing or infinite, a group cannot be told, or a column of ``keep`` has two values.
    """
    if how not in ("mean", "median"):
        raise ConfigError(f"how='{how}' is unknown; a profile is summarized by mean or median")
    by = [by] if isinstance(by, str) else list(by)
    require(profiles, [*keep, *collect])
    matrix = feature_matrix(profiles)
    numbers, names = group_numbers(profiles, by)
    features = feature_columns(profiles)
    grouped = pd.DataFrame(matrix.astype(np.float64, copy=False), columns=features).groupby(numbers, sort=True)
    values = grouped.mean() if how == "mean" else grouped.median()
    first = np.unique(numbers, return_index=True)[1]
    metadata = profiles[[*by, *keep]].iloc[first].reset_index(drop=True)
    for column in keep:
        distinct = profiles[column].groupby(numbers, sort=True).nunique(dropna=False).to_numpy()
        if (distinct > 1).any():
            group = int(np.flatnonzero(distinct > 1)[0])
            found = profiles[column].to_numpy(object)[numbers == group]
            other = found[[str(v) != str(found[0]) for v in found]][0]
            raise DataError(
                f"column '{column}' says both '{found[0]}' and '{other}' for {names[group]}; collect it, or group by it"
            )
    for column in collect:
        pairs = pd.DataFrame({"group": numbers, "value": row_values(profiles, column, column)}).drop_duplicates()
        pairs["text"] = pairs["value"].map(str)
        pairs = pairs.sort_values(["group", "text"], kind="stable")
        metadata[column] = pairs.groupby("group", sort=True)["value"].agg(tuple).to_numpy()
    return pd.concat([metadata, values.reset_index(drop=True)], axis=1)


def normalize(profiles: pd.DataFrame, controls: object, by: str | Sequence[str]) -> pd.DataFrame:
    """Standardize every plate to its own controls: ``(x - mean) / sd`` of the plate's control rows.

    The standard deviation is the sample's (divisor n - 1), as published for BBBC021. Where a plate's controls all
    have the same value of a feature, that feature is centred and keeps its scale.

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
    """
    matrix = feature_matrix(profiles).astype(np.float64)
    mask = control_rows(profiles, controls)
    numbers, names = group_numbers(profiles, by)
    count = np.bincount(numbers[mask], minlength=len(names))
    if (count < 2).any():
        plate = int(np.flatnonzero(count < 2)[0])
        raise DataError(
            f"plate '{names[plate]}' has {count[plate]} control rows, and a mean and a spread need two; "
            "drop the plate or normalize without controls"
        )
    grouped = pd.DataFrame(matrix[mask]).groupby(numbers[mask], sort=True)
    mean, spread = grouped.mean().to_numpy(), grouped.std(ddof=1).to_numpy()
    spread = np.where(spread <= _ROUNDING * np.abs(mean), 1.0, spread)
    matrix -= mean[numbers]
    matrix /= spread[numbers]
    return cast("pd.DataFrame", like(profiles, matrix))


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
    """
    if replicates < 2:
        raise ConfigError(f"replicates={replicates}, but a correlation between replicates needs at least 2")
    matrix = feature_matrix(profiles).astype(np.float64, copy=False)
    numbers, names = group_numbers(profiles, by)
    complete = np.bincount(numbers, minlength=len(names)) == replicates
    if complete.sum() < 3:
        raise DataError(
            f"{complete.sum()} of {len(names)} treatments have exactly {replicates} rows, and a correlation over "
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
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold} is no correlation; it must be between 0 and 1")
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


def _decoded(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
