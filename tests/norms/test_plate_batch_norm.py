"""Plate-aware batch norm against plain batch norm run plate by plate."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from biomass.errors import ConfigError, DataError
from biomass.norms import PlateBatchNorm, calibrate, convert, plate_statistics

SHAPES = {"1d": (), "1d_length": (5,), "2d": (3, 4), "3d": (2, 3, 2)}
CLASSES = {"1d": nn.BatchNorm1d, "1d_length": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_norm(kind: str = "2d", channels: int = 3, dtype: torch.dtype = torch.float64, **options: object) -> _BatchNorm:
    norm = CLASSES[kind](channels, dtype=dtype, **options)
    with torch.no_grad():
        if norm.affine:
            norm.weight.normal_(generator=seeded(1))
            norm.bias.normal_(generator=seeded(2))
        if norm.track_running_stats:
            norm.running_mean.normal_(generator=seeded(3))
            norm.running_var.uniform_(0.5, 2, generator=seeded(4))
    return norm


def reference(norm: nn.Module, x: Tensor, plates: Tensor, controls: Tensor) -> Tensor:
    """Slow and obvious: one plate after another, the mean and variance of its control rows written out."""
    y = torch.empty_like(x)
    for plate in plates.unique():
        rows = plates == plate
        used = x[rows & controls].transpose(0, 1).flatten(1)
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        mean, var = used.mean(1).view(shape), used.var(1, correction=0).view(shape)
        z = (x[rows] - mean) / (var + norm.eps).sqrt()
        y[rows] = z if norm.weight is None else z * norm.weight.view(shape) + norm.bias.view(shape)
    return y


def gradients(y: Tensor, x: Tensor, norm: nn.Module) -> list[Tensor]:
    inputs = [x, *norm.parameters()]
    target = torch.randn(y.shape, generator=seeded(9), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad((y * target).sum() + y.pow(3).sum(), inputs)]


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(5),
    )


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_one_plate_is_batch_norm_in_training_mode_bit_by_bit(kind: str, training: bool) -> None:
    norm = make_norm(kind)
    ours = convert(copy.deepcopy(norm)).train(training)
    x = torch.randn(6, 3, *SHAPES[kind], dtype=torch.float64, generator=seeded()).requires_grad_()
    expected = gradients(F.batch_norm(x, None, None, norm.weight, norm.bias, True), x, norm)
    with plate_statistics(ours, torch.full((6,), 7)):
        found = gradients(ours(x), x, ours)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 7), min_size=1, max_size=5),
    kind=st.sampled_from(list(SHAPES)),
    affine=st.booleans(),
    use_controls=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_mix_of_plates_equals_each_plate_alone(
    sizes: list[int], kind: str, affine: bool, use_controls: bool, training: bool, seed: int
) -> None:
    generator = seeded(seed)
    order = torch.randperm(sum(sizes), generator=generator)
    plates = torch.repeat_interleave(torch.tensor([3, 1, 40, 12, 5])[: len(sizes)], torch.tensor(sizes))[order]
    controls = torch.rand(len(plates), generator=generator) < (0.3 if use_controls else 2)
    for plate in plates.unique():  # two a plate at least
        controls[torch.nonzero(plates == plate)[:2]] = True
    norm = make_norm(kind, affine=affine)
    ours = convert(copy.deepcopy(norm)).train(training)
    scale = torch.rand(len(plates), 1, generator=generator).view(-1, 1, *(1 for _ in SHAPES[kind])) * 3
    x = torch.randn(len(plates), 3, *SHAPES[kind], dtype=torch.float64, generator=generator) * scale + scale
    x = x.requires_grad_()
    expected = gradients(reference(norm, x, plates, controls), x, norm)
    with plate_statistics(ours, plates, weights=controls if use_controls else None):
        y = ours(x)
    for found, right in zip(gradients(y, x, ours), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-8)


def test_gradients_of_several_plates_with_controls_numerically() -> None:
    norm = convert(make_norm())
    plates, controls = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([1, 1, 1, 1, 0, 1]).bool()

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with plate_statistics(norm, plates, weights=controls):
            return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    x = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, norm.weight, norm.bias))


def test_a_large_offset_costs_no_more_than_in_plain_batch_norm() -> None:
    x = 1e4 + torch.randn(12, 3, 8, 8, generator=seeded())
    plates = torch.arange(12) % 3
    norm = convert(nn.BatchNorm2d(3))
    x.requires_grad_()
    with plate_statistics(norm, plates):
        y = norm(x)
    grad = torch.autograd.grad(y[:, :, :4].pow(2).sum(), x)[0]
    exact = x.detach().double().requires_grad_()
    right = reference(norm, exact, plates, torch.ones(12, dtype=torch.bool))
    right_grad = torch.autograd.grad(right[:, :, :4].pow(2).sum(), exact)[0]
    plain = torch.cat([F.batch_norm(x[plates == p], None, None, training=True) for p in range(3)])
    error = (plain - torch.cat([right[plates == p] for p in range(3)])).abs().max()
    assert (y - right).abs().max() <= 2 * error + 1e-3  # float32 rounds such values to 1e-3 itself
    assert (grad - right_grad).abs().max() <= 1e-2 * right_grad.abs().max()


def test_the_whole_batch_is_one_group_without_plates() -> None:
    norm = convert(make_norm()).eval()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=seeded())
    with plate_statistics(norm, None):
        assert torch.equal(norm(x), F.batch_norm(x, None, None, norm.weight, norm.bias, True))
    controls = torch.tensor([1, 0, 1, 1, 0]).bool()
    with plate_statistics(norm, None, weights=controls):
        torch.testing.assert_close(norm(x), reference(norm, x, torch.zeros(5, dtype=torch.long), controls))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("use_controls", [True, False])
@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_running_averages_move_as_in_plain_batch_norm(momentum: float | None, use_controls: bool, kind: str) -> None:
    plain = make_norm(kind, momentum=momentum)
    ours = convert(copy.deepcopy(plain))
    for step in range(3):
        x = torch.randn(9, 3, *SHAPES[kind], dtype=torch.float64, generator=seeded(step)) * (step + 1) + step
        plain(x)
        controls = torch.arange(9) > 2 if use_controls else None
        with plate_statistics(ours, torch.arange(9) % (step + 1), weights=controls):
            ours(x)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)


def test_evaluation_moves_no_buffer_and_a_frozen_mode_holds() -> None:
    network = convert(small_network()).eval()
    x, plates = torch.randn(6, 3, 8, 8, generator=seeded()), torch.tensor([0, 0, 0, 1, 1, 1])
    calibrate(network, [(x[:3], plates[:3], None), (x[3:], plates[3:], None)])
    before = copy.deepcopy(network.state_dict())
    for word in ("plate", "calibrated", "running"):
        for ids in (plates, plates * 0):
            with plate_statistics(network, ids, word):
                network(x)
    with plate_statistics(network, plates, weights=plates == plates):
        network(x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with plate_statistics(network.train(), plates):
        network(x)
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_words_in_evaluation_mode() -> None:
    norm = convert(make_norm()).eval()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=seeded())
    plain = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.equal(norm(x), plain)
    with plate_statistics(norm, torch.tensor([0, 0, 1, 1]), "running"):
        assert torch.equal(norm(x), plain)
    calibrate(norm, [(x[:2], torch.tensor([5, 5]), None), (x[2:], torch.tensor([2, 2]), None)])
    whole = reference(norm, x, torch.tensor([5, 5, 2, 2]), torch.ones(4, dtype=torch.bool))
    for rows in ([0], [3, 0], [2, 1, 3, 0], [3, 3]):
        with plate_statistics(norm, torch.tensor([5, 5, 2, 2])[rows], "calibrated"):
            torch.testing.assert_close(norm(x[rows]), whole[rows])


# --- conversion -------------------------------------------------------------------------------------------------------


def networks() -> Iterator[tuple[str, nn.Module, int]]:
    yield "torchvision resnet18", torchvision.models.resnet18(num_classes=4), 32
    yield "timm resnet18", timm.create_model("resnet18", num_classes=4), 32
    yield "timm efficientnet_b0", timm.create_model("efficientnet_b0", num_classes=4, drop_rate=0.0), 32
    yield "timm regnetx_002", timm.create_model("regnetx_002", num_classes=4), 32
    yield "a norm by itself", nn.BatchNorm2d(3), 8


def test_convert_keeps_everything_but_the_class() -> None:
    for name, network, size in networks():
        x = torch.randn(3, 3, size, size, generator=seeded())
        plain = copy.deepcopy(network)
        norm = next(m for m in network.modules() if isinstance(m, _BatchNorm))
        norm.eval().weight.requires_grad_(False)
        parameters, flags = dict(network.named_parameters()), [m.training for m in network.modules()]
        converted = convert(network)
        assert converted is network, name
        assert [m.training for m in network.modules()] == flags
        assert list(network.state_dict()) == list(plain.state_dict()), name
        assert all(value is parameters[key] for key, value in network.named_parameters())
        assert not norm.weight.requires_grad
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        assert {type(m) for m in norms} == {PlateBatchNorm}
        assert len({id(m.context) for m in norms}) == 1
        context = norm.context
        assert next(m for m in convert(network).modules() if isinstance(m, PlateBatchNorm)).context is context
        for training in (False, True):
            torch.manual_seed(0)  # layers with dropout
            expected = plain.train(training)(x)
            torch.manual_seed(0)
            assert torch.equal(network.train(training)(x), expected), name


def test_norms_of_timm_keep_their_activation() -> None:
    from timm.layers import BatchNormAct2d

    active = BatchNormAct2d(3, act_layer=nn.SiLU, drop_layer=nn.Identity)
    plain = nn.Sequential(active, BatchNormAct2d(3, apply_act=False))
    network = convert(copy.deepcopy(plain)).eval()
    x = torch.randn(6, 3, 4, 4, generator=seeded())
    plates = torch.arange(6) % 2
    names = [name for name, _ in plain.named_modules()]
    assert [name for name, _ in network.named_modules()] == names
    right = torch.empty_like(x)
    for plate in (0, 1):
        right[plates == plate] = plain.train()(x[plates == plate])
    with plate_statistics(network, plates):
        torch.testing.assert_close(network(x), right)


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.5}], ids=str
)
def test_options_of_a_layer_survive(options: dict[str, object]) -> None:
    plain = make_norm("1d", dtype=torch.float32, **options)
    ours = convert(copy.deepcopy(plain))
    x = torch.randn(6, 3, generator=seeded())
    for training in (True, False):
        assert torch.equal(ours.train(training)(x), plain.train(training)(x))
    with plate_statistics(ours.train(), torch.arange(6) % 2):
        torch.testing.assert_close(ours(x), reference(plain, x, torch.arange(6) % 2, torch.ones(6, dtype=torch.bool)))
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_a_shared_layer_and_hooks_stay_and_frozen_norms_are_left_alone() -> None:
    shared, calls = nn.BatchNorm1d(3), []
    shared.register_forward_hook(lambda *_: calls.append(1))
    network = convert(nn.ModuleDict({"a": shared, "b": shared, "frozen": FrozenBatchNorm2d(3)}))
    assert network["a"] is network["b"] is shared
    assert type(network["frozen"]) is FrozenBatchNorm2d
    network["a"](torch.randn(4, 3, generator=seeded()))
    assert calls == [1]


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize(("layer", "message"), [(nn.SyncBatchNorm(3), "mixes the plates"), (OwnNorm(3), "OwnNorm")])
def test_layers_that_cannot_be_converted_are_named_and_nothing_changes(layer: nn.Module, message: str) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), layer)
    with pytest.raises(ConfigError, match=f"layer '1'.*{message}"):
        convert(network)
    assert type(network[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_share_a_context_of_their_own(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    network = convert(small_network())
    x = torch.randn(4, 3, 8, 8, generator=seeded())
    calibrate(network, [(x, torch.full((4,), 3), None)])
    with plate_statistics(network, torch.tensor([0, 0, 1, 1])):
        other = duplicate(network)
    contexts = {id(m.context) for m in other.modules() if isinstance(m, PlateBatchNorm)}
    assert len(contexts) == 1
    assert id(network[1].context) not in contexts
    assert torch.equal(other.train()(x), network.train()(x))  # the batch at the time of copying is not copied
    with plate_statistics(other.eval(), torch.full((4,), 3), "calibrated"):
        found = other(x)
    with plate_statistics(network.eval(), torch.full((4,), 3), "calibrated"):
        assert torch.equal(found, network(x))


def test_parts_converted_one_by_one_are_refused_until_converted_together() -> None:
    network = nn.Sequential(convert(nn.BatchNorm1d(3)), convert(nn.BatchNorm1d(3)))
    with pytest.raises(ConfigError, match="2 parts"), plate_statistics(network, torch.tensor([0, 0])):
        pass
    with plate_statistics(convert(network), torch.tensor([0, 0])):
        assert network[0].context is network[1].context


def test_calibrated_statistics_follow_to_a_device_but_not_to_a_shorter_type() -> None:
    norm = convert(nn.BatchNorm1d(3))
    calibrate(norm, [(torch.randn(4, 3, generator=seeded()), torch.zeros(4, dtype=torch.long), None)])
    assert norm.half().calibrated.dtype == torch.float32
    assert norm.to("meta").calibrated.device.type == "meta"


# --- the context ------------------------------------------------------------------------------------------------------


def test_contexts_nest_and_end_after_an_error() -> None:
    norm = convert(make_norm("1d")).eval()
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded())
    plain = norm(x)
    with plate_statistics(norm, torch.tensor([0, 0, 1, 1])):
        outer = norm(x)
        with plate_statistics(norm, None):
            assert not torch.equal(norm(x), outer)
        assert torch.equal(norm(x), outer)
        with pytest.raises(RuntimeError), plate_statistics(norm, None):
            norm(x[:, :2])
        assert torch.equal(norm(x), outer)
    assert torch.equal(norm(x), plain)


NAMES = ["HUVEC-01/1", "HUVEC-01/2"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": torch.tensor([1, 1, 0, 0]).bool()}, DataError, "'HUVEC-01/2' has no control row among its 2"),
        ({"weights": torch.ones(3, dtype=torch.bool)}, DataError, "3 weights were given for 4 plates"),
        ({"word": "calibrated"}, DataError, "'HUVEC-01/1' is not among the 0 calibrated plates"),
        ({"word": "calibrated", "plates": None}, ConfigError, "need the plate of every row"),
        ({"word": "batches"}, ConfigError, "'batches'.*'batch'"),
        ({"word": "controls"}, ConfigError, "which rows are controls"),
        ({"plates": torch.zeros(2, 2, dtype=torch.long)}, DataError, r"shape \(2, 2\)"),
        ({"plates": torch.zeros(0, dtype=torch.long)}, DataError, "at least one row"),
    ],
)
def test_errors_on_entering(arguments: dict, error: type[Exception], message: str) -> None:
    norm = convert(nn.BatchNorm1d(3)).eval()
    given = {"plates": torch.tensor([0, 0, 1, 1]), "names": NAMES} | arguments
    with pytest.raises(error, match=message), plate_statistics(norm, **given):
        pytest.fail("entered")
    assert norm.context.rows is None


def test_errors_in_the_forward_pass() -> None:
    norm = convert(nn.BatchNorm1d(3))
    with plate_statistics(norm, torch.tensor([0, 0, 1]), names=NAMES):
        with pytest.raises(DataError, match=r"plate 'HUVEC-01/2' has one value a channel.*two images"):
            norm(torch.randn(3, 3, generator=seeded()))
        assert norm(torch.randn(3, 3, 2, generator=seeded())).isfinite().all()  # two values are enough
        with pytest.raises(DataError, match="3 plates were given for a batch norm over 4 rows"):
            norm(torch.randn(4, 3, generator=seeded()))
    for plates in (None, torch.tensor([1])):
        with plate_statistics(norm.eval(), plates, names=NAMES), pytest.raises(DataError, match="one value a channel"):
            norm(torch.randn(1, 3, generator=seeded()))
    with plate_statistics(norm, torch.tensor([1, 1]), weights=torch.tensor([True, False]), names=NAMES):
        x = torch.randn(2, 3, generator=seeded())
        with pytest.raises(DataError, match="'HUVEC-01/2' has one value"):
            norm(x)
    calibrate(norm, [(torch.randn(4, 3, generator=seeded()), torch.ones(4, dtype=torch.long), None)])
    with plate_statistics(norm.train(), torch.tensor([1, 1]), "calibrated"):
        with pytest.raises(ConfigError, match="calibrated statistics are for evaluation"):
            norm(torch.randn(2, 3, generator=seeded()))
        norm.eval()(torch.randn(2, 3, generator=seeded()))


def test_networks_without_plate_aware_norms() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match="no plate-aware batch norm"), plate_statistics(network, torch.tensor([0])):
        pass
    for plates, word in (
        (None, "plate"),
        (torch.tensor([0]), "batch"),
        (torch.tensor([0]), "running"),
    ):  # nothing is asked of them
        with plate_statistics(network, plates, word):
            network(torch.randn(2, 3, generator=seeded()))


def test_layers_over_tokens_serve_one_plate_at_a_time() -> None:
    norm = convert(nn.BatchNorm1d(3)).eval()
    tokens = torch.randn(4 * 5, 3, generator=seeded())
    with plate_statistics(norm, torch.zeros(4, dtype=torch.long)):
        torch.testing.assert_close(norm(tokens), F.batch_norm(tokens, None, None, training=True))
    with plate_statistics(norm, torch.tensor([0, 0, 1, 1])), pytest.raises(DataError, match="4 plates were given"):
        norm(tokens)


# --- precision, memory format, wrappers -------------------------------------------------------------------------------


@pytest.mark.parametrize("plates", [torch.zeros(64, dtype=torch.long), torch.arange(64) % 4])
def test_statistics_are_float32_at_least_under_autocast(plates: Tensor) -> None:
    norm = convert(nn.BatchNorm2d(3)).train()
    x = (20 + torch.randn(64, 3, 8, 8, generator=seeded())).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), plate_statistics(norm, plates):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    right = reference(norm, x.detach().double(), plates, torch.ones(64, dtype=torch.bool))
    assert (y - right).abs().max() < 2**-6  # rounding of outputs below 4; bfloat16 rounds a mean of 20 to 2**-4
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, x.detach().float().mean((0, 2, 3)) * 0.1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("word", ["plate", "calibrated"])
@pytest.mark.parametrize("plates", [torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 1, 1])])
def test_channels_last_is_kept(word: str, plates: Tensor) -> None:
    norm = convert(nn.BatchNorm2d(3)).eval()
    x = torch.randn(4, 3, 5, 5, generator=seeded())
    calibrate(norm, [(x, torch.full((4,), plate), None) for plate in (0, 1)])
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    with plate_statistics(norm, plates, word):
        y = norm(last)
        torch.testing.assert_close(y, norm(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.square().sum(), last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("case", "training"),
    [
        ("one", True),
        ("several", True),
        pytest.param("calibrated", False, marks=pytest.mark.slow),
        pytest.param("controls", True, marks=pytest.mark.slow),
        pytest.param("several", False, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_graph_breaks_and_again_only_once_for_other_batch_sizes(case: str, training: bool) -> None:
    torch._dynamo.reset()
    network = convert(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(8)))
    images = torch.randn(15, 3, 4, 4, generator=seeded())
    calibrate(network, [(images[:4], torch.full((4,), plate), None) for plate in range(3)])
    eager = copy.deepcopy(network).train(training)
    counter = CompileCounterWithBackend("aot_eager" if case == "controls" else "eager")
    compiled = torch.compile(network.train(training), backend=counter, fullgraph=True)
    for length in (9, 12, 15):  # of two rows a plate, gradients would be what rounding leaves of 0
        plates = torch.arange(length) % {"one": 1, "controls": 2}.get(case, 3)
        controls = torch.arange(length) != length // 2 if case == "controls" else None
        outputs = []
        for one in (compiled, eager):
            word = "calibrated" if case == "calibrated" else "plate"
            with plate_statistics(one, plates, word, weights=controls):
                outputs.append(one(images[:length]))
            if training:
                outputs[-1].pow(3).sum().backward()
        torch.testing.assert_close(*outputs)
    assert counter.frame_count <= 2, "once for the first size, once for all others"
    if training:
        for ours, right in zip(network.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, right.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.state_dict(), eager.state_dict())


def test_data_parallel_and_fabric_wrappers_are_transparent(tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    x, plates = torch.randn(6, 3, 8, 8, generator=seeded()), torch.arange(6) % 2
    plain = convert(small_network())
    with plate_statistics(plain, plates):
        plain(x).pow(3).sum().backward()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        fabric = Fabric(accelerator="cpu", devices=1).setup(copy.deepcopy(plain))
        for wrapped in (parallel, fabric):
            wrapped.zero_grad()
            with plate_statistics(wrapped, plates):
                wrapped(x).pow(3).sum().backward()
            for ours, right in zip(wrapped.parameters(), plain.parameters(), strict=True):
                assert torch.equal(ours.grad, right.grad)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_layer_waits_for_the_device() -> None:
    network = convert(small_network()).cuda()
    x = torch.randn(6, 3, 8, 8, device="cuda")
    one, two = torch.zeros(6, dtype=torch.long), torch.arange(6) % 2
    for plates, controls in ((None, None), (one, None), (two, None), (two, torch.arange(6) < 4)):
        torch.cuda.set_sync_debug_mode("error")
        try:
            with plate_statistics(network, plates, weights=controls):
                network(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
