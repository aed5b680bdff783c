"""Tables as labs write them are read, or refused with the true cause and the row as a spreadsheet shows it."""

import gzip
import logging
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from workbooks import write_workbook

from biomass import table_files as module
from biomass.errors import DataError
from biomass.table_files import as_text, read_cells, read_parquet, read_table

PLAIN = "path,plate,dose,note\na.png,0012,0.5,x\nb.png,13,1e-3,NA\n"
RECORDS = [
    {"path": "a.png", "plate": "0012", "dose": "0.5", "note": "x"},
    {"path": "b.png", "plate": "13", "dose": "1e-3", "note": "NA"},
]


def semicolons(text: str) -> str:
    return text.replace(".5", ",5").replace(",", ";").replace("0;5", "0,5").replace("1e-3", "0,001")


WRITTEN = {
    "plain": PLAIN.encode(),
    "windows line ends": PLAIN.replace("\n", "\r\n").encode(),
    "old Mac line ends": PLAIN.replace("\n", "\r").encode(),
    "no last line end": PLAIN.strip().encode(),
    "byte order mark": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 without mark": PLAIN.encode("utf-16-le"),
    "UTF-16 BE without mark": PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "bars": PLAIN.replace(",", "|").encode(),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "gzip": gzip.compress(PLAIN.encode()),
    "Excel's hint": ("sep=;\n" + PLAIN.replace(",", ";")).encode(),
    "all quoted": "\n".join(",".join(f'"{v}"' for v in line.split(",")) for line in PLAIN.splitlines()).encode(),
    "lines before": ("Plate report\nDate: 2024-01-01\n\n" + PLAIN).encode(),
    "padded lines before": ("Plate report,,,\n,,,\nOperator,AB,,\n" + PLAIN).encode(),
    "comments before": ("# made by hand\n" + PLAIN.replace(",", "\t")).encode(),
    "empty rows": PLAIN.replace("b.png", "\n,,,\n\nb.png").encode(),
    "separators at the end": PLAIN.replace("\n", ",\n").encode(),
    "separators at the end of rows": PLAIN.replace("x\n", "x,\n").replace("NA\n", "NA,\n").encode(),
    "numbered by pandas": PLAIN.replace("path", ",path")
    .replace("a.png", "0,a.png")
    .replace("b.png", "1,b.png")
    .encode(),
    "blanks in the header": PLAIN.replace("path,plate", " path , plate").encode(),
}


@pytest.mark.parametrize("ending", [".csv", ".txt", ".tsv", ".csv.gz", ""])
@pytest.mark.parametrize("kind", WRITTEN)
def test_every_way_of_writing_gives_the_same_table(tmp_path: Path, kind: str, ending: str) -> None:
    file = tmp_path / f"t{ending}"
    file.write_bytes(WRITTEN[kind])
    table = read_table(file)
    assert table.frame().to_dict("records") == RECORDS
    numbers = table.frame(["plate", "dose", "note"])
    assert numbers["plate"].tolist() == ["0012", "13"]
    assert numbers["dose"].tolist() == [0.5, 0.001]
    assert numbers["note"].tolist() == ["x", "NA"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("semicolons", "separated by semicolons"),
        ("tabs", "separated by tabs"),
        ("UTF-16", "UTF-16"),
        ("lines before", "header is in row 4"),
        ("numbered by pandas", "column 1 has no name"),
    ],
)
def test_what_is_unusual_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, said: str) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "t.csv").write_bytes(WRITTEN[kind])
    read_table(tmp_path / "t.csv")
    assert said in caplog.text
    caplog.clear()
    (tmp_path / "t.csv").write_bytes(WRITTEN["plain"])
    read_table(tmp_path / "t.csv")
    assert not caplog.text


def test_decimal_commas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_text("plate;dose;x;sites\nP1;0,5;1,25E+02;1,2\nP2;;-3;1,2,3\nP3;2;NA;4\n")
    table = read_table(file)
    frame = table.frame(table.columns)
    np.testing.assert_array_equal(frame["dose"], [0.5, np.nan, 2])
    np.testing.assert_array_equal(frame["x"], [125, -3, np.nan])
    assert frame["sites"].tolist() == ["1,2", "1,2,3", "4"]
    assert "decimal commas in dose, x" in caplog.text
    assert table.frame()["dose"].tolist() == ["0,5", "", "2"]  # as written
    (tmp_path / "whole.csv").write_text("site;sites\n1,0;1,2\n;1,0\n2,0;3\n")  # made floats by the missing one
    assert read_table(tmp_path / "whole.csv").frame().to_numpy().T.tolist() == [["1", "", "2"], ["1,2", "1,0", "3"]]
    np.testing.assert_array_equal(table.numbers("dose"), [0.5, np.nan, 2])
    with pytest.raises(DataError, match=r"row 3 of 't\.csv' says '1,2,3' for 'sites', which is not a number"):
        table.numbers("sites")


