"""Strip what running has left in notebooks: outputs, execution counts, and the traces of editors. In place.

    python misc/strip_notebook.py notebooks/pybbbc.ipynb [...]

A file that is stripped already is not touched.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def strip(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook (format 4) without outputs, and with no metadata but the kernel and the tags of its cells."""
    cells = []
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags")
        cell = cell | {"metadata": {"tags": tags} if tags else {}}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        cells.append(cell)
    return notebook | {"cells": cells, "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python"}}}


def main(paths: Sequence[str]) -> None:
    """Strip the files; one that is no notebook is an error of one line."""
    for path in map(Path, paths):
        try:
            before = path.read_text(encoding="utf-8")
            after = json.dumps(strip(json.loads(before)), indent=1, ensure_ascii=False) + "\n"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"error: '{path}' is no notebook that can be read ({type(error).__name__})") from None
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
