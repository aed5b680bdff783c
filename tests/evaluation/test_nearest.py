"""Nearest-neighbour mechanisms and batch mixing against slow references and the published confusion matrix."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import correlation, cosine, euclidean

from biomass.errors import ConfigError, DataError
from biomass.evaluation import batch_mixing, batch_sets, nsc, nscb

SLOW = {"cosine": cosine, "correlation": correlation, "euclidean": euclidean}


@pytest.fixture
def published(real_data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The published treatment profiles and the confusion matrix published for them."""
    folder = real_data / "bbbc021_profiles"
    table = pd.read_csv(folder / "treatment_profiles.csv.gz")
    names = {c: f"Metadata_{c}" for c in ("compound", "concentration", "moa", "batch")}
    return table.rename(columns=names), pd.read_csv(folder / "published_confusion_matrix.csv", index_col=0)


def slow_nearest(x, compounds, moas, batches, metric):
    predictions, neighbours = [], []
    for i in range(len(x)):
        best, least, possible = None, np.inf, False
        for j in range(len(x)):
            if compounds[i] == compounds[j] or moas[j] is None or (batches is not None and batches[i] & batches[j]):
                continue
            possible |= moas[i] == moas[j]
            distance = SLOW[metric](x[i], x[j])
            if distance < least:
                best, least = j, distance
        predictions.append(moas[best] if possible else None)
        neighbours.append(best if possible else -1)
    return predictions, neighbours


@pytest.mark.parametrize("metric", sorted(SLOW))
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_slow_reference(metric, seed):
    rng = np.random.default_rng(seed)
    n = 60
    compounds = rng.integers(0, 20, n)
    moa_of = rng.integers(0, 6, 20)
    moas = [None if moa_of[c] == 5 else f"moa{moa_of[c]}" for c in compounds]
    batches = [{f"w{b}" for b in rng.integers(0, 5, rng.integers(1, 4))} for _ in range(n)]
    x = rng.normal(size=(n, 8)) + 3
    for result, sets in ((nsc(x, compounds, moas, metric), None), (nscb(x, compounds, moas, batches, metric), batches)):
        predictions, neighbours = slow_nearest(x, compounds, moas, sets, metric)
        assert list(result.predictions) == predictions
        assert list(result.neighbours) == neighbours
        right = [p == m for p, m in zip(predictions, moas, strict=True) if p is not None]
        assert result.accuracy == pytest.approx(np.mean(right))
        assert result.confusion_matrix().to_numpy().trace() == sum(right)
        scored = result.scorable
        near = [SLOW[metric](x[i], x[j]) for i, j in enumerate(neighbours) if j >= 0]
        np.testing.assert_allclose(result.distances[scored], near, atol=1e-12)
        assert np.isnan(result.distances[~scored]).all()
    assert 0 < scored.sum() < n


def test_published_confusion_matrix_in_every_cell(published):
    profiles, expected = published
    result = nsc(profiles, "Metadata_compound", "Metadata_moa", metric="correlation")
    matrix = result.confusion_matrix()
    assert list(matrix.index) == list(expected.index)
    assert list(matrix.columns) == list(expected.columns)
    np.testing.assert_array_equal(matrix, expected)
    assert (result.correct.sum(), result.scorable.sum()) == (84, 103)
    table = result.by_moa()
    assert table.loc["DNA replication", ["treatments", "scorable", "correct"]].tolist() == [8, 8, 2]


def test_nscb_scores_92_published_treatments(published):
    profiles, _ = published
    result = nscb(profiles, "Metadata_compound", "Metadata_moa", batch_sets(profiles["Metadata_batch"]), "correlation")
    assert result.scorable.sum() == 92
    assert set(result.unscorable["moa"]) == {"Cholesterol-lowering", "Kinase inhibitors"}
    assert result.unscorable["reason"].str.contains("in another batch").all()
    batch = profiles["Metadata_batch"].to_numpy()
    assert (batch[result.neighbours] != batch)[result.scorable].all()


