"""What images look like, against slow references, and whether what is wrong with them is found."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage

from biomass.errors import BadImageError, DataError
from biomass.evaluation import quality
from biomass.evaluation.quality import FEWEST_PLATES, PERCENTILES, Measured, focus_slope
from biomass.screen import COLUMNS, VectorPixels, make_screen

PLATES, WELLS = 7, 6
CHANNELS = ("DNA", "ER", "actin")


def spectrum(exponent, size=128, seed=0):
    """An image whose amplitude falls with the frequency to the power of ``-exponent``."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(size, size)))
    return np.fft.irfft2(noise / frequency**exponent, (size, size))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_slope_of_a_known_spectrum_is_found_whatever_its_brightness(exponent):
    images = np.stack([spectrum(exponent, seed=seed) for seed in range(8)])
    slopes = focus_slope(images)
    assert abs(slopes.mean() + 2 * exponent) < 0.15
    np.testing.assert_allclose(focus_slope(37 * images + 1000), slopes, atol=1e-2)


def test_blur_makes_the_slope_steeper():
    image = spectrum(1.0)
    slopes = [focus_slope(scipy.ndimage.gaussian_filter(image, sigma)) for sigma in (0.5, 1, 2)]
    assert focus_slope(image) > slopes[0] > slopes[1] > slopes[2]
    assert focus_slope(np.zeros((2, 3, 48, 60))).shape == (2, 3)
    assert np.isnan(focus_slope(np.full((48, 60), 9, np.uint8)))


def test_measurements_against_a_loop():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4000, (5, 3, 20, 30), np.uint16)
    images[1, 2] = 7
    images[2, 0, :4] = 4095
    found = Measured.of(images, np.arange(5), np.arange(0))
    for i, channel in np.ndindex(5, 3):
        one = images[i, channel]
        expected = [np.percentile(one, p, method="nearest") for p in PERCENTILES]
        np.testing.assert_array_equal(found.percentiles[i, channel], expected)
        assert found.highest[i, channel] == one.max()
        assert found.at_highest[i, channel] == pytest.approx(np.mean(one == one.max()))
        assert found.constant[i, channel] == (len(np.unique(one)) == 1)
        assert found.digests[i, channel] == hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest()


