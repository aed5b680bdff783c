"""Plate maps and manifests as labs write them: which columns are taken, which wells are controls, what is refused."""

from pathlib import Path

import pytest

from biomass.datasets.plate_map import PlateMap, read_plate_map
from biomass.errors import BiomassError


@pytest.fixture
def read(tmp_path):
    """``read(text, **options)``: the plate map of a file with this text."""

    def _read(text: str, **options: object) -> PlateMap:
        (tmp_path / "map.csv").write_text(text)
        return read_plate_map(tmp_path / "map.csv", **options)  # type: ignore[arg-type]

    return _read


def column(found: PlateMap, name: str) -> list[str]:
    return found.wells[name].tolist()


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "plate", "well"),
    [
        ("plate,well,compound", "'plate'", "'well'"),
        ("Metadata_Plate,Metadata_Well,Metadata_broad_sample", "'Metadata_Plate'", "'Metadata_Well'"),
        ("Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,sirna", "'Image_Metadata_Plate_DAPI'", None),
        ("Assay Plate Barcode,well position,treatment", "'Assay Plate Barcode'", "'well position'"),
        ("Barcode,Well,Gene", "'Barcode'", "'Well'"),
    ],
)
def test_columns_are_found_by_their_usual_names(read, header: str, plate: str, well: str | None) -> None:
    found = read(f"{header}\nP1,a1,x\nP2,B12,y\n")
    assert found.columns["plate"] == plate
    assert well is None or found.columns["well"] == well
    assert column(found, "plate") == ["P1", "P2"]
    assert column(found, "well") == ["A01", "B12"]
    assert column(found, "treatment") == column(found, "label") == ["x", "y"]


def test_columns_are_named_where_they_are_called_otherwise(read) -> None:
    text = "dish,place_row,place_col,what,how_much,batch,moa\n1,A,1,x,0.5,W1,m\n1,A,2,x,1,W1,\n"
    names = {
        "plate": "dish",
        "well": ["place_row", "place_col"],
        "treatment": ["what", "how_much"],
        "experiment": False,
    }
    found = read(text, columns=names, by=["batch"])
    assert column(found, "treatment") == ["x 0.5", "x 1"]
    assert column(found, "well") == ["A01", "A02"]
    assert column(found, "experiment") == ["", ""]
    assert column(found, "label") == ["m", "x"]  # without a label, the compound
    assert column(found, "batch") == ["W1", "W1"]  # stays, to group by


def test_rows_and_columns_apart_and_a_dose_are_found(read) -> None:
    found = read("plate,row,column,compound,dose\n0012,A,1,x,0.5\n0012,B,12,DMSO,\n")
    assert column(found, "well") == ["A01", "B12"]
    assert column(found, "plate") == ["0012", "0012"]
    assert column(found, "treatment") == ["x 0.5", "DMSO"]
    assert column(found, "label") == ["x", "DMSO"]


def test_without_wells_rows_are_kept_apart(read) -> None:
    found = read("plate,compound\nP1,x\nP1,x\n")
    assert column(found, "well") == ["", ""]
    assert "well" not in found.columns


# --- controls ---------------------------------------------------------------------------------------------------------


def test_controls_are_told_by_a_column(read) -> None:
    kinds = ["negative_control", "Negative Control", "poscon_cp", "treatment", "trt", "NA", "negcon"]
    rows = "".join(f"P,A{i + 1},x{i},{kind}\n" for i, kind in enumerate(kinds))
    found = read(f"plate,well,compound,well_type\n{rows}")
    assert column(found, "control") == ["negative", "negative", "positive", "", "", "", "negative"]
    assert found.columns["control"] == "'well_type'"


def test_controls_are_told_by_the_names_of_treatments(read) -> None:
    found = read("plate,well,compound\nP,A1,DMSO\nP,A2,x\n")
    assert column(found, "control") == ["negative", ""]
    assert "DMSO" in found.columns["control"]
    assert "unknown" in read("plate,well,compound\nP,A2,x\n").columns["control"]


def test_controls_are_told_by_the_user(read) -> None:
    text = "plate,well,compound,role\nP,A1,water,a\nP,A2,taxol,b\nP,A3,x,c\nP,A4,,c\n"
    control = {"column": "compound", "negative": ["water"], "positive": "taxol"}
    found = read(text, control=control)
    assert column(found, "control") == ["negative", "positive", ""]
    assert "1 row without a treatment" in found.notes[0]
    empty = read(text, control={"column": "compound", "negative": [""]})
    assert column(empty, "control") == ["", "", "", "negative"]
    assert not empty.notes


