"""Corrections against the libraries and formulas that they stand for, and on plates that come later."""

import sys

import numpy as np
import pandas as pd
import pytest

from biomass.errors import CannotJudgeError
from biomass.evaluation import normalize, tvn, whiten
from biomass.judgement import corrections, harmonize
from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.harmonize import ComBat, fit_combat, principal_components
from biomass.judgement.table import Profiles

INDUCTIVE = [key for key, one in CORRECTIONS.items() if not one.refit_only]


def screen(plates=("W1/P1", "W1/P2", "W2/P1", "W2/P2"), features=6, size=(4, 6), seed=0):
    """Plates that differ in place and scale; the first two columns of each hold negative controls."""
    rng = np.random.default_rng(seed)
    tables, values = [], []
    for plate in plates:
        row, column = (one.ravel() for one in np.indices(size))
        wells = pd.DataFrame({"plate": plate, "experiment": plate.split("/")[0], "row": row, "column": column})
        wells["control"] = np.where(column < 2, "negative", "")
        tables.append(wells)
        values.append(rng.normal(rng.normal(size=features) * 3, rng.uniform(0.5, 3, features), (len(row), features)))
    names = tuple(f"f{i}" for i in range(features))
    return Profiles(pd.concat(tables, ignore_index=True), np.concatenate(values).astype(np.float32), names)


def on(profiles, *plates):
    return profiles.take(profiles.wells["plate"].isin(plates).to_numpy())


def table_of(profiles):
    """As a profile table."""
    named = profiles.wells.rename(columns=lambda role: f"Metadata_{role}")
    return pd.concat([named, pd.DataFrame(profiles.features.astype(float), columns=profiles.names)], axis=1)


def test_what_goes_by_controls_is_what_evaluation_does():
    wells = screen()
    table, mask = table_of(wells), wells.negative
    plain = normalize(table, mask, "Metadata_plate")
    expected = {
        "none": table,
        "standardize": plain,
        "standardize_all": normalize(table, np.ones(len(wells), bool), "Metadata_plate"),
        "whiten": whiten(table, mask),
        "tvn": tvn(table, mask, "Metadata_experiment"),
        "standardize_tvn": tvn(plain, mask, "Metadata_experiment"),
    }
    for key, reference in expected.items():
        done = CORRECTIONS[key].fit_transform(wells)
        np.testing.assert_allclose(done.features, reference[list(wells.names)], atol=2e-4, err_msg=key)
        assert done.notes == ()


@pytest.mark.parametrize(("key", "method"), [("pycytominer", "standardize"), ("pycytominer_mad", "mad_robustize")])
def test_pycytominer_is_its_normalize_plate_by_plate(key, method):
    import pycytominer

    wells = screen(("W1/P1", "W1/P2"))
    wells.features[:, 0] = 3.0  # of which the standardizing of pycytominer makes 0
    done = CORRECTIONS[key].fit_transform(wells)
    for plate in ("W1/P1", "W1/P2"):
        rows = (wells.wells["plate"] == plate).to_numpy()
        reference = pycytominer.normalize(
            table_of(wells.take(rows)),
            list(wells.names),
            False,
            ["Metadata_plate"],
            "Metadata_control == 'negative'",
            method,
        )
        np.testing.assert_allclose(done.features[rows], reference[list(wells.names)], atol=1e-5)


def test_a_median_deviation_of_zero_blows_nothing_up():
    wells = screen(("P1", "P2"))
    counts = np.zeros(len(wells), np.float32)
    counts[[0, 3, 5]] = 5.0  # a count that is 0 in most wells
    wells.features[:, 1] = counts
    done = CORRECTIONS["pycytominer_mad"].fit_transform(wells).features[:, 1]
    controls = counts[:24][wells.negative[:24]]
    np.testing.assert_allclose(done[:24], counts[:24] / controls.std(), rtol=1e-5)
    assert abs(done).max() < 100


