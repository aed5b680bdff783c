"""What a trained network is worth: accuracy, profiles, mechanisms of action, batch effects; and what a design allows.

Scores for tables and arrays stand here. The transfer of a network to a screen is the work of the modules ``checks``,
``encode`` (cells to images), ``transfer`` (wells to scores) and ``report`` (tables and figures); profiles for other
tools that of ``profiles``, ``measured`` and ``postprocess``. What is to be expected of a plate map before there is a
network is that of ``design`` (what its plates hold), ``curves`` (what was measured), ``verdict`` and ``page``.
"""

from biomass.evaluation.design import composition_shift, confounding, cramers_v, describe_groups, effective_wells
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
    "composition_shift",
    "confounding",
    "cramers_v",
    "describe_groups",
    "effective_wells",
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
