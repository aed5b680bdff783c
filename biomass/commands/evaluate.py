"""Judge profiles of any tool: is there a batch effect, and is it gone? Metrics, corrections, a verdict, one page.

    biomass evaluate profiles.parquet
    biomass evaluate running=vanilla.parquet plate=ben.parquet --run-name my_screen
    biomass evaluate wells.csv.gz --metadata images.csv --metadata moa.csv --set 'control.negative=[DMSO]'
    biomass evaluate runs/my_profiles

``<table>`` is a table of profiles of wells, fields or cells: of ``biomass profile``, of CellProfiler, pycytominer or
DeepProfiler, AnnData, or any other whose features are numbers. Columns are found by their usual names, and the page
says which were taken; others are named: ``--set columns.treatment='[compound, dose]' --set columns.plate=barcode --set
'control.negative=[DMSO]'``. Several tables, each with a name and ``=`` before it, are the rows of one factorial table
{statistics of the encoder} x {corrections of the profiles}; the folder of a ``biomass profile`` holds them by name.
Shuffled labels, and cells counted and nothing else, are rows of it, too, as is an untrained encoder that is given
as ``untrained=<table>``. The page says which of them are missing.

Below runs/<run name>/ it writes metrics.json, table.csv (statistics, correction, metric, value, low, high, null, …),
ladder.csv, wells.parquet, position.csv, drift.csv and report.html, a page that opens without a network.
"""

import hashlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomass.atomic import check_place
from biomass.commands import Parser, parse_settings, run_on_files
from biomass.errors import ConfigError, did_you_mean, say
from biomass.run_lock import own
from biomass.runs import run_name
from biomass.words import words_in

PLACE = 80

