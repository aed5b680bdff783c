"""TensorBoard's files of events, written at once and carried over when a run goes on.

TensorBoard's own writer is a thread, which hears of a full disk late and may be anywhere when a process is stopped.
Here a record is in the file when the call returns.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from biomass.atomic import whole_file

EVENTS = "events.out.tfevents.*"
_HEADER = struct.Struct("<QI")  # the length of a record, and a checksum of that; another one stands behind the record
_CHECKSUM = 4


class Appended:
    """A file to which pieces are added, each of them whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, piece: bytes) -> None:
        """Write a piece. An error of the file system leaves the file as it was."""
        size = os.fstat(self._file).st_size
        try:
            left = memoryview(piece)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def close(self) -> None:
        """Call this in the end; a second time it does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Board:
    """Adds what a run shows in TensorBoard to one file, under the names of others that are there.

    Args:
        folder: of the run.
        keeps: (step, tag) → whether a record of an earlier process of this run stays; None: nothing does.
    """

    def __init__(self, folder: Path, keeps: Callable[[int, str], bool] | None) -> None:
        old = sorted(folder.glob(EVENTS))
        kept = list(_kept(old, keeps)) if keeps is not None else []
        name = f"{EVENTS.removesuffix('*')}{_later(old):010d}.{socket.gethostname()}.{os.getpid()}.0"
        with whole_file(folder / ".curves") as part:  # TensorBoard reads whatever has the other name in its own
            part.write_bytes(b"".join(map(record, [*_beginning(), *kept])))
        (folder / ".curves").replace(folder / name)
        for file in old:
            file.unlink()
        self._file = Appended(folder / name)
        self._waiting: list[bytes] = []

    def add(self, step: int, summary: Any) -> None:
        """Remember a summary (as :mod:`torch.utils.tensorboard.summary` makes it) until :meth:`write`."""
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._waiting.append(record(event.SerializeToString()))

    def write(self) -> None:
        """Write what is remembered."""
        waiting, self._waiting = b"".join(self._waiting), []
        self._file.add(waiting)

    def close(self) -> None:
        """Close the file. What was not written is forgotten."""
        self._file.close()


def record(data: bytes) -> bytes:
    """A record as it stands in a file: length, content, and checksums of both.

    >>> list(records(record(b"one") + record(b"two") + record(b"torn")[:-1]))
    [b'one', b'two']
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file, up to the first that is damaged or was torn by a kill."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    place = 0
    while place + _HEADER.size <= len(content):
        length, checksum = _HEADER.unpack_from(content, place)
        begins = place + _HEADER.size
        place = begins + length + _CHECKSUM
        if place > len(content) or masked_crc32c(content[begins - _HEADER.size : begins - _CHECKSUM]) != checksum:
            return
        yield content[begins : begins + length]


def _beginning() -> list[bytes]:
    """What a file begins with: its version, and that whatever TensorBoard has read of this run is read again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    version = Event(wall_time=time.time(), file_version="brain.Event:2")
    restart = Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START))
    return [version.SerializeToString(), restart.SerializeToString()]


def _kept(files: Iterable[Path], keeps: Callable[[int, str], bool]) -> list[bytes]:
    """The events that stay, by step; of a tag at a step the first."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[tuple[int, str], bytes] = {}
    for file in files:
        for data in records(file.read_bytes()):
            try:
                event = Event.FromString(data)
            except DecodeError:
                break
            for value in event.summary.value:
                if keeps(event.step, value.tag) and (event.step, value.tag) not in found:
                    one = Event(wall_time=event.wall_time, step=event.step)
                    one.summary.value.append(value)
                    found[event.step, value.tag] = data if len(event.summary.value) == 1 else one.SerializeToString()
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _later(old: Iterable[Path]) -> int:
    """Seconds for a name that sorts behind those of other files, whatever the clocks of other machines said."""
    times = [int(part) for file in old if (part := file.name.split(".")[3]).isdecimal()]
    return max([int(time.time()), *(one + 1 for one in times)])
