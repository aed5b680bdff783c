"""How a network learned: accuracy and loss of every split, and the accuracy of every plate at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from biomass.report import svg
from biomass.report.files import read_table
from biomass.report.markup import name, percent
from biomass.report.section import Section
from biomass.run_files import read_log

LEAD = "One line a split; splits other than train are plates, or images, that the network did not learn from."
_POINTS = 300  # of a line; longer logs are averaged
_NAMED = 40  # plates that are named in a chart


def learning_curves(folder: Path) -> Section | str:
    """Accuracy, loss and gradient norm of a training run, and the accuracy of its plates."""
    log = read_log(folder)
    splits = [split for split in _splits(log) if _points(log, f"{split}/accuracy") or _points(log, f"{split}/loss")]
    if not splits:
        return "no learning curves: no network was trained in this run"
    pace, label = _pace(log)
    look = {split: svg.style(i) for i, split in enumerate(splits)}
    charts = []
    for metric, title in (("accuracy", "accuracy"), ("loss", "loss")):
        lines = {split: _line(split, _points(log, f"{split}/{metric}"), pace) for split in splits}
        shown = {split: line for split, line in lines.items() if len(line.x)}
        if shown:
            ends = (0.0, 1.0) if metric == "accuracy" else (None, None)
            looks = [look[split] for split in shown]
            charts.append(
                svg.chart([*shown.values()], label, "", title=title, y=ends, percent=metric == "accuracy", styles=looks)
            )
    if norms := _points(log, "train/gradient_norm"):
        wide = max(norm for _, norm in norms) > 30 * min(norm for _, norm in norms)
        line = _line("train", norms, pace)
        charts.append(svg.chart([line], label, "", title="norm of the gradient", log=wide))
    parts = [_said(log, splits), svg.legend(splits, [*look.values()]), svg.side_by_side(charts)]
    if (folder / "plates.csv").exists():
        parts.append(_plates(_read_plates(folder), splits))
    return Section("curves", "How the network learned", Markup("").join(parts), lead=LEAD)


def compare_curves(folders: Mapping[str, Path]) -> Section | str:
    """The same of several runs, a chart a split and a line a run.

    Args:
        folders: name of a run → its folder.
    """
    logs = {run: read_log(folder) for run, folder in folders.items()}
    splits = list(dict.fromkeys(split for log in logs.values() for split in _splits(log)))
    charts = []
    runs = list(logs)
    for metric in ("accuracy", "loss"):
        for split in splits:
            shown = {run: _points(log, f"{split}/{metric}") for run, log in logs.items()}
            paces = {run: _pace(log) for run, log in logs.items()}
            label = "epoch" if all(of == "epoch" for _, of in paces.values()) else "step"
            lines = {
                run: _line(run, points, paces[run][0] if label == "epoch" else 1.0)
                for run, points in shown.items()
                if points
            }
            if lines:
                ends = (0.0, 1.0) if metric == "accuracy" else (None, None)
                looks = [svg.style(runs.index(run)) for run in lines]
                title = f"{metric}, {split}"
                charts.append(
                    svg.chart(
                        [*lines.values()],
                        label,
                        "",
                        title=title,
                        y=ends,
                        percent=metric == "accuracy",
                        styles=looks,
                        size=(340, 230),
                    )
                )
    if not charts:
        return "no learning curves: no network was trained in these runs"
    parts = [svg.legend(runs), svg.side_by_side(charts)]
    tables = {run: _read_plates(folder) for run, folder in folders.items() if (folder / "plates.csv").exists()}
    if tables:
        parts.append(_spans(tables, runs))
    return Section(
        "curves", "How the networks learned", Markup("").join(parts), lead="One line a run, a chart a split."
    )


def _splits(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The splits of a log, training first; scores of another kind have two strokes in their names."""
    found = dict.fromkeys(key.partition("/")[0] for line in log for key in line if key.count("/") == 1)
    return sorted(found, key=lambda split: split != "train")


def _points(log: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Step and value of a metric, wherever it was logged."""
    return [(float(line["step"]), float(line[metric])) for line in log if metric in line and "step" in line]


def _pace(log: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """Steps of an epoch, as evaluations tell, and ``epoch``; 1 and ``step`` where it cannot be told."""
    for line in log:
        evaluated = any("/" in key and not key.startswith("train/") for key in line)
        if evaluated and line.get("epoch", 0) > 0 and line.get("step", 0) > 0:
            return line["step"] / line["epoch"], "epoch"
    return 1.0, "step"


def _line(called: str, points: Sequence[tuple[float, float]], pace: float) -> svg.Line:
    """The points as a line over epochs; means of neighbours where there are too many."""
    values = np.array(points, float).reshape(-1, 2)
    if len(values) > _POINTS:
        values = np.array([part.mean(0) for part in np.array_split(values, _POINTS)])
    return svg.Line(called, (values[:, 0] / pace).tolist(), values[:, 1].tolist())


def _said(log: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> Markup:
    """The last accuracies in words."""
    told = [(split, _points(log, f"{split}/accuracy")) for split in splits]
    last = [Markup("{} {}").format(name(split), percent(points[-1][1])) for split, points in told if points]
    return Markup("<p>Accuracy at the end: {}.</p>").format(Markup(", ").join(last)) if last else Markup("")


def _read_plates(folder: Path) -> pd.DataFrame:
    return read_table(folder / "plates.csv", ["plate", "split"], ["accuracy"])


def _plates(table: pd.DataFrame, splits: Sequence[str]) -> Markup:
    """A chart a split, a dot a plate, the worst at the bottom."""
    charts = []
    for split, some in table.groupby("split", sort=False):
        number = splits.index(str(split)) if split in splits else 0
        some = some.sort_values("accuracy", ascending=False, kind="stable")
        step = 15 if len(some) <= _NAMED else max(2, 600 // len(some))
        worst, mean = some.iloc[-1], float(some["accuracy"].mean())
        title = f"{split}: {len(some)} plates"
        chart = svg.dots(
            some["plate"].tolist(),
            some["accuracy"].tolist(),
            "accuracy",
            title=title,
            ends=(0.0, 1.0),
            levels={"mean": mean},
            percent=True,
            kinds=[number] * len(some),
            step=step,
        )
        words = Markup("<p>Mean {}; worst {} ({}).</p>").format(
            percent(mean), percent(float(worst["accuracy"])), name(worst["plate"], 30)
        )
        charts.append(Markup("<div>{}{}</div>").format(chart, words))
    return Markup("<h3>Accuracy of every plate</h3>") + svg.side_by_side(charts)


def _spans(tables: Mapping[str, pd.DataFrame], runs: Sequence[str]) -> Markup:
    """A chart a split, a row a run: the mean of its plates, and a line from the worst to the best."""
    table = pd.concat([table.assign(run=run) for run, table in tables.items()])
    charts = []
    for split, some in table.groupby("split", sort=False):
        found = some.groupby("run", sort=False)["accuracy"].agg(["mean", "min", "max"])
        charts.append(
            svg.dots(
                found.index.tolist(),
                found["mean"].tolist(),
                "accuracy",
                low=found["min"].tolist(),
                high=found["max"].tolist(),
                title=str(split),
                ends=(0.0, 1.0),
                percent=True,
                kinds=[runs.index(run) for run in found.index],
            )
        )
    head = "<h3>Accuracy of plates</h3><p>Dot: mean of the plates; line: from the worst plate to the best.</p>"
    return Markup(head) + svg.side_by_side(charts)
