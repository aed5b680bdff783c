"""The simulated BBBC021: its design, its files, and that they say the same."""

import hashlib
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from biomass.cells import search
from biomass.cells.nuclei import find_nuclei, read_nuclei
from biomass.commands.crop import main
from biomass.datasets.bbbc021 import load_bbbc021, load_bbbc021_cells
from biomass.datasets.packed import load_packed
from biomass.errors import BadImageError, ConfigError, DataError
from biomass.evaluation.nearest import nscb
from biomass.simulation.bbbc021 import (
    DMSO_WELLS,
    MECHANISMS,
    SINGLE_WEEK,
    TAXOL_WELLS,
    Design,
    draw_biology,
    lay_out,
    render_plate,
    simulate_bbbc021,
)

TINY = {
    "weeks": 2,
    "replicates": 1,
    "compounds": 2,
    "concentrations": 1,
    "taxol_wells": 1,
    "sites": 2,
    "height": 64,
    "width": 80,
    "density": 0.5,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return simulate_bbbc021(tmp_path_factory.mktemp("simulated"), raw="zips", **TINY)


def digest(folder):
    # HDF5 leaves a few bytes as they were in memory in a file of virtual datasets, which holds nothing but names.
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "bbbc021.h5")
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_design_is_the_same_screen(tiny, tmp_path):
    again = simulate_bbbc021(tmp_path, raw="zips", workers=1, **TINY)
    assert again.name == tiny.name
    assert digest(again) == digest(tiny)


def test_another_seed_is_another_screen():
    table = lay_out(Design(**TINY))
    rows = table.index[table["plate"] == table["plate"][0]][:4]
    one, other = (render_plate(Design(**TINY, seed=s), table.loc[rows], np.zeros((4, 21)))[0] for s in (0, 1))
    assert (one != other).mean() > 0.5


def test_it_is_not_made_twice(tiny):
    times = {f: f.stat().st_mtime_ns for f in tiny.rglob("*")}
    assert simulate_bbbc021(tiny.parent.parent, raw="zips", **TINY) == tiny
    assert {f: f.stat().st_mtime_ns for f in tiny.rglob("*")} == times


def test_the_layout_has_the_label_shift_of_bbbc021():
    table = lay_out(Design())
    assert table["plate"].nunique() == 18
    control = table["well"].isin([*DMSO_WELLS, *TAXOL_WELLS])
    treated = table[~control & (table["moa"] != "")]
    # A compound lives in one week; every treatment is once on each of the week's three plates.
    assert set(treated.groupby("compound")["week"].nunique()) == {1}
    assert set(treated.groupby(["compound", "concentration"])["plate"].nunique()) == {3}
    assert not treated.duplicated(["compound", "concentration", "plate"]).any()
    # Mechanisms of one week, and of two.
    weeks = treated.groupby("moa")["week"].nunique()
    assert set(weeks.index) == set(MECHANISMS)
    assert {moa for moa, n in weeks.items() if n == 1} == set(SINGLE_WEEK)
    assert weeks.max() == 2
    # Few mechanisms a plate, DMSO on all of them.
    assert treated.groupby("plate")["moa"].nunique().between(3, 5).all()
    dmso = table[table["compound"] == "DMSO"].groupby("plate")["well"].agg(set)
    assert len(dmso) == 18
    assert (dmso == set(DMSO_WELLS)).all()
    assert set(table.loc[table["well"].isin(TAXOL_WELLS), "compound"]) == {"taxol"}


def test_nscb_cannot_score_the_mechanisms_of_a_single_week():
    table = lay_out(Design())
    treated = table[(table["mechanism"] >= 0) & ~table["well"].isin(TAXOL_WELLS)]
    treatments = treated.drop_duplicates(["compound", "concentration"])
    features = np.random.default_rng(0).standard_normal((len(treatments), 8))
    result = nscb(features, treatments["compound"].tolist(), treatments["moa"].tolist(), treatments["week"].tolist())
    lonely = treatments["moa"].isin(SINGLE_WEEK).sum()
    assert lonely == 18
    assert result.scorable.sum() == len(treatments) - lonely


