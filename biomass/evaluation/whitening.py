"""Whitening on negative controls, and typical variation normalization (TVN).

Controls should all look alike, so what varies among them is unwanted. ZCA whitening gives every direction of that
variation the same weight. TVN (Ando et al. 2017) then matches the controls' covariance of every batch to that of all
controls (CORAL; Sun et al. 2016). All maps here are symmetric powers of ``S + lambda I``, S the covariance (divisor
n - 1) of n control rows of D features. They are applied through the singular vectors of the controls and never as a
matrix D x D, so that few controls and many features cost little: fitting takes a time of n D min(n, D).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.evaluation.tables import (
    LARGEST,
    Features,
    control_rows,
    feature_columns,
    feature_matrix,
    group_numbers,
    like,
    row_values,
)

RELATIVE_LAMBDA = 0.01
"""Default lambda of whitening, as a share of the controls' mean variance of a feature.

Chosen on the BBBC021 wells of Ljosa et al. (2013; 330 DMSO wells, 177 features): NSC and NSCB are best or close to it
from a tenth to ten times this value. Far smaller ones blow up directions in which the controls hardly vary, far larger
ones leave the features as they were."""

_LEAST = 1e-280
"""The least variance that whitening can divide by, and still has all its digits."""

_ROWS = 8192
"""Rows mapped at once: bounds the memory beside the result."""


@dataclass(frozen=True)
class Whitening:
    """ZCA whitening fitted on controls: ``(x - centre) W`` with ``W = V (S + lambda)^-1/2 V^T``.

    Attributes:
        centre: mean of the controls, (D,).
        variances: the K nonzero eigenvalues of S, descending, (K,); K is at most the number of controls less one.
        directions: their eigenvectors, (K, D), orthonormal rows.
        regularization: lambda, in squared units of the features. With 0, directions in which the controls do not
            vary are dropped (pseudo-inverse); otherwise they are scaled by ``lambda^-1/2``.
        columns: names of the features it was fitted on; empty for an array.
    """

    centre: np.ndarray
    variances: np.ndarray
    directions: np.ndarray
    regularization: float
    columns: tuple[str, ...]

    def matrix(self) -> np.ndarray:
        """W itself, (D, D): for inspection, ``apply`` does not need it."""
        return _power(np.eye(len(self.centre)), self.variances, self.directions, self.regularization, -0.5)

    def apply(self, features: Features) -> pd.DataFrame | np.ndarray:
        """Whiten rows, controls or not.

        Args:
            features: a profile table, whose other columns are kept, or an array (N, D).

        Returns:
            The same kind, of the same floating type.

        Raises:
            DataError: a feature is missing or infinite, or the features are not those of the fit.
        """
        matrix = feature_matrix(features, LARGEST)
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

    n controls vary in at most n - 1 directions; the others are scaled by ``lambda^-1/2``, more than any that was seen.
    With fewer controls than features, most of the length of another row lies in directions that no control has shown.
    Whitening then acts much as if the directions of the controls had been projected out, and aligning the controls of
    each batch changes little more. On the wells of Ljosa et al. (330 DMSO wells, 516 columns) that mixes batches better
    than scaling unseen directions like the average seen one, and NSCB is alike. A lambda of 0 drops them.

    Args:
        controls: a profile table of control rows, or an array (n, D), n >= 2; n may be smaller than D.
        regularization: lambda >= 0, in squared units of the features; ``None``: :data:`RELATIVE_LAMBDA` times the
            mean variance of a feature among the controls, which does not depend on the unit.

    Raises:
        ConfigError: lambda is negative or not finite.
        DataError: there are fewer than two controls, they do not vary at all, or a feature is missing or infinite.

    >>> controls = np.array([[0.0, 0.0], [2.0, 4.0], [4.0, 0.0], [6.0, 4.0]])
    >>> white = fit_whitening(controls, regularization=0).apply(controls)
    >>> np.allclose(np.cov(white.T), np.eye(2))
    True
    """
    names = tuple(feature_columns(controls)) if isinstance(controls, pd.DataFrame) else ()
    return _fit(feature_matrix(controls, LARGEST), regularization, names)


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

    >>> rows = np.array([[0.0, 0.0], [2.0, 4.0], [4.0, 0.0], [6.0, 4.0], [3.0, 6.0]])
    >>> whiten(rows, [True] * 4 + [False], 0)[-1].round(2).tolist()
    [-0.42, 1.89]
    """
    matrix, mask = feature_matrix(features, LARGEST), control_rows(features, controls)
    return like(features, _whitened(matrix, _fit(matrix[mask], regularization, ())))


def align(
    features: Features, controls: object, batches: object, regularization: float = 1.0
) -> pd.DataFrame | np.ndarray:
    """Match the controls' covariance of every batch to that of all controls (CORAL).

    Every row x of batch b becomes ``centre + (x - centre) (S_b + eta I)^-1/2 (S + eta I)^1/2``, with S_b the
    covariance of the controls of b, S that of all controls, and ``centre`` the mean of all controls. Means of batches
    are left alone: :func:`biomass.evaluation.tables.normalize` is for those.

    Args:
        features: a profile table, or an array (N, D).
        controls: a bool for every row, (N,), or the name of a boolean column.
        batches: the batch of every row, (N,), or the name of a column, or (tables only) a list of names that
            together name the batch.
        regularization: eta > 0, in squared units of the features. 1, the value of Sun et al. (2016), suits whitened
            features; it keeps a batch with few controls close to what it was.

    Returns:
        A table with the features replaced, or an array (N, D).

    Raises:
        ConfigError: eta is not positive, or a column is unknown.
        DataError: a batch has fewer than two controls (it is named), a row has no batch, two batches differ in
            nothing but the case of their names, or a feature is missing or infinite.

    >>> spread = np.array([[-1.0], [1.0], [-5.0], [5.0]])
    >>> align(spread, [True] * 4, ["week 1", "week 1", "week 2", "week 2"], 1e-9).ravel().round(2).tolist()
    [-2.94, 2.94, -2.94, 2.94]
    """
    matrix = feature_matrix(features, LARGEST)
    mask = control_rows(features, controls)
    numbers, names = _batches(features, batches)
    count = np.bincount(numbers[mask], minlength=len(names))
    if (count < 2).any():
        raise _too_few(names[int(np.flatnonzero(count < 2)[0])], int(count[count < 2][0]))
    named = np.array(names, dtype=object)[numbers]
    fit = fit_alignment(matrix[mask], regularization).with_batches(matrix[mask], named[mask])
    return like(features, fit.apply(matrix, named))


@dataclass(frozen=True)
class Alignment:
    """The alignment of :func:`align`, fitted.

    Attributes:
        centre: mean of all controls, (D,).
        variances: the K nonzero eigenvalues of their covariance S, descending, (K,),
        directions: and their eigenvectors, (K, D).
        regularization: eta.
        batches: the same two of the controls of each batch, by its name.
    """

    centre: np.ndarray
    variances: np.ndarray
    directions: np.ndarray
    regularization: float
    batches: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def with_batches(self, controls: np.ndarray, batches: np.ndarray) -> "Alignment":
        """The same, which also knows the batches that it does not know yet, by their own controls.

        Args:
            controls: (n, D).
            batches: (n,) names of their batches.

        Raises:
            DataError: such a batch has fewer than two controls; it is named.
        """
        known = dict(self.batches)
        for name, rows in pd.Series(np.arange(len(batches))).groupby(batches):
            if name in self.batches:
                continue
            if len(rows) < 2:
                raise _too_few(str(name), len(rows))
            known[str(name)] = _spectrum(controls[rows])[1:]
        return replace(self, batches=known)

    def apply(self, rows: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Align rows (N, D) of these batches (N,), which are known: an array of the same floating type."""
        out = np.empty_like(rows)
        for name, members in pd.Series(np.arange(len(batches))).groupby(batches):
            own = self.batches[str(name)]
            dense = _dense_is_faster(len(members), len(own[0]) + len(self.variances), rows.shape[1], 2)
            matrix = self._map(np.eye(rows.shape[1]), *own) if dense else None
            for start in range(0, len(members), _ROWS):
                part = members.to_numpy()[start : start + _ROWS]
                centred = rows[part].astype(np.float64) - self.centre
                with np.errstate(over="ignore", invalid="ignore"):
                    mapped = self.centre + (self._map(centred, *own) if matrix is None else centred @ matrix)
                out[part] = _held(mapped, out.dtype)
        return out

    def _map(self, rows: np.ndarray, variances: np.ndarray, directions: np.ndarray) -> np.ndarray:
        flat = _power(rows, variances, directions, self.regularization, -0.5)
        return _power(flat, self.variances, self.directions, self.regularization, 0.5)


