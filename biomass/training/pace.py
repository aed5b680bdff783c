"""How long an epoch will take, told by its first steps."""

import logging
import time

import numpy as np
import torch

log = logging.getLogger(__name__)

_LONG = 5.0
"""Seconds of a first step from which on its time is told at once."""


class Pace:
    """Says how long the first step took, and how long an epoch will by the second, which starts nothing up.

    Args:
        device: waited for after both.
        steps: of the epoch.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.times = [time.monotonic()]

    @property
    def goes_on(self) -> bool:
        """Whether another step is of interest."""
        return len(self.times) <= 2

    def stepped(self) -> None:
        """Call this after a step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.monotonic())
        first, *later = np.diff(self.times).tolist()
        if not later and (self.steps == 1 or first > _LONG):
            log.info("the first step took %s, start-up included", duration(first))
        if later:
            total = first + later[0] * (self.steps - 1)
            log.info(
                "the first step took %s, the second %s: an epoch of %s steps will take about %s",
                *(duration(first), duration(later[0]), f"{self.steps:,}", duration(total)),
            )


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(0.0421), duration(42.1), duration(600), duration(9000)
    ('0.042 s', '42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
