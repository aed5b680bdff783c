"""Simulated profiles of wells with planted effects: a screen of which is known what is in it.

A well's profile is the sum of what its treatment, its plate, its experiment and its place do to it, and of noise that
has a standard deviation of 1 in every feature. All of them have one covariance: half of a feature's variance is its
own, half is that of a few factors which features share, as in real profiles. An effect of size s moves a feature by a
draw with a standard deviation of s, so that it explains about ``s² / (1 + sum of all s²)`` of the variance.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, did_you_mean
from biomass.simulation.screens import ScreenDesign, check_values, make_design

LAYOUTS = ("randomized", "fixed")
"""Where a plate's treatments stand: anywhere, on each plate elsewhere; or each in the same well of every plate."""

SPREADS = ("all", "experiment", "plate")
"""Which treatments a plate holds: all; those of its experiment, which no other experiment has; a draw of its own."""

FORMATS = {96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Wells of a plate → its rows and columns."""

_SHARED = 0.5  # of the variance of a feature: that of the factors
_EFFECTS = ("plate", "experiment", "edge", "row", "column", "treatment")


@dataclass(frozen=True, kw_only=True)
class ProfilesDesign(ScreenDesign):
    """What a simulated table of profiles holds. Sizes of effects are in standard deviations of the noise.

    Attributes:
        experiments: number of experiments.
        plates: plates of each.
        format: wells of a plate, of :data:`FORMATS`.
        wells: how many of them are filled, drawn at random; 0 for all.
        controls: negative controls among them.
        features: number of features.
        factors: that features share.
        compounds: number of compounds.
        doses: of each compound; the highest has the effect in full, the lowest 1 / doses of it. A treatment is a
            compound at a dose.
        mechanisms: number of mechanisms, dealt out to the compounds in turn.
        plate: size of the shift of a plate against the others of its experiment.
        experiment: size of the shift of an experiment.
        edge: difference between wells at the edge and the others.
        row: standard deviation of a trend over the rows.
        column: and over the columns. Position effects are in all plates, in each up to half as strong again or as weak.
        treatment: size of the effect of a treatment at its full dose.
        shared: share of a treatment's variance that is that of its mechanism, 0 … 1.
        heavy: degrees of freedom of the noise of whole wells (Student's t, scaled to a deviation of 1), above 2; 0 for
            normal noise.
        layout: of :data:`LAYOUTS`.
        spread: of :data:`SPREADS`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    VERSION: ClassVar[int] = 1
    WORLD: ClassVar[tuple[int, ...]] = (96,)

    experiments: int = 3
    plates: int = 3
    format: int = 96
    wells: int = 0
    controls: int = 8
    features: int = 64
    factors: int = 8
    compounds: int = 22
    doses: int = 1
    mechanisms: int = 6
    plate: float = 0.0
    experiment: float = 0.0
    edge: float = 0.0
    row: float = 0.0
    column: float = 0.0
    treatment: float = 1.0
    shared: float = 0.6
    heavy: float = 0.0
    layout: str = "randomized"
    spread: str = "all"

    def __post_init__(self) -> None:
        least = dict.fromkeys(("experiments", "plates", "features", "factors", "compounds", "doses", "mechanisms"), 1)
        self.check((*_EFFECTS, "shared", "heavy"), least | {"wells": 0, "controls": 0})
        for name, known in (("layout", LAYOUTS), ("spread", SPREADS), ("format", tuple(FORMATS))):
            if getattr(self, name) not in known:
                raise ConfigError(f"no simulated plates have {name}={getattr(self, name)!r}; {did_you_mean('', known)}")
        if not self.controls <= self.filled <= self.format:
            raise ConfigError(f"{self.filled} wells with {self.controls} controls do not fit a plate of {self.format}")
        if self.shared > 1 or 0 < self.heavy <= 2:
            raise ConfigError(f"shared={self.shared}, heavy={self.heavy}: use shared up to 1, heavy=0 or above 2")
        rows = self.experiments * self.plates * self.filled
        widest = max(rows, self.compounds * self.doses) * self.features + self.factors * self.features
        check_values(
            widest, f"{rows:,} wells and {self.compounds * self.doses:,} treatments, {self.features:,} features"
        )

    @property
    def filled(self) -> int:
        """Wells of a plate that hold something."""
        return self.wells or self.format


def simulate_profiles(**parameters: Any) -> pd.DataFrame:
    """A table of well profiles, in the form of ``profiles_wells.parquet``.

    Args:
        parameters: of :class:`ProfilesDesign`.

    Returns:
        A row a well: Metadata_Batch, Metadata_Plate, Metadata_Well, Metadata_compound, Metadata_label (the treatment),
        Metadata_moa, Metadata_control, Metadata_Count_Cells, and the features ``emb_0000…`` (float32). A plate's
        treatments have as many wells each as there are, as evenly as possible.

    Raises:
        ConfigError: an unknown parameter, or one out of range.

    >>> table = simulate_profiles(experiments=2, plates=2, plate=0.5, features=3)
    >>> table.shape, table["Metadata_Plate"].unique().tolist()
    ((384, 11), ['E1P1', 'E1P2', 'E2P1', 'E2P2'])
    """
    design = make_design(ProfilesDesign, parameters)
    effects, mechanism, growth = _treatments(design)
    where = _mix(design, design.generator("nuisance"), 3)  # (edge, row, column; D)
    fixed = design.generator("layout").permutation(design.format)
    plates: list[pd.DataFrame] = []
    features = np.empty((design.experiments * design.plates * design.filled, design.features), np.float32)
    for experiment in range(design.experiments):
        moved = design.experiment * _mix(design, design.generator("nuisance", experiment), 1)
        for plate in range(design.plates):
            key = (experiment, plate)
            layout, noise = design.generator("layout", *key), design.generator("pixels", *key)
            order = fixed if design.layout == "fixed" else layout.permutation(design.format)
            by_well = np.argsort(order[: design.filled])
            places, treatments = order[by_well], _holds(design, layout, experiment)[by_well]
            rows = _noise(design, noise) + effects[treatments] + moved
            rows += design.plate * _mix(design, design.generator("nuisance", *key), 1)
            rows += (_place_effects(design, places) * noise.uniform(0.5, 1.5, 3)) @ where
            features[len(plates) * design.filled :][: design.filled] = rows
            count = noise.poisson(noise.uniform(80, 120) * growth[treatments]).astype(float)
            plates.append(_plate_table(design, key, places, treatments, mechanism, count))
    table = pd.concat(plates, ignore_index=True)
    names = [f"emb_{i:04d}" for i in range(design.features)]
    return pd.concat([table, pd.DataFrame(features, columns=names)], axis=1)


def _mix(design: ProfilesDesign, generator: np.random.Generator, count: int) -> np.ndarray:
    """Draws (count, D) with the one covariance of all effects: a variance of 1 in each feature, half of it shared."""
    loadings = design.generator("biology").standard_normal((design.factors, design.features))
    loadings /= np.sqrt((loadings**2).sum(0))
    common = generator.standard_normal((count, design.factors)) @ loadings
    own = generator.standard_normal((count, design.features))
    return np.sqrt(_SHARED) * common + np.sqrt(1 - _SHARED) * own


def _noise(design: ProfilesDesign, generator: np.random.Generator) -> np.ndarray:
    noise = _mix(design, generator, design.filled)
    if design.heavy:
        spread = generator.chisquare(design.heavy, (design.filled, 1)) / (design.heavy - 2)
        noise /= np.sqrt(spread)
    return noise


def _treatments(design: ProfilesDesign) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each treatment, the negative control first: its effect (T, D), its mechanism (T,), its share of cells (T,)."""
    generator = design.generator("biology", 1)
    mechanism = np.arange(design.compounds) % design.mechanisms
    shared = _mix(design, generator, design.mechanisms)[mechanism]
    own = _mix(design, generator, design.compounds)
    full = design.treatment * (np.sqrt(design.shared) * shared + np.sqrt(1 - design.shared) * own)
    dose = np.tile(np.arange(1, design.doses + 1) / design.doses, design.compounds)
    effects = np.repeat(full, design.doses, axis=0) * dose[:, None]
    growth = 1 - 0.5 * dose * np.repeat(generator.uniform(0, 1, design.compounds), design.doses)
    names = np.array(["", *(f"mechanism {one + 1:02d}" for one in mechanism.repeat(design.doses))], dtype=object)
    return np.vstack([np.zeros((1, design.features)), effects]), names, np.concatenate([[1.0], growth])


def _holds(design: ProfilesDesign, generator: np.random.Generator, experiment: int) -> np.ndarray:
    """The treatment of each filled well of a plate (W,), the negative control 0; in a fixed layout in fixed order."""
    count, room = design.compounds * design.doses, design.filled - design.controls
    known = np.arange(1, count + 1)
    if design.spread == "experiment":
        known = np.array_split(known, design.experiments)[experiment]
    elif design.spread == "plate":
        known = np.sort(generator.choice(known, min(count, max(count // 3, 1)), replace=False))
    if not len(known) or not room:
        return np.zeros(design.filled, np.int64)
    return np.concatenate([np.zeros(design.controls, np.int64), np.resize(known, room)])


def _place_effects(design: ProfilesDesign, places: np.ndarray) -> np.ndarray:
    """How strongly edge, row and column act in each well (W, 3)."""
    height, width = FORMATS[design.format]
    row, column = places // width, places % width
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    trends = [(one - (size - 1) / 2) / np.sqrt((size**2 - 1) / 12) for one, size in ((row, height), (column, width))]
    return np.column_stack([design.edge * edge, design.row * trends[0], design.column * trends[1]])


def _plate_table(
    design: ProfilesDesign,
    key: tuple[int, int],
    places: np.ndarray,
    treatments: np.ndarray,
    mechanism: np.ndarray,
    count: np.ndarray,
) -> pd.DataFrame:
    width = FORMATS[design.format][1]
    letters = [f"{'A' if row > 25 else ''}{chr(ord('A') + row % 26)}" for row in places // width]
    known = [f"compound {one + 1:03d}" for one in range(design.compounds)]
    compound = np.array(["DMSO", *np.repeat(known, design.doses)], dtype=object)
    doses = [f" @ {dose + 1}" if design.doses > 1 else "" for _ in known for dose in range(design.doses)]
    label = compound + np.array(["", *doses], dtype=object)
    return pd.DataFrame(
        {
            "Metadata_Batch": f"E{key[0] + 1}",
            "Metadata_Plate": f"E{key[0] + 1}P{key[1] + 1}",
            "Metadata_Well": [f"{letter}{one + 1:02d}" for letter, one in zip(letters, places % width, strict=True)],
            "Metadata_compound": compound[treatments],
            "Metadata_label": label[treatments],
            "Metadata_moa": mechanism[treatments],
            "Metadata_control": np.where(treatments == 0, "negative", ""),
            "Metadata_Count_Cells": count,
        }
    )
