"""Images and plate maps put together: what each well that was imaged holds, and what is left over on either side."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from biomass.datasets.map_files import plate_size
from biomass.datasets.plate_map import PlateMaps
from biomass.errors import DataError, did_you_mean
from biomass.identifiers import names, well_places, wells

_SHOWN = 5
_ENOUGH = 0.5  # share of a smaller plate's wells that shows that the plate is that small


@dataclass(frozen=True)
class Unmatched:
    """What has no partner.

    Attributes:
        map_wells: wells of maps without an image, on plates with images: columns ``plate, well, treatment``, and
            ``experiment`` before them where plates are not told apart without it.
        image_wells: wells with images that the map of their plate lacks: columns ``plate, well``, a row a well.
        map_plates: plates of maps of which there is no image.
        image_plates: plates with images that no map has.
        notes: what else is strange, a sentence each.
    """

    map_wells: pd.DataFrame
    image_wells: pd.DataFrame
    map_plates: list[str]
    image_plates: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        """A sentence for each plate, and for what concerns several.

        >>> wells = pd.DataFrame({"plate": ["P1", "P1"], "well": ["A01", "A02"], "treatment": ["DMSO", ""]})
        >>> Unmatched(wells, wells.iloc[:0], ["P2"], [], []).lines()
        ["plate 'P1': 2 wells of the map have no image (A01, A02), 1 of them without a treatment", \
"1 plate of the map has no image: 'P2'"]
        """
        said = []
        for plate, rows in self.map_wells.groupby(_plates(self.map_wells), sort=False):
            empty = int((rows["treatment"] == "").sum())
            more = f", {empty} of them without a treatment" if empty else ""
            verb = "has" if len(rows) == 1 else "have"
            said.append(f"plate '{plate}': {_count(rows['well'], 'well')} of the map {verb} no image{_in(rows)}{more}")
        for plate, rows in self.image_wells.groupby(_plates(self.image_wells), sort=False):
            said.append(f"plate '{plate}': {_count(rows['well'], 'well')} with images not in the map{_in(rows)}")
        for plates, what in (
            (self.map_plates, "of the map has no image"),
            (self.image_plates, "with images has no map"),
        ):
            if plates:
                verb = what if len(plates) == 1 else what.replace("has", "have")
                said.append(f"{_count(plates, 'plate')} {verb}: {_list(map(repr, plates))}")
        return said + self.notes


def join_plate_map(fields: pd.DataFrame, maps: PlateMaps) -> tuple[pd.DataFrame, Unmatched]:
    """Say of every image what its well holds.

    Args:
        fields: N rows, ``plate, well`` and what else is known of them; ``experiment`` is compared, too, if both have
            it and plates are not told apart without it.
        maps: of their plates.

    Returns:
        The N rows in their order with the columns of the map; texts are empty, and numbers NaN, where the map lacks
        the well. A column that the images have already is not replaced, unless it is empty throughout. And what has no
        partner.

    Raises:
        DataError: no image has a well in the map, or plates are of another format than the map.

    >>> table = pd.DataFrame({"plate": "", "well": ["A01", "A02"], "treatment": ["DMSO", "taxol"]})
    >>> fields = pd.DataFrame({"plate": ["P1", "P1", "P2"], "well": ["A1", "A03", "A02"]})
    >>> joined, left = join_plate_map(fields, PlateMaps(table, {}, [], {}))
    >>> joined["treatment"].tolist()
    ['DMSO', '', 'taxol']
    >>> left.lines()[-1]
    "plate 'P1': 1 well with images not in the map (A03)"
    """
    keys = pd.DataFrame({"plate": names(fields["plate"], "plate"), "well": wells(fields["well"], "well")})
    table = maps.table
    if (table["plate"] == "").all():
        every = list(dict.fromkeys(keys["plate"]))
        table = pd.concat([table.assign(plate=plate) for plate in every], ignore_index=True)
    on = ["plate", "well"]
    if table.duplicated(on).any():
        keys, on = _with_experiments(fields, keys, table)
    sizes = {plate: maps.sizes.get(plate, maps.sizes.get("", 0)) for plate in table["plate"].unique()}
    notes = _check_formats(keys, table, sizes)
    both = pd.concat([table[on], keys[on]], ignore_index=True).groupby(on, sort=False).ngroup().to_numpy()
    own, imaged = both[: len(table)], both[len(table) :]
    at = pd.Index(own).get_indexer(pd.Index(imaged))
    if len(keys) and (at < 0).all():
        raise DataError(_why_nothing(keys, table), "columns")
    joined = fields.copy()
    for column in table.columns.difference(on, sort=False):
        if column in joined and not (joined[column].astype(str) == "").all():
            continue
        values = table[column].to_numpy()
        missing = np.nan if values.dtype.kind in "fiu" else ""
        joined[column] = np.where(at >= 0, values[at], missing) if (at < 0).any() else values[at]
    here, listed = _plates(keys[on]), _plates(table[on])
    imaged_plates, mapped_plates = set(here), set(listed)
    lonely = table[~np.isin(own, imaged) & listed.isin(imaged_plates).to_numpy()]
    strange = keys[(at < 0) & here.isin(mapped_plates).to_numpy()].drop_duplicates()
    left = Unmatched(
        lonely[[*on, "treatment"]].reset_index(drop=True),
        strange[on].reset_index(drop=True),
        [plate for plate in dict.fromkeys(listed) if plate not in imaged_plates],
        [plate for plate in dict.fromkeys(here) if plate not in mapped_plates],
        notes,
    )
    return joined, left


def _plates(table: pd.DataFrame) -> "pd.Series[str]":
    """What to call the plate of every row: with its experiment, where the table has one."""
    return table["experiment"] + "/" + table["plate"] if "experiment" in table else table["plate"]


def _with_experiments(fields: pd.DataFrame, keys: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The keys with the experiment, without which a map's plates are not told apart."""
    first = table.loc[table.duplicated(["plate", "well"])].iloc[0]
    if "experiment" not in fields or (fields["experiment"].astype(str) == "").all():
        raise DataError(
            f"plate '{first['plate']}' of the map is there in several experiments, '{first['experiment']}' among them, "
            "and of the images no experiment is known: say from where it is taken",
            "columns",
        )
    return keys.assign(experiment=names(fields["experiment"], "experiment")), ["experiment", "plate", "well"]


