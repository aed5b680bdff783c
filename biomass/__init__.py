"""Batch effects normalization for plate-based microscopy screens."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from biomass.stopping import start_program

if TYPE_CHECKING:
    from biomass.judgement.evaluate import evaluate
    from biomass.judgement.read import read_profiles, understand
    from biomass.trained import Model, load, open_screen

__all__ = ["Model", "evaluate", "load", "open_screen", "read_profiles", "understand"]

_MODULES = {"evaluate": "judgement.evaluate", "read_profiles": "judgement.read", "understand": "judgement.read"}


def __getattr__(name: str) -> Any:
    """The names of modules that take seconds to import: they are, when one of their names is used."""
    if name in __all__:
        return getattr(import_module(f"biomass.{_MODULES.get(name, 'trained')}"), name)
    raise AttributeError(f"module 'biomass' has no attribute '{name}'")


_script = start_program()
# a root script comes here with its first import: what needs none of the others is answered now
if _script is not None and import_module("biomass.config").look_ahead(_script):
    raise SystemExit(0)
