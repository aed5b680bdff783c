"""``biomass evaluate``: tables by their names, what is written, and what cannot be meant."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_profiles import judge_few

from biomass.commands import evaluate
from biomass.errors import ConfigError
from biomass.judgement.results import FILES
from biomass.simulation.profile_tables import simulate_profiles

SMALL = {"experiments": 2, "plates": 2, "wells": 24, "features": 4, "factors": 2, "compounds": 7, "seed": 1}
QUICK = ("--correction", "none", "--map", "none")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judge_few(monkeypatch)


@pytest.fixture
def wells():
    """A file of wells."""
    simulate_profiles(plate=1.0, **SMALL).to_parquet("wells.parquet")
    return "wells.parquet"


def refused(capsys, *arguments: str) -> str:
    """The one line of an error; nothing was written."""
    with pytest.raises(SystemExit) as end:
        evaluate.main(list(arguments))
    assert end.value.code not in (0, None)
    said = capsys.readouterr().err.strip() or str(end.value.code)
    assert not Path("runs").exists()
    assert not Path("out").exists()
    return said


def test_a_table_is_judged_and_a_page_made(wells, capsys):
    evaluate.main([wells, *QUICK, "--run-name", "a", "--seed", "5", "--set", "control.negative=[DMSO]"])
    assert {file.name for file in Path("runs/a").iterdir()} == {*FILES, "report.html"}
    about = json.loads(Path("runs/a/evaluation.json").read_text())
    assert about["command"] == (
        f"biomass evaluate {wells} --correction none --map none --run-name a --seed 5 --set 'control.negative=[DMSO]'"
    )
    assert about["seed"] == 5
    assert about["table"] == {"profiles": wells}
    assert about["fingerprint"] == {"profiles": evaluate.fingerprint(Path(wells))}
    assert about["roles"]["plate"] == "Metadata_Plate"
    assert {"python", "biomass", "numpy", "copairs"} <= set(about["versions"])
    assert "runs/a/report.html" in capsys.readouterr().out


def test_several_tables_are_rows_pairs_and_plates_that_come_later(wells, tmp_path, capsys):
    simulate_profiles(**SMALL).to_csv("other.csv.gz", index=False)
    Path("pairs.csv").write_text("one,other\nnobody,nowhere\n")
    more = ("--pairs", "pairs.csv", "--fit-first", "99", "--out", "out")
    evaluate.main(["running=wells.parquet", "plate=other.csv.gz", "untrained=other.csv.gz", *QUICK, *more])
    table = pd.read_csv("out/table.csv")
    assert table["statistics"].unique().tolist() == [
        "running", "plate", "untrained", "cell count only", "labels shuffled"
    ]  # fmt: skip
    about = json.loads(Path("out/evaluation.json").read_text())
    assert set(about["table"]) == {"running", "plate", "untrained"}
    recall = table[table["metric"] == "recall"]
    assert recall["value"].isna().all()
    assert recall["note"].str.contains("nobody, nowhere").all()
    assert any("known relationships" in line and "nobody" in line for line in about["skipped"])
    assert any("99 plates" in line and "there are 4" in line for line in about["skipped"]), about["skipped"]
    assert not any(line.startswith("untrained") for line in about["skipped"])
    assert not Path("out/drift.csv").exists()
    assert not Path("runs").exists()
    page = Path("out/report.html").read_text()
    assert all(line.split(": ")[0] in page for line in about["skipped"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.parquet"], ["'nowhere.parquet'"]),
        (["a=nowhere.csv"], ["'nowhere.csv'"]),
        (["wells.parquet", "wells.parquet"], ["both called 'profiles'"]),
        (["a=wells.parquet", "a=wells.parquet"], ["both called 'a'"]),
        (["untrained=wells.parquet"], ["null rows"]),
        (["wells.parquet", "--correction", "standardise"], ["'standardise'", "'standardize'"]),
        (["wells.parquet", "--map", "tsne"], ["tsne", "umap"]),
        (["wells.parquet", "--pairs", "nobody.csv"], ["nobody.csv"]),
        (["wells.parquet", "--pairs", "wells.parquet"], ["wells.parquet", "columns"]),
        (["wells.parquet", "--metadata", "nobody.csv"], ["nobody.csv"]),
        (["wells.parquet", "--set", "columns_.plate=x"], ["columns_", "'columns'"]),
        (["wells.parquet", "--set", "columns.plate=Metadata_Plat"], ["Metadata_Plat", "Metadata_Plate"]),
        (["wells.parquet", "--set", "columns.plates=Metadata_Plate"], ["plates", "plate"]),
        (["wells.parquet", "--set", "control.negative=[DMSOO]"], ["DMSOO", "DMSO"]),
        (["wells.parquet", "--run-name", "a/../../b"], ["a/../../b"]),
        (["text.csv"], ["text.csv"]),
        (["wells.parquet", "--seed", "x"], ["--seed"]),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(wells, capsys, arguments, words):
    Path("text.csv").write_text("Plate,Well,drug\nP1,A1,x\nP1,A2,y\n")
    said = refused(capsys, *arguments)
    last = said.splitlines()[-1]
    assert all(word in last for word in words), said
    assert "Traceback" not in said


def test_the_folder_of_a_run_of_profiles_holds_them_by_their_words(wells):
    run = Path("runs/p")
    run.mkdir(parents=True)
    table = pa.Table.from_pandas(pd.read_parquet(wells))
    words = {"": "calibrated", "_running": "running", "_controls-all": "controls/all", "_untrained": "untrained"}
    for ending, word in words.items():
        known = table.replace_schema_metadata({**(table.schema.metadata or {}), "biomass.statistics": word})
        pq.write_table(known, run / f"profiles_wells{ending}.parquet")
    found = evaluate.named_tables([str(run)])
    assert {name: file.name for name, file in found.items()} == {
        word: f"profiles_wells{ending}.parquet" for ending, word in words.items()
    }
    (run / "profiles_wells_raw.parquet").write_bytes((run / "profiles_wells.parquet").read_bytes())
    assert evaluate.named_tables([str(run)])["calibrated"].name == "profiles_wells_raw.parquet"
    assert set(evaluate.named_tables([f"mine={run}"])) == {"mine"}
    with pytest.raises(ConfigError, match="'running'"):
        evaluate.named_tables([str(run), f"running={wells}"])


def test_a_fingerprint_is_that_of_the_bytes(tmp_path):
    for name, text in (("a.csv", "1"), ("b.csv", "1"), ("c.csv", "2")):
        Path(name).write_text(text)
    one, same, other = (evaluate.fingerprint(Path(name)) for name in ("a.csv", "b.csv", "c.csv"))
    assert one == same != other
    assert len(one) == 16
