"""Simulated screens: cells whose morphology depends on the perturbation, seen through the nuisance of their plate.

:func:`simulate_rxrx1` writes a whole screen to disk in the layout of RxRx1-WILDS, so that the same readers serve it.
The parts below it are pure functions that know no files: :data:`TRAITS` describe a cell, :func:`draw_effects` what a
perturbation does to them, :func:`place_cells` and :func:`draw_cells` the cells of some fields of view,
:func:`render_cells` their light, and :func:`acquire` what a plate's staining, optics and camera make of it
(:class:`Nuisance`).

The model is our own; it was built so that a screen is hard the way real ones are:

- plates differ in what per-image standardization cannot undo (gamma, saturation, blur, haze, uneven light, noise,
  number of cells), most of it shared by the plates of an experiment;
- staining and culture drift from plate to plate *along the same traits* that perturbations change, so that the look
  of a treatment on one plate is the look of another treatment on the next;
- experiments of ``val`` and ``test`` lie further out than those of ``train``.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree
from tqdm import tqdm

from biomass.errors import ConfigError, DataError
from biomass.screen import Screen

CHANNELS = ("nuclei", "er", "actin")
"""The channels of a simulated image, in the order of RxRx1-WILDS."""

CELL_TYPES = ("HEPG2", "HUVEC", "RPE", "U2OS")
"""The cell types of RxRx1; an experiment has one of them."""

CROP = 48
"""Height and width of a cropped cell, pixels, as published for RxRx1."""

_VERSION = 2  # part of a screen's identity: raise it with every change that changes a pixel
_WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24))  # the inner 308 of 384
_STAMP = 40  # a cell is drawn on a square of this side, pixels
_CHUNK_CELLS = 96  # cells drawn at once: their arrays stay in a core's cache
_CHUNK_PIXELS = 2**21  # pixels of the fields composed at once: bounds the memory of a plate of any size
_RESPONDERS = 0.85  # share of the cells of a well that respond to its perturbation
_ACTIVE = 0.5  # share of the traits that a perturbation changes
_WELL_SPREAD = 0.10  # well-to-well spread of a trait, as a share of the spread of the perturbations' effects
_POSITIVE = 1.5  # how much stronger a positive control acts than a treatment
_EXPERIMENT_SHARE = 0.6  # share of the nuisance's variance that the plates of an experiment have in common
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

_TRAIT = {name: i for i, name in enumerate(TRAITS)}
_BASE, _CELLS, _EFFECT, _DRIFT, _TYPE = np.array([t[:5] for t in TRAITS.values()]).T
_SHAPE = np.array([t.shape for t in TRAITS.values()])


@dataclass(frozen=True)
class Nuisance:
    """What a plate does to the images of its cells. Arrays (3,) hold a value for every channel.

    Attributes:
        drift: shift of every trait of every cell, in log units, (traits,).
        gain: of staining and exposure; 1 saturates only the brightest spots.
        background: light where there is no cell, of the full scale.
        gamma: exponent of the camera's response.
        blur: sigma of the optics, pixels.
        haze: share of the light that comes from out of focus.
        tilt: slope of the illumination across the field, (3, 2), down and to the right.
        vignette: loss of light at the corners.
        noise: photon noise at full scale, standard deviation.
    """

    drift: np.ndarray
    gain: np.ndarray
    background: np.ndarray
    gamma: np.ndarray
    blur: np.ndarray
    haze: np.ndarray
    tilt: np.ndarray
    vignette: np.ndarray
    noise: float

    def flat(self) -> dict[str, float]:
        """The values under readable names, for a row of a table."""
        row = {f"drift_{name}": float(self.drift[i]) for name, i in _TRAIT.items()}
        for name in ("gain", "background", "gamma", "blur", "haze", "vignette"):
            row |= {f"{name}_{c}": float(v) for c, v in zip(CHANNELS, getattr(self, name), strict=True)}
        for i, axis in enumerate("yx"):
            row |= {f"tilt_{axis}_{c}": float(v) for c, v in zip(CHANNELS, self.tilt[:, i], strict=True)}
        return row | {"noise": self.noise}


def draw_nuisance(
    experiment: np.random.Generator, plate: np.random.Generator, strength: float = 1.0, drift: float = 1.0
) -> Nuisance:
    """Draw the nuisance of a plate.

    Args:
        experiment: the generator of its experiment, always in the same state for all of its plates.
        plate: the generator of the plate.
        strength: how far plates lie apart; 0 gives the ideal plate, 1 a plate of a training experiment.
        drift: how much of that is staining and culture, along the traits of cells; 0 leaves optics and camera.
    """

    def normal(*shape: int) -> np.ndarray:
        common = experiment.standard_normal(shape) * np.sqrt(_EXPERIMENT_SHARE)
        own = plate.standard_normal(shape) * np.sqrt(1 - _EXPERIMENT_SHARE)
        return strength * 2.5 * np.tanh((common + own) / 2.5)  # without the far tails, in which nothing is seen

    def channels() -> np.ndarray:
        return (normal(1) + normal(3)) / np.sqrt(2)  # light and focus are half the microscope's, half the stain's

    return Nuisance(
        drift=normal(len(TRAITS)) * _DRIFT * drift,
        gain=0.8 * np.exp(0.35 * channels()),
        background=0.05 * np.exp(0.6 * channels()),
        gamma=np.exp(0.30 * channels()),
        blur=0.8 * np.exp(0.40 * channels()),
        haze=0.15 * np.exp(0.6 * channels()),
        tilt=0.22 * normal(3, 2),
        vignette=0.15 * np.exp(0.6 * channels()),
        noise=0.025 * float(np.exp(0.4 * normal(1)[0])),
    )


def draw_effects(rng: np.random.Generator, n: int, *, intensity: float = 1.0, shape: float = 1.0) -> np.ndarray:
    """Draw what ``n`` perturbations do: shifts of every trait in log units, (n, traits); half of them are zero.

    Args:
        rng: source of randomness.
        n: number of perturbations.
        intensity: strength of the effects on intensities; 0 leaves them as they are.
        shape: strength of the effects on shape and texture.
    """
    active = rng.random((n, len(TRAITS))) < _ACTIVE
    return active * rng.standard_normal((n, len(TRAITS))) * _EFFECT * np.where(_SHAPE, shape, intensity)


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
    """
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


