"""Accuracy of a classifier over the parts of a screen that a biologist asks about."""

import numpy as np
import pandas as pd

from biomass.screen import Screen

MEASURED = ("accuracy", "top5", "treatments", "cell_type/")
"""What :func:`accuracy_summary` gives; after ``cell_type/`` stands a name."""


def accuracy_summary(screen: Screen, rows: np.ndarray, ranks: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy over images, on treatments only, and by cell type.

    Args:
        screen: the screen the rows belong to.
        rows: (n,) rows that were predicted.
        ranks: (n,) how many classes scored higher than the true one.

    Returns:
        ``accuracy`` (controls included, as RxRx1-WILDS counts), ``top5``, ``treatments`` (neither positive nor
        negative control) and ``cell_type/<name>``; all in 0..1, absent where there are no such images.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, ["", ""]) | {"label": [0, 1], "control": ["", "negative"]})
    >>> accuracy_summary(make_screen(table, None, ["a", "b"]), np.array([0, 1]), np.array([0, 1]))
    {'accuracy': 0.5, 'top5': 1.0, 'treatments': 1.0}
    """
    correct = ranks == 0
    summary = {"accuracy": correct.mean(), "top5": (ranks < 5).mean()}
    treated = screen.treated[rows]
    if treated.any():
        summary["treatments"] = correct[treated].mean()
    by_cell_type = pd.Series(correct).groupby(screen.table["cell_type"].to_numpy()[rows], observed=True).mean()
    summary |= {f"cell_type/{name}": value for name, value in by_cell_type.items() if name}
    return {name: float(value) for name, value in summary.items()}


def plate_accuracy(screen: Screen, rows: np.ndarray, ranks: np.ndarray) -> pd.DataFrame:
    """Top-1 accuracy of every plate: columns ``plate`` (experiment/plate), ``images``, ``accuracy``."""
    grouped = pd.Series(ranks == 0).groupby(screen.plate_ids[rows])
    table = grouped.agg(["size", "mean"]).rename(columns={"size": "images", "mean": "accuracy"})
    table.insert(0, "plate", [screen.plate_names[i] for i in table.index])
    return table.reset_index(drop=True)