def test_confusion_matrix_has_predictions_in_rows():
    x = np.eye(4)[[0, 0, 1, 1]] + 0.01 * np.eye(4)
    result = nsc(x, ["a", "b", "c", "d"], ["one", "two", "one", "two"])
    assert result.confusion_matrix().loc["two", "one"] == 2
    skew = nsc(np.array([[1.0, 0], [0.9, 0.1], [0.8, 0.3]]), ["a", "b", "c"], ["one", "one", "two"])
    assert skew.confusion_matrix().to_dict() == {"one": {"one": 2, "two": 0}, "two": {"one": 0, "two": 0}}


def test_batches_that_meet_are_kept_apart():
    x = np.array([[1, 0.0], [1, 0.1], [0, 1.0]])
    compounds, moas = ["a", "b", "c"], ["m", "m", "m"]
    assert nscb(x, compounds, moas, [{"Week1", "Week3"}, "Week1", "Week2"]).neighbours.tolist() == [2, 2, 1]
    assert nscb(x, compounds, moas, [{"Week1", "Week3"}, "Week4", "Week2"]).neighbours.tolist() == [1, 0, 1]
    assert nscb(x, compounds, moas, [b"Week1", ["Week1", "Week3"], np.array(["Week2"])]).neighbours[0] == 2
    with pytest.raises(DataError, match=r"row 0 has the batch 'Week1,Week3'.*batch_sets"):
        nscb(x, compounds, moas, ["Week1,Week3", "Week1", "Week2"])
    assert batch_sets(["Week1, Week3", b"Week1"]) == [{"Week1", "Week3"}, {"Week1"}]


def test_a_number_is_the_same_batch_whatever_its_type():
    x = np.array([[1, 0.0], [1, 0.1], [0, 1.0]])
    for one in (1, 1.0, np.float32(1), np.int64(1), {1.0}, {1, pd.NA}, [1, None]):
        assert nscb(x, ["a", "b", "c"], ["m"] * 3, [one, 1, "2"]).neighbours.tolist() == [2, 2, 1]
    assert batch_mixing(x, [1, 1.0, 2]).by_batch["rows"].tolist() == [2, 1]
    with pytest.raises(DataError, match="row 1 has no batch"):
        nscb(x, ["a", "b", "c"], ["m"] * 3, [1, {pd.NA}, 2])


def test_one_batch_only_leaves_nothing_to_score():
    result = nscb(np.eye(3), ["a", "b", "c"], ["m", "m", "n"], ["w", "w", "w"])
    assert not result.scorable.any()
    assert np.isnan(result.accuracy)
    assert result.predictions.tolist() == [None] * 3
    assert result.confusion_matrix().to_numpy().sum() == 0
    assert result.unscorable["reason"].tolist() == [
        f"no other compound in another batch has the mechanism '{m}'" for m in "mmn"
    ]


def test_unknown_mechanisms_are_nobodys_neighbours():
    x = np.array([[1, 0.0], [1, 0.001], [1, 0.2], [1, 0.3]])
    for unknown in (None, float("nan"), pd.NA, "null", "", "  ", "NA", "N/A", "nan", "None", b"null"):
        result = nsc(x, list("abcd"), ["m", unknown, "m", "m"])
        assert result.neighbours.tolist() == [2, -1, 3, 2]
        assert result.reasons[1] == "its mechanism is not known"
        assert list(result.by_moa().index) == ["m"]


def test_bytes_are_strings():
    x = np.random.default_rng(0).normal(size=(6, 4))
    text = nsc(x, list("aabbcc"), list("mmnmnm"))
    raw = nsc(x, np.array(list("aabbcc"), "S1"), [m.encode() for m in "mmnmnm"])
    assert raw.predictions.tolist() == text.predictions.tolist()
    assert raw.confusion_matrix().equals(text.confusion_matrix())


@pytest.mark.parametrize("metric", sorted(SLOW))
def test_ties_go_to_the_first_row(metric):
    rng = np.random.default_rng(1)
    x = np.tile(rng.normal(size=(1, 257)), (40, 1)) * (1 if metric == "euclidean" else rng.uniform(0.1, 9, (40, 1)))
    result = nsc(x, np.arange(40), ["m"] * 40, metric)
    assert result.neighbours.tolist() == [1] + [0] * 39


