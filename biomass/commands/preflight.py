"""Say before the screen which statistics its plate map allows, and why; no model, no image is needed.

    biomass preflight <table> [--set columns.plate=barcode ...] [--by experiment] [--out folder]

``<table>`` is a plate map (a row a well), a manifest (a row an image or a cell), or the metadata of RxRx1. Columns are
found by their usual names, and the page says which were taken; others are named as in the YAML: ``--set
columns.treatment='[compound, dose]' --set control.column=compound --set 'control.negative=[DMSO]' --set
'control.positive=[taxol]'``. Where nothing says which wells are positive controls, treatments that are on nearly all
plates, while most are on few, are taken for them.

The page holds what the plates hold, how far their compositions differ, what treatments are confounded with, and for
every word for statistics the accuracy to be expected relative to running averages, by curves that were measured on
other screens (``--curves``: by those of a stress test of one's own). ``<out>/preflight.json`` says the same to programs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from biomass.atomic import whole_file
from biomass.commands import Parser, parse_settings, run_on_files
from biomass.config import run_name
from biomass.datasets.plate_map import read_plate_map
from biomass.errors import ConfigError, did_you_mean
from biomass.evaluation.curves import read_curves
from biomass.evaluation.design import confounding, count_wells, find_references, plate_format
from biomass.evaluation.page import render
from biomass.evaluation.verdict import Judgement, group_wells, judge, reasons, recommend, summarize
from biomass.screen import PLATE

PLACE = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("preflight", __doc__)
    parser.add_argument("table", type=Path, help="a plate map, or a manifest")
    parser.add_out("a folder for preflight.json; runs/<run name> if left out")
    parser.add_argument("--run-name", help="name of the folder below runs; preflight and the time if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="how to read the table")
    parser.add_argument("--by", nargs="+", default=["experiment"], help="columns of coarser groups than the plate")
    parser.add_argument("--copies", type=int, help="of a map without plates: on how many plates wells lie so")
    parser.add_argument("--format", type=int, help="wells of a plate, 96, 384 or 1536; found out if left out")
    parser.add_argument("--curves", type=Path, help="measured curves of your own")
    args = parser.parse(arguments)
    with run_on_files("nothing was written"):
        settings = parse_settings(args.set)
        unknown = next((key for key in settings if key not in ("columns", "control")), None)
        if unknown is not None:
            raise ConfigError(f"--set {unknown}=… is unknown; {did_you_mean(unknown, ('columns', 'control'))}")
        found = read_plate_map(args.table, copies=args.copies, **settings)
        columns, notes = dict(found.columns), list(found.notes)
        names = dict.fromkeys([*PLATE, "well", "treatment", "label", "control", *args.by])
        missing = [column for column in args.by if column not in found.wells]
        if missing:
            raise ConfigError(f"cannot group by '{missing[0]}'; {did_you_mean(missing[0], found.wells.columns)}", "by")
        wells = count_wells(found.wells[list(names)])
        if "control" not in settings and not (wells["control"] == "positive").any():
            references = find_references(wells)
            wells.loc[wells["treatment"].isin(references) & (wells["control"] == ""), "control"] = "positive"
            if references:
                columns["control"] += f"; positive {', '.join(map(repr, references))}, which nearly all plates hold"
        size = plate_format(wells["well"].tolist(), args.format) if (wells["well"] != "").all() else None
        curves = read_curves(args.curves)
        groups = group_wells(wells, args.by)
        judgements = judge(groups, curves)
        confounded = {group.name: confounding(wells, size if group.by == PLATE else None, group.by) for group in groups}
        why = reasons(judgements, confounded)
        kind = "" if size is None else f" of {size} wells"
        title = f"{args.table.name}: {len(groups[0].table)} plates{kind}, {wells['treatment'].nunique()} treatments"
        page = render(title, columns, notes, wells, size, groups, confounded, judgements, why)
        summary = summarize(judgements, groups, confounded)
        best = recommend(judgements)
        summary["verdict"]["override"] = override(best)
        folder = args.out or Path("runs") / run_name(args.run_name, "preflight")
        with whole_file(folder / "preflight.json", "store") as part:
            part.write_text(json.dumps({"table": str(args.table), "columns": columns} | summary, indent=1), "utf-8")
        print(f"{page}\n\n  {override(best)}\n\n{folder / 'preflight.json'} says the same to programs")


def override(one: Judgement) -> str:
    """What to type for a way of taking statistics, in a script that trains or applies a network.

    >>> override(Judgement("controls", ("experiment",), "all", "safe", None, ""))
    'statistics.eval=controls statistics.by=[experiment] statistics.controls=all'
    """
    by = f" statistics.by=[{','.join(one.by)}]" if one.by else ""
    kind = f" statistics.controls={one.controls}" if one.controls == "all" else ""
    return f"statistics.eval={one.word}{by}{kind}"
