"""Finding the nuclei of a whole screen, once: what was found is kept, and a search that was stopped goes on."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from biomass.atomic import check_writable
from biomass.cells.fields import NONE, Nuclei, join_nuclei, name_field, read_saved_nuclei, save_nuclei
from biomass.cells.nuclei import DIAMETER, METHOD, find_nuclei
from biomass.channels import match_channels
from biomass.errors import BadImageError, ConfigError, NoCellsError
from biomass.pixels.origin import Stamps
from biomass.pixels.packed_writer import stamps_of
from biomass.pixels.processes import as_they_end
from biomass.screen import FIELD, OnBadImage, Pixels, Screen, check_on_bad_image

log = logging.getLogger(__name__)


def describe_search(screen: Screen, channel: str = "DAPI", diameter: float = DIAMETER) -> dict[str, Any]:
    """What :func:`find_all_nuclei` depends on, as it is kept with the nuclei: two equal ones find the same in a field.

    Raises:
        ConfigError: there is no such channel.
    """
    (position,) = match_channels([channel], screen.pixels.channels, "channel")
    names = {"channel": screen.pixels.channels[position], "diameter": float(diameter), "method": METHOD}
    return names | {"size": list(map(int, screen.pixels.size))}


def find_all_nuclei(
    screen: Screen,
    channel: str = "DAPI",
    diameter: float = DIAMETER,
    *,
    on_bad_image: OnBadImage = "error",
    workers: int | None = 1,
    file: Path | None = None,
    keep: Literal["always", "if possible"] = "always",
    known: Path | None = None,
) -> Nuclei:
    """Find the nuclei of all fields of a screen, see :func:`biomass.cells.nuclei.find_nuclei`.

    Fields are searched a plate at a time. Where a ``file`` is given, the nuclei of a plate are written to a table of
    its own in ``<file>.part/`` as soon as the plate is finished, and those of all plates to ``file`` at the end. The
    next call reads both, and searches only the fields that neither of them lists: those of the plates that were not
    finished, those that were not there yet, those that could not be read then, and those whose files have changed
    since. What was kept of another channel, diameter or way of finding nuclei counts as not there.

    Args:
        screen: the fields.
        channel: name of the channel with the stain of DNA, or what it is called elsewhere (nuclei, DAPI, Hoechst …).
        diameter: of a typical nucleus, pixels.
        on_bad_image: ``error``, or ``skip``: a field that cannot be read, or has pixels that are not numbers, counts as
            not looked at.
        workers: processes; as many as there are cores if left out; with 0 or 1, this one searches.
        file: the table to keep the nuclei in, see :func:`biomass.cells.fields.save_nuclei`; None keeps none.
        keep: what to do where the nuclei cannot be kept: ``always`` is an error; ``if possible`` searches all the same,
            and says in the log that the next call will have to search again.
        known: another table, which is read and not written: fields that it lists are not searched again.

    Returns:
        The nuclei, in the order of the fields.

    Raises:
        ConfigError: there is no such channel, or ``file`` cannot be written.
        BadImageError: a field cannot be read, or has pixels that are not numbers.
        NoCellsError: no field can be read.

    Nuclei of a small simulated screen, found once and then read:

    >>> from biomass.datasets.bbbc021 import load_bbbc021
    >>> from biomass.datasets.simulated_bbbc021 import simulate_bbbc021
    >>> folder = getfixture("tmp_path")
    >>> small = {"weeks": 2, "replicates": 1, "compounds": 2, "concentrations": 1, "height": 64, "width": 80}
    >>> screen = load_bbbc021(simulate_bbbc021(folder, **small))
    >>> nuclei = find_all_nuclei(screen, diameter=9, file=folder / "nuclei.parquet")
    >>> nuclei.table.columns.tolist()
    ['image', 'x', 'y', 'area']
    >>> len(nuclei.fields) == len(screen) < len(nuclei.table)
    True
    >>> again = find_all_nuclei(screen, diameter=9, file=folder / "nuclei.parquet")
    >>> again.table.equals(nuclei.table)
    True
    """
    check_on_bad_image(on_bad_image)
    search = describe_search(screen, channel, diameter)
    position = screen.pixels.channels.index(search["channel"])
    stamps = Stamps.unknown(len(screen)) if file is None else stamps_of(screen.pixels, len(screen))
    in_file, in_parts = (NONE, NONE) if file is None else _read_kept(screen, file, search, stamps, known)
    found = join_nuclei(in_file, in_parts)
    if file is not None and keep == "if possible" and len(in_file.fields) < len(screen) and not _can_be_kept(file):
        file = None
    todo = np.setdiff1d(np.arange(len(screen)), found.fields)
    try:
        for nuclei in _search_plates(screen, todo, position, diameter, on_bad_image, workers):
            if file is not None and len(nuclei.fields):
                save_nuclei(screen, nuclei, _parts(file) / f"{nuclei.fields[0]}.parquet", search, stamps)
            found = join_nuclei(found, nuclei)
    finally:
        if file is not None:
            with suppress(OSError):
                _parts(file).rmdir()  # where not one plate could be kept
    _report_unread(screen, found)
    if file is not None and len(found.fields) > len(in_file.fields):
        save_nuclei(screen, found, file, search, stamps)
        shutil.rmtree(_parts(file), ignore_errors=True)
    return found


def _parts(file: Path) -> Path:
    """The folder for the nuclei of finished plates: a table a plate, named after the first field that it lists."""
    return file.with_name(f"{file.name}.part")


def _read_kept(
    screen: Screen, file: Path, search: Mapping[str, Any], stamps: Stamps, known: Path | None
) -> tuple[Nuclei, Nuclei]:
    """What earlier calls have found: the nuclei in the file; those of the plates that were finished since, or known."""
    whole = read_saved_nuclei(screen, file, search, stamps)
    if whole is None and file.is_file():
        log.info("'%s' holds nuclei of another channel, diameter or method: they are searched again", file)
    in_file, in_parts = whole or NONE, NONE
    for path in [*sorted(_parts(file).glob("*.parquet")), *([known] if known is not None else [])]:
        part = read_saved_nuclei(screen, path, search, stamps)
        # Fields are there twice where a call was killed after it had written the file, before it had removed the parts.
        if part is not None and not np.isin(part.fields, [*in_file.fields, *in_parts.fields]).any():
            in_parts = join_nuclei(in_parts, part)
    found = len(in_file.fields) + len(in_parts.fields)
    if found:
        place = file if known is None or len(in_file.fields) else known
        log.info("'%s' holds the nuclei of %d of %d fields already", place, found, len(screen))
    return in_file, in_parts


def _can_be_kept(file: Path) -> bool:
    try:
        check_writable(file.parent)
    except ConfigError as error:
        log.warning("nuclei are searched without being kept, and again by the next call: %s", error)
        return False
    return True


def _search_plates(
    screen: Screen, fields: np.ndarray, channel: int, diameter: float, on_bad_image: OnBadImage, workers: int | None
) -> Iterator[Nuclei]:
    """The nuclei of some fields, (n,) int64, a plate at a time."""
    fields = fields[np.argsort(screen.plate_ids[fields], kind="stable")]
    left = Counter(screen.plate_ids[fields].tolist())
    plates, total = len(left), dict(left)
    found: dict[int, dict[int, tuple[np.ndarray, np.ndarray] | None]] = {}
    search = _Search(screen.pixels, screen.table[list(FIELD)], channel, diameter, on_bad_image)
    bar = tqdm(desc="Finding nuclei", total=len(screen), unit="field", disable=None)
    bar.update(len(screen) - len(fields))
    with bar, as_they_end(search, fields.tolist(), workers) as results:
        for row, nuclei in results:
            bar.update()
            plate = int(screen.plate_ids[row])
            found.setdefault(plate, {})[row] = nuclei
            left[plate] -= 1
            if left[plate]:
                continue
            of_plate = {one: each for one, each in sorted(found.pop(plate).items()) if each is not None}
            left.pop(plate)
            made = _make_nuclei(list(of_plate), list(of_plate.values()))
            if bar.disable:
                done = plates - len(left)
                message = "plate %s: %d nuclei in %d fields (%d of %d plates)"
                log.info(message, screen.plate_names[plate], len(made.table), total[plate], done, plates)
            yield made


@dataclass(frozen=True)
class _Search:
    """Finds the nuclei of one field; runs in the worker processes."""

    pixels: Pixels
    names: pd.DataFrame
    channel: int
    diameter: float
    on_bad_image: OnBadImage

    def __call__(self, row: int) -> tuple[int, tuple[np.ndarray, np.ndarray] | None]:
        """The row, and its nuclei; None if it cannot be read, or is not all numbers, and is to be skipped."""
        try:
            image = self.pixels.read(np.array([row]))[0]
            if not np.isfinite(image).all():
                name = f"{self.pixels.name(row)} ({name_field(self.names.iloc[row])})"
                raise BadImageError(f"{name} has pixels that are not numbers: copy or download it again", row)
            return row, find_nuclei(image[self.channel], self.diameter)
        except BadImageError:
            if self.on_bad_image == "error":
                raise
            return row, None


def _make_nuclei(fields: Sequence[int], found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Nuclei:
    """What :func:`find_nuclei` has found in each of the fields, as one table."""
    centres = np.concatenate([np.zeros((0, 2)), *(centres for centres, _ in found)])
    areas = np.concatenate([np.zeros(0), *(areas for _, areas in found)])
    image = np.repeat(np.array(fields, np.int64), [len(centres) for centres, _ in found])
    table = pd.DataFrame({"image": image, "x": centres[:, 1], "y": centres[:, 0], "area": areas})
    return Nuclei(table, np.array(fields, np.int64))


def _report_unread(screen: Screen, nuclei: Nuclei) -> None:
    """Say in the log which fields could not be read.

    Raises:
        NoCellsError: none of them could.
    """
    if not len(nuclei.fields):
        raise NoCellsError(f"none of the {len(screen)} fields can be read: copy or download them again")
    unread = np.setdiff1d(np.arange(len(screen)), nuclei.fields)
    if len(unread):
        first = screen.pixels.name(int(unread[0]))
        log.warning(
            "%d of %d fields cannot be read: they have no cells; the first: %s", len(unread), len(screen), first
        )
