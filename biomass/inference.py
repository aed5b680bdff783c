"""Running a network over a split, plate by plate, with the statistics that a word asks for."""

import itertools
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biomass.errors import ConfigError
from biomass.loader import Batch, Loader, SkippedImages
from biomass.norms import PlateBatchNorm, Statistics, calibrate, norms_used_once, unwrap, whole_plate_forward
from biomass.norms.whole_plate import room

Transform = Callable[..., Tensor]

_TENT_RATE = 1e-3


def infer(
    fabric: Fabric,
    network: nn.Module,
    loader: Loader,
    transform: Transform,
    statistics: Statistics,
    skipped: SkippedImages,
    classifies: bool = False,
) -> Generator[tuple[Batch, Tensor]]:
    """Run the network over all batches of a loader, without gradients and without moving a buffer.

    Where statistics come from all rows of a group that are at hand, consecutive batches of the same group are
    chunks of one plate: they are normalized together, exactly as if the whole plate were one batch
    (:func:`biomass.norms.whole_plate_forward`), whatever the size of the chunks.

    Args:
        fabric: device and precision.
        network: on that device.
        loader: what to run over.
        transform: applied on the device.
        statistics: where batch norm takes its statistics from.
        skipped: counts the images that cannot be read.
        classifies: the network's outputs are logits of the classes that it was trained on. Statistics that take note of
            classes run such a network several times over each plate.

    Yields:
        Each batch as it was read, on the host, and the network's output (N, D) for it, on the device.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), fabric.autocast():
            for chunks in read_plates(loader, statistics.whole_groups, skipped):
                outputs = run_plate(network, chunks, transform, statistics, fabric.device, classifies)
                yield from zip(chunks, outputs, strict=True)
    finally:
        network.train(was_training)


def calibrate_plates(
    fabric: Fabric,
    network: nn.Module,
    loader: Loader,
    transform: Transform,
    statistics: Statistics,
    skipped: SkippedImages,
) -> None:
    """Store the moments of all plates of a loader in the network, for the word ``calibrated``.

    Args:
        fabric: device and precision.
        network: on that device.
        loader: serves the plates one after the other, whole or in chunks.
        transform: applied on the device.
        statistics: which rows of a plate count; names the plates.
        skipped: counts the images that cannot be read.

    Raises:
        ConfigError, DataError: as :func:`biomass.norms.calibrate`.
    """
    with torch.inference_mode(False), fabric.autocast():
        calibrate(
            network,
            (
                (
                    transform(batch.to(fabric.device).images),
                    batch.groups,
                    statistics.mixture(network, batch.controls).weights,
                )
                for batch in _readable(loader, skipped)
            ),
            names=statistics.names,
        )


def infer_calibrated(
    fabric: Fabric,
    network: nn.Module,
    loader: Loader,
    transform: Transform,
    statistics: Statistics,
    held: Collection[int],
    skipped: SkippedImages,
) -> Generator[tuple[Batch, Tensor, dict[str, Tensor]]]:
    """As :func:`infer` under ``calibrated``, but plates whose moments are not stored are measured first, in one pass.

    Args:
        fabric, network, loader, transform, skipped: as in :func:`infer`; no batch has rows of two plates.
        statistics: which rows of a plate it is measured on.
        held: the plates whose moments the network has.

    Yields:
        Each batch, the network's output, and with the first batch of a plate that was measured its moments, named as
        in :func:`biomass.norms.calibration_state`; else nothing.
    """
    stored = replace(statistics, word="calibrated")
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode(), fabric.autocast():
            norms_used_once(unwrap(network))
            for plate, batches in itertools.groupby(_readable(loader, skipped), key=lambda one: int(one.groups[0])):
                if plate in held:
                    for batch in batches:
                        yield batch, run_plate(network, [batch], transform, stored, fabric.device)[0], {}
                    continue
                chunks, found = list(batches), dict[str, Tensor]()
                outputs = run_plate(network, chunks, transform, statistics, fabric.device, moments=found)
                moments = {f"norms.{name}": value.float().cpu() for name, value in found.items()}
                for chunk, output in zip(chunks, outputs, strict=True):
                    yield chunk, output, moments
                    moments = {}
    finally:
        network.train(was_training)


def read_plates(loader: Loader, whole: bool, skipped: SkippedImages) -> Iterator[list[Batch]]:
    """The batches of a loader: consecutive ones of the same group together, where a group runs whole; else one by one.

    Args:
        loader: what to read.
        whole: whether consecutive batches of the same group are chunks of one plate.
        skipped: counts the images that cannot be read.
    """
    numbered = enumerate(_readable(loader, skipped))
    for _, chunks in itertools.groupby(numbered, key=lambda item: _plate(*item) if whole else item[0]):
        yield [batch for _, batch in chunks]


def _plate(number: int, batch: Batch) -> tuple[str, int]:
    """What consecutive batches have in common if they are chunks of one plate; mixed batches stand alone."""
    groups = batch.groups.unique().tolist()
    return ("plate", groups[0]) if len(groups) == 1 else ("mixed", number)


def _readable(loader: Loader, skipped: SkippedImages) -> Iterator[Batch]:
    """The batches with an image that can be read; what cannot is counted."""
    for batch in loader:
        skipped.note(batch)
        if len(batch):
            yield batch


def run_plate(
    network: nn.Module,
    chunks: Sequence[Batch],
    transform: Transform,
    statistics: Statistics,
    device: torch.device,
    classifies: bool = False,
    moments: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """What a network in evaluation mode says of the chunks of one plate, or of one mixed batch.

    Args:
        network: on that device.
        chunks: of the plate; a single one may hold rows of several groups.
        transform: applied on the device.
        statistics: where batch norm takes its statistics from.
        device: of the network.
        classifies: as in :func:`infer`.
        moments: takes those of the plate, by the name of the norm, where statistics come from all rows of a plate.

    Returns:
        The network's output (n, D) for each chunk, on the device.
    """
    if statistics.adapts:
        if not classifies:
            raise ConfigError("statistics 'tent' adapt a classifier, which this network is not used as", "statistics")
        return _adapted(network, chunks, transform, statistics, device)
    outputs: list[Tensor] = []
    passes = statistics.passes(network) if classifies else 1
    images = _Images(chunks, transform, device, keep=passes > 1)
    for _ in range(passes):
        logits = torch.cat(outputs) if outputs else None
        if len(chunks) == 1 and moments is None:
            with statistics.of(network, chunks[0].groups, chunks[0].controls, logits):
                outputs = [network(images[0])]
            continue
        group = int(chunks[0].groups[0])
        mixture = statistics.mixture(network, torch.cat([chunk.controls for chunk in chunks]), logits)
        outputs = whole_plate_forward(
            network,
            (images[number] for number in range(len(chunks))),
            weights=None if mixture.weights is None else mixture.weights.split([len(chunk) for chunk in chunks]),
            correction=mixture.correction,
            plate=statistics.names[group] if statistics.names else str(group),
            moments=moments,
        )
    return outputs


class _Images:
    """The images of the chunks of a plate as the network takes them; made once for several passes, where there is room.

    Args:
        chunks: of the plate.
        transform: applied on the device.
        device: where to.
        keep: there are several passes.
    """

    def __init__(self, chunks: Sequence[Batch], transform: Transform, device: torch.device, keep: bool) -> None:
        self.chunks, self.transform, self.device, self.keep = chunks, transform, device, keep
        self._made: dict[int, tuple[Tensor, int]] = {}

    def __getitem__(self, number: int) -> Tensor:
        images, version = self._made.get(number, (None, 0))
        if images is not None and images._version == version:  # a network may change its input in place
            return images
        if not self.keep:
            return self.transform(self.chunks[number].to(self.device).images)
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor does not tell when it is changed
            images = self.transform(self.chunks[number].to(self.device).images)
            images = images.clone() if images.is_inference() else images
        if not self._made:
            of_plate = images.nbytes / len(images) * sum(map(len, self.chunks))
            self.keep = of_plate <= room(self.device)
        if self.keep:
            self._made[number] = images, images._version
        return images


def _adapted(
    network: nn.Module, chunks: Sequence[Batch], transform: Transform, statistics: Statistics, device: torch.device
) -> list[Tensor]:
    """What a classifier says of the chunks of a plate while it adapts to it; it is as before in the end.

    After each chunk the scale and shift of all norms take a step of Adam that lowers the entropy of the predictions
    (Tent, online; Wang et al. 2021, whose learning rate this is). A chunk has its own statistics.
    """
    norms = [module for module in network.modules() if isinstance(module, PlateBatchNorm)]
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias) if parameter is not None]
    before = [(parameter, parameter.detach().clone(), parameter.requires_grad) for parameter in affine]
    outputs = []
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for parameter in affine:
                parameter.requires_grad_(True)
            optimizer = torch.optim.Adam(affine, lr=_TENT_RATE)
            for chunk in chunks:
                images = transform(chunk.to(device).images.clone())  # a tensor of inference mode has no gradients
                with statistics.of(network, chunk.groups.clone(), chunk.controls):
                    logits = network(images)
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
                for parameter, gradient in zip(affine, torch.autograd.grad(entropy, affine), strict=True):
                    parameter.grad = gradient
                optimizer.step()
                outputs.append(logits.detach())
        finally:
            for parameter, value, required in before:
                parameter.requires_grad_(required)
                parameter.grad = None
                with torch.no_grad():
                    parameter.copy_(value)
    return outputs
