"""Tables of profiles from many tools: columns are found and named, missing values handled in one way."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from workbooks import write_workbook

from biomass.errors import BiomassError, ConfigError, DataError
from biomass.judgement.clean import fill_missing
from biomass.judgement.read import read_profiles, understand
from biomass.judgement.table import Profiles


def wells(number: int = 40, features: int = 4, **about: object) -> pd.DataFrame:
    """Plates P0, P1 … of 20 wells A1 … D5, with random features ``f0`` …."""
    rng = np.random.default_rng(0)
    at = range(number)
    place = {
        "Metadata_Plate": [f"P{i // 20}" for i in at],
        "Metadata_Well": [f"{'ABCD'[i % 20 // 5]}{i % 5 + 1}" for i in at],
    }
    return pd.DataFrame(place | about | {f"f{j}": rng.standard_normal(number) for j in range(features)})


def noted(profiles: Profiles, *words: str) -> bool:
    """Whether one of the notes holds all words."""
    return any(all(word in note for word in words) for note in profiles.notes)


def write_csv(table: pd.DataFrame, file: Path) -> None:
    table.to_csv(file, index=False)


def write_anndata(table: pd.DataFrame, file: Path) -> None:
    anndata = pytest.importorskip("anndata")
    features = table.filter(regex="^f")
    obs = table.filter(like="Metadata_").set_axis([f"row {i}" for i in range(len(table))])
    anndata.AnnData(features.to_numpy(), obs=obs, var=pd.DataFrame(index=features.columns)).write_h5ad(file)


FILES: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "wells.csv": write_csv,
    "wells.csv.gz": write_csv,
    "wells.tsv": lambda table, file: table.to_csv(file, index=False, sep="\t"),
    "german.csv": lambda table, file: table.to_csv(file, index=False, sep=";", decimal=","),
    "utf16.csv": lambda table, file: table.to_csv(file, index=False, encoding="utf-16"),
    "wells.parquet": lambda table, file: table.to_parquet(file),
    "no ending": lambda table, file: table.to_parquet(file),
    "wells.xlsx": lambda table, file: write_workbook(file, {"wells": [list(table), *table.to_numpy(object).tolist()]}),
    "wells.h5ad": write_anndata,
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_says_the_same(name: str, tmp_path: Path) -> None:
    table = wells(Metadata_pert_iname=["DMSO", "化合物", '<script>"', "x" * 200] * 10)
    FILES[name](table, tmp_path / name)
    found, known = read_profiles(tmp_path / name), understand(table)
    pd.testing.assert_frame_equal(found.wells, known.wells)
    np.testing.assert_allclose(found.features, table[["f0", "f1", "f2", "f3"]].to_numpy(np.float32), rtol=1e-6)
    assert found.names == ("f0", "f1", "f2", "f3")
    assert found.taken == known.taken
    assert set(found.wells["compound"]) == {"DMSO", "化合物", '<script>"', "x" * 200}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"Metadata_Batch": "W1", "Metadata_compound": "taxol", "Metadata_concentration": 0.3, "Metadata_moa": "x"}
            | {"Metadata_control": "", "Metadata_Count_Cells": 7},
            {"experiment": "W1", "treatment": "taxol 0.3", "mechanism": "x", "cells": 7.0},
        ),
        (
            {"Metadata_Source": "source_4", "Metadata_pert_iname": "AMG900", "Metadata_broad_sample": "BRD-1"}
            | {"Metadata_control_type": "poscon_cp", "Metadata_target": "AURKB"},
            {"source": "source_4", "treatment": "AMG900", "control": "positive", "mechanism": "AURKB"},
        ),
        ({"Metadata_gene": "TP53", "Metadata_sgRNA": "g2"}, {"compound": "TP53", "treatment": "g2"}),
        ({"Metadata_label": "DMSO"}, {"treatment": "DMSO", "control": "negative"}),
        ({"Metadata_pert_type": "ctl_vehicle", "Metadata_pert_id": "DMSO"}, {"control": "negative"}),
        ({"Metadata_JCP2022": "JCP2022_033924"}, {"treatment": "JCP2022_033924"}),
        ({"Drug Name": "taxol", "Dose [µM]": "3.0"}, {"treatment": "taxol 3", "compound": "taxol"}),
        ({"Metadata_compound": "Vehicle", "Metadata_dose": 0.0}, {"treatment": "Vehicle", "control": "negative"}),
    ],
)
def test_roles_are_found_by_the_names_that_tools_use(columns: dict[str, object], expected: dict[str, object]) -> None:
    found = understand(wells(**columns))
    for role, value in expected.items():
        assert found.wells[role].tolist() == [value] * 40
        assert any(column in found.taken[role] for column in columns)
    assert found.names == ("f0", "f1", "f2", "f3")


def test_roles_can_be_given_and_may_be_several_columns() -> None:
    table = wells(Metadata_batch=["B1", "B2"] * 20, Metadata_x=["a", "b"] * 20, hours=[24, 48] * 20)
    found = understand(table, roles={"treatment": ["x", "hours"], "experiment": None})
    assert found.wells["treatment"].tolist() == ["a 24", "b 48"] * 20
    assert found.taken["treatment"] == "Metadata_x + hours"
    assert "hours" not in found.names
    assert not found.has("experiment")
    for roles, word in (({"treatmnt": "x"}, "'treatment'"), ({"treatment": "Metadata_y"}, "'Metadata_y'")):
        with pytest.raises(ConfigError, match=word):
            understand(table, roles=roles)


def test_a_column_that_is_given_for_the_plate_is_not_found_for_the_experiment() -> None:
    table = wells().drop(columns="Metadata_Plate").assign(run_id=["a"] * 20 + ["b"] * 20)
    assert understand(table).taken["experiment"] == "run_id"
    taken = understand(table, roles={"plate": "run_id"}).taken
    assert taken["plate"] == "run_id"
    assert "experiment" not in taken


def test_what_could_have_been_taken_too_is_said() -> None:
    found = understand(wells(Metadata_pert_iname=["a", "b"] * 20, Metadata_drug=["a", "c", "d", "e"] * 10))
    assert found.taken["compound"] == "Metadata_pert_iname"
    assert noted(found, "Metadata_pert_iname", "Metadata_drug")


def test_plates_of_two_experiments_with_one_name_are_two() -> None:
    table = pd.concat([wells(20).assign(Metadata_Batch="W1"), wells(20).assign(Metadata_Batch="W2")])
    found = understand(table)
    assert found.wells["plate"].unique().tolist() == ["W1/P0", "W2/P0"]
    assert found.taken["plate"] == "Metadata_Batch + Metadata_Plate"
    assert noted(found, "'P0'")


def test_experiments_are_told_by_the_names_of_plates() -> None:
    found = understand(wells(40).assign(Metadata_Plate=["Week1_1"] * 20 + ["Week2_1"] * 20))
    assert found.wells["experiment"].tolist() == ["Week1"] * 20 + ["Week2"] * 20
    assert noted(found, "experiment", "'Week1'")
    assert not understand(wells(40)).has("experiment")


def test_names_are_in_normal_form(tmp_path: Path) -> None:
    table = wells().assign(Metadata_Plate=["0012"] * 20 + ["10 "] * 20)
    write_csv(table, tmp_path / "wells.csv")
    found = read_profiles(tmp_path / "wells.csv")
    assert found.wells["plate"].unique().tolist() == ["0012", "10"]
    assert found.wells.loc[7, ["well", "row", "column"]].tolist() == ["B03", 1, 2]
    assert understand(table.assign(Metadata_Plate=12.0)).wells["plate"].unique().tolist() == ["12"]


def test_wells_may_be_told_by_row_and_column() -> None:
    table = (
        wells().drop(columns="Metadata_Well").assign(Row=[i % 20 // 5 + 1 for i in range(40)], Col=[1, 2, 3, 4, 5] * 8)
    )
    found = understand(table)
    assert found.wells["well"].tolist() == understand(wells()).wells["well"].tolist()
    assert found.taken["well"] == "Row + Col"
    odd = understand(table.assign(Row="top"))
    assert not odd.has("well")
    assert noted(odd, "'Row'", "'TOP'")


def test_controls_are_what_a_column_a_name_or_the_user_says() -> None:
    table = wells(Metadata_broad_sample=["BRD-1", "", None, "BRD-2"] * 10)
    bare = understand(table)
    assert not bare.negative.any()
    assert not bare.has("control")
    assert noted(bare, "negative control")
    assert noted(bare, "20 rows", "Metadata_broad_sample")
    said = understand(table, controls={"negative": "", "positive": ["BRD-1"]})
    assert said.negative.tolist() == [False, True, True, False] * 10
    assert said.wells["control"].tolist() == ["positive", "negative", "negative", ""] * 10
    assert said.wells["treatment"][1] == "negative control"
    assert understand(table, controls=["BRD-2"]).negative.tolist() == [False, False, False, True] * 10
    kinds = {
        "Metadata_compound": ["DMSO", "taxol", "DMSO", "x"] * 10,
        "Metadata_control": ["positive", "", "", ""] * 10,
    }
    both = understand(wells(**kinds))  # what a column says goes before names
    assert both.wells["control"].tolist() == ["positive", "", "negative", ""] * 10
    assert both.taken["control"] == "Metadata_control + Metadata_compound"
    odd = understand(wells(Metadata_control=["neg", "weird"] * 20))
    assert odd.negative.tolist() == [True, False] * 20
    assert noted(odd, "'weird'")
    table["Metadata_kind"] = ["x", "y"] * 20
    assert understand(table, controls={"column": "kind", "negative": ["y"]}).negative.tolist() == [False, True] * 20
    for controls, word in ((["BRD1"], "'BRD-1'"), ({"neg": ["BRD-1"]}, "'neg'"), ({"column": "kin"}, "'kin'")):
        with pytest.raises(ConfigError, match=word):
            understand(table, controls=controls)


@pytest.mark.parametrize(
    "name", ["DMSO 0.1 %", "untreated", "Negative Control", "non-targeting", "NTC", "EMPTY", "mock"]
)
def test_names_of_negative_controls(name: str) -> None:
    found = understand(wells(Metadata_compound=[name, "mockingbird", "controlamide", "dmsox"] * 10))
    assert found.negative.tolist() == [True, False, False, False] * 10
    assert noted(found, f"'{name}'")


def test_a_table_without_any_known_name_is_judged_by_its_numbers() -> None:
    rng = np.random.default_rng(0)
    found = understand(pd.DataFrame(rng.standard_normal((30, 3000))).assign(remark="text", Barcode="P1"))
    assert found.features.shape == (30, 3000)
    assert found.taken == {"plate": "Barcode"}
    assert noted(found, "'remark'")
    assert noted(found, "wells")


def test_numbers_that_are_called_unlike_the_features_are_said() -> None:
    assert noted(understand(wells(features=30).assign(hours=np.arange(40))), "'hours'", "unlike")
    assert not noted(understand(wells(features=30)), "unlike")


def test_missing_values_are_handled_by_the_stated_rule() -> None:
    table = wells(40, 6)
    table["f0"] = table["f0"].astype(object)
    table.loc[3, "f0"] = "#DIV/0!"
    table.loc[23, "f1"] = 1e30
    table.loc[[0, 1, 2], "f2"] = np.inf  # 3 of 39
    table["f3"] = 7.0
    table.loc[39, ["f0", "f1", "f2", "f4"]] = np.nan
    table["f5"] = np.where(np.arange(40) < 25, np.nan, 1.0)
    found = understand(table)
    assert len(found) == 39
    assert set(found.names) == {"f0", "f1", "f4"}
    plates = table["Metadata_Plate"][:39]
    for row, name in ((3, "f0"), (23, "f1")):
        others = [i for i in range(39) if plates[i] == plates[row] and i != row]
        expected = np.float32(np.median(table[name][others].astype(np.float32)))
        assert found.features[row, found.names.index(name)] == expected
    for words in (("'f2'", "5 %"), ("'f5'", "half"), ("1 of 40 rows",), ("'f3'", "same"), ("2 of 156 values",)):
        assert noted(found, *words), words


def test_medians_are_those_of_each_plate() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((300, 20)).astype(np.float32)
    values[rng.random(values.shape) < 0.02] = np.nan
    plates = rng.integers(0, 6, 300)
    plates[:4], values[:4, 3] = 6, np.nan  # a plate without any value of a feature
    filled, names, rows, _ = fill_missing(values.copy(), list(map(str, range(20))), plates)
    assert rows.all()
    assert "3" in names
    for j in map(int, names):
        for i in np.flatnonzero(np.isnan(values[:, j])):
            same = values[plates == plates[i], j]
            expected = np.nanmedian(same if np.isfinite(same).any() else values[:, j])
            assert filled[i, names.index(str(j))] == pytest.approx(expected, abs=1e-7)


def test_fields_and_cells_become_wells() -> None:
    fields = pd.concat([wells(20).assign(Metadata_Site=s, Metadata_Count_Cells=10 * s) for s in (1, 2)])
    fields[["f0", "f1"]] *= fields["Metadata_Site"].to_numpy()[:, None]
    found = understand(fields)
    np.testing.assert_allclose(found.features[:, 0], wells(20)["f0"] * 1.5, rtol=1e-6)
    assert found.wells["cells"].tolist() == [30.0] * 20
    assert noted(found, "40 fields", "20 wells")
    one, two = wells(20).assign(Metadata_Site=1), wells(20).assign(Metadata_Site=2)
    cells = understand(pd.concat([one, one, one, two.assign(f0=0.0)]))  # three cells in the first field
    np.testing.assert_allclose(cells.features[:, 0], wells(20)["f0"] * 0.5, rtol=1e-6)
    assert cells.wells["cells"].tolist() == [4.0] * 20


def test_a_well_that_is_there_twice_is_averaged_unless_it_holds_two_treatments() -> None:
    table = wells(20, Metadata_compound="a", Metadata_Count_Cells=5)
    again = understand(pd.concat([table, table[:3].assign(f0=0.0)]))
    assert len(again) == 20
    assert again.features[0, 0] == pytest.approx(table["f0"][0] / 2)
    assert again.wells["cells"].tolist() == [5.0] * 20
    assert noted(again, "23 rows", "20 wells")
    torn = understand(pd.concat([table, table[:3].assign(Metadata_compound="b")]))
    assert len(torn) == 23
    assert noted(torn, "3 wells", "treatments")
    assert len(understand(table.drop(columns="Metadata_Plate").iloc[[0, 1, 0]])) == 3  # they may be of two plates


def test_metadata_are_joined_in_any_order(tmp_path: Path) -> None:
    write_csv(wells(), tmp_path / "wells.csv")
    where = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 6)]
    write_csv(
        pd.DataFrame({"plate_barcode": ["P0", "P1", "P7"], "plate_map_name": ["M1", "M2", "M1"]}),
        tmp_path / "codes.csv",
    )
    maps = [
        pd.DataFrame({"plate_map_name": m, "well_position": where, "broad_sample": [m, *"abcdefghij", *[""] * 9]})
        for m in ("M1", "M2")
    ]
    write_csv(pd.concat(maps), tmp_path / "maps.csv")
    drugs = pd.DataFrame({"broad_sample": ["M1", "M2", *"abcdefghi", "q"], "moa": ["DMSO", "DMSO", *"xxyyzzxyz", "u"]})
    write_csv(drugs, tmp_path / "drugs.csv")
    found = read_profiles(tmp_path / "wells.csv", [tmp_path / f"{one}.csv" for one in ("drugs", "maps", "codes")])
    assert found.wells["compound"].tolist()[:3] == ["M1", "a", "b"]
    assert found.wells["compound"][20] == "M2"
    assert found.wells["mechanism"].tolist()[:4] == ["DMSO", "x", "x", "y"]
    assert noted(found, "20 of 40", "drugs.csv")
    for bad, word in (({"Plate": ["Q"], "Well": ["A1"]}, "'Q'"), ({"foo": [1]}, "'foo'")):
        write_csv(pd.DataFrame(bad), tmp_path / "bad.csv")
        with pytest.raises(DataError, match=word):
            read_profiles(tmp_path / "wells.csv", [tmp_path / "bad.csv"])


def test_rows_without_a_place_are_joined_with_nothing() -> None:
    table = wells(20).assign(Metadata_Plate=["", *["P0"] * 19], Metadata_Well=["", *wells(20)["Metadata_Well"][1:]])
    drugs = pd.DataFrame({"plate": ["", "P0"], "well": ["", "A2"], "drug": ["x", "y"]})
    found = understand(table, [drugs])
    assert found.wells["compound"].tolist() == ["", "y", *[""] * 18]


def test_rows_without_cells_do_not_count_against_features() -> None:
    table = wells(60)
    table.loc[:9, ["f0", "f1", "f2"]] = np.nan
    table.loc[:1, "f3"] = np.nan
    found = understand(table)
    assert (len(found), found.names) == (50, ("f0", "f1", "f2", "f3"))


def test_a_drawn_plate_is_metadata_of_the_plate_it_is_called_by(tmp_path: Path) -> None:
    write_csv(wells(), tmp_path / "wells.csv")
    (tmp_path / "P1.csv").write_text("compound\n,1,2,3\nA,DMSO,taxol,x\nB,DMSO,a,b\n")
    found = read_profiles(tmp_path / "wells.csv", [tmp_path / "P1.csv"])
    assert found.wells["compound"].tolist()[20:23] == ["DMSO", "taxol", "x"]
    assert not (found.wells["compound"][:20] != "").any()


def npz(file: Path, **arrays: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)  # type: ignore[arg-type]


class Harmful:
    """Something whose pickle runs code."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("harm"),)


