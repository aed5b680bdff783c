"""What a simulated plate does to its images, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from biomass.simulation.morphology import TRAITS
from biomass.simulation.optics import Nuisance, acquire, draw_nuisance, quantize

IDEAL = Nuisance(
    drift=np.zeros(len(TRAITS)),
    gain=np.ones(3),
    background=np.zeros(3),
    gamma=np.ones(3),
    blur=np.full(3, 0.01),
    haze=np.zeros(3),
    tilt=np.zeros((3, 2)),
    vignette=np.zeros(3),
    noise=0.0,
)


def test_an_ideal_plate_records_the_light() -> None:
    light = np.random.default_rng(0).random((2, 3, 20, 30), dtype=np.float32)
    seen = acquire(np.random.default_rng(0), light, IDEAL)
    np.testing.assert_allclose(seen, light, atol=1e-6)
    altered = replace(
        IDEAL, gain=np.array([0.5, 2.0, 1.0]), background=np.array([0.1, 0.0, 0.0]), gamma=np.array([1.0, 1.0, 2.0])
    )
    seen = acquire(np.random.default_rng(0), light, altered)
    expected = np.stack([0.5 * light[:, 0] + 0.1, np.minimum(2 * light[:, 1], 1), light[:, 2] ** 2], 1)
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_optics_spread_light_and_lose_none() -> None:
    light = np.zeros((1, 3, 61, 61), np.float32)
    light[:, :, 30, 30] = 0.9
    seen = acquire(np.random.default_rng(0), light, replace(IDEAL, blur=np.array([0.01, 1.0, 3.0])))
    np.testing.assert_allclose(seen.sum((2, 3)), 0.9, rtol=1e-4)
    assert seen[0, 1].max() == pytest.approx(0.9 / (2 * np.pi), rel=0.05)  # of a Gaussian
    y = np.arange(61) - 30
    assert np.sqrt((seen[0, 2].sum(1) * y**2).sum() / 0.9) == pytest.approx(3.0, rel=0.03)


def test_illumination_slopes_and_noise_has_its_size() -> None:
    light = np.full((40, 3, 24, 24), 0.5, np.float32)
    tilted = acquire(np.random.default_rng(0), light, replace(IDEAL, tilt=np.array([[0.2, 0.0], [0.0, -0.2], [0, 0]])))
    np.testing.assert_allclose(tilted[0, 0].mean(1), 0.5 * (1 + 0.2 * np.linspace(-1, 1, 24)), atol=1e-5)
    np.testing.assert_allclose(tilted[0, 1].mean(0), 0.5 * (1 - 0.2 * np.linspace(-1, 1, 24)), atol=1e-5)
    noisy = acquire(np.random.default_rng(0), light, replace(IDEAL, noise=0.03))
    assert noisy.std() == pytest.approx(0.03 * np.sqrt(0.5), rel=0.05)


def test_a_mottle_lies_over_cells_and_gaps_with_its_size_and_grain() -> None:
    light = np.zeros((60, 3, 64, 64), np.float32)
    light[:, :, :32] = 0.3
    mottled = replace(IDEAL, mottle=np.array([0.04, 0.04, 0.0]), grain=np.array([[0.8, 3.0], [2.0, 2.0], [1.0, 1.0]]))
    extra = acquire(np.random.default_rng(0), light, mottled) - light
    assert not extra[:, 2].any()
    for c, (down, right) in enumerate(mottled.grain[:2]):
        halves = extra[:, c, :32], extra[:, c, 32:]
        for half in halves:
            assert half.mean() == pytest.approx(0.08, rel=0.05)
            assert half.std() == pytest.approx(0.04, rel=0.1)
        # White noise smoothed with a Gaussian of sigma s is correlated by exp(-d²/4s²) at distance d.
        field = extra[:, c] - extra[:, c].mean()
        for axis, sigma in ((1, down), (2, right)):
            neighbours = (field * np.roll(field, 2, axis)).mean() / field.var()
            assert neighbours == pytest.approx(np.exp(-(2**2) / (4 * sigma**2)), abs=0.06)


def test_the_mottle_leaves_all_other_nuisance_as_it_is() -> None:
    def drawn(mottle: float) -> dict[str, float]:
        return draw_nuisance(np.random.default_rng(1), np.random.default_rng(2), mottle=mottle).flat()

    without, some, twice = drawn(0.0), drawn(1.0), drawn(2.0)
    assert without == {name: some[name] for name in without}
    added = [name for name in some if name not in without]
    assert {name.partition("_")[0] for name in added} == {"mottle", "grain"}
    for name in added:
        assert twice[name] == pytest.approx(some[name] * (2 if name.startswith("mottle") else 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_quantized_images_use_the_full_scale(dtype: type[np.unsignedinteger]) -> None:
    full = quantize(np.array([0.0, 0.5, 1.0], np.float32), dtype)
    assert full.dtype == dtype
    assert full[[0, 2]].tolist() == [0, np.iinfo(dtype).max]
    assert abs(int(full[1]) - np.iinfo(dtype).max / 2) <= 1


def test_no_nuisance_makes_all_plates_alike() -> None:
    rngs = [np.random.default_rng(i) for i in range(4)]
    first, second = draw_nuisance(*rngs[:2], strength=0).flat(), draw_nuisance(*rngs[2:], strength=0).flat()
    assert first == second
    assert not any(v for k, v in first.items() if k.startswith(("drift", "tilt")))


def test_drift_scales_the_traits_and_nothing_else() -> None:
    def drawn(drift: float) -> dict[str, float]:
        return draw_nuisance(np.random.default_rng(1), np.random.default_rng(2), 1.3, drift).flat()

    whole, part = drawn(1.0), drawn(0.25)
    for name, value in whole.items():
        assert part[name] == pytest.approx(value * (0.25 if name.startswith("drift") else 1))
