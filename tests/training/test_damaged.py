"""Damaged and wrongly built checkpoints: one line each, no other weights, no memory for what a file only claims."""

import copy
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomass.errors import BiomassError, CheckpointError
from biomass.models import Architecture, build_network
from biomass.tensor_files import load_tensors, save_tensors
from biomass.training import load_network
from biomass.training.checkpoint import Checkpoints, load_checkpoint, newest, save_checkpoint
from biomass.training.fits import check_fits
from biomass.training.optim import adam, warmup_cosine

ARCHITECTURE = Architecture("test_resnet", 3, (4,))
NETWORK = build_network(ARCHITECTURE)
WEIGHT = next(name for name, value in NETWORK.state_dict().items() if value.dim() == 4)
VARIANCE = next(name for name in NETWORK.state_dict() if name.endswith("running_var"))


def parts() -> tuple[Any, Any]:
    optimizer = adam([NETWORK], 0.1, 0.0)
    return optimizer, warmup_cosine(optimizer, 1, 5)


def run() -> dict[str, Any]:
    """A checkpoint as a run writes it after a step."""
    optimizer, schedule = parts()
    for parameter in NETWORK.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    return {
        "architecture": ARCHITECTURE.to_dict(),
        "config": {"seed": 0, "transforms": {"eval": []}},
        "method": {"train": "plate", "eval": "plate", "eval_by": ["experiment", "plate"]},
        "channels": ["a", "b", "c"],
        "classes": ["w", "x", "y", "z"],
        "network": NETWORK.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "progress": {"epoch": 1, "batch": 0, "step": 1, "best": None, "monitored": None},
        "random": {"cpu": torch.get_rng_state(), "cuda": []},
        "tuning": None,
    }


RUN = run()
SMALL = {"network": {"w": torch.arange(40.0), "b": torch.ones(3)}, "progress": {"step": 3}, "text": "abc" * 20}


def sealed(state: Any, folder: Path) -> bytes:
    path = folder / "sealed.pt"
    save_tensors(state, path)
    return path.read_bytes()


def one_line(path: Path, load: Callable[[Path], Any] = load_tensors) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    assert path.name in message
    return message


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path, data):
    whole = sealed(SMALL, tmp_path)
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    (tmp_path / "x.pt").write_bytes(flipped(whole, place, bit))
    one_line(tmp_path / "x.pt")


def zipped(whole: bytes, **how: Any) -> bytes:
    """The same entries, written again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w", **how) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))
    return out.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{f"cut at {10 * n} %": lambda data, n=n: data[: len(data) * n // 10] for n in range(10)},
    **{f"flipped at {10 * n} %": lambda data, n=n: flipped(data, len(data) * n // 10) for n in range(10)},
    "the last byte is missing": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "a byte more in front": lambda data: b"\0" + data,
    "a byte less in the middle": lambda data: data[:500] + data[501:],
    "a block of zeros": lambda data: data[:300] + bytes(200) + data[500:],
    "twice": lambda data: data + data,
    "without its seal": lambda data: data[:-79],
    "another seal": lambda data: data[:-64] + b"0" * 64,
    "zeros only": lambda data: bytes(len(data)),
    "text": lambda data: b"epoch,loss\n1,2\n",
    "another archive": lambda data: zipped(data)[:-22].replace(b"data.pkl", b"data.txt") + zipped(data)[-22:],
    "compressed": lambda data: zipped(data, compression=zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(tmp_path, kind):
    (tmp_path / "x.pt").write_bytes(DAMAGE[kind](sealed(SMALL, tmp_path)))
    one_line(tmp_path / "x.pt")


def test_files_without_a_seal_are_checked_by_their_checksums(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(SMALL, path)
    whole = path.read_bytes()
    assert load_tensors(path)["text"] == SMALL["text"]
    place = whole.index(SMALL["network"]["w"].numpy().tobytes())
    path.write_bytes(flipped(whole, place + 9))
    assert "checksum" in one_line(path) or "CRC" in one_line(path)
    torch.save(SMALL, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert torch.equal(load_tensors(path)["network"]["w"], SMALL["network"]["w"])
    for data in (whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        one_line(path)


CALLED: list[int] = []


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return CALLED.append, (1,)


class Large:
    """A tensor of a terabyte over a storage of a few numbers."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __reduce__(self) -> Any:
        storage = torch.zeros(4).storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (10**12,), (self.stride,), False, {})


class Memory:
    """A terabyte of zeros."""

    def __reduce__(self) -> Any:
        return bytearray, (10**12,)


