"""What a plate map allows: how the treatments, replicates and controls of a screen lie on its plates.

Statistics of a plate remove what all its wells have in common. Where a plate holds few and other treatments than the
next, that is biology, too. Two numbers say how far this goes, from the plate map alone:

- the *shift* of the composition, how much more alike the wells of a plate are in what they hold than wells of any
  plates: the intraclass correlation ρ, 0 where plates hold what a random draw would give them, 1 where each holds one
  class;
- the *effective wells* of a plate, n / (1 + (n - 1) ρ) (the design effect of Kish 1965): how many wells, drawn at
  random from the whole screen, would represent it as well as its n wells do.

Nothing here is quadratic in wells: contingency tables are kept as the pairs that occur.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import ConfigError, DataError
from biomass.grouping import first_rows, number_rows
from biomass.screen import PLATE, Screen

FORMATS = {96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Number of wells → rows and columns of a plate."""

POSITIONS = ("row", "column", "edge")
"""Places in a plate that a treatment may be confounded with, besides the plate itself."""

_ON_MOST, _ON_FEW, _FEW_PLATES = 0.8, 0.5, 5  # shares of the plates, and plates, by which references are found


class Shift(NamedTuple):
    """How the composition of groups differs from that of all of them.

    Attributes:
        distance: total-variation distance of a group's composition to that of all, 0…1, mean over the wells.
        correlation: intraclass correlation ρ, at most 1; below 0 where groups are more even than a random draw.
        alpha: of the symmetric Dirichlet distribution whose draws are shifted as much, inf where ρ is not above 0.
        classes: how many there are.
    """

    distance: float
    correlation: float
    alpha: float
    classes: int


def well_table(screen: Screen, by: Sequence[str] = PLATE) -> pd.DataFrame:
    """The wells of a screen, as a plate map lists them.

    Args:
        screen: its images are not read.
        by: columns that will be grouped by.

    Returns:
        A row a well (an image, where the screen has no wells): ``experiment, plate, well, treatment, label, control``
        and the columns of ``by``, text; ``images``, how many rows it has.

    Raises:
        ConfigError: the screen has no such column.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> rows = {"plate": ["P1", "P1"], "well": ["A01", "A01"], "label": [0, 0]}
    >>> screen = make_screen(pd.DataFrame(dict.fromkeys(COLUMNS, ["", ""]) | rows), pixels=None, classes=["taxol"])
    >>> well_table(screen)[["plate", "well", "treatment", "images"]].values.tolist()
    [['P1', 'A01', 'taxol', 2]]
    """
    table, places = screen.table, (*PLATE, "well", "control")
    keys = screen.keys([*places, *(c for c in by if c not in places)])
    further = [c for c in ("compound", "concentration") if c in table and "compound" in table]
    rows, images = np.arange(len(table)), np.ones(len(table), np.int64)
    if (keys["well"] != "").all():  # what rows of a well have in common is written once
        codes = [pd.Series(pd.factorize(table[c])[0]) for c in further]
        numbers = number_rows([*(keys[c] for c in keys), table["label"], *codes])
        images = np.bincount(numbers)
        first = first_rows(numbers, len(images))
        order = np.argsort(first)
        rows, images = first[order], images[order]
    named = np.array([*screen.classes, ""], dtype=object)[screen.labels[rows]]
    wells = keys.iloc[rows].astype(str).assign(label=named, treatment=named)
    if further:
        compound = table["compound"].iloc[rows].astype(str)
        dose = table["concentration"].iloc[rows].astype(str).radd(" ") if "concentration" in table else ""
        wells["treatment"] = np.where(compound == "", wells["treatment"], compound + dose)
    return count_wells(wells.reset_index(drop=True), images)


def count_wells(rows: pd.DataFrame, images: np.ndarray | int = 1) -> pd.DataFrame:
    """The distinct wells of a table whose rows are images, cells or wells, with ``images``, the number of rows of each.

    >>> rows = pd.DataFrame({"plate": ["P1", "P1", "P2"], "well": ["A01", "A01", "A01"]})
    >>> count_wells(rows).values.tolist()
    [['P1', 'A01', 2], ['P2', 'A01', 1]]
    """
    if not (rows["well"] != "").all():
        return rows.assign(images=images)
    columns = list(rows.columns)
    return rows.assign(images=images).groupby(columns, sort=False, observed=True)["images"].sum().reset_index()


