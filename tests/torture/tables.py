"""Tables as people write them: manifests, plate maps and profiles, with anything in their cells and bytes."""

import csv
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.torture.cases import Trial, command
from tests.torture.damage import damaged
from tests.torture.kit import profiles
from tests.workbooks import write_workbook

CELLS = (
    *(
        "",
        " ",
        "nan",
        "NaN",
        "None",
        "null",
        "NA",
        "-",
        "0",
        "-1",
        "1e400",
        "1e-400",
        "inf",
        "-inf",
        "00012",
        "1.0",
        "1,5",
        "٣",
    ),
    *(
        "A1",
        "a01",
        "AA99",
        "Z999",
        "A0",
        "P1",
        "p1 ",
        " P1",
        "P１",
        "µM",
        "é",
        "e\u0301",
        "\u202eP1",
        "\ufeffP1",
        "P\u200b1",
    ),
    *(
        "=1+1",
        "+cmd|' /C calc'!A0",
        "@SUM(1)",
        "\x1b[31mred",
        "\x07",
        "a\x00b",
        "a\nb",
        "a\rb",
        'a"b',
        "a,b",
        "a;b",
        "a\tb",
    ),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "-x",
        "images",
        "http://127.0.0.1:9/x.png",
        "s3://b/x.tif",
        "~/x.npy",
        "a" * 5000,
    ),
    *("{plate}", "${oc.env:HOME}", "%s%s%n", "<script>alert(1)</script>", "'; DROP TABLE x", "\ud83d\ude00"),
)
"""What may stand in a cell."""


