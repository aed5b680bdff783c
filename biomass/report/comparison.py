"""Several runs side by side: verdicts and main metrics as columns."""
from collections.abc import Sequence
from pathlib import Path
from biomass.report.section import Section
def compared(folders: Sequence[Path], place: Path) -> list[Section]:
    return []
