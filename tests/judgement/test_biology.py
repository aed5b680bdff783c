"""Metrics of biology against the published numbers, the functions they stand on, loops, and what chance must give."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from biomass.errors import CannotJudgeError, DataError
from biomass.evaluation import aggregate, nsc, nscb, replicate_map
from biomass.judgement import biology, mechanisms, questions, relationships
from biomass.judgement.biology import METRICS
from biomass.judgement.mechanisms import treatments
from biomass.judgement.relationships import read_pairs, recall_metric
from biomass.judgement.scores import score
from biomass.judgement.table import Profiles

FEATURES = [f"emb_{i:04}" for i in range(8)]


@pytest.fixture(autouse=True)
def _few_shuffles(request, monkeypatch):
    if "slow" not in request.keywords:
        for module in (questions, mechanisms, relationships):
            monkeypatch.setattr(module, "SHUFFLES", 19)


def screen(seed=0, effect=1.0, plate=0.5, experiments=2, plates=2, treatments=12, controls=3, each=1):
    """Wells; a compound is two treatments, a mechanism every third compound."""
    rng = np.random.default_rng(seed)
    names = [(f"t{k:02}", f"c{k // 2:02}", f"m{k // 2 % 3}", "") for k in range(treatments)] * each
    names += [("-", "-", "", "negative")] * controls
    rows = [
        (f"e{e}", f"e{e}/p{p}", f"A{place + 1:02}", *named)
        for e in range(experiments)
        for p in range(plates)
        for place, named in zip(rng.permutation(len(names)), names, strict=True)
    ]
    wells = pd.DataFrame(rows, columns=["experiment", "plate", "well", "treatment", "compound", "mechanism", "control"])
    treatment, on = (wells[c].factorize()[0] for c in ("treatment", "plate"))
    x = effect * rng.normal(size=(treatment.max() + 1, 8))[treatment] + plate * rng.normal(size=(on.max() + 1, 8))[on]
    x += effect * rng.normal(size=(4, 8))[wells["mechanism"].factorize()[0]]
    return Profiles(wells, (x + rng.normal(size=(len(wells), 8))).astype(np.float32), tuple(FEATURES))


def table(profiles):
    """The same wells as :mod:`biomass.evaluation` takes them."""
    wells = profiles.wells.add_prefix("Metadata_")
    return pd.concat([wells, pd.DataFrame(profiles.features, columns=FEATURES)], axis=1)


@pytest.fixture
def published(real_data: Path) -> Profiles:
    """The published treatment profiles of BBBC021, as a table of wells, one a treatment."""
    given = pd.read_csv(real_data / "bbbc021_profiles" / "treatment_profiles.csv.gz")
    about = ["compound", "concentration", "moa", "batch"]
    wells = pd.DataFrame(
        {
            "treatment": given["compound"] + "@" + given["concentration"].astype(str),
            "compound": given["compound"],
            "mechanism": given["moa"],
            "experiment": given["batch"],
        }
    )
    features = given.drop(columns=about)
    return Profiles(wells, features.to_numpy(np.float32), tuple(features))


def test_published_nsc_and_nscb(published):
    by_compound, by_batch = (score(key, METRICS[key], published) for key in ("nsc", "nscb"))
    assert (by_compound.n, by_compound.value) == (103, pytest.approx(84 / 103))
    assert (by_batch.n, by_batch.value) == (92, pytest.approx(70 / 92))
    assert by_batch.low < by_batch.value < by_batch.high
    assert by_batch.p == 0.05


@pytest.mark.parametrize("seed", range(3))
def test_nsc_and_nscb_are_those_of_the_treatments(seed):
    profiles = screen(seed, effect=0.7, experiments=3, plates=1)
    # treatments of the second half of the compounds are not in the first experiment, so that sets of them differ
    late = (profiles.wells["compound"] >= "c03") & (profiles.wells["experiment"] != "e2")
    early = (profiles.wells["compound"] < "c03") & (profiles.wells["experiment"] == "e2")
    profiles = profiles.take((~late & ~early).to_numpy())
    wells = table(profiles)
    wells = wells[wells["Metadata_control"] == ""]
    keep = ["Metadata_compound", "Metadata_mechanism"]
    means = aggregate(wells, "Metadata_treatment", keep=keep, collect=["Metadata_experiment"])
    means[FEATURES] = means[FEATURES].astype(np.float32)
    expected = nsc(means, *keep, "correlation"), nscb(means, *keep, "Metadata_experiment", "correlation")
    for key, result in zip(("nsc", "nscb"), expected, strict=True):
        found = METRICS[key].measure(profiles, 0)
        np.testing.assert_array_equal(found.values, np.where(result.scorable, result.correct, np.nan))
    assert expected[1].scorable.any()


def test_joined_names_of_experiments_are_several():
    wells = pd.DataFrame({"treatment": list("aabc"), "compound": list("aabc"), "mechanism": ["m"] * 4})
    wells["experiment"] = ["Week1,Week3", "Week1", "Week3", "Week2"]
    given = treatments(Profiles(wells, np.eye(4, dtype=np.float32), tuple("fghi")))
    assert given.experiments.tolist() == [[True, False, True], [False, False, True], [False, True, False]]
    assert "joined by commas" in given.note
    np.testing.assert_array_equal(given.features[0], [0.5, 0.5, 0, 0])


def test_chance_of_nscb_is_the_share_of_right_ones_among_those_that_may_be_nearest():
    profiles = screen(3, experiments=3, plates=1)
    experiment, compound = profiles.wells["experiment"], profiles.wells["compound"]
    profiles = profiles.take(((experiment == "e0") == (compound <= "c02") | (compound == "c01")).to_numpy())
    given, found = treatments(profiles), METRICS["nscb"].measure(profiles, 0)
    for i, (compound, mechanism, experiments) in enumerate(zip(*given[1:4], strict=True)):
        may = [
            j
            for j in range(len(given.compound))
            if given.compound[j] != compound and not (given.experiments[j] & experiments).any()
        ]
        right = [j for j in may if given.mechanism[j] == mechanism]
        assert np.isnan(found.values[i]) == (not right)
        assert found.null[i] == pytest.approx(len(right) / max(len(may), 1))


@pytest.mark.parametrize("question", ["same_plate", "other_plate"])
def test_replicate_map_of_every_treatment(question):
    profiles = screen(4)
    args = (table(profiles), "Metadata_treatment", "Metadata_plate", profiles.negative, question)
    theirs = replicate_map(*args, null_size=biology.RANKINGS)
    found = METRICS[f"map_{question}"].measure(profiles, 0)
    np.testing.assert_allclose(found.values, theirs.treatments["mean_average_precision"], atol=1e-6)
    share = score("found", METRICS[f"found_{question}"], profiles)
    corrected = theirs.treatments["corrected_p_value"]
    assert share.value == pytest.approx((corrected < 0.05).mean())
    assert share.p == pytest.approx(corrected.min())
    if question == "same_plate":  # 3 replicates elsewhere and 3 controls: 0.58, in closed form
        assert np.unique(np.round(found.null, 6)) == pytest.approx(expected_of(3, 6))


def expected_of(matches, total):
    """The mean over all rankings, one by one."""
    from itertools import combinations

    ranks = combinations(range(1, total + 1), matches)
    return np.mean([np.mean([(k + 1) / rank for k, rank in enumerate(some)]) for some in ranks])


def test_replicates_in_other_experiments_by_a_loop():
    profiles = screen(5, each=2)
    wells, x = profiles.wells, profiles.features.astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = {}
    for i, me in wells[wells["control"] == ""].iterrows():
        match = (wells["treatment"] == me["treatment"]) & (wells["experiment"] != me["experiment"])
        rival = (wells["treatment"] != me["treatment"]) & (wells["plate"] == me["plate"]) & (wells["control"] == "")
        rows = np.flatnonzero(match | rival)
        hits = match.to_numpy()[rows][np.argsort(-unit[rows] @ unit[i])]
        expected.setdefault(me["treatment"], []).append(np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]))
    found = METRICS["map_other_experiment"].measure(profiles, 0)
    np.testing.assert_allclose(found.values, [np.mean(expected[t]) for t in sorted(expected)], atol=1e-6)


def test_mechanisms_by_copairs():
    from copairs.map import average_precision

    profiles = screen(6)
    given = treatments(profiles)
    meta = pd.DataFrame({"compound": given.compound, "mechanism": given.mechanism})
    args = (["mechanism"], ["compound"], [], ["mechanism", "compound"])
    theirs = average_precision(meta, given.features, *args, progress_bar=False)["average_precision"]
    found = METRICS["map_mechanism"].measure(profiles, 0)
    np.testing.assert_allclose(np.sort(found.values), np.sort(theirs), atol=1e-5)


def test_percent_replicating_knows_effects_from_none():
    strong, none = (score("r", METRICS["percent_replicating"], screen(7, effect, treatments=60)) for effect in (4, 0))
    assert strong.value > 0.9
    assert strong.p < 1e-6
    assert none.value < 0.2
    plates = score("r", METRICS["percent_replicating"], screen(8, 0, plate=5, treatments=60))
    assert plates.value < 0.2  # the null is drawn from the same plates


def test_every_metric_is_told_of_a_screen_that_has_everything():
    profiles = screen(9, effect=2, experiments=4, plates=1, treatments=24, each=2)
    early, first = profiles.wells["experiment"] < "e2", profiles.wells["compound"] < "c06"
    profiles = profiles.take(((early == first) | profiles.negative).to_numpy())
    for key, metric in METRICS.items():
        found = score(key, metric, profiles)
        assert found.n > 0, (key, found.note)
        assert 0 <= found.low <= found.value <= found.high <= 1, key
        assert found.value > found.null, key
        assert 0 < found.p <= 0.1, key
        assert (metric.family, metric.better, metric.over) == ("biology", "higher", "compounds")


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        (
            lambda w: w.drop(columns="treatment"),
            {"map_same_plate": "treatment", "nsc": "treatment", "top1_any": "treatment"},
        ),
        (lambda w: w.drop(columns="control"), {"map_same_plate": "control"}),
        (lambda w: w.assign(control=""), {"map_same_plate": "negative controls"}),
        (lambda w: w.drop(columns="plate"), {"map_other_plate": "plate", "top1_plate": "plate"}),
        (lambda w: w.drop(columns="experiment"), {"map_other_experiment": "experiment", "nscb": "experiment"}),
        (lambda w: w.assign(experiment="e"), {"map_other_experiment": "experiment", "nscb": "experiment"}),
        (lambda w: w.assign(mechanism=""), {"nsc": "mechanism", "map_mechanism": "mechanism"}),
        (lambda w: w.assign(mechanism="m"), {"map_mechanism": "same mechanism"}),
        (lambda w: w.assign(mechanism=w["compound"]), {"nsc": "two compounds", "map_mechanism": "two compounds"}),
        (
            lambda w: w.assign(treatment=w.index.astype(str)),
            {"map_other_plate": "replicate", "percent_replicating": "rep"},
        ),
        (
            lambda w: w.assign(control="negative"),
            {"nsc": "negative", "map_same_plate": "negative", "top1_any": "negative"},
        ),
    ],
)
def test_what_cannot_be_told_says_why(change, needs):
    profiles = screen(10)
    changed = Profiles(change(profiles.wells), profiles.features, profiles.names)
    found = {key: score(key, METRICS[key], changed) for key in needs}
    for key, word in needs.items():
        assert np.isnan(found[key].value)
        assert word in found[key].note
        assert "\n" not in found[key].note


def test_constant_features_find_nothing():
    profiles = screen(11)
    flat = profiles.with_features(np.ones_like(profiles.features))
    for key in ("map_same_plate", "map_other_plate", "top1_any", "percent_replicating", "map_mechanism"):
        found = score(key, METRICS[key], flat)
        assert found.value <= found.null + 1e-9, key


def test_many_treatments_are_sampled_and_that_is_said(monkeypatch):
    monkeypatch.setattr(mechanisms, "MOST", 7)
    given = treatments(screen(12), 1)
    assert len(given.compound) == 7
    assert given.note == "7 of 12 treatments, drawn at random"
    assert treatments(screen(12), 1).compound.tolist() == given.compound.tolist()


def known(profiles, pairs):
    return recall_metric(pd.DataFrame(pairs, columns=["one", "other"])).measure(profiles, 0)


def test_recall_of_known_pairs_by_a_loop():
    profiles = screen(13, treatments=40)
    wells = profiles.wells
    names = sorted(set(wells["compound"]) - {"-"})
    mean = {n: profiles.features[(wells["compound"] == n).to_numpy()].astype(float).mean(0) for n in names}
    cosine = {
        (a, b): mean[a] @ mean[b] / np.linalg.norm(mean[a]) / np.linalg.norm(mean[b]) for a in names for b in names
    }
    low, high = np.quantile([cosine[a, b] for i, a in enumerate(names) for b in names[i + 1 :]], [0.05, 0.95])
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :: 3]]
    found = known(profiles, pairs)
    np.testing.assert_array_equal(found.values, [not low < cosine[pair] < high for pair in pairs])
    assert found.null == pytest.approx(0.1, abs=0.04)
    both_ways = known(profiles, [pair[::-1] for pair in pairs])
    np.testing.assert_array_equal(found.values, both_ways.values)


def test_pairs_that_belong_together_are_recalled():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 8))
    x = np.concatenate([centres, centres * np.where(np.arange(30) % 2, 1, -1)[:, None]]) + 0.05 * rng.normal(
        size=(60, 8)
    )
    wells = pd.DataFrame({"compound": [f"c{i:02}" for i in range(60)]})
    pairs = [(f"c{i:02}", f"c{i + 30:02}") for i in range(30)]
    found = known(Profiles(wells, x.astype(np.float32), tuple(FEATURES)), pairs)
    assert found.values.mean() == 1  # alike or opposite
    assert found.p == 0.05


def test_names_that_are_not_there_are_counted_and_said():
    profiles = screen(14, treatments=40)
    found = known(profiles, [("c00", "c01"), ("c00", "MDM2"), ("TP53", "MDM2")])
    assert len(found.values) == 1
    assert "2 of 4 names are no compound of the profiles (MDM2, TP53): 2 of 3 pairs" in found.note
    with pytest.raises(CannotJudgeError, match="1 of 1 pairs"):
        known(profiles, [("TP53", "MDM2")])
    with pytest.raises(CannotJudgeError, match="6 compounds"):
        known(screen(14), [("c00", "c01")])
    assert known(profiles, [("t00", "t01")]).note == ""  # names of treatments
    with pytest.raises(CannotJudgeError, match="compound"):
        known(Profiles(profiles.wells[["plate"]], profiles.features, profiles.names), [("c00", "c01")])


def test_pairs_as_they_come(tmp_path, caplog):
    file = tmp_path / "pairs.tsv"
    file.write_text("gene a\tgene b\nTP53 \tMDM2\nMDM2\tTP53\nRB1\tRB1\nNA\tE2F1\n0012\tE2F1\n", "utf-16")
    with caplog.at_level(logging.WARNING):
        assert read_pairs(file).to_numpy().tolist() == [["MDM2", "TP53"], ["0012", "E2F1"]]
    assert "2 of 5 rows lack a name or name one twice" in caplog.text
    assert "1 of 5 rows repeat a pair" in caplog.text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a,b,c\n1,2,3\n", "3 columns"),
        ("a\nTP53\n", "1 column"),
        ("a,b\nRB1,RB1\n", "no pair"),
        ("TP53,MDM2\nTP53,MDM4\n", "TP53"),
        ("a,b\nTP53,x\ny,tp53\n", "tp53"),
    ],
)
def test_tables_that_are_no_pairs(tmp_path, text, word):
    file = tmp_path / "pairs.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=word) as error:
        read_pairs(file)
    assert "\n" not in str(error.value)


def null_scores(tables):
    rows = []
    for seed in range(tables):
        profiles = screen(200 + seed, effect=0, plate=0 if seed % 2 else 1, treatments=24)
        rng = np.random.default_rng(seed)
        pairs = pd.DataFrame(rng.choice(12, (40, 2)), columns=["one", "other"])
        pairs = pairs[pairs["one"] < pairs["other"]].drop_duplicates().map(lambda k: f"c{k:02}")
        metrics = {**METRICS, "recall": recall_metric(pairs)}
        rows += [(score(key, metric, profiles, seed), seed % 2) for key, metric in metrics.items()]
    frame = pd.DataFrame([one for one, _ in rows])
    return frame.assign(plate_effect=[not flag for _, flag in rows]).dropna(subset="value")


def test_without_effects_values_are_at_chance():
    rows = null_scores(2)
    rows = rows[~rows["metric"].str.endswith("same_plate") | ~rows["plate_effect"]]
    bias = (rows["value"] - rows["null"]).groupby(rows["metric"]).mean()
    assert (bias.abs() < 0.2).all()
    assert (rows["p"] <= 0.05).mean() < 0.2


@pytest.mark.slow
def test_without_effects_p_values_are_uniform():
    rows = null_scores(200)
    for key, some in rows.groupby("metric"):
        if key.endswith("same_plate"):
            some = some[
                ~some["plate_effect"]
            ]  # where plates differ, replicates elsewhere are behind the plate's controls
        bias = some["value"] - some["null"]
        if not key.startswith("found"):
            assert abs(bias.mean()) < 4 * bias.std() / np.sqrt(len(some)), key
        if key in ("map_other_plate", "map_other_experiment", "map_mechanism"):
            assert kstest(some["p"], "uniform").pvalue > 1e-3, key
        assert (some["p"] <= 0.05).mean() < 0.11, key
        assert (some["p"] <= 0.5).mean() < 0.62, key
