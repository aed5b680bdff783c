"""A lab's own screen: a table with a row an image, beside the image files.

Nothing has to be renamed: settings say which column of the table means what, which images make up which split, and
which wells are controls. Names are compared in the one normal form of :mod:`biomass.identifiers`.
"""

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from biomass.bounds import read_json
from biomass.datasets.splits import check_splits, make_splits
from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.grouping import factorize, first_rows, number_rows
from biomass.identifiers import coded, find, names, normal, readings, well, wells_at
from biomass.pixels.files import open_files
from biomass.pixels.names import FileNames, check_present, check_unique, tidy
from biomass.pixels.packed import packed_pixels
from biomass.pixels.planes import Reading
from biomass.screen import COLUMNS, CONTROLS, NAMED, PLATE, UNLABELLED, Pixels, Screen, check_on_bad_image, make_screen
from biomass.table_files import TableFile, as_text, read_table

REST = "rest"
"""The split that takes every image that no other split takes."""

IMAGES_KEY = b"biomass.images"
"""Where the schema of a Parquet manifest says how its images are read: JSON, with the arguments of
:func:`load_manifest` that concern images; ``image_dir`` is relative to the manifest's folder."""

_NOTHING = ("", "false")  # how a setting says, as text, that a column is to be left out

log = logging.getLogger(__name__)


