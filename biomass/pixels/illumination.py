"""Uneven illumination and intensity scale of a plate, removed as pybbbc removes them from BBBC021.

For every plate, channel and site, the light is the mean image of the site over the plate, smoothed with a Gaussian;
images are divided by it. Then the whole channel of the plate is scaled so that its 0.1 and 99.9 percentiles become 0
and 1, and clipped. Everything is streamed: two passes over the images of a plate, never more than one in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn, idctn

SIGMA = 500.0
"""Standard deviation of the Gaussian, pixels."""

FLOOR_PERCENTILE = 0.02
"""The smoothed mean image is raised to this percentile of its positive values, in percent."""

SCALE_PERCENTILES = (0.1, 99.9)
"""The percentiles of a plate's channel that become 0 and 1, in percent."""

_TRUNCATE = 4.0  # where scipy cuts the Gaussian off, standard deviations
_BINS = 2**15  # half-precision numbers from 0 to infinity


def _damping(n: int, sigma: float) -> np.ndarray:
    """By how much the Gaussian damps each of the ``n`` cosines along an axis, (n,)."""
    x = np.arange(1, int(_TRUNCATE * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    waves = np.cos(np.pi / n * np.outer(np.arange(n), x))
    return (1 + 2 * waves @ weights) / (1 + 2 * weights.sum())


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur an image (H, W) with a Gaussian, mirrored at its borders.

    The same numbers as ``scipy.ndimage.gaussian_filter(image, sigma)``, to rounding, at any sigma: a symmetric filter
    with mirrored borders only scales the cosines of the discrete cosine transform (type II). With a sigma of 500
    pixels the direct sum takes a hundred times as long.
    """
    height, width = image.shape
    waves = dctn(np.asarray(image, np.float64), norm="ortho")
    waves *= _damping(height, sigma)[:, None] * _damping(width, sigma)[None, :]
    return idctn(waves, norm="ortho")


def illumination(mean: np.ndarray, sigma: float = SIGMA, floor_percentile: float = FLOOR_PERCENTILE) -> np.ndarray:
    """The light that a mean image (H, W) was lit with, relative to its darkest place, (H, W) float32, at least 1.

    An image without any positive value gives 1 everywhere.
    """
    light = smooth(mean, sigma)
    positive = light[light > 0]
    if not positive.size:
        return np.ones(mean.shape, np.float32)
    floor = np.percentile(positive, floor_percentile)
    return (np.maximum(light, floor) / floor).astype(np.float32)


class Histogram:
    """Counts of non-negative values, from which percentiles follow without having kept the values.

    Values are rounded to half precision (a relative error below 0.05 %), the precision in which pybbbc holds images:
    there are only 32,768 of them from zero upwards, and as bit patterns they sort as integers do.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count values of any shape, from 0; those above 65,504, the largest of half precision, count as that."""
        half = np.clip(values, 0, np.finfo(np.float16).max).astype(np.float16)
        self.counts += np.bincount(half.view(np.uint16).ravel(), minlength=_BINS)

    def percentile(self, percent: float) -> float:
        """What ``numpy.percentile`` gives for all values so far."""
        ends = np.cumsum(self.counts)
        position = percent / 100 * (ends[-1] - 1)
        below, above = np.searchsorted(ends, [np.floor(position), np.ceil(position)], side="right")
        low, high = (float(np.uint16(bits).view(np.float16)) for bits in (below, above))
        return low + (high - low) * (position - np.floor(position))


@dataclass(frozen=True)
class Correction:
    """What undoes the illumination and the scale of a plate.

    Attributes:
        sites: names of the S sites.
        light: (S, C, H, W) float32, at least 1.
        low: (C,) float32, the intensity that becomes 0.
        high: (C,) float32, the intensity that becomes 1.
    """

    sites: tuple[str, ...]
    light: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def apply(self, image: np.ndarray, site: str, channel: int) -> np.ndarray:
        """Correct and scale one channel (H, W) of an image: float16 in 0…1."""
        return rescale(image, self.light[self.sites.index(site), channel], self.low[channel], self.high[channel])


def rescale(image: np.ndarray, light: np.ndarray, low: float, high: float) -> np.ndarray:
    """Divide an image (H, W) by its light and scale ``low … high`` to 0…1, clipped, float16.

    A channel that is the same everywhere (``low == high``) becomes 0.
    """
    scaled = image / light
    scaled -= np.float32(low)
    scaled *= np.float32(1 / (high - low) if high > low else 0)
    return np.clip(scaled, 0, 1).astype(np.float16)


def measure_channel(
    images: Callable[[], Iterator[tuple[int, np.ndarray]]], n_sites: int, sigma: float = SIGMA
) -> tuple[np.ndarray, float, float]:
    """Measure the illumination and the scale of one channel of a plate.

    Args:
        images: called twice; yields the number of the site, 0 … n_sites - 1, and an image (H, W), non-negative, for
            every field of the plate, in any order.
        n_sites: number of sites; a site without images gets even light.
        sigma: of the Gaussian, pixels.

    Returns:
        The light of every site, (n_sites, H, W) float32, and the intensities that become 0 and 1.
    """
    sums: dict[int, np.ndarray] = {}
    counts = np.zeros(n_sites, np.int64)
    for site, image in images():
        if site not in sums:
            sums[site] = np.zeros(image.shape, np.float64)
        sums[site] += image
        counts[site] += 1
    dark = np.zeros(next(iter(sums.values())).shape)
    light = np.stack([illumination(sums.get(site, dark) / max(counts[site], 1), sigma) for site in range(n_sites)])
    histogram = Histogram()
    for site, image in images():
        histogram.add(image / light[site])
    low, high = (histogram.percentile(percent) for percent in SCALE_PERCENTILES)
    return light, low, high
