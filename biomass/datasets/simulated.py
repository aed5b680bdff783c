"""Simulated screens in the layout of RxRx1-WILDS, written on first use."""

from pathlib import Path
from typing import Any

from biomass.datasets.rxrx1 import load_rxrx1
from biomass.datasets.rxrx1_cells import load_rxrx1_cells
from biomass.pixels.packed import packed_beside
from biomass.pixels.packed_writer import pack
from biomass.screen import Screen
from biomass.simulation.rxrx1 import Design, simulate_rxrx1
from biomass.simulation.screens import make_design


def load_simulated(root_dir: str | Path = "data", **design: Any) -> Screen:
    """A simulated screen as a Screen, written below ``root_dir`` on first use.

    Args:
        root_dir: the folder that data sources read from.
        design: parameters of :class:`biomass.simulation.rxrx1.Design` that differ from its defaults.

    Raises:
        ConfigError: an unknown parameter, one out of range, or a folder that cannot be written.
    """
    return load_rxrx1(simulate_rxrx1(root_dir, make_design(Design, design)), download=False)


def load_simulated_cells(root_dir: str | Path = "data", **design: Any) -> Screen:
    """The cropped cells of a simulated screen as a Screen, written below ``root_dir`` on first use.

    They are packed at once, because reading thousands of small files would take most of the time.

    Args:
        root_dir: the folder that data sources read from.
        design: parameters of :class:`biomass.simulation.rxrx1.Design` that differ from its defaults.

    Raises:
        ConfigError: an unknown parameter, one out of range, or a folder that cannot be written.
    """
    folder = simulate_rxrx1(root_dir, make_design(Design, {"cells": True} | design))
    screen = load_rxrx1_cells(folder / "cells", root_dir=folder, download=False)
    if packed_beside(folder / "cells") is None:
        pack(screen, folder / "cells.packed")
        screen = load_rxrx1_cells(folder / "cells", root_dir=folder, download=False)
    return screen
