"""Records of Zenodo: their files, checked against the checksums that the record states."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from biomass.bounds import read_json
from biomass.datasets.download import fetch
from biomass.errors import DataError

URL = "https://zenodo.org"

_TIMEOUT = 60  # seconds without an answer


class RecordFile(NamedTuple):
    """A file of a record: its name, its address, and its checksum, such as ``md5:…``."""

    name: str
    url: str
    checksum: str


def list_record(number: str, url: str = URL) -> list[RecordFile]:
    """The files of a record.

    Raises:
        OSError: the server cannot be reached, or answers something else.
    """
    url = f"{url}/api/records/{number}"
    request = Request(url, headers={"User-Agent": "biomass"})  # Zenodo refuses the names of common libraries
    with urlopen(request, timeout=_TIMEOUT) as response:
        text = response.read()
    try:
        files = read_json(text)["files"]
        return [RecordFile(Path(file["key"]).name, file["links"]["self"], file["checksum"]) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{url} does not list files and checksums") from error


def fetch_files(files: Sequence[RecordFile], folder: Path) -> None:
    """Download files into a folder, see :func:`biomass.datasets.download.fetch`.

    Raises:
        ConfigError: a file cannot be written.
        OSError: the server cannot be reached, or stops in the middle.
        DataError: a file does not have its checksum. It is removed, so that the next call fetches it again.
    """
    for file in files:
        path = fetch(file.url, folder / file.name)
        algorithm, _, expected = file.checksum.rpartition(":")
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, algorithm or "md5").hexdigest()
        if found != expected:
            path.unlink()
            raise DataError(
                f"'{path}' arrived damaged ({algorithm} {found}, the record says {expected}): it was removed; start "
                "again to download it again"
            )
