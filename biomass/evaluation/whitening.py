"""Whitening on negative controls, and typical variation normalization (TVN).

Controls should all look alike, so what varies among them is nuisance. ZCA whitening gives every direction of that
variation the same weight; TVN (Ando et al. 2017) then matches the controls' covariance of every batch to that of all
controls (CORAL; Sun et al. 2016). All maps here are symmetric powers of ``S + lambda I``, S the covariance (divisor
n - 1) of n control rows of D features; only the default of whitening has another scale for directions in which no
control varies (:func:`fit_whitening`). They are applied through the singular vectors of the controls, never as a matrix
D x D, so that few controls and many features cost little: time n D min(n, D) to fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.evaluation.aggregate import (
    Features,
    control_rows,
    feature_columns,
    feature_matrix,
    group_numbers,
    like,
    row_values,
)

RELATIVE_LAMBDA = 0.01
"""Default lambda of whitening, as a share of the mean of the controls' nonzero variances (eigenvalues of S).

Chosen on the BBBC021 wells of Ljosa et al. (2013; 330 DMSO wells, 177 features): NSC and NSCB are best or close to it
from a tenth to ten times this value. Far smaller ones blow up directions in which the controls hardly vary, far larger
ones leave the features as they were. Unseen directions, in which no control varies, are no matter of lambda: see
:func:`fit_whitening`."""

_ROWS = 8192
"""Rows mapped at once: bounds the memory beside the result."""


@dataclass(frozen=True)
class Whitening:
    """ZCA whitening fitted on controls: ``(x - centre) W`` with ``W = V (S + lambda)^-1/2 V^T + rest (I - V V^T)``.

    Attributes:
        centre: mean of the controls, (D,).
        variances: the K nonzero eigenvalues of S, descending, (K,); K is at most the number of controls less one.
        directions: their eigenvectors, (K, D), orthonormal rows.
        regularization: lambda, in squared units of the features.
        rest: scale of the directions in which the controls do not vary, in one over units of the features; 0 drops
            them.
        columns: names of the features it was fitted on; empty for an array.
    """

    centre: np.ndarray
    variances: np.ndarray
    directions: np.ndarray
    regularization: float
    rest: float
    columns: tuple[str, ...]

    def matrix(self) -> np.ndarray:
        """W itself, (D, D): for inspection, ``apply`` does not need it."""
        scales = (self.variances + self.regularization) ** -0.5
        return _scaled(np.eye(len(self.centre)), scales, self.directions, self.rest)

    def apply(self, features: Features) -> pd.DataFrame | np.ndarray:
        """Whiten rows, controls or not.

        Args:
            features: a profile table, whose other columns are kept, or an array (N, D).

        Returns:
            The same kind, of the same floating type.

        Raises:
            DataError: a feature is missing or infinite, or the features are not those of the fit.
        """
        matrix = feature_matrix(features)
        names = tuple(feature_columns(features)) if isinstance(features, pd.DataFrame) else ()
        if matrix.shape[1] != len(self.centre):
            raise DataError(f"rows have {matrix.shape[1]} features, but whitening was fitted on {len(self.centre)}")
        if names and self.columns and names != self.columns:
            first = next(i for i, (a, b) in enumerate(zip(names, self.columns, strict=True)) if a != b)
            raise DataError(
                f"feature {first} is '{names[first]}', but whitening was fitted on '{self.columns[first]}'; "
                "give the columns of the fit in the same order"
            )
        return like(features, _whitened(matrix, self))


def fit_whitening(controls: Features, regularization: float | None = None) -> Whitening:
    """Fit ZCA whitening on control rows.

    n controls vary in at most n - 1 directions. What a row is in the others, which for 330 control wells and 2048
    features are most, no control has told how to scale. A lambda that is given makes the plain formula ``(S + lambda
    I)^-1/2`` (sphering with a ridge), under which they are scaled by ``lambda^-1/2``, more than any direction that was
    seen; 0 drops them (pseudo-inverse, as pycytominer does). Neither is a good default: the first leaves next to
    nothing but unseen directions in the profile of a treatment, so that batch effects, whitening and alignment no
    longer matter; the second loses what a treatment does and no control ever shows. By default they are scaled by
    ``(m + lambda)^-1/2``, m the mean of the nonzero variances: on average whitening scales what it has seen by
    just that, so the share of the unseen in the length of a row stays about what it was. With full rank there are none,
    and the default is plain ZCA with a small lambda.

    Args:
        controls: a profile table of control rows, or an array (n, D), n >= 2; n may be smaller than D.
        regularization: lambda >= 0, in squared units of the features; ``None``: :data:`RELATIVE_LAMBDA` times m,
            which does not depend on the unit, and unseen directions as above.

    Raises:
        ConfigError: lambda is negative or not finite.
        DataError: there are fewer than two controls, they do not vary at all, or a feature is missing or infinite.
    """
    names = tuple(feature_columns(controls)) if isinstance(controls, pd.DataFrame) else ()
    return _fit(feature_matrix(controls), regularization, names)


def whiten(features: Features, controls: object, regularization: float | None = None) -> pd.DataFrame | np.ndarray:
    """Whiten all rows with the statistics of the control rows among them.

    Args:
        features: a profile table, or an array (N, D).
        controls: a bool for every row, (N,), or the name of a boolean column.
        regularization: see :func:`fit_whitening`.

    Returns:
        A table with the features replaced, or an array (N, D).

    Raises:
        ConfigError, DataError: as :func:`fit_whitening`; no row is a control.
    """
    matrix, mask = feature_matrix(features), control_rows(features, controls)
    return like(features, _whitened(matrix, _fit(matrix[mask], regularization, ())))


def align(
    features: Features, controls: object, batches: object, regularization: float = 1.0
) -> pd.DataFrame | np.ndarray:
    """Match the controls' covariance of every batch to that of all controls (CORAL).

    Every row x of batch b becomes ``centre + (x - centre) (S_b + eta I)^-1/2 (S + eta I)^1/2``, with S_b the
    covariance of the controls of b, S that of all controls, and ``centre`` the mean of all controls. Means of batches
    are left alone: :func:`biomass.evaluation.aggregate.normalize` is for those.

    Args:
        features: a profile table, or an array (N, D).
        controls: a bool for every row, (N,), or the name of a boolean column.
        batches: the batch of every row, (N,), or the name of a column, or (tables only) a list of names that
            together tell the batch.
        regularization: eta > 0, in squared units of the features. 1, the value of Sun et al. (2016), suits whitened
            features; it keeps a batch with few controls close to what it was.

    Returns:
        A table with the features replaced, or an array (N, D).

    Raises:
        ConfigError: eta is not positive, or a column is unknown.
        DataError: a batch has fewer than two controls (it is named) or a row no batch, or a feature is missing or
            infinite.
    """
    _check_lambda(regularization)
    if regularization == 0:
        raise ConfigError("regularization=0 cannot align batches, whose few controls leave directions without variance")
    matrix = feature_matrix(features)
    mask = control_rows(features, controls)
    numbers, names = _batches(features, batches)
    count = np.bincount(numbers[mask], minlength=len(names))
    if (count < 2).any():
        batch = int(np.flatnonzero(count < 2)[0])
        raise DataError(
            f"batch '{names[batch]}' has {count[batch]} control rows, and aligning needs two; "
            "leave the batch out or only whiten"
        )
    centre, target_variances, target_directions = _spectrum(matrix[mask])
    out = np.empty_like(matrix)
    order = np.argsort(numbers, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(numbers))[:-1]):
        _, variances, directions = _spectrum(matrix[members[mask[members]]])
        for start in range(0, len(members), _ROWS):
            part = members[start : start + _ROWS]
            rows = _power(matrix[part].astype(np.float64) - centre, variances, directions, regularization, -0.5)
            out[part] = centre + _power(rows, target_variances, target_directions, regularization, 0.5)
    return like(features, out)


def tvn(
    features: Features,
    controls: object,
    batches: object,
    regularization: float | None = None,
    alignment: float = 1.0,
) -> pd.DataFrame | np.ndarray:
    """Typical variation normalization (Ando et al. 2017): whiten on the controls, then align the batches.

    Args:
        features: a profile table, or an array (N, D).
        controls: a bool for every row, (N,), or the name of a boolean column.
        batches: the batch of every row, as for :func:`align`.
        regularization: lambda of the whitening, see :func:`fit_whitening`.
        alignment: eta of :func:`align`.

    Returns:
        A table with the features replaced, or an array (N, D).

    Raises:
        ConfigError, DataError: as :func:`whiten` and :func:`align`.
    """
    return align(whiten(features, controls, regularization), controls, batches, alignment)


def _fit(controls: np.ndarray, regularization: float | None, columns: tuple[str, ...]) -> Whitening:
    if len(controls) < 2:
        raise DataError(f"whitening was given {len(controls)} control row; at least two are needed to see variation")
    centre, variances, directions = _spectrum(controls)
    if not len(variances):
        raise DataError(f"all {len(controls)} control rows are the same; there is no variation to whiten")
    if regularization is None:
        mean = float(variances.mean())
        regularization = RELATIVE_LAMBDA * mean
        rest = (mean + regularization) ** -0.5
    else:
        _check_lambda(regularization)
        rest = regularization**-0.5 if regularization > 0 else 0.0
    return Whitening(centre, variances, directions, float(regularization), rest, columns)


def _whitened(matrix: np.ndarray, fit: Whitening) -> np.ndarray:
    out = np.empty_like(matrix)
    for start in range(0, len(matrix), _ROWS):
        rows = matrix[start : start + _ROWS].astype(np.float64) - fit.centre
        scales = (fit.variances + fit.regularization) ** -0.5
        out[start : start + _ROWS] = _scaled(rows, scales, fit.directions, fit.rest)
    return out


def _spectrum(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (D,), nonzero eigenvalues (K,) descending and eigenvectors (K, D) of the covariance of rows (n, D)."""
    rows = rows.astype(np.float64)
    # a constant feature is centred by its value: its mean may be off by a rounding that would look like variation
    constant = (rows == rows[0]).all(0)
    centre = np.where(constant, rows[0], rows.mean(0))
    rows -= centre
    n = len(rows)
    if n > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"))  # same right singular vectors, without n x D left ones
    _, singular, directions = np.linalg.svd(rows, full_matrices=False)
    rank = int((singular > singular[0] * max(n, rows.shape[1]) * np.finfo(np.float64).eps).sum())
    return centre, singular[:rank] ** 2 / (n - 1), directions[:rank]