PACKAGES = ("biomass", "numpy", "pandas", "scikit-learn", "copairs", "pycytominer", "combatlearn", "umap-learn")
"""Whose versions the page gives."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("evaluate", __doc__)
    corrections, maps = words_in("judgement.corrections.CORRECTIONS"), words_in("judgement.shown.MAPS")
    parser.add_argument("tables", nargs="+", help="tables of profiles, each with or without name= before it")
    parser.add_argument("--out", type=Path, help="the folder to write to; runs/<run name> if left out")
    parser.add_argument("--run-name", help="name of the folder below runs; evaluate and the time if left out")
    parser.add_argument(
        "--metadata", type=Path, action="append", default=[], help="a table to join, such as a plate map"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="how to read the tables")
    parser.add_argument(
        "--correction", action="append", help=f"compare these alone: {', '.join(corrections)}; give it several times"
    )
    parser.add_argument("--pairs", type=Path, help="relationships that are known: two columns of compounds or genes")
    parser.add_argument(
        "--fit-first", type=int, help="plates that corrections are fitted on, to be judged on later ones"
    )
    parser.add_argument(
        "--earlier",
        action="append",
        default=[],
        metavar="[NAME=]TABLE",
        help="the same wells, made of fewer plates: drift",
    )
    parser.add_argument("--map", choices=maps, default="umap", help="how wells are laid out in the plane")
    parser.add_argument("--seed", type=int, default=0)
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = parser.parse_intermixed_args(words)
    from biomass.judgement.evaluate import DEFAULT, Settings, evaluate
    from biomass.judgement.read import read_profiles
    from biomass.judgement.relationships import read_pairs
    from biomass.report.files import PAGE
    from biomass.report.page import write_report

    with run_on_files("nothing was written"):
        folder = args.out or Path("runs") / run_name(args.run_name, "evaluate")
        check_out(folder)
        own(folder, "store")
        check_text(words)
        settings = parse_settings(args.set)
        for key in settings:
            if key not in ("columns", "control"):
                raise ConfigError(f"--set {key}=… is unknown; {did_you_mean(key, ('columns', 'control'))}")
        how = settings.get("columns"), settings.get("control")
        files, before = named_tables(args.tables), named_tables(args.earlier)
        unknown = next((name for name in before if name not in files), None)
        if unknown is not None:
            raise ConfigError(f"--earlier has profiles of '{unknown}', and the tables are {', '.join(files)}")
        judged = Settings(
            tuple(args.correction or DEFAULT),
            None if args.pairs is None else read_pairs(args.pairs),
            args.fit_first,
            args.map,
            args.seed,
            {name: read_profiles(file, args.metadata, *how) for name, file in before.items()},
        )
        judged.check()
        tables = {name: read_profiles(file, args.metadata, *how) for name, file in files.items()}
        evaluate(tables, folder, judged, about(files, words))
    with run_on_files(f"what was found stands in {folder}, without a page; biomass report makes it"):
        page = write_report([folder], folder / PAGE)
        say(f"{page} says it with pictures; table.csv and metrics.json beside it say the same to programs")


def check_text(words: Sequence[str]) -> None:
    """Make sure that the command can be written down.

    Raises:
        ConfigError: a word of it is not UTF-8, as the name of a file may be.
    """
    for word in words:
        if not word.isprintable() and word.encode(errors="replace").decode() != word:
            raise ConfigError(f"{word!a} is not UTF-8, and cannot be written down: rename the file")


def check_out(folder: Path) -> None:
    """Make sure that the files can be written, before minutes of work find out that they cannot.

    Raises:
        ConfigError: they cannot.
    """
    from biomass.judgement.results import FILES
    from biomass.report.files import PAGE

    check_place(folder, "store")
    for file in (folder / name for name in (*FILES, PAGE)):
        if file.is_dir():
            raise ConfigError(f"cannot write '{file}' (it is a folder)", "store")


def named_tables(given: Sequence[str]) -> dict[str, Path]:
    """Name → file, of words of the command line. The folder of a ``biomass profile`` holds several.

    Raises:
        ConfigError: two have the same name, or there is no such file.
    """
    files: dict[str, Path] = {}
    for word in given:
        name, equals, path = word.partition("=")
        file = Path(word) if not equals or Path(word).exists() else Path(path)
        if not file.exists():
            raise ConfigError(
                f"there is no '{file}'; give a table of profiles, or the folder of a run of biomass profile"
            )
        if not file.is_file() and not file.is_dir():
            raise ConfigError(
                f"'{file}' is neither a file nor a folder, and cannot be read twice; save the table first"
            )
        found = {name: file} if file != Path(word) else profiles_of(file)
        for one, of_it in found.items():
            if one in files:
                raise ConfigError(
                    f"'{files[one]}' and '{of_it}' are both called '{one}'; write another name and '=' before one"
                )
            files[one] = of_it
    return files


def profiles_of(file: Path) -> dict[str, Path]:
    """Name → file of the profiles at a place: those of wells in the folder of a run, under their words."""
    from biomass.evaluation.profiles import COMPARED, RAW
    from biomass.judgement.raw import OWN

    wells = file / OWN[0]
    if not wells.is_file():
        return {"profiles": file}
    raw = file / RAW
    others = [one for one in sorted(file.glob(COMPARED.format(word="*"))) if one != raw]
    return {_word(one): one for one in (raw if raw.is_file() else wells, *others)}


def _word(file: Path) -> str:
    """The word for statistics that profiles were made under, as their file says; else the name of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from biomass.evaluation.profiles import STATISTICS

    try:
        about: dict[bytes, bytes] = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):  # said when it is read as a table
        about = {}
    return about.get(STATISTICS.encode(), file.stem.encode()).decode()


def about(files: dict[str, Path], arguments: Sequence[str]) -> dict[str, Any]:
    """What the page says of where it comes from."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "command": shlex.join(["biomass", "evaluate", *arguments]),
        "versions": {"python": platform.python_version()} | versions,
        "table": {name: str(file) for name, file in files.items()},
        "fingerprint": {name: fingerprint(file) for name, file in files.items()},
    }


def version(package: str) -> str:
    """The version of a package; of what runs from a checkout, there may be none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def fingerprint(file: Path) -> str:
    """The first 16 digits of the SHA-256 of a file, or of all files of a folder."""
    found = hashlib.sha256()
    for one in sorted(path for path in file.rglob("*") if path.is_file()) if file.is_dir() else [file]:
        with one.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    main()
