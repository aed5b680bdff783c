"""Batch norm of several groups on a CPU, at the cost of plain batch norm: piece by piece, each small enough for a cache.

The same mathematics as :class:`biomass.norms.plate_batch_norm.PlateBatchNorm` writes with operators, which stay its
reference. There an operator reads the whole batch from memory and writes it back, ten times a step; here a *piece* of
it, a few rows of one group that count alike, is read once for its moments, and once for the output, by the native
kernels of batch norm, which write into their part of the output. The backward pass reads a piece for its sums, and
again for its gradient. Between them the moments of K pieces become those of G groups, in float64 and in a fixed order.

Let piece k of group g have the mean ``m_k``, the biased variance ``v_k`` and the weight ``a_k``, the sum of those of
its rows. Then, by the law of total variance, ``mu_g = sum of a_k m_k`` and ``var_g = sum of a_k (v_k + (m_k - mu_g)^2)``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIECE = 1 << 18
"""Values of a piece, at most (but a row at least): of float32 as much as a core's own cache holds."""

SHORT = 4
"""Stretches of fewer rows are gathered into pieces, as a piece costs some microseconds of its own."""

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Run(NamedTuple):
    """Rows of a batch that are of one group and count alike: a stretch of the batch, or any of its rows.

    Attributes:
        rows: which they are.
        length: how many.
        group: dense number of their group.
        weight: of each of them, where the rows of a group have a sum of 1.
    """

    rows: slice | Tensor
    length: int
    group: int
    weight: float


class Piece(NamedTuple):
    """A few rows of a run."""

    rows: slice | Tensor
    length: int
    group: int
    weight: float


def runs_of(group: Tensor, weight: Tensor) -> tuple[Run, ...]:
    """The runs of a batch of N rows.

    Args:
        group: (N,) dense number of the group of each row.
        weight: (N,) float64, with a sum of 1 in each group.

    >>> [(r.rows, r.group) for r in runs_of(torch.tensor([1, 1, 1, 1, 0, 1]), torch.tensor([0.2] * 4 + [1, 0.2]))]
    [(slice(0, 4, None), 1), (slice(4, 5, None), 0), (slice(5, 6, None), 1)]
    """
    numbers, weights = group.tolist(), weight.tolist()
    starts = [i for i in range(len(numbers)) if not i or (numbers[i], weights[i]) != (numbers[i - 1], weights[i - 1])]
    runs: list[Run] = []
    short: dict[tuple[int, float], list[int]] = {}
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        if stop - start < SHORT:
            short.setdefault((numbers[start], weights[start]), []).extend(range(start, stop))
        else:
            runs.append(Run(slice(start, stop), stop - start, numbers[start], weights[start]))
    for (number, share), rows in short.items():
        together = rows[-1] - rows[0] + 1 == len(rows)
        which = slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)
        runs.append(Run(which, len(rows), number, share))
    return tuple(runs)


def fits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _TYPES and x.numel() > 0


