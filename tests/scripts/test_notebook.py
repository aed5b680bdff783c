"""The notebooks run from top to bottom, their cells are short, and nothing of a run is left in git."""

import copy
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import pytest
import torch
from conftest import ROOT, run_script
from nbclient import NotebookClient

from biomass.errors import ConfigError
from biomass.evaluation import transfer
from biomass.models import Architecture, build_network
from biomass.simulation.lab_folder import simulate_lab_folder

NOTEBOOK, OWN = (ROOT / f"notebooks/{name}.ipynb" for name in ("pybbbc", "own_screen"))

SMALL = {
    "SIMULATED": {
        "weeks": 2,
        "replicates": 1,
        "compounds": 2,
        "concentrations": 1,
        "taxol_wells": 1,
        "height": 96,
        "width": 112,
    },
    "TRAINING": [
        "num_epochs=1",
        "num_warmup_epochs=0",
        "model.key=test_resnet",
        *(
            f"dataloaders.source.{k}={v}"
            for k, v in {"experiments": 4, "treatments": 4, "wells": 4, "size": 96}.items()
        ),
    ],
}
"""Small enough for every run of the test suite."""


@pytest.fixture(scope="module")
def strip_notebook():
    spec = importlib.util.spec_from_file_location("strip_notebook", ROOT / "misc/strip_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(path, until, parameters):
    """A notebook with other values in its first cell of code, up to a cell."""
    notebook = nbformat.read(path, as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    names = re.findall(r"^(\w+) = ", notebook.cells[place].source, re.M)
    assert set(parameters) <= set(names)
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    if until:
        last = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and until in cell.source)
        del notebook.cells[last + 1 :]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    return notebook


def execute(path=NOTEBOOK, **parameters):
    """Run a notebook as people do; returns its texts and pictures."""
    notebook = prepared(path, None, parameters)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [d["text/markdown"] for d in data if "text/markdown" in d], sum("image/png" in d for d in data)


def execute_here(path=NOTEBOOK, until=None, **parameters):
    """Run the code of a notebook, and its commands, in this process, where all is imported already; its variables."""
    known = {}
    for cell in prepared(path, until, parameters).cells:
        if cell.cell_type == "code" and cell.source.startswith("%%bash"):
            command_here(cell.source.partition("\n")[2])
        elif cell.cell_type == "code":
            exec(re.sub(r"(?m)^%.*$", "", cell.source), known)
    return known


def command_here(text):
    """Run the commands of a cell, without a page in the end."""
    for line in os.path.expandvars(text.replace("\\\n", " ")).splitlines():
        first, second, *words = shlex.split(line)
        if first == "python":
            run_script(Path(second).stem, *words)
        elif (ROOT / f"configs/{second}.yaml").exists():
            run_script(second, *words)
        else:
            importlib.import_module(f"biomass.commands.{second}").main(words)


def accuracy(folder, name):
    return transfer.evaluate(pd.read_parquet(folder / f"wells_{name}.parquet")).nscb.accuracy


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook as it is, but small: its folder, texts and pictures."""
    folder = tmp_path_factory.mktemp("notebook")
    return folder, *execute(FOLDER=str(folder / "out"), **SMALL)


def test_the_notebook_runs_without_any_download(executed):
    folder, tables, pictures = executed
    assert pictures == 4
    rows = [line.split(" | ")[:2] for line in tables[0].splitlines()[2:]]
    how = [one.title for one in transfer.POSTPROCESSINGS.values()]
    assert rows == [
        [f"| {name}", title] for name in ("no BEN", "BEN, all cells", "BEN, control cells") for title in how
    ]
    assert {path.name for path in folder.iterdir()} == {"out"}


def own_screen(folder):
    """The parameters of the notebook of a screen of one's own, of small folders."""
    lab, later = (
        simulate_lab_folder(folder / name, "imagexpress", plates=plates, sites=1, size=48, seed=plates)
        for name, plates in (("lab", 3), ("later", 4))
    )
    training = "num_epochs=1 num_warmup_epochs=0 train_batch_size=8 dataloaders.num_workers=0"
    return {
        "IMAGES": str(lab.images),
        "PLATEMAP": str(lab.platemap),
        "NEXT": str(later.images),
        "FOLDER": str(folder / "out"),
        "TRAINING": f"model.key=test_resnet model.pretrained=false {training}",
    }


def check_runs(runs):
    """Profiles and predictions are what they must be."""
    assert len(pd.read_parquet(runs / "profiles/profiles_wells.parquet")) == 36
    predictions = pd.read_parquet(runs / "predictions/predictions_wells.parquet")
    assert len(predictions) == 48
    assert set(predictions.filter(regex="(?i)^Metadata_batch$").iloc[:, 0]) == {"December"}


def test_a_screen_of_ones_own_is_indexed_trained_profiled_and_predicted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):
        known = execute_here(OWN, **own_screen(tmp_path))
    check_runs(tmp_path / "out/runs")
    assert (known["table"]["prediction"] == known["predictions"]["prediction"]).all()
    assert len(known["vectors"]) == 2
    assert {file.name for file in (tmp_path / "out/look").glob("*.png")} >= {"check.png", "examples.png"}


