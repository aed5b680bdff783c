"""What is learned of training plates, and the words that need it: against closed forms and slow references."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.norms import (
    Correction,
    Statistics,
    convert,
    load_tuning,
    measure_plates,
    plate_statistics,
    tuning_state,
    whole_plate_forward,
)
from biomass.norms.tuning import Rows, Tuning, balanced, effective_rows, estimate_composition, shrunk

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, -1, 3, 3, 3])
CONTROLS = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2], dtype=torch.int8)
PLATE = torch.zeros(10, dtype=torch.long)
WORDS = ("plate", "controls", "shrunk", "balanced")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    return convert(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()).eval()


def images(seed: int, n: int = 10) -> Tensor:
    """Images of classes that differ, on a plate of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64)
    of_class = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    scale = 1 + torch.rand(2, 1, 1, generator=generator, dtype=torch.float64)
    return scale * (x + of_class[LABELS[:n]] + torch.randn(2, 1, 1, generator=generator, dtype=torch.float64))


def measured(**settings: object) -> nn.Module:
    one = network()
    measure_plates(one, [[(images(seed), LABELS, CONTROLS)] for seed in (1, 2)], num_classes=4)
    context = one[1].context
    context.tuning = replace(context.tuning, **settings)
    return one


def run(one: nn.Module, word: str, x: Tensor, controls: Tensor = CONTROLS, logits: Tensor | None = None) -> Tensor:
    with torch.no_grad(), Statistics(word).of(one, torch.zeros(len(x), dtype=torch.long), controls, logits):
        return one(x)


def test_moments_of_training_plates_are_those_of_a_slow_reference() -> None:
    one = network()
    chunked = [[(images(s)[:4], LABELS[:4], CONTROLS[:4]), (images(s)[4:], LABELS[4:], CONTROLS[4:])] for s in (1, 2)]
    measure_plates(one, chunked, num_classes=4)
    stratum = {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [], 4: [7, 8], 5: [9]}  # 3 is only the label of controls
    for norm, depth in ((one[1], 1), (one[4], 4)):
        moments, values = [], []
        for seed in (1, 2):
            with torch.no_grad(), plate_statistics(one, PLATE):
                x = one[:depth](images(seed))
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            moments.append(torch.stack([mean, var]))
            values.append((x - mean[:, None, None]) / var[:, None, None].sqrt())
        torch.testing.assert_close(norm.prior.double(), torch.stack(moments).mean(0), rtol=1e-5, atol=1e-6)
        for k, rows in stratum.items():
            z = torch.cat([plate[rows] for plate in values])
            expected = torch.stack([z.mean((0, 2, 3)), z.square().mean((0, 2, 3))]) if rows else torch.eye(2)[:, :1] * 0
            if not rows:
                expected = torch.tensor([[0.0], [1.0]]).expand(2, norm.num_features)
            torch.testing.assert_close(norm.strata[:, k].double(), expected.double(), rtol=1e-5, atol=1e-6)
    assert one[1].context.tuning.treated == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))


def test_controls_alone_stand_for_the_whole_plate_where_plates_differ_in_offset_and_scale() -> None:
    """A plate is an affine image of the training plate, channel by channel: exactly what a batch effect is here."""
    x = images(1)
    one = convert(nn.Sequential(nn.BatchNorm2d(2)).double()).eval()
    measure_plates(one, [[(x, LABELS, CONTROLS)]], num_classes=4)
    one[0].context.tuning = replace(one[0].context.tuning, shrinkage=0.0, prior_rows=0.0)
    other = 3 + torch.tensor([5.0, 0.1])[:, None, None] * x
    whole = run(one, "plate", other)
    torch.testing.assert_close(run(one, "balanced", other), whole, rtol=1e-4, atol=1e-4)
    assert (run(one, "controls", other) - whole).abs().max() > 0.1  # uncorrected, they do not
    shifted = other[[0, 0, 0, 0, 1, 1, 1, 7, 8, 9]]  # class 0 alone, said to be so with certainty
    logits = torch.full((10, 4), -30.0).index_fill(1, torch.tensor([0]), 30.0)
    sure = run(one, "balanced", shifted, logits=logits)
    assert (sure[7:] - whole[7:]).abs().max() < 0.2 < (run(one, "plate", shifted)[7:] - whole[7:]).abs().max()


def test_shrunk_is_the_plate_without_a_prior_and_the_prior_with_nothing_else() -> None:
    x, none = images(3), torch.zeros(10, dtype=torch.int8)
    for controls in (CONTROLS, none):
        torch.testing.assert_close(
            run(measured(shrinkage=0.0, prior_rows=0.0), "shrunk", x, controls), run(measured(), "plate", x)
        )
    one = measured(shrinkage=1e12)
    reference = copy.deepcopy(one)
    for norm in (reference[1], reference[4]):
        norm.running_mean.copy_(norm.prior[0])
        norm.running_var.copy_(norm.prior[1])
    with torch.no_grad():
        torch.testing.assert_close(run(one, "shrunk", x, none), reference(x), rtol=1e-5, atol=1e-6)


