"""Whether a run learned anything: against the loss itself, and without alarm where all is well."""

import logging
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from biomass.objectives.contrastive import contrastive_loss
from biomass.samplers import CellBatches, PlateBatches
from biomass.screen import COLUMNS, make_screen
from biomass.training import Plan, overview, verdicts


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_chance_is_the_loss_of_projections_that_are_all_alike(views, temperature):
    plates = np.repeat([0, 1, 2], [4, 6, 9])
    fields = PlateBatches(np.arange(19), plates, shuffle=False)
    batches = CellBatches(fields, np.arange(19), np.arange(19), "random_single", num_img=views)
    chance = verdicts.chance_level(batches, temperature)
    losses, apart, sizes = [], [], []
    for rows in batches:
        numbers = torch.from_numpy(rows)
        losses.append(contrastive_loss(torch.ones(len(rows), 8), numbers, temperature))
        apart.append(contrastive_loss(torch.eye(19, dtype=torch.float64)[numbers], numbers, temperature))
        sizes.append(len(rows))
    assert chance.level == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert chance.least == pytest.approx(np.average(apart, weights=sizes), abs=1e-9)
    assert chance.candidates == 6 * views - 1


def test_batches_of_one_field_have_no_chance_level():
    alone = PlateBatches(np.arange(3), np.arange(3), shuffle=False)
    views = CellBatches(alone, np.arange(3), np.arange(3), "random_single", num_img=2)
    assert verdicts.chance_level(views, 0.1) == (0, 0, 0)


def screen_of(controls, treated, classes=5):
    """A split ``val`` of so many negative controls, and of treated images of the other classes in turn."""
    labels = [0] * controls + [1 + n % (classes - 1) for n in range(treated)]
    table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * len(labels)) | {"label": labels, "split": "val"})
    table["control"] = ["negative"] * controls + [""] * treated
    again = pd.concat([table, table.assign(split="train")])
    return make_screen(again, None, ["DMSO", *(f"c{n}" for n in range(1, classes))])


def judged(accuracy, treatments, controls=589, treated=411, **more):
    metrics = {"val/accuracy": accuracy, "val/treatments": treatments, **more}
    return verdicts.judge_accuracy(screen_of(controls, treated), ["val"], metrics)


def test_one_answer_for_everything_is_said_beside_its_share():
    said = str(judged(0.590, 0.0))
    assert "0.590" in said
    assert "always 'DMSO' 0.589" in said
    assert "that holds on" not in said
    assert "train" not in said


@pytest.mark.parametrize(
    ("accuracy", "treatments", "fine"),
    [
        (0.604, 0.0, False),  # within the standard error, 0.0156
        (0.610, 0.05, True),
        (0.589, 0.0, False),
        (0.2, 0.25, False),  # by chance
        (0.45, 0.60, True),  # gives the controls up for the others
        (0.95, 0.9, True),
    ],
)
def test_what_counts_as_learned(accuracy, treatments, fine):
    assert (judged(accuracy, treatments) is None) == fine


def test_a_network_that_knows_its_training_images_has_learned_them_and_nothing_else():
    assert "nothing that holds on other images" in str(judged(0.58, 0.1, **{"train/accuracy": 0.98}))
    assert "in training 0.980" in str(judged(0.58, 0.1, **{"train/accuracy": 0.98}))
    assert "nothing:" in str(judged(0.58, 0.1, **{"train/accuracy": 0.61}))


def test_of_several_splits_those_are_named_on_which_nothing_holds():
    screen = screen_of(50, 50)
    table = pd.concat([screen.table, screen.table[screen.table["split"] == "val"].assign(split="test")])
    screen = make_screen(table.drop(columns="plate_id"), None, screen.classes)
    metrics = {"val/accuracy": 0.9, "val/treatments": 0.8, "test/accuracy": 0.5, "test/treatments": 0.0}
    said = str(verdicts.judge_accuracy(screen, ["val", "test"], metrics))
    assert "nothing that holds on test" in said
    assert "0.900" not in said


def test_nothing_is_said_of_a_split_of_one_class_or_without_controls_and_chance():
    assert judged(0.2, 0.0, controls=10, treated=0) is None
    assert judged(0.26, 0.26, controls=0, treated=400) is not None
    assert judged(0.5, 0.5, controls=0, treated=400) is None


