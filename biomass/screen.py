"""The Screen: one table with a row for each image, and the pixels that belong to the rows.

Whatever the source of a screen, all other code sees only this table and :class:`Pixels`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.grouping import first_rows, number_rows
from biomass.identifiers import coded, names, normal, well, well_places
from biomass.vocabulary import CONTROLS, PLATE, UNLABELLED, control_numbers
from biomass.vocabulary import KINDS as KINDS  # the three are found here, too
from biomass.vocabulary import OnBadImage as OnBadImage
from biomass.vocabulary import check_on_bad_image as check_on_bad_image

COLUMNS = ("experiment", "plate", "well", "site", "cell_type", "label", "split", "control")
"""The canonical columns, in this order, of every screen's table."""

FIELD = (*PLATE, "well", "site")
"""The columns that together name a field of view."""

FORMATS = ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))
"""Rows and columns of plates of 6 … 1536 wells."""


def plate_rows(wells: object) -> np.ndarray:
    """The letters of the row of each well (N,), in normal form.

    >>> plate_rows(["B07", "AA01"]).tolist()
    ['B', 'AA']
    """
    letters = np.array([chr(64 + row) if row <= 26 else f"A{chr(38 + row)}" for row in range(33)], dtype=object)
    return letters[well_places(wells)[0]]


def quadrants(wells: object) -> np.ndarray:
    """The quarter of the plate that each well (N,) lies in, on the smallest plate that has all of these wells.

    >>> quadrants(["A01", "A12", "H06", "E07"]).tolist()
    ['top left', 'top right', 'bottom left', 'bottom right']
    """
    rows, columns = well_places(wells)
    height, width = next(shape for shape in FORMATS if rows.max() <= shape[0] and columns.max() <= shape[1])
    names = np.array([["top left", "top right"], ["bottom left", "bottom right"]], dtype=object)
    return names[(rows > height / 2).astype(int), (columns > width / 2).astype(int)]


PARTS: Mapping[str, Callable[[object], np.ndarray]] = {"row": plate_rows, "quadrant": quadrants}
"""Parts of a plate to group by, from the wells of a screen, where its table has no column of that name."""

NAMED = ("compound", "moa")
"""Further columns of names, where a source has them; empty where one is missing."""


