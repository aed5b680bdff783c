"""What a training step minimizes, and what is measured on the way.

An objective is a callable ``(network, images, batch) -> (loss, scalars to log)``. In training it runs under the
statistics of the batch. It may ask a network for its features, too, by ``network(images, features=True)``. One with
weights of its own is an ``nn.Module``: these are optimized, and kept in checkpoints, beside those of the network. A
validation that has the network's outputs already gives a function that returns them for ``network``. A new objective is
a module here, and a line of the script that names it.
"""

from collections.abc import Callable

from torch import Tensor

from biomass.loader import Batch
from biomass.objectives.alignment import Adversarial, Aligned, coral_penalty, reverse_gradient, with_penalty
from biomass.objectives.classification import Classification, class_ranks
from biomass.objectives.contrastive import Contrastive, contrastive_loss

Objective = Callable[[Callable[..., Tensor], Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]

__all__ = [
    "Adversarial",
    "Aligned",
    "Classification",
    "Contrastive",
    "Objective",
    "class_ranks",
    "contrastive_loss",
    "coral_penalty",
    "reverse_gradient",
    "with_penalty",
]