def test_folders_of_deep_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((2, 2, 2, 5, 3)).astype(np.float32)
    for i, plate in enumerate(("P1", "P2")):
        for j, well in enumerate(("A01", "b2")):
            for k in range(2):
                said = {"Metadata_Plate": plate, "Compound": "DMSO" if j else "taxol", "n": np.int64(3)}
                npz(tmp_path / "out" / plate / well / f"{k}.npz", features=cells[i, j, k], metadata=said)
    found = read_profiles(tmp_path / "out")
    np.testing.assert_allclose(found.features, cells.mean((2, 3)).reshape(4, 3), rtol=1e-5)
    assert found.wells["well"].tolist() == ["A01", "B02"] * 2
    assert found.negative.tolist() == [False, True] * 2
    assert found.wells["cells"].tolist() == [10.0] * 4
    npz(tmp_path / "bare" / "P1" / "A01_3.npz", features=cells[0, 0, 0], metadata=Harmful())
    bare = read_profiles(tmp_path / "bare")
    assert bare.wells[["plate", "well"]].values.tolist() == [["P1", "A01"]]
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harmful()))  # what would have happened
    assert (tmp_path / "harm").exists()


def test_a_folder_of_a_run_is_read_by_its_wells(tmp_path: Path) -> None:
    wells(20).assign(Metadata_Site=1).to_parquet(tmp_path / "profiles_fields.parquet")
    wells(40).to_parquet(tmp_path / "profiles_wells.parquet")
    found = read_profiles(tmp_path)
    assert len(found) == 40
    assert noted(found, "'profiles_wells.parquet'")


