"""The median polish against a slow one, and what it must remove and leave."""

import numpy as np
import pytest

from biomass.evaluation.polish import LEAST, PlateEffects, median_polish


def slow_polish(table, rounds=10):
    """Rows, then columns, one after the other, for one table with None where there is no well."""
    rest = [list(row) for row in table]
    rows, columns, overall = [0.0] * len(rest), [0.0] * len(rest[0]), 0.0
    size = np.inf
    for _ in range(rounds):
        for i, row in enumerate(rest):
            known = [x for x in row if x is not None]
            change = float(np.median(known)) if known else 0.0
            rows[i] += change
            rest[i] = [None if x is None else x - change for x in row]
        change = float(np.median(rows))
        overall, rows = overall + change, [r - change for r in rows]
        for j in range(len(columns)):
            known = [row[j] for row in rest if row[j] is not None]
            change = float(np.median(known)) if known else 0.0
            columns[j] += change
            for row in rest:
                row[j] = None if row[j] is None else row[j] - change
        change = float(np.median(columns))
        overall, columns = overall + change, [c - change for c in columns]
        before, size = size, sum(abs(x) for row in rest for x in row if x is not None)
        if before - size <= 1e-3 * size:
            break
    return overall, rows, columns, rest


def test_it_is_the_slow_one_for_every_feature():
    values = np.random.default_rng(0).normal(size=(5, 6, 9)) + np.arange(9)
    values[:, 2, 3:5] = np.nan
    values[3, 0, 0] = np.nan  # of one feature alone
    found = median_polish(values)
    for i, table in enumerate(values):
        overall, rows, columns, rest = slow_polish([[None if np.isnan(x) else x for x in row] for row in table])
        assert found.overall[i] == pytest.approx(overall)
        np.testing.assert_allclose(found.rows[i], rows, atol=1e-12)
        np.testing.assert_allclose(found.columns[i], columns, atol=1e-12)
        np.testing.assert_allclose(found.residuals[i], np.array(rest, float), atol=1e-12)
    whole = found.overall[:, None, None] + found.rows[:, :, None] + found.columns[:, None, :] + found.residuals
    np.testing.assert_allclose(whole, values, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_row_and_column_effects_go_and_hits_stay(dtype):
    rng = np.random.default_rng(1)
    planted = rng.normal(size=(4, 1, 1)) + rng.normal(size=(4, 8, 1)) + rng.normal(size=(4, 1, 12))
    hits = np.zeros((8, 12))
    hits[[1, 3, 6], [2, 7, 11]] = 40.0, -25.0, 9.0
    values = (planted + hits).astype(dtype)
    values[:, [0, 5, 7], [0, 4, 9]] = np.nan  # empty wells
    rest = median_polish(values).residuals
    known = ~np.isnan(values)
    np.testing.assert_allclose(
        rest[known], np.broadcast_to(hits, rest.shape)[known], atol=1e-6 if dtype == np.float64 else 1e-5
    )


def test_a_row_of_too_few_wells_keeps_what_is_its_own():
    values = np.zeros((1, 8, 12))
    values[0, 1:] = np.nan
    values[0, 1, :3] = 5.0  # three wells that share a row
    few, many = (median_polish(values, least).residuals[0, 1, :3] for least in (LEAST, 1))
    np.testing.assert_allclose(few, 5.0)
    np.testing.assert_allclose(many, 0.0)


def test_scores_are_residuals_in_robust_standard_deviations():
    rng = np.random.default_rng(2)
    row, column = (one.ravel() for one in np.indices((16, 24)))
    values = (rng.normal(size=(384, 3)) * [1, 10, 0.1] + row[:, None]).astype(np.float32)
    values = np.c_[values, np.full(384, 3.0, np.float32)]
    effects = PlateEffects.of(values, row, column)
    scores = effects.scores(values, row, column)
    np.testing.assert_allclose(1.4826 * np.median(abs(scores[:, :3]), axis=0), 1, atol=0.01)
    assert (scores[:, 3] == 0).all()
    assert effects.swept == 40
    beyond = effects.scores(values[:1], np.array([30]), np.array([-1]))  # a place of which nothing is known
    np.testing.assert_allclose(beyond[0], (values[0] - effects.overall) / effects.spread, rtol=1e-5)
