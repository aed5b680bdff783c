"""The linear probe: what is trained on the profiles of a frozen encoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.evaluation.pooling import profile_screen
from biomass.grouping import unique
from biomass.inference import Transform, infer
from biomass.loader import Batch, BatchReader, Loader, SkippedImages
from biomass.models import Network
from biomass.models.poolers import BagClassifier
from biomass.norms import Statistics
from biomass.samplers import PlateBatches
from biomass.screen import Screen


def encoder_path(model_path: str | None, sup_model_path: str | None) -> str:
    """The checkpoint to probe, by either of its published names.

    Raises:
        ConfigError: none is given, or both.
    """
    if (model_path is None) == (sup_model_path is None):
        given = "neither is" if model_path is None else "both are"
        raise ConfigError(
            f"a self-supervised or a supervised encoder is probed, but {given} given; name one: a file, the name of a "
            "run, or latest",
            "model_path",
        )
    return str(sup_model_path if model_path is None else model_path)


def probed_part(network: Network, projections: bool, path: object) -> tuple[nn.Module, int]:
    """What of a network a probe looks at, frozen, and the width of its output.

    Args:
        network: of a checkpoint.
        projections: its projections; else the features of its encoder.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: there are no projections.
    """
    if not projections:
        return network.encoder.requires_grad_(False), network.num_features
    last = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)][-1:]
    if not last:
        raise ConfigError(f"checkpoint '{path}' has no projections; probe its features", "use_projs")
    return network.requires_grad_(False), last[0].out_features


def build_probe(pooler: str, width: int, in_features: int | None, d_out: int, seed: int) -> nn.Module:
    """A linear layer over pooled profiles, or attention pooling with one behind it; weights depend on ``seed`` alone.

    Args:
        pooler: mean, median or attention.
        width: D, of the profiles.
        in_features: what the user expects D to be; None for whatever it is.
        d_out: number of classes.
        seed: of the initial weights.

    Raises:
        ConfigError: ``in_features`` is another number than D.
    """
    if in_features is not None and in_features != width:
        raise ConfigError(f"{in_features} features are expected, but the encoder gives {width}", "in_features")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BagClassifier(width, d_out) if pooler == "attention" else nn.Linear(width, d_out)


@dataclass(frozen=True)
class Profiler:
    """Runs a frozen encoder over the cells of a screen and pools them into profiles of their fields of view.

    Attributes:
        fabric: device and precision.
        encoder: on that device.
        cells: the screen,
        splits: and those of its splits that are used: no other rows take part in the statistics of a plate.
        reader: reads its cells; its ``instances`` are the fields, its ``groups`` those of the statistics.
        statistics: where batch norm takes its statistics from.
        batch_size: cells at once.
        pooler: mean, median or attention.
        normalize: scale the vector of every cell to length 1 before pooling.
        num_workers: processes that read ahead.
        seed: of mixed batches, and of the augmentation.
    """

    fabric: Fabric
    encoder: nn.Module
    cells: Screen
    splits: list[str]
    reader: BatchReader
    statistics: Statistics
    batch_size: int | None
    pooler: str
    normalize: bool
    num_workers: int
    seed: int

    @cached_property
    def skipped(self) -> SkippedImages:
        """The cells that could not be read."""
        return SkippedImages(self.cells)

    def profiles(self, splits: list[str], transform: Transform, epoch: int | None = None) -> Screen:
        """A Screen whose rows are the fields of ``splits``, see :func:`biomass.evaluation.profile_screen`.

        Args:
            splits: those whose profiles are wanted; plates that reach into other splits are normalized as a whole.
            transform: of the cells, on the device.
            epoch: of training, on which and the seed the randomness of the transform depends; None: it has none.
        """
        return profile_screen(
            self.cells, self.reader.instances, self._encode(splits, transform, epoch), self.pooler, self.normalize
        )

    def batches_like(self, batch_size: int | None) -> PlateBatches:
        """Batches as many and as large as those of the training profiles will be, before anything is encoded.

        Args:
            batch_size: fields of view in one, at most.
        """
        return self.batches(unique(self.reader.instances[self.cells.rows("train")]), batch_size)

    def batches(self, rows: np.ndarray, batch_size: int | None) -> PlateBatches:
        """Mixed batches of profiles, of which each process takes others.

        Args:
            rows: (n,) of their screen.
            batch_size: most rows in a batch.
        """
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        return PlateBatches(rows, batch_size=batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _encode(self, splits: list[str], transform: Transform, epoch: int | None) -> Iterator[tuple[Batch, Tensor]]:
        rows = self._rows(splits)
        groups = self.reader.groups
        if self.statistics.whole_groups:
            used = self._rows(self.splits)
            rows = used[np.isin(groups[used], groups[rows])]
        by_group = self.statistics.word != "batch"  # group by group is also the order in which files lie on disk
        batches = PlateBatches(
            rows,
            groups[rows] if by_group else None,
            batch_size=self.batch_size,
            shuffle=not by_group,
            seed=self.seed,
        )
        batches.set_epoch(epoch or 0)
        pin = self.fabric.device.type == "cuda"
        loader = Loader(self.reader, batches, self.num_workers, pin_memory=pin)
        if epoch is not None:
            seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            transform = partial(transform, generator=torch.Generator(self.fabric.device).manual_seed(seed))
        return infer(self.fabric, self.encoder, loader, transform, self.statistics, self.skipped)

    def _rows(self, splits: list[str]) -> np.ndarray:
        return np.sort(np.concatenate([self.cells.rows(split) for split in splits]))


class FreshProfiles:
    """Batches of training profiles that are made again for every epoch, as the augmentation of their cells asks for.

    Args:
        batches: batches of profiles.
        reader: reads them; its pixels are replaced at the start of an epoch. It must read in this process.
        profiles: from the number of an epoch to its profiles.
    """

    def __init__(self, batches: PlateBatches, reader: BatchReader, profiles: Callable[[int], Screen]) -> None:
        self.batches, self.reader, self.profiles = batches, reader, profiles
        self.epoch: int | None = None

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and its first batch, and make its profiles."""
        self.batches.set_epoch(epoch, start)
        if epoch != self.epoch:
            self.reader.pixels, self.epoch = self.profiles(epoch).pixels, epoch

    @property
    def served(self) -> np.ndarray:
        """The rows that batches are made of."""
        return self.batches.served

    @property
    def num_batches(self) -> int:
        """How many batches an epoch of all processes has."""
        return self.batches.num_batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)


def profile_loader(fields: Screen, batches: PlateBatches, again: Callable[[int], Screen] | None = None) -> Loader:
    """The training batches of a probe.

    Args:
        fields: the profiles, as :meth:`Profiler.profiles` gives them.
        batches: of their rows.
        again: from the number of an epoch to the profiles of that epoch; None: the same in every epoch.
    """
    reader = BatchReader(fields, fields.plate_ids)
    return Loader(reader, batches if again is None else FreshProfiles(batches, reader, again))