def draw_cells(rng: np.random.Generator, means: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Draw the traits of single cells.

    Args:
        rng: source of randomness.
        means: log shift of every trait before the perturbation (cell type, plate, well), (cells, traits).
        effects: log shift by the perturbation, (cells, traits); 85 % of the cells respond.

    Returns:
        The traits, (cells, traits) float32.
    """
    responds = rng.random((len(means), 1)) < _RESPONDERS
    logs = means + responds * effects + rng.standard_normal(means.shape) * _CELLS
    return (_BASE * np.exp(logs)).astype(np.float32)


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
        return traits[:, _TRAIT[name], None, None]

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


def acquire(rng: np.random.Generator, light: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """What the microscope records of the light of some fields of view of one plate.

    Args:
        rng: source of the camera's noise.
        light: (n, 3, H, W) float32, as :func:`render_fields` gives it.
        nuisance: of the plate.

    Returns:
        (n, 3, H, W) float32 in 0…1.
    """
    height, width = light.shape[2:]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    image = np.empty(light.shape, np.float32)
    for c in range(len(CHANNELS)):
        down, right = nuisance.tilt[c]
        lamp = 1 + down * y + right * x - nuisance.vignette[c] * (x * x + y * y) / 2
        haze = min(float(nuisance.haze[c]), 0.8)
        sharp = _blurred(light[:, c], float(nuisance.blur[c]))
        seen = (1 - haze) * sharp + haze * _blurred(sharp, 8.0)
        seen = float(nuisance.gain[c]) * seen + float(nuisance.background[c])
        seen *= np.maximum(lamp, 0.1).astype(np.float32)
        seen += nuisance.noise * np.sqrt(seen) * rng.standard_normal(seen.shape, dtype=np.float32)
        image[:, c] = np.clip(seen, 0, 1) ** float(nuisance.gamma[c])
    return image


def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    for axis in (1, 2):
        images = gaussian_filter1d(images, sigma, axis=axis, mode="nearest", truncate=3.0)
    return images


def quantize(image: np.ndarray, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Round an image in 0…1 to the full scale of an unsigned integer type."""
    return np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)


