"""From the cells of a screen to the profiles of its images: an encoder, run a plate at a time, its output kept.

This is the expensive step. It streams (at most one plate of cells, and of what the network makes of them, is in memory)
and goes on where it was stopped, see :func:`image_profiles`.
"""

import hashlib
import itertools
import logging
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.channels import match_channels
from biomass.errors import DataError
from biomass.evaluation.parts import (
    fingerprints,
    members_of,
    pixel_hashes,
    plate_files,
    read_fingerprint,
    write_profiles,
)
from biomass.evaluation.pooling import Profiles, mean_profiles
from biomass.evaluation.profiles import PlateVectors
from biomass.evaluation.transfer import COLUMNS, TREATMENT
from biomass.inference import Transform, infer, infer_calibrated
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models import digest
from biomass.norms import WORDS, Statistics, calibration_state, tuning_state
from biomass.samplers import PlateBatches
from biomass.screen import FIELD, OnBadImage, Screen

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
    encoder: Encoder,
    cells: Screen,
    folder: Path,
    statistics: Statistics,
    *,
    transform: Transform,
    normalize: bool = True,
    batch_size: int | None = 2048,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "error",
) -> pd.DataFrame:
    """Encode all cells of a screen and average them over each image.

    Every plate is written to ``<folder>/<experiment>/<plate>.parquet`` when it is done (every group, where statistics
    are not taken by plate). A later call reads what is there; plates that were made with other weights or settings, or
    from other cells, are made again.

    What can be known beforehand is not checked here again: :mod:`biomass.evaluation.checks` does it once, for all
    encoders of a run.

    Args:
        fabric: device and precision.
        encoder: with plate-aware norms where ``statistics`` are those of plates; its channels are found among those
            of ``cells`` by :func:`biomass.channels.match_channels`.
        cells: a row for each cell, with the columns ``compound, concentration, moa`` beside the canonical ones.
        folder: where the plates' tables are kept.
        statistics: where batch norm takes its statistics from, over the groups of ``cells``; those of a plate are of
            the whole plate, whatever ``batch_size``, unless they are those of blocks.
        transform: applied to the cells on the device, without randomness.
        normalize: scale the vector of every cell to length 1 first.
        batch_size: cells at once; None for whole plates.
        num_workers: processes that read ahead.
        on_bad_image: ``error``, or ``skip`` to leave unreadable cells out, listed in ``<folder>/skipped_images.txt``.

    Returns:
        A row for each image that has cells: the columns of :data:`biomass.evaluation.transfer.COLUMNS`,
        ``Metadata_cells`` (how many) and the features (float32).

    Raises:
        ConfigError: a channel is missing, or the network has no plate-aware norms.
        DataError: a plate has no control cell but shall be normalized by them (it is named); or the encoder gives
            values that are not finite.
        BadImageError: a cell cannot be read.
    """
    network, channels, _ = encoder
    selected = select_channels(channels, cells, transform)
    groups = cells.groups(statistics.by)
    _, first, field = np.unique(cells.groups(FIELD), return_index=True, return_inverse=True)
    group_of_field = groups[first]
    number = pd.Series(group_of_field).groupby(group_of_field).cumcount().to_numpy(np.int64)  # within the group

    files = plate_files(cells, groups, statistics.by, folder)
    about = [fabric.strategy.precision.precision, statistics.label, statistics.by, normalize, channels, repr(transform)]
    about += [batch_size] if statistics.blocks else []
    settings = digest(network), _moments(network, statistics), repr(about)
    columns = [column for column in (*COLUMNS, "cell", "x", "y") if column in cells.table]
    prints = fingerprints(cells, groups, cells.table[columns], *settings)
    pixels = pixel_hashes(cells, members_of(groups))
    both = [f"{print_} {hashed}" for print_, hashed in zip(prints, pixels, strict=True)]
    known = [{*pair} for pair in zip(prints, both, strict=True)]  # files of an earlier version have the first alone
    found = [read_fingerprint(file) for file in files]
    todo = [group for group, print_ in enumerate(found) if print_ not in known[group]]
    again = [group for group in todo if found[group] is not None]
    if again:
        message = (
            "%d plates have profiles of other images or by other settings, and are encoded again; the first is '%s'"
        )
        log.warning(message, len(again), files[again[0]])
    if todo:
        log.info("%s: encoding %d of %d plates", statistics.word, len(todo), len(files))
        rows = np.flatnonzero(np.isin(groups, todo))
        batches = PlateBatches(rows, groups[rows], batch_size=batch_size, shuffle=False)
        reader = BatchReader(cells, groups, on_bad_image, number[field])
        loader = Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")
        skipped, fields_of = SkippedImages(cells), members_of(group_of_field)
        outputs = infer(fabric, network.to(fabric.device), loader, selected, statistics, skipped)
        with closing(outputs):  # an error here ends its inference mode, too
            for group, of_group in itertools.groupby(outputs, lambda output: int(output[0].groups[0])):
                images = first[fields_of[group]]
                table = _table(cells, images, mean_profiles(of_group, len(images), normalize), statistics)
                write_profiles(table, files[group], both[group])
        if skipped.rows:
            folder.mkdir(parents=True, exist_ok=True)
            skipped.report(folder)
    there = [file for file, prints_ in zip(files, known, strict=True) if read_fingerprint(file) in prints_]
    if not there:
        raise DataError(f"none of the {len(cells)} cells can be read; they are listed in {folder}/skipped_images.txt")
    return pd.concat([pd.read_parquet(file) for file in there], ignore_index=True)


