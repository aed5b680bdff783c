"""A simulated screen in the layout of RxRx1-WILDS: what a perturbation does to cells, seen through their plate.

:func:`simulate_rxrx1` writes a whole screen to disk, so that the readers of RxRx1-WILDS serve it. Cells are drawn by
:mod:`.morphology`, and what a plate makes of them by :mod:`.optics`. A screen was built to be hard the way real ones
are:

- plates differ in what per-image standardization cannot undo, and in the number of cells, and most of it is shared by
  the plates of an experiment;
- staining and culture drift from plate to plate *along the same traits* that perturbations change, so that the look
  of a treatment on one plate is the look of another treatment on the next;
- experiments of ``val`` and ``test`` lie further out than those of ``train``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from biomass.cells.crops import crops_inside, cut_crops
from biomass.errors import ConfigError
from biomass.simulation.morphology import CHANNELS, NUMBERS, TRAITS, draw_effects, draw_fields, trait_values
from biomass.simulation.optics import Nuisance, acquire, draw_nuisance, quantize
from biomass.simulation.screens import ScreenDesign, check_values, for_each_plate, write_once

CELL_TYPES = ("HEPG2", "HUVEC", "RPE", "U2OS")
"""The cell types of RxRx1; an experiment has one of them."""

CROP = 48
"""Height and width of a cropped cell, pixels, as published for RxRx1."""

_WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24))  # the inner 308 of 384
_CHUNK_PIXELS = 2**21  # pixels of the fields composed at once: bounds the memory of a plate of any size
_WELL_SPREAD = 0.10  # well-to-well spread of a trait, as a share of the spread of the perturbations' effects
_POSITIVE = 1.5  # how much stronger a positive control acts than a treatment


@dataclass(frozen=True, kw_only=True)
class Design(ScreenDesign):
    """The parameters of a simulated screen in the layout of RxRx1.

    Every experiment holds every treatment in ``plates * wells / treatments`` wells, at random places on its plates
    (with ``plates * wells == treatments`` in exactly one well, as in RxRx1). Every plate holds one well of every
    positive control and ``negative_wells`` wells of the negative one. Experiments are split as in RxRx1: about 65 %
    ``train``, 8 % ``val``, 27 % ``test``, and take turns in the cell types within each split.

    Attributes:
        experiments: number of experiments, at least 3.
        plates: plates an experiment.
        treatments: number of treatments; classes ``0 … treatments - 1``.
        positive_controls: number of positive controls, the classes behind the treatments.
        wells: treated wells a plate.
        negative_wells: wells a plate of the negative control, the last class; 0 leaves the class out.
        empty_wells: treated wells a plate in which no cell is left.
        sites: fields of view a well.
        size: height and width of a field, pixels.
        cell_types: their names.
        density: number of cells an area; 1 is about two per 1,000 pixels.
        intensity_effect: strength of the perturbations' effects on intensities.
        shape_effect: strength of their effects on shapes and textures.
        growth_effect: further factor of their effects on the number and the size of cells, which networks that were
            never trained see first.
        cell_spread: how much more the cells of a well differ, along the traits that perturbations change; at 1 by as
            much as perturbations do.
        nuisance: how far plates lie apart; 0 makes all plates ideal.
        drift: how much of that is drift of staining and culture, along the traits that perturbations change; at 0
            plates differ in optics and camera only.
        mottle: strength of a texture of residues over the whole field, whose grain tells plates apart; 0 for none.
        test_shift: how many times further apart the plates of ``val`` and ``test`` lie than those of ``train``.
        cells: also cut out the cells.

    Raises:
        ConfigError: the numbers do not fit together.
    """

    VERSION: ClassVar[int] = 2
    WORLD: ClassVar[tuple[int, ...]] = ()
    ADDED: ClassVar[frozenset[str]] = frozenset({"growth_effect", "cell_spread", "mottle"})

    experiments: int = 16
    plates: int = 4
    treatments: int = 20
    positive_controls: int = 4
    wells: int = 30
    negative_wells: int = 4
    empty_wells: int = 0
    sites: int = 2
    size: int = 64
    cell_types: Sequence[str] = CELL_TYPES
    density: float = 1.0
    intensity_effect: float = 1.0
    shape_effect: float = 1.0
    growth_effect: float = 1.0
    cell_spread: float = 0.0
    nuisance: float = 1.0
    drift: float = 1.0
    mottle: float = 0.0
    test_shift: float = 1.6
    cells: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "cell_types", tuple(self.cell_types))
        effects = ("intensity_effect", "shape_effect", "growth_effect", "cell_spread")
        strengths = ("density", *effects, "nuisance", "drift", "mottle", "test_shift")
        least = {"experiments": 3, "plates": 1, "treatments": 1, "wells": 1, "sites": 1, "size": CROP}
        self.check(strengths, least | dict.fromkeys(("positive_controls", "negative_wells", "empty_wells"), 0))
        if not self.cell_types:
            raise ConfigError("a simulated screen with cell_types=[]: name at least one")
        if self.plates * self.wells < self.treatments:
            raise ConfigError(
                f"{self.treatments} treatments do not fit in {self.plates} plates of {self.wells} treated wells: "
                f"use at least wells={-(-self.treatments // self.plates)}"
            )
        filled = self.wells + self.positive_controls + self.negative_wells
        if filled > len(_WELLS):
            raise ConfigError(
                f"a plate has {len(_WELLS)} wells, not {filled}: lower wells, positive_controls or negative_wells"
            )
        if self.empty_wells > self.wells:
            raise ConfigError(f"empty_wells={self.empty_wells} is more than wells={self.wells}: lower it")
        images = self.experiments * self.plates * filled * self.sites
        check_values(images * len(CHANNELS) * self.size**2, f"{images:,} images of {self.size} x {self.size} pixels")


@dataclass(frozen=True)
class Plate:
    """A plate of a simulated screen before anything is drawn.

    Attributes:
        experiment: name of its experiment, such as ``HUVEC-03``.
        number: of the plate within the experiment, from 1.
        split: ``train``, ``val`` or ``test``.
        cell_type: name of the cell type.
        key: number of the experiment and of the plate, from 0, that its generators are seeded with.
        wells: names of its wells, in the order of the plate, (W,).
        classes: what the wells hold, (W,).
        empty: whether all cells of the well are gone, (W,) bool.
    """

    experiment: str
    number: int
    split: str
    cell_type: str
    key: tuple[int, int]
    wells: np.ndarray
    classes: np.ndarray
    empty: np.ndarray


def lay_out(design: Design) -> list[Plate]:
    """The plates of a screen: which well of which plate holds which class."""
    n_test = max(1, round(0.27 * design.experiments))
    n_val = max(1, round(0.08 * design.experiments))
    sizes = {"train": design.experiments - n_test - n_val, "val": n_val, "test": n_test}
    controls = np.arange(design.treatments, design.treatments + design.positive_controls + 1)
    controls = np.repeat(controls, [1] * design.positive_controls + [design.negative_wells])
    plates: list[Plate] = []
    seen = dict.fromkeys(design.cell_types, 0)
    for e, (split, i) in enumerate((s, i) for s, n in sizes.items() for i in range(n)):
        cell_type = design.cell_types[i % len(design.cell_types)]
        seen[cell_type] += 1
        rng = design.generator("layout", e)
        shuffled = rng.permutation(design.treatments)  # who gets one well more, where they cannot all have as many
        treated = rng.permutation(np.resize(shuffled, design.plates * design.wells)).reshape(design.plates, -1)
        for p in range(design.plates):
            classes = np.concatenate([treated[p], controls])
            empty = np.zeros(len(classes), bool)
            empty[rng.permutation(design.wells)[: design.empty_wells]] = True
            places = rng.permutation(len(_WELLS))[: len(classes)]
            order = np.argsort(places)
            name, wells = f"{cell_type}-{seen[cell_type]:02d}", np.array(_WELLS)[places[order]]
            plates.append(Plate(name, p + 1, split, cell_type, (e, p), wells, classes[order], empty[order]))
    return plates


def plate_nuisance(design: Design, plate: Plate) -> Nuisance:
    """The nuisance of a plate of a screen."""
    experiment, number = plate.key
    strength = design.nuisance * (1.0 if plate.split == "train" else design.test_shift)
    common, own = design.generator("nuisance", experiment), design.generator("nuisance", experiment, number)
    return draw_nuisance(common, own, strength, design.drift, design.mottle)


def _biology(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """What the classes do, (classes, traits), and how the cell types look, (cell types, traits), in log units."""
    rng = design.generator("biology")
    types = rng.standard_normal((len(design.cell_types), len(TRAITS))) * trait_values("cell_type")
    strengths = {
        "intensity": design.intensity_effect,
        "shape": design.shape_effect,
        "growth": design.growth_effect,
    }
    treatments = draw_effects(rng, design.treatments, **strengths)
    positive = draw_effects(rng, design.positive_controls, **strengths) * _POSITIVE
    return np.concatenate([treatments, positive, np.zeros((1, len(TRAITS)))]), types


def render_plate(design: Design, plate: Plate) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw a plate's fields of view, in the order of its wells and their sites, some at a time.

    Yields:
        The images, (n, 3, H, W) uint8, and field, y, x of every cell whose centre was drawn, (cells, 3).
    """
    classes, types = _biology(design)
    rng, nuisance = design.generator("pixels", *plate.key), plate_nuisance(design, plate)
    own = rng.standard_normal((len(plate.wells), len(TRAITS))) * _WELL_SPREAD * trait_values("effect")
    means = np.repeat(types[design.cell_types.index(plate.cell_type)] + nuisance.drift + own, design.sites, axis=0)
    effects = np.repeat(classes[plate.classes], design.sites, axis=0)
    empty = np.repeat(plate.empty, design.sites)
    step = max(1, _CHUNK_PIXELS // design.size**2)
    for start in range(0, len(means), step):
        some = slice(start, start + step)
        logs = (means[some] + effects[some])[:, NUMBERS["crowding"]]
        candidates = 1.3 * (design.density * np.exp(logs) * ~empty[some])
        cells, _, light = draw_fields(rng, means[some], effects[some], candidates, design.size, design.cell_spread)
        yield quantize(acquire(rng, light, nuisance)), cells


def _save(path: Path, image: np.ndarray) -> None:
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path, compress_level=1)


