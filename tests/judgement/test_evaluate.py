"""The whole path of a judgement: what is left in the folder, the null rows, what cannot be judged, and why."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_profiles import judge_few, simulated

from biomass.errors import ConfigError
from biomass.judgement import evaluate as module
from biomass.judgement.evaluate import METRICS, Settings, evaluate
from biomass.judgement.read import read_profiles, understand
from biomass.judgement.results import FILES, TABLE
from biomass.judgement.table import ROLES, Profiles

SMALL = {"experiments": 2, "plates": 2, "wells": 48, "features": 6, "factors": 3, "compounds": 8, "seed": 1}
NULLS = {"untrained", "cell count only", "labels shuffled"}


@pytest.fixture(scope="module")
def screens() -> dict[str, Profiles]:
    """The same wells, with a strong effect of plates and without."""
    return {word: simulated(plate=size, **SMALL) for word, size in (("running", 1.5), ("plate", 0.0))}


@pytest.fixture(scope="module")
def judged(screens, tmp_path_factory):
    """The folder of a judgement of two tables under two corrections."""
    folder = tmp_path_factory.mktemp("runs") / "judged"
    evaluate(screens, folder, Settings(("standardize",), maps="pca", seed=3), {"command": "biomass evaluate"})
    return folder


@pytest.fixture(scope="module")
def table(judged):
    return pd.read_csv(judged / "table.csv", keep_default_na=False, na_values=[""])


def number(table: pd.DataFrame, statistics: str, correction: str, metric: str, column: str = "value") -> float:
    one = table[(table["statistics"] == statistics) & (table["correction"] == correction) & (table["metric"] == metric)]
    return float(one[column].iloc[0])


def test_all_files_are_there_with_their_columns(judged, screens):
    assert {file.name for file in judged.iterdir()} == set(FILES)
    columns = {
        name: list(pd.read_csv(judged / f"{name}.csv", nrows=1)) for name in ("table", "ladder", "position", "drift")
    }
    assert columns["table"] == list(TABLE)
    assert columns["ladder"] == [
        "statistics", "correction", "task", "restriction", "value", "low", "high", "null", "p", "n", "note"
    ]  # fmt: skip
    assert columns["position"] == ["statistics", "correction", "plate", "kind", "place", "effect", "low", "high", "p"]
    assert columns["drift"][:5] == ["correction", "refit_only", "k", "plates", "metric"]
    about = json.loads((judged / "evaluation.json").read_text())
    assert {"command", "roles", "notes", "skipped", "rows", "features", "verdict", "shown"} <= set(about)
    assert (about["rows"], about["features"], about["seed"]) == (192, 6, 3)
    wells = pd.read_parquet(judged / "wells.parquet")
    drawn = [f"{kind}|{'|'.join(pair)}" for pair in about["shown"] for kind in ("map_x", "map_y", "right", "distance")]
    roles = [name for name in wells if name in ROLES]
    assert [*wells] == [*roles, *drawn]
    pd.testing.assert_frame_equal(wells[roles], screens["running"].wells[roles])
    assert np.isfinite(wells["map_x|running|none"]).all()
    assert set(wells["right|running|none"].dropna()) == {0.0, 1.0}


def test_both_tables_of_numbers_say_the_same(judged, table):
    nested = json.loads((judged / "metrics.json").read_text())
    assert {s: [*pairs] for s, pairs in nested.items()} == {s: ["none", "standardize"] for s in table["statistics"]}
    for row in table.to_dict("records"):
        one = nested[row["statistics"]][row["correction"]][row["metric"]]
        for key in ("value", "low", "high", "null", "p"):
            assert one[key] == (None if np.isnan(row[key]) else pytest.approx(row[key], rel=1e-12)), row
        assert (one["n"], one["refit_only"]) == (row["n"], row["refit_only"])
        assert one["title"] == METRICS[row["metric"]].title
        assert one["note"] == ("" if pd.isna(row["note"]) else row["note"])
        assert one["value"] is not None or one["note"]


def test_null_rows_are_there_last_and_the_untrained_encoder_is_missed(judged, table):
    assert [*table["statistics"].unique()] == ["running", "plate", "cell count only", "labels shuffled"]
    assert table.groupby(["statistics", "correction"])["metric"].agg(list).map(len).eq(len(METRICS)).all()
    skipped = json.loads((judged / "evaluation.json").read_text())["skipped"]
    assert any(line.startswith("untrained: ") for line in skipped)


def test_shuffled_labels_are_at_chance_and_true_ones_are_not(table):
    for key, room in (("plate_predicted", 0.15), ("experiment_predicted", 0.25), ("map_other_plate", 0.12)):
        null = number(table, "labels shuffled", "none", key, "null")
        assert abs(number(table, "labels shuffled", "none", key) - null) < room, key
    for key in ("variance_plate", "variance_treatment"):
        assert abs(number(table, "labels shuffled", "none", key)) < 0.05
        assert number(table, "running", "none", key) > 0.1
    assert number(table, "running", "none", "plate_predicted", "low") > 0.6
    assert number(table, "plate", "none", "plate_predicted", "high") < 0.6
    assert number(table, "running", "standardize", "plate_predicted", "high") < 0.6


def test_cells_that_were_counted_know_nothing_of_plates(table):
    counted = table[table["statistics"] == "cell count only"]
    assert counted["value"].notna().sum() > 60
    for correction in ("none", "standardize"):
        assert abs(number(table, "cell count only", correction, "plate_predicted") - 0.25) < 0.15


def test_the_verdict_names_plates(judged):
    verdict = json.loads((judged / "evaluation.json").read_text())["verdict"]
    assert "plate" in verdict["named"]
    assert verdict["before"] == ["running", "none"]
    assert set(verdict["effects"]) >= {"running · none", "plate · none"}
    assert verdict["effects"]["running · none"]["plate"]["word"] == "strong"
    assert verdict["effects"]["plate · none"]["plate"]["word"] == "none"


def test_the_same_seed_gives_the_same_bytes_beside_whatever_else_is_judged(judged, screens, tmp_path):
    """One table alone, with an untrained encoder: the rows that both judgements have are the same."""
    evaluate(
        {"untrained": screens["plate"], "running": screens["running"]},
        tmp_path,
        Settings(("none",), None, None, "pca", 3),
    )
    first, second = ((folder / "table.csv").read_text().splitlines() for folder in (judged, tmp_path))
    both = [line for line in first if line.split(",")[0] in ("running", *NULLS) and line.split(",")[1] == "none"]
    assert both == [line for line in second[1:] if not line.startswith("untrained,")]
    assert len(both) == 3 * len(METRICS)
    assert sum(line.startswith("untrained,") for line in second) == len(METRICS)
    order = pd.read_csv(tmp_path / "table.csv")["statistics"].unique().tolist()
    assert order == ["running", "untrained", "cell count only", "labels shuffled"]
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert not any("untrained" in line for line in about["skipped"])
    assert ["untrained", "none"] not in about["shown"]
    ladders = [pd.read_csv(folder / "ladder.csv") for folder in (judged, tmp_path)]
    kept = [one[(one["statistics"] == "running") & (one["correction"] == "none")] for one in ladders]
    pd.testing.assert_frame_equal(*(one.reset_index(drop=True) for one in kept))


@pytest.fixture
def few(monkeypatch):
    """A few metrics instead of all."""
    judge_few(monkeypatch)


def test_corrections_that_only_refit_are_marked_in_every_table(screens, tmp_path, few):
    evaluate({"running": screens["running"]}, tmp_path, Settings(("whiten", "harmony"), maps="none"))
    table, drift = (pd.read_csv(tmp_path / name) for name in ("table.csv", "drift.csv"))
    for one in (table, drift):
        marked = one.groupby("correction")["refit_only"].agg(set)
        assert marked["none"] == marked["whiten"] == {False}
        assert marked.get("harmony", {True}) == {True}
    assert "harmony" in set(table["correction"])
    wells = pd.read_parquet(tmp_path / "wells.parquet")
    assert wells["map_x|running|none"].isna().all()


def test_a_full_disk_leaves_what_was_there_and_what_has_no_successor_goes(screens, tmp_path, few, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        if "ladder" in path.name:
            raise OSError(errno.ENOSPC, "no space left")
        return written(path, content)

    written, quick = Path.write_bytes, Settings(("none",), maps="none")
    evaluate({"a": screens["plate"]}, tmp_path, quick)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == set(FILES)
    monkeypatch.setattr(module, "_induce", lambda *_: pd.DataFrame())
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left"):
        evaluate({"b": screens["running"]}, tmp_path, quick)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.setattr(Path, "write_bytes", written)
    evaluate({"b": screens["running"]}, tmp_path, quick)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES) - {"drift.csv"}
    assert "b" in set(pd.read_csv(tmp_path / "table.csv")["statistics"])


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (["a"], Settings(("standardise",)), ["'standardise'", "did you mean 'standardize'"]),
        (["a"], Settings(maps="umpa"), ["'umpa'", "did you mean 'umap'"]),
        (["untrained"], Settings(), ["null rows"]),
        (["cell count only", "labels shuffled"], Settings(), ["null rows"]),
        ([], Settings(), ["no profiles"]),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line_before_anything_is_written(screens, tmp_path, names, settings, words):
    with pytest.raises(ConfigError) as error:
        evaluate(dict.fromkeys(names, screens["plate"]), tmp_path / "out", settings)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def plain(**columns: object) -> pd.DataFrame:
    """24 wells of two plates in two experiments as a table, with three features."""
    rng = np.random.default_rng(0)
    at = np.arange(24)
    place = {
        "Metadata_Batch": [f"E{i // 12}" for i in at],
        "Metadata_Plate": [f"P{i // 12}" for i in at],
        "Metadata_Well": [f"{'ABC'[i % 12 // 4]}{i % 4 + 1:02d}" for i in at],
        "Metadata_compound": [("DMSO", "DMSO", "DMSO", "x", "y", "z")[i % 6] for i in at],
        "Metadata_moa": [("", "", "", "m", "m", "n")[i % 6] for i in at],
        "Metadata_Count_Cells": rng.poisson(90, 24),
    }
    return pd.DataFrame(place | {f"f{j}": rng.normal(size=24) for j in range(3)} | columns)


def without_metadata() -> pd.DataFrame:
    """3,000 columns of another tool."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(24, 3000)), columns=[f"Nuclei_Texture_{i}" for i in range(3000)])
    return table.assign(ImageNumber=np.arange(24), barcode=["P0", "P1"] * 12)


