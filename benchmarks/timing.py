"""Timing two pieces of code against each other on a machine whose speed drifts."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median seconds of two pieces of code, the median of their ratios round by round, and the range of these."""

    first: float
    second: float
    ratio: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.lowest:.2f}-{self.highest:.2f})"


class Figure(NamedTuple):
    """One line of what was measured: a ratio of two pieces of code in one run, its range, and the goal."""

    name: str
    ratio: float
    lowest: float
    highest: float
    goal: str
    unit: str = "x"
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.name}: {self.ratio:.3g} {self.unit} ({self.lowest:.3g}-{self.highest:.3g}), goal {self.goal}{note}"
        )


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, by the clock on the wall."""
    start = clock()
    work()
    return clock() - start


def ratio(a: Callable[[], object], b: Callable[[], object], rounds: int = 5) -> tuple[float, float, float]:
    """Median seconds of ``a`` and of ``b``, called in turn after a warm-up, and the median of the ratios a/b."""
    found = side_by_side(a, b, rounds)
    return found.first, found.second, found.ratio


def side_by_side(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """``a`` and ``b``, called in turn after a warm-up; the ratio is a/b.

    What runs in one thread may be timed by ``time.process_time``, which other processes disturb less.
    """
    a(), b()
    pairs = [(seconds(a, clock), seconds(b, clock)) for _ in range(rounds)]
    ratios = [x / y for x, y in pairs]
    first, second = statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)
    return Ratio(first, second, statistics.median(ratios), min(ratios), max(ratios))
