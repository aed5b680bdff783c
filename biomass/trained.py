"""A trained network as a scientist uses it: load it, adapt it to plates, predict and embed.

    import biomass

    model = biomass.load("my_run")
    screen = biomass.open_screen("next_month/manifest.parquet")
    model.adapt(screen)
    table = model.predict(screen)

``biomass predict`` is the same as a command.
"""

import logging
import operator
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from biomass import training
from biomass.channels import check_expected
from biomass.datasets.any_source import open_source
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.evaluation.encode import select_channels
from biomass.evaluation.pooling import Bags
from biomass.evaluation.predictions import COMBINED, FieldMeans, Fields, Predictions, class_names
from biomass.experiment import trained_transform
from biomass.inference import Transform, read_plates, run_plate
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models import Network
from biomass.norms import WORDS, Statistics, norms_used_once, plate_statistics
from biomass.norms.plate_batch_norm import shared_context
from biomass.samplers import PlateBatches
from biomass.screen import PLATE, OnBadImage, Screen
from biomass.training import Calibration

AT_ONCE = 2**24
"""Values of images that a network is given at once, if nobody says a number of images."""

LEVELS = ("field", "well", "image")
"""What a row of a table of predictions may be. An image is a row of the screen: a cell, where it is one of cells."""

log = logging.getLogger(__name__)

Moments = dict[int, dict[str, Tensor]]
"""Of each group by its number: mean and variance (2, C) of every norm."""


@dataclass
class Member:
    """One network of a model.

    Attributes:
        path: its checkpoint.
        network: encoder and head, on the device.
        part: what of it runs: all of it, or what a probe stands on.
        probe: classifies pooled vectors; None where ``part`` classifies.
        beside: the checkpoint that its calibrated statistics stand beside.
        channels: names of those that it expects; None where the checkpoint does not say them.
        in_channels: how many.
        classes: names of its classes; None if it has none.
        transform: what is done to an image.
        calibration: the moments of plates that it knows.
        defaults: what the checkpoint says of statistics: the label, and the columns of a plate.
        evaluated: the word for the statistics that training evaluated it with; None where that is not known.
        batch_size: images at once in that evaluation.
    """

    path: Path
    network: Network
    part: nn.Module
    probe: training.Probe | None
    beside: Path
    channels: Sequence[str] | None
    in_channels: int
    classes: list[str] | None
    transform: Transform
    calibration: Calibration | None
    defaults: tuple[str, tuple[str, ...]]
    evaluated: str | None
    batch_size: int | None

    def prepare(self, screen: Screen) -> Transform:
        """The transform of the channels that the network expects, in its order.

        Raises:
            ConfigError: the screen has others; names both lists.
        """
        found = screen.pixels.channels
        if self.channels is None:
            if len(found) != self.in_channels:
                raise ConfigError(
                    f"'{self.path}' expects {self.in_channels} channels, and this screen has {len(found)}: "
                    f"{', '.join(found)}",
                    "channels",
                )
            return self.transform
        check_expected(self.path, self.channels, found)
        return select_channels(self.channels, screen, self.transform)

    def weighed(self, statistics: Statistics) -> nn.Module:
        """What the moments of plates depend on: the encoder, or all that classifies, where statistics ask classes."""
        return self.part if statistics.tuned else self.network.encoder

    def remember(
        self, found: Mapping[str, Mapping[str, Tensor]], images: Mapping[str, int], empty: Calibration
    ) -> None:
        """Keep the moments of plates, by name; of each the (2, C) of every norm."""
        above = "encoder." if self.part is self.network else ""  # moments are those of the encoder's norms
        stacked = {
            f"norms.{norm.removeprefix(above)}": torch.stack([one[norm] for one in found.values()], 1).float().cpu()
            for norm in next(iter(found.values()), {})
        }
        new = replace(empty, plates=list(found), images=[images[name] for name in found], moments=stacked)
        self.calibration = (self.calibration or replace(empty, data={})).merged(new)


