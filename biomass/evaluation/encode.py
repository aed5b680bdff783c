"""From the cells of a screen to the profiles of its images: an encoder, run a plate at a time, its output kept.

This is the expensive step. It streams (at most one plate of cells, and of what the network makes of them, is in memory)
and goes on where it was stopped, see :func:`image_profiles`.
"""

import hashlib
import itertools
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.atomic import whole_file
from biomass.channels import match_channels
from biomass.errors import BadImageError, DataError
from biomass.evaluation.pooling import Profiles, mean_profiles
from biomass.evaluation.transfer import COLUMNS, TREATMENT, WELL
from biomass.inference import Statistics, Transform, infer
from biomass.loader import Batch, BatchReader, Loader, OnBadImage, SkippedImages
from biomass.models import digest
from biomass.samplers import PlateBatches
from biomass.screen import FIELD, PLATE, Screen

NORMALIZATIONS: Mapping[str, str] = {"frozen": "no BEN", "all": "BEN, all cells", "controls": "BEN, control cells"}
"""Where batch norm takes its statistics from, and what that is called in tables and figures: the running averages of
training, all cells of the plate, or the cells of its negative controls."""

log = logging.getLogger(__name__)


class Encoder(NamedTuple):
    """A trained network, and what has to be known to use it on another screen."""

    network: nn.Module
    """(n, C, H, W) → (n, D)."""
    channels: Sequence[str] | None
    """Names of the C channels that it expects, in its order; None: those of the screen as they are."""
    key: str
    """The network's name, for messages."""


def image_profiles(
    fabric: Fabric,
    encoder: nn.Module,
    cells: Screen,
    folder: Path,
    normalization: str = "controls",
    *,
    transform: Transform,
    channels: Sequence[str] | None = None,
    normalize: bool = True,
    batch_size: int | None = 2048,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "error",
) -> pd.DataFrame:
    """Encode all cells of a screen and average them over each image.

    Every plate is written to ``<folder>/<experiment>/<plate>.parquet`` when it is done. A later call reads what is
    there; plates that were made with other weights or settings, or from other cells, are made again.

    What can be known beforehand is not checked here again: :mod:`biomass.evaluation.checks` does it once, for all
    encoders of a run.

    Args:
        fabric: device and precision.
        encoder: (n, C, H, W) → (n, D), with plate-aware norms where ``normalization`` asks for statistics of plates.
        cells: a row a cell, with the columns ``compound, concentration, moa`` beside the canonical ones.
        folder: where the plates' tables are kept.
        normalization: one of :data:`NORMALIZATIONS`. Statistics are those of the whole plate, whatever ``batch_size``.
        transform: applied to the cells on the device, without randomness.
        channels: names of the channels that the encoder expects, in its order; found among those of ``cells`` by
            :func:`biomass.channels.match_channels`. None: those of ``cells`` as they are.
        normalize: scale the vector of every cell to length 1 first.
        batch_size: cells at once; None for whole plates.
        num_workers: processes that read ahead.
        on_bad_image: ``error``, or ``skip`` to leave unreadable cells out, listed in ``<folder>/skipped_images.txt``.

    Returns:
        A row an image that has cells: the columns of :data:`biomass.evaluation.transfer.COLUMNS`, ``Metadata_cells``
        (how many) and the features (float32).

    Raises:
        ConfigError: a channel is missing, or the network has no plate-aware norms.
        DataError: a plate has no control cell but shall be normalized by them (it is named); or the encoder gives
            values that are not finite.
        BadImageError: a cell cannot be read.
    """
    order = None if channels is None else list(match_channels(channels, cells.pixels.channels))
    statistics = _statistics(normalization, cells)
    _, first, field = np.unique(cells.groups(FIELD), return_index=True, return_inverse=True)
    plate_of_field = cells.plate_ids[first]
    number = pd.Series(plate_of_field).groupby(plate_of_field).cumcount().to_numpy(np.int64)  # within the plate

    files = [folder / f"{quote(e, safe='')}" / f"{quote(p, safe='')}.parquet" for e, p in _plates(cells)]
    about = [fabric.strategy.precision.precision, normalization, normalize, order, repr(transform)]
    prints = _fingerprints(cells, digest(encoder), repr(about))
    todo = [plate for plate, file in enumerate(files) if _fingerprint(file) != prints[plate]]
    if todo:
        log.info("%s: encoding %d of %d plates", NORMALIZATIONS[normalization], len(todo), len(files))
        rows = np.flatnonzero(np.isin(cells.plate_ids, todo))
        batches = PlateBatches(rows, cells.plate_ids[rows], batch_size=batch_size, shuffle=False)
        reader = BatchReader(cells, cells.plate_ids, on_bad_image, number[field])
        loader = Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")
        skipped = SkippedImages(cells)
        standardized = transform if order is None else lambda images: transform(images[:, order])
        outputs = infer(fabric, encoder.to(fabric.device), loader, standardized, statistics, skipped)
        with closing(cast("Generator[tuple[Batch, Tensor]]", outputs)):  # an error here ends its inference mode, too
            for plate, of_plate in itertools.groupby(outputs, lambda output: int(output[0].groups[0])):
                images = first[plate_of_field == plate]
                table = _table(cells, images, mean_profiles(of_plate, len(images), normalize), statistics)
                write_profiles(table, files[plate], prints[plate])
        if skipped.rows:
            folder.mkdir(parents=True, exist_ok=True)
            skipped.report(folder)
    there = [file for file, print_ in zip(files, prints, strict=True) if _fingerprint(file) == print_]
    if not there:
        raise DataError(f"none of the {len(cells)} cells can be read; they are listed in {folder}/skipped_images.txt")
    return pd.concat([pd.read_parquet(file) for file in there], ignore_index=True)


