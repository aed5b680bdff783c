"""From the network's outputs for cells to one profile for each field of view (or well)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.loader import Batch
from biomass.models.poolers import POOLERS, median_pool
from biomass.screen import Pixels, Screen, VectorPixels


@dataclass(frozen=True)
class Profiles:
    """One vector for each instance that has cells.

    Attributes:
        vectors: (M, D) float32; rows of instances without cells are zero, see ``counts``.
        counts: (M,) number of cells behind each vector.
    """

    vectors: np.ndarray
    counts: np.ndarray


def mean_profiles(outputs: Iterable[tuple[Batch, Tensor]], num_instances: int, normalize: bool = True) -> Profiles:
    """Average the outputs of the cells of each instance, as they come: memory is that of the M profiles.

    Args:
        outputs: batches of cells and the network's output (n, D) for each, as :func:`biomass.inference.infer` yields.
        num_instances: M; ``Batch.instances`` are below it.
        normalize: scale the vector of every cell to length 1 first.

    Raises:
        DataError: there are no cells at all.

    >>> from types import SimpleNamespace
    >>> cells = SimpleNamespace(instances=torch.tensor([0, 0, 1]))
    >>> outputs = [(cells, torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0]]))]
    >>> mean_profiles(outputs, num_instances=2).vectors
    array([[0.5, 0.5],
           [0.6, 0.8]], dtype=float32)
    """
    total: Tensor | None = None
    counts = torch.zeros(num_instances, dtype=torch.int64)
    for batch, output in outputs:
        vectors = _vectors(output, normalize)
        if total is None:
            total = torch.zeros(num_instances, vectors.shape[1], dtype=torch.float64, device=vectors.device)
        total.index_add_(0, batch.instances.to(vectors.device), vectors.double())
        counts.index_add_(0, batch.instances, torch.ones_like(batch.instances))
    if total is None:
        raise _no_cells()
    return Profiles((total.cpu() / counts.clamp(min=1)[:, None]).float().numpy(), counts.numpy())


class Bags:
    """The vectors of all cells, kept by instance; ``read`` pads the cells of each instance to the same number.

    It stands in for the pixels of a screen whose rows are instances, see :class:`biomass.screen.Pixels`.

    Args:
        outputs: as in :func:`mean_profiles`.
        num_instances: M.
        normalize: scale the vector of every cell to length 1.
    """

    channels: tuple[str, ...] = ("cells",)

    def __init__(self, outputs: Iterable[tuple[Batch, Tensor]], num_instances: int, normalize: bool = True) -> None:
        vectors, owners = [], []
        for batch, output in outputs:
            vectors.append(_vectors(output, normalize).cpu().numpy())
            owners.append(batch.instances.numpy())
        if not vectors:
            raise _no_cells()
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        self.vectors = np.concatenate(vectors)[order]
        self.counts = np.bincount(owner, minlength=num_instances)
        self.starts = np.cumsum(self.counts) - self.counts
        self.size = (int(self.counts.max()), self.vectors.shape[1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Bags of instances (n,), padded with zero vectors: (n, K, D), K the largest number of cells among them."""
        counts = self.counts[rows]
        bags = np.zeros((len(rows), max(1, int(counts.max())), self.vectors.shape[1]), np.float32)
        bag = np.repeat(np.arange(len(rows)), counts)
        place = np.arange(len(bag)) - np.repeat(np.cumsum(counts) - counts, counts)
        bags[bag, place] = self.vectors[np.repeat(self.starts[rows], counts) + place]
        return bags

    def name(self, row: int) -> str:
        """The number of an instance, for messages."""
        return f"instance {row}"

    def median_profiles(self, chunk: int = 256) -> Profiles:
        """The median over the cells of each instance, feature by feature."""
        vectors = np.zeros((len(self.counts), self.vectors.shape[1]), np.float32)
        rows = np.flatnonzero(self.counts)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            bags = torch.from_numpy(self.read(part))
            present = torch.arange(bags.shape[1]) < torch.from_numpy(self.counts[part])[:, None]
            vectors[part] = median_pool(bags, present).numpy()
        return Profiles(vectors, self.counts)


def profile_screen(
    screen: Screen,
    instances: np.ndarray,
    outputs: Iterable[tuple[Batch, Tensor]],
    pooler: str = "mean",
    normalize: bool = True,
) -> Screen:
    """Pool the vectors of cells into a Screen whose rows are fields of view, and whose "pixels" are their vectors.

    Args:
        screen: the cells.
        instances: (rows of the screen,) the field of view that each cell belongs to, numbered without gaps.
        outputs: batches of cells and their vectors, as :func:`biomass.inference.infer` yields them.
        pooler: ``mean`` and ``median`` give a vector (D,) a field, ``attention`` keeps the vectors of all cells.
        normalize: scale the vector of every cell to length 1.

    Returns:
        A row for each field, described by its first cell; a field without any vector belongs to no split.

    Raises:
        ConfigError: an unknown pooler.

    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, ["train"] * 3) | {"label": [0, 0, 1], "control": ""})
    >>> cells = make_screen(table, pixels=None, classes=["DMSO", "taxol"])
    >>> instances = np.array([0, 0, 1])
    >>> batch = SimpleNamespace(instances=torch.from_numpy(instances))
    >>> fields = profile_screen(cells, instances, [(batch, torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0]]))])
    >>> fields.labels, fields.read(np.array([1]))
    (array([0, 1]), array([[0.6, 0.8]], dtype=float32))
    """
    if pooler not in POOLERS:
        raise ConfigError(f"pooler '{pooler}' is unknown; {did_you_mean(pooler, POOLERS)}")
    fields, first = np.unique(instances, return_index=True)
    pixels: Pixels
    if pooler == "attention":
        pixels = bags = Bags(outputs, len(fields), normalize)
        counts = bags.counts
    else:
        profiles = (
            mean_profiles(outputs, len(fields), normalize)
            if pooler == "mean"
            else Bags(outputs, len(fields), normalize).median_profiles()
        )
        pixels, counts = VectorPixels(profiles.vectors), profiles.counts
    table = screen.table.iloc[first].reset_index(drop=True)
    table["split"] = table["split"].astype(str).where(counts > 0, "")
    return Screen(table, pixels, screen.classes)


def _vectors(output: Tensor, normalize: bool) -> Tensor:
    return F.normalize(output.float(), dim=1) if normalize else output.float()


def _no_cells() -> DataError:
    return DataError("there are no cells to make profiles of: the splits hold none, or none that can be read", "splits")
