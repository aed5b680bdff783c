"""What a network learns of its training plates beside its weights, for statistics that do not break.

Statistics of a plate tell its staining and light from those of other plates only if plates are composed alike. Where a
plate holds few rows, moments are noisy; where it holds few classes, or one class mostly, they carry the biology away.
Two things that a network knows of its training plates help, and both are measured once, after training:

- the *prior*, mean and variance of an average plate at every norm (``shrunk``: Schneider et al. 2020);
- the *strata*: what rows of each class, and controls of each kind, look like at every norm, in units of their plate.
  So it is known what a composition does to mean and variance, and that can be taken out again
  (:meth:`.PlateBatchNorm.corrected`). Controls alone then stand for whole plates: their composition is known.

Where treated rows shall count too, their composition is estimated (:func:`balanced`): predict under the statistics of
the controls, count what is predicted, take that composition out, and repeat: expectation and maximization, as for
label shift (Saerens, Latinne & Decaestecker 2002). Other methods weight rows by their predicted class (NOTE, Gong et
al. 2022; DELTA, Zhao, Chen & Xia 2023), for which every class must be there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biomass.errors import CheckpointError, DataError
from biomass.norms.plate_batch_norm import Correction, PlateBatchNorm, device_of, shared_context
from biomass.norms.whole_plate import Store, WholePlate, evaluating, norms_used_once, unwrap
from biomass.vocabulary import CONTROLS

KINDS = len(CONTROLS) - 1
"""Kinds of controls; their strata stand behind those of the classes, in the order of their numbers."""


MODES = {
    "classes": "all rows, their composition as it is predicted",
    "anchor": "the controls, as if they were the whole plate",
    "controls": "the controls as they are",
    "plate": "all rows as they are",
}
"""How far ``balanced`` goes, from what trusts predictions and training plates to what trusts neither."""


@dataclass(frozen=True)
class Tuning:
    """What the words ``shrunk`` and ``balanced`` need to know of a network, beside what its layers store.

    Attributes:
        treated: (K,) share of each class among the treated rows of the training plates; 0 for controls.
        shrinkage: N of ``shrunk``, the number of rows that the prior weighs as much as, 0 or more.
        prior_rows: N of ``balanced``.
        mode: how far ``balanced`` goes, one of :data:`MODES`.
        evenness: how much of the unevenness of a composition its prediction shows, in (0, 1]; predictions are even
            where they are uncertain.
        trust: how many times more than a treated row a control counts, beyond once, on a plate of a single class, or of
            a single treated row.
        strength: how much of what a composition does is taken out, in (0, 1]: on other plates than those of training it
            may do something else.
        fitted: whether the numbers were chosen on validation plates.
    """

    treated: tuple[float, ...]
    shrinkage: float = 1.0
    prior_rows: float = 4.0
    mode: str = "classes"
    evenness: float = 0.25
    trust: float = 30.0
    strength: float = 1.0
    fitted: bool = False

    def describe(self) -> str:
        """The numbers, for people.

        >>> Tuning((1.0,)).describe()
        'classes: shrinkage 1, prior_rows 4, evenness 0.25, trust 30, strength 1'
        """
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        return f"{self.mode}: {', '.join(f'{name} {value:g}' for name, value in numbers.items())}"


class Rows(NamedTuple):
    """What is known of the rows of one group before their statistics are taken.

    Attributes:
        controls: (N,) int, as :attr:`biomass.screen.Screen.controls`.
        reference: (N,) bool, the controls that statistics may be taken from.
        logits: (N, K) float64 of the pass before; None in the first pass, and of networks that do not classify.
    """

    controls: Tensor
    reference: Tensor
    logits: Tensor | None = None


class Mixture(NamedTuple):
    """How the rows of one group make its statistics.

    Attributes:
        weights: (N,) flags or numbers; None: all alike.
        composition: (S,) float64, see :class:`.Correction`; None for none.
        share: of the prior, None for none.
    """

    weights: Tensor | None = None
    composition: Tensor | None = None
    share: float | None = None

    @property
    def correction(self) -> Correction | None:
        """The same for one group, as layers take it."""
        return stack_corrections([self])


def stack_corrections(mixtures: Sequence[Mixture]) -> Correction | None:
    """The corrections of several groups; None if there is nothing to correct."""
    compositions = [one.composition for one in mixtures if one.composition is not None]
    shares = [one.share for one in mixtures if one.share is not None]
    if not compositions and not shares:
        return None
    assert len(compositions) in (0, len(mixtures))
    assert len(shares) in (0, len(mixtures))
    return Correction(
        torch.stack(compositions) if compositions else None,
        torch.tensor(shares, dtype=torch.float64)[:, None] if shares else None,
    )


def effective_rows(weights: Tensor) -> float:
    """How many rows of equal weight say as much as rows of these weights (N,): (sum w)² / sum w².

    >>> effective_rows(torch.tensor([2.0, 2.0, 0.0])), effective_rows(torch.tensor([3.0, 1.0]))
    (2.0, 1.6)
    """
    wide = weights.double()
    return float(wide.sum().square() / wide.square().sum())


def shrunk(rows: Rows, tuning: Tuning) -> Mixture:
    """All rows, towards the plate's controls where there are any, and towards the prior.

    With n treated rows and N of :attr:`Tuning.shrinkage`, the controls together have the weight that N treated rows
    have, if they have less; the prior has the share ``N / (N + n)`` of n effective rows (Schneider et al. 2020).

    >>> shrunk(Rows(torch.tensor([0, 0]), torch.tensor([False, False])), Tuning((1.0,), shrinkage=2.0)).share
    0.5
    """
    weights = torch.ones(len(rows.controls), dtype=torch.float64)
    number = int(rows.reference.sum())
    if number and number < len(weights):
        weights[rows.reference] = max(1.0, tuning.shrinkage / number)
    size = effective_rows(weights)
    share = tuning.shrinkage / (tuning.shrinkage + size)
    return Mixture(None if bool((weights == 1).all()) else weights, share=share)


def balanced(rows: Rows, tuning: Tuning) -> Mixture:
    """The statistics that the group would have if it were composed as training plates are.

    Without logits: the reference rows, and what such controls are taken out; or all rows as they are, where there is
    no reference. With logits: all rows, and what their estimated composition is taken out; the more uneven it is, the
    more the controls count, whose composition is known. Each is blended with the prior as by :func:`shrunk`. Where
    predictions were found not to be trusted, :attr:`Tuning.mode` says what is done in place of that.

    >>> rows = Rows(torch.tensor([0, 0, 1, 1]), torch.tensor([False, False, True, True]))
    >>> balanced(rows, Tuning((0.5, 0.5, 0.0))).composition.tolist()  # classes, negative and positive controls
    [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    weights = torch.ones(len(rows.controls), dtype=torch.float64)
    treated = rows.controls == 0
    kinds = nn.functional.one_hot(rows.controls.long(), len(CONTROLS))[:, 1:].double()
    classes = torch.zeros(len(tuning.treated), dtype=torch.float64)  # of rows that are not said to be of any
    if tuning.mode == "classes" and rows.logits is not None and bool(treated.any()) and any(tuning.treated):
        classes, uneven = estimate_composition(rows.logits[treated], tuning)
        number = int(treated.sum())
        weights[~treated] += tuning.trust * (1 / number + (1 - 1 / number) * uneven)  # few rows cannot be even
    elif tuning.mode != "plate" and bool(rows.reference.any()):
        weights = rows.reference.double()
    if tuning.mode in ("controls", "plate"):
        kinds = torch.zeros_like(kinds)
    w = weights / weights.sum()
    composition = torch.cat([classes * w[treated].sum(), w @ kinds])
    return Mixture(
        weights, tuning.strength * composition, tuning.prior_rows / (tuning.prior_rows + effective_rows(weights))
    )


def estimate_composition(logits: Tensor, tuning: Tuning) -> tuple[Tensor, float]:
    """Which share of the treated rows of a plate each class has, and how uneven the plate is.

    Let p be the mean of the predicted probabilities over n rows, and u the shares in training. Classes are taken to be
    drawn from a Dirichlet distribution of mean u and concentration A. Then ``|p - u|²`` is expected to be
    ``(1 - |u|²) (1/n + (1 - 1/n) / (A + 1))``, which gives A; and ``(n p + A u) / (n + A)`` is the estimate. So a plate
    that looks like those of training is taken for one. Uncertain predictions are more even than the classes are, for
    which :attr:`Tuning.evenness` allows.

    Args:
        logits: (n, K).
        tuning: knows u.

    Returns:
        (K,) float64, with a sum of 1; and 1 / (A + 1), which is 0 for plates that are composed as in training, and 1
        for plates of a single class.

    >>> tuning = Tuning((0.5, 0.5), evenness=1.0)
    >>> composition, uneven = estimate_composition(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), tuning)
    >>> composition.tolist(), round(uneven, 3)
    ([0.5, 0.5], 0.0)
    """
    expected = torch.tensor(tuning.treated, dtype=torch.float64)
    n = len(logits)
    predicted = logits.double().masked_fill(expected == 0, -torch.inf).softmax(1).mean(0)
    uneven = (predicted - expected).square().sum() / (1 - expected.square().sum()).clamp(min=1e-6)
    beyond = (uneven - 1 / n) / max(1 - 1 / n, 1 / n) / tuning.evenness
    inverse = float(beyond.clamp(0, 1))  # 1 / (A + 1)
    return (n * inverse * predicted + (1 - inverse) * expected) / (n * inverse + 1 - inverse), inverse


def measure_plates(
    network: nn.Module,
    plates: Iterable[Iterable[tuple[Tensor, Tensor, Tensor]]],
    num_classes: int,
    *,
    store: Store = "auto",
    gather: Callable[[Any], Sequence[Any]] | None = None,
) -> None:
    """Store the prior and the strata of training plates in the layers, and in their context what goes with them.

    They belong to the weights that they were measured with: measure again after training. They follow the network to
    its device and are not in the state dict, see :func:`tuning_state`.

    Args:
        network: as in :func:`whole_plate_forward`.
        plates: the chunks of each plate, (images (n, C, H, W), labels (n,), controls (n,)): labels from 0, -1 where
            unknown; controls as :attr:`biomass.screen.Screen.controls`.
        num_classes: K.
        store: where values wait between the norms.
        gather: from what this process has found to what all have, where each measures some of the plates.

    Raises:
        ConfigError: as :func:`whole_plate_forward`; or the network uses one norm in several places.
        DataError: there is no plate.

    >>> from biomass.norms import convert
    >>> network = convert(nn.Sequential(nn.BatchNorm2d(1, affine=False))).eval()
    >>> plate = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), torch.tensor([0, 0])
    >>> measure_plates(network, [[plate]], num_classes=2)
    >>> network[0].prior.tolist(), network[0].strata[0].tolist()  # class 0 is below the plate's mean, class 1 above
    ([[2.0], [1.0]], [[-1.0], [1.0], [0.0], [0.0]])
    """
    network = unwrap(network)
    sums: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    counts = torch.zeros(num_classes + KINDS, dtype=torch.float64)
    number = 0
    with evaluating(network):
        names = norms_used_once(network)
        for chunks in plates:
            run = WholePlate(network, store, "of training")
            members = []
            for images, labels, controls in chunks:
                run.add(images, None)
                members.append(_members(labels, controls, num_classes))
            if not members:
                continue
            number += 1
            run.members = torch.cat(members).to(device_of(network))
            counts += torch.cat(members).sum(0)
            for name, value in run.to_the_last_norm().items():
                moments[name] = moments.get(name, 0) + value
                sums[name] = sums.get(name, 0) + run.strata[name]
    if gather is not None:
        found = [counts, *({name: value.cpu() for name, value in of.items()} for of in (moments, sums))]
        numbers, *parts = zip(*gather((number, *found)), strict=True)
        number, counts = sum(numbers), torch.stack(parts[0]).sum(0)
        moments, sums = (_added(of, device_of(network)) for of in parts[1:])
    if not number:
        raise DataError("there are no training plates to measure; give at least one")
    context = shared_context(network)
    assert context is not None
    seen = counts.clamp(min=1).to(device_of(network))[:, None]
    absent = (counts == 0).to(seen.device)
    for name in names:
        norm = network.get_submodule(name)
        first, second = sums[name] / seen
        second[absent] = 1  # nothing is known of it: it is taken for a whole plate
        norm.prior = (moments[name] / number).float()
        norm.strata = torch.stack([first, second]).float()
    treated = counts[:num_classes] / counts[:num_classes].sum().clamp(min=1)
    context.tuning = Tuning(tuple(treated.tolist()))


def _added(parts: Iterable[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """The sums of what several processes have found; one that had no plate has found nothing."""
    there = [part for part in parts if part]
    return {name: torch.stack([part[name] for part in there]).sum(0).to(device) for name in (there or [{}])[0]}


def _members(labels: Tensor, controls: Tensor, num_classes: int) -> Tensor:
    """Which stratum each row is of, (N, K + kinds) float64; none for treated rows without a label."""
    stratum = torch.where(controls > 0, num_classes + controls.long() - 1, labels.cpu())
    members = torch.zeros(len(labels), num_classes + KINDS, dtype=torch.float64)
    known = stratum >= 0
    members[known, stratum[known]] = 1
    return members


def tuning_state(network: nn.Module) -> dict[str, Any] | None:
    """What is known of training plates as plain values and tensors on the host, for a file; None if nothing is.

    >>> from biomass.norms import convert
    >>> tuning_state(convert(nn.BatchNorm2d(1))) is None
    True
    """
    network = unwrap(network)
    context = shared_context(network)
    if context is None or context.tuning is None:
        return None
    norms = ((name, norm) for name, norm in network.named_modules() if isinstance(norm, PlateBatchNorm))
    stored = ((name, norm.prior, norm.strata) for name, norm in norms)
    known = {name: (prior, strata) for name, prior, strata in stored if prior is not None and strata is not None}
    return {
        **vars(context.tuning),
        "prior": {name: prior.cpu() for name, (prior, _) in known.items()},
        "strata": {name: strata.cpu().half() for name, (_, strata) in known.items()},  # of the size of 1
    }


def load_tuning(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Give ``network`` what :func:`tuning_state` gave of one like it.

    Raises:
        CheckpointError: it is of another network. This one is left as it was.

    >>> from biomass.norms import convert
    >>> one, other = (convert(nn.Sequential(nn.BatchNorm1d(1))) for _ in range(2))
    >>> rows = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), torch.tensor([0, 0])
    >>> measure_plates(one, [[rows]], num_classes=2)
    >>> load_tuning(other, tuning_state(one))
    >>> other[0].prior.tolist()
    [[2.0], [1.0]]
    """
    network = unwrap(network)
    context = shared_context(network)
    try:
        rest = {key: value for key, value in state.items() if key not in ("prior", "strata")}
        tuning = Tuning(**rest | {"treated": tuple(rest["treated"])})
        found = {name: (prior, state["strata"][name]) for name, prior in state["prior"].items()}
        norms = {name: network.get_submodule(name) for name in found}
        size = len(tuning.treated) + KINDS
        fits = context is not None and all(
            isinstance(norm, PlateBatchNorm)
            and found[name][0].shape == (2, norm.num_features)
            and found[name][1].shape == (2, size, norm.num_features)
            for name, norm in norms.items()
        )
    except (AttributeError, KeyError, TypeError):
        fits = False
    if not fits:
        raise CheckpointError("the moments of training plates are of another network; measure them again", "tune")
    assert context is not None
    for name, norm in norms.items():
        prior, strata = (value.to(device_of(network)).float() for value in found[name])
        vars(norm).update(prior=prior, strata=strata)
    context.tuning = tuning
