"""Downloads that go on where they were cut off, and archives that cannot write outside their folder."""

import gzip
import lzma
import re
import shutil
import tarfile
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
from biomass.errors import ConfigError, DataError, one_line

_ATTEMPTS = 5  # connections that may be cut off before fetch gives up
_BLOCK = 1 << 20  # bytes read at a time
_TIMEOUT = 60  # seconds without any byte before a connection counts as cut off
_REMEDY = "delete it, and start again to download it again"

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
        bar = tqdm(desc=part.stem, total=total, initial=done, unit="B", unit_scale=True, disable=None)
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

    Raises:
        DataError: the archive is damaged or cut off, or a member would end up outside the folder or is neither a file
            nor a folder, or is encrypted or packed in a way that is not known. What came before that member has been
            written.
        ConfigError: the folder cannot be written; nothing of it is left.
    """
    try:
        with writing(folder):
            _extract(archive, folder)
    except ConfigError:  # of a disk that is full, mostly: what was extracted is of no use, and in the way
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _extract(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open("rb") as file:
            kind = file.read(2)
        if kind == b"PK":
            _extract_zip(archive, folder)
        else:
            _extract_tar(archive, folder, zipped=kind == b"\x1f\x8b")
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"archive '{archive}' is damaged ({one_line(error)}): {_REMEDY}") from error
    except RuntimeError as error:  # of zipfile: it is encrypted, or, as NotImplementedError, packed in an unknown way
        raise DataError(f"archive '{archive}' is refused ({one_line(error)}): {_REMEDY}") from error


def _extract_tar(archive: Path, folder: Path, zipped: bool) -> None:
    label = f"Extracting {archive.name}"
    with archive.open("rb") as raw, tqdm.wrapattr(raw, "read", _size(archive), desc=label, disable=None) as watched:
        source = cast(BinaryIO, watched)
        stream = gzip.GzipFile(fileobj=source) if zipped else source
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"archive '{archive}' is refused: its member '{member.name}' is a link or a device; {_REMEDY}"
                    )
                _check_inside(archive, member.name)
                tar.extract(member, folder, filter="data")
        while stream.read(_BLOCK):  # to the checksum of gzip: tarfile takes a cut between two members for the end
            pass


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in tqdm(file.infolist(), f"Extracting {archive.name}", unit="file", disable=None):
            _check_inside(archive, member.filename)
            file.extract(member, folder)


def _check_inside(archive: Path, member: str) -> None:
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise DataError(
            f"archive '{archive}' is refused: its member '{member}' would be written outside the folder; {_REMEDY}"
        )
