"""Whole plates in chunks, and calibrated plates, against the forward pass over a whole plate."""

import copy
import gc
import math
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.norms import (
    PlateBatchNorm,
    calibrate,
    calibration_state,
    convert,
    forget_calibration,
    load_calibration,
    plate_statistics,
    whole_plate,
    whole_plate_forward,
)


def images(n: int, size: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at_once(network: nn.Module, x: Tensor, controls: Tensor | None = None) -> Tensor:
    """The reference: the whole plate as one batch."""
    network.eval()
    with torch.no_grad(), plate_statistics(network, torch.zeros(len(x), dtype=torch.long), weights=controls):
        return network(x)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True) + x


def small_network(blocks: int = 2, channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        *(Residual(channels) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(channels),
        nn.Linear(channels, 2),
    ).double()


def small_converted(**options: int) -> nn.Module:
    return convert(small_network(**options))


# --- the whole plate in chunks ----------------------------------------------------------------------------------------

SLOW = pytest.mark.slow
ARCHITECTURES = [
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v3_small"),
    ("torchvision", "regnet_y_400mf"),
    ("timm", "resnet18"),
    ("timm", "efficientnet_b0"),
    pytest.param("torchvision", "resnet50", marks=SLOW),
    pytest.param("torchvision", "densenet121", marks=SLOW),
    pytest.param("torchvision", "efficientnet_b0", marks=SLOW),
    pytest.param("torchvision", "shufflenet_v2_x0_5", marks=SLOW),
    pytest.param("timm", "resnet50", marks=SLOW),
    pytest.param("timm", "densenet121", marks=SLOW),
    pytest.param("timm", "levit_128s", marks=SLOW),  # control flow on shapes, norms over tokens
    pytest.param("timm", "resnest14d", marks=SLOW),
]


@pytest.mark.parametrize(("library", "key"), ARCHITECTURES)
def test_chunks_equal_the_whole_plate(library: str, key: str) -> None:
    torch.manual_seed(0)
    if library == "timm":
        network = timm.create_model(key, num_classes=3, drop_rate=0.2, **({} if "levit" in key else {"in_chans": 3}))
    else:
        network = getattr(torchvision.models, key)(num_classes=3)
    network = convert(network.double())
    x = images(7, 224 if "levit" in key else 32)
    controls = None if "levit" in key else torch.tensor([1, 0, 0, 1, 0, 0, 1]).bool()
    for flags in (None, controls):
        expected = at_once(network, x, flags)
        for size in (3, 7) if key == "resnet18" else (3,):
            split = None if flags is None else flags.split(size)
            outputs = whole_plate_forward(network, x.split(size), weights=split)
            assert [len(output) for output in outputs] == [len(chunk) for chunk in x.split(size)]
            torch.testing.assert_close(torch.cat(outputs), expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


def test_float32_and_autocast() -> None:
    network = convert(torchvision.models.resnet18(num_classes=3))
    x = images(7, dtype=torch.float32)
    expected = at_once(network, x)
    outputs = torch.cat(whole_plate_forward(network, x.split(2)))
    assert (outputs - expected).abs().max() <= 1e-4 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        expected, outputs = at_once(network, x), torch.cat(whole_plate_forward(network, x.split(2)))
    assert outputs.dtype == torch.bfloat16
    assert (outputs - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 4, 1], [1, 8], [2, 0, 7]], ids=str)
def test_any_chunks_equal_the_whole_plate(sizes: list[int]) -> None:
    network, x = small_converted(), images(9, 8)
    controls = torch.tensor([0, 0, 1, 0, 1, 1, 0, 0, 1]).bool()
    for flags in (None, controls):
        outputs = whole_plate_forward(network, x.split(sizes), weights=None if flags is None else flags.split(sizes))
        torch.testing.assert_close(torch.cat(outputs), at_once(network, x, flags), rtol=1e-10, atol=1e-12)


