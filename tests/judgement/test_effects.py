"""Effects are named where they are planted, and nowhere else; what cannot be told is said."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from simulated_profiles import any_screen, simulated

from biomass.judgement import permutations
from biomass.judgement.effects import NAMES, TECHNICAL, UNKNOWN, Effect, find_effects
from biomass.judgement.table import Profiles
from biomass.judgement.verdict import say

KINDS = ("plate", "experiment", "edge", "none")
PAIR = ("profiles", "none")


@pytest.fixture(autouse=True)
def _draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick tests draw fewer arrangements."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(permutations, "DRAWS", 199)


def named(profiles: Profiles) -> set[str]:
    """The effects that the verdict names."""
    return set(say(pd.DataFrame(), {PAIR: find_effects(profiles)}).named)


def without(profiles: Profiles, *roles: str) -> Profiles:
    return Profiles(profiles.wells.drop(columns=list(roles)), profiles.features, profiles.names)


@pytest.mark.parametrize("kind", [*KINDS, "row", "column", "plate+edge"])
def test_what_is_planted_is_named(kind: str) -> None:
    assert named(simulated(**any_screen(kind, 3) | {"format": 96, "wells": 80, "features": 16, "plates": 3})) == set(
        kind.split("+")
    ) - {"none"}


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 5000])  # chosen on the first seeds, confirmed on the others
def test_the_planted_effect_is_named_in_95_of_100_screens(first: int) -> None:
    right = [
        named(simulated(**any_screen(kind, seed))) == ({kind} - {"none"})
        for seed, kind in enumerate(KINDS * 25, start=first)
    ]
    assert sum(right) >= 95


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [
        {"experiments": 4, "plates": 4},
        {"experiments": 4, "plates": 4, "heavy": 3.0, "layout": "fixed"},
        {"experiments": 2, "plates": 2},
    ],
)
def test_p_is_uniform_where_nothing_is_planted(design: dict[str, object]) -> None:
    small = {
        "features": 12,
        "factors": 4,
        "wells": 40,
        "controls": 10,
        "compounds": 10,
        "mechanisms": 4,
        "treatment": 0.0,
    }
    found = [find_effects(simulated(seed=seed, **small, **design)) for seed in range(400)]
    for name in NAMES:
        p = [one[name].p for one in found]
        assert kstest(p, "uniform").pvalue > 0.001, name  # 7 effects, 3 designs
        assert np.mean(np.array(p) <= 0.05) < 0.09, name  # 0.05, and 3.7 standard errors


@pytest.mark.slow
def test_p_of_treatments_is_uniform_where_labels_are_shuffled_within_plates() -> None:
    p: dict[str, list[float]] = {"treatment": [], "mechanism": []}
    for seed in range(200):
        small = {"features": 12, "wells": 40, "compounds": 10, "mechanisms": 4, "treatment": 2.0, "plate": 1.0}
        profiles = shuffled(simulated(seed=seed, experiments=2, plates=3, **small), seed)
        effects = find_effects(profiles)
        for name, known in p.items():
            known.append(effects[name].p)
    for name, known in p.items():
        assert kstest(known, "uniform").pvalue > 0.005, name


def shuffled(profiles: Profiles, seed: int) -> Profiles:
    """Labels, exchanged within plates."""
    rng, wells = np.random.default_rng(seed), profiles.wells.copy()
    about = ["treatment", "compound", "mechanism", "control"]
    for rows in wells.groupby("plate").indices.values():
        wells.loc[rows, about] = wells.loc[rng.permutation(rows), about].to_numpy()
    return Profiles(wells, profiles.features, profiles.names)


def test_p_is_about_uniform_without_effects() -> None:
    small = {"experiments": 2, "plates": 3, "features": 6, "wells": 30, "controls": 6, "compounds": 8, "treatment": 0.0}
    found = [find_effects(simulated(seed=seed, **small)) for seed in range(8)]
    p = np.array([[one[name].p for name in ("plate", "edge", "row", "column", "treatment")] for one in found])
    assert kstest(p.ravel(), "uniform").pvalue > 0.001
    assert not any(one[name].there for one in found for name in TECHNICAL)


def test_shares_are_those_that_were_planted() -> None:
    profiles = simulated(
        experiments=10, plates=4, features=40, wells=60, plate=1.0, experiment=1.5, treatment=1.0, seed=2
    )
    found = find_effects(profiles)
    total = 1 + 1 + 1.5**2 + 1
    assert np.isclose(found["plate"].share, 1 / total, atol=0.05)
    assert np.isclose(found["experiment"].share, 1.5**2 / total, atol=0.15)
    assert np.isclose(found["treatment"].share, 1 / total, atol=0.08)
    assert np.isclose(found["plate"].deviation, 1, atol=0.15)


def test_treatments_that_only_some_plates_hold_are_no_plate_effect() -> None:
    profiles = simulated(spread="plate", treatment=2.0, features=16)
    assert not named(profiles)
    blind = find_effects(without(profiles, "treatment", "compound", "control"))
    assert blind["plate"].there  # nobody can tell them apart then


@pytest.mark.parametrize(
    ("design", "effect", "why"),
    [
        ({"experiments": 1, "plates": 1}, "plate", "one plate"),
        ({"experiments": 1, "plates": 1}, "experiment", "one experiment"),
        ({"experiments": 1, "plates": 3}, "experiment", "one experiment"),
        ({"experiments": 3, "plates": 1}, "experiment", "every experiment is one plate"),
        ({"layout": "fixed", "compounds": 94, "controls": 2}, "edge", "same places"),
        ({"spread": "experiment", "controls": 0}, "experiment", "no treatment in common"),
        ({"compounds": 1, "controls": 0, "mechanisms": 1}, "treatment", "one treatment"),
        ({"compounds": 2, "mechanisms": 2}, "mechanism", "nothing to compare"),
    ],
)
def test_what_a_design_cannot_tell_is_said(design: dict[str, object], effect: str, why: str) -> None:
    found = find_effects(simulated(features=6, **design))[effect]
    assert (found.word, why in found.reason) == (UNKNOWN, True), found.reason


@pytest.mark.parametrize(
    ("role", "effect"), [("plate", "plate"), ("experiment", "experiment"), ("row", "row"), ("mechanism", "mechanism")]
)
def test_what_no_column_says_cannot_be_told(role: str, effect: str) -> None:
    found = find_effects(without(simulated(features=6), role))
    assert found[effect].word == UNKNOWN
    assert found["treatment"].there


def test_few_plates_have_no_small_p() -> None:
    found = find_effects(simulated(experiments=2, plates=2, plate=0.8, experiment=0.8, seed=1))["experiment"]
    assert not found.there
    assert "3 ways" in found.reason
    assert "0.33" in found.reason


def test_an_edge_effect_that_is_not_the_same_on_all_plates_is_no_plate_effect() -> None:
    assert named(simulated(edge=1.5, layout="fixed", plates=4, features=16)) == {"edge"}


def test_every_effect_is_there_whatever_profiles_are() -> None:
    profiles = simulated(experiments=1, plates=1, features=2)
    for odd in (profiles.take(np.arange(2)), profiles.with_features(np.zeros((len(profiles), 2)))):
        found = find_effects(odd)
        assert tuple(found) == NAMES
        assert {effect.word for effect in found.values()} == {UNKNOWN}


def test_an_effect_is_there_if_it_has_a_size() -> None:
    assert [Effect("plate", word).there for word in ("none", "weak", "strong", UNKNOWN)] == [False, True, True, False]
