"""From the vectors of a field's cells to one vector: median, or learnt attention (the mean needs no padding)."""

import torch
from torch import Tensor, nn

POOLERS = ("mean", "median", "attention")


def median_pool(bags: Tensor, present: Tensor) -> Tensor:
    """Median over the cells of each field, feature by feature: (N, K, D) and (N, K) bool → (N, D).

    The median of an even number of cells is the mean of the middle two.

    >>> bags = torch.tensor([[[1.0], [5.0], [2.0], [0.0]]])
    >>> median_pool(bags, torch.tensor([[True, True, True, False]]))
    tensor([[2.]])
    """
    ordered = bags.masked_fill(~present[..., None], torch.inf).sort(1).values
    count = present.sum(1)[:, None, None].expand(-1, 1, bags.shape[2])
    low, high = ordered.gather(1, (count - 1) // 2), ordered.gather(1, count // 2)
    return ((low + high) / 2).squeeze(1)


class AttentionPooler(nn.Module):
    """Weighted mean over the cells of a field with learnt weights: attention pooling (Ilse et al. 2018, equation 8).

    ``weight_k = softmax_k(w . tanh(V h_k))``; V is (hidden, D).
    """

    def __init__(self, in_features: int, hidden: int = 128) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, bags: Tensor, present: Tensor) -> Tensor:
        """(N, K, D) and (N, K) bool, at least one present cell in each field → (N, D)."""
        scores = self.score(bags).squeeze(-1).masked_fill(~present, -torch.inf)
        return (scores.softmax(1)[..., None] * bags).sum(1)


class BagClassifier(nn.Module):
    """Attention pooling and a linear layer, over bags padded with zero vectors: (N, K, D) → (N, d_out).

    A cell whose vector is zero in every feature counts as padding (a vector scaled to length 1 never is). A bag of
    padding alone is pooled with equal weights, to the zero vector.
    """

    def __init__(self, in_features: int, d_out: int) -> None:
        super().__init__()
        self.pooler = AttentionPooler(in_features)
        self.classifier = nn.Linear(in_features, d_out)

    def forward(self, bags: Tensor) -> Tensor:
        present = bags.ne(0).any(-1)
        present = present | ~present.any(1, keepdim=True)  # a softmax over nothing would be NaN
        return self.classifier(self.pooler(bags, present))
