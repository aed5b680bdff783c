"""The command ``biomass crop`` on a lab's screen that grows, changes and is interrupted."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import ROOT
from PIL import Image
from scipy.ndimage import gaussian_filter

from biomass.cells import search
from biomass.cells.crops import CropPixels
from biomass.commands.crop import main
from biomass.datasets.packed import load_packed

SIZE, DIAMETER = 24, 18


def write_field(file: Path, centres: list[tuple[int, int]], seed: int) -> None:
    image = np.zeros((80, 100))
    y, x = np.mgrid[:80, :100]
    for cy, cx in centres:
        image[np.hypot(y - cy, x - cx) < 8] = 4000
    noise = np.random.default_rng(seed).normal(500, 10, image.shape)
    tifffile.imwrite(file, (gaussian_filter(image, 1) + noise).astype(np.uint16))


def write_screen(folder: Path, plates: int) -> Path:
    """A manifest of some plates of two fields; images that are there stay as they are."""
    folder.mkdir(exist_ok=True)
    rows = []
    for plate in range(plates):
        for site in (1, 2):
            file = folder / f"P{plate}_s{site}.tif"
            if not file.exists():
                write_field(file, [(30, 30), (30, 50), (55, 70)][: 1 + site], 10 * plate + site)
            rows.append(
                {"experiment": "E", "plate": f"P{plate}", "well": "A1", "site": site, "path": file.name, "label": "x"}
            )
    pd.DataFrame(rows).iloc[::-1].to_csv(folder / "screen.csv", index=False)  # new plates come first
    return folder / "screen.csv"


def arguments(manifest: Path, *more: str, out: str = "cells") -> list[str]:
    options = ("image=path", "channels=[DAPI]")
    settings = [word for option in options for word in ("--set", option)]
    sizes = ["--size", str(SIZE), "--diameter", str(DIAMETER), "--workers", "1"]
    return [str(manifest), str(manifest.parent / out), *sizes, *settings, *more]


@pytest.fixture
def reads(monkeypatch):
    """The fields that are searched, one entry each."""
    calls: list[int] = []
    original = search.find_nuclei
    monkeypatch.setattr(search, "find_nuclei", lambda *args: calls.append(1) or original(*args))
    return calls


def cells_by_field(store: Path) -> dict[tuple[str, str], np.ndarray]:
    cells = load_packed(store)
    keys = list(zip(cells.table["plate"], cells.table["site"], strict=True))
    return {key: cells.pixels.read(np.array([i for i, one in enumerate(keys) if one == key])) for key in set(keys)}


def assert_same_cells(one: Path, other: Path) -> None:
    a, b = cells_by_field(one), cells_by_field(other)
    assert a.keys() == b.keys()
    for key, images in a.items():
        np.testing.assert_array_equal(images, b[key])
    columns = ["plate", "well", "site", "cell", "x", "y", "area", "neighbours", "nucleus"]
    pd.testing.assert_frame_equal(load_packed(one).table[columns], load_packed(other).table[columns])


def test_a_store_grows(tmp_path, reads, monkeypatch, caplog):
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    before = cells_by_field(tmp_path / "cells")
    assert {key: len(images) for key, images in before.items()} == {
        (plate, site): int(site) + 1 for plate in ("P0", "P1") for site in ("1", "2")
    }
    assert len(reads) == 4
    reads.clear()
    manifest = write_screen(tmp_path, 3)
    cut: list[int] = []
    read = CropPixels.read
    monkeypatch.setattr(CropPixels, "read", lambda self, rows: cut.extend(rows.tolist()) or read(self, rows))
    main(arguments(manifest))
    assert len(reads) == 2  # the fields of the new plate alone
    table = load_packed(tmp_path / "cells").table
    assert set(table["plate"].iloc[cut]) == {"P2"}
    after = cells_by_field(tmp_path / "cells")
    assert len(after) == 6
    for key, images in before.items():
        np.testing.assert_array_equal(after[key], images)
    monkeypatch.undo()
    main(arguments(manifest, out="at_once"))
    assert_same_cells(tmp_path / "cells", tmp_path / "at_once")
    assert sorted(file.name for file in (tmp_path / "cells.pictures").glob("*.png")) == sorted(
        f"E,P{plate}{what}.png" for plate in range(3) for what in ("", "_cells")
    )
    assert pd.read_csv(tmp_path / "cells.fields.csv")["plate"].nunique() == 3


def test_images_that_changed_under_the_same_names_are_searched_and_cut_again(tmp_path, reads, caplog):
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    old = cells_by_field(tmp_path / "cells")
    reads.clear()
    file = tmp_path / "P1_s2.tif"
    write_field(file, [(20, 20), (55, 60)], 99)
    os.utime(file, ns=(1, 10**18))  # even where the size stayed
    picture = tmp_path / "cells.pictures" / "E,P0.png"
    drawn = picture.stat().st_mtime_ns
    caplog.set_level("INFO")
    main(arguments(manifest))
    assert len(reads) == 1
    assert "images of 1 fields have changed, their cells are cut again" in caplog.text
    new = cells_by_field(tmp_path / "cells")
    assert len(new["P1", "2"]) == 2
    for key in old.keys() - {("P1", "2")}:
        np.testing.assert_array_equal(new[key], old[key])
    main(arguments(manifest, out="at_once"))
    assert_same_cells(tmp_path / "cells", tmp_path / "at_once")
    assert picture.stat().st_mtime_ns == drawn  # of a plate that did not change
    reads.clear()
    main(arguments(manifest))  # and now nothing is new
    assert not reads


def test_a_store_of_cells_that_the_source_lacks_is_refused(tmp_path):
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    nuclei = pd.read_parquet(tmp_path / "cells.nuclei.parquet")
    nuclei.assign(x=nuclei["x"] + 1).to_csv(tmp_path / "moved.csv", index=False)
    with pytest.raises(SystemExit, match=r"10 other cells, the first at y .*give another --out") as caught:
        main(arguments(manifest, "--nuclei", str(tmp_path / "moved.csv")))
    assert "\n" not in str(caught.value.code)
    with pytest.raises(
        SystemExit, match=r"cells of 2 fields that are not listed here, the first: experiment E, plate P1"
    ):
        main(arguments(write_screen(tmp_path, 1)))


@pytest.mark.parametrize("step", ["search", "block", "place"])
def test_growing_may_be_killed_at_any_moment(tmp_path, step):
    """The old store is readable, or the next call completes the new one; and the result is the same."""
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    old = cells_by_field(tmp_path / "cells")
    manifest = write_screen(tmp_path, 4)
    code = f"""
