"""Plate batches: which rows of a screen stand together in a batch, and which cells make its views."""

from biomass.samplers.cell_batches import CellBatches, check_views
from biomass.samplers.plate_batches import PlateBatches
from biomass.samplers.share import ShareOfRank

__all__ = ["CellBatches", "PlateBatches", "ShareOfRank", "check_views"]