@pytest.mark.parametrize(("metric", "flat"), [("cosine", 0.0), ("correlation", 0.0), ("correlation", 0.1)])
def test_profiles_without_direction_are_at_distance_one(metric, flat):
    x = np.random.default_rng(0).normal(size=(5, 7))
    x[[1, 3]] = flat
    result = nsc(x, list("abcde"), ["m"] * 5, metric)
    assert result.distances[[1, 3]].tolist() == [1, 1]
    assert result.neighbours[[1, 3]].tolist() == [0, 0]
    assert np.isfinite(result.distances).all()


def test_rounding_is_no_direction():
    x = np.random.default_rng(0).normal(size=(5, 7))
    x[1], x[3] = 0.1, -0.3
    x[[1, 3], 4] = np.nextafter(x[[1, 3], 4], 1)  # as a mean over replicates may leave it
    result = nsc(x, list("abcde"), ["m"] * 5, "correlation")
    assert result.distances[[1, 3]].tolist() == [1, 1]


def test_neighbours_do_not_hang_on_units():
    x = np.random.default_rng(0).normal(size=(12, 5))
    scale = 10.0 ** np.linspace(-200, 200, 12)[:, None]
    for metric in ("cosine", "correlation"):
        plain, scaled = (nsc(a, range(12), ["m"] * 12, metric) for a in (x, x * scale))
        np.testing.assert_array_equal(plain.neighbours, scaled.neighbours)
    for metric, a, b in (("correlation", x, x + 5), ("euclidean", x, x * 1e-14)):
        plain, moved = (nsc(features, range(12), ["m"] * 12, metric) for features in (a, b))
        np.testing.assert_array_equal(plain.neighbours, moved.neighbours)


def test_bad_input_is_named():
    table = pd.DataFrame({"Metadata_compound": ["a", "b"], "Metadata_moa": "m", "f1": 1, "f2": [3, np.nan]})
    table.index = pd.Index(["first", "second"])
    with pytest.raises(DataError, match="row second has nan in feature 'f2'"):
        nsc(table, "Metadata_compound", "Metadata_moa")
    with pytest.raises(DataError, match="row 1 has inf in feature '0'"):
        nsc(np.array([[0.0], [np.inf]]), ["a", "b"], ["m", "m"])
    with pytest.raises(DataError, match=r"column 'f1' .*more than once"):
        nsc(table.set_axis([*table.columns[:2], "f1", "f1"], axis=1), "Metadata_compound", "Metadata_moa")
    with pytest.raises(DataError, match=r"column 'note' is not numeric.*Metadata_note"):
        nsc(table.assign(f2=1, note="w"), "Metadata_compound", "Metadata_moa")
    with pytest.raises(ConfigError, match=r"no column 'Metadata_cmpd'.*Metadata_compound"):
        nsc(table.assign(f2=1), "Metadata_cmpd", "Metadata_moa")
    with pytest.raises(ConfigError, match="'moa' names a column, but"):
        nsc(np.eye(2), ["a", "b"], "moa")
    with pytest.raises(DataError, match="3 compounds for 2 rows"):
        nsc(np.eye(2), ["a", "b", "c"], ["m", "m"])
    with pytest.raises(DataError, match="row 1 has no compound"):
        nsc(np.eye(2), ["a", None], ["m", "m"])
    with pytest.raises(DataError, match="row 0 has no batch"):
        nscb(np.eye(2), ["a", "b"], ["m", "m"], [set(), "w"])
    with pytest.raises(ConfigError, match="metric='l2'"):
        nsc(np.eye(2), ["a", "b"], ["m", "m"], metric="l2")
    with pytest.raises(DataError, match="two-dimensional"):
        nsc(np.zeros(3), ["a"] * 3, ["m"] * 3)
    with pytest.raises(DataError, match="0 rows"):
        nsc(np.zeros((0, 3)), [], [])


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_mixing_agrees_with_a_slow_reference(block, dtype):
    rng = np.random.default_rng(3)
    x, batches = rng.normal(size=(90, 6)).astype(dtype), rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1])
    same = []
    for i in range(90):
        others = [j for j in range(90) if j != i]
        same.append(batches[min(others, key=lambda j: cosine(x[i], x[j]))] == batches[i])
    result = batch_mixing(x, batches, block=block)
    assert result.share == pytest.approx(np.mean(same))
    counts = pd.Series(batches).value_counts()
    assert result.expected == pytest.approx((counts * (counts - 1)).sum() / (90 * 89))
    for name, row in result.by_batch.iterrows():
        assert row["share"] == pytest.approx(np.mean(np.array(same)[batches == name]))
        assert row["rows"] == counts[name]


