"""Measured curves: how accurate each way of taking statistics was, by wells, shift of the composition and controls.

The table is ``curves.csv`` beside this module, or one of the user's own, with a row a measurement:

==============  ========================================================================================================
``statistics``  the word; ``running`` is what the others of its origin are compared with: plain training, running
                averages
``wells``       treated wells of a group that statistics come from, the median over the groups (for ``running`` this and
                the next three are empty)
``alpha``       of the symmetric Dirichlet distribution that the classes of a group are drawn from; ``inf``: no shift
``controls``    control wells of a group that statistics come from
``kind``        of these controls: ``negative`` or ``all``; empty for ``plate``, which takes what is there
``accuracy``    0…1, of treated wells on plates that were not trained on
``low, high``   its 95 % interval over plates or seeds, relative to ``running``; empty where it is not known
``screens``     over how many screens it is a mean
``classes``     number of classes
``origin``      which screen and network: accuracies are compared within an origin only
==============  ========================================================================================================

Between measurements, accuracies relative to ``running`` are averaged with weights that fall with the distance (Shepard
1968), which is counted in octaves: doublings of the wells, of the effective wells (see :mod:`.design`) and of the
controls. Another kind of controls is an octave away. The interval says how far the measurements nearby lie apart, at
least as far as screens do on which the same was measured, and widens with their distance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.bounds import read_json
from biomass.errors import DataError, one_line
from biomass.evaluation.design import effective_wells
from biomass.table_files import read_table

CURVES = Path(__file__).with_name("curves.csv")
"""The curves that come with the package."""

NUMBERS = ("wells", "alpha", "controls", "accuracy", "low", "high", "screens", "classes")
COLUMNS = ("statistics", "kind", "origin", *NUMBERS)

_NEAR = 0.5  # octaves: measurements nearer than this count about alike
_NOISE = 0.1  # standard deviation of a log ratio: measurements that are less exact than this count less
_OCTAVE = 0.15  # what an octave between a design and the nearest measurement adds to the standard deviation, log ratio
_Z80 = 1.2816  # of the normal distribution: 10 % lie above
_Z95 = 1.9600
_SHOWN = 3  # measurements that are named
OUTSIDE = 1.0
"""Octaves from the nearest measurement from which a design counts as outside of what was measured."""


class Expected(NamedTuple):
    """Expected accuracy relative to running averages.

    Attributes:
        ratio: 1 is as good as running averages.
        low: 10 % of what is expected lies below.
        high: 10 % lies above.
        octaves: distance of the nearest measurement.
        origins: how many origins it rests on: 1 where one outweighs all.
        evidence: the measurements that count most, a line each.
    """

    ratio: float
    low: float
    high: float
    octaves: float
    origins: float
    evidence: tuple[str, ...] = ()

    @property
    def outside(self) -> bool:
        """Whether nothing like it was measured."""
        return self.octaves > OUTSIDE


@dataclass(frozen=True)
class Curves:
    """The measurements, see the module.

    Attributes:
        table: with the columns of the module; checked by :func:`read_curves`.
    """

    table: pd.DataFrame

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The rows that are compared with ``running``: ``statistics, kind, origin``; ``log`` of the ratio; ``spread``,
        its standard deviation, NaN where it is not known; ``x, y, z``, its place in octaves."""
        running = self.table["statistics"] == "running"
        base = self.table[running].groupby("origin")["accuracy"].mean()
        rows = self.table[~running]
        wells, alpha, controls, classes = rows[["wells", "alpha", "controls", "classes"]].to_numpy(float).T
        place = _place(wells, controls, 1 / (alpha * classes + 1))
        spread = np.log(rows["high"] / rows["low"]) / (2 * _Z95)
        log = np.log(rows["accuracy"] / rows["origin"].map(base))
        named = rows[["statistics", "kind", "origin"]]
        return named.assign(log=log, spread=spread, x=place[:, 0], y=place[:, 1], z=place[:, 2])

    @property
    def words(self) -> tuple[str, ...]:
        """The words that were measured."""
        return tuple(dict.fromkeys(self.table["statistics"]))

    @cached_property
    def between(self) -> float:
        """How far screens lie apart where the same was measured on several: standard deviation of the log ratio."""
        places = self.measured.groupby(["statistics", "kind", "x", "y", "z"])["log"]
        squares, free = (places.var() * (places.size() - 1)).sum(), (places.size() - 1).sum()
        return float(np.sqrt(squares / free)) if free else 0.0

    def expect(self, word: str, kind: str, wells: float, controls: float, correlation: float) -> Expected | None:
        """What to expect of a word on a design.

        Args:
            word: such as ``plate``.
            kind: of the controls: ``negative``, ``all`` or nothing.
            wells: treated wells of a typical group: the median, as in the table.
            controls: its control wells that statistics come from.
            correlation: the shift ρ of the composition of the groups.

        Returns:
            The expectation; None where the word was not measured.

        >>> round(read_curves().expect("plate", "", 277, 31, 0.0).ratio, 1)
        1.3
        """
        if word == "running":
            return Expected(1.0, 1.0, 1.0, 0.0, 1.0)
        known = self.measured[self.measured["statistics"] == word]
        if known.empty:
            return None
        here = _place(np.array([wells]), np.array([controls]), np.array([correlation]))
        apart = (here - known[["x", "y", "z"]].to_numpy()) ** 2
        apart[:, 2] *= bool(kind)  # where all wells count, controls are among the effective wells already
        far = apart.sum(1) + (known["kind"] != kind).to_numpy()
        log, spread = known["log"].to_numpy(), known["spread"].fillna(0.0).to_numpy()
        weight = 1 / (_NEAR**2 + far) ** 2 / (_NOISE**2 + spread**2)
        weight /= weight.sum()
        mean, octaves = float(weight @ log), float(np.sqrt(far.min()))
        around = max(float(weight @ (log - mean) ** 2), self.between**2)
        sd = np.sqrt(around + weight @ spread**2 + (_OCTAVE * octaves) ** 2)
        by_origin = pd.Series(weight).groupby(known["origin"].to_numpy()).sum()
        low, high = np.exp([mean - _Z80 * sd, mean + _Z80 * sd])
        nearest = known.index[np.argsort(-weight, kind="stable")[:_SHOWN]]
        evidence = tuple(f"{np.exp(known['log'][row]):.2f} {self._called(row)}" for row in nearest)
        origins = float(1 / (by_origin**2).sum())
        return Expected(float(np.exp(mean)), float(low), float(high), octaves, origins, evidence)

    def _called(self, row: int) -> str:
        """What to call a measurement."""
        one = self.table.loc[row]
        shift = f"α {one['alpha']:.2g}" if np.isfinite(one["alpha"]) else "no shift"
        return f"with {one['wells']:.0f} wells, {shift}, {one['controls']:.0f} controls: {one['origin']}"


