"""Classification whose features shall not tell plates apart: penalties of domain generalization, plates as domains."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biomass.errors import ConfigError, did_you_mean
from biomass.loader import Batch
from biomass.models import multilayer
from biomass.objectives.classification import Classification

PENALTIES = ("coral", "dann")
"""Penalties on features, by name."""

HIDDEN = (1024, 1024)
"""Widths of the discriminator's hidden layers (Ganin et al. 2016)."""


def coral_penalty(features: Tensor, groups: Tensor) -> Tensor:
    """How different mean and covariance of the features are between groups (Sun & Saenko 2016).

    For two groups it is the mean squared difference of their means plus that of their covariances, as in WILDS (Koh et
    al. 2021): Sun & Saenko have the covariances alone, and a quarter of them. Over more groups it is the mean of all
    pairs; groups of a single row, which have no covariance, are left out. Computed in float32 (or float64).

    >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    >>> coral_penalty(features, torch.tensor([0, 0, 1, 1]))  # covariances are alike, one of two means differs by 1
    tensor(0.5000)

    Args:
        features: (N, D).
        groups: (N,) on the host.

    Returns:
        A scalar, 0 where there are no two groups of two rows.
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = features if features.dtype == torch.float64 else features.float()
        parts = [wide[(groups == group).to(wide.device)] for group in groups.unique()]
        moments = [(part.mean(0), part.T.cov()) for part in parts if len(part) > 1]
        pairs = [F.mse_loss(a, c) + F.mse_loss(b, d) for (a, b), (c, d) in combinations(moments, 2)]
        return torch.stack(pairs).mean() if pairs else wide.new_zeros(())


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``-strength`` on its way back (Ganin et al. 2016).

    >>> x = torch.tensor([3.0], requires_grad=True)
    >>> reverse_gradient(x, 0.5).square().backward()
    >>> x.grad
    tensor([-3.])
    """
    reversed_: Tensor = _Reversal.apply(x, strength)
    return reversed_


class Aligned:
    """Classification, and :func:`coral_penalty` between the plates of a batch.

    Args:
        classification: what is learned.
        weight: of the penalty.
    """

    def __init__(self, classification: Classification, weight: float) -> None:
        self.classification, self.weight = classification, weight

    def __call__(
        self, network: Callable[..., Tensor], images: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss for images (N, C, H, W) of the plates ``batch.groups`` (N,), and scalars to log."""
        logits, features = network(images, features=True)
        loss, scalars = self.classification(lambda _: logits, images, batch)
        penalty = coral_penalty(features, batch.groups)
        return loss + self.weight * penalty, {**scalars, "penalty": penalty.detach()}


class Adversarial(nn.Module):
    """Classification, and a discriminator that tells plates by features which learn that it cannot (Ganin et al. 2016).

    The discriminator's own weights follow its own cross-entropy; features receive its gradient times ``-weight``. The
    weight is the same in every step, where Ganin et al. let it grow from 0 to 1.

    Args:
        classification: what is learned.
        weight: of the reversed gradient.
        num_features: D.
        domains: the plates of training, any integers.
        seed: of the discriminator's weights.
    """

    domains: Tensor

    def __init__(
        self, classification: Classification, weight: float, num_features: int, domains: np.ndarray, seed: int
    ) -> None:
        super().__init__()
        self.classification, self.weight = classification, weight
        self.register_buffer("domains", torch.from_numpy(np.unique(domains)), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = multilayer(num_features, (*HIDDEN, len(self.domains)))

    def forward(self, network: Callable[..., Tensor], images: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss for images (N, C, H, W) of the plates ``batch.groups`` (N,), and scalars to log."""
        logits, features = network(images, features=True)
        loss, scalars = self.classification(lambda _: logits, images, batch)
        domains = torch.searchsorted(self.domains, batch.groups.to(self.domains.device))
        guess = self.discriminator(reverse_gradient(features, self.weight))
        penalty = F.cross_entropy(guess, domains)
        right = (guess.detach().argmax(1) == domains).float().mean()
        return loss + penalty, {**scalars, "penalty": penalty.detach(), "plates_told_apart": right}


def with_penalty(
    classification: Classification,
    penalty: str | None,
    weight: float,
    num_features: int,
    domains: np.ndarray,
    seed: int = 0,
) -> Classification | Aligned | Adversarial:
    """A classification with the penalty of a name.

    Args:
        classification: what is learned.
        penalty: of :data:`PENALTIES`, None for none.
        weight: of the penalty.
        num_features: D.
        domains: the plates of training, any integers.
        seed: of what has weights of its own.

    Raises:
        ConfigError: the penalty is unknown.
    """
    if penalty is None:
        return classification
    if penalty not in PENALTIES:
        raise ConfigError(f"penalty '{penalty}' is unknown; {did_you_mean(penalty, PENALTIES)}", "penalty")
    if penalty == "coral":
        return Aligned(classification, weight)
    return Adversarial(classification, weight, num_features, domains, seed)
