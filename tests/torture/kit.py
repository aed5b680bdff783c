"""What all cases begin with: small screens, tables and trained networks that are whole, made once."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from tests.conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN
from tests.torture import forks
from tests.torture.cases import command

SCREEN = (*TINY_SCREEN, "dataloaders.source.experiments=3", "dataloaders.source.plates=1", "device=cpu")
"""3 experiments x 1 plate x 7 wells x 2 sites, one experiment a split."""
CELLS = (
    *(o for o in TINY_CELLS if "warmup" not in o),
    "dataloaders.source.experiments=3",
    "dataloaders.source.plates=1",
)
TRAIN = (*SCREEN, *TINY_RUN, "train_batch_size=4", "report=false", "+method=ben", "dataloaders.eval_splits=[val,test]")
SIMCLR = (
    *(*CELLS, "num_warmup_epochs=1", "model.key=test_resnet", "model.pretrained=false", "model.projector=[16,8]"),
    *("temperature=0.2", "dataloaders.sampler=plate", "train_batch_size=16", "report=false"),
)
SUPERVISED = (
    *(*CELLS, "num_warmup_epochs=1", "model.key=test_resnet", "model.pretrained=false", "dataloaders.num_img=1"),
    *("dataloaders.sampler=plate", "train_batch_size=16", "eval_batch_size=50", "report=false"),
)
PROBE = (*CELLS, "transforms=plain", "num_warmup_epochs=0", "model_path=encoder", "report=false")

PLATES, WELLS, SITES, SIZE = ("P1", "P2"), ("A01", "A02", "B01", "B02"), (1, 2), 20
CHANNELS = ("DNA", "actin")


def build(folder: Path) -> None:
    """Make what is not there yet.

    Raises:
        RuntimeError: this checkout cannot make it, so that nothing can be tried.
    """
    os.environ["BIOMASS_DATA"] = str(folder / "data")
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("net", command("train_erm", *TRAIN, "num_epochs=2", "run_name=net")),
        ("encoder", command("train_simclr", *SIMCLR, "num_epochs=1", "run_name=encoder")),
        ("probe", command("train_classifier", *PROBE, "num_epochs=1", "run_name=probe")),
        ("calibrated", command("calibrate", *CELLS, "model_path=encoder", "run_name=calibrated")),
        ("screen", lambda: write_screen(folder / "screen")),
        ("fields", lambda: write_fields(folder / "fields")),
        ("store", command("pack", str(folder / "screen" / "manifest.csv"), str(folder / "store"), "--workers", "1")),
        ("lab", lambda: _lab(folder / "lab")),
        ("h5", lambda: write_h5(folder / "h5")),
        ("profiles", lambda: profiles().to_csv(folder / "profiles.csv", index=False)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, function in steps:
        done = folder / f".{name}"
        if done.exists():
            continue
        ended = forks.run(function, folder, folder / f"{name}.log", 300, limits=False)
        if ended.code != 0:
            raise RuntimeError(f"the kit's '{name}' cannot be made, so that nothing can be tried:\n{ended.output}")
        done.touch()


def images(seed: int = 0) -> np.ndarray:
    """The images of the small screen, (N, C, H, W) uint16."""
    rng = np.random.default_rng(seed)
    count = len(PLATES) * len(WELLS) * len(SITES)
    return rng.integers(100, 4000, (count, len(CHANNELS), SIZE, SIZE)).astype(np.uint16)


def rows() -> pd.DataFrame:
    """The table of the small screen."""
    keys = [(plate, well, site) for plate in PLATES for well in WELLS for site in SITES]
    table = pd.DataFrame(keys, columns=["plate", "well", "site"]).assign(experiment="E1")
    label = {"A01": "DMSO", "A02": "taxol", "B01": "actin", "B02": "taxol"}
    paths = [f"images/{plate}_{well}_{site}.npy" for plate, well, site in keys]
    return table.assign(label=table["well"].map(label), path=paths, split="train")


def write_screen(folder: Path) -> Path:
    """A manifest of ``.npy`` files."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = rows()
    for path, image in zip(table["path"], images(), strict=True):
        np.save(folder / path, image)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def write_fields(folder: Path) -> Path:
    """A manifest of TIFFs with nuclei, for crop."""
    import tifffile
    from scipy.ndimage import gaussian_filter

    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:80, :100]
    table = rows()[::2].assign(path=lambda t: t["plate"] + "_" + t["well"] + ".tif")
    for number, path in enumerate(table["path"]):
        image = np.zeros((80, 100))
        for cy, cx in [(30, 30), (30, 60), (55, 75)][: 1 + number % 3]:
            image[np.hypot(y - cy, x - cx) < 8] = 4000
        noise = np.random.default_rng(number).normal(500, 10, image.shape)
        tifffile.imwrite(folder / path, (gaussian_filter(image, 1) + noise).astype(np.uint16))
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def write_h5(folder: Path) -> Path:
    """BBBC021 as pybbbc writes it: two plates of six fields."""
    from biomass.pixels.bbbc021_files import link_plates, write_plate

    rng = np.random.default_rng(1)
    files = []
    for number, plate in enumerate(("Week1_22123", "Week2_24381")):
        known = [("DMSO", "DMSO"), ("taxol", "Microtubule stabilizers"), ("AZ138", "Eg5 inhibitors")]
        table = pd.DataFrame(
            {
                "plate": plate,
                "well": [f"B{i + 2:02d}" for i in range(6)],
                "site": 1,
                "replicate": 1 + number,
                "compound": [known[i % 3][0] for i in range(6)],
                "concentration": [0.0 if i % 3 == 0 else 0.3 for i in range(6)],
                "moa": [known[i % 3][1] for i in range(6)],
            }
        )
        files.append(folder / "hdf5" / f"{plate}.h5")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        write_plate(files[-1], rng.random((6, 3, SIZE, SIZE)).astype(np.float16), table)
    link_plates(folder / "bbbc021.h5", files)
    return folder / "bbbc021.h5"


def profiles(features: int = 6, plates: int = 4, wells: int = 12) -> pd.DataFrame:
    """Profiles of wells; a third are controls."""
    draw, count = np.random.default_rng(0), plates * wells
    well = np.arange(count) % wells
    about = {
        "Metadata_Batch": [f"B{i // wells // 2}" for i in range(count)],
        "Metadata_Plate": [f"P{i // wells}" for i in range(count)],
        "Metadata_Well": [f"A{i + 1:02d}" for i in well],
        "Metadata_treatment": np.where(well < wells // 3, "DMSO", np.char.add("c", (well % 4).astype(str))),
    }
    return pd.DataFrame(about | {f"f{i}": draw.normal(size=count).round(6) for i in range(features)})


def _lab(folder: Path) -> None:
    from biomass.simulation.lab_folder import simulate_lab_folder

    simulate_lab_folder(folder, "imagexpress", plates=3, sites=1, size=48)
