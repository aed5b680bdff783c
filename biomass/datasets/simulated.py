"""Simulated screens in the layout of RxRx1-WILDS, made on first use."""

from biomass.simulation.rxrx1 import load_simulated, load_simulated_cells

__all__ = ["load_simulated", "load_simulated_cells"]
