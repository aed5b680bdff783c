"""Supervised classification: cross-entropy, and for each image the rank of its true class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biomass.errors import ConfigError, did_you_mean
from biomass.loader import Batch
from biomass.vocabulary import UNLABELLED, control_numbers

LOSS_ROWS = ("all", "treated")
"""Which rows of a batch are learned from: all that have a label; or those that are not the controls of its quota."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy over the batch.

    Attributes:
        accuracy: also report the share of the rows learned from that is classified right.
        loss_rows: of :data:`LOSS_ROWS`.
        controls: which rows are meant by controls, see :data:`biomass.screen.KINDS`.
    """

    accuracy: bool = False
    loss_rows: str = "all"
    controls: str = "negative"

    def __post_init__(self) -> None:
        if self.loss_rows not in LOSS_ROWS:
            hint = did_you_mean(self.loss_rows, LOSS_ROWS)
            raise ConfigError(f"loss_rows '{self.loss_rows}' is unknown; {hint}", "loss_rows")

    def __call__(
        self, network: Callable[..., Tensor], images: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (a scalar) and scalars to log, for images (N, C, H, W) and ``batch.labels`` (N,).

        Images without a label, and those that are not learned from, take part in the plate's statistics alone.
        """
        logits, labels = network(images), self.labels(batch)
        labelled = (labels >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / labelled
        if not self.accuracy:
            return loss, {}
        return loss, {"accuracy": (logits.detach().argmax(1) == labels).sum() / labelled}

    def labels(self, batch: Batch) -> Tensor:
        """What is learned: the labels (N,), and -1 for rows that are not learned from."""
        if self.loss_rows == "all":
            return batch.labels
        reference = torch.isin(batch.controls, torch.tensor(control_numbers(self.controls)))
        return batch.labels.masked_fill(reference.to(batch.labels.device), UNLABELLED)


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
