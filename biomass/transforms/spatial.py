"""Transforms that move pixels: rotations, flips, crops, blur.

Each draws a *warp* for every sample (:mod:`biomass.transforms.warps`), and :class:`~biomass.transforms.Compose` merges
neighbours of one kind before it applies them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from biomass.errors import ConfigError
from biomass.transforms.random import as_range, check_probability, uniform
from biomass.transforms.steps import Size, Step, SteppedTransform, constant
from biomass.transforms.warps import Stretch, Turn, Window, convolving, resized_places, resizing


@dataclass(frozen=True)
class RandomRotate90(SteppedTransform):
    """Rotate by 0, 90, 180 or 270 degrees counterclockwise, equally likely. Images must be square (ConfigError)."""

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        if size[0] != size[1]:
            raise ConfigError(
                f"RandomRotate90: images are {size[0]} x {size[1]} pixels, not square; crop them first, or flip them "
                "instead (RandomHorizontalFlip, RandomVerticalFlip)"
            )
        quarters = (4 * uniform(images, generator)).long()
        return Turn(constant((0, 6, 3, 5), torch.int64, images.device).take(quarters))


@dataclass(frozen=True)
class RandomHorizontalFlip(SteppedTransform):
    """Mirror left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "RandomHorizontalFlip")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        return Turn(2 * (uniform(images, generator) < self.p))


@dataclass(frozen=True)
class RandomVerticalFlip(SteppedTransform):
    """Turn upside down with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "RandomVerticalFlip")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        return Turn(1 * (uniform(images, generator) < self.p))


@dataclass(frozen=True)
class RandomCrop(SteppedTransform):
    """Cut out a window at a random place, as it is; every place is equally likely.

    Args:
        size: side of the window, or its height and width, in pixels. An image must be as large (else ConfigError).
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "RandomCrop")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        window = _inside(_sides(self.size, "RandomCrop"), size, "RandomCrop")
        places = constant((size[0] - window[0] + 1, size[1] - window[1] + 1), torch.float64, images.device)
        return Window((uniform(images, generator, 2) * places).long().T, window)


