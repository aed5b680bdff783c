"""How a classifier holds where plates are small, unevenly composed, without controls, or still being read.

A plate is run again and again as if it had only some of its wells. Wells are drawn, not images: all images of a well
come with it. Accuracy is that over the treated wells that were drawn, a well that was drawn twice counting twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.inference import Transform, run_plate
from biomass.loader import Batch
from biomass.norms import Statistics
from biomass.screen import FIELD, Screen

WELL = tuple(column for column in FIELD if column != "site")
COLUMNS = ("statistics", "axis", "value", "repeats", "accuracy", "low", "high")
"""The columns of a stress test's table."""


class Condition(NamedTuple):
    """What a plate is reduced to.

    Attributes:
        wells: treated wells; None for all that there are.
        alpha: concentration of the Dirichlet distribution that the shares of the classes are drawn from, over the
            classes of the plate; infinity for wells drawn evenly, each at most once.
        controls: control wells; None for all that there are.
        effect: strength of a synthetic plate effect, see :func:`plate_effect`.
    """

    wells: int | None = None
    alpha: float = np.inf
    controls: int | None = None
    effect: float = 0.0

    def check(self) -> "Condition":
        """The same.

        Raises:
            ConfigError: a value is out of range.
        """
        if not self.alpha > 0:
            raise ConfigError(
                f"label shift has the concentration {self.alpha:g}; it must be above 0, .inf for none, 0.01 for one "
                "class on most plates"
            )
        if self.wells is not None and self.wells < 1:
            raise ConfigError(f"statistics are to come from {self.wells} wells; give 1 or more")
        if self.controls is not None and self.controls < 0:
            raise ConfigError(f"a plate is to have {self.controls} controls; give 0 or more")
        if not self.effect >= 0:
            raise ConfigError(f"the strength of a plate effect is {self.effect:g}; give 0 or more")
        return self


WHOLE = Condition()
"""A plate as it is."""


@dataclass(frozen=True)
class PlateWells:
    """The wells of one plate: which rows each holds.

    Attributes:
        rows: (N,) rows of the screen, well by well.
        starts: (W + 1,) where the rows of each well begin.
        labels: (W,) class of each well.
        controls: (W,) what it is a control of, as :attr:`biomass.screen.Screen.controls`.
    """

    rows: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    controls: np.ndarray

    def without(self, rows: np.ndarray) -> "PlateWells":
        """The same without some rows, those of images that cannot be read; wells without any image are left out.

        >>> plate = PlateWells(np.array([4, 5, 6]), np.array([0, 2, 3]), np.array([0, 1]), np.array([0, 0]))
        >>> plate.without(np.array([5, 6]))
        PlateWells(rows=array([4]), starts=array([0, 1]), labels=array([0]), controls=array([0]))
        """
        kept = ~np.isin(self.rows, rows)
        counts = np.add.reduceat(kept, self.starts[:-1])
        some = counts > 0
        starts = np.concatenate([[0], np.cumsum(counts[some])])
        return PlateWells(self.rows[kept], starts, self.labels[some], self.controls[some])

    def positions(self, wells: np.ndarray) -> np.ndarray:
        """Where the rows of some wells stand among ``rows``, a well as often as it is named."""
        return np.concatenate([np.arange(self.starts[well], self.starts[well + 1]) for well in wells])


def plates_of(screen: Screen, rows: np.ndarray, by: Sequence[str]) -> dict[int, PlateWells]:
    """The wells of each group (a plate, mostly) among some rows; treated wells without a label are left out.

    Raises:
        DataError: no group has a treated well with a label.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 3) | {"well": ["A01", "A02", "A01"], "label": [0, 1, 0]})
    >>> (plate,) = plates_of(make_screen(table, None, ["a", "b"]), np.arange(3), ["plate"]).values()
    >>> plate.rows.tolist(), plate.starts.tolist(), plate.labels.tolist()
    ([0, 2, 1], [0, 2, 3], [0, 1])
    """
    known = (screen.labels[rows] >= 0) | (screen.controls[rows] > 0)
    rows = rows[known]
    groups, wells = screen.groups(by)[rows], screen.groups(WELL)[rows]
    order = np.lexsort((wells, groups))
    rows, groups, wells = rows[order], groups[order], wells[order]
    found = {}
    for group in np.unique(groups):
        here = slice(*np.searchsorted(groups, [group, group + 1]))
        starts = np.flatnonzero(np.diff(wells[here], prepend=-1))
        first = rows[here][starts]
        plate = PlateWells(rows[here], np.append(starts, len(rows[here])), screen.labels[first], screen.controls[first])
        if (plate.controls == 0).any():
            found[int(group)] = plate
    if not found:
        raise DataError("no plate has a treated well with a label, so that nothing can be scored; map a label column")
    return found


