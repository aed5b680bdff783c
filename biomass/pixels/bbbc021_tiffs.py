"""The images of BBBC021 as the collection publishes it: TIFFs in a folder or an archive a plate, corrected when read.

The images stay where they are. What the correction of illumination and intensity needs (:mod:`.illumination`) is
measured once a plate, and kept in a small file.
"""

import hashlib
import io
import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from biomass.atomic import check_writable
from biomass.errors import BadImageError, DataError, RefusedError, one_line
from biomass.guarded import ask
from biomass.identifiers import folder_name
from biomass.pixels.bbbc021_files import RAW_CHANNELS as CHANNELS
from biomass.pixels.bbbc021_files import whole_h5
from biomass.pixels.illumination import SIGMA, Correction, measure_channel
from biomass.pixels.names import string_array
from biomass.pixels.open_handles import Handles
from biomass.pixels.origin import Stamps, stamp_files
from biomass.pixels.tiff import libtiff

_SIZES = 5  # images whose size is looked at
_VERSION = 1  # of the measured corrections: raise it with every change of their values
_REMEDY = "download the plate again, or leave it out"

log = logging.getLogger(__name__)


def find_plate(root: Path, plate: str, folder: str) -> Path:
    """Where the images of a plate lie: a folder, or a zip archive.

    Args:
        root: the folder of the tables; ``images/`` in it is searched too.
        plate: its name, such as ``Week1_22123``.
        folder: its folder according to the image table, such as ``Week1/Week1_22123``.

    Raises:
        DataError: there is none.
    """
    for place in (root, root / "images"):
        for path in (place / folder, place / plate):
            if path.is_dir():
                return path
        for path in (place / f"BBBC021_v1_images_{plate}.zip", place / f"{plate}.zip"):
            if path.is_file():
                return path
    raise DataError(
        f"no images of plate {plate} below '{root}': neither a folder '{plate}' nor "
        f"'BBBC021_v1_images_{plate}.zip'; download it, or leave the plate out",
        "plates",
    )


class _Archive:
    """An open zip archive, whose files go by their names without folders."""

    def __init__(self, file: Path) -> None:
        self._zip = zipfile.ZipFile(file)
        self.members = {name.rpartition("/")[2]: name for name in self._zip.namelist() if not name.endswith("/")}

    def read(self, name: str) -> bytes:
        return self._zip.read(self.members[name])

    def close(self) -> None:
        self._zip.close()


def _names(source: Path) -> set[str]:
    """Names of the files of a plate."""
    if source.is_dir():
        return {entry.name for entry in os.scandir(source)}
    try:
        archive = _Archive(source)
    except _DAMAGED as error:
        raise DataError(f"'{source}' cannot be read ({_why(error)}): {_REMEDY}", "plates") from error
    archive.close()
    return set(archive.members)


def check_plate(source: Path, table: pd.DataFrame) -> None:
    """Make sure that all images of a plate are there.

    Args:
        source: as :func:`find_plate` gives it.
        table: the rows of the plate.

    Raises:
        DataError: some are not; names the first, its channel, well and site, and how many there are.
    """
    names = _names(source)
    missing = [(row, channel) for channel in CHANNELS for row in np.flatnonzero(~table[channel].isin(names))]
    if missing:
        row, channel = missing[0]
        first = table.iloc[row]
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"plate {first['plate']} has no {channel} image of well {first['well']}, site {first['site']}: "
            f"'{first[channel]}' is not in '{source}'{more}; {_REMEDY}",
            "skip",
        )


class _Reader:
    """Reads single images of plates, from folders and archives."""

    def __init__(self) -> None:
        self._archives: Handles[_Archive] = Handles(_Archive)

    def __call__(self, source: Path, name: str) -> np.ndarray:
        """One channel of a field, (H, W) uint8 or uint16.

        Raises:
            OSError, ValueError, KeyError, BadZipFile: it is missing or damaged.
        """
        data = (source / name).read_bytes() if source.suffix != ".zip" else self._archives(source).read(name)
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image, libtiff():
            array = np.asarray(image)
        if array.ndim != 2 or array.dtype.kind != "u":
            raise ValueError(f"it is {' x '.join(map(str, array.shape))} {array.dtype}, expected one gray channel")
        return array


def _check_size(image: np.ndarray, size: tuple[int, ...]) -> None:
    if image.shape != size:
        raise ValueError(f"it is {image.shape[0]} x {image.shape[1]}, the others {size[0]} x {size[1]}")


# zipfile raises RuntimeError where a member is encrypted, and NotImplementedError where it is packed in an unknown way
_DAMAGED = (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, SyntaxError, EOFError, RuntimeError)


def _why(error: Exception) -> str:
    """What is wrong with a file that the message names anyhow."""
    if isinstance(error, UnidentifiedImageError):  # whose message is the address of an object
        return "it is not a TIFF"
    if isinstance(error, KeyError):
        return "it is not in the archive"
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)