class Collector:
    """From the outputs of a network for rows to the class probabilities of fields."""

    def __init__(self, member: Member, fields: Fields) -> None:
        self.probe, self.fields = member.probe, fields
        self.means = FieldMeans(fields)
        self.bags: list[tuple[Any, Tensor]] = []

    def add(self, batch: Batch, output: Tensor) -> None:
        """Take in the output (n, D) for a batch."""
        if self.probe is None:
            self.means.add(batch.rows, output.float().softmax(1))
            return
        vectors = F.normalize(output.float(), dim=1) if self.probe.normalize else output.float()
        self.means.add(batch.rows, vectors)
        if self.probe.pooler != "mean":
            self.bags.append((_Cells(torch.from_numpy(self.fields.of_row[batch.rows.numpy()])), vectors.cpu()))

    def merge(self, fabric: Fabric) -> None:
        """Take in what other processes have."""
        parts = training.gathered(fabric, (self.means.sums, self.means.counts, self.bags))
        self.means.sums = torch.stack([sums for sums, _, _ in parts if sums.shape[1]] or [self.means.sums]).sum(0)
        self.means.counts = torch.stack([counts for _, counts, _ in parts]).sum(0)
        self.bags = [bag for _, _, bags in parts for bag in bags]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (F, K) and how many rows of each field were read, (F,)."""
        counts = self.means.counts.cpu().numpy()
        if self.probe is None or not counts.any():
            return self.means.values, counts
        vectors = self.means.values
        bags = Bags(self.bags, len(self.fields), normalize=False) if self.bags else None
        if bags is not None and self.probe.pooler == "median":
            vectors = bags.median_profiles().vectors
        device, parts = next(self.probe.head.parameters()).device, []
        for rows in np.array_split(np.arange(len(counts)), -(-len(counts) // 256)):
            pooled = vectors[rows] if bags is None or self.probe.pooler == "median" else bags.read(rows)
            parts.append(self.probe.head(torch.from_numpy(pooled).to(device)).float().softmax(1).cpu())
        return torch.cat(parts).numpy(), counts


@dataclass(frozen=True)
class _Cells:
    """What pooling needs to know of a batch."""

    instances: Tensor


class Model:
    """One trained network, or several whose predictions are averaged.

    Attributes:
        fabric: device and precision.
        members: the networks.
        statistics: where batch norm takes its statistics from, a word of :data:`biomass.norms.WORDS`, with the kind of
            controls where that matters: ``controls/all``. Statistics of whole plates are measured once, and then known.
        by: the columns that make a plate.
        other_data: whether what is known of a plate is taken although other images are called so now.
    """

    def __init__(
        self,
        fabric: Fabric,
        members: Sequence[Member],
        statistics: str,
        by: Sequence[str],
        other_data: bool = False,
    ) -> None:
        self.fabric, self.members = fabric, list(members)
        self.other_data = other_data
        self._compared: list[object] = []
        self.by = tuple(by)
        self.statistics = statistics
        self._choose(statistics)
        one, *others = self.members
        for other in others:
            if (one.classes is None) != (other.classes is None) or set(one.classes or ()) != set(other.classes or ()):
                lists = (", ".join(member.classes or ["none"]) for member in (one, other))
                raise ConfigError(
                    f"the classes of '{one.path}' and '{other.path}' differ ({' | '.join(lists)}): give checkpoints "
                    "of the same classes",
                )

    @property
    def classes(self) -> list[str]:
        """Names of the classes.

        Raises:
            ConfigError: the network tells none apart.
        """
        for member in self.members:
            if member.classes is None:
                raise ConfigError(
                    f"'{member.path}' is no classifier: it gives features, and no classes; embed images with it, or "
                    "train a probe on it (train_classifier.py) and give that one"
                )
        return list(self.members[0].classes or ())

    @property
    def plates(self) -> list[str]:
        """Names of the plates whose statistics are known."""
        first, *others = [member.calibration.plates if member.calibration else [] for member in self.members]
        known = [set(other) for other in others]
        return [name for name in first if all(name in other for other in known)]

    @property
    def compared_plates(self) -> set[str]:
        """Names of those of which is known what images they are of; not so in files of earlier versions."""
        return set.intersection(*(set(one.calibration.data) if one.calibration else set() for one in self.members))

    @property
    def measures(self) -> bool:
        """Whether the statistics are measured on whole plates, which can be known beforehand."""
        return _is_measured(self.statistics)

    def adapt(
        self,
        screen: Screen,
        statistics: str | None = None,
        *,
        again: bool = False,
        batch_size: int | None = None,
        num_workers: int = 0,
        on_bad_image: OnBadImage = "error",
    ) -> "Model":
        """Measure the plates of a screen, so that any of their images can be predicted later, by itself.

        Args:
            screen: of these plates; its labels are not used.
            statistics: a word, with or without a kind of controls: ``plate`` (all images of the plate, also called
                ``calibrated``), ``controls``, ``controls/all``, ``balanced``, ``running`` …; None: as it is. With
                another word than before, what is known of plates is forgotten. Words that do not come from whole
                plates have nothing to measure.
            again: measure plates that are known, too.
            batch_size: images at once; None: as many as :data:`AT_ONCE` allows. Never changes a result.
            num_workers: processes that read ahead.
            on_bad_image: ``error``, or ``skip`` to leave unreadable images out.

        Returns:
            This model.

        Raises:
            ConfigError: an unknown word, statistics that the network cannot take, or channels that do not fit.
            DataError: a plate has nothing to take its statistics from.
        """
        if statistics is not None:
            self._choose(statistics)
        if self.measures:
            reading = Reading(batch_size, num_workers, on_bad_image)
            for _ in self._run(screen, reading, SkippedImages(screen), True, again, known=False):
                pass
        return self

    def predict(
        self,
        screen: Screen,
        level: str = "field",
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        on_bad_image: OnBadImage = "error",
    ) -> pd.DataFrame:
        """The classes of the fields or wells of a screen.

        Plates that were adapted to are predicted with what is known of them; others with what this screen holds.

        Args:
            screen: of any plates and labels: the classes are those of the checkpoint.
            level: of :data:`LEVELS`. The probabilities of a field are the mean of those of its cells, and those of a
                well the mean of those of its fields.
            batch_size: as for :meth:`adapt`.
            num_workers: as for :meth:`adapt`.
            on_bad_image: as for :meth:`adapt`.

        Returns:
            A row each: ``Metadata_*``, and the columns of :func:`biomass.evaluation.predictions.prediction_columns`.

        Raises:
            ConfigError, DataError: as :meth:`adapt`; or the network has no classes.
        """
        if level not in LEVELS:
            raise ConfigError(f"level '{level}' is unknown; {did_you_mean(level, LEVELS)}")
        reading = Reading(batch_size, num_workers, on_bad_image)
        found = self.predictions(screen, reading, SkippedImages(screen), apart=level == "image")
        return found.of_wells() if level == "well" else found.of_fields()

    def check(self, screen: Screen, again: bool = False) -> None:
        """Make sure that the networks can run on a screen, before anything is written.

        Args:
            screen: what they are to run on.
            again: plates are measured again: what is known of them does not matter.

        Raises:
            ConfigError: its channels are others; names both lists.
            DataError: a plate is not the one of that name whose statistics are known.
        """
        for member in self.members:
            member.prepare(screen)
        if self.measures and not again:
            self._compare(screen)

    def predictions(
        self,
        screen: Screen,
        reading: "Reading",
        skipped: SkippedImages,
        *,
        keep: bool = False,
        again: bool = False,
        apart: bool = False,
        only: np.ndarray | None = None,
    ) -> Predictions:
        """What the tables of :meth:`predict` are made of.

        Args:
            screen: as for :meth:`predict`.
            reading: how it is read.
            skipped: counts the images that cannot be read.
            keep: plates that are measured are known from then on.
            again: measure plates that are known, too.
            apart: every row is a field by itself.
            only: (n,) rows, of whole plates; None: all.
        """
        classes = self.classes
        fields = Fields.of(screen, only, apart)
        collectors = [Collector(member, fields) for member in self.members]
        outputs = self._run(screen, reading, skipped, keep, again, only=only)
        with closing(cast("Generator[Any]", outputs)):  # an error here ends its inference mode, too
            for number, batch, output in outputs:
                collectors[number].add(batch, output)
        if self.fabric.world_size > 1:
            for collector in collectors:
                collector.merge(self.fabric)
            skipped.merge(training.gathered(self.fabric, skipped.rows))
        with torch.inference_mode():
            results = [collector.result() for collector in collectors]
        if not results[0][1].any():
            raise DataError(f"none of the {len(fields.of_row)} images can be read", "skip")
        orders = [[(member.classes or []).index(name) for name in classes] for member in self.members]
        probabilities = np.stack([one[:, order] for (one, _), order in zip(results, orders, strict=True)])
        about = {
            "checkpoints": [str(member.path) for member in self.members],
            "classes": classes,
            "statistics": self.statistics,
            "by": list(self.by),
        }
        return Predictions(fields, probabilities, results[0][1], classes, about | COMBINED)

    def embed(
        self, images: np.ndarray | Tensor, plates: Sequence[str] | None = None, *, batch_size: int | None = None
    ) -> np.ndarray:
        """The features of images.

        Args:
            images: (N, C, H, W), the source's own numbers, the channels in the order of the checkpoint.
            plates: (N,) names of the plates that they are of, ``experiment/plate``, or the plate alone where no two
                are called so. Not needed for statistics that do not depend on plates (``running``).
            batch_size: images at once.

        Returns:
            (N, D) float32: what the encoder makes of each image, neither pooled nor scaled.

        Raises:
            ConfigError: a model of several networks; channels or statistics that do not fit.
            DataError: a plate that the model does not know.
        """
        if len(self.members) > 1:
            raise ConfigError(f"{len(self.members)} networks have features of their own: load one of them to embed")
        member = self.members[0]
        images = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        if images.dim() != 4 or images.shape[1] != member.in_channels:
            names = f" ({', '.join(member.channels)})" if member.channels else ""
            raise ConfigError(
                f"images have the shape {tuple(images.shape)}; '{member.path}' takes (N, {member.in_channels}, H, W)"
                f"{names}"
            )
        numbers = self._plate_numbers(plates, len(images))
        size = batch_size or max(1, AT_ONCE // max(1, images[0].numel() if len(images) else 1))
        encoder, parts = member.network.encoder, []
        with _running([encoder], self.fabric):
            for start in range(0, len(images), size):
                some = images[start : start + size].to(self.fabric.device).float()
                word = "running" if numbers is None else "calibrated"
                of_some = None if numbers is None else numbers[start : start + size]
                with plate_statistics(encoder, of_some, word, names=self.plates):
                    parts.append(encoder(member.transform(some)).float().cpu())
        return torch.cat(parts).numpy() if parts else np.zeros((0, member.network.num_features), np.float32)

    def save_adaptation(self, path: str | Path | None = None) -> list[Path]:
        """Write what is known of plates; other plates that a file holds already stay.

        Args:
            path: the file; None: one beside each checkpoint, where ``biomass predict`` finds it.

        Returns:
            The files.

        Raises:
            ConfigError: there is nothing to write, or one file is named for several networks.
            CheckpointError: the file holds something else, or statistics of another kind.
        """
        if not self.plates:
            raise ConfigError("the model knows no plates yet: adapt it to a screen first")
        self._check_one(path)
        files = []
        for member in self.members:
            assert member.calibration is not None
            file = training.calibration_file(member.beside, path, self.statistics)
            statistics = self._statistics(None)
            old = training.check_calibration(member.weighed(statistics), file, statistics, member.transform)
            old.merged(member.calibration).save(file)
            files.append(file)
        return files

    def load_adaptation(self, path: str | Path | None = None) -> "Model":
        """Take what is known of plates from a file that :meth:`save_adaptation` or ``biomass calibrate`` wrote.

        Args:
            path: the file; None: the one beside each checkpoint.

        Raises:
            CheckpointError: there is no such file, or it belongs to other weights, statistics or transforms.
        """
        self._check_one(path)
        for member in self.members:
            file = training.calibration_file(member.beside, path, self.statistics)
            statistics, found = self._statistics(None), Calibration.read(file)
            expected = Calibration.empty(member.weighed(statistics), statistics, member.transform)
            settings = ("word", "by", "encoder", "transform")
            found.check(file, **{name: getattr(expected, name) for name in settings})
            member.calibration = found
        return self

    def take_stored(self, path: str | Path | None = None) -> None:
        """As :meth:`load_adaptation`, where there is a file; one of other weights is no error, and will be replaced."""
        self._check_one(path)
        for member in self.members:
            file = training.calibration_file(member.beside, path, self.statistics)
            statistics = self._statistics(None)
            weighed = member.weighed(statistics)
            member.calibration = training.check_calibration(weighed, file, statistics, member.transform)

    # --- inside ---

    def _choose(self, label: str) -> None:
        """Set the word, and forget what was measured with another one."""
        label = {"calibrated": "plate"}.get(label, label)
        chosen = Statistics.labelled(label, self.by, None, "negative")
        if WORDS[chosen.word].by_group:
            for member in self.members:
                if shared_context(member.network) is None:
                    raise ConfigError(
                        f"'{member.path}' has no plate-aware batch norm, so that it cannot take statistics "
                        f"'{chosen.label}'; take running",
                        "statistics",
                    )
        for member in self.members:
            chosen.passes(member.network)  # a word that needs to know of training plates says so now
            if member.calibration is not None and member.calibration.word != chosen.label:
                member.calibration = None
        self.statistics = chosen.label

    def _statistics(self, screen: Screen | None) -> Statistics:
        names = None if screen is None else screen.group_names(self.by)
        return Statistics.labelled(self.statistics, self.by, names, "negative")

    def _check_one(self, path: str | Path | None) -> None:
        if path is not None and len(self.members) > 1:
            raise ConfigError(
                f"'{path}' is one file for {len(self.members)} networks: name none, and each has its own beside its "
                "checkpoint",
            )

    def _compare(self, screen: Screen) -> None:
        """Make sure that plates of a screen are those of these names whose statistics are known; once."""
        known = [member.calibration for member in self.members if member.calibration is not None]
        if len(self._compared) == len(known) + 1 and all(map(operator.is_, self._compared, [screen, *known])):
            return
        there = set(self.plates)
        names, groups = screen.group_names(self.by), screen.groups(self.by)
        used = np.array([name in there for name in names])
        for calibration in known:
            calibration.compare(screen, names, np.where(used[groups], groups, -1), "measure_again", self.other_data)
        self._compared = [screen, *known]

    def _plate_numbers(self, plates: Sequence[str] | None, number: int) -> Tensor | None:
        """The numbers of plates among :attr:`plates`, which the encoder is given; None where they do not matter."""
        if self.statistics == "running":
            return None
        if not self.measures:
            raise ConfigError(f"statistics '{self.statistics}' are not known of a plate beforehand; adapt to plate")
        if plates is None or len(plates) != number:
            given = "none" if plates is None else len(plates)
            raise DataError(f"{number} images came with {given} plates; give the name of one for each")
        known = self.plates
        places = {name: place for place, name in enumerate(known)}
        short = pd.Series([name.rpartition("/")[2] for name in known])
        alone = short.drop_duplicates(keep=False)
        places = dict(zip(alone, alone.index.tolist(), strict=True)) | places
        asked = [str(plate) for plate in plates]
        unknown = next((name for name in asked if name not in places), None)
        if unknown is not None:
            hint = did_you_mean(unknown, known, "adapt the model to its plate first") or "adapt the model to it first"
            raise DataError(f"plate '{unknown}' is not among the {len(known)} plates that the model knows; {hint}")
        member = self.members[0]
        assert member.calibration is not None
        member.calibration.give(member.network.encoder, known)
        return torch.tensor([places[name] for name in asked], dtype=torch.long)

    def _run(
        self,
        screen: Screen,
        reading: "Reading",
        skipped: SkippedImages,
        keep: bool,
        again: bool,
        known: bool = True,
        only: np.ndarray | None = None,
    ) -> Iterator[tuple[int, Batch, Tensor]]:
        """Run all networks over a screen: the number of the network, the batch, and its output (n, D).

        Plates that are not known are run whole, and their moments kept where ``keep``; then those that are.
        """
        statistics = self._statistics(screen)
        assert statistics.names is not None
        transforms = [member.prepare(screen) for member in self.members]
        groups = screen.groups(self.by)
        rows = np.arange(len(screen)) if only is None else only
        reader = BatchReader(screen, groups, reading.on_bad_image)
        with _running([member.part for member in self.members], self.fabric):
            if not self.measures:
                yield from self._batches(reader, rows, statistics, reading, skipped, transforms, None)
                return
            there = set() if again else set(self.plates)
            stored = np.array([name in there for name in statistics.names])[groups[rows]]
            new = rows[~stored]
            if len(new):
                if not stored.any() and only is None:
                    statistics.check(screen)
                moments: list[Moments] = [{} for _ in self.members]
                if keep:
                    for member in self.members:
                        norms_used_once(member.part)
                yield from self._batches(
                    reader, new, statistics, reading, skipped, transforms, moments if keep else None
                )
                if keep and self.fabric.world_size > 1:
                    moments = self._of_all(moments)
                    skipped.merge(training.gathered(self.fabric, skipped.rows))
                if keep:
                    self._remember(statistics, moments, screen, np.setdiff1d(new, list(skipped.rows)))
            if known and stored.any():
                self._compare(screen)
                calibrated = replace(statistics, word="calibrated")
                for member in self.members:
                    assert member.calibration is not None
                    member.calibration.give(member.network.encoder, statistics.names)
                yield from self._batches(reader, rows[stored], calibrated, reading, skipped, transforms, None)

    def _batches(
        self,
        reader: BatchReader,
        rows: np.ndarray,
        statistics: Statistics,
        reading: "Reading",
        skipped: SkippedImages,
        transforms: Sequence[Transform],
        moments: list[Moments] | None,
    ) -> Iterator[tuple[int, Batch, Tensor]]:
        mixed = statistics.word == "batch"
        size = reading.batch_size or max(1, AT_ONCE // max(1, _values(reader)))
        if statistics.blocks or statistics.adapts or mixed:  # the size of batches is part of the method
            size = reading.batch_size or self.members[0].batch_size or len(rows)
        whole = PlateBatches(rows, None if mixed else reader.groups[rows], batch_size=size, shuffle=statistics.blocks)
        order = training.share(self.fabric, whole, None if mixed else reader.groups)
        loader = Loader(reader, order, reading.num_workers, pin_memory=self.fabric.device.type == "cuda")
        said, plates = [""], len(np.unique(reader.groups[rows]))
        with tqdm(desc="images", total=len(rows), leave=False, disable=not sys.stderr.isatty()) as bar:
            for chunks in read_plates(loader, statistics.whole_groups, skipped):
                group = int(chunks[0].groups[0])
                for number, (member, transform) in enumerate(zip(self.members, transforms, strict=True)):
                    found: dict[str, Tensor] | None = None if moments is None else {}
                    outputs = run_plate(
                        member.part, chunks, transform, statistics, self.fabric.device, member.probe is None, found
                    )
                    if moments is not None and found is not None:
                        moments[number][group] = found
                    for batch, output in zip(chunks, outputs, strict=True):
                        yield number, batch, output
                bar.update(sum(len(batch) for batch in chunks))
                name = "" if mixed or statistics.names is None else statistics.names[group]
                if bar.disable and name != said[-1] and plates > 1:
                    how = "measured and run" if statistics.whole_groups else "run"
                    log.info("plate %d of %d, '%s', is %s", len(said), plates, name, how)
                    said.append(name)

    def _of_all(self, moments: list[Moments]) -> list[Moments]:
        """The moments of the plates of all processes, in the order of their numbers."""
        own = [{g: {n: value.cpu() for n, value in of.items()} for g, of in one.items()} for one in moments]
        parts = training.gathered(self.fabric, own)
        joined = [{g: of for part in parts for g, of in part[number].items()} for number in range(len(moments))]
        return [dict(sorted(one.items())) for one in joined]

    def _remember(self, statistics: Statistics, moments: list[Moments], screen: Screen, rows: np.ndarray) -> None:
        names, groups = statistics.names or (), screen.groups(self.by)
        counts = np.bincount(groups[rows], minlength=len(names))
        read = np.full(len(screen), -1)
        read[rows] = groups[rows]
        data = training.plates_data(screen, names, read, self.statistics, {group for one in moments for group in one})
        for member, found in zip(self.members, moments, strict=True):
            empty = Calibration.empty(member.weighed(statistics), statistics, member.transform)
            by_name = {names[group]: of_group for group, of_group in found.items()}
            empty = replace(empty, data={name: data[name] for name in by_name if name in data})
            member.remember(by_name, {name: int(n) for name, n in zip(names, counts, strict=True)}, empty)


@dataclass(frozen=True)
class Reading:
    """How a screen is read: images at once, processes that read ahead, what is done with unreadable images."""

    batch_size: int | None = None
    num_workers: int = 0
    on_bad_image: OnBadImage = "error"


def load(
    path: str | Path | Sequence[str | Path],
    *,
    statistics: str | None = None,
    by: Sequence[str] | None = None,
    controls: str | None = None,
    adaptation: str | Path | None = None,
    transform: Transform | None = None,
    encoder: str | None = None,
    key: str | None = None,
    device: str = "auto",
    precision: str | int = "32",
    other_data: bool = False,
    devices: int = 1,
) -> Model:
    """Load a trained network, or several whose predictions are averaged.

    Args:
        path: a checkpoint file, the name of a run below ``checkpoints/``, or ``latest``; several for an ensemble. A
            probe (of ``train_classifier.py``) brings the network along that it stands on.
        statistics: where batch norm takes its statistics from, see :meth:`Model.adapt`; None: all images of a plate,
            its controls where the network was trained with these, what a probe was trained with, and running averages
            where there is no batch norm.
        by: the columns that make a plate; None: as the checkpoint says.
        controls: negative, positive or all: which are meant by controls, where ``statistics`` do not say it.
        adaptation: a file of what is known of plates, see :meth:`Model.save_adaptation`; with its statistics, if no
            others are asked for.
        transform: what is done to an image; None: what the checkpoint's evaluation did.
        encoder: for a probe, the checkpoint of its network; None: where the probe found it.
        key: the encoder's name, for the weights of other code only.
        device: auto, cpu or cuda.
        precision: 32, bf16 or 16.
        other_data: take what is known of a plate although other images are called so now, and warn; else it is an
            error.
        devices: how many of them, each of which takes other plates: of ``biomass predict``.

    Raises:
        CheckpointError, ConfigError: it cannot be loaded, or does not fit.

    A network of random weights, saved as training saves it, and two images of a plate:

    >>> from biomass.models import Architecture, build_network
    >>> from biomass.screen import COLUMNS, VectorPixels, make_screen
    >>> architecture = Architecture("test_resnet", in_channels=1, head=(2,))
    >>> state = {"architecture": architecture.to_dict(), "network": build_network(architecture).state_dict()}
    >>> file = getfixture("tmp_path") / "last.pt"
    >>> training.save_checkpoint(state | {"classes": ["DMSO", "taxol"], "channels": ["DNA"]}, file)
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 4) | {"label": -1, "plate": "P1", "well": [*"ABCD"]})
    >>> table["well"] += "01"
    >>> images = np.random.default_rng(0).integers(0, 255, (4, 1, 32, 32), dtype=np.uint8)
    >>> screen = make_screen(table, VectorPixels(images, ("DNA",)), [])

    Then the five lines are:

    >>> model = load(file, device="cpu")
    >>> _ = model.adapt(screen)
    >>> predictions = model.predict(screen)
    >>> list(predictions)[-5:]
    ['prediction', 'probability', 'entropy', 'p_DMSO', 'p_taxol']
    >>> model.embed(images[:1], ["P1"]).shape
    (1, 96)
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise ConfigError("no checkpoint is named; name one or several", "network")
    statistics, by = words_of(adaptation, statistics, by)
    fabric = training.make_fabric(device, precision, devices, timedelta(days=7))
    members = [_member(fabric, str(one), transform, encoder, key) for one in paths]
    defaults = {member.defaults for member in members}
    if len(defaults) > 1 and (statistics is None or by is None):
        both = " and ".join(sorted(f"{label} by {', '.join(columns)}" for label, columns in defaults))
        raise ConfigError(f"the checkpoints take statistics of {both}: say which", "statistics")
    label, columns = members[0].defaults
    label = Statistics.labelled(statistics or label, by or columns, None, controls or "negative").label
    model = Model(fabric, members, label, by or columns, other_data)
    for member in members:
        if member.evaluated not in (None, model.statistics):
            log.info(
                "'%s' was evaluated in training with statistics '%s'; here they are '%s'",
                member.path,
                member.evaluated,
                model.statistics,
            )
    return model if adaptation is None else model.load_adaptation(adaptation)


