"""From class probabilities to tables of predictions: a row a field of view, or a row a well.

A row of a screen is a field of view or a cell of one. The probabilities of a field are the mean of those of its cells,
and those of a well the mean of those of its fields, each of which counts alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from biomass.atomic import whole_file
from biomass.errors import DataError
from biomass.evaluation.profiles import CONTROL, COUNT_CELLS, COUNT_FIELDS, NAMES, metadata_table
from biomass.screen import FIELD, PLATE, Screen

ABOUT = b"biomass.predictions"
"""What a file of predictions says of itself, as JSON in the metadata of its schema."""

COMBINED = {
    "fields": "mean of the probabilities of their cells",
    "wells": "mean of the probabilities of their fields",
}
"""How probabilities are combined, as such a file says it."""

_ROWS = 4096  # whose entropies are computed at once

_INNER = ("Metadata_cell", "Metadata_x", "Metadata_y")


@dataclass(frozen=True)
class Fields:
    """Which rows of a screen belong together.

    Attributes:
        screen: of the rows.
        first: (F,) the first row of each field, in the order of the table.
        of_row: (N,) the field of every row of the screen; -1 for rows that are left out.
    """

    screen: Screen
    first: np.ndarray
    of_row: np.ndarray

    @classmethod
    def of(cls, screen: Screen, rows: np.ndarray | None = None, apart: bool = False) -> "Fields":
        """The fields of view of a screen. Rows that do not say their site stand by themselves.

        Args:
            screen: of fields, or of cells.
            rows: those that are looked at; None: all.
            apart: every row stands by itself.

        >>> from biomass.screen import COLUMNS, make_screen
        >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 4) | {"label": 0, "site": ["2", "1", "2", ""]})
        >>> Fields.of(make_screen(table, None, ["a"])).of_row.tolist()
        [0, 1, 0, 2]
        """
        rows = np.arange(len(screen)) if rows is None else rows
        numbers = screen.groups(FIELD)[rows]
        alone = np.full(len(rows), True) if apart else (screen.table["site"] == "").to_numpy()[rows]
        numbers = np.where(alone, len(screen) + np.arange(len(rows)), numbers)
        codes, _ = pd.factorize(numbers)
        of_row = np.full(len(screen), -1, np.int64)
        of_row[rows] = codes
        return cls(screen, rows[np.unique(codes, return_index=True)[1]], of_row)

    def __len__(self) -> int:
        return len(self.first)


class FieldMeans:
    """The mean over the rows of each field of what a network makes of them, as it comes in.

    Args:
        fields: F fields.
        device: where the sums are kept.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 3) | {"label": 0, "site": ["1", "1", "2"]})
    >>> means = FieldMeans(Fields.of(make_screen(table, None, ["a"])))
    >>> means.add(torch.tensor([2, 0]), torch.tensor([[1.0], [2.0]]))
    >>> means.add(torch.tensor([1]), torch.tensor([[4.0]]))
    >>> means.values.tolist(), means.counts.tolist()
    ([[3.0], [1.0]], [2, 1])
    """

    def __init__(self, fields: Fields, device: torch.device | str = "cpu") -> None:
        self.fields = fields
        self.device = torch.device(device)
        self._of_row = torch.from_numpy(fields.of_row).to(self.device)
        self.sums = torch.zeros(len(fields), 0, device=self.device)
        self.counts = torch.zeros(len(fields), dtype=torch.int64, device=self.device)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Take in ``values`` (n, K) of the rows (n,) of the screen."""
        if not self.sums.shape[1]:
            self.sums = torch.zeros(len(self.fields), values.shape[1], device=self.device)
        field = self._of_row[rows.to(self.device)]
        self.sums.index_add_(0, field, values.to(self.device, torch.float32))
        self.counts.index_add_(0, field, torch.ones_like(field))

    @property
    def values(self) -> np.ndarray:
        """The means (F, K), float32; zeros where no row of a field was read."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).cpu().numpy()


@dataclass(frozen=True)
class Predictions:
    """What one network, or several, say of the fields of a screen.

    Attributes:
        fields: F fields.
        probabilities: (M, F, K) of M networks.
        counts: (F,) how many rows of a field were read; a field without any is in no table.
        classes: names of the K classes.
        about: of where they come from, plain values, for the file.
    """

    fields: Fields
    probabilities: np.ndarray
    counts: np.ndarray
    classes: Sequence[str]
    about: Mapping[str, Any]

    def of_fields(self) -> pd.DataFrame:
        """A row a field: ``Metadata_*``, then the columns of :func:`prediction_columns`."""
        screen, there = self.fields.screen, self._there
        about = describe_rows(screen, self.fields.first[there], self.fields.of_row, there)
        if (np.bincount(self.fields.of_row[self.fields.of_row >= 0]) > 1).any():
            about[COUNT_CELLS] = self.counts[there]
        return pd.concat([about, prediction_columns(self.probabilities[:, there], self.classes)], axis=1)

    def of_wells(self) -> pd.DataFrame:
        """A row a well, of the mean probabilities of its fields; none for fields that do not say their well."""
        screen, there = self.fields.screen, self._there
        first = self.fields.first[there]
        there, first = (x[(screen.table["well"] != "").to_numpy()[first]] for x in (there, first))
        well, _ = pd.factorize(screen.groups((*PLATE, "well"))[first])
        number = int(well.max(initial=-1)) + 1
        of_field = np.full(len(self.fields) + 1, -1, np.int64)
        of_field[there] = well
        rows = first[np.unique(well, return_index=True)[1]]
        about = describe_rows(screen, rows, of_field[self.fields.of_row], np.arange(number))
        about = about.drop(columns=NAMES["site"], errors="ignore")
        about[COUNT_FIELDS] = np.bincount(well, minlength=number)
        means = np.stack([_means(one[there], well, number) for one in self.probabilities])
        return pd.concat([about, prediction_columns(means, self.classes)], axis=1)

    @cached_property
    def _there(self) -> np.ndarray:
        """The fields that were read, and the check of what the network says of them."""
        there = np.flatnonzero(self.counts)
        if not len(there):
            raise DataError("no image can be read, so that there is nothing to predict", "skip")
        bad = there[~np.isfinite(self.probabilities[:, there]).all((0, 2))]
        if len(bad):
            where = "/".join(map(str, self.fields.screen.table[list(FIELD)].iloc[self.fields.first[bad[0]]]))
            raise DataError(
                f"the network's output is not finite for image '{where}', and {len(bad) - 1} others; look for NaN in "
                "the checkpoint's weights and in the image, or compute in 32 bits",
                "precision",
            )
        return there


def prediction_columns(probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """The columns of a table of predictions.

    Args:
        probabilities: (M, N, K) of M networks for N things.
        classes: names of the K classes.

    Returns:
        ``prediction``, the most probable class; its ``probability``; the ``entropy`` of all probabilities, in nats; and
        ``p_<class>`` of each class. Of several networks these are of the mean of their probabilities (Lakshminarayanan
        et al. 2017), and ``disagreement`` is the mutual information of class and network, in nats: the entropy of the
        mean minus the mean entropy (Houlsby et al. 2011). It is 0 where all say the same.

    >>> sure, unsure = [[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.5, 0.5]], [[0.5, 0.5]]]
    >>> for two in (sure, unsure):
    ...     table = prediction_columns(np.array(two), ["DMSO", "taxol"])
    ...     print(table["entropy"].round(2).tolist(), table["disagreement"].round(2).tolist())
    [0.69] [0.69]
    [0.69] [0.0]
    """
    mean = probabilities[0] if len(probabilities) == 1 else probabilities.mean(0)
    best = mean.argmax(1)
    table = {
        "prediction": np.array(classes, dtype=object)[best],
        "probability": mean[np.arange(len(mean)), best],
        "entropy": entropy(mean),
    }
    if len(probabilities) > 1:
        each = np.stack([entropy(one) for one in probabilities])
        table["disagreement"] = np.maximum(entropy(mean) - each.mean(0), 0).astype(np.float32)  # below is rounding
    columns = pd.DataFrame(mean.astype(np.float32, copy=False), columns=[f"p_{name}" for name in classes])
    return pd.concat([pd.DataFrame(table), columns], axis=1)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy in nats of the rows of probabilities (N, K), (N,) float32.

    >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).round(3).tolist()
    [0.0, 0.693]
    """
    sums = [
        torch.special.entr(rows).sum(1).clamp(min=0) for rows in torch.from_numpy(probabilities).float().split(_ROWS)
    ]
    return torch.cat(sums).numpy() if sums else np.zeros(0, np.float32)