def nested(depth: int) -> list[Any]:
    """Two lists of two lists of two lists …, all of them the same: 2**depth in a few hundred bytes."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def in_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    "value", [Code(), Large(0), Large(1), Memory(), nested(40), in_itself(), torch.zeros(3).to_sparse(), {(1, 2): 3}]
)
def test_what_a_file_claims_is_not_made(tmp_path, value):
    torch.save({"network": value}, tmp_path / "x.pt")
    one_line(tmp_path / "x.pt", load_checkpoint)
    assert not CALLED


def at(path: str, change: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value, or what a function makes of the one that is there, at a place of nested dictionaries and lists."""

    def put(state: dict[str, Any]) -> None:
        place: Any = state
        *above, last = path.split("/")
        for key in above:
            place = place[int(key) if key.isdigit() else key]
        key = int(last) if last.isdigit() else last
        place[key] = change(place[key]) if callable(change) else change

    return put


def without(path: str) -> Callable[[dict[str, Any]], None]:
    above, _, last = path.rpartition("/")
    return lambda state: (state if not above else state[above]).pop(last)


def nan(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("nan"))


WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "no network": without("network"),
    "network a list": at("network", []),
    "network without a weight": without(f"network/{WEIGHT}"),
    "network with one more": lambda state: state["network"].update(extra=torch.zeros(1)),
    "a weight a text": at(f"network/{WEIGHT}", "x"),
    "a weight of another shape": at(f"network/{WEIGHT}", lambda value: value[:1]),
    "a weight of 64 bits": at(f"network/{WEIGHT}", lambda value: value.double()),
    "a weight of whole numbers": at(f"network/{WEIGHT}", lambda value: value.long()),
    "a weight not finite": at(f"network/{WEIGHT}", nan),
    "a weight spread out": at(f"network/{WEIGHT}", lambda _: torch.zeros(1).expand(10**12)),
    "a variance below 0": at(f"network/{VARIANCE}", lambda value: -value - 1),
    "architecture a text": at("architecture", "resnet18"),
    "10**9 channels": at("architecture/in_channels", 10**9),
    "channels a text": at("architecture/in_channels", "3"),
    "channels true": at("architecture/in_channels", True),
    "a head of 10**12": at("architecture/head", [10**12]),
    "a head of 10**7 by 10**7": at("architecture/head", [10**7, 10**7]),
    "a head a number": at("architecture/head", 4),
    "a larger network": at("architecture/key", "resnet50"),
    "another network": at("architecture/key", "test_vit"),
    "an unknown network": at("architecture/key", "no_such_network"),
    "code of others": at("architecture/key", "os:getcwd"),
    "config a list": at("config", []),
    "transforms a text": at("config/transforms", "x"),
    "a method that is no word": at("method/train", "nonsense"),
    "a method a list": at("method/train", []),
    "channels a number": at("channels", 3),
    "classes a number": at("classes", 3),
    "fewer classes than its data": lambda state: state.update(data={"classes": [*state["classes"], "v"]}),
    "other channels than its data": at("data", {"channels": ["a", "c", "b"]}),
    "optimizer a list": at("optimizer", []),
    "no state of the optimizer": at("optimizer/state", {}),
    "a moment missing": lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
    "a moment of another shape": at("optimizer/state/0/exp_avg", lambda value: value[:1]),
    "a moment not finite": at("optimizer/state/0/exp_avg", nan),
    "a second moment below 0": at("optimizer/state/0/exp_avg_sq", lambda value: -value - 1),
    "moments of no parameter": at("optimizer/param_groups/0/params", [0]),
    "betas nonsense": at("optimizer/param_groups/0/betas", (2, 3)),
    "a rate of 1e30": at("optimizer/param_groups/0/lr", 1e30),
    "a schedule with a method": lambda state: state["schedule"].update(step=3),
    "a schedule elsewhere": at("schedule/last_epoch", 77),
    "a schedule of other rates": at("schedule/base_lrs", [1.0]),
    "rules of a schedule": at("schedule/lr_lambdas", 3),
    "progress below 0": at("progress/step", -1),
    "progress a text": at("progress/epoch", "1"),
    "progress without a step": without("progress/step"),
    "best not a number": at("progress/best", float("nan")),
    "a random state too short": at("random/cpu", torch.zeros(5, dtype=torch.uint8)),
    "a random state of zeros": at("random/cpu", lambda value: value * 0),
    "tuning of another network": at(
        "tuning", {"treated": [1.0], "prior": {"a": torch.zeros(2, 2)}, "strata": {"a": torch.zeros(2, 3, 2)}}
    ),
}
ONLY_NETWORK = {
    "a larger network",
    "another network",
    "an unknown network",
    "code of others",
    "a head of 10**7 by 10**7",
}
ONLY_NETWORK |= {"tuning of another network"}  # a run compares them with its own
ONLY_RESUME = {"no state of the optimizer", "a moment missing", "a moment of another shape", "betas nonsense"}
ONLY_RESUME |= {"a schedule with a method", "a schedule elsewhere", "a schedule of other rates", "rules of a schedule"}
ONLY_RESUME |= {"moments of no parameter", "a rate of 1e30"}


