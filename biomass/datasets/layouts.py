r"""How files are called in a screen: patterns with named parts, and presets for what instruments and collections write.

A pattern is a path in which parts in braces stand for what differs from file to file, as in
``{plate}/{well}_s{site}_w{channel}.tif``:

- ``plate``, ``experiment``, ``well``, ``row`` and ``column`` (in place of the well), ``site``, ``channel``, ``z`` and
  ``time`` are what they are called; any other name, such as ``{cell}``, becomes a column of the table, and tells two
  images apart.
- ``*`` stands for anything within a name, ``**`` also for any number of folders.
- A part ends where the next character of the pattern stands. Where that is not enough, a regular expression says what
  a part may be: ``{site:[a-d]}``.
- Everything else stands for itself, whatever its case; ``/`` and ``\`` both separate folders. Folders above those of
  the pattern do not matter, and the folder that is indexed may be the first of the pattern; but a pattern with ``**``
  describes the whole path below that folder.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.identifiers import names, normal, wells, wells_at

PARTS: Mapping[str, str] = {
    "plate": r"[^/]+?",
    "experiment": r"[^/]+?",
    "well": r"[A-Z]{1,2}\d{1,3}|R\d{1,3}C\d{1,3}",
    "row": r"[A-Z]{1,2}|\d{1,2}",
    "column": r"\d{1,3}",
    "site": r"\d+",
    "channel": r"[^/]+?",
    "z": r"\d+",
    "time": r"\d+",
}
"""The parts that mean something, and what each may be."""

EXAMPLES = {"well": "A01", "row": "A", "column": "1", "site": "1", "channel": "1", "z": "1", "time": "1"}
"""What a part may look like."""

_OTHER = r"[^/]+?"
_TAKEN = ("path", "size", "changed")  # what is known of every file
_TOKEN = re.compile(
    r"\{(?P<part>[^{}]*(?:\{[\d,]+\}[^{}]*)*)\}|(?P<deep>\*\*/?)|(?P<any>\*)|(?P<text>[^*{]+)|(?P<odd>\{)"
)
_GUID = r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}"
_FITS = 0.5  # share of the images that a preset must fit, if it is to be found out
_SAMPLE = 5000  # images by which it is found out
_SHAPES = 2000  # kinds of names among which the nearest are looked for


class NamedFiles(NamedTuple):
    """A layout that tells all from the paths of files.

    Attributes:
        name: of the preset, or the pattern.
        expression: matches a whole path; its groups are the parts.
        example: a path that fits.
        channel: what to call a channel by its number.
        preset: whether it is one.
        whole: whether it describes whole paths below the folder, and not only their ends.
    """

    name: str
    expression: re.Pattern[str]
    example: str
    channel: Callable[[str], str]
    preset: bool = True
    whole: bool = False


def _numbered(before: str, digits: int = 0) -> Callable[[str], str]:
    return lambda text: f"{before}{int(text):0{digits}d}" if text.isdigit() else text


def _preset(name: str, expression: str, example: str, channel: Callable[[str], str]) -> NamedFiles:
    return NamedFiles(name, re.compile(rf"(?:.*/)?{expression}", re.IGNORECASE | re.DOTALL), example, channel)


PRESETS: tuple[NamedFiles, ...] = (
    _preset(
        "imagexpress",
        r"(?P<plate>(?!TimePoint_\d+/|ZStep_\d+/)[^/]+)/(?:TimePoint_(?P<time>\d+)/)?(?:ZStep_(?P<z>\d+)/)?"
        r"(?:[^/]*?_)??(?P<well>[A-Z]{1,2}\d{2})(?=_[sw]\d)(?:_s(?P<site>\d+))?(?:_w(?P<channel>\d{1,2}?))?"
        rf"(?:(?:{_GUID})?\.tiff?|{_GUID}\.png)",
        "P1/TimePoint_1/Screen_A01_s1_w1<GUID>.tif",
        _numbered("w"),
    ),
    _preset(
        "phenix",
        r"(?P<plate>(?!Images/)[^/]+?)(?:__\d{4}-\d\d-\d\dT[^/]*)?/(?:Images/)?"
        r"r(?P<row>\d{2})c(?P<column>\d{2})f(?P<site>\d{2,})p(?P<z>\d{2,})(?:rc\d+)?"
        r"-ch(?P<channel>\d+)sk(?P<time>\d+)(?:fk\d+)?(?:fl\d+)?\.tiff?",
        "P1__2026-11-02T10_14_05-Measurement 1/Images/r01c01f01p01-ch1sk1fk1fl1.tiff",
        _numbered("ch"),
    ),
    _preset(
        "cellvoyager",
        r"(?P<folder>[^/]+)/(?P<plate>[^/]+)_(?P<well>[A-Z]{1,2}\d{2})_"
        r"T(?P<time>\d+)F(?P<site>\d+)L\d+A\d+Z(?P<z>\d+)C(?P<channel>\d+)\.tiff?",
        "P1/P1_A01_T0001F001L01A01Z01C01.tif",
        _numbered("C", 2),
    ),
    _preset(
        "rxrx1",
        r"(?P<experiment>(?!(?:gene|compound)-\d+/)[^/]+)/Plate(?P<plate>\d+)/"
        r"(?P<well>[A-Z]{1,2}\d{2})_s(?P<site>\d+)_w(?P<channel>\d)\.png",
        "images/HUVEC-01/Plate1/AA02_s1_w1.png",
        _numbered("w"),
    ),
    _preset(
        "rxrx3",
        r"(?P<experiment>(?:gene|compound)-\d+)/Plate(?P<plate>\d+)/"
        r"(?P<well>[A-Z]{1,2}\d{2})_s(?P<site>\d+)_w(?P<channel>\d)\.png",
        "images/gene-001/Plate1/AA02_s1_w1.png",
        _numbered("w"),
    ),
)
"""Layouts that are told by the names of files."""

RXRX_STAINS = ("nuclei", "er", "actin", "nucleoli", "mitochondria", "golgi")
"""What the six channels of RxRx1 and RxRx3 show, w1 … w6: Hoechst, concanavalin A, phalloidin, Syto 14, MitoTracker,
wheat germ agglutinin (rxrx.ai). Screens of fewer channels (RxRx19) have other stains."""


def compile_pattern(pattern: str) -> NamedFiles:
    """The layout that a pattern describes, see the module.

    Raises:
        ConfigError: the pattern cannot be understood, or does not tell wells.

    >>> layout = compile_pattern("{plate}/{well}_s{site}_w{channel}.tif")
    >>> match_names(layout, ["x/P 1/b2_s10_w3.TIF", "x/P 1/overview.TIF"], "screen")[1].values.tolist()
    [['P 1', 'b2', '10', '3']]
    """
    text = unicodedata.normalize("NFC", pattern)
    seen: list[str] = []
    pieces: list[str] = []
    for token in _TOKEN.finditer(text.removeprefix("./").lstrip("/")):
        if token["odd"]:
            raise ConfigError(f"pattern '{pattern}' has a {{ without its }}: close it", "pattern")
        if token["deep"]:
            pieces.append(r"(?:.*/)?" if token["deep"].endswith("/") else r".*")
        elif token["any"]:
            pieces.append(r"[^/]*")
        elif token["text"]:
            pieces.append(re.escape(token["text"].replace("\\", "/")))
        else:
            pieces.append(_part(token["part"], seen, pattern))
    _check_parts(seen, pattern)
    try:
        whole = "**" in text
        expression = re.compile(("" if whole else r"(?:.*/)?") + "".join(pieces), re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise ConfigError(f"pattern '{pattern}' is no valid expression ({error}): correct it", "pattern") from error
    example = _TOKEN.sub(lambda found: _example(found, seen), text)
    return NamedFiles(pattern, expression, example, _numbered("w"), False, whole)


def _part(inside: str, seen: list[str], pattern: str) -> str:
    """The group of one part; where it comes again, it must be the same."""
    name, colon, expression = inside.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"pattern '{pattern}' has a part {{{inside}}}: a part is a name, such as {{well}}", "pattern")
    if name in seen:
        return rf"(?P={name})"
    seen.append(name)
    return rf"(?P<{name}>{expression if colon else PARTS.get(name, _OTHER)})"


def _example(found: re.Match[str], seen: Sequence[str]) -> str:
    if found["part"] is None:
        return "…" if found["text"] is None else found["text"]
    name = found["part"].partition(":")[0]
    return EXAMPLES.get(name, "P1" if name == "plate" else name)


def _check_parts(seen: Sequence[str], pattern: str) -> None:
    if not seen:
        raise ConfigError(f"pattern '{pattern}' has no parts, such as {{plate}} and {{well}}: write them in", "pattern")
    for name in seen:
        if name in _TAKEN:
            raise ConfigError(
                f"pattern '{pattern}' has a part {{{name}}}, which is taken: call it otherwise", "pattern"
            )
        near = difflib.get_close_matches(name.lower(), [one for one in PARTS if one not in seen], 1, 0.8)
        if name not in PARTS and near:
            raise ConfigError(f"pattern '{pattern}' has a part {{{name}}}: did you mean {{{near[0]}}}?", "pattern")
    if "well" not in seen and not {"row", "column"} <= set(seen):
        raise ConfigError(
            f"pattern '{pattern}' does not tell the well: add {{well}}, or {{row}} and {{column}}", "pattern"
        )
    if "well" in seen and {"row", "column"} & set(seen):
        raise ConfigError(f"pattern '{pattern}' has {{well}} and {{row}} or {{column}}: write one of them", "pattern")


def match_names(layout: NamedFiles, paths: Sequence[str], above: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Which of N paths fit a layout, and the parts of those that do.

    Args:
        layout: of the files.
        paths: relative to the folder.
        above: the name of the folder itself, and of folders above it, which may be parts, too.

    Returns:
        (N,) bool; and a row for each path that fits, a column a part, text, empty where a part is not there.
    """
    match = layout.expression.fullmatch
    found = [match(_composed(path if layout.whole else f"{above}/{path}")) for path in paths]
    parts, wanted = list(layout.expression.groupindex), [i - 1 for i in layout.expression.groupindex.values()]
    rows = [one.groups("") for one in found if one]
    if len(parts) < layout.expression.groups:  # a part's own expression has groups
        rows = [tuple(row[i] for i in wanted) for row in rows]
    return np.array([one is not None for one in found], bool), pd.DataFrame(rows, columns=parts, dtype=object)


