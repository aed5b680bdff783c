"""Permutation tests, against a slow loop, listed arrangements, and what chance gives."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import f_oneway, kstest

from biomass.judgement.additive import Groups
from biomass.judgement.permutations import (
    compare_spread,
    drawn_in,
    exchange_residuals,
    exchange_units,
    exchange_wells,
)


def test_all_arrangements_of_few_units_are_counted() -> None:
    rng = np.random.default_rng(3)
    values, home = rng.standard_normal((6, 2)), np.array([0, 0, 0, 1, 1, 1])
    values[:3] += 1

    def between(codes: np.ndarray) -> float:
        return sum(3 * ((values[codes == one].mean(0) - values.mean(0)) ** 2).sum() for one in (0, 1))

    slow = np.mean([between(home[list(order)]) >= between(home) - 1e-9 for order in permutations(range(6))])
    chance = exchange_units(values, Groups.of(home), 0)
    assert np.isclose(chance.p, slow)
    assert np.isclose(chance.least, 2 / math.comb(6, 3))
    assert chance.ways == 10


def test_units_of_unlike_groups_have_more_arrangements() -> None:
    assert (
        exchange_units(np.random.default_rng(0).standard_normal((5, 1)), Groups.of(np.array([0, 0, 1, 1, 1])), 0).ways
        == 10
    )


def test_hundreds_of_groups_of_one_size_are_no_overflow() -> None:
    home = np.concatenate([np.arange(300), [0]])
    chance = exchange_units(np.random.default_rng(0).standard_normal((301, 1)), Groups.of(home), 0)
    assert 0 < chance.least <= chance.p
    few = np.concatenate([np.arange(20), [0]])
    assert exchange_units(np.random.default_rng(0).standard_normal((21, 1)), Groups.of(few), 0).least > 0.004


def test_wells_are_exchanged_within_strata_alone() -> None:
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], 50)
    groups = np.where(rng.random(100) < np.where(strata == 0, 0.8, 0.2), 0, 1)  # groups hold unlike strata
    values = rng.standard_normal((100, 3)) + 5 * strata[:, None]
    assert exchange_wells(values, Groups.of(groups), Groups.of(strata), 0).p > 0.05
    assert exchange_wells(values, Groups.of(groups), Groups.of(np.zeros(100)), 0).p < 0.01


def test_p_of_wells_is_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(1)
    groups, strata = Groups.of(np.tile([0, 1, 2], 20)), Groups.of(np.repeat(np.arange(6), 10))
    found = [exchange_wells(rng.standard_t(3, (60, 2)), groups, strata, seed).p for seed in range(40)]
    assert kstest(found, "uniform").pvalue > 0.01


def test_p_of_residuals_sees_what_they_depend_on() -> None:
    rng = np.random.default_rng(1)
    covariate = rng.standard_normal((200, 1))
    covariate -= covariate.mean()
    bases = {"there": covariate / np.linalg.norm(covariate)}
    noise = rng.standard_normal((200, 2))
    one = Groups.of(np.zeros(200))
    assert exchange_residuals(noise + 0.5 * covariate, 1, bases, one, 0)["there"].p < 0.01
    assert exchange_residuals(noise, 1, bases, one, 0)["there"].p > 0.05


def test_one_direction_is_the_usual_f_test() -> None:
    values = np.random.default_rng(0).standard_normal((9, 1))
    expected = f_oneway(*np.split(values[:, 0], 3)).pvalue
    assert np.isclose(compare_spread(values, Groups.of(np.repeat([0, 1, 2], 3))).p, expected)


@pytest.mark.parametrize("far", [10.0, 1e6])
def test_far_wells_are_drawn_in(far: float) -> None:
    values = np.vstack([np.random.default_rng(0).standard_normal((50, 3)), np.full((1, 3), far)])
    near = drawn_in(values)
    assert np.linalg.norm(near[-1]) < 10
    assert np.allclose(near[0] / np.linalg.norm(near[0]), values[0] / np.linalg.norm(values[0]))
