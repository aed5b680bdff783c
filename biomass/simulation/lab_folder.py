"""A small simulated screen in the files of a real microscope, with the plate map that a lab would have beside it.

The wells are drawn by :mod:`.plate_map`: treatments do something, and plates differ in staining, light and focus. What
is written is what instruments and public collections write: their folders, their names, and what else lies about.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter
from tifffile import imwrite

from biomass.atomic import whole_folder
from biomass.errors import ConfigError, did_you_mean
from biomass.screen import Screen, VectorPixels, make_screen
from biomass.simulation.plate_map import Look, simulate_plate_map

TREATMENTS = (
    *(("DMSO", "DMSO", "negcon"),) * 4,
    *(("taxol", "Microtubule stabilizers", "poscon"),) * 2,
    ("AZ138", "Eg5 inhibitors", ""),
    ("AZ-C", "Eg5 inhibitors", ""),
    ("emetine", "Protein synthesis", ""),
    ("anisomycin", "Protein synthesis", ""),
    ("mitomycin C", "DNA damage", ""),
    ("camptothecin", "DNA damage", ""),
)
"""Compound, mechanism and kind of control of the wells of a plate, four in a row."""

_ROWS, _FIRST_COLUMN, _IN_A_ROW = "BCD", 3, 4
_CAMERA = 16  # 8-bit light as a camera of 12 bits counts it
_BLUR = 1.5  # of a plane, pixels for each plane that it lies away from the middle
_GALLERY = "s3://cellpainting-gallery/cpg9999-simulated/source_1"
_BATCH = "2026_11_02_Batch1"
_NAMESPACE = "http://www.perkinelmer.com/PEHH/HarmonyV5"


class LabFolder(NamedTuple):
    """A simulated lab folder.

    Attributes:
        images: the folder with the images.
        platemap: the plate map.
        screen: what the image files hold, a row a field of view; of several planes the middle one, of several time
            points the first.
    """

    images: Path
    platemap: Path
    screen: Screen


class Place(NamedTuple):
    """One image file: where in the screen it was taken. Numbers are from 1."""

    experiment: str
    plate: str
    well: str
    site: int
    channel: int
    plane: int
    time: int

    @property
    def row(self) -> int:
        """The row of the well."""
        return ord(self.well[0]) - 64

    @property
    def column(self) -> int:
        """The column of the well."""
        return int(self.well[1:])


class Layout(NamedTuple):
    """How an instrument or a collection writes.

    Attributes:
        name: the path of an image, below the folder of images.
        channels: what the channels are called.
        plates: the first plate's name; of the others the last digits count on.
        beside: writes what else there is beside the images.
    """

    name: Callable[[Place], str]
    channels: tuple[str, ...]
    plates: str
    beside: Callable[[Path, pd.DataFrame], None]


def _guid(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest().upper()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _imagexpress(at: Place) -> str:
    step = f"ZStep_{at.plane}/" if at.plane else ""
    stem = f"Screen7_{at.well}_s{at.site}_w{at.channel}"
    return f"{at.plate}/TimePoint_{at.time}/{step}{stem}{_guid(str(at))}.tif"


def _phenix(at: Place) -> str:
    folder = f"{at.plate}__2026-11-02T10_14_05-Measurement 1/Images"
    place = f"r{at.row:02d}c{at.column:02d}f{at.site:02d}p{max(at.plane, 1):02d}"
    return f"{folder}/{place}-ch{at.channel}sk{at.time}fk1fl1.tiff"


def _cellvoyager(at: Place) -> str:
    numbers = f"T{at.time:04d}F{at.site:03d}L01A{at.channel:02d}Z{max(at.plane, 1):02d}C{at.channel:02d}"
    return f"{at.plate}/{at.plate}_{at.well}_{numbers}.tif"


def _gallery(at: Place) -> str:
    folder = f"cpg9999-simulated/source_1/images/{_BATCH}/images/{at.plate}"
    return f"{folder}/{at.plate}_{at.well}_T{at.time}_F{at.site}_{CHANNELS[at.channel - 1]}.tiff"


def _deepprofiler(at: Place) -> str:
    return f"images/{at.plate}/{at.well}_{at.site}_{CHANNELS[at.channel - 1]}.png"


def _rxrx(at: Place) -> str:
    return f"images/{at.experiment}/Plate{at.plate}/{at.well}_s{at.site}_w{at.channel}.png"


def _thumbnails(folder: Path, files: pd.DataFrame) -> None:
    """What Windows and the microscope leave beside images."""
    for path in files["path"]:
        name = folder / path
        guid = name.stem[-36:]
        thumb = name.with_name(f"{name.stem.removesuffix(guid)}_thumb{_guid(guid)}.tif")
        imwrite(thumb, np.zeros((8, 8), np.uint16))
    (folder / files["path"].iloc[0]).with_name("Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def _harmony(folder: Path, files: pd.DataFrame) -> None:
    """``Index.idx.xml`` of every plate, as Harmony writes it."""
    for path, own in files.groupby(files["path"].str.rpartition("/")[0]):
        images = "".join(
            f"""    <Image Version="1">
      <id>{at.row:02d}{at.column:02d}K{at.time}F{at.site}P{max(at.plane, 1)}R{at.channel}</id>
      <State>Ok</State>
      <URL>{file.rpartition("/")[2]}</URL>
      <Row>{at.row}</Row>
      <Col>{at.column}</Col>
      <FieldID>{at.site}</FieldID>
      <PlaneID>{max(at.plane, 1)}</PlaneID>
      <TimepointID>{at.time}</TimepointID>
      <ChannelID>{at.channel}</ChannelID>
      <FlimID>1</FlimID>
      <ChannelName>{escape(STAINS[at.channel - 1])}</ChannelName>
    </Image>
