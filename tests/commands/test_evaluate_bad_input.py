"""``biomass evaluate`` on input that is not nice: one line, or the parts that can be judged."""

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from biomass.commands import evaluate
from biomass.errors import CannotJudgeError
from biomass.judgement.additive import leading_components
from biomass.judgement.corrections import Correction
from biomass.judgement.evaluate import METRICS, Settings
from biomass.judgement.evaluate import evaluate as judge
from biomass.judgement.read import understand
from biomass.judgement.scores import score
from biomass.judgement.shown import lay_out
from biomass.judgement.units import in_one_unit
from biomass.report.page import write_report


def table(features: int = 4, plates: int = 2, wells: int = 8) -> pd.DataFrame:
    """Wells of which a quarter are controls."""
    draw, count = np.random.default_rng(0), plates * wells
    well = np.arange(count) % wells
    about = {
        "Metadata_Plate": [f"P{i // wells}" for i in range(count)],
        "Metadata_Well": [f"A{i + 1:02d}" for i in well],
        "Metadata_treatment": np.where(well < wells // 4, "DMSO", np.char.add("c", (well % 3).astype(str))),
    }
    return pd.DataFrame(about | {f"f{i}": draw.normal(size=count) for i in range(features)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table().to_csv("t.csv", index=False)
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    table().to_parquet("run/profiles_wells.parquet")
    (tmp_path / "run" / "profiles_wells_plate.parquet").write_bytes(b"PAR1zzz")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["t.csv", "--out", "file"], "'file'"),
        (["t.csv", "--out", "file/x"], "file"),
        (["t.csv", "--out", "taken"], "report.html"),
        (["t.csv", "--seed", "-1"], "-1"),
        (["t.csv", "--seed", "4294967296"], "4294967296"),
        (["t.csv", "--fit-first", "0"], "first 0 plates"),
        (["\udcff=t.csv"], r"\\udcff"),
        (["t.csv", "--out", "\udcff"], r"\\udcff"),
        (["/dev/zero"], "/dev/zero"),
        (["t.csv", "--pairs", "/dev/zero"], "/dev/zero"),
        (["run"], "profiles_wells_plate.parquet"),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_anything_is_judged(folder, words, said, monkeypatch):
    monkeypatch.setattr("biomass.judgement.evaluate.evaluate", lambda *_: pytest.fail("judged"))
    before = sorted(os.walk(folder))
    with pytest.raises(SystemExit, match=f"^error: [^\n]*{said}[^\n]*$"):
        evaluate.main(words)
    assert sorted(os.walk(folder)) == before


@pytest.mark.parametrize(
    "change", [lambda wells: wells.head(3), lambda wells: wells.filter(like="f")], ids=["three wells", "nothing known"]
)
def test_what_can_be_judged_is_and_no_warning_of_a_library_is_seen(tmp_path, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        judge({"profiles": understand(change(table()))}, tmp_path, Settings(("none",), maps="pca"))
    assert json.loads((tmp_path / "evaluation.json").read_text())["verdict"]["sentences"]
    assert "</html>" in write_report([tmp_path], tmp_path / "report.html").read_text()


@pytest.mark.parametrize("metric", ["plate_predicted", "plate_silhouette"])
def test_wells_that_are_all_but_the_same_have_a_score_and_no_warning(metric):
    wells, count = table(), np.arange(16)
    alike = [(count == 0) + float(i) for i in range(4)]  # one well differs
    apart = [(count >= 8) * (i + 1.0) for i in range(4)]  # plates, and nothing within them
    for values in (alike, apart):
        profiles = understand(wells.assign(**{f"f{i}": one for i, one in enumerate(values)}))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = score(metric, METRICS[metric], profiles)
        assert 0 <= found.value <= 1
        assert 0 <= found.null <= 1


def test_one_feature_is_laid_out_in_the_order_of_its_values():
    profiles = understand(table(features=1))
    places = lay_out(profiles, "umap")
    assert (np.argsort(places[:, 0]) == np.argsort(profiles.features[:, 0])).all()
    assert not places[:, 1].any()


@pytest.mark.parametrize("size", [1e-25, 1e13])
def test_features_whose_squares_are_lost_are_brought_to_one(size):
    usual = understand(table())
    done = in_one_unit(usual.with_features(usual.features * np.float32(size)))
    ratio = done.features / usual.features
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert 0.1 < done.features.std() < 10
    assert "single precision" in done.notes[-1]


def test_more_features_than_wells_have_the_same_components():
    features = np.random.default_rng(0).normal(size=(12, 30)).astype(np.float32)
    values, held = leading_components(features, np.arange(12))
    scaled = (features - features.mean(0)) / features.std(0)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = values.shape[1]
    np.testing.assert_allclose(np.abs(values), np.abs(left * singular)[:, :kept], atol=1e-4)
    assert held == pytest.approx(1, abs=1e-5)


def test_a_correction_that_makes_no_numbers_says_so():
    broken = Correction(
        "", "", "", lambda *_: SimpleNamespace(transform=lambda one: one.with_features(one.features * np.nan))
    )
    with pytest.raises(CannotJudgeError, match="16 of 16 wells"):
        broken.fit_transform(understand(table()))
