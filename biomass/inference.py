"""Running a network over a split, plate by plate, with the statistics that a method asks for."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.loader import Batch, Loader, SkippedImages
from biomass.norms import plate_statistics, whole_plate_forward
from biomass.samplers import share_of_rank as share_of_rank  # until those who import it from here have moved

Transform = Callable[..., Tensor]


@dataclass(frozen=True)
class Statistics:
    """Where batch norm takes its mean and variance from.

    Attributes:
        source: ``batch`` (the rows at hand) or ``running`` (averages kept in training).
        by_group: statistics for each group (plate) of a batch, or one set for the whole batch whatever is in it.
        rows: ``all`` rows, or the negative ``controls`` alone.
        names: readable names of the groups, for messages.
    """

    source: Literal["batch", "running"]
    by_group: bool = True
    rows: Literal["all", "controls"] = "all"
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.rows not in ("all", "controls"):
            raise ConfigError(f"statistics_rows '{self.rows}' is unknown; choose all or controls")

    def of(self, network: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        """The context under which ``network`` runs on ``batch``."""
        return plate_statistics(
            network,
            batch.groups if self.by_group else None,
            source=self.source,
            controls=batch.controls if self.rows == "controls" else None,
            names=self.names,
        )


def infer(
    fabric: Fabric,
    network: nn.Module,
    loader: Loader,
    transform: Transform,
    statistics: Statistics,
    skipped: SkippedImages,
) -> Iterator[tuple[Batch, Tensor]]:
    """Run the network over all batches of a loader, without gradients and without moving a buffer.

    Where statistics come from the rows at hand and are taken by group, consecutive batches of the same group are
    chunks of one plate: they are normalized together, exactly as if the whole plate were one batch
    (:func:`biomass.norms.whole_plate_forward`), whatever the size of the chunks.

    Args:
        fabric: device and precision.
        network: on that device.
        loader: what to run over.
        transform: applied on the device.
        statistics: where batch norm takes its statistics from.
        skipped: counts the images that cannot be read.

    Yields:
        Each batch as it was read, on the host, and the network's output (N, D) for it, on the device.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), fabric.autocast():
            for chunks in _plates(loader, statistics, skipped):
                yield from _run(network, chunks, transform, statistics, fabric.device)
    finally:
        network.train(was_training)


def _plates(loader: Loader, statistics: Statistics, skipped: SkippedImages) -> Iterator[list[Batch]]:
    batches = _noted(loader, skipped)
    whole_plates = statistics.source == "batch" and statistics.by_group
    numbered = enumerate(batches)
    for _, chunks in itertools.groupby(numbered, key=lambda item: _plate(*item) if whole_plates else item[0]):
        yield [batch for _, batch in chunks]


def _plate(number: int, batch: Batch) -> tuple[str, int]:
    """What consecutive batches have in common if they are chunks of one plate; mixed batches stand alone."""
    groups = batch.groups.unique().tolist()
    return ("plate", groups[0]) if len(groups) == 1 else ("mixed", number)


def _noted(loader: Loader, skipped: SkippedImages) -> Iterator[Batch]:
    for batch in loader:
        skipped.note(batch)
        if len(batch):
            yield batch


def _run(
    network: nn.Module, chunks: list[Batch], transform: Transform, statistics: Statistics, device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    if len(chunks) == 1:
        with statistics.of(network, chunks[0]):
            outputs = [network(transform(chunks[0].to(device).images))]
    else:
        group = int(chunks[0].groups[0])
        outputs = whole_plate_forward(
            network,
            (transform(chunk.to(device).images) for chunk in chunks),
            controls=[chunk.controls for chunk in chunks] if statistics.rows == "controls" else None,
            plate=statistics.names[group] if statistics.names else str(group),
        )
    yield from zip(chunks, outputs, strict=True)
