"""A packed store as a source of its own."""

from biomass.pixels.packed import load_packed

__all__ = ["load_packed"]
