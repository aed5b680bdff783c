"""Batch norm of several groups on a CPU, in as many passes over the images as plain batch norm takes.

The same mathematics as :class:`biomass.norms.plate_batch_norm.PlateBatchNorm` writes with operators, which stay its
reference. Each of those reads the whole batch from memory, and writes as much. Here a *piece* of the batch, a few rows
of one group that count alike, is small enough for a core's cache, and goes through the kernels of plain batch norm: one
takes its moments, one writes its part of the output; in the backward pass one takes its sums, and two write its part of
the gradient. In between the moments of K pieces become those of G groups, in float64 and in an order that never varies.

Let a piece of ``n`` rows, each of the weight ``w``, have mean ``m`` and biased variance ``v``. By the law of total
variance its group has the mean ``mu``, the sum of ``n w m`` over the pieces, and the variance, the sum of
``n w (v + (m - mu)^2)``. The gradient of ``y = (x - mu) / sqrt(var + eps) * weight + bias`` is linear in ``x`` and in
the gradient of ``y``, with three coefficients a group and channel; what the statistics pass on is in proportion to w.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 20
"""Bytes of a piece, at most (but a row at least)."""

SHORT = 4
"""Fewer rows than these in a stretch are gathered from all over the batch: a piece costs some time of its own."""

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Run(NamedTuple):
    """Rows of a batch that are of one group and count alike.

    Attributes:
        rows: which they are: a stretch of the batch, or (n,) int64 any of its rows.
        length: how many, n.
        group: dense number of their group.
        weight: of each of them; those of a group have a sum of 1.
    """

    rows: slice | Tensor
    length: int
    group: int
    weight: float


def runs_of(group: Tensor, weight: Tensor) -> tuple[Run, ...] | None:
    """The N rows of a batch as runs; None where there are so many of them that nothing is gained.

    Args:
        group: (N,) dense number of the group of each row.
        weight: (N,) float64, with a sum of 1 in each group.

    >>> for run in runs_of(torch.tensor([0, 1, 0, 1, 1, 1, 1]), torch.tensor([0.5, 0.2, 0.5, 0.2, 0.2, 0.2, 0.2])):
    ...     print(run.group, run.rows)
    1 slice(3, 7, None)
    0 tensor([0, 2])
    1 slice(1, 2, None)
    """
    kinds = list(zip(group.tolist(), weight.tolist(), strict=True))
    starts = [i for i, kind in enumerate(kinds) if not i or kind != kinds[i - 1]]
    runs: list[Run] = []
    scattered: dict[tuple[int, float], list[int]] = {}
    for start, stop in zip(starts, [*starts[1:], len(kinds)], strict=True):
        if stop - start < SHORT:
            scattered.setdefault(kinds[start], []).extend(range(start, stop))
        else:
            runs.append(Run(slice(start, stop), stop - start, *kinds[start]))
    for kind, rows in scattered.items():
        stretch = rows[-1] - rows[0] + 1 == len(rows)
        runs.append(Run(slice(rows[0], rows[-1] + 1) if stretch else torch.tensor(rows), len(rows), *kind))
    return tuple(runs) if len(scattered) <= max(len(kinds) // SHORT, 8) else None


def fits(x: Tensor) -> bool:
    """Whether ``x`` (N, C, *S) can be taken to pieces: on a CPU, dense in one of the two usual orders."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.device.type == "cpu" and x.dtype in _TYPES and x.dim() > 2 and x.numel() > 0 and dense


