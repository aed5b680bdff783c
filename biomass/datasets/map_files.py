"""The files of plate maps: tables and drawn plates, one file or many, put together to one table with a row a well.

A file holds a table with a column of wells, or plates drawn as matrices: a line of column numbers, below it a line for
every row of wells that begins with its letter. Above each matrix a line may say which plate or what it shows. Beside
the maps there may be a table of barcodes (on which map each plate was made) and a table of compounds (a row each).
What a file is, its contents say. What it says of plates may be missing: then its name, or that of a sheet, says it.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.grouping import factorize
from biomass.identifiers import Place, check_once, find, names, normal, well
from biomass.table_files import TableFile, as_numbers, read_cells, read_table

USUAL: Mapping[str, tuple[str, ...]] = {
    "experiment": ("experiment", "batch", "week", "batch_number", "experiment_id", "run"),
    "plate": (
        "plate",
        "barcode",
        "plate_barcode",
        "assay_plate_barcode",
        "plate_id",
        "plate_name",
        "plateid",
        "plate_map_name",
    ),
    "well": ("well", "well_position", "well_name", "well_pos", "wellid", "well_id", "wellname", "position"),
    "treatment": (
        "treatment",
        "perturbation",
        "sirna",
        "broad_sample",
        "compound",
        "compound_name",
        "compound_id",
        "pert_iname",
        "drug",
        "gene",
    ),
    "dose": ("concentration", "dose", "conc", "concentration_um", "dose_um", "conc_um", "mmoles_per_liter"),
    "label": ("label", "moa", "mechanism", "class"),
    "control": ("control", "control_type", "well_type", "pert_type"),
}
"""What columns are called, in the order in which they are looked for. ``Metadata_`` before a name, capitals and blanks
do not matter."""

ROWS = ("row", "well_row", "plate_row", "wellrow")
COLUMNS = ("column", "col", "well_column", "well_col", "plate_column", "wellcolumn")
"""What the row and the column of a well are called where they stand apart."""

MAPS = ("plate_map_name", "platemap_name", "plate_map", "platemap", "plate_map_id", "platemap_id", "map", "layout")
"""What a table of barcodes calls the column of maps."""

FORMATS = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Wells of a plate: how many rows and columns it has."""

