"""Statistics of whole plates, computed once and kept in the layers."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, ConfigError, DataError
from biomass.norms.plate_batch_norm import PlateBatchNorm, device_of, plate_name, shared_context
from biomass.norms.whole_plate import Store, WholePlate, evaluating, norm_at, norms_used_once, unwrap


def calibrate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    *,
    store: Store = "auto",
    names: Sequence[str] | None = None,
) -> None:
    """Compute the statistics of whole plates and keep them in the layers, for the word ``calibrated``.

    Afterwards any image of these plates can be predicted by itself, in any order and mix, with the statistics of its
    plate. They are not part of the state dict (see :func:`calibration_state`), take memory for the calibrated plates
    only, and belong to the weights they were computed with: calibrate again after training. Plates of an earlier
    calibration stay, unless they are among these. After an error the earlier calibration is as it was.

    Args:
        network: as in :func:`whole_plate_forward`.
        batches: (images (n, C, H, W), plates (n,), weights (n,) or None): the chunks of each plate one after the other,
            none of them with rows of two plates. Weights as in :func:`whole_plate_forward`.
        store: where values wait between the norms.
        names: readable name of each plate id, for error messages.

    Raises:
        ConfigError: as in :func:`whole_plate_forward`; or the network uses one norm in several places.
        DataError: as in :func:`whole_plate_forward`; a chunk of two plates; a plate that comes back after another.

    >>> from biomass.norms import convert, plate_statistics
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1, affine=False))).eval()
    >>> a, b = torch.tensor([[1.0, 3.0], [100.0, 300.0]]).view(2, 2, 1, 1, 1)  # two plates of two images
    >>> calibrate(network, [(a, torch.tensor([0, 0]), None), (b, torch.tensor([1, 1]), None)])
    >>> with plate_statistics(network, torch.tensor([1]), "calibrated"):
    ...     round(network(b[:1]).item(), 3)  # one image by itself
    -1.0
    """
    network = unwrap(network)
    context = shared_context(network)
    statistics: dict[int, dict[str, Tensor]] = {}
    with evaluating(network):
        norms = norms_used_once(network)
        assert context is not None  # a network without norms has no order of them
        checked = ((_one_plate(images, plates, names), images, weights) for images, plates, weights in batches)
        for plate, chunks in itertools.groupby(checked, key=lambda chunk: chunk[0]):
            if plate in statistics:
                raise DataError(
                    f"plate '{plate_name(plate, names)}' comes back after another plate; its chunks must come one "
                    "after another: sort the rows by plate"
                )
            run = WholePlate(network, store, plate_name(plate, names))
            for _, images, weights in chunks:
                run.add(images, weights)
            statistics[plate] = run.to_the_last_norm()
        if not statistics:
            raise DataError("there are no images to calibrate with; give at least one chunk of one plate")
        kept = {plate: slot for plate, slot in context.slots.items() if plate not in statistics}
        for name in norms:
            norm = norm_at(network, name)
            stored = torch.stack([of_plate[name] for of_plate in statistics.values()], 1).to(_dtype(norm))
            if kept and norm.calibrated is not None:
                stored = torch.cat([norm.calibrated[:, list(kept.values())], stored], 1)
            norm.calibrated = stored
        context.slots = {plate: slot for slot, plate in enumerate([*kept, *statistics])}


def _one_plate(images: Tensor, plates: Tensor, names: Sequence[str] | None) -> int:
    """The plate that all images of a chunk are of."""
    if plates.shape != images.shape[:1] or not len(plates):
        raise DataError(f"{len(images)} images came with {len(plates)} plates; give one plate an image, and some image")
    different = plates.cpu().unique().tolist()
    if len(different) > 1:
        mixed = "' and '".join(plate_name(plate, names) for plate in different[:2])
        raise DataError(
            f"a chunk holds images of plates '{mixed}'; calibration takes chunks of one plate each, all chunks of a "
            "plate one after another"
        )
    return int(different[0])


def _dtype(norm: PlateBatchNorm) -> torch.dtype:
    """What calibrated statistics are kept in: the type of the layer, but no less than float32."""
    own = next((t.dtype for t in (norm.weight, norm.running_mean) if t is not None), torch.float32)
    return torch.promote_types(own, torch.float32)


def forget_calibration(network: nn.Module) -> None:
    """Drop the calibrated statistics of all plates.

    >>> from biomass.norms import convert
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1)))
    >>> calibrate(network, [(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([7, 7]), None)])
    >>> forget_calibration(network)
    >>> calibration_state(network)["plates"].tolist()
    []
    """
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

    >>> from biomass.norms import convert
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1)))
    >>> calibrate(network, [(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([7, 7]), None)])
    >>> state = calibration_state(network)
    >>> state["plates"].tolist(), state["norms.0"].tolist()  # mean 2, variance 1
    ([7], [[[2.0]], [[1.0]]])
    """
    network = unwrap(network)
    context = shared_context(network)
    plates = torch.tensor(list(context.slots) if context is not None else [], dtype=torch.long)
    norms = ((name, module) for name, module in network.named_modules() if isinstance(module, PlateBatchNorm))
    return {"plates": plates} | {
        f"norms.{name}": norm.calibrated.detach().cpu().clone() for name, norm in norms if norm.calibrated is not None
    }


def merge_calibrations(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One state, in the order of its plates, of those of networks that were calibrated on different plates.

    >>> one, two = ({"plates": torch.tensor([n]), "norms.0": torch.full((2, 1, 1), n)} for n in (9, 4))
    >>> merge_calibrations([one, two])["plates"].tolist()
    [4, 9]
    """
    there = [state for state in states if len(state["plates"])]
    plates = torch.cat([state["plates"] for state in states])
    order = plates.argsort()
    norms = (there or [{}])[0].keys() - {"plates"}
    return {"plates": plates[order]} | {n: torch.cat([state[n] for state in there], 1)[:, order] for n in norms}


def load_calibration(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the statistics of :func:`calibration_state` in place of any that ``network`` has.

    Raises:
        CheckpointError: ``state`` is not one of a network like this. The network is left as it was.

    >>> from biomass.norms import convert
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1)))
    >>> load_calibration(network, {"plates": torch.tensor([7]), "norms.0": torch.tensor([[[2.0]], [[1.0]]])})
    >>> calibration_state(network)["plates"].tolist()
    [7]
    """
    network = unwrap(network)
    norms = {f"norms.{n}": module for n, module in network.named_modules() if isinstance(module, PlateBatchNorm)}
    if "plates" not in state:
        raise CheckpointError("the calibration has no entry 'plates'; give the dict of biomass.norms.calibration_state")
    for key in state.keys() - {"plates"}:
        if key not in norms:
            raise CheckpointError(f"the calibration has statistics of '{key}', which is not a norm of this network")
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
