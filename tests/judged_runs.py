"""Folders of runs as ``biomass evaluate`` and training leave them, small and made up, for tests of the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCRIPT = "<script>window.__pwned = 1</script>"
BREAKOUT = "</script><img src=x onerror='window.__pwned = 2'>"
HOSTILE = (SCRIPT, BREAKOUT, "x" * 200, "紫杉醇板", 'it\'s "quoted" & {{ 7*7 }}', "${1+1}</title></style>")
"""Names that must be shown and never run."""

STATISTICS = ("running", "plate")
CORRECTIONS = ("none", "standardize", "standardize_tvn", "combat", "harmony")
NULLS = ("untrained", "cell count only", "labels shuffled")

_METRICS: dict[str, tuple[str, str, str, str, float, float, float]] = {
    # title, family, better, over, null, value before, value after
    "plate_predicted": ("plate predicted from other wells", "batch", "lower", "plates", 0.04, 0.91, 0.12),
    "experiment_predicted": ("experiment predicted from other wells", "batch", "lower", "plates", 0.25, 0.97, 0.33),
    "silhouette": ("batch silhouette", "batch", "lower", "plates", 0.0, 0.21, 0.01),
    "replicates_other_plate": ("replicate mAP, other plate", "biology", "higher", "compounds", 0.03, 0.21, 0.48),
    "nsc": ("mechanism by nearest neighbour (NSC)", "biology", "higher", "compounds", 0.14, 0.55, 0.82),
}


def write_judged(folder: Path, plates: int = 6, wells: int = 96, hostile: bool = True) -> Path:
    """A run of ``biomass evaluate``; with names that are not nice."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    table = _wells(draw, plates, wells, hostile)
    table.to_parquet(folder / "wells.parquet", index=False)
    (folder / "evaluation.json").write_text(
        json.dumps(_about(hostile, len(table)), ensure_ascii=False), encoding="utf-8"
    )
    metrics = _metrics(draw)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    _ladder(draw).to_csv(folder / "ladder.csv", index=False)
    return folder


def _about(hostile: bool, rows: int) -> dict[str, Any]:
    evil, why = list(HOSTILE) if hostile else [], "every experiment is one plate"
    return {
        "command": " ".join(["biomass evaluate profiles.parquet plate=profiles_plate.parquet", *evil]),
        "versions": {"biomass": "0.1.0", "python": "3.11.7", "numpy": "2.4.6", "pandas": "2.3.3"},
        "fingerprint": "sha256:6f1ed002ab5595859014ebf0951522d9",
        "table": "profiles.parquet",
        "roles": {"plate": "Metadata_Plate", "well": "Metadata_Well", "treatment": "Metadata_compound + dose"},
        "notes": ["taken as features: 516 columns that begin with Cells_, Nuclei_ or Cytoplasm_", *evil],
        "skipped": ["source: all wells are of one source, so that no other can be asked for", *evil],
        "rows": rows,
        "features": 516,
        "verdict": {
            "sentences": [
                "Plates can be told apart: a well's plate is predicted right for 91 % (chance 4 %); after BEN, 12 %.",
                "Replicate retrieval across plates rose from 0.21 to 0.48.",
                "We are sure of both: the intervals over plates do not overlap.",
                *evil,
            ],
            "before": ["running", "none"],
            "after": ["plate", "none"],
            "recommendation": [["plate", "harmony"], ["plate", "combat"], "Use it."],
            "effects": {
                "running · none": {
                    "plate": {"name": "plate", "word": "strong", "share": 0.31, "p": 0.001, "reason": ""},
                    "experiment": {"name": "experiment", "word": "cannot be told", "share": None, "reason": why},
                },
                "plate · none": {"plate": {"name": "plate", "word": "none", "share": 0.002, "p": 0.4, "reason": ""}},
            },
        },
    }


