"""Numbers of finished runs: which are read, which are left out, and what becomes of them in a table."""

import json

import numpy as np
import pandas as pd
import pytest

from biomass.atomic import whole_files
from biomass.errors import ConfigError, DataError
from biomass.evaluation import comparison
from biomass.evaluation.plots import compared

LAST = {"step": 9, "epoch": 3, "seconds": 90.0, "val/accuracy": 0.5, "val/cell_type/HUVEC": 0.25, "test/accuracy": 0.4}
PLATES = "plate,images,accuracy,split,epoch\nA/1,9,0.75,val,3\nA/2,9,0.25,val,3\nB/1,9,0.4,test,3\n"
STRESS = (
    "statistics,axis,value,repeats,accuracy,low,high\n"
    "plate,wells,1,5,0.1,0.0,0.2\nplate,wells,all,5,0.6,0.5,0.7\nrunning,wells,all,5,0.3,0.2,0.4\n"
    "plate,label_shift,inf,5,0.9,0.5,0.7\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plates.csv").write_text(PLATES)
    return tmp_path


def log(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def values(table):
    return {(row.statistics, row.split, row.metric): row.value for row in table.itertuples()}


# --- what is read -----------------------------------------------------------------------------------------------------


def test_all_numbers_of_a_run_and_their_files(folder):
    table = comparison.read_numbers(folder, LAST, "plate")
    assert values(table) == {
        ("plate", "val", "accuracy"): 0.5,
        ("plate", "val", "cell_type/HUVEC"): 0.25,
        ("plate", "test", "accuracy"): 0.4,
        ("plate", "", "seconds"): 90.0,
        ("plate", "val", "worst plate"): 0.25,
        ("plate", "test", "worst plate"): 0.4,
    }
    assert set(table.loc[table["metric"] == "worst plate", "file"]) == {"plates.csv"}
    assert set(table.loc[table["metric"] != "worst plate", "file"]) == {"metrics.jsonl"}


def test_a_stress_test_has_every_word_where_nothing_is_stressed(folder):
    (folder / "stress.csv").write_text(STRESS)
    table = comparison.read_stress(folder, "test")
    assert values(table) == {("plate", "test", "accuracy"): 0.6, ("running", "test", "accuracy"): 0.3}
    assert set(table["file"]) == {"stress.csv"}


def test_without_a_row_of_all_wells_the_one_without_shift_is_whole(folder):
    shift = [line for line in STRESS.splitlines() if ",wells," not in line]
    (folder / "stress.csv").write_text("\n".join(shift))
    assert values(comparison.read_stress(folder, "test")) == {("plate", "test", "accuracy"): 0.9}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plates.csv", None, "plates.csv' is missing"),
        ("plates.csv", "", "plates.csv' is missing or damaged"),
        ("plates.csv", "plate,split,epoch\nA,val,3\n", "no column 'accuracy'"),
        ("plates.csv", "plate,accuracy,epoch\nA,0.5,3\n", "no column 'split'"),
        ("plates.csv", PLATES.replace("0.75", "0.7x"), "plates.csv' is missing or damaged"),
        ("plates.csv", PLATES.replace("0.75", ""), "plates.csv' is missing or damaged"),
        ("plates.csv", PLATES.replace("0.75", "nan"), "a value of 'accuracy' is no number"),
        ("plates.csv", PLATES.splitlines()[0], "it has no rows"),
        ("plates.csv", PLATES.replace(",3\n", ",2\n"), "is not of the run's last evaluation"),
        ("plates.csv", PLATES + "A/1,9,0.7,val,3,4,5,6\n", "plates.csv' is missing or damaged"),
        ("stress.csv", STRESS.replace("axis", "axes"), "no column 'axis'"),
        ("stress.csv", STRESS.replace("all", "4").replace("inf", "1"), "no row of whole plates"),
        ("stress.csv", STRESS.replace("0.6", "60 %"), "stress.csv' is missing or damaged"),
    ],
)
def test_a_damaged_table_is_one_line_that_names_it(folder, name, text, message):
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        comparison.read_numbers(folder, LAST, "plate") if name == "plates.csv" else comparison.read_stress(
            folder, "test"
        )
    assert "\n" not in str(caught.value)


def test_the_last_evaluation_counts(tmp_path):
    log(tmp_path, LAST | {"epoch": 1}, LAST | {"val/accuracy": 0.7}, {"step": 9, "epoch": 2, "train/accuracy": 0.9})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "ep')  # torn by a kill
    assert comparison.last_evaluation(tmp_path, 3, None)["val/accuracy"] == 0.7


@pytest.mark.parametrize(
    ("line", "epochs", "steps", "message"),
    [
        ({"step": 6, "epoch": 2, "val/accuracy": 0.5}, 3, None, "epoch 2 of 3"),
        ({"step": 6, "epoch": 2, "val/accuracy": 0.5}, 3, 7, "epoch 2 of 3"),
        ({"step": 6, "epoch": 3, "val/loss": 0.5}, 3, None, "no accuracy"),
        ({"step": 6, "epoch": 3, "train/accuracy": 0.5}, 3, None, "no accuracy"),
    ],
)
def test_a_run_that_did_not_come_to_its_end(tmp_path, line, epochs, steps, message):
    log(tmp_path, line)
    with pytest.raises(DataError, match=message):
        comparison.last_evaluation(tmp_path, epochs, steps)


