"""From stacks to images: which z plane, which point of time, and what becomes of other bit depths and sizes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from biomass.errors import ConfigError

PROJECTIONS = ("max", "focus", "middle")
"""How several z planes become one, besides the number of a plane."""

DEPTHS = ("error", "scale")
SIZES = ("error", "crop", "pad")

_FULL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Reading:
    """How files become images of one size and type.

    Attributes:
        z: what becomes of several z planes: ``max``, the greatest value of every pixel; ``focus``, of every channel the
            sharpest plane, see :func:`project`; ``middle``; or the number of a plane, from 0. None: they are an error.
        time: the number of a point of time, from 0. None: several are an error.
        depths: ``error``: all files are of one type. ``scale``: all become 16 bit, so that the greatest value that a
            file can hold becomes 65535; how many bits it uses (12 in 16), its metadata may say. Floating-point numbers
            must lie between 0 and 1.
        sizes: ``error``: all images are of one size. ``crop``: they are cut to the smallest, about their centre;
            ``pad``: zeros around them make them as large as the largest.
    """

    z: str | int | None = None
    time: int | None = None
    depths: str = "error"
    sizes: str = "error"

    def __post_init__(self) -> None:
        z_fits = self.z is None or self.z in PROJECTIONS or _is_number(self.z)
        for name, value, fits, known in (
            ("z", self.z, z_fits, f"{', '.join(PROJECTIONS)}, or the number of a plane, from 0"),
            ("time", self.time, self.time is None or _is_number(self.time), "the number of a point of time, from 0"),
            ("depths", self.depths, self.depths in DEPTHS, " or ".join(DEPTHS)),
            ("sizes", self.sizes, self.sizes in SIZES, " or ".join(SIZES)),
        ):
            if not fits:
                raise ConfigError(f"{name} is {value!r}: it must be {known}", name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def project(planes: np.ndarray, z: str | int) -> np.ndarray:
    """One image of several planes.

    ``focus`` takes of every channel the plane whose Laplacian varies most, a common measure of focus in microscopy
    (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548).

    Args:
        planes: (Z, C, H, W).
        z: as in :class:`Reading`.

    Returns:
        (C, H, W), of the same type.

    Raises:
        IndexError: there is no plane of this number.

    >>> planes = np.array([[[[0, 9], [0, 9]]], [[[4, 5], [4, 5]]], [[[5, 5], [5, 5]]]], np.uint8)
    >>> [project(planes, z)[0, 0].tolist() for z in ("max", "focus", "middle", 2)]
    [[5, 9], [0, 9], [4, 5], [5, 5]]
    """
    if z == "max":
        return np.asarray(planes.max(0))
    if z == "middle":
        return np.asarray(planes[len(planes) // 2])
    if z == "focus":
        best = [int(np.argmax([sharpness(plane) for plane in channel])) for channel in planes.swapaxes(0, 1)]
        return np.stack([planes[plane, channel] for channel, plane in enumerate(best)])
    return np.asarray(planes[int(z)])


def sharpness(image: np.ndarray) -> float:
    """The variance of an image's Laplacian, (H, W) → a number: the greater, the sharper."""
    from scipy.ndimage import laplace

    return float(laplace(image.astype(np.float32)).var())


def canonical(array: np.ndarray, axes: str) -> np.ndarray:
    """A view (T, Z, C, H, W) of an array whose dimensions are in the order ``axes``; those that it lacks are 1.

    >>> canonical(np.zeros((5, 4, 6, 3)), "ZHWC").shape
    (1, 5, 3, 4, 6)
    """
    order = [axes.index(axis) for axis in "TZCHW" if axis in axes]
    shape = iter(array.shape[i] for i in order)
    return array.transpose(order).reshape([next(shape) if axis in axes else 1 for axis in "TZCHW"])


def to_16_bit(array: np.ndarray, bits: int) -> np.ndarray:
    """An array as uint16, so that the greatest number of ``bits`` bits becomes 65535; 1.0 where it holds fractions.

    Raises:
        ValueError: it holds fractions that are not between 0 and 1.

    >>> to_16_bit(np.array([0, 255], np.uint8), 8).tolist(), to_16_bit(np.array([0, 0.5, 1]), 32).tolist()
    ([0, 65535], [0, 32768, 65535])
    """
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"it holds numbers from {low:.6g} to {high:.6g}, and only those from 0 to 1 can be scaled")
        return np.rint(array * np.float64(_FULL)).astype(np.uint16)
    if bits >= 16:
        return array.astype(np.uint16, copy=False)
    scaled = np.rint(array * (_FULL / ((1 << bits) - 1)))
    return np.minimum(scaled, _FULL).astype(np.uint16)


def fit(image: np.ndarray, size: tuple[int, int], sizes: str) -> np.ndarray | None:
    """An image (C, H, W) in another size, about its centre; None where that is not what ``sizes`` says.

    >>> fit(np.arange(5)[None, None], (1, 3), "crop").tolist(), fit(np.ones((1, 1, 1)), (1, 3), "pad").tolist()
    ([[[1, 2, 3]]], [[[0.0, 1.0, 0.0]]])
    """
    over = [have - want for have, want in zip(image.shape[1:], size, strict=True)]
    if sizes == "crop" and min(over) >= 0:
        top, left = over[0] // 2, over[1] // 2
        return image[:, top : top + size[0], left : left + size[1]]
    if sizes == "pad" and max(over) <= 0:
        edges = [(-one // 2, -one - -one // 2) for one in over]
        return np.pad(image, [(0, 0), *edges])
    return None
