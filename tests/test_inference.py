"""Running a network over plates: adaptation of its affine parameters (Tent)."""

import copy

import pytest
import torch
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.inference import run_plate
from biomass.loader import Batch
from biomass.norms import Statistics, convert, plate_statistics


def batch(n: int, seed: int) -> Batch:
    images = torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(n)
    zeros = torch.zeros(n, dtype=torch.long)
    return Batch(images, zeros, rows, zeros, rows, torch.zeros(n, dtype=torch.int8), torch.empty(0, dtype=torch.long))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    return convert(nn.Sequential(*layers)).eval()


def plain(images: Tensor) -> Tensor:
    return images


def test_tent_takes_a_step_after_each_batch_and_is_undone_after_the_plate() -> None:
    one, chunks = network(), [batch(6, 1), batch(5, 2)]
    one.requires_grad_(False)
    before = copy.deepcopy(one.state_dict())
    with torch.inference_mode():
        found = run_plate(one, chunks, plain, Statistics("tent"), torch.device("cpu"), classifies=True)
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in one.parameters())

    reference = network()
    affine = [reference[1].weight, reference[1].bias]
    for chunk, logits in zip(chunks, found, strict=True):
        with plate_statistics(reference, chunk.groups):
            expected = reference(chunk.images)
        torch.testing.assert_close(logits, expected.detach())
        probability = expected.exp() / expected.exp().sum(1, keepdim=True)
        entropy = -(probability * probability.log()).sum() / len(chunk)
        gradients = torch.autograd.grad(entropy, affine)
        if chunk is chunks[0]:
            with torch.no_grad():  # the first step of Adam is the learning rate in the direction of each sign
                for parameter, gradient in zip(affine, gradients, strict=True):
                    parameter -= 1e-3 * gradient / (gradient.abs() + 1e-8)


def test_tent_needs_a_classifier() -> None:
    with pytest.raises(ConfigError, match="tent"):
        run_plate(network(), [batch(4, 1)], plain, Statistics("tent"), torch.device("cpu"))
