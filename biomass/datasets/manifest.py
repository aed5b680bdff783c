"""A lab's own screen: a table (CSV or Parquet) with a row an image, beside the image files.

Nothing has to be renamed: the YAML says which column of the table means what, which images make up which split, and
which wells are controls.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from biomass.errors import ConfigError, DataError, one_line
from biomass.pixels.files import check_present, check_unique, open_files
from biomass.pixels.packed import packed_pixels
from biomass.screen import COLUMNS, PLATE, UNLABELLED, Pixels, Screen, make_screen

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""What a label may say where nothing is known."""

REST = "rest"
"""The split that takes every image that no other split takes."""

_KEY = "dataloaders.source"  # where the arguments stand in a configuration
_SHOWN = 20  # names that an error lists before it breaks off
_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}

Listed = str | int | float
"""A value of a column as YAML has it; columns are compared as text."""


def load_manifest(
    path: str | Path,
    *,
    root_dir: str | Path = "data",
    image_dir: str | Path | None = None,
    image: str | Mapping[str, str] = "path",
    channels: Sequence[str] | None = None,
    axes: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    classes: Sequence[Listed] | None = None,
    splits: Mapping[str, Any] | None = None,
    control: Mapping[str, Any] | None = None,
    on_bad_image: str = "error",
) -> Screen:
    """Read a screen from a manifest.

    Every column of the manifest but the image paths stays in the screen's table. Every distinct value of the label's
    column is a class, in sorted order over the whole screen (sorted as numbers where all of them are whole numbers, so
    that ``0 … K-1`` stay what they are); rows whose label is one of :data:`MISSING` are unlabelled.

    Args:
        path: the manifest (``.csv``, ``.tsv``, both also ``.gz``, or ``.parquet``); if relative, below ``root_dir``.
        root_dir: the folder that data sources read from.
        image_dir: the folder that relative image paths refer to; if relative, below ``root_dir``; the manifest's own
            folder if left out.
        image: the column of image paths (PNG, TIFF or ``.npy``; 8 or 16 bit), or, with one file a channel, a mapping of
            the channels' names to their columns.
        channels: names of the channels where a file holds all of them.
        axes: order of the dimensions in a file, ``HW``, ``HWC`` or ``CHW``; found out if left out.
        columns: what a canonical column (:data:`biomass.screen.COLUMNS`) is called in the manifest. One that is not
            named is taken from the column of its own name, if there is one. ``experiment`` and ``plate`` must exist.
        classes: names of all classes in the order of their numbers, for example those of another manifest.
        splits: for every split a mapping of columns to the values that it takes, such as
            ``{train: {experiment: [Week1, Week2]}, test: {plate: [P7, Week4/P1]}, val: rest}``. An image has to fulfil
            all columns of a mapping; a plate may be given with its experiment; ``rest`` takes what is left, otherwise
            that is in no split. If left out, the column ``split`` decides.
        control: which wells are controls, by the values of a column: ``{column: compound, negative: [DMSO],
            positive: [taxol]}``. If left out, the column ``control`` says ``negative``, ``positive`` or nothing.
        on_bad_image: with ``error``, make sure now that all images are there; with ``skip``, leave it to the reading.

    Raises:
        ConfigError: a key or value does not fit the manifest, or two splits take the same image.
        DataError: the manifest cannot be read, an image is listed twice or is missing, a label is not in ``classes``.
        BadImageError: the first images cannot be read or do not have the channels that are named.
    """
    root = Path(root_dir)
    file = root / path
    folder = file.parent if image_dir is None else root / image_dir
    names = _column_names(file)
    image_columns = _image_columns(image, channels, names, file)
    sources = _sources(columns or {}, names, file)
    if control is not None:
        _check_control(control, names, file)

    rules = [rule for rule in (splits or {}).values() if isinstance(rule, Mapping)]
    as_text = {*sources.values(), *image_columns, *([control["column"]] if control is not None else [])}
    as_text |= {column for rule in rules for column in rule if column in names}
    arrow = _read(file, as_text)
    files = [_tidy(arrow[column], folder) for column in image_columns]
    rest = arrow.drop_columns(sorted(set(image_columns) - set(sources.values())))
    frame = rest.to_pandas(categories=sorted(as_text & set(rest.column_names)), ignore_metadata=True)
    check_unique(files, frame[sources["label"]].to_numpy() if "label" in sources else np.full(len(frame), ""))
    channel_names = list(image) if isinstance(image, Mapping) else channels
    pixels: Pixels | None = packed_pixels(file, files, None if channel_names is None else tuple(channel_names))
    if pixels is None and on_bad_image == "error":
        check_present(folder, files, channel_names)

    table = frame.drop(columns=[c for c in COLUMNS if c in frame])
    for column in COLUMNS:
        table[column] = frame[sources[column]] if column in sources else ""
    if control is not None:
        table["control"] = _controls(frame[control["column"]], control)
    if splits is not None:
        table["split"] = _splits(table, splits)
    table["label"], class_names = _labels(table["label"], classes)
    return make_screen(table, pixels or open_files(folder, files, channel_names, axes), class_names)


