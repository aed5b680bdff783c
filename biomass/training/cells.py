"""From the cells of a frozen encoder to profiles."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from biomass.errors import ConfigError
from biomass.evaluation.pooling import ArrayPixels, Bags, mean_profiles
from biomass.loader import Batch
from biomass.models.poolers import POOLERS
from biomass.screen import Pixels, Screen


def profile_screen(
    screen: Screen,
    instances: np.ndarray,
    outputs: Iterable[tuple[Batch, Tensor]],
    pooler: str = "mean",
    normalize: bool = True,
) -> Screen:
    """Pool the vectors of cells into a Screen whose rows are fields of view, its "pixels" their vectors.

    Args:
        screen: the cells.
        instances: (rows of the screen,) the field of view that each cell belongs to, dense.
        outputs: batches of cells and their vectors, as :func:`biomass.inference.infer` yields them.
        pooler: ``mean`` and ``median`` give a vector (D,) a field, ``attention`` keeps the vectors of all cells.
        normalize: scale the vector of every cell to length 1.

    Returns:
        A row for each field, described by its first cell; a field without any vector belongs to no split.

    Raises:
        ConfigError: an unknown pooler.
    """
    fields, first = np.unique(instances, return_index=True)
    pixels: Pixels
    if pooler == "mean":
        profiles = mean_profiles(outputs, len(fields), normalize)
        pixels, counts = ArrayPixels(profiles.vectors), profiles.counts
    elif pooler == "median":
        profiles = Bags(outputs, len(fields), normalize).median_profiles()
        pixels, counts = ArrayPixels(profiles.vectors), profiles.counts
    elif pooler == "attention":
        pixels = Bags(outputs, len(fields), normalize)
        counts = pixels.counts
    else:
        raise ConfigError(f"pooler '{pooler}' is unknown; choose {', '.join(POOLERS)}")
    table = screen.table.iloc[first].reset_index(drop=True)
    table["split"] = table["split"].astype(str).where(counts > 0, "")
    return Screen(table, pixels, screen.classes)
