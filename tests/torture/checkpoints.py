"""Damaged and wrongly built checkpoints, given to everything that reads one: never other weights without a word."""

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.torture.cases import CANARY, Case, Prepare, Trial, command
from tests.torture.damage import DAMAGES
from tests.torture.images import Touch
from tests.torture.kit import CELLS, PROBE, SCREEN, TRAIN
from tests.torture.prints import _digest, _leaves

State = dict[str, Any]


def _same(value: Any) -> dict[str, str]:
    return {key: _digest(one) for key, one in _leaves(value, "") if key != "path"}


def _network(file: Path) -> Any:
    from biomass.training import load_network

    network, architecture, about = load_network(file, "test_resnet")
    return network.state_dict(), architecture.to_dict(), about


def _probe(file: Path) -> Any:
    from biomass.training.pretrained import load_probe

    probe = load_probe(file, str(file.with_name("encoder.pt")))
    return probe.head.state_dict(), probe.pooler, probe.normalize, probe.about.get("classes")


def _resume(file: Path) -> Any:
    from biomass.training.checkpoint import Checkpoints

    state = Checkpoints(file.parent).to_resume(str(file), file.parent / "runs")
    assert state is not None
    return state


def _model(file: Path) -> Any:
    import biomass

    model = biomass.load(file, statistics="plate", device="cpu")
    images = np.random.default_rng(0).integers(0, 60000, (6, 3, 48, 48)).astype(np.uint16)
    import pandas as pd

    from biomass.screen import COLUMNS, VectorPixels, make_screen

    table = pd.DataFrame({name: [""] * 6 for name in COLUMNS} | {"label": -1, "experiment": "E", "plate": "P"})
    table["well"], table["site"] = [f"A0{i + 1}" for i in range(6)], "1"
    channels = model.members[0].channels or [f"c{i}" for i in range(3)]
    return model.predict(make_screen(table, VectorPixels(images, channels), [])).to_csv()


def _moments(file: Path) -> Any:
    from biomass.training import Calibration

    found = Calibration.read(file)
    return dict(vars(found))


def _go_on(file: Path) -> Any:
    """A run goes on from a file for one more epoch: the weights that it comes to."""
    import torch

    work = file.with_name(f"goes_on_from_{file.stem}")
    (work / "checkpoints" / "net").mkdir(parents=True)
    shutil.copy(file, work / "checkpoints" / "net" / "last.pt")
    os.chdir(work)
    command("train_erm", *TRAIN, "num_epochs=3", "run_name=net", "resume=auto")()
    return torch.load(work / "checkpoints" / "net" / "last.pt", weights_only=False)["network"]


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "model_path": ("encoder/last.pt", _network),
    "stress": ("net/last.pt", _network),
    "resume": ("net/last.pt", _resume),
    "predict": ("net/last.pt", _model),
    "probe": ("probe/last.pt", _probe),
    "calibration": ("encoder/last.calibrated.pt", _moments),
}
"""Who reads which file of the kit."""


def of_bytes(reader: str) -> Prepare:
    """A file of which bytes have changed: refused, or what it gives is what it gave."""

    def prepare(rng: random.Random, folder: Path, kit: Path) -> Trial:
        source, read = READERS[reader]
        data = (kit / "checkpoints" / source).read_bytes()
        shutil.copy(kit / "checkpoints" / "encoder" / "last.pt", folder / "encoder.pt")
        whole, file = folder / f"whole_{Path(source).name}", folder / Path(source).name
        whole.write_bytes(data)
        how = rng.choice((*DAMAGES, _in_a_member, _in_a_member, _in_a_member, _cut_at_a_tenth))
        file.write_bytes(how(rng, data))

        def check(found: Any) -> str | None:
            was, now = _same(read(whole)), _same(found)
            other = [key for key in {*was, *now} if was.get(key) != now.get(key)]
            return f"{how.__name__}: other values than before, and no word: {sorted(other)[:3]}" if other else None

        return Trial(f"{reader} of {source} after {how.__name__}", lambda: read(file), check)

    return prepare


