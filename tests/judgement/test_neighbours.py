"""Nearest neighbours against comparing all pairs, and the samples of large tables."""

import gc

import numpy as np
import pytest
from planted_wells import planted
from scipy.spatial.distance import cdist

from biomass.errors import CannotJudgeError, ConfigError
from biomass.judgement import neighbours
from biomass.judgement.neighbours import (
    even_sample,
    nearest,
    plate_graph,
    plate_sample,
    treatment_graph,
    treatment_sample,
)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_those_of_all_pairs(metric, offset, monkeypatch):
    monkeypatch.setattr(neighbours, "_VALUES", 1000)  # blocks of 9 rows
    x = np.random.default_rng(0).normal(size=(111, 7)) + (offset if metric == "euclidean" else 0)
    everything = cdist(x, x, metric)
    np.fill_diagonal(everything, np.inf)
    indices, distances = nearest(x, 12, metric)
    assert (indices == np.argsort(everything, axis=1)[:, :12]).all()
    np.testing.assert_allclose(distances, np.sort(everything, axis=1)[:, :12], rtol=2e-3 if offset else 1e-4)


def test_of_equally_near_wells_the_first_is_taken_and_a_well_is_not_its_own_neighbour():
    indices, distances = nearest(np.ones((5, 3)), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert np.abs(distances).max() < 1e-6
    nothing = np.zeros((3, 2))
    nothing[0, 0] = 1
    assert nearest(nothing, 1)[1].tolist() == [[1], [1], [1]]
    with pytest.raises(ConfigError, match="'manhattan'"):
        nearest(nothing, 1, "manhattan")


def test_an_even_sample_takes_as_many_of_each_plate_as_there_are():
    profiles = planted(plates=5, rows=8, columns=12)
    profiles.wells.loc[:85, "plate"] = ""  # leaves 10 of the first plate
    rows, note = even_sample(profiles, 200, seed=0)
    counts = profiles.wells["plate"].iloc[rows].value_counts().to_dict()
    assert counts.pop("P00") == 10
    assert sorted(counts.values()) == [47, 47, 48, 48]
    assert "86 wells have no plate" in note
    assert "200 of 394 wells of 5 plates" in note
    assert (even_sample(profiles, 200, seed=0)[0] == rows).all()
    assert (even_sample(profiles, 200, seed=1)[0] != rows).any()
    assert even_sample(profiles, 394, seed=0)[1] == "86 wells have no plate"


def test_a_sample_takes_rather_fewer_plates_than_few_wells_of_each():
    profiles = planted(plates=20, rows=4, columns=6)
    rows, note = even_sample(profiles, 120, seed=0)
    assert profiles.wells["plate"].iloc[rows].value_counts().tolist() == [12] * 10
    assert "of 10 plates" in note
    rows, note = plate_sample(profiles, 120, seed=0)
    assert profiles.wells["plate"].iloc[rows].value_counts().tolist() == [24] * 5
    assert "120 of 480 wells of 5 plates" in note
    rows, _ = plate_sample(profiles, 30, seed=0)
    assert profiles.wells["plate"].iloc[rows].value_counts().tolist() == [15] * 2


def test_a_sample_of_treatments_takes_whole_ones_and_no_controls():
    profiles = planted(plates=10, treatments=20)
    profiles.wells.loc[profiles.wells.index[profiles.wells["treatment"] == "T003"][1:], "treatment"] = ""
    rows, note = treatment_sample(profiles, 150, seed=0)
    assert not profiles.negative[rows].any()
    assert "T003" not in set(profiles.wells["treatment"].iloc[rows])
    assert "1 wells are the only one of their treatment" in note
    counts = profiles.wells["treatment"].iloc[rows].value_counts()
    assert (counts == 7).all()  # a twentieth of the limit
    assert len(counts) == 19
    many = planted(plates=4, treatments=40)
    rows, note = treatment_sample(many, 102, seed=0)
    counts = many.wells["treatment"].iloc[rows].value_counts()
    assert counts.tolist() == [4] * 25  # the limit cuts the 26th
    assert "100 of 160 wells, 25 treatments" in note
    alone = profiles.take(np.arange(3))
    alone.wells["treatment"] = ["a", "b", "c"]
    with pytest.raises(CannotJudgeError, match="0 wells"):
        treatment_graph(alone, 0)


def test_metrics_share_a_graph_as_long_as_the_profiles_are_there():
    profiles = planted()
    gc.collect()
    held = len(neighbours._shared)
    graph = plate_graph(profiles, 0)
    assert plate_graph(profiles, 0, "experiment").indices is graph.indices
    assert treatment_graph(profiles, 0).indices is not graph.indices
    other = profiles.with_features(profiles.features[:, ::2])
    assert (plate_graph(other, 0).indices != graph.indices).any()
    assert len(neighbours._shared) == held + 2
    del profiles, other
    gc.collect()
    assert len(neighbours._shared) == held