def test_effects_follow_mechanism_compound_and_dose():
    design = Design()
    table = lay_out(design)
    effects = draw_biology(design, table)
    assert not effects[table["compound"] == "DMSO"].any()
    size = np.linalg.norm(effects, axis=1)
    doses = pd.DataFrame({"size": size, "dose": table["concentration"], "compound": table["compound"]})
    doses = doses[(table["mechanism"] >= 0) & ~table["well"].isin(TAXOL_WELLS)]
    grown = doses.groupby(["compound", "dose"])["size"].first().unstack()
    assert (grown.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)
    first = table[(table["mechanism"] >= 0) & (table["concentration"] == 1.0)].drop_duplicates("compound")
    vectors = effects[first.index] / np.linalg.norm(effects[first.index], axis=1, keepdims=True)
    same = first["moa"].to_numpy()[:, None] == first["moa"].to_numpy()
    cosines = vectors @ vectors.T
    np.fill_diagonal(same, False)
    assert np.median(cosines[same]) > 0.7
    assert cosines[~same & ~np.eye(len(first), dtype=bool)].mean() < 0.2


def test_the_files_are_those_of_pybbbc(tiny):
    with h5py.File(tiny / "data" / "bbbc021.h5") as h5:
        assert set(h5) == {"images", "site", "well", "replicate", "plate", "compound", "concentration", "moa"}
        n = len(h5["images"])
        assert h5["images"].is_virtual
        assert h5["images"].shape == (n, 3, 64, 80)
        assert h5["images"].dtype == h5["concentration"].dtype == np.float16
        assert h5["site"].dtype == h5["replicate"].dtype == np.uint8
        assert h5py.check_string_dtype(h5["moa"].dtype).encoding == "utf-8"
        assert b"null" in set(h5["moa"][()])
        images = h5["images"][()]
        # 0.1 and 99.9 percentiles of a plate's channel become 0 and 1.
        assert images.min() == 0
        assert images.max() == 1
        assert 0.0005 < (images == 1).mean() < 0.02  # more than 0.1 % where the camera saturates
    assert len(list((tiny / "data" / "hdf5").iterdir())) == 2
    assert len(list((tiny / "data" / "raw" / "images").glob("*.zip"))) == 2


def test_raw_files_and_hdf5_are_the_same_images(tiny, tmp_path):
    keys = ["plate", "well", "site"]
    one = load_bbbc021(tiny, fields="all")
    other = load_bbbc021(tiny / "data" / "raw", fields="all", cache_dir=tmp_path)
    a = one.table.astype(dict.fromkeys(keys, str)).sort_values(keys)
    b = other.table.astype(dict.fromkeys(keys, str)).sort_values(keys)
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True), check_categorical=False)
    np.testing.assert_array_equal(one.pixels.read(a.index.to_numpy()), other.pixels.read(b.index.to_numpy()))


def test_the_nuclei_are_where_the_tables_say():
    design = Design(**TINY, nuisance=0)
    table = lay_out(design)
    table = table[table["plate"] == table["plate"][0]]
    images, truth = render_plate(design, table, np.zeros((len(table), 21)))
    hits = total = 0
    for number in range(len(table)):
        mine = truth.loc[truth["field"] == number, ["y", "x"]].to_numpy()
        inside = ((mine > 6) & (mine < np.array([57, 73]))).all(axis=1)
        found, _ = find_nuclei(images[number, 0], diameter=9)
        distance = np.linalg.norm(mine[inside][:, None] - found[None], axis=2)
        hits += int((distance.min(axis=1, initial=np.inf) < 2).sum())
        total += int(inside.sum())
    assert total > 100
    assert hits / total > 0.9


def test_the_supplement_lists_the_fields_of_ljosa(tiny):
    fields, nuclei = read_nuclei(tiny)
    screen = load_bbbc021(tiny)  # known mechanisms, without the positive controls
    keys = ["plate", "well", "site"]
    assert set(map(tuple, fields[keys].to_numpy())) == set(map(tuple, screen.table[keys].astype(str).to_numpy()))
    assert nuclei["x"].between(0, 79).all()
    assert nuclei["y"].between(0, 63).all()
    assert nuclei["y"].max() > 50
    assert nuclei["x"].max() > 70


