"""From fields of view to cells: nuclei, their search, and the crops around them.

>>> from biomass.cells.crops import crop_screen
>>> from biomass.cells.fields import count_cells, place_nuclei
>>> from biomass.cells.nuclei import read_nuclei
>>> from biomass.cells.store import pack_cells
>>> from biomass.datasets.bbbc021 import load_bbbc021
>>> from biomass.datasets.packed import load_packed
>>> from biomass.datasets.simulated_bbbc021 import simulate_bbbc021
>>> small = {"weeks": 2, "replicates": 1, "compounds": 2, "concentrations": 1, "height": 64, "width": 80}
>>> folder = simulate_bbbc021(getfixture("tmp_path"), **small)
>>> fields = load_bbbc021(folder)
>>> nuclei = place_nuclei(fields, *read_nuclei(folder))
>>> cells = crop_screen(fields, nuclei, size=24)
>>> cells.read(cells.rows("test")[:5]).shape
(5, 3, 24, 24)
>>> bool(count_cells(fields, nuclei, cells)["cells"].sum() == len(cells))
True
>>> load_packed(pack_cells(fields, nuclei, folder / "cells", size=24, workers=0)).table.equals(cells.table)
True
"""
