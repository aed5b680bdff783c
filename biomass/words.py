"""The words that a user may choose among, without importing what they stand for.

A word stands once: in the table of the module that knows what it means. To import such a module takes seconds, which
neither a text of help nor a message about a misspelt word should take, so that here its source is read.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any


@cache
def words_in(table: str) -> tuple[str, ...]:
    """The words of a table: the keys of a dictionary, the items of a tuple, or the first argument that makes each.

    Args:
        table: its module in this package, and its name.

    >>> words_in("models.image_norms.NORMS")
    ('batch', 'group', 'instance')
    >>> words_in("training.loaders.SAMPLERS")
    ('random', 'plate', 'exp')
    """
    module, _, name = table.rpartition(".")
    file = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    nodes = (node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.Assign | ast.AnnAssign))
    value: Any = next(node.value for node in nodes if re.match(rf"{name}\b", ast.unparse(node)))
    items: list[Any] = value.keys if isinstance(value, ast.Dict) else value.elts
    return tuple(ast.literal_eval(one.args[0] if isinstance(one, ast.Call) else one) for one in items)