@dataclass(frozen=True)
class CenterCrop(SteppedTransform):
    """Cut out the window in the middle, as it is: what evaluation does where training has :class:`RandomCrop`.

    Args:
        size: side of the window, or its height and width, in pixels. An image must be as large (else ConfigError).

    >>> CenterCrop([1, 2])(torch.arange(12.0).view(1, 1, 3, 4))
    tensor([[[[5., 6.]]]])
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "CenterCrop")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        height, width = _inside(_sides(self.size, "CenterCrop"), size, "CenterCrop")
        top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
        return _Cut(slice(top, top + height), slice(left, left + width))


@dataclass(frozen=True)
class _Cut(Step):
    """The same rows and columns of every sample."""

    rows: slice
    columns: slice

    def size_after(self, size: Size) -> Size:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def apply(self, images: Tensor, part: slice) -> Tensor:
        return images[:, :, self.rows, self.columns]


@dataclass(frozen=True)
class Resize(SteppedTransform):
    """Resize to another number of pixels, bilinear and antialiased. Computed in float32 or better.

    Args:
        size: of the shorter side, the other in proportion; or height and width; in pixels.

    >>> Resize(2)(torch.zeros(1, 3, 4, 6)).shape
    torch.Size([1, 3, 2, 3])
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "Resize")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        if isinstance(self.size, int):
            shorter = min(size)
            return _Resized((self.size * size[0] // shorter, self.size * size[1] // shorter))
        return _Resized(_sides(self.size, "Resize"))


@dataclass(frozen=True)
class _Resized(Step):
    """Every sample in another size, by the operator of torch."""

    size: Size

    def size_after(self, size: Size) -> Size:
        return self.size

    def apply(self, images: Tensor, part: slice) -> Tensor:
        pixels = images.to(_precise(images))
        if self.size == images.shape[2:]:
            return pixels
        return F.interpolate(pixels, self.size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class RandomResizedCrop(SteppedTransform):
    """Crop a random box and resize it to ``size`` x ``size`` pixels, bilinear and antialiased.

    The box is drawn as in torchvision (Szegedy 2015, "Going deeper with convolutions", section 6). Its share of the
    image's area is uniform in ``scale``, its width over height log-uniform in ``ratio``, its place uniform among whole
    pixels. If ten draws do not fit into the image, the largest centred box with a permitted ratio is taken.

    Args:
        size: side of the result, in pixels.
        scale: smallest and largest area, as a share of the image's, in 0 … 1.
        ratio: smallest and largest width over height, > 0.
    """

    size: int
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"RandomResizedCrop(size={self.size}): the result needs a side of at least 1 pixel")
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ConfigError(f"RandomResizedCrop(scale={self.scale}): give [smallest, largest] share within 0 … 1")
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ConfigError(f"RandomResizedCrop(ratio={self.ratio}): give [smallest, largest], both above 0")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        start, length = self.draw_boxes(images, size, generator)
        dtype = _precise(images)
        if size[0] == size[1]:  # both axes at once
            old, new = resized_places(start, length, size[0], self.size, dtype)
            return Stretch(lambda part: resizing(old[:, part], new[:, part]).unbind(), (self.size, self.size))
        axes = [resized_places(start[i], length[i], size[i], self.size, dtype) for i in (0, 1)]
        return Stretch(lambda part: [resizing(old[part], new[part]) for old, new in axes], (self.size, self.size))

    def draw_boxes(self, images: Tensor, size: Size, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """First row and column, and height and width, of the box of every sample: whole pixels, (2, N) float64."""
        n, limit = len(images), constant(size, torch.float64, images.device)[:, None]
        draws = uniform(images, generator, 22).flatten().split([10 * n, 10 * n, 2 * n])
        area, ratio, place = draws[0].view(n, 10), draws[1].view(n, 10), draws[2].view(n, 2).T
        area = (area * (self.scale[1] - self.scale[0]) + self.scale[0]) * size[0] * size[1]
        narrowest, widest = log(self.ratio[0]), log(self.ratio[1])
        ratio = (ratio * (widest - narrowest) + narrowest).exp()
        sides = torch.stack([area / ratio, area * ratio]).sqrt_().round_()
        fits = ((sides > 0) & (sides <= limit[:, None])).all(0)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.gather(1, first)[:, 0]
        drawn = sides.gather(2, first.expand(2, -1, -1))[:, :, 0]
        length = torch.where(found, drawn, constant(self._largest_box(size), torch.float64, images.device)[:, None])
        room = limit - length
        return torch.where(found, (place * (room + 1)).floor_(), room // 2), length

    def _largest_box(self, size: Size) -> tuple[float, float]:
        height, width = size
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width


@dataclass(frozen=True)
class GaussianBlur(SteppedTransform):
    """Blur with a Gaussian of random width. Beyond its edge the image is mirrored, without repeating the edge pixel.

    Args:
        kernel_size: extent of the kernel, in pixels, odd; its half must be smaller than the image (else ConfigError).
        sigma: standard deviation, in pixels: [smallest, largest], uniform between them, or one number.
        p: probability that a sample is blurred at all.
    """

    kernel_size: int
    sigma: float | Sequence[float] = (0.1, 2.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"GaussianBlur(kernel_size={self.kernel_size}): give an odd number of pixels")
        low, high = as_range(self.sigma)
        if not 0 < low <= high:
            raise ConfigError(f"GaussianBlur(sigma={self.sigma}): give one number or [smallest, largest], above 0")
        check_probability(self.p, "GaussianBlur")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        low, high = as_range(self.sigma)
        sigma, luck = uniform(images, generator, 2).view(2, -1, 1)
        sigma = sigma * (high - low) + low
        reach = self.kernel_size // 2
        if reach >= min(size):
            raise ConfigError(
                f"GaussianBlur(kernel_size={self.kernel_size}) reaches {reach} pixels beyond the edge of an image of "
                f"{size[0]} x {size[1]}; choose a kernel_size of at most {2 * min(size) - 1}"
            )
        offset = torch.arange(-reach, reach + 1, device=images.device)
        kernel = torch.where(luck < self.p, (-0.5 * (offset / sigma) ** 2).exp(), (offset == 0).double())
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(_precise(images))

        def matrices(part: slice) -> Sequence[Tensor]:
            rows = convolving(kernel[part], size[0])
            return rows, rows if size[0] == size[1] else convolving(kernel[part], size[1])

        return Stretch(matrices, size)


def _sides(size: int | Sequence[int], name: str) -> Size:
    """Height and width by one number or two.

    Raises:
        ConfigError: they are not.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError(f"{name}(size={size}): give one number of pixels, or [height, width], of at least 1")
    return sides[0], sides[1]


def _inside(window: Size, size: Size, name: str) -> Size:
    """The window.

    Raises:
        ConfigError: it does not fit into images of ``size``.
    """
    if window[0] > size[0] or window[1] > size[1]:
        raise ConfigError(
            f"{name}: a window of {window[0]} x {window[1]} pixels does not fit into images of {size[0]} x {size[1]}; "
            "choose a smaller size, or resize them first"
        )
    return window


def _precise(images: Tensor) -> torch.dtype:
    """The type to compute in: that of the images, but at least float32."""
    return torch.promote_types(images.dtype, torch.float32)
