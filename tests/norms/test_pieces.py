"""Batch norm piece by piece against the operators that it stands for, in float64."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from biomass.norms import PlateBatchNorm, convert, pieces, plate_statistics

FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ORDERS = {
    "in order": [0] * 9 + [1] * 10 + [2] * 5,
    "twice each": ([0] * 5 + [1] * 5) * 2 + [2] * 4,
    "scattered": [0] * 9 + [1] * 8 + [2, 1, 2, 0, 2, 2, 0],
}
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def results(
    x: Tensor, grad: Tensor, plates: Tensor, weights: Tensor | None, by_operators: bool
) -> tuple[list[Tensor], PlateBatchNorm]:
    """Output, gradients and running averages."""
    norm = convert(nn.BatchNorm2d(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-1, 2, len(norm.bias)))
    x = x.detach().requires_grad_()
    with plate_statistics(norm, plates, weights=weights):
        rows = norm.context.rows
        assert rows.runs is not None
        if by_operators:
            norm.context.rows = dataclasses.replace(rows, runs=None)
        y = norm(x)
    found = [y.detach(), *torch.autograd.grad(y, [x, norm.weight, norm.bias], grad.to(y.dtype))]
    return [*found, norm.running_mean, norm.running_var], norm


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("size", [600, 2**20], ids=["a row or two a piece", "a run a piece"])
def test_pieces_equal_the_operators(
    order: str, form: str, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    generator = torch.Generator().manual_seed(0)
    plates = torch.tensor(ORDERS[order])
    x = torch.randn(24, 7, 6, 5, generator=generator) * 2 + 3 + torch.randn(24, 7, 1, 1, generator=generator)
    x = x.to(dtype).to(memory_format=FORMS[form])
    grad = torch.randn(x.shape, generator=generator).to(dtype)
    for weights in (None, (torch.arange(24) % 2 + torch.arange(24) // 12) * 1.5):  # of 0, 1.5 and 3
        right, _ = results(x.double(), grad, plates, weights, by_operators=True)
        found, _ = results(x, grad, plates, weights, by_operators=False)
        assert found[0].stride() == found[1].stride() == x.stride()
        assert found[0].dtype == found[1].dtype == dtype
        for one, (ours, exact) in enumerate(zip(found, right, strict=True)):
            bound = ROUNDING[dtype] if one < 2 else min(ROUNDING[dtype], 2e-6)  # all sums are at least of float32
            assert (ours.double() - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_a_common_offset_costs_no_more_digits_than_in_plain_batch_norm(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(12, 3, 16, 16, dtype=torch.float64, generator=generator) + 1e3
    x = exact.float().to(memory_format=FORMS[form])
    plates = torch.arange(3).repeat_interleave(4)
    norm = convert(nn.BatchNorm2d(3))
    with plate_statistics(norm, plates):
        y = norm(x)
    plain = torch.cat([nn.functional.batch_norm(part, None, None, training=True) for part in x.split(4)])
    right = torch.cat([nn.functional.batch_norm(part, None, None, training=True) for part in x.double().split(4)])
    assert (y - right).abs().max() <= 2 * (plain - right).abs().max() + 1e-4


def test_other_layouts_and_orders_without_gain_go_by_operators() -> None:
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert pieces.fits(x)
    assert not pieces.fits(x[:, :, ::2])
    assert not pieces.fits(x[:0])
    alone = torch.arange(40)
    assert pieces.runs_of(alone, torch.ones(40).double(), 40) is None
    assert pieces.runs_of(alone // 4, torch.ones(40).double() / 4, 10) is not None


def test_rows_are_cut_where_group_or_weight_change() -> None:
    runs = pieces.runs_of(torch.tensor([0] * 6 + [1] * 5), torch.tensor([1 / 6] * 6 + [0.0] * 4 + [1.0]).double(), 2)
    cut = runs.cut(pieces.PIECE // 4)  # four rows a piece
    assert [(piece.rows.start, piece.rows.stop, piece.group) for piece in cut.runs] == [
        (0, 4, 0),
        (4, 6, 0),
        (6, 10, 1),
        (10, 11, 1),
    ]
    assert cut.lengths == [4, 2, 4, 1]
    torch.testing.assert_close(cut.average[:2].sum(1), torch.ones(2).double())
    torch.testing.assert_close(cut.average[2], torch.tensor([4, 2, 4, 1]).double() / 11)
    assert cut is runs.cut(pieces.PIECE // 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_given_statistics_normalize_as_addcmul_does_bit_by_bit(form: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = convert(nn.BatchNorm2d(5)).eval()
    x = torch.randn(4, 5, 6, 6, generator=generator).to(dtype).to(memory_format=FORMS[form])
    for shape in ((5,), (4, 5)):
        mean, var = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) + 0.1
        scale = (var.double() + norm.eps).rsqrt()
        shift = -mean.double() * scale
        wide = (one.float().view(-1, 5, 1, 1) for one in (shift, scale))
        shift, scale = wide
        y = norm.normalize(x, mean, var)
        assert torch.equal(y, torch.addcmul(shift, x.float(), scale).to(dtype))
        assert y.stride() == x.stride()