def test_parquet_of_many_types(tmp_path: Path) -> None:
    table = wells(40).assign(
        whole=pd.array([*range(39), None], dtype="Int64"), vector=[np.arange(2.0) + i for i in range(40)],
        flag=[True, False] * 20, day=pd.Timestamp("2021-01-01"), text=["1.5"] * 20 + ["2"] * 20,
    )  # fmt: skip
    table.to_parquet(tmp_path / "wells.parquet")
    for found in (read_profiles(tmp_path / "wells.parquet"), understand(table)):
        assert found.names == ("f0", "f1", "f2", "f3", "whole", "vector_0", "vector_1", "text")
        assert found.features[5, 4:].tolist() == [5.0, 5.0, 6.0, 1.5]
        assert noted(found, "'flag'", "'day'")


def bad_files(tmp_path: Path) -> dict[str, Path]:
    """Files that are no profiles."""
    whole = io.BytesIO()
    wells().to_parquet(whole)
    contents = {
        "empty.csv": b"",
        "header.csv": b"Metadata_Plate,Metadata_Well,a\n",
        "bare.csv": b"Metadata_Plate,Metadata_Well\nP1,A1\n",
        "cut.parquet": whole.getvalue()[: len(whole.getvalue()) // 2],
        "other.h5": b"\x89HDF\r\n\x1a\nxxxx",
        "gaps.csv": b"Plate,a\nP1,nan\nP1,NA\nP1,\n",
        "same.csv": b"Plate,a\nP1,2\nP1,2\n",
        "npz/P1/A01/1.npz": b"PK\x03\x04xx",
        "nowhere/1.npz": b"",
        "folder/readme.txt": b"x",
    }
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "nowhere" / "1.npz", "w"):
        pass
    paths = [tmp_path / name for name in contents if "/" not in name]
    return {path.name: path for path in (*paths, *(tmp_path / one for one in ("npz", "nowhere", "folder", "gone.csv")))}


