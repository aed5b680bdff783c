"""The additive model of plates and treatments, against ordinary least squares on dummies."""

import numpy as np
import pytest
from simulated_profiles import simulated
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from biomass.errors import CannotJudgeError
from biomass.judgement.additive import Groups, fit_additive, judged_wells, leading_components


def dummies(*groups: Groups) -> np.ndarray:
    return np.hstack([np.eye(each.count)[each.codes] for each in groups])


@pytest.mark.parametrize("kinds", [3, 12])  # with 12, some plates share nothing
def test_the_fit_is_that_of_least_squares(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    plate, treatment = Groups.of(rng.integers(5, size=30)), Groups.of(rng.integers(kinds, size=30))
    values = rng.standard_normal((30, 4))
    fit = fit_additive(values, plate, treatment)
    design = dummies(plate, treatment)
    expected = values - design @ np.linalg.pinv(design) @ values
    assert np.allclose(fit.residual, expected)
    assert fit.rank == np.linalg.matrix_rank(design)
    assert np.isclose(fit.noise, (expected**2).sum() / (30 - fit.rank))


def test_plates_without_a_treatment_in_common_cannot_be_compared() -> None:
    plate, treatment = Groups.of(np.array([0, 0, 1, 1, 2, 2])), Groups.of(np.array([0, 1, 1, 2, 3, 4]))
    parts = fit_additive(np.zeros((6, 1)), plate, treatment).parts
    assert parts[0] == parts[1] != parts[2]


def test_the_covariance_of_effects_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    plate, treatment = Groups.of(rng.integers(4, size=40)), Groups.of(rng.integers(5, size=40))
    inverse = fit_additive(rng.standard_normal((40, 1)), plate, treatment).inverse
    design = dummies(plate, treatment)
    slow = np.linalg.pinv(design.T @ design)[:4, :4]
    contrast = np.array([1.0, -1, 0, 0])
    assert np.isclose(contrast @ inverse @ contrast, contrast @ slow @ contrast)


def test_components_are_those_of_scikit_learn() -> None:
    features = np.random.default_rng(1).standard_normal((60, 7)) @ np.diag([1, 2, 3, 4, 5, 6, 0])
    values, held = leading_components(features.astype(np.float32), np.arange(60))
    expected = PCA().fit_transform(StandardScaler().fit_transform(features[:, :6]))
    assert np.allclose(np.abs(values), np.abs(expected), atol=1e-3)
    assert np.isclose(held, 1)


def test_components_of_all_blocks_are_one() -> None:
    features = np.random.default_rng(2).standard_normal((9000, 5)).astype(np.float32)
    rows = np.arange(0, 9000, 2)
    assert np.allclose(leading_components(features, rows)[0], leading_components(features[rows], np.arange(4500))[0])


def test_wells_of_which_too_little_is_known_are_left_out_and_counted() -> None:
    profiles = simulated(experiments=1, plates=2, features=4)
    profiles.wells.loc[:4, "treatment"] = ""
    profiles.wells["control"] = ""
    wells = judged_wells(profiles)
    assert len(wells.rows) == len(profiles) - 5
    assert "5 wells" in wells.notes[0]


def test_profiles_that_do_not_vary_cannot_be_judged() -> None:
    profiles = simulated(experiments=1, plates=2, features=3)
    with pytest.raises(CannotJudgeError, match="nothing varies"):
        judged_wells(profiles.with_features(np.ones((len(profiles), 3))))


def test_the_answer_is_kept_for_the_same_profiles_alone() -> None:
    one, other = simulated(experiments=1, plates=2, features=3), simulated(experiments=1, plates=2, features=3, seed=1)
    assert judged_wells(one) is judged_wells(one)
    assert judged_wells(other) is not judged_wells(one)
    assert not np.allclose(judged_wells(other).values, judged_wells(one).values)
