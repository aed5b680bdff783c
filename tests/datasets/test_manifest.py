"""A lab's own screen: what a manifest may look like, and what it must not."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

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
        for well, compound, moa, dose in (("A1", "DMSO", "", 0.0), ("b02", "taxol", "Microtubule", 1.5))
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
    assert read["experiment"].tolist() == table["batch"].tolist()
    assert read["plate"].tolist() == table["barcode"].tolist()  # 007 stays 007
    assert read["well"].tolist() == ["A01", "B02"] * 4
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
    with pytest.raises(DataError, match=r"'Microtubule' is not among the classes.*'Microtubules'\?"):
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


def test_controls_by_their_wells(lab: Callable[..., Screen]) -> None:
    for column in ("position", ["position"]):
        screen = lab(control={"column": column, "negative": ["a1"]})
        assert screen.table["control"].tolist() == ["negative", ""] * 4


@pytest.mark.parametrize(("rows", "name"), [("AB", "a.csv"), ([1, 2], "a.csv"), ([1.0, 2.0], "a.parquet")])
def test_row_and_column_of_a_well_apart(lab: Callable[..., Screen], rows: Any, name: str) -> None:
    table = lab_table().drop(columns="position").assign(r=[*rows] * 4, c=[1, 12] * 4)
    for more in ({}, {"well": "other"}):
        screen = lab(
            table.assign(**more),
            name,
            columns=NAMES | {"well": ["r", "c"]},
            control={"column": "well", "negative": ["a1"]},
            splits={"train": {"well": ["b12"]}, "test": "rest"},
        )
        assert screen.table["well"].tolist() == ["A01", "B12"] * 4
        assert screen.table["control"].tolist() == ["negative", ""] * 4
        assert screen.table["split"].tolist() == ["test", "train"] * 4
    with pytest.raises(DataError, match="column '49'"):
        lab(table.assign(c=49), name, columns=NAMES | {"well": ["r", "c"]})
    for pair in (["r"], ["r", "r"], ["r", "c", "moa"]):
        with pytest.raises(ConfigError, match="'well' is"):
            lab(table, name, columns=NAMES | {"well": pair})
    with pytest.raises(ConfigError, match="column for 'label'"):
        lab(table, name, columns={**NAMES, "well": False, "label": ["moa", "compound"]})


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"splits": "rest"},
            {"splits": ["a", "b"]},
            {"control": "compound"},
            {"control": ["DMSO"]},
            {"classes": "A2"},
        ),
        *({"control": {"column": ["compound", "moa"], "negative": ["DMSO"]}}, {"image_dir": 7}, {"image": 3}),
        *({"on_bad_image": "foo"}, {"columns": "label"}, {"channels": "a"}, {"classes": 4}, {"axes": 3}, {"path": 5}),
        *({"classes": [["A1"]]}, {"splits": {"train": {"plate": {"a": 1}}, "val": "rest"}}, {"root_dir": None}),
    ],
)
def test_arguments_of_the_wrong_kind(lab: Callable[..., Screen], tmp_path: Path, wrong: dict[str, Any]) -> None:
    lab()
    value = next(iter(wrong.values()))
    with pytest.raises(BiomassError) as caught:
        load_manifest(**({"path": "screen.csv", "root_dir": tmp_path, "image": "file", "columns": NAMES} | wrong))
    assert caught.value.advice
    assert "\n" not in str(caught.value)
    assert isinstance(value, dict | list) or str(value) in str(caught.value)


def test_a_column_of_lists_is_refused(lab: Callable[..., Screen]) -> None:
    with pytest.raises(DataError, match=r"'barcode' .* holds lists"):
        lab(lab_table().assign(barcode=[["a", "b"]] * 8), "a.parquet")


def test_classes_are_a_column_of_names(lab: Callable[..., Screen]) -> None:
    table = lab_table().assign(moa=["1.0", "2"] * 4)
    assert lab(table, classes=["1.0", "2", "3.0"]).classes == ("1", "2", "3")
    for classes, said in ((["1", 1, "2"], "'1' is listed twice"), (["1", "2", "NA"], "'NA'")):
        with pytest.raises(ConfigError, match=said):
            lab(table, classes=classes)


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


@pytest.mark.parametrize("by", ["plate", "experiment"])
def test_a_screen_without_splits_is_shared_out(lab: Callable[..., Screen], by: str) -> None:
    screen = lab(splits=by)
    columns = ["experiment", "plate"][: 1 + (by == "plate")]
    assert "train" in screen.splits
    assert screen.table.groupby(columns, observed=True)["split"].nunique().max() == 1
    with pytest.raises(ConfigError, match="'wells'"):
        lab(splits="wells")


def test_splits_that_share_plates_are_warned_about(
    lab: Callable[..., Screen], caplog: pytest.LogCaptureFixture
) -> None:
    lab(splits={"train": {"well": ["B02"]}, "test": "rest"})
    assert "train and test share 4 plates ('W1/007', 'W1/8', 'W2/007', 'W2/8')" in caplog.text
    caplog.clear()
    lab(splits={"train": {"experiment": ["W1"]}, "test": "rest"})
    assert " share " not in caplog.text


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
    with pytest.raises(DataError, match=r"row 3 .* file for channel 'actin'"):
        lab(table, **arguments)
    with pytest.raises(BadImageError, match=r"row 3 .* file for channel 'actin'"):
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
    ("no manifest", None, {"path": "screens.csv"}, DataError, r"no manifest '.*screens\.csv'"),
    ("no image column", None, {"image": "files"}, ConfigError, r"images: 'files'.*'file'\?"),
    ("no channel column", None, {"image": {"dna": "w1"}}, ConfigError, r"channel 'dna': 'w1'.*file, batch"),
    ("one column twice", None, {"image": {"a": "file", "b": "file"}}, ConfigError, "one column for every channel"),
    ("no mapped column", None, {"columns": NAMES | {"well": "positon"}}, ConfigError, r"'well': 'positon'.*'position'"),
    ("no plate", None, {"columns": {"experiment": "batch"}}, ConfigError, "no column 'plate'.*file, batch, barcode"),
    ("unknown canonical", None, {"columns": NAMES | {"plat": "batch"}}, ConfigError, "'plat' .*'plate'"),
    ("twice", swapped("file", 6, "img/W1_8_A1.npy"), {}, DataError, r"'img/W1_8_A1\.npy' .*twice, in rows 2 and 6"),
    ("two labels", swapped("file", 3, "img/W1_007_A1.npy"), {}, DataError, "'' and 'Microtubule', in rows 0 and 3"),
    ("missing", swapped("file", 4, "img/gone.npy"), {}, DataError, r"img/gone\.npy' is missing"),
    ("ending", swapped("file", 4, "img/a.gif"), {"on_bad_image": "skip"}, DataError, r"'img/a\.gif' \(row 4, from 0\)"),
    ("channels", None, {"channels": ["dna", "actin"]}, BadImageError, r"3 x 6 x 4 uint16, expected .* 2 channel"),
    (
        "no such value",
        None,
        {"splits": {"train": {"experiment": ["W3"]}}},
        ConfigError,
        "'train', experiment: 'W3'.*W1, W2",
    ),
    ("no such plate", None, {"splits": {"train": {"plate": ["W3/8"]}}}, ConfigError, "'train', plate: 'W3/8'.*'W2/8'"),
    (
        "experiment in two",
        None,
        {"splits": {"a": {"experiment": "W1"}, "b": {"experiment": ["W2", "W1"]}}},
        ConfigError,
        "experiment 'W1', plate '007' .*'a' and 'b'",
    ),
    (
        "plate in two",
        None,
        {"splits": {"a": {"plate": ["8"]}, "b": {"experiment": ["W2"]}}},
        ConfigError,
        "experiment 'W2', plate '8' .*'a' and 'b'",
    ),
    ("two rests", None, {"splits": {"a": "rest", "b": "rest"}}, ConfigError, "rest .*'a' and 'b'"),
    ("empty rest", None, {"splits": {"a": {"experiment": ["W1", "W2"]}, "b": "rest"}}, ConfigError, "'b' takes no"),
    ("nothing left", None, {"splits": {"a": {"position": ["A1"], "compound": ["taxol"]}}}, ConfigError, "takes no"),
    ("a list", None, {"splits": {"train": ["W1"]}}, ConfigError, r"'train' is '\['W1'\]': .*'rest'"),
    ("no such column", None, {"splits": {"train": {"week": ["W1"]}}}, ConfigError, "'train': 'week'.*batch"),
    (
        "no such control",
        None,
        {"control": {"column": "compound", "negative": ["DMS0"]}},
        ConfigError,
        "negative .*'compound': 'DMS0'.*'DMSO'",
    ),
    (
        "both controls",
        None,
        {"control": {"column": "compound", "negative": "DMSO", "positive": "DMSO"}},
        ConfigError,
        "'DMSO' .*negative and as positive",
    ),
    ("control key", None, {"control": {"column": "compound", "neg": "DMSO"}}, ConfigError, "column, neg:"),
    (
        "control column",
        None,
        {"control": {"column": "cmpd", "negative": "DMSO"}},
        ConfigError,
        "controls: 'cmpd'.*'compound'",
    ),
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


def test_a_damaged_manifest_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"manifest '.*a\.csv' begins as an Excel workbook") as caught:
        load_manifest("a.csv", root_dir=tmp_path)
    assert caught.value.advice == "path"


def test_another_plate_is_never_taken(lab: Callable[..., Screen]) -> None:
    """YAML reads 0012 as 10, and there is a plate 10."""
    table = lab_table().replace({"barcode": {"007": "0012", "8": "10"}})
    as_written = lab(table, splits={"train": {"plate": ["0012"]}})
    assert set(as_written.table["plate"][as_written.rows("train")]) == {"0012"}
    with pytest.raises(ConfigError, match=r"'train', plate: 10 .*'0012' or '10': quote it"):
        lab(table, splits={"train": {"plate": [10]}})
    alone = lab(table.replace({"barcode": {"10": "13"}}), splits={"train": {"plate": [10]}})
    assert set(alone.table["plate"][alone.rows("train")]) == {"0012"}
    for value in (True, None, 1.5, 11):
        with pytest.raises(ConfigError, match=f"'train', plate: {value} .*quote it"):
            lab(table, splits={"train": {"plate": [value]}})


def test_names_are_joined_or_refused(lab: Callable[..., Screen], caplog: pytest.LogCaptureFixture) -> None:
    table = lab_table()
    table.loc[[0, 4], "barcode"] = "007 "
    table.loc[1, "batch"] = "W1\u00a0"
    screen = lab(table)
    assert screen.plate_names == ("W1/007", "W1/8", "W2/007", "W2/8")
    assert "'007 '" in caplog.text
    table["barcode"] = ["P8", "P8", "p8", "p8"] * 2
    with pytest.raises(DataError, match=r"plate is written 'P8' in row 2 of 'screen\.csv' and 'p8' in row 4 "):
        lab(table)
    with pytest.raises(DataError, match=r"label is written 'Microtubule' .* 'microtubule'"):
        lab(swapped("moa", 3, "microtubule"))


@pytest.mark.parametrize("missing", ["", "NA", " ", "nan"])
@pytest.mark.parametrize(("column", "name"), [("batch", "experiment"), ("barcode", "plate"), ("position", "well")])
def test_a_missing_name_is_an_error_with_its_row(
    lab: Callable[..., Screen], column: str, name: str, missing: str
) -> None:
    with pytest.raises(DataError, match=rf"row 5 of 'screen\.csv' has no {name}"):
        lab(swapped(column, 3, missing))
    with pytest.raises(DataError, match=rf"row 3 \(from 0\) of 'a\.parquet' has no {name}"):
        lab(swapped(column, 3, missing), "a.parquet")


def test_a_column_of_wells_may_be_empty(lab: Callable[..., Screen]) -> None:
    assert set(lab(lab_table().assign(position="")).table["well"]) == {""}


def canonical_table() -> pd.DataFrame:
    names = {own: canonical for canonical, own in NAMES.items()} | {"file": "path"}
    return lab_table().rename(columns=names).assign(site=[1, 2] * 4)


@pytest.mark.parametrize("as_yaml", [False, True])
def test_columns_that_are_there_are_taken(
    lab: Callable[..., Screen], caplog: pytest.LogCaptureFixture, as_yaml: bool
) -> None:
    """The defaults of the function and of the YAML agree, and neither hides a column."""
    caplog.set_level("INFO")
    arguments: dict[str, Any] = {"image": "path", "columns": None}
    if as_yaml:
        arguments = defaults_of_yaml()
    screen = lab(canonical_table(), **arguments)
    assert screen.table["well"].tolist() == ["A01", "B02"] * 4
    assert screen.table["site"].tolist() == ["1", "2"] * 4
    assert screen.classes == ("Microtubule",)
    assert "experiment, plate, well, site, label; without cell_type, split, control" in caplog.text
    for nothing in (False, "", "false"):  # names that are overridden come as text
        columns = (arguments["columns"] or {}) | {"well": nothing}
        assert set(lab(canonical_table(), **arguments | {"columns": columns}).table["well"]) == {""}


def defaults_of_yaml() -> dict[str, Any]:
    """The arguments that configs/dataloaders/manifest.yaml gives, but for the places."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        source = compose("train_erm", ["dataloaders=manifest"]).dataloaders.source
        values = OmegaConf.to_container(source, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in ("_target_", "root_dir", "path")}


