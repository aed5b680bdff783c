"""What a plate does to the images of its cells: staining, culture, optics and camera.

The model is our own: plates differ in what per-image standardization cannot undo (gamma, saturation, blur, haze, uneven
light, noise and, where asked for, a mottle with a grain of its own), and most of it is shared by the plates of an
experiment.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter1d

from biomass.simulation.morphology import CHANNELS, NUMBERS, TRAITS, trait_values

_EXPERIMENT_SHARE = 0.6  # share of the nuisance's variance that the plates of an experiment have in common


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
        mottle: standard deviation of a texture of residues that shines over cells and gaps alike, of the full scale.
        grain: sigma of that texture, (3, 2), down and to the right, pixels.
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
    mottle: np.ndarray = field(default_factory=lambda: np.zeros(len(CHANNELS)))
    grain: np.ndarray = field(default_factory=lambda: np.ones((len(CHANNELS), 2)))

    def flat(self) -> dict[str, float]:
        """The values under readable names, for a row of a table."""
        row = {f"drift_{name}": float(self.drift[i]) for name, i in NUMBERS.items()}
        for name in ("gain", "background", "gamma", "blur", "haze", "vignette"):
            row |= {f"{name}_{c}": float(v) for c, v in zip(CHANNELS, getattr(self, name), strict=True)}
        for i, axis in enumerate("yx"):
            row |= {f"tilt_{axis}_{c}": float(v) for c, v in zip(CHANNELS, self.tilt[:, i], strict=True)}
        if self.mottle.any():
            row |= {f"mottle_{c}": float(v) for c, v in zip(CHANNELS, self.mottle, strict=True)}
            for i, axis in enumerate("yx"):
                row |= {f"grain_{axis}_{c}": float(v) for c, v in zip(CHANNELS, self.grain[:, i], strict=True)}
        return row | {"noise": self.noise}


def draw_nuisance(
    experiment: np.random.Generator,
    plate: np.random.Generator,
    strength: float = 1.0,
    drift: float = 1.0,
    mottle: float = 0.0,
) -> Nuisance:
    """Draw the nuisance of a plate.

    Args:
        experiment: the generator of its experiment, always in the same state for all of its plates.
        plate: the generator of the plate.
        strength: how far plates lie apart; 0 gives the ideal plate, 1 a plate of a training experiment.
        drift: how much of that is staining and culture, along the traits of cells; 0 leaves optics and camera.
        mottle: strength of the mottle, whose grain tells plates apart; 0 for none.
    """

    def normal(*shape: int) -> np.ndarray:
        common = experiment.standard_normal(shape) * np.sqrt(_EXPERIMENT_SHARE)
        own = plate.standard_normal(shape) * np.sqrt(1 - _EXPERIMENT_SHARE)
        return strength * 2.5 * np.tanh((common + own) / 2.5)  # without the far tails, in which nothing is seen

    def channels() -> np.ndarray:
        return (normal(1) + normal(3)) / np.sqrt(2)  # light and focus are half the microscope's, half the stain's

    return Nuisance(
        drift=normal(len(TRAITS)) * trait_values("drift") * drift,
        gain=0.8 * np.exp(0.35 * channels()),
        background=0.05 * np.exp(0.6 * channels()),
        gamma=np.exp(0.30 * channels()),
        blur=0.8 * np.exp(0.40 * channels()),
        haze=0.15 * np.exp(0.6 * channels()),
        tilt=0.22 * normal(3, 2),
        vignette=0.15 * np.exp(0.6 * channels()),
        noise=0.025 * float(np.exp(0.4 * normal(1)[0])),
        mottle=0.05 * mottle * np.exp(0.7 * normal(3)),
        grain=1.2 * np.exp(0.6 * normal(3, 2)),
    )


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
        cells = light[:, c]
        if nuisance.mottle[c]:
            cells = cells + float(nuisance.mottle[c]) * _mottle(rng, cells.shape, nuisance.grain[c])
        sharp = _blurred(cells, float(nuisance.blur[c]))
        seen = (1 - haze) * sharp + haze * _blurred(sharp, 8.0)
        seen = float(nuisance.gain[c]) * seen + float(nuisance.background[c])
        seen *= np.maximum(lamp, 0.1).astype(np.float32)
        seen += nuisance.noise * np.sqrt(seen) * rng.standard_normal(seen.shape, dtype=np.float32)
        image[:, c] = np.clip(seen, 0, 1) ** float(nuisance.gamma[c])
    return image


def _mottle(rng: np.random.Generator, shape: tuple[int, ...], grain: np.ndarray) -> np.ndarray:
    """A texture (n, H, W) of about mean 2 and standard deviation 1 in every image, never negative."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis, sigma in zip((1, 2), grain, strict=True):
        noise = gaussian_filter1d(noise, min(float(sigma), noise.shape[axis]), axis=axis, mode="wrap", truncate=3.0)
    return np.maximum(2 + noise / noise.std((1, 2), keepdims=True), 0)


def _blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    for axis in (1, 2):  # what is wider than the field is flat
        images = gaussian_filter1d(images, min(sigma, images.shape[axis]), axis=axis, mode="nearest", truncate=3.0)
    return images


def quantize(image: np.ndarray, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Round an image in 0…1 to the full scale of an unsigned integer type."""
    return np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)
