"""Batch effects normalization for plate-based microscopy screens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biomass.trained import Model, load, open_screen

__all__ = ["Model", "load", "open_screen"]


def __getattr__(name: str) -> Any:
    """The names of :mod:`biomass.trained`, which takes seconds to import: it is, when one of them is used."""
    if name in __all__:
        from biomass import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'biomass' has no attribute '{name}'")
