"""What the images of a screen look like, plate by plate and channel by channel, and what is odd about them.

A bounded sample of every plate is read once; nothing here needs a network.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.fft
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from biomass.errors import BadImageError, BiomassError, DataError
from biomass.grouping import factorize, first_rows, number_rows
from biomass.loader import BatchReader
from biomass.screen import CONTROLS, FIELD, PLATE, UNLABELLED, OnBadImage, Screen

PERCENTILES = (1, 25, 50, 75, 99)
"""Of the pixels of a channel of an image."""

PIXELS = 1 << 24
"""Pixels of a plate (a channel of them) that are read, at most, unless these are fewer than :data:`IMAGES` images."""

IMAGES = (12, 256)
"""The fewest and the most images of a plate that are read."""

SATURATED = 0.002
"""Share of the pixels of a plate that have the highest value of all, from which on it is taken for a ceiling."""

_LEVELS = 64
"""Counts between the darkest and the brightest pixels below which the brightest ones are many without any ceiling."""

STANDS_OUT = 5.0
"""From how many robust standard deviations on a plate stands out (a normal distribution has 6 in 10 million beyond)."""

FEWEST_PLATES = 5
"""Plates that are needed to tell which one stands out."""

_LEAST = {"intensity": np.log10(1.5), "contrast": np.log10(1.5), "focus": 0.3}
"""Differences from the median plate that count for nothing: a factor of 1.5, a slope of 0.3."""

_CHUNK = 1 << 22


class Finding(NamedTuple):
    """One thing that is odd, and what to do about it.

    Attributes:
        kind: a short word for programs.
        what: one line, with plate and channel.
        remedy: one line.
        plates: those that it is about, by name.
        channel: the one that it is about; empty for all.
    """

    kind: str
    what: str
    remedy: str
    plates: tuple[str, ...] = ()
    channel: str = ""


def focus_slope(images: np.ndarray) -> np.ndarray:
    """How sharp images (…, H, W) are: the slope of their power spectrum over frequency, both in logarithms, (…).

    It does not depend on brightness or contrast; blurred images have steeper slopes, noise has a slope of 0 (Bray et
    al. 2012, the "power log-log slope"). Frequencies go up to half a cycle a pixel, averaged over directions within
    bands of one width in logarithm; a Hann window keeps the borders out. NaN for constant images.

    >>> noise = np.random.default_rng(0).normal(size=(64, 64))
    >>> round(float(focus_slope(noise)), 1), np.isnan(focus_slope(np.ones((8, 8)))).item()
    (0.0, True)
    """
    height, width = images.shape[-2:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    x = images.astype(np.float32)
    mean = (x * window).sum((-2, -1), keepdims=True) / window.sum()
    power = np.abs(scipy.fft.rfft2((x - mean) * window)) ** 2
    radius = np.hypot(scipy.fft.fftfreq(height)[:, None], scipy.fft.rfftfreq(width)[None]).ravel()
    edges = np.geomspace(2 / min(height, width), 0.5, 13)
    band = np.digitize(radius, edges) - 1
    order = np.argsort(band, kind="stable")
    order = order[(band[order] >= 0) & (band[order] < 12)]
    first = np.flatnonzero(np.diff(band[order], prepend=-1))
    count = np.diff(first, append=len(order))
    of_band = np.add.reduceat(power.reshape(*power.shape[:-2], -1)[..., order], first, axis=-1) / count
    frequency = np.log10(np.add.reduceat(radius[order], first) / count)
    frequency -= frequency.mean()
    varies = np.ptp(images.reshape(*images.shape[:-2], -1), axis=-1) > 0
    logs = np.log10(np.where(varies[..., None], np.maximum(of_band, np.finfo(np.float32).tiny), 1))
    return np.where(varies, (logs * frequency).sum(-1) / (frequency**2).sum(), np.nan)


@dataclass(frozen=True)
class Measured:
    """What was measured on n images of C channels.

    Attributes:
        rows: of the screen, (n,).
        percentiles: :data:`PERCENTILES` of the pixels, (n, C, 5).
        highest: the highest value, (n, C).
        at_highest: share of the pixels that have it, (n, C).
        constant: all pixels have one value, (n, C).
        focus: see :func:`focus_slope`, (n, C).
        digests: of the bytes of each channel, (n, C) text.
        skipped: rows that could not be read, (m,).
    """

    rows: np.ndarray
    percentiles: np.ndarray
    highest: np.ndarray
    at_highest: np.ndarray
    constant: np.ndarray
    focus: np.ndarray
    digests: np.ndarray
    skipped: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, rows: np.ndarray, skipped: np.ndarray) -> "Measured":
        """Measure images (n, C, H, W)."""
        pixels = images.reshape(*images.shape[:2], -1)
        highest = pixels.max(2)
        digests = [[hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest() for one in image] for image in images]
        return cls(
            rows,
            np.moveaxis(np.percentile(pixels, PERCENTILES, axis=2, method="nearest"), 0, -1).astype(np.float64),
            highest.astype(np.float64),
            (pixels == highest[..., None]).mean(2),
            pixels.min(2) == highest,
            focus_slope(images),
            np.array(digests, dtype=object).reshape(images.shape[:2]),
            skipped,
        )

    @classmethod
    def joined(cls, parts: Sequence["Measured"]) -> "Measured":
        """All of several."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