def _text(rows: list[list[str]], rng: random.Random) -> tuple[str, bytes]:
    """A table as bytes, in one of the ways in which programs write them."""
    how = rng.choice(
        ("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "semicolons", "tabs", "quoted", "crlf", "cr", "no end")
    )
    buffer = io.StringIO()
    separator = {"semicolons": ";", "tabs": "\t"}.get(how, ",")
    end = {"crlf": "\r\n", "cr": "\r"}.get(how, "\n")
    quoting = csv.QUOTE_ALL if how == "quoted" else csv.QUOTE_MINIMAL
    csv.writer(buffer, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows)
    text = buffer.getvalue().removesuffix("\n" if how == "no end" else "")
    code = how if how in ("utf-8-sig", "utf-16", "latin-1") else "utf-8"
    return how, text.encode(code, "surrogatepass" if code != "latin-1" else "replace")


def _rows(file: Path) -> list[list[str]]:
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def _cell(rng: random.Random) -> str:
    text = (
        rng.choice(CELLS)
        if rng.random() < 0.8
        else "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randint(1, 12)))
    )
    return text.encode("utf-8", "replace").decode()


def _changed(rng: random.Random, rows: list[list[str]]) -> tuple[str, int | None]:
    """Change a table in place: how, and the one data row that it concerns, if it is one."""
    at, column = rng.randrange(1, len(rows)), rng.randrange(len(rows[0]))
    kind = rng.choice(
        (
            "cell",
            "cell",
            "cell",
            "cell",
            "header",
            "no column",
            "column twice",
            "row twice",
            "short row",
            "long row",
            "no rows",
            "shuffled",
            "blank rows",
        )
    )
    if kind == "cell":
        rows[at][column] = _cell(rng)
        return f"{rows[0][column]} of row {at - 1} is {rows[at][column][:40]!r}", at - 1
    if kind == "header":
        rows[0][column] = _cell(rng)
    elif kind == "no column":
        for row in rows:
            del row[column]
    elif kind == "column twice":
        for row in rows:
            row.append(row[column])
    elif kind == "row twice":
        rows.append(list(rows[at]))
    elif kind == "short row":
        del rows[at][rng.randrange(1, len(rows[at])) :]
        return kind, at - 1
    elif kind == "long row":
        rows[at] += ["x"] * rng.randint(1, 3)
        return kind, at - 1
    elif kind == "no rows":
        del rows[1:]
    elif kind == "shuffled":
        rows[1:] = rng.sample(rows[1:], len(rows) - 1)
    else:
        rows[at:at] = [[""] * len(rows[0])] * rng.randint(1, 3)
    return kind, None


def _open(manifest: Path) -> tuple[pd.DataFrame, np.ndarray]:
    from biomass.datasets.manifest import load_manifest

    screen = load_manifest(manifest)
    return screen.table, screen.read(np.arange(len(screen)))


def manifest(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A manifest of which something is changed: rows that are not concerned stay as they are."""
    shutil.copytree(kit / "screen", folder / "screen")
    file = folder / "screen" / "manifest.csv"
    rows = _rows(file)
    row: int | None = None
    if rng.random() < 0.25:
        how, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        how, row = _changed(rng, rows)
        form, data = _text(rows, rng)
        how = f"{how}, written with {form}"
        file.write_bytes(data)

    def check(found: tuple[pd.DataFrame, np.ndarray]) -> str | None:
        table, pixels = found
        whole, images = _open(kit / "screen" / "manifest.csv")
        if not np.issubdtype(pixels.dtype, np.integer):
            return f"{how}: images of type {pixels.dtype}"
        if row is None:
            return None
        if len(table) not in (len(whole), len(whole) - 1):
            return f"{how}: {len(table)} rows of {len(whole)}"
        if len(table) == len(whole):
            same = np.arange(len(whole)) != row
            if not np.array_equal(pixels[same], images[same]):
                return f"{how}: the pixels of other rows are others"
            columns = [c for c in ("experiment", "plate", "well", "site", "split") if c in table]
            other = [c for c in columns if list(table[c].astype(str)[same]) != list(whole[c].astype(str)[same])]
            return f"{how}: {', '.join(other)} of other rows is other" if other else None
        return f"{how}: a row is left out, and no word"

    return Trial(f"manifest: {how}", lambda: _open(file), check)


def plate_map(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A plate map, as a list or drawn as a plate, CSV or Excel, of which something is changed."""
    from biomass.datasets.plate_map import read_plate_map

    file = folder / f"map.{rng.choice(('csv', 'csv', 'xlsx', 'txt', 'tsv'))}"
    if rng.random() < 0.5:
        rows = [["plate", "well", "compound", "dose"]]
        rows += [
            [p, f"{r}{c:02d}", rng.choice(("DMSO", "taxol", "x")), "1.5"]
            for p in ("P1", "P2")
            for r in "AB"
            for c in range(1, 5)
        ]
    else:
        rows = [
            ["", *map(str, range(1, 13))],
            *([letter, *(rng.choice(("DMSO", "taxol", "")) for _ in range(12))] for letter in "ABCDEFGH"),
        ]
    wells = len(rows)
    how, _ = _changed(rng, rows)
    if file.suffix == ".xlsx":
        clean = [["".join(c for c in cell if c.isprintable())[:3000] for cell in row] for row in rows]
        write_workbook(file, {"Sheet1": clean})
        if rng.random() < 0.5:
            kind, data = damaged(rng, file.read_bytes())
            file.write_bytes(data)
            how = f"{how}, {kind}"
    else:
        form, data = _text(rows, rng)
        file.write_bytes(data if rng.random() < 0.7 else damaged(rng, data)[1])
        how = f"{how}, {form}"

    def check(found: Any) -> str | None:
        table = found.wells
        if len(table) > 400:
            return f"{how}: {len(table)} wells of {wells} rows"
        bad = table["well"].astype(str).str.contains(r"[\x00-\x1f]")
        return f"{how}: a well is called {table['well'][bad].iloc[0]!r}" if bad.any() else None

    return Trial(f"plate map {file.name}: {how}", lambda: read_plate_map(file), check)


def any_profiles(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """Profiles of which something is changed: features that are not concerned stay as they are."""
    from biomass.judgement.read import read_profiles

    table = profiles()
    file = folder / "p.csv"
    rows = [list(map(str, table)), *(list(map(str, row)) for row in table.to_numpy())]
    row: int | None = None
    binary = rng.random() < 0.3
    if binary:
        file = folder / "p.parquet"
        table.to_parquet(file)
        how, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        how, row = _changed(rng, rows)
        form, data = _text(rows, rng)
        file.write_bytes(data)
        how = f"{how}, {form}"

    def check(found: Any) -> str | None:
        if not np.isfinite(found.features).all():
            return f"{how}: features that are not finite, and no word"
        if row is None or len(found.wells) != len(table) or found.features.shape[1] != 6:
            return None
        same = np.arange(len(table)) != row
        was = table[[f"f{i}" for i in range(6)]].to_numpy(np.float32)
        return (
            None
            if np.allclose(found.features[same], was[same], atol=1e-6)
            else f"{how}: features of other rows are others"
        )

    return Trial(f"profiles {file.name}: {how}", lambda: read_profiles(file), check)


def whole_evaluate(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """The whole of ``biomass evaluate`` on profiles with odd numbers."""
    table = profiles(features=4, plates=rng.choice((1, 2, 4)), wells=rng.choice((4, 8, 12)))
    column, row = f"f{rng.randrange(4)}", rng.randrange(len(table))
    kinds: dict[str, Callable[[], object]] = {
        "not a number": lambda: table.__setitem__(column, table[column].mask(table.index == row)),
        "infinite": lambda: table.__setitem__(column, table[column].mask(table.index == row, np.inf)),
        "huge": lambda: table.__setitem__(column, table[column] * 1e300),
        "tiny": lambda: table.__setitem__(column, table[column] * 1e-300),
        "huge in one row": lambda: table.__setitem__(column, table[column].mask(table.index == row, 1e308)),
        "constant": lambda: table.__setitem__(column, 1.0),
        "all constant": lambda: [table.__setitem__(f"f{i}", 0.0) for i in range(4)],
        "two alike": lambda: table.__setitem__("f0", table["f1"]),
        "one plate": lambda: table.__setitem__("Metadata_Plate", "P"),
        "no controls": lambda: table.__setitem__("Metadata_treatment", "c1"),
        "all controls": lambda: table.__setitem__("Metadata_treatment", "DMSO"),
        "as it is": lambda: None,
    }
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    table.to_csv(folder / "p.csv", index=False)
    correction = rng.choice(("none", "standardize", "whiten", "tvn", "combat"))
    words = (
        "p.csv",
        "--run-name",
        "r",
        "--map",
        "none",
        "--correction",
        "none",
        *(("--correction", correction) if correction != "none" else ()),
    )

    def check(_: None) -> str | None:
        text = (folder / "runs" / "r" / "metrics.json").read_text()
        bad = [word for word in ("NaN", "Infinity") if word in text]
        return f"{kind}: {bad[0]} in metrics.json" if bad else None

    return Trial(f"evaluate {' '.join(words)}, {kind} in {column}", command("evaluate", *words), check)
