"""What the rows and columns of a table of statistics × corrections are called, for those who do not know the keys."""

from collections.abc import Iterable
from typing import NamedTuple

from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.results import COUNTED, SHUFFLED, UNTRAINED
from biomass.norms import WORDS

_NULLS = {
    UNTRAINED: "an encoder of random weights that saw no image: what is found without learning",
    COUNTED: "one number a well, how many cells it has: what is found without looking at them",
    SHUFFLED: "the true profiles under labels dealt again: what is found by chance",
}


class Called(NamedTuple):
    """A row or a column.

    Attributes:
        key: as commands and files name it.
        title: what it is; empty where it is not known, such as the name of a table.
        cites: where it comes from.
        new: what it does with a plate that comes later.
    """

    key: str
    title: str
    cites: str = ""
    new: str = ""


def statistics(key: str) -> Called:
    """What a row is.

    >>> statistics("plate").title
    'all rows of the plate'
    """
    return Called(key, _NULLS.get(key) or (WORDS[key].meaning if key in WORDS else ""))


def correction(key: str) -> Called:
    """What a column is.

    >>> correction("combat")[:3]
    ('combat', 'ComBat by plate', 'Johnson et al. 2007')
    """
    one = CORRECTIONS.get(key)
    if one is None:
        return Called(key, "")
    return Called(
        key, one.title, one.cites, f"a new plate: {one.new}" if one.refit_only else f"of a new plate it takes {one.new}"
    )


def known(ones: Iterable[Called]) -> list[Called]:
    """Those of which more than the key is known."""
    return [one for one in ones if one.title]
