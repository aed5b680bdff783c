"""What an encoder makes of a screen that it was not trained on: profiles, and mechanisms of action from them.

Cells become images (mean), images wells (mean), wells treatments (median), under each choice of where batch norm takes
its statistics from. The expensive step, cells to images, streams plate by plate and goes on where it was stopped
(:func:`image_profiles`); the others are quick, and start from its tables.

Profile tables name the columns of a Screen ``Metadata_<column>``, but for the experiment, which is ``Metadata_batch``
(for BBBC021 the week), and features ``emb_0000…``.
"""

import hashlib
import itertools
import logging
import os
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor, nn

from biomass.channels import match_channels
from biomass.errors import BadImageError, ConfigError, DataError, one_line
from biomass.evaluation import plots
from biomass.evaluation.nearest import METRICS, BatchMixing, NearestResult, batch_mixing, nsc, nscb
from biomass.evaluation.pooling import Profiles, mean_profiles
from biomass.evaluation.tables import METADATA, aggregate
from biomass.evaluation.whitening import tvn, whiten
from biomass.inference import Transform, infer
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models import digest
from biomass.norms import PlateBatchNorm, Statistics
from biomass.samplers import PlateBatches
from biomass.screen import PLATE, OnBadImage, Screen

NORMALIZATIONS: Mapping[str, str] = {"frozen": "no BEN", "all": "BEN, all cells", "controls": "BEN, control cells"}
"""Where batch norm takes its statistics from, and what that is called in tables and figures: the running averages of
training, all cells of the plate, or the cells of its negative controls."""

POSTPROCESSINGS = ("none", "whiten", "tvn")
"""What is done to the profiles of wells."""

FIELD = (*PLATE, "well", "site")
"""The columns of a Screen that together name an image (a field of view)."""

COLUMNS: Mapping[str, str] = {"experiment": "Metadata_batch"} | {
    name: f"{METADATA}{name}" for name in ("plate", "well", "site", "control", "compound", "concentration", "moa")
}
"""The columns of a Screen that profiles keep, and what they are called there."""

