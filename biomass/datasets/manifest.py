"""A lab's own screen: a table (CSV or Parquet) with a row an image, beside the image files.

Nothing has to be renamed: the YAML says which column of the table means what, which images make up which split, and
which wells are controls.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from biomass.datasets.files import check_present, check_unique, open_files
from biomass.errors import ConfigError, DataError, one_line
from biomass.screen import COLUMNS, PLATE, UNLABELLED, Screen, make_screen

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""What a label may say where nothing is known."""

REST = "rest"
"""The split that takes every image that no other split takes."""

_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}

Listed = str | int | float
"""A value of a column as YAML has it; columns are compared as text."""


def manifest(
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
    check_files: bool = True,
) -> Screen:
    """Read a screen from a manifest.

    Every column of the manifest stays in the screen's table. A label is a class for every distinct value of its column,
    in sorted order over the whole screen (as numbers where all of them are whole numbers), so that ``0 … K-1`` stay
    what they are; rows whose label is one of :data:`MISSING` are unlabelled.

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
        check_files: make sure that all images are there; without it a missing one is an error when it is read.

    Raises:
        ConfigError: a key or value does not fit the manifest, or two splits take the same image.
        DataError: the manifest cannot be read, an image is listed twice or is missing, or a label is not in ``classes``.
        BadImageError: the first images cannot be read or do not have the channels that are named.
    """
    root = Path(root_dir)
    file = root / path
    folder = file.parent if image_dir is None else root / image_dir
    names = _column_names(file)
    image_columns = _image_columns(image, channels, names, file)
    sources = _sources(columns or {}, names, file, skip={"split"} if splits is not None else set())
    if control is not None:
        _check_control(control, names, file)
        sources.pop("control", None)

    as_text = {*sources.values(), *image_columns, *([control["column"]] if control is not None else [])}
    as_text |= {c for rule in (splits or {}).values() if isinstance(rule, Mapping) for c in rule if c in names}
    frame = _read(file, as_text)
    files = [_tidy(frame.pop(column), folder) for column in dict.fromkeys(image_columns)]
    check_unique(files, frame[sources["label"]] if "label" in sources else [""] * len(frame))
    named = list(image) if isinstance(image, Mapping) else channels
    if check_files:
        check_present(folder, files, named)

    table = frame.drop(columns=[c for c in COLUMNS if c in frame])
    for column in COLUMNS:
        table[column] = frame[sources[column]] if column in sources else ""
    if control is not None:
        table["control"] = _controls(frame[control["column"]], control)
    if splits is not None:
        table["split"] = _splits(table, splits)
    table["label"], class_names = _labels(table["label"], classes)
    return make_screen(table, open_files(folder, files, named, axes), class_names)