@dataclass(eq=False)
class RawPixels:
    """Corrected images of a raw BBBC021; implements :class:`biomass.screen.Pixels`. Made by :func:`open_raw`.

    Attributes:
        sources: folder or archive of every plate.
        corrections: file with the correction of every plate.
        plate: (N,) int32, which plate an image is on.
        sites: (N,) the name of its site.
        files: (N, C) file names, one a channel.
        order: position of every channel among :data:`biomass.pixels.bbbc021_files.RAW_CHANNELS`.
        channels: their names.
        size: (H, W) of every image, pixels.
    """

    sources: tuple[Path, ...]
    corrections: tuple[Path, ...]
    plate: np.ndarray
    sites: np.ndarray
    files: np.ndarray
    order: tuple[int, ...]
    channels: tuple[str, ...]
    size: tuple[int, int]
    _reader: _Reader = field(default_factory=_Reader, repr=False)
    _measured: Handles["_Measured"] = field(default_factory=lambda: Handles(_Measured), repr=False)

    def __len__(self) -> int:
        return len(self.plate)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the images of ``rows`` (N,), corrected: (N, C, H, W) float16 in 0…1.

        Raises:
            BadImageError: a file is missing, damaged, or of another size; it is named, with its channel.
        """
        images = np.empty((len(rows), len(self.order), *self.size), np.float16)
        for image, row in zip(images, rows, strict=True):
            correction = self._correction(self.corrections[self.plate[row]])
            for channel, position in enumerate(self.order):
                found = self._read_one(int(row), channel)
                image[channel] = correction.apply(found, self.sites[row], position)
        return images

    def _correction(self, file: Path) -> Correction:
        try:
            return self._measured(file).correction
        except OSError as error:
            raise DataError(
                f"correction '{file}' cannot be read ({_why(error)}): start again, to measure it again"
            ) from error

    def _read_one(self, row: int, channel: int) -> np.ndarray:
        source, name = self.sources[self.plate[row]], self.files[row, channel]
        try:
            found = self._reader(source, name)
            _check_size(found, self.size)
        except _DAMAGED as error:
            raise BadImageError(
                f"{self.channels[channel]} image '{source / name}' cannot be read ({_why(error)}): {_REMEDY}",
                row,
            ) from error
        return found

    def name(self, row: int) -> str:
        """The path of the first channel's file."""
        return str(self.sources[self.plate[row]] / self.files[row, 0])

    def stamps(self) -> Stamps:
        """Of the TIFFs, or of the archive of their plate."""
        packed = np.array([source.is_file() for source in self.sources])[self.plate]
        folders = np.array([str(source) for source in self.sources], dtype=object)[self.plate]
        paths = [np.where(packed, folders, folders + "/" + column.astype(object)) for column in self.files.T]
        return stamp_files(Path(), [string_array(column.tolist()) for column in paths])

    def take(self, rows: np.ndarray) -> "RawPixels":
        """The pixels of some rows, in that order."""
        return replace(self, plate=self.plate[rows], sites=self.sites[rows], files=self.files[rows])

    def of_channels(self, order: Sequence[int]) -> "RawPixels":
        """The pixels of some channels, in that order."""
        return replace(
            self,
            files=self.files[:, list(order)],
            order=tuple(self.order[c] for c in order),
            channels=tuple(self.channels[c] for c in order),
        )


def open_raw(
    root: Path,
    table: pd.DataFrame,
    cache: Path,
    workers: int,
    check_files: bool = True,
    skip_bad: bool = False,
) -> RawPixels:
    """The corrected images of a raw BBBC021.

    What the correction needs and is not in the cache yet is measured now, plate by plate, which reads every image
    of a plate twice (a minute a plate); one image a thread is in memory at a time.

    Args:
        root: the folder of the tables.
        table: of :func:`biomass.datasets.bbbc021_raw.read_tables`; all rows of its plates, on which corrections depend.
        cache: the folder that keeps the measured corrections, ``<plate>.h5``.
        workers: plates that are measured at a time.
        check_files: make sure that all images are there; without it a missing one is an error when it is read: here,
            where its plate has not been measured yet.
        skip_bad: whether to measure without the images that cannot be read. A correction that was measured so is
            measured again when a call without ``skip_bad`` finds it.

    Raises:
        ConfigError: the cache cannot be written.
        DataError: a plate or an image is missing or damaged.
    """
    groups = {str(plate): rows for plate, rows in table.groupby("plate", sort=False)}
    sources = {plate: find_plate(root, plate, rows["folder"].iloc[0]) for plate, rows in groups.items()}
    if check_files:
        for plate, rows in groups.items():
            check_plate(sources[plate], rows)
    files = {plate: cache / f"{folder_name(plate)}.h5" for plate in groups}
    todo = [plate for plate in groups if not _is_measured(files[plate], groups[plate], skip_bad)]
    if todo:
        check_writable(cache, advice="cache_dir")
    with ThreadPoolExecutor(workers) as pool:  # decoding and arithmetic let go of the interpreter
        jobs = [pool.submit(measure_plate, files[plate], sources[plate], groups[plate], skip_bad) for plate in todo]
        try:
            for job in tqdm(as_completed(jobs), "Measuring illumination", len(jobs), unit="plate", disable=None):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    with h5py.File(files[table["plate"].iloc[0]], "r") as h5:
        height, width = h5["light"].shape[2:]
    names = list(groups)
    return RawPixels(
        tuple(sources[plate] for plate in names),
        tuple(files[plate] for plate in names),
        table["plate"].map({plate: i for i, plate in enumerate(names)}).to_numpy(np.int32),
        table["site"].to_numpy(object),
        table[list(CHANNELS)].to_numpy(object),
        tuple(range(len(CHANNELS))),
        CHANNELS,
        (height, width),
    )


