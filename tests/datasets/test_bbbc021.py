"""BBBC021 as a Screen: the correction of illumination, both file formats, and what may be wrong with them."""

import pickle
import shutil
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from biomass.channels import match_channels
from biomass.datasets import bbbc021, bbbc021_raw
from biomass.datasets.bbbc021 import annotate, load_bbbc021, load_bbbc021_cells
from biomass.errors import BadImageError, ConfigError, DataError
from biomass.pixels import bbbc021_tiffs
from biomass.pixels.bbbc021_files import link_plates, write_plate
from biomass.pixels.illumination import Histogram, illumination, measure_channel, rescale, smooth

SIZE = (24, 30)


# --- illumination -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "sigma"), [((17, 23), 2.0), ((32, 40), 15.6), ((9, 14), 30.0), ((1, 5), 3.0)])
def test_smooth_is_the_gaussian_filter_of_scipy(shape, sigma):
    image = np.random.default_rng(0).gamma(2.0, 100.0, shape)
    np.testing.assert_allclose(smooth(image, sigma), gaussian_filter(image, sigma), rtol=1e-10)


def test_illumination_is_relative_to_its_floor():
    mean = np.random.default_rng(1).gamma(2.0, 100.0, SIZE)
    light = gaussian_filter(mean, 5.0)
    floor = np.percentile(light, 0.02)
    np.testing.assert_allclose(illumination(mean, 5.0), np.maximum(light, floor) / floor, rtol=1e-6)
    assert illumination(mean, 5.0).min() == 1
    assert (illumination(np.zeros(SIZE)) == 1).all()


@pytest.mark.parametrize("n", [1, 2, 9, 1000])
def test_histogram_gives_exact_percentiles(n):
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.gamma(2.0, 300.0, n), rng.integers(0, 5, n)]).astype(np.float16)
    histogram = Histogram()
    for part in np.array_split(values.astype(np.float32), 3):
        histogram.add(part)
    for percent in (0, 0.1, 33.3, 50, 99.9, 100):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values.astype(np.float64), percent))


def test_histogram_rounds_by_half_a_tenth_of_a_percent_at_most():
    values = np.random.default_rng(3).uniform(1, 70_000, 5000)
    histogram = Histogram()
    histogram.add(values)
    assert histogram.percentile(40) == pytest.approx(np.percentile(values, 40), rel=5e-4)
    assert histogram.percentile(100) == 65504


def reference_correction(images: np.ndarray, sites: np.ndarray, sigma: float) -> np.ndarray:
    """What pybbbc does with a channel of a plate (N, H, W), in double precision."""
    corrected = images.astype(np.float64)
    for site in np.unique(sites):
        light = gaussian_filter(corrected[sites == site].mean(axis=0), sigma)
        floor = np.percentile(light[light > 0], 0.02)
        corrected[sites == site] /= np.maximum(light, floor) / floor
    low, high = np.percentile(corrected, (0.1, 99.9))
    return np.clip((corrected - low) / (high - low), 0, 1)


def test_correction_of_a_plate():
    rng = np.random.default_rng(4)
    sites = rng.permutation(np.arange(12) % 3)
    lamp = 1 + np.linspace(0, 1, SIZE[1]) * np.array([0.2, 0.5, 1.0])[sites][:, None, None]
    images = (lamp * rng.gamma(2.0, 300.0, (12, *SIZE)) + 400).astype(np.uint16)
    light, low, high = measure_channel(lambda: zip(sites.tolist(), images, strict=True), 3, sigma=6.0)
    found = np.stack([rescale(image, light[site], low, high) for site, image in zip(sites, images, strict=True)])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, reference_correction(images, sites, 6.0), atol=1.5e-3)


def test_a_channel_that_is_the_same_everywhere_becomes_zero():
    images = np.full((2, *SIZE), 700, np.uint16)
    light, low, high = measure_channel(lambda: zip([0, 0], images, strict=True), 1)
    assert low == high
    assert (rescale(images[0], light[0], low, high) == 0).all()


# --- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [
        (("DAPI", "tubulin", "actin"), ("actin", "tubulin", "DAPI"), (2, 1, 0)),
        (("nuclei", "ER", "actin"), ("actin", "tubulin", "DAPI"), (2, 1, 0)),
        (("DNA",), ("ER", "Hoechst"), (1,)),
        (("er", "tubulin"), ("Tubulin", "ER"), (1, 0)),  # a stand-in only where there is nothing closer
        (("mito",), ("mito", "nuclei"), (0,)),
    ],
)
def test_channels_are_matched_by_name(wanted, available, found):
    assert match_channels(wanted, available) == found


