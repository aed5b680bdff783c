"""Touching nuclei are parted, and single ones with much texture are not: simulated fields with known centres."""

import numpy as np
import pytest
from scipy import ndimage

from biomass.cells.comparison import match_centres
from biomass.cells.nuclei import find_nuclei, measure_labels, segment_nuclei


def draw(seed: int, together: int, *, overlap=0.9, texture=0.1, blur=2.0, dim=0.3, size=(420, 560)):
    """A field of nuclei of a diameter of about 36 pixels, so many in a ring, and their centres.

    Those next to each other are ``overlap`` of a diameter apart.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    light, centres = np.zeros(size), []
    for place in [(70 + 140 * i, 70 + 140 * j) for i in range(3) for j in range(4)]:
        turn, around = rng.uniform(0, 2 * np.pi), 18 * overlap / np.sin(np.pi / together) if together > 1 else 0
        for angle in turn + 2 * np.pi * np.arange(together) / together:
            centre = place + around * np.array([np.sin(angle), np.cos(angle)]) + rng.uniform(-1, 1, 2)
            radius, stretch = 18 * np.exp(rng.normal(0, 0.06)), np.exp(rng.normal(0, 0.1))
            grain = ndimage.gaussian_filter(rng.normal(size=size), radius / 4)
            inside = np.hypot((y - centre[0]) * stretch, (x - centre[1]) / stretch) < radius
            light += inside * np.exp(rng.normal(0, dim)) * np.clip(1 + texture * grain / grain.std(), 0.2, None)
            centres.append(centre)
    image = 3000 * ndimage.gaussian_filter(light, blur) * (1 + 0.2 * (x / size[1] - 0.5)) + 600
    return image + rng.normal(0, 30, size), np.array(centres)


def recall_and_precision(fields, diameter=36.0):
    hits = found = given = 0
    for image, centres in fields:
        ours, _ = find_nuclei(image, diameter)
        partner = match_centres(np.zeros(len(ours)), ours, np.zeros(len(centres)), centres, 8)
        hits, found, given = hits + (partner >= 0).sum(), found + len(ours), given + len(centres)
    return hits / given, hits / found


@pytest.mark.parametrize(
    ("together", "options", "least"),
    [
        (2, {}, 0.95),
        (2, {"blur": 3.5}, 0.95),
        (2, {"overlap": 0.8}, 0.95),
        (4, {}, 0.9),
        (4, {"dim": 0.6}, 0.8),
        (4, {"blur": 3.5}, 0.6),
    ],
)
def test_touching_nuclei_are_parted(together, options, least):
    """With the first threshold alone, no nucleus of a ring of four is found, but for one in eight in the dim ones."""
    recall, precision = recall_and_precision([draw(seed, together, **options) for seed in range(2)])
    assert recall > least
    assert precision > least


@pytest.mark.parametrize("texture", [0.1, 0.25])
@pytest.mark.parametrize("diameter", [28, 36, 50])
def test_single_nuclei_are_whole(texture, diameter):
    recall, precision = recall_and_precision([draw(seed, 1, texture=texture) for seed in (10, 11)], diameter)
    assert recall > 0.95
    assert precision > 0.95


def test_labels_are_those_of_the_nuclei():
    image, _ = draw(5, 2)
    labels = segment_nuclei(image)
    centres, areas = find_nuclei(image)
    assert labels.dtype == np.int32
    assert np.unique(labels).tolist() == list(range(len(centres) + 1))
    found = [(*np.argwhere(labels == i).mean(axis=0), (labels == i).sum()) for i in range(1, len(centres) + 1)]
    np.testing.assert_allclose(np.column_stack([centres, areas]), sorted(found))
    np.testing.assert_array_equal(measure_labels(labels)[1], areas)
