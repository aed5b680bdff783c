"""What a classifier is worth, over the parts of a screen that a biologist asks about: accuracy, and batch mixing."""

import numpy as np
import pandas as pd

from biomass.evaluation.nearest import batch_mixing
from biomass.screen import Screen

MEASURED = ("accuracy", "top5", "treatments", "by_class", "cell_type/")
"""What :func:`accuracy_summary` gives; after ``cell_type/`` stands a name."""

MEANINGS = {
    "accuracy": "share of images whose class is answered right, controls included",
    "top5": "share of images whose class is among the five likeliest",
    "treatments": "accuracy on treated wells alone: neither negative nor positive controls",
    "by_class": "mean of the accuracies of all classes of treated wells, each counted alike",
    "cell_type/": "accuracy on the images of one cell type, controls included",
    "loss": "what is minimized, as a mean over images; less is better",
    "mixing": "share of negative controls whose nearest one is of their own experiment; less is better",
    "mixing_expected": "the same where experiments are mixed perfectly",
    "gradient_norm": "length of the gradient before it is clipped",
    "learning_rate": "of the step",
}
"""What each metric measures; after ``cell_type/`` stands a name."""


def meaning(name: str) -> str:
    """What a metric measures, by its name in the log; empty where nobody knows.

    >>> meaning("test/cell_type/U2OS")
    'accuracy on the images of one cell type, controls included'
    """
    own = name.partition("/")[2]
    return MEANINGS.get(own) or MEANINGS.get(own.partition("/")[0] + "/", "")


def accuracy_summary(screen: Screen, rows: np.ndarray, ranks: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy over images, on treatments only, and by cell type.

    Args:
        screen: the screen the rows belong to.
        rows: (n,) rows that were predicted.
        ranks: (n,) how many classes scored higher than the true one.

    Returns:
        ``accuracy`` (controls included, as RxRx1-WILDS counts), ``top5``, ``treatments`` (neither positive nor
        negative control), ``by_class`` (the mean over the classes of treatments, which all count alike) and
        ``cell_type/<name>``; all in 0..1, absent where there are no such images.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, ["", ""]) | {"label": [0, 1], "control": ["", "negative"]})
    >>> accuracy_summary(make_screen(table, None, ["a", "b"]), np.array([0, 1]), np.array([0, 1]))
    {'accuracy': 0.5, 'top5': 1.0, 'treatments': 1.0, 'by_class': 1.0}
    """
    correct = ranks == 0
    summary = {"accuracy": correct.mean(), "top5": (ranks < 5).mean()}
    treated = screen.treated[rows]
    if treated.any():
        summary["treatments"] = correct[treated].mean()
        summary["by_class"] = pd.Series(correct[treated]).groupby(screen.labels[rows][treated]).mean().mean()
    by_cell_type = pd.Series(correct).groupby(screen.table["cell_type"].to_numpy()[rows], observed=True).mean()
    summary |= {f"cell_type/{name}": value for name, value in by_cell_type.items() if name}
    return {name: float(value) for name, value in summary.items()}


def plate_accuracy(screen: Screen, rows: np.ndarray, ranks: np.ndarray) -> pd.DataFrame:
    """Top-1 accuracy of every plate: columns ``plate`` (experiment/plate), ``images``, ``accuracy``."""
    grouped = pd.Series(ranks == 0).groupby(screen.plate_ids[rows])
    table = grouped.agg(["size", "mean"]).rename(columns={"size": "images", "mean": "accuracy"})
    table.insert(0, "plate", [screen.plate_names[i] for i in table.index])
    return table.reset_index(drop=True)


def mixing_rows(screen: Screen, split: str, most: int = 2000) -> np.ndarray:
    """The rows that tell batch mixing: negative controls of a split, thinned out evenly to ``most``; (n,) ascending."""
    rows = screen.rows(split)
    controls = rows[screen.negative_controls[rows]]
    return controls[np.linspace(0, len(controls) - 1, most).astype(np.int64)] if len(controls) > most else controls


def control_mixing(screen: Screen, rows: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """How far a network mixes experiments: controls, which are the same everywhere, should be so in its outputs, too.

    Args:
        screen: the screen the rows belong to.
        rows: (n,) negative controls.
        outputs: (n, D) of the network, for each of them.

    Returns:
        ``mixing``, the share of rows whose nearest other one (cosine) is of their own experiment, and
        ``mixing_expected``, what chance gives; nothing where there are not two experiments, or outputs are no numbers.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 4) | {"label": 0, "experiment": ["a", "a", "b", "b"]})
    >>> outputs = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> control_mixing(make_screen(table, None, ["DMSO"]), np.arange(4), outputs)
    {'mixing': 1.0, 'mixing_expected': 0.333}
    """
    experiments = screen.table["experiment"].astype(str).to_numpy()[rows]
    if len(set(experiments)) < 2 or not np.isfinite(outputs).all():
        return {}
    mixing = batch_mixing(outputs, experiments)
    return {"mixing": mixing.share, "mixing_expected": mixing.expected}
