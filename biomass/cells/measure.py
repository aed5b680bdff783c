"""Classical features of nuclei and of what is around them: the baseline that every table of profiles should hold.

Shape, intensity and texture as CellProfiler measures them (Carpenter et al. 2006), with scikit-image. Names are those
of CellProfiler, ``<compartment>_<kind>_<measure>_<channel>``, so that its readers know them as features. The
compartment ``Nuclei`` is the nucleus, ``Cells`` the whole crop around it: cells are not outlined.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.feature import graycomatrix
from skimage.filters import threshold_otsu
from skimage.measure import regionprops_table

from biomass.cells.nuclei import DIAMETER, find_nuclei
from biomass.channels import match_channels

SHAPE = {
    "area": "Area",
    "perimeter": "Perimeter",
    "eccentricity": "Eccentricity",
    "solidity": "Solidity",
    "extent": "Extent",
    "axis_major_length": "MajorAxisLength",
    "axis_minor_length": "MinorAxisLength",
    "equivalent_diameter_area": "EquivalentDiameter",
    **{f"moments_hu-{i}": f"HuMoment_{i}" for i in range(7)},
}
"""Properties of a region in scikit-image, and what CellProfiler calls them. ``FormFactor`` comes on top of them."""

INTENSITY = (
    *("MeanIntensity", "StdIntensity", "MinIntensity", "LowerQuartileIntensity", "MedianIntensity"),
    *("UpperQuartileIntensity", "MaxIntensity", "IntegratedIntensity", "MassDisplacement"),
)

TEXTURE = ("AngularSecondMoment", "Contrast", "Correlation", "InverseDifferenceMoment", "Entropy", "Variance")
"""Of the 14 measures of Haralick et al. (1973)."""

SCALES = (1, 3)
"""Distances between the two pixels of a pair, in pixels."""

_GREYS = 16
_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_AROUND = 68 / DIAMETER  # height of a crop in diameters of a nucleus, as BBBC021's crops have been cut


@dataclass(frozen=True)
class CellMeasures:
    """Measures crops of single cells, ``measures(images)``: each has its nucleus in the middle.

    Attributes:
        channels: names of the C channels.
        dna: name of the one with the stain of DNA, or what it is called elsewhere (nuclei, DAPI, Hoechst …).
        diameter: of a typical nucleus, pixels; None: half of the crop's height.

    >>> y, x = np.mgrid[:32, :32] - 15.5
    >>> images = (1000 * np.exp(-(y**2 + x**2) / 60)).astype(np.uint16)[None, None]
    >>> measures = CellMeasures(("DAPI",))
    >>> vectors, counts = measures(images)
    >>> vectors.shape == (1, len(measures.features)), counts.tolist()
    (True, [1])
    >>> dict(zip(measures.features, vectors[0].round(2).tolist()))["Nuclei_AreaShape_Eccentricity"]
    0.0
    """

    channels: tuple[str, ...]
    dna: str = "DAPI"
    diameter: float | None = None

    @property
    def features(self) -> list[str]:
        """Names of the D features."""
        names = [re.sub(r"\W+", "", channel) for channel in self.channels]
        shape = [f"Nuclei_AreaShape_{name}" for name in (*SHAPE.values(), "FormFactor")]
        inside = [f"{{}}_Intensity_{measure}_{name}" for measure in INTENSITY for name in names]
        inside += [f"{{}}_Texture_{measure}_{name}_{d}" for measure in TEXTURE for d in SCALES for name in names]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        inside += [f"{{}}_Correlation_Correlation_{a}_{b}" for a, b in pairs]
        return shape + [name.format(place) for place in ("Nuclei", "Cells") for name in inside]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure crops (N, C, H, W) of any numeric type; integers are scaled to 0 … 1 by what their type can hold.

        Returns:
            (N, D) float32, and how many nuclei each row stands for, (N,): one.
        """
        (dna,) = match_channels([self.dna], self.channels, "dna")
        top = np.iinfo(images.dtype).max if np.issubdtype(images.dtype, np.integer) else 1
        scaled = images.astype(np.float32) / np.float32(top)
        diameter = self.diameter or images.shape[-2] / 2
        masks = np.stack([central_nucleus(image, diameter) for image in scaled[:, dna]])
        parts = [_shapes(masks)]
        for mask in (masks, np.ones_like(masks)):
            parts += [_intensities(scaled, mask), _textures(scaled, mask), _correlations(scaled, mask)]
        return np.concatenate(parts, axis=1).astype(np.float32), np.ones(len(images), np.int64)