def find_references(wells: pd.DataFrame) -> list[str]:
    """Treatments that serve as positive controls, found by where they are: on at least 80 % of all plates, where most
    treatments are on less than half of them.

    Args:
        wells: a row a well, as :func:`well_table` gives them.

    Returns:
        Their names, sorted; none where there are fewer than five plates, or treatments are spread over the plates.

    >>> wells = pd.DataFrame({"experiment": "", "plate": list("112233445566"), "control": ""})
    >>> find_references(wells.assign(treatment=["taxol", "a", "taxol", "b", "taxol", "c"] * 2))
    ['taxol']
    """
    treated = wells[(wells["control"] == "").to_numpy()]
    plates = wells.groupby(list(PLATE), observed=True).ngroups
    on = treated.drop_duplicates([*PLATE, "treatment"])["treatment"].value_counts() / max(plates, 1)
    common = on >= _ON_MOST
    if plates < _FEW_PLATES or not common.any() or not (on[~common].median() < _ON_FEW):
        return []
    return sorted(on.index[common])


def describe_groups(wells: pd.DataFrame, by: Sequence[str] = PLATE) -> pd.DataFrame:
    """What every plate (or coarser group) of a plate map holds.

    Args:
        wells: a row a well, as :func:`well_table` gives them.
        by: the columns that make a group.

    Returns:
        A row a group, sorted, with the columns of ``by`` and ``images``, ``wells`` (all), ``treated``, ``negative``,
        ``positive`` (wells of each kind), ``treatments``, ``classes`` (distinct ones of the treated wells),
        ``replicates`` (treated wells a treatment), ``shared`` (share of the treated wells whose treatment is in other
        groups, too) and ``coverage`` (share of all classes that are here). Without treated wells the last two are NaN.

    Raises:
        ConfigError: a column is not in the table.

    >>> wells = pd.DataFrame({"plate": list("1122"), "treatment": list("abac"), "control": "", "images": 1})
    >>> describe_groups(wells.assign(label=wells["treatment"]), ["plate"])[["treated", "shared", "coverage"]]
       treated  shared  coverage
    0        2     0.5  0.666667
    1        2     0.5  0.666667
    """
    missing = [column for column in by if column not in wells]
    if missing:
        raise ConfigError(f"cannot group by '{missing[0]}': the plate map has {', '.join(map(str, wells.columns))}")
    keys = wells.groupby(list(by), sort=True, observed=True)
    number, control = keys.ngroup().to_numpy(), wells["control"].to_numpy()
    groups = keys["images"].sum().reset_index()
    n = len(groups)
    groups["wells"] = np.bincount(number, minlength=n)
    treated = control == ""
    groups["treated"] = np.bincount(number[treated], minlength=n)
    for kind in ("negative", "positive"):
        groups[kind] = np.bincount(number[control == kind], minlength=n)
    own, name = number[treated], pd.factorize(wells.loc[treated, "treatment"])[0]
    pairs = _pairs(own, name)
    groups["treatments"] = np.bincount(pairs[0], minlength=n)
    label = pd.factorize(wells.loc[treated, "label"])[0]
    groups["classes"] = np.bincount(_pairs(own, label)[0], minlength=n)
    several = np.bincount(pairs[1], minlength=1) > 1
    with np.errstate(invalid="ignore", divide="ignore"):
        groups["replicates"] = groups["treated"] / groups["treatments"]
        groups["shared"] = np.bincount(own, several[name], n) / groups["treated"]
        groups["coverage"] = groups["classes"].where(groups["treated"] > 0) / max(label.max(initial=0) + 1, 1)
    return groups


