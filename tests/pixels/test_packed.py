"""The packed store: the same pixels, bit for bit, and never one that looks complete when it is not."""

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from biomass.commands.pack import main
from biomass.datasets.any_source import open_source
from biomass.datasets.bbbc021 import load_bbbc021
from biomass.datasets.manifest import load_manifest
from biomass.datasets.packed import load_packed
from biomass.datasets.rxrx1_cells import count_cells, load_rxrx1_cells
from biomass.errors import BadImageError, ConfigError, DataError
from biomass.loader import BatchReader, Loader
from biomass.pixels import origin
from biomass.pixels import packed as packed_module
from biomass.pixels import packed_writer as packing
from biomass.pixels.files import open_files
from biomass.pixels.packed import (
    ABOUT,
    FILES,
    IMAGES,
    INDEX,
    PackedPixels,
    open_packed,
    packed_beside,
    packed_pixels,
    verify,
)
from biomass.pixels.packed_writer import pack
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen
from biomass.simulation.bbbc021 import simulate_bbbc021
from biomass.simulation.rxrx1 import Design, simulate_rxrx1


def image(seed, shape=(6, 5, 3), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def table(n):
    return pd.DataFrame(
        {
            "experiment": np.where(np.arange(n) < n // 2, "a", "b"),
            "plate": "1",
            "well": [f"w{i}" for i in range(n)],
            "site": "1",
            "cell_type": "x",
            "label": np.arange(n) % 3,
            "split": "train",
            "control": "",
            "dose": np.arange(n) / 7,
        }
    )


def screen_of_files(folder, n=23, dtype=np.uint8, one_a_channel=False):
    """A screen of ``.npy`` files: all channels in one, or one a channel."""
    folder.mkdir()
    for i in range(n):
        array = image(i, dtype=dtype)
        if one_a_channel:
            for c in range(3):
                np.save(folder / f"{i}_{c}.npy", array[..., c])
        else:
            np.save(folder / f"{i}.npy", array)
    endings = ["_0", "_1", "_2"] if one_a_channel else [""]
    files = [[f"{i}{ending}.npy" for i in range(n)] for ending in endings]
    return make_screen(table(n), open_files(folder, files, ("r", "g", "b")), ["k0", "k1", "k2"])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four 6 x 5 x 3 images of one byte."""
    monkeypatch.setattr(packing, "BLOCK_BYTES", 4 * 90)


@pytest.fixture
def screen(tmp_path, small_blocks):
    return screen_of_files(tmp_path / "files")


def assert_same(screen, packed):
    pd.testing.assert_frame_equal(screen.table, packed.table)
    assert screen.classes == packed.classes
    assert screen.pixels.channels == packed.pixels.channels
    assert screen.pixels.size == packed.pixels.size
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(len(screen)), 2))
    ours, theirs = screen.pixels.read(rows), packed.pixels.read(rows)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


def test_a_store_is_found_below_its_root_or_from_the_working_folder(tmp_path, small_blocks, monkeypatch):
    screen = screen_of_files(tmp_path / "files")
    pack(screen, tmp_path / "here" / "store", workers=0)
    monkeypatch.chdir(tmp_path)
    for path, root in (("store", "here"), ("here/store", "data"), (tmp_path / "here" / "store", "data")):
        assert_same(screen, load_packed(path, root))
    shutil.copytree("here/store", "data/here/store")
    assert load_packed("here/store", "data").pixels.path == Path("data/here/store")
    with pytest.raises(DataError, match="data/none"):
        load_packed("none", "data")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("one_a_channel", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_is_the_same_screen(tmp_path, small_blocks, dtype, one_a_channel, workers):
    screen = screen_of_files(tmp_path / "files", dtype=dtype, one_a_channel=one_a_channel)
    out = pack(screen, tmp_path / "store", workers=workers)
    assert_same(screen, load_packed(out))
    verify(out)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["files", "store"]
    assert sorted(p.name for p in out.iterdir()) == sorted([IMAGES, INDEX, FILES, ABOUT])
    array = np.load(out / IMAGES, mmap_mode="r")  # a plain array for everybody else
    assert array.shape == (23, 3, 6, 5)
    assert load_packed(out).pixels.name(3) == ("3_0.npy" if one_a_channel else "3.npy")


def test_floats_and_pixels_that_are_no_files(tmp_path, small_blocks):
    class Drawn:
        channels, size = ("x",), (4, 4)

        def read(self, rows):
            return np.stack([np.full((1, 4, 4), row / 3, np.float16) for row in rows])

        def name(self, row):
            return f"drawing {row}"

    screen = make_screen(table(30), Drawn(), ["k0", "k1", "k2"])
    packed = load_packed(pack(screen, tmp_path / "store"))
    assert_same(screen, packed)
    assert packed.pixels.name(17) == "drawing 17"
    again = load_packed(pack(packed, tmp_path / "again"))
    assert_same(screen, again)
    assert again.pixels.name(17) == "drawing 17"


def test_one_image(tmp_path):
    screen = screen_of_files(tmp_path / "files", 1)
    assert_same(screen, load_packed(pack(screen, tmp_path / "store")))


def test_reading_in_workers(tmp_path, screen):
    packed = load_packed(pack(screen, tmp_path / "store"))
    rows = [np.array([5, 2, 22]), np.array([1]), np.array([], np.int64)]
    packed.pixels.read(rows[0])  # opened here, and again in each worker
    copy = pickle.loads(pickle.dumps(packed.pixels))
    assert len(pickle.dumps(packed.pixels)) < 2000
    assert np.array_equal(copy.read(rows[0]), packed.pixels.read(rows[0]))
    batches = Loader(BatchReader(packed, packed.plate_ids), rows, num_workers=2)
    for batch, wanted in zip(batches, rows, strict=True):
        assert np.array_equal(batch.images.numpy(), screen.pixels.read(wanted))


# used automatically


def test_the_reader_of_the_source_uses_the_store_beside_it(tmp_path, screen, caplog):
    source = tmp_path / "files"
    assert packed_beside(source) is None
    assert packed_pixels(source, screen.pixels.files) is None
    pack(screen, tmp_path / "files.packed")
    assert packed_beside(source) == tmp_path / "files.packed"
    shutil.rmtree(source)  # really read from the store
    assert len(packed_pixels(source, screen.pixels.files)) == 23

    some = [[f"{i}.npy" for i in (7, 3, 19)]]
    pixels = packed_pixels(source, [screen.pixels.files[0].take([7, 3, 19])], ("x", "y", "z"))
    expected = np.stack([image(i).transpose(2, 0, 1) for i in (19, 7)])
    assert np.array_equal(pixels.read(np.array([2, 0])), expected)
    assert pixels.channels == ("x", "y", "z")
    assert pixels.name(1) == some[0][1] == "3.npy"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    assert packed_pixels(source, [pd.Series(["3.npy", "8.npy"])]).rows.tolist() == [3, 8]
    assert packed_pixels(source, [["3.npy", "new.npy"]]) is None
    assert "it lacks 1 of 2 images, such as 'new.npy'" in caplog.text
    assert packed_pixels(source, screen.pixels.files, ("x",)) is None
    assert "it holds 3 channels, not 1" in caplog.text


def write_cells(root, wells=("B02", "B03"), per_well=3):
    """Cells of one experiment, and their metadata."""
    rows = []
    for label, well in enumerate(wells):
        place = root / "cells" / "RPE-01" / "Plate1" / f"{well}_s1"
        place.mkdir(parents=True)
        for i in range(per_well):
            Image.fromarray(image([label, i], (48, 48, 3))).save(place / f"{i}.png")
        rows.append(["RPE", "train", "RPE-01", 1, well, 1, "treatment", f"s{label}", label])
    columns = ["cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata.csv", index=False)
    return root / "cells"


def test_cells_are_read_from_the_store_beside_them(tmp_path, caplog):
    folder = write_cells(tmp_path)
    from_files = load_rxrx1_cells(folder)
    images = from_files.pixels.read(np.arange(6))
    main([str(folder)])
    from_store = load_rxrx1_cells(folder)
    assert from_store.pixels.path == tmp_path / "cells.packed"
    assert_same(from_files, from_store)
    assert_same(from_files, load_packed(tmp_path / "cells.packed"))

    gone = tmp_path / "cells" / "RPE-01" / "Plate1" / "B02_s1"
    shutil.rmtree(gone)  # fewer cells: those that are left come from the store
    fewer = load_rxrx1_cells(folder)
    assert fewer.pixels.path == tmp_path / "cells.packed"
    assert np.array_equal(fewer.pixels.read(np.arange(3)), images[3:])

    shutil.rmtree(folder)  # no files any more: the store says which cells there are
    assert_same(from_store, load_rxrx1_cells(folder))
    assert count_cells(folder)["cells"].tolist() == [3, 3]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "not used" in r.message]

    write_cells(tmp_path, per_well=4)  # more cells than the store has
    assert not hasattr(load_rxrx1_cells(folder).pixels, "path")
    assert "it lacks 2 of 8 images, such as 'RPE-01/Plate1/B02_s1/3.png'" in caplog.text


def test_labels_come_from_the_metadata_of_today_not_from_the_store(tmp_path):
    folder = write_cells(tmp_path)
    main([str(folder)])
    text = (tmp_path / "metadata.csv").read_text()
    (tmp_path / "metadata.csv").write_text(text.replace("s0,0", "s0,1").replace("s1,1", "s1,0"))
    screen = load_rxrx1_cells(folder)
    assert screen.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert load_packed(tmp_path / "cells.packed").labels.tolist() == [0, 0, 0, 1, 1, 1]
    main([str(folder)])  # packing again brings the table up to date
    assert_same(screen, load_packed(tmp_path / "cells.packed"))
    assert load_packed(tmp_path / "cells.packed").classes == ("s1", "s0")


def test_a_store_that_holds_no_cells_does_not_stand_for_them(tmp_path, screen):
    pack(screen, tmp_path / "cells.packed")
    with pytest.raises(DataError, match="cropped cells"):
        load_rxrx1_cells(tmp_path / "cells", include_labels=False)


# a source that has changed


def touch(file, seconds=1):
    """As if the file had been written later."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def rewrite(file, array):
    np.save(file, array)
    touch(file)


def test_a_store_of_changed_files_is_not_used(tmp_path, screen, caplog):
    source = tmp_path / "files"
    pack(screen, tmp_path / "files.packed")
    rewrite(source / "9.npy", image(99))  # of the same size
    assert packed_pixels(source, screen.pixels.files) is None
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    named = (f"'{tmp_path}/files.packed'", f"'{source}/9.npy'", f"biomass pack {source}")
    assert all(name in warning for name in named)
    rewrite(source / "9.npy", image(9))
    assert packed_pixels(source, screen.pixels.files) is not None  # the same bytes again
    np.save(source / "9.npy", image(9, (7, 5, 3)))
    os.utime(source / "9.npy", ns=(0, 0))
    assert packed_pixels(source, screen.pixels.files) is None  # of another size, and older
    (source / "9.npy").unlink()
    assert packed_pixels(source, screen.pixels.files) is not None  # gone is not changed


def test_a_source_that_was_moved_or_copied_keeps_its_store(tmp_path, screen, caplog):
    (tmp_path / "here").mkdir()
    (tmp_path / "files").rename(tmp_path / "here" / "files")
    pixels = open_files(tmp_path / "here" / "files", screen.pixels.files, ("r", "g", "b"))
    pack(Screen(screen.table, pixels, screen.classes), tmp_path / "here" / "files.packed")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)  # with the time of today
    for file in (tmp_path / "there" / "files").iterdir():
        touch(file, 60)
    assert packed_pixels(tmp_path / "there" / "files", pixels.files).path == tmp_path / "there" / "files.packed"
    rewrite(tmp_path / "here" / "files" / "0.npy", image(98))
    assert packed_pixels(tmp_path / "there" / "files", pixels.files) is not None
    assert packed_pixels(tmp_path / "here" / "files", pixels.files) is None
    (tmp_path / "here" / "files.packed").rename(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").rename(tmp_path / "elsewhere" / "files.packed")
    assert packed_pixels(tmp_path / "elsewhere" / "files", pixels.files) is None  # looks where the files were then


@pytest.mark.parametrize("one_a_channel", [False, True])
def test_only_some_files_are_looked_at_when_a_store_is_used(tmp_path, small_blocks, monkeypatch, one_a_channel):
    monkeypatch.setattr(origin, "_SAMPLE", 3)
    screen = screen_of_files(tmp_path / "files", one_a_channel=one_a_channel)
    out = pack(screen, tmp_path / "files.packed")
    looked = []
    original = origin._stamp
    monkeypatch.setattr(origin, "_stamp", lambda root, name: looked.append(name) or original(root, name))
    packed_pixels(tmp_path / "files", screen.pixels.files)
    assert looked == (["0_0.npy", "11_1.npy", "22_2.npy"] if one_a_channel else ["0.npy", "11.npy", "22.npy"])
    monkeypatch.setattr(origin, "_stamp", original)

    # pack looks at all of them, though the reader has found the store
    changed = tmp_path / "files" / ("5_2.npy" if one_a_channel else "5.npy")
    rewrite(changed, image(77, (6, 5)) if one_a_channel else image(77))
    pixels = packed_pixels(tmp_path / "files", screen.pixels.files)
    assert not np.array_equal(pixels.read(np.array([5])), screen.pixels.read(np.array([5])))
    pack(Screen(screen.table, pixels, screen.classes), out)
    assert_same(screen, load_packed(out))
    verify(out)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["files", "files.packed"]


def test_changed_files_are_packed_anew(tmp_path, screen):
    out = pack(screen, tmp_path / "store")
    inode = (out / IMAGES).stat().st_ino
    pack(screen, out)
    assert (out / IMAGES).stat().st_ino == inode  # nothing to do
    for i in range(23):  # cut again, larger
        rewrite(tmp_path / "files" / f"{i}.npy", image(i + 50, (8, 8, 3)))
    larger = open_files(tmp_path / "files", screen.pixels.files, ("r", "g", "b"))
    larger = Screen(screen.table, larger, screen.classes)
    pack(larger, out)
    assert_same(larger, load_packed(out))
    verify(out)


def test_cells_that_were_cut_again(tmp_path, caplog):
    folder = write_cells(tmp_path)
    main([str(folder)])
    place = folder / "RPE-01" / "Plate1" / "B02_s1" / "1.png"
    Image.fromarray(image(5, (48, 48, 3))).save(place)
    touch(place)
    screen = load_rxrx1_cells(folder)
    assert not hasattr(screen.pixels, "path")
    assert f"biomass pack {folder})" in caplog.text
    main([str(folder)])
    assert load_rxrx1_cells(folder).pixels.path == tmp_path / "cells.packed"
    assert_same(screen, load_rxrx1_cells(folder))
    shutil.rmtree(folder)  # present as a store only
    main([str(folder.with_name("cells.packed")), str(tmp_path / "copy")])
    assert_same(load_rxrx1_cells(folder), load_packed(tmp_path / "copy"))
    pack(load_rxrx1_cells(folder), tmp_path / "cells.packed")


def test_files_that_change_while_packing_is_stopped_are_read_again(tmp_path, screen):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            pack(screen, tmp_path / "files.packed", workers=0)
    rewrite(tmp_path / "files" / "6.npy", image(66))
    (tmp_path / "files" / "1.npy").rename(tmp_path / "1.npy")
    pack(screen, tmp_path / "files.packed")
    assert packed_pixels(tmp_path / "files", screen.pixels.files) is not None
    (tmp_path / "1.npy").rename(tmp_path / "files" / "1.npy")
    assert packed_pixels(tmp_path / "files", screen.pixels.files) is not None
    assert_same(screen, load_packed(tmp_path / "files.packed"))


def test_stores_of_before_are_read_and_kept(tmp_path, screen, caplog):
    out = pack(screen, tmp_path / "files.packed")
    about = json.loads((out / ABOUT).read_text())
    del about["origin"], about["digest"]
    (out / ABOUT).write_text(json.dumps(about))
    files = pq.read_table(out / FILES).select(["file"])
    pq.write_table(files, out / FILES)
    rewrite(tmp_path / "files" / "9.npy", image(99))
    assert packed_pixels(tmp_path / "files", screen.pixels.files).path == out
    inode = (out / IMAGES).stat().st_ino
    pack(screen, out)
    assert (out / IMAGES).stat().st_ino == inode
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_the_origin_was_once_called_the_source(tmp_path, screen, caplog):
    out = pack(screen, tmp_path / "files.packed")
    about = json.loads((out / ABOUT).read_text())
    about["source"] = about.pop("origin")
    del about["digest"]
    (out / ABOUT).write_text(json.dumps(about))
    assert packed_pixels(tmp_path / "files", screen.pixels.files).path == out
    rewrite(tmp_path / "files" / "9.npy", image(99))
    assert packed_pixels(tmp_path / "files", screen.pixels.files) is None
    assert "9.npy' has changed" in caplog.text
    pack(screen, out)
    assert json.loads((out / ABOUT).read_text()).keys() >= {"origin", "bad"}
    assert_same(screen, load_packed(out))


# the command


def test_the_command_packs_a_manifest_with_the_options_of_its_reader(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(5):
        np.save(tmp_path / "images" / f"{i}.npy", image(i))
    pd.DataFrame(
        {
            "file": [f"images/{i}.npy" for i in range(5)],
            "experiment": "a",
            "barcode": "p",
            "moa": list("xyxyz"),
        }
    ).to_csv(tmp_path / "m.csv", index=False)
    options = ["image=file", "columns.plate=barcode", "columns.label=moa", "channels=[a,b,c]"]
    main([str(tmp_path / "m.csv"), *(a for option in options for a in ("--set", option))])
    assert f"{tmp_path}/m.csv.packed holds 5 images" in capsys.readouterr().out
    screen = load_manifest(
        tmp_path / "m.csv", image="file", columns={"plate": "barcode", "label": "moa"}, channels=["a", "b", "c"]
    )
    packed = load_packed(tmp_path / "m.csv.packed")
    assert_same(screen, packed)
    assert packed.classes == ("x", "y", "z")
    assert len(packed_pixels(tmp_path / "m.csv", [packed.pixels.files()])) == 5
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit, match=r"no packed store '.*other.csv'"):
        main([str(tmp_path / "other.csv"), "--verify"])
    store, source = str(tmp_path / "m.csv.packed"), str(tmp_path / "m.csv")
    for places in ([store], [source], [source, store], [str(tmp_path / "gone"), "--out", store]):
        main([*places, "--verify"])
        assert f"{store} is complete and unchanged" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"packed store '.*other' has no usable"):
        main([source, str(tmp_path / "other"), "--verify"])
    (tmp_path / "m.csv").rename(tmp_path / "manifest.csv")
    (tmp_path / "m.csv.packed").rename(tmp_path / "manifest.csv.packed")
    main([str(tmp_path), "--verify"])
    assert "manifest.csv.packed is complete and unchanged" in capsys.readouterr().out


def test_the_command_packs_fields_of_view(tmp_path, data_root):
    folder = simulate_rxrx1(
        data_root,
        Design(experiments=3, plates=1, treatments=2, positive_controls=1, wells=2, negative_wells=1, size=48),
    )
    for source in (folder, folder / "rxrx1_v1.0"):
        screen, beside = open_source(source)
        assert beside == folder / "rxrx1_v1.0"
    main([str(folder), str(tmp_path / "store")])
    assert_same(screen, load_packed(tmp_path / "store"))


def test_the_command_packs_bbbc021(tmp_path):
    root = simulate_bbbc021(tmp_path, weeks=2, replicates=1, compounds=2, concentrations=1, height=64, width=80)
    main([str(root), str(tmp_path / "store")])
    assert_same(load_bbbc021(root), load_packed(tmp_path / "store"))
    main([str(root), str(tmp_path / "all"), "--set", "fields=all"])
    assert len(load_packed(tmp_path / "all")) > len(load_bbbc021(root))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no '.*/nowhere': name a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest"),
        (["m.csv", "--set", "imag=x"], "load_manifest has no option 'imag'; did you mean 'image'?"),
        (["m.csv", "--set", "image"], "--set image has no value: write key=value"),
        (
            ["m.csv", "o.packed", "--set", "path=x"],
            "option 'path' cannot be set to 'x': the source names it",
        ),
        (["m.csv", "--set", "source=x"], "load_manifest has no option 'source'"),
        (["empty", "--set", "img_dir=x"], "option 'img_dir' cannot be set to 'x': the source names it"),
        (["empty", "--set", "download=true"], "option 'download' cannot be set to 'True': it is always false here"),
        (["empty", "--set", "downlod=true"], "load_rxrx1_cells has no option 'downlod'; .*metadata_file, "),
        (["root", "--set", "root_dir=x"], "option 'root_dir' cannot be set to 'x': the source names it"),
        (["root", "--set", "download=true"], "option 'download' cannot be set to 'True': it is always false here"),
        (["store", "out", "--set", "path=x"], "option 'path' cannot be set to 'x': the source names it"),
        (["store", "out", "--set", "image=x"], "load_packed has no option 'image'; choose root_dir"),
        (["empty"], "no cropped cells in '.*/empty'"),
        (["--verify", "empty"], "packed store '.*empty' has no usable store.json"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("path,experiment,plate\nx.npy,a,b\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "root" / "rxrx1_v1.0").mkdir(parents=True)
    (tmp_path / "root" / "rxrx1_v1.0" / "metadata.csv").write_text("")
    pack(screen_of_files(tmp_path / "files", 1), tmp_path / "store")
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.match(f"error: {message}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.packed*"))


def lab_files(folder, bad):
    """A manifest of five images, some of which are gone or broken; the arguments of the command."""
    for i in range(5):
        np.save(folder / f"{i}.npy", image(i))
    for i, content in bad.items():
        (folder / f"{i}.npy").write_bytes(content) if content is not None else (folder / f"{i}.npy").unlink()
    pd.DataFrame({"path": [f"{i}.npy" for i in range(5)], "experiment": "a", "plate": "p", "label": "x"}).to_csv(
        folder / "m.csv", index=False
    )
    return [str(folder / "m.csv"), "--workers", "0"]


def test_the_command_names_its_own_options(tmp_path, caplog):
    for bad in ({2: None}, {3: b"broken"}):
        with pytest.raises(SystemExit, match=r"error: image '.*or give --on-bad-image skip$") as caught:
            main(lab_files(tmp_path, bad))
        assert "dataloaders" not in str(caught.value)
        assert "\n" not in str(caught.value)
    main([*lab_files(tmp_path, {2: None, 3: b"broken"}), "--on-bad-image", "skip"])  # the reader knows of it too
    assert "2 images cannot be read; the first: " in caplog.text
    assert "skip" not in caplog.text
    with pytest.raises(BadImageError) as error:  # for those who read the store
        load_packed(tmp_path / "m.csv.packed").pixels.read(np.array([3]))
    assert error.value.advice == "skip"


def test_what_is_asked_for_already_is_no_advice(tmp_path):
    arguments = lab_files(tmp_path, dict.fromkeys(range(5)))
    with pytest.raises(SystemExit, match=r"error: image '.*0\.npy' is missing: copy or download it again$"):
        main([*arguments, "--on-bad-image", "skip"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"error: no cropped cells .*empty'") as caught:
        main([str(tmp_path / "empty")])  # it never downloads
    assert "download" not in str(caught.value)


def test_the_command_after_ctrl_c(tmp_path, monkeypatch, capsys):
    arguments = lab_files(tmp_path, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._BlockWriter, "__call__", interrupt)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: a second call goes on where this one stopped"
    assert not (tmp_path / "m.csv.packed").exists()
    main(arguments)
    monkeypatch.setattr("biomass.pixels.packed.verify", interrupt)
    with pytest.raises(SystemExit) as caught:
        main(["--verify", str(tmp_path / "m.csv.packed")])
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped: nothing was changed"


def interrupt(*_):
    raise KeyboardInterrupt


# images that cannot be read


def test_packing_goes_on_past_a_bad_image_and_then_refuses(tmp_path, screen):
    (tmp_path / "files" / "9.npy").write_bytes(b"broken")
    (tmp_path / "files" / "21.npy").unlink()
    with pytest.raises(BadImageError, match=r"9\.npy.*\(2 images cannot be read\); pack again") as caught:
        pack(screen, tmp_path / "store")
    assert caught.value.row == 9
    assert not (tmp_path / "store").exists()
    for i in (9, 21):
        np.save(tmp_path / "files" / f"{i}.npy", image(i))
    written = []
    original = packing._BlockWriter.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._BlockWriter, "__call__", lambda self, b: written.append(b) or original(self, b))
        pack(screen, tmp_path / "store", workers=0)
    assert written == [2, 5]  # only the blocks that had bad images
    assert_same(screen, load_packed(tmp_path / "store"))


def test_bad_images_may_be_kept_as_such(tmp_path, screen, caplog):
    (tmp_path / "files" / "0.npy").write_bytes(b"broken")
    (tmp_path / "files" / "9.npy").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="on_bad_image 'maybe' is unknown"):
        pack(screen, tmp_path / "store", on_bad_image="maybe")
    pack(screen, tmp_path / "store", on_bad_image="skip")
    assert "2 images cannot be read" in caplog.text
    packed = load_packed(tmp_path / "store")
    with pytest.raises(BadImageError, match=r"9\.npy' cannot be read") as caught:
        packed.pixels.read(np.array([3, 9, 0]))
    assert caught.value.row == 9
    good = np.array([3, 8, 10])
    assert np.array_equal(packed.pixels.read(good), screen.pixels.read(good))
    batch = BatchReader(packed, packed.plate_ids, "skip")[np.array([3, 9, 0, 4])]
    assert batch.skipped.tolist() == [0, 9]
    assert batch.rows.tolist() == [3, 4]
    chosen = pickle.loads(pickle.dumps(packed_pixels(tmp_path / "x", screen.pixels.files) or packed.pixels))
    with pytest.raises(BadImageError):
        chosen.read(np.array([9]))


def test_a_bad_image_is_reported_by_its_row_of_the_screen(tmp_path, screen):
    (tmp_path / "files" / "9.npy").write_bytes(b"broken")
    pack(screen, tmp_path / "files.packed", on_bad_image="skip")
    pixels = packed_pixels(tmp_path / "files", [screen.pixels.files[0].take([4, 9])])
    with pytest.raises(BadImageError) as caught:
        pixels.read(np.array([0, 1]))
    assert caught.value.row == 1


# stopped in the middle


def stop_after(blocks, monkeypatch):
    """Make the writer fail after some blocks, as if the process had been stopped."""
    original, count = packing._BlockWriter.__call__, []

    def write(self, block):
        if len(count) == blocks:
            raise KeyboardInterrupt
        count.append(block)
        return original(self, block)

    monkeypatch.setattr(packing._BlockWriter, "__call__", write)


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no packed store '.*nowhere'; name a folder that .* has written"):
        load_packed(tmp_path / "nowhere")


@pytest.mark.parametrize("blocks", [0, 1, 5])
def test_a_second_call_goes_on_where_the_first_was_stopped(tmp_path, screen, blocks):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(blocks, patch)
        with pytest.raises(KeyboardInterrupt):
            pack(screen, tmp_path / "store", workers=0)
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match=r"has no usable store\.json"):
        open_packed(tmp_path / "store.part")
    journal = tmp_path / "store.part" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"half a li')  # as a process leaves it that is killed while it writes
    if blocks:
        shutil.rmtree(tmp_path / "files" / "0.npy", ignore_errors=True)
        (tmp_path / "files" / "1.npy").rename(tmp_path / "1.npy")  # is in the store: nobody asks for it again
    pack(screen, tmp_path / "store")
    if blocks:
        (tmp_path / "1.npy").rename(tmp_path / "files" / "1.npy")
    assert_same(screen, load_packed(tmp_path / "store"))


