"""Exact statistics of a whole plate in bounded memory, and their storage plate by plate.

A network runs *layer-synchronously* over the chunks of a plate: all chunks advance to the input of a batch norm, the
moments of the chunks are pooled into those of the plate, and only then do the chunks go on. So every layer sees the
statistics of the whole plate, in one pass over the network, while the operations themselves only ever hold one chunk.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.norms.plate_batch_norm import PlateBatchNorm, device_of, plate_name, row_moments, shared_context

Store = Literal["auto", "device", "host"]
"""Where values wait for the other chunks: on the device while half of its free memory lasts, always, never."""


def whole_plate_forward(
    network: nn.Module,
    chunks: Iterable[Tensor],
    *,
    controls: Sequence[Tensor] | None = None,
    store: Store = "auto",
    plate: str = "of these chunks",
) -> list[Any]:
    """Run ``network`` over the chunks of one plate as if they were one batch: every norm sees the whole plate.

    The network runs in evaluation mode but for its norms, without gradients, and no buffer moves; modes are restored.
    Equal to the forward pass over the concatenated chunks under :func:`biomass.norms.plate_statistics` up to rounding.
    Autocast applies as set by the caller. Memory on the device is that of the forward pass over one chunk plus what
    waits there (``store``) and the outputs.

    Args:
        network: converted by :func:`biomass.norms.convert`; may be wrapped by ``torch.compile``, DDP or Fabric (it is
            run unwrapped). It must treat each image by itself outside of its norms, and be traceable by ``torch.fx``
            down to the modules that hold norms.
        chunks: images (n, C, H, W) of the plate, n free for each chunk, on any device. An iterator is read chunk by
            chunk, so that what was read can already wait in host memory.
        controls: for each chunk which rows are controls, (n,) bool; statistics come from these only. None: all rows.
        store: where values wait between the norms.
        plate: name of the plate, for error messages.

    Returns:
        The network's output for each chunk, in order, on the network's device.

    Raises:
        ConfigError: the network has no plate-aware norm, or plain ones beside them, or cannot be traced.
        DataError: no chunk; no control row; flags that do not fit; statistics that rest on one value a channel.
    """
    network = unwrap(network)
    with _evaluating(network):
        depot = _Depot(device_of(network), store)
        waiting = [depot.receive(chunk) for chunk in chunks]
        used = list(controls) if controls is not None else [None] * len(waiting)
        if len(used) != len(waiting):
            raise DataError(f"{len(used)} sets of control flags were given for {len(waiting)} chunks; give one a chunk")
        run = _Run(network, waiting, used, depot, plate)
        return run.to_the_end()


def calibrate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    *,
    store: Store = "auto",
    names: Sequence[str] | None = None,
) -> None:
    """Compute the statistics of whole plates and keep them in the layers, for source ``calibrated``.

    Afterwards any image of these plates can be predicted by itself, in any order and mix, with the statistics of its
    plate. They are no part of the state dict (:func:`calibration_state`), take memory for the calibrated plates only,
    and belong to the weights they were computed with: calibrate again after training. Plates of an earlier
    calibration stay, unless they are among these. Where an error ends the calibration, the earlier one is left as it was.

    Args:
        network: as in :func:`whole_plate_forward`.
        batches: (images (n, C, H, W), plates (n,), controls (n,) bool or None): the chunks of each plate one after the
            other, none of them with rows of two plates. Statistics come from the control rows where given.
        store: where values wait between the norms.
        names: readable name of each plate id, for error messages.

    Raises:
        ConfigError: as in :func:`whole_plate_forward`; or the network uses one norm in several places.
        DataError: as in :func:`whole_plate_forward`; a chunk of two plates; a plate that comes back after another.
    """
    network = unwrap(network)
    context = shared_context(network)
    statistics: dict[int, dict[str, Tensor]] = {}
    with _evaluating(network):
        repeated = [name for name, times in Counter(_plan(network).norms).items() if times > 1]
        if repeated:
            raise ConfigError(
                f"layer '{repeated[0]}' is used in several places of the network, and cannot keep one set of calibrated "
                "statistics; give each place its own batch norm, or evaluate by whole plates (eval_batch_size: null)"
            )
        for plate, chunks, controls, depot in _by_plate(batches, device_of(network), store, names):
            if plate in statistics:
                raise DataError(
                    f"plate '{plate_name(plate, names)}' comes back after another plate; its chunks must come one after "
                    "the other: sort the rows by plate"
                )
            statistics[plate] = _Run(network, chunks, controls, depot, plate_name(plate, names)).to_the_last_norm()
        if not statistics:
            raise DataError("there are no images to calibrate with; give at least one chunk of one plate")
        assert context is not None  # the plan needs one
        kept = {plate: slot for plate, slot in context.slots.items() if plate not in statistics}
        for name in _plan(network).norms:
            norm = _norm(network, name)
            new = torch.stack([of_plate[name] for of_plate in statistics.values()], 1).to(_dtype(norm))
            norm.calibrated = torch.cat([norm.calibrated[:, list(kept.values())], new], 1) if kept else new
        context.slots = {plate: slot for slot, plate in enumerate([*kept, *statistics])}


def forget_calibration(network: nn.Module) -> None:
    """Drop the calibrated statistics of all plates."""
    context = shared_context(network)
    if context is not None:
        context.slots = {}
    for module in network.modules():
        if isinstance(module, PlateBatchNorm):
            module.calibrated = None


def calibration_state(network: nn.Module) -> dict[str, Tensor]:
    """The calibrated statistics as plain tensors on the host, for a file.

    Returns:
        ``plates`` (P,) int64, the calibrated plate ids, and for each calibrated norm ``norms.<name>`` (2, P, C): means
        and biased variances. No plates and no norms before calibration.
    """
    network = unwrap(network)
    context = shared_context(network)
    plates = torch.tensor(list(context.slots) if context is not None else [], dtype=torch.long)
    norms = ((name, module) for name, module in network.named_modules() if isinstance(module, PlateBatchNorm))
    return {"plates": plates} | {
        f"norms.{name}": norm.calibrated.detach().cpu().clone() for name, norm in norms if norm.calibrated is not None
    }


def load_calibration(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the statistics of :func:`calibration_state` in place of any that ``network`` has.

    Raises:
        CheckpointError: ``state`` is not one of a network like this. The network is left as it was.
    """
    network = unwrap(network)
    norms = {f"norms.{n}": module for n, module in network.named_modules() if isinstance(module, PlateBatchNorm)}
    if "plates" not in state:
        raise CheckpointError("the calibration has no entry 'plates'; give the dict of biomass.norms.calibration_state")
    for key in state.keys() - {"plates"}:
        if key not in norms:
            raise CheckpointError(f"the calibration has statistics of '{key}', which is no norm of this network")
        shape = (2, len(state["plates"]), norms[key].num_features)
        if tuple(state[key].shape) != shape:
            raise CheckpointError(
                f"the calibration of '{key}' has the shape {tuple(state[key].shape)}, this network needs {shape}; "
                "calibrate this network instead"
            )
    context = shared_context(network)
    if context is None:
        raise ConfigError("the network has no plate-aware batch norm; call biomass.norms.convert on it first")
    forget_calibration(network)
    for key in state.keys() - {"plates"}:
        norms[key].calibrated = state[key].to(device_of(network), copy=True)
    context.slots = {plate: slot for slot, plate in enumerate(state["plates"].tolist())}


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of ``torch.compile``, of data parallel training and of Fabric."""
    inner = {
        "OptimizedModule": "_orig_mod",
        "DistributedDataParallel": "module",
        "DataParallel": "module",
        "_FabricModule": "module",
    }
    while type(network).__name__ in inner:
        network = getattr(network, inner[type(network).__name__])
    return network


# --- tracing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """The traced network, cut at its norms.

    Attributes:
        image: the node of the input.
        segments: nodes in the order of execution, which run chunk by chunk. Every segment but the first begins with a
            norm: what it needs of all chunks must be known by then.
        dead: values that nothing needs any more once a node has run.
        constants: tensors that tracing found outside of the network's parameters and buffers.
        norms: names of the norm layers in the order of execution.
    """

    image: fx.Node
    segments: tuple[tuple[fx.Node, ...], ...]
    dead: dict[fx.Node, tuple[fx.Node, ...]]
    constants: dict[str, Tensor]
    norms: tuple[str, ...]


_plans: weakref.WeakKeyDictionary[nn.Module, tuple[list[tuple[str, type]], _Plan]] = weakref.WeakKeyDictionary()


class _Tracer(fx.Tracer):
    """Looks into those modules only that hold a norm; all others run as they are, whatever is inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PlateBatchNorm) or not any(isinstance(part, PlateBatchNorm) for part in m.modules())