def _ending(file: Path) -> str:
    """Which kind of table the file is."""
    known = (*_SEPARATORS, ".parquet")
    ending = next((e for e in known if file.name.lower().endswith(e)), None)
    if ending is None:
        raise DataError(f"manifest '{file}' is of no known kind: save it as one of {', '.join(known)}")
    return ending


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what goes wrong into an error that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no manifest '{file}': correct {_KEY}.path (relative to dataloaders.root_dir)") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"manifest '{file}' cannot be read ({one_line(error)}): save it again, in UTF-8") from error


def _column_names(file: Path) -> list[str]:
    ending = _ending(file)
    with _reading(file):
        if ending == ".parquet":
            names = pyarrow.parquet.read_schema(file).names
        else:
            options = pyarrow.csv.ParseOptions(delimiter=_SEPARATORS[ending])
            with pyarrow.csv.open_csv(file, parse_options=options) as reader:
                names = reader.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"manifest '{file}' has two columns '{twice[0]}': rename one of them")
    return names


def _read(file: Path, as_text: Collection[str]) -> Any:
    """The manifest as an Arrow table, some of its columns as text without nulls."""
    ending = _ending(file)
    with _reading(file):
        if ending == ".parquet":
            table = pyarrow.parquet.read_table(file)
        else:
            table = pyarrow.csv.read_csv(
                file,
                parse_options=pyarrow.csv.ParseOptions(delimiter=_SEPARATORS[ending]),
                # Else plate 007 became 7, and a well of the name NA nothing.
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(as_text, pa.string())),
            )
        if not len(table):
            raise DataError(f"manifest '{file}' has no rows: a screen needs at least one image")
        for column in as_text:
            table = table.set_column(table.column_names.index(column), column, _text(table[column]))
    return table


