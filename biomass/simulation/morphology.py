"""What simulated cells look like: their traits, what perturbations do to them, where they lie, and the light they give.

Pure functions that know no files: :data:`TRAITS` describe a cell, :func:`draw_effects` what a perturbation does to
them, :func:`place_cells` and :func:`draw_cells` the cells of some fields of view, :func:`render_cells` their light.
The model is our own.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from biomass.errors import ConfigError

CHANNELS = ("nuclei", "er", "actin")
"""The channels of a simulated image, in the order of RxRx1-WILDS."""

_STAMP = 40  # a cell is drawn on a square of this side, pixels
_CHUNK_CELLS = 96  # cells drawn at once: their arrays stay in a core's cache
_CROWDED = 0.1  # cells a pixel: fifty times as many as simulated screens have by themselves
_RESPONDERS = 0.85  # share of the cells of a well that respond to its perturbation
_ACTIVE = 0.5  # share of the traits that a perturbation changes
_GROWTH = ("crowding", "cell_radius")  # traits that decide how many cells a field and a crop hold
_FLAT = np.arange(_STAMP, dtype=np.float32) - (_STAMP - 1) / 2


class Trait(NamedTuple):
    """A trait of a cell is ``base * exp(x)``, where x adds up normal terms with these standard deviations."""

    base: float
    cells: float
    """From cell to cell."""
    effect: float
    """From perturbation to perturbation."""
    drift: float
    """From plate to plate: staining and culture."""
    cell_type: float
    """From cell type to cell type."""
    shape: bool
    """Whether it is shape or texture; otherwise it is intensity."""


TRAITS: dict[str, Trait] = {
    #                             base  cells  effect drift  type   shape
    "crowding": Trait(1.00, 0.00, 0.24, 0.20, 0.15, True),  # cells an area
    "nucleus_radius": Trait(4.60, 0.09, 0.24, 0.05, 0.08, True),  # pixels
    "nucleus_elongation": Trait(1.25, 0.08, 0.26, 0.05, 0.05, True),  # ratio of the axes
    "nucleus_lobes": Trait(0.05, 0.30, 0.95, 0.15, 0.20, True),  # ripple of the outline, of the radius
    "nucleus_brightness": Trait(0.90, 0.12, 0.42, 0.20, 0.10, False),
    "chromatin_contrast": Trait(0.30, 0.15, 0.90, 0.30, 0.20, True),
    "chromatin_grain": Trait(3.20, 0.10, 0.45, 0.05, 0.10, True),  # wavelength, pixels
    "nucleoli": Trait(0.30, 0.25, 0.95, 0.20, 0.20, True),  # depth of the dark spots
    "cell_radius": Trait(9.50, 0.10, 0.24, 0.08, 0.12, True),  # pixels
    "cell_elongation": Trait(1.30, 0.12, 0.34, 0.08, 0.12, True),
    "cell_ripple": Trait(0.09, 0.30, 0.85, 0.15, 0.20, True),
    "er_brightness": Trait(0.80, 0.15, 0.48, 0.25, 0.10, False),
    "er_spread": Trait(4.50, 0.15, 0.65, 0.25, 0.15, False),  # decay length from the nucleus, pixels
    "er_contrast": Trait(0.30, 0.15, 0.90, 0.30, 0.20, True),
    "er_grain": Trait(4.00, 0.10, 0.45, 0.05, 0.10, True),
    "er_polarity": Trait(0.25, 0.30, 0.90, 0.20, 0.20, True),  # more of it on one side of the nucleus
    "actin_brightness": Trait(0.35, 0.15, 0.48, 0.25, 0.10, False),  # of the cell's body
    "rim_brightness": Trait(0.60, 0.15, 0.72, 0.30, 0.15, False),  # of its cortex
    "rim_width": Trait(0.12, 0.12, 0.54, 0.15, 0.10, True),  # of the radius
    "fibres": Trait(0.45, 0.20, 0.90, 0.30, 0.20, True),  # contrast of the stress fibres
    "fibre_spacing": Trait(4.20, 0.08, 0.40, 0.05, 0.10, True),  # pixels
}
"""The traits that make up the look of a cell."""

NUMBERS = {name: number for number, name in enumerate(TRAITS)}
"""The column of every trait in the arrays below."""


def trait_values(field: str) -> np.ndarray:
    """One field of all :data:`TRAITS`, such as ``trait_values("drift")``, (traits,)."""
    return np.array([getattr(trait, field) for trait in TRAITS.values()])


def draw_effects(
    rng: np.random.Generator, n: int, *, intensity: float = 1.0, shape: float = 1.0, growth: float = 1.0
) -> np.ndarray:
    """Draw what ``n`` perturbations do: shifts of every trait in log units, (n, traits); half of them are zero.

    Args:
        rng: source of randomness.
        n: number of perturbations.
        intensity: strength of the effects on intensities; 0 leaves them as they are.
        shape: strength of the effects on shape and texture.
        growth: further factor of the effects on the number and the size of cells.
    """
    active = rng.random((n, len(TRAITS))) < _ACTIVE
    shifts = active * rng.standard_normal((n, len(TRAITS))) * trait_values("effect")
    strengths = np.where(trait_values("shape"), shape, intensity)
    strengths[[NUMBERS[name] for name in _GROWTH]] *= growth
    return shifts * strengths


def place_cells(rng: np.random.Generator, expected: np.ndarray, spacing: np.ndarray, size: int) -> np.ndarray:
    """Scatter cells over fields of view, keeping their distance (a Matérn hard-core process of type II).

    Args:
        rng: source of randomness.
        expected: mean number of candidates in every field, (F,); those too close to an earlier one are dropped.
        spacing: least distance of two cells of a field, pixels, (F,).
        size: height and width of the fields, pixels.

    Returns:
        Field, y and x of every cell, (cells, 3), fields ascending. Centres lie up to half a stamp outside the field,
        so that cells are cut by its border.

    Raises:
        ConfigError: a field is to hold more cells than are seen as cells.
    """
    most = _CROWDED * size * size
    if not (expected <= most).all():
        raise ConfigError(
            f"a simulated field of {size} x {size} pixels with {expected.max():.3g} cells: use a lower density, or "
            f"smaller effects (up to {most:.0f} cells)"
        )
    margin = _STAMP / 2
    counts = rng.poisson(expected * ((size + 2 * margin) / size) ** 2)
    field = np.repeat(np.arange(len(expected)), counts)
    centres = rng.uniform(-margin, size + margin, (len(field), 2))
    # One tree for all fields: they lie apart along a third axis, and every field is scaled to a spacing of 1.
    points = np.column_stack([field * 2.0, centres / spacing[field, None]])
    pairs = cKDTree(points).query_pairs(1.0, output_type="ndarray")
    keep = np.ones(len(field), bool)
    keep[pairs.max(axis=1)] = False
    return np.column_stack([field, centres])[keep]


def draw_cells(rng: np.random.Generator, means: np.ndarray, effects: np.ndarray, spread: float = 0.0) -> np.ndarray:
    """Draw the traits of single cells.

    Args:
        rng: source of randomness.
        means: log shift of every trait before the perturbation (cell type, plate, well), (cells, traits).
        effects: log shift by the perturbation, (cells, traits); 85 % of the cells respond.
        spread: further spread from cell to cell, as a share of the spread from perturbation to perturbation.

    Returns:
        The traits, (cells, traits) float32.
    """
    responds = rng.random((len(means), 1)) < _RESPONDERS
    deviations = np.hypot(trait_values("cells"), spread * trait_values("effect"))
    logs = means + responds * effects + rng.standard_normal(means.shape) * deviations
    return (trait_values("base") * np.exp(logs)).astype(np.float32)


def _wave(angle: np.ndarray, wavelength: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Plane waves over the stamps, (n, S, S); separable, so that trigonometry is done along the edges only."""
    y = _FLAT * (2 * np.pi * np.sin(angle) / wavelength)[:, None] + phase[:, None]
    x = _FLAT * (2 * np.pi * np.cos(angle) / wavelength)[:, None]
    return np.cos(y)[:, :, None] * np.cos(x)[:, None, :] - np.sin(y)[:, :, None] * np.sin(x)[:, None, :]


