"""What a trained network is worth: accuracy, profiles, mechanisms of action, batch effects.

Scores for tables and arrays stand here. The transfer of a network to a screen is the work of the modules ``checks``,
``encode`` (cells to images), ``transfer`` (wells to scores) and ``report`` (tables and figures).
"""

from biomass.evaluation.nearest import BatchMixing, NearestResult, batch_mixing, batch_sets, nsc, nscb
from biomass.evaluation.pooling import profile_screen
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
    "profile_screen",
    "prune_correlated",
    "replicate_correlation",
    "replicate_map",
    "tvn",
    "whiten",
]
