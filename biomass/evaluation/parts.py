"""What is kept of each plate while a screen is encoded: a file, with what it was made from.

A run that was stopped goes on with the plates whose files are missing, or were made from something else.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from biomass.atomic import whole_file
from biomass.errors import BadImageError
from biomass.fingerprint import image_keys, plate_fingerprint
from biomass.identifiers import folder_name
from biomass.screen import Screen


def write_profiles(table: pd.DataFrame, file: Path, fingerprint: str = "") -> None:
    """Write a profile table as Parquet; it appears under its name when it is complete, and not before.

    Args:
        table: as the functions here give it.
        file: where to; its folder is made.
        fingerprint: what it was made from, kept in the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"fingerprint": fingerprint.encode()})
    with whole_file(file) as part:
        pq.write_table(arrow, part)


def plate_files(screen: Screen, groups: np.ndarray, by: Sequence[str], folder: Path) -> list[Path]:
    """Where the profiles of each group are kept: a folder for each column but the last, which names the file."""
    names = screen.keys(by).iloc[np.unique(groups, return_index=True)[1]].astype(str).to_numpy()
    quoted = [[folder_name(name) for name in row] for row in names]
    return [folder.joinpath(*row[:-1], f"{row[-1]}.parquet") for row in quoted]


def members_of(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, by its number."""
    return np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])


def fingerprints(
    screen: Screen, groups: np.ndarray, table: pd.DataFrame, *settings: str, only: Collection[int] | None = None
) -> list[str]:
    """What the profiles of each group depend on: settings, its rows of a table, and the pixels of a few of them.

    Args:
        screen: where the images are.
        groups: (N,) the group of each row.
        table: (N rows) what is known of them.
        settings: of what makes the profiles.
        only: numbers of groups; that of any other is an empty text.
    """
    common = "\n".join([*settings, repr((screen.pixels.channels, screen.pixels.size))]).encode()
    hashes = pd.util.hash_pandas_object(table, index=False).to_numpy()
    members = members_of(groups)
    samples = [np.unique(rows[np.linspace(0, len(rows) - 1, 3, dtype=np.int64)]) for rows in members]
    return [
        hashlib.sha256(common + hashes[rows].tobytes() + _pixels(screen, sample)).hexdigest()
        if only is None or group in only
        else ""
        for group, (rows, sample) in enumerate(zip(members, samples, strict=True))
    ]


def pixel_hashes(screen: Screen, members: Iterable[np.ndarray], only: Collection[int] | None = None) -> list[str]:
    """A hash of the pixels of some images of each group: more of them than are in :func:`fingerprints`.

    Args:
        screen: where the images are.
        members: the rows of each group.
        only: numbers of groups; that of any other is an empty text.
    """
    keys = image_keys(screen)
    samples = [
        plate_fingerprint(screen, rows, keys)["sample"] if only is None or group in only else None
        for group, rows in enumerate(members)
    ]
    return [
        ""
        if one is None
        else hashlib.sha256(repr([(key, image["pixels"]) for key, image in one.items()]).encode()).hexdigest()
        for one in samples
    ]


def read_fingerprint(file: Path) -> str | None:
    """What the profiles in a file were made from; None where there is no file that can be read."""
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata.get(b"fingerprint", b"").decode()


def _pixels(screen: Screen, rows: np.ndarray) -> bytes:
    """The pixels of some rows; nothing for those that cannot be read."""
    try:
        return np.ascontiguousarray(screen.read(rows)).tobytes()
    except BadImageError:
        return b"".join(_pixels(screen, row) for row in np.split(rows, len(rows))) if len(rows) > 1 else b""
