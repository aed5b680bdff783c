"""Pictures of what was found and cut, to look at: for each plate three fields with outlines, and some of its cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries
from tqdm import tqdm

from biomass.atomic import whole_file
from biomass.cells.fields import Nuclei
from biomass.cells.nuclei import segment_nuclei
from biomass.errors import BadImageError
from biomass.identifiers import folder_name
from biomass.pixels.processes import as_they_end
from biomass.screen import Pixels, Screen

_FIELD, _SMALL_FIELD = 800, 320  # width of a field in a picture, pixels; that small ones are drawn with
_CELL, _ROWS, _COLUMNS = 72, 6, 12  # side of a cell in a montage; how many
_CUT, _CROWDED, _LEFT_OUT = (80, 220, 80), (255, 190, 0), (255, 70, 70)
_CELLS = "_cells"
LEGEND = "green: cut; yellow: cut, with other nuclei in the crop; red: left out"
"""What the colours of nuclei mean."""


def pictures_of(store: str | Path) -> Path:
    """The folder for the pictures of a store of cells."""
    return Path(f"{store}.pictures")


def picture_of(folder: Path, plate: str) -> Path:
    """The picture of a plate, by its readable name, and no other plate's."""
    name = ",".join(map(folder_name, plate.split("/")))
    return folder / f"{name}{'%' * name.endswith(_CELLS)}.png"  # else it may be that of another plate's cells


def draw_plates(
    screen: Screen,
    nuclei: Nuclei,
    cells: Screen,
    folder: Path,
    channel: int,
    diameter: float | None = None,
    *,
    plates: Sequence[int] | None = None,
    workers: int | None = 1,
) -> list[Path]:
    """Draw the fields with the fewest, a middling number of and the most nuclei of each plate, and some of its cells.

    Args:
        screen: the fields.
        nuclei: of the fields.
        cells: what was cut, with the column ``image``.
        folder: where ``<plate>.png`` and ``<plate>_cells.png`` are written.
        channel: position of the channel that is shown.
        diameter: of a typical nucleus, pixels, where nuclei were found and their outlines are to be drawn; None where
            they were given: then a circle of their area is.
        plates: numbers of the plates to draw; all that were looked at if left out.
        workers: processes; as many as there are cores if left out; with 0 or 1, this one draws.

    Returns:
        The pictures of the fields.
    """
    keys = cells.table[["image", "y", "x"]].astype({"image": np.int64})
    crowded = pd.Series(cells.table["neighbours"].to_numpy() > 0, pd.MultiIndex.from_frame(keys.astype(np.float32)))
    crowded = crowded[~crowded.index.duplicated()]
    own = pd.MultiIndex.from_frame(nuclei.table[["image", "y", "x"]].astype(np.float32))
    kind = crowded.reindex(own).map({True: 1, False: 0}).fillna(2).to_numpy(np.int64)
    counts = np.bincount(nuclei.table["image"].to_numpy(np.int64), minlength=len(screen))
    jobs = []
    looked_at = screen.plate_ids[nuclei.fields]
    for plate in np.unique(looked_at) if plates is None else np.intersect1d(looked_at, plates):
        fields = nuclei.fields[looked_at == plate]
        fields = fields[np.argsort(counts[fields], kind="stable")]
        shown = fields[np.unique(np.linspace(0, len(fields) - 1, 3).round().astype(int))]
        of_shown = np.isin(nuclei.table["image"], shown)
        drawn = nuclei.table[of_shown].assign(kind=kind[of_shown])
        rows = np.flatnonzero(cells.plate_ids == plate)
        rows = np.sort(np.random.default_rng(int(plate)).permutation(rows)[: _ROWS * _COLUMNS])
        labels = ["/".join(map(str, screen.table.loc[row, ["well", "site"]])) for row in shown]
        jobs.append(
            _Plate(picture_of(folder, screen.plate_names[plate]), screen.plate_names[plate], shown, labels, drawn, rows)
        )
    draw = _Draw(screen.pixels, cells.pixels, channel, diameter)
    bar = tqdm(desc="Drawing plates", total=len(jobs), unit="plate", disable=None)
    with bar, as_they_end(draw, jobs, workers) as results:
        for _ in results:
            bar.update()
    return [job.file for job in jobs]


@dataclass(frozen=True)
class _Plate:
    """What is drawn of a plate."""

    file: Path
    name: str
    fields: np.ndarray
    labels: list[str]
    nuclei: pd.DataFrame
    cells: np.ndarray


