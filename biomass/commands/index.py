"""Make a manifest of a folder of images and a plate map: a table with a row a field of view, ready for training.

    biomass index <folder> --platemap map.csv --out my_screen/manifest.parquet

Which file is which is found out where the layout is unmistakable. --layout names one: imagexpress, phenix (with its
Index.idx.xml, if there is one), cellvoyager, load_data (CellProfiler, Cell Painting Gallery), rxrx1, rxrx3,
deepprofiler. --pattern describes any other: '{plate}/{well}_s{site}_w{channel}.tif', with the parts plate,
experiment, well (or row and column), site, channel, z and time; any other name becomes a column; * stands for
anything within a name, ** also for folders; {site:[a-d]} says what a part may be.

What was found is one table, printed and written beside the manifest as <name>.report.txt: fields, wells and channels
of every plate; what is missing, doubled, unreadable, or not on the plate map; what was left out. Fields that cannot
be read are an error, or left out with --on-bad-image skip. --z and --time take a number as the names of files have
it, or from 0 where one file holds several planes or time points. Whole plates (--splits) go to training, validation
and test. Plates that are added later are in none of them, and the others stay where they are: --splits test (or
train, val) puts the new ones there, --splits plate divides all again. The manifest is written whole, or not at all. A
second call adds new plates; those that have changed need --replace. The manifest knows how it was made: what is not
given again is as it was the last time for the same folder, and, for another folder, as the images were read the last
time.

    python train_erm.py dataloaders=manifest dataloaders.root_dir=my_screen

A network disk is slow to say how large millions of files are: --shard 1/16 to --shard 16/16 ask for some of them each,
and the same command with --shard merge reads their names and makes the manifest. A shard that dies is run again.
"""

from __future__ import annotations

import re
import shlex
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, DataError, did_you_mean, say
from biomass.words import words_in

if TYPE_CHECKING:
    import pandas as pd

    from biomass.datasets.index import Index
    from biomass.datasets.indexed import Mapped
    from biomass.datasets.recipe import Recipe

PLACE = 10

_SHOWN = 40  # plates that a line names

