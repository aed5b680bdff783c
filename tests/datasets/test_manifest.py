"""A lab's own screen: what a manifest may look like, and what it must not."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from biomass.datasets.manifest import load_manifest
from biomass.errors import BadImageError, BiomassError, ConfigError, DataError
from biomass.screen import COLUMNS, Screen

H, W = 6, 4


def lab_table() -> pd.DataFrame:
    """Two weeks of two plates, two wells each: the words of a lab, not ours."""
    rows = [
        (f"img/{week}_{plate}_{well}.npy", week, plate, well, compound, moa, dose)
        for week in ("W1", "W2")
        for plate in ("007", "8")
        for well, compound, moa, dose in (("A1", "DMSO", "", 0.0), ("NA", "taxol", "Microtubule", 1.5))
    ]
    return pd.DataFrame(rows, columns=["file", "batch", "barcode", "position", "compound", "moa", "dose"])


NAMES = {"experiment": "batch", "plate": "barcode", "well": "position", "label": "moa"}


def draw(n: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, (n, channels, H, W), dtype=np.uint16)


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Screen]:
    """Writes a manifest (and its images) and reads it, with the arguments that a test adds."""

    def read(table: pd.DataFrame | None = None, name: str = "screen.csv", **arguments: Any) -> Screen:
        table = lab_table() if table is None else table
        (tmp_path / "img").mkdir(exist_ok=True)
        images = draw(len(lab_table()))
        for file, image in zip(lab_table()["file"], images, strict=True):
            np.save(tmp_path / file, image)
        if name.endswith(".parquet"):
            table.to_parquet(tmp_path / name)
        else:
            table.to_csv(tmp_path / name, index=False, sep="\t" if ".tsv" in name else ",")
        common: dict[str, Any] = {"root_dir": tmp_path, "image": "file", "columns": NAMES}
        return load_manifest(name, **(common | arguments))

    return read


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet", "A.CSV"])
def test_reads_every_kind(lab: Callable[..., Screen], name: str) -> None:
    table = lab_table()
    screen = lab(table, name)
    read = screen.table.astype({c: str for c in COLUMNS if c != "label"})
    for canonical, own in NAMES.items():
        if canonical != "label":
            assert read[canonical].tolist() == table[own].tolist()  # 007 stays 007, and NA is a well
    assert (read[["site", "cell_type", "split", "control"]] == "").all().all()
    assert screen.labels.tolist() == [-1, 0] * 4
    assert screen.classes == ("Microtubule",)
    assert screen.plate_names == ("W1/007", "W1/8", "W2/007", "W2/8")
    assert read["dose"].tolist() == table["dose"].tolist()
    assert read["compound"].tolist() == table["compound"].tolist()
    assert "file" not in read
    rows = np.array([5, 0])
    np.testing.assert_array_equal(screen.pixels.read(rows), draw(8)[rows])
    assert screen.pixels.channels == ("channel_0", "channel_1", "channel_2")


def test_parquet_of_numbers(lab: Callable[..., Screen]) -> None:
    table = lab_table()
    table["barcode"] = [1.0, 1, 2, 2, 1, 1, 2, 2]
    table["site"] = [1, 2] * 3 + [np.nan, 1]  # a float column, as pandas has it
    table["moa"] = pd.Categorical(["b", "a"] * 3 + [None, "a"])
    screen = lab(table, "a.parquet")
    assert screen.table["plate"].tolist() == ["1", "1", "2", "2"] * 2
    assert screen.table["site"].tolist() == ["1", "2"] * 3 + ["", "1"]
    assert screen.classes == ("a", "b")
    assert screen.labels.tolist() == [1, 0] * 3 + [-1, 0]


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        (["10", "9", "0", "9"], ("0", "9", "10"), [2, 1, 0, 1]),
        (["2", "0", "1", "2"], ("0", "1", "2"), [2, 0, 1, 2]),  # numbers without gaps stay what they are
        (["b10", "b9", "a", "b9"], ("a", "b10", "b9"), [1, 2, 0, 2]),
        (["b", "NA", "null", "a"], ("a", "b"), [1, -1, -1, 0]),
        (["", "", "", ""], (), [-1, -1, -1, -1]),
    ],
)
def test_labels(lab: Callable[..., Screen], values: list[str], classes: tuple[str, ...], labels: list[int]) -> None:
    screen = lab(lab_table().assign(moa=values * 2))
    assert screen.classes == classes
    assert screen.labels.tolist() == labels * 2


def test_labels_of_another_manifest(lab: Callable[..., Screen]) -> None:
    screen = lab(classes=["Actin", "Microtubule", 3])
    assert screen.classes == ("Actin", "Microtubule", "3")
    assert screen.labels.tolist() == [-1, 1] * 4
    with pytest.raises(DataError, match=r"'Microtubule' is not in dataloaders\.source\.classes.*mean 'Microtubules'\?"):
        lab(classes=["Microtubules"])
    assert lab(columns=NAMES | {"label": None}).classes == ()


def test_controls(lab: Callable[..., Screen]) -> None:
    screen = lab(control={"column": "compound", "negative": "DMSO", "positive": ["taxol"]})
    assert screen.table["control"].tolist() == ["negative", "positive"] * 4
    assert screen.negative_controls.tolist() == [True, False] * 4
    said = lab_table().assign(kind=["negative", ""] * 4)
    assert lab(said, columns=NAMES | {"control": "kind"}).table["control"].tolist() == ["negative", ""] * 4
    assert lab(said.rename(columns={"kind": "control"})).table["control"].tolist() == ["negative", ""] * 4
    with pytest.raises(DataError, match=r"'control' says 'taxol'"):
        lab(columns=NAMES | {"control": "compound"}, table=lab_table().replace({"compound": {"DMSO": "negative"}}))


SPLITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"train": {"experiment": ["W1"]}, "test": {"experiment": "W2"}}, ["train"] * 4 + ["test"] * 4),
    ({"a": {"plate": ["007"]}, "b": {"plate": ["W1/8"]}}, ["a"] * 2 + ["b"] * 2 + ["a"] * 2 + [""] * 2),
    ({"train": {"plate": [8], "experiment": ["W2"]}, "test": "rest"}, ["test"] * 6 + ["train"] * 2),
    ({"val": "rest", "train": {"experiment": ["W1"], "position": ["A1"]}}, ["train", "val"] * 2 + ["val"] * 4),
    ({"train": {"compound": ["taxol", "DMSO"]}, "test": None}, ["train"] * 8),
]


@pytest.mark.parametrize(("splits", "expected"), SPLITS)
def test_splits(lab: Callable[..., Screen], splits: dict[str, Any], expected: list[str]) -> None:
    assert lab(splits=splits).table["split"].tolist() == expected
    named = lab_table().assign(split=["x"] * 8)  # the listing goes before a column
    assert lab(named, splits=splits).table["split"].tolist() == expected


def test_split_column(lab: Callable[..., Screen]) -> None:
    table = lab_table().assign(part=["train", "", "val", "val"] * 2)
    screen = lab(table, columns=NAMES | {"split": "part"})
    assert screen.table["split"].tolist() == table["part"].tolist()
    assert screen.splits == ("train", "val")


def test_one_file_a_channel(lab: Callable[..., Screen], tmp_path: Path) -> None:
    table = lab_table()
    images = draw(8)
    for c, stain in enumerate(("dna", "actin")):
        table[stain] = [f"{stain}{i}.npy" for i in range(8)]
        for i in range(8):
            np.save(tmp_path / f"{stain}{i}.npy", images[i, c])
    screen = lab(table.drop(columns="file"), image={"actin": "actin", "dna": "dna"})
    assert screen.pixels.channels == ("actin", "dna")
    np.testing.assert_array_equal(screen.pixels.read(np.arange(8)), images[:, [1, 0]])
    assert screen.labels.tolist() == [-1, 0] * 4
    table.loc[3, "actin"] = ""
    arguments = {"image": {"actin": "actin", "dna": "dna"}}
    with pytest.raises(DataError, match=r"row 3 .* no file for channel 'actin'"):
        lab(table, **arguments)
    with pytest.raises(BadImageError, match=r"row 3 .* no file for channel 'actin'"):
        lab(table, on_bad_image="skip", **arguments).pixels.read(np.array([3]))


def test_places(tmp_path: Path, lab: Callable[..., Screen]) -> None:
    """Where a manifest and its images lie, and that one file has one spelling."""
    lab()
    table = lab_table()
    table["file"] = [
        table["file"][0],
        "./" + table["file"][1],
        str(tmp_path / table["file"][2]),
        table["file"][3].replace("/", "\\"),
        *table["file"][4:].str.replace("/", "//./"),
    ]
    (tmp_path / "tables").mkdir()
    table.to_csv(tmp_path / "tables" / "a.csv", index=False)
    for path, arguments in (
        ("tables/a.csv", {"root_dir": tmp_path, "image_dir": "."}),
        (tmp_path / "tables" / "a.csv", {"image_dir": tmp_path}),
        (os.path.relpath(tmp_path / "tables" / "a.csv"), {"root_dir": "", "image_dir": tmp_path}),
    ):
        screen = load_manifest(path, image="file", columns=NAMES, **arguments)
        np.testing.assert_array_equal(screen.pixels.read(np.arange(8)), draw(8))
    for spelling in table["file"]:
        with pytest.raises(DataError, match="listed twice"):
            lab(pd.concat([lab_table(), lab_table()[:1].assign(file=spelling)]).iloc[::-1])


def swapped(column: str, row: int, value: Any) -> pd.DataFrame:
    table = lab_table()
    table.loc[row, column] = value
    return table


BAD: list[tuple[str, pd.DataFrame | None, dict[str, Any], type[BiomassError], str]] = [
    ("no manifest", None, {"path": "screens.csv"}, DataError, r"no manifest '.*screens\.csv': .*source\.path"),
    ("unknown kind", None, {"path": "screen.xlsx"}, DataError, r"screen\.xlsx' is of no known kind.*\.parquet"),
    ("no image column", None, {"image": "files"}, ConfigError, r"\.image is 'files'.*did you mean 'file'\?"),
    ("no channel column", None, {"image": {"dna": "w1"}}, ConfigError, r"image\.dna is 'w1'.*There is: file, batch"),
    ("one column twice", None, {"image": {"a": "file", "b": "file"}}, ConfigError, "one column for every channel"),
    ("no mapped column", None, {"columns": NAMES | {"well": "positon"}}, ConfigError, r"well is 'positon'.*'position'"),
    ("no plate", None, {"columns": {"experiment": "batch"}}, ConfigError, r"no column 'plate'.*source\.columns\.plate"),
    ("unknown canonical", None, {"columns": NAMES | {"plat": "batch"}}, ConfigError, r"columns\.plat .*mean 'plate'"),
    ("twice", swapped("file", 6, "img/W1_8_A1.npy"), {}, DataError, r"'img/W1_8_A1\.npy' .*twice, in rows 2 and 6"),
    ("two labels", swapped("file", 3, "img/W1_007_A1.npy"), {}, DataError, "'' and 'Microtubule', in rows 0 and 3"),
    ("missing", swapped("file", 4, "img/gone.npy"), {}, DataError, r"img/gone\.npy' is missing:.*on_bad_image=skip"),
    ("ending", swapped("file", 4, "img/a.gif"), {"on_bad_image": "skip"}, DataError, r"'img/a\.gif' \(row 4, from 0\)"),
    ("channels", None, {"channels": ["dna", "actin"]}, BadImageError, r"3 x 6 x 4 uint16, expected .* 2 channel"),
    ("no such value", None, {"splits": {"train": {"experiment": ["W3"]}}}, ConfigError, r"experiment 'W3'.*W1"),
    ("no such plate", None, {"splits": {"train": {"plate": ["W3/8"]}}}, ConfigError, r"plate 'W3/8', which is not in"),
    (
        "experiment in two",
        None,
        {"splits": {"a": {"experiment": "W1"}, "b": {"experiment": ["W2", "W1"]}}},
        ConfigError,
        r"puts experiment 'W1', plate '007' in 'a' and in 'b'",
    ),
    (
        "plate in two",
        None,
        {"splits": {"a": {"plate": ["8"]}, "b": {"experiment": ["W2"]}}},
        ConfigError,
        r"puts experiment 'W2', plate '8' in 'a' and in 'b'",
    ),
    ("two rests", None, {"splits": {"a": "rest", "b": "rest"}}, ConfigError, "rest to 'a' and to 'b'"),
    ("empty rest", None, {"splits": {"a": {"experiment": ["W1", "W2"]}, "b": "rest"}}, ConfigError, r"splits\.b takes"),
    ("nothing left", None, {"splits": {"a": {"position": ["A1"], "compound": ["taxol"]}}}, ConfigError, "takes no"),
    ("a list", None, {"splits": {"train": ["W1"]}}, ConfigError, r"splits\.train is '\['W1'\]': use 'rest'"),
    ("no such column", None, {"splits": {"train": {"week": ["W1"]}}}, ConfigError, r"names the column 'week'.*batch"),
    (
        "no such control",
        None,
        {"control": {"column": "compound", "negative": ["DMS0"]}},
        ConfigError,
        r"control\.negative lists 'DMS0'.*did you mean 'DMSO'",
    ),
    (
        "both controls",
        None,
        {"control": {"column": "compound", "negative": "DMSO", "positive": "DMSO"}},
        ConfigError,
        "'DMSO' as negative and as positive",
    ),
    ("control key", None, {"control": {"column": "compound", "neg": "DMSO"}}, ConfigError, "keys column, neg"),
    ("control column", None, {"control": {"column": "cmpd", "negative": "DMSO"}}, ConfigError, r"\.column is 'cmpd'"),
    ("no rows", lab_table()[:0], {}, DataError, "has no rows"),
    (
        "columns twice",
        lab_table().set_axis(["file", "batch", "barcode", "position", "x", "moa", "moa"], axis=1),
        {},
        DataError,
        "two columns 'moa'",
    ),
]


@pytest.mark.parametrize(("table", "arguments", "kind", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_manifest(
    lab: Callable[..., Screen],
    tmp_path: Path,
    table: pd.DataFrame | None,
    arguments: dict[str, Any],
    kind: type[BiomassError],
    message: str,
) -> None:
    read = functools.partial(load_manifest, root_dir=tmp_path) if "path" in arguments else lab
    arguments = {"table": table} | arguments if read is lab else arguments
    with pytest.raises(kind, match=message) as caught:
        read(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", b"file,batch\nx\n"),
        ("a.csv", b"file,batch,barcode\nx,\xff\xfe,1\n"),
        ("a.csv.gz", b"not compressed"),
        ("a.parquet", b"PAR1"),
    ],
)
def test_damaged_manifest(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_manifest(name, root_dir=tmp_path, image="file", columns={"experiment": "batch", "plate": "batch"})
    assert "\n" not in str(caught.value)


def test_real_cells(real_data: Path) -> None:
    screen = load_manifest(
        "bbbc021_cells/manifest.csv",
        root_dir=real_data,
        columns={"experiment": "batch", "label": "moa"},
        channels=["DAPI", "actin", "tubulin"],
        control={"column": "compound", "negative": ["DMSO"]},
        splits={"test": {"experiment": ["Week10", "Week9"]}, "train": "rest"},
    )
    table = pd.read_csv(real_data / "bbbc021_cells" / "manifest.csv")
    assert len(screen) == 1000
    assert len(screen.plate_names) == 55
    assert [screen.classes[label] for label in screen.labels] == table["moa"].tolist()
    assert len(screen.classes) == 13
    assert screen.negative_controls.tolist() == (table["compound"] == "DMSO").tolist()
    assert (screen.table["split"] == "test").tolist() == table["batch"].isin(["Week9", "Week10"]).tolist()
    assert screen.table["concentration"].tolist() == table["concentration"].tolist()
    rows = np.array([999, 3, 500])
    read = screen.pixels.read(rows)
    assert read.shape == (3, 3, 68, 68)
    assert read.dtype == np.uint16
    for image, path in zip(read, table["path"][rows], strict=True):
        np.testing.assert_array_equal(image, np.load(real_data / "bbbc021_cells" / path).transpose(2, 0, 1))


def test_real_fields(real_data: Path, tmp_path: Path) -> None:
    """Raw 16-bit TIFF, one file a channel; the third site has no actin."""
    folder = real_data / "bbbc021_fields"
    rows = []
    for site in "123":
        files = {f"w{w}": next((p.name for p in folder.glob(f"*_s{site}_w{w}*.tif")), "") for w in (1, 2, 4)}
        rows.append({"week": "Week2", "plate": "24381", "well": "B02", "site": site} | files)
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "fields.csv", index=False)
    arguments: dict[str, Any] = {
        "root_dir": tmp_path,
        "image_dir": folder,
        "columns": {"experiment": "week"},
        "image": {"DAPI": "w1", "actin": "w4", "tubulin": "w2"},
    }
    with pytest.raises(DataError, match=r"row 2 .* no file for channel 'actin'"):
        load_manifest("fields.csv", **arguments)
    screen = load_manifest("fields.csv", on_bad_image="skip", **arguments)
    with pytest.raises(BadImageError) as caught:
        screen.pixels.read(np.arange(3))
    assert caught.value.row == 2
    read = screen.pixels.read(np.arange(2))
    assert read.shape == (2, 3, 1024, 1280)
    crop = np.load(next(folder.glob("*.npy")))
    np.testing.assert_array_equal(read[1, :, 565:633, 1139:1207], crop.transpose(2, 0, 1))