@pytest.mark.parametrize(
    ("wanted", "available", "message"),
    [
        (("RNA",), ("actin", "DAPI"), "no channel 'RNA'; .*actin.*DAPI"),
        (("nuclei",), ("DAPI", "Hoechst"), "'nuclei' may be 'DAPI' or 'Hoechst'"),
        (("ER", "tubulin"), ("tubulin", "DAPI"), "'tubulin' would be used for 'ER' and 'tubulin'"),
    ],
)
def test_channels_that_do_not_match(wanted, available, message):
    with pytest.raises(ConfigError, match=message):
        match_channels(wanted, available)


# --- a small BBBC021 --------------------------------------------------------------------------------------------------


def plate_table(plate: str, wells: dict[str, tuple[str, float, str]], sites: int = 2) -> pd.DataFrame:
    rows = [(plate, well, site, 1, *what) for site in range(1, sites + 1) for well, what in wells.items()]
    return pd.DataFrame(rows, columns=["plate", "well", "site", "replicate", "compound", "concentration", "moa"])


WELLS = {
    "B02": ("DMSO", 0.0, "DMSO"),
    "E02": ("taxol", 0.3, "Microtubule stabilizers"),
    "C05": ("taxol", 0.3, "Microtubule stabilizers"),
    "D06": ("AZ-C", 0.003, "Eg5 inhibitors"),
    "E07": ("acyclovir", 10.0, ""),
}
PLATES = {"Week1_22123": WELLS, "Week2_24381": {well: WELLS[well] for well in ("B02", "D06", "E07")}}


@pytest.fixture
def pybbbc(tmp_path) -> Path:
    """A pybbbc dataset of two plates with 10 and 6 images."""
    rng = np.random.default_rng(5)
    files = []
    for plate, wells in PLATES.items():
        table = plate_table(plate, wells)
        files.append(tmp_path / "data" / "hdf5" / f"{plate}.h5")
        write_plate(files[-1], rng.random((len(table), 3, *SIZE)).astype(np.float16), table)
    link_plates(tmp_path / "data" / "bbbc021.h5", files)
    return tmp_path


@pytest.fixture
def raw(tmp_path) -> Path:
    """The same as raw files: one plate in a folder, one in an archive."""
    rng = np.random.default_rng(6)
    rows = []
    for plate, wells in PLATES.items():
        folder = tmp_path / plate.split("_")[0] / plate
        folder.mkdir(parents=True)
        for row in plate_table(plate, wells).itertuples():
            names = {c: f"{row.well}_s{row.site}_w{w}AB{w}.tif" for c, w in (("DAPI", 1), ("Tubulin", 2), ("Actin", 4))}
            for name in names.values():
                Image.fromarray(rng.integers(200, 4000, SIZE, np.uint16)).save(folder / name)
            rows.append(
                {f"Image_FileName_{c}": name for c, name in names.items()}
                | {
                    "Image_PathName_DAPI": f"{plate.split('_')[0]}/{plate}",
                    "Image_Metadata_Plate_DAPI": plate,
                    "Image_Metadata_Well_DAPI": row.well,
                    "Replicate": 1,
                    "Image_Metadata_Compound": row.compound,
                    "Image_Metadata_Concentration": row.concentration,
                }
            )
    pd.DataFrame(rows).to_csv(tmp_path / bbbc021_raw.IMAGE_TABLE, index=False)
    moas = {(c, d, m) for c, d, m in WELLS.values() if m}
    pd.DataFrame(sorted(moas), columns=["compound", "concentration", "moa"]).to_csv(
        tmp_path / bbbc021_raw.MOA_TABLE, index=False
    )
    second = tmp_path / "Week2" / "Week2_24381"
    with zipfile.ZipFile(tmp_path / "BBBC021_v1_images_Week2_24381.zip", "w") as archive:
        for file in second.iterdir():
            archive.write(file, f"Week2_24381/{file.name}")
    shutil.rmtree(second)
    return tmp_path


# --- pybbbc files -----------------------------------------------------------------------------------------------------


def test_the_screen_of_a_pybbbc_file(pybbbc):
    screen = load_bbbc021(pybbbc, fields="all")
    assert len(screen) == 16
    assert screen.classes == ("DMSO", "Eg5 inhibitors", "Microtubule stabilizers")
    assert screen.plate_names == ("Week1/Week1_22123", "Week2/Week2_24381")
    table = screen.table.set_index(["plate", "well"]).sort_index()
    assert set(table.loc[("Week1_22123", "B02"), "control"]) == {"negative"}
    assert set(table.loc[("Week1_22123", "E02"), "control"]) == {"positive"}
    assert set(table.loc[("Week1_22123", "C05"), "control"]) == {""}  # taxol as a treatment
    assert set(table.loc[("Week1_22123", "E07"), "moa"]) == {""}
    assert set(table.loc[("Week1_22123", "E07"), "label"]) == {-1}
    assert set(table["concentration"]) == {0.0, 0.003, 0.3, 10.0}  # not the half-precision 0.0030002594
    assert set(screen.table["split"]) == {"test"}


