"""Checkpoints of other code, and files that cannot be one."""

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


class Lit(torch.nn.Module):
    """A module as Lightning users write it: the network in an attribute, other things beside it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = torch.nn.Linear(512, 4)


def lightning(whole):
    return {"epoch": 2, "pytorch-lightning_version": "2.4.0", "state_dict": Lit(whole).state_dict(), "callbacks": {}}


def compiled_inside(whole):
    return {"state_dict": Lit(torch.compile(whole)).state_dict()}


@pytest.mark.parametrize(
    "save",
    [
        lightning,
        compiled_inside,
        lambda whole: torch.compile(whole).state_dict(),
        lambda whole: torch.compile(torch.nn.DataParallel(whole)).state_dict(),
        lambda whole: torch.nn.DataParallel(Lit(torch.nn.DataParallel(whole))).state_dict(),
        lambda whole: {"model": torch.nn.DataParallel(whole).state_dict(), "epoch": 90},  # torchvision's own training
    ],
)
def test_the_words_that_other_code_puts_before_an_encoder_do_not_matter(tmp_path, save, caplog):
    whole = torchvision.models.resnet18(num_classes=5).eval()
    torch.save(save(whole), tmp_path / "a.ckpt")
    loaded, architecture, about = load_network(tmp_path / "a.ckpt", "resnet18")
    assert architecture == Architecture("resnet18", 3, (5,))
    assert about == {}
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images()), whole(images()))
    left_out = "projection_head.weight" in "".join(save(whole).get("state_dict", save(whole)))
    assert ("left 2 weights" in caplog.text) == left_out


def test_the_original_code_in_data_parallel_keeps_its_head(tmp_path):
    network, encoder = parts((32, 16))
    torch.save({f"module.{k}": v for k, v in {**encoder, **of_head(network, "projection")}.items()}, tmp_path / "a.pth")
    loaded, architecture, _ = load_network(tmp_path / "a.pth", "resnet18")
    assert architecture.head == (32, 16)
    assert torch.equal(loaded.eval()(images()), network(images()))


def test_two_encoders_in_a_file_are_named(tmp_path):
    student, teacher = (build_network(Architecture("resnet18", 3, ()), seed=s).encoder.state_dict() for s in (1, 2))
    both = {f"{prefix}.{k}": v for prefix, state in (("a", student), ("b", teacher)) for k, v in state.items()}
    torch.save(both, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"2 encoders, 'a\.' and 'b\.'"):
        load_network(tmp_path / "a.pth", "resnet18")


def test_a_larger_network_is_not_taken_for_a_smaller_one(tmp_path):
    larger = torchvision.models.resnet34(num_classes=5).state_dict()  # has every weight of resnet18, in its shape
    torch.save({f"backbone.{k}": v for k, v in larger.items()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"resnet18: .*'encoder.layer1.2.conv1.weight'"):
        load_network(tmp_path / "a.pth", "resnet18")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"architecture": "resnet18", "network": {}}, "architecture 'resnet18'"),
        ({"architecture": "pooler", "network": {}}, "architecture 'pooler'"),
        ({"architecture": 18}, "architecture 18"),
        ({"architecture": {"key": "resnet18"}, "network": {}}, "architecture {'key': 'resnet18'}"),
        ({"architecture": {"key": "resnet18", "in_channels": 3, "head": []}}, "'network'"),
        ({"epoch": 3, "model": {}}, "'epoch'.* int .*save the state dict"),
        ({"state_dict": {"epoch": "3"}}, "'epoch'.* str "),
        (
            {"architecture": {"key": "resnet18", "in_channels": 3, "head": []}, "network": {"a": 1}},
            "resnet18.*'encoder.conv1.weight'.*damaged",
        ),
    ],
)
def test_files_that_hold_no_network_say_why(tmp_path, state, message):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(tmp_path / "other.pt", "resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["resnet50", "densenet121", "test_resnet"])
def test_a_wrong_key_is_said_shortly(tmp_path, key):
    network, encoder = parts((7,))
    torch.save({**encoder, **of_head(network, "classifier")}, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=f" {key}: ") as caught:
        load_network(tmp_path / "old.pth", key)
    message = str(caught.value)
    assert caught.value.advice == "model_key"
    assert len(message) - len(str(tmp_path)) < 180
    assert "\n" not in message