# --- plates -----------------------------------------------------------------------------------------------------------


def test_a_map_without_plates_lies_on_as_many_as_are_named(read) -> None:
    found = read("well,compound\nA1,x\nA2,y\n", copies=3)
    assert len(found.wells) == 6
    assert found.wells["plate"].nunique() == 3
    assert found.wells.groupby("plate")["treatment"].agg(list).tolist() == [["x", "y"]] * 3


# --- real ones --------------------------------------------------------------------------------------------------------


def test_platemaps_as_they_were_published(real_data) -> None:
    folder = real_data / "platemaps"
    control = {"column": "broad_sample", "negative": [""]}
    jump = read_plate_map(folder / "JUMP-Target-1_compound_platemap.tsv", control=control, copies=2)
    assert len(jump.wells) == 2 * 384
    assert (jump.wells["control"] == "negative").sum() == 2 * 64
    lincs = read_plate_map(folder / "C-7161-01-LM6-001.txt")
    assert lincs.columns["plate"] == "'plate_map_name'"
    assert len(lincs.wells) == 360
    assert "24 rows" in lincs.notes[0]


def test_the_tables_of_bbbc021(real_data) -> None:
    images = read_plate_map(real_data / "bbbc021_profiles" / "BBBC021_v1_image.csv.gz")
    assert images.wells["plate"].nunique() == 55
    assert (images.wells["control"] == "negative").sum() == 1320
    crops = read_plate_map(real_data / "bbbc021_cells" / "manifest.csv")
    assert crops.columns["experiment"] == "'batch'"
    assert crops.columns["label"] == "'moa'"
    assert crops.wells["experiment"].nunique() == 10


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("well,compound\nA1,x\n", {}, "no column of plates.*well, compound"),
        ("plate,well\nP,A1\n", {}, "no column of treatments.*plate, well"),
        ("plate,well,compound\n,A1,x\n", {}, "row 2 .* has no plate"),
        ("plate,well,compound\nP,A1,x\nP,,x\n", {}, "row 3 .* has no well"),
        ("plate,well,compound\n", {}, "no rows"),
        ("", {}, "empty"),
        ("plate,well,compound\nP,A1,\n", {}, "no row .* has a treatment"),
        ("plate,well,compound\nP,A1,x\nP,a01,y\n", {}, "well A01 of plate 'P' .* 'x' and 'y'"),
        ("plate,well,compound,moa\nP,A1,x,m\nP,a01,x,n\n", {}, "well A01 of plate 'P' has two labels, 'm' and 'n'"),
        ("plate,well,compound,control\nP,A1,x,negcon\nP,A1,x,\n", {}, "two kinds of control, 'negative' and ''"),
        ("plate,Plate,well,compound\nP,P,A1,x\n", {}, "'plate' or 'Plate'"),
        ("plate,well,compound,control\nP,A1,x,perhaps\n", {}, "row 2 .* 'perhaps'"),
        ("plate,well,compound\nP,A1,x\n", {"columns": {"plate": "barcode"}}, "'barcode'"),
        ("plate,well,compound\nP,A1,x\n", {"columns": {"dish": "plate"}}, "'dish'"),
        ("plate,well,compound\nP,A1,x\n", {"columns": "plate"}, "columns is 'plate'"),
        ("plate,well,compound\nP,A1,x\n", {"control": {"column": "compound"}}, "one of the last two is needed"),
        ("plate,well,compound\nP,A1,x\n", {"control": {"column": "compound", "negative": ["y"]}}, "'y'"),
        ("plate,well,compound\nP,A1,x\n", {"copies": 2}, "copies=2"),
        ("well,compound\nA1,x\n", {"copies": 0}, "copies=0"),
        ("plate,well,compound\nP,A1,x\n", {"by": ["week"]}, "group by.*'week'"),
        ("plate,well,compound,week\nP,A1,x,\n", {"by": ["week"], "columns": {"experiment": "plate"}}, "no week"),
        ("plate,a,b,c,compound\nP,A,1,2,x\n", {"columns": {"well": ["a", "b", "c"]}}, r"\['a', 'b', 'c'\]"),
    ],
)
def test_what_cannot_be_read_is_one_line(read, text: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(BiomassError, match=said) as caught:
        read(text, **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BiomassError, match=r"nowhere\.csv"):
        read_plate_map(tmp_path / "nowhere.csv")
