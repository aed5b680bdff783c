"""How a manifest was made of folders, so that it can be made again when they have grown.

A manifest of an indexed folder keeps that, see :data:`.MADE`: a second index of the folder needs no options again, and
a screen that is being imaged can be looked at again and again.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from biomass.bounds import read_json
from biomass.datasets.index import Index, index_folder
from biomass.datasets.indexed import MADE, Mapped, find_map, join_map, place_beside, write_manifest
from biomass.datasets.lab_files import Found
from biomass.errors import DataError

_OF_ALL = ("layout", "pattern", "channels", "places", "z", "time", "depths", "sizes", "splits")
"""What holds for further folders of a manifest, too; what is in the wells and what plates are called may not."""

_PATHS = ("barcodes", "compounds")


@dataclass(frozen=True)
class Recipe:
    """A folder and how it is indexed, as :func:`.index_folder`, :func:`.join_map` and :func:`.write_manifest` take it.

    None stands for what nobody said.
    """

    folder: Path
    layout: str | None = None
    pattern: str | None = None
    channels: Mapping[str, str] | None = None
    plate: str | None = None
    places: Mapping[str, str] | None = None
    z: str | int | None = None
    time: int | None = None
    platemap: Sequence[Path] | None = None
    barcodes: Path | None = None
    compounds: Path | None = None
    experiment: str | None = None
    columns: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None
    allow_left_over: bool | None = None
    depths: str | None = None
    sizes: str | None = None
    on_bad_image: str | None = None
    splits: str | None = None  # none, or nothing is kept

    def index(self, found: Found | None = None) -> Index:
        """What the folder holds now; its files need not be listed where they were already."""
        return index_folder(
            self.folder,
            layout=self.layout,
            pattern=self.pattern,
            channels=self.channels,
            plate=self.plate,
            places=self.places,
            z=self.z,
            time=self.time,
            found=found,
        )

    def join(self, index: Index) -> Mapped:
        """With what is in the wells."""
        return join_map(
            index,
            self.platemap or find_map(index.folder, index.layout),
            columns=self.columns,
            control=self.control,
            barcodes=self.barcodes,
            compounds=self.compounds,
            experiment=self.experiment,
            allow_left_over=bool(self.allow_left_over),
        )

    def said(self) -> dict[str, Any]:
        """What somebody said, without the folder."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "folder"}
        return {name: value for name, value in own.items() if value is not None}

    def as_before(self, before: Sequence["Recipe"]) -> "Recipe":
        """With what was said before of the same folder, where nothing is said now; or of the images of another one.

        >>> old = Recipe(Path("a"), layout="phenix", z=2, experiment="W1")
        >>> Recipe(Path("a"), z=3).as_before([old]).said()
        {'layout': 'phenix', 'z': 3, 'experiment': 'W1'}
        >>> Recipe(Path("b"), pattern="{plate}/{well}.tif").as_before([old]).said()
        {'pattern': '{plate}/{well}.tif', 'z': 2}
        """
        own = next((one for one in before if _same(one.folder, self.folder)), None)
        if not before:
            return self
        old = own.said() if own else {k: v for k, v in before[-1].said().items() if k in _OF_ALL}
        if self.layout is not None or self.pattern is not None:
            old = {name: value for name, value in old.items() if name not in ("layout", "pattern")}
        return replace(self, **(old | self.said()))

    def kept_with(self, before: Sequence["Recipe"], layout: str, out: Path) -> list[dict[str, Any]]:
        """What a manifest keeps: this recipe, last, with the layout that was found; and those of other folders."""
        own = self if self.pattern is not None else replace(self, layout=layout)
        return [one.to_json(out) for one in [*(one for one in before if not _same(one.folder, self.folder)), own]]

    def to_json(self, out: Path) -> dict[str, Any]:
        """As a manifest keeps it: paths are relative to it where they lie beside it."""
        beside = out.absolute().parent
        own: dict[str, Any] = {k: v for k, v in asdict(self).items() if v is not None}
        for name in ("folder", *_PATHS):
            if name in own:
                own[name] = place_beside(_whole(own[name]), beside)
        if self.platemap is not None:
            own["platemap"] = [place_beside(_whole(one), beside) for one in self.platemap]
        if self.places is not None:
            own["places"] = {one: str(_whole(folder)) for one, folder in self.places.items()}
        return own

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], out: Path) -> "Recipe":
        """What :meth:`to_json` gave."""
        own, beside = dict(stored), out.absolute().parent
        for name in ("folder", *_PATHS):
            if name in own:
                own[name] = Path(os.path.normpath(beside / own[name]))
        if "platemap" in own:
            own["platemap"] = [Path(os.path.normpath(beside / one)) for one in own["platemap"]]
        return cls(**own)


def _whole(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def read_recipes(path: Path) -> list[Recipe]:
    """How a manifest was made, a folder each; none if it is not there or does not say it.

    Raises:
        DataError: what it says cannot be read.
    """
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):  # who reads it says so
        return []
    try:
        return [Recipe.from_json(one, path) for one in read_json(metadata.get(MADE, b"[]"))]
    except (ValueError, TypeError) as error:
        raise DataError(f"manifest '{path}' has damaged notes of how it was made ({error}): index it anew") from error


def look_again(path: Path, out: Path) -> None:
    """Index the folders of a manifest as they are now, and write what they hold to another place.

    Fields that cannot be read yet are left out; plates that the plate map lacks have no labels. Plates of the manifest
    that are not in the folders any more stay.

    Args:
        path: the manifest, which stays as it is.
        out: another place.

    Raises:
        ConfigError: a setting does not fit the images.
        DataError: nothing can be read now.
    """
    base, problem = path, None
    for recipe in read_recipes(path):
        try:
            index = recipe.index()
            mapped = replace(recipe, allow_left_over=True).join(index)
        except DataError as error:
            problem = error  # the other folders may hold something
            continue
        keep = ~index.bad
        if not keep.any():
            continue
        rows = mapped.fields[keep].reset_index(drop=True)
        write_manifest(
            out,
            index.without_bad(),
            rows,
            depths=recipe.depths or "error",
            sizes=recipe.sizes or "error",
            replace=True,
            splits="none",
            base=base,
        )
        base = out
    if base is path:
        raise problem or DataError(f"no field of the folders of '{path}' can be read now")
