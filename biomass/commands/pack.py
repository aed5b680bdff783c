"""Pack the images of a source into one memory-mapped array, which loads many times faster than files.

    biomass pack <source> [<out>] [--set key=value ...]

``<source>`` is a folder of cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest, whose options are given as in
the YAML: ``--set columns.label=moa --set image=path``. Left out, ``<out>`` is ``<source>.packed``, where the readers of
cells, RxRx1-WILDS and manifests find it by themselves. A second call goes on where the first was stopped.
``--verify <store>`` only checks a store.
"""

from collections.abc import Sequence

from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import say

PLACE = 40


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("pack", __doc__)
    parser.add_source("cropped cells, a root of RxRx1-WILDS, BBBC021, or a manifest")
    parser.add_out("the store; <source>.packed if left out")
    parser.add_argument("--workers", type=int, help="processes that read; all cores if left out")
    parser.add_argument("--verify", action="store_true", help="source is a store: check it, and write nothing")
    args = parser.parse(arguments)
    from biomass.datasets.any_source import open_source
    from biomass.pixels.packed import SUFFIX, verify
    from biomass.pixels.packed_writer import pack

    skip = args.on_bad_image == "skip"
    stopped = "nothing was changed" if args.verify else "a second call goes on where this one stopped"
    with run_on_files(stopped, {"skip"} if skip else ()):
        if args.verify:
            verify(args.source)
            say(f"{args.source} is complete and unchanged")
            return
        screen, beside = open_source(args.source, skip, **parse_settings(args.set))
        out = args.out or beside.with_name(beside.name + SUFFIX)
        pack(screen, out, workers=args.workers, on_bad_image=args.on_bad_image)
        say(f"{out} holds {len(screen)} images")
