"""Batched transforms against torchvision's on single images: the same pixels, parameters of the same distribution."""

import colorsys
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from biomass.config import build
from biomass.errors import ConfigError
from biomass.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomVerticalFlip,
    Resize,
    Standardize,
    steps,
    warps,
)

LIKELY = 1e-3  # a statistical test with a fixed seed fails below this p value


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, c=3, h=24, w=24, dtype=torch.float32, seed=5):
    return torch.rand(n, c, h, w, generator=seeded(seed), dtype=dtype)


RANDOM = [
    RandomRotate90(),
    RandomHorizontalFlip(),
    RandomVerticalFlip(),
    RandomResizedCrop(20),
    RandomCrop(17),
    GaussianBlur(7, [0.1, 2.0]),
    ColorJitter(0.4, 0.4, maximum=1.0),
    Compose([RandomRotate90(), RandomHorizontalFlip(), RandomResizedCrop(24), GaussianBlur(9), Standardize()]),
    Compose([Resize(22), RandomCrop(20), RandomCrop([15, 15]), RandomRotate90(), Standardize()]),
    Compose([RandomResizedCrop(16), RandomVerticalFlip(), ColorJitter(0.4, 0.4, maximum=1.0), RandomRotate90()]),
]
ALL = [*RANDOM, Standardize(), CenterCrop(11), Resize(15)]


def name(transform):
    return "+".join(type(t).__name__ for t in getattr(transform, "transforms", [transform]))


# ---- what all of them promise


@pytest.mark.parametrize("transform", RANDOM, ids=name)
def test_samples_of_a_batch_get_different_parameters_and_a_seed_the_same_bits(transform):
    images = noise(1, c=5).expand(40, -1, -1, -1)
    global_state = torch.get_rng_state()
    first = transform(images, seeded(1))
    assert len(torch.unique(first, dim=0)) > 1
    assert torch.equal(transform(images, seeded(1)), first)
    assert not torch.equal(transform(images, seeded(2)), first)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("transform", RANDOM, ids=name)
def test_random_transforms_insist_on_a_generator(transform):
    with pytest.raises(ConfigError, match="Generator"):
        transform(noise(2))


@pytest.mark.parametrize("transform", ALL, ids=name)
def test_any_number_of_channels_type_and_batch(transform):
    for shape in ((3, 1, 24, 24), (2, 7, 24, 24), (0, 3, 24, 24)):
        out = transform(torch.rand(shape, generator=seeded()), seeded())
        assert out.shape[:2] == shape[:2]
        assert out.shape[2] == out.shape[3]
        assert out.isfinite().all()
    assert transform(noise(2, dtype=torch.float64), seeded()).dtype == torch.float64
    images = noise(4)
    strided = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(transform(strided, seeded()), transform(images, seeded()), rtol=1e-5, atol=1e-5)
    before = images.clone()
    transform(images, seeded())
    assert torch.equal(images, before)