def slow_combat(values, plates, fitted, rounds=100):
    """ComBat for one feature after the other: moments of plates, a prior from the plates of the fit, and posteriors."""
    done = np.empty(values.shape)
    inside = np.isin(plates, fitted)
    for f in range(values.shape[1]):
        x = values[:, f].astype(float)
        own = {plate: x[plates == plate] for plate in np.unique(plates)}
        centre = x[inside].mean()
        residual = sum(((own[plate] - own[plate].mean()) ** 2).sum() for plate in fitted) / inside.sum()
        spread = np.sqrt(residual + 1e-8)
        z = {plate: (one - centre) / spread for plate, one in own.items()}
        gammas = np.array([z[plate].mean() for plate in fitted])
        deltas = np.array([z[plate].var(ddof=1) + 1e-8 for plate in fitted])
        mean, tau = gammas.mean(), gammas.var(ddof=1)
        a = deltas.mean() ** 2 / deltas.var(ddof=1) + 2
        b = deltas.mean() * (a - 1)
        for plate, one in z.items():
            n, gamma, delta = len(one), one.mean(), one.var(ddof=1)
            for _ in range(rounds):
                gamma = (n * tau * one.mean() + delta * mean) / (n * tau + delta)
                delta = (b + ((one - gamma) ** 2).sum() / 2) / (n / 2 + a - 1)
            done[plates == plate, f] = centre + spread * (one - gamma) / np.sqrt(delta)
    return done


def test_combat_is_that_of_combatlearn_and_of_the_formula(monkeypatch):
    import combatlearn

    monkeypatch.setattr(harmonize, "COLUMNS", 4)  # features that are fitted at once
    wells = screen()
    plates = wells.wells["plate"]
    done = CORRECTIONS["combat"].fit_transform(wells)
    library = combatlearn.ComBat(batch=plates).fit_transform(pd.DataFrame(wells.features.astype(float)))
    np.testing.assert_allclose(done.features, library, atol=2e-3)
    np.testing.assert_allclose(
        done.features, slow_combat(wells.features, plates.to_numpy(str), np.unique(plates)), atol=2e-3
    )
    means = pd.DataFrame(done.features).groupby(plates.to_numpy()).mean()
    assert means.std().max() < 0.2 * pd.DataFrame(wells.features).groupby(plates.to_numpy()).mean().std().max()


@pytest.mark.parametrize("power", [-40, -20, 30])
def test_combat_does_not_depend_on_the_unit(power):
    wells = screen(("A", "B", "C"), seed=3)
    scaled = wells.with_features(wells.features * np.float32(2.0**power))
    done = fit_combat(on(scaled, "A", "B")).transform(scaled).features * np.float32(2.0**-power)
    np.testing.assert_array_equal(done, fit_combat(on(wells, "A", "B")).transform(wells).features)


def test_combat_shrinks_a_later_plate_towards_those_of_its_fit():
    wells = screen(("A", "B", "C"))
    fit = fit_combat(on(wells, "A", "B"))
    expected = slow_combat(wells.features, wells.wells["plate"].to_numpy(str), ["A", "B"])
    np.testing.assert_allclose(fit.transform(wells).features, expected, atol=2e-3)
    alone = on(wells, "C").take(np.array([0]))  # a single well has no spread of its own
    assert np.isfinite(fit.transform(alone).features).all()
    # it learns the plates of the fit as later ones, alike
    again = ComBat({}, fit.centre, fit.spread, fit.prior, fit.unit, "")
    np.testing.assert_allclose(again.transform(wells).features, fit.transform(wells).features, atol=2e-3)


def test_harmony_is_that_of_harmonypy_on_principal_components():
    harmonypy = pytest.importorskip("harmonypy")
    wells = screen(features=12)
    done = CORRECTIONS["harmony"].fit_transform(wells, seed=3)
    z = (wells.features - wells.features.mean(0)) / wells.features.std(0)
    _, _, directions = np.linalg.svd(z, full_matrices=False)
    components = principal_components(wells.features, 100)
    np.testing.assert_allclose(np.abs(components), np.abs(z @ directions.T), atol=1e-3)
    plates = wells.wells[["plate"]]
    reference = harmonypy.run_harmony(components, plates, "plate", verbose=False, random_state=3)
    np.testing.assert_allclose(done.features, reference.Z_corr, atol=1e-5)
    fit = CORRECTIONS["harmony"].fit(wells, 0)
    for other in (on(wells, "W1/P1"), wells.with_features(wells.features + 1)):
        with pytest.raises(CannotJudgeError, match="Harmony"):
            fit.transform(other)