BAD: dict[str, Callable[[], pd.DataFrame]] = {
    "one plate": lambda: plain(
        Metadata_Plate="P0", Metadata_Batch="E0", Metadata_Well=[f"{'AB'[i % 2]}{i // 2 + 1:02d}" for i in range(24)]
    ),
    "one experiment": lambda: plain(Metadata_Batch="E0"),
    "a label with one replicate": lambda: plain(Metadata_compound=["DMSO"] * 6 + [f"drug {i}" for i in range(18)]),
    "constant features": lambda: plain(f0=1.0, f2=-3.0),
    "all features constant but for one": lambda: plain(f0=1.0, f1=0.0),
    "duplicated wells": lambda: pd.concat([plain(), plain().iloc[:9]], ignore_index=True),
    "a column with one value": lambda: plain(Metadata_compound="x", Metadata_moa="m", Metadata_Count_Cells=7),
    "no controls": lambda: plain(Metadata_compound=["u", "v", "w", "x", "y", "z"] * 4),
    "strings among features": lambda: plain(f1=["0.1", "bad", *["0.5", "-1"] * 11], batchname="u"),
    "3,000 columns without Metadata_": without_metadata,
    "nothing but features": lambda: plain().filter(regex="^f"),
    "two wells": lambda: plain().iloc[[0, 13]],
}  # fmt: skip


