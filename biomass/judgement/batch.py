"""Metrics of batch effects, and those of biology that the same neighbours tell.

No one of them alone says that a batch effect is gone: a collapsed encoder mixes plates perfectly, and an overcorrected
one loses its treatments. Each is told with what chance gives, see :mod:`biomass.judgement.shuffles`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from biomass.errors import CannotJudgeError
from biomass.evaluation.nearest import directions
from biomass.judgement import predicted, shuffles
from biomass.judgement.mixing import connectivity, kbet, lisi, lisi_weights, several_silhouettes, unit_silhouettes
from biomass.judgement.neighbours import (
    LIMIT,
    Graph,
    even_sample,
    plate_graph,
    plate_sample,
    treatment_graph,
    treatment_sample,
)
from biomass.judgement.scores import Measured, Metric
from biomass.judgement.table import COLUMN, COMPOUND, EXPERIMENT, PLATE, ROW, TREATMENT, Profiles

CONNECTED = 15
"""Neighbours of a well in the graph whose connectivity is asked for (Luecken et al. 2022)."""

_SMALL = 20  # wells of a batch below which kBET is unsuited
_LABELS = 300  # treatments whose batches get a silhouette
_FEW = 500  # wells of a treatment that are compared in pairs, for all shuffles at once
_COMPARED = 4000  # wells in silhouettes of treatments

MakeValues = Callable[[Graph, np.ndarray], tuple[shuffles.Values, str]]
"""From neighbours and labels to a function of labels, one value a well or treatment, and a note."""


def _batch_silhouette(role: str, others: str) -> Callable[[Profiles, int], Measured]:
    def measure(profiles: Profiles, seed: int) -> Measured:
        if not profiles.has(TREATMENT):
            raise CannotJudgeError("no column says what a well was treated with: wells of a treatment are compared")
        sample = plate_sample if role == PLATE else partial(even_sample, role=role)
        rows, note = sample(profiles, LIMIT, seed)
        batches, finest = shuffles.plates(profiles, rows, seed, role)
        labels = profiles.codes(TREATMENT)[rows]
        units = directions(profiles.features[rows], centre=False)
        parts = []
        for label in np.unique(labels[labels >= 0]):
            members = np.flatnonzero(labels == label)
            if 1 < len(np.unique(batches[0, members])) < len(members):
                parts.append(members)
        if not parts:
            raise CannotJudgeError(f"no treatment has two wells in one {role} and others elsewhere")
        if len(parts) > _LABELS:
            some = np.random.default_rng(seed).choice(len(parts), _LABELS, replace=False)
            note = _join(note, f"{_LABELS} of {len(parts):,} treatments")
            parts = [parts[each] for each in np.sort(some)]
        values = np.full(batches.shape, np.nan)
        weights = np.zeros(len(rows))
        for members in parts:
            weights[members] = 1 / len(members)
            if len(members) <= _FEW:
                values[:, members] = 1 - np.abs(several_silhouettes(units[members], batches[:, members], others))
                continue
            for way, batch in enumerate(batches[:, members]):
                if batch.min() < batch.max():
                    values[way, members] = 1 - np.abs(unit_silhouettes(units[members], batch, others))
        return _of_plates(profiles, rows, values, "lower", finest, note, weights)

    return measure


def _mixing(
    role: str, make: MakeValues, effect: str, limit: float | None = None
) -> Callable[[Profiles, int], Measured]:
    """A metric of the labels of plates or experiments among neighbours; an effect makes it ``higher`` or ``lower``.

    With a limit, the share of wells above it is told; p is that of the mean, which is closer to normal than the share.
    """

    def measure(profiles: Profiles, seed: int) -> Measured:
        rows, _ = even_sample(profiles, LIMIT, seed, role)
        labels, finest = shuffles.plates(profiles, rows, seed, role)
        graph = plate_graph(profiles, seed, role)
        values, note = make(graph, labels[0])
        found = shuffles.measure(labels, values)
        measured = _of_plates(profiles, graph.rows, found, effect, finest, _join(graph.note, note))
        if limit is None:
            return measured
        above = (found > limit).astype(float)
        return measured._replace(values=above[0], null=float(above[1:].mean()))

    return measure


def _kbet(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    sizes = np.unique(labels, return_counts=True)[1]
    count = int(np.clip(sizes.mean(), 10, min(70, graph.indices.shape[1])))
    few = int((sizes < _SMALL).sum())
    note = f"{count} neighbours"
    if few:
        note += f"; {few} of {len(sizes)} batches have fewer than {_SMALL} wells: kBET is unsuited"
    return partial(kbet, graph.indices[:, :count]), note


def _ilisi(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    perplexity = graph.indices.shape[1] / 3
    weights = lisi_weights(graph.distances, perplexity)
    return partial(lisi, graph.indices, weights), f"perplexity {perplexity:.0f}, {len(np.unique(labels))} at most"


def _first(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    return lambda labels: (labels[graph.indices[:, 0]] == labels).astype(float), ""


def _treatment(make: MakeValues, better: str) -> Callable[[Profiles, int], Measured]:
    """A metric of treatments among neighbours."""

    def measure(profiles: Profiles, seed: int) -> Measured:
        graph = treatment_graph(profiles, seed)
        labels = _treatments(profiles, graph.rows, seed)
        values, note = make(graph, labels[0])
        found = shuffles.measure(labels, values)
        return _of_compounds(profiles, graph.rows, found, better, _join(graph.note, note))

    return measure


def _clisi(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    replicates = np.median(np.bincount(labels)[labels])
    perplexity = int(np.clip(replicates - 1, 2, graph.indices.shape[1] // 3 or 1))
    some = slice(0, min(3 * perplexity, graph.indices.shape[1]))
    weights = lisi_weights(graph.distances[:, some], perplexity)
    return partial(lisi, graph.indices[:, some], weights), f"perplexity {perplexity}"


def _connectivity(graph: Graph, labels: np.ndarray) -> tuple[shuffles.Values, str]:
    return partial(connectivity, graph.indices[:, :CONNECTED]), ""


def _label_silhouette(profiles: Profiles, seed: int) -> Measured:
    rows, note = treatment_sample(profiles, _COMPARED, seed)
    labels = _treatments(profiles, rows, seed)
    units = directions(profiles.features[rows], centre=False)
    found = shuffles.measure(labels, lambda labels: (1 + unit_silhouettes(units, labels)) / 2)
    return _of_compounds(profiles, rows, found, "higher", note)


def _treatments(profiles: Profiles, rows: np.ndarray, seed: int) -> np.ndarray:
    """Treatments (1 + S, N), shuffled within plates."""
    labels = profiles.codes(TREATMENT)[rows]
    if len(np.unique(labels)) < 2:
        raise CannotJudgeError("fewer than two treatments have replicates")
    plates = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.zeros_like(rows)
    return shuffles.shuffled(labels, plates, seed)


def _of_plates(
    profiles: Profiles,
    rows: np.ndarray,
    values: np.ndarray,
    effect: str,
    finest: float,
    note: str,
    weights: np.ndarray | None = None,
) -> Measured:
    null, p = shuffles.against_chance(shuffles.means(values, weights), effect, finest)
    groups = profiles.codes(PLATE)[rows] if profiles.has(PLATE) else np.arange(len(rows))
    return Measured(values[0], groups, null, weights, p, note)


def _of_compounds(profiles: Profiles, rows: np.ndarray, values: np.ndarray, better: str, note: str) -> Measured:
    """Of wells, or of treatments where there are as many values as these."""
    null, p = shuffles.against_chance(shuffles.means(values), better)
    groups = profiles.codes(COMPOUND if profiles.has(COMPOUND) else TREATMENT)[rows]
    if values.shape[1] < len(rows):
        groups = groups[np.unique(profiles.codes(TREATMENT)[rows], return_index=True)[1]]
    return Measured(values[0], groups, null, None, p, note)


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))


_OF_PLATES = f"mean of {shuffles.SHUFFLES} shuffles: plates among the wells of a treatment"
_OF_EXPERIMENTS = f"mean of {shuffles.SHUFFLES} shuffles: experiments among plates"
_OF_PLACES = f"mean of {shuffles.SHUFFLES} shuffles: places, on all plates alike"
_OF_TREATMENTS = f"mean of {shuffles.SHUFFLES} shuffles: treatments within plates"
_HASTIE = "Hastie, Tibshirani & Friedman 2009"


def _both(role: str, null: str) -> dict[str, Metric]:
    """The metrics of mixing for plates or experiments."""
    few = "with many small batches the test is rough, and below some 20 wells a batch unsuited: compare it with chance"
    alone = "of many batches, the nearest is near by chance: an effect may even raise it (Rautenstrauch & Ohler 2025)"
    return {
        f"{role}_silhouette": Metric(
            f"batch silhouette of {role}s within treatments", "batch", "higher", "plates", null,
            "Luecken et al. 2022", _batch_silhouette(role, "nearest"), alone,
        ),
        f"{role}_bras": Metric(
            f"batch silhouette of {role}s within treatments, against the mean of other {role}s (BRAS)", "batch",
            "higher", "plates", null, "Rautenstrauch & Ohler 2025", _batch_silhouette(role, "mean"),
            "an absolute value: where wells lie nearer to other batches by chance, a weak effect may raise it",
        ),
        f"{role}_kbet": Metric(
            f"neighbourhoods whose {role}s differ from all (kBET)", "batch", "lower", "plates", null,
            "Büttner et al. 2019", _mixing(role, _kbet, "higher", limit=1.0), few,
        ),
        f"{role}_ilisi": Metric(
            f"effective number of {role}s among neighbours (iLISI)", "batch", "higher", "plates", null,
            "Korsunsky et al. 2019", _mixing(role, _ilisi, "lower"),
            "profiles that hold nothing mix best: read it beside a metric of biology",
        ),
        f"{role}_neighbour": Metric(
            f"nearest well is of the same {role}", "batch", "lower", "plates", null,
            "Lin & Lu 2022", _mixing(role, _first, "higher"),
            "profiles that hold nothing mix best: read it beside a metric of biology",
        ),
    }  # fmt: skip


METRICS: Mapping[str, Metric] = {
    "plate_predicted": Metric(
        "plate predicted from other wells", "batch", "lower", "plates", _OF_PLATES, _HASTIE, predicted.plate,
        "plates whose wells hold other compounds are told apart by these, too",
    ),
    "experiment_predicted": Metric(
        "experiment predicted from other plates", "batch", "lower", "plates", _OF_EXPERIMENTS, _HASTIE,
        predicted.experiment, "experiments that hold other compounds are told apart by these, too",
    ),
    "row_predicted": Metric(
        "row predicted from other plates and compounds", "batch", "lower", "plates", _OF_PLACES, _HASTIE,
        predicted.place(ROW),
    ),
    "column_predicted": Metric(
        "column predicted from other plates and compounds", "batch", "lower", "plates", _OF_PLACES, _HASTIE,
        predicted.place(COLUMN),
    ),
    **_both(PLATE, _OF_PLATES),
    **_both(EXPERIMENT, _OF_EXPERIMENTS),
    "treatment_connectivity": Metric(
        "wells of a treatment that are joined by neighbours (graph connectivity)", "batch", "higher", "compounds",
        _OF_TREATMENTS, "Luecken et al. 2022", _treatment(_connectivity, "higher"),
    ),
    "treatment_silhouette": Metric(
        "silhouette of treatments, 0.5 where they do not stand apart", "biology", "higher", "compounds", _OF_TREATMENTS,
        "Rousseeuw 1987; Luecken et al. 2022", _label_silhouette,
    ),
    "treatment_clisi": Metric(
        "effective number of treatments among neighbours (cLISI)", "biology", "lower", "compounds", _OF_TREATMENTS,
        "Korsunsky et al. 2019", _treatment(_clisi, "lower"),
        "1 at best where a treatment has more replicates than the perplexity",
    ),
    "treatment_neighbour": Metric(
        "nearest well has the same treatment (top 1)", "biology", "higher", "compounds", _OF_TREATMENTS,
        "Cover & Hart 1967", _treatment(_first, "higher"),
        "the nearest well may be of the same plate or place: see the ladder",
    ),
}  # fmt: skip
"""Key of a metric → what it is."""
