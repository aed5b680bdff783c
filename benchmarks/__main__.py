"""Run every benchmark, or those that are named: ``python -m benchmarks loop transforms``."""

import importlib
import pkgutil
import sys

import benchmarks
from biomass.errors import did_you_mean


def main(names: list[str]) -> None:
    """Import ``benchmarks.bench_<name>`` and call its ``main``, one after the other."""
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    known = sorted(name.removeprefix("bench_") for name in modules if name.startswith("bench_"))
    for name in names:
        if name not in known:
            raise SystemExit(f"error: no benchmark is called '{name}'; {did_you_mean(name, known)}")
    for name in names or known:
        print(f"\nbench_{name}", flush=True)
        importlib.import_module(f"benchmarks.bench_{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
