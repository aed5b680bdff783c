"""Encoders of torchvision and timm, heads, poolers."""

import logging
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from biomass.errors import ConfigError
from biomass.models import Architecture, build_encoder, build_network, multilayer
from biomass.models.adapt import AsTrained
from biomass.models.encoders import with_channels
from biomass.models.poolers import AttentionPooler, BagClassifier, median_pool
from biomass.norms import PlateBatchNorm, plate_statistics, whole_plate_forward


@pytest.mark.parametrize(
    "key", ["resnet18", "densenet121", "mobilenet_v3_small", "regnet_y_400mf", "timm/resnet18", "test_resnet"]
)
@pytest.mark.parametrize("channels", [1, 5])
def test_encoders_take_any_number_of_channels_and_say_their_width(key, channels):
    encoder, width = build_encoder(key, channels)
    with torch.no_grad():
        assert encoder.eval()(torch.zeros(2, channels, 64, 64)).shape == (2, width)


def test_a_torchvision_encoder_is_the_network_without_its_last_layer():
    torch.manual_seed(0)
    encoder, width = build_encoder("resnet18")
    whole = torchvision.models.resnet18()
    assert width == whole.fc.in_features == 512
    assert set(encoder.state_dict()) == {k for k in whole.state_dict() if not k.startswith("fc.")}


def test_repeated_kernels_keep_the_response_to_gray_images():
    conv = torch.nn.Conv2d(3, 4, 3, bias=False)
    gray = torch.randn(2, 1, 8, 8)
    for channels in (1, 2, 6):
        wide = with_channels(conv, channels)
        if channels % 3 == 0:
            torch.testing.assert_close(wide(gray.expand(-1, channels, -1, -1)), conv(gray.expand(-1, 3, -1, -1)))
        assert wide.weight.shape == (4, channels, 3, 3)


