"""Tables of nuclei as CellProfiler, DeepProfiler and labs write them."""

import numpy as np
import pandas as pd
import pytest

from biomass.cells.fields import place_nuclei
from biomass.cells.tables import read_nuclei_table, read_nuclei_tables
from biomass.errors import DataError
from biomass.screen import VectorPixels, make_screen

PLACES = {"plate": ["P1", "P1", "P2"], "well": ["A1", "A02", "A01"], "site": [1, 2, 1]}
X, Y = [10.5, 20.0, 30.25], [5.0, 6.5, 7.0]


def screen_of(n: int = 8, size: tuple[int, int] = (100, 120), plates: tuple[str, ...] = ("P1", "P2")):
    table = pd.DataFrame([(p, f"A{1 + i % 2:02d}", 1 + i // 2) for p in plates for i in range(n)])
    table.columns = ["plate", "well", "site"]
    table = table.assign(experiment="E", cell_type="", label=0, split="", control="")
    return make_screen(table, VectorPixels(np.zeros((len(table), 1, *size), np.uint8), ("DNA",)), ["one"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        ("plate", "well", "site", "x", "y", "area"),
        (
            *(f"Metadata_{c}" for c in ("Plate", "Well", "Site")),
            *(f"Nuclei_{c}" for c in ("Location_Center_X", "Location_Center_Y", "AreaShape_Area")),
        ),
        (
            *(f"Image_Metadata_{c}" for c in ("Plate", "Well", "Site")),
            "Location_Center_X",
            "Location_Center_Y",
            "AreaShape_Area",
        ),
        ("metadata_plate", "Metadata_WELL", "Metadata_Field", "AreaShape_Center_X", "AreaShape_Center_Y", "Area"),
    ],
)
def test_one_table_under_the_names_of_others(tmp_path, columns, kind):
    values = [*PLACES.values(), X, Y, [100, 200, 300]]
    table = pd.DataFrame(dict(zip(columns, values, strict=True))).assign(ObjectNumber=[4, 5, 6], other="z")
    file = tmp_path / f"cells.{kind}"
    table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
    fields, nuclei = read_nuclei_table(file)
    assert fields.to_numpy().tolist() == [["P1", "A01", "1"], ["P1", "A02", "2"], ["P2", "A01", "1"]]
    assert nuclei[["x", "y", "area", "nucleus"]].to_numpy().T.tolist() == [X, Y, [100, 200, 300], [0, 1, 2]]
    assert nuclei["object"].tolist() == ["4", "5", "6"]
    placed = place_nuclei(screen_of(), fields, nuclei)
    assert placed.table["image"].tolist() == [0, 3, 8]
    assert placed.table["nucleus"].tolist() == [0, 1, 2]


def cellprofiler(folder, prefix="", plates=("P1", "P2")):
    """Image, Nuclei and Cells of a run, a folder a plate."""
    for number, plate in enumerate(plates):
        place = folder / plate
        place.mkdir(parents=True)
        images = {"ImageNumber": [1, 2], "Metadata_Plate": plate, "Metadata_Well": ["A01", "A02"], "Metadata_Site": 1}
        pd.DataFrame(images).to_csv(place / f"{prefix}Image.csv", index=False)
        nuclei = {"ImageNumber": [2, 1, 2], "ObjectNumber": [1, 1, 2]}
        centres = {"Location_Center_X": np.array(X) + number, "Location_Center_Y": Y, "AreaShape_Area": 50}
        pd.DataFrame(nuclei | centres).to_csv(place / f"{prefix}Nuclei.csv", index=False)
        pd.DataFrame(nuclei | centres | {"Location_Center_X": 99}).to_csv(place / f"{prefix}Cells.csv", index=False)
        pd.DataFrame({"Key": ["Run"], "Value": [1]}).to_csv(place / f"{prefix}Experiment.csv", index=False)


@pytest.mark.parametrize("prefix", ["", "Run1_"])
def test_a_folder_of_cellprofiler(tmp_path, prefix):
    cellprofiler(tmp_path / "out", prefix)
    fields, nuclei = read_nuclei_tables(tmp_path / "out")
    assert sorted(map(tuple, fields.to_numpy())) == sorted((p, w, "1") for p in ("P1", "P2") for w in ("A01", "A02"))
    placed = place_nuclei(screen_of(), fields, nuclei)
    table = placed.table.sort_values(["image", "nucleus"])
    assert table["image"].tolist() == [0, 1, 1, 8, 9, 9]
    assert table["x"].tolist() == [20.0, 10.5, 30.25, 21.0, 11.5, 31.25]
    assert table["nuclei_file"].astype(str).unique().tolist() == [f"P1/{prefix}Nuclei.csv", f"P2/{prefix}Nuclei.csv"]
    one = read_nuclei_table(tmp_path / "out" / "P1" / f"{prefix}Nuclei.csv")[0]
    assert one["plate"].unique().tolist() == ["P1"]


def test_a_table_that_says_image_numbers_alone_needs_the_table_of_images(tmp_path):
    cellprofiler(tmp_path, plates=("P1",))
    image = tmp_path / "P1" / "Image.csv"
    pd.read_csv(image).iloc[:1].to_csv(image, index=False)
    with pytest.raises(DataError, match=r"lies in image 2, .*does not list \(so do 1 more of 3\)"):
        read_nuclei_tables(tmp_path)
    pd.read_csv(image).drop(columns="Metadata_Site").to_csv(image, index=False)
    with pytest.raises(DataError, match="no column 'Metadata_Site'"):
        read_nuclei_tables(tmp_path)
    image.unlink()
    with pytest.raises(DataError, match=r"by ImageNumber alone.*Image\.csv") as caught:
        read_nuclei_tables(tmp_path)
    assert "\n" not in str(caught.value)


def test_locations_of_deepprofiler(tmp_path):
    for plate, name, rows in (("P1", "A01-1-Nuclei", 2), ("P1", "a2-1-Nuclei", 0), ("P2", "A01-3-Nuclei", 1)):
        (tmp_path / plate).mkdir(exist_ok=True)
        centres = {"Nuclei_Location_Center_X": X[:rows], "Nuclei_Location_Center_Y": Y[:rows]}
        pd.DataFrame(centres).to_csv(tmp_path / plate / f"{name}.csv", index=False)
    fields, nuclei = read_nuclei_tables(tmp_path)
    assert fields.to_numpy().tolist() == [["P1", "A01", "1"], ["P1", "A02", "1"], ["P2", "A01", "3"]]
    placed = place_nuclei(screen_of(), fields, nuclei)
    assert placed.fields.tolist() == [0, 1, 12]  # the field without nuclei was looked at
    assert placed.table["image"].tolist() == [0, 0, 12]


def test_a_folder_without_nuclei(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no table of nuclei among its 1 tables"):
        read_nuclei_tables(tmp_path)


def test_centres_in_micrometres_are_said_by_name(tmp_path):
    (tmp_path / "n.csv").write_text("plate,well,site,Centroid X µm,Centroid Y µm\nP1,A01,1,3,4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"centres in µm \('Centroid X µm'\)"):
        read_nuclei_table(tmp_path / "n.csv")


# --- nuclei that do not fit -------------------------------------------------------------------------------------------


def given(n: int = 400, scale: float = 1.0, plate: str | None = None, swap: bool = False, seed: int = 0):
    """Nuclei all over the 16 fields of ``screen_of``, in the units that are asked for."""
    rng = np.random.default_rng(seed)
    screen = screen_of()
    fields = screen.table[["plate", "well", "site"]].astype(str)
    y, x = rng.uniform(0, 1, (2, n)) * np.array([[99], [119]]) * scale
    nuclei = pd.DataFrame({"field": rng.integers(0, len(fields), n), "x": y if swap else x, "y": x if swap else y})
    if plate is not None:
        fields.loc[fields["plate"] == "P2", "plate"] = plate
    return screen, fields, nuclei.assign(area=1.0)


def test_some_nuclei_outside_are_counted_and_named(caplog):
    screen, fields, nuclei = given()
    nuclei.loc[[3, 7], ["x", "y"]] = [[500, 1], [5, -4]]
    placed = place_nuclei(screen, fields, nuclei)
    assert len(placed.table) == 398
    assert "2 of 400 nuclei lie outside their field of 100 x 120, the first at y 1, x 500" in caplog.text


def test_nuclei_of_a_few_other_fields_are_counted_and_named(caplog):
    screen, fields, nuclei = given()
    fields.loc[0, "plate"] = "P9"
    placed = place_nuclei(screen, fields, nuclei)
    lost = int((nuclei["field"] == 0).sum())
    assert len(placed.table) == 400 - lost
    assert f"{lost} of 400 nuclei belong to no field, of plates P9 ({lost})" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plate": "P02"}, r"8 of 16 fields .*plate 'P02'.*P1, P2"),
        ({"scale": 2.0}, r"outside their field.*2\.0 times as large \(not binned\)"),
        ({"scale": 0.5}, r"upper left 4\d% x \d\d% .*µm, or pixels of a binned image"),
        ({"scale": 0.325}, "µm"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_what_it_looks_like(options, message):
    with pytest.raises(DataError, match=message):
        place_nuclei(*given(**options))


def test_exchanged_axes_and_places_on_a_stage():
    screen, fields, nuclei = given()
    narrow = screen_of(size=(20, 120))
    with pytest.raises(DataError, match="x and y look exchanged"):
        place_nuclei(narrow, fields, nuclei.assign(x=nuclei["y"] / 6, y=nuclei["x"]))
    with pytest.raises(DataError, match="x and y look exchanged"):  # most lie inside all the same
        place_nuclei(*given(swap=True))
    with pytest.raises(DataError, match="places on a stage"):
        place_nuclei(screen, fields, nuclei.assign(x=3 * (nuclei["x"] - 60), y=3 * (nuclei["y"] - 50)))


def test_a_few_nuclei_in_one_corner_are_no_other_unit():
    screen, fields, nuclei = given(n=12, scale=0.5)
    assert len(place_nuclei(screen, fields, nuclei).table) == 12
    one = nuclei.assign(field=0)
    many = pd.concat([one] * 40, ignore_index=True)  # a colony in one field
    assert len(place_nuclei(screen, fields, many).table) == 480


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("P1,A1,1,3,4\nP1,A2,1,3,4\nP1,A1,1,3,4\n", "row 4 of 'n.csv' is the nucleus of row 2 of 'n.csv' again"),
        ("P1,A1,1,3,inf\n", "row 2 of 'n.csv' has an infinite x or y"),
    ],
)
def test_nuclei_that_are_listed_twice_and_those_without_end(tmp_path, rows, message):
    (tmp_path / "n.csv").write_text(f"plate,well,site,x,y\n{rows}")
    with pytest.raises(DataError, match=message):
        read_nuclei_table(tmp_path / "n.csv")
