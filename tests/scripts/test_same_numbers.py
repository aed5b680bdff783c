"""Every preset gives the numbers that it gave before: digests first stored before statistics had words, at commit
22649e9, and anew when the steps of Adam became fused, which changed their last bits.

On a machine like the one that stored them, weights and profiles are compared to the bit; elsewhere by their metrics.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY_RUN, TINY_SCREEN
from hydra import compose, initialize_config_dir

from biomass.config import Config

STORED = Path(__file__).with_name("same_numbers.json")

ERM = (
    *TINY_SCREEN,
    *TINY_RUN,
    "num_epochs=2",
    "train_batch_size=8",
    "dataloaders.source.wells=8",
    "trainer.monitor=val/accuracy",
    "dataloaders.eval_splits=[val,test]",
)
CELLS = (
    "dataloaders=simulated_cells",
    *(o for o in TINY_SCREEN if o != "dataloaders=simulated" and "size" not in o),
    "dataloaders.source.size=80",
    "model.key=test_resnet",
    "model.pretrained=false",
    "device=cpu",
    "num_warmup_epochs=1",
    "num_epochs=2",
    "train_batch_size=8",
    "dataloaders.mode=random",
    "dataloaders.num_img=2",
    "dataloaders.eval_splits=[val]",
)
SIMCLR = (*CELLS, "model.projector=[16,16,8]", "num_views=2", "temperature=0.1", "weight_decay=0")
SUPERVISED = (*CELLS, "eval_batch_size=64", "dataloaders.num_img=1", "weight_decay=1e-5")
PROBE = (
    "transforms=plain",
    "dataloaders=simulated_cells",
    *(o for o in CELLS if "source" in o or "num_workers" in o),
    "device=cpu",
    "dataloaders.eval_splits=[val]",
    "num_epochs=3",
    "num_warmup_epochs=0",
    "train_batch_size=8",
    "encode_batch_size=64",
    "trainer.clip=null",
    "learning_rate=0.1",
)
TRANSFER = (
    "dataloaders=simulated_bbbc021",
    "dataloaders.simulated.weeks=2",
    "dataloaders.simulated.replicates=2",
    "dataloaders.simulated.compounds=2",
    "dataloaders.simulated.concentrations=2",
    "device=cpu",
    "dataloaders.simulated.height=96",
    "dataloaders.simulated.width=96",
    "model.key=test_resnet",
    "model.pretrained=false",
    "figures=false",
    "postprocessings=[none]",
    "encode_batch_size=64",
)

RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"erm-{m}": ("train_erm", (*ERM, f"+method={m}")) for m in ("vanilla", "ben", "ben_experiment", "adabn")},
    "erm-ben_controls": ("train_erm", (*ERM, "+method=ben_controls", "dataloaders.num_controls=2")),
    "simclr-random": ("train_simclr", (*SIMCLR, "dataloaders.sampler=random")),
    "simclr-plate": ("train_simclr", (*SIMCLR, "dataloaders.sampler=plate")),
    "supervised_cell-random": ("train_supervised_cell", (*SUPERVISED, "dataloaders.sampler=random")),
    "supervised_cell-plate": ("train_supervised_cell", (*SUPERVISED, "dataloaders.sampler=plate")),
    "supervised_cell-exp": ("train_supervised_cell", (*SUPERVISED, "dataloaders.sampler=exp")),
    **{
        f"probe-{sampler}-{mode}": (
            "train_classifier",
            (*PROBE, f"dataloaders.sampler={sampler}", f"model_train_mode={mode}", "model_path=simclr-plate"),
        )
        for sampler, mode in (("plate", "true"), ("plate", "false"), ("random", "true"), ("exp", "true"))
    },
    "transfer": ("transfer_bbbc021", TRANSFER),
}


def result(folder: Path, name: str) -> dict[str, str | dict[str, float]]:
    """The last metrics of a run, and a digest of its weights or profiles."""
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    metrics = {k: v for line in lines for k, v in line.items() if "/" in k and isinstance(v, float)}
    digest = hashlib.sha256()
    checkpoint = folder / "checkpoints" / name / "last.pt"
    if checkpoint.exists():
        for tensor in torch.load(checkpoint, weights_only=True)["network"].values():
            digest.update(tensor.contiguous().numpy().tobytes())
    older = {"wells_running": "wells_frozen", "wells_plate": "wells_all"}  # by the names, and in the order, of then
    for file in sorted((folder / "runs" / name).glob("wells_*.parquet"), key=lambda f: older.get(f.stem, f.stem)):
        digest.update(pd.read_parquet(file).filter(like="emb_").to_numpy().tobytes())
    return {"digest": digest.hexdigest(), "metrics": metrics}


def machine() -> list[str]:
    """What the last bits of a result depend on."""
    return [torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()]


def main(folder: Path) -> None:
    """All runs, one after the other, in ``folder``; what they gave goes into ``found.json``."""
    torch.set_num_threads(1)
    os.chdir(folder)
    found = {}
    for name, (script, overrides) in RUNS.items():
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose(script, [*overrides, f"run_name={name}"])
        if "report" in config:
            config.report = False
        importlib.import_module(script).main.__wrapped__(Config(config))
        found[name] = result(folder, name)
    (folder / "found.json").write_text(json.dumps(found))


def test_every_preset_gives_the_numbers_that_it_gave(tmp_path: Path, data_root: Path) -> None:
    """In a process of its own: what a process has run before can change the last bits."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "BIOMASS_DATA": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found, stored = json.loads((tmp_path / "found.json").read_text()), json.loads(STORED.read_text())
    assert found.keys() == stored["runs"].keys()
    for name, expected in stored["runs"].items():
        known = {key: found[name]["metrics"].get(key) for key in expected["metrics"]}  # later metrics come on top
        assert known == pytest.approx(expected["metrics"], rel=1e-3, abs=1e-4), name
        if machine() == stored["machine"]:
            assert {"digest": found[name]["digest"], "metrics": known} == expected, name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
