"""Gather linear probes into the ablation table: method x training batches x inference, mean and spread over seeds.

    python misc/ablation_table.py [runs/name ...] [--metric test/accuracy] [--out tables/ablation]

Reads the runs of train_classifier.py (all below runs/ if none are named), prints the table as Markdown, and writes it
as Markdown and CSV.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

METHODS = {"random_single": "SimCLR", "random": "MinCLR"}
TRAINED = {"random": "vanilla", "plate": "plate", "exp": "experiment"}


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
    table = summarize(probes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(to_markdown(table) + "\n")
    table.to_csv(arguments.out.with_suffix(".csv"), index=False)
    print(to_markdown(table))


def gather(folders: list[Path], metric: str) -> pd.DataFrame:
    """One row a probe: method, views, trained with, inference with, seed, value (0..1)."""
    rows = []
    for folder in folders:
        if not (folder / "config.yaml").exists() or not (folder / "metrics.jsonl").exists():
            continue
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [line[metric] for line in values if metric in line]
        if isinstance(config, dict) and config.get("encoder") and measured:
            rows.append(_describe(config) | {"run": folder.name, "value": measured[-1]})
    return pd.DataFrame(rows)


def _describe(config: dict[Any, Any]) -> dict[str, Any]:
    encoder = config["encoder"]
    data = encoder["dataloaders"]
    contrastive = "num_views" in encoder
    return {
        "method": METHODS[data["mode"]] if contrastive else "supervised cell",
        "views": encoder["num_views"] if contrastive else 1,
        "trained with": TRAINED.get(data.get("sampler", "plate"), "plate"),
        "inference with": "plate" if config["model_train_mode"] else "vanilla",
        "seed": encoder["seed"],
    }


def summarize(probes: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (of the sample) over seeds, in per cent, with the number of seeds."""
    keys = ["method", "views", "trained with", "inference with"]
    table = probes.groupby(keys, sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    table[["mean", "std"]] = (100 * table[["mean", "std"]]).round(2)
    order = {"vanilla": 0, "plate": 1, "experiment": 2}
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name in keys[2:] else c, ignore_index=True)


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
