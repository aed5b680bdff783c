"""The summary table that is published with cropped cells: how many cells every field of view has.

It saves listing the folder. Published copies are ragged: lines have fewer or more values than there are columns,
quotation marks are never closed, images are counted twice. A line counts as far as it can be understood, and what it
does not say clearly is looked up in the folder. No other table is read as leniently, see :mod:`biomass.table_files`.
"""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biomass.datasets.cell_folders import Listing, find_fields, find_plates, list_field, name_fields
from biomass.errors import DataError, one_line
from biomass.identifiers import normal, well
from biomass.screen import FIELD

COLUMNS = ("experiment", "plate", "well", "segmented")
"""The columns that are needed; ``site`` is, too, unless the well says it (``B02_s1.png``)."""

_WELL_SITE = re.compile(r"(.+)_s(\d+)")
_ADVICE = "summary_file"

log = logging.getLogger(__name__)


class Field(NamedTuple):
    """The name of a field of view, in normal form."""

    experiment: str
    plate: int
    well: str
    site: int

    @property
    def place(self) -> str:
        """What its folder is called, unless it is called otherwise."""
        return f"{self.experiment}/Plate{self.plate}/{self.well}_s{self.site}"


def read_summary(path: Path, folder: Path) -> Listing:
    """The cells that a summary table counts.

    Counted cells are numbered from 0. Of every plate one field is looked up in the folder, to make sure that both
    belong together, and so is every field without a count, or with several. Plates and fields of the folder that the
    table does not name are left out with a warning: it may have been cut off.

    Raises:
        DataError: the table cannot be read, names no image, or does not agree with the folder.
    """
    counts = _read_counts(path)
    plates = {field[:2] for field in counts}
    held = list(find_plates(folder, strict=False))
    places = find_fields(folder, [plate for plate in held if plate in plates])
    named = name_fields(places)[list(FIELD)].itertuples(index=False, name=None)
    there = dict(zip(map(Field._make, named), places, strict=True))
    _report_unnamed(path, folder, "plates", [f"{e}/Plate{k}" for e, k in held if (e, k) not in plates])
    _report_unnamed(path, folder, "images", [place for field, place in there.items() if field not in counts])
    fields = sorted(counts)
    gone = [field for field in fields if counts[field] and field not in there]
    if gone:
        raise DataError(
            f"'{path}' counts cells of {len(gone)} of {len(fields)} images that '{folder}' does not have, the first in "
            f"'{gone[0].place}': correct the table, or list the folder instead",
            _ADVICE,
        )
    cells: list[Sequence[int]] = []
    for number, field in enumerate(fields):
        count, first = counts[field], number == 0 or fields[number - 1][:2] != field[:2]
        if count is not None and not first:
            cells.append(range(count))
            continue
        listed = list_field(folder / there[field]) if field in there else []
        if count is not None and count != len(listed):
            raise DataError(
                f"'{path}' counts {count} cells in '{folder / field.place}', which has {len(listed)}: they do not "
                "belong together; correct one of them, or list the folder instead",
                _ADVICE,
            )
        cells.append(listed)
    sizes = np.array([len(numbers) for numbers in cells], np.int64)
    flat = np.fromiter((i for numbers in cells for i in numbers), np.int32, int(sizes.sum()))
    return Listing(name_fields([there.get(field, field.place) for field in fields]), sizes, flat)


def _read_counts(path: Path) -> dict[Field, int | None]:
    """How many cells every field has; None where the table does not say it, or says two things."""
    counts: dict[Field, int | None] = {}
    bad = []
    for number, values in _read_lines(path):
        field, count = _parse_field(values), _parse_count(values.get("segmented", ""))
        if field is None:
            bad.append(number)
        else:
            counts[field] = count if counts.get(field, count) == count else None
    if bad:
        log.warning("'%s': %d lines name no image and are left out, the first is line %d", path, len(bad), bad[0])
    if not counts:
        raise DataError(f"'{path}' names no image: correct it, or list the folder instead", _ADVICE)
    return counts


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and values of every line that has any, as far as there are columns for them."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = _split(next(file, ""))
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise DataError(f"'{path}' has no column '{missing[0]}'; it has: {', '.join(header)}", _ADVICE)
            for number, line in enumerate(file, 2):
                values = _split(line)
                if any(values):
                    yield number, dict(zip(header, values, strict=False))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read ({one_line(error)})", _ADVICE) from error


def _split(line: str) -> list[str]:
    """The values of one line. A quotation mark that is never closed is dropped: it would swallow the next lines.

    >>> _split('"7,8",HUVEC-01,Plate1'), _split('"HUVEC-01,Plate1')
    (['7,8', 'HUVEC-01', 'Plate1'], ['HUVEC-01', 'Plate1'])
    """
    line = line.rstrip("\n")
    if line.count('"') % 2:
        return line.replace('"', "").split(",")
    return next(csv.reader([line]), [])


def _parse_field(values: dict[str, str]) -> Field | None:
    """The field that a line names.

    >>> _parse_field({"experiment": "RPE-01", "plate": "Plate2", "well": "b2_s1.png"})
    Field(experiment='RPE-01', plate=2, well='B02', site=1)
    """
    name = values.get("well", "").strip().removesuffix(".png")
    if site := values.get("site", "").strip():
        name = f"{name.removesuffix(f'_s{site}')}_s{site}"
    plate = values.get("plate", "").strip().removeprefix("Plate")
    experiment, found = normal(values.get("experiment")), _WELL_SITE.fullmatch(name)
    if found is None or not plate.isdecimal() or not experiment:
        return None
    return Field(experiment, int(plate), well(found[1]), int(found[2]))


def _parse_count(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value >= 0 and value.is_integer() else None


def _report_unnamed(path: Path, folder: Path, what: str, places: Sequence[str]) -> None:
    if places:
        log.warning(
            "'%s' does not name %d %s of '%s', which are left out, such as '%s'; without the table, the folder is "
            "listed",
            path,
            len(places),
            what,
            folder,
            places[0],
        )