def draw_wells(rng: np.random.Generator, plate: PlateWells, condition: Condition) -> np.ndarray:
    """Wells of a plate under a condition, treated ones first; each as often as it was drawn.

    Wells of a class are taken in random order, and again from the first when all are taken.

    >>> plate = PlateWells(np.arange(6), np.arange(7), np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1]))
    >>> draw_wells(np.random.default_rng(0), plate, Condition(alpha=0.01, controls=1)).tolist()
    [0, 1, 0, 1, 4]
    """
    treated, controls = np.flatnonzero(plate.controls == 0), np.flatnonzero(plate.controls > 0)
    number = len(treated) if condition.wells is None else condition.wells
    if np.isinf(condition.alpha):
        drawn = rng.permutation(treated)[:number]
    else:
        classes, of_class = np.unique(plate.labels[treated], return_inverse=True)
        shares = rng.dirichlet(np.full(len(classes), condition.alpha))
        counts = rng.multinomial(number, shares if np.isfinite(shares).all() else np.eye(len(classes))[0])
        piles = [rng.permutation(treated[of_class == k]) for k in range(len(classes))]
        drawn = np.concatenate([np.resize(pile, count) for pile, count in zip(piles, counts, strict=True)])
    kept = len(controls) if condition.controls is None else condition.controls
    return np.concatenate([drawn, rng.permutation(controls)[:kept]]).astype(np.int64)


def plate_effect(images: Tensor, strength: float, seed: int) -> Tensor:
    """Images as another plate would show them: for each channel another gamma, and light that falls off to one side.

    What standardization of an image takes out, offset and gain, is left out. At strength 1 gamma differs by a factor of
    about 1.3 from plate to plate, and the light by about 30 % from side to side.

    Args:
        images: (N, C, H, W) raw, not negative.
        strength: 0 leaves the images as they are.
        seed: of the plate; the same for all of its images.

    >>> images = torch.rand(2, 3, 4, 4)
    >>> torch.equal(plate_effect(images, 0.0, 1), images), torch.equal(plate_effect(images, 1.0, 1), images)
    (True, False)
    """
    if strength == 0:
        return images
    rng = np.random.default_rng(seed)
    channels, (height, width) = images.shape[1], images.shape[2:]
    gamma = torch.from_numpy(np.exp(0.25 * strength * rng.standard_normal((channels, 1, 1)))).float()
    slope = torch.from_numpy(0.3 * strength * rng.standard_normal((2, channels, 1, 1))).float()
    y = torch.linspace(-0.5, 0.5, height)[:, None]
    x = torch.linspace(-0.5, 0.5, width)[None]
    light = (slope[0] * y + slope[1] * x).exp()
    top = images.amax((0, 2, 3), keepdim=True).float().clamp(min=1e-6)
    return (images.float() / top) ** gamma.to(images.device) * top * light.to(images.device)