class _Measuring(Dataset["Measured | BiomassError"]):
    """Reads rows and measures them, in a worker process; an error comes back as a value, as from BatchReader."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, rows: np.ndarray) -> "Measured | BiomassError":
        batch = self.reader[rows]
        if isinstance(batch, BiomassError):
            return batch
        if not len(batch):
            blank = np.empty((0, len(self.reader.pixels.channels)))
            empty = np.empty((0, blank.shape[1], len(PERCENTILES)))
            return Measured(
                batch.rows.numpy(), empty, blank, blank, blank > 0, blank, blank.astype(object), batch.skipped.numpy()
            )
        return Measured.of(batch.images.numpy(), batch.rows.numpy(), batch.skipped.numpy())


def sample_rows(screen: Screen, most: int | None = None) -> list[np.ndarray]:
    """Rows of each plate to look at, spread evenly over its wells, the same at every call.

    Args:
        screen: any.
        most: images of a plate; None: as many as make up :data:`PIXELS`, within :data:`IMAGES`.

    >>> from biomass.screen import COLUMNS, VectorPixels, make_screen
    >>> wells = [f"A{i:02d}" for i in range(1, 9)]
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 8) | {"plate": "P", "label": -1, "well": wells})
    >>> [rows.tolist() for rows in sample_rows(make_screen(table, VectorPixels(np.zeros((8, 1, 4, 4))), []), 3)]
    [[0, 4, 7]]
    """
    height, width = screen.pixels.size
    most = int(np.clip(PIXELS // (height * width), *IMAGES)) if most is None else most
    keys = [screen.table[c].cat.codes.to_numpy() for c in ("site", "well")]
    order = np.lexsort((*keys, screen.plate_ids))
    plates = np.split(order, np.cumsum(np.bincount(screen.plate_ids))[:-1])
    return [rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))] for rows in plates]


def measure(screen: Screen, samples: Sequence[np.ndarray], on_bad_image: OnBadImage, workers: int) -> Measured:
    """Read and measure a sample of every plate, in several processes.

    Raises:
        BadImageError: an image cannot be read, unless such are to be skipped.
        DataError: none can.
    """
    reader = BatchReader(screen, screen.plate_ids, on_bad_image)
    most = max(1, _CHUNK // (screen.pixels.size[0] * screen.pixels.size[1] * len(screen.pixels.channels)))
    chunks = [chunk for rows in samples for chunk in np.array_split(np.sort(rows), -(-len(rows) // most))]
    loader = DataLoader(_Measuring(reader), sampler=chunks, batch_size=None, num_workers=min(workers, len(chunks)))
    parts = []
    with tqdm(total=sum(map(len, chunks)), unit=" images", disable=not sys.stderr.isatty(), leave=False) as bar:
        for part in loader:
            if isinstance(part, BiomassError):
                raise part
            parts.append(part)
            bar.update(len(part.rows) + len(part.skipped))
    found = Measured.joined(parts)
    if not len(found.rows):
        first = screen.pixels.name(int(found.skipped[0]))
        raise DataError(f"none of the {len(found.skipped)} images that were tried can be read, '{first}' and others")
    return found


def count_plates(screen: Screen) -> pd.DataFrame:
    """A row a plate: how many wells, fields, images, controls, classes, and images by split it has."""
    plate, count = screen.plate_ids, len(screen.plate_names)
    well, field = screen.groups((*PLATE, "well")), screen.groups(FIELD)
    known = screen.labels != UNLABELLED
    split, splits = factorize(screen.table["split"])
    in_split = np.bincount(plate * len(splits) + split, minlength=count * len(splits)).reshape(count, len(splits))

    def different(members: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
        return _different(plate, members if which is None else np.where(which, members, -1), count)

    first = screen.table[list(PLATE)].iloc[first_rows(plate, count)].astype(str)
    return first.reset_index(drop=True).assign(
        name=screen.plate_names,
        wells=different(well),
        fields=different(field),
        images=np.bincount(plate, minlength=count),
        **{f"{kind}_wells": different(well, screen.reference(kind)) for kind in CONTROLS[1:]},
        classes=different(_by_label(screen, PLATE)),
        unlabelled=np.bincount(plate[~known], minlength=count),
        **{f"split_{name}": in_split[:, splits.index(name)] for name in screen.splits},
    )


def count_labels(screen: Screen) -> pd.DataFrame:
    """A row a class that has images: on how many plates, in how many wells and images."""
    images = np.bincount(screen.labels[screen.labels != UNLABELLED], minlength=len(screen.classes))
    there = np.flatnonzero(images)
    kinds = {"plates": PLATE, "wells": (*PLATE, "well")}
    different = {name: _different(screen.labels, _by_label(screen, of), len(images)) for name, of in kinds.items()}
    names = np.array(screen.classes, dtype=object)[there]
    return pd.DataFrame(
        {"label": names, **{name: of[there] for name, of in different.items()}, "images": images[there]}
    )


def _by_label(screen: Screen, columns: Sequence[str]) -> np.ndarray:
    """The number of what columns and the label tell apart, (N,); -1 where a row has no label."""
    label = pd.Categorical.from_codes(screen.labels, pd.RangeIndex(len(screen.classes)))
    return number_rows([*(screen.table[column] for column in columns), pd.Series(label)])


def _different(groups: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """How many different members each of ``count`` groups has, of numbers (N,) of which none is in two groups."""
    first = first_rows(members, int(members.max()) + 1)
    return np.bincount(groups[first[first < len(members)]], minlength=count)


def count_pairs(screen: Screen) -> pd.DataFrame:
    """A row a plate and class: how many images."""
    numbers = screen.plate_ids * (len(screen.classes) + 1) + screen.labels + 1  # without a label first
    pairs = number_rows([pd.Series(numbers)])
    images = np.bincount(pairs)
    plate, label = np.divmod(numbers[first_rows(pairs, len(images))], len(screen.classes) + 1)
    names = np.array(["", *screen.classes], dtype=object)[label]
    return pd.DataFrame({"plate": np.array(screen.plate_names, dtype=object)[plate], "label": names, "images": images})


def summarize(screen: Screen, found: Measured) -> pd.DataFrame:
    """A row a plate and channel: the median over its images of what was measured, and how odd that is.

    ``intensity`` and ``contrast`` are the median of the pixels and the range between their 1st and 99th percentile;
    ``saturated`` is the share of pixels that have the highest value of the plate. The columns ``z_…`` say how many
    robust standard deviations a plate is from the median plate (median and median absolute deviation; intensity and
    contrast in logarithms), NaN where there are fewer than :data:`FEWEST_PLATES`.
    """
    n, channels = len(found.rows), screen.pixels.channels
    plate = screen.plate_ids[found.rows]
    long = pd.DataFrame(
        {
            "plate_id": np.repeat(plate, len(channels)),
            "channel": np.tile(np.arange(len(channels)), n),
            **{f"p{p}": found.percentiles[..., i].ravel() for i, p in enumerate(PERCENTILES)},
            "highest": found.highest.ravel(),
            "at_highest": found.at_highest.ravel(),
            "constant": found.constant.ravel(),
            "focus": found.focus.ravel(),
        }
    )
    by = long.groupby(["plate_id", "channel"])
    ceiling = by["highest"].transform("max")
    long["saturated"] = long["at_highest"].where((long["highest"] == ceiling) & ~long["constant"], 0.0)
    table = by[[*(f"p{p}" for p in PERCENTILES), "focus"]].median()
    table.insert(0, "images", by.size())
    table.insert(1, "constant", by["constant"].sum())
    table.insert(2, "highest", by["highest"].max())
    table.insert(3, "saturated", by["saturated"].mean())
    table = table.reset_index()
    table["intensity"], table["contrast"] = table["p50"], table["p99"] - table["p1"]
    for name, least in _LEAST.items():
        values = table[name] if name == "focus" else np.log10(table[name].clip(lower=0).replace(0, np.nan))
        table[f"z_{name}"] = values.groupby(table["channel"]).transform(_robust_z, least=least / STANDS_OUT)
    table.insert(0, "plate", np.array(screen.plate_names, dtype=object)[table.pop("plate_id")])
    table["channel"] = np.array(channels, dtype=object)[table["channel"]]
    return table


def _robust_z(values: pd.Series, least: float) -> pd.Series:
    """Distance from the median in robust standard deviations, none of which is less than ``least``."""
    if values.notna().sum() < FEWEST_PLATES:
        return values * np.nan
    distance = values - values.median()
    return distance / max(1.4826 * float(distance.abs().median()), least)


def find_oddities(screen: Screen, plates: pd.DataFrame, table: pd.DataFrame, found: Measured) -> list[Finding]:
    """All that is odd, the worst first."""
    return [*_pixels(screen, table, found), *_duplicates(screen, found), *_outliers(table), *_design(screen, plates)]


def _pixels(screen: Screen, table: pd.DataFrame, found: Measured) -> Iterator[Finding]:
    if len(found.skipped):
        number = len(found.skipped)
        yield Finding(
            "unreadable",
            f"{number} of {number + len(found.rows)} images cannot be read; the first: "
            f"{_reason(screen, int(found.skipped[0]))}",
            "copy them again, or leave them out in training: on_bad_image skip",
            _plates(screen.plate_names[plate] for plate in screen.plate_ids[found.skipped]),
        )
    for channel, rows in table.groupby("channel", sort=False):
        dark = rows[rows["constant"] == rows["images"]]
        if len(dark):
            yield Finding(
                "constant",
                f"channel {channel} has one value all over every image looked at on {_where(dark['plate'])}",
                "is its file the right one? leave these plates out, or the channel",
                tuple(dark["plate"]),
                str(channel),
            )
        partly = rows[(rows["constant"] > 0) & (rows["constant"] < rows["images"])]
        if len(partly):
            some, total = partly["constant"].sum(), partly["images"].sum()
            yield Finding(
                "constant_images",
                f"channel {channel} has one value all over {some} of {total} images on {_where(partly['plate'])}",
                "look at these wells; failed acquisitions belong out of the table",
                tuple(partly["plate"]),
                str(channel),
            )
        faint = rows[(rows["p99"] - rows["p1"] <= 2) & (rows["constant"] < rows["images"]) & (rows["p99"] > 1)]
        if len(faint):
            yield Finding(
                "faint",
                f"channel {channel} has hardly any signal on {_where(faint['plate'])}: 98 % of its pixels are within "
                f"{(faint['p99'] - faint['p1']).max():g} counts",
                "were images scaled to 8 bits, or is a stain missing?",
                tuple(faint["plate"]),
                str(channel),
            )
        levels = (rows["highest"] <= 1) | (rows["highest"] - rows["p1"] >= _LEVELS)  # scaled to 0…1, or counts
        full = rows[(rows["saturated"] >= SATURATED) & levels].sort_values("saturated", ascending=False)
        if len(full):
            worst, highest = full["saturated"].iloc[0], full["highest"].iloc[0]
            yield Finding(
                "saturated",
                f"channel {channel} is saturated on {_where(full['plate'])}: up to {100 * worst:.2g} % of "
                f"pixels have the highest value, {highest:g}{_depth(highest)}",
                "a shorter exposure next time; intensities of these plates are cut off",
                tuple(full["plate"]),
                str(channel),
            )


def _reason(screen: Screen, row: int) -> str:
    """Why an image cannot be read."""
    try:
        screen.read(np.array([row]))
    except BadImageError as error:
        return str(error)
    return screen.pixels.name(row)  # it can be by now


def _duplicates(screen: Screen, found: Measured) -> Iterator[Finding]:
    """Channels of images with the same bytes; constant ones tell nothing."""
    n, channels = found.digests.shape
    places = pd.DataFrame(
        {
            "digest": found.digests.ravel(),
            "row": np.repeat(found.rows, channels),
            "channel": np.tile(np.arange(channels), n),
        }
    )[~found.constant.ravel()]
    twice = places[places.duplicated("digest", keep=False)]
    if twice.empty:
        return
    inside: dict[tuple[int, ...], list[int]] = {}
    for _, of_image in twice.groupby(["digest", "row"]):
        if len(of_image) > 1:
            inside.setdefault(tuple(of_image["channel"]), []).append(of_image["row"].iloc[0])
    for pair, rows in inside.items():
        names = " and ".join(screen.pixels.channels[channel] for channel in pair)
        plates = _plates(screen.plate_names[plate] for plate in screen.plate_ids[rows])
        yield Finding(
            "same_channels",
            f"channels {names} are the same, byte for byte, in {len(rows)} images on {_where(plates)}",
            "a file is named for two channels: correct the table",
            plates,
        )
    between = (tuple(sorted(set(of_digest["row"]))) for _, of_digest in twice.groupby("digest"))
    sets = [rows for rows in dict.fromkeys(between) if len(rows) > 1]
    if sets:
        plates = _plates(screen.plate_names[screen.plate_ids[row]] for rows in sets for row in rows)
        first = " and ".join(f"'{screen.pixels.name(row)}'" for row in sets[0][:2])
        yield Finding(
            "duplicates",
            f"{len({row for rows in sets for row in rows})} images on {_where(plates)} hold the same bytes as another "
            f"one, such as {first}",
            "keep one of each, or an image is counted, and may be trained on and tested on, twice",
            plates,
        )


_WORDS = {
    ("intensity", 1): ("brighter", "check exposure, staining and background there"),
    ("intensity", -1): ("darker", "check exposure and staining there; empty images? see examples.png"),
    ("contrast", 1): ("richer in contrast", "check exposure, staining and cell number there"),
    ("contrast", -1): (
        "poorer in contrast",
        "check staining and cell number; empty images? see examples.png",
    ),
    ("focus", 1): ("sharper, or nearer to noise", "empty images? see examples.png"),
    ("focus", -1): ("more blurred", "check the focus there, and look at it in examples.png"),
}
"""By what is measured, and whether it is above or below the median plate: how a plate is, and what to do."""


def _outliers(table: pd.DataFrame) -> Iterator[Finding]:
    for (name, sign), (how, remedy) in _WORDS.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        odd = table[table[f"z_{name}"] * sign >= STANDS_OUT]
        for channel, rows in odd.groupby("channel", sort=False):
            alike.setdefault(tuple(rows["plate"]), []).append(str(channel))
        for plates, channels in alike.items():
            numbers = [_against(table[table["channel"] == channel], plates, name) for channel in channels]
            yield Finding(
                name,
                f"{_where(plates)} stand{'s' * (len(plates) == 1)} out: {how} in {', '.join(numbers)}",
                remedy,
                plates,
                channels[0] if len(channels) == 1 else "",
            )


def _against(rows: pd.DataFrame, plates: Sequence[str], name: str) -> str:
    """A channel, its value on the oddest of some plates, and that of the median plate."""
    some = rows[rows["plate"].isin(plates)]
    value = some[name].iloc[int(some[f"z_{name}"].abs().argmax())]
    return f"{rows['channel'].iloc[0]} ({value:.4g}, on the median plate {rows[name].median():.4g})"


def _design(screen: Screen, plates: pd.DataFrame) -> Iterator[Finding]:
    none = plates.loc[plates["negative_wells"] == 0, "name"]
    if len(none):
        yield Finding(
            "no_controls",
            f"{_where(none)} {'have' if len(none) > 1 else 'has'} no negative control",
            "statistics of controls cannot be taken there; name the controls, or use another word",
            tuple(none),
        )
    few = plates.loc[plates["wells"] < plates["wells"].median() / 2, "name"]
    if len(few):
        yield Finding(
            "few_wells",
            f"{_where(few)} {'have' if len(few) > 1 else 'has'} less than half as many wells as the median plate "
            f"({plates['wells'].median():g})",
            "are images missing?",
            tuple(few),
        )
    unlabelled = int(plates["unlabelled"].sum())
    if unlabelled:
        yield Finding(
            "unlabelled",
            f"{unlabelled} of {len(screen)} images have no label",
            "they are encoded, but neither trained on nor scored",
        )
    alone = count_labels(screen)
    alone = alone[alone["plates"] == 1]
    if len(alone) and len(plates) > 1:
        yield Finding(
            "label_on_one_plate",
            f"{len(alone)} of {len(screen.classes)} classes are on one plate alone: {_some(alone['label'])}",
            "class and plate cannot be told apart there",
        )
    shared = [name for name in plates if str(name).startswith("split_")]
    mixed = plates.loc[(plates[shared] > 0).sum(axis=1) > 1, "name"] if shared else plates["name"][:0]
    if len(mixed):
        yield Finding(
            "shared_plates",
            f"{_where(mixed)} {'are' if len(mixed) > 1 else 'is'} in several splits",
            "results on such a split do not say how a new plate will do",
            tuple(mixed),
        )
    if not shared:
        yield Finding("no_splits", "the screen has no splits", "training needs some: name them by plate or experiment")


def _depth(value: float) -> str:
    bits = {2**n - 1: n for n in (8, 10, 12, 14, 16)}
    return f" ({bits[int(value)]} bits)" if value in bits else ""


def _plates(names: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _some(names: Iterable[object], most: int = 3) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _where(plates: Iterable[str]) -> str:
    listed = list(plates)
    return f"plate{'s' * (len(listed) > 1)} {_some(listed)}"