def fit_alignment(controls: np.ndarray, regularization: float = 1.0) -> Alignment:
    """What batches are aligned to: mean and covariance of all controls.

    Args:
        controls: (n, D), n >= 2.
        regularization: eta > 0, see :func:`align`.

    Raises:
        ConfigError: eta is not positive.

    >>> spread = np.array([[-1.0], [1.0], [-5.0], [5.0]])
    >>> weeks = np.array(["week 1", "week 1", "week 2", "week 2"])
    >>> fit = fit_alignment(spread, 1e-9).with_batches(spread, weeks)
    >>> fit.apply(np.array([[2.0]]), np.array(["week 1"])).round(2)  # as far out as the controls of all weeks
    array([[5.89]])
    """
    _check_lambda(regularization)
    if regularization == 0:
        raise ConfigError("regularization=0 cannot align batches, whose few controls leave directions without variance")
    return Alignment(*_spectrum(controls), float(regularization))


def _too_few(batch: str, count: int) -> DataError:
    return DataError(
        f"batch '{batch}' has {count} control rows, and aligning needs two; leave the batch out or only whiten"
    )


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

    >>> rows = np.random.default_rng(0).normal(size=(40, 3)) * [1, 5, 25]
    >>> tvn(rows, np.arange(40) < 20, np.arange(40) % 2).std(0).round().tolist()
    [1.0, 1.0, 1.0]
    """
    return align(whiten(features, controls, regularization), controls, batches, alignment)


def _fit(controls: np.ndarray, regularization: float | None, columns: tuple[str, ...]) -> Whitening:
    if len(controls) < 2:
        raise DataError(f"whitening was given {len(controls)} control row; at least two are needed to see variation")
    centre, variances, directions = _spectrum(controls)
    if not len(variances):
        raise DataError(f"all {len(controls)} control rows are the same; there is no variation to whiten")
    if variances[0] < _LEAST:
        raise DataError(
            f"the controls vary by less than {_LEAST**0.5:.0e}, whose square no number can hold; give the features in "
            "another unit"
        )
    if regularization is None:
        regularization = RELATIVE_LAMBDA * float(variances.sum()) / controls.shape[1]
    _check_lambda(regularization)
    return Whitening(centre, variances, directions, float(regularization), columns)


def _whitened(matrix: np.ndarray, fit: Whitening) -> np.ndarray:
    out = np.empty_like(matrix)
    white = fit.matrix() if _dense_is_faster(len(matrix), len(fit.variances), matrix.shape[1], 1) else None
    for start in range(0, len(matrix), _ROWS):
        rows = matrix[start : start + _ROWS].astype(np.float64) - fit.centre
        power = (fit.variances, fit.directions, fit.regularization, -0.5)
        with np.errstate(over="ignore", invalid="ignore"):
            whitened = _power(rows, *power) if white is None else rows @ white
        out[start : start + _ROWS] = _held(whitened, out.dtype)
    return out


def _held(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values, once it is certain that numbers of this type can hold them."""
    if not np.isfinite(values).all() or max(values.max(), -values.min()) > np.finfo(dtype).max:
        raise DataError(
            f"a row lies so far from the controls that {dtype} cannot hold what becomes of it; drop what is far out, "
            "or add a larger lambda (regularization)"
        )
    return values


def _dense_is_faster(rows: int, rank: int, width: int, powers: int) -> bool:
    """Whether so many powers, of such a rank together, are better applied to so many rows as one matrix D x D."""
    making = 2 * rank * width + (powers - 1) * width**2
    return making + rows * width < 2 * rows * rank


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
    # where S has full rank nothing is left over, and a large lambda^-1/2 would only multiply rounding
    rest = regularization**power if regularization > 0 and len(variances) < rows.shape[1] else 0.0
    return rest * rows + ((rows @ directions.T) * ((variances + regularization) ** power - rest)) @ directions


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
        raise ConfigError(f"regularization={value} cannot be added to a variance; give a number that is not negative")
