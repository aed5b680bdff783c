"""Gather linear probes into the ablation table: method x training batches x inference, mean and spread over seeds.

    python misc/ablation_table.py [runs/name ...] [--metric test/accuracy] [--out tables/ablation]

Reads the runs of train_classifier.py (all below runs/ if none is named), prints the table as Markdown, and writes it
as Markdown and CSV. Probes that cannot be compared are an error. The probes of one cell of the table must differ in the
seeds of their encoders, and in nothing else. All probes of the table must have been trained and encoded with the same
settings, by encoders that saw the same data. A probe is left out, with its reason, if it was stopped before its last
epoch, if it did not measure the metric, or if its encoder is a plain state dict, which does not say how it was trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from biomass.atomic import whole_files
from biomass.errors import ConfigError, DataError, one_line
from biomass.formulas import to_csv
from biomass.run_files import read_config, read_log

METHODS = {"random_single": "SimCLR", "random": "MinCLR"}
FIELDS = "supervised field"
PLATE = ("experiment", "plate")
SAMPLERS = {"random": None, "plate": PLATE, "exp": ("experiment",)}
"""What the published words draw a batch from: the columns of a group, or None for mixed batches."""
TITLES = {"running": "vanilla", "batch": "mixed batches"}
"""What a column of the table calls a word for statistics; others are called by their name, or by their groups."""
ORDER = {"vanilla": 0, "mixed batches": 1, "plate": 2, "experiment": 3, "controls": 4}
CELL = ["method", "views", "trained with", "inference with"]
"""What makes a cell of the table. Its probes differ only in the seeds of their encoders."""
STATISTICS = {"statistics", "method", "statistics_rows", "dataloaders.sampler", "dataloaders.train_groupby"}
"""Keys that say what statistics are taken from; the columns of the table show it."""
FREE = STATISTICS | {"seed", "run_name", "resume", "device", "save_model", "trainer", "dataloaders.num_workers"}
"""Keys in which the encoders of a cell may differ."""
FREE_PROBE = FREE | {"model_path", "sup_model_path", "save_key", "encoder", "model_train_mode", "calibration"}
"""Keys in which the probes of a table may differ."""
_SOURCE = "dataloaders.source"


def main() -> None:
    """Parse the arguments, gather, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of probes; all below runs/ if left out")
    parser.add_argument("--metric", default="test/accuracy", help="<split>/<metric> of the last epoch")
    parser.add_argument("--out", type=Path, default=Path("tables/ablation"), help="file name without its ending")
    arguments = parser.parse_args()
    configs = {folder: _config(folder) for folder in arguments.runs or sorted(Path("runs").glob("*/"))}
    for folder in arguments.runs:
        if not configs[folder]:
            what = "holds no probe" if folder.is_dir() else "is not a folder"
            raise SystemExit(f"error: '{folder}' {what}; name folders of train_classifier.py, such as runs/<run name>")
    probes = gather({folder: config for folder, config in configs.items() if config}, arguments.metric)
    if probes.empty:
        raise SystemExit(f"error: no probe with metric '{arguments.metric}' is there; run train_classifier.py first")
    check(probes)
    table = summarize(probes)
    _write({".md": to_markdown(table) + "\n", ".csv": to_csv(table)}, arguments.out)
    print(to_markdown(table))