WELL = ("Metadata_batch", "Metadata_plate", "Metadata_well")
TREATMENT = ("Metadata_compound", "Metadata_concentration")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One cell of the table: a normalization with a post-processing.

    Attributes:
        wells: the post-processed profiles of all wells.
        treatments: their medians, without controls; ``Metadata_batch`` is the tuple of batches of a treatment's wells.
        nsc: mechanisms predicted by the nearest treatment of another compound.
        nscb: by the nearest treatment that shares no batch either.
        mixing: how often the nearest neighbour of a control well is of its own batch, under a post-processing that was
            not fitted on it, see :func:`held_out_mixing`; None where there are too few control wells to hold some out.
    """

    wells: pd.DataFrame
    treatments: pd.DataFrame
    nsc: NearestResult
    nscb: NearestResult
    mixing: BatchMixing | None


def check_names(
    normalizations: Sequence[str],
    postprocessings: Sequence[str] = (),
    metric: str = "cosine",
    channels: Sequence[str] | None = None,
) -> None:
    """Refuse words that mean nothing, before there are data or a network.

    Raises:
        ConfigError: names the word, and those that there are.
    """
    for kind, names, known in (
        ("normalization", normalizations, tuple(NORMALIZATIONS)),
        ("postprocessing", postprocessings, POSTPROCESSINGS),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"{kind} '{name}' is unknown; choose {', '.join(known)}")
    if metric not in METRICS:
        raise ConfigError(f"metric='{metric}' is unknown; there are: {', '.join(METRICS)}")
    if channels is not None and not len(channels):
        raise ConfigError(
            "channels=[] names no channel; name those that the encoder expects, in its order, or leave "
            "them to its checkpoint with channels=null"
        )


def check_choices(
    cells: Screen,
    normalizations: Sequence[str],
    postprocessings: Sequence[str] = (),
    metric: str = "cosine",
    channels: Sequence[str] | None = None,
) -> None:
    """Refuse at once what would otherwise fail after hours of encoding.

    Raises:
        ConfigError, DataError: as :func:`image_profiles` and, where there are ``postprocessings``,
            :func:`well_profiles`, :func:`postprocess` and :func:`evaluate` would.
    """
    check_names(normalizations, postprocessings, metric, channels)
    missing = [column for column in COLUMNS if column not in cells.table]
    if missing:
        raise ConfigError(f"the screen has no column '{missing[0]}'; profiles of treatments need {', '.join(COLUMNS)}")
    _order(channels, cells)
    for normalization in normalizations:
        _statistics(normalization, cells)
    for how in postprocessings:
        _check_controls(how, cells)
    if len(postprocessings):
        _check_treatments(cells)


def check_norms(encoder: nn.Module, normalizations: Sequence[str], key: str) -> None:
    """Make sure that a network can be normalized by plates, where it shall be.

    Args:
        encoder: the network.
        normalizations: words of :data:`NORMALIZATIONS`.
        key: the network's name, for messages.

    Raises:
        ConfigError: statistics of plates are asked of a network without batch norm.
    """
    by_plate = [name for name in normalizations if name != "frozen"]
    if by_plate and not any(isinstance(module, PlateBatchNorm) for module in encoder.modules()):
        raise ConfigError(
            f"network '{key}' has no batch norm, so plates cannot be normalized in it ({', '.join(by_plate)}); "
            "set normalizations=[frozen], or choose a network with batch norm (resnet50)"
        )


def check_encoder(encoder: nn.Module, cells: Screen, channels: Sequence[str] | None, key: str) -> None:
    """Run a network on two black images of the size of the cells, to see whether it takes them.

    Args:
        encoder: the network.
        cells: the screen.
        channels: the channels that it expects; None: those of ``cells``.
        key: the network's name, for messages.

    Raises:
        ConfigError: it does not take images of that size, or of so many channels.
    """
    shape = (len(cells.pixels.channels if channels is None else channels), *cells.pixels.size)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            encoder(torch.zeros(2, *shape, device=next(encoder.parameters()).device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"network '{key}' does not take cells of {shape[1]} x {shape[2]} pixels and {shape[0]} channels "
            f"({textwrap.shorten(one_line(error), 120)}); choose another network, or crops of another size"
        ) from error
    finally:
        encoder.train(was_training)


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
    there; plates that were made with other weights or settings, or from other cells, are made anew. At most one
    plate of cells, and of what the network makes of them, is in memory.

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
        A row an image that has cells: the :data:`COLUMNS`, ``Metadata_cells`` (how many) and the features (float32).

    Raises:
        ConfigError: an unknown normalization, a missing channel or column, or a network without plate-aware norms.
        DataError: a plate has no control cell but shall be normalized by them (it is named); or the encoder gives
            values that are not finite.
        BadImageError: a cell cannot be read.
    """
    check_choices(cells, [normalization], channels=channels)
    check_norms(encoder, [normalization], type(encoder).__name__)
    statistics, order = _statistics(normalization, cells), _order(channels, cells)
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
                table = _table(cells, images, mean_profiles(of_plate, len(images), normalize), normalization)
                write_profiles(table, files[plate], prints[plate])
        if skipped.rows:
            folder.mkdir(parents=True, exist_ok=True)
            skipped.report(folder)
    there = [file for file, print_ in zip(files, prints, strict=True) if _fingerprint(file) == print_]
    if not there:
        raise DataError(f"none of the {len(cells)} cells can be read; look at on_bad_image")
    return pd.concat([pd.read_parquet(file) for file in there], ignore_index=True)


