"""Calibrated statistics know the images that they were measured on."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from biomass.errors import DataError
from biomass.screen import COLUMNS, Screen, VectorPixels, make_screen
from biomass.training import Calibration, plates_data


def screen(changed: slice = slice(0, 0), wells: int = 4) -> Screen:
    """Plates A and B, of so many wells each; some images have other pixels."""
    about = [{"plate": plate, "well": f"A{well + 1:02d}"} for plate in "AB" for well in range(wells)]
    table = pd.DataFrame(about).assign(**dict.fromkeys(set(COLUMNS) - {"plate", "well"}, "")).assign(label=-1)
    table["control"] = np.where(table["well"] == "A01", "negative", "")
    images = np.arange(2 * 6 * 4).reshape(2, 6, 1, 2, 2)[:, :wells].reshape(-1, 1, 2, 2)
    images[changed] += 1
    return make_screen(table, VectorPixels(images, ("dna",)), [])


def measured(one: Screen, word: str = "plate") -> Calibration:
    data = plates_data(one, one.plate_names, one.plate_ids, word, [0, 1])
    moments = {"norms.0": torch.zeros(2, 2, 1)}
    return Calibration(word, ["plate"], "", None, list(one.plate_names), [4, 4], moments, data)


def test_plates_that_were_measured_are_known_again(tmp_path, caplog):
    measured(screen()).save(tmp_path / "x.pt")
    kept = Calibration.read(tmp_path / "x.pt")
    kept.compare(screen(), screen().plate_names, screen().plate_ids, "advice")
    assert not caplog.records
    grown = screen(wells=6)
    kept.compare(grown, grown.plate_names, grown.plate_ids, "advice")
    assert "plate '/A' was measured on 4 images, and this screen has 6 of it, and 1 others have grown" in caplog.text


def test_other_images_under_the_name_of_a_plate_are_refused_unless_that_is_asked_for(caplog):
    now = screen(slice(4, 5))
    with pytest.raises(DataError, match=r"plate '/B' .* 1 of 4 sampled images has other pixels.*'row 4'") as caught:
        measured(screen()).compare(now, now.plate_names, now.plate_ids, "advice")
    assert caught.value.advice == "advice"
    both = screen(slice(3, 5))
    with pytest.raises(DataError, match=r"plate '/A' .*1 more plates are others"):
        measured(screen()).compare(both, both.plate_names, both.plate_ids, "advice")
    measured(screen()).compare(now, now.plate_names, np.where(now.plate_ids == 1, -1, 0), "advice")  # B is not used
    with caplog.at_level(logging.WARNING):
        measured(screen()).compare(now, now.plate_names, now.plate_ids, "advice", other_data=True)
    assert "plate '/B'" in caplog.text


def test_a_plate_that_is_measured_again_is_another_one_from_then_on():
    now = screen(slice(4, 5))
    newer = measured(now)
    only_b = replace(
        newer, plates=["/B"], images=[4], moments={"norms.0": torch.ones(2, 1, 1)}, data={"/B": newer.data["/B"]}
    )
    merged = measured(screen()).merged(only_b)
    assert merged.data == measured(screen()).data | only_b.data
    merged.compare(now, now.plate_names, now.plate_ids, "advice")


def test_statistics_of_controls_depend_on_controls_alone():
    known, treated, control = measured(screen(), "controls"), screen(slice(1, 2)), screen(slice(0, 1))
    known.compare(treated, treated.plate_names, treated.plate_ids, "advice")
    with pytest.raises(DataError, match="1 of 1 sampled images has other pixels"):
        known.compare(control, control.plate_names, control.plate_ids, "advice")


def test_files_of_an_earlier_version_are_not_compared():
    now, older = screen(slice(0, 8)), replace(measured(screen()), data={})
    older.compare(now, now.plate_names, now.plate_ids, "advice")