class Pixels(Protocol):
    """Where a screen's pixels come from. An implementation must survive pickling (loader workers).

    A row need not have an image: where networks read what other networks made of it, it has a vector (D,), see
    :class:`VectorPixels`, or the vectors of its cells, see :class:`biomass.evaluation.pooling.Bags`. ``read`` then
    gives (N, D) or (N, K, D), and ``size`` is (1, D) or (K, D).
    """

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the C channels, in the order in which they are read."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width (H, W) of every image, in pixels."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the images of ``rows`` (N,) into an array (N, C, H, W), in the source's own integer (or float) type.

        Raises:
            BadImageError: an image cannot be read or has another shape; carries its row.
        """

    def name(self, row: int) -> str:
        """What a person would look for to find the image of ``row``: a file name, mostly."""


@dataclass(frozen=True)
class VectorPixels:
    """An array in memory in the place of images: a vector for each row, (M, D), or images (M, C, H, W).

    >>> vectors = VectorPixels(np.arange(6).reshape(3, 2))
    >>> vectors.read(np.array([2, 0]))
    array([[4, 5],
           [0, 1]])
    >>> vectors.size
    (1, 2)
    """

    array: np.ndarray
    channels: tuple[str, ...] = ("feature",)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image; a vector counts as an image of height 1."""
        return (1 if self.array.ndim == 2 else self.array.shape[-2], self.array.shape[-1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (or images) of ``rows``."""
        return self.array[rows]

    def name(self, row: int) -> str:
        """The number of the row."""
        return f"row {row}"


@dataclass(frozen=True)
class Screen:
    """A plate-based microscopy screen.

    Attributes:
        table: a row for each image, ``RangeIndex``; the canonical columns (see :data:`COLUMNS`), ``plate_id``, which
            numbers the plates of the *whole* screen from 0, and any further column of the source.
        pixels: the images of the rows.
        classes: names of the labels: ``classes[label]``.
        fields: the images that the rows were cut out of, where they are cells and these are known.
    """

    table: pd.DataFrame
    pixels: Pixels
    classes: tuple[str, ...]
    fields: "Screen | None" = None

    def __len__(self) -> int:
        return len(self.table)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images of ``rows`` (N,): (N, C, H, W), in the source's own type."""
        return self.pixels.read(rows)

    @cached_property
    def plate_names(self) -> tuple[str, ...]:
        """A readable name, ``experiment/plate``, for every ``plate_id``."""
        return self.group_names(PLATE)

    @cached_property
    def plate_ids(self) -> np.ndarray:
        """``plate_id`` of every row, (N,) int64."""
        return self.table["plate_id"].to_numpy(np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """``label`` of every row, (N,) int64."""
        return self.table["label"].to_numpy(np.int64)

    @cached_property
    def negative_controls(self) -> np.ndarray:
        """Which rows are negative controls, (N,) bool."""
        return self.reference("negative")

    @cached_property
    def treated(self) -> np.ndarray:
        """Which rows are of treated wells, neither positive nor negative controls, (N,) bool."""
        return self.controls == 0

    @cached_property
    def controls(self) -> np.ndarray:
        """What every row is a control of, by its number in :data:`CONTROLS`; 0 is a treated well, (N,) int8."""
        return pd.Categorical(self.table["control"], CONTROLS).codes.astype(np.int8)

    def reference(self, kind: str) -> np.ndarray:
        """Which rows are controls of a kind of :data:`KINDS`, (N,) bool.

        Raises:
            ConfigError: an unknown kind.
        """
        return np.isin(self.controls, control_numbers(kind))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows, sorted."""
        return tuple(sorted(s for s in self.table["split"].unique() if s))

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split, ascending, (n,) int64.

        Raises:
            ConfigError: the split has no rows.
        """
        rows = np.flatnonzero((self.table["split"] == split).to_numpy())
        if not len(rows):
            if not self.splits:
                raise ConfigError(f"split '{split}' has no rows: this screen has no splits", advice="no_splits")
            raise ConfigError(f"split '{split}' has no rows; {did_you_mean(split, self.splits)}", advice="splits")
        return rows

    def with_shuffled_labels(self, split: str, seed: int) -> "Screen":
        """The same screen, in which the labelled rows of a split have each other's labels, at random.

        Nothing but the labels moves: what a network learns from such rows is what any result must beat.

        Raises:
            ConfigError: the split has no rows.

        >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 5) | {"label": [0, 1, 2, 3, 4], "split": [*"aaaab"]})
        >>> make_screen(table, None, [*"vwxyz"]).with_shuffled_labels("a", seed=0).labels
        array([2, 0, 1, 3, 4])
        """
        rows, labels = self.rows(split), self.labels.copy()
        rows = rows[labels[rows] != UNLABELLED]
        labels[rows] = np.random.default_rng(seed).permutation(labels[rows])
        return replace(self, table=self.table.assign(label=labels))

    def groups(self, columns: Sequence[str]) -> np.ndarray:
        """The group of every row by its values in ``columns``, (N,) int64; the screen's groups are numbered from 0.

        Raises:
            ConfigError: a column is neither in the table nor one of :data:`PARTS`.
            DataError: a row has no value in a column, or two values differ in nothing but case.
        """
        if tuple(columns) == PLATE:
            return self.plate_ids
        keys = self.keys(columns)
        return number_rows([keys[column] for column in columns])

    def group_names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """A readable name, the values joined by ``/``, for every group number of :meth:`groups`.

        Raises:
            DataError: two groups have the same name.
        """
        numbers = self.groups(columns)
        first = self.keys(columns).iloc[first_rows(numbers, int(numbers.max()) + 1)].astype(str)
        found = pd.Series(map("/".join, first.itertuples(index=False, name=None)))
        twice = found[found.duplicated()]
        if len(twice):
            raise DataError(f"two groups are called '{twice.iloc[0]}': leave / out of {' or '.join(columns)}")
        return tuple(found)

    def keys(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns to group by; those of a lab's own in the normal form of names, as the canonical ones are.

        Raises:
            ConfigError, DataError: as :meth:`groups`.
        """
        parts = {c: pd.Categorical(PARTS[c](self.table["well"])) for c in columns if c in PARTS and c not in self.table}
        missing = [c for c in columns if c not in self.table and c not in parts]
        if missing:
            hint = did_you_mean(missing[0], [*self.table.columns, *PARTS])
            raise ConfigError(f"cannot group by '{missing[0]}', which is not a column of this screen; {hint}")
        known = [c for c in columns if c in self.table and c not in COLUMNS]
        own = [c for c in known if not pd.api.types.is_integer_dtype(self.table[c])]
        normal = {c: coded(self.table[c], c, needed=True) for c in own}
        return pd.DataFrame({c: normal.get(c, parts.get(c, self.table.get(c))) for c in columns}, copy=False)


def make_screen(table: pd.DataFrame, pixels: Pixels, classes: Sequence[str]) -> Screen:
    """Check a source's table, number its plates and return the Screen.

    Args:
        table: the canonical columns, and any others; names become text in the normal form of
            :mod:`biomass.identifiers`, those of compounds and mechanisms, too.
        pixels: the images, in the order of the rows.
        classes: names of the labels.

    Raises:
        DataError: a canonical column is missing, a label has no class, a control is unknown, two names differ in
            nothing but case, or the table is empty.

    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, ["", ""]) | {"plate": ["A", "B"], "label": [0, -1]})
    >>> screen = make_screen(table, pixels=None, classes=["DMSO"])
    >>> screen.plate_ids, screen.labels
    (array([0, 1]), array([ 0, -1]))
    """
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise DataError(f"the table has no column '{missing[0]}'; it has: {', '.join(map(str, table.columns))}")
    if table.empty:
        raise DataError("the table has no rows; a screen needs at least one image")
    new: dict[Any, Any] = {}
    for column in COLUMNS:
        new[column] = table[column].to_numpy(np.int64, copy=True) if column == "label" else _names_of(table, column)
    bad = np.flatnonzero((new["label"] < UNLABELLED) | (new["label"] >= len(classes)))
    if len(bad):
        raise DataError(f"row {bad[0]} has label {new['label'][bad[0]]}, but there are {len(classes)} classes")
    unknown = sorted(set(new["control"].categories) - set(CONTROLS))
    if unknown:
        raise DataError(f"column 'control' says '{unknown[0]}'; it may say negative, positive, or nothing")
    new["plate_id"] = number_rows([pd.Series(new[column]) for column in PLATE])
    for own in (one for one in table if one not in new):
        new[own] = names(table[own], own) if own in NAMED else table[own].reset_index(drop=True)
    return Screen(pd.DataFrame(new, copy=False), pixels, tuple(map(str, classes)))


def _names_of(table: pd.DataFrame, column: str) -> pd.Categorical:
    return coded(table[column], column, form=well if column == "well" else normal)
