"""Shards: a command that is run in parts (``3/16``), as the jobs of an array, and once more to join them (``merge``).

A shard is whole plates. Which these are follows from the plates and from how many shards there are, and from nothing
else: so no shard needs to know of the others, they may run anywhere and in any order, and one that dies is run again.
Each leaves its part in one folder, and beside it a note of how it was made::

    <folder>/3-of-16.json    {"shard": "3/16", "made": {"size": "48", "data": "81cc6b…"}, "done": true, …}

Shards that were made otherwise do not belong together: the next one says so when it begins, and the merge refuses them.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from biomass.atomic import check_writable, whole_file
from biomass.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    import numpy as np

    from biomass.screen import Screen

MERGE = "merge"
"""The word in place of ``3/16`` that puts finished shards together."""

DATA = "data"
"""The entry of what shards are made of that is no setting: a digest of the data."""

_MOST_BYTES = 1 << 26
_LISTED = 12  # ranges of shards that a message lists


class Shard(NamedTuple):
    """One of several parts of a command: ``number`` counts from 1 to ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """As files are called."""
        return f"{self.number}-of-{self.of}"


def parse_shard(text: str | None) -> Shard | str | None:
    """What was given for a shard: one, :data:`MERGE`, or nothing.

    Raises:
        ConfigError: it is neither.

    >>> parse_shard("3/16"), parse_shard("merge"), parse_shard(None)
    (Shard(number=3, of=16), 'merge', None)
    >>> parse_shard("0/4")
    Traceback (most recent call last):
    biomass.errors.ConfigError: shard '0/4' is none of 4: count from 1/4 to 4/4
    """
    if text is None or text == MERGE:
        return text
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        empty = "; a variable of the shell was perhaps empty" if text.startswith("/") or not text else ""
        raise ConfigError(f"shard {shown(text)} is none: write which of how many, as 3/16, or {MERGE}{empty}")
    shard = Shard(int(found[1]), int(found[2]))
    if not shard.of:
        raise ConfigError(f"shard '{text}' is none, as of 0 there are none: write which of how many, as 3/16")
    if not 1 <= shard.number <= shard.of:
        raise ConfigError(f"shard '{text}' is none of {shard.of}: count from 1/{shard.of} to {shard.of}/{shard.of}")
    return shard


def shards_of(out: str | Path) -> Path:
    """The folder for the shards of what a command writes."""
    return Path(f"{out}.shards")


def divide(plates: np.ndarray, of: int) -> np.ndarray:
    """Which shard each row belongs to, (N,) int64 from 1: whole plates, and about as many rows in each.

    The largest plate comes first, and each goes to the shard that has the fewest rows by then.

    Args:
        plates: (N,) the plate of each row, numbers from 0.
        of: how many shards there are.

    >>> import numpy as np
    >>> divide(np.array([0, 0, 0, 1, 2, 2, 3]), 2).tolist()
    [1, 1, 1, 2, 2, 2, 1]
    """
    import numpy as np

    rows = np.bincount(plates)
    shards = [(0, number) for number in range(1, min(of, len(rows)) + 1)]
    of_plate = np.zeros(len(rows), np.int64)
    for plate in np.argsort(-rows, kind="stable").tolist():
        size, number = heapq.heappop(shards)
        of_plate[plate] = number
        heapq.heappush(shards, (size + int(rows[plate]), number))
    return of_plate[plates]


def digest_of(screen: Screen) -> str:
    """What tells a screen from others, without reading its images: a hash of its table, and of what an image is."""
    import pandas as pd

    rows = pd.util.hash_pandas_object(screen.table, index=False).to_numpy()
    about = repr((list(screen.table), screen.pixels.channels, tuple(map(int, screen.pixels.size)), screen.classes))
    return hashlib.sha256(about.encode() + rows.tobytes()).hexdigest()