def test_batch_mixing_sees_batches_and_their_absence():
    rng = np.random.default_rng(0)
    batches = np.repeat(np.arange(4), 250)
    x = rng.normal(size=(1000, 20))
    mixed, apart = batch_mixing(x, batches), batch_mixing(x + 20 * rng.normal(size=(4, 20))[batches], batches)
    assert mixed.expected == pytest.approx(249 / 999)
    assert abs(mixed.share - mixed.expected) < 0.06
    assert apart.share == 1
    table = pd.DataFrame(x[:5]).add_prefix("f").assign(Metadata_batch=list("aabba"))
    assert batch_mixing(table, "Metadata_batch").share == batch_mixing(x[:5], list("aabba")).share
    with pytest.raises(DataError, match="1 row"):
        batch_mixing(np.ones((1, 3)), ["a"])
    with pytest.raises(DataError, match="row 1 has no batch"):
        batch_mixing(np.eye(3), ["a", None, "b"])


def test_names_are_the_same_whatever_they_are_written_as():
    x = np.random.default_rng(0).normal(size=(6, 4))
    plain = nscb(x, list("aabbcc"), list("mnmnmn"), list("uvwuvw"))
    blanks = nscb(x, ["a", "a ", "b", "b\u00a0", "c", " c"], list("mnmnmn"), ["u", "v", ["w"], " u", {"v "}, b"w"])
    assert blanks.neighbours.tolist() == plain.neighbours.tolist()
    assert blanks.compounds.tolist() == plain.compounds.tolist()
    for compounds, moas, batches, message in (
        (["a", "A", "b", "c", "d", "e"], "mmmmmm", "uuvvww", "compound is written 'a' in row 0 and 'A' in row 1"),
        ("aabbcc", ["m", "M", *"nnnn"], "uvwuvw", "moa is written 'm' in row 0 and 'M' in row 1"),
        ("aabbcc", "mmnnmm", [{"u"}, "v", {"w", "x"}, "u", "v", "U"], "batch is written 'u' in row 0 and 'U' in row 5"),
    ):
        with pytest.raises(DataError, match=message):
            nscb(x, list(compounds), list(moas), list(batches))
    with pytest.raises(DataError, match="row 2 has no compound"):
        nsc(x, ["a", "a", "NA", "b", "c", "c"], list("mnmnmn"))
    with pytest.raises(DataError, match="row 3 has no batch"):
        batch_mixing(x, ["u", "v", "w", " ", "v", "w"])
    assert batch_mixing(x, ["u", "u ", "v", "v", 1, 1.0]).by_batch["rows"].tolist() == [2, 2, 2]


def test_na_of_a_plate_map_is_not_a_mechanism(tmp_path):
    """A plate map of LINCS writes NA for the mechanism of DMSO: read as text, it was a class that is predicted."""
    (tmp_path / "map.csv").write_text(
        "Metadata_compound,Metadata_moa,f,g\nDMSO,NA,1,0\nx,m,1,0.1\ny,m,1,0.2\nz,NA,1,0\n"
    )
    for options in ({}, {"dtype": {"Metadata_moa": str}, "keep_default_na": False}):
        result = nsc(pd.read_csv(tmp_path / "map.csv", **options), "Metadata_compound", "Metadata_moa")
        assert result.predictions.tolist() == [None, "m", "m", None]
        assert list(result.by_moa().index) == ["m"]
