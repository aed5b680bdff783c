"""Cropped cells: listing, summary tables, metadata, splits, and the download against a stand-in of the record."""

import hashlib
import io
import json
import logging
import os
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from biomass.config import build
from biomass.datasets import cell_folders, rxrx1_cells
from biomass.datasets.rxrx1_cells import count_cells, load_rxrx1_cells, prepare_rxrx1_cells
from biomass.errors import BadImageError, ConfigError, DataError
from biomass.screen import FIELD

EXPERIMENTS = {
    "HUVEC-01": ("HUVEC", "train"),
    "HUVEC-02": ("HUVEC", "train"),
    "RPE-01": ("RPE", "val"),
    "U2OS-09": ("U2OS", "test"),
}
WELLS = {"B02": ("treatment", "s0", 0), "B03": ("positive_control", "p0", 1), "C10": ("negative_control", "EMPTY", 2)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def crop(seed, size=48):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def cells_of(experiment, plate, well, site):
    """How many cells the test screen has in a field; one field of a well has none, one well none at all."""
    if (experiment, plate, well) == ("HUVEC-02", 2, "B03"):
        return 0
    if (experiment, plate, well, site) == ("RPE-01", 1, "B02", 2):
        return 0
    return 1 + (len(experiment) + plate + ord(well[0]) + int(well[1:]) + site) % 4


def fields():
    return [(e, p, w, s) for e in EXPERIMENTS for p in (1, 2, 10) for w in WELLS for s in (1, 2)]


def write_metadata(path, keep=lambda *field: True):
    rows = [
        {
            "cell_type": EXPERIMENTS[e][0],
            "dataset": EXPERIMENTS[e][1],
            "experiment": e,
            "plate": p,
            "well": w,
            "site": s,
            "well_type": WELLS[w][0],
            "sirna": WELLS[w][1],
            "sirna_id": WELLS[w][2],
        }
        for e, p, w, s in fields()
        if keep(e, p, w, s)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def write_cells(folder):
    for number, field in enumerate(fields()):
        e, p, w, s = field
        place = folder / e / f"Plate{p}" / f"{w}_s{s}"
        place.mkdir(parents=True)
        for i in range(cells_of(*field)):
            Image.fromarray(crop([number, i])).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that tests only read."""
    root = tmp_path_factory.mktemp("cells")
    write_metadata(root / "metadata.csv")
    return write_cells(root / "cells")


@pytest.fixture
def folder(tmp_path):
    """A folder that a test may change."""
    write_metadata(tmp_path / "metadata.csv")
    return write_cells(tmp_path / "cells")


def expected_cells():
    """Slow: every cell with its field, in the order of the rows."""
    ordered = sorted(fields())
    return [(*field, i) for field in ordered for i in range(cells_of(*field))]


def key(table):
    plain = table.astype(dict.fromkeys(FIELD, str)).astype({"plate": int, "site": int})
    return list(plain[[*FIELD, "cell"]].itertuples(index=False, name=None))


def test_rows_are_the_cells_with_what_is_known_of_their_wells(shared):
    screen = load_rxrx1_cells(shared)
    assert key(screen.table) == expected_cells()
    for row in screen.table.itertuples():
        cell_type, dataset = EXPERIMENTS[row.experiment]
        well_type, sirna, label = WELLS[row.well]
        split = "iid_val" if dataset == "train" and row.site == "2" else dataset
        control = {"treatment": "", "positive_control": "positive", "negative_control": "negative"}[well_type]
        assert (row.cell_type, row.split, row.control) == (cell_type, split, control)
        assert (row.sirna, row.label) == (sirna, label)
    assert screen.classes == ("s0", "p0", "EMPTY")
    assert screen.splits == ("iid_val", "test", "train", "val")
    assert len(screen.plate_names) == 12


def test_pixels_are_those_of_the_files(shared):
    screen = load_rxrx1_cells(shared)
    numbers = {field: number for number, field in enumerate(fields())}
    rows = np.random.default_rng(0).permutation(len(screen))[:20]
    images = screen.pixels.read(rows)
    cells = key(screen.table)
    for image, row in zip(images, rows, strict=True):
        *field, i = cells[row]
        assert np.array_equal(image, crop([numbers[tuple(field)], i]).transpose(2, 0, 1))
    e, p, w, s, i = cells[rows[0]]
    assert screen.pixels.name(int(rows[0])) == str(shared / e / f"Plate{p}" / f"{w}_s{s}" / f"{i}.png")


def test_images_are_numbered_densely_over_the_whole_screen(shared):
    screen = load_rxrx1_cells(shared)
    image = screen.table["image"].to_numpy()
    assert np.array_equal(np.unique(image), np.arange(image.max() + 1))
    named = {(number, cell[:4]) for number, cell in zip(image.tolist(), key(screen.table), strict=True)}
    assert len(named) == image.max() + 1 == len({field for _, field in named})


def test_images_without_cells_are_reported_and_listed(shared, caplog):
    with caplog.at_level(logging.WARNING):
        load_rxrx1_cells(shared)
    assert "left out: 3 of 72, such as 'HUVEC-02/Plate2/B03_s1'; wells without any: 1" in caplog.text
    counts = count_cells(shared)
    assert [cells_of(*f) for f in sorted(fields())] == counts["cells"].tolist()
    empty = counts[counts["cells"] == 0]
    assert set(empty["experiment"] + "/" + empty["plate"] + "/" + empty["well"] + "/" + empty["site"]) == {
        "HUVEC-02/2/B03/1",
        "HUVEC-02/2/B03/2",
        "RPE-01/1/B02/2",
    }


def test_images_that_only_the_metadata_knows_count_as_empty(folder, caplog):
    (folder / "RPE-01" / "Plate1" / "B02_s2").rmdir()
    assert count_cells(folder)["cells"].eq(0).sum() == 3
    for plate in (folder / "U2OS-09").iterdir():
        for place in plate.iterdir():
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
        plate.rmdir()
    (folder / "U2OS-09").rmdir()  # a plate that is not there at all is another matter
    with caplog.at_level(logging.INFO):
        assert count_cells(folder)["cells"].eq(0).sum() == 3
    assert "no folder for 3 plates of the metadata" in caplog.text
    assert "test" not in load_rxrx1_cells(folder).splits


def test_one_image_with_one_cell(tmp_path):
    write_metadata(tmp_path / "metadata.csv")
    place = tmp_path / "cells" / "HUVEC-01" / "Plate1" / "B02_s1"
    place.mkdir(parents=True)
    Image.fromarray(crop(0)).save(place / "0.png")
    screen = load_rxrx1_cells(tmp_path / "cells")
    assert key(screen.table) == [("HUVEC-01", 1, "B02", 1, 0)]
    assert screen.pixels.read(np.array([0])).shape == (1, 3, 48, 48)


def test_cells_may_be_numbered_with_gaps(folder):
    place = folder / "HUVEC-01" / "Plate1" / "B02_s1"
    for i in (7, 10000):
        Image.fromarray(crop(i)).save(place / f"{i}.png")
    before = cells_of("HUVEC-01", 1, "B02", 1)
    numbers = load_rxrx1_cells(folder).table["cell"][: before + 2]
    assert numbers.tolist() == [*range(before), 7, 10000]


# options


def test_cell_type_and_one_site(shared):
    whole = load_rxrx1_cells(shared)
    one = load_rxrx1_cells(shared, cell_type="RPE")
    assert set(one.table["cell_type"]) == {"RPE"}
    assert one.classes == whole.classes
    assert set(load_rxrx1_cells(shared, cell_type=["RPE", "U2OS"]).table["cell_type"]) == {"RPE", "U2OS"}
    first = load_rxrx1_cells(shared, use_one_site=True).table
    assert {(s, n) for s, n in zip(first["split"], first["site"], strict=True)} == {
        ("train", "1"),
        ("iid_val", "2"),
        ("val", "1"),
        ("test", "1"),
    }
    assert np.array_equal(np.unique(first["image"]), np.arange(first["image"].max() + 1))
    kept = [c for c in expected_cells() if EXPERIMENTS[c[0]][1] == "train" or c[3] == 1]
    assert key(first) == kept
    with pytest.raises(ConfigError, match=r"cell type: 'HELA' .*HUVEC, RPE"):
        load_rxrx1_cells(shared, cell_type="HELA")


def test_without_labels(shared):
    screen = load_rxrx1_cells(shared, include_labels=False)
    assert screen.classes == ()
    assert (screen.labels == -1).all()
    assert screen.negative_controls.any()


def test_without_metadata_the_experiments_are_known_by_name(tmp_path, shared):
    folder = tmp_path / "cells"
    for experiment in ("HUVEC-16", "HUVEC-17", "HUVEC-18", "RPE-07", "RPE-08", "U2OS-05", "HEPG2-11", "HEPG2-07"):
        for site in (1, 2):
            place = folder / experiment / "Plate1" / f"B02_s{site}"
            place.mkdir(parents=True)
            Image.fromarray(crop(0)).save(place / "0.png")
    with pytest.raises(DataError, match=r"no metadata.csv .*without labels") as caught:
        load_rxrx1_cells(folder, root_dir=tmp_path)
    assert caught.value.advice == "metadata_file"
    table = load_rxrx1_cells(folder, root_dir=tmp_path, include_labels=False).table
    splits = table.groupby("experiment", observed=True)["split"].agg(lambda s: "/".join(s)).to_dict()
    assert splits == {
        "HEPG2-07": "train/iid_val",
        "HEPG2-11": "test/test",
        "HUVEC-16": "train/iid_val",
        "HUVEC-17": "val/val",
        "HUVEC-18": "test/test",
        "RPE-07": "train/iid_val",
        "RPE-08": "val/val",
        "U2OS-05": "test/test",
    }
    (folder / "HUVEC-18").rename(folder / "HUVEC-25")
    with pytest.raises(DataError, match="experiment 'HUVEC-25'"):
        load_rxrx1_cells(folder, root_dir=tmp_path, include_labels=False)


def test_the_official_experiments_are_those_of_wilds():
    last = rxrx1_cells._OFFICIAL
    assert sum(train for train, _, _ in last.values()) == 33  # published numbers of experiments
    assert sum(val - train for train, val, _ in last.values()) == 4
    assert sum(end - val for _, val, end in last.values()) == 14


def test_where_metadata_is_looked_for(shared, tmp_path):
    assert len(load_rxrx1_cells(shared, metadata_file=str(shared.parent / "metadata.csv"))) == len(expected_cells())
    link = tmp_path / "elsewhere" / "cells"
    link.parent.mkdir()
    link.symlink_to(shared)
    (tmp_path / "rxrx1_v1.0").mkdir()
    write_metadata(tmp_path / "rxrx1_v1.0" / "metadata.csv")
    assert len(load_rxrx1_cells(link, root_dir=tmp_path)) == len(expected_cells())
    with pytest.raises(DataError, match=r"no metadata 'nowhere\.csv'"):
        load_rxrx1_cells(shared, metadata_file="nowhere.csv")


def test_metadata_that_does_not_belong_to_the_cells(shared, tmp_path):
    other = write_metadata(tmp_path / "m.csv", lambda e, p, w, s: (e, p, w) != ("RPE-01", 2, "B03"))
    with pytest.raises(DataError, match=r"2 of 72 images of .*RPE-01, plate 2, well B03, site 1;"):
        load_rxrx1_cells(shared, metadata_file=other)
    other.write_text(other.read_text() + other.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"HUVEC-01, plate 1, well B02, site 1: row 2 .*and row 72"):
        load_rxrx1_cells(shared, metadata_file=other)
    other.write_text("experiment,plate\nA,1\n")
    with pytest.raises(DataError, match="has no column 'cell_type'"):
        load_rxrx1_cells(shared, metadata_file=other)


# the summary table


def summary_text(layout="published", counts=cells_of):
    if layout == "published":
        lines = [f"{e},Plate{p},{w}_s{s}.png,{counts(e, p, w, s)}" for e, p, w, s in fields()]
        return "\n".join(["experiment,plate,well,segmented", *lines]) + "\n"
    lines = [f"{e},{p},{w},{s},{counts(e, p, w, s)}" for e, p, w, s in fields()]
    return "\n".join(["experiment,plate,well,site,segmented", *lines]) + "\n"


@pytest.mark.parametrize("layout", ["published", "simulated"])
def test_the_summary_replaces_listing(shared, tmp_path, layout, monkeypatch):
    path = tmp_path / "summary.csv"
    path.write_text(summary_text(layout))
    listed = load_rxrx1_cells(shared)
    counted = load_rxrx1_cells(shared, summary_file=path)
    pd.testing.assert_frame_equal(listed.table, counted.table)
    monkeypatch.setattr(rxrx1_cells, "list_folder", None)  # and it is not listed in secret
    load_rxrx1_cells(shared, summary_file=path)


def test_ragged_summaries_are_read(shared, tmp_path, caplog):
    lines = summary_text().splitlines()
    lines[3] += ",12,more"  # values without a column
    lines[5] = lines[5].rpartition(",")[0]  # no count: listed in the folder
    lines[6] = lines[6].replace("Plate", "plate ") + ",,,"  # names nothing
    lines[8] = lines[8].rpartition(",")[0] + ",99"  # said twice, with two counts: listed in the folder
    lines += [summary_text().splitlines()[8], lines[10], "", ",,", lines[12] + ".0"]
    path = tmp_path / "summary.csv"
    path.write_text("\r\n".join(lines) + "\r\n")
    with caplog.at_level(logging.WARNING):
        counts = count_cells(shared, summary_file=path)
    assert "1 lines name no image and are left out, the first is line 7" in caplog.text
    lost = counts[counts["cells"] != count_cells(shared)["cells"]]
    expected = fields()[5]
    assert [(r.experiment, int(r.plate), r.well, int(r.site)) for r in lost.itertuples()] == [expected]


@pytest.mark.parametrize("line", [0, 9, 30])
def test_a_quote_that_is_never_closed_takes_nothing_with_it(shared, tmp_path, caplog, line):
    path = tmp_path / "summary.csv"
    lines = summary_text().splitlines()
    lines[line] = f'"{lines[line]}'
    lines[12] = ",".join(f'"{value}"' for value in lines[12].split(","))  # these are closed
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        counted = load_rxrx1_cells(shared, summary_file=path)
    pd.testing.assert_frame_equal(counted.table, load_rxrx1_cells(shared).table)
    assert "summary" not in caplog.text


def test_a_comma_between_quotes_is_of_the_value(shared, tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(
        summary_text()
        .replace("experiment,", "note,experiment,")
        .replace("\nHUVEC", '\n"7,8",HUVEC')
        .replace("\nRPE", "\n,RPE")
        .replace("\nU2OS", "\n,U2OS")
    )
    pd.testing.assert_frame_equal(load_rxrx1_cells(shared, summary_file=path).table, load_rxrx1_cells(shared).table)


def test_a_summary_that_was_cut_off_is_warned_of(shared, tmp_path, caplog):
    path = tmp_path / "summary.csv"
    path.write_text("\n".join(summary_text().splitlines()[: 1 + 18 + 4]) + "\n")  # three plates, and 4 of 6 images
    with caplog.at_level(logging.INFO):
        assert len(count_cells(shared, summary_file=path)) == 24
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"'{path}' does not name 8 plates of '{shared}'" in warnings[0]
    assert "such as 'HUVEC-02/Plate2'" in warnings[0]
    assert f"'{path}' does not name 2 images of '{shared}'" in warnings[1]
    assert "such as 'HUVEC-02/Plate1/C10_s1'" in warnings[1]
    assert len(warnings) == 2
    assert "has no folder for" not in caplog.text


def test_a_summary_may_spell_wells_otherwise(shared, tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(summary_text().replace("B0", "b").replace("Plate", " Plate"))
    pd.testing.assert_frame_equal(load_rxrx1_cells(shared, summary_file=path).table, load_rxrx1_cells(shared).table)


def test_images_that_only_the_summary_knows_are_refused(folder, tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(summary_text())
    gone = folder / "U2OS-09" / "Plate1" / "C10_s2"
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    with pytest.raises(DataError, match=r"1 of 72 images .*'U2OS-09/Plate1/C10_s2'") as caught:
        load_rxrx1_cells(folder, summary_file=path)
    assert caught.value.advice == "summary_file"


@pytest.mark.parametrize("spell", ["A1", "a001", "r01c01"])
def test_folders_may_spell_wells_otherwise_than_metadata(folder, spell):
    before = load_rxrx1_cells(folder)
    expected = before.read(np.arange(3))
    metadata = folder.parent / "metadata.csv"
    metadata.write_text(metadata.read_text().replace(",B02,", ",A01,"))
    for field in list(folder.glob("*/*/B02_s*")):
        field.rename(field.with_name(field.name.replace("B02", spell)))
    screen = load_rxrx1_cells(folder)
    assert set(screen.table["well"]) == {"A01", "B03", "C10"}
    assert len(screen) == len(before)
    assert f"/{spell}_s1/0.png" in screen.pixels.name(0)
    np.testing.assert_array_equal(screen.read(np.arange(3)), expected)


def test_two_folders_of_one_field_are_refused(folder):
    (folder / "HUVEC-01" / "Plate1" / "b2_s1").mkdir()
    with pytest.raises(DataError, match=r"HUVEC-01, plate 1, well B02, site 1: '.*B02_s1' and '.*b2_s1'"):
        load_rxrx1_cells(folder)


def test_a_summary_that_does_not_fit(shared, tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(summary_text(counts=lambda *field: cells_of(*field) + 1))
    with pytest.raises(DataError, match=r"counts 4 cells in '.*HUVEC-01/Plate1/B02_s1', which has 3"):
        load_rxrx1_cells(shared, summary_file=path)
    path.write_text("experiment,plate,well\nA,Plate1,B02_s1.png\n")
    with pytest.raises(DataError, match="no column 'segmented'"):
        load_rxrx1_cells(shared, summary_file=path)
    path.write_text("experiment,plate,well,segmented\n")
    with pytest.raises(DataError, match="names no image"):
        load_rxrx1_cells(shared, summary_file=path)
    with pytest.raises(DataError, match="cannot be read"):
        load_rxrx1_cells(shared, summary_file=tmp_path / "nowhere.csv")


# the remembered listing


def test_the_listing_is_remembered_until_the_folder_changes(folder, monkeypatch):
    listed = []
    real = cell_folders.list_field
    monkeypatch.setattr(cell_folders, "list_field", lambda path: listed.append(path) or real(path))
    first = load_rxrx1_cells(folder)
    assert len(listed) == 72
    cache = folder.parent / "cells.cells.parquet"
    assert cache.is_file()
    listed.clear()
    pd.testing.assert_frame_equal(load_rxrx1_cells(folder).table, first.table)
    assert not listed

    place = folder / "U2OS-09" / "Plate10" / "B02_s1"
    Image.fromarray(crop(0)).save(place / "77.png")
    os.utime(place, ns=(0, 12345))
    table = load_rxrx1_cells(folder).table
    assert set(listed) == set(place.parent.iterdir())  # only the plate that changed
    assert len(table) == len(first) + 1
    assert 77 in table["cell"].to_numpy()

    (place / "77.png").unlink()
    os.utime(place, ns=(0, 999))
    assert len(load_rxrx1_cells(folder)) == len(first)
    new = folder / "U2OS-09" / "Plate10" / "C11_s1"
    (folder / "U2OS-09" / "Plate10" / "C10_s2").rename(new)
    with pytest.raises(DataError, match="plate 10, well C11, site 1"):
        load_rxrx1_cells(folder)


def test_a_damaged_or_foreign_cache_is_ignored(folder):
    expected = load_rxrx1_cells(folder).table
    cache = folder.parent / "cells.cells.parquet"
    for content in (b"", b"PAR1 and nothing", cache.read_bytes()[:-100]):
        cache.write_bytes(content)
        pd.testing.assert_frame_equal(load_rxrx1_cells(folder).table, expected)
    pd.DataFrame({"a": [1]}).to_parquet(cache)
    pd.testing.assert_frame_equal(load_rxrx1_cells(folder).table, expected)


def test_a_folder_that_cannot_be_written_is_remembered_elsewhere(folder, monkeypatch):
    elsewhere = Path(os.environ["XDG_CACHE_HOME"])
    real = cell_folders._caches
    monkeypatch.setattr(cell_folders, "_caches", lambda f: (Path("/proc/none/x.parquet"), real(f)[1]))
    first = load_rxrx1_cells(folder)
    assert len(list(elsewhere.rglob("*.parquet"))) == 1
    monkeypatch.setattr(cell_folders, "list_field", None)
    pd.testing.assert_frame_equal(load_rxrx1_cells(folder).table, first.table)


# what is not the layout


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda f: (f / "a" / "b").mkdir(parents=True), "found the folder 'a/b'"),
        (lambda f: (f / "a" / "plate1" / "B02_s1").mkdir(parents=True), "found the folder 'a/plate1'"),
        (lambda f: (f / "a" / "Plate01" / "B02_s1").mkdir(parents=True), "found the folder 'a/Plate01'"),
        (lambda f: (f / "a" / "Plate1" / "B02").mkdir(parents=True), "found the folder 'a/Plate1/B02'"),
        (lambda f: (f / "a" / "Plate1").mkdir(parents=True), "found no image"),
        (lambda f: (f / "a").mkdir(parents=True), "found no folder in 'a'"),
        (lambda f: (f.mkdir(), (f / "x.png").write_bytes(b"")), "found no folder"),
    ],
)
def test_a_folder_that_is_not_the_layout(tmp_path, make, found):
    make(tmp_path / "cells")
    with pytest.raises(DataError, match=r"expected <experiment>/Plate<k>/<well>_s<site>/<i>\.png in it, " + found):
        load_rxrx1_cells(tmp_path / "cells", include_labels=False)


def test_a_strange_file_and_the_folder_above(folder):
    with pytest.raises(DataError, match=r"did you mean '.*/cells'\?"):
        load_rxrx1_cells(folder.parent)
    (folder / ".hidden").mkdir()
    (folder / "HUVEC-01" / "notes.txt").write_text("")
    (folder / "HUVEC-01" / "Plate1" / "B02_s1" / ".DS_Store").write_text("")
    assert len(load_rxrx1_cells(folder)) == len(expected_cells())
    (folder / "HUVEC-01" / "Plate1" / "B02_s1" / "cell_1.png").write_text("")
    with pytest.raises(DataError, match=r"found 'HUVEC-01/Plate1/B02_s1/cell_1\.png'"):
        load_rxrx1_cells(folder)


def test_no_cells_at_all(tmp_path):
    write_metadata(tmp_path / "metadata.csv")
    (tmp_path / "cells" / "HUVEC-01" / "Plate1" / "B02_s1").mkdir(parents=True)
    with pytest.raises(DataError, match="has no cells"):
        load_rxrx1_cells(tmp_path / "cells")


def test_a_cell_of_another_size(folder):
    screen = load_rxrx1_cells(folder)
    Image.fromarray(crop(0, 50)).save(folder / "HUVEC-01" / "Plate1" / "B03_s1" / "0.png")
    row = key(screen.table).index(("HUVEC-01", 1, "B03", 1, 0))
    with pytest.raises(BadImageError, match=r"B03_s1/0\.png' is 50 x 50 x 3 uint8, expected 48 x 48 x 3") as caught:
        screen.pixels.read(np.arange(len(screen)))
    assert caught.value.row == row


# the download


def archive(kind, members):
    """An archive in memory: {name: bytes}."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def members(prefix="", experiments=("HUVEC-01",), extra=None):
    buffer = io.BytesIO()
    Image.fromarray(crop(0)).save(buffer, "png")
    cells = {
        f"{prefix}{e}/Plate1/B0{w}_s1/{i}.png": buffer.getvalue() for e in experiments for w in (2, 3) for i in range(3)
    }
    return cells | {f"{prefix}README.txt": b"cells"} | (extra or {})


class Record:
    """A stand-in for the server of the record: files, and how it misbehaves."""

    def __init__(self, files, checksums=None, ranges=True, cut=None):
        self.files, self.ranges, self.cut = files, ranges, cut  # cut: bytes after which the next answer breaks off
        self.checksums = checksums or {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
        self.requests, self.agents = [], []
        record = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                record.requests.append((self.path, self.headers.get("Range")))
                record.agents.append(self.headers.get("User-Agent"))
                record.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request):
        if request.path == "/api/records/7272553":
            listing = [
                {
                    "key": name,
                    "size": len(data),
                    "checksum": f"md5:{self.checksums[name]}",
                    "links": {"self": f"{self.url}/files/{name}/content"},
                }
                for name, data in self.files.items()
            ]
            data, status, start = json.dumps({"files": listing}).encode(), 200, 0
        else:
            data, status, start = self.files[request.path.split("/")[2]], 200, 0
            asked = request.headers.get("Range")
            if self.ranges and asked:
                start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        body = data[start:]
        if self.cut is not None and "/files/" in request.path:
            body, self.cut = body[: self.cut], 0
        request.wfile.write(body)


@pytest.mark.parametrize(("kind", "name"), [("zip", "cells.zip"), ("tar", "cells.tar.gz")])
@pytest.mark.parametrize("prefix", ["", "rxrx1/cropped/"])
def test_the_published_archive_is_fetched_on_first_use(tmp_path, monkeypatch, kind, name, prefix):
    with Record({name: archive(kind, members(prefix)), "summary.csv": b"experiment,plate\n"}) as record:
        monkeypatch.setattr(prepare_rxrx1_cells, "__defaults__", (True, record.url))
        screen = load_rxrx1_cells(tmp_path / "new" / "cells", include_labels=False)
        asked = len(record.requests)
        load_rxrx1_cells(tmp_path / "new" / "cells", include_labels=False)
        assert len(record.requests) == asked
        assert not record.agents[0].startswith("Python")
    assert len(screen) == 6
    assert screen.pixels.read(np.array([0])).shape == (1, 3, 48, 48)
    assert sorted(p.name for p in (tmp_path / "new").iterdir() if not p.name.startswith(".")) == [
        "cells",
        "cells.cells.parquet",
    ]


def test_several_archives_and_pieces_make_one_folder(tmp_path):
    whole = archive("zip", members("a/", ("HUVEC-01",)))
    files = {
        "huvec.zip.001": whole[:100],
        "huvec.zip.002": whole[100:],
        "rpe.tar.gz": archive("tar", members("b/", ("RPE-01", "RPE-02"))),
    }
    with Record(files) as record:
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["HUVEC-01", "RPE-01", "RPE-02"]
    assert len(list((tmp_path / "cells").rglob("*.png"))) == 18


def test_a_download_that_is_cut_off_goes_on_with_the_next_call(tmp_path):
    data = archive("zip", members())
    with Record({"cells.zip": data}, cut=1000) as record:
        with pytest.raises(DataError, match=r"could not be downloaded .*doi\.org/10\.5281/zenodo\.7272553"):
            prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
        assert not (tmp_path / "cells").exists()
        assert (tmp_path / "cells.part" / "downloaded" / "cells.zip.part").read_bytes() == data[:1000]
        record.cut = None
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
        assert record.requests[-1][1] == "bytes=1000-"
    assert len(list((tmp_path / "cells").rglob("*.png"))) == 6
    assert not (tmp_path / "cells.part").exists()


def test_a_server_that_cannot_go_on_in_the_middle(tmp_path):
    with Record({"cells.zip": archive("zip", members())}, ranges=False, cut=1000) as record:
        with pytest.raises(DataError, match="could not be downloaded"):
            prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
        record.cut = None
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    assert len(list((tmp_path / "cells").rglob("*.png"))) == 6


def test_a_wrong_checksum_is_refused_and_fetched_again(tmp_path):
    data = archive("zip", members())
    with Record({"cells.zip": data}, {"cells.zip": "0" * 32}) as record:
        with pytest.raises(DataError, match=r"arrived damaged \(md5 \w{32}, the record says 0{32}\)"):
            prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
        assert not list(tmp_path.rglob("*.zip*"))
        assert not (tmp_path / "cells").exists()
        record.checksums["cells.zip"] = hashlib.md5(data).hexdigest()
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    assert len(list((tmp_path / "cells").rglob("*.png"))) == 6


@pytest.mark.parametrize("name", ["../../escaped.png", "/escaped.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_would_write_outside_is_refused(tmp_path, kind, name):
    file = "cells.zip" if kind == "zip" else "cells.tar.gz"
    message = r"is refused: its member '.*escaped\.png' would be written outside the folder; delete it, .*; or get them"
    with Record({file: archive(kind, members(extra={name: b""}))}) as record, pytest.raises(DataError, match=message):
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    assert not (tmp_path / "cells").exists()
    assert not list(tmp_path.rglob("escaped.png"))


@pytest.mark.parametrize(("offset", "value"), [(8, b"\x01\x00"), (10, b"\x63\x00")], ids=["encrypted", "method 99"])
def test_an_archive_that_cannot_be_unpacked(tmp_path, offset, value):
    data = bytearray(archive("zip", members()))
    entry = data.index(b"PK\x01\x02")  # the first member, in the directory at the end
    data[entry + offset : entry + offset + 2] = value
    with Record({"cells.zip": bytes(data)}) as record, pytest.raises(DataError) as caught:
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    assert caught.match(
        r"cells\.zip' is refused \(.*\): delete it, and start again .*; or get them from https://doi\.org"
    )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cells").exists()


def test_an_archive_of_something_else(tmp_path):
    message = r"what was downloaded .* holds no <experiment>/Plate<k>"
    with Record({"a.zip": archive("zip", {"a/b.txt": b""})}) as record, pytest.raises(DataError, match=message):
        prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)
    with Record({}) as record:
        record.answer = lambda request: (request.send_response(200), request.end_headers(), request.wfile.write(b"hi"))
        with pytest.raises(DataError, match="does not list files and checksums"):
            prepare_rxrx1_cells(tmp_path / "cells", base_url=record.url)


def test_without_a_network_one_line_says_what_to_do(tmp_path):
    with pytest.raises(DataError) as caught:
        prepare_rxrx1_cells(tmp_path / "new" / "cells", base_url="http://127.0.0.1:9")
    assert not list(tmp_path.iterdir())
    message = str(caught.value)
    assert "https://doi.org/10.5281/zenodo.7272553" in message
    assert "simulated" in message
    assert "\n" not in message
    with pytest.raises(DataError) as caught:
        load_rxrx1_cells(tmp_path / "cells", download=False)
    assert caught.value.advice == "download"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        load_rxrx1_cells(tmp_path / "file")


@pytest.mark.parametrize("script", ["train_simclr", "train_supervised_cell", "train_classifier", "calibrate"])
def test_the_default_folder_is_rxrx1_cells_below_the_root(script, tmp_path):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(script, [f"dataloaders.root_dir={tmp_path}", "dataloaders.source.download=false"])
    assert config.dataloaders.img_dir is None
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "rxrx1_cells"))):
        build(OmegaConf.to_container(config.dataloaders.source, resolve=True))
