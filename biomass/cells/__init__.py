"""From fields of view to cells: nuclei, their search, and the crops around them."""
