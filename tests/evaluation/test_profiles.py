"""Profile tables of a screen: their columns, their means, what is kept of a plate and when it is made again."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from biomass.errors import ConfigError, DataError
from biomass.evaluation import profiles
from biomass.evaluation.measured import measured_plates
from biomass.screen import COLUMNS, PLATE, VectorPixels, make_screen

RNG = np.random.default_rng(0)


def screen_of(n=60, cells=True, **columns):
    """Two plates of one batch, three wells each, two fields a well, and five cells a field if there are cells."""
    number = np.arange(n if cells else 12)
    field = number % 12
    table = pd.DataFrame(dict.fromkeys(COLUMNS, np.full(len(number), "")), index=number)
    table["experiment"], table["label"] = "W1", field % 2
    table["plate"] = np.array(["P1", "P2"])[field // 6]
    table["well"] = np.array(["A1", "A2", "B1"])[field // 2 % 3]
    table["site"] = (field % 2).astype(str)
    table["control"] = np.where(table["well"] == "A1", "negative", "")
    pixels = VectorPixels(RNG.standard_normal((len(number), 1, 2, 2)).astype(np.float32))
    return make_screen(table.assign(**columns), pixels, ["DMSO", "taxol"])


def vectors_of(screen, groups, group, features=4):
    rows = np.flatnonzero(groups == group)
    return profiles.PlateVectors(group, rows, RNG.standard_normal((len(rows), features)).astype(np.float32))


def parts_of(screen, folder, prints=("a", "b"), held=None, rows=None):
    known = profiles.describe(screen, rows)
    return profiles.Parts(known, [folder / "P1", folder / "P2"], prints, held or {})


def test_metadata_are_called_as_in_jump_and_all_columns_are_there():
    screen = screen_of(dose=1.5, x=np.arange(60), Metadata_pert="a", Plate="of the lab", Well="A1")
    known = profiles.describe(screen)
    assert known.levels == ("cells", "fields", "wells")
    first = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_cell_type"]
    assert known.columns["cells"][:5] == first
    assert {"Metadata_dose", "Metadata_x", "Metadata_pert", "Metadata_own_Plate"} <= set(known.columns["cells"])
    assert set(known.columns["cells"]) - set(known.columns["fields"]) == {"Metadata_x"}
    assert set(known.columns["fields"]) - set(known.columns["wells"]) == {"Metadata_Site", "Metadata_label"}
    assert known.table["Metadata_label"].tolist()[:2] == ["DMSO", "taxol"]
    lower = [column.lower() for column in known.table]
    assert len(set(lower)) == len(lower)


def test_a_column_that_says_the_same_as_a_canonical_one_is_there_once(caplog):
    caplog.set_level("INFO")
    assert "Metadata_batch" not in profiles.describe(screen_of(batch="W1")).table
    assert "'batch'" in caplog.text


def test_what_a_row_is_can_be_said_where_the_table_does_not_show_it():
    one_a_field = screen_of(cells=False)
    assert profiles.describe(one_a_field).levels == ("fields", "wells")
    assert profiles.describe(one_a_field, "cells").levels == ("cells", "fields", "wells")
    nameless = make_screen(one_a_field.table.assign(site=""), one_a_field.pixels, one_a_field.classes)
    assert profiles.describe(nameless).row_level == "cells"
    assert len(np.unique(profiles.describe(nameless, "fields").fields)) == len(nameless)
    with pytest.raises(ConfigError, match="nuclei"):
        profiles.describe(one_a_field, "nuclei")
    with pytest.raises(DataError, match="row 0 "):
        profiles.describe(make_screen(one_a_field.table.assign(well=""), None, one_a_field.classes))


def test_fields_are_the_means_of_their_cells_and_wells_those_of_their_fields(tmp_path):
    screen = screen_of(n=57)  # fields have four cells or five
    groups = screen.groups(PLATE)
    parts = parts_of(screen, tmp_path)
    plates = [vectors_of(screen, groups, group) for group in (0, 1)]
    parts.write(plates, None, str)
    tables = {}
    for level in ("cells", "fields", "wells"):
        file = tmp_path / f"{level}.parquet"
        assert parts.join(level, file) == len(pd.read_parquet(file))
        tables[level] = pd.read_parquet(file)
    features = [f"emb_{i:04d}" for i in range(4)]
    cells = tables["cells"]
    np.testing.assert_array_equal(cells[features], np.concatenate([plate.vectors for plate in plates]))
    field = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    means = cells.groupby(field)[features].mean()
    np.testing.assert_allclose(tables["fields"].set_index(field)[features].loc[means.index], means, rtol=1e-5)
    count = cells.groupby(field).size()
    assert tables["fields"].set_index(field)["Metadata_Count_Cells"].loc[count.index].tolist() == count.tolist()
    wells = tables["fields"].groupby(field[:3])[features].mean()
    np.testing.assert_allclose(tables["wells"].set_index(field[:3])[features].loc[wells.index], wells, rtol=1e-5)
    assert tables["wells"]["Metadata_Count_Cells"].sum() == 57
    assert (tables["wells"]["Metadata_Count_Fields"] == 2).all()
    assert (tables["wells"].dtypes[features] == np.float32).all()


def test_a_screen_of_fields_has_no_cells_to_count_unless_they_were_counted(tmp_path):
    screen = screen_of(cells=False)
    groups = screen.groups(PLATE)
    plain, counted = parts_of(screen, tmp_path / "plain"), parts_of(screen, tmp_path / "counted")
    plates = [vectors_of(screen, groups, group) for group in (0, 1)]
    plain.write(plates, None, str)
    counts = [profiles.PlateVectors(p.group, p.rows, p.vectors, np.arange(6)) for p in plates]
    counted.write(counts, ["a", "b", "c", "d"], str)
    for parts in (plain, counted):
        parts.join("wells", tmp_path / "wells.parquet")
        table = pd.read_parquet(tmp_path / "wells.parquet")
        assert ("Metadata_Count_Cells" in table) == (parts is counted)
    assert table["Metadata_Count_Cells"].tolist() == [1, 5, 9] * 2
    assert list(table.columns[-4:]) == ["a", "b", "c", "d"]


def test_types_are_those_of_the_whole_screen_also_where_a_plate_has_no_value(tmp_path):
    field = np.arange(60) % 12
    screen = screen_of(note=np.where(field < 6, None, "late"), dose=np.where(field < 6, np.nan, 1.0), mix=[1, "a"] * 30)
    parts = parts_of(screen, tmp_path)
    parts.write([vectors_of(screen, screen.groups(PLATE), group) for group in (0, 1)], None, str)
    parts.join("cells", tmp_path / "cells.parquet")
    table = pd.read_parquet(tmp_path / "cells.parquet")
    assert table["Metadata_note"].isna().sum() == table["Metadata_dose"].isna().sum() == 30
    assert set(table["Metadata_mix"]) == {"1", "a"}


def test_a_plate_is_made_again_only_if_what_it_was_made_from_has_changed(tmp_path):
    screen = screen_of()
    groups = screen.groups(PLATE)
    assert parts_of(screen, tmp_path).missing() == [0, 1]
    measured = {"norms.0": torch.zeros(2, 3)}
    plates = [vectors_of(screen, groups, group) for group in (0, 1)]
    plates[1] = profiles.PlateVectors(1, plates[1].rows, plates[1].vectors, moments=measured)
    parts_of(screen, tmp_path).write(plates, None, str)
    assert parts_of(screen, tmp_path).missing() == []
    assert parts_of(screen, tmp_path, ("a", "other")).missing() == [1]
    assert parts_of(screen, tmp_path, held={1: measured}).missing() == []  # stored now, and the same
    assert parts_of(screen, tmp_path, held={1: {"norms.0": torch.ones(2, 3)}}).missing() == [1]
    assert parts_of(screen, tmp_path).moments(1)["norms.0"].tolist() == measured["norms.0"].tolist()
    (tmp_path / "P1" / "fields.parquet").write_bytes(b"cut off")
    assert parts_of(screen, tmp_path).missing() == [0]
    stored = parts_of(screen, tmp_path, held={0: measured})
    stored.write(plates[:1], None, str)
    assert stored.missing() == []
    assert parts_of(screen, tmp_path).missing() == [0]  # no longer stored: to be measured


def test_files_are_joined_without_being_in_memory_together(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "_ROW_GROUP", 7)
    screen = screen_of()
    parts = parts_of(screen, tmp_path)
    parts.write([vectors_of(screen, screen.groups(PLATE), group) for group in (0, 1)], None, str)
    seen = []

    def change(rows):
        seen.append(len(rows))
        return rows.assign(emb_0000=0.0)

    assert parts.join("cells", tmp_path / "cells.parquet", change=change) == 60
    assert max(seen) <= 7
    assert pq.read_table(tmp_path / "cells.parquet")["emb_0000"].to_pylist() == [0.0] * 60
    assert parts.join("cells", tmp_path / "one.parquet", without=[0]) == 30


def test_a_well_in_two_groups_is_refused():
    screen = screen_of(half=np.arange(60) % 2)
    with pytest.raises(ConfigError, match=r"half.*W1/P1/A01") as caught:
        profiles.check_groups(profiles.describe(screen), screen.groups(["half"]), ["half"])
    assert caught.value.advice == "statistics"


def measure(images):
    flat = images.reshape(len(images), -1)
    return flat, (flat[:, 0] > 0).astype(np.int64)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_measured_does_not_depend_on_processes_or_batches(workers):
    screen = screen_of(cells=False)
    groups = screen.groups(PLATE)
    found = list(measured_plates(screen, groups, [1], measure, batch_size=4, num_workers=workers, counted=True))
    assert [plate.group for plate in found] == [1]
    images = screen.read(np.flatnonzero(groups == 1)).reshape(6, -1)
    kept = images[:, 0] > 0
    assert 0 < kept.sum() < 6
    np.testing.assert_array_equal(found[0].rows, np.flatnonzero(groups == 1)[kept])
    np.testing.assert_array_equal(found[0].vectors, images[kept])
    assert found[0].counts.tolist() == [1] * kept.sum()
