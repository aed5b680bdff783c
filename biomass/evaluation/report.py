"""What people read of a transfer: the table, as CSV and as Markdown, predictions treatment by treatment, figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from biomass.atomic import whole_file
from biomass.evaluation import plots
from biomass.evaluation.transfer import POSTPROCESSINGS, Evaluation
from biomass.formulas import to_csv

TITLES: Mapping[str, str] = {
    "running": "no BEN",
    "plate": "BEN, all cells",
    "controls": "BEN, control cells",
    "calibrated": "BEN, calibrated",
}
"""What tables and figures for people call the choices of statistics; one that is not listed goes by its word."""

Evaluations = Mapping[tuple[str, str], Evaluation]
"""(word for statistics, post-processing) → evaluation."""


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        meaning: of its values.
        value: what stands in it; a share, 0…1, unless it is a whole number. NaN where it cannot be told.
        heading: in the table for people, who see the column after it in brackets; empty where it is not a column there.
    """

    meaning: str
    value: Callable[[Evaluation], float]
    heading: str = ""


_CHANCE = "the same, where 0 is chance and 1 is perfect"

TABLE: Mapping[str, Column] = {
    "nsc": Column(
        "share of scored treatments that have the mechanism of the nearest treatment with another compound (NSC)",
        lambda one: one.nsc.accuracy,
        "NSC (scored)",
    ),
    "nsc_scored": Column("treatments that NSC can score", lambda one: int(one.nsc.scorable.sum())),
    "nscb": Column(
        "as nsc, by the nearest treatment that shares no batch either (NSCB)",
        lambda one: one.nscb.accuracy,
        "NSCB (scored)",
    ),
    "nscb_scored": Column("treatments that NSCB can score", lambda one: int(one.nscb.scorable.sum())),
    "mixing": Column(
        "share of held-out control wells whose nearest control well is of their own batch",
        lambda one: one.mixing.share if one.mixing else np.nan,
        "same batch (at random)",
    ),
    "mixing_expected": Column("mixing at random", lambda one: one.mixing.expected if one.mixing else np.nan),
    "map_same_plate": Column(
        "mean average precision of replicates, ranked among held-out controls of the same plate: is there an effect?",
        lambda one: one.replicates["same_plate"][0],
        "mAP against controls (above chance)",
    ),
    "map_same_plate_normalized": Column(_CHANCE, lambda one: one.replicates["same_plate"][1]),
    "map_other_plate": Column(
        "mean average precision of replicates on other plates, ranked among other treatments of the same plate: does "
        "the effect outweigh the plate?",
        lambda one: one.replicates["other_plate"][0],
        "mAP across plates (above chance)",
    ),
    "map_other_plate_normalized": Column(_CHANCE, lambda one: one.replicates["other_plate"][1]),
}
"""The columns of the table of scores. A new entry is all that a new score needs (two, if people see it)."""


def summarize(evaluations: Evaluations) -> pd.DataFrame:
    """The table of scores: a row for each (word for statistics, post-processing).

    Returns:
        ``normalization, postprocessing`` and the columns of :data:`TABLE`, which says what they mean.
    """
    rows = [[*pair, *(column.value(one) for column in TABLE.values())] for pair, one in evaluations.items()]
    return pd.DataFrame(rows, columns=["normalization", "postprocessing", *TABLE])


def describe() -> pd.DataFrame:
    """What the columns of the table of scores mean: ``column, meaning``."""
    names = {
        "normalization": "where batch norm took its statistics from: a word of biomass.norms.statistics",
        "postprocessing": "what was done to the profiles of wells",
    }
    meanings = names | {name: column.meaning for name, column in TABLE.items()}
    return pd.DataFrame(meanings.items(), columns=["column", "meaning"])