def judge(table: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Judged without a correction, and what was skipped."""
    evaluate({"profiles": understand(table)}, folder, Settings(("none", "standardize"), maps="pca"))
    about = json.loads((folder / "evaluation.json").read_text())
    assert about["verdict"]["sentences"]
    return pd.read_csv(folder / "table.csv"), about["skipped"]


def told(table: pd.DataFrame) -> pd.Series:
    """Whether each metric was told of the profiles as they are."""
    one = table[(table["statistics"] == "profiles") & (table["correction"] == "none")].set_index("metric")
    assert (one["value"].notna() | one["note"].notna()).all()  # or it says why not
    assert not one["note"].dropna().str.contains("\n|Error|nan").any()
    return one["value"].notna()


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_judged_as_far_as_it_can_be(case, tmp_path):
    table, skipped = judge(BAD[case](), tmp_path)
    known = told(table)
    assert all("\n" not in line and len(line) > 20 for line in skipped)
    if case == "one plate":
        assert not known.filter(like="plate_").any()
        assert known["map_same_plate"]
    if case == "one experiment":
        assert not known.filter(like="experiment_").any()
        assert known["plate_predicted"]
    if case == "nothing but features":
        assert not known.any()


def test_much_bad_input_at_once(tmp_path):
    """One experiment, a single replicate, a constant feature, duplicated wells, no controls, strings among features."""
    compounds = [*["u", "v", "w", "x", "y"] * 4, *["alone", "u", "v", "w"]]
    table = plain(Metadata_compound=compounds, Metadata_Batch="E0", Metadata_moa="m", f1=2.0, note=["odd", "even"] * 12)
    table = pd.concat([table, table.iloc[:5]], ignore_index=True)
    found, skipped = judge(table, tmp_path)
    known = told(found)
    assert known[["plate_predicted", "plate_neighbour", "variance_plate", "map_other_plate"]].all()
    assert not known[["experiment_predicted", "variance_experiment", "nscb"]].any()
    assert any(METRICS["experiment_predicted"].title in line for line in skipped)
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert (about["rows"], about["features"]) == (24, 2)
    assert all(any(word in note for note in about["notes"]) for word in ("29 rows", "f1", "note"))


@pytest.mark.slow
def test_the_weeks_of_bbbc021_are_seen_and_standardized_plates_are_told_apart_less(real_data, tmp_path):
    folder = real_data / "bbbc021_profiles"
    profiles = read_profiles(
        folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
        [folder / "BBBC021_v1_image.csv.gz", folder / "BBBC021_v1_moa.csv"],
    )
    results = evaluate({"profiles": profiles}, tmp_path, Settings(("standardize",), maps="none"))
    low, high = (
        {name: number(results.table, "profiles", name, "plate_predicted", end) for name in ("none", "standardize")}
        for end in ("low", "high")
    )
    assert high["standardize"] < low["none"]
    effects = results.about["verdict"]["effects"]["profiles · none"]
    assert effects["experiment"]["word"] not in ("none", "cannot be told")
    assert number(results.table, "profiles", "standardize", "nsc") > 0.5


def test_what_is_the_same_for_many_is_said_once_and_nothing_that_was_skipped_is_lost(tmp_path: Path) -> None:
    profiles = simulated(experiments=1, plates=2, features=4, layout="fixed", compounds=20, controls=4)
    wells = profiles.wells.drop(columns=["plate", "experiment", "cells"], errors="ignore")
    settings = Settings(("standardize", "whiten"), maps="none")
    evaluate({"mine": replace(profiles, wells=wells)}, str(tmp_path / "run"), settings)
    skipped = json.loads((tmp_path / "run/evaluation.json").read_text())["skipped"]
    assert "cell count only: nothing says how many cells a well has" in skipped
    assert sum("which plate a well is of" in one for one in skipped) == 1
    assert any(one.startswith("plates that come later: ") for one in skipped)
    table = pd.read_csv(tmp_path / "run/table.csv")
    assert len(table) == len(table.drop_duplicates(["statistics", "correction", "metric"]))


def test_profiles_made_of_fewer_plates_have_drifted_unless_they_are_only_turned(tmp_path, monkeypatch):
    judge_few(monkeypatch)
    now = simulated(**SMALL)
    few = now.take(np.flatnonzero(now.wells["experiment"] == now.wells["experiment"].iloc[0]))
    turned = few.with_features(few.features @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0] + 3)
    moved = few.with_features(few.features + np.random.default_rng(1).normal(size=few.features.shape))
    for earlier, least, most in ((turned, 0.0, 1e-3), (moved, 0.1, 2.0)):
        evaluate({"week": now}, tmp_path, Settings((), maps="none", earlier={"week": earlier}))
        drift = pd.read_csv(tmp_path / "drift.csv")
        row = drift[drift["statistics"] == "week"].iloc[0]
        assert (row["metric"], row["k"], row["plates"]) == ("drift", 2, 4)
        assert least <= row["fit"] <= most


def test_of_a_large_table_null_rows_and_later_plates_are_judged_on_a_part_and_that_is_said(tmp_path, monkeypatch):
    judge_few(monkeypatch)
    monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(module, "_SHUFFLED", 96)
    found = evaluate({"mine": simulated(**SMALL)}, tmp_path, Settings(("whiten",), maps="none"))
    skipped = found.about["skipped"]
    assert "labels shuffled: judged on 96 of 192 wells, of whole plates" in skipped
    assert any(one.startswith("plates that come later: judged on ") for one in skipped)
    assert sum(one.startswith("cell count only, whiten: of more than 100 wells") for one in skipped) == 1
    count = found.table[(found.table["statistics"] == "cell count only") & (found.table["correction"] == "whiten")]
    assert count["value"].isna().all()
    assert count["note"].str.contains("none and standardize").all()