def class_names(classes: Sequence[str], number: int) -> list[str]:
    """A name for each of ``number`` outputs; those that have none are called by their numbers.

    >>> class_names(["DMSO", "taxol"], 3)
    ['DMSO', 'taxol', '2']
    """
    return [*classes[:number], *map(str, range(len(classes), number))]


def describe_rows(screen: Screen, rows: np.ndarray, of_row: np.ndarray, things: np.ndarray) -> pd.DataFrame:
    """What a screen says of fields or wells: ``Metadata_*``, of columns that are the same in all rows of each.

    Args:
        screen: of the rows.
        rows: (n,) the first row of each thing.
        of_row: (N,) the thing that each row of the screen belongs to, -1 for none.
        things: (n,) the numbers of the things.
    """
    place = np.full(int(max(things.max(initial=-1), of_row.max(initial=-1))) + 2, -1, np.int64)  # and -1 → -1
    place[things] = np.arange(len(things))
    position = place[of_row]
    members = np.flatnonzero(position >= 0)
    table = metadata_table(screen)
    described: dict[str, Any] = {}
    for name in (name for name in table if name not in _INNER):
        values = table[name]
        codes = _numbered(values)
        needed = name in (*NAMES.values(), CONTROL)
        if not needed and not _says_something(values):
            continue
        if name not in NAMES.values() and (codes[members] != codes[rows][position[members]]).any():
            continue
        chosen = values.iloc[rows].reset_index(drop=True)
        category = isinstance(chosen.dtype, pd.CategoricalDtype)
        described[str(name)] = chosen.astype(object) if category else chosen
    return pd.DataFrame(described)


