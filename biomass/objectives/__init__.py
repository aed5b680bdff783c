"""What a training step minimizes, and what is measured on the way.

An objective is a callable ``(network, images, batch) -> (loss, scalars to log)``; it runs under the plate context.
"""

from collections.abc import Callable

from torch import Tensor, nn

from biomass.loader import Batch
from biomass.objectives.classification import Classification, class_ranks
from biomass.objectives.contrastive import Contrastive, contrastive_loss

Objective = Callable[[nn.Module, Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]

__all__ = ["Classification", "Contrastive", "Objective", "class_ranks", "contrastive_loss"]