def test_shrunk_blends_mean_and_variance_by_effective_rows() -> None:
    one, x = measured(shrinkage=5.0), images(3)
    weights = shrunk(Rows(CONTROLS, CONTROLS == 1), one[1].context.tuning).weights
    assert weights is not None
    assert weights.tolist() == [1] * 7 + [2.5, 2.5, 1]  # two controls weigh as much as N = 5 treated rows
    share = 5 / (5 + effective_rows(weights))
    with torch.no_grad():
        z = one[0](x)
    w = weights / weights.sum()
    mean = (w[:, None] * z.mean((2, 3))).sum(0)
    var = (w[:, None] * (z - mean[:, None, None]).square().mean((2, 3))).sum(0)
    mean, var = (own + share * (prior - own) for own, prior in zip((mean, var), one[1].prior.double(), strict=True))
    expected = (z - mean[:, None, None]) / (var[:, None, None] + one[1].eps).sqrt()
    with torch.no_grad(), Statistics("shrunk").of(one, PLATE, CONTROLS):
        torch.testing.assert_close(one[:2](x), expected)


def test_balanced_is_the_plate_where_it_is_composed_as_training_plates_are() -> None:
    one, x = measured(shrinkage=0.0, prior_rows=0.0, trust=0.0), images(1)
    even = torch.zeros(10, 4)
    for norm in (one[1], one[4]):  # nothing to take out
        norm.strata[0], norm.strata[1] = 0, 1
    torch.testing.assert_close(run(one, "balanced", x, logits=even), run(one, "plate", x))
    torch.testing.assert_close(run(one, "balanced", x), run(one, "controls", x))
    lone = Tuning((1.0,), shrinkage=0.0, prior_rows=0.0)
    assert estimate_composition(torch.randn(5, 1), lone)[0].tolist() == [1.0]


@pytest.mark.parametrize("word", WORDS)
def test_duplicating_all_rows_changes_nothing(word: str) -> None:
    one, x = measured(shrinkage=0.0, prior_rows=0.0, trust=0.0), images(3)
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(4)) if word == "balanced" else None
    if logits is not None:  # a composition is estimated from a number of rows: with certainty that plays no part
        logits = logits.softmax(1).mul(60)
        one[1].context.tuning = replace(one[1].context.tuning, evenness=1e-6)
    single = run(one, word, x, logits=logits)
    double = run(one, word, x.repeat(2, 1, 1, 1), CONTROLS.repeat(2), None if logits is None else logits.repeat(2, 1))
    torch.testing.assert_close(double[:10], single, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("word", ["shrunk", "balanced"])
@pytest.mark.parametrize("said", [False, True])
def test_plates_in_chunks_and_several_plates_at_once_are_normalized_as_by_themselves(word: str, said: bool) -> None:
    one, x, y = measured(), images(3), images(4)
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(4)) if said else None
    first = run(one, word, x, logits=None if logits is None else logits[:10])
    second = run(one, word, y, logits=None if logits is None else logits[10:])
    mixture = Statistics(word).mixture(one, CONTROLS, None if logits is None else logits[:10])
    weights = None if mixture.weights is None else mixture.weights.split([3, 7])
    chunks = whole_plate_forward(one, x.split([3, 7]), weights=weights, correction=mixture.correction)
    torch.testing.assert_close(torch.cat(chunks), first)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    both, groups = torch.cat([x, y])[order], torch.tensor([8] * 10 + [3] * 10)[order]
    with (
        torch.no_grad(),
        Statistics(word).of(one, groups, CONTROLS.repeat(2)[order], None if logits is None else logits[order]),
    ):
        torch.testing.assert_close(one(both), torch.cat([first, second])[order])


def test_a_plate_of_one_image_is_normalized_by_the_prior_mostly() -> None:
    one = measured(shrinkage=1.0)
    found = run(one, "shrunk", images(3, 1), torch.zeros(1, dtype=torch.int8))
    assert found.isfinite().all()
    one = convert(nn.Sequential(nn.BatchNorm1d(2)).double()).eval()
    pair = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).double()
    measure_plates(one, [[(pair, torch.tensor([0, 1]), torch.zeros(2))]], num_classes=2)
    found = run(one, "shrunk", pair[:1], torch.zeros(1, dtype=torch.int8))  # mean 1.5 and 3, variance 0.5 and 2
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), -(0.5**0.5)]]).double(), rtol=1e-4, atol=1e-4)


