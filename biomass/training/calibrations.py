"""Calibrated statistics on disk: the moments of plates, beside the checkpoint that they were computed with."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, DataError
from biomass.models import digest
from biomass.norms import Statistics, calibration_state, load_calibration
from biomass.screen import Screen
from biomass.training.checkpoint import load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)


def calibration_file(checkpoint: Path, elsewhere: str | None = None) -> Path:
    """Where the calibrated statistics of a checkpoint are.

    >>> calibration_file(Path("checkpoints/mine/last.pt")).name
    'last.calibrated.pt'
    """
    return checkpoint.with_suffix(".calibrated.pt") if elsewhere is None else Path(elsewhere)


def check_calibration(encoder: nn.Module, file: Path, statistics: Statistics) -> None:
    """Make sure that new plates can be added to a file, if there is one: call it before anything is measured.

    Raises:
        CheckpointError: the file belongs to another word or other columns.
    """
    _kept(encoder, file, statistics)


def _kept(encoder: nn.Module, file: Path, statistics: Statistics) -> dict[str, Any] | None:
    """What a file holds that new plates can be added to. What was measured with other weights is of no use any more."""
    if not file.exists():
        return None
    old, about = load_checkpoint(file), _about(encoder, statistics)
    _check_same(old, {key: about[key] for key in ("word", "by")}, file)
    if old.get("encoder") != about["encoder"]:
        log.warning("'%s' was calibrated with other weights; it is replaced", file)
        return None
    return old


def save_calibration(encoder: nn.Module, file: Path, statistics: Statistics) -> list[str]:
    """Write the calibrated statistics of ``encoder``; other plates that the file holds with these weights stay.

    Args:
        encoder: calibrated by :func:`biomass.inference.calibrate_plates`.
        file: written whole or not at all.
        statistics: the word and the columns that it was calibrated with; names the plates.

    Returns:
        The names of all plates in the file.

    Raises:
        CheckpointError: the file belongs to another word or other columns.
    """
    assert statistics.names is not None
    state = calibration_state(encoder)
    names = [statistics.names[plate] for plate in state.pop("plates").tolist()]
    return add_plates(encoder, file, statistics, names, state)


def add_plates(
    encoder: nn.Module, file: Path, statistics: Statistics, names: list[str], moments: Mapping[str, Tensor]
) -> list[str]:
    """Write the moments of plates; other plates that the file holds with these weights stay.

    Args:
        encoder: that the moments belong to.
        file: written whole or not at all.
        statistics: the word and the columns that the plates were measured with.
        names: of the P plates.
        moments: (2, P, C) of each norm, by its name in :func:`biomass.norms.calibration_state`.

    Returns:
        The names of all plates in the file.

    Raises:
        CheckpointError: the file belongs to another word or other columns.
    """
    old = _kept(encoder, file, statistics)
    if old is not None:
        kept = [place for place, name in enumerate(old["plates"]) if name not in names]
        names = [*(old["plates"][place] for place in kept), *names]
        moments = {key: torch.cat([old["moments"][key][:, kept], value], 1) for key, value in moments.items()}
    save_checkpoint({**_about(encoder, statistics), "plates": names, "moments": dict(moments)}, file)
    return names


class Calibration(NamedTuple):
    """What a file of calibrated statistics holds.

    Attributes:
        label: of the statistics that the plates were measured with, see :attr:`biomass.norms.Statistics.label`.
        plates: their names.
        moments: (2, P, C) of each norm.
    """

    label: str
    plates: list[str]
    moments: dict[str, Tensor]

    def of(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The moments of those groups, by their ``names``, that are among the plates, for ``load_calibration``."""
        place = {name: position for position, name in enumerate(self.plates)}
        groups = [group for group, name in enumerate(names) if name in place]
        where = [place[names[group]] for group in groups]
        return {"plates": torch.tensor(groups, dtype=torch.long)} | {k: v[:, where] for k, v in self.moments.items()}


def read_calibration(encoder: nn.Module, file: Path, by: Sequence[str]) -> Calibration:
    """The calibrated statistics of an encoder.

    Raises:
        CheckpointError: the file cannot be read, or belongs to other weights or other columns.
    """
    state = load_checkpoint(file)
    _check_same(state, {"by": list(by), "encoder": digest(encoder)}, file)
    return Calibration(state["word"], state["plates"], state["moments"])


def use_calibration(
    encoder: nn.Module,
    statistics: Statistics,
    checkpoint: Path,
    elsewhere: str | None,
    screen: Screen,
    splits: Sequence[str] = (),
) -> None:
    """Give ``encoder`` its calibrated statistics, if it is to take them; else do nothing.

    Args:
        encoder: of the checkpoint.
        statistics: the word, the columns that make a group, and the names of the groups.
        checkpoint: the statistics are beside it,
        elsewhere: unless this file is named.
        screen: what the encoder will run on,
        splits: and which of it; none for all.

    Raises:
        CheckpointError: there is no such file, or it belongs to other weights or other columns.
        DataError: a group that is used is not in the file; names the first.
    """
    if statistics.word != "calibrated":
        return
    file = calibration_file(checkpoint, elsewhere)
    assert statistics.names is not None
    if not file.is_file():
        raise CheckpointError(f"there are no calibrated statistics '{file}'; calibrate the plates first", "calibrate")
    known = read_calibration(encoder, file, statistics.by)
    rows = screen.table["split"].isin(splits).to_numpy() if splits else slice(None)
    names = [statistics.names[group] for group in np.unique(screen.groups(statistics.by)[rows])]
    held = set(known.plates)
    missing = [name for name in names if name not in held]
    if missing:
        others = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise DataError(
            f"plate '{missing[0]}'{others} is not among the {len(held)} plates of '{file}'; calibrate it, too",
            "calibrate",
        )
    load_calibration(encoder, known.of(statistics.names))


def _about(encoder: nn.Module, statistics: Statistics) -> dict[str, object]:
    """What calibrated statistics depend on, beside the images."""
    return {"word": statistics.label, "by": list(statistics.by), "encoder": digest(encoder)}


def _check_same(state: dict[str, object], about: dict[str, object], file: Path) -> None:
    if "moments" not in state:
        raise CheckpointError(f"'{file}' holds no calibrated statistics; give a file that a calibration wrote")
    for key, value in about.items():
        if state.get(key) != value:
            shown = "other weights" if key == "encoder" else f"{key} {state.get(key)}, not {value}"
            raise CheckpointError(f"'{file}' was calibrated with {shown}; calibrate again", "calibrate")
