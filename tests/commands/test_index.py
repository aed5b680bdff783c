"""``biomass index``: from a lab's folder to a manifest, in every layout, and what can be wrong with it."""

import json
import os
import re
import shlex
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tifffile import imread, imwrite

from biomass.commands.index import main, training
from biomass.datasets.manifest import load_manifest
from biomass.simulation.lab_folder import LAYOUTS, LabFolder, simulate_lab_folder

IMAGES = b"biomass.images"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(layout, …)``: a simulated lab folder, made once."""
    root, there = tmp_path_factory.mktemp("labs"), {}

    def _made(layout: str, **options) -> LabFolder:
        key = f"{layout}{sorted(options.items())}"
        if key not in there:
            there[key] = simulate_lab_folder(root / f"lab{len(there)}", layout, **({"sites": 1, "size": 48} | options))
        return there[key]

    return _made


@pytest.fixture
def lab(made, tmp_path) -> LabFolder:
    """A copy of an ImageXpress folder that a test may spoil."""
    one = made("imagexpress", sites=2)
    shutil.copytree(one.images.parent, tmp_path / "lab")
    return LabFolder(tmp_path / "lab" / "screen", tmp_path / "lab" / "platemap.csv", one.screen)


def index(lab: LabFolder, out: Path, *options: str) -> pd.DataFrame:
    """The manifest of a lab folder."""
    platemap = [] if lab.images in lab.platemap.parents else ["--platemap", str(lab.platemap)]
    main([str(lab.images), "--out", str(out), *platemap, *options])
    return pd.read_parquet(out)


def fails(lab: LabFolder, out: Path, *options: str) -> str:
    """The one line of an error; nothing is written."""
    before = out.read_bytes() if out.exists() else None
    with pytest.raises(SystemExit) as caught:
        index(lab, out, *options)
    message = str(caught.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert (out.read_bytes() if out.exists() else None) == before
    assert not list(out.parent.glob(".*"))
    return message


def some_file(lab: LabFolder, pattern: str) -> Path:
    return next(path for path in sorted(lab.images.rglob(pattern)) if "thumb" not in path.name)


def write_map(lab: LabFolder, wells: list[str], plates: list[str]) -> None:
    rows = [(plate, well, "DMSO" if i % 4 == 0 else f"c{i % 4}") for plate in plates for i, well in enumerate(wells)]
    pd.DataFrame(rows, columns=["plate", "well", "compound"]).to_csv(lab.platemap, index=False)


PLATES = ["24381", "24382", "24383"]

# --- every layout, end to end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_manifest_of_a_layout_holds_the_screen_that_was_written(layout, made, tmp_path, capsys) -> None:
    lab = made(layout, sites=2)
    table = index(lab, tmp_path / "my_screen" / "manifest.parquet")
    truth = lab.screen.table
    key = ["plate", "well", "site"]
    assert table[key].values.tolist() == truth.astype(str).sort_values(key)[key].values.tolist()
    screen = load_manifest("manifest.parquet", root_dir=tmp_path / "my_screen")
    assert screen.pixels.channels == LAYOUTS[layout].channels
    order = truth.reset_index().astype(dict.fromkeys(key, str)).sort_values(key)["index"].to_numpy()
    np.testing.assert_array_equal(screen.read(np.arange(len(screen))), lab.screen.read(order))
    assert (screen.table["control"].astype(str) == "negative").tolist() == [
        one == "negative" for one in truth["control"].iloc[order]
    ]
    if not layout.startswith("rxrx"):
        names = [lab.screen.classes[label] for label in lab.screen.labels[order]]
        assert [screen.classes[label] for label in screen.labels] == names
    page = capsys.readouterr().out
    assert "nan" not in page.lower().split()
    assert (tmp_path / "my_screen" / "manifest.report.txt").read_text() in page


def test_the_layout_can_be_named_or_described_with_the_same_result(made, tmp_path) -> None:
    lab = made("imagexpress", sites=2)
    found = index(lab, tmp_path / "a.parquet")
    named = index(lab, tmp_path / "b.parquet", "--layout", "imagexpress")
    pattern = "{plate}/TimePoint_{time}/Screen7_{well}_s{site}_w{channel:[0-9]}*.tif"
    described = index(lab, tmp_path / "c.parquet", "--pattern", pattern)
    pd.testing.assert_frame_equal(found, named)
    pd.testing.assert_frame_equal(found, described)


@pytest.mark.parametrize(("layout", "inner"), [("imagexpress", "24381/TimePoint_1"), ("phenix", "BR00117001*/Images")])
def test_the_innermost_folder_of_one_plate_is_enough(layout, inner, made, tmp_path) -> None:
    lab = made(layout)
    whole = index(lab, tmp_path / "a.parquet", "--experiment", "e", "--splits", "none")
    one = lab._replace(images=next(lab.images.glob(inner)))
    table = index(one, tmp_path / "b.parquet", "--experiment", "e", "--splits", "none")
    key = ["experiment", "plate", "well", "site", "label"]
    plate = whole[whole["plate"] == table["plate"][0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[key], plate[key])


def test_a_label_may_be_a_part_of_a_pattern(tmp_path) -> None:
    lab = LabFolder(tmp_path / "screen", tmp_path / "screen" / "none.csv", None)
    for path in ("taxol/P1_A01.tif", "DMSO/P1_A02.tif", "taxol/P2_A01.tif"):
        (lab.images / path).parent.mkdir(parents=True, exist_ok=True)
        imwrite(lab.images / path, np.zeros((4, 4), np.uint16))
    table = index(lab, tmp_path / "m.parquet", "--pattern", "{label}/{plate}_{well}.tif")
    assert table[["plate", "well", "label"]].values.tolist() == [
        ["P1", "A01", "taxol"],
        ["P1", "A02", "DMSO"],
        ["P2", "A01", "taxol"],
    ]


def test_channels_are_renamed_and_left_out(made, tmp_path, capsys) -> None:
    lab = made("imagexpress")
    table = index(lab, tmp_path / "a.parquet", "--channels", "w1=DNA", "w2=")
    assert [column for column in table if column.startswith("image_")] == ["image_DNA", "image_w3"]
    assert "images of channels left out" in capsys.readouterr().out
    assert "'w1', 'w2'" in (said := fails(lab, tmp_path / "b.parquet", "--channels", "w9=DNA")) or "w1" in said


@pytest.mark.parametrize("layout", ["imagexpress", "phenix", "cellvoyager"])
def test_planes_in_files_of_their_own_become_one_image(layout, made, tmp_path) -> None:
    lab = made(layout, planes=3)
    for z in ("max", "focus", "middle"):
        table = index(lab, tmp_path / f"{z}.parquet", "--z", z)
    screen = {z: load_manifest(f"{z}.parquet", root_dir=tmp_path).read(np.arange(3)) for z in ("max", "middle")}
    np.testing.assert_array_equal(screen["middle"], lab.screen.read(np.arange(3)))
    files = table[[column for column in table if column.startswith("image_")]].iloc[0]
    highest = [np.max([imread(lab.images / path) for path in planes], axis=0) for planes in files]
    np.testing.assert_array_equal(screen["max"][0], highest)
    focus = load_manifest("focus.parquet", root_dir=tmp_path).read(np.arange(3))
    assert (focus == screen["middle"]).all(axis=(2, 3)).mean() > 0.9


def test_planes_and_times_in_files_of_their_own(made, tmp_path) -> None:
    lab = made("cellvoyager", planes=3, times=2)
    assert "--z" in fails(lab, tmp_path / "a.parquet", "--time", "1")
    assert "2 time points (1, 2)" in fails(lab, tmp_path / "a.parquet", "--z", "max")
    assert "--time" in fails(lab, tmp_path / "a.parquet", "--z", "max")
    assert "time point 5" in fails(lab, tmp_path / "a.parquet", "--z", "max", "--time", "5")
    assert "plane 9" in fails(lab, tmp_path / "a.parquet", "--z", "9", "--time", "1")
    assert "mean" in fails(lab, tmp_path / "a.parquet", "--z", "mean", "--time", "1")
    one = index(lab, tmp_path / "one.parquet", "--z", "2", "--time", "1")
    assert "Z02" in one["image_C01"][0]
    screen = load_manifest("one.parquet", root_dir=tmp_path)
    np.testing.assert_array_equal(screen.read(np.arange(3)), lab.screen.read(np.arange(3)))
    every = index(lab, tmp_path / "all.parquet", "--z", "max", "--time", "1")
    assert [Path(path).stem[-6:] for path in every["image_C01"][0]] == ["Z01C01", "Z02C01", "Z03C01"]
    said = json.loads(pyarrow.parquet.read_schema(tmp_path / "all.parquet").metadata[IMAGES])
    assert (said["z"], said["time"], said["depths"], said["sizes"]) == ("max", None, "error", "error")


def test_paths_are_relative_where_the_images_lie_beside_the_manifest(lab, tmp_path) -> None:
    index(lab, tmp_path / "my_screen" / "manifest.parquet")
    said = json.loads(pyarrow.parquet.read_schema(tmp_path / "my_screen" / "manifest.parquet").metadata[IMAGES])
    assert said["image_dir"] == "../lab/screen"
    shutil.move(tmp_path / "my_screen", tmp_path / "moved")
    assert len(load_manifest("manifest.parquet", root_dir=tmp_path / "moved")) == 72


def test_further_columns_of_map_and_pattern_are_kept(made, tmp_path) -> None:
    table = index(made("phenix"), tmp_path / "a.parquet")
    assert set(table["Compound"]) == set(table["treatment"].str.removesuffix(" 3")) or "Compound" not in table
    lab = made("deepprofiler")
    table = index(lab, tmp_path / "b.parquet", "--pattern", "{folder}/{plate}/{well}_{site}_{channel}.png")
    assert set(table["folder"]) == {"images"}


def test_stacks_and_several_depths_and_sizes_within_files(tmp_path) -> None:
    lab = LabFolder(tmp_path / "screen", tmp_path / "screen" / "none.csv", None)
    stack = np.arange(5 * 64, dtype=np.uint16).reshape(5, 8, 8)
    for plate, image in (("P1", stack), ("P2", (stack // 2).astype(np.uint8)), ("P3", stack[:, :6, :6])):
        (lab.images / plate).mkdir(parents=True)
        imwrite(lab.images / plate / "A01.tif", image, imagej=True, metadata={"axes": "ZYX"})
    pattern = ("--pattern", "{plate}/{well}.tif")
    assert "--z max" in fails(lab, tmp_path / "m.parquet", *pattern)
    assert "P2" in (said := fails(lab, tmp_path / "m.parquet", *pattern, "--z", "max"))
    assert "--depths scale" in said
    assert "P3" in (said := fails(lab, tmp_path / "m.parquet", *pattern, "--z", "max", "--depths", "scale"))
    assert "--sizes crop" in said
    index(lab, tmp_path / "m.parquet", *pattern, "--z", "1", "--depths", "scale", "--sizes", "crop")
    read = load_manifest("m.parquet", root_dir=tmp_path).read(np.arange(3))
    np.testing.assert_array_equal(read[2, 0], stack[1, :6, :6])


# --- a manifest that grows --------------------------------------------------------------------------------------------


def test_a_second_call_adds_new_plates_and_nothing_else(lab, tmp_path, capsys) -> None:
    out = tmp_path / "manifest.parquet"
    whole = index(lab, tmp_path / "whole.parquet")
    shutil.move(lab.images / "24383", tmp_path / "later")
    assert set(index(lab, out)["plate"]) == {"24381", "24382"}
    shutil.move(tmp_path / "later", lab.images / "24383")
    capsys.readouterr()
    pd.testing.assert_frame_equal(index(lab, out), whole)
    said = capsys.readouterr().out
    assert "added: screen/24383" in said
    assert "there already: screen/24381, screen/24382" in said
    before = out.read_bytes()
    index(lab, out)
    assert out.read_bytes() == before


def test_a_plate_of_another_folder_is_added_with_paths_that_lead_there(lab, tmp_path) -> None:
    out = tmp_path / "manifest.parquet"
    shutil.move(lab.images / "24383", tmp_path / "elsewhere" / "24383")
    index(lab, out, "--experiment", "e")
    other = lab._replace(images=tmp_path / "elsewhere")
    assert len(index(other, out, "--experiment", "e")) == 72
    screen = load_manifest("manifest.parquet", root_dir=tmp_path)
    assert screen.read(np.arange(72)).shape == (72, 3, 48, 48)


def test_a_plate_that_has_changed_is_refused_and_replaced_where_one_says_so(lab, tmp_path) -> None:
    out = tmp_path / "manifest.parquet"
    index(lab, out)
    for path in (lab.images / "24382").rglob("*_D06_s2_*"):
        path.unlink()
    assert "'screen/24382'" in (said := fails(lab, out))
    assert "--replace" in said
    assert len(index(lab, out, "--replace")) == 71
    platemap = pd.read_csv(lab.platemap)
    platemap.loc[0, "Compound"] = "water"
    platemap.to_csv(lab.platemap, index=False)
    assert "'screen/24381'" in fails(lab, out)


def test_other_channels_than_those_of_the_manifest_are_refused(lab, tmp_path) -> None:
    out = tmp_path / "manifest.parquet"
    index(lab, out)
    assert "channels ['w1', 'w2', 'w3']" in fails(lab, out, "--channels", "w1=DNA")


def test_what_was_given_once_need_not_be_given_again(made, tmp_path, capsys) -> None:
    lab, out = made("cellvoyager", sites=2, planes=3), tmp_path / "my_screen" / "manifest.parquet"
    shutil.copytree(lab.images.parent, tmp_path / "lab")
    lab = LabFolder(tmp_path / "lab" / lab.images.name, tmp_path / "lab" / lab.platemap.name, lab.screen)
    later = sorted(one for one in lab.images.iterdir() if one.is_dir())[-1]
    shutil.move(later, tmp_path / "later")
    options = ("--z", "2", "--channels", "C01=DNA", "C02=", "--experiment", "November")
    before = index(lab, out, *options, "--set", "columns.label=Compound", "--splits", "none")
    shutil.move(tmp_path / "later", later)
    capsys.readouterr()
    main([str(lab.images), "--out", str(out)])
    said = capsys.readouterr().out
    assert "z 2" in said
    assert "channels C01=DNA C02=" in said
    after = pd.read_parquet(out)
    pd.testing.assert_frame_equal(after[: len(before)], before)
    assert after["plate"].nunique() == before["plate"].nunique() + 1
    assert set(after["experiment"]) == {"November"}
    assert all("Z02" in path for path in after["image_DNA"])
    assert (after["label"] != "").all()
    assert "channels" in fails(lab, out, "--channels", "C01=DNA")  # what is given wins
    for name in ("my_screen", "lab"):  # it finds them where both have moved
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    capsys.readouterr()
    main([str(tmp_path / "moved" / "lab" / lab.images.name), "--out", str(tmp_path / "moved" / "my_screen")])
    assert "there already" in capsys.readouterr().out


def test_planes_and_times_of_files_are_not_mixed(made, tmp_path) -> None:
    lab, out = made("cellvoyager", planes=3, times=2), tmp_path / "manifest.parquet"
    index(lab, out, "--z", "2", "--time", "1")
    assert "plane 2" in (said := fails(lab, out, "--z", "3"))
    assert "plane 3" in said
    assert "time point 2" in fails(lab, out, "--time", "2")
    assert "no image is of plane 9" in fails(lab, out, "--z", "9")
    only = lab._replace(images=tmp_path / "only")
    for path in lab.images.rglob("*T0001*Z02*.*"):
        (only.images / path.relative_to(lab.images)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, only.images / path.relative_to(lab.images))
    assert len(index(only, out, "--replace")) == len(pd.read_parquet(out))


@pytest.mark.parametrize("content", [b"", b"plate,well\n"])
def test_what_is_no_manifest_is_not_overwritten(content, lab, tmp_path) -> None:
    out = tmp_path / "manifest.parquet"
    out.write_bytes(content)
    with pytest.raises(SystemExit):
        main([str(lab.images), "--out", str(out), "--platemap", str(lab.platemap)])
    assert out.read_bytes() == content


# --- splits and training ----------------------------------------------------------------------------------------------


def test_a_new_manifest_is_divided_by_plates_and_one_that_grows_stays_as_it_is(lab, tmp_path, capsys) -> None:
    out = tmp_path / "manifest.parquet"
    whole = index(lab, tmp_path / "whole.parquet")
    assert whole.groupby("plate")["split"].nunique().tolist() == [1, 1, 1]
    assert set(whole["split"]) == {"train", "val", "test"}
    assert "to train: python train_erm.py" in capsys.readouterr().out
    shutil.move(lab.images / "24383", tmp_path / "later")
    assert "split" not in index(lab, out, "--splits", "none")
    assert "to train" not in capsys.readouterr().out
    assert set(index(lab, out, "--splits", "plate")["split"]) == {"train", "test"}
    shutil.move(tmp_path / "later", lab.images / "24383")
    capsys.readouterr()
    table = index(lab, out)
    assert set(table.loc[table["plate"] == "24383", "split"]) == {""}
    said = capsys.readouterr().out
    assert "1 plate ('screen/24383') is in no split" in said
    assert "the others stay" in said
    put = index(lab, out, "--splits", "val")
    assert set(put.loc[put["plate"] == "24383", "split"]) == {"val"}
    pd.testing.assert_frame_equal(put[put["plate"] != "24383"], table[table["plate"] != "24383"])
    assert "1 plate ('screen/24383') is in split 'val' now" in capsys.readouterr().out
    pd.testing.assert_frame_equal(index(lab, out, "--splits", "plate"), whole)
    moved = put.groupby("plate")["split"].first() != whole.groupby("plate")["split"].first()
    assert ("in another split than before" in capsys.readouterr().out) == moved.any()
    before = whole.set_index(["plate", "well", "site"])["split"]
    for path in (lab.images / "24382").rglob("*_D06_s2_*"):
        path.unlink()
    again = index(lab, out, "--replace").set_index(["plate", "well", "site"])["split"]
    assert (again == before[again.index]).all()


def test_a_network_is_trained_on_it_without_further_keys(made, tmp_path, run) -> None:
    lab = made("imagexpress", sites=2)
    index(lab, tmp_path / "my_screen" / "manifest.parquet")
    source = ("dataloaders=manifest", f"dataloaders.root_dir={tmp_path / 'my_screen'}", "model.d_out=null")
    tiny = ("model.key=test_resnet", "model.pretrained=false", "device=cpu", "num_epochs=1", "num_warmup_epochs=0")
    run("train_erm", *source, *tiny, "dataloaders.num_workers=0", "dataloaders.eval_splits=[val,test]")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_no_file_fits_the_pattern(lab, tmp_path) -> None:
    said = fails(lab, tmp_path / "m.parquet", "--pattern", "{plate}/{well}_s{site}_w{channel}.png")
    assert "{plate}/{well}_s{site}_w{channel}.png" in said
    assert "'P1/A01_s1_w1.png'" in said
    assert said.count("TimePoint_1/Screen7_") == 3


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("{plate}/{wells}_w{channel}.tif", "{well}"),
        ("{plate}/{site}.tif", "{well}"),
        ("{plate}/{well", "{"),
        ("plate.tif", "{well}"),
        ("{plate}/{well}{row}.tif", "{row}"),
        ("{plate}/{well:[}.tif", "expression"),
        ("TimePoint_1/Screen7_{well}_s{site}_w{channel:[0-9]}*.tif", "--plate"),
    ],
)
def test_a_pattern_that_cannot_be_right(pattern, word, lab, tmp_path) -> None:
    assert word in fails(lab, tmp_path / "m.parquet", "--pattern", pattern)


def test_two_files_for_one_channel_of_one_site(lab, tmp_path, capsys) -> None:
    file = some_file(lab, "*24382/*/*_B03_s2_w1*")
    file.with_name(file.name.replace(file.stem[-12:], "0123456789AB")).write_bytes(file.read_bytes())
    said = fails(lab, tmp_path / "m.parquet")
    assert file.name in said
    assert "0123456789AB" in said
    assert "well B03, site 2" in said
    assert len(index(lab, tmp_path / "m.parquet", "--on-bad-image", "skip")) == 71
    assert "doubled 1" in capsys.readouterr().out


def test_a_channel_that_a_plate_lacks_and_one_that_a_site_lacks(lab, tmp_path, capsys) -> None:
    some_file(lab, "*24381/*/*_B03_s2_w2*").unlink()
    said = fails(lab, tmp_path / "m.parquet")
    assert "well B03, site 2" in said
    assert "'w2'" in said
    for path in (lab.images / "24381").rglob("*_w2*"):
        path.unlink()
    said = fails(lab, tmp_path / "m.parquet")
    assert "plate '24381' has no image of channel 'w2'" in said
    assert "--channels" in said
    assert len(index(lab, tmp_path / "m.parquet", "--on-bad-image", "skip")) == 48
    assert len(index(lab, tmp_path / "n.parquet", "--channels", "w2=")) == 72


def test_sites_that_other_wells_have(lab, tmp_path, capsys) -> None:
    for path in (lab.images / "24381").rglob("*_B03_s2_*"):
        path.unlink()
    assert len(index(lab, tmp_path / "m.parquet")) == 71
    assert "sites lacking on plate 24381: 1, the first: well B03, site 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (lambda data: b"", "empty"),
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (lambda data: b"<html>not found</html>", "cannot be read"),
        (lambda data: bytes(len(data)), "cannot be read"),
        (lambda data: data[:3], "ends too early"),
        (lambda data: b"\xff\xd8\xff\xe0" + data[4:], "a JPEG"),
    ],
)
def test_an_empty_a_cut_and_a_foreign_file(content, word, lab, tmp_path, capsys) -> None:
    file = some_file(lab, "*24381/*/*_B03_s1_w2*")
    file.write_bytes(content(file.read_bytes()))
    old = 1_700_000_000
    os.utime(file, (old, old))
    said = fails(lab, tmp_path / "m.parquet")
    assert file.name in said
    assert word in said
    assert "copy it again" in said
    assert len(index(lab, tmp_path / "m.parquet", "--on-bad-image", "skip")) == 71
    assert "unreadable 1" in capsys.readouterr().out


def test_a_file_that_is_still_being_written(lab, tmp_path) -> None:
    file = some_file(lab, "*24382/*/*_C05_s1_w2*")
    file.write_bytes(file.read_bytes()[:3000])
    assert "wait until the plate is complete" in fails(lab, tmp_path / "m.parquet")


def test_a_file_of_the_full_size_that_is_still_being_written(lab, tmp_path, capsys) -> None:
    old, file = 1_700_000_000, some_file(lab, "*24382/*/*_C05_s1_w2*")
    data = file.read_bytes()
    for path in lab.images.rglob("*.tif"):
        os.utime(path, (old, old))
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    index(lab, tmp_path / "half.parquet")
    assert re.search(f"1 of the 1 newest files .*zeros.*{file.name}", capsys.readouterr().out)
    file.write_bytes(bytes(len(data)))
    assert file.name in fails(lab, tmp_path / "m.parquet")


def test_a_file_that_is_a_picture_is_not_waited_for_and_a_link_says_where_it_leads(lab, tmp_path) -> None:
    file = some_file(lab, "*24382/*/*_C05_s1_w2*")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + file.read_bytes())
    said = fails(lab, tmp_path / "m.parquet")
    assert "a PNG" in said
    assert "wait" not in said
    file.unlink()
    file.symlink_to(tmp_path / "gone.tif")
    assert "gone.tif" in fails(lab, tmp_path / "m.parquet")


def test_pages_that_nothing_describes_are_planes_where_planes_are_chosen(lab, tmp_path) -> None:
    for path in lab.images.rglob("*.tif"):
        image = imread(path)
        imwrite(path, np.stack([image // 2, image, image // 4, image // 8, image // 3]), metadata=None)
    assert "--z" in fails(lab, tmp_path / "m.parquet")
    index(lab, tmp_path / "m.parquet", "--z", "max")
    screen = load_manifest(tmp_path / "m.parquet")
    truth = lab.screen.table.reset_index().sort_values(["plate", "well", "site"])["index"].to_numpy()
    np.testing.assert_array_equal(screen.read(np.arange(72)), lab.screen.read(truth))


def test_rows_of_a_well_that_say_two_labels(lab, tmp_path) -> None:
    table = pd.read_csv(lab.platemap, dtype=str)
    pd.concat([table, table.iloc[:1].assign(MoA="another")]).to_csv(lab.platemap, index=False)
    said = fails(lab, tmp_path / "m.parquet")
    assert "B03" in said
    assert "'another'" in said


def test_wells_without_a_partner_on_either_side(lab, tmp_path, capsys) -> None:
    platemap = pd.read_csv(lab.platemap, dtype=str)
    platemap.loc[(platemap["Plate"] == "24381") & (platemap["Well"] == "B3"), "Well"] = "H12"
    platemap.to_csv(lab.platemap, index=False)
    table = index(lab, tmp_path / "m.parquet")
    assert table.loc[(table["plate"] == "24381") & (table["well"] == "B03"), "label"].tolist() == ["", ""]
    page = capsys.readouterr().out
    lines = [line for line in page.splitlines() if line.startswith("unmatched")]
    assert any("H12" in line for line in lines)
    assert any("B03" in line for line in lines)


def test_a_plate_that_is_not_on_the_map(lab, tmp_path) -> None:
    platemap = pd.read_csv(lab.platemap, dtype=str)
    platemap[platemap["Plate"] != "24382"].to_csv(lab.platemap, index=False)
    said = fails(lab, tmp_path / "m.parquet")
    assert "'24382'" in said
    assert "--allow-left-over" in said
    table = index(lab, tmp_path / "m.parquet", "--allow-left-over")
    assert set(table.loc[table["label"] == "", "plate"]) == {"24382"}
    platemap.assign(Plate="P" + platemap["Plate"]).to_csv(lab.platemap, index=False)
    assert "'24381'" in fails(lab, tmp_path / "n.parquet")


def test_a_map_of_another_format_than_the_plate(lab, tmp_path) -> None:
    all_96 = [f"{row}{column}" for row in "ABCDEFGH" for column in range(1, 13)]
    every = [f"{chr(65 + row)}{column}" for row in range(16) for column in range(1, 25)]
    form = some_file(lab, "*24381/*/*_B03_s1_w1*")
    for path in list(lab.images.rglob("*.tif")):
        path.unlink()
    for well in all_96:
        (form.with_name(f"S_{well[0]}{int(well[1:]):02d}_s1_w1.tif")).write_bytes(b"")
        imwrite(form.with_name(f"S_{well[0]}{int(well[1:]):02d}_s1_w1.tif"), np.zeros((4, 4), np.uint16))
    write_map(lab, every, PLATES)
    said = fails(lab, tmp_path / "m.parquet")
    assert "384" in said
    assert "96" in said
    write_map(lab, all_96, PLATES)
    assert len(index(lab, tmp_path / "m.parquet")) == 96
    imwrite(form.with_name("S_P24_s1_w1.tif"), np.zeros((4, 4), np.uint16))
    said = fails(lab, tmp_path / "n.parquet")
    assert "P24" in said
    assert "384" in said


def test_a_folder_of_nothing_but_leftovers(tmp_path) -> None:
    folder = tmp_path / "screen"
    folder.mkdir()
    for name in ("Thumbs.db", "._A01_s1_w1.tif", ".DS_Store", "A01_s1_w1_thumb.tif"):
        (folder / name).write_bytes(b"x")
    said = fails(LabFolder(folder, folder / "none.csv", None), tmp_path / "m.parquet")
    assert "no image" in said
    assert "3 files of an operating system" in said
    assert "1 thumbnails" in said


def test_leftovers_among_images_are_counted(lab, tmp_path, capsys) -> None:
    file = some_file(lab, "*24381/*/*_B03_s1_w1*")
    file.with_name(f"._{file.name}").write_bytes(b"mac")
    (lab.images / "overview.png").write_bytes(b"png")
    assert len(index(lab, tmp_path / "m.parquet")) == 72
    page = capsys.readouterr().out
    assert "left out: files of an operating system: 2" in page
    assert "left out: thumbnails: 216" in page
    assert "left out: images whose names do not fit: 1, such as 'overview.png'" in page


def test_spaces_brackets_equals_signs_and_decomposed_letters(lab, tmp_path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "Müller [a=1] {b} 100 %")
    shutil.move(lab.images, folder)
    odd = unicodedata.normalize("NFD", "Plätte =[1]")
    (folder / "24381").rename(folder / odd)
    platemap = pd.read_csv(lab.platemap, dtype=str)
    platemap["Plate"] = platemap["Plate"].replace("24381", unicodedata.normalize("NFC", odd))
    platemap.to_csv(lab.platemap, index=False)
    for path in folder.rglob("*_B0*.tif"):
        path.rename(path.with_suffix(".TIF"))
    there = lab._replace(images=folder)
    table = index(there, tmp_path / "m.parquet")
    assert set(table["plate"]) == {"24382", "24383", unicodedata.normalize("NFC", odd)}
    assert load_manifest("m.parquet", root_dir=tmp_path).read(np.arange(72)).shape[0] == 72
    pattern = "{plate}/TimePoint_1/Screen7_{well}_s{site}_w{channel:[0-9]}*.tif"
    pd.testing.assert_frame_equal(index(there, tmp_path / "n.parquet", "--pattern", pattern), table)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_a_folder_that_cannot_be_written(lab, tmp_path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "locked" in fails(lab, locked / "m.parquet")


def test_a_place_that_is_a_file_and_a_manifest_that_is_no_parquet(lab, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    said = fails(lab, tmp_path / "file" / "m.parquet")
    assert "--out" in said
    assert "m.parquet" in fails(lab, tmp_path / "m.csv")
    assert "v1.2/manifest.parquet" in fails(lab, tmp_path / "v1.2")
    (tmp_path / "v1.2").mkdir()
    main([str(lab.images), "--out", str(tmp_path / "v1.2"), "--platemap", str(lab.platemap)])
    assert (tmp_path / "v1.2" / "manifest.parquet").is_file()


@pytest.mark.parametrize("option", ["--out", "--platemap"])
def test_a_path_that_is_too_long(option, lab, tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*nnn.*too long"):
        main([str(lab.images), "--out", str(tmp_path / "m.parquet"), option, str(tmp_path / ("n" * 300))])


@pytest.mark.parametrize("name", ['say "q"', "a\\b", "$HOME", "it's", "k=v, [x]"])
def test_what_to_type_for_training_is_read_as_the_folder_it_names(name) -> None:
    words = shlex.split(training(Path(name) / "manifest.parquet"))
    (given,) = OverridesParser.create().parse_overrides([word for word in words if "root_dir" in word])
    assert OmegaConf.create({"a": given.value()}).a == name


def test_two_layouts_that_fit_are_both_named(made, tmp_path) -> None:
    lab = made("imagexpress")
    shutil.copytree(lab.images, tmp_path / "both")
    rows = {"Metadata_Plate": ["24381"], "Metadata_Well": ["B03"], "FileName_OrigDNA": ["a.tif"]}
    pd.DataFrame(rows).to_csv(tmp_path / "both" / "load_data.csv", index=False)
    said = fails(lab._replace(images=tmp_path / "both"), tmp_path / "m.parquet")
    assert "imagexpress or load_data" in said
    assert "--layout" in said


def test_a_layout_that_cannot_be_found_out_and_one_that_there_is_not(lab, tmp_path) -> None:
    for path in list(lab.images.rglob("*_s*")):
        path.rename(path.with_name(path.name.replace("_s", "-")))
    said = fails(lab, tmp_path / "m.parquet")
    assert "imagexpress" in said
    assert "--pattern" in said
    assert "phenix" in fails(lab, tmp_path / "m.parquet", "--layout", "fenix")


# --- tables that say which file is what -------------------------------------------------------------------------------


def windows(folder: Path, change) -> None:
    """Rewrite the paths of all load_data tables below a folder."""
    for file in folder.rglob("load_data*.csv"):
        table = pd.read_csv(file, dtype=str)
        for column in [one for one in table if one.startswith("PathName")]:
            table[column] = table[column].map(change)
        table.to_csv(file, index=False)


@pytest.fixture
def gallery(made, tmp_path) -> LabFolder:
    one = made("load_data")
    shutil.copytree(one.images.parent, tmp_path / "lab")
    return LabFolder(tmp_path / "lab" / "screen", tmp_path / "lab" / "platemap.csv", one.screen)


def test_paths_of_windows_and_of_a_bucket_are_found_by_their_ends(gallery, tmp_path, capsys) -> None:
    plain = index(gallery, tmp_path / "m.parquet")
    windows(gallery.images, lambda path: path.replace("s3://cellpainting-gallery/", "D:\\data\\").replace("/", "\\"))
    pd.testing.assert_frame_equal(index(gallery, tmp_path / "n.parquet"), plain)
    assert "'D:/data'" in capsys.readouterr().out


def test_paths_that_are_nowhere_and_those_that_one_says(gallery, tmp_path) -> None:
    bucket = gallery.images / "cpg9999-simulated" / "source_1" / "images" / "2026_11_02_Batch1"
    shutil.move(bucket / "images", tmp_path / "copied")
    said = fails(gallery, tmp_path / "m.parquet")
    assert "s3://cellpainting-gallery" in said
    assert "--place" in said
    beginning = "s3://cellpainting-gallery/cpg9999-simulated/source_1/images/2026_11_02_Batch1/images"
    assert len(index(gallery, tmp_path / "m.parquet", "--place", f"{beginning}={tmp_path / 'copied'}")) == 36
    assert load_manifest("m.parquet", root_dir=tmp_path).read(np.arange(2)).shape == (2, 3, 48, 48)
    assert "nowhere" in fails(gallery, tmp_path / "n.parquet", "--place", f"{beginning}={tmp_path / 'nowhere'}")


def test_files_that_a_table_lists_and_that_are_not_there(gallery, tmp_path) -> None:
    file = next(gallery.images.rglob("*BR00117002_B03_T1_F1_ER.tiff"))
    file.unlink()
    said = fails(gallery, tmp_path / "m.parquet")
    assert "well B03" in said
    assert "'ER'" in said
    assert len(index(gallery, tmp_path / "m.parquet", "--on-bad-image", "skip")) == 35


def test_a_table_can_be_named_in_place_of_its_folder(made, tmp_path) -> None:
    lab = made("deepprofiler")
    whole = index(lab, tmp_path / "m.parquet", "--experiment", "e")
    table = lab._replace(images=lab.images / "metadata" / "index.csv")
    named = index(table, tmp_path / "n.parquet", "--experiment", "e")
    assert len(named) == len(whole)
    assert load_manifest("n.parquet", root_dir=tmp_path).read(np.arange(36)).shape == (36, 3, 48, 48)


def test_one_load_data_table_of_a_gallery_finds_its_images_above_it(gallery, tmp_path) -> None:
    file = next(gallery.images.rglob("BR00117002/load_data.csv"))
    table = index(gallery._replace(images=file), tmp_path / "m.parquet")
    assert set(table["plate"]) == {"BR00117002"}
    assert len(table) == 12
    assert load_manifest("m.parquet", root_dir=tmp_path).read(np.arange(2)).shape == (2, 3, 48, 48)


def test_an_index_of_harmony_that_lists_more_and_one_that_is_cut(made, tmp_path, capsys) -> None:
    lab = made("phenix")
    shutil.copytree(lab.images, tmp_path / "screen")
    file = next((tmp_path / "screen").rglob("Index.idx.xml"))
    for path in file.parent.glob("r02c03f01*"):
        path.unlink()
    index(lab._replace(images=tmp_path / "screen"), tmp_path / "n.parquet")
    assert "3 of 36 images of" in capsys.readouterr().out
    file.write_text(file.read_text()[:3000])
    assert "Index.idx.xml" in fails(lab._replace(images=tmp_path / "screen"), tmp_path / "m.parquet")


# --- real files -------------------------------------------------------------------------------------------------------


def test_real_fields_of_an_imagexpress(real_data, tmp_path, capsys) -> None:
    images = pd.read_csv(real_data / "bbbc021_profiles" / "BBBC021_v1_image.csv.gz")
    names = {"Image_Metadata_Compound": "compound", "Image_Metadata_Concentration": "concentration"}
    moa = pd.read_csv(real_data / "bbbc021_profiles" / "BBBC021_v1_moa.csv")
    images.rename(columns=names).merge(moa, "left").to_csv(tmp_path / "map.csv", index=False)
    lab = LabFolder(real_data / "bbbc021_fields", tmp_path / "map.csv", None)
    options = ("--plate", "Week2_24381", "--experiment", "Week2", "--channels", "w1=DAPI", "w2=tubulin", "w4=actin")
    assert "site 3" in (said := fails(lab, tmp_path / "m.parquet", *options))
    assert "'actin'" in said
    table = index(lab, tmp_path / "m.parquet", *options, "--on-bad-image", "skip")
    assert table[["experiment", "plate", "well", "site", "label", "control"]].values.tolist() == [
        ["Week2", "Week2_24381", "B02", site, "DMSO", "negative"] for site in "12"
    ]
    screen = load_manifest("m.parquet", root_dir=tmp_path)
    crop = np.load(next((real_data / "bbbc021_fields").glob("*.npy")))
    found = screen.read(np.array([1]))[0, :, 565:633, 1139:1207]
    np.testing.assert_array_equal(found[[0, 2, 1]].transpose(1, 2, 0), crop)


def test_real_cells_by_their_names(real_data, tmp_path) -> None:
    manifest = pd.read_csv(real_data / "bbbc021_cells" / "manifest.csv")
    shutil.copytree(real_data / "bbbc021_cells" / "crops", tmp_path / "crops")
    lab = LabFolder(tmp_path / "crops", tmp_path / "map.csv", None)
    names = manifest["path"].str.extract(r"crops/(?P<plate>.*?)_?(?P<well>[A-Z]\d\d)_s")
    without = manifest["path"].str.contains(r"crops/[A-Z]\d\d_s")
    names.assign(compound=manifest["compound"])[~without].drop_duplicates(["plate", "well"]).to_csv(
        lab.platemap, index=False
    )
    pattern = "{plate:.*?}_{well}_s{site}_w1{guid:[-0-9A-F]{36}}_{cell}.npy"
    table = index(lab, tmp_path / "m.parquet", "--pattern", pattern)
    assert len(table) == len(manifest) - without.sum()
    screen = load_manifest("m.parquet", root_dir=tmp_path)
    first = np.load(tmp_path / "crops" / table["path"][0])
    np.testing.assert_array_equal(screen.read(np.array([0]))[0], first.transpose(2, 0, 1))