def _check_formats(keys: pd.DataFrame, table: pd.DataFrame, sizes: dict[str, int]) -> list[str]:
    """Refuse maps of another format than their plates; say where it may be so.

    Which format a plate has is certain where a map is drawn, or where wells lie beyond all smaller ones. That a plate
    is as small as its wells suggest is taken for certain where these are at least half of those that it has.
    """
    notes: list[str] = []
    both = [plate for plate in dict.fromkeys(keys["plate"]) if plate in sizes]
    if not both:
        return notes
    imaged, held = keys[keys["plate"].isin(both)], table[table["plate"].isin(both)]
    fit, mapped = _plate_sizes(imaged), _plate_sizes(held)
    number = held.groupby("plate", sort=False)["well"].nunique()
    small, seen = max(fit.values()), sorted(imaged["well"].unique(), key=_place)
    for plate in both:
        size = sizes[plate] or mapped[plate]
        if fit[plate] > size and (sizes[plate] or (size >= 96 and number[plate] >= _ENOUGH * size)):
            own = imaged.loc[imaged["plate"] == plate, "well"].unique()
            beyond = next(one for one in own if plate_size(*_spot(one)) > size)
            raise DataError(
                f"plate '{plate}' has images of well {beyond}, as on a plate of {fit[plate]} wells, and its map is of "
                f"{size} wells: give the map of that plate",
                "columns",
            )
        if size > small:
            said = (
                f"the map of plate '{plate}' is of {size} wells, and all images are of wells that a plate of {small} "
                f"has ({_list(seen, 3)})"
            )
            if small >= 96 and len(seen) >= _ENOUGH * small:
                raise DataError(
                    f"{said}: give the map of a plate of {small} wells, or take the wells out that were not imaged",
                    "columns",
                )
            if not notes and mapped[plate] > small:
                notes.append(f"{said}: is it the map of these plates?")
    return notes


def _plate_sizes(wells: pd.DataFrame) -> dict[str, int]:
    """How many wells each plate has at least, by the wells that are there."""
    pairs = wells[["plate", "well"]].drop_duplicates()
    codes, distinct = pd.factorize(pairs["well"])
    spots = np.array([_spot(one) for one in distinct])[codes]
    last = (
        pd.DataFrame({"row": spots[:, 0], "column": spots[:, 1]}).groupby(pairs["plate"].to_numpy(), sort=False).max()
    )
    return {str(plate): plate_size(row, column) for plate, row, column in last.itertuples(name=None)}


def _spot(name: str) -> tuple[int, int]:
    """The row and the column of a well, from 1; the first of a name that is none of a well."""
    try:
        rows, columns = well_places([name])
    except DataError:
        return 1, 1
    return int(rows[0]), int(columns[0])


def _why_nothing(keys: pd.DataFrame, table: pd.DataFrame) -> str:
    """Why no image has a well in the map."""
    for column, what in (("experiment", "experiments"), ("plate", "plates"), ("well", "wells")):
        if column not in keys or column not in table:
            continue
        own, other = dict.fromkeys(keys[column]), dict.fromkeys(table[column])
        if not own.keys() & other.keys():
            first = next(iter(own))
            near = did_you_mean(first, other, " ").strip()
            hint = f"; {near}" if near else ""
            return (
                f"the {what} of the images ({_list(map(repr, own))}) are not those of the plate map "
                f"({_list(map(repr, other))}): correct the names, or say which column holds them{hint}"
            )
    return "no well with images is in the map of its plate: correct the names of plates and wells"


def _in(rows: pd.DataFrame) -> str:
    inside = sorted(map(str, rows["well"]), key=_place)
    return f" ({_list(inside)})"


def _place(well: str) -> tuple[int, str, int, str]:
    found = re.fullmatch(r"([A-Z]+)(\d+)", well)
    return (len(found[1]), found[1], int(found[2]), "") if found else (9, "", 0, well)


def _count(values: object, what: str) -> str:
    number = len(values)  # type: ignore[arg-type]
    return f"{number} {what}{'' if number == 1 else 's'}"


def _list(values: Iterable[object], shown: int = _SHOWN) -> str:
    texts = list(map(str, values))
    return ", ".join(texts[:shown]) + (", …" if len(texts) > shown else "")
