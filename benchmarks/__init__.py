"""Ratios measured side by side in one process; run all with ``python -m benchmarks`` or ``make bench``."""
