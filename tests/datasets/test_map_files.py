"""Plate maps in every form that labs write, and how they are joined to images."""

import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from workbooks import write_workbook

from biomass.datasets.join_maps import join_plate_map
from biomass.datasets.map_files import FORMATS
from biomass.datasets.plate_map import PlateMaps, read_plate_map, read_plate_maps
from biomass.errors import BiomassError

LETTERS = [*string.ascii_uppercase, *(f"A{one}" for one in string.ascii_uppercase[:6])]


def drawn(size: int, name: str = "c", corner: str = "") -> list[list[str]]:
    """The cells of a plate that is drawn: each holds its name and its place."""
    rows, columns = FORMATS[size]
    return [
        [corner, *map(str, range(1, columns + 1))],
        *([LETTERS[r], *(f"{name}{LETTERS[r]}{c + 1}" for c in range(columns))] for r in range(rows)),
    ]


def text(rows: list[list[str]], separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def table(maps: PlateMaps, *columns: str) -> list[tuple[object, ...]]:
    return list(maps.table[list(columns)].itertuples(index=False, name=None))


# --- plates that are drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", FORMATS)
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_drawn_plate_of_every_format(tmp_path: Path, size: int, separator: str) -> None:
    (tmp_path / "map.txt").write_text(text(drawn(size), separator))
    maps = read_plate_maps(tmp_path / "map.txt", plates=["P1", "P2"])
    rows, columns = FORMATS[size]
    expected = [("", f"{LETTERS[r]}{c + 1:02d}", f"c{LETTERS[r]}{c + 1}") for r in range(rows) for c in range(columns)]
    assert table(maps, "plate", "well", "treatment") == expected
    assert maps.sizes == {"": size}


def test_matrices_below_each_other_say_what_they_show(tmp_path: Path) -> None:
    lines = [
        *[["Experiment of Monday"], [], ["Compound"], *drawn(24)],
        *[[], ["Concentration (uM)"], ["", *"123456"], *([one, *"123456"] for one in "ABCD")],
        *[[], ["cell line"], ["", *"123456"], *([one, *(["U2OS"] * 6)] for one in "ABCD")],
    ]
    (tmp_path / "map.csv").write_text(text(lines))
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    first = maps.table.iloc[1]
    assert (first["treatment"], first["label"], first["cell line"]) == ("cA2 2", "cA2", "U2OS")
    assert first["Concentration (uM)"] == 2


def test_matrices_side_by_side(tmp_path: Path) -> None:
    left, right = (
        [["treatment"], *drawn(6)],
        [["dose"], ["", "1", "2", "3"], ["A", "1", "2", "3"], ["B", "4", "5", "6"]],
    )
    rows = [[*a, *[""] * (5 - len(a)), *b] for a, b in zip(left, right, strict=True)]
    (tmp_path / "map.csv").write_text(text(rows))
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    assert table(maps, "well", "treatment", "dose")[-1] == ("B03", "cB3 6", 6)


def test_titles_tell_plates_and_what_is_shown(tmp_path: Path) -> None:
    lines: list[list[str]] = []
    for plate in ("P1", "P2"):
        lines += [[f"Plate {plate}: treatment"], *drawn(6, plate), [], [f"Plate {plate}: moa"], *drawn(6, "m"), []]
    (tmp_path / "map.csv").write_text(text(lines))
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1", "P2"])
    assert table(maps, "plate", "well", "treatment", "label")[6] == ("P2", "A01", "P2A1", "mA1")
    alone = read_plate_map(tmp_path / "map.csv")  # the plates are not known before
    assert alone.wells["plate"].unique().tolist() == ["P1", "P2"]


def test_titles_may_be_plates_alone(tmp_path: Path) -> None:
    lines = [row for plate in ("P1", "P2", "P3") for row in [[plate], *drawn(6, plate), []]]
    (tmp_path / "map.csv").write_text(text(lines))
    assert read_plate_map(tmp_path / "map.csv").wells["plate"].nunique() == 3
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1", "P2"])  # of P3 there is no image
    assert maps.table["plate"].unique().tolist() == ["P1", "P2", "P3"]
    assert (maps.table["treatment"].str[:2] == maps.table["plate"]).all()


def test_a_matrix_without_all_rows_and_columns_keeps_its_wells(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(",2,3,4\nB,x,y,\nD,z,,DMSO\n")
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    assert table(maps, "well", "treatment")[:3] == [("B02", "x"), ("B03", "y"), ("B04", "")]
    assert table(maps, "well", "control")[-1] == ("D04", "negative")


def test_two_matrices_of_one_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text([*drawn(6), [], *drawn(6)]))
    with pytest.raises(BiomassError, match=r"map\.csv.*row 5.*second for 'treatment'"):
        read_plate_maps(tmp_path / "map.csv", plates=["P1"])


# --- Excel ------------------------------------------------------------------------------------------------------------


def test_a_workbook_with_a_table(tmp_path: Path) -> None:
    rows = [["Report"], [], ["plate", "well", "compound", "dose"], [12, "A1", "x", 0.1], [12, "A2", "DMSO", None]]
    maps = read_plate_maps(write_workbook(tmp_path / "map.xlsx", {"Sheet1": rows}), plates=["12"])
    assert table(maps, "plate", "well", "treatment", "control") == [
        ("12", "A01", "x 0.1", ""),
        ("12", "A02", "DMSO", "negative"),
    ]


def test_sheets_are_plates_or_what_they_show(tmp_path: Path) -> None:
    header = ["well", "compound"]
    sheets = {"P1": [header, ["A1", "x"]], "P2": [header, ["A1", "y"]], "Legend": [["x", "a compound"]]}
    maps = read_plate_maps(write_workbook(tmp_path / "map.xlsx", sheets), plates=["P1", "P2"])
    assert table(maps, "plate", "treatment") == [("P1", "x"), ("P2", "y")]
    assert any("Legend" in note for note in maps.notes)
    shown = {"Treatment": drawn(6), "Concentration": [["", 1, 2, 3], ["A", 1, 2, 3], ["B", 4, 5, 0.5]]}
    maps = read_plate_maps(write_workbook(tmp_path / "other.xlsx", shown), plates=["P1", "P2"])
    assert table(maps, "plate", "well", "treatment")[-1] == ("", "B03", "cB3 0.5")
    with pytest.raises(BiomassError, match=r"row 2 of sheet 'P1' of 'map.xlsx' has no well"):
        read_plate_maps(
            write_workbook(tmp_path / "map.xlsx", sheets | {"P1": [header, ["", "x"]]}), plates=["P1", "P2"]
        )


# --- many files -------------------------------------------------------------------------------------------------------


def test_a_file_a_plate(tmp_path: Path) -> None:
    (tmp_path / "P1.csv").write_text("well,compound\nA1,x\n")
    (tmp_path / "platemap_p2.tsv").write_text("well\tcompound\nA1\ty\n")
    write_workbook(tmp_path / "P3.xlsx", {"Sheet1": drawn(6)})
    (tmp_path / ".P4.csv").write_text("no map")
    (tmp_path / "notes.docx").write_text("no map")
    maps = read_plate_maps(tmp_path, plates=["P1", "P2", "P3"])
    assert table(maps, "plate", "well", "treatment")[:3] == [
        ("P1", "A01", "x"),
        ("P2", "A01", "y"),
        ("P3", "A01", "cA1"),
    ]
    assert read_plate_map(tmp_path).wells["plate"].unique().tolist() == ["P1", "platemap_p2", "P3"]
    (tmp_path / "Q.csv").write_text("well,compound\nA1,x\n")
    assert any("'Q.csv'" in note for note in read_plate_maps(tmp_path, plates=["P1", "P2", "P3"]).notes)
    with pytest.raises(BiomassError, match=r"'P1.csv' has no column of plates.*'X1'"):
        read_plate_maps(tmp_path, plates=["X1", "X2"])


def test_barcodes_say_which_map_a_plate_has(tmp_path: Path) -> None:
    (tmp_path / "barcode_platemap.csv").write_text(
        "Assay_Plate_Barcode,Plate_Map_Name,Batch\nB1,M1,W1\nB2,M2.txt,W1\nB3,M1,W2\nB4,M9,W2\n"
    )
    (tmp_path / "platemap").mkdir()
    for name in ("M1", "M2"):
        (tmp_path / "platemap" / f"{name}.txt").write_text(
            f"plate_map_name\twell_position\tcompound\n{name}\tA01\t{name}x\n"
        )
    maps = read_plate_maps(tmp_path, plates=["B1", "B3", "B2"])
    expected = [("W1", "B1", "M1x"), ("W2", "B3", "M1x"), ("W1", "B2", "M2x")]
    assert table(maps, "experiment", "plate", "treatment") == expected
    assert any("without an image: B4" in note for note in maps.notes)
    alone = read_plate_maps(
        tmp_path / "platemap" / "M1.txt", barcodes=tmp_path / "barcode_platemap.csv", plates=["B1", "B2", "B3"]
    )
    assert alone.table["plate"].tolist() == ["B1", "B3"]
    with pytest.raises(BiomassError, match=r"'plate_map_name'.*'M1'.*table of barcodes"):
        read_plate_maps(tmp_path / "platemap" / "M1.txt", plates=["B1"])
    with pytest.raises(BiomassError, match=r"barcodes .* needs a column of plates"):
        read_plate_maps(tmp_path / "platemap", barcodes=tmp_path / "platemap" / "M1.txt", plates=["B1"])
    with pytest.raises(BiomassError, match=r"no plate map"):
        read_plate_maps(tmp_path / "barcode_platemap.csv", plates=["B1"])


def test_compounds_are_joined_and_an_empty_one_is_dmso_if_they_say_so(tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_text("well_position\tbroad_sample\nA01\tB1\nA02\t\nA03\tB2\nA04\tB3\n")
    (tmp_path / "compounds.tsv").write_text(
        "broad_sample\tpert_iname\tmoa\tcontrol_type\nB1\ttaxol\tm\tNA\nB2\tyy\tn\tposcon_cp\nNA\tDMSO\tNA\tnegcon\n"
    )
    files = [tmp_path / "map.tsv", tmp_path / "compounds.tsv"]
    maps = read_plate_maps(files, plates=["P1"])
    assert table(maps, "treatment", "label", "control") == [
        ("B1", "m", ""),
        ("DMSO", "DMSO", "negative"),
        ("B2", "n", "positive"),
        ("B3", "B3", ""),
    ]
    assert any("B3" in note for note in maps.notes)
    assert any("1 row without 'broad_sample'" in note for note in maps.notes)
    assert maps.table.equals(read_plate_maps(files[0], compounds=files[1], plates=["P1"]).table)


def test_an_empty_sample_is_no_control_unless_someone_says_so(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("well,broad_sample,solvent\nA1,B1,DMSO\nA2,,DMSO\n")
    silent = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    assert table(silent, "treatment", "control") == [("B1", ""), ("", "")]
    assert any("1 well without a treatment" in note for note in silent.notes)
    told = read_plate_maps(tmp_path / "map.csv", plates=["P1"], control={"negative": [""]})
    assert table(told, "treatment", "control") == [("B1", ""), ("DMSO", "negative")]
    assert "'DMSO'" in told.columns["control"]


def test_what_a_compound_does_may_depend_on_its_dose(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("well,compound,concentration\nA1,x,0.003\nA2,x,3\nA3,DMSO,0\n")
    (tmp_path / "moa.csv").write_text("compound,concentration,moa\nx,3e-3,m\nx,3.0,n\nDMSO,0.0,DMSO\n")
    maps = read_plate_maps(tmp_path, plates=["P1"])
    assert maps.table["label"].tolist() == ["m", "n", "DMSO"]


def test_decimal_commas_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("well;compound;dose\nA1;x;0,5\nA2;x;1,0\nA3;DMSO;\n")
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    assert maps.table["treatment"].tolist() == ["x 0.5", "x 1", "DMSO"]
    assert maps.table["dose"].tolist()[:2] == [0.5, 1]
    (tmp_path / "map.csv").write_text("compound\n;1;2\nA;x;y\nB;z;DMSO\n\ndose\n;1;2\nA;0,5;1,5\nB;2;\n")
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P1"])
    assert maps.table["treatment"].tolist() == ["x 0.5", "y 1.5", "z 2", "DMSO"]


@pytest.mark.parametrize("wells", ["A1 b2", "A01 B02", "a01 B2", "r01c01 R2C2"])
def test_wells_are_written_in_many_ways(tmp_path: Path, wells: str) -> None:
    first, second = wells.split()
    (tmp_path / "map.csv").write_text(f"well,compound\n{first},x\n{second},y\n")
    assert read_plate_maps(tmp_path / "map.csv", plates=["P1"]).table["well"].tolist() == ["A01", "B02"]


def test_a_row_an_image_becomes_a_row_a_well(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("plate,well,compound,Metadata_batch,file\nP,A1,x,W,1\nP,A1,x,W,2\nP,A2,y,W,3\n")
    maps = read_plate_maps(tmp_path / "map.csv", plates=["P"])
    assert maps.table.columns.tolist() == [
        "experiment",
        "plate",
        "well",
        "treatment",
        "label",
        "control",
        "compound",
        "batch",
    ]
    assert len(maps.table) == 2
    assert any("file" in note for note in maps.notes)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_map_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BiomassError, match=name) as caught:
        read_plate_maps(tmp_path / name, plates=["P1"])
    assert "\n" not in str(caught.value)


# --- joined to images -------------------------------------------------------------------------------------------------


def maps_of(size: int, plate: str = "") -> PlateMaps:
    rows, columns = FORMATS[size]
    wells = [f"{LETTERS[r]}{c + 1:02d}" for r in range(rows) for c in range(columns)]
    frame = pd.DataFrame({"plate": plate, "well": wells, "treatment": "x", "label": "x", "control": ""})
    return PlateMaps(frame, {}, [], {})


def fields(size: int, share: float = 1.0, plate: str = "P1") -> pd.DataFrame:
    wells = maps_of(size).table["well"]
    return pd.DataFrame({"plate": plate, "well": wells[: int(share * len(wells))]})


def test_a_join_against_a_slow_one() -> None:
    rng = np.random.default_rng(0)
    wells = np.array([f"{a}{b:02d}" for a in "ABCDEFGH" for b in range(1, 13)])
    plates = np.array(["P1", "P2", "P3", "P4"])
    held = pd.DataFrame({"plate": rng.choice(plates[:3], 150), "well": rng.choice(wells, 150)}).drop_duplicates()
    held["treatment"] = [f"t{i}" for i in range(len(held))]
    held["dose"] = np.arange(len(held), dtype=float)
    imaged = pd.DataFrame({"plate": rng.choice(plates[1:], 300), "well": rng.choice(wells, 300)})
    joined, left = join_plate_map(imaged, PlateMaps(held, {}, [], {}))
    slow = {(row.plate, row.well): (row.treatment, row.dose) for row in held.itertuples()}
    pairs = list(zip(imaged["plate"], imaged["well"], strict=True))
    assert joined["treatment"].tolist() == [slow.get(pair, ("", 0))[0] for pair in pairs]
    np.testing.assert_array_equal(joined["dose"], [slow.get(pair, ("", np.nan))[1] for pair in pairs])
    both = {"P2", "P3"}
    map_wells = {pair for pair in slow if pair not in pairs and pair[0] in both}
    image_wells = {pair for pair in pairs if pair not in slow and pair[0] in both}
    assert set(left.map_wells[["plate", "well"]].itertuples(index=False, name=None)) == map_wells
    assert set(left.image_wells.itertuples(index=False, name=None)) == image_wells
    assert len(left.image_wells) == len(image_wells)
    assert (left.map_plates, left.image_plates) == (["P1"], ["P4"])
    said = "\n".join(left.lines())
    assert f"plate 'P2': {sum(p == 'P2' for p, _ in map_wells)} wells of the map have no image" in said
    assert "1 plate with images has no map: 'P4'" in said


def test_plates_of_several_experiments_are_told_apart() -> None:
    frame = pd.DataFrame(
        {"experiment": ["E1", "E2"], "plate": "1", "well": "A01", "treatment": ["x", "y"], "label": "", "control": ""}
    )
    images = pd.DataFrame({"experiment": ["E2", "E1"], "plate": "1", "well": "A1"})
    assert join_plate_map(images, PlateMaps(frame, {}, [], {}))[0]["treatment"].tolist() == ["y", "x"]
    left = join_plate_map(images[:1], PlateMaps(frame, {}, [], {}))[1]
    assert left.lines() == ["1 plate of the map has no image: 'E1/1'"]
    with pytest.raises(BiomassError, match=r"'1' .* several experiments"):
        join_plate_map(images.drop(columns="experiment"), PlateMaps(frame, {}, [], {}))


def test_a_map_of_another_format_is_refused() -> None:
    with pytest.raises(BiomassError, match=r"map of plate 'P1' is of 384 wells.* plate of 96"):
        join_plate_map(fields(96), maps_of(384))
    with pytest.raises(BiomassError, match=r"'P1' has images of well A13, as on a plate of 384 wells.* 96 wells"):
        join_plate_map(fields(384), maps_of(96))
    with pytest.raises(BiomassError, match=r"'P1' has images of well A25"):
        join_plate_map(fields(1536), maps_of(384))
    _, left = join_plate_map(fields(96, 0.1), maps_of(384))  # a few wells of a large plate
    assert "384" in left.notes[0]
    assert join_plate_map(fields(96, 0.1), maps_of(96))[1].notes == []


def test_names_that_do_not_meet_are_said() -> None:
    with pytest.raises(BiomassError, match=r"plates of the images \('P1'\).*'p-1'") as caught:
        join_plate_map(fields(96), maps_of(96, "p-1"))
    assert caught.value.advice == "columns"
    with pytest.raises(BiomassError, match=r"wells of the images"):
        join_plate_map(pd.DataFrame({"plate": ["P1"], "well": ["pool 1"]}), maps_of(96))


# --- as they were published -------------------------------------------------------------------------------------------


def test_the_tables_of_bbbc021(real_data: Path) -> None:
    """A row an image, and mechanisms by compound and concentration; columns are called otherwise in each."""
    files = [real_data / "bbbc021_profiles" / f"BBBC021_v1_{name}" for name in ("image.csv.gz", "moa.csv")]
    maps = read_plate_maps(files, plates=["Week2_24381"])
    moa = maps.table[maps.table["moa"] != ""]
    assert len(maps.table) == 3300
    assert moa.loc[moa["control"] == "", ["Compound", "Concentration"]].drop_duplicates().shape[0] == 103
    assert moa["label"].nunique() == 13  # twelve mechanisms, and DMSO


def test_published_maps_metadata_and_barcodes(real_data: Path) -> None:
    folder = real_data / "platemaps"
    jump = [folder / "JUMP-Target-1_compound_platemap.tsv", folder / "JUMP-Target-1_compound_metadata.tsv"]
    maps = read_plate_maps(jump, plates=["P1"])
    assert maps.table["control"].value_counts().to_dict() == {"": 260, "negative": 64, "positive": 60}
    assert maps.table.loc[maps.table["control"] == "negative", "treatment"].unique().tolist() == ["DMSO"]
    both = ["SQ00015125", "SQ00015119"]
    lincs = read_plate_maps(
        folder / "C-7161-01-LM6-001.txt",
        barcodes=folder / "lincs_barcode_platemap.csv",
        control={"negative": [""]},
        plates=both,
    )
    assert lincs.table["plate"].value_counts().to_dict() == dict.fromkeys(both, 384)
    assert (lincs.table["control"] == "negative").sum() == 48
    everything = read_plate_maps(folder, plates=both)  # the maps of JUMP belong to none of these plates
    assert everything.table["plate"].unique().tolist() == both
    assert any("JUMP-Target-1_orf_platemap" in note for note in everything.notes)
