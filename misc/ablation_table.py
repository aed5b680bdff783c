"""Gather linear probes into the ablation table: method x training batches x inference, mean and spread over seeds.

    python misc/ablation_table.py [runs/name ...] [--metric test/accuracy] [--out tables/ablation]

Reads the runs of train_classifier.py (all below runs/ if none are named), prints the table as Markdown, and writes it
as Markdown and CSV. Probes that cannot be compared are refused: of one cell of the table, two with encoders of the
same seed; of the whole table, two with another pooler, normalize, use_projs or source of the data. Probes of plain
state dicts, which say nothing of their training, are left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

METHODS = {"random_single": "SimCLR", "random": "MinCLR"}
TRAINED = {"random": "vanilla", "plate": "plate", "exp": "experiment"}
INFERENCE = {"random": "mixed batches", "plate": "plate", "exp": "experiment"}
ORDER = {"vanilla": 0, "mixed batches": 1, "plate": 2, "experiment": 3}
CELL = ["method", "views", "trained with", "inference with"]
"""What a cell of the table is; its probes differ in the seeds of their encoders alone."""
SAME = ("pooler", "normalize", "use_projs", "dataloaders.source")
"""Keys in which all probes of a table agree."""


def main() -> None:
    """Parse the arguments, gather, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of probes; all below runs/ if left out")
    parser.add_argument("--metric", default="test/accuracy", help="<split>/<metric> of the last epoch")
    parser.add_argument("--out", type=Path, default=Path("tables/ablation"), help="file name without its ending")
    arguments = parser.parse_args()
    probes = gather(arguments.runs or sorted(Path("runs").glob("*/")), arguments.metric)
    if probes.empty:
        raise SystemExit(f"error: no probe with metric '{arguments.metric}' is there; run train_classifier.py first")
    check(probes)
    table = summarize(probes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(to_markdown(table) + "\n")
    table.to_csv(arguments.out.with_suffix(".csv"), index=False)
    print(to_markdown(table))


def gather(folders: list[Path], metric: str) -> pd.DataFrame:
    """One row a probe: the columns of CELL and SAME, seed (of the encoder), run, value (0..1)."""
    rows = []
    for folder in folders:
        if not (folder / "config.yaml").exists() or not (folder / "metrics.jsonl").exists():
            continue
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [line[metric] for line in values if metric in line]
        if not isinstance(config, dict) or "model_train_mode" not in config or not measured:
            continue
        if config.get("encoder"):
            rows.append(_describe(config) | {"run": folder.name, "value": measured[-1]})
        else:
            print(f"left out: {folder}, whose encoder is a plain state dict and does not say how it was trained",
                  file=sys.stderr)  # fmt: skip
    return pd.DataFrame(rows)


def _describe(config: dict[Any, Any]) -> dict[str, Any]:
    encoder = config["encoder"]
    data = encoder["dataloaders"]
    if "num_views" in encoder:
        method, trained = METHODS[data["mode"]], TRAINED[data["sampler"]]
    elif "sampler" in data:
        method, trained = "supervised cell", TRAINED[data["sampler"]]
    else:
        method, trained = "supervised field", _grouped(data.get("train_groupby"))
    return {
        "method": method,
        "views": encoder.get("num_views", 1),
        "trained with": trained,
        "inference with": INFERENCE[config["dataloaders"]["sampler"]] if config["model_train_mode"] else "vanilla",
        "seed": encoder["seed"],
        **{key: config[key] for key in ("pooler", "normalize", "use_projs")},
        "dataloaders.source": config["dataloaders"]["source"],
    }


def _grouped(columns: list[str] | str | None) -> str:
    """What batches were drawn from, by the columns of train_groupby."""
    names = [columns] if isinstance(columns, str) else columns or ["vanilla"]
    return "plate" if set(names) == {"experiment", "plate"} else ", ".join(names)


def check(probes: pd.DataFrame) -> None:
    """Refuse probes that cannot stand in one table.

    Raises:
        SystemExit: names the first two of them.
    """
    for key in SAME:
        values = [json.dumps(value, sort_keys=True) for value in probes[key]]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise SystemExit(f"error: runs {probes['run'][0]} and {probes['run'][other]} differ in {key} "
                             f"({_differing(probes[key][0], probes[key][other])}); name only runs that agree in it")
    twice = probes.duplicated([*CELL, "seed"])
    if twice.any():
        second = probes[twice].iloc[0]
        first = probes[(probes[[*CELL, "seed"]] == second[[*CELL, "seed"]]).all(axis=1)].iloc[0]
        cell = f"{first['method']}, train {first['trained with']} / inference {first['inference with']}"
        raise SystemExit(f"error: runs {first['run']} and {second['run']} probe encoders of the same seed "
                         f"{first['seed']} ({cell}); name only one of them")


def _differing(one: Any, other: Any) -> str:
    """What two values are; of two mappings, the first entry that differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(k for k in [*one, *other] if one.get(k) != other.get(k) or (k in one) != (k in other))
        return f"{key}: {one.get(key)} and {other.get(key)}"
    return f"{one} and {other}"


def summarize(probes: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (of the sample) over seeds, in per cent, with the number of seeds."""
    table = probes.groupby(CELL, sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    table[["mean", "std"]] = (100 * table[["mean", "std"]]).round(2)
    return table.sort_values(CELL, key=lambda c: c.map(_place) if c.name in CELL[2:] else c, ignore_index=True)


def _place(group: str) -> tuple[int, str]:
    return ORDER.get(group, len(ORDER)), group


def to_markdown(table: pd.DataFrame) -> str:
    """A table of method and views against training x inference, ``mean ± spread (seeds)``."""
    cell = [f"{m:.1f} ± {s:.1f} ({n})" if n > 1 else f"{m:.1f}" for m, s, n in
            zip(table["mean"], table["std"], table["count"], strict=True)]  # fmt: skip
    name = table["method"] + ", " + table["views"].astype(str) + " views"
    columns = "train " + table["trained with"] + " / inference " + table["inference with"]
    wide = pd.DataFrame({"name": name, "column": columns, "cell": cell})
    wide = wide.pivot(index="name", columns="column", values="cell").reindex(columns=columns.unique()).fillna("")
    lines = ["| accuracy (%) | " + " | ".join(wide.columns) + " |", "|---" * (len(wide.columns) + 1) + "|"]
    lines += [f"| {index} | " + " | ".join(row) + " |" for index, row in zip(wide.index, wide.to_numpy(), strict=True)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
