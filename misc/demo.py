"""What BEN does, in minutes: train vanilla and BEN networks on a simulated screen, compare them on unseen plates.

    make demo        or        python misc/demo.py [further overrides of train_erm.py]

Writes a picture beside the runs and prints a table of accuracies. Two pages say more: one of both runs side by side,
and one that judges the profiles which the BEN network gives under running averages and under statistics of plates.
"""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from draw_simulated import false_colour  # beside this file
from omegaconf import OmegaConf

from biomass.atomic import whole_file
from biomass.config import build
from biomass.keys import data_overrides
from biomass.report.finish import PAGE
from biomass.report.page import write_report
from biomass.screen import Screen

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("vanilla", "ben")
TITLES = {"vanilla": "vanilla batch norm", "ben": "BEN", "adabn": "AdaBN"}


def main(overrides: list[str]) -> None:
    """Train by one Hydra multirun over the methods, then print the table and draw the picture."""
    name = f"demo-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    command = [sys.executable, str(ROOT / "train_erm.py"), "-m", "+experiment=demo", f"+method={','.join(METHODS)}"]
    subprocess.run([*command, f"run_name={name}", *overrides], check=True)
    runs = Path("runs")
    folders = {method: next(runs.glob(f"{name}-{job}_*")) for job, method in enumerate(METHODS)}
    table = pd.DataFrame({TITLES[method]: accuracies(folder) for method, folder in folders.items()}).T
    picture = runs / f"{name}.png"
    draw(folders, picture)
    print("\nAccuracy (%) on a simulated screen (id_test: other sites of training plates; val, test: unseen plates)\n")
    print((100 * table).round(1).to_string())
    gain = 100 * (table["test"].iloc[1] - table["test"].iloc[0])
    print(f"\nBEN minus vanilla on the unseen test plates: {gain:+.1f} points. Picture: {picture}")
    print(f"Both runs side by side: {write_report(list(folders.values()), picture.with_suffix('.html'))}", flush=True)
    profiles = f"{name}-profiles"
    subprocess.run(profile_command(folders["ben"], profiles, overrides), check=True)
    print(f"\nIs there a batch effect, and is it gone? {runs / profiles / PAGE}")


def profile_command(run: Path, name: str, overrides: list[str]) -> list[str]:
    """What makes and judges the profiles of a run, on the images that the overrides say."""
    source = [] if any(text.startswith("dataloaders=") for text in overrides) else ["dataloaders=simulated"]
    device = [text for text in overrides if text.startswith("device=")]
    words = [f"model_path={Path('checkpoints') / run.name / 'last.pt'}", "compare=[running]", f"run_name={name}"]
    return [sys.executable, "-m", "biomass", "profile", *words, *source, *data_overrides(overrides), *device]


def accuracies(folder: Path) -> dict[str, float]:
    """Accuracy of every evaluation split after the last epoch of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "test/accuracy" in line][-1]
    return {split: last[f"{split}/accuracy"] for split in ("id_test", "val", "test")}


def draw(folders: dict[str, Path], path: Path) -> None:
    """Left: one perturbation on several plates. Right: accuracy of every unseen plate under both methods."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    config = OmegaConf.load(next(iter(folders.values())) / "config.yaml")
    screen = build(OmegaConf.to_container(config.dataloaders.source, resolve=True))  # type: ignore[arg-type]
    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.25, 1])[0]
    _draw_fields(left, screen)
    axes = right.add_subplot()
    plates = {m: pd.read_csv(f / "plates.csv").query("split == 'test'").set_index("plate") for m, f in folders.items()}
    values = np.stack([100 * plates[m]["accuracy"].reindex(plates[METHODS[0]].index).to_numpy() for m in METHODS])
    axes.plot([0, 1], values, color="0.75", lw=0.8, zorder=1)
    for x in range(len(METHODS)):
        axes.scatter(np.full(values.shape[1], x), values[x], s=22, zorder=2, color=("C7", "C0")[x])
        axes.hlines(values[x].mean(), x - 0.18, x + 0.18, color="k", lw=2, zorder=3)
        axes.text(x, values[x].max() + 2, f"{values[x].mean():.0f} %", ha="center")
    axes.set_xticks([0, 1], [TITLES[m] for m in METHODS])
    axes.set_xlim(-0.4, 1.4)
    axes.set_ylim(0, 105)
    axes.set_ylabel("accuracy on an unseen plate (%)")
    axes.set_title("one dot a test plate, bar: their mean", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as part:
        figure.savefig(part, dpi=130, format="png")


def _draw_fields(figure: "SubFigure", screen: Screen) -> None:
    """Rows: three perturbations; columns: plates, trained on and unseen."""
    table = screen.table
    train = list(dict.fromkeys(table.loc[table["split"] == "train", "plate_id"]))[::5][:3]
    test = list(dict.fromkeys(table.loc[table["split"] == "test", "plate_id"]))[::3][:3]
    labels = _shared_labels(table, [*train, *test])
    axes = figure.subplots(len(labels), len(train) + len(test), squeeze=False)
    for i, label in enumerate(labels):
        for j, plate in enumerate([*train, *test]):
            row = np.flatnonzero((table["plate_id"] == plate) & (table["label"] == label))[0]
            axes[i, j].imshow(false_colour(screen.read(np.array([row]))[0]))
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
            if i == 0:
                axes[i, j].set_title("trained on" if j < len(train) else "unseen", fontsize=9)
        axes[i, 0].set_ylabel(screen.classes[label], fontsize=8)
    figure.suptitle("columns: plates, rows: perturbations", fontsize=10)


def _shared_labels(table: pd.DataFrame, plates: list[int], count: int = 3) -> list[int]:
    """The last ``count`` labels that are on all of these plates; controls are on every plate."""
    sets = [set(table.loc[table["plate_id"] == plate, "label"]) for plate in plates]
    return sorted(set.intersection(*sets))[-count:]


if __name__ == "__main__":
    main(sys.argv[1:])