def _config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a probe; None if the folder does not hold a probe."""
    try:
        config = read_config(folder)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    return config if config is not None and "model_train_mode" in config else None


def gather(configs: dict[Path, dict[str, Any]], metric: str) -> pd.DataFrame:
    """One row per probe: the columns of CELL, seed (of the encoder), run, value (0..1), and what check compares."""
    rows = []
    for folder, config in configs.items():
        measured = [line for line in read_log(folder) if metric in line]
        # metrics of training count epochs from 0; those of an evaluation after an epoch count from 1
        epochs = measured[-1].get("epoch", 0) + metric.startswith("train/") if measured else 0
        if not config.get("encoder"):
            why = "whose encoder is a plain state dict and does not say how it was trained"
        elif not measured:
            why = f"which did not measure '{metric}'"
        elif "epoch" in measured[-1] and epochs < config.get("num_epochs", 0):
            why = f"which was stopped: '{metric}' was last measured in epoch {epochs} of {config['num_epochs']}"
        else:
            rows.append(_describe(config) | {"run": folder.name, "value": measured[-1][metric]})
            continue
        print(f"left out: {folder}, {why}", file=sys.stderr)
    return pd.DataFrame(rows)


def _write(texts: dict[str, str], out: Path) -> None:
    """Write a file for each ending."""
    try:
        if not out.name:
            raise ConfigError(f"cannot write '{out}' (it is a folder)")
        whole_files({out.with_name(f"{out.stem}{ending}"): text.encode() for ending, text in texts.items()})
    except ConfigError as error:
        raise SystemExit(f"error: {one_line(error)}; choose another --out") from None


def _describe(config: dict[str, Any]) -> dict[str, Any]:
    encoder = config["encoder"]
    data = encoder["dataloaders"]
    if "num_views" in encoder:
        method, columns = METHODS[data["mode"]], SAMPLERS[data["sampler"]]
    elif "sampler" in data:
        method, columns = "supervised cell", SAMPLERS[data["sampler"]]
    else:
        method, columns = FIELDS, data.get("train_groupby")
    if (encoder.get("trainer") or {}).get("max_steps") == 0:
        method = f"untrained, as {method}"
    plate = "controls" if encoder.get("statistics_rows") == "controls" else "plate"
    groups = SAMPLERS[config["dataloaders"]["sampler"]]
    at_hand = "plate" if groups else "batch"
    return {
        "method": method,
        "views": encoder.get("num_views", 1),
        "trained with": _title(encoder, "train", plate if columns else "running", columns),
        "inference with": _title(config, "eval", at_hand if config["model_train_mode"] else "running", groups),
        "seed": encoder["seed"],
        "probe": _settings(config, FREE_PROBE),
        "encoder": _settings(encoder, FREE),
    }


def _title(config: dict[str, Any], stage: str, word: str, columns: Sequence[str] | str | None) -> str:
    """What the statistics of a stage, ``train`` or ``eval``, are called in the table.

    Args:
        config: of the run; its ``statistics`` override the word and the columns.
        stage: of the run.
        word: what its published keys mean.
        columns: those that make a group, as its published keys mean; None for plates.
    """
    chosen = config.get("statistics") or {}
    word, columns = chosen.get(stage) or word, chosen.get("by") or columns or PLATE
    if word in TITLES:
        return TITLES[word]
    names = {columns} if isinstance(columns, str) else set(columns)
    groups = "plate" if names == set(PLATE) else ", ".join(sorted(names))
    return groups if word == "plate" else word if groups == "plate" else f"{word}, {groups}"


def _settings(config: dict[str, Any], free: set[str]) -> dict[str, Any]:
    """The keys of a configuration and of its dataloaders, without those in which runs may differ."""
    keys = {key: value for key, value in config.items() if key != "dataloaders"}
    keys |= {f"dataloaders.{key}": value for key, value in config["dataloaders"].items()}
    return {key: value for key, value in keys.items() if key not in free}


def check(probes: pd.DataFrame) -> None:
    """Refuse probes that cannot stand in one table.

    Raises:
        SystemExit: names the first two of them.
    """
    _agree(probes["run"], probes["probe"])
    data = probes["encoder"].map(lambda settings: {_SOURCE: settings.get(_SOURCE)})
    for _, some in probes.groupby(probes["method"].str.endswith(FIELDS)):  # fields and cells have readers of their own
        _agree(some["run"], data[some.index], "encoder.")
    for _, cell in probes.groupby(CELL, sort=False):
        _agree(cell["run"], cell["encoder"], "encoder.")
    twice = probes.duplicated([*CELL, "seed"])
    if twice.any():
        second = probes[twice].iloc[0]
        first = probes[(probes[[*CELL, "seed"]] == second[[*CELL, "seed"]]).all(axis=1)].iloc[0]
        place = f"{first['method']}, train {first['trained with']} / inference {first['inference with']}"
        raise SystemExit(
            f"error: runs {first['run']} and {second['run']} probe encoders of the same seed "
            f"{first['seed']} ({place}); name only one of them"
        )


def _agree(runs: "pd.Series[str]", settings: "pd.Series[Any]", where: str = "") -> None:
    """Refuse runs whose settings differ from those of the first run. A key that is absent counts as null."""
    first = settings.iloc[0]
    for run, other in zip(runs, settings, strict=True):
        for key in [*first, *other]:
            if first.get(key) != other.get(key):
                raise SystemExit(
                    f"error: runs {runs.iloc[0]} and {run} differ in {where}{key} "
                    f"({_differing(first.get(key), other.get(key))}); name only runs that agree in it"
                )


def _differing(one: Any, other: Any) -> str:
    """Two values; of two mappings, the first entry that differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(k for k in [*one, *other] if one.get(k) != other.get(k) or (k in one) != (k in other))
        return f"{key}: {one.get(key)} and {other.get(key)}"
    return f"{one} and {other}"


def summarize(probes: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds, in per cent, and the number of seeds."""
    table = probes.groupby(CELL, sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    table[["mean", "std"]] = (100 * table[["mean", "std"]]).round(2)
    return table.sort_values(CELL, key=lambda c: c.map(_place) if c.name in CELL[2:] else c, ignore_index=True)


def _place(group: str) -> tuple[int, str]:
    return ORDER.get(group, len(ORDER)), group


def to_markdown(table: pd.DataFrame) -> str:
    """A table of method and views against training x inference, ``mean ± spread (seeds)``."""
    cell = [
        f"{m:.1f} ± {s:.1f} ({n})" if n > 1 else f"{m:.1f}"
        for m, s, n in zip(table["mean"], table["std"], table["count"], strict=True)
    ]
    name = table["method"] + ", " + table["views"].astype(str) + " views"
    columns = "train " + table["trained with"] + " / inference " + table["inference with"]
    wide = pd.DataFrame({"name": name, "column": columns, "cell": cell})
    wide = wide.pivot(index="name", columns="column", values="cell").reindex(columns=columns.unique()).fillna("")
    lines = ["| accuracy (%) | " + " | ".join(wide.columns) + " |", "|---" * (len(wide.columns) + 1) + "|"]
    lines += [f"| {index} | " + " | ".join(row) + " |" for index, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
