"""Figures of profiles, predicted mechanisms and runs. Every function returns a matplotlib Figure and shows nothing."""

import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from biomass.errors import DataError
from biomass.evaluation.comparison import ACCURACY, WORST
from biomass.evaluation.nearest import NearestResult
from biomass.evaluation.stress import AXES, axis_values
from biomass.evaluation.tables import Features, feature_matrix

_GREYS = ("0.8", "0.45")
_COLOURS = tuple(f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9))
"""Matplotlib's own colours without its grey; a tenth label gets the first colour again, but another marker."""
_MARKERS = "o^sD"
_BARS = ("0.7", *_COLOURS)


def umap_coordinates(
    features: Features, metric: str = "cosine", neighbours: int = 15, min_distance: float = 0.3, seed: int = 0
) -> np.ndarray:
    """Two dimensions that keep neighbours together (UMAP; McInnes et al. 2018), the same for the same seed.

    Args:
        features: a profile table, or an array (N, D), N >= 4.
        metric: which distance tells neighbours.
        neighbours: how many of them a row has; at most N - 1 are taken.
        min_distance: how close points may come in the plane.
        seed: of the layout.

    Returns:
        (N, 2) float32.

    Raises:
        DataError: there are fewer than 4 rows, or a feature is missing or infinite.
    """
    matrix = feature_matrix(features).astype(np.float32)
    if len(matrix) < 4:
        raise DataError(f"UMAP was given {len(matrix)} rows; it needs at least 4")
    import umap  # seconds to import, and more to compile

    reducer = umap.UMAP(
        n_neighbors=min(neighbours, len(matrix) - 1),
        min_dist=min_distance,
        metric=metric,
        init="pca",
        random_state=seed,
        n_jobs=1,  # what a fixed seed asks for
    )
    return np.asarray(reducer.fit_transform(matrix), np.float32)