def load_manifest(
    path: str | Path | None = None,
    *,
    root_dir: str | Path = "data",
    image_dir: str | Path | None = None,
    image: str | Mapping[str, str] | None = None,
    channels: Sequence[str] | None = None,
    axes: str | None = None,
    z: str | int | None = None,
    time: int | None = None,
    depths: str | None = None,
    sizes: str | None = None,
    columns: Mapping[str, Any] | None = None,
    classes: Sequence[Any] | None = None,
    splits: Mapping[str, Any] | str | None = None,
    control: Mapping[str, Any] | None = None,
    on_bad_image: str = "error",
) -> Screen:
    r"""Read a screen from a manifest.

    Every column of the manifest but the image paths stays in the screen's table. Every distinct value of the label's
    column is a class, in sorted order over the whole screen (sorted as numbers where all of them are whole numbers, so
    that ``0 … K-1`` stay what they are); rows whose label is missing are unlabelled.

    A manifest that an index of a folder wrote says itself how its images are read (:data:`IMAGES_KEY`): ``image,
    channels, axes, image_dir, z, time, depths`` and ``sizes`` are taken from it where they are left out.

    Args:
        path: the manifest, any table that :func:`biomass.table_files.read_table` reads; if relative, below
            ``root_dir``; ``manifest.parquet`` or ``manifest.csv`` if left out.
        root_dir: the folder that data sources read from.
        image_dir: the folder that relative image paths refer to; if relative, below ``root_dir``; the manifest's own
            folder if left out.
        image: the column of image paths (PNG, TIFF or ``.npy``; 8 or 16 bit), or, with one file a channel, a mapping of
            the channels' names to their columns; ``path`` if left out. A value may be a list: files of z planes.
        channels: names of the channels where a file holds all of them.
        axes: order of the dimensions in a file, such as ``HW``, ``HWC`` or ``ZCHW``; found out if left out.
        z: what becomes of several z planes, see :class:`biomass.pixels.planes.Reading`; several are an error if left
            out.
        time: which of several points of time is read, from 0; several are an error if left out.
        depths: ``error``, or ``scale`` images of other bit depths; ``error`` if left out.
        sizes: ``error``, or ``crop`` or ``pad`` images of other sizes; ``error`` if left out.
        columns: what a canonical column (:data:`biomass.screen.COLUMNS`) is called in the manifest. One that is left
            out, or None, is the column of its own name (``well``, ``Well``) if there is one; the log says which are
            taken. False or an empty text leaves it out although the column is there. ``experiment`` and ``plate`` must
            exist. ``well`` may be two columns, ``[row, column]``.
        classes: names of all classes in the order of their numbers, for example those of another manifest.
        splits: for every split a mapping of columns to the values that it takes, such as
            ``{train: {experiment: [Week1, Week2]}, test: {plate: [P7, Week4/P1]}, val: rest}``. An image has to fulfil
            all columns of a mapping; a plate may be given with its experiment; ``rest`` takes what is left, otherwise
            that is in no split. ``plate`` or ``experiment``: whole ones are shared out, see
            :func:`biomass.datasets.splits.make_splits`. If left out, the column ``split`` decides.
        control: which wells are controls, by the values of a column: ``{column: compound, negative: [DMSO],
            positive: [taxol]}``; an empty text stands for rows without a value. If left out, the column ``control``
            says ``negative``, ``positive`` or nothing.
        on_bad_image: with ``error``, make sure now that all images are there; with ``skip``, leave it to the reading.

    Raises:
        ConfigError: a setting does not fit the manifest, or two splits take the same image.
        DataError: the manifest cannot be read, an image is listed twice or is missing, a row has no experiment, plate
            or well, two names differ in nothing but case, or a label is not in ``classes``.
        BadImageError: the first images cannot be read or do not have the channels that are named.

    >>> folder = getfixture("tmp_path")
    >>> for name in "abc":
    ...     np.save(folder / f"{name}.npy", np.zeros((4, 4), np.uint8))
    >>> _ = (folder / "manifest.csv").write_text(
    ...     "path;week;plate;well;compound;moa\n"
    ...     "a.npy;W1;0012;A1;DMSO;NA\n"
    ...     "b.npy;W1;0012;A2;taxol;Microtubules\n"
    ...     "c.npy;W1;10;A1;taxol;Microtubules\n"
    ... )
    >>> screen = load_manifest(
    ...     "manifest.csv",
    ...     root_dir=folder,
    ...     columns={"experiment": "week", "label": "moa"},
    ...     splits={"train": {"plate": ["0012"]}, "test": "rest"},
    ...     control={"column": "compound", "negative": ["DMSO"]},
    ... )
    >>> screen.table[["plate", "well", "label", "control", "split"]]
      plate well  label   control  split
    0  0012  A01     -1  negative  train
    1  0012  A02      0            train
    2    10  A01      0             test
    """
    _check_kinds(locals())
    root = Path(root_dir)
    file = manifest_path(path, root)
    manifest = read_table(file, "manifest", coded=True, advice="path")
    if not len(manifest):
        raise DataError(f"manifest '{file}' has no rows; name a table with a row for every image", "path")
    stored = _stored_settings(manifest)
    own_folder = Path(os.path.normpath(file.parent / stored.get("image_dir", "")))
    folder = own_folder if image_dir is None else root / image_dir
    if image is None:
        image = stored.get("image", "path")
        channels = stored.get("channels") if channels is None and not isinstance(image, Mapping) else channels
    axes = stored.get("axes") if axes is None else axes
    given = {"z": z, "time": time, "depths": depths, "sizes": sizes}
    chosen: dict[str, Any] = {key: stored.get(key) if value is None else value for key, value in given.items()}
    reading = Reading(**{key: value for key, value in chosen.items() if value is not None})
    image_columns = _image_columns(image, channels, manifest.columns)
    columns = dict(columns or {})
    if isinstance(columns.get("well"), Sequence) and not isinstance(columns["well"], str):
        manifest = _join_wells(manifest, columns.pop("well"))
    own = _own_columns(columns, manifest)
    used = {*own.values(), *_columns_of(splits, control, manifest.columns)}
    files = [FileNames(tidy(part, folder) for part in manifest.pieces(column)) for column in image_columns]
    paths = {*image_columns} - {*own.values()}
    manifest = manifest.only([column for column in manifest.columns if column not in paths])
    frame = manifest.frame(numbers={*manifest.columns} - used)
    # the values of a large one take much memory
    manifest = replace(manifest, arrow=manifest.arrow.schema.empty_table())
    pa.default_memory_pool().release_unused()
    _to_names(frame, manifest, own, used & {*manifest.columns})
    texts = {*used, *manifest.coded} - {*COLUMNS, *NAMED}

    check_unique(files, frame[own["label"]] if "label" in own else np.full(len(frame), ""))
    of_wells = {"well", own.get("well")}
    channel_names = list(image) if isinstance(image, Mapping) else channels
    pixels: Pixels | None = packed_pixels(file, files, None if channel_names is None else tuple(channel_names), reading)
    if pixels is None and on_bad_image == "error":
        check_present(folder, files, channel_names)
    files = files if pixels is None else []  # of a large screen they are a tenth of a gigabyte, or more

    nothing = pd.Categorical([""]).take(np.zeros(len(frame), np.int8))
    parts: dict[Any, Any] = {column: frame[column] for column in frame if column not in COLUMNS}
    parts |= {column: frame[own[column]] if column in own else nothing for column in COLUMNS}
    table = pd.DataFrame(parts, copy=False)
    if control is not None:
        table["control"] = control_kinds(frame, control, of_wells)
    del frame, parts
    if isinstance(splits, str):
        table["split"], notes = make_splits(table, splits)
        for note in notes:
            log.info("%s", note)
    elif splits is not None:
        table["split"] = _splits(table, splits, of_wells)
    for note in check_splits(table):
        log.warning("'%s': %s", file, note)
    table["label"], class_names = _labels(table["label"], classes)
    for column in texts & {*table}:
        table[column] = as_text(table[column])
    pixels = pixels or open_files(folder, files, channel_names, axes, reading)
    del files
    return make_screen(table, pixels, class_names)


