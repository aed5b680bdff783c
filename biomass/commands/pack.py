"""Pack the images of a source into one memory-mapped array (see :mod:`biomass.pixels.packed`)::

    python -m biomass.commands.pack <source> [<out>] [--set key=value ...]

``<source>`` is a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest, whose options are given as in
the YAML: ``--set columns.label=moa --set image=path``. Left out, ``<out>`` is ``<source>.packed``, where the readers of
cells, RxRx1-WILDS and manifests find it by themselves. A second call goes on where the first was stopped.
``--verify <store>`` only checks a store.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from biomass.datasets.any_source import command_errors, open_source, parse_settings
from biomass.pixels.packed import SUFFIX, verify
from biomass.pixels.packed_writer import pack


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error of the user's is one line, and the exit code 1; after Ctrl-C it is 130."""
    parser = argparse.ArgumentParser(
        "python -m biomass.commands.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest")
    parser.add_argument("out", type=Path, nargs="?", help=f"the store; <source>{SUFFIX} if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader")
    parser.add_argument("--workers", type=int, help="processes that read; all cores if left out")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), default="error")
    parser.add_argument("--verify", action="store_true", help="source is a store: check it, and write nothing")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stopped = "nothing was changed" if args.verify else "a second call goes on where this one stopped"
    with command_errors(args.on_bad_image, stopped):
        if args.verify:
            verify(args.source)
            print(f"{args.source} is complete and unchanged")
            return
        screen, beside = open_source(args.source, args.on_bad_image == "skip", **parse_settings(args.set))
        out = args.out or beside.with_name(beside.name + SUFFIX)
        pack(screen, out, workers=args.workers, on_bad_image=args.on_bad_image)
        print(f"{out} holds {len(screen)} images")


if __name__ == "__main__":
    main()