def test_a_finished_block_that_the_disk_lost_is_written_again(tmp_path, screen):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            pack(screen, tmp_path / "store", workers=0)
    array = np.load(tmp_path / "store.part" / IMAGES, mmap_mode="r+")
    array[5] = 0  # in the second block
    del array
    pack(screen, tmp_path / "store")
    assert_same(screen, load_packed(tmp_path / "store"))


@pytest.mark.parametrize("step", ["verify", "_put_in_place"])
def test_a_call_that_was_stopped_at_its_very_end_reads_nothing_again(tmp_path, screen, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(screen, tmp_path / "store", workers=0)
    assert not (tmp_path / "store").exists()
    expected = screen.pixels.read(np.arange(23))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing._BlockWriter, "__call__", None)  # nobody reads
        pack(screen, tmp_path / "store", workers=2)
    assert np.array_equal(load_packed(tmp_path / "store").pixels.read(np.arange(23)), expected)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted([IMAGES, INDEX, FILES, ABOUT])


def test_a_source_that_fails_is_not_a_place_that_cannot_be_written(tmp_path, screen):
    class Unplugged:
        channels, size, read_before = ("r", "g", "b"), (6, 5), 0

        def read(self, rows):
            self.read_before += 1
            if self.read_before > 2:
                raise OSError(5, "Input/output error")
            return screen.pixels.read(rows)

        def name(self, row):
            return f"image {row}"

    with pytest.raises(DataError, match=r"images 4 to 7 cannot be read .*Input/output error"):
        pack(Screen(screen.table, Unplugged(), screen.classes), tmp_path / "store", workers=0)


