"""Ratios measured side by side in one process; run all with ``make bench``, keep them with ``make results``."""
