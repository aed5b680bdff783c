"""Processes that are killed or asked to stop at any moment, and go on; in the end nothing tells that they were."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture import forks
from tests.torture.cases import shown
from tests.torture.commands import COMMANDS, Command, compared, seconds_of
from tests.torture.outcomes import GOOD, Outcome, outcome_of_text

STOPPED = 75
"""The exit code of a run that was asked to stop, and goes on when it is called again (EX_TEMPFAIL of sysexits.h)."""

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_NUMBERS = {one.name: one for one in ASKED} | {"twice": signal.SIGINT}
_WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
Result = tuple[Outcome, str, str, float]


def at_event(function: Callable[[], None], number: int, kind: int) -> Callable[[], None]:
    """The same, which sends itself a signal at the n-th time that it opens, writes, renames or removes a file."""

    def call() -> None:
        import torch

        save, seen = torch.save, 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), kind)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in _WRITING or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
                count()

        class Watched:
            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, data: Any) -> Any:
                half = len(data) // 2  # so that a kill leaves a part of a block
                self.file.write(data[:half])
                count()
                return self.file.write(data[half:]) + half

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        torch.save = lambda state, file, *args, **more: save(
            state, Watched(file) if hasattr(file, "write") else file, *args, **more
        )
        sys.addaudithook(hook)
        function()

    return call


def drive(name: str, kind: str) -> Callable[[random.Random, Path, Path], Result]:
    """A case: a command that is ended up to three times by one kind of signal, and goes on each time."""

    def run(rng: random.Random, folder: Path, kit: Path) -> Result:
        one = COMMANDS[name]
        work = one.prepare(folder, kit)
        done = [shown(one.name, one.all_words(kit))]
        worst, tail, used = Outcome.RIGHT, "", 0.0
        for turn in range(1 if kind == "cold" else rng.randint(1, 3)):
            number = ASKED[rng.randrange(3)] if kind == "cold" else _NUMBERS.get(kind, signal.SIGKILL)
            outcome, how, said, seconds = _once(
                rng, one, work, folder / f"{turn}.log", kit, kind, number, seconds_of(kit, name)
            )
            done, used = [*done, how], used + seconds
            if outcome not in GOOD and worst in GOOD:
                worst, tail = outcome, said
        child = forks.Child(one.call(kit), work, folder / "last.log", limits=False)
        ended = child.wait(60 + 10 * seconds_of(kit, name))
        used += ended.seconds
        left = _left_running(child)
        what = "; ".join(done)
        if ended.code != 0:
            return _of_failure(ended), f"{what}; it does not go on", _tail(ended), used
        found = compared(work, folder, kit, name)
        if found:
            return Outcome.SILENT, f"{what}; it ends otherwise", "\n".join(found[:6]), used
        if left:
            return Outcome.HANG, f"{what}; {left} processes outlive it", "", used
        return worst, what, tail, used

    return run


def _once(
    rng: random.Random, one: Command, work: Path, log: Path, kit: Path, kind: str, number: int, whole: float
) -> Result:
    """Begin a command and end it: at a moment, at a write, while it is imported, or by killing a reading worker."""
    call = one.call(kit)
    if kind == "saving" or (kind not in ("cold", "worker", "twice") and rng.random() < 0.4):
        at = rng.randint(1, 120) if one.trains else rng.randint(1, 40)
        how = f"{signal.Signals(number).name} at write {at}"
        child = forks.Child(at_event(call, at, number), work, log, limits=False)
    else:
        moment = rng.uniform(0, 6.0) if kind == "cold" else rng.uniform(0, whole)
        how = f"{'a reading worker gets ' * (kind == 'worker')}{signal.Signals(number).name} after {moment:.2f} s"
        child = forks.Child(one.cold(kit) if kind == "cold" else call, work, log, limits=False)
        since = time.monotonic()
        while not child.ended() and child.seconds() < moment and time.monotonic() - since < 300:
            time.sleep(0.003)
        if kind == "worker":
            _kill_a_worker(child, since)
        else:
            child.send(number)
        if kind == "twice":
            time.sleep(rng.uniform(0, 0.8))  # before 0.3 s it is the first one, once more
            child.send(number)
    ended = child.wait(60 + 10 * whole)
    left = _left_running(child)
    outcome = _of_stop(ended, number, one, kind)
    if left and outcome in GOOD:
        outcome, how = Outcome.HANG, f"{how}, and {left} processes outlive it"
    return (
        outcome,
        f"{how} ({'signal' if ended.signal else 'exit code'} {ended.signal or ended.code})",
        _tail(ended),
        ended.seconds,
    )


def _kill_a_worker(child: forks.Child, since: float) -> None:
    while not child.ended() and time.monotonic() - since < 60:
        for pid in child.group()[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return
        time.sleep(0.01)


def _of_stop(ended: forks.Ended, number: int, one: Command, kind: str) -> Outcome:
    """What is to be said of how a process ended that got a signal."""
    if ended.hung:
        return Outcome.HANG
    if "Traceback (most recent call last)" in ended.output:
        return Outcome.TRACEBACK
    if ended.code == 0:
        return Outcome.RIGHT
    if ended.signal:
        own = ended.signal == number and kind != "worker"
        return Outcome.RIGHT if own and (number == signal.SIGKILL or not one.trains) else Outcome.CRASH
    if kind == "worker":
        return outcome_of_text(ended.output)
    at_once = kind == "twice" or not one.trains
    right = ended.code == STOPPED or (at_once and ended.code == 128 + number)
    return Outcome.RIGHT if right else Outcome.BARE


def _of_failure(ended: forks.Ended) -> Outcome:
    if ended.hung:
        return Outcome.HANG
    if ended.signal:
        return Outcome.CRASH
    return Outcome.TRACEBACK if "Traceback (most recent call last)" in ended.output else Outcome.BARE


def _left_running(child: forks.Child) -> int:
    """How many processes are left of one that ended, after a while in which they may notice it."""
    until = time.monotonic() + 15
    while child.group() and time.monotonic() < until:
        time.sleep(0.05)
    left = len(child.group())
    child.end_group()
    return left


def _tail(ended: forks.Ended) -> str:
    """The last lines that it printed, or those of its traceback."""
    before, traceback, after = ended.output.partition("Traceback (most recent call last)")
    lines = [line for line in (traceback + after if traceback else before).splitlines() if line.strip()]
    return "\n".join(line[:300] for line in (lines[:40] if traceback else lines[-3:]))


def two(name: str) -> Callable[[random.Random, Path, Path], Result]:
    """A case: the same name twice at the same time, with other seeds. One must have it, and the other say so."""

    def run(rng: random.Random, folder: Path, kit: Path) -> Result:
        one = COMMANDS[name]
        work = one.prepare(folder, kit)
        seeds = ("seed=0", f"seed={rng.randint(1, 99)}")
        children = []
        for number, seed in enumerate(seeds):
            call = one.call(kit, "resume=null", seed)
            children.append(forks.Child(call, work, folder / f"{number}.log", limits=False))
            time.sleep(rng.choice((0, 0.02, 0.3, 1.0)))
        ends = [child.wait(120) for child in children]
        left = sum(map(_left_running, children))
        what = f"{shown(one.name, one.all_words(kit))} twice at once, with {' and '.join(seeds)}"
        used = sum(end.seconds for end in ends)
        right = [end for end in ends if end.code == 0]
        if len(right) == 2:
            return Outcome.SILENT, what, "both end with exit code 0", used
        if left or not right:
            return Outcome.HANG if left else Outcome.BARE, what, "\n".join(map(_tail, ends)), used
        other = next(end for end in ends if end.code != 0)
        failed = _of_failure(other)
        return outcome_of_text(other.output) if failed is Outcome.BARE else failed, what, _tail(other), used

    return run