def _write_plate(folder: Path, design: Design, plate: Plate) -> list[int]:
    """Write a plate's files and return the number of cells cut out of each of its fields."""
    place = f"{plate.experiment}/Plate{plate.number}"
    images, cells = folder / "rxrx1_v1.0" / "images" / place, folder / "cells" / place
    images.mkdir(parents=True)
    names = [f"{well}_s{site}" for well in plate.wells for site in range(1, design.sites + 1)]
    counts: list[int] = []
    for fields, centres in render_plate(design, plate):
        bounds = np.searchsorted(centres[:, 0], np.arange(len(fields) + 1))
        for f, image in enumerate(fields):
            name = names[len(counts)]
            _save(images / f"{name}.png", image)
            counts.append(0)
            if not design.cells:
                continue
            (cells / name).mkdir(parents=True)  # also without any cell: the field was looked at
            own = centres[bounds[f] : bounds[f + 1], 1:]
            for i, crop in enumerate(cut_crops(image, own[crops_inside(own, image.shape[1:], CROP)], CROP)):
                _save(cells / name / f"{i}.png", crop)
                counts[-1] += 1
    return counts


def _metadata(design: Design, plates: Sequence[Plate]) -> pd.DataFrame:
    """The table of all fields of view, with the columns of RxRx1-WILDS."""
    sizes = [len(p.wells) for p in plates]

    def repeat(values: Sequence[str] | Sequence[int]) -> np.ndarray:
        return np.repeat(np.array(values), sizes)

    classes = np.concatenate([p.classes for p in plates])
    n, positive = design.treatments, design.positive_controls
    sirnas = [f"s{i:04d}" for i in range(n)] + [f"p{i:02d}" for i in range(positive)] + ["EMPTY"]
    kinds = ["treatment"] * n + ["positive_control"] * positive + ["negative_control"]
    columns = {
        "cell_type": repeat([p.cell_type for p in plates]),
        "dataset": repeat([p.split for p in plates]),
        "experiment": repeat([p.experiment for p in plates]),
        "plate": repeat([p.number for p in plates]),
        "well": np.concatenate([p.wells for p in plates]),
    }
    content = {"well_type": np.array(kinds)[classes], "sirna": np.array(sirnas)[classes], "sirna_id": classes}
    wells = pd.DataFrame(columns | content)
    table = wells.loc[wells.index.repeat(design.sites)].reset_index(drop=True)
    table["site"] = np.tile(np.arange(1, design.sites + 1), len(wells))
    table["well_id"] = table["experiment"] + "_" + table["plate"].astype(str) + "_" + table["well"]
    table["site_id"] = table["well_id"] + "_" + table["site"].astype(str)
    return table[["site_id", "well_id", *columns, "site", *content]]