def _wells(draw: np.random.Generator, plates: int, wells: int, hostile: bool) -> pd.DataFrame:
    width = {96: 12, 384: 24}[wells]
    names = [f"Week{1 + i // 3}/P{i:03d}" for i in range(plates)]
    if hostile:
        names[: len(HOSTILE)] = HOSTILE[:plates]
    rows, columns = np.divmod(np.arange(wells), width)
    place = [f"{chr(65 + r)}{c + 1:02d}" for r, c in zip(rows, columns, strict=True)]
    compounds = [f"compound {i}" for i in range(30)]
    if hostile:
        compounds[: len(HOSTILE)] = HOSTILE
    parts = []
    for number, name in enumerate(names):
        treatment = draw.permutation(np.arange(wells) % 30)
        control = np.where(columns == 0, "negative", "")
        part = pd.DataFrame(
            {"plate": name, "experiment": f"Week{1 + number // 3}", "well": place, "row": rows, "column": columns}
        )
        part["treatment"] = np.where(control == "negative", "DMSO", np.array(compounds)[treatment])
        part["control"], part["cells"] = control, draw.poisson(120, wells).astype(float)
        angle, far = 2 * np.pi * treatment / 30, np.where(control == "negative", 0, 4)
        for statistics, correction, shift in (("running", "none", 8), ("plate", "none", 1), ("plate", "combat", 0)):
            pair = f"{statistics}|{correction}"
            spot = shift * np.array([np.cos(number), np.sin(2.3 * number)])
            part[f"map_x|{pair}"] = spot[0] + far * np.cos(angle) + draw.normal(size=wells)
            part[f"map_y|{pair}"] = spot[1] + far * np.sin(angle) + draw.normal(size=wells)
            right = (draw.random(wells) < 0.8 - shift / 12).astype(float)
            part[f"right|{pair}"] = np.where(control == "negative", np.nan, right)
            part[f"distance|{pair}"] = draw.gamma(3, 1 + (rows == 0), wells)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _metrics(draw: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statistics in (*STATISTICS, *NULLS):
        for number, correction in enumerate(CORRECTIONS if statistics != "cell count only" else ("none",)):
            pair = found.setdefault(statistics, {}).setdefault(correction, {})
            for key, (title, family, better, over, null, before, after) in _METRICS.items():
                share = {"running": 0.0, "plate": 0.8}.get(statistics, 0.1) + 0.06 * number
                value = null * 1.2 if statistics in NULLS[1:] else before + (after - before) * share
                wide = 0.03 + 0.02 * float(draw.random())
                one = {"title": title, "family": family, "better": better, "over": over}
                one |= {"null_how": "labels shuffled 100 times within plates", "limits": ""}
                one |= {"cites": "Author et al. 2024, Journal 1:1", "refit_only": correction == "harmony"}
                one |= {"value": value, "low": value - wide, "high": value + wide, "null": null, "p": 0.01, "n": 540}
                one |= {"note": "judged on 20 of 55 plates" if key == "silhouette" else ""}
                if key == "nsc" and statistics == "untrained":
                    one |= {
                        "value": None,
                        "low": None,
                        "high": None,
                        "p": None,
                        "n": 0,
                        "note": "no mechanism is known",
                    }
                pair[key] = one
    return found


def _ladder(draw: np.random.Generator) -> pd.DataFrame:
    rows = []
    rungs = ("any match", "not the same well position", "not the same plate", "not the same experiment")
    for task in ("replicates", "mechanism"):
        for statistics in (*STATISTICS, "untrained"):
            for correction in CORRECTIONS:
                for number, rung in enumerate(rungs):
                    falls = 0.16 if statistics == "running" else 0.06
                    value = max(0.05, 0.7 - falls * number - 0.3 * (statistics == "untrained")) + 0.04 * draw.random()
                    row = [statistics, correction, task, rung, value, value - 0.04, value + 0.04, 0.04, 0.01, 500, ""]
                    rows.append(row)
    names = ["statistics", "correction", "task", "restriction", "value", "low", "high", "null", "p", "n", "note"]
    table = pd.DataFrame(rows, columns=names)
    gone = (table["task"] == "mechanism") & (table["restriction"] == rungs[3])
    table.loc[gone, ["value", "low", "high"]] = np.nan
    table.loc[gone, "note"] = "all wells of a mechanism are of one experiment"
    return table


def write_trained(folder: Path) -> Path:
    """A training run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "num_epochs: 3\nmodel:\n  d_out: 25\nmethod:\n  train: plate\n  eval: plate\nrun_name: ben\n"
    )
    lines: list[dict[str, Any]] = [{"step": 10, "epoch": 0, "train/loss": 2.9, "train/accuracy": 0.1}]
    for epoch, value in ((1, 0.4), (2, 0.6), (3, 0.55)):
        lines.append({"step": 10 * epoch, "epoch": epoch, "val/accuracy": value, "val/loss": 1.2, "val/mixing": 0.4})
        lines[-1] |= {"val/mixing_expected": 0.2}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 31, "epo')
    plates = pd.DataFrame({"plate": [*HOSTILE], "images": 76, "accuracy": np.linspace(0.3, 0.8, len(HOSTILE))})
    plates.assign(split="val", epoch=3).to_csv(folder / "plates.csv", index=False)
    (folder / "environment.json").write_text('{"python": "3.11.7", "torch": "2.14.1"}')
    return folder


def write_stress(folder: Path) -> Path:
    """A stress test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("words: [running, plate]\nmodel_path: ben\n")
    rows = [
        (word, "wells", value, 5, right, right - 0.05, right + 0.05)
        for word, best in (("running", 0.4), ("plate", 0.7))
        for value, right in (("1", best / 4), ("8", best / 2), ("all", best))
    ]
    names = ["statistics", "axis", "value", "repeats", "accuracy", "low", "high"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "stress.csv", index=False)
    return folder
