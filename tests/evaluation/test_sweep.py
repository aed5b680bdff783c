"""The table of a sweep: what a run logged last, in a terminal of 100 columns."""

import json

import pandas as pd
import pytest

from biomass.evaluation.sweep import Job, sweep_table, table_text


def logged(folder, **metrics):
    folder.mkdir(parents=True)
    lines = [{"step": 1, "val/loss": 0.1}, {"step": 2, **metrics}, {"step": 3, "train/loss": 9.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')


METRICS = {f"{split}/{metric}": 0.123456 for split in ("val", "test") for metric in ("loss", "accuracy", "treatments")}


def jobs_of(tmp_path, name, count=3, metrics=METRICS):
    jobs = [Job(n, f"{name}-{n}_seed-{n}", f"{name}-{n}", {"seed": str(n)}, "0.5") for n in range(count)]
    for job in jobs:
        logged(tmp_path / job.name, **metrics)
    return [*jobs, Job(count, "", "", {"seed": "x"}, "error: seed is x")]


def test_the_last_evaluation_counts_and_training_does_not(tmp_path):
    table = sweep_table(jobs_of(tmp_path, "a"), tmp_path)
    assert [*table] == ["job", "run", "seed", *METRICS, "error"]
    assert table["val/accuracy"].tolist()[:3] == [0.123456] * 3
    assert pd.isna(table["val/accuracy"][3])
    assert table["error"].tolist() == ["", "", "", "seed is x"]


@pytest.mark.parametrize("length", [1, 25, 60, 90, 140])
def test_it_fits_into_a_terminal_whatever_the_names(tmp_path, length):
    jobs = jobs_of(tmp_path, "n" * length)
    head, *rows = table_text(sweep_table(jobs, tmp_path), jobs).splitlines()
    assert max(map(len, [head, *rows])) <= 100
    assert head.split()[:3] == ["run", "seed", "val/accuracy"]
    assert "loss" not in head
    assert len({row.split()[0] for row in rows}) == 4
    assert rows[3].split()[:2] == ["job", "3"]
    assert rows[0].split()[2] == "0.1235"


def test_where_nothing_is_classified_all_metrics_stand_in_it(tmp_path):
    jobs = jobs_of(tmp_path, "s", metrics={"val/loss": 2.5})
    assert table_text(sweep_table(jobs, tmp_path), jobs).splitlines()[0].split() == ["run", "seed", "val/loss"]