@pytest.mark.slow
def test_a_screen_of_ones_own_as_people_run_it_with_pages_in_the_end(tmp_path):
    _, pictures = execute(OWN, **own_screen(tmp_path))
    assert pictures == 2
    check_runs(tmp_path / "out/runs")
    assert {file.parent.name for file in (tmp_path / "out/runs").glob("*/report.html")} == {"my_run", "profiles"}


def checkpoint(folder, channels, seed):
    """An encoder that nothing has trained, as the scripts write it."""
    architecture = Architecture("test_resnet", len(channels), ())
    state = {"architecture": architecture.to_dict(), "network": build_network(architecture, seed=seed).state_dict()}
    torch.save({**state, "channels": list(channels)}, folder / f"{seed}.pt")
    return str(folder / f"{seed}.pt")


def test_every_encoder_is_given_its_own_channels(executed, tmp_path):
    one, other = checkpoint(tmp_path, ["nuclei", "actin"], 0), checkpoint(tmp_path, ["actin", "nuclei", "ER"], 1)
    (root,) = (executed[0] / "out/data/simulated_bbbc021").glob("[!.]*")
    same = {"BBBC021": str(root), "until": "transfer.well_profiles("}
    execute_here(FOLDER=str(tmp_path / "a"), MODEL_PATH=one, FROZEN_MODEL_PATH=other, **same)
    execute_here(FOLDER=str(tmp_path / "b"), MODEL_PATH=other, **same)
    a, b = (pd.read_parquet(tmp_path / folder / "wells_running.parquet") for folder in "ab")
    pd.testing.assert_frame_equal(a, b)


def test_plain_state_dicts_and_what_cannot_work_before_anything_is_encoded(tmp_path):
    network = build_network(Architecture("convnext_tiny", 3, ()))
    torch.save(network.encoder.state_dict(), tmp_path / "plain.pth")
    parameters = {"MODEL_PATH": str(tmp_path / "plain.pth"), "SIMULATED": SMALL["SIMULATED"]}
    with pytest.raises(ConfigError, match="does not say which network its weights belong to"):
        execute_here(FOLDER=str(tmp_path / "out"), **parameters)
    with pytest.raises(ConfigError, match="network 'convnext_tiny' has no batch norm"):
        execute_here(FOLDER=str(tmp_path / "out"), MODEL_KEY="convnext_tiny", **parameters)
    assert not (tmp_path / "out/plates").exists()


@pytest.mark.slow
def test_as_it_is_and_with_other_paths(tmp_path):
    execute(FOLDER=str(tmp_path / "out"))
    assert accuracy(tmp_path / "out", "controls") > accuracy(tmp_path / "out", "plate")
    (root,) = (tmp_path / "out/data/simulated_bbbc021").glob("[!.]*")
    checkpoint = tmp_path / "out/checkpoints/encoder/last.pt"
    execute(FOLDER=str(tmp_path / "other"), BBBC021=str(root), MODEL_PATH=str(checkpoint))
    assert not (tmp_path / "other/data").exists()
    assert accuracy(tmp_path / "other", "controls") == accuracy(tmp_path / "out", "controls")


@pytest.mark.parametrize("path", [NOTEBOOK, OWN], ids=lambda path: path.stem)
def test_cells_are_short_and_know_no_machine(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        assert cell["cell_type"] == "markdown" or len(cell["source"]) <= 20
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|mnt|Users)\b", source)
        assert not re.search(r"^\s*(def|class|for .*:$|while) ", source, re.M) or cell["cell_type"] == "markdown"


@pytest.mark.parametrize("notebook", [NOTEBOOK, OWN], ids=lambda path: path.stem)
def test_outputs_are_stripped(notebook, strip_notebook, tmp_path):
    clean = json.loads(notebook.read_text())
    assert strip_notebook.strip(copy.deepcopy(clean)) == clean
    dirty = copy.deepcopy(clean)
    dirty["metadata"]["widgets"] = {"state": 1}
    for n, cell in enumerate(dirty["cells"]):
        cell["metadata"]["collapsed"] = True
        if cell["cell_type"] == "code":
            cell |= {"execution_count": n, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["secret"]}]}
    path = tmp_path / "dirty.ipynb"
    path.write_text(json.dumps(dirty))
    strip_notebook.main([str(path)])
    assert path.read_text() == notebook.read_text()
    stamp = path.stat().st_mtime_ns
    strip_notebook.main([str(path)])
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("text", ["not json", "[]", "{}"])
def test_what_is_no_notebook_is_refused(strip_notebook, tmp_path, text):
    path = Path(tmp_path / "x.ipynb")
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"error: '.*x.ipynb' .*\(\w+Error\)"):
        strip_notebook.main([str(path)])
    assert path.read_text() == text
