"""Norms of each image by itself, in the place of batch norm."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from biomass.errors import ConfigError, DataError
from biomass.models import Architecture, build_network
from biomass.models.image_norms import ImageNorm, replace_batch_norms
from biomass.norms import Method


def by_hand(x, groups, weight, bias, eps=1e-5):
    """The reference: image by image, group by group."""
    out = torch.empty_like(x)
    for image, target in zip(x, out, strict=True):
        size = len(image) // groups
        for start in range(0, len(image), size):
            part = image[start : start + size]
            target[start : start + size] = (part - part.mean()) / (part.var(correction=0) + eps).sqrt()
    shape = (-1, *(1 for _ in x.shape[2:]))
    return out * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize(
    ("norm", "channels", "groups"), [("group", 64, 32), ("group", 6, 3), ("group", 72, 8), ("instance", 6, 6)]
)
def test_equals_the_slow_reference_and_keeps_weights(norm, channels, groups):
    generator = torch.Generator().manual_seed(0)
    batch = nn.BatchNorm2d(channels).double()
    nn.init.normal_(batch.weight, generator=generator)
    nn.init.normal_(batch.bias, generator=generator)
    network = replace_batch_norms(nn.Sequential(batch), norm).double()
    x = torch.randn(3, channels, 4, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(network(x), by_hand(x, groups, batch.weight, batch.bias))
    torch.testing.assert_close(network(x[1:2]), network(x)[1:2])  # nothing of the other images


@pytest.mark.parametrize("key", ["resnet18", "timm/resnet18", "test_resnet", "timm/efficientnet_b0"])
@pytest.mark.parametrize("norm", ["group", "instance"])
def test_networks_of_both_libraries_train_and_round_trip(key, norm):
    architecture = Architecture(key, 3, (4,), norm)
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    network = build_network(architecture)
    norms = [module for module in network.modules() if isinstance(module, ImageNorm)]
    assert norms
    assert not any(isinstance(module, _BatchNorm) for module in network.modules())
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(norm.weight.grad.isfinite().all() for norm in norms)


def test_a_norm_of_timm_keeps_its_activation():
    network = build_network(Architecture("timm/efficientnet_b0", 3, (), "group"))
    first = next(module for module in network.modules() if isinstance(module, ImageNorm))
    assert isinstance(first.act, nn.SiLU)
    x = torch.randn(2, first.num_channels, 4, 4)
    plain = nn.functional.group_norm(x, first.num_groups, first.weight, first.bias, first.eps)
    torch.testing.assert_close(first(x), nn.functional.silu(plain))


def test_a_checkpoint_of_before_there_was_a_choice_has_batch_norm():
    architecture = Architecture("resnet18", 3, (4,))
    assert architecture.to_dict() == {"key": "resnet18", "in_channels": 3, "head": [4]}
    assert Architecture.from_dict(architecture.to_dict()).norm == "batch"


def test_what_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="'grouped' is unknown; did you mean 'group'") as caught:
        Architecture("resnet18", 3, (), "grouped")
    assert caught.value.advice == "norm"
    with pytest.raises(ConfigError, match="no batch norm"):
        build_network(Architecture("timm/vit_tiny_patch16_224", 3, (), "group"))
    instance = replace_batch_norms(nn.Sequential(nn.BatchNorm2d(4)), "instance")
    with pytest.raises(DataError, match="one value a channel"):
        instance(torch.randn(8, 4, 1, 1))
    replace_batch_norms(nn.Sequential(nn.BatchNorm2d(4)), "group")(torch.randn(8, 4, 1, 1))


@pytest.mark.parametrize("words", [("plate", "running"), ("running", "plate"), ("running", "calibrated")])
def test_statistics_of_plates_are_refused_by_networks_without_batch_norm(words):
    network = build_network(Architecture("test_resnet", 3, (4,), "group"))
    Method("running", "running").check_network(network)
    Method("batch", "batch").check_network(network)
    with pytest.raises(ConfigError, match="resnet50") as caught:
        Method(*words).check_network(network)
    assert caught.value.advice == "statistics"
    Method(*words).check_network(build_network(Architecture("test_resnet", 3, (4,))))
