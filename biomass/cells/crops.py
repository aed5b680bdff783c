"""Single cells cut out of fields of view, around nuclei that are found, read or given.

:func:`crop_screen` turns a Screen of fields and their nuclei into a Screen of cells, which reads a field when one of
its cells is wanted; :func:`pack_cells` writes it to a packed store.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from biomass.cells.nuclei import DIAMETER, find_nuclei
from biomass.channels import match_channels
from biomass.errors import BadImageError, ConfigError, DataError, one_line
from biomass.loader import OnBadImage
from biomass.pixels.files import REMEDY
from biomass.pixels.packed import ABOUT, Store, load_packed
from biomass.pixels.writer import pack
from biomass.screen import Pixels, Screen, make_screen

log = logging.getLogger(__name__)

COLUMNS = ("image", "x", "y", "area")
"""Columns of a table of nuclei: the field (a row of its screen), the centre and the area in pixels."""

_NAMES = ["experiment", "plate", "well", "site"]
_ABOUT = b"biomass.nuclei"  # where the metadata of a table of nuclei says what was searched


class Nuclei(NamedTuple):
    """The nuclei of the fields of a screen."""

    table: pd.DataFrame
    """A row a nucleus, with the :data:`COLUMNS`, in any order."""
    fields: np.ndarray
    """(F,) int64, the fields (rows of the screen) that were looked at, whether they have nuclei or not."""


def _corners(centres: np.ndarray, size: int) -> np.ndarray:
    """The uppermost, leftmost pixel of every crop, (n, 2) int64."""
    return np.rint(centres).astype(np.int64) - size // 2


def crops_inside(centres: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Which crops lie entirely inside an image, (n,) bool: the published rule (Lin & Lu 2022) keeps only those.

    Args:
        centres: y and x, pixels, (n, 2).
        shape: (H, W) of the image.
        size: height and width of a crop, pixels.
    """
    corners = _corners(centres, size)
    return np.all((corners >= 0) & (corners + size <= np.array(shape)), axis=1)