@pytest.mark.parametrize(("epoch", "step", "steps"), [(3, 9, None), (1, 2, 2), (0, 0, 0)])
def test_a_run_ends_with_its_epochs_or_its_steps(tmp_path, epoch, step, steps):
    log(tmp_path, {"step": step, "epoch": epoch, "val/accuracy": 0.5})
    assert comparison.last_evaluation(tmp_path, 3, steps)["step"] == step


# --- the table --------------------------------------------------------------------------------------------------------


def numbers(*rows):
    """A table of (floor, regime, statistics, split, metric, value, seed, screen, run)."""
    columns = [*comparison.ROW, "metric", "value", *comparison.REPEAT, "run"]
    return pd.DataFrame(rows, columns=columns).assign(file="metrics.jsonl")


def repeats(regime="ben", values=(0.5, 0.7, 0.3, 0.9), statistics="plate", metric="accuracy", floor="", split="test"):
    pairs = [(str(seed), str(screen)) for seed in (0, 1) for screen in (0, 1)]
    return [
        (floor, regime, statistics, split, metric, value, *pair, f"{regime}{i}")
        for i, (value, pair) in enumerate(zip(values, pairs, strict=False))
    ]


def test_means_and_spreads_go_over_seeds_and_screens():
    table = comparison.summarize(numbers(*repeats(), *repeats("vanilla", (0.1,))))
    ben, vanilla = table.to_dict("records")
    assert ben["mean"] == pytest.approx(np.mean([0.5, 0.7, 0.3, 0.9]))
    assert ben["spread"] == pytest.approx(np.std([0.5, 0.7, 0.3, 0.9], ddof=1))
    assert ben["runs"] == 4
    assert (vanilla["mean"], vanilla["runs"]) == (0.1, 1)
    assert np.isnan(vanilla["spread"])


def test_what_is_asked_for_has_rows_of_its_own():
    table = comparison.summarize(numbers(*repeats()), ["screen"])
    assert dict(zip(table["screen"], table["mean"], strict=True)) == pytest.approx({"0": 0.4, "1": 0.8})
    assert "| test | ben | plate | 0 | 40.0 ± 14.1 | 2 |" in comparison.to_markdown(table, ["screen"])


def test_the_table_for_people_shows_what_was_measured_and_dashes():
    seconds = repeats(values=(60, 120, 60, 120), metric="seconds", split="")
    typed = repeats(values=(0.5, 0.5), metric="cell_type/U2OS") + repeats(values=(0.6, 0.5, 0.4, 0.5), metric="mixing")
    table = comparison.summarize(numbers(*repeats(), *seconds, *typed, *repeats("vanilla", (0.1,), split="val")))
    assert comparison.to_markdown(table).splitlines() == [
        "| split | training | inference | accuracy (%) | U2OS | same experiment | wall time (min) | runs |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        "| test | ben | plate | 60.0 ± 25.8 | 50.0 ± 0.0 (2) | 50.0 ± 8.2 | 1.50 ± 0.58 | 4 |",
        "| val | vanilla | plate | 10.0 ± – | – | – | – | 1 |",
    ]


def test_a_number_that_two_runs_have_counts_once():
    one, same, other = repeats(values=(0.5,))[0], repeats(values=(0.5,))[0], repeats(values=(0.6,))[0]
    kept, lines = comparison.without_repeats(numbers(one, (*same[:-1], "copy")))
    assert (list(kept["run"]), lines) == (["copy"], [])
    kept, lines = comparison.without_repeats(numbers(one, (*other[:-1], "again")))
    assert list(kept["value"]) == [0.6]
    assert len(lines) == 1
    assert "'ben0'" in lines[0]
    assert "'again'" in lines[0]


def test_a_runs_own_evaluation_comes_before_a_stress_test_of_another():
    both = numbers(repeats(values=(0.5,))[0], (*repeats(values=(0.6,))[0][:-1], "stressed"))
    both["file"] = ["metrics.jsonl", "stress.csv"]
    kept, _ = comparison.without_repeats(both)
    assert list(kept["run"]) == ["ben0"]


def test_rows_that_are_not_over_the_same_seeds_and_screens_are_named():
    assert not comparison.uneven(numbers(*repeats(), *repeats("vanilla")))
    (line,) = comparison.uneven(numbers(*repeats(), *repeats("vanilla", (0.1, 0.2, 0.3))))
    assert line.startswith("vanilla, ")
    assert "3 of the 4" in line


def test_files_are_written_together_or_not_at_all(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for place in ("folder", "file/c"):
        with pytest.raises(ConfigError, match=f"/{place}'"):
            whole_files({tmp_path / "a": b"1", tmp_path / place: b"2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_picture_has_a_line_for_every_row_of_the_table():
    rows = [*repeats(), *repeats(statistics="running"), *repeats("untrained", floor="untrained"), *repeats(split="val")]
    worst = repeats(values=(0.2, 0.4), metric="worst plate")
    figure = compared(numbers(*rows, *worst))
    test, val = figure.axes
    assert (test.get_title(), val.get_title()) == ("test", "val")
    assert [label.get_text() for label in test.get_yticklabels()] == ["ben", "untrained"]
    assert (len(test.containers), len(val.containers)) == (3, 1)
    means = [bar.lines[0].get_xdata()[0] for bar in test.containers]
    assert means == pytest.approx([60, 60, 60])
    ticks = [line.get_xdata()[0] for line in test.lines if line.get_marker() == "|"]
    assert ticks == pytest.approx([30])