def scatter_grid(
    coordinates: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]], muted: Sequence[str] = ("",)
) -> Figure:
    """Points in the plane: a column for each set of coordinates, a row for each way to colour them.

    Args:
        coordinates: title of the column → (N, 2).
        labels: what the colour means → the label of each of the N points.
        muted: up to two labels drawn small and grey, the second one darker, below the others.
    """
    columns, rows = len(coordinates), len(labels)
    figure = Figure(figsize=(3.1 * columns + 2.3, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, (meaning, values) in enumerate(labels.items()):
        of_point = np.asarray(values, dtype=str)
        loud = sorted(set(of_point) - set(muted), key=natural)
        greys = zip(muted, _GREYS, strict=False)
        styles = {label: (grey, "o", 8, 1) for label, grey in greys if label in of_point}
        styles |= {label: (_COLOURS[k % 9], _MARKERS[k // 9 % 4], 16, 2) for k, label in enumerate(loud)}
        for j, (title, points) in enumerate(coordinates.items()):
            ax = axes[i, j]
            for label, (colour, marker, size, order) in styles.items():
                of_label = points[of_point == label]
                ax.scatter(
                    *of_label.T,
                    s=size,
                    color=colour,
                    marker=marker,
                    linewidths=0,
                    zorder=order,
                    label=label or "unknown",
                )
            ax.set(xticks=[], yticks=[], title=title if i == 0 else "")
        axes[i, 0].set_ylabel(f"colour: {meaning}")
        axes[i, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=7, markerscale=1.5)
    return figure


def mechanism_bars(results: Mapping[str, NearestResult], title: str = "") -> Figure:
    """Accuracy of every mechanism, a bar for each result, with a note where it cannot be scored.

    Args:
        results: name of the bar → predictions for the same treatments.
        title: of the figure.
    """
    tables = {name: result.by_moa() for name, result in results.items()}
    some = next(iter(tables.values()))
    moas = list(some.index[::-1])
    figure = Figure(figsize=(7, 1.1 + 0.11 * len(moas) * (len(tables) + 1)), layout="constrained")
    ax = figure.subplots()
    height = 0.8 / len(tables)
    for i, (name, table) in enumerate(tables.items()):
        y = np.arange(len(moas)) + 0.4 - height * (i + 0.5)
        values = 100 * table["accuracy"].reindex(moas)
        ax.barh(y, values.fillna(0), height * 0.9, color=_BARS[i % len(_BARS)], label=name)
    scorable = some["scorable"].reindex(moas)
    for row, count in enumerate(scorable):
        if count == 0:
            ax.text(1, row, "cannot be scored", va="center", fontsize=7, color="0.4")
    ax.set_yticks(range(len(moas)), [f"{moa} ({n})" for moa, n in zip(moas, scorable, strict=True)], fontsize=8)
    ax.set(xlim=(0, 100), ylim=(-0.6, len(moas) - 0.4), xlabel="accuracy (%)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(tables), frameon=False, fontsize=8)
    ax.set_title(title, pad=24, fontsize=10)
    return figure


def compared(numbers: pd.DataFrame) -> Figure:
    """Accuracy of runs: a panel a split, and in it a line for each regime under each word for statistics.

    A large dot is the mean over runs, a bar one standard deviation to both sides, small dots are the runs, a tick is
    the mean of the worst plate. Floors stand on grey, below the others.

    Args:
        numbers: as :mod:`biomass.evaluation.comparison` keeps them, in the order of the lines.
    """
    shown = numbers[numbers["metric"].isin([ACCURACY, WORST])]
    pairs = shown[["floor", "regime", "statistics"]].drop_duplicates()
    pairs = pairs.sort_values("floor", key=lambda floor: floor != "", kind="stable", ignore_index=True)
    pairs["y"] = pairs.index + 0.7 * (pairs["regime"] != pairs["regime"].shift(fill_value=pairs["regime"][0])).cumsum()
    words, splits = list(dict.fromkeys(pairs["statistics"])), list(dict.fromkeys(shown["split"]))
    colours = {word: _COLOURS[k % len(_COLOURS)] for k, word in enumerate(words)}
    figure = Figure(figsize=(2 + 2.4 * len(splits), 1.3 + 0.2 * pairs["y"].max()), layout="constrained")
    axes = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    for ax, split in zip(axes, splits, strict=True):
        of_split = shown[shown["split"] == split].merge(pairs[["regime", "statistics", "y"]])
        for (metric, word, y), values in (100 * of_split.set_index(["metric", "statistics", "y"])["value"]).groupby(
            level=[0, 1, 2]
        ):
            if metric == WORST:
                ax.plot(values.mean(), y, "|", ms=8, mew=1.2, color=colours[word])
                continue
            spread = values.std() if len(values) > 1 else None
            ax.errorbar(values.mean(), y, xerr=spread, fmt="o", ms=5, lw=1.2, color=colours[word], zorder=3)
            ax.plot(values, np.full(len(values), y), "o", ms=2.5, mew=0, color=colours[word], alpha=0.5)
        for floor in pairs.loc[pairs["floor"] != "", "y"]:
            ax.axhspan(floor - 0.85, floor + 0.85, color="0.94", lw=0, zorder=0)
        ax.set_xlim(0, min(100, 10 * np.ceil(10 * shown["value"].max() + 0.3)))
        ax.set_ylim(pairs["y"].max() + 0.85, -0.85)
        ax.set_xlabel("accuracy (%)")
        ax.set_title(split, fontsize=10)
        ax.grid(axis="x", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    middle = pairs.groupby("regime", sort=False)["y"].mean()
    axes[0].set_yticks(middle, ["\n".join(textwrap.wrap(name, 30)) for name in middle.index], fontsize=8)
    handles = [Line2D([], [], marker="o", ls="", color=colour) for colour in colours.values()]
    handles.append(Line2D([], [], marker="|", ls="", color="0.3"))
    legend = figure.legend(handles, [*words, "worst plate"], loc="outside upper center", ncols=5, fontsize=8)
    legend.set_frame_on(False)
    return figure


def confusion(matrix: pd.DataFrame, title: str = "") -> Figure:
    """Counts of treatments: rows predicted, columns true, as :meth:`NearestResult.confusion_matrix` gives them."""
    counts = matrix.to_numpy()
    share = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    side = 1.8 + 0.36 * len(counts)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    ax = figure.subplots()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        dark = share[row, column] > 0.6
        ax.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(len(counts)), list(matrix.columns), rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(counts)), list(matrix.index), fontsize=8)
    ax.set(xlabel="true", ylabel="predicted")
    ax.set_title(title, fontsize=10)
    ax.set_xticks(np.arange(len(counts) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(counts) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.9", lw=0.5)
    ax.tick_params(which="minor", length=0)
    return figure


def gallery(images: np.ndarray, titles: Sequence[str], channels: Sequence[str], rows: int = 2) -> Figure:
    """Pictures of up to three channels, the first blue, the second green, the third red, each scaled for itself.

    Args:
        images: (N, C, H, W), C >= 1, of any numeric type.
        titles: of each image, (N,).
        channels: names of the channels.
        rows: rows of pictures.
    """
    columns = -(-len(images) // rows)
    figure = Figure(figsize=(1.25 * columns, 1.5 * rows + 0.3), layout="constrained")
    for ax, image, title in zip(figure.subplots(rows, columns, squeeze=False).flat, images, titles, strict=False):
        low, high = (np.percentile(image[:3].astype(np.float32), q, axis=(1, 2), keepdims=True) for q in (1, 99.5))
        scaled = np.clip((image[:3] - low) / np.maximum(high - low, 1e-6), 0, 1).astype(np.float32)
        picture = np.zeros((3, *image.shape[1:]), np.float32)
        picture[: len(scaled)] = scaled
        ax.imshow(picture[::-1].transpose(1, 2, 0))
        ax.set_title(title, fontsize=7)
    for ax in figure.axes:
        ax.set_axis_off()
    names = zip(("blue", "green", "red"), channels, strict=False)
    figure.suptitle(", ".join(f"{colour}: {name}" for colour, name in names), fontsize=8)
    return figure


def stress_curves(table: pd.DataFrame) -> Figure:
    """What a stress test found: a panel an axis, a line a word, 95 % intervals as bands.

    Args:
        table: as :func:`biomass.evaluation.stress.summarize` gives it, of accuracies or of any other share.
    """
    measure = table.columns[4]
    axes = list(dict.fromkeys(table["axis"]))
    words = list(dict.fromkeys(table["statistics"]))
    figure = Figure(figsize=(3.2 * max(1, len(axes)), 3.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(axes)), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=False):
        some = table[table["axis"] == axis]
        values = axis_values(some)
        for number, word in enumerate(words):
            line = some[some["statistics"] == word]
            at = [values.index(value) for value in line["value"]]
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            panel.fill_between(at, 100 * line["low"], 100 * line["high"], color=colour, alpha=0.15, linewidth=0)
            panel.plot(at, 100 * line[measure], color=colour, marker=marker, markersize=4, linewidth=1.5, label=word)
        panel.set_xticks(range(len(values)), values)
        panel.set_xlabel(AXES[axis])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
    panels[0].set_ylabel(f"{measure} (%)")
    if axes:
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(words), frameon=False
        )
    return figure


def natural(label: str) -> list[tuple[int, str]]:
    """Sorts Week2 before Week10."""
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(re.split(r"(\d+)", label))]
