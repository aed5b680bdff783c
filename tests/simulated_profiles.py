"""Simulated tables of profiles as :class:`Profiles`, and screens of all sizes with known truth."""

import numpy as np
import pandas as pd
import pytest

from biomass.evaluation.design import places
from biomass.judgement import evaluate
from biomass.judgement.table import Profiles
from biomass.simulation.profile_tables import simulate_profiles

ROLES = {
    "plate": "Metadata_Plate", "experiment": "Metadata_Batch", "well": "Metadata_Well", "treatment": "Metadata_label",
    "compound": "Metadata_compound", "mechanism": "Metadata_moa", "control": "Metadata_control",
    "cells": "Metadata_Count_Cells",
}  # fmt: skip


def understood(table: pd.DataFrame) -> Profiles:
    """Their columns, understood."""
    row, column = places(table["Metadata_Well"].tolist())
    wells = pd.DataFrame({role: table[name].to_numpy() for role, name in ROLES.items()})
    names = [name for name in table if not str(name).startswith("Metadata_")]
    return Profiles(wells.assign(row=row, column=column), table[names].to_numpy(np.float32), tuple(names))


def simulated(**parameters: object) -> Profiles:
    """Simulated, and understood."""
    return understood(simulate_profiles(**parameters))


def any_screen(kind: str, seed: int) -> dict[str, object]:
    """The design of a screen of any size and layout with an effect, or several (``plate+edge``), or none.

    Between 4 and 25 plates in 2 to 5 experiments, 60 to 384 wells each, 16 to 200 features.
    """
    rng = np.random.default_rng([seed, 7])

    def one_of(*values: object) -> object:
        return values[rng.integers(len(values))]

    design = {
        "seed": seed, "experiments": int(rng.integers(2, 6)), "plates": int(rng.integers(2, 6)),
        "features": one_of(16, 64, 200), "factors": one_of(3, 8, 20), "compounds": one_of(8, 22, 40),
        "controls": one_of(4, 8, 16), "layout": one_of("randomized", "fixed"), "heavy": one_of(0.0, 0.0, 4.0),
        "spread": one_of("all", "all", "experiment", "plate"), "treatment": one_of(0.3, 1.0, 2.0),
    } | one_of({"format": 96}, {"format": 96, "wells": 60}, {"format": 384, "wells": 200}, {"format": 384})  # fmt: skip
    size = float(rng.uniform(0.3, 1.2))
    planted = [name for name in kind.split("+") if name != "none"]
    return design | {name: size + 0.2 * (name == "edge") for name in planted}


def judge_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let :func:`biomass.judgement.evaluate.evaluate` measure a few things instead of all, and find no effects."""
    some = {key: evaluate.METRICS[key] for key in (*evaluate._INDUCED, "variance_plate")}
    monkeypatch.setattr(evaluate, "METRICS", some)
    monkeypatch.setattr(evaluate, "_COMPARED", tuple(some))
    monkeypatch.setattr(evaluate, "find_effects", lambda *_: {})