def _in_a_member(rng: random.Random, data: bytes) -> bytes:
    """A bit of one record of the archive: every record is as likely, however small."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = rng.choice([one for one in archive.infolist() if one.file_size])
    start = (
        member.header_offset
        + 30
        + int.from_bytes(data[member.header_offset + 26 : member.header_offset + 28], "little")
    )
    start += int.from_bytes(data[member.header_offset + 28 : member.header_offset + 30], "little")
    at = start + rng.randrange(member.file_size)
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut_at_a_tenth(rng: random.Random, data: bytes) -> bytes:
    return data[: len(data) * rng.randrange(1, 10) // 10]


def _weights(rng: random.Random, state: State) -> str:
    """The name of a floating-point tensor of the network."""
    part = state.get("network", state.get("head", {}))
    return rng.choice(sorted(name for name, value in part.items() if value.is_floating_point() and value.numel()))


def _change(rng: random.Random, state: State) -> str:
    """Build it wrongly, in place; says how."""
    import torch

    part = state.get("network", state.get("head"))
    name = _weights(rng, state)
    huge = torch.zeros(1).expand(1 << 40)
    kinds: dict[str, Callable[[], object]] = {
        "not a number": lambda: part[name].view(-1)[:1].fill_(float("nan")),
        "infinite": lambda: part[name].view(-1)[:1].fill_(float("inf")),
        "another shape": lambda: part.update({name: torch.zeros(3, 5)}),
        "huge by strides": lambda: part.update({name: huge}),
        "text for a tensor": lambda: part.update({name: "weights"}),
        "integers": lambda: part.update({name: torch.zeros(part[name].shape, dtype=torch.int64)}),
        "complex": lambda: part.update({name: part[name].to(torch.complex64)}),
        "sparse": lambda: part.update({name: part[name].to_sparse()}),
        "on no device": lambda: part.update({name: part[name].to("meta")}),
        "a missing tensor": lambda: part.pop(name),
        "one more tensor": lambda: part.update({"evil.weight": torch.zeros(2)}),
        "no network": lambda: [state.pop(key, None) for key in ("network", "head")],
        "a list for the network": lambda: state.update(network=[1, 2], head=[1, 2]),
        "no architecture": lambda: state.update(architecture=None, encoder=None),
        "an unknown architecture": lambda: state.update(architecture={"key": "nothing", "in_channels": 3}),
        "own code": lambda: state.update(architecture=(state.get("architecture") or {}) | {"key": "os:getcwd"}),
        "minus channels": lambda: state.update(architecture=(state.get("architecture") or {}) | {"in_channels": -3}),
        "10^9 channels": lambda: state.update(architecture=(state.get("architecture") or {}) | {"in_channels": 10**9}),
        "10^9 outputs": lambda: state.update(architecture=(state.get("architecture") or {}) | {"head": [10**9]}),
        "classes of numbers": lambda: state.update(classes=[1, None, 2.5]),
        "too few classes": lambda: state.update(classes=["a"]),
        "channels that are text": lambda: state.update(channels="DAPI"),
        "config is a list": lambda: state.update(config=[1]),
        "a foreign transform": lambda: state.update(
            config={"transforms": {"eval": [{"_target_": "os.mkdir", "path": CANARY}]}}
        ),
    }
    if "classes" not in state:  # of a network that tells none apart
        del kinds["too few classes"]
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    return f"{kind} ({name})"


def of_state(reader: str) -> Prepare:
    """A file that torch wrote, and that is built wrongly."""
    unread = dict.fromkeys(("stress", "model_path"), "a foreign transform")  # they take weights, and no transforms

    def prepare(rng: random.Random, folder: Path, kit: Path) -> Trial:
        import torch

        source, read = READERS[reader]
        read = _go_on if reader == "resume" else read
        shutil.copy(kit / "checkpoints" / "encoder" / "last.pt", folder / "encoder.pt")
        whole, file = kit / "checkpoints" / source, folder / Path(source).name
        state = torch.load(whole, weights_only=False)
        how = _change(rng, state)
        torch.save(state, file)

        def check(found: Any) -> str | None:
            shutil.copy(whole, folder / "whole.pt")
            same = _same(read(folder / "whole.pt")) == _same(found) or how.startswith(unread.get(reader, "?"))
            return None if same else f"{how}: taken without a word"

        return Trial(f"{reader} of {source} with {how}", lambda: read(file), check)

    return prepare


def of_payload(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A file of which the pickle would run code."""
    import torch

    reader = rng.choice(sorted(READERS))
    source, read = READERS[reader]
    whole = kit / "checkpoints" / source
    shutil.copy(kit / "checkpoints" / "encoder" / "last.pt", folder / "encoder.pt")
    file, touch = folder / Path(source).name, Touch(folder / CANARY)
    state = torch.load(whole, weights_only=False)
    kind = rng.choice(("whole", "beside", "old", "plain", "safetensors", "nested"))
    if kind == "plain":
        file.write_bytes(pickle.dumps(touch))
    elif kind == "safetensors":
        file = file.with_suffix(".safetensors")
        file.write_bytes(pickle.dumps(touch))
    else:
        saved = {"whole": touch, "nested": state | {"config": {"a": [touch]}}}.get(kind, state | {"more": touch})
        torch.save(saved, file, _use_new_zipfile_serialization=kind != "old")

    return Trial(
        f"{reader} of a pickle with code ({kind})", lambda: read(file), lambda _: "a pickle with code was taken"
    )


