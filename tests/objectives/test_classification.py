"""Cross-entropy, and which rows of a batch are learned from."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from biomass.errors import ConfigError
from biomass.objectives import Classification

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BATCH = SimpleNamespace(
    labels=torch.tensor([0, 2, -1, 1, 2, 0]), controls=torch.tensor([0, 1, 0, 2, 0, 1], dtype=torch.int8)
)


@pytest.mark.parametrize(
    ("loss_rows", "controls", "rows"),
    [
        ("all", "all", [0, 1, 3, 4, 5]),
        ("treated", "negative", [0, 3, 4]),
        ("treated", "positive", [0, 1, 4, 5]),
        ("treated", "all", [0, 4]),
    ],
)
def test_loss_gradient_and_accuracy_are_those_of_the_rows_that_are_learned_from(loss_rows, controls, rows):
    logits = LOGITS.clone().requires_grad_()
    loss, scalars = Classification(True, loss_rows, controls)(lambda _: logits, None, BATCH)
    expected = F.cross_entropy(logits[rows], BATCH.labels[rows])
    torch.testing.assert_close(loss, expected)
    for found, right in zip(*(torch.autograd.grad(x, logits) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(found, right)
    right = (LOGITS[rows].argmax(1) == BATCH.labels[rows]).double().mean()
    assert float(scalars["accuracy"]) == pytest.approx(float(right))


def test_a_batch_of_nothing_to_learn_from():
    batch = SimpleNamespace(labels=BATCH.labels, controls=torch.ones(6, dtype=torch.int8))
    logits = LOGITS.clone().requires_grad_()
    loss, _ = Classification(loss_rows="treated")(lambda _: logits, None, batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="'treatd' is unknown; did you mean 'treated'") as caught:
        Classification(loss_rows="treatd")
    assert caught.value.advice == "loss_rows"
