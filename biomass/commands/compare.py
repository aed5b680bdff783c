"""Put finished runs into one table: training x inference, mean and spread over seeds and screens, with a picture.

    biomass compare runs/a runs/b ... [--out runs/comparison] [--by seed] [--by screen]

Reads the folders that train_erm.py, train_supervised_cell.py and train_classifier.py write below ``runs/``. Accuracy of
the last evaluation on every split, on treatments, by cell type, of the worst plate, and wall time are averaged over
runs that differ in nothing but their seed or their screen (its seed where it is simulated, else its place); ``--by``
keeps these apart. Runs that differ in another setting have rows of their own, which name it. The folder of a
``biomass stress`` is read, too: its network is then in the table under every word for statistics, not only under its
own, judged on the treated wells of the plates that were tried.

A comparison needs floors: an untrained network (``trainer.max_steps=0``) and labels that mean nothing
(``shuffle_labels=true``). They stand at the end; the table says so where they are missing. Runs that were stopped are
left out, with the reason. ``comparison.csv`` has every number with its run and file, ``comparison.md`` the table,
``comparison.png`` the picture.
"""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from biomass.atomic import whole_files
from biomass.commands import Parser, run_on_files
from biomass.errors import printable, say
from biomass.run_lock import own
from biomass.words import words_in

PLACE = 85

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, such as runs/*")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="the folder to write to")
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        choices=words_in("evaluation.comparison.REPEAT"),
        help="do not average over it",
    )
    args = parser.parse_intermixed_args(arguments)
    from biomass.commands._compared import gather, sources, tabulate
    from biomass.evaluation import comparison, plots
    from biomass.formulas import to_csv

    by = list(dict.fromkeys(args.by))
    with run_on_files("nothing was written"):
        own(args.out, "store")
        runs, notes = gather([folder for folder in args.runs if folder != args.out])  # which runs/* names, too
        numbers, more = tabulate(runs)
        notes += more
        for note in notes:
            log.warning("%s", note)
        table = comparison.summarize(numbers, by)
        markdown = comparison.to_markdown(table, by)
        listed = "\n".join(f"- {note}" for note in notes)
        parts = ["# Comparison of runs", markdown, comparison.LEGEND, listed, sources(numbers)]
        text = "\n\n".join(filter(None, parts))
        picture = io.BytesIO()
        plots.compared(numbers).savefig(picture, dpi=200, format="png")
        files = {".md": printable(text, "\n").encode(), ".csv": to_csv(numbers).encode(), ".png": picture.getvalue()}
        whole_files({args.out / f"comparison{end}": content for end, content in files.items()}, "store")
        say(markdown)
        say(f"{args.out} holds {', '.join(f'comparison{end}' for end in files)} of {numbers['run'].nunique()} runs")


if __name__ == "__main__":
    main()