class Bench:
    """Runs one network over one plate at a time, under any condition and any statistics.

    Args:
        fabric: device and precision.
        network: on that device; its outputs are logits.
        transform: applied on the device.
        batch_size: images at once; None: all of a plate. It never changes a result.
    """

    def __init__(self, fabric: Fabric, network: nn.Module, transform: Transform, batch_size: int | None = None) -> None:
        self.fabric, self.network, self.transform, self.batch_size = fabric, network, transform, batch_size

    def prepare(self, plate: Batch, effect: float = 0.0, seed: int = 0) -> Batch:
        """The plate under a plate effect, its images transformed, on the device: done once for all that is drawn."""
        size, device = self.batch_size or len(plate), self.fabric.device
        with torch.inference_mode():
            chunks = [plate_effect(chunk.to(device).float(), effect, seed) for chunk in plate.images.split(size)]
            return replace(plate, images=torch.cat([self.transform(chunk) for chunk in chunks]))

    def predict(self, plate: Batch, positions: np.ndarray, statistics: Statistics) -> np.ndarray:
        """The class that is predicted for each of some images of a plate, which are all that statistics see.

        Args:
            plate: all images of the plate, as :meth:`prepare` gives them.
            positions: (n,) which of them.
            statistics: where batch norm takes its statistics from.

        Returns:
            (n,) int64.
        """
        size = self.batch_size or len(positions)
        chunks = [take(plate, part) for part in np.split(positions, range(size, len(positions), size))]
        device = self.fabric.device
        mode = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode(), self.fabric.autocast():
                if statistics.whole_groups:
                    logits = run_plate(self.network, chunks, as_it_is, statistics, device, classifies=True)
                else:
                    logits = [run_plate(self.network, [one], as_it_is, statistics, device)[0] for one in chunks]
                return torch.cat(logits).argmax(1).cpu().numpy()
        finally:
            self.network.train(mode)


def as_it_is(images: Tensor) -> Tensor:
    """No transform."""
    return images


def take(batch: Batch, positions: np.ndarray) -> Batch:
    """Some images of a batch, in another order or several times."""
    at = torch.from_numpy(positions)
    fields = ("images", "labels", "rows", "groups", "instances", "controls")
    return replace(batch, **{field: getattr(batch, field)[at] for field in fields})


AXES = {
    "wells": "treated wells",
    "label_shift": "concentration of the classes, Dirichlet",
    "controls": "control wells",
    "effect": "strength of a synthetic plate effect",
    "prospective": "wells read so far",
}
"""What is varied, and what its values are."""

_CHANGES: Mapping[str, Callable[[Condition, float | None], Condition]] = {
    "wells": lambda base, value: base._replace(wells=None if value is None else int(value)),
    "label_shift": lambda base, value: base._replace(alpha=np.inf if value is None else value),
    "controls": lambda base, value: base._replace(controls=None if value is None else int(value)),
    "effect": lambda base, value: base._replace(effect=value or 0.0),
}

ALL = "all"
"""The value of an axis that leaves a plate as it is: all of its wells."""