def composition_shift(groups: object, classes: object) -> Shift:
    """How far the compositions of groups lie from each other, beyond what drawing their wells at random does.

    If the shares of the classes in a group come from a symmetric Dirichlet distribution over K classes, and its wells
    from these shares (the Dirichlet-multinomial distribution, Mosimann 1962), two wells of one group hold the same
    class with probability a + ρ (1 - a), where a is that of two wells of different groups and ρ = 1 / (K α + 1). Both
    probabilities are counted without bias, which gives ρ and α in closed form.

    The distance of the compositions cannot tell a shift from small plates: with 1108 treatments once each on four
    plates it is 0.75, although the wells may be drawn at random. ρ is 0 there.

    Args:
        groups: (N,) the group of every treated well.
        classes: (N,) its class.

    Raises:
        DataError: there are no wells, or not as many groups as classes.

    >>> composition_shift([1, 1, 2, 2], ["a", "a", "b", "b"])
    Shift(distance=0.5, correlation=1.0, alpha=0.0, classes=2)
    >>> composition_shift([1, 1, 2, 2], ["a", "b", "a", "b"])
    Shift(distance=0.0, correlation=-1.0, alpha=inf, classes=2)
    """
    group, label = (pd.factorize(np.asarray(values, dtype=object))[0] for values in (groups, classes))
    if len(group) != len(label) or not len(group):
        raise DataError(f"{len(group)} wells have a group and {len(label)} a class: give both, of at least one well")
    n, totals = np.bincount(group).astype(float), np.bincount(label).astype(float)
    q = totals / len(label)
    g, k, count = _pairs(group, label)
    # a group lacks most classes, each of which adds q: all of them, less those that it has
    absolute = 1 + np.bincount(g, np.abs(count / n[g] - q[k]) - q[k], len(n))
    distance = max(0.0, float((n * absolute).sum() / n.sum() / 2))
    other = len(label) ** 2 - (n**2).sum()  # pairs of wells of different groups
    several = n > 1
    if not other or not several.any():  # one group, or one well a group: nothing to compare
        return Shift(distance, 0.0, np.inf, len(q))
    same = np.bincount(g, count * (count - 1), len(n))[several] / (n * (n - 1))[several]
    within = float((same * n[several]).sum() / n[several].sum())
    between = float(((totals**2).sum() - (count**2).sum()) / other)
    if between == 1:  # one class
        return Shift(distance, 0.0, np.inf, len(q))
    rho = (within - between) / (1 - between)
    return Shift(distance, rho, (1 / rho - 1) / len(q) if rho > 0 else np.inf, len(q))


def effective_wells(wells: object, controls: object, correlation: object) -> np.ndarray:
    """How many wells drawn at random would represent the screen as well as those of a group do.

    n treated wells count as n / (1 + (n - 1) ρ) (Kish 1965). Controls are the same in every group: with c of them the
    treated wells are the part t = n / (n + c), and what is off in their composition counts t² only.

    Args:
        wells: treated wells of each group, (G,).
        controls: control wells of each group, (G,).
        correlation: ρ of the treated wells, see :class:`Shift`; one for all, or (G,).

    Returns:
        (G,) at most ``wells + controls``.

    >>> effective_wells([64, 64, 4], [0, 16, 0], 0.25).round(2)
    array([3.82, 5.97, 2.29])
    """
    n, c = np.asarray(wells, float), np.asarray(controls, float)
    total = n + c
    with np.errstate(invalid="ignore", divide="ignore"):
        alone = n / (1 + np.maximum(n - 1, 0) * np.maximum(np.asarray(correlation, float), 0.0))
        return np.where(n > 0, np.minimum(alone / (n / total) ** 2, total), total)


