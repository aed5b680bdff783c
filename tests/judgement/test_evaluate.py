"""All of it, on small tables, with what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from simulated_profiles import simulated

import biomass
from biomass.judgement.evaluate import Settings


def test_what_is_the_same_for_many_is_said_once_and_nothing_that_was_skipped_is_lost(tmp_path: Path) -> None:
    profiles = simulated(experiments=1, plates=2, features=4, layout="fixed", compounds=20, controls=4)
    wells = profiles.wells.drop(columns=["plate", "experiment", "cells"], errors="ignore")
    settings = Settings(("standardize", "whiten"), maps="none")
    biomass.evaluate({"mine": replace(profiles, wells=wells)}, str(tmp_path / "run"), settings)
    skipped = json.loads((tmp_path / "run/evaluation.json").read_text())["skipped"]
    assert "cell count only: nothing says how many cells a well has" in skipped
    assert sum("which plate a well is of" in one for one in skipped) == 1
    assert any(one.startswith("plates that come later: ") for one in skipped)
    table = pd.read_csv(tmp_path / "run/table.csv")
    assert len(table) == len(table.drop_duplicates(["statistics", "correction", "metric"]))
