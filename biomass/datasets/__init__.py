"""Sources of Screens: modules with a function ``load_...``, and the tables, folders and downloads that these read.

``pack`` and ``crop`` are the published doors of two tools (:mod:`biomass.commands`).
"""
