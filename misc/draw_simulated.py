"""Draw misc/simulated_screen.png, a simulated screen: the biology changes down a column, the plate along a row.

python misc/draw_simulated.py
"""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from biomass.atomic import whole_file
from biomass.simulation.morphology import CHANNELS
from biomass.simulation.rxrx1 import Design, lay_out, render_plate

COLOURS = {"nuclei": (0.1, 0.3, 1.0), "er": (0.0, 0.75, 0.15), "actin": (0.9, 0.3, 0.0)}
"""Red, green and blue of a channel at full scale."""

CELL_TYPE = "HUVEC"
PLATES = 6


def draw(path: Path) -> None:
    """Rows: the negative control and perturbations; columns: plates of one cell type, trained on and unseen."""
    design = Design(size=96)  # half as wide again as the default: more cells to look at
    plates = [p for p in lay_out(design) if p.cell_type == CELL_TYPE]
    halves = [[p for p in plates if (p.split == "train") == trained] for trained in (True, False)]
    shown = [half[i] for half in halves for i in np.linspace(0, len(half) - 1, PLATES // 2).astype(int)]
    negative = design.treatments + design.positive_controls
    rows = {
        "negative control": negative,
        "positive control 1": negative - 4,
        "positive control 2": negative - 3,
        "positive control 3": negative - 2,
    }
    figure, axes = plt.subplots(len(rows), len(shown), figsize=(1.2 * len(shown) + 0.3, 1.2 * len(rows) + 0.35))
    for column, plate in zip(axes.T, shown, strict=True):
        fields = np.concatenate([images for images, _ in render_plate(design, plate)])
        for i, (axis, label) in enumerate(zip(column, rows.values(), strict=True)):
            field = np.flatnonzero(plate.classes == label)[0] * design.sites
            axis.imshow(false_colour(fields[field]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if i == 0:
                seen = "trained on" if plate.split == "train" else "unseen"
                axis.set_title(f"{seen}\n{plate.experiment}, plate {plate.number}", fontsize=7)
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, fontsize=7)
    figure.subplots_adjust(left=0.03, right=0.998, bottom=0.005, top=0.93, wspace=0.03, hspace=0.03)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130)
    with whole_file(path) as part:
        Image.open(drawn).convert("RGB").quantize(256).save(part, "PNG", optimize=True)  # half the size


def false_colour(image: np.ndarray) -> np.ndarray:
    """(3, H, W) uint8 to (H, W, 3) in 0…1."""
    colours = np.array([COLOURS[c] for c in CHANNELS])
    return np.clip(np.einsum("chw,cr->hwr", image / 255.0, colours), 0, 1)


if __name__ == "__main__":
    mpl.use("Agg")
    draw(Path(__file__).with_name("simulated_screen.png"))
