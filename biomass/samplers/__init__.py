"""Plate batches: which rows of a screen stand together in a batch."""

from biomass.samplers.plate_batches import PlateBatches

__all__ = ["PlateBatches"]
