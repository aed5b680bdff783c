"""How BBBC021 lies on disk, as pybbbc stores it and as the collection publishes it: names, and what writes them.

pybbbc: an HDF5 file of virtual datasets over one file a plate. Every plate file holds ``images`` (n, 3, H, W) float16
in 0…1, channels :data:`H5_CHANNELS`, and of every image ``site`` and ``replicate`` (uint8), ``concentration`` (float16,
µM), ``well``, ``plate``, ``compound`` and ``moa`` (text; moa :data:`UNKNOWN` where it is not known).

The collection: two tables, and 16-bit TIFFs, a file a channel, in a folder or a zip archive a plate.
"""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from biomass.atomic import whole_file

H5_CHANNELS = ("actin", "tubulin", "DAPI")
"""The channels of an image, in the order of the files of pybbbc."""

UNKNOWN = "null"
"""What the files of pybbbc say where the mechanism of action is not known."""

H5_TEXT = ("well", "plate", "compound", "moa")
H5_NUMBERS = {"site": np.uint8, "replicate": np.uint8, "concentration": np.float16}
"""Names of the datasets of a plate file, besides ``images``, and the types of those with numbers."""

RAW_CHANNELS = ("DAPI", "tubulin", "actin")
"""The channels of a field, in the order of the collection's image table (w1, w2, w4)."""

IMAGE_TABLE = "BBBC021_v1_image.csv"
MOA_TABLE = "BBBC021_v1_moa.csv"
"""The tables of the collection."""


@contextmanager
def whole_h5(file: Path, advice: str | None = None) -> Iterator[h5py.File]:
    """An HDF5 file to fill, which is written, whole or not at all, when the block ends.

    It is made in memory: the library of HDF5 ends the process with a segmentation fault where it cannot close a file on
    a full disk.

    Raises:
        ConfigError: it cannot be written.
    """
    content = BytesIO()
    with h5py.File(content, "w") as h5:
        yield h5
    with whole_file(file, advice) as part:
        part.write_bytes(content.getbuffer())


def write_plate(file: Path, images: np.ndarray, table: pd.DataFrame) -> None:
    """Write a plate file as pybbbc does. It appears under its name when it is complete, and not before.

    Args:
        file: its path, by custom ``hdf5/<plate>.h5``.
        images: (n, 3, H, W) float16 in 0…1, channels in the order of :data:`H5_CHANNELS`.
        table: of every image ``plate, well, site, replicate, compound, concentration, moa`` (empty where unknown).

    Raises:
        ConfigError: it cannot be written.
    """
    with whole_h5(file) as h5:
        h5.create_dataset("images", data=images.astype(np.float16, copy=False))
        for name in H5_TEXT:
            values: list[Any] = table[name].replace("", UNKNOWN).tolist()
            h5.create_dataset(name, data=values, dtype=h5py.string_dtype("utf-8"))
        for name, dtype in H5_NUMBERS.items():
            h5.create_dataset(name, data=table[name].to_numpy().astype(dtype))


def link_plates(file: Path, plates: Sequence[Path]) -> None:
    """Write the file of virtual datasets over plate files, which it names relative to its own folder."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    lengths = []
    for plate in plates:
        with h5py.File(plate, "r") as h5:
            lengths.append(len(h5["images"]))
            shapes = shapes or {name: (h5[name].shape[1:], h5[name].dtype) for name in h5}
    ends = np.cumsum(lengths).tolist()
    with whole_h5(file) as h5:
        for name, (shape, dtype) in shapes.items():
            layout = h5py.VirtualLayout((ends[-1], *shape), dtype)
            for plate, n, end in zip(plates, lengths, ends, strict=True):
                source = h5py.VirtualSource(str(plate.relative_to(file.parent)), name, (n, *shape), dtype)
                layout[end - n : end] = source
            h5.create_virtual_dataset(name, layout)


def write_tiffs(folder: Path, plate: str, images: np.ndarray, names: pd.DataFrame, zipped: bool) -> None:
    """Write the TIFFs of a plate as the collection has them.

    Args:
        folder: in which the plate's folder, or its archive ``BBBC021_v1_images_<plate>.zip``, is written.
        plate: its name.
        images: (n, 3, H, W) uint16, channels in the order of :data:`RAW_CHANNELS`.
        names: the file names, a row a field, a column a channel.
        zipped: write an archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = (
        (name, Image.fromarray(image[c]))
        for c, channel in enumerate(RAW_CHANNELS)
        for name, image in zip(names[channel], images, strict=True)
    )
    if not zipped:
        (folder / plate).mkdir()
        for name, image in files:
            image.save(folder / plate / name)
        return
    with zipfile.ZipFile(folder / f"BBBC021_v1_images_{plate}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, image in files:
            buffer = BytesIO()
            image.save(buffer, "TIFF")
            archive.writestr(zipfile.ZipInfo(f"{plate}/{name}"), buffer.getvalue())  # without the time of writing


def write_tables(folder: Path, table: pd.DataFrame, names: pd.DataFrame) -> None:
    """Write the two tables of the collection.

    Args:
        folder: is there already.
        table: of every field ``table, image`` (its ids), ``plate, well, replicate, compound, concentration, moa``
            (empty where unknown).
        names: the file names, a row a field, a column a channel.
    """
    path = table["plate"].str.partition("_")[0] + "/" + table["plate"]
    images = {"TableNumber": table["table"], "ImageNumber": table["image"]}
    for channel in RAW_CHANNELS:
        title = channel[0].upper() + channel[1:]
        images |= {f"Image_FileName_{title}": names[channel], f"Image_PathName_{title}": path}
    images |= {"Image_Metadata_Plate_DAPI": table["plate"], "Image_Metadata_Well_DAPI": table["well"]}
    images |= {"Replicate": table["replicate"], "Image_Metadata_Compound": table["compound"]}
    images |= {"Image_Metadata_Concentration": table["concentration"]}
    pd.DataFrame(images).to_csv(folder / IMAGE_TABLE, index=False)
    known = table.loc[table["moa"] != "", ["compound", "concentration", "moa"]].drop_duplicates()
    known.to_csv(folder / MOA_TABLE, index=False)
