"""Pack the images of a source into one memory-mapped array, which loads many times faster than files.

    biomass pack <source> [<out>] [--set key=value ...]

``<source>`` is a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest, whose options are given as in
the YAML: ``--set columns.label=moa --set image=path``. Left out, ``<out>`` is ``<source>.packed``, where the readers of
cells, RxRx1-WILDS and manifests find it by themselves. A second call goes on where the first was stopped.
``--verify`` only checks the store: ``<out>``, or of one place this, or the store beside it.

Many plates are packed by many machines: ``--shard 1/16`` to ``--shard 16/16`` pack some of the plates each, into
``<out>.shards/``, and the same command with ``--shard merge`` makes the store of them. A shard that dies is run again.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, say

if TYPE_CHECKING:
    from biomass.screen import Screen
    from biomass.shards import Shard

PLACE = 40


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("pack", __doc__)
    parser.add_source("cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest")
    parser.add_out("the store; <source>.packed if left out")
    parser.add_argument("--workers", type=int, help="processes that read; all cores if left out")
    parser.add_argument("--verify", action="store_true", help="check the store, and write nothing")
    parser.add_shard()
    args = parser.parse(arguments)
    from biomass.shards import parse_shard

    skip = args.on_bad_image == "skip"
    stopped = "nothing was changed" if args.verify else "a second call goes on where this one stopped"
    with run_on_files(stopped, {"skip"} if skip else (), shard=args.shard):
        shard = parse_shard(args.shard)
        if args.verify and shard is not None:
            raise ConfigError("--verify checks a store that is whole: leave --shard out")
        from biomass.datasets.any_source import open_source, stands_beside
        from biomass.pixels.packed import SUFFIX, packed_beside, verify
        from biomass.pixels.packed_writer import pack
        from biomass.pixels.store_file import ABOUT

        if args.verify:
            store = args.out or args.source
            if args.out is None and not (store / ABOUT).is_file():
                store = packed_beside(stands_beside(store)) or store
            verify(store)
            say(f"{store} is complete and unchanged")
            return
        screen, beside = open_source(args.source, skip, **parse_settings(args.set))
        out = args.out or beside.with_name(beside.name + SUFFIX)
        if shard is not None:
            _pack_shard(screen, out, shard, args)
            return
        pack(screen, out, workers=args.workers, on_bad_image=args.on_bad_image)
        say(f"{out} holds {len(screen)} images")


def _pack_shard(screen: Screen, out: Path, shard: Shard | str, args: Namespace) -> None:
    """Pack some plates, or make one store of those of all shards."""
    import numpy as np

    from biomass.pixels.packed import drop_damaged
    from biomass.pixels.packed_writer import check_store, pack
    from biomass.pixels.part import part_of, parts_of
    from biomass.shards import DATA, Shard, Shards, digest_of, divide, shards_of

    shards = Shards(shards_of(out), {"--set": " ".join(sorted(args.set)), DATA: digest_of(screen)}, "--shard ")
    if isinstance(shard, Shard):
        screen = check_store(screen, out)
        shards.begin(shard)
        rows = np.flatnonzero(divide(screen.plate_ids, shard.of) == shard.number)
        if len(rows):
            store = shards.place(shard)
            drop_damaged(store)
            pack(part_of(screen, rows), store, workers=args.workers, on_bad_image=args.on_bad_image, like=screen)
        shards.finish(shard)
        say(shards.say(shard, len(rows), "images"))
        return
    of = shards.finished()[0].shard.of
    parts = parts_of(shards, of, divide(screen.plate_ids, of))
    pack(screen, out, workers=args.workers, on_bad_image=args.on_bad_image, parts=parts)
    shards.remove()
    say(f"{out} holds {len(screen)} images; {shards.folder} is merged, and gone")