def words_of(
    file: str | Path | None, statistics: str | None, by: Sequence[str] | None
) -> tuple[str | None, Sequence[str] | None]:
    """The statistics and columns of a file of calibrated statistics, where nobody asks for others.

    Args:
        file: it need not be there.
        statistics: what was asked for; None or ``calibrated``: what the file holds.
        by: columns that were asked for; None: those of the file.
    """
    if file is None or not Path(file).is_file() or statistics not in (None, "calibrated"):
        return statistics, by
    known = Calibration.read(Path(file))
    return known.word, by or known.by


def open_screen(source: str | Path, **options: Any) -> Screen:
    """Read a screen: a manifest, a packed store, a folder of cropped cells, a root of RxRx1-WILDS, or BBBC021.

    Args:
        source: its path.
        options: of its reader, such as those of :func:`biomass.datasets.manifest.load_manifest`.

    Raises:
        DataError: it is none of these, or its reader refuses it.
        ConfigError: the reader has no such option.

    >>> folder = getfixture("tmp_path")
    >>> np.save(folder / "a.npy", np.zeros((4, 4), np.uint8))
    >>> _ = (folder / "manifest.csv").write_text("path,experiment,plate,well\\na.npy,W1,P1,A1\\n")
    >>> open_screen(folder / "manifest.csv").plate_names
    ('W1/P1',)
    """
    return open_source(source, **options)[0]