def cramers_v(first: object, second: object) -> float:
    """How strongly two classifications of the same wells depend on each other, 0 … 1: Cramér's V without its bias.

    Plain V is far above 0 for independent columns as soon as there are many values. This is the estimate of Bergsma
    (J. Korean Stat. Soc. 42, 2013): about 0 where they are independent, 1 where each value of one goes with one value
    of the other.

    Args:
        first: (N,) names, such as the treatments of wells.
        second: (N,) names, such as their plates.

    Returns:
        V, or NaN where it cannot be told: a column has one value, or none that occurs twice.

    >>> cramers_v(["a", "a", "b", "b"] * 5, ["x", "x", "y", "y"] * 5)
    1.0
    >>> cramers_v(["a", "a", "b", "b"] * 5, ["x", "y", "x", "y"] * 5)
    0.0
    """
    a, b = (pd.factorize(np.asarray(values, dtype=object))[0] for values in (first, second))
    n = len(a)
    if n < 2:
        return float("nan")
    i, j, count = _pairs(a, b)
    rows, columns = np.bincount(a), np.bincount(b)
    # chi² / n = sum of count² / (row total x column total) - 1: absent pairs add nothing
    phi2 = float((count**2 / (rows[i] * columns[j].astype(float))).sum() - 1)
    r, k = len(rows), len(columns)
    corrected = max(0.0, phi2 - (r - 1) * (k - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(min(1.0, corrected / least))) if least > 1e-9 else float("nan")


def plate_format(wells: Sequence[str], named: int | None = None) -> int:
    """The number of wells of the plates: the smallest of :data:`FORMATS` that has all wells, or the one that is named.

    Args:
        wells: names of wells in normal form, see :func:`biomass.identifiers.well`.
        named: the format that the user names.

    Raises:
        ConfigError: there is no such format.
        DataError: a well is none, or lies outside the named format.

    >>> plate_format(["B02", "G11"]), plate_format(["B02", "O23"])
    (96, 384)
    """
    if named is not None and named not in FORMATS:
        raise ConfigError(f"no plate has {named} wells: choose {', '.join(map(str, FORMATS))}")
    rows, columns = places(wells)
    chosen = named or next(size for size in FORMATS if size == max(FORMATS) or _fits(rows, columns, size))
    height, width = FORMATS[chosen]
    outside = np.flatnonzero((rows >= height) | (columns >= width))
    if len(outside):
        raise DataError(
            f"well '{wells[outside[0]]}' lies outside a plate of {chosen} wells, which ends at "
            f"{_row_name(height - 1)}{width:02d}: correct the well, or the format"
        )
    return chosen


def places(wells: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of wells, from 0, each (N,) int64.

    Raises:
        DataError: a name is not that of a well.

    >>> places(["A01", "H12", "AF48"])
    (array([ 0,  7, 31]), array([ 0, 11, 47]))
    """
    text = pd.Series(wells, dtype=object).astype(str)
    codes, names = pd.factorize(text)
    parts = pd.Series(names, dtype=object).str.extract(r"^(A?[A-Z])(\d\d)$")
    bad = np.flatnonzero(parts[0].isna())
    if len(bad):
        raise DataError(
            f"'{names[bad[0]]}' is not a well of a plate of up to 1536 wells (A01 … AF48): correct its name"
        )
    rows = np.array([(26 if len(one) > 1 else 0) + ord(one[-1]) - ord("A") for one in parts[0]], np.int64)
    columns = parts[1].astype(int).to_numpy(np.int64) - 1
    return rows[codes], columns[codes]


def confounding(wells: pd.DataFrame, size: int | None, by: Sequence[str] = PLATE) -> dict[str, float]:
    """How strongly treatments depend on where they are, by :func:`cramers_v` over the treated wells.

    Args:
        wells: a row a well, as :func:`well_table` gives them.
        size: number of wells of a plate; None where wells are not known.
        by: the columns that name a group.

    Returns:
        ``group``, and with ``size`` each of :data:`POSITIONS`; NaN where it cannot be told.

    >>> wells = pd.DataFrame({"plate": list("1122"), "well": ["A01", "B02"] * 2, "treatment": list("abab")})
    >>> confounding(wells.assign(control=""), 96, ["plate"])
    {'group': 0.0, 'row': 1.0, 'column': 1.0, 'edge': 1.0}
    """
    treated = wells[(wells["control"] == "").to_numpy()]
    treatment = treated["treatment"].to_numpy()
    found = {"group": cramers_v(treatment, treated.groupby(list(by), observed=True).ngroup().to_numpy())}
    if size is None:
        return found
    height, width = FORMATS[size]
    rows, columns = places(treated["well"].tolist())
    edge = (rows == 0) | (rows == height - 1) | (columns == 0) | (columns == width - 1)
    where = dict(zip(POSITIONS, (rows, columns, edge), strict=True))
    return found | {name: cramers_v(treatment, values) for name, values in where.items()}


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of two numberings from 0 that occur, and how often: each (P,)."""
    if not len(first):
        return first.astype(np.int64), second.astype(np.int64), np.zeros(0)
    width = int(second.max()) + 1
    pair, count = np.unique(first.astype(np.int64) * width + second, return_counts=True)
    return pair // width, pair % width, count.astype(float)


def _fits(rows: np.ndarray, columns: np.ndarray, size: int) -> bool:
    height, width = FORMATS[size]
    return bool(rows.max(initial=0) < height and columns.max(initial=0) < width)


def _row_name(row: int) -> str:
    """The letters of a row, from 0."""
    return chr(65 + row) if row < 26 else f"A{chr(65 + row - 26)}"