def of_command(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A real command with a damaged checkpoint: one line, or it goes on from the file before."""
    name = rng.choice(("train_erm", "train_classifier", "predict", "stress", "profile", "tune"))
    run = {"train_classifier": "encoder", "profile": "encoder"}.get(name, "net")
    (folder / "checkpoints" / run).mkdir(parents=True)
    if name == "train_erm":
        shutil.copytree(kit / "runs" / "net", folder / "runs" / "net")
    data = (kit / "checkpoints" / run / "last.pt").read_bytes()
    how = rng.choice((*DAMAGES, _in_a_member, _in_a_member, _in_a_member, _cut_at_a_tenth))
    (folder / "checkpoints" / run / "last.pt").write_bytes(how(rng, data))
    words = {
        "train_erm": (*TRAIN, "num_epochs=2", "run_name=net", "resume=auto"),
        "train_classifier": (*PROBE, "num_epochs=1", "run_name=probe"),
        "predict": (*SCREEN, "model_path=net", "run_name=p"),
        "stress": (
            *SCREEN,
            "model_path=net",
            "run_name=s",
            "words=[running]",
            "repeats=1",
            "axes.effect=[]",
            "report=false",
        ),
        "profile": (*CELLS, "model_path=encoder", "run_name=p", "report=false", "statistics.eval=running"),
        "tune": (*SCREEN, "model_path=net", "fit_plates=1", "run_name=t"),
    }[name]

    def check(_: Any) -> str | None:
        kept = folder / "checkpoints" / run / "last.pt"
        if name == "tune":  # writes the checkpoint again
            return None
        found, was = _same(_network(kept)), _same(_network(kit / "checkpoints" / run / "last.pt"))
        return None if found == was else f"{name} goes on with other weights after {how.__name__}"

    return Trial(f"{name} with {run}/last.pt after {how.__name__}: {' '.join(words)}", command(name, *words), check)


def cases() -> list[Case]:
    """Every reader with every kind of damage."""
    found = [Case(f"checkpoints/bytes_{reader}/{i}", of_bytes(reader)) for reader in READERS for i in range(30)]
    found += [
        Case(f"checkpoints/built_{reader}/{i}", of_state(reader))
        for reader in READERS
        if reader != "calibration"
        for i in range(20)
    ]
    found += [Case(f"checkpoints/payload/{i}", of_payload) for i in range(24)]
    return [*found, *(Case(f"checkpoints/command/{i}", of_command, 120) for i in range(24))]