def test_fields_as_ljosa_et_al_took_them(pybbbc):
    screen = load_bbbc021(pybbbc)
    assert set(screen.table["compound"]) == {"DMSO", "taxol", "AZ-C"}
    assert set(screen.table["control"]) == {"", "negative"}
    assert len(screen) == 10
    everything = load_bbbc021(pybbbc, fields="all")
    kept = everything.table.index[(everything.table["moa"] != "") & (everything.table["control"] != "positive")]
    np.testing.assert_array_equal(screen.pixels.read(np.arange(10)), everything.pixels.read(kept.to_numpy()))


def test_channels_come_in_the_order_of_their_names(pybbbc):
    with h5py.File(pybbbc / "data" / "bbbc021.h5") as h5:
        stored = h5["images"][()]  # actin, tubulin, DAPI
    rows = np.array([13, 2, 2, 7])
    screen = load_bbbc021(pybbbc, fields="all")
    assert screen.pixels.channels == ("DAPI", "tubulin", "actin")
    assert screen.pixels.size == SIZE
    images = screen.pixels.read(rows)
    assert images.dtype == np.float16
    np.testing.assert_array_equal(images, stored[rows][:, ::-1])
    swapped = load_bbbc021(pybbbc, fields="all", channels=["actin", "nuclei"])
    assert swapped.pixels.channels == ("actin", "DAPI")
    np.testing.assert_array_equal(swapped.pixels.read(rows), stored[rows][:, [0, 2]])


def test_pixels_survive_pickling_while_open(pybbbc):
    screen = load_bbbc021(pybbbc)
    images = screen.pixels.read(np.arange(3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(screen.pixels)).read(np.arange(3)), images)


def test_a_missing_plate_file_is_refused(pybbbc):
    missing = pybbbc / "data" / "hdf5" / "Week2_24381.h5"
    missing.unlink()
    with h5py.File(pybbbc / "data" / "bbbc021.h5") as h5:
        assert not h5["images"][12:].any()  # what HDF5 makes of it
    with pytest.raises(DataError, match=r"plate file '.*Week2_24381\.h5' of .* is missing"):
        load_bbbc021(pybbbc)
    screen = load_bbbc021(pybbbc, plates=["Week1_22123"])
    assert screen.plate_names == ("Week1/Week1_22123",)


def test_a_plate_file_that_goes_missing_later(pybbbc):
    screen = load_bbbc021(pybbbc, fields="all")
    (pybbbc / "data" / "hdf5" / "Week2_24381.h5").unlink()
    with pytest.raises(BadImageError, match="Week2_24381") as caught:
        screen.pixels.read(np.array([0, 12]))
    assert caught.value.row == 12


def test_a_damaged_plate_file(pybbbc):
    (pybbbc / "data" / "hdf5" / "Week2_24381.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"Week2_24381\.h5' cannot be read"):
        load_bbbc021(pybbbc)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "holds 1 values that are no numbers"),
        (np.inf, "holds 1 values"),
        (-0.5, "holds values from -0.5 to"),
        (2, "holds values from .* to 2,"),
    ],
)
def test_pixels_that_are_no_numbers_or_out_of_range_are_of_one_image(pybbbc, value, message):
    with h5py.File(pybbbc / "data" / "hdf5" / "Week1_22123.h5", "r+") as h5:
        h5["images"][1, 2, 3, 4] = value
    pixels = load_bbbc021(pybbbc, fields="all").pixels
    row = next(row for row in range(len(pixels)) if pixels.name(row).startswith("image 1 of"))
    with pytest.raises(BadImageError, match=rf"image 1 of '.*Week1_22123\.h5' {message}") as caught:
        pixels.read(np.arange(len(pixels)))
    assert caught.value.row == row
    assert len(pixels.read(np.delete(np.arange(len(pixels)), row))) == len(pixels) - 1


def test_a_chunk_that_becomes_more_than_a_chunk_is_not_unpacked(pybbbc):
    file = pybbbc / "data" / "hdf5" / "Week1_22123.h5"
    with h5py.File(file, "r+") as h5:
        images = h5["images"][()]
        del h5["images"]
        packed = h5.create_dataset("images", data=images, chunks=(1, 1, *SIZE), compression="gzip")
        packed.id.write_direct_chunk((4, 1, 0, 0), zlib.compress(bytes(1 << 21)))
    pixels = load_bbbc021(pybbbc, fields="all").pixels
    row = next(row for row in range(len(pixels)) if pixels.name(row).startswith("image 4 of"))
    with pytest.raises(BadImageError, match="not as large as a chunk") as caught:
        pixels.read(np.arange(len(pixels)))
    assert caught.value.row == row
    assert len(pixels.read(np.delete(np.arange(len(pixels)), row))) == len(pixels) - 1


