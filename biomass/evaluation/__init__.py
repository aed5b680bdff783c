"""What a trained network is worth: accuracy, profiles, mechanisms of action, batch effects."""

from biomass.evaluation.nearest import BatchMixing, NearestResult, batch_mixing, batch_sets, nsc, nscb
from biomass.evaluation.replicates import ReplicateMap, replicate_map
from biomass.evaluation.tables import aggregate, feature_columns, normalize, prune_correlated, replicate_correlation
from biomass.evaluation.whitening import Whitening, align, fit_whitening, tvn, whiten

__all__ = [
    "BatchMixing",
    "NearestResult",
    "ReplicateMap",
    "Whitening",
    "aggregate",
    "align",
    "batch_mixing",
    "batch_sets",
    "feature_columns",
    "fit_whitening",
    "normalize",
    "nsc",
    "nscb",
    "prune_correlated",
    "replicate_correlation",
    "replicate_map",
    "tvn",
    "whiten",
]