@dataclass(frozen=True)
class FieldMeasures(CellMeasures):
    """Measures fields of view: the mean of :class:`CellMeasures` over the nuclei that are found in a field.

    ``diameter`` is :data:`biomass.cells.nuclei.DIAMETER` if it is None. The crops are about twice as high; at the edge
    of a field, pixels are mirrored.
    """

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Measure fields (N, C, H, W).

        Returns:
            (N, D) float32, zeros where no nucleus is found, and how many nuclei each field has, (N,).
        """
        (dna,) = match_channels([self.dna], self.channels, "dna")
        diameter = self.diameter or DIAMETER
        half = round(_AROUND * diameter / 2)
        cells = CellMeasures(self.channels, self.dna, diameter)
        vectors = np.zeros((len(images), len(self.features)), np.float32)
        counts = np.zeros(len(images), np.int64)
        for number, image in enumerate(images):
            centres, _ = find_nuclei(image[dna], diameter)
            if not len(centres):
                continue
            padded = np.pad(image, ((0, 0), (half, half), (half, half)), "symmetric")
            corners = centres.round().astype(int)
            crops = np.stack([padded[:, y : y + 2 * half, x : x + 2 * half] for y, x in corners])
            vectors[number] = cells(crops)[0].mean(0)
            counts[number] = len(crops)
        return vectors, counts


def central_nucleus(image: np.ndarray, diameter: float) -> np.ndarray:
    """Outline the nucleus in the middle of a crop.

    The crop is smoothed a little and thresholded (Otsu 1979). Of what is above, the piece at the middle is taken, or
    the one nearest to it; a disc of the typical diameter where nothing is brighter than the rest.

    Args:
        image: (H, W) stain of DNA.
        diameter: of a typical nucleus, pixels.

    Returns:
        (H, W) bool, never empty.

    >>> image = np.zeros((9, 9))
    >>> image[3:6, 3:6] = image[0, 0] = 1
    >>> int(central_nucleus(image, 4).sum())
    9
    """
    height, width = image.shape
    middle = (np.arange(height)[:, None] - (height - 1) / 2) ** 2 + (np.arange(width) - (width - 1) / 2) ** 2
    smooth = ndimage.gaussian_filter(image, diameter / 20)
    if smooth.max() > smooth.min():
        pieces, _ = ndimage.label(smooth > threshold_otsu(smooth))
        place = np.argmin(np.where(pieces > 0, middle, np.inf))
        if pieces.flat[place]:
            return np.asarray(ndimage.binary_fill_holes(pieces == pieces.flat[place]))
    return np.asarray(middle <= max(1.0, diameter / 2) ** 2)


def _shapes(masks: np.ndarray) -> np.ndarray:
    """Shapes of regions (N, H, W): (N, 16), all crops in one tall image of labels."""
    n, height, width = masks.shape
    labels = (masks * np.arange(1, n + 1)[:, None, None]).reshape(n * height, width)
    names = list(dict.fromkeys(name.partition("-")[0] for name in SHAPE))
    table = regionprops_table(labels, properties=names)
    columns = [table[name] for name in SHAPE]
    perimeter = np.maximum(table["perimeter"], 1)
    return np.stack([*columns, 4 * np.pi * table["area"] / perimeter**2], axis=1)


def _intensities(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intensities of each channel in regions (N, H, W): (N, 9 C), measure by measure."""
    n, channels, height, width = images.shape
    inside = masks.reshape(n, 1, -1)
    size = inside.sum(2)  # (N, 1)
    flat = images.reshape(n, channels, -1)
    total = np.where(inside, flat, 0).sum(2, dtype=np.float64)
    mean = total / size
    std = np.sqrt(np.where(inside, (flat - mean[..., None]) ** 2, 0).sum(2) / size)
    ordered = np.sort(np.where(inside, flat, np.inf), axis=2)
    quantiles = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = np.broadcast_to(np.rint(share * (size - 1)).astype(int)[..., None], (n, channels, 1))
        quantiles.append(np.take_along_axis(ordered, place, 2)[..., 0])
    y, x = (axis.ravel() for axis in np.mgrid[:height, :width])
    moved = np.zeros_like(mean)
    for axis in (y, x):
        weighted = np.where(inside, flat * axis, 0).sum(2, dtype=np.float64) / np.where(total > 0, total, 1)
        plain = np.where(inside, axis, 0).sum(2) / size
        moved += np.where(total > 0, weighted - plain, 0) ** 2
    measures = [mean, std, *quantiles, total, np.sqrt(moved)]
    return np.concatenate(measures, axis=1)