def cut(runs: Sequence[Run], row: int) -> list[Run]:
    """Pieces of the runs, none of more than ``PIECE`` bytes; a row has ``row`` bytes.

    >>> cut([Run(slice(0, 3), 3, 0, 1 / 3)], PIECE // 2)[1]
    Run(rows=slice(2, 3, None), length=1, group=0, weight=0.3333333333333333)
    """
    most = max(PIECE // row, 1)
    pieces = []
    for run in runs:
        for start in range(0, run.length, most):
            stop = min(start + most, run.length)
            if isinstance(run.rows, slice):
                rows: slice | Tensor = slice(run.rows.start + start, run.rows.start + stop)
            else:
                rows = run.rows[start:stop]
            pieces.append(run._replace(rows=rows, length=stop - start))
    return pieces


def _lying(x: Tensor) -> Tensor:
    """``x`` with its axes in the order in which it lies in memory."""
    return x if x.is_contiguous() else x.movedim(1, -1)


def _take(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of ``x``, in its memory format: a stretch as a view, others as a copy."""
    if isinstance(rows, slice):
        return x[rows]
    found = _lying(x).index_select(0, rows)
    return found if x.is_contiguous() else found.movedim(-1, 1)


def _part(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Where to write what belongs into some rows of ``x``; :func:`_put` brings it there, if it is not there already."""
    return x[rows] if isinstance(rows, slice) else torch.empty_like(_take(x, rows))


def _put(x: Tensor, rows: slice | Tensor, part: Tensor) -> None:
    if not isinstance(rows, slice):
        _lying(x).index_copy_(0, rows, part if x.is_contiguous() else part.movedim(1, -1))


class _Fixed(NamedTuple):
    """What the native kernels must be given where it is to have no effect: (C,) zeros, ones, and nothing."""

    zero: Tensor
    one: Tensor
    empty: Tensor


def _sums(a: Tensor, x: Tensor, mean: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``a`` and of ``a (x - mean)`` a channel: what the backward pass of batch norm begins with, by itself."""
    only = [False, True, True]
    _, dot, total = torch.ops.aten.native_batch_norm_backward(a, x, one, None, None, mean, one, True, 0.0, only)
    return total, dot


def _moments(x: Tensor, fixed: _Fixed) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, in at least float32."""
    if x.dtype == fixed.one.dtype and x.is_contiguous():  # a third of the native kernel's time
        dims = (0, *range(2, x.dim()))
        offset = x[:1].mean(dims, keepdim=True)  # relative to a near mean, so that a common offset costs no digits
        total, square = _sums(x - offset, x, offset.flatten(), fixed.one)
        values = x.numel() // x.shape[1]
        step = total / values
        return offset.flatten() + step, (square / values - step.square()).clamp_(min=0)
    # running averages of a longer type, which are moved by a share of 0, make it answer in that type
    mean, var = torch.batch_norm_update_stats(x, fixed.zero.clone(), fixed.one.clone(), 0.0)
    return mean, var


def _affine(x: Tensor, scale: Tensor, shift: Tensor, fixed: _Fixed, out: Tensor) -> Tensor:
    """``x * scale + shift``, rounded once: batch norm with a mean of 0 and a variance of 1."""
    if x.dtype == scale.dtype and not x.is_contiguous():
        shape = (-1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.view(shape), x, scale.view(shape), out=out)
    rest = fixed.zero, fixed.one, False, 0.0, 0.0
    return torch.native_batch_norm(x, scale, shift, *rest, out=(out, fixed.empty, fixed.empty))[0]


class PieceNorm(torch.autograd.Function):
    """Batch norm of several groups at once, see the module; x (N, C, *S) is all that is kept for the backward pass.

    Beside the output it returns mean and biased variance of the whole batch, (C,) float64, without a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, runs: Sequence[Run], groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = x.shape[1]
        pieces = cut(runs, x[0].numel() * x.element_size())
        work = torch.promote_types(x.dtype, torch.float32)
        fixed = _Fixed(*(torch.full((n,), n_th, dtype=work) for n, n_th in ((c, 0.0), (c, 1.0), (0, 0.0))))
        found = [_moments(_take(x, piece.rows), fixed) for piece in pieces]
        mean, var = (torch.stack(one).double() for one in zip(*found, strict=True))
        of_group = torch.tensor([piece.group for piece in pieces])
        number = torch.tensor([piece.length for piece in pieces], dtype=torch.float64)
        share = number * torch.tensor([piece.weight for piece in pieces], dtype=torch.float64)
        average = torch.zeros(groups, len(pieces), dtype=torch.float64)
        average[of_group, torch.arange(len(pieces))] = share
        group_mean = average @ mean
        rstd = (average @ (var + (mean - group_mean[of_group]).square()) + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight.double()
        shift = -group_mean * scale if bias is None else bias.double() - group_mean * scale
        y = torch.empty_like(x)
        for piece, a, b in zip(pieces, scale.to(work)[of_group], shift.to(work)[of_group], strict=True):
            part = _part(y, piece.rows)
            _put(y, piece.rows, _affine(_take(x, piece.rows), a, b, fixed, part))
        ctx.save_for_backward(x, weight, group_mean, rstd, of_group)
        ctx.pieces, ctx.fixed = pieces, fixed
        alike = number / len(x)
        batch_mean = alike @ mean
        batch_var = alike @ (var + (mean - batch_mean).square())
        ctx.mark_non_differentiable(batch_mean, batch_var)
        return y, batch_mean, batch_var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, of_group = ctx.saved_tensors
        pieces, fixed = ctx.pieces, ctx.fixed
        work = fixed.one.dtype
        grad = grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)
        found = [
            _sums(_take(grad, piece.rows), _take(x, piece.rows), centre, fixed.one)
            for piece, centre in zip(pieces, mean.to(work)[of_group], strict=True)
        ]
        total, dot = (torch.zeros_like(mean).index_add_(0, of_group, torch.stack(one).double()) for one in zip(*found, strict=True))
        scale = rstd if weight is None else rstd * weight.double()
        values = x.shape[2:].numel()
        from_var = -dot * scale * rstd.square() / values
        shift = -total * scale / values - mean * from_var
        slopes, near, far = (one.to(work) for one in (scale, from_var, shift))
        out = torch.empty_like(x)
        shape = (-1, *(1 for _ in x.shape[2:]))
        for piece in pieces:
            own, part, slope = _take(grad, piece.rows), _part(out, piece.rows), slopes[piece.group]
            if not piece.weight:
                _affine(own, slope, fixed.zero, fixed, part)
            else:
                w = piece.weight
                _affine(_take(x, piece.rows), near[piece.group] * w, far[piece.group] * w, fixed, part)
                if x.dtype == work:
                    part.addcmul_(own, slope.view(shape))
                else:  # two terms of 16 bits, each rounded: wider ones would cost another pass in memory
                    part.add_(_affine(own, slope, fixed.zero, fixed, torch.empty_like(own)))
            _put(out, piece.rows, part)
        return (
            out,
            None if weight is None else (dot * rstd).sum(0).to(weight.dtype),
            None if weight is None or not ctx.needs_input_grad[2] else total.sum(0).to(weight.dtype),
            *(None,) * 3,
        )