def test_harmony_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    with pytest.raises(CannotJudgeError, match="harmonypy"):
        CORRECTIONS["harmony"].fit(screen(), 0)


@pytest.mark.parametrize("key", INDUCTIVE)
def test_later_plates_change_nothing_of_a_fit(key):
    wells = screen(("W1/P1", "W1/P2", "W2/P1", "W3/P1"))
    early, late = on(wells, "W1/P1", "W1/P2", "W2/P1"), on(wells, "W3/P1")
    fit = CORRECTIONS[key].fit(early, 0)
    whole = fit.transform(wells)
    np.testing.assert_allclose(fit.transform(early).features, on(whole, "W1/P1", "W1/P2", "W2/P1").features, atol=1e-5)
    np.testing.assert_allclose(fit.transform(late).features, on(whole, "W3/P1").features, atol=1e-5)
    # a few wells of a plate of the fit, controls or not, are corrected as with all of their plate
    few = np.flatnonzero(~early.negative)[:3]
    np.testing.assert_allclose(fit.transform(early.take(few)).features, whole.features[few], atol=1e-5)


@pytest.mark.parametrize("key", CORRECTIONS)
def test_odd_plates_are_corrected_or_refused_in_one_line(key):
    wells = screen()
    wells.features[:, 2] = 7.0
    single = np.r_[0:48, 48]  # the third plate has one well
    uncontrolled = Profiles(wells.wells.drop(columns="control"), wells.features, wells.names)
    one = on(wells, "W1/P1")
    unplaced = Profiles(wells.wells.drop(columns=["plate", "row", "column"]), wells.features, wells.names)
    few = wells.take(np.array([0])), wells.take(np.zeros(0, int))
    for case in (wells.take(single), uncontrolled, one, unplaced, *few):
        try:
            lines, done = [""], CORRECTIONS[key].fit_transform(case)
        except CannotJudgeError as error:
            lines, done = str(error).splitlines(), case
        assert len(lines) == 1
        assert len(done) == len(case)
        assert np.isfinite(done.features).all()
        assert abs(done.features).max(initial=0) < 1e4


def test_what_was_taken_in_place_of_controls_is_said():
    wells = screen()
    wells.wells.loc[(wells.wells["plate"] == "W1/P2") & (wells.wells["column"] < 2), "control"] = "positive"
    for key in ("standardize", "pycytominer"):
        done = CORRECTIONS[key].fit_transform(wells)
        assert len(done.notes) == 1
        assert "W1/P2" in done.notes[0]
        plain = CORRECTIONS["standardize_all"].fit_transform(wells)
        ratio = {"standardize": 1, "pycytominer": np.sqrt(24 / 23)}[key]
        np.testing.assert_allclose(on(done, "W1/P2").features, on(plain, "W1/P2").features * ratio, atol=1e-4)
    with pytest.raises(CannotJudgeError, match="standardize_all"):
        CORRECTIONS["standardize"].fit(Profiles(wells.wells.drop(columns="control"), wells.features, wells.names), 0)


def test_large_tables_in_parts_are_as_in_one(monkeypatch):
    wells = screen(seed=1)
    shuffled = wells.take(np.random.default_rng(0).permutation(len(wells)))
    whole = {key: CORRECTIONS[key].fit_transform(shuffled).features for key in ("standardize_all", "standardize_tvn")}
    monkeypatch.setattr(corrections, "ROWS", 7)
    for key, expected in whole.items():
        np.testing.assert_allclose(CORRECTIONS[key].fit_transform(shuffled).features, expected, atol=1e-4)
    monkeypatch.setattr(corrections, "REFERENCE", 20)
    done = CORRECTIONS["tvn"].fit_transform(shuffled)
    assert any("20 of 32" in note for note in done.notes)