def encoded_plates(
    fabric: Fabric,
    encoder: Encoder,
    screen: Screen,
    plates: Sequence[int],
    statistics: Statistics,
    *,
    transform: Transform,
    held: Collection[int] | None = None,
    normalize: bool = False,
    batch_size: int | None = 256,
    num_workers: int = 0,
    on_bad_image: OnBadImage = "error",
) -> Iterator[PlateVectors]:
    """Encode all rows of some plates of a screen, one plate in memory.

    Args:
        fabric, encoder, transform, normalize, batch_size, num_workers, on_bad_image: as in :func:`image_profiles`.
        screen: of cells or of fields.
        plates: numbers of plates, or whatever the groups of ``statistics`` are.
        statistics: where batch norm takes its statistics from.
        held: the plates whose moments the network has, and takes; the others are measured by ``statistics``, on all
            their rows, and their moments are handed on. None: nothing is measured.

    Yields:
        The vectors of each plate; none for a plate of which nothing can be read.

    Raises:
        ConfigError, DataError, BadImageError: as in :func:`image_profiles`.
    """
    if not len(plates):
        return
    network = encoder.network.to(fabric.device)
    groups = screen.groups(statistics.by)
    rows = np.flatnonzero(np.isin(groups, plates))
    keys = screen.keys(statistics.by)
    members = dict(zip(*_by_group(rows, groups[rows]), strict=True))
    batches = PlateBatches(rows, groups[rows], batch_size=batch_size, shuffle=False)
    reader, skipped = BatchReader(screen, groups, on_bad_image), SkippedImages(screen)
    loader = Loader(reader, batches, num_workers, pin_memory=fabric.device.type == "cuda")
    selected = select_channels(encoder.channels, screen, transform)
    outputs: Generator[tuple[Batch, Tensor, Mapping[str, Tensor]]]
    if held is None:
        plain = infer(fabric, network, loader, selected, statistics, skipped)
        outputs = ((batch, output, {}) for batch, output in plain)
    else:
        outputs = infer_calibrated(fabric, network, loader, selected, statistics, held, skipped)
    with closing(outputs):  # an error here ends its inference mode, too
        for group, of_group in itertools.groupby(outputs, lambda one: int(one[0].groups[0])):
            numbers, vectors = [], []
            moments: dict[str, Tensor] = {}
            for batch, output, measured in of_group:
                output = F.normalize(output.float(), dim=1) if normalize else output.float()
                numbers.append(batch.rows.numpy())
                vectors.append(output.cpu().numpy())
                moments |= measured
            read, found = np.concatenate(numbers), np.concatenate(vectors)
            names = partial(_field_name, screen, read)
            whole = replace(statistics, word="plate") if moments else statistics
            check_finite(found, names, "/".join(map(str, keys.iloc[read[0]])), whole)
            left_out = np.setdiff1d(members[group], read)
            yield PlateVectors(group, read, found, moments=moments, skipped=left_out.tolist())


