"""Say before the screen which statistics its plate map allows, and why; no model, no image is needed.

    biomass preflight <table> [--set columns.plate=barcode ...] [--by experiment] [--out folder]

``<table>`` is a plate map (a row a well), a manifest (a row an image or a cell), or the metadata of RxRx1. Columns are
found by their usual names, and the page says which were taken; others are named as in the YAML: ``--set
columns.treatment='[compound, dose]' --set control.column=compound --set 'control.negative=[DMSO]' --set
'control.positive=[taxol]'``. Where nothing says which wells are positive controls, treatments that are on nearly all
plates, while most are on few, are taken for them.

The page holds what the plates hold, how far their compositions differ, what treatments are confounded with, and for
every word for statistics the accuracy to be expected relative to running averages, by curves that were measured on
other screens (``--curves``: those of a stress test of one's own). ``<out>/preflight.json`` says the same to programs.
``--simulate`` also draws a screen with this very plate map, on which networks can be trained and tested at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from biomass.atomic import whole_file
from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, did_you_mean, say
from biomass.run_lock import own
from biomass.runs import run_name

if TYPE_CHECKING:
    import pandas as pd

    from biomass.evaluation.curves import Curves
    from biomass.evaluation.verdict import Judgement, Verdict

PLACE = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("preflight", __doc__)
    parser.add_argument("table", type=Path, help="a plate map, or a manifest")
    parser.add_out("a folder for preflight.json; runs/<run name> if left out")
    parser.add_argument("--run-name", help="name of the folder below runs; preflight and the time if left out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="how to read the table")
    parser.add_argument("--by", action="append", help="a column of groups that are coarser than the plate; experiment")
    parser.add_argument("--copies", type=int, help="of a map without plates: on how many plates wells lie so")
    parser.add_argument("--format", type=int, help="wells of a plate, 96, 384 or 1536; found out if left out")
    parser.add_argument(
        "--curves", type=Path, nargs="+", help="measured curves of your own: a table, or folders of stress tests"
    )
    parser.add_argument("--simulate", action="store_true", help="draw a screen with this plate map")
    args = parser.parse(arguments)
    from biomass.datasets.plate_map import read_plate_map
    from biomass.evaluation.design import count_wells
    from biomass.evaluation.page import render
    from biomass.evaluation.verdict import Verdict
    from biomass.screen import PLATE

    by = args.by or list(PLATE[:1])
    with run_on_files("nothing was written"):
        folder = args.out or Path("runs") / run_name(args.run_name, "preflight")
        own(folder, "store")
        settings = parse_settings(args.set)
        for key in settings:
            if key not in ("columns", "control"):
                raise ConfigError(f"--set {key}=… is unknown; {did_you_mean(key, ('columns', 'control'))}")
        found = read_plate_map(args.table, by=by, copies=args.copies, **settings)
        wells, columns = take_references(count_wells(found.wells), found.columns, "control" in settings)
        verdict = Verdict.on(wells, by, args.format, own_curves(args.curves))
        notes = list(found.notes)
        if len(verdict.groups[0].table) == 1:
            notes.append("with one plate it cannot be told how far the compositions of plates differ")
        page = render(title(args.table.name, verdict), columns, notes, verdict)
        typed, trained = override(verdict.best), training(verdict.best)
        summary = {"table": str(args.table), "columns": columns, "override": typed, "training": trained}
        summary |= verdict.plain()
        store = simulate(wells, folder) if args.simulate else None
        with whole_file(folder / "preflight.json", "store") as part:
            part.write_text(json.dumps(summary, indent=1, ensure_ascii=False), "utf-8")
        encoding = sys.stdout.encoding or "utf-8"
        page = page.encode(encoding, "replace").decode(encoding)  # a file on Windows need not take Greek letters
        say(f"{page}\n\n  at inference: {typed}\n  in training:  {trained}\n")
        if verdict.promising is not None:
            say(f"  to try:       {override(verdict.promising)}, with {training(verdict.promising)}\n")
        say(f"{folder / 'preflight.json'} says the same to programs")
        if store is not None:
            say(f"{store} holds a simulated screen with this plate map: dataloaders=packed dataloaders.store={store}")


def take_references(wells: pd.DataFrame, columns: Mapping[str, str], told: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """The wells with their positive controls, and what was taken for what.

    Args:
        wells: a row a well.
        columns: what was taken for what.
        told: the user says which wells are controls; otherwise, where no well is a positive one, references are taken.
    """
    from biomass.evaluation.design import find_references

    if told or (wells["control"] == "positive").any():
        return wells, dict(columns)
    references = find_references(wells)
    positive = wells["treatment"].isin(references) & (wells["control"] == "")
    said = f"{columns['control']}; positive {', '.join(map(repr, references))}, which nearly all plates hold"
    control = wells["control"].mask(positive, "positive")
    return wells.assign(control=control), dict(columns) | ({"control": said} if references else {})


def title(name: str, verdict: Verdict) -> str:
    """The title of the page."""
    plates = len(verdict.groups[0].table)
    kind = "" if verdict.size is None else f" of {verdict.size} wells"
    treated = verdict.wells.loc[verdict.wells["control"] == "", "treatment"].nunique()
    return f"{name}: {plates} plate{'s' * (plates != 1)}{kind}, {treated} treatment{'s' * (treated != 1)}"


def own_curves(paths: Sequence[Path] | None) -> Curves:
    """The curves of the package, of a table, or of stress tests on one screen.

    Raises:
        DataError: they cannot be read.
    """
    from biomass.evaluation.curves import Curves, curves_of_stress, read_curves

    if paths and any(path.is_dir() for path in paths):
        return Curves(curves_of_stress([path / "stress.json" for path in paths]))
    if paths and len(paths) > 1:
        raise ConfigError(f"'{paths[1]}' is a second table of curves; give one, or folders of stress tests")
    return read_curves(paths[0] if paths else None)


def simulate(wells: pd.DataFrame, folder: Path) -> Path:
    """The simulated screen of a plate map, as a packed store below a folder, drawn unless it is there already."""
    from biomass.pixels.packed_writer import pack
    from biomass.simulation.plate_map import Look, simulate_plate_map

    look = Look()
    text = look.to_json() + wells.drop(columns="images").to_csv(index=False)
    store = folder.absolute() / f"simulated-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    if not store.exists():
        pack(simulate_plate_map(wells, look), store, workers=0)
    return store


def training(one: Judgement) -> str:
    """What to type for training: batches of the same groups, as most networks were trained that were measured."""
    return f"statistics.train={'plate' if one.by else 'running'}"


def override(one: Judgement) -> str:
    """What to type for a way of taking statistics, in a script that trains or applies a network.

    >>> from biomass.evaluation.verdict import Judgement
    >>> override(Judgement("controls", ("experiment",), "all", "safe", None, ""))
    'statistics.eval=controls statistics.by=[experiment] statistics.controls=all'
    """
    by = f" statistics.by=[{','.join(one.by)}]" if one.by else ""
    kind = f" statistics.controls={one.controls}" if one.controls == "all" else ""
    return f"statistics.eval={one.word}{by}{kind}"
