"""Whitening, alignment and TVN against the formulas written out, and against pycytominer."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError, DataError
from biomass.evaluation import aggregate, align, fit_whitening, normalize, tvn, whiten
from biomass.evaluation.whitening import RELATIVE_LAMBDA


def screen(seed=0, n=120, d=9, batches=3, controls=0.5):
    """Rows with correlated features, a batch each, and a mask of controls."""
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % batches
    mix = rng.normal(size=(batches, d, d))
    x = np.einsum("nd,nde->ne", rng.normal(size=(n, d)), mix[batch]) + rng.normal(size=d) * 5
    mask = rng.permutation(n) < controls * n
    return x, mask, np.array([f"w{b}" for b in batch])


def power(covariance, lam, exponent):
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * (values + lam) ** exponent) @ vectors.T


def zca(controls, lam):
    return power(np.cov(controls.T), lam, -0.5)


def test_whitening_is_the_formula():
    x, mask, _ = screen()
    for lam in (0.0, 1e-3, 1.0):
        expected = (x - x[mask].mean(0)) @ zca(x[mask], lam)
        np.testing.assert_allclose(whiten(x, mask, lam), expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(fit_whitening(x[mask], lam).matrix(), zca(x[mask], lam), rtol=0, atol=1e-9)
    default = RELATIVE_LAMBDA * x[mask].var(0, ddof=1).mean()
    assert fit_whitening(x[mask]).regularization == pytest.approx(default)
    np.testing.assert_allclose(whiten(x, mask), whiten(x, mask, default), atol=1e-9)


def test_a_vanishing_lambda_does_not_magnify_rounding():
    x, mask, _ = screen()
    np.testing.assert_allclose(whiten(x, mask, 1e-24), whiten(x, mask, 0.0), rtol=0, atol=1e-10)


def test_whitened_controls_have_unit_covariance_and_zero_mean():
    x, mask, _ = screen(seed=1)
    white = whiten(x, mask, 0.0)[mask]
    np.testing.assert_allclose(np.cov(white.T), np.eye(9), atol=1e-9)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)


def test_agrees_with_pycytominer():
    from pycytominer.operations import Spherize

    x, mask, _ = screen(seed=2)
    table = pd.DataFrame(x)
    expected = Spherize(epsilon=1e-6, method="ZCA").fit(table[mask]).transform(table)
    np.testing.assert_allclose(whiten(x, mask, 0.0), expected, rtol=0, atol=1e-6)
    # its epsilon is added to the singular values; lambda 0 and epsilon 0 are the same thing
    exact = Spherize(epsilon=0, method="ZCA").fit(table[mask]).transform(table)
    np.testing.assert_allclose(whiten(x, mask, 0.0), exact, rtol=0, atol=1e-9)


def test_agrees_with_pycytominer_on_fewer_controls_than_features():
    from pycytominer.operations import Spherize

    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 40))
    expected = Spherize(epsilon=0, method="ZCA").fit(pd.DataFrame(x)).transform(pd.DataFrame(x))
    np.testing.assert_allclose(whiten(x, np.ones(12, bool), 0.0), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lam", [None, 1e-3, 2.0])
def test_fewer_controls_than_features_and_constant_features_are_the_formula_too(lam):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 50))
    x[:, 7] = 1 / 3 * 1e6
    x[20:, 8], x[:20, 8] = rng.normal(size=10), 0.1
    mask = np.arange(30) < 20
    fitted = fit_whitening(x[mask], lam)
    assert len(fitted.variances) == 19
    expected = (x - x[mask].mean(0)) @ zca(x[mask], fitted.regularization)
    white = fitted.apply(x)
    np.testing.assert_allclose(white, expected, rtol=0, atol=1e-6)
    assert np.abs(white[:, 7]).max() < 1e-6


def test_without_regularization_directions_unseen_in_controls_are_dropped():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(30, 50))
    x[:, 7] = 1 / 3 * 1e6
    white = whiten(x, np.arange(30) < 20, 0.0)
    assert np.linalg.matrix_rank(white) == 19
    pseudo = np.linalg.pinv(np.cov(x[:20].T), rcond=1e-10, hermitian=True)
    np.testing.assert_allclose(white @ white.T, (x - x[:20].mean(0)) @ pseudo @ (x - x[:20].mean(0)).T, atol=1e-8)


def test_default_lambda_knows_no_unit():
    x, mask, _ = screen(seed=5)
    np.testing.assert_allclose(whiten(x * 1e6, mask), whiten(x, mask), atol=1e-9)


def test_only_controls_are_fitted():
    x, mask, _ = screen(seed=6)
    other = x.copy()
    other[~mask] *= 100
    np.testing.assert_array_equal(whiten(x, mask)[mask], whiten(other, mask)[mask])


def slow_align(x, mask, batches, eta):
    centre = x[mask].mean(0)
    colour = power(np.cov(x[mask].T), eta, 0.5)
    out = np.empty_like(x)
    for b in set(batches):
        source = power(np.cov(x[mask & (batches == b)].T), eta, -0.5)
        out[batches == b] = centre + (x[batches == b] - centre) @ source @ colour
    return out


@pytest.mark.parametrize(("n", "d"), [(120, 9), (24, 30)])
@pytest.mark.parametrize("eta", [1e-3, 1.0])
def test_align_is_the_formula(n, d, eta):
    x, mask, batches = screen(seed=7, n=n, d=d)
    expected = slow_align(x, mask, batches, eta)
    np.testing.assert_allclose(align(x, mask, batches, eta), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_aligned_batches_have_the_covariance_of_all_controls():
    x, mask, batches = screen(seed=8, n=300)
    out = align(x, mask, batches, 1e-9)
    for b in set(batches):
        np.testing.assert_allclose(np.cov(out[mask & (batches == b)].T), np.cov(x[mask].T), atol=1e-5)


def test_tvn_is_whitening_then_alignment():
    x, mask, batches = screen(seed=9)
    white = (x - x[mask].mean(0)) @ zca(x[mask], 0.01)
    np.testing.assert_allclose(tvn(x, mask, batches, 0.01), slow_align(white, mask, batches, 1.0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        tvn(x, mask, batches, 0.01, alignment=0.3), slow_align(white, mask, batches, 0.3), rtol=0, atol=1e-6
    )


def test_tables_keep_their_metadata_and_columns():
    x, mask, batches = screen(seed=10, d=3)
    table = pd.DataFrame(x, columns=["b", "a", "c"], index=np.arange(len(x)) + 100)
    table.insert(1, "Metadata_control", mask)
    table["Metadata_experiment"], table["Metadata_plate"] = "e", batches
    for out in (
        tvn(table, "Metadata_control", "Metadata_plate"),
        tvn(table, mask, ["Metadata_experiment", "Metadata_plate"]),
        tvn(table, mask, list(batches)),
    ):
        assert list(out.columns) == list(table.columns)
        assert out.index.equals(table.index)
        np.testing.assert_allclose(out[["b", "a", "c"]], tvn(x, mask, batches), rtol=0, atol=1e-12)
    assert out.filter(like="Metadata_").equals(table.filter(like="Metadata_"))
    fitted = fit_whitening(table[mask])
    with pytest.raises(DataError, match="feature 0 is 'a', but whitening was fitted on 'b'"):
        fitted.apply(table[["a", "b", "c"]])
    with pytest.raises(DataError, match="rows have 2 features, but whitening was fitted on 3"):
        fitted.apply(x[:, :2])


def test_float32_stays():
    x, mask, batches = screen(seed=11)
    out = tvn(x.astype(np.float32), mask, batches)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, tvn(x, mask, batches), atol=1e-3)


def test_many_features_do_not_need_a_square_matrix():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 20_000)).astype(np.float32)  # 3.2 GB were D x D made
    mask = np.arange(64) % 2 == 0
    out = tvn(x, mask, np.arange(64) // 16)
    assert np.isfinite(out).all()


def test_bad_input_is_named():
    x, mask, batches = screen(seed=12)
    lone = mask & ~((batches == "w1") & (np.cumsum(mask & (batches == "w1")) > 1))
    with pytest.raises(DataError, match="batch 'w1' has 1 control rows"):
        tvn(x, lone, batches)
    with pytest.raises(DataError, match="batch 'w2' has 0 control rows"):
        align(x, mask & (batches != "w2"), batches)
    with pytest.raises(DataError, match="none of the 120 rows is a control"):
        whiten(x, np.zeros(120, bool))
    with pytest.raises(DataError, match="true or false"):
        whiten(x, np.ones(120))
    with pytest.raises(DataError, match="119 controls for 120 rows"):
        whiten(x, mask[1:])
    with pytest.raises(DataError, match="all 5 control rows are the same"):
        fit_whitening(np.full((5, 3), 0.1))
    with pytest.raises(DataError, match="1 control row"):
        fit_whitening(np.ones((1, 3)))
    with pytest.raises(ConfigError, match="regularization=-1"):
        whiten(x, mask, -1.0)
    with pytest.raises(ConfigError, match="regularization=0"):
        align(x, mask, batches, 0.0)
    broken = x.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="row 3 has nan in feature '2'"):
        whiten(broken, mask)


def test_batches_are_the_same_whatever_their_names_are_written_as():
    x, mask, batches = screen(seed=13)
    expected = tvn(x, mask, batches)
    numbers = np.array([int(b[1:]) for b in batches])
    for written in (
        numbers,
        numbers.astype(float),
        [f"{b} " if i % 2 else b for i, b in enumerate(batches)],
        np.array(batches, "S"),
        pd.Series(batches, dtype="category"),
        pd.Series(numbers, dtype="Int64"),
    ):
        np.testing.assert_array_equal(tvn(x, mask, written), expected)
    with pytest.raises(DataError, match="row 4 has nothing in column 'batch'"):
        tvn(x, mask, ["NA" if i == 4 else b for i, b in enumerate(batches)])
    with pytest.raises(DataError, match="batch is written 'w0' in row 0 and 'W0' in row 3"):
        tvn(x, mask, ["W0" if i == 3 else b for i, b in enumerate(batches)])


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e35, 1e100, 1e140])
def test_whitening_does_not_depend_on_the_unit(size):
    x, mask, _ = screen(seed=5)
    dtype = np.float32 if 1e-30 <= size <= 1e35 else np.float64
    np.testing.assert_allclose(whiten((x * size).astype(dtype), mask), whiten(x.astype(dtype), mask), rtol=0, atol=2e-4)


@pytest.mark.parametrize("how", [whiten, align, tvn, normalize, aggregate])
@pytest.mark.parametrize(("size", "dtype"), [(1e200, float), (1e307, float), (1e-170, float), (1e38, np.float32)])
def test_what_numbers_cannot_hold_is_an_error_or_right_and_no_warning(how, size, dtype):
    x, mask, batches = screen(seed=5)
    x = np.clip(x, -3, 3)
    x[4] *= size
    table = pd.DataFrame(x.astype(dtype), columns=[f"f{i}" for i in range(x.shape[1])])
    table.insert(0, "Metadata_batch", batches)
    table.insert(1, "Metadata_control", np.asarray(mask, bool))
    arguments = {
        aggregate: ("Metadata_batch",),
        normalize: ("Metadata_control", "Metadata_batch"),
        whiten: ("Metadata_control", 1e-20),
    }.get(how, ("Metadata_control", "Metadata_batch", 1e-20))
    with np.errstate(all="raise", under="ignore"):
        try:
            done = how(table, *arguments)
        except DataError as error:
            message = str(error)
        else:
            message = "" if np.isfinite(done.filter(like="f").to_numpy()).all() else "not finite"
    assert not message or "no number can hold" in message or "cannot hold" in message


def test_controls_that_hardly_vary_are_not_divided_by_nothing():
    x, mask, _ = screen(seed=5)
    with pytest.raises(DataError, match="vary by less than 1e-140"):
        whiten(x * 1e-170, mask)