def _textures(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Haralick's measures of each channel in regions (N, H, W), means over four directions: (N, 12 C)."""
    n, channels = images.shape[:2]
    inside = masks[:, None]
    low = np.where(inside, images, np.inf).min((2, 3), keepdims=True)
    high = np.where(inside, images, -np.inf).max((2, 3), keepdims=True)
    greys = np.minimum((images - low) / np.where(high > low, high - low, 1) * _GREYS, _GREYS - 1)
    greys = np.where(inside, greys + 1, 0).astype(np.uint8)  # 0 is outside
    pairs = np.empty((n, channels, len(SCALES), _GREYS, _GREYS))
    for i in range(n):
        rows, columns = np.nonzero(masks[i].any(1))[0], np.nonzero(masks[i].any(0))[0]
        box = greys[i, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for c in range(channels):
            found = graycomatrix(box[c], SCALES, _ANGLES, _GREYS + 1, symmetric=True)
            pairs[i, c] = found[1:, 1:].sum(3).transpose(2, 0, 1)
    pairs /= np.maximum(pairs.sum((3, 4), keepdims=True), 1)
    grey = np.arange(_GREYS)
    apart = (grey[:, None] - grey) ** 2
    marginal = pairs.sum(4)  # of either pixel of a pair: both are alike
    mean = marginal @ grey
    variance = marginal @ grey**2 - mean**2
    product = (pairs * np.outer(grey, grey)).sum((3, 4)) - mean**2
    measures = [
        (pairs**2).sum((3, 4)),
        (pairs * apart).sum((3, 4)),
        np.where(variance > 1e-12, product / np.where(variance > 1e-12, variance, 1), 1),
        (pairs / (1 + apart)).sum((3, 4)),
        -(pairs * np.log2(np.where(pairs > 0, pairs, 1))).sum((3, 4)),
        variance,
    ]
    return np.stack(measures, axis=1).transpose(0, 1, 3, 2).reshape(n, -1)


def _correlations(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pearson correlation of every two channels in regions (N, H, W): (N, C (C - 1) / 2); 0 where one is constant."""
    n, channels = images.shape[:2]
    inside = masks.reshape(n, 1, -1)
    flat = images.reshape(n, channels, -1).astype(np.float64)
    centred = np.where(inside, flat - np.where(inside, flat, 0).sum(2, keepdims=True) / inside.sum(2, keepdims=True), 0)
    length = np.sqrt((centred**2).sum(2))
    products = np.einsum("nip,njp->nij", centred, centred)
    scale = length[:, :, None] * length[:, None]
    first, second = np.triu_indices(channels, 1)
    found: np.ndarray = np.where(scale > 1e-12, products / np.where(scale > 1e-12, scale, 1), 0)[:, first, second]
    return found


def measures_of(channels: Sequence[str], level: str, dna: str = "DAPI", diameter: float | None = None) -> CellMeasures:
    """What measures the rows of a screen, ``cells`` or ``fields``.

    Raises:
        ConfigError: there is no such channel.

    >>> type(measures_of(["DNA", "actin"], "fields")).__name__
    'FieldMeasures'
    """
    match_channels([dna], channels, "dna")
    return (CellMeasures if level == "cells" else FieldMeasures)(tuple(channels), dna, diameter)
