"""A simulated BBBC021, made on first use."""

from biomass.simulation.bbbc021 import Design, simulate_bbbc021

__all__ = ["Design", "simulate_bbbc021"]
