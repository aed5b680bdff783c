"""The published door of ``biomass crop``: ``python -m biomass.datasets.crop``."""

from biomass.commands.crop import main

if __name__ == "__main__":
    main()