def test_cells_through_the_command_and_the_loader(tiny, tmp_path, capsys):
    main([str(tiny), str(tmp_path / "cells"), "--size", "24", "--workers", "0"])
    packed = load_packed(tmp_path / "cells")
    assert f"holds {len(packed)} cells" in capsys.readouterr().out
    cells = load_bbbc021_cells(tiny, size=24)
    rows = np.random.default_rng(0).permutation(len(cells))[:50]
    np.testing.assert_array_equal(packed.pixels.read(rows), cells.pixels.read(rows))
    assert set(packed.table["moa"]) == {*MECHANISMS, "DMSO"}
    again = load_bbbc021_cells(tiny, size=24, store=tmp_path / "cells", workers=0)
    pd.testing.assert_frame_equal(again.table, packed.table)


def test_without_tables_the_nuclei_are_found(tiny, tmp_path):
    shutil.copytree(tiny / "data", tmp_path / "data", ignore=shutil.ignore_patterns("raw"))
    cells = load_bbbc021_cells(tmp_path, size=24, diameter=10)
    assert 0.5 < len(cells) / len(load_bbbc021_cells(tiny, size=24)) < 1.5


@pytest.fixture
def bare(tiny, tmp_path):
    """The pybbbc files without the tables of nuclei."""
    shutil.copytree(tiny / "data", tmp_path / "bare" / "data", ignore=shutil.ignore_patterns("raw"))
    return tmp_path / "bare"


@pytest.fixture
def raw(tiny, tmp_path):
    """The raw collection, a folder a plate, without the tables of nuclei."""
    shutil.copytree(tiny / "data" / "raw", tmp_path / "raw", ignore=shutil.ignore_patterns("illumination"))
    for archive in (tmp_path / "raw" / "images").glob("*.zip"):
        shutil.unpack_archive(archive, archive.parent)
        archive.unlink()
    return tmp_path / "raw"


@pytest.fixture
def searched(monkeypatch):
    """How many fields were searched for nuclei, one entry a field."""
    calls = []
    original = search.find_nuclei
    monkeypatch.setattr(search, "find_nuclei", lambda *args: calls.append(1) or original(*args))
    return calls


SEARCH = {"size": 24, "diameter": 10, "workers": 0}


@pytest.mark.parametrize("place", ["store", "dataset", "cache_dir"])
def test_nuclei_are_searched_once(bare, searched, tmp_path, place):
    places = {"store": {"store": tmp_path / "cells"}, "cache_dir": {"cache_dir": tmp_path / "cache"}}.get(place, {})
    first = load_bbbc021_cells(bare, **SEARCH, **places)
    assert len(searched) == len(load_bbbc021(bare))
    again = load_bbbc021_cells(bare, **SEARCH, **places)
    assert len(searched) == len(load_bbbc021(bare))
    pd.testing.assert_frame_equal(again.table, first.table)
    found = {"store": tmp_path, "dataset": bare / "data" / "nuclei", "cache_dir": tmp_path / "cache" / "nuclei"}[place]
    assert len(list(found.glob("*.parquet"))) == 1


def test_a_search_that_was_stopped_goes_on(bare, searched):
    with pytest.MonkeyPatch.context() as patch:
        save = search.save_nuclei

        def killed(*args):
            save(*args)
            raise KeyboardInterrupt

        patch.setattr(search, "save_nuclei", killed)
        with pytest.raises(KeyboardInterrupt):
            load_bbbc021_cells(bare, **SEARCH)
    done = len(searched)
    load_bbbc021_cells(bare, **SEARCH)
    assert 0 < done < len(searched) == len(load_bbbc021(bare))


def test_a_dataset_that_cannot_be_written_to(bare, searched, caplog):
    (bare / "data" / "nuclei").write_text("no folder")
    cells = load_bbbc021_cells(bare, **SEARCH)
    assert "searched without being kept" in caplog.text
    assert len(load_bbbc021_cells(bare, **SEARCH)) == len(cells)


def test_size_and_store_are_looked_at_before_nuclei_are_searched(bare, searched, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="crops of 65 pixels cannot be cut out of images of 64 x 80"):
        load_bbbc021_cells(bare, **SEARCH | {"size": 65})
    with pytest.raises(ConfigError, match=r"cannot write '.*file/cells'"):
        load_bbbc021_cells(bare, **SEARCH, store=tmp_path / "file" / "cells")
    load_bbbc021_cells(bare, **SEARCH, store=tmp_path / "cells")
    searched.clear()
    for other in ({"plates": ["Week1_20021"]}, {"size": 26}, {"channels": ["DAPI"]}, {"diameter": 12}):
        with pytest.raises(DataError, match=r"'.*cells' is a store of other images"):
            load_bbbc021_cells(bare, **SEARCH | other, store=tmp_path / "cells")
    assert not searched


