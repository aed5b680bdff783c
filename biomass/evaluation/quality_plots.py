"""Pictures of a screen's images: intensities and focus by plate and channel, and an example of each plate."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from biomass.evaluation.plots import natural
from biomass.evaluation.quality import STANDS_OUT, Measured
from biomass.screen import Screen

PLAIN, ODD = "#0072B2", "#D55E00"
"""Blue and vermilion, for colour-blind readers (Okabe & Ito 2008); plates that stand out have another marker, too."""

_MOST_EXAMPLES = 48
_DPI = 150


def overview(table: pd.DataFrame, plates: Sequence[str]) -> Figure:
    """Intensities (left) and focus (right) of every plate, a row of panels a channel.

    Args:
        table: as :func:`biomass.evaluation.quality.summarize` gives it.
        plates: names of all plates.
    """
    plates, channels = sorted(plates, key=natural), list(dict.fromkeys(table["channel"]))
    width = float(np.clip(0.16 * len(plates), 2.6, 8.5))
    figure = Figure(figsize=(2 * width + 1.6, 1.75 * len(channels) + 1.6), layout="constrained")
    axes = figure.subplots(len(channels), 2, squeeze=False, sharex=True)
    place = {name: number for number, name in enumerate(plates)}
    for channel, (left, right) in zip(channels, axes, strict=True):
        rows = table[table["channel"] == channel]
        x = rows["plate"].map(place).to_numpy()
        odd = (rows[["z_intensity", "z_contrast"]].abs() >= STANDS_OUT).any(axis=1).to_numpy()
        blurred = (rows["z_focus"].abs() >= STANDS_OUT).to_numpy()
        _spread(left, x, rows, odd)
        _points(right, x, rows["focus"].to_numpy(), blurred)
        left.set_ylabel(channel, fontweight="bold")
        right.set_ylabel("slope of the spectrum", fontsize=8)
        for ax in (left, right):
            _experiments(ax, plates)
    axes[0, 0].set_title("Intensities of the median image", fontsize=10)
    axes[0, 1].set_title("Focus: lower is more blurred", fontsize=10)
    for ax in axes[-1]:
        _name_plates(ax, plates)
    handles = [
        Patch(color=PLAIN, alpha=0.25, label="1st to 99th percentile of the pixels"),
        Patch(color=PLAIN, alpha=0.75, label="25th to 75th"),
        Line2D([], [], color="black", marker="_", linestyle="", markersize=7, label="median"),
        Line2D([], [], color=ODD, marker="D", linestyle="", markersize=5, label="stands out"),
    ]
    columns = 4 if len(plates) > 24 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _spread(ax: Axes, x: np.ndarray, rows: pd.DataFrame, odd: np.ndarray) -> None:
    """A box a plate: percentiles of the pixels; a diamond above those that stand out."""
    for low, high, alpha in (("p1", "p99", 0.25), ("p25", "p75", 0.75)):
        for chosen, colour in ((~odd, PLAIN), (odd, ODD)):
            some = rows[chosen]
            ax.bar(x[chosen], some[high] - some[low], 0.8, some[low], color=colour, alpha=alpha, linewidth=0)
    ax.plot(x, rows["p50"], "_", color="black", markersize=max(2.0, min(6.0, 250 / len(rows))))
    ax.plot(x[odd], rows["p99"][odd], "D", color=ODD, markersize=4)
    lowest = rows["p1"].min()
    if lowest > 0 and rows["p99"].max() > 30 * lowest:
        ax.set_yscale("log")
    ax.grid(axis="y", linewidth=0.4, alpha=0.5)


def _points(ax: Axes, x: np.ndarray, values: np.ndarray, odd: np.ndarray) -> None:
    ax.plot(x[~odd], values[~odd], "o", color=PLAIN, markersize=4)
    ax.plot(x[odd], values[odd], "D", color=ODD, markersize=5)
    ax.grid(axis="y", linewidth=0.4, alpha=0.5)


def _borders(plates: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, first plate and the one behind the last, of every experiment."""
    names = [plate.rpartition("/")[0] for plate in plates]
    first = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    return [(names[i], i, j) for i, j in zip(first, [*first[1:], len(names)], strict=True)]