def _write_screen(folder: Path, design: Design, workers: int | None) -> None:
    plates = lay_out(design)
    table = _metadata(design, plates)
    images = folder / "rxrx1_v1.0"
    images.mkdir(parents=True)
    table.to_csv(images / "metadata.csv", index=False)
    (images / "RELEASE_v1.0.txt").write_text("A simulated screen in the layout of RxRx1-WILDS 1.0.\n")
    counts = for_each_plate(partial(_write_plate, folder, design), plates, workers, folder.parent)
    if design.cells:
        summary = table[["experiment", "plate", "well", "site"]].assign(segmented=np.concatenate(counts))
        summary.to_csv(folder / "cells.csv", index=False)
    truth = [
        {"experiment": p.experiment, "plate": p.number, "dataset": p.split} | plate_nuisance(design, p).flat()
        for p in plates
    ]
    pd.DataFrame(truth).to_csv(folder / "nuisance.csv", index=False)
    (folder / "design.json").write_text(design.to_json())


def simulate_rxrx1(root: str | Path, design: Design | None = None, *, workers: int | None = None) -> Path:
    """Write a simulated screen below ``root``, unless it is there already, see :func:`.screens.write_once`.

    Args:
        root: the folder that data sources read from.
        design: the screen's parameters; ``Design()`` if left out.
        workers: threads that draw and write; one a core, at most 8, if left out. The files do not depend on it.

    Returns:
        The screen's folder, ``<root>/simulated/<design.name>``. In it:

        - ``rxrx1_v1.0/``: what the RxRx1-WILDS reader finds below its ``root_dir``;
        - with ``design.cells``, ``cells/<experiment>/Plate<k>/<well>_s<site>/<i>.png``, and ``cells.csv`` with the
          columns ``experiment, plate, well, site, segmented`` (cells of every field, 0 included);
        - ``nuisance.csv``, the truth about every plate, and ``design.json``.

    Raises:
        ConfigError: the folder cannot be written.
    """
    design = design or Design()
    folder = Path(root) / "simulated" / design.name
    return write_once(folder, partial(_write_screen, design=design, workers=workers))
