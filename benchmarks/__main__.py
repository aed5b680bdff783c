"""Run every benchmark, or those that are named: ``python -m benchmarks loop transforms``.

With ``--page`` the figures go into ``benchmarks/cpu.json``, and the page ``benchmarks/RESULTS.md`` is made from it;
where some are named, those of the others stay as they were, if they were measured here.
"""

import argparse
import importlib
import pkgutil
from pathlib import Path

import torch

import benchmarks
from benchmarks import page
from benchmarks.record import Record, about, measured_apart
from biomass.errors import did_you_mean, one_line


def main(arguments: list[str] | None = None) -> None:
    """Import ``benchmarks.bench_<name>``, and call its ``main`` or, for the page, its ``measure``, in turn."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Ratios, measured side by side.")
    parser.add_argument("names", nargs="*", help="which benchmarks; all of them, if none is named")
    parser.add_argument("--page", action="store_true", help="keep the figures, and write benchmarks/RESULTS.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: figures mean nothing")
    parser.add_argument("--out", type=Path, default=page.FOLDER, help="the folder of the page")
    chosen = parser.parse_args(arguments)
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    known = sorted(name.removeprefix("bench_") for name in modules if name.startswith("bench_"))
    for name in chosen.names:
        if name not in known:
            raise SystemExit(f"error: no benchmark is called '{name}'; {did_you_mean(name, known)}")
    if chosen.page:
        if chosen.quick and chosen.out == page.FOLDER:
            raise SystemExit("error: figures of --quick mean nothing, and do not belong on the page: give --out")
        make_page(chosen.names or known, known, chosen.quick, chosen.out)
        return
    for name in chosen.names or known:
        print(f"\nbench_{name}", flush=True)
        importlib.import_module(f"benchmarks.bench_{name}").main()


def make_page(names: list[str], known: list[str], quick: bool, folder: Path) -> None:
    """Measure the benchmarks of these names, each in a process of its own, and write the page into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / page.CPU.name, about(torch.device("cpu")), anew=names == known)
    for name in names:
        print(f"\nbench_{name}", flush=True)
        try:
            module = importlib.import_module(f"benchmarks.bench_{name}")
        except ImportError as error:
            record.leave_out(name, "", one_line(error))
            continue
        title = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        if hasattr(module, "measure"):
            record.measure(name, title, measured_apart(module.__name__, quick, folder))
        else:
            record.leave_out(name, title, f"it only prints: `python -m benchmarks {name}`")
    record.parts = {name: record.parts[name] for name in known if name in record.parts}
    record.save()
    page.write_page(folder / page.PAGE.name, record.path, folder / page.GPU.name)
    print(f"\n{page.PAGE.name} is written")


if __name__ == "__main__":
    main()
