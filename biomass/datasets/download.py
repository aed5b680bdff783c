"""Downloads that go on where they were cut off, and archives that cannot write outside their folder."""

import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from biomass.atomic import no_link, whole_file, writing
from biomass.errors import DataError, one_line, printable

_ATTEMPTS = 5  # connections that may be cut off before fetch gives up
_BLOCK = 1 << 20  # bytes read at a time
_TIMEOUT = 60  # seconds without any byte before a connection counts as cut off
_REMEDY = "delete it, and start again to download it again"

MOST_BYTES, MOST_MEMBERS, MOST_RATIO = 500 << 30, 5_000_000, 100
"""What an archive may hold and unpack to: RxRx1-WILDS has 7 GB and 125,510 images, and images hardly shrink."""
_SMALL = 64 << 20  # bytes that may come of any archive, however small
_LONGEST_NAME, _LONGEST_PATH = 255, 1000  # bytes of a name, signs of a path
_SHOWN = 80  # signs of a name in a message

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,
)

_ARCHIVE = re.compile(
    r"(?P<name>.+\.(?:tar\.gz|tgz|tar|zip))(?:[._-]?part[._-]?(?P<part>\w+)|[._-](?P<piece>\d+|a[a-z]))?", re.IGNORECASE
)


def fetch(url: str, to: Path) -> Path:
    """Download a file, with a progress bar where a person is watching.

    What has arrived waits in ``<to>.part``: a connection that is cut off is taken up again, here and by the next call,
    if the server can continue in the middle. ``to`` appears when it is complete, and not before.

    Raises:
        ConfigError: it cannot be written.
        OSError: the server cannot be reached, refuses, or stops in the middle (``ConnectionError``, ``TimeoutError``).
    """
    if to.exists():
        return to
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            _fetch_rest(url, part)
            break
        except (ConnectionError, TimeoutError):
            if attempt == _ATTEMPTS or _size(part) <= before:
                raise
    with writing(to):
        return part.rename(to)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_rest(url: str, part: Path) -> None:
    """Download what comes after the bytes that ``part`` has."""
    done = _size(part)
    rest = {"Range": f"bytes={done}-"} if done else {}
    request = Request(url, headers={"User-Agent": "biomass", **rest})  # some servers refuse Python's own name
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not done:
            raise
        if error.headers["Content-Range"] == f"bytes */{done}":  # nothing comes after them: it is complete
            return
        part.unlink()
        raise ConnectionError(f"{url} is not the file that was begun; start again") from error
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            if response.status == 206:
                raise ConnectionError(f"{url} continues at the wrong place")
            done = 0
        length = response.headers["Content-Length"]
        total = done + int(length) if length else None
        bar = tqdm(desc=printable(part.stem), total=total, initial=done, unit="B", unit_scale=True, disable=None)
        with bar, writing(part), open(part, "ab" if done else "wb", opener=no_link) as file:
            while block := _read(response, url):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"{url} was cut off after {_size(part)} of {total} bytes")


def _read(response: HTTPResponse, url: str) -> bytes:
    """The next bytes of a download, none at its end."""
    try:
        return response.read(_BLOCK)
    except (HTTPException, OSError) as error:  # of the network, and not of the disk
        raise ConnectionError(f"{url} was cut off ({one_line(error)})") from error


def find_archives(folder: Path) -> dict[Path, list[Path]]:
    """All archives below a folder, as the path each would have in one piece → its pieces, in order.

    Knows ``.tar``, ``.tar.gz``, ``.tgz`` and ``.zip``, and pieces of them such as ``x.tar.gz.part-00``, ``x.zip.001``
    or ``x.tar.aa``.
    """
    pieces: dict[Path, list[tuple[int, str, Path]]] = defaultdict(list)
    for path in folder.rglob("*"):
        match = _ARCHIVE.fullmatch(path.name)
        if match and path.is_file():
            piece = match["part"] or match["piece"] or ""
            pieces[path.with_name(match["name"])].append((len(piece), piece, path))  # part 9 comes before part 10
    return {whole: [path for *_, path in sorted(parts)] for whole, parts in sorted(pieces.items())}