def _numbered(values: pd.Series) -> np.ndarray:
    """A number for every value, the same for the same; lists count by what they hold."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.codes.to_numpy()
    try:
        return pd.factorize(values)[0]
    except TypeError:
        return pd.factorize(values.astype(str))[0]


def _says_something(values: pd.Series) -> bool:
    return bool((values.notna() & (values.astype(str) != "")).any())


def write_predictions(table: pd.DataFrame, file: Path, about: Mapping[str, Any]) -> None:
    """Write a table of predictions as Parquet, whole or not at all.

    Args:
        table: as :class:`Predictions` gives it.
        file: its folder is made.
        about: of where they come from, plain values; in the schema's metadata under :data:`ABOUT`.

    Raises:
        ConfigError: the file cannot be written.
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = (arrow.schema.metadata or {}) | {ABOUT: json.dumps(about).encode()}
    with whole_file(file) as part:
        pq.write_table(arrow.replace_schema_metadata(metadata), part)


def _means(values: np.ndarray, group: np.ndarray, number: int) -> np.ndarray:
    """Means of the rows of values (N, K) by group (N,), (number, K)."""
    sums = torch.zeros(number, values.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(group), torch.from_numpy(values).double())
    return (sums.numpy() / np.bincount(group, minlength=number)[:, None]).astype(np.float32)
