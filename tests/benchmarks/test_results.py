"""What benchmarks measure is kept, and made into a page, whatever of it fails or lacks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT
from packaging.requirements import Requirement

from benchmarks import __main__ as command
from benchmarks import gpu, page, resnet
from benchmarks.record import Record, read
from benchmarks.timing import Figure

GOOD, BAD = Figure("good", 2.0, 1.9, 2.1, ">= 1.5"), Figure("bad", 0.123456, 0.1, 0.2, ">= 0.9", "of it", "a | b")


def test_figures_are_kept_one_by_one_and_judged_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"

    def figures() -> Iterator[Figure]:
        yield GOOD
        assert read(file).parts["first"].figures == [GOOD]  # a run that is cut here keeps it
        yield BAD
        raise ZeroDivisionError("told\non two lines")

    record = Record(file, {"cores": "2"})
    record.measure("first", "what it is", figures())
    record.measure("late", "no time", iter([GOOD]), ends=0.0)
    page.write_page(tmp_path / "page.md", file, tmp_path / "none.json")
    text = (tmp_path / "page.md").read_text()
    assert "**1 of 2 goals are met**" in text
    assert "| good | 2 x | 1.9 … 2.1 | >= 1.5 | yes |  |" in text
    assert "| bad | 0.123 of it | 0.1 … 0.2 | >= 0.9 | no | a / b |" in text
    assert "told; on two lines" in text
    assert "out of time" in text
    assert "Not measured with this version" in text


def test_parts_of_another_machine_are_neither_mixed_nor_lost(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    Record(file, {"cores": "2"}).measure("first", "", [GOOD])
    assert set(Record(file, {"cores": "2"}).parts) == {"first"}
    with pytest.raises(SystemExit, match=r"cpu.json come from another machine .*cores 2, here 4"):
        Record(file, {"cores": "4"})
    assert not Record(file, {"cores": "4"}, anew=True).parts


@pytest.mark.parametrize(("goal", "met"), [("<= 2", True), ("< 2 s", False), ("> 1.9", True), ("1 at best", None)])
def test_goals_are_read(goal: str, met: bool | None) -> None:
    assert page.is_met(GOOD._replace(goal=goal)) is met


def test_the_page_is_the_one_that_its_files_give(tmp_path: Path) -> None:
    if not page.PAGE.exists():
        pytest.skip("not made yet")
    page.write_page(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == page.PAGE.read_text()


def test_a_benchmark_without_figures_or_that_ends_its_process_leaves_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([[GOOD], OSError("the process ended")])

    def apart(*_: object) -> Iterator[Figure]:
        found = next(measured)
        if isinstance(found, Exception):
            raise found
        yield from found

    monkeypatch.setattr(command, "measured_apart", apart)
    monkeypatch.delattr("benchmarks.bench_transforms.measure")
    command.main(["--page", "--quick", "--out", str(tmp_path / "new"), "limits", "transforms", "profile"])
    parts = read(tmp_path / "new" / "cpu.json").parts
    assert {name: len(part.figures) for name, part in parts.items()} == {"limits": 1, "profile": 0, "transforms": 0}
    assert "the process ended" in (tmp_path / "new" / "RESULTS.md").read_text()


def test_tiny_sizes_do_not_come_onto_the_page() -> None:
    for main in (command.main, gpu.main):
        with pytest.raises(SystemExit, match="--out"):
            main(["--page", "--quick"] if main is command.main else ["--quick"])


def test_resnets_are_those_of_torchvision() -> None:
    images, models = torch.randn(2, 3, 32, 32), torchvision.models.resnet
    for narrow, block in ((False, models.BasicBlock), (True, models.Bottleneck)):
        ours, theirs = resnet.resnet((1, 2, 1, 1), narrow), models.ResNet(block, (1, 2, 1, 1))
        theirs.fc = torch.nn.Identity()
        weights = theirs.state_dict()
        ours.load_state_dict(dict(zip(ours.state_dict(), weights.values(), strict=True)))
        torch.testing.assert_close(ours(images), theirs(images))
    with torch.device("meta"):
        for name in ("resnet18", "resnet50"):
            known = torchvision.models.get_model(name, num_classes=1)
            shapes = [tensor.shape for tensor in known.state_dict().values()][:-2]
            assert [tensor.shape for tensor in getattr(resnet, name)().state_dict().values()] == shapes


def only_torch(folder: Path) -> None:
    """Links to what torch, numpy and Triton are made of, and to what they require; nothing else is in the folder."""
    waiting, known = ["torch", "numpy", "triton"], set[str]()
    while waiting:
        name = waiting.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
        needs = [Requirement(line) for line in found.requires or ()]
        new = {need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})} - known
        known |= new
        waiting += new


def test_gpu_parts_run_with_torch_alone_and_say_what_others_need(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    only_torch(tmp_path / "packages")
    out = tmp_path / "gpu.json"
    paths = os.pathsep.join([str(tmp_path / "packages"), str(ROOT)])
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    parts = json.loads(out.read_text())["parts"]
    assert {name: len(part["figures"]) for name, part in parts.items()} == {
        "norms": 16,
        "networks": 1,
        "loop": 0,
        "published": 0,
        "limits": 6,
        "steps": 2,
    }
    assert [name for name, part in parts.items() if part["left_out"]] == ["loop", "published"]
    assert "pandas" in parts["loop"]["left_out"][0]
    assert "lightning_fabric" in parts["published"]["left_out"][0]


def test_no_gpu_part_begins_when_time_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MINUTES", gpu.RESERVE)
    gpu.main(["--quick", "--out", str(tmp_path / "gpu.json")])
    parts = read(tmp_path / "gpu.json").parts
    assert set(parts) == set(gpu.PARTS)
    assert all("out of time" in part.left_out[0] for part in parts.values())


@pytest.mark.slow
def test_all_gpu_parts_run_at_a_tiny_size(tmp_path: Path) -> None:
    gpu.main(["loop", "published", "--quick", "--out", str(tmp_path / "gpu.json")])
    parts = read(tmp_path / "gpu.json").parts
    assert [len(part.figures) for part in parts.values()] == [4, 4]
    assert not any(part.left_out for part in parts.values())