def screen_of(images, **columns):
    """A screen of plates P0, P1, … with a row a well, the first well a control."""
    number = len(images)
    plates = [f"P{i}" for i in range(number // WELLS) for _ in range(WELLS)]
    wells = [f"A{i + 1:02d}" for i in range(WELLS)] * (number // WELLS)
    table = (
        pd.DataFrame(dict.fromkeys(COLUMNS, [""] * number))
        .assign(
            experiment=["E1" if plate in ("P0", "P1") else "E2" for plate in plates],
            plate=plates,
            well=wells,
            label=[i % 3 for i in range(WELLS)] * (number // WELLS),
            split=["train" if plate < "P4" else "test" for plate in plates],
            control=["negative" if well == "A01" else "" for well in wells],
        )
        .assign(**columns)
    )
    return make_screen(table, VectorPixels(images, CHANNELS), ["DMSO", "a", "b"])


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(1)
    soft = scipy.ndimage.gaussian_filter(rng.normal(size=(PLATES * WELLS, 3, 48, 48)), (0, 0, 1, 1))
    exposure = rng.uniform(0.95, 1.05, (PLATES, 1, 1, 1)).repeat(WELLS, 0)
    return (exposure * (2000 + 3000 * (soft - soft.min()))).astype(np.uint16)


def findings(images, **columns):
    screen = screen_of(images, **columns)
    found = quality.measure(screen, quality.sample_rows(screen), "skip", 0)
    table = quality.summarize(screen, found)
    return {one.kind: one for one in quality.find_oddities(screen, quality.count_plates(screen), table, found)}


def of_plate(number):
    return slice(number * WELLS, (number + 1) * WELLS)


def test_nothing_is_found_in_a_clean_screen(clean):
    assert findings(clean) == {}


def black(images):
    images[of_plate(3), 1] = 100


def black_wells(images):
    images[of_plate(3).start + 2, 1] = 0


def faint(images):
    images[of_plate(3), 1] = 10 + images[of_plate(3), 1] % 2


def saturated(images):
    images[of_plate(3), 1] = images[of_plate(3), 1].clip(0, 7500)


def brighter(images):
    images[of_plate(3), 1] = images[of_plate(3), 1] + 60000 - images[of_plate(3), 1].max()


def contrast(images):
    mean = images[of_plate(3), 1].mean()
    images[of_plate(3), 1] = mean + (images[of_plate(3), 1] - mean) / 3


def blurred(images):
    soft = scipy.ndimage.gaussian_filter(images[of_plate(3), 1].astype(float), (0, 1, 1))
    images[of_plate(3), 1] = soft


def same_channels(images):
    images[of_plate(3), 1] = images[of_plate(3), 2]


def duplicates(images):
    images[of_plate(3).start + 2] = images[of_plate(2).start]


@pytest.mark.parametrize(
    ("spoil", "kind", "channel"),
    [
        (black, "constant", "ER"),
        (black_wells, "constant_images", "ER"),
        (faint, "faint", "ER"),
        (saturated, "saturated", "ER"),
        (brighter, "intensity", "ER"),
        (contrast, "contrast", "ER"),
        (blurred, "focus", "ER"),
        (same_channels, "same_channels", ""),
        (duplicates, "duplicates", ""),
    ],
)
def test_what_is_wrong_is_named_with_plate_and_channel(clean, spoil, kind, channel):
    images = clean.copy()
    spoil(images)
    found = findings(images)
    assert kind in found
    one = found[kind]
    assert one.channel == channel
    assert "E2/P3" in one.plates
    assert "E2/P3" in one.what
    assert one.remedy
    assert channel in one.what
    others = {"black": {"intensity"}, "faint": {"intensity", "contrast", "focus"}, "blurred": {"contrast"}}
    others |= {"saturated": {"intensity", "contrast", "focus"}}
    assert set(found) <= {kind} | others.get(spoil.__name__, set())


def test_the_share_of_saturated_pixels_is_that_of_the_plate(clean):
    images = clean.copy()
    saturated(images)
    screen = screen_of(images)
    table = quality.summarize(screen, quality.measure(screen, quality.sample_rows(screen), "error", 0))
    row = table[(table["plate"] == "E2/P3") & (table["channel"] == "ER")].iloc[0]
    assert row["saturated"] == pytest.approx((images[of_plate(3), 1] == 7500).mean())
    assert row["highest"] == 7500


def test_medians_and_distances_against_pandas(clean):
    images = clean.copy()
    brighter(images)
    screen = screen_of(images)
    table = quality.summarize(screen, quality.measure(screen, quality.sample_rows(screen), "error", 0))
    er = table[table["channel"] == "ER"].set_index("plate")
    medians = [
        np.median([np.percentile(one[1], 50, method="nearest") for one in images[of_plate(i)]]) for i in range(7)
    ]
    np.testing.assert_array_equal(er["p50"], medians)
    logs = np.log10(medians)
    distance = logs - np.median(logs)
    spread = max(1.4826 * np.median(np.abs(distance)), np.log10(1.5) / quality.STANDS_OUT)
    np.testing.assert_allclose(er["z_intensity"], distance / spread)


def test_few_plates_cannot_stand_out(clean):
    images = clean[: (FEWEST_PLATES - 1) * WELLS].copy()
    brighter(images)
    assert "intensity" not in findings(images)


def test_what_the_table_says_is_found_too(clean):
    number = len(clean)
    plates = np.repeat([f"P{i}" for i in range(PLATES)], WELLS)
    label = np.where(plates == "P2", 2, np.tile([0, 1], number // 2))
    control = np.where((plates != "P5") & (np.tile(np.arange(WELLS), PLATES) == 0), "negative", "")
    split = np.where(plates == "P1", np.tile(["train", "test"], number // 2), "train")
    found = findings(clean, label=np.where(np.arange(number) == 40, -1, label), control=control, split=split)
    assert set(found) == {"no_controls", "label_on_one_plate", "shared_plates", "unlabelled"}
    assert found["no_controls"].plates == ("E2/P5",)
    assert "b" in found["label_on_one_plate"].what
    assert found["shared_plates"].plates == ("E1/P1",)
    assert found["unlabelled"].what.startswith("1 of 42")
    assert set(findings(clean, split="")) == {"no_splits"}
    few = np.where((plates == "P4") & (np.tile(np.arange(WELLS), PLATES) > 0), "A01", np.tile(list("abcdef"), PLATES))
    wells = [well if well == "A01" else f"B{ord(well) - 96:02d}" for well in few]
    assert findings(clean, well=wells, control="negative")["few_wells"].plates == ("E2/P4",)


def test_counts_against_a_loop(clean):
    sites = np.tile(["1", "2"], len(clean) // 2)
    screen = screen_of(clean, well=np.repeat(["A01", "A02", "A03"] * PLATES, 2), site=sites)
    counts, labels, pairs = quality.count_plates(screen), quality.count_labels(screen), quality.count_pairs(screen)
    for i, row in counts.iterrows():
        own = screen.table[screen.table["plate"] == f"P{i}"]
        assert row["wells"] == own["well"].nunique()
        assert row["fields"] == len({*zip(own["well"], own["site"], strict=True)}) == row["images"]
        assert row["negative_wells"] == own.loc[own["control"] == "negative", "well"].nunique()
        assert row["positive_wells"] == 0
        assert (row["split_train"], row["split_test"]) == ((6, 0) if i < 4 else (0, 6))
    assert labels.to_dict("list") == {
        "label": ["DMSO", "a", "b"],
        "plates": [7] * 3,
        "wells": [14] * 3,
        "images": [14] * 3,
    }
    assert pairs["images"].sum() == len(screen)
    assert len(pairs) == 7 * 3


def test_a_sample_is_spread_over_the_wells_and_bounded(clean):
    screen = screen_of(clean)
    samples = quality.sample_rows(screen, 3)
    assert [len(rows) for rows in samples] == [3] * PLATES
    for plate, rows in enumerate(samples):
        assert set(screen.plate_ids[rows]) == {plate}
        assert rows.min() % WELLS == 0
        assert rows.max() % WELLS == WELLS - 1
    assert [len(rows) for rows in quality.sample_rows(screen)] == [WELLS] * PLATES


class Broken(VectorPixels):
    """Rows of the third plate cannot be read."""

    def read(self, rows):
        bad = np.flatnonzero((rows >= 18) & (rows < 24))
        if len(bad):
            raise BadImageError(f"'{self.name(rows[bad[0]])}' is cut off", int(rows[bad[0]]))
        return super().read(rows)


def test_images_that_cannot_be_read_are_counted_or_stop(clean):
    screen = screen_of(clean)
    object.__setattr__(screen, "pixels", Broken(clean, CHANNELS))
    samples = quality.sample_rows(screen)
    found = quality.measure(screen, samples, "skip", 0)
    table = quality.summarize(screen, found)
    kinds = {one.kind: one for one in quality.find_oddities(screen, quality.count_plates(screen), table, found)}
    assert kinds["unreadable"].what.startswith("6 of 42")
    assert "'row 18' is cut off" in kinds["unreadable"].what
    assert kinds["unreadable"].plates == ("E2/P3",)
    with pytest.raises(BadImageError, match="row 18"):
        quality.measure(screen, samples, "error", 0)
    with pytest.raises(DataError, match="none of the 6"):
        quality.measure(screen, samples[3:4], "skip", 0)


def test_processes_measure_the_same(clean):
    screen = screen_of(clean)
    samples = quality.sample_rows(screen)
    one, two = (quality.measure(screen, samples, "error", workers) for workers in (0, 2))
    for name in Measured.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