_ENDINGS = (".csv", ".tsv", ".txt", ".tab", ".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".parquet")
_BEGINNING = 200  # rows of a text in which the first matrix begins, if it has one
_COMMA = r"([+-]?\d+(,\d+)?([eE][+-]?\d+)?)?"
_LETTERS = re.compile(r"[A-Z]|A[A-F]", re.IGNORECASE)
_NUMBER = re.compile(r"0*([1-9]\d?)(\.0+)?")
_SHOWN = 3


class Matrix(NamedTuple):
    """A plate that is drawn in the cells of a file.

    Attributes:
        texts: what is written above it and in its corner, from top to bottom.
        wells: their names.
        values: what each holds.
        size: how many wells a plate has that is drawn so.
        row: the number of the line of column numbers, as a spreadsheet shows it.
    """

    texts: list[str]
    wells: list[str]
    values: list[str]
    size: int
    row: int


@dataclass
class MapTable:
    """The maps of some files as one table.

    Attributes:
        path: the file, or the folder, for messages.
        frame: a row a well (an image, a cell).
        place: how to call a row in a message.
        plate: the column of plates that the files' own names, or a table of barcodes, made; None if there is none.
        plate_said: where that comes from.
        sizes: of plates that are drawn: how many wells each has.
        notes: what else a reader of the result must know, a sentence each.
    """

    path: Path
    frame: pd.DataFrame
    place: Place
    plate: str | None = None
    plate_said: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(map(str, self.frame.columns))


def short_name(column: str) -> str:
    """What a column is called without capitals, blanks, units' brackets and ``Metadata_`` before it.

    >>> [short_name(one) for one in ("Metadata_Plate", "Image_Metadata_Well_DAPI", "Concentration [µM]")]
    ['plate', 'well', 'concentration_um']
    """
    text = re.sub(r"[^0-9a-z]+", "_", column.strip().lower().replace("µ", "u").replace("μ", "u")).strip("_")
    return re.sub(r"_dapi$", "", re.sub(r"^(image_)?metadata_", "", text))


def usual_column(columns: Sequence[str], kind: str, *, advice: str = "columns") -> str | None:
    """The column that has one of the :data:`USUAL` names of a kind; None where there is none.

    Raises:
        ConfigError: it may be one of two.
    """
    short: dict[str, list[str]] = {}
    for one in columns:
        short.setdefault(short_name(one), []).append(one)
    like = next((short[one] for one in USUAL[kind] if one in short), list[str]())
    if len(like) > 1:
        raise ConfigError(f"'{kind}' may be column '{like[0]}' or '{like[1]}': say which", advice)
    return like[0] if like else None


def row_and_column(columns: Sequence[str]) -> tuple[str, str] | None:
    """The columns that say the row and the column of a well apart; None where there are none.

    >>> row_and_column(["Metadata_Row", "Col", "compound"])
    ('Metadata_Row', 'Col')
    """
    short = {short_name(one): one for one in columns}
    found = [next((short[one] for one in listed if one in short), None) for listed in (ROWS, COLUMNS)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def find_matrices(rows: Sequence[Sequence[str]]) -> list[Matrix]:
    """The plates that are drawn in the cells of a file, from top to bottom and from left to right.

    >>> [found] = find_matrices([["dose"], ["", "1", "2", "3"], ["A", "0", "5", "9"], ["B", "1", "", "x"]])
    >>> found.texts, found.wells[:2], found.values, found.size
    (['dose'], ['A01', 'A02'], ['0', '5', '9', '1', '', 'x'], 6)
    """
    found: list[Matrix] = []
    used, next_row = 0, 0
    for i, row in enumerate(rows):
        if i < next_row:
            continue
        for start, numbers in _runs(row):
            letters: list[str] = []
            for line in rows[i + 1 :]:
                letter = line[start - 1].strip().upper() if len(line) >= start else ""
                if not _LETTERS.fullmatch(letter) or (letters and _order(letter) <= _order(letters[-1])):
                    break
                letters.append(letter)
            if len(letters) < 2 or _LETTERS.fullmatch(row[start - 1].strip()):
                continue  # the last: rows of a table of letters and numbers
            lines = rows[i + 1 : i + 1 + len(letters)]
            values = [
                line[start + k].strip() if start + k < len(line) else "" for line in lines for k in range(len(numbers))
            ]
            above = [_titles(line, start, len(numbers)) for line in rows[used:i]]
            texts = [text for line in above for text in line] + [row[start - 1].strip()]
            size = plate_size(max(map(_order, letters)), max(numbers))
            found.append(
                Matrix(
                    [text for text in texts if re.search(r"[^\W_]", text)],
                    [well(f"{letter}{number}") for letter in letters for number in numbers],
                    values,
                    size,
                    i + 1,
                )
            )
            next_row = max(next_row, i + 1 + len(letters))
        if next_row > i:
            used = next_row
    return found


def _runs(row: Sequence[str]) -> list[tuple[int, list[int]]]:
    """Where column numbers stand in a row, one greater than the other: first position and the numbers."""
    runs: list[tuple[int, list[int]]] = []
    last = -2
    for i, value in enumerate(row):
        number = _NUMBER.fullmatch(value.strip())
        if not number or i == 0 or int(number[1]) > FORMATS[1536][1]:
            continue
        if i == last + 1 and int(number[1]) == runs[-1][1][-1] + 1:
            runs[-1][1].append(int(number[1]))
        else:
            runs.append((i, [int(number[1])]))
        last = i
    return [run for run in runs if len(run[1]) > 1]


def _titles(line: Sequence[str], start: int, width: int) -> list[str]:
    """What is written above a matrix: in its columns, or anywhere if it is the only text of the line."""
    texts = [(i, text.strip()) for i, text in enumerate(line) if text.strip()]
    own = [text for i, text in texts if start - 1 <= i < start + width]
    return own if own or len(texts) > 1 else [text for _, text in texts]


def _order(letter: str) -> int:
    """The number of a row of wells, from 1."""
    return ord(letter[-1]) - 64 + 26 * (len(letter) - 1)


def plate_size(rows: int, columns: int) -> int:
    """How many wells the smallest plate has that has as many rows and columns.

    >>> plate_size(8, 12), plate_size(8, 13)
    (96, 384)
    """
    return next(size for size, (height, width) in FORMATS.items() if rows <= height and columns <= width)


# --- from files to one table ------------------------------------------------------------------------------------------


def _without_ending(name: str) -> str:
    """The name of a file without its ending, if it has one that a table has."""
    short = name.removesuffix(".gz")
    return next((short[: -len(one)] for one in _ENDINGS if short.lower().endswith(one)), name)


@dataclass
class _Part:
    """What one sheet of one file holds: a table, or drawn plates."""

    path: Path
    sheet: str
    table: TableFile | None
    matrices: list[Matrix]
    commas: bool
    """Whether a comma may stand for a decimal point."""

    @property
    def stem(self) -> str:
        """The name of the file without its ending."""
        return _without_ending(self.path.name)

    @property
    def called(self) -> str:
        return f"'{self.path.name}'" + (f", sheet '{self.sheet}'" if self.sheet else "")


def read_map_files(
    path: str | Path | Sequence[str | Path],
    *,
    columns: Mapping[str, Any],
    barcodes: str | Path | None = None,
    compounds: str | Path | None = None,
    plates: Sequence[str] | None = None,
) -> MapTable:
    """Read the files of a plate map and put them together.

    Args:
        path: a file, several, or a folder of them.
        columns: what columns are called, as :func:`.read_plate_map` takes them.
        barcodes: a table of the plates and the map of each; found by its columns if it is one of the files.
        compounds: a table with a row a compound, whose columns are joined; found likewise.
        plates: the plates there are; if left out, all that the files name.

    Raises:
        ConfigError, DataError: a file cannot be read, or does not say of what plate it is.
    """
    files, where = _list_files(path)
    beside = [Path(one) for one in (barcodes, compounds) if one is not None]
    files = [file for file in files if file.resolve() not in [one.resolve() for one in beside]]
    notes: list[str] = []
    maps, codes, sheets = _sort_parts([part for file in files for part in _read_parts(file)], columns, notes)
    if barcodes is not None:
        codes = _read_parts(Path(barcodes))
    if compounds is not None:
        sheets = _read_parts(Path(compounds))
    told = _read_barcodes(codes, notes)
    known = list(dict.fromkeys(map(normal, plates))) if plates is not None else None
    table = _put_together(where, maps, columns, told, known, notes)
    for sheet in sheets:
        _join_compounds(table, sheet)
    return table


def _list_files(path: str | Path | Sequence[str | Path]) -> tuple[list[Path], Path]:
    """The files of maps, and what to call them together."""
    given = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not given:
        raise ConfigError("no plate map is named: name a file or a folder", "columns")
    files: list[Path] = []
    for one in given:
        if not one.is_dir():
            files.append(one)
            continue
        inside = sorted(file for file in one.rglob("*") if file.is_file())
        usable = [
            file
            for file in inside
            if not file.name.startswith((".", "~$")) and file.name.lower().removesuffix(".gz").endswith(_ENDINGS)
        ]
        if not usable:
            raise DataError(
                f"folder '{one}' holds no plate map, of which the names end in {', '.join(_ENDINGS[:5])}, …: "
                f"it has {len(inside)} other files; name a plate map, or its folder"
            )
        files += usable
    return files, given[0] if len(given) == 1 else given[0].parent


def _read_parts(path: Path) -> list[_Part]:
    """What the sheets of a file hold."""
    ways = read_cells(path, "plate map", start=_BEGINNING)
    if ways and ways[0].separator:
        ways = read_cells(path, "plate map") if any(find_matrices(cells.rows) for cells in ways) else []
    if not any(cells.separator for cells in ways) and ways:
        several = len(ways) > 1
        parts = []
        for cells in ways:
            matrices = find_matrices(cells.rows)
            table = None if matrices else read_table(path, "plate map", sheet=cells.sheet)
            parts.append(_Part(path, cells.sheet if several else "", table, matrices, True))
        return parts
    found = [(find_matrices(cells.rows), cells.separator) for cells in ways]
    drawn, separator = max(found, key=lambda way: sum(len(one.wells) for one in way[0]), default=([], ""))
    table = None if drawn else read_table(path, "plate map")
    return [_Part(path, "", table, drawn, separator != "," if table is None else table.commas)]


def _sort_parts(
    parts: Sequence[_Part], columns: Mapping[str, Any], notes: list[str]
) -> tuple[list[_Part], list[_Part], list[_Part]]:
    """The parts that are maps, those that say which map a plate has, and those with a row a compound."""
    maps, codes, others = list[_Part](), list[_Part](), list[_Part]()
    for part in parts:
        if part.table is None or _well_columns(part.table.columns, columns):
            maps.append(part)
        elif _code_columns(part.table.columns) is not None:
            codes.append(part)
        else:
            others.append(part)
    if not maps:
        return others, codes, []
    there = {short_name(one) for part in maps if part.table is not None for one in part.table.columns}
    there |= {short_name(text) for part in maps for one in part.matrices for text in one.texts}
    joined = [one for one in others if one.table is not None and _key_columns(one.table.columns, there)]
    left = [part.called for part in others if part not in joined]
    if left:
        notes.append(f"left out, as neither wells nor compounds of the map are in it: {_list(left)}")
    return maps, codes, joined


def _well_columns(there: Sequence[str], columns: Mapping[str, Any]) -> bool:
    """Whether a table has a column of wells."""
    given = columns.get("well")
    if given is None:
        return bool({short_name(one) for one in there} & set(USUAL["well"])) or row_and_column(there) is not None
    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return all(one in there for one in listed)


def _code_columns(there: Sequence[str]) -> tuple[str, str] | None:
    """The columns of plates and of maps in a table that says which map a plate has."""
    short = {short_name(one): one for one in there}
    plate = next((short[one] for one in USUAL["plate"] if one in short and one not in MAPS), None)
    layout = next((short[one] for one in MAPS if one in short), None)
    return None if plate is None or layout is None else (plate, layout)


def _key_columns(there: Sequence[str], others: Collection[str]) -> list[str]:
    """The columns by which compounds may be joined, best first: those of treatments that both tables have."""
    short = {short_name(one): one for one in there}
    return [short[one] for one in USUAL["treatment"] if one in short and one in others]


def _read_barcodes(parts: Sequence[_Part], notes: list[str]) -> pd.DataFrame | None:
    """Which map each plate has: columns ``plate, map``, and what else such tables say of plates."""
    frames = []
    for part in parts:
        found = None if part.table is None else _code_columns(part.table.columns)
        if part.table is None or found is None:
            there = "drawn plates" if part.table is None else _list(part.table.columns, 8)
            raise DataError(
                f"table of barcodes {part.called} needs a column of plates, such as {USUAL['plate'][3]}, and one of "
                f"their maps, such as {MAPS[0]}; it has: {there}"
            )
        plate, layout = found
        frame = part.table.frame()
        made = {"plate": names(frame[plate], plate, place=part.table.place, needed=True)}
        maps = names(frame[layout], layout, place=part.table.place, needed=True)
        made["map"] = np.array([_without_ending(name) for name in maps], dtype=object)
        frames.append(pd.DataFrame(made).join(frame.drop(columns=[plate])))
        check_once(frames[-1], ["plate"], "plates", place=part.table.place)
        notes.append(f"which map a plate has is said by {part.called}: '{plate}' and '{layout}'")
    return pd.concat(frames, ignore_index=True) if frames else None


@dataclass
class _Piece:
    """Rows of a map that lie on the same plates, or say themselves on which.

    Attributes:
        called: what they come from.
        frame: the rows.
        place: how to call one in a message.
        name: what a title, a sheet or a file says of the plate.
        sure: the name is one of a plate, whether or not there is such a plate.
        own: the column of plates of the rows, if there is one.
        size: how many wells a plate has, if it was drawn.
    """

    called: str
    frame: pd.DataFrame
    place: Place
    name: str
    sure: bool = False
    own: str | None = None
    size: int | None = None


def _put_together(
    where: Path,
    maps: Sequence[_Part],
    columns: Mapping[str, Any],
    codes: pd.DataFrame | None,
    known: list[str] | None,
    notes: list[str],
) -> MapTable:
    """One table of all maps; with a column ``plate`` where it is not a column of theirs that says it."""
    targets = list(dict.fromkeys([*(known or ()), *([] if codes is None else [*codes["plate"], *codes["map"]])]))
    pieces = [_table_piece(part, columns) for part in maps if part.table is not None]
    pieces += _drawn_pieces([part for part in maps if part.table is None], targets)
    if not pieces:
        raise DataError(f"'{where}' holds tables of barcodes or compounds, but no plate map: name it, too")
    if codes is None and pieces[0].own and {piece.own for piece in pieces} == {pieces[0].own}:
        _check_map_names(pieces, pieces[0].own, known)
        frame, place = _stack([piece.frame for piece in pieces], [piece.place for piece in pieces])
        return MapTable(where, frame, place, notes=notes)
    first = pieces[0]
    if len(pieces) == 1 and codes is None and not first.own and not first.sure and not _named(first.name, targets):
        return MapTable(
            where, first.frame, first.place, sizes={"": first.size} if first.size else {}, notes=notes
        )  # holds for every plate
    return _on_plates(where, pieces, codes, known, targets, notes)


def _table_piece(part: _Part, columns: Mapping[str, Any]) -> _Piece:
    """The rows of a table."""
    assert part.table is not None
    given = columns.get("plate")
    own = usual_column(part.table.columns, "plate") if given is None else None
    if given is not None and given is not False and given != "":
        own = find(given, part.table.columns, "column for 'plate'", advice="columns")[0]
    frame = part.table.frame()
    frame = frame.apply(_with_points) if part.commas else frame
    return _Piece(part.called, frame, part.table.place, part.sheet or part.stem, own=own)


def _with_points(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of numbers with decimal commas, as text with points; any other as it is."""
    text = column.astype("string").str.strip().fillna("")
    if not text.str.fullmatch(_COMMA).all() or not text.str.contains(",").any():
        return column
    return text.str.replace(",", ".").astype(object)


def _drawn_pieces(parts: Sequence[_Part], targets: Sequence[str]) -> list[_Piece]:
    """The rows of drawn plates: a row a well, a column for each of the things that their matrices show.

    Matrices of the same plate belong together, wherever they are drawn: below each other, on sheets, in several files.
    """
    by_plate: dict[tuple[str, bool], dict[str, dict[str, str]]] = {}
    called: dict[tuple[str, bool], str] = {}
    sizes: dict[tuple[str, bool], int] = {}
    for path in dict.fromkeys(part.path for part in parts):
        own = [part for part in parts if part.path == path]
        stem = _read_title(own[0].stem, targets)
        read = [
            [_read_title(text, targets) for text in filter(None, (part.sheet, *matrix.texts))]
            for part in own
            for matrix in part.matrices
        ]
        shown = any(title.variable for titles in read for title in titles)
        plates = len(read) > 1 and not shown and (not targets or any(t.plate for titles in read for t in titles))
        every = iter(read)
        for part in own:
            plate = ""
            for matrix in part.matrices:
                variable = ""
                for title in next(every):
                    plate = title.plate or (title.text if plates else plate)
                    variable = title.variable or variable or ("" if plates or title.plate else title.text)
                variable = variable or stem.variable or "treatment"
                key = (plate, True) if plate else (stem.plate or ("" if stem.variable else stem.text), False)
                columns = by_plate.setdefault(key, {})
                if variable in columns:
                    raise DataError(
                        f"{part.called}: the matrix in row {matrix.row} is the second for '{variable}'"
                        f"{f' of plate {plate!r}' if plate else ''}: write in a line above each matrix what it shows, "
                        "such as treatment or concentration, or which plate it is"
                    )
                values = _with_points(pd.Series(matrix.values)) if part.commas else matrix.values
                columns[variable] = dict(zip(matrix.wells, values, strict=True))
                called.setdefault(key, part.called)
                sizes[key] = max(sizes.get(key, 0), matrix.size)
    pieces = []
    for key, columns in by_plate.items():
        order = list(dict.fromkeys(one for values in columns.values() for one in values))
        frame = pd.DataFrame({"well": order} | {v: [one.get(w, "") for w in order] for v, one in columns.items()})
        place = _DrawnPlace(order, called[key])
        pieces.append(_Piece(called[key], frame, place, key[0], key[1], None, sizes[key]))
    return pieces


@dataclass(frozen=True)
class _DrawnPlace:
    """How to call a row that was a cell of a drawn plate."""

    wells: list[str]
    called: str

    def __call__(self, row: int) -> str:
        return f"well {self.wells[row]} of {self.called}"


class _Title(NamedTuple):
    """What is written above a matrix: the plate and what is shown, each empty if it is not said; the whole."""

    plate: str = ""
    variable: str = ""
    text: str = ""


def _read_title(text: str, targets: Sequence[str]) -> _Title:
    """What a title says.

    >>> _read_title("Plate P1: Concentration (uM)", ["P1"])
    _Title(plate='P1', variable='Concentration (uM)', text='Plate P1: Concentration (uM)')
    """
    text = normal(text)
    if short_name(text) in _VARIABLES:
        return _Title("", text, text)
    if found := _same(text, targets):
        return _Title(found, "", text)
    tokens = re.split(r"([\s:;,_/|–-]+)", text)
    for i in range(2, len(tokens), 2):
        left, right = "".join(tokens[: i - 1]), "".join(tokens[i:])
        for rest, variable in ((left, right), (right, left)):
            if short_name(variable) in _VARIABLES:
                return _Title(_named(rest, targets) if targets else _bare(rest), variable, text)
    if found := _named(text, targets):
        rest = _bare(re.sub(re.escape(found), " ", text, flags=re.IGNORECASE))
        return _Title(found, rest if re.search(r"[^\W\d_]", rest) else "", text)
    told = re.match(r"(plate|barcode)\b[\s:#=_-]*(\S.*)", text, re.IGNORECASE)
    return _Title(told[2] if told else "", "", text)


_VARIABLES = frozenset(one for kind, listed in USUAL.items() if kind not in ("plate", "well") for one in listed)
_WORDS = frozenset(("plate", "plates", "barcode", "map", "platemap", "platemaps", "layout"))


def _bare(text: str) -> str:
    """A name without words such as ``plate`` and ``map`` at its ends."""
    tokens = re.split(r"([\s:#=_-]+)", normal(text))
    while tokens and (not tokens[0].strip(" :#=_-") or tokens[0].lower() in _WORDS):
        tokens = tokens[1:]
    while tokens and (not tokens[-1].strip(" :#=_-") or tokens[-1].lower() in _WORDS):
        tokens = tokens[:-1]
    return "".join(tokens)


def _named(text: str, targets: Sequence[str]) -> str:
    """The name that a text is or holds; empty where it is none of them, or may be two.

    >>> _named("platemap_P1", ["P1", "P10"]), _named("Plate 2", ["1", "2"]), _named("dose 2", ["1", "2"])
    ('P1', '2', '')
    """
    if same := _same(text, targets):
        return same
    long = [one for one in targets if len(one) > 3 or (len(one) > 1 and not one.isdecimal())]
    held = [one for one in long if re.search(rf"(?<![^\W_]){re.escape(one)}(?![^\W_])", text, re.IGNORECASE)]
    longest = [one for one in held if not any(one != other and one in other for other in held)]
    return longest[0] if len(longest) == 1 else ""


def _same(text: str, targets: Sequence[str]) -> str:
    """The name that a text is, with or without words such as ``plate`` at its ends, whatever its case."""
    for form in (normal(text), _bare(text)):
        same = [one for one in targets if one.casefold() == form.casefold()]
        if same:
            return form if form in same else same[0]
    return ""


def _check_map_names(pieces: Sequence[_Piece], own: str, known: list[str] | None) -> None:
    """Refuse maps whose only column of plates names maps, where the plates are called otherwise."""
    if known is None or short_name(own) not in MAPS:
        return
    said = list(dict.fromkeys(normal(value) for piece in pieces for value in piece.frame[own].unique()))
    if not set(said) & set(known):
        raise DataError(
            f"column '{own}' of {pieces[0].called} says {_list(map(repr, said))}, and the plates are called "
            f"{_list(map(repr, known))}: give the table of barcodes, which says what map each plate has"
        )


def _stack(frames: Sequence[pd.DataFrame], places: Sequence[Place]) -> tuple[pd.DataFrame, Place]:
    """Frames below each other, and how to call their rows."""
    if len(frames) == 1:
        return frames[0], places[0]
    starts = np.cumsum([0, *map(len, frames)]).tolist()

    def place(row: int) -> str:
        i = bisect_right(starts, row) - 1
        return places[i](row - starts[i])

    frames = _alike(frames)
    columns = list(dict.fromkeys(column for frame in frames for column in frame))
    return pd.concat([frame.reindex(columns=columns, fill_value="") for frame in frames], ignore_index=True), place


def _alike(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Frames in which treatments, doses and so on are called as in the first that has them."""
    called: dict[str, str] = {}
    result = []
    for frame in frames:
        usual = {kind: usual_column(list(map(str, frame)), kind) for kind in USUAL if kind != "plate"}
        new = {own: called.setdefault(kind, own) for kind, own in usual.items() if own is not None}
        result.append(frame.rename(columns={own: name for own, name in new.items() if name not in frame}))
    return result


def _on_plates(
    where: Path,
    pieces: Sequence[_Piece],
    codes: pd.DataFrame | None,
    known: list[str] | None,
    targets: Sequence[str],
    notes: list[str],
) -> MapTable:
    """The rows of all pieces on the plates that they belong to, as often as there are plates."""
    of_map = {} if codes is None else {key: list(rows) for key, rows in codes.groupby("map", sort=False)["plate"]}
    there = None if known is None else set(known)
    frames, places, sizes = list[pd.DataFrame](), list[Place](), dict[str, int]()
    lost: list[_Piece] = []
    absent: list[str] = []
    for piece in pieces:
        if piece.own:
            keys = names(piece.frame[piece.own], piece.own, place=piece.place, needed=True)
        else:
            name = _named(piece.name, targets)
            if not name and not piece.sure and targets:
                lost.append(piece)
                continue
            keys = np.full(len(piece.frame), name or piece.name, dtype=object)
        codes_of, distinct = factorize(keys)
        members = np.split(np.argsort(codes_of, kind="stable"), np.cumsum(np.bincount(codes_of))[:-1])
        for key, rows in zip(distinct, members, strict=False):
            plates = of_map.get(key, [key])
            on = [plate for plate in plates if there is None or plate in there or key not in of_map]
            absent += [] if on else [key]
            part = piece.frame.iloc[rows].reset_index(drop=True)
            for plate in on:
                frames.append(part.assign(plate=plate))
                places.append(_Rows(piece.place, rows))
                if piece.size:
                    sizes[plate] = piece.size
    what = "none of the plates" if codes is None else "neither a plate nor a map of the table of barcodes"
    if lost and not frames:
        raise DataError(
            f"plate map {lost[0].called} has no column of plates, and its name is that of {what} "
            f"({_list(map(repr, targets))}): call it as its plate is called, or give a table of barcodes"
        )
    if not frames:
        raise DataError(
            f"the maps {_list(map(repr, absent))} are of no plate that has images; these are called "
            f"{_list(map(repr, known or []))}: correct the names, or the table of barcodes"
        )
    if lost:
        notes.append(f"left out, as its name is that of {what}: {_list(piece.called for piece in lost)}")
    if absent:
        notes.append(f"of no plate that has images, and left out: map {_list(absent)}")
    frame, place = _stack(frames, places)
    if codes is not None:
        there_already = {short_name(str(column)) for column in frame}
        more = [column for column in codes if short_name(str(column)) not in there_already and column != "map"]
        at = pd.Index(codes["plate"]).get_indexer(frame["plate"])
        for column in more:
            frame[column] = np.where(at >= 0, codes[column].to_numpy(dtype=object)[at], "")
    if codes is not None and there is not None and (none := [p for p in codes["plate"] if p not in there]):
        notes.append(f"plates of the table of barcodes without an image: {_list(none)} ({len(none)})")
    said = "the table of barcodes" if codes is not None else "the names of files, sheets or titles"
    return MapTable(where, frame, place, "plate", said, sizes, notes)


@dataclass(frozen=True)
class _Rows:
    """How to call some of the rows of a table."""

    place: Place
    rows: np.ndarray

    def __call__(self, row: int) -> str:
        return self.place(int(self.rows[row]))


def _join_compounds(table: MapTable, sheet: _Part) -> None:
    """Add what a table with a row a compound says of the compounds of the map."""
    if sheet.table is None:
        raise DataError(f"{sheet.called} holds drawn plates, no table with a row a compound")
    own = {short_name(one): one for one in table.columns}
    keys = _key_columns(sheet.table.columns, set(own))
    if not keys:
        raise DataError(
            f"{sheet.called} has no column of compounds that the map has, too; it has {_list(sheet.table.columns, 8)}, "
            f"and the map {_list(table.columns, 8)}"
        )
    frame, pairs = sheet.table.frame(), [(keys[0], own[short_name(keys[0])])]
    doses = usual_column(sheet.table.columns, "dose"), usual_column(table.columns, "dose")
    if doses[0] and doses[1] and frame.duplicated(keys[0]).any():
        pairs.append((doses[0], doses[1]))  # what a compound does depends on its dose
    column = pairs[0][1]
    right = pd.DataFrame({one: _joinable(frame[key], key, sheet.table.place) for key, one in pairs})
    check_once(right, [one for _, one in pairs], "compounds", place=sheet.table.place)
    both = pd.DataFrame({one: _joinable(table.frame[one], one, table.place) for _, one in pairs})
    left = both[column].to_numpy()
    at = pd.MultiIndex.from_frame(right).get_indexer(pd.MultiIndex.from_frame(both))
    new = [one for one in sheet.table.columns if short_name(one) not in own]
    for one in new:
        table.frame[one] = np.where(at >= 0, frame[one].to_numpy(dtype=object)[at], "")
    unknown = list(dict.fromkeys(left[(at < 0) & (left != "")]))
    by = " and ".join(f"'{one}'" for _, one in pairs)
    table.notes.append(f"joined by {by} from {sheet.called}: {_list(new, 8)}")
    if unknown:
        table.notes.append(f"not in {sheet.called}, of which nothing is joined: {_list(unknown)} ({len(unknown)})")
    nameless = int(((left == "") & (at >= 0)).sum())
    if nameless:
        row = int(np.argmax(right[column] == ""))
        said = ", ".join(f"{one} {frame[one][row]}" for one in new if short_name(one) in _VARIABLES)
        table.notes.append(
            f"{nameless} row{'s' * (nameless > 1)} without '{column}': {sheet.table.place(row)} says what they are: "
            f"{said or 'see there'}"
        )


def _joinable(column: "pd.Series[Any]", what: str, place: Place) -> np.ndarray:
    """Names of compounds, or doses as numbers that are written in one way."""
    return names(as_numbers(column), what, place=place)


def _list(values: Iterable[object], shown: int = _SHOWN) -> str:
    texts = list(map(str, values))
    return ", ".join(texts[:shown]) + (", …" if len(texts) > shown else "")
