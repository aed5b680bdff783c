"""The screen in the layout of RxRx1: its plates, its files, and what interrupts them."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from wilds.datasets.rxrx1_dataset import RxRx1Dataset

from biomass.datasets.simulated import load_simulated
from biomass.errors import ConfigError
from biomass.simulation import rxrx1 as simulated
from biomass.simulation.optics import draw_nuisance
from biomass.simulation.rxrx1 import CROP, Design, lay_out, plate_nuisance, render_plate, simulate_rxrx1

ROOT = Path(__file__).resolve().parents[2]
TINY = Design(
    experiments=4,
    plates=2,
    treatments=5,
    positive_controls=2,
    wells=5,
    negative_wells=2,
    empty_wells=1,
    size=80,
    cell_types=("RPE", "U2OS"),
    cells=True,
)
WHOLE = Design(experiments=51, treatments=1108, positive_controls=30, wells=277, negative_wells=1)  # as large as RxRx1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_rxrx1(tmp_path_factory.mktemp("data"), TINY)


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, by relative path."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# ---- the nuisance of its plates


def spread(plates: list[dict[str, float]]) -> np.ndarray:
    """Root mean square over plates of every nuisance, in log units where it is a factor, from the ideal plate."""
    table = pd.DataFrame(plates)
    ideal = draw_nuisance(np.random.default_rng(0), np.random.default_rng(0), strength=0).flat()
    factors = [c for c in table if ideal[c]]
    table[factors] = np.log(table[factors] / pd.Series(ideal)[factors])
    return np.sqrt((table**2).mean().to_numpy())


def test_unseen_experiments_are_shifted_more() -> None:
    design = Design(experiments=60, plates=4, test_shift=1.5)
    values: dict[str, list[dict[str, float]]] = {}
    for plate in lay_out(design):
        values.setdefault(plate.split, []).append(plate_nuisance(design, plate).flat())
    ratio = spread(values["test"]) / spread(values["train"])
    assert np.mean(ratio) == pytest.approx(1.5, rel=0.1)
    assert np.mean(spread(values["val"]) / spread(values["train"])) > 1.2


def test_plates_of_an_experiment_resemble_each_other() -> None:
    design = Design(experiments=60, plates=2, test_shift=1.0)
    table = pd.DataFrame([plate_nuisance(design, p).flat() for p in lay_out(design)])
    gamma = np.log(table.filter(like="gamma").to_numpy()).reshape(60, 2, 3)
    within = np.corrcoef(gamma[:, 0].ravel(), gamma[:, 1].ravel())[0, 1]
    assert within == pytest.approx(0.6, abs=0.15)


# ---- the layout


def test_rxrx1_itself_can_be_laid_out() -> None:
    plates = lay_out(WHOLE)
    assert len(plates) == 51 * 4
    assert len({(p.experiment, p.number) for p in plates}) == len(plates)
    splits = pd.Series({p.experiment: p.split for p in plates}).value_counts()
    assert splits.to_dict() == {"train": 33, "val": 4, "test": 14}
    for experiment in range(0, 51, 10):
        four = plates[4 * experiment : 4 * experiment + 4]
        classes = np.concatenate([p.classes for p in four])
        assert sorted(classes[classes < 1108]) == list(range(1108))  # every treatment in exactly one well
    for plate in plates[:8]:
        assert len(set(plate.wells)) == 308 == len(plate.wells)
        assert list(plate.wells) == sorted(plate.wells)
        assert sorted(plate.classes[plate.classes >= 1108]) == list(range(1108, 1139))
    assert (plates[0].classes != plates[4].classes).any()
    assert set(plates[0].classes) != set(plates[4].classes)


def test_every_plate_holds_its_controls_and_every_experiment_its_treatments() -> None:
    design = Design(experiments=5, plates=3, treatments=8, positive_controls=3, wells=9, empty_wells=2)
    plates = lay_out(design)
    for plate in plates:
        counts = np.bincount(plate.classes, minlength=12)
        assert counts[8:].tolist() == [1, 1, 1, 4]
        assert counts[:8].sum() == 9
        assert plate.empty.sum() == 2
        assert (plate.classes[plate.empty] < 8).all()
        assert all("B" <= w[0] <= "O" and 2 <= int(w[1:]) <= 23 for w in plate.wells)
    for e in range(5):
        counts = sum(np.bincount(p.classes, minlength=12) for p in plates[3 * e : 3 * e + 3])
        assert set(counts[:8]) == {3, 4}  # 27 wells for 8 treatments


def test_each_split_has_experiments_and_a_cell_type_is_trained_on_first() -> None:
    for n in range(3, 20):
        splits = pd.DataFrame([(p.experiment, p.split, p.cell_type) for p in lay_out(Design(experiments=n))])
        assert set(splits[1]) == {"train", "val", "test"}
        assert set(splits.loc[splits[1] != "train", 2]) <= set(splits.loc[splits[1] == "train", 2])
        assert splits[0].nunique() == n


# ---- the files


def test_wilds_reads_it(folder: Path) -> None:
    with pd.option_context("mode.copy_on_write", False):  # pycytominer may have switched it on; wilds fails then
        dataset = RxRx1Dataset(root_dir=folder, download=False)
    fields = 2 * 9 * 2  # of an experiment: plates, wells, sites
    sizes = {split: len(dataset.get_subset(split)) for split in dataset.split_dict}
    assert sizes == {"train": fields, "id_test": fields, "val": fields, "test": fields}
    assert dataset.n_classes == 8
    assert dataset.get_input(0).size == (80, 80)
    assert dataset.get_input(0).mode == "RGB"


def test_the_layout_is_complete(folder: Path) -> None:
    images = folder / "rxrx1_v1.0"
    table = pd.read_csv(images / "metadata.csv", keep_default_na=False)
    assert list(table) == [
        "site_id",
        "well_id",
        "cell_type",
        "dataset",
        "experiment",
        "plate",
        "well",
        "site",
        "well_type",
        "sirna",
        "sirna_id",
    ]
    names = table["experiment"] + "/Plate" + table["plate"].astype(str) + "/" + table["well"]
    names += "_s" + table["site"].astype(str)
    found = {str(f.relative_to(images / "images")) for f in (images / "images").rglob("*.png")}
    assert found == set(names + ".png")
    assert table["site_id"].is_unique
    assert table["well_id"].nunique() == len(table) // 2
    kinds = table.drop_duplicates("sirna_id").set_index("sirna_id").sort_index()["well_type"]
    assert kinds.tolist() == ["treatment"] * 5 + ["positive_control"] * 2 + ["negative_control"]
    assert len(table.drop_duplicates(["sirna", "sirna_id"])) == 8 == table["sirna"].nunique()
    assert table.groupby(["experiment", "plate"])["well_type"].nunique().eq(3).all()
    truth = pd.read_csv(folder / "nuisance.csv")
    assert len(truth) == 8
    assert truth.notna().all(axis=None)


def test_cells_are_cut_out_of_the_images(folder: Path) -> None:
    summary = pd.read_csv(folder / "cells.csv")
    metadata = pd.read_csv(folder / "rxrx1_v1.0" / "metadata.csv")
    keys = ["experiment", "plate", "well", "site"]
    pd.testing.assert_frame_equal(summary[keys], metadata[keys])
    assert summary["segmented"].nunique() > 3
    for row in summary.itertuples():
        place = f"{row.experiment}/Plate{row.plate}/{row.well}_s{row.site}"
        crops = [np.array(Image.open(folder / "cells" / place / f"{i}.png")) for i in range(row.segmented)]
        assert len(list((folder / "cells" / place).iterdir())) == row.segmented
        image = np.array(Image.open(folder / "rxrx1_v1.0" / "images" / f"{place}.png"))
        for crop in crops[:1]:
            assert crop.shape == (CROP, CROP, 3)
            windows = np.lib.stride_tricks.sliding_window_view(image, crop.shape)[:, :, 0]
            assert (windows == crop).all((2, 3, 4)).sum() == 1


def test_wells_without_cells_show_the_background(folder: Path) -> None:
    keys = ["experiment", "plate", "well", "site"]
    summary = pd.read_csv(folder / "cells.csv").set_index(keys)["segmented"].sort_index()
    for plate in lay_out(TINY):
        for well in plate.wells[plate.empty]:
            assert summary[plate.experiment, plate.number, well].tolist() == [0, 0]
            path = folder / "rxrx1_v1.0" / "images" / plate.experiment / f"Plate{plate.number}" / f"{well}_s1.png"
            image = np.array(Image.open(path)).astype(float)
            # No cell: nothing but noise on the illumination, which a plane and a parabola describe.
            y, x = np.meshgrid(*[np.linspace(-1, 1, 80)] * 2, indexing="ij")
            base = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1).reshape(-1, 6)
            rest = image.reshape(-1, 3) - base @ np.linalg.lstsq(base, image.reshape(-1, 3), rcond=None)[0]
            assert rest.std(0).max() < 6
    assert len([p for p in lay_out(TINY) if p.empty.sum() == 1]) == 8


def test_the_same_design_is_the_same_screen_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    again = simulate_rxrx1(tmp_path, TINY, workers=1)
    assert again.name == folder.name
    first, second = digests(folder), digests(again)
    assert first == second
    assert len(first) > 8 * 9 * 2
    other = replace(TINY, seed=1)
    assert other.name != TINY.name
    plates = lay_out(TINY)[0], lay_out(other)[0]
    images = [next(render_plate(d, p))[0] for d, p in zip((TINY, other), plates, strict=True)]
    assert (images[0] != images[1]).any((1, 2, 3)).all()


@pytest.mark.parametrize(
    ("design", "name", "light"),
    [
        (Design(), "ec347147d2", [45.032, 44.161, 110.596]),
        (TINY, "29dee26979", [34.259, 37.577, 86.746]),
        (
            Design(experiments=3, plates=1, treatments=8, wells=8, intensity_effect=0.5, drift=0.4, seed=3),
            "148e17217d",
            [42.813, 85.334, 92.229],
        ),
    ],
)
def test_screens_of_before_keep_their_names_and_their_pixels(design: Design, name: str, light: list[float]) -> None:
    """Stored at commit 3ed9b27, before there were growth_effect, cell_spread and mottle.

    Means of the first plate's channels: other random numbers would shift them by more. To the bit, the screens of
    tests/scripts/test_same_numbers.py are compared.
    """
    assert design.name == name
    assert not {"growth_effect", "cell_spread", "mottle"} & set(json.loads(design.to_json()))
    images = np.concatenate([images for images, _ in render_plate(design, lay_out(design)[0])])
    assert images.mean((0, 2, 3)) == pytest.approx(light, abs=0.01)


@pytest.mark.parametrize("changed", [{"growth_effect": 0.0}, {"cell_spread": 0.5}, {"mottle": 2.0}])
def test_a_harder_screen_has_a_name_and_pixels_of_its_own(changed: dict[str, float]) -> None:
    hard = replace(TINY, **changed)
    assert hard.name != TINY.name
    assert json.loads(hard.to_json()).items() >= changed.items()
    first, second, plain = (
        np.concatenate([images for images, _ in render_plate(d, lay_out(d)[0])]) for d in (hard, hard, TINY)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != plain).any((1, 2, 3)).sum() > len(plain) / 2


def test_chunks_of_fields_bound_memory_and_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_CHUNK_PIXELS", 5 * 80**2)
    chunks = [len(images) for images, _ in render_plate(TINY, lay_out(TINY)[0])]
    assert chunks == [5, 5, 5, 3]


@pytest.mark.parametrize(("effect", "seen"), [(0.0, False), (1.0, True)])
def test_a_perturbation_is_seen_in_the_pixels_of_an_ideal_plate(effect: float, seen: bool) -> None:
    design = Design(
        experiments=3,
        plates=1,
        treatments=1,
        positive_controls=0,
        wells=30,
        negative_wells=30,
        sites=1,
        nuisance=0,
        intensity_effect=effect,
        shape_effect=2 * effect,
    )
    plate = lay_out(design)[0]
    images = np.concatenate([images for images, _ in render_plate(design, plate)]).astype(float)
    values = np.concatenate([images.mean((2, 3)), images.std((2, 3)), np.abs(np.diff(images)).mean((2, 3))], 1)
    treated = plate.classes == 0
    t = (values[treated].mean(0) - values[~treated].mean(0)) / (values.std(0) * np.sqrt(2 / 30))
    assert (np.abs(t).max() > 4) == seen


# ---- interruptions and bad input


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_screen_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    save, calls = simulated._save, []

    def failing(path: Path, image: np.ndarray) -> None:
        calls.append(path)
        if len(calls) > 60:
            raise error
        save(path, image)

    monkeypatch.setattr(simulated, "_save", failing)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ConfigError
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else "No space") as caught:
        simulate_rxrx1(tmp_path, TINY)
    assert getattr(caught.value, "advice", "root_dir") == "root_dir"
    assert not [f for f in (tmp_path / "simulated").rglob("*") if not f.name.endswith(".lock")]
    monkeypatch.setattr(simulated, "_save", save)
    assert digests(simulate_rxrx1(tmp_path, TINY)) == digests(folder)


def test_a_killed_process_leaves_nothing_that_looks_complete(folder: Path, tmp_path: Path) -> None:
    code = f"import sys; from biomass.simulation.rxrx1 import *; simulate_rxrx1(sys.argv[1], {TINY!r}, workers=1)"
    slow = "import biomass.simulation.rxrx1 as s, time; f = s._save; s._save = lambda *a: (time.sleep(.01), f(*a)); "
    process = subprocess.Popen([sys.executable, "-c", slow + code, str(tmp_path)], cwd=ROOT)
    try:
        until(lambda: any(tmp_path.rglob("*_s1.png")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert any(tmp_path.rglob("*_s1.png"))  # killed in the middle
    assert not (tmp_path / "simulated" / TINY.name).exists()
    assert digests(simulate_rxrx1(tmp_path, TINY)) == digests(folder)
    assert [f.name for f in (tmp_path / "simulated").iterdir() if f.is_dir()] == [TINY.name]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_a_screen_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = simulated._write_screen, []

    def counted(folder: Path, design: Design, workers: int) -> None:
        calls.append(folder)
        write(folder, design, workers)

    monkeypatch.setattr(simulated, "_write_screen", counted)
    small = replace(TINY, cells=False, size=48)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: simulate_rxrx1(tmp_path, small, workers=1), range(3)))
    assert len(folders) == 1
    assert len(calls) == 1
    assert simulate_rxrx1(tmp_path, replace(small, seed=3)) not in folders
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"experiments": 2}, "experiments=2: use a whole number from 3"),
        ({"wells": 2.5}, r"wells=2\.5: use a whole number from 1"),
        ({"seed": -1}, "seed=-1"),
        ({"size": 32}, "size=32: use a whole number from 48"),
        ({"density": -1.0}, r"density=-1\.0: use a number from 0"),
        ({"nuisance": float("nan")}, "nuisance=nan"),
        ({"shape_effect": "much"}, "shape_effect=much"),
        ({"growth_effect": float("inf")}, "growth_effect=inf: use a number from 0"),
        ({"cell_spread": -0.1}, r"cell_spread=-0\.1: use a number from 0"),
        ({"mottle": None}, "mottle=None: use a number from 0"),
        ({"cell_types": ()}, "name at least one"),
        ({"treatments": 100, "wells": 10}, "100 treatments do not fit in 4 plates of 10 treated wells.* wells=25"),
        ({"wells": 301}, "308 wells, not 309"),
        ({"empty_wells": 31}, "empty_wells=31 is more than wells=30"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Design(**parameters)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_it_is_read_as_a_screen(tmp_path: Path) -> None:
    parameters = {"experiments": 3, "plates": 1, "treatments": 3, "positive_controls": 1, "wells": 3, "size": 48}
    screen = load_simulated(tmp_path, **parameters)
    assert len(screen) == 3 * (3 + 1 + 4) * 2
    assert len(screen.classes) == 5
    assert screen.negative_controls.sum() == 3 * 4 * 2
    assert screen.treated.sum() == 3 * 3 * 2
    assert screen.splits == ("id_test", "test", "train", "val")
    with pytest.raises(ConfigError, match=r"'welds'.* 'wells'"):
        load_simulated(tmp_path, **parameters, welds=3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=str(tmp_path / "file")) as caught:
        simulate_rxrx1(tmp_path / "file", TINY)
    assert caught.value.advice == "root_dir"
