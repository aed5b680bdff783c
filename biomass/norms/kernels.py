"""Batch norm of several groups on a GPU, in as many passes over the images as plain batch norm takes.

The same mathematics as :class:`biomass.norms.plate_batch_norm.PlateBatchNorm` writes with operators, which stay its
reference, and its way on other devices. Four kernels read images: in the forward pass for moments of parts of rows, and
for the output; in the backward pass for sums over parts of rows, and for the gradient. Between them a small kernel
brings the parts together for each group, in float64. Nothing is added up in an order that depends on timing: the same
bits each time.

A row is an image of the batch; a *part* is a stretch of its positions. Arrays of parts are (N, K, C): K parts a row.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # values that a program holds at once
_PROGRAMS = 2048  # at least as many, where there is enough to do, so that all multiprocessors of a large GPU are busy
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Running(NamedTuple):
    """The running averages that a forward pass moves, (C,) each, in place, and how far (0 … 1)."""

    mean: Tensor
    var: Tensor
    share: float


class _Layout(NamedTuple):
    """How a tensor (N, C, S) lies in memory, and how it is cut into tiles."""

    stride_n: int
    stride_c: int
    stride_s: int
    tile_c: int
    tile_s: int
    parts: int
    part: int
    """Positions of a part."""


def fits(x: Tensor) -> bool:
    """Whether the kernels take ``x`` (N, C, *S): on a GPU, dense in one of the two usual orders, of a known type."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.is_cuda and x.dtype in _TYPES and 2 < x.dim() < 5 and x.numel() > 0 and dense


