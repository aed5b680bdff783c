"""A network is an encoder with a head behind it, and an architecture that a checkpoint can carry."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.models.adapt import Adapted, check_channels_word, first_convolution, widen
from biomass.models.encoders import build_encoder
from biomass.models.image_norms import check_norm, replace_batch_norms
from biomass.norms import convert


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network again.

    Attributes:
        key: the encoder's name, see :func:`biomass.models.build_encoder`.
        in_channels: number of image channels C.
        head: widths of the linear layers behind the encoder, with ReLU between them: ``(d_out,)`` classifies,
            ``(2048, 128)`` projects, ``()`` hands the features on as they are.
        norm: what normalizes inside the encoder, of :data:`biomass.models.image_norms.NORMS`.
        standardize: the encoder ends in a batch norm of its features, without weights: so plates have statistics in
            networks that have no other batch norm.
        channels: how the encoder's three channels become C, of :data:`biomass.models.adapt.CHANNELS`.
        as_trained: images are scaled to what the encoder saw in pre-training.
        options: keyword arguments of the function that ``key`` names, if it names one; plain values.
    """

    key: str
    in_channels: int
    head: tuple[int, ...]
    norm: str = "batch"
    standardize: bool = False
    channels: str = "repeat"
    as_trained: bool = False
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_channels_word(self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; without what is as it was before there was a choice."""
        before = {one.name: one.default for one in fields(self)}
        values = {**asdict(self), "head": list(self.head)}
        return {key: value for key, value in values.items() if value != before[key]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Architecture":
        """The inverse of :meth:`to_dict`."""
        key, in_channels, head = str(values["key"]), int(values["in_channels"]), tuple(values["head"])
        norm, channels = str(values.get("norm", "batch")), str(values.get("channels", "repeat"))
        standardize, as_trained = (values.get(name) is True for name in ("standardize", "as_trained"))
        return cls(key, in_channels, head, norm, standardize, channels, as_trained, values.get("options"))


class Network(nn.Module):
    """``head(encoder(images))``: (N, C, H, W) → (N, D) → (N, d_out); ``num_features`` is D.

    With ``features=True`` it gives both, (N, d_out) and (N, D).
    """

    def __init__(self, encoder: nn.Module, num_features: int, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = num_features
        self.head = head

    def forward(self, images: Tensor, features: bool = False) -> Any:
        found = self.encoder(images)
        return (self.head(found), found) if features else self.head(found)


def build_network(architecture: Architecture, pretrained: bool = False, seed: int = 0) -> Network:
    """Build a network whose batch norms, if it is to have them, are plate-aware (see :mod:`biomass.norms`).

    The initial weights depend on ``seed`` alone; the global random state is left as it was.

    Raises:
        ConfigError: neither library has the encoder, or it has no batch norm in whose place another could be put.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, num_features = build_encoder(
            architecture.key,
            architecture.in_channels,
            pretrained,
            architecture.channels,
            architecture.as_trained,
            architecture.options,
        )
        if architecture.norm != "batch":
            replace_batch_norms(encoder, architecture.norm)
        if architecture.standardize:
            encoder = nn.Sequential(encoder, nn.BatchNorm1d(num_features, affine=False))
        return Network(convert(encoder), num_features, multilayer(num_features, architecture.head))


def adapt(network: Network, architecture: Architecture, wanted: Architecture) -> Network:
    """A network with the weights of another one, for images of other channels or brightness.

    Args:
        network: of weights made elsewhere; its first convolution may be changed in place.
        architecture: of ``network``, as its first convolution says.
        wanted: the same but for ``in_channels``, ``channels``, ``as_trained`` and ``standardize``, and, for ``each``,
            without a head.

    Raises:
        ConfigError: the network does not see three channels, which ``each`` needs.
    """
    if wanted.channels != "each":
        if (wanted.in_channels, wanted.channels) != (architecture.in_channels, "repeat"):
            widen(first_convolution(network.encoder), wanted.in_channels, wanted.channels)
    elif architecture.in_channels != 3:
        raise ConfigError(
            f"a {architecture.key} of {architecture.in_channels} channels cannot see each channel as a grey image",
            "widen",
        )
    new = build_network(wanted)
    inner = new.encoder[0] if isinstance(new.encoder, nn.Sequential) and wanted.standardize else new.encoder
    inner = inner.net if isinstance(inner, Adapted) else inner
    inner.load_state_dict(network.encoder.state_dict())
    if wanted.head:
        new.head.load_state_dict(network.head.state_dict())
    return new


def multilayer(in_features: int, widths: Sequence[int]) -> nn.Module:
    """Linear layers of the given widths with ReLU between them; the identity for no widths.

    >>> [type(layer).__name__ for layer in multilayer(512, [2048, 128])]
    ['Linear', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.ReLU()] if layers else []
        layers.append(nn.Linear(in_features, width))
        in_features = width
    return nn.Sequential(*layers) if len(layers) != 1 else layers[0]


def digest(module: nn.Module) -> str:
    """A hash of all weights and buffers of a module, with their names: hexadecimal SHA-256."""
    hashed = hashlib.sha256()
    for name, value in module.state_dict().items():
        hashed.update(name.encode())
        if isinstance(value, Tensor):
            hashed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
