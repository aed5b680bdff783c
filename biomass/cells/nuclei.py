"""Where the nuclei are: the published tables of BBBC021, or found in a stain of DNA."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from biomass.errors import ConfigError, DataError, one_line

SUPPLEMENT_IMAGES, SUPPLEMENT_OBJECTS = "supplement_Image.txt", "supplement_Object.txt"
"""The tables of Ljosa et al. (2013), Data S2."""

DIAMETER = 36.0
"""Diameter of a typical MCF-7 nucleus in BBBC021, pixels."""

METHOD = 2
"""Version of :func:`find_nuclei`: nuclei that an earlier one found are searched again."""

_IMAGE_COLUMNS = {0: "table", 1: "image", 2: "file", 10: "plate", 11: "well"}
_OBJECT_COLUMNS = {0: "table", 1: "image", 3: "x", 4: "y", 7: "area"}
_SITE = r"_s(\d+)_"  # nowhere in the table, but in every file name
_NOISE = 6  # a nucleus is brighter than the background by this many standard deviations of its noise
_SMALLEST, _LARGEST = 0.2, 6.0  # areas of what counts as a nucleus, in areas of a typical one
_HOLE = 0.03  # the largest hole in a nucleus, in areas of a typical one
# In diameters and shares; chosen on simulated fields, for touching nuclei as for single ones with much texture.
_SMOOTH, _AROUND, _CORE, _APART = 0.05, 0.2, 0.65, 0.3


def find_nuclei(image: np.ndarray, diameter: float = DIAMETER) -> tuple[np.ndarray, np.ndarray]:
    """Find the nuclei in an image of a DNA stain (DAPI, Hoechst), see :func:`segment_nuclei`.

    Args:
        image: (H, W), of any numeric type; bright nuclei on a dark background.
        diameter: of a typical nucleus, pixels; up to a factor of 1.5 off does little harm.

    Returns:
        The nuclei's centroids, y and x in pixels, (n, 2) float64, from top to bottom, and their areas in pixels,
        (n,) int64; n = 0 where there are none.

    Raises:
        ConfigError: the diameter is below 4 pixels.

    >>> image = np.zeros((40, 60))
    >>> image[10:20, 10:20] = image[10:20, 21:31] = 1  # two that nearly touch
    >>> find_nuclei(image, diameter=10)[0].round().tolist()
    [[14.0, 14.0], [14.0, 26.0]]
    """
    return measure_labels(segment_nuclei(image, diameter))[:2]


def segment_nuclei(image: np.ndarray, diameter: float = DIAMETER) -> np.ndarray:
    """Label the nuclei in an image of a DNA stain.

    The image is smoothed a little and thresholded twice. The first threshold (Otsu 1979, of the square root of what is
    above the background, so that a few bright nuclei in mitosis do not hide the dim ones; but never within the
    background's noise) says what belongs to a nucleus. The second one, a share of the mean brightness of the nuclei
    around a pixel, leaves their cores, and opens the dim gaps and necks between nuclei that touch. Cores are parted
    where the distance to their edge has a saddle, and grow back to the outline of the first threshold (watersheds,
    Meyer 1994). What is much smaller or larger than a nucleus is left out. Brightness and offset of the image do not
    matter. At least a quarter of the image must be background.

    Args:
        image, diameter: as of :func:`find_nuclei`.

    Returns:
        (H, W) int32: 0 where there is no nucleus, else the number of the nucleus, from 1.
    """
    if not diameter >= 4:
        raise ConfigError(f"nuclei of a diameter of {diameter} pixels cannot be told from noise: use at least 4")
    smooth = ndimage.gaussian_filter(image.astype(np.float32), _SMOOTH * diameter)
    # Quantiles of the background alone, whatever the nuclei are like; of a normal distribution these two lie 0.97
    # standard deviations apart.
    low, background = np.percentile(smooth, (5, 25))
    signal = smooth - background
    noise = max(background - low, 1e-3 * signal.max())
    if noise <= 0:
        return np.zeros(image.shape, np.int32)
    roots = np.sqrt(np.maximum(signal, 0))
    typical = np.pi / 4 * diameter**2
    mask = _fill_holes(roots > max(threshold_otsu(roots), np.sqrt(_NOISE * noise)), _HOLE * typical)
    around = [ndimage.gaussian_filter(one, _AROUND * diameter) for one in (signal * mask, mask.astype(np.float32))]
    cores = _fill_holes(mask & (signal * around[1] > _CORE * around[0]), _HOLE * typical)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(cores), _SMOOTH * diameter)  # one peak a nucleus
    blobs, _ = ndimage.label(cores)
    apart = max(1, round(_APART * diameter))
    peaks = peak_local_max(depth, min_distance=apart, labels=blobs, exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    nuclei = watershed(ndimage.distance_transform_edt(~cores), watershed(-depth, seeds, mask=cores), mask=mask)
    areas = np.bincount(nuclei.ravel(), minlength=len(peaks) + 1)
    good = (areas >= _SMALLEST * typical) & (areas <= _LARGEST * typical)
    good[0] = False
    numbers = np.where(good, np.cumsum(good), 0).astype(np.int32)
    return numbers[nuclei]


def measure_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the objects of a label image lie.

    Args:
        labels: (H, W), of an integer type: 0 is background, any other number an object.

    Returns:
        The objects' centroids, y and x in pixels, (n, 2) float64, from top to bottom; their areas in pixels, (n,)
        int64; and their labels, (n,) int64.

    >>> centres, areas, labels = measure_labels(np.array([[0, 7, 7], [0, 0, 0], [5, 0, 0]]))
    >>> centres.tolist(), areas.tolist(), labels.tolist()
    ([[0.0, 1.5], [2.0, 0.0]], [2, 1], [7, 5])
    """
    y, x = np.nonzero(labels)
    found, which = np.unique(labels[y, x], return_inverse=True)
    areas = np.bincount(which, minlength=len(found))
    centres = np.stack([np.bincount(which, one, len(found)) for one in (y, x)], axis=1) / np.maximum(areas, 1)[:, None]
    order = np.lexsort((centres[:, 1], centres[:, 0]))
    return centres[order], areas[order].astype(np.int64), found[order].astype(np.int64)


def _fill_holes(mask: np.ndarray, largest: float) -> np.ndarray:
    """Fill holes of up to so many pixels, such as nucleoli; larger ones lie between nuclei."""
    holes, _ = ndimage.label(~mask)
    small = np.bincount(holes.ravel()) <= largest
    small[0] = False
    return mask | small[holes]


def read_nuclei(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the tables of Ljosa et al. (2013), Data S2: tab-separated, without header.

    Args:
        folder: holds ``supplement_Image.txt`` and ``supplement_Object.txt``.

    Returns:
        The fields, ``plate, well, site`` (text), a row each; and the nuclei, ``field`` (row of the fields), ``x, y``
        (centre, pixels), ``area`` (pixels) and ``nucleus`` (row of the table, from 0), in the order of the table. A
        field may have no nuclei.

    Raises:
        DataError: a table is missing or damaged, a field is listed twice, or a nucleus lies in none of the fields.
    """
    folder = Path(folder).expanduser()
    images = _read(folder / SUPPLEMENT_IMAGES, _IMAGE_COLUMNS)
    objects = _read(folder / SUPPLEMENT_OBJECTS, _OBJECT_COLUMNS)
    fields = images[["plate", "well"]].assign(site=images["file"].str.extract(_SITE, expand=False))
    if fields["site"].isna().any():
        name = images["file"][fields["site"].isna()].iloc[0]
        raise DataError(f"file name '{name}' in '{folder / SUPPLEMENT_IMAGES}' does not say its site (such as _s1_)")
    for columns, table in ((["plate", "well", "site"], fields), (["table", "image"], images)):
        twice = table.duplicated(columns)
        if twice.any():
            what = ", ".join(f"{c} {v}" for c, v in table.loc[twice, columns].iloc[0].items())
            raise DataError(f"'{folder / SUPPLEMENT_IMAGES}' lists {what} twice: remove one of the rows")
    keys = images[["table", "image"]].assign(field=np.arange(len(images)))
    nuclei = objects.merge(keys, how="left", on=["table", "image"])
    lost = nuclei["field"].isna()
    if lost.any():
        first = nuclei[lost].iloc[0]
        raise DataError(
            f"{lost.sum()} of {len(lost)} nuclei in '{folder / SUPPLEMENT_OBJECTS}' lie in no image of "
            f"'{folder / SUPPLEMENT_IMAGES}', the first in table {first['table']}, image {first['image']}: "
            "both files must come from the same download"
        )
    return fields, _numbers(nuclei, folder / SUPPLEMENT_OBJECTS)


def _numbers(nuclei: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The columns ``field, x, y, area`` as numbers."""
    numbers = nuclei[["x", "y", "area"]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(numbers.to_numpy()).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"nucleus {row} (from 0) in '{file}' has the centre ({nuclei['x'][row]}, {nuclei['y'][row]}) "
            f"and the area {nuclei['area'][row]}: all must be numbers"
        )
    numbers = numbers.assign(field=nuclei["field"].astype(np.int64), nucleus=np.arange(len(numbers)))
    return numbers[["field", "x", "y", "area", "nucleus"]]


def _read(file: Path, columns: dict[int, str]) -> pd.DataFrame:
    """Some columns of a table without header, as text; the others, hundreds of them, take no memory."""
    wanted = [f"f{number}" for number in columns]
    try:
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
            ),
        )
    except FileNotFoundError:
        raise DataError(
            f"no table '{file}': get Data S2 of Ljosa et al. (2013), PMC3884769, or let nuclei be found "
            "in the DAPI channel"
        ) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"'{file}' cannot be read ({one_line(error)}): download it again") from error
    return table.rename_columns(list(columns.values())).to_pandas()
