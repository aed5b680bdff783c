"""Is there a batch effect in profiles, and is it gone? Metrics with their chance levels and intervals, and a verdict.

Works on any table of profiles, see :mod:`biomass.judgement.table`. Every metric is one entry of a table of functions,
see :mod:`biomass.judgement.scores`.
"""
