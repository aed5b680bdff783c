"""The network of a tool: of a checkpoint of ours or of others, as it was published, untrained, of one's own code."""

import logging
import sys
import types
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN
from torch import nn

from biomass.commands import calibrate
from biomass.errors import CheckpointError, ConfigError
from biomass.experiment import open_model

CELLS = (*(o for o in TINY_CELLS if "warmup" not in o), "run_name=c")
SCREEN = (*TINY_SCREEN, "device=cpu")
RANDOM = "model.pretrained=false"
"""A stand-in for weights, which cannot be fetched in tests."""


class StandIn(nn.Module):
    """As a published cell model: any number of channels, a vector each, joined."""

    def __init__(self, bins=4):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((1, bins))

    def forward(self, images):
        return self.pool(images).flatten(1)


@pytest.fixture
def own_code(monkeypatch):
    """A module that is installed for the test: ``stand_in:load`` and its mistakes."""
    module = types.ModuleType("stand_in")
    module.load = StandIn
    module.fails = lambda weights: open(weights)  # noqa: PTH123, SIM115
    module.no_module = lambda: "a name"
    module.tokens = lambda: nn.Conv2d(3, 8, 16, 16)
    module.one_size = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8))
    monkeypatch.setitem(sys.modules, "stand_in", module)


def moments(name):
    return torch.load(f"checkpoints/{name}/frozen.calibrated.pt", weights_only=True)


class StopError(Exception):
    """Ends a tool."""


@pytest.fixture
def opened(run, monkeypatch):
    """``opened("key=value", …)``: what ``open_model`` gives to a tool, which is then stopped."""
    found = []

    def keep(cfg, tool):
        found.append(open_model(cfg, tool))
        raise StopError

    def _opened(*overrides):
        with monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(calibrate, "open_model", keep)
            run("calibrate", *overrides)
        return found[-1]

    return _opened


def test_without_a_checkpoint_a_tool_runs_on_an_untrained_network_of_a_seed(run, caplog):
    caplog.set_level(logging.INFO)
    run("calibrate", *CELLS, "model.key=test_resnet", RANDOM)
    assert "random weights (seed 0)" in caplog.text
    first = moments("test_resnet-random-0")["moments"]["norms.bn1"]
    run("calibrate", *CELLS, "model.key=test_resnet", RANDOM, "seed=3")
    assert not torch.equal(first, moments("test_resnet-random-3")["moments"]["norms.bn1"])
    run("calibrate", *CELLS, "model.key=test_resnet", RANDOM)
    assert torch.equal(first, moments("test_resnet-random-0")["moments"]["norms.bn1"])


def test_the_published_weights_are_asked_for_and_see_images_as_they_were_trained(opened, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    asked = []

    def fetch(model, *_, **__):
        asked.append(model)

    monkeypatch.setattr(timm.models._builder, "load_pretrained", fetch)
    one = opened(*SCREEN, "model.key=timm/test_vit", "model.pretrained=true")
    assert len(asked) == 1
    assert "as it was published" in caplog.text
    assert one.architecture.as_trained
    images = 1000 * torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    network = one.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), network(3 * images + 70))  # whatever the units of the images
        own = network.encoder.net(2 * scaled(images) - 1)  # its mean and deviation are 0.5
        torch.testing.assert_close(network(images), own)
    assert not opened(
        *SCREEN, "model.key=test_vit", "model.pretrained=true", "model.as_trained=false"
    ).architecture.as_trained


def scaled(images):
    low, high = torch.quantile(images.flatten(2), torch.tensor([0.001, 0.999]), dim=2, interpolation="nearest")
    return ((images - low[..., None, None]) / (high - low)[..., None, None]).clamp(0, 1)


@pytest.mark.parametrize(
    ("settings", "message", "advice"),
    [
        ((), "needs a network", "network"),
        (("model.key=resnet18",), "needs a network", "network"),
        (("model_path=net", RANDOM), "'net' brings .* pretrained", None),
        (("model_path=net", "model.options={bins: 3}"), "'net' brings .* options", None),
        ((RANDOM, "model.channels=some"), "model.channels is .some.", None),
        ((RANDOM, "model.key=resnet18x"), "'resnet18x' is neither", None),
        ((RANDOM, "model.key=test_resnet", "model.options={depth: 3}"), "'depth'", "own_code"),
        ((RANDOM, "model.key=test_vit"), "no plate-aware batch norm", "statistics"),
        (("model.key=stand_in:load", "model.channels=each"), "'each'", "widen"),
        (("model.key=stand_in:load", "model.options={size: 3}"), "failed with size .*TypeError", "own_code"),
        (("model.key=stand_in:fails", "model.options={weights: none.pt}"), "none.pt", "own_code"),
        (("model.key=stand_in:no_module",), "gave a str", "own_code"),
        (("model.key=stand_in:nothing",), "cannot be imported .*nothing", "own_code"),
        (("model.key=not_installed.at_all:load",), "cannot be imported .*not_installed", "own_code"),
        (("model.key=:load",), "cannot be imported", "own_code"),
        (("model.key=stand_in:tokens",), r"gave \[2, 8, 14, 14\] for 2 images", "own_code"),
        (("model.key=stand_in:one_size",), "3 channels, 48 x 48 pixels", "own_code"),
        (("model.key=stand_in:one_size", "model.expects=[nuclei]"), "1 channels, 224 x 224", "own_code"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(run, own_code, settings, message, advice):
    with pytest.raises(ConfigError, match=message) as caught:
        run("calibrate", *SCREEN, *settings)
    assert caught.value.advice == advice
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_tune_writes_into_a_checkpoint_and_takes_nothing_else(run):
    with pytest.raises(ConfigError, match="tune needs") as caught:
        run("tune", *SCREEN, "model.key=test_resnet", RANDOM)
    assert caught.value.advice == "checkpoint"


def test_ones_own_code_gives_an_encoder(opened, own_code):
    one = opened(*SCREEN, "model.key=stand_in:load", "model.options={bins: 5}", "model.expects=[actin,nuclei]")
    assert one.channels == ["actin", "nuclei"]
    assert one.network.num_features == 10
    assert one.architecture.options == {"bins": 5}
    assert one.network.encoder(torch.zeros(4, 2, 48, 48)).shape == (4, 10)


def of_others(channels=3):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=channels).eval()
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in network.state_dict().items()}}, "a.ckpt")
    return network


