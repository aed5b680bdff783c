"""Running a network over a whole plate in bounded memory, exactly.

A network runs *layer-synchronously* over the chunks of a plate: all chunks advance to the input of a batch norm, the
moments of the chunks are pooled into those of the plate, and only then do the chunks go on. So every layer sees the
statistics of the whole plate, in one pass over the network, while the operations themselves only ever hold one chunk.

A network of two norms and two chunks a, b runs in this order, where ``conv`` stands for all that is between norms::

    conv a, conv b | pool a and b → mean, var of norm 1 | norm 1, conv a; norm 1, conv b | pool → norm 2 | norm 2 a, b
    '-- segment 0 -'                                      '-------- segment 1 ---------'

The words of this module: a *node* is one operation of the traced network; a *segment* holds the nodes from one norm up
to the next; the *plan* is the segments of a network, and which values nobody needs after a node; a *pool* gathers the
moments of the chunks at one norm; a *slot* holds a tensor of one chunk, on the device or, where there is no room, in
host memory; the *depot* decides which.
"""

import itertools
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from biomass.errors import ConfigError, DataError, did_you_mean
from biomass.norms.plate_batch_norm import Correction, PlateBatchNorm, device_of, row_moments

T = TypeVar("T")

_NO_VARIANCE = 1e-12  # what is below comes from rounding

Store = Literal["auto", "device", "host"]
"""Where values wait for the other chunks: on the device while half of its free memory lasts, always, never."""


def whole_plate_forward(
    network: nn.Module,
    chunks: Iterable[Tensor],
    *,
    weights: Sequence[Tensor] | None = None,
    correction: Correction | None = None,
    store: Store = "auto",
    plate: str = "of these images",
    moments: dict[str, Tensor] | None = None,
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
        weights: for each chunk how much each row counts in the statistics, (n,), 0 or more, in one unit for all chunks;
            flags, such as those of the control rows, are weights, too. None: all rows alike.
        correction: of the plate's moments at every norm, by what the network stores of training plates.
        store: where values wait between the norms.
        plate: name of the plate, for error messages.
        moments: takes the mean and biased variance (2, C), float64, that every norm used, by the name of the layer.
            They are rounded to float32 before they are used, so that what is kept of them in a file gives the same.

    Returns:
        The network's output for each chunk, in order, on the network's device.

    Raises:
        ConfigError: the network has no plate-aware norm, or plain ones beside them, or cannot be traced.
        DataError: no chunk; no row that counts; weights that do not fit; statistics that rest on one value a channel.

    >>> from biomass.norms import convert, plate_statistics
    >>> network = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())).eval()
    >>> plate = torch.randn(6, 1, 4, 4)
    >>> outputs = whole_plate_forward(network, plate.split(2))
    >>> with torch.no_grad(), plate_statistics(network, torch.zeros(6, dtype=torch.long)):
    ...     torch.allclose(torch.cat(outputs), network(plate), atol=1e-5)
    True
    """
    network = unwrap(network)
    with evaluating(network):
        run = WholePlate(network, store, plate, correction)
        run.rounded = moments is not None
        for chunk, weight in itertools.zip_longest(chunks, weights or ()):
            if chunk is None:
                raise DataError("there are more sets of weights than chunks; give one set a chunk")
            run.add(chunk, weight)
        outputs, found = run.to_the_end(), run.moments
    if moments is not None:
        moments.update(found)
    return outputs


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of ``torch.compile``, of data parallel training and of Fabric.

    >>> network = nn.Linear(1, 1)
    >>> unwrap(nn.DataParallel(network)) is network
    True
    """
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


class _Proxy(fx.Proxy):
    """A proxy that keeps ``x += y`` in place, where that of torch.fx turns it into ``x = x + y``."""


def _in_place(function: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Looks into those modules only that hold a norm; all others run as they are, whatever is inside."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

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
    """The plan of ``network``, which is in evaluation mode; made again only if its modules changed."""
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
            f"{type(network).__name__} cannot be traced by torch.fx ({type(error).__name__}: {reason}), so a plate "
            "cannot be run in chunks; run each plate as one batch",
            "eval_batch_size",
        ) from error
    # inputs and attributes are looked up when a node needs them, all other nodes run
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    return _Plan(
        image=next(node for node in graph.nodes if node.op == "placeholder"),
        segments=_cut_at(nodes, [_is_norm(node, network) for node in nodes]),
        dead=_dead_after(nodes),
        constants={name: value for name, value in vars(root).items() if name not in before},
        norms=tuple(_path(node) for node in nodes if _is_norm(node, network)),
    )