@dataclass(frozen=True)
class StressTest:
    """What is tried on every plate.

    Attributes:
        statistics: what statistics are called → these statistics; all over the groups of one screen.
        axes: of :data:`AXES` → values; None stands for all wells of a plate.
        base: the condition of a plate on every axis but the one that is varied.
        repeats: how often wells are drawn anew where there is a choice.
        seed: of the draws.
    """

    statistics: Mapping[str, Statistics]
    axes: Mapping[str, Sequence[float | None]]
    base: Condition = WHOLE
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for axis in self.axes:
            if axis not in AXES:
                raise ConfigError(f"axis '{axis}' is unknown; {did_you_mean(axis, AXES)}")
        if self.repeats < 1:
            raise ConfigError(f"wells are to be drawn {self.repeats} times; give 1 or more")
        for _, _, condition in self.conditions():
            condition.check()
        for value in self.axes.get("prospective", ()):
            Condition(wells=None if value is None else int(value)).check()

    def conditions(self) -> list[tuple[str, float | None, Condition]]:
        """Axis, value and condition of every point but those of the prospective curve."""
        found = []
        for axis, change in _CHANGES.items():
            found += [(axis, value, change(self.base, value)) for value in self.axes.get(axis, ())]
        return found

    def on_plate(self, bench: Bench, plate: Batch, wells: PlateWells) -> list[dict[str, Any]]:
        """The results on one plate, as records of ``statistics, axis, value, repeat, accuracy, drift``.

        A plate has no result at numbers of wells that it does not hold, and a word that needs controls none where a
        draw holds none. ``drift`` is the share of the treated images
        read so far that are predicted otherwise once the whole plate is read; it is missing on other axes.

        Args:
            bench: runs the network.
            plate: all images of the plate, in the order of ``wells.rows``.
            wells: of the plate.
        """
        rows: list[tuple[object, ...]] = []
        group = int(plate.groups[0])
        prepared = {0.0: bench.prepare(plate)}
        known: dict[tuple[Condition, int], list[tuple[str, float]]] = {}
        treated = int((wells.controls == 0).sum())
        for axis, value, condition in self.conditions():
            if (condition.wells or 0) > treated or (condition.controls or 0) > len(wells.controls) - treated:
                continue
            for repeat in range(self.repeats if self._is_drawn(condition, wells) else 1):
                key = condition, repeat
                if key not in known:
                    rng = np.random.default_rng((self.seed, group, repeat, *_numbers(condition)))
                    positions = wells.positions(draw_wells(rng, wells, condition))
                    if condition.effect not in prepared:  # no more than two of them at a time
                        effect, seed = condition.effect, self.seed + group
                        prepared = {0.0: prepared[0.0], effect: bench.prepare(plate, effect, seed)}
                    known[key] = list(self._accuracies(bench, prepared[condition.effect], positions))
                rows += [(name, axis, _shown(axis, value), repeat, accuracy, None) for name, accuracy in known[key]]
        rows += self._prospective(bench, prepared[0.0], wells)
        names = ("statistics", "axis", "value", "repeat", "accuracy", "drift")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _is_drawn(self, condition: Condition, wells: PlateWells) -> bool:
        treated = int((wells.controls == 0).sum())
        every = condition.wells is None or condition.wells >= treated
        controls = condition.controls is None or condition.controls >= len(wells.controls) - treated
        return not (every and controls and np.isinf(condition.alpha))

    def _accuracies(self, bench: Bench, plate: Batch, positions: np.ndarray) -> Iterator[tuple[str, float]]:
        treated = plate.controls.numpy()[positions] == 0
        for name, predicted in self._predictions(bench, plate, positions):
            yield name, float((predicted == plate.labels.numpy()[positions])[treated].mean())

    def _predictions(self, bench: Bench, plate: Batch, positions: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for name, statistics in self.statistics.items():
            if statistics.has_what_it_needs(plate.controls[torch.from_numpy(positions)]):
                yield name, bench.predict(plate, positions, statistics)

    def _prospective(self, bench: Bench, plate: Batch, wells: PlateWells) -> list[tuple[object, ...]]:
        """The plate as it is read, well by well in the order of their names."""
        if not self.axes.get("prospective"):
            return []
        everything = np.arange(len(wells.controls))
        whole = dict(self._predictions(bench, plate, wells.positions(everything)))
        rows: list[tuple[object, ...]] = []
        for value in self.axes["prospective"]:
            if value is not None and value > len(everything):
                continue
            positions = wells.positions(everything[: None if value is None else int(value)])
            treated = plate.controls.numpy()[positions] == 0
            if not treated.any():
                continue
            right = plate.labels.numpy()[positions]
            for name, predicted in self._predictions(bench, plate, positions):
                accuracy = float((predicted == right)[treated].mean())
                drift = float((predicted != whole[name][: len(positions)])[treated].mean())
                rows.append((name, "prospective", _shown("prospective", value), 0, accuracy, drift))
        return rows


def describe(plates: Sequence[PlateWells], base: Condition = WHOLE) -> dict[str, float | None]:
    """What a plate holds, for whoever compares stress tests of several screens: medians over plates.

    Returns:
        ``wells`` treated wells, ``negative`` and ``all`` control wells, ``classes`` of treated wells on all plates, and
        the base condition: ``num_wells, alpha, num_controls``, None for all or for no shift.

    >>> plate = PlateWells(np.arange(4), np.arange(5), np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2]))
    >>> describe([plate])["wells"], describe([plate])["all"], describe([plate])["classes"]
    (2.0, 2.0, 2)
    """
    treated = [plate.labels[plate.controls == 0] for plate in plates]
    return {
        "wells": float(np.median([len(labels) for labels in treated])),
        "negative": float(np.median([(plate.controls == 1).sum() for plate in plates])),
        "all": float(np.median([(plate.controls > 0).sum() for plate in plates])),
        "classes": len(np.unique(np.concatenate(treated))),
        "num_wells": base.wells,
        "alpha": None if np.isinf(base.alpha) else base.alpha,
        "num_controls": base.controls,
    }


def to_markdown(table: pd.DataFrame) -> str:
    """A table of accuracies in per cent, an axis after the other: statistics against values.

    >>> values = ["plate", "wells", "all", 2, 0.3, 0.2, 0.4]
    >>> print(to_markdown(pd.DataFrame([values], columns=list(COLUMNS))))
    | wells | all |
    |---|---|
    | plate | 30.0 |
    """
    blocks = []
    for axis, some in table.groupby("axis", sort=False):
        words = list(dict.fromkeys(some["statistics"]))
        values = axis_values(some)
        shares = some["accuracy"].mul(100).map("{:.1f}".format)
        cells = dict(zip(zip(some["statistics"], some["value"], strict=True), shares, strict=True))
        lines = [f"| {axis} | " + " | ".join(values) + " |", "|---" * (len(values) + 1) + "|"]
        lines += [
            f"| {word} | " + " | ".join(cells.get((word, value), "–") for value in values) + " |" for word in words
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def axis_values(table: pd.DataFrame) -> list[str]:
    """The values of one axis in a table of :func:`summarize`, whichever statistics have them, from none to all."""
    order = -_as_numbers(table["value"]) if (table["axis"] == "label_shift").all() else _as_numbers(table["value"])
    return list(table["value"].loc[order.sort_values(kind="stable").index].unique())


def _as_numbers(values: "pd.Series[str]") -> "pd.Series[float]":
    return values.replace(ALL, "inf").astype(float)


def _shown(axis: str, value: float | None) -> str:
    return ("inf" if axis == "label_shift" else ALL) if value is None else f"{value:g}"


def _numbers(condition: Condition) -> tuple[int, ...]:
    """A condition as seeds: large numbers stand for all."""
    wells, alpha, controls, _ = condition  # the same wells are drawn at every strength of an effect
    most = 2**31
    scaled = most if np.isinf(alpha) else round(alpha * 1e6)
    return (most if wells is None else wells, scaled, most if controls is None else controls)


def summarize(results: pd.DataFrame, measure: str = "accuracy", samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean over plates with a 95 % interval: plates are drawn again, with replacement (bootstrap; Efron 1979).

    Args:
        results: of all plates, as :meth:`StressTest.on_plate` gives them, with a column ``plate``.
        measure: the column that is averaged.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The columns :data:`COLUMNS`, ``repeats`` being the number of draws in all; a row for each value at which
        ``measure`` is known.

    >>> results = pd.DataFrame({"statistics": "plate", "axis": "wells", "value": "all", "repeat": 0,
    ...                         "accuracy": [0.2, 0.4], "plate": ["a", "b"]})
    >>> summarize(results).round(2).to_dict("records")
    [{'statistics': 'plate', 'axis': 'wells', 'value': 'all', 'repeats': 2, 'accuracy': 0.3, 'low': 0.2, 'high': 0.4}]
    """
    rng = np.random.default_rng(seed)
    names = results["plate"].unique()
    chosen = rng.integers(len(names), size=(samples, len(names)))
    rows = []
    keys = ["statistics", "axis", "value"]
    results = results.astype({measure: float}).dropna(subset=[measure])
    for key, some in results.groupby(keys, sort=False):
        by_plate = some.groupby("plate", sort=False)[measure].mean().reindex(names).to_numpy()
        means = pd.DataFrame(by_plate[chosen].T).mean()  # plates without a value do not count
        low, high = np.nanquantile(means, [0.025, 0.975])
        rows.append((*key, len(some), float(np.nanmean(by_plate)), float(low), float(high)))
    table = pd.DataFrame(rows, columns=[*keys, "repeats", measure, "low", "high"])
    order = table.assign(
        axis=table["axis"].map(list(AXES).index),
        statistics=table["statistics"].map(list(results["statistics"].unique()).index),
        value=_as_numbers(table["value"]).where(table["axis"] != "label_shift", -_as_numbers(table["value"])),
    )
    return table.loc[order.sort_values(["axis", "statistics", "value"], kind="stable").index].reset_index(drop=True)
