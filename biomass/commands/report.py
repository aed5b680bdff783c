"""Make a page of what a run found: one file that opens in any browser, offline; of several runs, side by side.

    biomass report runs/a                          # runs/a/report.html
    biomass report runs/a runs/b ... [--out ...]   # runs/comparison/report.html

The page is made from the files that biomass evaluate, biomass profile, biomass stress, biomass predict and the training
scripts leave in the folder of a run: the verdict, the table of statistics × corrections, the ladder, maps of the wells
and of the plates, learning curves, and what was skipped and why. Runs that are older than this command have a page,
too, with what they left. Nothing is computed again.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from biomass.commands import Parser, run_on_files

PLACE = 90

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("report", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, such as runs/my_run")
    parser.add_argument("--out", type=Path, help="the file, or the folder for it")
    args = parser.parse_intermixed_args(arguments)
    from biomass.report.files import PAGE
    from biomass.report.page import write_report

    runs = list(dict.fromkeys(args.runs))
    folder = args.out or (runs[0] if len(runs) == 1 else Path("runs/comparison"))
    out = folder if args.out and folder.suffix in (".html", ".htm") else folder / PAGE
    if len(runs) > 1:
        runs = [run for run in runs if run != folder]  # which runs/* names, too
    with run_on_files("nothing was written"):
        written = write_report(runs, out)
        log.info("%s", written)


if __name__ == "__main__":
    main()