def join(pieces: Iterable[Path], to: Path) -> Path:
    """Write the pieces of a file one after the other."""
    with whole_file(to) as part, part.open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as file:
                shutil.copyfileobj(file, whole, _BLOCK)
    return to


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar (plain or gzip) or zip archive, with a progress bar where a person is watching.

    All of it comes into the folder, or nothing: it is extracted beside the folder first. Archives within the archive
    are files like others.

    Raises:
        DataError: the archive is damaged or cut off; is larger, has more members, or is packed more densely than any
            data set of images (:data:`MOST_BYTES`, :data:`MOST_MEMBERS`, :data:`MOST_RATIO`); is encrypted or packed in
            a way that is not known; or a member would end up outside the folder, is neither a file nor a folder, is
            there twice or with other case, or has a name that a disk or a terminal cannot take.
        ConfigError: the folder cannot be written.
    """
    part = folder.with_name(f".{archive.name}.part")
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
            _extract(archive, part)
            _move_into(part, folder)
    except _DAMAGE as error:
        raise DataError(f"archive '{archive}' is damaged ({one_line(error)}): {_REMEDY}") from error
    except RuntimeError as error:  # of zipfile: it is encrypted, or, as NotImplementedError, packed in an unknown way
        raise DataError(f"archive '{archive}' is refused ({one_line(error)}): {_REMEDY}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    with archive.open("rb") as file:
        kind = file.read(2)
    if kind == b"PK":
        _extract_zip(archive, folder)
    else:
        _extract_tar(archive, folder, zipped=kind == b"\x1f\x8b")


def _move_into(part: Path, folder: Path) -> None:
    """Move what was extracted to a folder, which may hold what other archives have brought."""
    if not folder.exists():
        part.rename(folder)
        return
    for here, folders, files in os.walk(part):
        place = folder / Path(here).relative_to(part)
        for name in folders:
            (place / name).mkdir(exist_ok=True)
        for name in files:
            (Path(here) / name).replace(place / name)


class _Unpacked:
    """The stream in a gzip file, which ends with an error where it is longer than the file can rightly make it."""

    def __init__(self, archive: Path, packed: BinaryIO) -> None:
        self._archive, self._packed, self._stream = archive, packed, gzip.GzipFile(fileobj=packed)
        self._count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        _check_size(self._archive, self._count, self._packed.tell())
        return data


def _extract_tar(archive: Path, folder: Path, zipped: bool) -> None:
    label = printable(f"Extracting {archive.name}")
    members = _Members(archive)
    with archive.open("rb") as raw, tqdm.wrapattr(raw, "read", _size(archive), desc=label, disable=None) as watched:
        source = cast(BinaryIO, watched)
        stream = cast(BinaryIO, _Unpacked(archive, source)) if zipped else source
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise members.refused(member.name, "is a link or a device")
                members.check(member.name, member.isdir(), member.size)
                tar.extract(member, folder, filter="data")
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        while stream.read(_BLOCK):  # to the checksum of gzip: tarfile takes a cut between two members for the end
            pass


def _extract_zip(archive: Path, folder: Path) -> None:
    members = _Members(archive)
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise members.refused(member.orig_filename, "is a link or a device")
            members.check(member.orig_filename, member.is_dir(), member.file_size)
        for member in tqdm(file.infolist(), printable(f"Extracting {archive.name}"), unit="file", disable=None):
            file.extract(member, folder)


class _Members:
    """The members of an archive that have been met, each of which is checked before it is written."""

    def __init__(self, archive: Path) -> None:
        self._archive, self._packed = archive, _size(archive)
        self._bytes = 0
        self._count = 0
        self._met: dict[str, tuple[str, bool]] = {}  # of each path, without case: as it was, and whether it is a folder
        self._last = 0

    def check(self, name: str, is_folder: bool, size: int) -> None:
        """Refuse a member that is not what a member of a data set is; say why."""
        self._count += 1
        self._bytes += size
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
            raise self.refused(name, "would be written outside the folder")
        if size < 0 or (not path.parts and not is_folder):
            raise self.refused(name, "has no name or no size")
        if name != printable(name):
            raise self.refused(name, "has a name with signs that cannot be shown")
        if max(map(len, map(os.fsencode, [*path.parts, ""]))) > _LONGEST_NAME or len(name) > _LONGEST_PATH:
            raise self.refused(name, "has a name that is too long for a disk")
        if self._count > MOST_MEMBERS:
            raise DataError(
                f"archive '{self._archive}' is refused: it has more than {MOST_MEMBERS:,} members; {_REMEDY}"
            )
        _check_size(self._archive, self._bytes, self._packed)
        for above in (one for one in path.parents if one.parts):
            self._meet(str(above), True)
        if path.parts:
            self._meet(str(path), is_folder)

    def _meet(self, path: str, is_folder: bool) -> None:
        before = self._met.setdefault(unicodedata.normalize("NFC", path).casefold(), (path, is_folder))
        new = self._last != len(self._met)
        self._last = len(self._met)
        if before[0] != path:
            raise self.refused(path, f"differs from '{before[0]}' in nothing but case")
        if not new and not (is_folder and before[1]):  # folders come again
            raise self.refused(path, "is there twice")

    def refused(self, name: str, why: str) -> DataError:
        shown = f"{name[:_SHOWN]}…" if len(name) > _SHOWN else name
        return DataError(f"archive '{self._archive}' is refused: its member '{shown}' {why}; {_REMEDY}")


def _check_size(archive: Path, unpacked: int, packed: int) -> None:
    if unpacked > MOST_BYTES:
        raise DataError(f"archive '{archive}' is refused: it holds more than {MOST_BYTES >> 30} GiB; {_REMEDY}")
    if unpacked > _SMALL and unpacked > MOST_RATIO * packed:
        raise DataError(
            f"archive '{archive}' is refused: it is {MOST_RATIO} times larger unpacked, as no images are; {_REMEDY}"
        )
