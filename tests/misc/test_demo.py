"""``make demo``: two runs, their table, their picture and their pages."""

import os
import subprocess
import sys

from conftest import ROOT, TINY_RUN, TINY_SCREEN
from PIL import Image


def test_the_demo_ends_with_a_table_a_picture_and_a_page(data_root, tmp_path):
    environment = os.environ | {"BIOMASS_DATA": str(data_root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = (*TINY_SCREEN, *TINY_RUN, "num_epochs=1", "trainer.max_steps=1")
    command = [sys.executable, str(ROOT / "misc/demo.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("vanilla batch norm "))
    assert next(line for line in lines if line.startswith("BEN "))
    (picture,) = (tmp_path / "runs").glob("demo-*.png")
    assert Image.open(picture).size[0] > 1000
    (page,) = (tmp_path / "runs").glob("demo-*-profiles/report.html")
    assert lines[-1].endswith(str(page.relative_to(tmp_path)))
    assert picture.with_suffix(".html").exists()