_OWN = {
    "z": "give --z max, focus, middle or the number of a plane",
    "time": "give --time with the number of one",
    "depths": "or give --depths scale",
    "sizes": "or give --sizes crop or --sizes pad",
    "channels": "several channels in a file need a pattern without {channel}; focal planes need --z",
    "axes": "save the files with the order of their dimensions, as OME-TIFF or as ImageJ does",
    "columns": "name columns with --set columns.<column>=…, and plates with --plate or --barcodes",
    "left_over": "or give --allow-left-over to leave it without labels",
}
"""What advice means here and not in the other tools."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("index", __doc__)
    layouts = *words_in("datasets.layouts.PRESETS"), *words_in("datasets.layout_tables.TABLES")
    planes, bits, pixels = (words_in(f"pixels.planes.{table}") for table in ("PROJECTIONS", "DEPTHS", "SIZES"))
    by, shares = (words_in(f"datasets.splits.{table}") for table in ("BY", "SHARES"))
    parser.add_argument("folder", type=Path, help="the images; or the table of load_data or deepprofiler")
    parser.add_out("the manifest, a Parquet file; or a folder for manifest.parquet")
    parser.add_argument("--platemap", type=Path, nargs="+", help="what is in the wells: files, or a folder of them")
    parser.add_argument("--barcodes", type=Path, help="a table: which map each plate has")
    parser.add_argument("--compounds", type=Path, help="a table: what each compound is")
    parser.add_argument("--layout", help=", ".join(layouts))
    parser.add_argument("--pattern", help="of the paths of files, such as '{plate}/{well}_s{site}_w{channel}.tif'")
    parser.add_argument("--channels", nargs="+", action="extend", default=[], metavar="OLD=NEW", help="OLD= leaves out")
    parser.add_argument("--plate", help="name of the plate, where nothing else tells it")
    parser.add_argument("--experiment", help="name of the experiment, where nothing else tells it")
    parser.add_argument("--place", action="append", default=[], metavar="PATH=FOLDER", help="such as s3://bucket=/data")
    parser.add_argument(
        "--z",
        help=f"of several focal planes: {', '.join(planes)}, or the number of one",
    )
    parser.add_argument("--time", type=int, help="of several time points: the number of one")
    parser.add_argument("--depths", choices=bits, help="images of several bit depths")
    parser.add_argument("--sizes", choices=pixels, help="images of several sizes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="how to read the plate map")
    parser.add_argument("--allow-left-over", action=BooleanOptionalAction, help="plates may lack on the plate map")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), help="skip: leave the field out")
    parser.add_argument("--splits", choices=(*by, *shares, "none"), help="divide by these; or where new plates go")
    parser.add_argument("--replace", action="store_true", help="index plates again that are in the manifest")
    parser.add_shard()
    args = parser.parse(arguments, needs_out=True)
    from biomass.shards import DATA, Shard, Shards, parse_shard, shards_of

    followed = {"skip"} if args.on_bad_image == "skip" else ()
    with run_on_files("nothing was written", followed, _OWN, args.shard):
        shard, settings = parse_shard(args.shard), parse_settings(args.set)
        for key in settings:
            if key not in ("columns", "control"):
                raise ConfigError(f"--set {key}=… is unknown; {did_you_mean(key, ('columns', 'control'))}")
        out = args.out / "manifest.parquet" if args.out.is_dir() or not args.out.suffix else args.out
        if out.suffix.lower() != ".parquet":
            raise ConfigError(
                f"'{out}' is to be the manifest, which is a Parquet file: call it {out.stem}.parquet, or, if it is a "
                f"folder, {out.name}/manifest.parquet"
            )
        from biomass.datasets.index import try_reading
        from biomass.datasets.indexed import check_manifest, write_manifest
        from biomass.datasets.listing import Listing
        from biomass.datasets.recipe import Recipe, read_recipes

        given = Recipe(
            args.folder,
            args.layout,
            args.pattern,
            pairs("--channels", args.channels) or None,
            args.plate,
            pairs("--place", args.place) or None,
            int(args.z) if args.z is not None and args.z.isdecimal() else args.z,
            args.time,
            args.platemap,
            args.barcodes,
            args.compounds,
            args.experiment,
            settings.get("columns"),
            settings.get("control"),
            args.allow_left_over,
            args.depths,
            args.sizes,
            args.on_bad_image,
            args.splits if args.splits == "none" else None,
        )
        found, shards = None, None
        check_manifest(out)
        if shard is not None:
            listing = Listing(args.folder, shards_of(out))
            shards = Shards(shards_of(out), _made(given) | {DATA: listing.digest}, "--shard ")
            if isinstance(shard, Shard):
                shards.begin(shard)
                files = listing.look(shards, shard)
                shards.finish(shard)
                say(shards.say(shard, files, "files"))
                return
            found = listing.join(shards, shards.finished()[0].shard.of)
        before = read_recipes(out)
        recipe = given.as_before(before)
        depths, sizes, skip = recipe.depths or "error", recipe.sizes or "error", recipe.on_bad_image == "skip"
        index = recipe.index(found)
        if before and (taken := {k: v for k, v in recipe.said().items() if k not in given.said()}):
            index.notes.insert(0, f"as '{out}' was made: {', '.join(f'{k} {_plainly(v)}' for k, v in taken.items())}")
        mapped = recipe.join(index)
        page = "\n".join(render(index, mapped))
        say(page)
        if index.faults and not skip:
            raise DataError(index.faults[0].message, index.faults[0].advice)
        keep = ~index.bad
        if not keep.any():
            raise DataError(f"no field of '{args.folder}' can be read, the first: {index.faults[0].message}")
        fields, good = mapped.fields[keep].reset_index(drop=True), index.without_bad()
        try_reading(good, depths, sizes)
        written = write_manifest(
            out,
            good,
            fields,
            depths=depths,
            sizes=sizes,
            replace=args.replace,
            splits=args.splits or recipe.splits,
            page=page,
            made=recipe.kept_with(before, index.layout, out),
        )
        say("\n".join(f"note: {one}" for one in written.notes))
        for what, plates in (("added", written.new), ("replaced", written.replaced), ("there already", written.kept)):
            if plates:
                say(f"{what}: {', '.join(plates[:_SHOWN])}{' …' if len(plates) > _SHOWN else ''}")
        say(f"{out} holds {written.rows} fields; the report is {out.with_suffix('.report.txt')}")
        if shards is not None:
            shards.remove()
            say(f"{shards.folder} is merged, and gone")
        if written.trains:
            say(f"to train: {training(out)}")


def _made(given: Recipe) -> dict[str, str]:
    """What shards of one command must have in common."""
    named = {"columns": "--set columns", "control": "--set control", "places": "--place"}
    said = {name: value for name, value in given.said().items() if name != "on_bad_image"}
    options = {named.get(name, f"--{name.replace('_', '-')}"): _plainly(value) for name, value in said.items()}
    return {"folder": str(given.folder.absolute()), **options}


def _plainly(value: Any) -> str:
    """A remembered option as it is typed, or nearly so."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={one}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def training(out: Path) -> str:
    """What to type to train on a manifest.

    >>> print(training(Path("my screen/manifest.parquet")))
    python train_erm.py dataloaders=manifest 'dataloaders.root_dir="my screen"'
    """
    typed = {"dataloaders.root_dir": str(out.parent)}
    if out.name != "manifest.parquet":
        typed["dataloaders.source.path"] = out.name
    plain = {key: re.fullmatch(r"[\w./-]+", value) for key, value in typed.items()}
    overrides = [
        f"{key}={text}" if plain[key] else shlex.quote(f'{key}="{_in_quotes(text)}"') for key, text in typed.items()
    ]
    return " ".join(["python train_erm.py dataloaders=manifest", *overrides])


