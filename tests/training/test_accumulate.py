"""A step on the mean gradient of several batches."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from biomass.errors import BadImageError, ConfigError
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.norms import Statistics
from biomass.objectives import Classification
from biomass.samplers import PlateBatches
from biomass.screen import VectorPixels, make_screen
from biomass.training import Checkpoints, Plan, RunLogger, Training, fit, make_fabric, warmup_cosine

SIZE = 4  # rows a batch


class Torn(VectorPixels):
    """Vectors, the last batch of which cannot be read."""

    def read(self, rows):
        bad = rows[rows >= len(self.array) - SIZE]
        if len(bad):
            raise BadImageError("torn", int(bad[0]))
        return super().read(rows)


def screen(batches, pixels=VectorPixels):
    n = batches * SIZE
    table = pd.DataFrame({"experiment": "e", "plate": np.arange(n) // SIZE, "well": "A01", "site": 1, "cell_type": ""})
    table = table.assign(label=np.arange(n) % 3, split="train", control="")
    vectors = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    return make_screen(table, pixels(vectors), ["a", "b", "c"])


def train(one, network, plan, folder, learning_rate=0.1):
    """The run, and the learning rates of its steps."""
    fabric = make_fabric("cpu")
    batches = PlateBatches(np.arange(len(one)), one.plate_ids, shuffle=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
    steps = -(-len(batches) // plan.accumulate)
    schedule, rates = warmup_cosine(optimizer, 0, plan.num_epochs * steps), []
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    network, optimizer = fabric.setup(network, optimizer)
    with RunLogger(folder, {}, enabled=False) as logger:
        run = Training(
            fabric=fabric,
            network=network,
            optimizer=optimizer,
            lr_schedule=schedule,
            loader=Loader(BatchReader(one, one.plate_ids, "skip"), batches),
            transform=lambda images, _: images,
            objective=Classification(),
            statistics=Statistics("running"),
            logger=logger,
            checkpoints=Checkpoints(folder, enabled=False),
            skipped=SkippedImages(one),
            about={},
        )
        return fit(run, plan), rates


def by_hand(one, network, groups, clip=None, learning_rate=0.1):
    """The reference: the gradient of every batch by itself, their mean, one step; for each group of batches."""
    network = copy.deepcopy(network)
    for number, group in enumerate(groups):
        gradients = []
        for batch in group:
            rows = np.arange(batch * SIZE, (batch + 1) * SIZE)
            loss = F.cross_entropy(network(torch.from_numpy(one.read(rows))), torch.from_numpy(one.labels[rows]))
            gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        means = [torch.stack(of_parameter).mean(0) for of_parameter in zip(*gradients, strict=True)]
        norm = torch.stack([mean.square().sum() for mean in means]).sum().sqrt()
        scale = 1.0 if clip is None else min(1.0, clip / float(norm))
        rate = learning_rate * (1 + np.cos(np.pi * number / len(groups))) / 2
        with torch.no_grad():
            for parameter, mean in zip(network.parameters(), means, strict=True):
                parameter -= rate * scale * mean
    return network


@pytest.mark.parametrize(
    ("accumulate", "groups"), [(1, [[0], [1], [2], [3], [4]]), (2, [[0, 1], [2, 3], [4]]), (9, [[0, 1, 2, 3, 4]])]
)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_is_one_on_the_mean_gradient_of_its_batches(accumulate, groups, clip, tmp_path: Path) -> None:
    one, network = screen(5), nn.Linear(5, 3)
    expected = by_hand(one, network, groups, clip)
    progress, rates = train(one, network, Plan(1, clip=clip, accumulate=accumulate), tmp_path)
    assert progress.step == len(groups)
    assert rates == pytest.approx([0.1 * (1 + np.cos(np.pi * n / len(groups))) / 2 for n in range(len(groups))])
    for found, right in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, right)


def test_a_batch_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    one, network = screen(4, Torn), nn.Linear(5, 3)
    expected = by_hand(one, network, [[0, 1], [2]])  # the last batch of the epoch is lost, the step is taken
    progress, _ = train(one, network, Plan(1, accumulate=2), tmp_path)
    assert (progress.step, progress.epoch, progress.batch) == (2, 1, 0)
    for found, right in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, right)


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate is 0"):
        Plan(1, accumulate=0)