@pytest.mark.parametrize("word", ["repeat", "sum", "each", None])
def test_weights_of_others_are_adapted_to_the_channels_of_a_screen(opened, run, word):
    whole = of_others()
    key = ("model_path=a.ckpt", "model.key=test_resnet")
    if word is None:
        with pytest.raises(ConfigError, match="takes 3 channels, not the 2 ER, actin") as caught:
            run("calibrate", *SCREEN, *key, "model.expects=[ER,actin]")
        assert caught.value.advice == "expects"
        return
    one = opened(*SCREEN, *key, f"model.channels={word}", "model.expects=[ER,actin]")
    images = torch.randn(3, 2, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = one.network.eval()(images)
        if word == "each":
            grey = [whole(images[:, [channel]].expand(-1, 3, -1, -1)) for channel in (0, 1)]
            torch.testing.assert_close(found, torch.cat(grey, 1))
        elif word == "sum":
            torch.testing.assert_close(found, whole(images.mean(1, keepdim=True).expand(-1, 3, -1, -1)))
        else:
            spread = torch.cat([images, torch.zeros_like(images[:, :1])], 1)
            torch.testing.assert_close(found, whole(1.5 * spread))
    assert one.architecture.in_channels == 2
    assert one.network.num_features == (192 if word == "each" else 96)


def test_weights_of_others_can_see_images_as_they_were_trained(opened):
    whole = of_others()
    one = opened(*SCREEN, "model_path=a.ckpt", "model.key=test_resnet", "model.as_trained=true")
    images = 1000 * torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images), whole(2 * scaled(images) - 1))


@pytest.mark.parametrize("source", ["checkpoint", "random"])
def test_a_transformer_takes_statistics_of_plates_behind_it(run, source):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), "vit.pth")
    given = "model_path=vit.pth" if source == "checkpoint" else RANDOM
    run("calibrate", *SCREEN, given, "model.key=test_vit", "model.standardize=true", "run_name=c")
    file = "vit.calibrated.pt" if source == "checkpoint" else "checkpoints/test_vit-random-0/frozen.calibrated.pt"
    moments = torch.load(file, weights_only=True)["moments"]
    assert [value.shape for value in moments.values()] == [(2, 8, 64)]


def test_one_channel_at_a_time_needs_a_network_of_three(run):
    of_others(channels=1)
    with pytest.raises(ConfigError, match="of 1 channels") as caught:
        run("calibrate", *SCREEN, "model_path=a.ckpt", "model.key=test_resnet", "model.channels=each")
    assert caught.value.advice == "widen"


def test_checkpoints_carry_how_channels_are_seen_and_know_their_images(run, opened, caplog):
    run("train_erm", *TINY_SCREEN, *TINY_RUN, "model.channels=each", "num_epochs=1", "run_name=net")
    one = opened(*SCREEN, "model_path=net")
    assert one.architecture.channels == "each"
    assert one.network.num_features == 3 * 96
    assert one.channels == list(one.screen.pixels.channels)
    assert "in several places" in caplog.text  # every norm is used for every channel, and keeps no moments
    with pytest.raises(ConfigError, match=r"last\.pt' knows its images"):
        run("calibrate", *SCREEN, "model_path=net", "model.channels=sum")
    with pytest.raises(ConfigError, match="several places"):
        run("calibrate", *SCREEN, "model_path=net", "run_name=c")
    run("stress", *SCREEN, "model_path=net", "words=[running,plate]", "axes.wells=[2]", "repeats=1", "run_name=s")


def test_ones_own_code_is_trained_and_opened_again_by_its_name(run, opened, own_code):
    own = ("model.key=stand_in:load", "model.options={bins: 3}")
    run("train_erm", *TINY_SCREEN, *TINY_RUN, *own, "+method=vanilla", "num_epochs=1", "run_name=net")
    one = opened(*SCREEN, "model_path=net", "model.key=stand_in:load")
    assert one.architecture.options == {"bins": 3}
    assert one.network.num_features == 9
    with pytest.raises(CheckpointError, match="stand_in:load") as caught:
        run("calibrate", *SCREEN, "model_path=net")
    assert caught.value.advice == "model_key"


def test_a_classifier_is_needed_where_classes_are_predicted(run):
    with pytest.raises(ConfigError, match="tells no classes apart"):
        run("stress", *SCREEN, "model.key=test_resnet", RANDOM)


def test_a_screen_of_other_channels_than_weights_of_others(run):
    of_others(channels=5)
    with pytest.raises(CheckpointError, match="channels 5"):
        run("calibrate", *SCREEN, "model_path=a.ckpt", "model.key=test_resnet")