def images_without_cells(fields: Screen, images: pd.DataFrame) -> pd.DataFrame:
    """The images of a screen that profiles are silent of: none of their cells could be cut out and read, or is known.

    Fields that a published table of nuclei does not list are among them: nobody has looked for their cells.

    Their number, and which treatments are lost altogether, is said in the log.

    Args:
        fields: the screen that the cells were cut out of, a row an image.
        images: as :func:`image_profiles` gives them.

    Returns:
        A row an image: those of the :data:`COLUMNS` that ``fields`` has.
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


def well_profiles(images: pd.DataFrame) -> pd.DataFrame:
    """Average the images of each well: a row a well, its ``Metadata_cells`` the sum over its images.

    Raises:
        DataError: a feature is missing or infinite, or a well holds two treatments.
    """
    keep = [c for c in COLUMNS.values() if c not in (*WELL, "Metadata_site")]
    wells = aggregate(images, WELL, "mean", keep)
    cells = images.groupby(list(WELL), sort=True)["Metadata_cells"].sum()
    wells.insert(len(WELL) + len(keep), "Metadata_cells", cells.to_numpy())
    return wells


def postprocess(wells: pd.DataFrame, how: str, fitted: np.ndarray | None = None) -> pd.DataFrame:
    """Whiten the profiles of wells, or apply TVN, fitted on the wells of negative controls.

    It is done to wells, before their median is taken, because there are many control wells but one control treatment,
    and because the replicates of a treatment differ as control wells do, not as cells or images do. TVN aligns batches
    (weeks): a plate has too few control wells for a covariance.

    Args:
        wells: as :func:`well_profiles` gives them.
        how: one of :data:`POSTPROCESSINGS`.
        fitted: the wells that it is fitted on, a bool for each; None: all negative controls.

    Raises:
        ConfigError: an unknown word.
        DataError: there are fewer than two control wells (for TVN: in a batch, which is named).
    """
    if how == "none":
        return wells
    controls = (wells["Metadata_control"] == "negative").to_numpy() if fitted is None else fitted
    if how == "whiten":
        return cast("pd.DataFrame", whiten(wells, controls))
    if how == "tvn":
        return cast("pd.DataFrame", tvn(wells, controls, "Metadata_batch"))
    raise ConfigError(f"postprocessing '{how}' is unknown; choose {', '.join(POSTPROCESSINGS)}")


def treatment_profiles(wells: pd.DataFrame) -> pd.DataFrame:
    """The median over the wells of each treatment, controls left out.

    Returns:
        A row a treatment: compound, concentration, moa, ``Metadata_batch`` and ``Metadata_plate`` as the tuples of all
        that its wells are in, ``Metadata_wells`` (how many), and the features.

    Raises:
        DataError: there is no treated well, a feature is missing or infinite, or a treatment has two mechanisms.
    """
    treated = wells[wells["Metadata_control"] == ""]
    if treated.empty:
        raise DataError(f"none of the {len(wells)} wells is treated, so there are no treatments to compare")
    collect = ["Metadata_batch", "Metadata_plate"]
    treatments = aggregate(treated, TREATMENT, "median", ["Metadata_moa"], collect)
    count = treated.groupby(list(TREATMENT), sort=True).size()
    treatments.insert(len(TREATMENT) + 1 + len(collect), "Metadata_wells", count.to_numpy())
    return treatments


def evaluate(wells: pd.DataFrame, postprocessing: str = "none", metric: str = "cosine") -> Evaluation:
    """Post-process, summarize treatments, predict their mechanisms, and see how well batches mix.

    NSC and NSCB are those of a post-processing that is fitted on all control wells; how well batches mix is told by
    wells that it was not fitted on, see :func:`held_out_mixing`.

    Args:
        wells: as :func:`well_profiles` gives them.
        postprocessing: one of :data:`POSTPROCESSINGS`.
        metric: of NSC and NSCB, see :func:`biomass.evaluation.nsc`.

    Raises:
        ConfigError, DataError: as :func:`postprocess`, :func:`treatment_profiles` and :func:`biomass.evaluation.nsc`.
    """
    mixing = held_out_mixing(wells, postprocessing)
    wells = postprocess(wells, postprocessing)
    treatments = treatment_profiles(wells)
    labels = (treatments, "Metadata_compound", "Metadata_moa")
    return Evaluation(wells, treatments, nsc(*labels, metric), nscb(*labels, "Metadata_batch", metric), mixing)


def held_out_mixing(wells: pd.DataFrame, postprocessing: str = "none") -> BatchMixing | None:
    """How often the nearest neighbour of a control well is of its own batch, told by wells that were held out.

    Fitted on the very wells that it is judged by, a post-processing with more features than wells can draw the wells
    of a batch together, or push them apart, though batches do not differ at all. The control wells of every batch are
    therefore split into halves, every other well of its plates: what is fitted on one half is judged by the other, and
    the two are averaged. The halves are the same for every post-processing, so that the shares can be compared.

    Only controls are compared: treatments differ from week to week, so that the nearest neighbour of a treated well is
    often of its week for a good reason.

    Args:
        wells: as :func:`well_profiles` gives them.
        postprocessing: one of :data:`POSTPROCESSINGS`.

    Returns:
        ``share`` and ``expected`` are means over all control wells, in all and by batch; None where a batch has fewer
        than four control wells, of which TVN would need two in either half, or where there are none at all.

    Raises:
        ConfigError, DataError: as :func:`postprocess`.
    """
    controls = wells[wells["Metadata_control"] == "negative"].sort_values(list(WELL), ignore_index=True)
    number = controls.groupby("Metadata_batch").cumcount().to_numpy()
    if controls.empty or controls["Metadata_batch"].value_counts().min() < 4:
        return None
    parts = [
        batch_mixing(postprocess(controls, postprocessing, fitted)[~fitted], "Metadata_batch").by_batch
        for fitted in (number % 2 == 0, number % 2 == 1)
    ]
    rows = parts[0]["rows"] + parts[1]["rows"]
    one, other = (part[["share", "expected"]].mul(part["rows"] / rows, axis=0) for part in parts)
    by_batch = one + other
    share, expected = np.average(by_batch, axis=0, weights=rows)
    return BatchMixing(float(share), float(expected), by_batch.assign(rows=rows)[["rows", "share", "expected"]])


def summarize(evaluations: Mapping[tuple[str, str], Evaluation]) -> pd.DataFrame:
    """The table: a row for each (normalization, post-processing).

    Returns:
        ``normalization, postprocessing``, the accuracies ``nsc`` and ``nscb`` (0…1, NaN if nothing can be scored) with
        the number of treatments behind them (``nsc_scored, nscb_scored``), and ``mixing`` with ``mixing_expected``:
        the share of control wells whose nearest neighbour is of their own batch (:func:`held_out_mixing`; NaN if it
        cannot be told), and what it were at random.
    """
    rows = []
    for (normalization, postprocessing), one in evaluations.items():
        mixing = (one.mixing.share, one.mixing.expected) if one.mixing else (np.nan, np.nan)
        scores = [x for result in (one.nsc, one.nscb) for x in (result.accuracy, int(result.scorable.sum()))]
        rows.append([normalization, postprocessing, *scores, *mixing])
    columns = [
        "normalization",
        "postprocessing",
        "nsc",
        "nsc_scored",
        "nscb",
        "nscb_scored",
        "mixing",
        "mixing_expected",
    ]
    return pd.DataFrame(rows, columns=columns)


def to_markdown(table: pd.DataFrame) -> str:
    """The table of :func:`summarize` in per cent, for people; a dash where nothing can be scored."""
    lines = [
        "| normalization | post-processing | NSC (scored) | NSCB (scored) | same batch (at random) |",
        "|---|---|---:|---:|---:|",
    ]
    percent = 100 * table[["nsc", "nscb", "mixing", "mixing_expected"]].to_numpy(np.float64)
    scored = table[["nsc_scored", "nscb_scored"]].to_numpy(np.int64)
    for name, how, values, counts in zip(table["normalization"], table["postprocessing"], percent, scored, strict=True):
        scores = [(values[0], f"{counts[0]}"), (values[1], f"{counts[1]}"), (values[2], f"{values[3]:.1f}")]
        cells = [NORMALIZATIONS[name], how, *("–" if np.isnan(v) else f"{v:.1f} ({beside})" for v, beside in scores)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def predictions(evaluations: Mapping[tuple[str, str], Evaluation]) -> pd.DataFrame:
    """What every evaluation says of every treatment, a row each, with the reason where it cannot be scored."""
    parts = []
    for (normalization, postprocessing), one in evaluations.items():
        known = one.treatments
        for score, result in (("nsc", one.nsc), ("nscb", one.nscb)):
            part = pd.DataFrame(
                {"normalization": normalization, "postprocessing": postprocessing, "score": score}, known.index
            )
            part = pd.concat([part, result.table().drop(columns="neighbour")], axis=1)
            part["concentration"] = known["Metadata_concentration"]
            part["batches"] = [" ".join(batches) for batches in known["Metadata_batch"]]
            for column in ("compound", "concentration"):
                of_neighbour = known[f"Metadata_{column}"].to_numpy(object)[result.neighbours]
                of_neighbour[~result.scorable] = None
                part[f"neighbour_{column}"] = of_neighbour
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def draw(
    evaluations: Mapping[tuple[str, str], Evaluation], normalization: str, postprocessing: str, seed: int = 0
) -> dict[str, Figure]:
    """The figures of a transfer, by name: ``umap``, ``mechanisms`` and ``confusion``.

    Args:
        evaluations: (normalization, post-processing) → evaluation.
        normalization: the one whose confusion matrix is drawn; the other figures compare all of them.
        postprocessing: the one that is drawn.
        seed: of the layout of UMAP.
    """
    shown = {NORMALIZATIONS[n]: one for (n, p), one in evaluations.items() if p == postprocessing}
    one = evaluations[normalization, postprocessing]
    about = next(iter(shown.values())).wells
    labels = {"mechanism": list(about["Metadata_moa"]), "batch": list(about["Metadata_batch"])}
    result = one.nscb
    title = f"{NORMALIZATIONS[normalization]}, post-processing: {postprocessing}\n"
    scored = int(result.scorable.sum())
    title += f"NSCB {100 * result.accuracy:.0f} % of {scored} treatments" if scored else "NSCB cannot be scored"
    return {
        "umap": plots.scatter_grid(
            {name: plots.umap_coordinates(shown[name].wells, seed=seed) for name in shown}, labels, ("", "DMSO")
        ),
        "mechanisms": plots.mechanism_bars({name: shown[name].nscb for name in shown}, "NSCB"),
        "confusion": plots.confusion(result.confusion_matrix(), title),
    }


def write_profiles(table: pd.DataFrame, file: Path, fingerprint: str = "") -> None:
    """Write a profile table as Parquet; it appears under its name when it is complete, and not before.

    Args:
        table: as the functions here give it.
        file: where to; its folder is made.
        fingerprint: what it was made from, kept in the file.

    Raises:
        ConfigError: the folder cannot be written.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"fingerprint": fingerprint.encode()})
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow, partial)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"cannot write profiles '{file}' ({error.strerror}); free or change the folder") from error