def test_nuclei_are_searched_in_dapi_whatever_is_asked_for(bare):
    cells = load_bbbc021_cells(bare, **SEARCH, channels=["tubulin", "actin"])
    all_channels = load_bbbc021_cells(bare, **SEARCH)
    assert cells.pixels.channels == ("tubulin", "actin")
    pd.testing.assert_frame_equal(cells.table, all_channels.table)
    rows = np.arange(5)
    np.testing.assert_array_equal(cells.pixels.read(rows)[:, 0], all_channels.pixels.read(rows)[:, 1])


@pytest.mark.parametrize("store", [False, True])
def test_cells_without_bad_images(raw, tmp_path, store, caplog):
    places = {"store": tmp_path / "cells"} if store else {}
    whole = load_bbbc021_cells(raw, **SEARCH)
    shutil.rmtree(raw / "nuclei")
    bad = whole.table["image"].unique()[:3]
    fields = load_bbbc021(raw)
    cut, gone, empty = (Path(fields.pixels.name(int(row))) for row in bad)
    cut.write_bytes(cut.read_bytes()[:200])
    gone.unlink()
    empty.write_bytes(b"")
    shutil.rmtree(raw / "illumination")
    with pytest.raises(DataError, match="has no DAPI image of well ") as caught:
        load_bbbc021_cells(raw, **SEARCH, **places)
    assert caught.value.advice == "skip"
    cells = load_bbbc021_cells(raw, **SEARCH, **places, on_bad_image="skip")
    assert not cells.table["image"].isin(bad).any()
    assert 0.9 < len(cells) / (~whole.table["image"].isin(bad)).sum() < 1.1
    assert "is corrected without 3 images that cannot be read; the first: DAPI image" in caplog.text
    assert f"3 of {len(fields)} fields cannot be read" in caplog.text
    assert "0x" not in caplog.text
    assert len(load_bbbc021(raw, on_bad_image="skip")) == len(fields)
    cells.pixels.read(np.arange(len(cells)))


def test_published_nuclei_of_a_bad_image(tiny, raw, tmp_path):
    fields = load_bbbc021(raw)
    Path(fields.pixels.name(0)).write_bytes(b"")
    cells = load_bbbc021_cells(raw, size=24, nuclei_dir=tiny, store=tmp_path / "cells", workers=0, on_bad_image="skip")
    good = np.flatnonzero(cells.table["image"] != 0)
    cells.pixels.read(good)
    with pytest.raises(BadImageError, match="pack again to go on") as caught:
        load_bbbc021_cells(raw, size=24, nuclei_dir=tiny, store=tmp_path / "other", workers=0)
    assert caught.value.advice == "skip"


def test_pixels_that_are_not_numbers(bare):
    file = bare / "data" / "hdf5" / "Week1_20021.h5"
    with h5py.File(file, "a") as h5:
        h5["images"][0, :, 3, 4] = np.nan
    with pytest.raises(BadImageError, match=r"image 0 of '.*Week1_20021\.h5' holds 3 values that are no numbers"):
        load_bbbc021_cells(bare, **SEARCH)
    assert 0 not in load_bbbc021_cells(bare, **SEARCH, on_bad_image="skip").table["image"].to_numpy()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weaks": 3}, "no parameter 'weaks'"),
        ({"weeks": 1}, "weeks=1.*from 2"),
        ({"compounds": 9}, "do not fit in the 48"),
        ({"raw": "tar"}, "raw=tar"),
        ({"density": -1}, "density=-1"),
    ],
)
def test_wrong_parameters(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        simulate_bbbc021(tmp_path, **wrong)
    assert not list(tmp_path.rglob("*.h5"))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "simulated_bbbc021").write_text("a file")
    with pytest.raises(ConfigError, match=str(tmp_path / "simulated_bbbc021")) as caught:
        simulate_bbbc021(tmp_path, **TINY)
    assert caught.value.advice == "root_dir"