def test_plates_of_different_length_laid_out_as_pybbbc_does(pybbbc):
    """pybbbc maps every plate as if it held as many images as the first: here 6 of the longer one would be lost."""
    file = pybbbc / "data" / "bbbc021.h5"
    file.unlink()
    short, long = (pybbbc / "data" / "hdf5" / f"{plate}.h5" for plate in ("Week2_24381", "Week1_22123"))
    with h5py.File(file, "w") as h5:
        for name, shape in (("images", (6, 3, *SIZE)), ("site", (6,))):
            layout = h5py.VirtualLayout((12, *shape[1:]), np.float16 if name == "images" else np.uint8)
            for i, plate in enumerate((short, long)):
                layout[i * 6 : (i + 1) * 6] = h5py.VirtualSource(str(plate), name, shape)  # absolute, as pybbbc writes
            h5.create_virtual_dataset(name, layout)
    screen = load_bbbc021(pybbbc, fields="all")
    assert screen.table["plate"].value_counts().to_dict() == {"Week1_22123": 10, "Week2_24381": 6}
    with h5py.File(long) as h5:
        np.testing.assert_array_equal(screen.pixels.read(np.arange(6, 16)), h5["images"][()][:, ::-1])
    # The folder is moved: the absolute paths are wrong, the plates lie beside the file.
    (pybbbc / "data").rename(pybbbc / "bbbc021")
    assert len(load_bbbc021(pybbbc, fields="all")) == 16


def test_text_as_bytes_of_fixed_length(pybbbc):
    file = pybbbc / "data" / "hdf5" / "Week1_22123.h5"
    with h5py.File(file, "a") as h5:
        for name in ("well", "plate", "compound", "moa"):
            values = np.array([v.encode() if isinstance(v, str) else v for v in h5[name][()]], dtype="S32")
            del h5[name]
            h5[name] = values
    screen = load_bbbc021(pybbbc)
    assert set(screen.table["compound"]) == {"DMSO", "taxol", "AZ-C"}
    assert set(screen.table["well"]) == {"B02", "C05", "D06"}


def test_a_single_file_without_virtual_datasets(pybbbc):
    shutil.copy(pybbbc / "data" / "hdf5" / "Week1_22123.h5", pybbbc / "bbbc021.h5")
    assert load_bbbc021(pybbbc).plate_names == ("Week1/Week1_22123",)


def test_a_dataset_is_missing_or_too_short(pybbbc):
    file = pybbbc / "data" / "hdf5" / "Week1_22123.h5"
    with h5py.File(file, "a") as h5:
        moa = h5["moa"][:3]
        del h5["moa"]
    with pytest.raises(DataError, match="has no dataset 'moa'"):
        load_bbbc021(pybbbc)
    with h5py.File(file, "a") as h5:
        h5["moa"] = moa
    with pytest.raises(DataError, match=r"10 images, but 'moa' has the shape \(3,\)"):
        load_bbbc021(pybbbc)


def test_it_is_looked_for_where_pybbbc_puts_it(pybbbc, monkeypatch):
    home = pybbbc / "home"
    (home / ".cache").mkdir(parents=True)
    (pybbbc / "data").rename(home / ".cache" / "bbbc021")
    monkeypatch.setenv("HOME", str(home))
    assert len(load_bbbc021()) == 10
    with pytest.raises(DataError, match="no BBBC021 below"):
        load_bbbc021(pybbbc)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "replicate",
            "x",
            r"'.*bbbc021\.h5' says replicate 'x' of plate Week1_22123, well B02, site 1: .* whole number",
        ),
        ("replicate", 1.5, r"says replicate '1\.5'"),
        ("replicate", np.nan, r"says replicate nan of image 0"),
        ("concentration", "x", r"Week1_22123\.h5' says concentration 'x'"),
        ("compound", b"\xff\xfe", r"Week1_22123\.h5' holds the compound b'\\xff\\xfe', which is not UTF-8"),
        ("well", "B02", r"plate Week1_22123, well B02, site 1: image 0 of '.*Week1_22123\.h5' and image 1"),
        ("moa", "null", r"mechanism of none of the 3 treatments is known: make '.*bbbc021\.h5' again with pybbbc$"),
    ],
)
def test_damaged_values_of_a_plate_file(pybbbc, name, value, message):
    for file in (pybbbc / "data" / "hdf5").iterdir():
        with h5py.File(file, "a") as h5:
            n = len(h5[name])
            del h5[name]
            h5[name] = [value] * n
    with pytest.raises(DataError, match=message) as caught:
        load_bbbc021(pybbbc)
    assert "\n" not in str(caught.value)
    assert "csv" not in str(caught.value)