def to_markdown(table: pd.DataFrame) -> str:
    """The table of :func:`summarize` in per cent, for people; a dash where nothing can be scored."""
    names = list(TABLE)
    shown = [(name, names[i + 1]) for i, name in enumerate(names) if TABLE[name].heading]
    lines = [
        f"| normalization | post-processing | {' | '.join(TABLE[name].heading for name, _ in shown)} |",
        "|---|---" + "|---:" * len(shown) + "|",
    ]
    for row in table.to_dict("records"):
        scores = [
            "–" if np.isnan(row[name]) else f"{_percent(row[name])} ({_percent(row[beside])})" for name, beside in shown
        ]
        how = POSTPROCESSINGS[row["postprocessing"]].title
        lines.append(f"| {' | '.join([_title(row['normalization']), how, *scores])} |")
    return "\n".join(lines)


def _title(word: str) -> str:
    return TITLES.get(word, word)


def _percent(value: float) -> str:
    """A share in per cent, a whole number as it is."""
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}"


def predictions(evaluations: Evaluations) -> pd.DataFrame:
    """What every evaluation says about every treatment, a row each, with the reason where it cannot be scored."""
    parts = []
    for (normalization, postprocessing), one in evaluations.items():
        known = one.treatments
        for score, result in (("nsc", one.nsc), ("nscb", one.nscb)):
            part = pd.DataFrame(
                {"normalization": normalization, "postprocessing": postprocessing, "score": score}, known.index
            )
            part = pd.concat([part, result.table().drop(columns="neighbour")], axis=1)
            part["concentration"] = known["Metadata_concentration"]
            part["batches"] = [" ".join(batches) for batches in known["Metadata_batch"]]
            for column in ("compound", "concentration"):
                of_neighbour = known[f"Metadata_{column}"].to_numpy(object)[result.neighbours]
                of_neighbour[~result.scorable] = None
                part[f"neighbour_{column}"] = of_neighbour
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def write(evaluations: Evaluations, folder: Path, drawn: tuple[str, str] | None = None, seed: int = 0) -> str:
    """Write ``table.csv`` (what its columns mean: ``table_columns.csv``), ``table.md``, ``predictions.csv``, figures.

    Args:
        evaluations: (word for statistics, post-processing) → evaluation.
        folder: where to.
        drawn: the word and the post-processing that figures are drawn of; None for no figures.
        seed: of the figures.

    Returns:
        The table for people.

    Raises:
        ConfigError: a file cannot be written.
    """
    table = summarize(evaluations)
    shown = to_markdown(table)
    texts = {
        "table.csv": to_csv(table),
        "table_columns.csv": to_csv(describe()),
        "table.md": f"{shown}\n",
        "predictions.csv": to_csv(predictions(evaluations)),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as part:
            part.write_text(text)
    for name, figure in (draw(evaluations, *drawn, seed) if drawn else {}).items():
        with whole_file(folder / f"{name}.png") as part:
            figure.savefig(part, dpi=150, format="png")
    return shown


def draw(evaluations: Evaluations, normalization: str, postprocessing: str, seed: int = 0) -> dict[str, Figure]:
    """The figures of a transfer, by name: ``umap``, ``mechanisms`` and ``confusion``.

    Args:
        evaluations: (word for statistics, post-processing) → evaluation.
        normalization: the word whose confusion matrix is drawn; the other figures compare all of them.
        postprocessing: the one that is drawn.
        seed: of the layout of UMAP.
    """
    shown = {_title(n): one for (n, p), one in evaluations.items() if p == postprocessing}
    one = evaluations[normalization, postprocessing]
    about = one.wells
    labels = {"mechanism": list(about["Metadata_moa"]), "batch": list(about["Metadata_batch"])}
    result = one.nscb
    title = f"{_title(normalization)}, post-processing: {POSTPROCESSINGS[postprocessing].title}\n"
    scored = int(result.scorable.sum())
    title += f"NSCB {100 * result.accuracy:.0f} % of {scored} treatments" if scored else "NSCB cannot be scored"
    return {
        "umap": plots.scatter_grid(
            {name: plots.umap_coordinates(shown[name].wells, seed=seed) for name in shown}, labels, ("", "DMSO")
        ),
        "mechanisms": plots.mechanism_bars({name: shown[name].nscb for name in shown}, "NSCB"),
        "confusion": plots.confusion(result.confusion_matrix(), title),
    }
