"""Tools, one a module: ``biomass <tool>``."""
