"""How the regimes of the field hang together: ARM-BN, CS-ARM-BN and BEN are one where their batches are."""

import copy

import pytest
import torch
from torch import Tensor, nn

from biomass.norms import Statistics, convert, whole_plate_forward

TREATED, NEGATIVE = 0, 1


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    return convert(nn.Sequential(*layers).double())


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def output(word: str, x: Tensor, groups: list[int], controls: list[int], training: bool) -> tuple[Tensor, Tensor]:
    """What a new network gives for rows under a word, and the gradient of its first weights."""
    one = network().train(training)
    flags = torch.tensor(controls, dtype=torch.int8)
    with Statistics(word).of(one, torch.tensor(groups), flags):
        found = one(x)
    found.pow(3).sum().backward()
    return found.detach(), one[0].weight.grad


def assert_same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], exact: bool = True) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exact else {}))


@pytest.mark.parametrize("training", [True, False])
def test_arm_bn_whose_blocks_are_plates_is_ben(training: bool) -> None:
    for groups in ([0] * 5, [0, 0, 1, 1, 1]):
        rows = images(5), groups, [TREATED] * 5, training
        assert_same(output("block", *rows), output("plate", *rows))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [TREATED, NEGATIVE])
def test_cs_arm_bn_without_controls_is_arm_bn(training: bool, kind: int) -> None:
    rows = images(5), [0] * 5, [kind] * 5, training  # and with nothing but controls, too
    assert_same(output("joint", *rows), output("block", *rows))


@pytest.mark.parametrize("training", [True, False])
def test_controls_are_ben_where_every_row_is_one(training: bool) -> None:
    rows = images(5), [0] * 5, [NEGATIVE] * 5, training
    assert_same(output("controls", *rows), output("plate", *rows), exact=False)  # by another kernel


@pytest.mark.parametrize("training", [True, False])
def test_two_controls_a_treated_row_is_plain_batch_norm_over_both(training: bool) -> None:
    rows = images(6), [0] * 6, [NEGATIVE, TREATED, NEGATIVE, NEGATIVE, TREATED, NEGATIVE], training
    assert_same(output("joint", *rows), output("plate", *rows))


@pytest.mark.parametrize("training", [True, False])
def test_other_numbers_count_as_if_controls_were_drawn_again(training: bool) -> None:
    x, controls = images(5), [NEGATIVE, TREATED, TREATED, TREATED, NEGATIVE]
    found, gradient = output("joint", x, [0] * 5, controls, training)
    again = [0, 1, 2, 3, 4, 0, 4, 0, 4]  # three times each
    one = network().train(training)
    with Statistics("plate").of(one, torch.zeros(9, dtype=torch.long), torch.zeros(9)):
        expected = one(x[again])[:5]
    expected.pow(3).sum().backward()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, one[0].weight.grad)  # it flows through the controls


@pytest.mark.parametrize("training", [True, False])
def test_each_plate_of_a_batch_has_its_own_two_thirds(training: bool) -> None:
    x, groups, controls = images(7), torch.tensor([0, 1, 0, 1, 0, 1, 1]), torch.tensor([1, 0, 0, 1, 0, 0, 0])
    together, _ = output("joint", x, groups.tolist(), controls.tolist(), training)
    for group in (0, 1):
        here = groups == group
        alone, _ = output("joint", x[here], [group] * int(here.sum()), controls[here].tolist(), training)
        torch.testing.assert_close(together[here], alone)


@pytest.mark.parametrize("word", ["block", "joint"])
def test_to_have_every_row_twice_changes_nothing(word: str) -> None:
    x, controls = images(4), [NEGATIVE, TREATED, TREATED, TREATED]
    once, _ = output(word, x, [0] * 4, controls, training=False)
    twice, _ = output(word, torch.cat([x, x]), [0] * 8, controls * 2, training=False)
    torch.testing.assert_close(twice, torch.cat([once, once]))


def test_chunks_of_a_plate_have_the_weights_of_the_plate() -> None:
    one, x = network().eval(), images(6)
    controls = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.int8)
    statistics = Statistics("joint")
    weights = statistics.mixture(one, controls).weights
    assert weights is not None
    chunks = whole_plate_forward(copy.deepcopy(one), x.split([1, 3, 2]), weights=weights.split([1, 3, 2]))
    with torch.no_grad(), statistics.of(one, torch.zeros(6, dtype=torch.long), controls):
        torch.testing.assert_close(torch.cat(chunks), one(x))
