"""The moments of plates that ``calibrated`` takes: what is stored beside a checkpoint, and what is measured now."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from biomass import training
from biomass.config import Config
from biomass.evaluation import profiles
from biomass.inference import Transform
from biomass.norms import Statistics, calibration_state
from biomass.screen import Screen

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """The moments of plates, for ``calibrated``.

    Attributes:
        network: that they belong to.
        file: where they are kept.
        known: what the file holds of these weights, before anything is measured.
        measuring: the statistics that other plates are measured by, after
        transform: was done to their images,
        held: the moments of the plates of the screen that are in the file, by number.
        screen: that the plates are of,
        groups: (N,) and which of its rows are of each.
    """

    network: nn.Module
    file: Path
    known: training.Calibration
    measuring: Statistics
    transform: Transform
    held: dict[int, dict[str, Tensor]]
    screen: Screen
    groups: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """How many each plate has."""
        return np.bincount(self.groups, minlength=len(self.measuring.names or ()))

    def save(self, parts: profiles.Parts, without: Sequence[int]) -> None:
        """Write the moments of the plates that were measured; others that the file holds stay."""
        groups = [group for group in range(len(parts.folders)) if group not in {*without, *self.held}]
        if not groups:
            return
        moments = [parts.moments(group) for group in groups]
        names, images = self.measuring.names or (), self.images
        new = replace(
            self.known,
            plates=[names[group] for group in groups],
            images=[int(images[group]) - parts.unread(group) for group in groups],
            moments={name: torch.stack([one[name] for one in moments], 1) for name in moments[0]},
            data=training.plates_data(self.screen, names, self.groups, self.known.word, groups),
        )
        training.check_calibration(self.network, self.file, self.measuring, self.transform).merged(new).save(self.file)

    def say(self, missing: Sequence[int]) -> None:
        """What is taken from the file, and what is measured."""
        assert self.measuring.names is not None
        if self.held:
            log.info("calibrated: %d plates have moments in '%s'", len(self.held), self.file)
            by_name = sum(self.measuring.names[group] not in self.known.data for group in self.held)
            if by_name:
                log.info(
                    "%d of them by their names alone, since they were measured by an earlier version: if these are "
                    "other plates of the same names, set measure_again=true",
                    by_name,
                )
        now = [group for group in missing if group not in self.held]
        if now:
            rows = "all their images" if self.measuring.word == "plate" else f"their images ({self.measuring.label})"
            first = self.measuring.names[now[0]]
            images = self.images[now]
            few, many = images.min(), images.max()
            log.info(
                "calibrated: %d plates are measured now, on %s (%s; the first is '%s'), and kept in '%s'",
                len(now),
                rows,
                few if few == many else f"{few} to {many}",
                first,
                self.file,
            )


def stored_moments(
    cfg: Config, network: nn.Module, path: Path, statistics: Statistics, transform: Transform, screen: Screen
) -> Stored | None:
    """What is known of plates that statistics are taken from; None where they are not ``calibrated``."""
    named, again, other_data = cfg.calibration, cfg.measure_again, cfg.other_data
    if statistics.word != "calibrated":
        return None
    assert statistics.names is not None
    file = training.calibration_file(path, named)
    label = training.Calibration.read(file).word if file.is_file() else "plate"
    measuring = Statistics.labelled(label, statistics.by, statistics.names, statistics.controls)
    known = training.check_calibration(network, file, measuring, transform)
    if again:
        known = replace(known, plates=[], images=[], moments={}, data={})
    groups = screen.groups(statistics.by)
    known.compare(screen, statistics.names, groups, "measure_again", other_data, file)
    known.give(network, statistics.names)
    state = calibration_state(network)
    numbers = state.pop("plates").tolist()
    held = {group: {k: v[:, i] for k, v in state.items()} for i, group in enumerate(numbers)}
    return Stored(network, file, known, measuring, transform, held, screen, groups)