@dataclass(frozen=True, kw_only=True)
class Design:
    """The parameters of a simulated screen: the same design is the same screen, bit for bit.

    Every experiment holds every treatment in ``plates * wells / treatments`` wells, scattered over its plates anew
    (with ``plates * wells == treatments`` in exactly one well, as in RxRx1), and every plate holds one well of every
    positive control and ``negative_wells`` wells of the negative one. Experiments are split as in RxRx1: about 65 %
    ``train``, 8 % ``val``, 27 % ``test``, and take turns in the cell types within each split.

    Attributes:
        seed: everything random follows from it.
        experiments: number of experiments, at least 3.
        plates: plates an experiment.
        treatments: number of treatments; classes ``0 … treatments - 1``.
        positive_controls: number of positive controls, the classes behind the treatments.
        wells: treated wells a plate.
        negative_wells: wells a plate of the negative control, the last class; 0 leaves the class out.
        empty_wells: treated wells a plate in which no cell is left.
        sites: fields of view a well.
        size: height and width of a field, pixels.
        cell_types: their names.
        density: number of cells an area; 1 is about two per 1,000 pixels.
        intensity_effect: strength of the perturbations' effects on intensities.
        shape_effect: strength of their effects on shapes and textures.
        nuisance: how far plates lie apart; 0 makes all plates ideal.
        drift: how much of that is drift of staining and culture, along the traits that perturbations change; at 0
            plates differ in optics and camera only.
        test_shift: how many times further apart the plates of ``val`` and ``test`` lie than those of ``train``.
        cells: also cut out the cells.

    Raises:
        ConfigError: the numbers do not fit together.
    """

    seed: int = 0
    experiments: int = 16
    plates: int = 4
    treatments: int = 20
    positive_controls: int = 4
    wells: int = 30
    negative_wells: int = 4
    empty_wells: int = 0
    sites: int = 2
    size: int = 64
    cell_types: Sequence[str] = CELL_TYPES
    density: float = 1.0
    intensity_effect: float = 1.0
    shape_effect: float = 1.0
    nuisance: float = 1.0
    drift: float = 1.0
    test_shift: float = 1.6
    cells: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell_types", tuple(self.cell_types))
        least = {"experiments": 3, "plates": 1, "treatments": 1, "wells": 1, "sites": 1, "size": CROP}
        for name in (*least, "seed", "positive_controls", "negative_wells", "empty_wells"):
            value, low = getattr(self, name), least.get(name, 0)
            if not isinstance(value, int) or value < low:
                raise ConfigError(f"a simulated screen with {name}={value}: use a whole number from {low}")
        for name in ("density", "intensity_effect", "shape_effect", "nuisance", "drift", "test_shift"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < np.inf:
                raise ConfigError(f"a simulated screen with {name}={value}: use a number from 0")
        if not self.cell_types:
            raise ConfigError("a simulated screen with cell_types=[]: name at least one")
        if self.plates * self.wells < self.treatments:
            raise ConfigError(
                f"{self.treatments} treatments do not fit in {self.plates} plates of {self.wells} treated wells: "
                f"use at least wells={-(-self.treatments // self.plates)}"
            )
        if self.wells + self.positive_controls + self.negative_wells > len(_WELLS):
            raise ConfigError(
                f"a plate has {len(_WELLS)} wells, not {self.wells + self.positive_controls + self.negative_wells}: "
                "lower wells, positive_controls or negative_wells"
            )
        if self.empty_wells > self.wells:
            raise ConfigError(f"empty_wells={self.empty_wells} is more than wells={self.wells}: lower it")

    @property
    def name(self) -> str:
        """A short hash of the parameters: the name of the screen's folder."""
        return hashlib.sha256(self._json().encode()).hexdigest()[:10]

    def _json(self) -> str:
        return json.dumps({"version": _VERSION} | vars(self), indent=1, sort_keys=True)


@dataclass(frozen=True)
class Plate:
    """A plate of a simulated screen before anything is drawn.

    Attributes:
        experiment: name of its experiment, such as ``HUVEC-03``.
        number: of the plate within the experiment, from 1.
        split: ``train``, ``val`` or ``test``.
        cell_type: name of the cell type.
        key: number of the experiment and of the plate, from 0, that its generators are seeded with.
        wells: names of its wells, in the order of the plate, (W,).
        classes: what the wells hold, (W,).
        empty: whether all cells of the well are gone, (W,) bool.
    """

    experiment: str
    number: int
    split: str
    cell_type: str
    key: tuple[int, int]
    wells: np.ndarray
    classes: np.ndarray
    empty: np.ndarray


def _rng(design: Design, stream: str, *key: int) -> np.random.Generator:
    """The generator of one purpose and one experiment or plate: none depends on how much another has drawn."""
    streams = ("biology", "layout", "nuisance", "pixels")
    return np.random.default_rng(np.random.SeedSequence(design.seed, spawn_key=(streams.index(stream), *key)))


def lay_out(design: Design) -> list[Plate]:
    """The plates of a screen: which well of which plate holds which class."""
    n_test = max(1, round(0.27 * design.experiments))
    n_val = max(1, round(0.08 * design.experiments))
    sizes = {"train": design.experiments - n_test - n_val, "val": n_val, "test": n_test}
    controls = np.arange(design.treatments, design.treatments + design.positive_controls + 1)
    controls = np.repeat(controls, [1] * design.positive_controls + [design.negative_wells])
    plates: list[Plate] = []
    seen = dict.fromkeys(design.cell_types, 0)
    for e, (split, i) in enumerate((s, i) for s, n in sizes.items() for i in range(n)):
        cell_type = design.cell_types[i % len(design.cell_types)]
        seen[cell_type] += 1
        rng = _rng(design, "layout", e)
        shuffled = rng.permutation(design.treatments)  # who gets one well more, where they cannot all have as many
        treated = rng.permutation(np.resize(shuffled, design.plates * design.wells)).reshape(design.plates, -1)
        for p in range(design.plates):
            classes = np.concatenate([treated[p], controls])
            empty = np.zeros(len(classes), bool)
            empty[rng.permutation(design.wells)[: design.empty_wells]] = True
            places = rng.permutation(len(_WELLS))[: len(classes)]
            order = np.argsort(places)
            plates.append(
                Plate(
                    f"{cell_type}-{seen[cell_type]:02d}",
                    p + 1,
                    split,
                    cell_type,
                    (e, p),
                    np.array(_WELLS)[places[order]],
                    classes[order],
                    empty[order],
                )
            )
    return plates


def plate_nuisance(design: Design, plate: Plate) -> Nuisance:
    """The nuisance of a plate of a screen."""
    experiment, number = plate.key
    strength = design.nuisance * (1.0 if plate.split == "train" else design.test_shift)
    common, own = _rng(design, "nuisance", experiment), _rng(design, "nuisance", experiment, number)
    return draw_nuisance(common, own, strength, design.drift)


def _biology(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """What the classes do, (classes, traits), and how the cell types look, (cell types, traits), in log units."""
    rng = _rng(design, "biology")
    types = rng.standard_normal((len(design.cell_types), len(TRAITS))) * _TYPE
    strengths = {"intensity": design.intensity_effect, "shape": design.shape_effect}
    treatments = draw_effects(rng, design.treatments, **strengths)
    positive = draw_effects(rng, design.positive_controls, **strengths) * _POSITIVE
    return np.concatenate([treatments, positive, np.zeros((1, len(TRAITS)))]), types


def render_plate(design: Design, plate: Plate) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw a plate's fields of view, in the order of its wells and their sites, some at a time.

    Yields:
        The images, (n, 3, H, W) uint8, and field, y, x of every cell whose centre was drawn, (cells, 3).
    """
    classes, types = _biology(design)
    rng, nuisance = _rng(design, "pixels", *plate.key), plate_nuisance(design, plate)
    own = rng.standard_normal((len(plate.wells), len(TRAITS))) * _WELL_SPREAD * _EFFECT
    means = np.repeat(types[design.cell_types.index(plate.cell_type)] + nuisance.drift + own, design.sites, axis=0)
    effects = np.repeat(classes[plate.classes], design.sites, axis=0)
    empty = np.repeat(plate.empty, design.sites)
    step = max(1, _CHUNK_PIXELS // design.size**2)
    for start in range(0, len(means), step):
        mean, effect = means[start : start + step], effects[start : start + step]
        total = mean + effect
        spacing = 1.15 * TRAITS["cell_radius"].base * np.exp(total[:, _TRAIT["cell_radius"]])
        crowding = design.density * np.exp(total[:, _TRAIT["crowding"]]) * ~empty[start : start + step]
        # Candidates as many as discs of diameter `spacing` that would cover the field 1.3 times if they could overlap.
        cells = place_cells(rng, 1.3 * crowding * design.size**2 / (np.pi * spacing**2), spacing, design.size)
        field = cells[:, 0].astype(np.int64)
        traits = draw_cells(rng, mean[field], effect[field])
        light = render_fields(rng, cells, traits, len(mean), design.size)
        yield quantize(acquire(rng, light, nuisance)), cells


def crop_cells(image: np.ndarray, centres: np.ndarray, size: int = CROP) -> np.ndarray:
    """Cut out the cells whose crop lies inside the image.

    Args:
        image: (C, H, W).
        centres: y and x of the cells, pixels, (n, 2).
        size: height and width of a crop, pixels, even; its centre is the pixel behind its middle.

    Returns:
        (m, C, size, size) with m <= n, in the order of ``centres``.
    """
    corner = np.rint(centres).astype(np.int64) - size // 2
    corner = corner[((corner >= 0) & (corner + size <= image.shape[1:])).all(axis=1)]
    y, x = (corner[:, i, None] + np.arange(size) for i in (0, 1))
    return image[:, y[:, :, None], x[:, None, :]].transpose(1, 0, 2, 3)


def _save(path: Path, image: np.ndarray) -> None:
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path, compress_level=1)


def _write_plate(folder: Path, design: Design, plate: Plate) -> list[int]:
    """Write a plate's files and return the number of cells cut out of each of its fields."""
    place = f"{plate.experiment}/Plate{plate.number}"
    images, cells = folder / "rxrx1_v1.0" / "images" / place, folder / "cells" / place
    images.mkdir(parents=True)
    names = [f"{well}_s{site}" for well in plate.wells for site in range(1, design.sites + 1)]
    counts: list[int] = []
    for fields, centres in render_plate(design, plate):
        bounds = np.searchsorted(centres[:, 0], np.arange(len(fields) + 1))
        for f, image in enumerate(fields):
            name = names[len(counts)]
            _save(images / f"{name}.png", image)
            crops = crop_cells(image, centres[bounds[f] : bounds[f + 1], 1:]) if design.cells else ()
            counts.append(len(crops))
            if design.cells:
                (cells / name).mkdir(parents=True)  # also without any cell: the field was looked at
            for i, crop in enumerate(crops):
                _save(cells / name / f"{i}.png", crop)
    return counts


def _metadata(design: Design, plates: Sequence[Plate]) -> pd.DataFrame:
    """The table of all fields of view, with the columns of RxRx1-WILDS."""
    sizes = [len(p.wells) for p in plates]

    def repeat(values: Sequence[str] | Sequence[int]) -> np.ndarray:
        return np.repeat(np.array(values), sizes)

    classes = np.concatenate([p.classes for p in plates])
    n, positive = design.treatments, design.positive_controls
    sirnas = [f"s{i:04d}" for i in range(n)] + [f"p{i:02d}" for i in range(positive)] + ["EMPTY"]
    kinds = ["treatment"] * n + ["positive_control"] * positive + ["negative_control"]
    wells = pd.DataFrame(
        {
            "cell_type": repeat([p.cell_type for p in plates]),
            "dataset": repeat([p.split for p in plates]),
            "experiment": repeat([p.experiment for p in plates]),
            "plate": repeat([p.number for p in plates]),
            "well": np.concatenate([p.wells for p in plates]),
            "well_type": np.array(kinds)[classes],
            "sirna": np.array(sirnas)[classes],
            "sirna_id": classes,
        }
    )
    table = wells.loc[wells.index.repeat(design.sites)].reset_index(drop=True)
    table["site"] = np.tile(np.arange(1, design.sites + 1), len(wells))
    table["well_id"] = table["experiment"] + "_" + table["plate"].astype(str) + "_" + table["well"]
    table["site_id"] = table["well_id"] + "_" + table["site"].astype(str)
    return table[
        [
            "site_id",
            "well_id",
            "cell_type",
            "dataset",
            "experiment",
            "plate",
            "well",
            "site",
            "well_type",
            "sirna",
            "sirna_id",
        ]
    ]


def _write_screen(folder: Path, design: Design, workers: int) -> None:
    plates = lay_out(design)
    table = _metadata(design, plates)
    images = folder / "rxrx1_v1.0"
    images.mkdir(parents=True)
    table.to_csv(images / "metadata.csv", index=False)
    (images / "RELEASE_v1.0.txt").write_text("A simulated screen in the layout of RxRx1-WILDS 1.0.\n")
    # Threads, not processes: numpy and the PNG encoder let go of the interpreter, and nothing has to be imported anew
    # in a script that has not guarded its main module.
    with ThreadPoolExecutor(workers) as pool:
        try:
            jobs = [pool.submit(_write_plate, folder, design, plate) for plate in plates]
            for job in tqdm(as_completed(jobs), f"Simulating {folder.parent}", len(jobs), unit="plate", disable=None):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if design.cells:
        summary = table[["experiment", "plate", "well", "site"]].assign(segmented=[n for j in jobs for n in j.result()])
        summary.to_csv(folder / "cells.csv", index=False)
    truth = [
        {"experiment": p.experiment, "plate": p.number, "dataset": p.split} | plate_nuisance(design, p).flat()
        for p in plates
    ]
    pd.DataFrame(truth).to_csv(folder / "nuisance.csv", index=False)
    (folder / "design.json").write_text(design._json())


def simulate_rxrx1(root: str | Path, design: Design | None = None, *, workers: int | None = None) -> Path:
    """Write a simulated screen below ``root``, unless it is there already.

    It appears under its final name when it is complete, and not before; several processes that ask for it at once
    wait for the first of them.

    Args:
        root: the folder that data sources read from.
        design: the screen's parameters; ``Design()`` if left out.
        workers: threads that draw and write; one a core, at most 8, if left out. The files do not depend on it.

    Returns:
        The screen's folder, ``<root>/simulated/<design.name>``. In it:

        - ``rxrx1_v1.0/``: what the RxRx1-WILDS reader finds below its ``root_dir``;
        - with ``design.cells``, ``cells/<experiment>/Plate<k>/<well>_s<site>/<i>.png``, and ``cells.csv`` with the
          columns ``experiment, plate, well, site, segmented`` (cells of every field, 0 included);
        - ``nuisance.csv``, the truth about every plate, and ``design.json``.

    Raises:
        DataError: the folder cannot be written.
    """
    design = design or Design()
    folder = Path(root) / "simulated" / design.name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{design.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{design.name}.lock")):  # let go of by the system if this process is killed
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                try:
                    _write_screen(partial, design, workers or min(8, os.cpu_count() or 1))
                    partial.rename(folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write a simulated screen to '{folder}' ({error.strerror or error}): "
            "point dataloaders.root_dir (or BIOMASS_DATA) to a folder that can be written"
        ) from error
    return folder


def load_simulated(root_dir: str | Path = "data", **design: Any) -> Screen:
    """A simulated screen as a Screen, written below ``root_dir`` on first use.

    Args:
        root_dir: the folder that data sources read from.
        design: parameters of :class:`Design` that differ from its defaults.

    Raises:
        ConfigError: an unknown parameter, or one out of range.
        DataError: the folder cannot be written.
    """
    from biomass.datasets.rxrx1 import load_rxrx1

    return load_rxrx1(simulate_rxrx1(root_dir, _design(**design)), download=False)


def load_simulated_cells(root_dir: str | Path = "data", **design: Any) -> Screen:
    """The cropped cells of a simulated screen as a Screen, written below ``root_dir`` on first use.

    Packed on the spot, as reading thousands of small files would be most of the work.

    Args:
        root_dir: the folder that data sources read from.
        design: parameters of :class:`Design` that differ from its defaults.

    Raises:
        ConfigError: an unknown parameter, or one out of range.
        DataError: the folder cannot be written.
    """
    from biomass.datasets.rxrx1_cells import load_rxrx1_cells
    from biomass.pixels.packed import packed_beside
    from biomass.pixels.writer import pack

    folder = simulate_rxrx1(root_dir, _design(cells=True, **design))
    screen = load_rxrx1_cells(folder / "cells", root_dir=folder, download=False)
    if packed_beside(folder / "cells") is None:
        pack(screen, folder / "cells.packed")
        screen = load_rxrx1_cells(folder / "cells", root_dir=folder, download=False)
    return screen


def _design(**parameters: Any) -> Design:
    known = list(Design.__dataclass_fields__)
    unknown = set(parameters) - set(known)
    if unknown:
        raise ConfigError(f"a simulated screen has no parameter '{min(unknown)}'; it has: {', '.join(known)}")
    return Design(**parameters)
