"""Timing two pieces of code against each other on a machine whose speed drifts."""

import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(a: Callable[[], object], b: Callable[[], object], rounds: int = 5) -> tuple[float, float, float]:
    """Median seconds of ``a`` and of ``b``, called in turn after a warm-up, and the median of the ratios a/b."""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(rounds)]
    return (
        statistics.median(x for x, _ in pairs),
        statistics.median(y for _, y in pairs),
        statistics.median(x / y for x, y in pairs),
    )