def _cut_at(nodes: Sequence[T], begins: Sequence[bool]) -> tuple[tuple[T, ...], ...]:
    """Cut a sequence before each place where something begins; the first part may be empty.

    >>> _cut_at(["conv", "norm1", "relu", "norm2"], [False, True, False, True])
    (('conv',), ('norm1', 'relu'), ('norm2',))
    """
    starts = [0, *(place for place, begin in enumerate(begins) if begin), len(nodes)]
    return tuple(tuple(nodes[start:stop]) for start, stop in itertools.pairwise(starts))


def _dead_after(nodes: Sequence[fx.Node]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each node the values that nothing needs once it has run: those it uses, or makes, for the last time."""
    last_use: dict[fx.Node, fx.Node] = {node: node for node in nodes}
    for node in nodes:
        last_use.update(dict.fromkeys(node.all_input_nodes, node))
    dead: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for value, node in last_use.items():
        dead[node].append(value)
    return {node: tuple(values) for node, values in dead.items()}


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


def norm_at(network: nn.Module, name: str) -> PlateBatchNorm:
    """The norm called ``name`` in ``network``."""
    norm = network.get_submodule(name)
    assert isinstance(norm, PlateBatchNorm)
    return norm


def norms_used_once(network: nn.Module) -> tuple[str, ...]:
    """Names of the norms that a forward pass of ``network``, in evaluation mode, runs, in their order.

    Raises:
        ConfigError: the network uses one norm in several places, so that it has no one set of moments to keep.

    >>> from biomass.norms import convert
    >>> norms_used_once(convert(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))).eval())
    ('1',)
    """
    norms = _plan(network).norms
    repeated = [name for name, times in Counter(norms).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"layer '{repeated[0]}' is used in several places of the network, and cannot keep statistics of plates; "
            "give each place its own batch norm, or evaluate by whole plates",
            "eval_batch_size",
        )
    return norms


# --- values that wait -------------------------------------------------------------------------------------------------


class Slot:
    """A tensor that may wait, on the device or in host memory, while other chunks run.

    Attributes:
        tensor: on the device; None while it waits in host memory.
        host: its copy in host memory, if it has one.
        version: that of the tensor when it last was equal to the copy: operations in place raise it.
        reserved: bytes of the device that are set aside for it while it waits there.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.host: Tensor | None = None
        self.version = 0
        self.reserved = 0


class Depot:
    """Decides where tensors wait, and moves them.

    Attributes:
        device: where the network is.
        free: bytes on the device that tensors may still wait in.
    """

    def __init__(self, device: torch.device, store: Store) -> None:
        self.device = device
        self.free: float
        if store == "host":
            self.free = 0
        elif store == "device":
            self.free = float("inf")
        elif store == "auto":
            self.free = room(device)
        else:
            raise ConfigError(f"store '{store}' is unknown; {did_you_mean(store, get_args(Store))}")

    def receive(self, image: Tensor) -> Slot:
        """A slot for a chunk of images from the caller, wherever it is."""
        slot = Slot(image)
        if image.device != self.device:
            slot.tensor, slot.host = None, image
        self.wait(slot)
        return slot

    def wait(self, slot: Slot) -> None:
        """Let the tensor of a slot wait: on the device while there is room, else in host memory."""
        if slot.tensor is None or slot.reserved:  # it waits already
            return
        size = slot.tensor.numel() * slot.tensor.element_size()
        if size <= self.free:
            self.free -= size
            slot.reserved, slot.host = size, None
            return
        if slot.host is None or slot.version != _version(
            slot.tensor
        ):  # no copy yet, or one of before a change in place
            slot.host = _to_host(slot.tensor)
        slot.tensor = None

    def take(self, slot: Slot) -> Tensor:
        """The tensor on the device, to be used now."""
        self.free += slot.reserved
        slot.reserved = 0
        if slot.tensor is None:
            assert slot.host is not None
            slot.tensor = _to_device(slot.host, self.device)
            slot.version = _version(slot.tensor)
        return slot.tensor


def room(device: torch.device) -> float:
    """Bytes that may wait on a device: half of what is free on a GPU."""
    if device.type != "cuda":
        return float("inf")
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + cached) / 2


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
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; every module's own mode comes back at the end."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor does not tell when it is changed
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Part(NamedTuple):
    """How the rows of a chunk count.

    Attributes:
        weights: (n,) float64 on the device, with a sum of 1; None where all count alike.
        total: the sum of the weights as they were given, against which chunks are pooled.
        counting: the number of rows with a weight above 0.
    """

    weights: Tensor | None
    total: float
    counting: int


