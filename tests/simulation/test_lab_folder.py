"""Simulated lab folders: the files of each layout, and what is in them."""

import numpy as np
import pytest

from biomass.errors import ConfigError
from biomass.simulation.lab_folder import LAYOUTS, TREATMENTS, simulate_lab_folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_channel_of_every_field_is_a_file_and_the_same_arguments_give_the_same_files(layout, tmp_path) -> None:
    labs = [simulate_lab_folder(tmp_path / name, layout, sites=1, size=48) for name in "ab"]
    files = [sorted(path.relative_to(lab.images) for path in lab.images.rglob("*") if path.is_file()) for lab in labs]
    assert files[0] == files[1]
    assert all((labs[0].images / file).read_bytes() == (labs[1].images / file).read_bytes() for file in files[0])
    images = [f for f in files[0] if f.suffix in (".tif", ".tiff", ".png") and "thumb" not in f.name]
    assert len(images) == 3 * len(TREATMENTS) * len(LAYOUTS[layout].channels)
    assert labs[0].platemap.is_file()


def test_plates_look_different_and_treatments_do_something(tmp_path) -> None:
    screen = simulate_lab_folder(tmp_path / "lab", "imagexpress", sites=4).screen
    mean = screen.read(np.arange(len(screen))).astype(float).mean(axis=(2, 3))
    table = screen.table
    dmso = (table["control"] == "negative").to_numpy()
    plates = [mean[dmso & (table["plate"] == plate).to_numpy()] for plate in table["plate"].unique()]
    within = np.mean([one.std(axis=0) for one in plates], axis=0)
    between = np.std([one.mean(axis=0) for one in plates], axis=0)
    assert (between > within).any()
    one = (table["plate"] == table["plate"].iloc[0]).to_numpy()
    labels = [mean[one & (screen.labels == label)].mean(axis=0) for label in range(len(screen.classes))]
    assert (np.std(labels, axis=0) > within / 2).any()


def test_the_middle_plane_is_sharp_and_later_times_are_darker(tmp_path) -> None:
    from tifffile import imread

    lab = simulate_lab_folder(tmp_path / "lab", "cellvoyager", sites=1, planes=3, times=2)

    def read(time: int, plane: int) -> np.ndarray:
        return imread(next(lab.images.glob(f"*P01/*_B03_T000{time}F001L01A01Z0{plane}C01.tif"))).astype(float)

    rough = [np.abs(np.diff(read(1, plane))).mean() for plane in (1, 2, 3)]
    assert rough[1] > max(rough[0], rough[2])
    assert read(2, 2).mean() < read(1, 2).mean()
    np.testing.assert_array_equal(read(1, 2), lab.screen.read(np.array([0]))[0, 0])


def test_a_layout_that_there_is_not_and_one_that_is_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="phenix"):
        simulate_lab_folder(tmp_path / "lab", "phenx")
    with pytest.raises(ConfigError, match="0 planes"):
        simulate_lab_folder(tmp_path / "lab", "phenix", planes=0)
