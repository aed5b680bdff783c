"""Classical features against scikit-image and plain numpy, one nucleus at a time."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import graycomatrix, graycoprops
from skimage.measure import regionprops

from biomass.cells.measure import CellMeasures, FieldMeasures, central_nucleus, measures_of
from biomass.errors import ConfigError
from biomass.evaluation import feature_columns

CHANNELS = ("DAPI", "F-actin")


def crop(seed=0, size=40, dtype=np.uint16):
    """A noisy elliptic nucleus in the middle, and smooth actin."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = (y / 9) ** 2 + (x / 6) ** 2 < 1
    dna = ndimage.gaussian_filter(rng.uniform(500, 1000, (size, size)), 1) + 20000 * inside
    actin = ndimage.gaussian_filter(rng.uniform(0, 30000, (size, size)), 2)
    return np.stack([dna, actin]).astype(dtype)


@pytest.fixture(scope="module")
def measured():
    images = np.stack([crop(seed) for seed in range(5)])
    measures = CellMeasures(CHANNELS)
    vectors, counts = measures(images)
    assert counts.tolist() == [1] * 5
    return images / np.float32(65535), [dict(zip(measures.features, row.tolist(), strict=True)) for row in vectors]


def test_names_are_those_of_cellprofiler_and_count_as_features():
    import pandas as pd
    from pycytominer.cyto_utils import infer_cp_features

    names = CellMeasures(CHANNELS).features
    assert len(set(names)) == len(names)
    assert {"Nuclei_AreaShape_Area", "Cells_Intensity_MeanIntensity_Factin", "Nuclei_Texture_Contrast_DAPI_3"} <= set(
        names
    )
    assert feature_columns(pd.DataFrame(columns=names)) == names
    assert infer_cp_features(pd.DataFrame(columns=names)) == names


def test_shapes_are_those_of_regionprops(measured):
    images, found = measured
    for image, row in zip(images, found, strict=True):
        region = regionprops(central_nucleus(image[0], 20).astype(int))[0]
        assert row["Nuclei_AreaShape_Area"] == region.area > 100
        assert row["Nuclei_AreaShape_Eccentricity"] == pytest.approx(region.eccentricity, rel=1e-4)
        assert row["Nuclei_AreaShape_HuMoment_1"] == pytest.approx(region.moments_hu[1], rel=1e-3)
        assert row["Nuclei_AreaShape_FormFactor"] == pytest.approx(
            4 * np.pi * region.area / region.perimeter**2, rel=1e-4
        )


def test_intensities_are_those_of_the_pixels_inside(measured):
    images, found = measured
    for image, row in zip(images, found, strict=True):
        mask = central_nucleus(image[0], 20)
        for place, inside in (("Nuclei", mask), ("Cells", np.ones_like(mask))):
            for name, channel in zip(("DAPI", "Factin"), image, strict=True):
                values = channel[inside]
                for measure, value in {
                    "MeanIntensity": values.mean(),
                    "StdIntensity": values.std(),
                    "MinIntensity": values.min(),
                    "LowerQuartileIntensity": np.quantile(values, 0.25, method="nearest"),
                    "MedianIntensity": np.quantile(values, 0.5, method="nearest"),
                    "MaxIntensity": values.max(),
                    "IntegratedIntensity": values.sum(),
                }.items():
                    assert row[f"{place}_Intensity_{measure}_{name}"] == pytest.approx(value, rel=1e-3), measure
                y, x = np.nonzero(inside)
                moved = np.hypot(np.average(y, weights=values) - y.mean(), np.average(x, weights=values) - x.mean())
                assert row[f"{place}_Intensity_MassDisplacement_{name}"] == pytest.approx(moved, abs=1e-3)
            both = np.corrcoef(image[0][inside], image[1][inside])[0, 1]
            assert row[f"{place}_Correlation_Correlation_DAPI_Factin"] == pytest.approx(both, abs=1e-4)


def test_textures_are_haralicks(measured):
    images, found = measured
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    for image, row in zip(images, found, strict=True):
        channel = image[1]
        greys = np.minimum((channel - channel.min()) / (channel.max() - channel.min()) * 16, 15).astype(np.uint8)
        for distance in (1, 3):
            pairs = graycomatrix(greys, [distance], angles, 16, symmetric=True).sum(3, keepdims=True).astype(float)
            for ours, theirs in {
                "AngularSecondMoment": "ASM",
                "Contrast": "contrast",
                "Correlation": "correlation",
                "InverseDifferenceMoment": "homogeneity",
                "Variance": "variance",
            }.items():
                name = f"Cells_Texture_{ours}_Factin_{distance}"
                assert row[name] == pytest.approx(graycoprops(pairs, theirs)[0, 0], rel=1e-3), name
            share = pairs[pairs > 0] / pairs.sum()
            assert row[f"Cells_Texture_Entropy_Factin_{distance}"] == pytest.approx(
                -(share * np.log2(share)).sum(), rel=1e-3
            )


def test_texture_inside_a_nucleus_ignores_what_is_around_it():
    image = crop()
    mask = central_nucleus(image[0] / 65535, 20)
    other = image.copy()
    other[1][~mask] = 12345
    measures = CellMeasures(CHANNELS)
    a, b = measures(np.stack([image, other]))[0]
    inside = [name.startswith("Nuclei") for name in measures.features]
    np.testing.assert_array_equal(a[inside], b[inside])
    assert (a != b).any()


@pytest.mark.parametrize("value", [0, 7])
def test_a_crop_without_a_nucleus_has_numbers_all_the_same(value):
    vectors, _ = CellMeasures(CHANNELS)(np.full((2, 2, 20, 20), value, np.uint8))
    assert np.isfinite(vectors).all()


def test_the_unit_of_integers_does_not_matter():
    images = np.stack([crop(seed) for seed in range(3)]) // 257
    a = CellMeasures(CHANNELS)(images.astype(np.uint8))[0]
    b = CellMeasures(CHANNELS)((images * 257).astype(np.uint16))[0]
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_field_is_the_mean_of_its_nuclei():
    field = np.full((2, 200, 200), 500, np.uint16)
    centres = [(50, 50), (60, 140), (150, 100)]
    field += np.random.default_rng(0).integers(0, 50, field.shape, dtype=np.uint16)
    for seed, (y, x) in enumerate(centres):
        field[:, y - 12 : y + 12, x - 12 : x + 12] = crop(seed, 24)
    measures = FieldMeasures(CHANNELS, diameter=15)
    vectors, counts = measures(np.stack([field, np.zeros_like(field)]))
    assert counts.tolist() == [3, 0]
    half = round(68 / 36 * 15 / 2)
    crops = np.stack([field[:, y - half : y + half, x - half : x + half] for y, x in centres])
    alone = CellMeasures(CHANNELS, diameter=15)(crops)[0].mean(0)
    for name in ("Nuclei_AreaShape_Area", "Nuclei_Intensity_MeanIntensity_DAPI", "Nuclei_AreaShape_MajorAxisLength"):
        place = measures.features.index(name)  # centres that are found may be a pixel off
        assert vectors[0, place] == pytest.approx(alone[place], rel=0.02), name


def test_the_stain_of_dna_is_found_by_its_name():
    assert type(measures_of(CHANNELS, "cells")) is CellMeasures
    assert measures_of(("actin", "Hoechst"), "fields").dna == "DAPI"
    with pytest.raises(ConfigError, match="no channel 'DAPI'") as caught:
        measures_of(("actin", "tubulin"), "cells")
    assert caught.value.advice == "dna"