def test_windows_1252_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("compound,unit\ntaxol,M\nDMSO,5µM\nx,Ω\n".replace("Ω", "ß").encode("cp1252"))
    assert read_table(file).frame()["unit"].tolist() == ["M", "5µM", "ß"]
    assert "Windows-1252, where line 3 says 'DMSO,5µM'" in caplog.text
    file.write_bytes("compound,unit\n\x1b[2JDMSO,5µM\n".encode("cp1252"))
    read_table(file)
    assert "\x1b" not in caplog.text


def test_quoted_line_breaks_and_separators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_text('name,plate\n"two\nlines, ""quoted""",P1\nx,5" disc\ny,\n')
    table = read_table(file)
    assert table.frame().to_numpy().tolist() == [['two\nlines, "quoted"', "P1"], ["x", '5" disc'], ["y", ""]]
    assert table.place(1) == "row 3 of 't.csv'"  # as a spreadsheet counts
    assert "values hold line breaks: row 2, column name" in caplog.text


@pytest.mark.parametrize("before", ["", 'Screen\n"of\nMonday"\n\n'])
def test_a_line_break_in_or_before_the_header(tmp_path: Path, before: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_text(before + 'plate,"note\n(free)",well\nP1,a,A01\nP2,b,A02\n')
    table = read_table(file)
    assert table.columns == ["plate", "note (free)", "well"]
    assert table.frame().to_numpy().tolist() == [["P1", "a", "A01"], ["P2", "b", "A02"]]
    header = 4 if before else 1
    assert table.place(0) == f"row {header + 1} of 't.csv'"
    assert f"line breaks: row {header}, column 2" in caplog.text
    file.write_text(before + 'plate,"note\n(free)",well\nP1,a,A01\nP2,b\n')
    with pytest.raises(DataError, match=rf"row {header + 2} has 2 values, but the header \(row {header}\)"):
        read_table(file)


def test_late_changes_of_type_are_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    n = 200_000
    pd.DataFrame({"a": [*range(n), "x"], "b": [*range(n), 0.5], "c": [*["7"] * n, "07"]}).to_csv(file, index=False)
    table = read_table(file)
    frame = table.frame("abc")
    assert frame["a"].iloc[[0, -1]].tolist() == ["0", "x"]
    assert frame["b"].iloc[[1, -1]].tolist() == [1, 0.5]
    assert frame["c"].iloc[[0, -1]].tolist() == ["7", "07"]
    with pytest.raises(DataError, match=f"row {n + 2} of 't.csv' says 'x' for 'a'"):
        table.numbers("a")


def test_numbers_that_are_names_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("zero,long,whole,point,none\n007,12345678901234567890,1,1.0,\n8,2,2,,NA\n")
    frame = read_table(file).frame(["zero", "long", "whole", "point", "none"])
    assert frame["zero"].tolist() == ["007", "8"]
    assert frame["long"].tolist() == ["12345678901234567890", "2"]
    assert frame["whole"].tolist() == [1, 2]
    assert frame["whole"].dtype == np.int64
    np.testing.assert_array_equal(frame["point"], [1, np.nan])
    assert frame["none"].tolist() == ["", "NA"]


FAULTS = {
    "missing": (None, r"no plate map .*t\.csv"),
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "too few": (b"a,b\n1,2\n3\n", r"row 3 has 1 values, but the header \(row 1\) has 2 names: complete"),
    "too many": (b"a,b\n1,2\nx, y,2\n1,2,3\n", r"row 3 has 3 values.*1 others: 4.*quotation marks"),
    "ragged after lines before": (b"Report\n\na,b,c\n1,2,3\n4,5\n", r"row 5 has 2 values, but the header \(row 3\)"),
    "ragged after a line break": (b'a,b\n"x\ny",2\n3\n', "row 3 has 1 values"),
    "row names of R": (b"a,b\n1,x,y\n2,x,y\n", "row.names=FALSE"),
    "one name too few": (b"path,plate,well\na.png,W1,P1,A01\nb.png,W1,P1,A02\n", "row 2 has 4 values.*3 names"),
    "open quotation": (b'a,b\n1,2\n"x,2\n3,4\n' + b"5,6\n" * 1000, "row 3 opens a quotation mark"),
    "a row in a value": (b'a,b,c\n1,2,x\n1,2,"x\n3,4,"y\n5,6,z\n', "quotation mark .* in row 3 is not closed"),
    "rows in a value": (b'a;b;c\n1;"x;2\n3;y;4\n5;"z;6\n', "quotation mark .* in row 2 is not closed"),
    "rows in the header": (b'a,"b\n1,2\n3,"4\n5,6\n', "quotation mark .* in row 1 is not closed"),
    "names twice": (b"a,moa,moa \n1,2,3\n", "two columns 'moa'"),
    "binary": (b"a,b\n\0\1\2\3\xff", "binary file"),
    "Excel": (b"PK\x03\x04xxxx", "as an Excel workbook.*save the sheet as CSV"),
    "old Excel": (b"\xd0\xcf\x11\xe0xxxx", "as an Excel workbook"),
    "web page": (b"\n<!DOCTYPE html><html>", "web page.*download"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
    "image": (b"\x89PNG\r\n", "PNG image"),
    "cut gzip": (gzip.compress(PLAIN.encode() * 9)[:-9], "damaged.*gzip"),
    "cut Parquet": (b"PAR1xxxx", "damaged Parquet"),
    "two encodings": ("a,b\nä,1\n".encode() + "ü,2\n".encode("cp1252"), "byte 0xfc in line 3.*two encodings"),
    "no encoding": (b"a,b\n\x81,1\n", "byte 0x81 in line 2.*neither UTF-8 nor Windows-1252"),
    "cut UTF-16": (PLAIN.encode("utf-16")[:-1], "UTF-16"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_says_what_it_is(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(tmp_path / "t.csv", "plate map", advice="metadata_file")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "t.csv") in str(caught.value)
    assert caught.value.advice == "metadata_file"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_some_columns(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"t.{suffix}"
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, np.nan]})
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    read = read_table(file, columns=["c", "b"])
    assert read.columns == ["c", "b"]
    np.testing.assert_array_equal(read.numbers("c"), [0.5, np.nan])
    with pytest.raises(DataError, match="no column 'd'; it has: a, b, c"):
        read_table(file, columns=["d"])
    assert len(read_table(file)) == 2


def test_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    table = read_table(tmp_path / "t.csv")
    assert len(table) == 0
    assert table.columns == ["a", "b"]
    assert len(read_table(tmp_path / "t.csv", columns=["b"]).frame()) == 0


def test_a_list_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("path\nimg/a b.png\nimg/c.png\n")
    assert read_table(tmp_path / "t.txt").frame()["path"].tolist() == ["img/a b.png", "img/c.png"]


def test_wide_tables_and_their_header(tmp_path: Path) -> None:
    names = ["Metadata_plate", *(f"Cells_Texture_feature_number_{i}" for i in range(40_000))]
    (tmp_path / "t.csv").write_text(",".join(names) + "\n" + ",".join(["P1", *["0.5"] * 40_000]) + "\n")
    table = read_table(tmp_path / "t.csv")
    assert table.columns == names


def test_real_plate_maps(real_data: Path) -> None:
    folder = real_data / "platemaps"
    for file in sorted(folder.iterdir()):
        separator = "," if file.suffix == ".csv" else "\t"
        expected = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False)
        pd.testing.assert_frame_equal(read_table(file).frame(), expected)
    profiles = real_data / "bbbc021_profiles" / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    table = read_table(profiles)
    pd.testing.assert_frame_equal(table.frame(table.columns), pd.read_csv(profiles))


@pytest.mark.parametrize("name", ["1E05", "0x10", "0012"])
def test_a_column_with_a_name_that_looks_like_a_number_stays_text(tmp_path, name):
    (tmp_path / "a.csv").write_text(f"batch,dose\n{name},1e-3\n100000,2.5e+2\n16,7\n")
    table = read_table(tmp_path / "a.csv", "table").frame(numbers=["batch", "dose"])
    assert table["batch"].tolist() == [name, "100000", "16"]
    assert table["dose"].tolist() == [1e-3, 250.0, 7.0]


# --- workbooks --------------------------------------------------------------------------------------------------------


def test_a_sheet_is_read_as_the_text_that_would_be_saved_from_it(tmp_path: Path) -> None:
    header = ["path", "plate", "dose", "note"]
    rows = [["Plate report"], [], header, ["a.png", "0012", 0.5, "x"], ["b.png", 13, 1e-3, "NA"]]
    table = read_table(write_workbook(tmp_path / "t.csv", {"Data": rows, "Empty": [[None]]}))  # whatever it is called
    frame = table.frame(numbers=["dose"])
    assert frame["plate"].tolist() == ["0012", "13"]
    assert frame["dose"].tolist() == [0.5, 0.001]
    assert table.place(1) == "row 5 of 't.csv'"
    with pytest.raises(DataError, match="no column 'moa'; it has: path, plate, dose, note"):
        read_table(tmp_path / "t.csv", columns=["moa"])


def test_of_several_sheets_one_has_to_be_named(tmp_path: Path) -> None:
    file = write_workbook(tmp_path / "t.xlsx", {"P1": [["a", "b"], [1, 2]], "P2": [["a", "b"], [3, 4]]})
    with pytest.raises(DataError, match=r"2 sheets \(P1, P2\)"):
        read_table(file)
    assert read_table(file, sheet="P2").frame()["b"].tolist() == ["4"]
    assert read_table(file, sheet="P2").place(0) == "row 2 of sheet 'P2' of 't.xlsx'"
    with pytest.raises(DataError, match="no sheet 'P3'"):
        read_table(file, sheet="P3")
    assert [cells.rows for cells in read_cells(file)] == [[["a", "b"], ["1", "2"]], [["a", "b"], ["3", "4"]]]


def test_numbers_that_lost_digits_in_excel_are_refused(tmp_path: Path) -> None:
    file = write_workbook(tmp_path / "t.xlsx", {"S": [["plate", "x"], [12345678901234567890, 1]]})
    with pytest.raises(DataError, match="cannot hold all its digits"):
        read_table(file)


def test_an_archive_is_no_workbook(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_table(tmp_path / "t.xlsx")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no sheet has a value"):
        read_table(write_workbook(tmp_path / "t.xlsx", {"S": [[None, " "]]}))


def test_parquet_with_a_number_for_each_text_is_the_same_table(tmp_path) -> None:
    rows = 5000
    frame = pd.DataFrame(
        {
            "plate": np.array(["P1", "P2", "é"], object)[np.arange(rows) % 3],
            "path": [f"images/of/a/plate/{row}.png" for row in range(rows)],
            "gaps": np.array(["a", None], object)[np.arange(rows) % 2],
            "split": pd.Categorical(np.array(["x", "y"])[np.arange(rows) % 2], ["z", "y", "x"], ordered=True),
            "dose": np.arange(rows) / 2,
            "plate.x": np.arange(rows),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=1500)
    table, texts = read_parquet(tmp_path / "a.parquet")
    assert sorted(texts) == ["gaps", "plate"]
    assert table["plate"].type.bit_width == 8
    found = table.to_pandas()
    for name in texts:
        found[name] = as_text(found[name])
    pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "a.parquet"))
    some = read_table(tmp_path / "a.parquet", columns=["path", "plate"], coded=True)
    assert some.columns == ["path", "plate"]
    assert some.frame()["plate"].dtype == "category"


def test_parquet_of_no_rows_or_of_texts_that_are_missing(tmp_path) -> None:
    for values in ([], [None] * 3):
        pd.DataFrame({"a": pd.Series(values, dtype="string"), "b": 1.5}).to_parquet(tmp_path / "a.parquet")
        assert read_table(tmp_path / "a.parquet", coded=True).frame()["a"].isna().sum() == len(values)


def test_texts_that_all_differ_stay_in_a_parquet_file_until_they_are_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 70)
    rows = np.arange(2000)
    columns = {"path": [f"P{n // 9}/{n * 7919:09d}.png" for n in rows], "plate": [f"P{n // 900}" for n in rows]}
    frame = pd.DataFrame(columns | {"note": [None if n % 3 else f"of {n * 104729}" for n in rows], "dose": rows / 2})
    frame.to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet", coded=True)
    assert (table.columns, table.arrow.column_names, len(table)) == (list(frame), ["plate", "dose"], 2000)
    assert [name for piece in table.pieces("path") for name in piece.to_pylist()] == columns["path"]
    pd.testing.assert_frame_equal(table.frame().astype({"plate": object}), frame)
    some = table.only(["note", "plate"])
    assert (some.columns, some.arrow["note"].to_pylist()) == (["note", "plate"], frame["note"].tolist())
    frame[:1500].to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet' has changed while it was read"):
        list(table.pieces("path"))
    frame[["path"]].to_parquet(tmp_path / "a.parquet")
    assert len(read_table(tmp_path / "a.parquet", coded=True).frame()) == 2000  # there is nothing else
