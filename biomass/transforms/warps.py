"""What moves pixels: a :class:`Turn` puts them in other places, a :class:`Stretch` multiplies the image with a matrix
from either side, a :class:`Window` cuts a part out.

Neighbours of one kind multiply, so that a chain of them costs a single pass over the pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from biomass.transforms.steps import Size, Step, constant

Matrices = Callable[[slice], Sequence[Tensor]]
"""Makes the matrices of some samples (n, H', H), (n, W', W) when they are wanted: those of all do not fit the cache."""


_SETTINGS: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""Of products in oneDNN; torch before 2.9 has none."""


def _turn(first: int, second: int) -> int:
    """The number of the turn that does ``first`` and then ``second``."""
    flips = second & 3
    if first & 4:  # rows there are columns here
        flips = (flips & 1) << 1 | flips >> 1
    return first ^ flips ^ second & 4


_TURNS = tuple(_turn(first, second) for first in range(8) for second in range(8))


@dataclass(frozen=True)
class Turn(Step):
    """For each of N samples an exact change of places: flipped, then transposed.

    Attributes:
        number: (N,) int64, the sum of 1 where a sample is turned upside down, 2 where it is mirrored, left to right,
            and 4 where it is transposed afterwards; only square images may be.
    """

    number: Tensor

    def then(self, other: Step) -> "Turn | None":
        """This turn first, ``other`` second; None if ``other`` is not a turn."""
        if not isinstance(other, Turn):
            return None
        return Turn(
            constant(_TURNS, torch.int64, self.number.device).take(torch.add(other.number, self.number, alpha=8))
        )

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Turn ``images`` (n, C, H, W)."""
        places = _places(images.shape[2], images.shape[3], images.device).index_select(0, self.number[part])
        return images.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


@lru_cache(maxsize=4)
def _places(height: int, width: int, device: torch.device) -> Tensor:
    """For each of the 8 turns (4 of an oblong image), the place that every pixel comes from: (8, HW)."""
    place = torch.arange(height * width, device=device).view(height, width)
    turns = [place, place.flip(0), place.flip(1), place.flip(0, 1)]
    if height == width:
        turns += [turn.mT for turn in turns]
    return torch.stack(turns).flatten(1)


@dataclass(frozen=True)
class Stretch(Step):
    """For each sample a separable linear map: an image X becomes R X Cᵀ.

    Where float32 products may have reduced precision (TF32), it keeps 3 digits of the pixel values.

    Attributes:
        matrices: makes R and C.
        size: H' and W'.
    """

    matrices: Matrices
    size: Size

    def then(self, other: Step) -> "Stretch | None":
        """This map first, ``other`` second; None if ``other`` is not a stretch."""
        if not isinstance(other, Stretch):
            return None

        def product(part: slice) -> tuple[Tensor, Tensor]:
            (rows, columns), (other_rows, other_columns) = self.matrices(part), other.matrices(part)
            return _product(other_rows, rows), _product(other_columns, columns)

        return Stretch(product, other.size)

    def size_after(self, size: Size) -> Size:
        """Height and width of the result."""
        return self.size

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Map ``images`` (n, C, H, W) to (n, C, H', W'), in the type of the matrices."""
        rows, columns = self.matrices(part)
        pixels = _product(images.to(rows.dtype).flatten(1, 2), columns.mT).view(*images.shape[:3], self.size[1])
        rows = rows[:, None].expand(-1, images.shape[1], -1, -1)
        return _product(rows.flatten(0, 1), pixels.flatten(0, 1)).view(*images.shape[:2], *self.size)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The products of matrices (n, A, B) and (n, B, C).

    On a processor with AVX-512 that is not Intel's, oneDNN multiplies twice as fast as MKL. torch asks it for float32
    only where it may round to bfloat16, so that is permitted where it does not round all the same.
    """
    if left.device.type != "cpu" or left.dtype != torch.float32 or not _is_exact(*left.shape, right.shape[2]):
        return torch.bmm(left, right)
    with _rounding_permitted():
        return torch.bmm(left, right)


@lru_cache(maxsize=1024)
def _is_exact(number: int, height: int, inner: int, width: int) -> bool:
    """Whether so many products of such matrices keep all 24 binary digits of float32 where rounding is permitted.

    A matrix with a single 1 in every column picks columns of the other; nothing else is left to rounding.
    """
    if _SETTINGS is None:
        return False
    left = (1 + torch.arange(height * inner).float().mul_(2**-23)).view(1, height, inner).repeat(number, 1, 1)
    picked = torch.arange(width) % inner
    with _rounding_permitted():
        return torch.equal(torch.bmm(left, torch.eye(inner)[:, picked].repeat(number, 1, 1)), left[:, :, picked])


@contextmanager
def _rounding_permitted() -> Iterator[None]:
    """Within it, oneDNN may round the factors of float32 products to bfloat16."""
    before = _SETTINGS.fp32_precision
    _SETTINGS.fp32_precision = "bf16"
    try:
        yield
    finally:
        _SETTINGS.fp32_precision = before


@dataclass(frozen=True)
class Window(Step):
    """For each of N samples a window of one size.

    Attributes:
        corner: (2, N) int64, its first row and column.
        size: its height and width.
    """

    corner: Tensor
    size: Size

    def then(self, other: Step) -> "Window | None":
        """This window first, ``other`` in it second; None if ``other`` is not a window."""
        return Window(self.corner + other.corner, other.size) if isinstance(other, Window) else None

    def size_after(self, size: Size) -> Size:
        """Height and width of the result."""
        return self.size

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Cut the windows out of ``images`` (n, C, H, W)."""
        top, left = self.corner[:, part]
        rows, columns = (torch.arange(side, device=images.device) for side in self.size)
        places = ((top[:, None] + rows)[:, :, None] * images.shape[3] + (left[:, None] + columns)[:, None]).flatten(1)
        return images.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).unflatten(2, self.size)


