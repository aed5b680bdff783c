"""Matching the channels of one screen to those of another by name."""

from collections.abc import Sequence

from biomass.errors import ConfigError, did_you_mean

SYNONYMS = (
    ("nuclei", "nucleus", "nuclear", "dna", "dapi", "hoechst", "hoechst 33342", "hoechst 33258", "h33342"),
    ("er", "endoplasmic reticulum", "concanavalin a"),
    ("tubulin", "beta-tubulin", "microtubules"),
    ("actin", "f-actin", "phalloidin"),
)
"""Names of the same structure or its stain, without regard to case."""

STAND_INS = (("er", "tubulin"),)
"""Structures that stand in for each other where there is nothing closer: both fill the cell around the nucleus.

The published transfer from RxRx1 to BBBC021 feeds tubulin where the network has seen the endoplasmic reticulum
(Lin & Lu 2022).
"""


def _key(name: str) -> str:
    """The first of the synonyms, or the name itself."""
    name = name.strip().lower().replace("_", " ")
    return next((group[0] for group in SYNONYMS if name in group), name)


def match_channels(wanted: Sequence[str], available: Sequence[str], advice: str = "channels") -> tuple[int, ...]:
    """Find the wanted channels among the available ones.

    Synonyms count as the same name (``nuclei``, ``DNA`` and ``DAPI``); only where a name is not found under any of
    them does one of the :data:`STAND_INS` take its place (``tubulin`` for ``ER``).

    Args:
        wanted: names of the channels that, say, a network expects, in its order.
        available: names of the channels that a screen has, in its order.
        advice: of the error, see :class:`biomass.errors.BiomassError`: the setting that says what is wanted.

    Returns:
        For every wanted channel its position among the available ones: ``images[:, match_channels(...)]``.

    Raises:
        ConfigError: a channel is not there, is there twice, or would be used twice.

    >>> match_channels(["nuclei", "ER"], ["actin", "tubulin", "DAPI"])
    (2, 1)
    >>> match_channels(["DAPI"], ["Alexa 488", "HOECHST 33342"])
    (1,)
    """
    keys = [_key(name) for name in available]
    found = [_position(name, keys, available, advice) for name in wanted]
    for position in found:
        if found.count(position) > 1:
            both = " and ".join(f"'{w}'" for w, p in zip(wanted, found, strict=True) if p == position)
            raise ConfigError(
                f"channel '{available[position]}' would be used for {both}: name each channel once", advice
            )
    return tuple(found)


def check_expected(network: object, wanted: Sequence[str], available: Sequence[str]) -> None:
    """Make sure that a screen has the channels that a network expects, under these names or their synonyms.

    Args:
        network: where it comes from.
        wanted: names of the channels that it expects.
        available: names of the channels that the screen has.

    Raises:
        ConfigError: it has others; names both lists.

    >>> check_expected("a.pt", ["DNA"], ["w1", "nuclei"])
    """
    try:
        match_channels(wanted, available)
    except ConfigError as error:
        raise ConfigError(
            f"'{network}' expects the channels {', '.join(wanted)}, and this screen has {', '.join(available)}: "
            f"{error}",
            "other_channels",
        ) from error


def _position(name: str, keys: Sequence[str], available: Sequence[str], advice: str) -> int:
    key = _key(name)
    others = [b if key == a else a for a, b in STAND_INS if key in (a, b)]
    for candidate in (key, *others):
        if candidate in keys:
            first = keys.index(candidate)
            if keys.count(candidate) > 1:
                second = keys.index(candidate, first + 1)
                raise ConfigError(
                    f"channel '{name}' may be '{available[first]}' or '{available[second]}': rename one of them", advice
                )
            return first
    raise ConfigError(f"no channel '{name}'; {did_you_mean(name, available)}", advice)
