"""Batch norm that knows which plate each row of a batch belongs to.

The layer keeps the parameters, the buffers and the state-dict keys of batch norm; only where mean and variance come
from changes. :func:`biomass.norms.plate_statistics` says so for everything that runs inside it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biomass.errors import ConfigError, DataError
from biomass.norms import pieces
from biomass.norms.pieces import PieceNorm, Runs

Stored = Literal["running", "calibrated"]
"""Statistics that do not come from the rows at hand: running averages, the calibrated moments of each row's plate."""

STORED = ("calibrated", "prior", "strata")
"""What a layer may store beside its parameters and buffers: the attributes of a PlateBatchNorm."""

SMALLEST_SPREAD = 0.05
"""The least variance, as a share of a whole plate's, that a composition is taken to have: see Correction."""


IN_CACHE = 1 << 19
"""Bytes of float32, of which a core keeps two copies in its cache."""


class Correction(NamedTuple):
    """What is done to the moments of G groups before they normalize; see :meth:`PlateBatchNorm.corrected`.

    Attributes:
        composition: (G, S) float64, which share of the rows that count each of S strata has: classes of treated rows,
            and kinds of controls, in the order of the layers' ``strata``. None: moments are taken as they are.
        share: (G, 1) float64, of the prior. None: nothing is blended.
    """

    composition: Tensor | None = None
    share: Tensor | None = None


class Members(NamedTuple):
    """Which group each row of a batch belongs to, and how much it counts there; on the device.

    Attributes:
        group: (N,) int32, dense number of the group.
        weight: (N,) float64, with a sum of 1 in each group.
        groups: how many groups there are.
    """

    group: Tensor
    weight: Tensor
    groups: int


@dataclass(frozen=True)
class PlateRows:
    """What the layers of a network must know of the rows of one batch; made once a batch, on the host.

    Attributes:
        group: (N,) dense group of each row, on the host; read for its length only, as a tensor because torch.compile
            takes the size of a tensor, but not a number, as dynamic. None where any number of rows is fine.
        lone: the statistics of one of several groups, or of weighted rows, rest on a single row.
        smallest: name of the plate with the fewest rows for its statistics, for the message.
        average: (G, N) float64, row g holds the weights of the rows that the statistics of group g come from, with a
            sum of 1. None where one group whose rows all count alike makes up the whole batch.
        spread: (N, G) float64, hands every row the statistics of its group. None together with ``average``.
        members: the same as ``average`` and ``spread``, for the kernels of a GPU; None on other devices.
        runs: the same, for the kernels of a CPU; None on other devices, and where the rows are in no order.
        stored: what replaces the rows at hand; None where statistics come from them.
        slots: (N,) or (1,) int64, where the calibrated statistics of each row (or of all rows) are stored.
        correction: of the moments of the G groups, None for none; then there are ``average`` and ``spread``.
    """

    group: Tensor | None = None
    lone: bool = False
    smallest: str = ""
    average: Tensor | None = None
    spread: Tensor | None = None
    members: Members | None = None
    runs: Runs | None = None
    stored: Stored | None = None
    slots: Tensor | None = None
    correction: Correction | None = None


