"""Transforms of pixel values: standardization and color jitter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from biomass.errors import ConfigError
from biomass.transforms.random import as_range, check_probability, uniform
from biomass.transforms.steps import Size, Step, SteppedTransform

LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the gray value (ITU-R BT.601)."""


@dataclass(frozen=True)
class Standardize(SteppedTransform):
    """Give every channel of every image mean 0 and standard deviation 1 (unbiased, over its pixels).

    A constant channel becomes 0. So does one whose standard deviation is below 8 units in the last place of its mean:
    this is what rounding in earlier transforms leaves of a constant channel. Computed in float32 or better.

    >>> Standardize()(torch.tensor([[[[1.0, 2.0, 3.0]], [[7.0, 7.0, 7.0]]]]))
    tensor([[[[-1.,  0.,  1.]],
    <BLANKLINE>
             [[ 0.,  0.,  0.]]]])
    """

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        return _STANDARDIZED


class _Standardized(Step):
    def apply(self, images: Tensor, part: slice) -> Tensor:
        pixels = images.to(torch.promote_types(images.dtype, torch.float32)).flatten(2)
        mean = pixels.mean(2, keepdim=True)
        pixels = pixels - mean
        # two passes: the sum of squares of raw 16-bit counts would lose all digits of a faint channel
        std = torch.linalg.vector_norm(pixels, dim=2, keepdim=True).div_(max(pixels.shape[2] - 1, 1) ** 0.5)
        constant = std <= mean.abs_().mul_(8 * torch.finfo(pixels.dtype).eps)
        return pixels.mul_(std.reciprocal_().masked_fill_(constant, 0)).view(images.shape)


_STANDARDIZED = _Standardized()


@dataclass(frozen=True)
class ColorJitter(SteppedTransform):
    """Change brightness, contrast, saturation and hue at random, in a random order for each sample.

    As in torchvision, a factor multiplies the pixels (brightness), their distance to the image's mean gray value
    (contrast), or their distance to their own gray value (saturation); then values are cut off at 0 and ``maximum``.
    The hue is turned on the color circle. Three channels are taken for red, green and blue. With any other number the
    gray value is the mean of the channels, and saturation and hue are a ConfigError. Computed in float32 or better.

    Args:
        brightness: range of the factor: [smallest, largest], or d >= 0 for [max(0, 1 - d), 1 + d].
        contrast: likewise.
        saturation: likewise.
        hue: range of the turn: [smallest, largest] within -0.5 … 0.5 (half the circle), or d for [-d, d].
        maximum: largest value a pixel can have: 255 or 65535 for raw counts of 8 or 16 bits.
        p: probability that a sample is changed at all.
    """

    brightness: float | Sequence[float] = 0.0
    contrast: float | Sequence[float] = 0.0
    saturation: float | Sequence[float] = 0.0
    hue: float | Sequence[float] = 0.0
    maximum: float = field(kw_only=True)
    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.maximum > 0:
            raise ConfigError(f"ColorJitter(maximum={self.maximum}): give the largest pixel value, e.g. 255 or 65535")
        for name, low, high in self._factors():
            if not 0 <= low <= high:
                raise ConfigError(f"ColorJitter({name}={getattr(self, name)}): give [smallest, largest] >= 0")
        low, high = as_range(self.hue, around_zero=True)
        if not -0.5 <= low <= high <= 0.5:
            raise ConfigError(f"ColorJitter(hue={self.hue}): give [smallest, largest] within -0.5 … 0.5")
        check_probability(self.p, "ColorJitter")

    def _factors(self) -> list[tuple[str, float, float]]:
        """Name and range of every factor that is not always 1."""
        ranges = []
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            low, high = as_range(value) if isinstance(value, Sequence) else (max(0.0, 1 - value), 1 + value)
            if (low, high) != (1, 1):
                ranges.append((name, low, high))
        return ranges

    def draw(self, images: Tensor, size: Size, generator: torch.Generator | None) -> Step:
        ranges = self._factors()
        names = [name for name, _, _ in ranges]
        low, high = as_range(self.hue, around_zero=True)
        turns = (low, high) != (0, 0)
        if (turns or "saturation" in names) and images.shape[1] != 3:
            what = "hue" if turns else "saturation"
            raise ConfigError(f"ColorJitter({what}=…) needs 3 channels, images have {images.shape[1]}; leave it out")
        changed = uniform(images, generator) < self.p
        factors = uniform(images, generator, len(names))
        for i, (_, smallest, largest) in enumerate(ranges):
            factors[:, i].mul_(largest - smallest).add_(smallest)
        turn = torch.where(changed, uniform(images, generator, low=low, high=high), 0)
        order = uniform(images, generator, len(names) + turns).argsort(1)
        return _Jitter(names, changed, factors, turn if turns else None, order, self.maximum)