def _member(fabric: Fabric, path: str, transform: Transform | None, encoder: str | None, key: str | None) -> Member:
    file = training.find_checkpoint(path)
    probe = training.load_probe(file, encoder) if training.is_probe(file) else None
    if probe is not None:
        network, architecture, about = probe.network, probe.trained, probe.about
        number: int | None = int(
            probe.head.state_dict()["classifier.weight" if probe.pooler == "attention" else "weight"].shape[0]
        )
    else:
        network, architecture, about = training.load_network(file, key)
        number = architecture.head[-1] if _classifies(architecture.head, about) else None
    config = about.get("config", {})
    classes = None if number is None else class_names(about.get("classes", ()), number)
    if number is not None and "classes" not in about:
        log.info("'%s' does not say the names of its %d classes: they are numbers", file, number)
    method = about.get("method") or config.get("method") or {}
    if transform is None:
        transform = trained_transform(config, file)
    network = network.to(fabric.device).eval()
    if probe is not None:
        probe.head.to(fabric.device).eval()
    return Member(
        path=file,
        network=network,
        part=network if probe is None else probe.part,
        probe=probe,
        beside=file if probe is None else probe.path,
        channels=about.get("channels"),
        in_channels=architecture.in_channels,
        classes=classes,
        transform=transform,
        calibration=None,
        defaults=_defaults(network, method, probe is not None, file),
        evaluated=method.get("eval"),
        batch_size=config.get("eval_batch_size", config.get("encode_batch_size")),
    )