def _stored_settings(manifest: TableFile) -> dict[str, Any]:
    """What the manifest says of its images, see :data:`IMAGES_KEY`."""
    text = (manifest.arrow.schema.metadata or {}).get(IMAGES_KEY)
    if text is None:
        return {}
    try:
        stored = read_json(text)
    except ValueError as error:
        raise DataError(
            f"manifest '{manifest.path}' has damaged settings of its images ({error}): write it again", "path"
        ) from error
    return {key: value for key, value in stored.items() if value is not None}


_TEXT, _LIST, _MAPPING = (str, Path), (Sequence, np.ndarray), (Mapping,)
_KINDS: dict[str, tuple[tuple[type, ...], str, str]] = {
    "path": (_TEXT, "a path", "path"),
    "root_dir": (_TEXT, "a path", "root_dir"),
    "image_dir": (_TEXT, "a path", "image_dir"),
    "image": ((str, Mapping), "the name of a column, or {channel: column}", "image"),
    "channels": (_LIST, "a list, such as [DNA, actin]", "channels"),
    "axes": (_TEXT, "a word, such as HWC", "axes"),
    "columns": (_MAPPING, "a mapping, such as {label: moa}", "columns"),
    "classes": (_LIST, "a list, such as [Actin, Tubulin]", "classes"),
    "splits": (
        (Mapping, str),
        "plate, experiment, or a mapping, such as {train: {experiment: [W1]}, test: rest}",
        "splits",
    ),
    "control": (_MAPPING, "a mapping, such as {column: compound, negative: [DMSO]}", "control"),
}
"""What the arguments of a manifest may be: types, how to say it, and whose advice helps."""


def manifest_path(path: str | Path | None, root_dir: str | Path, **_: Any) -> Path:
    """Where :func:`load_manifest` finds a manifest: by the usual name in a folder, Parquet or CSV, if none is given."""
    root = Path(root_dir)
    if path is not None:
        return root / path
    there = [root / name for name in ("manifest.parquet", "manifest.csv") if (root / name).is_file()]
    if len(there) > 1:
        raise ConfigError(f"'{root}' holds {there[0].name} and {there[1].name}: say which", "path")
    return there[0] if there else root / "manifest.parquet"


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the wrong kind, as a setting may be."""
    for name, (kinds, said, advice) in _KINDS.items():
        value = arguments[name]
        wrong = not isinstance(value, kinds) or (kinds is _LIST and isinstance(value, str | bytes))
        if wrong and (value is not None or name == "root_dir"):
            raise ConfigError(f"{name} is {value!r}: it must be {said}", advice)
    check_on_bad_image(arguments["on_bad_image"])


def _image_columns(image: str | Mapping[str, str], channels: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The columns of image paths, one or one a channel."""
    if not isinstance(image, Mapping):
        return find(image, there, "column of images", advice="image")
    found = [
        find(column, there, f"column of the images of channel '{c}'", advice="image")[0] for c, column in image.items()
    ]
    if len(set(found)) < len(found) or not found:
        raise ConfigError(f"the columns of images are {dict(image)}: name one column for every channel", "image")
    if channels is not None and list(channels) != list(image):
        raise ConfigError(
            f"the channels are {list(channels)}, but there are images of {list(image)}: leave the channels out",
            "channels",
        )
    return found


def _join_wells(manifest: TableFile, pair: Sequence[Any]) -> TableFile:
    """The manifest with a column ``well``, from one of rows and one of columns."""
    apart = [find(one, manifest.columns, "column for 'well'", advice="columns")[0] for one in pair]
    if len(set(apart)) != 2 or len(pair) != 2:
        raise ConfigError(
            f"'well' is {list(pair)}: name one column, or that of its row and that of its column", "columns"
        )
    frame = manifest.only(apart).frame()
    text = pa.array(wells_at(frame[apart[0]], frame[apart[1]], place=manifest.place), pa.string())
    others = manifest.arrow.select([column for column in manifest.arrow.column_names if column != "well"])
    order = (*(column for column in manifest.columns if column != "well"), "well")
    late = {column: read for column, read in manifest.late.items() if column != "well"}
    return replace(manifest, arrow=others.append_column("well", text), order=order, late=late)


