"""The notebook runs from top to bottom, its cells are short, and nothing of a run is left in git."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from biomass.evaluation import transfer
from biomass.models import Architecture, build_network

NOTEBOOK = ROOT / "notebooks/pybbbc.ipynb"

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


def execute(**parameters):
    """Run the notebook with other values in its first cell of code; returns its texts and pictures."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    names = re.findall(r"^(\w+) = ", notebook.cells[place].source, re.M)
    assert set(parameters) <= set(names)
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [d["text/markdown"] for d in data if "text/markdown" in d], sum("image/png" in d for d in data)


def accuracy(folder, name):
    return transfer.evaluate(pd.read_parquet(folder / f"wells_{name}.parquet")).nscb.accuracy


def test_the_notebook_runs_without_any_download(tmp_path):
    tables, pictures = execute(FOLDER=str(tmp_path / "out"), **SMALL)
    assert pictures == 4
    rows = [line.split(" | ")[:2] for line in tables[0].splitlines()[2:]]
    how = [one.title for one in transfer.POSTPROCESSINGS.values()]
    assert rows == [
        [f"| {name}", title] for name in ("no BEN", "BEN, all cells", "BEN, control cells") for title in how
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def checkpoint(folder, channels, seed):
    """An encoder that nothing has trained, as the scripts write it."""
    architecture = Architecture("test_resnet", len(channels), ())
    state = {"architecture": architecture.to_dict(), "network": build_network(architecture, seed=seed).state_dict()}
    torch.save({**state, "channels": list(channels)}, folder / f"{seed}.pt")
    return str(folder / f"{seed}.pt")


def test_every_encoder_is_given_its_own_channels(tmp_path):
    one, other = checkpoint(tmp_path, ["nuclei", "actin"], 0), checkpoint(tmp_path, ["actin", "nuclei", "ER"], 1)
    same = {"SIMULATED": SMALL["SIMULATED"]}
    execute(FOLDER=str(tmp_path / "a"), MODEL_PATH=one, FROZEN_MODEL_PATH=other, **same)
    execute(FOLDER=str(tmp_path / "b"), MODEL_PATH=other, **same)
    a, b = (pd.read_parquet(tmp_path / folder / "wells_running.parquet") for folder in "ab")
    pd.testing.assert_frame_equal(a, b)


def test_plain_state_dicts_and_what_cannot_work_before_anything_is_encoded(tmp_path):
    network = build_network(Architecture("convnext_tiny", 3, ()))
    torch.save(network.encoder.state_dict(), tmp_path / "plain.pth")
    parameters = {"MODEL_PATH": str(tmp_path / "plain.pth"), "SIMULATED": SMALL["SIMULATED"]}
    with pytest.raises(CellExecutionError, match="does not say which network its weights belong to"):
        execute(FOLDER=str(tmp_path / "out"), **parameters)
    with pytest.raises(CellExecutionError, match="network 'convnext_tiny' has no batch norm"):
        execute(FOLDER=str(tmp_path / "out"), MODEL_KEY="convnext_tiny", **parameters)
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


def test_cells_are_short_and_know_no_machine():
    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        assert cell["cell_type"] == "markdown" or len(cell["source"]) <= 20
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|mnt|Users)\b", source)
        assert not re.search(r"^\s*(def|class|for .*:$|while) ", source, re.M) or cell["cell_type"] == "markdown"


def test_outputs_are_stripped(strip_notebook, tmp_path):
    clean = json.loads(NOTEBOOK.read_text())
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
    assert path.read_text() == NOTEBOOK.read_text()
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
