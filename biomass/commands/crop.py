"""Cut single cells out of fields of view, around their nuclei, into a packed store.

    biomass crop <source> <out> [--channel DAPI] [--size 48] [--nuclei table] [--set key=value ...]

``<source>`` is a manifest, whose options are given as in the YAML (``--set image.DAPI=dna_file --set
columns.plate=barcode``), a folder with BBBC021, a root of RxRx1-WILDS, or a packed store of fields.

Nuclei are found in the channel with the stain of DNA, or read from ``--nuclei``:

* a table with the columns ``plate, well, site, x, y`` (pixels, and perhaps ``area``), or with CellProfiler's names for
  them (``Metadata_Plate``, ``Nuclei_Location_Center_X``, ``Nuclei_AreaShape_Area``); CSV or Parquet. One that says
  ``ImageNumber`` alone needs CellProfiler's Image table beside it;
* a folder with such tables, or with DeepProfiler's locations (``<plate>/<well>-<site>-Nuclei.csv``);
* label images of Cellpose, StarDist or CellProfiler (TIFF, PNG, ``.npy``), or a folder with them, called like the
  images of the fields (``A01_s1_w1_cp_masks.tif``) or ``<plate>_<well>_<site>``;
* the folder with the tables of Ljosa et al. (2013).

Nuclei that belong to no field or lie outside of it are left out and counted; a table of which that holds for half of
the nuclei is refused. Every cell keeps the centre of its nucleus (``x, y``), the row of the given table (``nucleus``
from 0, or the label; ``object``; ``nuclei_file``), and how many other nuclei have their centre in its crop
(``neighbours``); ``--alone`` leaves crops with others out.

Beside the store ``<out>``, which the dataloaders ``packed`` read, stand ``<out>.nuclei.parquet``, all nuclei,
``<out>.fields.csv``, the number of nuclei and cells of every field, and ``<out>.pictures/``: for each plate three
fields with outlines, and some of its cells. ``--compare`` says how the nuclei compare with those of a table.

A second call goes on where the first was stopped, and adds what is new: plates (and fields) that the source did not
have then. Fields whose images have changed since, in size or time, are searched and cut again; all others are not.
A store that has fields or cells which the source no longer has is refused. While a store grows it needs room twice.

Many plates are cut by many machines: ``--shard 1/16`` to ``--shard 16/16`` search and cut some of the plates each, into
``<out>.shards/``, and the same command with ``--shard merge`` makes the store of them, and the pictures. A shard that
dies is run again. A store that is there already grows: each shard searches and cuts what is new, and copies the rest.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, say

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from biomass.cells.fields import Nuclei
    from biomass.pixels.part import Part
    from biomass.screen import Screen
    from biomass.shards import Shard, Shards

PLACE = 30

_SHOWN = 60  # plates that are printed

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("crop", __doc__)
    parser.add_source("a manifest, BBBC021, RxRx1-WILDS, or a packed store of fields")
    parser.add_out("the store of cells")
    parser.add_argument("--channel", default="DAPI", help="the channel with the stain of DNA")
    parser.add_argument("--size", type=int, default=48, help="height and width of a crop, pixels")
    parser.add_argument("--diameter", type=float, help="of a typical nucleus, pixels; 36 if left out")
    parser.add_argument("--nuclei", type=Path, help="where the nuclei are, if they need not be found")
    parser.add_argument("--allow-left-over", action="store_true", help="most nuclei may be of other fields")
    parser.add_argument("--alone", action="store_true", help="leave out crops with more than one nucleus")
    parser.add_argument("--compare", type=Path, metavar="TABLE", help="nuclei to compare with, as --nuclei takes them")
    parser.add_argument("--within", type=float, default=8.0, help="how far apart the same nucleus may lie, pixels")
    parser.add_argument("--no-pictures", action="store_true", help="draw no plates")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_shard()
    args = parser.parse(arguments, needs_out=True)
    from biomass.shards import Shard, divide, parse_shard

    skip = args.on_bad_image == "skip"
    with run_on_files("a second call goes on where this one stopped", {"skip"} if skip else (), shard=args.shard):
        shard = parse_shard(args.shard)
        from biomass.cells.comparison import compare_nuclei
        from biomass.cells.fields import save_nuclei
        from biomass.cells.nuclei import DIAMETER
        from biomass.cells.search import describe_search
        from biomass.cells.shards import join_saved_nuclei
        from biomass.cells.store import check_cells, nuclei_file, pack_cells
        from biomass.datasets.any_source import open_source
        from biomass.datasets.bbbc021 import find_supplement, is_bbbc021
        from biomass.datasets.packed import load_packed
        from biomass.pixels.packed_writer import stamps_of

        args.diameter = DIAMETER if args.diameter is None else args.diameter
        screen, _ = open_source(args.source, skip, **parse_settings(args.set))
        published = find_supplement(args.source) if is_bbbc021(args.source) else None
        listed = args.nuclei or published
        search = None if listed is not None else describe_search(screen, args.channel, args.diameter)
        check_cells(screen, args.size, args.out, search, alone=args.alone)
        kept = nuclei_file(args.out)
        shards = None if shard is None else _shards(screen, listed, args)
        if shards is not None and isinstance(shard, Shard):
            _cut_shard(screen, listed, shards, shard, args)
            return
        notes = [] if shards is None else shards.finished()
        stamps = None
        if listed is not None:
            nuclei = _read(listed, screen, args)
        elif shards is not None and search is not None:
            nuclei = join_saved_nuclei(screen, shards, notes, search)
            stamps = stamps_of(screen.pixels, len(screen))
        else:
            nuclei = _find(screen, args, kept)
        others = None if args.compare is None else _read(args.compare, screen, args)
        before = _read_counts(args.out)
        parts = None
        if shards is not None:
            owner = divide(screen.plate_ids, notes[0].shard.of)
            parts = partial(_parts, shards, notes[0].shard.of, owner)
        out = pack_cells(screen, nuclei, args.out, args.size, **_packing(args), parts=parts)
        if listed is not None or shards is not None:
            save_nuclei(screen, nuclei, kept, search, stamps)
        cells, counts = load_packed(out), _read_counts(out)
        assert counts is not None
        say(summarize_plates(counts))
        if others is not None:
            say(f"compared with '{args.compare}', within {args.within:g} pixels:")
            say(_as_text(compare_nuclei(screen, nuclei, others, args.within)))
        if not args.no_pictures:
            _draw(screen, nuclei, cells, before, counts, None if listed is not None else args.diameter, args)
        lost = len(nuclei.table) - len(cells)
        why = " (or other nuclei are in it: --alone)" if args.alone else ""
        left = (
            f"; {lost} nuclei have none: their crop of {args.size} pixels would leave the field{why}"
            if lost > 0
            else ""
        )
        say(f"{out} holds {len(cells)} cells of {len(nuclei.fields)} fields{left}")
        if shards is not None:
            shards.remove()
            say(f"{shards.folder} is merged, and gone")
        say(f"to train: python train_simclr.py {stored(args.out)}, or with labels: train_supervised_cell.py")


def _packing(args: Namespace) -> dict[str, Any]:
    return {"alone": args.alone, "workers": args.workers, "on_bad_image": args.on_bad_image}


def _find(screen: Screen, args: Namespace, kept: Path, known: Path | None = None) -> Nuclei:
    from biomass.cells.search import find_all_nuclei

    reading = {"on_bad_image": args.on_bad_image, "workers": args.workers}
    return find_all_nuclei(screen, args.channel, args.diameter, file=kept, known=known, **reading)


def _shards(screen: Screen, listed: Path | None, args: Namespace) -> Shards:
    """The shards of this command; what they must have in common are the settings that cells depend on."""
    from biomass.cells.shards import check_names
    from biomass.shards import DATA, Shards, digest_of, shards_of

    made = {
        "--set": " ".join(sorted(args.set)),
        "--size": str(args.size),
        "--alone": "yes" if args.alone else "",
        "--nuclei": str(args.nuclei or ""),
    }
    if listed is None:
        check_names(screen)
        made |= {"--channel": args.channel, "--diameter": f"{args.diameter:g}"}
    return Shards(shards_of(args.out), made | {DATA: digest_of(screen)}, "--shard ")


def _cut_shard(screen: Screen, listed: Path | None, shards: Shards, shard: Shard, args: Namespace) -> None:
    """Cut the cells of some plates."""
    import numpy as np

    from biomass.cells.crops import NoCellsError
    from biomass.cells.fields import some_nuclei
    from biomass.cells.store import nuclei_file, pack_cells
    from biomass.datasets.packed import load_packed
    from biomass.pixels.packed import drop_damaged
    from biomass.pixels.part import part_of
    from biomass.shards import divide

    shards.begin(shard)
    rows, store = np.flatnonzero(divide(screen.plate_ids, shard.of) == shard.number), shards.place(shard)
    fields = cells = 0
    if len(rows):
        drop_damaged(store)
        part = part_of(screen, rows)
        try:
            if listed is not None:
                nuclei = some_nuclei(_read(listed, screen, args, rows), rows)
            else:
                nuclei = _find(part, args, nuclei_file(store), nuclei_file(args.out))
            fields = len(nuclei.fields)
            cells = len(load_packed(pack_cells(part, nuclei, store, args.size, **_packing(args), whole=args.out)))
        except NoCellsError as error:  # the other shards have some, or the merge says so
            log.warning("shard %s: %s", shard, error)
    shards.finish(shard, fields=fields)
    say(shards.say(shard, len(rows), f"fields with {cells} cells"))


def _parts(shards: Shards, of: int, owner: np.ndarray, fields: np.ndarray) -> list[Part]:
    """Where the cells of some fields are, by the shard that each field belongs to."""
    from biomass.pixels.part import parts_of

    return parts_of(shards, of, owner[fields])


def stored(store: Path) -> str:
    """What to type to read a store of cells.

    >>> stored(Path("my_screen/cells"))
    'dataloaders=packed dataloaders.store=my_screen/cells'
    """
    plain = re.fullmatch(r"[\w./-]+", str(store))
    named = f"dataloaders.store={store}" if plain else shlex.quote(f'dataloaders.store="{store}"')
    return f"dataloaders=packed {named}"


def _read(path: Path, screen: Screen, args: Namespace, only: np.ndarray | None = None) -> Nuclei:
    """Nuclei that others have found, whatever they are kept in; of label images those of some fields are enough."""
    from biomass.cells.fields import place_nuclei
    from biomass.cells.label_images import has_label_images, read_label_images
    from biomass.cells.nuclei import SUPPLEMENT_IMAGES
    from biomass.cells.tables import TABLES, find_files, read_nuclei_tables

    path = path.expanduser()
    published = (path / SUPPLEMENT_IMAGES).is_file()
    if has_label_images(path) and not (path.is_dir() and (published or find_files(path, TABLES))):
        found = read_label_images(path, screen, args.workers, only=only)
    else:
        found = read_nuclei_tables(path)
    return place_nuclei(screen, *found, subset=args.allow_left_over or published or only is not None)


def _read_counts(out: Path) -> pd.DataFrame | None:
    """The cells of every field, as they are listed beside the store; None where they are not."""
    import pandas as pd

    from biomass.cells.store import fields_file
    from biomass.formulas import plain

    try:
        names = {"experiment": str, "plate": str, "well": str, "site": str}
        return pd.read_csv(fields_file(out), dtype=names).map(plain, na_action="ignore")
    except (OSError, ValueError):
        return None


def summarize_plates(counts: pd.DataFrame) -> str:
    """The numbers of fields, nuclei and cells by plate, as text.

    >>> import pandas as pd
    >>> counts = pd.DataFrame({"experiment": "", "plate": ["P1", "P1"], "well": ["A01", "A02"], "site": "1"})
    >>> print(summarize_plates(counts.assign(nuclei=[9, None], cells=[5, 0], neighbours=[1, 0])))
    plate  fields  not looked at  wells  nuclei  cells  with neighbours  fewest cells in a well
    P1          2              1      2       9      5                1                       0
    """
    import numpy as np
    import pandas as pd

    named = counts["experiment"].fillna("").str.cat(counts["plate"], "/").str.strip("/")
    of_well = counts.assign(name=named).groupby(["name", "well"], sort=True)["cells"].sum()
    groups = counts.assign(name=named, unread=counts["nuclei"].isna()).groupby("name", sort=True)
    sums = groups[["unread", "nuclei", "cells", "neighbours"]].sum().astype(np.int64)
    wells = of_well.groupby("name")
    table = pd.DataFrame({"plate": sums.index, "fields": groups.size().to_numpy(), "not looked at": sums["unread"]})
    table = table.assign(wells=wells.size(), nuclei=sums["nuclei"], cells=sums["cells"])
    table = table.assign(**{"with neighbours": sums["neighbours"], "fewest cells in a well": wells.min()})
    return _as_text(table)


def _as_text(table: pd.DataFrame) -> str:
    import pandas as pd

    shown = table if len(table) <= _SHOWN else pd.concat([table.iloc[: _SHOWN - 1], table.iloc[-1:]])
    values = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in shown.to_numpy(object)]
    rows = [list(map(str, table.columns)), *values]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    if len(shown) < len(table):
        lines.insert(_SHOWN, f"… {len(table) - _SHOWN} more …")
    return "\n".join(lines)


def _draw(
    screen: Screen,
    nuclei: Nuclei,
    cells: Screen,
    before: pd.DataFrame | None,
    counts: pd.DataFrame,
    diameter: float | None,
    args: Namespace,
) -> None:
    """Draw the plates that are new, or whose cells are others than before."""
    import numpy as np

    from biomass.cells.pictures import draw_plates, picture_of, pictures_of
    from biomass.channels import match_channels
    from biomass.pixels.packed_writer import stamps_of

    try:
        (channel,) = match_channels([args.channel], screen.pixels.channels, "channel")
    except ConfigError:  # given nuclei need no stain of DNA
        channel = 0
        log.info("pictures show channel '%s', there is no '%s'", screen.pixels.channels[0], args.channel)
    folder = pictures_of(args.out)
    plates = np.unique(screen.plate_ids)
    if before is not None:
        keys = ["experiment", "plate", "well", "site", "nuclei", "cells"]
        same = set(before[keys].astype(str).itertuples(index=False, name=None))
        changed = np.array([row not in same for row in counts[keys].astype(str).itertuples(index=False, name=None)])
        newest = stamps_of(screen.pixels, len(screen)).times
        drawn = [picture_of(folder, name) for name in screen.plate_names]
        times = np.array([file.stat().st_mtime_ns if file.is_file() else -1 for file in drawn])[screen.plate_ids]
        plates = np.unique(screen.plate_ids[changed | (times < 0) | (newest > times)])
    files = draw_plates(screen, nuclei, cells, folder, channel, diameter, plates=plates.tolist(), workers=args.workers)
    if files:
        say(f"look at {len(files)} plate{'s' * (len(files) > 1)} in {folder}")