def _statistics(normalization: str, cells: Screen) -> Statistics:
    """What a normalization means for batch norm, once it is sure that all plates have what it takes."""
    words = {"frozen": "running", "all": "plate"}
    statistics = Statistics(words.get(normalization, normalization), names=cells.plate_names)
    statistics.check(cells)
    return statistics


def _check_controls(how: str, cells: Screen) -> None:
    """Make sure that a post-processing will have the control wells that it is fitted on."""
    wells = cells.table[["control", "experiment", *PLATE[1:], "well"]].drop_duplicates()
    controls = wells.loc[wells["control"] == "negative", "experiment"].value_counts()
    if how == "tvn":
        few = sorted(str(batch) for batch in wells["experiment"].unique() if controls.get(batch, 0) < 2)
        if few:
            others = f" (and {len(few) - 1} others)" if len(few) > 1 else ""
            raise DataError(
                f"batch '{few[0]}'{others} has too few wells of negative controls: {controls.get(few[0], 0)}, and tvn "
                "needs 2; leave tvn out of postprocessings, or the batch out of the screen"
            )
    if how == "whiten" and controls.sum() < 2:
        raise DataError(
            f"the screen has too few wells of negative controls: {controls.sum()}, and whiten needs 2; leave it out "
            "of postprocessings"
        )


