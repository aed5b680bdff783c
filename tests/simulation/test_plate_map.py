"""The simulated screen of a lab's own plate map: the design is kept, and only the look is drawn."""

import numpy as np
import pandas as pd
import pytest

from biomass.errors import ConfigError, DataError
from biomass.screen import PLATE
from biomass.simulation.plate_map import Look, simulate_plate_map

LOOK = Look(size=48, sites=2)


def plate_map(experiments: int = 3, plates: int = 2) -> pd.DataFrame:
    """Six wells a plate: two of a control, four of treatments, two of which share a label."""
    names = [("DMSO", "DMSO", "negative"), ("taxol", "taxol", "positive"), ("a 1", "a", ""), ("a 2", "a", "")]
    names += [("b", "b", ""), ("c", "c", "")]
    rows = [
        (f"e{e}", f"P{p}", f"{'ABCDEF'[i]}0{p + 1}", *name)
        for i, name in enumerate(names)
        for e in range(experiments)
        for p in range(plates)
    ]
    return pd.DataFrame(rows, columns=["experiment", "plate", "well", "treatment", "label", "control"])


def test_the_design_is_that_of_the_map() -> None:
    wells = plate_map()
    screen = simulate_plate_map(wells, LOOK, workers=1)
    assert len(screen) == 2 * len(wells)
    assert screen.classes == ("DMSO", "a", "b", "c", "taxol")
    assert screen.pixels.size == (48, 48)
    table = screen.table
    for column in (*PLATE, "well", "control"):
        assert table[column].astype(str).tolist() == wells[column].repeat(2).tolist()
    assert table["compound"].tolist() == wells["treatment"].repeat(2).tolist()
    assert [screen.classes[label] for label in screen.labels] == wells["label"].repeat(2).tolist()
    assert table["site"].astype(str).tolist() == ["1", "2"] * len(wells)
    assert not table.duplicated([*PLATE, "well", "site"]).any()


@pytest.mark.parametrize(("experiments", "unit"), [(4, ["experiment"]), (2, list(PLATE))])
def test_whole_experiments_are_held_out_or_plates_where_there_are_few(experiments: int, unit: list[str]) -> None:
    screen = simulate_plate_map(plate_map(experiments), LOOK, workers=1)
    splits = screen.table.groupby(unit, observed=True)["split"].agg(lambda s: set(s.astype(str)))
    assert set(screen.splits) == {"train", "val", "test"}
    assert all(len(one) == 1 for one in splits)


def test_the_same_map_is_the_same_screen_with_any_number_of_workers_and_another_seed_another() -> None:
    wells = plate_map(plates=1)
    one, two = (simulate_plate_map(wells, LOOK, workers=n) for n in (1, 3))
    rows = np.arange(len(one))
    assert (one.read(rows) == two.read(rows)).all()
    other = simulate_plate_map(wells, Look(size=48, sites=2, seed=1), workers=1)
    assert (one.read(rows) != other.read(rows)).mean() > 0.5


def features(screen) -> np.ndarray:
    """What images show at a glance, log of mean and spread of each channel, (rows, 6)."""
    images = screen.read(np.arange(len(screen))).astype(float)
    return np.log(np.concatenate([images.mean((2, 3)), images.std((2, 3))], axis=1) + 1)


def test_treatments_differ_from_controls_and_plates_from_each_other() -> None:
    wells = pd.concat([plate_map().assign(well=f"A{i + 1:02d}" if i else "A01", row=i) for i in range(12)])
    wells["well"] = [f"{'ABCDEFGHIJKLMNOP'[i % 16]}{i // 16 + 1:02d}" for i in range(len(wells))]
    ideal = simulate_plate_map(wells.drop(columns="row"), Look(size=64, nuisance=0.0), workers=1)
    x, control = features(ideal), (ideal.table["control"] == "negative").to_numpy()
    apart = []
    for label in range(len(ideal.classes)):
        own = ideal.labels == label
        if not (own & control).any():
            apart.append(np.abs(x[own].mean(0) - x[control].mean(0)).max() / x[control].std(0).min())
    assert min(apart) > 1  # every treatment is seen
    real = features(simulate_plate_map(wells.drop(columns="row"), Look(size=64), workers=1))
    plates = pd.DataFrame(real[control]).groupby(ideal.plate_ids[control]).mean()
    still = pd.DataFrame(x[control]).groupby(ideal.plate_ids[control]).mean()
    assert plates.std().mean() > 3 * still.std().mean()


def test_unseen_plates_lie_further_out() -> None:
    wells = pd.DataFrame({"experiment": "", "plate": [f"P{i}" for i in range(120)], "well": "A01", "treatment": "DMSO"})
    wells = wells.assign(label="DMSO", control="negative")
    x = {shift: features(simulate_plate_map(wells, Look(size=48, test_shift=shift), workers=1)) for shift in (1.0, 3.0)}
    split = simulate_plate_map(wells, Look(size=48), workers=1).table["split"].to_numpy()
    spread = {shift: values[split == "test"].std(0).mean() for shift, values in x.items()}
    assert spread[3.0] > 1.5 * spread[1.0]
    assert (x[3.0][split == "train"] == x[1.0][split == "train"]).all()


def test_one_treatment_a_plate_can_be_drawn() -> None:
    wells = pd.DataFrame({"experiment": "", "plate": list("123"), "well": "A01", "treatment": list("abc")})
    screen = simulate_plate_map(wells.assign(label=wells["treatment"], control=""), LOOK, workers=1)
    assert len(screen) == 6


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(DataError, match="2 plates"):
        simulate_plate_map(plate_map(1), LOOK)
    with pytest.raises(ConfigError, match="size=20"):
        Look(size=20)
    with pytest.raises(ConfigError, match="effect=-1"):
        Look(effect=-1)