def resume(path: Path) -> None:
    state = Checkpoints(path.parent / "new").to_resume(str(path), path.parent / "runs")
    assert state is not None
    check_fits(state, NETWORK, None, *parts())


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrongly_built_is_one_line(tmp_path, kind):
    state = copy.deepcopy(RUN)
    WRONG[kind](state)
    path = tmp_path / "x.pt"
    torch.save(state, path)
    for load, fine in ((load_network, ONLY_RESUME), (resume, ONLY_NETWORK)):
        if kind not in fine:
            with pytest.raises(BiomassError) as caught:
                load(path)
            assert "\n" not in str(caught.value)


def test_what_is_rightly_built_loads_with_plain_values_of_later_versions(tmp_path):
    state = RUN | {"data": {"table": "abc"}, "progress": RUN["progress"] | {"window": [1.5, "a"]}}
    save_checkpoint(state, tmp_path / "x.pt")
    load_network(tmp_path / "x.pt")
    resume(tmp_path / "x.pt")


CALIBRATED = {
    "word": "plate",
    "by": ["plate"],
    "encoder": "abc",
    "transform": None,
    "plates": ["P1", "P2"],
    "images": [4, -1],
    "moments": {"norms.0": torch.ones(2, 2, 3)},
}


@pytest.mark.parametrize(
    "change",
    [
        {"plates": ["P1", "P1"]},
        {"plates": ["P1"]},
        {"plates": [1, 2]},
        {"images": [4]},
        {"images": [-2, 1]},
        {"by": "plate"},
        {"encoder": 3},
        {"moments": []},
        {"moments": {"norms.0": torch.ones(2, 3, 3)}},
        {"moments": {"norms.0": -torch.ones(2, 2, 3)}},
        {"moments": {"norms.0": torch.full((2, 2, 3), torch.nan)}},
        {"moments": {"norms.0": "x"}},
    ],
)
def test_calibrated_statistics_that_cannot_be(tmp_path, change):
    save_checkpoint(CALIBRATED, tmp_path / "x.pt")
    load_checkpoint(tmp_path / "x.pt")
    save_checkpoint(CALIBRATED | change, tmp_path / "x.pt")
    one_line(tmp_path / "x.pt", load_checkpoint)


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_nowhere(path: Path) -> None:
    path.symlink_to("nothing")


def to_another(path: Path) -> None:
    (path.parent / "other.txt").write_text("hello")
    path.symlink_to("other.txt")


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.write_bytes(b""),
    "a link to itself": to_itself,
    "a link to nowhere": to_nowhere,
    "a link to another file": to_another,
    "a folder": lambda path: path.mkdir(),
    "a wrongly built one": lambda path: save_checkpoint(RUN | {"progress": {"step": -1}}, path),
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_the_checkpoint_before_a_damaged_last_is_used(tmp_path, caplog, kind):
    checkpoints = Checkpoints(tmp_path / "run")
    for epoch in (1, 2):
        checkpoints.save(RUN | {"progress": RUN["progress"] | {"epoch": epoch}}, False)
    checkpoints.last.unlink()
    IN_ITS_PLACE[kind](checkpoints.last)
    assert newest(checkpoints.folder) == checkpoints.previous
    found = checkpoints.to_resume("auto", tmp_path / "runs")
    assert found is not None
    assert found["progress"]["epoch"] == 1
    assert len(caplog.messages) == 2
    assert not any("\n" in message for message in caplog.messages)
    aside = checkpoints.folder / "last.damaged-1.pt"
    assert aside.is_symlink() or aside.exists() or kind == "nothing"
    again = checkpoints.to_resume("auto", tmp_path / "runs")
    assert again is not None
    assert again["progress"]["epoch"] == 1
    assert len(caplog.messages) == 2
    checkpoints.save(RUN, False)
    load_checkpoint(checkpoints.previous)


def test_the_last_two_are_kept_and_without_a_whole_one_it_is_an_error(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")
    for epoch in (1, 2, 3):
        checkpoints.save(RUN | {"progress": RUN["progress"] | {"epoch": epoch}}, False)
    assert [load_checkpoint(path)["progress"]["epoch"] for path in (checkpoints.last, checkpoints.previous)] == [3, 2]

    def no_links(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    checkpoints.save(RUN, False)
    assert load_checkpoint(checkpoints.previous)["progress"]["epoch"] == 3
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["last.previous.pt", "last.pt"]
    for path in (checkpoints.last, checkpoints.previous):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last.pt' is damaged .*previous.pt' is damaged"):
        checkpoints.to_resume("auto", tmp_path / "runs")
    assert checkpoints.last.exists()


def test_a_file_that_may_not_be_read_is_not_set_aside(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")
    for _ in range(2):
        checkpoints.save(RUN, False)
    before, opened = sorted(checkpoints.folder.iterdir()), Path.open

    def refused(path: Path, *args: Any) -> Any:
        if path.name == "last.pt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CheckpointError, match="Permission denied"):
        checkpoints.to_resume("auto", tmp_path / "runs")
    assert sorted(checkpoints.folder.iterdir()) == before