def _classifies(head: Sequence[int], about: Mapping[str, Any]) -> bool:
    """Whether the outputs of a network are classes. Those of views that were contrasted are not."""
    return bool(head) and ("classes" in about or "temperature" not in about.get("config", {}))


def _defaults(network: Network, method: Mapping[str, Any], probe: bool, path: Path) -> tuple[str, tuple[str, ...]]:
    """The statistics that a checkpoint is applied with, if nobody says others: label and columns."""
    by = tuple(method.get("eval_by", PLATE))
    if shared_context(network) is None:
        log.info("'%s' has no batch norm that knows of plates: each image is predicted by itself", path)
        return "running", by
    if probe and not method:
        log.warning("'%s' does not say which statistics it was trained with: those of whole plates are taken", path)
    label = Statistics("plate", by).label
    trained = method.get("eval" if probe else "train", "plate")
    if probe or WORDS[trained].needs_controls:
        label = Statistics(trained, by, None, method.get("controls", "negative")).label
    return {"calibrated": "plate"}.get(label, label), by


def _is_measured(label: str) -> bool:
    word = WORDS[label.partition("/")[0]]
    return word.mixture is not None and word.by_group and word.whole and not word.adapts


def _values(reader: BatchReader) -> int:
    """How many values an image has."""
    height, width = reader.pixels.size
    return len(reader.pixels.channels) * height * width


@contextmanager
def _running(parts: Sequence[nn.Module], fabric: Fabric) -> Iterator[None]:
    """Evaluation mode, no gradients, and the precision that was asked for."""
    with ExitStack() as stack:
        for part in parts:
            part.eval()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(fabric.autocast())
        yield
