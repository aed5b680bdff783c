"""Supervised classification: cross-entropy, and for each image the rank of its true class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biomass.loader import Batch
from biomass.screen import UNLABELLED


@dataclass(frozen=True)
class Classification:
    """Cross-entropy over the batch.

    Attributes:
        accuracy: also report the share of the batch that is classified right.
    """

    accuracy: bool = False

    def __call__(
        self, network: Callable[..., Tensor], images: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (a scalar) and scalars to log, for images (N, C, H, W) and ``batch.labels`` (N,).

        Unlabelled images take part in the plate's statistics, not in the loss.
        """
        logits = network(images)
        labelled = (batch.labels >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(logits, batch.labels, ignore_index=UNLABELLED, reduction="sum") / labelled
        if not self.accuracy:
            return loss, {}
        return loss, {"accuracy": (logits.detach().argmax(1) == batch.labels).sum() / labelled}


def class_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes score higher than the true one, (N, K) and (N,) → (N,) int64; 0 is a right answer.

    In a tie the class of the lower number wins, as with ``argmax``; logits that are not numbers are wrong answers.

    >>> class_ranks(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]]), torch.tensor([2, 1]))
    tensor([1, 1])
    """
    true = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device)[None] < labels[:, None]
    ranks = ((logits > true) | ((logits == true) & before)).sum(1)
    return ranks.masked_fill(logits.isnan().any(1), logits.shape[1])