def test_a_damaged_plate_can_be_left_out(pybbbc):
    (pybbbc / "data" / "hdf5" / "Week2_24381.h5").write_bytes(b"no HDF5")
    assert len(load_bbbc021(pybbbc, plates=["Week1_22123"], fields="all")) == 10


def test_messages_say_things_once(pybbbc):
    screen = load_bbbc021(pybbbc, fields="all")
    missing = pybbbc / "data" / "hdf5" / "Week2_24381.h5"
    missing.unlink()
    with pytest.raises(DataError, match="is missing: make it again") as caught:
        load_bbbc021(pybbbc)
    assert str(caught.value).count(str(missing)) == 1
    with pytest.raises(BadImageError, match=r"cannot be read \(the file is missing\): make it again") as caught:
        screen.pixels.read(np.array([12]))
    assert str(caught.value).count(str(missing)) == str(caught.value).count("pybbbc, or") == 1


def test_plates_that_are_not_there_at_all(pybbbc):
    shutil.rmtree(pybbbc / "data" / "hdf5")
    with pytest.raises(ConfigError, match=r"'nope' .*there is: Week1_22123, Week2_24381$"):
        load_bbbc021(pybbbc, plates=["nope"])


@pytest.mark.parametrize("dataset", ["pybbbc", "raw"])
def test_no_plates_and_no_fields(dataset, request):
    root = request.getfixturevalue(dataset)
    with pytest.raises(ConfigError, match="no plate is named"):
        load_bbbc021(root, plates=[])
    with pytest.raises(ConfigError, match="on_bad_image 'maybe' is unknown"):
        load_bbbc021(root, on_bad_image="maybe")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plates": ["Week1_22132"]}, "'Week1_22132'.*'Week1_22123'"),
        ({"fields": "some"}, "fields 'some' is unknown"),
        ({"channels": ["mito"]}, "no channel 'mito'"),
    ],
)
def test_wrong_options(pybbbc, options, message):
    with pytest.raises(ConfigError, match=message):
        load_bbbc021(pybbbc, **options)


def test_no_mechanism_is_known():
    table = plate_table("Week1_1", {"B02": ("DMSO", 0.0, ""), "C05": ("taxol", 0.3, "")})
    with pytest.raises(DataError, match="mechanism of none of the 1 treatments"):
        annotate(table)


# --- raw files --------------------------------------------------------------------------------------------------------


def read_raw(root: Path, plate: str, name: str) -> np.ndarray:
    if plate == "Week1_22123":
        return np.asarray(Image.open(root / "Week1" / plate / name))
    with zipfile.ZipFile(root / f"BBBC021_v1_images_{plate}.zip") as archive:
        return np.asarray(Image.open(archive.open(f"{plate}/{name}")))


def test_raw_images_are_corrected_as_pybbbc_does(raw):
    screen = load_bbbc021(raw, fields="all")
    assert len(screen) == 16
    images = screen.pixels.read(np.arange(16))
    assert images.dtype == np.float16
    for plate in PLATES:
        rows = np.flatnonzero(screen.table["plate"] == plate)
        sites = screen.table["site"].astype(int).to_numpy()[rows]
        for c, wave in enumerate((1, 2, 4)):
            names = [
                f"{w}_s{s}_w{wave}AB{wave}.tif"
                for w, s in zip(screen.table["well"].to_numpy()[rows], sites, strict=True)
            ]
            expected = reference_correction(np.stack([read_raw(raw, plate, n) for n in names]), sites, 500)
            np.testing.assert_allclose(images[rows, c], expected, atol=1.5e-3)


def test_raw_fields_are_chosen_as_in_pybbbc_files(raw):
    screen = load_bbbc021(raw)
    assert len(screen) == 10
    assert set(screen.table["compound"]) == {"DMSO", "taxol", "AZ-C"}
    everything = load_bbbc021(raw, fields="all")
    kept = everything.table.index[(everything.table["moa"] != "") & (everything.table["control"] != "positive")]
    rows = np.array([9, 0, 4])
    read = pickle.loads(pickle.dumps(screen.pixels)).read(rows)
    np.testing.assert_array_equal(read, everything.pixels.read(kept.to_numpy()[rows]))


