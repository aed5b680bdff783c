"""Numbers that are none: what is found, what it is called, and what is let through."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN
from torch import nn

from biomass.errors import ConfigError, TrainingError
from biomass.training.checkpoint import load_checkpoint
from biomass.training.numbers import check_gradients, check_metrics, check_weights

TINY = (*TINY_SCREEN, *TINY_RUN, "train_batch_size=14", "num_epochs=1", "run_name=a")
CELLS = (*TINY_CELLS, "model.key=test_resnet", "model.pretrained=false", "num_epochs=1", "run_name=a")
LAST = Path("checkpoints/a/last.pt")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var", "exp_avg of 0.bias", "exp_avg_sq of 1.weight"])
def test_a_weight_a_buffer_or_a_moment_that_is_not_finite_is_named(name, value):
    network, optimizer = trained()
    check_weights(network, optimizer, 7, LAST)
    kind, _, of = name.rpartition(" of ")
    tensor = optimizer.state[network.get_parameter(of)][kind] if kind else network.state_dict()[of]
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    with pytest.raises(TrainingError, match=f"'{name}' is not finite after step 7.*no checkpoint yet"):
        check_weights(network, optimizer, 7, LAST)


def test_numbers_whose_squares_overflow_are_fine():
    network, optimizer = trained()
    with torch.no_grad():
        network[0].weight.fill_(1e30)
    check_weights(network, optimizer, 7, LAST)


def test_gradients_of_16_bits_may_skip_steps_until_their_factor_is_used_up():
    def fabric(scale: float | None) -> SimpleNamespace:
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        if scaler is not None:
            scaler.scale(torch.ones(1))  # only then it has a factor
        return SimpleNamespace(strategy=SimpleNamespace(precision=SimpleNamespace(scaler=scaler)))

    check_gradients(fabric(None), 1e38, 3, "plate A", LAST)
    check_gradients(fabric(65536.0), float("inf"), 3, "plate A", LAST)
    for scale, norm in ((None, float("inf")), (None, float("nan")), (2.0**-30, float("inf"))):
        with pytest.raises(TrainingError, match=f"gradient norm is {norm} at step 3, plate A"):
            check_gradients(fabric(scale), norm, 3, "plate A", LAST)


def test_a_metric_that_does_not_exist_is_let_through_and_one_that_decides_is_not():
    check_metrics({"val/by_class": float("nan"), "val/loss": 1.0}, "val/accuracy", 2, LAST)
    with pytest.raises(TrainingError, match="val/loss is inf after epoch 2"):
        check_metrics({"val/loss": float("inf")}, None, 2, LAST)
    with pytest.raises(ConfigError, match="'val/by_class' is nan"):
        check_metrics({"val/by_class": float("nan")}, "val/by_class", 2, LAST)


@pytest.mark.parametrize(
    ("script", "overrides", "message"),
    [
        ("train_erm", (*TINY, "learning_rate=1e30"), r"loss is nan at step 2 of epoch 1.*plate .*images '.*png'"),
        ("train_erm", (*TINY, "learning_rate=1e30", "trainer.max_steps=1"), "val/loss is nan after epoch 1"),
        ("train_erm", (*TINY, "weight_decay=1e30"), "'exp_avg_sq of .*' is not finite"),
        (
            "train_erm",
            (
                *TINY,
                "objective.penalty=coral",
                "objective.penalty_weight=1e38",
                "dataloaders.train_groupby=[experiment]",
            ),
            "gradient norm is inf at step 2|is not finite",
        ),
        ("train_simclr", (*CELLS, "learning_rate=1e30"), "val/loss is nan"),
        ("train_simclr", (*CELLS, "temperature=1e-30"), "gradient norm is inf at step 1, plate .*images '.*png'"),
        ("train_supervised_cell", (*CELLS, "learning_rate=1e30"), "val/loss is nan"),
    ],
)
def test_a_run_whose_numbers_are_lost_ends_with_an_error_and_saves_none_of_them(run, script, overrides, message):
    with pytest.raises(TrainingError, match=message):
        run(script, *overrides)
    assert not LAST.exists()


@pytest.mark.slow
def test_one_and_two_threads_agree(run):
    """To 1e-6, but for weights whose gradient is rounding alone: Adam makes a whole step of it (Kingma & Ba 2015)."""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            run("train_erm", *TINY[:-1], "trainer.max_steps=3", f"run_name=t{threads}")
        finally:
            torch.set_num_threads(1)
    one, two = (load_checkpoint(Path(f"checkpoints/t{threads}/last.pt"))["network"] for threads in (1, 2))
    apart = torch.cat([(two[name] - value).abs().float().flatten() for name, value in one.items()])
    assert (apart <= 1e-6).float().mean() >= 0.999
    assert apart.max() < 1e-4
    logs = [[json.loads(x) for x in Path(f"runs/t{t}/metrics.jsonl").read_text().splitlines()] for t in (1, 2)]
    for a, b in zip(*logs, strict=True):
        assert {key: value for key, value in a.items() if key.endswith(("loss", "accuracy"))} == pytest.approx(
            {key: value for key, value in b.items() if key.endswith(("loss", "accuracy"))}, rel=1e-6
        )
