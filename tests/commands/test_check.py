"""``biomass check``: what it writes and says of a screen of any source."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from biomass.commands import check
from biomass.pixels.packed_writer import pack
from biomass.simulation.rxrx1 import Design, simulate_rxrx1


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A manifest of 6 plates with one file an image; a file is cut off, and a channel of a plate is black."""
    folder = tmp_path_factory.mktemp("lab")
    rng = np.random.default_rng(0)
    rows = []
    for plate in range(6):
        for well in range(4):
            image = rng.normal(500, 100, (40, 50, 2)).clip(0).astype(np.uint16)
            image[..., 1] *= plate != 2
            name = f"{plate}_{well}.npy"
            np.save(folder / name, image)
            rows.append((name, "W1", f"P{plate}", f"A{well + 1}", "DMSO" if well == 0 else "drug"))
    (folder / "3_1.npy").write_bytes((folder / "3_1.npy").read_bytes()[:300])
    pd.DataFrame(rows, columns=["path", "week", "plate", "well", "compound"]).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


SETTINGS = ("--set", "columns.experiment=week", "--set", "columns.label=compound", "--set", "channels=[DNA,ER]")
SETTINGS += ("--set", "control.column=compound", "--set", "control.negative=[DMSO]", "--workers", "0")
FILES = ("channels.csv", "check.json", "check.png", "examples.png", "labels.csv", "labels_by_plate.csv", "plates.csv")


def test_a_manifest_is_looked_at_and_told_of(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check.main([str(lab), *SETTINGS, "--run-name", "look"])
    assert tuple(sorted(path.name for path in Path("runs/look").iterdir())) == FILES
    about = json.loads(Path("runs/look/check.json").read_text())
    kinds = {one["kind"]: one for one in about["findings"]}
    assert kinds["constant"]["channel"] == "ER"
    assert kinds["constant"]["plates"] == ["W1/P2"]
    assert "3_1.npy" in kinds["unreadable"]["what"]
    assert about["images"] == 23
    printed = capsys.readouterr().out
    for one in about["findings"]:
        assert one["what"] in printed
        assert one["remedy"] in printed
    assert all(Path("runs/look", name).read_bytes().startswith(b"\x89PNG") for name in ("check.png", "examples.png"))
    channels = pd.read_csv("runs/look/channels.csv")
    assert len(channels) == 12
    image = np.load(lab.parent / "0_0.npy")
    first = channels[(channels["plate"] == "W1/P0") & (channels["channel"] == "DNA")].iloc[0]
    assert abs(first["p50"] - np.median(image[..., 0])) < 20
    plates = pd.read_csv("runs/look/plates.csv")
    assert plates["images"].tolist() == [4] * 6
    assert plates["negative_wells"].tolist() == [1] * 6
    check.main([str(lab), *SETTINGS, "--run-name", "look", "--images", "2"])  # the same folder again
    assert json.loads(Path("runs/look/check.json").read_text())["images"] == 12


def test_a_folder_is_its_manifest(lab, tmp_path, monkeypatch):
    shutil.copytree(lab.parent, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "m.csv").rename(tmp_path / "folder" / "manifest.csv")
    check.main(["folder", *SETTINGS, "--run-name", "look"])
    assert json.loads(Path("runs/look/check.json").read_text())["images"] == 23
    (tmp_path / "folder" / "manifest.parquet").touch()
    with pytest.raises(SystemExit, match=r"manifest\.parquet and manifest\.csv"):
        check.main(["folder", *SETTINGS, "--run-name", "other"])


def test_a_store_of_the_same_images_gives_the_same_table(tmp_path):
    folder = simulate_rxrx1(
        tmp_path, Design(experiments=3, plates=1, treatments=3, positive_controls=1, wells=3, size=48)
    )
    from biomass.datasets.any_source import open_source

    pack(open_source(folder)[0], tmp_path / "store", workers=0)
    for name, source in (("files", folder), ("store", tmp_path / "store")):
        check.main([str(source), "--workers", "0", "--out", str(tmp_path / name)])
    one, two = (pd.read_csv(tmp_path / name / "channels.csv") for name in ("files", "store"))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--on-bad-image", "error"), "3_1.npy"),
        (("--images", "0"), "--images 0"),
        (("--set", "columns.nothing=moa"), "nothing"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(lab, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        check.main([str(lab), *SETTINGS, *options, "--out", str(tmp_path / "out")])
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "out").exists()


def test_a_screen_of_which_nothing_can_be_read(tmp_path):
    rows = [(f"{i}.npy", "W", "P", f"A{i}") for i in (1, 2)]
    np.save(tmp_path / "1.npy", np.zeros((8, 8), np.uint8))
    pd.DataFrame(rows, columns=["path", "experiment", "plate", "well"]).to_csv(tmp_path / "m.csv", index=False)
    command = [str(tmp_path / "m.csv"), "--workers", "0", "--out", str(tmp_path / "out")]
    check.main(command)  # a plate of black images is a finding, no error
    (tmp_path / "1.npy").unlink()
    with pytest.raises(SystemExit):
        check.main(command)


def test_a_table_that_is_long_is_cut(capsys):
    text = check.shortened(pd.DataFrame({"plate": range(1000)}))
    assert len(text.splitlines()) < 40
    assert "976 more" in text


def test_real_cells_that_are_empty_are_found(real_data, tmp_path):
    manifest = real_data / "bbbc021_cells" / "manifest.csv"
    settings = ("columns.experiment=batch", "columns.label=moa", "channels=[DAPI,actin,tubulin]")
    typed = [word for one in settings for word in ("--set", one)]
    check.main([str(manifest), *typed, "--images", "8", "--workers", "0", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "check.json").read_text())["findings"]
    empty = {"Week2/Week2_24381", "Week6/Week6_32161", "Week7/Week7_34381"}
    assert any(one["kind"] == "focus" and empty <= set(one["plates"]) for one in found)