def test_corrections_are_measured_once(raw, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    load_bbbc021(raw, cache_dir=cache)
    assert sorted(file.name for file in cache.iterdir()) == ["Week1_22123.h5", "Week2_24381.h5"]
    measured = []
    monkeypatch.setattr(bbbc021_tiffs, "measure_plate", lambda file, *rest: measured.append(file.stem))
    load_bbbc021(raw, cache_dir=cache)
    assert measured == []
    table = pd.read_csv(raw / bbbc021_raw.IMAGE_TABLE)
    table.drop(index=0).to_csv(raw / bbbc021_raw.IMAGE_TABLE, index=False)  # now the plate's mean is another one
    load_bbbc021(raw, cache_dir=cache)
    assert measured == ["Week1_22123"]


@pytest.mark.parametrize("plate", list(PLATES))
def test_a_missing_channel_is_named(raw, plate):
    if plate == "Week1_22123":
        (raw / "Week1" / plate / "D06_s2_w4AB4.tif").unlink()
    else:
        file = raw / "BBBC021_v1_images_Week2_24381.zip"
        with zipfile.ZipFile(file) as archive:
            content = {n: archive.read(n) for n in archive.namelist() if not n.endswith("D06_s2_w4AB4.tif")}
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    with pytest.raises(DataError, match=rf"{plate} has no actin image of well D06, site 2: 'D06_s2_w4AB4\.tif'"):
        load_bbbc021(raw)
    other = next(p for p in PLATES if p != plate)
    assert set(load_bbbc021(raw, plates=[other]).table["plate"]) == {other}


def test_a_damaged_image_is_named(raw):
    file = raw / "Week1" / "Week1_22123" / "C05_s1_w2AB2.tif"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(DataError, match=r"tubulin image '.*C05_s1_w2AB2\.tif' cannot be read"):
        load_bbbc021(raw)
    assert not list((raw / "illumination").glob("*Week1*"))  # nothing half-written
    file.write_bytes(whole)
    screen = load_bbbc021(raw)
    row = int(np.flatnonzero((screen.table["well"] == "C05") & (screen.table["site"] == "1"))[0])
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(file)
    with pytest.raises(BadImageError, match=r"C05_s1_w2AB2\.tif' cannot be read \(it is 5 x 5") as caught:
        screen.pixels.read(np.array([row]))
    assert caught.value.row == row


@pytest.mark.parametrize(("offset", "value"), [(8, b"\x01\x00"), (10, b"\x63\x00")], ids=["encrypted", "method 99"])
def test_an_archive_that_cannot_be_unpacked(raw, offset, value):
    file = raw / "BBBC021_v1_images_Week2_24381.zip"
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the last member, in the directory at the end
    data[entry + offset : entry + offset + 2] = value
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"Week2_24381\.zip.* cannot be read \(.*download the plate again") as caught:
        load_bbbc021(raw, plates=["Week2_24381"], fields="all")
    assert "\n" not in str(caught.value)


def test_a_missing_plate(raw):
    shutil.rmtree(raw / "Week1")
    with pytest.raises(DataError, match="no images of plate Week1_22123"):
        load_bbbc021(raw)
    assert len(load_bbbc021(raw, plates="Week2_24381", fields="all")) == 6


def test_a_damaged_archive(raw):
    (raw / "BBBC021_v1_images_Week2_24381.zip").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"Week2_24381\.zip' cannot be read"):
        load_bbbc021(raw)


def test_a_moa_table_that_lacks_a_compound(raw, caplog):
    file = raw / bbbc021_raw.MOA_TABLE
    table = pd.read_csv(file)
    table[~table["compound"].isin(["AZ-C", "DMSO"])].to_csv(file, index=False)
    with caplog.at_level("INFO"):
        screen = load_bbbc021(raw, fields="all")
    assert "mechanism of 1 of 3 treatments is known" in caplog.text
    lacking = screen.table[screen.table["compound"] == "AZ-C"]
    assert set(lacking["label"]) == {-1}
    assert set(lacking["moa"]) == {""}
    assert screen.classes == ("DMSO", "Microtubule stabilizers")  # DMSO is known without a table
    assert screen.negative_controls.sum() == 4


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (bbbc021_raw.IMAGE_TABLE, lambda t: t.drop(columns="Replicate"), "no column 'Replicate'"),
        (
            bbbc021_raw.IMAGE_TABLE,
            lambda t: pd.concat([t, t.iloc[:1]]),
            "well B02, site 1: row 2 .* and row 18",
        ),
        (bbbc021_raw.IMAGE_TABLE, lambda t: t.assign(Image_FileName_DAPI="x.tif"), "row 2 .*'x.tif'"),
        (
            bbbc021_raw.IMAGE_TABLE,
            lambda t: t.assign(Image_Metadata_Concentration="high"),
            "row 2 .* 'high' for 'Image_Metadata_Concentration'",
        ),
        (
            bbbc021_raw.IMAGE_TABLE,
            lambda t: t.assign(Replicate="x"),
            "says replicate 'x' of plate Week1_22123, well B02",
        ),
        (bbbc021_raw.IMAGE_TABLE, lambda t: t.assign(Replicate=""), "says replicate '' of plate"),
        (bbbc021_raw.IMAGE_TABLE, lambda t: t.assign(Replicate="inf"), "says replicate 'inf' of plate"),
        (bbbc021_raw.IMAGE_TABLE, lambda t: t.iloc[:0], "lists no fields"),
        (
            bbbc021_raw.MOA_TABLE,
            lambda t: pd.concat([t, t.iloc[:1].assign(moa="DNA damage")]),
            "compound AZ-C, concentration 0.003: row 2 .* and row 5",
        ),
    ],
)
def test_damaged_tables(raw, table, change, message):
    change(pd.read_csv(raw / table)).to_csv(raw / table, index=False)
    with pytest.raises(DataError, match=message):
        load_bbbc021(raw)