class NoWaiting(TorchDispatchMode):
    """Refuses the operations for which the host would have to wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "item", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.overloadpacket.__name__
        assert operation not in self.FORBIDDEN, operation
        if operation.startswith("index"):
            flat = torch.utils._pytree.tree_leaves((args[1:], kwargs))
            assert not any(isinstance(a, torch.Tensor) and a.dtype == torch.bool for a in flat), operation
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transform", [*ALL, ColorJitter(0.4, 0.4, 0.4, 0.1, maximum=1, p=0.8)], ids=name)
def test_the_host_never_waits_for_the_device(transform, monkeypatch):
    monkeypatch.setattr(warps, "_is_exact", lambda *sizes: False)  # which is asked on the host alone
    with NoWaiting():
        transform(noise(4), seeded())


def test_the_guard_against_waiting_works():
    for wait in (lambda x: x.max().item(), lambda x: x[x > 0.5], lambda x: bool((x > 2).any())):
        with pytest.raises(AssertionError), NoWaiting():
            wait(noise(1))


def test_autocast_does_not_lower_the_precision():
    chain = RANDOM[6]
    with torch.autocast("cpu", torch.bfloat16):
        out = chain(noise(4), seeded())
    assert torch.equal(out, chain(noise(4), seeded()))


SPATIAL = [
    RandomRotate90(),
    RandomHorizontalFlip(0.4),
    RandomVerticalFlip(0.6),
    RandomResizedCrop(20),
    GaussianBlur(7, [0.5, 1.5]),
]


@pytest.mark.parametrize("seed", range(12))
def test_merged_spatial_transforms_equal_one_after_the_other(seed):
    order = np.random.default_rng(seed).integers(0, len(SPATIAL), 7)
    transforms = [SPATIAL[i] for i in order]
    images = noise(30, c=2, dtype=torch.float64)
    generator = seeded(seed)
    expected = images
    for transform in transforms:
        expected = transform(expected, generator)
    torch.testing.assert_close(Compose(transforms)(images, seeded(seed)), expected, rtol=0, atol=1e-12)


def test_merging_also_holds_for_oblong_images():
    transforms = [RandomVerticalFlip(), GaussianBlur(5), RandomHorizontalFlip(), RandomResizedCrop(9), RandomRotate90()]
    images = noise(20, c=2, h=30, w=17, dtype=torch.float64)
    generator = seeded(3)
    expected = images
    for transform in transforms:
        expected = transform(expected, generator)
    torch.testing.assert_close(Compose(transforms)(images, seeded(3)), expected, rtol=0, atol=1e-12)


def test_the_preset_for_oblong_images_flips_them_both_ways():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        preset = compose("train_erm", ["transforms=oblong"]).transforms.train
    augment = Compose([build(transform) for transform in preset])
    image = noise(1, h=5, w=8)
    out = augment(image.expand(400, -1, -1, -1), seeded())
    flips = [flip(Standardize()(image)[0]) for flip in (lambda x: x, F.hflip, F.vflip, lambda x: F.hflip(F.vflip(x)))]
    counts = [sum(torch.allclose(o, flip, atol=1e-5) for o in out) for flip in flips]
    assert sum(counts) == 400
    assert stats.chisquare(counts).pvalue > LIKELY


def test_an_empty_chain_changes_nothing():
    assert torch.equal(Compose([])(noise(2)), noise(2))
    vectors = noise(1)[0, 0]
    assert torch.equal(Compose([])(vectors), vectors)


@pytest.mark.parametrize("transform", ALL, ids=name)
def test_a_few_images_at_a_time_give_the_bits_of_all_at_once(transform, monkeypatch):
    images = noise(23)
    whole = transform(images, seeded())
    monkeypatch.setattr(steps, "CACHE", 5 * 4 * images[0].numel())
    assert torch.equal(transform(images, seeded()), whole)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16])
@pytest.mark.parametrize("transform", [ALL[i] for i in (7, 8, 9, 10)], ids=name)
def test_integers_give_what_their_floats_give(transform, dtype):
    images = (noise(9) * 255).round()
    out = transform(images.to(dtype), seeded())
    assert out.dtype == torch.float32
    assert torch.equal(out, transform(images, seeded()))


def test_a_transform_of_the_users_own_gets_the_whole_batch_in_floating_point():
    seen = []

    def own(images, generator):
        seen.append((images.dtype, images.shape))
        return images[:, :, :20, 2:22] - images.mean(0)[:, :20, 2:22]

    images = (noise(40, c=2) * 255).to(torch.uint8)
    out = Compose([RandomVerticalFlip(), own, RandomRotate90(), Standardize()])(images, seeded(4))
    generator = seeded(4)
    expected = own(RandomVerticalFlip()(images, generator).float(), generator)
    assert torch.equal(out, Standardize()(RandomRotate90()(expected, generator)))
    assert seen == [(torch.float32, images.shape)] * 2


def test_draws_in_one_go_are_those_one_by_one():
    together = torch.rand(7, 22, generator=seeded(), dtype=torch.float64).flatten().split([70, 70, 14])
    generator = seeded()
    for one, width in zip(together, (10, 10, 2), strict=True):
        assert torch.equal(one.view(7, width), torch.rand(7, width, generator=generator, dtype=torch.float64))


# ---- rotations and flips


def count(out, candidates):
    """How many samples of ``out`` are exactly each of the ``candidates``."""
    return [sum(torch.equal(o, c) for o in out) for c in candidates]


def test_rotations_are_exact_and_equally_likely():
    image = noise(1, h=6, w=6)[0]
    out = RandomRotate90()(image.expand(2000, -1, -1, -1), seeded())
    counts = count(out, [torch.rot90(image, k, (1, 2)) for k in range(4)])
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > LIKELY


@pytest.mark.parametrize(("transform", "flip"), [(RandomHorizontalFlip, F.hflip), (RandomVerticalFlip, F.vflip)])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flips_are_exact_and_as_likely_as_asked(transform, flip, p):
    image = noise(1, h=5, w=8)[0]
    out = transform(p)(image.expand(2000, -1, -1, -1), seeded())
    counts = count(out, [flip(image), image])
    assert sum(counts) == 2000
    assert stats.binomtest(counts[0], 2000, p).pvalue > LIKELY


def test_each_sample_keeps_its_own_pixels():
    images = torch.arange(50.0)[:, None, None, None] + noise(50, h=8, w=8) / 2
    out = Compose([RandomRotate90(), RandomHorizontalFlip()])(images, seeded())
    assert torch.equal(out.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_rotation_and_flips_leave_integers_as_they_are():
    images = torch.randint(0, 65536, (9, 2, 6, 6), generator=seeded()).to(torch.uint16)
    out = Compose([RandomRotate90(), RandomVerticalFlip()])(images.view(torch.int16), seeded())
    assert out.dtype == torch.int16


# ---- crop


@pytest.mark.parametrize(
    ("size", "height", "width", "options"),
    [
        (48, 48, 48, {}),
        (20, 48, 60, {}),
        (64, 30, 41, {"scale": [0.5, 1.0]}),
        (7, 90, 33, {"scale": [0.01, 1.0], "ratio": [0.2, 5.0]}),
        (16, 12, 40, {"scale": [0.9, 1.0], "ratio": [0.9, 1.1]}),  # nothing fits: the fallback
        (1, 9, 9, {}),
        (12, 1, 1, {}),
    ],
)
@pytest.mark.parametrize("maximum", [1, 255, 65535])
def test_crops_equal_torchvision_in_the_same_box(size, height, width, options, maximum):
    images = (noise(25, h=height, w=width) * maximum).round() if maximum > 1 else noise(25, h=height, w=width)
    crop = RandomResizedCrop(size, **options)
    boxes = torch.cat(crop.draw_boxes(images, (height, width), seeded(2))).T.long().tolist()
    expected = [
        F.resized_crop(image, *box, size=[size, size], antialias=True) for image, box in zip(images, boxes, strict=True)
    ]
    out = crop(images, seeded(2))
    assert out.shape == (25, 3, size, size)
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=2e-5 * maximum)


@pytest.mark.parametrize(
    ("size", "options"),
    [((48, 48), {}), ((40, 56), {"scale": (0.3, 1.0), "ratio": (0.5, 2.0)}), ((20, 50), {"scale": (0.5, 1.0)})],
)
def test_boxes_are_distributed_as_in_torchvision(size, options):
    n = 4000
    crop = RandomResizedCrop(10, **options)
    ours = torch.cat(crop.draw_boxes(torch.empty(n, 1), size, seeded(0))).T.numpy()
    torch.manual_seed(0)
    single = v2.RandomResizedCrop(10, **options)
    image = torch.empty(1, *size)
    drawn = [single.make_params([image]) for _ in range(n)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    derived = {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "bottom": lambda b: b[:, 0] + b[:, 2],
        "place": lambda b: b[:, 0] / (size[0] - b[:, 2] + 1),
        "both places": lambda b: b[:, 0] * b[:, 1],
    }
    for key, value in derived.items():
        p = stats.ks_2samp(value(ours), value(theirs), method="asymp").pvalue
        assert p > LIKELY, (key, p)


@pytest.mark.parametrize("permitted", [True, False])
def test_products_keep_their_digits_and_leave_settings_as_they_are(permitted, monkeypatch):
    if not permitted:  # as on a machine that would round
        monkeypatch.setattr(warps, "_is_exact", lambda *sizes: False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    images, step = torch.rand(9, 3, 48, 48, generator=seeded()) * 65535, RandomResizedCrop(40)
    exact = step(images.double(), seeded(1))
    torch.testing.assert_close(step(images, seeded(1)).double(), exact, rtol=1e-4, atol=1)  # bfloat16: 128
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_crop_of_everything_at_its_own_size_is_the_image():
    images = noise(6)
    out = RandomResizedCrop(24, scale=[1.0, 1.0], ratio=[1.0, 1.0])(images, seeded())
    torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


# ---- blur


def test_windows_are_parts_of_their_image_and_every_place_is_equally_likely():
    images = torch.arange(20.0).view(1, 1, 4, 5) + 100 * torch.arange(6000.0).view(-1, 1, 1, 1)
    cut = RandomCrop([3, 4])(images, seeded())
    corners = (cut[:, 0, 0, 0] % 100).long()
    steps = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13]])
    assert torch.equal(cut[:, 0], 100 * torch.arange(6000.0).view(-1, 1, 1) + corners.view(-1, 1, 1) + steps)
    counts = Counter(corners.tolist())
    assert sorted(counts) == [0, 1, 5, 6]
    assert stats.chisquare(list(counts.values())).pvalue > LIKELY


def test_a_window_of_a_window_is_one_cut():
    images = noise(5, h=20, w=23)
    chain = [RandomCrop([15, 12]), RandomCrop(7)]
    generator = seeded(3)
    expected = chain[1](chain[0](images, generator), generator)
    assert torch.equal(Compose(chain)(images, seeded(3)), expected)
    assert expected.shape == (5, 3, 7, 7)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (25, 32), (24, 31)])
@pytest.mark.parametrize("size", [11, [10, 17], 24])
def test_the_middle_is_that_of_torchvision(height, width, size):
    images = noise(2, h=height, w=width)
    assert torch.equal(CenterCrop(size)(images), F.center_crop(images, size))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (25, 38), (41, 24)])
@pytest.mark.parametrize("size", [11, [10, 17], 24, 50])
def test_resizing_equals_torchvision(height, width, size):
    images = noise(2, h=height, w=width)
    wanted = [size] if isinstance(size, int) else size
    expected = F.resize(images, wanted, antialias=True)
    assert torch.allclose(Resize(size)(images), expected, atol=1e-6)
    assert Resize(size)(images).shape == expected.shape


@pytest.mark.parametrize("preset", ["large", "resized"])
def test_presets_for_large_fields_end_in_squares_of_512(preset):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        chosen = compose("train_erm", [f"transforms={preset}"]).transforms
    images = noise(2, c=1, h=1080, w=1300)
    for stage in ("train", "eval"):
        assert Compose([build(node) for node in chosen[stage]])(images, seeded()).shape == (2, 1, 512, 512)


@pytest.mark.parametrize(("kernel_size", "sigma"), [(1, 1.0), (3, 0.4), (25, 0.1), (25, 0.5), (25, 3.0), (47, 20.0)])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (31, 40)])
def test_blur_equals_torchvision(kernel_size, sigma, height, width):
    images = noise(4, c=5, h=height, w=width)
    out = GaussianBlur(kernel_size, sigma)(images, seeded())
    expected = F.gaussian_blur(images, [kernel_size] * 2, [sigma] * 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def test_sigma_is_distributed_as_in_torchvision():
    spot = torch.zeros(1, 15, 15)
    spot[0, 7, 7] = 1
    n = 1500
    ours = GaussianBlur(9, [0.5, 2.0])(spot.expand(n, -1, -1, -1), seeded())[:, 0, 7, 7]
    torch.manual_seed(0)
    single = v2.GaussianBlur(9, (0.5, 2.0))
    theirs = torch.stack([single(spot)[0, 7, 7] for _ in range(n)])
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > LIKELY


def test_blur_with_a_probability_leaves_the_others_exactly_as_they_are():
    image = noise(1)[0]
    out = GaussianBlur(5, 1.0, p=0.3)(image.expand(1000, -1, -1, -1), seeded())
    assert stats.binomtest(sum(torch.equal(o, image) for o in out), 1000, 0.7).pvalue > LIKELY


# ---- standardization


def standardized(image):
    """One image at a time, as for RxRx1-WILDS (Koh 2021)."""
    mean, std = image.mean((1, 2)), image.std((1, 2))
    std[std == 0] = 1
    return F.normalize(image, mean.tolist(), std.tolist())


@pytest.mark.parametrize("maximum", [1, 255, 65535])
def test_standardize_equals_the_published_transform(maximum):
    images = (noise(8, c=5, dtype=torch.float64) * maximum).round()
    images[1, 2] = 7
    expected = torch.stack([standardized(image) for image in images])
    torch.testing.assert_close(Standardize()(images), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(Standardize()(images.float()), expected.float(), rtol=0, atol=1e-4)


def test_a_faint_signal_on_a_bright_ground_keeps_its_digits():
    images = 65000 + (3 * noise(4, dtype=torch.float64)).round()
    expected = Standardize()(images)
    torch.testing.assert_close(Standardize()(images.float()).double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 255.0, 65535.0, 12345.0])
def test_constant_channels_become_zeros(value):
    images = noise(5)
    images[:, 1] = value
    out = Standardize()(images)
    assert (out[:, 1] == 0).all()
    assert (out[:, 0].std() - 1).abs() < 0.01
    chain = Compose([RandomRotate90(), RandomResizedCrop(31), GaussianBlur(25, [0.1, 3.0]), Standardize()])
    assert (chain(images, seeded())[:, 1] == 0).all()  # rounding errors are not blown up


def test_the_smallest_signal_of_a_16_bit_image_is_not_taken_for_a_constant():
    images = torch.full((1, 1, 48, 48), 65534.0)
    images[0, 0, 3, 4:36] += 1
    assert Standardize()(images).std() > 0.99


def test_an_image_of_one_pixel_becomes_zero():
    assert (Standardize()(torch.full((2, 3, 1, 1), 9.0)) == 0).all()


def test_half_precision_is_standardized_in_float32():
    images = (noise(2) * 255).round().bfloat16()
    assert torch.equal(Standardize()(images), Standardize()(images.float()))


# ---- color

ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ("brightness", 0.4),
        ("brightness", 1.7),
        ("contrast", 0.0),
        ("contrast", 2.5),
        ("saturation", 0.0),
        ("saturation", 3.0),
        ("hue", -0.5),
        ("hue", 0.13),
        ("hue", 0.49),
    ],
)
@pytest.mark.parametrize("maximum", [1.0, 255.0])
def test_single_color_changes_equal_torchvision(change, factor, maximum):
    images = noise(10, h=8, w=8)
    images[0] = 0.3  # gray
    images[1] = torch.tensor([0.2, 0.2, 0.9])[:, None, None]  # two channels alike
    images[2] = torch.tensor([0.7, 0.7, 0.1])[:, None, None]
    images[3] = 0
    out = ColorJitter(**{change: [factor, factor]}, maximum=maximum)(images * maximum, seeded())
    torch.testing.assert_close(out / maximum, ADJUST[change](images, factor), rtol=0, atol=2e-6)


FACTORS = {"brightness": 2.2, "contrast": 1.6, "saturation": 1.8, "hue": 0.2}


@pytest.mark.parametrize(
    "changes", [("brightness", "contrast"), ("contrast", "saturation", "hue"), ("hue",), tuple(FACTORS)]
)
def test_the_order_of_color_changes_is_random_for_every_sample(changes):
    image = noise(1, h=6, w=6, dtype=torch.float64)[0]
    options = {change: [FACTORS[change]] * 2 for change in changes}
    n = 600
    out = ColorJitter(**options, maximum=1.0)(image.expand(n, -1, -1, -1), seeded())
    found = Counter()
    for order in itertools.permutations(changes):
        expected = image
        for change in order:
            expected = ADJUST[change](expected, FACTORS[change])
        found[order] = int(((out - expected).abs().amax((1, 2, 3)) < 2e-6).sum())
    assert sum(found.values()) == n  # every sample matches exactly one order
    if len(found) > 1:
        assert stats.chisquare(list(found.values())).pvalue > LIKELY


def read_hue(pixel):
    hue = colorsys.rgb_to_hsv(*pixel)[0]
    return hue - 1 if hue > 0.5 else hue


READ = {  # the factor, read off the image of two pixels (0.5, 0.3, 0.3) and (0.3, 0.3, 0.3)
    "brightness": lambda out: out[1, 0] / 0.3,
    "contrast": lambda out: (out[0, 0] - out[1, 0]) / 0.2,
    "saturation": lambda out: (out[0, 0] - out[0, 1]) / 0.2,
    "hue": lambda out: read_hue(out[0]),
}


@pytest.mark.parametrize(
    ("change", "value"),
    [*((c, 0.4) for c in READ), ("brightness", 1.5), ("contrast", [0.9, 1.1]), ("hue", [0.1, 0.2])],
)
def test_color_factors_are_distributed_as_in_torchvision(change, value):
    image = torch.tensor([[0.5, 0.3], [0.3, 0.3], [0.3, 0.3]])[:, None]
    n = 1500
    out = ColorJitter(**{change: value}, maximum=1.0)(image.expand(n, -1, -1, -1), seeded(1))
    ours = [READ[change](o[:, 0].T.tolist() if change == "hue" else o[:, 0].T) for o in out]
    low, high = getattr(v2.ColorJitter(**{change: tuple(value) if isinstance(value, list) else value}), change)
    assert stats.kstest(np.array(ours, float), stats.uniform(low, high - low).cdf).pvalue > LIKELY


def test_color_changes_with_a_probability_leave_the_others_as_they_are():
    image = noise(1, h=4, w=4)[0]
    out = ColorJitter(0.4, 0.4, 0.4, 0.1, maximum=1.0, p=0.25)(image.expand(1000, -1, -1, -1), seeded())
    same = int(((out - image).abs().amax((1, 2, 3)) < 1e-6).sum())
    assert stats.binomtest(same, 1000, 0.75).pvalue > LIKELY


def test_brightness_and_contrast_of_any_number_of_channels():
    images = noise(4, c=5)
    out = ColorJitter(contrast=[0.5, 0.5], maximum=1.0)(images, seeded())
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(out, mean + 0.5 * (images - mean))
    bright = ColorJitter(brightness=[1.5, 1.5], maximum=65535)(images * 65535, seeded())
    torch.testing.assert_close(bright, (images * 65535 * 1.5).clamp(max=65535))


# ---- mistakes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomHorizontalFlip(1.5), ["p=1.5", "0 … 1"]),
        (lambda: RandomVerticalFlip(-0.1), ["p=-0.1"]),
        (lambda: RandomResizedCrop(0), ["size=0"]),
        (lambda: RandomResizedCrop(8, scale=[0.5, 1.5]), ["scale=[0.5, 1.5]"]),
        (lambda: RandomResizedCrop(8, scale=[0.5]), ["scale=[0.5]"]),
        (lambda: RandomResizedCrop(8, ratio=[2.0, 1.0]), ["ratio=[2.0, 1.0]"]),
        (lambda: GaussianBlur(4), ["kernel_size=4", "odd"]),
        (lambda: GaussianBlur(3, [0.0, 1.0]), ["sigma=[0.0, 1.0]"]),
        (lambda: GaussianBlur(3, [0.1, 0.2, 0.3]), ["[0.1, 0.2, 0.3]"]),
        (lambda: GaussianBlur(3, 1.0, p=2), ["p=2"]),
        (lambda: ColorJitter(brightness=-0.1, maximum=1), ["brightness=-0.1"]),
        (lambda: ColorJitter(contrast=[2, 1], maximum=1), ["contrast=[2, 1]"]),
        (lambda: ColorJitter(saturation=[1], maximum=1), ["[1]"]),
        (lambda: ColorJitter(hue=0.6, maximum=1), ["hue=0.6"]),
        (lambda: ColorJitter(maximum=0), ["maximum=0"]),
        (lambda: RandomCrop([0, 3]), ["size=[0, 3]"]),
        (lambda: CenterCrop([1, 2, 3]), ["size=[1, 2, 3]"]),
        (lambda: Resize(0), ["size=0"]),
        (lambda: RandomCrop(9)(noise(2, h=8, w=30), seeded()), ["9 x 9", "8 x 30"]),
        (lambda: CenterCrop([9, 40])(noise(2, h=9, w=30)), ["9 x 40", "9 x 30"]),
        (lambda: RandomRotate90()(noise(2, h=4, w=5), seeded()), ["4 x 5", "square"]),
        (lambda: GaussianBlur(25)(noise(2, h=12, w=30), seeded()), ["kernel_size=25", "12 x 30", "at most 23"]),
        (lambda: ColorJitter(hue=0.1, maximum=1)(noise(2, c=5), seeded()), ["hue", "3 channels", "5"]),
        (lambda: ColorJitter(saturation=0.1, maximum=1)(noise(2, c=1), seeded()), ["saturation", "3 channels", "1"]),
    ],
)
def test_mistakes_are_refused_in_one_line(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