def test_compositions_are_found_where_predictions_are_certain() -> None:
    tuning = Tuning((0.25, 0.25, 0.25, 0.25, 0.0), evenness=1.0)
    labels = torch.tensor([0] * 30 + [1] * 10)
    logits = 50.0 * nn.functional.one_hot(labels, 5)
    found, inverse = estimate_composition(logits, tuning)
    predicted, expected = torch.tensor([0.75, 0.25, 0, 0, 0]), torch.tensor(tuning.treated)
    uneven = (predicted - expected).square().sum() / 0.75
    concentration = (1 - 1 / 40) / (uneven - 1 / 40) - 1  # the moments of a Dirichlet and multinomial, solved for it
    torch.testing.assert_close(found, ((40 * predicted + concentration * expected) / (40 + concentration)).double())
    assert inverse == pytest.approx(float(1 / (concentration + 1)))
    assert found.sum() == pytest.approx(1)
    assert found[4] == 0  # controls are no treated rows
    even = 50.0 * nn.functional.one_hot(torch.arange(40) % 4, 5)
    torch.testing.assert_close(estimate_composition(even, tuning)[0], expected.double(), rtol=1e-4, atol=1e-4)


def test_what_is_known_of_training_plates_survives_a_file(tmp_path) -> None:
    one, x = measured(shrinkage=3.0, prior_rows=2.0, fitted=True), images(3)
    torch.save(tuning_state(one), tmp_path / "state.pt")
    other = network()
    load_tuning(other, torch.load(tmp_path / "state.pt", weights_only=True))
    assert other[1].context.tuning == one[1].context.tuning
    for word in ("shrunk", "balanced"):
        torch.testing.assert_close(run(other, word, x), run(one, word, x), rtol=1e-2, atol=1e-2)  # halves in the file
    copied = copy.deepcopy(one)
    torch.testing.assert_close(run(copied, "shrunk", x), run(one, "shrunk", x))


def test_what_is_missing_is_said_with_what_to_run() -> None:
    one, x = network(), images(3)
    for word in ("shrunk", "balanced"):
        with pytest.raises(ConfigError, match=word) as error:
            run(one, word, x)
        assert error.value.advice == "tune"
    with (
        pytest.raises(ConfigError, match="no stored moments"),
        plate_statistics(one, PLATE, "shrunk", correction=Correction(share=torch.ones(1, 1).double())),
    ):
        one(x)
    with pytest.raises(ConfigError, match=r"Statistics\.of"), plate_statistics(one, PLATE, "balanced"):
        pass
    trained = measured().train()
    with pytest.raises(ConfigError, match="training mode"), Statistics("shrunk").of(trained, PLATE, CONTROLS):
        trained(x)
    with pytest.raises(DataError, match="no training plates"):
        measure_plates(one, [], num_classes=2)
    with pytest.raises(CheckpointError, match="another network"):
        load_tuning(convert(nn.BatchNorm2d(3)), tuning_state(measured()) or {})
    with pytest.raises(CheckpointError, match="another network"):
        load_tuning(one, {"treated": [1.0]})


def test_balanced_needs_controls_or_a_classifier_to_act() -> None:
    none = torch.zeros(10, dtype=torch.int8)
    one, x = measured(shrinkage=0.0, prior_rows=0.0), images(3)
    torch.testing.assert_close(run(one, "balanced", x, none), run(one, "plate", x))
    mixture = balanced(Rows(none, none > 0), one[1].context.tuning)
    assert mixture.composition is not None
    assert mixture.composition.sum() == 0


@pytest.mark.parametrize(("mode", "word"), [("controls", "controls"), ("plate", "plate")])
def test_balanced_falls_back_to_a_fixed_word_where_predictions_are_not_to_be_trusted(mode: str, word: str) -> None:
    one, x = measured(prior_rows=0.0, mode=mode), images(3)
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(run(one, "balanced", x, logits=logits), run(one, word, x))
    anchored = measured(prior_rows=0.0, mode="anchor")
    torch.testing.assert_close(run(anchored, "balanced", x, logits=logits), run(anchored, "balanced", x))


def test_a_correction_may_be_taken_in_part() -> None:
    rows = Rows(CONTROLS, CONTROLS == 1)
    whole, half = (balanced(rows, Tuning((0.5, 0.5, 0.0, 0.0), strength=s)).composition for s in (1.0, 0.5))
    assert whole is not None
    torch.testing.assert_close(half, whole / 2)


def test_few_treated_rows_count_less_than_controls() -> None:
    """They cannot be composed evenly: with one of them, the controls make the statistics."""
    tuning = Tuning((0.5, 0.5, 0.0, 0.0), trust=10.0)
    for treated in (1, 4, 400):
        controls = torch.tensor([0] * treated + [1, 1], dtype=torch.int8)
        logits = 50.0 * nn.functional.one_hot(torch.arange(treated + 2) % 2, 4)
        weights = balanced(Rows(controls, controls == 1, logits), tuning).weights
        assert weights is not None
        uneven = 1.0 if treated == 1 else 1 / treated  # two classes alike, as in training
        torch.testing.assert_close(weights[-1] / weights[0], torch.tensor(1 + 10 * uneven).double())