def _check_treatments(cells: Screen) -> None:
    """Make sure that every well has one treatment, and every treatment a name and one mechanism."""
    well, treatment = [*PLATE, "well"], ["compound", "concentration"]
    wells = cells.table[[*well, "control", *treatment, "moa"]].drop_duplicates()
    twice = wells[wells.duplicated(well)]
    if len(twice):
        raise DataError(f"well '{_names(twice, well)}' has two treatments or mechanisms; correct the screen's table")
    treated = wells[wells["control"] == ""]
    if treated.empty:
        raise DataError(
            f"none of the {len(wells)} wells is treated, so there are no treatments to compare; choose "
            "other plates, or look at the column 'control'"
        )
    for column in treatment:
        nameless = treated[treated[column].isna()]
        if len(nameless):
            raise DataError(f"treated well '{_names(nameless, well)}' has no {column}; fill it, or drop the well")
    kinds = treated[[*treatment, "moa"]].drop_duplicates()
    twice = kinds[kinds.duplicated(treatment)]
    if len(twice):
        compound, concentration, moa = twice.iloc[0]
        same = kinds[(kinds["compound"] == compound) & (kinds["concentration"] == concentration)]
        raise DataError(
            f"treatment '{compound}' {concentration:g} has two mechanisms, '{same['moa'].iloc[0]}' and "
            f"'{moa}'; correct the table of mechanisms"
        )


