"""The end of a run: the page about it, which makes no finished run fail, unless its disk does."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from biomass.diskerrors import disk_error
from biomass.errors import BiomassError, ConfigError, one_line
from biomass.report.files import PAGE

log = logging.getLogger(__name__)

Step = Callable[[], object]
"""Leaves a file in the folder of the run, from which the page is made."""


def finish(folder: Path, steps: Sequence[Step] = ()) -> Path | None:
    """Make the page of a run, ``report.html`` in its folder, and say where it is.

    What goes wrong is a line in the log, with its reason: the run itself is finished, and its files are there. But a
    disk that does not take the page is an error: when there is room again, the same command makes what is missing.

    Args:
        folder: of the run.
        steps: what leaves files that the page shows, in their order; a step that fails leaves none.

    Returns:
        The page; None where there is none.

    Raises:
        ConfigError: something cannot be written.
    """
    for step in steps:
        _tried(step, "the page has one part less")
    page = folder / PAGE
    if not _tried(partial(_write, folder, page), "there is no page of this run"):
        return None
    log.info("the page of this run is %s", page)
    return page


def _write(folder: Path, page: Path) -> None:
    from biomass.report.page import write_report  # of templates, which nothing else needs

    write_report([folder], page)


def _tried(step: Step, otherwise: str) -> bool:
    """Whether a step has done what it does; the reason why not is said."""
    try:
        step()
    except BiomassError as reason:  # such as a screen of one plate
        if isinstance(reason, ConfigError) and reason.__cause__ and disk_error(reason.__cause__):
            raise
        log.info("%s: %s", otherwise, one_line(reason))
    except Exception as reason:  # whatever it is, hours of training are no reason to lose
        log.warning("%s: %s: %s", otherwise, type(reason).__name__, one_line(reason))
        log.debug("where it happened", exc_info=True)
    else:
        return True
    return False
