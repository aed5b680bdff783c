"""The contrastive loss of SimCLR and MinCLR, for any number of views."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.utils.checkpoint import checkpoint

from biomass.errors import ConfigError
from biomass.loader import Batch


def check_temperature(temperature: float) -> None:
    """Raise ConfigError unless the temperature is positive."""
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}; it must be positive (published: 0.05)")


def contrastive_loss(projections: Tensor, instances: Tensor, temperature: float, chunk_size: int = 2048) -> Tensor:
    """Normalized temperature-scaled cross-entropy with several positives for each anchor.

    For an anchor i with positives P(i), the other views of its instance, and s the cosine similarity::

        l(i) = - 1/|P(i)| * sum over p in P(i) of s(i, p) / t  +  log sum over all j != i of exp(s(i, j) / t)

    averaged over all anchors that have a positive. With two views it is the NT-Xent loss of SimCLR (Chen et al.
    2020), with more the outer form of Khosla et al. 2020 (equation 2). It is computed in float32 (or float64) whatever
    the precision of the network. Similarities are computed for a chunk of anchors at a time, and again in the backward
    pass, so that memory grows with ``chunk_size * M`` and not with M squared.

    Two instances at right angles, whose two views coincide, have the loss log(e + 2) - 1:

    >>> contrastive_loss(torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1]), temperature=1.0)
    tensor(0.5514)

    Args:
        projections: (M, D), need not be normalized.
        instances: (M,) integers; rows with the same number are views of the same instance.
        temperature: t > 0.
        chunk_size: anchors at a time.

    Returns:
        A scalar; 0 where no row has a positive.
    """
    check_temperature(temperature)
    with torch.autocast(projections.device.type, enabled=False):
        wide = projections if projections.dtype == torch.float64 else projections.float()
        unit = F.normalize(wide, dim=1)
        if len(unit) <= chunk_size:
            losses, counts = _anchor_losses(unit, instances, 0, len(unit), temperature)
            return (losses.sum() / counts.sum().clamp(min=1)).to(wide.dtype)
        parts = [
            checkpoint(
                _anchor_losses,
                unit,
                instances,
                start,
                min(start + chunk_size, len(unit)),
                temperature,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, len(unit), chunk_size)
        ]
        losses = torch.stack([part[0].sum() for part in parts]).sum()
        return losses / torch.stack([part[1].sum() for part in parts]).sum().clamp(min=1)


def _anchor_losses(unit: Tensor, instances: Tensor, start: int, stop: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Loss of the anchors start…stop (0 for those without a positive), and which of them have one."""
    similarity = unit[start:stop] @ unit.T / temperature
    itself = torch.arange(start, stop, device=unit.device)[:, None] == torch.arange(len(unit), device=unit.device)
    positive = (instances[start:stop, None] == instances) & ~itself
    count = positive.sum(1)
    log_sum = similarity.masked_fill(itself, -torch.inf).logsumexp(1)
    mean_positive = (similarity * positive).sum(1) / count.clamp(min=1)
    has_positive = count > 0
    return torch.where(has_positive, log_sum - mean_positive, 0.0), has_positive


def gather_ranks(projections: Tensor, instances: Tensor) -> tuple[Tensor, Tensor]:
    """The projections (M, D) and instances (M,) of all ranks, in their order; M may differ between ranks.

    Gradients flow back to the rank that a projection comes from, summed over the losses of all ranks. Data-parallel
    training then averages them, which gives the gradients of the mean loss. A single rank gets back what it gave.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return projections, instances
    counts = [torch.zeros(1, dtype=torch.int64, device=projections.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(projections)], device=projections.device))
    sizes = torch.cat(counts).tolist()
    missing = max(sizes) - len(projections)
    padded = all_gather(F.pad(projections, (0, 0, 0, missing)))
    numbers = all_gather(F.pad(instances, (0, missing)))
    return (
        torch.cat([part[:size] for part, size in zip(padded, sizes, strict=True)]),
        torch.cat([part[:size] for part, size in zip(numbers, sizes, strict=True)]),
    )


@dataclass(frozen=True)
class Contrastive:
    """Pull the views of an instance together, push all other rows of the batch away.

    Negatives are the other instances of the same (plate) batch. Every rank reads another plate, and networks are not to
    learn to tell plates apart: so the batches of other ranks are not among the negatives, unless ``gather`` is set.

    Attributes:
        temperature: of the similarities.
        gather: take the batches of all ranks as one, for mixed batches over several devices. In training only: a
            validation has other numbers of batches on other ranks, and one would wait for the other forever.
    """

    temperature: float
    gather: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(
        self, network: Callable[..., Tensor], images: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss for the views (N, C, H, W) of ``batch.instances`` (N,)."""
        projections, instances = network(images), batch.instances
        if self.gather and torch.is_grad_enabled():
            projections, instances = gather_ranks(projections, instances)
        return contrastive_loss(projections, instances, self.temperature), {}