def _own_columns(columns: Mapping[str, Any], manifest: TableFile) -> dict[str, str]:
    """Canonical column → column of the manifest, for those that there are."""
    own: dict[str, str] = {}
    there = manifest.columns
    for column in columns:
        if column not in COLUMNS:
            raise ConfigError(f"'{column}' is not a column of a screen; {did_you_mean(column, COLUMNS)}", "columns")
    for column in COLUMNS:
        value = columns.get(column)
        if value is None:
            like = [column] if column in there else [name for name in there if name.lower() == column]
            if len(like) > 1:
                raise ConfigError(f"'{column}' may be column '{like[0]}' or '{like[1]}': say which", "columns")
            if like:
                own[column] = like[0]
        elif value in there or not (value is False or value in _NOTHING):
            found = find(value, there, f"column for '{column}'", advice="columns")
            if len(found) != 1:
                raise ConfigError(f"the column for '{column}' is {value}: name one", "columns")
            own[column] = found[0]
    for column in PLATE:
        if column not in own:
            raise ConfigError(
                f"'{manifest.path}' has no column '{column}': say which of its columns that is; it has: "
                f"{', '.join(there)}",
                "columns",
            )
    absent = [column for column in COLUMNS if column not in own]
    log.info(
        "'%s': %s; without %s",
        manifest.path,
        ", ".join(c if c == name else f"{c} is '{name}'" for c, name in own.items()),
        ", ".join(absent) or "nothing",
    )
    return own


def _columns_of(
    splits: Mapping[str, Any] | str | None, control: Mapping[str, Any] | None, there: Sequence[str]
) -> set[str]:
    """The columns of the manifest that splits and controls name."""
    mapping = splits if isinstance(splits, Mapping) else {}
    rules = [rule for rule in mapping.values() if isinstance(rule, Mapping)]
    named = {column for rule in rules for column in rule if column in there}
    if control is None:
        return named
    keys = ("column", "negative", "positive")
    if "column" not in control or any(key not in keys for key in control):
        raise ConfigError(
            f"controls are described by {', '.join(control)}: 'column' is needed, and {', '.join(keys)} are known",
            "control",
        )
    found = find(control["column"], there, "column of the controls", advice="control")
    if len(found) != 1:
        raise ConfigError(f"the column of the controls is {control['column']}: name one", "control")
    return named | set(found)


def _to_names(frame: pd.DataFrame, manifest: TableFile, own: Mapping[str, str], used: Collection[str]) -> None:
    """Bring the columns that are ``used`` into the normal form of names, as categories."""
    meaning = {name: column for column, name in own.items()}
    for name in sorted(used):
        column = meaning.get(name, name)
        listed = frame[name].map(pd.api.types.is_list_like) if frame[name].dtype == object else np.zeros(0)
        if listed.any():
            value = frame[name][int(np.argmax(listed))]
            raise DataError(f"column '{name}' of '{manifest.path}' holds lists ({list(value)}): write one name a row")
        if column == "well":
            text = coded(frame[name], "well", form=well, place=manifest.place)
            needed = bool((text != "").any())
            frame[name] = coded(text, "well", form=well, place=manifest.place, needed=needed)
        else:
            frame[name] = coded(frame[name], column, place=manifest.place, needed=column in PLATE)


def control_kinds(
    frame: pd.DataFrame, control: Mapping[str, Any], of_wells: Collection[str | None]
) -> "pd.Categorical[Any]":
    """``negative``, ``positive`` or empty for every row, by the values of a column; ``of_wells`` are those of wells."""
    column = find(control["column"], frame.columns, "column of the controls", advice="control")[0]
    text, form = frame[column], well if column in of_wells else normal
    result = np.zeros(len(text), np.int8)
    for number, kind in enumerate(CONTROLS[1:], 1):
        listed = control.get(kind)
        if listed is None:
            continue
        for value in find(listed, text.unique(), f"{kind} control, column '{column}'", form=form, advice="control"):
            rows = (text == value).to_numpy()
            if result[rows].any():
                raise ConfigError(f"'{value}' is listed as negative and as positive control: choose one", "control")
            result[rows] = number
    return pd.Categorical(CONTROLS).take(result)