def test_a_large_offset_and_unequal_chunks_do_not_hurt_the_moments() -> None:
    network = convert(nn.Sequential(nn.BatchNorm2d(3)))
    x = 1e6 + torch.arange(9.0, dtype=torch.float64).view(-1, 1, 1, 1) * 100 + images(9, 4)
    outputs = torch.cat(whole_plate_forward(network, x.split([1, 6, 2])))
    exact = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(outputs, exact, rtol=1e-8, atol=1e-8)


class Awkward(nn.Module):
    """What the authors of networks do: sizes of the batch, arguments with defaults, constants, values changed in place
    across a norm, outputs in a dict, a branch that depends on the shape (inside a module without norms)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.drop, self.depth = nn.Dropout(0.5), torchvision.ops.StochasticDepth(0.5, "row")
        self.branch = Branch()

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = True) -> dict[str, Any]:
        if mask is not None or not flag:
            raise AssertionError("defaults must hold")
        x = self.first(x) * self.scale
        y = self.second(x * torch.tensor(2.0))
        same = x.add_(1.0)  # after it has waited for the other chunks, and before it waits again under two names
        halves = torch.chunk(y, 2, dim=2)
        y = self.third(self.depth(torch.cat(halves[::-1], dim=2)))
        x.mul_(2.0)
        alias = y
        y += same
        y = y - 0.5 * alias
        n, c, h, _ = y.shape
        flat = self.drop(self.branch(y)).reshape(y.size(0), c * h, -1)
        weight = torch.linspace(0, 1, 3).to(x.device)
        return {"flat": flat.view(n, -1), "pair": (x.mean((2, 3)) * weight, torch.zeros(y.shape[0]))}


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[-1] > 3 and float(x.sum()) < math.inf else x


def emulate_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make NumPy stand for host memory, so that the CPU can play the device."""
    moves: list[str] = []

    def to_host(tensor: Tensor) -> np.ndarray:
        moves.append("to host")
        return tensor.numpy().copy()

    def to_device(array: np.ndarray, device: torch.device) -> Tensor:
        moves.append("to device")
        return torch.from_numpy(array).clone()

    monkeypatch.setattr(whole_plate, "_to_host", to_host)
    monkeypatch.setattr(whole_plate, "_to_device", to_device)
    return moves