class _Root(nn.Module):
    """Calls the network with one input, so that other arguments of its forward keep their defaults; and holds what
    constants the tracer puts into its root, which leaves the network untouched."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:
        return self.network(image)


def _plan(network: nn.Module) -> _Plan:
    """The plan of ``network``, which is in evaluation mode; made anew only if its modules changed."""
    modules = [(name, type(module)) for name, module in network.named_modules()]
    known = _plans.get(network)
    if known is None or known[0] != modules:
        known = modules, _make_plan(network)
        _plans[network] = known
    return known[1]


def _make_plan(network: nn.Module) -> _Plan:
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    plain = [name for name, norm in norms if not isinstance(norm, PlateBatchNorm)]
    if plain or not norms:
        found = f"layer '{plain[0]}' is a plain batch norm" if plain else "the network has no batch norm"
        raise ConfigError(f"{found}, whole-plate statistics need plate-aware ones; call biomass.norms.convert first")
    root = _Root(network)
    before = set(vars(root))
    try:
        graph = _Tracer(autowrap_functions=_opaque_functions(network)).trace(root)
    except Exception as error:  # whatever the network's own code raises when it meets a proxy
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{type(network).__name__} cannot be traced by torch.fx ({type(error).__name__}: {reason}), so the chunks of "
            "a plate cannot be run together; run whole plates instead, one batch a plate (eval_batch_size: null)"
        ) from error
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    segments: list[list[fx.Node]] = [[]]
    for node in nodes:
        if _is_norm(node, network):
            segments.append([])
        segments[-1].append(node)
    last_use: dict[fx.Node, fx.Node] = {node: node for node in nodes}
    for node in nodes:
        last_use.update(dict.fromkeys(node.all_input_nodes, node))
    dead: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for value, node in last_use.items():
        dead[node].append(value)
    return _Plan(
        next(node for node in graph.nodes if node.op == "placeholder"),
        tuple(map(tuple, segments)),
        {node: tuple(values) for node, values in dead.items()},
        {name: value for name, value in vars(root).items() if name not in before},
        tuple(_path(segment[0]) for segment in segments[1:]),
    )


def _opaque_functions(network: nn.Module) -> tuple[Any, ...]:
    """Functions that cannot be traced into, as timm registers them."""
    if not any(type(module).__module__.startswith("timm.") for module in network.modules()):
        return ()
    from timm.layers import get_notrace_functions  # slow to import; a network of timm has already done so

    return tuple(get_notrace_functions())


def _path(node: fx.Node) -> str:
    """Name in the network of the module that a node calls."""
    return str(node.target).partition(".")[2]


def _is_norm(node: fx.Node, network: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(_path(node)), PlateBatchNorm)


def _norm(network: nn.Module, name: str) -> PlateBatchNorm:
    norm = network.get_submodule(name)
    assert isinstance(norm, PlateBatchNorm)
    return norm


def _dtype(norm: PlateBatchNorm) -> torch.dtype:
    """What calibrated statistics are kept in: the type of the layer, but no less than float32."""
    own = next((t.dtype for t in (norm.weight, norm.running_mean) if t is not None), torch.float32)
    return torch.promote_types(own, torch.float32)


# --- values that wait -------------------------------------------------------------------------------------------------


class _Slot:
    """A tensor that may wait, on the device or in host memory, while other chunks run."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.host: Tensor | None = None
        self.version = 0  # of the tensor, when it was last equal to what is in host memory
        self.kept = 0  # bytes it takes on the device while it waits there