def _grain(random: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """An irregular texture of about unit variance, (n, S, S), from six random numbers a cell, (n, 6) in 0…1."""
    turns = 2 * np.pi * random
    waves = [_wave(turns[:, i], wavelength * f, turns[:, i + 3]) for i, f in enumerate((0.8, 1.0, 1.25))]
    return (waves[0] + waves[1] + waves[2]) * np.float32(0.8)


def _outline(v: np.ndarray, u: np.ndarray, ripple: np.ndarray, random: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the centre in units of the outline, and cosine of the angle to a random direction.

    ``v, u`` are coordinates in units of the semi-axes, (n, S, S); the outline is a circle there, rippled by the
    second, third and fifth harmonic. Their cosines follow from the addition theorems.
    """
    radius = np.sqrt(u * u + v * v) + np.float32(1e-3)
    c1, s1 = u / radius, v / radius
    c2, s2 = c1 * c1 - s1 * s1, 2 * s1 * c1
    c3, s3 = c1 * c2 - s1 * s2, s1 * c2 + c1 * s2
    c5, s5 = c2 * c3 - s2 * s3, s2 * c3 + c2 * s3
    p = (2 * np.pi * random)[:, :, None, None]
    a = np.minimum(ripple, np.float32(0.25))[:, None, None]
    edge = 1 + a * (
        (c2 * np.cos(p[:, 0]) - s2 * np.sin(p[:, 0]))
        + (c3 * np.cos(p[:, 1]) - s3 * np.sin(p[:, 1]))
        + 0.7 * (c5 * np.cos(p[:, 2]) - s5 * np.sin(p[:, 2]))
    )
    return radius / np.maximum(edge, np.float32(0.3)), c1 * np.cos(p[:, 3]) - s1 * np.sin(p[:, 3])


def _inside(excess: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """1 inside, 0 outside, with an edge about ``1 / sharpness`` wide; ``excess`` is 0 on the outline."""
    return 1 / (1 + np.exp(np.clip(excess * sharpness, -30, 30)))


def render_cells(traits: np.ndarray, offsets: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Draw single cells, ideally lit and focused.

    Args:
        traits: (n, traits) float32, as :func:`draw_cells` gives them.
        offsets: of the cell's centre from the centre of its stamp, y and x, pixels, (n, 2) float32.
        random: everything else that makes a cell unlike any other, (n, 27) float32 in 0…1.

    Returns:
        Light of every cell in the three :data:`CHANNELS`, (n, 3, S, S) float32, 0 outside the cell, about 1 where
        it is bright.
    """

    def trait(name: str) -> np.ndarray:
        return traits[:, NUMBERS[name], None, None]

    angle = np.pi * random[:, 0]
    y = _FLAT[None, :, None] - offsets[:, 0, None, None]
    x = _FLAT[None, None, :] - offsets[:, 1, None, None]
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x

    stretch = np.sqrt(np.maximum(trait("cell_elongation"), 1))
    largest = np.float32(_STAMP / 2 - 1) / (stretch * (1 + np.minimum(2 * trait("cell_ripple"), 0.5)))
    radius = np.minimum(trait("cell_radius"), largest)
    cell, side = _outline(v * (stretch / radius), u / (stretch * radius), trait("cell_ripple")[:, 0, 0], random[:, 1:5])
    body = _inside(cell - 1, 1.2 * radius)

    nucleus_stretch = np.sqrt(np.maximum(trait("nucleus_elongation"), 1))
    nucleus_radius = np.minimum(trait("nucleus_radius"), 0.75 * radius)
    nucleus, _ = _outline(
        v * (nucleus_stretch / nucleus_radius),
        u / (nucleus_stretch * nucleus_radius),
        trait("nucleus_lobes")[:, 0, 0],
        random[:, 5:9],
    )
    nuclear = _inside(nucleus - 1, 2.0 * nucleus_radius)

    chromatin = 1 + 0.6 * trait("chromatin_contrast") * _grain(random[:, 9:15], trait("chromatin_grain")[:, 0, 0])
    for i in range(2):  # nucleoli, where there is no DNA
        turn, far = 2 * np.pi * random[:, 15 + i], 0.5 * nucleus_radius[:, 0, 0]
        width = 0.28 * nucleus_radius[:, 0, 0]
        dy = (_FLAT - (offsets[:, 0] + far * np.sin(turn))[:, None]) / width[:, None]
        dx = (_FLAT - (offsets[:, 1] + far * np.cos(turn))[:, None]) / width[:, None]
        spot = np.exp(-0.5 * dy * dy)[:, :, None] * np.exp(-0.5 * dx * dx)[:, None, :]
        chromatin = chromatin - np.minimum(2 * trait("nucleoli"), 1) * spot
    dna = trait("nucleus_brightness") * nuclear * np.maximum(chromatin, np.float32(0.05))

    away = np.maximum(nucleus - 1, 0) * nucleus_radius
    er = trait("er_brightness") * body * (1 - 0.75 * nuclear) * np.exp(-away / trait("er_spread"))
    er = er * np.maximum(1 + 0.6 * trait("er_contrast") * _grain(random[:, 17:23], trait("er_grain")[:, 0, 0]), 0.05)
    er = er * np.maximum(1 + trait("er_polarity") * side, 0.05)

    across = np.pi / 2 + angle + 0.3 * (random[:, 23] - 0.5)
    stripes = _wave(across, trait("fibre_spacing")[:, 0, 0], 2 * np.pi * random[:, 24])
    patches = _wave(2 * np.pi * random[:, 25], 3 * trait("fibre_spacing")[:, 0, 0], 2 * np.pi * random[:, 26])
    fibres = np.maximum(1 + trait("fibres") * (stripes + 0.5 * patches), 0.05)
    rim = (cell - 0.93) / trait("rim_width")
    actin = trait("actin_brightness") * body * fibres + trait("rim_brightness") * np.exp(-0.5 * rim * rim)
    return np.stack([dna, er, actin], axis=1).astype(np.float32, copy=False)


def render_fields(rng: np.random.Generator, cells: np.ndarray, traits: np.ndarray, n: int, size: int) -> np.ndarray:
    """Draw the cells of ``n`` fields of view, ideally lit and focused; where cells overlap the brighter one shows.

    Args:
        rng: source of randomness.
        cells: field, y, x of every cell, (cells, 3), as :func:`place_cells` gives them.
        traits: of every cell, (cells, traits) float32.
        n: number of fields.
        size: height and width of the fields, pixels.

    Returns:
        (n, 3, size, size) float32.
    """
    margin = _STAMP
    canvas = np.zeros((n, len(CHANNELS), size + 2 * margin, size + 2 * margin), np.float32)
    random = rng.random((len(cells), 27), dtype=np.float32)
    field = cells[:, 0].astype(np.int64)
    corner = np.floor(cells[:, 1:] - (_STAMP - 1) / 2)
    offsets = (cells[:, 1:] - (_STAMP - 1) / 2 - corner).astype(np.float32)
    corner = corner.astype(np.int64) + margin
    for start in range(0, len(cells), _CHUNK_CELLS):
        chunk = slice(start, start + _CHUNK_CELLS)
        stamps = render_cells(traits[chunk], offsets[chunk], random[chunk])
        for f, (top, left), stamp in zip(field[chunk], corner[chunk], stamps, strict=True):
            view = canvas[f, :, top : top + _STAMP, left : left + _STAMP]
            np.maximum(view, stamp, out=view)
    return canvas[:, :, margin:-margin, margin:-margin]


def draw_fields(
    rng: np.random.Generator,
    means: np.ndarray,
    effects: np.ndarray,
    candidates: np.ndarray,
    size: int,
    spread: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, draw and light the cells of F fields of view.

    Args:
        rng: source of randomness.
        means: log shift of every trait before the perturbation (cell type, plate, well), (F, traits).
        effects: log shift by the perturbation, (F, traits).
        candidates: how often discs as wide as the cells' least distance would cover the field if they could overlap,
            (F,); most candidates of a crowded field are dropped, see :func:`place_cells`.
        size: height and width of the fields, pixels.
        spread: of the cells of a field, see :func:`draw_cells`.

    Returns:
        Field, y and x of every cell, (cells, 3); their traits, (cells, traits); the light, (F, 3, size, size).
    """
    spacing = 1.15 * TRAITS["cell_radius"].base * np.exp((means + effects)[:, NUMBERS["cell_radius"]])
    cells = place_cells(rng, candidates * size**2 / (np.pi * spacing**2), spacing, size)
    field = cells[:, 0].astype(np.int64)
    traits = draw_cells(rng, means[field], effects[field], spread)
    return cells, traits, render_fields(rng, cells, traits, len(means), size)