@pytest.mark.parametrize("store", ["auto", "device", "host"])
def test_awkward_networks(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = emulate_host(monkeypatch)
    network = convert(Awkward().double())
    attributes = set(vars(network))
    x = images(5, 8)
    untouched = x.clone()
    expected = at_once(network, x)
    outputs = whole_plate_forward(network.train(), x.split([2, 3]), store=store)
    torch.testing.assert_close(torch.cat([out["flat"] for out in outputs]), expected["flat"])
    torch.testing.assert_close(torch.cat([out["pair"][0] for out in outputs]), expected["pair"][0])
    assert [len(out["pair"][1]) for out in outputs] == [2, 3]
    assert set(vars(network)) == attributes, "tracing must leave nothing behind"
    assert torch.equal(x, untouched)
    assert bool(moves) == (store == "host")


def test_what_is_unchanged_is_not_copied_to_the_host_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = emulate_host(monkeypatch)
    network = small_converted(blocks=1)
    whole_plate_forward(network, [images(3, 8)], store="host")
    # image; first convolution; norm (kept for the sum) and second convolution; last features: once each
    assert moves.count("to host") == 5


class Meter(TorchDispatchMode):
    """Peak number of bytes in all live tensors that operations have made."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, list[int]] = {}  # of a storage: bytes, tensors that share it
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self.count, func(*args, **(kwargs or {})))

    def count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = self.live.setdefault(key, [storage.nbytes(), 0])
        entry[1] += 1
        weakref.finalize(tensor, self.drop, key)
        self.peak = max(self.peak, sum(size for size, _ in self.live.values()))
        return tensor

    def drop(self, key: int) -> None:
        self.live[key][1] -= 1
        if not self.live[key][1]:
            del self.live[key]


def peak(network: nn.Module, chunks: int, size: int, store: str, calibrating: bool) -> int:
    def arriving() -> Iterator[Tensor]:
        for seed in range(chunks):
            yield images(size, 8, seed).clone()  # the meter sees what an operation returns

    network.eval()
    with Meter() as meter:
        if calibrating:
            plates = torch.zeros(size, dtype=torch.long)
            calibrate(network, ((chunk, plates, None) for chunk in arriving()), store=store)
        else:
            whole_plate_forward(network, arriving(), store=store)
    return meter.peak


@pytest.mark.parametrize("calibrating", [True, False])
def test_memory_on_the_device_grows_with_the_chunk_and_not_with_the_plate(
    calibrating: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate_host(monkeypatch)
    network = small_converted(blocks=3, channels=16)
    peak(network, 1, 4, "host", calibrating)  # traces
    few, many = (peak(network, chunks, 4, "host", calibrating) for chunks in (3, 12))
    assert many <= 1.05 * few
    assert peak(network, 3, 8, "host", calibrating) > 1.7 * few
    assert peak(network, 12, 4, "device", calibrating) > 2 * peak(network, 3, 4, "device", calibrating)
    alone = Meter()
    with alone, torch.no_grad(), plate_statistics(network, None):
        network(images(4, 8).clone())
    assert few <= 1.3 * alone.peak


def test_waiting_on_the_device_ends_where_the_room_does(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = emulate_host(monkeypatch)
    depot = whole_plate.Depot(torch.device("cpu"), "device")
    depot.free = 100
    slots = [depot.receive(torch.full((10,), float(i))) for i in range(4)]  # 40 bytes each
    assert (depot.free, len(moves)) == (20, 2)
    assert [slot.tensor is None for slot in slots] == [False, False, True, True]
    assert torch.equal(depot.take(slots[0]), torch.zeros(10))
    assert depot.free == 60
    depot.take(slots[3])[0] = 7
    depot.wait(slots[3])
    assert (depot.free, slots[3].tensor[0]) == (20, 7)
    depot.take(slots[2])
    depot.wait(slots[2])
    assert moves == ["to host"] * 2 + ["to device"] * 2, "unchanged: no need to copy it again"
    depot.take(slots[2]).add_(1)
    depot.wait(slots[2])
    assert moves[-1] == "to host"
    assert torch.equal(depot.take(slots[2]), torch.full((10,), 3.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_grows_with_the_chunk_and_not_with_the_plate() -> None:
    network = convert(torchvision.models.resnet18(num_classes=3)).cuda()

    def peak(chunks: int, size: int, store: str) -> int:
        torch.cuda.reset_peak_memory_stats()
        whole_plate_forward(network, (torch.randn(size, 3, 64, 64) for _ in range(chunks)), store=store)
        return torch.cuda.max_memory_allocated()

    peak(2, 16, "host")
    assert peak(16, 16, "host") <= 1.05 * peak(4, 16, "host")
    assert peak(16, 16, "device") > 1.5 * peak(4, 16, "device")
    x = torch.randn(40, 3, 64, 64)
    for store in ("host", "device", "auto"):
        outputs = torch.cat(whole_plate_forward(network, x.split(16), store=store))
        torch.testing.assert_close(outputs, at_once(network, x.cuda()), rtol=1e-3, atol=1e-3)


def test_modes_come_back_and_nothing_moves() -> None:
    network = small_converted().train()
    network[1].eval()
    modes, before = [m.training for m in network.modules()], copy.deepcopy(network.state_dict())
    x = images(6, 8)
    with torch.inference_mode():
        whole_plate_forward(network, x.split(4))
    calibrate(network, [(x, torch.zeros(6, dtype=torch.long), None)])
    with pytest.raises(DataError):
        whole_plate_forward(network, [])
    assert [m.training for m in network.modules()] == modes
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network[1].calibrated.is_inference()


def test_wrapped_networks_are_unwrapped(tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    network = nn.Sequential(OrderedDict(encoder=torchvision.models.resnet18(), head=nn.Linear(512, 2))).double()
    network.encoder.fc = nn.Identity()
    convert(network)
    x = images(4)
    expected = at_once(network, x)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(network)
    finally:
        torch.distributed.destroy_process_group()
    fabric = Fabric(accelerator="cpu", devices=1).setup(network)
    for wrapped in (torch.compile(network, backend="eager"), parallel, fabric):
        torch.testing.assert_close(torch.cat(whole_plate_forward(wrapped, x.split(3))), expected)
        calibrate(wrapped, [(x, torch.full((4,), 8), None)])
        assert "norms.encoder.bn1" in calibration_state(wrapped)
        forget_calibration(wrapped)


def test_the_plan_is_made_once_follows_changes_and_keeps_no_network_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    make = whole_plate._make_plan
    monkeypatch.setattr(whole_plate, "_make_plan", lambda network: made.append(1) or make(network))
    network, x = small_converted(), images(4, 8)
    for _ in range(2):
        whole_plate_forward(network, [x])
    assert len(made) == 1
    network[-1] = nn.Sequential(nn.Linear(4, 3), convert(nn.BatchNorm1d(3))).double()
    convert(network)
    torch.testing.assert_close(torch.cat(whole_plate_forward(network, x.split(2))), at_once(network, x))
    assert len(made) == 2
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (convert(Untraceable()), r"Untraceable cannot be traced .*each plate as one batch"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "has no batch norm"),
        (nn.Sequential(convert(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)), "layer '1' is a plain batch norm.*convert"),
    ],
)
def test_networks_that_cannot_run_in_chunks(network: nn.Module, message: str) -> None:
    x = images(4, 8, dtype=torch.float32)
    with pytest.raises(ConfigError, match=message):
        whole_plate_forward(network, [x])
    with pytest.raises(ConfigError, match=message):
        calibrate(network, [(x, torch.zeros(4, dtype=torch.long), None)])


@pytest.mark.parametrize(
    ("sizes", "controls", "message"),
    [
        ([], None, "has no images"),
        ([0, 0], None, "has no images"),
        ([2, 2], [torch.zeros(2, dtype=torch.bool)] * 2, "plate 'x/1' has no control row among its 4 rows"),
        ([2, 2], [torch.ones(2, dtype=torch.bool)], "2 rows with no weights"),
        ([2], [torch.ones(3, dtype=torch.bool)], "2 rows with 3 weights"),
        ([2], [torch.ones(2, dtype=torch.bool)] * 2, "more sets of weights than chunks"),
        ([1], None, "plate 'x/1' has one value a channel at layer '6'"),
        ([2, 2], [torch.arange(2) < 1, torch.arange(2) > 2], "plate 'x/1' has one value a channel at layer '6'"),
    ],
)
def test_plates_that_cannot_be_run(sizes: list[int], controls: Sequence[Tensor] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        whole_plate_forward(small_converted(), images(sum(sizes), 8).split(sizes), weights=controls, plate="x/1")
    with pytest.raises(ConfigError, match="store 'disk'"):
        whole_plate_forward(small_converted(), [images(2, 8)], store="disk")


# --- calibrated plates ------------------------------------------------------------------------------------------------

PLATES = {30: 5, 7: 4, 11: 6}


def plates_in_chunks(size: int, use_controls: bool = False) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Images of three plates, in order, each cut to chunks."""
    chunks: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for plate, n in PLATES.items():
        x = images(n, 8, plate) * (1 + plate / 10) + plate / 10
        flags = torch.arange(n) % 2 == 0
        chunks += [
            (x[rows], torch.full((len(rows),), plate), flags[rows] if use_controls else None)
            for rows in torch.arange(n).split(size)
        ]
    return chunks


@pytest.mark.parametrize("use_controls", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_calibrated_images_one_by_one_and_mixed_equal_their_whole_plate(size: int, use_controls: bool) -> None:
    network = small_converted()
    calibrate(network, plates_in_chunks(size, use_controls))
    whole = plates_in_chunks(100, use_controls)
    expected = torch.cat([at_once(network, x, controls) for x, _, controls in whole])
    x, plates = torch.cat([x for x, _, _ in whole]), torch.cat([plates for _, plates, _ in whole])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for rows in (*order.split(1), *order.split(4)):
        with torch.no_grad(), plate_statistics(network, plates[rows], "calibrated"):
            torch.testing.assert_close(network(x[rows]), expected[rows], rtol=1e-9, atol=1e-9)
    norms = [m for m in network.modules() if isinstance(m, PlateBatchNorm)]
    assert all(norm.calibrated.shape == (2, 3, norm.num_features) for norm in norms), "no room for other plates"
    assert not any("calibrated" in key for key in network.state_dict())


def test_calibrating_again_replaces_and_adds_plates() -> None:
    network = small_converted()
    calibrate(network, plates_in_chunks(3)[:4])  # plates 30 and 7
    with torch.no_grad():
        network[0].weight.mul_(2)
    calibrate(network, plates_in_chunks(3)[2:])  # plates 7 and 11
    assert list(network[1].context.slots) == [30, 7, 11]
    fresh = convert(small_network())
    fresh.load_state_dict(network.state_dict())
    calibrate(fresh, plates_in_chunks(2)[3:])  # a chunk size of its own
    for plate in (7, 11):
        torch.testing.assert_close(*(n[1].calibrated[:, n[1].context.slots[plate]] for n in (network, fresh)))


def test_calibration_survives_a_file_and_an_error(tmp_path: Path) -> None:
    network, other = small_converted(), small_converted()
    calibrate(network, plates_in_chunks(3))
    torch.save(calibration_state(network), tmp_path / "calibration.pt")
    load_calibration(other, torch.load(tmp_path / "calibration.pt", weights_only=True))
    x, plates, _ = plates_in_chunks(100)[1]
    outputs = []
    for one in (network, other):
        with torch.no_grad(), plate_statistics(one.eval(), plates[:1], "calibrated"):
            outputs.append(one(x[:1]))
    assert torch.equal(*outputs)
    state = calibration_state(network)
    with pytest.raises(DataError, match="comes back"):
        calibrate(network, [*plates_in_chunks(3), plates_in_chunks(3)[0]])
    assert all(torch.equal(state[key], value) for key, value in calibration_state(network).items())
    for damage in ({"norms.9": state["norms.1"]}, {"norms.1": state["norms.1"][:, :2]}):
        with pytest.raises(CheckpointError, match=r"norms\.\d"):
            load_calibration(other, state | damage)
    with pytest.raises(CheckpointError, match="no entry 'plates'"):
        load_calibration(other, {})
    assert len(calibration_state(other)["plates"]) == 3
    forget_calibration(network)
    assert calibration_state(network).keys() == {"plates"}
    with pytest.raises(DataError, match="not among"), plate_statistics(network, plates, "calibrated"):
        pass
    load_calibration(other, calibration_state(network))
    assert other[1].calibrated is None


def test_chunks_that_cannot_be_calibrated() -> None:
    network, chunks = small_converted(), plates_in_chunks(3)
    names = [f"week{plate}/p" for plate in range(40)]
    mixed = (images(2, 8), torch.tensor([30, 7]), None)
    with pytest.raises(DataError, match=r"plates 'week7/p' and 'week30/p'.*one plate each"):
        calibrate(network, [mixed], names=names)
    with pytest.raises(DataError, match=r"plate 'week30/p' comes back after another plate.*sort the rows"):
        calibrate(network, [chunks[0], chunks[-1], chunks[1]], names=names)
    with pytest.raises(DataError, match="2 images came with 3 plates"):
        calibrate(network, [(images(2, 8), torch.tensor([7, 7, 7]), None)])
    with pytest.raises(DataError, match="plate 'week7/p' has no control row"):
        calibrate(network, [(images(2, 8), torch.tensor([7, 7]), torch.zeros(2, dtype=torch.bool))], names=names)
    with pytest.raises(DataError, match="no images to calibrate with"):
        calibrate(network, [])
    assert not network[1].context.slots


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(x).relu()))


def test_a_norm_in_two_places_runs_in_chunks_but_cannot_be_calibrated() -> None:
    network, x = convert(Twice().double()), images(5, 8)
    torch.testing.assert_close(torch.cat(whole_plate_forward(network, x.split(2))), at_once(network, x))
    with pytest.raises(ConfigError, match="layer 'norm' is used in several places"):
        calibrate(network, [(x, torch.zeros(5, dtype=torch.long), None)])