def _in_quotes(text: str) -> str:
    """A text as Hydra reads it between double quotes: backslashes count before a quote and at the end."""
    return re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + '\\"' * (found[2] == '"'), text)


def pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """The values of an option that are written ``old=new``.

    Raises:
        ConfigError: one is not.

    >>> pairs("--channels", ["w1=DNA", "w3="])
    {'w1': 'DNA', 'w3': ''}
    """
    found = {}
    for value in values:
        old, equals, new = value.partition("=")
        if not equals or not old:
            raise ConfigError(f"{option} {value} must be written OLD=NEW, as w1=DNA")
        found[old] = new
    return found


def render(index: Index, mapped: Mapped) -> list[str]:
    """What was found, for a terminal and for the report."""
    from biomass.datasets.indexed import report

    table = report(index, mapped)
    lines = [f"layout: {index.layout}; channels: {', '.join(filter(None, index.images)) or 'in one file'}"]
    lines += [f"note: {one}" for one in [*index.notes, *mapped.notes]]
    if mapped.columns:
        lines.append(f"plate map: {', '.join(f'{column} is {where}' for column, where in mapped.columns.items())}")
    lines += ["", *_table(table), ""]
    lines += [f"{fault.kind}: {fault.message}" for fault in index.faults]
    lines += [f"sites lacking on plate {plate[1]}: {n}, the first: {one}" for plate, (n, one) in index.uneven.items()]
    lines += [f"unmatched: {one}" for one in mapped.left.lines()]
    lines += [f"left out: {one.why}: {one.files}, such as '{one.example}'" for one in index.left]
    return [*lines, "", *_drawing(mapped)]


def _table(table: pd.DataFrame) -> list[str]:
    shown = table.drop(columns="experiment") if len(set(table["experiment"])) == 1 else table
    lines = shown.to_string(index=False, max_rows=None, max_colwidth=60).splitlines()
    total = {column: int(table[column].sum()) for column in ("fields", "wells", "missing", "doubled", "unreadable")}
    plates = f"{len(table)} plate{'s' * (len(table) != 1)}"
    return [*lines, f"{plates}: " + ", ".join(f"{what} {n}" for what, n in total.items())]


def _drawing(mapped: Mapped) -> list[str]:
    """The plate of the most wells, with what is in them."""
    import pandas as pd

    from biomass.evaluation.design import plate_format
    from biomass.evaluation.page import draw_plate

    place = ["experiment", "plate", "well"]
    wells = mapped.fields[[*place, "label", "control"]].drop_duplicates(place)
    wells = wells.assign(label=wells["label"].where(wells["label"] != "", "nothing known"))
    experiments = wells.drop_duplicates("plate").set_index("plate")["experiment"]
    lone = mapped.left.map_wells[mapped.left.map_wells["treatment"] != ""]
    if len(lone):
        more = lone[["plate", "well"]].assign(label="no image", control="", experiment=lone["plate"].map(experiments))
        wells = pd.concat([wells, more], ignore_index=True)
    try:
        return draw_plate(wells, plate_format(wells["well"].tolist()))
    except DataError as error:  # wells with names of their own
        return [f"the plate cannot be drawn: {error}"]
