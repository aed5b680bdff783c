"""What is planted in simulated profiles is there."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError
from biomass.simulation.profile_tables import simulate_profiles


def features(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if name.startswith("emb_")]]


def test_a_table_is_that_of_its_seed() -> None:
    one, same, other = (simulate_profiles(seed=seed, features=5, plate=1) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert not np.allclose(features(one), features(other))


def test_noise_alone_has_a_variance_of_one_and_factors_that_features_share() -> None:
    table = features(simulate_profiles(experiments=8, plates=8, treatment=0.0, features=40))
    assert np.allclose(table.var(), 1, atol=0.1)
    values = np.linalg.eigvalsh(table.corr())[::-1]
    assert values[:8].sum() > 0.5 * values.sum()


def test_a_plate_moves_its_wells_by_the_planted_size() -> None:
    table = simulate_profiles(experiments=1, plates=40, plate=2.0, treatment=0.0, features=50)
    means = features(table).groupby(table["Metadata_Plate"]).mean()
    assert np.isclose(np.sqrt(means.var().mean()), 2.0, rtol=0.1)


def test_an_experiment_moves_all_its_plates_alike() -> None:
    table = simulate_profiles(experiments=30, plates=2, experiment=2.0, treatment=0.0, features=50)
    means = features(table).groupby([table["Metadata_Batch"], table["Metadata_Plate"]]).mean()
    assert means.groupby(level=0).std().mean().mean() < 0.3
    assert np.isclose(np.sqrt(means.groupby(level=0).mean().var().mean()), 2.0, rtol=0.1)


@pytest.mark.parametrize("heavy", [0.0, 3.0])
def test_wells_at_the_edge_differ_by_the_planted_size(heavy: float) -> None:
    table = simulate_profiles(plates=12, edge=3.0, treatment=0.0, features=60, heavy=heavy)
    edge = table["Metadata_Well"].str[0].isin(["A", "H"]) | table["Metadata_Well"].str[1:].isin(["01", "12"])
    apart = features(table)[edge].mean() - features(table)[~edge].mean()
    assert np.isclose(np.sqrt((apart**2).mean()), 3.0, rtol=0.25)


def test_compounds_of_a_mechanism_are_alike() -> None:
    table = simulate_profiles(plates=6, features=80, treatment=2.0, shared=0.8, compounds=8, mechanisms=4)
    means = features(table).groupby([table["Metadata_moa"], table["Metadata_label"]]).mean().drop("")
    alike = np.corrcoef(means)
    same = means.index.get_level_values(0).to_numpy()
    pairs = (same[:, None] == same[None]) & ~np.eye(8, dtype=bool)
    assert alike[pairs].mean() > 0.6
    assert abs(alike[~pairs & ~np.eye(8, dtype=bool)].mean()) < 0.3


def test_layouts_and_spreads() -> None:
    places = {
        layout: simulate_profiles(layout=layout, features=1).groupby("Metadata_Well")["Metadata_label"].nunique().max()
        for layout in ("fixed", "randomized")
    }
    assert places["fixed"] == 1 < places["randomized"]
    own = simulate_profiles(spread="experiment", features=1, controls=4).query("Metadata_control == ''")
    assert own.groupby("Metadata_label")["Metadata_Batch"].nunique().max() == 1
    some = simulate_profiles(spread="plate", features=1)
    assert some.groupby("Metadata_Plate")["Metadata_label"].nunique().max() < some["Metadata_label"].nunique()


def test_larger_plates_and_doses() -> None:
    table = simulate_profiles(experiments=1, plates=1, format=1536, wells=900, features=1, doses=3, compounds=10)
    assert table["Metadata_label"].nunique() == 31
    assert table["Metadata_Well"].str.match(r"^(A?[A-Z])\d\d$").all()
    assert (len(table), table["Metadata_Well"].nunique()) == (900, 900)
    assert table["Metadata_Well"].str.startswith("AA").any()


@pytest.mark.parametrize(
    "wrong", [{"layout": "random"}, {"plats": 3}, {"heavy": 1.0}, {"shared": 2.0}, {"wells": 97}, {"format": 24}]
)
def test_a_parameter_out_of_range_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())) if "plats" not in wrong else "plats")):
        simulate_profiles(**wrong)