def _experiments(ax: Axes, plates: Sequence[str]) -> None:
    """Every other experiment on a grey ground."""
    borders = _borders(plates)
    for _, first, last in borders[::2] if len(borders) > 1 else []:
        ax.axvspan(first - 0.5, last - 0.5, color="0.93", zorder=0, linewidth=0)
    beside = max(0.0, (8 - len(plates)) / 2)  # a few plates need not fill the picture
    ax.set_xlim(-0.6 - beside, len(plates) - 0.4 + beside)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)


def _name_plates(ax: Axes, plates: Sequence[str]) -> None:
    """Names below the axis: of plates where there is room, else of experiments."""
    borders = _borders(plates)
    if len(plates) <= 24 or len(borders) == 1:
        ticks = [float(i) for i in range(0, len(plates), -(-len(plates) // 48))]
        names = [plates[int(i)] if len(borders) > 1 else plates[int(i)].rpartition("/")[2] for i in ticks]
    else:
        step = -(-len(borders) // 40)
        ticks = [(first + last - 1) / 2 for _, first, last in borders[::step]]
        names = [name for name, _, _ in borders[::step]]
    ax.set_xticks(ticks, names, rotation=90, fontsize=7)


def examples(screen: Screen, found: Measured, table: pd.DataFrame) -> Figure:
    """An image of each plate with all its channels, at one scale a channel: plates can be compared by eye.

    The image is the one of the sample whose intensities are nearest to the median of its plate. Of many plates, some
    are shown, spread evenly.
    """
    plates = np.unique(screen.plate_ids[found.rows])
    plates = np.array(sorted(plates, key=lambda plate: natural(screen.plate_names[plate])))
    shown = plates[np.unique(np.linspace(0, len(plates) - 1, _MOST_EXAMPLES).round().astype(int))]
    rows = [_typical(found, np.flatnonzero(screen.plate_ids[found.rows] == plate)) for plate in shown]
    channels = screen.pixels.channels
    limits = [
        (float(of["p1"].quantile(0.1)), float(max(of["p99"].quantile(0.9), of["p1"].quantile(0.1) + 1e-9)))
        for of in (table[table["channel"] == channel] for channel in channels)
    ]
    tile = next(inches for most, inches in ((2, 2.6), (8, 1.7), (_MOST_EXAMPLES, 1.1)) if len(shown) <= most)
    across = max(1, min(len(shown), round(15 / (len(channels) * tile + 0.4))))
    down = -(-len(shown) // across)
    across = -(-len(shown) // down)  # rows of the same length
    height = tile * min(1.5, screen.pixels.size[0] / screen.pixels.size[1])
    size = (max(4.0, across * (len(channels) * tile + 0.15)), down * (height + 0.45) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    step = max(1, int(min(screen.pixels.size) / (_DPI * tile)))
    for plate, row, ax in zip(shown, rows, panels, strict=False):
        image = screen.read(np.array([row]))[0][:, ::step, ::step].astype(np.float32)
        scaled = [(plane - low) / (high - low) for plane, (low, high) in zip(image, limits, strict=True)]
        gap = max(1, image.shape[2] // 24)
        strip = np.concatenate([np.pad(plane.clip(0, 1), ((0, 0), (0, gap)), constant_values=1) for plane in scaled], 1)
        ax.imshow(strip[:, :-gap], cmap="gray", vmin=0, vmax=1)
        middles = (image.shape[2] + gap) * np.arange(len(channels)) + image.shape[2] / 2
        ax.set_xticks(middles, channels, fontsize=7)
        ax.tick_params(length=0, pad=2)
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(screen.plate_names[plate], fontsize=8, pad=3)
    for ax in panels[len(shown) :]:
        ax.set_axis_off()
    which = "An image of every plate" if len(shown) == len(plates) else f"{len(shown)} of {len(plates)} plates"
    figure.suptitle(f"{which}, one grey scale a channel", fontsize=9)
    return figure


def _typical(found: Measured, members: np.ndarray) -> int:
    """The row whose intensities are nearest to the median of its plate's."""
    values = np.log1p(found.percentiles[members].clip(min=0)).reshape(len(members), -1)
    distance = np.abs(values - np.median(values, axis=0)).sum(1)
    return int(found.rows[members[distance.argmin()]])