@dataclass(frozen=True)
class _Draw:
    """Draws a plate; runs in the worker processes."""

    fields: Pixels
    cells: Pixels
    channel: int
    diameter: float | None

    def __call__(self, plate: _Plate) -> None:
        tiles = [
            self._field(int(row), label, plate.nuclei) for row, label in zip(plate.fields, plate.labels, strict=True)
        ]
        if len(plate.cells):
            montage = plate.file.with_name(f"{plate.file.stem}{_CELLS}.png")
            _save(self._montage(plate.cells), montage, f"{plate.name}: {len(plate.cells)} of its cells")
        _save(
            np.concatenate(tiles, axis=1), plate.file, f"{plate.name}    {LEGEND}"
        )  # last: it says that both are there

    def _field(self, row: int, label: str, nuclei: pd.DataFrame) -> np.ndarray:
        try:
            image = self.fields.read(np.array([row]))[0, self.channel].astype(np.float32)
        except BadImageError:
            image = np.zeros(self.fields.size, np.float32)
        share = min(max(1.0, _SMALL_FIELD / image.shape[1]), _FIELD / image.shape[1])
        size = (max(1, round(image.shape[1] * share)), max(1, round(image.shape[0] * share)))
        grey = np.asarray(Image.fromarray(_scaled(image, root=True)).resize(size, Image.Resampling.BILINEAR))
        picture = np.repeat(grey[:, :, None], 3, axis=2)
        if self.diameter is not None and image.any():
            labels = np.asarray(
                Image.fromarray(segment_nuclei(image, self.diameter)).resize(size, Image.Resampling.NEAREST)
            )
            picture[find_boundaries(labels, mode="inner")] = (90, 150, 255)
        drawn = Image.fromarray(picture)
        pen = ImageDraw.Draw(drawn)
        here = nuclei[nuclei["image"] == row]
        radii = np.sqrt(here["area"].to_numpy(np.float64) / np.pi) * share
        centres = here[["y", "x"]].to_numpy(np.float64) * share
        for (y, x), radius, kind in zip(centres.tolist(), radii.tolist(), here["kind"], strict=True):
            colour = (_CUT, _CROWDED, _LEFT_OUT)[int(kind)]
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
            if self.diameter is None and radius > 0:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
        pen.text((4, 4), f"{label}: {len(here)} nuclei", fill=(255, 255, 255))
        return np.pad(np.asarray(drawn), ((0, 0), (0, 4), (0, 0)))

    def _montage(self, rows: np.ndarray) -> np.ndarray:
        try:
            cells = self.cells.read(rows).astype(np.float32)
        except BadImageError:
            return np.zeros((_CELL, _CELL, 3), np.uint8)
        first = [self.channel, *(c for c in range(cells.shape[1]) if c != self.channel)][:3]
        colours = [_scaled(cells[:, c]) for c in reversed(first)]  # blue is the first, as DNA mostly is
        colours = colours * 3 if len(colours) == 1 else [np.zeros_like(colours[0])] * (3 - len(colours)) + colours
        tiles = [
            np.asarray(Image.fromarray(cell).resize((_CELL - 2, _CELL - 2), Image.Resampling.BILINEAR))
            for cell in np.stack(colours, axis=-1)
        ]
        sheet = np.zeros((-(-len(tiles) // _COLUMNS) * _CELL, _COLUMNS * _CELL, 3), np.uint8)
        for number, tile in enumerate(tiles):
            top, left = number // _COLUMNS * _CELL, number % _COLUMNS * _CELL
            sheet[top : top + _CELL - 2, left : left + _CELL - 2] = tile
        return sheet


def _scaled(values: np.ndarray, root: bool = False) -> np.ndarray:
    """Values as brightness from 0 to 255; ``root`` shows what is dim beside what is bright."""
    low, high = np.nanpercentile(values, (1, 99.8))
    share = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-9), 0, 1)
    return np.rint(255 * (np.sqrt(share) if root else share)).astype(np.uint8)


def _save(picture: np.ndarray, file: Path, title: str) -> None:
    wide = 8 + math.ceil(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title))
    image = Image.new("RGB", (max(picture.shape[1], wide), picture.shape[0] + 18))
    image.paste(Image.fromarray(picture), (0, 18))
    ImageDraw.Draw(image).text((4, 3), title, fill=(255, 255, 255))
    with whole_file(file) as part:
        image.save(part, "PNG")
