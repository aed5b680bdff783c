"""Run every benchmark, or those whose names are given: ``python -m benchmarks loop transforms``."""

import importlib
import pkgutil
import sys

import benchmarks


def main(names: list[str]) -> None:
    """Import ``benchmarks.bench_<name>`` and call its ``main``, one after the other."""
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("bench_"))
    for module in [f"bench_{name}" for name in names] or known:
        print(f"\n{module}", flush=True)
        importlib.import_module(f"benchmarks.{module}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
