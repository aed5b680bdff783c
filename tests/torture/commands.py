"""Every script and command, as a small run that is there in seconds, and what it comes to when nobody disturbs it."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.torture import forks
from tests.torture.cases import ROOT, command
from tests.torture.kit import CELLS, PROBE, SCREEN, SIMCLR, SUPERVISED, TRAIN
from tests.torture.prints import differences, fingerprint


@dataclass(frozen=True)
class Command:
    """A command whose result does not depend on how often it is begun.

    Attributes:
        name: of the script or the tool.
        words: its arguments; ``{kit}`` is the folder of the kit.
        needs: what of the kit is copied into its folder before: a run's checkpoint, or a folder of its own.
        trains: whether it is a training: it must stop on request, and go on in the middle.
        free: beginnings of pieces that may be other when it was begun several times.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    trains: bool = False
    free: tuple[str, ...] = ()

    def call(self, kit: Path, *more: str) -> Callable[[], None]:
        """What a child runs."""
        return command(self.name, *self.all_words(kit), *more)

    def all_words(self, kit: Path) -> list[str]:
        """Its arguments."""
        return [word.replace("{kit}", str(kit)) for word in self.words]

    def cold(self, kit: Path, *more: str) -> Callable[[], None]:
        """What a child becomes: a real process, which has imported nothing."""
        script = ROOT / f"{self.name}.py"
        start = [str(script)] if script.exists() else ["-m", "biomass", self.name]
        return lambda: os.execv(sys.executable, [sys.executable, *start, *self.all_words(kit), *more])

    def prepare(self, folder: Path, kit: Path) -> Path:
        """The folder that it runs in, with what it needs."""
        work = folder / "work"
        work.mkdir(parents=True)
        for need in self.needs:
            if (kit / "checkpoints" / need).is_dir():
                (work / "checkpoints" / need).mkdir(parents=True)
                shutil.copy(kit / "checkpoints" / need / "last.pt", work / "checkpoints" / need)
            else:
                shutil.copytree(kit / need, work / need)
        return work


_AUTO = ("resume=auto", "num_epochs=3", "trainer.log_every=1")
_NET = ("model_path=net", "device=cpu", "report=false")
COMMANDS: dict[str, Command] = {
    "train_erm": Command("train_erm", (*TRAIN, *_AUTO, "run_name=r"), trains=True),
    "train_simclr": Command("train_simclr", (*SIMCLR, *_AUTO, "run_name=r"), trains=True),
    "train_supervised_cell": Command("train_supervised_cell", (*SUPERVISED, *_AUTO, "run_name=r"), trains=True),
    "train_classifier": Command("train_classifier", (*PROBE, *_AUTO, "run_name=r"), ("encoder",), trains=True),
    "transfer": Command(
        "transfer_bbbc021",
        (
            *("dataloaders=simulated_bbbc021", "dataloaders.simulated.weeks=2", "dataloaders.simulated.replicates=1"),
            *("dataloaders.simulated.compounds=2", "dataloaders.simulated.concentrations=2", "model_path=encoder"),
            *("channels=null", "figures=false", "device=cpu", "run_name=r", "normalizations=[running,plate]"),
        ),
        ("encoder",),
    ),
    "pack": Command("pack", ("screen/manifest.csv", "packed", "--workers", "1"), ("screen",)),
    "crop": Command(
        "crop",
        (
            *("fields/manifest.csv", "cells", "--size", "24", "--diameter", "18", "--workers", "1"),
            *("--set", "channels=[DAPI]", "--no-pictures"),
        ),
        ("fields",),
    ),
    "index": Command(
        "index",
        ("{kit}/lab/screen", "indexed/manifest.parquet", "--platemap", "{kit}/lab/platemap.csv", "--replace"),
        free=("indexed/manifest.report.txt",),  # says what is new
    ),
    "profile": Command("profile", (*CELLS, "model_path=encoder", "report=false", "run_name=r"), ("encoder",)),
    "predict": Command("predict", (*SCREEN, *_NET[:2], "run_name=r", "measure_again=true"), ("net",)),
    "calibrate": Command("calibrate", (*CELLS, "model_path=encoder", "run_name=r"), ("encoder",)),
    "stress": Command(
        "stress",
        (
            *(*SCREEN, *_NET, "run_name=r", "axes.wells=[1,null]", "axes.label_shift=[null,0.1]", "axes.controls=[0]"),
            *("axes.effect=[1]", "axes.prospective=[2]", "repeats=1", "words=[running,plate]"),
        ),
        ("net",),
    ),
    "tune": Command("tune", (*SCREEN, *_NET[:2], "fit_plates=1", "run_name=r"), ("net",)),
    "evaluate": Command(
        "evaluate", ("{kit}/profiles.csv", "--run-name", "r", "--map", "none", "--correction", "none"), ()
    ),
    "report": Command("report", ("{kit}/runs/net", "--out", "page.html"), ()),
    "check": Command("check", ("{kit}/screen/manifest.csv", "looked", "--workers", "1"), ()),
}

