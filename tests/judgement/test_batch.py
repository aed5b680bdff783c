"""Metrics of batch effects: against libraries and closed forms, on planted effects, and where there are none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from planted_wells import planted
from scipy.sparse import csr_matrix
from scipy.stats import chisquare, kstest
from sklearn.metrics import silhouette_samples

from biomass.errors import CannotJudgeError
from biomass.evaluation.nearest import batch_mixing
from biomass.judgement import batch, neighbours, predicted
from biomass.judgement.batch import METRICS
from biomass.judgement.mixing import connectivity, kbet, lisi, lisi_weights, silhouettes
from biomass.judgement.neighbours import nearest
from biomass.judgement.scores import score, summarize
from biomass.judgement.table import Profiles

BATCH = [key for key, metric in METRICS.items() if metric.family == "batch"]
OF_PLATES = ["plate_predicted", "plate_bras", "plate_kbet", "plate_ilisi", "plate_neighbour"]
OF_EXPERIMENTS = [key.replace("plate", "experiment") for key in OF_PLATES]
OF_TREATMENTS = ["treatment_connectivity", "treatment_silhouette", "treatment_clisi", "treatment_neighbour"]


def scores(profiles, keys, seed=0):
    return {key: score(key, METRICS[key], profiles, seed) for key in keys}


# ---- the numbers


def labelled(count=90, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=count)
    return generator.normal(size=(count, 5)) + 0.5 * labels[:, None] + 1, labels


def test_silhouettes_are_those_of_scikit_learn():
    x, labels = labelled()
    np.testing.assert_allclose(silhouettes(x, labels), silhouette_samples(x, labels, metric="cosine"), atol=1e-5)
    x[3], labels[5] = 0, 9
    found, expected = silhouettes(x, labels), silhouette_samples(x, labels, metric="cosine")
    assert np.isnan(found[5])  # 0 in scikit-learn
    np.testing.assert_allclose(np.delete(found, 5), np.delete(expected, 5), atol=1e-5)


def test_the_chi_square_of_a_neighbourhood_is_that_of_scipy():
    x, labels = labelled()
    indices, _ = nearest(x, 20)
    expected = np.bincount(labels) / len(labels) * 20
    rejected = [chisquare(np.bincount(labels[row], minlength=4), expected).pvalue < 0.05 for row in indices]
    assert 0.1 < np.mean(rejected) < 0.9
    assert ((kbet(indices, labels) > 1) == rejected).all()


def test_the_effective_number_of_labels_of_equal_weights_is_known():
    weights = lisi_weights(np.ones((3, 4)), 4)
    np.testing.assert_allclose(weights, 0.25)
    indices = np.array([[1, 2, 3, 4], [1, 2, 3, 0], [3, 4, 3, 4]])
    assert lisi(indices, weights, np.array([0, 1, 2, 3, 3])).round(6).tolist() == [round(1 / 0.375, 6), 4, 1]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_weights_have_the_perplexity_that_is_asked_for(scale):
    distances = np.sort(np.random.default_rng(0).gamma(2, size=(50, 30)), axis=1)
    weights = lisi_weights(scale * distances, 10)
    entropy = -(weights * np.log(weights)).sum(1)
    np.testing.assert_allclose(np.exp(entropy), 10, rtol=1e-4)
    ratio = np.log(weights[:, [0]] / weights[:, [4, 9]]) / (distances[:, [4, 9]] - distances[:, [0]])
    np.testing.assert_allclose(ratio[:, 0], ratio[:, 1])  # exp(-b d)


def test_pieces_of_a_treatment_are_counted_by_hand():
    #       0-1-2   3-4, and 5 whose neighbours are others'
    indices = np.array([[1], [0], [1], [4], [3], [0], [5]])
    assert connectivity(indices, np.array([0, 0, 0, 0, 0, 0, 1])).tolist() == [4 / 6, 1]
    assert connectivity(indices, np.array([0, 0, 0, 0, 0, 1, 0])).tolist() == [3 / 6, 1]


@pytest.mark.slow  # jax takes seconds to come
def test_metrics_are_those_of_scib_metrics():
    metrics = pytest.importorskip("scib_metrics")
    results = pytest.importorskip("scib_metrics.nearest_neighbors").NeighborsResults
    x, labels = labelled(200)
    other = np.random.default_rng(1).integers(3, size=200)
    indices, distances = nearest(x, 30)
    graph = results(indices=indices, distances=distances)
    with_self = results(indices=np.c_[np.arange(200), indices], distances=np.c_[np.zeros(200), distances])
    accepted, statistic, _ = metrics.kbet(graph, labels)
    assert (kbet(indices, labels) <= 1).mean() == pytest.approx(accepted)
    ratio = kbet(indices, labels)
    np.testing.assert_allclose(ratio / ratio.mean(), statistic / statistic.mean(), rtol=1e-4)
    weights = lisi_weights(distances, 10)
    expected = metrics.lisi_knn(with_self, labels, perplexity=10)
    np.testing.assert_allclose(lisi(indices, weights, labels), expected, rtol=1e-3)
    np.testing.assert_allclose(
        (1 + silhouettes(x, labels).mean()) / 2, metrics.silhouette_label(x, labels, metric="cosine"), rtol=1e-4
    )
    for function, others in ((metrics.silhouette_batch, "nearest"), (metrics.bras, "mean")):
        profiles = planted(plates=4, experiments=2, treatments=5, controls=5, plate=1.0)
        codes = profiles.codes("treatment"), profiles.codes("plate")
        expected = function(profiles.features, *codes, metric="cosine")
        found = batch._batch_silhouette("plate", others)(profiles, 0)
        assert summarize("", found).value == pytest.approx(expected, rel=1e-4)
    edges = csr_matrix((np.ones(200 * 3), (np.repeat(np.arange(200), 3), indices[:, :3].ravel())), shape=(200, 200))
    both = SimpleNamespace(knn_graph_distances=edges + edges.T)  # as scanpy's graph, which scib takes
    np.testing.assert_allclose(connectivity(indices[:, :3], other).mean(), metrics.graph_connectivity(both, other))


def test_mixing_is_that_of_the_evaluation():
    profiles = planted(plate=0.5, experiments=2)
    for role in ("plate", "experiment"):
        expected = batch_mixing(profiles.features, profiles.wells[role].to_numpy())
        found = score("", METRICS[f"{role}_neighbour"], profiles)
        assert found.value == pytest.approx(expected.share)
        if role == "plate":
            assert found.null == pytest.approx(expected.expected, abs=0.03)


# ---- what they say of screens


def effect(found):
    """Of a batch: how many times p is small."""
    return {key: each.p for key, each in found.items()}


def test_a_plate_effect_is_found_and_not_taken_for_one_of_experiments():
    found = scores(planted(plate=0.7, treatment=0.7, plates=12), METRICS)
    assert max(effect(found)[key] for key in OF_PLATES) < 1e-4
    assert min(effect(found)[key] for key in OF_EXPERIMENTS) > 0.01
    assert found["plate_predicted"].value > 0.4
    assert found["plate_predicted"].null == pytest.approx(1 / 12, abs=0.03)
    assert all(each.low <= each.value <= each.high for each in found.values())


def test_an_effect_of_experiments_is_found():
    found = scores(planted(experiment=1.0, plate=0.2, treatment=0.7, plates=12), OF_EXPERIMENTS)
    assert max(effect(found).values()) < 0.005
    assert found["experiment_predicted"].value > 0.6


@pytest.mark.parametrize("same_layout", [True, False])
def test_rows_are_predicted_where_rows_differ_only(same_layout):
    keys = ["row_predicted", "column_predicted"]
    layout = {"rows": 8, "columns": 12, "treatments": 40, "same_layout": same_layout}
    found = scores(planted(row=0.8, treatment=0.7, **layout), keys)
    assert found["row_predicted"].p < 1e-3
    assert found["row_predicted"].value > 0.3
    assert found["column_predicted"].p > 0.01
    none = scores(planted(treatment=3.0, **layout), keys)
    assert min(effect(none).values()) > 0.01
    assert none["row_predicted"].value < 0.25  # compounds, always at the same place, do not tell it


def test_plates_with_compounds_of_their_own_are_not_told_apart_by_these():
    profiles = planted(treatments=6, controls=0, treatment=0.0, plates=6)
    profiles.wells["treatment"] = profiles.wells["compound"] = profiles.wells["plate"] + profiles.wells["treatment"]
    profiles.wells["well"] = ""
    strong = np.random.default_rng(0).normal(size=(36, 10))[profiles.codes("compound")]
    found = score("", METRICS["plate_predicted"], profiles.with_features(profiles.features + 3 * strong))
    assert found.value < 0.3


def test_treatments_find_each_other_across_plates():
    found = scores(planted(treatment=1.0, plate=0.3), OF_TREATMENTS)
    assert max(effect(found).values()) < 1e-6
    assert found["treatment_neighbour"].null == pytest.approx(1 / 12, abs=0.02)
    assert found["treatment_neighbour"].value > 0.5
    assert found["treatment_clisi"].value < found["treatment_clisi"].null - 1
    assert found["treatment_connectivity"].n == 12


def test_without_effects_metrics_are_at_chance(monkeypatch):
    """Ten screens with treatments and no batch effect."""
    monkeypatch.setattr(predicted, "CROSSED", 2)  # to be quick
    keys = [key for key in BATCH if key != "treatment_connectivity"]
    found = [scores(planted(treatment=0.7, rows=5, plates=6, experiments=3, seed=i), keys, seed=i) for i in range(10)]
    excess = pd.DataFrame([{key: each[key].value - each[key].null for key in keys} for each in found])
    assert (excess.mean().abs() < 4 * excess.std() / np.sqrt(10)).all()
    p = pd.DataFrame([{key: each[key].p for key in keys} for each in found])
    assert (p < 0.01).to_numpy().mean() < 0.05
    assert 0.3 < p.to_numpy().mean() < 0.7


@pytest.mark.slow  # 200 screens
@pytest.mark.parametrize("effects", [{}, {"treatment": 1.0}, {"treatment": 1.0, "same_layout": False}])
def test_p_is_uniform_where_there_is_no_effect(effects):
    found = [scores(planted(seed=i, **effects), METRICS, seed=i) for i in range(200)]
    for key in METRICS:
        if "treatment" in effects and key in OF_TREATMENTS:
            continue
        p = np.array([each[key].p for each in found])
        assert kstest(p, "uniform").pvalue > 1e-3, key
        excess = np.array([each[key].value - each[key].null for each in found])
        assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(200), key


# ---- what cannot be judged, and large tables


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({"plate": "P"}, OF_PLATES, "only one plate"),
        ({"experiment": "E"}, OF_EXPERIMENTS, "only one experiment"),
        ({"plate": None}, OF_PLATES, "no column says which plate"),
        (
            {"treatment": None},
            [*OF_TREATMENTS, "plate_silhouette", "experiment_bras"],
            "no column says what a well was treated with",
        ),
        ({"treatment": ""}, OF_TREATMENTS, "no well has a known treatment"),
        ({"treatment": "DMSO", "compound": "DMSO"}, OF_TREATMENTS, "fewer than two treatments"),
        ({"row": None}, ["row_predicted"], "no column says in which row"),
        ({"row": 3}, ["row_predicted"], "all wells lie in one row"),
        ({"row": -1}, ["row_predicted"], "no well has a place"),
        ({"compound": "one", "treatment": "one", "control": "", "well": "A01"}, ["plate_predicted"], "no other wells"),
    ],
)
def test_what_cannot_be_judged_is_said_in_a_line(change, keys, message):
    profiles = planted(plates=4, rows=4)
    wells = profiles.wells.assign(**change).dropna(axis=1)
    profiles = Profiles(wells, profiles.features, profiles.names)
    for key in keys:
        with pytest.raises(CannotJudgeError, match=message):
            METRICS[key].measure(profiles, 0)
        assert "\n" not in score(key, METRICS[key], profiles).note
    rest = scores(profiles, METRICS.keys() - {*keys})
    assert sum(np.isfinite(each.value) for each in rest.values()) >= 5


def test_a_treatment_on_each_plate_once_has_no_batch_silhouette():
    profiles = planted(treatments=40, controls=8)
    profiles = profiles.take(profiles.treated)
    found = score("", METRICS["plate_silhouette"], profiles)
    assert np.isnan(found.value)
    assert "no treatment has two wells in one plate" in found.note


def test_profiles_that_hold_nothing_have_no_p():
    found = scores(planted().with_features(np.ones((384, 4))), METRICS)
    for key in ("plate_predicted", "row_predicted"):
        assert found[key].value == pytest.approx(found[key].null, abs=0.05)
    assert np.isnan(found["plate_bras"].p)


def test_small_batches_are_said_to_be_unsuited_to_kbet():
    assert (
        "8 of 8 batches have fewer than 20 wells"
        in scores(planted(rows=3, columns=4), ["plate_kbet"])["plate_kbet"].note
    )
    assert "unsuited" not in scores(planted(), ["plate_kbet"])["plate_kbet"].note


def test_large_tables_are_sampled_and_say_so(monkeypatch):
    for module in (neighbours, batch, predicted):
        monkeypatch.setattr(module, "LIMIT", 200)
    monkeypatch.setattr(batch, "_COMPARED", 150)
    profiles = planted(plate=2.0, treatment=2.0)
    found = scores(profiles, METRICS)
    for key, each in found.items():
        assert "a sample of " in each.note, key
        assert each.n <= 200
    assert found == scores(profiles, METRICS)  # the same seed, the same sample
    assert max(found[key].p for key in ("plate_predicted", "plate_neighbour", "treatment_neighbour")) < 0.01