def _cut(runs: Sequence[Run], row: int) -> list[Run]:
    """The pieces of runs of rows with ``row`` values each."""
    most = max(PIECE // row, 1)
    pieces = []
    for run in runs:
        for start in range(0, run.length, most):
            n = min(most, run.length - start)
            if isinstance(run.rows, slice):
                rows: slice | Tensor = slice(run.rows.start + start, run.rows.start + start + n)
            else:
                rows = run.rows[start : start + n]
            pieces.append(Run(rows, n, run.group, run.weight))
    return pieces


class _Rows:
    """A tensor (N, C, *S) in one of the two usual orders, of which some rows are taken or written."""

    def __init__(self, x: Tensor, last: bool) -> None:
        self.last = last
        self.x = x.permute(0, 2, 3, 1) if last else x

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        found = self.x[rows] if isinstance(rows, slice) else self.x.index_select(0, rows)
        return found.permute(0, 3, 1, 2) if self.last else found

    def put(self, rows: Tensor, values: Tensor) -> None:
        self.x.index_copy_(0, rows, values.permute(0, 2, 3, 1) if self.last else values)


def _sums(a: Tensor, x: Tensor, mean: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``a`` and of ``a (x - mean)`` over all but the channels: what batch norm's backward pass begins with."""
    _, dot, total = torch.ops.aten.native_batch_norm_backward(
        a, x, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return total, dot


def _affine(x: Tensor, scale: Tensor, shift: Tensor, still: tuple[Tensor, Tensor, Tensor], out: Tensor) -> Tensor:
    """``x * scale + shift``: batch norm with a mean of 0 and a variance of 1."""
    if x.dtype == scale.dtype and not x.is_contiguous():
        shape = (-1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.view(shape), x, scale.view(shape), out=out)
    zero, one, empty = still
    return torch.native_batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, out=(out, empty, empty))[0]


class PieceNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, runs: Sequence[Run], groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        last = not x.is_contiguous() and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not last:
            x = x.contiguous()
        c, values = x.shape[1], x.shape[2:].numel()
        work = torch.promote_types(x.dtype, torch.float32)
        pieces = _cut(runs, c * values)
        zero, one = x.new_zeros(c, dtype=work), x.new_ones(c, dtype=work)
        still = zero, one, x.new_empty(0, dtype=work)
        read = _Rows(x, last)
        shape = (-1, *(1 for _ in x.shape[2:]))
        dims = (0, *range(2, x.dim()))
        found = []
        for piece in pieces:
            part = read[piece.rows].to(work)
            offset = part[:1].mean(dims)
            part = part - offset.view(shape)
            found.append(torch.stack([offset, *_sums(part, part, zero, one)]))
        offset, total, square = torch.stack(found, 1).double()
        lengths = torch.tensor([piece.length for piece in pieces], dtype=torch.float64)
        count = lengths[:, None] * values
        step = total / count
        mean, var = offset + step, (square / count - step.square()).clamp_(min=0)
        group = torch.tensor([piece.group for piece in pieces])
        share = torch.tensor([piece.weight for piece in pieces], dtype=torch.float64)
        average = torch.zeros(groups, len(pieces), dtype=torch.float64)
        average[group, torch.arange(len(pieces))] = share * lengths
        group_mean = average @ mean
        rstd = (average @ (var + (mean - group_mean[group]).square()) + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight.double()
        shift = -group_mean * scale if bias is None else bias.double() - group_mean * scale
        scale, shift = scale.to(work), shift.to(work)
        y = torch.empty_like(x)
        write = _Rows(y, last)
        for piece in pieces:
            part = read[piece.rows]
            given = scale[piece.group], shift[piece.group], still
            if isinstance(piece.rows, slice):
                _affine(part, *given, out=write[piece.rows])
            else:
                write.put(piece.rows, _affine(part, *given, out=torch.empty_like(part)))
        ctx.save_for_backward(x, weight, group_mean, rstd)
        ctx.pieces, ctx.still, ctx.last = pieces, still, last
        ctx.mark_non_differentiable(mean, var, lengths)
        return y, mean, var, lengths

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        work = rstd.new_empty(0).to(ctx.still[0].dtype).dtype
        zero, one, _ = ctx.still
        last = ctx.last
        grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        read, read_grad = _Rows(x, last), _Rows(grad, last)
        values = x.shape[2:].numel()
        shape = (-1, *(1 for _ in x.shape[2:]))
        centre = mean.to(work)
        sums = [
            torch.stack(_sums(read_grad[p.rows], read[p.rows], centre[p.group], one)) for p in ctx.pieces
        ]
        total, dot = torch.stack(sums, 1).double()
        group = torch.tensor([p.group for p in ctx.pieces])
        total = torch.zeros_like(mean).index_add_(0, group, total)
        dot = torch.zeros_like(mean).index_add_(0, group, dot)
        scale = rstd if weight is None else rstd * weight.double()
        from_mean, from_var = -total * scale / values, -dot * scale * rstd.square() / values
        shift = (from_mean - mean * from_var)
        slope = scale.to(work)
        out = torch.empty_like(x)
        write = _Rows(out, last)
        for p in ctx.pieces:
            g = read_grad[p.rows].to(work)
            here = write[p.rows] if isinstance(p.rows, slice) and x.dtype == work else torch.empty_like(g)
            s = slope[p.group].view(shape)
            if p.weight:
                w = (torch.stack([from_var[p.group], shift[p.group]]) * p.weight).to(work)
                _affine(read[p.rows].to(work), w[0], w[1], ctx.still, out=here).addcmul_(g, s)
            else:
                torch.mul(g, s, out=here)
            if isinstance(p.rows, Tensor):
                write.put(p.rows, here.to(x.dtype))
            elif x.dtype != work:
                write[p.rows].copy_(here)
        return (
            out,
            None if weight is None else (dot * rstd).sum(0).to(weight.dtype),
            None if weight is None or not ctx.needs_input_grad[2] else total.sum(0).to(weight.dtype),
            None,
            None,
            None,
        )
