"""Words, row weights, and what a method is made of."""

import copy

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from biomass.errors import ConfigError, DataError
from biomass.norms import (
    WORDS,
    Method,
    PlateBatchNorm,
    Statistics,
    calibrate,
    convert,
    measure_plates,
    plate_statistics,
    whole_plate_forward,
)
from biomass.screen import PLATE, Screen, make_screen

WEIGHTS = torch.tensor([1, 0, 3, 2, 0, 1, 2])


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    return convert(nn.Sequential(*layers).double())


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_repetition(one: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """The reference: a row of weight 3 takes part three times; rows of weight 0 are normalized by what the others gave.

    A network of one norm is enough for that, layer by layer, as its statistics are those of the repeated rows.
    """
    for layer in one:
        if isinstance(layer, PlateBatchNorm):
            repeated = x.repeat_interleave(weights, 0)
            mean, var = repeated.mean((0, 2, 3)), repeated.var((0, 2, 3), correction=0)
            x = (x - mean[:, None, None]) / (var[:, None, None] + layer.eps).sqrt()
            x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("training", [True, False])
def test_weights_count_as_repetitions_do(training: bool) -> None:
    one, x = network().train(training), images(7).requires_grad_()
    expected = by_repetition(copy.deepcopy(one), x, WEIGHTS)
    (right,) = torch.autograd.grad(expected.pow(3).sum(), x)
    for unit in (1.0, 0.25):  # only their ratio matters
        with plate_statistics(one, torch.zeros(7, dtype=torch.long), weights=WEIGHTS * unit):
            found = one(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.pow(3).sum(), x)[0], right)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [2, 1, 4], [1] * 7], ids=str)
def test_weights_of_chunks_are_those_of_the_plate(sizes: list[int]) -> None:
    one, x = network().eval(), images(7)
    expected = by_repetition(one, x, WEIGHTS).detach()
    outputs = whole_plate_forward(one, x.split(sizes), weights=WEIGHTS.split(sizes))
    torch.testing.assert_close(torch.cat(outputs), expected)
    plate = torch.full((7,), 5)
    calibrate(one, zip(x.split(sizes), plate.split(sizes), WEIGHTS.split(sizes), strict=True))
    with torch.no_grad(), plate_statistics(one, plate[:2], "calibrated"):
        torch.testing.assert_close(one(x[[6, 1]]), expected[[6, 1]])


def test_running_is_plain_batch_norm_in_both_modes() -> None:
    plain, plates = copy.deepcopy(network()), torch.tensor([0, 0, 1, 1, 1])
    one = copy.deepcopy(plain)
    for training in (True, False):
        expected = plain.train(training)(images(5))
        with plate_statistics(one.train(training), plates, "running"):
            assert torch.equal(one(images(5)), expected)


def screen(controls: list[str]) -> Screen:
    table = pd.DataFrame({"experiment": "W1", "plate": [1, 1, 2, 2], "well": ["A01", "A02"] * 2, "site": 1})
    table = table.assign(cell_type="", label=0, split=["train", "train", "test", "test"], control=controls)
    return make_screen(table, None, ["a"])


@pytest.mark.parametrize("word", WORDS)
def test_every_word_runs_or_says_what_is_missing(word: str) -> None:
    one, x, groups = network().eval(), images(4), torch.tensor([0, 0, 1, 1])
    controls = torch.tensor([1, 0, 0, 1], dtype=torch.int8)
    calibrate(one, [(images(6), torch.full((6,), plate), None) for plate in (0, 1)])
    measure_plates(one, [[(images(6), torch.arange(6) % 2, torch.zeros(6))]], num_classes=2)
    statistics = Statistics(word)
    with torch.no_grad(), statistics.of(one, groups, controls):
        found = one(x)
    weights = {"batch": torch.ones(4), "plate": torch.ones(4), "controls": controls}.get(word)
    if weights is not None:
        parts = [torch.arange(4)] if word == "batch" else [torch.tensor([0, 1]), torch.tensor([2, 3])]
        for rows in parts:
            torch.testing.assert_close(found[rows], by_repetition(one, x[rows], weights[rows].long()).detach())
    assert statistics.by_group == (word not in ("running", "batch"))
    assert statistics.whole_groups == (word not in ("running", "batch", "calibrated", "block"))
    assert statistics.blocks == (word == "block")


def test_plates_without_controls_are_found_before_anything_runs() -> None:
    one = screen(["negative", "", "", ""])
    Statistics.over(one, "plate").check(one)
    Statistics.over(one, "controls").check(one, "train")
    for splits in (["train", "test"], []):
        with pytest.raises(DataError, match="'W1/2'"):
            Statistics.over(one, "controls").check(one, *splits)
        with pytest.raises(DataError, match=r"'W1/1'.*positive"):
            Statistics.over(one, "controls", controls="positive").check(one, *splits)
    Statistics.over(one, "controls", ["experiment"]).check(one)  # coarser groups may have some


def test_a_method_is_what_is_chosen_and_else_what_the_published_keys_mean() -> None:
    published = Method("running", "plate", eval_by=("experiment",), max_groups=3)
    mixed = published.override(None, None, None)
    assert mixed == published._replace(max_groups=1, num_controls=0)
    assert mixed.batches_by is None
    chosen = published.override("controls", None, ["experiment"])
    assert chosen == ("controls", "plate", ("experiment",), ("experiment",), 3, 8, "negative", False)
    assert chosen.batches_by == ("experiment",)
    assert published._replace(num_controls=2).override("plate", None, None).num_controls == 2
    assert published.override("plate", None, None).num_controls == 0
    with pytest.raises(ConfigError, match="calibrated"):
        published.override("calibrated", None, None)
    with pytest.raises(ConfigError, match="plat"):
        published.override(None, "plat", None)


def test_methods_are_compared_by_what_they_do() -> None:
    one = Method("running", "running", ("experiment",), PLATE, max_groups=2).override(None, None, None)
    assert one.settings() == Method("running", "running").override(None, None, None).settings()
    assert one.settings() != Method("running", "plate").override(None, None, None).settings()
