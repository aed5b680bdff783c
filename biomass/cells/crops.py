"""Single cells cut out of fields of view, around their nuclei.

:func:`crop_screen` turns a Screen of fields and their nuclei into a Screen of cells, which reads a field when one of
its cells is wanted.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from biomass.cells.fields import ROW_COLUMNS, Nuclei
from biomass.errors import BadImageError, ConfigError, DataError, NoCellsError
from biomass.pixels.origin import Stamps
from biomass.pixels.packed_writer import stamps_of
from biomass.screen import Pixels, Screen, make_screen


def _corners(centres: np.ndarray, size: int) -> np.ndarray:
    """The uppermost, leftmost pixel of every crop, (n, 2) int64."""
    return np.rint(centres).astype(np.int64) - size // 2


def crops_inside(centres: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Which crops lie entirely inside an image, (n,) bool: the published rule (Lin & Lu 2022) keeps only those.

    Args:
        centres: y and x, pixels, (n, 2).
        shape: (H, W) of the image.
        size: height and width of a crop, pixels.

    >>> crops_inside(np.array([[2.4, 7], [1.6, 7], [1.4, 7]]), (10, 10), 4).tolist()  # rows 0-3, 0-3, -1-2
    [True, True, False]
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

    >>> image = np.arange(100).reshape(1, 10, 10)
    >>> cut_crops(image, np.array([[2, 7]]), 2).tolist()
    [[[[16, 17], [26, 27]]]]
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
        fields: the images of the fields.
        field: (N,) int64, the field of every cell, a row of ``fields``.
        centres: (N, 2) float64, y and x of its centre, pixels.
        size: (S, S) of every crop, pixels.
        channels: names of the C channels.
    """

    fields: Pixels
    field: np.ndarray
    centres: np.ndarray
    size: tuple[int, int]
    channels: tuple[str, ...]
    _last: tuple[int, np.ndarray] | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.field)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_last": None}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Cut out the cells ``rows`` (N,): (N, C, S, S), of the fields' type. Every field is read once.

        Raises:
            BadImageError: a field cannot be read.
        """
        fields, which = np.unique(self.field[rows], return_inverse=True)
        crops = np.empty((len(rows), len(self.channels), *self.size), np.uint8)
        for number, row in enumerate(fields.tolist()):
            inside = np.flatnonzero(which == number)
            try:
                cut = cut_crops(self._read_field(row), self.centres[rows[inside]], self.size[0])
            except BadImageError as error:
                raise BadImageError(str(error), int(rows[inside[0]]), error.advice, error.kind) from error
            if not number:
                crops = np.empty((len(rows), *cut.shape[1:]), cut.dtype)
            crops[inside] = cut
        return crops

    def _read_field(self, row: int) -> np.ndarray:
        """An image (C, H, W); kept until the next one, because a batch often ends within a field."""
        if self._last is None or self._last[0] != row:
            self._last = (row, self.fields.read(np.array([row]))[0])
        return self._last[1]

    def stamps(self) -> Stamps:
        """Of the fields' files."""
        of_fields = stamps_of(self.fields, int(self.field.max(initial=-1)) + 1)
        return Stamps(of_fields.sizes[self.field], of_fields.times[self.field])

    def name(self, row: int) -> str:
        """The field's name, and where the cell lies in it."""
        y, x = self.centres[row]
        return f"{self.fields.name(int(self.field[row]))} at y {y:.1f}, x {x:.1f}"


