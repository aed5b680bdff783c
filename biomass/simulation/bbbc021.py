"""A simulated screen in the files of BBBC021, small enough for a notebook that runs without any download.

It has what makes BBBC021 hard and, with it, what makes the choice of the normalization matter:

- weeks (batches) of plates with their own staining, light and focus;
- *label shift between plates*: the treatments of a compound live on the replicate plates of one week, and mostly
  together with another compound of the same mechanism, so that the statistics of all cells of a plate are confounded
  with its treatments, whereas those of its DMSO wells are not;
- mechanisms whose compounds are all in one week, which cannot be scored when the same week is left out (NSCB);
- taxol, a compound of one of the mechanisms, in control wells of every plate.

Cells are drawn by :mod:`.morphology`, with tubulin where RxRx1 shows the endoplasmic reticulum.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from biomass.cells.nuclei import SUPPLEMENT_IMAGES, SUPPLEMENT_OBJECTS
from biomass.errors import ConfigError
from biomass.pixels.bbbc021_files import H5_CHANNELS, RAW_CHANNELS, link_plates, write_plate, write_tables, write_tiffs
from biomass.pixels.illumination import measure_channel, rescale
from biomass.simulation.morphology import NUMBERS, TRAITS, draw_effects, draw_fields, trait_values
from biomass.simulation.optics import acquire, draw_nuisance
from biomass.simulation.screens import ScreenDesign, check_values, for_each_plate, make_design, write_once

MECHANISMS = (
    "Actin disruptors",
    "Aurora kinase inhibitors",
    "Cholesterol-lowering",
    "DNA damage",
    "DNA replication",
    "Eg5 inhibitors",
    "Epithelial",
    "Kinase inhibitors",
    "Microtubule destabilizers",
    "Microtubule stabilizers",
    "Protein degradation",
    "Protein synthesis",
)
"""The twelve mechanisms of action of BBBC021."""

SINGLE_WEEK = ("Cholesterol-lowering", "Kinase inhibitors")
"""Those whose compounds are all in one week, as they are in BBBC021."""

DMSO_WELLS = ("B02", "C02", "D02", "E11", "F11", "G11")
TAXOL_WELLS = ("E02", "F02", "G02", "B11", "C11", "D11")
TREATED_WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFG" for column in range(3, 11))
"""The wells of a plate, as in BBBC021."""

CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Concentrations of a compound, µM; a design takes the first of them."""

_SCALE = 4095  # a camera of 12 bits
_MCF7 = {"nucleus_radius": 0.08, "cell_radius": 0.05, "cell_elongation": -0.1, "crowding": 0.1}  # log shifts
_WEAKEST, _STRONGEST = 0.7, 1.3  # effect of a compound's lowest and highest concentration
_OWN = 0.4  # what a compound does besides its mechanism, as a share of what the mechanism does
_WELL_SPREAD = 0.15  # well-to-well spread of a trait, as a share of the spread of the mechanisms' effects


@dataclass(frozen=True, kw_only=True)
class Design(ScreenDesign):
    """The parameters of a simulated BBBC021.

    Attributes:
        weeks: number of weeks, at least 2.
        groups: plate groups a week; a compound is on the plates of one group.
        replicates: plates a group; every treatment is in one well of each.
        compounds: compounds a mechanism, at least 2: two thirds of them in one week, the others in another one.
        concentrations: concentrations a compound, 1 to 5.
        unknown: compounds of unknown mechanism a group.
        taxol_wells: control wells of taxol a plate, 0 to 6.
        sites: fields of view a well.
        height: of a field, pixels.
        width: of a field, pixels.
        density: number of cells an area; 1 is about two per 1,000 pixels.
        effect: strength of the mechanisms' effects.
        nuisance: how far plates lie apart.
        raw: also write the raw collection, ``folders`` or ``zips``; nothing if empty.

    Raises:
        ConfigError: the numbers do not fit together.
    """

    VERSION: ClassVar[int] = 1
    WORLD: ClassVar[tuple[int, ...]] = (2021,)

    weeks: int = 6
    groups: int = 1
    replicates: int = 3
    compounds: int = 3
    concentrations: int = 3
    unknown: int = 1
    taxol_wells: int = 2
    sites: int = 1
    height: int = 128
    width: int = 160
    density: float = 1.0
    effect: float = 1.0
    nuisance: float = 1.0
    raw: str = ""

    def __post_init__(self) -> None:
        least = {"weeks": 2, "groups": 1, "replicates": 1, "compounds": 2, "concentrations": 1, "unknown": 0}
        least |= {"taxol_wells": 0, "sites": 1, "height": 48, "width": 48}
        most = {"concentrations": len(CONCENTRATIONS), "taxol_wells": len(TAXOL_WELLS), "sites": 9}
        self.check(("density", "effect", "nuisance"), least, most)
        if self.raw not in ("", "folders", "zips"):
            raise ConfigError(f"a simulated screen with raw={self.raw}: choose folders, zips, or nothing")
        plates = self.weeks * self.groups * self.replicates
        wells = plates + self.replicates * self.concentrations * len(MECHANISMS) * self.compounds  # at the very least
        what = f"{plates:,} plates and {wells:,} wells with {self.sites} fields of {self.height} x {self.width} pixels"
        check_values(wells * self.sites * 3 * self.height * self.width, what)