def _text(column: Any) -> Any:
    """A column as text; nulls become empty."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        with suppress(pa.ArrowInvalid):  # holds fractions
            column = column.cast(pa.int64())  # whole numbers that had to be floats for want of an integer null
    return pc.fill_null(column.cast(pa.string()), "")


def _tidy(paths: Any, folder: Path) -> Any:
    """Paths relative to the folder, as far as they lie in it, one spelling for one file."""
    paths = paths.cast(pa.large_string())
    paths = pc.replace_substring(paths, "\\", "/")  # a manifest written on Windows
    paths = pc.replace_substring_regex(paths, r"/(\./|/)+", "/")
    paths = pc.replace_substring_regex(paths, r"^(\./)+", "")
    inside = f"{folder.absolute()}/"
    return pc.if_else(pc.starts_with(paths, inside), pc.utf8_slice_codeunits(paths, len(inside)), paths)


def _hint(value: Any, options: Iterable[Any]) -> str:
    """What else it could have been."""
    names = [str(option) for option in options]
    close = get_close_matches(str(value), names, 1)
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return (f"; did you mean '{close[0]}'?" if close else "") + f" There is: {shown}"


def _require(name: str, key: str, names: Sequence[str], file: Path) -> None:
    if name not in names:
        raise ConfigError(f"{_KEY}.{key} is '{name}', which is no column of '{file}'{_hint(name, names)}")


def _image_columns(
    image: str | Mapping[str, str], channels: Sequence[str] | None, names: Sequence[str], file: Path
) -> list[str]:
    if isinstance(image, str):
        _require(image, "image", names, file)
        return [image]
    for channel, column in image.items():
        _require(column, f"image.{channel}", names, file)
    if len(set(image.values())) < len(image) or not image:
        raise ConfigError(f"{_KEY}.image is {dict(image)}: name one column for every channel")
    if channels is not None and list(channels) != list(image):
        raise ConfigError(
            f"{_KEY}.channels is {list(channels)}, but {_KEY}.image names {list(image)}: leave channels out"
        )
    return list(image.values())


def _sources(columns: Mapping[str, str | None], names: Sequence[str], file: Path) -> dict[str, str]:
    """Canonical column → column of the manifest, for those that there are."""
    for column, name in columns.items():
        if column not in COLUMNS:
            raise ConfigError(f"{_KEY}.columns.{column} is no column of a screen{_hint(column, COLUMNS)}")
        if name is not None:
            _require(name, f"columns.{column}", names, file)
    sources = {column: columns.get(column, column if column in names else None) for column in COLUMNS}
    for column in PLATE:
        if sources[column] is None:
            raise ConfigError(
                f"'{file}' has no column '{column}': set {_KEY}.columns.{column} to the one that "
                f"says it{_hint(column, names)}"
            )
    return {column: name for column, name in sources.items() if name is not None}


def _listed(values: Listed | Iterable[Listed] | None) -> list[str]:
    """One value, several, or none, as text."""
    if values is None:
        return []
    return [str(values)] if isinstance(values, (str, int, float)) else list(dict.fromkeys(map(str, values)))


def _check_control(control: Mapping[str, Any], names: Sequence[str], file: Path) -> None:
    keys = ("column", "negative", "positive")
    unknown = [key for key in control if key not in keys]
    if unknown or "column" not in control:
        raise ConfigError(
            f"{_KEY}.control has the keys {', '.join(control)}: it needs 'column' and takes {', '.join(keys)}"
        )
    _require(control["column"], "control.column", names, file)


def _controls(text: pd.Series, control: Mapping[str, Any]) -> np.ndarray:
    """``negative``, ``positive`` or empty for every row, by the values of a column."""
    result = np.full(len(text), "", dtype=object)
    for kind in ("negative", "positive"):
        for value in _listed(control.get(kind)):
            rows = (text == value).to_numpy()
            if not rows.any():
                raise ConfigError(
                    f"{_KEY}.control.{kind} lists '{value}', which column '{control['column']}' "
                    f"never says{_hint(value, text.unique())}"
                )
            if (result[rows] != "").any():
                raise ConfigError(f"{_KEY}.control lists '{value}' as negative and as positive: choose one")
            result[rows] = kind
    return result


def _splits(table: pd.DataFrame, splits: Mapping[str, Any]) -> np.ndarray:
    """The split of every row; empty for those that no split takes."""
    rules = {name: rule for name, rule in splits.items() if rule is not None}
    rests = [name for name, rule in rules.items() if rule == REST]
    if len(rests) > 1:
        raise ConfigError(f"{_KEY}.splits gives the rest to '{rests[0]}' and to '{rests[1]}': choose one")
    result = np.full(len(table), "", dtype=object)
    for name, rule in rules.items():
        if rule == REST:
            continue
        rows = _select(table, name, rule)
        both = np.flatnonzero(rows & (result != ""))
        if len(both):
            where = ", ".join(f"{column} '{table[column][both[0]]}'" for column in PLATE)
            raise ConfigError(f"{_KEY}.splits puts {where} in '{result[both[0]]}' and in '{name}': choose one")
        result[rows] = name
    for name in rests:
        result[result == ""] = name
    empty = [name for name in rules if not (result == name).any()]
    if empty:
        raise ConfigError(f"{_KEY}.splits.{empty[0]} takes no image: change it, or set it to null")
    return result


def _select(table: pd.DataFrame, split: str, rule: Any) -> np.ndarray:
    """The rows (N,) bool that a split's rule takes."""
    if not isinstance(rule, Mapping) or not rule:
        raise ConfigError(
            f"{_KEY}.splits.{split} is '{rule}': use '{REST}', or columns with the values to take, "
            "such as {experiment: [Week1, Week2]}"
        )
    rows = np.ones(len(table), bool)
    for column, values in rule.items():
        if column not in table:
            raise ConfigError(f"{_KEY}.splits.{split} names the column '{column}'{_hint(column, table.columns)}")
        taken = np.zeros(len(table), bool)
        for value in _listed(values):
            hits = _says(table, column, value)
            if not hits.any():
                raise ConfigError(
                    f"{_KEY}.splits.{split} lists {column} '{value}', which is not in the manifest"
                    f"{_hint(value, sorted(set(table[column])))}"
                )
            taken |= hits
        rows &= taken
    return rows


def _says(table: pd.DataFrame, column: str, value: str) -> np.ndarray:
    """The rows (N,) bool with this value; a plate may also be given as ``experiment/plate``."""
    rows = (table[column] == value).to_numpy(bool)
    if column == "plate" and not rows.any():
        experiment, _, plate = value.rpartition("/")
        rows = ((table["experiment"] == experiment) & (table["plate"] == plate)).to_numpy(bool)
    return rows


def _labels(text: pd.Series, classes: Sequence[Listed] | None) -> tuple[np.ndarray, list[str]]:
    """The number of every row's label, (N,) int64, and the names of the classes."""
    codes, found = pd.factorize(text)
    values = [str(value) for value in found]
    known = [value for value in values if value not in MISSING]
    if classes is None:
        whole = all(re.fullmatch(r"-?\d+", value) for value in known)
        names = sorted(known, key=lambda value: (int(value), value)) if whole else sorted(known)
    else:
        names = [str(name) for name in classes]
        unknown = [value for value in known if value not in set(names)]
        if unknown:
            raise DataError(f"label '{unknown[0]}' is not in {_KEY}.classes: add it{_hint(unknown[0], names)}")
    numbers = {name: number for number, name in enumerate(names)}
    lookup = np.array([numbers.get(value, UNLABELLED) for value in values], dtype=np.int64)
    return lookup[codes], names
