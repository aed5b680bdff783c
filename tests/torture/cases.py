"""What a case is, and how it is run: prepared from its seed, tried, and compared with what must come of it."""

import importlib
import random
import runpy
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture import forks
from tests.torture.outcomes import WRONG, WRONG_CODE, Finding, Outcome, outcome_of

ROOT = Path(__file__).resolve().parents[2]

CANARY = "canary"
"""The file in a case's folder that nothing may make: what would, was hidden in its input."""

SECRET = b"SECRET-OF-ANOTHER-FILE-" * 400
"""What stands in a file that no input may be read from."""


@dataclass(frozen=True)
class Trial:
    """What a case does, in a folder that is prepared.

    Attributes:
        what: in words, or the command.
        act: does it; errors and ``SystemExit`` escape.
        check: takes what ``act`` gave; why that is wrong, or None.
    """

    what: str
    act: Callable[[], Any]
    check: Callable[[Any], str | None] = lambda _: None


Prepare = Callable[[random.Random, Path, Path], Trial]
"""From randomness, an empty folder and the folder of what the kit made, to a trial."""


@dataclass(frozen=True)
class Case:
    """A case: how it is called, what prepares it, and how many seconds of a processor it may take."""

    name: str
    prepare: Prepare
    limit: float = 30.0


def random_of(seed: int, name: str) -> random.Random:
    """The randomness of a case: of the seed and its name alone."""
    return random.Random(zlib.crc32(f"{seed}/{name}".encode()))


def run_case(case: Case, seed: int, kit: Path, scratch: Path) -> Finding:
    """Run a case in a process and a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    work = folder / "work"
    work.mkdir()
    (folder / "what").write_text(case.name)

    def whole() -> None:
        trial = case.prepare(random_of(seed, case.name), work, kit)
        (folder / "what").write_text(trial.what.encode("unicode_escape", "replace").decode())
        value = _act(trial)
        why = trial.check(value)
        if why is not None:
            print(f"{WRONG}{why.encode('unicode_escape').decode()}")
            raise SystemExit(WRONG_CODE)

    ended = forks.run(whole, work, folder / "log", case.limit)
    outcome = outcome_of(ended, work / CANARY)
    tail = "" if outcome is Outcome.RIGHT else _last_lines(ended)
    finding = Finding(case.name, outcome, (folder / "what").read_text(), tail, ended.seconds)
    remove(folder)
    return finding


def _act(trial: Trial) -> Any:
    """Errors of the family become what a command prints."""
    from biomass.commands import ADVICE
    from biomass.errors import BiomassError, explain

    try:
        return trial.act()
    except BiomassError as error:
        raise SystemExit(f"error: {explain(error, ADVICE)}") from None


def _last_lines(ended: forks.Ended) -> str:
    lines = [line for line in ended.output.splitlines() if line.strip()]
    kept = (
        lines[-4:]
        if "Traceback" not in ended.output
        else [line for line in lines if "biomass/" in line][-1:] + lines[-1:]
    )
    told = [f"signal {ended.signal}"] * bool(ended.signal and not ended.hung) + [
        f"hung, {ended.seconds:.0f} s"
    ] * ended.hung
    return "\n".join(line[:300].encode("unicode_escape").decode() for line in (*kept, *told))


def remove(folder: Path) -> None:
    """Remove a folder, whatever a case did to its permissions."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def command(name: str, *words: str) -> Callable[[], None]:
    """``command("train_erm", "key=value")``, or a tool of ``biomass``, as it would be called from a shell."""

    def call() -> None:
        script = ROOT / f"{name}.py"
        if not script.exists():
            sys.argv = ["biomass", name, *words]
            importlib.import_module("biomass.__main__").main()
            return
        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")

    return call


def shown(name: str, words: Sequence[str]) -> str:
    """A command in words."""
    return " ".join([name, *map(repr, words)])


def load_everything() -> None:
    """Import all that a child may use, once."""
    import torch

    torch.set_num_threads(1)
    names = [path.stem for path in (ROOT / "biomass" / "commands").glob("[!_]*.py")]
    modules = [f"biomass.commands.{name}" for name in names]
    modules += [
        "biomass.trained",
        "biomass.judgement.read",
        "biomass.judgement.evaluate",
        "biomass.__main__",
        "hypothesis",
    ]
    modules += ["torch.utils.tensorboard", "torchvision.io", "tifffile", "h5py", "timm", "biomass.report.page"]
    modules += ["train_erm", "train_simclr", "train_classifier", "train_supervised_cell", "transfer_bbbc021"]
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if name.startswith("biomass"):
                raise
            print(f"({error})", file=sys.stderr)
