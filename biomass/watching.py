"""Predicting a screen while it is being imaged: wells as they arrive, and how settled the statistics of a plate are."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from biomass.atomic import whole_file
from biomass.errors import BiomassError, ConfigError, DataError, one_line
from biomass.evaluation.parts import members_of
from biomass.evaluation.predictions import write_predictions
from biomass.formulas import to_csv
from biomass.loader import SkippedImages
from biomass.pixels.files import FilePixels
from biomass.pixels.opening import QUIET
from biomass.pixels.origin import Stamps, stamp_files
from biomass.pixels.part import part_of
from biomass.screen import FIELD, Screen
from biomass.trained import Model, Reading
from biomass.training import Calibration

SETTLED = ((0.02, "settled"), (0.1, "settling"), (np.inf, "moving"))
"""A word for how far the moments of a plate moved since the last look, up to this much.

On 8 plates of a simulated screen, read well by well, 6 % of the earlier predictions changed where the moments moved by
up to 0.02, 17 % up to 0.1, and 55 % above.
"""

_NO_VARIANCE = 1e-12

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """What a look at a plate found.

    Attributes:
        look: its number, from 1.
        plate: its name.
        wells: how many are predicted now.
        images: how many rows of the screen they rest on.
        new: how many of them were not there before, or have changed since.
        unreadable: how many cannot be read, or not yet.
        moved: how far the moments of the plate moved, see :func:`movement`; NaN for a plate that was not known, and
            for statistics that are not measured.
        changed: the share of the fields predicted before whose class is another one now; NaN where there are none.
    """

    look: int
    plate: str
    wells: int
    images: int
    new: int
    unreadable: int
    moved: float
    changed: float

    @property
    def settled(self) -> str:
        """The plain word for :attr:`moved`."""
        return "new" if np.isnan(self.moved) else next(word for most, word in SETTLED if self.moved <= most)

    def __str__(self) -> str:
        left = f", {self.unreadable} not readable yet" if self.unreadable else ""
        moved = (
            "" if np.isnan(self.moved) else f"; statistics {self.settled}: moved by {self.moved:.3f} of their spread"
        )
        again = "" if np.isnan(self.changed) else f"; {100 * self.changed:.0f} % of earlier predictions changed"
        return f"plate '{self.plate}': {self.wells} wells, {self.images} images ({self.new} new{left}){moved}{again}"


def movement(before: Calibration | None, after: Calibration | None, plate: str) -> float:
    """How far the moments of a plate moved, in units of their spread; NaN where they were not known.

    With mean m and standard deviation s of every channel before, and m', s' after, it is the root of the mean over all
    channels of ``((m' - m) / s)² + (s' / s - 1)²``.

    >>> def one(mean, var):
    ...     moments = {"norms.0": torch.tensor([[[mean]], [[var]]])}
    ...     return Calibration("plate", ["plate"], "", None, ["P1"], [4], moments)
    >>> movement(one(5.0, 4.0), one(5.6, 6.7600002), "P1")  # the mean by 0.3 of 2, the deviation by 0.3
    0.424
    """
    if before is None or after is None or plate not in before.plates or plate not in after.plates:
        return float("nan")
    places = before.plates.index(plate), after.plates.index(plate)
    old, new = (
        torch.cat([one.moments[norm][:, place] for norm in before.moments], 1).double()
        for one, place in zip((before, after), places, strict=True)
    )
    varies = old[1] > _NO_VARIANCE
    (mean, var), (mean_now, var_now) = old[:, varies], new[:, varies]
    squares = (mean_now - mean).square() / var + ((var_now / var).sqrt() - 1).square()
    return float(squares.mean().sqrt())


@dataclass
class _Known:
    """The images of a screen at some look: what tells one from the others, and whether it has changed."""

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    stamps: Stamps = field(default_factory=lambda: Stamps.unknown(0))

    @classmethod
    def of(cls, screen: Screen) -> "_Known":
        pixels, table = screen.pixels, screen.table
        if isinstance(pixels, FilePixels):
            names = pd.DataFrame({str(n): column.arrow().to_pandas() for n, column in enumerate(pixels.files)})
            return cls(
                pd.util.hash_pandas_object(names, index=False).to_numpy(), stamp_files(pixels.root, pixels.files)
            )
        names = table[list(FIELD)].astype(str)
        names["number"] = names.groupby(list(FIELD), sort=False).cumcount()
        known = Stamps(*np.zeros((2, len(table)), np.int64))
        return cls(pd.util.hash_pandas_object(names, index=False).to_numpy(), known)

    def updated(self, newer: Sequence["_Known"]) -> "_Known":
        """With those of others, which replace what is known of the same images."""
        keys = np.concatenate([self.keys[:0], *(one.keys for one in newer)])
        parts = [self.some(np.flatnonzero(~np.isin(self.keys, keys))), *newer]
        stamps = (np.concatenate(of_all) for of_all in zip(*(one.stamps for one in parts), strict=True))
        return _Known(np.concatenate([one.keys for one in parts]), Stamps(*stamps))

    def same_as(self, other: "_Known") -> np.ndarray:
        """Which images are there in another one, unchanged, (N,) bool."""
        place = pd.Index(other.keys).get_indexer(pd.Index(self.keys))
        there = np.flatnonzero(place >= 0)
        same = np.zeros(len(self.keys), bool)
        same[there] = (self.stamps.times[there] == other.stamps.times[place[there]]) & (
            self.stamps.sizes[there] == other.stamps.sizes[place[there]]
        )
        return same

    def some(self, rows: np.ndarray) -> "_Known":
        """Those of some rows."""
        return _Known(self.keys[rows], Stamps(self.stamps.sizes[rows], self.stamps.times[rows]))


@dataclass
class _Plate:
    """What a plate gave at the last look at which it had changed."""

    read: _Known
    fields: pd.DataFrame
    wells: pd.DataFrame
    said: pd.Series  # the class of each field, by the key of its first row


class Watch:
    """Predicts a screen again and again, as far as it is there. After each look, all that is known is on the disk.

    Args:
        model: loaded; what it measures of plates is kept in it.
        refresh: reads the screen as it is now (or indexes its folder first). An error of the family means that it
            cannot be read yet.
        reading: how images are read; unreadable ones must be skipped.
        folder: where ``predictions.parquet`` and ``predictions_wells.parquet`` go.
        calibration: file for what is measured of plates; None: beside the checkpoint.
    """

    def __init__(
        self,
        model: Model,
        refresh: Callable[[], Screen],
        reading: Reading,
        folder: Path,
        calibration: str | None = None,
    ) -> None:
        self.model, self.refresh, self.reading = model, refresh, reading
        self.folder, self.calibration = folder, calibration
        self.news: list[News] = []
        self.looks = 0
        self._plates: dict[str, _Plate] = {}
        self._before = _Known()
        self._read = _Known()
        self._waiting = False

    def run(self, seconds: float, stop_after: float | None) -> None:
        """Look every so many seconds, until nothing has come for a while, or Ctrl-C.

        Args:
            seconds: between two looks.
            stop_after: seconds without anything new after which it ends; None: never.

        Raises:
            DataError: nothing could be read all the time.
        """
        last = time.monotonic()
        try:
            while True:
                if self.look(min(QUIET, seconds)) or self._waiting:
                    last = time.monotonic()
                idle = time.monotonic() - last
                if stop_after is not None and idle >= stop_after:
                    log.info("nothing has come for %.0f seconds: this is the end", idle)
                    break
                time.sleep(seconds)
        except KeyboardInterrupt:
            log.info("stopped; what was predicted is written")
        if not self._plates:
            raise DataError(f"no image could be predicted in {self.looks} looks; see the warnings above")

    def look(self, quiet: float = 0.0) -> list[News]:
        """Predict the plates that have changed since the last look, and write everything.

        Args:
            quiet: seconds for which a file must not have changed, unless it was the same the look before.
        """
        self.looks += 1
        try:
            screen = self.refresh()
        except ConfigError:  # a setting does not fit, which time does not mend
            raise
        except BiomassError as error:
            self._say_once(f"the screen cannot be read yet: {one_line(error)}")
            return []
        now = _Known.of(screen)
        there = now.stamps.times >= 0
        ready = there & (now.same_as(self._before) | (now.stamps.times <= (time.time() - quiet) * 1e9))
        self._before, self._waiting = now, bool((there & ~ready).any())
        groups, names = screen.groups(self.model.by), screen.group_names(self.model.by)
        fresh = np.bincount(groups[ready & ~now.same_as(self._read)], minlength=len(names))
        gone = self._gone(now, groups, names)
        news: list[News] = []
        for group, rows in enumerate(members_of(groups)):
            new, name, rows = int(fresh[group]), names[group], rows[ready[rows]]
            if not new and name not in gone:
                continue
            try:
                if not len(rows):
                    raise DataError("none of its images is there")
                news.append(self._predict(part_of(screen, rows), now.some(rows), name, new))
            except DataError as error:
                self._say_once(f"plate '{name}' cannot be predicted yet: {one_line(error)}")
        self._read = self._read.updated([self._plates[one.plate].read for one in news])
        for name in gone - set(names):
            self._say_once(f"plate '{name}' is not listed any more: its predictions are taken out")
            del self._plates[name]
        if news or gone:
            self._write()
        return news

    def _gone(self, now: _Known, groups: np.ndarray, names: Sequence[str]) -> set[str]:
        """Plates of which an image is not listed any more, or is of another plate now."""
        if not self._plates:
            return set()
        places = pd.Index(now.keys)
        number = {name: group for group, name in enumerate(names)}
        of_place = np.append(groups, -1)  # -1 is the last
        lost = {name: of_place[places.get_indexer(pd.Index(plate.read.keys))] for name, plate in self._plates.items()}
        return {name for name, found in lost.items() if (found != number.get(name, -2)).any()}

    def _predict(self, screen: Screen, read: _Known, name: str, new: int) -> News:
        """Measure and predict what there is of a plate, a screen of its own."""
        before = [member.calibration for member in self.model.members]
        skipped = SkippedImages(screen)
        every = np.arange(len(screen))
        found = self.model.predictions(screen, self.reading, skipped, keep=True, again=True, only=every)
        fields, wells = found.of_fields(), found.of_wells()
        first = found.fields.first[found.counts > 0]
        said = pd.Series(fields["prediction"].to_numpy(), index=read.keys[first])
        known = self._plates.get(name)
        both = said.index.intersection(known.said.index) if known else said.index[:0]
        changed = float((said[both] != known.said[both]).mean()) if known and len(both) else float("nan")
        after = [member.calibration for member in self.model.members] if self.model.measures else []
        moved = [movement(*pair, name) for pair in zip(before, after, strict=False)]
        self._plates[name] = _Plate(read, fields, wells, said)
        self._about = found.about
        images = len(screen) - len(skipped.rows)
        how_far = float(np.mean(moved)) if moved else float("nan")
        news = News(self.looks, name, len(wells), images, new, len(skipped.rows), how_far, changed)
        self.news.append(news)
        log.info("%s", news)
        return news

    def _write(self) -> None:
        plates = self._plates.values()
        if not plates:
            return
        fields = pd.concat([plate.fields for plate in plates], ignore_index=True)
        wells = pd.concat([plate.wells for plate in plates], ignore_index=True)
        write_predictions(fields, self.folder / "predictions.parquet", self._about)
        write_predictions(wells, self.folder / "predictions_wells.parquet", self._about)
        with whole_file(self.folder / "watch.csv") as part:
            part.write_text(to_csv(to_table(self.news)), encoding="utf-8")
        if self.model.measures:
            self.model.save_adaptation(self.calibration)

    def _say_once(self, message: str) -> None:
        """A warning, unless it was the last one."""
        if message != getattr(self, "_said", None):
            log.warning("%s", message)
        self._said = message


def to_table(news: Sequence[News]) -> pd.DataFrame:
    """A row a look at a plate.

    >>> to_table([News(1, "P1", 2, 4, 4, 0, float("nan"), float("nan"))])[["plate", "images", "settled"]]
      plate  images settled
    0    P1       4     new
    """
    return pd.DataFrame([asdict(one) | {"settled": one.settled} for one in news])
