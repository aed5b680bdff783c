"""Checkpoints of other code, and files that cannot be one."""

import argparse
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

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


def small(seed=0):
    """A small residual network of timm without its last layer, as others have it inside their own modules."""
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=0).eval()


def named(prefix, network):
    return {f"{prefix}{name}": value for name, value in network.state_dict().items()}


def extra(prefix):
    return {f"{prefix}0.weight": torch.ones(8, 96), f"{prefix}0.bias": torch.ones(8)}


def dino(own, other):
    heads = extra("module.head.mlp."), extra("head.mlp.")
    student, teacher = named("module.backbone.", other) | heads[0], named("backbone.", own) | heads[1]
    state = {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    settings = argparse.Namespace(arch="test_resnet", momentum=np.float64(0.99), out=Path("here"))
    return {"student": student, "teacher": teacher, "optimizer": state, "epoch": 3, "args": settings}


def moco(own, other):
    query, key = named("module.encoder_q.", own), named("module.encoder_k.", other)
    return {"epoch": 3, "arch": "x", "state_dict": query | key | {"module.queue": torch.ones(4, 4)}}


def moco_v3(own, other):
    base, momentum = named("module.base_encoder.", own), named("module.momentum_encoder.", other)
    return {"state_dict": base | momentum | extra("module.predictor.")}


def averaged(own, other):
    return {"model": named("", other), "model_ema": named("module.", own), "scaler": {"scale": 1.0}}


OF_OTHERS = {
    "dino": dino,
    "moco": moco,
    "moco_v3": moco_v3,
    "byol": lambda own, other: named("online_network.encoder.", own) | named("target_network.encoder.", other),
    "averaged": averaged,
    "lightning": lambda own, _: {"state_dict": named("model.backbone.", own) | extra("model.head."), "loops": {"a": 1}},
    "wrapped": lambda own, _: {"net": named("_fsdp_wrapped_module.module._orig_mod.trunk.", own)},
    "nested": lambda own, _: {"weights": {"a": {"b": named("", own)}}, "note": "as it was"},
    "decoder beside it": lambda own, _: named("", own) | extra("decoder.") | {"mask_token": torch.ones(1, 1, 8)},
    "norm in the head": lambda own, _: named("", own) | extra("fc.") | {"fc.1.weight": torch.ones(8)},
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_the_encoder_in_a_checkpoint_of_others_is_found_out(tmp_path, kind):
    own, other = small(1), small(2)
    torch.save(OF_OTHERS[kind](own, other), tmp_path / "a.pth")
    loaded, architecture, _ = load_network(tmp_path / "a.pth", "test_resnet")
    assert architecture.head == ()
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images(64)), own(images(64)))


def test_which_of_two_encoders_was_taken_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.save(dino(small(1), small(2)), tmp_path / "a.pth")
    load_network(tmp_path / "a.pth", "test_resnet")
    assert "'teacher.backbone' is taken" in caplog.text


@pytest.mark.parametrize("last", [True, False])
def test_safetensors_load(tmp_path, last):
    torch.manual_seed(0)
    whole = timm.create_model("convnext_atto", num_classes=5 if last else 0).eval()  # its stem comes late in the file
    save_file({f"model.{name}": value for name, value in whole.state_dict().items()}, tmp_path / "model.safetensors")
    loaded, architecture, _ = load_network(tmp_path / "model.safetensors", "convnext_atto")
    assert (architecture.in_channels, architecture.head) == (3, (5,) if last else ())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images(64)), whole(images(64)))


def test_a_damaged_file_of_safetensors_is_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x08" * 20)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_network(tmp_path / "model.safetensors", "test_resnet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [160, 96])
def test_a_transformer_of_another_image_size_keeps_its_positions(tmp_path, size):
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", num_classes=0, img_size=size).eval()
    torch.save({"teacher": named("backbone.", whole)}, tmp_path / "a.pth")
    loaded, _, _ = load_network(tmp_path / "a.pth", "test_vit")
    with torch.no_grad():
        found, own = loaded.eval()(images(size)), whole(images(size))
    assert torch.cosine_similarity(found, own).min() > (0.999999 if size == 160 else 0.9)


def test_a_network_of_ones_own_code_runs_only_if_its_name_is_typed(tmp_path, monkeypatch):
    key = f"{__name__}_stand_in:build"
    module = types.ModuleType(f"{__name__}_stand_in")
    module.build = lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    architecture = Architecture(key, 2, ())
    torch.save({"architecture": architecture.to_dict(), "network": {}}, tmp_path / "a.pt")
    loaded, found, _ = load_network(tmp_path / "a.pt", key)
    assert found == architecture
    assert loaded(images()[:, :2]).shape == (2, 2)
    for typed in ("resnet18", None):
        with pytest.raises(CheckpointError, match="build") as caught:
            load_network(tmp_path / "a.pt", typed)
        assert caught.value.advice == "model_key"