def test_tables_of_other_spelling_give_the_same_screen(raw, caplog):
    expected = load_bbbc021(raw, fields="all").table
    images, moas = pd.read_csv(raw / bbbc021_raw.IMAGE_TABLE), pd.read_csv(raw / bbbc021_raw.MOA_TABLE)
    images["Image_Metadata_Well_DAPI"] = images["Image_Metadata_Well_DAPI"].str.replace("0", "").str.lower()
    images.loc[::2, "Image_Metadata_Compound"] += " "
    images.to_csv(raw / bbbc021_raw.IMAGE_TABLE, index=False, sep=";", decimal=",", encoding="utf-16")
    moas.assign(compound="\u00a0" + moas["compound"]).to_csv(raw / bbbc021_raw.MOA_TABLE, index=False, sep="\t")
    pd.testing.assert_frame_equal(load_bbbc021(raw, fields="all").table, expected)
    assert "no partner" not in caplog.text
    moas.replace({"compound": {"AZ-C": "az-c"}}).to_csv(raw / bbbc021_raw.MOA_TABLE, index=False)
    load_bbbc021(raw, fields="all")
    assert "no compound 'az-c' there" in caplog.text
    assert "did you mean 'AZ-C'" in caplog.text


@pytest.mark.parametrize(("column", "name"), [("Plate_DAPI", "plate"), ("Well_DAPI", "well"), ("Compound", "compound")])
def test_a_missing_name_is_an_error_with_its_row(raw, column, name):
    table = pd.read_csv(raw / bbbc021_raw.IMAGE_TABLE)
    table.loc[3, f"Image_Metadata_{column}"] = "NA"
    table.to_csv(raw / bbbc021_raw.IMAGE_TABLE, index=False)
    with pytest.raises(DataError, match=rf"row 5 of 'BBBC021_v1_image\.csv' has no {name}"):
        load_bbbc021(raw)


def test_replicates_may_be_written_with_a_point(raw):
    table = pd.read_csv(raw / bbbc021_raw.IMAGE_TABLE)
    table.assign(Replicate="1.0").to_csv(raw / bbbc021_raw.IMAGE_TABLE, index=False)
    assert set(load_bbbc021(raw).table["replicate"]) == {1}