class _Depot:
    """Decides where tensors wait, and moves them."""

    def __init__(self, device: torch.device, store: Store) -> None:
        self.device = device
        self.room: float
        if store == "host":
            self.room = 0
        elif store == "device" or (store == "auto" and device.type != "cuda"):
            self.room = float("inf")
        elif store == "auto":
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            self.room = (torch.cuda.mem_get_info(device)[0] + cached) / 2
        else:
            raise ConfigError(f"store '{store}' is unknown; choose {', '.join(get_args(Store))}")

    def receive(self, image: Tensor) -> _Slot:
        """A chunk of images from the caller, wherever it is."""
        slot = _Slot(image)
        if image.device != self.device:
            slot.tensor, slot.host = None, image
        self.park(slot)
        return slot

    def park(self, slot: _Slot) -> None:
        """Let the tensor wait, out of the device's memory if there is no room."""
        if slot.tensor is None or slot.kept:
            return
        size = slot.tensor.numel() * slot.tensor.element_size()
        if size <= self.room:
            self.room -= size
            slot.kept, slot.host = size, None
            return
        if slot.host is None or slot.version != _version(slot.tensor):  # changed in place since it came from there
            slot.host = _to_host(slot.tensor)
        slot.tensor = None

    def take(self, slot: _Slot) -> Tensor:
        """The tensor on the device."""
        self.room += slot.kept
        slot.kept = 0
        if slot.tensor is None:
            assert slot.host is not None
            slot.tensor = _to_device(slot.host, self.device)
            slot.version = _version(slot.tensor)
        return slot.tensor


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # nothing here can change the former in place


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)  # the copies then run beside the computation
    return pinned.copy_(tensor, non_blocking=True)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor does not tell when it is changed
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Pool:
    """Mean and biased variance of each channel over chunks, merged pairwise in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.values = 0
        self.mean = self.var = torch.zeros(())

    def add(self, x: Tensor, weights: Tensor | None, rows: int) -> None:
        """Add ``rows`` rows of ``x`` (n, C, *S), those of weight 1 / rows; all of them if ``weights`` is None."""
        if rows == 0:
            return
        mean, var = row_moments(x)
        weights = torch.full((rows,), 1 / rows, dtype=torch.float64, device=x.device) if weights is None else weights
        pooled = weights @ mean
        var = weights @ (var + (mean - pooled).square())
        values = rows * x[0, 0].numel()
        share = values / (self.values + values)
        step = pooled - self.mean.to(pooled)
        self.var = self.var.to(var) * (1 - share) + var * share + step.square() * share * (1 - share)
        self.mean = self.mean.to(pooled) + step * share
        self.values += values


class _Run:
    """One plate on its way through the network."""

    def __init__(
        self,
        network: nn.Module,
        chunks: list[_Slot],
        controls: Sequence[Tensor | None],
        depot: _Depot,
        plate: str,
    ) -> None:
        self.network, self.depot, self.plate = network, depot, plate
        self.plan = _plan(network)
        self.values: list[dict[fx.Node, Any]] = [{self.plan.image: chunk} for chunk in chunks]
        self.pools: dict[fx.Node, _Pool] = {}
        if not chunks:
            raise DataError(f"plate '{plate}' has no images; give at least one chunk")
        lengths = [_length(chunk) for chunk in chunks]
        self.rows, self.weights = _weights(controls, lengths, depot.device, plate)

    def to_the_last_norm(self) -> dict[str, Tensor]:
        """Mean and biased variance (2, C) of every norm, float64, by the name of the layer."""
        for segment, following in zip(self.plan.segments, self.plan.segments[1:], strict=False):
            self._advance(segment, following[0])
        return {_path(node): torch.stack([pool.mean, pool.var]) for node, pool in self.pools.items()}

    def to_the_end(self) -> list[Any]:
        """The output of the network for every chunk."""
        self.to_the_last_norm()
        outputs = []
        for values in self.values:
            for node in self.plan.segments[-1]:
                output = self._execute(node, values)
            outputs.append(output)
        return outputs

    def _advance(self, segment: tuple[fx.Node, ...], norm: fx.Node) -> None:
        """Run a segment chunk by chunk, and pool the moments that the norm behind it needs."""
        pool = self.pools[norm] = _Pool()
        for values, rows, weights in zip(self.values, self.rows, self.weights, strict=True):
            for node in segment:
                self._execute(node, values)
            pool.add(self._arguments(norm, values)[0][0], weights, rows)
            for value in values.values():
                pytree.tree_map_only(_Slot, self.depot.park, value)
        if pool.values == 1:
            raise DataError(
                f"plate '{self.plate}' has one value a channel at layer '{_path(norm)}' to take statistics from; give it "
                "two images or more, larger images, or evaluate with calibrated statistics or running averages"
            )

    def _execute(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs, slots = self._arguments(node, values)
        result: Any
        if node in self.pools:
            pool = self.pools[node]
            result = _norm(self.network, _path(node)).normalize(args[0], pool.mean, pool.var)
        elif node.op == "call_module":
            result = self.network.get_submodule(_path(node))(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "output":
            return args[0]
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)

        def hold(tensor: Tensor) -> _Slot:  # one slot a tensor: an operation in place returns its argument
            return next((slot for slot in slots if slot.tensor is tensor), None) or _Slot(tensor)

        values[node] = pytree.tree_map_only(Tensor, hold, result)
        for dead in self.plan.dead[node]:
            values.pop(dead, None)
        return result

    def _arguments(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[list[Any], dict[str, Any], list[_Slot]]:
        """Arguments of a node for one chunk, a norm's all positional, and the slots that they were taken from."""
        slots: list[_Slot] = []

        def take(slot: _Slot) -> Tensor:
            slots.append(slot)
            return self.depot.take(slot)

        def value_of(other: fx.Node) -> Any:
            if other.op == "get_attr":
                return self._attribute(str(other.target))
            return pytree.tree_map_only(_Slot, take, values[other])

        args = list(fx.map_arg(node.args, value_of))
        kwargs = dict(fx.map_arg(node.kwargs, value_of))
        if node in self.pools:
            args, kwargs = [*args, *kwargs.values()], {}
        return args, kwargs, slots

    def _attribute(self, target: str) -> Any:
        if target in self.plan.constants:
            return self.plan.constants[target].to(self.depot.device)
        module, _, name = target.partition(".")[2].rpartition(".")
        return getattr(self.network.get_submodule(module), name)


