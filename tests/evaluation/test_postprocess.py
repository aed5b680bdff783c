"""Corrections that are fitted, saved and applied to later plates."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError, DataError
from biomass.evaluation import normalize, postprocess, tvn, whiten
from biomass.evaluation.postprocess import CORRECTIONS, Correction, fit

WORDS = [how for how in CORRECTIONS if how != "none"]
BY_PLATE = ("Metadata_Batch", "Metadata_Plate")


def wells_of(plates, features=5, controls=6, seed=0):
    """Wells of plates such as ``W1/P1``, which differ in place and scale; the first of each are controls."""
    rng = np.random.default_rng(seed)
    tables = []
    for name in plates:
        batch, plate = name.split("/")
        values = rng.normal(rng.normal(size=features), rng.uniform(0.5, 3, features), (controls + 8, features))
        table = pd.DataFrame(values.astype(np.float32), columns=[f"emb_{i:04d}" for i in range(features)])
        about = {"Metadata_Batch": batch, "Metadata_Plate": plate, "Metadata_control": ""}
        tables.append(pd.concat([pd.DataFrame(about, index=table.index), table], axis=1))
        tables[-1].loc[: controls - 1, "Metadata_control"] = "negative"
    return pd.concat(tables, ignore_index=True)


def controls_of(wells):
    return wells[wells["Metadata_control"] == "negative"]


def features(wells):
    return wells.filter(like="emb_").to_numpy()


def test_each_word_is_what_it_says():
    wells = wells_of(["W1/P1", "W1/P2", "W2/P1", "W2/P2"])
    mask = (wells["Metadata_control"] == "negative").to_numpy()
    batches = wells["Metadata_Batch"].to_numpy()
    plain = normalize(wells, mask, list(BY_PLATE))
    expected = {
        "standardize": plain,
        "whiten": whiten(wells, mask),
        "tvn": tvn(wells, mask, batches),
        "standardize_whiten": whiten(plain, mask),
        "standardize_tvn": tvn(plain, mask, batches),
    }
    assert set(expected) == set(WORDS)
    for how, reference in expected.items():
        done = fit(controls_of(wells), how).apply(wells)
        np.testing.assert_allclose(features(done), features(reference), rtol=2e-3, atol=2e-3, err_msg=how)
        assert done.columns.tolist() == wells.columns.tolist()


@pytest.mark.parametrize("how", WORDS)
def test_saved_and_applied_to_a_later_plate_is_fitting_once_on_both(how, tmp_path):
    both = wells_of(["W1/P1", "W1/P2", "W2/P1", "W2/P2", "W3/P1", "W3/P2"])
    new = (both["Metadata_Batch"] == "W3").to_numpy()
    fit(controls_of(both[~new]), how, origin="a network").save(tmp_path / "fit.npz")
    later = Correction.load(tmp_path / "fit.npz")
    assert later.origin == "a network"
    later = later.learn(controls_of(both[new]))

    controls = controls_of(both)
    once = fit(controls, how, fit_on=(controls["Metadata_Batch"] != "W3").to_numpy()).apply(both)
    np.testing.assert_allclose(features(later.apply(both[new])), features(once)[new], atol=1e-5)
    np.testing.assert_allclose(features(later.apply(both[~new])), features(once)[~new], atol=1e-5)


def test_a_single_well_of_a_known_plate_is_corrected_as_with_its_plate(tmp_path):
    wells = wells_of(["W1/P1", "W1/P2", "W2/P1"])
    for how in WORDS:
        done = fit(controls_of(wells), how)
        done.save(tmp_path / "fit.npz")
        again = Correction.load(tmp_path / "fit.npz").learn(wells[:0])
        np.testing.assert_array_equal(features(again.apply(wells[-1:])), features(done.apply(wells))[-1:])


def test_a_known_plate_is_not_fitted_again():
    wells = wells_of(["W1/P1", "W2/P1"])
    done = fit(controls_of(wells), "standardize")
    other = controls_of(wells).assign(emb_0000=lambda t: t["emb_0000"] * 100)
    np.testing.assert_array_equal(features(done.learn(other).apply(wells)), features(done.apply(wells)))


def test_whitening_takes_nothing_from_a_new_plate_and_the_others_take_its_controls():
    wells = wells_of(["W1/P1", "W2/P1"])
    for how in WORDS:
        done = fit(controls_of(wells), how)
        new = wells_of(["W9/P1"], seed=1)
        if how == "whiten":
            done.apply(new)
            continue
        with pytest.raises(DataError, match="W9") as caught:
            done.apply(new)
        assert caught.value.advice == "postprocess"
        done.learn(controls_of(new)).apply(new)


def test_epsilon_and_by_are_kept(tmp_path):
    wells = wells_of(["W1/P1", "W1/P2"])
    done = fit(controls_of(wells), "standardize", epsilon=1e9)
    assert abs(features(done.apply(wells))).max() < 1e-6
    by = fit(controls_of(wells), "tvn", by=BY_PLATE, epsilon=0.3)
    by.save(tmp_path / "fit.npz")
    again = Correction.load(tmp_path / "fit.npz")
    assert again.by == BY_PLATE
    np.testing.assert_array_equal(features(again.apply(wells)), features(by.apply(wells)))
    mask = (wells["Metadata_control"] == "negative").to_numpy()
    reference = tvn(wells, mask, wells["Metadata_Plate"].to_numpy(), 0.3)
    np.testing.assert_allclose(features(by.apply(wells)), features(reference), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", WORDS)
def test_too_few_controls_are_known_before_anything_is_fitted(how):
    wells = wells_of(["W1/P1", "W2/P7"])
    some = (wells["Metadata_control"] == "negative").to_numpy() & (wells["Metadata_Plate"] != "P7").to_numpy()
    if how == "whiten":
        postprocess.check_controls(wells, some, how, None)
        with pytest.raises(DataError, match="too few"):
            postprocess.check_controls(wells, np.zeros(len(wells), bool), how, None)
        return
    with pytest.raises(DataError, match=r"W2.*0"):
        postprocess.check_controls(wells, some, how, None)
    known = fit(controls_of(wells), how)
    postprocess.check_controls(wells, some, how, None, known)


def test_what_does_not_fit_is_one_line(tmp_path):
    wells = wells_of(["W1/P1", "W1/P2"])
    with pytest.raises(ConfigError, match=r"'whitten'.*'whiten'"):
        fit(wells, "whitten")
    with pytest.raises(ConfigError, match="-1"):
        fit(wells, "whiten", epsilon=-1)
    with pytest.raises(ConfigError, match="Metadata_Week"):
        fit(wells, "tvn", by=["Metadata_Week"])
    done = fit(controls_of(wells), "whiten")
    with pytest.raises(DataError, match=r"emb_0000.*f"):
        done.apply(wells.rename(columns={"emb_0000": "f"}))
    with pytest.raises(DataError, match=r"none\.npz"):
        Correction.load(tmp_path / "none.npz")
    for content in (b"text", b"PK\x03\x04"):
        (tmp_path / "text.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"text\.npz"):
            Correction.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.array([object()]))
    with pytest.raises(DataError, match=r"other\.npz"):
        Correction.load(tmp_path / "other.npz")