def simulate_bbbc021(root: str | Path, *, workers: int | None = None, **design: Any) -> Path:
    """Write a simulated BBBC021 below ``root``, unless it is there already, see :func:`.screens.write_once`.

    Args:
        root: the folder that data sources read from.
        workers: threads that draw and write; one a core, at most 8, if left out. The files do not depend on it.
        design: parameters of :class:`Design` that differ from its defaults.

    Returns:
        The screen's folder, ``<root>/simulated_bbbc021/<design.name>``, which :func:`.bbbc021.load_bbbc021` takes as
        its ``root_dir``. In it:

        - ``data/bbbc021.h5`` and ``data/hdf5/<plate>.h5``, as pybbbc makes them;
        - ``supplement_Image.txt`` and ``supplement_Object.txt``, the tables of Ljosa et al. with the true nuclei;
        - with ``design.raw``, ``data/raw/``, the collection that the HDF5 files have been made from;
        - ``design.json``.

    Raises:
        ConfigError: an unknown parameter, one out of range, or a folder that cannot be written.
    """
    plan = make_design(Design, design)
    folder = Path(root) / "simulated_bbbc021" / plan.name
    return write_once(folder, partial(_write_screen, design=plan, workers=workers))


def lay_out(design: Design) -> pd.DataFrame:
    """All fields of a screen, plate by plate: ``table, image`` (ids), ``plate, well, site, replicate, compound,
    concentration, moa`` (empty where unknown), ``week, group`` (numbers from 0) and ``mechanism, member`` (numbers of
    the mechanism and of the compound within it; -1 for DMSO and unknown compounds).

    Raises:
        ConfigError: the treatments do not fit on the plates.
    """
    rng = design.generator("layout")
    week_of = _weeks_of_compounds(design, rng)
    doses = CONCENTRATIONS[: design.concentrations]
    content: dict[tuple[int, int], list[tuple[str, float, str, int, int]]] = {}
    for week in range(design.weeks):
        here = [(m, c) for m in range(len(MECHANISMS)) for c in range(design.compounds) if week_of[m, c] == week]
        for group in range(design.groups):
            key = (week, group)
            content[key] = [
                (_compound(m, c), dose, MECHANISMS[m], m, c) for m, c in here[group :: design.groups] for dose in doses
            ]
            content[key] += [(f"U-{week}{group}{i}", doses[-1], "", -1, -1) for i in range(design.unknown)]
            if len(content[key]) > len(TREATED_WELLS):
                raise ConfigError(
                    f"{len(content[key])} treatments do not fit in the {len(TREATED_WELLS)} treated "
                    "wells of a plate: raise weeks or groups, or lower compounds or concentrations"
                )
    rows = []
    taxol = MECHANISMS.index("Microtubule stabilizers")
    for (week, group), treatments in content.items():
        wells = rng.permutation(TREATED_WELLS)[: len(treatments)]
        wells_of = dict(zip(wells, treatments, strict=True))
        wells_of |= dict.fromkeys(DMSO_WELLS, ("DMSO", 0.0, "DMSO", -1, -1))
        middle = doses[len(doses) // 2]
        wells_of |= dict.fromkeys(TAXOL_WELLS[: design.taxol_wells], ("taxol", middle, MECHANISMS[taxol], taxol, 0))
        for replicate in range(1, design.replicates + 1):
            plate = f"Week{week + 1}_{20000 + 1000 * week + 100 * group + 20 * replicate + 1}"
            for well in sorted(wells_of):
                rows += [
                    (plate, well, site, replicate, *wells_of[well], week, group) for site in range(1, design.sites + 1)
                ]
    columns = ["plate", "well", "site", "replicate", "compound", "concentration", "moa", "mechanism", "member"]
    columns += ["week", "group"]
    return pd.DataFrame(rows, columns=columns).assign(table=lambda t: t["week"], image=lambda t: np.arange(len(t)) + 1)


def _compound(mechanism: int, member: int) -> str:
    """A name for a compound: the initials of its mechanism and a number."""
    if MECHANISMS[mechanism] == "Microtubule stabilizers" and member == 0:
        return "taxol"
    initials = "".join(word[0].upper() for word in MECHANISMS[mechanism].replace("-", " ").split())
    return f"{initials}-{member + 1}"


def _weeks_of_compounds(design: Design, rng: np.random.Generator) -> np.ndarray:
    """The week of every compound, (mechanisms, compounds): all in one week, or two thirds in one, the rest in another.

    Where there is a choice the emptiest week takes them, so that plates hold about equally many treatments.
    """
    load = np.zeros(design.weeks)
    weeks = np.empty((len(MECHANISMS), design.compounds), np.int64)
    order = sorted(rng.permutation(len(MECHANISMS)), key=lambda m: MECHANISMS[m] not in SINGLE_WEEK)
    for m in order:
        together = design.compounds - (0 if MECHANISMS[m] in SINGLE_WEEK else max(1, design.compounds // 3))
        first = int(np.argmin(load))
        weeks[m, :together] = first
        load[first] += together
        if together < design.compounds:
            second = int(np.argmin(np.where(np.arange(design.weeks) == first, np.inf, load)))
            weeks[m, together:] = second
            load[second] += design.compounds - together
    return weeks


def draw_biology(design: Design, table: pd.DataFrame) -> np.ndarray:
    """What every field's treatment does to the traits of its cells, log shifts, (fields, traits)."""
    rng = design.generator("biology")
    mechanisms = draw_effects(rng, len(MECHANISMS))
    own = draw_effects(rng, len(MECHANISMS) * design.compounds).reshape(len(MECHANISMS), design.compounds, -1)
    names = sorted(table.loc[table["moa"] == "", "compound"].unique())
    unknown = dict(zip(names, draw_effects(rng, len(names)), strict=True))
    strengths = np.linspace(_WEAKEST, _STRONGEST, design.concentrations) if design.concentrations > 1 else np.ones(1)
    dose = np.searchsorted(CONCENTRATIONS[: design.concentrations], table["concentration"])
    effects = np.zeros((len(table), len(TRAITS)))
    known = table["mechanism"].to_numpy() >= 0
    m, c = (table[name].to_numpy()[known] for name in ("mechanism", "member"))
    effects[known] = (mechanisms[m] + _OWN * own[m, c]) * strengths[dose[known], None]
    for row in np.flatnonzero(table["compound"].isin(names)):
        effects[row] = unknown[table["compound"].iloc[row]]
    return design.effect * effects


def render_plate(design: Design, table: pd.DataFrame, effects: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Draw the fields of one plate.

    Args:
        design: of the screen.
        table: the rows of the plate, as :func:`lay_out` gives them.
        effects: of their treatments, (fields, traits).

    Returns:
        The raw images, (fields, 3, H, W) uint16, channels DAPI, tubulin, actin; and the nuclei inside them: ``field``
        (position in ``table``), ``x, y`` and ``area``, pixels.
    """
    week, group, replicate = (int(table[name].iloc[0]) for name in ("week", "group", "replicate"))
    key = (week, group, replicate)
    common, own = (design.generator("nuisance", *part) for part in ((week,), key))
    nuisance = draw_nuisance(common, own, design.nuisance)
    rng = design.generator("pixels", *key)
    wells = pd.factorize(table["well"])[0]
    well_shift = rng.standard_normal((wells.max() + 1, len(TRAITS))) * _WELL_SPREAD * trait_values("effect")
    cell_type = np.array([_MCF7.get(name, 0.0) for name in TRAITS])
    means = cell_type + nuisance.drift + well_shift[wells]
    candidates = 1.3 * design.density * np.exp((means + effects)[:, NUMBERS["crowding"]])
    # Fields are drawn square, and cut.
    cells, traits, light = draw_fields(rng, means, effects, candidates, max(design.height, design.width))
    light = light[:, :, : design.height, : design.width]
    images = np.rint(acquire(rng, light, nuisance) * np.float32(_SCALE)).astype(np.uint16)
    field, y, x = cells[:, 0].astype(np.int64), cells[:, 1], cells[:, 2]
    inside = (y >= 0) & (x >= 0) & (y <= design.height - 1) & (x <= design.width - 1)
    area = np.pi * traits[:, NUMBERS["nucleus_radius"]] ** 2
    found = pd.DataFrame({"field": field, "x": x, "y": y, "area": np.rint(area)})[inside]
    return images, found.reset_index(drop=True)


def _write_screen(folder: Path, design: Design, workers: int | None) -> None:
    fields = lay_out(design)
    effects = draw_biology(design, fields)
    names = _file_names(design, fields)
    data = folder / "data"
    data.mkdir()
    plates = {str(plate): np.asarray(rows) for plate, rows in fields.groupby("plate", sort=False).indices.items()}

    def write(rows: np.ndarray) -> pd.DataFrame:
        nuclei = _write_plate(data, design, fields.iloc[rows], effects[rows], names.iloc[rows])
        return nuclei.assign(field=rows[nuclei["field"]])

    nuclei = pd.concat(for_each_plate(write, list(plates.values()), workers, folder.parent), ignore_index=True)
    link_plates(data / "bbbc021.h5", [data / "hdf5" / f"{plate}.h5" for plate in sorted(plates)])
    _write_supplement(folder, fields, names, nuclei)
    if design.raw:
        write_tables(data / "raw", fields, names)
    (folder / "design.json").write_text(design.to_json())


def _write_plate(
    data: Path, design: Design, table: pd.DataFrame, effects: np.ndarray, names: pd.DataFrame
) -> pd.DataFrame:
    """Write the files of a plate and return its nuclei, as :func:`render_plate` gives them."""
    images, nuclei = render_plate(design, table, effects)
    plate = table["plate"].iloc[0]
    if design.raw:
        write_tiffs(data / "raw" / "images", plate, images, names, zipped=design.raw == "zips")
    corrected = np.empty(images.shape, np.float16)
    sites = table["site"].to_numpy() - 1
    for c, channel in enumerate(RAW_CHANNELS):

        def stream(c: int = c) -> Iterator[tuple[int, np.ndarray]]:
            return zip(sites.tolist(), images[:, c], strict=True)

        light, low, high = measure_channel(stream, design.sites)
        position = H5_CHANNELS.index(channel)
        for i, site in enumerate(sites):
            corrected[i, position] = rescale(images[i, c], light[site], low, high)
    order = np.argsort(sites, kind="stable")  # pybbbc writes a plate site by site
    write_plate(data / "hdf5" / f"{plate}.h5", corrected[order], table.iloc[order])
    return nuclei


def _file_names(design: Design, table: pd.DataFrame) -> pd.DataFrame:
    """Names of the TIFFs in the style of the collection, a column a channel."""
    waves = dict(zip(RAW_CHANNELS, ("w1", "w2", "w4"), strict=True))

    def name(row: Any, wave: str) -> str:
        key = f"{design.seed} {row.plate} {row.well} {row.site} {wave}"
        digits = hashlib.md5(key.encode()).hexdigest().upper()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return f"{row.well}_s{row.site}_{wave}{'-'.join(parts)}.tif"

    rows = list(table.itertuples())
    return pd.DataFrame({channel: [name(row, wave) for row in rows] for channel, wave in waves.items()})


def _write_supplement(folder: Path, table: pd.DataFrame, names: pd.DataFrame, found: pd.DataFrame) -> None:
    """Write the tables of Ljosa et al., who left out unknown mechanisms and positive controls."""
    taken = (table["moa"] != "") & ~((table["compound"] == "taxol") & table["well"].isin(TAXOL_WELLS))
    known = {0: table["table"], 1: table["image"], 2: names["DAPI"], 10: table["plate"], 11: table["well"]}
    known |= {35: table["replicate"], 37: table["compound"], 38: table["concentration"]}
    images = pd.DataFrame({i: known.get(i, 0) for i in range(39)}, index=table.index)
    images[taken].to_csv(folder / SUPPLEMENT_IMAGES, sep="\t", header=False, index=False)
    found = found[taken.to_numpy()[found["field"]]]
    number = found.groupby("field").cumcount() + 1
    rows = table.iloc[found["field"]]
    values = {0: rows["table"], 1: rows["image"], 2: number, 7: found["area"]}
    values |= {3: found["x"].round(3), 4: found["y"].round(3)}
    objects = pd.DataFrame({i: np.asarray(values.get(i, np.zeros(len(found), int))) for i in range(8)})
    objects.to_csv(folder / SUPPLEMENT_OBJECTS, sep="\t", header=False, index=False)