class PlateContext:
    """What all plate-aware norms of one network share: the rows of the current batch, and what is stored of plates.

    Attributes:
        rows: the rows of the batch that runs now; None outside of :func:`biomass.norms.plate_statistics`.
        slots: position of each calibrated plate id in the storage of every layer.
        tuning: what was learned from training plates for the words that need it, a :class:`biomass.norms.Tuning`.
    """

    def __init__(self) -> None:
        self.rows: PlateRows | None = None
        self.slots: dict[int, int] = {}
        self.tuning: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy or a file of the network outlives the batch
        return {"rows": None, "slots": dict(self.slots), "tuning": self.tuning}


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each row and channel of ``x`` (N, C, *S), both (N, C) float64.

    They are computed in two passes in at least float32, which no common offset of the values disturbs.
    """
    x = x.unsqueeze(-1) if x.dim() == 2 else x
    if x.is_cuda:
        var, mean = torch.var_mean(at_least_float32(x), tuple(range(2, x.dim())), correction=0)
        return mean.double(), var.double()
    if torch.compiler.is_compiling():
        mean, var = _moments_on_host(x)
        return mean.double(), var.double()
    rows = IN_CACHE * torch.get_num_threads() // max(x[:1].numel() * 4, 1)  # so the second pass is not over memory
    means, variances = zip(*map(_moments_on_host, x.split(max(rows, 1))), strict=True)
    return torch.cat(means).double(), torch.cat(variances).double()


def _moments_on_host(x: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`row_moments` in a fourth of the time of ``torch.var_mean`` there."""
    x, dims = at_least_float32(x), tuple(range(2, x.dim()))
    centre = x.mean(dims, keepdim=True)
    return centre.flatten(1), (x - centre).square_().mean(dims)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself in float32 or float64, a float32 copy of anything shorter."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _GroupedNorm(torch.autograd.Function):
    """Batch norm of several groups at once, their statistics averaged over any of their rows.

    :mod:`biomass.norms.kernels` does the same on a GPU, and :mod:`biomass.norms.pieces` on a CPU, in fewer passes over
    ``x``; this is their reference, what is compiled, and what takes layouts and orders of rows that those do not.

    Written out because ``F.batch_norm`` does not differentiate through statistics that it is given. All sums over rows
    are products with matrices in float64: deterministic on every device, and out of reach of autocast and TF32. Only
    ``x`` itself is kept for the backward pass, as in the native kernel.

    Let m, v be mean and biased variance of each row. A group has mean ``mu = A m`` and, by the law of total variance,
    ``var = A (v + (m - mu)^2)``; y = (x - mu) / sqrt(var + eps) * weight + bias. As A averages ``x - mu`` to zero, the
    variance does not depend on the mean in first order, which gives the gradient its short form.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        average: Tensor,
        spread: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        row_mean, row_var = row_moments(x)
        mean = spread @ (average @ row_mean)
        rstd = (spread @ (average @ (row_var + (row_mean - mean).square())) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, rstd, average, spread)
        ctx.mark_non_differentiable(row_mean, row_var)
        return affine(x, mean, rstd, weight, bias), row_mean, row_var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, average, spread = ctx.saved_tensors
        dims = tuple(range(2, x.dim()))
        work = torch.promote_types(x.dtype, torch.float32)

        def to_rows(coefficients: Tensor) -> Tensor:
            return coefficients.to(work).view(*coefficients.shape, *(1 for _ in dims))

        centred = x.to(work) - to_rows(mean)
        grad_sum = grad.to(work).sum(dims).double()
        grad_dot = (grad * centred).sum(dims).double()
        grad_bias = grad_sum.sum(0)
        grad_weight = (grad_dot * rstd).sum(0)
        scale = rstd if weight is None else rstd * weight.double()
        values = x.shape[2:].numel()  # a row and channel
        from_mean = average.T @ (spread.T @ (-grad_sum * scale)) / values
        from_var = average.T @ (spread.T @ (-grad_dot * scale * rstd.square())) / values
        grad_x = torch.addcmul(to_rows(from_mean), centred, to_rows(from_var)).addcmul_(grad.to(work), to_rows(scale))
        return (
            grad_x.to(x.dtype),
            None if weight is None else grad_weight.to(weight.dtype),
            None if weight is None or not ctx.needs_input_grad[2] else grad_bias.to(weight.dtype),
            None,
            None,
            None,
        )


def affine(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``(x - mean) * rstd * weight + bias`` in one pass over ``x`` (N, C, *S), in the type of ``x``.

    ``mean`` and ``rstd`` are (C,), (1, C) or (N, C) float64; so the two coefficients of each channel are rounded once.
    """
    return scaled(x, *coefficients(x.dtype, mean, rstd, weight, bias))


