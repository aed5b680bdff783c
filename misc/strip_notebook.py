"""Strip from notebooks, in place, what running them leaves there: outputs, execution counts, traces of editors.

    python misc/strip_notebook.py notebooks/pybbbc.ipynb [...]

A file without such traces is not touched.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomass.atomic import whole_file
from biomass.errors import ConfigError, one_line

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def strip(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook (format 4) without outputs. Of its metadata, the kernel and the tags of cells are kept."""
    cells = []
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags")
        cell = cell | {"metadata": {"tags": tags} if tags else {}}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        cells.append(cell)
    return notebook | {"cells": cells, "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python"}}}


def main(paths: Sequence[str]) -> None:
    """Strip the files.

    Raises:
        SystemExit: a file is not a notebook, or cannot be written; the message is one line.
    """
    for path in map(Path, paths):
        try:
            before = path.read_text(encoding="utf-8")
            after = json.dumps(strip(json.loads(before)), indent=1, ensure_ascii=False) + "\n"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"error: '{path}' cannot be read as a notebook ({type(error).__name__})") from None
        if after != before:
            try:
                with whole_file(path) as part:
                    part.write_text(after, encoding="utf-8")
            except ConfigError as error:
                raise SystemExit(f"error: {one_line(error)}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