def digest_of_names(names: Sequence[str]) -> str:
    """What tells a list of names from others."""
    digest = hashlib.sha256()
    for start in range(0, len(names), 1 << 16):
        digest.update("\0".join([*names[start : start + (1 << 16)], ""]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Note(NamedTuple):
    """What a shard has left: which it is, how it was made, whether it is finished, and what else it says."""

    shard: Shard
    made: dict[str, str]
    done: bool
    more: dict[str, Any]


@dataclass(frozen=True)
class Shards:
    """The shards of one command.

    Attributes:
        folder: where they are kept.
        made: what all of them must have in common: settings as they are typed, with their values; and :data:`DATA`.
        option: what is typed before ``3/16``.
    """

    folder: Path
    made: Mapping[str, str]
    option: str

    def place(self, shard: Shard) -> Path:
        """Where a shard keeps its part."""
        return self.folder / shard.name

    def begin(self, shard: Shard) -> None:
        """Note that a shard is at work.

        Raises:
            ConfigError: the folder cannot be written, or holds shards of another command.
        """
        check_writable(self.folder)
        for other in self._notes():
            if other.shard != shard:
                self._compare(other, shard.of)
        self._write(Note(shard, dict(self.made), False, {}))

    def finish(self, shard: Shard, **more: Any) -> None:
        """Note that a shard is finished, and what the merge must know of it."""
        self._write(Note(shard, dict(self.made), True, more))

    def finished(self) -> list[Note]:
        """All shards, in their order, which are finished and belong together.

        Raises:
            ConfigError, DataError: they are not, or do not; says which, and what to type.
        """
        notes = self._notes()
        if not notes:
            raise DataError(
                f"there are no shards in '{self.folder}': run the same command with {self.option}1/2 and "
                f"{self.option}2/2, or as many as you like, and merge them then"
            )
        of = notes[0].shard.of
        for note in notes:
            self._compare(note, of)
        done = {note.shard.number for note in notes if note.done}
        lacking = [number for number in range(1, of + 1) if number not in done]
        if lacking:
            raise DataError(self._not_finished(lacking, of))
        return notes

    def _not_finished(self, lacking: Sequence[int], of: int) -> str:
        listed, example = ranges(lacking), f"{self.option}{Shard(lacking[0], of)}"
        those, each = (
            (f"shard {listed} of {of} is", f"with {example}")
            if len(lacking) == 1
            else (f"shards {listed} of {of} are", f"for each of them, as with {example}")
        )
        again = f"run the same command {each} (as a job array: --array={listed}), and merge then"
        return f"{those} not finished: {again}"

    def remove(self) -> None:
        """Remove all shards, which are merged."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, shard: Shard, rows: int, what: str) -> str:
        """The last line of a shard."""
        if not rows:
            return f"shard {shard} has nothing to do: there are fewer than {shard.of} of what is divided"
        return (
            f"shard {shard} holds {rows} {what}; when all are finished, run the same command with {self.option}{MERGE}"
        )

    def again(self, shard: Shard) -> str:
        """What to do with a shard that is not what it should be, for a message."""
        return f"run the same command with {self.option}{shard} again, and merge then"

    def _write(self, note: Note) -> None:
        with whole_file(self._file(note.shard)) as part:
            part.write_text(json.dumps({"shard": str(note.shard), "made": note.made, "done": note.done, **note.more}))

    def _file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.json"

    def _notes(self) -> list[Note]:
        """The notes that can be read, in the order of their shards."""
        found = (_read_note(file) for file in self.folder.glob("*-of-*.json"))
        return sorted((note for note in found if note is not None), key=lambda note: note.shard)

    def _compare(self, other: Note, of: int) -> None:
        """Refuse a shard of another command."""
        if other.shard.of != of:
            raise ConfigError(
                f"'{self.folder}' holds shard {other.shard}, and this is about shards of {of}: take shards of "
                f"{other.shard.of}, or delete '{self.folder}' to begin again"
            )
        for name in dict.fromkeys([*self.made, *other.made]):  # settings first, what follows from them last
            was, now = other.made.get(name, ""), self.made.get(name, "")
            if was == now:
                continue
            if name == DATA:
                raise DataError(
                    f"shard {other.shard} in '{self.folder}' was made of other data, which have changed since: delete "
                    f"'{self.folder}', and run all shards again"
                )
            raise ConfigError(
                f"shard {other.shard} in '{self.folder}' was made with {_typed(name, was)}, and this is with "
                f"{_typed(name, now)}: give the same, or delete '{self.folder}' to begin again"
            )


def _typed(name: str, value: str) -> str:
    if not value:
        return f"no {name}"
    return f"{name}{' ' if name.startswith('-') else '='}{value}"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers, ascending, as a job array is told them.

    >>> ranges([2, 4, 5, 6, 9])
    '2,4-6,9'
    """
    import numpy as np

    parts = np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) != 1) + 1)
    listed = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return ",".join([*listed[:_LISTED], *["…"] * (len(listed) > _LISTED)])


def _read_note(file: Path) -> Note | None:
    """A note; None where there is none that can be read, so that its shard is run again."""
    from biomass.bounds import read_json

    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        more = read_json(file.read_bytes())
        shard, made, done = parse_shard(more.pop("shard")), more.pop("made"), more.pop("done")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None
    texts = isinstance(made, dict) and all(isinstance(value, str) for value in made.values())
    fits = isinstance(shard, Shard) and file.name == f"{shard.name}.json" and texts and isinstance(done, bool)
    return Note(shard, made, done, more) if fits and isinstance(shard, Shard) else None