def test_a_contrastive_loss_at_its_chance_level():
    chances = {"train": verdicts.Chance(6.4, 0.0, 599), "val": verdicts.Chance(6.4, 0.0, 599)}
    assert "6.390" in str(verdicts.judge_loss(chances, {"train/loss": 6.39, "val/loss": 6.39}))
    assert "599 candidates" in str(verdicts.judge_loss(chances, {"train/loss": 6.39, "val/loss": 6.39}))
    assert "that holds on val" in str(verdicts.judge_loss(chances, {"train/loss": 4.0, "val/loss": 6.5}))
    for healthy in ({"train/loss": 4.0, "val/loss": 5.9}, {"train/loss": 6.39, "val/loss": 5.0}, {"train/loss": 3.0}):
        assert verdicts.judge_loss(chances, healthy) is None
    assert verdicts.judge_loss(chances, {"train/loss": 6.5}) is not None


class Said(list):
    def __call__(self, error):
        self.append(error)


def watched(metrics, seconds=0.0, num_epochs=8, training=0.5):
    said = Said()

    def evaluate(run, epoch, step):
        time.sleep(seconds)
        return {"val/accuracy": metrics[epoch - 1], "val/treatments": 0.0}

    screen = screen_of(50, 50)

    def judge(found):
        return verdicts.judge_accuracy(screen, ["val"], found, so_far=True)

    watch = verdicts.Watched(evaluate, Plan(num_epochs), judge, said)
    run = SimpleNamespace(logger=SimpleNamespace(latest={} if training is None else {"train/accuracy": training}))
    for epoch in range(1, num_epochs + 1):
        assert watch(run, epoch, epoch)["val/accuracy"] == metrics[epoch - 1]
    return said


def test_that_nothing_is_learned_is_said_at_half_of_the_training_and_once():
    (said,) = watched([0.5] * 8)
    assert "so far" in str(said)
    assert watched([0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]) == []
    assert watched([0.9, 0.9, 0.9, 0.5, 0.9, 0.9, 0.5, 0.5]) == []  # the last is the business of the end
    assert watched([0.9, 0.5], num_epochs=2) == []
    assert watched([0.5] * 8, training=0.7) == []  # it learns, if nothing that holds elsewhere yet
    assert watched([0.5] * 8, training=None) == []  # nobody knows


def test_an_evaluation_that_takes_ten_times_the_training_is_said_once(monkeypatch):
    monkeypatch.setattr(verdicts, "_SECONDS", 0.01)
    (said,) = watched([0.9] * 3, seconds=0.02, num_epochs=3)
    assert said.advice == "evaluate_every"
    monkeypatch.setattr(verdicts, "_SECONDS", 1.0)
    assert watched([0.9] * 3, seconds=0.02, num_epochs=3) == []
    monkeypatch.setattr(verdicts, "_SECONDS", 0.01)
    assert watched([0.9], seconds=0.02, num_epochs=1) == []  # no other follows


# ---- what a run is made of


@pytest.mark.parametrize(("mode", "num_img"), [("random_single", 3), ("random", 2), ("random", 9), ("first", 4)])
def test_the_cells_that_an_epoch_sees_are_counted(mode, num_img):
    fields = np.repeat([3, 5, 8, 9], [1, 4, 7, 2])
    batches = CellBatches(PlateBatches(np.array([3, 5, 8, 9]), batch_size=3), np.arange(14), fields, mode, num_img)
    seen = np.unique(np.concatenate(list(batches)))
    assert (batches.num_seen, batches.num_rows) == (len(seen), 14)


def test_a_block_fits_into_a_terminal_and_its_commands_can_be_copied():
    words = ["biomass", "predict", *(f"dataloaders.source.number_{n}=1" for n in range(9))]
    lines = overview.block("title", [("a", "word " * 60), ("next", words)]).splitlines()
    assert max(map(len, lines)) <= 100
    command = "\n".join(lines[lines.index(next(line for line in lines if "next" in line)) :])
    assert command.replace("\\\n", " ").split()[1:] == words


def test_times_are_told_in_the_first_epoch_of_a_process(caplog):
    from biomass.training.pace import Pace

    caplog.set_level(logging.INFO)
    pace = Pace(torch.device("cpu"), 400)
    while pace.goes_on:
        time.sleep(0.01)
        pace.stepped()
    (record,) = caplog.records
    assert "an epoch of 400 steps" in record.message
    caplog.clear()
    Pace(torch.device("cpu"), 1).stepped()
    assert "the first step took" in caplog.text
