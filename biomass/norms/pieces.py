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

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 21
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


class Pieces(NamedTuple):
    """A batch of N rows and G groups, cut into K pieces.

    Attributes:
        runs: the pieces.
        lengths: of the pieces, where they are one stretch after the other and make up the batch; else None.
        group: (K,) int64, of each piece.
        weight: (K, 1) float64, of each row of a piece.
        average: (G + 1, K) float64: the weight of each piece in the moments of its group and, last, of all rows alike.
        members: (G, K) float64, 1 for the pieces of a group.
    """

    runs: list[Run]
    lengths: list[int] | None
    group: Tensor
    weight: Tensor
    average: Tensor
    members: Tensor


class Runs:
    """The N rows of a batch as runs; how they are cut depends on the size of a row, and is kept for the next layer.

    Attributes:
        alike: each group is one run, whose rows all count.
    """

    def __init__(self, runs: Sequence[Run], groups: int) -> None:
        self.runs, self.groups = runs, groups
        self.alike = len(runs) == groups and all(run.weight for run in runs)
        self._cut: dict[int, Pieces] = {}

    def cut(self, row: int) -> Pieces:
        """The pieces where a row has ``row`` bytes."""
        if row not in self._cut:
            self._cut[row] = self._pieces(max(PIECE // row, 1))
        return self._cut[row]

    def _pieces(self, most: int) -> Pieces:
        pieces = [_some(run, start, most) for run in self.runs for start in range(0, run.length, most)]
        ends = list(itertools.accumulate(piece.length for piece in pieces))
        in_order = all(isinstance(p.rows, slice) and p.rows.stop == end for p, end in zip(pieces, ends, strict=True))
        group = torch.tensor([piece.group for piece in pieces])
        length, weight = torch.tensor([(piece.length, piece.weight) for piece in pieces], dtype=torch.float64).T
        members = (group == torch.arange(self.groups)[:, None]).double()
        average = torch.cat([members * length * weight, length[None] / ends[-1]])
        lengths = [piece.length for piece in pieces] if in_order else None
        return Pieces(pieces, lengths, group, weight[:, None], average, members)


def _some(run: Run, start: int, most: int) -> Run:
    """Rows of a run from ``start`` on, at most ``most``."""
    stop = min(start + most, run.length)
    first = run.rows.start if isinstance(run.rows, slice) else 0
    rows = slice(first + start, first + stop) if isinstance(run.rows, slice) else run.rows[start:stop]
    return run._replace(rows=rows, length=stop - start)


def runs_of(group: Tensor, weight: Tensor, groups: int) -> Runs | None:
    """The N rows of a batch as runs; None where there are so many of them that nothing is gained.

    Args:
        group: (N,) dense number of the group of each row.
        weight: (N,) float64, with a sum of 1 in each group.
        groups: how many there are.

    >>> group = torch.tensor([0, 1, 0, 1, 1, 1, 1])
    >>> for run in runs_of(group, torch.tensor([1 / 2, 1 / 5])[group], 2).runs:
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
    return Runs(runs, groups) if len(scattered) <= max(len(kinds) // SHORT, 8) else None


def fits(x: Tensor) -> bool:
    """Whether ``x`` (N, C, *S) can be taken to pieces: on a CPU, dense in one of the two usual orders."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.device.type == "cpu" and x.dtype in _TYPES and x.dim() > 2 and x.numel() > 0 and dense


def _take(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of ``x``, in its memory format: a stretch as a view, others as a copy."""
    if isinstance(rows, slice):
        return x[rows]
    if x.is_contiguous():
        return x.index_select(0, rows)
    return x.movedim(1, -1).index_select(0, rows).movedim(-1, 1)


def _parts(x: Tensor, pieces: Pieces) -> Sequence[Tensor]:
    """What is in ``x`` of each piece."""
    if pieces.lengths is not None:
        return x.split(pieces.lengths)
    return [_take(x, piece.rows) for piece in pieces.runs]


def _room(x: Tensor, pieces: Pieces) -> Sequence[Tensor]:
    """Where each piece is to be written: its place in ``x``, or memory of its own, for :func:`_put`."""
    if pieces.lengths is not None:
        return x.split(pieces.lengths)
    return [x[p.rows] if isinstance(p.rows, slice) else torch.empty_like(x[: p.length]) for p in pieces.runs]


def _put(x: Tensor, rows: slice | Tensor, part: Tensor) -> None:
    """Bring a piece that was written elsewhere to its place in ``x``."""
    if not isinstance(rows, slice):
        every = x.unbind(0)  # row by row, which is twice as fast as index_copy
        torch._foreach_copy_([every[row] for row in rows.tolist()], part.unbind(0))


class _Fixed(NamedTuple):
    """What the native kernels must be given where it is to have no effect: (C,) zeros, ones, and nothing."""

    zero: Tensor
    one: Tensor
    empty: Tensor


def _fixed(x: Tensor) -> _Fixed:
    c, work = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    return _Fixed(x.new_zeros(c, dtype=work), x.new_ones(c, dtype=work), x.new_empty(0, dtype=work))


def _sums(a: Tensor, x: Tensor, mean: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``a`` and of ``a (x - mean)`` a channel: what the backward pass of batch norm begins with, by itself."""
    only = [False, True, True]
    _, dot, total = torch.ops.aten.native_batch_norm_backward(a, x, one, None, None, mean, one, True, 0.0, only)
    return total, dot


def _moments(x: Tensor, fixed: _Fixed) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, in at least float32."""
    if x.dtype == fixed.one.dtype and x.is_contiguous() and x.shape[2:].numel() > 4:  # a fourth of its time there
        dims = (0, *range(2, x.dim()))
        centre = x.mean(dims, keepdim=True)
        return centre.flatten(), (x - centre).square_().mean(dims)
    # running averages of a longer type, moved by a share of 0, make it answer in that type
    wide = x.dtype == fixed.one.dtype
    running_mean, running_var = (None, None) if wide else (fixed.zero.clone(), fixed.one.clone())
    mean, var = torch.batch_norm_update_stats(x, running_mean, running_var, 0.0)
    return mean, var


def _affine(x: Tensor, scale: Tensor, shift: Tensor, fixed: _Fixed, out: Tensor) -> Tensor:
    """``x * scale + shift``, rounded once: batch norm with a mean of 0 and a variance of 1."""
    if x.dtype == scale.dtype and not x.is_contiguous():
        shape = (-1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.view(shape), x, scale.view(shape), out=out)
    rest = fixed.zero, fixed.one, False, 0.0, 0.0
    return torch.native_batch_norm(x, scale, shift, *rest, out=(out, fixed.empty, fixed.empty))[0]


def _pooled(parts: Sequence[Tensor], pieces: Pieces, fixed: _Fixed) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group and, last, of the batch: (G + 1, C) float64 both."""
    found = torch.stack([moment for part in parts for moment in _moments(part, fixed)]).double()
    mean, var = found[::2], found[1::2]
    far = mean - mean[0]  # relative to a near mean; float64 has digits enough for how far those of groups are
    step = pieces.average @ far
    var = torch.addcmul(pieces.average @ torch.addcmul(var, far, far), step, step, value=-1).clamp_(min=0)
    return step + mean[0], var


def _by_group(
    grad: Tensor, x: Tensor, runs: Sequence[Run], weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``x`` (N, C, *S), weight and bias (C,) where each of G groups is a run.

    They are those of plain batch norm over its rows, with the moments (G, C) that normalized them.

    Values of 16 bits are taken to 32 and back in every operation, which is most of the time: this is one, not four.
    """
    gradient, of_weight, of_bias = torch.empty_like(x), [], []
    for run in runs:
        given = _take(grad, run.rows), _take(x, run.rows), weight, None, None, mean[run.group], rstd[run.group]
        part, *of_affine = torch.ops.aten.native_batch_norm_backward(*given, True, 0.0, [True, True, True])
        if isinstance(run.rows, slice):
            gradient[run.rows] = part
        else:
            _put(gradient, run.rows, part)
        of_weight.append(of_affine[0].double())
        of_bias.append(of_affine[1].double())
    return gradient, torch.stack(of_weight).sum(0), torch.stack(of_bias).sum(0)


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift``, (C,) each, in the type of ``x``; the same bits as ``addcmul``, in a fourth of its time.

    >>> affine(torch.ones(1, 2, 1), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])).flatten().tolist()
    [2.0, 4.0]
    """
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0)[0]


class PieceNorm(torch.autograd.Function):
    """Batch norm of several groups at once, see the module; x (N, C, *S) is all that is kept for the backward pass.

    Beside the output it returns mean and biased variance of the whole batch, (C,) float64, without a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, runs: Runs, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        pieces = runs.cut(x[:1].numel() * x.element_size())
        fixed = _fixed(x)
        work = fixed.one.dtype
        parts = _parts(x, pieces)
        mean, var = _pooled(parts, pieces, fixed)
        rstd = (var[:-1] + eps).rsqrt_()
        scale = rstd if weight is None else rstd * weight
        shift = -mean[:-1] * scale if bias is None else bias - mean[:-1] * scale
        y = torch.empty_like(x)
        coefficients = zip(*torch.stack([scale, shift]).to(work)[:, pieces.group], strict=True)
        for number, (part, out, (a, b)) in enumerate(zip(parts, _room(y, pieces), coefficients, strict=True)):
            _affine(part, a, b, fixed, out)
            _put(y, pieces.runs[number].rows, out)
        ctx.save_for_backward(x, weight, mean[:-1], rstd)
        ctx.runs, ctx.pieces, ctx.fixed = runs, pieces, fixed
        batch_mean, batch_var = mean[-1].clone(), var[-1].clone()
        ctx.mark_non_differentiable(batch_mean, batch_var)
        return y, batch_mean, batch_var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        pieces, fixed = ctx.pieces, ctx.fixed
        work = fixed.one.dtype
        grad = grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)
        if ctx.runs.alike and x.dtype != work:
            scale = fixed.one if weight is None else weight.to(work)
            gradient, dot, total = _by_group(grad, x, ctx.runs.runs, scale, mean.to(work), rstd.to(work))
            wanted = weight is not None and ctx.needs_input_grad[2]
            return (
                gradient,
                None if weight is None else dot.to(weight.dtype),
                total.to(weight.dtype) if wanted else None,
                None,
                None,
            )
        parts, grads = _parts(x, pieces), _parts(grad, pieces)
        centres = mean.to(work)[pieces.group]
        found = [one for each in zip(grads, parts, centres, strict=True) for one in _sums(*each, fixed.one)]
        total, dot = (pieces.members @ one for one in torch.stack(found).double().view(-1, 2, len(rstd.T)).unbind(1))
        scale = rstd if weight is None else rstd * weight
        values = x.shape[2:].numel()
        from_var = dot * scale * rstd.square() / -values
        shift = total * scale / -values - mean * from_var
        own, of_x, of_1 = (one[pieces.group] for one in (scale, from_var, shift))
        coefficients = zip(*torch.stack([own, of_x * pieces.weight, of_1 * pieces.weight]).to(work), strict=True)
        gradient = torch.empty_like(x)
        shape = (-1, *(1 for _ in x.shape[2:]))
        outs = zip(parts, grads, _room(gradient, pieces), coefficients, strict=True)
        for number, (part, upper, out, (slope, a, b)) in enumerate(outs):
            if not pieces.runs[number].weight:
                _affine(upper, slope, fixed.zero, fixed, out)
            elif x.dtype == work:
                _affine(part, a, b, fixed, out).addcmul_(upper, slope.view(shape))
            else:  # each of the two terms is rounded to 16 bits: wider ones would be other passes over memory
                _affine(part, a, b, fixed, out).add_(_affine(upper, slope, fixed.zero, fixed, torch.empty_like(upper)))
            _put(gradient, pieces.runs[number].rows, out)
        return (
            gradient,
            None if weight is None else (dot * rstd).sum(0).to(weight.dtype),
            None if weight is None or not ctx.needs_input_grad[2] else total.sum(0).to(weight.dtype),
            *(None,) * 2,
        )
