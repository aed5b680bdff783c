"""Transforms that move pixels: rotations, flips, crops, blur.

Each draws a *warp* for every sample: a :class:`Turn` puts pixels in other places, a :class:`Stretch` multiplies the
image with a matrix from either side, a :class:`Window` cuts a part out. Warps of one kind multiply, so that a chain of
them costs a single pass over the pixels: :class:`~biomass.transforms.Compose` merges neighbours before it applies them.

Where float32 products may have reduced precision (TF32), a stretch keeps 3 digits of the pixel values.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from biomass.errors import ConfigError
from biomass.transforms.random import as_range, check_probability, uniform

Size = tuple[int, int]
"""Height and width of an image, in pixels."""

CACHE = 2**21
"""Bytes of images that the host works on at a time: few enough to stay in its cache."""


@dataclass(frozen=True)
class Turn:
    """For each of N samples an exact change of places: flipped, then transposed.

    Attributes:
        flip_rows: (N,) bool, which samples are turned upside down.
        flip_columns: (N,) bool, which samples are mirrored, left to right.
        transpose: (N,) bool, which samples are transposed afterwards; only square images may be.
    """

    flip_rows: Tensor
    flip_columns: Tensor
    transpose: Tensor

    def then(self, other: "Warp") -> "Turn | None":
        """This turn first, ``other`` second; None if ``other`` is not a turn."""
        if not isinstance(other, Turn):
            return None
        swap = self.transpose  # to move it behind the flips of `other`: rows there are columns here
        return Turn(
            self.flip_rows ^ torch.where(swap, other.flip_columns, other.flip_rows),
            self.flip_columns ^ torch.where(swap, other.flip_rows, other.flip_columns),
            swap ^ other.transpose,
        )

    def size_after(self, size: Size) -> Size:
        """Height and width of the result for images of ``size``."""
        return size

    def apply(self, images: Tensor) -> Tensor:
        """Turn ``images`` (N, C, H, W)."""
        height, width = images.shape[2:]
        # for each of the 8 turns (4 of an oblong image), the place that every pixel comes from; and each sample's turn
        place = torch.arange(height * width, device=images.device).view(height, width)
        turns = [place, place.flip(0), place.flip(1), place.flip(0, 1)]
        if height == width:
            turns += [turn.mT for turn in turns]
        sources = torch.stack(turns).flatten(1)
        number = self.flip_rows + 2 * self.flip_columns + 4 * self.transpose
        turned = torch.empty_like(images, memory_format=torch.contiguous_format)
        for part in _parts(images):
            source = sources[number[part], None].expand(-1, images.shape[1], -1)
            torch.gather(images[part].flatten(2), 2, source, out=turned[part].flatten(2))
        return turned


@dataclass(frozen=True)
class Stretch:
    """For each of N samples a separable linear map: an image X becomes R X Cᵀ.

    Attributes:
        rows: R, (N, H', H).
        columns: C, (N, W', W).
    """

    rows: Tensor
    columns: Tensor

    def then(self, other: "Warp") -> "Stretch | None":
        """This map first, ``other`` second; None if ``other`` is not a stretch."""
        if not isinstance(other, Stretch):
            return None
        with _own_precision(self.rows):
            return Stretch(other.rows @ self.rows, other.columns @ self.columns)

    def size_after(self, size: Size) -> Size:
        """Height and width of the result for images of ``size``."""
        return self.rows.shape[1], self.columns.shape[1]

    def apply(self, images: Tensor) -> Tensor:
        """Map ``images`` (N, C, H, W) to (N, C, H', W'), in the type of the matrices."""
        stretched = self.rows.new_empty(*images.shape[:2], self.rows.shape[1], self.columns.shape[1])
        with _own_precision(images):
            for part in _parts(images):
                pixels = images[part].to(self.rows.dtype)
                pixels = (pixels.flatten(1, 2) @ self.columns[part].mT).unflatten(1, pixels.shape[1:3])
                torch.matmul(self.rows[part, None], pixels, out=stretched[part])
        return stretched


@dataclass(frozen=True)
class Window:
    """For each of N samples a window of one size.

    Attributes:
        top: (N,) int64, its first row.
        left: (N,) int64, its first column.
        size: its height and width.
    """

    top: Tensor
    left: Tensor
    size: Size

    def then(self, other: "Warp") -> "Window | None":
        """This window first, ``other`` in it second; None if ``other`` is not a window."""
        if not isinstance(other, Window):
            return None
        return Window(self.top + other.top, self.left + other.left, other.size)

    def size_after(self, size: Size) -> Size:
        """Height and width of the result for images of ``size``."""
        return self.size

    def apply(self, images: Tensor) -> Tensor:
        """Cut the windows out of ``images`` (N, C, H, W)."""
        height, width = self.size
        rows = self.top[:, None] + torch.arange(height, device=images.device)
        columns = self.left[:, None] + torch.arange(width, device=images.device)
        places = (rows[:, :, None] * images.shape[3] + columns[:, None]).flatten(1)
        cut = images.new_empty(*images.shape[:2], height, width)
        for part in _parts(images):
            source = places[part, None].expand(-1, images.shape[1], -1)
            torch.gather(images[part].flatten(2), 2, source, out=cut[part].flatten(2))
        return cut


Warp = Turn | Stretch | Window


class SpatialTransform(ABC):
    """A transform that draws one warp for each sample."""

    @abstractmethod
    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        """Draw the warp of every sample.

        Args:
            images: (N, C, …), gives only their number, device and type.
            size: height and width of the images that the warp will see.
            generator: on the device of ``images``.
        """

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform ``images`` (N, C, H, W) with the warps of :meth:`draw`."""
        return self.draw(images, (images.shape[2], images.shape[3]), generator).apply(images)


@dataclass(frozen=True)
class RandomRotate90(SpatialTransform):
    """Rotate by 0, 90, 180 or 270 degrees counterclockwise, equally likely. Images must be square (ConfigError)."""

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        if size[0] != size[1]:
            raise ConfigError(
                f"RandomRotate90: images are {size[0]} x {size[1]} pixels, not square; crop them first, or flip them "
                "instead (RandomHorizontalFlip, RandomVerticalFlip)"
            )
        quarters = (4 * uniform(images, generator)).long()
        return Turn(quarters >= 2, (quarters == 1) | (quarters == 2), quarters % 2 == 1)


@dataclass(frozen=True)
class RandomHorizontalFlip(SpatialTransform):
    """Mirror left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "RandomHorizontalFlip")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        flipped = uniform(images, generator) < self.p
        never = torch.zeros_like(flipped)
        return Turn(flip_rows=never, flip_columns=flipped, transpose=never)


@dataclass(frozen=True)
class RandomVerticalFlip(SpatialTransform):
    """Turn upside down with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "RandomVerticalFlip")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        flipped = uniform(images, generator) < self.p
        never = torch.zeros_like(flipped)
        return Turn(flip_rows=flipped, flip_columns=never, transpose=never)


@dataclass(frozen=True)
class RandomCrop(SpatialTransform):
    """Cut out a window at a random place, as it is; every place is equally likely.

    Args:
        size: side of the window, or its height and width, in pixels. An image must be as large (else ConfigError).
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "RandomCrop")

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        window = _inside(_sides(self.size, "RandomCrop"), size, "RandomCrop")
        place = uniform(images, generator, 2)
        top, left = ((place[:, axis] * (size[axis] - window[axis] + 1)).long() for axis in (0, 1))
        return Window(top, left, window)


@dataclass(frozen=True)
class CenterCrop:
    """Cut out the window in the middle, as it is: what evaluation does where training has :class:`RandomCrop`.

    Args:
        size: side of the window, or its height and width, in pixels. An image must be as large (else ConfigError).

    >>> CenterCrop([1, 2])(torch.arange(12.0).view(1, 1, 3, 4))
    tensor([[[[5., 6.]]]])
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "CenterCrop")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cut ``images`` (N, C, H, W); the generator is not used."""
        size = (images.shape[2], images.shape[3])
        height, width = _inside(_sides(self.size, "CenterCrop"), size, "CenterCrop")
        top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
        return images[:, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class Resize:
    """Resize to another number of pixels, bilinear and antialiased. Computed in float32 or better.

    Args:
        size: of the shorter side, the other in proportion; or height and width; in pixels.

    >>> Resize(2)(torch.zeros(1, 3, 4, 6)).shape
    torch.Size([1, 3, 2, 3])
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        _sides(self.size, "Resize")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Resize ``images`` (N, C, H, W); the generator is not used."""
        height, width = images.shape[2:]
        if isinstance(self.size, int):
            shorter = min(height, width)
            wanted = (self.size * height // shorter, self.size * width // shorter)
        else:
            wanted = _sides(self.size, "Resize")
        pixels = images.to(_precise(images))
        if wanted == (height, width):
            return pixels
        return F.interpolate(pixels, wanted, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class RandomResizedCrop(SpatialTransform):
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

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        top, left, height, width = self.draw_boxes(images, size, generator)
        dtype = _precise(images)
        return Stretch(_resize(top, height, size[0], self.size, dtype), _resize(left, width, size[1], self.size, dtype))

    def draw_boxes(
        self, images: Tensor, size: Size, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of the box of every sample: whole pixels, each (N,) float64."""
        area = uniform(images, generator, 10, low=self.scale[0], high=self.scale[1]) * size[0] * size[1]
        ratio = uniform(images, generator, 10, low=log(self.ratio[0]), high=log(self.ratio[1])).exp()
        heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
        fits = (heights > 0) & (heights <= size[0]) & (widths > 0) & (widths <= size[1])
        first = fits.int().argmax(1, keepdim=True)
        found = fits.gather(1, first)
        centred = self._largest_box(size)
        height, width = (
            torch.where(found, drawn.gather(1, first), fallback)[:, 0]
            for drawn, fallback in zip((heights, widths), centred, strict=True)
        )
        place = uniform(images, generator, 2)
        top, left = (
            torch.where(found[:, 0], (place[:, axis] * (size[axis] - extent + 1)).floor(), (size[axis] - extent) // 2)
            for axis, extent in enumerate((height, width))
        )
        return top, left, height, width

    def _largest_box(self, size: Size) -> tuple[float, float]:
        height, width = size
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width


@dataclass(frozen=True)
class GaussianBlur(SpatialTransform):
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

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Warp:
        low, high = as_range(self.sigma)
        sigma = uniform(images, generator, 1, low=low, high=high)
        blurred = uniform(images, generator, 1) < self.p
        reach = self.kernel_size // 2
        if reach >= min(size):
            raise ConfigError(
                f"GaussianBlur(kernel_size={self.kernel_size}) reaches {reach} pixels beyond the edge of an image of "
                f"{size[0]} x {size[1]}; choose a kernel_size of at most {2 * min(size) - 1}"
            )
        offset = torch.arange(-reach, reach + 1, device=images.device)
        kernel = torch.where(blurred, (-0.5 * (offset / sigma) ** 2).exp(), (offset == 0).double())
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(_precise(images))
        rows = _convolve(kernel, size[0])
        return Stretch(rows, rows if size[0] == size[1] else _convolve(kernel, size[1]))


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


def _parts(images: Tensor) -> Iterator[slice]:
    """Cut a batch on the host into slices of about CACHE bytes; one on a device stays whole."""
    step = len(images)
    if images.device.type == "cpu":
        step = CACHE // (prod(images.shape[1:]) * images.element_size() or 1)
    step = max(step, 1)
    return (slice(begin, begin + step) for begin in range(0, len(images), step))


def _resize(start: Tensor, length: Tensor, source: int, target: int, dtype: torch.dtype) -> Tensor:
    """Matrices (N, target, source) that stretch the pixels [start, start + length) of ``source`` to ``target`` pixels.

    Each new pixel is the mean under a triangle around its centre that reaches one new or one old pixel to either side,
    whichever is larger: bilinear interpolation when enlarging, antialiased when shrinking.
    """
    step = length / target
    reach = step.clamp(min=1)[:, None]
    old = torch.arange(source, device=start.device)
    inside = (old >= start[:, None]) & (old < (start + length)[:, None])
    old_place = torch.where(inside, old / reach, torch.inf).to(dtype)
    new = torch.arange(target, device=start.device) + 0.5
    new_place = ((start[:, None] + step[:, None] * new - 0.5) / reach).to(dtype)
    weights = old_place[:, None, :] - new_place[:, :, None]
    weights = weights.abs_().clamp_(max=1).neg_().add_(1)
    return weights.div_(weights.sum(2, keepdim=True))


def _convolve(kernel: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that convolve with ``kernel`` (N, K), mirrored about the first and the last pixel."""
    reach = kernel.shape[1] // 2
    place = torch.arange(size, device=kernel.device)
    source = place[:, None] + torch.arange(-reach, reach + 1, device=kernel.device)
    source = (size - 1 - (source.abs() - (size - 1)).abs()).T  # (K, size): which pixel each kernel value meets
    meets = (source[:, :, None] == place).to(kernel.dtype)
    with _own_precision(kernel):
        return (kernel @ meets.flatten(1)).unflatten(1, (size, size))


def _precise(images: Tensor) -> torch.dtype:
    """The type to compute in: that of the images, but at least float32."""
    return torch.promote_types(images.dtype, torch.float32)


def _own_precision(tensor: Tensor) -> torch.autocast:
    """Matrix products in the tensor's own type, also within an autocast region."""
    return torch.autocast(tensor.device.type, enabled=False)
