"""Shares of variance, against closed forms and chance."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_profiles import simulated

from biomass.judgement import permutations
from biomass.judgement.scores import score
from biomass.judgement.variance import METRICS


@pytest.fixture(autouse=True)
def _draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutations, "DRAWS", 199)


def test_shares_of_a_balanced_screen_are_those_of_the_analysis_of_variance() -> None:
    profiles = simulated(
        experiments=1, plates=4, wells=40, controls=8, compounds=4, features=5, factors=2, plate=1.0, layout="fixed"
    )
    values = profiles.features.astype(float)
    values = (values - values.mean(0)) / values.std(0)
    plate, treatment = profiles.codes("plate"), profiles.codes("treatment")

    def squares(codes: np.ndarray) -> float:
        return sum((values[codes == one].mean(0) ** 2).sum() * (codes == one).sum() for one in np.unique(codes))

    total, freedom = (values**2).sum(), len(values) - 4 - 5 + 1
    noise = (total - squares(plate) - squares(treatment)) / freedom
    for key, codes, groups in (("variance_plate", plate, 4), ("variance_treatment", treatment, 5)):
        expected = (squares(codes) - (groups - 1) * noise) / total
        found = score(key, METRICS[key], profiles)
        assert np.isclose(found.value, expected, rtol=1e-3)
        assert found.low <= found.value <= found.high
        assert found.p == 0.005


def test_nothing_is_explained_by_chance() -> None:
    found = [
        [
            score(key, metric, simulated(seed=seed, treatment=0.0, features=8, wells=60)).value
            for key, metric in METRICS.items()
        ]
        for seed in range(3)
    ]
    assert (np.abs(np.mean(found, 0)) < 0.01).all()


@pytest.mark.parametrize("name", ["plate", "experiment", "edge", "row", "column", "treatment"])
def test_each_share_grows_with_its_own_effect(name: str) -> None:
    few, many = (
        score(
            name, METRICS[f"variance_{name}"], simulated(features=8, plates=2, **{"treatment": 0.5, name: size})
        ).value
        for size in (0.5, 2.0)
    )
    assert many > 2 * few > 0


def test_what_cannot_be_told_is_a_note() -> None:
    profiles = simulated(experiments=1, plates=1, features=4, layout="fixed", compounds=94, controls=2)
    for name in ("plate", "experiment", "edge", "row"):
        found = score(name, METRICS[f"variance_{name}"], profiles)
        assert np.isnan(found.value)
        assert found.note


def test_treatments_without_replicates_and_tables_without_plates_are_notes() -> None:
    profiles = simulated(experiments=1, plates=1, features=4, layout="fixed", compounds=94, controls=2)
    single = profiles.take(np.unique(profiles.codes("treatment"), return_index=True)[1])
    assert np.isnan(score("treatment", METRICS["variance_treatment"], single).value)
    no_plate = replace(profiles, wells=profiles.wells.drop(columns="plate"))
    assert "no column says the plate" in score("plate", METRICS["variance_plate"], no_plate).note
