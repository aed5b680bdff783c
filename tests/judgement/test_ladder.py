"""Retrieval at graded restrictions against an obvious loop, copairs, scikit-learn, and what chance must give."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from sklearn.neighbors import KNeighborsClassifier

from biomass.evaluation.replicates import replicate_map
from biomass.judgement import questions
from biomass.judgement.ladder import TASKS, climb
from biomass.judgement.questions import RESTRICTIONS, UNITS, ask
from biomass.judgement.retrieval import Admits, Labels, Places, Question, retrieve
from biomass.judgement.table import Profiles

ANY = Admits(np.ones(8, bool), np.ones(8, bool))
NOWHERE = Places(None, None, None, None)


@pytest.fixture(autouse=True)
def _few_shuffles(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(questions, "SHUFFLES", 19)


def screen(seed=0, effect=1.0, plate=0.5, experiments=4, plates=2, treatments=12, controls=3, d=8, same_place=False):
    """Wells of two sources; a compound is two treatments, a mechanism every third compound."""
    rng = np.random.default_rng(seed)
    order = np.arange(treatments + controls)
    rows = []
    for e in range(experiments):
        for p in range(plates):
            places = order if same_place else rng.permutation(order)
            for k, place in enumerate(places):
                named = (
                    (f"t{k:02}", f"c{k // 2:02}", f"m{k // 2 % 3}", "")
                    if k < treatments
                    else ("-", "-", "", "negative")
                )
                rows.append((f"s{e % 2}", f"e{e}", f"e{e}/p{p}", f"A{place + 1:02}", *named))
    columns = ["source", "experiment", "plate", "well", "treatment", "compound", "mechanism", "control"]
    wells = pd.DataFrame(rows, columns=columns)
    treatment, on = (wells[c].factorize()[0] for c in ("treatment", "plate"))
    x = effect * rng.normal(size=(treatment.max() + 1, d))[treatment] + plate * rng.normal(size=(on.max() + 1, d))[on]
    return Profiles(wells, (x + rng.normal(size=(len(wells), d))).astype(np.float32), tuple(f"f{i}" for i in range(d)))


def slow(profiles, query, label, roles):
    """Average precision, whether the nearest is a match, and how many matches and candidates, by one loop."""
    wells, x = profiles.wells, profiles.features.astype(float)
    unit, me = UNITS[label], profiles.wells.iloc[query]
    ranked = []
    for i, other in wells.iterrows():
        if i == query or other["control"] == "negative" or not other[label] or (unit and other[unit] == me[unit]):
            continue
        if any(other[role] == me[role] for role in roles):
            continue
        match = other[label] == me[label]
        cosine = x[query] @ x[i] / np.linalg.norm(x[query]) / np.linalg.norm(x[i])
        ranked.append((-cosine, match))
    hits = [match for _, match in sorted(ranked)]
    precision = [sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit]
    if not precision or all(hits):
        return (np.nan,) * 4
    return np.mean(precision), float(hits[0]), len(precision), len(hits)


@pytest.mark.parametrize("label", sorted(UNITS))
def test_every_rung_agrees_with_a_loop(label):
    profiles = screen()
    answers = ask(profiles)
    roles = []
    for name, restriction in RESTRICTIONS.items():
        roles += [restriction.role] if restriction.role else []
        found = answers.found[label, name]
        rows = range(0, len(answers.queries), 11)
        expected = [slow(profiles, answers.queries[i], label, roles) for i in rows]
        got = [[part[i, 0] for part in found] for i in rows]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert np.isfinite(got).any()


def test_the_ladder_is_the_mean_of_treatments_of_the_loop():
    profiles = screen(seed=1, experiments=2)
    rung = next(r for r in climb(profiles) if (r.task, r.restriction) == ("treatment_map", "plate"))
    treated = np.flatnonzero(profiles.wells["control"] == "")
    values = [slow(profiles, i, "treatment", ["well", "plate"])[0] for i in treated]
    by_treatment = pd.Series(values).groupby(profiles.wells["treatment"].to_numpy()[treated]).mean()
    assert rung.value == pytest.approx(by_treatment.mean())
    assert rung.n == by_treatment.notna().sum()
    assert rung.low < rung.value < rung.high


def test_agrees_with_copairs_where_it_asks_the_same():
    from copairs.map import average_precision

    profiles = screen(seed=2)
    treated = profiles.take((profiles.wells["control"] == "").to_numpy())
    bare = Profiles(treated.wells.drop(columns="well"), treated.features, treated.names)
    answers = ask(bare)
    for name, apart in (("any", []), ("plate", ["plate"]), ("experiment", ["experiment"]), ("source", ["source"])):
        theirs = average_precision(
            treated.wells,
            treated.features,
            pos_sameby=["treatment"],
            pos_diffby=apart,
            neg_sameby=[],
            neg_diffby=["treatment", *apart],
            progress_bar=False,
        )["average_precision"]
        ours = answers.found["treatment", name].precision[:, 0]
        np.testing.assert_allclose(ours, theirs.to_numpy()[answers.queries], atol=1e-5)


@pytest.mark.parametrize("question", ["same_plate", "other_plate"])
def test_replicates_agree_with_replicate_map(question):
    profiles = screen(seed=3)
    table = profiles.wells[["treatment", "plate"]].add_prefix("Metadata_")
    table = pd.concat([table, pd.DataFrame(profiles.features, columns=[f"emb_{i}" for i in range(8)])], axis=1)
    controls = profiles.negative
    theirs = replicate_map(table, "Metadata_treatment", "Metadata_plate", controls, question, null_size=10).profiles
    answers = ask(profiles)
    ours = answers.found["treatment", question]
    theirs = theirs.loc[answers.queries]
    np.testing.assert_allclose(ours.precision[:, 0], theirs["average_precision"], atol=1e-6)
    np.testing.assert_array_equal(ours.matches[:, 0], theirs["n_pos_pairs"])
    np.testing.assert_array_equal(ours.candidates[:, 0], theirs["n_total_pairs"])


def test_the_nearest_well_is_that_of_scikit_learn():
    profiles = screen(seed=4)
    treated = profiles.take((profiles.wells["control"] == "").to_numpy())
    answers = ask(treated)
    first = answers.found["treatment", "any"].first[:, 0]
    label = treated.wells["treatment"].to_numpy()
    for query, value in list(zip(answers.queries, first, strict=True))[::9]:
        others = np.arange(len(label)) != query
        model = KNeighborsClassifier(1, metric="cosine").fit(treated.features[others], label[others])
        assert (model.predict(treated.features[[query]])[0] == label[query]) == value


def test_shuffled_labels_are_answered_as_if_they_were_the_true_ones():
    profiles = screen(seed=5, experiments=2)
    labels = Labels(np.arange(len(profiles)), profiles.codes("treatment"))
    dealt = labels.shuffled(profiles.codes("plate"), 3, np.random.default_rng(0))
    queries = np.arange(0, len(profiles), 3)
    places = Places(profiles.codes("well"), profiles.codes("plate"), None, None)
    strict = Admits(np.arange(8) // 2 > 0, np.arange(8) // 2 > 0)
    admits = {"any": ANY, "plate": strict}
    together = retrieve(profiles.features, queries, places, {"q": Question([labels, *dealt], admits)})
    for i, one in enumerate([labels, *dealt]):
        assert (np.sort(one.label) == np.sort(labels.label)).all()
        alone = retrieve(profiles.features, queries, places, {"q": Question([one], admits)})
        for key, found in alone.items():
            for a, b in zip(together[key], found, strict=True):
                np.testing.assert_array_equal(a[:, i], b[:, 0])
    plate = profiles.codes("plate")
    assert all(set(one.label[plate == 0]) == set(labels.label[plate == 0]) for one in dealt)
    assert not np.array_equal(dealt[0].label, labels.label)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_collapsed_profiles_find_nothing(value):
    features = np.full((6, 4), value, np.float32)
    labels = Labels(np.arange(6), np.array([0, 0, 0, 1, 1, 1]))
    found = retrieve(features, np.arange(6), NOWHERE, {"q": Question([labels], {"any": ANY})})["q", "any"]
    assert (found.first == 0).all()
    np.testing.assert_allclose(found.precision, (1 / 4 + 2 / 5) / 2)  # three rivals first


def test_duplicated_wells_of_a_treatment_do_not_hide_each_other():
    features = np.array([[1, 0], [1, 0.1], [1, 0.1], [1, 0.1], [0, 1]], np.float32)
    labels = Labels(np.arange(5), np.array([0, 0, 0, 0, 1]))
    found = retrieve(features, np.array([0]), NOWHERE, {"q": Question([labels], {"any": ANY})})["q", "any"]
    assert found.precision[0, 0] == found.first[0, 0] == 1


def rungs(profiles, task="treatment_top1"):
    return {rung.restriction: rung for rung in climb(profiles) if rung.task == task}


def test_a_signal_that_is_the_plate_is_gone_off_the_plate():
    """Every plate has its own treatments, each three times: only the plate tells them from those of other plates."""
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(20), 15)
    wells = pd.DataFrame({"plate": [f"p{p:02}" for p in plate], "treatment": [f"t{i // 3:03}" for i in range(300)]})
    x = 20 * rng.normal(size=(20, 8))[plate] + rng.normal(size=(300, 8))
    found = rungs(Profiles(wells, x.astype(np.float32), tuple("abcdefgh")))
    assert found["any"].value > 10 * 2 / 299  # beyond a ranking at random
    assert found["any"].null == pytest.approx(2 / 14, abs=0.02)  # which chance within plates knows
    assert found["any"].p > 0.05
    assert found["plate"].note == "every replicate of a treatment is on the same plate"


def test_an_effect_of_the_place_is_gone_off_the_place():
    profiles = screen(seed=6, effect=0, plate=0)
    place = profiles.codes("well")
    same = profiles.wells["plate"].isin(["e0/p0", "e1/p0", "e2/p0", "e3/p0"])
    wells = profiles.wells.assign(well=np.where(same, profiles.wells["treatment"].str.replace("t", "B"), "")).copy()
    wells.loc[~same, "well"] = [f"C{i:02}" for i in place[~same]]
    x = profiles.features + 5 * np.random.default_rng(1).normal(size=(99, 8))[wells["well"].factorize()[0]]
    found = rungs(Profiles(wells, x.astype(np.float32), profiles.names), "treatment_map")
    assert found["any"].value > found["any"].null + 0.2
    assert found["any"].p == 0.05
    assert abs(found["position"].value - found["position"].null) < 0.1
    assert not found["plate"].note


def test_one_map_for_all_plates_keeps_the_rungs_behind_the_place():
    found = rungs(screen(same_place=True))
    assert found["position"].note == "every replicate of a treatment is in the same well position"
    assert found["plate"].n == 12
    assert "12 of 12 treatments" in found["plate"].note


@pytest.mark.parametrize(
    ("change", "task", "restriction", "reason"),
    [
        (lambda w: w.drop(columns="source"), "treatment_map", "source", "source"),
        (lambda w: w.assign(source="lab"), "treatment_map", "source", "one source"),
        (lambda w: w.assign(plate="p"), "treatment_map", "plate", "one plate"),
        (lambda w: w.drop(columns="mechanism"), "mechanism_map", "any", "mechanism"),
        (lambda w: w.assign(mechanism="m"), "mechanism_map", "any", "no well has both a match and a rival"),
        (lambda w: w.assign(well=""), "treatment_map", "position", "one well position"),
        (lambda w: w.drop(columns="compound"), "mechanism_top1", "plate", "compound"),
        (
            lambda w: w.assign(compound=w["treatment"]),
            "compound_top1",
            "any",
            "no compound was given as two treatments",
        ),
        (lambda w: w.assign(treatment=w.index.astype(str)), "treatment_top1", "any", "no treatment has a replicate"),
        (lambda w: w.assign(control="negative"), "treatment_top1", "any", "negative controls"),
        (lambda w: w[["plate"]], "treatment_top1", "any", "treatment"),
    ],
)
def test_what_cannot_be_told_says_why(change, task, restriction, reason):
    profiles = screen(experiments=2)
    rung = rungs(Profiles(change(profiles.wells), profiles.features, profiles.names), task)[restriction]
    assert reason in rung.note
    assert "\n" not in rung.note
    assert np.isnan([rung.value, rung.low, rung.high, rung.null, rung.p]).all()
    assert rung.n == 0


def test_wells_without_a_place_do_not_hinder_the_other_rungs():
    profiles = screen(experiments=2)
    for well in ("", "A01"):
        found = rungs(Profiles(profiles.wells.assign(well=well), profiles.features, profiles.names))
        assert found["plate"].n == 12
        assert not found["plate"].note


def test_controls_neither_ask_nor_are_candidates():
    profiles = screen(seed=7, experiments=2)
    treated = profiles.take((profiles.wells["control"] == "").to_numpy())
    answers = ask(profiles)
    assert not profiles.negative[answers.queries].any()
    a, b = climb(profiles), climb(treated)
    np.testing.assert_allclose([r.value for r in a], [r.value for r in b])


def test_wells_whose_plate_is_not_known_are_off_no_plate():
    profiles = screen(seed=8)
    wells = profiles.wells.copy()
    wells.loc[wells["plate"] == "e0/p0", "plate"] = ""
    answers = ask(Profiles(wells, profiles.features, profiles.names))
    unknown = (wells["plate"] == "").to_numpy()[answers.queries]
    found = answers.found["treatment", "plate"]
    assert np.isnan(found.first[unknown]).all()
    assert found.candidates[~unknown][:, 0].max() <= 6 * 12


def test_a_compound_with_two_mechanisms_counts_under_its_first():
    profiles = screen(seed=9)
    wells = profiles.wells.copy()
    wells.loc[wells.index[wells["treatment"] == "t00"], "mechanism"] = "m2"
    answers = ask(Profiles(wells, profiles.features, profiles.names))
    first = wells["mechanism"][wells["compound"] == "c00"].iloc[0]
    others = (wells["compound"] == "c00") & (wells["mechanism"] != first)
    asked = np.isin(answers.queries, np.flatnonzero(others))
    assert np.isnan(answers.found["mechanism", "any"].first[asked]).all()


def test_seeds_decide(monkeypatch):
    profiles = screen(seed=10, experiments=2)
    monkeypatch.setattr(questions, "QUERIES", 20)
    first, again, other = climb(profiles, 1), climb(screen(seed=10, experiments=2), 1), climb(profiles, 2)
    pd.testing.assert_frame_equal(pd.DataFrame(first), pd.DataFrame(again))
    assert [r.value for r in first] != [r.value for r in other]
    rung = first[0]
    assert "20 wells" in rung.note
    assert rung.n == 12  # a well of every treatment before a second one of any


def test_a_sample_of_queries_tells_what_all_tell(monkeypatch):
    profiles = screen(seed=11)
    every = rungs(profiles, "treatment_map")["plate"].value
    monkeypatch.setattr(questions, "QUERIES", 60)
    few = rungs(screen(seed=11), "treatment_map")["plate"]
    assert few.value != every
    assert few.value == pytest.approx(every, abs=0.08)


def null_rungs(tables):
    found = [climb(screen(seed=100 + i, effect=0, plate=1), i) for i in range(tables)]
    return pd.DataFrame([rung for table in found for rung in table]).dropna(subset="value")


def test_without_effects_values_are_at_chance():
    rows = null_rungs(4)
    assert set(rows["task"]) == set(TASKS)
    assert len(rows.groupby(["task", "restriction"])) == len(TASKS) * len(RESTRICTIONS)
    assert (rows["p"] <= 0.05).mean() < 0.25
    bias = (rows["value"] - rows["null"]).groupby(rows["task"]).mean()
    assert (bias.abs() < 0.03).all()


@pytest.mark.slow
def test_without_effects_p_values_are_uniform():
    rows = null_rungs(200)
    for (task, restriction), some in rows.groupby(["task", "restriction"]):
        bias = some["value"] - some["null"]
        assert abs(bias.mean()) < 4 * bias.std() / np.sqrt(len(some)), (task, restriction)
        if task.endswith("_map"):
            assert kstest(some["p"], "uniform").pvalue > 1e-3, (task, restriction)
        else:  # few hits make few values of p, and those are too large
            assert (some["p"] <= 0.05).mean() < 0.11, (task, restriction)
            assert (some["p"] <= 0.5).mean() < 0.62, (task, restriction)
