"""Looking at the files of a large folder in shards: their sizes and times are what a network disk is slow to tell."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from biomass.atomic import whole_file
from biomass.datasets.lab_files import COLUMNS, Found, list_files, look_at_files, sort_files
from biomass.errors import DataError
from biomass.shards import Shard, Shards, digest_of_names


class Listing:
    """The files of a folder by their names alone, which every shard lists and none but one looks at.

    Args:
        folder: of images, or a table in it.
        shards: the folder of the shards, which may lie in it.

    Attributes:
        digest: what tells the names from others.
    """

    def __init__(self, folder: Path, shards: Path) -> None:
        self._root = folder.parent if folder.is_file() else folder
        table, self._hidden = list_files(self._root, look=False, without=shards)
        self._paths = table["path"].to_numpy(object)
        self.digest = digest_of_names(self._paths.tolist())

    def look(self, shards: Shards, shard: Shard) -> int:
        """Look at the files of a shard, which are neighbours by their names, and keep what is found.

        Returns:
            How many there are.
        """
        mine = self._paths[slice(*self._bounds(shard))]
        table = look_at_files(self._root, mine.tolist())
        with whole_file(_file(shards, shard)) as part:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), part, write_page_checksum=True)
        return len(mine)

    def join(self, shards: Shards, of: int) -> Found:
        """The files of the folder, as all shards have found them.

        Raises:
            DataError: what a shard has kept is gone or damaged.
        """
        parts = []
        for number in range(1, of + 1):
            shard = Shard(number, of)
            try:
                part = pq.read_table(_file(shards, shard), page_checksum_verification=True).to_pandas()[COLUMNS]
            except (OSError, KeyError, pa.ArrowException) as error:
                raise DataError(f"shard {shard} is gone or damaged: {shards.again(shard)}") from error
            if part["path"].tolist() != self._paths[slice(*self._bounds(shard))].tolist():
                raise DataError(f"shard {shard} is of other files than it should be: {shards.again(shard)}")
            parts.append(part)
        return sort_files(pd.concat(parts, ignore_index=True), self._hidden)

    def _bounds(self, shard: Shard) -> tuple[int, int]:
        first, end = (len(self._paths) * number // shard.of for number in (shard.number - 1, shard.number))
        return first, end


def _file(shards: Shards, shard: Shard) -> Path:
    return shards.place(shard).with_suffix(".parquet")