def _layout(x: Tensor) -> _Layout:
    n, c = x.shape[:2]
    s = x.shape[2:].numel()
    last = not x.is_contiguous()
    if last:
        tile_c = min(triton.next_power_of_2(c), 128)
        tile_s = min(triton.next_power_of_2(s), _TILE // tile_c)
    else:
        tile_s = min(triton.next_power_of_2(s), _TILE)
        tile_c = min(triton.next_power_of_2(c), max(_TILE // tile_s, 1))
    tiles = triton.cdiv(s, tile_s)
    parts = min(max(_PROGRAMS // (n * triton.cdiv(c, tile_c)), 1), tiles)
    part = triton.cdiv(tiles, parts) * tile_s
    strides = (c * s, 1, c) if last else (c * s, s, 1)
    return _Layout(*strides, tile_c, tile_s, triton.cdiv(s, part), part)


@triton.jit
def _moments(
    x_ptr, mean_ptr, square_ptr, C, S, PART, stride_n, stride_c, stride_s, TILE_C: tl.constexpr, TILE_S: tl.constexpr
):
    """Mean, and sum of squared distances to it, of each part of a row and each channel.

    Values are taken relative to the mean of the part's first tile, so that a common offset costs no digits.
    """
    n, k, c = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    first = k * PART
    stop = tl.minimum(first + PART, S)
    channels = c < C
    at = x_ptr + n * stride_n + c.to(tl.int64)[:, None] * stride_c
    s = first + tl.arange(0, TILE_S)
    there = channels[:, None] & (s < stop)[None, :]
    x = tl.load(at + s.to(tl.int64)[None, :] * stride_s, mask=there, other=0.0).to(tl.float32)
    offset = tl.sum(x, 1) / tl.minimum(TILE_S, stop - first)
    distance = tl.where(there, x - offset[:, None], 0.0)
    total, squares = distance, distance * distance
    for start in range(first + TILE_S, stop, TILE_S):
        s = start + tl.arange(0, TILE_S)
        there = channels[:, None] & (s < stop)[None, :]
        x = tl.load(at + s.to(tl.int64)[None, :] * stride_s, mask=there, other=0.0).to(tl.float32)
        distance = tl.where(there, x - offset[:, None], 0.0)
        total += distance
        squares += distance * distance
    count = (stop - first).to(tl.float32)
    shift = tl.sum(total, 1) / count
    out = (n * tl.num_programs(1) + k) * C + c
    tl.store(mean_ptr + out, offset + shift, mask=channels)
    tl.store(square_ptr + out, tl.maximum(tl.sum(squares, 1) - shift * shift * count, 0.0), mask=channels)


@triton.jit
def _pool(
    mean_ptr, square_ptr, group_ptr, weight_ptr, group_mean_ptr, group_var_ptr, running_mean_ptr, running_var_ptr,
    N, C, S, K, PART, G, share, TRACK: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr
):  # fmt: skip
    """Mean and variance of each group from the parts of its rows, by the law of total variance.

    The program of number G, if there is one, takes all rows alike, and moves the running averages.
    """
    g, c = tl.program_id(1), tl.program_id(0) * TILE_C + tl.arange(0, TILE_C)
    channels = c < C
    everything = g == G
    mean = tl.zeros((TILE_C,), tl.float64)
    var = tl.zeros((TILE_C,), tl.float64)
    for turn in tl.static_range(2):
        found = tl.zeros((TILE_C,), tl.float64)
        for start in range(0, N * K, TILE_N):
            p = start + tl.arange(0, TILE_N)
            n, k = p // K, p % K
            count = (tl.minimum(S, (k + 1) * PART) - k * PART).to(tl.float64)
            group = tl.load(group_ptr + n, mask=p < N * K, other=-1)
            weight = tl.load(weight_ptr + n, mask=(group == g) & (p < N * K), other=0.0)
            weight = tl.where(everything, tl.where(p < N * K, 1.0 / N, 0.0).to(tl.float64), weight) * count / S
            there = (weight != 0.0)[:, None] & channels[None, :]
            at = p.to(tl.int64)[:, None] * C + c[None, :]
            value = tl.load(mean_ptr + at, mask=there, other=0.0).to(tl.float64)
            if turn == 1:
                square = tl.load(square_ptr + at, mask=there, other=0.0).to(tl.float64)
                value = square / count[:, None] + (value - mean[None, :]) * (value - mean[None, :])
            found += tl.sum(tl.where(there, value * weight[:, None], 0.0), 0)
        if turn == 0:
            mean = found
        else:
            var = found
    if everything:
        if TRACK:
            values = (N * S).to(tl.float64)
            var = var * (values / (values - 1.0))
            old_mean = tl.load(running_mean_ptr + c, mask=channels).to(tl.float64)
            old_var = tl.load(running_var_ptr + c, mask=channels).to(tl.float64)
            tl.store(running_mean_ptr + c, (old_mean + share * (mean - old_mean)).to(tl.float32), mask=channels)
            tl.store(running_var_ptr + c, (old_var + share * (var - old_var)).to(tl.float32), mask=channels)
    else:
        tl.store(group_mean_ptr + g * C + c, mean, mask=channels)
        tl.store(group_var_ptr + g * C + c, var, mask=channels)


@triton.jit
def _apply(
    x_ptr, y_ptr, group_ptr, mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, C, S, PART, stride_n, stride_c, stride_s,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, TILE_C: tl.constexpr, TILE_S: tl.constexpr
):  # fmt: skip
    """Normalize a part of a row with the mean and variance of its group; two coefficients, each rounded once."""
    n, k, c = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    channels = c < C
    of_group = tl.load(group_ptr + n) * C + c
    scale = 1.0 / tl.sqrt(tl.load(var_ptr + of_group, mask=channels, other=1.0) + eps)
    if WEIGHT:
        scale *= tl.load(weight_ptr + c, mask=channels, other=0.0).to(tl.float64)
    shift = -tl.load(mean_ptr + of_group, mask=channels, other=0.0) * scale
    if BIAS:
        shift += tl.load(bias_ptr + c, mask=channels, other=0.0).to(tl.float64)
    scale, shift = scale.to(tl.float32)[:, None], shift.to(tl.float32)[:, None]
    row = n * stride_n + c.to(tl.int64)[:, None] * stride_c
    stop = tl.minimum((k + 1) * PART, S)
    for start in range(k * PART, stop, TILE_S):
        s = start + tl.arange(0, TILE_S)
        there = channels[:, None] & (s < stop)[None, :]
        at = row + s.to(tl.int64)[None, :] * stride_s
        x = tl.load(x_ptr + at, mask=there).to(tl.float32)
        tl.store(y_ptr + at, (x * scale + shift).to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _gradient_sums(
    x_ptr, grad_ptr, group_ptr, mean_ptr, sum_ptr, dot_ptr, C, S, PART, stride_n, stride_c, stride_s,
    TILE_C: tl.constexpr, TILE_S: tl.constexpr
):  # fmt: skip
    """Of each part of a row: the sum of the gradient, and of its products with ``x - mean``."""
    n, k, c = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    channels = c < C
    mean = tl.load(mean_ptr + tl.load(group_ptr + n) * C + c, mask=channels, other=0.0).to(tl.float32)[:, None]
    row = n * stride_n + c.to(tl.int64)[:, None] * stride_c
    stop = tl.minimum((k + 1) * PART, S)
    total = tl.zeros((TILE_C, TILE_S), tl.float32)
    dot = tl.zeros((TILE_C, TILE_S), tl.float32)
    for start in range(k * PART, stop, TILE_S):
        s = start + tl.arange(0, TILE_S)
        there = channels[:, None] & (s < stop)[None, :]
        at = row + s.to(tl.int64)[None, :] * stride_s
        grad = tl.load(grad_ptr + at, mask=there, other=0.0).to(tl.float32)
        total += grad
        dot += grad * (tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32) - mean)
    out = (n * tl.num_programs(1) + k) * C + c
    tl.store(sum_ptr + out, tl.sum(total, 1), mask=channels)
    tl.store(dot_ptr + out, tl.sum(dot, 1), mask=channels)


@triton.jit
def _pool_gradients(
    sum_ptr, dot_ptr, group_ptr, var_ptr, weight_ptr, grad_weight_ptr, grad_bias_ptr, from_mean_ptr, from_var_ptr,
    eps, N, C, S, K, WEIGHT: tl.constexpr, TILE_N: tl.constexpr, TILE_C: tl.constexpr
):  # fmt: skip
    """What the gradient of a group's mean and variance hands to each value of a row that counts 1."""
    g, c = tl.program_id(1), tl.program_id(0) * TILE_C + tl.arange(0, TILE_C)
    channels = c < C
    total = tl.zeros((TILE_C,), tl.float64)
    dot = tl.zeros((TILE_C,), tl.float64)
    for start in range(0, N * K, TILE_N):
        p = start + tl.arange(0, TILE_N)
        group = tl.load(group_ptr + p // K, mask=p < N * K, other=-1)
        there = (group == g)[:, None] & channels[None, :]
        at = p.to(tl.int64)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(sum_ptr + at, mask=there, other=0.0).to(tl.float64), 0)
        dot += tl.sum(tl.load(dot_ptr + at, mask=there, other=0.0).to(tl.float64), 0)
    out = g * C + c
    rstd = 1.0 / tl.sqrt(tl.load(var_ptr + out, mask=channels, other=1.0) + eps)
    scale = rstd
    if WEIGHT:
        scale *= tl.load(weight_ptr + c, mask=channels, other=0.0).to(tl.float64)
    tl.store(grad_bias_ptr + out, total, mask=channels)
    tl.store(grad_weight_ptr + out, dot * rstd, mask=channels)
    tl.store(from_mean_ptr + out, -total * scale / S, mask=channels)
    tl.store(from_var_ptr + out, -dot * scale * rstd * rstd / S, mask=channels)


@triton.jit
def _gradient(
    x_ptr, grad_ptr, out_ptr, group_ptr, share_ptr, mean_ptr, var_ptr, weight_ptr, from_mean_ptr, from_var_ptr, eps,
    C, S, PART, stride_n, stride_c, stride_s, WEIGHT: tl.constexpr, TILE_C: tl.constexpr, TILE_S: tl.constexpr
):  # fmt: skip
    """The gradient of the input: three coefficients a row and channel, of 1, of ``x - mean`` and of the gradient."""
    n, k, c = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2) * TILE_C + tl.arange(0, TILE_C)
    channels = c < C
    of_group = tl.load(group_ptr + n) * C + c
    share = tl.load(share_ptr + n)
    scale = 1.0 / tl.sqrt(tl.load(var_ptr + of_group, mask=channels, other=1.0) + eps)
    if WEIGHT:
        scale *= tl.load(weight_ptr + c, mask=channels, other=0.0).to(tl.float64)
    mean = tl.load(mean_ptr + of_group, mask=channels, other=0.0).to(tl.float32)[:, None]
    from_mean = (tl.load(from_mean_ptr + of_group, mask=channels, other=0.0) * share).to(tl.float32)[:, None]
    from_var = (tl.load(from_var_ptr + of_group, mask=channels, other=0.0) * share).to(tl.float32)[:, None]
    scale = scale.to(tl.float32)[:, None]
    row = n * stride_n + c.to(tl.int64)[:, None] * stride_c
    stop = tl.minimum((k + 1) * PART, S)
    for start in range(k * PART, stop, TILE_S):
        s = start + tl.arange(0, TILE_S)
        there = channels[:, None] & (s < stop)[None, :]
        at = row + s.to(tl.int64)[None, :] * stride_s
        x = tl.load(x_ptr + at, mask=there).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=there).to(tl.float32)
        value = from_mean + (x - mean) * from_var + grad * scale
        tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=there)


def _small(channels: int, groups: int, rows: int) -> dict[str, int]:
    """The tiles of the kernels that bring parts together: few channels a program, so that there are many programs."""
    return {"TILE_C": min(triton.next_power_of_2(channels), 16), "TILE_N": min(triton.next_power_of_2(rows), 64)}


class FusedNorm(torch.autograd.Function):
    """Batch norm of several groups at once, see the module; x (N, C, *S) is all that is kept for the backward pass.

    ``group`` (N,) int32 is the number of each row's group, of ``groups``; ``share`` (N,) float64 is how much the row
    counts there, with a sum of 1 in each group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        group: Tensor,
        share: Tensor,
        groups: int,
        eps: float,
        running: Running | None,
    ) -> Tensor:
        n, c = x.shape[:2]
        s, cut = x.shape[2:].numel(), _layout(x)
        place = (c, s, cut.part, cut.stride_n, cut.stride_c, cut.stride_s)
        tile = {"TILE_C": cut.tile_c, "TILE_S": cut.tile_s}
        grid = (n, cut.parts, triton.cdiv(c, cut.tile_c))
        mean, square = x.new_empty(2, n * cut.parts, c, dtype=torch.float32)
        _moments[grid](x, mean, square, *place, **tile)
        group_mean, group_var = x.new_empty(2, groups, c, dtype=torch.float64)
        pooling = _small(c, groups, n * cut.parts)
        _pool[(triton.cdiv(c, pooling["TILE_C"]), groups + (running is not None))](
            mean,
            square,
            group,
            share,
            group_mean,
            group_var,
            mean if running is None else running.mean,
            mean if running is None else running.var,
            n,
            c,
            s,
            cut.parts,
            cut.part,
            groups,
            0.0 if running is None else running.share,
            TRACK=running is not None,
            **pooling,
        )
        y = torch.empty_like(x)
        given = (group, group_mean, group_var, x if weight is None else weight, x if bias is None else bias)
        _apply[grid](x, y, *given, eps, *place, WEIGHT=weight is not None, BIAS=bias is not None, **tile)
        ctx.save_for_backward(x, weight, group_mean, group_var, group, share)
        ctx.groups, ctx.eps = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, group, share = ctx.saved_tensors
        n, c = x.shape[:2]
        s, cut = x.shape[2:].numel(), _layout(x)
        grad = grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)
        place = (c, s, cut.part, cut.stride_n, cut.stride_c, cut.stride_s)
        tile = {"TILE_C": cut.tile_c, "TILE_S": cut.tile_s}
        grid = (n, cut.parts, triton.cdiv(c, cut.tile_c))
        total, dot = x.new_empty(2, n * cut.parts, c, dtype=torch.float32)
        _gradient_sums[grid](x, grad, group, mean, total, dot, *place, **tile)
        grad_weight, grad_bias, from_mean, from_var = x.new_empty(4, ctx.groups, c, dtype=torch.float64)
        pooling = _small(c, ctx.groups, n * cut.parts)
        known = {"WEIGHT": weight is not None}
        given = x if weight is None else weight
        found = (grad_weight, grad_bias, from_mean, from_var)
        programs = (triton.cdiv(c, pooling["TILE_C"]), ctx.groups)
        _pool_gradients[programs](
            total, dot, group, var, given, *found, ctx.eps, n, c, s, cut.parts, **known, **pooling
        )
        out = torch.empty_like(x)
        statistics = (mean, var, given, from_mean, from_var)
        _gradient[grid](x, grad, out, group, share, *statistics, ctx.eps, *place, **known, **tile)
        wanted = weight is not None
        return (
            out,
            grad_weight.sum(0).to(weight.dtype) if wanted else None,
            grad_bias.sum(0).to(weight.dtype) if wanted and ctx.needs_input_grad[2] else None,
            *(None,) * 5,
        )
