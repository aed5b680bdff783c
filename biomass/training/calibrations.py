"""Calibrated statistics on disk: the moments of plates, beside the checkpoint that they were computed with."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biomass.differences import BROKEN
from biomass.errors import CheckpointError, DataError, one_line
from biomass.fingerprint import image_keys, plate_difference, plate_fingerprint
from biomass.models import digest
from biomass.norms import WORDS, Statistics, calibration_state, load_calibration, tuning_state
from biomass.screen import Screen
from biomass.training.checkpoint import load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """The moments of plates, and what they depend on beside the images.

    Attributes:
        word: what they were taken from, as :attr:`biomass.norms.Statistics.label` calls it.
        by: the columns that make a plate.
        encoder: the digest of its weights; with what is known of training plates, where the word takes note of that.
        transform: what was done to an image, as it prints; None in files that do not say so.
        plates: names of the P plates.
        images: how many images each was measured on; -1 where that is not known.
        moments: of each norm, (2, P, C), as in :func:`biomass.norms.calibration_state`.
        data: what plates were made of then, by their names; those of files written before this entry existed are not
            in it.
    """

    word: str
    by: list[str]
    encoder: str
    transform: str | None
    plates: list[str]
    images: list[int]
    moments: dict[str, Tensor]
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, encoder: nn.Module, statistics: Statistics, transform: object) -> "Calibration":
        """That of no plate."""
        return cls(statistics.label, list(statistics.by), _weights(encoder, statistics), repr(transform), [], [], {})

    @classmethod
    def of(
        cls,
        encoder: nn.Module,
        statistics: Statistics,
        transform: object,
        images: Mapping[str, int],
        data: Mapping[str, Any],
    ) -> "Calibration":
        """That of the plates that an encoder was calibrated on.

        Args:
            encoder: calibrated by :func:`biomass.inference.calibrate_plates`.
            statistics: the word and the columns that it was calibrated with; names the plates.
            transform: what was done to an image.
            images: how many of each plate were read, by its name.
            data: what each plate is made of, see :func:`plates_data`.
        """
        assert statistics.names is not None
        state = calibration_state(encoder)
        plates = [statistics.names[plate] for plate in state.pop("plates").tolist()]
        number = [images.get(plate, -1) for plate in plates]
        nothing = cls.empty(encoder, statistics, transform)
        return replace(nothing, plates=plates, images=number, moments=state, data=dict(data))

    @classmethod
    def read(cls, file: Path) -> "Calibration":
        """That of a file.

        Raises:
            CheckpointError: there is no such file, or it holds something else.
        """
        state = load_checkpoint(file)
        try:
            return cls(
                transform=state.get("transform"),  # a file of before these were kept lacks them
                images=state.get("images", [-1] * len(state["plates"])),
                data=dict(state.get("data", {})),
                **{key: state[key] for key in ("word", "by", "encoder", "plates", "moments")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"'{file}' holds no calibrated statistics; give a file that a calibration wrote"
            ) from error

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        save_checkpoint(asdict(self), file)

    def merged(self, newer: "Calibration") -> "Calibration":
        """With the plates of another one, which replace those of the same names."""
        kept = [place for place, name in enumerate(self.plates) if name not in set(newer.plates)]
        if not newer.plates or not kept:
            return self if not newer.plates else newer
        return replace(
            newer,
            plates=[*(self.plates[place] for place in kept), *newer.plates],
            images=[*(self.images[place] for place in kept), *newer.images],
            moments={key: torch.cat([self.moments[key][:, kept], value], 1) for key, value in newer.moments.items()},
            data={name: of for name, of in self.data.items() if name not in set(newer.plates)} | newer.data,
        )

    def give(self, encoder: nn.Module, names: Sequence[str]) -> None:
        """Let the encoder know its plates under the numbers that they have among ``names``."""
        place = {name: position for position, name in enumerate(self.plates)}
        groups = [group for group, name in enumerate(names) if name in place]
        where = [place[names[group]] for group in groups]
        moments = {key: value[:, where] for key, value in self.moments.items()}
        load_calibration(encoder, {"plates": torch.tensor(groups, dtype=torch.long), **moments})

    def compare(
        self,
        screen: Screen,
        names: Sequence[str],
        groups: np.ndarray,
        advice: str,
        other_data: bool = False,
        file: Path | None = None,
    ) -> None:
        """Raise an error where a plate is not the one of that name that was measured; warn of those that have grown.

        Args:
            screen: that the statistics are taken for.
            names: of its groups.
            groups: (N,) of its rows, -1 where a row is not used.
            advice: of the error.
            other_data: warn of other plates, too.
            file: where the statistics come from, for messages.

        Raises:
            DataError: names the first such plate, and what is not the same.
        """
        self._warn_of_grown(names, groups)
        known = [group for group in np.unique(groups[groups >= 0]).tolist() if names[group] in self.data]
        if not known:
            return
        keys, matters = image_keys(screen), self.word not in ("plate", "block")
        others = []
        for group, rows in _members(screen, groups, self.word, known).items():
            try:
                found = plate_difference(self.data[names[group]], screen, rows, keys, matters)
            except BROKEN as error:
                raise CheckpointError(
                    f"what is stored of plate '{names[group]}' is damaged ({one_line(error)}); measure it again", advice
                ) from error
            others += [(names[group], found)] * (found is not None)
        if others:
            where = "" if file is None else f" in '{file}'"
            more = f"; {len(others) - 1} more plates are others, too" if len(others) > 1 else ""
            said = f"plate '{others[0][0]}' is not the one whose statistics are stored{where}: {others[0][1]}{more}"
            if not other_data:
                raise DataError(said, advice)
            log.warning("%s; they are taken all the same", said)

    def _warn_of_grown(self, names: Sequence[str], groups: np.ndarray) -> None:
        measured = dict(zip(self.plates, self.images, strict=True))
        counts = np.bincount(groups[groups >= 0], minlength=len(names)).tolist()
        grown = [
            (name, count) for name, count in zip(names, counts, strict=True) if 0 <= measured.get(name, -1) < count
        ]
        if grown:
            name, now = grown[0]
            others = f", and {len(grown) - 1} others have grown, too" if len(grown) > 1 else ""
            log.warning(
                "plate '%s' was measured on %d images, and this screen has %d of it%s: measure again to use them all",
                name,
                measured[name],
                now,
                others,
            )

    def check(self, file: Path, **expected: object) -> None:
        """Raise CheckpointError where it is not what is expected of its attributes; names the first difference."""
        for key, value in expected.items():
            own = getattr(self, key)
            if own == value or (key == "transform" and own is None):
                continue
            shown = "other weights" if key == "encoder" else f"{key} {own}, not {value}"
            raise CheckpointError(f"'{file}' was calibrated with {shown}; calibrate again", "calibrate")


def plates_data(
    screen: Screen, names: Sequence[str], groups: np.ndarray, label: str, only: Iterable[int]
) -> dict[str, Any]:
    """What plates are made of, by name, to be kept with their statistics.

    Args:
        screen: that they were measured on.
        names: of its groups.
        groups: (N,) of its rows, -1 for those that were not read.
        label: of the statistics: those of controls do not depend on other images.
        only: the groups that were measured.
    """
    keys = image_keys(screen)
    members = _members(screen, groups, label, only)
    return {names[group]: plate_fingerprint(screen, rows, keys) for group, rows in members.items()}


def _members(screen: Screen, groups: np.ndarray, label: str, only: Iterable[int]) -> dict[int, np.ndarray]:
    """The rows of some groups that statistics are taken from; without groups that have none."""
    statistics = Statistics.labelled(label, (), None, "negative")
    rows = np.flatnonzero(np.isin(groups, list(only)))
    if WORDS[statistics.word].needs_controls:
        rows = rows[screen.reference(statistics.controls)[rows]]
    rows = rows[np.argsort(groups[rows], kind="stable")]
    found, starts = np.unique(groups[rows], return_index=True)
    return dict(zip(found.tolist(), np.split(rows, starts[1:]), strict=True)) if len(rows) else {}


def _weights(encoder: nn.Module, statistics: Statistics) -> str:
    """A digest of what the moments of plates depend on in a network."""
    own = digest(encoder)
    return hashlib.sha256(f"{own}{tuning_state(encoder)}".encode()).hexdigest() if statistics.tuned else own


def calibration_file(checkpoint: Path, elsewhere: str | Path | None = None, label: str = "plate") -> Path:
    """Where the calibrated statistics of a checkpoint are.

    Args:
        checkpoint: they are beside it,
        elsewhere: unless this file is named.
        label: of the statistics that they were measured with; those of all rows of a plate have no name of their own.

    >>> calibration_file(Path("checkpoints/mine/last.pt")).name
    'last.calibrated.pt'
    >>> calibration_file(Path("checkpoints/mine/last.pt"), label="controls/all").name
    'last.calibrated-controls-all.pt'
    """
    own = "" if label == "plate" else f"-{label.replace('/', '-')}"
    return checkpoint.with_suffix(f".calibrated{own}.pt") if elsewhere is None else Path(elsewhere)


def check_calibration(encoder: nn.Module, file: Path, statistics: Statistics, transform: object) -> Calibration:
    """What a file holds that new plates can be added to: call it before anything is measured.

    What was measured with other weights is of no use any more, which is said.

    Raises:
        CheckpointError: the file belongs to another word, other columns or another transform.
    """
    nothing = Calibration.empty(encoder, statistics, transform)
    if not file.exists():
        return nothing
    old = Calibration.read(file)
    old.check(file, word=nothing.word, by=nothing.by)
    if old.encoder != nothing.encoder:
        log.warning("'%s' was calibrated with other weights; it is replaced", file)
        return nothing
    old.check(file, transform=nothing.transform)
    return old


def save_calibration(
    encoder: nn.Module,
    file: Path,
    statistics: Statistics,
    transform: object,
    images: Mapping[str, int],
    data: Mapping[str, Any],
) -> list[str]:
    """Write the calibrated statistics of ``encoder``; other plates that the file holds with these weights stay.

    Args:
        encoder: calibrated by :func:`biomass.inference.calibrate_plates`.
        file: written whole or not at all.
        statistics: the word and the columns that it was calibrated with; names the plates.
        transform: what was done to an image.
        images: how many of each plate were read, by its name.
        data: what each plate is made of, see :func:`plates_data`.

    Returns:
        The names of all plates in the file.

    Raises:
        CheckpointError: as :func:`check_calibration`.
    """
    new = Calibration.of(encoder, statistics, transform, images, data)
    whole = check_calibration(encoder, file, statistics, transform).merged(new)
    whole.save(file)
    return whole.plates


def use_calibration(
    encoder: nn.Module,
    statistics: Statistics,
    checkpoint: Path,
    elsewhere: str | None,
    screen: Screen,
    transform: object,
    splits: Sequence[str] = (),
    other_data: bool = False,
) -> None:
    """Give ``encoder`` its calibrated statistics, if it is to take them; else do nothing.

    Args:
        encoder: of the checkpoint.
        statistics: the word, the columns that make a group, and the names of the groups.
        checkpoint: the statistics are beside it,
        elsewhere: unless this file is named.
        screen: what the encoder will run on,
        transform: after this was done to an image.
        splits: which of the screen is used; none for all.
        other_data: take the statistics of a plate although it is another one now.

    Raises:
        CheckpointError: there is no such file, or it belongs to other weights, columns or transforms.
        DataError: a group that is used is not in the file, or not the one that was measured; names the first.
    """
    if statistics.word != "calibrated":
        return
    file = calibration_file(checkpoint, elsewhere)
    assert statistics.names is not None
    if not file.is_file():
        raise CheckpointError(f"there are no calibrated statistics '{file}'; calibrate the plates first", "calibrate")
    known = Calibration.read(file)
    known.check(file, by=list(statistics.by), encoder=digest(encoder), transform=repr(transform))
    rows = screen.table["split"].isin(splits).to_numpy() if splits else np.ones(len(screen), bool)
    groups = screen.groups(statistics.by)
    used = np.unique(groups[rows])
    there = set(known.plates)
    missing = [statistics.names[group] for group in used if statistics.names[group] not in there]
    if missing:
        others = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise DataError(
            f"plate '{missing[0]}'{others} is not among the {len(known.plates)} plates of '{file}'; calibrate it, too",
            "calibrate",
        )
    of_used = np.where(np.isin(groups, used), groups, -1)
    known.compare(screen, statistics.names, of_used, "calibrate_again", other_data, file)
    known.give(encoder, statistics.names)
