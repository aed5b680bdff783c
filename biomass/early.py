"""What a configuration alone shows to be wrong, found before a script imports what takes seconds.

Whatever is looked at here is looked at again where it is used, which says the same of it: this is only sooner. So
nothing here takes long, and nothing needs torch.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomass.datasets.manifest import manifest_path
from biomass.pixels.packed import packed_beside
from biomass.run_files import check_new, check_there, find_named, runs_with_checkpoints
from biomass.runs import run_name
from biomass.settings import Config
from biomass.signatures import check_call
from biomass.targets import TARGET, Node, find_target

_NETWORKS = ("model_path", "sup_model_path")
"""Keys that name checkpoints."""
_READ = ("path", "metadata_file", "summary_file", "nuclei_dir")
"""Arguments of sources that name what is read."""
_DOWNLOADED = {"load_rxrx1": "rxrx1_v1.0", "load_rxrx1_cells": "rxrx1_cells"}
"""Sources that may be downloaded, and the folder that is looked for."""


def check_early(cfg: Config) -> None:
    """Look whether the networks and images that a configuration names are there, and its own run is not.

    Raises:
        ConfigError, CheckpointError, DataError: as the run would, later.
    """
    resume = cfg.get("resume")
    if cfg.get("run_name") is not None:
        folder = Path("checkpoints") / run_name(cfg.run_name, "")
        if resume is None and "resume" in cfg.to_dict():
            check_new(folder)
    if resume not in (None, "auto"):
        check_there(Path(resume))
    for given in filter(None, map(cfg.get, _NETWORKS)):
        for one in given if isinstance(given, list) else [given]:
            if one != "latest" or not runs_with_checkpoints():
                find_named(one)
    source = cfg.dataloaders.get("source") if cfg.get("dataloaders") is not None else None
    if source is not None and not cfg.get("watch"):  # for images that are still to come
        check_source(source)


def check_source(source: Node) -> None:
    """Look whether a source takes these arguments, and what it reads is there.

    Raises:
        ConfigError, DataError: as the source would, later.
    """
    if any(isinstance(value, Mapping) and TARGET in value for value in source.values()):
        return  # these are made first
    target = find_target(source.get(TARGET), source.own, source.place)
    given = check_call(target, {key: value for key, value in source.items() if key != TARGET}, f"{source.place}.")
    if target.__module__.startswith("biomass.") and _is_absent(target.__name__, given):
        target(**given)  # which looks first, and knows what to say


def _is_absent(name: str, given: Mapping[str, Any]) -> bool:
    """Whether something that a source of this package reads is certainly not there, nor to be downloaded."""
    root = Path(given.get("root_dir") or ".").expanduser()
    if given.get("root_dir") and root.exists() and not root.is_dir():
        return True
    if name in _DOWNLOADED:
        folder = Path(given.get("img_dir") or root / _DOWNLOADED[name])
        if not folder.exists() and packed_beside(folder) is None:
            return not given.get("download", True)
    if name in ("load_bbbc021", "load_bbbc021_cells") and given.get("root_dir"):
        return not importlib.import_module("biomass.datasets.bbbc021").is_bbbc021(root)
    if name == "load_manifest":
        given = {**given, "path": manifest_path(given.get("path"), root)}
    places = (Path(given[argument]).expanduser() for argument in _READ if given.get(argument))
    return not all(place.exists() or (root / place).exists() for place in places)
