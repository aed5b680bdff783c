"""How much a small file may become: packed data, YAML whose anchors multiply, tables that declare many rows."""

import gzip
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from biomass.errors import DataError

SMALL, RATIO, LARGEST = 64 << 20, 200, 16 << 30
"""Bytes that any packed file may become; how many times larger than packed others may; and the most of all."""
CELLS_A_BYTE = 2000
"""Values of a table that a byte of its file may stand for: a column that is the same everywhere takes little."""
NODES = 1_000_000
"""Values of a YAML file, those that stand for others counted as often as they are named."""


def most(packed: int) -> int:
    """The bytes that a file of ``packed`` bytes may become."""
    return min(max(SMALL, RATIO * packed), LARGEST)


def unpacked(raw: bytes, name: str) -> bytes:
    """The bytes that gzip has packed.

    Raises:
        DataError: they are more than a table can become.
        EOFError, zlib.error, gzip.BadGzipFile: they are damaged.

    >>> unpacked(gzip.compress(b"plate,well"), "table 'a.csv.gz'")
    b'plate,well'
    """
    limit = most(len(raw))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        found = stream.read(limit + 1)
    if len(found) > limit:
        raise DataError(f"{name} is {len(raw):,} bytes that become more than {limit:,}, as no table does: unpack it")
    return found


def check_zip(file: Path | io.BytesIO, size: int, name: str) -> None:
    """Make sure that the members of a zip archive do not become more than those of any workbook or array.

    Raises:
        DataError: they do.
        zipfile.BadZipFile, OSError: it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > most(size):
        raise DataError(f"{name} is {size:,} bytes that become {total:,}: make it again, unpacked or as another file")


def check_cells(rows: int, columns: int, size: int, name: str) -> None:
    """Make sure that a table of so many rows and columns can be in a file of so many bytes.

    Raises:
        DataError: it cannot.

    >>> check_cells(10**12, 3, 4000, "table 'a.parquet'")
    Traceback (most recent call last):
    biomass.errors.DataError: table 'a.parquet' declares 1,000,000,000,000 rows in 4,000 bytes: write or copy it again
    """
    if rows < 0 or rows * max(columns, 1) > max(CELLS_A_BYTE * size, 10_000_000):
        raise DataError(f"{name} declares {rows:,} rows in {size:,} bytes: write or copy it again")


def read_json(text: str | bytes) -> Any:
    """As ``json.loads``; one that is nested too deeply is a ``ValueError``, as any that is damaged."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class BoundedLoader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's YAML, in which anchors cannot multiply a few lines to millions of values, or hold themselves.

    >>> yaml.load("[&a {x: 1}, *a]", Loader=BoundedLoader)
    [{'x': 1}, {'x': 1}]
    >>> yaml.load("&a [*a]", Loader=BoundedLoader)
    Traceback (most recent call last):
    yaml.error.YAMLError: an anchor holds itself
    """

    most = NODES

    def get_single_node(self) -> Any:
        """The document, if it is not too large."""
        try:
            node = super().get_single_node()
            if node is not None and _count(node, {}) > self.most:
                raise yaml.YAMLError(f"it holds more than {self.most:,} values, with those that its anchors stand for")
        except RecursionError:
            raise yaml.YAMLError("it is nested too deeply") from None
        return node


def _count(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for, each counted as often as it is named."""
    if id(node) not in known:
        known[id(node)] = math.nan  # as long as it is not known
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [one for part in inside for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_count(one, known) for one in parts)
    if math.isnan(known[id(node)]):
        raise yaml.YAMLError("an anchor holds itself")
    return known[id(node)]