def _composed(path: str) -> str:
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def fitting(paths: Sequence[str], above: str) -> list[NamedFiles]:
    """The presets that fit at least half of the images, of which some are looked at, evenly spread."""
    some = paths[:: max(1, len(paths) // _SAMPLE)]
    found = [(layout, match_names(layout, some, above)[0].mean()) for layout in PRESETS] if len(paths) else []
    return [layout for layout, share in found if share >= _FITS]


def tidy_parts(layout: NamedFiles, parts: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The parts in normal form: wells as ``A01``, numbers without leading zeros, channels by their names.

    Returns:
        The parts, and what a reader must know of them, a sentence each.
    """
    parts, notes = parts.copy(), list[str]()
    if "folder" in parts and layout.preset:
        parts, notes = _plates_by_folder(parts)
    if "well" in parts:
        parts["well"] = wells(parts["well"], needed=True)
    else:
        parts["well"] = wells_at(parts.pop("row"), parts.pop("column"))
    for name in ("site", "z", "time"):
        if name in parts:
            parts[name] = _plain_numbers(parts[name], missing="1" if name != "z" else "")
    if "channel" in parts:
        distinct = {text: layout.channel(text or "1") for text in parts["channel"].unique()}
        order = sorted(dict.fromkeys(distinct.values()), key=natural)
        parts["channel"] = pd.Categorical(parts["channel"].map(distinct), order)
        if layout.name in ("rxrx1", "rxrx3") and len(order) == len(RXRX_STAINS):
            parts["channel"] = parts["channel"].cat.rename_categories(dict(zip(order, RXRX_STAINS, strict=True)))
    for other in set(map(str, parts)) - {"well", "site", "z", "time", "channel"}:
        parts[other] = names(parts[other], other)
    if layout.name == "phenix":
        notes.append("plates are called after their folders, without the time of the measurement")
    return parts, notes


def _plates_by_folder(parts: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Cell Voyager: plates are called as their files begin, unless several folders hold files that begin alike."""
    pairs = parts[["folder", "plate"]].drop_duplicates()
    if pairs["plate"].duplicated().any():
        text = "plates are called after their folders, since the files of several begin alike"
        return parts.assign(plate=parts["folder"]).drop(columns="folder"), [text]
    return parts.drop(columns="folder"), ["plates are called as the names of their files begin"]


def _plain_numbers(text: "pd.Series[str]", missing: str) -> "pd.Series[str]":
    distinct = {one: (str(int(one)) if one.isdigit() else normal(one)) or missing for one in text.unique()}
    return text.map(distinct)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people do: ``s2`` before ``s10``.

    >>> sorted(["s10", "s2", "DNA"], key=natural)
    ['DNA', 's2', 's10']
    """
    return [(0, int(one), "") if one.isdecimal() else (1, 0, one) for one in re.split(r"(\d+)", text) if one]


def no_match(layout: NamedFiles, paths: Sequence[str], folder: str) -> DataError:
    """The error where no image fits: the three nearest names, and what was expected.

    >>> print(no_match(compile_pattern("{plate}/{well}_w{channel}.tif"), ["P1/A01-ch1.tif"], "lab"))
    none of the 1 images in 'lab' fits {plate}/{well}_w{channel}.tif, such as 'P1/A01_w1.tif'; the nearest: \
'P1/A01-ch1.tif'
    """
    what = f"layout {layout.name}" if layout.preset else layout.name
    near = ", ".join(f"'{one}'" for one in nearest(layout.example, paths))
    return DataError(
        f"none of the {len(paths)} images in '{folder}' fits {what}, such as '{layout.example}'; the nearest: {near}",
        "pattern",
    )


def nearest(example: str, paths: Iterable[str], n: int = 3) -> list[str]:
    """The ``n`` paths that look most like an example, each of another shape where there are as many."""
    shapes: dict[str, str] = {}
    rest: list[str] = []
    for path in paths:
        shape = re.sub(r"[0-9A-F]{8}-[-0-9A-F]{27}", "#", re.sub(r"\d+", "0", path), flags=re.IGNORECASE)
        if shape not in shapes and len(shapes) < _SHAPES:
            shapes[shape] = path
        elif len(rest) < n:
            rest.append(path)
    like = re.sub(r"\d+", "0", example)
    ranked = sorted(shapes, key=lambda shape: -difflib.SequenceMatcher(None, like, shape).ratio())
    return ([shapes[shape] for shape in ranked] + rest)[:n]


def check_layout(name: str, known: Iterable[str]) -> None:
    """Make sure that there is a preset of this name.

    Raises:
        ConfigError: there is none.
    """
    listed = list(known)
    if name not in listed:
        raise ConfigError(f"no layout '{name}'; {did_you_mean(name, listed)}", "pattern")