def test_the_yaml_has_the_defaults_of_the_function() -> None:
    defaults = {
        name: argument.default
        for name, argument in inspect.signature(load_manifest).parameters.items()
        if name not in ("root_dir", "path")
    }
    columns = defaults_of_yaml()["columns"]
    assert set(columns) == set(COLUMNS)
    assert all(value is None for value in columns.values())
    assert defaults_of_yaml() | {"columns": None} == defaults


def test_columns_are_found_without_regard_to_case(lab: Callable[..., Screen]) -> None:
    table = canonical_table().rename(columns={"well": "Well", "plate": "PLATE"})
    assert lab(table, image="path", columns=None).table["well"].tolist() == ["A01", "B02"] * 4
    with pytest.raises(ConfigError, match="'well' may be column 'Well' or 'WELL'"):
        lab(table.assign(WELL="x"), image="path", columns=None)


def test_cells_of_an_unlabelled_screen_keep_their_wells(lab: Callable[..., Screen]) -> None:
    """Else the views of MinCLR would be pairs from anywhere on a plate."""
    screen = lab(canonical_table().drop(columns="label"), **defaults_of_yaml())
    assert screen.classes == ()
    assert len(screen.group_names(["experiment", "plate", "well", "site"])) == 8


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_and_parquet_give_the_same_screen(lab: Callable[..., Screen], suffix: str) -> None:
    table = canonical_table()
    table["plate"] = [1.0, 1, 2, 2, 1, 1, 2, 2]
    table["site"] = [1, 2, None, 2] * 2
    table["label"] = pd.Categorical(["b ", None] * 4)
    read = lab(table, f"a.{suffix}", image="path", columns=None).table
    assert read["plate"].tolist() == ["1", "1", "2", "2"] * 2
    assert read["site"].tolist() == ["1", "2", "", "2"] * 2
    assert read["label"].tolist() == [0, -1] * 4