def _splits(table: pd.DataFrame, splits: Mapping[str, Any], of_wells: Collection[str | None]) -> "pd.Categorical[Any]":
    """The split of every row; empty for those that no split takes."""
    rules = {name: rule for name, rule in splits.items() if rule is not None}
    rests = [name for name, rule in rules.items() if rule == REST]
    if len(rests) > 1:
        raise ConfigError(f"the rest is given to the splits '{rests[0]}' and '{rests[1]}': choose one", "splits")
    order = list(rules)
    result = np.full(len(table), -1, np.int32)
    for number, name in enumerate(order):
        if rules[name] == REST:
            continue
        rows = _select(table, name, rules[name], of_wells)
        both = np.flatnonzero(rows & (result >= 0))
        if len(both):
            where = ", ".join(f"{column} '{table[column][both[0]]}'" for column in PLATE)
            other = order[result[both[0]]]
            raise ConfigError(f"{where} is in the splits '{other}' and '{name}': choose one", "splits")
        result[rows] = number
    for name in rests:
        result[result < 0] = order.index(name)
    empty = [name for number, name in enumerate(order) if not (result == number).any()]
    if empty:
        raise ConfigError(f"split '{empty[0]}' takes no image: change it, or leave it out", "splits")
    return pd.Categorical(np.array([*order, ""], object)).take(result)


def _select(table: pd.DataFrame, split: str, rule: Any, of_wells: Collection[str | None]) -> np.ndarray:
    """The rows (N,) bool that a split's rule takes; ``of_wells`` are columns of wells."""
    if not isinstance(rule, Mapping) or not rule:
        raise ConfigError(
            f"split '{split}' is '{rule}': give it '{REST}', or columns with the values to take, such as "
            "{experiment: [Week1, Week2]}",
            "splits",
        )
    rows = np.ones(len(table), bool)
    for column, values in rule.items():
        find(column, table.columns, f"column of split '{split}'", advice="splits")
        known = list(table[str(column)].unique())
        if column == "plate":  # may be given with its experiment
            plates = number_rows([table[one] for one in PLATE])
            known += map("/".join, table[list(PLATE)].iloc[first_rows(plates, plates.max() + 1)].to_numpy())
        what = f"split '{split}', {column}"
        listed = find(values, known, what, form=well if column in of_wells else normal, advice="splits")
        rows &= np.logical_or.reduce([_says(table, column, value) for value in listed])
    return rows


def _says(table: pd.DataFrame, column: str, value: str) -> np.ndarray:
    """The rows (N,) bool with this value; a plate may also be given as ``experiment/plate``."""
    rows = (table[column] == value).to_numpy(bool)
    if column == "plate" and not rows.any():
        experiment, _, plate = value.rpartition("/")
        rows = ((table["experiment"] == experiment) & (table["plate"] == plate)).to_numpy(bool)
    return rows


def _labels(text: pd.Series, classes: Sequence[Any] | None) -> tuple[np.ndarray, list[str]]:
    """The number of every row's label, (N,) int64, and the names of the classes."""
    codes, found = factorize(text)
    known = [value for value in found if value]
    if classes is None:
        whole = all(re.fullmatch(r"-?\d+", value) for value in known)
        class_names = sorted(known, key=lambda value: (int(value), value)) if whole else sorted(known)
    else:
        class_names = list(map(str, names([_class(value, known) for value in classes], "class")))
        if "" in class_names:
            raise ConfigError(
                f"class {classes[class_names.index('')]!r} says that nothing is known: leave it out", "classes"
            )
        twice = [name for number, name in enumerate(class_names) if name in class_names[:number]]
        if twice:
            raise ConfigError(f"class '{twice[0]}' is listed twice: remove one of them", "classes")
        unknown = [value for value in known if value not in set(class_names)]
        if unknown:
            hint = did_you_mean(unknown[0], class_names)
            raise DataError(f"label '{unknown[0]}' is not among the classes: add it; {hint}", "classes")
    numbers = {name: number for number, name in enumerate(class_names)}
    lookup = np.array([numbers.get(value, UNLABELLED) for value in found], dtype=np.int64)
    return lookup[codes], class_names


def _class(value: Any, known: Sequence[str]) -> str:
    """The name of a class, of which this manifest need not have images."""
    if isinstance(value, str) or (type(value) is int and not readings(value, known)):
        return normal(value)
    return find([value], known, "class", advice="classes")[0]
