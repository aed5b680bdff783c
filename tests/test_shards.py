"""Shards of pack, crop and index: merged, they are what one call makes, byte for byte; and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from omegaconf import OmegaConf

from biomass.cells import search
from biomass.cells.crops import CropPixels
from biomass.commands import crop, index, pack
from biomass.errors import ConfigError
from biomass.pixels import packed
from biomass.pixels.part import part_of
from biomass.screen import COLUMNS, VectorPixels, make_screen
from biomass.settings import Config
from biomass.shards import Shard, digest_of, divide, parse_shard, ranges
from biomass.simulation.lab_folder import simulate_lab_folder
from tests.commands.test_crop import write_field, write_screen

READ = ("--set", "image=path", "--set", "channels=[DAPI]", "--workers", "1")
CUT = (*READ, "--size", "24", "--diameter", "18")


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    """A manifest of five plates of two fields."""
    return write_screen(tmp_path_factory.mktemp("fields") / "screen", 5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return simulate_lab_folder(tmp_path_factory.mktemp("lab"), "imagexpress", sites=1, size=48)


@pytest.fixture
def commands(fields, lab, tmp_path) -> dict[str, Callable[..., None]]:
    """By its name, a command that writes to a place below a folder of its own."""

    def packing(out: Path, *more: str) -> None:
        pack.main([str(fields), str(out), *READ, *more])

    def cutting(out: Path, *more: str) -> None:
        crop.main([str(fields), str(out), *CUT, *more])

    def indexing(out: Path, *more: str) -> None:
        words = [str(lab.images), "--platemap", str(lab.platemap), "--out", str(out.with_suffix(".parquet"))]
        index.main([*words, *more])

    return {"pack": packing, "crop": cutting, "index": indexing}


def fails(command: Callable[..., None], *arguments: object) -> str:
    with pytest.raises(SystemExit) as error:
        command(*arguments)
    message = str(error.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", ["pack", "crop", "index"])
def test_shards_are_merged_to_what_one_call_makes(name, commands, tmp_path, capsys):
    one, parts = tmp_path / "one" / "x", tmp_path / "parts" / "x"
    commands[name](one)
    assert "no shards" in fails(commands[name], parts, "--shard", "merge")
    for number in (3, 1):
        commands[name](parts, "--shard", f"{number}/3")
    assert "shard 2 of 3 is not finished" in (message := fails(commands[name], parts, "--shard", "merge"))
    assert "--shard 2/3" in message
    commands[name](parts, "--shard", "2/3")
    commands[name](parts, "--shard", "2/3")  # once more does no harm
    commands[name](parts, "--shard", "merge")
    assert files(tmp_path / "parts") == files(tmp_path / "one")
    assert "no shards" in fails(commands[name], parts, "--shard", "merge")


def test_shards_grow_a_store_of_cells(tmp_path, monkeypatch, capsys):
    screen, kept = tmp_path / "screen", tmp_path / "kept"
    words = [str(write_screen(screen, 2)), str(screen / "cells"), *CUT]
    crop.main(words)
    write_screen(screen, 3)
    write_field(screen / "P1_s2.tif", [(20, 20), (55, 60)], 99)
    os.utime(screen / "P1_s2.tif", ns=(1, 10**18))
    shutil.copytree(screen, kept)
    crop.main(words)
    whole = files(screen)
    shutil.rmtree(screen)
    kept.rename(screen)
    searched, cut = [], []
    find, read = search.find_nuclei, CropPixels.read
    monkeypatch.setattr(search, "find_nuclei", lambda *given: searched.append(1) or find(*given))
    monkeypatch.setattr(CropPixels, "read", lambda self, rows: cut.extend(rows.tolist()) or read(self, rows))
    before = files(screen)
    for number in (2, 1):
        crop.main([*words, "--shard", f"{number}/2"])
    assert len(searched) == 3  # a new plate of two fields, and one that has changed
    assert len(cut) == 7 + 2  # their cells and an example each, and none of the others
    assert before.items() <= files(screen).items()
    crop.main([*words, "--shard", "merge"])
    assert len(cut) == 7 + 3
    assert files(screen) == whole


def test_a_store_that_cannot_grow_is_refused_by_every_shard_and_stays(tmp_path, capsys):
    words = [str(write_screen(tmp_path, 2)), str(tmp_path / "cells"), *CUT, "--no-pictures", "--size", "44"]
    crop.main(words)
    nuclei = pd.read_parquet(tmp_path / "cells.nuclei.parquet")
    fewer = nuclei[nuclei["x"] < nuclei["x"].max()]  # of every field of two nuclei or three one is left out
    fewer.to_csv(tmp_path / "fewer.csv", index=False)
    write_screen(tmp_path, 4)
    shutil.copytree(tmp_path, tmp_path / "bytes")
    for file in (tmp_path / "bytes").glob("*.tif"):
        tifffile.imwrite(file, tifffile.imread(file).astype(np.uint8))
    eight = [str(tmp_path / "bytes" / "screen.csv"), *words[1:]]
    before = files(tmp_path)
    for shard in (["--shard", "1/2"], ["--shard", "2/2"], ["--shard", "merge"], []):
        assert "more than one nucleus" in fails(crop.main, [*words, "--alone", *shard])
        assert "of type uint16, these are uint8" in fails(crop.main, [*eight, *shard])
    given = [*words, "--nuclei", str(tmp_path / "fewer.csv"), "--allow-left-over"]
    assert "other cells" in fails(crop.main, given)
    assert any("other cells" in fails(crop.main, [*given, "--shard", shard]) for shard in ("1/2", "2/2"))
    assert before.items() <= files(tmp_path).items()
    assert not (tmp_path / "cells.part").exists()


def test_a_store_that_is_there_is_looked_at_by_every_shard(fields, tmp_path, monkeypatch, capsys):
    source = tmp_path / "screen"
    shutil.copytree(fields.parent, source)
    words = [str(source / fields.name), *READ, "--shard"]
    table = pd.read_csv(source / fields.name)
    table[table["plate"] != "P3"].to_csv(source / fields.name, index=False)
    pack.main(words[:-1])
    table.to_csv(source / fields.name, index=False)
    before = files(tmp_path)
    (tmp_path / "else").mkdir()
    for shard in ("1/2", "2/2"):
        assert "other images" in fails(pack.main, [*words, shard])
        assert "not a packed store" in fails(pack.main, [*words, shard, "--out", str(tmp_path / "else")])
    assert files(tmp_path) == before
    store = source / "screen.csv.packed"
    shutil.rmtree(store)
    pack.main(words[:-1])
    held = files(store)
    for shard in ("1/2", "2/2", "merge"):  # once more does no harm
        pack.main([*words, shard])
    assert files(store) == held
    write_field(source / "P3_s1.tif", [(20, 20)], 99)
    os.utime(source / "P3_s1.tif", ns=(1, 10**18))
    monkeypatch.setattr(packed, "find_changed_file", lambda *_: None)  # readers look at some files alone
    for shard in ("1/2", "2/2", "merge"):
        pack.main([*words, shard])
    assert files(store) != held
    held = files(store)
    shutil.rmtree(store)
    pack.main(words[:-1])
    assert files(store) == held


def test_a_manifest_that_is_there_grows_or_is_refused_by_every_shard(commands, tmp_path, capsys):
    out, manifest = tmp_path / "x", tmp_path / "x.parquet"
    commands["index"](out)
    before, more = manifest.read_bytes(), ("--experiment", "later")
    commands["index"](out, *more)
    whole = files(tmp_path)
    manifest.write_bytes(before)
    for shard in ("1/2", "2/2", "merge"):
        commands["index"](out, *more, "--shard", shard)
    assert len(pd.read_parquet(manifest)) == 2 * 36
    assert files(tmp_path) == whole
    pd.DataFrame({"a": [1]}).to_parquet(manifest)
    (tmp_path / "text.parquet").write_text("a")
    for shard in ([], ["--shard", "1/2"], ["--shard", "merge"]):
        assert "no manifest of indexed images" in fails(commands["index"], out, *shard)
        assert "no Parquet file" in fails(commands["index"], tmp_path / "text", *shard)
    assert not list(tmp_path.rglob("*.shards"))


def test_more_shards_than_plates(commands, tmp_path, capsys):
    one, parts = tmp_path / "one" / "x", tmp_path / "parts" / "x"
    commands["pack"](one)
    for number in range(1, 8):
        commands["pack"](parts, "--shard", f"{number}/7")
    assert "shard 7/7 has nothing to do" in capsys.readouterr().out
    commands["pack"](parts, "--shard", "merge")
    assert files(tmp_path / "parts") == files(tmp_path / "one")


def test_shards_of_another_command_are_refused(commands, tmp_path):
    out = tmp_path / "x"
    commands["crop"](out, "--shard", "1/2")
    assert "--size 24, and this is with --size 20" in fails(commands["crop"], out, "--shard", "2/2", "--size", "20")
    assert "no --alone, and this is with --alone yes" in fails(commands["crop"], out, "--shard", "2/2", "--alone")
    assert "shard 1/2, and this is about shards of 3" in fails(commands["crop"], out, "--shard", "2/3")
    commands["crop"](out, "--shard", "2/2")
    assert "--diameter 18, and this is with --diameter 9" in fails(
        commands["crop"], out, "--shard", "merge", "--diameter", "9"
    )
    assert not out.exists()


def test_given_nuclei_are_those_of_the_whole_screen(commands, fields, tmp_path):
    commands["crop"](tmp_path / "found", "--no-pictures")
    nuclei = ("--no-pictures", "--nuclei", str(tmp_path / "found.nuclei.parquet"))
    one, parts = tmp_path / "one" / "x", tmp_path / "parts" / "x"
    commands["crop"](one, *nuclei)
    for number in (1, 2):
        commands["crop"](parts, *nuclei, "--shard", f"{number}/2")
    commands["crop"](parts, *nuclei, "--shard", "merge")
    assert files(tmp_path / "parts") == files(tmp_path / "one")


def test_a_shard_that_is_damaged_or_whose_images_have_changed_is_run_again(fields, tmp_path):
    source = tmp_path / "screen"
    shutil.copytree(fields.parent, source)
    words = [str(source / fields.name), str(tmp_path / "x"), *READ, "--shard"]
    for number in (1, 2):
        pack.main([*words, f"{number}/2"])
    images = tmp_path / "x.shards" / "2-of-2" / "images.npy"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    message = fails(pack.main, [*words, "merge"])
    assert "shard 2/2 is damaged" in message
    assert "--shard 2/2" in message
    pack.main([*words, "2/2"])
    assert images.read_bytes() == whole
    file = next(source.glob("P0_s1.tif"))
    os.utime(file, ns=(1, 1))
    message = fails(pack.main, [*words, "merge"])
    assert "changed since" in message
    assert "P0_s1.tif" in message
    number = message.partition("--shard ")[2][:3]
    pack.main([*words, number])
    first, second = (tmp_path / "x.shards" / f"{n}-of-2" for n in (1, 2))
    first.rename(tmp_path / "elsewhere")
    second.rename(first)
    (tmp_path / "elsewhere").rename(second)
    assert "shard 1/2 holds other images" in fails(pack.main, [*words, "merge"])
    note = tmp_path / "x.shards" / "1-of-2.json"
    note.write_text(note.read_text()[:-5])
    assert "shard 1 of 2 is not finished" in fails(pack.main, [*words, "merge"])
    shutil.rmtree(first)
    shutil.rmtree(second)
    for number in (1, 2):
        pack.main([*words, f"{number}/2"])
    pd.read_csv(source / fields.name).assign(label="y").to_csv(source / fields.name, index=False)
    assert "other data" in fails(pack.main, [*words, "merge"])
    assert not (tmp_path / "x").exists()


def test_images_that_cannot_be_read_are_remembered(fields, tmp_path):
    source = tmp_path / "screen"
    shutil.copytree(fields.parent, source)
    for file in source.glob("P1_*.tif"):  # a whole plate
        file.write_bytes(b"II*")
    words = [str(source / fields.name), *READ, "--on-bad-image", "skip"]
    pack.main([*words, str(tmp_path / "one" / "x")])
    parts = tmp_path / "parts" / "x"
    for shard in ("1/5", "2/5", "3/5", "4/5", "5/5", "merge"):
        pack.main([*words, str(parts), "--shard", shard])
    assert files(tmp_path / "parts") == files(tmp_path / "one")
    assert len(json.loads((parts / "store.json").read_text())["bad"]) == 2


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "a/b", "/4", "", "3", "1/0", "-1/4", "1/4/2", "1.0/4", "Merge", "3/16 "]
)
def test_what_is_no_shard_is_one_line(text, commands, tmp_path):
    assert repr(text)[1:-1] in fails(commands["pack"], tmp_path / "x", f"--shard={text}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1/0", ""])
def test_what_is_no_shard_is_known_from_the_settings_alone(text):
    with pytest.raises(ConfigError, match="none"):
        Config(OmegaConf.create({"shard": text}))


def test_plates_stay_whole_and_shards_are_about_as_large():
    plates = np.repeat(np.arange(300), np.random.default_rng(0).integers(1, 400, 300))
    np.random.default_rng(1).shuffle(plates)
    shard = divide(plates, 7)
    assert all(len(np.unique(shard[plates == plate])) == 1 for plate in range(300))
    rows = np.bincount(shard)[1:]
    assert rows.min() > 0.99 * rows.max()
    np.testing.assert_array_equal(divide(plates, 10**6), divide(plates, 300))


def test_small_things():
    assert str(parse_shard("3/16")) == "3/16"
    assert Shard(3, 16).name == "3-of-16"
    assert ranges(range(1, 40, 2)).endswith("…")
    table = pd.DataFrame({column: ["a", "b"] for column in COLUMNS} | {"label": 0, "control": ""})
    screen = make_screen(table, VectorPixels(np.arange(2)[:, None]), ["x"])
    other = make_screen(table.assign(well=["a", "c"]), screen.pixels, ["x"])
    assert digest_of(screen) != digest_of(other)
    assert part_of(screen, np.array([1])).table["well"].tolist() == ["b"]
    with pytest.raises(ConfigError, match="merge"):
        parse_shard("some")
