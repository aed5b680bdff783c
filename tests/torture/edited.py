"""Command lines and YAML files that name what they should not, or that somebody has edited; tools with odd words."""

import random
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.torture.cases import CANARY, ROOT, Trial, command
from tests.torture.words import BASES, VALUES, in_folder, links, only_begin

TARGETS = (
    *(
        "os.mkdir",
        "pathlib.Path.mkdir",
        "subprocess.call",
        "os.system",
        "builtins.exec",
        "builtins.eval",
        "builtins.open",
    ),
    *(
        "posix.mkdir",
        "shutil.copy",
        "biomass.runs.os.mkdir",
        "biomass.atomic.shutil.copytree",
        "importlib.import_module",
        "runpy.run_path",
    ),
    *(
        "torch.load",
        "pickle.load",
        "numpy.load",
        "",
        "nothing",
        "biomass",
        "biomass.nothing",
        "1",
        "os",
        "os.path",
        "builtins.print",
    ),
    *(
        "biomass.datasets.manifest",
        "biomass.transforms.Standardise",
        "biomass.errors.ConfigError",
        "builtins.dict",
        "hydra.utils.instantiate",
    ),
)


def target(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A ``_target_`` that is none, or that would run what it should not."""
    script, name, canary = rng.choice(sorted(BASES)), rng.choice(TARGETS), folder / CANARY
    code = f"mkdir {canary}" if name == "os.system" else f"__import__('os').mkdir('{canary}')"
    word = (
        f"[mkdir, '{canary}']"
        if name == "subprocess.call"
        else f"'{canary}'"
        if re.search("mkdir|open|Path", name)
        else f'"{code}"'
    )
    named = rng.choice(("path", "self", "command", "source", "name", "file", "args", "exist_ok"))
    key = rng.choice(("dataloaders.source", "transforms.eval", "transforms.train", "hydra.launcher", "hydra.sweeper"))
    node = f"{{_target_: {name}, {'_args_' if rng.random() < 0.5 else named}: {word}}}".replace(
        f"_args_: {word}", f"_args_: [{word}]"
    )
    words = [f"{key}=[{node}]" if key.startswith("transforms") else f"++{key}={node}"]
    return Trial(f"{script} … {words!r}", in_folder(script, [*BASES[script], *words], kit))


def yaml(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A script whose YAML somebody has edited."""
    script = rng.choice(("train_erm", "train_simclr", "train_classifier", "transfer_bbbc021"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / f"{script}.py", folder / f"{script}.py")
    file = folder / "configs" / (f"{script}.yaml" if rng.random() < 0.8 else "dataloaders/simulated.yaml")
    lines = file.read_text().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    kinds: dict[str, Callable[[], object]] = {
        "without a line": lambda: lines.pop(at),
        "with a tab": lambda: lines.__setitem__(at, "\t" + lines[at]),
        "with a line twice": lambda: lines.insert(at, lines[at]),
        "indented": lambda: lines.__setitem__(at, "  " + lines[at]),
        "without a colon": lambda: lines.__setitem__(at, lines[at].replace(":", "", 1)),
        "with a value": lambda: lines.__setitem__(
            at, re.sub(r":.*", lambda _: f": {rng.choice(VALUES)}", lines[at], count=1)
        ),
        "with code": lambda: lines.insert(len(lines), f"evil: !!python/object/apply:os.mkdir ['{folder / CANARY}']"),
        "cut off": lambda: lines.__setitem__(slice(at, None), [lines[at][: len(lines[at]) // 2]]),
        "with a control character": lambda: lines.__setitem__(at, lines[at] + "\x07"),
        "with another default": lambda: lines.insert(1, "  - dataloaders: nothing"),
        "empty": lambda: lines.clear(),
        "a list": lambda: lines.__setitem__(slice(None), ["- a", "- b"]),
        "an alias to itself": lambda: lines.insert(len(lines), "loop: &a [*a]"),
        "a billion laughs": lambda: lines.extend(
            ["l0: &l0 [x,x,x,x,x,x,x,x,x]", *(f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9))]
        ),
    }
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    file.write_text("\n".join(lines) + "\n")

    def act() -> None:
        links(kit)
        only_begin()
        sys.argv = [f"{script}.py", *BASES[script]]
        runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")

    return Trial(f"{script} with {file.name} {kind}, line {at + 1}", act)


def tool(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A tool on files with odd words among its arguments."""
    options = {
        "pack": ["--set", "--on-bad-image", "--out", "--workers", "--verify"],
        "crop": [
            "--set",
            "--channel",
            "--size",
            "--diameter",
            "--nuclei",
            "--alone",
            "--compare",
            "--within",
            "--workers",
        ],
        "index": [
            "--platemap",
            "--barcodes",
            "--layout",
            "--pattern",
            "--channels",
            "--plate",
            "--z",
            "--splits",
            "--place",
        ],
        "evaluate": ["--metadata", "--set", "--correction", "--pairs", "--fit-first", "--earlier", "--map", "--seed"],
        "check": ["--set", "--images", "--run-name", "--workers"],
        "report": ["--out"],
        "compare": ["--out"],
        "preflight": ["--set"],
    }
    name = rng.choice(sorted(options))
    sources = [
        f"{kit}/screen/manifest.csv",
        f"{kit}/fields/manifest.csv",
        f"{kit}/lab/screen",
        f"{kit}/profiles.csv",
        f"{kit}/store",
        f"{kit}/runs/net",
        "nothing",
        "",
        "/dev/null",
        ".",
        "\x1b[31m",
        "a" * 300,
    ]
    values = [
        v
        for v in (
            *VALUES,
            "image=path",
            "columns.label=moa",
            "plates=[P1]",
            "columns.plate=",
            "control.negative=[DMSO]",
            "a.b.c=1",
            "=x",
        )
        if "\x00" not in v
    ]
    words = [rng.choice(sources)] * (rng.random() < 0.95)
    for _ in range(rng.randint(0, 3)):
        words.append(rng.choice(options[name]) if rng.random() < 0.9 else rng.choice(("--nothing", "-q", "-", "--")))
        words += [rng.choice(values)] * (rng.random() < 0.85)
    if name in ("pack", "crop", "index") and rng.random() < 0.8:
        words += ["--out", "out"]
    if name == "evaluate":
        words += ["--map", "none", "--correction", "none", "--run-name", "r"]
    return Trial(f"biomass {name} {words!r}", command(name, *words))