def crop_screen(screen: Screen, nuclei: Nuclei, size: int = 48, *, alone: bool = False) -> Screen:
    """The cells of a screen: a row a nucleus whose crop lies inside its field, in the order of the fields.

    The table has the columns of the fields' table, and

    * ``image`` (row of the field in ``screen``) and ``cell`` (number within the field, from 0),
    * ``x, y`` (centre) and ``area`` of the nucleus, and how many other nuclei have their centre in the crop:
      ``neighbours``,
    * where the nucleus is in the table that it was read from: ``nucleus``, and other :data:`ROW_COLUMNS`; see
      :func:`biomass.cells.tables.read_any_nuclei`. Of nuclei that were found, ``nucleus`` is the number within the
      field, in the order in which they are kept.

    Fields without cells have no rows in it: :func:`biomass.cells.fields.count_cells` tells which they are.

    Args:
        screen: the fields.
        nuclei: of the fields.
        size: height and width of a crop, pixels.
        alone: leave out crops with neighbours.

    Raises:
        ConfigError: the crops are larger than the images.
        NoCellsError: no crop lies inside its field.
    """
    check_crop_size(screen, size)
    if nuclei.table.empty:
        raise NoCellsError(f"there is not one nucleus in the {len(screen)} fields: check where they come from")
    cells = nuclei.table.sort_values("image", kind="stable")
    of_field = cells.groupby("image").cumcount().to_numpy(np.int64)
    if "nucleus" not in cells:
        cells = cells.assign(nucleus=of_field)
    cells = cells.assign(neighbours=count_neighbours(cells["image"], cells[["y", "x"]], size))
    cells = cells[crops_inside(cells[["y", "x"]].to_numpy(np.float64), screen.pixels.size, size)]
    if alone and len(cells):
        cells = cells[cells["neighbours"] == 0]
        if cells.empty:
            raise NoCellsError(
                f"every crop of {size} pixels holds more than one nucleus: cut smaller crops, or keep them"
            )
    if cells.empty:
        raise NoCellsError(
            f"no crop of {size} pixels around one of the {len(nuclei.table)} nuclei lies inside its field: "
            "cut smaller crops, or check the nuclei"
        )
    image = cells["image"].to_numpy(np.int64)
    table = screen.table.drop(columns="plate_id").iloc[image].reset_index(drop=True)
    table["image"] = image
    table["cell"] = cells.groupby("image").cumcount().to_numpy(np.int64)
    for column in ("x", "y", "area"):
        table[column] = cells[column].to_numpy(np.float32)
    table["neighbours"] = cells["neighbours"].to_numpy()
    for column in ROW_COLUMNS:
        if column in cells:
            table[column] = cells[column].to_numpy() if column == "nucleus" else cells[column].array
    centres = cells[["y", "x"]].to_numpy(np.float64)
    pixels = CropPixels(screen.pixels, image, centres, (size, size), screen.pixels.channels)
    return dataclasses.replace(make_screen(table, pixels, screen.classes), fields=screen)


def count_neighbours(fields: object, centres: object, size: int) -> np.ndarray:
    """How many other nuclei of the same field have their centre in the crop around each of N nuclei, (N,) int64.

    Args:
        fields: (N,) the field of every nucleus, a number.
        centres: y and x, pixels, (N, 2).
        size: height and width of a crop, pixels.

    >>> count_neighbours([0, 0, 0, 1], [[10, 10], [10, 14], [30, 10], [10, 10]], 8).tolist()
    [0, 1, 0, 0]
    """
    field, pixels = np.asarray(fields, np.int64), np.rint(np.asarray(centres, np.float64)).astype(np.int64)
    counts = np.zeros(len(field), np.int64)
    if not len(field):
        return counts
    # One tree for all fields: they lie apart along a third axis.
    tree = cKDTree(np.column_stack([field * 2.0 * size, pixels]))
    one, other = tree.query_pairs(size // 2, p=np.inf, output_type="ndarray").T
    for a, b in ((one, other), (other, one)):
        apart = pixels[b] - pixels[a] + size // 2
        inside = ((apart >= 0) & (apart < size)).all(axis=1)  # a crop of even size has one pixel more above and left
        counts += np.bincount(a[inside], minlength=len(field))
    return counts


def check_crop_size(screen: Screen, size: int) -> None:
    """Make sure that crops are not larger than the images, in pixels."""
    if not 1 <= size <= min(screen.pixels.size):
        raise ConfigError(
            f"crops of {size} pixels cannot be cut out of images of {screen.pixels.size[0]} x "
            f"{screen.pixels.size[1]}: choose a size in between"
        )