"""
            for file, at in zip(own["path"], own["at"], strict=True)
        )
        plate = own["at"].iloc[0].plate
        (folder / str(path) / "Index.idx.xml").write_text(
            f"""\ufeff<?xml version="1.0" encoding="utf-8"?>
<EvaluationInputData xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" Version="1" xmlns="{_NAMESPACE}">
  <User>lab</User>
  <InstrumentType>Phenix</InstrumentType>
  <Plates>
    <Plate>
      <PlateID>{escape(plate)}</PlateID>
      <Name>{escape(plate)}</Name>
      <PlateRows>8</PlateRows>
      <PlateColumns>12</PlateColumns>
    </Plate>
  </Plates>
  <Images>
{images}  </Images>
</EvaluationInputData>
""",
            "utf-8",
        )


def _measurement(folder: Path, files: pd.DataFrame) -> None:
    """``MeasurementData.mlf`` of every plate, as the Cell Voyager writes it."""
    for path, own in files.groupby(files["path"].str.rpartition("/")[0]):
        records = "".join(
            f'  <bts:MeasurementRecord bts:Type="IMG" bts:Row="{at.row}" bts:Column="{at.column}" '
            f'bts:Ch="{at.channel}" bts:FieldIndex="{at.site}" bts:ZIndex="{max(at.plane, 1)}">'
            f"{file.rpartition('/')[2]}"
            "</bts:MeasurementRecord>\n"
            for file, at in zip(own["path"], own["at"], strict=True)
        )
        (folder / str(path) / "MeasurementData.mlf").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n<bts:MeasurementData xmlns:bts="http://www.yokogawa.co.jp/BTS/'
            f'BTSSchema/1.0" bts:Version="1.0">\n{records}</bts:MeasurementData>\n',
            "utf-8",
        )


def _load_data(folder: Path, files: pd.DataFrame) -> None:
    """``load_data.csv`` of every plate, as the Cell Painting Gallery has it: paths in its bucket."""
    for plate, own in files.groupby([at.plate for at in files["at"]]):
        table = _by_field(own, lambda path: path)
        for channel in CHANNELS:
            parts = table.pop(channel).str.rpartition("/")
            table[f"FileName_Orig{channel}"] = parts[2]
            table[f"PathName_Orig{channel}"] = "s3://cellpainting-gallery/" + parts[0]
            table[f"FileName_Illum{channel}"] = f"{plate}_Illum{channel}.npy"
            table[f"PathName_Illum{channel}"] = f"{_GALLERY}/images/{_BATCH}/illum/{plate}"
        table.insert(0, "Metadata_Batch", _BATCH)
        place = folder / f"cpg9999-simulated/source_1/workspace/load_data_csv/{_BATCH}/{plate}"
        place.mkdir(parents=True)
        illum = [column for column in table if "Illum" in str(column)]
        table.drop(columns=illum).to_csv(place / "load_data.csv", index=False)
        table.to_csv(place / "load_data_with_illum.csv", index=False)


def _index_table(folder: Path, files: pd.DataFrame) -> None:
    """``metadata/index.csv`` of a project of DeepProfiler: paths below its folder of images."""
    table = _by_field(files, lambda path: path.removeprefix("images/"))
    (folder / "metadata").mkdir()
    table.to_csv(folder / "metadata" / "index.csv", index=False)


def _by_field(files: pd.DataFrame, name: Callable[[str], str]) -> pd.DataFrame:
    """A row a field of view, a column a channel."""
    at = pd.DataFrame(list(files["at"]), columns=Place._fields)
    at["path"] = [name(path) for path in files["path"]]
    wide = at.pivot(index=["plate", "well", "site"], columns="channel", values="path").reset_index()
    wide.columns = pd.Index(["Metadata_Plate", "Metadata_Well", "Metadata_Site", *CHANNELS])
    return wide


def _nothing(folder: Path, files: pd.DataFrame) -> None:
    """Nothing lies beside the images."""


CHANNELS = ("DNA", "ER", "AGP")
STAINS = ("HOECHST 33342", "Alexa 488", "Alexa 568")
_RXRX = ("nuclei", "er", "actin", "nucleoli", "mitochondria", "golgi")

LAYOUTS: Mapping[str, Layout] = {
    "imagexpress": Layout(_imagexpress, ("w1", "w2", "w3"), "24381", _thumbnails),
    "phenix": Layout(_phenix, STAINS, "BR00117001", _harmony),
    "phenix_bare": Layout(_phenix, ("ch1", "ch2", "ch3"), "BR00117001", _nothing),
    "cellvoyager": Layout(_cellvoyager, ("C01", "C02", "C03"), "20261102-P01", _measurement),
    "load_data": Layout(_gallery, CHANNELS, "BR00117001", _load_data),
    "deepprofiler": Layout(_deepprofiler, CHANNELS, "SQ00014812", _index_table),
    "rxrx1": Layout(_rxrx, _RXRX, "1", _nothing),
    "rxrx3": Layout(_rxrx, _RXRX, "1", _nothing),
}
"""Ways to write a screen. ``phenix_bare`` is an export of a Phenix without its ``Index.idx.xml``."""

_EXPERIMENTS = {"rxrx1": "HUVEC-01", "rxrx3": "compound-001", "load_data": _BATCH}


def simulate_lab_folder(
    folder: str | Path,
    layout: str,
    *,
    plates: int = 3,
    sites: int = 2,
    size: int = 64,
    planes: int = 1,
    times: int = 1,
    seed: int = 0,
) -> LabFolder:
    """Write a small screen as an instrument or a collection writes it.

    Every plate has the twelve wells of :data:`TREATMENTS`. The same arguments give the same files, bit for bit.

    Args:
        folder: where ``screen``, the folder of images, and the plate map are written; must not be there yet.
        layout: one of :data:`LAYOUTS`.
        plates: how many, at least 3.
        sites: fields of view a well.
        size: height and width of a field, pixels.
        planes: focal planes a field, as files; all but the middle one are blurred.
        times: time points, as files; every one is darker than the one before.
        seed: everything random follows from it.

    Raises:
        ConfigError: there is no such layout, a number is out of range, or the folder cannot be written.
        DataError: there are fewer than three plates.

    >>> lab = simulate_lab_folder(getfixture("tmp_path") / "lab", "cellvoyager", sites=1, size=48)
    >>> sorted(path.name for path in lab.images.glob("*/*"))[0]
    '20261102-P01_B03_T0001F001L01A01Z01C01.tif'
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"no layout '{layout}'; {did_you_mean(layout, LAYOUTS)}")
    if min(planes, times) < 1:
        raise ConfigError(f"{planes} planes and {times} time points: a field has at least one of each")
    form = LAYOUTS[layout]
    wells = _wells(layout, form, plates)
    drawn = simulate_plate_map(wells, Look(sites=sites, size=size, seed=seed), workers=1)
    images = _channels(drawn.read(np.arange(len(drawn))), len(form.channels))
    eight_bits = _rxrx is form.name
    if not eight_bits:
        images = images.astype(np.uint16) * _CAMERA
    files, arrays = [], []
    table = drawn.table
    for row, (experiment, plate, well, site) in enumerate(
        zip(table["experiment"], table["plate"], table["well"], table["site"], strict=True)
    ):
        for channel in range(len(form.channels)):
            for plane in range(1, planes + 1):
                for time in range(1, times + 1):
                    at = Place(experiment, plate, well, int(site), channel + 1, plane if planes > 1 else 0, time)
                    files.append((form.name(at), at))
                    arrays.append((row, channel, plane - 1 - planes // 2, time))
    with whole_folder(Path(folder)) as part:
        for (path, _), (row, channel, away, time) in zip(files, arrays, strict=True):
            _write(part / "screen" / path, _plane(images[row, channel], away, time))
        form.beside(part / "screen", pd.DataFrame(files, columns=["path", "at"]))
        platemap = _write_map(part, layout, wells)
    screen = make_screen(table, VectorPixels(images, form.channels), drawn.classes)
    return LabFolder(Path(folder) / "screen", Path(folder) / platemap.relative_to(part), screen)


def _wells(layout: str, form: Layout, plates: int) -> pd.DataFrame:
    """The plate map, a row a well."""
    stem, digits = form.plates[:-1], form.plates[-1]
    wells = pd.DataFrame(
        [
            (f"{stem}{int(digits) + plate}", f"{_ROWS[i // _IN_A_ROW]}{_FIRST_COLUMN + i % _IN_A_ROW:02d}", *treatment)
            for plate in range(plates)
            for i, treatment in enumerate(TREATMENTS)
        ],
        columns=["plate", "well", "treatment", "label", "kind"],
    )
    kinds = {"negcon": "negative", "poscon": "positive", "": ""}
    return wells.assign(experiment=_EXPERIMENTS.get(layout, "screen"), control=wells["kind"].map(kinds))


def _channels(images: np.ndarray, n: int) -> np.ndarray:
    """The images (N, 3, H, W) with as many channels as the layout has: further ones are mixtures of two."""
    mixed = [(images[:, i] // 2 + images[:, (i + 1) % 3] // 2)[:, None] for i in range(n - 3)]
    return np.concatenate([images, *mixed], axis=1)


def _plane(image: np.ndarray, away: int, time: int) -> np.ndarray:
    """An image (H, W) as a plane shows it that lies ``away`` from the middle, at a time point from 1."""
    if away:
        image = np.rint(gaussian_filter(image.astype(np.float32), _BLUR * abs(away))).astype(image.dtype)
    return image - image // 8 * np.asarray(time - 1, image.dtype)


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(image).save(path)
    else:
        imwrite(path, image)


def _write_map(folder: Path, layout: str, wells: pd.DataFrame) -> Path:
    """Write the plate map, or the metadata that a collection publishes in its place."""
    if layout == "rxrx1":
        kinds = {"negcon": "negative_control", "poscon": "positive_control", "": "treatment"}
        rows = wells.loc[wells.index.repeat(2)].assign(site=np.tile([1, 2], len(wells)))
        well_id = rows["experiment"] + "_" + rows["plate"] + "_" + rows["well"]
        table = pd.DataFrame(
            {
                "site_id": well_id + "_" + rows["site"].astype(str),
                "well_id": well_id,
                "cell_type": "HUVEC",
                "dataset": "train",
                "experiment": rows["experiment"],
                "plate": rows["plate"],
                "well": rows["well"],
                "site": rows["site"],
                "well_type": rows["kind"].map(kinds),
                "sirna": rows["treatment"],
                "sirna_id": pd.factorize(rows["treatment"], sort=True)[0],
            }
        )
        path = folder / "screen" / "metadata.csv"
    elif layout == "rxrx3":
        table = pd.DataFrame(
            {
                "well_id": wells["experiment"] + "_" + wells["plate"] + "_" + wells["well"],
                "experiment_name": wells["experiment"],
                "plate": wells["plate"],
                "address": wells["well"],
                "gene": "",
                "treatment": wells["treatment"].replace("DMSO", "EMPTY_control"),
                "SMILES": "",
                "concentration": np.where(wells["kind"] == "negcon", "", "1.0"),
                "perturbation_type": "COMPOUND",
                "cell_type": "HUVEC",
            }
        )
        path = folder / "screen" / "metadata_rxrx3.csv"
    else:
        table = pd.DataFrame(
            {
                "Plate": wells["plate"],
                "Well": wells["well"].str.replace("0", "", n=1),  # A1, as labs write it
                "Compound": wells["treatment"],
                "Concentration (µM)": np.where(wells["kind"] == "negcon", "", "3"),
                "MoA": wells["label"],
                "Control type": wells["kind"],
            }
        )
        path = folder / "platemap.csv"
    table.to_csv(path, index=False)
    return path
