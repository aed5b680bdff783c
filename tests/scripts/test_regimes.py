"""The training regimes of the field, by their presets."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TINY_CELLS, TINY_RUN, TINY_SCREEN

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.training import load_checkpoint

FIELDS = (*TINY_SCREEN, *TINY_RUN)
CELLS = (*TINY_CELLS, "model.key=test_resnet", "model.pretrained=false", "dataloaders.num_img=1")

PRESETS = {  # what of a preset is too large for a tiny screen
    "arm_bn": ("train_batch_size=6", "eval_batch_size=5"),
    "cs_arm_bn": ("train_batch_size=6", "dataloaders.num_controls=2", "trainer.accumulate=2"),
    "group_norm": (),
    "instance_norm": (),
    "coral": (),
    "dann": (),
    "ben_quadrant": (),
    "ben_row": (),
    "tent": ("eval_batch_size=5",),
    "shrunk": (),
    "balanced": (),
    "reference": (),
}


def metrics(name):
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def last(name):
    return [line for line in metrics(name) if "val/loss" in line][-1]


def weights(name):
    return load_checkpoint(Path(f"checkpoints/{name}/last.pt"))["network"]


def same(first, second):
    return all(torch.equal(first[k], v) for k, v in second.items())


@pytest.mark.parametrize(("script", "data"), [("train_erm", FIELDS), ("train_supervised_cell", CELLS)])
@pytest.mark.parametrize("method", PRESETS)
def test_every_regime_takes_two_steps_and_is_evaluated(run, script, data, method):
    best = run(script, *data, f"+method={method}", *PRESETS[method], "trainer.max_steps=2", "run_name=a")
    assert best is not None
    assert math.isfinite(best)
    assert load_checkpoint(Path("checkpoints/a/last.pt"))["progress"]["step"] == 2
    assert math.isfinite(last("a")["val/loss"])


def test_arm_bn_whose_blocks_are_plates_is_ben(run):
    whole = ("train_batch_size=null", "eval_batch_size=null", "num_epochs=2")
    for method in ("arm_bn", "ben"):
        run("train_erm", *FIELDS, f"+method={method}", *whole, f"run_name={method}")
    assert same(weights("arm_bn"), weights("ben"))
    assert last("arm_bn")["val/loss"] == pytest.approx(last("ben")["val/loss"], rel=1e-5)  # in another order


def test_the_size_of_blocks_is_that_of_batches_at_inference(run):
    for name, size in (("small", 3), ("again", 3), ("large", 7)):
        run("train_erm", *FIELDS, "+method=arm_bn", f"eval_batch_size={size}", "num_epochs=1", f"run_name={name}")
    assert same(weights("small"), weights("large"))
    assert last("small")["val/loss"] == last("again")["val/loss"] != pytest.approx(last("large")["val/loss"], rel=1e-3)


def test_cs_arm_bn_without_controls_is_arm_bn(run):
    one = ("train_batch_size=7", "num_epochs=1", "dataloaders.source.negative_wells=0", "eval_batch_size=null")
    run("train_erm", *FIELDS, "+method=arm_bn", *one, "run_name=arm_bn")
    alone = ("dataloaders.num_controls=0", "trainer.accumulate=1")
    run("train_erm", *FIELDS, "+method=cs_arm_bn", *one, *alone, "run_name=cs_arm_bn")
    assert same(weights("arm_bn"), weights("cs_arm_bn"))


def test_cs_arm_bn_needs_controls_in_training(run):
    with pytest.raises(DataError, match="no control row"):
        run("train_erm", *FIELDS, "+method=cs_arm_bn", "dataloaders.source.negative_wells=0")
    assert not Path("runs").exists()


def test_a_run_that_accumulates_goes_on_within_an_epoch_to_the_same_bits(run):
    every = ("num_epochs=2", "train_batch_size=3", "trainer.accumulate=3", "trainer.evaluate_every=2")
    every += ("trainer.log_every=1", "trainer.clip=1.0")
    run("train_erm", *FIELDS, *every, "run_name=whole")
    run("train_erm", *FIELDS, *every, "run_name=parts", "trainer.max_steps=3")
    progress = load_checkpoint(Path("checkpoints/parts/last.pt"))["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (0, 9, 3)
    run("train_erm", *FIELDS, *every, "run_name=parts", "resume=auto")
    assert same(weights("whole"), weights("parts"))
    losses = ([m["train/loss"] for m in metrics(name) if "train/loss" in m] for name in ("whole", "parts"))
    assert next(losses) == next(losses)
    rates = [m["train/learning_rate"] for m in metrics("whole") if "train/learning_rate" in m]
    assert len(rates) == 8  # 12 batches an epoch are 4 steps, one epoch of them warm-up
    assert rates == pytest.approx([1e-3 * x for x in (0.25, 0.5, 0.75, 1, 1, 0.8535534, 0.5, 0.1464466)])


@pytest.mark.parametrize("override", ["trainer.accumulate=2", "objective.loss_rows=treated"])
def test_a_run_does_not_go_on_with_another_regime(run, override):
    run("train_erm", *FIELDS, "num_epochs=1", "trainer.max_steps=1", "run_name=a")
    state = load_checkpoint(Path("checkpoints/a/last.pt"))
    del state["config"]["objective"], state["config"]["trainer"]["accumulate"]  # before there were these keys
    torch.save(state, "checkpoints/a/last.pt")
    with pytest.raises(CheckpointError, match=r"this run has .*(set it back|accumulate 1 on each device)"):
        run("train_erm", *FIELDS, "num_epochs=1", override, "run_name=a", "resume=auto")
    run("train_erm", *FIELDS, "num_epochs=1", "run_name=a", "resume=auto")


def test_norms_of_images_are_in_the_checkpoint_and_statistics_of_plates_are_refused(run):
    run("train_simclr", *CELLS[:-1], "model.projector=[8]", "+method=group_norm", "trainer.max_steps=2", "run_name=a")
    state = load_checkpoint(Path("checkpoints/a/last.pt"))
    assert state["architecture"]["norm"] == "group"
    run("train_classifier", *TINY_CELLS, "transforms=plain", "model_path=a", "num_epochs=1", "run_name=probe")
    assert math.isfinite(last("probe")["val/loss"])
    with pytest.raises(CheckpointError, match=r"model\.norm=group, this run has model\.norm=batch"):
        run("train_simclr", *CELLS[:-1], "model.projector=[8]", "resume=checkpoints/a/last.pt", "run_name=b")
    with pytest.raises(CheckpointError, match="3 channels and group norm"):
        run("train_simclr", *CELLS[:-1], "model.projector=[8]", "model_path=a", "run_name=b")
    with pytest.raises(ConfigError, match="no plate-aware batch norm"):
        run("train_erm", *FIELDS, "+method=ben", "model.norm=group", "run_name=b")
    assert not Path("runs/b").exists()


def test_coral_draws_pairs_of_plates_and_the_weight_counts(run):
    one = ("num_epochs=1", "trainer.log_every=1", "train_batch_size=14")
    for name, more in (("a", ()), ("b", ("objective.penalty_weight=0",))):
        run("train_erm", *FIELDS, "+method=coral", *one, *more, f"run_name={name}")
    assert load_checkpoint(Path("checkpoints/a/last.pt"))["method"]["max_groups"] == 2
    penalties = [m["train/penalty"] for m in metrics("a") if "train/penalty" in m]
    assert len(penalties) == 2  # 4 training plates of 14 images: 2 plates, half of each, a batch
    assert min(penalties) > 0
    assert not same(weights("a"), weights("b"))


def test_a_penalty_of_no_weight_is_vanilla_on_the_same_batches(run):
    one = ("num_epochs=2", "train_batch_size=14")
    run("train_erm", *FIELDS, "+method=vanilla", *one, "run_name=vanilla")
    run("train_erm", *FIELDS, "+method=dann", "objective.penalty_weight=0", *one, "run_name=dann")
    assert same(weights("vanilla"), weights("dann"))


def test_the_discriminator_is_trained_kept_and_resumed(run):
    every = ("+method=dann", "num_epochs=2", "train_batch_size=14", "trainer.evaluate_every=2")
    run("train_erm", *FIELDS, *every, "run_name=whole")
    run("train_erm", *FIELDS, *every, "run_name=parts", "trainer.max_steps=1")
    first = load_checkpoint(Path("checkpoints/parts/last.pt"))["objective"]
    assert first["discriminator.4.weight"].shape == (4, 1024)  # training plates
    run("train_erm", *FIELDS, *every, "run_name=parts", "resume=auto")
    whole, parts = (load_checkpoint(Path(f"checkpoints/{name}/last.pt")) for name in ("whole", "parts"))
    for part in ("network", "objective"):
        assert same(whole[part], parts[part])
    assert not same(first, parts["objective"])
    with pytest.raises(CheckpointError, match=r"penalty=dann, this run has objective\.penalty=coral"):
        run("train_erm", *FIELDS, *every, "run_name=parts", "resume=auto", "objective.penalty=coral")


def test_a_penalty_that_is_unknown_or_has_no_pairs(run):
    with pytest.raises(ConfigError, match=r"objective\.penalty is .*did you mean 'coral'"):
        run("train_erm", *FIELDS, "objective.penalty=corral")
    with pytest.raises(ConfigError, match="is 9, but these rows have only 4 groups"):
        run("train_erm", *FIELDS, "+method=coral", "dataloaders.max_groups=9")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("key", "size", "more"), [("levit_128s", 224, ()), ("test_vit", 160, ("model.standardize=true",))]
)
def test_a_transformer_trains_by_plate_and_is_evaluated_by_whole_plates(run, key, size, more):
    data = [o for o in FIELDS if "size" not in o and "key" not in o] + [f"dataloaders.source.size={size}"]
    one = (f"model.key=timm/{key}", *more, "dataloaders.eval_splits=[val]", "train_batch_size=4", "trainer.max_steps=2")
    for name, chunk in (("whole", "null"), ("chunks", 5)):
        run("train_erm", *data, "+method=ben", *one, f"eval_batch_size={chunk}", f"run_name={name}")
    assert same(weights("whole"), weights("chunks"))
    assert last("chunks")["val/loss"] == pytest.approx(last("whole")["val/loss"], rel=1e-4)


def test_a_transformer_without_batch_norm_takes_no_words_for_plates(run):
    vit = [o for o in FIELDS if "size" not in o and "key" not in o] + ["dataloaders.source.size=160"]
    with pytest.raises(ConfigError, match="standardize its features"):
        run("train_erm", *vit, "model.key=timm/test_vit", "+method=ben", "run_name=a")
    assert not Path("runs").exists()
