"""Cut single cells out of fields of view, around their nuclei, into a packed store (:mod:`.packed`)::

    python -m biomass.commands.crop <source> <out> [--channel DAPI] [--size 48] [--set key=value ...]

``<source>`` is a manifest, whose options are given as in the YAML (``--set image.DAPI=dna_file --set
columns.plate=barcode``), a folder with BBBC021, a root of RxRx1-WILDS, or a packed store of fields. Nuclei are found in
the channel with the stain of DNA, or read from ``--nuclei``: a folder with the tables of Ljosa et al., or a table of
one's own with the columns ``plate, well, site, x, y``. Beside the store ``<out>``, which :func:`.packed.load_packed`
reads, stand ``<out>.nuclei.parquet``, all nuclei, and ``<out>.fields.csv``, the number of cells of every field.
A second call goes on where the first was stopped: nuclei that were found in the same fields, with the same channel and
diameter, are not searched again.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomass.cells.fields import place_nuclei, save_nuclei
from biomass.cells.nuclei import DIAMETER, read_nuclei, read_nuclei_table
from biomass.cells.search import describe_search, find_all_nuclei
from biomass.cells.store import check_cells, nuclei_file, pack_cells
from biomass.channels import ADVICE
from biomass.datasets.any_source import command_errors, open_source, parse_settings
from biomass.datasets.bbbc021 import find_supplement, is_bbbc021
from biomass.datasets.packed import load_packed
from biomass.errors import ConfigError
from biomass.screen import Screen


def _open_fields(source: Path, skip_bad: bool, options: dict[str, Any]) -> tuple[Screen, Path | None]:
    """The fields of a source, and the published table or folder of nuclei that lies with it, if there is one."""
    published = find_supplement(source) if is_bbbc021(source) else None
    return open_source(source, skip_bad, **options)[0], published


def _describe_search(screen: Screen, channel: str, diameter: float) -> dict[str, Any]:
    """What nuclei are searched in; where the channel is not there, the error names the command's option."""
    try:
        return describe_search(screen, channel, diameter)
    except ConfigError as error:
        message = str(error).replace(ADVICE, "Name the one with the stain of DNA with --channel")
        raise ConfigError(message) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error of the user's is one line, and the exit code 1; after Ctrl-C it is 130."""
    parser = argparse.ArgumentParser(
        "python -m biomass.commands.crop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a manifest, BBBC021, RxRx1-WILDS, or a packed store of fields")
    parser.add_argument("out", type=Path, help="the store of cells")
    parser.add_argument("--channel", default="DAPI", help="the channel with the stain of DNA")
    parser.add_argument("--size", type=int, default=48, help="height and width of a crop, pixels")
    parser.add_argument("--diameter", type=float, default=DIAMETER, help="of a typical nucleus, pixels")
    parser.add_argument("--nuclei", type=Path, help="where the nuclei are, if they need not be found")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads, then processes")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), default="error")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with command_errors(args.on_bad_image, "a second call goes on where this one stopped"):
        screen, published = _open_fields(args.source, args.on_bad_image == "skip", parse_settings(args.set))
        listed = args.nuclei or published
        search = None if listed is not None else _describe_search(screen, args.channel, args.diameter)
        check_cells(screen, args.size, args.out, search)
        kept = nuclei_file(args.out)
        if listed is not None:
            nuclei = place_nuclei(
                screen, *(read_nuclei if listed.is_dir() else read_nuclei_table)(listed), subset=listed.is_dir()
            )
        else:
            nuclei = find_all_nuclei(
                screen,
                args.channel,
                args.diameter,
                on_bad_image=args.on_bad_image,
                workers=max(1, args.workers),
                file=kept,
            )
        out = pack_cells(screen, nuclei, args.out, args.size, workers=args.workers, on_bad_image=args.on_bad_image)
        if listed is not None:
            save_nuclei(screen, nuclei, kept)
        print(f"{out} holds {len(load_packed(out))} cells of {len(nuclei.fields)} fields")


if __name__ == "__main__":
    main()