def cut_crops(image: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Cut crops out of an image.

    The centre is rounded to the nearest pixel (the centre of pixel 0 is at 0.0; halves go to the even one). A crop of
    even size has one pixel more above and to the left of it: a crop of 68 pixels at (599, 1173) takes the rows
    565 … 632 and the columns 1139 … 1206.

    Args:
        image: (C, H, W).
        centres: y and x, pixels, (n, 2).
        size: height and width of a crop, pixels.

    Returns:
        (n, C, size, size), of the image's type.

    Raises:
        DataError: a crop does not lie inside the image; leave it out with :func:`crops_inside`.
    """
    centres = np.asarray(centres, np.float64).reshape(-1, 2)
    outside = ~crops_inside(centres, (image.shape[1], image.shape[2]), size)
    if outside.any():
        y, x = centres[np.argmax(outside)]
        raise DataError(
            f"a crop of {size} pixels at y {y:g}, x {x:g} does not lie inside the image of "
            f"{image.shape[1]} x {image.shape[2]}: leave it out, or cut smaller crops"
        )
    corners = _corners(centres, size)
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(1, 2))
    return np.ascontiguousarray(windows[:, corners[:, 0], corners[:, 1]].transpose(1, 0, 2, 3))


@dataclass(eq=False)
class CropPixels:
    """Cells cut out of the fields of a screen; implements :class:`biomass.screen.Pixels`.

    Attributes:
        source: the images of the fields.
        image: (N,) int64, the field of every cell, a row of ``source``.
        centres: (N, 2) float64, y and x of its centre, pixels.
        size: (S, S) of every crop, pixels.
        channels: names of the C channels.
    """

    source: Pixels
    image: np.ndarray
    centres: np.ndarray
    size: tuple[int, int]
    channels: tuple[str, ...]
    _last: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.image)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_last": None}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Cut out the cells ``rows`` (N,): (N, C, S, S), of the fields' type. Every field is read once.

        Raises:
            BadImageError: a field cannot be read.
        """
        fields, which = np.unique(self.image[rows], return_inverse=True)
        parts = []
        for number, row in enumerate(fields.tolist()):
            inside = np.flatnonzero(which == number)
            try:
                parts.append((inside, cut_crops(self._field(row), self.centres[rows[inside]], self.size[0])))
            except BadImageError as error:
                raise BadImageError(str(error), int(rows[inside[0]])) from error
        if not parts:
            return np.empty((0, len(self.channels), *self.size), np.uint8)
        crops = np.empty((len(rows), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for inside, part in parts:
            crops[inside] = part
        return crops

    def _field(self, row: int) -> np.ndarray:
        """An image (C, H, W); kept until the next one, because a batch often ends within a field."""
        if self._last is None or self._last[0] != row:
            self._last = (row, self.source.read(np.array([row]))[0])
        return self._last[1]

    def name(self, row: int) -> str:
        """The field's name, and where the cell lies in it."""
        y, x = self.centres[row]
        return f"{self.source.name(int(self.image[row]))} at y {y:.1f}, x {x:.1f}"


def crop_screen(screen: Screen, nuclei: Nuclei, size: int = 48) -> Screen:
    """The cells of a screen: a row a nucleus whose crop lies inside its field, in the order of the fields.

    The table has the columns of the fields' table, and ``image`` (row of the field in ``screen``), ``cell`` (number
    within the field, from 0), ``x, y`` (centre) and ``area``. Fields without cells have no rows in it:
    :func:`count_cells` tells which they are.

    Args:
        screen: the fields.
        nuclei: of the fields.
        size: height and width of a crop, pixels.

    Raises:
        ConfigError: the crops are larger than the images.
        DataError: no crop lies inside its field.
    """
    _check_size(screen, size)
    cells = nuclei.table.sort_values("image", kind="stable")
    cells = cells[crops_inside(cells[["y", "x"]].to_numpy(np.float64), screen.pixels.size, size)]
    if cells.empty:
        raise DataError(
            f"no crop of {size} pixels around one of the {len(nuclei.table)} nuclei lies inside its field: "
            "cut smaller crops, or check the nuclei"
        )
    image = cells["image"].to_numpy(np.int64)
    table = screen.table.drop(columns="plate_id").iloc[image].reset_index(drop=True)
    table["image"] = image
    table["cell"] = cells.groupby("image").cumcount().to_numpy(np.int64)
    for column in ("x", "y", "area"):
        table[column] = cells[column].to_numpy(np.float32)
    centres = cells[["y", "x"]].to_numpy(np.float64)
    pixels = CropPixels(screen.pixels, image, centres, (size, size), screen.pixels.channels)
    return make_screen(table, pixels, screen.classes)


def _check_size(screen: Screen, size: int) -> None:
    """Make sure that crops are not larger than the images, in pixels."""
    if not 1 <= size <= min(screen.pixels.size):
        raise ConfigError(
            f"crops of {size} pixels cannot be cut out of images of {screen.pixels.size[0]} x "
            f"{screen.pixels.size[1]}: choose a size in between"
        )


def describe_search(screen: Screen, channel: str = "DAPI", diameter: float = DIAMETER) -> dict[str, Any]:
    """What :func:`find_all_nuclei` depends on, as it is kept with the nuclei.

    Raises:
        ConfigError: there is no such channel.
    """
    (position,) = match_channels([channel], screen.pixels.channels, "channel")
    names = hashlib.sha256(repr(tuple(screen.pixels.size)).encode())
    for column in _NAMES:
        names.update(pd.util.hash_pandas_object(screen.table[column].astype(str), index=False).to_numpy().tobytes())
    return {"channel": screen.pixels.channels[position], "diameter": float(diameter), "fields": names.hexdigest()}


def find_all_nuclei(
    screen: Screen,
    channel: str = "DAPI",
    diameter: float = DIAMETER,
    *,
    on_bad_image: OnBadImage = "error",
    workers: int = 2,
    file: Path | None = None,
    keep: Literal["always", "if possible"] = "always",
) -> Nuclei:
    """Find the nuclei of all fields of a screen, see :func:`biomass.cells.nuclei.find_nuclei`.

    Args:
        screen: the fields.
        channel: name of the channel with the stain of DNA, or what it is called elsewhere (nuclei, DAPI, Hoechst …).
        diameter: of a typical nucleus, pixels.
        on_bad_image: ``error``, or ``skip``: a field that cannot be read, or has pixels that are not numbers, counts as
            not looked at.
        workers: threads.
        file: the table to keep them in, see :func:`save_nuclei`. What it holds of the same fields, channel and diameter
            is not searched again; the plates that were finished when a call was stopped wait in ``<file>.part``.
        keep: what to do where ``file`` cannot be written: ``always`` is an error; ``if possible`` searches without
            keeping, and says so in the log.

    Returns:
        The nuclei, in the order of the fields.

    Raises:
        ConfigError: there is no such channel.
        BadImageError: a field cannot be read, or has pixels that are not numbers.
        DataError: no field can be read, or ``file`` cannot be written.
    """
    about = describe_search(screen, channel, diameter)
    position = screen.pixels.channels.index(about["channel"])
    found = [] if file is None else _kept(file, about)
    todo = np.setdiff1d(np.arange(len(screen)), _join(found).fields)
    if file is not None and keep == "if possible" and len(todo):
        try:
            _check_folder(file.parent)
        except DataError as error:
            log.warning("nuclei are searched without being kept, and again the next time: %s", error)
            file = None
    part = None if file is None else beside(file, ".part")
    todo = todo[np.argsort(screen.plate_ids[todo], kind="stable")]
    plates = np.split(todo, np.flatnonzero(np.diff(screen.plate_ids[todo])) + 1)
    bar = tqdm(desc="Finding nuclei", total=len(screen), initial=len(screen) - len(todo), unit="field", disable=None)
    with ThreadPoolExecutor(workers) as pool, bar:
        for plate in plates:
            nuclei = _find(screen, plate, position, diameter, on_bad_image, pool, workers, bar)
            if part is not None and len(nuclei.fields):
                save_nuclei(screen, nuclei, part / f"{len(list(part.glob('*.parquet')))}.parquet", about)
            found.append(nuclei)
    nuclei = _join(found)
    if not len(nuclei.fields):
        raise DataError(f"none of the {len(screen)} fields can be read: copy or download them again")
    skipped = np.setdiff1d(np.arange(len(screen)), nuclei.fields)
    if len(skipped):
        log.warning(
            "%d of %d fields cannot be read: they have no cells; the first: %s",
            len(skipped),
            len(screen),
            screen.pixels.name(int(skipped[0])),
        )
    if file is not None and part is not None and len(todo):
        save_nuclei(screen, nuclei, file, about)
        shutil.rmtree(part, ignore_errors=True)
    return nuclei


def _find(
    screen: Screen,
    rows: np.ndarray,
    channel: int,
    diameter: float,
    on_bad_image: OnBadImage,
    pool: ThreadPoolExecutor,
    workers: int,
    bar: "tqdm[Any]",
) -> Nuclei:
    """The nuclei of some fields."""
    fields: list[int] = []
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(rows), 4 * workers):  # few images in memory, all threads busy
        some = rows[start : start + 4 * workers].tolist()
        images = {row: image for row in some if (image := _read(screen, row, channel, on_bad_image)) is not None}
        found += pool.map(lambda image: find_nuclei(image, diameter), images.values())
        fields += images
        bar.update(len(some))
    centres = np.concatenate([np.zeros((0, 2)), *(c for c, _ in found)])
    image = np.repeat(np.array(fields, np.int64), [len(c) for c, _ in found])
    areas = np.concatenate([np.zeros(0), *(a for _, a in found)])
    table = pd.DataFrame({"image": image, "x": centres[:, 1], "y": centres[:, 0], "area": areas})
    return Nuclei(table, np.array(fields, np.int64))


def _join(parts: Sequence[Nuclei]) -> Nuclei:
    """The nuclei of several parts of a screen, in the order of its fields."""
    if not parts:
        return Nuclei(pd.DataFrame(columns=list(COLUMNS)), np.zeros(0, np.int64))
    table = pd.concat([part.table for part in parts]).sort_values("image", kind="stable", ignore_index=True)
    return Nuclei(table, np.sort(np.concatenate([part.fields for part in parts])))


def _kept(file: Path, about: Mapping[str, Any]) -> list[Nuclei]:
    """What earlier calls have found: the nuclei of the file, and of plates that were finished since."""
    whole = _read_kept(file, about)
    if whole is None and file.is_file():
        log.info("'%s' is of other fields, another channel or diameter: nuclei are searched anew", file)
    found = [] if whole is None else [whole]
    for part in beside(file, ".part").glob("*.parquet"):
        nuclei = _read_kept(part, about)
        if nuclei is not None and not np.isin(nuclei.fields, _join(found).fields).any():  # else left from before file
            found.append(nuclei)
    if found:
        log.info("'%s' holds the nuclei of %d fields already", file, len(_join(found).fields))
    return found


def _read_kept(file: Path, about: Mapping[str, Any]) -> Nuclei | None:
    """The nuclei that :func:`save_nuclei` wrote; None if they are of another search, or cannot be read."""
    try:
        table = pq.read_table(file)
        if _search_of(table.schema) != about:
            return None
        frame = table.select(list(COLUMNS)).to_pandas()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return Nuclei(frame[frame["x"].notna()].reset_index(drop=True), frame["image"].unique())


def _search_of(schema: pa.Schema) -> Any:
    """What was searched for a table of nuclei, see :func:`describe_search`; None where the nuclei were given."""
    return json.loads((schema.metadata or {}).get(_ABOUT, b"null"))


def _read(screen: Screen, row: int, channel: int, on_bad_image: OnBadImage) -> np.ndarray | None:
    """One channel (H, W) of a field; None if it cannot be read, or is not all numbers, and is to be skipped."""
    try:
        image = screen.pixels.read(np.array([row]))[0]
        if not np.isfinite(image).all():
            raise BadImageError(
                f"{screen.pixels.name(row)} ({_named(screen.table.iloc[row], _NAMES)}) has pixels that "
                f"are not numbers: {REMEDY}",
                row,
            )
        return image[channel]
    except BadImageError:
        if on_bad_image == "error":
            raise
        return None


def place_nuclei(screen: Screen, fields: pd.DataFrame, nuclei: pd.DataFrame) -> Nuclei:
    """Match the fields of a published table of nuclei with those of a screen, by plate, well and site.

    Args:
        screen: the fields.
        fields: ``plate, well, site``, and ``experiment`` where plates of several experiments have the same name.
        nuclei: ``field`` (a row of ``fields``), ``x, y, area``; as :func:`biomass.cells.nuclei.read_nuclei` gives
            them. Nuclei of fields that the screen does not have are left out.

    Raises:
        DataError: the screen has none of the fields, or two fields of the same name.
    """
    keys = [column for column in _NAMES if column in fields]
    rows = screen.table[keys].astype(str).assign(image=np.arange(len(screen)))
    twice = rows.duplicated(keys)
    if twice.any():
        raise DataError(
            f"two fields of the screen are {_named(rows[twice].iloc[0], keys)}: nuclei cannot be matched "
            "with them by name"
        )
    matched = fields[keys].astype(str).merge(rows, how="left", on=keys)["image"]
    if matched.isna().all():
        example, own = _named(fields.iloc[0], keys), _named(rows.iloc[0], keys)
        raise DataError(
            f"the screen has none of the {len(fields)} fields of the table of nuclei: those are called "
            f"'{example}' there, '{own}' in the screen"
        )
    image = matched.to_numpy()[nuclei["field"].to_numpy()]
    there = np.isfinite(image)
    table = nuclei.loc[there, ["x", "y", "area"]].assign(image=image[there].astype(np.int64)).reset_index(drop=True)
    return Nuclei(table[list(COLUMNS)], np.unique(matched.dropna().to_numpy(np.int64)))


def _named(row: "pd.Series[Any]", keys: list[str]) -> str:
    return ", ".join(f"{key} {row[key]}" for key in keys)


def count_cells(screen: Screen, nuclei: Nuclei, cells: Screen) -> pd.DataFrame:
    """How many nuclei and cells every field has: the fields without cells are those that a table of cells is silent of.

    Args:
        screen: the fields.
        nuclei: of the fields.
        cells: what :func:`crop_screen` has made of them.

    Returns:
        A row a field of the screen: ``experiment, plate, well, site``, ``nuclei`` (missing where the field was not
        looked at) and ``cells``.
    """
    counts = screen.table[_NAMES].copy()
    n = len(screen)
    found = pd.array(np.bincount(nuclei.table["image"].to_numpy(np.int64), minlength=n), dtype="Int64")
    found[np.setdiff1d(np.arange(n), nuclei.fields)] = pd.NA
    counts["nuclei"] = found
    counts["cells"] = np.bincount(cells.table["image"].to_numpy(np.int64), minlength=n)
    empty = counts[counts["cells"] == 0]
    if len(empty):
        shown = "; ".join("/".join(map(str, row)) for row in empty.iloc[:5, :4].to_numpy())
        log.warning(
            "%d of %d fields have no cells (%d of them were not looked at): %s%s",
            len(empty),
            n,
            int(empty["nuclei"].isna().sum()),
            shown,
            " …" if len(empty) > 5 else "",
        )
    return counts


def pack_cells(
    screen: Screen,
    nuclei: Nuclei,
    out: str | Path,
    size: int = 48,
    *,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> Screen:
    """Cut out the cells of a screen and write them to a packed store, a field at a time.

    Args:
        screen: the fields.
        nuclei: of the fields.
        out: the store's folder. Beside it ``<out>.fields.csv`` is written, see :func:`count_cells`.
        size: height and width of a crop, pixels.
        workers: processes; as many as there are cores if left out, 0 uses this one alone.
        on_bad_image: what to do with a field that cannot be read, see :func:`biomass.pixels.writer.pack`.

    Returns:
        The cells, read from the store.

    Raises:
        ConfigError, DataError: as :func:`crop_screen` and :func:`biomass.pixels.writer.pack`.
    """
    out = Path(out)
    cells = crop_screen(screen, nuclei, size)
    counts = count_cells(screen, nuclei, cells)
    pack(cells, out, workers=workers, on_bad_image=on_bad_image)
    with _writing(out):
        counts.to_csv(beside(out, ".fields.csv"), index=False)
    return load_packed(out)


def beside(out: Path, suffix: str) -> Path:
    """The file that stands beside a store, ``<out><suffix>``."""
    return out.with_name(out.name + suffix)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turns what goes wrong into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write '{place}' ({error.strerror or one_line(error)}): make room, or choose another place"
        ) from error


def check_place(out: Path) -> None:
    """Make sure that a store can be written, before hours of searching find out.

    Raises:
        DataError: its folder cannot be made or written to, or something else has its name.
    """
    _check_folder(out.parent, out)
    if out.exists() and not (out / ABOUT).is_file():
        raise DataError(f"'{out}' is there already, and is no packed store: choose another place")


def _check_folder(folder: Path, place: Path | None = None) -> None:
    """Make a folder and make sure that it can be written to; ``place`` is what an error names in its stead."""
    with _writing(place or folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_cells(
    screen: Screen, size: int, out: str | Path | None = None, search: Mapping[str, Any] | None = None
) -> None:
    """Make sure that :func:`pack_cells` will not refuse, before hours of searching find out.

    Args:
        screen: the fields.
        size: height and width of a crop, pixels.
        out: the store's folder; None if cells are only to be cut.
        search: for which nuclei, as :func:`describe_search` gives it; None if they need not be found.

    Raises:
        ConfigError: the crops are larger than the images.
        DataError: the store cannot be written, or holds cells of other fields, channels, size or nuclei.
    """
    _check_size(screen, size)
    if out is None:
        return
    out = Path(out)
    check_place(out)
    if not out.exists():
        return
    store, own = Store.read(out), (tuple(screen.pixels.channels), size, size)
    other = None
    if (store.channels, *store.shape[1:]) != own:
        other = f"of {store.shape[1]} x {store.shape[2]} pixels and the channels {', '.join(store.channels)}"
    elif search is not None and not _same_search(screen, out, search):
        other = "cells of other fields or nuclei"
    if other is not None:
        raise DataError(f"'{out}' is a store of other images ({other}): delete it, or choose another place")


def _same_search(screen: Screen, out: Path, search: Mapping[str, Any]) -> bool:
    """Whether nothing that stands beside a store tells of other fields or nuclei."""
    try:
        return bool(_search_of(pq.read_schema(beside(out, ".nuclei.parquet"))) == search)
    except (OSError, ValueError, pa.ArrowException):  # not there, or damaged
        pass
    try:
        fields = pd.read_csv(beside(out, ".fields.csv"), dtype=str, keep_default_na=False)[_NAMES]
    except (OSError, ValueError, KeyError):
        return True
    return np.array_equal(fields.to_numpy(str), screen.table[_NAMES].to_numpy(str))


def save_nuclei(screen: Screen, nuclei: Nuclei, file: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write nuclei to a table that :func:`biomass.cells.nuclei.read_nuclei_table` reads; all or nothing.

    Args:
        screen: the fields.
        nuclei: of the fields.
        file: its folder is made if it is absent.
        about: what was searched, and how, kept in the table's metadata; None where the nuclei were given.

    Raises:
        DataError: it cannot be written.
    """
    empty = np.setdiff1d(nuclei.fields, nuclei.table["image"])
    table = pd.concat([nuclei.table, pd.DataFrame({"image": empty})]).sort_values("image", kind="stable")
    names = screen.table[_NAMES].astype(str).iloc[table["image"]]
    table = pd.concat([names.reset_index(drop=True), table[["x", "y", "area", "image"]].reset_index(drop=True)], axis=1)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    if about is not None:
        arrow = arrow.replace_schema_metadata({**arrow.schema.metadata, _ABOUT: json.dumps(about)})
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with _writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow, partial)
        partial.replace(file)