def resized_places(
    start: Tensor, length: Tensor, source: int, target: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Where the old and the new pixels lie when [start, start + length) of ``source`` become ``target`` pixels.

    Returns:
        Old places (…, source), infinite outside of the box, and new ones (…, target), for boxes (…,). The unit is an
        old or a new pixel, whichever is larger.
    """
    start, length = start[..., None], length[..., None]
    step = length / target
    unit = step.clamp(min=1)
    old = torch.arange(source, device=start.device)
    outside = (old < start) | (old >= start + length)
    new = torch.arange(target, device=start.device) + 0.5
    new_places = (step * new).add_(start).sub_(0.5).div_(unit)
    return (old / unit).masked_fill_(outside, torch.inf).to(dtype), new_places.to(dtype)


def resizing(old: Tensor, new: Tensor) -> Tensor:
    """Matrices (…, target, source) from pixels at the places ``old`` (…, source) to pixels at ``new`` (…, target).

    Each new pixel is the mean under a triangle around its centre that reaches a unit to either side: bilinear
    interpolation when enlarging, antialiased when shrinking.
    """
    weights = (1 - (old[..., None, :] - new[..., :, None]).abs_()).clamp_(min=0)
    return weights.div_(weights.sum(-1, keepdim=True))


def convolving(kernel: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that convolve with ``kernel`` (N, K), mirrored about the first and the last pixel."""
    meets = _meets(kernel.shape[1] // 2, size, kernel.dtype, kernel.device)
    return _product(kernel[None], meets[None]).view(-1, size, size)


@lru_cache(maxsize=4)
def _meets(reach: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 where a value of a kernel meets a pixel, for every pixel of the result: (2 reach + 1, size²)."""
    place = torch.arange(size, device=device)
    source = place + torch.arange(-reach, reach + 1, device=device)[:, None]
    source = size - 1 - (source.abs() - (size - 1)).abs()
    return (source[:, :, None] == place).to(dtype).flatten(1)