def images_without_cells(fields: Screen, images: pd.DataFrame) -> pd.DataFrame:
    """The images of a screen that have no profile: none of their cells is known, or could be cut out and read.

    Fields that a published table of nuclei does not list are among them: nobody has looked for their cells.

    Their number, and which treatments are lost altogether, is said in the log.

    Args:
        fields: the screen that the cells were cut out of, a row an image.
        images: as :func:`image_profiles` gives them.

    Returns:
        A row an image: those of the columns :data:`biomass.evaluation.transfer.COLUMNS` that ``fields`` has.
    """
    table = fields.table[[c for c in COLUMNS if c in fields.table]].rename(columns=COLUMNS)
    keys = [COLUMNS[column] for column in FIELD]
    known = pd.MultiIndex.from_frame(images[keys].astype(str))
    absent = table[~pd.MultiIndex.from_frame(table[keys].astype(str)).isin(known)].reset_index(drop=True)
    if len(absent):
        treatments = pd.MultiIndex.from_frame(absent[list(TREATMENT)]).unique()
        lost = treatments[~treatments.isin(pd.MultiIndex.from_frame(images[list(TREATMENT)]))]
        which = f", among them all of {'; '.join(f'{c} {d:g}' for c, d in lost[:5])}" if len(lost) else ""
        log.warning("%d of %d images have no cells that are known and can be read%s", len(absent), len(table), which)
    return absent


def write_profiles(table: pd.DataFrame, file: Path, fingerprint: str = "") -> None:
    """Write a profile table as Parquet; it appears under its name when it is complete, and not before.

    Args:
        table: as the functions here give it.
        file: where to; its folder is made.
        fingerprint: what it was made from, kept in the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"fingerprint": fingerprint.encode()})
    with whole_file(file) as part:
        pq.write_table(arrow, part)


def _statistics(normalization: str, cells: Screen) -> Statistics:
    """What a normalization means for batch norm."""
    if normalization == "frozen":
        return Statistics("running", names=cells.plate_names)
    return Statistics("batch", rows="controls" if normalization == "controls" else "all", names=cells.plate_names)


def _plates(cells: Screen) -> list[tuple[str, str]]:
    """Experiment and plate of every plate id."""
    first = np.unique(cells.plate_ids, return_index=True)[1]
    return [(str(e), str(p)) for e, p in cells.table.iloc[first][list(PLATE)].to_numpy()]


def _fingerprints(cells: Screen, *settings: str) -> list[str]:
    """What the profiles of each plate depend on: settings, its table, and the pixels of a few of its cells."""
    common = "\n".join([*settings, repr((cells.pixels.channels, cells.pixels.size))]).encode()
    columns = [c for c in (*COLUMNS, "cell", "x", "y") if c in cells.table]
    hashes = pd.util.hash_pandas_object(cells.table[columns], index=False).to_numpy()
    plates = np.split(np.argsort(cells.plate_ids, kind="stable"), np.cumsum(np.bincount(cells.plate_ids))[:-1])
    samples = [np.unique(rows[np.linspace(0, len(rows) - 1, 3, dtype=np.int64)]) for rows in plates]
    return [
        hashlib.sha256(common + hashes[rows].tobytes() + _pixels(cells, sample)).hexdigest()
        for rows, sample in zip(plates, samples, strict=True)
    ]


def _pixels(cells: Screen, rows: np.ndarray) -> bytes:
    """The pixels of some cells; nothing for those that cannot be read."""
    try:
        return np.ascontiguousarray(cells.read(rows)).tobytes()
    except BadImageError:
        return b"".join(_pixels(cells, row) for row in np.split(rows, len(rows))) if len(rows) > 1 else b""


def _fingerprint(file: Path) -> str | None:
    """What the profiles in a file were made from; None where there is no file that can be read."""
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata.get(b"fingerprint", b"").decode()


def _table(cells: Screen, images: np.ndarray, profiles: Profiles, statistics: Statistics) -> pd.DataFrame:
    """The profiles of the images of one plate, each described by its first cell (a row of ``cells``)."""
    there = np.flatnonzero(profiles.counts)
    about = cells.table.iloc[images[there]][list(COLUMNS)].rename(columns=COLUMNS).reset_index(drop=True)
    for column in about.select_dtypes("category"):
        about[column] = about[column].astype(object)
    about["Metadata_cells"] = profiles.counts[there]
    vectors = profiles.vectors[there]
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad) == len(vectors) and statistics.source != "running":
        plate, of_controls = "/".join(about[list(WELL[:2])].iloc[0]), statistics.rows == "controls"
        raise DataError(
            f"the encoder's output is not finite for any image of plate '{plate}'; the cause may be NaN in any image "
            f"{'of a control well ' if of_controls else ''}of the plate, whose statistics carry it into all, or in the "
            "checkpoint's weights: running averages alone name the image, or its first one if it is the weights",
            advice="statistics",
        )
    if len(bad):
        where = "/".join(map(str, about.loc[bad[0], [COLUMNS[c] for c in FIELD]]))
        raise DataError(
            f"the encoder's output for image '{where}' is not finite; look for NaN in the checkpoint's weights and "
            "in the image, or compute in 32 bits",
            advice="precision",
        )
    names = [f"emb_{i:04d}" for i in range(vectors.shape[1])]
    return pd.concat([about, pd.DataFrame(vectors, columns=names)], axis=1)
