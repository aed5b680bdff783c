"""A simulated screen with a lab's own plate map: its plates, wells, treatments and controls; only the cells are drawn.

Cells, what perturbations do to them and what plates do to their images are those of the screen in the layout of RxRx1,
see :mod:`.morphology` and :mod:`.optics`. The images stay in memory.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.screen import PLATE, Screen, VectorPixels, make_screen
from biomass.simulation.morphology import CHANNELS, NUMBERS, TRAITS, draw_effects, draw_fields, trait_values
from biomass.simulation.optics import acquire, draw_nuisance, quantize
from biomass.simulation.screens import ScreenDesign, check_values, for_each_plate

_OWN = 0.4  # what a treatment does besides what its label does, as a share of that
_POSITIVE = 1.5  # how much stronger a positive control acts than a treatment
_WELL_SPREAD = 0.10  # well-to-well spread of a trait, as a share of the spread of the perturbations' effects
_CHUNK_PIXELS = 2**21  # pixels of the fields composed at once
_TEST, _VAL = 0.27, 0.08  # shares of the experiments (or plates) that are not trained on, as in RxRx1


@dataclass(frozen=True, kw_only=True)
class Look(ScreenDesign):
    """What a plate map does not say: how the wells look.

    Attributes:
        sites: fields of view a well.
        size: height and width of a field, pixels.
        density: number of cells an area; 1 is about two per 1,000 pixels.
        effect: strength of the treatments' effects.
        nuisance: how far plates lie apart; 0 makes all plates ideal.
        test_shift: how many times further apart the plates of ``val`` and ``test`` lie than those of ``train``.

    Raises:
        ConfigError: a number is out of range.
    """

    VERSION: ClassVar[int] = 1
    WORLD: ClassVar[tuple[int, ...]] = (1536,)

    sites: int = 1
    size: int = 64
    density: float = 1.0
    effect: float = 1.0
    nuisance: float = 1.0
    test_shift: float = 1.6

    def __post_init__(self) -> None:
        self.check(("density", "effect", "nuisance", "test_shift"), {"sites": 1, "size": 48})


class _Plate(NamedTuple):
    """One plate: the numbers of its experiment and of itself, its rows of the screen, and whether it is trained on."""

    key: tuple[int, int]
    rows: np.ndarray
    trained: bool


def simulate_plate_map(wells: pd.DataFrame, look: Look | None = None, *, workers: int | None = None) -> Screen:
    """Draw every well of a plate map.

    Treatments of one label do the same to cells, and a little of their own; negative controls do nothing. Whole
    experiments are held out as ``val`` and ``test``, or plates, where there are fewer than three experiments.

    Args:
        wells: a row a well: ``experiment, plate, well, treatment, label, control``, text.
        look: how they look; ``Look()`` if left out.
        workers: threads that draw; one a core, at most 8, if left out. The images do not depend on it.

    Returns:
        The Screen, ``sites`` rows a well in the order of ``wells``; its classes are the labels, sorted; a column
        ``compound`` says the treatment.

    Raises:
        DataError: there are fewer than three plates: nothing can be held out.
        ConfigError: the fields are more than can be drawn.

    >>> wells = pd.DataFrame({"experiment": "", "plate": list("123"), "well": "A01", "treatment": "x", "label": "x"})
    >>> screen = simulate_plate_map(wells.assign(control=""), Look(size=48), workers=1)
    >>> screen.read(np.array([0])).shape, screen.splits
    ((1, 3, 48, 48), ('test', 'train', 'val'))
    """
    look = look or Look()
    fields = len(wells) * look.sites
    check_values(fields * len(CHANNELS) * look.size**2, f"{fields:,} fields of {look.size} x {look.size} pixels")
    wells = wells.reset_index(drop=True)
    experiment, plate = (wells.groupby(list(by), sort=True).ngroup().to_numpy() for by in (PLATE[:1], PLATE))
    unit = experiment if experiment.max(initial=0) >= 2 else plate
    split = _splits(look, unit)
    effects = _effects(look, wells)
    images = np.empty((fields, len(CHANNELS), look.size, look.size), np.uint8)
    plates = [
        _Plate((int(experiment[own[0]]), number), own, split[own[0]] == "train")
        for number, own in enumerate(_rows(plate))
    ]
    for_each_plate(partial(_draw, look, effects, images), plates, workers, Path("the plate map"))
    classes = sorted(wells["label"].unique())
    table = wells[[*PLATE, "well", "control"]].assign(
        cell_type="",
        label=pd.Categorical(wells["label"], classes).codes.astype(np.int64),
        split=split,
        compound=wells["treatment"],
    )
    table = table.loc[table.index.repeat(look.sites)].reset_index(drop=True)
    table["site"] = np.tile(np.arange(1, look.sites + 1), len(wells)).astype(str)
    return make_screen(table, VectorPixels(images, CHANNELS), classes)


def _rows(plate: np.ndarray) -> list[np.ndarray]:
    """The rows of every plate."""
    order = np.argsort(plate, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(plate[order])) + 1)


def _splits(look: Look, unit: np.ndarray) -> np.ndarray:
    """The split of every well, from the number of what is held out as a whole."""
    n = int(unit.max(initial=-1)) + 1
    if n < 3:
        raise DataError(f"the plate map has {n} plate{'' if n == 1 else 's'}: to train, choose and test takes three")
    test, val = max(1, round(_TEST * n)), max(1, round(_VAL * n))
    names = np.array(["test"] * test + ["val"] * val + ["train"] * (n - test - val), dtype=object)
    return look.generator("layout").permutation(names)[unit]


def _effects(look: Look, wells: pd.DataFrame) -> np.ndarray:
    """What every well's treatment does to the traits of its cells, log shifts, (wells, traits)."""
    rng = look.generator("biology")
    label, labels = pd.factorize(wells["label"], sort=True)
    treatment, treatments = pd.factorize(wells["label"] + "\0" + wells["treatment"], sort=True)
    own = draw_effects(rng, len(treatments)) * (_OWN if len(treatments) > len(labels) else 0.0)
    effects = draw_effects(rng, len(labels))[label] + own[treatment]
    strength = wells["control"].map({"negative": 0.0, "positive": _POSITIVE, "": 1.0})
    return look.effect * effects * strength.to_numpy(float)[:, None]


def _draw(look: Look, effects: np.ndarray, images: np.ndarray, plate: _Plate) -> None:
    """Draw the wells of a plate into ``images`` (wells x sites, 3, H, W)."""
    strength = look.nuisance * (1.0 if plate.trained else look.test_shift)
    common, own = look.generator("nuisance", plate.key[0]), look.generator("nuisance", *plate.key)
    nuisance, rng = draw_nuisance(common, own, strength), look.generator("pixels", *plate.key)
    wells = nuisance.drift + rng.standard_normal((len(plate.rows), len(TRAITS))) * _WELL_SPREAD * trait_values("effect")
    rows = (plate.rows[:, None] * look.sites + np.arange(look.sites)).ravel()
    means, shifts = np.repeat(wells, look.sites, axis=0), np.repeat(effects[plate.rows], look.sites, axis=0)
    step = max(1, _CHUNK_PIXELS // look.size**2)
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        candidates = 1.3 * look.density * np.exp((means[some] + shifts[some])[:, NUMBERS["crowding"]])
        _, _, light = draw_fields(rng, means[some], shifts[some], candidates, look.size)
        images[rows[some]] = quantize(acquire(rng, light, nuisance))
