"""The first difference between two fingerprints of data, see :mod:`biomass.fingerprint`, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

Hashes = list[str] | None


Pair = tuple[str, Hashes, Hashes]  # an image's name, and its hashes then and now


BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What comparing raises where one of the two is no fingerprint, such as in a file that was not written by us."""


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What tells two screens apart, in words; None where nothing is known to.

    Args:
        before: the fingerprint of one, as it was kept.
        now: that of another.
    """
    if before.get("version") != now["version"]:
        return None
    for key, what in {"channels": "channels", "size": "size", "dtype": "type"}.items():
        if None not in (before[key], now[key]) and before[key] != now[key]:
            return f"the {what} of the images is {as_text(now[key])}, it was {as_text(before[key])}"
    pairs = [
        (row["name"], before["sample"][key]["pixels"], row["pixels"])
        for key, row in now["sample"].items()
        if key in before["sample"]
    ]
    differences = (
        _of_classes(before["classes"], now["classes"]),
        _of_counts("plate", "images", before, now),
        _of_counts("split", "rows", before, now),
        _of_counts("class", "images", before, now),
        _of_columns(before, now),
        of_pixels(pairs, now["channels"]),
    )
    found = next(filter(None, differences), None)
    if found is None and None not in (before["store"], now["store"]) and before["store"] != now["store"]:
        return "the packed store holds other pixels, by its checksums"
    return found


def as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " x ".join(map(str, value)) if value and isinstance(value[0], int) else ", ".join(value)


def _and_more(names: Sequence[str]) -> str:
    return ", ".join(f"'{name or 'none'}'" for name in names[:1]) + (f" and {len(names) - 1} more" if names[1:] else "")


def _of_names(what: str, before: Sequence[str], now: Sequence[str]) -> str | None:
    """Which of some names are gone, and which are new."""
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    said = [f"{what} {_and_more(gone)} {'is' if len(gone) == 1 else 'are'} not there any more"] * bool(gone)
    said += [f"{what} {_and_more(new)} {'is' if len(new) == 1 else 'are'} new"] * bool(new)
    return ", and ".join(said) or None


def _of_classes(before: Sequence[str], now: Sequence[str]) -> str | None:
    if list(before) == list(now):
        return None
    named = _of_names("class", before, now)
    if named is not None:
        return named
    place = next((n for n, (was, name) in enumerate(zip(before, now, strict=False)) if was != name), None)
    if place is None:
        return f"there are {len(now)} classes, there were {len(before)}"
    return f"class {place} is '{now[place]}', it was '{before[place]}': the classes are in another order"


def _of_counts(what: str, of: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Which plates, splits or classes are gone, are new, or have another number of rows."""
    was, there = before["counts"][what], now["counts"][what]
    named = _of_names(what, list(was), list(there))
    if named is not None:
        return named
    other = [name for name in was if was[name] != there[name]]
    if not other:
        return None
    name, more = other[0], f", and {len(other) - 1} more have another number" if len(other) > 1 else ""
    if not name:
        return f"{there[name]:,} {of} have no {what}, {was[name]:,} had none{more}"
    return f"{what} '{name}' has {there[name]:,} {of}, it had {was[name]:,}{more}"


def _of_columns(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Which column has other values, with an image for which it is so, or whether the rows have another order."""
    columns = [one for one, of in before["columns"].items() if now["columns"].get(one, of) != of]
    if not columns:
        return "the rows of the table are in another order" if before["order"] != now["order"] else None
    for column in columns:
        for key, row in before["sample"].items():
            other = now["sample"].get(key, row)
            if row["values"][column] != other["values"][column]:
                was, value = row["values"][column], other["values"][column]
                return f"column '{column}' has other values, such as '{value}' for '{other['name']}', it was '{was}'"
    return f"column '{columns[0]}' has other values for some images"


def of_pixels(pairs: Sequence[Pair], channels: Sequence[str]) -> str | None:
    """Which of some images have other pixels.

    Args:
        pairs: name and hashes of each image, before and now; None where it cannot be read.
        channels: that the hashes are of.
    """
    changed = [name for name, was, now in pairs if None not in (was, now) and was != now]
    lost = [name for name, was, now in pairs if was is not None and now is None]
    mended = [name for name, was, now in pairs if was is None and now is not None]
    of, where = f"of {len(pairs)} sampled images", ""
    if changed:
        places = {
            n for _, was, now in pairs for n, (a, b) in enumerate(zip(was or (), now or (), strict=False)) if a != b
        }
        if len(places) < len(channels):
            where = f" in {', '.join(channels[place] for place in sorted(places))}"
        has = "has" if len(changed) == 1 else "have"
        return f"{len(changed)} {of} {has} other pixels{where}, such as '{changed[0]}'"
    if lost:
        return f"{len(lost)} {of} cannot be read any more, such as '{lost[0]}'"
    return f"{len(mended)} {of} can be read now, such as '{mended[0]}'" if mended else None
