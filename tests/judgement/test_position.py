"""Position effects that were planted are found, where they are and nowhere else, and can be removed."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import CannotJudgeError
from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.position import position_notes, position_table
from biomass.judgement.table import Profiles

SHAPE = (8, 12)


def screen(plates=6, features=8, seed=0, layout="own", effect=2.0):
    """Plates whose first and last columns hold controls; treated wells lie ``effect`` from them, each in its way.

    ``layout``: treatments have places of their own on every plate, the ``same`` on all, or fill ``rows``.
    """
    rng = np.random.default_rng(seed)
    row, column = (one.ravel() for one in np.indices(SHAPE))
    treated = (column > 0) & (column < 11)
    ways = rng.normal(size=(80, features)) * effect
    tables, values = [], []
    for plate in range(plates):
        treatment = np.full(96, -1)
        order = np.random.default_rng(seed if layout == "same" else (seed, plate)).permutation(80)
        treatment[treated] = row[treated] if layout == "rows" else order
        wells = pd.DataFrame({"plate": f"P{plate}", "row": row, "column": column})
        wells["treatment"] = np.where(treated, np.char.add("t", treatment.astype(str)), "DMSO")
        wells["control"] = np.where(treated, "", "negative")
        tables.append(wells)
        values.append(
            rng.normal(size=(96, features)) + rng.normal(size=features) * 3 + ways[treatment] * treated[:, None]
        )
    names = tuple(f"f{i}" for i in range(features))
    return Profiles(pd.concat(tables, ignore_index=True), np.concatenate(values).astype(np.float32), names)


def planted(profiles, kind, size=1.5):
    """The same with an effect of the third row, the third column, or the edge."""
    row, column = profiles.wells["row"].to_numpy(), profiles.wells["column"].to_numpy()
    edge = (row == 0) | (row == 7) | (column == 0) | (column == 11)
    where = {"row": row == 2, "column": column == 2, "edge": edge}[kind]
    return profiles.with_features(
        profiles.features + size * where[:, None] * np.linspace(-1, 1, profiles.features.shape[1])
    )


def whole(table):
    return table[(table["plate"] == "") & (table["place"] == "")].set_index("kind")


@pytest.mark.parametrize("kind", ["row", "column", "edge"])
def test_a_planted_effect_is_found_where_it_is(kind):
    found = position_table(planted(screen(), kind, 2.5), "plate", "none", permutations=99)
    assert found.columns.tolist() == [
        "statistics",
        "correction",
        "plate",
        "kind",
        "place",
        "effect",
        "low",
        "high",
        "p",
    ]
    assert set(found["statistics"]) == {"plate"}
    sizes = whole(found)
    assert sizes.loc[kind, "p"] == 0.01
    assert sizes.loc[kind, "low"] > 0
    places = found[(found["kind"] == kind) & (found["place"] != "")].set_index("place")["effect"]
    assert places.abs().idxmax() == {"row": "C", "column": "3", "edge": "edge"}[kind]
    per_plate = found[(found["kind"] == kind) & (found["plate"] != "")]
    assert (per_plate["p"] < 0.15).mean() > 0.5
    assert sizes.loc[kind, "effect"] == pytest.approx(per_plate["effect"].mean(), abs=0.02)


def test_the_share_is_that_of_analysis_of_variance():
    wells = screen(1, features=1, effect=0.0)
    wells = Profiles(wells.wells[["plate", "row", "column"]], wells.features, wells.names)
    found = position_table(planted(wells, "row"), permutations=999)
    x = planted(wells, "row").features[:, 0].astype(float)
    within = sum(((x[wells.wells["row"] == r] - x[wells.wells["row"] == r].mean()) ** 2).sum() for r in range(8))
    total = ((x - x.mean()) ** 2).sum()
    # less what 7 of 95 degrees of freedom explain by chance
    assert whole(found).loc["row", "effect"] == pytest.approx((1 - within / total - 7 / 95) / (1 - 7 / 95), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["own", "same"])
def test_without_an_effect_p_is_uniform_whatever_treatments_and_controls_do(layout):
    screens = (screen(3, 4, seed, layout, effect=3.0) for seed in range(60))
    p = np.array([whole(position_table(one, permutations=19))["p"] for one in screens])  # (60, 3)
    assert 0.43 < p.mean() < 0.62
    assert (p <= 0.1).mean() < 0.17
    assert (p > 0.5).mean() > 0.4


def test_treatments_that_fill_rows_are_not_taken_for_an_effect_of_the_row():
    wells = screen(layout="rows", effect=4.0)
    notes = position_notes(wells)
    assert any("row" in note and "100%" in note for note in notes)
    sizes = whole(position_table(wells, permutations=99))
    assert sizes.loc["row", "p"] > 0.05  # of the controls alone
    assert "edge" not in sizes.index  # on which all of them lie
    assert whole(position_table(planted(wells, "row", 3.0), permutations=99)).loc["row", "p"] == 0.01
    assert "100%" in CORRECTIONS["position"].fit_transform(wells).notes[0]
    assert position_notes(screen()) == CORRECTIONS["position"].fit_transform(screen()).notes == ()
    assert any("same well" in note for note in position_notes(screen(layout="same")))


def test_an_effect_that_all_plates_share_is_found_where_no_plate_alone_could_tell():
    wells = screen(20)
    row, column = wells.wells["row"].to_numpy(), wells.wells["column"].to_numpy()
    few = planted(wells, "row", 1.0).take((column == 0) & (row < 6))  # a control in each of six rows
    found = position_table(few, permutations=99)
    assert found["kind"].unique().tolist() == ["row"]
    assert whole(found).loc["row", "p"] == 0.01
    assert whole(found).loc["row", "effect"] > 0.05
    assert found[found["plate"] != ""].query("kind == 'row'")["effect"].isna().all()


@pytest.mark.parametrize("kind", ["row", "column"])
def test_the_b_score_removes_a_planted_effect(kind):
    wells = planted(screen(effect=0.3), kind)
    done = CORRECTIONS["position"].fit_transform(wells)
    before, after = (whole(position_table(one, permutations=49)).loc[kind] for one in (wells, done))
    assert before["effect"] > 0.03
    assert after["effect"] < 0.3 * before["effect"]


def test_without_places_it_cannot_be_told():
    wells = screen(1)
    bare = Profiles(wells.wells[["plate"]], wells.features, wells.names)
    unknown = Profiles(wells.wells.assign(row=-1, column=-1), wells.features, wells.names)
    alone = wells.take(np.array([40]))
    for case in (bare, unknown, alone):
        for judge in (position_table, CORRECTIONS["position"].fit_transform):
            with pytest.raises(CannotJudgeError):
                judge(case)
    few = wells.take(np.array([0, 1, 2, 12, 13, 14]))
    with pytest.raises(CannotJudgeError, match="4 wells"):
        CORRECTIONS["position"].fit_transform(few)
