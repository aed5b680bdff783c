"""Look at the images of a screen before anything is trained: counts, intensities, focus, and what is odd.

    biomass check <source> [--set key=value ...] [--out folder]

``<source>`` is a manifest, a packed store, a folder of cropped cells, a root of RxRx1-WILDS, or BBBC021, whose options
are given as in the YAML (``--set columns.label=moa``). No model is needed. Of every plate a sample is read, spread over
its wells; images that cannot be read are counted, unless ``--on-bad-image error`` stops at the first.

What is odd is said in a line each, with what to do: channels that are constant, faint or saturated, plates that stand
out in intensity, contrast or focus, images that are there twice, plates without controls, labels on one plate alone.
The folder holds plates.csv, labels.csv and channels.csv, check.json with the findings, and two pictures: check.png,
intensities and focus by plate and channel, and examples.png, an image of each plate.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from biomass.atomic import whole_file
from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, say
from biomass.run_lock import own
from biomass.runs import run_name

if TYPE_CHECKING:
    import pandas as pd

    from biomass.evaluation import quality
    from biomass.screen import Screen

PLACE = 20

log = logging.getLogger(__name__)

_MOST_LINES = 24
"""Rows of a table that are printed; the whole of it is in the folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("check", __doc__)
    parser.add_source("a manifest, a packed store, cropped cells, RxRx1-WILDS, or BBBC021")
    parser.add_out("a folder for tables and pictures; runs/<run name> if left out")
    parser.add_argument("--run-name", help="name of the folder below runs; check and the time if left out")
    parser.add_argument("--images", type=int, help="of each plate that are read; by their size if left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    parser.set_defaults(on_bad_image="skip")
    args = parser.parse(arguments)
    from biomass.datasets.any_source import open_source
    from biomass.evaluation import quality

    skip = args.on_bad_image == "skip"
    with run_on_files("nothing was written"):
        folder = args.out or Path("runs") / run_name(args.run_name, "check")
        own(folder, "store")
        if args.images is not None and args.images < 1:
            raise ConfigError(f"--images {args.images}: give a number of at least 1")
        screen, _ = open_source(args.source, skip, **parse_settings(args.set))
        samples = quality.sample_rows(screen, args.images)
        number = sum(map(len, samples))
        log.info("%s\nreading %d images, up to %d a plate", describe(screen), number, max(map(len, samples)))
        found = quality.measure(screen, samples, args.on_bad_image, max(0, args.workers))
        plates, channels = quality.count_plates(screen), quality.summarize(screen, found)
        labels = quality.count_labels(screen)
        findings = quality.find_oddities(screen, plates, channels, found)
        write(folder, screen, plates, labels, channels, findings, found)
        say(page(plates, labels, channels, findings))
        say(f"\n{folder}/ holds the tables, check.json, and the pictures check.png and examples.png")


def describe(screen: Screen) -> str:
    """The screen in a line."""
    height, width = screen.pixels.size
    what = "cells" if screen.fields is not None else "images"
    plates, classes = len(screen.plate_names), len(screen.classes)
    channels, splits = ", ".join(screen.pixels.channels), ", ".join(screen.splits) or "none"
    return (
        f"{len(screen)} {what} of {height} x {width} pixels, {plates} plate{'s' * (plates != 1)}, "
        f"{classes} class{'es' * (classes != 1)}, channels {channels}; splits: {splits}"
    )


def page(
    plates: pd.DataFrame, labels: pd.DataFrame, channels: pd.DataFrame, findings: Sequence[quality.Finding]
) -> str:
    """What the terminal shows."""
    counts = plates.drop(columns=["experiment", "plate"]).rename(columns={"name": "plate"})
    counts.insert(0, "plate", counts.pop("plate"))
    measured = channels[["plate", "channel", "p1", "p50", "p99", "saturated", "constant", "focus"]].copy()
    measured["saturated"] = measured["saturated"].map(lambda share: f"{100 * share:.2g} %")
    measured["focus"] = measured["focus"].round(2)
    over = channels.groupby("channel", sort=False)[["p1", "p50", "p99", "saturated", "focus"]].median().round(4)
    parts = [
        ("Plates", shortened(counts)),
        ("Classes", shortened(labels.sort_values("images", ascending=False))),
        ("Channels, median plate (p: percentiles of the pixels; focus: slope, steeper is blurred)", over.to_string()),
        ("Plates and channels", shortened(measured)),
    ]
    listed = [f"  {number}. {one.what}\n     → {one.remedy}" for number, one in enumerate(findings, 1)]
    verdict = "\n".join(listed) if listed else "  nothing odd was found"
    return "\n\n".join([*(f"{title}\n{text}" for title, text in parts), f"Findings\n{verdict}"])


def shortened(table: pd.DataFrame) -> str:
    """A table as text, with its first rows alone if it is long."""
    text = table.head(_MOST_LINES).to_string(index=False)
    rest = len(table) - _MOST_LINES
    return text if rest <= 0 else f"{text}\n  … and {rest} more"


def write(
    folder: Path,
    screen: Screen,
    plates: pd.DataFrame,
    labels: pd.DataFrame,
    channels: pd.DataFrame,
    findings: Sequence[quality.Finding],
    found: quality.Measured,
) -> None:
    """The tables, the findings and the pictures."""
    from biomass.evaluation import quality, quality_plots
    from biomass.formulas import to_csv

    tables = {"plates": plates.drop(columns="name"), "labels": labels, "channels": channels}
    tables["labels_by_plate"] = quality.count_pairs(screen)
    for name, table in tables.items():
        with whole_file(folder / f"{name}.csv") as part:
            part.write_text(to_csv(table), encoding="utf-8")
    unreadable = [screen.pixels.name(int(row)) for row in found.skipped]
    about = {"findings": [one._asdict() for one in findings], "unreadable": unreadable, "images": len(found.rows)}
    with whole_file(folder / "check.json") as part:
        part.write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
    pictures = {
        "check": quality_plots.overview(channels, screen.plate_names),
        "examples": quality_plots.examples(screen, found, channels),
    }
    for name, figure in pictures.items():
        with whole_file(folder / f"{name}.png") as part:
            figure.savefig(part, dpi=150, format="png")


if __name__ == "__main__":
    main()
