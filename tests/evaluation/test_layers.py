"""Where in a network plates differ: against moments and divergences that are written out, and in closed form."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from biomass.errors import DataError
from biomass.evaluation.layers import LAYERS, bhattacharyya, plate_distances, write_distances
from biomass.norms import convert
from biomass.screen import COLUMNS, VectorPixels, make_screen


def screen_of(images, plates, wells=None):
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * len(images)))
    wells = [f"A{i:02d}" for i in range(len(images))] if wells is None else wells
    table = table.assign(plate=plates, well=wells, label=0)
    return make_screen(table, VectorPixels(images, ("DNA", "actin")[: images.shape[1]]), ["DMSO"])


def images_of(plates=3, count=6, seed=0):
    rng = np.random.default_rng(seed)
    shift = np.repeat(np.arange(plates), count)
    images = rng.normal(size=(plates * count, 2, 5, 4)) + shift[:, None, None, None]
    return images.astype(np.float32), [f"P{one}" for one in shift]


def network_of():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten()
    network = convert(nn.Sequential(*layers))
    for norm in (network[1], network[4]):
        norm.running_mean.uniform_()
        norm.running_var.uniform_(0.5, 2)
    return network


def as_it_is(images):
    return images


def divergence(one, other):
    """The mean over channels of minus the log of how much two Gaussians overlap, integrated on a grid."""
    total = []
    for channel in range(one.shape[1]):
        values = [x[:, channel].double().flatten() for x in (one, other)]
        mean, scale = [float(x.mean()) for x in values], [math.sqrt(float(x.var(correction=0)) + 1e-5) for x in values]
        width = 12 * max(scale)
        grid = np.linspace(min(mean) - width, max(mean) + width, 200_001)
        root = np.exp(sum(-(((grid - m) / s) ** 2) / 4 for m, s in zip(mean, scale, strict=True)))
        root /= math.sqrt(2 * math.pi * scale[0] * scale[1])
        total.append(-math.log(root.sum() * (grid[1] - grid[0])))
    return sum(total) / len(total)


@pytest.mark.parametrize("word", ["running", "plate"])
def test_distances_are_those_of_the_inputs_of_every_norm(word):
    images, plates = images_of()
    network = network_of().eval()
    found = plate_distances(network, screen_of(images, plates), as_it_is).query("words == @word")
    assert found["layer"].tolist() == ["images", "1", "4", "features"]
    assert found["depth"].tolist() == [0, 1, 2, 3]
    inputs = {name: [] for name in found["layer"]}
    for plate in sorted(set(plates)):
        x = torch.from_numpy(images[np.array(plates) == plate])
        inputs["images"].append(x)
        with torch.no_grad():
            for name, layer in network.named_children():
                if name in inputs:
                    inputs[name].append(x)
                    running = layer.running_mean, layer.running_var
                    own = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                    mean, var = running if word == "running" else own
                    x = (x - mean[:, None, None]) / (var[:, None, None] + layer.eps).sqrt()
                else:
                    x = layer(x)
        inputs["features"].append(x)
    for layer, distance in zip(found["layer"], found["distance"], strict=True):
        a, b, c = inputs[layer]
        expected = np.mean([divergence(a, b), divergence(a, c), divergence(b, c)])
        assert distance == pytest.approx(expected, rel=1e-3), layer


def test_chance_is_what_the_halves_of_a_plate_differ_by_and_half_of_that():
    images, plates = images_of(plates=2, count=6)
    wells = ["A1", "A1", "A2", "A2", "A3", "A3"] * 2
    found = plate_distances(network_of(), screen_of(images, plates, wells), as_it_is).query("words == 'running'")
    x = torch.from_numpy(images)
    halves = [divergence(x[[0, 1, 4, 5]], x[[2, 3]]), divergence(x[[6, 7, 10, 11]], x[[8, 9]])]
    assert found["chance"].iloc[0] == pytest.approx(np.mean(halves) / 2, rel=1e-3)


def test_plates_that_do_not_differ_are_no_further_apart_than_by_chance():
    images, _ = images_of(plates=1, count=400, seed=3)
    plates = [f"P{i % 4}" for i in range(len(images))]
    table = plate_distances(network_of(), screen_of(images, plates), as_it_is)
    inner = table[table["layer"] != "features"]
    assert (inner["distance"] < 3 * inner["chance"]).all()
    assert (inner["distance"] > inner["chance"] / 3).all()


def test_a_shift_and_a_scale_of_images_are_gone_behind_the_first_norm_of_plates():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(8, 2, 5, 4)).astype(np.float32)
    both = np.concatenate([images, 3 * images + 2])
    table = plate_distances(network_of(), screen_of(both, ["P1"] * 8 + ["P2"] * 8), as_it_is)
    table = table.set_index(["words", "layer"])["distance"]
    assert table["running", "4"] > 0.1
    assert table["plate", "1"] > 0.1
    assert table["plate", "4"] < 1e-6
    assert table["plate", "features"] < 1e-6


def test_the_network_is_left_as_it_was_and_dead_channels_have_no_distance():
    images, plates = images_of()
    network = network_of().train()
    network[0].weight.data[0] = 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = plate_distances(network, screen_of(images, plates), as_it_is)
    assert np.isfinite(table["distance"]).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_few_images_whose_variance_is_small_by_chance_do_not_blow_up_the_distance():
    zero, one = np.zeros(1), np.ones(1)
    assert bhattacharyya(zero, one, zero, 4 * one) == pytest.approx(math.log(5 / 4) / 2)
    assert bhattacharyya(zero, one, one, 1e-4 * one) < 3


def test_few_images_of_few_plates_are_looked_at():
    images, plates = images_of(plates=20, count=3)
    seen = []

    def watch(batch):
        seen.append(len(batch))
        return batch

    plate_distances(network_of(), screen_of(images, plates), watch, most=64)
    assert seen == [3] * 8
    seen.clear()
    plate_distances(network_of(), screen_of(images, plates), watch)
    assert seen == [3] * 16
    seen.clear()
    plate_distances(network_of(), screen_of(images, plates), watch, rows=np.arange(9))
    assert seen == [3] * 3


def test_where_there_is_nothing_to_compare_it_is_said(tmp_path):
    images, plates = images_of(plates=1)
    with pytest.raises(DataError, match="two plates"):
        plate_distances(network_of(), screen_of(images, plates), as_it_is)
    images, plates = images_of(plates=2)
    with pytest.raises(DataError, match="no batch norm"):
        plate_distances(nn.Sequential(nn.Flatten()), screen_of(images, plates), as_it_is)
    table = plate_distances(network_of(), screen_of(images, plates), as_it_is)
    write_distances(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / LAYERS, dtype={"layer": str}), table, rtol=1e-4)
