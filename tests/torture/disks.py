"""Disks that are full, that can only be read, or that go away; root mounts them in memory. Then everything goes on."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.torture import forks
from tests.torture.cases import shown
from tests.torture.commands import COMMANDS, LONG, compared, seconds_of
from tests.torture.kills import Result, _left_running, _of_failure, _tail
from tests.torture.outcomes import GOOD, Outcome, outcome_of_text


def possible() -> bool:
    """Whether file systems can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of a size, in memory."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


def change(place: Path, options: str) -> None:
    """Make a disk larger, or one that can only be read."""
    for _ in range(20):  # not while something is being written
        if (
            subprocess.run(
                ["mount", "-o", f"remount,{options}", place], check=False, stderr=subprocess.DEVNULL
            ).returncode
            == 0
        ):
            return
        time.sleep(0.05)


def only_read(place: Path, pid: int) -> None:
    """Let nothing be written any more: by the disk, or, while files are open, by a limit of the process."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        if subprocess.run(["mount", "-o", "remount,ro", place], check=False, stderr=subprocess.DEVNULL).returncode:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # what it prints is written
        os.kill(pid, signal.SIGCONT)


def used_of(place: Path) -> int:
    """Kilobytes that are taken."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def parts(place: Path) -> list[str]:
    """Files that are not finished, and folders of finished plates that have none."""
    named = [path for path in place.rglob("*") if path.name.endswith(".part") or ".tmp" in path.name]
    return [path.name for path in named if path.is_file() or not any(path.iterdir())]


def size_of(kit: Path, name: str) -> int:
    """Kilobytes that a command leaves, undisturbed."""
    folder = kit / "reference" / name / "a" / "work"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024 + 64


def _linked(work: Path, place: Path) -> Path:
    """The same folder, whose runs and checkpoints are on a disk."""
    for name in ("runs", "checkpoints"):
        (work / name).mkdir(exist_ok=True)
        shutil.move(work / name, place / name)
        (work / name).symlink_to(place / name)
    return work


def writes_a_run(name: str) -> bool:
    """Whether what a command writes is below ``runs/`` and ``checkpoints/``."""
    return bool({"run_name=r", "--run-name"} & set(COMMANDS[name].words))


def drive(name: str, kind: str) -> Callable[[random.Random, Path, Path], Result]:
    """A case: a command on a disk that is full, read-only from some moment on, or gone; then it is called again."""

    def run(rng: random.Random, folder: Path, kit: Path) -> Result:
        one, whole = COMMANDS[name], size_of(kit, name)
        with disk(folder / "disk", 4 * whole + 4096) as place:
            work = _linked(one.prepare(folder / "d", kit), place) if kind == "gone" else one.prepare(place / "d", kit)
            begun = used_of(place)
            moment = rng.uniform(0, seconds_of(kit, name))
            if kind == "full":
                room = int((whole - begun + 200) * rng.uniform(0, 0.95))
                change(place, f"size={max(begun + room, 4)}k")
                how = f"a disk with {room} KiB left"
            else:
                how = f"a disk that is {kind} after {moment:.2f} s"
            child = forks.Child(one.call(kit), work, folder / "log", limits=False)
            if kind != "full":
                while not child.ended() and child.seconds() < moment:
                    time.sleep(0.003)
                early = child.ended()
                if kind == "read-only":
                    only_read(place, child.pid)
                else:
                    subprocess.run(["umount", "-l", place], check=False)
            ended = child.wait(60 + 10 * seconds_of(kit, name))
            left = _left_running(child)
            what = f"{shown(one.name, one.all_words(kit))} on {how}"
            failed = _of_failure(ended) if ended.code != 0 else Outcome.RIGHT
            outcome = outcome_of_text(ended.output) if failed is Outcome.BARE else failed
            if kind == "gone" and ended.code == 0 and not early:
                return (
                    Outcome.SILENT,
                    f"{what}; nothing is there, and it ends with exit code 0",
                    _tail(ended),
                    ended.seconds,
                )
            if left or outcome not in GOOD or kind == "gone":
                return (Outcome.HANG if left else outcome), what, _tail(ended), ended.seconds
            waste = parts(place)
            if kind == "full" and waste:
                return Outcome.SILENT, f"{what}; part files stay on the full disk", "\n".join(waste[:5]), ended.seconds
            change(place, f"rw,size={4 * whole + 8192}k")
            again = forks.Child(one.call(kit), work, folder / "again.log", limits=False).wait(
                60 + 10 * seconds_of(kit, name)
            )
            seconds = ended.seconds + again.seconds
            if again.code != 0:
                return _of_failure(again), f"{what}; with room again it does not go on", _tail(again), seconds
            found = compared(work, folder, kit, name)
            if found:
                return (
                    Outcome.SILENT,
                    f"{what}; with room again it ends otherwise",
                    "\n".join([*found[:6], _tail(ended)]),
                    seconds,
                )
            return outcome, what, _tail(ended), seconds

    return run


def marathon(name: str) -> Callable[[random.Random, Path, Path], Result]:
    """A case: a run that is killed 20 times, on a disk that fills up twice, comes to what an undisturbed one does."""

    def run(rng: random.Random, folder: Path, kit: Path) -> Result:
        one, whole = COMMANDS[name], size_of(kit, name)
        start, length = 0.6 * seconds_of(kit, name.removesuffix(LONG)), seconds_of(kit, name)
        roomy, seconds, kills, fills, turn, worst, said = 6 * whole + 8192, 0.0, 0, 0, 0, Outcome.RIGHT, ""
        with disk(folder / "disk", roomy) as place:
            work = one.prepare(place / "d", kit)
            while kills < 20 and turn < 40:
                turn += 1
                full = turn in (6, 14)
                if full:
                    change(place, f"size={used_of(place) + 1}k")
                child = forks.Child(one.call(kit), work, folder / f"{turn}.log", limits=False)
                moment = length * 10 if full else start + rng.uniform(0, length / 14)
                while not child.ended() and child.seconds() < moment:
                    time.sleep(0.003)
                child.send(signal.SIGKILL if turn % 2 else signal.SIGTERM)
                ended = child.wait(60 + 10 * length)
                child.end_group()
                seconds, fills = seconds + ended.seconds, fills + full
                outcome = Outcome.RIGHT
                if "Traceback" in ended.output:
                    outcome = Outcome.TRACEBACK
                elif full and ended.code != 0:
                    outcome = outcome_of_text(ended.output)
                if outcome not in GOOD and worst in GOOD:
                    worst, said = outcome, _tail(ended)
                if full:
                    change(place, f"size={roomy}k")
                elif ended.code == 0:
                    break
                else:
                    kills += 1
            ended = forks.Child(one.call(kit), work, folder / "last.log", limits=False).wait(60 + 10 * length)
            what = f"{shown(one.name, one.all_words(kit))}, killed {kills} times, on a disk that was full {fills} times"
            if ended.code != 0:
                return _of_failure(ended), f"{what}; it does not go on", _tail(ended), seconds
            found = compared(work, folder, kit, name)
            if found:
                return Outcome.SILENT, f"{what}; it ends otherwise", "\n".join([*found[:6], said]), seconds
            return worst, what, said, seconds

    return run