def test_what_was_begun_for_other_images_is_thrown_away(tmp_path, screen):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            pack(screen, tmp_path / "store", workers=0)
    other = screen_of_files(tmp_path / "others", 11)
    assert_same(other, load_packed(pack(other, tmp_path / "store")))


def pack_slowly(screen, out):
    original = packing._BlockWriter.__call__
    packing._BlockWriter.__call__ = lambda self, block: time.sleep(0.2) or original(self, block)
    pack(screen, out, workers=2)


def test_a_killed_process_leaves_no_store_and_no_workers(tmp_path, screen):
    process = multiprocessing.get_context("fork").Process(target=pack_slowly, args=(screen, tmp_path / "store"))
    process.start()
    journal = tmp_path / "store.part" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and len(journal.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    assert not (tmp_path / "store").exists()
    assert len(children) >= 2
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in children)
    done = len(journal.read_text().splitlines()) - 1
    assert 1 <= done < 6
    assert_same(screen, load_packed(pack(screen, tmp_path / "store")))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# a store that is not what it says


def test_a_store_that_was_cut_off_is_refused(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    for name, cut in ((IMAGES, -1), (IMAGES, 200), (IMAGES, 3), (INDEX, -8), (FILES, 0), (ABOUT, -2), (ABOUT, 0)):
        copy = tmp_path / "copy"
        shutil.copytree(store, copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"packed store '.*copy' ") as caught:
            load_packed(copy)
        assert "\n" not in str(caught.value)
        shutil.rmtree(copy)
    for name in (IMAGES, INDEX, FILES, ABOUT):
        shutil.copytree(store, tmp_path / "copy")
        (tmp_path / "copy" / name).unlink()
        with pytest.raises(DataError, match=r"packed store '.*copy' "):
            load_packed(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


def test_a_store_of_which_parts_do_not_belong_together_is_refused(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    other = pack(screen_of_files(tmp_path / "others", 11), tmp_path / "other")
    for name, message in (
        (INDEX, "11 rows, expected 23"),
        (FILES, "11 rows"),
        (IMAGES, "another shape"),
        (ABOUT, "another shape"),
    ):
        shutil.copytree(store, tmp_path / "copy")
        shutil.copy(other / name, tmp_path / "copy" / name)
        with pytest.raises(DataError, match=message):
            open_packed(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
    about = json.loads((store / ABOUT).read_text())
    (store / ABOUT).write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(DataError, match="is of version 99, this program reads version 1"):
        open_packed(store)


def change_byte(file, place, by=1):
    with file.open("r+b") as opened:
        opened.seek(place, 2 if place < 0 else 0)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ by]))


def test_a_changed_image_is_an_error_when_it_is_read_and_no_other_is(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    change_byte(store / IMAGES, -100)  # in image 21 of 23, of 90 bytes each
    packed = load_packed(store)
    good = [row for row in range(23) if row != 21]
    assert np.array_equal(packed.pixels.read(np.array(good)), screen.pixels.read(np.array(good)))
    for _ in range(2):
        with pytest.raises(BadImageError, match=r"image 21 of packed store '.*store' \('21\.npy'\)") as caught:
            packed.pixels.read(np.array([3, 21, 4]))
        assert (caught.value.row, caught.value.kind) == (21, "damaged")
    some = PackedPixels(**{**vars_of(packed.pixels), "rows": np.array([5, 21])})
    with pytest.raises(BadImageError) as caught:
        some.read(np.array([0, 1]))
    assert caught.value.row == 1
    batch = BatchReader(packed, packed.plate_ids, "skip")[np.arange(18, 23)]
    assert (batch.skipped.tolist(), batch.why) == ([21], ("damaged",))


def vars_of(pixels):
    return {name: getattr(pixels, name) for name in PackedPixels.__dataclass_fields__}


def test_an_image_is_compared_once_in_a_process(tmp_path, screen, monkeypatch):
    packed = load_packed(pack(screen, tmp_path / "store"))
    compared = []
    original = packed_module.zlib.crc32
    monkeypatch.setattr(packed_module.zlib, "crc32", lambda data: compared.append(1) or original(data))
    for count, rows in ((3, [1, 2, 3]), (4, [2, 3, 4]), (4, [4, 1, 1])):
        packed.pixels.read(np.array(rows))
        assert len(compared) == count


def test_a_store_that_is_cut_while_it_is_open(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    packed = load_packed(store)
    packed.pixels.read(np.array([0]))
    os.truncate(store / IMAGES, 700)
    assert np.array_equal(packed.pixels.read(np.array([1])), screen.pixels.read(np.array([1])))
    with pytest.raises(DataError, match="was cut while it was read"):
        packed.pixels.read(np.array([22]))  # a map would end the process here
    again = pickle.loads(pickle.dumps(packed.pixels))
    with pytest.raises(DataError, match="was cut off or replaced"):
        again.read(np.array([1]))


def test_tables_of_another_store_with_the_same_names_are_refused(tmp_path, screen):
    store, shown = pack(screen, tmp_path / "store"), tmp_path / "shown"
    (tmp_path / "second").mkdir()
    images = [image(i + 50) for i in range(23)]
    for i, array in enumerate(images):
        np.save(tmp_path / "second" / f"{i}.npy", array)
    pixels = open_files(tmp_path / "second", screen.pixels.files, ("r", "g", "b"))
    other = pack(Screen(screen.table.assign(label=0), pixels, screen.classes), tmp_path / "other")
    for name, said in ((INDEX, "parts of two stores"), (FILES, "parts of two stores"), (ABOUT, "parts of two stores")):
        shutil.copytree(store, shown)
        shutil.copy(other / name, shown / name)
        with pytest.raises(DataError, match=said):
            load_packed(shown)
        shutil.rmtree(shown)
    shutil.copy(other / IMAGES, store / IMAGES)
    with pytest.raises(BadImageError, match="image 0 of packed store"):
        load_packed(store).pixels.read(np.array([0]))


CRAFTED = {
    "images": [-1, 0, True, 2**70, "23", None],
    "shape": [[3, 6], [0, 6, 5], [3, -6, 5], [3, 2**40, 2**40], "365", [3, 6, 5.0]],
    "dtype": ["|O", "<i8", "object", "|V8", 5, [["a", "<u1"]]],
    "channels": [["r", "g"], ["r", "g", 5], "rgb", ["r", "g", "\x1b[31m"]],
    "classes": ["abc", [1, 2, 3], {}],
    "block": [0, -4, 2**70, 1.5],
    "crc32": [[], [1, 2], [-1] * 6, [2**32] * 6, ["a"] * 6],
    "bad": [{"23": "x"}, {"-1": "x"}, {"1e1": "x"}, {"5": 5}, []],
    "origin": [[], {"root": 5}, "x", {"root": "\0", "place": "", "axes": "", "sample": []}],
    "more": [1],
}


def test_a_store_that_says_what_cannot_be_is_refused(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    about = json.loads((store / ABOUT).read_text())
    del about["digest"]
    texts = [(name, json.dumps(about | {name: value})) for name, values in CRAFTED.items() for value in values]
    texts += [(name, json.dumps({k: v for k, v in about.items() if k != name})) for name in about if name != "origin"]
    text = json.dumps(about)
    texts += [("twice", text[:-1] + ', "images": 23}'), ("NaN", text[:-1] + ', "x": NaN}'), ("", "[" * 100000)]
    for name, crafted in texts:
        (store / ABOUT).write_text(crafted)
        with pytest.raises(DataError, match=f"packed store .*{name}") as caught:
            load_packed(store)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    (store / ABOUT).write_text(text)
    load_packed(store)


def test_a_store_of_which_an_entry_has_changed_is_refused(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    (store / ABOUT).write_text((store / ABOUT).read_text().replace("k1", "k7"))
    with pytest.raises(DataError, match="has changed since it was written"):
        load_packed(store)


@pytest.mark.parametrize("name", [IMAGES, INDEX, FILES, ABOUT])
def test_a_part_that_is_no_file_of_the_store_is_refused(tmp_path, screen, name):
    store = pack(screen, tmp_path / "store")
    part = (store / name).rename(tmp_path / "elsewhere")
    for make in (os.mkfifo, lambda path: path.symlink_to(part), lambda path: path.symlink_to(path)):
        make(store / name)
        with pytest.raises(DataError, match=name):
            load_packed(store)
        (store / name).unlink()


def test_a_table_that_is_none_of_a_screen_is_refused(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    table = load_packed(store).table
    for said, crafted in (
        ("'label'", table.assign(label=table["label"] / 2)),
        ("label 3", table.assign(label=3)),
        ("label -2", table.assign(label=-2)),
        ("'plate_id'", table.assign(plate_id=7)),
        ("'plate'", table.assign(plate=5)),
        ("'control'", table.assign(control=pd.Categorical(["odd"] * 23))),
        ("'well'", table.drop(columns="well")),
    ):
        crafted.to_parquet(store / INDEX, index=False)
        with pytest.raises(DataError, match=said):
            load_packed(store)


def test_a_changed_byte_is_found(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    change_byte(store / IMAGES, -100)
    load_packed(store)
    with pytest.raises(DataError, match="is damaged: images 20 to 22 have changed"):
        verify(store)


def test_a_store_of_other_images_is_not_overwritten(tmp_path, screen):
    store = pack(screen, tmp_path / "store")
    with pytest.raises(DataError, match="is a store of other images: delete it, or choose another place"):
        pack(screen_of_files(tmp_path / "others", 11), store)
    assert_same(screen, load_packed(store))


def test_a_place_that_cannot_be_written(tmp_path, screen, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write") as caught:
        pack(screen, tmp_path / "file" / "store")
    assert caught.value.advice == "store"
    assert "GiB" not in str(caught.value)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left on device.*KiB"):
        pack(screen, tmp_path / "store")
    assert not list(tmp_path.rglob(IMAGES))
    monkeypatch.undo()
    assert isinstance(load_packed(pack(screen, tmp_path / "store")), Screen)


def test_the_names_of_files_are_read_in_parts(tmp_path, screen, monkeypatch):
    monkeypatch.setattr(packing, "_PART", 5)
    out = packing.pack(screen, tmp_path / "manifest.csv.packed")
    assert pq.read_metadata(out / FILES).num_row_groups == 5
    pixels, names = open_packed(out), screen.pixels.files[0].arrow().to_pylist()
    assert [pixels.name(row) for row in (22, 0, 4, 5, 9, 10, 4)] == [names[row] for row in (22, 0, 4, 5, 9, 10, 4)]
    files = list(screen.pixels.files)
    assert packed_pixels(tmp_path / "manifest.csv", files).rows is None
    order = np.array([*range(20), 21, 20, 22])
    other = packed_pixels(tmp_path / "manifest.csv", [column.take(order) for column in files])
    assert other.rows.tolist() == order.tolist()
    assert packed_pixels(
        tmp_path / "manifest.csv", [column.take(np.arange(7)) for column in files]
    ).rows.tolist() == list(range(7))


def test_the_table_of_a_store_is_that_of_the_screen_whatever_it_holds(tmp_path):
    rows = 3000
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * rows) | {"label": np.arange(rows) % 2})
    table["plate"] = np.array(["P2", "P10", "P1"])[np.arange(rows) % 3]
    table["compound"] = np.array(["DMSO", "", "taxol"])[np.arange(rows) % 3]
    table["own"] = np.array(["a", None, "b"], object)[np.arange(rows) % 3]
    table["note"] = [f"of row {row}" for row in range(rows)]
    table["dose"] = np.arange(rows) / 7
    before = make_screen(table, VectorPixels(np.zeros((rows, 1, 1, 1), np.uint8), ("DNA",)), ["a", "b"])
    packing.pack(before, tmp_path / "store", workers=0)
    pd.testing.assert_frame_equal(load_packed(tmp_path / "store").table, before.table)