@pytest.mark.parametrize(
    "key", ["resnet18", "timm/test_vit", "convnext_tiny", "densenet121", "timm/vit_tiny_patch16_224"]
)
def test_summed_kernels_answer_to_the_mean_of_the_channels(key):
    torch.manual_seed(0)
    three = build_encoder(key)[0].eval()
    torch.manual_seed(0)
    five = build_encoder(key, 5, channels="sum")[0].eval()
    images = torch.randn(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            five(images), three(images.mean(1, keepdim=True).expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-3
        )


def test_one_channel_at_a_time_is_the_network_on_grey_images():
    torch.manual_seed(0)
    three = build_encoder("test_resnet")[0].eval()
    torch.manual_seed(0)
    encoder, width = build_encoder("test_resnet", 5, channels="each")
    images = torch.randn(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = encoder.eval()(images)
        grey = [three(images[:, [channel]].expand(-1, 3, -1, -1)) for channel in range(5)]
    assert found.shape == (2, width)
    torch.testing.assert_close(found, torch.cat(grey, 1))


@pytest.mark.parametrize("channels", ["repeat", "sum", "each"])
@pytest.mark.parametrize("as_trained", [False, True])
def test_a_plate_in_chunks_is_the_plate_at_once_whatever_stands_before_the_network(channels, as_trained):
    architecture = Architecture("test_resnet", 2, (3,), channels=channels, as_trained=as_trained)
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    network = build_network(architecture).eval()
    images = 100 * torch.rand(6, 2, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), plate_statistics(network, torch.zeros(6, dtype=torch.long)):
        whole = network(images)
    torch.testing.assert_close(torch.cat(whole_plate_forward(network, images.split(2))), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "size", "taken"),
    [
        ("timm/vit_small_patch14_dinov2.lvd142m", (48, 50), (56, 56)),
        ("timm/vit_small_patch16_dinov3.lvd1689m", (48, 50), (48, 64)),
        ("timm/test_vit", (256, 256), (256, 256)),
        ("timm/convit_tiny", (48, 48), (224, 224)),
        ("vit_b_16", (48, 300), (224, 224)),
        ("resnet18", (49, 50), (49, 50)),
    ],
)
def test_transformers_take_images_of_any_size(key, size, taken, caplog):
    encoder, width = build_encoder(key)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(images, taken, mode="bilinear", antialias=True)
    with torch.no_grad():
        found = encoder.eval()(images)
        torch.testing.assert_close(found, encoder(resized))
    assert found.shape == (1, width)
    assert (f"{size[0]} x {size[1]} pixels are resized to {taken[0]} x {taken[1]}" in caplog.text) == (size != taken)


def test_a_network_with_norms_that_takes_one_size_runs_in_chunks():
    network = build_network(Architecture("timm/levit_128s", 3, ())).eval()
    images = torch.randn(4, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), plate_statistics(network, torch.zeros(4, dtype=torch.long)):
        whole = network(images)
    torch.testing.assert_close(torch.cat(whole_plate_forward(network, images.split(2))), whole, atol=1e-3, rtol=1e-3)


def test_images_as_a_network_was_trained_on_against_numpy():
    images = 3000 * torch.rand(3, 2, 40, 50, generator=torch.Generator().manual_seed(0)).square() + 100
    images[1, 1] = 7  # a constant channel
    found = AsTrained((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))(images).numpy()
    for i, channel in ((i, channel) for i in range(3) for channel in range(2)):
        values = images[i, channel].numpy()
        low, high = np.percentile(values, [0.1, 99.9], method="nearest")
        unit = np.clip((values - low) / ((high - low) or 1), 0, 1)
        np.testing.assert_allclose(found[i, channel], (unit - (0.4, 0.5)[channel]) / (0.2, 0.3)[channel], atol=1e-5)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a, b, c = (build_network(Architecture("resnet18", 3, (4,)), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["encoder.conv1.weight"], c["encoder.conv1.weight"])


def test_all_batch_norms_are_plate_aware_and_the_architecture_round_trips():
    architecture = Architecture("resnet18", 4, (16, 8))
    network = build_network(architecture)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20
    assert all(isinstance(m, PlateBatchNorm) for m in norms)
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    assert network(torch.zeros(2, 4, 32, 32)).shape == (2, 8)


def test_heads():
    assert isinstance(multilayer(5, ()), torch.nn.Sequential)
    assert torch.equal(multilayer(5, ())(torch.ones(1, 5)), torch.ones(1, 5))
    assert isinstance(multilayer(5, (2,)), torch.nn.Linear)
    assert [type(m).__name__ for m in multilayer(5, (4, 3, 2))] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_an_unknown_network_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"'resnet51' .* did you mean 'resnet51q'"):
        build_encoder("resnet51")
    with pytest.raises(ConfigError, match="did you mean 'resnet18'") as caught:
        build_encoder("resnet18x")  # torchvision has networks for segmentation, too, which are no encoders
    assert "deeplab" not in str(caught.value)


def test_weights_of_torchvision_that_cannot_be_fetched(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"put the file resnet18-\w+.pth into ") as e:
        build_encoder("resnet18", pretrained=True)
    assert "\n" not in str(e.value)
    assert e.value.advice == "pretrained"


def test_weights_of_timm_that_cannot_be_fetched(monkeypatch):
    import timm.models._builder

    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", logging.INFO)

    def refuse(*_, **__):
        assert not logger.isEnabledFor(logging.WARNING)  # it would tell of a dozen attempts
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", refuse)
    with pytest.raises(ConfigError, match="HF_HOME") as error:
        build_encoder("timm/resnet18", pretrained=True)
    assert error.value.advice == "pretrained"
    assert logger.level == logging.INFO


def test_poolers_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    bags = torch.randn(4, 6, 3, generator=generator)
    present = torch.arange(6) < torch.tensor([1, 4, 5, 6])[:, None]
    bags = bags * present[..., None]
    attention = AttentionPooler(3, hidden=5)
    for i, count in enumerate((1, 4, 5, 6)):
        cells = bags[i, :count]
        torch.testing.assert_close(median_pool(bags, present)[i], torch.quantile(cells, 0.5, dim=0))
        weights = attention.score(cells).squeeze(-1).softmax(0)
        torch.testing.assert_close(attention(bags, present)[i], weights @ cells)


def test_padding_does_not_change_a_bag():
    classifier = BagClassifier(3, 2)
    bags = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([bags, torch.zeros(2, 5, 3)], 1)
    torch.testing.assert_close(classifier(bags), classifier(padded))


def test_a_bag_of_zeros_is_finite_and_learns():
    classifier = BagClassifier(3, 2)
    bags = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    bags[1] = 0
    logits = classifier(bags)
    torch.testing.assert_close(logits[1], classifier.classifier.bias)
    torch.testing.assert_close(logits[:1], classifier(bags[:1]))
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())


def test_standardized_features_have_the_moments_of_their_plate():
    architecture = Architecture("timm/test_vit", 3, (4,), standardize=True)
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    network = build_network(architecture).eval()
    x, plates = torch.randn(7, 3, 160, 160, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 3 + [1] * 4)
    with torch.no_grad():
        raw = network.encoder[0](x)
        with plate_statistics(network, plates):
            found = network.encoder(x)
    for plate in (0, 1):
        part = raw[plates == plate]
        expected = (part - part.mean(0)) / (part.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(found[plates == plate], expected, rtol=1e-4, atol=1e-4)
