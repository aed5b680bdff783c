"""BBBC021 as a Screen (Caie et al. 2010; Ljosa et al. 2012): MCF-7 cells, 38 compounds with known mechanism of action.

Read from what pybbbc has made of it (:mod:`.bbbc021_h5`) or from the files of the Broad Bioimage Benchmark Collection
(:mod:`.bbbc021_raw`); both give the same images to half precision.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from biomass.cells import nuclei
from biomass.cells.crops import crop_screen
from biomass.cells.fields import place_nuclei
from biomass.cells.search import describe_search, find_all_nuclei
from biomass.cells.store import check_cells, nuclei_file, pack_cells
from biomass.channels import match_channels
from biomass.datasets import bbbc021_h5, bbbc021_raw
from biomass.datasets.packed import load_packed
from biomass.errors import ConfigError, DataError
from biomass.pixels.bbbc021_tiffs import RawPixels, open_raw
from biomass.screen import OnBadImage, Screen, check_on_bad_image, make_screen

CACHE = Path("~/.cache")
"""Where pybbbc puts the dataset unless it is told otherwise."""

DMSO = "DMSO"
"""The compound, and the mechanism, of the negative control."""

CONTROL_COLUMNS = ("02", "11")
"""The columns of every plate that hold controls only: six wells of DMSO, six of taxol."""

_H5 = "bbbc021.h5"
_FOLDERS = ("", "bbbc021", "data")  # below root_dir: pybbbc has changed its mind

log = logging.getLogger(__name__)


def load_bbbc021(
    root_dir: str | Path | None = None,
    *,
    channels: Sequence[str] = ("DAPI", "tubulin", "actin"),
    fields: Literal["ljosa", "all"] = "ljosa",
    plates: Collection[str] | None = None,
    cache_dir: str | Path | None = None,
    check_files: bool = True,
    on_bad_image: OnBadImage = "error",
) -> Screen:
    """Read BBBC021 as a Screen: a row a field of view, images float16 in 0…1.

    Below ``root_dir``, and there in ``bbbc021/`` and ``data/``, the file ``bbbc021.h5`` of pybbbc is looked for first,
    then the tables of the raw collection (also in ``raw/`` of these), see :mod:`.bbbc021_raw`.

    The table's ``experiment`` is the week (``Week1`` of plate ``Week1_22123``), ``label`` the mechanism of action
    (DMSO is one; unlabelled where nothing is known), ``split`` is ``test`` throughout. Negative controls are the wells
    with DMSO, positive ones those with taxol in the :data:`CONTROL_COLUMNS`. Further columns: ``compound``,
    ``concentration`` (µM), ``moa`` (empty where unknown), ``replicate``.

    Args:
        root_dir: where the dataset is; ``~/.cache``, as with pybbbc, if left out.
        channels: names of the channels, in the order in which they are wanted. What a screen that a network was
            trained on calls them may be used as well, see :func:`biomass.channels.match_channels`.
        fields: ``ljosa`` takes the fields that Ljosa et al. (2013) evaluated: treatments of known mechanism and DMSO,
            without the positive controls, whose taxol would outnumber every other treatment (632 wells, 103
            treatments); ``all`` takes all of them.
        plates: names of the plates to read; all if left out. Files of the others need not be there.
        cache_dir: raw files only: where measured corrections are kept (63 MB a plate); ``illumination/`` beside the
            tables if left out. Measuring a plate for the first time takes about a minute.
        check_files: raw files only: make sure that all images are there; without it a missing one is an error when it
            is read: at once, where the correction of its plate has not been measured yet.
        on_bad_image: raw files only: ``error``, or ``skip``: do not look whether all images are there, and measure
            corrections without those that cannot be read. Reading one of these is an error all the same.

    Raises:
        ConfigError: a plate or channel is not there, no plate is named, or ``fields`` or ``on_bad_image`` is unknown.
        DataError: no dataset is found, or it is incomplete or damaged.
    """
    match_channels(channels, bbbc021_raw.CHANNELS)  # known before corrections are measured, which may take an hour
    return _open(root_dir, fields, plates, cache_dir, on_bad_image, check_files).screen(channels)


def load_bbbc021_cells(
    root_dir: str | Path | None = None,
    *,
    size: int = 48,
    nuclei_dir: str | Path | None = None,
    diameter: float = nuclei.DIAMETER,
    store: str | Path | None = None,
    workers: int | None = None,
    channels: Sequence[str] = ("DAPI", "tubulin", "actin"),
    fields: Literal["ljosa", "all"] = "ljosa",
    plates: Collection[str] | None = None,
    cache_dir: str | Path | None = None,
    on_bad_image: OnBadImage = "error",
) -> Screen:
    """The single cells of BBBC021 as a Screen: crops around the nuclei, those inside their field only.

    The nuclei are those of Ljosa et al. (2013) if their tables are in ``nuclei_dir``, or in ``root_dir`` beside the
    dataset; otherwise they are found in the DAPI channel (about a second a field), once: they are kept beside the
    store, or in ``nuclei/`` of ``cache_dir``. The table has the columns of :func:`load_bbbc021` and those of
    :func:`biomass.cells.crops.crop_screen`; the screen's ``fields`` are what :func:`load_bbbc021` gives.

    Args:
        root_dir: where the dataset is, see :func:`load_bbbc021`.
        size: height and width of a crop, pixels.
        nuclei_dir: the folder with ``supplement_Image.txt`` and ``supplement_Object.txt``.
        diameter: of a typical nucleus, pixels, where nuclei have to be found.
        store: a packed store to write the cells to, plate by plate, and to read them from when it is there. Without
            one, a field is read whenever one of its cells is.
        workers: threads that find nuclei, then processes that write the store; all cores if left out.
        channels: see :func:`load_bbbc021`.
        fields: see :func:`load_bbbc021`.
        plates: see :func:`load_bbbc021`.
        cache_dir: where measured corrections are kept, see :func:`load_bbbc021`, and nuclei that were found; the
            dataset's own folder if left out. Nuclei are not kept where it cannot be written.
        on_bad_image: see :func:`load_bbbc021`; with ``skip``, and where nuclei have to be found, the cells of a field
            that cannot be read are left out. Where they are known, and in a store, reading one of them is an error.

    Raises:
        ConfigError, DataError: as :func:`load_bbbc021`; the crops are larger than the images; the tables are damaged;
            the store cannot be written, or holds other cells.
        BadImageError: a field cannot be read.
    """
    match_channels(channels, bbbc021_raw.CHANNELS)
    root = _root(root_dir)
    dataset = _open(root, fields, plates, cache_dir, on_bad_image)
    screen = dataset.screen(channels)
    folder = Path(nuclei_dir) if nuclei_dir is not None else find_supplement(root)
    if folder is not None:
        check_cells(screen, size, store)
        found = place_nuclei(screen, *nuclei.read_nuclei(folder), subset=True)
    else:
        searched = screen if "DAPI" in screen.pixels.channels else dataset.screen([*channels, "DAPI"])
        search = describe_search(searched, "DAPI", diameter)
        check_cells(screen, size, store, search)
        found = find_all_nuclei(
            searched,
            "DAPI",
            diameter,
            on_bad_image=on_bad_image,
            workers=max(1, workers if workers is not None else os.cpu_count() or 1),
            file=_kept_nuclei(root, cache_dir, search) if store is None else nuclei_file(store),
            keep="if possible" if store is None else "always",
        )
    if store is None:
        return crop_screen(screen, found, size)
    cells = load_packed(pack_cells(screen, found, store, size, workers=workers, on_bad_image=on_bad_image))
    return replace(cells, fields=screen)


class _Dataset(NamedTuple):
    """The fields of a dataset and their images in all channels, opened once for every screen of them."""

    table: pd.DataFrame
    pixels: bbbc021_h5.H5Pixels | RawPixels
    classes: list[str]

    def screen(self, channels: Sequence[str]) -> Screen:
        pixels = self.pixels.of_channels(match_channels(channels, self.pixels.channels))
        return make_screen(self.table, pixels, self.classes)


def _open(
    root_dir: str | Path | None,
    fields: str,
    plates: Collection[str] | None,
    cache_dir: str | Path | None,
    on_bad_image: OnBadImage,
    check_files: bool = True,
) -> _Dataset:
    """Find a dataset, read what is known of its fields, and open their images; arguments as of :func:`load_bbbc021`."""
    if fields not in ("ljosa", "all"):
        raise ConfigError(f"fields '{fields}' is unknown; choose ljosa or all")
    check_on_bad_image(on_bad_image)
    if isinstance(plates, str):
        plates = [plates]
    if plates is not None and not len(plates):
        raise ConfigError("no plate is named: name one, or leave plates out to read all", "plates")
    file, folder = _find(_root(root_dir))
    pixels: bbbc021_h5.H5Pixels | RawPixels
    if file is not None:
        listed = file
        table, pixels = bbbc021_h5.read_fields(bbbc021_h5.plate_files(file, plates))
        rows = _rows_of_plates(plates, table, listed)
        pixels = pixels.take(rows)
    else:
        listed = folder / bbbc021_raw.IMAGE_TABLE
        table = bbbc021_raw.read_tables(folder)
        rows = _rows_of_plates(plates, table, listed)
        cache = folder / "illumination" if cache_dir is None else Path(cache_dir).expanduser()
        skip, workers = on_bad_image == "skip", min(4, os.cpu_count() or 1)
        pixels = open_raw(folder, table.iloc[rows], cache, workers, check_files and not skip, skip)
    table, classes = annotate(table, listed)
    table = table.iloc[rows]
    if fields == "ljosa":
        taken = np.flatnonzero((table["moa"] != "") & (table["control"] != "positive"))
        log.info("BBBC021: %d of %d fields are of a known mechanism and no positive control", len(taken), len(table))
        if not len(taken):
            raise DataError(
                f"none of the {len(table)} fields of '{listed}' is of a known mechanism and no positive control: name "
                "other plates, or read all fields (fields: all)",
                "plates",
            )
        table, pixels = table.iloc[taken], pixels.take(taken)
    return _Dataset(table, pixels, classes)


def _root(root_dir: str | Path | None) -> Path:
    return Path(root_dir if root_dir is not None else CACHE).expanduser()


def _kept_nuclei(root: Path, cache_dir: str | Path | None, search: Mapping[str, Any]) -> Path:
    """Where the nuclei of a search are kept that belong to no store: every search has a file of its own."""
    folder = _find(root)[1] if cache_dir is None else Path(cache_dir).expanduser()
    name = hashlib.sha256(json.dumps(search, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "nuclei" / f"{name}.parquet"


def is_bbbc021(root: Path) -> bool:
    """Whether :func:`load_bbbc021` would find something to read in a folder."""
    try:
        _find(root)
    except DataError:
        return False
    return True


def find_supplement(root: Path) -> Path | None:
    """The folder with the nuclei tables of Ljosa et al., if it is where the dataset is looked for."""
    places = [root / folder for folder in _FOLDERS]
    return next((place for place in places if (place / nuclei.SUPPLEMENT_IMAGES).is_file()), None)


def _find(root: Path) -> tuple[Path | None, Path]:
    """The file of pybbbc, or None and the folder of the raw tables."""
    places = [root / folder for folder in _FOLDERS]
    for place in places:
        if (place / _H5).is_file():
            return place / _H5, place
    for place in (*places, *(place / "raw" for place in places)):
        if any((place / f"{bbbc021_raw.IMAGE_TABLE}{ending}").is_file() for ending in ("", ".gz")):
            return None, place
    raise DataError(
        f"no BBBC021 below '{root}': neither '{_H5}' of pybbbc nor '{bbbc021_raw.IMAGE_TABLE}' of the raw "
        "collection: name the folder that holds one of them",
        "root_dir",
    )


def _rows_of_plates(plates: Collection[str] | None, table: pd.DataFrame, file: Path) -> np.ndarray:
    """The rows of some plates, (n,) int64; all if none are named."""
    known = sorted(table["plate"].unique())
    if plates is not None:
        plates = bbbc021_h5.find_plates(plates, known, file)
    return np.flatnonzero(table["plate"].isin(known if plates is None else plates))


def annotate(table: pd.DataFrame, file: Path = Path(bbbc021_raw.IMAGE_TABLE)) -> tuple[pd.DataFrame, list[str]]:
    """Add the canonical columns of a Screen to a table of fields.

    Args:
        table: ``plate, well, site, replicate, compound, concentration, moa`` (empty where unknown).
        file: where it comes from, for messages: the image table, or the file of pybbbc.

    Returns:
        The table, and the names of the classes: the known mechanisms, sorted.

    Raises:
        DataError: a replicate is not a whole number, or no mechanism is known of any treatment.
    """
    table = table[["plate", "well", "site", "replicate", "compound", "concentration", "moa"]].copy()
    replicate = pd.to_numeric(table["replicate"], errors="coerce").astype(np.float64)
    bad = replicate.isna() | (replicate % 1 != 0)  # the remainder of infinity is not a number
    if bad.any():
        plate, well, site, value = table.loc[bad, ["plate", "well", "site", "replicate"]].iloc[0]
        raise DataError(
            f"'{file}' says replicate '{value}' of plate {plate}, well {well}, site {site}: it must be a whole number"
        )
    table["replicate"] = replicate.astype(np.int64)
    dmso = table["compound"] == DMSO
    table.loc[dmso, "moa"] = DMSO  # whatever the moa table says, or does not
    treated = table.loc[~dmso].drop_duplicates(["compound", "concentration"])
    known = int((treated["moa"] != "").sum())
    if not known and len(treated):
        remedy = (
            f"compounds and concentrations of '{bbbc021_raw.MOA_TABLE}' must be those of '{bbbc021_raw.IMAGE_TABLE}'"
            if file.name != _H5
            else f"make '{file}' again with pybbbc"
        )
        raise DataError(f"the mechanism of none of the {len(treated)} treatments is known: {remedy}")
    log.info("BBBC021: the mechanism of %d of %d treatments is known", known, len(treated))
    classes = sorted(set(table["moa"]) - {""})
    column = table["well"].str.extract(r"(\d+)$", expand=False).str.zfill(2)
    table["control"] = ""
    table.loc[(table["compound"] == "taxol") & column.isin(CONTROL_COLUMNS), "control"] = "positive"
    table.loc[dmso, "control"] = "negative"
    table["experiment"] = table["plate"].str.partition("_")[0]
    table["label"] = pd.Categorical(table["moa"], categories=classes).codes.astype(np.int64)
    return table.assign(cell_type="MCF7", split="test"), classes