def _power(
    rows: np.ndarray, variances: np.ndarray, directions: np.ndarray, regularization: float, power: float
) -> np.ndarray:
    """``rows (S + lambda I)^power`` for S with these eigenvalues (K,) and eigenvectors (K, D), zero elsewhere."""
    return _scaled(rows, (variances + regularization) ** power, directions, regularization**power)


def _scaled(rows: np.ndarray, scales: np.ndarray, directions: np.ndarray, rest: float) -> np.ndarray:
    """Rows (N, D), scaled by ``scales`` (K,) along the orthonormal directions (K, D) and by ``rest`` elsewhere."""
    if len(directions) == rows.shape[1]:
        rest = 0.0  # nothing is left over, and a large scale would only multiply rounding
    return rest * rows + ((rows @ directions.T) * (scales - rest)) @ directions


def _batches(features: Features, batches: object) -> tuple[np.ndarray, list[str]]:
    """The dense batch number of every row, (N,), and the names of the batches."""
    if isinstance(features, pd.DataFrame) and (isinstance(batches, str) or _names_columns(features, batches)):
        return group_numbers(features, batches)  # type: ignore[arg-type]
    values = pd.DataFrame({"batch": row_values(features, batches, "batches")})
    return group_numbers(values, "batch")


def _names_columns(features: pd.DataFrame, batches: object) -> bool:
    return isinstance(batches, Sequence) and len(batches) > 0 and all(b in features.columns for b in batches)


def _check_lambda(value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ConfigError(f"regularization={value} is no variance to add; give a number that is not negative")
