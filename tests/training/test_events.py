"""What a run shows in TensorBoard and in its log: whole or not at all, and each step once."""

import json
import os

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from biomass.errors import ConfigError
from biomass.run_lock import letting_go
from biomass.training import RunLogger
from biomass.training.events import EVENTS, records


def state(step, **more):
    return {"progress": {"step": step}, **more}


def log(folder, steps, resume=None, name="train/loss"):
    with letting_go(), RunLogger(folder, {}, resume) as logger:
        for step in steps:
            logger.scalars(step, 0, {name: float(step)})


def curve(folder, name="train/loss"):
    board = EventAccumulator(str(folder)).Reload()
    return [event.step for event in board.Scalars(name)] if name in board.Tags()["scalars"] else []


def lines(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_was_logged_behind_a_checkpoint_is_dropped_and_each_step_is_there_once(tmp_path):
    log(tmp_path, [1, 2, 3])
    log(tmp_path, [2, 3, 4, 5], state(1))
    log(tmp_path, [5, 6], state(4))
    assert curve(tmp_path) == lines(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert len(list(tmp_path.glob(EVENTS))) == 1


def test_a_run_that_begins_again_shows_nothing_of_the_one_before(tmp_path):
    log(tmp_path, [1, 2])
    log(tmp_path, [1])
    assert curve(tmp_path) == lines(tmp_path) == [1]


def test_an_evaluation_that_its_checkpoint_does_not_know_is_dropped(tmp_path):
    with letting_go(), RunLogger(tmp_path, {}) as logger:
        logger.scalars(2, 0, {"train/loss": 1.0})
        logger.histogram(2, "val/plate accuracy", [0.1, 0.2])
        logger.scalars(2, 1, {"val/loss": 1.0})
    log(tmp_path, [], state(2, unfinished={"closing": 1}))
    assert (curve(tmp_path), curve(tmp_path, "val/loss"), lines(tmp_path)) == ([2], [], [2])


@pytest.mark.parametrize("junk", ["[1, 2]", '{"epoch": 3}', '{"step": "x"}', '{"step": 1, "tr', "\x00\x00", "NaN"])
def test_a_line_of_the_log_that_is_none_does_not_keep_a_run_from_going_on(tmp_path, junk, caplog):
    log(tmp_path, [1, 2, 3])
    first, *others = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([first, junk, "\n", *others]))
    log(tmp_path, [4], state(3))
    assert lines(tmp_path) == [1, 2, 3, 4]
    assert "left out 1 lines" in caplog.text


@pytest.mark.parametrize("which", [1, 2])
def test_a_full_disk_is_one_line_and_leaves_no_piece(tmp_path, monkeypatch, which):
    """The events, or the line of JSON, which is written behind them."""
    calls, write = [], os.write

    def full(file, data):
        calls.append(file)
        if len(calls) < which:
            return write(file, data)
        if len(calls) == which:
            return write(file, bytes(data)[:5])
        raise OSError(28, "No space left on device")

    log(tmp_path, [1, 2])
    with letting_go(), RunLogger(tmp_path, {}, state(2)) as logger:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ConfigError, match=r"No space left on device"):
            logger.scalars(3, 0, {"train/loss": 3.0})
        monkeypatch.undo()
    assert lines(tmp_path) == [1, 2]
    log(tmp_path, [3], state(2))
    assert curve(tmp_path) == lines(tmp_path) == [1, 2, 3]


def test_a_record_that_a_kill_tore_ends_what_is_carried_over(tmp_path):
    log(tmp_path, [1, 2, 3])
    (file,) = tmp_path.glob(EVENTS)
    file.write_bytes(file.read_bytes()[:-3])
    log(tmp_path, [4], state(3))
    assert curve(tmp_path) == [1, 2, 4]
    assert all(len(list(records(file.read_bytes()))) > 3 for file in tmp_path.glob(EVENTS))


def test_images_are_carried_over(tmp_path):
    with letting_go(), RunLogger(tmp_path, {}) as logger:
        logger.images(0, "train/images", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
        logger.scalars(1, 0, {"train/loss": 1.0})
    log(tmp_path, [2], state(1))
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Images("train/images")] == [0]
