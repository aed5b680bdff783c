"""Random numbers for a batch, drawn on its device, and checks of what is to be drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biomass.errors import ConfigError


def uniform(
    images: Tensor, generator: torch.Generator | None, *shape: int, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform numbers in [low, high) for every sample of ``images`` (N, …): (N, *shape) float64.

    Raises:
        ConfigError: there is no generator. Inference has none, as it must give the same result twice.
    """
    if generator is None:
        raise ConfigError("a random transform needs a torch.Generator, and inference has none", advice="transforms")
    draws = torch.rand(len(images), *shape, generator=generator, device=images.device, dtype=torch.float64)
    return draws if (low, high) == (0, 1) else draws * (high - low) + low


def as_range(value: float | Sequence[float], around_zero: bool = False) -> tuple[float, float]:
    """Smallest and largest value of ``[low, high]``, or of one number d: (d, d), or (-d, d) if ``around_zero``.

    >>> as_range([0.1, 2.0]), as_range(0.5), as_range(0.5, around_zero=True)
    ((0.1, 2.0), (0.5, 0.5), (-0.5, 0.5))

    Raises:
        ConfigError: a list that does not have two numbers.
    """
    if not isinstance(value, Sequence):
        return (-value if around_zero else value), value
    if len(value) != 2:
        raise ConfigError(f"{value} is not a range; give [smallest, largest]")
    return value[0], value[1]


def check_probability(p: float, name: str) -> None:
    """Raise ConfigError unless ``p`` is a probability."""
    if not 0 <= p <= 1:
        raise ConfigError(f"{name}(p={p}): p must lie in 0 … 1")
