"""Images that a run keeps: which are chosen, and that all plates have one grey scale."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from biomass.errors import BadImageError
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen
from biomass.training.samples import save_samples
from biomass.transforms.intensity import Standardize


def make(images: np.ndarray, plates: list[str], control: list[str] | str = "") -> Screen:
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * len(images)) | {"plate": plates, "label": 0, "control": control})
    table["well"] = [f"A{i % 12 + 1:02d}" for i in range(len(images))]
    return make_screen(table, VectorPixels(images, ("DNA", "actin")), ["taxol"])


def identity(images: torch.Tensor) -> torch.Tensor:
    return images


def read(folder) -> tuple[dict, np.ndarray]:
    about = json.loads((folder / "samples.json").read_text())
    pixels = np.asarray(Image.open(folder / "samples.png"))
    return about, pixels.reshape(len(about["plates"]), about["height"], about["images"], 2, about["width"])


def test_all_plates_have_one_grey_scale_a_channel(tmp_path) -> None:
    levels = np.array([0.0, 50, 100])[:, None, None, None, None] + np.zeros((3, 4, 2, 6, 8))
    levels[:, :, 1] *= 10  # another channel, another scale
    save_samples(tmp_path, make(levels.reshape(12, 2, 6, 8), list("aaaabbbbcccc")), identity)
    about, pixels = read(tmp_path)
    assert [plate["plate"] for plate in about["plates"]] == ["a", "b", "c"] or about["plates"][0]["plate"] == "/a"
    np.testing.assert_array_equal(pixels.mean((1, 2, 4)).round(), [[0, 0], [128, 128], [255, 255]])
    assert about["high"] == pytest.approx([100, 1000])


def test_the_images_nearest_to_the_median_of_the_controls_are_shown(tmp_path) -> None:
    brightness = np.array([5, 5.1, 90, 0, 300, 300, 300, 300.0])
    images = np.broadcast_to(brightness[:, None, None, None], (8, 2, 6, 8)).copy()
    screen = make(images, ["a"] * 8, ["negative"] * 4 + [""] * 4)
    save_samples(tmp_path, screen, identity)
    (plate,) = read(tmp_path)[0]["plates"]
    assert plate["controls"]
    assert [image["well"] for image in plate["images"]] == ["A01", "A02"]


def test_images_are_as_the_network_sees_them_and_large_ones_are_averaged_down(tmp_path) -> None:
    images = np.random.default_rng(0).gamma(2.0, 300, (4, 2, 300, 150)).astype(np.uint16)
    save_samples(tmp_path, make(images, list("aabb")), Standardize())
    about, _ = read(tmp_path)
    assert (about["height"], about["width"]) == (112, 56)
    assert -2 < about["low"][0] < 0 < about["high"][0] < 2


def test_the_same_seed_gives_the_same_file_and_few_plates_are_spread_over_all(tmp_path) -> None:
    images = np.random.default_rng(0).random((60, 2, 6, 8))
    screen = make(images, [f"P{i // 3:02d}" for i in range(60)])
    for name, seed in (("one", 0), ("two", 0)):
        save_samples(tmp_path / name, screen, identity, plates=5, seed=seed)
    first, second = ((tmp_path / name / "samples.png").read_bytes() for name in ("one", "two"))
    assert first == second
    about, _ = read(tmp_path / "one")
    assert [plate["plate"][-3:] for plate in about["plates"]] == ["P00", "P05", "P10", "P14", "P19"]
    assert about["of"] == 20


class Broken(VectorPixels):
    def read(self, rows: np.ndarray) -> np.ndarray:
        if rows[0] < 2:
            raise BadImageError("torn", int(rows[0]))
        return super().read(rows)


def test_images_that_cannot_be_read_and_screens_of_vectors_are_left_out(tmp_path) -> None:
    screen = make(np.ones((6, 2, 6, 8)), list("aabbbb"))
    save_samples(tmp_path, Screen(screen.table, Broken(np.ones((6, 2, 6, 8)), ("DNA", "actin")), ("taxol",)), identity)
    assert len(read(tmp_path)[0]["plates"]) == 1
    save_samples(tmp_path / "vectors", make(np.ones((6, 2)), list("aabbbb")), identity)
    assert not (tmp_path / "vectors").exists()
