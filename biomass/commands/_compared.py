"""What ``biomass compare`` reads of runs, and what it calls them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from biomass.commands import ADVICE
from biomass.errors import BiomassError, ConfigError, DataError, explain
from biomass.evaluation import comparison
from biomass.keys import may_change
from biomass.norms import WORDS, Method
from biomass.norms.statistics import CONTROLS_A_BATCH
from biomass.run_files import read_config
from biomass.screen import PLATE
from biomass.training.checkpoint import completed, leaves

log = logging.getLogger(__name__)

REGIMES = {"running": "vanilla", "plate": "ben", "controls": "ben_controls"}
"""What training with a word for statistics is called, as the presets are; others go by their word."""
SHAPING = {"num_epochs", "trainer.max_steps", "trainer.clip", "trainer.precision"}
"""Keys that a resumed run may change, and that make another network all the same."""
FLOORS = {comparison.UNTRAINED: "trainer.max_steps=0", comparison.SHUFFLED: "shuffle_labels=true"}
"""How to train what a comparison needs as its floors."""
PROBE = "probe of "
"""How the regime of a probe begins, whose encoder was trained so."""
SHOWN = {"shuffle_labels", "compute_train_acc", "dataloaders.eval_splits"}
"""Keys that make no other regime: the table shows them otherwise, or they do not bear on the network."""


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: of the run.
        regime: how it was trained, by the words of its method.
        floor: what it is a floor of, see :mod:`biomass.evaluation.comparison`; empty for any other run.
        settings: everything else that makes a network what it is, under dotted names, but for seeds and screens.
        numbers: all it measured, with its seed and its screen.
    """

    folder: Path
    regime: str
    floor: str
    settings: Mapping[str, Any]
    numbers: pd.DataFrame


def gather(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """All finished runs among some folders, and a line for each that is left out.

    Raises:
        ConfigError: a folder is not there, or no run is left.
    """
    missing = next((folder for folder in folders if not folder.exists()), None)
    if missing is not None:
        raise ConfigError(f"there is no '{missing}'; name the folders of runs, such as runs/<run name>")
    runs, notes = [], []
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder))
        except BiomassError as error:
            notes.append(f"left out: {explain(error, ADVICE)}")
    if not runs:
        why = f" ({notes[0]})" if notes else ""
        raise ConfigError(f"none of the {len(folders)} folders holds a finished run{why}; name folders of runs")
    return runs, notes


def read_run(folder: Path) -> Run:
    """What the table must know of a run.

    Raises:
        DataError: the folder holds no run, or one that was stopped, or a damaged one.
    """
    config = read_config(folder)
    if config is not None and "words" in config and config.get("model_path"):
        return _read_stress(folder, config)
    if config is None or "num_epochs" not in config:
        raise DataError(f"'{folder}' holds no run of a training script; name folders below runs/")
    trained = config.get("encoder", config)
    if not config.get("method") or not trained.get("method"):
        if trained is config:
            raise DataError(f"'{folder}' is older and does not say its method; run its command again with resume=auto")
        raise DataError(f"the encoder of '{folder}' is a plain state dict, or older, and does not say its method")
    method, is_probe = config["method"], "encoder" in config
    last = comparison.last_evaluation(folder, config["num_epochs"], config["trainer"]["max_steps"])
    floor = comparison.SHUFFLED if any(one.get("shuffle_labels") for one in (config, trained)) else ""
    regime = (PROBE if is_probe else "") + _regime(trained["method"])
    if trained["trainer"]["max_steps"] == 0:
        floor, regime = comparison.UNTRAINED, (PROBE if is_probe else "") + comparison.UNTRAINED
    settings, seeds, screens = _settings(config)
    statistics = f"{method['eval']}{_kind(method, 'eval')}{_columns(method, 'eval_by')}"
    numbers = comparison.read_numbers(folder, last, statistics)
    numbers = numbers.assign(seed="/".join(seeds), screen="/".join(screens), run=str(folder))
    return Run(folder, regime, floor, settings, numbers)


def _read_stress(folder: Path, config: Mapping[str, Any]) -> Run:
    """What a stress test adds to the run whose network it tried.

    Raises:
        DataError: that run is not beside it, or plates were not whole.
    """
    network = Path(str(config["model_path"]))
    trained = folder.parent / (network.parent.name if network.suffix else network.name)
    if read_config(trained) is None:
        raise DataError(f"'{folder}' tried '{network}', of which there is no run '{trained}' beside it")
    if any(value is not None for value in (config.get("base") or {}).values()):
        raise DataError(f"'{folder}' tried no plates as they are: it has another base")
    run, (_, _, screens) = read_run(trained), _settings(config)
    split = f"{', '.join(config['dataloaders']['eval_splits'])}, treated wells"
    if "/".join(screens) != run.numbers["screen"].iloc[0]:
        split += f" of screen {'/'.join(screens)}"
    numbers = comparison.read_stress(folder, split)
    by = (config.get("statistics") or {}).get("by")
    grouped = [word not in WORDS or WORDS[word].by_group for word in numbers["statistics"]]
    numbers.loc[grouped, "statistics"] += _columns({"by": by} if by else {}, "by")
    repeat = run.numbers[comparison.REPEAT].iloc[0]
    return run._replace(folder=folder, numbers=numbers.assign(**repeat, run=str(folder)))


