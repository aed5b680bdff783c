"""Checkpoints of other code, and what cannot be one."""

import pytest
import timm
import torch
import torchvision

from biomass.errors import CheckpointError
from biomass.models import Architecture, build_network
from biomass.training import load_network


def images(size=48):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def parts(head, key="resnet18"):
    """A network, and its weights under the names that the original code gave to the encoder."""
    network = build_network(Architecture(key, 3, head), seed=4).eval()
    encoder = {f"encoder.tv_encoder.{k}": v for k, v in network.encoder.state_dict().items()}
    return network, encoder


def of_head(network, prefix):
    return {f"{prefix}.{k}": v for k, v in network.head.state_dict().items()}


FURTHER = {
    "classifier": {"classifier.weight": torch.ones(7, 512), "classifier.bias": torch.ones(7)},
    "fc": {"encoder.tv_encoder.fc.weight": torch.ones(1000, 512), "encoder.tv_encoder.fc.bias": torch.ones(1000)},
}


@pytest.mark.parametrize("further", [["classifier"], ["fc"], ["fc", "classifier"]])
@pytest.mark.parametrize("first", [True, False])
def test_of_several_heads_one_is_taken(tmp_path, further, first):
    network, encoder = parts((32, 32, 16))
    more = {name: value for key in further for name, value in FURTHER[key].items()}
    own = of_head(network, "projection")
    torch.save({**more, **encoder, **own} if first else {**encoder, **own, **more}, tmp_path / "old.pth")
    loaded, architecture, _ = load_network(tmp_path / "old.pth", "resnet18")
    assert architecture.head == (32, 32, 16)
    assert torch.equal(loaded.eval()(images()), network(images()))


def test_a_classifier_comes_before_the_last_layer_of_the_encoder(tmp_path):
    network, encoder = parts((7,))
    torch.save({**encoder, **FURTHER["fc"], **of_head(network, "classifier.1")}, tmp_path / "old.pth")
    loaded, architecture, _ = load_network(tmp_path / "old.pth", "resnet18")
    assert architecture.head == (7,)
    assert torch.equal(loaded.eval()(images()), network(images()))


def test_the_layers_of_a_head_are_counted_as_numbers(tmp_path):
    widths = (9, 8, 7, 6, 5, 4, 3)  # its last layer is projection.12
    network, encoder = parts(widths)
    torch.save({**encoder, **of_head(network, "projection")}, tmp_path / "old.pth")
    loaded, architecture, _ = load_network(tmp_path / "old.pth", "resnet18")
    assert architecture.head == widths
    assert torch.equal(loaded.eval()(images()), network(images()))


@pytest.mark.parametrize("key", ["resnet18", "efficientnet_b0", "mobilenet_v3_small", "densenet121"])
def test_whole_networks_of_torchvision_load(tmp_path, key):
    torch.manual_seed(0)
    whole = torchvision.models.get_model(key, num_classes=5).eval()
    torch.save({f"model.{k}": v for k, v in whole.state_dict().items()}, tmp_path / "old.pth")
    loaded, architecture, _ = load_network(tmp_path / "old.pth", key)
    assert architecture.head == (5,)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images(64)), whole(images(64)))


@pytest.mark.parametrize("key", ["resnet18", "efficientnet_b0", "densenet121", "test_resnet"])
@pytest.mark.parametrize("wrapped", ["", "module."])
@pytest.mark.parametrize("last", [True, False])
def test_plain_networks_of_torchvision_and_timm_load(tmp_path, key, wrapped, last):
    torch.manual_seed(0)
    whole = (
        timm.create_model(key, num_classes=5)
        if key == "test_resnet"
        else torchvision.models.get_model(key, num_classes=5)
    ).eval()
    own = build_network(Architecture(key, 3, ())).encoder.state_dict()
    state = {k: v for k, v in whole.state_dict().items() if last or k in own}
    if key == "resnet18":  # as old files of weights, which do not count batches
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save({f"{wrapped}{k}": v for k, v in state.items()}, tmp_path / "bare.pth")
    loaded, architecture, _ = load_network(tmp_path / "bare.pth", key)
    assert architecture.head == ((5,) if last else ())
    with torch.no_grad():
        if last:
            torch.testing.assert_close(loaded.eval()(images(64)), whole(images(64)))
        kept = loaded.encoder.state_dict()
        assert all(torch.equal(kept[k], v) for k, v in state.items() if k in own)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"architecture": "resnet18", "network": {}}, "has the architecture 'resnet18', which no script of ours"),
        ({"architecture": "pooler", "network": {}}, "has the architecture 'pooler', which no script of ours"),
        ({"architecture": 18}, "has the architecture 18, which no script of ours"),
        ({"architecture": {"key": "resnet18"}, "network": {}}, "no script of ours .* set model.key"),
        ({"architecture": {"key": "resnet18", "in_channels": 3, "head": []}}, "no weights under the key 'network'"),
        ({"epoch": 3, "model": {}}, "has the key 'epoch', .*; save the state dict of the network alone, and set model"),
        (
            {"architecture": {"key": "resnet18", "in_channels": 3, "head": []}, "network": {"a": 1}},
            r"is no resnet18: it lacks 'encoder.conv1.weight'; it is damaged, give another model_path",
        ),
    ],
)
def test_checkpoints_that_are_none_of_ours(tmp_path, state, message):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(tmp_path / "other.pt", "resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["resnet50", "densenet121", "test_resnet"])
def test_a_wrong_key_is_said_shortly(tmp_path, key):
    network, encoder = parts((7,))
    torch.save({**encoder, **of_head(network, "classifier")}, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=f"is no {key}: ") as caught:
        load_network(tmp_path / "old.pth", key)
    message = str(caught.value)
    assert message.endswith("; set model.key to the network it belongs to")
    assert len(message) - len(str(tmp_path)) < 180
    assert "\n" not in message