WORKERS = "+workers"
"""Behind the name of a training that reads with two worker processes, which draw other random numbers."""
_SEEDS = ("checkpoints/r/best.pt#random", "checkpoints/r/last.pt#random")  # drawn once a start, and used by nothing
COMMANDS |= {
    f"{name}{WORKERS}": replace(one, words=(*one.words, "dataloaders.num_workers=2"), free=_SEEDS)
    for name, one in COMMANDS.items()
    if one.trains
}


LONG = "+long"
"""Behind the name of a training of 30 epochs."""
COMMANDS |= {
    f"{name}{LONG}": replace(one, words=tuple("num_epochs=30" if w == "num_epochs=3" else w for w in one.words))
    for name, one in COMMANDS.items()
    if one.trains and WORKERS not in name
}
_OLDER = re.compile(r"checkpoints/r/(?!(?:last|best)\.pt#)")
"""Checkpoints that are kept besides the last and the best: of which step depends on when a run was stopped."""


def reference_folder(kit: Path, name: str) -> Path:
    """Where it is kept what a command comes to."""
    return kit / "reference" / name


def make_reference(kit: Path, name: str) -> None:
    """Run a command twice, undisturbed, and keep the pieces of its result that are the same both times.

    Raises:
        RuntimeError: it fails, or it is a training of which the weights are not the same.
    """
    kept, one = reference_folder(kit, name), COMMANDS[name]
    if (kept / "pieces.json").exists():
        return
    shutil.rmtree(kept, ignore_errors=True)
    found: list[dict[str, str]] = []
    for turn in ("a", "b"):
        work = one.prepare(kept / turn, kit)
        child = forks.Child(one.call(kit), work, kept / f"{turn}.log", limits=False)
        ended = child.wait(300)
        if ended.code != 0:
            raise RuntimeError(f"{name} fails undisturbed ({ended.code}, {ended.signal}):\n{ended.output}")
        found.append(pieces_of(work, kept / f"{turn}.json"))
    same = {p: value for p, value in found[0].items() if found[1].get(p) == value and not _OLDER.match(p)}
    if one.trains and not any("network" in piece for piece in same):
        raise RuntimeError(
            f"two undisturbed runs of {name} do not end with the same weights: {differences(*found)[:5]}"
        )
    (kept / "seconds").write_text(str(ended.seconds))
    (kept / "pieces.json").write_text(json.dumps(same))


def pieces_of(work: Path, note: Path) -> dict[str, str]:
    """:func:`~tests.torture.prints.fingerprint` in a process of its own."""
    ended = forks.run(lambda: note.write_text(json.dumps(fingerprint(work))), work, note.with_suffix(".txt"), 120)
    if ended.code != 0:
        return {f"unreadable: {ended.output[-300:]}": ""}
    return json.loads(note.read_text())


def compared(work: Path, folder: Path, kit: Path, name: str) -> list[str]:
    """How a result differs from that of an undisturbed run."""
    kept = json.loads((reference_folder(kit, name) / "pieces.json").read_text())
    found, free = pieces_of(work, folder / "pieces.json"), COMMANDS[name].free
    return differences({piece: value for piece, value in kept.items() if not (free and piece.startswith(free))}, found)


def seconds_of(kit: Path, name: str) -> float:
    """How long a command takes undisturbed, of a processor."""
    return float((reference_folder(kit, name) / "seconds").read_text())