def test_empty_names_can_be_controls(lab: Callable[..., Screen], real_data: Path) -> None:
    """The plate maps of JUMP leave the sample of DMSO empty."""
    jump = pd.read_csv(real_data / "platemaps" / "JUMP-Target-1_compound_platemap.tsv", sep="\t")
    lab()
    rows = jump.assign(path=lab_table()["file"][0], experiment="e", plate="p")
    rows["path"] = rows["path"].where(rows.index == 0, rows["well_position"] + ".npy")
    screen = lab(
        rows,
        image="path",
        columns={"well": "well_position"},
        control={"column": "broad_sample", "negative": ""},
        on_bad_image="skip",
    )
    assert len(screen) == 384
    assert screen.negative_controls.sum() == jump["broad_sample"].isna().sum() == 64


def test_a_table_out_of_excel(lab: Callable[..., Screen], tmp_path: Path) -> None:
    """Semicolons, decimal commas, Windows' own encoding, lines before the header, blanks behind names."""
    lab()
    text = canonical_table().assign(unit="µM").to_csv(index=False, sep=";", decimal=",").replace("W1;", "W1 ;")
    (tmp_path / "excel.csv").write_bytes(("Plate report\n\n" + text).encode("cp1252"))
    screen = load_manifest("excel.csv", root_dir=tmp_path)
    expected = lab(canonical_table(), image="path", columns=None)
    pd.testing.assert_frame_equal(screen.table.drop(columns="unit"), expected.table)
    assert screen.table["dose"].tolist() == [0.0, 1.5] * 4


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
    with pytest.raises(DataError, match=r"row 2 .* file for channel 'actin'"):
        load_manifest("fields.csv", **arguments)
    screen = load_manifest("fields.csv", on_bad_image="skip", **arguments)
    with pytest.raises(BadImageError) as caught:
        screen.pixels.read(np.arange(3))
    assert caught.value.row == 2
    read = screen.pixels.read(np.arange(2))
    assert read.shape == (2, 3, 1024, 1280)
    crop = np.load(next(folder.glob("*.npy")))
    np.testing.assert_array_equal(read[1, :, 565:633, 1139:1207], crop.transpose(2, 0, 1))