def read_curves(path: str | Path | None = None) -> Curves:
    """Read measured curves.

    Args:
        path: a table as the module describes it; that of the package if left out.

    Raises:
        DataError: it cannot be read, lacks a column, a number is missing or out of range, or an origin has no row of
            ``running``.

    >>> read_curves().words
    ('running', 'plate', 'controls', 'shrunk', 'balanced')
    """
    file = read_table(path or CURVES, "curves", columns=COLUMNS)
    table = file.frame(numbers=NUMBERS)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    running = (table["statistics"] == "running").to_numpy()
    needed = {column: np.ones(len(table), bool) for column in ("accuracy", "classes")}
    needed |= dict.fromkeys(("wells", "alpha", "controls"), ~running)
    for column, rows in needed.items():
        bad = np.flatnonzero(rows & ~(table[column] >= 0).to_numpy())
        if len(bad):
            raise DataError(f"{file.place(bad[0])} has no number from 0 as '{column}': complete it")
    bad = np.flatnonzero(~table["accuracy"].between(0, 1, inclusive="right"))
    if len(bad):
        raise DataError(
            f"{file.place(bad[0])} has accuracy {table['accuracy'][bad[0]]}: write a number above 0, at most 1"
        )
    without = sorted(set(table["origin"]) - set(table["origin"][running]))
    if without:
        raise DataError(f"curves '{file.path}' have no row of running for origin '{without[0]}': add it")
    return Curves(table)


def curves_of_stress(files: Sequence[Path]) -> pd.DataFrame:
    """The table of the module from ``stress.json`` of stress tests on one screen: an origin each.

    What they are compared with is the best accuracy that running averages have in any of them: that of plain training,
    if a network that was trained so is among them.

    Raises:
        DataError: a file is not one of a stress test, or running averages are in none.
    """
    tests = {file: _read_stress(file) for file in files}
    running = [row["accuracy"] for test in tests.values() for row in test["results"] if _is_base(row)]
    if not running:
        raise DataError("no stress test tried running averages on whole plates, which the others are compared with")
    rows: list[dict[str, Any]] = []
    for file, test in tests.items():
        about = {"screens": 1, "classes": test["classes"], "origin": file.parent.name}
        rows.append({"statistics": "running", "accuracy": max(running)} | about)
        rows += [measured | about for row in test["results"] for measured in _measured(row, test)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(row: Mapping[str, Any], test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row of a stress test as one of curves; none where curves have no place for it."""
    word, _, kind = row["statistics"].partition("/")
    kind = (kind or "negative") if word in ("controls", "balanced") else ""
    axes = {"wells": "num_wells", "label_shift": "alpha", "controls": "num_controls"}
    if word == "running" or kind == "positive" or row["axis"] not in axes or not row["accuracy"]:
        return []
    here = {key: test[key] for key in axes.values()}
    here[axes[row["axis"]]] = None if row["value"] in ("all", "inf") else float(row["value"])
    wells, controls = (
        there if reduced is None else min(reduced, there)
        for reduced, there in ((here["num_wells"], test["wells"]), (here["num_controls"], test[kind or "all"]))
    )
    alpha = np.inf if here["alpha"] is None else here["alpha"]
    place = {"statistics": word, "kind": kind, "wells": wells, "alpha": alpha, "controls": controls}
    return [place | {name: row[name] for name in ("accuracy", "low", "high")}]


def _is_base(row: Mapping[str, Any]) -> bool:
    return row["statistics"] == "running" and (row["axis"], row["value"]) in (("wells", "all"), ("label_shift", "inf"))


def _read_stress(file: Path) -> dict[str, Any]:
    try:
        test = read_json(file.read_text())
        missing = {"results", "wells", "negative", "all", "classes", "num_wells", "alpha", "num_controls"} - set(test)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"'{file}' cannot be read ({one_line(error)}); give the folder of a stress test") from error
    if missing:
        raise DataError(f"'{file}' has no '{min(missing)}'; give the folder of a stress test of this version")
    return dict(test)


def _place(wells: np.ndarray, controls: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Where designs lie: octaves of the wells, of the effective wells and of the controls, (N, 3)."""
    effective = effective_wells(wells, controls, correlation)
    return np.log2(np.stack([np.maximum(wells + controls, 1), np.maximum(effective, 1), 1 + controls], axis=1))
