"""Cut single cells out of fields of view, around their nuclei, into a packed store.

    biomass crop <source> <out> [--channel DAPI] [--size 48] [--set key=value ...]

``<source>`` is a manifest, whose options are given as in the YAML (``--set image.DAPI=dna_file --set
columns.plate=barcode``), a folder with BBBC021, a root of RxRx1-WILDS, or a packed store of fields. Nuclei are found in
the channel with the stain of DNA, or read from ``--nuclei``: a folder with the tables of Ljosa et al., or a table of
one's own with the columns ``plate, well, site, x, y``. Beside the store ``<out>``, which the dataloaders ``packed``
read, stand ``<out>.nuclei.parquet``, all nuclei, and ``<out>.fields.csv``, the number of cells of every field.
A second call goes on where the first was stopped: nuclei that were found in the same fields, with the same channel and
diameter, are not searched again.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from biomass.cells.fields import place_nuclei, save_nuclei
from biomass.cells.nuclei import DIAMETER, read_nuclei, read_nuclei_table
from biomass.cells.search import describe_search, find_all_nuclei
from biomass.cells.store import check_cells, nuclei_file, pack_cells
from biomass.commands import Parser, parse_settings, run_on_files
from biomass.datasets.any_source import open_source
from biomass.datasets.bbbc021 import find_supplement, is_bbbc021
from biomass.datasets.packed import load_packed

PLACE = 30


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("crop", __doc__)
    parser.add_source("a manifest, BBBC021, RxRx1-WILDS, or a packed store of fields")
    parser.add_out("the store of cells")
    parser.add_argument("--channel", default="DAPI", help="the channel with the stain of DNA")
    parser.add_argument("--size", type=int, default=48, help="height and width of a crop, pixels")
    parser.add_argument("--diameter", type=float, default=DIAMETER, help="of a typical nucleus, pixels")
    parser.add_argument("--nuclei", type=Path, help="where the nuclei are, if they need not be found")
    parser.add_argument("--allow-left-over", action="store_true", help="leave out nuclei of other fields")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads, then processes")
    args = parser.parse(arguments, needs_out=True)
    skip = args.on_bad_image == "skip"
    with run_on_files("a second call goes on where this one stopped", {"skip"} if skip else ()):
        screen, _ = open_source(args.source, skip, **parse_settings(args.set))
        published = find_supplement(args.source) if is_bbbc021(args.source) else None
        listed = args.nuclei or published
        search = None if listed is not None else describe_search(screen, args.channel, args.diameter)
        check_cells(screen, args.size, args.out, search)
        kept = nuclei_file(args.out)
        if listed is not None:
            found = (read_nuclei if listed.is_dir() else read_nuclei_table)(listed)
            nuclei = place_nuclei(screen, *found, subset=args.allow_left_over or listed.is_dir())
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