class _Pool:
    """Mean and biased variance of each channel over chunks, merged pairwise in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.values = 0  # a channel, that count
        self.weight = 0.0  # of them
        self.mean = self.var = torch.zeros((), dtype=torch.float64)
        self.coefficients: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, part: _Part, moments: tuple[Tensor, Tensor] | None = None) -> None:
        """Add the rows of ``x`` (n, C, *S), as they count; ``moments`` are theirs, where they are known already."""
        rows = part.counting if part.weights is not None else len(x)  # several rows an image, where layers see tokens
        if rows == 0:
            return
        row_mean, row_var = moments or row_moments(x)
        weights = row_mean.new_full((rows,), 1 / rows) if part.weights is None else part.weights
        mean = weights @ row_mean
        var = weights @ (row_var + (row_mean - mean).square())
        values = x.shape[2:].numel()  # a row and channel
        weight = (rows if part.weights is None else part.total) * values
        share = weight / (self.weight + weight)
        if share < 1:
            step = mean - self.mean
            var = self.var * (1 - share) + var * share + step.square() * (share * (1 - share))
            mean = self.mean + step * share
        self.mean, self.var = mean, var
        self.weight += weight
        self.values += rows * values


def _in_units(pool: _Pool, mean: Tensor, var: Tensor, members: Tensor) -> Tensor:
    """Sums over the rows of each stratum of the mean and the mean square of their values, in units of a plate.

    Args:
        pool: mean and variance of the plate; a channel without variance says nothing of the strata: 0 and 1.
        mean: (N, C) of every row.
        var: (N, C) of every row.
        members: (N, S) which stratum each row is of.

    Returns:
        (2, S, C).
    """
    if len(mean) != len(members):
        raise ConfigError(
            f"a layer normalizes {len(mean)} rows for {len(members)} images, so that classes cannot be told apart there"
        )
    offset, flat = mean - pool.mean, pool.var < _NO_VARIANCE
    scale = pool.var.clamp(min=_NO_VARIANCE)
    first = (offset / scale.sqrt()).masked_fill(flat, 0)
    second = ((var + offset.square()) / scale).masked_fill(flat, 1)
    return members.T @ torch.stack([first, second])


class WholePlate:
    """One plate on its way through the network.

    Attributes:
        members: (N, S) float64 on the device, which of S strata each row is of; the moments of the strata are then
            gathered, too.
        strata: of every norm, (2, S, C): sums over the rows of a stratum of the mean and the mean square of their
            values, in units of the plate.
        rounded: moments are rounded to float32 before they normalize.
    """

    def __init__(self, network: nn.Module, store: Store, plate: str, correction: Correction | None = None) -> None:
        if correction is not None:  # it was made on the host
            device = device_of(network)
            correction = Correction(*(None if one is None else one.to(device) for one in correction))
        self.network, self.plate, self.correction = network, plate, correction
        self.members: Tensor | None = None
        self.strata: dict[str, Tensor] = {}
        self.rounded = False
        self.plan = _plan(network)
        self.depot = Depot(device_of(network), store)
        self.values: list[dict[fx.Node, Any]] = []  # of each chunk
        self.weights: list[Tensor | None] = []
        self.lengths: list[int] = []
        self.pools: dict[fx.Node, _Pool] = {}

    def add(self, images: Tensor, weights: Tensor | None) -> None:
        """Take in a chunk: images (n, C, H, W), and how much each of them counts, (n,); None: all alike."""
        self.values.append({self.plan.image: self.depot.receive(images)})
        self.weights.append(weights)
        self.lengths.append(len(images))

    def to_the_last_norm(self) -> dict[str, Tensor]:
        """Mean and biased variance (2, C) of every norm, float64, by the name of the layer."""
        parts = _parts(self.weights, self.lengths, self.depot.device, self.plate)
        for segment, following in itertools.pairwise(self.plan.segments):
            self._advance(segment, following[0], parts)
        return self.moments

    @property
    def moments(self) -> dict[str, Tensor]:
        """Mean and biased variance (2, C) of every norm that was reached, float64, by the name of the layer."""
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

    def _advance(self, segment: tuple[fx.Node, ...], norm: fx.Node, parts: list[_Part]) -> None:
        """Run a segment chunk by chunk, and pool the moments that the norm behind it needs."""
        pool = self.pools[norm] = _Pool()
        rows: list[tuple[Tensor, Tensor]] = []
        for values, part in zip(self.values, parts, strict=True):
            for node in segment:
                self._execute(node, values)
            x = self._arguments(norm, values)[0][0]
            if part.weights is not None and len(x) != len(part.weights):
                raise ConfigError(
                    f"layer '{_path(norm)}' normalizes {len(x)} rows for {len(part.weights)} images, so controls "
                    "cannot be told apart there; take statistics of all rows",
                    "statistics",
                )
            if self.members is not None:
                rows.append(row_moments(x))
            pool.add(x, part, rows[-1] if rows else None)
            del x  # or it would not leave the device
            for value in values.values():
                _map(Slot, self.depot.wait, value)
        if pool.values == 1:
            raise DataError(
                f"plate '{self.plate}' has one value a channel at layer '{_path(norm)}' to take statistics from; give "
                "it two images or more, larger images, or evaluate with running averages"
            )
        if self.members is not None:
            mean, var = (torch.cat(moments) for moments in zip(*rows, strict=True))
            self.strata[_path(norm)] = _in_units(pool, mean, var, self.members)
        if self.correction is not None:
            layer = norm_at(self.network, _path(norm))
            mean, var = layer.corrected(pool.mean[None], pool.var[None], self.correction)
            pool.mean, pool.var = mean[0], var[0]
        if self.rounded:
            pool.mean, pool.var = pool.mean.float().double(), pool.var.float().double()

    def _execute(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Run one node for one chunk: take its arguments out of ``values``, put its result there, drop what is dead."""
        args, kwargs, slots = self._arguments(node, values)
        result: Any
        if node in self.pools:
            pool, norm = self.pools[node], norm_at(self.network, _path(node))
            if pool.coefficients is None:  # the same for all chunks
                pool.coefficients = norm.coefficients(args[0].dtype, pool.mean, pool.var)
            result = norm.scale(args[0], *pool.coefficients)
        elif node.op == "call_module":
            result = self.network.get_submodule(_path(node))(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "output":
            return args[0]
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)

        # An operation in place, such as a ReLU, returns its argument: result and argument then share one slot, so that
        # the tensor neither waits twice nor goes on from a copy that was made before the change.
        def slot_of(tensor: Tensor) -> Slot:
            return next((slot for slot in slots if slot.tensor is tensor), None) or Slot(tensor)

        values[node] = _map(Tensor, slot_of, result)
        for value in self.plan.dead[node]:
            values.pop(value, None)
        return result

    def _arguments(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[list[Any], dict[str, Any], list[Slot]]:
        """Arguments of a node for one chunk, a norm's all positional, and the slots that they were taken from.

        A node's arguments are nested tuples, lists and dicts of plain values and of other nodes, whose results stand in
        ``values``; those results are nested likewise, with slots in the place of tensors.
        """
        slots: list[Slot] = []

        def take(slot: Slot) -> Tensor:
            slots.append(slot)
            return self.depot.take(slot)

        def value_of(other: fx.Node) -> Any:
            if other.op == "get_attr":
                return self._attribute(str(other.target))
            return _map(Slot, take, values[other])

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


def _map(kind: type[T], function: Callable[[T], Any], value: Any) -> Any:
    """``value`` with the result of ``function`` in the place of all of a kind in it; mostly it is one itself."""
    return function(value) if isinstance(value, kind) else pytree.tree_map_only(kind, function, value)


def _parts(weights: Sequence[Tensor | None], lengths: list[int], device: torch.device, plate: str) -> list[_Part]:
    """How the rows of each chunk count, after a look at what was given."""
    if not sum(lengths):
        raise DataError(f"plate '{plate}' has no images; give at least one chunk with one")
    if all(weight is None for weight in weights):
        return [_Part(None, length, length) for length in lengths]
    parts = []
    for weight, length in zip(weights, lengths, strict=True):
        if weight is None or weight.shape != (length,):
            given = "no weights" if weight is None else f"{len(weight)} weights"
            raise DataError(f"plate '{plate}' has a chunk of {length} rows with {given}; give one a row")
        wide = weight.cpu().double()
        total = float(wide.sum())
        parts.append(_Part((wide / (total or 1.0)).to(device), total, int((wide > 0).sum())))
    if not any(part.counting for part in parts):
        raise DataError(
            f"plate '{plate}' has no control row among its {sum(lengths)} rows; take statistics of all rows instead",
            "statistics",
        )
    return parts