def _fingerprint(table: pd.DataFrame) -> str:
    """What a plate's correction depends on, short."""
    names = "\n".join(table[list(CHANNELS)].to_numpy(object).ravel())
    return hashlib.sha256(f"{_VERSION} {SIGMA}\n{names}".encode()).hexdigest()


def _is_measured(file: Path, table: pd.DataFrame, skip_bad: bool) -> bool:
    try:
        ask("hdf5", file, skip=["light"], virtual=False)
        with h5py.File(file, "r") as h5:
            whole = skip_bad or not h5.attrs.get("skipped", 0)
            return whole and str(h5.attrs.get("fingerprint", "")) == _fingerprint(table)
    except (OSError, RefusedError):  # not there, or damaged
        return False


def measure_plate(file: Path, source: Path, table: pd.DataFrame, skip_bad: bool = False) -> None:
    """Measure the correction of a plate and write it to a file.

    Args:
        file: where to.
        source: as :func:`find_plate` gives it.
        table: the rows of the plate.
        skip_bad: whether to leave out images that cannot be read, and count them in the log.

    Raises:
        ConfigError: the file cannot be written.
        DataError: an image is missing or damaged, or all of a channel are.
    """
    reader = _Reader()
    numbers, sites = pd.factorize(table["site"], sort=True)
    size = _common_size(reader, source, table[CHANNELS[0]].tolist())
    bad: dict[str, str] = {}

    def images(channel: str) -> Iterator[tuple[int, np.ndarray]]:
        count = 0
        for number, name in zip(numbers, table[channel], strict=True):
            try:
                image = reader(source, name)
                _check_size(image, size or image.shape)
            except _DAMAGED as error:
                bad[name] = f"{channel} image '{source / name}' cannot be read ({_why(error)})"
                if not skip_bad:
                    raise DataError(f"{bad[name]}: {_REMEDY}", "skip") from error
                continue
            count += 1
            yield int(number), image
        if not count:
            raise DataError(
                f"none of the {len(table)} {channel} images of plate {table['plate'].iloc[0]} can be read; "
                f"the first: {next(bad[name] for name in table[channel])}; {_REMEDY}",
                "plates",
            )

    measured = [measure_channel(lambda c=channel: images(c), len(sites)) for channel in CHANNELS]  # type: ignore[misc]
    if bad:
        log.warning(
            "plate %s is corrected without %d images that cannot be read; the first: %s",
            table["plate"].iloc[0],
            len(bad),
            next(iter(bad.values())),
        )
    with whole_h5(file, "cache_dir") as h5:
        h5["light"] = np.stack([light for light, _, _ in measured], axis=1)
        h5["low"], h5["high"] = (np.array([m[i] for m in measured], np.float32) for i in (1, 2))
        h5.attrs["sites"] = list(sites)
        h5.attrs["fingerprint"] = _fingerprint(table)
        h5.attrs["skipped"] = len(bad)


def _common_size(reader: _Reader, source: Path, names: Sequence[str]) -> tuple[int, ...] | None:
    """The size that most of a few images have, so that not all are wrong where the first is; None if there is none."""
    sizes: Counter[tuple[int, ...]] = Counter()
    for name in names:
        try:
            sizes[reader(source, name).shape] += 1
        except _DAMAGED:
            continue
        if sizes.total() == _SIZES:
            break
    return sizes.most_common(1)[0][0] if sizes else None


class _Measured:
    """An open file with a measured correction; the light, the bulk of it, stays on disk until it is needed."""

    def __init__(self, file: Path) -> None:
        self._h5 = h5py.File(file, "r")
        low, high = (self._h5[name][()] for name in ("low", "high"))
        self.correction = Correction(tuple(self._h5.attrs["sites"]), self._h5["light"], low, high)

    def close(self) -> None:
        self._h5.close()
