"""What is exchanged with what, and what chance then is."""

import itertools

import numpy as np
import pytest
from planted_wells import planted

from biomass.errors import CannotJudgeError
from biomass.judgement import shuffles
from biomass.judgement.neighbours import even_sample


def rows_of(profiles):
    return np.arange(len(profiles))


def test_plates_are_exchanged_among_wells_of_a_treatment():
    profiles = planted(plates=3, same_layout=False)
    labels, finest = shuffles.plates(profiles, rows_of(profiles), 0, "plate")
    assert finest == 0
    assert (labels[0] == profiles.codes("plate")).all()
    assert (labels[1:] != labels[0]).any(axis=1).all()
    for treatment in np.unique(profiles.codes("treatment")):
        mine = profiles.codes("treatment") == treatment
        assert (np.sort(labels[:, mine], axis=1) == np.sort(labels[0, mine])).all()


def test_treatments_of_one_plate_only_are_exchanged_with_each_other():
    profiles = planted(plates=3)
    profiles.wells["treatment"] += profiles.wells["plate"]
    assert len(np.unique(shuffles.exchangeable(profiles, rows_of(profiles), profiles.codes("plate")))) == 1
    labels = shuffles.plates(profiles, rows_of(profiles), 0, "plate")[0]
    assert 0.2 < (labels[1:] == labels[0]).mean() < 0.5


def test_where_treatments_are_not_known_plates_are_exchanged_at_a_place():
    profiles = planted(plates=3)
    profiles.wells.drop(columns=["treatment", "compound"], inplace=True)
    labels = shuffles.plates(profiles, rows_of(profiles), 0, "plate")[0]
    for way in labels:
        assert len({*zip(way, profiles.wells["well"], strict=True)}) == len(profiles)


def test_experiments_are_exchanged_among_whole_plates():
    profiles = planted(plates=6, experiments=3)
    labels, finest = shuffles.plates(profiles, rows_of(profiles), 0, "experiment")
    assert finest == 1 / 15  # six plates in three pairs
    for way in labels:
        pairs = {*zip(way, profiles.codes("plate"), strict=True)}
        assert len(pairs) == 6
        assert np.bincount([label for label, _ in pairs]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("labels", ["aabb", "aab", "aabbcc", "abc", "aaabb", "aabbc"])
def test_arrangements_are_those_that_can_be_listed(labels):
    def partition(order):
        return frozenset(frozenset(i for i, one in enumerate(order) if one == label) for label in order)

    listed = {partition(order) for order in itertools.permutations(labels)}
    assert shuffles.arrangements(np.array([*labels])) == len(listed)


@pytest.mark.parametrize(
    ("role", "change", "message"),
    [
        ("plate", {"plate": "P"}, "only one plate"),
        ("plate", {"plate": ""}, "no plate is known"),
        ("experiment", {"experiment": "E"}, "only one experiment"),
        ("source", {}, "which source"),
    ],
)
def test_what_cannot_be_compared_is_said(role, change, message):
    profiles = planted(plates=2)
    profiles.wells[[*change]] = [*change.values()]
    with pytest.raises(CannotJudgeError, match=message):
        shuffles.plates(profiles, even_sample(profiles, 1000, 0, role)[0], 0, role)
    with pytest.raises(CannotJudgeError, match="every experiment has one plate"):
        shuffles.plates(planted(plates=4, experiments=4), rows_of(planted(plates=4)), 0, "experiment")


def test_p_is_that_of_one_more_value_of_a_normal_sample():
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(2000, 21))
    for better in ("higher", "lower"):
        p = np.array([shuffles.against_chance(row, better)[1] for row in normal])
        np.testing.assert_allclose(np.quantile(p, [0.01, 0.05, 0.5]), [0.01, 0.05, 0.5], atol=0.02)
    assert shuffles.against_chance(np.array([5.0, 0, 1, np.nan, 0.5]), "lower")[1] > 0.9
    assert shuffles.against_chance(np.array([5.0, 0, 1, 0.5]), "higher", finest=0.25)[1] == 0.25
    null, p = shuffles.against_chance(np.array([0.5, 0.5, 0.5, 0.5]), "higher")
    assert null == 0.5
    assert np.isnan(p)  # nothing could be exchanged
