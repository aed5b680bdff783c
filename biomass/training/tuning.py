"""What is learned of training plates once a network is trained: measured on some of them, chosen on others."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError, DataError
from biomass.evaluation.stress import Bench, Condition, PlateWells, draw_wells
from biomass.inference import Transform
from biomass.loader import Batch, BatchReader, Loader
from biomass.norms import MODES, Statistics, Tuning, measure_plates, tuning_state, unwrap
from biomass.norms.plate_batch_norm import shared_context
from biomass.run_files import BEST, LAST
from biomass.samplers import PlateBatches
from biomass.screen import Screen
from biomass.training.checkpoint import load_checkpoint, save_checkpoint
from biomass.training.together import gathered

log = logging.getLogger(__name__)

MOST_IMAGES = 2048
"""How many images of a training plate are looked at, at most: they lie evenly over the plate."""

CONDITIONS = tuple(
    Condition(wells, alpha, controls)
    for wells, alpha, controls in itertools.product((4, 32), (np.inf, 0.3, 0.03), (None, 2))
)
"""What validation plates are reduced to where the numbers of a tuning are chosen."""

SHRINKAGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
EVENNESS = (1.0, 0.5, 0.25, 0.1)
TRUST = (0.0, 3.0, 10.0, 30.0)
STRENGTHS = (1.0, 0.75, 0.5, 0.25)
"""Values that are tried, see :class:`biomass.norms.Tuning`."""


@dataclass(frozen=True)
class TrainingPlates:
    """The training plates that a network is measured on.

    Attributes:
        screen: what the network was trained on.
        reader: reads its rows; its groups are what statistics are taken over.
        transform: applied on the device; without randomness.
        num_classes: K, which the network tells apart; the number of classes of the screen where it does not classify.
        most: how many plates, at most: they lie evenly over the split. 0 for none.
        batch_size: images at once; None for whole plates.
        split: theirs.
        num_workers: processes that read ahead.
    """

    screen: Screen
    reader: BatchReader
    transform: Transform
    num_classes: int
    most: int = 16
    batch_size: int | None = None
    split: str = "train"
    num_workers: int = 0

    def measure(self, fabric: Fabric, network: nn.Module) -> None:
        """Give the network what it needs for the words that know of training plates. Each process measures some.

        Nothing is done if ``most`` is 0, or the network has no plate-aware norms.
        """
        if self.most and shared_context(unwrap(network)) is not None:
            # a loader draws from the global random state, whatever it reads
            gather = partial(gathered, fabric) if fabric.world_size > 1 else None
            with fabric.autocast(), torch.random.fork_rng(devices=[]):
                measure_plates(network, self._plates(fabric), self.num_classes, gather=gather)

    def _plates(self, fabric: Fabric) -> Iterator[Iterator[tuple[Tensor, Tensor, Tensor]]]:
        rows = self.screen.rows(self.split)
        groups = self.reader.groups[rows]
        names = np.unique(groups)
        chosen = names[np.unique(np.linspace(0, len(names) - 1, min(self.most, len(names))).astype(int))]
        chosen = chosen[fabric.global_rank :: fabric.world_size]
        if not len(chosen):
            return
        order = np.argsort(groups, kind="stable")
        of_group = {g: rows[order[slice(*np.searchsorted(groups[order], [g, g + 1]))]] for g in chosen}
        few = [some[:: -(-len(some) // MOST_IMAGES)] for some in of_group.values()]
        rows = np.concatenate(few)
        batches = PlateBatches(rows, self.reader.groups[rows], batch_size=self.batch_size, shuffle=False)
        loader = Loader(self.reader, batches, self.num_workers)
        for _, chunks in itertools.groupby((b for b in loader if len(b)), lambda batch: int(batch.groups[0])):
            yield (
                (self.transform(chunk.to(fabric.device).images), chunk.labels.cpu(), chunk.controls) for chunk in chunks
            )


def measure_run(fabric: Fabric, network: nn.Module, plates: TrainingPlates, folder: Path) -> None:
    """Write what is known of training plates into the checkpoints of a finished run: the last, and the best.

    Args:
        fabric: device and precision.
        network: of the run, on that device; it has the weights of the last checkpoint afterwards.
        plates: what is measured.
        folder: of the checkpoints.
    """
    if not plates.most:
        return
    fabric.barrier()  # the first process has written them
    states = {name: load_checkpoint(folder / name) for name in (BEST, LAST) if (folder / name).exists()}
    known: dict[int, object] = {}
    for name, state in states.items():
        step = state["progress"]["step"]
        if step not in known:
            unwrap(network).load_state_dict(state["network"])
            try:
                plates.measure(fabric, network)
            except ConfigError as error:  # such as a network that cannot be traced
                log.warning("training plates are not measured, for shrunk and balanced: %s", error)
                return
            known[step] = tuning_state(network)
        if fabric.is_global_zero and (state.get("tuning") is None or name == LAST):
            save_checkpoint(state | {"tuning": known[step]}, folder / name)
    fabric.barrier()


def read_whole(reader: BatchReader, plates: Sequence[PlateWells], num_workers: int = 0) -> Iterable[Batch]:
    """Each of some plates as one batch, its rows well by well."""
    if not plates:
        return []
    rows = np.concatenate([wells.rows for wells in plates])
    return Loader(reader, PlateBatches(rows, reader.groups[rows], shuffle=False), num_workers)


def tune(
    bench: Bench,
    plates: Iterable[tuple[Batch, PlateWells]],
    statistics: Mapping[str, Statistics],
    seed: int = 0,
) -> tuple[Tuning, list[dict[str, float | str]]]:
    """Choose the numbers of a network's tuning on plates that it was not trained on, reduced in many ways.

    Of the values that are tried, that with the best mean accuracy over plates and conditions is taken in the place of
    the one before, if it gains more than the standard error of its gain.

    Args:
        bench: runs the network, which knows of its training plates.
        plates: whole plates, and their wells.
        statistics: ``shrunk`` and ``balanced`` over the groups of the plates.
        seed: of the wells that are drawn.

    Returns:
        The tuning, which the network has from now on; and what was tried: the word, the numbers, and
        the ``accuracy``.
    """
    context = shared_context(unwrap(bench.network))
    assert context is not None
    start: Tuning = context.tuning
    draws: list[tuple[Batch, np.ndarray]] = []
    for number, (raw, wells) in enumerate(plates):
        plate = bench.prepare(raw)
        for condition in CONDITIONS:
            rng = np.random.default_rng((seed, number, len(draws)))
            draws.append((plate, wells.positions(draw_wells(rng, wells, condition))))
    tried: list[dict[str, float | str]] = []

    def accuracies(word: str, tuning: Tuning) -> np.ndarray:
        context.tuning = tuning
        scores = []
        for plate, positions in draws:
            treated = plate.controls.numpy()[positions] == 0
            right = bench.predict(plate, positions, statistics[word]) == plate.labels.numpy()[positions]
            scores.append(right[treated].mean())
        numbers = {name: value for name, value in vars(tuning).items() if isinstance(value, float)}
        tried.append({"word": word, "mode": tuning.mode, **numbers, "accuracy": float(np.mean(scores))})
        return np.array(scores)

    def best(word: str, known: Tuning, **values: Sequence[Any]) -> Tuning:
        others = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
        candidates = [one for one in (replace(known, **other) for other in others) if one != known]
        gains = np.stack([accuracies(word, one) for one in candidates]) - accuracies(word, known)
        most = int(gains.mean(1).argmax())
        error = gains[most].std() / np.sqrt(max(1, gains.shape[1] - 1))
        return candidates[most] if gains[most].mean() > error else known

    if not draws:
        raise DataError("there are no plates to choose the numbers on; name a split that has some", "splits")
    tuning = best("shrunk", start, shrinkage=SHRINKAGES)
    tuning = best("balanced", tuning, evenness=EVENNESS, trust=TRUST)
    tuning = best("balanced", tuning, strength=STRENGTHS)
    tuning = best("balanced", tuning, prior_rows=SHRINKAGES)
    tuning = best("balanced", tuning, mode=tuple(MODES))
    context.tuning = replace(tuning, fitted=True)
    return context.tuning, tried