def _kind(method: Mapping[str, Any], stage: str) -> str:
    """Which controls are meant, where statistics come from others than the negative ones."""
    kind = method.get("controls", "negative")
    return "" if kind == "negative" or method[stage] in ("running", "batch", "plate", "calibrated") else f"/{kind}"


def _columns(method: Mapping[str, Any], key: str) -> str:
    """The columns that make a group, where these are not plates."""
    columns = method.get(key, PLATE)
    return "" if tuple(columns) == PLATE else f" by {', '.join(columns)}"


def _regime(method: Mapping[str, Any]) -> str:
    """What the training half of a method is called."""
    word = method["train"]
    usual = {"max_groups": 1, "num_controls": CONTROLS_A_BATCH if word == "controls" else 0}
    more = [f"{name}={method.get(name)}" for name, value in usual.items() if method.get(name) != value]
    return ", ".join([REGIMES.get(word, word) + _kind(method, "train") + _columns(method, "train_by"), *more])


def _settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """What makes a network what it is; its seeds; its screens. Those of a probe's encoder come first."""
    values = leaves(completed({key: value for key, value in config.items() if key != "method"}))
    settings, seeds = {}, []
    places: dict[str, dict[str, Any]] = {"encoder.": {}, "": {}}
    for key, value in values.items():
        part = "encoder." if key.startswith("encoder.") else ""
        own = key.removeprefix(part)
        section, _, name = own.rpartition(".")
        if own == "seed":
            seeds.append((part == "", str(value)))
        elif section.startswith("dataloaders.") and name in ("seed", "root_dir", "path", "img_dir"):
            places[part][name] = value
        elif not own.startswith("method.") and own not in SHOWN and (own in SHAPING or not may_change(own)):
            settings[key] = value
    method = config.get("encoder", config).get("method") or {}
    settings |= {f"method.{key}": value for key, value in method.items() if key not in Method._fields}
    screens = [_screen(place) for place in places.values() if place]
    return settings, [seed for _, seed in sorted(seeds)], list(dict.fromkeys(screens))


def _screen(place: Mapping[str, Any]) -> str:
    """What a screen is called: the seed of a simulated one, the place of any other."""
    if "seed" in place:
        return str(place["seed"])
    return str(Path(*(str(place[name]) for name in ("root_dir", "path", "img_dir") if place.get(name))))


def tabulate(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """One table of the numbers of all runs, with what they are called, and what there is to say about it."""
    names, notes = name_regimes(runs)
    tables = [run.numbers.assign(regime=name, floor=run.floor) for run, name in zip(runs, names, strict=True)]
    numbers, repeats = comparison.without_repeats(pd.concat(tables, ignore_index=True))
    numbers = numbers.sort_values([*comparison.ROW], key=_place, kind="stable", ignore_index=True)
    notes += repeats
    for floor, remedy in FLOORS.items():
        if floor not in set(numbers["floor"]):
            notes.append(f"the floor '{floor}' is not among these runs; train one with {remedy}")
    uneven = comparison.uneven(numbers)
    if uneven:
        others = f" (nor are {len(uneven) - 1} others)" if len(uneven) > 1 else ""
        notes.append(f"means are not over the same seeds and screens: {uneven[0]}{others}")
    return numbers[[*comparison.ROW, "metric", "value", *comparison.REPEAT, "run", "file"]], notes


def name_regimes(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """What the regime of each run is called, and a line for each name that was made longer.

    A setting that most runs (of networks, of probes, of untrained ones) have otherwise is part of a name.
    """
    names = [""] * len(runs)
    notes: dict[str, str] = {}
    kinds = [(run.regime.startswith(PROBE), run.floor == comparison.UNTRAINED) for run in runs]
    for kind in dict.fromkeys(kinds):
        members = [number for number, one in enumerate(kinds) if one == kind]
        found = comparison.differences([runs[number].settings for number in members])
        for number, differs in zip(members, found, strict=True):
            run, texts = runs[number], {key: _text(value) for key, (value, _) in differs.items()}
            floor = [run.floor] if run.floor == comparison.SHUFFLED else []
            names[number] = ", ".join([run.regime, *(f"{key}={text}" for key, text in texts.items()), *floor])
            for key, (value, usual) in list(differs.items())[:1]:
                of_its_own = f"'{run.folder}' has {key}={_text(value)}, most runs {_text(usual)}"
                notes.setdefault(names[number], f"{of_its_own}; its row is called '{names[number]}'")
    return names, list(notes.values())


def _place(column: "pd.Series[str]") -> "pd.Series[int]":
    """Words for statistics in their order, floors behind what is none, regimes and splits as they come."""
    known = {"statistics": WORDS, "floor": ("", *FLOORS)}.get(str(column.name), ())
    places = {name: place for place, name in enumerate(dict.fromkeys([*known, *column]))}
    return column.map(places)


def _text(value: Any) -> str:
    """A value as it is written in a YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def sources(numbers: pd.DataFrame) -> str:
    """Which runs stand behind each row of the table, as Markdown."""
    rows = numbers[numbers["metric"] == comparison.ACCURACY].groupby(["regime", "statistics"], sort=False)["run"]
    lines = [f"| {regime} | {word} | {', '.join(dict.fromkeys(runs))} |" for (regime, word), runs in rows]
    return "\n".join(["| training | inference | runs |", "|---|---|---|", *lines, ""])
