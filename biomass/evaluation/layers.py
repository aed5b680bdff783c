"""Where in a network plates differ: the distance between their moments at the input of every batch norm.

Two words are looked at. Under ``running`` averages a layer hands on what plates differ by; under the statistics of each
``plate`` it takes away what is a shift or a scale of a channel. So the first is how it is before the network knows
plates, the second how it is after.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from biomass.atomic import whole_file
from biomass.errors import BiomassError, DataError
from biomass.formulas import to_csv
from biomass.inference import Transform
from biomass.loader import BatchReader
from biomass.norms import PlateBatchNorm, Statistics, unwrap
from biomass.norms.plate_batch_norm import device_of, row_moments
from biomass.norms.whole_plate import evaluating
from biomass.screen import Screen

LAYERS = "layers.csv"
"""Where distances are kept, in the folder of a run."""

WORDS = ("running", "plate")
"""The words that are looked at: before, after."""

PLATES, IMAGES, FEWEST = 16, 64, 8
"""How many plates are looked at, and images of each, at most; how many images of a plate at least, if it has them."""

_SHARE, _LEAST = 0.05, 64
"""Of the images that a run sees, how many are looked at again; and the number that is worth while in any run."""

_AT_ONCE = 64 * 256**2
"""Pixels of a plate that run at once: the images of a plate are one batch."""

_EPSILON = 1e-5
"""What batch norm adds to variances, and what the distance adds."""


def plate_distances(
    network: nn.Module,
    screen: Screen,
    transform: Transform,
    rows: np.ndarray | None = None,
    most: int = PLATES * IMAGES,
) -> pd.DataFrame:
    """The distance between plates at every batch norm, in the order in which they run, under each of :data:`WORDS`.

    A channel of a layer is taken for a Gaussian on each plate, as in the divergence of features of Pan et al. (2018,
    IBN-Net). The distance between two plates is that of Bhattacharyya (1943), which a small variance of few images does
    not blow up; it is averaged over channels, and then over pairs of plates. ``exp(-distance)`` is how much the two
    overlap. A few images are looked at, spread evenly over the wells of a plate, so that some distance is there by
    chance: what the halves of the same plate (its wells in turn) differ by, of which twice as many images have half.

    Args:
        network: (n, C, H, W) → (n, D), with plate-aware norms; on its device.
        screen: whose images it sees,
        transform: after this was done to them.
        rows: of the screen, None for all.
        most: images that are looked at in all; fewer are taken of more plates.

    Returns:
        A row for each word and place: ``layer``, ``depth``, ``words``, ``distance`` and ``chance``. Beside the norms,
        depths 1 and up, there are the ``images`` (0) and the network's output, ``features``.

    Raises:
        DataError: there are not two plates with images that can be read, or there is no norm.

    >>> from biomass.norms import convert
    >>> from biomass.screen import COLUMNS, VectorPixels, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 8) | {"plate": ["P1", "P2"] * 4, "label": 0})
    >>> images = np.arange(8.0).repeat(4).reshape(8, 1, 2, 2) + table["plate"].eq("P2").to_numpy()[:, None, None, None]
    >>> screen = make_screen(table.assign(well=list("aabbccdd")), VectorPixels(images, ("DNA",)), ["DMSO"])
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()))
    >>> found = plate_distances(network, screen, lambda images: images)
    >>> found[found["layer"] == "features"].set_index("words")["distance"].round(2).to_dict()
    {'running': 0.1, 'plate': 0.0}
    """
    inner = unwrap(network)
    if not any(isinstance(module, PlateBatchNorm) for module in inner.modules()):
        raise DataError("the network has no batch norm of plates, so that there are no layers to compare plates in")
    found: dict[str, list[dict[str, Tensor]]] = {word: [] for word in WORDS}
    with evaluating(inner), torch.inference_mode():
        for images, halves, group in _samples(screen, rows, most):
            x = transform(images.to(device_of(inner), torch.float32))
            groups, controls = torch.full((len(x),), group), torch.zeros(len(x), dtype=torch.int8)
            for word in WORDS:
                with _watched(inner, halves) as moments, Statistics(word).of(inner, groups, controls):
                    moments["images"] = _of_halves(x, halves)
                    moments["features"] = _of_halves(inner(x), halves)
                found[word].append(moments)
    if len(found[WORDS[0]]) < 2:
        raise DataError("fewer than two plates have images that can be read, so that there is no distance between them")
    return pd.DataFrame([row for word in WORDS for row in _rows(word, found[word])])


def number_of_images(seen: int) -> int:
    """How many images are looked at in the end of a run that has seen so many: a twentieth, and 64 to 1024.

    >>> number_of_images(100), number_of_images(10_000), number_of_images(10**6)
    (64, 500, 1024)
    """
    return min(max(int(_SHARE * seen), _LEAST), PLATES * IMAGES)


def write_distances(table: pd.DataFrame, folder: Path) -> None:
    """Keep what :func:`plate_distances` found in the folder of a run."""
    with whole_file(folder / LAYERS) as part:
        part.write_text(to_csv(table, "%.6g"), encoding="utf-8")


def bhattacharyya(mean: np.ndarray, var: np.ndarray, other_mean: np.ndarray, other_var: np.ndarray) -> float:
    """The distance of Gaussians with these moments (C,), averaged over channels.

    >>> round(bhattacharyya(np.zeros(2), np.ones(2), np.array([0.0, 4.0]), np.ones(2)), 3)
    1.0
    """
    both = var + other_var
    shift = (mean - other_mean) ** 2 / both / 4
    return float((shift + np.log(both / (2 * np.sqrt(var * other_var))) / 2).mean())


def _samples(screen: Screen, rows: np.ndarray | None, most: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Images of some plates, which half each belongs to, and the number of the plate."""
    rows = np.arange(len(screen)) if rows is None else rows
    groups = screen.plate_ids
    plates = np.unique(groups[rows])
    chosen = plates[_evenly(len(plates), min(PLATES, max(2, most // FEWEST)))]
    height, width = screen.pixels.size
    each = min(IMAGES, max(FEWEST, most // len(chosen)), max(4, _AT_ONCE // (height * width)))
    reader = BatchReader(screen, groups, "skip")
    for plate in chosen:
        here = rows[groups[rows] == plate]
        wells = pd.factorize(screen.table["well"].iloc[here], sort=True)[0]
        here, wells = here[np.argsort(wells, kind="stable")], np.sort(wells)
        take = _evenly(len(here), each)
        batch = reader[here[take]]
        if isinstance(batch, BiomassError):
            raise batch
        half = dict(zip(here[take].tolist(), pd.factorize(wells[take])[0] % 2, strict=True))
        if len(batch) >= 2:
            yield batch.images, torch.tensor([int(half[row]) for row in batch.rows.tolist()]), int(plate)


def _evenly(number: int, most: int) -> np.ndarray:
    """Places of at most so many of a number of things, evenly spread: the middle of each part."""
    count = min(number, most)
    return ((np.arange(count) + 0.5) * number / max(count, 1)).astype(np.int64)


def _of_halves(x: Tensor, halves: Tensor) -> Tensor:
    """Mean and mean square (2, 3, C), float64, of the rows of each half and of all; NaN where a half has none."""
    mean, var = row_moments(x)
    weights = torch.stack([halves == 0, halves == 1, halves >= 0]).to(mean.device, torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.stack([weights @ mean, weights @ (var + mean.square())]).cpu()


@contextmanager
def _watched(network: nn.Module, halves: Tensor) -> Iterator[dict[str, Tensor]]:
    """While inside, the moments of what comes into every norm are kept, in the order in which norms run."""
    moments: dict[str, Tensor] = {}

    def watch(name: str, module: PlateBatchNorm) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(
            lambda _, inputs: moments.__setitem__(name, _of_halves(inputs[0], halves))
        )

    handles = [watch(n, m) for n, m in network.named_modules() if isinstance(m, PlateBatchNorm)]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _rows(word: str, plates: Sequence[dict[str, Tensor]]) -> Iterator[dict[str, object]]:
    """The distances of every place, from the moments of each plate."""
    first = plates[0]
    places = ["images", *(name for name in first if name not in ("images", "features")), "features"]
    for depth, place in enumerate(places):
        moments = np.stack([one[place].numpy() for one in plates])  # (P, 2, 3, C)
        mean = moments[:, 0]
        var = moments[:, 1] - mean**2 + _EPSILON
        pairs = [
            bhattacharyya(mean[a, 2], var[a, 2], mean[b, 2], var[b, 2]) for a, b in combinations(range(len(plates)), 2)
        ]
        halves = [bhattacharyya(m[0], v[0], m[1], v[1]) / 2 for m, v in zip(mean, var, strict=True)]
        chance = [value for value in halves if np.isfinite(value)]
        yield {
            "layer": place,
            "depth": depth,
            "words": word,
            "distance": _rounded(np.mean(pairs)),
            "chance": _rounded(np.mean(chance)) if chance else np.nan,
        }


def _rounded(distance: np.floating) -> float:
    """Nothing where it is rounding: standardized images do not differ."""
    return max(0.0, round(float(distance), 9))