def _length(chunk: _Slot) -> int:
    images = chunk.tensor if chunk.tensor is not None else chunk.host
    assert images is not None
    return len(images)


def _weights(
    controls: Sequence[Tensor | None], lengths: list[int], device: torch.device, plate: str
) -> tuple[list[int], list[Tensor | None]]:
    """Of each chunk: how many rows its statistics come from, and the weight of each row, None if it is all rows."""
    if all(flags is None for flags in controls):
        return lengths, [None] * len(lengths)
    rows: list[int] = []
    weights: list[Tensor | None] = []
    for flags, length in zip(controls, lengths, strict=True):
        if flags is None or flags.shape != (length,):
            given = "no control flags" if flags is None else f"{len(flags)} control flags"
            raise DataError(f"plate '{plate}' has a chunk of {length} rows with {given}; give one flag a row")
        flags = flags.cpu().double()
        rows.append(int(flags.sum()))
        weights.append((flags / max(rows[-1], 1)).to(device))
    if not sum(rows):
        raise DataError(
            f"plate '{plate}' has no control row among its {sum(lengths)} rows; take statistics from all rows instead"
        )
    return rows, weights


def _by_plate(
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    device: torch.device,
    store: Store,
    names: Sequence[str] | None,
) -> Iterator[tuple[int, list[_Slot], list[Tensor | None], _Depot]]:
    """Consecutive chunks of the same plate: its id, images, control flags, and where they wait."""
    current: int | None = None
    for images, plates, flags in batches:
        of_rows = plates.cpu().unique().tolist()
        if plates.shape != images.shape[:1] or not len(plates):
            raise DataError(f"{len(images)} images came with {len(plates)} plates; give one plate an image, and an image")
        if len(of_rows) > 1:
            mixed = "' and '".join(plate_name(plate, names) for plate in of_rows[:2])
            raise DataError(
                f"a chunk holds images of plates '{mixed}'; calibration needs chunks of one plate each, the chunks of a "
                "plate one after the other"
            )
        if of_rows[0] != current:
            if current is not None:
                yield current, chunks, controls, depot
            current, chunks, controls, depot = of_rows[0], [], [], _Depot(device, store)
        chunks.append(depot.receive(images))
        controls.append(flags)
    if current is not None:
        yield current, chunks, controls, depot
