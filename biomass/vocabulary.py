"""What the columns of a screen may say: what code must know that never sees the table, and does not need pandas."""

from collections.abc import Mapping
from typing import Literal, get_args

from biomass.errors import ConfigError, did_you_mean

PLATE = ("experiment", "plate")
"""The columns that together name a plate."""

CONTROLS = ("", "negative", "positive")
"""The values of the column ``control``; the empty one is a treated (perturbed) well. Arrays hold their numbers."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "negative": ("negative",),
    "positive": ("positive",),
    "all": ("negative", "positive"),
}
"""Which controls a reference set is made of, by the word for it."""


def control_numbers(kind: str) -> list[int]:
    """The numbers, in :data:`CONTROLS`, of the controls of a kind.

    Raises:
        ConfigError: an unknown kind.

    >>> control_numbers("all")
    [1, 2]
    """
    if kind not in KINDS:
        raise ConfigError(f"controls '{kind}' are unknown; {did_you_mean(kind, KINDS)}", "statistics")
    return [CONTROLS.index(control) for control in KINDS[kind]]


UNLABELLED = -1
"""The value of the column ``label`` where the class is unknown."""

OnBadImage = Literal["error", "skip"]
"""What to do with an image that cannot be read: stop with an error that names it, or leave it out."""


def check_on_bad_image(on_bad_image: str) -> None:
    """Make sure that it is one of :data:`OnBadImage`.

    Raises:
        ConfigError: it is not.
    """
    if on_bad_image not in get_args(OnBadImage):
        raise ConfigError(f"on_bad_image '{on_bad_image}' is unknown; choose error or skip", "skip")