def test_what_is_no_profiles_is_one_line_that_names_it(tmp_path: Path) -> None:
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(BiomassError) as caught:
            read_profiles(path)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value) or "'a'" in str(caught.value), str(caught.value)


def test_real_wells_of_bbbc021_with_their_tables(real_data: Path) -> None:
    folder = real_data / "bbbc021_profiles"
    tables = [folder / "BBBC021_v1_moa.csv", folder / "BBBC021_v1_image.csv.gz"]
    found = read_profiles(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz", tables)
    assert found.features.shape == (632, 462)
    count = {
        role: found.wells[role].nunique() for role in ("plate", "experiment", "compound", "treatment", "mechanism")
    }
    assert count == {"plate": 55, "experiment": 10, "compound": 39, "treatment": 104, "mechanism": 13}
    assert found.negative.sum() == 330
    assert (found.wells["experiment"] == found.wells["plate"].str.partition("_")[0]).all()
    treatments = read_profiles(folder / "treatment_profiles.csv.gz")
    assert treatments.features.shape == (103, 177)
    assert set(treatments.wells["treatment"]) == set(found.wells["treatment"]) - {"DMSO"}
    assert noted(treatments, "wells")


def test_real_maps_of_jump_say_which_wells_are_controls(real_data: Path, tmp_path: Path) -> None:
    maps = real_data / "platemaps"
    places = [f"{chr(65 + i // 24)}{i % 24 + 1:02d}" for i in range(384)]
    table = pd.DataFrame({"Metadata_Plate": "BR1", "Metadata_Well": places, "f": np.arange(384.0)})
    write_csv(table, tmp_path / "wells.csv")
    plate_map = maps / "JUMP-Target-1_compound_platemap.tsv"
    bare = read_profiles(tmp_path / "wells.csv", [plate_map])
    assert noted(bare, "64 rows", "broad_sample")
    assert read_profiles(tmp_path / "wells.csv", [plate_map], controls=[""]).negative.sum() == 64
    told = read_profiles(tmp_path / "wells.csv", [plate_map, maps / "JUMP-Target-1_compound_metadata.tsv"])
    assert told.negative.sum() == 64
    assert set(told.wells.loc[told.negative, "compound"]) == {"DMSO"}
