"""Running a network over plates: adaptation of its affine parameters (Tent)."""

import copy

import pytest
import torch
from torch import Tensor, nn

from biomass import inference
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


class Scaling:
    """Divides by 10, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images / 10


class Sine(nn.Module):
    """Changes its input in place."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sin_()


class ThreePasses(Statistics):
    """Statistics of the plate, three times over; each pass must say the same."""

    def passes(self, network: nn.Module) -> int:
        return 3


@pytest.mark.parametrize(("first", "times"), [(nn.Identity(), 1), (Sine(), 3)])
@pytest.mark.parametrize("sizes", [[6], [2, 3]])
def test_images_of_a_plate_are_made_once_for_all_passes_unless_the_network_changes_them(
    first: nn.Module, times: int, sizes: list[int]
) -> None:
    one = convert(nn.Sequential(first, network())).eval()
    chunks = [batch(n, seed) for seed, n in enumerate(sizes)]
    once, thrice = Scaling(), Scaling()
    with torch.inference_mode():
        expected = run_plate(one, chunks, once, Statistics(), torch.device("cpu"), classifies=True)
        found = run_plate(one, chunks, thrice, ThreePasses(), torch.device("cpu"), classifies=True)
    assert (once.calls, thrice.calls) == (len(sizes), len(sizes) * times)
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_images_are_made_again_where_they_would_take_too_much_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [batch(n, seed) for seed, n in enumerate([2, 3])]
    for room, calls in ((5 * 2 * 25 * 4, 2), (5 * 2 * 25 * 4 - 1, 6)):
        monkeypatch.setattr(inference, "room", lambda device, room=room: room)
        scaling = Scaling()
        run_plate(network(), chunks, scaling, ThreePasses(), torch.device("cpu"), classifies=True)
        assert scaling.calls == calls
