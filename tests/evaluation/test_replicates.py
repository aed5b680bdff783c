"""Mean average precision of replicates against loops, closed forms and copairs' own one-call path."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import correlation, cosine, euclidean

from biomass.errors import ConfigError, DataError
from biomass.evaluation import replicate_map

SLOW = {"cosine": cosine, "correlation": correlation, "euclidean": euclidean}
COLUMNS = ("Metadata_treatment", "Metadata_plate", "Metadata_control")


def wells(seed=0, plates=3, treatments=5, controls=4, effect=1.0, d=6):
    rng = np.random.default_rng(seed)
    rows = [
        (t, f"p{p}", t == "DMSO")
        for p in range(plates)
        for t in ["DMSO"] * controls + [f"t{k}" for k in range(treatments)]
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sample(frac=1, random_state=seed)
    centre = {t: rng.normal(size=d) * effect for t in sorted(set(table["Metadata_treatment"]))}
    x = np.stack([centre[t] for t in table["Metadata_treatment"]]) + rng.normal(size=(len(table), d))
    return table.assign(**{f"emb_{i:04d}": x[:, i] for i in range(d)})


def slow_ap(table, question, metric):
    x, (t, p, c) = table.filter(like="emb_").to_numpy(), (table[k].to_numpy() for k in COLUMNS)
    out = []
    for i in np.flatnonzero(~c):
        ranked = []
        for j in range(len(table)):
            if j == i:
                continue
            if question == "same_plate":
                positive, negative = t[i] == t[j], c[j] and p[i] == p[j]
            else:
                positive = t[i] == t[j] and p[i] != p[j]
                negative = t[i] != t[j] and p[i] == p[j] and not c[j]
            if positive or negative:
                ranked.append((SLOW[metric](x[i], x[j]), bool(positive)))
        hits = [positive for _, positive in sorted(ranked)]
        precision = [sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit]
        out.append(np.mean(precision) if precision and not all(hits) else np.nan)
    return np.array(out)


@pytest.mark.parametrize("question", ["same_plate", "other_plate"])
@pytest.mark.parametrize("metric", sorted(SLOW))
def test_average_precision_agrees_with_a_loop(question, metric):
    table = wells(seed=1)
    table = table.drop(index=table.index[(table["Metadata_treatment"] == "t0") & (table["Metadata_plate"] != "p1")])
    result = replicate_map(table, *COLUMNS, question, metric, null_size=50)
    expected = slow_ap(table, question, metric)
    np.testing.assert_allclose(result.profiles["average_precision"], expected, atol=1e-9)
    assert np.isnan(expected).sum() == 1
    assert result.profiles["reason"].dropna().str.startswith("it has no replicate").tolist() == [True]
    treated = table[~table["Metadata_control"]]
    assert result.profiles.index.equals(treated.index)
    by_treatment = pd.Series(expected).groupby(treated["Metadata_treatment"].to_numpy()).mean().dropna()
    assert result.treatments["Metadata_treatment"].tolist() == by_treatment.index.tolist()
    np.testing.assert_allclose(result.treatments["mean_average_precision"], by_treatment, atol=1e-9)
    assert result.mean == pytest.approx(by_treatment.mean())


def test_agrees_with_copairs_in_one_call():
    from copairs.map import average_precision

    table = wells(seed=2).reset_index(drop=True)
    features = table.filter(like="emb_").to_numpy()
    treated = table.assign(Metadata_alone=np.where(table["Metadata_control"], table.index, -1))
    theirs = average_precision(
        treated,
        features,
        pos_sameby=["Metadata_treatment", "Metadata_alone"],
        pos_diffby=[],
        neg_sameby=["Metadata_plate"],
        neg_diffby=["Metadata_control"],
        progress_bar=False,
    )[~table["Metadata_control"]]
    ours = replicate_map(table, *COLUMNS, null_size=50).profiles
    for column in ("n_pos_pairs", "n_total_pairs", "average_precision", "normalized_average_precision"):
        np.testing.assert_allclose(ours[column].astype(float), theirs[column].astype(float), atol=1e-6)


def test_perfect_and_random_profiles():
    perfect = replicate_map(wells(effect=1e3), *COLUMNS, null_size=200)
    assert perfect.mean == perfect.normalized_mean == 1
    assert (perfect.treatments["p_value"] < 0.05).all()
    for question in ("same_plate", "other_plate"):
        noise = replicate_map(wells(plates=8, treatments=40, effect=0), *COLUMNS, question, null_size=200)
        assert abs(noise.normalized_mean) < 0.05
        assert (noise.treatments["corrected_p_value"] < 0.05).sum() <= 2


def test_a_plate_effect_lowers_the_other_plate_question_only():
    table = wells(seed=3, plates=4, treatments=8, effect=4)
    shift = {f"p{i}": v for i, v in enumerate(np.random.default_rng(0).normal(size=(4, 6)) * 40)}
    shifted = table.copy()
    shifted[[c for c in table if c.startswith("emb_")]] += np.stack([shift[p] for p in table["Metadata_plate"]])
    clean = replicate_map(table, *COLUMNS, "other_plate", null_size=50).mean
    dirty = replicate_map(shifted, *COLUMNS, "other_plate", null_size=50).mean
    assert clean > 0.8
    assert dirty < 0.5


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_collapsed_profiles_score_worst_not_best(value):
    table = wells()
    table[[c for c in table if c.startswith("emb_")]] = value
    result = replicate_map(table, *COLUMNS, null_size=50)
    # 4 controls rank first, then the 2 replicates: (1/5 + 2/6) / 2
    np.testing.assert_allclose(result.profiles["average_precision"], (1 / 5 + 2 / 6) / 2)
    assert result.normalized_mean < 0


def test_seeds_decide_and_the_home_folder_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path.home() == tmp_path
    table = wells(effect=0.6)
    first, again, other = (replicate_map(table, *COLUMNS, null_size=300, seed=s).treatments for s in (5, 5, 6))
    pd.testing.assert_frame_equal(first, again)
    assert not first["p_value"].equals(other["p_value"])
    assert list(tmp_path.iterdir()) == []


def test_several_columns_name_a_treatment_and_a_plate():
    table = wells(seed=4)
    split = table.assign(
        Metadata_compound=table["Metadata_treatment"].str[0],
        Metadata_dose=table["Metadata_treatment"].str[1:],
        Metadata_experiment="e",
    )
    treatment, plate = ["Metadata_compound", "Metadata_dose"], ["Metadata_experiment", "Metadata_plate"]
    two = replicate_map(split, treatment, plate, COLUMNS[2], null_size=50)
    one = replicate_map(table, *COLUMNS, null_size=50)
    assert two.mean == one.mean
    assert two.treatments["Metadata_dose"].tolist() == ["0", "1", "2", "3", "4"]


def test_a_plate_without_controls_is_not_scored():
    table = wells()
    table = table[~((table["Metadata_plate"] == "p1") & table["Metadata_control"])]
    profiles = replicate_map(table, *COLUMNS, null_size=50).profiles
    there = profiles["Metadata_plate"] == "p1"
    assert (profiles.loc[there, "reason"] == "its plate has no negative control").all()
    assert profiles.loc[there, "average_precision"].isna().all()
    assert profiles.loc[~there, "reason"].isna().all()


def test_bad_input_is_named():
    table = wells()
    with pytest.raises(ConfigError, match="question='both'"):
        replicate_map(table, *COLUMNS, "both")
    with pytest.raises(ConfigError, match="metric='l2'"):
        replicate_map(table, *COLUMNS, metric="l2")
    with pytest.raises(ConfigError, match="null_size=0"):
        replicate_map(table, *COLUMNS, null_size=0)
    with pytest.raises(ConfigError, match="no column 'Metadata_batch'"):
        replicate_map(table, COLUMNS[0], "Metadata_batch", COLUMNS[2])
    with pytest.raises(DataError, match="none of the 27 rows is a control"):
        replicate_map(table.assign(Metadata_control=False), *COLUMNS)
    with pytest.raises(DataError, match=r"'other_plate'.*no replicate on another plate"):
        replicate_map(table.assign(Metadata_plate="p0"), *COLUMNS, "other_plate")
    with pytest.raises(DataError, match="row 3 has nan in feature 'emb_0002'"):
        replicate_map(table.assign(emb_0002=table["emb_0002"].where(table.index != 3)), *COLUMNS)


def test_a_table_of_controls_alone_is_refused():
    table = wells()
    with pytest.raises(DataError, match="all 12 rows are controls, so there is no treatment"):
        replicate_map(table[table["Metadata_control"]], *COLUMNS)