@dataclass(frozen=True)
class _Jitter(Step):
    """Changes of colour for each of N samples.

    Attributes:
        names: what the K factors change.
        changed: (N,) bool, which samples are changed at all.
        factors: (N, K).
        turn: (N,) of the hue, in circles; None: no hue is turned.
        order: (N, K) or, with the hue, (N, K + 1): which change comes at each step, the hue being number K.
        maximum: largest value a pixel can have.
    """

    names: Sequence[str]
    changed: Tensor
    factors: Tensor
    turn: Tensor | None
    order: Tensor
    maximum: float

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Change ``images`` (n, C, H, W)."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        changed, order, last = self.changed[part], self.order[part], len(self.names)

        # Turning the hue is costly, so all samples do it together, and each makes its other changes before or after it.
        # Two samples with the orders b h c and c b h (brightness, contrast, hue): the first loop makes b, - and c, b;
        # both turn their hue; the second loop makes -, c and -, -. Where there is nothing to do (-), the factor is 1.
        turn_step = torch.full_like(order[:, 0], last) if self.turn is None else (order == last).int().argmax(1)
        for step in range(last):
            images = self._blend(images, part, order[:, step], changed & (step < turn_step))
        if self.turn is not None:
            images = _turn_hue(images, self.turn[part])
            for step in range(1, last + 1):
                images = self._blend(images, part, order[:, step], changed & (step > turn_step))
        return images

    def _blend(self, images: Tensor, part: slice, which: Tensor, changed: Tensor) -> Tensor:
        """Apply factor number ``which`` (n,) of K to the samples that are ``changed`` (n,).

        A factor f makes f x of a pixel x (brightness), or f x + (1 - f) g with a gray value g: the mean of the image
        (contrast) or that of the pixel (saturation). With the excess e = f - 1 that is (1 + e) x - e g, and e = 0
        changes nothing.
        """
        chosen = changed[:, None] & (which[:, None] == torch.arange(len(self.names), device=images.device))
        excess = torch.where(chosen, self.factors[part] - 1, 0).to(images.dtype)[..., None, None]  # (n, K, 1, 1)
        offset = torch.zeros_like(excess[:, :1])  # - e g
        if "contrast" in self.names:
            means = images.mean((2, 3), keepdim=True)
            offset = offset - excess[:, self.names.index("contrast"), None] * _gray(means)
        if "saturation" in self.names:
            offset = torch.addcmul(offset, excess[:, self.names.index("saturation"), None], _gray(images), value=-1)
        return torch.addcmul(offset, images, 1 + excess.sum(1, keepdim=True)).clamp_(0, self.maximum)


def _gray(images: Tensor) -> Tensor:
    """Gray value of ``images`` (N, C, …): (N, 1, …)."""
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of ``images`` (N, 3, H, W) by ``turn`` (N,) circles (Smith 1978, "Color gamut transform pairs")."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    is_red, is_green = value == red, value == green
    hue = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    hue.div_(torch.where(chroma > 0, chroma, 1))
    hue.add_(torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0)))
    hue = hue.add_((6 * turn).to(hue.dtype)[:, None, None]).remainder_(6)  # in sixths of the circle
    turned = torch.empty_like(images)
    # a color's share of the chroma is 1 within a sixth of its own place on the circle and falls to 0 in the next
    torch.addcmul(value - 2 * chroma, (hue - 3).abs_().clamp_(1, 2), chroma, out=turned[:, 0])
    torch.addcmul(value + chroma, (hue - 2).abs_().clamp_(1, 2), chroma, value=-1, out=turned[:, 1])
    torch.addcmul(value + chroma, (hue - 4).abs_().clamp_(1, 2), chroma, value=-1, out=turned[:, 2])
    return turned
