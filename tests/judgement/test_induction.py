"""Inductive evaluation, and drift that does not see a turn of the axes."""

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group

from biomass.errors import CannotJudgeError
from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.induction import DRIFT, drift_between, induct, plate_order
from biomass.judgement.scores import Measured, Metric
from biomass.judgement.table import Profiles


def screen(plates=6, wells=20, features=5, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"plate": np.repeat([f"P{i}" for i in range(8, 8 + plates)], wells)})
    table["well"] = [f"{'ABCD'[i // 5]}{i % 5 + 1:02d}" for i in range(wells)] * plates
    table["row"], table["column"] = [i // 5 for i in range(wells)] * plates, [i % 5 for i in range(wells)] * plates
    table["control"] = np.where(table["column"] < 2, "negative", "")
    values = rng.normal(size=(len(table), features)) + np.repeat(rng.normal(size=(plates, features)) * 3, wells, axis=0)
    return Profiles(table, values.astype(np.float32), tuple(f"f{i}" for i in range(features)))


def offset(profiles, seed):
    """How far plates lie from 0."""
    means = pd.DataFrame(profiles.features).groupby(profiles.codes("plate")).mean()
    return Measured((means**2).sum(axis=1).to_numpy(), means.index.to_numpy(), 0.0)


METRICS = {"offset": Metric("distance of plates from 0", "batch", "lower", "plates", "", "", offset)}


def test_plates_come_in_the_order_of_their_numbers():
    wells = screen(4)
    assert plate_order(wells) == ["P8", "P9", "P10", "P11"]
    both = Profiles(wells.wells.assign(experiment=np.repeat(["W2", "W10"], 40)), wells.features, wells.names)
    assert plate_order(both.take(np.arange(80)[::-1])) == ["P8", "P9", "P10", "P11"]


def test_nothing_but_what_is_refit_drifts():
    found = induct(screen(), CORRECTIONS, [2, 4], METRICS).set_index(["correction", "k", "metric"])
    for (name, k, metric), row in found[found.index.get_level_values("metric") == DRIFT].iterrows():
        if name == "harmony" and find_spec("harmonypy") is None:
            assert "harmonypy" in row["note"]
        elif CORRECTIONS[name].refit_only:
            assert (k == 2 and "Harmony" in row["note"]) or row["fit"] > 0.01
        else:
            assert row["fit"] == 0.0, (name, k, metric)
    assert found.loc[("none", 2, "offset"), "later"] > 10
    assert found.loc[("standardize_all", 2, "offset"), "later"] < 1e-6
    assert found.loc[("standardize", 4, "offset"), "later"] < found.loc[("none", 4, "offset"), "later"] / 5


def test_the_plates_and_their_order_may_be_given():
    wells = screen()
    found = induct(wells, {"none": CORRECTIONS["none"]}, 1, METRICS, order=["P12", "P8"]).set_index("metric")
    for column, plate in (("fit", "P12"), ("later", "P8")):
        rows = (wells.wells["plate"] == plate).to_numpy()
        assert found.loc["offset", column] == pytest.approx((wells.features[rows].mean(0) ** 2).sum(), rel=1e-5)
    with pytest.raises(CannotJudgeError, match="2"):
        induct(wells, CORRECTIONS, 2, METRICS, order=["P12", "P8"])
    with pytest.raises(CannotJudgeError, match="plate"):
        induct(Profiles(wells.wells[["well"]], wells.features, wells.names), CORRECTIONS, 2, METRICS)


def test_a_correction_that_cannot_be_fitted_says_why_in_its_rows():
    found = induct(screen(), {"combat": CORRECTIONS["combat"]}, 1, METRICS)
    assert found["fit"].isna().all()
    assert found["note"].str.contains("two plates").all()


def test_a_rotation_a_reflection_and_a_shift_are_no_drift():
    wells = screen(features=30)
    turn = ortho_group.rvs(30, random_state=0).astype(np.float32)
    assert drift_between(wells, wells.with_features(wells.features @ turn + 5)).value == 0.0
    assert drift_between(wells, wells.with_features(np.pad(wells.features @ turn, ((0, 0), (0, 4))))).value == 0.0
    assert drift_between(wells, wells).value == 0.0


def test_what_is_left_after_the_turn_is_told_in_closed_form():
    wells = screen(features=4)
    centred = wells.features - wells.features.mean(0)
    grown = drift_between(wells, wells.with_features(wells.features * 1.25))
    assert grown.value == pytest.approx(0.25, rel=1e-4)
    assert grown.low <= grown.value <= grown.high
    rng = np.random.default_rng(1)
    noisy = centred + 0.3 * rng.normal(size=centred.shape)
    noisy -= noisy.mean(0)
    singular = np.linalg.svd(centred.T @ noisy, compute_uv=False)
    expected = np.sqrt(((centred**2).sum() + (noisy**2).sum() - 2 * singular.sum()) / (centred**2).sum())
    assert drift_between(wells, wells.with_features(noisy)).value == pytest.approx(expected, rel=1e-4)


def test_wells_are_found_by_their_names():
    wells = screen()
    order = np.random.default_rng(0).permutation(len(wells))[3:]
    found = drift_between(wells, wells.take(order))
    assert (found.value, found.wells) == (0.0, len(wells) - 3)
    assert found.note.startswith("3 wells")
    twice = wells.take(np.r_[0, 0:10])
    with pytest.raises(CannotJudgeError, match="P8/A01"):
        drift_between(twice, wells)
    bare = Profiles(wells.wells[["row"]], wells.features, wells.names)
    assert drift_between(bare, wells).value == 0.0
    with pytest.raises(CannotJudgeError, match=r"120.*117"):
        drift_between(bare, wells.take(order))
    with pytest.raises(CannotJudgeError, match="one and the same"):
        drift_between(wells.with_features(wells.features * 0), wells)
