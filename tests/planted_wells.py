"""Profiles of simulated wells, with the effects that a test plants."""

import numpy as np
import pandas as pd

from biomass.identifiers import wells_at
from biomass.judgement.table import Profiles


def planted(
    plates: int = 8,
    rows: int = 6,
    columns: int = 8,
    experiments: int = 4,
    treatments: int = 12,
    controls: int = 8,
    features: int = 10,
    same_layout: bool = True,
    seed: int = 0,
    **effects: float,
) -> Profiles:
    """Wells whose features are noise of variance 1, and normal effects of the given sizes.

    Args:
        plates: of ``rows`` x ``columns`` wells.
        rows: of a plate.
        columns: of a plate.
        experiments: plates are dealt out to them.
        treatments: in turn in the wells that hold no control, at random places.
        controls: wells of DMSO on each plate.
        features: D.
        same_layout: whether the places are the same on all plates.
        seed: of everything.
        **effects: standard deviation of the effect of a ``plate``, an ``experiment``, a ``row`` or a ``treatment``.
    """
    generator = np.random.default_rng(seed)
    size = rows * columns
    names = np.array(["DMSO"] * controls + [f"T{i % treatments:03d}" for i in range(size - controls)])
    first = generator.permutation(names)
    treatment = [first if same_layout else generator.permutation(names) for _ in range(plates)]
    place = np.tile(np.arange(size), plates)
    plate = np.repeat(np.arange(plates), size)
    table = pd.DataFrame(
        {
            "plate": np.char.mod("P%02d", plate),
            "experiment": np.char.mod("E%02d", plate * experiments // plates),
            "row": place // columns,
            "column": place % columns,
            "treatment": np.concatenate(treatment),
        }
    )
    table["compound"] = table["treatment"]
    table["well"] = wells_at(table["row"] + 1, table["column"] + 1)
    table["control"] = np.where(table["treatment"] == "DMSO", "negative", "")
    x = generator.standard_normal((len(table), features))
    for column, effect in effects.items():
        number = pd.factorize(table[column])[0]
        x += effect * generator.standard_normal((number.max() + 1, features))[number]
    return Profiles(table, x.astype(np.float32), tuple(f"f{i}" for i in range(features)))