def coefficients(
    dtype: torch.dtype, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scale and shift of :func:`affine` for values of a type; each in the shape of ``rstd``."""
    scale = rstd if weight is None else rstd * weight.double()
    shift = -mean * scale if bias is None else bias.double() - mean * scale
    work = torch.promote_types(dtype, torch.float32)
    return scale.to(work), shift.to(work)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` in one pass over ``x`` (N, C, *S), in its type; coefficients (C,), (1, C) or (N, C)."""
    if x.device.type == "cpu" and x.dim() > 2 and not torch.compiler.is_compiling():
        if scale.numel() == x.shape[1]:
            return pieces.affine(x, scale.flatten(), shift.flatten())
        if x.is_contiguous():  # the channels of all rows as those of one
            return pieces.affine(x.flatten(0, 1)[None], scale.flatten(), shift.flatten()).view(x.shape)
    shape = (-1, x.shape[1], *(1 for _ in x.shape[2:]))
    return torch.addcmul(shift.view(shape), x.to(scale.dtype), scale.view(shape)).to(x.dtype)


class PlateBatchNorm(_BatchNorm):
    """Batch norm over (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W) with the statistics of each row's plate.

    Outside of :func:`biomass.norms.plate_statistics` it is plain batch norm. Inside, mean and biased variance come from

    - the rows at hand: those of each plate in this batch, under row weights, with the gradient flowing through them, in
      training and in evaluation mode alike (Lin & Lu 2022). One plate whose rows count alike runs the native kernel;
    - or what is stored: the calibrated moments of each row's plate (see :func:`biomass.norms.calibrate`), in evaluation
      mode only; or the running averages, which is plain batch norm in either mode.

    Only in training mode do the running averages move: as those of plain batch norm over the same batch, whatever the
    plates in it. Evaluation moves nothing.

    A norm of timm that carries an activation keeps it, as the submodules ``drop`` and ``act``.

    Attributes:
        context: what all norms of one network share.
        calibrated: (2, P, C) mean and variance of P plates in the order of ``context.slots``; follows the network to
            its device, is no buffer and not in the state dict. None before calibration.
        prior: (2, C) mean and variance of an average training plate; kept as ``calibrated`` is.
        strata: (2, S, C) mean and mean square of the values of each stratum (a class, a kind of controls) on an average
            training plate, in units of the plate: its mean is 0, its variance 1. Kept as ``calibrated`` is.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.context = PlateContext()
        self.calibrated: Tensor | None = None
        self.prior: Tensor | None = None
        self.strata: Tensor | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes (N, C) or more dimensions, but got {tuple(input.shape)}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PlateBatchNorm":
        super()._apply(fn, recurse)
        for name in STORED:  # to the new device, but never to a shorter type
            stored = getattr(self, name)
            if stored is not None:
                setattr(self, name, stored.to(fn(stored.new_empty(0)).device))
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` (N, C, *S); the output has its shape, type and memory format.

        Raises:
            DataError: the batch and its plates differ in length; a plate's statistics rest on one value a channel.
            ConfigError: a layer in training mode is asked for calibrated statistics.
        """
        self._check_input_dim(input)
        rows = self.context.rows
        if rows is None or (rows.stored == "running" and not self.training):
            return self._finish(super().forward(input))
        if rows.stored == "calibrated" and self.training:
            raise ConfigError(
                "calibrated statistics are for evaluation, but the network is in training mode; call "
                "network.eval(), or take the statistics of the rows at hand"
            )
        if rows.group is not None and input.shape[0] != rows.group.shape[0]:
            _check_multiple(rows, rows.group.shape[0], input.shape[0])
        if rows.slots is not None:
            return self.normalize(input, *self._calibrated_of(rows.slots))
        lone = input.shape[0] == 1 if rows.average is None else rows.lone
        if lone and input.shape[2:].numel() == 1:
            raise DataError(
                f"plate '{rows.smallest}' has one value a channel to take statistics from; give it two images or more, "
                "larger images, or evaluate with calibrated statistics or running averages",
                "statistics",
            )
        if rows.average is not None and rows.spread is not None:
            if rows.correction is not None:
                return self._corrected_groups(input, rows.average, rows.spread, rows.correction)
            return self._finish(self._grouped(input, rows))
        if self.training:
            return self._finish(super().forward(input))
        return self._finish(F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps))

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """The layer's output for ``x`` (N, C, *S) with given ``mean`` and biased ``var``: (C,), (1, C) or (N, C)."""
        return self.scale(x, *self.coefficients(x.dtype, mean, var))

    def coefficients(self, dtype: torch.dtype, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`scale` takes to normalize any values of a type with given ``mean`` and biased ``var``."""
        return coefficients(dtype, mean.double(), (var.double() + self.eps).rsqrt(), self.weight, self.bias)

    def scale(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The layer's output for ``x`` (N, C, *S) from :meth:`coefficients`."""
        return self._finish(scaled(x, scale, shift))

    def corrected(self, mean: Tensor, var: Tensor, correction: Correction) -> tuple[Tensor, Tensor]:
        """The moments that normalize G groups, from those of their rows that count; (G, C) float64 all of them.

        Let a, b be mean and mean square of what the rows are made of, ``composition @ strata``. On a plate of mean mu
        and variance s² such rows have the mean ``mu + s a`` and the variance ``s² (b - a²)``; solved for mu and s. Rows
        of no known stratum are taken for a whole plate, of mean 0 and mean square 1. The prior is blended with that.

        Raises:
            ConfigError: nothing was stored that it needs.
        """
        composition, share = correction
        stored = (self.strata if composition is not None else mean, self.prior if share is not None else mean)
        if any(one is None for one in stored):
            raise ConfigError(
                f"a batch norm of {self.num_features} channels has no stored moments of training plates, which these "
                "statistics need; measure them first",
                "tune",
            )
        if composition is not None and self.strata is not None:
            first, second = composition @ self.strata.double()
            second = second + (1 - composition.sum(1, keepdim=True))
            var = var / (second - first.square()).clamp(min=SMALLEST_SPREAD)
            mean = mean - var.sqrt() * first
        if share is not None and self.prior is not None:
            mean, var = torch.lerp(mean, self.prior[0].double(), share), torch.lerp(var, self.prior[1].double(), share)
        return mean, var

    def _corrected_groups(self, x: Tensor, average: Tensor, spread: Tensor, correction: Correction) -> Tensor:
        if self.training:
            raise ConfigError(
                "statistics that are corrected by training plates are for evaluation, but the network is in training "
                "mode; call network.eval()"
            )
        row_mean, row_var = row_moments(x)
        mean = average @ row_mean
        var = average @ (row_var + (row_mean - spread @ mean).square())
        mean, var = self.corrected(mean, var, correction)
        return self.normalize(x, spread @ mean, spread @ var)

    def _finish(self, x: Tensor) -> Tensor:
        drop, act = getattr(self, "drop", None), getattr(self, "act", None)
        x = x if drop is None else drop(x)
        return x if act is None else act(x)

    def _calibrated_of(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        if self.calibrated is None:
            raise ConfigError(
                f"a batch norm of {self.num_features} channels has no calibrated statistics; it did not run in "
                "calibration: calibrate the network again, or take the statistics of the rows at hand"
            )
        mean, var = self.calibrated[:, slots]
        return mean, var

    def _grouped(self, x: Tensor, rows: PlateRows) -> Tensor:
        """Normalize rows of several groups, or of weighted rows, by the statistics of their group."""
        track = self.training and self.track_running_stats
        if rows.members is not None and not torch.compiler.is_compiling():
            from biomass.norms import kernels  # needs Triton, which is there where PyTorch runs on a GPU

            if kernels.fits(x) and not (track and self.momentum is None):
                running = None
                if track and self.running_mean is not None and self.running_var is not None:
                    running = kernels.Running(self.running_mean, self.running_var, self.momentum or 0.0)
                    self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                y: Tensor = kernels.FusedNorm.apply(x, self.weight, self.bias, *rows.members, self.eps, running)
                return y
        wide = x.unsqueeze(-1) if x.dim() == 2 else x
        if not torch.compiler.is_compiling() and rows.runs is not None and pieces.fits(wide):
            y, mean, var = PieceNorm.apply(wide, self.weight, self.bias, rows.runs, self.eps)
        else:
            given = (self.weight, self.bias, rows.average, rows.spread, self.eps)
            y, row_mean, row_var = _GroupedNorm.apply(wide, *given)
            mean = row_mean.mean(0)
            var = (row_var + (row_mean - mean).square()).mean(0)
        if track:
            self._track(mean, var, values=wide[:, 0].numel())
        return y.view(x.shape) if x.dim() == 2 else y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, values: int) -> None:
        """Move the running averages as batch norm over all rows at once, of ``values`` values a channel, would."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        var = var * (values / (values - 1))
        factor: Any = self.momentum
        if factor is None:
            factor = 1 / self.num_batches_tracked.to(self.running_mean.dtype)
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(new.to(running.dtype), factor)


def _check_multiple(rows: PlateRows, plates: int, length: int) -> None:
    """Layers over the tokens of images have several rows an image, which do no harm where all rows share statistics."""
    one = rows.average is None and (rows.slots is None or len(rows.slots) == 1)
    if not one or length % plates:
        raise DataError(
            f"{plates} plates were given for a batch norm over {length} rows; give one plate a row (repeat them for "
            "several views of an image), and networks that normalize tokens one plate at a time"
        )


def convert(network: nn.Module) -> nn.Module:
    """Make every batch norm of ``network`` plate-aware, in place, and let all of them share one context.

    Layers keep their identity, parameters, buffers, hooks and flags: it is their class that changes. Norms of timm
    with an activation keep it; frozen batch norms stay as they are. Converting twice changes nothing; converting a
    network put together from converted parts makes one of them (and forgets their calibration).

    Returns:
        The same network.

    Raises:
        ConfigError: a layer is a SyncBatchNorm, or of a class whose forward pass is unknown here. Nothing is changed.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> before = network.state_dict().keys()
    >>> convert(network) is network, isinstance(network[1], PlateBatchNorm), network.state_dict().keys() == before
    (True, True, True)
    """
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    known = _known_classes(norms)
    for name, norm in norms:
        if isinstance(norm, nn.SyncBatchNorm) or "SyncBatchNorm" in type(norm).__name__:
            raise ConfigError(
                f"layer '{name}' is a {type(norm).__name__}, which mixes the plates of all processes; use plain "
                "BatchNorm, plate batches need no synchronization"
            )
        if type(norm) not in known:
            raise ConfigError(
                f"layer '{name}' is a {type(norm).__module__}.{type(norm).__name__}, whose forward pass is unknown; "
                "replace it by BatchNorm1d, 2d or 3d before converting"
            )
    converted = [norm for _, norm in norms if isinstance(norm, PlateBatchNorm)]
    contexts = {id(norm.context): norm.context for norm in converted}
    if len(contexts) > 1:
        for norm in converted:
            vars(norm).update(dict.fromkeys(STORED))
    context = next(iter(contexts.values())) if len(contexts) == 1 else PlateContext()
    for _, norm in norms:
        if not isinstance(norm, PlateBatchNorm):
            norm.__class__ = PlateBatchNorm
            vars(norm).update(dict.fromkeys(STORED))
        vars(norm)["context"] = context
    return network


def _known_classes(norms: Sequence[tuple[str, nn.Module]]) -> set[type[nn.Module]]:
    known: set[type[nn.Module]] = {PlateBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    if any(type(norm).__module__.startswith("timm.") for _, norm in norms):
        from timm.layers import BatchNormAct2d  # slow to import; a network that holds one has already done so

        known.add(BatchNormAct2d)
    return known


def shared_context(network: nn.Module) -> PlateContext | None:
    """The context of the plate-aware norms of ``network``, None if it has none.

    Raises:
        ConfigError: the norms belong to several contexts.
    """
    contexts = {id(m.context): m.context for m in network.modules() if isinstance(m, PlateBatchNorm)}
    if len(contexts) > 1:
        raise ConfigError(
            f"the network is put together from {len(contexts)} parts that were converted one by one; call "
            "biomass.norms.convert on the whole network"
        )
    return next(iter(contexts.values()), None)


def plate_name(plate: int, names: Sequence[str] | None) -> str:
    """What to call plate id ``plate`` in a message."""
    return str(names[plate]) if names is not None and 0 <= plate < len(names) else str(plate)


def device_of(network: nn.Module) -> torch.device:
    """Where the first parameter or buffer of ``network`` is."""
    some = next(itertools.chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if some is None else some.device