import os, pathlib
from biomass.cells import search
from biomass.pixels import packed_writer
from biomass.commands.crop import main
def die(*args, **options):
    os._exit(9)
packed_writer.BLOCK_BYTES = 4 * {SIZE} * {SIZE} * 2
if {step!r} == "search":
    find, calls = search.find_nuclei, []
    search.find_nuclei = lambda *args: die() if len(calls) == 3 else (calls.append(1), find(*args))[1]
elif {step!r} == "block":
    packed_writer._write_tables = die
else:
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda self, other: die() if self.name.endswith(".part") else rename(self, other)
main({arguments(manifest)!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 9
    if step != "place":
        for key, images in cells_by_field(tmp_path / "cells").items():
            np.testing.assert_array_equal(images, old[key])
    main(arguments(manifest))
    main(arguments(manifest, out="at_once"))
    assert_same_cells(tmp_path / "cells", tmp_path / "at_once")
    assert not list(tmp_path.glob("cells.part")) + list(tmp_path.glob("cells.old"))


def test_crops_with_one_nucleus_alone(tmp_path, capsys):
    manifest = write_screen(tmp_path, 1)
    main(arguments(manifest, "--size", "48"))  # the last size counts
    assert load_packed(tmp_path / "cells").table["neighbours"].tolist() == [1, 1, 0, 1, 1]
    assert pd.read_csv(tmp_path / "cells.fields.csv")["neighbours"].tolist() == [2, 2]
    main(arguments(manifest, "--size", "48", "--alone", out="alone"))
    assert load_packed(tmp_path / "alone").table[["site", "cell"]].to_numpy().tolist() == [["2", 0]]
    with pytest.raises(SystemExit, match=r"is a store of other images \(4 other cells"):
        main(arguments(manifest, "--size", "48", "--alone"))
    pd.read_csv(manifest).query("site == 1").to_csv(manifest, index=False)
    with pytest.raises(SystemExit, match=r"more than one nucleus: cut smaller crops"):
        main(arguments(manifest, "--size", "48", "--alone", out="none"))


def test_given_nuclei_can_be_joined_back_and_are_compared(tmp_path, capsys):
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    found = pd.read_parquet(tmp_path / "cells.nuclei.parquet")
    table = pd.DataFrame(
        {"Metadata_Plate": found["plate"], "Metadata_Well": "A01", "Metadata_Site": found["site"], "ObjectNumber": 7}
    )
    table = table.assign(
        Location_Center_X=found["x"] + 3, Location_Center_Y=found["y"], mine=np.arange(len(found)) * 11
    )
    table = table.sample(frac=1, random_state=0, ignore_index=True)
    table.to_csv(tmp_path / "Nuclei.csv", index=False)
    capsys.readouterr()
    main(arguments(manifest, "--nuclei", str(tmp_path / "Nuclei.csv"), "--no-pictures", out="given"))
    cells = load_packed(tmp_path / "given").table
    joined = table.iloc[cells["nucleus"]]
    np.testing.assert_allclose(joined["Location_Center_X"], cells["x"], rtol=1e-6)
    assert joined["Metadata_Plate"].tolist() == cells["plate"].tolist()
    assert cells["object"].tolist() == ["7"] * len(cells)
    assert not (tmp_path / "given.pictures").exists()
    capsys.readouterr()
    main(arguments(manifest, "--compare", str(tmp_path / "Nuclei.csv"), "--no-pictures"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "4", "10", "10", "1.000", "1.000", "1.000"] in lines
    main(arguments(manifest, "--compare", str(tmp_path / "Nuclei.csv"), "--within", "2", "--no-pictures"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "4", "10", "10", "0.000", "0.000", "1.000"] in lines


def test_label_images_are_taken(tmp_path):
    manifest = write_screen(tmp_path, 1)
    labels = np.zeros((80, 100), np.uint16)
    labels[26:35, 26:35] = 12
    (tmp_path / "masks").mkdir()
    Image.fromarray(labels).save(tmp_path / "masks" / "P0_s1_cp_masks.png")
    main(arguments(manifest, "--nuclei", str(tmp_path / "masks")))
    cells = load_packed(tmp_path / "cells").table
    assert cells[["x", "y", "area", "nucleus", "nuclei_file"]].astype(str).to_numpy().tolist() == [
        ["30.0", "30.0", "81.0", "12", "P0_s1_cp_masks.png"]
    ]


def test_every_plate_is_said_and_drawn(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    main(arguments(write_screen(tmp_path, 2)))
    assert "plate E/P0: 5 nuclei in 2 fields (1 of 2 plates)" in caplog.text
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["E/P1", "2", "0", "1", "5", "5", "0", "5"] in rows
    picture = np.asarray(Image.open(tmp_path / "cells.pictures" / "E,P0.png"))
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert {(90, 150, 255), (80, 220, 80)} <= colours  # outlines, and nuclei that were cut
    assert Image.open(tmp_path / "cells.pictures" / "E,P0_cells.png").size[0] > 500


def test_several_processes_find_the_same(tmp_path):
    manifest = write_screen(tmp_path, 2)
    main(arguments(manifest))
    main([*arguments(manifest, out="two"), "--workers", "2"])
    assert_same_cells(tmp_path / "cells", tmp_path / "two")
