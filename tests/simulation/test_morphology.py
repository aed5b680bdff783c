"""Simulated cells against slow references and closed forms."""

import numpy as np
import pytest

from biomass.errors import ConfigError
from biomass.simulation import morphology
from biomass.simulation.morphology import TRAITS, draw_cells, draw_effects, place_cells, render_cells


def plain(**values: float) -> np.ndarray:
    """The traits of one cell without texture, at their bases but for ``values``."""
    zero = ("nucleus_lobes", "chromatin_contrast", "nucleoli", "cell_ripple", "er_contrast", "er_polarity", "fibres")
    bases = {name: trait.base for name, trait in TRAITS.items()}
    traits = bases | dict.fromkeys(zero, 0.0) | {"nucleus_elongation": 1.0} | values
    return np.array([list(traits.values())], np.float32)


def drawn(traits: np.ndarray, seed: int = 0) -> np.ndarray:
    return render_cells(
        traits,
        np.zeros((len(traits), 2), np.float32),
        np.random.default_rng(seed).random((len(traits), 27), dtype=np.float32),
    )


def test_waves_equal_the_cosine_of_every_pixel() -> None:
    angle, wavelength, phase = np.array([0.3, 2.0]), np.array([3.0, 5.0]), np.array([0.1, 4.0])
    y, x = np.meshgrid(morphology._FLAT, morphology._FLAT, indexing="ij")
    for i, wave in enumerate(morphology._wave(angle, wavelength, phase)):
        along = np.sin(angle[i]) * y + np.cos(angle[i]) * x
        np.testing.assert_allclose(wave, np.cos(2 * np.pi * along / wavelength[i] + phase[i]), atol=1e-9)


def test_outlines_equal_a_fourier_series_in_the_angle() -> None:
    rng = np.random.default_rng(0)
    v, u = rng.standard_normal((2, 3, 7, 7))
    ripple, random = np.array([0.0, 0.1, 0.2]), rng.random((3, 4))
    outline, side = morphology._outline(v, u, ripple, random)
    angle, p = np.arctan2(v, u), 2 * np.pi * random[:, :, None, None]
    series = sum(a * np.cos(k * angle + p[:, i]) for i, (k, a) in enumerate([(2, 1), (3, 1), (5, 0.7)]))
    np.testing.assert_allclose(outline, np.hypot(u, v) / (1 + ripple[:, None, None] * series), rtol=0.05)
    np.testing.assert_allclose(side, np.cos(angle + p[:, 3]), atol=0.05)


@pytest.mark.parametrize("radius", [3.0, 5.0, 6.5])
def test_a_nucleus_has_its_area_and_brightness(radius: float) -> None:
    stamp = drawn(plain(nucleus_radius=radius, nucleus_brightness=0.7, cell_radius=14.0))[0]
    assert stamp[0].max() == pytest.approx(0.7, rel=0.02)
    assert stamp[0].sum() == pytest.approx(0.7 * np.pi * radius**2, rel=0.12)


@pytest.mark.parametrize(
    ("trait", "channels"),
    [
        ("nucleus_brightness", "d"),
        ("er_brightness", "e"),
        ("er_spread", "e"),
        ("rim_brightness", "a"),
        ("fibres", "a"),
        ("chromatin_contrast", "d"),
        ("cell_radius", "ea"),
    ],
)
def test_a_trait_shows_in_its_channels_only(trait: str, channels: str) -> None:
    before, after = drawn(plain()), drawn(plain(**{trait: 1.3 * TRAITS[trait].base}))
    changed = {name for i, name in enumerate("dea") if np.abs(before - after)[0, i].max() > 1e-3}
    assert changed == set(channels)


def test_cells_stay_inside_their_stamps_and_in_range() -> None:
    rng = np.random.default_rng(0)
    effects = 2 * draw_effects(rng, 400)  # far beyond what a screen holds
    traits = draw_cells(rng, np.zeros_like(effects), effects)
    stamps = drawn(traits)
    assert np.isfinite(stamps).all()
    assert stamps.dtype == np.float32
    assert stamps.min() >= 0
    border = np.concatenate([stamps[:, :, [0, -1]].ravel(), stamps[:, :, :, [0, -1]].ravel()])
    assert np.quantile(border, 0.99) < 0.05 * np.quantile(stamps.max((1, 2, 3)), 0.5)


def test_perturbations_change_half_of_the_traits_and_only_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    effects = draw_effects(rng, 4000)
    sd = np.array([t.effect for t in TRAITS.values()])
    np.testing.assert_allclose((effects != 0).mean(0), 0.5, atol=0.04)
    np.testing.assert_allclose(effects.std(0), sd * np.sqrt(0.5), rtol=0.08)
    shape = np.array([t.shape for t in TRAITS.values()])
    assert not draw_effects(rng, 50, intensity=0)[:, ~shape].any()
    assert not draw_effects(rng, 50, shape=0)[:, shape].any()


def test_effects_on_number_and_size_have_a_factor_of_their_own() -> None:
    plain, without = (draw_effects(np.random.default_rng(0), 50, growth=factor) for factor in (1.0, 0.0))
    growth = np.array([name in ("crowding", "cell_radius") for name in TRAITS])
    assert plain[:, growth].any(0).all()
    assert not without[:, growth].any()
    np.testing.assert_array_equal(plain[:, ~growth], without[:, ~growth])


@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_cells_differ_by_their_own_spread_and_by_that_of_perturbations(spread: float) -> None:
    zero = np.zeros((20_000, len(TRAITS)))
    traits = draw_cells(np.random.default_rng(0), zero, zero, spread)
    expected = [np.sqrt(t.cells**2 + (spread * t.effect) ** 2) for t in TRAITS.values()]
    np.testing.assert_allclose(np.log(traits).std(0), expected, rtol=0.03, atol=1e-6)


def test_placed_cells_keep_their_distance() -> None:
    spacing, size = np.array([6.0, 12.0, 9.0, 9.0]), 90
    cells = place_cells(np.random.default_rng(3), np.array([300.0, 60.0, 0.0, 40.0]), spacing, size)
    field, centres = cells[:, 0].astype(int), cells[:, 1:]
    assert (np.diff(field) >= 0).all()
    assert set(field) == {0, 1, 3}  # field 2 expects no cell
    for f in (0, 1, 3):
        own = centres[field == f]
        apart = np.linalg.norm(own[:, None] - own[None], axis=2)
        assert apart[~np.eye(len(own), dtype=bool)].min() >= spacing[f]
        # Density of a Matérn process of type II: (1 - exp(-c)) / area of the disc, c candidates expected in a disc.
        disc, candidates = np.pi * spacing[f] ** 2, {0: 300.0, 1: 60.0, 3: 40.0}[f] / size**2
        expected = (1 - np.exp(-candidates * disc)) / disc * (size + 40) ** 2
        assert abs(len(own) - expected) < 4 * np.sqrt(expected) + 0.1 * expected  # it is denser along the border


@pytest.mark.parametrize("cells", [1e19, np.inf, np.nan])
def test_more_cells_than_a_field_can_show_are_one_line(cells):
    with pytest.raises(ConfigError, match="use a lower density"):
        place_cells(np.random.default_rng(0), np.array([3.0, cells]), np.full(2, 20.0), 64)