def _by_group(rows: np.ndarray, groups: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The groups that there are, and the rows of each."""
    found, counts = np.unique(groups, return_counts=True)
    return found.tolist(), np.split(rows[np.argsort(groups, kind="stable")], np.cumsum(counts)[:-1])


def _field_name(screen: Screen, rows: np.ndarray, place: int) -> str:
    return "/".join(map(str, screen.table.iloc[rows[place]][list(FIELD)]))


def select_channels(channels: Sequence[str] | None, screen: Screen, transform: Transform) -> Transform:
    """``transform`` of the channels that an encoder expects, in its order, where a screen has others or another order.

    Args:
        channels: their names; None: those of the screen as they are.
        screen: what the encoder will run on.
        transform: (N, C, H, W) → (N, C, H, W).

    Raises:
        ConfigError: as :func:`biomass.channels.match_channels`, by which they are found.

    >>> from biomass.screen import VectorPixels
    >>> images = np.array([[[[1.0]], [[2.0]]]])
    >>> screen = Screen(pd.DataFrame(index=[0]), VectorPixels(images, ("tubulin", "DAPI")), ())
    >>> select_channels(["nuclei", "ER"], screen, lambda x: x)(images).ravel().tolist()
    [2.0, 1.0]
    """
    if channels is None:
        return transform
    order = list(match_channels(channels, screen.pixels.channels))
    return lambda images: transform(images[:, order])


def images_without_cells(fields: Screen, images: pd.DataFrame) -> pd.DataFrame:
    """The images of a screen that have no profile: none of their cells is known, or could be cut out and read.

    Fields that a published table of nuclei does not list are among them: nobody has looked for their cells.

    Their number, and which treatments are lost altogether, is said in the log.

    Args:
        fields: the screen that the cells were cut out of, a row for each image; or, where it is not known, the cells,
            which tell only of images with cells that cannot be read.
        images: as :func:`image_profiles` gives them.

    Returns:
        A row for each image: those of the columns :data:`biomass.evaluation.transfer.COLUMNS` that ``fields`` has.
    """
    keys = [COLUMNS[column] for column in FIELD]
    table = fields.table[[c for c in COLUMNS if c in fields.table]].rename(columns=COLUMNS).drop_duplicates(keys)
    known = pd.MultiIndex.from_frame(images[keys].astype(str))
    absent = table[~pd.MultiIndex.from_frame(table[keys].astype(str)).isin(known)].reset_index(drop=True)
    if len(absent):
        treatments = pd.MultiIndex.from_frame(absent[list(TREATMENT)]).unique()
        lost = treatments[~treatments.isin(pd.MultiIndex.from_frame(images[list(TREATMENT)]))]
        which = f", among them all of {'; '.join(f'{c} {d:g}' for c, d in lost[:5])}" if len(lost) else ""
        log.warning("%d of %d images have no cells that are known and can be read%s", len(absent), len(table), which)
    return absent


def check_finite(vectors: np.ndarray, name: Callable[[int], str], plate: str, statistics: Statistics) -> None:
    """Make sure that an encoder gave numbers.

    Args:
        vectors: (N, D) of one plate.
        name: of each of the N images, for the error.
        plate: its name.
        statistics: that the encoder ran under.

    Raises:
        DataError: a value is not finite; names the image, or the plate where no image is better than another.

    >>> check_finite(np.array([[1.0], [np.nan]]), ["A01/1", "A01/2"].__getitem__, "P1", Statistics("running"))
    Traceback (most recent call last):
    biomass.errors.DataError: the encoder's output for image 'A01/2' is not finite; look for NaN in the checkpoint's
        weights and in the image, or compute in 32 bits
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad) == len(vectors) and statistics.whole_groups:
        raise DataError(
            f"the encoder's output is not finite for any image of plate '{plate}'; the cause may be NaN in any image "
            "that its statistics are taken from, which carry it into all, or in the checkpoint's weights: running "
            "averages alone name the image, or its first one if it is the weights",
            advice="statistics",
        )
    if len(bad):
        raise DataError(
            f"the encoder's output for image '{name(int(bad[0]))}' is not finite; look for NaN in the checkpoint's "
            "weights and in the image, or compute in 32 bits",
            advice="precision",
        )


def _moments(network: nn.Module, statistics: Statistics) -> str:
    """What is stored beside the weights, if the profiles depend on it; the digest of the weights leaves it out."""
    if statistics.tuned:
        return repr(tuning_state(network))
    if WORDS[statistics.word].prior != "calibrated":
        return ""
    moments = calibration_state(network)
    return hashlib.sha256(b"".join(moments[name].numpy().tobytes() for name in sorted(moments))).hexdigest()


def _table(cells: Screen, images: np.ndarray, profiles: Profiles, statistics: Statistics) -> pd.DataFrame:
    """The profiles of the images of one plate, each described by its first cell (a row of ``cells``)."""
    there = np.flatnonzero(profiles.counts)
    about = cells.table.iloc[images[there]][list(COLUMNS)].rename(columns=COLUMNS).reset_index(drop=True)
    for column in about.select_dtypes("category"):
        about[column] = about[column].astype(object)
    about["Metadata_cells"] = profiles.counts[there]
    vectors = profiles.vectors[there]
    keys = about[[COLUMNS[c] for c in FIELD]]
    check_finite(
        vectors,
        lambda row: "/".join(map(str, keys.iloc[row])),
        "/".join(map(str, cells.keys(statistics.by).iloc[images[0]])),
        statistics,
    )
    names = [f"emb_{i:04d}" for i in range(vectors.shape[1])]
    return pd.concat([about, pd.DataFrame(vectors, columns=names)], axis=1)
