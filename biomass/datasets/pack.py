"""The published door of ``biomass pack``: ``python -m biomass.datasets.pack``."""

from biomass.commands.pack import main

if __name__ == "__main__":
    main()