def _names(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """What the first row says in some columns, as one name."""
    return "/".join(map(str, table[list(columns)].iloc[0]))


def _order(channels: Sequence[str] | None, cells: Screen) -> list[int] | None:
    """Positions of the channels among those of the cells; None for all as they are."""
    return None if channels is None else list(match_channels(channels, cells.pixels.channels))


def _plates(cells: Screen) -> list[tuple[str, str]]:
    """Experiment and plate of every plate id."""
    first = np.unique(cells.plate_ids, return_index=True)[1]
    return [(str(e), str(p)) for e, p in cells.table.iloc[first][list(PLATE)].to_numpy()]


def _fingerprints(cells: Screen, *settings: str) -> list[str]:
    """Of every plate, what its profiles depend on: settings, its table, and the pixels of a few of its cells."""
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


def _table(cells: Screen, images: np.ndarray, profiles: Profiles, normalization: str) -> pd.DataFrame:
    """The profiles of the images of one plate, each described by its first cell (a row of ``cells``)."""
    there = np.flatnonzero(profiles.counts)
    about = cells.table.iloc[images[there]][list(COLUMNS)].rename(columns=COLUMNS).reset_index(drop=True)
    for column in about.select_dtypes("category"):
        about[column] = about[column].astype(object)
    about["Metadata_cells"] = profiles.counts[there]
    vectors = profiles.vectors[there]
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad) == len(vectors) and normalization != "frozen":
        of_controls = "of a control well " if normalization == "controls" else ""
        raise DataError(
            f"the encoder's output is not finite for any image of plate '{_names(about, WELL[:2])}'; the cause may be "
            f"NaN in any image {of_controls}of the plate, whose statistics carry it into all, or in the checkpoint's "
            "weights: the normalization frozen alone names the image, or its first one if it is the weights"
        )
    if len(bad):
        where = _names(about.loc[bad], [COLUMNS[c] for c in FIELD])
        raise DataError(
            f"the encoder's output for image '{where}' is not finite; look for NaN in the checkpoint's weights and "
            "in the image, or use precision 32"
        )
    names = [f"emb_{i:04d}" for i in range(vectors.shape[1])]
    return pd.concat([about, pd.DataFrame(vectors, columns=names)], axis=1)