def test_a_cache_that_cannot_be_written(raw):
    (raw / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cannot write '.*file/cache'") as caught:
        load_bbbc021(raw, cache_dir=raw / "file" / "cache")
    assert caught.value.advice == "cache_dir"


def test_corrections_without_bad_images(raw, caplog):
    file = raw / "Week1" / "Week1_22123" / "B02_s1_w1AB1.tif"
    whole, expected = file.read_bytes(), load_bbbc021(raw, fields="all").pixels.read(np.arange(1))
    shutil.rmtree(raw / "illumination")
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(file)  # the first one, of whose size the others are not
    with pytest.raises(DataError, match=r"B02_s1_w1AB1\.tif' cannot be read \(it is 5 x 5, the others 24 x 30"):
        load_bbbc021(raw, check_files=False)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read \(it is not a TIFF\): download the plate again"):
        load_bbbc021(raw)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        load_bbbc021(raw, check_files=False)
    screen = load_bbbc021(raw, fields="all", on_bad_image="skip")
    assert "plate Week1_22123 is corrected without 1 images that cannot be read" in caplog.text
    screen.pixels.read(np.arange(1, 16))
    with pytest.raises(BadImageError, match=r"B02_s1_w1AB1\.tif") as caught:
        screen.pixels.read(np.array([3, 0]))
    assert caught.value.row == 0
    file.write_bytes(whole)  # all are there again: the correction is measured with all of them
    np.testing.assert_array_equal(load_bbbc021(raw, fields="all").pixels.read(np.arange(1)), expected)


def test_a_channel_of_a_site_without_images(raw):
    folder = raw / "Week1" / "Week1_22123"
    for file in folder.glob("*_s2_w4*.tif"):
        file.unlink()
    screen = load_bbbc021(raw, on_bad_image="skip")
    assert np.isfinite(screen.pixels.read(np.flatnonzero(screen.table["site"] == "1"))).all()
    for file in folder.glob("*_w4*.tif"):
        file.unlink()
    shutil.rmtree(raw / "illumination")
    with pytest.raises(DataError, match=r"none of the 10 actin images of plate Week1_22123 can be read;") as caught:
        load_bbbc021(raw, on_bad_image="skip")
    assert caught.value.advice == "plates"


@pytest.mark.parametrize("channels", [["DAPI", "tubulin", "actin"], ["actin"]])
def test_a_dataset_is_opened_once_for_its_cells(raw, monkeypatch, channels):
    calls = []
    for module, name in ((bbbc021_raw, "read_tables"), (bbbc021, "open_raw")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real: calls.append(real.__name__) or real(*args))
    monkeypatch.setattr("biomass.cells.search.find_nuclei", lambda *_: (np.full((1, 2), 12.0), np.ones(1)))
    cells = load_bbbc021_cells(raw, size=8, channels=channels, workers=1)
    assert calls == ["read_tables", "open_raw"]
    assert cells.fields is not None
    assert cells.pixels.channels == cells.fields.pixels.channels == tuple(channels)
    expected = load_bbbc021(raw, channels=channels)
    pd.testing.assert_frame_equal(cells.fields.table, expected.table)
    np.testing.assert_array_equal(cells.fields.read(np.arange(3)), expected.read(np.arange(3)))
    np.testing.assert_array_equal(cells.read(np.array([2]))[0], expected.read(np.array([2]))[0, :, 8:16, 8:16])


def test_no_moa_table(raw):
    (raw / bbbc021_raw.MOA_TABLE).unlink()
    with pytest.raises(DataError, match=r"no table '.*BBBC021_v1_moa\.csv'"):
        load_bbbc021(raw)


# --- real files -------------------------------------------------------------------------------------------------------


def test_the_wells_of_ljosa_et_al(real_data):
    folder = real_data / "bbbc021_profiles"
    table, classes = annotate(bbbc021_raw.read_tables(folder))
    assert len(table) == 13200
    assert len(classes) == 13
    kept = table[(table["moa"] != "") & (table["control"] != "positive")]
    published = pd.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz", usecols=[0, 1], dtype=str)
    assert set(map(tuple, kept[["plate", "well"]].to_numpy())) == set(map(tuple, published.to_numpy()))
    treatments = kept[kept["control"] == ""].drop_duplicates(["compound", "concentration"])
    assert len(treatments) == 103
    profiles = pd.read_csv(folder / "treatment_profiles.csv.gz", usecols=["compound", "concentration", "moa"])
    both = treatments.merge(profiles, on=["compound", "concentration"])
    assert len(both) == 103
    assert (both["moa_x"] == both["moa_y"]).all()


@pytest.fixture
def real_fields(real_data, tmp_path):
    """The real TIFFs as a raw collection of one plate with one well."""
    table = pd.read_csv(real_data / "bbbc021_profiles" / "BBBC021_v1_image.csv.gz")
    table = table[(table["Image_Metadata_Plate_DAPI"] == "Week2_24381") & (table["Image_Metadata_Well_DAPI"] == "B02")]
    shutil.copy(real_data / "bbbc021_profiles" / "BBBC021_v1_moa.csv", tmp_path)
    (tmp_path / "Week2_24381").symlink_to(real_data / "bbbc021_fields")
    return tmp_path, table


def write_sites(root: Path, table: pd.DataFrame, sites: str) -> None:
    table = table[table["Image_FileName_DAPI"].str.contains(f"_s[{sites}]_")]
    table.to_csv(root / bbbc021_raw.IMAGE_TABLE, index=False)


def test_a_real_field_without_actin_is_refused(real_fields):
    root, table = real_fields
    write_sites(root, table, "123")
    with pytest.raises(DataError, match=r"no actin image of well B02, site 3: 'Week2_180607_B02_s3_w4.*\.tif'"):
        load_bbbc021(root)


def test_real_fields_and_their_cells(real_fields):
    root, table = real_fields
    write_sites(root, table, "12")
    screen = load_bbbc021(root)
    assert screen.pixels.size == (1024, 1280)
    assert screen.negative_controls.all()
    images = screen.pixels.read(np.arange(2)).astype(np.float32)
    assert images.min() == 0
    assert images.max() == 1
    assert (images[:, 0] > 0.2).mean() < 0.3 < (images[:, 2] > 0.05).mean()  # nuclei cover less than actin does
    cells = load_bbbc021_cells(root, size=68)
    counts = cells.table["image"].value_counts()
    assert set(counts.index) == {0, 1}
    assert counts.between(60, 200).all()
    crops = cells.pixels.read(np.arange(len(cells))).astype(np.float32)
    middle = crops[:, 0, 24:44, 24:44].mean(axis=(1, 2))
    corner = crops[:, 0, :6, :6].mean(axis=(1, 2))
    assert (middle > corner).mean() > 0.95  # a nucleus in the middle of every crop
